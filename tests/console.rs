//! The admin console, as psql and exporters meet it.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use crate::support::message::*;
use crate::support::{Address, Client, Cluster, Program, Proxy, Wanted, peak_memory_kib, python, until};

/// A proxy whose administrator is the application's user, and whose read-only user may look.
fn wanted() -> Wanted<'static> {
    let cluster = Cluster::shared();
    cluster
        .proxy()
        .set("routing.read_consistency", "eventual")
        .set("admin.users", vec![cluster.app(1).user])
        .set("admin.stats_users", vec![cluster.readonly(1).user])
}

fn console_of(address: &Address) -> Address {
    Address {
        database: "halyard".to_owned(),
        ..address.clone()
    }
}

fn console(proxy: &Proxy) -> Client {
    console_of(&proxy.address).connect()
}

/// What a SHOW answers, each row by the names of its columns.
#[track_caller]
fn rows(console: &mut Client, sql: &str) -> Vec<BTreeMap<String, Option<String>>> {
    console.send(&query(sql));
    let mut names = Vec::new();
    let mut rows = Vec::new();
    for message in console.until_ready() {
        match message.kind {
            b'T' => names = columns(&message.body),
            b'D' => rows.push(names.iter().cloned().zip(message.columns()).collect()),
            b'E' => panic!("{sql}: {message}"),
            _ => {}
        }
    }
    rows
}

/// The names in a RowDescription.
fn columns(body: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = 2;
    while at < body.len() {
        let end = at + body[at..].iter().position(|byte| *byte == 0).unwrap();
        names.push(String::from_utf8_lossy(&body[at..end]).into_owned());
        at = end + 1 + 18;
    }
    names
}

fn text(row: &BTreeMap<String, Option<String>>, name: &str) -> String {
    row[name].clone().unwrap_or_else(|| "NULL".to_owned())
}

const SHOWN: [&str; 20] = [
    "CLIENTS",
    "CONFIG",
    "DATABASES",
    "EVENTS",
    "FENCE",
    "HELP",
    "LISTS",
    "MEM",
    "NODES",
    "PINS",
    "POOLS",
    "ROUTES",
    "SERVERS",
    "SOCKETS",
    "STATE",
    "STATS",
    "STATS_AVERAGES",
    "STATS_TOTALS",
    "USERS",
    "VERSION",
];

/// PgBouncer 1.24's columns, by which its exporters and dashboards read.
#[test]
fn pgbouncers_tables_have_its_columns() {
    let proxy = wanted().start();
    let mut client = proxy.connect();
    client.run("SELECT 1");
    let mut console = Address {
        database: "pgbouncer".to_owned(),
        ..proxy.address.clone()
    }
    .connect();
    for (table, expected) in [
        (
            "POOLS",
            "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel \
             sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
        ),
        (
            "DATABASES",
            "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode \
             load_balance_hosts max_connections current_connections max_client_connections \
             current_client_connections paused disabled",
        ),
        (
            "CLIENTS",
            "type user database replication state addr port local_addr local_port connect_time request_time wait \
             wait_us close_needed ptr link remote_pid tls application_name prepared_statements id",
        ),
        (
            "SERVERS",
            "type user database replication state addr port local_addr local_port connect_time request_time wait \
             wait_us close_needed ptr link remote_pid tls application_name prepared_statements id",
        ),
        (
            "STATS",
            "database total_server_assignment_count total_xact_count total_query_count total_received total_sent \
             total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count \
             total_bind_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv avg_sent \
             avg_xact_time avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count avg_bind_count",
        ),
        (
            "STATS_TOTALS",
            "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
             wait_time client_parse_count server_parse_count bind_count",
        ),
        ("LISTS", "list items"),
        ("CONFIG", "key value default changeable"),
        ("VERSION", "version"),
        ("STATE", "key value"),
        ("MEM", "name size used free memtotal"),
        (
            "USERS",
            "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
             max_user_client_connections current_client_connections",
        ),
    ] {
        console.send(&query(&format!("SHOW {table};")));
        let answer = console.until_ready();
        let description = answer.iter().find(|message| message.kind == b'T').unwrap();
        let expected: Vec<&str> = expected.split_whitespace().collect();
        assert_eq!(columns(&description.body), expected, "SHOW {table}");
    }
}

