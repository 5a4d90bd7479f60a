//! The end of a transaction block whose node is lost under it: what is not in doubt is told as it is.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::message::*;
use crate::support::{Act, Client, Cluster, Link, Proxy, Silent, until};

/// A proxy that reaches the primary by a link alone.
fn linked(cluster: &'static Cluster) -> (Link, Proxy) {
    cluster.linked()
}

fn unnamed_bound(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", "", &[])].concat()
}

fn ends(sql: &str) -> Vec<u8> {
    let portal = [bind("", "", &[]), describe_portal(""), execute("", 0)].concat();
    [parse("", sql), portal, sync()].concat()
}

/// Ends the connection on which a tag or an error with this text has come, before its next ReadyForQuery, once.
fn lose_ready_behind(link: &Link, text: &'static str) {
    let seen = Mutex::new(None);
    link.on_message(move |frame| {
        let mut seen = seen.lock().unwrap();
        if matches!(frame.kind, b'C' | b'E') && frame.has(text) {
            *seen = Some(frame.connection);
        } else if frame.kind == b'Z' && *seen == Some(frame.connection) {
            *seen = None;
            return Act::LastWords(Vec::new());
        }
        Act::Pass
    });
}

/// Sends it, and has no answer come through before the node has taken up the last of it, which no other client runs.
fn send_unanswered(link: &Link, client: &mut Client, requests: &[u8], last: &str) {
    let cluster = Cluster::shared();
    let mut direct = cluster.superuser(cluster.primary()).connect();
    // A backend is there then, and nobody waits for a login.
    client.run("SELECT txid_current()");
    link.fall_silent_for(Silent::Answers);
    client.send(requests);
    let last = last.replace('\'', "''");
    let taken_up = format!("SELECT count(*) FROM pg_stat_activity WHERE query = '{last}'");
    until("all of it to be taken up", || direct.value(&taken_up) == "1");
    link.mend();
}

fn until_message(client: &mut Client, kind: u8) {
    while client.receive().kind != kind {}
}

fn kinds(client: &mut Client) -> String {
    let told = client.until_ready();
    told.iter().map(|message| char::from(message.kind)).collect()
}

/// It was told 40001, and had to be sent once more: the transaction is certainly rolled back.
#[test]
fn a_rollback_that_is_lost_has_what_it_wanted() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS rolled_back; CREATE TABLE rolled_back (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    let begin = |client: &mut Client| {
        client.run("BEGIN");
        client.run("INSERT INTO rolled_back VALUES (1)");
    };
    for sql in ["ROLLBACK", "/* by hand */ abort work;"] {
        begin(&mut client);
        link.lose_before(b'C', "ROLLBACK\0");
        let told = client.run(sql);
        assert_eq!(
            (told.tags, told.status),
            (vec!["ROLLBACK".to_owned()], 'I'),
            "{sql}"
        );

        begin(&mut client);
        link.lose_before(b'1', "");
        client.send(&ends(sql));
        assert_eq!(kinds(&mut client), "12nCZ", "{sql}");
    }

    // A name that was given with it is there, and ends the next block.
    begin(&mut client);
    link.lose_before(b'1', "");
    let bound = [bind("", "back", &[]), execute("", 0), sync()].concat();
    client.send(&[parse("back", "ROLLBACK"), bound.clone()].concat());
    assert_eq!(kinds(&mut client), "12CZ");
    begin(&mut client);
    client.send(&bound);
    assert_eq!(kinds(&mut client), "2CZ");

    // What was asked in front of it is told as lost.
    begin(&mut client);
    link.lose_before(b'T', "");
    client.send(&[query("SELECT 'lost'"), query("ROLLBACK")].concat());
    let (lost, back) = (client.answer(), client.answer());
    assert_eq!((lost.sqlstate().as_str(), lost.status), ("40001", 'E'));
    assert_eq!((back.tags, back.status), (vec!["ROLLBACK".to_owned()], 'I'));

    // In one batch with something else it was skipped with it.
    begin(&mut client);
    link.lose_before(b'1', "");
    let asked = [parse("", "SELECT 1"), bind("", "", &[]), execute("", 0)].concat();
    client.send(&[asked, ends("ROLLBACK")].concat());
    let lost = client.answer();
    assert_eq!((lost.sqlstate().as_str(), lost.status), ("40001", 'E'));
    client.run("ROLLBACK");

    // The COMMIT of a block that has failed is a ROLLBACK.
    begin(&mut client);
    assert_eq!(client.failure("SELECT 1 / 0"), "22012");
    link.lose_before(b'C', "ROLLBACK\0");
    let told = client.run("COMMIT");
    assert_eq!((told.tags, told.status), (vec!["ROLLBACK".to_owned()], 'I'));

    assert_eq!(
        client.value("BEGIN; SELECT count(*) FROM rolled_back; COMMIT"),
        "0"
    );
    assert_eq!(
        proxy.metric("halyard_backend_losses_total{outcome=\"unknown\"}"),
        0.0
    );
}

