//! Peers that do what no sound peer does: nodes with torn, wrong or missing answers, and clients that want harm.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::message::*;
use crate::support::{
    Act, Client, Cluster, Frame, Link, PATIENCE, Proxy, Script, differential_on, limit_open_files, until,
};

/// A proxy that reaches the primary and one replica through links, and knows no other node.
struct Linked {
    primary: Link,
    replica: Link,
    proxy: Proxy,
}

impl Linked {
    fn start() -> Self {
        Self::start_with(|wanted| wanted)
    }

    fn start_with(
        adjust: impl FnOnce(crate::support::Wanted<'static>) -> crate::support::Wanted<'static>,
    ) -> Self {
        let cluster = Cluster::shared();
        let name = cluster.primary().name.as_str();
        let primary = Link::to(cluster.primary().port);
        let replica = Link::to(cluster.node("ro1").port);
        let wanted = cluster
            .proxy()
            .only_nodes(|node| node == name || node == "ro1")
            .through(name, &primary)
            .through("ro1", &replica);
        let proxy = adjust(wanted).start();
        Self {
            primary,
            replica,
            proxy,
        }
    }

    /// The connections lost while a client had them, by what it got.
    fn losses(&self, outcome: &str) -> f64 {
        self.proxy
            .metric(&format!("halyard_backend_losses_total{{outcome=\"{outcome}\"}}"))
    }
}

/// An ErrorResponse of some fields.
pub(crate) fn error_response(fields: &[&str]) -> Vec<u8> {
    let mut body: Vec<u8> = fields
        .iter()
        .flat_map(|field| [field.as_bytes(), b"\0"].concat())
        .collect();
    body.push(0);
    tagged(b'E', &body)
}

/// Does something to messages with a text in them, once.
fn once_at(
    link: &Link,
    kind: u8,
    marker: &'static str,
    act: impl Fn(&Frame<'_>) -> Act + Send + Sync + 'static,
) {
    let done = AtomicBool::new(false);
    link.on_message(move |frame| {
        let wanted = frame.kind == kind && frame.has(marker);
        if wanted && !done.swap(true, Ordering::Relaxed) {
            act(frame)
        } else {
            Act::Pass
        }
    });
}

#[test]
fn answers_that_come_byte_by_byte_are_the_same_answers() {
    let linked = Linked::start();
    linked.primary.tear();
    linked.replica.tear();
    let script = Script::new()
        .given("DROP TABLE IF EXISTS torn; CREATE TABLE torn (a int, b text)")
        .query("SELECT g, repeat('x', g) FROM generate_series(1, 40) g")
        .query("SELECT 1/0")
        .query("DO $$ BEGIN RAISE NOTICE 'torn as well'; END $$")
        .batch(&[parse("s", "SELECT $1::int, $2"), describe_statement("s")])
        .batch(&[
            bind("", "s", &[Some("1"), Some("text")]),
            execute("", 0),
            unnamed("SELECT 1/0", &[]),
        ])
        .query("BEGIN; INSERT INTO torn VALUES (1, 'one') RETURNING *; COMMIT")
        .query("COPY (SELECT generate_series(1, 20)) TO STDOUT")
        .send(query("COPY torn FROM STDIN"))
        .until(b'G')
        .send([copy_data(b"2\ttwo\n"), copy_done()].concat())
        .until_ready(1);
    differential_on(&script, &linked.proxy.address);
}

#[test]
fn requests_that_come_byte_by_byte_are_the_same_requests() {
    let requests = [
        query("SELECT 1; SELECT 'two'"),
        parse("s", "SELECT $1::int"),
        describe_statement("s"),
        bind("", "s", &[Some("42")]),
        execute("", 0),
        sync(),
        query("SELECT 1/0"),
    ]
    .concat();
    let script = requests
        .iter()
        .fold(Script::new(), |script, byte| script.send([*byte]))
        .until_ready(3);
    differential_on(&script, &Cluster::shared_proxy().address);
}

/// Nothing of the answer had reached the client, so another node can give it.
#[test]
fn a_read_whose_node_dies_before_the_first_row_is_run_elsewhere() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    once_at(&linked.replica, b'T', "before_the_first", |_| {
        Act::LastWords(Vec::new())
    });
    assert_eq!(client.value("SELECT 7 AS before_the_first"), "7");

    // A node that has just lost a connection gets no reads for a moment.
    let replica = Cluster::shared().node("ro1").port;
    until("reads to reach the replica again", || {
        client.server_port() == replica
    });
    once_at(&linked.replica, b'1', "", |_| Act::LastWords(Vec::new()));
    client.send(&[unnamed("SELECT $1::int", &[Some("8")]), sync()].concat());
    assert_eq!(client.answer().rows, [[Some("8".to_owned())]]);
    assert_eq!(linked.losses("rerun"), 2.0);
}

#[test]
fn a_read_whose_node_dies_in_the_middle_of_a_row_is_an_error_and_the_session_lives_on() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    once_at(&linked.replica, b'D', "row 30 of", |frame| {
        Act::LastWords(frame.bytes[..frame.bytes.len() / 2].to_vec())
    });
    let answer = client.query("SELECT 'row ' || g || ' of many' FROM generate_series(1, 100) g");
    assert_eq!(answer.sqlstate(), "57P01", "{:?}", answer.error);
    assert_eq!(answer.status, 'I');
    assert_eq!(client.value("SELECT 'alive'"), "alive");
    assert_eq!(linked.losses("cut_short"), 1.0);
}

