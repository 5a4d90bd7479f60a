//! A cancel request ends what its session runs, and never anything else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::message::*;
use crate::support::{Cluster, cancel, until};

#[test]
fn the_running_statement_is_cancelled_and_the_session_lives_on() {
    let proxy = Cluster::shared_proxy();
    let mut client = proxy.connect();
    for sql in ["SELECT pg_sleep(600)", "BEGIN; SELECT pg_sleep(600)"] {
        let began = Instant::now();
        client.send(&query(sql));
        let stop = AtomicBool::new(false);
        let (process, secret) = client.key.clone();
        let answer = thread::scope(|scope| {
            // Sent before the statement runs, a cancel has nothing to do; hence until it works.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    cancel(proxy.address.port, process, &secret);
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let answer = client.answer();
            stop.store(true, Ordering::Relaxed);
            answer
        });
        assert_eq!(answer.sqlstate(), "57014", "{sql}");
        assert!(began.elapsed() < Duration::from_secs(10), "{sql}");
    }
    client.run("ROLLBACK");
    assert_eq!(client.value("SELECT 'alive'"), "alive");
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

#[test]
fn keys_are_not_to_be_guessed() {
    let proxy = Cluster::shared_proxy();
    let keys: Vec<_> = (0..8).map(|_| proxy.connect().key.clone()).collect();
    for (n, (_, secret)) in keys.iter().enumerate() {
        assert!(secret.len() >= 4);
        assert!(keys[..n].iter().all(|(_, other)| other != secret), "{keys:?}");
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
