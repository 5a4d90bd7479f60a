//! One connection per node, outside every pool, asking two prepared statements: the probe, every interval, and between
//! two probes, while a session waits for the standbys to have its write, the position alone.
//!
//! Each node has a task of its own: a frozen one delays nobody. Every wait has a deadline, and a connection that
//! missed one is dropped without a farewell, since a frozen server would not answer that either.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row, Socket, Statement};
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::{Answer, Report};
use crate::config::{Config, NodeConfig};
use crate::lsn::{Lsn, SystemIdentifier, TimelineId, WalLayout};
use crate::monitor::CANDIDATE_INTERVAL;
use crate::node::{Failure, FailureKind, Incarnation, NodeId, Observation, Promotion, Receiver, Wal};
use crate::samples::{Coverage, Fences, SampleNumber};
use crate::signals::Bell;

/// The least time between the starts of two probes of one node, however many signals come.
pub const SIGNAL_SPACING: Duration = Duration::from_millis(20);

/// The most time between two questions for a standby's position while somebody waits for what it has not replayed. One that
/// needs long for it is asked every quarter of the time that it has needed so far, up to this.
pub const SAMPLE_INTERVAL_MAX: Duration = Duration::from_millis(25);

/// What the probe's connection calls itself in `pg_stat_activity`.
pub(crate) const APPLICATION_NAME: &str = "halyard_health";

/// Asked once a connection: a server cannot change it under one.
const IDENTITY_SQL: &str = "SELECT s.system_identifier, i.wal_block_size, i.bytes_per_wal_segment \
     FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_init() i";

/// Asked every round. `OFFSET 0` keeps the recovery state a value computed once, so that a promotion in the
/// middle cannot make two columns disagree; the functions of the other side raise errors and stay behind CASE.
/// `pg_stat_wal_receiver` has no row without a walreceiver, and only its pid for a role without `pg_monitor`.
const PROBE_SQL: &str = "\
SELECT x.in_recovery, \
       pg_catalog.current_setting('in_hot_standby', true) AS in_hot_standby, \
       pg_catalog.current_setting('default_transaction_read_only') AS read_only, \
       CASE WHEN NOT x.in_recovery THEN pg_catalog.pg_current_wal_insert_lsn() END AS insert_lsn, \
       CASE WHEN NOT x.in_recovery THEN pg_catalog.pg_current_wal_flush_lsn() END AS flush_lsn, \
       CASE WHEN NOT x.in_recovery \
            THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END AS walfile, \
       CASE WHEN x.in_recovery THEN pg_catalog.pg_last_wal_receive_lsn() END AS receive_lsn, \
       pg_catalog.pg_last_wal_replay_lsn() AS replay_lsn, \
       (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) * 1000000)::pg_catalog.int8 \
            AS started, \
       CASE WHEN x.in_recovery THEN (SELECT greatest(c.timeline_id, r.min_recovery_end_timeline) \
            FROM pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() r) END \
            AS control_timeline, \
       w.pid IS NOT NULL AS receiver, \
       w.received_tli, \
       pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - w.last_msg_receipt_time) AS silence \
FROM (SELECT pg_catalog.pg_is_in_recovery() AS in_recovery OFFSET 0) x \
LEFT JOIN pg_catalog.pg_stat_wal_receiver w ON true";

/// Asked between two probes: the side of recovery as in the probe, and the position on that side.
const POSITION_SQL: &str = "\
SELECT x.in_recovery, \
       CASE WHEN x.in_recovery THEN pg_catalog.pg_last_wal_replay_lsn() \
            ELSE pg_catalog.pg_current_wal_insert_lsn() END AS position \
FROM (SELECT pg_catalog.pg_is_in_recovery() AS in_recovery OFFSET 0) x";

/// How often a node is asked, as the monitor wants it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cadence {
    /// The time between two probes.
    pub(crate) probes: Duration,
    /// The node that is probed every [`CANDIDATE_INTERVAL`] instead while it answers, if one is.
    pub(crate) candidate: Option<NodeId>,
    /// The least time between two questions for the position, while those are wanted.
    pub(crate) positions: Option<Duration>,
    /// Whose position is sampled.
    pub(crate) primary: Option<NodeId>,
}

