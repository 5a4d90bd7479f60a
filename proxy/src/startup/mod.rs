//! From an accepted socket to a client that is known: encryption, startup packet, rules, authentication.
//!
//! ```text
//!  socket ─▶ negotiate: direct TLS │ SSLRequest │ GSSENCRequest ─▶ CancelRequest ─▶ Accepted::Cancel
//!                                                               └▶ StartupMessage ─▶ rules ─▶ authenticate ─▶ Accepted::Login
//! ```
//! What PostgreSQL refuses is refused in its words (src/backend/tcop/backend_startup.c, src/backend/libpq/auth.c).
//! pgwire encodes our messages; what a client sends is read here, with its lengths checked first.

mod authenticate;
mod client;
mod negotiate;
mod options;
mod packet;
mod rules;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use bytes::BytesMut;
use pgwire::messages::startup::{Authentication, NegotiateProtocolVersion};

use self::client::{Client, Ended};
use self::negotiate::Opening;
use self::packet::StartupPacket;
use self::rules::{Proof, Visitor};
use crate::auth::{Credential, PasswordMethod, UserError, Users};
use crate::config::{Auth, AuthRule, ClientTls, Config};
use crate::error::{Report, SqlState};
use crate::stream::{Socket, Stream};
use crate::tls::{Acceptor, TlsError};

pub use self::packet::{ProtocolVersion, Replication, STARTUP_PACKET_SIZE_MAX};

/// What every new client is held against. Built once for a configuration and never changed.
#[derive(Debug)]
pub struct Gate {
    rules: Vec<AuthRule>,
    users: Users,
    tls: Option<Acceptor>,
    tls_required: bool,
}

/// Why a configuration makes no gate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A user's secret, or its name.
    #[error(transparent)]
    User(#[from] UserError),
    /// Certificate or key.
    #[error("TLS to clients: {0}")]
    Tls(#[from] TlsError),
}

impl Gate {
    /// Reads certificates and derives a SCRAM verifier for each plain password: some milliseconds of CPU for each,
    /// and never again.
    pub fn new(config: &Config) -> Result<Self, GateError> {
        Self::build(&config.auth, config.client_tls.as_ref())
    }

    fn build(auth: &Auth, tls: Option<&ClientTls>) -> Result<Self, GateError> {
        Ok(Self {
            rules: auth.rules.clone(),
            users: Users::new(&auth.users)?,
            tls: tls.map(Acceptor::new).transpose()?,
            tls_required: tls.is_some_and(|tls| tls.required),
        })
    }

    /// What can log in to the nodes as `user` before any client has proved anything: for connections made in
    /// advance.
    pub fn credential(&self, user: &str) -> Credential {
        self.users.credential(user)
    }
}

/// Where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// TCP, from this address.
    Tcp(SocketAddr),
    /// A Unix-domain socket.
    Unix,
}

/// What a connection turned out to be.
#[derive(Debug)]
pub enum Accepted {
    /// A client that has proved who it is.
    Login(Box<Login>),
    /// A CancelRequest.
    Cancel(Cancel),
    /// A client that went away before it was anybody: a probe, or psql that asks its user for the password first.
    /// Not worth a word in the log.
    Nothing,
}

/// A client that has proved who it is, and has not been told so yet.
#[derive(Debug)]
pub struct Login {
    /// Its stream.
    pub stream: Stream,
    /// What the client sent after the last message of its authentication: the beginning of its first query.
    pub leftover: Vec<u8>,
    /// What the client has still to be told: AuthenticationSASLFinal and AuthenticationOk. The session appends
    /// ParameterStatus, BackendKeyData and ReadyForQuery and writes once.
    pub pending: Vec<u8>,
    /// The user; never empty.
    pub user: String,
    /// The database: the user's name where the client named none.
    pub database: String,
    /// Settings from the startup packet, those from `options` first, each name once without regard to case. They
    /// are not checked beyond that: a node may not know them.
    pub settings: Vec<(String, String)>,
    /// Whether the client wants to be a replication connection.
    pub replication: Option<Replication>,
    /// What the session speaks.
    pub protocol: ProtocolVersion,
    /// What may log in to the nodes on this user's behalf.
    pub credential: Credential,
}

impl Login {
    /// Turns the client away after all, with its authentication told and a FATAL report behind it. Waits at most
    /// half a second for the client to have read it.
    pub async fn refuse(mut self, report: &Report) {
        use tokio::io::AsyncWriteExt;
        // A client that is gone needs no farewell either; the report is the caller's to log.
        if self.stream.write_all(&self.pending).await.is_ok() {
            client::say_farewell(&mut self.stream, report).await;
        }
    }
}

