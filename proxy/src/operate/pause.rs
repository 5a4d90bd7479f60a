//! Holding new transactions, and the wait for those that are open.
//!
//! A session says what it has before it looks whether it is held; who pauses says so before it looks what sessions
//! have. With a full fence between the two on both sides one of them sees the other: what was not counted as open has
//! seen the pause.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::routing::Routing;
use crate::session::{Doing, Message, Presence, Registry};

/// Between two looks at what is open.
const LOOK: Duration = Duration::from_millis(5);

/// Which transactions are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those of one database.
    Database(String),
    /// Those that would go to the primary, reads among them; reads on standbys go on.
    Primary,
}

impl Scope {
    fn covers(&self, database: &str, as_primary: bool) -> bool {
        match self {
            Self::All => true,
            Self::Database(name) => name == database,
            Self::Primary => as_primary,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all databases"),
            Self::Database(name) => write!(f, "database \"{name}\""),
            Self::Primary => f.write_str("the primary"),
        }
    }
}

/// Transactions were open still when the time was over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{open} transactions are open still after {} ms", limit.as_millis())]
pub struct StillOpen {
    /// How many.
    pub open: usize,
    /// How long was waited.
    pub limit: Duration,
}

/// The pauses in force.
pub struct Pauses {
    /// How many there are: what sessions look at.
    in_force: AtomicUsize,
    scopes: Mutex<Vec<Arc<Scope>>>,
    routing: Arc<Routing>,
    registry: Arc<Registry>,
}

impl Pauses {
    pub(super) fn new(routing: Arc<Routing>, registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            in_force: AtomicUsize::new(0),
            scopes: Mutex::default(),
            routing,
            registry,
        })
    }

    /// Whether a transaction of this database has to wait, as one that goes to the primary or as one that does not.
    #[inline]
    pub fn hold(&self, database: &str, as_primary: bool) -> bool {
        self.in_force.load(Ordering::Relaxed) > 0 && self.scope_of(database, as_primary).is_some()
    }

    /// As [`Pauses::hold`], for a session that has just said that it has a backend: where it is not held, whoever
    /// pauses from now on waits for it.
    #[inline]
    pub fn hold_after_all(&self, database: &str, as_primary: bool) -> bool {
        fence(Ordering::SeqCst);
        self.hold(database, as_primary)
    }

    /// The pause that holds such a transaction, if one does.
    #[cold]
    pub fn scope_of(&self, database: &str, as_primary: bool) -> Option<Arc<Scope>> {
        let scopes = self.scopes.lock();
        scopes
            .iter()
            .find(|scope| scope.covers(database, as_primary))
            .cloned()
    }

    /// The scopes in force, the oldest first.
    pub fn scopes(&self) -> Vec<Arc<Scope>> {
        self.scopes.lock().clone()
    }

    /// Holds new transactions of `scope` from now on, and returns when none is open any more. They are held for as long
    /// as the value returned lives; dropping it, or this future, lets them go.
    ///
    /// A session that keeps its backend (a temporary table, a lock) counts as open only within a transaction.
    ///
    /// # Errors
    /// Transactions are open still after `limit`; then nothing is held any more.
    pub async fn pause(self: &Arc<Self>, scope: Scope, limit: Duration) -> Result<Paused, StillOpen> {
        let paused = self.begin(scope);
        let deadline = Instant::now() + limit;
        loop {
            let open = self.open(&paused.scope);
            if open == 0 {
                return Ok(paused);
            }
            if Instant::now() >= deadline {
                return Err(StillOpen { open, limit });
            }
            sleep(LOOK).await;
        }
    }

    /// A future that ends when there is a primary that is another than the one of this call. Cancel safe.
    pub(super) fn primary_moved(&self) -> impl Future<Output = ()> {
        let mut published = self.routing.subscribe();
        let before = self.routing.load().primary;
        async move {
            while published.changed().await.is_ok() {
                let now = self.routing.load().primary;
                if now.is_some() && now != before {
                    return;
                }
            }
        }
    }

    fn begin(self: &Arc<Self>, scope: Scope) -> Paused {
        let scope = Arc::new(scope);
        {
            let mut scopes = self.scopes.lock();
            scopes.push(Arc::clone(&scope));
            self.in_force.store(scopes.len(), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        // Whoever is in line for a backend, or keeps one, looks again.
        self.wake();
        Paused {
            pauses: Arc::clone(self),
            scope,
        }
    }

    /// Transactions of this scope that are open, or about to be.
    fn open(&self, scope: &Scope) -> usize {
        let mut open = 0;
        self.registry.each(|inbox| {
            let Presence { doing, backend, .. } = inbox.presence();
            let works = matches!(doing, Doing::Active | Doing::IdleInTransaction);
            if let (true, Some((_, as_primary)), Some(client)) = (works, backend, inbox.client()) {
                open += usize::from(scope.covers(&client.database, as_primary));
            }
        });
        open
    }

    fn wake(&self) {
        self.routing.wake();
        self.registry.ring_all(Message::TableChanged);
    }
}

impl fmt::Debug for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.scopes()).finish()
    }
}

/// A pause in force, for as long as it lives.
#[derive(Debug)]
pub struct Paused {
    pauses: Arc<Pauses>,
    scope: Arc<Scope>,
}

impl Paused {
    /// What it holds.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        {
            let mut scopes = self.pauses.scopes.lock();
            scopes.retain(|scope| !Arc::ptr_eq(scope, &self.scope));
            self.pauses.in_force.store(scopes.len(), Ordering::Relaxed);
        }
        self.pauses.wake();
    }
}
