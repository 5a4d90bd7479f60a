//! What a session may rely on under transaction pooling: what it set follows it, and nobody else meets it.

use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::message::*;
use crate::support::{
    Act, Client, Cluster, LONG_PATIENCE, Link, Proxy, Script, differential, peak_memory_kib, until,
};

/// A proxy with pools of one backend: a session that kept it would have all others wait.
fn narrow() -> Proxy {
    Cluster::shared()
        .proxy()
        .set("pool.size", 1)
        .set("pool.wait_timeout", "1s")
        .start()
}

/// One value, as a transaction on the primary sees it.
#[track_caller]
fn on_primary(client: &mut Client, sql: &str) -> String {
    client.run("BEGIN");
    let value = client.value(sql);
    client.run("COMMIT");
    value
}

/// Every way to change a setting, over one backend that serves two clients in turn.
#[test]
fn settings_follow_their_client() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let ways = [
        ("SET work_mem = '7MB'", "work_mem", "7MB"),
        (
            "SET SESSION search_path TO \"$user\", pg_catalog, \"Odd, Name\"",
            "search_path",
            "\"$user\", pg_catalog, \"Odd, Name\"",
        ),
        ("SET TIME ZONE 'Asia/Tokyo'", "TimeZone", "Asia/Tokyo"),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "transaction_isolation",
            "repeatable read",
        ),
        ("SET app.tenant = 'it''s \\ 7'", "app.tenant", "it's \\ 7"),
        ("SELECT set_config('app.other', '8', false)", "app.other", "8"),
        ("BEGIN; SET lock_timeout = 4711; COMMIT", "lock_timeout", "4711ms"),
        ("SET XML OPTION DOCUMENT", "xmloption", "document"),
        (
            "DO $$ BEGIN PERFORM set_config('statement_timeout', '98765', false); END $$",
            "statement_timeout",
            "98765ms",
        ),
    ];
    for (way, name, value) in ways {
        let show = match name {
            "app.tenant" | "app.other" => format!("SELECT coalesce(current_setting('{name}', true), '')"),
            _ => format!("SHOW {name}"),
        };
        let before = on_primary(&mut other, &show);
        one.run(way);
        for _ in 0..2 {
            assert_eq!(on_primary(&mut other, &show), before, "{way}: not the other's");
            assert_eq!(on_primary(&mut one, &show), value, "{way}: its own");
        }
    }
    one.run("RESET ALL");
    assert_eq!(on_primary(&mut one, "SHOW work_mem"), "4MB");
    one.run("SET work_mem = '8MB'");
    one.leave();
    assert_eq!(on_primary(&mut other, "SHOW work_mem"), "4MB");
}

#[test]
fn what_is_rolled_back_does_not_follow() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("SET work_mem = '5MB'");
    for block in [
        "BEGIN; SET work_mem = '6MB'; ROLLBACK",
        "BEGIN; SAVEPOINT s; SET work_mem = '6MB'; ROLLBACK TO s; COMMIT",
        "BEGIN; SAVEPOINT s; RESET work_mem; ROLLBACK TO s; COMMIT",
        "BEGIN; SET LOCAL work_mem = '6MB'; COMMIT",
    ] {
        one.run(block);
        assert_eq!(on_primary(&mut other, "SHOW work_mem"), "4MB");
        assert_eq!(on_primary(&mut one, "SHOW work_mem"), "5MB", "{block}");
    }
    one.query("SET work_mem = '6MB'; SELECT 1/0");
    assert_eq!(on_primary(&mut one, "SHOW work_mem"), "5MB");
    one.run("BEGIN; SAVEPOINT s; SET work_mem = '6MB'; RELEASE s; COMMIT");
    assert_eq!(on_primary(&mut other, "SHOW work_mem"), "4MB");
    assert_eq!(on_primary(&mut one, "SHOW work_mem"), "6MB");
}

/// Roles are left before settings are changed that they may not change, and taken again behind them.
/// A session that was refused a setting has none of its own: where that may be set by a superuser alone it could be
/// brought to no other backend, nor could the backend be brought to another session.
#[test]
fn a_setting_that_was_refused_is_nobodys() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    assert!(one.query("SET log_statement = 'all'").error.is_some());
    for _ in 0..2 {
        assert_eq!(on_primary(&mut other, "SHOW log_statement"), "none");
        assert_eq!(on_primary(&mut one, "SHOW log_statement"), "none");
    }
}