fn rolled_back(proxy: &Proxy) -> f64 {
    proxy.metric("halyard_backend_losses_total{outcome=\"rolled_back\"}")
}

/// Nothing but COMMIT or ROLLBACK alone ended it: what a pool sends to reset its connection got 25P02 for ever.
#[test]
fn a_lost_block_ends_with_whatever_ends_one_that_has_failed() {
    let cluster = Cluster::shared();
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    let mut direct = cluster.superuser(cluster.primary()).connect();
    for client in [&mut client, &mut direct] {
        client.send(&[parse("of_both", "SELECT 'of both'"), sync()].concat());
        assert!(client.answer().error.is_none());
    }
    let mut play = |messages: &[u8], told_before: bool| {
        client.run("BEGIN");
        client.run("SELECT 1");
        let lost = rolled_back(&proxy);
        link.cut();
        link.mend();
        // What is sent before would be lost with it.
        until("the loss to be noticed", || rolled_back(&proxy) > lost);
        if told_before {
            assert_eq!(client.failure("SELECT 1"), "40001");
        }
        direct.run("BEGIN");
        assert_eq!(direct.failure("SELECT 1 / 0"), "22012");
        let [through, directly] = [&mut client, &mut direct].map(|client| {
            client.send(messages);
            let told = client.answer();
            let notices: Vec<_> = told.notices.iter().map(ToString::to_string).collect();
            let sqlstate = told.sqlstate();
            let next = client.query("SELECT 2");
            client.query("ROLLBACK");
            (told.tags, sqlstate, notices, told.status, next.tags, next.status)
        });
        assert_eq!(through, directly, "{}", String::from_utf8_lossy(messages));
    };
    for sql in [
        "ROLLBACK AND CHAIN",
        "COMMIT AND CHAIN",
        "ROLLBACK; BEGIN",
        "ROLLBACK; EXECUTE of_both",
        "ROLLBACK; DEALLOCATE of_both",
        "ROLLBACK; EXECUTE of_both",
        "/* by hand */ END; SELECT pg_advisory_unlock_all(); CLOSE ALL; RESET ALL",
        "ABORT; DISCARD ALL",
        "ROLLBACK; SELECT 1 / 0",
        "ROLLBACK; SELEC",
        "SELECT 1; ROLLBACK",
    ] {
        play(&query(sql), true);
    }
    for sql in ["ROLLBACK AND CHAIN", "COMMIT AND CHAIN", "SAVEPOINT here"] {
        play(&ends(sql), true);
    }
    // Who has not heard of the loss yet and asks for nothing of the block has nothing to hear.
    play(&query("ROLLBACK; SELECT 1"), false);
}

/// The block that AND CHAIN opens is lost with its node, and so is the savepoint that is gone back to.
#[test]
fn a_rollback_that_goes_on_in_a_block_has_lost_it() {
    let (link, proxy) = linked(Cluster::shared());
    let mut client = proxy.connect();
    for sql in ["ROLLBACK AND CHAIN", "ROLLBACK TO SAVEPOINT here"] {
        client.run("BEGIN");
        client.run("SAVEPOINT here");
        link.lose_before(b'C', "ROLLBACK\0");
        let told = client.query(sql);
        assert_eq!((told.sqlstate().as_str(), told.status), ("40001", 'E'), "{sql}");
        assert_eq!(client.run("ROLLBACK").status, 'I');
    }
}

