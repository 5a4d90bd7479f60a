//! How the cluster is, asked of the servers themselves.

use std::time::Duration;

use serde::Serialize;

use crate::engine::{self, EngineState};
use crate::error::ClusterError;
use crate::layout::{Layout, Ports, Service};
use crate::process::{self, Member};
use crate::record::{NodeEntry, Record, User};
use crate::sql::Session;

/// One server's answer. A frozen server never gives one.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// The whole answer of `halyard cluster status`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    /// Exactly one writable primary, every other node streaming on its timeline, monitor up, and the proxy too
    /// where the cluster has one.
    pub(crate) healthy: bool,
    /// What is not as it should be, in sentences.
    pub(crate) problems: Vec<String>,
    /// The writable primary's name.
    pub(crate) primary: Option<String>,
    /// Every data node.
    pub(crate) nodes: Vec<NodeStatus>,
    /// The engine's monitor.
    pub(crate) monitor: ServiceStatus,
    /// Halyard.
    pub(crate) proxy: ServiceStatus,
}

/// A service without data of the application's.
#[derive(Debug, Serialize)]
pub(crate) struct ServiceStatus {
    /// Where it listens.
    pub(crate) port: u16,
    /// `up`, `frozen`, `down`.
    pub(crate) state: &'static str,
    /// Its leading process.
    pub(crate) pid: Option<u32>,
}

