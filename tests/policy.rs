//! Where a session wants to go, and what it wants to see: `halyard.*` settings, policies of users and databases, and
//! what is told of the decisions.

use std::time::{Duration, Instant};

use crate::support::message::*;
use crate::support::{Client, Cluster, Message, Program, Proxy, until};

fn primary_port() -> u16 {
    Cluster::shared().primary().port
}

/// Whether a read, or a block, runs on the primary.
#[track_caller]
fn on_primary(client: &mut Client) -> bool {
    let port = client.server_port();
    assert!(port == primary_port() || Cluster::shared().replica_ports().contains(&port));
    port == primary_port()
}

fn eventual() -> Proxy {
    Cluster::shared().eventual().start()
}

#[test]
fn a_session_says_where_it_wants_to_go() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS aimed; CREATE TABLE aimed (n int)");
    let proxy = eventual();
    let (mut client, mut other) = (proxy.connect(), proxy.connect());
    assert!(!on_primary(&mut client));
    client.run("SET halyard.route = 'primary'");
    for _ in 0..10 {
        assert!(on_primary(&mut client));
        assert!(!on_primary(&mut other), "nobody else goes there for it");
    }
    assert_eq!(
        client.value("/* halyard.route: replica */ SELECT inet_server_port() <> 0"),
        "t"
    );
    let hinted: u16 = client
        .value("/* halyard.route: auto */ SELECT inet_server_port()")
        .parse()
        .unwrap();
    assert_ne!(
        hinted,
        primary_port(),
        "a statement's own word counts before the session's"
    );

    // ORMs that only append write it behind the statement, among other comments; data never counts.
    for (sql, primary) in [
        (
            "SELECT inet_server_port() /* halyard.route: auto */ /*app='x'*/;",
            false,
        ),
        ("SELECT inet_server_port(), '/* halyard.route: auto */'", true),
        ("SELECT inet_server_port() /* tag=' halyard.route: auto */", true),
    ] {
        let port = client.run(sql).rows.remove(0).remove(0);
        assert_eq!(port == Some(primary_port().to_string()), primary, "{sql}");
        client.send(&[unnamed(sql, &[]), sync()].concat());
        let port = client.answer().rows.remove(0).remove(0);
        assert_eq!(
            port == Some(primary_port().to_string()),
            primary,
            "{sql} by the extended protocol"
        );
    }

    client.run("SET halyard.route TO Replica");
    assert!(!on_primary(&mut client));
    assert_eq!(client.failure("INSERT INTO aimed VALUES (1)"), "25006");
    client.run("BEGIN");
    assert!(!on_primary(&mut client));
    assert_eq!(client.failure("INSERT INTO aimed VALUES (2)"), "25006");
    client.run("ROLLBACK");
    client.run("/* halyard.route: primary */ INSERT INTO aimed VALUES (3)");
    client.run("RESET halyard.route");
    client.run("INSERT INTO aimed VALUES (4)");
    assert_eq!(
        other.value("/* halyard.route: primary */ SELECT sum(n) FROM aimed"),
        "7"
    );
    assert!(!on_primary(&mut client));
    assert_eq!(proxy.metric("halyard_writes_sent_to_standby_total"), 0.0);
}

