//! From the configuration as written to the configuration as meant: names, ranges and defaults of all settings.
//!
//! Each default here has its reason beside it in `config.toml`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::outside::{Outside, check_pem, check_verifier, password};
use super::raw::{self, Gathered, Section, Span};
use super::secret::{self, Exposure};
use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const KB: u64 = 1 << 10;
const MB: u64 = 1 << 20;
const GB: u64 = 1 << 30;

/// Longest name of a role or database, in bytes: PostgreSQL's `NAMEDATALEN` less the final zero.
const NAME_LENGTH_MAX: usize = 63;

/// Longest path of a Unix-domain socket on Linux, in bytes: `sun_path` less the final zero.
const SOCKET_PATH_LENGTH_MAX: usize = 107;

/// Most threads that carry sessions.
const WORKERS_MAX: usize = 1024;

/// Reads and checks `text`. The configuration is of use only where no finding is an error.
pub(super) fn read<'t>(
    text: &'t str,
    path: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> (Config, Gathered<'t>) {
    let outside = Outside {
        directory: path.parent().unwrap_or(Path::new("")),
        environment,
    };
    let (placed, mut gathered) = raw::document(text, |top| placed(top, &outside));
    if gathered.holds_secret && secret::exposure(path) != Exposure::Private {
        let message =
            "holds a password and is open to others than its owner: chmod 0600, or use password_file";
        gathered.findings.warning(None, message);
    }
    check::check(&placed, &mut gathered.findings);
    (placed.config, gathered)
}

/// A configuration and where its parts stand, for errors about several of them.
pub(super) struct Placed {
    pub(super) config: Config,
    pub(super) listeners: Vec<Span>,
    pub(super) http: Option<Span>,
    pub(super) nodes: Vec<Span>,
    pub(super) rules: Vec<Span>,
    pub(super) users: Vec<Span>,
    pub(super) databases: Vec<Span>,
    pub(super) admin: Option<Span>,
    pub(super) health: Option<Span>,
    pub(super) pool: Option<Span>,
    pub(super) failover: Option<Span>,
    pub(super) routing: Option<Span>,
    pub(super) limits: Option<Span>,
}

fn placed(top: &mut Section<'_, '_>, outside: &Outside<'_>) -> Placed {
    let general = top.table("general", general);
    let (mut listeners, listener_places): (Vec<_>, Vec<_>) =
        top.tables("listener", listener).into_iter().unzip();
    if listeners.is_empty() {
        let address = ListenAddress::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 6432)));
        let role = ListenerRole::Auto;
        listeners.push(Listener { address, role });
    }
    let http = top.table("http", http);
    let (nodes, node_places): (Vec<_>, Vec<_>) = top.tables("node", node).into_iter().unzip();
    if node_places.is_empty() {
        top.error("node", "at least one section [[node]] is required");
    }
    let health = top.table("health", |section| health(section, outside));
    let engine = top.table("engine", |section| engine(section, outside));
    let pool = top.table("pool", pool);
    let routing = top.table("routing", routing);
    let failover = top.table("failover", failover);
    let limits = top.table("limits", limits);
    let admin = top.table("admin", admin);
    let (databases, database_places): (Vec<_>, Vec<_>) = top.tables("database", database).into_iter().unzip();
    let (rules, rule_places) = top.table("auth", rules);
    let (users, user_places) = top
        .tables("user", |section| user(section, outside))
        .into_iter()
        .unzip();
    let client_tls = top.optional_table("client_tls", |section| client_tls(section, outside));
    let server_tls = top.table("server_tls", |section| server_tls(section, outside));
    Placed {
        listeners: listener_places,
        http: top.place_of("http"),
        nodes: node_places,
        rules: rule_places,
        users: user_places,
        databases: database_places,
        admin: top.place_of("admin"),
        health: top.place_of("health"),
        pool: top.place_of("pool"),
        failover: top.place_of("failover"),
        routing: top.place_of("routing"),
        limits: top.place_of("limits"),
        config: Config {
            general,
            listeners,
            http,
            nodes,
            health,
            engine,
            pool,
            routing,
            databases,
            failover,
            limits,
            admin,
            auth: Auth { rules, users },
            client_tls,
            server_tls,
        },
    }
}

