//! TLS on both legs, by rustls with its ring provider: 1.2 and 1.3, session resumption as rustls has it by default.
//!
//! PostgreSQL's ALPN name is offered and answered, because direct TLS requires it (manual, "SSL Session
//! Encryption"). `tls-server-end-point` is RFC 5929's hash of the server's certificate, for SCRAM's channel binding.

mod end_point;
mod postgres;
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientConfig, WebPkiServerVerifier};
use rustls::crypto::{self, CryptoProvider};
use rustls::server::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::TlsAcceptor;
pub use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream as ServerStream;

use crate::config::{ClientTls, ServerTls, SslMode};
use crate::stream::Socket;

/// PostgreSQL's name in ALPN (IANA "TLS Application-Layer Protocol Negotiation (ALPN) Protocol IDs").
pub const ALPN: &[u8] = b"postgresql";

/// Why TLS cannot be set up from the configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read, or holds nothing of what it should hold.
    #[error("cannot read {what} from \"{}\": {reason}", path.display())]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not; never the contents.
        reason: String,
    },
    /// `verify-ca` and `verify-full` need a root certificate.
    #[error("sslmode verify-ca and verify-full need a root certificate")]
    RootMissing,
    /// rustls refuses what was configured, for example a key that does not belong to the certificate.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// TLS to clients: Halyard is the server.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: TlsAcceptor,
    end_point: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor(…)")
    }
}

impl Acceptor {
    /// Reads certificate and key.
    pub fn new(tls: &ClientTls) -> Result<Self, TlsError> {
        let chain = certificates(&tls.certificate, "a certificate chain")?;
        let key = PrivateKeyDer::from_pem_file(&tls.key)
            .map_err(|error| file_error("a private key", &tls.key, &error.to_string()))?;
        let end_point = chain.first().and_then(|leaf| end_point::hash(leaf));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            end_point,
        })
    }

    /// Shakes hands with a client. Not cancel safe: a dropped handshake closes the connection.
    pub async fn accept(&self, socket: Socket) -> io::Result<Box<ServerStream<Socket>>> {
        Ok(Box::new(self.acceptor.accept(socket).await?))
    }

    /// `tls-server-end-point` of our certificate; none where RFC 5929 does not define it.
    pub fn end_point(&self) -> Option<Arc<[u8]>> {
        self.end_point.clone()
    }
}

/// TLS to nodes: Halyard is the client. One for all nodes; cheap to clone.
#[derive(Clone)]
pub enum TlsPolicy {
    /// `disable`: never.
    Never,
    /// `prefer`: where the node has it.
    IfOffered(TlsConnector),
    /// `require`, `verify-ca`, `verify-full`: or no connection. The connector knows what is verified.
    Always(TlsConnector),
}

impl std::fmt::Debug for TlsPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TlsPolicy::Never => "Never",
            TlsPolicy::IfOffered(_) => "IfOffered(…)",
            TlsPolicy::Always(_) => "Always(…)",
        })
    }
}

impl TlsPolicy {
    /// Reads the root certificates that the mode needs.
    pub fn new(tls: &ServerTls) -> Result<Self, TlsError> {
        let provider = provider();
        let verifier: Arc<dyn ServerCertVerifier> = match tls.mode {
            SslMode::Disable => return Ok(Self::Never),
            SslMode::Prefer | SslMode::Require => Arc::new(verify::Nothing::new(&provider)),
            SslMode::VerifyCa => Arc::new(verify::ChainOnly::new(roots(tls)?, &provider)),
            SslMode::VerifyFull => {
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots(tls)?), Arc::clone(&provider))
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))?
            }
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        Ok(match tls.mode {
            SslMode::Prefer => Self::IfOffered(connector),
            _ => Self::Always(connector),
        })
    }
}

/// Shakes hands with the node that is known as `host`. Not cancel safe: a dropped handshake closes the connection.
pub(crate) async fn connect(
    connector: &TlsConnector,
    host: &str,
    socket: Socket,
) -> io::Result<Box<ClientStream<Socket>>> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the host is no name for TLS"))?;
    Ok(Box::new(connector.connect(name, socket).await?))
}

/// `tls-server-end-point` of the certificate that the node showed; none where RFC 5929 does not define it.
pub(crate) fn peer_end_point(stream: &ClientStream<Socket>) -> Option<Arc<[u8]>> {
    let chain = stream.get_ref().1.peer_certificates()?;
    end_point::hash(chain.first()?)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::ring::default_provider())
}

fn roots(tls: &ServerTls) -> Result<RootCertStore, TlsError> {
    let path = tls.root_certificate.as_ref().ok_or(TlsError::RootMissing)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, "root certificates")? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| file_error(what, path, &error.to_string()))?;
    if certificates.is_empty() {
        return Err(file_error(what, path, "there is none in it"));
    }
    Ok(certificates)
}

fn file_error(what: &'static str, path: &Path, reason: &str) -> TlsError {
    TlsError::File {
        what,
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests;
