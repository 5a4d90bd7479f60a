//! The configuration as meant: checked, with defaults filled in and units resolved.
//!
//! ```text
//! file ──▶ raw (TOML with places) ──▶ read (settings, ranges, defaults) ──▶ check (settings among each other) ──▶ Config
//!              └──────────────────────────┴── errors (every finding, with its place) ──┘
//! ```
//! What the file says lives in `raw`; nothing outside this module sees it. The reference is `config.toml` at the top
//! of the repository: every setting, its default, its unit and its reason; a test holds it and this module together.

mod check;
mod errors;
mod outside;
mod policy;
mod raw;
mod read;
mod secret;
mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use errors::{ConfigErrors, Finding, Gravity, Place};
pub use policy::{Database, RoutePolicy, RouteSetting};
pub use secret::Secret;

/// Largest configuration file, in bytes.
const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// A configuration that can be used, with what somebody should look at all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What the file means.
    pub config: Config,
    /// In the file's order; none of them is an error.
    pub warnings: Vec<Finding>,
}

/// Reads and checks the file at `path`, and the password files and environment variables that it names.
///
/// # Errors
/// Everything that is wrong, each with its place in the file; no secret is repeated.
pub fn load(path: &Path) -> Result<Checked, ConfigErrors> {
    let text = secret::read_limited(path, CONFIG_SIZE_MAX).map_err(|message| ConfigErrors {
        file: path.to_owned(),
        findings: vec![Finding {
            gravity: Gravity::Error,
            place: None,
            message,
        }],
    })?;
    parse(&text, path, &|name| std::env::var(name).ok())
}

/// Checks `text`, the content of the file at `path`: files that it names are looked for beside that, and how far
/// `path` is open to others is looked at where secrets stand in it. `environment` answers `password_env`.
///
/// # Errors
/// Everything that is wrong, each with its place in the text; no secret is repeated.
pub fn parse(
    text: &str,
    path: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Checked, ConfigErrors> {
    let (config, gathered) = read::read(text, path, environment);
    let findings = gathered.findings.into_sorted();
    if findings.iter().any(|finding| finding.gravity == Gravity::Error) {
        return Err(ConfigErrors {
            file: path.to_owned(),
            findings,
        });
    }
    Ok(Checked {
        config,
        warnings: findings,
    })
}

/// Everything `halyard serve` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Process-wide settings.
    pub general: General,
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// Where operators look; none switches HTTP off.
    pub http: Option<SocketAddr>,
    /// The cluster's nodes, in the file's order; at least one.
    pub nodes: Vec<Node>,
    /// How the nodes are watched.
    pub health: Health,
    /// Who promotes.
    pub engine: Engine,
    /// Connections to the nodes.
    pub pool: Pool,
    /// Where statements go.
    pub routing: Routing,
    /// Databases for which that differs.
    pub databases: Vec<Database>,
    /// What happens while there is no primary.
    pub failover: Failover,
    /// Bounds on clients and memory.
    pub limits: Limits,
    /// Who may connect, and how they prove who they are.
    pub auth: Auth,
    /// Who may use the admin console.
    pub admin: Admin,
    /// TLS to clients; none refuses SSLRequest with `N`.
    pub client_tls: Option<ClientTls>,
    /// TLS to nodes.
    pub server_tls: ServerTls,
}

/// Process-wide settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct General {
    /// Threads that carry sessions; the file's 0 means one per core.
    pub workers: usize,
    /// How those threads are organised.
    pub runtime: Runtime,
    /// Log lines as text or JSON.
    pub log_format: LogFormat,
    /// `tracing` filter, such as `info` or `halyard=debug`.
    pub log_level: String,
    /// How long SIGTERM waits for open transactions.
    pub drain_timeout: Duration,
    /// The Unix socket by which `halyard cluster switchover` has transactions held.
    pub control_socket: Option<PathBuf>,
    /// Where the cluster's identity and timeline are remembered from one run to the next.
    pub state_file: Option<PathBuf>,
    /// Where this Halyard stands.
    pub zone: Option<String>,
}

/// The form of the data plane's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// One current-thread runtime per core; a session stays on the core it was placed on.
    PerCore,
    /// One work-stealing runtime over all cores.
    MultiThread,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// One place where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// TCP address or Unix socket path.
    pub address: ListenAddress,
    /// What the port offers.
    pub role: ListenerRole,
}

/// Where a listener is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The socket's full path, such as `/run/halyard/.s.PGSQL.6432`.
    Unix(PathBuf),
}

/// What a port offers to those who connect to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerRole {
    /// Reads and writes are told apart.
    Auto,
    /// Everything goes to the primary.
    Primary,
    /// Everything goes to standbys.
    Replica,
}

