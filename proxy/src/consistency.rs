//! What a read has to see: the fences of those who have written.
//!
//! A *fence* is the number of the first sample of the primary's position that begins after a write (see
//! `halyard_health::samples`); a standby that has replayed that sample or a later one has the write.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use halyard_health::{Fences, SampleNumber};

use crate::config::ReadConsistency;

/// What every session's reads are measured by.
#[derive(Debug)]
pub struct Consistency {
    fences: Fences,
    /// The newest fence of any session's write, since anybody wants to know.
    written: AtomicU64,
    /// Whether any session's reads are to see what others have written.
    global: AtomicBool,
}

impl Consistency {
    /// With nothing written yet.
    pub fn new(fences: Fences) -> Self {
        Self {
            fences,
            written: AtomicU64::new(0),
            global: AtomicBool::new(false),
        }
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

    /// What a standby must have replayed to serve a session that reads like this and whose own writes have the fence
    /// `own`.
    #[inline]
    pub fn required(&self, mode: ReadConsistency, own: SampleNumber) -> SampleNumber {
        match mode {
            ReadConsistency::Session => own,
            ReadConsistency::Global => own.max(SampleNumber(self.written.load(Ordering::Acquire))),
            ReadConsistency::Eventual => SampleNumber(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_waits_for_its_own_writes_and_global_for_all() {
        use ReadConsistency::{Eventual, Global, Session};
        for (mode, own, of_others) in [(Eventual, 0, 0), (Session, 1, 0), (Global, 1, 1)] {
            let consistency = Consistency::new(Fences::default());
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
        let consistency = Consistency::new(Fences::default());
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
