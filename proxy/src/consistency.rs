//! What a read has to see: the fences of those who have written.
//!
//! A *fence* is the number of the first sample of the primary's position that begins after a write (see
//! `halyard_health::samples`); a standby that has replayed that sample or a later one has the write.

use std::sync::atomic::{AtomicU64, Ordering};

use halyard_health::{Fences, SampleNumber};

use crate::config::ReadConsistency;

/// What every session's reads are measured by.
#[derive(Debug)]
pub struct Consistency {
    mode: ReadConsistency,
    fences: Fences,
    /// The newest fence of any session's write.
    written: AtomicU64,
}

impl Consistency {
    /// Fences by this mode.
    pub fn new(mode: ReadConsistency, fences: Fences) -> Self {
        Self {
            mode,
            fences,
            written: AtomicU64::new(0),
        }
    }

    /// What reads are promised.
    #[inline]
    pub fn mode(&self) -> ReadConsistency {
        self.mode
    }

    /// Takes note that somebody has written, and returns the fence of it. To be called when the server has answered and
    /// *before* the client gets any of that answer: from then on anybody may ask for what was written.
    #[inline]
    pub fn note_write(&self) -> SampleNumber {
        if self.mode == ReadConsistency::Eventual {
            return SampleNumber(0);
        }
        let fence = self.fences.fence();
        if self.mode == ReadConsistency::Global {
            self.written.fetch_max(fence.0, Ordering::AcqRel);
        }
        fence
    }

    /// The fence of whatever was written until now, by anybody and by whatever way.
    pub fn now(&self) -> SampleNumber {
        match self.mode {
            ReadConsistency::Eventual => SampleNumber(0),
            ReadConsistency::Session | ReadConsistency::Global => self.fences.fence(),
        }
    }

    /// What a standby must have replayed to serve a session whose own writes have the fence `own`.
    #[inline]
    pub fn required(&self, own: SampleNumber) -> SampleNumber {
        match self.mode {
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
        for (mode, own, of_others) in [
            (ReadConsistency::Eventual, 0, 0),
            (ReadConsistency::Session, 1, 0),
            (ReadConsistency::Global, 1, 1),
        ] {
            let consistency = Consistency::new(mode, Fences::default());
            let fence = consistency.note_write();
            assert_eq!(consistency.required(fence), SampleNumber(own), "{mode:?}");
            assert_eq!(
                consistency.required(SampleNumber(0)),
                SampleNumber(of_others),
                "{mode:?}"
            );
        }
    }
}
