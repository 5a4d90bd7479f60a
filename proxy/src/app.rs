//! The process: everything that is shared, built once from a configuration, and its beginning and end.

mod control;
mod history;
mod known;
mod outlook;
mod workers;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use halyard_health::{ClusterView, NodeId, Signals};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::auth::Credential;
use crate::catalog::Catalogs;
use crate::config::{self, Config, Reads, Sequences};
use crate::consistency::Consistency;
use crate::error::{Report, SqlState};
use crate::held::{Amount, Exceeded, Held, HeldPlace, Hold, exceeded};
use crate::login::{LoginLimits, Target};
use crate::metrics::{self, Counter, Counters};
use crate::notify::{Hubs, NotifyLimits};
use crate::operate::{ControlSocket, Operations};
use crate::pool::{Group, Groups, Node, PoolLimits, Terms};
use crate::relay::RelayLimits;
use crate::routing::{Load, NodePolicy, Policy, Routing, RoutingTable};
use crate::session::{Message, Registered, Registry, StatementRegistry};
use crate::startup::{Gate, GateError, ProtocolVersion};
use crate::statistics::Statistics;
use crate::tls::{TlsError, TlsPolicy};
use crate::{http, listener, worker};
use known::Known;

pub use history::{Event, History};
pub(crate) use workers::{NextLeg, Place, Workers};

/// Longest time that a cancel request may take.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
/// How long sessions that were told to leave at once may take.
const TERMINATE_LIMIT: Duration = Duration::from_secs(2);

/// Why the proxy does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Users or certificates for clients.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Certificates for nodes.
    #[error("TLS to nodes: {0}")]
    Tls(#[from] TlsError),
    /// A port, a thread or a signal handler could not be had.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The process has a metrics recorder already.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// Everything that sessions share.
pub struct App {
    /// The configuration.
    pub config: Arc<Config>,
    /// The nodes, in the configuration's order.
    pub nodes: Vec<Arc<Node>>,
    /// Where requests go.
    pub routing: Arc<Routing>,
    /// All sessions.
    pub registry: Arc<Registry>,
    /// All prepared statements.
    pub statements: StatementRegistry,
    /// Who listens for the clients.
    pub hubs: Arc<Hubs>,
    /// What operators have asked for.
    pub operations: Operations,
    /// Where to tell what was seen of the nodes.
    pub signals: Signals,
    /// What reads have to see.
    pub consistency: Consistency,
    /// What has happened to the cluster.
    pub history: History,
    /// What sessions do over time.
    pub statistics: Statistics,
    /// Limits of the relay.
    pub relay_limits: RelayLimits,
    /// Limits of a cancel request.
    pub cancel_limits: LoginLimits,
    gate: Gate,
    pub(crate) groups: Groups,
    pub(crate) catalogs: Catalogs,
    metrics: metrics::Registry,
    held: Arc<Held>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) unauthenticated: Arc<Semaphore>,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    /// Held by whoever writes `general.state_file`.
    remembering: Mutex<()>,
    draining: AtomicBool,
    started: Instant,
    started_at: SystemTime,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("App")
    }
}

/// A client's places among all clients and among those that have not authenticated.
pub struct Admitted {
    /// Held for as long as the client is connected.
    pub place: OwnedSemaphorePermit,
    /// Held until it has authenticated.
    pub unauthenticated: OwnedSemaphorePermit,
}

impl App {
    /// Who may come in.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// When the process began: second 0 of the pools' coarse clock.
    pub fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// Registers a session, with the key by which it is cancelled. One that was logging in when the proxy was told to end
    /// hears of it now.
    ///
    /// `None` if no random numbers could be had.
    pub fn register(&self, protocol: ProtocolVersion) -> Option<(Registered, Vec<u8>)> {
        let (registered, key) = self.registry.register(protocol)?;
        // Whoever drains says so first and rings afterwards: either this is seen or that was heard.
        if self.draining.load(Ordering::SeqCst) {
            registered.inbox.ring(Message::Drain);
        }
        Some((registered, key))
    }

    /// Counters of the thread that asks.
    pub fn counters(&self) -> Arc<Counters> {
        self.metrics.for_worker(worker::reactor())
    }

