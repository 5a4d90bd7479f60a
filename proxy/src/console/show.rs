//! PgBouncer's tables, with the columns of its version 1.24, so that what reads those reads these.
//!
//! What PgBouncer has and Halyard does not is NULL where a number would be wrong, and 0 where there is none of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::census::{self, Client};
use super::command::Shown;
use super::moment::shown;
use super::table::{Cell, Column, Kind, Table, row};
use super::{cluster, config};
use crate::app::App;
use crate::config::PoolMode;
use crate::operate::Scope;
use crate::pool::{Group, PoolUse};
use crate::session::{Tallied, Totals};
use crate::startup::Peer;
use crate::statistics::PERIOD;

use Kind::{Int4, Int8, Text};

/// The columns of a table, which are the same whatever is in it.
pub(super) fn columns(what: Shown) -> &'static [Column] {
    match what {
        Shown::Clients | Shown::Servers | Shown::Sockets => CONNECTIONS,
        Shown::Config => config::COLUMNS,
        Shown::Databases => DATABASES,
        Shown::Events => cluster::EVENTS,
        Shown::Fence => cluster::FENCE,
        Shown::Help => &[("command", Text), ("what", Text)],
        Shown::Lists => &[("list", Text), ("items", Int4)],
        Shown::Mem => &[
            ("name", Text),
            ("size", Int4),
            ("used", Int4),
            ("free", Int4),
            ("memtotal", Int8),
        ],
        Shown::Nodes => cluster::NODES,
        Shown::Pins => cluster::PINS,
        Shown::Pools => POOLS,
        Shown::Routes => cluster::ROUTES,
        Shown::State => &[("key", Text), ("value", Text)],
        Shown::Stats => STATS,
        Shown::StatsAverages => STATS_OF_ONE_KIND,
        Shown::StatsTotals => STATS_OF_ONE_KIND,
        Shown::Users => USERS,
        Shown::Version => &[("version", Text)],
    }
}

/// What SHOW answers.
pub(super) async fn table(app: &App, what: Shown) -> Table {
    let mut table = Table::new(columns(what));
    match what {
        Shown::Clients => connections(app, &mut table, true, false).await,
        Shown::Servers => connections(app, &mut table, false, true).await,
        Shown::Sockets => connections(app, &mut table, true, true).await,
        Shown::Config => config::fill(app, &mut table),
        Shown::Databases => databases(app, &mut table).await,
        Shown::Events => cluster::events(app, &mut table),
        Shown::Fence => cluster::fence(app, &mut table),
        Shown::Help => help(&mut table),
        Shown::Lists => lists(app, &mut table),
        Shown::Mem => memory(app, &mut table),
        Shown::Nodes => cluster::nodes(app, &mut table),
        Shown::Pins => cluster::pins(app, &mut table).await,
        Shown::Pools => pools(app, &mut table).await,
        Shown::Routes => cluster::routes(app, &mut table),
        Shown::State => state(app, &mut table),
        Shown::Stats => stats(app, &mut table, &[Figures::Totals, Figures::Averages]),
        Shown::StatsAverages => stats(app, &mut table, &[Figures::Averages]),
        Shown::StatsTotals => stats(app, &mut table, &[Figures::Totals]),
        Shown::Users => users(app, &mut table).await,
        Shown::Version => table.push(row![format!("Halyard {}", env!("CARGO_PKG_VERSION"))]),
    }
    table
}

const CONNECTIONS: &[Column] = &[
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("replication", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int4),
    ("local_addr", Text),
    ("local_port", Int4),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int4),
    ("wait_us", Int4),
    ("close_needed", Int4),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int4),
    ("tls", Text),
    ("application_name", Text),
    ("prepared_statements", Int4),
    ("id", Int8),
];

