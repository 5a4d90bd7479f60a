//! `max_replica_lag`: a standby that is too far behind serves no reads, comes back when it is well within the bound, and
//! one whose lag nobody knows is not taken for a good one. Where none is left, `read_fallback` says who answers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::message::*;
use crate::support::{Client, Cluster, Proxy, Replay, Wanted, until};

const REPLICAS: [&str; 3] = ["ro1", "ro2", "ro3"];

/// The bound in bytes that these tests set.
const BYTES_MAX: u64 = 2 << 20;

/// A proxy over the primary and the read-only replicas, whose reads see what they find.
fn eventual(cluster: &Cluster) -> Wanted<'_> {
    let primary = cluster.primary().name.clone();
    cluster
        .proxy()
        .only_nodes(|name| name.starts_with("ro") || name == primary)
        .set("routing.read_consistency", "eventual")
}

fn bounded_in_bytes(cluster: &Cluster) -> Wanted<'_> {
    eventual(cluster)
        .set("routing.max_replica_lag_bytes", format!("{BYTES_MAX}B"))
        .set("routing.max_replica_lag", "off")
}

/// What the proxy says of a node.
fn seen(proxy: &Proxy, node: &str) -> Value {
    let status = proxy.status();
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|seen| seen["name"] == node).unwrap().clone()
}

fn serves(proxy: &Proxy, node: &str) -> bool {
    seen(proxy, node)["serves_reads"] == true
}

/// Who answers so many reads.
fn readers(client: &mut Client, reads: usize) -> BTreeSet<u16> {
    (0..reads).map(|_| client.server_port()).collect()
}

/// Writes more WAL than a bounded standby may lack.
fn write_beyond_the_bound(cluster: &Cluster) {
    let mut primary = cluster.superuser(cluster.primary()).connect();
    primary.run(&format!(
        "SELECT pg_logical_emit_message(true, 'bulk', repeat('x', {BYTES_MAX} + 8192))"
    ));
}

/// The server process that has such a read of a client's, which nothing ends but the client.
const SLEEPS: &str = "SELECT pg_sleep(86399)";

fn sleepers(superuser: &mut Client) -> Vec<Vec<Option<String>>> {
    let sql = format!("SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query = '{SLEEPS}'");
    superuser.run(&sql).rows
}

/// A read under way on the node of that port, in a block that has come to it: one elsewhere would drive other reads away from
/// where it is.
#[track_caller]
fn sleep_on(proxy: &Proxy, port: u16, superuser: &mut Client) -> Client {
    let mut client = proxy.connect();
    until("a block to read on the node", || {
        client.run("BEGIN READ ONLY");
        let is_there = client.server_port() == port;
        if !is_there {
            client.run("COMMIT");
        }
        is_there
    });
    client.send(&query(SLEEPS));
    until("the read to be under way", || !sleepers(superuser).is_empty());
    client
}

#[test]
fn a_standby_that_lacks_too_many_bytes_gets_no_reads_until_it_has_them() {
    let cluster = Cluster::breakable();
    // The read that sleeps there must not drive all others away: of two nodes the one with less to do is chosen.
    let proxy = bounded_in_bytes(&cluster)
        .set_node("ro1", "weight", 1_000)
        .start();
    let mut client = proxy.connect();
    let (behind, all) = (cluster.node("ro1").port, cluster.replica_ports());
    let all: BTreeSet<u16> = all.into_iter().collect();
    until("all replicas to have reads", || readers(&mut client, 30) == all);

    let mut superuser = cluster.superuser(cluster.node("ro1")).connect();
    let mut asleep = sleep_on(&proxy, behind, &mut superuser);
    let sleeping = sleepers(&mut superuser);

    let mut replay = Replay::of(&cluster, "ro1");
    replay.pause();
    until("a replica that stands still on an idle primary to go on", || {
        serves(&proxy, "ro1") && readers(&mut client, 30).contains(&behind)
    });

    write_beyond_the_bound(&cluster);
    until("the replica to be left out", || {
        !serves(&proxy, "ro1") && !readers(&mut client, 30).contains(&behind)
    });
    let told = seen(&proxy, "ro1");
    assert!(told["lag_bytes"].as_u64().unwrap() > BYTES_MAX, "{told}");
    assert!(
        told["reason"].as_str().unwrap().contains("bytes and"),
        "the operator is told why: {told}"
    );
    let others: BTreeSet<u16> = all.iter().copied().filter(|&port| port != behind).collect();
    // They have the same to replay, and may lack it for a moment.
    until("the others to have all reads", || {
        readers(&mut client, 30) == others
    });
    assert!(!readers(&mut client, 300).contains(&behind));
    let still = sleepers(&mut superuser);
    assert!(
        sleeping.iter().all(|process| still.contains(process)),
        "what runs there is left alone: {sleeping:?}, {still:?}"
    );
    assert_eq!(asleep.cancelled().sqlstate(), "57014");

    replay.resume();
    until("it to have reads again", || {
        readers(&mut client, 30).contains(&behind)
    });
    assert!(seen(&proxy, "ro1")["lag_bytes"].as_u64().unwrap() <= BYTES_MAX / 2);
}

