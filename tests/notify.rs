//! LISTEN and NOTIFY for clients that keep no backend: everything committed is heard once, in order, and what may have
//! been missed is told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::support::message::*;
use crate::support::{
    Act, Client, Cluster, LONG_PATIENCE, Link, Message, Program, Proxy, Script, differential, python, until,
};

/// A proxy whose clients share two backends of each node.
fn narrow() -> Proxy {
    Cluster::shared().proxy().set("pool.size", 2).start()
}

/// Channel and payload of the next message, which has to be a notification.
#[track_caller]
fn notified(client: &mut Client) -> (String, String) {
    let message = client.receive();
    payload(&message).unwrap_or_else(|| panic!("{message} is no notification"))
}

fn payload(message: &Message) -> Option<(String, String)> {
    let fields = (message.kind == b'A').then(|| message.body[4..].split(|byte| *byte == 0))?;
    let mut texts = fields.map(|field| String::from_utf8_lossy(field).into_owned());
    Some((texts.next()?, texts.next()?))
}

/// Whether a message is the WARNING that notifications may have been lost.
fn tells_of_loss(message: &Message) -> bool {
    message.kind == b'N'
        && message.field(b'C') == "01000"
        && message.field(b'M').contains("may have been lost")
}

#[test]
fn many_listeners_over_two_backends_hear_everything_once_and_in_one_order() {
    const LISTENERS: usize = 24;
    const NOTIFIERS: usize = 4;
    const EACH: usize = 100;
    let proxy = narrow();
    let listeners: Vec<_> = (0..LISTENERS)
        .map(|_| {
            let mut client = proxy.connect();
            client.run("LISTEN crowd");
            client
        })
        .collect();
    until("the backends to be given back", || {
        let status = proxy.status();
        status["pools"]
            .as_array()
            .unwrap()
            .iter()
            .all(|pool| pool["active"] == 0)
    });
    assert_eq!(proxy.metric("halyard_listening_clients"), LISTENERS as f64);
    assert_eq!(proxy.metric("halyard_listened_channels"), 1.0);
    let heard = thread::scope(|scope| {
        for number in 0..NOTIFIERS {
            let mut client = proxy.connect();
            scope.spawn(move || {
                for n in 0..EACH {
                    // The first half of them in blocks with a rollback in between.
                    if n % 2 == 0 {
                        client.run(&format!("SELECT pg_notify('crowd', '{number}:{n}')"));
                    } else {
                        client.run("BEGIN; NOTIFY crowd, 'never'; ROLLBACK");
                        client.run(&format!("BEGIN; NOTIFY crowd, '{number}:{n}'; COMMIT"));
                    }
                }
            });
        }
        let hearing: Vec<_> = listeners
            .into_iter()
            .map(|mut client| {
                scope.spawn(move || {
                    let heard: Vec<_> = (0..NOTIFIERS * EACH).map(|_| notified(&mut client).1).collect();
                    // Nothing else is under way.
                    assert_eq!(client.run("SELECT 1").rows.len(), 1);
                    heard
                })
            })
            .collect();
        hearing
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect::<Vec<_>>()
    });
    let first = &heard[0];
    let distinct: BTreeSet<_> = first.iter().collect();
    assert_eq!(distinct.len(), NOTIFIERS * EACH, "each is heard once");
    for number in 0..NOTIFIERS {
        let of_one: Vec<_> = first
            .iter()
            .filter_map(|text| text.strip_prefix(&format!("{number}:")))
            .collect();
        let in_order: Vec<_> = (0..EACH).map(|n| n.to_string()).collect();
        assert_eq!(of_one, in_order, "in the order of their commits");
    }
    for other in &heard[1..] {
        assert_eq!(first, other, "all hear one order");
    }
    let delivered = proxy.metric(r#"halyard_notifications_total{outcome="delivered"}"#);
    assert_eq!(delivered, (LISTENERS * NOTIFIERS * EACH) as f64);
    until("nobody to listen", || {
        proxy.metric("halyard_listening_clients") == 0.0
    });
    until("no channel to be listened to", || {
        proxy.metric("halyard_listened_channels") == 0.0
    });
}

#[test]
fn what_is_notified_right_behind_listen_is_never_lost() {
    let proxy = narrow();
    let (mut listener, mut talker) = (proxy.connect(), proxy.connect());
    for round in 0..200 {
        match round % 3 {
            0 => drop(listener.run(&format!("LISTEN right_behind_{round}"))),
            1 => drop(listener.run(&format!("BEGIN; LISTEN right_behind_{round}; COMMIT"))),
            _ => {
                listener.send(&[unnamed(&format!("LISTEN right_behind_{round}"), &[]), sync()].concat());
                assert_eq!(listener.answer().error, None);
            }
        }
        talker.run(&format!("NOTIFY right_behind_{round}, '{round}'"));
        assert_eq!(
            notified(&mut listener),
            (format!("right_behind_{round}"), round.to_string())
        );
        if round % 2 == 0 {
            listener.run("UNLISTEN *");
        }
    }
}

/// Compares as [`differential`] does, one script at a time: they all use the same channels.
#[track_caller]
fn compare(script: &Script) {
    let _alone = alone();
    differential(script);
}

/// Has the channels to itself that the compared scripts share, and a server that passes on at once what they notify: every
/// connection of a database that listens reads whatever is notified there.
fn alone() -> MutexGuard<'static, ()> {
    static CHANNELS: Mutex<()> = Mutex::new(());
    CHANNELS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client was told by its LISTEN of what it had notified itself before: the connection that listens had not yet looked
/// at what was committed.
#[test]
fn listen_tells_nothing_of_before() {
    let proxy = narrow();
    let (mut other, mut client) = (proxy.connect(), proxy.connect());
    other.run("LISTEN something_else");
    let mut heard = Vec::new();
    for round in 0..100 {
        if round == 50 {
            // From here on it is listened to already when the client comes.
            other.run("LISTEN anew");
        }
        client.run(&format!("NOTIFY anew, 'before {round}'"));
        client.run("LISTEN anew");
        client.send(&query(&format!("NOTIFY anew, 'behind {round}'")));
        heard.extend(client.until_ready().iter().filter_map(payload));
        client.send(&query("UNLISTEN anew"));
        assert_eq!(client.until_kind(b'C').len(), 1, "nothing was left to be told");
        client.until_ready();
    }
    let heard: Vec<_> = heard.into_iter().map(|(_, text)| text).collect();
    let committed: Vec<_> = (0..100).map(|round| format!("behind {round}")).collect();
    assert_eq!(
        heard, committed,
        "one for each that was committed while it listened"
    );
}

/// Notifies the channels a, b and c, and asks what is listened to: what comes back tells what was committed.
fn probe(script: Script) -> Script {
    script
        .query("NOTIFY a, '1'; NOTIFY b, '2'; SELECT pg_notify('c', '3')")
        .query("SELECT * FROM pg_listening_channels() ORDER BY 1")
        .query("BEGIN; NOTIFY a, 'in a block'; SELECT pg_notify('b', 'too')")
        .query("COMMIT")
}

#[test]
fn listen_and_unlisten_as_statements() {
    let mut script = Script::new();
    for sql in [
        "LISTEN a",
        "LISTEN a; LISTEN b",
        "UNLISTEN a",
        "UNLISTEN a",
        "LISTEN c; SELECT 1/0",
        "UNLISTEN b; SELECT 1/0",
        "LISTEN c; UNLISTEN b; LISTEN a",
        "LISTEN",
        "UNLISTEN *",
        "LISTEN b; LISTEN c",
        "DISCARD ALL",
        "LISTEN a; UNLISTEN *; LISTEN b",
        "/* a comment */ listen /* another */ C ; ",
        "UNLISTEN nobody_listens_to_it",
    ] {
        script = probe(script.query(sql));
    }
    compare(&script);
}

#[test]
fn listen_and_unlisten_in_blocks() {
    let mut script = Script::new().query("LISTEN a");
    for block in [
        &["BEGIN", "LISTEN b", "COMMIT"][..],
        &["BEGIN", "LISTEN c", "ROLLBACK"],
        &["BEGIN", "UNLISTEN a", "ROLLBACK"],
        &["BEGIN", "UNLISTEN *", "LISTEN c", "COMMIT"],
        &["BEGIN", "UNLISTEN c", "LISTEN a", "SELECT 1/0", "COMMIT"],
        &[
            "BEGIN",
            "LISTEN a",
            "UNLISTEN a",
            "LISTEN b",
            "COMMIT AND CHAIN",
            "UNLISTEN b",
            "COMMIT",
        ],
        &["BEGIN; LISTEN a; LISTEN b", "END"],
        &["START TRANSACTION READ WRITE", "DISCARD ALL", "ROLLBACK"],
        &["BEGIN ISOLATION LEVEL SERIALIZABLE", "UNLISTEN a", "COMMIT"],
    ] {
        for sql in block {
            script = script.query(sql);
        }
        script = probe(script);
    }
    compare(&script);
}

#[test]
fn listen_and_unlisten_under_savepoints() {
    let mut script = Script::new().query("LISTEN a; LISTEN b");
    for block in [
        &["BEGIN", "SAVEPOINT s", "LISTEN c", "ROLLBACK TO s", "COMMIT"][..],
        &[
            "BEGIN",
            "SAVEPOINT s",
            "UNLISTEN a",
            "ROLLBACK TO s",
            "UNLISTEN b",
            "COMMIT",
        ],
        &[
            "BEGIN",
            "SAVEPOINT s",
            "UNLISTEN *",
            "RELEASE s",
            "LISTEN c",
            "COMMIT",
        ],
        &[
            "BEGIN",
            "SAVEPOINT s",
            "UNLISTEN *",
            "SELECT 1/0",
            "ROLLBACK TO s",
            "LISTEN b",
            "COMMIT",
        ],
        &[
            "BEGIN",
            "LISTEN a",
            "SAVEPOINT s",
            "UNLISTEN a",
            "SAVEPOINT t",
            "LISTEN a",
            "ROLLBACK TO t",
            "COMMIT",
        ],
        &[
            "BEGIN",
            "SAVEPOINT s",
            "UNLISTEN b",
            "ROLLBACK TO s; UNLISTEN c",
            "COMMIT",
        ],
    ] {
        for sql in block {
            script = script.query(sql);
        }
        script = probe(script);
    }
    compare(&script);
}

#[test]
fn listen_in_the_extended_protocol() {
    let run = |sql: &str| unnamed(sql, &[]);
    let named = |name: &str| [bind("", name, &[]), execute("", 0)].concat();
    let mut script = Script::new();
    for step in [
        vec![run("LISTEN a")],
        vec![parse("listens", "LISTEN b")],
        vec![named("listens")],
        vec![parse("forgets", "UNLISTEN *"), run("LISTEN c"), run("SELECT 1/0")],
        vec![run("UNLISTEN a"), run("LISTEN c")],
        vec![parse("forgets", "UNLISTEN *"), named("forgets")],
        vec![named("listens"), run("LISTEN a"), describe_statement("listens")],
    ] {
        script = probe(script.batch(&step));
    }
    // A batch that is cut by Flush, and one whose end does not come before its answers.
    script = script
        .send([run("UNLISTEN b"), flush()].concat())
        .until(b'C')
        .send([run("LISTEN c"), flush()].concat())
        .until(b'C')
        .send(sync())
        .until_ready(1);
    compare(&probe(script));
}

#[test]
fn pipelines_of_listen_and_notify() {
    let queries = |all: &[&str]| all.iter().flat_map(|sql| query(sql)).collect::<Vec<_>>();
    compare(&probe(
        Script::new()
            .send(queries(&[
                "SELECT 1",
                "LISTEN a",
                "NOTIFY a, 'piped'",
                "SELECT 2",
                "BEGIN",
                "UNLISTEN a",
                "LISTEN b",
                "COMMIT",
                "NOTIFY a, 'nobody'",
                "NOTIFY b, 'again'",
                "SELECT 3",
            ]))
            .until_ready(11)
            .send(
                [
                    unnamed("LISTEN c", &[]),
                    sync(),
                    unnamed("SELECT pg_notify('c', $1)", &[Some("one")]),
                    sync(),
                    unnamed("SELECT 4", &[]),
                    sync(),
                ]
                .concat(),
            )
            .until_ready(3),
    ));
}

/// What nobody has thought of: statements in any order, in both protocols, with what comes back compared message by
/// message.
#[test]
fn any_order_of_statements() {
    const STATEMENTS: &[&str] = &[
        "LISTEN a",
        "LISTEN b",
        "LISTEN a; LISTEN c",
        "UNLISTEN a",
        "UNLISTEN b",
        "UNLISTEN *",
        "UNLISTEN a; LISTEN b",
        "NOTIFY a, 'x'",
        "NOTIFY b, 'y'",
        "SELECT pg_notify('c', 'z')",
        "BEGIN",
        "BEGIN",
        "COMMIT",
        "COMMIT",
        "ROLLBACK",
        "COMMIT AND CHAIN",
        "SAVEPOINT s",
        "SAVEPOINT s",
        "ROLLBACK TO s",
        "RELEASE s",
        "SELECT 1/0",
        "SELECT 1",
        "DISCARD ALL",
        "CREATE TEMP TABLE IF NOT EXISTS pins (a int) ON COMMIT PRESERVE ROWS",
        "DROP TABLE IF EXISTS pins",
        "SELECT * FROM pg_listening_channels() ORDER BY 1",
    ];
    // xorshift64 (Marsaglia 2003): the same statements each time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |count: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % count as u64).unwrap()
    };
    for _ in 0..12 {
        let mut script = Script::new();
        for _ in 0..40 {
            let sql = STATEMENTS[below(STATEMENTS.len())];
            script = match below(4) {
                // One statement is all that the extended protocol takes.
                0 => script.batch(&[unnamed(sql.split(';').next().unwrap(), &[])]),
                1 => {
                    let next = STATEMENTS[below(STATEMENTS.len())];
                    script.send([query(sql), query(next)].concat()).until_ready(2)
                }
                _ => script.query(sql),
            };
        }
        compare(&probe(script.query("ROLLBACK")));
    }
}

