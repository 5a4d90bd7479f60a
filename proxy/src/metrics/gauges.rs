//! Gauges: the snapshot that `/status` shows, in Prometheus' words. One truth in two forms.

use std::fmt::Display;

use super::exposition::{Kind, family};
use crate::status::{NodeStatus, PoolStatus, Role, Status};

/// Labels of one series.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Appends all gauges of `status` in Prometheus' text format.
pub fn render(status: &Status, out: &mut String) {
    let none = Vec::new;
    gauge(
        out,
        "halyard_build_info",
        "Always 1; the version is a label.",
        [(vec![("version", status.version.as_str())], 1)],
    );
    let draining = u8::from(status.draining);
    gauge(
        out,
        "halyard_draining",
        "Whether new clients are refused because Halyard shuts down.",
        [(none(), draining)],
    );
    let help = "Number of the routing table in force; it grows with every change.";
    gauge(out, "halyard_routing_table_epoch", help, [(none(), status.epoch)]);
    clients(status, out);
    nodes(status, out);
    pools(status, out);
    notifications(status, out);
}

fn gauge<'a, V: Display>(
    out: &mut String,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels<'a>, V)>,
) {
    family(out, Kind::Gauge, name, help, series);
}

fn clients(status: &Status, out: &mut String) {
    let clients = &status.clients;
    let by_state = [
        ("authenticating", clients.authenticating),
        ("idle", clients.idle),
        ("active", clients.active),
        ("idle_in_transaction", clients.idle_in_transaction),
        ("waiting", clients.waiting),
        ("held", clients.held),
    ];
    let series = by_state.map(|(state, count)| (vec![("state", state)], count));
    gauge(
        out,
        "halyard_clients",
        "Client connections, by what they do.",
        series,
    );
    let help = "Most client connections that are let in.";
    gauge(
        out,
        "halyard_client_connections_max",
        help,
        [(Vec::new(), clients.connections_max)],
    );
    let help =
        "Clients whose statement is held: for want of a node, by a pause, or until a channel is heard.";
    gauge(out, "halyard_held_clients", help, [(Vec::new(), clients.held)]);
    let help = "Bytes of the statements that are held.";
    gauge(
        out,
        "halyard_held_bytes",
        help,
        [(Vec::new(), clients.held_bytes)],
    );
}

fn notifications(status: &Status, out: &mut String) {
    let listening = &status.notifications;
    for (name, help, value) in [
        (
            "halyard_listening_clients",
            "Clients that listen to channels without a connection to a node of their own.",
            listening.clients,
        ),
        (
            "halyard_listened_channels",
            "Channels that Halyard listens to for them.",
            listening.channels,
        ),
        (
            "halyard_listener_connections",
            "Connections to the primary that listen for them.",
            listening.connections,
        ),
    ] {
        gauge(out, name, help, [(Vec::new(), value)]);
    }
}

fn nodes(status: &Status, out: &mut String) {
    let nodes = &status.nodes;
    let each = |out: &mut String, name: &str, help: &str, value: fn(&NodeStatus) -> Option<f64>| {
        let series = nodes
            .iter()
            .filter_map(|node| Some((vec![("node", node.name.as_str())], value(node)?)));
        gauge(out, name, help, series);
    };
    each(
        out,
        "halyard_node_up",
        "Whether the node answers its probes.",
        |node| Some(f64::from(u8::from(node.up))),
    );
    each(
        out,
        "halyard_node_serves_reads",
        "Whether reads are sent to the node as a standby.",
        |node| Some(f64::from(u8::from(node.serves_reads))),
    );
    each(out, "halyard_node_timeline", "The node's timeline.", |node| {
        node.timeline.map(f64::from)
    });
    each(
        out,
        "halyard_node_replay_lag_seconds",
        "How far the standby is behind, in time.",
        |node| node.lag_seconds,
    );
    let lag_bytes = nodes
        .iter()
        .filter_map(|node| Some((vec![("node", node.name.as_str())], node.lag_bytes?)));
    gauge(
        out,
        "halyard_node_replay_lag_bytes",
        "How far the standby is behind, in bytes of WAL.",
        lag_bytes,
    );
    let roles = nodes.iter().flat_map(|node| {
        [Role::Primary, Role::Standby, Role::Unknown].map(|role| {
            let labels = vec![("node", node.name.as_str()), ("role", role.as_str())];
            (labels, u8::from(node.role == role))
        })
    });
    gauge(
        out,
        "halyard_node_role",
        "1 for the role that the node has, 0 for the others.",
        roles,
    );
}

fn pools(status: &Status, out: &mut String) {
    let of_pool = |pool: &'_ PoolStatus| -> [(&'static str, u64); 3] {
        [
            ("active", pool.active),
            ("idle", pool.idle),
            ("connecting", pool.connecting),
        ]
    };
    let mut backends: Vec<(&str, &'static str, u64)> = Vec::new();
    for pool in &status.pools {
        for (state, count) in of_pool(pool) {
            match backends
                .iter_mut()
                .find(|(node, of, _)| (*node, *of) == (pool.node.as_str(), state))
            {
                Some((_, _, sum)) => *sum += count,
                None => backends.push((&pool.node, state, count)),
            }
        }
    }
    let series = backends
        .into_iter()
        .map(|(node, state, count)| (vec![("node", node), ("state", state)], count));
    gauge(
        out,
        "halyard_backends",
        "Connections to a node over all its pools, by state.",
        series,
    );
    let waiting = status.pools.iter().map(|pool| {
        let labels = vec![
            ("node", pool.node.as_str()),
            ("database", pool.database.as_str()),
            ("user", pool.user.as_str()),
        ];
        (labels, pool.waiting)
    });
    gauge(
        out,
        "halyard_pool_waiters",
        "Clients that wait for a connection of this pool.",
        waiting,
    );
}
