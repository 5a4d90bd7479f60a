//! `tend`: the process beside each read-only replica that keeps it out of the engine's way, and that has it copied
//! anew when it cannot follow any more.
//!
//! **Why.** A server that shuts down waits for its walsenders, and a walsender ends only when its standby has
//! confirmed exactly what was sent (`WalSndDone` in walsender.c). A replica that is *ahead* of its upstream confirms
//! more than that and answers every question at once: both are busy for ever, and the server does not stop. That
//! is how a failover got stuck: the engine told a backup that was behind to fetch what it lacked from the other
//! one (`fast_forward`), which begins with stopping it, and replicas that had streamed from the other one before
//! had just come to it. So whoever tends a replica keeps a connection to its upstream. The server ends that
//! first when it shuts down (57P01), and says 57P03 from then on: the replica's walreceiver is ended, the next one
//! goes elsewhere, and the server can stop.
//!
//! **Further.** A replica whose upstream was promoted streams from a primary: when that dies, the replica may be
//! ahead of the next one for good. It is moved to a backup as soon as one streams. And a replica whose timeline the primary
//! has left behind *before* what it has replayed is copied anew: the primary's timeline history is the proof
//! ([`timeline`]).

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use tokio::process::Command;

use crate::error::{ClusterError, Result};
use crate::layout::{Layout, Service};
use crate::process::{self, CLUSTER_MARK, Part, SERVICE_MARK};
use crate::record::Record;
use crate::say::errln;
use crate::sql::Session;
use crate::timeline;

/// Between two looks at the replica. The end of the upstream's connection is noticed at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// One look; the upstream may be frozen.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How long a replica streams from a primary that has a streaming backup before it is moved there.
const PRIMARY_PATIENCE: Duration = Duration::from_secs(5);
/// How long a replica is not known to follow the primary before it is copied anew. It goes over to another upstream
/// within a second.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions whether it can follow, which go to every node.
const PROOF_INTERVAL: Duration = Duration::from_secs(5);
/// Between two attempts to have it copied anew.
const REBUILD_INTERVAL: Duration = Duration::from_secs(60);
/// Looks in a row that a replica is seen to stream before it is asked whether it follows.
const STEADY_LOOKS: u32 = 4;

/// What the replica receives, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Receiver {
    pid: u32,
    upstream: Service,
}

/// The replica's upstream, with a connection that is there to be ended.
struct Upstream {
    service: Service,
    session: Session,
    /// Since when it is a primary with a backup that streams.
    replaceable_since: Option<Instant>,
}

/// One replica that is tended.
struct Tended {
    layout: Layout,
    record: Record,
    service: Service,
    /// Its own server's connection.
    own: Option<Session>,
    upstream: Option<Upstream>,
    doubt: Doubt,
    /// When it was last tried to copy it anew.
    rebuilt: Option<Instant>,
}

/// Whether a replica follows the primary. That it streams is no proof: one that cannot follow is let in by its upstream
/// again and again, up to the end of the old timeline, and on a busy machine, with most of a WAL file to send, it is seen
/// to stream at most looks. So who was once seen not to stream is in doubt until the primary's history has cleared it.
#[derive(Debug, Default)]
struct Doubt {
    /// Since when it is not known to follow.
    since: Option<Instant>,
    /// Looks in a row that have seen it stream.
    steady: u32,
    /// When it was last asked whether it is lost.
    asked: Option<Instant>,
}

impl Doubt {
    /// Takes note of one look, and says whether it has to be asked now if the replica is lost.
    fn look(&mut self, streams: bool, now: Instant) -> bool {
        if streams {
            self.steady += 1;
        } else {
            self.steady = 0;
            self.since.get_or_insert(now);
        }
        let Some(since) = self.since else { return false };
        let due = self.steady >= STEADY_LOOKS || now - since > FOLLOW_PATIENCE;
        if !due || self.asked.is_some_and(|at| now - at < PROOF_INTERVAL) {
            return false;
        }
        self.asked = Some(now);
        true
    }

    /// Takes note of a look that has seen nothing. A server that `runs` and does not answer in time is as lost as before.
    fn missed(&mut self, runs: bool) {
        if runs {
            self.steady = 0;
        } else {
            *self = Self::default();
        }
    }

    /// Takes note of the answer, `None` where nobody can say, and says whether it has to be copied anew.
    fn heard(&mut self, lost: Option<bool>, now: Instant) -> bool {
        if lost == Some(false) && self.steady >= STEADY_LOOKS {
            self.since = None;
        }
        lost == Some(true) && self.since.is_some_and(|since| now - since > FOLLOW_PATIENCE)
    }
}