/// Each step is a list of statements, and whether a read behind them goes to the primary.
#[test]
fn transactions_and_savepoints_decide_what_is_left_of_it() {
    let proxy = eventual();
    for (statements, primary) in [
        (&["BEGIN", "SET halyard.route = 'primary'", "COMMIT"][..], true),
        (&["BEGIN", "SET halyard.route = 'primary'", "ROLLBACK"], false),
        (&["BEGIN", "SET LOCAL halyard.route = 'primary'", "COMMIT"], false),
        (
            &[
                "SET halyard.route = 'primary'",
                "BEGIN",
                "SAVEPOINT s",
                "SET halyard.route = auto",
                "ROLLBACK TO s",
                "COMMIT",
            ],
            true,
        ),
        (
            &[
                "BEGIN",
                "SAVEPOINT s",
                "SET halyard.route = 'primary'",
                "RELEASE s",
                "COMMIT",
            ],
            true,
        ),
        (&["SET halyard.route = 'primary'", "RESET ALL"], false),
        (&["SET halyard.route = 'primary'", "DISCARD ALL"], false),
        (
            &["SET halyard.route = 'primary'", "SET halyard.route TO DEFAULT"],
            false,
        ),
        (&["SELECT set_config('halyard.route', 'primary', false)"], true),
        (&["SELECT set_config('halyard.route', 'primary', true)"], false),
        (&["SET halyard.route = auto; SET halyard.route = 'primary'"], true),
        (
            &["DO $$ BEGIN PERFORM set_config('halyard.route', 'primary', false); END $$"],
            false,
        ),
    ] {
        let mut client = proxy.connect();
        for statement in statements {
            client.run(statement);
        }
        assert_eq!(on_primary(&mut client), primary, "{statements:?}");
    }
}

#[test]
fn the_startup_packet_and_the_extended_protocol_say_it_too() {
    let proxy = eventual();
    for parameters in [
        [("options", "-c halyard.route=primary")],
        [("halyard.route", "primary")],
    ] {
        let mut client = proxy.address.connect_with(&parameters);
        assert!(on_primary(&mut client));
        client.run("SET halyard.route = auto");
        assert!(!on_primary(&mut client));
        client.run("RESET halyard.route");
        assert!(
            on_primary(&mut client),
            "RESET goes back to what the startup packet said"
        );
    }
    let mut standby = proxy
        .address
        .connect_with(&[("options", "-c halyard.route=replica")]);
    assert_eq!(standby.parameters["in_hot_standby"], "on");
    assert!(!on_primary(&mut standby));

    let mut client = proxy.connect();
    client.send(&[unnamed("SET halyard.route = 'primary'", &[]), sync()].concat());
    assert!(client.answer().error.is_none());
    assert!(on_primary(&mut client));
    let set_config = "SELECT set_config('halyard.route', $1, false)";
    client.send(&[unnamed(set_config, &[Some("auto")]), sync()].concat());
    assert!(client.answer().error.is_none());
    assert!(!on_primary(&mut client));
}

#[test]
fn what_nobody_has_set_is_shown_with_what_holds() {
    let proxy = eventual();
    let defaults = [
        ("halyard.route", "auto"),
        ("halyard.consistency", "eventual"),
        ("halyard.trace", "off"),
    ];
    for (name, value) in defaults {
        let mut client = proxy.connect();
        assert_eq!(client.value(&format!("SHOW {name}")), value);
        client.run(&format!("RESET {name}"));
        assert_eq!(client.value(&format!("SELECT current_setting('{name}')")), value);
        client.run("DISCARD ALL");
        client.run("BEGIN");
        assert_eq!(client.value(&format!("SHOW {name}")), value, "within a block");
        client.run("ROLLBACK");
        let mut extended = proxy.connect();
        extended.send(&[unnamed(&format!("SHOW {name}"), &[]), sync()].concat());
        assert_eq!(extended.answer().rows, [[Some(value.to_owned())]]);
    }
    let mut client = proxy.connect();
    client.run("SET halyard.route = 'primary'");
    assert_eq!(client.value("SHOW halyard.route"), "primary");
    assert_eq!(
        client.value("SELECT current_setting('halyard.consistency')"),
        "eventual"
    );
}

