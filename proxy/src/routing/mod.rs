//! Where a request goes: one immutable table, one pointer, one load a turn.
//!
//! The table is derived whole from the cluster's view and published by swapping a pointer; whoever waits for
//! another one is woken. Nothing here is patched in place.

mod reason;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use halyard_health::{ClusterView, NodeId, Role, SampleNumber, Topology};
use tokio::sync::watch;

use crate::classify::Access;
use crate::config::{ListenerRole, ReadFallback, Reads};
use crate::pool::Node;
use crate::worker::Local;

pub use reason::{Decision, RouteReason};

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
    /// The standbys that take reads, with their weights; only those of the best rank that has any, and those that are
    /// near first.
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
            .map(|(node, policy)| (policy.near, (node.id, policy.weight)));
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

    /// Where a request of this access goes that came in through a port of this role. Of the standbys only those are
    /// asked that have replayed the sample of the number `fence`.
    #[inline]
    pub fn route(
        &self,
        access: Access,
        port: ListenerRole,
        fence: SampleNumber,
        nodes: &[Arc<Node>],
        local: &mut Local,
    ) -> Route {
        let reads = match port {
            ListenerRole::Auto => access == Access::Read,
            ListenerRole::Primary => false,
            ListenerRole::Replica => true,
        };
        if !reads {
            return self.primary.map_or(Route::Hold(Wanted::Primary), Route::Primary);
        }
        let (near, far) = self.readers.split_at(self.near);
        let standby = least_outstanding(near, fence, nodes, local)
            .or_else(|| least_outstanding(far, fence, nodes, local));
        if let Some(standby) = standby {
            return Route::Standby(standby);
        }
        self.without_standby(port)
    }

    /// Where a read goes for which no standby will do.
    pub fn without_standby(&self, port: ListenerRole) -> Route {
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

/// The one of two random readers with the fewer requests outstanding for its weight (Mitzenmacher, "The power
/// of two choices in randomized load balancing", 2001).
///
/// Where one of them is behind the fence the other has it, and where both are, any that is not.
#[inline]
fn least_outstanding(
    readers: &[(NodeId, u16)],
    fence: SampleNumber,
    nodes: &[Arc<Node>],
    local: &mut Local,
) -> Option<NodeId> {
    let covers = |(id, _): (NodeId, u16)| nodes[usize::from(id.0)].coverage.covered() >= fence;
    let count = u32::try_from(readers.len()).unwrap_or(u32::MAX);
    let (first, second) = match count {
        0 => return None,
        1 => return covers(readers[0]).then(|| readers[0].0),
        _ => {
            let random = local.random();
            let first = random % count;
            let second = (first + 1 + (random >> 16) % (count - 1)) % count;
            (readers[first as usize], readers[second as usize])
        }
    };
    match (covers(first), covers(second)) {
        (true, true) => {}
        (true, false) => return Some(first.0),
        (false, true) => return Some(second.0),
        (false, false) => {
            let reader = readers.iter().copied().find(|&reader| covers(reader));
            return reader.map(|(id, _)| id);
        }
    }
    let load = |(id, weight): (NodeId, u16)| {
        let outstanding = nodes[usize::from(id.0)].outstanding.load(Ordering::Relaxed);
        // One is added so that weights tell between idle nodes as well.
        (u64::from(outstanding) + 1) * 1000 / u64::from(weight)
    };
    Some(if load(second) < load(first) {
        second.0
    } else {
        first.0
    })
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
