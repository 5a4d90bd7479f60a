//! `failover.resolve_commits`: what became of a COMMIT whose answer was lost is found out, and told as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use crate::support::message::*;
use crate::support::{Act, Client, Cluster, HeldUp, LONG_PATIENCE, Link, Proxy, Silent, until};

/// How many columns the question has that goes with a COMMIT. The proxy's prober goes through the link as well, and asks for
/// a file of the WAL among others.
const QUESTION_COLUMNS: [u8; 2] = [0, 3];

/// Ends the connection on which that question is answered, before its answer.
fn lose_the_question(link: &Link) {
    let done = AtomicBool::new(false);
    link.on_message(move |frame| {
        let wanted = frame.kind == b'D' && frame.bytes[5..7] == QUESTION_COLUMNS && frame.has("00000001");
        if wanted && !done.swap(true, Ordering::Relaxed) {
            Act::LastWords(Vec::new())
        } else {
            Act::Pass
        }
    });
}

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
    lose_the_question(&link);
    let told = client.query("END");
    // Without the answer to the question nobody knows which transaction it was.
    assert_eq!((told.sqlstate().as_str(), told.status), ("08007", 'I'));

    assert_eq!(client.value("SELECT 'alive'"), "alive");
    assert_eq!(rows(&proxy, "answer_lost"), "1 2");
    assert_eq!(
        proxy.metric("halyard_commits_resolved_total{outcome=\"committed\"}"),
        2.0
    );
    assert_eq!(
        proxy.metric("halyard_backend_losses_total{outcome=\"resolved\"}"),
        2.0
    );
}

