//! `up`: a whole cluster, or what is missing of one.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::error::{ClusterError, Result};
use crate::faults;
use crate::layout::{HA_NODES, Layout, Ports, Service};
use crate::owner::Owner;
use crate::preflight;
use crate::process;
use crate::proxy;
use crate::record::Record;
use crate::replica::{Replicas, Return};
use crate::rewind;
use crate::say::errln;
use crate::secrets::{self, EngineSecrets};
use crate::server_config::{self, Durability, Profile};
use crate::site::{Programs, Site, Waiting, wait_for};
use crate::status;

/// What `up` was asked for. What is `None` was left to the default, or to what the cluster already has.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// First port of a consecutive range.
    pub(crate) base_port: Option<u16>,
    /// Number of read-only replicas.
    pub(crate) ro: Option<u8>,
    /// The engine's timing.
    pub(crate) profile: Option<Profile>,
    /// Whether the servers wait for the disk.
    pub(crate) durability: Durability,
    /// Whether Halyard stands in front.
    pub(crate) with_proxy: bool,
}

/// Says what is being done and how long it has taken, on standard error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress(Instant);

impl Progress {
    /// Time starts now.
    pub(crate) fn start() -> Progress {
        Progress(Instant::now())
    }

    /// Prints one line.
    pub(crate) fn say(self, what: impl std::fmt::Display) {
        errln!("{:6.1} s  {what}", self.0.elapsed().as_secs_f32());
    }
}

/// What `up` found and did.
pub(crate) struct Up {
    /// The cluster.
    pub(crate) site: Site,
    /// Its record, as written.
    pub(crate) record: Record,
    /// Whether there was nothing to do.
    pub(crate) was_up: bool,
}

/// Read-only replicas unless told otherwise.
const RO_DEFAULT: u8 = 3;

/// Brings a cluster up in `dir`, from whatever state it is in. When it fails or is interrupted, what this call
/// has started or made is gone again.
pub(crate) async fn up(dir: &Path, wanted: &Wanted, progress: Progress) -> Result<Up> {
    let programs = Programs::find()?;
    let owner = Owner::current()?;
    let layout = preflight::claim_folder(&owner, dir)?;
    let _lock = faults::lock(&owner, &layout).await?;
    let site = Site {
        layout,
        owner,
        programs,
    };
    let half_made = site.layout.incomplete().exists();
    let found = if half_made {
        None
    } else {
        Record::load(&site.layout)?
    };
    if let Some(record) = found {
        return complete(site, record, wanted, progress).await;
    }
    if half_made || !process::members(&site.layout).is_empty() {
        progress.say("removing what an interrupted `up` left half made");
        discard(&site.layout).await;
        site.owner.make_dir(site.layout.dir())?;
    }
    let mut record = plan(&site, wanted).inspect_err(|_| purge(&site.layout))?;
    match rewind::or_interrupted(Box::pin(create(&site, &mut record, progress))).await {
        Ok(()) => Ok(Up {
            site,
            record,
            was_up: false,
        }),
        Err(error) => {
            progress.say("failed; stopping and removing what was made");
            discard(&site.layout).await;
            Err(error)
        }
    }
}

/// Ends every process of a half-made cluster and removes its files, the folder too when nothing else is in it.
async fn discard(layout: &Layout) {
    process::kill(layout, |_| true).await;
    purge(layout);
}

/// Removes the files that `up` makes, and the folder when nothing else is in it.
pub(crate) fn purge(layout: &Layout) {
    for path in layout.own_entries() {
        // Absent is what it should be; what cannot be removed keeps the folder, which is seen.
        let _ = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
    }
    let _ = std::fs::remove_dir(layout.dir());
}

/// What is to be made, checked against this machine.
fn plan(site: &Site, wanted: &Wanted) -> Result<Record> {
    let ro = wanted.ro.unwrap_or(RO_DEFAULT);
    let ports = match wanted.base_port {
        None => Ports::well_known(ro),
        Some(base) => Ports::from_base(base, ro).ok_or_else(|| {
            ClusterError::Refused(format!(
                "--base-port {base} leaves no room for a cluster below port 65536"
            ))
        })?,
    };
    preflight::ports_are_free(&ports, true)?;
    preflight::disk_has_room(site.layout.dir())?;
    let profile = wanted.profile.unwrap_or(Profile::Seed);
    let mut record = Record::new(&site.layout, &ports, profile, wanted.durability)?;
    record.proxy.wanted = wanted.with_proxy;
    Ok(record)
}

