//! pg_auto_failover: the monitor and the nodes it manages, made and run by its own program, pg_autoctl.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::error::Result;
use crate::layout::{DATABASE, HOST, MONITOR_DATABASE, Ports, Service};
use crate::record::{Record, User};
use crate::secrets::EngineSecrets;
use crate::server_config::{self, POSTGRESQL_CONF};
use crate::site::{Site, Started, wait_for};
use crate::sql::{self, Session};

/// initdb, on a slow disk.
const INITDB_LIMIT: Duration = Duration::from_secs(120);
/// One `pg_autoctl create`: a start, or a base backup of an almost empty server and a start.
const CREATE_LIMIT: Duration = Duration::from_secs(180);
/// From start to the first answer; crash recovery is within it.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Until the engine has settled every node after a bring-up. It may have one that has crashed replay its WAL twice, which takes
/// a minute and a half each time where the machine is busy; who gives up meanwhile and begins again has it begin once more.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);

/// Until the primary of before is one again after all nodes were down; the others are started then in any case.
const RESUME_LIMIT: Duration = Duration::from_secs(30);

const PG_AUTOCTL: &str = "/usr/bin/pg_autoctl";

/// The engine of one cluster.
pub(crate) struct Engine<'a> {
    site: &'a Site,
    record: &'a Record,
    ports: Ports,
}

/// One node as the monitor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EngineState {
    /// The node's name.
    pub(crate) name: String,
    /// The state that its keeper last reported.
    pub(crate) reported: String,
    /// The state that the monitor wants it in.
    pub(crate) goal: String,
    /// Whether the monitor's health checks reach it; unknown until the first.
    pub(crate) healthy: Option<bool>,
    /// How long ago its keeper last reported. What a stopped keeper reported stands until then.
    pub(crate) report_age: Duration,
}

impl EngineState {
    /// Whether the node is where it should be, and that is a place to stay in. What its keeper said before
    /// `since` does not count: a restarted one is moved again at its first report.
    pub(crate) fn is_settled_since(&self, since: Instant) -> bool {
        let stays = matches!(self.goal.as_str(), "primary" | "secondary");
        stays && self.reported == self.goal && self.report_age < since.elapsed()
    }
}

