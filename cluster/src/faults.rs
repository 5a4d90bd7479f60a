//! What is done to a cluster that exists: stopping, killing, freezing, and bringing back.

use std::fs::TryLockError;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::engine::{self, Engine};
use crate::error::{ClusterError, Result};
use crate::layout::{Layout, Service};
use crate::owner::Owner;
use crate::process::{self, Member, Part};
use crate::proxy;
use crate::record::Record;
use crate::replica::{Replicas, Return};
use crate::rewind;
use crate::say::errln;
use crate::site::{Programs, Site, Waiting, wait_for};
use crate::status;

/// How long a command waits for another that works on the same cluster: an `up` on a busy machine.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// A clean stop. A fast shutdown writes a checkpoint, and the proxy may wait for open transactions.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Until a node that was brought back has its place in the cluster again: a failover in progress ends first,
/// then pg_rewind or a new base backup runs.
const REJOIN_LIMIT: Duration = Duration::from_secs(180);
/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// An existing cluster that this command works on alone.
pub(crate) struct Held {
    /// Its place.
    pub(crate) layout: Layout,
    /// Who runs it.
    pub(crate) owner: Owner,
    /// What it is; absent when it is only half made.
    pub(crate) record: Option<Record>,
    _lock: std::fs::File,
}

/// Takes hold of the cluster in `dir`.
pub(crate) async fn hold(dir: &Path) -> Result<Held> {
    let owner = Owner::current()?;
    let layout = crate::preflight::existing_folder(dir)?;
    let lock = lock(&owner, &layout).await?;
    let record = Record::load(&layout)?;
    Ok(Held {
        layout,
        owner,
        record,
        _lock: lock,
    })
}

