//! `switchover`: the primary moves to another node on purpose, and nobody who is connected through Halyard sees an error.
//!
//! Halyard holds new transactions that go to the primary and says when the open ones are over
//! (`proxy/src/operate/control.rs`); the target catches up; the engine promotes it; Halyard lets go as soon as it sees
//! that. The hold ends with this process as well, however that ends, so a step that fails leaves everything as it was.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::engine::{self, Engine, EngineState};
use crate::error::{ClusterError, Result};
use crate::layout::{DATABASE, MONITOR_DATABASE, Service};
use crate::process;
use crate::record::Record;
use crate::site::{Site, Waiting, wait_for};
use crate::sql::Session;

/// What is added to the time that open transactions get, for the answer on the way.
const ANSWER_SLACK: Duration = Duration::from_secs(2);
/// Until the target has replayed everything, with no writes coming.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(10);
/// From the engine's order until the target takes writes; it takes about 4 s. Halyard's clients wait no longer than
/// `failover.hold`, one minute.
const PROMOTION_LIMIT: Duration = Duration::from_secs(45);

/// What was done.
#[derive(Debug)]
pub(crate) struct Switched {
    /// The primary of before.
    pub(crate) from: Service,
    /// The primary of now.
    pub(crate) to: Service,
    /// How long transactions were held at most; none without a proxy.
    pub(crate) held: Option<Duration>,
}

/// Makes `to` the primary, or the backup of the highest priority. Open transactions get `wait` to end.
///
/// # Errors
/// A step failed; then nothing is held any more, and unless the engine was told already nothing has changed.
pub(crate) async fn run(
    site: &Site,
    record: &Record,
    to: Option<Service>,
    wait: Duration,
) -> Result<Switched> {
    let engine = Engine::new(site, record);
    let (from, to) = choose(&engine.states().await?, to).map_err(ClusterError::Refused)?;
    let hold = match process::members_of(&site.layout, Service::Proxy).is_empty() {
        true => None,
        false => Some(Hold::begin(&site.layout.control_socket(), wait).await?),
    };
    catch_up(record, from, to).await?;
    promote(record, to).await?;
    let held = hold.map(Hold::end);
    engine.settle(Instant::now()).await?;
    Ok(Switched { from, to, held })
}

/// Who is the primary, and who is to be. The engine has to be at rest: it would do something else first.
fn choose(states: &[EngineState], to: Option<Service>) -> Result<(Service, Service), String> {
    let unsettled = states.iter().find(|state| {
        state.reported != state.goal || !matches!(state.goal.as_str(), "primary" | "secondary")
    });
    if let Some(state) = unsettled {
        return Err(format!(
            "the engine is not at rest: {} is {} and shall be {}",
            state.name, state.reported, state.goal
        ));
    }
    let with_goal = |goal: &str| {
        let of = states.iter().filter(|state| state.goal == goal);
        of.filter_map(|state| state.name.parse::<Service>().ok())
            .collect::<Vec<_>>()
    };
    let (primaries, backups) = (with_goal("primary"), with_goal("secondary"));
    let [from] = primaries[..] else {
        return Err("the engine has no single primary".to_owned());
    };
    let best = backups.iter().copied().max_by_key(|backup| backup.priority());
    match to {
        Some(to) if to == from => Err(format!("{to} is the primary already")),
        Some(to) if !backups.contains(&to) => Err(format!("{to} is no backup of {from}")),
        Some(to) => Ok((from, to)),
        None => best
            .map(|best| (from, best))
            .ok_or_else(|| format!("{from} has no backup that could take its place")),
    }
}

/// Waits until `to` has replayed what `from` has written. Nothing is written meanwhile but by those who do not come
/// through Halyard.
async fn catch_up(record: &Record, from: Service, to: Service) -> Result<()> {
    let (ports, superuser) = (record.ports(), &record.users.superuser);
    let primary = Session::open(&ports, from, superuser, DATABASE).await?;
    let position = primary
        .text("SELECT pg_current_wal_lsn()")
        .await?
        .unwrap_or_default();
    let target = Session::open(&ports, to, superuser, DATABASE).await?;
    wait_for(
        &format!("{to}: everything replayed"),
        CATCH_UP_LIMIT,
        async || {
            let reached = target
                .text(&format!("SELECT pg_last_wal_replay_lsn() >= '{position}'"))
                .await
                .map_err(Waiting::Never)?;
            Ok((reached.as_deref() == Some("t")).then_some(()))
        },
    )
    .await
}

/// Has the engine promote `to`, as `pg_autoctl perform promotion` does, and waits until that takes writes.
async fn promote(record: &Record, to: Service) -> Result<()> {
    let (ports, superuser) = (record.ports(), &record.users.superuser);
    let monitor = Session::open(&ports, Service::Monitor, superuser, MONITOR_DATABASE).await?;
    monitor
        .text(&format!(
            "SELECT pgautofailover.perform_promotion('default', '{to}')"
        ))
        .await?;
    wait_for(&format!("{to}: accepting writes"), PROMOTION_LIMIT, async || {
        let writable = engine::primary_state(&ports, to, superuser).await;
        writable
            .map(|writable| writable.then_some(()))
            .map_err(Waiting::NotYet)
    })
    .await
}

/// Transactions that Halyard holds, until this is dropped.
struct Hold {
    _stream: BufReader<UnixStream>,
    since: Instant,
}

impl Hold {
    /// Has them held, and waits for those that are open.
    async fn begin(socket: &Path, wait: Duration) -> Result<Hold> {
        let broken = |error| ClusterError::io("use", socket)(error);
        let since = Instant::now();
        let mut stream = BufReader::new(UnixStream::connect(socket).await.map_err(broken)?);
        let order = format!("hold primary {}\n", wait.as_millis());
        stream.write_all(order.as_bytes()).await.map_err(broken)?;
        let mut answer = String::new();
        match tokio::time::timeout(wait + ANSWER_SLACK, stream.read_line(&mut answer)).await {
            Ok(Ok(_)) if answer == "held\n" => Ok(Hold {
                _stream: stream,
                since,
            }),
            Ok(Ok(_)) => {
                let reason = answer.trim_end();
                let reason = reason.strip_prefix("refused: ").unwrap_or("the proxy ended");
                Err(ClusterError::Refused(format!("nothing was switched: {reason}")))
            }
            Ok(Err(error)) => Err(broken(error)),
            Err(_) => Err(ClusterError::Refused(
                "nothing was switched: the proxy does not answer".to_owned(),
            )),
        }
    }

    /// Lets them go on, where they do not already. Returns how long the first of them can have waited.
    fn end(self) -> Duration {
        self.since.elapsed()
    }
}

#[cfg(test)]
mod tests;
