//! What was sent in one write across the end or the beginning of a transaction block, and lost with its node: where the
//! client's words have led it is where it finds itself, and what may have been committed is not told as rolled back.

use crate::support::message::*;
use crate::support::{Client, Cluster, Link, Proxy, until};

/// SQLSTATEs and statuses of so many answers.
fn told(client: &mut Client, count: usize) -> Vec<(String, char)> {
    let answers = (0..count).map(|_| client.answer());
    answers.map(|answer| (answer.sqlstate(), answer.status)).collect()
}

fn all(sqlstate: &str, statuses: &str) -> Vec<(String, char)> {
    statuses
        .chars()
        .map(|status| (sqlstate.to_owned(), status))
        .collect()
}

fn set_up(table: &str) -> (Link, Proxy, Client) {
    let cluster = Cluster::shared();
    cluster.prepare(&format!(
        "DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (n int)"
    ));
    let (link, proxy) = cluster.linked();
    let client = proxy.connect();
    (link, proxy, client)
}

/// It was told 40001, and drivers ran it again: a driver that drops a transaction sends its ROLLBACK and the next statement
/// together.
#[test]
fn a_write_behind_a_rollback_stands_alone() {
    let (link, proxy, mut client) = set_up("behind_rollback");
    let insert = query("INSERT INTO behind_rollback VALUES (2)");
    let extended = [unnamed("INSERT INTO behind_rollback VALUES (2)", &[]), sync()].concat();
    for write in [insert, extended] {
        client.run("BEGIN");
        client.run("INSERT INTO behind_rollback VALUES (1)");
        link.lose_before(b'C', "ROLLBACK\0");
        client.send(&[query("ROLLBACK"), write].concat());
        assert_eq!(told(&mut client, 2), all("08007", "II"));
        assert_eq!(client.value("SELECT 1"), "1");
    }
    // A read has nothing to be in doubt of, and is told where the ROLLBACK has led.
    client.run("BEGIN");
    client.run("INSERT INTO behind_rollback VALUES (1)");
    link.lose_before(b'C', "ROLLBACK\0");
    client.send(&[query("ROLLBACK"), query("SELECT 1")].concat());
    assert_eq!(told(&mut client, 2), all("40001", "II"));
    // What is in a block of its own behind it is rolled back with that.
    client.run("BEGIN");
    client.run("INSERT INTO behind_rollback VALUES (1)");
    link.lose_before(b'C', "ROLLBACK\0");
    let write = query("INSERT INTO behind_rollback VALUES (1)");
    client.send(&[query("ROLLBACK"), query("BEGIN"), write].concat());
    assert_eq!(told(&mut client, 3), all("40001", "IEE"));
    client.run("ROLLBACK");
    assert_eq!(
        proxy
            .connect()
            .value("SELECT count(*) FROM behind_rollback WHERE n = 1"),
        "0"
    );
}

/// The same in one message, and in one batch.
#[test]
fn what_stands_behind_a_rollback_in_its_own_request_stands_alone() {
    let (link, proxy, mut client) = set_up("in_one_request");
    let insert = "INSERT INTO in_one_request VALUES (2)";
    let batch = [unnamed("ROLLBACK", &[]), unnamed(insert, &[]), sync()].concat();
    for request in [query(&format!("ROLLBACK; {insert}")), batch] {
        client.run("BEGIN");
        client.run("INSERT INTO in_one_request VALUES (1)");
        link.lose_before(b'C', "INSERT");
        client.send(&request);
        let answer = client.answer();
        assert_eq!((answer.sqlstate().as_str(), answer.status), ("08007", 'I'));
    }
    // Nothing before the ROLLBACK can have it skipped.
    client.run("BEGIN");
    link.lose_before(b'D', "");
    client.send(&query("ROLLBACK; SELECT pg_advisory_unlock_all()"));
    assert_eq!(client.answer().status, 'I');
    // A portal that was bound before another ends the block.
    client.run("BEGIN");
    client.run("INSERT INTO in_one_request VALUES (1)");
    let bound = [
        parse("", "COMMIT"),
        bind("end", "", &[]),
        parse("", "SELECT 1"),
        bind("read", "", &[]),
    ]
    .concat();
    link.lose_before(b'C', "COMMIT");
    client.send(&[bound, execute("read", 0), execute("end", 0), sync()].concat());
    assert_eq!(client.answer().sqlstate(), "08007");
    // A statement that was prepared before another in the same batch.
    client.run("BEGIN");
    client.run("INSERT INTO in_one_request VALUES (1)");
    let prepared = [parse("end", "COMMIT"), parse("read", "SELECT 1")].concat();
    let run = |name| [bind("", name, &[]), execute("", 0)].concat();
    link.lose_before(b'C', "COMMIT");
    client.send(&[prepared, run("end"), run("read"), sync()].concat());
    assert_eq!(client.answer().sqlstate(), "08007");
    drop(proxy);
}

