//! What framing, the ledger of answers and the few messages of Halyard's own cost.

mod flights;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flights::{Place, SELECT, flights};
use halyard::wire::{Header, backend, bind_renamed, parse_parts, parse_renamed, tagged};

/// Rows of one read from a backend that sends a large result.
fn rows(row_size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < 64 * 1024 {
        tagged(&mut bytes, backend::DATA_ROW, |out| {
            out.resize(out.len() + row_size, b'x');
        });
    }
    bytes
}

fn framing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("headers");
    for row_size in [20, 200, 2000] {
        let bytes = rows(row_size);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("rows_of_{row_size}"), |bencher| {
            bencher.iter(|| {
                let mut rest = black_box(&bytes[..]);
                while let Ok(Some(header)) = Header::parse(rest) {
                    rest = &rest[header.total()..];
                }
                rest.len()
            });
        });
    }
    group.finish();
}

fn round_trips(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round_trip");
    for flight in flights() {
        let mut place = Place::default();
        assert_eq!(
            place.relay(&flight),
            flight.answer.len(),
            "the client gets the whole answer"
        );
        group.bench_function(flight.name, |bencher| {
            bencher.iter(|| place.relay(black_box(&flight)));
        });
    }
    group.finish();
}

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let mut out = Vec::with_capacity(1024);
    group.bench_function("parse_renamed", |bencher| {
        bencher.iter(|| {
            out.clear();
            parse_renamed(&mut out, b"halyard_2a", black_box(SELECT), b"\0\0");
            out.len()
        });
    });
    group.bench_function("bind_renamed", |bencher| {
        bencher.iter(|| {
            out.clear();
            bind_renamed(
                &mut out,
                b"",
                b"halyard_2a",
                black_box(b"\0\0\0\x01\0\0\0\x0512345\0\0"),
                0,
            );
            out.len()
        });
    });
    let body = [&b"\0"[..], SELECT, &b"\0\0\0"[..]].concat();
    group.bench_function("parse_parts", |bencher| {
        bencher.iter(|| parse_parts(black_box(&body)));
    });
    group.finish();
}

criterion_group!(benches, framing, round_trips, messages);
criterion_main!(benches);
