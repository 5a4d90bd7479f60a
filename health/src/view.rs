//! What the data plane sees: one immutable picture of the cluster at a time.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engines::AuthorityView;
use crate::lag::Lag;
use crate::lsn::{Lsn, SystemIdentifier, TimelineId};
use crate::node::{FailureKind, Incarnation, NodeId, Promotion};
use crate::reads::Unfit;
use crate::samples::SampleNumber;
use crate::topology::{NotWritable, Topology};

/// The cluster as the evidence shows it. Published whole; never changed afterwards.
#[derive(Clone, Debug)]
pub struct ClusterView {
    /// Grows by one with every publication.
    pub sequence: u64,
    /// Grows when the writable primary (node and timeline) becomes another one, or none, or when the set of
    /// fenced nodes changes. Between two equal epochs nobody has to be moved.
    pub epoch: u64,
    /// When it was published. At least one view comes every
    /// [`PUBLISH_AT_LEAST_EVERY`](crate::PUBLISH_AT_LEAST_EVERY); an older one comes from a process that was stopped.
    pub at: Instant,
    /// Who takes writes.
    pub topology: Topology,
    /// Every node, by index of its id.
    pub nodes: Vec<NodeView>,
    /// The highest timeline that any node ever showed to this process.
    pub highest_timeline: Option<TimelineId>,
    /// The cluster's system identifier, configured or learned.
    pub system_identifier: Option<SystemIdentifier>,
    /// What the engine says.
    pub authority: AuthorityView,
    /// While there is no primary: the node that is expected to become it. The engine names it, or it is the only one out
    /// of recovery that has not been overtaken. It proves nothing, and is worth being prepared for.
    pub candidate: Option<NodeId>,
    /// The newest sample of the primary's position; see [`samples`](crate::samples).
    pub newest_sample: SampleNumber,
}

impl ClusterView {
    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.get(usize::from(id.0))
    }

    /// The writable primary, if there is exactly one.
    pub fn primary(&self) -> Option<&NodeView> {
        self.node(self.topology.primary()?.0)
    }

    /// Whether something but the passing of time has changed from `earlier`. What standbys cover is told elsewhere, in
    /// [`Coverage`](crate::Coverage).
    pub(crate) fn differs_from(&self, earlier: &Self) -> bool {
        self.epoch != earlier.epoch
            || self.topology != earlier.topology
            || self.candidate != earlier.candidate
            || self.system_identifier != earlier.system_identifier
            || self.highest_timeline != earlier.highest_timeline
            || self.authority.differs_from(&earlier.authority)
            || self
                .nodes
                .iter()
                .zip(&earlier.nodes)
                .any(|(now, then)| now.differs_from(then))
    }
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its index in configuration order.
    pub id: NodeId,
    /// The operator's name for it.
    pub name: Arc<str>,
    /// What it is.
    pub role: Role,
    /// Since when it is that; for slow start.
    pub since: Instant,
    /// When the question behind its last good answer was sent; `None` when it never answered. The rest of this
    /// view is as old as that answer.
    pub answered: Option<Instant>,
    /// The failures since the last good answer.
    pub failures: u32,
    /// The last failure's own words, when there is one.
    pub error: Option<Arc<str>>,
    /// The timeline it inserts into or streams; the last one known when its walreceiver is gone.
    pub timeline: Option<TimelineId>,
    /// A primary's insert position (the end of its last record), a standby's received one.
    pub position: Option<Lsn>,
    /// A standby's replayed position.
    pub replay: Option<Lsn>,
    /// A standby's lag behind the primary that is; unknown while there is none.
    pub lag: Lag,
    /// Whether a standby has a walreceiver.
    pub receiver: ReceiverView,
    /// The newest sample that a standby of the primary's timeline has replayed, 0 if none.
    pub covered: SampleNumber,
    /// Whether it is a standby that may serve reads.
    pub serves_reads: bool,
    /// Since when it may; `None` while it may not.
    pub serves_since: Option<Instant>,
    /// The number of the last doubt (see [`Signals::doubt`](crate::Signals::doubt)) behind which it was looked at.
    pub looked: u64,
    /// Which run of the server answered last as a primary, if one has.
    pub incarnation: Option<Incarnation>,
    /// How it last became a primary, if that was seen.
    pub promotion: Option<Promotion>,
    /// Why it takes no writes, as a node out of recovery, or serves no reads, as any other; `None` when it does.
    pub reason: Option<Reason>,
    /// Whether it was a primary that has been overtaken: every connection to it has to be closed, and none opened.
    pub fenced: bool,
}

impl NodeView {
    fn differs_from(&self, earlier: &Self) -> bool {
        self.role != earlier.role
            || self.since != earlier.since
            || (self.failures == 0) != (earlier.failures == 0)
            || self.looked != earlier.looked
            || self.incarnation != earlier.incarnation
            || self.timeline != earlier.timeline
            || self.position != earlier.position
            || self.replay != earlier.replay
            || self.lag.bytes != earlier.lag.bytes
            || std::mem::discriminant(&self.receiver) != std::mem::discriminant(&earlier.receiver)
            || self.serves_reads != earlier.serves_reads
            || self.fenced != earlier.fenced
            || self.reason != earlier.reason && !matches!(self.reason, Some(Reason::Unfit(Unfit::Behind(_))))
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The one node that is proved writable.
    Primary,
    /// Out of recovery and not proved to be the one that takes writes; [`NodeView::reason`] says why.
    PromotingOrReadOnly,
    /// In recovery.
    Standby,
    /// Was a primary and has been overtaken, until it is seen as a standby of the new timeline.
    Fenced,
    /// Does not answer.
    Unreachable,
    /// Belongs to another database system.
    Foreign,
    /// Not heard yet.
    Unknown,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::PromotingOrReadOnly => "promoting or read-only",
            Self::Standby => "standby",
            Self::Fenced => "fenced",
            Self::Unreachable => "unreachable",
            Self::Foreign => "foreign",
            Self::Unknown => "unknown",
        })
    }
}

/// A standby's walreceiver, as far as anybody but the monitor cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiverView {
    /// The node is no standby, or does not answer.
    NotApplicable,
    /// It has one.
    Present {
        /// The time since the upstream's last message, if the probe's role may see it.
        silence: Option<Duration>,
    },
    /// It has none.
    Gone,
}

/// Why a node does not do what its role suggests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Out of recovery, and not proved writable.
    NotWritable(NotWritable),
    /// One of several on the same timeline.
    Split,
    /// The true primary may not have been heard yet.
    Starting,
    /// A primary of the past, which led this timeline.
    Overtaken(TimelineId),
    /// It has another system identifier.
    Foreign(SystemIdentifier),
    /// It does not answer.
    Unreachable(FailureKind),
    /// Its last answer is too old.
    Stale,
    /// Not heard yet.
    Unheard,
    /// A standby that serves no reads.
    Unfit(Unfit),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWritable(why) => why.fmt(f),
            Self::Split => f.write_str("another node takes writes on the same timeline"),
            Self::Starting => f.write_str("not every node has been heard yet"),
            Self::Overtaken(led) => write!(f, "it led timeline {led}, which was overtaken"),
            Self::Foreign(identifier) => write!(f, "its system identifier is {identifier}"),
            Self::Unreachable(kind) => kind.fmt(f),
            Self::Stale => f.write_str("its last answer is too old"),
            Self::Unheard => f.write_str("not heard yet"),
            Self::Unfit(why) => why.fmt(f),
        }
    }
}