#[test]
fn a_role_follows_its_client() {
    let cluster = Cluster::shared();
    let mut superuser = cluster.superuser(cluster.primary()).connect();
    superuser.run("DROP ROLE IF EXISTS guest; CREATE ROLE guest; GRANT guest TO appuser");
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("SET ROLE guest");
    assert_eq!(on_primary(&mut other, "SELECT current_user"), "appuser");
    assert_eq!(on_primary(&mut one, "SELECT current_user"), "guest");
    one.run("SET work_mem = '9MB'");
    assert_eq!(on_primary(&mut other, "SHOW work_mem"), "4MB");
    assert_eq!(
        on_primary(&mut one, "SELECT current_user || current_setting('work_mem')"),
        "guest9MB"
    );
    one.run("RESET ROLE");
    assert_eq!(on_primary(&mut other, "SELECT current_user"), "appuser");
    assert_eq!(on_primary(&mut one, "SELECT current_user"), "appuser");
}

#[test]
fn settings_follow_to_the_replicas() {
    let proxy = Cluster::shared_proxy();
    let mut client = proxy.connect();
    client.run("SET app.tenant = 'seven'");
    client.run("SET DateStyle = 'German'");
    for _ in 0..8 {
        assert_eq!(client.value("SELECT current_setting('app.tenant')"), "seven");
        assert_eq!(client.value("SELECT '2026-01-31'::date"), "31.01.2026");
    }
}

/// A backend is kept exactly as long as something is on it that cannot follow.
#[test]
fn pins_end_with_their_reason() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let pinned = |other: &mut Client| other.query("INSERT INTO pins VALUES (1)").error.is_some();
    other.run("CREATE TABLE IF NOT EXISTS pins (a int)");
    for (takes, keeps, gives) in [
        (
            "CREATE TEMP TABLE mine (a int)",
            "INSERT INTO mine VALUES (1)",
            "DROP TABLE mine",
        ),
        ("SELECT 1 AS a INTO TEMP mine", "SELECT 1", "DISCARD TEMP"),
        (
            "SELECT pg_advisory_lock(1), pg_advisory_lock(1), pg_advisory_lock(2)",
            "SELECT pg_advisory_unlock(1)",
            "SELECT pg_advisory_unlock_all()",
        ),
        (
            "SELECT pg_advisory_lock(1), pg_advisory_lock(1)",
            "SELECT pg_advisory_unlock(1)",
            "SELECT pg_advisory_unlock(1)",
        ),
        (
            "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 3); COMMIT",
            "FETCH 1 FROM c",
            "CLOSE c",
        ),
        ("PREPARE p AS SELECT 1", "EXECUTE p", "DEALLOCATE p"),
        (
            "DO $$ BEGIN CREATE TEMP TABLE mine (a int); END $$",
            "SELECT count(*) FROM mine",
            "DROP TABLE mine",
        ),
        ("CREATE TEMP TABLE mine (a int)", "SELECT 1", "DISCARD ALL"),
    ] {
        one.run(takes);
        assert!(pinned(&mut other), "{takes} keeps the backend");
        one.run(keeps);
        assert!(pinned(&mut other), "{keeps} keeps the backend");
        one.run(gives);
        assert!(!pinned(&mut other), "{gives} gives it back");
    }
    assert_eq!(proxy.metric("halyard_pins_total{reason=\"advisory_lock\"}"), 2.0);
    assert_eq!(
        proxy.metric("halyard_pins_total{reason=\"temporary_object\"}"),
        4.0
    );
    one.run("BEGIN; CREATE TEMP TABLE mine (a int); ROLLBACK");
    assert!(!pinned(&mut other), "what was rolled back keeps nothing");
    one.run("BEGIN; CREATE TEMP TABLE mine (a int) ON COMMIT DROP; COMMIT");
    assert!(!pinned(&mut other), "what the commit drops keeps nothing");
}

/// Whoever gives one thing back keeps its backend for the others.
#[test]
fn a_session_may_hold_several_things() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let pinned = |other: &mut Client| other.query("INSERT INTO holders VALUES (1)").error.is_some();
    other.run("CREATE TABLE IF NOT EXISTS holders (a int)");
    one.run("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 3); COMMIT");
    one.run("SELECT pg_advisory_lock(4714)");
    one.run("CREATE TEMP TABLE mine (a int)");
    for gives in ["SELECT pg_advisory_unlock(4714)", "DROP TABLE mine"] {
        one.run(gives);
        assert!(pinned(&mut other), "{gives} leaves the cursor");
    }
    assert_eq!(one.value("FETCH 1 FROM c"), "1");
    one.run("CLOSE c");
    assert!(!pinned(&mut other));
}

