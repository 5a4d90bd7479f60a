//! The admin console: databases `halyard` and `pgbouncer` on every port, for the users that `[admin]` names.
//!
//! A client logs in like any other. What it types is answered from snapshots, without a node: PgBouncer's SHOW commands
//! with its columns, so that what reads those works unchanged, SHOW commands of Halyard's own, EXPLAIN ROUTE, and the
//! operations of [`operate`](crate::operate). Both protocols are spoken, as far as drivers need them; the messages are
//! few and written by `wire`.

mod census;
mod cluster;
mod command;
mod config;
mod conversation;
mod explain;
mod moment;
mod operations;
mod show;
mod table;

use std::sync::Arc;

use crate::app::App;
use crate::error::{Report, SqlState};
use crate::session::Registered;
use crate::startup::{Login, Peer};
use command::Command;
use conversation::Conversation;
use table::Table;

/// What SHOW HELP says.
const HELP: &[(&str, &str)] = &[
    (
        "SHOW CLIENTS | SERVERS | SOCKETS",
        "who is connected, and with which backends",
    ),
    (
        "SHOW POOLS | DATABASES | USERS | LISTS",
        "what there is, and how full it is",
    ),
    (
        "SHOW STATS | STATS_TOTALS | STATS_AVERAGES",
        "what was done, by database",
    ),
    (
        "SHOW CONFIG | VERSION | STATE | MEM",
        "how this process is set up",
    ),
    (
        "SHOW NODES | ROUTES | FENCE",
        "what the nodes are, and where statements go",
    ),
    (
        "SHOW PINS",
        "which sessions keep their backend, why and since when",
    ),
    ("SHOW EVENTS", "what has happened to the cluster"),
    (
        "EXPLAIN ROUTE statement",
        "where a statement would go, without running it",
    ),
    (
        "PAUSE [database]",
        "hold new transactions, and wait until the open ones are over",
    ),
    ("RESUME [database]", "let them go"),
    ("DRAIN node", "give a node no new reads"),
    ("UNDRAIN node", "give it reads again"),
    (
        "SWITCHOVER [TO node]",
        "have the engine make another node the primary, with transactions held meanwhile",
    ),
    (
        "RECONNECT [database]",
        "replace connections to the nodes as they come free",
    ),
];

/// What one of the console's users may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Privilege {
    /// Everything.
    Administrator,
    /// Look.
    Observer,
}

/// Whether a client of this database wants the console. Without anybody in `[admin]` there is none, and the names are
/// those of databases like any other.
pub fn is_wanted(app: &App, database: &str) -> bool {
    let admin = &app.config.admin;
    let is_open = !admin.users.is_empty() || !admin.stats_users.is_empty();
    is_open && matches!(database, "halyard" | "pgbouncer")
}

/// Serves a client of the console from the end of its login to its last word.
pub async fn serve(app: Arc<App>, login: Box<Login>, peer: Peer) {
    let admin = &app.config.admin;
    let privilege = if admin.users.contains(&login.user) {
        Privilege::Administrator
    } else if admin.stats_users.contains(&login.user) {
        Privilege::Observer
    } else {
        let report = Report::fatal(
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            format!("user \"{}\" may not use the admin console", login.user),
        )
        .with_hint("[admin] in the configuration names those who may.");
        return login.refuse(&report).await;
    };
    if login.replication.is_some() {
        let report = Report::fatal(
            SqlState::FEATURE_NOT_SUPPORTED,
            "the admin console replicates nothing",
        );
        return login.refuse(&report).await;
    }
    let Some((registered, key)) = app.register(login.protocol) else {
        let report = Report::fatal(SqlState::INTERNAL_ERROR, "no random numbers could be had");
        return login.refuse(&report).await;
    };
    introduce(&registered, &login, peer);
    tracing::info!(user = ?login.user, ?peer, ?privilege, "a console is opened");
    let console = Console {
        user: login.user.clone(),
        app: Arc::clone(&app),
        privilege,
    };
    Conversation::new(console, login, registered, &key).run().await;
}

fn introduce(registered: &Registered, login: &Login, peer: Peer) {
    registered
        .inbox
        .introduce(crate::session::introduction(login, 0, peer));
}

/// One user's console.
struct Console {
    app: Arc<App>,
    user: String,
    privilege: Privilege,
}

/// What a command comes to.
enum Answer {
    /// Rows, and how the command is called in its completion.
    Table(Table, &'static str),
    /// Nothing but its completion.
    Done(&'static str),
    Empty,
}

impl Console {
    /// Runs a command.
    ///
    /// # Errors
    /// 42501 for who may only look, and what the command itself says.
    async fn run(&self, command: &Command) -> Result<Answer, Report> {
        if command.is_privileged() {
            self.may_run()?;
        }
        Ok(match command {
            Command::Empty => Answer::Empty,
            Command::Begin => Answer::Done("BEGIN"),
            Command::End(tag) => Answer::Done(tag),
            Command::Set => Answer::Done("SET"),
            Command::Show(what) => Answer::Table(show::table(&self.app, *what).await, "SHOW"),
            Command::ExplainRoute { sql } => Answer::Table(explain::table(&self.app, sql)?, "EXPLAIN"),
            Command::Pause(database) => self.pause(database.as_deref()).await?,
            Command::Resume(database) => self.resume(database.as_deref())?,
            Command::Reconnect(database) => self.reconnect(database.as_deref())?,
            Command::Drain { node, drained } => self.drain(node, *drained)?,
            Command::Switchover { to } => Box::pin(self.switch_over(to.as_deref())).await?,
        })
    }
}