async fn create(site: &Site, record: &mut Record, progress: Progress) -> Result<()> {
    progress.say(format_args!(
        "making a cluster in {}: monitor, {HA_NODES} nodes, {} read-only replicas, profile {}",
        site.layout.dir().display(),
        record.ports().ro_count(),
        record.profile,
    ));
    let secrets = EngineSecrets::random()?;
    write_files(site, record, &secrets)?;
    create_engine(site, record, &secrets, progress).await?;
    create_replicas(site, record, progress).await?;
    finish(site, record, progress).await?;
    let mark = site.layout.incomplete();
    std::fs::remove_file(&mark).map_err(ClusterError::io("remove", &mark))
}

fn write_files(site: &Site, record: &Record, engine: &EngineSecrets) -> Result<()> {
    let (layout, owner, ports, users) = (&site.layout, &site.owner, record.ports(), &record.users);
    owner.write(&layout.incomplete(), "")?;
    for folder in [layout.etc(), layout.run(), layout.logs()] {
        owner.make_dir(&folder)?;
    }
    owner.write(&layout.etc().join("pg_hba.conf"), &server_config::pg_hba())?;
    owner.write(
        &layout.etc().join("pg_ident.conf"),
        &server_config::pg_ident(&owner.name),
    )?;
    owner.write(&layout.server_pgpass(), &engine.pgpass(users.replicator.pair()))?;
    let people = [
        users.app.pair(),
        users.readonly.pair(),
        users.superuser.pair(),
        users.monitoring.pair(),
    ];
    owner.write(&layout.pgpass(), &secrets::pgpass(&ports, &people))?;
    for service in ports.servers() {
        site.make_home(service)?;
        let conf =
            server_config::node_conf(layout, service, &ports, record.profile, record.durability, users);
        owner.write(&layout.node_conf(service), &conf)?;
    }
    Ok(())
}

async fn create_engine(
    site: &Site,
    record: &Record,
    secrets: &EngineSecrets,
    progress: Progress,
) -> Result<()> {
    let engine = Engine::new(site, record);
    let ports = record.ports();
    let since = Instant::now();
    tokio::try_join!(engine.init(Service::Monitor), engine.init(Service::Node(1)))?;
    engine.create_monitor(secrets).await?;
    progress.say(format_args!(
        "monitor is up on port {}",
        ports.of(Service::Monitor)
    ));
    for service in (1..=HA_NODES).map(Service::Node) {
        engine.create_node(service).await?;
        let priority = service.priority().unwrap_or_default();
        progress.say(format_args!(
            "{service} is up on port {}, candidate priority {priority}",
            ports.of(service)
        ));
        if service == Service::Node(1) {
            engine.create_roles(secrets).await?;
        }
    }
    engine.settle(since).await?;
    progress.say("the engine has its primary and two synchronous standbys");
    Ok(())
}

async fn create_replicas(site: &Site, record: &Record, progress: Progress) -> Result<()> {
    let ports = record.ports();
    let replicas = Replicas::new(site, record);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for service in ports
        .data_nodes()
        .filter(|service| matches!(service, Service::Ro(_)))
    {
        if first.len() <= second.len() {
            first.push(service);
        } else {
            second.push(service);
        }
    }
    // Two at a time, each from a backup of its own.
    let make = async |batch: Vec<Service>, source| {
        for service in batch {
            replicas.create(service, source).await?;
            progress.say(format_args!(
                "{service} is up on port {}, streaming from the backups",
                ports.of(service)
            ));
        }
        Ok::<(), ClusterError>(())
    };
    tokio::try_join!(make(first, Service::Node(2)), make(second, Service::Node(3)))?;
    Ok(())
}

/// Until every server follows the primary. The engine may still move a node after it has settled: a standby of
/// an old timeline restarts once more.
const WHOLE_LIMIT: Duration = Duration::from_secs(90);

/// Starts the proxy where it is wanted, waits until the cluster is whole, and writes down what runs now.
async fn finish(site: &Site, record: &mut Record, progress: Progress) -> Result<()> {
    if record.proxy.wanted && process::members_of(&site.layout, Service::Proxy).is_empty() {
        let (writer, reader) = proxy::start(site, record).await?;
        progress.say(format_args!(
            "halyard is up on port {}: a write went to {writer}, a read to {reader}",
            record.proxy.port
        ));
    } else {
        // For a proxy started by other means.
        site.owner.write(
            &site.layout.proxy_config(),
            &crate::proxy_config::render(&site.layout, record),
        )?;
    }
    let replicas = Replicas::new(site, record);
    let whole = wait_for(
        "the cluster: every server following the primary",
        WHOLE_LIMIT,
        async || {
            let problems = status::inspect(&site.layout, record).await.problems;
            if problems.is_empty() {
                return Ok(Some(()));
            }
            // Its tender would do that, but has to wait until this command is over.
            replicas.rebuild_lost().await.map_err(Waiting::NotYet)?;
            Err(Waiting::NotYet(ClusterError::Refused(problems.join("; "))))
        },
    );
    rewind::while_rewinding(site, record, None, |text| progress.say(text), whole).await?;
    replicas.leave_primary().await?;
    faults::save(&site.layout, &site.owner, record).await
}

