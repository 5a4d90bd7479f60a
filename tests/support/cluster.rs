//! Real clusters, brought up and broken by the binary's own `halyard cluster`.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::{Mutex, MutexGuard, OnceLock};

use serde_json::Value;

use super::guardian::{self, HALYARD};
use super::wire::{Address, Client};
use super::{LONG_PATIENCE, Link, Proxy, Wanted, ports, until, until_within};

/// A running cluster: monitor, `node1` to `node3`, `ro1` to `ro3`, and Halyard in front.
pub(crate) struct Cluster {
    dir: PathBuf,
    record: Value,
    nodes: Vec<Node>,
}

/// One PostgreSQL server of it that holds the application's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) port: u16,
}

/// A cluster that one test has for itself, to break it. It is healed before the next one gets it.
pub(crate) struct Breakable(MutexGuard<'static, Cluster>);

impl Deref for Breakable {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Cluster {
    /// The cluster that all tests of a run share. Nobody breaks it.
    ///
    /// `HALYARD_TEST_CLUSTER` may name the folder of one that runs already.
    pub(crate) fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var_os("HALYARD_TEST_CLUSTER") {
            Some(dir) => Cluster::open(Path::new(&dir)),
            None => Cluster::up("shared"),
        })
    }

    /// The cluster for tests that kill and freeze, whole and healthy.
    pub(crate) fn breakable() -> Breakable {
        static BREAKABLE: OnceLock<Mutex<Cluster>> = OnceLock::new();
        let cluster = BREAKABLE.get_or_init(|| match std::env::var_os("HALYARD_TEST_BREAKABLE_CLUSTER") {
            Some(dir) => Cluster::open(Path::new(&dir)).into(),
            None => Cluster::up("breakable").into(),
        });
        let cluster = cluster.lock().unwrap_or_else(|poisoned| {
            // A test failed while it had the cluster; healing is what comes next anyway.
            poisoned.into_inner()
        });
        cluster.heal();
        Breakable(cluster)
    }

    /// With the engine's default timing: shorter deadlines would take a busy machine's pauses for failures.
    fn up(name: &str) -> Cluster {
        Self::up_with(name, "seed", &[])
    }

    /// A cluster for drills, with the engine's timing of that name.
    #[allow(dead_code, reason = "only the drills do")]
    pub(crate) fn for_drills(profile: &str) -> Cluster {
        Self::up_with("drills", profile, &[])
    }

    /// A cluster for chaos, without a proxy of its own.
    #[allow(dead_code, reason = "only the chaos suite does")]
    pub(crate) fn for_chaos(profile: &str) -> Cluster {
        Self::up_with("chaos", profile, &["--no-proxy"])
    }

    fn up_with(name: &str, profile: &str, more: &[&str]) -> Cluster {
        let dir = guardian::folder().join(name);
        guardian::guard_cluster(&dir);
        let base = ports::block().to_string();
        let up = Command::new(HALYARD)
            .args(["cluster", "up", "--no-fsync", "--profile", profile])
            .args(more)
            .args(["--base-port", &base, "--dir"])
            .arg(&dir)
            .output()
            .unwrap();
        assert!(
            up.status.success(),
            "no cluster comes up:\n{}",
            String::from_utf8_lossy(&up.stderr)
        );
        Cluster::open(&dir)
    }

    fn open(dir: &Path) -> Cluster {
        let text = std::fs::read_to_string(dir.join("cluster.json")).unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        let node = |node: &Value| Node {
            name: node["name"].as_str().unwrap().into(),
            port: port(&node["port"]),
        };
        let nodes = record["nodes"].as_array().unwrap().iter().map(node).collect();
        Cluster {
            dir: dir.to_owned(),
            record,
            nodes,
        }
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// All nodes, `node1` first.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// The ports of the read-only replicas.
    pub(crate) fn replica_ports(&self) -> Vec<u16> {
        self.nodes
            .iter()
            .filter(|node| node.name.starts_with("ro"))
            .map(|node| node.port)
            .collect()
    }

    /// The node that takes writes now.
    pub(crate) fn primary(&self) -> &Node {
        until_within(LONG_PATIENCE, "a primary", || {
            self.nodes.iter().find(|node| self.is_writable(node))
        })
    }

    /// The two backups, that of the higher priority first.
    #[allow(dead_code, reason = "only some themes choose among them")]
    pub(crate) fn backups(&self) -> [String; 2] {
        let primary = self.primary().name.clone();
        let mut others = ["node1", "node2", "node3"]
            .into_iter()
            .filter(|name| *name != primary);
        [(); 2].map(|()| others.next().unwrap().to_owned())
    }

    /// Whether a node says that it takes writes.
    pub(crate) fn is_writable(&self, node: &Node) -> bool {
        let asked = self.superuser(node).try_connect(&[]).ok().and_then(|mut client| {
            client.try_send(&super::message::query(WRITABLE)).ok()?;
            client.try_answer().ok()
        });
        asked.is_some_and(|answer| answer.rows == [[Some("t".to_owned())]])
    }

    /// The monitor's port.
    pub(crate) fn monitor_port(&self) -> u16 {
        port(&self.record["monitor"]["port"])
    }

    /// The superuser on the monitor, in the engine's own database.
    #[allow(dead_code, reason = "only some themes look there")]
    pub(crate) fn monitor(&self) -> Address {
        Address {
            database: "pg_auto_failover".to_owned(),
            ..self.address("superuser", self.monitor_port())
        }
    }

    /// How a cluster command ends whose output goes there.
    #[allow(dead_code, reason = "only one test of its operation does")]
    pub(crate) fn command_to(&self, output: File, arguments: &[&str]) -> ExitStatus {
        Command::new(HALYARD)
            .arg("cluster")
            .args(arguments)
            .arg("--dir")
            .arg(&self.dir)
            .stdout(output)
            .status()
            .unwrap()
    }

    /// What a cluster command prints.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        Command::new(HALYARD)
            .arg("cluster")
            .args(arguments)
            .arg("--dir")
            .arg(&self.dir)
            .output()
            .unwrap()
    }

    /// What a switchover prints once the engine is at rest, behind whatever was done to its nodes before.
    #[track_caller]
    pub(crate) fn switchover(&self, arguments: &[&str]) -> Output {
        let mut said = None;
        until("the engine to be at rest", || {
            let output = self.command(&[&["switchover"], arguments].concat());
            let moves = String::from_utf8_lossy(&output.stderr).contains("not at rest");
            said = Some(output);
            !moves
        });
        said.unwrap()
    }

    #[track_caller]
    fn order(&self, verb: &str, node: &str) {
        let output = self.command(&[verb, node]);
        assert!(
            output.status.success(),
            "cannot {verb} {node}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Ends a server as a power cut would.
    #[track_caller]
    pub(crate) fn kill(&self, node: &str) {
        self.order("kill", node);
    }

    /// Stops a server cleanly.
    #[track_caller]
    pub(crate) fn stop(&self, node: &str) {
        self.order("stop", node);
    }

    /// Brings a server back and returns when it has its place again.
    #[track_caller]
    pub(crate) fn start(&self, node: &str) {
        self.order("start", node);
    }

    /// Stops every process of a server where it stands.
    #[track_caller]
    pub(crate) fn freeze(&self, node: &str) {
        self.order("freeze", node);
    }

    /// Lets a frozen server go on.
    #[track_caller]
    pub(crate) fn thaw(&self, node: &str) {
        self.order("thaw", node);
    }

    /// Brings back whatever was broken.
    pub(crate) fn heal(&self) {
        until_within(2 * LONG_PATIENCE, "the cluster to be whole", || {
            let status = self.command(&["status", "--json"]);
            if status.status.success() {
                return Some(());
            }
            // What is frozen goes on, what is not there is started, and a node that has what its primary never had is
            // rewound.
            let _ = self.command(&["up"]);
            None
        });
    }

    fn address(&self, user: &str, port: u16) -> Address {
        let user = &self.record["users"][user];
        Address {
            port,
            user: user["name"].as_str().unwrap().to_owned(),
            password: user["password"].as_str().unwrap().to_owned(),
            database: self.record["database"].as_str().unwrap().to_owned(),
        }
    }

    /// The application's user on some port.
    pub(crate) fn app(&self, port: u16) -> Address {
        self.address("app", port)
    }

    /// The user that may only read, on some port.
    pub(crate) fn readonly(&self, port: u16) -> Address {
        self.address("readonly", port)
    }

    /// The superuser, directly on a node: Halyard does not know it.
    pub(crate) fn superuser(&self, node: &Node) -> Address {
        self.address("superuser", node.port)
    }

    /// The application's user on the proxy that `cluster up` started.
    pub(crate) fn front(&self) -> Address {
        self.app(port(&self.record["proxy"]["port"]))
    }

    /// Runs SQL as the application's user directly on the primary, and returns when every standby has replayed it.
    #[track_caller]
    pub(crate) fn prepare(&self, sql: &str) {
        let primary = self.primary();
        self.app(primary.port).connect().run(sql);
        self.replicated();
    }

    /// Waits until every standby has replayed what the primary has written so far.
    #[track_caller]
    pub(crate) fn replicated(&self) {
        let primary = self.primary();
        let position = self
            .superuser(primary)
            .connect()
            .value("SELECT pg_current_wal_lsn()");
        for standby in self.nodes.iter().filter(|node| *node != primary) {
            let mut client: Client = self.superuser(standby).connect();
            let question = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'");
            until(&format!("{} to replay {position}", standby.name), || {
                client.value(&question) == "t"
            });
        }
    }

    /// Waits until a server runs a statement.
    #[track_caller]
    pub(crate) fn until_runs(&self, node: &Node, sql: &str) {
        self.until_running(node, &format!("state = 'active' AND query = $q${sql}$q$"));
    }

    /// Waits until a server is in the middle of a COMMIT that sleeps.
    #[track_caller]
    pub(crate) fn until_commits_slowly(&self, node: &Node) {
        self.until_running(node, Self::COMMITS_SLOWLY);
    }

    /// In `pg_stat_activity`: a COMMIT that sleeps.
    pub(crate) const COMMITS_SLOWLY: &str =
        "state = 'active' AND query = 'COMMIT' AND wait_event = 'PgSleep'";

    #[track_caller]
    fn until_running(&self, node: &Node, which: &str) {
        let mut direct = self.superuser(node).connect();
        let running = format!("SELECT count(*) FROM pg_stat_activity WHERE {which}");
        until(which, || direct.value(&running) != "0");
    }

    /// A proxy whose reads go to the standbys whatever their session has written.
    pub(crate) fn eventual(&self) -> Wanted<'_> {
        self.proxy().set("routing.read_consistency", "eventual")
    }

    /// As [`Cluster::eventual`], started, with one standby alone, which it reaches by a link.
    pub(crate) fn before_one_standby(&self, standby: &str, link: &Link) -> Proxy {
        let primary = self.primary().name.as_str();
        self.eventual()
            .only_nodes(|name| name == primary || name == standby)
            .through(standby, link)
            .start()
    }

    /// A proxy that reaches the primary by a link alone.
    pub(crate) fn linked(&self) -> (Link, Proxy) {
        let primary = self.primary();
        let link = Link::to(primary.port);
        let proxy = self.proxy().through(&primary.name, &link).start();
        (link, proxy)
    }

    /// Another proxy in front of this cluster, on ports and with settings of its own.
    pub(crate) fn proxy(&self) -> Wanted<'_> {
        Wanted::new(self)
    }

    /// A proxy with the default settings that all tests of the shared cluster may use.
    pub(crate) fn shared_proxy() -> &'static Proxy {
        static PROXY: OnceLock<Proxy> = OnceLock::new();
        PROXY.get_or_init(|| Cluster::shared().proxy().start())
    }
}

const WRITABLE: &str =
    "SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'";

fn port(value: &Value) -> u16 {
    u16::try_from(value.as_u64().unwrap()).unwrap()
}