/// A standby cannot keep anything for a session whose writes go to the primary. Where a block cannot go on there, the
/// session is told.
#[test]
fn what_a_read_only_transaction_leaves_is_kept_on_the_primary_or_told() {
    let proxy = Cluster::shared_proxy();
    let mut client = proxy.connect();
    client.run("CREATE TABLE IF NOT EXISTS kept (a int)");
    let begin = |client: &mut Client, sql: &str| {
        until("a standby to have the table", || {
            client.run(sql);
            let on_standby = client.server_port() != Cluster::shared().primary().port;
            if !on_standby {
                client.run("COMMIT");
            }
            on_standby
        });
    };
    for (leaves, uses) in [
        ("PREPARE p AS SELECT 't'::text", "EXECUTE p"),
        ("SELECT pg_advisory_lock(4715)", "SELECT pg_advisory_unlock(4715)"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 't'::text", "FETCH c"),
    ] {
        begin(&mut client, "BEGIN READ ONLY");
        client.run(leaves);
        client.run("COMMIT");
        assert_eq!(client.value(uses), "t");
        client.run("DISCARD ALL");
    }
    begin(&mut client, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    client.run("PREPARE p AS SELECT 1");
    client.run("COMMIT");
    assert_eq!(client.failure("SELECT 1"), "0A000");
    client.run("INSERT INTO kept VALUES (1)");
    // What follows a session follows it from a standby as well.
    client.run("BEGIN READ ONLY; SET app.tenant = 'set on a standby'; COMMIT");
    assert_eq!(
        on_primary(&mut client, "SELECT current_setting('app.tenant')"),
        "set on a standby"
    );
}

/// Such a value kept its session's backend until DISCARD ALL.
#[test]
fn a_value_beyond_ascii_follows_its_session() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let person = "José €\\'\u{1d11e}";
    one.run(&format!("SET app.person = '{}'", person.replace('\'', "''")));
    other.run("SET app.person = 'another'");
    assert_eq!(one.value("SELECT current_setting('app.person')"), person);
    assert_eq!(other.value("SELECT current_setting('app.person')"), "another");
    assert_eq!(proxy.metric("halyard_pins_total{reason=\"setting\"}"), 0.0);
}

/// RESET goes back to what the client connected with, as it does where the client has a server of its own.
#[test]
fn reset_goes_back_to_the_startup_value() {
    let proxy = narrow();
    let parameters = [
        ("DateStyle", "German"),
        ("options", "-c work_mem=3MB -c app.tenant=seven"),
    ];
    let mut one = proxy.address.connect_with(&parameters);
    let mut other = proxy.connect();
    for (reset, in_block) in [
        ("RESET ALL", false),
        ("DISCARD ALL", false),
        ("RESET ALL", true),
        ("SET work_mem TO DEFAULT; RESET DateStyle; RESET app.tenant", true),
    ] {
        one.run("SET work_mem = '2MB'");
        one.run("SET DateStyle = 'ISO'");
        one.run("SET app.tenant = 'eight'");
        if in_block {
            one.run("BEGIN");
        }
        one.run(reset);
        let shown = "SELECT concat_ws(' ', current_setting('work_mem'), '2026-01-31'::date, current_setting('app.tenant'))";
        assert_eq!(
            one.value(shown),
            "3MB 31.01.2026 seven",
            "{reset}, in a block: {in_block}"
        );
        if in_block {
            one.run("COMMIT");
        }
        assert_eq!(on_primary(&mut other, "SHOW work_mem"), "4MB");
        assert_eq!(on_primary(&mut one, shown), "3MB 31.01.2026 seven");
    }
    one.query("SET work_mem = '2MB'");
    one.query("RESET work_mem; SELECT 1/0");
    assert_eq!(
        on_primary(&mut one, "SHOW work_mem"),
        "2MB",
        "a failed RESET resets nothing"
    );
}

/// ParameterStatus and everything else comes as from a server.
#[test]
fn settings_are_told_as_a_server_tells_them() {
    differential(
        &Script::new()
            .query("SET application_name = 'a'")
            .query("SET application_name = 'a'")
            .query("RESET application_name")
            .query("SET DateStyle = 'German, DMY'")
            .query("BEGIN")
            .query("SET TimeZone = 'Asia/Tokyo'")
            .query("SAVEPOINT s")
            .query("SET TimeZone = 'UTC'")
            .query("ROLLBACK TO s")
            .query("SHOW TimeZone")
            .query("ROLLBACK")
            .query("SHOW TimeZone")
            .query("SET nonsense = 1")
            .query("SET work_mem = 'x'")
            .batch(&[
                parse("", "SET DateStyle = ISO"),
                bind("", "", &[]),
                execute("", 0),
            ])
            .batch(&[
                parse("", "SELECT set_config('DateStyle', $1, false)"),
                bind("", "", &[Some("SQL")]),
                execute("", 0),
            ])
            .batch(&[parse("r", "RESET ALL")])
            .batch(&[bind("", "r", &[]), describe_portal(""), execute("", 0)])
            .query("SET standard_conforming_strings = off")
            .query("SELECT 'a\\'b'")
            .query("DISCARD ALL")
            .query("SHOW DateStyle"),
    );
}

/// A batch that was cut by Flush, or is longer than what is waited for, may go on with a write: it was sent to a
/// standby by what came first.
#[test]
fn a_batch_that_begins_with_a_read_may_go_on_with_a_write() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS cut; CREATE TABLE cut (a int)");
    let mut client = Cluster::shared_proxy().connect();
    let read = [parse("", "SELECT 1"), bind("", "", &[]), execute("", 0)].concat();
    let write = [
        parse("", "INSERT INTO cut VALUES (1)"),
        bind("", "", &[]),
        execute("", 0),
    ]
    .concat();
    for _ in 0..6 {
        client.send(&[read.clone(), flush()].concat());
        client.until_kind(b'C');
        client.send(&[write.clone(), sync()].concat());
        let answer = client.answer();
        assert!(answer.error.is_none(), "{answer:?}");
    }
    let long = [read.repeat(2500), write, sync()].concat();
    assert!(long.len() > 64 * 1024);
    for _ in 0..4 {
        client.send(&long);
        let answer = client.answer();
        assert!(answer.error.is_none(), "{answer:?}");
    }
    assert_eq!(on_primary(&mut client, "SELECT count(*) FROM cut"), "10");
}