impl<'a> Engine<'a> {
    /// The engine that `record` tells of.
    pub(crate) fn new(site: &'a Site, record: &'a Record) -> Engine<'a> {
        Engine {
            site,
            record,
            ports: record.ports(),
        }
    }

    /// Runs initdb for a server that does not start as a copy of another: the monitor and node1. pg_autoctl
    /// takes over a PGDATA that it finds, which is how the cluster gets checksums and no `trust` rule, ever.
    pub(crate) async fn init(&self, service: Service) -> Result<()> {
        let site = self.site;
        let password_file = site.layout.home(service).join("initdb.password");
        site.owner
            .write(&password_file, self.record.users.superuser.password.expose())?;
        let mut command = site.command(service, &site.postgresql("initdb"));
        command
            .args([
                "--username=postgres",
                "--data-checksums",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ])
            .args(["--auth-host=scram-sha-256", "--auth-local=peer"])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("--pgdata")
            .arg(site.layout.data(service));
        if self.record.durability == server_config::Durability::NoFsync {
            command.arg("--no-sync");
        }
        let done = site.run(service, "initdb", command, INITDB_LIMIT).await;
        let _ = std::fs::remove_file(&password_file);
        done?;
        site.owner.write(
            &site.layout.data(service).join("postgresql.conf"),
            POSTGRESQL_CONF,
        )
    }

    /// Makes the monitor out of its initialised PGDATA, and runs it.
    pub(crate) async fn create_monitor(&self, secrets: &EngineSecrets) -> Result<()> {
        let site = self.site;
        let mut create = self.pg_autoctl(Service::Monitor, &["create", "monitor"]);
        create
            .args([
                "--pgport",
                &self.ports.of(Service::Monitor).to_string(),
                "--hostname",
                HOST,
            ])
            .args(["--skip-pg-hba", "--no-ssl"]);
        site.run(
            Service::Monitor,
            "pg_autoctl create monitor",
            create,
            CREATE_LIMIT,
        )
        .await?;
        // Its own default is to listen on every address.
        self.configure(Service::Monitor, "postgresql.listen_addresses", HOST)
            .await?;
        let superuser = &self.record.users.superuser;
        self.run(Service::Monitor).await?;
        let session = Session::open(&self.ports, Service::Monitor, superuser, MONITOR_DATABASE).await?;
        session
            .execute(&sql::monitor_roles(secrets, &self.record.users.monitoring))
            .await?;
        session.execute(sql::ELECTIONS).await
    }

    /// Runs a monitor that exists, which an earlier version may have made.
    pub(crate) async fn run_monitor(&self) -> Result<()> {
        self.run(Service::Monitor).await?;
        let superuser = &self.record.users.superuser;
        let session = Session::open(&self.ports, Service::Monitor, superuser, MONITOR_DATABASE).await?;
        session.execute(sql::ELECTIONS).await
    }

    /// Registers a node with the monitor and runs it. The first becomes the primary of an initialised PGDATA,
    /// the others copy it. The order of the calls is the order of the engine's node ids.
    pub(crate) async fn create_node(&self, service: Service) -> Result<()> {
        let mut create = self.pg_autoctl(service, &["create", "postgres"]);
        let monitor = format!(
            "postgres://autoctl_node@{HOST}:{}/{MONITOR_DATABASE}?sslmode=prefer",
            self.ports.of(Service::Monitor)
        );
        let priority = service
            .priority()
            .expect("only the engine's nodes are created here");
        create
            .args([
                "--name",
                &service.to_string(),
                "--hostname",
                HOST,
                "--listen",
                HOST,
            ])
            .args(["--pgport", &self.ports.of(service).to_string()])
            .args([
                "--username",
                "postgres",
                "--dbname",
                DATABASE,
                "--monitor",
                &monitor,
            ])
            .args([
                "--candidate-priority",
                &priority.to_string(),
                "--replication-quorum",
                "true",
            ])
            .args(["--skip-pg-hba", "--no-ssl"]);
        self.site
            .run(service, "pg_autoctl create postgres", create, CREATE_LIMIT)
            .await?;
        let timeout = self.record.profile.keeper_partition_timeout_s().to_string();
        self.configure(service, "timeout.network_partition_timeout", &timeout)
            .await?;
        self.run(service).await
    }

    /// Makes the roles and gives the database its owner, on the node that was created first.
    pub(crate) async fn create_roles(&self, secrets: &EngineSecrets) -> Result<()> {
        let first = Service::Node(1);
        let superuser = &self.record.users.superuser;
        wait_for("node1: accepting writes", START_LIMIT, async || {
            let primary = primary_state(&self.ports, first, superuser).await;
            primary
                .map(|writable| writable.then_some(()))
                .map_err(crate::site::Waiting::NotYet)
        })
        .await?;
        let session = Session::open(&self.ports, first, superuser, DATABASE).await?;
        session
            .execute(&sql::node_roles(secrets, &self.record.users))
            .await
    }

    /// Starts the keeper of the monitor or a node, and waits until its server answers.
    pub(crate) async fn run(&self, service: Service) -> Result<()> {
        let mut started = self.start(service)?;
        let superuser = &self.record.users.superuser;
        started
            .wait("answering", START_LIMIT, async || {
                let session = Session::open(&self.ports, service, superuser, "postgres").await?;
                session.text("SELECT 1").await
            })
            .await?;
        Ok(())
    }

    /// Starts the keeper of the monitor or a node without waiting for its server, which may have to wait for
    /// other nodes.
    pub(crate) fn start(&self, service: Service) -> Result<Started> {
        self.site.sweep(service, &self.ports);
        self.site.spawn(service, self.pg_autoctl(service, &["run"]))
    }

    /// Waits until one node is the primary, and the others secondaries, each as it should be and by a report
    /// that its keeper made after `since`.
    pub(crate) async fn settle(&self, since: Instant) -> Result<Vec<EngineState>> {
        wait_for(
            "the engine: one primary and the others secondaries",
            SETTLE_LIMIT,
            async || {
                let states = self.states().await.map_err(crate::site::Waiting::NotYet)?;
                let primaries = states.iter().filter(|state| state.goal == "primary").count();
                let whole = states.iter().all(|state| state.is_settled_since(since)) && primaries == 1;
                Ok((whole && states.len() == usize::from(crate::layout::HA_NODES)).then_some(states))
            },
        )
        .await
    }

    /// The node that was the primary when the engine was last at rest, if it was then.
    pub(crate) async fn last_primary(&self) -> Result<Option<Service>> {
        let states = self.states().await?;
        let is_primary = |state: &&EngineState| state.goal == "primary" && state.reported == "primary";
        let mut primaries = states.iter().filter(is_primary);
        let (first, second) = (primaries.next(), primaries.next());
        let moving =
            |state: &EngineState| !matches!(state.goal.as_str(), "primary" | "secondary" | "catchingup");
        Ok(match (first, second) {
            (Some(primary), None) if !states.iter().any(moving) => {
                let mut nodes = (1..=crate::layout::HA_NODES).map(Service::Node);
                nodes.find(|node| node.to_string() == primary.name)
            }
            _ => None,
        })
    }

    /// Waits until a node that was started by itself is seen well by the monitor, or for as long as that may take: whether
    /// it is.
    pub(crate) async fn resumes(&self, node: Service, since: Instant) -> bool {
        let name = node.to_string();
        let seen = wait_for("the primary of before", RESUME_LIMIT, async || {
            let states = self.states().await.map_err(crate::site::Waiting::NotYet)?;
            let well = |state: &EngineState| {
                state.name == name
                    && state.healthy == Some(true)
                    && state.reported == state.goal
                    && state.report_age < since.elapsed()
            };
            Ok(states.iter().any(well).then_some(()))
        });
        seen.await.is_ok()
    }

    /// What the monitor knows of its nodes.
    pub(crate) async fn states(&self) -> Result<Vec<EngineState>> {
        states(&self.ports, &self.record.users.superuser).await
    }

    fn pg_autoctl(&self, service: Service, subcommand: &[&str]) -> Command {
        let mut command = self.site.command(service, Path::new(PG_AUTOCTL));
        command
            .args(subcommand)
            .arg("--pgdata")
            .arg(self.site.layout.data(service));
        if subcommand[0] == "create" {
            command.arg("--pgctl").arg(self.site.postgresql("pg_ctl"));
        }
        command
    }

    async fn configure(&self, service: Service, setting: &str, value: &str) -> Result<()> {
        let mut command = self.pg_autoctl(service, &["config", "set"]);
        command.args([setting, value]);
        self.site
            .run(service, "pg_autoctl config set", command, START_LIMIT)
            .await
    }
}

