//! Halyard's own logins at a node: they are slow, or some of them fail, and whoever waits for one is served.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::hostile::error_response;
use crate::support::{Act, Client, Cluster, Link, Proxy, until};

/// What needs a connection to the primary.
const WRITE: &str = "BEGIN; SELECT pg_sleep(0); COMMIT";

/// A proxy that knows the primary alone, by a link, and has no connection to it yet but its probe's.
fn cold(size: i64) -> (Link, Proxy) {
    let cluster = Cluster::shared();
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster
        .proxy()
        .through(&primary.name, &link)
        .only_nodes(|name| name == primary.name)
        .set("pool.size", size)
        .set("health.timeout", "10s")
        .set("health.connect_timeout", "10s")
        .set("health.stale_after", "1min")
        .set("pool.connect_timeout", "25s")
        .cold()
        .start();
    (link, proxy)
}

/// How many connections to the primary are in a state.
fn count(proxy: &Proxy, state: &str) -> f64 {
    let node = &Cluster::shared().primary().name;
    proxy.metric(&format!("halyard_backends{{node=\"{node}\",state=\"{state}\"}}"))
}

/// Clients that have all the connections that are there already: Halyard has had need of some itself.
fn holders(proxy: &Proxy) -> Vec<Client> {
    let mut holders = Vec::new();
    until("no connection to be idle", || {
        if count(proxy, "idle") > 0.0 {
            let mut holder = proxy.connect();
            holder.run("BEGIN");
            holders.push(holder);
        }
        count(proxy, "idle") == 0.0 && count(proxy, "connecting") == 0.0
    });
    holders
}

/// They were opened one behind another.
#[test]
fn many_logins_at_a_slow_node_take_no_longer_than_a_few() {
    const CLIENTS: u32 = 16;
    let (link, proxy) = cold(i64::from(CLIENTS) + 8);
    let mut alone = proxy.connect();
    let mut many: Vec<_> = (0..CLIENTS).map(|_| proxy.connect()).collect();
    // Nothing is slow yet.
    let _holders = holders(&proxy);
    link.slow_down(Duration::from_millis(300));

    let began = Instant::now();
    alone.run("BEGIN");
    let one = began.elapsed();
    assert!(one >= Duration::from_millis(300), "{one:?}");
    let began = Instant::now();
    thread::scope(|scope| {
        for client in &mut many {
            scope.spawn(|| client.run("BEGIN"));
        }
    });
    let all = began.elapsed();
    // Four at a time as `pool.connects_max` is: a fourth of it, and as much again for a slow machine.
    assert!(
        all < one * CLIENTS / 2,
        "{all:?} for {CLIENTS} where one takes {one:?}"
    );
    assert!(count(&proxy, "active") > f64::from(CLIENTS));
}

/// The first failure was told to all who stood in line.
#[test]
fn logins_that_fail_for_a_while_are_tried_again_for_who_waits() {
    for (sqlstate, message) in [
        ("C57P03", "Mthe database system is starting up"),
        ("C53300", "Msorry, too many clients already"),
    ] {
        for has_others in [true, false] {
            let (link, proxy) = cold(8);
            let mut clients = [0; 6].map(|_| proxy.connect());
            let _holders = holders(&proxy);
            let refused = refuse_for_a_second(
                &link,
                &proxy.address.user,
                ["SFATAL", "VFATAL", sqlstate, message],
            );
            if !has_others {
                link.cut();
                link.mend();
            }
            thread::scope(|scope| {
                for client in &mut clients {
                    scope.spawn(|| client.run(WRITE));
                }
            });
            assert!(refused.load(Ordering::Relaxed) > 0, "no login was refused");
        }
    }
}

/// Has a user's logins refused for a second from the first one on. How many have been.
fn refuse_for_a_second(link: &Link, user: &str, fields: [&'static str; 4]) -> Arc<AtomicU32> {
    let refused = Arc::new(AtomicU32::new(0));
    let (counted, first) = (Arc::clone(&refused), OnceLock::new());
    // The server tells it of each user at the end of its login.
    let login = format!("session_authorization\0{user}\0");
    link.on_message(move |frame| {
        let is_over = || first.get_or_init(Instant::now).elapsed() >= Duration::from_secs(1);
        if frame.kind != b'S' || !frame.has(&login) || is_over() {
            return Act::Pass;
        }
        counted.fetch_add(1, Ordering::Relaxed);
        Act::LastWords(error_response(&fields))
    });
    refused
}
