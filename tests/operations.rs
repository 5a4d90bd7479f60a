//! What operators do: look at it, check a configuration, and end it without anybody noticing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::message::*;
use crate::support::{
    Address, Client, Cluster, LONG_PATIENCE, Program, Wanted, get, limit_open_files, memory_kib, until,
    until_within,
};

const HALYARD: &str = env!("CARGO_BIN_EXE_halyard");

/// `cluster up` has told on which port it listens, and with whose passwords.
#[test]
fn the_proxy_that_cluster_up_started_serves_its_users() {
    let cluster = Cluster::shared();
    let front = cluster.front();
    let mut app = front.connect();
    app.run("DROP TABLE IF EXISTS in_front");
    app.run("CREATE TABLE in_front (a int)");
    until("reads to reach the replicas", || {
        cluster.replica_ports().contains(&app.server_port())
    });
    let mut readonly = cluster.readonly(front.port).connect();
    assert_eq!(readonly.value("SELECT 1"), "1");
    assert_eq!(readonly.failure("INSERT INTO in_front VALUES (1)"), "42501");
}

#[test]
fn metrics_are_valid_for_prometheus() {
    let proxy = Cluster::shared_proxy();
    proxy.connect().run("SELECT 1");
    let (status, body) = get(proxy.http_port(), "/metrics").unwrap();
    assert_eq!(status, 200);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool comes with Debian's prometheus");
    promtool.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success() && complaints.is_empty(), "{complaints}");
}

