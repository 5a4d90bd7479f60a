//! Nodes that are taken away on purpose or by force, and who waits for them or reads on them meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::message::*;
use crate::support::{Address, Client, Cluster, LONG_PATIENCE, Link, Proxy, until, until_within};

fn patient(address: &Address) -> Client {
    let client = address.connect();
    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    client
}

fn console(proxy: &Proxy) -> Client {
    patient(&Address {
        database: "halyard".to_owned(),
        ..proxy.address.clone()
    })
}

/// At a peer who stood in the line of the old primary's pool stood there for ever, or was told of its death.
#[test]
fn who_stands_in_the_old_primarys_line_goes_on_with_the_new_one() {
    const WAITERS: u64 = 6;
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS in_line; CREATE TABLE in_line (n int)");
    let proxy = cluster
        .proxy()
        .set("pool.size", 1)
        .set("pool.wait_timeout", "120s")
        .start();
    let mut holder = patient(&proxy.address);
    holder.run("BEGIN");
    holder.run("INSERT INTO in_line VALUES (0)");
    let mut line: Vec<Client> = (1..=WAITERS)
        .map(|number| {
            let mut client = patient(&proxy.address);
            client.send(&query(&format!("INSERT INTO in_line VALUES ({number})")));
            client
        })
        .collect();
    until("all of them to wait", || proxy.clients("waiting") == WAITERS);
    let old = cluster.primary().name.clone();
    cluster.kill(&old);
    for waiter in &mut line {
        let told = waiter.answer();
        assert_eq!((told.error, told.tags), (None, vec!["INSERT 0 1".to_owned()]));
    }
    assert_eq!(holder.failure("SELECT 1"), "40001");
    holder.run("ROLLBACK");
    let there = "BEGIN; SELECT count(*) || ' ' || count(DISTINCT n) FROM in_line; COMMIT";
    assert_eq!(holder.value(there), format!("{WAITERS} {WAITERS}"));
    assert_ne!(cluster.primary().name, old);
}

/// Nor does anybody stand on in the line of a replica that is gone.
#[test]
fn who_stands_in_a_lost_replicas_line_is_answered_elsewhere() {
    const WAITERS: u64 = 5;
    let cluster = Cluster::shared();
    let link = Link::to(cluster.node("ro1").port);
    let proxy = cluster
        .proxy()
        .only_nodes(|node| node == cluster.primary().name || node == "ro1")
        .through("ro1", &link)
        .set("pool.size", 1)
        .set("pool.wait_timeout", "120s")
        .start();
    let mut holder = patient(&proxy.address);
    holder.run("BEGIN READ ONLY");
    assert_eq!(holder.server_port(), cluster.node("ro1").port);
    let mut line: Vec<Client> = (0..WAITERS).map(|_| patient(&proxy.address)).collect();
    for waiter in &mut line {
        waiter.send(&query("SELECT inet_server_port()"));
    }
    until("all of them to wait", || proxy.clients("waiting") == WAITERS);
    link.cut();
    let primary = cluster.primary().port.to_string();
    for waiter in &mut line {
        let told = waiter.answer();
        assert_eq!((told.error, told.rows), (None, vec![vec![Some(primary.clone())]]));
    }
    assert_eq!(holder.failure("SELECT 1"), "40001");
}

