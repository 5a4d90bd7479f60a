//! What operators and their tools see: `/metrics`, `/livez`, `/readyz`, `/status` and `/cluster`.
//!
//! Only GET and HEAD are answered, no request has a body, every connection carries one request, and each of its steps
//! has a limit, so that whoever reaches the port can take up [`CONNECTIONS_MAX`] connections for [`CONNECTION_TIME_MAX`]
//! and nothing else. Nobody is asked for a password: the default address is loopback.

mod answer;
mod client;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::app::Event;
use crate::status::Status;
use answer::answer;
pub use client::{Answer, ClientError, fetch};

/// Most connections at a time; those beyond are answered 503 and closed.
const CONNECTIONS_MAX: usize = 64;

/// From connect to the end of the answer.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);

/// From connect until the request's head is complete.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);

/// Largest head of a request, in bytes; a larger one is answered 431.
const HEAD_SIZE_MAX: usize = 8 * 1024;

/// Most header fields in a request; with more of them it is answered 431.
const HEADERS_MAX: usize = 64;

/// Pause after accept() failed for want of descriptors or memory, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Between two drainings of the histograms, which otherwise would grow until somebody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long requests under way may take once Halyard shuts down.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(1);

/// The answer to a connection beyond [`CONNECTIONS_MAX`].
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What the proxy shows of itself. Called at a request only, on a thread where blocking is allowed; an implementation
/// takes no lock that the data plane takes.
pub trait Outlook: Send + Sync + 'static {
    /// Whether clients should be sent here: there is a usable primary or standby, and nobody is draining.
    ///
    /// # Errors
    /// The reasons why not, for people.
    fn ready(&self) -> Result<(), Vec<String>>;

    /// A snapshot of everything.
    fn status(&self) -> Status;

    /// What has happened to the cluster, the oldest first.
    fn events(&self) -> Vec<Event>;

    /// Hands what was counted to the recorder; called before each scrape.
    fn publish_metrics(&self);
}

/// Binds the address of `[http]`.
///
/// # Errors
/// The system's reason, with the address and the setting.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let reason = format!("cannot listen on {address}, the address of [http]: {error}");
        io::Error::new(error.kind(), reason)
    })
}

/// Answers until `shutdown` is cancelled. Must run on a runtime with timers, other than those that carry sessions.
pub async fn serve(
    listener: TcpListener,
    outlook: Arc<dyn Outlook>,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let mut upkeep = interval(UPKEEP_INTERVAL);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            _ = upkeep.tick() => {
                metrics.run_upkeep();
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    connections.spawn(connection(stream, Arc::clone(&outlook), metrics.clone(), place));
                }
                Err(_) => {
                    debug!(%peer, "HTTP connection refused: {CONNECTIONS_MAX} are open");
                    // A new socket's buffer takes this at once; a client that goes away meanwhile needs no answer.
                    let _ = stream.try_write(BUSY);
                }
            },
            Err(error) => {
                warn!(%error, "accept failed on the HTTP port");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    let _ = timeout(SHUTDOWN_TIME_MAX, connections.wait()).await;
}

/// Serves one connection, which holds its place until it ends.
async fn connection(
    stream: TcpStream,
    outlook: Arc<dyn Outlook>,
    metrics: PrometheusHandle,
    _place: OwnedSemaphorePermit,
) {
    let service = service_fn(|request| {
        let (outlook, metrics) = (Arc::clone(&outlook), metrics.clone());
        async move { Ok::<_, Infallible>(answer(&request, outlook, metrics).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_header_size(HEAD_SIZE_MAX)
        .max_buf_size(2 * HEAD_SIZE_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIME_MAX, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "HTTP connection ended"),
        Err(_) => debug!("HTTP connection closed: it took longer than {CONNECTION_TIME_MAX:?}"),
    }
}

#[cfg(test)]
mod tests;