/// The row is longer than any buffer: its beginning has reached the client when the node dies, and no message can
/// follow within it. All that is left is to end the connection; anything else would be taken for a part of the row.
#[test]
fn a_node_that_dies_within_a_row_already_on_its_way_ends_the_connection() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    once_at(&linked.replica, b'D', "xxxxxxxx", |frame| {
        Act::LastWords(frame.bytes[..frame.bytes.len() / 2].to_vec())
    });
    client.send(&query("SELECT repeat('x', 3000000) AS long_row"));
    client.until_kind(b'T');
    let (mut row, mut stream) = client.into_stream();
    if let Err(error) = stream.read_to_end(&mut row) {
        assert_ne!(
            error.kind(),
            std::io::ErrorKind::WouldBlock,
            "the connection stays open within a row"
        );
    }
    assert_eq!(row[0], b'D');
    // Type, length, count of columns and the column's length come first.
    assert!(
        row.len() > 11 && row[11..].iter().all(|byte| *byte == b'x'),
        "something got into the row"
    );
    assert_eq!(linked.proxy.connect().value("SELECT 'alive'"), "alive");
    assert_eq!(linked.losses("disconnected"), 1.0);
}

#[test]
fn a_node_that_dies_during_copy_out_is_an_error() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    once_at(&linked.replica, b'd', "line 50", |_| Act::LastWords(Vec::new()));
    let answer = client.query("COPY (SELECT 'line ' || g FROM generate_series(1, 100) g) TO STDOUT");
    assert_eq!(answer.sqlstate(), "57P01", "{:?}", answer.error);
    assert_eq!(client.value("SELECT 'alive'"), "alive");
}

#[test]
fn a_node_that_dies_during_copy_in_leaves_the_outcome_unknown() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS cut_copy; CREATE TABLE cut_copy (a int)");
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    client.send(&query("COPY cut_copy FROM STDIN"));
    client.until_kind(b'G');
    client.send(&copy_data(b"1\n"));
    linked.primary.cut();
    client.send(&[copy_data(b"2\n"), copy_done()].concat());
    let answer = client.answer();
    assert_eq!(answer.sqlstate(), "08007", "{:?}", answer.error);
    linked.primary.mend();
    assert_eq!(client.value("BEGIN; SELECT count(*) FROM cut_copy; COMMIT"), "0");
}

#[test]
fn a_write_whose_node_dies_without_an_answer_is_never_repeated() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS once; CREATE TABLE once (a int)");
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    once_at(
        &linked.primary,
        b'C',
        "INSERT 0 1",
        |_| Act::LastWords(Vec::new()),
    );
    let answer = client.query("INSERT INTO once VALUES (1)");
    assert_eq!(answer.sqlstate(), "08007", "{:?}", answer.error);
    assert_eq!(answer.status, 'I');
    assert_eq!(
        client.value("BEGIN; SELECT count(*) FROM once; COMMIT"),
        "1",
        "it did take effect, once"
    );
}