/// The server forgets the unnamed statement at each Query, and Halyard's own questions are none of the client's.
#[test]
fn the_unnamed_statement_lives_until_the_next_query() {
    let unnamed = [bind("", "", &[]), execute("", 0)];
    differential(
        &Script::new()
            .batch(&[parse("", "SELECT 'unnamed'")])
            .batch(&unnamed)
            .query("SELECT 1")
            .batch(&unnamed)
            .batch(&[parse("", "SELECT 'another'")])
            .query("")
            .batch(&[describe_statement("")]),
    );
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("SET app.tenant = 'one'");
    one.send(&[parse("", "SELECT current_setting('app.tenant')"), sync()].concat());
    one.answer();
    for _ in 0..2 {
        assert_eq!(
            on_primary(
                &mut other,
                "SELECT coalesce(current_setting('app.tenant', true), '')"
            ),
            ""
        );
        one.send(&[unnamed.concat(), sync()].concat());
        let answer = one.answer();
        assert_eq!(answer.rows, [[Some("one".to_owned())]], "{answer:?}");
    }
}

/// A Parse of Halyard's own, refused in a failed block, had the server wait for a Sync that never came.
#[test]
fn deallocate_in_a_failed_block_is_answered() {
    for sql in ["DEALLOCATE s", "DEALLOCATE PREPARE s"] {
        differential(
            &Script::new()
                .batch(&[parse("s", "SELECT 1")])
                .query("BEGIN")
                .query("SELECT 1/0")
                .query(sql)
                .query("ROLLBACK")
                .query("BEGIN")
                .query(sql)
                .query("COMMIT")
                .query(sql),
        );
        let extended = [
            parse("", sql),
            bind("", "", &[]),
            describe_portal(""),
            execute("", 0),
        ];
        differential(
            &Script::new()
                .batch(&[parse("s", "SELECT 1")])
                .batch(&extended)
                .batch(&extended)
                .batch(&[parse("s", "SELECT 2"), bind("", "s", &[]), execute("", 0)])
                .query("BEGIN")
                .query("DISCARD ALL")
                .query("ROLLBACK")
                .batch(&[bind("", "s", &[]), execute("", 0)])
                .batch(&[parse("", "DEALLOCATE ALL"), bind("", "", &[]), execute("", 0)])
                .batch(&[bind("", "s", &[]), execute("", 0)]),
        );
    }
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.send(&[parse("s", "SELECT 'never bound here'"), sync()].concat());
    one.answer();
    other.run("DISCARD ALL");
    one.query("BEGIN; SELECT 1/0");
    assert_eq!(one.failure("DEALLOCATE s"), "25P02");
    one.run("ROLLBACK");
}