    /// Lets a new connection in if there is room.
    ///
    /// # Errors
    /// 53300, as PostgreSQL says it.
    pub fn admit(&self) -> Result<Admitted, Report> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Report::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already").with_detail(
                format!(
                    "{} clients are connected (limits.client_connections_max).",
                    self.config.limits.client_connections_max
                ),
            )
        })?;
        let unauthenticated = Arc::clone(&self.unauthenticated)
            .try_acquire_owned()
            .map_err(|_| {
                Report::fatal(
                    SqlState::TOO_MANY_CONNECTIONS,
                    "sorry, too many clients are logging in",
                )
                .with_detail(format!(
                    "{} clients have not authenticated yet (limits.unauthenticated_max).",
                    self.config.limits.unauthenticated_max
                ))
            })?;
        Ok(Admitted {
            place,
            unauthenticated,
        })
    }

    /// The pools of a database and user, for a client that has authenticated.
    ///
    /// # Errors
    /// FATAL 53300 when there are too many of them.
    pub fn open_group(
        &self,
        database: &str,
        user: &str,
        credential: Credential,
    ) -> Result<Arc<Group>, Report> {
        let own = self.config.auth.users.iter().find(|known| known.name == user);
        let pool = &self.config.pool;
        let limits = PoolLimits {
            size: own.and_then(|user| user.pool_size).unwrap_or(pool.size),
            min_size: pool.min_size,
            waiters_max: pool.waiters_max,
            connects_max: pool.connects_max,
            login: LoginLimits::new(&self.config),
            lifetime: pool.lifetime,
            idle_timeout: pool.idle_timeout,
            prepared_statements_max: pool.prepared_statements_max,
            reserves: pool.sequences == Sequences::Keep,
        };
        let terms = Terms {
            mode: own.and_then(|user| user.pool_mode).unwrap_or(pool.mode),
            policy: self.config.route_policy(database, user),
        };
        self.groups.open(database, user, credential, terms, &limits, || {
            self.catalogs.open(database)
        })
    }

    /// Replaces connections to the nodes, of one database or of all: idle ones are closed now, those in use when they
    /// come back. How many pools that concerns.
    pub fn reconnect(&self, database: Option<&str>) -> usize {
        let mut pools = 0;
        for group in self.groups.all() {
            if database.is_none_or(|database| database == group.database) {
                for pool in group.pools() {
                    pool.renew();
                    pools += 1;
                }
            }
        }
        pools
    }

    /// How much is held.
    pub fn held(&self) -> Amount {
        self.held.amount()
    }

    /// Holds a statement, which is counted by what it waits for.
    ///
    /// # Errors
    /// 57P03 when there are too many, or they keep too many bytes, or too much of it is of this database and user while others
    /// may come.
    pub fn hold(
        self: &Arc<Self>,
        group: &Arc<Group>,
        bytes: usize,
        held_as: Counter,
    ) -> Result<Hold, Report> {
        let place = HeldPlace::take(&self.held, &group.held, bytes);
        let max = Amount {
            clients: self.config.failover.held_clients_max,
            bytes: self.config.failover.held_bytes_max,
        };
        let others = self.groups.held_by_others(group);
        let Some(limit) = exceeded(max, self.held.amount(), group.held.amount(), &others) else {
            self.counters().add(held_as, 1);
            return Ok(Hold::begin(place));
        };
        let (limit, setting, counter) = match limit {
            Exceeded::Clients => (
                format!("{} clients", max.clients),
                "failover.held_clients_max",
                Counter::HeldTooManyClients,
            ),
            Exceeded::Bytes => (
                format!("{} bytes", max.bytes),
                "failover.held_bytes_max",
                Counter::HeldTooManyBytes,
            ),
        };
        self.counters().add(counter, 1);
        Err(Report::error(
            SqlState::CANNOT_CONNECT_NOW,
            "no node can take the statement now, and too many are held",
        )
        .with_detail(format!(
            "The limit is {limit}, of which every user has a share ({setting})."
        )))
    }

    fn build(config: Config, shutdown: &CancellationToken) -> Result<Arc<Self>, ServeError> {
        let config = Arc::new(config);
        let gate = Gate::new(&config)?;
        let tls = TlsPolicy::new(&config.server_tls)?;
        let metrics = metrics::Registry::new(config.general.workers + 1);
        let known = match &config.general.state_file {
            Some(path) => Known::load(path)?,
            None => None,
        };
        let health = control::start_health(&config, known, &tls, shutdown)?;
        let nodes: Vec<_> = (0..)
            .zip(config.nodes.iter().zip(health.coverage))
            .map(|(id, (node, coverage))| {
                Arc::new(Node {
                    id: NodeId(id),
                    name: node.name.clone(),
                    target: Target {
                        name: node.name.clone(),
                        host: node.host.clone(),
                        port: node.port,
                        tls: tls.clone(),
                    },
                    load: Load::default(),
                    coverage,
                    generation: 0.into(),
                    counters: metrics.for_worker(0),
                })
            })
            .collect();
        let registry = Arc::<Registry>::default();
        let table = RoutingTable::derive(&health.view.borrow(), &policy(&config, None));
        let routing = Arc::new(Routing::new(table));
        let clock = Arc::new(AtomicU32::new(0));
        let notify_limits = NotifyLimits {
            queued_max: config.limits.notifications_queued_max,
            channels_max: config.limits.channels_max,
        };
        Ok(Arc::new(Self {
            groups: Groups::new(nodes.clone(), health.signals.clone(), clock),
            catalogs: Catalogs::new(Arc::clone(&config), Arc::clone(&routing), tls, shutdown.clone()),
            hubs: Hubs::new(
                notify_limits,
                Arc::clone(&routing),
                metrics.for_worker(0),
                shutdown.clone(),
            ),
            operations: Operations::new(nodes.len(), Arc::clone(&routing), Arc::clone(&registry)),
            registry,
            statements: StatementRegistry::default(),
            relay_limits: RelayLimits {
                statement_size_max: config.routing.statement_size_max,
                rerun_size_max: config.failover.rerun_size_max,
                resolve_commits: config.failover.resolve_commits,
                pipeline_max: config.limits.pipeline_max,
                client_statements_max: config.pool.client_prepared_statements_max,
            },
            cancel_limits: LoginLimits {
                timeout: CANCEL_LIMIT,
                limits: config.limits.clone(),
            },
            metrics,
            held: Arc::default(),
            places: Arc::new(Semaphore::new(config.limits.client_connections_max)),
            unauthenticated: Arc::new(Semaphore::new(config.limits.unauthenticated_max)),
            view: health.view,
            remembering: Mutex::new(()),
            signals: health.signals,
            consistency: Consistency::new(health.fences, health.samples),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            started_at: SystemTime::now(),
            history: History::default(),
            statistics: Statistics::default(),
            gate,
            nodes,
            routing,
            config,
        }))
    }
}

