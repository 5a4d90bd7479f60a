//! The authentication exchange with a node (manual, "Start-up" in "Message Flow").

use std::sync::Arc;

use bytes::{Buf, Bytes};
use pgwire::messages::startup::{Password as PasswordMessage, SASLInitialResponse, SASLResponse};

use super::LoginError;
use super::node::Node;
use crate::auth::scram::client::{self, Binding, ServerChallenge};
use crate::auth::scram::{self, Keys, MECHANISM, MECHANISM_PLUS};
use crate::auth::{Credential, Md5Hash, Password, md5};
use crate::handshake::take_cstring;
use crate::stream::{Socket, Stream};
use crate::tls;

/// An authentication request, as far as we know them (manual, "Message Formats": AuthenticationOk and so on).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Ok,
    CleartextPassword,
    Md5Password([u8; md5::SALT_SIZE]),
    Sasl(Mechanisms),
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    Unsupported(&'static str),
}

/// Which of the mechanisms that we know the node offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mechanisms {
    pub(super) scram: bool,
    pub(super) scram_plus: bool,
}

/// Answers what the node asks, up to AuthenticationOk.
pub(super) async fn authenticate(
    node: &mut Node,
    user: &str,
    credential: &Credential,
) -> Result<(), LoginError> {
    match next_request(node).await? {
        Request::Ok => return Ok(()),
        Request::CleartextPassword => {
            let password = cleartext(credential, &node.stream)?;
            node.send(&PasswordMessage::new(password)).await?;
        }
        Request::Md5Password(salt) => {
            let hash = md5_hash(credential, user)?;
            node.send(&PasswordMessage::new(hash.answer(salt))).await?;
        }
        Request::Sasl(mechanisms) => answer_scram(node, mechanisms, credential).await?,
        Request::Unsupported(what) => return Err(LoginError::AuthenticationUnsupported(what)),
        Request::SaslContinue(_) | Request::SaslFinal(_) => {
            return Err(LoginError::Protocol("SASL goes on that never began"));
        }
    }
    match next_request(node).await? {
        Request::Ok => Ok(()),
        _ => Err(LoginError::Protocol(
            "another authentication request after the answer",
        )),
    }
}

async fn next_request(node: &mut Node) -> Result<Request, LoginError> {
    match node.next().await? {
        (b'R', body) => read_request(body).ok_or(LoginError::Protocol("malformed authentication request")),
        _ => Err(LoginError::Protocol(
            "an unexpected message before AuthenticationOk",
        )),
    }
}

/// Reads the body of an authentication request; none if it is not as long as it must be.
pub(super) fn read_request(mut body: Bytes) -> Option<Request> {
    let code = i32::from_be_bytes(*body.first_chunk()?);
    body.advance(4);
    match code {
        0 => body.is_empty().then_some(Request::Ok),
        2 => Some(Request::Unsupported("Kerberos V5")),
        3 => body.is_empty().then_some(Request::CleartextPassword),
        5 => Some(Request::Md5Password(body[..].try_into().ok()?)),
        7 | 8 => Some(Request::Unsupported("GSSAPI")),
        9 => Some(Request::Unsupported("SSPI")),
        10 => read_mechanisms(body).map(Request::Sasl),
        11 => Some(Request::SaslContinue(body)),
        12 => Some(Request::SaslFinal(body)),
        _ => Some(Request::Unsupported("an unknown method")),
    }
}

fn read_mechanisms(mut body: Bytes) -> Option<Mechanisms> {
    let mut mechanisms = Mechanisms::default();
    loop {
        let name = take_cstring(&mut body)?;
        if name.is_empty() {
            return body.is_empty().then_some(mechanisms);
        }
        mechanisms.scram |= name == MECHANISM;
        mechanisms.scram_plus |= name == MECHANISM_PLUS;
    }
}