fn general(section: &mut Section<'_, '_>) -> General {
    let workers = section.number("workers", 0..=WORKERS_MAX, 0);
    let runtimes = [
        ("per-core", Runtime::PerCore),
        ("multi-thread", Runtime::MultiThread),
    ];
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    General {
        workers: match workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        },
        runtime: section.choice("runtime", &runtimes, Runtime::PerCore),
        log_format: section.choice("log_format", &formats, LogFormat::Text),
        log_level: log_level(section),
        drain_timeout: section.duration("drain_timeout", Duration::ZERO..=DAY, 30 * SECOND),
        control_socket: control_socket(section),
        state_file: state_file(section),
        zone: section.text("zone"),
    }
}

fn control_socket(section: &mut Section<'_, '_>) -> Option<PathBuf> {
    let path = section.text("control_socket")?;
    if !path.starts_with('/') {
        section.error("control_socket", "must be a full path");
    } else if path.len() > SOCKET_PATH_LENGTH_MAX {
        let message = format!(
            "the path has {} bytes, sockets take {SOCKET_PATH_LENGTH_MAX}",
            path.len()
        );
        section.error("control_socket", message);
    }
    Some(PathBuf::from(path))
}

fn state_file(section: &mut Section<'_, '_>) -> Option<PathBuf> {
    let path = section.text("state_file")?;
    if !path.starts_with('/') {
        section.error("state_file", "must be a full path");
    }
    Some(PathBuf::from(path))
}

fn log_level(section: &mut Section<'_, '_>) -> String {
    let default = || "info".to_owned();
    let Some(level) = section.text("log_level") else {
        return default();
    };
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&level) {
        section.error("log_level", format_args!("\"{level}\" is no filter: {error}"));
        return default();
    }
    level
}

fn listener(section: &mut Section<'_, '_>) -> Listener {
    let roles = [
        ("auto", ListenerRole::Auto),
        ("primary", ListenerRole::Primary),
        ("replica", ListenerRole::Replica),
    ];
    let text = section.required_text("address");
    Listener {
        address: listen_address(section, &text),
        role: section.choice("role", &roles, ListenerRole::Auto),
    }
}

fn listen_address(section: &mut Section<'_, '_>, text: &str) -> ListenAddress {
    if !text.starts_with('/') {
        return ListenAddress::Tcp(tcp_address(section, text));
    }
    if text.len() > SOCKET_PATH_LENGTH_MAX {
        let message = format!(
            "the path has {} bytes, sockets take {SOCKET_PATH_LENGTH_MAX}",
            text.len()
        );
        section.error("address", message);
    }
    let name = text.rsplit('/').next().unwrap_or_default();
    let port = name
        .strip_prefix(".s.PGSQL.")
        .and_then(|port| port.parse::<u16>().ok());
    if port.is_none() {
        section.warning(
            "address",
            "libpq finds a socket only by the name .s.PGSQL. and a port, as in .s.PGSQL.6432",
        );
    }
    ListenAddress::Unix(PathBuf::from(text))
}

fn tcp_address(section: &mut Section<'_, '_>, text: &str) -> SocketAddr {
    let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    if text.is_empty() {
        return unspecified; // Told already.
    }
    text.parse().unwrap_or_else(|_| {
        let message = "is not an address and a port, such as 127.0.0.1:6432, [::1]:6432 or 0.0.0.0:6432";
        section.error("address", format_args!("\"{text}\" {message}"));
        unspecified
    })
}

fn http(section: &mut Section<'_, '_>) -> Option<SocketAddr> {
    match section.text("address").as_deref() {
        Some("off") => None,
        Some(text) => Some(tcp_address(section, text)),
        None => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9432))),
    }
}

fn node(section: &mut Section<'_, '_>) -> Node {
    let reads = [
        ("preferred", Reads::Preferred),
        ("fallback", Reads::Fallback),
        ("never", Reads::Never),
    ];
    let name = section.required_text("name");
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.len() > NAME_LENGTH_MAX || !name.chars().all(plain) {
        let message = "a node's name is up to 63 letters, digits, and the characters _ - .";
        section.error("name", format_args!("\"{name}\": {message}"));
    }
    Node {
        name,
        host: section.required_text("host"),
        port: section.number("port", 1..=u16::MAX, 5432),
        weight: section.number("weight", 0..=1000, 100),
        zone: section.text("zone"),
        reads: section.choice("reads", &reads, Reads::Preferred),
    }
}

