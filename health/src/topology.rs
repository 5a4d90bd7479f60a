//! Who is the writable primary: a pure function of what was seen.
//!
//! `pg_is_in_recovery() = false` alone is wrong in three ways, all measured: a promoted node that rejects writes
//! until its engine opens it, a condemned primary that its supervisor restarts after a crash, and one that wakes
//! up after having been frozen. So *writable* is proved by all of: fresh evidence, the expected system
//! identifier, not in recovery, `default_transaction_read_only = off`, a timeline not below the highest ever
//! seen, and the word of the engine where there is one.

use std::fmt;

use crate::lsn::{SystemIdentifier, TimelineId};
use crate::node::{FailureKind, NodeId, Observation, Receiver, Sight, Wal};

#[cfg(test)]
mod tests;

/// Who takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Exactly one node is proved writable.
    OnePrimary {
        /// The primary.
        node: NodeId,
        /// The timeline it inserts into.
        timeline: TimelineId,
    },
    /// No node is proved writable.
    NoPrimary {
        /// The cluster's reason; each node's own is in its [`Standing`].
        reason: NoPrimary,
    },
    /// Several nodes take writes on the same timeline and nobody can say which is right: none gets any.
    Split {
        /// The nodes in configuration order.
        nodes: Vec<NodeId>,
    },
}

impl Topology {
    /// The primary and its timeline, if there is exactly one.
    pub fn primary(&self) -> Option<(NodeId, TimelineId)> {
        match *self {
            Self::OnePrimary { node, timeline } => Some((node, timeline)),
            Self::NoPrimary { .. } | Self::Split { .. } => None,
        }
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnePrimary { timeline, .. } => write!(f, "one primary on timeline {timeline}"),
            Self::NoPrimary { reason } => write!(f, "no primary: {reason}"),
            Self::Split { nodes } => write!(f, "split: {} nodes claim to be the primary", nodes.len()),
        }
    }
}

/// Why there is no primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPrimary {
    /// Not every node, or not the engine, has been heard yet: the true primary may be among the missing.
    Starting,
    /// No node answers.
    AllUnreachable,
    /// Every node that answers is a standby.
    OnlyStandbys,
    /// A node is out of recovery, but is not proved writable.
    NotProved,
}

impl fmt::Display for NoPrimary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "the first round is not complete",
            Self::AllUnreachable => "no node answers",
            Self::OnlyStandbys => "only standbys answer",
            Self::NotProved => "no node is proved writable",
        })
    }
}

/// What one node is, by all evidence together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Proved writable. More than one such node makes the topology a split.
    Writable(TimelineId),
    /// Out of recovery, and not proved writable.
    NotWritable(NotWritable),
    /// In recovery.
    Standby,
    /// Was a primary, and has been overtaken by a higher timeline.
    Overtaken {
        /// The timeline on which it last took writes.
        led: TimelineId,
    },
    /// Belongs to another database system.
    Foreign(SystemIdentifier),
    /// Failed, definitely or often enough.
    Unreachable(FailureKind),
    /// Its last answer is too old.
    Stale,
    /// Not heard yet.
    Unheard,
}

/// Why a node out of recovery gets no writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotWritable {
    /// `default_transaction_read_only` is on: promoted, and not opened yet.
    ReadOnly,
    /// The engine's goal for it is not that of a primary.
    RefusedByAuthority,
    /// The engine was not heard yet, or it fell silent before confirming this node.
    NotConfirmed,
    /// The cluster's system identifier is not known yet.
    Unidentified,
}

impl fmt::Display for NotWritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "default_transaction_read_only is on",
            Self::RefusedByAuthority => "the engine's goal for it is not that of a primary",
            Self::NotConfirmed => "the engine has not confirmed it",
            Self::Unidentified => "the cluster's system identifier is not known yet",
        })
    }
}

/// What the engine says about who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// There is no engine to ask.
    Absent,
    /// It was not heard yet.
    Pending,
    /// It answers: this node's goal is to be the primary, or no node's is.
    Names(Option<NodeId>),
    /// It does not answer.
    Silent,
}