/// Whoever writes next waits until the primary was looked at: it may be about to end all its connections.
#[test]
fn a_write_behind_a_loss_waits_until_its_primary_is_in_doubt_no_more() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS doubted; CREATE TABLE doubted (a int)");
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    // The look takes a moment, and one that was just taken does for a while.
    until("a write to be held for a doubt", || {
        once_at(
            &linked.primary,
            b'C',
            "INSERT 0 1",
            |_| Act::LastWords(Vec::new()),
        );
        assert_eq!(client.failure("INSERT INTO doubted VALUES (1)"), "08007");
        client.run("INSERT INTO doubted VALUES (2)");
        linked.proxy.metric("halyard_held_total{reason=\"in_doubt\"}") >= 1.0
    });
}

#[test]
fn a_block_whose_node_dies_can_be_retried() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS retried; CREATE TABLE retried (a int)");
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    for during_a_statement in [true, false] {
        client.run("BEGIN");
        client.run("INSERT INTO retried VALUES (1)");
        if during_a_statement {
            // The node's own process sleeps on behind the cut, and keeps its locks until it wakes.
            client.send(&query("SELECT pg_sleep(20)"));
            until("it to run", || linked.proxy.clients("active") == 1);
        }
        linked.primary.cut();
        let answer = if during_a_statement {
            client.answer()
        } else {
            client.query("SELECT 1")
        };
        assert_eq!(answer.sqlstate(), "40001", "{:?}", answer.error);
        assert_eq!(answer.status, 'E');
        let refused = client.query("INSERT INTO retried VALUES (2)");
        assert_eq!((refused.sqlstate().as_str(), refused.status), ("25P02", 'E'));
        let ended = client.run("ROLLBACK");
        assert_eq!((ended.tags, ended.status), (vec!["ROLLBACK".to_owned()], 'I'));
        linked.primary.mend();
        linked
            .proxy
            .until_role(&Cluster::shared().primary().name, "primary");
    }
    client.run("BEGIN; INSERT INTO retried VALUES (3); COMMIT");
    assert_eq!(
        client.value("BEGIN; SELECT string_agg(a::text, ',') FROM retried; COMMIT"),
        "3"
    );
}

#[test]
fn a_commit_without_an_answer_is_of_unknown_outcome() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS committed; CREATE TABLE committed (a int)");
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    client.run("BEGIN");
    client.run("INSERT INTO committed VALUES (1)");
    once_at(&linked.primary, b'C', "COMMIT", |_| Act::LastWords(Vec::new()));
    let answer = client.query("COMMIT");
    assert_eq!((answer.sqlstate().as_str(), answer.status), ("08007", 'I'));
    assert_eq!(client.value("BEGIN; SELECT count(*) FROM committed; COMMIT"), "1");
}

/// CVE-2026-6666: an error without a SQLSTATE crashed a peer.
#[test]
fn a_fatal_error_without_sqlstate_harms_nobody() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    for fields in [
        &["SFATAL", "VFATAL", "Mthe server says no more"] as &[&str],
        &["SFATAL"],
        &[],
    ] {
        let last = error_response(fields);
        once_at(&linked.replica, b'D', "fatal here", move |_| {
            Act::LastWords(last.clone())
        });
        let answer = client.query("SELECT 'fatal here'");
        // No row was told, so the read is run again elsewhere; what does not say that it is fatal is the answer itself.
        let rerun = answer.rows == [[Some("fatal here".to_owned())]];
        let fatal = fields.contains(&"VFATAL");
        assert_eq!(
            (rerun, answer.error.is_some()),
            (fatal, !fatal),
            "{fields:?}: {answer:?}"
        );
        assert_eq!(answer.status, 'I');
        until("the replica to serve again", || {
            client.server_port() == Cluster::shared().node("ro1").port
        });
    }
}

