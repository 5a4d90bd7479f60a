//! From a target to a stream: names, sockets, TLS.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::startup::SslRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::{LoginError, LoginLimits, Target};
use crate::stream::{Socket, Stream};
use crate::tcp;
use crate::tls::{self, TlsPolicy};

/// Connects, and encrypts as the target's policy says.
pub(super) async fn connect(target: &Target, limits: &LoginLimits) -> Result<Stream, LoginError> {
    if target.host.starts_with('/') {
        let socket = connect_unix(target).await?;
        return Ok(Stream::Plain(Socket::Unix(socket)));
    }
    let tcp = connect_tcp(target, limits).await?;
    tcp::tune_node(&tcp, &limits.limits)?;
    let socket = Socket::Tcp(tcp);
    match &target.tls {
        TlsPolicy::Never => Ok(Stream::Plain(socket)),
        TlsPolicy::IfOffered(connector) => match ask_for_tls(socket).await? {
            Answer::Willing(socket) => encrypt(connector, target, socket).await,
            Answer::Unwilling(socket) => Ok(Stream::Plain(socket)),
        },
        TlsPolicy::Always(connector) => match ask_for_tls(socket).await? {
            Answer::Willing(socket) => encrypt(connector, target, socket).await,
            Answer::Unwilling(_) => Err(LoginError::TlsUnavailable),
        },
    }
}

async fn connect_unix(target: &Target) -> Result<UnixStream, LoginError> {
    let path = Path::new(&target.host).join(format!(".s.PGSQL.{}", target.port));
    UnixStream::connect(path)
        .await
        .map_err(|error| match error.kind() {
            // A stopped server has removed its socket.
            io::ErrorKind::NotFound => LoginError::Refused,
            _ => refused_or_io(error),
        })
}

/// Tries the addresses of the name in order. Each gets an equal share of the time left, so that one black hole
/// does not take it all.
async fn connect_tcp(target: &Target, limits: &LoginLimits) -> Result<TcpStream, LoginError> {
    let deadline = Instant::now() + limits.timeout;
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((target.host.as_str(), target.port))
        .await?
        .collect();
    let mut last_error = LoginError::Io(io::Error::new(
        io::ErrorKind::NotFound,
        "the host name has no address",
    ));
    for (index, address) in addresses.iter().enumerate() {
        let addresses_left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / addresses_left;
        last_error = match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => refused_or_io(error),
            Err(_) => LoginError::Timeout(limits.timeout),
        };
    }
    Err(last_error)
}

fn refused_or_io(error: io::Error) -> LoginError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => LoginError::Refused,
        _ => LoginError::Io(error),
    }
}

enum Answer {
    Willing(Socket),
    Unwilling(Socket),
}

async fn ask_for_tls(mut socket: Socket) -> Result<Answer, LoginError> {
    let mut request = BytesMut::new();
    SslRequest::new()
        .encode(&mut request)
        .expect("an SSLRequest has eight bytes");
    socket.write_all(&request).await?;
    // One byte and no more: whatever follows it belongs to the handshake, where injected bytes do no harm
    // (CVE-2021-23222).
    match socket.read_u8().await? {
        b'S' => Ok(Answer::Willing(socket)),
        b'N' => Ok(Answer::Unwilling(socket)),
        // An ErrorResponse; nothing vouches for its text yet (CVE-2024-10977).
        b'E' => Err(LoginError::Protocol("the node answered SSLRequest with an error")),
        _ => Err(LoginError::Protocol(
            "the node answered SSLRequest with neither S nor N",
        )),
    }
}

async fn encrypt(connector: &TlsConnector, target: &Target, socket: Socket) -> Result<Stream, LoginError> {
    let tls = tls::connect(connector, &target.host, socket)
        .await
        .map_err(LoginError::Tls)?;
    Ok(Stream::TlsBackend(tls))
}
