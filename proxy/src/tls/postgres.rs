//! The TLS policy for nodes as tokio-postgres wants it, so that the probes, the engine's connection and the
//! catalogue's readings are encrypted and verified exactly as the sessions' connections are.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client;

use super::{TlsPolicy, end_point};

type BoxError = Box<dyn Error + Send + Sync>;

impl TlsPolicy {
    /// What tokio-postgres is told beside the policy itself. It knows three of libpq's words: what `verify-ca` and
    /// `verify-full` ask for beyond `require`, the connector's verifier sees to.
    pub fn ssl_mode(&self) -> SslMode {
        match self {
            Self::Never => SslMode::Disable,
            Self::IfOffered(_) => SslMode::Prefer,
            Self::Always(_) => SslMode::Require,
        }
    }
}

/// A handshake to come with the node that is known by this name.
pub struct Handshake {
    connector: Option<TlsConnector>,
    host: String,
}

/// A connection inside TLS.
pub struct Encrypted<S>(client::TlsStream<S>);

impl<S> MakeTlsConnect<S> for TlsPolicy
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type TlsConnect = Handshake;
    type Error = BoxError;

    /// Never fails: it is called for connections that stay plain as well, and for Unix sockets, with an empty name.
    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, BoxError> {
        let connector = match self {
            Self::Never => None,
            Self::IfOffered(connector) | Self::Always(connector) => Some(connector.clone()),
        };
        Ok(Handshake {
            connector,
            host: host.to_owned(),
        })
    }
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Encrypted<S>, BoxError>> + Send>>;

    /// Not cancel safe: a dropped handshake closes the connection.
    fn connect(self, socket: S) -> Self::Future {
        Box::pin(async move {
            let connector = self.connector.ok_or("TLS to nodes is switched off")?;
            let name = ServerName::try_from(self.host).map_err(|_| "the host is no name for TLS")?;
            let stream = connector.connect(name, socket).await.map_err(cause)?;
            Ok(Encrypted(stream))
        })
    }
}

/// What rustls found wrong, out of the I/O error around it: a certificate that is not trusted is a refusal, and
/// must not be taken for a connection that was lost.
fn cause(error: io::Error) -> BoxError {
    error
        .downcast::<rustls::Error>()
        .map_or_else(BoxError::from, BoxError::from)
}

impl<S> TlsStream for Encrypted<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// `tls-server-end-point` where RFC 5929 defines it, so that SCRAM is bound to the channel.
    fn channel_binding(&self) -> ChannelBinding {
        let chain = self.0.get_ref().1.peer_certificates();
        chain
            .and_then(|chain| end_point::hash(chain.first()?))
            .map_or_else(ChannelBinding::none, |hash| {
                ChannelBinding::tls_server_end_point(hash.to_vec())
            })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
