//! Where everything of a cluster is: its services, their ports and their folders. Pure.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Everything in a cluster listens here, and only here.
pub(crate) const HOST: &str = "127.0.0.1";
/// The application's database.
pub(crate) const DATABASE: &str = "appdb";
/// The database of the pg_auto_failover monitor.
pub(crate) const MONITOR_DATABASE: &str = "pg_auto_failover";
/// Nodes that the engine manages. Its quorum of one standby out of two needs exactly these.
pub(crate) const HA_NODES: u8 = 3;
/// Most read-only replicas that one command brings up. Each is a whole PostgreSQL server.
pub(crate) const RO_MAX: u8 = 9;
/// Bytes of a unix socket's path that the kernel takes (`sun_path`, less its terminator).
const SOCKET_PATH_MAX: usize = 107;

/// One server of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Service {
    /// The pg_auto_failover monitor.
    Monitor,
    /// A node that the engine manages and may promote: `node1` to `node3`.
    Node(u8),
    /// A read-only replica beside the engine, never promoted: `ro1` and on.
    Ro(u8),
    /// Halyard itself.
    Proxy,
}

impl Service {
    /// The candidate priority of an HA node: 100, 90, 80. The engine promotes the highest that is up to date.
    pub(crate) fn priority(self) -> Option<u8> {
        match self {
            Service::Node(number) => Some(110 - 10 * number),
            Service::Monitor | Service::Ro(_) | Service::Proxy => None,
        }
    }

    /// Whether pg_autoctl supervises this server.
    pub(crate) fn has_keeper(self) -> bool {
        matches!(self, Service::Monitor | Service::Node(_))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Service::Monitor => f.write_str("monitor"),
            Service::Node(number) => write!(f, "node{number}"),
            Service::Ro(number) => write!(f, "ro{number}"),
            Service::Proxy => f.write_str("proxy"),
        }
    }
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Service, String> {
        let numbered = |prefix: &str, max: u8| -> Option<u8> {
            let number = text.strip_prefix(prefix)?.parse().ok()?;
            (1..=max).contains(&number).then_some(number)
        };
        match text {
            "monitor" => Ok(Service::Monitor),
            "proxy" => Ok(Service::Proxy),
            _ => numbered("node", HA_NODES)
                .map(Service::Node)
                .or_else(|| numbered("ro", RO_MAX).map(Service::Ro))
                .ok_or_else(|| {
                    format!("{text:?} is no server of a cluster: expected monitor, node1-3, ro1-9, proxy or primary")
                }),
        }
    }
}

/// Which server listens on which port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    monitor: u16,
    node1: u16,
    ro1: u16,
    ro_count: u8,
    proxy: u16,
    /// Where the proxy answers HTTP: metrics, health checks, the status page.
    pub(crate) http: u16,
}

impl Ports {
    /// The well-known ports: monitor 5431, nodes 5432-5434, read-only replicas from 5440, proxy 6432, HTTP 9432.
    pub(crate) fn well_known(ro_count: u8) -> Ports {
        Ports {
            monitor: 5431,
            node1: 5432,
            ro1: 5440,
            ro_count,
            proxy: 6432,
            http: 9432,
        }
    }

    /// Consecutive ports from `base` upwards: monitor, node1-3, the read-only replicas, proxy, HTTP.
    /// `None` when they would not fit below 65536, or `base` is 0.
    pub(crate) fn from_base(base: u16, ro_count: u8) -> Option<Ports> {
        let node1 = base.checked_add(1)?;
        let ro1 = node1.checked_add(u16::from(HA_NODES))?;
        let proxy = ro1.checked_add(u16::from(ro_count))?;
        let http = proxy.checked_add(1)?;
        (base > 0).then_some(Ports {
            monitor: base,
            node1,
            ro1,
            ro_count,
            proxy,
            http,
        })
    }

    /// The port of a service.
    pub(crate) fn of(&self, service: Service) -> u16 {
        match service {
            Service::Monitor => self.monitor,
            Service::Node(number) => self.node1 + u16::from(number) - 1,
            Service::Ro(number) => self.ro1 + u16::from(number) - 1,
            Service::Proxy => self.proxy,
        }
    }

    /// How many read-only replicas the plan has.
    pub(crate) fn ro_count(&self) -> u8 {
        self.ro_count
    }

    /// The engine's nodes and the read-only replicas: everything that holds the application's data.
    pub(crate) fn data_nodes(&self) -> impl Iterator<Item = Service> + use<> {
        (1..=HA_NODES)
            .map(Service::Node)
            .chain((1..=self.ro_count).map(Service::Ro))
    }

    /// All PostgreSQL servers, the monitor first.
    pub(crate) fn servers(&self) -> impl Iterator<Item = Service> + use<> {
        std::iter::once(Service::Monitor).chain(self.data_nodes())
    }

