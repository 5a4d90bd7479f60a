//! pgbench in all its ways, again and again: a client of it that is told 08007 gives up for good.

use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::excuses::{HOLD, WAIT_TIMEOUT};
use crate::pgbench::{Load, Told};
use crate::promises::Doubts;
use crate::stage::Stage;
use crate::support::Address;
use crate::witness::{Progress, Witness};

/// Clients of each script in each protocol.
const CLIENTS: usize = 2;
/// How long one run of pgbench lasts; who is held lasts longer.
const RUN_S: u32 = 20;
/// Tries of a transaction that is told 40001.
const TRIES: u32 = 100;
const LOOK: Duration = Duration::from_millis(500);

/// Past the end of a run, until a client of it that is held has been told so.
const ENDS_WITHIN: Duration = Duration::from_secs(HOLD.as_secs() + 60);

/// What writes.
const TPCB: &str = "tpcb-like";

/// Runs of pgbench, one after another.
pub(crate) struct Pgbench {
    runs: JoinHandle<Runs>,
}

#[derive(Default)]
struct Runs {
    count: u64,
    /// Transactions of TPC-B that were acknowledged, as pgbench says at a run's end. None where a run did not come to it.
    acknowledged: Option<usize>,
}

impl Pgbench {
    pub(crate) fn start(proxy: &Address, witness: &'static Witness) -> Self {
        let proxy = proxy.clone();
        let progress: BTreeMap<_, _> = [TPCB, "select-only"]
            .map(|script| (script, witness.client(format!("pgbench {script}"))))
            .into();
        let runs = thread::spawn(move || {
            let mut runs = Runs {
                count: 0,
                acknowledged: Some(0),
            };
            while !witness.is_over() {
                let acknowledged = run(&proxy, witness, &progress);
                runs.acknowledged = runs
                    .acknowledged
                    .zip(acknowledged)
                    .map(|(before, now)| before + now);
                runs.count += 1;
            }
            runs
        });
        Self { runs }
    }

    /// Waits for the last run, and looks whether TPC-B's sums agree. Returns a line for the summary.
    pub(crate) fn audit(self, stage: &Stage) -> String {
        let witness = stage.witness;
        let runs = witness.joined("pgbench", [self.runs]).pop().unwrap_or_default();
        let summary = format!("{} runs of pgbench in each of its six ways", runs.count);
        let Some(mut direct) = stage.primary_to_compare() else {
            return format!("{summary}; not compared");
        };
        let sums = direct.run(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
             (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
        );
        let sums = &sums.rows[0];
        if sums.iter().any(|sum| *sum != sums[0]) {
            witness.violation(&format!("TPC-B's sums differ: {sums:?}"));
        }
        let Some(acknowledged) = runs.acknowledged else {
            return format!(
                "{summary}, one of which had to be killed; TPC-B's transactions are not compared"
            );
        };
        let written: usize = direct
            .value("SELECT count(*) FROM pgbench_history")
            .parse()
            .unwrap();
        let unknown = witness.told_unknown(&format!("pgbench {TPCB}"));
        // Its transactions have no names: what is there beyond what was acknowledged is of unknown outcome.
        let took_effect = written.checked_sub(acknowledged);
        let doubts = took_effect.and_then(|took_effect| {
            let had_none = unknown.checked_sub(took_effect)?;
            Some(Doubts {
                took_effect,
                had_none,
            })
        });
        let doubts = doubts.map_or_else(
            || {
                witness.violation(&format!(
                    "TPC-B: {acknowledged} transactions acknowledged, {unknown} of unknown outcome, and {written} there"
                ));
                format!("{unknown} of unknown outcome")
            },
            |doubts| doubts.to_string(),
        );
        format!("{summary}; {acknowledged} transactions of TPC-B acknowledged, {doubts}")
    }
}

/// Returns how many transactions of TPC-B were acknowledged, as pgbench says at its end. None where one had to be killed.
fn run(
    proxy: &Address,
    witness: &'static Witness,
    progress: &BTreeMap<&'static str, &'static Progress>,
) -> Option<usize> {
    let (mut unprepared, mut acknowledged) = (0, 0);
    let mut hear = |script: &'static str, told: &Told| {
        if script == TPCB {
            acknowledged += told.processed;
        }
        tell(witness, script, told, &mut unprepared);
    };
    let mut load = Load::start_on(proxy, "disable", TRIES, CLIENTS, RUN_S);
    let deadline = Instant::now() + Duration::from_secs(u64::from(RUN_S)) + ENDS_WITHIN;
    let gives_up = || witness.is_over() && Instant::now() >= deadline;
    while !load.has_ended() && !gives_up() {
        thread::sleep(LOOK);
        for (script, told) in load.news() {
            if told.tps.iter().any(|tps| *tps > 0.0) {
                progress[script].made();
            }
            hear(script, &told);
        }
    }
    let has_ended = load.has_ended();
    for (script, told) in load.stop() {
        hear(script, &told);
    }
    has_ended.then_some(acknowledged)
}

/// pgbench prepares once, goes on where that fails, and names a statement then that is not there.
const NOT_PREPARED: &str = "prepared statement \"P_";

fn tell(witness: &Witness, script: &str, told: &Told, unprepared: &mut usize) {
    let now = Instant::now();
    *unprepared += told.unprepared;
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
            "53300" => now.checked_sub(WAIT_TIMEOUT),
            _ => now.checked_sub(2 * LOOK),
        };
        for _ in 0..count {
            let times = (asked.unwrap_or(now), now);
            witness.error(&format!("pgbench {script}"), in_parts(error), times, "");
        }
    }
    if told.disconnects > 0 {
        witness.violation(&format!(
            "{} connections of pgbench {script} ended",
            told.disconnects
        ));
    }
}

/// SQLSTATE and message, where there are both.
fn in_parts(error: &str) -> (&str, &str) {
    let is_state = |word: &str| {
        let known = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase();
        word.len() == 5 && word.bytes().all(known)
    };
    let (first, rest) = error.split_once(' ').unwrap_or((error, ""));
    if is_state(first) {
        (first, rest)
    } else {
        ("", error)
    }
}
