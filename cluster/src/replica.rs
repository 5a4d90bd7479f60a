//! The read-only replicas: plain standbys beside the engine that stream from its backups, so that a failover
//! does not stop them, and that nothing ever promotes.

use std::time::Duration;

use rustix::process::Signal;

use crate::error::{ClusterError, Result};
use crate::layout::{HA_NODES, HOST, Ports, Service};
use crate::process;
use crate::record::Record;
use crate::server_config::POSTGRESQL_CONF;
use crate::site::{Site, Started, Waiting, wait_for};
use crate::sql::Session;
use crate::status;
use crate::timeline;

/// A base backup of a cluster of some gigabytes.
const BACKUP_LIMIT: Duration = Duration::from_secs(1800);
/// From start to the first answer; recovery to a consistent point is within it.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Until a started replica streams. It takes about 0.2 s; one that has not by then never will (its WAL is gone
/// or it is on a foreign timeline).
const STREAM_LIMIT: Duration = Duration::from_secs(15);

/// What had to be done to bring a replica back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Return {
    /// It went on from its own data.
    Resumed,
    /// Its data could not follow any more and was copied anew.
    Rebuilt,
}

/// The read-only replicas of one cluster.
pub(crate) struct Replicas<'a> {
    site: &'a Site,
    record: &'a Record,
    ports: Ports,
}

