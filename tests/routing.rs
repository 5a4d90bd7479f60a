//! Who served it: every answer carries the port of the server that gave it.

use std::collections::BTreeMap;
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::message::*;
use crate::support::{Client, Cluster, Link, PATIENCE, Proxy, until, until_within};

fn primary_port() -> u16 {
    Cluster::shared().primary().port
}

#[track_caller]
fn assert_on_primary(client: &mut Client, sql: &str) {
    assert_eq!(client.value(sql), primary_port().to_string(), "{sql}");
}

#[track_caller]
fn assert_on_standby(client: &mut Client, sql: &str) {
    let port: u16 = client.value(sql).parse().unwrap();
    assert!(
        Cluster::shared().replica_ports().contains(&port),
        "{sql} ran on port {port}"
    );
}

/// A proxy whose reads go to the replicas whatever their session has written: where they go is what is looked at here.
fn eventual() -> &'static Proxy {
    static PROXY: OnceLock<Proxy> = OnceLock::new();
    PROXY.get_or_init(|| Cluster::shared().eventual().start())
}

#[test]
fn reads_are_spread_over_the_three_replicas() {
    let mut client = eventual().connect();
    let mut served: BTreeMap<u16, u32> = BTreeMap::new();
    for _ in 0..150 {
        *served.entry(client.server_port()).or_default() += 1;
    }
    let ports: Vec<u16> = served.keys().copied().collect();
    assert_eq!(ports, Cluster::shared().replica_ports(), "{served:?}");
    assert!(
        served.values().all(|count| *count >= 15),
        "nobody is forgotten: {served:?}"
    );
}

/// A standby that becomes slow loses its share within a second, and gets it back when it is fast again.
#[test]
fn a_slow_standby_loses_its_share_for_as_long_as_it_is_slow() {
    let cluster = Cluster::shared();
    let slow = Link::to(cluster.node("ro2").port);
    let proxy = cluster.proxy().through("ro2", &slow).start();
    let ports = cluster.replica_ports();
    let of_slow = ports
        .iter()
        .position(|port| *port == cluster.node("ro2").port)
        .unwrap();
    // Sessions that begin anew read wherever balance has them.
    let share = || {
        let mut served = [0_u32; 3];
        for _ in 0..60 {
            let port = proxy.connect().server_port();
            served[ports.iter().position(|known| *known == port).unwrap()] += 1;
        }
        f64::from(served[of_slow]) / 60.0
    };
    until("reads to be spread", || share() > 0.15);
    slow.slow_down(Duration::from_millis(50));
    let mut noticing = proxy.connect();
    until("the slow one to lose its share", || {
        // Some reads have to find out.
        for _ in 0..20 {
            noticing.server_port();
        }
        share() < 0.05
    });
    slow.mend();
    until("it to get its share back", || share() > 0.15);
}

/// One session that has read on a standby goes on there while nobody knows whether another has as much; when it would
/// rather be elsewhere, it moves as soon as that is known.
#[test]
fn a_session_leaves_a_standby_that_has_become_slow() {
    leaves_a_standby_that_answers_after(Duration::from_millis(20));
}

/// As long as the primary writes, what the standby has is in no sample yet whenever it answers.
#[test]
fn a_session_leaves_a_slow_standby_also_while_others_write() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS written_past; CREATE TABLE written_past (a int)");
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writer = cluster.app(cluster.primary().port).connect();
            while !ends.load(Ordering::Relaxed) {
                writer.run("INSERT INTO written_past VALUES (1)");
            }
        });
        let left = panic::catch_unwind(|| leaves_a_standby_that_answers_after(Duration::from_millis(20)));
        ends.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        left.unwrap_or_else(|reason| panic::resume_unwind(reason));
    });
}

/// The answer to tell how much was seen takes longer than such a wait would last elsewhere.
#[test]
fn a_session_leaves_a_standby_that_has_become_very_slow() {
    leaves_a_standby_that_answers_after(Duration::from_millis(200));
}

