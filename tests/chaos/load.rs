//! pgbench in all its ways, again and again: a client of it that is told 08007 gives up for good.

use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::pgbench::{Load, Told};
use crate::support::{Address, Client};
use crate::witness::{HOLD, Progress, Witness};

/// Clients of each script in each protocol.
const CLIENTS: usize = 2;
/// How long one run of pgbench lasts; who is held lasts longer.
const RUN_S: u32 = 20;
/// Tries of a transaction that is told 40001.
const TRIES: u32 = 100;
const LOOK: Duration = Duration::from_millis(500);

/// Runs of pgbench, one after another.
pub(crate) struct Pgbench {
    runs: JoinHandle<u64>,
}

impl Pgbench {
    pub(crate) fn start(proxy: &Address, witness: &'static Witness) -> Self {
        let proxy = proxy.clone();
        let progress: BTreeMap<_, _> = ["tpcb-like", "select-only"]
            .map(|script| (script, witness.client(format!("pgbench {script}"))))
            .into();
        let runs = thread::spawn(move || {
            let mut runs = 0;
            while !witness.is_over() {
                run(&proxy, witness, &progress);
                runs += 1;
            }
            runs
        });
        Self { runs }
    }

    /// Waits for the last run, and looks whether TPC-B's sums agree. Returns a line for the summary.
    pub(crate) fn audit(self, direct: &mut Client, witness: &Witness) -> String {
        let runs = self.runs.join().unwrap();
        let sums = direct.run(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
             (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
        );
        let sums = &sums.rows[0];
        if sums.iter().any(|sum| *sum != sums[0]) {
            witness.violation(&format!("TPC-B's sums differ: {sums:?}"));
        }
        let written = direct.value("SELECT count(*) FROM pgbench_history");
        format!("{runs} runs of pgbench in each of its six ways; {written} transactions of TPC-B")
    }
}

fn run(proxy: &Address, witness: &'static Witness, progress: &BTreeMap<&'static str, &'static Progress>) {
    let mut unprepared = 0;
    let mut load = Load::start_on(proxy, "disable", TRIES, CLIENTS, RUN_S);
    while !witness.is_over() && !load.has_ended() {
        thread::sleep(LOOK);
        for (script, told) in load.news() {
            if told.tps.iter().any(|tps| *tps > 0.0) {
                progress[script].made();
            }
            tell(witness, script, &told, &mut unprepared);
        }
    }
    for (script, told) in load.stop() {
        tell(witness, script, &told, &mut unprepared);
    }
}

/// pgbench prepares once, goes on where that fails, and names a statement then that is not there.
const NOT_PREPARED: &str = "prepared statement \"P_";

fn tell(witness: &Witness, script: &str, told: &Told, unprepared: &mut usize) {
    let now = Instant::now();
    *unprepared += told.errors.get("57P03").copied().unwrap_or_default();
    for (error, count) in &told.errors {
        let mut count = *count;
        if error.starts_with(NOT_PREPARED) {
            let explained = count.min(*unprepared);
            *unprepared -= explained;
            count -= explained;
        }
        // How long it waited nobody says.
        let asked = match error.as_str() {
            "57P03" => now.checked_sub(HOLD),
            _ => now.checked_sub(2 * LOOK),
        };
        for _ in 0..count {
            let is_state = error.len() == 5;
            let (sqlstate, message) = if is_state {
                (error.as_str(), "")
            } else {
                ("", error.as_str())
            };
            let times = (asked.unwrap_or(now), now);
            witness.error(&format!("pgbench {script}"), (sqlstate, message), times, "");
        }
    }
    if told.disconnects > 0 {
        witness.violation(&format!(
            "{} connections of pgbench {script} ended",
            told.disconnects
        ));
    }
}