    /// Rebuilds the plan from what `cluster.json` records.
    pub(crate) fn recorded(monitor: u16, nodes: &[(Service, u16)], proxy: u16, http: u16) -> Option<Ports> {
        let port_of = |wanted| {
            nodes
                .iter()
                .find(|(service, _)| *service == wanted)
                .map(|(_, port)| *port)
        };
        let ro_count = nodes
            .iter()
            .filter(|(service, _)| matches!(service, Service::Ro(_)))
            .count();
        let ports = Ports {
            monitor,
            node1: port_of(Service::Node(1))?,
            ro1: port_of(Service::Ro(1)).unwrap_or(0),
            ro_count: u8::try_from(ro_count).ok().filter(|count| *count <= RO_MAX)?,
            proxy,
            http,
        };
        let fits = ports
            .data_nodes()
            .all(|service| port_of(service) == Some(ports.of(service)));
        fits.then_some(ports)
    }
}

/// The folder of one cluster, and the paths in it.
///
/// ```text
/// DIR/cluster.json  halyard.toml  pgpass     for people and the proxy (0600)
/// DIR/etc/          pg_hba.conf, pg_ident.conf, pgpass of the servers
/// DIR/run/          unix sockets
/// DIR/log/          one log a server, one a keeper, the proxy's
/// DIR/node1/data    PGDATA; pg_basebackup and pg_rewind overwrite what is in it, so
/// DIR/node1/node.conf   what is this node's own stands beside it
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout under `dir`, which must be absolute and free of symbolic links, since processes are told
    /// apart by it.
    pub(crate) fn new(dir: PathBuf) -> Layout {
        Layout { dir }
    }

    /// The cluster's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a running cluster is, for programs: see [`crate::record`].
    pub(crate) fn record(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    /// Present from the first change until the cluster is whole: whatever is found beside it is half made.
    pub(crate) fn incomplete(&self) -> PathBuf {
        self.dir.join(".incomplete")
    }

    /// Locked by the command that is at work on the cluster.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join(".lock")
    }

    /// The proxy's configuration.
    pub(crate) fn proxy_config(&self) -> PathBuf {
        self.dir.join("halyard.toml")
    }

    /// Passwords for people's own psql (`PGPASSFILE`).
    pub(crate) fn pgpass(&self) -> PathBuf {
        self.dir.join("pgpass")
    }

    /// A copy of the program for the proxy, made when the server user cannot reach the original.
    pub(crate) fn program_copy(&self) -> PathBuf {
        self.dir.join("bin").join("halyard")
    }

    /// Configuration shared by all servers.
    pub(crate) fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// Passwords the servers use among themselves.
    pub(crate) fn server_pgpass(&self) -> PathBuf {
        self.etc().join("pgpass")
    }

    /// Unix sockets.
    pub(crate) fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Where the proxy takes orders to hold transactions.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.run().join("halyard.control")
    }

    /// Where Halyard remembers the timeline.
    pub(crate) fn proxy_state(&self) -> PathBuf {
        self.run().join("halyard.state")
    }

    /// All logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// A server's own folder.
    pub(crate) fn home(&self, service: Service) -> PathBuf {
        self.dir.join(service.to_string())
    }

    /// A server's PGDATA.
    pub(crate) fn data(&self, service: Service) -> PathBuf {
        self.home(service).join("data")
    }

    /// A server's own settings, outside its PGDATA.
    pub(crate) fn node_conf(&self, service: Service) -> PathBuf {
        self.home(service).join("node.conf")
    }

    /// The log of a PostgreSQL server, or of the proxy.
    pub(crate) fn log(&self, service: Service) -> PathBuf {
        match service {
            Service::Proxy => self.logs().join("halyard.log"),
            _ => self.logs().join(format!("{service}.log")),
        }
    }

    /// What a service prints: pg_autoctl's log, and PostgreSQL's until it opens its own.
    pub(crate) fn output(&self, service: Service) -> PathBuf {
        match service {
            Service::Proxy => self.log(service),
            Service::Ro(_) => self.logs().join(format!("{service}.start.log")),
            Service::Monitor | Service::Node(_) => self.logs().join(format!("{service}.keeper.log")),
        }
    }

    /// Every log that can explain a failure of a service.
    pub(crate) fn all_logs(&self, service: Service) -> Vec<PathBuf> {
        let mut logs = vec![self.output(service)];
        if service != Service::Proxy {
            logs.push(self.data(service).join("startup.log"));
            logs.push(self.log(service));
        }
        logs
    }

    /// What `down --purge` removes: what `up` made, by name, and nothing else that somebody put there.
    pub(crate) fn own_entries(&self) -> Vec<PathBuf> {
        let mut entries: Vec<PathBuf> = [
            "cluster.json",
            "halyard.toml",
            "pgpass",
            "bin",
            "etc",
            "run",
            "log",
            ".incomplete",
            ".lock",
        ]
        .iter()
        .map(|name| self.dir.join(name))
        .collect();
        let every = Ports::well_known(RO_MAX);
        entries.extend(
            every
                .servers()
                .chain([Service::Proxy])
                .map(|service| self.home(service)),
        );
        entries
    }

    /// Whether the sockets' paths are short enough for the kernel.
    pub(crate) fn sockets_fit(&self) -> bool {
        self.run().join(".s.PGSQL.65535").as_os_str().len() <= SOCKET_PATH_MAX
    }
}

#[cfg(test)]
mod tests;
