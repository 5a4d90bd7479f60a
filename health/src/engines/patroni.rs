//! Patroni, asked over its members' REST interface: `GET /cluster`, polled.
//!
//! A member answers that from the configuration store itself, so any one member's answer will do, and one that is cut off
//! from the store does not answer. The node that holds the leader key is the one that may take writes; while nobody
//! holds it, nobody may, whatever a PostgreSQL does whose Patroni has died.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::{Answer, AuthorityView, EngineNode};
use crate::config::{Config, NodeConfig, PatroniConfig, PatroniMember};
use crate::node::NodeId;

#[cfg(test)]
mod tests;

/// The time between two polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The least time between two polls, however many signals come.
const POLL_SPACING: Duration = Duration::from_millis(50);

/// The largest answer that is read, in bytes: some hundred for each member.
const ANSWER_SIZE_MAX: u64 = 256 * 1024;

/// The adapter's task.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) engine: PatroniConfig,
    pub(crate) config: Arc<Config>,
    pub(crate) look: Arc<Notify>,
    pub(crate) view: watch::Sender<AuthorityView>,
}

/// Why a member gives no answer.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("no member of Patroni is configured")]
    Nobody,
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the answer is no HTTP")]
    NotHttp,
    #[error("HTTP status {0}")]
    Status(u16),
    #[error("the answer is no description of a cluster: {0}")]
    Json(#[from] serde_json::Error),
}

/// The answer to `GET /cluster`. Fields that are not needed are left out.
#[derive(Clone, Debug, Deserialize)]
struct Members {
    members: Vec<Member>,
}

/// One member of it. A member that has never been up has no address.
#[derive(Clone, Debug, Deserialize)]
struct Member {
    name: String,
    /// `leader`, `standby_leader`, `sync_standby`, `replica`.
    role: String,
    /// `running`, `streaming`, `stopped`, `start failed`, …
    #[serde(default)]
    state: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    port: u16,
}

impl Adapter {
    /// Asks until nobody listens. Cancel safe.
    pub(crate) async fn run(self) {
        // Whoever answered last is asked first.
        let mut first = 0;
        while !self.view.is_closed() {
            let started = Instant::now();
            match self.ask_around(&mut first).await {
                Ok(members) => {
                    let answer = answer(started, &members, &self.config.nodes);
                    self.view.send_replace(AuthorityView::Answers(Arc::new(answer)));
                }
                Err(silence) => self.fall_silent(&silence),
            }
            tokio::select! {
                () = tokio::time::sleep_until((started + POLL_INTERVAL).into()) => {}
                () = self.look.notified() => tokio::time::sleep_until((started + POLL_SPACING).into()).await,
            }
        }
    }

    /// The first answer of any member, from `first` on, who is whoever gave it afterwards. The last member's reason
    /// where there is none.
    async fn ask_around(&self, first: &mut usize) -> Result<Members, Silence> {
        let members = &self.engine.members;
        let mut silence = Silence::Nobody;
        for number in (0..members.len()).map(|offset| (*first + offset) % members.len()) {
            match timeout(self.config.timeout, ask(&members[number])).await {
                Ok(Ok(answer)) => {
                    *first = number;
                    return Ok(answer);
                }
                Ok(Err(error)) => silence = error,
                Err(_) => silence = Silence::Timeout,
            }
        }
        Err(silence)
    }

    fn fall_silent(&self, silence: &Silence) {
        let error: Arc<str> = silence.to_string().into();
        self.view.send_modify(|view| match view {
            AuthorityView::Silent { error: old, .. } => *old = error,
            AuthorityView::Absent | AuthorityView::Pending | AuthorityView::Answers(_) => {
                tracing::warn!(error = %error, "no member of Patroni answers");
                *view = AuthorityView::Silent {
                    since: Instant::now(),
                    error,
                };
            }
        });
    }
}

/// Asks one member. In HTTP 1.0 the body ends with the connection, and is not cut into chunks.
async fn ask(member: &PatroniMember) -> Result<Members, Silence> {
    let PatroniMember { host, port } = member;
    let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
    let request = format!("GET /cluster HTTP/1.0\r\nHost: {host}:{port}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_SIZE_MAX).read_to_end(&mut answer).await?;
    Ok(serde_json::from_slice(body(&answer)?)?)
}

/// The body of an HTTP answer of status 200.
fn body(answer: &[u8]) -> Result<&[u8], Silence> {
    const END_OF_HEAD: &[u8] = b"\r\n\r\n";
    let head_end = answer
        .windows(END_OF_HEAD.len())
        .position(|window| window == END_OF_HEAD)
        .ok_or(Silence::NotHttp)?;
    let (head, body) = answer.split_at(head_end);
    let status = std::str::from_utf8(head)
        .ok()
        .filter(|head| head.starts_with("HTTP/1."))
        .and_then(|head| head.split(' ').nth(1)?.parse().ok())
        .ok_or(Silence::NotHttp)?;
    match status {
        200 => Ok(&body[END_OF_HEAD.len()..]),
        other => Err(Silence::Status(other)),
    }
}

/// Translates Patroni's list. A member is the configured node at the same address, or else the one of the same name.
fn answer(at: Instant, members: &Members, nodes: &[NodeConfig]) -> Answer {
    let nodes: Vec<EngineNode> = members
        .members
        .iter()
        .map(|member| {
            let place = nodes
                .iter()
                .position(|node| node.host == member.host && node.port == member.port)
                .or_else(|| nodes.iter().position(|node| node.name == member.name));
            EngineNode {
                node: place.and_then(|index| u16::try_from(index).ok()).map(NodeId),
                name: member.name.clone(),
                host: member.host.clone(),
                port: member.port,
                reported: member.state.clone(),
                goal: member.role.clone(),
                // A standby_leader leads a cluster of standbys: it takes no writes.
                leads: member.role == "leader",
            }
        })
        .collect();
    let mut leading = nodes.iter().filter(|node| node.leads);
    let primary = match (leading.next(), leading.next()) {
        (Some(one), None) => one.node,
        _ => None,
    };
    Answer {
        at,
        primary,
        candidate: primary,
        nodes,
    }
}
