//! Accepting clients and handing each to a worker.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::app::{App, NextLeg, Place, Workers};
use crate::config::{self, ListenAddress, ListenerRole};
use crate::console;
use crate::metrics::Counter;
use crate::session::{Session, greet};
use crate::startup::{Accepted, Peer, accept, turn_away};
use crate::stream::Socket;
use crate::tcp;

/// Connections that the kernel keeps before they are accepted.
const BACKLOG: u32 = 4096;
/// Pause after accept() failed for want of descriptors or memory, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client that is turned away may take to read why.
const REFUSAL_LIMIT: Duration = Duration::from_millis(500);

/// One bound place where clients connect.
pub(crate) struct Listener {
    config: config::Listener,
    socket: Bound,
}

enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A client's socket that no reactor knows: its worker's will.
enum Unregistered {
    Tcp(std::net::TcpStream, SocketAddr),
    Unix(std::os::unix::net::UnixStream),
}

impl Bound {
    /// Cancel safe.
    async fn accept(&self) -> io::Result<Unregistered> {
        match self {
            Bound::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Unregistered::Tcp(stream.into_std()?, peer))
            }
            Bound::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Unregistered::Unix(stream.into_std()?))
            }
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.config.address {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Binds all listeners.
///
/// # Errors
/// The first that cannot be bound, by its address.
pub(crate) async fn bind_all(listeners: &[config::Listener]) -> io::Result<Vec<Listener>> {
    listeners
        .iter()
        .map(|listener| {
            bind(listener).map_err(|error| {
                let address = match &listener.address {
                    ListenAddress::Tcp(address) => address.to_string(),
                    ListenAddress::Unix(path) => path.display().to_string(),
                };
                io::Error::new(
                    error.kind(),
                    format!("cannot listen for clients on {address}: {error}"),
                )
            })
        })
        .collect()
}

fn bind(listener: &config::Listener) -> io::Result<Listener> {
    let socket = match &listener.address {
        ListenAddress::Tcp(address) => {
            let socket = if address.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }?;
            socket.set_reuseaddr(true)?;
            socket.bind(*address)?;
            Bound::Tcp(socket.listen(BACKLOG)?)
        }
        ListenAddress::Unix(path) => {
            remove_stale_socket(path)?;
            Bound::Unix(UnixListener::bind(path)?)
        }
    };
    Ok(Listener {
        config: listener.clone(),
        socket,
    })
}

/// A socket that nobody listens on is what a process that was killed left behind.
pub(crate) fn remove_stale_socket(path: &std::path::Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

impl Listener {
    /// What the port offers.
    pub(crate) fn role(&self) -> ListenerRole {
        self.config.role
    }

    /// Accepts clients until `stop`. A failing accept() is logged and tried again; it never ends the loop.
    pub(crate) async fn serve(self, app: Arc<App>, workers: Workers, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok(client) => {
                    let (app, role) = (Arc::clone(&app), self.config.role);
                    workers.place(NextLeg::new(move |place| serve_client(app, client, role, place)));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(address = %self, %error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        if let ListenAddress::Unix(path) = &self.config.address {
            // Somebody may have taken it away already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Serves one client from its first byte to its last.
async fn serve_client(
    app: Arc<App>,
    client: Unregistered,
    role: ListenerRole,
    place: Arc<Place>,
) -> Option<NextLeg> {
    let counters = app.counters();
    counters.add(Counter::ClientConnections, 1);
    let peer = match &client {
        Unregistered::Tcp(_, peer) => Peer::Tcp(*peer),
        Unregistered::Unix(_) => Peer::Unix,
    };
    let socket = match register(client, &app) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(?peer, %error, "a client was gone before it was served");
            return None;
        }
    };
    let limit = app.config.limits.startup_timeout;
    let (admitted, accepted) = match app.admit() {
        Ok(admitted) => (
            Some(admitted),
            timeout(limit, Box::pin(accept(socket, peer, app.gate()))).await,
        ),
        Err(report) => {
            counters.add(Counter::ClientsRefused, 1);
            tracing::warn!(?peer, reason = %report, "a client was turned away");
            // It may be a CancelRequest, which is heard however many clients there are.
            (
                None,
                timeout(
                    REFUSAL_LIMIT,
                    Box::pin(turn_away(socket, peer, app.gate(), report)),
                )
                .await,
            )
        }
    };
    let accepted = match accepted {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            counters.add(Counter::LoginsRejected, 1);
            // A stranger's words are in it: they are quoted so that they cannot begin a line of the log.
            tracing::info!(?peer, reason = ?error.to_string(), "a client did not get in");
            return None;
        }
        Err(_) => {
            counters.add(Counter::LoginsRejected, 1);
            tracing::info!(
                ?peer,
                limit_seconds = limit.as_secs_f64(),
                "a client did not log in in time"
            );
            return None;
        }
    };
    let permit = admitted.map(|admitted| admitted.place);
    match accepted {
        Accepted::Nothing => {}
        Accepted::Cancel(cancel) => {
            if !app.registry.cancel(&cancel.key, Some(cancel.held)) {
                counters.add(Counter::CancelsIgnored, 1);
            }
        }
        Accepted::Login(login) => {
            counters.add(Counter::LoginsAccepted, 1);
            if console::is_wanted(&app, &login.database) {
                Box::pin(console::serve(app, login, peer)).await;
                return None;
            }
            if let Some(session) = Box::pin(greet(app, login, role, peer)).await {
                return next_leg(session.run(&place).await, permit);
            }
        }
    }
    None
}

/// Where a session that left its thread goes on; nowhere if it is over.
#[expect(
    clippy::only_used_in_recursion,
    reason = "the permit is held for as long as the client is carried"
)]
fn next_leg(session: Option<Session>, permit: Option<OwnedSemaphorePermit>) -> Option<NextLeg> {
    let session = session?;
    Some(NextLeg::new(move |place: Arc<Place>| async move {
        let session = session.arrive()?;
        next_leg(session.run(&place).await, permit)
    }))
}

fn register(client: Unregistered, app: &App) -> io::Result<Socket> {
    match client {
        Unregistered::Tcp(stream, _) => {
            let stream = TcpStream::from_std(stream)?;
            tcp::tune_client(&stream, &app.config.limits)?;
            Ok(Socket::Tcp(stream))
        }
        Unregistered::Unix(stream) => Ok(Socket::Unix(UnixStream::from_std(stream)?)),
    }
}