/// A server keeps any value under a name with a dot: Halyard refuses it before, as a server refuses those of its own.
#[test]
fn a_value_that_means_nothing_is_refused_in_the_servers_words() {
    let proxy = eventual();
    let mut client = proxy.connect();
    let answer = client.query("SET halyard.route = 'standby'");
    let error = answer.error.unwrap();
    assert_eq!(
        (error.field(b'C'), error.field(b'M'), error.field(b'H')),
        (
            "22023".to_owned(),
            "invalid value for parameter \"halyard.route\": \"standby\"".to_owned(),
            "Available values: auto, primary, replica.".to_owned()
        )
    );
    for (sql, code) in [
        ("SET halyard.trace = maybe", "22023"),
        ("SET LOCAL halyard.consistency = 'linear'", "22023"),
        ("SELECT set_config('halyard.route', 'x', true)", "22023"),
        ("SET halyard.rout = 'auto'", "42602"),
    ] {
        assert_eq!(client.failure(sql), code, "{sql}");
        client.send(&[unnamed(sql, &[]), sync()].concat());
        assert_eq!(client.answer().sqlstate(), code, "{sql} by the extended protocol");
    }
    assert!(!on_primary(&mut client), "the session goes on");

    // Inside a block the block fails, and a savepoint gets it back.
    client.run("BEGIN");
    client.run("CREATE TEMP TABLE kept (n int) ON COMMIT DROP");
    client.run("SAVEPOINT s");
    let refused = client.query("SET halyard.route = 'standby'");
    assert_eq!((refused.sqlstate().as_str(), refused.status), ("22023", 'E'));
    assert_eq!(client.failure("SELECT 1"), "25P02");
    client.run("ROLLBACK TO s");
    assert_eq!(client.value("SELECT count(*) FROM kept"), "0");
    client.send(&[unnamed("SET halyard.route = 'standby'", &[]), sync()].concat());
    let refused = client.answer();
    assert_eq!((refused.sqlstate().as_str(), refused.status), ("22023", 'E'));
    client.run("ROLLBACK");
    assert!(!on_primary(&mut client));

    // What kept its backend keeps it.
    client.run("CREATE TEMP TABLE kept (n int)");
    assert_eq!(client.failure("SET halyard.route = 'standby'"), "22023");
    assert_eq!(client.value("SELECT count(*) FROM kept"), "0");

    let refused = proxy
        .address
        .try_connect(&[("options", "-c halyard.route=standby")])
        .err()
        .unwrap();
    assert_eq!(refused.sqlstate(), "22023");
}

/// A value that nobody could look at before it was set counts as none, and the client is told.
#[test]
fn a_value_that_was_computed_is_looked_at_afterwards() {
    let proxy = eventual();
    let mut client = proxy.connect();
    client.run("SELECT set_config('halyard.route', 'st' || 'andby', false)");
    let answer = client.run("SELECT 1");
    let warned = |message: &Message| message.field(b'M').contains("\"halyard.route\": \"standby\"");
    assert!(answer.notices.iter().any(warned), "{:?}", answer.notices);
    assert!(!on_primary(&mut client));
}

#[test]
fn users_and_databases_have_policies() {
    let cluster = Cluster::shared();
    let database = cluster.app(1).database;
    let mut wanted = cluster
        .proxy()
        .set("routing.read_consistency", "eventual")
        .set_user(&cluster.app(1).user, "route", "primary");
    wanted = wanted.set_database(&database, "route", "replica");
    let proxy = wanted.cold().start();
    let mut app = proxy.connect();
    assert!(on_primary(&mut app));
    assert_eq!(
        app.value("SHOW halyard.route"),
        "primary",
        "the user's counts before the database's"
    );
    let mut readonly = proxy.readonly.connect();
    assert!(!on_primary(&mut readonly));
    assert_eq!(readonly.value("SHOW halyard.route"), "replica");
    readonly.run("BEGIN");
    assert!(!on_primary(&mut readonly));
    readonly.run("COMMIT");
    readonly.run("SET halyard.route = 'primary'");
    assert!(on_primary(&mut readonly), "a session can say otherwise");

    let decisions = "halyard_route_decisions_total{class=\"read\",target=\"primary\",reason=\"policy\"}";
    assert!(proxy.metric(decisions) >= 1.0);
    let decisions = "halyard_route_decisions_total{class=\"write\",target=\"standby\",reason=\"policy\"}";
    assert!(proxy.metric(decisions) >= 1.0, "BEGIN on a standby");
}

