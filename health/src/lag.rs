//! How far a standby is behind, from positions first.
//!
//! `now() - pg_last_xact_replay_timestamp()` grows without end on an idle primary, and the usual guard reports 0
//! for a standby that is cut off. Here the primary's own positions are the clock: a standby that has replayed
//! the primary's position is 0 behind however long nothing was written, and one that has not is as old as the
//! moment at which the primary passed the standby's position.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::MaxLag;
use crate::lsn::Lsn;

#[cfg(test)]
mod tests;

/// The most points of a history. When it is full, every second point of its older half goes: the resolution
/// becomes coarser with age, and the memory stays the same.
pub const HISTORY_POINTS: usize = 1024;

/// A standby's lag; `None` is unknown, which is not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Bytes of log that the primary has flushed and the standby has not replayed.
    pub bytes: Option<u64>,
    /// The age of the data: the time since the primary passed the standby's position. A lower bound where that
    /// was before the history began.
    pub time: Option<Duration>,
}

impl Lag {
    /// Whether both bounds hold. An unknown lag is within no bound but the absent one.
    pub fn within(self, max: MaxLag) -> bool {
        within(self.bytes, max.bytes) && within(self.time, max.time)
    }
}

fn within<T: PartialOrd>(lag: Option<T>, max: Option<T>) -> bool {
    match (lag, max) {
        (_, None) => true,
        (Some(lag), Some(max)) => lag <= max,
        (None, Some(_)) => false,
    }
}

/// Half of the bounds: what a standby has to reach before it comes back, so that one at the bound does not flap.
pub fn readmission(max: MaxLag) -> MaxLag {
    MaxLag {
        bytes: max.bytes.map(|bytes| bytes / 2),
        time: max.time.map(|time| time / 2),
    }
}

/// Where the primary stood, and when: one primary on one timeline, oldest first. Times and positions increase;
/// a stretch in which it stood still is two points at its ends.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: VecDeque<(Instant, Lsn)>,
}

impl History {
    /// Records that the primary stood at `position` at `at`. An older moment or a position behind the last is
    /// ignored: a crash may take unflushed records back, never flushed ones.
    pub fn record(&mut self, at: Instant, position: Lsn) {
        if self
            .points
            .back()
            .is_some_and(|&(last_at, last)| at <= last_at || position < last)
        {
            return;
        }
        let standing = self
            .points
            .iter()
            .rev()
            .take(2)
            .filter(|&&(_, point)| point == position)
            .count()
            == 2;
        if standing {
            self.points.pop_back();
        } else if self.points.len() == HISTORY_POINTS {
            self.thin();
        }
        self.points.push_back((at, position));
    }

    /// Forgets all of it: the primary or its timeline is another one.
    pub fn clear(&mut self) {
        self.points.clear();
    }

    /// The lag that a standby at `replay` had when the primary was last seen.
    pub fn lag_at_end(&self, replay: Lsn) -> Lag {
        self.points
            .back()
            .map_or(Lag::default(), |&(at, _)| self.lag(at, replay))
    }

    /// The lag of a standby that said at `at` to have replayed `replay`.
    ///
    /// The primary's position is taken at that same moment, by interpolation, so that the distance between two
    /// nodes' probes is not taken for lag.
    pub fn lag(&self, at: Instant, replay: Lsn) -> Lag {
        let Some(position) = self.position_at(at) else {
            return Lag::default();
        };
        if replay >= position {
            return Lag {
                bytes: Some(0),
                time: Some(Duration::ZERO),
            };
        }
        let passed = self.passed_at(replay);
        Lag {
            bytes: Some(position.bytes_since(replay)),
            time: passed.map(|passed| at.saturating_duration_since(passed)),
        }
    }

    /// The position at a moment; the newest for a later one, the oldest for an earlier one.
    fn position_at(&self, at: Instant) -> Option<Lsn> {
        let after = self.points.partition_point(|&(point, _)| point <= at);
        match (
            after.checked_sub(1).map(|before| self.points[before]),
            self.points.get(after),
        ) {
            (Some((t0, p0)), Some(&(t1, p1))) => {
                let part = fraction(at.saturating_duration_since(t0), t1.saturating_duration_since(t0));
                Some(Lsn(p0.0 + scale(p1.bytes_since(p0), part)))
            }
            (Some((_, position)), None) | (None, Some(&(_, position))) => Some(position),
            (None, None) => None,
        }
    }

    /// The last moment at which the primary was not yet past `position`; the first moment known for a position
    /// from before the history.
    fn passed_at(&self, position: Lsn) -> Option<Instant> {
        let after = self.points.partition_point(|&(_, point)| point <= position);
        let Some(before) = after.checked_sub(1) else {
            return self.points.front().map(|&(at, _)| at);
        };
        let (t0, p0) = self.points[before];
        let Some(&(t1, p1)) = self.points.get(after) else {
            return Some(t0);
        };
        let bytes = Duration::from_nanos(position.bytes_since(p0));
        let part = fraction(bytes, Duration::from_nanos(p1.bytes_since(p0)));
        Some(t0 + t1.saturating_duration_since(t0).mul_f64(part))
    }

    fn thin(&mut self) {
        let older = self.points.len() / 2;
        let mut index = 0;
        self.points.retain(|_| {
            index += 1;
            index > older || index % 2 == 1
        });
    }
}

/// `part / whole` within 0 and 1.
fn fraction(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() {
        1.0
    } else {
        (part.as_secs_f64() / whole.as_secs_f64()).clamp(0.0, 1.0)
    }
}

/// `part` of `bytes`, never more than all of them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "0 <= part <= 1"
)]
fn scale(bytes: u64, part: f64) -> u64 {
    ((bytes as f64 * part) as u64).min(bytes)
}