/// An error that names no statement of Halyard's own had it prepare afresh whatever the backend had, for all its clients.
#[test]
fn a_bind_of_what_is_not_there_has_nothing_prepared_again() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let uses = [bind("", "s", &[]), execute("", 0), sync()].concat();
    one.send(&[parse("s", "/* halyard.route: primary */ SELECT 1"), sync()].concat());
    one.answer();
    let injected = || proxy.metric("halyard_parse_injected_total");
    let before = injected();
    for unknown in ["", "nothing"] {
        for in_block in [false, true] {
            if in_block {
                other.run("BEGIN");
            }
            other.send(&[bind("", unknown, &[]), sync()].concat());
            assert_eq!(other.answer().sqlstate(), "26000");
            if in_block {
                other.run("ROLLBACK");
            }
            one.send(&uses);
            assert_eq!(one.answer().sqlstate(), "");
        }
    }
    assert!((injected() - before).abs() < 0.5, "nothing is sent that is there");
}

/// What was left of a row whose client had said goodbye was read as messages: the next client got what the row said.
#[test]
fn a_goodbye_in_the_middle_of_a_row_shows_nothing_to_the_next() {
    let proxy = narrow();
    let frames = "repeat(repeat('4400000004', 400) || '4300000005005a00000005494e00100000', 15000)";
    for shift in 0..5 {
        let (mut leaving, mut next) = (proxy.connect(), proxy.connect());
        let row = format!(
            "/* halyard.route: primary */ SELECT decode(repeat('00', {shift}), 'hex') || decode({frames}, 'hex')"
        );
        let binary = tagged(b'B', b"\0\0\0\0\0\0\0\x01\0\x01");
        leaving.send(&[parse("", &row), binary, execute("", 0), sync()].concat());
        leaving.until_kind(b'2');
        next.send(&query("/* halyard.route: primary */ SELECT 'mine'"));
        until("the next to wait", || proxy.clients("waiting") == 1);
        leaving.leave();
        let answer = next.answer();
        assert_eq!(answer.rows, [[Some("mine".to_owned())]], "{answer:?}");
        assert_eq!(next.value("SELECT 'still mine'"), "still mine");
    }
}

/// A declared length is not memory: five bytes had a gigabyte made ready.
#[test]
fn a_message_that_only_declares_its_length_costs_nothing() {
    let proxy = Cluster::shared().proxy().start();
    let huge = 0x3fff_fff0_u32.to_be_bytes();
    let begun = |kind: u8| [&[kind][..], &huge].concat();
    let mut clients: Vec<Client> = Vec::new();
    for (before, kind) in [
        ("SELECT 1", b'B'),
        ("SELECT 1", b'P'),
        ("SELECT 1", b'Q'),
        ("SELECT 1", b'F'),
    ] {
        let mut client = proxy.connect();
        client.run(before);
        client.send(&begun(kind));
        clients.push(client);
    }
    Cluster::shared().prepare("CREATE TABLE IF NOT EXISTS copied_nothing (a int)");
    for kind in [b'Q', b'B', b'f', b'd'] {
        let mut client = proxy.connect();
        client.send(&query("COPY copied_nothing FROM STDIN"));
        client.until_kind(b'G');
        client.send(&begun(kind));
        clients.push(client);
    }
    // Every one of them was looked at when the next client is served behind it.
    for _ in 0..20 {
        proxy.connect().run("SELECT 1");
    }
    let peak = peak_memory_kib(proxy.pid());
    assert!(peak < 64 * 1024, "{peak} KiB");
}

/// The server reads nothing up to a Sync that never came: the backend was lent on, and whoever got it waited for ever.
#[test]
fn a_backend_that_waits_for_a_sync_is_lent_to_nobody() {
    let proxy = narrow();
    let failing = [parse("", "SELECT 1/0"), bind("", "", &[]), execute("", 0)].concat();
    let goodbye = tagged(b'X', b"");
    for behind in [
        query("SELECT 3"),
        [query("SELECT 3"), goodbye.clone()].concat(),
        [query("SELECT 3"), sync(), goodbye.clone()].concat(),
        [flush(), query("SELECT 3"), query("SELECT 4"), goodbye].concat(),
    ] {
        for _ in 0..4 {
            let mut leaving = proxy.connect();
            leaving.send(&[failing.clone(), behind.clone()].concat());
            leaving.vanish();
            let mut next = proxy.connect();
            assert_eq!(
                next.value("/* halyard.route: primary */ SELECT 'served'"),
                "served"
            );
        }
    }
}

/// What was asked before the goodbye is answered before the connection closes.
#[test]
fn answers_come_before_the_goodbye() {
    let goodbye = tagged(b'X', b"");
    let batch = [parse("", "SELECT 2"), bind("", "", &[]), execute("", 0), sync()].concat();
    for asked in [query("SELECT 1"), [query("SELECT pg_sleep(0.2)"), batch].concat()] {
        let answers: Vec<Vec<String>> = [
            Cluster::shared().app(Cluster::shared().primary().port),
            Cluster::shared_proxy().address.clone(),
        ]
        .iter()
        .map(|address| {
            let mut client = address.connect();
            client.send(&[asked.clone(), goodbye.clone()].concat());
            client.until_closed().iter().map(ToString::to_string).collect()
        })
        .collect();
        assert_eq!(answers[0], answers[1]);
    }
}

