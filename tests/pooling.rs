//! Many clients over few backends, and nothing of one client is ever seen by another.

use std::thread;

use crate::support::message::*;
use crate::support::{Client, Cluster, Proxy, until};

/// A proxy with pools of one backend: whatever the last client left on it, the next one meets.
fn narrow() -> Proxy {
    Cluster::shared().proxy().set("pool.size", 1).start()
}

/// Runs a query somewhere on a server and returns it with the answer still to come.
#[track_caller]
fn begin_slow(client: &mut Client, sql: &str) {
    client.send(&query(sql));
    let cluster = Cluster::shared();
    cluster.until_runs(cluster.primary(), sql);
}

fn many_over(backends: i64, rounds: usize) {
    const CLIENTS: usize = 64;
    let cluster = Cluster::shared();
    let table = format!("shared_by_{backends}");
    cluster.prepare(&format!(
        "DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (client int)"
    ));
    let proxy = cluster.proxy().set("pool.size", backends).start();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let mut client = proxy.connect();
            let table = &table;
            scope.spawn(move || {
                for round in 0..rounds {
                    client.run("BEGIN");
                    let backend = client.value("SELECT pg_backend_pid()");
                    client.run(&format!("INSERT INTO {table} VALUES ({number})"));
                    assert_eq!(
                        client.value("SELECT pg_backend_pid()"),
                        backend,
                        "a block stays on its backend"
                    );
                    client.run("COMMIT");
                    assert_eq!(
                        client.value(&format!("SELECT {number} + {round}")),
                        (number + round).to_string()
                    );
                }
            });
        }
    });
    let mut direct = cluster.app(cluster.primary().port).connect();
    assert_eq!(
        direct.value(&format!("SELECT count(*) FROM {table}")),
        (CLIENTS * rounds).to_string()
    );
    for pool in proxy.status()["pools"].as_array().unwrap() {
        let open = pool["active"].as_i64().unwrap() + pool["idle"].as_i64().unwrap();
        assert!(open <= backends, "{pool}");
        assert_eq!(pool["active"], 0, "all are given back: {pool}");
    }
}

#[test]
fn sixty_four_clients_over_sixteen_backends() {
    many_over(16, 10);
}

#[test]
fn sixty_four_clients_over_two_backends() {
    many_over(2, 5);
}

#[test]
fn sixty_four_clients_over_one_backend() {
    many_over(1, 3);
}

/// `default_transaction_read_only` of one client, left on a shared backend, broke the writes of strangers.
#[test]
fn settings_are_their_clients_alone() {
    let proxy = Cluster::shared().proxy().set("pool.size", 2).start();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("SET work_mem = '7MB'");
    one.run("SET default_transaction_read_only = on");
    one.run("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE");
    one.run(
        "SELECT set_config('statement_timeout', '12345', false), set_config('lock_timeout', '54321', false)",
    );
    let shown = |client: &mut Client| -> Vec<String> {
        [
            "work_mem",
            "default_transaction_read_only",
            "transaction_isolation",
            "statement_timeout",
            "lock_timeout",
        ]
        .map(|name| client.value(&format!("SHOW {name}")))
        .into()
    };
    let changed = ["7MB", "on", "serializable", "12345ms", "54321ms"];
    let default = ["4MB", "off", "read committed", "0", "0"];
    for begin in ["BEGIN READ WRITE", "BEGIN READ ONLY", "BEGIN READ WRITE"] {
        for (client, expected) in [(&mut one, changed), (&mut other, default)] {
            client.run(begin);
            assert_eq!(shown(client), expected, "{begin}");
            client.run("COMMIT");
        }
    }
    one.leave();
    // Both backends of the primary at once, so that the one which was changed is among them.
    let mut third = proxy.connect();
    third.run("BEGIN");
    other.run("BEGIN");
    assert_eq!(shown(&mut third), default);
    assert_eq!(shown(&mut other), default);
}

#[test]
fn a_setting_made_in_a_block_goes_with_its_rollback() {
    let proxy = narrow();
    let mut client = proxy.connect();
    client.run("SET application_name = 'before'");
    client.run("BEGIN; SET application_name = 'within'; ROLLBACK");
    assert_eq!(client.value("SHOW application_name"), "before");
    client.run("BEGIN; SAVEPOINT s; SET application_name = 'within'; ROLLBACK TO s; COMMIT");
    assert_eq!(client.value("SHOW application_name"), "before");
    client.run("BEGIN; SET application_name = 'after'; COMMIT");
    assert_eq!(client.value("SHOW application_name"), "after");
    client.run("BEGIN; SET LOCAL application_name = 'local'; COMMIT");
    assert_eq!(client.value("SHOW application_name"), "after");
}