impl<'a> Replicas<'a> {
    /// The replicas that `record` tells of.
    pub(crate) fn new(site: &'a Site, record: &'a Record) -> Replicas<'a> {
        Replicas {
            site,
            record,
            ports: record.ports(),
        }
    }

    /// Copies the cluster from `source` into a new replica and runs it until it streams.
    pub(crate) async fn create(&self, service: Service, source: Service) -> Result<()> {
        self.copy(service, source).await?;
        self.run(service).await?;
        self.wait_streaming(service).await
    }

    /// Starts a replica that is down, or looks after one that runs but does not stream, and copies it anew when
    /// it cannot follow any more.
    pub(crate) async fn revive(&self, service: Service) -> Result<Return> {
        if process::leader(&process::members(&self.site.layout), service).is_none() {
            self.clear(service).await?;
            // A replica that does not even start (a half-made copy, damaged files) is copied anew as well.
            let started = self.run(service).await;
            if started.is_ok() && self.wait_streaming(service).await.is_ok() {
                return Ok(Return::Resumed);
            }
        } else if self.wait_streaming(service).await.is_ok() {
            self.tend(service)?;
            return Ok(Return::Resumed);
        }
        let source = self.source().await?;
        self.clear(service).await?;
        let data = self.site.layout.data(service);
        match std::fs::remove_dir_all(&data) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ClusterError::io("remove", &data)(error));
            }
            _ => {}
        }
        self.create(service, source).await?;
        Ok(Return::Rebuilt)
    }

    /// Copies those replicas anew that have what the primary never had.
    pub(crate) async fn rebuild_lost(&self) -> Result<()> {
        let superuser = &self.record.users.superuser;
        for service in self
            .ports
            .data_nodes()
            .filter(|node| matches!(node, Service::Ro(_)))
        {
            let Ok(own) = Session::open(&self.ports, service, superuser, "postgres").await else {
                continue;
            };
            if timeline::is_lost(self.record, &own).await? == Some(true) {
                self.revive(service).await?;
            }
        }
        Ok(())
    }

    /// Ends whatever is left of a replica.
    async fn clear(&self, service: Service) -> Result<()> {
        match process::kill(&self.site.layout, |member| member.service == service).await {
            0 => Ok(()),
            left => Err(ClusterError::Refused(format!(
                "{service}: {left} processes do not end"
            ))),
        }
    }

    /// Starts the process that tends a replica; it ends at once if there is one already. It belongs to the service:
    /// whoever kills or freezes that has killed or frozen both.
    fn tend(&self, service: Service) -> Result<()> {
        let mut command = self.site.command(service, &self.site.own_program()?);
        command.args(["cluster", "tend", &service.to_string(), "--dir"]);
        command.arg(self.site.layout.dir());
        self.site.spawn(service, command).map(drop)
    }

    /// Moves replicas that stream from the primary over to a backup, where one streams: they may have followed a
    /// backup into its promotion. Their walreceiver is ended; the next one connects by `primary_conninfo`.
    pub(crate) async fn leave_primary(&self) -> Result<()> {
        let seen = status::inspect(&self.site.layout, self.record).await;
        let Some(primary) = &seen.primary else {
            return Ok(());
        };
        let backups = seen
            .nodes
            .iter()
            .filter(|node| node.engine_state.is_some() && node.role == "standby");
        if backups.filter(|node| node.upstream.is_some()).count() == 0 {
            return Ok(());
        }
        for node in seen.nodes.iter().filter(|node| node.engine_state.is_none()) {
            let Ok(service @ Service::Ro(_)) = node.name.parse() else {
                continue;
            };
            if node.upstream.as_ref() == Some(primary) {
                self.reconnect(service).await?;
            }
        }
        Ok(())
    }

    async fn reconnect(&self, service: Service) -> Result<()> {
        let superuser = &self.record.users.superuser;
        let session = Session::open(&self.ports, service, superuser, "postgres").await?;
        let pid = session.text("SELECT pid FROM pg_stat_wal_receiver").await?;
        // pg_terminate_backend() knows backends only.
        let members = process::members_of(&self.site.layout, service);
        let receiver = members.iter().find(|member| Some(member.pid.to_string()) == pid);
        let Some(receiver) = receiver else { return Ok(()) };
        receiver.signal(Signal::TERM);
        wait_for(
            &format!("{service}: streaming from a backup"),
            STREAM_LIMIT,
            async || {
                let next = session
                    .text("SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'")
                    .await;
                let next = next.map_err(Waiting::NotYet)?;
                Ok((next.is_some() && next != pid).then_some(()))
            },
        )
        .await
    }

    /// A node that a copy can be taken from: a standby that streams, else the primary.
    async fn source(&self) -> Result<Service> {
        let mut fallback = None;
        for service in (1..=HA_NODES).rev().map(Service::Node) {
            match self.receiver_status(service).await {
                Ok(Some(_)) => return Ok(service),
                Ok(None) => fallback = Some(service),
                Err(_) => {}
            }
        }
        fallback.ok_or_else(|| {
            ClusterError::Refused("no node answers that a replica could be copied from".into())
        })
    }

    /// `Some` while the server receives WAL, with what it is doing; `None` when it does not.
    async fn receiver_status(&self, service: Service) -> Result<Option<String>> {
        let superuser = &self.record.users.superuser;
        let session = Session::open(&self.ports, service, superuser, "postgres").await?;
        session.text("SELECT status FROM pg_stat_wal_receiver").await
    }

    /// Waits until a replica streams. One that can never follow the primary fails at once: its upstream lets it in
    /// again and again, up to the end of the old timeline, so that it is seen to stream for moments.
    async fn wait_streaming(&self, service: Service) -> Result<()> {
        let superuser = &self.record.users.superuser;
        let own = Session::open(&self.ports, service, superuser, "postgres").await?;
        if timeline::is_lost(self.record, &own).await? == Some(true) {
            return Err(ClusterError::Refused(format!(
                "{service} has what the primary never had"
            )));
        }
        wait_for(&format!("{service}: streaming"), STREAM_LIMIT, async || {
            let status = self.receiver_status(service).await.map_err(Waiting::NotYet)?;
            Ok((status.as_deref() == Some("streaming")).then_some(()))
        })
        .await
    }

    async fn copy(&self, service: Service, source: Service) -> Result<()> {
        let site = self.site;
        let role = &self.record.users.replicator.name;
        let mut command = site.command(service, &site.postgresql("pg_basebackup"));
        let conninfo = format!(
            "host={HOST} port={} user={role} connect_timeout=5",
            self.ports.of(source)
        );
        command
            .args([
                "--dbname",
                &conninfo,
                "--checkpoint=fast",
                "--wal-method=stream",
                "--no-password",
            ])
            .arg("--pgdata")
            .arg(site.layout.data(service));
        if self.record.durability == crate::server_config::Durability::NoFsync {
            command.arg("--no-sync");
        }
        site.run(
            service,
            &format!("pg_basebackup from {source}"),
            command,
            BACKUP_LIMIT,
        )
        .await?;
        let data = site.layout.data(service);
        for engines in [
            "postgresql-auto-failover.conf",
            "postgresql-auto-failover-standby.conf",
        ] {
            // Not there when the source is the primary.
            let _ = std::fs::remove_file(data.join(engines));
        }
        site.owner.write(&data.join("postgresql.conf"), POSTGRESQL_CONF)?;
        site.owner.write(&data.join("postgresql.auto.conf"), "")?;
        site.owner.write(&data.join("standby.signal"), "")
    }

    async fn run(&self, service: Service) -> Result<()> {
        let mut started = self.start(service)?;
        let superuser = &self.record.users.superuser;
        started
            .wait("answering", START_LIMIT, async || {
                let session = Session::open(&self.ports, service, superuser, "postgres").await?;
                session.text("SELECT 1").await
            })
            .await?;
        self.tend(service)
    }

    fn start(&self, service: Service) -> Result<Started> {
        self.site.sweep(service, &self.ports);
        let mut command = self.site.command(service, &self.site.postgresql("postgres"));
        command.arg("-D").arg(self.site.layout.data(service));
        self.site.spawn(service, command)
    }
}
