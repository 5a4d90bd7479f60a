//! What sessions have done, for SHOW STATS: each session counts for itself, and what it has counted is added to its
//! database's when it leaves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

use super::inbox::Doing;

/// One thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Tallied {
    /// Backends that the session was given.
    Assignments,
    /// Transactions that ended; a statement outside of a block is one.
    Transactions,
    /// Requests: a Query, a FunctionCall, or a batch up to its Sync.
    Requests,
    /// Bytes of requests passed on.
    Received,
    /// Bytes that came from backends for the client.
    Sent,
    /// Microseconds within transactions.
    TransactionTime,
    /// Microseconds of them in which a backend worked.
    QueryTime,
    /// Microseconds of waiting for a backend.
    WaitTime,
    /// Parse messages of the client.
    ClientParses,
    /// Parse messages that were sent to backends.
    ServerParses,
    /// Bind messages.
    Binds,
}

/// How many things are counted.
const COUNT: usize = Tallied::Binds as usize + 1;

/// The sums of several sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals([u64; COUNT]);

impl Totals {
    /// One of them.
    pub fn of(&self, what: Tallied) -> u64 {
        self.0[what as usize]
    }

    fn add(&mut self, tally: &Tally) {
        for (sum, cell) in self.0.iter_mut().zip(&tally.cells) {
            *sum += cell.load(Ordering::Relaxed);
        }
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = *self;
        for (now, then) in difference.0.iter_mut().zip(earlier.0) {
            *now = now.saturating_sub(then);
        }
        difference
    }
}

/// What one session has counted. Only the session itself writes it, so that adding needs no more than a load and a
/// store.
#[derive(Debug, Default)]
pub struct Tally {
    cells: [AtomicU64; COUNT],
    /// When the session began to do what it does, in microseconds of [`coarse_now`].
    since: AtomicU64,
    /// When its client's last request began to be served, likewise; 0 before the first.
    requested: AtomicU64,
}

impl Tally {
    /// Counts `amount` more.
    #[inline]
    pub fn add(&self, what: Tallied, amount: u64) {
        let cell = &self.cells[what as usize];
        cell.store(cell.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
    }

    /// Takes note that the session did one thing until now and does another.
    #[inline]
    pub(super) fn turn(&self, from: Doing, to: Doing) {
        let now = coarse_now();
        let elapsed = now.saturating_sub(self.since.load(Ordering::Relaxed));
        self.since.store(now, Ordering::Relaxed);
        match from {
            Doing::Active => {
                self.add(Tallied::QueryTime, elapsed);
                self.add(Tallied::TransactionTime, elapsed);
            }
            Doing::IdleInTransaction => self.add(Tallied::TransactionTime, elapsed),
            Doing::Waiting | Doing::Held => self.add(Tallied::WaitTime, elapsed),
            Doing::Idle => {}
        }
        if matches!(from, Doing::Idle | Doing::IdleInTransaction) && to != Doing::Idle {
            self.requested.store(now, Ordering::Relaxed);
        }
    }

    /// When the session began to do what it does, in microseconds of [`coarse_now`]; 0 if it has done nothing yet.
    pub fn since(&self) -> u64 {
        self.since.load(Ordering::Relaxed)
    }

    /// When its client's last request began to be served, likewise.
    pub fn requested(&self) -> u64 {
        self.requested.load(Ordering::Relaxed)
    }
}

/// Microseconds of the system's coarse monotonic clock, which costs a few nanoseconds and is a few milliseconds behind.
/// Sums of differences are right all the same.
#[inline]
pub fn coarse_now() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.cast_unsigned() * 1_000_000 + now.tv_nsec.cast_unsigned() / 1_000
}

/// Databases for which sums are kept; those beyond share one sum. Whoever may log in must not make them without bound.
const DATABASES_MAX: usize = 1_000;
/// Under what name they do.
const OTHERS: &str = "(others)";

/// The sums by database.
#[derive(Clone, Debug, Default)]
pub struct TotalsByDatabase(BTreeMap<String, Totals>);

impl TotalsByDatabase {
    /// Adds what a session has counted.
    pub(super) fn add(&mut self, database: &str, tally: &Tally) {
        if let Some(totals) = self.0.get_mut(database) {
            return totals.add(tally);
        }
        let name = if self.0.len() < DATABASES_MAX {
            database
        } else {
            OTHERS
        };
        self.0.entry(name.to_owned()).or_default().add(tally);
    }

    /// Databases and their sums, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Totals)> {
        self.0.iter().map(|(name, totals)| (name.as_str(), totals))
    }

    /// The sums of one database.
    pub fn of(&self, database: &str) -> Totals {
        self.0.get(database).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sessions_count_is_summed_by_database() {
        let (one, other) = (Tally::default(), Tally::default());
        one.add(Tallied::Requests, 2);
        one.add(Tallied::Requests, 1);
        other.add(Tallied::Requests, 4);
        let mut totals = TotalsByDatabase::default();
        totals.add("a", &one);
        totals.add("a", &other);
        totals.add("b", &other);
        assert_eq!(totals.of("a").of(Tallied::Requests), 7);
        assert_eq!(totals.of("b").of(Tallied::Requests), 4);
        let more = totals.of("a").since(&totals.of("b"));
        assert_eq!(more.of(Tallied::Requests), 3);
        for number in 0..DATABASES_MAX + 5 {
            totals.add(&format!("tried{number}"), &one);
        }
        assert_eq!(totals.iter().count(), DATABASES_MAX + 1);
        assert!(totals.of(OTHERS).of(Tallied::Requests) > 0);
    }

    #[test]
    fn time_is_spent_on_what_was_done() {
        let tally = Tally::default();
        tally.since.store(coarse_now() - 5_000_000, Ordering::Relaxed);
        tally.turn(Doing::IdleInTransaction, Doing::Active);
        let mut totals = Totals::default();
        totals.add(&tally);
        assert!(totals.of(Tallied::TransactionTime) >= 5_000_000);
        assert_eq!(totals.of(Tallied::QueryTime), 0);
        assert!(tally.requested() > 0);
    }
}
