//! Which of the primary's past positions a standby has replayed: read your own writes by one comparison.
//!
//! Every question to a node draws a [`SampleNumber`] before it is asked, and one to the primary thereby samples its WAL
//! insert position. While somebody waits, questions for the position alone come between the probes: to the primary while
//! no sample has the number that is wanted, to a standby while it is not known to have the newest sample, or while
//! somebody has asked for an answer of its own. A session that has
//! finished a write remembers the first number not yet drawn, its *fence*: the sample of that number or a later one
//! begins after the write, so its position is at or past the end of the write's commit record. A standby that has
//! replayed a sample's position *covers* it, and may serve the session as soon as `covered >= fence`.
//!
//! Numbers are never used twice, not after a failover either: a new primary's samples are simply later ones. So
//! a fence stays comparable, and a standby covers it only by positions of the new primary's timeline.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::lsn::{Lsn, TimelineId};

#[cfg(test)]
mod tests;

/// The most samples kept: at 5 ms apart, the last hundred seconds of a busy primary. They take 16 bytes each.
pub const SAMPLES_KEPT: usize = 20_000;

/// A sample's number. 0 is the number of no sample: it covers nothing, and everything covers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleNumber(pub u64);

impl fmt::Display for SampleNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A sample: where the primary stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its number.
    pub number: SampleNumber,
    /// The primary's timeline.
    pub timeline: TimelineId,
    /// Its insert position, at or past the end of whatever was committed before the number was drawn.
    pub position: Lsn,
}

/// The samples of one primary on one timeline, oldest first; numbers and positions both increase.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    kept: VecDeque<(SampleNumber, Lsn)>,
}

impl Samples {
    /// Records that the primary, asked after `number` was drawn, stood at `position`.
    ///
    /// Of samples at the same position only the newest is kept. A position behind the last one means that the
    /// primary crashed and recovered without the records that it had not yet flushed: the samples beyond it
    /// are dropped, since what they stood for is gone. A number that is not newer than the last is ignored.
    pub fn record(&mut self, number: SampleNumber, position: Lsn) {
        if number <= self.newest() {
            return;
        }
        while self.kept.back().is_some_and(|&(_, last)| last >= position) {
            self.kept.pop_back();
        }
        if self.kept.len() == SAMPLES_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((number, position));
    }

    /// The newest sample that a standby of the same timeline has replayed, 0 if none.
    pub fn covered(&self, replay: Lsn) -> SampleNumber {
        let replayed = self.kept.partition_point(|&(_, position)| position <= replay);
        replayed
            .checked_sub(1)
            .map_or(SampleNumber(0), |newest| self.kept[newest].0)
    }

    /// The oldest sample that has all that a standby of the same timeline has replayed, if there is one yet.
    pub fn containing(&self, replay: Lsn) -> Option<SampleNumber> {
        let before = self.kept.partition_point(|&(_, position)| position < replay);
        self.kept.get(before).map(|&(number, _)| number)
    }

    /// The newest sample, 0 if none.
    pub fn newest(&self) -> SampleNumber {
        self.kept.back().map_or(SampleNumber(0), |&(number, _)| number)
    }

    /// The newest sample, which was taken on this timeline.
    pub(crate) fn latest(&self, timeline: TimelineId) -> Option<Sample> {
        self.kept.back().map(|&(number, position)| Sample {
            number,
            timeline,
            position,
        })
    }

    /// Forgets all of it: the primary or its timeline is another one.
    pub fn clear(&mut self) {
        self.kept.clear();
    }
}

/// A node's last answer, as far as choosing among standbys goes by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    /// The answer's number.
    pub answered: SampleNumber,
    /// The newest sample that the node has replayed; 0 if it has shown none.
    pub covered: SampleNumber,
    /// The oldest sample that has all that the node has replayed; `None` where no sample is known to.
    pub within: Option<SampleNumber>,
}

/// What a standby has replayed, for those who choose among standbys with each statement.
///
/// The numbers belong to each other: `answered` is stored last, so who has read `answered` sees the others of that answer or
/// of a later one.
#[derive(Debug, Default)]
pub struct Coverage {
    begun: Arc<AtomicU64>,
    covered: AtomicU64,
    /// `u64::MAX` for none.
    within: AtomicU64,
    /// Raised when the probe's connection is lost: a server that restarts closes it before it lets anybody in again.
    run: AtomicU64,
    answered: AtomicU64,
    /// The least number of an answer that somebody waits for, or has waited for.
    asked_for: AtomicU64,
    /// Whether nobody reads there, so that nobody waits for it.
    spared: AtomicBool,
}

/// What a session has read on a standby: what any other has to have before the session may read there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The last number drawn when the answer had come.
    at: SampleNumber,
    run: u64,
}

impl Coverage {
    /// That of a node which has not answered yet; `begun` counts the numbers drawn.
    pub(crate) fn new(begun: Arc<AtomicU64>) -> Self {
        Self {
            begun,
            ..Self::default()
        }
    }

    /// The last number drawn. Whatever any node is asked from now on has a later one.
    pub fn drawn(&self) -> SampleNumber {
        SampleNumber(self.begun.load(Ordering::SeqCst))
    }

    /// Says whether the node is to be spared the questions between the probes, because no reads go there as things are.
    pub fn spare(&self, spared: bool) {
        self.spared.store(spared, Ordering::Relaxed);
    }

    /// Whether it is spared them.
    pub(crate) fn is_spared(&self) -> bool {
        self.spared.load(Ordering::Relaxed)
    }

