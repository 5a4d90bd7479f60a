//! Authorities: engines that promote, and can be asked whom they mean.
//!
//! An adapter asks its engine and publishes an [`AuthorityView`]; it decides nothing. [`crate::topology`] weighs
//! the engine's word against what the nodes themselves show.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::node::NodeId;
use crate::topology::Word;

pub(crate) mod patroni;
pub(crate) mod pg_auto_failover;

/// The engine's word older than this is silence. Adapters ask every second and say when they fail; this is for
/// the case that they cannot even do that.
pub const AUTHORITY_STALE_AFTER: Duration = Duration::from_secs(5);

/// What the engine says about the cluster.
#[derive(Clone, Debug)]
pub enum AuthorityView {
    /// There is no engine to ask: `observed`.
    Absent,
    /// It was not heard yet.
    Pending,
    /// It answers.
    Answers(Arc<Answer>),
    /// It does not answer.
    Silent {
        /// Since when.
        since: Instant,
        /// The error's own words.
        error: Arc<str>,
    },
}

/// One answer of an engine.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When it was asked.
    pub at: Instant,
    /// The configured node whose goal is to be the primary. `None` also when several are, or one that is not
    /// configured here.
    pub primary: Option<NodeId>,
    /// The configured node that is to take writes soon, or does: where to look for the next primary. It proves nothing.
    pub candidate: Option<NodeId>,
    /// The engine's own list.
    pub nodes: Vec<EngineNode>,
}

/// A node as the engine knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineNode {
    /// The configured node it is, if any.
    pub node: Option<NodeId>,
    /// The engine's name for it.
    pub name: String,
    /// Where the engine reaches it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The state that the node last reported, in the engine's words.
    pub reported: String,
    /// The state that the engine wants it in, in the engine's words.
    pub goal: String,
    /// Whether that goal is one of a primary that takes writes.
    pub leads: bool,
}

impl AuthorityView {
    /// What counts of it at `now`.
    pub fn word(&self, now: Instant) -> Word {
        match self {
            Self::Absent => Word::Absent,
            Self::Pending => Word::Pending,
            Self::Answers(answer) if now.saturating_duration_since(answer.at) <= AUTHORITY_STALE_AFTER => {
                Word::Names(answer.primary)
            }
            Self::Answers(_) | Self::Silent { .. } => Word::Silent,
        }
    }

    /// Whether both answer, and differ in whom they name.
    pub(crate) fn names_another_than(&self, earlier: &Self) -> bool {
        matches!((self, earlier), (Self::Answers(now), Self::Answers(then))
            if now.primary != then.primary || now.candidate != then.candidate)
    }

    /// The node that it is about to open for writes, or has opened.
    pub(crate) fn candidate(&self) -> Option<NodeId> {
        match self {
            Self::Answers(answer) => answer.candidate,
            Self::Absent | Self::Pending | Self::Silent { .. } => None,
        }
    }

    /// Whether something but the passing of time has changed.
    pub(crate) fn differs_from(&self, earlier: &Self) -> bool {
        match (self, earlier) {
            (Self::Absent, Self::Absent) | (Self::Pending, Self::Pending) => false,
            (Self::Answers(now), Self::Answers(then)) => {
                now.primary != then.primary || now.nodes != then.nodes
            }
            (Self::Silent { since: now, .. }, Self::Silent { since: then, .. }) => now != then,
            _ => true,
        }
    }
}