/// The table had no row for one of them.
#[test]
fn the_operators_tables_have_all_metrics_and_no_others() {
    let page = include_str!("../docs/operating.md");
    let (_, section) = page.split_once("\n## Metrics\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let words = section.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let listed: BTreeSet<&str> = words.filter(|word| word.starts_with("halyard_")).collect();

    let proxy = Cluster::shared().proxy().start();
    let mut client = proxy.connect();
    client.run("CREATE TEMP TABLE has_a_pool (a int)");
    // Lag has a series when it is known.
    until("all metrics of the tables, and no others, to be told", || {
        let (_, body) = get(proxy.http_port(), "/metrics").unwrap();
        let types = body
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE halyard_"));
        let names = types.map(|rest| format!("halyard_{}", rest.split(' ').next().unwrap()));
        let told: BTreeSet<String> = names.collect();
        let unlisted: Vec<_> = told
            .iter()
            .filter(|name| !listed.contains(name.as_str()))
            .collect();
        assert!(
            unlisted.is_empty(),
            "docs/operating.md does not list {unlisted:?}"
        );
        told.len() == listed.len()
    });
}

#[test]
fn metrics_count_what_happens() {
    let proxy = Cluster::shared().proxy().start();
    let mut client = proxy.connect();
    let standby = r#"halyard_statements_total{target="standby"}"#;
    let primary = r#"halyard_statements_total{target="primary"}"#;
    let before = proxy.metrics();
    (0..7).for_each(|_| drop(client.run("SELECT 1")));
    (0..3).for_each(|_| drop(client.run("BEGIN; COMMIT")));
    until("what was counted to show", || {
        let now = proxy.metrics();
        now[standby] - before[standby] == 7.0 && now[primary] - before[primary] == 3.0
    });
    let roles = Cluster::shared().nodes().iter().map(|node| {
        let name = &node.name;
        (
            name,
            if node == Cluster::shared().primary() {
                "primary"
            } else {
                "standby"
            },
        )
    });
    for (name, role) in roles {
        assert_eq!(
            proxy.metric(&format!(r#"halyard_node_role{{node="{name}",role="{role}"}}"#)),
            1.0
        );
        assert_eq!(proxy.metric(&format!(r#"halyard_node_up{{node="{name}"}}"#)), 1.0);
    }
}

#[test]
fn health_is_answered_by_http_and_by_the_command_line() {
    let proxy = Cluster::shared_proxy();
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(proxy.http_port(), path).unwrap().0, 200, "{path}");
    }
    assert_eq!(get(proxy.http_port(), "/nothing").unwrap().0, 404);
    let config = proxy.config().to_str().unwrap();
    let healthy = Command::new(HALYARD)
        .args(["healthcheck", "--config", config])
        .output()
        .unwrap();
    assert!(healthy.status.success(), "{healthy:?}");

    let output = Command::new(HALYARD)
        .args(["status", "--json", "--config", config])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["node1", "node2", "node3", "ro1", "ro2", "ro3"]);
    let text = Command::new(HALYARD)
        .args(["status", "--config", config])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&text.stdout).contains("one primary"),
        "{text:?}"
    );
}

#[test]
fn a_proxy_without_nodes_is_alive_and_not_ready() {
    let proxy = Cluster::shared().proxy().start();
    assert_eq!(get(proxy.http_port(), "/readyz").unwrap().0, 200);
    drop(proxy);

    let nowhere = Cluster::shared()
        .proxy()
        .only_nodes(|name| name == "ro1")
        .observed();
    // A port where nobody listens.
    let config = nowhere.set_node("ro1", "port", 1).write();
    let mut process = Command::new(HALYARD)
        .args(["serve", "--config"])
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    let http: toml::Table = toml::from_str(&text).unwrap();
    let port = http["http"]["address"]
        .as_str()
        .unwrap()
        .rsplit_once(':')
        .unwrap()
        .1
        .parse()
        .unwrap();
    until("it to answer", || {
        get(port, "/livez").is_some_and(|(status, _)| status == 200)
    });
    let (status, reasons) = get(port, "/readyz").unwrap();
    let _ = process.kill();
    let _ = process.wait();
    assert_eq!(status, 503);
    assert!(reasons.contains("no node"), "{reasons}");
}

/// A reader of its output that has ended, or a full disk, ended it: in the place that says so.
#[test]
fn output_that_nobody_takes_ends_nothing() {
    let nowhere = || File::options().write(true).open("/dev/full").unwrap();
    let status = Cluster::shared().command_to(nowhere(), &["status"]);
    assert_eq!(status.code(), Some(0), "healthy, whoever reads of it");

    let talkative = Cluster::shared().proxy().set("general.log_level", "debug");
    let mut proxy = talkative.logging_to(nowhere()).start();
    assert_eq!(proxy.connect().value("SELECT 1"), "1");
    assert!(proxy.address.try_connect(&[("options", "nonsense")]).is_err());
    assert_eq!(proxy.connect().value("SELECT 2"), "2");
    proxy.terminate();
    assert!(proxy.ended().success());
}

#[test]
fn sigterm_lets_open_transactions_finish_and_takes_nobody_new() {
    Cluster::shared().prepare("DROP TABLE IF EXISTS drained; CREATE TABLE drained (a int)");
    let mut proxy = Cluster::shared().proxy().start();
    let mut idle = proxy.connect();
    let mut working = proxy.connect();
    working.run("BEGIN");
    working.run("INSERT INTO drained VALUES (1)");
    proxy.terminate();

    let last = idle.until_closed();
    assert_eq!(
        last.iter().map(|message| message.field(b'C')).collect::<Vec<_>>(),
        ["57P01"]
    );
    until("newcomers to be refused", || {
        proxy.address.try_connect(&[]).is_err()
    });
    working.run("INSERT INTO drained VALUES (2)");
    assert_eq!(working.run("COMMIT").tags, ["COMMIT"]);
    let last = working.until_closed();
    assert_eq!(
        last.iter().map(|message| message.field(b'C')).collect::<Vec<_>>(),
        ["57P01"]
    );
    assert!(proxy.ended().success());
    let mut direct = Cluster::shared().app(Cluster::shared().primary().port).connect();
    assert_eq!(direct.value("SELECT count(*) FROM drained"), "2");
}

/// A message that changes nothing for an idle session (a cancel) was taken, and the next one did not wake it.
#[test]
fn a_session_hears_of_the_end_whatever_it_heard_before() {
    let proxy = Cluster::shared().proxy().start();
    let mut idle: Vec<_> = (0..8).map(|_| proxy.connect()).collect();
    for client in &idle {
        client.cancel();
    }
    // A cancel of an idle session does nothing that could be seen; the next statement comes behind it.
    for client in &mut idle {
        client.run("SELECT 1");
        client.cancel();
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    let began = std::time::Instant::now();
    proxy.terminate();
    for client in &mut idle {
        assert_eq!(client.until_closed().last().unwrap().field(b'C'), "57P01");
    }
    assert!(
        began.elapsed() < std::time::Duration::from_secs(20),
        "not at the limit"
    );
}

/// It is let go at the end of its block, as any, and not when the time is over.
#[test]
fn a_session_that_keeps_its_connection_hears_of_the_end_behind_its_block() {
    for listens in [false, true] {
        let mut proxy = Cluster::shared()
            .proxy()
            .set("general.drain_timeout", "10min")
            .start();
        let (mut client, mut idle) = (proxy.connect(), proxy.connect());
        if listens {
            client.run("LISTEN of_the_end");
        }
        client.run("CREATE TEMP TABLE of_its_own (a int)");
        client.run("BEGIN");
        proxy.terminate();
        // All are told at once.
        assert_eq!(idle.until_closed().last().unwrap().field(b'C'), "57P01");
        client.run("INSERT INTO of_its_own VALUES (1)");
        client.run("COMMIT");
        let last = client.until_closed();
        assert_eq!(last.last().unwrap().field(b'C'), "57P01");
        assert!(proxy.ended().success());
    }
}

/// It was not a session yet when the others were told.
#[test]
fn whoever_was_logging_in_hears_of_the_end() {
    let mut proxy = Cluster::shared()
        .proxy()
        .trusting()
        .observed()
        .set("general.drain_timeout", "10min")
        .start();
    let mut working = proxy.connect();
    working.run("BEGIN");
    let mut idle = proxy.connect();
    let came = || proxy.metric("halyard_client_connections_total");
    let before = came();
    let mut late = Client::open(proxy.address.port).unwrap();
    let startup = startup(&[
        ("user", &proxy.address.user),
        ("database", &proxy.address.database),
    ]);
    let (first, rest) = startup.split_at(startup.len() / 2);
    late.send(first);
    until("it to be there", || came() > before);
    proxy.terminate();
    assert_eq!(idle.until_closed().last().unwrap().field(b'C'), "57P01");
    late.send(rest);
    assert_eq!(late.until_closed().last().unwrap().field(b'C'), "57P01");
    working.run("COMMIT");
    working.until_closed();
    assert!(proxy.ended().success());
}

#[test]
fn whoever_does_not_finish_is_ended_when_the_time_is_over_or_at_a_second_sigterm() {
    for twice in [false, true] {
        let limit = if twice { "10min" } else { "1s" };
        let mut proxy = Cluster::shared()
            .proxy()
            .set("general.drain_timeout", limit)
            .start();
        let mut client = proxy.connect();
        client.run("BEGIN");
        proxy.terminate();
        if twice {
            until("the first to be taken", || {
                proxy.metric("halyard_draining") == 1.0
            });
            proxy.terminate();
        }
        let last = client.until_closed();
        assert_eq!(
            last.iter().map(|message| message.field(b'C')).collect::<Vec<_>>(),
            ["57P01"]
        );
        assert!(proxy.ended().success());
    }
}

#[test]
fn a_configuration_is_checked_with_all_its_mistakes_at_once() {
    let check = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let output = Command::new(HALYARD)
            .args(["check", "--config"])
            .arg(file.path())
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (usable, said) =
        check("[pool]\nsizes = 5\nmode = \"transactions\"\n\n[routing]\nmax_replica_lag = \"30 parsecs\"\n");
    assert!(!usable);
    for part in [
        ":2:1",
        "sizes",
        "did you mean",
        "size",
        ":3:",
        "transaction",
        ":6:",
        "30 parsecs",
    ] {
        assert!(said.contains(part), "{part} is missing in:\n{said}");
    }
    let sound = Cluster::shared().proxy().write();
    let output = Command::new(HALYARD)
        .args(["check", "--config"])
        .arg(sound)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");

    let (mut wanted, _) = Cluster::shared().proxy().also_listening("auto");
    wanted = wanted.set("pool.size", 0);
    let refused = Command::new(HALYARD)
        .args(["serve", "--config"])
        .arg(wanted.write())
        .output()
        .unwrap();
    assert!(!refused.status.success());
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("size"),
        "{refused:?}"
    );
}

#[test]
fn a_port_that_is_taken_is_told_in_one_line() {
    let proxy = Cluster::shared_proxy();
    let output = Command::new(HALYARD)
        .args(["serve", "--config"])
        .arg(proxy.config())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&proxy.address.port.to_string()), "{said}");
}

