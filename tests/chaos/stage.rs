//! The cluster, the proxy before it, and the links between them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::excuses::HOLD;
use crate::options::Options;
use crate::support::message::query;
use crate::support::{Address, Client, Cluster, LONG_PATIENCE, Link, Proxy, commit, memory_kib, open_files};
use crate::witness::Witness;
use crate::{bank, ledger, lists, pgbench, sessions};

/// Connections of one pool: more than there are clients, so that nobody has to stand in line.
const POOL_SIZE: i64 = 64;

/// The timeline that a primary writes on, in hexadecimal digits.
const TIMELINE: &str = "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";

/// See the module. It lasts as long as the process.
pub(crate) struct Stage {
    pub(crate) cluster: &'static Cluster,
    pub(crate) proxy: Proxy,
    /// Between the proxy and each node, by name.
    pub(crate) links: BTreeMap<String, Link>,
    /// Between the proxy and the engine's monitor.
    pub(crate) monitor_link: Link,
    pub(crate) witness: &'static Witness,
    /// What is tested, as it was in the beginning.
    pub(crate) commit: String,
}

/// What the proxy's process has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    pub(crate) memory_kib: u64,
    pub(crate) files: usize,
}

impl Stage {
    pub(crate) fn new(options: &Options, witness: &'static Witness) -> Self {
        let cluster: &'static Cluster = Box::leak(Box::new(Cluster::for_chaos(&options.profile)));
        pgbench::initialise(cluster);
        for tables in [
            ledger::Ledger::TABLE,
            bank::TABLES,
            lists::TABLE,
            sessions::TABLES,
            "CREATE TABLE served (at timestamptz)",
        ] {
            cluster.prepare(tables);
        }
        let links: BTreeMap<String, Link> = cluster
            .nodes()
            .iter()
            .map(|node| (node.name.clone(), Link::to(node.port)))
            .collect();
        let monitor_link = Link::to(cluster.monitor_port());
        let proxy = cluster
            .proxy()
            .through_links(&monitor_link, links.iter().map(|(name, link)| (name.as_str(), link)))
            .set("pool.size", POOL_SIZE)
            // What is held open at the end is what has leaked.
            .set("pool.idle_timeout", "5s")
            .set("failover.hold", format!("{}s", HOLD.as_secs()))
            .set("failover.resolve_commits", options.resolve_commits)
            .set("admin.users", vec![cluster.app(1).user])
            .start();
        Self {
            cluster,
            proxy,
            links,
            monitor_link,
            witness,
            commit: commit(),
        }
    }

    /// Connects to the proxy's console.
    pub(crate) fn console(&self) -> Client {
        let address = Address {
            database: "halyard".to_owned(),
            ..self.proxy.address.clone()
        };
        let console = address.connect();
        console.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
        console
    }

    /// What an audit compares with when its clients have ended. None, and a violation, where nobody can be asked.
    ///
    /// A connection for each of them: one that ends has one audit fail, and the next finds who is the primary then.
    pub(crate) fn primary_to_compare(&self) -> Option<Client> {
        let found = self.reachable_primary();
        if found.is_none() {
            self.witness.violation("there is no primary to compare with");
        }
        found
    }

    /// A connection to whoever is the primary, or would be: no standby, and of the highest timeline. None where nobody is.
    fn reachable_primary(&self) -> Option<Client> {
        let mut reachable: Vec<_> = self
            .cluster
            .nodes()
            .iter()
            .filter_map(|node| {
                let mut client = self.cluster.app(node.port).try_connect(&[]).ok()?;
                client.try_send(&query(TIMELINE)).ok()?;
                // A standby answers with an error.
                let timeline = client.try_answer().ok()?.rows.first()?.first()?.clone()?;
                Some((timeline, client))
            })
            .collect();
        reachable.sort_by(|(one, _), (other, _)| one.cmp(other));
        let (_, client) = reachable.pop()?;
        client.stream().set_read_timeout(Some(LONG_PATIENCE)).ok()?;
        Some(client)
    }

    pub(crate) fn footprint(&self) -> Footprint {
        Footprint {
            memory_kib: memory_kib(self.proxy.pid()),
            files: open_files(self.proxy.pid()),
        }
    }

    /// Whether the proxy knows a primary and uses every standby.
    pub(crate) fn sees_everything(&self) -> bool {
        let status = self.proxy.status();
        let nodes = status["nodes"].as_array().unwrap();
        let primaries = nodes.iter().filter(|node| node["role"] == "primary").count();
        let readers = nodes.iter().filter(|node| node["serves_reads"] == true).count();
        primaries == 1 && primaries + readers == nodes.len()
    }

    /// The nodes as the proxy sees them, in a line.
    pub(crate) fn seen(&self) -> String {
        let status = self.proxy.status();
        let nodes = status["nodes"].as_array().unwrap().iter().map(|node: &Value| {
            let reads = if node["serves_reads"] == true {
                ", serves reads"
            } else {
                ""
            };
            format!("{} {}{reads} {}", node["name"], node["role"], node["reason"])
        });
        nodes.collect::<Vec<_>>().join("; ")
    }

    /// Copies the logs of everybody to where they outlive this run.
    pub(crate) fn keep_logs(&self, folder: &Path) -> PathBuf {
        let copied = Command::new("/bin/sh")
            .args(["-c", r#"mkdir -p "$1" && cp -r "$2/log" "$3" "$1""#, "sh"])
            .arg(folder)
            .arg(self.cluster.dir())
            .arg(self.proxy.config().with_extension("log"))
            .status()
            .unwrap();
        assert!(
            copied.success(),
            "the logs cannot be copied to {}",
            folder.display()
        );
        folder.to_owned()
    }
}
