//! What sessions do over time: the totals of SHOW STATS, and averages over the last whole minute.

use std::time::Duration;

use parking_lot::Mutex;

use crate::session::{Registry, Totals, TotalsByDatabase};

/// Over how long averages are taken: PgBouncer's `stats_period`.
pub const PERIOD: Duration = Duration::from_secs(60);

/// The totals at the ends of the last two periods.
#[derive(Debug, Default)]
pub struct Statistics(Mutex<Periods>);

#[derive(Debug, Default)]
struct Periods {
    before: TotalsByDatabase,
    last: TotalsByDatabase,
}

impl Statistics {
    /// To be called each second, with the number of it: takes the totals at the end of each period.
    pub fn look(&self, second: u32, registry: &Registry) {
        if u64::from(second).is_multiple_of(PERIOD.as_secs()) {
            let now = registry.totals();
            let mut periods = self.0.lock();
            periods.before = std::mem::replace(&mut periods.last, now);
        }
    }

    /// What a database did within the last whole period.
    pub fn last_period(&self, database: &str) -> Totals {
        let periods = self.0.lock();
        periods.last.of(database).since(&periods.before.of(database))
    }
}