/// Whoever reads the log learns nobody's password, nothing that logs in for it, and nothing of what clients send and get.
#[test]
fn no_password_and_no_row_is_in_the_log() {
    const ROW: &str = "row data that nobody logs";
    const WRONG: &str = "a wrong password that nobody logs";
    let proxy = talkative().start();
    let mut client = proxy.connect();
    client.run("CREATE TEMPORARY TABLE unlogged (a text PRIMARY KEY)");
    let insert = format!("INSERT INTO unlogged VALUES ('{ROW}')");
    client.run(&insert);
    assert_eq!(client.value("SELECT a FROM unlogged"), ROW);
    // The server's DETAIL has the key.
    assert_eq!(client.failure(&insert), "23505");
    client.send(&[unnamed("SELECT $1::int", &[Some(ROW)]), sync()].concat());
    assert_eq!(client.answer().sqlstate(), "22P02");

    let wrong = Address {
        password: WRONG.to_owned(),
        ..proxy.address.clone()
    };
    assert_eq!(wrong.try_connect(&[]).err().unwrap().sqlstate(), "28P01");
    let nobody = Address {
        user: "nobody_knows".to_owned(),
        ..wrong
    };
    assert_eq!(nobody.try_connect(&[]).err().unwrap().sqlstate(), "28P01");
    let nowhere = Address {
        database: "no_such_database".to_owned(),
        ..proxy.address.clone()
    };
    assert_eq!(nowhere.try_connect(&[]).err().unwrap().sqlstate(), "3D000");

    let refused = "a client did not get in";
    until("both refusals to be logged", || {
        proxy.log().matches(refused).count() == 2
    });
    let log = proxy.log();
    let config: toml::Table = toml::from_str(&std::fs::read_to_string(proxy.config()).unwrap()).unwrap();
    let passwords = passwords(&config.into());
    assert!(
        passwords.len() >= 4,
        "two users, the health and the engine's role"
    );
    for secret in passwords.iter().map(String::as_str).chain([ROW, WRONG]) {
        assert!(!log.contains(secret), "{secret:?}");
    }
}

