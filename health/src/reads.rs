//! Whether a standby may serve reads: pure, with hysteresis.

use std::fmt;
use std::time::{Duration, Instant};

use crate::config::MaxLag;
use crate::lag::{Lag, readmission};
use crate::lsn::{Lsn, TimelineId};
use crate::node::{Observation, Receiver, Wal};

#[cfg(test)]
mod tests;

/// How long a standby without a walreceiver may stand still while the primary lives, and how long it may be on the
/// old timeline after a new primary was proved. Standbys come back in 80 to 250 ms with
/// `wal_retrieve_retry_interval = 200ms`, and in a little more than 5 s with PostgreSQL's default; what they
/// miss meanwhile is their lag, which has its own bounds.
pub const RECEIVER_GRACE: Duration = Duration::from_secs(6);

/// How long a standby may go on *streaming* the old timeline after a new primary was proved. The change takes a
/// cascade some hundred milliseconds; a standby that stays follows the old primary.
pub const TIMELINE_GRACE: Duration = Duration::from_secs(2);

/// Why a standby serves no reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It was not compared with a primary yet.
    Starting,
    /// No primary was ever seen, so its lag is unknown.
    LagUnknown,
    /// Its lag is beyond `max_replica_lag`.
    Behind(Lag),
    /// It has no walreceiver and stands still while the primary lives.
    Frozen,
    /// It streams a timeline that has been overtaken.
    OldTimeline(TimelineId),
    /// It qualifies, and has not done so often enough yet.
    Recovering,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("not compared with a primary yet"),
            Self::LagUnknown => f.write_str("its lag is unknown"),
            Self::Behind(Lag {
                bytes: Some(bytes),
                time: Some(time),
            }) => {
                write!(f, "{bytes} bytes and {:.1} s behind", time.as_secs_f64())
            }
            Self::Behind(_) => f.write_str("too far behind"),
            Self::Frozen => f.write_str("no walreceiver, and it stands still"),
            Self::OldTimeline(timeline) => write!(f, "it follows timeline {timeline}, which was overtaken"),
            Self::Recovering => f.write_str("on its way back"),
        }
    }
}

/// The primary side of the comparison.
#[derive(Clone, Copy, Debug)]
pub enum Leader {
    /// The first round is not complete.
    Undecided,
    /// There is a primary.
    Present {
        /// Its timeline.
        timeline: TimelineId,
        /// Since when it is the primary.
        since: Instant,
    },
    /// There is none just now. Nothing new is written then, so a standby is judged by its lag at the moment at
    /// which the last primary was last seen, and its missing walreceiver is no fault of its own.
    Absent,
}

/// How a standby's positions have moved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    reached: Option<Lsn>,
    receiver_gone_since: Option<Instant>,
}

impl Progress {
    /// Takes in an answer: the grace of a standby without a walreceiver begins when it loses it, and anew each
    /// time it moves all the same (by WAL from an archive).
    pub fn absorb(&mut self, observation: &Observation) {
        let Wal::Replaying {
            receive,
            replay,
            receiver,
            ..
        } = observation.wal
        else {
            *self = Self::default();
            return;
        };
        let reached = receive.max(replay);
        let moved = reached > self.reached;
        self.reached = reached;
        match receiver {
            Receiver::Present { .. } => self.receiver_gone_since = None,
            Receiver::Gone if moved || self.receiver_gone_since.is_none() => {
                self.receiver_gone_since = Some(observation.at);
            }
            Receiver::Gone => {}
        }
    }

    /// How long it may take to change to a new timeline.
    fn grace(&self) -> Duration {
        if self.receiver_gone_since.is_some() {
            RECEIVER_GRACE
        } else {
            TIMELINE_GRACE
        }
    }

    /// A dead primary is no fault of its standbys: their grace begins with the next primary.
    fn standing_still(&self, now: Instant, primary_since: Instant) -> Duration {
        self.receiver_gone_since.map_or(Duration::ZERO, |gone| {
            now.saturating_duration_since(gone.max(primary_since))
        })
    }
}

/// What one look at a standby says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fitness {
    /// Good enough to come back.
    Fit,
    /// Good enough to stay, not to come back.
    Tolerated,
    /// Not good enough.
    Unfit(Unfit),
}

/// Judges a fresh standby of the cluster's own system by its lag behind the primary, or behind the last one, and
/// by the timeline it was last seen on: one that has replayed more of the old timeline than its successor keeps
/// cannot follow, and by its position it would look current.
pub fn fitness(
    timeline: Option<TimelineId>,
    progress: &Progress,
    leader: Leader,
    lag: Lag,
    max: MaxLag,
    now: Instant,
) -> Fitness {
    match leader {
        Leader::Undecided => return Fitness::Unfit(Unfit::Starting),
        Leader::Absent => {}
        Leader::Present {
            timeline: leading,
            since,
        } => match timeline {
            Some(own) if own < leading && now.saturating_duration_since(since) > progress.grace() => {
                return Fitness::Unfit(Unfit::OldTimeline(own));
            }
            _ if progress.standing_still(now, since) > RECEIVER_GRACE => {
                return Fitness::Unfit(Unfit::Frozen);
            }
            _ => {}
        },
    }
    if lag.within(readmission(max)) {
        Fitness::Fit
    } else if lag.within(max) {
        Fitness::Tolerated
    } else if lag == Lag::default() {
        Fitness::Unfit(Unfit::LagUnknown)
    } else {
        Fitness::Unfit(Unfit::Behind(lag))
    }
}

/// The hysteresis: out at once, in after enough good answers. A new standby comes in with its first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// Not judged yet.
    #[default]
    New,
    /// It serves.
    Open,
    /// It does not, and has been fit in so many answers since.
    Closed {
        /// Good answers in a row.
        streak: u32,
        /// Why it was closed or is kept so.
        why: Unfit,
    },
}

impl Gate {
    /// The gate after a judgement. Only a new answer counts towards coming back; a second look at the same one
    /// does not.
    #[must_use]
    pub fn after(self, fitness: Fitness, new_answer: bool, successes_to_readmit: u32) -> Self {
        match (self, fitness) {
            (Self::New, Fitness::Unfit(Unfit::Starting)) => Self::New,
            (_, Fitness::Unfit(why)) => Self::Closed { streak: 0, why },
            (Self::New | Self::Open, Fitness::Fit | Fitness::Tolerated) => Self::Open,
            (Self::Closed { why, .. }, Fitness::Tolerated) => Self::Closed { streak: 0, why },
            (Self::Closed { streak, .. }, Fitness::Fit) => {
                let streak = streak.saturating_add(u32::from(new_answer));
                if streak >= successes_to_readmit {
                    Self::Open
                } else {
                    Self::Closed {
                        streak,
                        why: Unfit::Recovering,
                    }
                }
            }
        }
    }

    /// The gate of a node that is no standby now: it comes back by the same number of answers.
    pub fn away() -> Self {
        Self::Closed {
            streak: 0,
            why: Unfit::Recovering,
        }
    }

    /// Why it does not serve; `None` when it does.
    pub fn unfit(self) -> Option<Unfit> {
        match self {
            Self::New => Some(Unfit::Starting),
            Self::Open => None,
            Self::Closed { why, .. } => Some(why),
        }
    }
}
