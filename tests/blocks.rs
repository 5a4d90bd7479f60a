//! Transaction blocks that say behind their BEGIN whether they read only: which node runs them, and what comes of it.

use std::sync::OnceLock;

use crate::support::message::*;
use crate::support::{Client, Cluster, Link, Proxy, Script, differential_on, node, python, until};

fn primary_port() -> u16 {
    Cluster::shared().primary().port
}

/// Reads go to the replicas whatever their session has written; with one connection to each node, one that is not
/// given back is missed.
fn eventual() -> &'static Proxy {
    static PROXY: OnceLock<Proxy> = OnceLock::new();
    PROXY.get_or_init(|| Cluster::shared().eventual().set("pool.size", 1).start())
}

fn table(name: &str) {
    Cluster::shared().prepare(&format!(
        "DROP TABLE IF EXISTS {name}; CREATE TABLE {name} (a int)"
    ));
    Cluster::shared().replicated();
}

#[track_caller]
fn assert_on_standby(client: &mut Client, what: &str) {
    let port = client.server_port();
    assert!(
        Cluster::shared().replica_ports().contains(&port),
        "{what} runs on port {port}"
    );
}

#[track_caller]
fn assert_on_primary(client: &mut Client, what: &str) {
    assert_eq!(client.server_port(), primary_port(), "{what}");
}

#[test]
fn a_block_that_is_said_to_read_only_goes_on_on_a_standby() {
    table("moved");
    let mut client = eventual().connect();
    let mut other = eventual().connect();
    for (statements, isolation) in [
        (&["BEGIN", "SET TRANSACTION READ ONLY"][..], "read committed"),
        (
            &["START TRANSACTION", "set transaction read only, not deferrable;"],
            "read committed",
        ),
        (
            &[
                "BEGIN",
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            ],
            "repeatable read",
        ),
        (
            &[
                "BEGIN ISOLATION LEVEL REPEATABLE READ",
                "SET TRANSACTION READ ONLY",
            ],
            "repeatable read",
        ),
        (
            &[
                "BEGIN",
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                "SET TRANSACTION READ ONLY",
            ],
            "repeatable read",
        ),
        (&["BEGIN; SET TRANSACTION READ ONLY"], "read committed"),
        (
            &["BEGIN; SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION READ ONLY"],
            "repeatable read",
        ),
    ] {
        for statement in statements {
            assert_eq!(client.run(statement).status, 'T', "{statement}");
        }
        assert_on_standby(&mut client, statements[0]);
        assert_eq!(client.value("SHOW transaction_read_only"), "on");
        assert_eq!(client.value("SHOW transaction_isolation"), isolation);
        // The primary has its only connection back.
        other.run("INSERT INTO moved VALUES (1)");
        assert_eq!(client.failure("INSERT INTO moved VALUES (1)"), "25006");
        assert_eq!(client.query("SELECT 1").sqlstate(), "25P02");
        let answer = client.run("ROLLBACK");
        assert_eq!((answer.status, answer.tags), ('I', vec!["ROLLBACK".to_owned()]));
        client.run("INSERT INTO moved VALUES (2)");
    }
    let sql = "BEGIN; SET TRANSACTION READ ONLY; SELECT inet_server_port(); COMMIT";
    assert_ne!(client.value(sql), primary_port().to_string());
}

