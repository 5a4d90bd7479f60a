//! The engine's nodes that cannot follow the primary any more, and that the engine itself does not rewind.
//!
//! pg_auto_failover rewinds a primary that was demoted. It does not rewind a node that took part in the election
//! (`report_lsn`) and had more than the one elected: a standby that was ahead, or a primary that had come back in time to
//! report its position, and that has by stopping for it written a checkpoint which nobody else has. The monitor has
//! such a node follow the new primary; its server refuses ("requested timeline 8 is not a child of this server's
//! history"), and its keeper starts it again and again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::engine::{Engine, EngineState};
use crate::error::{ClusterError, Result};
use crate::faults;
use crate::layout::{DATABASE, HOST, Service};
use crate::process;
use crate::record::Record;
use crate::server_config::Durability;
use crate::site::Site;
use crate::status::{self, NodeStatus};
use crate::timeline::{History, position};

/// pg_rewind: it reads the WAL since the histories parted, and copies what differs.
const REWIND_LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at who is stuck.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// What a keeper has reported longer ago than this tells nothing of now.
const REPORT_AGE_MAX: Duration = Duration::from_secs(10);
/// pg_controldata.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);
/// The role that keepers rewind with; pg_auto_failover makes it a superuser.
const ROLE: &str = "pgautofailover_replicator";
/// Of pg_auto_failover's configuration: where the standby streams from. It is the node's own, and is not in the primary.
const STANDBY_CONF: &str = "postgresql-auto-failover-standby.conf";

/// Does a work that waits for the cluster to be whole, and meanwhile rewinds those nodes that have what the primary never
/// had and that the engine only starts again and again: each once, and `say`s which. Of `only` that one, if it is given.
pub(crate) async fn while_rewinding<T>(
    site: &Site,
    record: &Record,
    only: Option<Service>,
    say: impl Fn(String),
    work: impl Future<Output = T>,
) -> T {
    let over = Notify::new();
    let rewinding = async {
        let mut nodes: Vec<Service> = record
            .ports()
            .data_nodes()
            .filter(|service| matches!(service, Service::Node(_)) && only.is_none_or(|only| only == *service))
            .collect();
        while timeout(LOOK_INTERVAL, over.notified()).await.is_err() {
            for (service, primary) in stuck(site, record, &nodes).await {
                if INTERRUPTED.load(Ordering::Relaxed) {
                    break;
                }
                nodes.retain(|node| *node != service);
                UNDER_WAY.store(true, Ordering::Relaxed);
                let done = rewind(site, record, service, primary).await;
                UNDER_WAY.store(false, Ordering::Relaxed);
                say(match done {
                    Ok(true) => format!("{service} had what {primary} never had, and was rewound to it"),
                    Ok(false) => format!("{service} has what {primary} never had, which leads no longer"),
                    Err(error) => {
                        format!("{service} has what {primary} never had, and cannot be rewound: {error}")
                    }
                });
            }
        }
    };
    let working = async {
        let done = work.await;
        over.notify_one();
        done
    };
    // What has begun is done to its end: half rewound, a server is of no use.
    Box::pin(async { tokio::join!(working, rewinding).0 }).await
}

/// Whether a node is being rewound, which must not be cut off.
static UNDER_WAY: AtomicBool = AtomicBool::new(false);

/// Whether this process was asked to end, so that no other node is rewound.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Between two looks at what must not be cut off.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Ends with [`ClusterError::Interrupted`] at Ctrl-C or SIGTERM; the work is dropped where it stands, but for a server that is
/// being rewound.
pub(crate) async fn or_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    use tokio::signal::unix::{SignalKind, signal};
    let on = |kind| {
        signal(kind).map_err(ClusterError::io(
            "handle signals of",
            std::path::Path::new("this process"),
        ))
    };
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let mut hang_up = on(SignalKind::hangup())?;
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    INTERRUPTED.store(true, Ordering::Relaxed);
    while UNDER_WAY.load(Ordering::Relaxed) {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
    Err(ClusterError::Interrupted)
}