#[test]
fn startup_parameters_hold_on_every_backend() {
    let proxy = Cluster::shared_proxy();
    let mut client = proxy.address.connect_with(&[
        ("application_name", "named"),
        ("options", "-c geqo_threshold=7"),
        ("DateStyle", "German"),
    ]);
    for _ in 0..12 {
        assert_eq!(client.value("SHOW application_name"), "named");
        assert_eq!(client.value("SHOW geqo_threshold"), "7");
        assert_eq!(client.value("SELECT '2026-01-31'::date"), "31.01.2026");
    }
    client.run("BEGIN");
    assert_eq!(client.value("SHOW geqo_threshold"), "7");
    client.run("COMMIT");
}

#[test]
fn a_temporary_table_is_its_clients_alone() {
    let proxy = Cluster::shared().proxy().set("pool.size", 2).start();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("CREATE TEMP TABLE mine (a int)");
    other.run("CREATE TABLE IF NOT EXISTS somebody (a int)");
    for _ in 0..4 {
        one.run("INSERT INTO mine VALUES (1)");
        assert_eq!(other.failure("SELECT * FROM mine"), "42P01");
        assert_eq!(other.failure("INSERT INTO mine VALUES (2)"), "42P01");
    }
    assert_eq!(one.value("SELECT count(*) FROM mine"), "4");
}

#[test]
fn what_a_client_leaves_behind_is_gone_before_the_next_one_comes() {
    let proxy = narrow();
    let primary = Cluster::shared().primary().port;
    let mut leaving = proxy.connect();
    leaving.run("CREATE TEMP TABLE left_over (a int)");
    leaving.run("SELECT pg_advisory_lock(4711)");
    leaving.run("LISTEN left_channel");
    leaving.run("PREPARE left_statement AS SELECT 1");
    leaving.run("SET search_path = pg_catalog");
    leaving.run("BEGIN; DECLARE left_cursor CURSOR WITH HOLD FOR SELECT 1; COMMIT");
    leaving.leave();

    let mut next = proxy.connect();
    next.run("BEGIN");
    assert_eq!(next.server_port(), primary);
    next.run("COMMIT");
    assert_eq!(next.failure("INSERT INTO left_over VALUES (1)"), "42P01");
    assert_eq!(next.failure("BEGIN; EXECUTE left_statement"), "26000");
    next.run("ROLLBACK");
    assert_eq!(next.failure("BEGIN; FETCH 1 FROM left_cursor"), "34000");
    next.run("ROLLBACK");
    assert_eq!(next.value("BEGIN; SHOW search_path; COMMIT"), "\"$user\", public");
    assert_eq!(
        next.run("BEGIN; SELECT pg_listening_channels(); COMMIT").rows,
        Vec::<Vec<_>>::new()
    );
    let mut direct = Cluster::shared().app(primary).connect();
    assert_eq!(direct.value("SELECT pg_try_advisory_lock(4711)"), "t");
}

#[test]
fn a_session_advisory_lock_is_held_until_its_client_lets_go() {
    let proxy = Cluster::shared().proxy().set("pool.size", 3).start();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    for key in ["4712", "(SELECT 4713)"] {
        one.run(&format!("SELECT pg_advisory_lock({key})"));
        for _ in 0..5 {
            other.run("SELECT 1");
            one.run("SELECT 1");
            assert_eq!(other.value(&format!("SELECT pg_try_advisory_lock({key})")), "f");
        }
        assert_eq!(one.value(&format!("SELECT pg_advisory_unlock({key})")), "t");
        assert_eq!(other.value(&format!("SELECT pg_try_advisory_lock({key})")), "t");
        other.run("SELECT pg_advisory_unlock_all()");
    }
}

#[test]
fn notifications_reach_who_listens() {
    let proxy = narrow();
    let mut listener = Cluster::shared_proxy().connect();
    listener.run("LISTEN news");
    let mut talker = proxy.connect();
    talker.run("NOTIFY news, 'it works'");
    let heard = listener.receive();
    assert_eq!(heard.to_string(), "NotificationResponse(news, it works)");
    talker.run("NOTIFY news, 'twice'");
    assert_eq!(
        listener.receive().to_string(),
        "NotificationResponse(news, twice)"
    );
}

