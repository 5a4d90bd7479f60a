//! The ledger of the drills, and what the table says of it: acknowledged is there, failed is not, and nothing is twice.

use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::ledger::{Ledger, Written};
use crate::promises::Doubts;
use crate::stage::Stage;
use crate::support::Address;
use crate::witness::Witness;

/// Two in each protocol.
const CLIENTS: u64 = 6;
const LOOK: Duration = Duration::from_millis(200);

/// The clients at work.
pub(crate) struct Writes {
    written: JoinHandle<Vec<Written>>,
}

impl Writes {
    pub(crate) fn start(address: &Address, witness: &'static Witness) -> Self {
        let ledger = Ledger::start(address, 1, CLIENTS);
        let progress: Vec<_> = (0..CLIENTS)
            .map(|number| witness.client(format!("ledger {number}")))
            .collect();
        let written = thread::spawn(move || {
            let mut before = ledger.progress();
            while !witness.is_over() {
                thread::sleep(LOOK);
                let now = ledger.progress();
                let moved = before.iter().zip(&now).map(|(before, now)| now > before);
                moved
                    .zip(&progress)
                    .filter(|(moved, _)| *moved)
                    .for_each(|(_, progress)| progress.made());
                before = now;
            }
            ledger.stop()
        });
        Self { written }
    }

    /// Waits for the clients, and compares with what the primary has. Returns a line for the summary.
    pub(crate) fn audit(self, stage: &Stage) -> String {
        let witness = stage.witness;
        let written = witness.joined("the ledger", [self.written]).concat();
        for failure in written.iter().flat_map(|written| &written.failures) {
            let what = (failure.sqlstate.as_str(), failure.message.as_str());
            witness.error("ledger", what, (failure.asked, failure.told), "");
        }
        let acknowledged: usize = written.iter().map(|written| written.acknowledged.len()).sum();
        for disconnects in written.iter().map(|written| written.disconnects) {
            if disconnects > 0 {
                witness.violation(&format!("{disconnects} connections of the ledger ended"));
            }
        }
        let Some(mut direct) = stage.primary_to_compare() else {
            return format!("{acknowledged} writes of the ledger acknowledged; not compared");
        };
        let rows = direct.run("SELECT n, count(*) FROM drill_ledger GROUP BY n").rows;
        let there: BTreeMap<u64, u64> = rows
            .iter()
            .map(|row| {
                let number = |column: usize| row[column].as_ref().unwrap().parse::<u64>().unwrap();
                (number(0), number(1))
            })
            .collect();
        let twice: Vec<_> = there.iter().filter(|(_, count)| **count > 1).collect();
        if !twice.is_empty() {
            witness.violation(&format!("written twice: {twice:?}"));
        }
        let mut doubts = Doubts::default();
        for written in &written {
            written
                .unknown
                .iter()
                .for_each(|n| doubts.note(there.contains_key(n)));
            let lost: Vec<_> = written
                .acknowledged
                .iter()
                .filter(|(n, _)| !there.contains_key(n))
                .map(|(n, at)| format!("{n} of {:.3} s", witness.seconds(*at)))
                .collect();
            if !lost.is_empty() {
                witness.violation(&format!(
                    "acknowledged by the ledger's clients and lost: {lost:?}"
                ));
            }
            let known = |n: &u64| {
                written.unknown.contains(n)
                    || written.acknowledged.binary_search_by_key(n, |(n, _)| *n).is_ok()
            };
            let undead: Vec<_> = written
                .sent
                .iter()
                .map(|(n, _)| n)
                .filter(|n| !known(n) && there.contains_key(n))
                .collect();
            if !undead.is_empty() {
                witness.violation(&format!("told to have failed, and there: {undead:?}"));
            }
        }
        witness.explains("ledger", doubts.count());
        format!("{acknowledged} writes of the ledger acknowledged, {doubts}")
    }
}
