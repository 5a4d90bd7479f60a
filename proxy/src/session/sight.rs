//! What a session's reads have to see: what it has written, and nothing less than what it has seen.
//!
//! Its own writes, and whatever it has read on the primary, are in the first sample of the primary's position that begins
//! afterwards: the session's *fence*. What it has read on a standby is in whatever that standby has replayed; so it may go
//! on reading there, and elsewhere only where the standby's answers since have shown that the other has as much.
//!
//! A session that reads faster than the nodes are asked for their positions would therefore stay where it is for ever. When
//! it has done so for a while though it ought to go elsewhere, it waits once until it may.

use std::time::Duration;

use halyard_health::{Coverage, NodeId, SampleNumber, Seen};
use tokio::time::{Instant, sleep};

use super::obtain::{Meanwhile, Waited, after};
use super::turn::Session;
use crate::config::{ListenerRole, ReadConsistency};
use crate::pool::Checkout;
use crate::relay::Link;
use crate::routing::{Sight, TIMED_ONE_OF};

/// Reads in a row that stay where they ought not to, before the session waits to go elsewhere: at first.
const STAYS_AT_FIRST: u32 = 64;
/// The same after waits that led nowhere, each of which doubles it: at most.
const STAYS_AT_MOST: u32 = 65_536;
/// How long such a wait may take. Positions are asked for every 25 ms, so a standby that keeps up is found in less.
const MOVE_LIMIT: Duration = Duration::from_millis(100);
/// Between two looks during such a wait.
const MOVE_LOOK: Duration = Duration::from_millis(5);

/// What a session has written and seen.
#[derive(Debug)]
pub(super) struct Past {
    /// What every standby must have covered.
    fence: SampleNumber,
    /// Where it has read last, if that was on a standby.
    last: Option<(NodeId, Seen)>,
    /// The node whose connection it has just lost.
    avoided: Option<NodeId>,
    /// The run of the node that it has a link to.
    run: u64,
    /// Turns, by which some are timed.
    turns: u32,
    /// Reads in a row that stayed where they ought not to.
    stays: u32,
    /// How many of those there may be.
    stays_max: u32,
}

impl Default for Past {
    fn default() -> Self {
        Self {
            fence: SampleNumber(0),
            last: None,
            avoided: None,
            run: 0,
            turns: 0,
            stays: 0,
            stays_max: STAYS_AT_FIRST,
        }
    }
}

impl Session {
    /// What a standby has to show now.
    #[inline]
    pub(super) fn sight(&self) -> Sight {
        let fence = self.app.consistency.required(self.consistency(), self.past.fence);
        let avoided = self.past.avoided;
        let Some((last, seen)) = self.past.last else {
            return Sight {
                avoided,
                ..Sight::of(fence)
            };
        };
        let coverage = self.coverage(last);
        Sight {
            fence,
            last: coverage.continues(seen).then_some(last),
            elsewhere: coverage.bound(seen).map(|bound| bound.max(fence)),
            avoided,
        }
    }

    /// Takes note that the connection to a node was lost: what is sent again goes to another, where there is one.
    pub(super) fn avoid(&mut self, node: NodeId) {
        self.past.avoided = Some(node);
    }

    /// No other node would do, and some time has passed: the one whose connection was lost may be tried again.
    pub(super) fn avoid_nobody(&mut self) {
        self.past.avoided = None;
    }

    fn coverage(&self, node: NodeId) -> &Coverage {
        &self.app.nodes[usize::from(node.0)].coverage
    }

    /// Has the session's reads see at least this.
    pub(super) fn see_at_least(&mut self, fence: SampleNumber) {
        self.past.fence = self.past.fence.max(fence);
    }

    /// Takes note that the session was told of something that others have written: its next read is to see it.
    pub(super) fn see_what_it_is_told(&mut self) {
        let now = self.app.consistency.now(self.consistency());
        self.past.fence = self.past.fence.max(now);
    }

    /// Takes note of the node that the session is about to have a link to.
    #[inline]
    pub(super) fn begin_seeing(&mut self, backend: &Checkout) {
        self.past.run = backend.node().coverage.run();
    }