#[test]
fn one_name_for_two_statements_of_two_clients() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    for (client, text) in [
        (&mut one, "SELECT 'one', $1"),
        (&mut other, "SELECT 'other', $1, 2"),
    ] {
        client.send(&[parse("s", text), sync()].concat());
        client.answer();
    }
    for round in 0..5 {
        let round = round.to_string();
        for (client, name) in [(&mut one, "one"), (&mut other, "other")] {
            client.send(&[bind("", "s", &[Some(&round)]), execute("", 0), sync()].concat());
            let answer = client.answer();
            assert!(answer.error.is_none(), "{answer:?}");
            assert_eq!(answer.rows[0][0].as_deref(), Some(name));
            assert_eq!(answer.rows[0][1].as_ref(), Some(&round));
        }
    }
}

#[test]
fn more_prepared_statements_than_a_backend_keeps() {
    let proxy = Cluster::shared()
        .proxy()
        .set("pool.size", 2)
        .set("pool.prepared_statements_max", 5)
        .start();
    let mut client = proxy.connect();
    for n in 0..20 {
        client.send(&[parse(&format!("s{n}"), &format!("SELECT {n}")), sync()].concat());
        assert!(client.answer().error.is_none());
    }
    for n in (0..20).chain((0..20).rev()) {
        client.send(&[bind("", &format!("s{n}"), &[]), execute("", 0), sync()].concat());
        assert_eq!(client.answer().rows, [[Some(n.to_string())]]);
    }
    // All in one pipeline, more than fit at a time.
    let flight: Vec<u8> = (0..20)
        .flat_map(|n| [bind("", &format!("s{n}"), &[]), execute("", 0)].concat())
        .collect();
    client.send(&[flight, sync()].concat());
    let rows = client.answer().rows;
    assert_eq!(
        rows,
        (0..20)
            .map(|n: i32| vec![Some(n.to_string())])
            .collect::<Vec<_>>()
    );
    let kept = "SELECT count(*) <= 5 FROM pg_prepared_statements WHERE NOT from_sql";
    assert_eq!(client.value(kept), "t");
}

#[test]
fn more_prepared_statements_than_a_client_may_have_are_refused() {
    let proxy = Cluster::shared()
        .proxy()
        .set("pool.client_prepared_statements_max", 3)
        .start();
    let (mut greedy, mut other) = (proxy.connect(), proxy.connect());
    let prepare = |client: &mut Client, name: &str| {
        client.send(&[parse(name, &format!("SELECT '{name}'")), sync()].concat());
        client.answer()
    };
    for name in ["one", "two", "three"] {
        assert_eq!(prepare(&mut greedy, name).error, None);
    }
    // With one less it can have another.
    greedy.send(&[close_statement("one"), sync()].concat());
    assert_eq!(greedy.answer().error, None);
    assert_eq!(prepare(&mut greedy, "four").error, None);
    greedy.send(&[parse("five", "SELECT 5"), sync()].concat());
    let told: Vec<_> = greedy
        .until_closed()
        .iter()
        .filter(|message| message.kind == b'E')
        .map(|message| (message.field(b'S'), message.field(b'C')))
        .collect();
    assert_eq!(told, [("FATAL".to_owned(), "53400".to_owned())]);
    // Nobody else notices.
    assert_eq!(prepare(&mut other, "four").error, None);
}

#[test]
fn session_pooling_keeps_one_backend_for_one_client() {
    let proxy = Cluster::shared()
        .proxy()
        .set("pool.mode", "session")
        .set("pool.size", 1)
        .set("pool.wait_timeout", "300ms")
        .cold()
        .start();
    let mut one = proxy.connect();
    let backend = one.value("SELECT pg_backend_pid()");
    one.run("CREATE TEMP TABLE in_session (a int)");
    one.run("SET work_mem = '9MB'");
    one.run("INSERT INTO in_session VALUES (1)");
    assert_eq!(one.value("SELECT pg_backend_pid()"), backend);
    assert_eq!(one.value("SHOW work_mem"), "9MB");

    let mut other = proxy.connect();
    assert_eq!(other.failure("SELECT 1"), "53300");
    one.leave();
    until("the backend to be free", || {
        other.query("SELECT 1").error.is_none()
    });
    assert_eq!(other.value("SHOW work_mem"), "4MB");
    assert_eq!(other.failure("SELECT * FROM in_session"), "42P01");
}

