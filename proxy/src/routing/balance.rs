//! How reads are shared out among standbys: by what is outstanding on each, and by how fast each answers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Of so many reads one is timed: reading the clock twice for each would cost more than it tells.
pub const TIMED_ONE_OF: u32 = 8;

/// Between two comparisons of the standbys' times.
pub const JUDGED_EVERY: Duration = Duration::from_millis(250);

/// A standby that answers within so many times the fastest one's time counts as equally fast: below that the differences
/// are the statements', and the fastest would draw all that comes one at a time.
const EQUALLY_FAST: u32 = 2;

/// Least time that counts as a difference; µs. Below it are switches between processes.
const GRAIN: u32 = 500;

/// Most times that a standby counts as slower.
const SLOWNESS_MAX: u32 = 64;

/// What is known of the load of a node, and of its pace.
///
/// Reads that are sent to a node which has become slow stay outstanding, so it gets fewer at once; within
/// [`JUDGED_EVERY`] its times say the same. With no read on it nobody knows: its time is forgotten by and by, and it gets
/// its share back.
#[derive(Debug)]
pub struct Load {
    /// Backends in use on it, over all pools.
    pub outstanding: AtomicU32,
    /// Sessions in line for one.
    waiting: AtomicU32,
    /// The time to the first byte of an answer; µs, an average that follows a rise faster than a fall. 0 before the
    /// first.
    time: AtomicU32,
    /// Whether there was an answer since the last comparison.
    fresh: AtomicU32,
    /// How many times slower than the fastest it counts as, at least 1.
    slowness: AtomicU32,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            outstanding: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            time: AtomicU32::new(0),
            fresh: AtomicU32::new(0),
            slowness: AtomicU32::new(1),
        }
    }
}

impl Load {
    /// Takes in the time from a request to the first byte of its answer. Two threads at once may lose one of two; it is
    /// an average.
    pub fn observe(&self, time: Duration) {
        let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1);
        let before = self.time.load(Ordering::Relaxed);
        let now = match before {
            0 => time,
            _ if time > before => before + (time - before) / 2,
            _ => before - (before - time) / 8,
        };
        self.time.store(now.max(1), Ordering::Relaxed);
        self.fresh.store(1, Ordering::Relaxed);
    }

    /// How long it has taken of late until an answer began; zero before the first.
    pub fn time(&self) -> Duration {
        Duration::from_micros(self.time.load(Ordering::Relaxed).into())
    }

    /// What choosing it would cost, for its weight: the less the better.
    #[inline]
    pub fn cost(&self, weight: u16) -> u64 {
        let outstanding = u64::from(self.outstanding.load(Ordering::Relaxed))
            + u64::from(self.waiting.load(Ordering::Relaxed));
        // One is added so that weights and paces tell between idle nodes as well.
        (outstanding + 1) * u64::from(self.slowness.load(Ordering::Relaxed)) * 10_000 / u64::from(weight)
    }

    /// Counts a session that gets in line, for as long as it is.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// How many times slower than the fastest it counts as.
    pub fn slowness(&self) -> u32 {
        self.slowness.load(Ordering::Relaxed)
    }
}

/// A session in line, as long as it is there.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Load);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Compares the paces of those that are asked for reads; to be called every [`JUDGED_EVERY`].
pub fn judge<'a>(readers: impl Iterator<Item = &'a Load> + Clone) {
    // Who has not been timed yet counts as fast, so that it is tried.
    let times = readers.clone().map(|load| load.time.load(Ordering::Relaxed));
    let Some(fastest) = times.min() else { return };
    for load in readers {
        let mut time = load.time.load(Ordering::Relaxed);
        if load.fresh.swap(0, Ordering::Relaxed) == 0 && time > fastest {
            time -= (time - fastest).div_ceil(16);
            load.time.store(time, Ordering::Relaxed);
        }
        let slowness = (time / EQUALLY_FAST / fastest.max(GRAIN)).clamp(1, SLOWNESS_MAX);
        load.slowness.store(slowness, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(times: &[u64]) -> Load {
        let load = Load::default();
        for &time in times {
            load.observe(Duration::from_micros(time));
        }
        load
    }

    #[test]
    fn who_becomes_slow_costs_more_and_recovers_by_and_by() {
        let (fast, slow) = (seen(&[300]), seen(&[300, 20_000, 20_000, 20_000]));
        let readers = [&fast, &slow];
        judge(readers.into_iter());
        assert_eq!(fast.slowness(), 1);
        assert!(slow.slowness() > 10, "{}", slow.slowness());
        assert!(slow.cost(100) > fast.cost(100));
        let mut judgements = 0;
        while slow.slowness() > 1 {
            let before = slow.slowness();
            judge(readers.into_iter());
            assert!(slow.slowness() + 2 >= before, "gradually");
            judgements += 1;
            assert!(judgements < 200, "it gets its share back");
        }
        assert!(judgements > 10);
    }

    #[test]
    fn who_was_never_asked_is_tried() {
        let (known, unknown) = (seen(&[20_000]), Load::default());
        judge([&known, &unknown].into_iter());
        assert!(known.cost(100) > unknown.cost(100));
    }

    #[test]
    fn small_differences_are_none() {
        let (one, other) = (seen(&[100]), seen(&[480]));
        judge([&one, &other].into_iter());
        assert_eq!((one.slowness(), other.slowness()), (1, 1));
    }

    #[test]
    fn outstanding_work_counts_by_weight() {
        let (one, other) = (Load::default(), Load::default());
        one.outstanding.store(3, Ordering::Relaxed);
        assert!(one.cost(100) > other.cost(100));
        assert!(one.cost(1000) < other.cost(100));
    }
}