#[test]
fn tables_tell_what_is_there() {
    let proxy = wanted().set("pool.size", 3).start();
    let app = proxy.address.clone();
    let mut reader = app.connect_with(&[("application_name", "reader")]);
    let mut writer = app.connect_with(&[("application_name", "writer")]);
    let mut console = console(&proxy);
    let before = stats(&mut console, &app.database);
    for _ in 0..5 {
        reader.run("SELECT 1");
    }
    writer.run("BEGIN");
    writer.run("CREATE TEMP TABLE held (n int) ON COMMIT DROP");
    writer.send(&[unnamed("SELECT $1::int", &[Some("1")]), sync()].concat());
    assert!(writer.answer().error.is_none());

    let clients = rows(&mut console, "SHOW CLIENTS");
    let client = |name: &str| {
        clients
            .iter()
            .find(|row| text(row, "application_name") == name)
            .unwrap()
    };
    assert_eq!(text(client("reader"), "state"), "idle");
    assert_eq!(text(client("writer"), "state"), "active");
    assert_eq!(text(client("writer"), "addr"), "127.0.0.1");
    assert_eq!(
        text(client("writer"), "port"),
        writer.stream().local_addr().unwrap().port().to_string()
    );
    let servers = rows(&mut console, "SHOW SERVERS");
    let lent: Vec<_> = servers
        .iter()
        .filter(|row| text(row, "state") == "active")
        .collect();
    assert_eq!(lent.len(), 1, "{servers:?}");
    assert_eq!(
        text(lent[0], "remote_pid"),
        writer.value("SELECT pg_backend_pid()")
    );
    assert_eq!(
        text(lent[0], "port"),
        Cluster::shared().primary().port.to_string()
    );

    let pools = rows(&mut console, "SHOW POOLS");
    let pool = pools
        .iter()
        .find(|row| (text(row, "database"), text(row, "user")) == (app.database.clone(), app.user.clone()))
        .unwrap();
    assert_eq!(
        (text(pool, "cl_active"), text(pool, "cl_waiting")),
        ("2".to_owned(), "0".to_owned())
    );
    assert_eq!(
        (text(pool, "sv_active"), text(pool, "pool_mode")),
        ("1".to_owned(), "transaction".to_owned())
    );
    writer.run("COMMIT");

    let after = stats(&mut console, &app.database);
    let grown = |name: &str| after[name] - before[name];
    assert_eq!(grown("total_xact_count"), 6, "five reads and a block");
    // The block has BEGIN, CREATE, the extended one, the process ID and COMMIT.
    assert_eq!(grown("total_query_count"), 10);
    assert_eq!(grown("total_server_assignment_count"), 6);
    assert_eq!(
        (grown("total_bind_count"), grown("total_client_parse_count")),
        (1, 1)
    );
    assert!(grown("total_received") > 100 && grown("total_sent") > 100);
    assert!(grown("total_xact_time") >= grown("total_query_time"));
    let leaving = after["total_xact_count"];
    reader.leave();
    until("the reader to be gone", || {
        rows(&mut console, "SHOW CLIENTS").len() == clients.len() - 1
    });
    assert_eq!(
        stats(&mut console, &app.database)["total_xact_count"],
        leaving,
        "what it did stays counted"
    );

    let nodes = rows(&mut console, "SHOW NODES");
    assert_eq!(nodes.len(), Cluster::shared().nodes().len());
    let roles: Vec<_> = nodes.iter().map(|row| text(row, "role")).collect();
    assert_eq!(roles.iter().filter(|role| *role == "primary").count(), 1);
    let routes = rows(&mut console, "SHOW ROUTES");
    let readers = routes.iter().filter(|row| text(row, "access") == "read").count();
    assert_eq!(readers, 3, "{routes:?}");
}

