//! `failover.resolve_commits`: what became of a COMMIT whose answer was lost is found out, and told as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use crate::support::message::*;
use crate::support::{Act, Client, Cluster, LONG_PATIENCE, Link, Proxy, until};

/// A column of the question's answer, by which it is known among other messages.
const QUESTION_ANSWERED: u8 = b'D';

/// A proxy that reaches the primary by a link alone, and resolves commits.
fn linked(cluster: &'static Cluster) -> (Link, Proxy) {
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster
        .proxy()
        .through(&primary.name, &link)
        .set("failover.resolve_commits", true)
        .start();
    (link, proxy)
}

/// A table whose row -1 takes so many seconds to be committed.
fn slow_to_commit(cluster: &Cluster, table: &str, seconds: &str) {
    cluster.prepare(&format!(
        "DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (n int);
         CREATE OR REPLACE FUNCTION {table}_slowly() RETURNS trigger LANGUAGE plpgsql
             AS 'BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW WHEN (new.n = -1) EXECUTE FUNCTION {table}_slowly()"
    ));
}

fn begin_with(client: &mut Client, table: &str, n: i32) {
    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    client.run("BEGIN");
    client.run(&format!("INSERT INTO {table} VALUES ({n})"));
}

/// Rows on the primary, as the proxy has it.
fn rows(proxy: &Proxy, table: &str) -> String {
    let mut client = proxy.connect();
    client.value(&format!(
        "BEGIN; SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM {table}; COMMIT"
    ))
}

#[test]
fn a_commit_whose_answer_is_lost_is_told_as_committed() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS answer_lost; CREATE TABLE answer_lost (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();

    begin_with(&mut client, "answer_lost", 1);
    link.lose_before(b'C', "COMMIT\0");
    let told = client.run("/* by hand */ COMMIT");
    assert_eq!((told.tags, told.status), (vec!["COMMIT".to_owned()], 'I'));

    // The same in the extended protocol.
    begin_with(&mut client, "answer_lost", 2);
    link.lose_before(b'C', "COMMIT\0");
    client.send(
        &[
            parse("", "COMMIT"),
            bind("", "", &[]),
            describe_portal(""),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    let kinds: Vec<char> = client
        .until_ready()
        .iter()
        .map(|message| char::from(message.kind))
        .collect();
    assert_eq!(kinds, ['1', '2', 'n', 'C', 'Z']);

    // It was lost while it was under way, and is asked for until it is over.
    slow_to_commit(cluster, "slow_answer", "1");
    begin_with(&mut client, "slow_answer", -1);
    link.lose_before(QUESTION_ANSWERED, "00000001");
    let told = client.query("END");
    // Without the answer to the question nobody knows which transaction it was.
    assert_eq!((told.sqlstate().as_str(), told.status), ("08007", 'I'));

    assert_eq!(client.value("SELECT 'alive'"), "alive");
    assert_eq!(rows(&proxy, "answer_lost"), "1 2");
    assert_eq!(
        proxy.metric("halyard_commits_resolved_total{outcome=\"committed\"}"),
        2.0
    );
}

#[test]
fn a_commit_that_failed_unheard_is_told_as_rolled_back() {
    let cluster = Cluster::shared();
    slow_to_commit(cluster, "never_done", "600");
    let proxy = cluster.proxy().set("failover.resolve_commits", true).start();
    let mut client = proxy.connect();
    begin_with(&mut client, "never_done", -1);
    client.send(&query("COMMIT"));
    cluster.until_commits_slowly(cluster.primary());
    let mut direct = cluster.superuser(cluster.primary()).connect();
    direct.run(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {}",
        Cluster::COMMITS_SLOWLY
    ));
    let told = client.answer();
    assert_eq!(
        (told.sqlstate().as_str(), told.status),
        ("40001", 'I'),
        "{told:?}"
    );
    assert_eq!(rows(&proxy, "never_done"), "");
}

/// Its backend does not hear that nobody waits for it any more, and commits.
#[test]
fn a_commit_that_goes_on_after_its_connection_is_waited_for() {
    let cluster = Cluster::shared();
    slow_to_commit(cluster, "goes_on", "1");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    begin_with(&mut client, "goes_on", -1);
    client.send(&query("COMMIT"));
    cluster.until_commits_slowly(cluster.primary());
    link.cut();
    link.mend();
    let told = client.answer();
    assert_eq!(
        (told.tags, told.status),
        (vec!["COMMIT".to_owned()], 'I'),
        "{:?}",
        told.error
    );
    assert_eq!(rows(&proxy, "goes_on"), "-1");
}

/// An error of Halyard's question must not pass for a COMMIT: many clients look at nothing but errors.
#[test]
fn a_question_that_fails_fails_the_commit_aloud() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS asked_in_vain; CREATE TABLE asked_in_vain (n int)");
    let proxy = cluster.proxy().set("failover.resolve_commits", true).start();
    let mut client = proxy.connect();
    begin_with(&mut client, "asked_in_vain", 1);
    // It fails whatever takes any time; a COMMIT by itself is not limited by it.
    client.run("SET LOCAL statement_timeout = '1ms'");
    let mut direct = cluster.superuser(cluster.primary()).connect();
    direct.run("BEGIN; LOCK TABLE pg_catalog.pg_proc IN ACCESS EXCLUSIVE MODE");
    client.send(&query("COMMIT"));
    let told = client.answer();
    direct.run("ROLLBACK");
    if told.sqlstate().is_empty() {
        // Everything that it needed was in its server's caches.
        assert_eq!(told.tags, ["COMMIT"]);
        assert_eq!(rows(&proxy, "asked_in_vain"), "1");
    } else {
        assert_eq!(
            (told.sqlstate().as_str(), told.status),
            ("57014", 'I'),
            "{told:?}"
        );
        assert_eq!(rows(&proxy, "asked_in_vain"), "");
    }
    // A block that has failed by the client's own doing is rolled back without a word, as ever.
    begin_with(&mut client, "asked_in_vain", 2);
    client.failure("SELECT 1/0");
    assert_eq!(client.run("COMMIT").tags, ["ROLLBACK"]);
}