/// It was told 08007 as if it might have written.
#[test]
fn the_commit_of_a_block_that_only_read_leaves_nothing_in_doubt() {
    let cluster = Cluster::shared();
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    // On the primary it might have been SERIALIZABLE, and refused for what others wrote.
    for begin in ["BEGIN", "/* halyard.route: primary */ BEGIN READ ONLY"] {
        client.run(begin);
        client.value("SELECT count(*) FROM pg_class");
        link.lose_before(b'C', "COMMIT\0");
        let told = client.query("COMMIT");
        assert_eq!((told.sqlstate().as_str(), told.status), ("40001", 'I'), "{begin}");
    }
    client.run("BEGIN");
    client.run("NOTIFY ended_by_chance");
    link.lose_before(b'C', "COMMIT\0");
    assert_eq!(client.failure("COMMIT"), "08007", "somebody may have heard it");

    let link = Link::to(cluster.node("ro1").port);
    let proxy = cluster.before_one_standby("ro1", &link);
    let mut client = proxy.connect();
    let begin = |client: &mut Client| {
        until("a block on the standby", || {
            client.run("BEGIN READ ONLY");
            let there = client.server_port() != cluster.primary().port;
            if !there {
                client.run("ROLLBACK");
            }
            there
        });
    };
    begin(&mut client);
    link.lose_before(b'C', "COMMIT\0");
    let told = client.run("COMMIT");
    assert_eq!((told.tags, told.status), (vec!["COMMIT".to_owned()], 'I'));

    begin(&mut client);
    link.lose_before(b'1', "");
    client.send(&ends("END"));
    assert_eq!(kinds(&mut client), "12nCZ");

    // What it set is not kept, and the client is told that it is not.
    begin(&mut client);
    client.run("SET work_mem = '77kB'");
    link.lose_before(b'C', "COMMIT\0");
    assert_eq!(client.failure("COMMIT"), "40001");
    assert_eq!(client.value("SHOW work_mem"), "4MB");

    // Had it been asked alone.
    begin(&mut client);
    link.lose_before(b'T', "");
    client.send(&[query("SELECT 'lost'"), query("COMMIT")].concat());
    let (lost, ended) = (client.answer(), client.answer());
    assert_eq!((lost.sqlstate().as_str(), lost.status), ("40001", 'E'));
    assert_eq!((ended.tags, ended.status), (vec!["ROLLBACK".to_owned()], 'I'));
}

/// A lock went without a word where a block was open: 40001 has drivers try the transaction again, without it.
#[test]
fn what_a_session_kept_on_a_lost_node_is_told_in_a_block_too() {
    let (link, proxy) = linked(Cluster::shared());
    let mut client = proxy.connect();
    let lose = |client: &mut Client| {
        client.run("SELECT pg_advisory_lock(5511)");
        client.run("BEGIN");
        client.run("SELECT 1");
        link.cut();
        link.mend();
    };
    let is_told = |client: &mut Client, status: char| {
        let told = client.query("SELECT 2");
        assert_eq!((told.sqlstate().as_str(), told.status), ("57P01", status));
        let error = told.error.unwrap();
        assert!(error.to_string().contains("advisory locks"), "{error}");
    };
    lose(&mut client);
    is_told(&mut client, 'E');
    client.run("ROLLBACK");
    assert_eq!(client.value("SELECT 3"), "3");

    // Who asks for nothing but the end of the block has it, and is told behind it.
    for end in [query("ROLLBACK"), ends("ROLLBACK")] {
        lose(&mut client);
        client.send(&end);
        let told = client.answer();
        assert!(told.error.is_none());
        assert_eq!((told.tags, told.status), (vec!["ROLLBACK".to_owned()], 'I'));
        is_told(&mut client, 'I');
        assert_eq!(client.value("SELECT 3"), "3");
    }
}

/// Whatever it is, it goes by its name, and the session goes on.
#[test]
fn what_goes_with_a_lost_node_is_told_by_name() {
    let (link, proxy) = linked(Cluster::shared());
    let mut client = proxy.connect();
    for (keep, lost) in [
        (
            "BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT 1; COMMIT",
            "cursors WITH HOLD",
        ),
        ("PREPARE by_sql AS SELECT 1", "SQL-level prepared statements"),
        ("CREATE TEMPORARY TABLE of_it (n int)", "temporary objects"),
        ("SELECT pg_advisory_lock(5514)", "advisory locks"),
    ] {
        client.run(keep);
        link.cut();
        link.mend();
        let told = client.query("SELECT 1");
        assert_eq!((told.sqlstate().as_str(), told.status), ("57P01", 'I'), "{keep}");
        let error = told.error.unwrap();
        assert!(error.field(b'D').contains(lost), "{keep}: {error}");
        assert_eq!(client.value("SELECT 2"), "2", "{keep}");
    }
    // A portal goes with its block, and outside of one with its batch.
    let half = |client: &mut Client, end: Vec<u8>| {
        let rows = "/* halyard.route: primary */ SELECT generate_series(1, 3)";
        let asked = [parse("", rows), bind("half", "", &[]), execute("half", 1), end].concat();
        client.send(&asked);
        until_message(client, b's');
    };
    client.run("BEGIN");
    half(&mut client, sync());
    until_message(&mut client, b'Z');
    link.cut();
    link.mend();
    client.send(&[execute("half", 0), sync()].concat());
    let told = client.answer();
    assert_eq!((told.sqlstate().as_str(), told.status), ("40001", 'E'));
    client.run("ROLLBACK");
    half(&mut client, flush());
    link.cut();
    link.mend();
    client.send(&[execute("half", 0), sync()].concat());
    let told = client.answer();
    assert_eq!((told.sqlstate().as_str(), told.status), ("57P01", 'I'));
    assert_eq!(client.value("SELECT 2"), "2");
}