/// The totals of a database.
#[track_caller]
fn stats(console: &mut Client, database: &str) -> BTreeMap<String, i64> {
    let rows = rows(console, "SHOW STATS");
    let row = rows.into_iter().find(|row| text(row, "database") == database);
    let numbers = row
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("total_"));
    numbers
        .map(|(name, value)| (name, value.unwrap().parse().unwrap()))
        .collect()
}

#[test]
fn a_pin_has_a_reason_and_a_time() {
    let proxy = wanted().start();
    let mut console = console(&proxy);
    let mut client = proxy.address.connect_with(&[("application_name", "pinned")]);
    assert!(rows(&mut console, "SHOW PINS").is_empty());
    client.run("CREATE TEMP TABLE mine (n int)");
    // The server is asked what the session holds when the client has its answer.
    until("the pin to show", || rows(&mut console, "SHOW PINS").len() == 1);
    let pins = rows(&mut console, "SHOW PINS");
    assert_eq!(text(&pins[0], "reason"), "temporary_object");
    assert_eq!(text(&pins[0], "application_name"), "pinned");
    assert_eq!(
        text(&pins[0], "remote_pid"),
        client.value("SELECT pg_backend_pid()")
    );
    let primary = Cluster::shared().primary().name.clone();
    assert_eq!(text(&pins[0], "node"), primary);
    assert!(text(&pins[0], "since").ends_with(" UTC"));
    client.run("DROP TABLE mine");
    until("the pin to go", || rows(&mut console, "SHOW PINS").is_empty());
}

/// CVE-2026-6667: a command was open to users who may only look.
#[test]
fn who_may_look_runs_no_command() {
    let (wanted, port) = wanted().also_listening("replica");
    let proxy = wanted.start();
    let mut client = proxy.connect();
    client.run("SELECT 1");
    let node = Cluster::shared().nodes()[0].name.clone();
    let mut observer = console_of(&proxy.readonly).connect();
    for sql in [
        "PAUSE".to_owned(),
        "pause".to_owned(),
        format!("PAUSE {}", proxy.address.database),
        "RESUME".to_owned(),
        "RECONNECT".to_owned(),
        format!("DRAIN {node}"),
        format!("UNDRAIN {node}"),
        "SHOW VERSION; PAUSE".to_owned(),
        "/* SHOW */ PAUSE".to_owned(),
    ] {
        assert_eq!(observer.failure(&sql), "42501", "{sql}");
        if !sql.contains(';') {
            observer.send(&[unnamed(&sql, &[]), sync()].concat());
            assert_eq!(
                observer.answer().sqlstate(),
                "42501",
                "{sql} by the extended protocol"
            );
        }
    }
    for sql in ["SHUTDOWN", "KILL a", "RELOAD", "SUSPEND"] {
        assert_eq!(observer.failure(sql), "0A000", "{sql}");
    }
    for table in SHOWN {
        observer.run(&format!("SHOW {table}"));
    }
    observer.run("EXPLAIN ROUTE SELECT 1");
    client.run("SELECT 1");
    let events = rows(&mut console(&proxy), "SHOW EVENTS");
    assert!(
        events.iter().all(|row| text(row, "kind") != "operator"),
        "nothing was done: {events:?}"
    );

    // The console is there on every port, and for nobody else.
    let on_replica_port = Address {
        port,
        ..console_of(&proxy.address)
    };
    on_replica_port.connect().run("SHOW VERSION");
    let stranger = Cluster::shared()
        .proxy()
        .set("admin.users", vec!["somebody"])
        .start();
    let refused = console_of(&stranger.address).try_connect(&[]).err().unwrap();
    assert_eq!(refused.sqlstate(), "28000");
    let mut wrong = console_of(&proxy.address);
    wrong.password.push('x');
    assert_eq!(wrong.try_connect(&[]).err().unwrap().sqlstate(), "28P01");
}

