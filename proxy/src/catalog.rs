//! What a database's functions do, read from the live cluster and kept up to date.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::classify::{
    BUILTINS, CatalogPart, CatalogRow, ClassCache, FunctionCatalog, FunctionOverrides, KeySeed, Settings,
    classify,
};
use crate::config::{Config, Node};
use crate::routing::Routing;
use crate::session::{CurrentEpoch, StatementClass};
use crate::tls::TlsPolicy;

/// Between a failed reading and the next try, unless the server said no: then it is asked again at the next refresh.
const RETRY: Duration = Duration::from_secs(1);
/// Longest reading.
const READING_LIMIT: Duration = Duration::from_secs(10);
/// Shortest time between two readings, however many statements change the catalogue.
const READING_SPACING: Duration = Duration::from_millis(500);
/// How long the first clients of a database wait until its functions are read, and between two looks whether they are.
const FIRST_LIMIT: Duration = Duration::from_secs(1);
const FIRST_LOOK: Duration = Duration::from_millis(5);
/// Databases whose classes one thread keeps; beyond it the longest-kept is forgotten.
const CACHES_MAX: usize = 16;
/// Bits of [`Catalog::generation`].
pub const GENERATION_BITS: u32 = 23;
/// Servers whose built-in objects are kept; in a failover to another minor release there are two.
const BUILTINS_KEPT: usize = 4;

/// The functions of one database as they were when last read.
#[derive(Debug)]
pub struct Catalog {
    functions: FunctionCatalog,
    /// [`GENERATION_BITS`] that tell one content from another.
    generation: u32,
    /// Which database's it is, for caches.
    handle: u32,
}

impl Catalog {
    fn new(functions: FunctionCatalog, handle: u32) -> Self {
        let generation = functions.generation();
        let folded = generation ^ generation >> GENERATION_BITS ^ generation >> (2 * GENERATION_BITS);
        Self {
            generation: (folded & ((1 << GENERATION_BITS) - 1)) as u32,
            functions,
            handle,
        }
    }

    /// The functions.
    pub fn functions(&self) -> &FunctionCatalog {
        &self.functions
    }

    /// Tells this content from another, in [`GENERATION_BITS`].
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The class of a text, remembered or found.
    #[inline]
    pub fn class_of(&self, text: &[u8], reading: &Settings, caches: &mut ClassCaches) -> StatementClass {
        StatementClass::of(
            &caches
                .cache(self.handle)
                .classify(text, reading, &self.functions)
                .class,
        )
    }

    /// The class of a text, found.
    pub fn class_afresh(&self, text: &[u8], reading: &Settings) -> StatementClass {
        StatementClass::of(&classify(text, reading, &self.functions))
    }

    /// A standby refused this text as a write: this thread takes it for one from now on.
    pub fn learn_write(&self, text: &[u8], reading: &Settings, caches: &mut ClassCaches) {
        let cache = caches.cache(self.handle);
        if let Some(key) = cache.classify(text, reading, &self.functions).key {
            let class = classify(text, reading, &self.functions);
            cache.learn_write(key, class);
        }
    }
}

/// One thread's remembered classes, a cache for each database.
pub struct ClassCaches {
    seed: KeySeed,
    capacity: usize,
    caches: Vec<(u32, ClassCache)>,
}

impl Default for ClassCaches {
    fn default() -> Self {
        Self {
            seed: KeySeed::random(),
            capacity: ClassCache::DEFAULT_CAPACITY,
            caches: Vec::new(),
        }
    }
}

impl ClassCaches {
    /// Sets how many statements each cache made from now on remembers.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    #[inline]
    fn cache(&mut self, handle: u32) -> &mut ClassCache {
        let known = self.caches.iter().position(|(known, _)| *known == handle);
        let place = known.unwrap_or_else(|| {
            if self.caches.len() == CACHES_MAX {
                self.caches.remove(0);
            }
            self.caches
                .push((handle, ClassCache::new(self.capacity, self.seed)));
            self.caches.len() - 1
        });
        &mut self.caches[place].1
    }
}