/// A read that ends its server each time does not go round the cluster.
#[test]
fn a_read_that_is_lost_each_time_is_not_tried_for_ever() {
    let cluster = Cluster::shared();
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster
        .proxy()
        .through(&primary.name, &link)
        .only_nodes(|name| name == primary.name)
        .start();
    let mut client = proxy.connect();
    let times = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&times);
    link.on_message(move |frame| {
        if frame.kind == b'T' && frame.has("each_time") {
            counted.fetch_add(1, Ordering::Relaxed);
            return Act::LastWords(Vec::new());
        }
        Act::Pass
    });
    let told = client.query("SELECT 1 AS each_time");
    assert_eq!((told.sqlstate().as_str(), told.status), ("57P02", 'I'));
    assert_eq!(times.load(Ordering::Relaxed), 3);
    assert_eq!(client.value("SELECT 2"), "2");
}

/// It was told 08007: nobody had heard that the server has opened the block.
#[test]
fn what_stands_behind_its_begin_in_one_flight_is_rolled_back() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS behind_begin; CREATE TABLE behind_begin (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    let insert = "INSERT INTO behind_begin VALUES (1)";
    link.lose_before(b'1', "");
    client.send(&[unnamed("BEGIN", &[]), unnamed(insert, &[]), sync()].concat());
    let told = client.answer();
    assert_eq!((told.sqlstate().as_str(), told.status), ("40001", 'E'));
    client.run("ROLLBACK");

    link.lose_before(b'C', "BEGIN\0");
    client.send(&[query("BEGIN"), query(insert)].concat());
    for _ in 0..2 {
        let told = client.answer();
        assert_eq!((told.sqlstate().as_str(), told.status), ("40001", 'E'));
    }
    client.run("ROLLBACK");
    // With a COMMIT behind it nobody knows.
    link.lose_before(b'C', "BEGIN\0");
    client.send(&[query("BEGIN"), query(insert), query("COMMIT")].concat());
    for _ in 0..3 {
        assert_eq!(client.answer().sqlstate(), "08007");
    }

    // A BEGIN that was refused opens nothing: what stands behind it stands alone.
    link.lose_before(b'C', "INSERT");
    client.send(&[query("BEGIN ISOLATION LEVEL nonsense"), query(insert)].concat());
    assert_eq!(client.answer().sqlstate(), "42601");
    let told = client.answer();
    assert_eq!((told.sqlstate().as_str(), told.status), ("08007", 'I'));
    // Nor does one that is only prepared.
    link.lose_before(b'C', "INSERT");
    client.send(&[parse("later", "BEGIN"), unnamed(insert, &[]), sync()].concat());
    assert_eq!(client.answer().sqlstate(), "08007");
}

