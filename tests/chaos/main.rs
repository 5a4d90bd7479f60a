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
mod excuses;
mod faults;
mod history;
mod lists;
mod load;
mod options;
mod promises;
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
use schedule::{Fault, Round, Schedule};
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
    let mut lines = Vec::new();
    for (number, mut round) in Schedule::new(options.seed).enumerate().skip(options.skip) {
        if began.elapsed() >= options.lasts {
            break;
        }
        round
            .faults
            .retain(|planned| has_small_disk || planned.fault != Fault::FillDisk);
        rounds += 1;
        let name = format!("round {number}");
        witness.say(&name);
        let is_whole = witness.attempt(&name, || stand(stage, &round, &mut idle));
        look_for_panics(stage);
        if let Some(now) = witness.attempt("a look at the proxy's process", || stage.footprint()) {
            busiest.memory_kib = busiest.memory_kib.max(now.memory_kib);
            busiest.files = busiest.files.max(now.files);
        }
        if is_whole != Some(true) {
            lines.push("the run ended early: the cluster was not whole when it was looked at".to_owned());
            break;
        }
    }
    let took = began.elapsed();

    witness.end();
    // One that fails takes nothing from the others.
    let audits = [
        witness.attempt("the ledger's audit", || writes.audit(stage)),
        witness.attempt("the bank's audit", || bank.audit(stage)),
    ];
    lines.extend(audits.into_iter().flatten());
    let audited = witness.attempt("the lists' audit", || lists.audit(stage));
    let (history, line) = audited.unwrap_or_default();
    lines.push(line);
    let audits = [
        witness.attempt("the sessions' audit", || sessions.audit(stage)),
        witness.attempt("pgbench's audit", || pgbench.audit(stage)),
    ];
    lines.extend(audits.into_iter().flatten());
    drop(idle);
    let after = witness.attempt("the proxy's end", || calm(stage, before));
    look_for_panics(stage);
    Report {
        rounds,
        took,
        lines,
        before,
        busiest,
        after: after.unwrap_or(busiest),
        history,
    }
}

/// Breaks what a round wants to have broken. Returns when everything is as it was before, or that it does not get so.
fn stand(stage: &Stage, round: &Round, idle: &mut Idle) -> bool {
    if !faults::carry_out(stage, round) {
        return false;
    }
    faults::await_service(stage);
    thread::sleep(round.quiet);
    let kept = idle.use_all();
    if kept.dropped + kept.lost > 0 {
        let words = format!("of the idle clients: {kept:?}");
        stage.witness.violation(&words);
    }
    true
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