/// A node that is shut down says so before it goes.
#[test]
fn an_administrators_shutdown_of_a_standby_is_not_seen() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    let last = error_response(&[
        "SFATAL",
        "VFATAL",
        "C57P01",
        "Mterminating connection due to administrator command",
    ]);
    let first = last.clone();
    once_at(&linked.replica, b'T', "shut_down_here", move |_| {
        Act::LastWords(first.clone())
    });
    assert_eq!(client.value("SELECT 9 AS shut_down_here"), "9");

    // What it had in its buffer goes out in front, in one write.
    let behind = move |frame: &Frame<'_>| Act::LastWords([frame.bytes, &last].concat());
    once_at(&linked.replica, b'T', "with_its_buffer", behind.clone());
    assert_eq!(client.value("SELECT 8 AS with_its_buffer"), "8");
    once_at(&linked.replica, b'T', "with_its_batch", behind);
    client.send(&[unnamed("SELECT 7 AS with_its_batch", &[]), sync()].concat());
    assert_eq!(client.answer().rows, [[Some("7".to_owned())]]);
}

/// The client has been told that it has its lock, and Halyard asks what it holds: there the node goes.
#[test]
fn what_is_lost_while_halyard_asks_what_there_is_is_told() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    client.run("BEGIN; COMMIT");
    // The columns of the question have no names.
    once_at(&linked.primary, b'T', "?column?", |_| Act::LastWords(Vec::new()));
    client.run("SELECT pg_advisory_lock(481516)");
    let told = client.query("SELECT 1");
    assert_eq!(
        (told.sqlstate().as_str(), told.status),
        ("57P01", 'I'),
        "{told:?}"
    );
    assert_eq!(client.value("SELECT 'alive'"), "alive");
}

/// A listening client's ReadyForQuery waits for what it is to hear; the server says goodbye behind it in one write.
#[test]
fn a_ready_for_query_that_was_kept_back_is_told_where_the_node_goes_with_it() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    client.run("LISTEN kept_back");
    let last = error_response(&["SFATAL", "VFATAL", "C57P01", "Mterminating connection"]);
    once_at(&linked.primary, b'C', "NOTIFY", move |frame| {
        Act::LastWords([frame.bytes, &tagged(b'Z', b"I"), &last].concat())
    });
    let told = client.query("NOTIFY kept_back");
    assert_eq!(
        (told.tags, told.status),
        (vec!["NOTIFY".to_owned()], 'I'),
        "{:?}",
        told.error
    );
    assert_eq!(client.value("SELECT 'alive'"), "alive");
}

/// Whoever has turned writes off by hand has not told Halyard: the first refusal does.
#[test]
fn a_primary_that_refuses_a_write_is_looked_at() {
    let cluster = Cluster::shared();
    let proxy = cluster
        .proxy()
        .set("general.log_level", "info,halyard_health=debug")
        .start();
    let mut client = proxy.connect();
    let looked = || proxy.log().contains("evidence=ReadOnlyPrimary");
    // Asked for by the client itself it tells nothing of the node.
    client.run("BEGIN READ ONLY; SAVEPOINT s");
    assert_eq!(client.failure("CREATE TABLE never_made (a int)"), "25006");
    client.run("ROLLBACK");
    assert!(!looked());
    let refused = "DO $$ BEGIN SET LOCAL transaction_read_only = on; CREATE TABLE never_made (a int); END $$";
    assert_eq!(client.failure(refused), "25006");
    until("the primary to be looked at", looked);
}

/// Between two probes a minute passes: what a session meets there is what tells.
#[test]
fn a_standby_that_refuses_a_login_or_resets_a_connection_is_looked_at_and_costs_nobody_an_error() {
    let cluster = Cluster::shared();
    let (primary, standby) = (cluster.primary(), cluster.node("ro1"));
    let link = Link::to(standby.port);
    let proxy = cluster
        .eventual()
        .only_nodes(|name| name == primary.name || name == standby.name)
        .through(&standby.name, &link)
        .set("general.log_level", "info,halyard_health=debug")
        .set("health.interval", "1min")
        .set("health.stale_after", "3min")
        .cold()
        .start();
    let looked = |evidence: &str| proxy.log().contains(&format!("evidence={evidence}"));
    let starting = || {
        let fields = "SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
        Act::LastWords(tagged(b'E', fields.as_bytes()))
    };
    let refused = Arc::new(AtomicBool::new(false));
    let once = Arc::clone(&refused);
    link.on_message(move |frame| {
        if frame.kind == b'R' && !once.swap(true, Ordering::Relaxed) {
            starting()
        } else {
            Act::Pass
        }
    });
    let mut client = proxy.connect();
    until("a login to be refused", || {
        client.server_port();
        refused.load(Ordering::Relaxed)
    });
    until("the standby to be looked at", || looked("CannotConnectNow"));
    until("it to have reads", || client.server_port() == standby.port);

    link.lose_before(b'D', "met on its way");
    assert_eq!(client.value("SELECT 'met on its way'"), "met on its way");
    until("the standby to be looked at once more", || {
        looked("ConnectionReset")
    });
    until("it to have reads again", || client.server_port() == standby.port);
}

