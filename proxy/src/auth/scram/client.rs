//! The client's side: Halyard proves itself to a node, and the node proves itself to Halyard.

use std::num::NonZeroU32;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use subtle::ConstantTimeEq;

use super::message::{self, Attributes};
use super::{BINDING_TYPE, ITERATIONS_MAX, Key, Keys, SALT_SIZE_MAX, ScramError, hmac_sha256, sha256, xor};

/// Whether the exchange is bound to the TLS channel.
#[derive(Clone, Debug)]
pub enum Binding {
    /// We cannot bind it: no TLS, or a certificate whose hash is not defined.
    Unsupported,
    /// We could, but the node did not offer SCRAM-SHA-256-PLUS. A node that did offer it then knows that
    /// somebody changed its offer.
    NotOffered,
    /// Bound; the bytes are `tls-server-end-point` of the node's certificate.
    EndPoint(Arc<[u8]>),
}

impl Binding {
    fn gs2_header(&self) -> String {
        match self {
            Binding::Unsupported => "n,,".to_owned(),
            Binding::NotOffered => "y,,".to_owned(),
            Binding::EndPoint(_) => format!("p={BINDING_TYPE},,"),
        }
    }
}

/// The node's first message is awaited.
#[derive(Debug)]
pub struct ServerFirstAwaited {
    binding: Binding,
    nonce: String,
    client_first_bare: String,
}

/// Begins the exchange: client-first-message and the next state. `nonce` comes from [`super::nonce`].
pub fn begin(binding: Binding, nonce: String) -> (Vec<u8>, ServerFirstAwaited) {
    begin_as("", binding, nonce)
}

/// As [`begin`], with a user name in the message. PostgreSQL ignores it; the example in RFC 7677 does not.
pub(in crate::auth) fn begin_as(
    user: &str,
    binding: Binding,
    nonce: String,
) -> (Vec<u8>, ServerFirstAwaited) {
    let client_first_bare = format!("n={user},r={nonce}");
    let message = format!("{}{client_first_bare}", binding.gs2_header()).into_bytes();
    let next = ServerFirstAwaited {
        binding,
        nonce,
        client_first_bare,
    };
    (message, next)
}

impl ServerFirstAwaited {
    /// Takes server-first-message: what the node wants to have answered.
    pub fn server_first(self, message: &[u8]) -> Result<ServerChallenge, ScramError> {
        message::check(message)?;
        let mut attributes = Attributes::of(message);
        let nonce = attributes.expect(b'r')?;
        let salt = attributes.expect(b's')?;
        let iterations = attributes.expect(b'i')?;
        if !attributes.is_at_end() {
            return Err(ScramError::Malformed(
                "Garbage found at the end of server-first-message.",
            ));
        }
        message::check_nonce(nonce)?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(self.nonce.as_bytes()) {
            return Err(ScramError::NonceMismatch);
        }
        let salt = BASE64_STANDARD
            .decode(salt)
            .ok()
            .filter(|salt| !salt.is_empty() && salt.len() <= SALT_SIZE_MAX)
            .ok_or(ScramError::Malformed("Malformed salt in server-first-message."))?;
        let iterations: NonZeroU32 = std::str::from_utf8(iterations)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(ScramError::Malformed(
                "Malformed iteration count in server-first-message.",
            ))?;
        if iterations.get() > ITERATIONS_MAX {
            return Err(ScramError::TooManyIterations);
        }

        let mut bound = self.binding.gs2_header().into_bytes();
        if let Binding::EndPoint(data) = &self.binding {
            bound.extend_from_slice(data);
        }
        let mut without_proof = format!("c={},r=", BASE64_STANDARD.encode(bound)).into_bytes();
        without_proof.extend_from_slice(nonce);
        let mut auth_message = self.client_first_bare.into_bytes();
        auth_message.push(b',');
        auth_message.extend_from_slice(message);
        auth_message.push(b',');
        auth_message.extend_from_slice(&without_proof);
        Ok(ServerChallenge {
            salt,
            iterations,
            without_proof,
            auth_message,
        })
    }
}

/// What the node wants to have answered.
#[derive(Debug)]
pub struct ServerChallenge {
    salt: Vec<u8>,
    iterations: NonZeroU32,
    without_proof: Vec<u8>,
    auth_message: Vec<u8>,
}

impl ServerChallenge {
    /// The salt of the node's verifier.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// The iterations of the node's verifier.
    pub fn iterations(&self) -> NonZeroU32 {
        self.iterations
    }

    /// Proves that we hold the keys for this salt and these iterations: client-final-message and the next state.
    pub fn answer(self, keys: &Keys) -> (Vec<u8>, ServerFinalAwaited) {
        let signature = hmac_sha256(&sha256(&keys.client_key), &[&self.auth_message]);
        let proof = xor(keys.client_key, signature);
        let mut message = self.without_proof;
        message.extend_from_slice(b",p=");
        message.extend_from_slice(BASE64_STANDARD.encode(proof).as_bytes());
        let next = ServerFinalAwaited {
            signature: hmac_sha256(&keys.server_key, &[&self.auth_message]),
        };
        (message, next)
    }
}

/// The node's proof is awaited.
#[derive(Debug)]
pub struct ServerFinalAwaited {
    signature: Key,
}

impl ServerFinalAwaited {
    /// Takes server-final-message and judges the node.
    pub fn server_final(self, message: &[u8]) -> Result<(), ScramError> {
        message::check(message)?;
        let mut attributes = Attributes::of(message);
        let signature = match attributes.any()? {
            (b'v', value) => message::key(value).ok_or(ScramError::Malformed(
                "Malformed signature in server-final-message.",
            ))?,
            (b'e', _) => return Err(ScramError::WrongProof),
            _ => return Err(ScramError::Malformed("Another attribute was expected.")),
        };
        if !attributes.is_at_end() {
            return Err(ScramError::Malformed(
                "Garbage found at the end of server-final-message.",
            ));
        }
        if signature.ct_eq(&self.signature).into() {
            Ok(())
        } else {
            Err(ScramError::WrongServerSignature)
        }
    }
}
