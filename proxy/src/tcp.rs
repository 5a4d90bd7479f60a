//! What is set on TCP connections, to clients and to nodes.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::config::Limits;

/// Keepalive probes that may go unanswered, a [`PROBE_INTERVAL`] apart, before the kernel gives the peer up.
/// `TCP_USER_TIMEOUT` overrules this while data is in flight.
const PROBES: u32 = 3;
/// Between two keepalive probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// A connection to a node: as [`tune_client`], with its own `TCP_USER_TIMEOUT`.
pub fn tune_node(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    tune(stream, limits.tcp_keepalive, limits.tcp_user_timeout)
}

/// A client's connection. `TCP_USER_TIMEOUT` ends one whose client takes nothing for so long as well, though it is alive
/// and acknowledges (`tcp_probe_timer` in Linux's `tcp_timer.c`); hence only where that is asked for.
pub fn tune_client(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    tune(stream, limits.tcp_keepalive, limits.client_tcp_user_timeout)
}

/// Sets `TCP_NODELAY`, keepalive and `TCP_USER_TIMEOUT` (tcp(7)): a peer that vanished without a word is noticed.
/// A duration of zero, or none, leaves the system's default.
fn tune(stream: &TcpStream, tcp_keepalive: Duration, tcp_user_timeout: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if !tcp_keepalive.is_zero() {
        let keepalive = TcpKeepalive::new()
            .with_time(tcp_keepalive)
            .with_interval(PROBE_INTERVAL)
            .with_retries(PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if tcp_user_timeout.is_some() {
        socket.set_tcp_user_timeout(tcp_user_timeout)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