/// The Sync alone was sent again, to another node, which had nothing to commit: the client took its INSERT for committed.
#[test]
fn a_batch_that_was_cut_by_a_flush_is_lost_with_its_transaction() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS flushed; CREATE TABLE flushed (n int)");
    for mode in ["transaction", "session"] {
        let primary = cluster.primary();
        let link = Link::to(primary.port);
        let proxy = cluster
            .proxy()
            .through(&primary.name, &link)
            .set("pool.mode", mode)
            .only_nodes(|name| name == primary.name)
            .start();
        let mut client = proxy.connect();
        let half = |client: &mut Client| {
            // A hint makes no read of it.
            let insert = "/* halyard.route: replica */ INSERT INTO flushed VALUES (1)";
            client.send(&[unnamed(insert, &[]), flush()].concat());
            let told: Vec<u8> = (0..3).map(|_| client.receive().kind).collect();
            assert_eq!(told, *b"12C");
        };
        // In doubt while the Sync is under way; alone, and with a read before it.
        for rest in [sync(), [unnamed("SELECT 1", &[]), sync()].concat()] {
            lose_ready_behind(&link, "INSERT");
            half(&mut client);
            client.send(&rest);
            let told = client.answer();
            assert_eq!((told.sqlstate().as_str(), told.status), ("08007", 'I'), "{mode}");
        }
        // And before it.
        half(&mut client);
        link.cut();
        link.mend();
        client.send(&sync());
        assert_eq!(client.answer().sqlstate(), "08007", "{mode}");
        // Of one that has failed, or has only read, nothing is in doubt.
        lose_ready_behind(&link, "division by zero");
        client.send(&[unnamed("INSERT INTO flushed SELECT 1/0", &[]), flush()].concat());
        until_message(&mut client, b'E');
        client.send(&sync());
        assert_eq!(client.answer().error, None, "{mode}");
        lose_ready_behind(&link, "SELECT 3\0");
        client.send(&[unnamed("SELECT generate_series(1, 3)", &[]), flush()].concat());
        until_message(&mut client, b'C');
        client.send(&sync());
        assert_eq!(client.answer().error, None, "{mode}");
        // A COPY that was told is not committed before its Sync.
        lose_ready_behind(&link, "COPY 1\0");
        client.send(&[unnamed("COPY flushed FROM STDIN", &[]), sync()].concat());
        until_message(&mut client, b'G');
        client.send(&[copy_data(b"7\n"), copy_done(), flush()].concat());
        until_message(&mut client, b'C');
        client.send(&sync());
        assert_eq!(client.answer().sqlstate(), "08007", "{mode}");
        // A block that is lost takes its SET with it.
        client.send(
            &[
                unnamed("BEGIN", &[]),
                unnamed("SET work_mem = '5MB'", &[]),
                flush(),
            ]
            .concat(),
        );
        for _ in 0..2 {
            until_message(&mut client, b'C');
        }
        link.cut();
        link.mend();
        client.send(&sync());
        assert_eq!(client.answer().sqlstate(), "40001", "{mode}");
        client.run("ROLLBACK");
        // What has only prepared goes on elsewhere.
        client.send(
            &[
                parse("kept", "SELECT 40 + 2"),
                describe_statement("kept"),
                flush(),
            ]
            .concat(),
        );
        let told: Vec<u8> = (0..3).map(|_| client.receive().kind).collect();
        assert_eq!(told, *b"1tT");
        client.send(&[bind("", "kept", &[]), execute("", 0), sync()].concat());
        assert_eq!(client.answer().rows[0][0].as_deref(), Some("42"));
    }
}

/// It went without a word: the SET had been answered, and nobody had asked for it yet.
#[test]
fn what_a_pipeline_has_set_before_it_was_lost_is_told() {
    let (link, proxy) = linked(Cluster::shared());
    let mut client = proxy.connect();
    let last = "SELECT pg_sleep(0) AS behind_a_setting";
    link.lose_before(b'T', "behind_a_setting");
    let requests = [query("SET work_mem = '5MB'"), query(last)].concat();
    send_unanswered(&link, &mut client, &requests, last);
    assert_eq!(client.answer().error, None);
    let told = client.answer().error.expect("its connection was lost");
    assert!(told.field(b'D').contains("changed settings"), "{told}");
    assert_eq!(client.value("SELECT 1"), "1");

    // Nor behind what is sent with it and stays open, a batch or a block.
    let last = "SELECT 40 + 2 AS behind_a_setting";
    let described = [parse("read", last), describe_statement("read"), flush()].concat();
    let requests = [query("SET work_mem = '6MB'"), described].concat();
    send_unanswered(&link, &mut client, &requests, last);
    until_message(&mut client, b'T');
    link.lose_before(b'2', "");
    client.send(&[bind("", "read", &[]), execute("", 0), sync()].concat());
    let told = client.answer().error.expect("its connection was lost");
    assert!(told.field(b'D').contains("changed settings"), "{told}");
    let last = "BEGIN /* behind a setting */";
    let requests = [query("SET work_mem = '7MB'"), query(last)].concat();
    send_unanswered(&link, &mut client, &requests, last);
    assert_eq!((client.answer().status, client.answer().status), ('I', 'T'));
    link.cut();
    link.mend();
    assert_eq!(client.failure("SELECT 1"), "57P01");
    client.run("ROLLBACK");
}