#[test]
fn no_md5_hash_is_in_the_log() {
    const WRONG: &str = "another one than the node has";
    let mut rule = toml::Table::new();
    rule.insert("method".into(), "md5".into());
    let readonly = Cluster::shared().readonly(0).user;
    // The harness' own client, which waits until reads are spread, does not speak md5.
    let proxy = talkative()
        .set("auth.rule", vec![toml::Value::from(rule)])
        .set_user(&readonly, "password", WRONG)
        .cold()
        .start();
    let app = &proxy.address;
    let one = |address: &Address| Program::psql(address).with(&["-c", "SELECT 1"]).run();
    assert!(one(app).success);
    let refused_by_the_node = Address {
        password: WRONG.to_owned(),
        ..proxy.readonly.clone()
    };
    let told = one(&refused_by_the_node);
    assert!(
        told.err.contains("password authentication failed"),
        "{}",
        told.err
    );

    let mut superuser = Cluster::shared().superuser(Cluster::shared().primary()).connect();
    let hash = superuser.value(&format!("SELECT md5('{}{}')", app.password, app.user));
    let log = proxy.log();
    for secret in [app.password.as_str(), hash.as_str(), WRONG] {
        assert!(!log.contains(secret), "{secret:?}");
    }
}

#[test]
fn no_part_of_a_verifier_is_in_the_log() {
    let app = Cluster::shared().app(0).user;
    let mut superuser = Cluster::shared().superuser(Cluster::shared().primary()).connect();
    let question = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{app}'");
    let verifier = superuser.value(&question);
    let proxy = talkative().set_user(&app, "password", verifier.as_str()).start();
    assert_eq!(proxy.connect().value("SELECT 1"), "1");
    let keys = verifier.rsplit('$').next().unwrap();
    let (stored, server) = keys.split_once(':').unwrap();
    let log = proxy.log();
    for secret in [stored, server, proxy.address.password.as_str()] {
        assert!(!log.contains(secret), "{secret:?}");
    }
}