/// Nobody keeps a backend by BEGIN, however it is said; what one message holds is a transaction of its own all the same.
#[test]
fn statement_pooling_refuses_blocks_and_nothing_else() {
    let proxy = Cluster::shared()
        .proxy()
        .set("pool.mode", "statement")
        .set("pool.size", 1)
        .set("pool.wait_timeout", "1s")
        .start();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("CREATE TABLE IF NOT EXISTS by_statement (a int); TRUNCATE by_statement");
    for block in [
        "BEGIN",
        "START TRANSACTION READ ONLY",
        "BEGIN; INSERT INTO by_statement VALUES (1)",
        "INSERT INTO by_statement VALUES (1); BEGIN",
        "COMMIT; BEGIN; SELECT 1/1",
    ] {
        let refused = one.query(block);
        assert_eq!(
            (refused.sqlstate().as_str(), refused.status),
            ("0A000", 'I'),
            "{block}"
        );
        other.run("INSERT INTO by_statement VALUES (2)");
    }
    let failed = one.query("BEGIN; SELECT 1/0");
    assert_eq!((failed.sqlstate().as_str(), failed.status), ("22012", 'I'));
    one.send(&[parse("b", "BEGIN"), sync()].concat());
    assert_eq!(one.answer().error, None);
    one.send(&[bind("", "b", &[]), execute("", 0), sync()].concat());
    assert_eq!(one.answer().sqlstate(), "0A000");
    one.run("BEGIN; INSERT INTO by_statement VALUES (3); COMMIT");
    one.run("SET work_mem = '9MB'");
    other.run("INSERT INTO by_statement VALUES (2)");
    assert_eq!(one.value("SHOW work_mem"), "9MB");
    assert_eq!(
        one.value(
            "SELECT count(*) FILTER (WHERE a = 1) || ' ' || count(*) FILTER (WHERE a = 3) FROM by_statement"
        ),
        "0 1"
    );
    // A backend that is kept for a temporary table holds no block either.
    one.run("CREATE TEMP TABLE kept (a int)");
    let refused = one.query("BEGIN");
    assert_eq!((refused.sqlstate().as_str(), refused.status), ("0A000", 'I'));
    one.run("INSERT INTO kept VALUES (1)");
}

/// The mode of one user, where all others have transactions.
#[test]
fn statement_pooling_can_be_one_users() {
    let cluster = Cluster::shared();
    let proxy = cluster
        .proxy()
        .set_user(&cluster.app(1).user, "pool_mode", "statement")
        .start();
    let mut one = proxy.connect();
    assert_eq!(one.failure("BEGIN"), "0A000");
    one.run("SELECT 1");
}

#[test]
fn whoever_waits_too_long_is_told_and_lives_on() {
    let proxy = Cluster::shared()
        .proxy()
        .set("pool.size", 1)
        .set("pool.wait_timeout", "300ms")
        .start();
    let mut holder = proxy.connect();
    holder.run("BEGIN");
    let mut waiter = proxy.connect();
    let refused = waiter.query("CREATE TABLE IF NOT EXISTS never_made (a int)");
    assert_eq!(refused.sqlstate(), "53300");
    assert_eq!(refused.status, 'I');
    let detail = refused.error.unwrap().field(b'D');
    assert!(
        detail.contains("pool.wait_timeout"),
        "it names the limit: {detail}"
    );
    // In the extended protocol the rest of the batch is skipped.
    waiter.send(&[unnamed("BEGIN", &[]), unnamed("SELECT 1", &[]), sync()].concat());
    let refused = waiter.answer();
    assert_eq!(
        (refused.sqlstate().as_str(), refused.rows.len(), refused.status),
        ("53300", 0, 'I')
    );
    holder.run("COMMIT");
    waiter.run("BEGIN; COMMIT");
}

#[test]
fn whoever_finds_the_queue_full_is_told_at_once() {
    let proxy = Cluster::shared()
        .proxy()
        .set("pool.size", 1)
        .set("pool.waiters_max", 2)
        .start();
    let mut holder = proxy.connect();
    holder.run("BEGIN");
    let mut waiting = [proxy.connect(), proxy.connect()];
    for client in &mut waiting {
        client.send(&query("BEGIN; COMMIT"));
    }
    until("two to wait", || proxy.clients("waiting") == 2);
    assert_eq!(proxy.connect().failure("BEGIN"), "53300");
    holder.run("COMMIT");
    for client in &mut waiting {
        assert!(client.answer().error.is_none());
    }
}

#[test]
fn a_waiting_client_that_leaves_gives_up_its_place() {
    let proxy = Cluster::shared().proxy().set("pool.size", 1).start();
    let mut holder = proxy.connect();
    holder.run("BEGIN");
    let mut leaving = proxy.connect();
    leaving.send(&query("BEGIN"));
    until("it to wait", || proxy.clients("waiting") == 1);
    leaving.vanish();
    until("it to be gone", || proxy.clients("waiting") == 0);
    holder.run("COMMIT");
    proxy.connect().run("BEGIN; COMMIT");
}