/// Clients, and the backends that they have; backends that nobody has as well.
async fn connections(app: &App, table: &mut Table, clients: bool, servers: bool) {
    let seen = census::clients(app).await;
    if clients {
        for client in &seen {
            table.push(client_row(client));
        }
    }
    if !servers {
        return;
    }
    for client in &seen {
        if let Some(row) = lent_row(app, client) {
            table.push(row);
        }
    }
    for ((database, user), group) in census::groups(app) {
        for pool in group.pools() {
            for backend in pool.idle() {
                let (host, port) = (pool.node.target.host.clone(), pool.node.target.port);
                let made = census::time_of(app, backend.born);
                let used = census::time_of(app, backend.idle_since);
                let pointer = format!("{}/{}", pool.node.name, backend.pid);
                let tls = if backend.tls { "TLS" } else { "" };
                let reserved = backend.reserved_for.map(|session| format!("session/{session}"));
                table.push(row![
                    "S",
                    user.as_str(),
                    database.as_str(),
                    "none",
                    "idle",
                    host,
                    port,
                    Cell::Null,
                    Cell::Null,
                    shown(made),
                    shown(used),
                    0,
                    0,
                    0,
                    pointer,
                    reserved.unwrap_or_default(),
                    backend.pid,
                    tls,
                    "",
                    backend.prepared,
                    i64::from(backend.pid),
                ]);
            }
        }
    }
}

fn client_row(client: &Client) -> Vec<Cell> {
    let (address, port) = match client.peer {
        Peer::Tcp(address) => (address.ip().to_string(), address.port()),
        Peer::Unix => ("unix".to_owned(), 0),
    };
    let waited = if client.waits() {
        client.doing_for
    } else {
        std::time::Duration::ZERO
    };
    let link = client
        .backend
        .map(|(node, _, pid, _)| format!("{}/{pid}", node.0))
        .unwrap_or_default();
    row![
        "C",
        client.user.as_str(),
        client.database.as_str(),
        "none",
        client.state(),
        address,
        port,
        Cell::Null,
        Cell::Null,
        shown(client.connected),
        shown(client.requested.unwrap_or(client.connected)),
        waited.as_secs(),
        waited.subsec_micros(),
        0,
        format!("session/{}", client.number),
        link,
        0,
        if client.tls { "TLS" } else { "" },
        client.application_name.as_str(),
        Cell::Null,
        client.number,
    ]
}

/// The backend that a client has.
fn lent_row(app: &App, client: &Client) -> Option<Vec<Cell>> {
    let (node, _, pid, made) = client.backend?;
    let node = app.nodes.get(usize::from(node.0))?;
    Some(row![
        "S",
        client.user.as_str(),
        client.database.as_str(),
        "none",
        "active",
        node.target.host.as_str(),
        node.target.port,
        Cell::Null,
        Cell::Null,
        shown(made),
        shown(client.requested.unwrap_or(made)),
        0,
        0,
        0,
        format!("{}/{pid}", node.name),
        format!("session/{}", client.number),
        pid,
        Cell::Null,
        client.application_name.as_str(),
        Cell::Null,
        i64::from(pid),
    ])
}

const POOLS: &[Column] = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int4),
    ("cl_waiting", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active", Int4),
    ("sv_active_cancel", Int4),
    ("sv_being_canceled", Int4),
    ("sv_idle", Int4),
    ("sv_used", Int4),
    ("sv_tested", Int4),
    ("sv_login", Int4),
    ("maxwait", Int4),
    ("maxwait_us", Int4),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
];

/// What a group's pools on all nodes come to.
fn usage(group: &Group) -> PoolUse {
    let mut sum = PoolUse::default();
    for pool in group.pools() {
        let one = pool.usage();
        sum.idle += one.idle;
        sum.active += one.active;
        sum.connecting += one.connecting;
        sum.waiting += one.waiting;
    }
    sum
}

async fn pools(app: &App, table: &mut Table) {
    let seen = census::clients(app).await;
    for ((database, user), group) in census::groups(app) {
        let own = seen
            .iter()
            .filter(|client| (&client.database, &client.user) == (&database, &user));
        let (waiting, active): (Vec<_>, Vec<_>) = own.partition(|client| client.waits());
        let longest = waiting
            .iter()
            .map(|client| client.doing_for)
            .max()
            .unwrap_or_default();
        let servers = usage(&group);
        table.push(row![
            database,
            user,
            active.len(),
            waiting.len(),
            0,
            0,
            servers.active,
            0,
            0,
            servers.idle,
            0,
            0,
            servers.connecting,
            longest.as_secs(),
            longest.subsec_micros(),
            mode(group.mode),
            Cell::Null,
        ]);
    }
}