/// What is remembered from one evaluation to the next, for the life of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The cluster's system identifier: configured, or learned once.
    pub system_identifier: Option<SystemIdentifier>,
    /// The highest timeline that any node of the system ever showed.
    pub highest_timeline: Option<TimelineId>,
    /// The engine's last word, for as long as it is silent after it.
    pub heard: Option<Heard>,
    /// For each node, by index: the timeline on which it was last seen out of recovery, until it is seen
    /// streaming the highest one as a standby.
    pub led: Vec<Option<TimelineId>>,
}

/// What the engine said when it last answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The node whose goal was to be the primary.
    pub named: Option<NodeId>,
    /// The highest timeline that was known then.
    pub highest_timeline: Option<TimelineId>,
}

/// The sights of all nodes at one moment. Their order does not matter.
pub type Sights<'a> = [(NodeId, Sight<'a>)];

impl Memory {
    /// A memory for so many nodes.
    pub fn new(nodes: usize, system_identifier: Option<SystemIdentifier>) -> Self {
        Self {
            system_identifier,
            led: vec![None; nodes],
            ..Self::default()
        }
    }

    /// Takes in what the sights and the engine teach: the system identifier, the highest timeline, who led and
    /// who is named. Idempotent, and independent of the order of the sights.
    #[must_use]
    pub fn learn(mut self, sights: &Sights<'_>, word: Word) -> Self {
        if self.system_identifier.is_none() && all_heard(sights) {
            self.system_identifier = common_identifier(sights);
        }
        let own = |observation: &&Observation| Some(observation.system_identifier) == self.system_identifier;
        let seen = sights.iter().filter_map(|(_, sight)| sight.fresh());
        let highest = seen.filter(own).filter_map(Observation::highest_timeline).max();
        self.highest_timeline = self.highest_timeline.max(highest);
        for (node, sight) in sights {
            let (Some(observation), Some(led)) =
                (sight.fresh().filter(own), self.led.get_mut(usize::from(node.0)))
            else {
                continue;
            };
            match observation.wal {
                Wal::Inserting { timeline, .. } => *led = Some(timeline),
                Wal::Replaying {
                    receiver: Receiver::Present { timeline, .. },
                    ..
                } if timeline.is_some() && timeline >= self.highest_timeline => {
                    *led = None;
                }
                Wal::Replaying { .. } => {}
            }
        }
        if let Word::Names(named) = word {
            self.heard = Some(Heard {
                named,
                highest_timeline: self.highest_timeline,
            });
        }
        self
    }

    /// The timeline on which `node` led, if it has been overtaken since: it is fenced.
    pub fn overtaken(&self, node: NodeId) -> Option<TimelineId> {
        let led = self.led.get(usize::from(node.0)).copied().flatten()?;
        (Some(led) < self.highest_timeline).then_some(led)
    }
}

/// Decides. Pure: the same sights, word and memory give the same answer, in whatever order the sights come.
pub fn decide(sights: &Sights<'_>, word: Word, memory: &Memory) -> (Topology, Vec<(NodeId, Standing)>) {
    let alone = sole_candidate(sights, memory);
    let standings: Vec<(NodeId, Standing)> = sights
        .iter()
        .map(|&(node, sight)| (node, standing(node, sight, word, memory, alone)))
        .collect();
    let mut writable: Vec<(NodeId, TimelineId)> = standings
        .iter()
        .filter_map(|&(node, standing)| match standing {
            Standing::Writable(timeline) => Some((node, timeline)),
            _ => None,
        })
        .collect();
    writable.sort_unstable();
    // All of them are on the highest timeline: a lower one was overtaken.
    let topology = match writable[..] {
        // The engine's word stands for the nodes that were not heard; without it they might lead a later timeline.
        [(node, timeline)] if all_heard(sights) || word == Word::Names(Some(node)) => {
            Topology::OnePrimary { node, timeline }
        }
        [] => Topology::NoPrimary {
            reason: reason(&standings, word),
        },
        [_] => Topology::NoPrimary {
            reason: NoPrimary::Starting,
        },
        _ => Topology::Split {
            nodes: writable.iter().map(|&(node, _)| node).collect(),
        },
    };
    (topology, standings)
}