/// What the operator said of the nodes: by the configuration, and since.
fn policy(config: &Config, operations: Option<&Operations>) -> Policy {
    let is_drained = |node| operations.is_some_and(|operations| operations.is_drained(NodeId(node)));
    let of_node = |(id, node): (u16, &config::Node)| NodePolicy {
        weight: node.weight,
        reads: if is_drained(id) { Reads::Never } else { node.reads },
        near: config.general.zone.is_none() || config.general.zone == node.zone,
    };
    Policy {
        nodes: (0..).zip(&config.nodes).map(of_node).collect(),
        read_fallback: config.routing.read_fallback,
    }
}

/// Runs the proxy until it is told to end: SIGTERM and SIGINT drain, a second one ends it at once.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn serve(config: Config, _source: PathBuf) -> Result<(), ServeError> {
    let prometheus = config.http.is_some().then(metrics::install).transpose()?;
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    control.block_on(async {
        let shutdown = CancellationToken::new();
        let mut signals = control::Termination::new()?;
        let app = App::build(config, &shutdown)?;
        let workers = Workers::start(&app.config.general, app.config.routing.class_cache_size)?;
        let listeners = listener::bind_all(&app.config.listeners).await?;
        if let (Some(address), Some(prometheus)) = (app.config.http, prometheus) {
            let http = http::bind(address).await?;
            tracing::info!(%address, "answering /metrics, /livez, /readyz and /status");
            tokio::spawn(http::serve(
                http,
                Arc::new(outlook::AppOutlook(Arc::clone(&app))),
                prometheus,
                shutdown.clone(),
            ));
        }
        if let Some(path) = &app.config.general.control_socket {
            let socket = ControlSocket::bind(path)?;
            let pauses = Arc::clone(&app.operations.pauses);
            tokio::spawn(socket.serve(pauses, shutdown.clone()));
        }
        tokio::spawn(control::follow(Arc::clone(&app), shutdown.clone()));
        tokio::spawn(control::balance(Arc::clone(&app), shutdown.clone()));
        tokio::spawn(control::keep_house(
            Arc::clone(&app),
            workers.clone(),
            shutdown.clone(),
        ));
        let accepting = CancellationToken::new();
        for listener in listeners {
            tracing::info!(address = %listener, role = ?listener.role(), "listening for clients");
            tokio::spawn(listener.serve(Arc::clone(&app), workers.clone(), accepting.clone()));
        }
        signals.recv().await;
        drain(&app, &mut signals, &accepting).await;
        shutdown.cancel();
        workers.stop();
        tracing::info!("ended");
        Ok(())
    })
}

/// Lets sessions finish their transactions, then ends what is left.
async fn drain(app: &App, signals: &mut control::Termination, accepting: &CancellationToken) {
    let limit = app.config.general.drain_timeout;
    tracing::info!(
        sessions = app.registry.len(),
        limit_seconds = limit.as_secs_f64(),
        "draining"
    );
    // Before anybody is told: see `App::register`.
    app.draining.store(true, Ordering::SeqCst);
    accepting.cancel();
    app.registry.ring_all(Message::Drain);
    tokio::select! {
        () = all_gone(app) => {}
        () = tokio::time::sleep(limit) => tracing::warn!(sessions = app.registry.len(), "the time to drain is over"),
        () = signals.recv() => tracing::warn!(sessions = app.registry.len(), "told twice to end"),
    }
    app.registry.ring_all(Message::Terminate);
    let _ = tokio::time::timeout(TERMINATE_LIMIT, all_gone(app)).await;
}

async fn all_gone(app: &App) {
    /// Between two looks.
    const LOOK: Duration = Duration::from_millis(20);
    while !app.registry.is_empty() {
        tokio::time::sleep(LOOK).await;
    }
}