fn health(section: &mut Section<'_, '_>, outside: &Outside<'_>) -> Health {
    Health {
        user: section.required_text("user"),
        password: password(section, outside),
        database: section.text("database").unwrap_or_else(|| "postgres".to_owned()),
        interval: section.duration("interval", 10 * MILLISECOND..=MINUTE, 250 * MILLISECOND),
        timeout: section.duration("timeout", 10 * MILLISECOND..=MINUTE, 500 * MILLISECOND),
        connect_timeout: section.duration("connect_timeout", 10 * MILLISECOND..=MINUTE, SECOND),
        failures_to_eject: section.number("failures_to_eject", 1..=100, 3),
        successes_to_readmit: section.number("successes_to_readmit", 1..=100, 2),
        stale_after: section.duration("stale_after", 20 * MILLISECOND..=HOUR, 3 * SECOND),
        sample_interval: section.duration("sample_interval", MILLISECOND..=SECOND, 5 * MILLISECOND),
        system_identifier: system_identifier(section),
    }
}

fn system_identifier(section: &mut Section<'_, '_>) -> Option<u64> {
    let text = section.text("system_identifier")?;
    let identifier = text
        .parse()
        .ok()
        .filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    if identifier.is_none() {
        section.error(
            "system_identifier",
            "must be a number in quotes, as pg_controldata shows it",
        );
    }
    identifier
}

/// The settings of [engine] that only `kind = "pg_auto_failover"` has.
const MONITOR_SETTINGS: [&str; 9] = [
    "host",
    "port",
    "database",
    "user",
    "password",
    "password_file",
    "password_env",
    "formation",
    "group",
];

fn engine(section: &mut Section<'_, '_>, outside: &Outside<'_>) -> Engine {
    #[derive(Clone, Copy)]
    enum Kind {
        Observed,
        PgAutoFailover,
        Patroni,
    }
    let kinds = [
        ("observed", Kind::Observed),
        ("pg_auto_failover", Kind::PgAutoFailover),
        ("patroni", Kind::Patroni),
    ];
    let kind = section.choice("kind", &kinds, Kind::Observed);
    let monitor_is_meant = matches!(kind, Kind::PgAutoFailover);
    let members = patroni_members(section, matches!(kind, Kind::Patroni));
    if !monitor_is_meant {
        for key in MONITOR_SETTINGS.into_iter().filter(|key| section.has(key)) {
            section.error(key, "has a meaning only with kind = \"pg_auto_failover\"");
        }
    }
    let host = if monitor_is_meant {
        section.required_text("host")
    } else {
        section.text("host").unwrap_or_default()
    };
    let monitor = Engine::PgAutoFailover {
        host,
        port: section.number("port", 1..=u16::MAX, 5432),
        database: section
            .text("database")
            .unwrap_or_else(|| "pg_auto_failover".to_owned()),
        user: section.text("user").unwrap_or_else(|| "halyard".to_owned()),
        password: password(section, outside),
        formation: section.text("formation").unwrap_or_else(|| "default".to_owned()),
        group: section.number("group", 0..=i32::MAX, 0),
    };
    match kind {
        Kind::PgAutoFailover => monitor,
        Kind::Patroni => Engine::Patroni { members },
        Kind::Observed => Engine::Observed,
    }
}

fn patroni_members(section: &mut Section<'_, '_>, meant: bool) -> Vec<(String, u16)> {
    if !meant && section.has("members") {
        section.error("members", "has a meaning only with kind = \"patroni\"");
    }
    let texts = section.texts("members");
    if meant && texts.is_empty() {
        section.error("members", "at least one is required with kind = \"patroni\"");
    }
    let mut members = Vec::with_capacity(texts.len());
    for text in &texts {
        let parts = text.rsplit_once(':').map(|(host, port)| (host, port.parse()));
        match parts {
            Some((host, Ok(port))) if !host.is_empty() && !host.contains('/') && port > 0 => {
                members.push((host.trim_matches(['[', ']']).to_owned(), port));
            }
            _ => section.error(
                "members",
                format_args!("\"{text}\" is not a host and a port, such as 10.0.0.1:8008"),
            ),
        }
    }
    members
}

const POOL_MODES: [(&str, PoolMode); 3] = [
    ("transaction", PoolMode::Transaction),
    ("session", PoolMode::Session),
    ("statement", PoolMode::Statement),
];

const SEQUENCES: [(&str, Sequences); 2] = [("learn", Sequences::Learn), ("keep", Sequences::Keep)];