/// What the monitor knows of its nodes, by name.
pub(crate) async fn states(ports: &Ports, superuser: &User) -> Result<Vec<EngineState>> {
    let session = Session::open(ports, Service::Monitor, superuser, MONITOR_DATABASE).await?;
    let rows = session
        .rows(
            "SELECT nodename, reportedstate::text, goalstate::text, health,
                extract(epoch FROM clock_timestamp() - reporttime)::float8
            FROM pgautofailover.node ORDER BY nodename",
        )
        .await?;
    let state = |row: &tokio_postgres::Row| EngineState {
        name: row.get(0),
        reported: row.get(1),
        goal: row.get(2),
        healthy: match row.get::<_, i32>(3) {
            1 => Some(true),
            0 => Some(false),
            _ => None,
        },
        report_age: Duration::try_from_secs_f64(row.get(4)).unwrap_or_default(),
    };
    Ok(rows.iter().map(state).collect())
}

/// Whether a node takes writes: not in recovery, and not held read-only by the engine as a new primary is until
/// the old one has surely stopped.
pub(crate) async fn primary_state(ports: &Ports, service: Service, superuser: &User) -> Result<bool> {
    let session = Session::open(ports, service, superuser, DATABASE).await?;
    let answer = session
        .text("SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool")
        .await?;
    Ok(answer.as_deref() == Some("f"))
}