/// One PostgreSQL node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique name, as it appears in metrics and errors.
    pub name: String,
    /// Host name, IP address, or the absolute directory of a Unix socket.
    pub host: String,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
    /// Relative share of reads, 0 to 1000; 0 takes none.
    pub weight: u16,
    /// Where it stands: reads stay in Halyard's own zone while a standby there qualifies.
    pub zone: Option<String>,
    /// Whether it serves reads first, only when no preferred node does, or never, while it is a standby.
    pub reads: Reads,
}

/// When a standby serves reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reads {
    /// Always.
    Preferred,
    /// Only while no preferred standby qualifies.
    Fallback,
    /// Never.
    Never,
}

/// How the nodes are watched. See `halyard_health::Config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The monitoring role.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// The database that probes connect to.
    pub database: String,
    /// Between two probes of a node.
    pub interval: Duration,
    /// Until a silent probe counts as failed.
    pub timeout: Duration,
    /// Until an unfinished probe connection counts as failed.
    pub connect_timeout: Duration,
    /// Slow or failed answers in a row until a node leaves. A refused connection counts at once.
    pub failures_to_eject: u32,
    /// Good answers in a row until it is back.
    pub successes_to_readmit: u32,
    /// Age at which an observation is no evidence any more.
    pub stale_after: Duration,
    /// Least time between two questions for a node's position while a session waits for the standbys to have its write.
    pub sample_interval: Duration,
    /// The system identifier that every node must have; none is the one that most nodes show first.
    pub system_identifier: Option<u64>,
}

/// The authority on who is primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Nobody but the nodes themselves.
    Observed,
    /// A pg_auto_failover monitor.
    PgAutoFailover {
        /// Where the monitor listens.
        host: String,
        /// Its port.
        port: u16,
        /// Its database, usually `pg_auto_failover`.
        database: String,
        /// The least-privileged role made for Halyard.
        user: String,
        /// Its password.
        password: Option<Secret>,
        /// The formation, usually `default`.
        formation: String,
        /// The group, usually 0.
        group: i32,
    },
    /// Patroni.
    Patroni {
        /// Host and port of its members' REST interfaces.
        members: Vec<(String, u16)>,
    },
}

/// Connections to the nodes, one pool per node, database and user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// When a backend goes back to its pool.
    pub mode: PoolMode,
    /// Most backends per pool.
    pub size: u32,
    /// Kept open while the pool is in use.
    pub min_size: u32,
    /// Until a client that waits for a backend gets 53300.
    pub wait_timeout: Duration,
    /// Most clients that may wait for one pool.
    pub waiters_max: usize,
    /// Until an unfinished connection to a node is given up.
    pub connect_timeout: Duration,
    /// Connections that one pool opens at a time.
    pub connects_max: u32,
    /// Age at which an idle backend is replaced (with up to a tenth of jitter).
    pub lifetime: Duration,
    /// Idleness after which a backend above `min_size` is closed.
    pub idle_timeout: Duration,
    /// Prepared statements kept per backend.
    pub prepared_statements_max: usize,
    /// Prepared statements that one client may hold.
    pub client_prepared_statements_max: usize,
    /// From when on backends are reserved for those who have drawn from sequences on them.
    pub sequences: Sequences,
}

/// From when on an idle backend is reserved for the session that has drawn from sequences on it, so that `currval` and
/// `lastval` find there what it has drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequences {
    /// From the first session on, of the same database and user, that asks for what it has drawn.
    Learn,
    /// From the beginning.
    Keep,
}

/// When a backend goes back to its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// At the end of each transaction.
    Transaction,
    /// When the client leaves.
    Session,
    /// As at the end of each transaction, and of more than one statement there is none: transaction blocks are refused.
    Statement,
}

/// Where statements go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Who answers a read when no standby qualifies.
    pub read_fallback: ReadFallback,
    /// How long a read waits for a standby with [`ReadFallback::Wait`].
    pub read_wait: Duration,
    /// Reads at once on the primary that no standby is known to be far enough for; those beyond wait first.
    pub reads_behind_max: u32,
    /// How long those wait for a standby.
    pub catch_up_wait: Duration,
    /// What a read sees at least.
    pub read_consistency: ReadConsistency,
    /// A standby further behind than this serves no reads; none does not look at bytes.
    pub max_replica_lag_bytes: Option<u64>,
    /// The same in time.
    pub max_replica_lag: Option<Duration>,
    /// A statement longer than this goes to the primary unread; bytes.
    pub statement_size_max: usize,
    /// Distinct statements whose class is remembered, per worker.
    pub class_cache_size: usize,
    /// Between two readings of the function catalogue.
    pub catalog_refresh: Duration,
    /// Functions taken as harmless although the catalogue says volatile.
    pub functions_allowed: Vec<String>,
    /// Functions taken as writing whatever the catalogue says.
    pub functions_denied: Vec<String>,
}

