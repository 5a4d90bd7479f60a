//! A running pgbench, seen through the progress lines that it prints each second.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use crate::error::{ClusterError, LogTail, Result};
use crate::layout::{DATABASE, HOST, Service};
use crate::record::Record;
use crate::site::Site;

/// Creating and filling pgbench's tables.
const INITIALISE_LIMIT: Duration = Duration::from_secs(120);
/// A progress line comes each second; on a busy machine it may come late.
const LINE_LIMIT: Duration = Duration::from_secs(15);
/// pgbench's branches. With fewer than clients, they would wait for each other's locks.
const SCALE: u32 = 10;
/// Clients that write at the same time.
pub(crate) const CLIENTS: u32 = 8;
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

/// pgbench's TPC-B-like transactions, running against the proxy. Ends when dropped.
pub(crate) struct Pgbench {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    kept: Vec<String>,
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
        Ok(Pgbench {
            child,
            lines: BufReader::new(stderr).lines(),
            kept: Vec::new(),
        })
    }

    /// The next second. Fails when pgbench has ended, as it does once all its clients have given up.
    pub(crate) async fn next(&mut self) -> Result<Progress> {
        loop {
            let line = match tokio::time::timeout(LINE_LIMIT, self.lines.next_line()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) | Ok(Err(_)) => return Err(self.failed("has ended")),
                Err(_) => return Err(self.failed("has gone silent")),
            };
            if let Some(progress) = Progress::parse(&line) {
                return Ok(progress);
            }
            if self.kept.len() == KEPT_LINES {
                self.kept.remove(0);
            }
            self.kept.push(line);
        }
    }

    /// Clients that have given up so far.
    pub(crate) fn aborted_clients(&self) -> usize {
        self.kept.iter().filter(|line| line.contains("aborted")).count()
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn stop(mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill().await;
    }

    fn failed(&self, how: &str) -> ClusterError {
        ClusterError::Step {
            what: format!("pgbench {how}"),
            log: LogTail::of(&self.kept.join("\n")),
        }
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