/// A database's functions, replaced whole when they are read again.
///
/// They are kept up to date for as long as somebody holds this.
#[derive(Debug)]
pub struct CatalogHandle {
    current: ArcSwap<Catalog>,
    epoch: CurrentEpoch,
    /// Changes of definitions known of so far, and one.
    definitions: AtomicU64,
    /// What that was when the reading of the current catalogue began; 0 if there was none.
    read: AtomicU64,
    /// Whether a reading has failed: then nobody waits for the first that succeeds.
    failed: AtomicBool,
    stale: Arc<Notify>,
    _reading: DropGuard,
}

impl CatalogHandle {
    /// The functions as last read.
    #[inline]
    pub fn load(&self) -> arc_swap::Guard<Arc<Catalog>> {
        self.current.load()
    }

    /// Which of the database's objects names stand for: it goes on when they change.
    #[inline]
    pub fn epoch(&self) -> &CurrentEpoch {
        &self.epoch
    }

    /// Whether definitions have changed since the functions were read, or they never were: then nobody knows what runs
    /// unseen.
    #[inline]
    pub fn is_behind(&self) -> bool {
        self.read.load(Ordering::Acquire) != self.definitions.load(Ordering::Acquire)
    }

    /// Waits until the functions were read once, as long as that may take a client that connects. Cancel safe.
    pub async fn first_read(&self) {
        let known = async {
            while self.read.load(Ordering::Acquire) == 0 && !self.failed.load(Ordering::Acquire) {
                tokio::time::sleep(FIRST_LOOK).await;
            }
        };
        // Without an answer nothing is known of them, which is taken into account.
        let _ = tokio::time::timeout(FIRST_LIMIT, known).await;
    }

    /// A statement may have changed objects of the database: the functions are read again soon, and what is prepared
    /// from now on is prepared afresh.
    pub fn invalidate(&self) {
        self.epoch.advance();
        self.definitions.fetch_add(1, Ordering::Release);
        self.stale.notify_one();
    }
}

/// The catalogues of all databases that clients use.
pub struct Catalogs {
    handles: Mutex<HashMap<String, Weak<CatalogHandle>>>,
    next: AtomicU32,
    reader: Arc<Reader>,
    shutdown: CancellationToken,
}

impl Catalogs {
    /// None read yet.
    pub fn new(
        config: Arc<Config>,
        routing: Arc<Routing>,
        tls: TlsPolicy,
        shutdown: CancellationToken,
    ) -> Self {
        let overrides = FunctionOverrides {
            allow: config.routing.functions_allowed.clone(),
            deny: config.routing.functions_denied.clone(),
        };
        Self {
            handles: Mutex::default(),
            next: AtomicU32::new(0),
            reader: Arc::new(Reader {
                config,
                routing,
                tls,
                overrides,
                builtins: Mutex::default(),
            }),
            shutdown,
        }
    }