    /// Takes note of what the session has done over a link that it gives back.
    #[inline]
    pub(super) fn note_turn(&mut self, link: &Link) {
        let mode = self.consistency();
        if link.requests == 0 {
            return;
        }
        let fence = if link.wrote {
            self.app.consistency.note_write(mode)
        } else if link.as_primary && self.role(false) == ListenerRole::Auto {
            self.app.consistency.now(mode)
        } else {
            SampleNumber(0)
        };
        let past = &mut self.past;
        past.avoided = None;
        past.fence = past.fence.max(fence);
        let node = link.backend.node();
        past.last = (!link.as_primary && mode != ReadConsistency::Eventual)
            .then(|| (node.id, node.coverage.seen(past.run)));
    }

    /// Whether what is known of a node's position holds for this connection to it; see [`Coverage::vouches`].
    #[inline]
    pub(super) fn is_vouched_for(&self, backend: &Checkout, as_primary: bool, sight: &Sight) -> bool {
        as_primary
            || match sight.wanted_of(backend.node().id) {
                Some(SampleNumber(0)) => true,
                Some(wanted) => backend.node().coverage.vouches(wanted, backend.born_at),
                None => false,
            }
    }

    /// Takes note of where a read goes that is to go on to a standby, or to another one, where it can.
    #[inline]
    pub(super) fn note_stay(&mut self, ought_to_move: bool) {
        self.past.stays = if ought_to_move { self.past.stays + 1 } else { 0 };
    }

    /// The time at which a read begins that is one of those which tell how fast the standbys are.
    #[inline]
    pub(super) fn is_to_be_timed(&mut self, as_primary: bool) -> Option<std::time::Instant> {
        self.past.turns = self.past.turns.wrapping_add(1);
        (!as_primary && self.past.turns.is_multiple_of(TIMED_ONE_OF)).then(std::time::Instant::now)
    }

    /// Whether it has stayed for long enough that its next read waits until it may go elsewhere.
    #[inline]
    pub(super) fn ought_to_move(&self) -> bool {
        self.past.stays >= self.past.stays_max
    }

    /// Waits until some other standby may have the session's reads. `None` when there is one, or none has come in time.
    pub(super) async fn wait_to_move(&mut self) -> Option<Waited> {
        // Somebody waits: the nodes are asked for their positions.
        self.app.consistency.now(self.consistency());
        let deadline = Instant::now() + MOVE_LIMIT;
        self.past.stays = 0;
        loop {
            if self.may_move(&self.sight()) {
                self.past.stays_max = STAYS_AT_FIRST;
                return None;
            }
            if Instant::now() >= deadline {
                self.past.stays_max = (self.past.stays_max * 2).min(STAYS_AT_MOST);
                return None;
            }
            let meanwhile: Option<Meanwhile> = tokio::select! {
                biased;
                meanwhile = self.meanwhile() => Some(meanwhile),
                () = sleep(MOVE_LOOK) => None,
            };
            if let Some(meanwhile) = meanwhile {
                return Some(after(meanwhile));
            }
        }
    }

    /// Whether it is there that the session has read last.
    pub(super) fn has_read_on(&self, node: NodeId) -> bool {
        self.past.last.is_some_and(|(last, _)| last == node)
    }

    /// Whether another standby has as much as the session has seen on this one, and half as much to do.
    pub(super) fn is_better_off_elsewhere(&self, node: NodeId) -> bool {
        // Somebody waits: the nodes are asked for their positions.
        self.app.consistency.now(self.consistency());
        let sight = self.sight();
        let table = self.app.routing.load();
        let cost = |wanted: NodeId| {
            let (reader, weight) = table.readers.iter().find(|(reader, _)| *reader == wanted)?;
            Some(self.app.nodes[usize::from(reader.0)].load.cost(*weight))
        };
        let here = cost(node).unwrap_or(u64::MAX);
        table.readers.iter().any(|&(reader, _)| {
            reader != node
                && sight.is_met_by(reader, &self.app.nodes)
                && cost(reader).is_some_and(|there| there.saturating_mul(2) < here)
        })
    }

    fn may_move(&self, sight: &Sight) -> bool {
        let table = self.app.routing.load();
        let last = self.past.last.map(|(node, _)| node);
        table
            .readers
            .iter()
            .any(|&(reader, _)| Some(reader) != last && sight.is_met_by(reader, &self.app.nodes))
    }
}
