//! A cancel request ends what its session runs, and never anything else.

use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::message::*;
use crate::support::{Act, Client, Cluster, LONG_PATIENCE, Link, cancel, until};

#[test]
fn the_running_statement_is_cancelled_and_the_session_lives_on() {
    let proxy = Cluster::shared_proxy();
    let mut client = proxy.connect();
    for sql in ["SELECT pg_sleep(600)", "BEGIN; SELECT pg_sleep(600)"] {
        let began = Instant::now();
        client.send(&query(sql));
        let answer = client.cancelled();
        assert_eq!(answer.sqlstate(), "57014", "{sql}");
        assert!(began.elapsed() < Duration::from_secs(10), "{sql}");
    }
    client.run("ROLLBACK");
    assert_eq!(client.value("SELECT 'alive'"), "alive");
}

/// The first may come before the server has the statement, or the statement may survive it. Each client sends another.
#[test]
fn a_cancel_that_did_nothing_is_followed_by_another() {
    let cluster = Cluster::shared();
    let mut direct = cluster.app(cluster.primary().port).connect();
    let mut proxied = Cluster::shared_proxy().connect();
    for (name, client) in [("direct", &mut direct), ("proxied", &mut proxied)] {
        let survives_one = format!(
            "DO $$ BEGIN
                BEGIN PERFORM pg_sleep(600), '{name}'; EXCEPTION WHEN query_canceled THEN NULL; END;
                PERFORM pg_sleep(600);
            END $$"
        );
        client.send(&query(&survives_one));
        cluster.until_runs(cluster.primary(), &survives_one);
        assert_eq!(client.cancelled().sqlstate(), "57014", "{name}");
        assert_eq!(client.value("SELECT 'alive'"), "alive");
    }
}

#[test]
fn a_statement_that_waits_for_a_backend_is_cancelled_too() {
    let proxy = Cluster::shared().proxy().set("pool.size", 1).start();
    let mut holder = proxy.connect();
    holder.run("BEGIN");
    let mut waiter = proxy.connect();
    waiter.send(&query("BEGIN"));
    until("it to wait", || proxy.clients("waiting") == 1);
    waiter.cancel();
    assert_eq!(waiter.answer().sqlstate(), "57014");
    holder.run("COMMIT");
    waiter.run("BEGIN; COMMIT");
}

/// The cancel could end the question that brings the backend to its session's settings, and the statement behind it ran with
/// another's.
#[test]
fn nothing_is_cancelled_before_the_backend_has_the_sessions_settings() {
    let cluster = Cluster::shared();
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster
        .proxy()
        .through(&primary.name, &link)
        .set("pool.size", 1)
        .start();
    let (mut one, mut client) = (proxy.connect(), proxy.connect());
    client.run("SET search_path = of_another");
    one.run("SET search_path = of_one");
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    link.on_message(move |frame| {
        if frame.kind == b'D' && frame.has("of_another") {
            let _ = held.lock().unwrap().recv_timeout(LONG_PATIENCE);
        }
        Act::Pass
    });
    client.send(&query("DO 'BEGIN PERFORM pg_sleep(600); END'"));
    cluster.until_runs(primary, "DO 'BEGIN PERFORM pg_sleep(600); END'");
    let (port, (process, secret)) = (proxy.address.port, client.key.clone());
    // It returns when the request is seen to.
    thread::spawn(move || cancel(port, process, &secret));
    thread::sleep(Duration::from_millis(200));
    let sent = || proxy.metric("halyard_cancel_requests_total{outcome=\"sent\"}");
    assert_eq!(sent(), 0.0);
    drop(release);
    assert_eq!(client.answer().sqlstate(), "57014");
    assert_eq!(sent(), 1.0);
}

