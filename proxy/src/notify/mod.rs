//! LISTEN and NOTIFY for clients that keep no backend: one connection for each database listens for all of them.
//!
//! ```text
//!  session ─want──▶ Hub ◀─question── Keeper ─LISTEN─▶ the primary
//!     ▲              │ ◀──dispatch──    ◀─NotificationResponse─
//!     └── Mailbox ◀──┘
//! ```
//! What a session listens to is what its servers committed: LISTEN and UNLISTEN still run on the session's backend,
//! and when their transaction is over that backend is asked ([`Listening::settle`]). The hub hears a channel before
//! the LISTEN that names it is sent, so that nothing is missed that is committed behind it.
//! `docs/adr/0010-one-connection-listens.md` has the reasons.
//!
//! A hub belongs to a database and a client encoding, since the server spells payloads in the encoding of whom it
//! tells. Its connection uses the credentials of any client that listens: LISTEN needs no privilege but to connect.

mod channel;
mod connection;
mod hub;
mod keeper;
mod listening;
mod mailbox;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::hub::{Client, Hub};
use self::keeper::Keeper;
use self::mailbox::Mailbox;
use crate::metrics::Counters;
use crate::pool::Group;
use crate::routing::Routing;
use crate::session::Inbox;

pub use channel::{Channel, Placed, Registration, listened};
pub use listening::{Followed, Listening, Unwritten};
pub use mailbox::{Taken, Waiting};

/// Limits of what one client may have. See `config::Limits` for their meaning.
#[derive(Clone, Copy, Debug)]
pub struct NotifyLimits {
    /// Bytes of notifications that may wait for it.
    pub queued_max: usize,
    /// Channels that it may listen to.
    pub channels_max: usize,
}

/// How much is listened to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Clients that listen.
    pub clients: usize,
    /// Channels that are listened to, counted for each connection that listens.
    pub channels: usize,
    /// Connections that listen, or are to.
    pub connections: usize,
}

/// The hubs of all databases.
pub struct Hubs {
    known: Mutex<HashMap<(String, String), Arc<Hub>>>,
    next_client: AtomicU64,
    limits: NotifyLimits,
    routing: Arc<Routing>,
    counters: Arc<Counters>,
    /// Where the connections live: apart from the threads that carry sessions.
    runtime: Handle,
    shutdown: CancellationToken,
}

impl Hubs {
    /// None yet. Their connections will live in the runtime that this is called in.
    pub fn new(
        limits: NotifyLimits,
        routing: Arc<Routing>,
        counters: Arc<Counters>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            known: Mutex::default(),
            next_client: AtomicU64::new(0),
            limits,
            routing,
            counters,
            runtime: Handle::current(),
            shutdown,
        })
    }

    /// Takes a client in that is about to listen. What comes for it rings `inbox`.
    pub fn join(self: &Arc<Self>, group: &Arc<Group>, encoding: &str, inbox: &Arc<Inbox>) -> Listening {
        let id = self.next_client.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::new(Mailbox::new(Arc::clone(inbox), self.limits.queued_max));
        let client = Client {
            mailbox: Arc::clone(&mailbox),
            group: Arc::clone(group),
        };
        let key = (group.database.clone(), encoding.to_owned());
        let mut known = self.known.lock();
        let hub = known
            .entry(key)
            .or_insert_with(|| self.open(&group.database, encoding));
        hub.join(id, client);
        Listening::new(Arc::clone(hub), id, mailbox, self.limits.channels_max)
    }

    fn open(self: &Arc<Self>, database: &str, encoding: &str) -> Arc<Hub> {
        let hub = Arc::new(Hub::new(database, encoding));
        let keeper = Keeper::new(Arc::clone(self), Arc::clone(&hub));
        let ended = self.shutdown.clone();
        self.runtime.spawn(ended.run_until_cancelled_owned(keeper.keep()));
        hub
    }

    /// Forgets a hub that has had no client for so long; false if it is to stay. Clients join under the same lock.
    fn forget_unused(&self, hub: &Hub, linger: Duration) -> bool {
        let mut known = self.known.lock();
        let unused = hub.is_unused_for(linger);
        if unused {
            known.remove(&(hub.database.clone(), hub.encoding.clone()));
        }
        unused
    }

    /// How much is listened to.
    pub fn usage(&self) -> Usage {
        let known = self.known.lock();
        let mut usage = Usage {
            connections: known.len(),
            ..Usage::default()
        };
        for hub in known.values() {
            let (clients, channels) = hub.usage();
            usage.clients += clients;
            usage.channels += channels;
        }
        usage
    }
}