#[test]
fn copy_by_who_listens() {
    let script = Script::new()
        .given("DROP TABLE IF EXISTS by_listener; CREATE TABLE by_listener (a int)")
        .query("LISTEN a")
        .send(
            [
                query("COPY by_listener FROM STDIN"),
                copy_data(b"1\n"),
                copy_done(),
            ]
            .concat(),
        )
        .until_ready(1)
        .send(
            [
                query("COPY no_such_table FROM STDIN"),
                copy_data(b"1\n"),
                copy_done(),
            ]
            .concat(),
        )
        .until_ready(1)
        .query("BEGIN")
        .send(
            [
                query("COPY by_listener FROM STDIN"),
                copy_data(b"2\n"),
                copy_done(),
            ]
            .concat(),
        )
        .until_ready(1)
        .query("LISTEN b")
        .query("COMMIT")
        .query("COPY by_listener TO STDOUT")
        .send([query("COPY by_listener FROM STDIN"), copy_fail("no")].concat())
        .until_ready(1);
    compare(&probe(script));
}

#[test]
fn channels_of_any_name() {
    let long = "é".repeat(40);
    let mut script = Script::new();
    for name in [
        "MixedCase",
        "\"Mixed Case\"",
        "\"with \"\"quotes\"\"; DROP TABLE x\"",
        "\"'; -- \"",
        "\"\\\"",
        "Straße",
        &format!("\"{long}\""),
        &"x".repeat(100),
        "U&\"\\0061\\+0000e9\"",
        "U&\"!0062\" UESCAPE '!'",
        "select_",
        "listen",
    ] {
        script = script
            .query(&format!("LISTEN {name}"))
            .query(&format!("NOTIFY {name}, 'heard'"))
            .query("SELECT * FROM pg_listening_channels() ORDER BY 1")
            .query(&format!("UNLISTEN {name}"))
            .query(&format!("NOTIFY {name}, 'not heard'"));
    }
    compare(&script);
}

