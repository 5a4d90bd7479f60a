//! Drivers and frameworks at their ordinary work, each a program as its users write them.
//!
//! Every program is run against the primary itself first: what fails there is a mistake in the program. Then it runs
//! through the split port in transaction mode, and last three at a time over two connections to each node. They take
//! their schema from a setting of the connection, so the last also shows that settings follow their client.

mod rust;
mod targets;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{Address, Cluster, Program, Proxy, node, python};

/// How many run at a time where connections are few.
const AT_A_TIME: usize = 3;

#[test]
fn node_postgres() {
    works("node_postgres", |address| node("node_postgres.js", address));
}

#[test]
fn psycopg() {
    works("psycopg", |address| python("psycopg3.py", address));
}

#[test]
fn asyncpg() {
    works("asyncpg", |address| python("asyncpg_driver.py", address));
}

#[test]
fn sqlalchemy() {
    works("sqlalchemy", |address| python("sqlalchemy_orm.py", address));
}

#[test]
fn django() {
    works("django", |address| python("django_orm.py", address));
}

#[test]
fn libpq_picks_its_target_among_several_hosts() {
    picks("psycopg_targets.py");
}

#[test]
fn asyncpg_picks_its_target_among_several_hosts() {
    picks("asyncpg_targets.py");
}

/// Runs a program that picks its target: among servers first, then among the three kinds of ports.
fn picks(script: &str) {
    let cluster = Cluster::shared();
    let standby = cluster.replica_ports()[0];
    let primary = cluster.primary().port;
    let pick = |address: &Address, primary: u16, replica: u16| {
        let program = python(script, address)
            .env("PRIMARY_PORT", &primary.to_string())
            .env("REPLICA_PORT", &replica.to_string());
        assert_eq!(program.succeed(), "");
    };
    pick(&cluster.app(primary), primary, standby);
    let (proxy, primary) = cluster.proxy().also_listening("primary");
    let (proxy, replica) = proxy.also_listening("replica");
    pick(&proxy.start().address, primary, replica);
}

/// Runs a program in the three ways.
fn works(name: &str, program: impl Fn(&Address) -> Program + Sync) {
    let cluster = Cluster::shared();
    let direct = cluster.app(cluster.primary().port);
    let run = |address: &Address, few: bool| {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let schema = format!("{name}_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        cluster.prepare(&format!(
            "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}"
        ));
        let mut program = program(address).env("SCHEMA", &schema);
        if few {
            program = program.env("FEW_BACKENDS", "yes");
        }
        assert_eq!(program.succeed(), "");
    };
    run(&direct, false);
    run(&Cluster::shared_proxy().address, false);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| run(&few_backends().address, true));
        }
    });
    assert_eq!(few_backends().metric("halyard_writes_sent_to_standby_total"), 0.0);
}

/// A proxy with two connections to each node for all its clients.
fn few_backends() -> &'static Proxy {
    static PROXY: OnceLock<Proxy> = OnceLock::new();
    PROXY.get_or_init(|| Cluster::shared().proxy().set("pool.size", 2).start())
}
