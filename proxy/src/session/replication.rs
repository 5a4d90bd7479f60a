//! Replication connections: led through to the primary, one connection of their own each.
//!
//! Physical and logical replication (manual, section 55.4) are conversations of one client with one walsender, mostly
//! in copy-both mode, from which nothing can be taken and given back. So nothing is pooled or read here: after the login
//! bytes go both ways as they come, for as long as the node is the primary.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::time::{Instant, sleep_until};

use super::inbox::{Doing, Inbox, Message, Registered};
use crate::app::App;
use crate::config::ListenerRole;
use crate::error::{Report, SqlState};
use crate::login::{BackendLink, LoginError, LoginLimits, log_in, send_cancel};
use crate::metrics::Counter;
use crate::pool::Node;
use crate::routing::Standing;
use crate::startup::{Login, Replication};
use crate::wire::{self, OutBuf, tagged};

/// Bytes read at a time in each direction.
const BUFFER_SIZE: usize = 64 * 1024;

/// Serves a client that has logged in for replication, to its end.
pub(super) async fn replicate(
    app: Arc<App>,
    mut login: Box<Login>,
    registered: Registered,
    key: &[u8],
    port: ListenerRole,
) {
    if port == ListenerRole::Replica {
        let report = Report::fatal(
            SqlState::FEATURE_NOT_SUPPORTED,
            "replication connections are not supported on this port",
        )
        .with_detail("They are led to the primary, and this port leads to standbys.");
        login.refuse(&report).await;
        return;
    }
    let (node, link) = match connect(&app, &login).await {
        Ok(connected) => connected,
        Err(report) => {
            login.refuse(&report).await;
            return;
        }
    };
    tracing::info!(node = %node.name, user = ?login.user, kind = ?login.replication, "a replication connection begins");
    registered.inbox.set_doing(Doing::Active);
    let welcome = welcome(&mut login, &link, key);
    let mut backend = link.stream;
    let client = &mut login.stream;
    let carried = async {
        client.write_all(&welcome).await?;
        client.write_all(&link.leftover).await?;
        client.flush().await?;
        backend.write_all(&login.leftover).await?;
        backend.flush().await?;
        copy_bidirectional_with_sizes(client, &mut backend, BUFFER_SIZE, BUFFER_SIZE).await
    };
    let ended = tokio::select! {
        carried = carried => match carried {
            Ok((sent, received)) => format!("closed after {sent} bytes to and {received} bytes from the node"),
            Err(error) => error.to_string(),
        },
        reason = told_to_end(&app, &registered.inbox, &node, &link.key) => reason.to_owned(),
    };
    tracing::info!(node = %node.name, user = ?login.user, reason = %ended, "a replication connection ended");
}

/// Logs in to the primary, waiting for one as long as a statement would.
async fn connect(app: &App, login: &Login) -> Result<(Arc<Node>, BackendLink), Report> {
    let mut published = app.routing.subscribe();
    let limit = app.config.failover.hold;
    let deadline = Instant::now() + limit;
    let node = loop {
        published.borrow_and_update();
        if let Some(primary) = app.routing.load().primary {
            break Arc::clone(&app.nodes[usize::from(primary.0)]);
        }
        tokio::select! {
            changed = published.changed() => if changed.is_err() { return Err(no_primary(app, limit)) },
            () = sleep_until(deadline) => return Err(no_primary(app, limit)),
        }
    };
    let mut settings: Vec<(&str, &str)> = login
        .settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    settings.push((
        "replication",
        match login.replication {
            Some(Replication::Database) => "database",
            _ => "true",
        },
    ));
    let limits = LoginLimits::new(&app.config);
    let connected = log_in(
        &node.target,
        &login.user,
        &login.database,
        &settings,
        &login.credential,
        &limits,
    )
    .await;
    let outcome = if connected.is_ok() {
        Counter::NodeConnectionsOpened
    } else {
        Counter::NodeConnectionsFailed
    };
    app.counters().add(outcome, 1);
    match connected {
        Ok(link) => Ok((node, link)),
        Err(LoginError::Server(report)) => Err(report),
        Err(error) => Err(
            Report::fatal(SqlState::CONNECTION_FAILURE, "could not connect to the primary")
                .with_detail(format!("Node \"{}\": {error}.", node.name)),
        ),
    }
}

fn no_primary(app: &App, limit: std::time::Duration) -> Report {
    Report::fatal(SqlState::CANNOT_CONNECT_NOW, "there is no primary now").with_detail(format!(
        "Held for {} ms (failover.hold). {}",
        limit.as_millis(),
        app.routing.load().no_primary
    ))
}

/// What a server says after AuthenticationOk, with a key of Halyard's.
fn welcome(login: &mut Login, link: &BackendLink, key: &[u8]) -> Vec<u8> {
    let mut out = OutBuf::default();
    let bytes = out.end();
    bytes.append(&mut login.pending);
    for (name, value) in &link.parameters {
        wire::write_parameter_status(bytes, name, value);
    }
    tagged(bytes, wire::backend::BACKEND_KEY_DATA, |out| {
        out.extend_from_slice(key);
    });
    wire::ready_for_query(bytes, link.transaction_status);
    std::mem::take(bytes)
}

/// Waits until the connection has to end: its node is the primary no more, or Halyard is being shut down. Passes
/// cancels on meanwhile.
async fn told_to_end(app: &App, inbox: &Inbox, node: &Node, key: &crate::login::BackendKey) -> &'static str {
    loop {
        let messages = poll_fn(|cx| {
            if inbox.is_ringing(cx) {
                Poll::Ready(inbox.take())
            } else {
                Poll::Pending
            }
        })
        .await;
        if messages.has(Message::Terminate) || messages.has(Message::Drain) {
            return "Halyard is being shut down";
        }
        if messages.has(Message::Cancel) {
            let held = inbox.take_cancels();
            if let Err(error) = send_cancel(&node.target, key, &app.cancel_limits).await {
                tracing::warn!(node = %node.name, %error, "a cancel request did not reach the node");
            }
            drop(held);
        }
        if messages.has(Message::TableChanged) {
            let table = app.routing.load();
            let replaced = table.primary.is_some_and(|primary| primary != node.id);
            if replaced || table.standing[usize::from(node.id.0)] == Standing::Fenced {
                return "the node is not the primary any more";
            }
        }
    }
}
