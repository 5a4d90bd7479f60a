//! What a read has to see: the fences of those who have written.
//!
//! A *fence* is the number of the first sample of the primary's position that begins after a write (see
//! `halyard_health::samples`); a standby that has replayed that sample or a later one has the write.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use halyard_health::{Fences, Lsn, Sample, SampleNumber, TimelineId};
use tokio::sync::futures::Notified;
use tokio::sync::watch;

use crate::config::ReadConsistency;

/// A fence as it is carried from one connection to another, of any Halyard in front of the same cluster: a position that
/// the primary had reached, and on which timeline. Written `1/0/3000148`: the timeline, and the position as a `pg_lsn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarriedFence {
    /// The primary's timeline.
    pub timeline: TimelineId,
    /// Its position, at or past the end of everything that is to be seen.
    pub position: Lsn,
}

impl fmt::Display for CarriedFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.timeline, self.position)
    }
}

/// Not a fence as Halyard writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a timeline and a position, like 1/0/3000148")]
pub struct NotAFence;

impl FromStr for CarriedFence {
    type Err = NotAFence;

    fn from_str(text: &str) -> Result<Self, NotAFence> {
        let (timeline, position) = text.split_once('/').ok_or(NotAFence)?;
        let digits = timeline.bytes().all(|byte| byte.is_ascii_digit());
        Ok(Self {
            timeline: TimelineId(timeline.parse().ok().filter(|_| digits).ok_or(NotAFence)?),
            position: position.parse().map_err(|_| NotAFence)?,
        })
    }
}

/// What every session's reads are measured by.
#[derive(Debug)]
pub struct Consistency {
    fences: Fences,
    samples: watch::Receiver<Option<Sample>>,
    /// The newest fence of any session's write, since anybody wants to know.
    written: AtomicU64,
    /// Whether any session's reads are to see what others have written.
    global: AtomicBool,
    /// Reads on the primary for which no standby was known to be far enough.
    behind: Arc<AtomicU32>,
}

/// A read on the primary for which no standby was known to be far enough, as long as it runs.
#[derive(Debug)]
pub struct ReadBehind(Arc<AtomicU32>);

impl Drop for ReadBehind {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Consistency {
    /// With nothing written yet.
    pub fn new(fences: Fences, samples: watch::Receiver<Option<Sample>>) -> Self {
        Self {
            fences,
            samples,
            written: AtomicU64::new(0),
            global: AtomicBool::new(false),
            behind: Arc::default(),
        }
    }

    /// Counts a read that the primary is asked because no standby is known to be far enough.
    pub fn begin_behind(&self) -> ReadBehind {
        self.behind.fetch_add(1, Ordering::Relaxed);
        ReadBehind(Arc::clone(&self.behind))
    }

    /// How many such reads there are.
    pub fn reads_behind(&self) -> u32 {
        self.behind.load(Ordering::Relaxed)
    }

    /// Ready when some standby is known to have replayed more than when this was called. Cancel safe.
    pub fn covering(&self) -> Notified<'_> {
        self.fences.covering()
    }

    /// Takes note that a session reads like this from now on. Where it is the first whose reads are to see what others
    /// have written, that begins with what was written until now: whoever was told of a write before this and did not
    /// note it for others did so before the fence taken here.
    pub fn begin(&self, mode: ReadConsistency) {
        if mode == ReadConsistency::Global && !self.global.swap(true, Ordering::SeqCst) {
            self.written.fetch_max(self.fences.fence().0, Ordering::AcqRel);
        }
    }

    /// Takes note that somebody has written, for those whose reads are to see what others have written. To be called when
    /// the server has answered and *before* the client gets any of that answer: from then on anybody may ask for what was
    /// written.
    #[inline]
    pub fn note_for_others(&self) {
        if self.global.load(Ordering::SeqCst) {
            self.written.fetch_max(self.fences.fence().0, Ordering::AcqRel);
        }
    }

    /// The fence of what a session that reads like this has written until now.
    #[inline]
    pub fn note_write(&self, mode: ReadConsistency) -> SampleNumber {
        self.note_for_others();
        match mode {
            ReadConsistency::Eventual => SampleNumber(0),
            ReadConsistency::Session | ReadConsistency::Global => self.fences.fence(),
        }
    }

    /// The fence of whatever was written until now, by anybody and by whatever way.
    pub fn now(&self, mode: ReadConsistency) -> SampleNumber {
        match mode {
            ReadConsistency::Eventual => SampleNumber(0),
            ReadConsistency::Session | ReadConsistency::Global => self.fences.fence(),
        }
    }

    /// The fence of everything committed until now, to be carried to another connection. It takes until the primary's
    /// position was asked for once more; `None` if it has not told it for as long as `limit`.
    pub async fn carry(&self, limit: Duration) -> Option<CarriedFence> {
        let fence = self.fences.fence();
        let mut samples = self.samples.clone();
        let reached = samples.wait_for(|sample| sample.is_some_and(|sample| sample.number >= fence));
        let sample = *tokio::time::timeout(limit, reached).await.ok()?.ok()?;
        sample.map(|sample| CarriedFence {
            timeline: sample.timeline,
            position: sample.position,
        })
    }