#[track_caller]
fn leaves_a_standby_that_answers_after(delay: Duration) {
    let cluster = Cluster::shared();
    let slow = Link::to(cluster.node("ro2").port);
    let proxy = cluster.proxy().through("ro2", &slow).start();
    let of_slow = cluster.node("ro2").port;
    let mut client = until_within(PATIENCE, "a session on the standby", || {
        let mut client = proxy.connect();
        (client.server_port() == of_slow).then_some(client)
    });
    slow.slow_down(delay);
    let slowed = Instant::now();
    until("it to read elsewhere", || client.server_port() != of_slow);
    println!("left after {:?}", slowed.elapsed());
}

#[test]
fn what_reads_goes_to_a_standby() {
    let cluster = Cluster::shared();
    cluster.prepare(
        "DROP TABLE IF EXISTS reading; CREATE TABLE reading (a int); INSERT INTO reading VALUES (1)",
    );
    let mut client = eventual().connect();
    for sql in [
        "SELECT inet_server_port()",
        "select\n\tinet_server_port() -- insert into nothing",
        "/* UPDATE nobody */ SELECT inet_server_port()",
        "SELECT inet_server_port() FROM reading WHERE 'delete' <> 'into'",
        "WITH r AS (SELECT a FROM reading) SELECT inet_server_port() FROM r",
        "(SELECT inet_server_port())",
        "VALUES (inet_server_port())",
        "SELECT inet_server_port() FROM reading AS \"update\"",
        "SELECT $$nextval('s')$$ IS NULL OR true, inet_server_port()",
        "SELECT CASE WHEN now() > clock_timestamp() + random() * interval '1 s' THEN 0 ELSE inet_server_port() END",
    ] {
        let rows = client.run(sql).rows;
        let port: u16 = rows[0].last().unwrap().as_ref().unwrap().parse().unwrap();
        assert!(
            cluster.replica_ports().contains(&port),
            "{sql} ran on port {port}"
        );
    }
    assert_on_standby(&mut client, "BEGIN READ ONLY; SELECT inet_server_port(); COMMIT");
}