/// One data node as it is now.
#[derive(Debug, Serialize)]
pub(crate) struct NodeStatus {
    /// Its name.
    pub(crate) name: String,
    /// Its port.
    pub(crate) port: u16,
    /// `primary`, `standby`, `read-only` (out of recovery but not writable yet), `not ready` (refuses
    /// connections with an error, as while it starts or stops), `silent` (runs and gives no answer), `frozen`,
    /// `down`.
    pub(crate) role: &'static str,
    /// Timeline that it writes or receives.
    pub(crate) timeline: Option<i32>,
    /// The last position written (primary) or replayed (standby).
    pub(crate) lsn: Option<String>,
    /// Bytes of WAL between the primary's position and what is replayed here.
    pub(crate) lag_bytes: Option<i64>,
    /// The node it streams from.
    pub(crate) upstream: Option<String>,
    /// The engine's state for it, `goal` or `reported → goal`; none for read-only replicas.
    pub(crate) engine_state: Option<String>,
    /// Its postmaster.
    pub(crate) pid: Option<u32>,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    in_recovery: bool,
    read_only: bool,
    timeline: Option<i32>,
    /// The position in bytes, and as PostgreSQL writes it.
    position: Option<(i64, String)>,
    /// The port of the server it streams from, while it does.
    upstream_port: Option<i32>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoAnswer {
    /// The server refuses connections or the question with an error of its own, as while it starts.
    Refused,
    /// Nobody listens there, or nothing came back in time.
    Silent,
}

/// A primary's timeline is in the name of the WAL file it inserts into; pg_control_checkpoint() lags behind a
/// promotion. Subtracting 0/0 makes bytes of a position.
const ASK: &str = "
    SELECT standby, current_setting('default_transaction_read_only')::bool, timeline,
        (position - '0/0'::pg_lsn)::bigint, position::text, upstream_port
    FROM (
        SELECT r AS standby,
            CASE WHEN r THEN received_tli
                ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
            END AS timeline,
            CASE WHEN r THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS position,
            CASE WHEN status = 'streaming' THEN sender_port END AS upstream_port
        FROM pg_is_in_recovery() AS r LEFT JOIN pg_stat_wal_receiver ON true
    ) AS answer";

async fn ask(ports: Ports, service: Service, superuser: User) -> Result<Answer, NoAnswer> {
    let asked = async {
        let session = Session::open(&ports, service, &superuser, "postgres").await?;
        session.rows(ASK).await
    };
    let rows = match tokio::time::timeout(ASK_LIMIT, asked).await {
        Ok(Ok(rows)) => rows,
        Ok(Err(ClusterError::Sql { state: Some(_), .. })) => return Err(NoAnswer::Refused),
        Ok(Err(_)) | Err(_) => return Err(NoAnswer::Silent),
    };
    let row = rows.first().ok_or(NoAnswer::Refused)?;
    let (bytes, text): (Option<i64>, Option<String>) = (row.get(3), row.get(4));
    Ok(Answer {
        in_recovery: row.get(0),
        read_only: row.get(1),
        timeline: row.get(2),
        position: bytes.zip(text),
        upstream_port: row.get(5),
    })
}

/// Asks all nodes at once.
async fn ask_all(record: &Record) -> Vec<Result<Answer, NoAnswer>> {
    let ports = record.ports();
    let asked: Vec<_> = ports
        .data_nodes()
        .map(|service| tokio::spawn(ask(ports.clone(), service, record.users.superuser.clone())))
        .collect();
    let mut answers = Vec::with_capacity(asked.len());
    for answer in asked {
        answers.push(answer.await.unwrap_or(Err(NoAnswer::Silent)));
    }
    answers
}

/// The cluster as it is now.
pub(crate) async fn inspect(layout: &Layout, record: &Record) -> Status {
    let ports = record.ports();
    let (answers, states) = tokio::join!(ask_all(record), engine::states(&ports, &record.users.superuser));
    let members = process::members(layout);
    judge(record, &answers, states.ok().as_deref(), &members)
}

/// The writable primary, if there is exactly one at this moment.
pub(crate) async fn primary(record: &Record) -> Option<Service> {
    let answers = ask_all(record).await;
    let writable = |answer: &Result<Answer, NoAnswer>| answer.as_ref().is_ok_and(Answer::is_writable);
    let mut primaries = record
        .ports()
        .data_nodes()
        .zip(&answers)
        .filter(|(_, answer)| writable(answer));
    let found = primaries.next().map(|(service, _)| service);
    found.filter(|_| primaries.next().is_none())
}

impl Answer {
    fn is_writable(&self) -> bool {
        !self.in_recovery && !self.read_only
    }
}

/// Makes one picture of what was seen. Pure.
fn judge(
    record: &Record,
    answers: &[Result<Answer, NoAnswer>],
    states: Option<&[EngineState]>,
    members: &[Member],
) -> Status {
    let writable: Vec<(&NodeEntry, &Answer)> = record
        .nodes
        .iter()
        .zip(answers)
        .filter_map(|(node, answer)| {
            Some((node, answer.as_ref().ok().filter(|answer| answer.is_writable())?))
        })
        .collect();
    let primary = match writable.as_slice() {
        [(_, answer)] => Some(*answer),
        _ => None,
    };
    let nodes: Vec<NodeStatus> = record
        .nodes
        .iter()
        .zip(answers)
        .map(|(node, answer)| node_status(record, node, answer, primary, states, members))
        .collect();
    let monitor = service_status(Service::Monitor, record.monitor.port, members);
    let proxy = service_status(Service::Proxy, record.proxy.port, members);
    let mut problems = Vec::new();
    match writable.len() {
        1 => {}
        0 => problems.push("no node accepts writes".to_owned()),
        _ => {
            let names: Vec<&str> = writable.iter().map(|(node, _)| node.name.as_str()).collect();
            problems.push(format!("{} accept writes at once", names.join(" and ")));
        }
    }
    problems.extend(nodes.iter().filter_map(|node| problem_of(node, primary)));
    if monitor.state != "up" {
        problems.push(format!(
            "the monitor is {}: no failover can happen",
            monitor.state
        ));
    }
    if proxy.state != "up" && record.proxy.wanted {
        problems.push(format!("the proxy is {}", proxy.state));
    }
    Status {
        healthy: problems.is_empty(),
        problems,
        primary: writable
            .first()
            .filter(|_| writable.len() == 1)
            .map(|(node, _)| node.name.clone()),
        nodes,
        monitor,
        proxy,
    }
}

fn node_status(
    record: &Record,
    node: &NodeEntry,
    answer: &Result<Answer, NoAnswer>,
    primary: Option<&Answer>,
    states: Option<&[EngineState]>,
    members: &[Member],
) -> NodeStatus {
    let service = node.name.parse().unwrap_or(Service::Monitor);
    let postmaster = members
        .iter()
        .find(|member| member.service == service && member.part == process::Part::Postmaster);
    let role = match answer {
        Ok(answer) if answer.in_recovery => "standby",
        Ok(answer) if answer.read_only => "read-only",
        Ok(_) => "primary",
        Err(_) if process::is_frozen(members, service) => "frozen",
        Err(NoAnswer::Refused) => "not ready",
        Err(NoAnswer::Silent) if postmaster.is_some() => "silent",
        Err(NoAnswer::Silent) => "down",
    };
    let answer = answer.as_ref().ok();
    let behind = |own: &Answer| {
        let (head, _) = primary?.position.as_ref()?;
        // The primary was asked at another moment: a standby can seem ahead of it, and is not.
        own.position
            .as_ref()
            .map(|(replayed, _)| (head - replayed).max(0))
    };
    let upstream_name = |port: i32| {
        let upstream = record
            .nodes
            .iter()
            .find(|candidate| i32::from(candidate.port) == port);
        upstream.map_or_else(|| format!("port {port}"), |upstream| upstream.name.clone())
    };
    let state = states.and_then(|states| states.iter().find(|state| state.name == node.name));
    NodeStatus {
        name: node.name.clone(),
        port: node.port,
        role,
        timeline: answer.and_then(|answer| answer.timeline),
        lsn: answer.and_then(|answer| answer.position.as_ref().map(|(_, text)| text.clone())),
        lag_bytes: answer.filter(|answer| answer.in_recovery).and_then(behind),
        upstream: answer.and_then(|answer| answer.upstream_port).map(upstream_name),
        engine_state: state.map(|state| match state.reported == state.goal {
            true => state.goal.clone(),
            false => format!("{} → {}", state.reported, state.goal),
        }),
        pid: postmaster.map(|member| member.pid),
    }
}

/// What is wrong with a node, if anything is.
fn problem_of(node: &NodeStatus, primary: Option<&Answer>) -> Option<String> {
    let name = &node.name;
    match node.role {
        "primary" => None,
        "standby" if node.upstream.is_none() => Some(format!("{name} does not stream from anybody")),
        "standby" => {
            let timeline = primary?.timeline?;
            let own = node.timeline?;
            (own != timeline).then(|| format!("{name} is on timeline {own}, the primary on {timeline}"))
        }
        role => Some(format!("{name} is {role}")),
    }
}

fn service_status(service: Service, port: u16, members: &[Member]) -> ServiceStatus {
    let leader = process::leader(members, service);
    let state = match leader {
        Some(_) if process::is_frozen(members, service) => "frozen",
        Some(_) => "up",
        None => "down",
    };
    ServiceStatus {
        port,
        state,
        pid: leader.map(|member| member.pid),
    }
}

impl Status {
    /// The table that people read.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            [
                "NODE",
                "PORT",
                "ROLE",
                "TIMELINE",
                "LSN",
                "LAG",
                "STREAMS FROM",
                "ENGINE STATE",
            ]
            .map(str::to_owned),
        ];
        for node in &self.nodes {
            let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            lines.push([
                node.name.clone(),
                node.port.to_string(),
                node.role.to_owned(),
                or_dash(node.timeline.map(|timeline| timeline.to_string())),
                or_dash(node.lsn.clone()),
                or_dash(node.lag_bytes.map(|bytes| format!("{bytes} B"))),
                or_dash(node.upstream.clone()),
                or_dash(node.engine_state.clone()),
            ]);
        }
        for (name, service) in [("monitor", &self.monitor), ("proxy", &self.proxy)] {
            let mut line = ["-"; 8].map(str::to_owned);
            line[0] = name.to_owned();
            line[1] = service.port.to_string();
            line[2] = service.state.to_owned();
            lines.push(line);
        }
        columns(&lines)
    }
}

/// Lines with their cells padded to the widest of each column.
pub(crate) fn columns<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