/// In a COPY or a batch without its end the server waits; so nothing more comes of what was asked before.
#[test]
fn a_client_that_breaks_the_protocol_in_the_middle_gives_its_backend_back() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS broken_into; CREATE TABLE broken_into (a int)");
    let proxy = cluster.proxy().set("pool.size", 1).start();
    let copy = query("COPY broken_into FROM STDIN");
    let batch = [
        parse("", "INSERT INTO broken_into VALUES (1)"),
        bind("", "", &[]),
        execute("", 0),
    ]
    .concat();
    for begun in [&copy, &batch, &parse("", "SELECT 1")] {
        for broken in [
            tagged(b'?', b""),
            vec![b'S', 0, 0, 0, 3],
            vec![b'Q', 0xff, 0xff, 0xff, 0xff],
        ] {
            let mut client = proxy.connect();
            client.send(begun);
            if begun[0] == b'Q' {
                client.until_kind(b'G');
            }
            client.send(&broken);
            let (mut rest, mut stream) = client.into_stream();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.read_to_end(&mut rest).unwrap();
            assert!(
                rest.windows(6).any(|part| part == b"C08P01"),
                "{:?}",
                String::from_utf8_lossy(&rest)
            );
            assert_eq!(
                proxy
                    .connect()
                    .value("BEGIN; SELECT count(*) FROM broken_into; COMMIT"),
                "0"
            );
        }
    }
}

#[test]
fn messages_that_answer_nothing_end_the_nodes_connection_and_not_the_clients() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    for (case, bytes) in [
        ("a frame with a length of 3", vec![b'D', 0, 0, 0, 3]),
        (
            "a frame with a negative length",
            vec![b'D', 0xff, 0xff, 0xff, 0xff],
        ),
        ("an answer to no question", tagged(b'2', b"")),
        ("a type that does not exist", tagged(0xff, b"")),
        ("a ReadyForQuery of no status", tagged(b'Z', b"?")),
        ("an empty ReadyForQuery", tagged(b'Z', b"")),
        ("an authentication request", tagged(b'R', &[0, 0, 0, 0])),
    ] {
        let wrong = bytes.clone();
        once_at(&linked.replica, b'T', "wrong_here", move |_| {
            Act::Instead(wrong.clone())
        });
        let answer = client.query("SELECT 10 AS wrong_here");
        assert!(
            answer.rows == [[Some("10".to_owned())]] || !answer.sqlstate().is_empty(),
            "{case}: run elsewhere or told as an error, but {answer:?}"
        );
        assert_eq!(answer.status, 'I', "{case}");
        until("the replica to serve again", || {
            client.server_port() == Cluster::shared().node("ro1").port
        });
    }
}

#[test]
fn notices_parameters_and_notifications_may_come_at_any_time() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    let extra = [
        tagged(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mby the way\0\0"),
        tagged(b'S', b"application_name\0by the way\0"),
        tagged(b'A', b"\0\0\0\x2achannel\0payload\0"),
    ]
    .concat();
    linked.replica.on_message(move |frame| {
        let odd = frame.has("odd_moment") || frame.kind == b'1' || frame.kind == b'2' || frame.kind == b'C';
        if odd {
            Act::Instead([&extra, frame.bytes, &extra].concat())
        } else {
            Act::Pass
        }
    });
    let plain = |client: &mut Client| -> Vec<u8> {
        let kinds: Vec<u8> = client.until_ready().iter().map(|message| message.kind).collect();
        assert!(
            kinds.iter().filter(|kind| **kind == b'N').count() >= 2,
            "notices are passed on: {kinds:?}"
        );
        kinds.into_iter().filter(|kind| !b"NSA".contains(kind)).collect()
    };
    client.send(&query("SELECT 1 AS odd_moment"));
    assert_eq!(plain(&mut client), b"TDCZ");
    client.send(&[unnamed("SELECT 'odd_moment'", &[]), sync()].concat());
    assert_eq!(plain(&mut client), b"12DCZ");
}