#[test]
fn a_new_function_counts_as_reading_once_the_catalogue_has_it() {
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().set("routing.catalog_refresh", "1s").start();
    let mut client = proxy.connect();
    cluster.prepare(
        "DROP FUNCTION IF EXISTS double(int);
         CREATE FUNCTION double(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2'",
    );
    until("the function to be known", || {
        let row = &client.run("SELECT double(21), inet_server_port()").rows[0];
        row[1] != Some(primary_port().to_string())
    });
}

#[test]
fn what_writes_or_might_goes_to_the_primary() {
    let cluster = Cluster::shared();
    cluster.prepare(
        "DROP TABLE IF EXISTS writing; CREATE TABLE writing (a int, port int); DROP SEQUENCE IF EXISTS counter;
         CREATE SEQUENCE counter;
         CREATE OR REPLACE FUNCTION note() RETURNS int VOLATILE LANGUAGE sql
         AS 'INSERT INTO writing VALUES (0) RETURNING inet_server_port()'",
    );
    let mut client = eventual().connect();
    for sql in [
        "INSERT INTO writing VALUES (1) RETURNING inet_server_port()",
        "UPDATE writing SET a = 2 WHERE a = 1 RETURNING inet_server_port()",
        "WITH new AS (INSERT INTO writing VALUES (3) RETURNING a) SELECT inet_server_port() FROM new",
        "SELECT inet_server_port() FROM writing WHERE a = 2 FOR UPDATE",
        "SELECT inet_server_port() FROM writing WHERE a = 2 FOR SHARE",
        "SELECT inet_server_port() + 0 * nextval('counter')",
        "SELECT inet_server_port() + 0 * setval('counter', 7)",
        "SELECT note()",
        "SELECT inet_server_port() FROM (SELECT note()) AS hidden",
        "DELETE FROM writing WHERE a = 2 RETURNING inet_server_port()",
        "BEGIN; SELECT inet_server_port(); COMMIT",
        "SELECT inet_server_port(); INSERT INTO writing VALUES (9)",
        "/* halyard.route: primary */ SELECT inet_server_port()",
    ] {
        assert_on_primary(&mut client, sql);
    }
    client.run("SELECT inet_server_port() AS port INTO TEMP TABLE taken");
    client.run("EXPLAIN ANALYZE INSERT INTO writing VALUES (10)");
    client.run("CREATE TABLE IF NOT EXISTS writing_more AS SELECT 1 AS a");
    client.run("COPY (INSERT INTO writing VALUES (11) RETURNING a) TO STDOUT");
    client.run("MERGE INTO writing USING (SELECT 12 AS a) AS new ON false WHEN NOT MATCHED THEN INSERT VALUES (new.a)");
    client.run("DO 'BEGIN INSERT INTO writing VALUES (13); END'");
    assert_eq!(eventual().metric("halyard_writes_sent_to_standby_total"), 0.0);
}

#[test]
fn a_block_stays_on_one_server_and_only_a_read_only_one_on_a_standby() {
    let mut client = eventual().connect();
    for (begin, on_primary) in [
        ("BEGIN", true),
        ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE", true),
        ("BEGIN READ WRITE", true),
        ("BEGIN READ ONLY", false),
        (
            "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            false,
        ),
    ] {
        client.run(begin);
        let ports: Vec<u16> = (0..5).map(|_| client.server_port()).collect();
        client.run("COMMIT");
        assert!(ports.iter().all(|port| *port == ports[0]), "{begin}: {ports:?}");
        assert_eq!(ports[0] == primary_port(), on_primary, "{begin}: {ports:?}");
    }
}

#[test]
fn a_pipeline_goes_where_its_strictest_statement_must() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS strict; CREATE TABLE strict (a int)");
    let mut client = eventual().connect();
    let ask = || unnamed("SELECT inet_server_port()", &[]);

    client.send(&[ask(), ask(), sync()].concat());
    let rows = client.answer().rows;
    assert_eq!(rows[0], rows[1]);
    assert_ne!(rows[0], [Some(primary_port().to_string())]);

    client.send(
        &[
            ask(),
            unnamed("INSERT INTO strict VALUES (1)", &[]),
            ask(),
            sync(),
        ]
        .concat(),
    );
    let answer = client.answer();
    assert!(answer.error.is_none(), "{answer:?}");
    assert_eq!(answer.rows, vec![vec![Some(primary_port().to_string())]; 2]);
}

#[test]
fn an_unnamed_statement_does_not_go_where_the_one_before_it_did() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS nameless; CREATE TABLE nameless (a int)");
    let mut client = eventual().connect();
    for _ in 0..3 {
        client.send(&[unnamed("INSERT INTO nameless VALUES (1)", &[]), sync()].concat());
        assert!(client.answer().error.is_none());
        client.send(&[unnamed("SELECT inet_server_port()", &[]), sync()].concat());
        let answer = client.answer();
        assert_ne!(answer.rows, [[Some(primary_port().to_string())]], "{answer:?}");
    }
}

#[test]
fn a_prepared_statement_carries_its_class() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS carried; CREATE TABLE carried (a int)");
    let mut client = eventual().connect();
    client.send(
        &[
            parse("read", "SELECT inet_server_port()"),
            parse(
                "write",
                "INSERT INTO carried VALUES (1) RETURNING inet_server_port()",
            ),
            sync(),
        ]
        .concat(),
    );
    client.answer();
    for _ in 0..5 {
        for (name, on_primary) in [("read", false), ("write", true)] {
            client.send(&[bind("", name, &[]), execute("", 0), sync()].concat());
            let answer = client.answer();
            let on = answer.rows[0][0].as_ref().unwrap() == &primary_port().to_string();
            assert_eq!(on, on_primary, "{name}: {answer:?}");
        }
    }
}

