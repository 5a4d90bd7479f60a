//! What can go wrong with a cluster, said once: every message is one a person can act on.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::layout::Service;

/// Why a cluster command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// A program or package is not installed.
    #[error("{what} is not installed; `make deps` installs what the cluster needs")]
    Missing {
        /// The program, package or user that was looked for.
        what: String,
    },
    /// A port of the plan is taken by somebody else.
    #[error("port {port} (for {service}) is taken{holder}; choose other ports with --base-port")]
    PortTaken {
        /// The port.
        port: u16,
        /// What was to listen there.
        service: String,
        /// ` by NAME (pid N)` where that can be seen, else empty.
        holder: String,
    },
    /// The file system cannot hold a cluster.
    #[error("{} has {free_mib} MiB free, a cluster needs {needed_mib} MiB; free some or choose another --dir", path.display())]
    NoSpace {
        /// Where the cluster was to live.
        path: PathBuf,
        /// Free space, in MiB.
        free_mib: u64,
        /// Space needed, in MiB.
        needed_mib: u64,
    },
    /// The folder cannot be used, for the reason given.
    #[error("{} cannot hold a cluster: {reason}", path.display())]
    BadFolder {
        /// The folder.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// There is no cluster where one was expected.
    #[error("there is no cluster in {}; `halyard cluster up` makes one", path.display())]
    NoCluster {
        /// The folder that was looked at.
        path: PathBuf,
    },
    /// Another command works on the same cluster.
    #[error("another `halyard cluster` command has been working on {} for more than {} s", path.display(), waited.as_secs())]
    Busy {
        /// The cluster's folder.
        path: PathBuf,
        /// How long this command waited.
        waited: Duration,
    },
    /// The request does not fit the cluster, for the reason given.
    #[error("{0}")]
    Refused(String),
    /// A program that was run to its end failed, or a service ended or was not ready in time.
    #[error("{what}{log}")]
    Step {
        /// What failed, in a sentence.
        what: String,
        /// The last lines that it logged.
        log: LogTail,
    },
    /// A server did not answer a statement, or refused it.
    #[error("{server}: {reason}")]
    Sql {
        /// Which server.
        server: String,
        /// The server's or the driver's words.
        reason: String,
        /// The server's SQLSTATE; none when it did not answer.
        state: Option<SqlState>,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, with the path.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The user pressed Ctrl-C, or the process was asked to end.
    #[error("interrupted")]
    Interrupted,
}

/// The result of everything in this crate.
pub(crate) type Result<T, E = ClusterError> = std::result::Result<T, E>;

impl ClusterError {
    /// Whether a server said that it takes no connections now: it starts, stops or recovers.
    pub(crate) fn is_not_ready(&self) -> bool {
        matches!(self, ClusterError::Sql { state: Some(state), .. } if *state == SqlState::CANNOT_CONNECT_NOW)
    }

    /// For `map_err`: says what was attempted on which path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ClusterError {
        let what = format!("cannot {what} {}", path.display());
        move |source| ClusterError::Io { what, source }
    }

    /// For `map_err` around a statement: names the server and keeps PostgreSQL's own message.
    pub(crate) fn sql(server: Service) -> impl FnOnce(tokio_postgres::Error) -> ClusterError {
        move |error| {
            let reason = match error.as_db_error() {
                Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
                None => error.to_string(),
            };
            ClusterError::Sql {
                server: server.to_string(),
                reason,
                state: error.code().cloned(),
            }
        }
    }
}

/// The end of a log, printed indented below the error that it explains.
#[derive(Debug, Default)]
pub(crate) struct LogTail(Vec<String>);

impl LogTail {
    /// Lines of a log shown with an error. Enough for a PostgreSQL start-up failure with its hints.
    const LINES: usize = 12;

    /// Whether there is nothing to show.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last lines of `text`.
    pub(crate) fn of(text: &str) -> LogTail {
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let skipped = lines.len().saturating_sub(LogTail::LINES);
        LogTail(lines.into_iter().skip(skipped).map(str::to_owned).collect())
    }

    /// The last lines of the files that exist, in the order given.
    pub(crate) fn of_files(paths: &[PathBuf]) -> LogTail {
        let mut lines = Vec::new();
        for path in paths {
            if let Ok(bytes) = std::fs::read(path) {
                lines.extend(LogTail::of(&String::from_utf8_lossy(&bytes)).0);
            }
        }
        LogTail(lines)
    }
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.0 {
            write!(f, "\n    | {line}")?;
        }
        Ok(())
    }
}