/// The refusal comes behind a ParseComplete, so something of the answer is on its way already.
#[test]
fn a_standbys_refusal_behind_parse_complete_is_run_on_the_primary() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    let refusal = error_response(&[
        "SERROR",
        "VERROR",
        "C25006",
        "Mcannot do that in a read-only transaction",
    ]);
    once_at(&linked.replica, b'2', "", move |_| Act::Instead(refusal.clone()));
    client.send(
        &[
            parse("", "SELECT $1::int"),
            bind("", "", &[Some("11")]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    let kinds: Vec<u8> = client.until_ready().iter().map(|message| message.kind).collect();
    assert_eq!(kinds, b"12DCZ", "{}", String::from_utf8_lossy(&kinds));
}

/// A frozen node accepts connections and answers nothing; only a deadline tells.
#[test]
fn a_silent_replica_is_left_and_its_read_given_to_another_node() {
    let linked = Linked::start();
    let mut client = linked.proxy.connect();
    until("a read on the replica", || {
        client.server_port() == Cluster::shared().node("ro1").port
    });
    linked.replica.fall_silent();
    let began = Instant::now();
    assert_eq!(client.server_port(), Cluster::shared().primary().port);
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "it took {:?}",
        began.elapsed()
    );
    linked.replica.mend();
    until("the replica to serve again", || {
        client.server_port() == Cluster::shared().node("ro1").port
    });
}

/// Where a client took nothing of a result for 30 s, as it was busy with its first rows, the kernel ended its connection: a
/// TCP_USER_TIMEOUT counts while the client's window is shut.
#[test]
fn who_takes_its_time_over_a_result_gets_all_of_it() {
    const ROWS: usize = 400_000;
    /// Longer than what is set.
    const BUSY: Duration = Duration::from_secs(5);
    let ask = |for_clients: &str| {
        let proxy = Cluster::shared()
            .proxy()
            .set("limits.tcp_user_timeout", "1s")
            .set("limits.client_tcp_user_timeout", for_clients)
            .start();
        let mut client = proxy.connect();
        client.send(&query(&format!(
            "SELECT repeat('x', 100) FROM generate_series(1, {ROWS})"
        )));
        std::thread::sleep(BUSY);
        (proxy, client)
    };
    let (_proxy, mut client) = ask("off");
    let answer = client.answer();
    assert_eq!((answer.error, answer.rows.len()), (None, ROWS));
    client.run("SELECT 1");
    // Whoever wants that has it.
    let (_proxy, client) = ask("1s");
    let mut taken = Vec::new();
    let ended = client
        .stream()
        .take(2 * 100 * ROWS as u64)
        .read_to_end(&mut taken);
    assert!(taken.len() < 100 * ROWS, "{ended:?}");
}

/// A client that does not take what Halyard itself answers is read no further, and gets all of it when it does.
#[test]
fn whoever_takes_no_answers_can_ask_no_more() {
    const MOST: usize = 64 << 20;
    let proxy = Cluster::shared().proxy().start();
    let mut client = proxy.connect();
    let question = [close_statement("s"), flush()].concat();
    let questions = question.repeat(4096);
    let mut stream = client.stream().try_clone().unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut sent = 0;
    while let Ok(count) = stream.write(&questions[sent % questions.len()..]) {
        sent += count;
        assert!(sent < MOST, "all of it was taken");
    }
    let asked = sent.div_ceil(question.len());
    let rest = questions[sent % questions.len()..][..asked * question.len() - sent].to_vec();
    stream.set_write_timeout(None).unwrap();
    let finished = std::thread::spawn(move || stream.write_all(&[rest, sync()].concat()));
    let answers = std::iter::from_fn(|| Some(client.receive().kind).filter(|kind| *kind != b'Z'));
    assert_eq!(answers.filter(|kind| *kind == b'3').count(), asked);
    finished.join().unwrap().unwrap();
    client.run("SELECT 1");
}

/// The settings that a client brings are tried on a node; where that is lost meanwhile, another is asked.
#[test]
fn a_login_outlives_the_node_that_tries_its_settings() {
    let linked = Linked::start();
    linked.replica.lose_before(b'T', "set_config");
    linked.primary.lose_before(b'T', "set_config");
    let mut client = linked
        .proxy
        .address
        .connect_with(&[("extra_float_digits", "2"), ("lock_timeout", "7s")]);
    assert_eq!(client.value("SHOW lock_timeout"), "7s");
}

#[test]
fn settings_a_node_reports_do_not_reach_another_session() {
    let linked = Linked::start_with(|wanted| wanted.set("pool.size", 1));
    let report = tagged(b'S', b"TimeZone\0Moon/Tranquility\0");
    once_at(&linked.replica, b'C', "SELECT 1", move |frame| {
        Act::Instead([&report, frame.bytes].concat())
    });
    let mut one = linked.proxy.connect();
    one.run("SELECT 1");
    let other = linked.proxy.connect();
    assert_eq!(other.parameters["TimeZone"], "UTC");
}

/// Sends bytes as the first thing and returns what comes until the connection ends.
#[track_caller]
fn answer_to_first(proxy: &Proxy, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.address.port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_ne!(
            error.kind(),
            std::io::ErrorKind::WouldBlock,
            "it stays open after {bytes:?}"
        );
    }
    answer
}

