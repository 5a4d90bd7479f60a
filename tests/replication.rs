//! Replication connections are led through to the primary as they are.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::support::message::*;
use crate::support::{Cluster, Program, until};

/// Lets the application's user replicate, for as long as the test runs; one test at a time.
struct MayReplicate {
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl MayReplicate {
    /// Nobody may yet.
    fn alone() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { _alone: alone }
    }

    fn grant() -> Self {
        let may = Self::alone();
        Self::alter("REPLICATION");
        may
    }

    fn alter(attribute: &str) {
        let cluster = Cluster::shared();
        let mut superuser = cluster.superuser(cluster.primary()).connect();
        superuser.run(&format!("ALTER ROLE appuser {attribute}"));
    }
}

impl Drop for MayReplicate {
    fn drop(&mut self) {
        Self::alter("NOREPLICATION");
    }
}

#[test]
fn a_walsender_streams_through_the_port() {
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().start();
    let _may = MayReplicate::alone();
    assert_eq!(
        proxy
            .address
            .try_connect(&[("replication", "database")])
            .err()
            .unwrap()
            .sqlstate(),
        "42501",
        "the node says who may replicate"
    );
    MayReplicate::alter("REPLICATION");
    let mut direct = cluster
        .app(cluster.primary().port)
        .connect_with(&[("replication", "database")]);
    let mut through = proxy.address.connect_with(&[
        ("replication", "database"),
        ("application_name", "streams_through"),
    ]);
    let [here, there] =
        [&mut direct, &mut through].map(|client| client.run("IDENTIFY_SYSTEM").rows[0].clone());
    assert_eq!(here[..2], there[..2], "the system and its timeline");
    assert_eq!(through.value("SHOW application_name"), "streams_through");
    assert_eq!(
        through.value("SELECT pg_is_in_recovery()"),
        "f",
        "SQL works as well"
    );

    let from = there[2].clone().unwrap();
    through.send(&query(&format!("START_REPLICATION PHYSICAL {from}")));
    through.until_kind(b'W');
    cluster.prepare(
        "DROP TABLE IF EXISTS streamed; CREATE TABLE streamed AS SELECT repeat('streamed', 1000) AS a",
    );
    let mut bytes = 0;
    while bytes < 4000 {
        let message = through.receive();
        assert_eq!(message.kind, b'd', "{message}");
        bytes += message.body.len();
    }
    through.send(&copy_done());
    through.until_kind(b'c');
    through.until_ready();
    through.leave();
    let mut superuser = cluster.superuser(cluster.primary()).connect();
    until("the walsender to end", || {
        superuser.value("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'streams_through'")
            == "0"
    });
}

#[test]
fn psql_speaks_to_a_walsender() {
    let _may = MayReplicate::grant();
    let proxy = Cluster::shared().proxy().start();
    let conninfo = format!("{} replication=database", proxy.address.conninfo());
    let out = Program::psql(&proxy.address)
        .with(&[&conninfo, "-c", "IDENTIFY_SYSTEM"])
        .succeed();
    assert!(out.contains("appdb"), "{out}");
}

#[test]
fn a_replica_only_port_streams_nothing() {
    let (wanted, port) = Cluster::shared().proxy().also_listening("replica");
    let _proxy = wanted.start();
    let refusal = Cluster::shared()
        .app(port)
        .try_connect(&[("replication", "true")])
        .err()
        .unwrap();
    assert_eq!(
        refusal.sqlstate(),
        "28000",
        "the rules name replication where it is allowed"
    );
    let refusal = Cluster::shared()
        .app(port)
        .try_connect(&[("replication", "database")])
        .err()
        .unwrap();
    assert_eq!(refusal.sqlstate(), "0A000");
}