fn standing(node: NodeId, sight: Sight<'_>, word: Word, memory: &Memory, alone: Option<NodeId>) -> Standing {
    let overtaken = memory.overtaken(node).map(|led| Standing::Overtaken { led });
    let observation = match sight {
        Sight::Fresh(observation) => observation,
        Sight::Unreachable(kind) => return overtaken.unwrap_or(Standing::Unreachable(kind)),
        Sight::Stale => return overtaken.unwrap_or(Standing::Stale),
        Sight::Unheard => return Standing::Unheard,
    };
    if memory
        .system_identifier
        .is_some_and(|expected| expected != observation.system_identifier)
    {
        return Standing::Foreign(observation.system_identifier);
    }
    if let Some(overtaken) = overtaken {
        return overtaken;
    }
    let Wal::Inserting { timeline, .. } = observation.wal else {
        return Standing::Standby;
    };
    if memory.system_identifier.is_none() {
        return Standing::NotWritable(NotWritable::Unidentified);
    }
    if observation.default_transaction_read_only {
        return Standing::NotWritable(NotWritable::ReadOnly);
    }
    match permission(node, timeline, word, memory, alone) {
        Ok(()) => Standing::Writable(timeline),
        Err(refusal) => Standing::NotWritable(refusal),
    }
}

/// The engine's part of the proof.
///
/// While a silent engine cannot be asked, the node it last named stays the primary on its unchanged timeline
/// (were there a later one, the node would be overtaken), and a node on a later timeline is one too: somebody has
/// promoted and opened it since. Where the engine was silent from the beginning, a node is taken only on complete
/// evidence: every node answers, and no other is out of recovery.
fn permission(
    node: NodeId,
    timeline: TimelineId,
    word: Word,
    memory: &Memory,
    alone: Option<NodeId>,
) -> Result<(), NotWritable> {
    match (word, memory.heard) {
        (Word::Absent, _) => Ok(()),
        (Word::Names(Some(named)), _) if named == node => Ok(()),
        (Word::Names(_), _) => Err(NotWritable::RefusedByAuthority),
        (Word::Silent, Some(heard)) if heard.named == Some(node) => Ok(()),
        (Word::Silent, Some(heard)) if Some(timeline) > heard.highest_timeline => Ok(()),
        (Word::Silent, None) if alone == Some(node) => Ok(()),
        (Word::Silent | Word::Pending, _) => Err(NotWritable::NotConfirmed),
    }
}

/// The only node out of recovery, if every node is freshly seen.
fn sole_candidate(sights: &Sights<'_>, memory: &Memory) -> Option<NodeId> {
    let mut candidate = None;
    for (node, sight) in sights {
        let observation = sight.fresh()?;
        if Some(observation.system_identifier) == memory.system_identifier
            && matches!(observation.wal, Wal::Inserting { .. })
            && candidate.replace(*node).is_some()
        {
            return None;
        }
    }
    candidate
}

fn all_heard(sights: &Sights<'_>) -> bool {
    !sights.iter().any(|(_, sight)| matches!(sight, Sight::Unheard))
}

/// The system identifier that most nodes show; of equally frequent ones that of the first node in the
/// configuration.
fn common_identifier(sights: &Sights<'_>) -> Option<SystemIdentifier> {
    let mut seen: Vec<(NodeId, SystemIdentifier)> = sights
        .iter()
        .filter_map(|(node, sight)| Some((*node, sight.fresh()?.system_identifier)))
        .collect();
    seen.sort_unstable();
    let count = |wanted: SystemIdentifier| {
        seen.iter()
            .filter(|(_, identifier)| *identifier == wanted)
            .count()
    };
    seen.iter()
        .rev()
        .map(|&(_, identifier)| identifier)
        .max_by_key(|&identifier| count(identifier))
}

fn reason(standings: &[(NodeId, Standing)], word: Word) -> NoPrimary {
    let any = |wanted: fn(Standing) -> bool| standings.iter().any(|&(_, standing)| wanted(standing));
    if any(|standing| matches!(standing, Standing::Unheard)) || word == Word::Pending {
        NoPrimary::Starting
    } else if any(|standing| matches!(standing, Standing::NotWritable(_))) {
        NoPrimary::NotProved
    } else if any(|standing| matches!(standing, Standing::Standby)) {
        NoPrimary::OnlyStandbys
    } else {
        NoPrimary::AllUnreachable
    }
}