/// What one message asks for is given as the client takes it, and not kept until all of it is there.
#[test]
fn who_may_look_takes_no_memory_from_others() {
    const TIMES: usize = 20_000;
    let proxy = wanted().start();
    let mut observer = console_of(&proxy.readonly).connect();
    observer.run("SHOW CONFIG");
    let before = peak_memory_kib(proxy.pid());
    observer.send(&query(&"SHOW CONFIG;".repeat(TIMES)));
    let answers = std::iter::from_fn(|| Some(observer.receive().kind).filter(|kind| *kind != b'Z'));
    assert_eq!(answers.filter(|kind| *kind == b'C').count(), TIMES);
    let grown = peak_memory_kib(proxy.pid()) - before;
    assert!(grown < 12 * 1024, "{grown} KiB more");
    observer.run("SHOW VERSION");
}

/// Without `[admin]` the names are those of databases like any other.
#[test]
fn without_administrators_there_is_no_console() {
    let refused = console_of(&Cluster::shared_proxy().address).try_connect(&[]);
    assert_eq!(refused.err().unwrap().sqlstate(), "3D000");
}

#[test]
fn no_table_holds_a_password() {
    let proxy = wanted().start();
    let mut console = console(&proxy);
    let mut client = proxy.connect();
    client.run("SELECT 1");
    let secrets = [proxy.address.password.clone(), proxy.readonly.password.clone()];
    let config = std::fs::read_to_string(proxy.config()).unwrap();
    let config: toml::Table = toml::from_str(&config).unwrap();
    let health = config["health"]["password"].as_str().map(str::to_owned);
    for table in SHOWN {
        for row in rows(&mut console, &format!("SHOW {table}")) {
            for (name, value) in row {
                let value = value.unwrap_or_default();
                let shown = secrets
                    .iter()
                    .chain(&health)
                    .any(|secret| value.contains(secret.as_str()));
                assert!(
                    !shown && !value.contains("SCRAM-SHA-256$"),
                    "SHOW {table} has one in {name}"
                );
            }
        }
    }
}

#[test]
fn a_pause_holds_what_is_new_and_waits_for_what_is_open() {
    let proxy = wanted().set("admin.pause_timeout", "30s").start();
    let database = proxy.address.database.clone();
    let mut open = proxy.connect();
    let mut pinned = proxy.connect();
    pinned.run("CREATE TEMP TABLE mine AS SELECT 5 AS n");
    open.run("BEGIN");
    open.run("SELECT 1");
    let pausing = {
        let address = console_of(&proxy.address);
        thread::spawn(move || address.connect().run(&format!("PAUSE \"{database}\"")))
    };
    let mut looking = console_of(&proxy.readonly).connect();
    let paused = |looking: &mut Client| {
        let rows = rows(looking, "SHOW DATABASES");
        rows.iter().any(|row| text(row, "paused") == "1")
    };
    until("the pause to begin", || paused(&mut looking));
    assert!(!pausing.is_finished(), "a transaction is open");
    open.run("SELECT 2");

    // What comes now is held: a read, a write, and the next statement of a session that keeps its backend.
    let (mut reader, mut writer) = (proxy.connect(), proxy.connect());
    reader.send(&query("SELECT 'read'"));
    writer.send(&query("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1"));
    pinned.send(&query("SELECT n FROM mine"));
    until("three to be held", || proxy.clients("held") == 3);
    let counted = |name: &str| proxy.metric(name);
    assert_eq!(counted("halyard_held_total{reason=\"paused\"}"), 3.0);
    open.run("COMMIT");
    assert_eq!(pausing.join().unwrap().tags, ["PAUSE"]);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(proxy.clients("active"), 0, "nothing runs");
    let pools = rows(&mut looking, "SHOW POOLS");
    let waiting: i64 = pools
        .iter()
        .map(|row| text(row, "cl_waiting").parse::<i64>().unwrap())
        .sum();
    assert_eq!(waiting, 3);
    // One that keeps its backend is held no further than any.
    pinned.cancel();
    assert_eq!(pinned.answer().sqlstate(), "57014");
    pinned.send(&query("SELECT n FROM mine"));
    until("three to be held again", || proxy.clients("held") == 3);

    let mut console = console(&proxy);
    assert_eq!(console.failure("PAUSE no_such_database"), "3D000");
    assert_eq!(
        console.failure(&format!("PAUSE {}", proxy.address.database)),
        "55000"
    );
    console.run("RESUME");
    assert_eq!(console.failure("RESUME"), "55000");
    assert_eq!(reader.answer().rows, [[Some("read".to_owned())]]);
    assert!(writer.answer().error.is_none());
    assert_eq!(pinned.answer().rows, [[Some("5".to_owned())]]);
    until("each hold to be observed", || {
        counted("halyard_hold_seconds_count") == 4.0
    });
    assert_eq!(counted("halyard_held_total{reason=\"paused\"}"), 4.0);
    let events = rows(&mut console, "SHOW EVENTS");
    let what: Vec<_> = events.iter().map(|row| text(row, "event")).collect();
    assert!(
        what.iter().any(|what| what.starts_with("PAUSE of database")),
        "{what:?}"
    );
    assert!(what.iter().any(|what| what.starts_with("RESUME")), "{what:?}");
}