/// Another session's last values were told as the client's own.
#[test]
fn sequence_values_are_their_clients_alone() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP SEQUENCE IF EXISTS drawn; CREATE SEQUENCE drawn");
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    for ask in ["SELECT currval('drawn')", "SELECT lastval()"] {
        let drawn = one.value("SELECT nextval('drawn')");
        assert_eq!(one.value(ask), drawn, "nobody had the backend in between");
        one.run("DISCARD SEQUENCES");
        one.run("SELECT nextval('drawn')");
        assert_eq!(other.failure(ask), "55000");
        other.run("DISCARD SEQUENCES");
        assert_eq!(one.failure(ask), "55000", "better none than another's");
        one.run("DISCARD SEQUENCES");
    }
}

/// Behind an unrelated write a stranger's value was told as the client's own, and behind any statement at all on the same
/// backend.
#[test]
fn an_unrelated_statement_makes_no_stranger_s_value_ones_own() {
    let cluster = Cluster::shared();
    cluster.prepare(
        "DROP TABLE IF EXISTS unrelated, related; DROP SEQUENCE IF EXISTS drawn_before; CREATE SEQUENCE drawn_before;
         CREATE TABLE unrelated (n int); CREATE TABLE related (id serial, n int)",
    );
    let proxy = narrow();
    let asks = ["SELECT currval('drawn_before')", "SELECT lastval()"];
    let befores: [&[&str]; 5] = [
        &["INSERT INTO unrelated VALUES (1)"],
        &["/* halyard.route: primary */ SELECT 1"],
        &["BEGIN", "INSERT INTO unrelated VALUES (1)"],
        &["BEGIN", "SELECT 1"],
        &["BEGIN", "INSERT INTO unrelated VALUES (1)", "COMMIT"],
    ];
    for before in befores {
        for ask in asks {
            let (mut one, mut other) = (proxy.connect(), proxy.connect());
            one.run("SELECT nextval('drawn_before')");
            for sql in before {
                other.run(sql);
            }
            assert_eq!(other.failure(ask), "55000", "{before:?}, {ask}");
        }
    }
    // In one batch that is cut by Flush nothing can be asked in between.
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("SELECT nextval('drawn_before')");
    other.send(&[parse("", "SELECT lastval()"), flush()].concat());
    other.send(&[bind("", "", &[]), execute("", 0), sync()].concat());
    assert_eq!(other.answer().sqlstate(), "55000");
    other.run("DISCARD SEQUENCES");

    // What a client draws itself it is told, whoever had the backend before.
    one.run("SELECT nextval('drawn_before')");
    other.run("BEGIN");
    let id = other.value("INSERT INTO related (n) VALUES (1) RETURNING id");
    assert_eq!(other.value("SELECT lastval()"), id);
    assert_eq!(other.value("SELECT currval('related_id_seq')"), id);
    other.run("COMMIT");
    other.run("DISCARD SEQUENCES");
    one.run("SELECT nextval('drawn_before')");
    let id = other.value("INSERT INTO related (n) VALUES (1) RETURNING id");
    assert_eq!(
        other.value("SELECT lastval()"),
        id,
        "nobody had the backend in between"
    );
}

#[test]
fn an_update_of_pg_settings_is_a_set() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("UPDATE pg_settings SET setting = '7777' WHERE name = 'lock_timeout'");
    assert_eq!(one.value("SHOW lock_timeout"), "7777ms");
    one.leave();
    assert_eq!(on_primary(&mut other, "SHOW lock_timeout"), "0");
}

/// The settings went in front of a statement in one flight, were refused, and the statement ran without them: as the
/// pool's own user, whose rights were not the client's.
#[test]
fn a_statement_never_runs_without_its_sessions_role() {
    let cluster = Cluster::shared();
    let mut superuser = cluster.superuser(cluster.primary()).connect();
    superuser.run("DROP TABLE IF EXISTS secret; DROP ROLE IF EXISTS visitor; CREATE ROLE visitor; GRANT visitor TO appuser");
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("CREATE TABLE secret (a int)");
    one.run("SET ROLE visitor");
    assert_eq!(one.failure("INSERT INTO secret VALUES (1)"), "42501");
    other.run("SET application_name = 'between'");
    superuser.run("REVOKE visitor FROM appuser");
    one.send(&query("INSERT INTO secret VALUES (2)"));
    let last = one.until_closed();
    assert_eq!(last.last().unwrap().field(b'C'), "42501", "{last:?}");
    assert_eq!(on_primary(&mut other, "SELECT count(*) FROM secret"), "0");
    assert_eq!(on_primary(&mut other, "SELECT current_user"), "appuser");
}

