//! Faults by chance under every kind of load, and whether anybody was lied to.
//!
//! `make chaos` runs it for half an hour; `cargo test --test chaos -- --help` says how else. Without arguments it is the
//! short run of `make test`. What it does, what it checks and why that suffices: `docs/chaos.md`.
#![allow(clippy::unwrap_used, reason = "the suite fails by panicking")]

#[allow(dead_code, unused_imports, reason = "the integration tests use the rest")]
#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the drills use the rest")]
#[path = "../drills/front.rs"]
mod front;
#[path = "../drills/idle.rs"]
mod idle;
#[allow(dead_code, reason = "the drills use the rest")]
#[path = "../drills/ledger.rs"]
mod ledger;
#[allow(dead_code, reason = "the drills use the rest")]
#[path = "../drills/pgbench.rs"]
mod pgbench;

mod bank;
mod caller;
mod chance;
mod faults;
mod history;
mod lists;
mod load;
mod options;
mod report;
mod schedule;
mod sessions;
mod stage;
mod standbys;
mod witness;
mod writes;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use bank::Bank;
use idle::Idle;
use lists::Lists;
use load::Pgbench;
use options::Options;
use report::Report;
use schedule::{Fault, Schedule};
use sessions::Sessions;
use stage::Stage;
use standbys::Standbys;
use witness::Witness;
use writes::Writes;

/// Load before the first fault.
const STEADY: Duration = Duration::from_secs(5);
/// From the cluster's being whole until a new client has had a write and a read answered.
const SERVES_WITHIN: Duration = Duration::from_secs(10);
/// From the cluster's being whole until every client gets through and every standby is used again.
const FLOWS_WITHIN: Duration = Duration::from_secs(60);
/// Idle clients with settings and prepared statements.
const IDLE: usize = 50;
/// What the proxy may have more at the end, without clients, than at the beginning without any.
const GROWTH_KIB: u64 = 64 * 1024;
const GROWTH_FILES: usize = 16;
/// Until the proxy has closed what it keeps for clients that are gone.
const CALM_WITHIN: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "chaos: seed {}, profile {}, {:.1} minutes",
        options.seed,
        options.profile,
        options.lasts.as_secs_f64() / 60.0
    );
    let witness = Witness::new();
    let stage = Stage::new(&options, witness);
    let has_small_disk = faults::give_a_small_disk(&stage);
    if !has_small_disk {
        witness.say("no file system can be mounted here: no disk gets full");
    }
    let report = run(&options, &stage, has_small_disk);
    report.tell(&options, &stage)
}

fn run(options: &Options, stage: &Stage, has_small_disk: bool) -> Report {
    let (witness, address) = (stage.witness, &stage.proxy.address);
    let before = stage.footprint();
    let mut idle = Idle::connect(address, IDLE);
    let writes = Writes::start(address, witness);
    let bank = Bank::start(address, options.seed, witness);
    let lists = Lists::start(address, options.seed, witness);
    let standbys = Standbys::watch(stage.cluster);
    let sessions = Sessions::start(address, options.seed, &standbys, witness);
    let pgbench = Pgbench::start(address, witness);
    faults::await_service(stage);
    thread::sleep(STEADY);

    let began = Instant::now();
    let mut rounds = 0;
    let mut busiest = before;
    for (number, mut round) in Schedule::new(options.seed).enumerate().skip(options.skip) {
        if began.elapsed() >= options.lasts {
            break;
        }
        witness.say(&format!("round {number}"));
        round
            .faults
            .retain(|planned| has_small_disk || planned.fault != Fault::FillDisk);
        rounds += 1;
        if !faults::carry_out(stage, &round) {
            look_for_panics(stage);
            return Report::of_the_unfinished(rounds, began.elapsed(), [before, busiest, stage.footprint()]);
        }
        faults::await_service(stage);
        thread::sleep(round.quiet);
        let kept = idle.use_all();
        if kept.dropped + kept.lost > 0 {
            witness.violation(&format!("of the idle clients: {kept:?}"));
        }
        let now = stage.footprint();
        busiest.memory_kib = busiest.memory_kib.max(now.memory_kib);
        busiest.files = busiest.files.max(now.files);
        look_for_panics(stage);
    }
    let took = began.elapsed();

    witness.end();
    let mut direct = stage.cluster.app(stage.cluster.primary().port).connect();
    direct
        .stream()
        .set_read_timeout(Some(support::LONG_PATIENCE))
        .unwrap();
    let pgbench = pgbench.audit(&mut direct, witness);
    let writes = writes.audit(&mut direct, witness);
    let bank = bank.audit(&mut direct, witness);
    let (history, lists) = lists.audit(&mut direct, witness);
    let sessions = sessions.end();
    drop(idle);
    let after = calm(stage, before);
    look_for_panics(stage);
    Report {
        rounds,
        took,
        lines: vec![writes, bank, lists, sessions, pgbench],
        before,
        busiest,
        after,
        history,
    }
}

fn look_for_panics(stage: &Stage) {
    // As the proxy's own hook words it.
    if stage.proxy.log().contains("a bug in Halyard") {
        stage.witness.violation("the proxy has panicked");
    }
}

/// What the proxy has when everybody is gone.
fn calm(stage: &Stage, before: stage::Footprint) -> stage::Footprint {
    let deadline = Instant::now() + CALM_WITHIN;
    loop {
        let now = stage.footprint();
        let status = stage.proxy.status();
        let clients = &status["clients"];
        let left: u64 = ["idle", "active", "idle_in_transaction", "waiting", "held"]
            .iter()
            .map(|state| clients[state].as_u64().unwrap())
            .sum();
        let lent: u64 = status["pools"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pool| pool["active"].as_u64().unwrap() + pool["waiting"].as_u64().unwrap())
            .sum();
        if left + lent == 0 && now.files <= before.files + GROWTH_FILES {
            if now.memory_kib > before.memory_kib + GROWTH_KIB {
                let words = format!("the proxy has grown from {before:?} to {now:?}");
                stage.witness.violation(&words);
            }
            return now;
        }
        if Instant::now() >= deadline {
            stage.witness.violation(&format!(
                "without clients the proxy has {left} clients, {lent} connections lent or waited for, and {now:?} (at \
                 first {before:?})"
            ));
            return now;
        }
        thread::sleep(Duration::from_millis(200));
    }
}
