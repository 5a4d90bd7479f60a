//! What a session has drawn from sequences is told to it and to nobody else, wherever its statements run.

use std::time::{Duration, Instant};

use super::support::message::{bind, execute, parse, query, sync, unnamed};
use super::support::{Address, Answer, Client, Cluster, Proxy, until};

/// A proxy whose sessions are known to ask for what they have drawn, with so many backends.
fn keeping(size: i64, schema: &str) -> Proxy {
    let cluster = Cluster::shared();
    cluster.prepare(schema);
    cluster
        .proxy()
        .set("pool.size", size)
        .set("pool.wait_timeout", "5s")
        .set("pool.sequences", "keep")
        .set("admin.users", vec![cluster.app(1).user])
        .start()
}

/// A value that a statement of the extended protocol returns.
fn extended(client: &mut Client, sql: &str, values: &[Option<&str>]) -> String {
    client.send(&[unnamed(sql, values), sync()].concat());
    only_value(client)
}

#[track_caller]
fn only_value(client: &mut Client) -> String {
    let answer = client.answer();
    assert_eq!(answer.error, None);
    answer.rows[0][0].clone().unwrap()
}

/// Their next statement found another backend, or one on which another client had written meanwhile, and was told 55000.
#[test]
fn clients_on_few_backends_are_told_what_they_have_drawn() {
    let schema = "DROP TABLE IF EXISTS drawn_serial, drawn_identity; DROP SEQUENCE IF EXISTS drawn_apart;
        CREATE TABLE drawn_serial (id serial, who text); CREATE SEQUENCE drawn_apart;
        CREATE TABLE drawn_identity (id int GENERATED ALWAYS AS IDENTITY, who text)";
    let proxy = keeping(4, schema);
    let mut clients = [proxy.connect(), proxy.connect(), proxy.connect()];
    for client in &mut clients {
        client.send(
            &[
                parse("add", "INSERT INTO drawn_serial (who) VALUES ($1) RETURNING id"),
                parse("ask", "SELECT currval('drawn_serial_id_seq')"),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(client.answer().error, None);
    }
    for round in 0..8 {
        let drawn: Vec<(String, String, String)> = clients
            .iter_mut()
            .map(|client| {
                let serial = match round % 2 {
                    0 => client.value("INSERT INTO drawn_serial (who) VALUES ('simple') RETURNING id"),
                    _ => {
                        client.send(&[bind("", "add", &[Some("prepared")]), execute("", 0), sync()].concat());
                        only_value(client)
                    }
                };
                let apart = client.value("SELECT nextval('drawn_apart')");
                let identity = extended(
                    client,
                    "INSERT INTO drawn_identity (who) VALUES ($1) RETURNING id",
                    &[Some("extended")],
                );
                (serial, apart, identity)
            })
            .collect();
        // Whoever takes no part holds one, so that the others have to be found again.
        let mut stranger = proxy.connect();
        stranger.run("BEGIN");
        for (client, (serial, apart, identity)) in clients.iter_mut().zip(&drawn).rev() {
            assert_eq!(&client.value("SELECT lastval()"), identity);
            assert_eq!(&client.value("SELECT currval('drawn_apart')"), apart);
            client.send(&[bind("", "ask", &[]), execute("", 0), sync()].concat());
            assert_eq!(&only_value(client), serial);
            assert_eq!(
                &extended(client, "SELECT currval('drawn_identity_id_seq')", &[]),
                identity
            );
        }
        stranger.leave();
        if round % 3 == 2 {
            clients[round % 2].run("DISCARD SEQUENCES");
            assert_eq!(clients[round % 2].failure("SELECT lastval()"), "55000");
        }
    }
}

/// The first who asks is the first from whom Halyard knows that somebody does.
#[test]
fn that_sessions_ask_is_learned_from_the_first() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP SEQUENCE IF EXISTS drawn_learned; CREATE SEQUENCE drawn_learned");
    let proxy = cluster.proxy().set("pool.size", 4).start();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("SELECT nextval('drawn_learned')");
    other.run("SELECT nextval('drawn_learned')");
    assert_eq!(
        one.failure("SELECT lastval()"),
        "55000",
        "the same backend served both"
    );
    one.run("DISCARD SEQUENCES");
    let ones = one.value("SELECT nextval('drawn_learned')");
    let others = other.value("SELECT nextval('drawn_learned')");
    assert_eq!(one.value("SELECT lastval()"), ones);
    assert_eq!(other.value("SELECT currval('drawn_learned')"), others);
}

/// With nothing else to lend, the reservation of whoever was away the longest goes first, and a stranger's value is told
/// to nobody.
#[test]
fn an_exhausted_pool_gives_up_the_reservation_that_is_oldest() {
    let proxy = keeping(
        2,
        "DROP SEQUENCE IF EXISTS drawn_scarce; CREATE SEQUENCE drawn_scarce",
    );
    let (mut oldest, mut newer, mut third) = (proxy.connect(), proxy.connect(), proxy.connect());
    let draw = "SELECT nextval('drawn_scarce')";
    oldest.run(draw);
    let newers = newer.value(draw);
    let thirds = third.value(draw);
    assert_eq!(newer.value("SELECT lastval()"), newers);
    newer.run("DISCARD SEQUENCES");
    // By then it has given up its backend.
    newer.run("SELECT 1");
    assert_eq!(oldest.failure("SELECT lastval()"), "55000");
    assert_eq!(third.value("SELECT lastval()"), thirds);
}

/// Whether a session was told the value that it has drawn, and not that it has drawn none.
#[track_caller]
fn has_kept(told: &Answer, drawn: String) -> bool {
    match told.sqlstate().as_str() {
        "" => assert_eq!(told.rows, [[Some(drawn)]]),
        sqlstate => assert_eq!(sqlstate, "55000", "{:?}", told.error),
    }
    told.error.is_none()
}

/// Reads that are proved to do nothing else leave alone what lies on the backend that they are lent, and its owner waits
/// for it, so that it has all its values in one place.
#[test]
fn an_owner_waits_for_its_backend_while_that_is_lent_to_a_read() {
    let cluster = Cluster::shared();
    let proxy = keeping(
        2,
        "DROP SEQUENCE IF EXISTS drawn_lent, drawn_lent_too; CREATE SEQUENCE drawn_lent; CREATE SEQUENCE drawn_lent_too;
         CREATE TABLE IF NOT EXISTS drawn_gate (a int)",
    );
    let (mut owner, mut other, mut reader) = (proxy.connect(), proxy.connect(), proxy.connect());
    reader.run("SET halyard.route = 'primary'");
    let mut gate = cluster.superuser(cluster.primary()).connect();
    let read = "SELECT count(*) FROM drawn_gate";
    // It waits for a second (`OWN_LIMIT`): on a slow machine that may be over before it is seen.
    let waited = (0..20).any(|_| {
        let first = owner.value("SELECT nextval('drawn_lent')");
        let second = owner.value("SELECT nextval('drawn_lent_too')");
        // Then the owner's is the one that was given back longest ago.
        let others = other.value("SELECT nextval('drawn_lent')");
        gate.run("BEGIN; LOCK TABLE drawn_gate");
        reader.send(&query(read));
        cluster.until_runs(cluster.primary(), read);
        owner.send(&query("SELECT lastval()"));
        let began = Instant::now();
        let waits = || proxy.clients("waiting") == 1;
        let seen = std::iter::repeat_with(waits)
            .take_while(|_| began.elapsed() < Duration::from_millis(700))
            .any(|waits| waits);
        gate.run("COMMIT");
        assert_eq!(reader.answer().error, None);
        let kept = has_kept(&owner.answer(), second);
        if seen && began.elapsed() < Duration::from_millis(900) {
            assert!(kept, "it has waited, and not for too long");
            assert_eq!(owner.value("SELECT currval('drawn_lent')"), first);
            assert_eq!(other.value("SELECT lastval()"), others);
            return true;
        }
        false
    });
    assert!(waited, "the owner never waited");
}

/// Who was lent a backend for a read and goes on there with what draws takes it from its owner, who is served elsewhere at
/// once: that ended the connection of whoever drew, and cost the pool a place.
#[test]
fn who_draws_on_what_it_was_lent_sends_its_owner_elsewhere() {
    let cluster = Cluster::shared();
    let proxy = keeping(
        2,
        "DROP SEQUENCE IF EXISTS drawn_taken; CREATE SEQUENCE drawn_taken; CREATE TABLE IF NOT EXISTS drawn_taken_gate (a int)",
    );
    let (mut owner, mut other, mut reader) = (proxy.connect(), proxy.connect(), proxy.connect());
    reader.run("SET halyard.route = 'primary'");
    let mut gate = cluster.superuser(cluster.primary()).connect();
    let (read, draw) = (
        "SELECT count(*) FROM drawn_taken_gate",
        "SELECT nextval('drawn_taken')",
    );
    // The owner waits for a second: on a slow machine that may be over before it is seen.
    let waited = (0..20).any(|_| {
        let drawn = owner.value(draw);
        other.run(draw);
        gate.run("BEGIN; LOCK TABLE drawn_taken_gate");
        reader.send(&query(read));
        cluster.until_runs(cluster.primary(), read);
        let began = Instant::now();
        owner.send(&query("SELECT lastval()"));
        let waits = || proxy.clients("waiting") == 1;
        let seen = std::iter::repeat_with(waits)
            .take_while(|_| began.elapsed() < Duration::from_millis(700))
            .any(|waits| waits);
        reader.send(&query(draw));
        // Its values are forgotten, or it was not seen to wait for them.
        let told = owner.answer();
        gate.run("COMMIT");
        for _ in [read, draw] {
            let told = reader.answer();
            assert!(told.error.is_none(), "{:?}", told.error);
        }
        let forgotten = !has_kept(&told, drawn);
        seen && forgotten && began.elapsed() < Duration::from_millis(900)
    });
    assert!(waited, "the owner never waited");
    // The pool has both its places.
    for client in [&mut owner, &mut other] {
        client.run("BEGIN");
        client.run(draw);
    }
    for client in [&mut owner, &mut other] {
        client.run("COMMIT");
    }
}

/// Whoever leaves, or says that it asks no more, has no reservation.
#[test]
fn a_reservation_ends_with_its_session_and_with_discard() {
    let proxy = keeping(
        2,
        "DROP SEQUENCE IF EXISTS drawn_ended; CREATE SEQUENCE drawn_ended",
    );
    let mut console = Address {
        database: "halyard".to_owned(),
        ..proxy.address.clone()
    }
    .connect();
    let mut one = proxy.connect();
    let draw = "SELECT nextval('drawn_ended')";
    let reserved = |console: &mut Client| {
        let shown = console.run("SHOW SERVERS").rows;
        let (state, link) = (4, 15);
        let is_reserved = |row: &&Vec<Option<String>>| {
            row[state].as_deref() == Some("idle") && row[link].as_deref() != Some("")
        };
        shown.iter().filter(is_reserved).count()
    };
    for end in ["DISCARD SEQUENCES", "DISCARD ALL;", "DISCARD ALL"] {
        one.run(draw);
        until("the backend to be reserved", || reserved(&mut console) == 1);
        one.run(end);
        until("the reservation to end", || reserved(&mut console) == 0);
    }
    one.run(draw);
    one.query("DISCARD SEQUENCES; SELECT nextval('drawn_ended')");
    one.run("SELECT 1");
    assert_eq!(reserved(&mut console), 1, "it has drawn since");
    one.leave();
    until("the reservation to end", || reserved(&mut console) == 0);
}