#[test]
fn what_is_no_startup_packet_is_refused_at_once() {
    let proxy = Cluster::shared_proxy();
    for (case, bytes) in [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("2 GB announced", vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("a negative length", vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("a length of 0", vec![0, 0, 0, 0, 0, 3, 0, 0]),
        ("a length of 7", vec![0, 0, 0, 7, 0, 3, 0]),
        (
            "10,001 bytes beside its length",
            vec![0, 0, 0x27, 0x15, 0, 3, 0, 0],
        ),
        (
            "no end to its parameters",
            vec![0, 0, 0, 13, 0, 3, 0, 0, b'u', b's', b'e', b'r', 0],
        ),
        ("protocol 2", vec![0, 0, 0, 8, 0, 2, 0, 0]),
    ] {
        let answer = answer_to_first(proxy, &bytes);
        assert!(
            answer.is_empty() || answer[0] == b'E',
            "{case}: {:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert_eq!(proxy.connect().value("SELECT 'alive'"), "alive");
}

#[test]
fn encryption_that_is_not_offered_is_declined_and_the_connection_goes_on() {
    let proxy = Cluster::shared().proxy().trusting().start();
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.address.port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 1];
    for request in [80_877_104_u32, 80_877_103] {
        stream
            .write_all(&[8_u32.to_be_bytes(), request.to_be_bytes()].concat())
            .unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"N");
    }
    stream
        .write_all(&startup(&[
            ("user", &proxy.address.user),
            ("database", &proxy.address.database),
        ]))
        .unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"R");
}

#[test]
fn whoever_says_nothing_is_let_go() {
    let proxy = Cluster::shared()
        .proxy()
        .set("limits.startup_timeout", "1s")
        .start();
    for first_words in [
        &b""[..],
        &[0],
        &[0, 0, 0, 100, 0, 3, 0, 0],
        b"\0\0\0\x08\x04\xd2\x16\x2f",
    ] {
        let began = Instant::now();
        answer_to_first(&proxy, first_words);
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{first_words:?}: {:?}",
            began.elapsed()
        );
    }
}

#[test]
fn strangers_cannot_take_all_places() {
    let proxy = Cluster::shared()
        .proxy()
        .set("limits.unauthenticated_max", 10)
        .set("limits.startup_timeout", "2s")
        .start();
    let strangers: Vec<_> = (0..30)
        .map(|_| Client::open(proxy.address.port).unwrap())
        .collect();
    until("some of them to be counted", || {
        proxy.clients("authenticating") == 10
    });
    match proxy.address.try_connect(&[]) {
        Ok(_) => panic!("a newcomer found a place among the strangers"),
        Err(refused) => assert_eq!(refused.sqlstate(), "53300", "{refused}"),
    }
    until("their time to be over", || proxy.address.try_connect(&[]).is_ok());
    drop(strangers);
}