#[test]
fn a_block_moves_in_the_extended_protocol_and_in_a_pipeline() {
    let mut client = eventual().connect();
    let extended = |sql: &str| [unnamed(sql, &[]), sync()].concat();
    for sql in ["BEGIN", "SET TRANSACTION READ ONLY"] {
        client.send(&extended(sql));
        client.until_ready();
    }
    assert_on_standby(&mut client, "the extended protocol");
    client.run("COMMIT");
    // Prepared in a part of its batch that a Flush ends, as asyncpg does; prepared and not run, it says nothing.
    let prepared = [
        parse("read_only", "SET TRANSACTION READ ONLY"),
        describe_statement("read_only"),
        flush(),
    ]
    .concat();
    client.run("BEGIN");
    client.send(&prepared);
    client.until_kind(b'n');
    client.send(&[bind("", "read_only", &[]), execute("", 0), sync()].concat());
    client.until_ready();
    assert_on_standby(&mut client, "a statement prepared before");
    client.run("COMMIT");
    client.run("BEGIN");
    client.send(&[close_statement("read_only"), sync(), prepared, sync()].concat());
    client.until_ready();
    client.until_ready();
    assert_on_primary(&mut client, "a statement that is not run");
    client.run("COMMIT");
    // What was bound without a name before does not count.
    client.send(&[unnamed("CREATE TEMP TABLE gone () ON COMMIT DROP", &[]), sync()].concat());
    client.until_ready();
    client.send(&extended("SELECT inet_server_port()"));
    let row = client
        .until_ready()
        .into_iter()
        .find(|message| message.kind == b'D');
    assert_ne!(row.unwrap().columns()[0], Some(primary_port().to_string()));
    for pipeline in [
        ["BEGIN", "SET TRANSACTION READ ONLY", "SELECT inet_server_port()"].map(extended),
        ["BEGIN", "SET TRANSACTION READ ONLY", "SELECT inet_server_port()"].map(query),
    ] {
        client.send(&pipeline.concat());
        client.until_ready();
        client.until_ready();
        let row = client
            .until_ready()
            .into_iter()
            .find(|message| message.kind == b'D');
        let port = row.unwrap().columns()[0].clone().unwrap();
        assert_ne!(port, primary_port().to_string());
        client.run("COMMIT");
    }
}

/// What drivers send that pipeline: in one batch, before one Sync. It stayed on the primary.
#[test]
fn a_block_opens_on_a_standby_whose_batch_says_that_it_reads_only() {
    table("batched");
    let mut client = eventual().connect();
    let asked = |client: &mut Client, statements: &[&str]| {
        let batch: Vec<Vec<u8>> = statements.iter().map(|sql| unnamed(sql, &[])).collect();
        client.send(&[batch.concat(), sync()].concat());
        client.answer()
    };
    let begin = ["BEGIN", "SET TRANSACTION READ ONLY"];
    let told = asked(&mut client, &begin);
    assert_eq!(
        (told.tags, told.status),
        (vec!["BEGIN".to_owned(), "SET".to_owned()], 'T')
    );
    assert_on_standby(&mut client, "what was begun in one batch");
    assert_eq!(client.value("SHOW transaction_read_only"), "on");
    client.run("COMMIT");
    let told = asked(
        &mut client,
        &[begin[0], begin[1], "SELECT inet_server_port()", "COMMIT"],
    );
    assert_ne!(told.rows[0][0], Some(primary_port().to_string()));

    // By names that were given before, as well.
    client.send(&[parse("b", begin[0]), parse("ro", begin[1]), sync()].concat());
    client.until_ready();
    let run = |name: &str| [bind("", name, &[]), execute("", 0)].concat();
    client.send(&[run("b"), run("ro"), sync()].concat());
    client.until_ready();
    assert_on_standby(&mut client, "what was prepared before");
    client.run("COMMIT");

    // What is only prepared says nothing, and where something writes all of it stays.
    client.send(&[run("b"), parse("", begin[1]), bind("", "", &[]), sync()].concat());
    client.until_ready();
    assert_on_primary(&mut client, "a SET TRANSACTION that is not run");
    client.run("COMMIT");
    let told = asked(
        &mut client,
        &[begin[0], "INSERT INTO batched VALUES (1)", begin[1]],
    );
    assert_eq!(told.sqlstate(), "");
    assert_on_primary(&mut client, "a block that has written");
    client.run("COMMIT");
    let told = asked(&mut client, &["/* halyard.route: primary */ BEGIN", begin[1]]);
    assert_eq!(told.sqlstate(), "");
    assert_on_primary(&mut client, "a block that wants to");
    client.run("COMMIT");
}