/// What cannot follow keeps its backend until it is gone, whatever is set besides.
#[test]
fn a_setting_that_cannot_follow_is_left_to_nobody() {
    let proxy = narrow();
    let mut other = proxy.connect();
    let seen = |other: &mut Client, name: &str| {
        on_primary(
            other,
            &format!("SELECT coalesce(current_setting('{name}', true), '')"),
        )
    };
    for leave in [true, false] {
        // In an encoding that the server does not have: only UTF-8 is written so that any backend reads it alike.
        let mut one = proxy.address.connect_with(&[("client_encoding", "LATIN1")]);
        one.run("SET app.odd = 'ü'");
        one.run("SET app.plain = 'y'");
        let blocked = other.query("INSERT INTO nowhere VALUES (1)").sqlstate();
        assert_eq!(blocked, "53300", "the backend is kept");
        assert_eq!(one.value("SHOW app.odd"), "ü");
        if leave {
            one.leave();
        } else {
            // Refused inside a block: it takes nothing away.
            one.query("BEGIN; DISCARD ALL");
            one.run("ROLLBACK");
            assert_eq!(other.query("INSERT INTO nowhere VALUES (1)").sqlstate(), "53300");
            one.run("DISCARD ALL");
        }
        assert_eq!(seen(&mut other, "app.odd"), "");
        assert_eq!(seen(&mut other, "app.plain"), "");
    }
}

/// Temporary objects of every kind, made in every way.
#[test]
fn no_temporary_object_is_left_to_anybody() {
    let proxy = narrow();
    let mut other = proxy.connect();
    other.run("CREATE TABLE IF NOT EXISTS base_table (a int, b int)");
    for made in [
        "CREATE STATISTICS pg_temp.mine ON a, b FROM base_table",
        "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE pg_temp.mine AS ENUM ('a')",
        "CREATE TEMP SEQUENCE mine",
        "CREATE TEMP VIEW mine AS SELECT 1",
        "CREATE OPERATOR pg_temp.@@@ (leftarg = int, rightarg = int, function = int4pl)",
    ] {
        let mut one = proxy.connect();
        one.run(made);
        assert_eq!(
            other.query("INSERT INTO base_table VALUES (1)").sqlstate(),
            "53300",
            "{made}"
        );
        one.leave();
        other.run("INSERT INTO base_table VALUES (1)");
    }
    let mut one = proxy.connect();
    one.run("SET search_path = pg_temp, public");
    one.run("CREATE TABLE mine_by_path (a int)");
    one.leave();
    assert_eq!(other.failure("INSERT INTO mine_by_path VALUES (1)"), "42P01");
}

/// Preparing a DISCARD ALL forgot the client's statements, the new one among them, as if it had run. psycopg prepares
/// what it has seen five times, also what a pool of connections runs between two users.
#[test]
fn a_discard_all_that_is_only_prepared_forgets_nothing() {
    differential(
        &Script::new()
            .batch(&[parse("one", "SELECT 1")])
            .batch(&[parse("all", "DISCARD ALL")])
            .batch(&[describe_statement("all")])
            .batch(&[bind("", "one", &[]), execute("", 0)])
            .batch(&[bind("", "all", &[]), execute("", 0)])
            .batch(&[bind("", "one", &[]), execute("", 0)])
            .batch(&[parse("one", "SELECT 2"), bind("", "one", &[]), execute("", 0)]),
    );
}

