//! Where a request goes: one immutable table, one pointer, one load a turn.
//!
//! The table is derived whole from the cluster's view and published by swapping a pointer; whoever waits for
//! another one is woken. Nothing here is patched in place.

mod balance;
mod reason;

use std::sync::Arc;

use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use halyard_health::{ClusterView, NodeId, Role, SampleNumber, Topology};
use tokio::sync::watch;

use crate::classify::Access;
use crate::config::{ListenerRole, ReadFallback, Reads};
use crate::pool::Node;
use crate::worker::Local;

pub use balance::{JUDGED_EVERY, Load, TIMED_ONE_OF, judge};
pub use reason::{Decision, RouteReason};

/// How many times as much a standby costs as another that ought to have a session's reads.
const MUCH_BUSIER: u64 = 3;

/// How long a standby that has just come is spared: its caches are cold. Its share grows by tenths.
const SLOW_START: Duration = Duration::from_secs(10);

/// What a table is derived from besides the view: what the operator said.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What was said of each node, in the configuration's order.
    pub nodes: Vec<NodePolicy>,
    /// Who answers a read when no standby qualifies.
    pub read_fallback: ReadFallback,
}

/// What the operator said of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodePolicy {
    /// Its share of reads.
    pub weight: u16,
    /// When it serves them.
    pub reads: Reads,
    /// Whether it stands where Halyard does, or nobody has said where either stands.
    pub near: bool,
}

/// Where everything goes. Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingTable {
    /// Changes with the writable primary and with the set of fenced nodes.
    pub epoch: u64,
    /// The one node that takes writes.
    pub primary: Option<NodeId>,
    /// Why there is none, for those who wait.
    pub no_primary: String,
    /// The standbys that take reads, with ten times their weights, less at first; only those of the best rank that has any,
    /// and those that are near first.
    pub readers: Vec<(NodeId, u16)>,
    /// How many of the readers are near: the others are asked only where none of these can be.
    pub near: usize,
    /// What may still be done on connections to each node, in the configuration's order.
    pub standing: Vec<Standing>,
    read_fallback: ReadFallback,
}

/// What may still be done on connections to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the primary.
    Primary,
    /// It answers and is not the primary.
    Standby,
    /// It was the primary and another is: nothing is sent to it any more, and what is in flight is given up.
    Fenced,
    /// It does not answer. Reads in flight are given up; a primary that nobody has replaced is waited for.
    Unreachable,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the primary.
    Primary(NodeId),
    /// To this standby.
    Standby(NodeId),
    /// Nowhere until there is another table.
    Hold(Wanted),
    /// Nowhere, by policy.
    Refuse(Wanted),
}

/// What a held request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A writable primary.
    Primary,
    /// A standby that qualifies.
    Standby,
    /// The end of an operator's pause.
    Resume,
}

impl RoutingTable {
    /// The table that follows from what is seen and what the operator said. Pure.
    pub fn derive(view: &ClusterView, policy: &Policy) -> Self {
        let primary = view.topology.primary().map(|(node, _)| node);
        let no_primary = match &view.topology {
            Topology::OnePrimary { .. } => String::new(),
            other => other.to_string(),
        };
        let standing = view
            .nodes
            .iter()
            .map(|node| match node.role {
                _ if Some(node.id) == primary => Standing::Primary,
                _ if node.fenced => Standing::Fenced,
                Role::Fenced | Role::Foreign => Standing::Fenced,
                Role::Unreachable | Role::Unknown => Standing::Unreachable,
                Role::Primary | Role::PromotingOrReadOnly | Role::Standby => Standing::Standby,
            })
            .collect();
        let qualified: Vec<_> = view
            .nodes
            .iter()
            .zip(&policy.nodes)
            .filter(|(node, policy)| {
                node.serves_reads
                    && !node.fenced
                    && Some(node.id) != primary
                    && policy.weight > 0
                    && policy.reads != Reads::Never
            })
            .collect();
        let best = qualified.iter().map(|(_, policy)| policy.reads).min();
        let best = qualified
            .iter()
            .filter(|(_, policy)| Some(policy.reads) == best)
            .map(|(node, policy)| {
                (
                    policy.near,
                    (node.id, policy.weight * tenths(node.serves_since, view.at)),
                )
            });
        let (near, far): (Vec<_>, Vec<_>) = best.partition(|(near, _)| *near);
        let count = near.len();
        let readers = near.into_iter().chain(far).map(|(_, reader)| reader).collect();
        Self {
            near: count,
            epoch: view.epoch,
            primary,
            no_primary,
            readers,
            standing,
            read_fallback: policy.read_fallback,
        }
    }

