//! Halyard's own tables: nodes, routes, pins, events, the fence.

use std::sync::Arc;

use super::census;
use super::moment::shown;
use super::show::seconds_since;
use super::table::{Cell, Column, Kind, Table, row};
use crate::app::App;
use crate::routing::Standing;
use Kind::{Int4, Int8, Text};

pub(super) const NODES: &[Column] = &[
    ("node", Text),
    ("host", Text),
    ("port", Int4),
    ("role", Text),
    ("standing", Text),
    ("timeline", Int8),
    ("position", Text),
    ("replay", Text),
    ("lag_bytes", Int8),
    ("lag_ms", Int8),
    ("serves_reads", Int4),
    ("drained", Int4),
    ("outstanding", Int4),
    ("reason", Text),
];

pub(super) fn nodes(app: &App, table: &mut Table) {
    let view = app.view.borrow().clone();
    let routes = app.routing.load();
    for ((node, seen), standing) in app.nodes.iter().zip(&view.nodes).zip(&routes.standing) {
        table.push(row![
            node.name.as_str(),
            node.target.host.as_str(),
            node.target.port,
            seen.role.to_string(),
            standing_name(*standing),
            seen.timeline.map(|timeline| timeline.0),
            seen.position.map(|position| position.to_string()),
            seen.replay.map(|replay| replay.to_string()),
            seen.lag.bytes,
            seen.lag
                .time
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            seen.serves_reads,
            app.operations.is_drained(node.id),
            node.load.outstanding.load(std::sync::atomic::Ordering::Relaxed),
            seen.reason.as_ref().map(ToString::to_string),
        ]);
    }
}

fn standing_name(standing: Standing) -> &'static str {
    match standing {
        Standing::Primary => "primary",
        Standing::Standby => "standby",
        Standing::Fenced => "fenced",
        Standing::Unreachable => "unreachable",
    }
}

pub(super) const ROUTES: &[Column] = &[
    ("access", Text),
    ("node", Text),
    ("weight", Int4),
    ("near", Int4),
    ("epoch", Int8),
    ("note", Text),
];

/// The routing table in force: who takes writes, and who takes reads.
pub(super) fn routes(app: &App, table: &mut Table) {
    let routes = Arc::clone(&app.routing.load());
    let name = |node: halyard_health::NodeId| app.nodes[usize::from(node.0)].name.as_str();
    table.push(row![
        "write",
        routes.primary.map(name),
        Cell::Null,
        Cell::Null,
        routes.epoch,
        Some(routes.no_primary.as_str()).filter(|reason| !reason.is_empty()),
    ]);
    for (at, (node, weight)) in routes.readers.iter().enumerate() {
        table.push(row![
            "read",
            name(*node),
            *weight,
            at < routes.near,
            routes.epoch,
            Cell::Null,
        ]);
    }
}

pub(super) const PINS: &[Column] = &[
    ("id", Int8),
    ("user", Text),
    ("database", Text),
    ("application_name", Text),
    ("reason", Text),
    ("since", Text),
    ("seconds", Int8),
    ("state", Text),
    ("node", Text),
    ("remote_pid", Int4),
];

/// The sessions that keep their backend between transactions.
pub(super) async fn pins(app: &App, table: &mut Table) {
    for client in census::clients(app).await {
        let Some((reason, since)) = client.pin else {
            continue;
        };
        let node = client
            .backend
            .and_then(|(node, ..)| app.nodes.get(usize::from(node.0)));
        table.push(row![
            client.number,
            client.user.as_str(),
            client.database.as_str(),
            client.application_name.as_str(),
            reason.as_str(),
            shown(since),
            seconds_since(since),
            client.state(),
            node.map(|node| node.name.clone()),
            client.backend.map(|(_, _, pid, _)| pid),
        ]);
    }
}

pub(super) const EVENTS: &[Column] = &[
    ("number", Int8),
    ("time", Text),
    ("kind", Text),
    ("node", Text),
    ("epoch", Int8),
    ("event", Text),
];

pub(super) fn events(app: &App, table: &mut Table) {
    for event in app.history.events() {
        table.push(row![
            event.number,
            shown(event.at),
            event.kind,
            event.node,
            event.epoch,
            event.what,
        ]);
    }
}

pub(super) const FENCE: &[Column] = &[
    ("node", Text),
    ("role", Text),
    ("timeline", Int8),
    ("position", Text),
    ("sample", Int8),
    ("behind", Int8),
];

/// How far each node is by the numbers that read-your-writes goes by: the newest sample of the primary's position, and
/// the newest one that each standby has replayed.
pub(super) fn fence(app: &App, table: &mut Table) {
    let view = app.view.borrow().clone();
    let primary = view.primary().map(|node| node.id);
    for (node, seen) in app.nodes.iter().zip(&view.nodes) {
        let sample = if Some(seen.id) == primary {
            view.newest_sample.0
        } else {
            node.coverage.covered().0
        };
        table.push(row![
            node.name.as_str(),
            seen.role.to_string(),
            seen.timeline.map(|timeline| timeline.0),
            seen.replay.or(seen.position).map(|position| position.to_string()),
            sample,
            view.newest_sample.0.saturating_sub(sample),
        ]);
    }
}