/// Whether a node cannot follow the primary any more, and nobody is going to do something about it.
pub(crate) async fn is_anybody_stuck(site: &Site, record: &Record) -> bool {
    let nodes: Vec<Service> = record.ports().data_nodes().collect();
    !stuck(site, record, &nodes).await.is_empty()
}

/// Those of the nodes that run under their keepers, are told to follow the primary, do not, and never can; each with that
/// primary.
async fn stuck(site: &Site, record: &Record, nodes: &[Service]) -> Vec<(Service, Service)> {
    let seen = status::inspect(&site.layout, record).await;
    let follows = |node: &NodeStatus| node.role == "primary" || node.upstream.is_some();
    let lost: Vec<Service> = nodes
        .iter()
        .copied()
        .filter(|service| matches!(service, Service::Node(_)))
        .filter(|service| {
            let name = service.to_string();
            !seen.nodes.iter().any(|node| node.name == name && follows(node))
        })
        .collect();
    let leading = seen.primary.and_then(|name| name.parse().ok());
    let (Some(primary), false) = (leading, lost.is_empty()) else {
        return Vec::new();
    };
    let mut stuck = Vec::new();
    for service in lost {
        // What cannot be found out now is looked at again.
        if is_stuck(site, record, service, primary).await.unwrap_or(false) {
            stuck.push((service, primary));
        }
    }
    stuck
}

async fn is_stuck(site: &Site, record: &Record, service: Service, primary: Service) -> Result<bool> {
    let runs = process::leader(&process::members(&site.layout), service).is_some();
    if !runs || !leads(site, record, primary).await? {
        return Ok(false);
    }
    // In every other state the keeper is about to do something about it: a demoted primary is being rewound.
    let name = service.to_string();
    let told = engine_states(site, record).await?.iter().any(|state| {
        let waits = matches!(state.reported.as_str(), "join_secondary" | "secondary");
        state.name == name && waits && state.goal == "secondary" && state.report_age < REPORT_AGE_MAX
    });
    let (true, Some(history)) = (told, History::of(record, primary).await?) else {
        return Ok(false);
    };
    let mut command = site.command(service, &site.postgresql("pg_controldata"));
    command
        .env("LC_ALL", "C")
        .arg("--pgdata")
        .arg(site.layout.data(service));
    let control = site.output("pg_controldata", command, CONTROL_LIMIT).await?;
    Ok(has_left(&history, &control))
}

/// Whether a server has left the primary's history, by what pg_controldata prints of it. On a later timeline than the
/// primary it has followed another one since: then it is the primary that is of the past.
fn has_left(history: &History, control: &str) -> bool {
    let of_past = places(control).all(|(timeline, _)| timeline <= history.timeline());
    of_past && places(control).any(|(timeline, position)| history.lacks(timeline, position))
}

/// Whether a node is the primary by the engine's word as well. One that was replaced may be writable for moments.
async fn leads(site: &Site, record: &Record, primary: Service) -> Result<bool> {
    let name = primary.to_string();
    Ok(engine_states(site, record).await?.iter().any(|state| {
        let goal = state.goal.as_str();
        state.name == name
            && state.reported == goal
            && matches!(goal, "primary" | "wait_primary" | "join_primary")
            && state.report_age < REPORT_AGE_MAX
    }))
}

async fn engine_states(site: &Site, record: &Record) -> Result<Vec<EngineState>> {
    Engine::new(site, record).states().await
}

/// How far a server has come: the timelines and positions of its last checkpoint and of the end of its recovery, as
/// pg_controldata prints them.
fn places(control: &str) -> impl Iterator<Item = (u64, u64)> {
    const CHECKPOINT: &str = "Latest checkpoint location";
    const PLACES: [(&str, &str); 2] = [
        ("Latest checkpoint's TimeLineID", CHECKPOINT),
        (
            "Min recovery ending loc's timeline",
            "Minimum recovery ending location",
        ),
    ];
    let value = |name: &str| {
        let line = control.lines().find_map(|line| line.strip_prefix(name));
        Some(line?.strip_prefix(':')?.trim())
    };
    PLACES.into_iter().filter_map(move |(timeline, at)| {
        let timeline: u64 = value(timeline)?.parse().ok()?;
        // Of the checkpoint it is where its record begins: the server has more than that.
        let more = u64::from(at == CHECKPOINT);
        // There is no recovery's end where the server was not in recovery.
        Some((timeline, position(value(at)?)? + more)).filter(|_| timeline > 0)
    })
}

