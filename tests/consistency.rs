//! Reads see what their session has written, whichever node serves them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Cluster, Proxy, Replay, until};

const REPLICAS: [&str; 3] = ["ro1", "ro2", "ro3"];

fn proxy(cluster: &Cluster, consistency: &str) -> Proxy {
    cluster
        .proxy()
        .set("routing.read_consistency", consistency)
        .start()
}

/// How many of so many reads, each behind a write of the same session or of another one, did not see it.
fn stale(writer: &mut Client, reader: Option<&mut Client>, rounds: i64) -> i64 {
    let mut stale = 0;
    let mut reader = reader;
    for round in 0..rounds {
        writer.run(&format!("UPDATE seen SET n = {round}"));
        let client = reader.as_deref_mut().unwrap_or(writer);
        stale += i64::from(client.value("SELECT n FROM seen") != round.to_string());
    }
    stale
}

/// Who is notified of a change goes and reads it: a standby that has not replayed it must not answer.
#[test]
fn who_is_notified_reads_what_it_is_told_of() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS seen; CREATE TABLE seen AS SELECT -1::bigint AS n");
    let mut replicas = REPLICAS.map(|name| Replay::of(&cluster, name));
    let proxy = proxy(&cluster, "session");
    let mut listener = proxy.connect();
    listener.run("LISTEN seen");
    // LISTEN counts as a write: only behind it do reads leave the primary again.
    let ports = cluster.replica_ports();
    until("reads to be served by a replica", || {
        ports.contains(&listener.server_port())
    });
    replicas.iter_mut().for_each(Replay::pause);
    let mut writer = cluster.app(cluster.primary().port).connect();
    for round in 0..20 {
        writer.run(&format!(
            "BEGIN; UPDATE seen SET n = {round}; NOTIFY seen; COMMIT"
        ));
        listener.until_kind(b'A');
        assert_eq!(listener.value("SELECT n FROM seen"), round.to_string());
    }
}

#[test]
fn a_session_reads_what_it_has_written() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS seen; CREATE TABLE seen AS SELECT -1::bigint AS n");
    let mut replicas = REPLICAS.map(|name| Replay::of(&cluster, name));
    let (session, global, eventual) = (
        proxy(&cluster, "session"),
        proxy(&cluster, "global"),
        proxy(&cluster, "eventual"),
    );
    replicas.iter_mut().for_each(Replay::pause);
    assert_ne!(
        stale(&mut eventual.connect(), None, 10),
        0,
        "the test can find stale reads"
    );
    assert_eq!(stale(&mut session.connect(), None, 10), 0);
    assert_ne!(
        stale(&mut session.connect(), Some(&mut session.connect()), 10),
        0,
        "another session's writes come when they come"
    );
    assert_eq!(stale(&mut global.connect(), Some(&mut global.connect()), 10), 0);
    // A block, the extended protocol and a COPY write as well as an UPDATE does.
    let mut client = session.connect();
    for (write, read, seen) in [
        (
            "BEGIN; UPDATE seen SET n = 100; COMMIT",
            "SELECT n FROM seen",
            "100",
        ),
        (
            "CREATE TABLE IF NOT EXISTS seen_new AS SELECT 7 AS a",
            "SELECT a FROM seen_new",
            "7",
        ),
        (
            "SELECT nextval('seen_numbers')",
            "SELECT last_value FROM seen_numbers",
            "1",
        ),
    ] {
        client.run("CREATE SEQUENCE IF NOT EXISTS seen_numbers");
        client.run(write);
        assert_eq!(client.value(read), seen, "{write}");
    }
    assert!(session.metric("halyard_reads_on_primary_total{reason=\"behind\"}") > 0.0);
    replicas.iter_mut().for_each(Replay::resume);
    let ports = cluster.replica_ports();
    until("the replicas to serve the session again", || {
        ports.contains(&client.server_port())
    });
}

