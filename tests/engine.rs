//! What pg_auto_failover tells of itself: its monitor's notifications, and a node that it has in maintenance.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::failover::{administered, console, written_while};
use crate::support::{Act, Client, Cluster, LONG_PATIENCE, Link, until, until_within};

/// Of a group that nobody has: a reason to ask, and nothing else.
const NOTIFY: &str = r#"NOTIFY state, '{"type": "state", "formation": "default", "groupId": 99, "nodeId": 99,
    "name": "nobody", "host": "127.0.0.1", "port": 1, "reportedState": "secondary", "goalState": "secondary",
    "health": "good"}'"#;

/// The monitor is asked once a second anyway, so that nothing else tells when its notifications are not heard: failovers
/// only take up to a second longer. What tells is a monitor that is asked more often than that.
#[test]
fn a_notification_has_the_monitor_asked_at_once() {
    const NOTIFICATIONS: u64 = 20;
    let cluster = Cluster::shared();
    let link = Link::to(cluster.monitor_port());
    let answers = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&answers);
    link.on_message(move |frame| {
        if frame.kind == b'C' && frame.has("SELECT ") {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        Act::Pass
    });
    let _proxy = cluster.proxy().through_links(&link, []).start();
    let mut monitor = cluster.monitor().connect();
    let answered = || answers.load(Ordering::Relaxed);
    // A machine that stands still for a while explains too few; none explains too many.
    until_within(LONG_PATIENCE, "more answers than the interval explains", || {
        let (began, before) = (Instant::now(), answered());
        for _ in 0..NOTIFICATIONS {
            let known = answered();
            monitor.run(NOTIFY);
            until("the monitor to be asked", || answered() > known);
        }
        // One was under way when this began, and one begins with it.
        let by_interval = began.elapsed().as_secs() + 2;
        (answered() - before > by_interval).then_some(())
    });
}

/// A node that the engine has in maintenance for as long as this lives.
struct Maintenance<'a> {
    cluster: &'a Cluster,
    node: &'a str,
}

impl<'a> Maintenance<'a> {
    /// pg_autoctl waits for its keeper for less than a busy machine may need. Said again, the order waits on.
    #[track_caller]
    fn of(cluster: &'a Cluster, node: &'a str) -> Self {
        let maintenance = Self { cluster, node };
        until_within(LONG_PATIENCE, "its maintenance", || {
            let enabled = maintenance.order("enable");
            eprintln!("{}", String::from_utf8_lossy(&enabled.stderr));
            enabled.status.success().then_some(())
        });
        maintenance
    }

    fn order(&self, verb: &str) -> Output {
        self.run("/usr/bin/pg_autoctl", &[verb, "maintenance"])
    }

    /// The engine leaves the server running, and does not start it again once it is stopped.
    #[track_caller]
    fn stop_server(&self) {
        let limit = format!("--timeout={}", LONG_PATIENCE.as_secs());
        let stopped = self.run("/usr/lib/postgresql/15/bin/pg_ctl", &["stop", "--wait", &limit]);
        assert!(
            stopped.status.success(),
            "{}",
            String::from_utf8_lossy(&stopped.stderr)
        );
    }

    /// A program as an operator runs it on the node: as the servers' user.
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let home = self.cluster.dir().join(self.node);
        let data = home.join("data");
        let owner = std::fs::metadata(&data).unwrap();
        Command::new(program)
            .args(arguments)
            .arg("--pgdata")
            .arg(&data)
            .current_dir("/")
            .env("PGPASSFILE", self.cluster.dir().join("etc/pgpass"))
            .env("HOME", &home)
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_DATA_HOME", home.join("state"))
            .env("XDG_RUNTIME_DIR", home.join("run"))
            .uid(owner.uid())
            .gid(owner.gid())
            .output()
            .unwrap()
    }
}

impl Drop for Maintenance<'_> {
    fn drop(&mut self) {
        let disabled = self.order("disable");
        if !disabled.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&disabled.stderr));
        }
    }
}

/// How many connections to a node have a client's statement or transaction.
fn active_on(console: &mut Client, port: u16) -> usize {
    let servers = console.run("SHOW SERVERS").rows;
    let at = |row: &[Option<String>], text: &str| row.iter().flatten().any(|column| column == text);
    servers
        .iter()
        .filter(|row| at(row, "active") && at(row, &port.to_string()))
        .count()
}

/// As `docs/operating.md` has it done.
#[test]
fn a_standby_in_maintenance_is_missed_by_nobody() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS maintained; CREATE TABLE maintained (n bigint)");
    let primary = cluster.primary().clone();
    let standby = cluster
        .nodes()
        .iter()
        .find(|node| node.name.starts_with("node") && **node != primary)
        .unwrap();
    let proxy = administered(&cluster)
        .set_node(&standby.name, "reads", "preferred")
        .start();
    let mut console = console(&proxy);
    let mut reader = proxy.connect();
    reader.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    let written = written_while(&proxy.address, "maintained", || {
        until_within(LONG_PATIENCE, "it to have reads", || {
            (reader.server_port() == standby.port).then_some(())
        });
        console.run(&format!("DRAIN {}", standby.name));
        until_within(LONG_PATIENCE, "what runs there to end", || {
            (active_on(&mut console, standby.port) == 0).then_some(())
        });
        assert_ne!(reader.server_port(), standby.port, "drained, and read on");
        let maintenance = Maintenance::of(&cluster, &standby.name);
        maintenance.stop_server();
        proxy.until_role(&standby.name, "unknown");
        // Only a notification has this written.
        let told = [
            "the engine changed a node's state",
            &standby.name,
            "goal=maintenance",
        ];
        until_within(LONG_PATIENCE, "the notification of it", || {
            let log = proxy.log();
            log.lines()
                .any(|line| told.iter().all(|words| line.contains(words)))
                .then_some(())
        });
        let in_maintenance = format!(
            "nothing was switched: the engine is not at rest: {} is maintenance",
            standby.name
        );
        until_within(LONG_PATIENCE, "maintenance alone to be in the way", || {
            let refused = console.query("SWITCHOVER");
            assert_eq!(refused.sqlstate(), "55000", "{refused:?}");
            let message = refused.error.unwrap().field(b'M');
            message.starts_with(&in_maintenance).then_some(())
        });
        drop(maintenance);
        console.run(&format!("UNDRAIN {}", standby.name));
        until_within(LONG_PATIENCE, "it to have reads again", || {
            (reader.server_port() == standby.port).then_some(())
        });
    });
    assert_eq!(*cluster.primary(), primary);
    let mut client = proxy.connect();
    let count = client.value("BEGIN; SELECT count(*) FROM maintained; COMMIT");
    assert_eq!(count, written.to_string());
}
