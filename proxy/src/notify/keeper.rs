//! The task that keeps a hub's connection: to the current primary, listening to what the sessions want.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use halyard_health::{Evidence, NodeId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Hubs;
use super::connection::{Connection, Said};
use super::hub::{Hub, Question, Trouble};
use crate::error::{Report, SqlState};
use crate::login::{LoginError, log_in};
use crate::metrics::Counter;
use crate::pool::{Group, Node, is_final};
use crate::routing::Standing;

/// Between two questions to a server that has nothing to say: a frozen node, or a link that swallows everything, is
/// not noticed otherwise.
const QUESTION_INTERVAL: Duration = Duration::from_secs(5);
/// How long the server may take to answer one.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Between the first two tries to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Between later tries.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// How long a connection is kept for which there is no client.
const LINGER: Duration = Duration::from_secs(30);

/// How a connection ends.
enum Ended {
    /// Nobody needs it.
    Unused,
    /// It is lost, for this reason.
    Lost(Report),
    /// Its node is not the primary any more.
    Moved,
}

/// A question that the server has not answered yet.
struct Asked {
    question: Question,
    /// Marks that are still to come: before the statements and behind them.
    marks: usize,
    /// Statements that are done.
    done: usize,
    /// What was said against one of them, or of a notification that came behind them.
    refusal: Option<Report>,
    deadline: Instant,
}

impl Asked {
    fn new(question: Question, deadline: Instant) -> Self {
        Self {
            marks: if question.sql.is_empty() { 1 } else { 2 },
            question,
            done: 0,
            refusal: None,
            deadline,
        }
    }

    /// Whether the server is at its statements.
    fn runs(&self) -> bool {
        self.marks == 1 && !self.question.sql.is_empty()
    }

    /// Whether the server has not done what was asked.
    fn is_refused(&self) -> bool {
        self.done < self.question.statements
    }
}

/// Whether the server would say so to each that asked for the same channel, or was told the same: names that cannot be, and
/// texts that the encoding does not have (class 22), and what the grammar refuses (class 42). All else is about the server.
fn is_about_names(report: &Report) -> bool {
    matches!(&report.sqlstate.0[..2], b"22" | b"42")
}

/// Keeps one hub's connection.
pub(super) struct Keeper {
    hubs: Arc<Hubs>,
    hub: Arc<Hub>,
    published: watch::Receiver<u64>,
    /// Which of the groups is to log in.
    turn: usize,
    /// Logins in a row that the server refused for good.
    refusals: usize,
}

impl Keeper {
    pub(super) fn new(hubs: Arc<Hubs>, hub: Arc<Hub>) -> Self {
        Self {
            published: hubs.routing.subscribe(),
            hubs,
            hub,
            turn: 0,
            refusals: 0,
        }
    }

