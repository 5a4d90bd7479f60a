//! The monitor of pg_auto_failover: told by `LISTEN state`, asked by `current_state()`.
//!
//! A notification is a reason to ask at once, not an answer: notifications are lost while nobody is connected,
//! and the answer is a millisecond away. A node may take writes when its *goal* state says so; the reported one
//! and `get_primary()` go on naming a dead primary until its successor is opened.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, Row, Socket, Statement};
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, AuthorityView, EngineNode};
use crate::config::{Config, NodeConfig, PgAutoFailoverConfig};
use crate::node::NodeId;
use crate::probe::APPLICATION_NAME;

#[cfg(test)]
mod tests;

/// The time between two polls, when no notification comes sooner.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The least time between two polls or attempts to connect, however many notifications and signals come.
const POLL_SPACING: Duration = Duration::from_millis(20);

/// The most notifications that wait to be read; those beyond are dropped, since one is enough to poll.
const NOTIFICATIONS_WAITING: usize = 64;

const STATE_SQL: &str = "SELECT nodename, nodehost, nodeport, current_group_state::text, \
     assigned_group_state::text FROM pgautofailover.current_state($1, $2)";

/// Whether a node in this state takes writes: `CanTakeWritesInState` of the extension, version 2.
fn takes_writes(state: &str) -> bool {
    matches!(
        state,
        "single" | "wait_primary" | "primary" | "join_primary" | "apply_settings"
    )
}

/// Whether a node in this state is on its way to taking writes.
fn is_promoted(state: &str) -> bool {
    matches!(state, "prepare_promotion" | "stop_replication")
}

/// The payload of a notification on channel `state`. Fields that are not needed are left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StateChange {
    formation: String,
    group_id: i32,
    name: String,
    reported_state: String,
    goal_state: String,
}

impl FromStr for StateChange {
    type Err = serde_json::Error;

    fn from_str(payload: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(payload)
    }
}

/// The adapter's task.
#[derive(Debug)]
pub(crate) struct Adapter<T> {
    pub(crate) engine: PgAutoFailoverConfig,
    pub(crate) config: Arc<Config>,
    pub(crate) look: Arc<Notify>,
    pub(crate) view: watch::Sender<AuthorityView>,
    pub(crate) tls: T,
}

/// Why the monitor is silent.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("no connection in time")]
    ConnectTimeout,
    #[error("no answer in time")]
    AnswerTimeout,
    #[error("the connection ended")]
    Ended,
    #[error("{0}")]
    Database(#[from] tokio_postgres::Error),
}