/// A text was one statement for all sessions, also where their `search_path` led it to other tables: the second client
/// was told that its "cached plan must not change result type".
#[test]
fn a_prepared_text_means_what_its_own_search_path_says() {
    let cluster = Cluster::shared();
    cluster.prepare(
        "DROP SCHEMA IF EXISTS scope_a, scope_b CASCADE; CREATE SCHEMA scope_a; CREATE SCHEMA scope_b;
         CREATE TABLE scope_a.scoped AS SELECT 1 AS a; CREATE TABLE scope_b.scoped AS SELECT 'text' AS a, 2 AS b",
    );
    let proxy = narrow();
    let paths = ["scope_a", "scope_b"];
    let mut clients = paths.map(|path| proxy.address.connect_with(&[("search_path", path)]));
    let mut late = proxy.connect();
    for turn in 0..3 {
        let text = "/* halyard.route: primary */ SELECT * FROM scoped";
        for (client, row) in clients.iter_mut().zip([&["1"][..], &["text", "2"]]) {
            let name = format!("s{turn}");
            client.send(&[parse(&name, text), bind("", &name, &[]), execute("", 0), sync()].concat());
            let row: Vec<_> = row.iter().map(|value| Some((*value).to_owned())).collect();
            assert_eq!(client.answer().rows, [row]);
        }
        // A path set later counts as well.
        late.run(&format!("SET search_path TO {}", paths[turn % 2]));
        let name = format!("late{turn}");
        late.send(&[parse(&name, text), bind("", &name, &[]), execute("", 0), sync()].concat());
        assert_eq!(late.answer().rows[0].len(), 1 + turn % 2);
    }
}

/// No round trip more: the server runs the statement while the answer about the settings has not come back yet.
#[test]
fn settings_go_in_the_same_flight_as_the_statement() {
    let cluster = Cluster::shared();
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster
        .proxy()
        .through(&primary.name, &link)
        .set("pool.size", 1)
        .start();
    let (mut one, mut client) = (proxy.connect(), proxy.connect());
    for sleeps in [
        "DO 'BEGIN PERFORM pg_sleep(600); END'",
        "DO 'BEGIN PERFORM pg_sleep(601); END -- extended'",
    ] {
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
        client.send(&match sleeps.ends_with("extended'") {
            true => [unnamed(sleeps, &[]), sync()].concat(),
            false => query(sleeps),
        });
        cluster.until_runs(primary, sleeps);
        drop(release);
        assert_eq!(client.cancelled().sqlstate(), "57014");
        link.on_message(|_| Act::Pass);
        client.run("RESET search_path");
    }
}

#[test]
fn a_cursor_that_is_closed_by_the_protocol_gives_its_backend_back() {
    let proxy = narrow();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    one.run("BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT generate_series(1, 3); COMMIT");
    assert_eq!(one.value("FETCH held"), "1");
    one.send(&[close_portal("another"), sync()].concat());
    one.until_ready();
    assert_eq!(one.value("FETCH held"), "2");
    one.send(&[close_portal("held"), sync()].concat());
    one.until_ready();
    assert_eq!(other.value("SELECT 1"), "1");
    assert_eq!(one.failure("FETCH held"), "34000");
}

/// It is the client that may not idle for longer, not the connection that idles in the pool: the next client's statement was
/// lost with it, and the one after.
#[test]
fn a_client_that_limits_its_idling_limits_nobody_elses() {
    let cluster = Cluster::shared();
    let proxy = cluster
        .proxy()
        .set("pool.size", 1)
        .only_nodes(|name| name == cluster.primary().name)
        .start();
    let backend = "SELECT pg_backend_pid()";
    let mut others = proxy.connect();
    let pid = others.value(backend);
    let limits: [fn(&Proxy) -> Client; 3] = [
        |proxy| {
            let mut client = proxy.connect();
            client.run("SET idle_session_timeout = '3s'");
            client
        },
        |proxy| {
            let mut client = proxy.connect();
            client.run("LISTEN idle_times; SET idle_session_timeout = '3s'");
            client
        },
        |proxy| {
            proxy
                .address
                .connect_with(&[("options", "-c idle_session_timeout=3000")])
        },
    ];
    for limit in limits {
        let mut limited = limit(&proxy);
        for _ in 0..3 {
            assert_eq!(limited.value("SHOW idle_session_timeout"), "3s");
            assert_eq!(others.value("SHOW idle_session_timeout"), "0");
        }
        // As a server says it.
        let farewell = limited.until_closed().pop().unwrap();
        assert_eq!(farewell.field(b'C'), "57P05");
        assert_eq!(
            farewell.field(b'M'),
            "terminating connection due to idle-session timeout"
        );
        assert_eq!(others.value(backend), pid, "the connection lives on");
    }
    // As only a server reads it.
    let mut limited = proxy
        .address
        .connect_with(&[("options", "-c idle_session_timeout=0x7D0")]);
    assert_eq!(limited.value("SHOW idle_session_timeout"), "2s");
    thread::sleep(Duration::from_secs(3));
    assert_eq!(others.value(backend), pid, "the connection lives on");
    // Who keeps its connection has the server count.
    let mut keeps = proxy.connect();
    keeps.run("SELECT pg_advisory_lock(7701)");
    keeps.run("SET idle_session_timeout = '3s'");
    let farewell = keeps.until_closed().pop().unwrap();
    assert_eq!(farewell.field(b'C'), "57P05");
}