#[test]
fn payloads_come_byte_for_byte_and_equal_ones_come_each_time() {
    let proxy = narrow();
    let (mut listener, mut talker) = (proxy.connect(), proxy.connect());
    listener.run("LISTEN payloads");
    let longest = "ü".repeat(3999) + "x";
    for text in [
        "",
        "same",
        "same",
        "same",
        "'quoted' \\ \u{1}\u{7f}",
        longest.as_str(),
    ] {
        talker.send(&[unnamed("SELECT pg_notify('payloads', $1)", &[Some(text)]), sync()].concat());
        assert_eq!(talker.answer().error, None);
        assert_eq!(notified(&mut listener).1, text);
    }
    // Within one transaction PostgreSQL leaves repetitions out.
    talker.run("BEGIN; NOTIFY payloads, 'once'; NOTIFY payloads, 'once'; NOTIFY payloads, 'other'; COMMIT");
    assert_eq!(notified(&mut listener).1, "once");
    assert_eq!(notified(&mut listener).1, "other");
}

#[test]
fn everybody_is_told_in_its_own_encoding() {
    let proxy = narrow();
    let mut latin = proxy.address.connect_with(&[("client_encoding", "LATIN1")]);
    latin.send(&tagged(b'Q', b"LISTEN \xe9t\xe9\0"));
    assert_eq!(latin.answer().error, None);
    let mut utf8 = proxy.connect();
    utf8.run("LISTEN été");
    let mut turned = proxy.connect();
    turned.run("SET client_encoding = LATIN1");
    turned.send(&tagged(b'Q', b"LISTEN \xe9t\xe9\0"));
    assert_eq!(turned.answer().error, None);
    proxy.connect().run("NOTIFY été, 'ü'");
    assert_eq!(notified(&mut utf8), ("été".to_owned(), "ü".to_owned()));
    assert_eq!(latin.receive().body[4..], *b"\xe9t\xe9\0\xfc\0");
    assert_eq!(turned.receive().body[4..], *b"\xe9t\xe9\0\xfc\0");
    assert_eq!(proxy.metric("halyard_listener_connections"), 2.0);
}

