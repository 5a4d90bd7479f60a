//! What a node has said, and what follows from its silence.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lsn::{Lsn, SystemIdentifier, TimelineId};

/// A node: its index in configuration order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One answer of one node: a statement's result, so all of it was true at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// When the question was sent: the answer is at most this old, however long it took.
    pub at: Instant,
    /// `pg_control_system().system_identifier`.
    pub system_identifier: SystemIdentifier,
    /// `in_hot_standby`; `None` before PostgreSQL 14.
    pub in_hot_standby: Option<bool>,
    /// `default_transaction_read_only`: pg_auto_failover's mark for "promoted, and not yet to be written to".
    pub default_transaction_read_only: bool,
    /// Where the node stands in the log, by which side of recovery it is on.
    pub wal: Wal,
    /// Which run of the server this is, of a node out of recovery.
    pub incarnation: Option<Incarnation>,
    /// How the node became a primary, where the connection that told has seen it before as a standby.
    pub promotion: Option<Promotion>,
}

/// Tells one run of a primary from every other: as long as it stays the same nothing that the server wrote is lost.
///
/// A postmaster that is started has another start time. One that goes on after a crash of a server process keeps it, and
/// runs recovery, whose end is another position than that of any recovery before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// The timeline that it inserts into.
    pub timeline: TimelineId,
    /// `pg_postmaster_start_time()` in microseconds since 1970, by the server's clock.
    pub started: i64,
    /// `pg_last_wal_replay_lsn()`: where its last recovery ended; `None` if it was started without one.
    pub recovered: Option<Lsn>,
}

/// Where a standby has left the history that it shares with its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The timeline that it followed until then.
    pub from: TimelineId,
    /// The timeline that it began.
    pub to: TimelineId,
    /// The end of the last record that it has replayed: nothing behind that is its predecessor's.
    pub at: Lsn,
}

/// Where a node stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wal {
    /// `pg_is_in_recovery()` is false: it inserts into a timeline of its own.
    Inserting {
        /// From `pg_walfile_name(pg_current_wal_insert_lsn())`: right at once after a promotion, where
        /// `pg_control_checkpoint()` lags.
        timeline: TimelineId,
        /// The end of the last record inserted (see [`Lsn::end_of_record`]).
        insert: Lsn,
        /// `pg_current_wal_flush_lsn()`: what a standby could have by now.
        flush: Lsn,
    },
    /// `pg_is_in_recovery()` is true: it replays.
    Replaying {
        /// `pg_last_wal_receive_lsn()`; `None` when nothing was streamed since the start.
        receive: Option<Lsn>,
        /// `pg_last_wal_replay_lsn()`.
        replay: Option<Lsn>,
        /// The walreceiver.
        receiver: Receiver,
        /// The greater of the control file's two timelines. It proves that the timeline exists; it lags behind
        /// what is being replayed until the next restartpoint.
        control_timeline: Option<TimelineId>,
    },
}

/// A standby's walreceiver, from `pg_stat_wal_receiver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// No walreceiver: nothing new arrives by streaming.
    Gone,
    /// There is one. A frozen upstream leaves it here until `wal_receiver_timeout`.
    Present {
        /// `received_tli`; `None` when the probe's role may not see it (it lacks `pg_monitor`).
        timeline: Option<TimelineId>,
        /// The time since the upstream's last message; `None` before the first.
        silence: Option<Duration>,
    },
}

impl Observation {
    /// The timeline this answer proves the node to be on *now*: it inserts into it, or a live walreceiver
    /// streams it. The control file is too far behind to say so.
    pub fn timeline(&self) -> Option<TimelineId> {
        match self.wal {
            Wal::Inserting { timeline, .. } => Some(timeline),
            Wal::Replaying {
                receiver: Receiver::Present { timeline, .. },
                ..
            } => timeline,
            Wal::Replaying {
                receiver: Receiver::Gone,
                ..
            } => None,
        }
    }

