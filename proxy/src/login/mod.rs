//! Halyard as a client of a node: connecting, TLS, authentication, up to the first ReadyForQuery; and cancels.
//!
//! A node is not trusted further than it must be: its messages are capped, its challenges too, and a password
//! goes out in clear text only where nobody can listen.

mod authenticate;
mod connect;
mod node;

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::{SecretKey, Startup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::node::Node;
use crate::auth::Credential;
use crate::auth::scram::ScramError;
use crate::config::{Config, Limits};
use crate::error::Report;
use crate::stream::Stream;
use crate::tls::TlsPolicy;

/// Largest message taken from a node before its first ReadyForQuery, in bytes.
pub const LOGIN_MESSAGE_SIZE_MAX: usize = 64 * 1024;
/// Most bytes of messages taken from a node before its first ReadyForQuery.
pub const LOGIN_SIZE_MAX: usize = 1024 * 1024;

/// A node as one connects to it. Cheap to clone but for its texts.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name in the configuration, for errors.
    pub name: String,
    /// Host name, IP address, or the absolute directory of a Unix-domain socket.
    pub host: String,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
    /// Whether and how TLS is spoken; never over a Unix-domain socket.
    pub tls: TlsPolicy,
}

/// Bounds on one login.
#[derive(Clone, Debug)]
pub struct LoginLimits {
    /// From the look-up of the name to ReadyForQuery.
    pub timeout: Duration,
    /// Keepalive and `TCP_USER_TIMEOUT`.
    pub limits: Limits,
}

impl LoginLimits {
    /// Takes the pool's connect timeout and the limits of TCP.
    pub fn new(config: &Config) -> Self {
        Self {
            timeout: config.pool.connect_timeout,
            limits: config.limits.clone(),
        }
    }
}

/// A connection to a node, idle after its first ReadyForQuery.
#[derive(Debug)]
pub struct BackendLink {
    /// Its stream.
    pub stream: Stream,
    /// What the node sent after ReadyForQuery: usually nothing.
    pub leftover: Vec<u8>,
    /// What ParameterStatus reported, the newest of each name.
    pub parameters: Vec<(String, String)>,
    /// What cancels its queries.
    pub key: BackendKey,
    /// ReadyForQuery's transaction status, `I` for idle.
    pub transaction_status: u8,
}

/// BackendKeyData; it shows its secret to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct BackendKey {
    /// The process ID of the backend.
    pub pid: i32,
    /// Its secret: 4 bytes in protocol 3.0.
    pub secret: Vec<u8>,
}

impl fmt::Debug for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendKey({}, …)", self.pid)
    }
}

/// Why there is no connection to a node.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Nobody listens there: the node is down.
    #[error("connection refused")]
    Refused,
    /// The time is up.
    #[error("not logged in within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection could not be made, or was lost.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// TLS is wanted and the node has none.
    #[error("the node does not support TLS")]
    TlsUnavailable,
    /// The TLS handshake failed, for example because the certificate is not trusted.
    #[error("TLS handshake: {0}")]
    Tls(#[source] io::Error),
    /// The node refused, in its own words.
    #[error("{0}")]
    Server(Report),
    /// The node said what no PostgreSQL says there.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    /// The SCRAM exchange failed, for example because the node could not prove that it knows the password.
    #[error(transparent)]
    Scram(#[from] ScramError),
    /// The node asks for what Halyard does not speak, or does not speak here.
    #[error("authentication method not supported: {0}")]
    AuthenticationUnsupported(&'static str),
    /// The node asks for a proof, and what is known of the user does not give it.
    #[error("no credential for what the node asks: {0}")]
    NoCredential(&'static str),
}

/// Connects and logs in as `user`. `settings` are startup parameters besides user and database, each name once.
///
/// Cancel safe in the sense that a dropped future closes the connection and leaves nothing behind.
pub async fn log_in(
    target: &Target,
    user: &str,
    database: &str,
    settings: &[(&str, &str)],
    credential: &Credential,
    limits: &LoginLimits,
) -> Result<BackendLink, LoginError> {
    let login = async {
        let stream = connect::connect(target, limits).await?;
        let mut node = Node::new(stream);
        let mut startup = Startup::new();
        startup.parameters.insert("user".to_owned(), user.to_owned());
        startup
            .parameters
            .insert("database".to_owned(), database.to_owned());
        for (name, value) in settings {
            startup.parameters.insert((*name).to_owned(), (*value).to_owned());
        }
        node.send(&startup).await?;
        authenticate::authenticate(&mut node, user, credential).await?;
        node.ready().await
    };
    match tokio::time::timeout(limits.timeout, Box::pin(login)).await {
        Ok(result) => result,
        Err(_) => Err(LoginError::Timeout(limits.timeout)),
    }
}

/// Asks a node to cancel what the backend of `key` does, over TLS where the policy has it. Returns once the node
/// has closed the connection, which it does after it has sent the signal: the caller may then give the backend to
/// somebody else without the cancel hitting them, as far as a signal that was sent can be told to have arrived.
/// All of it takes `limits.timeout` at most.
pub async fn send_cancel(target: &Target, key: &BackendKey, limits: &LoginLimits) -> io::Result<()> {
    let cancel = async {
        let mut stream = connect::connect(target, limits)
            .await
            .map_err(|error| match error {
                LoginError::Io(error) | LoginError::Tls(error) => error,
                LoginError::Refused => io::ErrorKind::ConnectionRefused.into(),
                other => io::Error::other(other),
            })?;
        let secret = SecretKey::Bytes(key.secret.clone().into());
        let mut request = BytesMut::new();
        CancelRequest::new(key.pid, secret)
            .encode(&mut request)
            .map_err(io::Error::other)?;
        stream.write_all(&request).await?;
        stream.flush().await?;
        wait_for_close(&mut stream).await
    };
    match tokio::time::timeout(limits.timeout, Box::pin(cancel)).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A node answers a CancelRequest by closing, with or without TLS's close_notify.
async fn wait_for_close(stream: &mut Stream) -> io::Result<()> {
    let mut ignored = [0; 64];
    loop {
        match stream.read(&mut ignored).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => return Ok(()),
                _ => return Err(error),
            },
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