    /// The catalogue of a database. Until it is read, nothing is known of any function, and every call goes to
    /// the primary. It is read again and again until the last holder lets go of it.
    pub fn open(&self, database: &str) -> Arc<CatalogHandle> {
        let mut handles = self.handles.lock();
        if let Some(handle) = handles.get(database).and_then(Weak::upgrade) {
            return handle;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let ended = self.shutdown.child_token();
        let stale = Arc::new(Notify::new());
        let handle = Arc::new(CatalogHandle {
            current: ArcSwap::from_pointee(Catalog::new(FunctionCatalog::empty(), id)),
            epoch: CurrentEpoch::default(),
            definitions: AtomicU64::new(1),
            read: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            stale: Arc::clone(&stale),
            _reading: ended.clone().drop_guard(),
        });
        handles.retain(|_, handle| handle.strong_count() > 0);
        handles.insert(database.to_owned(), Arc::downgrade(&handle));
        let keeper = Keeper {
            reader: Arc::clone(&self.reader),
            database: database.to_owned(),
            id,
            handle: Arc::downgrade(&handle),
            stale,
        };
        tokio::spawn(ended.run_until_cancelled_owned(keeper.keep_up()));
        handle
    }
}

/// The task that keeps one database's catalogue up to date.
struct Keeper {
    reader: Arc<Reader>,
    database: String,
    id: u32,
    handle: Weak<CatalogHandle>,
    stale: Arc<Notify>,
}

impl Keeper {
    /// Reads until nobody holds the catalogue. Cancel safe: dropping it closes the connection.
    async fn keep_up(self) {
        let mut failure: Option<String> = None;
        loop {
            let Some(definitions) = self.known_definitions() else {
                return;
            };
            let read = tokio::time::timeout(READING_LIMIT, self.reader.read(&self.database));
            let pause = match read.await.unwrap_or(Err(ReadError::TooLong)) {
                Ok(functions) => {
                    let Some(handle) = self.handle.upgrade() else {
                        return;
                    };
                    self.store(&handle, functions, definitions, failure.take().is_some());
                    self.reader.config.routing.catalog_refresh
                }
                Err(error) => {
                    if let Some(handle) = self.handle.upgrade() {
                        handle.failed.store(true, Ordering::Release);
                    }
                    let reason = error.to_string();
                    if failure.as_ref() != Some(&reason) {
                        tracing::warn!(database = %self.database, error = %reason,
                            "cannot read what the database's functions do");
                        failure = Some(reason);
                    }
                    error.pause(self.reader.config.routing.catalog_refresh)
                }
            };
            tokio::time::sleep(READING_SPACING).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stale.notified() => {}
            }
        }
    }

    /// How many changes of definitions are known of; `None` when nobody holds the catalogue any more.
    fn known_definitions(&self) -> Option<u64> {
        Some(self.handle.upgrade()?.definitions.load(Ordering::Acquire))
    }

    /// `definitions`: what [`Keeper::known_definitions`] was before the reading.
    fn store(&self, handle: &CatalogHandle, functions: FunctionCatalog, definitions: u64, recovered: bool) {
        let changed = functions.generation() != handle.load().functions.generation();
        if changed || recovered {
            tracing::info!(database = %self.database, functions = functions.functions(),
                "read what the database's functions do");
        }
        if changed {
            handle.current.store(Arc::new(Catalog::new(functions, self.id)));
        }
        handle.read.store(definitions, Ordering::Release);
    }
}

/// Why a catalogue was not read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("no node can be asked")]
    NoNode,
    #[error("it took longer than {} s", READING_LIMIT.as_secs())]
    TooLong,
    /// The node, or the way to it.
    #[error("{}", in_its_own_words(.0))]
    Node(#[from] tokio_postgres::Error),
    /// The answer is not what the question asks for.
    #[error("{0}")]
    Rows(String),
}

impl ReadError {
    /// How long to wait before the next try. Where the server itself said no to this database or this role, asking
    /// again soon changes nothing.
    fn pause(&self, refresh: Duration) -> Duration {
        match self {
            Self::Node(error) if error.code().is_some_and(is_final) => refresh,
            _ => RETRY,
        }
    }
}

fn is_final(state: &SqlState) -> bool {
    state.code().starts_with("28")
        || *state == SqlState::INVALID_CATALOG_NAME
        // No CONNECT privilege.
        || *state == SqlState::INSUFFICIENT_PRIVILEGE
        // A database that takes no connections, such as template0.
        || *state == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
}