    /// The newest sample that the node has replayed, by its last answer; 0 if it has shown none.
    #[inline]
    pub fn covered(&self) -> SampleNumber {
        SampleNumber(self.covered.load(Ordering::Acquire))
    }

    /// Whether the node has covered `fence`, by an answer to a question that was put after number `born` was drawn.
    ///
    /// A standby that crashed begins anew at a position which may be before the one that it had replayed. Its
    /// connections are gone then, so a connection that lives is of the same run as every answer to a question that was
    /// put after the connection was opened: and within one run replay goes only forward.
    #[inline]
    pub fn vouches(&self, fence: SampleNumber, born: SampleNumber) -> bool {
        self.answered.load(Ordering::Acquire) > born.0 && self.covered() >= fence
    }

    /// The present run of the node: between two equal ones it was not restarted.
    #[inline]
    pub fn run(&self) -> u64 {
        self.run.load(Ordering::Acquire)
    }

    /// The probe's connection is lost, so the node may be restarted.
    pub(crate) fn end_run(&self) {
        self.run.fetch_add(1, Ordering::AcqRel);
    }

    /// What somebody has seen who has just read on this node over a connection that was open in this run.
    #[inline]
    pub fn seen(&self, run: u64) -> Seen {
        Seen {
            at: self.drawn(),
            run,
        }
    }

    /// What another node must have covered so that nothing is taken back from who has seen this on this node: the oldest
    /// sample that has all that this node had replayed at its first answer to a question put after the read.
    ///
    /// `None` while there is no such answer, and for good where the node may have been restarted since.
    #[inline]
    pub fn bound(&self, seen: Seen) -> Option<SampleNumber> {
        let answered = self.answered.load(Ordering::Acquire);
        let within = self.within.load(Ordering::Acquire);
        (answered > seen.at.0 && within != u64::MAX && self.continues(seen)).then_some(SampleNumber(within))
    }

    /// Has the node asked for its position, whatever is known of it, until there is a [`Coverage::bound`] of what was seen on
    /// it. Nobody is woken: who waits has to want a fence as well.
    pub fn ask_since(&self, seen: Seen) {
        self.ask_after(seen.at);
    }

    /// Has the node asked for its position, whatever is known of it, until it has answered a question that was put after
    /// this number was drawn. Nobody is woken: who waits has to want a fence as well.
    pub fn ask_after(&self, drawn: SampleNumber) {
        self.asked_for.fetch_max(drawn.0 + 1, Ordering::Relaxed);
    }

    /// Whether somebody waits for an answer of the node that has not come.
    pub(crate) fn is_asked(&self) -> bool {
        self.answered.load(Ordering::Acquire) < self.asked_for.load(Ordering::Relaxed)
    }

    /// Whether the node still shows at least what was seen on it: it was not restarted.
    #[inline]
    pub fn continues(&self, seen: Seen) -> bool {
        self.run() == seen.run
    }

    /// Takes in what follows from the node's last answer.
    pub fn store(&self, told: Covered) {
        self.covered.store(told.covered.0, Ordering::Release);
        let within = told.within.map_or(u64::MAX, |within| within.0);
        self.within.store(within, Ordering::Release);
        self.answered.store(told.answered.0, Ordering::Release);
    }
}

/// Hands fences to sessions, and knows whether anybody waits for one.
#[derive(Clone, Debug, Default)]
pub struct Fences {
    begun: Arc<AtomicU64>,
    wanted: Arc<AtomicU64>,
    sampled: Arc<AtomicU64>,
    sampling: Arc<AtomicBool>,
    demand: Arc<Notify>,
    covering: Arc<Notify>,
}

impl Fences {
    /// The fence of a write that has just finished: call it after the commit's answer came, not before. Never
    /// blocks. From the first fence wanted until the standbys cover it, nodes are asked for their positions, at least
    /// `sample_interval` apart.
    pub fn fence(&self) -> SampleNumber {
        let fence = self.begun.load(Ordering::SeqCst) + 1;
        self.wanted.fetch_max(fence, Ordering::Relaxed);
        if !self.sampling.load(Ordering::Relaxed) {
            self.demand.notify_one();
        }
        SampleNumber(fence)
    }

    /// Ready when some standby has covered more than when this was called. Cancel safe.
    pub fn covering(&self) -> Notified<'_> {
        self.covering.notified()
    }

    /// Wakes those who wait for standbys to have more.
    pub(crate) fn tell_covered(&self) {
        self.covering.notify_waiters();
    }

    /// The newest sample of the primary's position that is in.
    pub(crate) fn sampled(&self) -> SampleNumber {
        SampleNumber(self.sampled.load(Ordering::Relaxed))
    }

    /// Takes note of the newest sample.
    pub(crate) fn set_sampled(&self, newest: SampleNumber) {
        self.sampled.store(newest.0, Ordering::Relaxed);
    }

    pub(crate) fn begun(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.begun)
    }

    /// The newest fence handed out.
    pub(crate) fn wanted(&self) -> SampleNumber {
        SampleNumber(self.wanted.load(Ordering::Relaxed))
    }

    /// Says whether the fast cadence is on, or is of no use, so that sessions need not ask for it with every write.
    pub(crate) fn set_sampling(&self, sampling: bool) {
        self.sampling.store(sampling, Ordering::Relaxed);
    }

    /// Waits for a session that wants a fence while the fast cadence is off. Cancel safe.
    pub(crate) async fn demanded(&self) {
        self.demand.notified().await;
    }
}