impl<T> Adapter<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    /// Follows the monitor until nobody listens. Cancel safe: dropping it drops the connection.
    pub(crate) async fn run(self) {
        while !self.view.is_closed() {
            let started = Instant::now();
            let silence = match timeout(self.config.connect_timeout, self.connect()).await {
                Ok(Ok(session)) => self.follow(session).await,
                Ok(Err(error)) => error.into(),
                Err(_) => Silence::ConnectTimeout,
            };
            self.fall_silent(&silence);
            tokio::select! {
                () = tokio::time::sleep_until((started + POLL_INTERVAL).into()) => {}
                () = self.look.notified() => tokio::time::sleep_until((started + POLL_SPACING).into()).await,
            }
        }
    }

    async fn connect(&self) -> Result<Session, tokio_postgres::Error> {
        let mut postgres = tokio_postgres::Config::new();
        postgres
            .host(&self.engine.host)
            .port(self.engine.port)
            .user(&self.engine.user)
            .dbname(&self.engine.database)
            .application_name(APPLICATION_NAME)
            .ssl_mode(self.config.ssl_mode_for(&self.engine.host))
            .connect_timeout(self.config.connect_timeout);
        if !self.engine.password.expose().is_empty() {
            postgres.password(self.engine.password.expose());
        }
        let (client, mut connection) = postgres.connect(self.tls.clone()).await?;
        let (sender, notifications) = mpsc::channel(NOTIFICATIONS_WAITING);
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(Ok(message)) =
                std::future::poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notification(notification) = message {
                    let _ = sender.try_send(notification.payload().to_owned());
                }
            }
        }));
        client.batch_execute("LISTEN state").await?;
        let state = client.prepare(STATE_SQL).await?;
        Ok(Session {
            client,
            _driver: driver,
            notifications,
            state,
        })
    }

    /// Polls on every notification, signal and interval; returns when the connection is of no more use.
    async fn follow(&self, mut session: Session) -> Silence {
        loop {
            let started = Instant::now();
            match timeout(self.config.timeout, session.poll(&self.engine)).await {
                Ok(Ok(rows)) => self.answer(started, &rows),
                Ok(Err(error)) => return error.into(),
                Err(_) => return Silence::AnswerTimeout,
            }
            tokio::select! {
                () = tokio::time::sleep_until((started + POLL_INTERVAL).into()) => continue,
                () = self.look.notified() => {}
                payload = session.notifications.recv() => match payload {
                    Some(payload) => self.log_change(&payload),
                    None => return Silence::Ended,
                },
            }
            tokio::time::sleep_until((started + POLL_SPACING).into()).await;
            while let Ok(payload) = session.notifications.try_recv() {
                self.log_change(&payload);
            }
            if self.view.is_closed() {
                return Silence::Ended;
            }
        }
    }

    fn answer(&self, at: Instant, rows: &[MonitorRow]) {
        let answer = answer(at, rows, &self.config.nodes);
        if answer.primary.is_none() {
            tracing::debug!("the monitor's goal names no configured node as primary");
        }
        self.view.send_replace(AuthorityView::Answers(Arc::new(answer)));
    }

    fn fall_silent(&self, silence: &Silence) {
        let error: Arc<str> = silence.to_string().into();
        self.view.send_modify(|view| match view {
            AuthorityView::Silent { error: old, .. } => *old = error,
            AuthorityView::Absent | AuthorityView::Pending | AuthorityView::Answers(_) => {
                tracing::warn!(error = %error, "the pg_auto_failover monitor is silent");
                *view = AuthorityView::Silent {
                    since: Instant::now(),
                    error,
                };
            }
        });
    }

    fn log_change(&self, payload: &str) {
        match payload.parse::<StateChange>() {
            Ok(change)
                if change.formation == self.engine.formation && change.group_id == self.engine.group =>
            {
                tracing::info!(
                    node = %change.name,
                    reported = %change.reported_state,
                    goal = %change.goal_state,
                    "the engine changed a node's state"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a notification on channel state is not a state change"),
        }
    }
}

#[derive(Debug)]
struct Session {
    client: Client,
    _driver: AbortOnDropHandle<()>,
    notifications: mpsc::Receiver<String>,
    state: Statement,
}

/// A row of `current_state()`.
#[derive(Clone, Debug)]
struct MonitorRow {
    name: String,
    host: String,
    port: i32,
    reported: String,
    goal: String,
}

impl Session {
    async fn poll(&self, engine: &PgAutoFailoverConfig) -> Result<Vec<MonitorRow>, tokio_postgres::Error> {
        let rows = self
            .client
            .query(&self.state, &[&engine.formation, &engine.group])
            .await?;
        rows.iter().map(MonitorRow::read).collect()
    }
}

impl MonitorRow {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            name: row.try_get(0)?,
            host: row.try_get(1)?,
            port: row.try_get(2)?,
            reported: row.try_get(3)?,
            goal: row.try_get(4)?,
        })
    }
}

/// Translates the monitor's rows. A row is the configured node at the same address, or else the one of the same
/// name, since the monitor may know a node by another of its host's names.
fn answer(at: Instant, rows: &[MonitorRow], nodes: &[NodeConfig]) -> Answer {
    let nodes: Vec<EngineNode> = rows
        .iter()
        .map(|row| {
            let port = u16::try_from(row.port).unwrap_or_default();
            let place = nodes
                .iter()
                .position(|node| node.host == row.host && node.port == port)
                .or_else(|| nodes.iter().position(|node| node.name == row.name));
            EngineNode {
                node: place.and_then(|index| u16::try_from(index).ok()).map(NodeId),
                name: row.name.clone(),
                host: row.host.clone(),
                port,
                reported: row.reported.clone(),
                goal: row.goal.clone(),
                leads: takes_writes(&row.goal),
            }
        })
        .collect();
    let mut leading = nodes.iter().filter(|node| node.leads);
    let primary = match (leading.next(), leading.next()) {
        (Some(one), None) => one.node,
        _ => None,
    };
    let mut promoted = nodes.iter().filter(|node| is_promoted(&node.goal));
    Answer {
        at,
        primary,
        candidate: primary.or_else(|| promoted.next().and_then(|node| node.node)),
        nodes,
    }
}
