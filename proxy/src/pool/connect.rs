//! Opening connections for a pool, apart from any client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use halyard_health::Evidence;

use super::{Backend, Delivery, Group, Pool, exchange};
use crate::error::{Report, SqlState};
use crate::login::{LoginError, log_in};
use crate::metrics::{self, Counter};
use crate::session::milliseconds;

/// Between the first two tries.
const BACKOFF_MIN: Duration = Duration::from_millis(25);
/// Between later tries.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Opens one connection (already counted in) and hands it to the first in line.
pub(super) fn spawn(pool: &Arc<Pool>) {
    let attempt = Attempt {
        pool: Some(Arc::clone(pool)),
    };
    // Outside of a runtime the process is ending, and nobody is in line any more.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(attempt.run());
    }
}

/// A connection being opened, counted in its pool for as long as this lives.
struct Attempt {
    pool: Option<Arc<Pool>>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let grow = {
                let mut state = pool.state.lock();
                state.connecting -= 1;
                state.open -= 1;
                // Somebody may have got in line and counted on this connection.
                !state.waiters.is_empty() && state.may_grow(&pool.limits)
            };
            if grow {
                spawn(&pool);
            }
        }
    }
}

impl Attempt {
    async fn run(mut self) {
        let Some(pool) = self.pool.clone() else { return };
        let mut backoff = BACKOFF_MIN;
        loop {
            let Some(group) = pool.group.upgrade() else { return };
            match try_once(&pool, &group).await {
                Ok(backend) => {
                    pool.state.lock().connecting -= 1;
                    self.pool = None;
                    pool.take_back(Box::new(backend));
                    return;
                }
                Err(error) => {
                    let report = report(&pool, &error);
                    if let Some(evidence) = evidence(&error) {
                        group.signals.raise(pool.node.id, evidence);
                    }
                    tracing::warn!(node = %pool.node.name, database = %group.database, user = %group.user,
                        error = %report, "cannot open a connection to the node");
                    // A pool that has other connections has them still: its line goes on.
                    if is_final(&error) && !pool.has_others() {
                        refuse_all(&pool, &report);
                        return;
                    }
                }
            }
            if pool.reserves() {
                pool.move_line(true);
            }
            if !has_waiters(&pool) {
                return;
            }
            drop(group);
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            if !has_waiters(&pool) {
                return;
            }
        }
    }
}

async fn try_once(pool: &Pool, group: &Group) -> Result<Backend, LoginError> {
    let result = open(pool, group).await;
    let outcome = if result.is_ok() {
        Counter::NodeConnectionsOpened
    } else {
        Counter::NodeConnectionsFailed
    };
    pool.node.counters.add(outcome, 1);
    result
}

/// Logs in, and asks what nobody tells unasked.
async fn open(pool: &Pool, group: &Group) -> Result<Backend, LoginError> {
    let started = Instant::now();
    let generation = pool.generation();
    let credential = group.credential();
    let login = log_in(
        &pool.node.target,
        &group.user,
        &group.database,
        &[],
        &credential,
        &pool.limits.login,
    );
    let mut backend = Backend::new(
        login.await?,
        Arc::clone(&group.no_settings),
        pool.limits.prepared_statements_max,
        pool.now(),
        generation,
        pool.node.coverage.drawn(),
        crate::worker::reactor(),
    );
    backend.idle_since = backend.born;
    let took = started.elapsed();
    metrics::observe_node_login(took);
    let left = pool.limits.login.timeout.saturating_sub(took);
    learn_statement_timeout(pool, &mut backend, left).await?;
    Ok(backend)
}

/// Asks for the `statement_timeout` of a session that sets none: that of a connection which no client has had yet.
async fn learn_statement_timeout(
    pool: &Pool,
    backend: &mut Backend,
    limit: Duration,
) -> Result<(), LoginError> {
    match exchange::rows(backend, "SHOW statement_timeout", limit).await {
        Ok(rows) => {
            let value = rows.first().and_then(|row| row.first()?.as_deref());
            if let Some(value) = value.and_then(|value| std::str::from_utf8(value).ok()) {
                pool.note_statement_timeout(milliseconds(value));
            }
            Ok(())
        }
        // It lets a statement take no longer than that.
        Err(report) if backend.settled().is_some() => {
            tracing::debug!(node = %pool.node.name, %report, "the node does not tell its statement_timeout");
            Ok(())
        }
        Err(report) if report.sqlstate == SqlState::CONNECTION_FAILURE => {
            Err(LoginError::Io(std::io::Error::other(report.to_string())))
        }
        Err(report) => Err(LoginError::Server(report)),
    }
}

fn has_waiters(pool: &Pool) -> bool {
    let mut state = pool.state.lock();
    state.waiters.retain(|waiter| !waiter.is_gone());
    !state.waiters.is_empty()
}

fn refuse_all(pool: &Pool, report: &Report) {
    let waiters = std::mem::take(&mut pool.state.lock().waiters);
    let report = Arc::new(report.clone());
    for waiter in waiters {
        let _ = waiter.sender.send(Delivery::Err(Arc::clone(&report)));
    }
}

/// Whether trying again cannot help: the server itself said no, to this user or this database.
pub(crate) fn is_final(error: &LoginError) -> bool {
    match error {
        LoginError::Server(report) => {
            let class = report
                .sqlstate
                .0
                .first_chunk::<2>()
                .expect("an SQLSTATE has five characters");
            // Among them 55000, of a database that takes no connections (template0).
            [b"28", b"3D", b"42", b"22", b"0A", b"55"].contains(&class)
        }
        LoginError::AuthenticationUnsupported(_) | LoginError::NoCredential(_) | LoginError::Scram(_) => true,
        _ => false,
    }
}

fn evidence(error: &LoginError) -> Option<Evidence> {
    match error {
        LoginError::Refused => Some(Evidence::ConnectionRefused),
        LoginError::Io(_) => Some(Evidence::ConnectionReset),
        LoginError::Timeout(_) => Some(Evidence::Timeout),
        LoginError::Server(report) if report.sqlstate == SqlState::CANNOT_CONNECT_NOW => {
            Some(Evidence::CannotConnectNow)
        }
        LoginError::Server(report) if report.sqlstate == SqlState::ADMIN_SHUTDOWN => {
            Some(Evidence::AdminShutdown)
        }
        _ => None,
    }
}

fn report(pool: &Pool, error: &LoginError) -> Report {
    match error {
        LoginError::Server(report) => {
            let mut report = report.clone();
            let node = format!("Node \"{}\" refused Halyard's login.", pool.node.name);
            report.detail = Some(
                report
                    .detail
                    .map_or(node.clone(), |detail| format!("{detail} {node}"))
                    .into(),
            );
            report
        }
        other => Report::error(SqlState::CONNECTION_FAILURE, "could not connect to the node")
            .with_detail(format!("Node \"{}\": {other}.", pool.node.name)),
    }
}