/// 40001 was told: what a transaction before it had committed, and nobody had asked for yet, went without a word.
#[test]
fn what_was_committed_before_a_block_that_is_lost_is_told() {
    let (link, proxy) = linked(Cluster::shared());
    let mut client = proxy.connect();
    let lose = |client: &mut Client, what: &str| {
        link.cut();
        link.mend();
        let told = client.query("SELECT 1");
        assert_eq!((told.sqlstate().as_str(), told.status), ("57P01", 'E'), "{what}");
        let error = told.error.unwrap();
        assert!(error.field(b'D').contains(what), "{error}");
        client.run("ROLLBACK");
        assert_eq!(client.value("SHOW work_mem"), "4MB");
    };
    client.run("BEGIN");
    client.run("CREATE TEMPORARY TABLE of_the_first (n int)");
    client.send(&[query("COMMIT"), query("BEGIN")].concat());
    assert_eq!((client.answer().status, client.answer().status), ('I', 'T'));
    lose(&mut client, "temporary objects");

    client.run("BEGIN");
    client.run("SET work_mem = '5MB'");
    assert_eq!(client.run("COMMIT AND CHAIN").status, 'T');
    lose(&mut client, "changed settings");

    let begin = "BEGIN; SELECT 1 AS behind_what_was_set";
    let requests = [query("SET work_mem = '6MB'"), query(begin)].concat();
    send_unanswered(&link, &mut client, &requests, begin);
    assert_eq!((client.answer().status, client.answer().status), ('I', 'T'));
    lose(&mut client, "changed settings");

    let hidden = "DO $$BEGIN PERFORM set_config('work_mem', '7MB', false); END$$";
    let begin = "BEGIN /* behind what is hidden */";
    let requests = [query(hidden), query(begin)].concat();
    send_unanswered(&link, &mut client, &requests, begin);
    assert_eq!((client.answer().status, client.answer().status), ('I', 'T'));
    lose(&mut client, "the session's state");

    // What goes with its block is lost with that, and can be done again with it.
    for begin in ["BEGIN; SET work_mem = '8MB'; SELECT 1", "BEGIN"] {
        client.run(begin);
        client.run("SET work_mem = '9MB'");
        link.cut();
        link.mend();
        assert_eq!(client.failure("SELECT 1"), "40001", "{begin}");
        client.run("ROLLBACK");
    }
}

/// What the client had reset came back with the next node: a role among it.
#[test]
fn what_was_reset_before_it_was_lost_stays_reset() {
    let (link, proxy) = linked(Cluster::shared());
    let mut client = proxy.connect();
    for reset in ["DISCARD ALL", "RESET ALL", "RESET work_mem"] {
        client.run("SET work_mem = '77kB'");
        assert_eq!(client.value("SHOW work_mem"), "77kB");
        link.lose_before(b'D', "late");
        let write = "/* halyard.route: primary */ SELECT 'late'";
        let requests = [query(reset), query(write)].concat();
        // Behind what may change how texts are read it waits, and is repeated.
        let waits = reset.ends_with("ALL");
        if waits {
            client.send(&requests);
        } else {
            send_unanswered(&link, &mut client, &requests, write);
        }
        assert_eq!(client.answer().error, None, "{reset}");
        assert_eq!(client.answer().error.is_none(), waits, "{reset}");
        assert_eq!(client.value("SHOW work_mem"), "4MB", "{reset}");
    }
    // What goes with its block does not.
    client.run("SET work_mem = '77kB'");
    client.run("BEGIN");
    client.run("RESET work_mem");
    link.cut();
    link.mend();
    assert_eq!(client.failure("SELECT 1"), "40001");
    client.run("ROLLBACK");
    assert_eq!(client.value("SHOW work_mem"), "77kB");
}

/// It was sent again to another node, where what it relied on had never been.
#[test]
fn behind_code_that_nobody_has_read_nothing_is_sent_again() {
    let (link, proxy) = linked(Cluster::shared());
    let mut client = proxy.connect();
    let hidden = "DO $$BEGIN PERFORM set_config('work_mem', '7MB', false); END$$";
    let asks = "/* halyard.route: primary */ SELECT current_setting('work_mem')";
    let described = [parse("asks", asks), describe_statement("asks"), flush()].concat();
    send_unanswered(&link, &mut client, &[query(hidden), described].concat(), asks);
    until_message(&mut client, b'T');
    link.lose_before(b'2', "");
    client.send(&[bind("", "asks", &[]), execute("", 0), sync()].concat());
    let told = client.answer().error.expect("its connection was lost");
    assert!(told.field(b'D').contains("the session's state"), "{told}");
    assert_eq!(client.value("SHOW work_mem"), "4MB");

    // Nor is the end of a batch whose portal is gone: there it is unknown.
    client.send(&[unnamed_bound("/* halyard.route: primary */ SELECT 1"), flush()].concat());
    until_message(&mut client, b'2');
    link.lose_before(b'T', "");
    client.send(&[describe_portal(""), sync()].concat());
    assert_eq!(client.answer().sqlstate(), "57P01");
}

