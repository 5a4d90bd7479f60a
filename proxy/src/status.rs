//! The state of a running proxy in one snapshot: what `/status` answers, what the gauges of `/metrics` show, and what
//! `halyard status` prints.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// A snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Halyard's version.
    pub version: String,
    /// How long the process has been running.
    pub uptime_seconds: u64,
    /// Whether it is shutting down and refuses new clients.
    pub draining: bool,
    /// Number of the routing table in force.
    pub epoch: u64,
    /// What the nodes add up to, in a few words, such as `one primary` or `no primary`.
    pub topology: String,
    /// In the configuration's order.
    pub nodes: Vec<NodeStatus>,
    /// Those that exist at the moment.
    pub pools: Vec<PoolStatus>,
    /// Client connections.
    pub clients: ClientsStatus,
    /// LISTEN in transaction pooling.
    #[serde(default)]
    pub notifications: NotificationsStatus,
}

/// One node as the health module sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its configured name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// What it is at the moment.
    pub role: Role,
    /// Whether it answers its probes.
    pub up: bool,
    /// Whether reads are sent to it as a standby.
    pub serves_reads: bool,
    /// Its timeline, where known.
    pub timeline: Option<u32>,
    /// How far a standby is behind, in bytes of WAL; none for a primary, and where not known.
    pub lag_bytes: Option<u64>,
    /// The same in time.
    pub lag_seconds: Option<f64>,
    /// Why it is down, or not used as what it could be.
    pub reason: Option<String>,
}

/// What a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Proved writable.
    Primary,
    /// In recovery.
    Standby,
    /// Not known, or not proved.
    #[default]
    Unknown,
}

impl Role {
    /// As in JSON and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Standby => "standby",
            Role::Unknown => "unknown",
        }
    }
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// The node's name.
    pub node: String,
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// Connections that serve a client.
    pub active: u64,
    /// Connections that wait for one.
    pub idle: u64,
    /// Connections that are being made.
    pub connecting: u64,
    /// Clients that wait for a connection.
    pub waiting: u64,
    /// Most connections.
    pub size: u64,
}

/// Client connections, each counted in exactly one state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientsStatus {
    /// Not logged in yet.
    pub authenticating: u64,
    /// Between transactions.
    pub idle: u64,
    /// With a statement running on a node.
    pub active: u64,
    /// Inside a transaction block, between statements.
    pub idle_in_transaction: u64,
    /// Waiting for a connection to a node.
    pub waiting: u64,
    /// With a statement held: for want of a node, by a pause, or until a channel is heard.
    pub held: u64,
    /// Bytes of the statements that are held.
    pub held_bytes: u64,
    /// Most connections that are let in.
    pub connections_max: u64,
}

/// What is listened to for clients that keep no connection to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotificationsStatus {
    /// Clients that listen.
    pub clients: u64,
    /// Channels that are listened to, counted for each connection that listens.
    pub channels: u64,
    /// Connections that listen for them.
    pub connections: u64,
}

impl Status {
    /// The snapshot for people: a few lines and two tables.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let draining = if self.draining { ", draining" } else { "" };
        let _ = writeln!(
            out,
            "halyard {}, up {}{draining}; {}, routing table {}",
            self.version,
            duration_text(self.uptime_seconds),
            self.topology,
            self.epoch
        );
        let c = &self.clients;
        let _ = writeln!(
            out,
            "clients: {} active, {} idle, {} idle in transaction, {} waiting, {} held, {} authenticating (at most {})",
            c.active, c.idle, c.idle_in_transaction, c.waiting, c.held, c.authenticating, c.connections_max
        );
        out.push('\n');
        table(
            &mut out,
            &[
                "NODE", "ADDRESS", "ROLE", "UP", "READS", "TIMELINE", "LAG", "REASON",
            ],
            &self.node_rows(),
        );
        if !self.pools.is_empty() {
            out.push('\n');
            let heading = [
                "NODE",
                "DATABASE",
                "USER",
                "ACTIVE",
                "IDLE",
                "CONNECTING",
                "SIZE",
                "WAITING",
            ];
            table(&mut out, &heading, &self.pool_rows());
        }
        out
    }

    fn node_rows(&self) -> Vec<Vec<String>> {
        let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        let row = |node: &NodeStatus| {
            vec![
                node.name.clone(),
                node.address.clone(),
                node.role.as_str().to_owned(),
                yes(node.up),
                yes(node.serves_reads),
                node.timeline
                    .map_or_else(|| "-".to_owned(), |timeline| timeline.to_string()),
                lag_text(node),
                node.reason.clone().unwrap_or_default(),
            ]
        };
        self.nodes.iter().map(row).collect()
    }

    fn pool_rows(&self) -> Vec<Vec<String>> {
        let row = |pool: &PoolStatus| {
            let counts = [pool.active, pool.idle, pool.connecting, pool.size, pool.waiting];
            let names = [&pool.node, &pool.database, &pool.user];
            names
                .into_iter()
                .cloned()
                .chain(counts.map(|count| count.to_string()))
                .collect()
        };
        self.pools.iter().map(row).collect()
    }
}

fn lag_text(node: &NodeStatus) -> String {
    match (node.lag_bytes, node.lag_seconds) {
        (None, None) => "-".to_owned(),
        (Some(bytes), None) => format!("{bytes} B"),
        (None, Some(seconds)) => format!("{seconds:.1} s"),
        (Some(bytes), Some(seconds)) => format!("{bytes} B, {seconds:.1} s"),
    }
}

fn duration_text(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// Appends rows below their heading, each column as wide as its widest cell.
fn table(out: &mut String, heading: &[&str], rows: &[Vec<String>]) {
    let printable = |cell: &str| cell.replace(char::is_control, "?");
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> = [&heading]
        .into_iter()
        .chain(rows)
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
}

/// A small cluster, for tests of what shows a status.
#[cfg(test)]
pub(crate) fn example() -> Status {
    let node = |name: &str, port: u16, role| NodeStatus {
        name: name.to_owned(),
        address: format!("127.0.0.1:{port}"),
        role,
        up: true,
        timeline: Some(3),
        ..NodeStatus::default()
    };
    let pool = |database: &str, idle, waiting| PoolStatus {
        node: "node2".to_owned(),
        database: database.to_owned(),
        user: "app".to_owned(),
        active: 1,
        idle,
        connecting: 0,
        waiting,
        size: 20,
    };
    Status {
        version: "0.1.0".to_owned(),
        uptime_seconds: 3700,
        draining: false,
        epoch: 7,
        topology: "one primary".to_owned(),
        nodes: vec![
            node("node1", 5432, Role::Primary),
            NodeStatus {
                serves_reads: true,
                lag_bytes: Some(8192),
                lag_seconds: Some(0.25),
                ..node("node2", 5433, Role::Standby)
            },
            NodeStatus {
                up: false,
                timeline: None,
                reason: Some("connection refused".to_owned()),
                ..node("node3", 5434, Role::Unknown)
            },
        ],
        pools: vec![pool("app\"db", 4, 2), pool("other", 3, 0)],
        clients: ClientsStatus {
            idle: 90,
            active: 2,
            connections_max: 10_000,
            ..ClientsStatus::default()
        },
        notifications: NotificationsStatus {
            clients: 3,
            channels: 2,
            connections: 1,
        },
    }
}

#[cfg(test)]
mod tests;