/// The password, where nobody can listen: inside TLS, on a Unix-domain socket or within this machine.
fn cleartext(credential: &Credential, stream: &Stream) -> Result<String, LoginError> {
    let private = match stream {
        Stream::TlsBackend(_) | Stream::TlsFrontend(_) | Stream::Plain(Socket::Unix(_)) => true,
        Stream::Plain(Socket::Gone) => false,
        Stream::Plain(Socket::Tcp(tcp)) => tcp.peer_addr()?.ip().to_canonical().is_loopback(),
    };
    match credential {
        Credential::Password(password) if private => Ok(password.reveal().to_owned()),
        Credential::Password(_) => Err(LoginError::AuthenticationUnsupported(
            "a password in clear text over a connection without TLS",
        )),
        Credential::ScramKeys(_) | Credential::Md5Hash(_) | Credential::None => {
            Err(LoginError::NoCredential("it asks for the password itself"))
        }
    }
}

fn md5_hash(credential: &Credential, user: &str) -> Result<Md5Hash, LoginError> {
    match credential {
        Credential::Password(password) => Ok(Md5Hash::of(password.reveal(), user)),
        Credential::Md5Hash(hash) => Ok(hash.clone()),
        Credential::ScramKeys(_) | Credential::None => Err(LoginError::NoCredential(
            "it asks for md5, which takes the password or its md5 hash",
        )),
    }
}

async fn answer_scram(
    node: &mut Node,
    mechanisms: Mechanisms,
    credential: &Credential,
) -> Result<(), LoginError> {
    // Nothing is sent that could not be finished.
    if matches!(credential, Credential::Md5Hash(_) | Credential::None) {
        return Err(LoginError::NoCredential(
            "it asks for SCRAM, which takes the password or a client's proof",
        ));
    }
    let (mechanism, binding) = choose(mechanisms, &node.stream)?;
    let (message, next) = client::begin(binding, scram::nonce());
    node.send(&SASLInitialResponse::new(
        mechanism.to_owned(),
        Some(message.into()),
    ))
    .await?;

    let Request::SaslContinue(server_first) = next_request(node).await? else {
        return Err(LoginError::Protocol(
            "the SCRAM exchange ended after its first message",
        ));
    };
    let challenge = next.server_first(&server_first)?;
    let keys = keys(credential, &challenge).await?;
    let (message, next) = challenge.answer(&keys);
    node.send(&SASLResponse::new(message.into())).await?;

    // A node that skips its own proof may be anybody.
    let Request::SaslFinal(server_final) = next_request(node).await? else {
        return Err(LoginError::Protocol("the node did not prove itself"));
    };
    Ok(next.server_final(&server_final)?)
}

/// Binds the channel where both sides can.
fn choose(mechanisms: Mechanisms, stream: &Stream) -> Result<(&'static str, Binding), LoginError> {
    let end_point = match stream {
        Stream::TlsBackend(stream) => tls::peer_end_point(stream),
        Stream::TlsFrontend(_) | Stream::Plain(_) => None,
    };
    match (mechanisms.scram_plus, end_point) {
        (true, Some(data)) => Ok((MECHANISM_PLUS, Binding::EndPoint(data))),
        (_, end_point) if mechanisms.scram => Ok((
            MECHANISM,
            end_point.map_or(Binding::Unsupported, |_| Binding::NotOffered),
        )),
        _ => Err(LoginError::AuthenticationUnsupported(
            "no SASL mechanism that both sides know",
        )),
    }
}

async fn keys(credential: &Credential, challenge: &ServerChallenge) -> Result<Keys, LoginError> {
    match credential {
        Credential::Password(password) => stretch(password, challenge).await,
        Credential::ScramKeys(known)
            if known.salt == challenge.salt() && known.iterations == challenge.iterations() =>
        {
            Ok(known.keys.clone())
        }
        Credential::ScramKeys(_) => Err(LoginError::NoCredential(
            "its SCRAM verifier is not the one that the client proved itself against",
        )),
        Credential::Md5Hash(_) | Credential::None => Err(LoginError::NoCredential("it asks for SCRAM")),
    }
}

/// Stretches a password on a thread that may block, unless that was done before for the same challenge.
async fn stretch(password: &Arc<Password>, challenge: &ServerChallenge) -> Result<Keys, LoginError> {
    let (salt, iterations) = (challenge.salt().to_vec(), challenge.iterations());
    if let Some(keys) = password.known_keys(&salt, iterations) {
        return Ok(keys);
    }
    let password = Arc::clone(password);
    tokio::task::spawn_blocking(move || password.derive_keys(&salt, iterations))
        .await
        .map_err(|error| LoginError::Io(std::io::Error::other(error)))
}
