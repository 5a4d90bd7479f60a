//! Messages to a session from elsewhere: a cancel request, a new table, the end.
//!
//! A few bits and a bell. The session looks at them whenever it is woken; ringing costs the sender one atomic
//! operation and a wake-up, and the session's own path a relaxed load.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::SystemTime;

use futures_util::task::AtomicWaker;
use halyard_health::NodeId;
use parking_lot::Mutex;

use super::class::PinReason;
use super::tally::{Tallied, Tally, TotalsByDatabase};
use crate::startup::{CancelKey, Peer, ProtocolVersion};
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
    /// What the client does and on which node; see [`Presence`]. Only its session writes it.
    presence: AtomicU64,
    /// What the session has counted.
    pub tally: Tally,
    /// The session's backend, by its process ID on the node.
    backend_pid: AtomicU32,
    /// When that was made, in the pools' seconds.
    backend_born: AtomicU32,
    /// Why the session keeps its backend, and since when in the pools' seconds; 0 while it does not.
    pin: AtomicU64,
    client: OnceLock<ClientInfo>,
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

/// What is known of a client from its login on.
#[derive(Debug)]
pub struct ClientInfo {
    /// The session's number, which no session had before it; 0 where it has none.
    pub number: u64,
    /// The role it logged in as.
    pub user: String,
    /// Its database.
    pub database: String,
    /// What its startup packet said of `application_name`.
    pub application_name: String,
    /// Where it comes from.
    pub peer: Peer,
    /// Whether its connection is encrypted.
    pub tls: bool,
    /// When it had logged in.
    pub connected: SystemTime,
}

/// What a session is at, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// What its client does.
    pub doing: Doing,
    /// The node of the backend that it has, and whether it was chosen as the primary.
    pub backend: Option<(NodeId, bool)>,
}

impl Presence {
    const BACKEND: u64 = 1 << 8;
    const PRIMARY: u64 = 1 << 9;
    const NODE_SHIFT: u32 = 16;

    #[inline]
    fn pack(self) -> u64 {
        let backend = self.backend.map_or(0, |(node, as_primary)| {
            Self::BACKEND | if as_primary { Self::PRIMARY } else { 0 } | u64::from(node.0) << Self::NODE_SHIFT
        });
        self.doing as u64 | backend
    }

    #[inline]
    fn unpack(packed: u64) -> Self {
        const ALL: [Doing; 5] = [
            Doing::Idle,
            Doing::Active,
            Doing::IdleInTransaction,
            Doing::Waiting,
            Doing::Held,
        ];
        let node = NodeId((packed >> Self::NODE_SHIFT & 0xffff) as u16);
        Self {
            doing: ALL[(packed & 0xff) as usize],
            backend: (packed & Self::BACKEND != 0).then_some((node, packed & Self::PRIMARY != 0)),
        }
    }
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

    /// Notes what the client is doing that has no backend, for those who look from outside.
    #[inline]
    pub fn set_doing(&self, doing: Doing) {
        self.set_presence(Presence { doing, backend: None });
    }

    /// Notes what the client is doing and with which backend, for those who look from outside.
    #[inline]
    pub fn set_presence(&self, presence: Presence) {
        let before = self.presence().doing;
        if before != presence.doing {
            self.tally.turn(before, presence.doing);
        }
        self.presence.store(presence.pack(), Ordering::Relaxed);
    }

    /// What the client is doing.
    #[inline]
    pub fn presence(&self) -> Presence {
        Presence::unpack(self.presence.load(Ordering::Relaxed))
    }

    /// Notes which backend the session has: its process ID, and when it was made in the pools' seconds.
    #[inline]
    pub fn set_backend(&self, pid: i32, born: u32) {
        self.backend_pid.store(pid.cast_unsigned(), Ordering::Relaxed);
        self.backend_born.store(born, Ordering::Relaxed);
        self.tally.add(Tallied::Assignments, 1);
    }

    /// When the backend was made that the session has, in the pools' seconds.
    pub fn backend_born(&self) -> u32 {
        self.backend_born.load(Ordering::Relaxed)
    }