/// What is told of a request long ago says nothing of the last of many.
#[test]
fn a_long_pipeline_leads_where_its_words_say() {
    let (link, _proxy, mut client) = set_up("long_pipeline");
    let insert = query("INSERT INTO long_pipeline VALUES (1)");
    let many = insert.repeat(100);
    link.lose_before(b'C', "BEGIN");
    client.send(&[query("SELECT 1"), query("BEGIN"), many.clone()].concat());
    let statuses: String = (0..102).map(|_| client.answer().status).collect();
    assert!(statuses.ends_with("EEE"), "{statuses}");
    client.run("ROLLBACK");
    link.lose_before(b'C', "COMMIT");
    client.send(&[query("BEGIN"), insert, query("COMMIT"), many].concat());
    let statuses: String = (0..103).map(|_| client.answer().status).collect();
    assert!(statuses.ends_with("III"), "{statuses}");
    assert_eq!(client.run("SELECT 1").status, 'I');
}

/// Halyard prepared it anew under the settings of the moment and under the name that all share: others got the wrong day.
#[test]
fn a_statement_that_is_prepared_again_under_other_settings_is_nobody_elses() {
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().set("pool.size", 1).start();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let text = "/* halyard.route: primary */ SELECT '01/02/2024'::date + 0 AS of_the_pool";
    let ask = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    let in_one_batch = "in one batch";
    one.send(&[parse("s", text), ask("s")].concat());
    assert_eq!(one.answer().rows[0][0].as_deref(), Some("2024-01-02"));
    for change in [
        "SET datestyle = 'ISO, DMY'",
        "BEGIN; SET LOCAL datestyle = 'ISO, DMY'",
        in_one_batch,
    ] {
        // Its next backend does not have it.
        let mut direct = cluster.superuser(cluster.primary()).connect();
        let pid = one.value("/* halyard.route: primary */ SELECT pg_backend_pid()");
        direct.run(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
        until("another backend", || {
            let answer = one.query("/* halyard.route: primary */ SELECT pg_backend_pid()");
            answer.error.is_none() && answer.rows[0][0].as_deref() != Some(&pid)
        });
        if change == in_one_batch {
            one.send(&[unnamed("SET datestyle = 'ISO, DMY'", &[]), ask("s")].concat());
        } else {
            one.run(change);
            one.send(&ask("s"));
        }
        assert!(one.answer().error.is_none());
        one.run("COMMIT");
        one.run("RESET datestyle");
        one.send(&ask("s"));
        assert_eq!(one.answer().rows[0][0].as_deref(), Some("2024-01-02"), "{change}");
        other.send(&[parse("", ""), parse("t", text), ask("t")].concat());
        assert_eq!(
            other.answer().rows[0][0].as_deref(),
            Some("2024-01-02"),
            "{change}"
        );
        other.run("DEALLOCATE t");
    }
}

/// It was told 40001 for the ROLLBACK at the end: the COMMIT may stand.
#[test]
fn a_commit_with_a_rollback_behind_it_is_in_doubt() {
    let (link, _proxy, mut client) = set_up("commit_rollback");
    let begin = |client: &mut Client| {
        client.run("BEGIN");
        client.run("INSERT INTO commit_rollback VALUES (1)");
    };
    begin(&mut client);
    link.lose_before(b'C', "COMMIT\0");
    let write = query("INSERT INTO commit_rollback VALUES (2)");
    client.send(&[query("COMMIT"), query("BEGIN"), write, query("ROLLBACK")].concat());
    assert_eq!(told(&mut client, 4), all("08007", "IEEI"));
    begin(&mut client);
    link.lose_before(b'C', "COMMIT\0");
    client.send(&[query("COMMIT AND CHAIN"), query("ROLLBACK")].concat());
    assert_eq!(told(&mut client, 2), all("08007", "EI"));
    // A portal that ends the block may be bound in one batch and run in the next.
    begin(&mut client);
    client.send(&[parse("", "COMMIT"), bind("end", "", &[]), sync()].concat());
    assert!(client.answer().error.is_none());
    link.lose_before(b'C', "COMMIT\0");
    client.send(&[execute("end", 0), sync()].concat());
    assert_eq!(client.answer().sqlstate(), "08007");
    // Several statements of which none commits leave nothing in doubt.
    begin(&mut client);
    link.lose_before(b'C', "SAVEPOINT\0");
    let told = client.query("SAVEPOINT a; INSERT INTO commit_rollback VALUES (3)");
    assert_eq!((told.sqlstate().as_str(), told.status), ("40001", 'E'));
    client.run("ROLLBACK");
}

/// What the client sent next was committed by itself: half a transaction.
#[test]
fn who_was_in_a_block_is_in_a_failed_one() {
    let (link, proxy, mut client) = set_up("half_a_block");
    let insert = |n: i32| query(&format!("INSERT INTO half_a_block VALUES ({n})"));
    link.lose_before(b'C', "INSERT");
    client.send(&[insert(1), query("BEGIN"), insert(2)].concat());
    assert_eq!(told(&mut client, 3), all("08007", "IEE"));
    client.send(&[insert(3), query("COMMIT")].concat());
    let refused = client.answer();
    assert_eq!((refused.sqlstate().as_str(), refused.status), ("25P02", 'E'));
    let ended = client.answer();
    assert_eq!((ended.tags, ended.status), (vec!["ROLLBACK".to_owned()], 'I'));

    client.run("BEGIN");
    client.run("INSERT INTO half_a_block VALUES (4)");
    link.lose_before(b'C', "COMMIT\0");
    let batch = |sql: &str| [unnamed(sql, &[]), sync()].concat();
    let begin = batch("BEGIN");
    let again = batch("INSERT INTO half_a_block VALUES (5)");
    client.send(&[batch("COMMIT"), begin, again].concat());
    assert_eq!(told(&mut client, 3), all("08007", "IEE"));
    assert_eq!(client.failure("INSERT INTO half_a_block VALUES (3)"), "25P02");
    client.run("ROLLBACK");
    let alone = "SELECT count(*) FROM half_a_block WHERE n IN (2, 3, 5)";
    assert_eq!(proxy.connect().value(alone), "0");
}

/// A driver that drops a transaction which only read sends its end and the next statement together: that ran on the standby
/// too, which refused it (25006).
#[test]
fn a_write_behind_the_end_of_a_block_on_a_standby_goes_to_the_primary() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS behind_reads; CREATE TABLE behind_reads (n int)");
    let proxy = cluster.proxy().start();
    let mut client = proxy.connect();
    let primary = cluster.primary().port;
    for (end, write) in [
        (query("ROLLBACK"), query("INSERT INTO behind_reads VALUES (1)")),
        (
            [unnamed("COMMIT", &[]), sync()].concat(),
            [unnamed("INSERT INTO behind_reads VALUES (1)", &[]), sync()].concat(),
        ),
    ] {
        until("a block on a standby", || {
            client.run("BEGIN READ ONLY");
            let there = client.server_port() != primary;
            if !there {
                client.run("ROLLBACK");
            }
            there
        });
        client.send(&[end, write].concat());
        assert_eq!(told(&mut client, 2), all("", "II"));
    }
    assert_eq!(client.value("SELECT count(*) FROM behind_reads"), "2");
}

