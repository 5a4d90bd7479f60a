//! Writes in one flight whose server is lost among them: nothing is told twice, and nothing runs twice.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::thread;

use crate::support::message::*;
use crate::support::{Act, Answer, Client, Cluster, Link, Proxy, until};

/// A proxy that reaches the primary by a link alone.
fn linked(cluster: &'static Cluster) -> (Link, Proxy) {
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster.proxy().through(&primary.name, &link).start();
    (link, proxy)
}

fn insert(table: &str, n: usize) -> Vec<u8> {
    unnamed(&format!("INSERT INTO {table} VALUES ({n})"), &[])
}

/// Ends the connection on which so many INSERTs were told, before the next message of a kind that tells of one: its
/// CommandComplete, or the ReadyForQuery behind that.
fn lose_after(link: &Link, inserts: usize, kind: u8) {
    // The proxy's own questions go through the link as well.
    let (told, connection, done) = (AtomicUsize::new(0), AtomicU16::new(0), AtomicBool::new(false));
    link.on_message(move |frame| {
        let of_insert = frame.kind == b'C' && frame.has("INSERT 0 1\0");
        let same = of_insert || connection.load(Ordering::Relaxed) == frame.connection;
        if same
            && frame.kind == kind
            && told.load(Ordering::Relaxed) == inserts
            && !done.swap(true, Ordering::Relaxed)
        {
            return Act::LastWords(Vec::new());
        }
        if of_insert {
            connection.store(frame.connection, Ordering::Relaxed);
            told.fetch_add(1, Ordering::Relaxed);
        }
        Act::Pass
    });
}

/// How many INSERTs were told in an answer, and its SQLSTATE.
fn told(client: &mut Client) -> (usize, String) {
    let answer: Answer = client.answer();
    assert_eq!(answer.status, 'I', "no block is open");
    assert!(answer.tags.iter().all(|tag| tag == "INSERT 0 1"), "{answer:?}");
    (answer.tags.len(), answer.sqlstate())
}

/// What a table holds when nobody writes to it any more, in order. A server that has lost its client goes on with what it
/// has got.
fn rows(cluster: &Cluster, table: &str) -> Vec<usize> {
    let mut direct = cluster.superuser(cluster.primary()).connect();
    let writing = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND query LIKE 'INSERT INTO {table} %'"
    );
    until("nobody to write", || direct.value(&writing) == "0");
    let rows = direct.run(&format!("SELECT n FROM {table} ORDER BY n")).rows;
    rows.iter()
        .map(|row| row[0].as_ref().unwrap().parse().unwrap())
        .collect()
}

#[track_caller]
fn are_all_different(rows: &[usize]) {
    let different: BTreeSet<_> = rows.iter().collect();
    assert_eq!(different.len(), rows.len(), "a write took effect twice: {rows:?}");
}