    /// Keeps the hub connected until nobody has needed it for a while. Dropping it closes the connection.
    pub(super) async fn keep(mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            self.published.borrow_and_update();
            let primary = self.hubs.routing.load().primary;
            if let (Some(node), Some(group)) = (primary, self.hub.candidate(self.turn)) {
                match self.serve(node, &group).await {
                    Ok(Ended::Unused) => return,
                    Ok(ended) => {
                        self.hub.lost();
                        self.hubs.counters.add(Counter::NotificationListenersLost, 1);
                        self.tell_end(&group.pool(node).node, ended);
                        backoff = BACKOFF_MIN;
                    }
                    Err(error) => self.tell_failure(&group, node, &error),
                }
            }
            if self.hubs.forget_unused(&self.hub, LINGER) {
                return;
            }
            tokio::select! {
                // With the last sender the process ends.
                changed = self.published.changed() => if changed.is_err() { return },
                () = sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
            }
        }
    }

    /// Logs in to the node and listens there until that ends.
    async fn serve(&mut self, node: NodeId, group: &Group) -> Result<Ended, LoginError> {
        let pool = group.pool(node);
        let node = &pool.node;
        let generation = node.generation.load(Ordering::Acquire);
        let settings = [
            ("application_name", "halyard_listen"),
            ("client_encoding", self.hub.encoding.as_str()),
            // A NOTIFY is nothing that a disk or a standby has to have.
            ("synchronous_commit", "off"),
        ];
        let credential = group.credential();
        let login = log_in(
            &node.target,
            &group.user,
            &group.database,
            &settings,
            &credential,
            &pool.limits().login,
        );
        let link = login
            .await
            .inspect_err(|_| node.counters.add(Counter::NodeConnectionsFailed, 1))?;
        node.counters.add(Counter::NodeConnectionsOpened, 1);
        self.refusals = 0;
        tracing::debug!(node = %node.name, database = %self.hub.database, "a connection listens for clients");
        Ok(self.listen(Connection::new(link), node, generation).await)
    }

    /// Asks for what the sessions want, and hands them what comes.
    async fn listen(&mut self, mut connection: Connection, node: &Node, generation: u64) -> Ended {
        let mut asked: Option<Asked> = None;
        let mut due = Instant::now();
        loop {
            if asked.is_none()
                && let Some(question) = self.hub.question(due <= Instant::now())
            {
                let now = Instant::now();
                match timeout(ANSWER_LIMIT, connection.ask(&question.sql)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(report)) => return Ended::Lost(report),
                    Err(_) => return Ended::Lost(silent()),
                }
                due = now + QUESTION_INTERVAL;
                asked = Some(Asked::new(question, now + ANSWER_LIMIT));
            }
            let alarm = asked.as_ref().map_or(due, |asked| asked.deadline);
            tokio::select! {
                said = connection.next() => {
                    if let Err(report) = said.and_then(|said| heed(&self.hub, &mut asked, said)) {
                        return Ended::Lost(report);
                    }
                }
                () = self.hub.bell.notified(), if asked.is_none() => {}
                _ = self.published.changed() => if self.moved(node, generation) { return Ended::Moved },
                () = sleep_until(alarm) => {
                    if asked.is_some() {
                        return Ended::Lost(silent());
                    }
                    if self.hubs.forget_unused(&self.hub, LINGER) {
                        return Ended::Unused;
                    }
                }
            }
        }
    }

    /// Whether another node is the primary, or this one is not what it was. A primary that nobody has replaced is
    /// waited for: if it is gone, the connection says so.
    fn moved(&self, node: &Node, generation: u64) -> bool {
        let table = self.hubs.routing.load();
        table.primary.is_some_and(|primary| primary != node.id)
            || table.standing[usize::from(node.id.0)] == Standing::Fenced
            || node.generation.load(Ordering::Acquire) != generation
    }

    fn tell_end(&self, node: &Node, ended: Ended) {
        let database = self.hub.database.as_str();
        match ended {
            Ended::Unused => {}
            Ended::Moved => {
                tracing::info!(node = %node.name, database, "the connection that listens follows the primary");
            }
            Ended::Lost(report) => {
                tracing::warn!(node = %node.name, database, error = %report, "the connection that listens was lost");
                // A notification that cannot be told in this encoding says nothing of the node's health.
                if let Some(group) = self.hub.candidate(self.turn).filter(|_| !is_about_names(&report)) {
                    group.signals.raise(node.id, Evidence::ConnectionReset);
                }
            }
        }
    }

    fn tell_failure(&mut self, group: &Group, node: NodeId, error: &LoginError) {
        let node = &group.pool(node).node;
        if is_final(error) {
            // Perhaps it is this role alone that may not come in.
            self.turn = self.turn.wrapping_add(1);
            self.refusals += 1;
        } else {
            self.refusals = 0;
        }
        let is_final = self.refusals > 0 && self.refusals >= self.hub.groups();
        let report = match error {
            LoginError::Server(report) => report.clone(),
            other => Report::error(SqlState::CONNECTION_FAILURE, "could not connect to the node")
                .with_detail(format!("Node \"{}\": {other}.", node.name)),
        };
        tracing::warn!(node = %node.name, database = %group.database, user = %group.user, error = %report,
            "cannot open the connection that listens");
        self.hub.fails(Trouble { report, is_final });
    }
}

/// Does what follows from what the server said.
///
/// # Errors
/// What it refused, where the connection is of no use any more.
fn heed(hub: &Hub, asked: &mut Option<Asked>, said: Said) -> Result<(), Report> {
    match (said, asked.as_mut()) {
        (Said::Notification(notification), _) => hub.dispatch(notification),
        (Said::Mark, Some(asked)) => asked.marks = asked.marks.saturating_sub(1),
        (Said::Done, Some(asked)) => asked.done += 1,
        (Said::Ready, _) => {
            if let Some(asked) = asked.take_if(|asked| asked.marks == 0) {
                return conclude(hub, asked);
            }
        }
        // It is not done with the statements, and so says why.
        (Said::Refused(report), Some(asked))
            if asked.runs() && (asked.question.notifies || is_about_names(&report)) =>
        {
            asked.refusal = Some(report);
        }
        (Said::Refused(report), _) => return Err(report),
        (Said::Mark | Said::Done | Said::Other, _) => {}
    }
    Ok(())
}

/// Does what follows from the answer to a question.
///
/// # Errors
/// What it could not tell of while it ran what was asked.
fn conclude(hub: &Hub, asked: Asked) -> Result<(), Report> {
    if asked.is_refused() {
        hub.refused(asked.question);
        return Ok(());
    }
    hub.answered(asked.question);
    asked.refusal.map_or(Ok(()), Err)
}

fn silent() -> Report {
    Report::error(SqlState::CONNECTION_FAILURE, "the node did not answer in time")
        .with_detail(format!("The limit is {} ms.", ANSWER_LIMIT.as_millis()))
}

#[cfg(test)]
mod tests;
