//! What is set on every TCP connection, to clients and to nodes alike.

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

/// Sets `TCP_NODELAY`, keepalive and `TCP_USER_TIMEOUT` (tcp(7)): a peer that vanished without a word is noticed.
/// A duration of zero leaves the system's default.
pub fn tune(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if !limits.tcp_keepalive.is_zero() {
        let keepalive = TcpKeepalive::new()
            .with_time(limits.tcp_keepalive)
            .with_interval(PROBE_INTERVAL)
            .with_retries(PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if !limits.tcp_user_timeout.is_zero() {
        socket.set_tcp_user_timeout(Some(limits.tcp_user_timeout))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
