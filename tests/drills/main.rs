//! Planned switchovers, killed primaries and replicas, and split brains, again and again under load: what clients see of
//! them, in figures.
//!
//! `make drills` runs it; `cargo test --test drills -- --help` says how. Without arguments it is a short run of one drill
//! of each kind, which fails where a promise is broken.
#![allow(clippy::unwrap_used, reason = "a drill fails by panicking")]

#[allow(dead_code, unused_imports, reason = "the integration tests use the rest")]
#[path = "../support/mod.rs"]
mod support;

mod clock;
mod cut_off;
mod drill;
mod end;
mod front;
mod idle;
#[allow(dead_code, reason = "the chaos suite uses the rest")]
mod ledger;
mod options;
#[allow(dead_code, reason = "the chaos suite uses the rest")]
mod pgbench;
mod probe;
mod report;
mod strays;

use std::process::ExitCode;
use std::time::Instant;

use drill::Stage;
use options::Options;
use report::Report;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::FAILURE;
        }
    };
    let began = Instant::now();
    let mut report = Report::new(&options);
    let mut stage = Stage::new(&options);
    for kind in &options.kinds {
        for number in 1..=options.count {
            let round = stage.run(*kind, number);
            println!("{:7.1} s  {round}", began.elapsed().as_secs_f64());
            report.add(round);
            // With each drill: what is known is kept if the cluster does not get whole again.
            if let Some(path) = &options.report {
                report.write(path);
            }
        }
    }
    println!("\n{}", report.table());
    let mut broken = report.broken_promises();
    if stage.has_panicked() {
        broken.push("Halyard has panicked".to_owned());
    }
    for promise in &broken {
        println!("BROKEN: {promise}");
    }
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