/// All who were held are let go at once: not all of them get a connection for that, and none gets an error.
#[test]
fn a_crowd_that_was_held_shares_the_pool_of_the_new_primary() {
    const CROWD: u64 = 120;
    const POOL: i32 = 5;
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS crowd; CREATE TABLE crowd (n int)");
    let proxy = cluster
        .proxy()
        .set("pool.size", POOL)
        .set("pool.wait_timeout", "120s")
        .start();
    let named = |_| {
        let client = proxy.address.connect_with(&[("application_name", "crowd")]);
        client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
        client
    };
    let mut crowd: Vec<Client> = (0..CROWD).map(named).collect();
    let old = cluster.primary().name.clone();
    cluster.kill(&old);
    proxy.until_role(&old, "unknown");
    for (number, client) in crowd.iter_mut().enumerate() {
        client.send(&query(&format!(
            "INSERT INTO crowd SELECT {number} FROM pg_sleep(0.01)"
        )));
    }
    until("most of them to be held", || proxy.clients("held") > CROWD / 2);
    // Nobody logs in when the hold is over: that was done while there was nobody yet who takes writes.
    let ready = until_within(LONG_PATIENCE, "the next primary's connections", || {
        let metrics = proxy.metrics();
        cluster.nodes().iter().find(|node| {
            let idle = format!("halyard_backends{{node=\"{}\",state=\"idle\"}}", node.name);
            metrics.get(&idle).is_some_and(|count| *count >= f64::from(POOL))
        })
    });
    assert!(
        cluster.nodes().iter().all(|node| !cluster.is_writable(node)),
        "{} had its connections when it took writes already",
        ready.name
    );
    let over = AtomicBool::new(false);
    let most = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut direct = cluster.superuser(cluster.primary()).connect();
            let theirs = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crowd'";
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(direct.value(theirs).parse::<i32>().unwrap());
            }
            most
        });
        let told: Vec<_> = crowd.iter_mut().map(Client::answer).collect();
        over.store(true, Ordering::Relaxed);
        assert!(told.iter().all(|told| told.error.is_none()), "{told:?}");
        looking.join().unwrap()
    });
    assert!(
        (1..=POOL).contains(&most),
        "{most} connections for {CROWD} clients"
    );
    let there = "BEGIN; SELECT count(*) || ' ' || count(DISTINCT n) FROM crowd; COMMIT";
    assert_eq!(crowd[0].value(there), format!("{CROWD} {CROWD}"));
    assert_eq!(cluster.primary(), ready);
}

/// As docs/operating.md says it: drained, stopped, started, let in again; a replica that has reads, and the standby that
/// writes wait for.
#[test]
fn a_node_is_taken_down_and_brought_back_without_an_error() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS kept_up; CREATE TABLE kept_up (n bigint)");
    let proxy = cluster
        .eventual()
        .set("admin.users", vec![cluster.app(1).user])
        .start();
    let mut console = console(&proxy);
    let primary = cluster.primary().name.clone();
    let backup = ["node1", "node2", "node3"]
        .into_iter()
        .find(|name| *name != primary)
        .unwrap();
    let replica = cluster.node("ro1").clone();
    let reads_there = || (0..30).any(|_| proxy.connect().server_port() == replica.port);
    until("the replica to have reads", reads_there);
    let over = AtomicBool::new(false);
    let written: u64 = thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = patient(&proxy.address);
                    let mut count = 0;
                    while !over.load(Ordering::Relaxed) {
                        client.run("INSERT INTO kept_up VALUES (1)");
                        for _ in 0..5 {
                            client.run("SELECT count(*) FROM kept_up");
                        }
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            console.run("DRAIN ro1");
            until("reads to go elsewhere", || !reads_there());
            cluster.stop("ro1");
            cluster.start("ro1");
            assert!(!reads_there(), "it is drained still");
            console.run("UNDRAIN ro1");
            until("reads to come back", reads_there);
            console.run(&format!("DRAIN {backup}"));
            cluster.stop(backup);
            cluster.start(backup);
            console.run(&format!("UNDRAIN {backup}"));
        }));
        over.store(true, Ordering::Relaxed);
        let written = clients.into_iter().map(|client| client.join().unwrap()).sum();
        taken.unwrap();
        written
    });
    for name in ["ro1", backup] {
        let mut standby = cluster.superuser(cluster.node(name)).connect();
        until("the node to have it all", || {
            standby.value("SELECT count(*) FROM kept_up") == written.to_string()
        });
    }
}