/// Whoever leaves, or wants no longer, makes room; and what is too much is refused at once.
#[test]
fn a_held_client_that_leaves_frees_its_place() {
    let proxy = wanted()
        .set("failover.held_clients_max", 1)
        .set("failover.held_bytes_max", "1kB")
        .start();
    let mut console = console(&proxy);
    // One that keeps its backend is refused as any.
    let mut pinned = proxy.connect();
    pinned.run("CREATE TEMP TABLE of_its_own (a int)");
    console.run(&format!("PAUSE {}", proxy.address.database));
    let (mut leaving, mut staying) = (proxy.connect(), proxy.connect());
    leaving.send(&query("SELECT 1"));
    until("it to be held", || proxy.clients("held") == 1);
    let bytes = query("SELECT 1").len() as f64;
    assert_eq!(proxy.metric("halyard_held_bytes"), bytes);
    let shown = rows(&mut console, "SHOW STATE");
    let value = |key: &str| {
        let row = shown.iter().find(|row| text(row, "key") == key).unwrap();
        text(row, "value")
    };
    assert_eq!(
        (value("held_clients"), value("held_bytes")),
        ("1".to_owned(), bytes.to_string())
    );
    assert_eq!(staying.failure("SELECT 2"), "57P03");
    assert_eq!(pinned.failure("SELECT 2"), "57P03");
    let refused = "halyard_held_refused_total{reason=\"clients\"}";
    assert_eq!(proxy.metric(refused), 2.0);
    drop(leaving);
    until("its place to be free", || proxy.clients("held") == 0);
    staying.send(&query("SELECT 3"));
    until("the other to be held", || proxy.clients("held") == 1);
    staying.cancel();
    assert_eq!(staying.answer().sqlstate(), "57014");
    let long = format!("SELECT '{}'", "x".repeat(2000));
    assert_eq!(staying.failure(&long), "57P03");
    // The end of a block that is none needs no node, and is answered as by one.
    for end in ["ROLLBACK", "/* c */ commit work;"] {
        let primary = Cluster::shared().primary().port;
        let [told, direct] = [
            staying.run(end),
            Cluster::shared().app(primary).connect().run(end),
        ]
        .map(|answer| {
            let notices: Vec<_> = answer
                .notices
                .iter()
                .map(|notice| [b'S', b'C', b'M'].map(|field| notice.field(field)))
                .collect();
            (answer.tags, answer.status, notices)
        });
        assert_eq!(told, direct);
    }
    staying.send(&query("SELECT 4"));
    until("it to be held again", || proxy.clients("held") == 1);
    console.run("RESUME");
    assert_eq!(staying.answer().rows, [[Some("4".to_owned())]]);
}

