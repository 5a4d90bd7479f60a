//! A proxy of a test's own: `halyard serve` with its own ports and settings.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use toml::{Table, Value as Toml};

use super::guardian::{self, HALYARD};
use super::http::get;
use super::link::Link;
use super::wire::{Address, Client};
use super::{Cluster, PATIENCE, ports, until, until_within};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A proxy that is described and does not run yet.
pub(crate) struct Wanted<'a> {
    cluster: &'a Cluster,
    config: Table,
    cold: bool,
    log: Option<File>,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let text = std::fs::read_to_string(cluster.dir().join("halyard.toml")).unwrap();
        let mut wanted = Self {
            cluster,
            config: toml::from_str(&text).unwrap(),
            cold: false,
            log: None,
        };
        wanted.config["listener"][0]["address"] = loopback(ports::single());
        wanted.config["http"]["address"] = loopback(ports::single());
        // The cluster's own proxy has them.
        let general = wanted.config["general"].as_table_mut().unwrap();
        general.remove("control_socket");
        general.remove("state_file");
        wanted
    }

    /// Sets what a dotted path names, such as `pool.size`.
    pub(crate) fn set(mut self, path: &str, value: impl Into<Toml>) -> Self {
        let (section, key) = path.rsplit_once('.').unwrap();
        let mut table = &mut self.config;
        for name in section.split('.') {
            let entry = table.entry(name).or_insert_with(|| Table::new().into());
            table = entry.as_table_mut().unwrap();
        }
        table.insert(key.to_owned(), value.into());
        self
    }

    /// Sets something of one node's section.
    pub(crate) fn set_node(mut self, name: &str, key: &str, value: impl Into<Toml>) -> Self {
        self.node(name).insert(key.to_owned(), value.into());
        self
    }

    /// Sets something of one user's section.
    pub(crate) fn set_user(mut self, name: &str, key: &str, value: impl Into<Toml>) -> Self {
        let users = self.config["user"].as_array_mut().unwrap();
        let mut users = users.iter_mut().map(|user| user.as_table_mut().unwrap());
        let user = users.find(|user| user["name"].as_str() == Some(name)).unwrap();
        user.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a section for a user.
    pub(crate) fn with_user(mut self, name: &str, password: &str) -> Self {
        let mut section = Table::new();
        section.insert("name".into(), name.into());
        section.insert("password".into(), password.into());
        self.config["user"].as_array_mut().unwrap().push(section.into());
        self
    }

    /// Adds a section for a database, with one setting.
    pub(crate) fn set_database(mut self, name: &str, key: &str, value: impl Into<Toml>) -> Self {
        let mut section = Table::new();
        section.insert("name".into(), name.into());
        section.insert(key.to_owned(), value.into());
        let sections = self
            .config
            .entry("database")
            .or_insert_with(|| Vec::<Toml>::new().into());
        sections.as_array_mut().unwrap().push(section.into());
        self
    }

    /// Leaves nodes out that do not match.
    pub(crate) fn only_nodes(mut self, keep: impl Fn(&str) -> bool) -> Self {
        let nodes = self.config["node"].as_array_mut().unwrap();
        nodes.retain(|node| keep(node["name"].as_str().unwrap()));
        self
    }

    /// Lets everybody in without a password.
    pub(crate) fn trusting(mut self) -> Self {
        let mut rule = Table::new();
        rule.insert("method".into(), "trust".into());
        let mut auth = Table::new();
        auth.insert("rule".into(), vec![Toml::from(rule)].into());
        self.config.insert("auth".into(), auth.into());
        self
    }

    /// Puts a link in front of a node: the proxy reaches it only through that.
    ///
    /// The engine's monitor knows nothing of links, so from here on the nodes' own answers decide who is primary.
    pub(crate) fn through(mut self, name: &str, link: &Link) -> Self {
        self.node(name)
            .insert("port".into(), i64::from(link.port()).into());
        self.observed().set("server_tls.mode", "disable")
    }

    /// Puts links in front of the engine's monitor and of nodes, which the monitor knows by the same names.
    pub(crate) fn through_links<'l>(
        mut self,
        monitor: &Link,
        nodes: impl IntoIterator<Item = (&'l str, &'l Link)>,
    ) -> Self {
        for (name, link) in nodes {
            self.node(name)
                .insert("port".into(), i64::from(link.port()).into());
        }
        self.set("engine.port", i64::from(monitor.port()))
            .set("server_tls.mode", "disable")
    }

    /// Asks no monitor who is primary.
    pub(crate) fn observed(mut self) -> Self {
        let mut engine = Table::new();
        engine.insert("kind".into(), "observed".into());
        self.config.insert("engine".into(), engine.into());
        self
    }

    /// Adds a listener of another role on a port of its own, which is returned.
    pub(crate) fn also_listening(mut self, role: &str) -> (Self, u16) {
        let port = ports::single();
        let mut listener = Table::new();
        listener.insert("address".into(), loopback(port));
        listener.insert("role".into(), role.into());
        self.config["listener"]
            .as_array_mut()
            .unwrap()
            .push(listener.into());
        (self, port)
    }

    /// Writes its log there.
    #[allow(dead_code, reason = "only one test of its operation does")]
    pub(crate) fn logging_to(mut self, log: File) -> Self {
        self.log = Some(log);
        self
    }

    /// Does not wait until reads are spread over the standbys.
    pub(crate) fn cold(mut self) -> Self {
        self.cold = true;
        self
    }

    fn node(&mut self, name: &str) -> &mut Table {
        let nodes = self.config["node"].as_array_mut().unwrap();
        let node = nodes
            .iter_mut()
            .find(|node| node["name"].as_str() == Some(name))
            .unwrap();
        node.as_table_mut().unwrap()
    }

    /// Writes the configuration and says where.
    pub(crate) fn write(&self) -> PathBuf {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = guardian::folder().join(format!("proxy{number}.toml"));
        std::fs::write(&path, toml::to_string(&self.config).unwrap()).unwrap();
        // It holds passwords.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// Starts it and waits until it serves: the primary is known, and every configured standby serves reads.
    #[track_caller]
    pub(crate) fn start(self) -> Proxy {
        let (cluster, cold) = (self.cluster, self.cold);
        let mut proxy = self.start_without_waiting();
        proxy.wait_until_it_serves(cluster.primary().port, cold);
        proxy
    }

    /// Starts it, whatever comes of it.
    pub(crate) fn start_without_waiting(self) -> Proxy {
        let config = self.write();
        let log = config.with_extension("log");
        let process = Command::new(HALYARD)
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log.unwrap_or_else(|| File::create(&log).unwrap()))
            .spawn()
            .unwrap();
        guardian::guard_proxy(process.id(), &config);
        let port_of = |section: &Toml| -> u16 {
            section["address"]
                .as_str()
                .unwrap()
                .rsplit_once(':')
                .unwrap()
                .1
                .parse()
                .unwrap()
        };
        Proxy {
            address: self.cluster.app(port_of(&self.config["listener"][0])),
            readonly: self.cluster.readonly(port_of(&self.config["listener"][0])),
            http: port_of(&self.config["http"]),
            process,
            log,
            config,
        }
    }
}