    /// The highest timeline that this answer proves to exist somewhere in the system's history.
    pub fn highest_timeline(&self) -> Option<TimelineId> {
        match self.wal {
            Wal::Inserting { timeline, .. } => Some(timeline),
            Wal::Replaying { control_timeline, .. } => self.timeline().max(control_timeline),
        }
    }

    /// How far the node has replayed, if it is in recovery.
    pub fn replay(&self) -> Option<Lsn> {
        match self.wal {
            Wal::Inserting { .. } => None,
            Wal::Replaying { replay, .. } => replay,
        }
    }
}

/// Why a round brought no observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When the round began.
    pub at: Instant,
    /// What kind, which decides what follows.
    pub kind: FailureKind,
    /// The error's own words, for the log and the operator.
    pub message: Arc<str>,
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Nobody listens: the port refuses, the socket file is missing, the address is unreachable.
    Refused,
    /// SQLSTATE 57P03 cannot_connect_now: it starts, stops or recovers.
    NotAccepting,
    /// The connection ended in the middle, with or without SQLSTATE 57P01 or 57P02.
    Lost,
    /// No answer in time. A frozen server looks like this and like nothing else.
    Timeout,
    /// The server refuses this probe: password, role, database, too many connections.
    Rejected,
    /// The answer is not one that the question can have.
    Malformed,
}

impl FailureKind {
    /// Whether one failure is proof: the node itself, or its machine, said that it serves nobody. The others may
    /// be slowness or a trouble of the probe's own, and count only when repeated.
    pub fn is_definite(self) -> bool {
        matches!(self, Self::Refused | Self::NotAccepting)
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::NotAccepting => "not accepting connections",
            Self::Lost => "connection lost",
            Self::Timeout => "no answer in time",
            Self::Rejected => "probe rejected",
            Self::Malformed => "malformed answer",
        })
    }
}

/// What is known of one node's answers: the last good one and the failures since.
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    last: Option<Observation>,
    failures: u32,
    failure: Option<Failure>,
    ejected: bool,
}

/// What a node's evidence amounts to at one moment.
#[derive(Clone, Copy, Debug)]
pub enum Sight<'a> {
    /// Nothing was heard of it yet, good or bad.
    Unheard,
    /// It failed, definitely or often enough.
    Unreachable(FailureKind),
    /// It answered once, too long ago for the answer to be evidence.
    Stale,
    /// Its latest answer is evidence.
    Fresh(&'a Observation),
}

impl<'a> Sight<'a> {
    /// The observation, if it is evidence.
    pub fn fresh(self) -> Option<&'a Observation> {
        match self {
            Self::Fresh(observation) => Some(observation),
            Self::Unheard | Self::Unreachable(_) | Self::Stale => None,
        }
    }
}

impl NodeState {
    /// Takes in the result of a round. `failures_to_eject` failures in a row make the node unreachable, or one
    /// that is definite. An answer makes it reachable at once.
    pub fn absorb(&mut self, outcome: Result<Observation, Failure>, failures_to_eject: u32) {
        match outcome {
            Ok(observation) => {
                self.last = Some(observation);
                self.failures = 0;
                self.failure = None;
                self.ejected = false;
            }
            Err(failure) => {
                self.failures = self.failures.saturating_add(1);
                self.ejected |= failure.kind.is_definite() || self.failures >= failures_to_eject;
                self.failure = Some(failure);
            }
        }
    }

    /// What the evidence amounts to at `now`.
    pub fn sight(&self, now: Instant, stale_after: Duration) -> Sight<'_> {
        match (&self.last, &self.failure) {
            (_, Some(failure)) if self.ejected => Sight::Unreachable(failure.kind),
            (Some(last), _) if now.saturating_duration_since(last.at) <= stale_after => Sight::Fresh(last),
            (Some(_), Some(failure)) => Sight::Unreachable(failure.kind),
            (Some(_), None) => Sight::Stale,
            (None, _) => Sight::Unheard,
        }
    }

    /// The last answer, however old.
    pub fn last(&self) -> Option<&Observation> {
        self.last.as_ref()
    }

    /// The failure after the last answer, if any.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The number of failures since the last answer.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
pub(crate) mod tests;