/// Each number comes once, in order, and in the encoding that the client speaks when it is told. Where the two connections do
/// not meet in time, as on a machine that stands still, it is told that some may be missing.
#[test]
fn who_changes_its_encoding_while_it_listens_misses_nothing_without_a_word() {
    const TURNS: usize = 30;
    let proxy = narrow();
    let stop = AtomicBool::new(false);
    let (told, warnings) = thread::scope(|scope| {
        let mut talker = proxy.connect();
        let notifying = scope.spawn({
            let stop = &stop;
            move || {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    talker.run(&format!("NOTIFY turning, 'é{number}'"));
                    number += 1;
                    // Now and then a pause, as between the hours of a day.
                    thread::sleep(Duration::from_millis(if number % 20 == 0 { 30 } else { 2 }));
                }
                talker.run("NOTIFY turning, 'end'");
            }
        });
        let mut listener = proxy.connect();
        listener.run("LISTEN turning");
        let (mut told, mut warnings) = (Vec::new(), 0);
        let mut hear = |message: &Message, encoding: &str| {
            warnings += usize::from(tells_of_loss(message));
            if message.kind != b'A' {
                return false;
            }
            let text = message.body[4..].split(|byte| *byte == 0).nth(1).unwrap();
            let e = if encoding == "UTF8" {
                "é".as_bytes()
            } else {
                b"\xe9"
            };
            let number = text
                .strip_prefix(e)
                .map(|digits| std::str::from_utf8(digits).unwrap());
            told.extend(number.map(|number| number.parse::<usize>().unwrap()));
            assert!(number.is_some() || text == b"end", "{message} in {encoding}");
            text == b"end"
        };
        let mut encoding = "UTF8";
        for _ in 0..TURNS {
            let before = encoding;
            encoding = if before == "UTF8" { "LATIN1" } else { "UTF8" };
            listener.send(&query(&format!("SET client_encoding = '{encoding}'")));
            let mut speaks = before;
            for message in listener.until_ready() {
                if message.kind == b'S' {
                    speaks = encoding;
                }
                hear(&message, speaks);
            }
            listener.send(&query("SELECT pg_sleep(0.02)"));
            for message in listener.until_ready() {
                hear(&message, encoding);
            }
        }
        stop.store(true, Ordering::Relaxed);
        notifying.join().unwrap();
        while !hear(&listener.receive(), encoding) {}
        (told, warnings)
    });
    assert!(
        told.is_sorted_by(|a, b| a < b),
        "each once and in order: {told:?}"
    );
    let gaps = told.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    assert!(gaps <= warnings, "{gaps} gaps and {warnings} warnings: {told:?}");
    assert!(told.len() > TURNS, "{told:?}");
}

/// Its ReadyForQuery was kept back behind what the client had sent on, for ever.
#[test]
fn who_changes_its_encoding_in_the_middle_of_more_goes_on() {
    let proxy = narrow();
    let mut client = proxy.connect();
    client.run("LISTEN midst");
    client.send(
        &[
            parse("", "SET client_encoding = 'LATIN1'"),
            describe_statement(""),
            flush(),
        ]
        .concat(),
    );
    client.until_kind(b'n');
    let next = [parse("", "SELECT 1"), describe_statement(""), flush()].concat();
    client.send(&[bind("", "", &[]), execute("", 0), sync(), next].concat());
    client.until_kind(b'Z');
    client.until_kind(b'T');
    client.send(&[bind("", "", &[]), execute("", 0), sync()].concat());
    assert_eq!(client.answer().error, None);
    proxy.connect().run("NOTIFY midst, 'é'");
    assert_eq!(client.receive().body[4..], *b"midst\0\xe9\0");
}

/// There is no way to tell of it. The others are heard on, and nobody else notices.
#[test]
fn a_channel_that_the_new_encoding_cannot_write_is_told_to_be_missed() {
    let proxy = narrow();
    let (mut alone, mut client, mut other) = (proxy.connect(), proxy.connect(), proxy.connect());
    for listener in [&mut alone, &mut client, &mut other] {
        listener.run("LISTEN \"забытый\"");
    }
    client.run("LISTEN \"oublié\"");
    for listener in [&mut alone, &mut client] {
        listener.send(&query("SET client_encoding = 'LATIN1'"));
        assert!(listener.until_ready().iter().any(tells_of_loss));
    }
    for listener in [&mut alone, &mut client] {
        listener.send(&tagged(b'Q', b"LISTEN \xfc\0"));
        assert_eq!(listener.answer().error, None);
        listener.run("BEGIN; SELECT 1; COMMIT");
    }
    let mut talker = proxy.connect();
    talker.run("NOTIFY \"забытый\", 'x'; NOTIFY \"oublié\", 'é'; NOTIFY \"ü\"");
    assert_eq!(notified(&mut other), ("забытый".to_owned(), "x".to_owned()));
    assert_eq!(client.receive().body[4..], *b"oubli\xe9\0\xe9\0");
    assert_eq!(client.receive().body[4..], *b"\xfc\0\0");
    assert_eq!(alone.receive().body[4..], *b"\xfc\0\0");
}