fn mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Statement => "statement",
        PoolMode::Session => "session",
    }
}

const DATABASES: &[Column] = &[
    ("name", Text),
    ("host", Text),
    ("port", Int4),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int4),
    ("min_pool_size", Int4),
    ("reserve_pool_size", Int4),
    ("server_lifetime", Int8),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
    ("max_connections", Int4),
    ("current_connections", Int4),
    ("max_client_connections", Int4),
    ("current_client_connections", Int4),
    ("paused", Int4),
    ("disabled", Int4),
];

/// A row for each database in use: host and port are those of the primary.
async fn databases(app: &App, table: &mut Table) {
    let seen = census::clients(app).await;
    let mut connections: BTreeMap<String, u32> = BTreeMap::new();
    for ((database, _), group) in census::groups(app) {
        let servers = usage(&group);
        *connections.entry(database).or_default() += servers.active + servers.idle + servers.connecting;
    }
    let primary = app.routing.load().primary;
    let primary = primary.and_then(|node| app.nodes.get(usize::from(node.0)));
    let scopes = app.operations.pauses.scopes();
    let pool = &app.config.pool;
    for (database, servers) in connections {
        let clients = seen.iter().filter(|client| client.database == database).count();
        let paused = scopes.iter().any(|scope| match &**scope {
            Scope::All => true,
            Scope::Database(name) => *name == database,
            Scope::Primary => false,
        });
        table.push(row![
            database.as_str(),
            primary.map(|node| node.target.host.clone()),
            primary.map(|node| node.target.port),
            database.as_str(),
            Cell::Null,
            pool.size,
            pool.min_size,
            0,
            pool.lifetime.as_secs(),
            Cell::Null,
            Cell::Null,
            0,
            servers,
            app.config.limits.client_connections_max,
            clients,
            paused,
            0,
        ]);
    }
}

const USERS: &[Column] = &[
    ("name", Text),
    ("pool_size", Int4),
    ("reserve_pool_size", Int4),
    ("pool_mode", Text),
    ("max_user_connections", Int4),
    ("current_connections", Int4),
    ("max_user_client_connections", Int4),
    ("current_client_connections", Int4),
];

/// The users of the configuration, and those who are there without it.
async fn users(app: &App, table: &mut Table) {
    let seen = census::clients(app).await;
    let mut connections: BTreeMap<String, u32> = BTreeMap::new();
    for ((_, user), group) in census::groups(app) {
        let servers = usage(&group);
        *connections.entry(user).or_default() += servers.active + servers.idle + servers.connecting;
    }
    let configured = &app.config.auth.users;
    let mut names: BTreeSet<&str> = configured.iter().map(|user| user.name.as_str()).collect();
    names.extend(connections.keys().map(String::as_str));
    names.extend(seen.iter().map(|client| client.user.as_str()));
    for name in names {
        let own = configured.iter().find(|user| user.name == name);
        table.push(row![
            name,
            own.and_then(|user| user.pool_size),
            Cell::Null,
            own.and_then(|user| user.pool_mode).map(mode),
            0,
            connections.get(name).copied().unwrap_or_default(),
            0,
            seen.iter().filter(|client| client.user == name).count(),
        ]);
    }
}

const STATS: &[Column] = &[
    ("database", Text),
    ("total_server_assignment_count", Int8),
    ("total_xact_count", Int8),
    ("total_query_count", Int8),
    ("total_received", Int8),
    ("total_sent", Int8),
    ("total_xact_time", Int8),
    ("total_query_time", Int8),
    ("total_wait_time", Int8),
    ("total_client_parse_count", Int8),
    ("total_server_parse_count", Int8),
    ("total_bind_count", Int8),
    ("avg_server_assignment_count", Int8),
    ("avg_xact_count", Int8),
    ("avg_query_count", Int8),
    ("avg_recv", Int8),
    ("avg_sent", Int8),
    ("avg_xact_time", Int8),
    ("avg_query_time", Int8),
    ("avg_wait_time", Int8),
    ("avg_client_parse_count", Int8),
    ("avg_server_parse_count", Int8),
    ("avg_bind_count", Int8),
];