/// It costs no round trip: what the node does without an answer of its coming through.
#[test]
fn the_question_goes_in_the_same_flight_as_the_commit() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS same_flight; CREATE TABLE same_flight (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    let mut direct = cluster.superuser(cluster.primary()).connect();
    for (number, request) in [
        (1, query("COMMIT")),
        (2, [unnamed("COMMIT", &[]), sync()].concat()),
        (
            3,
            [unnamed("INSERT INTO same_flight VALUES (3)", &[]), sync()].concat(),
        ),
    ] {
        if number < 3 {
            begin_with(&mut client, "same_flight", number);
        }
        link.fall_silent_for(Silent::Answers);
        client.send(&request);
        until("it to be committed", || {
            direct.value("SELECT count(*) FROM same_flight") == number.to_string()
        });
        link.mend();
        let told = client.answer();
        assert!(told.error.is_none(), "{:?}", told.error);
    }
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

/// Commits, and from the moment when the answer comes nothing comes from the primary any more.
fn commit_unheard(client: &mut Client, primary: &Link) {
    let lost = Arc::new(AtomicBool::new(false));
    let losing = Arc::clone(&lost);
    primary.on_message(move |frame| {
        let wanted = frame.kind == b'C' && frame.has("COMMIT\0");
        if losing.fetch_or(wanted, Ordering::SeqCst) || wanted {
            Act::LastWords(Vec::new())
        } else {
            Act::Pass
        }
    });
    client.send(&query("COMMIT"));
    until("the answer to be lost", || lost.load(Ordering::SeqCst));
    primary.cut();
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
    commit_unheard(&mut committed, &link);
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

/// No commit waits for a standby.
const LOCALLY: [(&str, &str); 1] = [("synchronous_commit", "local")];

/// A proxy that reaches the primary and the two backups by links, and a client of it that waits for no standby.
struct Bereaved {
    primary: Link,
    backups: [Link; 2],
    proxy: Proxy,
    client: Client,
}

impl Bereaved {
    fn of(cluster: &Cluster) -> Self {
        let names = cluster.backups();
        let primary = Link::to(cluster.primary().port);
        let backups = names.each_ref().map(|name| Link::to(cluster.node(name).port));
        let wanted = cluster.proxy().through(&cluster.primary().name, &primary);
        let wanted = names
            .iter()
            .zip(&backups)
            .fold(wanted, |wanted, (name, link)| wanted.through(name, link));
        let proxy = wanted
            .set("failover.resolve_commits", true)
            // Until the last of them hears of the next primary a slow machine may take its time.
            .set("failover.hold", "10min")
            .start();
        let client = proxy.address.connect_with(&LOCALLY);
        Self {
            primary,
            backups,
            proxy,
            client,
        }
    }

    /// Commits a row without hearing of it, and says what the transaction's number was.
    fn commit_unheard(&mut self, table: &str) -> String {
        begin_with(&mut self.client, table, 1);
        let xid = self.client.value("SELECT pg_current_xact_id()");
        commit_unheard(&mut self.client, &self.primary);
        xid
    }

    /// The SQLSTATE of what its client is told, and how many outcomes of that kind were counted.
    fn told(&mut self, outcome: &str) -> (String, f64) {
        let told = self.client.answer();
        assert_eq!(told.status, 'I', "{told:?}");
        let metric = format!("halyard_commits_resolved_total{{outcome=\"{outcome}\"}}");
        (told.sqlstate(), self.proxy.metric(&metric))
    }
}

/// The primary dies with three COMMITs that it has done and nobody else has. The next one has never given out their numbers,
/// and then gives them out again, to others, which commit: that `committed` is not theirs.
#[test]
fn a_commit_that_died_with_its_primary_is_not_taken_for_another_of_its_number() {
    let cluster = Cluster::breakable();
    let old = cluster.primary().clone();
    cluster.prepare("DROP TABLE IF EXISTS died; CREATE TABLE died (n int)");
    let [mut asks_at_once, mut asks_late, mut looks_late] = [(); 3].map(|()| Bereaved::of(&cluster));

    let held_up = cluster
        .backups()
        .map(|name| HeldUp::new(&mut cluster.superuser(cluster.node(&name)).connect()));
    // The next primary's own doings draw some numbers as well; they must not get as far as those that follow.
    cluster
        .superuser(&old)
        .connect_with(&LOCALLY)
        .run("DO $$ BEGIN FOR i IN 1..1000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$");
    let xids =
        [&mut asks_at_once, &mut asks_late, &mut looks_late].map(|bereaved| bereaved.commit_unheard("died"));
    // This one's question is never answered as long as its number is in the future, and it asks again.
    for link in &asks_late.backups {
        link.on_message(|frame| match (frame.kind, frame.has("C22023\0")) {
            (b'E', true) => Act::LastWords(Vec::new()),
            _ => Act::Pass,
        });
    }
    // And this one does not see how the next primary becomes one.
    looks_late.backups.iter().for_each(Link::cut);
    cluster.kill(&old.name);
    held_up.iter().for_each(HeldUp::drop_what_waits);

    assert_eq!(asks_at_once.told("rolled_back"), ("40001".to_owned(), 1.0));
    let new = cluster.primary().clone();
    assert_ne!(new.name, old.name);
    let mut direct = cluster.superuser(&new).connect_with(&LOCALLY);
    let status = |xid: &String| format!("SELECT pg_xact_status('{xid}')");
    for xid in &xids {
        assert_eq!(direct.failure(&status(xid)), "22023", "{xid} is in the future");
    }

    direct.run(&format!(
        "DO $$ BEGIN WHILE pg_current_xact_id() <= '{}' LOOP COMMIT; END LOOP; END $$",
        xids[2]
    ));
    for xid in &xids {
        assert_eq!(direct.value(&status(xid)), "committed", "{xid} is a stranger's");
    }
    assert_eq!(asks_late.told("rolled_back"), ("40001".to_owned(), 1.0));
    // Who has not seen where the histories part cannot tell the one from the other.
    looks_late.backups.iter().for_each(Link::mend);
    assert_eq!(looks_late.told("unknown"), ("08007".to_owned(), 1.0));

    for bereaved in [&asks_at_once, &asks_late, &looks_late] {
        assert_eq!(
            bereaved
                .proxy
                .metric("halyard_commits_resolved_total{outcome=\"committed\"}"),
            0.0
        );
        assert_eq!(rows(&bereaved.proxy, "died"), "");
    }
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
    lose_the_question(&link);
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

/// It listens on through the connection that listens for all: what it takes up with the transaction, and what it tells itself,
/// reaches it however its own connection ends.
#[test]
fn what_became_of_a_listeners_writes_is_looked_up() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS of_a_listener; CREATE TABLE of_a_listener (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    client.run("LISTEN elsewhere");

    begin_with(&mut client, "of_a_listener", 1);
    link.lose_before(b'C', "COMMIT\0");
    assert_eq!(client.run("COMMIT").tags, ["COMMIT"]);
    lose_the_end(&link);
    client.send(&batch("of_a_listener", &["2"]));
    assert_eq!(kinds(&mut client), "12CZ");

    begin_with(&mut client, "of_a_listener", 3);
    client.run("LISTEN within");
    client.run("NOTIFY elsewhere, 'own'");
    link.lose_before(b'C', "COMMIT\0");
    client.send(&query("COMMIT"));
    // In which order is nobody's promise.
    let told: Vec<_> = client.until_ready().iter().map(ToString::to_string).collect();
    let has = |words: &str| told.iter().any(|told| told.contains(words));
    assert!(has("CommandComplete(COMMIT)"), "{told:?}");
    assert!(has("NotificationResponse(elsewhere, own)"), "{told:?}");
    assert!(
        has("notifications may have been lost"),
        "nobody knows whether it heard all of what it has come to: {told:?}"
    );
    let looked_up = |outcome: &str| {
        proxy.metric(&format!(
            "halyard_commits_resolved_total{{outcome=\"{outcome}\"}}"
        ))
    };
    assert_eq!(looked_up("committed"), 3.0);
    assert_eq!(rows(&proxy, "of_a_listener"), "1 2 3");
    for channel in ["elsewhere", "within"] {
        proxy.connect().run(&format!("NOTIFY {channel}, 'heard'"));
        assert_eq!(
            client.receive().to_string(),
            format!("NotificationResponse({channel}, heard)")
        );
    }
}

/// What it leaves in its session is gone with the connection, and that is told behind the truth about the transaction.
#[test]
fn a_commit_that_is_looked_up_is_told_before_what_its_session_has_lost() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS of_a_changed; CREATE TABLE of_a_changed (n int)");
    let (link, proxy) = linked(cluster);
    let mut client = proxy.connect();
    let lost_with = |client: &mut Client, what: &str| {
        let told = client.query("SELECT 1");
        assert_eq!((told.sqlstate().as_str(), told.status), ("57P01", 'I'));
        let detail = told.error.unwrap().field(b'D');
        assert!(detail.contains(what), "{detail}");
        assert_eq!(client.value("SELECT 1"), "1");
    };

    begin_with(&mut client, "of_a_changed", 1);
    client.run("SET work_mem = '5MB'");
    link.lose_before(b'C', "COMMIT\0");
    assert_eq!(client.run("COMMIT").tags, ["COMMIT"]);
    lost_with(&mut client, "the session's changed settings");
    assert_eq!(client.value("SHOW work_mem"), "4MB");

    begin_with(&mut client, "of_a_changed", 2);
    client.run("CREATE TEMP TABLE gone (n int)");
    link.lose_before(b'C', "COMMIT\0");
    assert_eq!(client.run("COMMIT").tags, ["COMMIT"]);
    lost_with(&mut client, "the session's temporary objects");

    // What is laid down in it does not come back.
    client.run("SET search_path = before");
    begin_with(&mut client, "public.of_a_changed", 4);
    client.run("RESET search_path");
    link.lose_before(b'C', "COMMIT\0");
    assert_eq!(client.run("COMMIT").tags, ["COMMIT"]);
    lost_with(&mut client, "the session's changed settings");
    assert_eq!(client.value("SHOW search_path"), "\"$user\", public");

    // A write by itself of who keeps something.
    client.run("SELECT pg_advisory_lock(7700)");
    lose_the_end(&link);
    client.send(&batch("of_a_changed", &["3"]));
    assert_eq!(kinds(&mut client), "12CZ");
    lost_with(&mut client, "the session's advisory locks");
    assert_eq!(rows(&proxy, "of_a_changed"), "1 2 3 4");
}