/// In at half the bound, out at the whole: between them a standby stays what it is.
#[test]
fn a_standby_that_is_too_old_comes_back_only_when_it_is_well_within_the_bound() {
    const BOUND_S: f64 = 8.0;
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS aging; CREATE TABLE aging AS SELECT 0 AS n");
    let proxy = eventual(&cluster)
        .set("routing.max_replica_lag", format!("{BOUND_S}s"))
        .start();
    let mut client = proxy.connect();
    let [out, between] = ["ro1", "ro2"].map(|name| cluster.node(name).port);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Lag in time is the age of what the primary writes: something has to be written.
        scope.spawn(|| {
            let mut writer = cluster.app(cluster.primary().port).connect();
            while !over.load(Ordering::Relaxed) {
                writer.run("UPDATE aging SET n = n + 1");
                thread::sleep(Duration::from_millis(20));
            }
        });
        let _ends = Ends(&over);
        let mut replays = ["ro1", "ro2"].map(|name| Replay::of(&cluster, name));
        replays[0].delay(12_000);
        replays[1].delay(6_000);
        until("the older replica to be left out", || {
            !serves(&proxy, "ro1") && !readers(&mut client, 30).contains(&out)
        });
        let age = |node: &str| seen(&proxy, node)["lag_seconds"].as_f64().unwrap();
        replays[0].delay(6_000);
        until("both to be between half of the bound and the whole", || {
            ["ro1", "ro2"]
                .iter()
                .all(|name| (BOUND_S / 2.0..BOUND_S).contains(&age(name)))
        });
        // Longer than the three answers of which the way back consists.
        let (since, mut places) = (Instant::now(), BTreeSet::new());
        while since.elapsed() < Duration::from_secs(3) {
            places.extend(readers(&mut client, 30));
            assert!(!serves(&proxy, "ro1"), "{}", seen(&proxy, "ro1"));
            assert!(serves(&proxy, "ro2"), "{}", seen(&proxy, "ro2"));
        }
        assert!(
            !places.contains(&out) && places.contains(&between),
            "between half of the bound and the whole each stays what it is: {places:?}"
        );
        replays[0].delay(0);
        until("it to be back", || {
            serves(&proxy, "ro1") && readers(&mut client, 30).contains(&out)
        });
        assert!(age("ro1") <= BOUND_S / 2.0);
    });
}