/// What met a statement that was gone was sent to another backend, and the one that it left went to a stranger as it was.
#[test]
fn who_comes_next_finds_nothing_of_what_was_sent_elsewhere() {
    let cluster = Cluster::shared();
    let primary = cluster.primary().name.as_str();
    let proxy = cluster
        .proxy()
        .only_nodes(|name| name == primary)
        .set("pool.size", 1)
        .start();
    let mut client = proxy.connect();
    let run = [
        bind("", "known", &[]),
        describe_portal(""),
        execute("", 0),
        sync(),
    ]
    .concat();
    client.send(&[parse("known", "SELECT 40 + 2"), run.clone()].concat());
    assert_eq!(client.answer().error, None);
    let hidden = "DO $$BEGIN EXECUTE 'DEALLOCATE ALL'; PERFORM set_config('work_mem', '75kB', false), pg_advisory_lock(5512); END$$";
    let cut = [parse("other", "SELECT 1"), describe_statement("other"), flush()].concat();
    client.send(&[query(hidden), cut].concat());
    assert_eq!(client.answer().error, None);
    until_message(&mut client, b'T');
    client.send(&run);
    let _ = client.answer();
    drop(client);
    let mut stranger = proxy.connect();
    assert_eq!(stranger.value("SHOW work_mem"), "4MB");
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 5512";
    assert_eq!(stranger.value(locks), "0");
}

/// It was told outside of any block, in which it was: what the client sent next would have been committed by itself.
#[test]
fn a_block_that_has_moved_is_a_block_until_it_is_answered() {
    let cluster = Cluster::shared();
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    until("a block on a standby", || {
        client.run("BEGIN READ ONLY");
        let there = client.server_port() != cluster.primary().port;
        if !there {
            client.run("ROLLBACK");
        }
        there
    });
    link.lose_before(b'C', "BEGIN\0");
    client.send(&[query("SELECT pg_advisory_xact_lock(7)"), query("SELECT 'late'")].concat());
    for _ in 0..2 {
        let told = client.answer();
        assert_eq!((told.sqlstate().as_str(), told.status), ("40001", 'E'));
    }
    assert_eq!(client.run("ROLLBACK").status, 'I');
}

/// The Sync alone was sent to another node, which knew of no block: what came next ran, and was committed by itself.
#[test]
fn a_batch_that_has_failed_behind_its_begin_leaves_a_failed_block() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS failed_behind; CREATE TABLE failed_behind (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    lose_ready_behind(&link, "division by zero");
    client.send(
        &[
            unnamed("BEGIN", &[]),
            unnamed("INSERT INTO failed_behind VALUES (1)", &[]),
            flush(),
        ]
        .concat(),
    );
    for _ in 0..2 {
        until_message(&mut client, b'C');
    }
    client.send(&[unnamed("INSERT INTO failed_behind SELECT 1/0", &[]), flush()].concat());
    until_message(&mut client, b'E');
    client.send(&sync());
    let told = client.answer();
    assert_eq!((told.sqlstate().as_str(), told.status), ("40001", 'E'));
    assert_eq!(client.failure("INSERT INTO failed_behind VALUES (2)"), "25P02");
    client.run("ROLLBACK");
    assert_eq!(client.value("SELECT count(*) FROM failed_behind"), "0");
}

/// A client that goes on in its failed block as if it had prepared there, as pgbench does, hears of the statement that is not
/// there; and nothing is described that would have rows.
#[test]
fn a_block_that_failed_with_its_node_answers_as_one_that_failed_on_it() {
    let cluster = Cluster::shared();
    let (link, proxy) = linked(cluster);
    let mut through = proxy.connect();
    let mut direct = cluster.app(cluster.primary().port).connect();
    for client in [&mut through, &mut direct] {
        client.send(&[parse("reads", "SELECT 1"), parse("ends", "ROLLBACK"), sync()].concat());
        client.until_ready();
        client.run("BEGIN");
        // So that there is something to be lost.
        client.run("SELECT pg_current_xact_id()");
    }
    link.cut();
    link.mend();
    assert_eq!(through.query("SELECT 1").status, 'E');
    assert_eq!(direct.query("SELECT 1/0").status, 'E');
    let batches = [
        vec![parse("late", "SELECT 2")],
        vec![bind("", "late", &[]), execute("", 0)],
        vec![bind("", "", &[]), execute("", 0)],
        vec![describe_statement("late")],
        vec![describe_statement("reads")],
        vec![bind("", "reads", &[]), execute("", 0)],
        vec![
            describe_statement("ends"),
            bind("", "ends", &[]),
            describe_portal(""),
        ],
        vec![parse("", "COMMIT"), bind("", "", &[]), execute("", 0)],
        vec![bind("", "reads", &[]), execute("", 0)],
    ];
    for mut batch in batches {
        batch.push(sync());
        let answers = [&mut through, &mut direct].map(|client| {
            client.send(&batch.concat());
            let messages = client.until_ready();
            messages.iter().map(ToString::to_string).collect::<Vec<_>>()
        });
        let [through, direct] = answers;
        assert_eq!(through, direct);
    }
}