fn loopback(port: u16) -> Toml {
    format!("127.0.0.1:{port}").into()
}

/// A running proxy. It ends with this value.
pub(crate) struct Proxy {
    /// The application's user on it.
    pub(crate) address: Address,
    /// The user that may only read.
    pub(crate) readonly: Address,
    http: u16,
    process: Child,
    log: PathBuf,
    config: PathBuf,
}

impl Proxy {
    #[track_caller]
    fn wait_until_it_serves(&mut self, primary: u16, cold: bool) {
        until_within(PATIENCE, "the proxy to see its nodes", || {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("the proxy ended with {status}:\n{}", self.log());
            }
            let (_, body) = get(self.http, "/status")?;
            let status: Value = serde_json::from_str(&body).ok()?;
            let nodes = status["nodes"].as_array()?;
            let primaries = nodes.iter().filter(|node| node["role"] == "primary").count();
            let readers = nodes.iter().filter(|node| node["serves_reads"] == true).count();
            (primaries == 1 && (cold || readers + primaries == nodes.len())).then_some(())
        });
        if !cold && self.status()["nodes"].as_array().unwrap().len() > 1 {
            self.warm_up(&self.address, primary);
            self.warm_up(&self.readonly, primary);
        }
    }

    /// Before the function catalogue of a database is read, all functions count as writing.
    #[track_caller]
    fn warm_up(&self, address: &Address, primary: u16) {
        let mut client = address.connect();
        until("reads to reach a standby", || client.server_port() != primary);
        client.leave();
    }

    /// A client of the application's user.
    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        self.address.connect()
    }

    /// The application's user on another of its ports.
    pub(crate) fn on_port(&self, port: u16) -> Address {
        Address {
            port,
            ..self.address.clone()
        }
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where it answers HTTP.
    pub(crate) fn http_port(&self) -> u16 {
        self.http
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// What `/status` says.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let (status, body) = get(self.http, "/status").unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// All series of `/metrics` with their values.
    #[track_caller]
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, body) = get(self.http, "/metrics").unwrap();
        assert_eq!(status, 200, "{body}");
        body.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
            .collect()
    }

    /// One series of `/metrics`.
    #[track_caller]
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let metrics = self.metrics();
        *metrics
            .get(series)
            .unwrap_or_else(|| panic!("there is no {series} in {:?}", metrics.keys()))
    }

    /// How many clients are in a state, as `/status` names it: `idle`, `active`, `waiting`, `held` …
    #[track_caller]
    pub(crate) fn clients(&self, state: &str) -> u64 {
        self.status()["clients"][state].as_u64().unwrap()
    }

    /// How many clients there are.
    #[track_caller]
    pub(crate) fn clients_of_any_state(&self) -> u64 {
        let status = self.status();
        let states = status["clients"].as_object().unwrap();
        let counted = states
            .iter()
            .filter(|(name, _)| !["held_bytes", "connections_max"].contains(&name.as_str()));
        counted.map(|(_, count)| count.as_u64().unwrap()).sum()
    }

    /// Waits until the proxy sees a node in a role: `primary`, `standby` or `unknown`.
    #[track_caller]
    pub(crate) fn until_role(&self, node: &str, role: &str) {
        until_within(super::LONG_PATIENCE, &format!("{node} to be {role}"), || {
            let status = self.status();
            let nodes = status["nodes"].as_array().unwrap();
            nodes
                .iter()
                .any(|seen| seen["name"] == node && seen["role"] == role)
                .then_some(())
        });
    }

    /// Sends it SIGTERM: it drains.
    pub(crate) fn terminate(&self) {
        let kill = Command::new("/bin/sh")
            .args(["-c", &format!("kill {}", self.process.id())])
            .status()
            .unwrap();
        assert!(kill.success());
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let process = &mut self.process;
        until_within(PATIENCE, "the proxy to end", || process.try_wait().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("the proxy's log ends with:");
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}
