//! Buffers that exist only while there is something in them.
//!
//! An idle client holds none: storage comes from a pool that belongs to the thread, and goes back there the
//! moment a buffer is empty. All storage is initialised once, when it is first made.

/// Bytes of a buffer as it comes from the pool.
pub const BUFFER_SIZE: usize = 8 * 1024;

/// Buffers that a pool keeps; what comes back beyond it is freed.
const POOLED_MAX: usize = 256;

/// Spare storage of one thread. The one last given back is the first to be handed out: it is still in cache.
#[derive(Debug, Default)]
pub struct BufferPool {
    spare: Vec<Vec<u8>>,
}

impl BufferPool {
    fn take(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| vec![0; BUFFER_SIZE])
    }

    /// Takes storage back. One that had grown is freed: what one client needed is not everybody's size.
    fn give(&mut self, storage: Vec<u8>) {
        if storage.len() == BUFFER_SIZE && self.spare.len() < POOLED_MAX {
            self.spare.push(storage);
        }
    }
}

/// Received bytes, in three parts: `0 <= sent <= parsed <= received`.
///
/// What lies before `sent` is of no use any more; between `sent` and `parsed` lie whole frames that were
/// looked at and may have to be looked at again (a read that is run again on another node); between `parsed`
/// and `received` lies what nobody has looked at.
#[derive(Debug, Default)]
pub struct FrameBuf {
    storage: Vec<u8>,
    sent: usize,
    parsed: usize,
    received: usize,
}

impl FrameBuf {
    /// A buffer that starts with bytes read before it existed.
    pub fn with_leftover(leftover: &[u8]) -> Self {
        let mut buffer = Self::default();
        if !leftover.is_empty() {
            buffer.storage = vec![0; leftover.len().max(BUFFER_SIZE)];
            buffer.storage[..leftover.len()].copy_from_slice(leftover);
            buffer.received = leftover.len();
        }
        buffer
    }

    /// Where the next bytes from the peer go. Empty only when the buffer is full.
    pub fn spare(&mut self, pool: &mut BufferPool) -> &mut [u8] {
        if self.storage.is_empty() {
            self.storage = pool.take();
        }
        if self.sent > 0 && (self.received == self.storage.len() || self.sent == self.received) {
            self.compact();
        }
        &mut self.storage[self.received..]
    }

    /// Takes note of `count` bytes written into [`FrameBuf::spare`].
    pub fn commit(&mut self, count: usize) {
        self.received += count;
        self.check();
    }

    /// What nobody has looked at yet.
    #[inline]
    pub fn unparsed(&self) -> &[u8] {
        &self.storage[self.parsed..self.received]
    }

    /// What was looked at and is still kept.
    #[inline]
    pub fn held(&self) -> &[u8] {
        &self.storage[self.sent..self.parsed]
    }

    /// Moves `count` bytes from unparsed to held.
    #[inline]
    pub fn parse(&mut self, count: usize) {
        self.parsed += count;
        self.check();
    }

    /// Lets go of everything held.
    #[inline]
    pub fn release_held(&mut self) {
        self.sent = self.parsed;
    }

    /// Makes everything held unparsed again.
    pub fn rewind(&mut self) {
        self.parsed = self.sent;
    }

    /// Makes room for a frame of `total` bytes, counted from the first unparsed byte.
    pub fn reserve(&mut self, total: usize, pool: &mut BufferPool) {
        if self.storage.is_empty() {
            self.storage = pool.take();
        }
        let needed = (self.parsed - self.sent) + total;
        if self.storage.len() - self.sent >= needed {
            return;
        }
        self.compact();
        if self.storage.len() < needed {
            self.storage.resize(needed.next_power_of_two(), 0);
        }
    }

    /// Whether anything is kept or unparsed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.sent == self.received
    }

    /// Gives the storage back if nothing is in it.
    #[inline]
    pub fn retire(&mut self, pool: &mut BufferPool) {
        if self.is_empty() && !self.storage.is_empty() {
            pool.give(std::mem::take(&mut self.storage));
            (self.sent, self.parsed, self.received) = (0, 0, 0);
        }
    }

    fn compact(&mut self) {
        self.storage.copy_within(self.sent..self.received, 0);
        self.parsed -= self.sent;
        self.received -= self.sent;
        self.sent = 0;
        self.check();
    }

    #[inline]
    fn check(&self) {
        debug_assert!(
            self.sent <= self.parsed,
            "held bytes end where unparsed ones begin"
        );
        debug_assert!(
            self.parsed <= self.received,
            "nothing is parsed that was not received"
        );
        debug_assert!(
            self.received <= self.storage.len(),
            "nothing is received beyond the storage"
        );
    }
}

/// Bytes on their way out that the peer has not taken yet.
#[derive(Debug, Default)]
pub struct OutBuf {
    storage: Vec<u8>,
    sent: usize,
}

impl OutBuf {
    /// Whether all has been taken.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.sent == self.storage.len()
    }

    /// What still has to go.
    #[inline]
    pub fn pending(&self) -> &[u8] {
        &self.storage[self.sent..]
    }

    /// Takes note of `count` bytes that the peer has taken.
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
        debug_assert!(self.sent <= self.storage.len(), "no more is taken than there was");
        if self.is_empty() {
            self.storage.clear();
            self.sent = 0;
            if self.storage.capacity() > 4 * BUFFER_SIZE {
                self.storage = Vec::new();
            }
        }
    }

    /// Where new bytes are appended.
    #[inline]
    pub fn end(&mut self) -> &mut Vec<u8> {
        &mut self.storage
    }

    /// Forgets everything, storage included.
    pub fn free(&mut self) {
        *self = Self::default();
    }
}