/// A function that is marked STABLE and calls one that writes: nothing in its declaration says so, and only the
/// standby can tell.
#[test]
fn a_write_that_nobody_could_see_is_run_again_on_the_primary() {
    Cluster::shared().prepare(
        "DROP TABLE IF EXISTS secretly; CREATE TABLE secretly (a int);
         CREATE OR REPLACE FUNCTION accomplice(int) RETURNS int VOLATILE LANGUAGE sql
         AS 'INSERT INTO secretly VALUES ($1) RETURNING inet_server_port()';
         CREATE OR REPLACE FUNCTION liar(int) RETURNS int STABLE LANGUAGE plpgsql
         AS 'BEGIN RETURN accomplice($1); END'",
    );
    let proxy = Cluster::shared()
        .proxy()
        .set("routing.read_consistency", "eventual")
        .start();
    let reruns = "halyard_reruns_25006_total";
    let mut client = proxy.connect();

    assert_on_primary(&mut client, "SELECT liar(1)");
    assert_eq!(proxy.metric(reruns), 1.0);
    // It is known now.
    assert_on_primary(&mut client, "SELECT liar(2)");
    assert_eq!(proxy.metric(reruns), 1.0);

    client.send(&[unnamed("SELECT liar($1)", &[Some("3")]), sync()].concat());
    let answer = client.answer();
    assert!(answer.error.is_none(), "{answer:?}");
    assert_eq!(answer.rows, [[Some(primary_port().to_string())]]);

    client.send(&[parse("liar", "SELECT liar($1) AS again"), sync()].concat());
    client.answer();
    client.send(&[bind("", "liar", &[Some("4")]), execute("", 0), sync()].concat());
    let answer = client.answer();
    assert!(answer.error.is_none(), "{answer:?}");

    let mut direct = Cluster::shared().app(primary_port()).connect();
    assert_eq!(
        direct.value("SELECT string_agg(a::text, ',' ORDER BY a) FROM secretly"),
        "1,2,3,4"
    );
}

/// In a READ ONLY block the client asked for the refusal.
#[test]
fn a_write_in_a_read_only_block_is_refused() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS refused; CREATE TABLE refused (a int)");
    let mut client = eventual().connect();
    client.run("BEGIN READ ONLY");
    assert_eq!(client.failure("INSERT INTO refused VALUES (1)"), "25006");
    assert_eq!(client.query("SELECT 1").sqlstate(), "25P02");
    assert_eq!(client.run("ROLLBACK").status, 'I');
}

/// The three ways in which drivers say that a connection reads only, but for BEGIN READ ONLY itself.
#[test]
fn session_settings_that_forbid_writing_route_to_standbys() {
    let mut at_startup = eventual()
        .address
        .try_connect(&[("options", "-c default_transaction_read_only=on")])
        .unwrap();
    assert_eq!(at_startup.parameters["default_transaction_read_only"], "on");
    let (mut by_set, mut by_characteristics) = (eventual().connect(), eventual().connect());
    assert_eq!(by_set.value("SHOW transaction_read_only"), "off");
    by_set.run("SET default_transaction_read_only = on");
    by_characteristics.run("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY");
    for client in [&mut at_startup, &mut by_set, &mut by_characteristics] {
        assert_eq!(client.value("SHOW transaction_read_only"), "on");
        for begin in ["BEGIN", "START TRANSACTION ISOLATION LEVEL REPEATABLE READ"] {
            client.run(begin);
            let port = client.server_port();
            assert_ne!(port, primary_port(), "{begin}");
            // Not proved to read, and on a standby all the same: nothing in this block can write.
            client.run("SELECT now(), clock_timestamp()");
            assert_eq!(client.server_port(), port, "{begin}");
            assert_eq!(client.failure("CREATE TABLE never (a int)"), "25006");
            client.run("ROLLBACK");
        }
        client.run("BEGIN READ WRITE");
        assert_eq!(client.server_port(), primary_port());
        client.run("COMMIT");
    }
    by_set.run("RESET default_transaction_read_only");
    by_characteristics.run("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE");
    for client in [&mut by_set, &mut by_characteristics] {
        client.run("BEGIN");
        assert_eq!(client.server_port(), primary_port());
        client.run("COMMIT");
    }
}