/// In session pooling a lost backend is noticed as little as in transaction pooling: by nobody who is idle.
#[test]
fn in_session_pooling_a_lost_backend_is_replaced() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS lost_in_session; CREATE TABLE lost_in_session (a int)");
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster
        .proxy()
        .through(&primary.name, &link)
        .set("pool.mode", "session")
        .only_nodes(|name| name == primary.name)
        .start();
    let lose = || {
        link.cut();
        link.mend();
    };
    let mut client = proxy.connect();
    client.run("SET work_mem = '5MB'");
    client.run("SET lost.tenant = 'seven'");
    client.send(&[parse("one", "SELECT 40 + 2"), sync()].concat());
    assert_eq!(client.answer().error, None);
    let before = client.value("SELECT pg_backend_pid()");
    lose();
    assert_eq!(client.value("SHOW work_mem"), "5MB");
    assert_eq!(client.value("SHOW lost.tenant"), "seven");
    let after = client.value("SELECT pg_backend_pid()");
    assert_ne!(after, before);
    assert_eq!(
        client.value("SELECT pg_backend_pid()"),
        after,
        "it is its own again"
    );
    client.send(&[bind("", "one", &[]), execute("", 0), sync()].concat());
    assert_eq!(client.answer().rows[0][0].as_deref(), Some("42"));

    // A read that has not been answered runs again, alone: what was answered before it does not.
    client.run("INSERT INTO lost_in_session VALUES (1)");
    link.lose_before(b'T', "pg_sleep");
    assert_eq!(client.query("SELECT pg_sleep(0.01)").error, None);
    assert_eq!(client.value("SELECT count(*) FROM lost_in_session"), "1");
    // A write is in doubt.
    link.lose_before(b'C', "INSERT");
    assert_eq!(client.failure("INSERT INTO lost_in_session VALUES (2)"), "08007");
    assert_eq!(client.value("SELECT count(*) FROM lost_in_session"), "2");
    client.run("BEGIN");
    client.run("INSERT INTO lost_in_session VALUES (3)");
    lose();
    assert_eq!(client.failure("SELECT 1"), "40001");
    client.run("ROLLBACK");
    assert_eq!(client.value("SELECT count(*) FROM lost_in_session"), "2");

    // Of what nobody has read nobody knows what it left.
    client.run("DO $$BEGIN PERFORM set_config('lost.unseen', 'x', false); END$$");
    lose();
    assert_eq!(client.failure("SHOW work_mem"), "57P01");
    assert_eq!(client.value("SHOW work_mem"), "5MB");

    // What cannot follow is told, once, and only to whom it was.
    client.run("CREATE TEMP TABLE mine (a int)");
    lose();
    let told = client.query("SELECT 1").error.expect("its table is gone");
    assert_eq!(told.field(b'C'), "57P01");
    assert!(told.field(b'D').contains("temporary objects"), "{told}");
    assert_eq!(client.value("SHOW work_mem"), "5MB");
    lose();
    assert_eq!(client.value("SHOW work_mem"), "5MB");
}

/// It is heard of what it listens to whichever backend it has.
#[test]
fn in_session_pooling_a_listener_outlives_its_backend() {
    let cluster = Cluster::shared();
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster
        .proxy()
        .through(&primary.name, &link)
        .set("pool.mode", "session")
        .only_nodes(|name| name == primary.name)
        .start();
    let (mut listener, mut other) = (proxy.connect(), proxy.connect());
    listener.run("LISTEN outlives");
    other.run("NOTIFY outlives, 'before'");
    let heard = |client: &mut Client| {
        let message = client.receive();
        assert_eq!(message.kind, b'A', "{message}");
        String::from_utf8_lossy(&message.body).into_owned()
    };
    assert!(heard(&mut listener).contains("before"));
    // Behind a write Halyard may have asked what it left; that is over.
    assert_eq!(other.value("SELECT 1"), "1");
    assert_eq!(listener.value("SELECT 1"), "1");
    link.cut();
    link.mend();
    let warning = listener.receive();
    assert_eq!((warning.kind, warning.field(b'V')), (b'N', "WARNING".to_owned()));
    assert_eq!(listener.value("SELECT pg_listening_channels()"), "outlives");
    other.run("NOTIFY outlives, 'after'");
    assert!(heard(&mut listener).contains("after"));
    listener.run("UNLISTEN *");
    assert!(listener.query("SELECT pg_listening_channels()").rows.is_empty());
}