/// The primary dies with two COMMITs under way: one that has reached the next primary, and one that has not taken effect.
#[test]
fn the_next_primary_knows_what_became_of_a_commit() {
    let cluster = Cluster::breakable();
    let old = cluster.primary().clone();
    slow_to_commit(&cluster, "resolved", "600");
    let link = Link::to(old.port);
    let proxy = cluster
        .proxy()
        .through(&old.name, &link)
        .set("failover.resolve_commits", true)
        .start();
    let (mut committed, mut in_vain) = (proxy.connect(), proxy.connect());

    begin_with(&mut in_vain, "resolved", -1);
    in_vain.send(&query("COMMIT"));
    cluster.until_commits_slowly(&old);
    begin_with(&mut committed, "resolved", 1);
    // From the moment when the answer to COMMIT comes nothing comes from the old primary any more.
    let lost = Arc::new(AtomicBool::new(false));
    let losing = Arc::clone(&lost);
    link.on_message(move |frame| {
        let wanted = frame.kind == b'C' && frame.has("COMMIT\0");
        if losing.fetch_or(wanted, Ordering::SeqCst) || wanted {
            Act::LastWords(Vec::new())
        } else {
            Act::Pass
        }
    });
    committed.send(&query("COMMIT"));
    until("the answer to be lost", || lost.load(Ordering::SeqCst));
    link.cut();
    cluster.kill(&old.name);

    let told = committed.answer();
    assert_eq!(
        (told.tags, told.status),
        (vec!["COMMIT".to_owned()], 'I'),
        "{:?}",
        told.error
    );
    let told = in_vain.answer();
    assert_eq!(
        (told.sqlstate().as_str(), told.status),
        ("40001", 'I'),
        "{told:?}"
    );
    assert_ne!(cluster.primary().name, old.name);
    assert_eq!(rows(&proxy, "resolved"), "1");
    cluster.start(&old.name);
}

/// A write by itself in the extended protocol: prepared, bound so many times, and committed by its Sync.
fn batch(table: &str, numbers: &[&str]) -> Vec<u8> {
    let mut batch = parse("", &format!("INSERT INTO {table} VALUES ($1)"));
    for number in numbers {
        batch.extend([bind("", "", &[Some(number)]), execute("", 0)].concat());
    }
    batch.extend(sync());
    batch
}