    /// A table without nodes.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        Self {
            epoch: 0,
            primary: None,
            no_primary: String::new(),
            readers: Vec::new(),
            near: 0,
            standing: Vec::new(),
            read_fallback: ReadFallback::Primary,
        }
    }

    /// Where a request of this access goes that came in through a port of this role, if its reads have to see `sight`.
    #[inline]
    pub fn route(
        &self,
        access: Access,
        port: ListenerRole,
        sight: &Sight,
        nodes: &[Arc<Node>],
        local: &mut Local,
    ) -> Choice {
        let reads = match port {
            ListenerRole::Auto => access == Access::Read,
            ListenerRole::Primary => false,
            ListenerRole::Replica => true,
        };
        if !reads {
            let route = self.primary.map_or(Route::Hold(Wanted::Primary), Route::Primary);
            return Choice::balanced(route);
        }
        let (near, far) = self.readers.split_at(self.near);
        if let Some(choice) = cheapest_of_two(near, sight, nodes, local) {
            return choice;
        }
        if let Some(choice) = cheapest_of_two(far, sight, nodes, local) {
            let against_balance = choice.against_balance || !near.is_empty();
            return Choice {
                against_balance,
                ..choice
            };
        }
        Choice {
            route: self.without_standby(port),
            against_balance: !self.readers.is_empty(),
        }
    }

    /// Where a read goes for which no standby will do.
    fn without_standby(&self, port: ListenerRole) -> Route {
        match (self.read_fallback, port) {
            // Those that there are will have replayed it in a moment.
            (ReadFallback::Error, _) if !self.readers.is_empty() => Route::Hold(Wanted::Standby),
            (ReadFallback::Error, _) => Route::Refuse(Wanted::Standby),
            (ReadFallback::Wait, _) => Route::Hold(Wanted::Standby),
            (ReadFallback::Primary, ListenerRole::Replica) => Route::Hold(Wanted::Standby),
            (ReadFallback::Primary, _) => self.primary.map_or(Route::Hold(Wanted::Primary), Route::Primary),
        }
    }
}

/// The one of two random readers that costs less (Mitzenmacher, "The power of two choices in randomized load
/// balancing", 2001).
///
/// Where one of them does not show enough the other has it, and where both do not, any that does.
#[inline]
fn cheapest_of_two(
    readers: &[(NodeId, u16)],
    sight: &Sight,
    nodes: &[Arc<Node>],
    local: &mut Local,
) -> Option<Choice> {
    let shows = |(id, _): (NodeId, u16)| sight.is_met_by(id, nodes);
    let count = u32::try_from(readers.len()).unwrap_or(u32::MAX);
    let (first, second) = match count {
        0 => return None,
        1 => return shows(readers[0]).then(|| Choice::balanced(Route::Standby(readers[0].0))),
        _ => {
            let random = local.random();
            let first = random % count;
            let second = (first + 1 + (random >> 16) % (count - 1)) % count;
            (readers[first as usize], readers[second as usize])
        }
    };
    let cost = |(id, weight): (NodeId, u16)| nodes[usize::from(id.0)].load.cost(weight);
    let chosen = match (shows(first), shows(second)) {
        (true, true) if cost(second) < cost(first) => second,
        (true, true) => first,
        (true, false) => return Some(Choice::forced(first.0, cost(first), cost(second))),
        (false, true) => return Some(Choice::forced(second.0, cost(second), cost(first))),
        (false, false) => {
            let reader = readers.iter().copied().find(|&reader| shows(reader))?;
            let cheapest = cost(first).min(cost(second));
            return Some(Choice::forced(reader.0, cost(reader), cheapest));
        }
    };
    Some(Choice::balanced(Route::Standby(chosen.0)))
}