#[test]
fn what_was_told_before_a_loss_is_told_once_and_what_was_not_is_in_doubt() {
    const WRITES: usize = 6;
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS flight; CREATE TABLE flight (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    let mut first = 0;
    let mut acknowledged = Vec::new();
    for (inserts, lost) in [
        (0, b'C'),
        (1, b'C'),
        (4, b'C'),
        (1, b'Z'),
        (4, b'Z'),
        (WRITES, b'Z'),
    ] {
        lose_after(&link, inserts, lost);
        let writes = first..first + WRITES;
        let flight = writes
            .clone()
            .flat_map(|n| [insert("flight", n), sync()].concat());
        client.send(&flight.collect::<Vec<_>>());
        // Behind an INSERT that was told without its ReadyForQuery the commit may have failed.
        let whole = if lost == b'Z' { inserts - 1 } else { inserts };
        for (place, n) in writes.enumerate() {
            let expected = match place {
                _ if place < whole => (1, ""),
                _ if place < inserts => (1, "08007"),
                _ => (0, "08007"),
            };
            let (count, sqlstate) = told(&mut client);
            assert_eq!((count, sqlstate.as_str()), expected, "{place} of {inserts} told");
            if sqlstate.is_empty() {
                acknowledged.push(n);
            }
        }
        // Nothing more comes for it, and the next one is a write like any other.
        client.send(&[insert("flight", first + WRITES), sync()].concat());
        assert_eq!(told(&mut client), (1, String::new()));
        acknowledged.push(first + WRITES);
        first += WRITES + 1;
    }
    let rows = rows(cluster, "flight");
    are_all_different(&rows);
    let lost: Vec<_> = acknowledged.iter().filter(|n| !rows.contains(n)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

/// All that stands before one Sync is one transaction: what was told of it before the loss is as much in doubt as the rest.
#[test]
fn a_batch_that_is_lost_in_the_middle_is_in_doubt_as_a_whole() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS batched; CREATE TABLE batched (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    let batch = |numbers: &[usize]| {
        let inserts = numbers.iter().flat_map(|&n| insert("batched", n));
        inserts.chain(sync()).collect::<Vec<_>>()
    };
    for (inserts, expected) in [
        (1, [(1, "08007"), (0, "08007"), (0, "08007")]),
        (4, [(3, ""), (1, "08007"), (0, "08007")]),
    ] {
        cluster.prepare("TRUNCATE batched");
        lose_after(&link, inserts, b'C');
        client.send(&[batch(&[1, 2, 3]), batch(&[4, 5]), batch(&[6])].concat());
        for expected in expected {
            let (count, sqlstate) = told(&mut client);
            assert_eq!((count, sqlstate.as_str()), expected, "{inserts} told");
        }
        client.send(&batch(&[7, 8]));
        assert_eq!(told(&mut client), (2, String::new()));
        let rows = rows(cluster, "batched");
        are_all_different(&rows);
        let whole = |batch: &[usize]| {
            let there = batch.iter().filter(|n| rows.contains(n)).count();
            assert!(
                there == 0 || there == batch.len(),
                "a part of {batch:?}: {rows:?}"
            );
            there > 0
        };
        assert!(!expected[0].1.is_empty() || whole(&[1, 2, 3]), "{rows:?}");
        for batch in [&[1, 2, 3][..], &[4, 5]] {
            whole(batch);
        }
        assert!(whole(&[7, 8]), "{rows:?}");
    }
}

/// The third write of a long pipeline runs when its server process is ended. What lay behind it there is never run; what
/// Halyard had not sent yet is run on the next connection.
#[test]
fn what_was_not_begun_when_the_server_went_is_run_once() {
    const WRITES: usize = 2_000;
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS unbegun; CREATE TABLE unbegun (n int)");
    let proxy = cluster.proxy().set("limits.pipeline_max", 4_096).start();
    let mut client = proxy.connect();
    let slow = "INSERT INTO unbegun SELECT 2 FROM pg_sleep(600)";
    let mut writer = client.stream().try_clone().unwrap();
    let sending = thread::spawn(move || {
        for n in 0..WRITES {
            let write = if n == 2 {
                unnamed(slow, &[])
            } else {
                insert("unbegun", n)
            };
            writer.write_all(&[write, sync()].concat()).unwrap();
        }
    });
    cluster.until_runs(cluster.primary(), slow);
    let mut direct = cluster.superuser(cluster.primary()).connect();
    direct.run(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = '{slow}'"
    ));
    let answers: Vec<_> = (0..WRITES).map(|_| told(&mut client)).collect();
    sending.join().unwrap();

    let codes: BTreeSet<&str> = answers.iter().map(|(_, sqlstate)| sqlstate.as_str()).collect();
    assert_eq!(codes, BTreeSet::from(["", "08007"]));
    let acknowledged: Vec<usize> = (0..WRITES).filter(|&n| answers[n].1.is_empty()).collect();
    assert_eq!(acknowledged[..2], [0, 1], "they were told before");
    let after = acknowledged
        .get(2)
        .copied()
        .expect("some were not sent when it was lost");
    assert!(after > 3, "more than one was under way");
    assert_eq!(
        acknowledged[2..],
        (after..WRITES).collect::<Vec<_>>(),
        "in their order"
    );
    assert_eq!(rows(cluster, "unbegun"), acknowledged);
}

/// On the primary a pipeline of reads is not kept: each of them has to be asked again by the client.
#[test]
fn reads_in_one_flight_on_the_primary_are_told_that_it_was_lost() {
    const READS: usize = 4;
    let (link, proxy) = linked(Cluster::shared());
    let mut client = proxy.connect();
    // Simple and extended, by a hint, as behind a write of its own.
    for simple in [true, false] {
        let read = |n: usize| {
            let sql = format!("/* halyard.route: primary */ SELECT 'read ' || {n}");
            if simple {
                query(&sql)
            } else {
                [unnamed(&sql, &[]), sync()].concat()
            }
        };
        link.lose_before(b'D', "read 2");
        client.send(&(1..=READS).flat_map(read).collect::<Vec<_>>());
        for n in 1..=READS {
            let answer = client.answer();
            let told = (answer.sqlstate(), answer.rows.len(), answer.status);
            let expected = if n == 1 { ("", 1, 'I') } else { ("57P01", 0, 'I') };
            assert_eq!(
                (told.0.as_str(), told.1, told.2),
                expected,
                "{n}, simple: {simple}"
            );
        }
        assert_eq!(
            client.value("/* halyard.route: primary */ SELECT 'alive'"),
            "alive"
        );
    }
    assert_eq!(
        proxy.metric("halyard_backend_losses_total{outcome=\"cut_short\"}"),
        2.0
    );
}

/// A simple message that begins a block and writes in it is in doubt as a whole. Its words have led into a block: what the
/// client sends for that is not run by itself.
#[test]
fn a_block_that_begins_in_the_message_that_is_lost_is_in_doubt() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS begun_within; CREATE TABLE begun_within (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    for lost in ["BEGIN\0", "INSERT 0 1\0"] {
        link.lose_before(b'C', lost);
        client.send(&query("BEGIN; INSERT INTO begun_within VALUES (1)"));
        let answer = client.answer();
        assert_eq!(
            (answer.sqlstate().as_str(), answer.status),
            ("08007", 'E'),
            "{lost}"
        );
        assert_eq!(client.failure("INSERT INTO begun_within VALUES (1)"), "25P02");
        assert_eq!(client.run("COMMIT").tags, ["ROLLBACK"]);
    }
    assert_eq!(
        proxy.metric("halyard_backend_losses_total{outcome=\"unknown\"}"),
        2.0
    );
    client.run("INSERT INTO begun_within VALUES (2)");
    assert_eq!(rows(cluster, "begun_within"), [2]);
}