const STATS_OF_ONE_KIND: &[Column] = &[
    ("database", Text),
    ("server_assignment_count", Int8),
    ("xact_count", Int8),
    ("query_count", Int8),
    ("bytes_received", Int8),
    ("bytes_sent", Int8),
    ("xact_time", Int8),
    ("query_time", Int8),
    ("wait_time", Int8),
    ("client_parse_count", Int8),
    ("server_parse_count", Int8),
    ("bind_count", Int8),
];

/// The columns of STATS in their order, and what a time is the average over.
const FIGURES: [(Tallied, Option<Tallied>); 11] = [
    (Tallied::Assignments, None),
    (Tallied::Transactions, None),
    (Tallied::Requests, None),
    (Tallied::Received, None),
    (Tallied::Sent, None),
    (Tallied::TransactionTime, Some(Tallied::Transactions)),
    (Tallied::QueryTime, Some(Tallied::Requests)),
    (Tallied::WaitTime, Some(Tallied::Assignments)),
    (Tallied::ClientParses, None),
    (Tallied::ServerParses, None),
    (Tallied::Binds, None),
];

#[derive(Clone, Copy)]
enum Figures {
    /// Since the process began.
    Totals,
    /// Per second of the last whole period; times per what they were spent on.
    Averages,
}

impl Figures {
    fn of(self, what: Tallied, per: Option<Tallied>, totals: &Totals, period: &Totals) -> u64 {
        match (self, per) {
            (Self::Totals, _) => totals.of(what),
            (Self::Averages, None) => period.of(what) / PERIOD.as_secs(),
            (Self::Averages, Some(per)) => period.of(what).checked_div(period.of(per)).unwrap_or_default(),
        }
    }
}

fn stats(app: &App, table: &mut Table, kinds: &[Figures]) {
    let all = app.registry.totals();
    for (database, totals) in all.iter() {
        let period = app.statistics.last_period(database);
        let mut row = row![database];
        for kind in kinds {
            let figures = FIGURES.map(|(what, per)| kind.of(what, per, totals, &period));
            row.extend(figures.map(Cell::from));
        }
        table.push(row);
    }
}

fn lists(app: &App, table: &mut Table) {
    let groups = census::groups(app);
    let databases: BTreeSet<_> = groups.keys().map(|(database, _)| database).collect();
    let users: BTreeSet<_> = groups.keys().map(|(_, user)| user).collect();
    let servers: u32 = groups
        .values()
        .map(|group| usage(group))
        .map(|servers| servers.active + servers.idle)
        .sum();
    let limits = &app.config.limits;
    let logging_in = limits.unauthenticated_max - app.unauthenticated.available_permits();
    for (list, items) in [
        ("databases", databases.len()),
        ("users", users.len()),
        ("peers", 0),
        ("pools", groups.len()),
        ("peer_pools", 0),
        ("free_clients", app.places.available_permits()),
        ("used_clients", app.registry.len()),
        ("login_clients", logging_in),
        ("free_servers", 0),
        ("used_servers", servers as usize),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ] {
        table.push(row![list, items]);
    }
}

/// What each session costs by itself. Buffers come on top while they are in use; see `/metrics` for the process.
fn memory(app: &App, table: &mut Table) {
    let sessions = app.registry.len();
    let size = size_of::<crate::session::Session>();
    table.push(row!["session", size, sessions, 0, size * sessions]);
}

fn state(app: &App, table: &mut Table) {
    let scopes = app.operations.pauses.scopes();
    let paused = scopes.iter().any(|scope| **scope == Scope::All);
    let yes_or_no = |yes| if yes { "yes" } else { "no" };
    table.push(row!["active", yes_or_no(!paused)]);
    table.push(row!["paused", yes_or_no(paused)]);
    table.push(row!["suspended", "no"]);
    let held = app.held();
    table.push(row!["held_clients", held.clients]);
    table.push(row!["held_bytes", held.bytes]);
}

fn help(table: &mut Table) {
    for (command, what) in super::HELP {
        table.push(row![*command, *what]);
    }
}

/// How long ago something was, in whole seconds.
pub(super) fn seconds_since(moment: SystemTime) -> u64 {
    moment.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}
