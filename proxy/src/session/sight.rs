//! What a session's reads have to see: what it has written, and nothing less than what it has seen.
//!
//! Its own writes, and whatever it has read on the primary, are in the first sample of the primary's position that begins
//! afterwards: the session's *fence*. What it has read on a standby is in whatever that standby has replayed; so it may go
//! on reading there, and elsewhere only where the standby's answers since have shown that the other has as much.
//!
//! A session that reads faster than the nodes are asked for their positions would therefore stay where it is for ever. When
//! it has done so for a while though it ought to go elsewhere, it waits once until it may: as long as it waits it has the
//! standby that it is to leave asked what it has replayed, and the primary for a sample that has as much.

use std::sync::Arc;
use std::time::Duration;

use halyard_health::{Coverage, NodeId, SampleNumber, Seen};
use tokio::time::{Instant, sleep_until};

use super::inbox::Doing;
use super::obtain::{Aim, Meanwhile, Waited, after};
use super::turn::Session;
use crate::classify::Access;
use crate::config::{ListenerRole, ReadConsistency, ReadFallback};
use crate::pool::Checkout;
use crate::relay::Link;
use crate::routing::{Sight, TIMED_ONE_OF};

/// Reads in a row that stay where they ought not to, before the session waits to go elsewhere: at first.
const STAYS_AT_FIRST: u32 = 64;
/// Waits in a row that led nowhere count up to this: each doubles the reads that stay before the next wait, to 65,536 at most.
const FRUITLESS_MAX: u32 = 10;
/// After so long since a wait that led nowhere the next may come, however few reads there were: those of a slow standby are few.
const FRUITLESS_LIMIT: Duration = Duration::from_secs(10);
/// How long a wait to go elsewhere may take. Positions are asked for every 5 to 25 ms, so a standby that keeps up is found in
/// less, once the one that is left has answered: one that is slow has so many times its own time for that, within bounds.
const MOVE_LIMIT: Duration = Duration::from_millis(100);
const MOVE_LIMIT_TIMES: u32 = 4;
const MOVE_LIMIT_MAX: Duration = Duration::from_secs(1);
/// Between two looks during a wait, if nobody tells that a standby has more.
const MOVE_LOOK: Duration = Duration::from_millis(5);

/// What a session has written and seen.
#[derive(Debug, Default)]
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
    /// Waits in a row to go elsewhere, or for standbys to catch up, that led nowhere.
    fruitless: u32,
    /// When the last of them ended.
    fruitless_at: Option<Instant>,
}