#[test]
fn a_pause_that_takes_too_long_or_is_cancelled_holds_nobody() {
    let proxy = wanted().set("admin.pause_timeout", "300ms").start();
    let mut open = proxy.connect();
    open.run("BEGIN");
    let mut console = console(&proxy);
    let answer = console.query("PAUSE");
    assert_eq!(answer.sqlstate(), "55000");
    assert!(
        answer
            .error
            .unwrap()
            .field(b'M')
            .contains("1 transactions are open still")
    );
    proxy.connect().run("SELECT 1");
    drop(proxy);

    let proxy = wanted().start();
    let mut open = proxy.connect();
    open.run("BEGIN");
    let mut console = console_of(&proxy.address).connect();
    console.send(&query("PAUSE"));
    let mut other = console_of(&proxy.address).connect();
    until("the pause to begin", || {
        rows(&mut other, "SHOW STATE")
            .iter()
            .any(|row| text(row, "key") == "paused" && text(row, "value") == "yes")
    });
    console.cancel();
    assert_eq!(console.answer().sqlstate(), "57014");
    proxy.connect().run("SELECT 1");
}

/// A statement is held by a pause no longer than without a primary; its session lives on.
#[test]
fn a_pause_holds_a_statement_no_longer_than_it_may() {
    let proxy = wanted().set("failover.hold", "500ms").start();
    let (mut free, mut pinned) = (proxy.connect(), proxy.connect());
    pinned.run("CREATE TEMP TABLE mine AS SELECT 5 AS n");
    let mut hasty = proxy.address.connect_with(&[("statement_timeout", "100")]);
    hasty.run("CREATE TEMP TABLE mine AS SELECT 6 AS n");
    let mut console = console(&proxy);
    console.run("PAUSE");
    assert_eq!(free.failure("SELECT 1"), "57P03");
    assert_eq!(pinned.failure("SELECT n FROM mine"), "57P03");
    pinned.send(&[unnamed("SELECT n FROM mine", &[]), sync()].concat());
    assert_eq!(pinned.answer().sqlstate(), "57P03");
    assert_eq!(hasty.failure("SELECT n FROM mine"), "57014", "by its own limit");
    assert_eq!(proxy.metric("halyard_held_refused_total{reason=\"time\"}"), 3.0);
    assert_eq!(proxy.metric("halyard_held_total{reason=\"paused\"}"), 4.0);
    console.run("RESUME");
    free.run("SELECT 1");
    assert_eq!(pinned.value("SELECT n FROM mine"), "5", "what it had is there");
    assert_eq!(hasty.value("SELECT n FROM mine"), "6");
}

#[test]
fn a_drained_node_gets_no_new_reads() {
    let cluster = Cluster::shared();
    let proxy = wanted().start();
    let mut console = console(&proxy);
    let mut client = proxy.connect();
    let mut block = proxy.connect();
    block.run("BEGIN READ ONLY");
    let port = block.server_port();
    let node = cluster.nodes().iter().find(|node| node.port == port).unwrap();
    console.run(&format!("DRAIN {}", node.name));
    until("reads to go elsewhere", || {
        (0..30).all(|_| client.server_port() != node.port)
    });
    assert_eq!(block.server_port(), node.port, "what runs there goes on");
    block.run("COMMIT");
    let nodes = rows(&mut console, "SHOW NODES");
    let drained: Vec<_> = nodes.iter().filter(|row| text(row, "drained") == "1").collect();
    assert_eq!(drained.len(), 1);
    assert_eq!(console.failure("DRAIN nowhere"), "42704");
    console.run(&format!("UNDRAIN {}", node.name));
    until("reads to come back", || client.server_port() == node.port);
}

#[test]
fn connections_are_replaced_when_they_are_free() {
    let proxy = wanted().set("pool.size", 1).start();
    let mut console = console(&proxy);
    let mut client = proxy.connect();
    let pid = "/* halyard.route: primary */ SELECT pg_backend_pid()";
    let first = client.value(pid);
    client.run("BEGIN");
    console.run("RECONNECT");
    assert_eq!(
        client.value("SELECT pg_backend_pid()"),
        first,
        "a transaction is not broken"
    );
    client.run("COMMIT");
    let second = client.value(pid);
    assert_ne!(second, first);
    assert_eq!(client.value(pid), second);
    console.run(&format!("RECONNECT {}", proxy.address.database));
    assert_ne!(client.value(pid), second);
}