/// A peer's listener ended with the first accept that failed.
#[test]
fn running_out_of_files_ends_no_listener() {
    let proxy = Cluster::shared().proxy().start();
    // Who has a backend already needs no file more.
    let mut before = proxy.connect();
    before.run("BEGIN");
    let open = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid()))
        .unwrap()
        .count() as u64;
    limit_open_files(proxy.pid(), open + 5);
    let crowd: Vec<_> = (0..50)
        .map(|_| Client::open(proxy.address.port).unwrap())
        .collect();
    assert_eq!(before.value("SELECT 'alive'"), "alive");
    drop(crowd);
    limit_open_files(proxy.pid(), open + 200);
    until("a newcomer to get in", || proxy.address.try_connect(&[]).is_ok());
}

#[test]
fn a_wrong_password_and_an_unknown_user_look_alike() {
    let mut address = Cluster::shared_proxy().address.clone();
    let mut told = Vec::new();
    for (user, password) in [("appuser", "wrong"), ("nobody", "wrong"), ("nobody", "")] {
        address.user = user.to_owned();
        address.password = password.to_owned();
        match address.try_connect(&[]) {
            Ok(_) => panic!("{user} was let in"),
            Err(refused) => told.push(refused.to_string().replace(user, "…")),
        }
    }
    assert!(told[0].contains("28P01"), "{told:?}");
    assert!(told.iter().all(|words| *words == told[0]), "{told:?}");
    let log = Cluster::shared_proxy().log();
    assert!(!log.contains("wrong\""), "no password reaches a log");
}

#[test]
fn an_unknown_database_is_told_as_the_server_tells_it() {
    let mut address = Cluster::shared_proxy().address.clone();
    address.database = "no_such_database".to_owned();
    let sqlstate = match address.try_connect(&[]) {
        Ok(mut client) => client.failure("SELECT 1"),
        Err(refused) => refused.sqlstate(),
    };
    assert_eq!(sqlstate, "3D000");
}

/// A client took a statement of Halyard's away by SQL and prepared another under its name, which strangers then ran.
#[test]
fn names_of_halyards_own_statements_are_nobodys() {
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().start();
    let long = format!("SELECT 1 -- {}", "x".repeat(100_000));
    for request in [
        parse("halyard_1a", "SELECT 2"),
        parse("halyard_1a", &long),
        bind("", "halyard_1a", &[]),
        describe_statement("halyard_1a"),
        close_statement("halyard_1a"),
    ] {
        for before in [Vec::new(), [unnamed("SELECT 1", &[]), flush()].concat()] {
            let mut client = proxy.connect();
            client.send(&[before, request.clone(), sync()].concat());
            let told = client.until_closed();
            let refused = told
                .iter()
                .find(|message| message.kind == b'E')
                .expect("it is refused");
            assert_eq!(refused.field(b'C'), "42939", "{refused}");
        }
    }
    let mut client = proxy.connect();
    client.send(&[parse("halyard", "SELECT 2"), sync()].concat());
    assert!(client.answer().error.is_none(), "a name like another");
}

/// Of two operators of a name and of types the one in the schema that comes first is taken: what a client had made was not
/// seen where its own operator answered Halyard.
#[test]
fn operators_of_a_clients_own_do_not_answer_halyard() {
    let cluster = Cluster::shared();
    cluster.prepare(
        "DROP SCHEMA IF EXISTS first CASCADE; CREATE SCHEMA first; GRANT USAGE ON SCHEMA first TO PUBLIC;
         CREATE FUNCTION first.yes(oid, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
         CREATE FUNCTION first.no(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT false';
         CREATE OPERATOR first.= (LEFTARG = oid, RIGHTARG = int, FUNCTION = first.yes);
         CREATE OPERATOR first.= (LEFTARG = int, RIGHTARG = int, FUNCTION = first.no)",
    );
    let proxy = cluster.proxy().start();
    for (made, reason) in [
        ("CREATE TEMPORARY TABLE unseen (n int)", "temporary_object"),
        ("SELECT pg_advisory_lock(713)", "advisory_lock"),
    ] {
        let mut client = proxy.connect();
        client.run("SET search_path = first, pg_catalog, public");
        client.run(made);
        let pins = format!("halyard_pins_total{{reason=\"{reason}\"}}");
        until("it to keep its connection", || proxy.metric(&pins) >= 1.0);
    }
    cluster.prepare("DROP SCHEMA first CASCADE");
}