/// It cost everybody the connection that listens, again and again.
#[test]
fn a_channel_that_is_no_text_is_refused_and_nobody_else_notices() {
    let proxy = narrow();
    let (mut client, mut other) = (proxy.connect(), proxy.connect());
    other.run("LISTEN sound");
    client.send(&tagged(b'Q', b"LISTEN \xe9t\xe9\0"));
    assert_eq!(client.answer().sqlstate(), "22021");
    proxy.connect().run("NOTIFY sound, 'still'");
    assert_eq!(notified(&mut other).1, "still");
    assert_eq!(proxy.metric("halyard_notification_listeners_lost_total"), 0.0);
}

/// It was dropped for good.
#[test]
fn a_channel_that_an_encoding_cannot_write_is_heard_again_in_one_that_can() {
    let proxy = narrow();
    let (mut client, mut mixed, mut talker) = (proxy.connect(), proxy.connect(), proxy.connect());
    client.run("LISTEN \"снова\"");
    mixed.run("LISTEN \"снова\"; LISTEN plain; LISTEN \"encoré\"");
    for round in 0..2 {
        for listener in [&mut client, &mut mixed] {
            for sql in ["SET client_encoding = 'LATIN1'", "RESET client_encoding"] {
                listener.send(&query(sql));
                assert!(listener.until_ready().iter().any(tells_of_loss), "{sql}");
                listener.run("BEGIN; SELECT 1; COMMIT");
                mixed_in(listener, round);
            }
        }
        talker.run(&format!("NOTIFY \"снова\", '{round}'; NOTIFY \"encoré\", 'é'"));
        for listener in [&mut client, &mut mixed] {
            assert_eq!(notified(listener), ("снова".to_owned(), round.to_string()));
        }
        assert_eq!(notified(&mut mixed), ("encoré".to_owned(), "é".to_owned()));
    }
    // What was given up meanwhile does not come back.
    for forgets in [
        "UNLISTEN *",
        "DISCARD ALL",
        "BEGIN; UNLISTEN *; LISTEN other; COMMIT",
    ] {
        client.run("UNLISTEN *; LISTEN \"снова\"");
        client.run("SET client_encoding = 'LATIN1'");
        client.run(forgets);
        client.run("RESET client_encoding");
        assert_eq!(client.run("NOTIFY \"снова\"; SELECT 1").rows.len(), 1);
        let heard = client.run("SELECT pg_listening_channels()").rows;
        assert!(
            !heard.concat().contains(&Some("снова".to_owned())),
            "{forgets}: {heard:?}"
        );
        client.send(&query("SELECT 1"));
        assert!(client.until_ready().iter().all(|message| message.kind != b'A'));
    }
}

/// It was told that something may be lost before anybody listened, and of what was lost then it was not told.
#[test]
fn who_cannot_be_heard_in_another_encoding_yet_hears_as_before() {
    let cluster = Cluster::shared();
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster.proxy().through(&primary.name, &link).start();
    let mut talker = cluster.app(primary.port).connect();
    let mut listener = proxy.connect();
    listener.run("LISTEN staying");
    link.on_message(|frame| match frame.kind == b'S' && frame.has("halyard_listen") {
        true => Act::LastWords(Vec::new()),
        false => Act::Pass,
    });
    listener.send(&query("SET client_encoding = 'LATIN1'"));
    assert!(!listener.until_ready().iter().any(tells_of_loss));
    talker.run("NOTIFY staying, 'before'");
    assert_eq!(notified(&mut listener).1, "before");
    link.on_message(|_| Act::Pass);
    let mut told = Vec::new();
    until("the other encoding to be heard", || {
        talker.run("NOTIFY staying, 'é'");
        told.push(listener.receive());
        listener.send(&query("SELECT 1"));
        assert!(!listener.until_ready().iter().any(tells_of_loss));
        told.last()
            .is_some_and(|message| message.body.ends_with(b"\0\xe9\0"))
    });
    assert!(told.iter().all(|message| message.kind == b'A'));
}

/// It was deaf for a channel that is spelled otherwise in the encoding that it had set and lost again.
#[test]
fn a_backend_lost_while_its_client_changes_its_encoding_costs_no_channel() {
    let cluster = Cluster::shared();
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster.proxy().through(&primary.name, &link).start();
    let mut talker = cluster.app(primary.port).connect();
    let mut client = proxy.connect();
    client.run("LISTEN \"hivér\"");
    link.lose_before(b'T', "convert_from");
    client.send(&query("SET client_encoding = 'LATIN1'"));
    let told = client.until_ready();
    let mut parameters = told.iter().filter(|message| message.kind == b'S');
    let (name, value) = parameters.next_back().unwrap().parameter();
    assert_eq!((name.as_str(), value.as_str()), ("client_encoding", "UTF8"));
    let mut hears = |client: &mut Client, payload: &str| {
        talker.run(&format!("NOTIFY \"hivér\", '{payload}'"));
        let message = client.until_kind(b'A').pop().unwrap();
        assert!(
            message.body.ends_with(format!("\0{payload}\0").as_bytes()),
            "{message}"
        );
    };
    hears(&mut client, "é");
    assert_eq!(client.failure("SELECT 1"), "57P01", "what it had set is gone");
    client.run("BEGIN; SELECT 1; COMMIT");
    hears(&mut client, "à");
}

/// Listens to something new and gives it up again, so that the backend is asked what is listened to.
fn mixed_in(listener: &mut Client, round: usize) {
    listener.run(&format!("LISTEN mixed_in_{round}"));
    listener.run(&format!("BEGIN; UNLISTEN mixed_in_{round}; COMMIT"));
}