#[test]
fn a_route_is_explained_without_being_gone() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS explained; CREATE TABLE explained (n int)");
    let proxy = wanted().start();
    let mut client = proxy.connect();
    client.run("SELECT 1");
    let mut console = console(&proxy);
    let mut explained = |sql: &str| -> BTreeMap<String, String> {
        let rows = rows(&mut console, &format!("EXPLAIN ROUTE {sql}"));
        rows.iter()
            .map(|row| (text(row, "key"), text(row, "value")))
            .collect()
    };
    let write = explained("WITH gone AS (DELETE FROM explained RETURNING n) SELECT * FROM gone");
    assert_eq!(
        (write["access"].as_str(), write["target"].as_str()),
        ("write", "primary")
    );
    assert_eq!(write["rule"], "data_changing_keyword");
    assert_eq!(write["node"], cluster.primary().name);
    let read = explained("SELECT n FROM explained");
    assert_eq!(
        (read["access"].as_str(), read["target"].as_str()),
        ("read", "standby")
    );
    assert!(read["node"].starts_with("ro"), "{read:?}");
    explained("INSERT INTO explained VALUES (1)");
    assert_eq!(
        client.value("/* halyard.route: primary */ SELECT count(*) FROM explained"),
        "0"
    );
}

#[test]
fn psql_and_drivers_use_it() {
    let proxy = wanted().start();
    proxy.connect().run("SELECT 1");
    let address = console_of(&proxy.address);
    let psql = Program::psql(&address)
        .with(&["-c", "SHOW VERSION", "-c", "SHOW LISTS"])
        .succeed();
    assert!(psql.starts_with("Halyard "), "{psql}");
    assert!(psql.contains("used_clients|"), "{psql}");
    let failed = Program::psql(&address).with(&["-c", "DROP TABLE t"]).run();
    assert!(
        failed.err.contains("invalid command \"DROP TABLE t\""),
        "{}",
        failed.err
    );
    assert_eq!(python("console.py", &address).succeed(), "ok\n");
}

/// What is not one of its messages, is too long, or comes in pieces.
#[test]
fn a_console_bears_anything() {
    let proxy = wanted().start();
    let mut client = console(&proxy);
    client.send(&function_call(1, "x"));
    assert_eq!(client.answer().sqlstate(), "0A000");
    client.send(
        &[
            parse("a", "SHOW VERSION"),
            bind("", "b", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(client.answer().sqlstate(), "26000");
    client.send(&[bind("", "a", &[Some("1")]), sync()].concat());
    assert_eq!(client.answer().sqlstate(), "08P01", "no command takes parameters");
    client.send(&[parse("", "SHOW VERSION; PAUSE"), sync()].concat());
    assert_eq!(client.answer().sqlstate(), "42601");
    for byte in query("SHOW VERSION") {
        client.send(&[byte]);
    }
    assert_eq!(client.answer().tags, ["SHOW"]);
    client.run("");
    let mut long = console(&proxy);
    long.send(&[b'Q', 0x00, 0x20, 0, 0]);
    let told = long.until_closed();
    assert_eq!(told.last().unwrap().field(b'C'), "54000");
    let mut many = console(&proxy);
    for number in 0..100 {
        many.send(&[parse(&format!("s{number}"), "SHOW VERSION"), sync()].concat());
        assert!(many.answer().error.is_none());
    }
    many.send(&[parse("one_more", "SHOW VERSION"), sync()].concat());
    assert_eq!(many.answer().sqlstate(), "53400");
}

#[test]
fn a_console_leaves_when_the_proxy_ends() {
    let mut proxy = wanted().start();
    let mut client = console(&proxy);
    client.run("SHOW VERSION");
    proxy.terminate();
    let told = client.until_closed();
    assert_eq!(told.last().unwrap().field(b'C'), "57P01");
    assert!(proxy.ended().success());
}