#[test]
fn a_port_with_a_role_is_not_argued_with() {
    let (wanted, port) = Cluster::shared().proxy().also_listening("primary");
    let proxy = wanted.start();
    let mut client = proxy.on_port(port).connect();
    client.run("SET halyard.route = replica");
    assert!(on_primary(&mut client));
    drop(proxy);
}

/// Every decision has a reason, and is counted once.
#[test]
fn decisions_are_counted_by_reason() {
    let proxy = eventual();
    let mut client = proxy.connect();
    let counted = |proxy: &Proxy| {
        let metrics = proxy.metrics();
        let decisions = metrics
            .into_iter()
            .filter(|(series, count)| series.starts_with("halyard_route_decisions_total") && *count > 0.0);
        decisions.collect::<std::collections::BTreeMap<_, _>>()
    };
    for (sql, class, target, reason) in [
        ("SELECT 1", "read", "standby", "class"),
        (
            "CREATE TEMP TABLE t (n int) ON COMMIT DROP",
            "write",
            "primary",
            "class",
        ),
        (
            "/* halyard.route: primary */ SELECT 1",
            "write",
            "primary",
            "hint",
        ),
        (
            "/* halyard.route: replica */ SELECT txid_current_snapshot() IS NULL",
            "read",
            "standby",
            "hint",
        ),
    ] {
        let before = counted(&proxy);
        client.run(sql);
        let series = format!(
            "halyard_route_decisions_total{{class=\"{class}\",target=\"{target}\",reason=\"{reason}\"}}"
        );
        let after = counted(&proxy);
        let sum = |counts: &std::collections::BTreeMap<String, f64>| counts.values().sum::<f64>();
        let was = before.get(&series).copied().unwrap_or_default();
        assert_eq!(after.get(&series), Some(&(was + 1.0)), "{sql}: {after:?}");
        assert!(
            (sum(&after) - sum(&before) - 1.0).abs() < 0.5,
            "{sql} is counted once"
        );
    }
    client.run("BEGIN");
    client.run("SELECT 1");
    client.run("COMMIT");
    let in_block = "halyard_route_decisions_total{class=\"read\",target=\"primary\",reason=\"transaction\"}";
    assert!(proxy.metric(in_block) >= 2.0);
}

#[test]
fn a_trace_stands_in_front_of_each_answer() {
    let proxy = eventual();
    let mut client = proxy.connect();
    client.run("SET halyard.trace = on");
    let answer = client.run("SELECT 1");
    let [notice] = answer.notices.as_slice() else {
        panic!("one notice a statement, not {:?}", answer.notices);
    };
    let (severity, code) = (notice.field(b'S'), notice.field(b'C'));
    assert_eq!((severity.as_str(), code.as_str()), ("NOTICE", "00000"));
    let message = notice.field(b'M');
    assert!(message.contains(" as standby: class"), "{message}");
    assert!(notice.field(b'D').contains("reads_only"));
    let answer = client.run("CREATE TEMP TABLE t (n int) ON COMMIT DROP");
    assert!(answer.notices[0].field(b'M').contains("as primary: class"));

    // A pipeline: each notice in front of the first message of its own answer.
    let pipeline = [
        unnamed("SELECT 1", &[]),
        sync(),
        unnamed("SELECT 2", &[]),
        sync(),
        unnamed("SELECT 1/0", &[]),
        unnamed("SELECT 4", &[]),
        sync(),
        query("SELECT 5"),
    ];
    client.send(&pipeline.concat());
    let mut kinds = String::new();
    for _ in 0..4 {
        kinds.extend(
            client
                .until_ready()
                .iter()
                .map(|message| char::from(message.kind)),
        );
    }
    assert_eq!(kinds, "N12DCZ".to_owned() + "N12DCZ" + "N1EZ" + "NTDCZ");

    client.run("BEGIN");
    assert!(
        client.run("SELECT 1").notices[0]
            .field(b'M')
            .contains("transaction")
    );
    let answer = client.query("COPY (SELECT 1) TO STDOUT");
    assert_eq!(answer.notices.len(), 1);
    client.run("ROLLBACK");
    client.run("SET halyard.trace = off");
    assert!(client.run("SELECT 1").notices.is_empty());
}

