//! What comes back through Halyard is what comes back without it, message by message.

use crate::support::message::*;
use crate::support::{Cluster, Script, differential};

/// OID of text and of int4.
const TEXT: u32 = 25;
const INT4: u32 = 23;
/// OID of the function `upper(text)`.
const UPPER: u32 = 871;

#[test]
fn simple_queries() {
    differential(
        &Script::new()
            .query("SELECT 1 AS one, NULL AS nothing, 'text' AS something")
            .query("")
            .query(" ; ")
            .query("-- nothing but a comment")
            .query("VALUES (1, 'a'), (2, 'b'), (3, NULL)")
            .query("SELECT generate_series(1, 300) AS n, repeat('x', 100) AS filler")
            .query("SELECT WHERE false")
            .query("SELECT FROM generate_series(1, 3)"),
    );
}

#[test]
fn several_statements_in_one_message() {
    differential(
        &Script::new()
            .given("DROP TABLE IF EXISTS multi; CREATE TABLE multi (a int)")
            .query("SELECT 1; SELECT 2; SELECT 3")
            .query(
                "INSERT INTO multi VALUES (1); INSERT INTO multi VALUES (2), (3); SELECT count(*) FROM multi",
            )
            .query("BEGIN; INSERT INTO multi VALUES (4); COMMIT; SELECT 'after'")
            .query("SELECT 1; SELECT 1/0; SELECT 2")
            .query("INSERT INTO multi VALUES (5); SELECT 1/0")
            .query("INSERT INTO multi VALUES (6); BEGIN; INSERT INTO multi VALUES (7)")
            .query("SELECT count(*) FROM multi; ROLLBACK"),
    );
}

#[test]
fn errors_keep_their_words_and_their_place() {
    differential(
        &Script::new()
            .query("SELEC 1")
            .query("SELECT * FROM there_is_no_such_table")
            .query("SELECT 1/0")
            .query("SELECT 'a'::int")
            .query("SELECT no_such_function(1)")
            .query("SELECT 1 AS still_here"),
    );
}

#[test]
fn transaction_blocks_and_failed_blocks() {
    differential(
        &Script::new()
            .given("DROP TABLE IF EXISTS block; CREATE TABLE block (a int PRIMARY KEY)")
            .query("BEGIN")
            .query("INSERT INTO block VALUES (1)")
            .query("SELECT a FROM block")
            .query("INSERT INTO block VALUES (1)")
            .query("SELECT 'refused'")
            .query("")
            .query("COMMIT")
            .query("BEGIN")
            .query("SAVEPOINT s")
            .query("SELECT 1/0")
            .query("ROLLBACK TO s")
            .query("INSERT INTO block VALUES (2)")
            .query("RELEASE s")
            .query("COMMIT AND CHAIN")
            .query("SELECT count(*) FROM block")
            .query("ROLLBACK")
            .query("COMMIT")
            .query("BEGIN READ ONLY")
            .query("INSERT INTO block VALUES (3)")
            .query("ROLLBACK"),
    );
}

#[test]
fn notices_come_where_they_belong() {
    differential(
        &Script::new()
            .query("DROP TABLE IF EXISTS surely_not_there")
            .query("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two' USING DETAIL = 'three'; END $$")
            .query("BEGIN")
            .query("BEGIN")
            .query("DO $$ BEGIN RAISE NOTICE 'inside'; RAISE EXCEPTION 'and out' USING ERRCODE = 'HY000'; END $$")
            .query("ROLLBACK")
            .query("ROLLBACK"),
    );
}

#[test]
fn settings_and_what_the_server_reports_of_them() {
    differential(
        &Script::new()
            .query("SET application_name = 'one'")
            .query("SHOW application_name")
            .query("SET DateStyle = 'SQL, DMY'")
            .query("SELECT '2026-01-31'::date")
            .query("BEGIN")
            .query("SET TimeZone = 'Asia/Tokyo'")
            .query("SET LOCAL application_name = 'two'")
            .query("SHOW TimeZone")
            .query("ROLLBACK")
            .query("SHOW TimeZone")
            .query("SHOW application_name")
            .query("SELECT set_config('application_name', 'three', false)")
            .query("SHOW application_name")
            .query("RESET DateStyle")
            .query("SELECT '2026-01-31'::date")
            .query("SET client_encoding = 'LATIN1'")
            .query("SHOW client_encoding")
            .query("RESET ALL")
            .query("SHOW application_name"),
    );
}

