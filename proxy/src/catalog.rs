//! What a database's functions do, read from the live cluster and kept up to date.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::classify::{
    CATALOG_QUERY, CatalogRow, ClassCache, FunctionCatalog, FunctionOverrides, KeySeed, Settings, classify,
};
use crate::config::Config;
use crate::routing::Routing;
use crate::session::StatementClass;

/// Between a failed reading and the next try.
const RETRY: Duration = Duration::from_secs(1);
/// Longest reading.
const READING_LIMIT: Duration = Duration::from_secs(10);
/// Shortest time between two readings, however many statements change the catalogue.
const READING_SPACING: Duration = Duration::from_millis(500);
/// Databases whose classes one thread keeps; beyond it the longest-kept is forgotten.
const CACHES_MAX: usize = 16;

/// The functions of one database as they were when last read.
#[derive(Debug)]
pub struct Catalog {
    functions: FunctionCatalog,
    /// 24 bits that tell one content from another.
    generation: u32,
    /// Which database's it is, for caches.
    handle: u32,
}

impl Catalog {
    fn new(functions: FunctionCatalog, handle: u32) -> Self {
        let generation = functions.generation();
        let folded = generation ^ generation >> 24 ^ generation >> 48;
        Self {
            generation: (folded & 0x00ff_ffff) as u32,
            functions,
            handle,
        }
    }

    /// The functions.
    pub fn functions(&self) -> &FunctionCatalog {
        &self.functions
    }

    /// Tells this content from another, in 24 bits.
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
#[derive(Debug)]
pub struct CatalogHandle {
    database: String,
    current: ArcSwap<Catalog>,
    stale: Notify,
}

impl CatalogHandle {
    /// The functions as last read.
    #[inline]
    pub fn load(&self) -> arc_swap::Guard<Arc<Catalog>> {
        self.current.load()
    }

    /// Has them read again soon: a statement may have changed them.
    pub fn invalidate(&self) {
        self.stale.notify_one();
    }
}

/// The catalogues of all databases that clients use.
pub struct Catalogs {
    handles: Mutex<HashMap<String, Arc<CatalogHandle>>>,
    next: AtomicU32,
    reader: Arc<Reader>,
    shutdown: CancellationToken,
}

struct Reader {
    config: Arc<Config>,
    routing: Arc<Routing>,
    overrides: FunctionOverrides,
}

impl Catalogs {
    /// None read yet.
    pub fn new(config: Arc<Config>, routing: Arc<Routing>, shutdown: CancellationToken) -> Self {
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
                overrides,
            }),
            shutdown,
        }
    }

    /// The catalogue of a database. Until it is read, nothing is known of any function, and every call goes to
    /// the primary.
    pub fn open(&self, database: &str) -> Arc<CatalogHandle> {
        let mut handles = self.handles.lock();
        if let Some(handle) = handles.get(database) {
            return Arc::clone(handle);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(CatalogHandle {
            database: database.to_owned(),
            current: ArcSwap::from_pointee(Catalog::new(FunctionCatalog::empty(), id)),
            stale: Notify::new(),
        });
        handles.insert(database.to_owned(), Arc::clone(&handle));
        let reader = Arc::clone(&self.reader);
        let shutdown = self.shutdown.clone();
        let read = Arc::clone(&handle);
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = reader.keep_up(&read, id) => {}
            }
        });
        handle
    }
}

impl Reader {
    async fn keep_up(&self, handle: &CatalogHandle, id: u32) {
        loop {
            let read = tokio::time::timeout(READING_LIMIT, self.read(&handle.database)).await;
            let pause = match read {
                Ok(Ok(functions)) => {
                    let generation = handle.load().functions.generation();
                    if functions.generation() != generation {
                        tracing::info!(database = %handle.database, functions = functions.functions(),
                            "read what the database's functions do");
                        handle.current.store(Arc::new(Catalog::new(functions, id)));
                    }
                    self.config.routing.catalog_refresh
                }
                Ok(Err(error)) => {
                    tracing::warn!(database = %handle.database, %error, "cannot read what the database's functions do");
                    RETRY
                }
                Err(_) => {
                    tracing::warn!(database = %handle.database, "reading what the database's functions do took too long");
                    RETRY
                }
            };
            tokio::time::sleep(READING_SPACING).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = handle.stale.notified() => {}
            }
        }
    }

    /// Reads from the primary, or from a standby while there is none.
    async fn read(&self, database: &str) -> Result<FunctionCatalog, String> {
        let node = {
            let table = self.routing.load();
            table
                .primary
                .or(table.readers.first().map(|&(node, _)| node))
                .ok_or("no node can be asked")?
        };
        let node = &self.config.nodes[usize::from(node.0)];
        let health = &self.config.health;
        let mut options = tokio_postgres::Config::new();
        options
            .host(&node.host)
            .port(node.port)
            .user(&health.user)
            .dbname(database);
        options
            .application_name("halyard_catalog")
            .connect_timeout(health.connect_timeout);
        if let Some(password) = &health.password {
            options.password(password.reveal());
        }
        let (client, connection) = options
            .connect(tokio_postgres::NoTls)
            .await
            .map_err(|error| describe(&error))?;
        let connection = tokio::spawn(connection);
        client
            .batch_execute("SET jit = off; SET client_encoding = UTF8")
            .await
            .map_err(|error| describe(&error))?;
        let rows = client
            .simple_query(CATALOG_QUERY)
            .await
            .map_err(|error| describe(&error));
        drop(client);
        connection.abort();
        let rows = rows?;
        let rows = rows.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                let column = |at: usize| row.get(at).unwrap_or_default().as_bytes();
                Some(CatalogRow {
                    kind: column(0).first().copied().unwrap_or_default(),
                    name: column(1),
                    detail: column(2),
                    system: column(3) == b"t",
                })
            }
            _ => None,
        });
        FunctionCatalog::from_rows(rows, &self.overrides).map_err(|error| error.to_string())
    }
}

fn describe(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |server| server.message().to_owned())
}