#[test]
fn a_wrong_key_cancels_nothing() {
    let proxy = Cluster::shared().proxy().start();
    let mut client = proxy.connect();
    let (process, secret) = client.key.clone();
    client.send(&query("SELECT pg_sleep(1)"));
    until("it to run", || proxy.clients("active") == 1);
    let mut wrong = secret.clone();
    wrong[0] ^= 1;
    cancel(proxy.address.port, process, &wrong);
    cancel(proxy.address.port, process ^ 1, &secret);
    assert!(client.answer().error.is_none());
    assert_eq!(
        proxy.metric(r#"halyard_cancel_requests_total{outcome="sent"}"#),
        0.0
    );
    assert!(proxy.metric(r#"halyard_cancel_requests_total{outcome="ignored"}"#) >= 2.0);
}

#[test]
fn an_idle_sessions_key_cancels_nothing() {
    let proxy = Cluster::shared().proxy().set("pool.size", 1).start();
    let idle = proxy.connect();
    let mut busy = proxy.connect();
    busy.send(&query("SELECT pg_sleep(1)"));
    until("it to run", || proxy.clients("active") == 1);
    idle.cancel();
    assert!(busy.answer().error.is_none(), "somebody else's cancel hit it");
}

/// Of 64 random keys each bit is set in some 32: in fewer than 7 or more than 57 of them with a probability below 10^-9.
/// A counter, or a clock, leaves most of its bits as they are.
#[test]
fn keys_are_not_to_be_guessed() {
    const CLIENTS: usize = 64;
    let proxy = Cluster::shared_proxy();
    let secrets: Vec<Vec<u8>> = (0..CLIENTS).map(|_| proxy.connect().key.1.clone()).collect();
    for (n, secret) in secrets.iter().enumerate() {
        assert_eq!(secret.len(), 4, "in protocol 3.0");
        assert!(!secrets[..n].contains(secret), "{secrets:?}");
    }
    for bit in 0..32 {
        let set = |secret: &&Vec<u8>| secret[bit / 8] & (1 << (bit % 8)) != 0;
        let count = secrets.iter().filter(set).count();
        assert!(
            (7..=57).contains(&count),
            "bit {bit} is set in {count} of {secrets:?}"
        );
    }
}

/// A peer passed the cancel on after the backend had been given to somebody else.
#[test]
fn a_cancel_never_hits_the_next_client() {
    const TIME: Duration = Duration::from_secs(6);
    let proxy = Cluster::shared().proxy().set("pool.size", 2).start();
    let over = Instant::now() + TIME;
    thread::scope(|scope| {
        for _ in 0..6 {
            let mut bystander = proxy.connect();
            scope.spawn(move || {
                while Instant::now() < over {
                    bystander.run("SELECT pg_sleep(0.002)");
                    bystander.run("BEGIN; SELECT 1; COMMIT");
                }
            });
        }
        for _ in 0..4 {
            let mut client = proxy.connect();
            let (process, secret) = client.key.clone();
            let port = proxy.address.port;
            scope.spawn(move || {
                while Instant::now() < over {
                    cancel(port, process, &secret);
                }
            });
            scope.spawn(move || {
                while Instant::now() < over {
                    let answer = client.query("SELECT pg_sleep(0.002)");
                    assert!(["", "57014"].contains(&answer.sqlstate().as_str()), "{answer:?}");
                }
            });
        }
    });
    assert!(
        proxy.metric(r#"halyard_cancel_requests_total{outcome="sent"}"#) > 10.0,
        "nothing was tested"
    );
}

/// Protocol 3.2 has room for long keys, and PostgreSQL 18 gives 32 bytes; the node behind speaks 3.0 alone.
#[test]
fn a_client_of_protocol_3_2_has_a_long_key_and_cancels_by_it() {
    const V3_2: u32 = (3 << 16) | 2;
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().start();
    for (version, option, size, negotiated) in [
        (3 << 16, None, 4, None),
        // There is no 3.1: it is spoken like 3.0.
        ((3 << 16) | 1, None, 4, None),
        (V3_2, None, 32, None),
        // A newer one, and options that nobody knows: the client is told what it gets.
        ((3 << 16) | 9999, None, 32, Some(&b"\0\x03\0\x02\0\0\0\0"[..])),
        (
            V3_2,
            Some("_pq_.unheard_of"),
            32,
            Some(b"\0\x03\0\x02\0\0\0\x01_pq_.unheard_of\0"),
        ),
        (
            3 << 16,
            Some("_pq_.unheard_of"),
            4,
            Some(b"\0\x03\0\0\0\0\0\x01_pq_.unheard_of\0"),
        ),
    ] {
        let options: Vec<_> = option.map(|name| (name, "on")).into_iter().collect();
        let mut client = Client::log_in_as(version, &proxy.address, &options).unwrap();
        assert_eq!(client.negotiated.as_deref(), negotiated, "{version:#x}");
        let (process, secret) = client.key.clone();
        assert_eq!(secret.len(), size, "{version:#x}");
        assert_eq!(client.value("SELECT 1"), "1");
        client.send(&query("SELECT pg_sleep(600)"));
        until("it to run", || proxy.clients("active") == 1);
        // The right beginning is not enough, nor is the right key with more behind it.
        if size > 4 {
            cancel(proxy.address.port, process, &secret[..4]);
            cancel(proxy.address.port, process, &[&secret[..], &[0]].concat());
            assert_eq!(proxy.clients("active"), 1);
        }
        let answer = client.cancelled();
        assert_eq!(answer.sqlstate(), "57014", "{version:#x}");
        assert_eq!(client.value("SELECT 'alive'"), "alive");
        client.leave();
    }
    // Any other major version is refused.
    assert!(Client::log_in_as(4 << 16, &proxy.address, &[]).is_err());
}