/// Starts what is missing of a cluster that exists. What this call started is stopped again if it fails.
async fn complete(site: Site, mut record: Record, wanted: &Wanted, progress: Progress) -> Result<Up> {
    refuse_another_shape(&record, wanted)?;
    let ports = record.ports();
    let members = process::members(&site.layout);
    let mut missing: Vec<Service> = ports
        .servers()
        .filter(|service| process::leader(&members, *service).is_none())
        .collect();
    if wanted.with_proxy && process::leader(&members, Service::Proxy).is_none() {
        missing.push(Service::Proxy);
    }
    let frozen = members.iter().any(|member| member.frozen);
    let stuck = missing.is_empty() && !frozen && rewind::is_anybody_stuck(&site, &record).await;
    if missing.is_empty() && !frozen && !stuck {
        return Ok(Up {
            site,
            record,
            was_up: true,
        });
    }
    for service in ports.servers().chain([Service::Proxy]) {
        if process::thaw(&site.layout, service) > 0 {
            progress.say(format_args!("{service} was frozen and goes on"));
        }
    }
    record.proxy.wanted |= wanted.with_proxy;
    match rewind::or_interrupted(Box::pin(start_missing(&site, &mut record, &missing, progress))).await {
        Ok(()) => Ok(Up {
            site,
            record,
            was_up: false,
        }),
        Err(error) => {
            progress.say("failed; stopping what was started, the data stays");
            process::kill(&site.layout, |member| missing.contains(&member.service)).await;
            Err(error)
        }
    }
}

async fn start_missing(
    site: &Site,
    record: &mut Record,
    missing: &[Service],
    progress: Progress,
) -> Result<()> {
    let ports = record.ports();
    for service in missing
        .iter()
        .filter(|service| process::members_of(&site.layout, **service).is_empty())
    {
        preflight::port_is_free(ports.of(*service), service.to_string())?;
    }
    let engine = Engine::new(site, record);
    let since = Instant::now();
    // The monitor first: the keepers ask it. The nodes' keepers together: one may have to wait for another.
    if missing.contains(&Service::Monitor) {
        engine.run_monitor().await?;
        progress.say("monitor is up");
    }
    let nodes: Vec<Service> = missing
        .iter()
        .copied()
        .filter(|service| matches!(service, Service::Node(_)))
        .collect();
    let first = match nodes.len() == usize::from(HA_NODES) {
        true => engine.last_primary().await?,
        false => None,
    };
    if let Some(primary) = first {
        // Alone until it is the primary again. The others would report that it is down while it recovers, and the engine
        // would replace it: a failover for nothing, and one that pg_auto_failover does not always find the way out of.
        engine.run(primary).await?;
        if engine.resumes(primary, Instant::now()).await {
            progress.say(format_args!("{primary} is up and the primary, as before"));
        }
    }
    for service in nodes.iter().filter(|service| Some(**service) != first) {
        engine.start(*service)?;
    }
    if !nodes.is_empty() || missing.contains(&Service::Monitor) {
        let settled = engine.settle(since);
        rewind::while_rewinding(site, record, None, |text| progress.say(text), settled).await?;
        progress.say("the engine has its primary and two synchronous standbys");
    }
    let replicas = Replicas::new(site, record);
    for service in missing
        .iter()
        .copied()
        .filter(|service| matches!(service, Service::Ro(_)))
    {
        let how = match replicas.revive(service).await? {
            Return::Resumed => "",
            Return::Rebuilt => ", copied anew since it could not follow any more",
        };
        progress.say(format_args!("{service} is up{how}"));
    }
    finish(site, record, progress).await
}

/// An existing cluster keeps its shape: what was asked for and differs is refused, not ignored.
fn refuse_another_shape(record: &Record, wanted: &Wanted) -> Result<()> {
    let ports = record.ports();
    let refuse = |what: String| {
        Err(ClusterError::Refused(format!(
            "the cluster there has {what}; `down --purge` removes it for a new one"
        )))
    };
    let base = ports.of(Service::Monitor);
    match wanted {
        Wanted { ro: Some(ro), .. } if *ro != ports.ro_count() => {
            refuse(format!("{} read-only replicas", ports.ro_count()))
        }
        Wanted {
            base_port: Some(port),
            ..
        } if *port != base => refuse(format!("its ports from {base} on")),
        Wanted {
            profile: Some(profile),
            ..
        } if *profile != record.profile => refuse(format!("the profile {}", record.profile)),
        _ => Ok(()),
    }
}