#[test]
fn the_extended_protocol() {
    differential(
        &Script::new()
            .batch(&[unnamed("SELECT $1::int + 1, $2", &[Some("41"), Some("text")])])
            .batch(&[unnamed("SELECT $1::text", &[None])])
            .batch(&[
                parse("", "SELECT 1 AS a"),
                describe_statement(""),
                bind("", "", &[]),
                describe_portal(""),
                execute("", 0),
            ])
            .batch(&[parse("", ""), bind("", "", &[]), execute("", 0)])
            .batch(&[
                parse_typed("", "SELECT $1, $2", &[INT4, TEXT]),
                describe_statement(""),
            ])
            .batch(&[unnamed("SELECT generate_series(1, 1000)", &[])])
            .batch(&[])
            .batch(&[]),
    );
}

#[test]
fn named_statements() {
    differential(
        &Script::new()
            .given("DROP TABLE IF EXISTS named; CREATE TABLE named (a int)")
            .batch(&[parse("s1", "SELECT $1::int * 2")])
            .batch(&[bind("", "s1", &[Some("21")]), execute("", 0)])
            .batch(&[describe_statement("s1")])
            .batch(&[parse("s2", "INSERT INTO named VALUES ($1) RETURNING a")])
            .batch(&[
                bind("", "s2", &[Some("7")]),
                execute("", 0),
                bind("", "s2", &[Some("8")]),
                execute("", 0),
            ])
            .query("SELECT 'in between'")
            .batch(&[bind("", "s1", &[Some("1")]), execute("", 0)])
            .batch(&[close_statement("s1")])
            .batch(&[bind("", "s1", &[Some("1")]), execute("", 0)])
            .batch(&[close_statement("never_there")])
            .batch(&[parse("s1", "SELECT 'another'")])
            .batch(&[bind("", "s1", &[]), describe_portal(""), execute("", 0)]),
    );
}

#[test]
fn a_name_can_be_taken_once() {
    differential(
        &Script::new()
            .batch(&[parse("taken", "SELECT 1")])
            .batch(&[parse("taken", "SELECT 1")])
            .batch(&[parse("taken", "SELECT 2")])
            .batch(&[bind("", "taken", &[]), execute("", 0)])
            .batch(&[parse("pair", "SELECT 1"), parse("pair", "SELECT 2")])
            .batch(&[bind("", "pair", &[]), execute("", 0)]),
    );
}

#[test]
fn a_statement_that_failed_to_parse_is_not_there() {
    differential(
        &Script::new()
            .batch(&[parse("broken", "SELEC")])
            .batch(&[bind("", "broken", &[]), execute("", 0)])
            .batch(&[parse("broken", "SELECT 'mended'")])
            .batch(&[bind("", "broken", &[]), execute("", 0)])
            .batch(&[parse("lost", "SELECT 1"), unnamed("SELECT 1/0", &[])])
            .batch(&[bind("", "lost", &[]), execute("", 0)]),
    );
}

#[test]
fn prepared_by_sql() {
    differential(
        &Script::new()
            .query("PREPARE p (int) AS SELECT $1 + 1")
            .query("EXECUTE p(1)")
            .query("EXECUTE p(2)")
            .query("PREPARE p AS SELECT 1")
            .query("DEALLOCATE p")
            .query("EXECUTE p(3)")
            .query("DEALLOCATE ALL"),
    );
}

#[test]
fn deallocate_all_and_discard_all_take_protocol_statements_too() {
    differential(
        &Script::new()
            .batch(&[parse("one", "SELECT 1")])
            .query("DEALLOCATE ALL")
            .batch(&[bind("", "one", &[]), execute("", 0)])
            .batch(&[parse("one", "SELECT 'again'")])
            .query("DISCARD ALL")
            .batch(&[bind("", "one", &[]), execute("", 0)])
            .batch(&[
                parse("one", "SELECT 'and again'"),
                bind("", "one", &[]),
                execute("", 0),
            ]),
    );
}