fn pool(section: &mut Section<'_, '_>) -> Pool {
    Pool {
        mode: section.choice("mode", &POOL_MODES, PoolMode::Transaction),
        size: section.number("size", 1..=10_000, 20),
        min_size: section.number("min_size", 0..=10_000, 0),
        wait_timeout: section.duration("wait_timeout", MILLISECOND..=HOUR, 30 * SECOND),
        waiters_max: section.number("waiters_max", 0..=1_000_000, 10_000),
        connect_timeout: section.duration("connect_timeout", 10 * MILLISECOND..=MINUTE, 5 * SECOND),
        connects_max: section.number("connects_max", 1..=1000, 4),
        lifetime: section.duration("lifetime", SECOND..=30 * DAY, HOUR),
        idle_timeout: section.duration("idle_timeout", SECOND..=30 * DAY, 10 * MINUTE),
        prepared_statements_max: section.number("prepared_statements_max", 1..=100_000, 200),
        client_prepared_statements_max: section.number("client_prepared_statements_max", 1..=100_000, 1000),
        sequences: section.choice("sequences", &SEQUENCES, Sequences::Learn),
    }
}

fn routing(section: &mut Section<'_, '_>) -> Routing {
    let fallbacks = [
        ("primary", ReadFallback::Primary),
        ("wait", ReadFallback::Wait),
        ("error", ReadFallback::Error),
    ];
    Routing {
        read_fallback: section.choice("read_fallback", &fallbacks, ReadFallback::Primary),
        read_wait: section.duration("read_wait", MILLISECOND..=HOUR, SECOND),
        reads_behind_max: section.number("reads_behind_max", 0..=100_000, 2),
        catch_up_wait: section.duration("catch_up_wait", Duration::ZERO..=MINUTE, 50 * MILLISECOND),
        read_consistency: section.choice(
            "read_consistency",
            &ReadConsistency::VALUES,
            ReadConsistency::Session,
        ),
        max_replica_lag_bytes: section.size_or_off("max_replica_lag_bytes", 0..=u64::MAX, None),
        max_replica_lag: section.duration_or_off("max_replica_lag", MILLISECOND..=DAY, Some(30 * SECOND)),
        statement_size_max: section.size("statement_size_max", KB..=GB, 64 * KB),
        class_cache_size: section.number("class_cache_size", 0..=10_000_000, 8192),
        catalog_refresh: section.duration("catalog_refresh", SECOND..=DAY, MINUTE),
        functions_allowed: section.texts("functions_allowed"),
        functions_denied: section.texts("functions_denied"),
    }
}

fn failover(section: &mut Section<'_, '_>) -> Failover {
    Failover {
        hold: section.duration("hold", Duration::ZERO..=HOUR, MINUTE),
        held_clients_max: section.number("held_clients_max", 0..=1_000_000, 10_000),
        held_bytes_max: section.size("held_bytes_max", 0..=64 * GB, 64 * MB),
        rerun_size_max: section.size("rerun_size_max", 0..=GB, 64 * KB),
        resolve_commits: section.flag("resolve_commits", false),
    }
}

fn limits(section: &mut Section<'_, '_>) -> Limits {
    Limits {
        client_connections_max: section.number("client_connections_max", 1..=1_000_000, 10_000),
        unauthenticated_max: section.number("unauthenticated_max", 1..=1_000_000, 500),
        startup_timeout: section.duration("startup_timeout", 100 * MILLISECOND..=10 * MINUTE, 15 * SECOND),
        idle_in_transaction_timeout: section.duration_or_off(
            "idle_in_transaction_timeout",
            MILLISECOND..=30 * DAY,
            None,
        ),
        tcp_user_timeout: section.duration_or_off("tcp_user_timeout", SECOND..=HOUR, Some(5 * MINUTE)),
        client_tcp_user_timeout: section.duration_or_off("client_tcp_user_timeout", SECOND..=HOUR, None),
        tcp_keepalive: section.duration("tcp_keepalive", SECOND..=DAY, MINUTE),
        pipeline_max: section.number("pipeline_max", 4_096..=10_000_000, 65_536),
        notifications_queued_max: section.size("notifications_queued_max", 16 * KB..=GB, MB),
        channels_max: section.number("channels_max", 1..=100_000, 1_000),
    }
}

fn rules(section: &mut Section<'_, '_>) -> (Vec<AuthRule>, Vec<Span>) {
    let (rules, places): (Vec<_>, Vec<_>) = section.tables("rule", rule).into_iter().unzip();
    if section.has("rule") {
        return (rules, places);
    }
    let everybody = AuthRule {
        connection: ConnectionKind::Any,
        databases: Vec::new(),
        users: Vec::new(),
        addresses: Vec::new(),
        method: AuthMethod::ScramSha256,
    };
    (vec![everybody], places)
}