/// What it had kept on its backend went with the backend, and its next statement failed.
#[test]
fn a_block_that_listens_and_changes_the_encoding_keeps_its_session() {
    let proxy = narrow();
    let (mut client, mut talker) = (proxy.connect(), proxy.connect());
    client.run("CREATE TEMP TABLE kept_through (a int)");
    client.run("LISTEN \"канал\"");
    client.run("BEGIN");
    client.run("LISTEN behind_turn");
    client.run("SET client_encoding = 'LATIN1'");
    client.send(&query("COMMIT"));
    assert!(client.until_ready().iter().any(tells_of_loss));
    assert_eq!(client.value("SELECT count(*) FROM kept_through"), "0");
    talker.run("NOTIFY behind_turn, 'x'");
    assert_eq!(notified(&mut client).1, "x");
    client.run("RESET client_encoding");
    talker.run("NOTIFY \"канал\", 'y'");
    assert_eq!(notified(&mut client).1, "y");
}

/// Its own NOTIFY in the same transaction was lost without a word.
#[test]
fn a_name_in_escapes_is_heard_from_its_transaction_on() {
    let proxy = narrow();
    let mut client = proxy.connect();
    for (number, name) in [
        "U&\"\\0065scaped\"",
        "U&\"\\+0000e9t\\00e9\"",
        "U&\"!0062\" UESCAPE '!'",
    ]
    .into_iter()
    .enumerate()
    {
        client.run("BEGIN");
        client.run(&format!("LISTEN {name}"));
        client.run(&format!("NOTIFY {name}, '{number}'"));
        client.send(&query("COMMIT"));
        let heard: Vec<_> = client.until_ready().iter().filter_map(payload).collect();
        assert_eq!(heard.len(), 1, "{name}");
        assert_eq!(heard[0].1, number.to_string());
    }
    // A pair of halves is not read: what came of it is told to be missed.
    client.run("BEGIN");
    client.run("LISTEN U&\"\\D83D\\DE00\"");
    client.send(&query("COMMIT"));
    assert!(client.until_ready().iter().any(tells_of_loss));
    proxy.connect().run("NOTIFY \"😀\", 'heard'");
    assert_eq!(notified(&mut client).1, "heard");
}

/// The statement that asked for it cost everybody on the database the connection that listens, for as long as the client
/// waited.
#[test]
fn a_name_that_the_server_refuses_is_refused_to_its_client_alone() {
    let proxy = narrow();
    let mut ascii = proxy.address.connect_with(&[("client_encoding", "SQL_ASCII")]);
    let mut ascii_other = proxy.address.connect_with(&[("client_encoding", "SQL_ASCII")]);
    let (mut client, mut other, mut talker) = (proxy.connect(), proxy.connect(), proxy.connect());
    for listener in [&mut other, &mut ascii_other, &mut ascii] {
        listener.run("LISTEN steady");
    }
    client.run("LISTEN steady; LISTEN steadier");
    for round in 0..3 {
        client.send(&query("LISTEN fine; LISTEN \"\"; LISTEN also_fine"));
        assert_eq!(client.answer().sqlstate(), "42601");
        ascii.send(&tagged(b'Q', b"LISTEN \"\xff\"\0"));
        assert_eq!(ascii.answer().sqlstate(), "22021");
        client.run("BEGIN");
        assert_eq!(client.failure("LISTEN \"\""), "42601");
        client.run("ROLLBACK");
        talker.run(&format!(
            "NOTIFY steady, '{round}'; NOTIFY fine; NOTIFY also_fine"
        ));
        for listener in [&mut other, &mut ascii_other, &mut ascii, &mut client] {
            assert_eq!(notified(listener), ("steady".to_owned(), round.to_string()));
        }
    }
    assert_eq!(proxy.metric("halyard_notification_listeners_lost_total"), 0.0);
    until("the refused ones to be forgotten", || {
        proxy.metric("halyard_listened_channels") == 3.0
    });
}

/// A server ends a listener's connection, or gives it an error, where it cannot write what it is to tell.
#[test]
fn what_the_encoding_cannot_write_is_told_to_be_missed_and_the_next_is_heard() {
    let proxy = narrow();
    let mut latin = proxy.address.connect_with(&[("client_encoding", "LATIN1")]);
    let (mut utf8, mut talker) = (proxy.connect(), proxy.connect());
    latin.run("LISTEN poisoned");
    utf8.run("LISTEN poisoned");
    for round in 0..3 {
        talker.run("NOTIFY poisoned, '漢'");
        assert_eq!(notified(&mut utf8).1, "漢");
        let warning = latin.receive();
        assert!(tells_of_loss(&warning), "{warning}");
        talker.run(&format!("NOTIFY poisoned, '{round}'"));
        for listener in [&mut latin, &mut utf8] {
            assert_eq!(notified(listener).1, round.to_string());
        }
    }
}

#[test]
fn inside_a_block_nothing_is_told() {
    let proxy = narrow();
    let (mut listener, mut talker) = (proxy.connect(), proxy.connect());
    listener.run("LISTEN blocks");
    for end in ["COMMIT", "ROLLBACK"] {
        listener.run("BEGIN");
        talker.run("NOTIFY blocks, 'meanwhile'");
        for _ in 0..3 {
            listener.send(&query("SELECT pg_sleep(0.05)"));
            assert!(listener.until_ready().iter().all(|message| message.kind != b'A'));
        }
        listener.send(&query(end));
        let before: Vec<_> = listener.until_ready();
        assert!(before.iter().filter(|message| message.kind == b'A').count() <= 1);
        if before.iter().all(|message| message.kind != b'A') {
            assert_eq!(notified(&mut listener).1, "meanwhile");
        }
    }
    // Nor in a failed one.
    listener.run("BEGIN");
    assert_eq!(listener.failure("SELECT 1/0"), "22012");
    talker.run("NOTIFY blocks, 'failed'");
    assert_eq!(listener.failure("SELECT 1"), "25P02");
    listener.send(&query("ROLLBACK"));
    let end = listener.until_kind(b'A');
    assert_eq!(payload(end.last().unwrap()).unwrap().1, "failed");
}