#[test]
fn portals_with_row_limits_in_a_block() {
    differential(
        &Script::new()
            .query("BEGIN")
            .batch(&[
                parse("", "SELECT generate_series(1, 10)"),
                bind("p", "", &[]),
                execute("p", 3),
            ])
            .batch(&[execute("p", 3)])
            .batch(&[describe_portal("p"), execute("p", 0)])
            .batch(&[execute("p", 1)])
            .batch(&[close_portal("p")])
            .batch(&[execute("p", 1)])
            .query("ROLLBACK")
            .batch(&[
                parse("", "SELECT generate_series(1, 10)"),
                bind("q", "", &[]),
                execute("q", 4),
                execute("q", 4),
                execute("q", 4),
            ])
            .batch(&[execute("q", 4)]),
    );
}

#[test]
fn cursors_in_a_block() {
    differential(
        &Script::new()
            .query("BEGIN")
            .query("DECLARE c CURSOR FOR SELECT generate_series(1, 10)")
            .query("FETCH 3 FROM c")
            .query("MOVE 2 FROM c")
            .query("FETCH ALL FROM c")
            .query("CLOSE c")
            .query("COMMIT")
            .query("FETCH 1 FROM c"),
    );
}

#[test]
fn flush_without_sync() {
    differential(
        &Script::new()
            .send([parse("", "SELECT $1::int"), describe_statement(""), flush()].concat())
            .until(b'T')
            .send([bind("", "", &[Some("5")]), flush()].concat())
            .until(b'2')
            .send([execute("", 0), flush()].concat())
            .until(b'C')
            .send(sync())
            .until_ready(1)
            .send([parse("", "SELEC"), flush()].concat())
            .until(b'E')
            .send([bind("", "", &[]), execute("", 0), flush(), sync()].concat())
            .until_ready(1),
    );
}

#[test]
fn pipelines_with_an_error_in_the_middle() {
    let good = |n: &str| [unnamed("SELECT $1::int", &[Some(n)]), sync()].concat();
    let bad = [
        unnamed("SELECT 1", &[]),
        unnamed("SELECT 1/0", &[]),
        unnamed("SELECT 'skipped'", &[]),
        sync(),
    ]
    .concat();
    differential(
        &Script::new()
            .send([good("1"), good("2"), bad.clone(), good("3"), bad, good("4")].concat())
            .until_ready(6),
    );
}

#[test]
fn a_pipeline_is_one_transaction_up_to_its_sync() {
    differential(
        &Script::new()
            .given("DROP TABLE IF EXISTS piped; CREATE TABLE piped (a int PRIMARY KEY)")
            .batch(&[
                unnamed("INSERT INTO piped VALUES (1)", &[]),
                unnamed("INSERT INTO piped VALUES (2)", &[]),
                unnamed("INSERT INTO piped VALUES (1)", &[]),
                unnamed("INSERT INTO piped VALUES (3)", &[]),
            ])
            .batch(&[
                unnamed("INSERT INTO piped VALUES (4)", &[]),
                unnamed("SELECT count(*) FROM piped", &[]),
            ])
            .send(
                [
                    unnamed("BEGIN", &[]),
                    sync(),
                    unnamed("INSERT INTO piped VALUES (5)", &[]),
                    sync(),
                ]
                .concat(),
            )
            .until_ready(2)
            .send(
                [
                    unnamed("SELECT a FROM piped ORDER BY a", &[]),
                    sync(),
                    unnamed("ROLLBACK", &[]),
                    sync(),
                ]
                .concat(),
            )
            .until_ready(2),
    );
}

#[test]
fn queries_and_batches_in_one_flight() {
    differential(
        &Script::new()
            .send(
                [
                    query("SELECT 1"),
                    query("SELECT 2; SELECT 3"),
                    query("SELECT 1/0"),
                    query("SELECT 4"),
                ]
                .concat(),
            )
            .until_ready(4)
            .send(
                [
                    query("BEGIN"),
                    unnamed("SELECT 1", &[]),
                    sync(),
                    query("COMMIT"),
                    query("SELECT 5"),
                ]
                .concat(),
            )
            .until_ready(4),
    );
}

