//! SHOW CONFIG: the settings in force, by the names of the configuration file, and a few under PgBouncer's names that
//! its exporters look for. Secrets are none of them.

use super::table::{Column, Kind, Table, row};
use crate::app::App;

pub(super) const COLUMNS: &[Column] = &[
    ("key", Kind::Text),
    ("value", Kind::Text),
    ("default", Kind::Text),
    ("changeable", Kind::Text),
];

pub(super) fn fill(app: &App, table: &mut Table) {
    let config = &app.config;
    let milliseconds = |duration: std::time::Duration| format!("{}ms", duration.as_millis());
    let or_off =
        |duration: Option<std::time::Duration>| duration.map_or_else(|| "off".to_owned(), milliseconds);
    let (pool, routing, limits, failover) = (&config.pool, &config.routing, &config.limits, &config.failover);
    let settings: Vec<(&str, String)> = vec![
        ("max_client_conn", limits.client_connections_max.to_string()),
        ("default_pool_size", pool.size.to_string()),
        ("min_pool_size", pool.min_size.to_string()),
        ("max_user_connections", "0".to_owned()),
        ("pool_mode", format!("{:?}", pool.mode).to_ascii_lowercase()),
        ("general.workers", config.general.workers.to_string()),
        (
            "general.drain_timeout",
            milliseconds(config.general.drain_timeout),
        ),
        ("general.zone", config.general.zone.clone().unwrap_or_default()),
        ("pool.wait_timeout", milliseconds(pool.wait_timeout)),
        ("pool.waiters_max", pool.waiters_max.to_string()),
        ("pool.connects_max", pool.connects_max.to_string()),
        ("pool.connect_timeout", milliseconds(pool.connect_timeout)),
        ("pool.lifetime", milliseconds(pool.lifetime)),
        ("pool.idle_timeout", milliseconds(pool.idle_timeout)),
        (
            "pool.prepared_statements_max",
            pool.prepared_statements_max.to_string(),
        ),
        (
            "pool.sequences",
            format!("{:?}", pool.sequences).to_ascii_lowercase(),
        ),
        (
            "routing.read_fallback",
            format!("{:?}", routing.read_fallback).to_ascii_lowercase(),
        ),
        ("routing.read_wait", milliseconds(routing.read_wait)),
        ("routing.reads_behind_max", routing.reads_behind_max.to_string()),
        ("routing.catch_up_wait", milliseconds(routing.catch_up_wait)),
        ("routing.read_consistency", routing.read_consistency.to_string()),
        (
            "routing.max_replica_lag_bytes",
            routing
                .max_replica_lag_bytes
                .map_or_else(|| "off".to_owned(), |bytes| bytes.to_string()),
        ),
        ("routing.max_replica_lag", or_off(routing.max_replica_lag)),
        (
            "routing.statement_size_max",
            routing.statement_size_max.to_string(),
        ),
        ("failover.hold", milliseconds(failover.hold)),
        ("failover.held_clients_max", failover.held_clients_max.to_string()),
        ("failover.held_bytes_max", failover.held_bytes_max.to_string()),
        (
            "limits.unauthenticated_max",
            limits.unauthenticated_max.to_string(),
        ),
        ("limits.startup_timeout", milliseconds(limits.startup_timeout)),
        (
            "limits.idle_in_transaction_timeout",
            or_off(limits.idle_in_transaction_timeout),
        ),
        ("limits.pipeline_max", limits.pipeline_max.to_string()),
        ("admin.pause_timeout", milliseconds(config.admin.pause_timeout)),
    ];
    for (key, value) in settings {
        table.push(row![key, value, Option::<String>::None, "no"]);
    }
}
