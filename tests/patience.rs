//! Statements that wait for a node: `statement_timeout` counts meanwhile, whoever has set it; they can be cancelled; and no
//! user's take every place.

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

/// For another user than the application's.
fn address_of(user: &str, password: &str, proxy: &Proxy) -> Address {
    Address {
        user: user.to_owned(),
        password: password.to_owned(),
        ..proxy.address.clone()
    }
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
    let hurried = address_of("hurried", "in haste", &proxy);
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

/// While there is no primary: in either protocol, and each time anew.
#[test]
fn who_waits_for_a_primary_may_cancel_and_leaves_others_their_places() {
    let cluster = Cluster::shared();
    cluster.superuser(cluster.primary()).connect().run(
        "DROP ROLE IF EXISTS patient; CREATE ROLE patient LOGIN PASSWORD 'with leisure' IN ROLE appuser",
    );
    cluster.replicated();
    let (link, proxy) = linked(|wanted| {
        wanted
            .with_user("patient", "with leisure")
            .set("failover.held_clients_max", 6)
    });
    let other = address_of("patient", "with leisure", &proxy);
    let mut own: Vec<Client> = (0..3).map(|_| proxy.connect()).collect();
    let mut others: Vec<Client> = (0..3).map(|_| other.connect()).collect();
    let _third = proxy.readonly.connect();
    let held = |count: u64| until(&format!("{count} to be held"), || proxy.clients("held") == count);
    lose_primary(&link, &proxy);

    // Of six places each of three users has two.
    own[0].send(&query(WRITE));
    own[1].send(&[unnamed(WRITE, &[]), sync()].concat());
    held(2);
    assert_eq!(own[2].failure(WRITE), "57P03");
    others[0].send(&query(WRITE));
    others[1].send(&query(WRITE));
    held(4);
    assert_eq!(others[2].failure(WRITE), "57P03");

    for (cancelling, next) in [(0, 2), (1, 0)] {
        own[cancelling].cancel();
        let told = own[cancelling].answer();
        assert_eq!(told.sqlstate(), "57014", "{:?}", told.error);
        let message = told.error.unwrap().field(b'M');
        assert_eq!(message, "canceling statement due to user request");
        assert_eq!(told.status, 'I');
        held(3);
        own[next].send(&query(WRITE));
        held(4);
    }
    // Who leaves makes room as well.
    drop(others.remove(0));
    held(3);
    others[1].send(&query(WRITE));
    held(4);

    link.mend();
    for (number, client) in own.iter_mut().enumerate() {
        if number == 1 {
            client.run(WRITE);
        } else {
            let told = client.answer();
            assert!(told.error.is_none(), "{:?}", told.error);
        }
    }
    for client in &mut others {
        let told = client.answer();
        assert!(told.error.is_none(), "{:?}", told.error);
    }
}

/// Its node is not known to be a primary any more, and its connection is there: it begins no transaction on it, and none
/// elsewhere.
#[test]
fn who_keeps_a_backend_is_held_without_a_primary_too() {
    for mode in ["transaction", "session"] {
        let (link, proxy) = linked(|wanted| wanted.set("pool.mode", mode).cold());
        let mut client = proxy.connect();
        if mode == "transaction" {
            client.run("CREATE TEMP TABLE its_own AS SELECT 5 AS n");
        }
        let backend = client.value("SELECT pg_backend_pid()");
        let held = || proxy.metric("halyard_held_total{reason=\"no_primary\"}");
        assert_eq!(held(), 0.0);

        link.fall_silent();
        proxy.until_role(&Cluster::shared().primary().name, "unknown");
        client.send(&query(WRITE));
        until("it to be held", || proxy.clients("held") == 1);
        assert_eq!(held(), 1.0, "{mode} pooling");
        link.mend();
        let told = client.answer();
        assert!(told.error.is_none(), "{mode} pooling: {:?}", told.error);
        assert_eq!(client.value("SELECT pg_backend_pid()"), backend, "{mode} pooling");
        assert_eq!(held(), 1.0, "{mode} pooling");
    }
}

/// LISTEN is run when somebody hears the channel for its client, which needs a primary too.
#[test]
fn who_wants_to_listen_is_held_no_longer_than_it_may() {
    let (link, proxy) = linked(|wanted| wanted.set("failover.hold", "5s"));
    let (mut listener, mut hasty) = (
        proxy.connect(),
        proxy.address.connect_with(&[("statement_timeout", "300")]),
    );
    lose_primary(&link, &proxy);
    for client in [&mut listener, &mut hasty] {
        client.send(&query("LISTEN held"));
    }
    assert_eq!(hasty.answer().sqlstate(), "57014", "by its own limit");
    assert_eq!(listener.answer().sqlstate(), "57P03");
    assert!(proxy.metric("halyard_held_total{reason=\"listen\"}") >= 2.0);
    assert!(proxy.metric("halyard_held_refused_total{reason=\"time\"}") >= 1.0);
    link.mend();
    proxy.until_role(&Cluster::shared().primary().name, "primary");
    for client in [&mut listener, &mut hasty] {
        client.run("SET statement_timeout = 0");
        client.run("LISTEN held");
    }
    proxy.connect().run("NOTIFY held, 'after'");
    for client in [&mut listener, &mut hasty] {
        assert_eq!(client.receive().to_string(), "NotificationResponse(held, after)");
    }
}