/// Takes away from a node what the primary never had, and has its keeper go on. `false` where that primary leads no longer
/// when the node has stopped.
///
/// # Errors
/// Where pg_rewind fails: then the node stays down, since its data may be half rewound.
async fn rewind(site: &Site, record: &Record, service: Service, primary: Service) -> Result<bool> {
    faults::stop(&site.layout, &[service]).await?;
    if status::primary(record).await != Some(primary) || !leads(site, record, primary).await? {
        Engine::new(site, record).start(service)?;
        return Ok(false);
    }
    let data = site.layout.data(service);
    let own = std::fs::read_to_string(data.join(STANDBY_CONF)).ok();
    let source = format!(
        "host={HOST} port={} user={ROLE} dbname={DATABASE} connect_timeout=5",
        record.ports().of(primary)
    );
    let mut command = site.command(service, &site.postgresql("pg_rewind"));
    command
        .arg("--target-pgdata")
        .arg(&data)
        .arg(format!("--source-server={source}"));
    if record.durability == Durability::NoFsync {
        command.arg("--no-sync");
    }
    let rewound = site
        .run(service, &format!("pg_rewind to {primary}"), command, REWIND_LIMIT)
        .await;
    // It leaves the files of a primary: whatever starts this server must find a standby.
    site.owner.write(&data.join("standby.signal"), "")?;
    if let Some(own) = own {
        site.owner.write(&data.join(STANDBY_CONF), &own)?;
    }
    rewound?;
    Engine::new(site, record).start(service)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_server_is_read_from_its_control_file() {
        let control = |recovery| {
            format!(
                "pg_control version number:            1300\n\
                Database cluster state:               shut down in recovery\n\
                Latest checkpoint location:           0/42769AE8\n\
                Latest checkpoint's REDO location:    0/42769AE8\n\
                Latest checkpoint's TimeLineID:       7\n\
                Latest checkpoint's PrevTimeLineID:   6\n{recovery}"
            )
        };
        let seen = |text: &str| places(text).collect::<Vec<_>>();
        let in_recovery = control(
            "Minimum recovery ending location:     1/42769B60\nMin recovery ending loc's timeline:   8\n",
        );
        assert_eq!(seen(&in_recovery), [(7, 0x4276_9AE9), (8, 0x1_4276_9B60)]);
        let not =
            control("Minimum recovery ending location:     0/0\nMin recovery ending loc's timeline:   0\n");
        assert_eq!(seen(&not), [(7, 0x4276_9AE9)]);
        assert_eq!(seen("Latest checkpoint location: 0/1"), []);
    }

    #[test]
    fn a_server_has_left_by_what_it_has_beyond_the_fork_on_a_timeline_of_before() {
        let history = History::new(
            8,
            "6\t0/300\tno recovery target specified\n7\t0/500\tno recovery target specified\n",
        );
        let control = |timeline, at: &str, recovered| {
            format!(
                "Latest checkpoint location: {at}\nLatest checkpoint's TimeLineID: {timeline}\n\
                Minimum recovery ending location: {recovered}\nMin recovery ending loc's timeline: {timeline}\n"
            )
        };
        assert!(!has_left(&history, &control(7, "0/400", "0/500")));
        assert!(has_left(&history, &control(7, "0/400", "0/501")));
        // A checkpoint that begins where the histories part.
        assert!(has_left(&history, &control(7, "0/500", "0/400")));
        assert!(has_left(&history, &control(6, "0/400", "0/400")));
        assert!(!has_left(&history, &control(8, "0/900", "0/900")));
        // The one that it has followed since is the primary, and not this one.
        assert!(!has_left(&history, &control(9, "0/900", "0/900")));
    }
}