/// A CancelRequest.
#[derive(Debug)]
pub struct Cancel {
    /// Which session is meant.
    pub key: CancelKey,
    /// The client's stream. A client takes the close for the sign that the cancel has been passed on (PQcancel
    /// waits for it), so keep it until then.
    pub held: Stream,
}

/// What names a session to CancelRequest; it shows its secret to nobody.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CancelKey {
    /// The process ID of BackendKeyData.
    pub pid: i32,
    /// The secret of BackendKeyData: 4 bytes in protocol 3.0, 4 to 256 in 3.2.
    pub secret: Vec<u8>,
}

impl CancelKey {
    /// How many bytes a secret may have.
    pub const SECRET_SIZES: RangeInclusive<usize> = 4..=256;
}

impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelKey({}, …)", self.pid)
    }
}

/// Why a client did not become a session. Nothing is left to be told to it.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The client has been told this, and the connection is closed.
    #[error("{0}")]
    Refused(Report),
    /// The TLS handshake failed; rustls has sent its alert.
    #[error("TLS handshake: {0}")]
    Tls(io::Error),
    /// The connection was lost in the middle of a message.
    #[error("{0}")]
    Io(io::Error),
}

/// Takes a client from its first byte to the end of its authentication.
///
/// It sets no deadline: wrap it into `limits.startup_timeout`. Dropping the future closes the connection without
/// a word, and leaves nothing behind.
pub async fn accept(socket: Socket, peer: Peer, gate: &Gate) -> Result<Accepted, StartupError> {
    match Box::pin(negotiate::open(socket, peer, gate)).await? {
        Opening::Closed => Ok(Accepted::Nothing),
        Opening::Cancel(cancel) => Ok(Accepted::Cancel(cancel)),
        Opening::Startup(mut client, packet) => match admit(&mut client, peer, gate, &packet).await {
            Ok(admission) => Ok(Accepted::Login(Box::new(admission.login(client, packet)))),
            Err(ended) => client.end(ended).await,
        },
    }
}

/// Tells a client why it cannot be served now, for example with 53300 at the limit of connections. A CancelRequest
/// is served all the same: it frees what the others wait for. As [`accept`], it sets no deadline.
pub async fn turn_away(
    socket: Socket,
    peer: Peer,
    gate: &Gate,
    report: Report,
) -> Result<Accepted, StartupError> {
    match Box::pin(negotiate::open(socket, peer, gate)).await? {
        Opening::Closed => Ok(Accepted::Nothing),
        Opening::Cancel(cancel) => Ok(Accepted::Cancel(cancel)),
        Opening::Startup(client, _) => client.end(Ended::Refused(report)).await,
    }
}

/// What an admitted client has still to be told, and what it left in our hands.
struct Admission {
    pending: BytesMut,
    credential: Credential,
}

impl Admission {
    fn login(self, client: Client, packet: StartupPacket) -> Login {
        Login {
            stream: client.stream,
            leftover: client.inbox.into_leftover(),
            pending: self.pending.into(),
            user: packet.user,
            database: packet.database,
            settings: packet.settings,
            replication: packet.replication,
            protocol: packet.version,
            credential: self.credential,
        }
    }
}

/// Holds a client against the rules and has it prove who it is.
async fn admit(
    client: &mut Client,
    peer: Peer,
    gate: &Gate,
    packet: &StartupPacket,
) -> Result<Admission, Ended> {
    let mut pending = BytesMut::new();
    if let Some(negotiation) = &packet.negotiation {
        let options = negotiation.unsupported_options.clone();
        authenticate::put(
            &NegotiateProtocolVersion::new(packet.version.number(), options),
            &mut pending,
        );
    }
    let encrypted = client.stream.is_tls();
    if gate.tls_required && !encrypted && peer != Peer::Unix {
        return Err(tls_required().into());
    }
    let visitor = Visitor {
        peer,
        encrypted,
        user: &packet.user,
        database: &packet.database,
        replication: packet.replication,
    };
    let method = match rules::decide(&gate.rules, visitor)? {
        Proof::ScramSha256 => Some(PasswordMethod::ScramSha256),
        Proof::Md5 => Some(PasswordMethod::Md5),
        Proof::Nothing => None,
    };
    let credential = match method {
        None => gate.users.credential(&packet.user),
        Some(method) => {
            let challenge = gate.users.challenge(&packet.user, method);
            let end_point = gate
                .tls
                .as_ref()
                .filter(|_| encrypted)
                .and_then(Acceptor::end_point);
            authenticate::authenticate(client, &packet.user, challenge, end_point, &mut pending).await?
        }
    };
    authenticate::put(&Authentication::Ok, &mut pending);
    Ok(Admission { pending, credential })
}

fn tls_required() -> Report {
    Report::fatal(
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        "connection is not encrypted and this server takes none that is not",
    )
    .with_hint("Connect with sslmode=require or a stronger one.")
}

#[cfg(test)]
mod tests;