#[test]
fn a_failed_block_in_the_extended_protocol() {
    differential(
        &Script::new()
            .batch(&[parse("end", "ROLLBACK"), parse("work", "SELECT 1")])
            .query("BEGIN")
            .batch(&[unnamed("SELECT 1/0", &[])])
            .batch(&[unnamed("SELECT 1", &[])])
            .batch(&[bind("", "work", &[]), execute("", 0)])
            .batch(&[parse("", ""), bind("", "", &[]), execute("", 0)])
            .batch(&[bind("", "end", &[]), execute("", 0)])
            .batch(&[bind("", "work", &[]), execute("", 0)]),
    );
}

#[test]
fn copy_in() {
    differential(
        &Script::new()
            .given("DROP TABLE IF EXISTS copied; CREATE TABLE copied (a int, b text)")
            .send(query("COPY copied FROM STDIN"))
            .until(b'G')
            .send(
                [
                    copy_data(b"1\tone\n2\ttwo\n"),
                    copy_data(b"3\tth"),
                    copy_data(b"ree\n"),
                    copy_done(),
                ]
                .concat(),
            )
            .until_ready(1)
            .send(query("COPY copied FROM STDIN"))
            .until(b'G')
            .send([copy_data(b"4\tfour\n"), copy_fail("the client changed its mind")].concat())
            .until_ready(1)
            .send(query("COPY copied FROM STDIN; SELECT 'and more'"))
            .until(b'G')
            .send([copy_data(b"5\tfive\n"), copy_done()].concat())
            .until_ready(1)
            .query("BEGIN; SELECT * FROM copied ORDER BY a; COMMIT"),
    );
}

#[test]
fn copy_in_of_rows_that_the_server_refuses() {
    differential(
        &Script::new()
            .given("DROP TABLE IF EXISTS copied_bad; CREATE TABLE copied_bad (a int)")
            .send(query("COPY copied_bad FROM STDIN"))
            .until(b'G')
            .send(copy_data(b"1\nnot a number\n"))
            .until(b'E')
            // What was under way when the error came.
            .send([copy_data(b"2\n"), copy_data(b"3\n"), copy_done()].concat())
            .until_ready(1)
            .query("BEGIN; SELECT count(*) FROM copied_bad; COMMIT"),
    );
}

/// libpq sends Sync right behind Execute, before it knows of a COPY, and another behind CopyDone; the server ignores
/// the first.
#[test]
fn copy_in_by_the_extended_protocol_with_sync_behind_execute() {
    differential(
        &Script::new()
            .given("DROP TABLE IF EXISTS copied_ext; CREATE TABLE copied_ext (a int)")
            .send([unnamed("COPY copied_ext FROM STDIN", &[]), sync()].concat())
            .until(b'G')
            .send([copy_data(b"1\n2\n"), copy_done(), sync()].concat())
            .until_ready(1)
            .send([unnamed("COPY copied_ext FROM STDIN", &[]), sync()].concat())
            .until(b'G')
            .send([copy_data(b"3\n"), copy_fail("no"), sync()].concat())
            .until_ready(1)
            .send([unnamed("COPY copied_ext FROM STDIN", &[]), flush()].concat())
            .until(b'G')
            .send(
                [
                    copy_data(b"4\n"),
                    flush(),
                    sync(),
                    copy_data(b"5\n"),
                    copy_done(),
                    sync(),
                ]
                .concat(),
            )
            .until_ready(1)
            .query("BEGIN; SELECT count(*) FROM copied_ext; COMMIT"),
    );
}

#[test]
fn copy_out() {
    differential(
        &Script::new()
            .query("COPY (SELECT g, repeat('x', 50) FROM generate_series(1, 1000) g) TO STDOUT")
            .query("COPY (SELECT 1/(500 - g) FROM generate_series(1, 1000) g) TO STDOUT")
            .query("COPY (SELECT 1) TO STDOUT; SELECT 'behind'")
            .batch(&[unnamed(
                "COPY (SELECT generate_series(1, 5)) TO STDOUT WITH (FORMAT csv, HEADER)",
                &[],
            )])
            .query("COPY (SELECT WHERE false) TO STDOUT"),
    );
}

