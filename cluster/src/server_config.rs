//! What the servers' configuration files say. Pure.
//!
//! pg_basebackup and pg_rewind copy configuration files from one node over another's, so inside PGDATA every
//! node has the same `postgresql.conf` of one line, `include '../node.conf'`. That path leads to the node's own
//! file beside its PGDATA. pg_autoctl puts its own include first; ours comes last and wins.

use serde::{Deserialize, Serialize};

use crate::layout::{HA_NODES, HOST, Layout, MONITOR_DATABASE, Ports, Service};
use crate::record::Users;

/// The engine's timing: how soon a dead primary is replaced, and how sure the engine is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Profile {
    /// A new primary accepts writes about 25 s after the old one died. Survives stalls of several seconds.
    Seed,
    /// About 13 s. A machine that stalls for 3 s causes a failover: not for loaded ones.
    Fast,
    /// About 55 s: pg_auto_failover's own defaults, to compare with.
    Defaults,
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Profile::Seed => "seed",
            Profile::Fast => "fast",
            Profile::Defaults => "defaults",
        })
    }
}

/// The profile's numbers. An isolated primary must have demoted itself before another is writable:
/// `keeper_partition_timeout + 4 s <= unhealthy_timeout + 3 s + demote_timeout`.
#[derive(Debug, PartialEq, Eq)]
struct Timing {
    health_check_period_ms: u32,
    health_check_timeout_ms: u32,
    health_check_retry_delay_ms: u32,
    health_check_max_retries: u32,
    unhealthy_timeout_ms: u32,
    demote_timeout_ms: u32,
    keeper_partition_timeout_s: u32,
}

impl Profile {
    fn timing(self) -> Timing {
        match self {
            Profile::Seed => Timing {
                health_check_period_ms: 2_000,
                health_check_timeout_ms: 2_000,
                health_check_retry_delay_ms: 1_000,
                health_check_max_retries: 2,
                unhealthy_timeout_ms: 10_000,
                demote_timeout_ms: 10_000,
                keeper_partition_timeout_s: 10,
            },
            Profile::Fast => Timing {
                health_check_period_ms: 500,
                health_check_timeout_ms: 1_000,
                health_check_retry_delay_ms: 250,
                health_check_max_retries: 1,
                unhealthy_timeout_ms: 3_000,
                demote_timeout_ms: 5_000,
                keeper_partition_timeout_s: 5,
            },
            Profile::Defaults => Timing {
                health_check_period_ms: 5_000,
                health_check_timeout_ms: 5_000,
                health_check_retry_delay_ms: 2_000,
                health_check_max_retries: 2,
                unhealthy_timeout_ms: 20_000,
                demote_timeout_ms: 30_000,
                keeper_partition_timeout_s: 20,
            },
        }
    }

    /// Seconds without monitor and standbys after which a primary's keeper stops it
    /// (pg_autoctl's `timeout.network_partition_timeout`).
    pub(crate) fn keeper_partition_timeout_s(self) -> u32 {
        self.timing().keeper_partition_timeout_s
    }
}

/// Whether the servers wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Durability {
    /// PostgreSQL's default: what is acknowledged survives a power cut.
    Fsync,
    /// For tests only: a crash of the machine destroys the data.
    NoFsync,
}

/// The one line of `postgresql.conf` in every PGDATA.
pub(crate) const POSTGRESQL_CONF: &str = "include '../node.conf'\n";

/// Host-based authentication for every server of the cluster, one file outside all PGDATAs.
pub(crate) fn pg_hba() -> String {
    format!(
        "# Written by `halyard cluster up`. Every server of the cluster reads this one file.
# TYPE  DATABASE  USER  ADDRESS  METHOD

# The monitor's own listener comes over its unix socket.
local  {MONITOR_DATABASE}  autoctl_node  scram-sha-256
# Whoever runs the servers is their superuser over the unix sockets, whose folder nobody else may enter.
local  all  postgres  peer map=owner

# The password of the engine's health checks is compiled into it: that role sees one empty database.
host  postgres  pgautofailover_monitor  {HOST}/32  scram-sha-256
host  all  pgautofailover_monitor  {HOST}/32  reject
host  replication  replicator,pgautofailover_replicator  {HOST}/32  scram-sha-256
host  all  all  {HOST}/32  scram-sha-256
"
    )
}

/// Maps the operating system's user to the superuser, whatever its name.
pub(crate) fn pg_ident(owner: &str) -> String {
    format!("# MAPNAME  SYSTEM-USERNAME  PG-USERNAME\nowner  \"{owner}\"  postgres\n")
}

