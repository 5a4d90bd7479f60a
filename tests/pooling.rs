//! Many clients over few backends, and nothing of one client is ever seen by another.

use std::thread;

use crate::support::message::*;
use crate::support::{Client, Cluster, LONG_PATIENCE, Proxy, peak_memory_kib, until};

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

/// A server calls the settings of a transaction the session's from then on where one that was begun READ ONLY has said SET
/// TRANSACTION: they followed clients, and whoever came next was warned that RESET TRANSACTION needs a block.
#[test]
fn what_a_transaction_has_set_is_over_with_it() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    for client in [&mut one, &mut other] {
        client.run("BEGIN READ WRITE");
        client.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
        client.run("COMMIT");
    }
    let source = "SELECT source FROM pg_settings WHERE name = 'transaction_isolation'";
    for _ in 0..2 {
        one.run("DO $$BEGIN PERFORM 1; END$$");
        one.run("BEGIN");
        assert_eq!(one.value(source), "session", "the server is as it was");
        one.run("COMMIT");
        let told = other.query("BEGIN");
        assert!(told.notices.is_empty(), "{:?}", told.notices);
        other.run("COMMIT");
    }
}

/// What Halyard asks on its own account is none of the client's, whatever the server has to say of it.
#[test]
fn a_client_hears_no_notice_of_what_it_has_not_asked() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    for (client, value) in [(&mut one, "4MB"), (&mut other, "5MB")] {
        client.run("SET client_min_messages = 'debug5'");
        client.run(&format!("SET work_mem = '{value}'"));
    }
    let mut direct = Cluster::shared().superuser(Cluster::shared().primary()).connect();
    direct.run("SET client_min_messages = 'debug5'");
    let told = |client: &mut Client| -> Vec<String> {
        let told = client.query("SHOW work_mem").notices;
        told.iter().map(|notice| notice.field(b'M')).collect()
    };
    let expected = told(&mut direct);
    for _ in 0..2 {
        assert_eq!(told(&mut one), expected);
        assert_eq!(told(&mut other), expected);
    }
}

fn errors_until_closed(client: &mut Client) -> Vec<String> {
    let told = client.until_closed();
    let errors = told.iter().filter(|message| message.kind == b'E');
    errors
        .map(|message| format!("{} {}", message.field(b'S'), message.field(b'C')))
        .collect()
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
    assert_eq!(errors_until_closed(&mut greedy), ["FATAL 53400"]);
    // Nobody else notices.
    assert_eq!(prepare(&mut other, "four").error, None);
    // Those of PREPARE are counted with them, when the transaction is over.
    other.run("BEGIN; PREPARE sql_1 AS SELECT 1; PREPARE sql_2 AS SELECT 2; COMMIT");
    assert_eq!(other.value("EXECUTE sql_2"), "2");
    other.run("DEALLOCATE sql_1; PREPARE sql_3 AS SELECT 3");
    other.send(&query("PREPARE sql_4 AS SELECT 4"));
    assert_eq!(errors_until_closed(&mut other), ["FATAL 53400"]);
    assert_eq!(
        proxy
            .connect()
            .value("SELECT count(*) FROM pg_prepared_statements WHERE from_sql"),
        "0"
    );
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

/// What was answered lay there until the wait was over, and a client that ends its other transaction only then waited for
/// itself.
#[test]
fn what_is_answered_is_told_while_the_next_waits() {
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().set("pool.size", 1).start();
    let known = parse("known", "SELECT 'known'");
    let (mut holder, mut client) = (proxy.connect(), proxy.connect());
    holder.send(&[known.clone(), sync()].concat());
    assert!(holder.answer().error.is_none());
    holder.run("BEGIN");
    client.send(&[known, sync(), query("BEGIN; COMMIT")].concat());
    assert!(
        client.answer().error.is_none(),
        "the Parse is answered without a node"
    );
    until("the other to wait", || proxy.clients("waiting") == 1);
    holder.run("COMMIT");
    assert!(client.answer().error.is_none());
}

/// Outside of COPY a server drops CopyData, however much, and goes on behind it.
#[test]
fn what_answers_nothing_is_let_go_of_in_session_pooling() {
    for mode in ["session", "transaction"] {
        let proxy = Cluster::shared().proxy().set("pool.mode", mode).cold().start();
        let mut client = proxy.connect();
        client.run("SELECT 1");
        let stray = copy_data(&[b'x'; 20_000]);
        client.send(&[flush(), stray.clone(), stray, query("SELECT 'behind'")].concat());
        assert_eq!(client.answer().rows, [[Some("behind".to_owned())]], "{mode}");
        client.send(&[query("SELECT 1"), copy_data(&[b'x'; 20_000]), query("SELECT 2")].concat());
        client.answer();
        assert_eq!(client.answer().rows, [[Some("2".to_owned())]], "{mode}");
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

/// Two statements in turn, of which the backend may hold one: each Bind has the whole text in front of it on the way there.
#[test]
fn what_a_batch_needs_on_its_way_is_sent_in_portions() {
    let cluster = Cluster::shared();
    let proxy = cluster
        .proxy()
        .set("pool.prepared_statements_max", 1)
        .only_nodes(|name| name == cluster.primary().name)
        .start();
    let mut client = proxy.connect();
    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    let text = |number: usize| format!("SELECT {number} /* {} */", "x".repeat(60_000));
    client.send(&[parse("a", &text(0)), parse("b", &text(1)), sync()].concat());
    client.until_ready();
    // Once before it counts.
    let turns = |count: usize| -> Vec<u8> {
        // Described, each is no other than it was told to be.
        let turn = |at: usize| {
            let bound = bind("", ["a", "b"][at % 2], &[]);
            [bound, describe_portal(""), execute("", 0)].concat()
        };
        (0..count).flat_map(turn).chain(sync()).collect()
    };
    client.send(&turns(10));
    client.until_ready();
    let before = peak_memory_kib(proxy.pid());
    let count = 1_500;
    client.send(&turns(count));
    let rows: Vec<String> = client
        .until_ready()
        .iter()
        .filter(|message| message.kind == b'D')
        .map(|message| message.columns()[0].clone().unwrap())
        .collect();
    assert_eq!(rows.len(), count);
    assert!(
        rows.iter()
            .enumerate()
            .all(|(at, row)| *row == (at % 2).to_string())
    );
    let grown = peak_memory_kib(proxy.pid()).saturating_sub(before);
    assert!(grown < 20 * 1024, "{grown} KiB for 90 MB of texts");
}
