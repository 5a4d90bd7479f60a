//! Instructions of the pure part of a relayed round trip: framing, ledger and classification, without sockets.
//!
//! Needs valgrind and a `gungraun-runner` of the library's version: `benches/instructions.sh --pure` sees to both. What a
//! whole process spends, sockets and runtime included, is counted by `benches/instructions.sh` without it.

#![allow(
    unused_qualifications,
    missing_docs,
    reason = "what the macros of gungraun write"
)]

mod flights;

use std::hint::black_box;

use flights::{Flight, Place, SELECT, flights};
use gungraun::{library_benchmark, library_benchmark_group, main};
use halyard::classify::{ClassCache, FunctionCatalog, KeySeed, Settings};

/// A place that has served the flight before, so that buffers and queues have their size.
fn warm(at: usize) -> (Place, Flight) {
    let flight = flights().into_iter().nth(at).expect("there are three flights");
    let mut place = Place::default();
    place.relay(&flight);
    (place, flight)
}

#[library_benchmark]
#[bench::simple(warm(0))]
#[bench::extended(warm(1))]
#[bench::prepared(warm(2))]
fn round_trip((mut place, flight): (Place, Flight)) -> (usize, Place, Flight) {
    // What was lent is handed back, so that dropping it is not counted.
    (place.relay(black_box(&flight)), place, flight)
}

/// A cache that knows the statement.
fn knowing() -> (ClassCache, Settings, FunctionCatalog) {
    let (settings, catalog) = (Settings::default(), FunctionCatalog::builtin());
    let mut cache = ClassCache::new(ClassCache::DEFAULT_CAPACITY, KeySeed::random());
    cache.classify(SELECT, &settings, &catalog);
    (cache, settings, catalog)
}

#[library_benchmark]
#[bench::known(knowing())]
fn class(
    (mut cache, settings, catalog): (ClassCache, Settings, FunctionCatalog),
) -> (ClassCache, FunctionCatalog) {
    black_box(cache.classify(black_box(SELECT), &settings, &catalog));
    (cache, catalog)
}

library_benchmark_group!(name = relay, benchmarks = [round_trip, class]);
main!(library_benchmark_groups = relay);