/// With more to do than it is to have of the kind, the primary gets a read only when no standby has come in time.
#[test]
fn a_read_waits_a_moment_for_a_standby_that_catches_up() {
    const ROUNDS: i64 = 50;
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS seen; CREATE TABLE seen AS SELECT -1::bigint AS n");
    let proxy = cluster
        .proxy()
        .set("routing.reads_behind_max", 0)
        .set("routing.catch_up_wait", "5s")
        .start();
    let mut client = proxy.connect();
    let ports = cluster.replica_ports();
    until("reads to be served by a replica", || {
        ports.contains(&client.server_port())
    });
    let behind = "halyard_reads_on_primary_total{reason=\"behind\"}";
    let before = proxy.metric(behind);
    assert_eq!(stale(&mut client, None, ROUNDS), 0);
    // A connection to a standby that is younger than what is known of it does not get the read; the primary does.
    let on_primary = proxy.metric(behind) - before;
    assert!(
        on_primary < ROUNDS as f64 / 2.0,
        "{on_primary} of {ROUNDS} did not wait for a standby"
    );

    let impatient = cluster
        .proxy()
        .set("routing.reads_behind_max", 0)
        .set("routing.catch_up_wait", "100ms")
        .start();
    let mut client = impatient.connect();
    let mut replicas = REPLICAS.map(|name| Replay::of(&cluster, name));
    replicas.iter_mut().for_each(Replay::pause);
    let before = impatient.metric(behind);
    client.run("UPDATE seen SET n = 1000");
    let began = Instant::now();
    assert_eq!(client.value("SELECT n FROM seen"), "1000");
    assert!(
        began.elapsed() >= Duration::from_millis(100),
        "it has waited in vain"
    );
    for _ in 0..100 {
        assert_eq!(client.value("SELECT n FROM seen"), "1000");
    }
    assert_eq!(impatient.metric(behind), before + 101.0);
}

/// What a session has seen of others' writes it goes on seeing, wherever it reads.
///
/// Somebody else writes all the while and the replicas stop and go on, so that one shows less than another.
fn goes_back(consistency: &str) -> usize {
    const READERS: usize = 6;
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS ticks; CREATE TABLE ticks AS SELECT 0::bigint AS n");
    let proxy = proxy(&cluster, consistency);
    let over = AtomicBool::new(false);
    let (back, places) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = cluster.app(cluster.primary().port).connect();
            while !over.load(Ordering::Relaxed) {
                writer.run("UPDATE ticks SET n = n + 1");
                thread::sleep(Duration::from_millis(2));
            }
        });
        for (turn, name) in REPLICAS.iter().enumerate() {
            let (cluster, over) = (&cluster, &over);
            scope.spawn(move || {
                let mut replay = Replay::of(cluster, name);
                while !over.load(Ordering::Relaxed) {
                    replay.pause();
                    thread::sleep(Duration::from_millis(100 + 130 * turn as u64));
                    replay.resume();
                    thread::sleep(Duration::from_millis(150));
                }
            });
        }
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let mut client = proxy.connect();
                let primary = cluster.primary().port.to_string();
                scope.spawn(move || {
                    let (mut seen, mut back, mut places) = (0, 0, BTreeSet::new());
                    for round in 0..1200_usize {
                        // Some read without a pause, some rest for long enough to move; all read on the primary at times.
                        let sql = if round % 97 == 96 {
                            "SELECT n, inet_server_port() FROM ticks FOR SHARE"
                        } else {
                            "SELECT n, inet_server_port() FROM ticks"
                        };
                        let row = client.run(sql).rows.remove(0);
                        let now: u64 = row[0].as_deref().unwrap().parse().unwrap();
                        // The primary shows a write once a standby has confirmed it, which may show it before: what it
                        // shows itself is never old.
                        back += usize::from(now < seen && row[1].as_deref() != Some(&primary));
                        seen = seen.max(now);
                        places.insert(row[1].clone().unwrap());
                        if round % (7 + 20 * number) == 0 {
                            thread::sleep(Duration::from_millis(20 * number as u64));
                        }
                    }
                    (back, places)
                })
            })
            .collect();
        let mut sum = (0, BTreeSet::new());
        for reader in readers {
            let (back, places) = reader.join().unwrap();
            sum.0 += back;
            sum.1.extend(places);
        }
        over.store(true, Ordering::Relaxed);
        sum
    });
    println!("{consistency}: {back} reads went back, over {places:?}");
    assert!(places.len() >= 3, "sessions move: {places:?}");
    back
}

#[test]
fn what_was_seen_is_not_taken_back() {
    assert_eq!(goes_back("session"), 0);
}

#[test]
fn eventual_consistency_takes_back_what_was_seen() {
    assert_ne!(goes_back("eventual"), 0, "the test can find it");
}