/// pgjdbc begins its transactions by a batch of BEGIN and the first statement: it counted as a BEGIN alone, which writes
/// nothing, and no COMMIT behind it was ever resolved.
#[test]
fn a_transaction_that_begins_with_its_first_write_has_written() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS begun_with; CREATE TABLE begun_with (n int)");
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster
        .proxy()
        .through(&primary.name, &link)
        .set("failover.resolve_commits", true)
        .start();
    let mut client = proxy.connect();
    let insert = unnamed("INSERT INTO begun_with VALUES (1)", &[]);
    client.send(&[unnamed("BEGIN", &[]), insert, sync()].concat());
    assert_eq!(client.answer().status, 'T');
    link.lose_before(b'C', "COMMIT\0");
    let told = client.query("COMMIT");
    assert_eq!((told.sqlstate().as_str(), told.status), ("", 'I'));
    assert_eq!(client.value("SELECT count(*) FROM begun_with"), "1");
}

/// The client read dates by a style that was gone with its block.
#[test]
fn a_lost_block_takes_back_what_was_told_of_settings() {
    let (link, proxy) = Cluster::shared().linked();
    let mut client = proxy.connect();
    let parameter = |client: &mut Client| client.until_kind(b'S').pop().unwrap().parameter();
    for setting in ["SET LOCAL datestyle = 'SQL, DMY'", "SET datestyle = 'SQL, DMY'"] {
        client.run("BEGIN");
        client.send(&query(setting));
        assert_eq!(parameter(&mut client).1, "SQL, DMY");
        client.until_ready();
        link.cut();
        link.mend();
        client.send(&query("SELECT 1"));
        let (name, value) = parameter(&mut client);
        assert_eq!(
            (name.as_str(), value.as_str()),
            ("DateStyle", "ISO, MDY"),
            "{setting}"
        );
        assert_eq!(client.answer().sqlstate(), "40001");
        client.run("ROLLBACK");
        assert_eq!(client.value("SHOW datestyle"), "ISO, MDY");
    }
    // Halyard itself goes by what holds now.
    client.run("BEGIN");
    client.run("SET LOCAL standard_conforming_strings = off");
    link.cut();
    link.mend();
    assert_eq!(client.failure("SELECT 1"), "40001");
    client.run("ROLLBACK");
    client.run(r"SELECT 'a\'; SET work_mem = '64kB'; SELECT '\'");
    let mut others = proxy.connect();
    assert_eq!(others.value("SHOW work_mem"), "4MB");
    assert_eq!(client.value("SHOW work_mem"), "64kB");
}

/// It was heard of with the next statement only, and a worker that waits sends none.
#[test]
fn a_listener_that_has_lost_its_state_is_told_while_it_waits() {
    let (link, proxy) = Cluster::shared().linked();
    let mut client = proxy.connect();
    client.run("LISTEN after_the_loss");
    client.run("CREATE TEMPORARY TABLE of_a_listener (n int)");
    link.cut();
    link.mend();
    // Notifications may have been lost.
    client.until_kind(b'N');
    proxy.connect().run("NOTIFY after_the_loss");
    client.until_kind(b'A');
    assert_eq!(client.failure("SELECT 1"), "57P01");
}
