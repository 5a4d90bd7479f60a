//! The control socket: a Unix socket by which whoever runs Halyard, and root, hold transactions from another program.
//!
//! `halyard cluster switchover` is that program: it holds what goes to the primary, has the engine promote another node,
//! and lets go. A hold lasts until there is another primary, as the routing table has it: nobody knows sooner. And it
//! lasts no longer than the connection that asked for it, so it ends with that program, however that ends, and after
//! [`HOLD_MAX`] at the latest.
//!
//! One line is asked and one answered:
//! ```text
//! hold primary 10000      new transactions on the primary, once those open are over, at most these milliseconds
//! held                    until the primary is another, or the connection is closed
//! refused: 2 transactions are open still after 10000 ms
//! ```

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Pauses, Scope};
use crate::listener::remove_stale_socket;

/// Connections at a time; those beyond are closed.
const CONNECTIONS_MAX: usize = 4;
/// Until the line has come.
const LINE_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of the line.
const LINE_SIZE_MAX: u64 = 256;
/// Longest wait for open transactions that may be asked for.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Longest hold: the statements held are given up before (`failover.hold`).
const HOLD_MAX: Duration = Duration::from_secs(600);
/// Pause after accept() failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket. Its file is removed when this is dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Who may use it besides root.
    owner: u32,
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Hold(Scope, Duration),
}

impl ControlSocket {
    /// Listens on `path`, where nobody but the process's user, and root, can connect. What an earlier process left
    /// there is removed.
    ///
    /// # Errors
    /// The system's reason, with the path; somebody listens there already.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| {
            let reason = format!(
                "cannot listen on {}, the general.control_socket: {error}",
                path.display()
            );
            io::Error::new(error.kind(), reason)
        };
        remove_stale_socket(path).map_err(named)?;
        let listener = UnixListener::bind(path).map_err(named)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(named)?;
        let owner = std::fs::metadata(path).map_err(named)?.uid();
        Ok(Self {
            listener,
            path: path.to_owned(),
            owner,
        })
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, pauses: Arc<Pauses>, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the control socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // The file's mode was another one for a moment.
            let may = stream
                .peer_cred()
                .is_ok_and(|peer| [0, self.owner].contains(&peer.uid()));
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                continue;
            };
            if may {
                let pauses = Arc::clone(&pauses);
                let work = shutdown.clone().run_until_cancelled_owned(async move {
                    let _place = place;
                    if let Err(error) = converse(stream, &pauses).await {
                        tracing::debug!(%error, "a connection to the control socket broke");
                    }
                });
                tokio::spawn(work);
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // What is left is removed by the next process.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn converse(stream: UnixStream, pauses: &Arc<Pauses>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader).take(LINE_SIZE_MAX);
    let mut line = String::new();
    timeout(LINE_TIME_MAX, reader.read_line(&mut line)).await??;
    let Wanted::Hold(scope, limit) = match parse(&line) {
        Ok(wanted) => wanted,
        Err(reason) => return writer.write_all(format!("refused: {reason}\n").as_bytes()).await,
    };
    // Nothing more is said by the client: what can be read is the end.
    let mut rest = reader.into_inner();
    let mut byte = [0; 1];
    let paused = tokio::select! {
        paused = pauses.pause(scope.clone(), limit) => paused,
        _ = rest.read(&mut byte) => return Ok(()),
    };
    let paused = match paused {
        Ok(paused) => paused,
        Err(open) => return writer.write_all(format!("refused: {open}\n").as_bytes()).await,
    };
    tracing::info!(%scope, "transactions are held for the control socket");
    let moved = pauses.primary_moved();
    writer.write_all(b"held\n").await?;
    tokio::select! {
        () = moved => {}
        _ = rest.read(&mut byte) => {}
        () = tokio::time::sleep(HOLD_MAX) => tracing::warn!("transactions were held for {HOLD_MAX:?}"),
    }
    drop(paused);
    tracing::info!(%scope, "transactions go on");
    Ok(())
}

fn parse(line: &str) -> Result<Wanted, String> {
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("hold"), Some(scope), Some(limit), None) => {
            let scope = match scope {
                "primary" => Scope::Primary,
                "all" => Scope::All,
                other => return Err(format!("{other:?} cannot be held; what can is primary and all")),
            };
            let limit = limit
                .parse()
                .map_err(|_| format!("{limit:?} are no milliseconds"))?;
            Ok(Wanted::Hold(scope, Duration::from_millis(limit).min(WAIT_MAX)))
        }
        _ => Err("a request is: hold primary|all MILLISECONDS".to_owned()),
    }
}

#[cfg(test)]
mod tests;