    /// Whether a fence is of a timeline that this Halyard has not seen: then it cannot tell which node has what was
    /// written.
    pub fn is_ahead(&self, carried: CarriedFence) -> Option<TimelineId> {
        let sample = (*self.samples.borrow())?;
        (carried.timeline > sample.timeline).then_some(sample.timeline)
    }

    /// What a standby must have replayed that is to serve a session which was given this fence.
    pub fn take(&self, carried: CarriedFence) -> SampleNumber {
        // Whatever was committed when the fence was made is in the first sample that begins after this.
        let now = self.fences.fence();
        match *self.samples.borrow() {
            Some(sample) if sample.timeline == carried.timeline && sample.position >= carried.position => {
                sample.number
            }
            _ => now,
        }
    }

    /// What a standby must have replayed to serve a session that reads like this and whose own writes have the fence
    /// `own`.
    #[inline]
    pub fn required(&self, mode: ReadConsistency, own: SampleNumber) -> SampleNumber {
        match mode {
            // Of an eventual session's own writes none is taken note of: what it has is what it was given.
            ReadConsistency::Session | ReadConsistency::Eventual => own,
            ReadConsistency::Global => own.max(SampleNumber(self.written.load(Ordering::Acquire))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consistency() -> Consistency {
        Consistency::new(Fences::default(), watch::channel(None).1)
    }

    fn standing_at(text: &str) -> (Consistency, watch::Sender<Option<Sample>>) {
        let fence: CarriedFence = text.parse().unwrap();
        let (sender, samples) = watch::channel(Some(Sample {
            number: SampleNumber(7),
            timeline: fence.timeline,
            position: fence.position,
        }));
        (Consistency::new(Fences::default(), samples), sender)
    }

    #[test]
    fn a_carried_fence_is_read_as_it_is_written() {
        for text in ["1/0/0", "12/16/B374D848", "4294967295/FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<CarriedFence>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "1",
            "1/0",
            "0/1/2/3",
            "+1/0/1",
            "-1/0/1",
            "x/0/1",
            "1/0/1 ",
            "4294967296/0/0",
        ] {
            assert_eq!(text.parse::<CarriedFence>(), Err(NotAFence), "{text:?}");
        }
    }

    #[test]
    fn a_carried_fence_asks_for_no_more_than_it_must() {
        let (consistency, _samples) = standing_at("2/0/500");
        let take = |text: &str| consistency.take(text.parse().unwrap());
        assert_eq!(take("2/0/500"), SampleNumber(7), "the newest sample has it");
        assert_eq!(take("2/0/501"), SampleNumber(1), "the next one will");
        assert_eq!(
            take("1/0/1"),
            SampleNumber(1),
            "of the old timeline it is not known"
        );
        let ahead = |text: &str| consistency.is_ahead(text.parse().unwrap());
        assert_eq!(ahead("3/0/1"), Some(TimelineId(2)));
        assert_eq!(ahead("2/0/501"), None);
    }

    #[tokio::test]
    async fn a_fence_is_carried_away_when_the_primary_has_told_its_position() {
        let (sender, samples) = watch::channel(None);
        let consistency = Consistency::new(Fences::default(), samples);
        assert_eq!(consistency.carry(Duration::from_millis(1)).await, None);
        sender.send_replace(Some(Sample {
            number: SampleNumber(1),
            timeline: TimelineId(3),
            position: Lsn(0x40),
        }));
        let carried = consistency.carry(Duration::from_secs(1)).await.unwrap();
        assert_eq!(carried.to_string(), "3/0/40");
    }

    #[test]
    fn a_session_waits_for_its_own_writes_and_global_for_all() {
        use ReadConsistency::{Eventual, Global, Session};
        for (mode, own, of_others) in [(Eventual, 0, 0), (Session, 1, 0), (Global, 1, 1)] {
            let consistency = consistency();
            consistency.begin(mode);
            let fence = consistency.note_write(mode);
            assert_eq!(consistency.required(mode, fence), SampleNumber(own), "{mode:?}");
            let required = consistency.required(mode, SampleNumber(0));
            assert_eq!(required, SampleNumber(of_others), "{mode:?}");
        }
    }

    #[test]
    fn the_first_to_read_what_others_write_sees_what_they_have_written() {
        use ReadConsistency::{Eventual, Global};
        let consistency = consistency();
        assert_eq!(consistency.note_write(Eventual), SampleNumber(0), "nobody asks");
        consistency.begin(Global);
        let seen = consistency.required(Global, SampleNumber(0));
        assert_eq!(
            seen,
            SampleNumber(1),
            "the fence was taken when somebody began to ask"
        );
        assert_eq!(
            consistency.note_write(Eventual),
            SampleNumber(0),
            "for itself it does not ask"
        );
    }
}
