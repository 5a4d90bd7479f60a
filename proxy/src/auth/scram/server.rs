//! The server's side: the client proves itself against a verifier.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use subtle::{Choice, ConstantTimeEq};

use super::message::{self, Attributes};
use super::{BINDING_TYPE, Key, Keys, ScramError, Verifier, hmac_sha256, sha256, xor};

/// What a client's proof is held against.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The verifier; a mock one for a user whom nobody knows.
    pub verifier: Arc<Verifier>,
    /// Whether the right proof lets the client in. With `false` the whole exchange takes place all the same, so
    /// that nobody learns from it whether the user exists.
    pub genuine: bool,
}

/// What was agreed on about channel binding before the first message.
#[derive(Clone, Debug)]
pub enum Binding {
    /// We offered no channel binding.
    NotOffered,
    /// We offered SCRAM-SHA-256-PLUS and the client chose the plain mechanism.
    Declined,
    /// The client chose SCRAM-SHA-256-PLUS; the bytes are `tls-server-end-point` of our certificate.
    EndPoint(Arc<[u8]>),
}

/// The client's first message is awaited.
#[derive(Debug)]
pub struct ClientFirstAwaited {
    candidate: Candidate,
    binding: Binding,
}

impl ClientFirstAwaited {
    /// Begins the exchange.
    pub fn new(candidate: Candidate, binding: Binding) -> Self {
        Self { candidate, binding }
    }

    /// Takes client-first-message; gives server-first-message. `nonce` is our part, from [`super::nonce`].
    pub fn client_first(
        self,
        message: &[u8],
        nonce: &str,
    ) -> Result<(Vec<u8>, ClientFinalAwaited), ScramError> {
        message::check(message)?;
        let bare = self.read_gs2_header(message)?;
        let bound = bound_text(&message[..message.len() - bare.len()], &self.binding);

        if bare.starts_with(b"m=") {
            return Err(ScramError::Unsupported("The client requires a SCRAM extension."));
        }
        let mut attributes = Attributes::of(bare);
        // The name in the startup packet counts; libpq leaves this one empty.
        attributes.expect(b'n')?;
        let client_nonce = attributes.expect(b'r')?;
        message::check_nonce(client_nonce)?;
        // Optional extensions may follow: they are ignored, as the standard wants it.
        while !attributes.is_at_end() {
            attributes.any()?;
        }

        let mut joined_nonce = client_nonce.to_vec();
        joined_nonce.extend_from_slice(nonce.as_bytes());
        let mut answer = b"r=".to_vec();
        answer.extend_from_slice(&joined_nonce);
        let salt = BASE64_STANDARD.encode(self.candidate.verifier.salt());
        answer.extend_from_slice(format!(",s={salt},i={}", self.candidate.verifier.iterations()).as_bytes());

        let mut auth_message = bare.to_vec();
        auth_message.push(b',');
        auth_message.extend_from_slice(&answer);
        auth_message.push(b',');
        let next = ClientFinalAwaited {
            candidate: self.candidate,
            bound,
            joined_nonce,
            auth_message,
        };
        Ok((answer, next))
    }

    /// Checks the gs2 header (RFC 5802, section 7: `gs2-header`) and gives what lies behind it.
    fn read_gs2_header<'m>(&self, message: &'m [u8]) -> Result<&'m [u8], ScramError> {
        let rest = match (message, &self.binding) {
            ([b'n', b',', rest @ ..], Binding::NotOffered | Binding::Declined) => rest,
            ([b'n' | b'y', b',', ..], Binding::EndPoint(_)) => {
                return Err(ScramError::Malformed(
                    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel \
                     binding data.",
                ));
            }
            // The client could bind the channel and thinks that we cannot.
            ([b'y', b',', rest @ ..], Binding::NotOffered) => rest,
            ([b'y', b',', ..], Binding::Declined) => return Err(ScramError::BindingDowngraded),
            ([b'p', b'=', rest @ ..], Binding::EndPoint(_)) => rest
                .strip_prefix(BINDING_TYPE.as_bytes())
                .and_then(|rest| rest.strip_prefix(b","))
                .ok_or(ScramError::Unsupported(
                    "The client asks for another channel binding type than tls-server-end-point.",
                ))?,
            ([b'p', b'=', ..], _) => {
                return Err(ScramError::Malformed(
                    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes \
                     channel binding data.",
                ));
            }
            _ => {
                return Err(ScramError::Malformed(
                    "The channel binding flag is none of n, y and p.",
                ));
            }
        };
        match rest {
            [b',', bare @ ..] => Ok(bare),
            [b'a', b'=', ..] => Err(ScramError::Unsupported(
                "The client uses an authorization identity.",
            )),
            _ => Err(ScramError::Malformed(
                "The channel binding flag is not followed by a comma.",
            )),
        }
    }
}

/// The text of attribute `c` that the client must send back: the gs2 header and the channel's own data.
fn bound_text(gs2_header: &[u8], binding: &Binding) -> String {
    let mut bound = gs2_header.to_vec();
    if let Binding::EndPoint(data) = binding {
        bound.extend_from_slice(data);
    }
    BASE64_STANDARD.encode(bound)
}

/// The client's final message, with its proof, is awaited.
#[derive(Debug)]
pub struct ClientFinalAwaited {
    candidate: Candidate,
    bound: String,
    joined_nonce: Vec<u8>,
    /// AuthMessage up to the part that the client's final message adds.
    auth_message: Vec<u8>,
}

/// The client has proved that it knows the password.
#[derive(Debug)]
pub struct Proved {
    /// server-final-message: proves us to the client.
    pub server_final: Vec<u8>,
    /// What the proof revealed: enough to log in wherever the same verifier is kept.
    pub keys: Keys,
}

impl ClientFinalAwaited {
    /// Takes client-final-message and judges its proof.
    pub fn client_final(mut self, message: &[u8]) -> Result<Proved, ScramError> {
        message::check(message)?;
        let mut attributes = Attributes::of(message);
        let bound = attributes.expect(b'c')?;
        let nonce = attributes.expect(b'r')?;
        let (without_proof, proof) = loop {
            let position = attributes.position();
            if let (b'p', value) = attributes.any()? {
                // The comma before the proof does not belong to what is signed.
                break (&message[..position - 1], value);
            }
        };
        if !attributes.is_at_end() {
            return Err(ScramError::Malformed(
                "Garbage found at the end of client-final-message.",
            ));
        }
        if nonce != self.joined_nonce {
            return Err(ScramError::NonceMismatch);
        }
        if bound != self.bound.as_bytes() {
            return Err(ScramError::BindingMismatch);
        }
        let proof =
            message::key(proof).ok_or(ScramError::Malformed("Malformed proof in client-final-message."))?;

        self.auth_message.extend_from_slice(without_proof);
        self.judge(proof)
    }

    fn judge(self, proof: Key) -> Result<Proved, ScramError> {
        let verifier = &self.candidate.verifier;
        let signature = hmac_sha256(&verifier.stored_key, &[&self.auth_message]);
        let client_key = xor(proof, signature);
        let server_signature = hmac_sha256(&verifier.server_key, &[&self.auth_message]);
        let matches = sha256(&client_key).ct_eq(&verifier.stored_key);
        if (matches & Choice::from(u8::from(self.candidate.genuine))).into() {
            Ok(Proved {
                server_final: format!("v={}", BASE64_STANDARD.encode(server_signature)).into_bytes(),
                keys: Keys::new(client_key, verifier.server_key),
            })
        } else {
            Err(ScramError::WrongProof)
        }
    }
}