#[test]
fn copy_data_that_nobody_waits_for_is_ignored() {
    differential(
        &Script::new()
            .send([copy_data(b"1\n"), copy_done(), copy_fail("?"), query("SELECT 1")].concat())
            .until_ready(1)
            .query("BEGIN")
            .send([copy_data(b"1\n"), copy_done(), query("COMMIT")].concat())
            .until_ready(1),
    );
}

#[test]
fn function_calls() {
    differential(
        &Script::new()
            .send(function_call(UPPER, "shout"))
            .until_ready(1)
            .send(function_call(1, "no such function"))
            .until_ready(1)
            .query("BEGIN")
            .send(function_call(UPPER, "again"))
            .until_ready(1)
            .query("COMMIT"),
    );
}

#[test]
fn notifications_to_oneself() {
    differential(
        &Script::new()
            .query("BEGIN; LISTEN here; NOTIFY here, 'first'; COMMIT")
            .query("NOTIFY here, 'second'")
            .query("UNLISTEN *"),
    );
}

#[test]
fn bodies_that_are_too_short_or_hold_rubbish() {
    differential(
        &Script::new()
            .send([tagged(b'B', b"\0"), sync()].concat())
            .until_ready(1)
            .send([tagged(b'E', b"portal without its end"), sync()].concat())
            .until_ready(1)
            .send([tagged(b'D', b"Xname\0"), sync()].concat())
            .until_ready(1)
            .send([tagged(b'C', b"?\0"), sync()].concat())
            .until_ready(1)
            .send([tagged(b'P', b"name\0SELECT 1\0\0\x05"), sync()].concat())
            .until_ready(1)
            .query("SELECT 'alive'"),
    );
}

#[test]
fn trailing_bytes_do_not_shift_into_the_next_message() {
    let smuggled = query("SELECT 'smuggled'");
    differential(
        &Script::new()
            .send([tagged(b'S', &smuggled), query("SELECT 'next'")].concat())
            .until_ready(2)
            .send(
                [
                    tagged(b'Q', &[b"SELECT 1\0".as_slice(), &smuggled].concat()),
                    query("SELECT 'next'"),
                ]
                .concat(),
            )
            .until_ready(2)
            .query("SELECT 'alive'"),
    );
}

#[test]
fn texts_in_another_encoding_are_passed_on_as_they_are() {
    let latin1 = tagged(b'Q', b"SELECT 'caf\xe9' AS \"\xe9t\xe9\", length('caf\xe9')\0");
    differential(
        &Script::new()
            .query("SET client_encoding = 'LATIN1'")
            .send(latin1)
            .until_ready(1)
            .query("SET client_encoding = 'UTF8'")
            .send(tagged(b'Q', b"SELECT 'caf\xe9'\0"))
            .until_ready(1),
    );
}

#[test]
fn long_statements_and_long_parameters() {
    let long = "x".repeat(300_000);
    differential(
        &Script::new()
            .query(&format!("SELECT length('{long}')"))
            .query(&format!("SELECT '{long}'"))
            .batch(&[unnamed("SELECT length($1)", &[Some(&long)])])
            .batch(&[unnamed("SELECT $1", &[Some(&long)])])
            .batch(&[parse("long", &format!("SELECT length('{long}') + $1::int"))])
            .batch(&[bind("", "long", &[Some("1")]), execute("", 0)])
            .query("SELECT 'alive'"),
    );
}

#[test]
fn many_columns() {
    let columns: Vec<_> = (0..1600).map(|n| format!("{n} AS column_{n}")).collect();
    differential(&Script::new().query(&format!("SELECT {}", columns.join(", "))));
}