#[test]
fn a_trace_tells_only_of_the_node_that_answers() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP SEQUENCE IF EXISTS traced; CREATE SEQUENCE traced");
    let proxy = cluster
        .proxy()
        .set("routing.read_consistency", "eventual")
        .set("routing.functions_allowed", vec!["nextval".to_owned()])
        .start();
    let mut client = proxy.connect();
    client.run("SET halyard.trace = on");
    let answer = client.run("SELECT nextval('traced')");
    assert_eq!(answer.notices.len(), 1, "{:?}", answer.notices);
    let message = answer.notices[0].field(b'M');
    assert!(message.contains("as primary: refused"), "{message}");
}

/// With `read_fallback = "wait"` a read waits for a standby, and no longer than it is to.
#[test]
fn reads_wait_for_a_standby_as_long_as_they_are_to() {
    let cluster = Cluster::shared();
    let proxy = cluster
        .proxy()
        .only_nodes(|name| name.starts_with("node"))
        .set("routing.read_fallback", "wait")
        .set("routing.read_wait", "1min")
        .start();
    let mut client = proxy.connect();
    cluster.prepare("DROP TABLE IF EXISTS waited; CREATE TABLE waited AS SELECT 0 AS n");
    client.run("UPDATE waited SET n = 1");
    assert_ne!(
        client.server_port(),
        primary_port(),
        "it is worth the moment that it takes"
    );

    let alone = cluster
        .proxy()
        .only_nodes(|name| cluster.node(name).port == primary_port())
        .set("routing.read_fallback", "wait")
        .set("routing.read_wait", "400ms")
        .cold()
        .start();
    let mut client = alone.connect();
    // Before the catalogue is read, a call of any function counts as writing and waits for nothing.
    until("a read to wait", || {
        let began = Instant::now();
        assert!(on_primary(&mut client));
        let waited = began.elapsed();
        assert!(waited < Duration::from_secs(10), "{waited:?}");
        waited >= Duration::from_millis(400)
    });
}

#[test]
fn reads_stay_in_their_zone() {
    let cluster = Cluster::shared();
    let proxy = cluster
        .proxy()
        .set("routing.read_consistency", "eventual")
        .set("general.zone", "here")
        .set_node("ro2", "zone", "here")
        .set_node("ro1", "zone", "there")
        .start();
    let mut client = proxy.connect();
    for _ in 0..30 {
        assert_eq!(client.server_port(), cluster.node("ro2").port);
    }
}

#[test]
fn reads_follow_weights() {
    let cluster = Cluster::shared();
    let proxy = cluster
        .proxy()
        .set("routing.read_consistency", "eventual")
        .set_node("ro1", "weight", 0)
        .set_node("ro2", "weight", 900)
        .set_node("ro3", "weight", 1)
        .start();
    let mut client = proxy.connect();
    for _ in 0..60 {
        let port = client.server_port();
        assert_eq!(
            port,
            cluster.node("ro2").port,
            "idle, it is the least loaded for its weight"
        );
    }
}

/// psql and libpq's PGOPTIONS, as people have them.
#[test]
fn psql_says_it_by_its_environment() {
    let proxy = eventual();
    let psql = |options: &str| {
        Program::psql(&proxy.address)
            .env("PGOPTIONS", options)
            .with(&["-c", "SELECT inet_server_port()", "-c", "SHOW halyard.route"])
            .run()
    };
    let primary = psql("-c halyard.route=primary");
    assert_eq!(
        primary.out,
        format!("{}\nprimary\n", primary_port()),
        "{}",
        primary.err
    );
    let traced = psql("-c halyard.trace=on");
    assert!(
        traced.err.contains("NOTICE:  halyard: node \"ro"),
        "{}",
        traced.err
    );
    let refused = psql("-c halyard.route=elsewhere");
    assert!(!refused.success);
    assert!(
        refused
            .err
            .contains("invalid value for parameter \"halyard.route\": \"elsewhere\""),
        "{}",
        refused.err
    );
}