/// What `nc -N` does: everything is sent, one direction closed, and the answers are waited for. A client that is gone
/// looks the same until it is spoken to.
#[test]
fn a_client_that_closes_one_direction_gets_its_answers() {
    let proxy = narrow();
    for busy in [false, true] {
        let mut holder = proxy.connect();
        if busy {
            holder.run("BEGIN; SELECT 1 FROM pg_class");
        }
        let mut client = proxy.connect();
        client.send(
            &[
                query("/* halyard.route: primary */ SELECT 'one', pg_sleep(0.5)"),
                query("/* halyard.route: primary */ SELECT 'two'"),
                query("BEGIN"),
                query("SELECT 'three'"),
            ]
            .concat(),
        );
        client.close_one_direction();
        if busy {
            until("it to wait", || proxy.clients("waiting") > 0);
            holder.run("COMMIT");
        }
        for expected in [Some("one"), Some("two"), None, Some("three")] {
            let answer = client.answer();
            assert_eq!(answer.error, None);
            let first = answer.rows.first().and_then(|row| row[0].as_deref());
            assert_eq!(first, expected);
        }
        assert!(client.until_closed().iter().all(|message| message.kind == b'S'));
        // Its block was rolled back, and its backend is free.
        holder.run("/* halyard.route: primary */ SELECT 1");
    }
}

#[test]
fn a_vanished_clients_query_is_cancelled() {
    let sql = "/* halyard.route: primary */ SELECT pg_sleep(599)";
    let mut client = Cluster::shared_proxy().connect();
    begin_slow(&mut client, sql);
    client.vanish();
    let mut direct = Cluster::shared().superuser(Cluster::shared().primary()).connect();
    until("the query to end", || {
        direct.value(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(599)' AND state = 'active'",
        ) == "0"
    });
}

#[test]
fn a_vanished_clients_transaction_is_rolled_back() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS vanished; CREATE TABLE vanished (a int PRIMARY KEY)");
    let proxy = narrow();
    for running in [false, true] {
        let mut client = proxy.connect();
        client.run("BEGIN");
        client.run("INSERT INTO vanished VALUES (1)");
        if running {
            begin_slow(&mut client, "SELECT pg_sleep(598)");
        }
        client.vanish();
        // The same key is free again only when the other transaction is gone.
        let mut next = proxy.connect();
        next.run("SET statement_timeout = '20s'");
        next.run("BEGIN; INSERT INTO vanished VALUES (1); ROLLBACK");
    }
}

/// Such a client keeps a backend from everybody else.
#[test]
fn a_client_that_idles_in_a_block_is_ended() {
    let proxy = Cluster::shared()
        .proxy()
        .set("pool.size", 1)
        .set("limits.idle_in_transaction_timeout", "500ms")
        .start();
    let mut forgetful = proxy.connect();
    forgetful.run("BEGIN");
    let mut next = proxy.connect();
    next.run("BEGIN; COMMIT");
    let last = forgetful.until_closed();
    assert_eq!(
        last.iter().map(|message| message.field(b'C')).collect::<Vec<_>>(),
        ["25P03"]
    );
    // Idle outside of a block it may be.
    assert_eq!(next.value("SELECT 'alive'"), "alive");
}

#[test]
fn clients_beyond_the_limit_are_turned_away_by_name() {
    let proxy = Cluster::shared()
        .proxy()
        .set("limits.client_connections_max", 5)
        .start();
    until("those of the start to be gone", || proxy.clients("idle") == 0);
    let kept: Vec<Client> = (0..5).map(|_| proxy.connect()).collect();
    match proxy.address.try_connect(&[]) {
        Ok(_) => panic!("a sixth client was let in"),
        Err(refused) => assert_eq!(refused.sqlstate(), "53300", "{refused}"),
    }
    drop(kept);
    until("a place", || proxy.address.try_connect(&[]).is_ok());
}

#[test]
fn a_saturated_replica_is_waited_for_and_not_banned() {
    let cluster = Cluster::shared();
    let proxy = cluster
        .proxy()
        .set("pool.size", 1)
        .only_nodes(|name| name == "ro1" || name == cluster.primary().name)
        .start();
    let replica = cluster.node("ro1").port;
    thread::scope(|scope| {
        for _ in 0..8 {
            let mut client = proxy.connect();
            scope.spawn(move || {
                for _ in 0..5 {
                    let served = client.value("SELECT inet_server_port() FROM pg_sleep(0.02)");
                    assert_eq!(served, replica.to_string());
                }
            });
        }
    });
}