/// The server ends the connection with 08P01; nothing else of the proxy suffers.
#[test]
fn frames_with_impossible_lengths_end_the_connection() {
    let proxy = Cluster::shared_proxy();
    for (case, bytes) in [
        ("a length of 3", vec![b'Q', 0, 0, 0, 3]),
        ("a length of 0", vec![b'S', 0, 0, 0, 0]),
        ("a negative length", vec![b'Q', 0xff, 0xff, 0xff, 0xff]),
        ("a Sync of 2 GiB", vec![b'S', 0x7f, 0xff, 0xff, 0xff]),
        ("no message type at all", vec![0xff, 0, 0, 0, 4]),
        ("a message that only servers send", vec![b'Z', 0, 0, 0, 5, b'I']),
    ] {
        let mut client = proxy.connect();
        client.send(&bytes);
        let last = client.until_closed();
        assert_eq!(last.len(), 1, "{case}: {last:?}");
        assert_eq!(last[0].field(b'C'), "08P01", "{case}: {last:?}");
        assert_eq!(last[0].field(b'V'), "FATAL", "{case}: {last:?}");
    }
    assert_eq!(proxy.connect().value("SELECT 'alive'"), "alive");
}

#[test]
fn a_broken_frame_behind_good_ones_is_told_after_their_answers() {
    let mut client = Cluster::shared_proxy().connect();
    client.send(&[query("SELECT 'first'"), vec![0xff, 0, 0, 0, 4]].concat());
    assert_eq!(client.answer().rows, [[Some("first".to_owned())]]);
    let last = client.until_closed();
    assert_eq!(
        last.iter().map(|message| message.field(b'C')).collect::<Vec<_>>(),
        ["08P01"]
    );
}

/// Both sides of a pipeline have to be read at once: its requests and its answers each exceed every buffer between
/// client and server.
#[test]
fn a_pipeline_larger_than_every_buffer_does_not_get_stuck() {
    const BATCHES: usize = 400;
    let filler = "x".repeat(100_000);
    let batch = [unnamed("SELECT $1 || '.'", &[Some(&filler)]), sync()].concat();
    let mut client = Cluster::shared_proxy().connect();
    // All requests are written before the first answer is read, as PQsendQuery in pipeline mode can do; a thread
    // stands in for a socket that takes them as it can.
    let mut writer = client.stream().try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        use std::io::Write;
        for _ in 0..BATCHES {
            writer.write_all(&batch).unwrap();
        }
    });
    for _ in 0..BATCHES {
        let answer = client.answer();
        assert_eq!(answer.rows[0][0].as_ref().map(String::len), Some(100_001));
    }
    sending.join().unwrap();
}

/// A peer lost a query that came in one packet with the password.
#[test]
fn a_query_behind_the_startup_packet_is_not_lost() {
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().trusting().start();
    let mut client = crate::support::Client::open(proxy.address.port).unwrap();
    let greeting = startup(&[
        ("user", &proxy.address.user),
        ("database", &proxy.address.database),
    ]);
    client.send(&[greeting, query("SELECT 'not lost'")].concat());
    client.until_ready();
    assert_eq!(client.answer().rows, [[Some("not lost".to_owned())]]);
}

/// A Parse of a name has nothing to do with the unnamed statement, and a name is taken, however long the text is.
#[test]
fn a_text_that_is_too_long_to_be_read_is_prepared_as_any() {
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().set("routing.statement_size_max", "16kB").start();
    let long = format!("SELECT 3 /* {} */", "x".repeat(100_000));
    let batches = [
        vec![parse("s", "SELECT 1"), parse("", "SELECT 2")],
        vec![parse("s", &long)],
        vec![bind("", "", &[]), execute("", 0)],
        vec![parse("t", &long), bind("", "", &[]), execute("", 0)],
        vec![
            bind("", "t", &[]),
            execute("", 0),
            bind("", "s", &[]),
            execute("", 0),
        ],
        vec![parse("t", &long)],
        vec![
            close_statement("s"),
            parse("s", &long),
            bind("", "s", &[]),
            execute("", 0),
        ],
        vec![parse("", &long), bind("", "", &[]), execute("", 0)],
        vec![close_statement("s"), close_statement("t")],
    ];
    let [mut through, mut direct] = [proxy.connect(), cluster.app(cluster.primary().port).connect()];
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
