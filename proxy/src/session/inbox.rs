//! Messages to a session from elsewhere: a cancel request, a new table, the end.
//!
//! A few bits and a bell. The session looks at them whenever it is woken; ringing costs the sender one atomic
//! operation and a wake-up, and the session's own path a relaxed load.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::startup::CancelKey;
use crate::stream::Stream;

/// What a session can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The client wants its query cancelled.
    Cancel = 1,
    /// There is another routing table: the node in use may not be what it was.
    TableChanged = 2,
    /// The proxy drains: leave when no transaction is open.
    Drain = 4,
    /// The proxy ends: leave now.
    Terminate = 8,
    /// A notification waits for the client.
    Notification = 16,
}

/// One session's messages.
#[derive(Debug, Default)]
pub struct Inbox {
    messages: AtomicU8,
    bell: AtomicWaker,
    doing: AtomicU8,
    /// Connections of CancelRequests that were heard and not passed on yet; the close tells their clients that they
    /// were.
    cancels: Mutex<Vec<Stream>>,
}

/// Most CancelRequests that wait for one session to pass them on; what comes beyond is closed at once.
const CANCELS_MAX: usize = 16;

/// One thing that a client can be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Doing {
    /// Nothing.
    Idle,
    /// A node works for it.
    Active,
    /// It has a transaction open and says nothing.
    IdleInTransaction,
    /// It waits for a backend.
    Waiting,
    /// It waits for a node.
    Held,
}

/// The messages taken out of an inbox.
#[derive(Clone, Copy, Debug)]
pub struct Messages(u8);

impl Messages {
    /// Whether this message is among them.
    pub fn has(self, message: Message) -> bool {
        self.0 & message as u8 != 0
    }
}

impl Inbox {
    /// Leaves a message and wakes the session.
    pub fn ring(&self, message: Message) {
        self.messages.fetch_or(message as u8, Ordering::Release);
        self.bell.wake();
    }

    /// Whether there are messages; if not, the task is woken by the next.
    #[inline]
    pub fn is_ringing(&self, cx: &Context<'_>) -> bool {
        if self.messages.load(Ordering::Acquire) != 0 {
            return true;
        }
        self.bell.register(cx.waker());
        self.messages.load(Ordering::Acquire) != 0
    }

    /// Notes what the client is doing, for those who look from outside.
    #[inline]
    pub fn set_doing(&self, doing: Doing) {
        self.doing.store(doing as u8, Ordering::Relaxed);
    }

    fn doing(&self) -> Doing {
        const ALL: [Doing; 5] = [
            Doing::Idle,
            Doing::Active,
            Doing::IdleInTransaction,
            Doing::Waiting,
            Doing::Held,
        ];
        ALL[usize::from(self.doing.load(Ordering::Relaxed))]
    }

    /// Takes the connections of the CancelRequests heard so far.
    pub fn take_cancels(&self) -> Vec<Stream> {
        std::mem::take(&mut self.cancels.lock())
    }

    /// Takes all messages out.
    pub fn take(&self) -> Messages {
        Messages(self.messages.swap(0, Ordering::AcqRel))
    }
}

/// All sessions, by what cancels them.
#[derive(Debug)]
pub struct Registry {
    shards: Vec<Mutex<HashMap<i32, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    secret: [u8; SECRET_SIZE],
    inbox: Arc<Inbox>,
}

const SHARDS: usize = 64;
/// Bytes of a secret: what protocol 3.0 has room for.
const SECRET_SIZE: usize = 4;
/// Tries to find a free process ID before a client is turned away.
const TRIES: usize = 64;

impl Default for Registry {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

/// A session's place among all sessions, for as long as it lives.
#[derive(Debug)]
pub struct Registered {
    registry: Arc<Registry>,
    pid: i32,
    /// Its messages.
    pub inbox: Arc<Inbox>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.shard(self.pid).lock().remove(&self.pid);
    }
}

impl Registry {
    fn shard(&self, pid: i32) -> &Mutex<HashMap<i32, Entry>> {
        &self.shards[pid.unsigned_abs() as usize % SHARDS]
    }

    /// Enters a session under a random number; also what its client has to show to cancel.
    ///
    /// `None` if the system gives no randomness or no number is free.
    pub fn register(self: &Arc<Self>) -> Option<(Registered, [u8; 4 + SECRET_SIZE])> {
        for _ in 0..TRIES {
            let mut key = [0; 4 + SECRET_SIZE];
            ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut key).ok()?;
            key[0] &= 0x7f;
            let (pid, secret) = key.split_first_chunk::<4>()?;
            let pid = i32::from_be_bytes(*pid);
            let secret = *secret.first_chunk()?;
            let inbox = Arc::new(Inbox::default());
            let mut shard = self.shard(pid).lock();
            if pid == 0 || shard.contains_key(&pid) {
                continue;
            }
            shard.insert(
                pid,
                Entry {
                    secret,
                    inbox: Arc::clone(&inbox),
                },
            );
            drop(shard);
            return Some((
                Registered {
                    registry: Arc::clone(self),
                    pid,
                    inbox,
                },
                key,
            ));
        }
        None
    }

    /// Passes a CancelRequest on to the session that it names; `held` is closed once the node has been told. False
    /// if it names none.
    pub fn cancel(&self, key: &CancelKey, held: Option<Stream>) -> bool {
        let shard = self.shard(key.pid).lock();
        let Some(entry) = shard.get(&key.pid) else {
            return false;
        };
        let same = subtle::ConstantTimeEq::ct_eq(&entry.secret[..], &key.secret[..]);
        if !bool::from(same) {
            return false;
        }
        let mut cancels = entry.inbox.cancels.lock();
        if cancels.len() < CANCELS_MAX {
            cancels.extend(held);
        }
        drop(cancels);
        entry.inbox.ring(Message::Cancel);
        true
    }

    /// Tells every session something.
    pub fn ring_all(&self, message: Message) {
        for shard in &self.shards {
            for entry in shard.lock().values() {
                entry.inbox.ring(message);
            }
        }
    }

    /// Tells what each client is doing.
    pub fn each(&self, mut tell: impl FnMut(Doing)) {
        for shard in &self.shards {
            for entry in shard.lock().values() {
                tell(entry.inbox.doing());
            }
        }
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_secret_rings() {
        let registry = Arc::new(Registry::default());
        let (session, key) = registry.register().unwrap();
        let pid = i32::from_be_bytes(*key.first_chunk().unwrap());
        let mut secret = key[4..].to_vec();
        secret[0] ^= 1;
        assert!(!registry.cancel(
            &CancelKey {
                pid,
                secret: secret.clone()
            },
            None
        ));
        secret[0] ^= 1;
        assert!(!registry.cancel(
            &CancelKey {
                pid,
                secret: secret[..3].to_vec()
            },
            None
        ));
        assert!(registry.cancel(
            &CancelKey {
                pid,
                secret: secret.clone()
            },
            None
        ));
        assert!(session.inbox.take().has(Message::Cancel));
        drop(session);
        assert!(!registry.cancel(&CancelKey { pid, secret }, None));
        assert_eq!(registry.len(), 0);
    }
}