fn rule(section: &mut Section<'_, '_>) -> AuthRule {
    let connections = [
        ("any", ConnectionKind::Any),
        ("local", ConnectionKind::Local),
        ("host", ConnectionKind::Host),
        ("hostssl", ConnectionKind::HostSsl),
        ("hostnossl", ConnectionKind::HostNoSsl),
    ];
    let methods = [
        ("scram-sha-256", AuthMethod::ScramSha256),
        ("md5", AuthMethod::Md5),
        ("trust", AuthMethod::Trust),
        ("reject", AuthMethod::Reject),
    ];
    let written = section.texts("addresses");
    let mut addresses = Vec::with_capacity(written.len());
    for text in written {
        match network(&text) {
            Some(network) => addresses.push(network),
            None => {
                let message = "is neither an address nor a network such as 10.0.0.0/8 or fd00::/8";
                section.error("addresses", format_args!("\"{text}\" {message}"));
            }
        }
    }
    AuthRule {
        connection: section.choice("connection", &connections, ConnectionKind::Any),
        databases: section.texts("databases"),
        users: section.texts("users"),
        addresses,
        method: section.choice("method", &methods, AuthMethod::ScramSha256),
    }
}

/// An address, or a network in CIDR notation. Bits behind the prefix are kept as written.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text
        .split_once('/')
        .map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(longest), |prefix| prefix.parse().ok())?;
    (prefix <= longest).then_some((address, prefix))
}

fn user(section: &mut Section<'_, '_>, outside: &Outside<'_>) -> User {
    let name = section.required_text("name");
    if name.len() > NAME_LENGTH_MAX {
        section.error(
            "name",
            format_args!("\"{name}\" has more than {NAME_LENGTH_MAX} bytes"),
        );
    }
    let password = password(section, outside);
    if let Some(password) = &password {
        check_verifier(section, password);
    }
    User {
        name,
        password,
        pool_size: section.number_or_none("pool_size", 1..=10_000),
        pool_mode: section.choice_or_none("pool_mode", &POOL_MODES),
        route: section.choice_or_none("route", &RouteSetting::VALUES),
        read_consistency: section.choice_or_none("read_consistency", &ReadConsistency::VALUES),
    }
}

fn database(section: &mut Section<'_, '_>) -> Database {
    Database {
        name: section.required_text("name"),
        route: section.choice_or_none("route", &RouteSetting::VALUES),
        read_consistency: section.choice_or_none("read_consistency", &ReadConsistency::VALUES),
    }
}

fn admin(section: &mut Section<'_, '_>) -> Admin {
    Admin {
        users: section.texts("users"),
        stats_users: section.texts("stats_users"),
        pause_timeout: section.duration("pause_timeout", MILLISECOND..=DAY, 30 * SECOND),
    }
}

fn client_tls(section: &mut Section<'_, '_>, outside: &Outside<'_>) -> ClientTls {
    let certificate = outside.resolve(&section.required_text("certificate"));
    let key = outside.resolve(&section.required_text("key"));
    check_pem(section, "certificate", &certificate);
    check_pem(section, "key", &key);
    if section.has("key") && secret::exposure(&key) != Exposure::Private {
        let message = "is open to others than its owner, which PostgreSQL refuses too: chmod 0600";
        section.error("key", format_args!("\"{}\" {message}", key.display()));
    }
    ClientTls {
        certificate,
        key,
        required: section.flag("required", false),
    }
}

fn server_tls(section: &mut Section<'_, '_>, outside: &Outside<'_>) -> ServerTls {
    let modes = [
        ("disable", SslMode::Disable),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];
    let mode = section.choice("mode", &modes, SslMode::Prefer);
    let root_certificate = section
        .text("root_certificate")
        .map(|path| outside.resolve(&path));
    let verifies = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
    match &root_certificate {
        Some(path) => {
            check_pem(section, "root_certificate", path);
            if !verifies {
                section.warning(
                    "root_certificate",
                    "is looked at only with mode = \"verify-ca\" or \"verify-full\"",
                );
            }
        }
        None if verifies => section.error("mode", "certificates are checked only against a root_certificate"),
        None => {}
    }
    ServerTls {
        mode,
        root_certificate,
    }
}
