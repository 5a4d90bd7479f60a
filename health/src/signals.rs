//! What the data plane saw, told to the prober at once.
//!
//! A signal is a reason to look, never a fact: the view changes only by what a probe then finds. So a signal
//! costs the sender next to nothing, a thousand of them cost one probe, and a false one changes nothing.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::node::NodeId;
use crate::view::ClusterView;

/// After a node was looked at because it was in doubt, it is not in doubt for so long.
pub const DOUBT_SPACING: Duration = Duration::from_millis(250);

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

    /// As [`Signals::raise`], and leaves the node in doubt until it was looked at over a new connection and whoever
    /// routes has taken in what was seen ([`Signals::settle`]).
    ///
    /// Not so within [`DOUBT_SPACING`] of the last look: whoever may end connections could hold everybody by ending them
    /// again and again.
    pub fn doubt(&self, node: NodeId, evidence: Evidence) {
        if let Some(bell) = self.nodes.get(usize::from(node.0)) {
            if !bell.was_settled_within(DOUBT_SPACING) {
                bell.doubts.fetch_add(1, Ordering::SeqCst);
            }
            self.raise(node, evidence);
        }
    }

    /// Whether a node is in doubt. Two loads of one cache line that hardly anybody writes.
    #[inline]
    pub fn is_in_doubt(&self, node: NodeId) -> bool {
        self.nodes
            .get(usize::from(node.0))
            .is_some_and(|bell| bell.doubts.load(Ordering::Relaxed) > bell.settled.load(Ordering::Relaxed))
    }

    /// Says that this view is what everybody goes by now. True if a node is in doubt no more.
    pub fn settle(&self, view: &ClusterView) -> bool {
        let mut settled = false;
        for (bell, node) in self.nodes.iter().zip(&view.nodes) {
            settled |= bell.settle(node.looked);
        }
        settled
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
    /// How often the node was doubted.
    doubts: AtomicU64,
    /// The last doubt that a view in force has answered.
    settled: AtomicU64,
    /// When that was.
    settled_at: Mutex<Option<Instant>>,
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

    /// True if this is news.
    fn settle(&self, looked: u64) -> bool {
        let news = self.settled.fetch_max(looked, Ordering::SeqCst) < looked;
        if news {
            *self.settled_at.lock().expect("nobody panics with it") = Some(Instant::now());
        }
        news
    }

    fn was_settled_within(&self, time: Duration) -> bool {
        let settled_at = *self.settled_at.lock().expect("nobody panics with it");
        settled_at.is_some_and(|at| at.elapsed() < time)
    }

    /// The number of the last doubt, unless a view in force has answered it.
    pub(crate) fn unanswered_doubts(&self) -> Option<u64> {
        let doubts = self.doubts.load(Ordering::SeqCst);
        (doubts > self.settled.load(Ordering::SeqCst)).then_some(doubts)
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

    #[test]
    fn a_doubt_lasts_until_a_view_that_was_looked_at_behind_it_is_in_force() {
        let bells: Arc<[Bell]> = (0..2).map(|_| Bell::default()).collect();
        let signals = Signals::new(Arc::clone(&bells), Arc::default());
        assert!(!signals.is_in_doubt(NodeId(0)));
        signals.doubt(NodeId(0), Evidence::AdminShutdown);
        signals.doubt(NodeId(0), Evidence::AdminShutdown);
        assert!(signals.is_in_doubt(NodeId(0)) && !signals.is_in_doubt(NodeId(1)));
        let looked = bells[0].unanswered_doubts();
        assert_eq!((looked, bells[1].unanswered_doubts()), (Some(2), None));

        assert!(bells[0].settle(1), "behind the first");
        assert!(signals.is_in_doubt(NodeId(0)));
        assert!(bells[0].settle(2));
        assert!(!signals.is_in_doubt(NodeId(0)));
        assert!(!bells[0].settle(2), "that was known");

        // Somebody ends one connection after another.
        signals.doubt(NodeId(0), Evidence::AdminShutdown);
        assert!(!signals.is_in_doubt(NodeId(0)));
        assert_eq!(bells[0].take().collect::<Vec<_>>(), [Evidence::AdminShutdown]);
    }

    #[tokio::test]
    async fn a_ring_before_the_wait_is_heard_once() {
        let bell = Bell::default();
        bell.ring(None);
        bell.ring(None);
        bell.rung().await;
        assert!(
            tokio::time::timeout(Duration::from_millis(1), bell.rung())
                .await
                .is_err()
        );
    }
}