/// Ends a thread however the test ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn with_all_standbys_too_far_behind_the_fallback_decides() {
    let cluster = Cluster::breakable();
    let primary = cluster.primary().port;
    let fallback = |name: &str| bounded_in_bytes(&cluster).set("routing.read_fallback", name);
    let to_primary = fallback("primary").start();
    let waits = fallback("wait").set("routing.read_wait", "1s").start();
    let waits_long = fallback("wait").set("routing.read_wait", "1min").start();
    let refuses = fallback("error").start();
    let proxies = [&to_primary, &waits, &waits_long, &refuses];
    let mut clients = proxies.map(Proxy::connect);
    let mut replays = REPLICAS.map(|name| Replay::of(&cluster, name));
    replays.iter_mut().for_each(Replay::pause);
    write_beyond_the_bound(&cluster);
    for proxy in proxies {
        until("no replica to serve", || {
            REPLICAS.iter().all(|name| !serves(proxy, name))
        });
    }
    let [on_primary, waiting, waiting_long, refused] = &mut clients;

    let counted = "halyard_reads_on_primary_total{reason=\"no_standby\"}";
    let before = to_primary.metric(counted);
    assert_eq!(readers(on_primary, 10), [primary].into());
    assert!(to_primary.metric(counted) >= before + 10.0);

    let began = Instant::now();
    assert_eq!(waiting.server_port(), primary, "it has waited in vain");
    assert!(began.elapsed() >= Duration::from_secs(1));

    // At once: whoever is held is so for longer than this client waits for an answer.
    assert_eq!(refused.failure("SELECT 1"), "57P03");
    assert_eq!(
        refused.value("/* halyard.route: primary */ SELECT inet_server_port()"),
        primary.to_string(),
        "what asks for the primary is no read"
    );
    refused.run("CREATE TEMP TABLE kept (n int) ON COMMIT DROP");

    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let began = Instant::now();
            (waiting_long.server_port(), began.elapsed())
        });
        until("the read to wait", || {
            waits_long.clients("held") == 1 || waits_long.clients("waiting") == 1
        });
        replays.iter_mut().for_each(Replay::resume);
        let (port, waited) = waiter.join().unwrap();
        assert_ne!(port, primary, "a replica came back within {waited:?}");
    });
    for client in clients.iter_mut() {
        until("replicas to have the reads again", || {
            let answer = client.query("SELECT inet_server_port()");
            answer
                .rows
                .first()
                .is_some_and(|row| *row != [Some(primary.to_string())])
        });
    }
}

/// Nobody can tell how far a standby is behind a primary that was never seen. Without a bound it need not be told.
#[test]
fn a_standby_whose_lag_nobody_knows_is_not_current() {
    let cluster = Cluster::shared();
    let alone = |lag: &str| {
        cluster
            .proxy()
            .observed()
            .only_nodes(|name| name.starts_with("ro"))
            .set("routing.read_consistency", "eventual")
            .set("routing.read_fallback", "error")
            .set("routing.max_replica_lag", lag)
            .set("failover.hold", "2s")
            .also_listening("replica")
    };
    let (unbounded, port) = alone("off");
    let unbounded = unbounded.start_without_waiting();
    until("the replicas to serve", || {
        answers(&unbounded) && REPLICAS.iter().all(|name| serves(&unbounded, name))
    });
    let mut client = unbounded.on_port(port).connect();
    assert!(cluster.replica_ports().contains(&client.server_port()));

    let (bounded, port) = alone("1h");
    let bounded = bounded.start_without_waiting();
    until("their lag to be unknown", || {
        answers(&bounded)
            && REPLICAS
                .iter()
                .all(|name| seen(&bounded, name)["reason"] == "standby: its lag is unknown")
    });
    for name in REPLICAS {
        let told = seen(&bounded, name);
        assert_eq!(
            (&told["serves_reads"], &told["lag_seconds"]),
            (&false.into(), &Value::Null)
        );
    }
    let refused = match bounded.on_port(port).try_connect(&[]) {
        Ok(mut client) => client.failure("SELECT 1"),
        Err(refusal) => refusal.sqlstate(),
    };
    assert_eq!(refused, "57P03");
}

/// It is the statement that was too slow for its client, not the node.
#[test]
fn a_replica_whose_statements_take_too_long_serves_on() {
    let cluster = Cluster::shared();
    let proxy = cluster
        .eventual()
        .only_nodes(|name| name == "ro1" || name == cluster.primary().name)
        .start();
    let replica = cluster.node("ro1").port;
    let mut client = proxy.connect();
    client.run("SET statement_timeout = '50ms'");
    for _ in 0..10 {
        // On the replica alone, so that it is the one that says so.
        let told = client.query("/* halyard.route: replica */ SELECT pg_sleep(600)");
        assert_eq!((told.sqlstate().as_str(), told.status), ("57014", 'I'));
        assert!(told.error.unwrap().field(b'R').contains("ProcessInterrupts"));
    }
    assert!(serves(&proxy, "ro1"), "{}", seen(&proxy, "ro1"));
    client.run("RESET statement_timeout");
    assert_eq!(readers(&mut client, 30), [replica].into());
}

/// Whether a proxy that has just been started answers.
fn answers(proxy: &Proxy) -> bool {
    crate::support::get(proxy.http_port(), "/status").is_some_and(|(status, _)| status == 200)
}
