//! `statement_timeout`: it counts while a statement waits for a node too, whoever has set it.

use std::time::{Duration, Instant};

use crate::support::message::*;
use crate::support::{Address, Client, Cluster, Link, Proxy, Wanted, until};

/// Only the primary runs it.
const WRITE: &str = "SELECT txid_current()";

/// A proxy that reaches the primary by a link alone, by one connection for each user, and knows one replica besides.
fn linked(adjust: impl FnOnce(Wanted<'static>) -> Wanted<'static>) -> (Link, Proxy) {
    let cluster = Cluster::shared();
    let primary = cluster.primary().name.as_str();
    let link = Link::to(cluster.primary().port);
    let wanted = cluster
        .proxy()
        .only_nodes(|node| node == primary || node == "ro1")
        .through(primary, &link)
        .set("pool.size", 1)
        .set("failover.hold", "20s");
    (link, adjust(wanted).start())
}

/// Takes the primary away.
fn lose_primary(link: &Link, proxy: &Proxy) {
    link.cut();
    proxy.until_role(&Cluster::shared().primary().name, "unknown");
}

/// In either protocol, after half a second; and its session lives on.
#[track_caller]
fn is_told_that_its_time_is_over(client: &mut Client) {
    let began = Instant::now();
    let simple = client.query(WRITE);
    client.send(&[unnamed(WRITE, &[]), sync()].concat());
    for answer in [simple, client.answer()] {
        assert_eq!(answer.sqlstate(), "57014", "{:?}", answer.error);
        let message = answer.error.unwrap().field(b'M');
        assert_eq!(message, "canceling statement due to statement timeout");
        assert_eq!(answer.status, 'I');
    }
    let took = began.elapsed();
    assert!(
        (Duration::from_secs(1)..Duration::from_secs(18)).contains(&took),
        "{took:?}"
    );
}

#[test]
fn a_statement_waits_no_longer_than_its_client_lets_it_take() {
    let (link, proxy) = linked(|wanted| wanted);
    let mut by_startup = proxy.address.connect_with(&[("statement_timeout", "500")]);
    let mut by_set = proxy.connect();
    by_set.run("SET statement_timeout = '0.5 s'");
    let mut without = proxy.connect();
    without.run("SET statement_timeout = 0");

    let mut working = proxy.connect();
    working.run("BEGIN");
    working.run(WRITE);
    is_told_that_its_time_is_over(&mut by_startup);
    is_told_that_its_time_is_over(&mut by_set);
    working.run("COMMIT");
    by_startup.run(WRITE);

    lose_primary(&link, &proxy);
    is_told_that_its_time_is_over(&mut by_startup);
    is_told_that_its_time_is_over(&mut by_set);
    assert_eq!(without.failure(WRITE), "57P03", "it is held for failover.hold");
    link.mend();
    without.run(WRITE);
    by_startup.run(WRITE);
    by_set.run(WRITE);
    assert_eq!(by_set.value("SHOW statement_timeout"), "500ms");
}

/// It waited for `failover.hold`, as if nobody had set anything.
#[test]
fn a_statement_waits_no_longer_than_its_role_lets_it_take() {
    let cluster = Cluster::shared();
    let mut superuser = cluster.superuser(cluster.primary()).connect();
    superuser.run(
        "DROP ROLE IF EXISTS hurried; CREATE ROLE hurried LOGIN PASSWORD 'in haste' IN ROLE appuser;
         ALTER ROLE hurried SET statement_timeout = '500ms'",
    );
    cluster.replicated();
    let administrator = cluster.app(1).user;
    let (link, proxy) = linked(|wanted| {
        wanted
            .with_user("hurried", "in haste")
            .set("admin.users", vec![administrator])
    });
    let mut console = Address {
        database: "halyard".to_owned(),
        ..proxy.address.clone()
    }
    .connect();
    let hurried = Address {
        user: "hurried".to_owned(),
        password: "in haste".to_owned(),
        ..proxy.address.clone()
    };
    let mut by_default = hurried.connect();
    assert_eq!(by_default.value("SHOW statement_timeout"), "500ms");
    // What a client says itself goes before the default, until it takes it back.
    let mut by_reset = hurried.connect();
    by_reset.run("SET statement_timeout = '1h'");
    by_reset.run("RESET statement_timeout");
    let mut patient = hurried.connect();
    patient.run("SET statement_timeout = 0");
    let mut patient_from_the_start = hurried.connect_with(&[("statement_timeout", "0")]);

    // In line.
    let mut working = hurried.connect();
    working.run("BEGIN");
    working.run(WRITE);
    patient.send(&query(WRITE));
    until("it to be in line", || proxy.clients("waiting") == 1);
    is_told_that_its_time_is_over(&mut by_default);
    is_told_that_its_time_is_over(&mut by_reset);
    working.run("COMMIT");
    assert!(patient.answer().error.is_none());

    // By a pause, and without a primary.
    for by_pause in [true, false] {
        if by_pause {
            console.run("PAUSE");
        } else {
            lose_primary(&link, &proxy);
        }
        patient.send(&query(WRITE));
        patient_from_the_start.send(&query(WRITE));
        until("both to be held", || proxy.clients("held") == 2);
        is_told_that_its_time_is_over(&mut by_default);
        is_told_that_its_time_is_over(&mut by_reset);
        if by_pause {
            console.run("RESUME");
        } else {
            link.mend();
        }
        for client in [&mut patient, &mut patient_from_the_start] {
            let told = client.answer();
            assert!(told.error.is_none(), "{:?}", told.error);
        }
        by_default.run(WRITE);
    }

    // So is a session that keeps its backend.
    by_default.run("CREATE TEMP TABLE its_own (n int)");
    console.run("PAUSE");
    is_told_that_its_time_is_over(&mut by_default);
    console.run("RESUME");
    by_default.run("DISCARD ALL");

    // Connections that are opened later tell what it is by then.
    superuser.run("ALTER ROLE hurried RESET statement_timeout");
    cluster.replicated();
    console.run("RECONNECT");
    patient.run(WRITE);
    let mut still_hurried = hurried.connect_with(&[("statement_timeout", "500")]);
    console.run("PAUSE");
    by_default.send(&query(WRITE));
    is_told_that_its_time_is_over(&mut still_hurried);
    console.run("RESUME");
    assert!(by_default.answer().error.is_none());
}
