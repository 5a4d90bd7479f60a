//! A running pgbench, seen through the progress lines that it prints each second.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::error::{ClusterError, LogTail, Result};
use crate::layout::{DATABASE, HOST, Service};
use crate::record::Record;
use crate::site::Site;

/// Creating and filling pgbench's tables.
const INITIALISE_LIMIT: Duration = Duration::from_secs(120);
/// A progress line comes each second; on a busy machine it may come late.
const LINE_LIMIT: Duration = Duration::from_secs(15);
/// pgbench's branches. Every transaction holds one until its COMMIT is answered, so no more than these can be
/// waiting for that answer when the node dies: the other clients are certain of their fate and go on.
const SCALE: u32 = 4;
/// Clients that write at the same time.
pub(crate) const CLIENTS: u32 = 16;
/// An end in case nobody ends it before.
const DURATION_S: u32 = 900;
/// Tries of a transaction that a failover rolled back (SQLSTATE 40001), as an application's retry loop has them.
const TRIES: u32 = 10;
/// Lines kept for an error.
const KEPT_LINES: usize = 40;

/// One second of pgbench.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Progress {
    /// Seconds since it started.
    pub(crate) at_s: f64,
    /// Transactions per second since the last line.
    pub(crate) tps: f64,
}

/// What its lines have told so far.
#[derive(Debug, Default)]
struct Seen {
    /// The newest second; none before the first.
    latest: Option<Progress>,
    /// Transactions run again after a certain rollback.
    retried: usize,
    /// Clients that gave up, as pgbench does on any error but a serialization failure.
    gave_up: usize,
    /// The last lines that are no progress, for an error.
    kept: VecDeque<String>,
}

/// pgbench's TPC-B-like transactions, running against the proxy. Ends when dropped.
pub(crate) struct Pgbench {
    child: Child,
    /// Fed by a task that reads as lines come, so that the newest is new.
    seen: watch::Receiver<Seen>,
}

impl Pgbench {
    /// Creates and fills its tables through the proxy.
    pub(crate) async fn initialise(site: &Site, record: &Record) -> Result<()> {
        let mut command = command(site, record);
        command.args(["--initialize", "--quiet", "--scale", &SCALE.to_string()]);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command
            .spawn()
            .map_err(ClusterError::io("start", Path::new("pgbench")))?;
        let ended = tokio::time::timeout(INITIALISE_LIMIT, child.wait_with_output()).await;
        let (what, log) = match ended {
            Ok(Ok(output)) if output.status.success() => return Ok(()),
            Ok(Ok(output)) => ("failed", LogTail::of(&String::from_utf8_lossy(&output.stderr))),
            Ok(Err(_)) | Err(_) => ("did not end in time", LogTail::default()),
        };
        Err(ClusterError::Step {
            what: format!("pgbench --initialize through the proxy {what}"),
            log,
        })
    }

    /// Starts it.
    pub(crate) fn start(site: &Site, record: &Record) -> Result<Pgbench> {
        let mut command = command(site, record);
        command
            .args([
                "--builtin=tpcb-like",
                "--no-vacuum",
                "--progress=1",
                "--jobs=2",
                "--verbose-errors",
            ])
            .arg(format!("--client={CLIENTS}"))
            .arg(format!("--time={DURATION_S}"))
            .arg(format!("--max-tries={TRIES}"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(ClusterError::io("start", Path::new("pgbench")))?;
        let stderr = child.stderr.take().expect("it was asked to be a pipe");
        let (told, seen) = watch::channel(Seen::default());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                told.send_modify(|seen| seen.take(line));
            }
        });
        Ok(Pgbench { child, seen })
    }

    /// The next second that ends. Fails when pgbench has ended, as it does once all its clients have given up.
    pub(crate) async fn next(&mut self) -> Result<Progress> {
        let before = self.seen.borrow_and_update().latest;
        let told = self.seen.wait_for(|seen| seen.latest != before);
        let how = match tokio::time::timeout(LINE_LIMIT, told).await {
            Ok(Ok(seen)) => return Ok(seen.latest.expect("it differs from the one before")),
            Ok(Err(_)) => "has ended",
            Err(_) => "has gone silent",
        };
        let log = LogTail::of(&Vec::from(self.seen.borrow().kept.clone()).join("\n"));
        Err(ClusterError::Step {
            what: format!("pgbench {how}"),
            log,
        })
    }

    /// Transactions that were run again, and clients that gave up.
    pub(crate) fn losses(&self) -> (usize, usize) {
        let seen = self.seen.borrow();
        (seen.retried, seen.gave_up)
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn stop(mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill().await;
    }
}

impl Seen {
    fn take(&mut self, line: String) {
        if let Some(progress) = Progress::parse(&line) {
            self.latest = Some(progress);
            return;
        }
        self.retried += usize::from(line.contains(" repeats the transaction "));
        self.gave_up += usize::from(line.contains(" aborted in command "));
        if self.kept.len() == KEPT_LINES {
            self.kept.pop_front();
        }
        self.kept.push_back(line);
    }
}

fn command(site: &Site, record: &Record) -> Command {
    let mut command = Command::new(site.postgresql("pgbench"));
    command
        .env("PGPASSFILE", site.layout.pgpass())
        .args(["--host", HOST, "--username", &record.users.app.name])
        .args(["--port", &record.ports().of(Service::Proxy).to_string()])
        .stdin(Stdio::null());
    command.env("PGDATABASE", DATABASE);
    command
}

impl Progress {
    /// Reads `progress: 3.0 s, 512.3 tps, lat 15.6 ms stddev 4.1, 0 failed`.
    fn parse(line: &str) -> Option<Progress> {
        let mut parts = line.strip_prefix("progress: ")?.split(", ");
        let at_s = parts.next()?.strip_suffix(" s")?.parse().ok()?;
        let tps = parts.next()?.strip_suffix(" tps")?.parse().ok()?;
        Some(Progress { at_s, tps })
    }
}

#[cfg(test)]
mod tests;
