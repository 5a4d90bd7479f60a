//! What clients were told of their transactions, against what the table has of them.

use std::collections::BTreeSet;
use std::fmt;

use crate::support::Client;
use crate::witness::Witness;

/// Transactions of one client, by number.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    pub(crate) acknowledged: Vec<u64>,
    /// Told 08007, or cut off.
    pub(crate) unknown: Vec<u64>,
    pub(crate) failed: Vec<u64>,
}

/// What became of transactions of which nobody was told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Doubts {
    pub(crate) took_effect: usize,
    pub(crate) had_none: usize,
}

impl Doubts {
    pub(crate) fn note(&mut self, there: bool) {
        match there {
            true => self.took_effect += 1,
            false => self.had_none += 1,
        }
    }

    pub(crate) fn count(self) -> usize {
        self.took_effect + self.had_none
    }
}

impl std::ops::AddAssign for Doubts {
    fn add_assign(&mut self, more: Self) {
        self.took_effect += more.took_effect;
        self.had_none += more.had_none;
    }
}

impl fmt::Display for Doubts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of unknown outcome ({} took effect, {} did not)",
            self.count(),
            self.took_effect,
            self.had_none
        )
    }
}

impl Promises {
    /// Compares with the numbers that a query finds in the table. `whose` is the client, for a violation.
    pub(crate) fn compare(&self, whose: &str, direct: &mut Client, sql: &str, witness: &Witness) -> Doubts {
        let rows = direct.run(sql).rows;
        let mut there = BTreeSet::new();
        for row in &rows {
            let number: u64 = row[0].as_ref().unwrap().parse().unwrap();
            if !there.insert(number) {
                witness.violation(&format!("{number} of {whose} is there twice"));
            }
        }
        let of = |numbers: &[u64], wanted: bool| -> Vec<u64> {
            let numbers = numbers.iter().copied();
            numbers
                .filter(|number| there.contains(number) == wanted)
                .collect()
        };
        let lost = of(&self.acknowledged, false);
        if !lost.is_empty() {
            witness.violation(&format!("acknowledged to {whose} and lost: {lost:?}"));
        }
        let undead = of(&self.failed, true);
        if !undead.is_empty() {
            witness.violation(&format!(
                "{whose} was told of failure, and it is there: {undead:?}"
            ));
        }
        let mut doubts = Doubts::default();
        self.unknown
            .iter()
            .for_each(|number| doubts.note(there.contains(number)));
        doubts
    }
}