impl Past {
    #[inline]
    fn ought_to_move(&self) -> bool {
        let long_ago = |at: Instant| at.elapsed() >= FRUITLESS_LIMIT;
        self.stays >= STAYS_AT_FIRST
            && (self.stays >= STAYS_AT_FIRST << self.fruitless
                || self.stays.is_multiple_of(TIMED_ONE_OF) && self.fruitless_at.is_some_and(long_ago))
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
    pub(super) fn note_stay(&mut self, access: Access, ought_to_move: bool) {
        match (access, ought_to_move) {
            (Access::Write, _) => {}
            (Access::Read, true) => self.past.stays = self.past.stays.saturating_add(1),
            (Access::Read, false) => (self.past.stays, self.past.fruitless) = (0, 0),
        }
    }

    /// The time at which a read begins that is one of those which tell how fast the standbys are.
    #[inline]
    pub(super) fn is_to_be_timed(&mut self, as_primary: bool) -> Option<std::time::Instant> {
        self.past.turns = self.past.turns.wrapping_add(1);
        (!as_primary && self.past.turns.is_multiple_of(TIMED_ONE_OF)).then(std::time::Instant::now)
    }

    /// Whether it has stayed for long enough that its next read waits until it may go elsewhere.
    ///
    /// The clock is read only for who stays after a wait in vain, and with one read of [`TIMED_ONE_OF`].
    #[inline]
    pub(super) fn ought_to_move(&self) -> bool {
        self.past.ought_to_move()
    }

    /// Whether a read that the primary would get, only because no standby is known to be far enough, is to wait for one first:
    /// the primary has enough of the kind. Who has waited in vain lets ever more reads pass before it waits again.
    pub(super) fn ought_to_wait(&self) -> bool {
        let routing = &self.app.config.routing;
        let passing = if self.past.fruitless == 0 {
            0
        } else {
            1 << self.past.fruitless
        };
        self.app.consistency.reads_behind() >= routing.reads_behind_max
            && self.past.stays >= passing
            && routing.read_fallback == ReadFallback::Primary
            && !routing.catch_up_wait.is_zero()
    }

    /// Waits for a standby to have the session's next read, if that ought to wait or to move; how it ends if the wait is broken
    /// off. Who may move now is told what to see elsewhere: to be led there, and not back by chance.
    pub(super) async fn wait_for_sight(&mut self, aim: Aim) -> Result<Option<Sight>, Waited> {
        if aim.access == Access::Write {
            return Ok(None);
        }
        if self.ought_to_move() {
            let last = self.past.last;
            let limit = last.map_or(MOVE_LIMIT, |(node, _)| self.move_limit(node));
            let met = |session: &Self| {
                session.ask_where_to(last);
                session.met_beside(last.map(|(node, _)| node))
            };
            let sight = self.wait_for_reader(limit, met).await?;
            return Ok(sight.map(Sight::leaving_last));
        }
        let waits = aim.role == ListenerRole::Auto && self.ought_to_wait();
        if waits && !self.app.routing.load().readers.is_empty() {
            let limit = self.app.config.routing.catch_up_wait;
            self.wait_for_reader(limit, |session| session.met_beside(None))
                .await?;
        }
        Ok(None)
    }

    /// Waits until some standby shows what the session has to see, and tells what that is.
    async fn wait_for_reader(
        &mut self,
        limit: Duration,
        met: impl Fn(&Self) -> Option<Sight>,
    ) -> Result<Option<Sight>, Waited> {
        self.past.stays = 0;
        let sight = self.wait_until(limit, met).await?;
        if sight.is_some() {
            (self.past.fruitless, self.past.fruitless_at) = (0, None);
        } else {
            self.past.fruitless = (self.past.fruitless + 1).min(FRUITLESS_MAX);
            self.past.fruitless_at = Some(Instant::now());
        }
        Ok(sight)
    }

    /// Waits until the node of this connection, which was just opened, has shown over again that it has what `sight` wants;
    /// whether it has.
    pub(super) async fn wait_until_vouched_for(
        &mut self,
        backend: &Checkout,
        sight: &Sight,
    ) -> Result<bool, Waited> {
        let limit = self.move_limit(backend.node().id);
        let vouched = |session: &Self| {
            backend.node().coverage.ask_after(backend.born_at);
            session.app.consistency.now(session.consistency());
            session.is_vouched_for(backend, false, sight).then_some(())
        };
        Ok(self.wait_until(limit, vouched).await?.is_some())
    }

    /// Waits until there is such a thing, looking with whatever standbys show and every [`MOVE_LOOK`].
    async fn wait_until<T>(
        &mut self,
        limit: Duration,
        find: impl Fn(&Self) -> Option<T>,
    ) -> Result<Option<T>, Waited> {
        let app = Arc::clone(&self.app);
        let deadline = Instant::now() + limit;
        self.registered.inbox.set_doing(Doing::Waiting);
        loop {
            let mut covering = std::pin::pin!(app.consistency.covering());
            // From here on nothing is missed.
            covering.as_mut().enable();
            let found = find(self);
            let now = Instant::now();
            if found.is_some() || now >= deadline {
                return Ok(found);
            }
            let meanwhile: Option<Meanwhile> = tokio::select! {
                biased;
                meanwhile = self.meanwhile() => Some(meanwhile),
                () = covering => None,
                // What a standby has shown since a read on it is told to nobody.
                () = sleep_until(deadline.min(now + MOVE_LOOK)) => None,
            };
            if let Some(meanwhile) = meanwhile {
                return Err(after(meanwhile));
            }
        }
    }

    /// How long a session waits that is to leave this node, or to go to it.
    fn move_limit(&self, node: NodeId) -> Duration {
        let time = self.app.nodes[usize::from(node.0)].load.time();
        (time * MOVE_LIMIT_TIMES).clamp(MOVE_LIMIT, MOVE_LIMIT_MAX)
    }

    /// Has the nodes tell what somebody wants to know who waits to leave the standby on which it has read last: that one what
    /// it has replayed since, the primary where it stands, and the others whether they have that.
    ///
    /// To be said anew with each look: while the primary writes, a sample of it that has all that the standby has comes
    /// after the standby's answer.
    fn ask_where_to(&self, last: Option<(NodeId, Seen)>) {
        if let Some((node, seen)) = last {
            self.coverage(node).ask_since(seen);
        }
        self.app.consistency.now(self.consistency());
    }

    /// Whether it is there that the session has read last.
    pub(super) fn has_read_on(&self, node: NodeId) -> bool {
        self.past.last.is_some_and(|(last, _)| last == node)
    }

    /// Whether another standby has as much as the session has seen on this one, and half as much to do.
    pub(super) fn is_better_off_elsewhere(&self, node: NodeId) -> bool {
        self.ask_where_to(self.past.last);
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

    /// What the session has to see, if a standby, another one than `last`, shows it.
    fn met_beside(&self, last: Option<NodeId>) -> Option<Sight> {
        let sight = self.sight();
        let table = self.app.routing.load();
        let mut readers = table.readers.iter();
        readers
            .any(|&(reader, _)| Some(reader) != last && sight.is_met_by(reader, &self.app.nodes))
            .then_some(sight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(stays: u32, fruitless: u32, fruitless_at: Option<Instant>) -> Past {
        Past {
            stays,
            fruitless,
            fruitless_at,
            ..Past::default()
        }
    }

    #[test]
    fn a_wait_in_vain_is_repeated_after_ever_more_reads_or_after_some_time() {
        let ought = |stays, fruitless, at| after(stays, fruitless, at).ought_to_move();
        assert!(!ought(63, 0, None));
        assert!(ought(64, 0, None));
        let now = Some(Instant::now());
        assert!(!ought(64, 1, now));
        assert!(!ought(127, 1, now));
        assert!(ought(128, 1, now));
        assert!(ought(65_536, 10, now));
        let earlier = Instant::now().checked_sub(FRUITLESS_LIMIT);
        assert!(!ought(56, 10, earlier), "some reads there are between two waits");
        assert!(ought(64, 10, earlier));
        assert!(!ought(65, 10, earlier), "the clock is not read for each");
        assert!(ought(72, 10, earlier));
    }
}