    /// The process ID of the backend that the session has, or had last; 0 if it had none.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid.load(Ordering::Relaxed).cast_signed()
    }

    /// Notes why the session keeps its backend, if it does; `now` in the pools' seconds. A reason that is known already
    /// keeps its time.
    pub fn set_pin(&self, reason: Option<PinReason>, now: u32) {
        let known = self.pin.load(Ordering::Relaxed);
        let code = reason.map_or(0, |reason| 1 + reason as u64);
        if code != known & 0xff {
            let since = if reason.is_some() { u64::from(now) << 8 } else { 0 };
            self.pin.store(since | code, Ordering::Relaxed);
        }
    }

    /// Why the session keeps its backend, and since when in the pools' seconds.
    pub fn pin(&self) -> Option<(PinReason, u32)> {
        let packed = self.pin.load(Ordering::Relaxed);
        let reason = PinReason::ALL.get(((packed & 0xff) as usize).checked_sub(1)?)?;
        Some((*reason, u32::try_from(packed >> 8).ok()?))
    }

    /// Says who the client is; heard once.
    pub fn introduce(&self, client: ClientInfo) {
        // A session is introduced by its greeting alone.
        let _ = self.client.set(client);
    }

    /// Who the client is, once it has logged in.
    pub fn client(&self) -> Option<&ClientInfo> {
        self.client.get()
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
    /// What sessions have counted that have left.
    left: Mutex<TotalsByDatabase>,
}

#[derive(Debug)]
struct Entry {
    secret: Box<[u8]>,
    inbox: Arc<Inbox>,
}

const SHARDS: usize = 64;
/// Bytes of a secret: what protocol 3.0 has room for, and as many as PostgreSQL has for 3.2.
const fn secret_size(protocol: ProtocolVersion) -> usize {
    match protocol {
        ProtocolVersion::V3_0 => 4,
        ProtocolVersion::V3_2 => 32,
    }
}

/// Tries to find a free process ID before a client is turned away.
const TRIES: usize = 64;

impl Default for Registry {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            left: Mutex::default(),
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
        let mut shard = self.registry.shard(self.pid).lock();
        if let Some(client) = self.inbox.client() {
            // Under the shard's lock, so that it is counted either there or here.
            let mut left = self.registry.left.lock();
            left.add(&client.database, &self.inbox.tally);
        }
        shard.remove(&self.pid);
    }
}

impl Registry {
    /// Parts of all sessions.
    pub const PARTS: usize = SHARDS;

    fn shard(&self, pid: i32) -> &Mutex<HashMap<i32, Entry>> {
        &self.shards[pid.unsigned_abs() as usize % SHARDS]
    }

    /// Enters a session under a random number; also what its client has to show to cancel, as BackendKeyData has it.
    ///
    /// `None` if the system gives no randomness or no number is free.
    pub fn register(self: &Arc<Self>, protocol: ProtocolVersion) -> Option<(Registered, Vec<u8>)> {
        for _ in 0..TRIES {
            let mut key = vec![0; 4 + secret_size(protocol)];
            ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut key).ok()?;
            key[0] &= 0x7f;
            let (pid, secret) = key.split_first_chunk::<4>()?;
            let pid = i32::from_be_bytes(*pid);
            let secret = secret.into();
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

    /// Shows the sessions of one part of all, of which there are [`Registry::PARTS`]: whoever has much to do with each
    /// goes from part to part, and lets others run in between.
    pub fn each_of(&self, part: usize, mut show: impl FnMut(&Inbox)) {
        for entry in self.shards[part].lock().values() {
            show(&entry.inbox);
        }
    }

    /// What all sessions have counted, those that have left among them.
    pub fn totals(&self) -> TotalsByDatabase {
        // All locks at once, in their order, so that nobody is counted twice or not at all.
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.lock()).collect();
        let mut totals = self.left.lock().clone();
        for entry in shards.iter().flat_map(|shard| shard.values()) {
            if let Some(client) = entry.inbox.client() {
                totals.add(&client.database, &entry.inbox.tally);
            }
        }
        totals
    }

    /// Shows each session.
    pub fn each(&self, mut show: impl FnMut(&Inbox)) {
        for shard in &self.shards {
            for entry in shard.lock().values() {
                show(&entry.inbox);
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
        for (protocol, size) in [(ProtocolVersion::V3_0, 4), (ProtocolVersion::V3_2, 32)] {
            let registry = Arc::new(Registry::default());
            let (session, key) = registry.register(protocol).unwrap();
            let pid = i32::from_be_bytes(*key.first_chunk().unwrap());
            let secret = key[4..].to_vec();
            assert_eq!(secret.len(), size);
            let cancel = |secret: Vec<u8>| registry.cancel(&CancelKey { pid, secret }, None);
            for at in [0, size - 1] {
                let mut wrong = secret.clone();
                wrong[at] ^= 1;
                assert!(!cancel(wrong));
            }
            assert!(!cancel(secret[..size - 1].to_vec()));
            assert!(!cancel([&secret[..], &[0]].concat()));
            assert!(cancel(secret.clone()));
            assert!(session.inbox.take().has(Message::Cancel));
            drop(session);
            assert!(!cancel(secret));
            assert_eq!(registry.len(), 0);
        }
    }
}