/// Ends the connection on which a batch was committed, before that is told.
fn lose_the_end(link: &Link) {
    // The proxy's own questions go through the link as well.
    let (connection, done) = (AtomicU16::new(0), AtomicBool::new(false));
    link.on_message(move |frame| {
        if frame.kind == b'C' && frame.has("INSERT") {
            connection.store(frame.connection, Ordering::Relaxed);
        }
        let wanted = frame.kind == b'Z' && connection.load(Ordering::Relaxed) == frame.connection;
        if wanted && !done.swap(true, Ordering::Relaxed) {
            Act::LastWords(Vec::new())
        } else {
            Act::Pass
        }
    });
}

fn kinds(client: &mut Client) -> String {
    let messages = client.until_ready();
    messages.iter().map(|message| char::from(message.kind)).collect()
}

#[test]
fn a_write_by_itself_whose_answer_is_lost_is_told_as_it_is() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS by_itself; CREATE TABLE by_itself (n int CHECK (n < 9))");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    let mut ask = |numbers: &[&str]| {
        client.send(&batch("by_itself", numbers));
        kinds(&mut client)
    };
    // Halyard's question is not seen, nor does it change what an error does.
    assert_eq!(ask(&["1"]), "12CZ");
    assert_eq!(ask(&["9"]), "12EZ");

    lose_the_end(&link);
    assert_eq!(ask(&["2"]), "12CZ");
    lose_the_end(&link);
    assert_eq!(ask(&["3", "4"]), "12C2CZ");
    // Without the answer to the question nobody knows which transaction it was, and it may have committed.
    link.lose_before(QUESTION_ANSWERED, "00000001");
    assert_eq!(ask(&["5"]), "12CEZ");

    // The question has taken the unnamed statement away on the server; for the client it is there.
    client.send(&[bind("", "", &[Some("6")]), execute("", 0), sync()].concat());
    assert_eq!(kinds(&mut client), "2CZ");
    assert_eq!(rows(&proxy, "by_itself").replace(" 5", ""), "1 2 3 4 6");
    assert_eq!(
        proxy.metric("halyard_commits_resolved_total{outcome=\"committed\"}"),
        2.0
    );
}

#[test]
fn a_write_by_itself_that_failed_unheard_is_told_as_rolled_back() {
    let cluster = Cluster::shared();
    slow_to_commit(cluster, "never_by_itself", "600");
    let proxy = cluster.proxy().set("failover.resolve_commits", true).start();
    let mut client = proxy.connect();
    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    client.send(&batch("never_by_itself", &["-1"]));
    let mut direct = cluster.superuser(cluster.primary()).connect();
    let commits =
        "state = 'active' AND query LIKE '%pg_current_xact_id_if_assigned%' AND wait_event = 'PgSleep'";
    until("the commit to run", || {
        direct.value(&format!("SELECT count(*) FROM pg_stat_activity WHERE {commits}")) == "1"
    });
    direct.run(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {commits}"
    ));
    let told = client.answer();
    assert_eq!(
        (told.sqlstate().as_str(), told.status),
        ("40001", 'I'),
        "{told:?}"
    );
    assert_eq!(rows(&proxy, "never_by_itself"), "");
}

/// Where a question would break the protocol, or the statement, there is none.
#[test]
fn a_batch_that_copies_or_runs_outside_of_transactions_is_not_asked_for() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS not_asked; CREATE TABLE not_asked (n int)");
    let proxy = cluster.proxy().set("failover.resolve_commits", true).start();
    let mut client = proxy.connect();
    let copy = [
        parse("", "COPY not_asked FROM STDIN"),
        bind("", "", &[]),
        execute("", 0),
        copy_data(b"1\n"),
        copy_done(),
        sync(),
    ];
    client.send(&copy.concat());
    assert_eq!(kinds(&mut client), "12GCZ");
    let vacuum = [
        parse("", "VACUUM not_asked"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    client.send(&vacuum.concat());
    assert_eq!(kinds(&mut client), "12CZ");
    // Inside of a block the COMMIT is asked for, and nothing before it.
    client.run("BEGIN");
    client.send(&batch("not_asked", &["2"]));
    assert_eq!(kinds(&mut client), "12CZ");
    client.run("ROLLBACK");
    assert_eq!(rows(&proxy, "not_asked"), "1");
}
