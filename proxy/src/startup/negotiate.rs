//! Encryption and the kind of connection: everything before a StartupMessage (manual, "SSL Session Encryption",
//! "GSSAPI Session Encryption", "Canceling Requests in Progress").

use std::io;

use bytes::BytesMut;

use super::client::{Client, Ended, ended};
use super::packet::{self, Packet, STARTUP_PACKET_SIZE_MAX, STARTUP_PACKET_SIZE_MIN, StartupPacket};
use super::{Cancel, CancelKey, Gate, Peer, StartupError};
use crate::error::{Report, SqlState};
use crate::stream::{Socket, Stream};
use crate::tls::{ALPN, Acceptor};

/// The first byte of a TLS handshake record (RFC 8446, section 5.1). No startup packet begins with it: it would
/// be 369 MB long.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the connection is for.
pub(super) enum Opening {
    Closed,
    Cancel(Cancel),
    Startup(Client, StartupPacket),
}

/// Which requests for encryption may still come. Each may come once, and none inside TLS.
struct Open {
    ssl: bool,
    gss: bool,
}

impl Open {
    const BOTH: Open = Open { ssl: true, gss: true };
    const NONE: Open = Open {
        ssl: false,
        gss: false,
    };
}

/// What follows from one packet.
enum Step<'g> {
    /// Another packet comes.
    Again,
    /// The client begins its TLS handshake now.
    Encrypt(&'g Acceptor),
    Cancel(CancelKey),
    Startup(StartupPacket),
}

/// Brings a connection to its StartupMessage or CancelRequest.
pub(super) async fn open(socket: Socket, peer: Peer, gate: &Gate) -> Result<Opening, StartupError> {
    let (mut client, mut open) = if begins_with_tls(&socket).await.map_err(StartupError::Io)? {
        (accept_direct_tls(socket, gate).await?, Open::NONE)
    } else {
        (Client::new(Stream::Plain(socket)), Open::BOTH)
    };
    if let Err(report) = check_alpn(&client.stream) {
        return client.end(report.into()).await.map(|_| Opening::Closed);
    }
    // As in PostgreSQL, there is no TLS over Unix-domain sockets.
    let acceptor = gate.tls.as_ref().filter(|_| peer != Peer::Unix);
    loop {
        match step(&mut client, &mut open, acceptor).await {
            Ok(Step::Again) => {}
            Ok(Step::Encrypt(acceptor)) => {
                client = upgrade(client, acceptor).await?;
                open = Open::NONE;
            }
            Ok(Step::Cancel(key)) => {
                let held = client.stream;
                return Ok(Opening::Cancel(Cancel { key, held }));
            }
            Ok(Step::Startup(packet)) => return Ok(Opening::Startup(client, packet)),
            Err(ended) => return client.end(ended).await.map(|_| Opening::Closed),
        }
    }
}

async fn step<'g>(
    client: &mut Client,
    open: &mut Open,
    acceptor: Option<&'g Acceptor>,
) -> Result<Step<'g>, Ended> {
    let sizes = (STARTUP_PACKET_SIZE_MIN, STARTUP_PACKET_SIZE_MAX);
    let body = client.inbox.startup_packet(&mut client.stream, sizes).await;
    let body = body.map_err(|error| ended(error, "invalid length of startup packet"))?;
    match packet::parse(body)? {
        Packet::SslRequest if open.ssl => {
            open.ssl = false;
            let letter = if acceptor.is_some() { b'S' } else { b'N' };
            answer(client, "SSL", letter).await?;
            Ok(acceptor.map_or(Step::Again, Step::Encrypt))
        }
        Packet::GssEncRequest if open.gss => {
            open.gss = false;
            answer(client, "GSSAPI encryption", b'N').await?;
            Ok(Step::Again)
        }
        misplaced @ (Packet::SslRequest | Packet::GssEncRequest) => Err(packet::misplaced(&misplaced).into()),
        Packet::Cancel(key) => Ok(Step::Cancel(key)),
        Packet::Startup(packet) => Ok(Step::Startup(packet)),
    }
}

/// Answers a request for encryption with one letter. Nothing may have come with the request: it would be taken
/// for encrypted afterwards although anybody could have put it there (CVE-2021-23214).
async fn answer(client: &mut Client, what: &str, letter: u8) -> Result<(), Ended> {
    if !client.inbox.is_empty() {
        let message = format!("received unencrypted data after {what} request");
        return Err(Report::fatal(SqlState::PROTOCOL_VIOLATION, message)
            .with_detail(
                "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
            )
            .into());
    }
    client.send(&mut BytesMut::from(&[letter][..])).await
}

async fn upgrade(client: Client, acceptor: &Acceptor) -> Result<Client, StartupError> {
    match client.stream {
        Stream::Plain(socket) => {
            let tls = acceptor.accept(socket).await.map_err(StartupError::Tls)?;
            Ok(Client::new(Stream::TlsFrontend(tls)))
        }
        // Open::NONE refuses an SSLRequest inside TLS, so this stream is what was asked for.
        encrypted => Ok(Client::new(encrypted)),
    }
}

/// Looks at the first byte and leaves it where it is. False for a connection that ends before it.
async fn begins_with_tls(socket: &Socket) -> io::Result<bool> {
    let Socket::Tcp(tcp) = socket else {
        return Ok(false);
    };
    let mut first = [0];
    match tcp.peek(&mut first).await {
        Ok(size) => Ok(size == 1 && first[0] == TLS_HANDSHAKE),
        // Reading will tell the same, where it is known for a probe.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
        Err(error) => Err(error),
    }
}

async fn accept_direct_tls(socket: Socket, gate: &Gate) -> Result<Client, StartupError> {
    let Some(acceptor) = &gate.tls else {
        // The client speaks TLS and could not read a report.
        return Err(StartupError::Tls(io::Error::new(
            io::ErrorKind::Unsupported,
            "a client asked for direct TLS, and no certificate is configured",
        )));
    };
    let tls = acceptor.accept(socket).await.map_err(StartupError::Tls)?;
    Ok(Client::new(Stream::TlsFrontend(tls)))
}

/// Direct TLS without ALPN could be another protocol's connection, redirected to us (manual, "SSL Session
/// Encryption"). A plain stream has nothing to check yet.
fn check_alpn(stream: &Stream) -> Result<(), Report> {
    let Stream::TlsFrontend(tls) = stream else {
        return Ok(());
    };
    match tls.get_ref().1.alpn_protocol() {
        Some(ALPN) => Ok(()),
        _ => Err(Report::fatal(
            SqlState::PROTOCOL_VIOLATION,
            "received direct SSL connection request without ALPN protocol negotiation extension",
        )),
    }
}