#[test]
fn a_block_in_which_something_has_run_stays() {
    table("stays");
    let mut client = eventual().connect();
    for statements in [
        &["BEGIN", "SELECT 1", "SET TRANSACTION READ ONLY"][..],
        &["BEGIN; SELECT 1", "SET TRANSACTION READ ONLY"],
        &["BEGIN", "SET LOCAL work_mem = '1MB'", "SET TRANSACTION READ ONLY"],
        &["BEGIN", "SAVEPOINT a", "SET TRANSACTION READ ONLY"],
        &[
            "BEGIN",
            "LOCK TABLE stays IN ACCESS SHARE MODE",
            "SET TRANSACTION READ ONLY",
        ],
        &["BEGIN READ WRITE; SET TRANSACTION READ ONLY"],
        &["BEGIN ISOLATION LEVEL SERIALIZABLE", "SET TRANSACTION READ ONLY"],
        &["BEGIN", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY"],
        &["BEGIN; SET TRANSACTION READ ONLY; SET TRANSACTION READ WRITE"],
    ] {
        for statement in statements {
            client.run(statement);
        }
        assert_on_primary(&mut client, statements[0]);
        client.run("ROLLBACK");
    }
    let batch = ["BEGIN", "SELECT count(*) FROM stays"]
        .map(|sql| unnamed(sql, &[]))
        .concat();
    client.send(&[batch, sync()].concat());
    client.until_ready();
    client.run("SET TRANSACTION READ ONLY");
    assert_on_primary(&mut client, "a batch with a query behind BEGIN");
    client.run("ROLLBACK");
    // Whose requests go to the primary by its own wish.
    client.run("SET halyard.route = 'primary'");
    client.run("BEGIN");
    client.run("SET TRANSACTION READ ONLY");
    assert_on_primary(&mut client, "halyard.route");
    client.run("ROLLBACK");
}

/// A session whose transactions read only unless they say otherwise.
#[test]
fn a_block_that_is_said_to_write_goes_on_on_the_primary() {
    table("written_after_all");
    let mut client = eventual()
        .address
        .connect_with(&[("options", "-c default_transaction_read_only=on")]);
    let begin = [
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "SET TRANSACTION READ WRITE",
    ];
    for begin in [&begin[..], &["BEGIN READ ONLY", "SET TRANSACTION READ WRITE"]] {
        for statement in begin {
            assert_eq!(client.run(statement).status, 'T');
        }
        client.run("INSERT INTO written_after_all VALUES (1)");
        assert_on_primary(&mut client, begin[0]);
        client.run("COMMIT");
    }
    client.run("BEGIN");
    client.run("SELECT 1");
    assert_eq!(client.failure("SET TRANSACTION READ WRITE"), "25001");
    client.run("ROLLBACK");
    let read = "/* halyard.route: primary */ SELECT count(*) FROM written_after_all";
    assert_eq!(client.value(read), "2");
}

/// PostgreSQL lets a READ ONLY transaction listen, and a standby nobody.
#[test]
fn a_read_only_block_that_begins_with_listen_goes_on_on_the_primary() {
    let proxy = Cluster::shared().eventual().start();
    let mut client = proxy.connect();
    let mut other = proxy.connect();
    client.run("BEGIN READ ONLY");
    client.run("LISTEN from_a_block");
    assert_on_primary(&mut client, "a block that listens");
    assert_eq!(client.value("SHOW transaction_read_only"), "on");
    client.run("COMMIT");
    other.run("NOTIFY from_a_block, 'heard'");
    assert!(client.receive().body.ends_with(b"from_a_block\0heard\0"));
    client.run("BEGIN READ ONLY");
    client.run("UNLISTEN from_a_block");
    client.run("COMMIT");
    client.run("LISTEN another");
    other.run("NOTIFY from_a_block, 'not heard'; NOTIFY another, 'heard'");
    assert!(client.receive().body.ends_with(b"another\0heard\0"));
    // Without anything to give up, UNLISTEN is as good on a standby.
    other.run("BEGIN READ ONLY");
    other.run("UNLISTEN *");
    assert_on_standby(&mut other, "UNLISTEN of a client that does not listen");
    other.run("COMMIT");
}

/// A standby refused it (25006), though the primary would take it and it is Halyard that listens.
#[test]
fn a_read_only_block_that_has_read_on_a_standby_listens() {
    let (mut client, mut other) = (eventual().connect(), eventual().connect());
    let begin = |client: &mut Client| {
        client.run("BEGIN READ ONLY");
        assert_on_standby(client, "a block that reads");
    };
    // It hears these alone, and the first of them only if it was notified of nothing before.
    let hears = |client: &mut Client, other: &mut Client, channels: &[&str]| {
        for channel in ["one", "two", "three", "four"] {
            other.run(&format!("NOTIFY aside_{channel}, 'now'"));
        }
        for channel in channels {
            let told = client.receive().body;
            assert!(
                told.ends_with(format!("aside_{channel}\0now\0").as_bytes()),
                "{told:?}"
            );
        }
        other.run("NOTIFY aside_end");
        assert!(client.receive().body.ends_with(b"aside_end\0\0"));
    };
    client.run("LISTEN aside_end");

    begin(&mut client);
    assert_eq!(client.run("LISTEN aside_one").tags, ["LISTEN"]);
    assert_on_standby(&mut client, "a block that listens");
    client.run("SAVEPOINT here");
    client.run("LISTEN aside_two");
    client.run("ROLLBACK TO here");
    let listen = [parse("by_name", "LISTEN aside_three"), bind("", "by_name", &[])].concat();
    client.send(&[listen, describe_portal(""), execute("", 0), sync()].concat());
    let told = client.until_ready();
    let kinds: String = told.iter().map(|message| char::from(message.kind)).collect();
    assert_eq!(kinds, "12nCZ");
    assert_eq!(told[3].body, b"LISTEN\0");
    client.run("COMMIT");
    hears(&mut client, &mut other, &["one", "three"]);

    // The same statement once more, without its name, in a pipeline, and rolled back.
    begin(&mut client);
    client.send(
        &[
            unnamed("UNLISTEN aside_one", &[]),
            unnamed("LISTEN aside_four", &[]),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(client.answer().tags, ["UNLISTEN", "LISTEN"]);
    client.send(&[bind("p", "by_name", &[]), execute("p", 0), sync()].concat());
    assert_eq!(client.answer().tags, ["LISTEN"]);
    assert_eq!(client.run("ROLLBACK").tags, ["ROLLBACK"]);
    hears(&mut client, &mut other, &["one", "three"]);

    // What has failed is refused as anything is, and rolled back by COMMIT.
    begin(&mut client);
    client.run("LISTEN aside_four");
    assert_eq!(client.failure("SELECT 1 / 0"), "22012");
    assert_eq!(client.failure("UNLISTEN *"), "25P02");
    assert_eq!(client.run("COMMIT").tags, ["ROLLBACK"]);
    hears(&mut client, &mut other, &["one", "three"]);

    begin(&mut client);
    client.send(&[query("UNLISTEN *"), query("LISTEN aside_end"), query("COMMIT")].concat());
    for tag in ["UNLISTEN", "LISTEN", "COMMIT"] {
        assert_eq!(client.answer().tags, [tag]);
    }
    hears(&mut client, &mut other, &[]);
    // Nothing of it is left to whoever has the standby's backend next.
    let numbers =
        "SELECT concat(current_setting('halyard.heard_0', true), current_setting('halyard.heard_1', true))";
    for _ in 0..12 {
        assert_eq!(other.value(numbers), "");
    }
}

/// Message for message as the primary answers, which a standby does not.
#[test]
fn listening_in_a_read_only_block_is_answered_as_by_the_primary() {
    let batch = |sql: &str| [unnamed(sql, &[]), sync()].concat();
    differential_on(
        &Script::new()
            .query("BEGIN READ ONLY")
            .query("SELECT 1")
            .query("LISTEN ro_a")
            .query("UNLISTEN \"RO_A\"")
            .query("SAVEPOINT s")
            .query("LISTEN")
            .query("LISTEN ro_b")
            .query("ROLLBACK TO s")
            .query("/* c */ listen ro_c;")
            .batch(&[unnamed("LISTEN ro_d", &[]), unnamed("SELECT 2", &[])])
            .batch(&[parse("l", "UNLISTEN *"), describe_statement("l")])
            .batch(&[
                bind("x", "l", &[]),
                describe_portal("x"),
                execute("x", 1),
                execute("x", 0),
            ])
            .batch(&[bind("x", "l", &[]), execute("x", 0)])
            .query("COMMIT")
            .query("BEGIN READ ONLY; SELECT 3")
            .query("LISTEN ro_a")
            .send([batch("LISTEN ro_b"), batch("SELECT 4"), query("COMMIT")].concat())
            .until_ready(3)
            .batch(&[bind("", "l", &[]), execute("", 0)])
            .query("UNLISTEN *")
            // Among other statements of one message, and errors where the client has written what they are of.
            .query("BEGIN READ ONLY")
            .query("SELECT 5")
            .query("SELECT 6; LISTEN ro_a; SET LOCAL work_mem = '5MB';; UNLISTEN \"ro_b\"; SHOW work_mem")
            .query("SAVEPOINT s")
            .query("LISTEN \"ro_é\"; LISTEN ro_b; SELECT 'é', nothing")
            .query("ROLLBACK TO s; LISTEN ro_c; SELECT 7, nothing")
            .query("ROLLBACK TO s")
            .query("SELECT 8; LISTEN ro_d; SELEC 9")
            .query("ROLLBACK TO s; LISTEN ro_d; COPY (SELECT 10) TO STDOUT; UNLISTEN *; DO $$BEGIN PERFORM 1 / 0; END$$")
            .query("ROLLBACK; LISTEN ro_e; SELECT 11")
            .query("SELECT pg_listening_channels()")
            .query("BEGIN READ ONLY")
            .query("SELECT 12; LISTEN ro_f; COMMIT; SELECT 13; LISTEN ro_g")
            .query("SELECT pg_listening_channels() ORDER BY 1")
            .query("UNLISTEN *")
            // What a standby cannot run at all.
            .query("BEGIN READ ONLY")
            .query("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            .query("SHOW transaction_isolation")
            .query("SHOW transaction_read_only")
            .query("COMMIT"),
        &eventual().address,
    );
}

/// A standby refuses some of it, and has other locks and other values of sequences than the primary.
#[test]
fn a_read_only_block_that_has_read_on_a_standby_does_what_is_the_primarys() {
    let proxy = Cluster::shared().eventual().start();
    let mut other = proxy.connect();
    let mut client = proxy.connect();
    let begin = |client: &mut Client| {
        client.run("BEGIN READ ONLY");
        assert_on_standby(client, "a block that reads");
    };
    begin(&mut client);
    assert_eq!(client.value("SELECT pg_try_advisory_xact_lock(4811)"), "t");
    assert_on_primary(&mut client, "a block that has locked");
    assert_eq!(client.value("SHOW transaction_read_only"), "on");
    assert_eq!(other.value("SELECT pg_try_advisory_xact_lock(4811)"), "f");
    client.run("COMMIT");
    assert_eq!(other.value("SELECT pg_try_advisory_xact_lock(4811)"), "t");

    begin(&mut client);
    client.send(&[unnamed("SELECT pg_advisory_lock(4812)", &[]), sync()].concat());
    assert_eq!(client.answer().status, 'T');
    client.run("COMMIT");
    assert_eq!(other.value("SELECT pg_try_advisory_lock(4812)"), "f");
    assert_eq!(client.value("SELECT pg_advisory_unlock(4812)"), "t");

    begin(&mut client);
    assert_eq!(client.value("SELECT txid_current() > 0"), "t");
    client.run("COMMIT");

    other.run("LISTEN told");
    begin(&mut client);
    assert_eq!(client.run("NOTIFY told, 'by a block'").tags, ["NOTIFY"]);
    client.run("COMMIT");
    assert!(other.receive().body.ends_with(b"told\0by a block\0"));
    other.run("BEGIN READ ONLY");
    assert_on_standby(&mut other, "a block that reads");
    assert_eq!(other.value("SELECT pg_listening_channels()"), "told");
    other.run("COMMIT");
    other.run("UNLISTEN told");

    client.run("DROP SEQUENCE IF EXISTS drawn_in_a_block");
    client.run("CREATE SEQUENCE drawn_in_a_block");
    let drawn = client.value("SELECT nextval('drawn_in_a_block')");
    begin(&mut client);
    assert_eq!(client.value("SELECT currval('drawn_in_a_block')"), drawn);
    client.run("COMMIT");
    client.run("DROP SEQUENCE drawn_in_a_block");
}

/// As drivers send it that prepare in a round trip of its own, and beside what else a message may hold.
#[test]
fn a_block_moves_whatever_form_its_statement_has() {
    let proxy = Cluster::shared().eventual().start();
    let (mut client, mut other) = (proxy.connect(), proxy.connect());
    let lock = "SELECT pg_advisory_xact_lock(4814)";
    let locked = |other: &mut Client| other.value("SELECT NOT pg_try_advisory_xact_lock(4814)") == "t";
    for read in [true, false] {
        client.run("BEGIN READ ONLY");
        if read {
            client.send(&[parse("reads", "SELECT 1"), sync()].concat());
            client.answer();
            client.send(&[bind("", "reads", &[]), execute("", 0), sync()].concat());
            client.answer();
        }
        client.send(&[parse("locks", lock), describe_statement("locks"), sync()].concat());
        assert!(client.answer().error.is_none());
        client.send(&[bind("", "locks", &[]), execute("", 0), sync()].concat());
        assert!(client.answer().error.is_none());
        assert!(locked(&mut other));
        client.run("COMMIT");
        client.send(&[close_statement("reads"), close_statement("locks"), sync()].concat());
        client.answer();
    }
    // With something else in its message, that may even end the block.
    client.run("BEGIN READ ONLY");
    assert_on_standby(&mut client, "a block that reads");
    client.run(&format!("{lock}; SAVEPOINT s"));
    assert!(locked(&mut other));
    client.run("ROLLBACK TO s");
    client.run("COMMIT");
    // A batch that locks stays where the lock is, although it says that it reads only.
    client.run("BEGIN");
    client.send(
        &[
            unnamed("SET TRANSACTION READ ONLY", &[]),
            unnamed(lock, &[]),
            sync(),
        ]
        .concat(),
    );
    assert!(client.answer().error.is_none());
    assert!(locked(&mut other));
    client.run("COMMIT");
    // What has failed behind a Flush is answered as ever.
    client.run("BEGIN READ ONLY");
    client.send(&[unnamed("SELECT 1 / 0", &[]), flush()].concat());
    while client.receive().kind != b'E' {}
    client.send(&[unnamed(lock, &[]), sync()].concat());
    assert_eq!(client.answer().status, 'E');
    client.run("ROLLBACK");
    // A prepared savepoint behind a statement that is only prepared, and a portal that is kept for later.
    client.send(&[parse("saves", "SAVEPOINT s"), parse("reads", "SELECT 1"), sync()].concat());
    client.answer();
    let saves = [parse("", "SELECT 1"), bind("", "saves", &[]), execute("", 0)].concat();
    let begins = [bind("", "reads", &[]), execute("", 1)].concat();
    let keeps = [bind("", "reads", &[])].concat();
    for leaves in [saves, begins, keeps] {
        client.run("BEGIN READ ONLY");
        client.send(&[leaves, sync()].concat());
        assert!(client.answer().error.is_none());
        assert_eq!(client.failure(lock), "0A000");
        client.run("ROLLBACK");
    }
}

/// A block whose BEGIN is not answered yet is one as well: what was written in it does not stay behind.
#[test]
fn a_block_that_has_written_in_a_pipeline_does_not_move() {
    table("piped");
    let mut client = eventual().connect();
    for write in [
        query("INSERT INTO piped VALUES (1)"),
        [unnamed("INSERT INTO piped VALUES (1)", &[]), sync()].concat(),
    ] {
        let begins = [query("BEGIN"), write].concat();
        let ends = [
            query("SET TRANSACTION READ ONLY"),
            query("SELECT 1"),
            query("COMMIT"),
        ]
        .concat();
        client.send(&[begins, ends].concat());
        for _ in 0..5 {
            assert!(client.answer().error.is_none());
        }
    }
    let read = "/* halyard.route: primary */ SELECT count(*) FROM piped";
    assert_eq!(client.value(read), "2");
}

/// The backend of a block that had gone on on the primary was not made to listen to what the client listens to.
#[test]
fn a_block_that_goes_on_on_the_primary_listens_to_what_its_client_did() {
    let proxy = Cluster::shared().eventual().start();
    let mut client = proxy.connect();
    client.run("LISTEN first");
    client.run("BEGIN READ ONLY");
    assert_on_standby(&mut client, "a block that reads");
    client.run("NOTIFY nobody_hears");
    client.run("LISTEN then_second");
    assert_eq!(client.value("SELECT pg_listening_channels()"), "first");
    client.run("COMMIT");
    let channels = "SELECT string_agg(c, ' ' ORDER BY c) FROM pg_listening_channels() c";
    assert_eq!(client.value(channels), "first then_second");
    // A question of Halyard's own stands behind a RESET: nothing is said aside in front of it.
    let mut client = proxy.address.connect_with(&[("application_name", "resets")]);
    client.run("BEGIN READ ONLY");
    assert_on_standby(&mut client, "a block that reads");
    assert_eq!(client.failure("RESET ALL; LISTEN third"), "25006");
    client.run("ROLLBACK");
    assert_eq!(client.value("SHOW application_name"), "resets");
}

/// A snapshot, a savepoint or a cursor is not to be had on another node; and a lock there would keep nobody out.
#[test]
fn a_read_only_block_that_cannot_move_takes_no_lock_on_a_standby() {
    let proxy = eventual();
    let mut client = proxy.connect();
    let bound = [bind("kept", "reads", &[]), sync()].concat();
    let stays: [(&[&str], &[u8]); 4] = [
        (&["BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"], b""),
        (&["BEGIN READ ONLY", "SAVEPOINT s"], b""),
        (&["BEGIN READ ONLY", "DECLARE c CURSOR FOR SELECT 1"], b""),
        (&["BEGIN READ ONLY"], &bound),
    ];
    client.send(&[parse("reads", "SELECT 1"), sync()].concat());
    client.answer();
    for (begin, then) in stays {
        for (refused, sqlstate) in [
            ("SELECT pg_try_advisory_xact_lock(4813)", "0A000"),
            ("NOTIFY nobody", "25006"),
        ] {
            for statement in begin {
                client.run(statement);
            }
            assert_on_standby(&mut client, begin[0]);
            client.send(then);
            if !then.is_empty() {
                client.answer();
            }
            let told = client.query(refused);
            assert_eq!(told.sqlstate(), sqlstate, "{begin:?}: {told:?}");
            assert_eq!(client.failure("SELECT 1"), "25P02");
            assert_eq!(client.run("COMMIT").tags, ["ROLLBACK"]);
        }
    }
    // Taken first, it is the primary's.
    client.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    client.run("SELECT pg_advisory_xact_lock(4813)");
    assert_on_primary(&mut client, "a block that begins with a lock");
    client.run("COMMIT");
}

/// The server kept what it had to say of the beginning of the batch to itself, and Halyard waited for that before it sent the
/// rest: for ever.
#[test]
fn a_batch_that_is_cut_before_what_is_the_primarys_is_answered() {
    let mut client = eventual().connect();
    let long = "x".repeat(10_000);
    for (first, told) in [("SELECT $1::text", "0A000"), ("SELECT length($1)", "0A000")] {
        client.run("BEGIN READ ONLY");
        assert_on_standby(&mut client, "a block that reads");
        client.send(
            &[
                parse("", first),
                bind("", "", &[Some(&long)]),
                execute("", 0),
                unnamed("SELECT pg_advisory_xact_lock(4814)", &[]),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(client.answer().sqlstate(), told);
        client.run("ROLLBACK");
    }
    client.run("BEGIN READ ONLY");
    assert_on_standby(&mut client, "a block that reads");
    client.send(
        &[
            parse("", "SELECT $1::text"),
            bind("", "", &[Some(&long)]),
            execute("", 0),
            unnamed("NOTIFY nobody", &[]),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(client.answer().sqlstate(), "25006");
    client.run("ROLLBACK");
}

/// A portal that one request binds and the next runs took its lock on the standby.
#[test]
fn a_lock_that_is_bound_before_it_is_run_is_the_primarys() {
    let proxy = Cluster::shared().eventual().start();
    let (mut client, mut other) = (proxy.connect(), proxy.connect());
    client.run("BEGIN READ ONLY");
    assert_on_standby(&mut client, "a block that reads");
    let lock = "SELECT pg_try_advisory_xact_lock(4815)";
    client.send(&[parse("", lock), bind("later", "", &[]), sync()].concat());
    assert_eq!(client.answer().error, None);
    client.send(&[execute("later", 0), sync()].concat());
    assert_eq!(client.answer().rows[0][0].as_deref(), Some("t"));
    assert_on_primary(&mut client, "a block that has locked");
    other.run("BEGIN");
    assert_eq!(other.value(lock), "f");
    other.run("ROLLBACK");
    client.run("COMMIT");
}

/// The lock stayed on the standby's backend when its block went on on the primary, and met whoever came next.
#[test]
fn a_block_whose_functions_leave_something_behind_stays() {
    let cluster = Cluster::shared();
    cluster.prepare(
        "CREATE OR REPLACE FUNCTION locks_unseen() RETURNS int LANGUAGE plpgsql STABLE AS \
         $$BEGIN PERFORM pg_advisory_lock(4816); RETURN 1; END$$",
    );
    cluster.replicated();
    let proxy = cluster.eventual().set("pool.size", 1).start();
    let mut client = proxy.connect();
    client.run("BEGIN READ ONLY");
    client.run("SELECT locks_unseen()");
    let told = client.query("NOTIFY nobody");
    assert!(matches!(told.sqlstate().as_str(), "25006" | ""), "{told:?}");
    client.run("ROLLBACK");
    client.leave();
    for name in ["ro1", "ro2", "ro3"] {
        let mut there = cluster.superuser(cluster.node(name)).connect();
        until("the lock to be gone", || {
            there.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4816") == "0"
        });
    }
}

#[test]
fn without_a_standby_a_block_stays_on_the_primary() {
    let cluster = Cluster::shared();
    let primary = cluster.primary().name.clone();
    let proxy = cluster.proxy().only_nodes(|name| name == primary).start();
    let mut client = proxy.connect();
    client.run("BEGIN");
    client.run("SET TRANSACTION READ ONLY");
    assert_on_primary(&mut client, "without standbys");
    assert_eq!(client.value("SHOW transaction_read_only"), "on");
    client.run("COMMIT");
}

#[test]
fn a_block_is_lost_with_the_standby_that_it_moved_to() {
    let cluster = Cluster::shared();
    let link = Link::to(cluster.node("ro1").port);
    let proxy = cluster.before_one_standby("ro1", &link);
    let mut client = proxy.connect();
    let moved = |client: &mut Client| {
        client.run("BEGIN");
        client.run("SET TRANSACTION READ ONLY");
        let moved = client.server_port() != primary_port();
        if !moved {
            client.run("ROLLBACK");
        }
        moved
    };
    until("a block to move", || moved(&mut client));
    link.cut();
    let lost = client.query("SELECT 1");
    assert_eq!((lost.sqlstate().as_str(), lost.status), ("40001", 'E'));
    assert_eq!(client.run("ROLLBACK").status, 'I');
    // Meanwhile the primary has such blocks.
    assert!(!moved(&mut client));
    link.mend();
    until("a block to move again", || {
        let moved = moved(&mut client);
        if moved {
            client.run("ROLLBACK");
        }
        moved
    });
}

/// What drivers and frameworks send for connections and blocks that read only.
#[test]
fn drivers_that_say_read_only_are_served_by_standbys() {
    let cluster = Cluster::shared();
    let schema = "drivers_read_only";
    cluster.prepare(&format!(
        "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; CREATE TABLE {schema}.kept (a int)"
    ));
    cluster.replicated();
    let proxy = cluster
        .proxy()
        .set("routing.read_consistency", "eventual")
        .start();
    for program in [
        python("read_only.py", &proxy.address),
        node("read_only.js", &proxy.address),
    ] {
        let program = program
            .env("SCHEMA", schema)
            .env("PRIMARY_PORT", &primary_port().to_string());
        assert_eq!(program.succeed(), "");
    }
}