#[test]
fn who_keeps_its_backend_for_another_reason_hears_as_well() {
    let proxy = narrow();
    let (mut pinned, mut talker) = (proxy.connect(), proxy.connect());
    pinned.run("LISTEN before_pin");
    pinned.run("CREATE TEMP TABLE keeps (a int)");
    pinned.run("LISTEN behind_pin");
    for channel in ["before_pin", "behind_pin"] {
        talker.run(&format!("NOTIFY {channel}, 'to all'"));
        assert_eq!(notified(&mut pinned), (channel.to_owned(), "to all".to_owned()));
    }
    pinned.send(&query("NOTIFY behind_pin, 'to itself'"));
    let answer = pinned.until_ready();
    assert_eq!(answer.iter().filter(|message| message.kind == b'A').count(), 1);
    pinned.run("UNLISTEN before_pin");
    talker.run("NOTIFY before_pin; NOTIFY behind_pin, 'last'");
    assert_eq!(notified(&mut pinned).1, "last");
    assert_eq!(pinned.value("SELECT count(*) FROM keeps"), "0");
}

#[test]
fn a_backend_is_given_back_listening_to_nothing() {
    let proxy = Cluster::shared().proxy().set("pool.size", 1).start();
    let (mut listener, mut other) = (proxy.connect(), proxy.connect());
    for work in [
        "LISTEN left_behind",
        "BEGIN; SELECT 1; COMMIT",
        "BEGIN; SELECT 1; ROLLBACK",
        "NOTIFY elsewhere",
        "SELECT pg_listening_channels()",
        "BEGIN; LISTEN also_left; COMMIT",
        "BEGIN; SELECT pg_notify('left_behind', ''); COMMIT",
    ] {
        listener.run(work);
        let left = other.run("SELECT pg_listening_channels()").rows;
        assert_eq!(left, Vec::<Vec<_>>::new(), "after {work:?}");
    }
    assert_eq!(
        listener
            .run("SELECT * FROM pg_listening_channels() ORDER BY 1")
            .rows
            .len(),
        2
    );
    // Nor does a client leave anything that goes in the middle of a block.
    listener.run("BEGIN");
    listener.run("LISTEN a_third");
    listener.vanish();
    let left = other.run("SELECT pg_listening_channels()").rows;
    assert_eq!(left, Vec::<Vec<_>>::new());
}

/// The text of a DO block or a function is read by nobody; what it listened to is found out behind it.
#[test]
fn what_a_function_listens_to_follows_as_well() {
    let proxy = narrow();
    let (mut listener, mut talker) = (proxy.connect(), proxy.connect());
    let hears = |listener: &mut Client, talker: &mut Client, channel: &str| {
        // It is heard a moment behind the answer.
        until(&format!("{channel} to be heard"), || {
            talker.run(&format!("NOTIFY {channel}, 'x'"));
            listener.send(&query("SELECT 1"));
            listener.until_ready().iter().any(|message| message.kind == b'A')
        });
    };
    listener.run("DO $$ BEGIN EXECUTE 'LISTEN hidden'; END $$");
    hears(&mut listener, &mut talker, "hidden");
    listener.run("DO $$ BEGIN EXECUTE 'LISTEN hidden_too'; END $$");
    hears(&mut listener, &mut talker, "hidden_too");
    hears(&mut listener, &mut talker, "hidden");
    assert!(proxy.metric("halyard_listening_clients") >= 1.0);
}

#[test]
fn with_a_backend_of_its_own_a_session_listens_as_all_do() {
    let proxy = Cluster::shared()
        .proxy()
        .set("pool.mode", "session")
        .cold()
        .start();
    let (mut listener, mut talker) = (proxy.connect(), proxy.connect());
    listener.run("LISTEN natively");
    assert_eq!(listener.value("SELECT pg_listening_channels()"), "natively");
    talker.run("NOTIFY natively, 'x'");
    assert_eq!(notified(&mut listener).1, "x");
    // So that it goes on to hear them when its backend is lost.
    assert_eq!(proxy.metric("halyard_listening_clients"), 1.0);
}

#[test]
fn on_a_port_for_replicas_listen_is_refused_as_a_standby_does() {
    let (wanted, port) = Cluster::shared().proxy().also_listening("replica");
    let proxy = wanted.start();
    let mut client = Cluster::shared().app(port).connect();
    let answer = client.query("LISTEN here");
    let error = answer.error.unwrap();
    assert_eq!(error.field(b'M'), "cannot execute LISTEN during recovery");
    assert_eq!(proxy.metric("halyard_listening_clients"), 0.0);
}

#[test]
fn more_channels_than_the_limit_are_refused() {
    let proxy = Cluster::shared().proxy().set("limits.channels_max", 2).start();
    let mut client = proxy.connect();
    client.run("LISTEN first; LISTEN second");
    assert_eq!(client.failure("LISTEN third"), "53400");
    client.run("UNLISTEN first");
    client.run("LISTEN third");
    client.run("BEGIN");
    assert_eq!(client.failure("LISTEN fourth"), "53400");
    assert_eq!(client.query("SELECT 1").status, 'E');
    client.run("ROLLBACK");
    client.run("NOTIFY second");
}

