//! `cluster.json`: what a cluster is, for programs (tests, benches, people's scripts) and for later commands.
//!
//! Ports, folders and users stay true as long as the cluster exists. `role` and `pid` are as they were when a
//! command last changed something; `halyard cluster status --json` tells them as they are.

use serde::{Deserialize, Serialize};

use crate::error::{ClusterError, Result};
use crate::layout::{DATABASE, HOST, Layout, MONITOR_DATABASE, Ports, Service};
use crate::owner::Owner;
use crate::process::{self, Member};
use crate::secrets::Secret;
use crate::server_config::{Durability, Profile};

/// The file, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Halyard in front of the cluster.
    pub(crate) proxy: ProxyEntry,
    /// The engine's monitor.
    pub(crate) monitor: MonitorEntry,
    /// The engine's nodes and the read-only replicas.
    pub(crate) nodes: Vec<NodeEntry>,
    /// The application's database.
    pub(crate) database: String,
    /// Roles with their passwords.
    pub(crate) users: Users,
    /// The engine's timing.
    pub(crate) profile: Profile,
    /// Whether the servers wait for the disk.
    pub(crate) durability: Durability,
}

/// The proxy's line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProxyEntry {
    /// Address.
    pub(crate) host: String,
    /// Where clients connect.
    pub(crate) port: u16,
    /// Where metrics and health are.
    pub(crate) http_port: u16,
    /// Whether the cluster is meant to have one: `up --no-proxy` makes one without.
    pub(crate) wanted: bool,
    /// Its process, absent while it does not run.
    pub(crate) pid: Option<u32>,
}

/// The monitor's line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MonitorEntry {
    /// Address.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// Its database.
    pub(crate) database: String,
    /// Its data directory.
    pub(crate) pgdata: String,
    /// Its postmaster, absent while it does not run.
    pub(crate) pid: Option<u32>,
    /// The pg_autoctl process that supervises it.
    pub(crate) keeper_pid: Option<u32>,
}

/// A data node's line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeEntry {
    /// `node1` to `node3`, `ro1` and on.
    pub(crate) name: String,
    /// Address.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// `primary`, `standby` or, while it does not run, `down`.
    pub(crate) role: String,
    /// The engine's candidate priority; absent for read-only replicas, which are never promoted.
    pub(crate) priority: Option<u8>,
    /// Data directory.
    pub(crate) pgdata: String,
    /// Its postmaster, absent while it does not run.
    pub(crate) pid: Option<u32>,
    /// The pg_autoctl process that supervises it; read-only replicas have none.
    pub(crate) keeper_pid: Option<u32>,
}

/// The roles that people and the proxy log in with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Users {
    /// Owns the application's database.
    pub(crate) app: User,
    /// May read everything and write nothing.
    pub(crate) readonly: User,
    /// `postgres`.
    pub(crate) superuser: User,
    /// REPLICATION and LOGIN, nothing else: the read-only replicas stream with it.
    pub(crate) replicator: User,
    /// Halyard's probes, on the nodes and on the monitor.
    pub(crate) monitoring: User,
}

/// A role with its password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    /// The role.
    pub(crate) name: String,
    /// Its password.
    pub(crate) password: Secret,
}

impl User {
    fn random(name: &str) -> Result<User> {
        Ok(User {
            name: name.to_owned(),
            password: Secret::random()?,
        })
    }

    /// Name and password, as the password files take them.
    pub(crate) fn pair(&self) -> (&str, &Secret) {
        (&self.name, &self.password)
    }
}

impl Users {
    /// The cluster's roles with new passwords.
    pub(crate) fn random() -> Result<Users> {
        Ok(Users {
            app: User::random("appuser")?,
            readonly: User::random("readonly")?,
            superuser: User::random("postgres")?,
            replicator: User::random("replicator")?,
            monitoring: User::random("halyard")?,
        })
    }
}

impl Record {
    /// A cluster that is about to be made.
    pub(crate) fn new(
        layout: &Layout,
        ports: &Ports,
        profile: Profile,
        durability: Durability,
    ) -> Result<Record> {
        let path = |service| layout.data(service).to_string_lossy().into_owned();
        let node = |service: Service| NodeEntry {
            name: service.to_string(),
            host: HOST.to_owned(),
            port: ports.of(service),
            role: "down".to_owned(),
            priority: service.priority(),
            pgdata: path(service),
            pid: None,
            keeper_pid: None,
        };
        Ok(Record {
            proxy: ProxyEntry {
                host: HOST.to_owned(),
                port: ports.of(Service::Proxy),
                http_port: ports.http,
                wanted: false,
                pid: None,
            },
            monitor: MonitorEntry {
                host: HOST.to_owned(),
                port: ports.of(Service::Monitor),
                database: MONITOR_DATABASE.to_owned(),
                pgdata: path(Service::Monitor),
                pid: None,
                keeper_pid: None,
            },
            nodes: ports.data_nodes().map(node).collect(),
            database: DATABASE.to_owned(),
            users: Users::random()?,
            profile,
            durability,
        })
    }

    /// Reads the file; `None` when there is no cluster in the folder.
    pub(crate) fn load(layout: &Layout) -> Result<Option<Record>> {
        let path = layout.record();
        match std::fs::read_to_string(&path) {
            Ok(text) => Record::parse(&text)
                .map(Some)
                .map_err(|reason| ClusterError::BadFolder {
                    path: layout.dir().to_path_buf(),
                    reason: format!("its cluster.json cannot be read ({reason})"),
                }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ClusterError::io("read", &path)(error)),
        }
    }

    fn parse(text: &str) -> std::result::Result<Record, String> {
        let record: Record = serde_json::from_str(text).map_err(|error| error.to_string())?;
        record.plan().ok_or("its nodes are not those of a cluster")?;
        Ok(record)
    }

    /// Writes the file.
    pub(crate) fn save(&self, layout: &Layout, owner: &Owner) -> Result<()> {
        owner.write(&layout.record(), &self.to_json())
    }

    /// The file's text.
    pub(crate) fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("strings and numbers always serialise");
        text.push('\n');
        text
    }

    fn plan(&self) -> Option<Ports> {
        let nodes: Option<Vec<(Service, u16)>> = self
            .nodes
            .iter()
            .map(|node| Some((node.name.parse().ok()?, node.port)))
            .collect();
        Ports::recorded(self.monitor.port, &nodes?, self.proxy.port, self.proxy.http_port)
    }

    /// Which server listens on which port.
    pub(crate) fn ports(&self) -> Ports {
        self.plan()
            .expect("a record is only ever made from a plan, and checked when read")
    }

    /// Takes over the pids of the processes that run now.
    pub(crate) fn refresh_pids(&mut self, members: &[Member]) {
        let leader = |service| process::leader(members, service).map(|member| member.pid);
        let postmaster = |service| {
            let is_it =
                |member: &&Member| member.service == service && member.part == process::Part::Postmaster;
            members.iter().find(is_it).map(|member| member.pid)
        };
        self.proxy.pid = leader(Service::Proxy);
        self.monitor.pid = postmaster(Service::Monitor);
        self.monitor.keeper_pid = leader(Service::Monitor);
        for node in &mut self.nodes {
            let Ok(service) = node.name.parse::<Service>() else {
                continue;
            };
            node.pid = postmaster(service);
            node.keeper_pid = leader(service).filter(|_| service.has_keeper());
        }
    }
}

#[cfg(test)]
mod tests;
