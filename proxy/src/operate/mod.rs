//! What an operator can do to the traffic while it runs: PAUSE and RESUME, DRAIN and UNDRAIN, RECONNECT, SWITCHOVER.
//!
//! ```text
//!  console, switchover ─▶ Operations ─┬─ pauses  ─▶ read by each session before it sends its next transaction
//!                                     ├─ drained ─▶ app/control.rs derives the routing table without those readers
//!                                     └─ pools   ─▶ their connections are replaced as they come free
//! ```
//! Nothing here waits for a client, and no client waits for anything here but for the end of a pause.

mod control;
mod pause;
mod switchover;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use halyard_health::NodeId;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use control::ControlSocket;
pub use pause::{Paused, Pauses, Scope, StillOpen};
pub use switchover::{Switched, switch_over};

use crate::routing::Routing;
use crate::session::Registry;

/// What operators have asked for and not taken back.
pub struct Operations {
    /// Whose transactions are held.
    pub pauses: Arc<Pauses>,
    /// Nodes that get no new reads, in the configuration's order.
    drained: Vec<AtomicBool>,
    /// Rings when `drained` has changed.
    pub(crate) drains_changed: Notify,
    /// The pauses that last until RESUME.
    by_hand: Mutex<Vec<Paused>>,
}

/// RESUME of what is not paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing of that kind is paused")]
pub struct NotPaused;

impl Operations {
    /// Nothing asked for yet.
    pub fn new(nodes: usize, routing: Arc<Routing>, registry: Arc<Registry>) -> Self {
        Self {
            pauses: Pauses::new(routing, registry),
            drained: (0..nodes).map(|_| AtomicBool::new(false)).collect(),
            drains_changed: Notify::new(),
            by_hand: Mutex::default(),
        }
    }

    /// PAUSE: holds new transactions of `scope` and waits until the open ones are over, `limit` at most. What is held
    /// waits for [`Operations::resume`], each statement as long as without a primary (`failover.hold`).
    ///
    /// # Errors
    /// Transactions are open still when the time is over; then nothing is paused.
    pub async fn pause(&self, scope: Scope, limit: Duration) -> Result<(), StillOpen> {
        let paused = self.pauses.pause(scope, limit).await?;
        self.by_hand.lock().push(paused);
        Ok(())
    }

    /// RESUME: ends the pauses that [`Operations::pause`] made; those of this scope, or all of them.
    ///
    /// # Errors
    /// There are none.
    pub fn resume(&self, scope: Option<&Scope>) -> Result<(), NotPaused> {
        let ended: Vec<_> = {
            let mut by_hand = self.by_hand.lock();
            let of_scope = |paused: &mut Paused| scope.is_none_or(|scope| scope == paused.scope());
            by_hand.extract_if(.., of_scope).collect()
        };
        if ended.is_empty() { Err(NotPaused) } else { Ok(()) }
    }

    /// DRAIN and UNDRAIN: gives a node no new reads, or gives it reads again. What runs there goes on. False where it
    /// was so already.
    pub fn set_drained(&self, node: NodeId, drained: bool) -> bool {
        let changed = self.drained[usize::from(node.0)].swap(drained, Ordering::AcqRel) != drained;
        if changed {
            self.drains_changed.notify_one();
        }
        changed
    }

    /// Whether a node gets no new reads.
    pub fn is_drained(&self, node: NodeId) -> bool {
        self.drained[usize::from(node.0)].load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Operations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operations")
            .field("pauses", &self.pauses)
            .field("drained", &self.drained)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