/// A client that reads nothing must cost neither memory without bound nor anybody else's notifications.
#[test]
fn a_client_that_does_not_read_is_told_what_it_missed() {
    const COUNT: u64 = 4000;
    let _alone = alone();
    let proxy = Cluster::shared()
        .proxy()
        .set("limits.notifications_queued_max", "64kB")
        // How long the others take is not the matter here.
        .set("limits.tcp_user_timeout", "10min")
        .start();
    let (mut slow, mut quick, mut talker) = (proxy.connect(), proxy.connect(), proxy.connect());
    slow.run("LISTEN flood");
    quick.run("LISTEN flood");
    let padding = "x".repeat(7000);
    for n in 0..COUNT {
        talker.run(&format!("NOTIFY flood, '{n}:{padding}'"));
        assert_eq!(notified(&mut quick).1, format!("{n}:{padding}"));
    }
    talker.run("NOTIFY flood, 'end'");
    let (mut heard, mut dropped, mut last) = (0, 0, None);
    while heard + dropped < COUNT + 1 {
        let message = slow.receive();
        match payload(&message) {
            Some((_, text)) => {
                let number = text.split(':').next().unwrap().parse::<u64>().ok();
                assert!(number.is_none() || number > last, "{last:?} before {number:?}");
                last = number;
                heard += 1;
            }
            None => {
                assert_eq!(message.field(b'V'), "WARNING", "{message}");
                assert_eq!(message.field(b'C'), "01000");
                let words = message.field(b'M');
                dropped += words.split(' ').next().unwrap().parse::<u64>().unwrap();
            }
        }
    }
    assert!(dropped > 0 && heard > 0, "{heard} heard, {dropped} dropped");
    let counted = proxy.metric(r#"halyard_notifications_total{outcome="dropped"}"#);
    assert_eq!(counted, dropped as f64);
    // It lives on as it was.
    talker.run("NOTIFY flood, 'afterwards'");
    assert_eq!(notified(&mut slow).1, "afterwards");
}

#[test]
fn a_connection_that_is_lost_is_replaced_and_its_clients_are_warned() {
    let cluster = Cluster::shared();
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster.proxy().through(&primary.name, &link).start();
    let (mut listener, mut idle) = (proxy.connect(), proxy.connect());
    listener.run("LISTEN cut");
    idle.run("BEGIN; LISTEN cut; ROLLBACK");
    let mut talker = cluster.app(primary.port).connect();
    for round in 0..3 {
        talker.run(&format!("NOTIFY cut, '{round}'"));
        assert_eq!(notified(&mut listener).1, round.to_string());
        link.cut();
        talker.run("NOTIFY cut, 'nobody hears this'");
        link.mend();
        let warning = listener.receive();
        assert!(tells_of_loss(&warning), "{warning}");
    }
    // Who listens to nothing has missed nothing.
    assert_eq!(idle.run("SELECT 1").notices, []);
    assert!(proxy.metric("halyard_notification_listeners_lost_total") >= 3.0);
}

/// A silent listener cannot notice that its link swallows everything; a question that is not answered can.
#[test]
fn a_link_that_swallows_everything_is_noticed() {
    let cluster = Cluster::shared();
    let primary = cluster.primary();
    let link = Link::to(primary.port);
    let proxy = cluster.proxy().through(&primary.name, &link).start();
    let mut listener = proxy.connect();
    listener.run("LISTEN swallowed");
    link.fall_silent();
    until("the loss to be noticed", || {
        proxy.metric("halyard_notification_listeners_lost_total") >= 1.0
    });
    link.mend();
    let warning = listener.receive();
    assert!(tells_of_loss(&warning), "{warning}");
    cluster
        .app(primary.port)
        .connect()
        .run("NOTIFY swallowed, 'again'");
    assert_eq!(notified(&mut listener).1, "again");
}

#[test]
fn a_listener_survives_a_failover() {
    let cluster = Cluster::breakable();
    let proxy = cluster.proxy().start();
    let primary = cluster.primary().name.clone();
    let patient = || {
        let client = proxy.connect();
        client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
        client
    };
    let mut listeners: Vec<_> = (0..5).map(|_| patient()).collect();
    for listener in &mut listeners {
        listener.run("LISTEN failover");
    }
    let (mut talker, mut late, mut in_block) = (patient(), patient(), patient());
    in_block.run("LISTEN failover");
    in_block.run("BEGIN");
    talker.run("NOTIFY failover, 'before'");
    for listener in &mut listeners {
        assert_eq!(notified(listener).1, "before");
    }
    cluster.kill(&primary);
    // LISTEN waits for the new primary like any other statement.
    late.send(&query("LISTEN failover"));
    assert_eq!(late.answer().error, None);
    for listener in &mut listeners {
        let warning = listener.receive();
        assert!(tells_of_loss(&warning), "{warning}");
    }
    talker.run("NOTIFY failover, 'after'");
    for listener in listeners.iter_mut().chain([&mut late]) {
        assert_eq!(notified(listener).1, "after");
    }
    // The block went with its node, its client's registrations did not.
    assert_eq!(in_block.failure("SELECT 1"), "40001");
    in_block.send(&query("ROLLBACK"));
    in_block.until_ready();
    assert_eq!(notified(&mut in_block).1, "before");
    let warning = in_block.receive();
    assert!(tells_of_loss(&warning), "{warning}");
    assert_eq!(notified(&mut in_block).1, "after");
}

#[test]
fn a_drained_listener_is_told_to_leave() {
    let mut proxy = narrow();
    let mut listener = proxy.connect();
    listener.run("LISTEN drained");
    proxy.terminate();
    let farewell = listener.until_closed();
    assert_eq!(farewell.last().unwrap().field(b'C'), "57P01");
    proxy.ended();
}

#[test]
fn psql_hears_itself_as_it_would_from_a_server() {
    let script = "LISTEN by_psql;\nNOTIFY by_psql, 'x';\nUNLISTEN by_psql;\nNOTIFY by_psql;\n";
    let out = Program::psql(&Cluster::shared_proxy().address)
        .input(script)
        .succeed();
    let heard =
        "Asynchronous notification \"by_psql\" with payload \"x\" received from server process with PID";
    assert!(out.starts_with(heard) && out.lines().count() == 1, "{out}");
}

#[test]
fn drivers_for_python_listen() {
    assert_eq!(python("listeners.py", &narrow().address).succeed(), "ok\n");
}