#[test]
fn a_port_of_its_own_for_each_role() {
    let (wanted, primary) = Cluster::shared().proxy().also_listening("primary");
    let (wanted, replica) = wanted.also_listening("replica");
    let _proxy = wanted.start();
    Cluster::shared().prepare("DROP TABLE IF EXISTS by_port; CREATE TABLE by_port (a int)");

    let mut on_primary = Cluster::shared().app(primary).connect();
    assert_eq!(on_primary.server_port(), primary_port());
    on_primary.run("INSERT INTO by_port VALUES (1)");

    let mut on_replica = Cluster::shared().app(replica).connect();
    assert!(
        Cluster::shared()
            .replica_ports()
            .contains(&on_replica.server_port())
    );
    assert_eq!(on_replica.failure("INSERT INTO by_port VALUES (2)"), "25006");
}

#[test]
fn the_backups_and_then_the_primary_take_reads_when_no_replica_qualifies() {
    let cluster = Cluster::shared();
    let names: Vec<&str> = cluster.nodes().iter().map(|node| node.name.as_str()).collect();
    let links: BTreeMap<&str, Link> = names
        .iter()
        .map(|name| (*name, Link::to(cluster.node(name).port)))
        .collect();
    let wanted = links
        .iter()
        .fold(cluster.proxy(), |wanted, (name, link)| wanted.through(name, link));
    let proxy = wanted.start();
    let mut client = proxy.connect();
    let served_within = |client: &mut Client, wanted: &[&str]| {
        let ports: Vec<u16> = wanted.iter().map(|name| cluster.node(name).port).collect();
        until_within(PATIENCE, &format!("reads on {wanted:?} only"), || {
            let served: Vec<u16> = (0..20).map(|_| client.server_port()).collect();
            served.iter().all(|port| ports.contains(port)).then_some(())
        });
    };
    let primary = cluster.primary().name.as_str();
    let backups: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| name.starts_with("node") && *name != primary)
        .collect();

    served_within(&mut client, &["ro1", "ro2", "ro3"]);
    links["ro1"].cut();
    served_within(&mut client, &["ro2", "ro3"]);
    links["ro2"].cut();
    links["ro3"].cut();
    served_within(&mut client, &backups);
    backups.iter().for_each(|name| links[name].cut());
    served_within(&mut client, &[primary]);
    until("the reason to be counted", || {
        client.server_port();
        proxy.metric(r#"halyard_reads_on_primary_total{reason="no_standby"}"#) > 0.0
    });

    links.values().for_each(Link::mend);
    served_within(&mut client, &["ro1", "ro2", "ro3"]);
}

#[test]
fn reads_can_be_kept_off_the_primary() {
    let cluster = Cluster::shared();
    let link = Link::to(cluster.node("ro1").port);
    let proxy = cluster
        .proxy()
        .only_nodes(|name| name == "ro1" || name == cluster.primary().name)
        .through("ro1", &link)
        .set("routing.read_fallback", "error")
        .start();
    let mut client = proxy.connect();
    link.cut();
    until("reads to be refused", || {
        client.query("SELECT inet_server_port()").sqlstate() == "57P03"
    });
    client.run("BEGIN");
    assert_eq!(client.server_port(), primary_port());
    client.run("COMMIT");
    link.mend();
    until("reads on the replica", || {
        client.query("SELECT 1").sqlstate().is_empty()
    });
}

/// With `pg_temp` first in its `search_path` a session's `current_schema()` makes its temporary schema, which is a write: found by
/// the oracle.
#[test]
fn a_session_that_names_its_temporary_schema_reads_on_the_primary() {
    let mut client = eventual().connect();
    let primary = Cluster::shared().primary().port;
    client.run("SET search_path TO 'pg_temp'");
    assert_eq!(client.server_port(), primary);
    assert_eq!(
        client.value("SELECT pg_catalog.current_schema() ~ 'pg_temp'"),
        "t"
    );
    client.run("RESET search_path");
    assert_ne!(client.server_port(), primary);
}