fn in_its_own_words(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(server), _) => format!("{} ({})", server.message(), server.code().code()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

/// What every reading needs.
struct Reader {
    config: Arc<Config>,
    routing: Arc<Routing>,
    tls: TlsPolicy,
    overrides: FunctionOverrides,
    /// PostgreSQL's own objects, by what tells them from another server's; the latest last.
    builtins: Mutex<Vec<(String, Arc<Rows>)>>,
}

/// Rows of a part of a catalogue: `kind, name, detail, system`.
type Rows = Vec<[Option<String>; 4]>;

impl Reader {
    /// Reads from the primary, or from a standby while there is none. Cancel safe: dropping it closes the
    /// connection.
    async fn read(&self, database: &str) -> Result<FunctionCatalog, ReadError> {
        let node = {
            let table = self.routing.load();
            table
                .primary
                .or(table.readers.first().map(|&(node, _)| node))
                .ok_or(ReadError::NoNode)?
        };
        let node = &self.config.nodes[usize::from(node.0)];
        let options = self.options(node, database);
        let (client, connection) = options.connect(self.tls.clone()).await?;
        // The connection ends with the reading, however that ends: a frozen node leaves no task behind.
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        client
            .batch_execute("SET jit = off; SET client_encoding = UTF8")
            .await?;
        let objects = ask(&client, CatalogPart::Objects).await?;
        let builtins = self.builtins(&client, &objects).await?;
        FunctionCatalog::from_rows(builtins.iter().chain(&objects).map(as_row), &self.overrides)
            .map_err(|error| ReadError::Rows(error.to_string()))
    }

    /// PostgreSQL's own objects. They are four fifths of the work, and a snapshot that is held for so long shows: VACUUM
    /// leaves rows alone that are younger. So they are read once for each server.
    async fn builtins(&self, client: &Client, objects: &Rows) -> Result<Arc<Rows>, ReadError> {
        let told = objects.iter().find(|row| as_row(row).kind == BUILTINS);
        let server = told.and_then(|row| row[2].clone()).unwrap_or_default();
        let known = |builtins: &[(String, Arc<Rows>)]| {
            let known = builtins.iter().find(|(known, _)| *known == server);
            known.map(|(_, rows)| Arc::clone(rows))
        };
        if let Some(rows) = known(&self.builtins.lock()) {
            return Ok(rows);
        }
        let rows = Arc::new(ask(client, CatalogPart::Builtins).await?);
        let mut builtins = self.builtins.lock();
        if builtins.len() == BUILTINS_KEPT {
            builtins.remove(0);
        }
        builtins.push((server, Arc::clone(&rows)));
        Ok(rows)
    }

    fn options(&self, node: &Node, database: &str) -> tokio_postgres::Config {
        let health = &self.config.health;
        // PostgreSQL has no TLS on Unix sockets.
        let is_unix = node.host.starts_with('/');
        let mut options = tokio_postgres::Config::new();
        options
            .host(&node.host)
            .port(node.port)
            .user(&health.user)
            .dbname(database);
        options
            .application_name("halyard_catalog")
            .connect_timeout(health.connect_timeout);
        options.ssl_mode(if is_unix {
            SslMode::Disable
        } else {
            self.tls.ssl_mode()
        });
        if let Some(password) = &health.password {
            options.password(password.reveal());
        }
        options
    }
}

/// Reads one part.
async fn ask(client: &Client, part: CatalogPart) -> Result<Rows, tokio_postgres::Error> {
    let answer = client.simple_query(&part.query()).await?;
    let rows = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(std::array::from_fn(|at| row.get(at).map(str::to_owned))),
        _ => None,
    });
    Ok(rows.collect())
}

fn as_row(row: &[Option<String>; 4]) -> CatalogRow<'_> {
    let [kind, name, detail, system] = row
        .each_ref()
        .map(|column| column.as_deref().unwrap_or_default().as_bytes());
    CatalogRow {
        kind: kind.first().copied().unwrap_or_default(),
        name,
        detail,
        system: system == b"t",
    }
}

#[cfg(test)]
mod tests;