/// Tends a replica until its server has ended. There is one for each replica: a second one ends at once.
pub(crate) async fn run(layout: Layout, record: Record, service: Service) -> Result<()> {
    let path = layout.home(service).join("tend.lock");
    let lock = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(ClusterError::io("open", &path))?;
    if lock.try_lock().is_err() {
        return Ok(());
    }
    say(format_args!("tending {service}"));
    let mut tended = Tended {
        layout,
        record,
        service,
        own: None,
        upstream: None,
        doubt: Doubt::default(),
        rebuilt: None,
    };
    while tended.look().await {
        let ended = async {
            match &tended.upstream {
                Some(upstream) => upstream.session.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
    say(format_args!("{service} has ended"));
    Ok(())
}

/// One line of the log, in seconds since 1970: a person compares it with the servers' logs by their `%n`.
fn say(what: impl std::fmt::Display) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    errln!("{:.3} {what}", now.as_secs_f64());
}

impl Tended {
    /// One round. `false` when the replica's server has ended.
    async fn look(&mut self) -> bool {
        match self.receiver().await {
            Ok(receiver) => {
                let asks = self.doubt.look(receiver.is_some(), Instant::now());
                match receiver {
                    Some(receiver) => {
                        if let Some(why) = self.look_at_upstream(receiver.upstream).await {
                            say(format_args!("leaving {}: {why}", receiver.upstream));
                            self.upstream = None;
                            end_receiver(&self.layout, self.service, receiver.pid);
                        }
                    }
                    None => self.upstream = None,
                }
                if asks {
                    self.rebuild_if_lost().await;
                }
            }
            Err(_) => {
                self.own = None;
                let members = process::members_of(&self.layout, self.service);
                let runs = members.iter().any(|member| member.part == Part::Postmaster);
                self.doubt.missed(runs);
                return runs;
            }
        }
        true
    }

    async fn open(&self, service: Service) -> Result<Session> {
        let superuser = &self.record.users.superuser;
        Ok(
            Session::open_within(ASK_LIMIT, &self.record.ports(), service, superuser, "postgres")
                .await?
                .with_timeout(ASK_LIMIT),
        )
    }

    /// What the replica receives now.
    async fn receiver(&mut self) -> Result<Option<Receiver>> {
        if self.own.as_ref().is_none_or(Session::is_closed) {
            self.own = Some(self.open(self.service).await?);
        }
        let own = self.own.as_ref().expect("it was opened above");
        let rows = own
            .rows("SELECT pid, sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'")
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (pid, port): (i32, Option<i32>) = (row.get(0), row.get(1));
        let ports = self.record.ports();
        let upstream = ports
            .data_nodes()
            .find(|node| Some(i32::from(ports.of(*node))) == port);
        Ok(upstream.and_then(|upstream| {
            Some(Receiver {
                pid: u32::try_from(pid).ok()?,
                upstream,
            })
        }))
    }

    /// Why the replica should leave its upstream, if it should.
    async fn look_at_upstream(&mut self, service: Service) -> Option<&'static str> {
        if self
            .upstream
            .as_ref()
            .is_none_or(|known| known.service != service || known.session.is_closed())
        {
            self.upstream = None;
            match self.open(service).await {
                Ok(session) => {
                    self.upstream = Some(Upstream {
                        service,
                        session,
                        replaceable_since: None,
                    });
                }
                Err(error) if error.is_not_ready() => return Some("it shuts down"),
                // Nobody there: the walreceiver notices that itself.
                Err(_) => return None,
            }
        }
        let upstream = self.upstream.as_mut()?;
        let replaceable = upstream
            .session
            .text(
                "SELECT NOT pg_is_in_recovery() AND EXISTS (SELECT FROM pg_stat_replication
                WHERE state = 'streaming' AND application_name LIKE 'pgautofailover_standby_%')",
            )
            .await;
        match replaceable.ok().flatten().as_deref() {
            Some("t") => {
                let since = *upstream.replaceable_since.get_or_insert_with(Instant::now);
                (since.elapsed() > PRIMARY_PATIENCE).then_some("it is the primary, and a backup streams")
            }
            _ => {
                upstream.replaceable_since = None;
                None
            }
        }
    }

    /// Has the replica copied anew if it is proved that it cannot follow the primary, and has been for a while.
    async fn rebuild_if_lost(&mut self) {
        let Some(own) = &self.own else { return };
        let ended = async {
            match &self.upstream {
                Some(upstream) => upstream.session.ended().await,
                None => std::future::pending().await,
            }
        };
        let lost = tokio::select! {
            // It has to be left at once, see above.
            () = ended => return,
            lost = timeline::is_lost(&self.record, own) => lost,
        };
        let lost = match lost {
            Ok(lost) => lost,
            Err(error) => {
                say(format_args!("nobody can say whether it follows: {error}"));
                None
            }
        };
        let now = Instant::now();
        if !self.doubt.heard(lost, now) || self.rebuilt.is_some_and(|at| now - at < REBUILD_INTERVAL) {
            return;
        }
        self.rebuilt = Some(now);
        say("it cannot follow the primary's timeline: copying it anew");
        match rebuild(&self.layout, self.service).await {
            // It ends this process as well, with the rest of the replica.
            Ok(()) => say("copied anew"),
            Err(error) => say(format_args!("not copied: {error}")),
        }
    }
}

/// Ends the replica's walreceiver. pg_terminate_backend() knows backends only.
fn end_receiver(layout: &Layout, service: Service, pid: u32) {
    let members = process::members_of(layout, service);
    if let Some(receiver) = members.iter().find(|member| member.pid == pid) {
        receiver.signal(Signal::TERM);
    }
}

/// Runs `halyard cluster start` for the replica, which finds that it does not stream and copies it anew. It is no
/// member of the service, since it ends all of these, this process too.
async fn rebuild(layout: &Layout, service: Service) -> Result<()> {
    let own = std::env::current_exe().map_err(ClusterError::io("find", Path::new("this program")))?;
    let status = Command::new("/usr/bin/setsid")
        .arg(own)
        .args(["cluster", "start", &service.to_string(), "--dir"])
        .arg(layout.dir())
        .env_remove(CLUSTER_MARK)
        .env_remove(SERVICE_MARK)
        .stdin(Stdio::null())
        .status()
        .await
        .map_err(ClusterError::io("start", Path::new("halyard cluster start")))?;
    match status.success() {
        true => Ok(()),
        false => Err(ClusterError::Refused(format!(
            "`halyard cluster start {service}` failed"
        ))),
    }
}

#[cfg(test)]
mod tests;
