//! What the monitor is told: the nodes, the probe's role, limits and the engine.

use std::fmt;
use std::time::Duration;

use tokio_postgres::config::SslMode;

use crate::lsn::{SystemIdentifier, TimelineId};

/// Everything the monitor needs to know. `Config::new` gives the defaults, each with its reason.
#[derive(Clone, Debug)]
pub struct Config {
    /// The nodes of one cluster in configuration order; the order gives each its [`NodeId`](crate::NodeId).
    pub nodes: Vec<NodeConfig>,
    /// The probe's role. Membership in `pg_monitor` is all it needs (for `pg_stat_wal_receiver`). It must have
    /// no `default_transaction_read_only` of its own: the probe reads the server's through its session.
    pub user: String,
    /// The role's password; empty when the server asks for none.
    pub password: Secret,
    /// The database that the probe connects to.
    pub database: String,
    /// Whether the probe and the engine's connection ask for TLS; only with a connector given to
    /// [`spawn_with_tls`](crate::spawn_with_tls). A unix socket is never asked: PostgreSQL has no TLS there.
    pub ssl_mode: SslMode,
    /// The time from one probe of a node to its next.
    pub interval: Duration,
    /// The longest wait for a probe's answer. It alone detects a frozen server, which still accepts connections.
    pub timeout: Duration,
    /// The longest wait for a connection, authentication included.
    pub connect_timeout: Duration,
    /// How many answers in a row must be missing before a slow node is unreachable. A refused connection counts
    /// at once.
    pub failures_to_eject: u32,
    /// How many good answers in a row a standby needs before it serves reads again.
    pub successes_to_readmit: u32,
    /// Evidence older than this is none. Longer than `interval + timeout`, or a slow answer already ejects.
    pub stale_after: Duration,
    /// The system identifier that every node must have. `None`: the one that most nodes show in the first round.
    pub system_identifier: Option<SystemIdentifier>,
    /// The highest timeline that the cluster was ever seen on, if that is known from before: a primary of a lower one is
    /// fenced from the beginning. Of the system that `system_identifier` names.
    pub highest_timeline: Option<TimelineId>,
    /// How far behind a standby may be and still serve reads.
    pub max_replica_lag: MaxLag,
    /// Who promotes, and can be asked about it.
    pub engine: EngineConfig,
    /// The least time between two questions for a node's position alone, which come between the probes while a session
    /// waits for the standbys to have its write: so much sooner or later is it known that they do. One costs a node about
    /// as much as `SELECT 1`.
    pub sample_interval: Duration,
}

impl Config {
    /// The defaults for these nodes, probed by this role in this database.
    pub fn new(nodes: Vec<NodeConfig>, user: &str, password: Secret, database: &str) -> Self {
        Self {
            nodes,
            user: user.to_owned(),
            password,
            database: database.to_owned(),
            ssl_mode: SslMode::Prefer,
            interval: Duration::from_millis(250),
            timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            failures_to_eject: 3,
            successes_to_readmit: 3,
            stale_after: Duration::from_secs(5),
            system_identifier: None,
            highest_timeline: None,
            max_replica_lag: MaxLag {
                bytes: None,
                time: Some(Duration::from_secs(30)),
            },
            engine: EngineConfig::Observed,
            sample_interval: Duration::from_millis(5),
        }
    }

    /// Whether a connection to this host asks for TLS.
    pub(crate) fn ssl_mode_for(&self, host: &str) -> SslMode {
        if host.starts_with('/') {
            SslMode::Disable
        } else {
            self.ssl_mode
        }
    }
}

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeConfig {
    /// The operator's name for it, which logs, metrics and the view use.
    pub name: String,
    /// A host name, an IP address, or the absolute directory of a unix socket.
    pub host: String,
    /// The port, also of a unix socket.
    pub port: u16,
}

/// The bounds on a standby's lag; `None` is no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxLag {
    /// Bytes of log between the primary's position and what the standby has replayed.
    pub bytes: Option<u64>,
    /// The age of the primary's position that the standby has replayed.
    pub time: Option<Duration>,
}

/// Who promotes. The monitor only ever asks; it never tells an engine what to do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EngineConfig {
    /// Nobody that can be asked: the nodes' own answers decide.
    Observed,
    /// The monitor node of pg_auto_failover.
    PgAutoFailover(PgAutoFailoverConfig),
    /// Patroni, over its members' REST interface.
    Patroni(PatroniConfig),
}

/// How to reach Patroni.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniConfig {
    /// Where its members answer, in plain HTTP; any of them will do.
    pub members: Vec<PatroniMember>,
}

/// Where one member of Patroni answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniMember {
    /// A host name or an IP address.
    pub host: String,
    /// The port of its REST interface, 8008 by convention.
    pub port: u16,
}

/// How to reach a pg_auto_failover monitor.
#[derive(Clone, Debug)]
pub struct PgAutoFailoverConfig {
    /// A host name, an IP address, or the absolute directory of a unix socket.
    pub host: String,
    /// The monitor's port.
    pub port: u16,
    /// A role with USAGE on schema `pgautofailover` and EXECUTE on `current_state(text, int)`.
    pub user: String,
    /// The role's password; empty when the monitor asks for none.
    pub password: Secret,
    /// The monitor's database, `pg_auto_failover` by convention.
    pub database: String,
    /// The formation, `default` by convention.
    pub formation: String,
    /// The group in the formation, 0 without Citus.
    pub group: i32,
}

/// A password: it can be used, and never seen.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the password in.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    /// The password, for the one who logs in with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}