/// What every prober shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    /// The number of the last sample begun; see [`crate::samples`].
    pub(crate) begun: Arc<AtomicU64>,
    /// What is waited for, and what was sampled.
    pub(crate) fences: Fences,
    pub(crate) reports: mpsc::Sender<Report>,
    /// How often to ask.
    pub(crate) cadence: watch::Receiver<Cadence>,
}

/// The task of one node.
#[derive(Debug)]
pub(crate) struct Prober<T> {
    pub(crate) node: NodeId,
    pub(crate) place: NodeConfig,
    pub(crate) bells: Arc<[Bell]>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) coverage: Arc<Coverage>,
    pub(crate) tls: T,
}

impl<T> Prober<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    /// Probes until nobody listens to the reports. Cancel safe: dropping it drops the connection.
    pub(crate) async fn run(self) {
        let mut cadence = self.shared.cadence.clone();
        let mut session: Option<Session> = None;
        let mut missing = Missing::default();
        loop {
            let started = Instant::now();
            for evidence in self.bell().take() {
                tracing::debug!(node = %self.place.name, ?evidence, "probing after a signal");
            }
            let number = self.draw();
            let (outcome, looked) = self.look(&mut session).await;
            if !self.report(number, looked, outcome.map(Answer::Probe)).await {
                return;
            }
            loop {
                let apart = if self.coverage.is_spared() {
                    SAMPLE_INTERVAL_MAX
                } else {
                    missing.apart(self.shared.fences.sampled(), self.coverage.covered())
                };
                match self.pause(started, apart, &mut cadence, &mut session).await {
                    Due::Probe => break,
                    Due::Position if self.position_would_tell(*cadence.borrow()) => {}
                    Due::Position => continue,
                    Due::Nothing => return,
                }
                let number = self.draw();
                match self.position(&mut session).await {
                    Ok(Some(position)) => {
                        if !self.report(number, None, Ok(Answer::Position(position))).await {
                            return;
                        }
                    }
                    // It is on the other side of recovery now, or its connection is gone: the probe tells.
                    Ok(None) => break,
                    Err(failure) => {
                        if !self.report(number, None, Err(failure)).await {
                            return;
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Whether the position may tell something new that somebody waits for: the primary's a sample that is wanted, a
    /// standby's that it has replayed the newest sample, or what somebody asked of this one.
    fn position_would_tell(&self, cadence: Cadence) -> bool {
        let sampled = self.shared.fences.sampled();
        if cadence.primary == Some(self.node) {
            sampled < self.shared.fences.wanted()
        } else {
            !self.coverage.is_spared() && (self.coverage.covered() < sampled || self.coverage.is_asked())
        }
    }

    fn draw(&self) -> SampleNumber {
        SampleNumber(self.shared.begun.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// False when nobody listens to the reports.
    async fn report(
        &self,
        number: SampleNumber,
        looked: Option<u64>,
        outcome: Result<Answer, Failure>,
    ) -> bool {
        let report = Report {
            node: self.node,
            number,
            looked,
            outcome,
        };
        self.shared.reports.send(report).await.is_ok()
    }

    fn bell(&self) -> &Bell {
        &self.bells[usize::from(self.node.0)]
    }

    /// Waits for what is to be asked next: the probe after its interval, or sooner by a signal, a faster cadence or the
    /// end of the connection; the position where it is due before that. A standby's is not due before `standby_apart`.
    async fn pause(
        &self,
        started: Instant,
        standby_apart: Duration,
        cadence: &mut watch::Receiver<Cadence>,
        session: &mut Option<Session>,
    ) -> Due {
        let asked = Instant::now();
        loop {
            let Cadence {
                probes,
                candidate,
                positions,
                primary,
            } = *cadence.borrow_and_update();
            // A server that is starting up writes a line to its log for each connection that it refuses.
            let hurries = candidate == Some(self.node) && session.is_some();
            let probe = if hurries {
                started + probes.min(CANDIDATE_INTERVAL)
            } else {
                started + probes
            };
            let position = positions
                .filter(|_| session.is_some())
                .map(|least| match primary {
                    Some(primary) if primary == self.node => asked + least,
                    _ => asked + standby_apart.max(least),
                })
                .filter(|position| *position < probe);
            tokio::select! {
                () = tokio::time::sleep_until(position.unwrap_or(probe).into()) => {
                    return if position.is_some() { Due::Position } else { Due::Probe };
                }
                () = self.bell().rung() => break,
                () = ended(session) => break,
                changed = cadence.changed() => if changed.is_err() { return Due::Nothing },
            }
        }
        tokio::time::sleep_until((started + SIGNAL_SPACING).into()).await;
        Due::Probe
    }

    /// Asks for the position alone. `None` when the node is on the other side of recovery than the last probe said, or
    /// when the connection is lost: a probe is due then.
    async fn position(&self, session: &mut Option<Session>) -> Result<Option<Lsn>, Failure> {
        let Some(open) = session.take() else {
            return Ok(None);
        };
        let at = Instant::now();
        let answer = timeout(
            self.shared.config.timeout,
            open.client.query_one(&open.position, &[]),
        )
        .await
        .map_err(|_| silent(at, "no answer in time"))?;
        let row = match answer {
            Ok(row) => row,
            Err(error) if failure_kind(&error) == FailureKind::Lost => return Ok(None),
            Err(error) => return Err(failed(at, &error)),
        };
        let position = open
            .read_position(&row)
            .map_err(|error| malformed(at, &error.into()))?;
        *session = Some(open);
        Ok(position)
    }

    /// A round, and the doubts that it answers, if it answers any.
    ///
    /// A server that shuts down, or restarts because a process of it has crashed, ends its connections one after another:
    /// the prober's own may answer a while longer. It takes no new ones from before it ends the first, so that whether
    /// one comes about tells.
    async fn look(&self, session: &mut Option<Session>) -> (Result<Observation, Failure>, Option<u64>) {
        let doubts = self.bell().unanswered_doubts();
        if doubts.is_some() {
            *session = None;
        }
        (self.round(session).await, doubts)
    }

    /// One answer or one failure. A connection that was lost since the last round says nothing of the node (its
    /// backend may have been terminated), so it is opened again within the same round.
    async fn round(&self, session: &mut Option<Session>) -> Result<Observation, Failure> {
        if let Some(open) = session.take() {
            match self.ask(open).await {
                Ok((observation, open)) => {
                    *session = Some(open);
                    return Ok(observation);
                }
                Err(failure) if failure.kind == FailureKind::Lost => {}
                Err(failure) => return Err(failure),
            }
        }
        let at = Instant::now();
        let open = timeout(self.shared.config.connect_timeout, self.connect())
            .await
            .map_err(|_| silent(at, "no connection in time"))?
            .map_err(|error| failed(at, &error))?;
        let (observation, open) = self.ask(open).await?;
        *session = Some(open);
        Ok(observation)
    }

    /// Asks the probe's question; the session comes back only with an answer.
    async fn ask(&self, session: Session) -> Result<(Observation, Session), Failure> {
        let at = Instant::now();
        let row = timeout(
            self.shared.config.timeout,
            session.client.query_one(&session.probe, &[]),
        )
        .await
        .map_err(|_| silent(at, "no answer in time"))?
        .map_err(|error| failed(at, &error))?;
        let mut session = session;
        let observation = session.read(&row, at).map_err(|error| malformed(at, &error))?;
        session.in_recovery = matches!(observation.wal, Wal::Replaying { .. });
        session.followed = if session.in_recovery {
            session.followed.max(observation.highest_timeline())
        } else {
            None
        };
        Ok((observation, session))
    }

    async fn connect(&self) -> Result<Session, tokio_postgres::Error> {
        let (client, connection) = postgres_config(&self.shared.config, &self.place)
            .connect(self.tls.clone())
            .await?;
        let run = Run(Arc::clone(&self.coverage));
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let _run = run;
            // Its error reaches whoever asks; between two rounds its end alone is the news.
            let _ = connection.await;
        }));
        let row = client.query_one(IDENTITY_SQL, &[]).await?;
        let probe = client.prepare(PROBE_SQL).await?;
        let position = client.prepare(POSITION_SQL).await?;
        Ok(Session {
            client,
            driver,
            probe,
            position,
            in_recovery: false,
            followed: None,
            system_identifier: SystemIdentifier(row.try_get::<_, i64>(0)?.cast_unsigned()),
            layout: WalLayout {
                block_size: row.try_get::<_, i32>(1)?.unsigned_abs().into(),
                segment_size: row.try_get::<_, i32>(2)?.unsigned_abs().into(),
            },
        })
    }
}

fn postgres_config(config: &Config, place: &NodeConfig) -> tokio_postgres::Config {
    let mut postgres = tokio_postgres::Config::new();
    postgres
        .host(&place.host)
        .port(place.port)
        .user(&config.user)
        .dbname(&config.database)
        .application_name(APPLICATION_NAME)
        .ssl_mode(config.ssl_mode_for(&place.host))
        .connect_timeout(config.connect_timeout)
        .tcp_user_timeout(config.connect_timeout + config.timeout);
    if !config.password.expose().is_empty() {
        postgres.password(config.password.expose());
    }
    postgres
}

/// Ready when the session's connection has ended; never without a session. Cancel safe.
async fn ended(session: &mut Option<Session>) {
    match session {
        Some(session) => {
            let _ = (&mut session.driver).await;
        }
        None => std::future::pending().await,
    }
    *session = None;
}

/// Ends the node's run with the connection that it is of, however that ends.
struct Run(Arc<Coverage>);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.end_run();
    }
}

/// An open probe connection. Dropping it closes the socket at once.
#[derive(Debug)]
struct Session {
    client: Client,
    driver: AbortOnDropHandle<()>,
    probe: Statement,
    position: Statement,
    /// What the last probe said.
    in_recovery: bool,
    /// While it is in recovery: the highest timeline that it has shown.
    followed: Option<TimelineId>,
    system_identifier: SystemIdentifier,
    layout: WalLayout,
}

/// The sample that a standby is not known to have replayed, and since when that is so.
#[derive(Debug, Default)]
struct Missing(Option<(SampleNumber, Instant)>);

impl Missing {
    /// How long to wait before it is asked again that has covered so much of what was sampled.
    fn apart(&mut self, sampled: SampleNumber, covered: SampleNumber) -> Duration {
        if self.0.is_some_and(|(missing, _)| missing <= covered) {
            self.0 = None;
        }
        if covered >= sampled {
            return Duration::ZERO;
        }
        let (_, since) = *self.0.get_or_insert_with(|| (sampled, Instant::now()));
        (since.elapsed() / 4).min(SAMPLE_INTERVAL_MAX)
    }
}

/// What a node is to be asked next.
enum Due {
    Probe,
    Position,
    /// Nothing: the monitor is gone.
    Nothing,
}

/// Why a row of the probe is not an observation.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error(transparent)]
    Column(#[from] tokio_postgres::Error),
    #[error("{0:?} is not the name of a WAL file")]
    WalFile(String),
    #[error("a server out of recovery told no position")]
    NoPosition,
}

impl Session {
    /// The position that [`POSITION_SQL`] told, as an [`Observation`] has it; `None` from the other side of recovery.
    fn read_position(&self, row: &Row) -> Result<Option<Lsn>, tokio_postgres::Error> {
        let in_recovery: bool = row.try_get("in_recovery")?;
        let position: Option<PgLsn> = row.try_get("position")?;
        Ok(position
            .filter(|_| in_recovery == self.in_recovery)
            .map(|position| match Lsn(position.into()) {
                replay if in_recovery => replay,
                insert => insert.end_of_record(self.layout),
            }))
    }

    fn read(&self, row: &Row, at: Instant) -> Result<Observation, Unreadable> {
        let lsn = |column: &str| -> Result<Option<Lsn>, tokio_postgres::Error> {
            Ok(row
                .try_get::<_, Option<PgLsn>>(column)?
                .map(|lsn| Lsn(lsn.into())))
        };
        let timeline = |column: &str| -> Result<Option<TimelineId>, tokio_postgres::Error> {
            Ok(row
                .try_get::<_, Option<i32>>(column)?
                .map(i32::cast_unsigned)
                .filter(|&tli| tli != 0)
                .map(TimelineId))
        };
        let wal = if row.try_get("in_recovery")? {
            let receiver = if row.try_get("receiver")? {
                let silence: Option<f64> = row.try_get("silence")?;
                let silence = silence.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
                Receiver::Present {
                    timeline: timeline("received_tli")?,
                    silence,
                }
            } else {
                Receiver::Gone
            };
            Wal::Replaying {
                receive: lsn("receive_lsn")?,
                replay: lsn("replay_lsn")?,
                receiver,
                control_timeline: timeline("control_timeline")?,
            }
        } else {
            let file: String = row
                .try_get::<_, Option<String>>("walfile")?
                .ok_or(Unreadable::NoPosition)?;
            Wal::Inserting {
                timeline: timeline_of_walfile(&file).ok_or(Unreadable::WalFile(file))?,
                insert: lsn("insert_lsn")?
                    .ok_or(Unreadable::NoPosition)?
                    .end_of_record(self.layout),
                flush: lsn("flush_lsn")?.ok_or(Unreadable::NoPosition)?,
            }
        };
        // The position is where recovery has ended. No connection outlives a server's restart: this one has seen the
        // recovery that has ended, so it is the promotion's.
        let recovered = lsn("replay_lsn")?;
        let incarnation = match wal {
            Wal::Inserting { timeline, .. } => Some(Incarnation {
                timeline,
                started: row.try_get("started")?,
                recovered,
            }),
            Wal::Replaying { .. } => None,
        };
        let promotion = match (incarnation, self.followed, recovered) {
            (Some(incarnation), Some(from), Some(at)) => Some(Promotion {
                from,
                to: incarnation.timeline,
                at,
            }),
            _ => None,
        };
        Ok(Observation {
            at,
            system_identifier: self.system_identifier,
            in_hot_standby: row
                .try_get::<_, Option<&str>>("in_hot_standby")?
                .map(|value| value == "on"),
            default_transaction_read_only: row.try_get::<_, &str>("read_only")? == "on",
            wal,
            incarnation,
            promotion,
        })
    }
}

/// The first eight hexadecimal digits of a WAL file's name are its timeline (`XLogFileName`).
fn timeline_of_walfile(name: &str) -> Option<TimelineId> {
    u32::from_str_radix(name.get(..8)?, 16)
        .ok()
        .filter(|&timeline| timeline != 0)
        .map(TimelineId)
}

fn silent(at: Instant, message: &str) -> Failure {
    Failure {
        at,
        kind: FailureKind::Timeout,
        message: message.into(),
    }
}

fn malformed(at: Instant, error: &Unreadable) -> Failure {
    Failure {
        at,
        kind: FailureKind::Malformed,
        message: error.to_string().into(),
    }
}

fn failed(at: Instant, error: &tokio_postgres::Error) -> Failure {
    let kind = failure_kind(error);
    let message = match (error.as_db_error(), error.source()) {
        (Some(db), _) => format!("{} ({})", db.message(), db.code().code()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    };
    Failure {
        at,
        kind,
        message: message.into(),
    }
}

/// What an error of the client library says about the node.
pub(crate) fn failure_kind(error: &tokio_postgres::Error) -> FailureKind {
    if let Some(code) = error.code() {
        return match *code {
            SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => FailureKind::Lost,
            SqlState::CANNOT_CONNECT_NOW => FailureKind::NotAccepting,
            _ => FailureKind::Rejected,
        };
    }
    let mut cause = error.source();
    while let Some(source) = cause {
        if let Some(io) = source.downcast_ref::<io::Error>() {
            return io_failure_kind(io.kind());
        }
        cause = source.source();
    }
    if error.is_closed() {
        FailureKind::Lost
    } else {
        FailureKind::Rejected
    }
}

fn io_failure_kind(kind: io::ErrorKind) -> FailureKind {
    match kind {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotFound
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => FailureKind::Refused,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => FailureKind::Timeout,
        _ => FailureKind::Lost,
    }
}

#[cfg(test)]
mod tests;
