//! What the data plane saw, told to the prober at once.
//!
//! A signal is a reason to look, never a fact: the view changes only by what a probe then finds. So a signal
//! costs the sender next to nothing, a thousand of them cost one probe, and a false one changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

use crate::node::NodeId;

/// What made somebody doubt a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Evidence {
    /// The node's port refused a connection.
    ConnectionRefused,
    /// A connection ended without a message.
    ConnectionReset,
    /// SQLSTATE 57P01 admin_shutdown; also what `pg_terminate_backend` sends on a healthy node.
    AdminShutdown,
    /// SQLSTATE 57P02 crash_shutdown.
    CrashShutdown,
    /// SQLSTATE 57P03 cannot_connect_now.
    CannotConnectNow,
    /// SQLSTATE 25006 read_only_sql_transaction from the node that was taken for the primary.
    ReadOnlyPrimary,
    /// A connection or an answer did not come in time.
    Timeout,
}

impl Evidence {
    /// Every kind, in the order of the bits that remember them.
    pub const ALL: [Self; 7] = [
        Self::ConnectionRefused,
        Self::ConnectionReset,
        Self::AdminShutdown,
        Self::CrashShutdown,
        Self::CannotConnectNow,
        Self::ReadOnlyPrimary,
        Self::Timeout,
    ];

    fn bit(self) -> u32 {
        1 << (self as u8)
    }
}

/// The data plane's end: raises evidence against nodes.
#[derive(Clone, Debug)]
pub struct Signals {
    nodes: Arc<[Bell]>,
    engine: Arc<Notify>,
}

impl Signals {
    /// Says that something happened at `node`. Never blocks; signals of the same kind become one until the
    /// probe starts. The node is probed at once (not more often than every
    /// [`SIGNAL_SPACING`](crate::probe::SIGNAL_SPACING)) and the engine is asked again. An unknown node is ignored.
    pub fn raise(&self, node: NodeId, evidence: Evidence) {
        if let Some(bell) = self.nodes.get(usize::from(node.0)) {
            bell.ring(Some(evidence));
            self.engine.notify_one();
        }
    }

    pub(crate) fn new(nodes: Arc<[Bell]>, engine: Arc<Notify>) -> Self {
        Self { nodes, engine }
    }

    /// Has every node probed, and the engine asked, at once.
    pub(crate) fn look_everywhere(&self) {
        for bell in self.nodes.iter() {
            bell.ring(None);
        }
        self.engine.notify_one();
    }
}

/// One node's bell: rung by signals, answered by its prober.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    /// A bit for each kind of evidence raised since the last probe started.
    pending: AtomicU32,
    notify: Notify,
}

impl Bell {
    pub(crate) fn ring(&self, evidence: Option<Evidence>) {
        if let Some(evidence) = evidence {
            self.pending.fetch_or(evidence.bit(), Ordering::Relaxed);
        }
        self.notify.notify_one();
    }

    /// Waits for the next ring; one that came while nobody waited is not lost. Cancel safe.
    pub(crate) async fn rung(&self) {
        self.notify.notified().await;
    }

    /// The evidence since the last call.
    pub(crate) fn take(&self) -> impl Iterator<Item = Evidence> + use<> {
        let pending = self.pending.swap(0, Ordering::Relaxed);
        Evidence::ALL
            .into_iter()
            .filter(move |evidence| pending & evidence.bit() != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_coalesce_until_they_are_taken() {
        let bells: Arc<[Bell]> = (0..2).map(|_| Bell::default()).collect();
        let signals = Signals::new(Arc::clone(&bells), Arc::default());
        for _ in 0..1000 {
            signals.raise(NodeId(1), Evidence::ConnectionReset);
            signals.raise(NodeId(1), Evidence::Timeout);
        }
        signals.raise(NodeId(7), Evidence::Timeout);
        assert_eq!(bells[0].take().count(), 0);
        assert_eq!(
            bells[1].take().collect::<Vec<_>>(),
            [Evidence::ConnectionReset, Evidence::Timeout]
        );
        assert_eq!(bells[1].take().count(), 0);
    }

    #[tokio::test]
    async fn a_ring_before_the_wait_is_heard_once() {
        let bell = Bell::default();
        bell.ring(None);
        bell.ring(None);
        bell.rung().await;
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(1), bell.rung())
                .await
                .is_err()
        );
    }
}
