//! What belongs to one thread: scratch space, spare buffers, caches, a random sequence.
//!
//! Nothing here is shared, so nothing here is locked. It is borrowed for the length of one poll and never
//! across an `.await`.

use std::cell::{Cell, RefCell};

use crate::catalog::ClassCaches;
use crate::session::StatementCache;
use crate::wire::BufferPool;

/// Bytes read from a backend at a time. Large results cost one read and one write for each such piece.
const SCRATCH_SIZE: usize = 64 * 1024;

/// Everything that belongs to one thread of the data plane.
pub struct Local {
    /// Which reactor this thread drives; backends registered with another must move before they are used.
    pub reactor: usize,
    /// Where bytes from backends land first.
    pub scratch: Vec<u8>,
    /// Spare buffers.
    pub buffers: BufferPool,
    /// Classes of texts seen lately.
    pub classes: ClassCaches,
    /// Statements prepared lately.
    pub statements: StatementCache,
    random: u64,
}

impl Local {
    fn new() -> Self {
        let mut seed = [0; 8];
        // A failing random source only makes the choice between standbys predictable.
        let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut seed);
        Self {
            reactor: 0,
            scratch: vec![0; SCRATCH_SIZE],
            buffers: BufferPool::default(),
            classes: ClassCaches::default(),
            statements: StatementCache::default(),
            random: u64::from_ne_bytes(seed) | 1,
        }
    }

    /// Tells the thread which reactor it drives, and how many classes it remembers per database.
    pub fn set_up(&mut self, reactor: usize, class_cache_size: usize) {
        self.reactor = reactor;
        REACTOR.set(reactor);
        self.classes.set_capacity(class_cache_size);
    }

    /// The next number of a sequence that is random enough to spread load (xorshift64, Marsaglia 2003).
    #[inline]
    pub fn random(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u32
    }
}

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::new(Local::new());
    /// As in [`Local`], for those who cannot know whether that is borrowed.
    static REACTOR: Cell<usize> = const { Cell::new(0) };
}

/// Which reactor this thread drives.
pub(crate) fn reactor() -> usize {
    REACTOR.get()
}

/// Borrows what belongs to this thread. Must not be nested.
#[inline]
pub(crate) fn with<R>(body: impl FnOnce(&mut Local) -> R) -> R {
    LOCAL.with_borrow_mut(body)
}