/// What a read sees at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadConsistency {
    /// Whatever the standby has.
    Eventual,
    /// All that its own session has written.
    Session,
    /// All that was written through this Halyard.
    Global,
}

/// Who answers a read when no standby qualifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFallback {
    /// The primary.
    Primary,
    /// A standby that comes to qualify within `read_wait`, else the primary.
    Wait,
    /// Nobody: 57P03.
    Error,
}

/// What happens while there is no primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// How long a new statement is held.
    pub hold: Duration,
    /// Most clients held at once.
    pub held_clients_max: usize,
    /// Most bytes of their statements kept meanwhile.
    pub held_bytes_max: usize,
    /// Most bytes of a read kept to run it again elsewhere.
    pub rerun_size_max: usize,
    /// Whether the outcome of a COMMIT, or of a write by itself in the extended protocol, is looked up on the next primary
    /// where its answer was lost.
    pub resolve_commits: bool,
}

/// Bounds on clients and memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections in all.
    pub client_connections_max: usize,
    /// Client connections that have not authenticated yet.
    pub unauthenticated_max: usize,
    /// From connect to authenticated.
    pub startup_timeout: Duration,
    /// Until a client idle inside a transaction block is ended; none is never.
    pub idle_in_transaction_timeout: Option<Duration>,
    /// Until a node that acknowledges nothing, or takes nothing, is given up (TCP_USER_TIMEOUT); none leaves it to the system.
    pub tcp_user_timeout: Option<Duration>,
    /// The same for clients.
    pub client_tcp_user_timeout: Option<Duration>,
    /// Until keepalive probes start.
    pub tcp_keepalive: Duration,
    /// Statements in one pipeline that may be unanswered.
    pub pipeline_max: usize,
    /// Bytes of notifications that may wait for one client.
    pub notifications_queued_max: usize,
    /// Channels that one client may listen to.
    pub channels_max: usize,
}

/// Who may connect, and how they prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// Checked in order; the first that matches decides, none rejects.
    pub rules: Vec<AuthRule>,
    /// Known users.
    pub users: Vec<User>,
}

/// One line in the manner of pg_hba.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthRule {
    /// Which kind of connection.
    pub connection: ConnectionKind,
    /// Databases; empty is all.
    pub databases: Vec<String>,
    /// Users; empty is all.
    pub users: Vec<String>,
    /// Client addresses as network and prefix length; empty is all. Ignored for Unix sockets.
    pub addresses: Vec<(std::net::IpAddr, u8)>,
    /// What is asked of them.
    pub method: AuthMethod,
}

/// pg_hba.conf's first column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    /// Unix socket.
    Local,
    /// TCP, with TLS or without.
    Host,
    /// TCP with TLS.
    HostSsl,
    /// TCP without TLS.
    HostNoSsl,
    /// Any of them.
    Any,
}

/// What a client must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// SCRAM-SHA-256.
    ScramSha256,
    /// MD5, or SCRAM where the stored secret is a SCRAM verifier, as in PostgreSQL.
    Md5,
    /// Nothing.
    Trust,
    /// Nobody gets in.
    Reject,
}

/// Who may use the admin console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Users who may run its commands.
    pub users: Vec<String>,
    /// Users who may look, and nothing else.
    pub stats_users: Vec<String>,
    /// How long PAUSE waits for open transactions.
    pub pause_timeout: Duration,
}

/// A user whom Halyard knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The role's name, the same on both legs.
    pub name: String,
    /// A plain password, a `SCRAM-SHA-256$…` verifier or an `md5…` hash, as in pg_authid.
    pub password: Option<Secret>,
    /// Its own pool size.
    pub pool_size: Option<u32>,
    /// Its own pool mode.
    pub pool_mode: Option<PoolMode>,
    /// Where its statements go, if it is said.
    pub route: Option<RouteSetting>,
    /// What its reads see at least, if it is said.
    pub read_consistency: Option<ReadConsistency>,
}

/// TLS to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// PEM certificate chain.
    pub certificate: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// Refuses clients that do not use TLS.
    pub required: bool,
}

/// TLS to nodes, in libpq's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// libpq's sslmode.
    pub mode: SslMode,
    /// PEM file of trusted roots, for `verify-ca` and `verify-full`.
    pub root_certificate: Option<PathBuf>,
}

/// libpq's sslmode. `allow` is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the node has it.
    Prefer,
    /// TLS or no connection; certificates are not checked.
    Require,
    /// The certificate must come from a trusted root.
    VerifyCa,
    /// And must carry the host's name.
    VerifyFull,
}

#[cfg(test)]
mod tests;