/// The share of its weight that a standby gets so long after it has come.
fn tenths(serves_since: Option<Instant>, now: Instant) -> u16 {
    let age = serves_since.map_or(SLOW_START, |since| now.saturating_duration_since(since));
    let tenths = age.as_millis() * 10 / SLOW_START.as_millis();
    u16::try_from(tenths).unwrap_or(10).clamp(1, 10)
}

/// Where a request goes, and whether balance would have had it elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where it goes.
    pub route: Route,
    /// It goes to the primary, or to a standby that is much busier than another one, for the sake of what it has to see.
    pub against_balance: bool,
}

impl Choice {
    fn balanced(route: Route) -> Self {
        Self {
            route,
            against_balance: false,
        }
    }

    /// This standby though there is another, which does not show enough.
    fn forced(standby: NodeId, cost: u64, cost_of_other: u64) -> Self {
        Self {
            route: Route::Standby(standby),
            against_balance: cost > cost_of_other * MUCH_BUSIER,
        }
    }
}

/// What a read has to see, told by samples of the primary's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// What every standby must have covered.
    pub fence: SampleNumber,
    /// The standby on which the session has read last: for this one that is enough.
    pub last: Option<NodeId>,
    /// What any other must have covered; `None` where nobody knows what would be enough.
    pub elsewhere: Option<SampleNumber>,
    /// The node whose connection the session has just lost. Its others are about to go the same way, and nobody may have
    /// told so yet.
    pub avoided: Option<NodeId>,
}

impl Sight {
    /// That of a session which has read on no standby.
    pub fn of(fence: SampleNumber) -> Self {
        Self {
            fence,
            last: None,
            elsewhere: Some(fence),
            avoided: None,
        }
    }

    /// What a node must have covered to be enough.
    #[inline]
    pub fn wanted_of(&self, node: NodeId) -> Option<SampleNumber> {
        if self.last == Some(node) {
            Some(self.fence)
        } else {
            self.elsewhere
        }
    }

    /// Whether a node is known to show enough.
    #[inline]
    pub fn is_met_by(&self, node: NodeId, nodes: &[Arc<Node>]) -> bool {
        self.avoided != Some(node)
            && self
                .wanted_of(node)
                .is_some_and(|wanted| nodes[usize::from(node.0)].coverage.covered() >= wanted)
    }

    /// The same for who is to leave the standby read on last: it is not to be chosen again, although it shows enough.
    #[must_use]
    pub fn leaving_last(self) -> Self {
        Self {
            last: None,
            avoided: self.last.or(self.avoided),
            ..self
        }
    }

    /// The same where this node will not do after all: the standby read on last if that is another, else none.
    #[must_use]
    pub fn without(mut self, node: NodeId) -> Self {
        if self.last == Some(node) {
            self.last = None;
        } else {
            self.elsewhere = None;
        }
        self
    }
}

/// The table in force, and the means to wait for the next.
#[derive(Debug)]
pub struct Routing {
    table: ArcSwap<RoutingTable>,
    published: watch::Sender<u64>,
}

impl Routing {
    /// Begins with a table.
    pub fn new(table: RoutingTable) -> Self {
        Self {
            table: ArcSwap::from_pointee(table),
            published: watch::Sender::new(0),
        }
    }

    /// The table in force.
    #[inline]
    pub fn load(&self) -> arc_swap::Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    /// Swaps the table in force and wakes those who wait for another. False if it says the same as before.
    pub fn publish(&self, table: RoutingTable) -> bool {
        if **self.table.load() == table {
            return false;
        }
        self.table.store(Arc::new(table));
        self.published.send_modify(|count| *count += 1);
        true
    }

    /// Wakes those who wait for another table though it is the same: something else that they look at has changed.
    pub fn wake(&self) {
        self.published.send_modify(|count| *count += 1);
    }

    /// Tells of tables published from now on.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }
}

#[cfg(test)]
mod tests;