/// With replicas that stop and go on, reads are spread and never behind.
#[test]
fn reads_are_right_while_replicas_come_and_go() {
    const CLIENTS: usize = 8;
    let cluster = Cluster::breakable();
    let proxy = proxy(&cluster, "session");
    cluster.prepare("DROP TABLE IF EXISTS seen_by; CREATE TABLE seen_by AS SELECT g AS client, -1::bigint AS n FROM generate_series(0, 7) g");
    let over = AtomicBool::new(false);
    let (served, all) = thread::scope(|scope| {
        for (turn, name) in REPLICAS.iter().enumerate() {
            let (cluster, over) = (&cluster, &over);
            scope.spawn(move || {
                let mut replay = Replay::of(cluster, name);
                while !over.load(Ordering::Relaxed) {
                    replay.pause();
                    thread::sleep(Duration::from_millis(60 + 70 * turn as u64));
                    replay.resume();
                    thread::sleep(Duration::from_millis(200));
                }
            });
        }
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (mut client, cluster) = (proxy.connect(), &cluster);
                scope.spawn(move || {
                    let mut served = 0;
                    for round in 0..150 {
                        client.run(&format!("UPDATE seen_by SET n = {round} WHERE client = {number}"));
                        for _ in 0..3 {
                            let read = client.run(&format!(
                                "SELECT n, inet_server_port() FROM seen_by WHERE client = {number}"
                            ));
                            let row = &read.rows[0];
                            assert_eq!(
                                row[0].as_deref(),
                                Some(round.to_string().as_str()),
                                "client {number}"
                            );
                            let port: u16 = row[1].as_deref().unwrap().parse().unwrap();
                            served += usize::from(cluster.replica_ports().contains(&port));
                            thread::sleep(Duration::from_millis(10));
                        }
                    }
                    (served, 450)
                })
            })
            .collect();
        let counts: Vec<(usize, usize)> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        over.store(true, Ordering::Relaxed);
        counts
            .iter()
            .fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    });
    println!("standbys served {served} of {all} reads right behind a write");
    assert!(served > 0);
}

/// What one session has written is seen by another, behind another Halyard, that was given its fence: at once, though no
/// standby has it; and a session that was not given it does not.
#[test]
fn a_fence_can_be_carried_to_another_connection() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS carried; CREATE TABLE carried (a int)");
    let here = proxy(&cluster, "session");
    for mode in ["session", "eventual"] {
        let there = proxy(&cluster, mode);
        let (mut writer, mut given, mut other) = (here.connect(), there.connect(), there.connect());
        let count = |client: &mut Client| client.value("SELECT count(*) FROM carried");
        let mut replicas = REPLICAS.map(|name| Replay::of(&cluster, name));
        replicas.iter_mut().for_each(Replay::pause);
        let before = count(&mut other);
        writer.run("INSERT INTO carried VALUES (1)");
        let fence = writer.value("SHOW halyard.fence");

        given.run(&format!("SET halyard.fence = '{fence}'"));
        let seen = count(&mut given);
        assert_eq!(
            seen,
            count(&mut cluster.app(cluster.primary().port).connect()),
            "{mode}"
        );
        assert_eq!(count(&mut other), before, "{mode}: nobody else has to see it");
        let options = format!("-c halyard.fence={fence}");
        let mut connected = there.address.connect_with(&[("options", &options)]);
        assert_eq!(count(&mut connected), seen, "{mode}: given when it connects");

        replicas.iter_mut().for_each(Replay::resume);
        let ports = cluster.replica_ports();
        until("a standby to have reached the fence", || {
            ports.contains(&given.server_port())
        });
        assert_eq!(count(&mut given), seen);
        assert_ne!(given.value("SELECT current_setting('halyard.fence')"), "");
    }
}

#[test]
fn a_fence_that_means_nothing_is_refused() {
    let cluster = Cluster::shared();
    let proxy = proxy(cluster, "session");
    let mut client = proxy.connect();
    assert_eq!(
        client.query("SET halyard.fence = '0/3000148'").sqlstate(),
        "22023"
    );
    assert_eq!(
        client.query("SET halyard.fence = '4000000000/0/1'").sqlstate(),
        "55000"
    );
    let ahead = proxy
        .address
        .try_connect(&[("options", "-c halyard.fence=4000000000/0/1")]);
    assert_eq!(
        ahead.err().unwrap().sqlstate(),
        "55000",
        "so it is when connecting"
    );
    client.run("SET halyard.fence = ''");
    client.run("BEGIN; SET LOCAL halyard.fence = '1/0/1'; ROLLBACK");
    assert_eq!(client.value("SELECT 1"), "1");
}