/// A server's own settings.
pub(crate) fn node_conf(
    layout: &Layout,
    service: Service,
    ports: &Ports,
    profile: Profile,
    durability: Durability,
    users: &Users,
) -> String {
    let mut conf = Conf::default();
    conf.comment(
        "Written by `halyard cluster up`; settings of your own belong behind these, or into ALTER SYSTEM.",
    );
    conf.text("hba_file", &layout.etc().join("pg_hba.conf").to_string_lossy());
    conf.text(
        "ident_file",
        &layout.etc().join("pg_ident.conf").to_string_lossy(),
    );
    conf.text("cluster_name", &service.to_string());
    conf.text("password_encryption", "scram-sha-256");
    conf.comment("Many servers share one machine: each stays small.");
    conf.set("max_connections", 200);
    conf.text("shared_buffers", "64MB");
    conf.text("effective_cache_size", "512MB");
    conf.text("work_mem", "4MB");
    conf.text("maintenance_work_mem", "64MB");
    conf.comment("A read-only replica streams without a slot: this much WAL is how far it may fall behind.");
    conf.text("wal_keep_size", "512MB");
    conf.text("max_wal_size", "512MB");
    conf.comment("pg_rewind needs it or checksums; the cluster has both, so one may be switched off.");
    conf.set("wal_log_hints", "on");
    if durability == Durability::NoFsync {
        conf.comment("--no-fsync: for tests. A crash of the machine destroys this data.");
        conf.set("fsync", "off");
    }
    conf.comment("One log a server, outside PGDATA, where pg_rewind would replace it.");
    conf.set("logging_collector", "on");
    conf.text("log_directory", &layout.logs().to_string_lossy());
    conf.text("log_filename", &format!("{service}.log"));
    conf.set("log_rotation_age", 0);
    conf.set("log_rotation_size", 0);
    conf.text("log_line_prefix", "%m [%p] %q%u@%d ");
    conf.text("log_timezone", "UTC");
    conf.text("timezone", "UTC");
    conf.comment("pg_auto_failover logs DDL, and with it the verifiers of passwords.");
    conf.text("log_statement", "none");
    match service {
        Service::Monitor => monitor_settings(&mut conf, &profile.timing()),
        Service::Ro(_) => replica_settings(&mut conf, layout, service, ports, &users.replicator.name),
        Service::Node(_) | Service::Proxy => {}
    }
    conf.0
}

fn monitor_settings(conf: &mut Conf, timing: &Timing) {
    conf.comment("The engine's timing, in milliseconds.");
    let mut set = |name: &str, value: u32| conf.set(&format!("pgautofailover.{name}"), value);
    set("health_check_period", timing.health_check_period_ms);
    set("health_check_timeout", timing.health_check_timeout_ms);
    set("health_check_max_retries", timing.health_check_max_retries);
    set("health_check_retry_delay", timing.health_check_retry_delay_ms);
    set("node_considered_unhealthy_timeout", timing.unhealthy_timeout_ms);
    set("primary_demote_timeout", timing.demote_timeout_ms);
}

/// What pg_auto_failover sets on its nodes must not be less on a standby of theirs (manual, "Hot Standby").
fn replica_settings(conf: &mut Conf, layout: &Layout, service: Service, ports: &Ports, role: &str) {
    conf.comment("A cascading standby beside the engine. pg_auto_failover's nodes have these values too.");
    conf.set("port", ports.of(service));
    conf.text("listen_addresses", HOST);
    conf.text("unix_socket_directories", &layout.run().to_string_lossy());
    conf.text("shared_preload_libraries", "pg_stat_statements");
    conf.set("max_wal_senders", 12);
    conf.set("max_replication_slots", 12);
    conf.comment(
        "From a backup while one answers: a replica of a dying primary can get ahead of the next one.",
    );
    conf.text("primary_conninfo", &primary_conninfo(service, ports, role));
    conf.text("recovery_target_timeline", "latest");
    conf.text("wal_retrieve_retry_interval", "200ms");
    conf.text("wal_receiver_timeout", "5s");
    conf.text("wal_receiver_status_interval", "1s");
    conf.set("hot_standby", "on");
    conf.set("hot_standby_feedback", "on");
}

/// Where a read-only replica streams from: any standby of node1 to node3 that answers, else the primary
/// (`prefer-standby`). Replicas start at different nodes, so that one backup does not feed them all.
pub(crate) fn primary_conninfo(service: Service, ports: &Ports, role: &str) -> String {
    let backups: [u8; 2] = match service {
        Service::Ro(number) if number % 2 == 0 => [3, 2],
        _ => [2, 3],
    };
    let order: Vec<Service> = backups.into_iter().chain([1]).map(Service::Node).collect();
    debug_assert_eq!(order.len(), usize::from(HA_NODES));
    let hosts = vec![HOST; order.len()].join(",");
    let numbers: Vec<String> = order.iter().map(|node| ports.of(*node).to_string()).collect();
    format!(
        "host={hosts} port={} user={role} application_name={service} connect_timeout=2 \
         target_session_attrs=prefer-standby",
        numbers.join(",")
    )
}

/// A `postgresql.conf` being written.
#[derive(Default)]
struct Conf(String);

impl Conf {
    fn comment(&mut self, text: &str) {
        self.0.push_str(&format!("\n# {text}\n"));
    }

    fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push_str(&format!("{name} = {value}\n"));
    }

    /// A quoted value; quotes in it are doubled and backslashes too, as guc-file.l reads them.
    fn text(&mut self, name: &str, value: &str) {
        let quoted = value.replace('\\', "\\\\").replace('\'', "''");
        self.0.push_str(&format!("{name} = '{quoted}'\n"));
    }
}

#[cfg(test)]
mod tests;