/// A proxy that logs everything.
fn talkative() -> Wanted<'static> {
    Cluster::shared().proxy().set("general.log_level", "trace")
}

/// All passwords in a configuration.
fn passwords(value: &toml::Value) -> Vec<String> {
    match value {
        toml::Value::Array(values) => values.iter().flat_map(passwords).collect(),
        toml::Value::Table(table) => {
            let own = table.get("password").and_then(toml::Value::as_str);
            let deeper = table.values().flat_map(passwords);
            own.map(str::to_owned).into_iter().chain(deeper).collect()
        }
        _ => Vec::new(),
    }
}

/// An idle client holds no buffer, and no connection to a node.
#[test]
fn five_thousand_idle_clients_cost_at_most_eight_kib_each() {
    const CLIENTS: u64 = 5000;
    const EACH_MAX_KIB: u64 = 8;
    let files = CLIENTS + 1000;
    limit_open_files(std::process::id(), 2 * files);
    let proxy = Cluster::shared()
        .proxy()
        .trusting()
        .set("limits.client_connections_max", i64::try_from(files).unwrap())
        .start();
    limit_open_files(proxy.pid(), 2 * files);
    let connect = || {
        let mut client = proxy.connect();
        client.run("SELECT 1");
        client
    };
    // What the process needs once, whoever comes.
    let warm: Vec<Client> = (0..50).map(|_| connect()).collect();
    let before = memory_kib(proxy.pid());
    let clients: Vec<Client> = (0..CLIENTS).map(|_| connect()).collect();
    until_within(LONG_PATIENCE, "all to be idle", || {
        (proxy.clients("idle") >= CLIENTS + 50).then_some(())
    });
    let each = (memory_kib(proxy.pid()) - before) as f64 / CLIENTS as f64;
    assert!(each <= EACH_MAX_KIB as f64, "an idle client costs {each:.1} KiB");
    let mut some = clients.into_iter().step_by(500);
    assert!(some.all(|mut client| client.value("SELECT 'alive'") == "alive"));
    drop(warm);
}

#[test]
fn a_client_that_sends_half_a_message_costs_nobody_else_anything() {
    let proxy = Cluster::shared_proxy();
    let mut half = proxy.connect();
    let whole = query("SELECT 'late'");
    half.send(&whole[..7]);
    assert_eq!(proxy.connect().value("SELECT 'alive'"), "alive");
    half.send(&whole[7..]);
    assert_eq!(half.answer().rows, [[Some("late".to_owned())]]);
}