/// Waits for commands that work on the same cluster. The lock ends with the returned file, or the process.
pub(crate) async fn lock(owner: &Owner, layout: &Layout) -> Result<std::fs::File> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        let file = owner.open_log(&layout.lock())?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(ClusterError::io("lock", &layout.lock())(source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(ClusterError::Busy {
                    path: layout.dir().to_path_buf(),
                    waited: LOCK_WAIT,
                });
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Writes down the roles and pids of this moment.
pub(crate) async fn save(layout: &Layout, owner: &Owner, record: &mut Record) -> Result<()> {
    record.refresh_pids(&process::members(layout));
    let seen = status::inspect(layout, record).await;
    for (node, seen) in record.nodes.iter_mut().zip(seen.nodes) {
        seen.role.clone_into(&mut node.role);
    }
    record.save(layout, owner)
}

impl Held {
    fn record(&self) -> Result<&Record> {
        self.record.as_ref().ok_or_else(|| ClusterError::NoCluster {
            path: self.layout.dir().to_path_buf(),
        })
    }

    /// The cluster's place with its programs, and its record.
    pub(crate) fn site(&self) -> Result<(Site, &Record)> {
        let site = Site {
            layout: self.layout.clone(),
            owner: self.owner.clone(),
            programs: Programs::find()?,
        };
        Ok((site, self.record()?))
    }

    /// The service that a person means; `primary` is whoever is it now.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Service> {
        let record = self.record()?;
        if name == "primary" {
            let found = status::primary(record).await;
            return found.ok_or_else(|| ClusterError::Refused("there is no primary at this moment".into()));
        }
        let service: Service = name.parse().map_err(ClusterError::Refused)?;
        let ports = record.ports();
        let has = ports
            .servers()
            .chain([Service::Proxy])
            .any(|known| known == service);
        has.then_some(service)
            .ok_or_else(|| ClusterError::Refused(format!("this cluster has no {service}")))
    }

    /// Writes down the roles and pids of this moment.
    pub(crate) async fn save(mut self) -> Result<()> {
        match self.record.as_mut() {
            Some(record) => save(&self.layout, &self.owner, record).await,
            None => Ok(()),
        }
    }

    /// Ends a service at once: keeper, server and every child, by SIGKILL. Returns how many processes there were.
    pub(crate) async fn kill(&self, service: Service) -> Result<usize> {
        let count = process::members_of(&self.layout, service).len();
        match process::kill(&self.layout, |member| member.service == service).await {
            0 => Ok(count),
            left => Err(ClusterError::Refused(format!(
                "{service}: {left} processes do not end"
            ))),
        }
    }

    /// Ends services cleanly, all at once. What is still there at the limit is killed; it is returned.
    pub(crate) async fn stop(&self, services: &[Service]) -> Result<Vec<Service>> {
        stop(&self.layout, services).await
    }

    /// Stops a service where it stands (SIGSTOP): connections to it are accepted by the kernel and nothing
    /// answers. Returns how many processes.
    pub(crate) async fn freeze(&self, service: Service) -> Result<usize> {
        if !process::freeze(&self.layout, service).await {
            return Err(ClusterError::Refused(format!(
                "{service}: some processes do not stop"
            )));
        }
        match process::members_of(&self.layout, service).len() {
            0 => Err(ClusterError::Refused(format!("{service} does not run"))),
            count => Ok(count),
        }
    }

    /// Lets a frozen service go on. Returns how many processes.
    pub(crate) fn thaw(&self, service: Service) -> Result<usize> {
        match process::thaw(&self.layout, service) {
            0 => Err(ClusterError::Refused(format!("{service} is not frozen"))),
            count => Ok(count),
        }
    }

    /// Brings a service back and returns, in a sentence, what it is now.
    pub(crate) async fn start(&mut self, service: Service) -> Result<String> {
        let site = Site {
            layout: self.layout.clone(),
            owner: self.owner.clone(),
            programs: Programs::find()?,
        };
        let woken = process::thaw(&self.layout, service);
        let record = self.record.as_mut().ok_or(ClusterError::NoCluster {
            path: site.layout.dir().to_path_buf(),
        })?;
        let members = process::members(&site.layout);
        let runs = process::leader(&members, service).is_some();
        if process::members_of(&site.layout, service).is_empty() {
            crate::preflight::port_is_free(record.ports().of(service), service.to_string())?;
        }
        match service {
            Service::Proxy if runs => {
                proxy::serve_both(record).await?;
                Ok("proxy runs".to_owned())
            }
            Service::Proxy => {
                record.proxy.wanted = true;
                let (writer, reader) = proxy::start(&site, record).await?;
                Ok(format!(
                    "proxy is up: a write went to {writer}, a read to {reader}"
                ))
            }
            Service::Ro(_) => Ok(match Replicas::new(&site, record).revive(service).await? {
                Return::Resumed => format!("{service} streams"),
                Return::Rebuilt => format!("{service} could not follow any more: copied anew, it streams"),
            }),
            Service::Monitor => {
                let engine = Engine::new(&site, record);
                match runs {
                    true => engine.states().await.map(|_| "monitor runs".to_owned()),
                    false => engine.run_monitor().await.map(|()| "monitor is up".to_owned()),
                }
            }
            Service::Node(_) => {
                let since = Instant::now();
                if !runs {
                    Engine::new(&site, record).start(service)?;
                }
                let rejoined = rejoin(&site, record, service, since);
                let say = |text| errln!("{text}");
                let work = rewind::while_rewinding(&site, record, Some(service), say, rejoined);
                let role = rewind::or_interrupted(Box::pin(work)).await?;
                Replicas::new(&site, record).leave_primary().await?;
                let was = if woken > 0 { "was frozen and " } else { "" };
                Ok(format!("{service} {was}is {role}"))
            }
        }
    }
}

/// Ends services cleanly, all at once. What is still there at the limit is killed; it is returned.
pub(crate) async fn stop(layout: &Layout, services: &[Service]) -> Result<Vec<Service>> {
    for service in services {
        process::thaw(layout, *service);
    }
    let ours = |member: &Member| services.contains(&member.service);
    let deadline = Instant::now() + STOP_LIMIT;
    let mut asked: Vec<u32> = Vec::new();
    loop {
        let members = process::members(layout);
        if !members.iter().any(ours) {
            return Ok(Vec::new());
        }
        if Instant::now() >= deadline {
            break;
        }
        for service in services {
            ask_to_end(&members, *service, &mut asked);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let mut stubborn: Vec<Service> = process::members(layout)
        .into_iter()
        .filter(ours)
        .map(|member| member.service)
        .collect();
    stubborn.sort();
    stubborn.dedup();
    match process::kill(layout, ours).await {
        0 => Ok(stubborn),
        left => Err(ClusterError::Refused(format!("{left} processes do not end"))),
    }
}

/// Waits until a node has its place again, as the primary or streaming from it, and its keeper has reported so
/// after `since`. Returns which.
async fn rejoin(site: &Site, record: &Record, service: Service, since: Instant) -> Result<&'static str> {
    let name = service.to_string();
    let what = format!("{service}: primary, or streaming from it");
    wait_for(&what, REJOIN_LIMIT, async || {
        let seen = status::inspect(&site.layout, record).await;
        let node = seen.nodes.into_iter().find(|node| node.name == name);
        let role = node.and_then(|node| match node.role {
            "primary" => Some("the primary"),
            "standby" if node.upstream.is_some() && node.upstream == seen.primary => {
                Some("a standby that streams")
            }
            _ => None,
        });
        // Without a monitor nobody is going to move it.
        let stays = match engine::states(&record.ports(), &record.users.superuser).await {
            Ok(states) => states
                .iter()
                .any(|state| state.name == name && state.is_settled_since(since)),
            Err(_) => true,
        };
        Ok::<_, Waiting>(role.filter(|_| stays))
    })
    .await
}

/// Sends the signal for a clean end to a service's leader, once: keepers stop their server themselves; a
/// postmaster without a keeper gets SIGINT, a fast shutdown.
fn ask_to_end(members: &[Member], service: Service, asked: &mut Vec<u32>) {
    let postmaster = || {
        members
            .iter()
            .find(|member| member.service == service && member.part == Part::Postmaster)
    };
    let Some(member) = process::leader(members, service).or_else(postmaster) else {
        return;
    };
    if asked.contains(&member.pid) {
        return;
    }
    asked.push(member.pid);
    member.signal(if member.part == Part::Postmaster {
        Signal::INT
    } else {
        Signal::TERM
    });
}

/// What `down` did.
pub(crate) struct Down {
    /// How many processes were running.
    pub(crate) processes: usize,
    /// Services that did not end cleanly in time and were killed.
    pub(crate) killed: Vec<Service>,
}

/// Ends everything of a cluster, in whatever state it is. A half-made cluster is removed as well.
pub(crate) async fn down(held: &Held) -> Result<Down> {
    let processes = process::members(&held.layout).len();
    let every: Vec<Service> = crate::layout::Ports::well_known(crate::layout::RO_MAX)
        .servers()
        .collect();
    if held.layout.incomplete().exists() {
        process::kill(&held.layout, |_| true).await;
        crate::up::purge(&held.layout);
        return Ok(Down {
            processes,
            killed: Vec::new(),
        });
    }
    // Clients first, then the authority, so that it does not take the nodes' end for a failure.
    let mut killed = Vec::new();
    let data: Vec<Service> = every
        .iter()
        .copied()
        .filter(|service| *service != Service::Monitor)
        .collect();
    for services in [&[Service::Proxy][..], &[Service::Monitor], &data] {
        killed.extend(held.stop(services).await?);
    }
    Ok(Down { processes, killed })
}

/// Kills what still runs of a cluster whose folder somebody has removed. Returns how many processes.
pub(crate) async fn end_orphans(dir: &Path) -> Result<usize> {
    let path = std::path::absolute(dir).map_err(ClusterError::io("resolve", dir))?;
    let layout = Layout::new(path.canonicalize().unwrap_or(path));
    let count = process::members(&layout).len();
    match process::kill(&layout, |_| true).await {
        0 => Ok(count),
        left => Err(ClusterError::Refused(format!("{left} processes do not end"))),
    }
}
