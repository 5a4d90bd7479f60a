//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it (src/backend/libpq/auth-scram.c and
//! src/interfaces/libpq/fe-auth-scram.c): the user name inside the messages is ignored, a password that SASLprep
//! refuses is taken as its raw bytes.
//!
//! [`server`] and [`client`] hold the two sides as states that consume themselves: each step takes the peer's
//! message and gives our answer and the next state, or an error.

pub mod client;
mod message;
pub mod server;

use std::fmt;
use std::num::NonZeroU32;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

/// The mechanism without channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The only channel binding type that PostgreSQL knows.
pub const BINDING_TYPE: &str = "tls-server-end-point";
/// Iterations of a verifier that we derive: PostgreSQL's default (`scram_iterations`).
pub const ITERATIONS_DEFAULT: NonZeroU32 = NonZeroU32::new(4096).expect("4096 is not zero");
/// Most iterations that a node may ask of us: about half a second of CPU.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Bytes of salt of a verifier that we derive: PostgreSQL's SCRAM_DEFAULT_SALT_LEN.
pub const SALT_SIZE: usize = 16;
/// Most bytes of salt that a node may send.
pub const SALT_SIZE_MAX: usize = 512;
/// Longest nonce taken from a peer, in characters. PostgreSQL's own have 24, and 48 when joined.
pub const NONCE_LENGTH_MAX: usize = 512;
/// Longest message taken from a peer, in bytes: PostgreSQL's PG_MAX_SASL_MESSAGE_LENGTH.
pub const MESSAGE_SIZE_MAX: usize = 1024;

/// SHA-256's size, and so the size of every key.
pub const KEY_SIZE: usize = 32;

/// Random bytes in a nonce of ours: PostgreSQL's SCRAM_RAW_NONCE_LEN.
const RAW_NONCE_SIZE: usize = 18;

type Key = [u8; KEY_SIZE];

/// ClientKey and ServerKey: what a login needs, once the password has been stretched.
#[derive(Clone)]
pub struct Keys {
    client_key: Key,
    server_key: Key,
}

impl Keys {
    /// Stretches a password: some milliseconds of CPU at 4096 iterations.
    pub fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        let mut salted = [0; KEY_SIZE];
        let prepared = prepare(password);
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            salt,
            prepared.as_bytes(),
            &mut salted,
        );
        Self {
            client_key: hmac_sha256(&salted, &[b"Client Key"]),
            server_key: hmac_sha256(&salted, &[b"Server Key"]),
        }
    }

    /// Keys that are known already, as after SCRAM pass-through.
    pub fn new(client_key: Key, server_key: Key) -> Self {
        Self {
            client_key,
            server_key,
        }
    }

    /// The verifier that a server keeps of them.
    pub fn verifier(&self, salt: Vec<u8>, iterations: NonZeroU32) -> Verifier {
        Verifier {
            iterations,
            salt,
            stored_key: sha256(&self.client_key),
            server_key: self.server_key,
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

/// What a server keeps of a password: pg_authid's `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

impl Verifier {
    /// Reads the text of pg_authid; none if it is anything else.
    pub fn parse(stored: &str) -> Option<Self> {
        let rest = stored.strip_prefix("SCRAM-SHA-256$")?;
        let (challenge, keys) = rest.split_once('$')?;
        let (iterations, salt) = challenge.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let salt = BASE64_STANDARD.decode(salt).ok()?;
        if salt.is_empty() || salt.len() > SALT_SIZE_MAX {
            return None;
        }
        Some(Self {
            iterations: iterations.parse().ok()?,
            salt,
            stored_key: message::key(stored_key.as_bytes())?,
            server_key: message::key(server_key.as_bytes())?,
        })
    }

    /// Derives one from a password: some milliseconds of CPU.
    pub fn derive(password: &str, salt: Vec<u8>, iterations: NonZeroU32) -> Self {
        Keys::derive(password, &salt, iterations).verifier(salt, iterations)
    }

    /// A verifier that no password answers, made of arbitrary keys.
    pub(super) fn mock(salt: Vec<u8>, iterations: NonZeroU32, stored_key: Key, server_key: Key) -> Self {
        Self {
            iterations,
            salt,
            stored_key,
            server_key,
        }
    }

    /// The salt, as it is told to clients.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// The iterations, as they are told to clients.
    pub fn iterations(&self) -> NonZeroU32 {
        self.iterations
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} iterations, …)", self.iterations)
    }
}

/// A fresh nonce in printable characters.
///
/// # Panics
/// When the operating system has no randomness to give, which Linux does not do once booted.
pub fn nonce() -> String {
    BASE64_STANDARD.encode(random::<RAW_NONCE_SIZE>())
}

/// Fresh random bytes from the operating system.
///
/// # Panics
/// As [`nonce`].
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("getrandom(2) does not fail once the machine has booted");
    bytes
}

/// Why an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The peer's message is not one of this exchange; the text says where it went wrong.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The peer's answer belongs to another exchange.
    #[error("invalid SCRAM response: Nonce does not match.")]
    NonceMismatch,
    /// The peer wants what the standard has and we do not.
    #[error("unsupported in SCRAM: {0}")]
    Unsupported(&'static str),
    /// The client believes that we cannot bind the channel although we offered it: somebody changed our offer.
    #[error("SCRAM channel binding negotiation error")]
    BindingDowngraded,
    /// The client saw another certificate than ours.
    #[error("SCRAM channel binding check failed")]
    BindingMismatch,
    /// The proof is wrong: another password, or nobody's.
    #[error("the proof is wrong")]
    WrongProof,
    /// The node could not prove that it knows the verifier.
    #[error("incorrect server signature")]
    WrongServerSignature,
    /// The node asks for more than [`ITERATIONS_MAX`].
    #[error("the node asks for too many SCRAM iterations")]
    TooManyIterations,
}

/// SASLprep with PostgreSQL's fallback (pg_saslprep): what it refuses, and what it would empty, stays as it is.
fn prepare(password: &str) -> std::borrow::Cow<'_, str> {
    match stringprep::saslprep(password) {
        Ok(prepared) if !prepared.is_empty() => prepared,
        _ => password.into(),
    }
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut tag = [0; KEY_SIZE];
    tag.copy_from_slice(context.sign().as_ref());
    tag
}

fn sha256(data: &[u8]) -> Key {
    let mut hash = [0; KEY_SIZE];
    hash.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    hash
}

fn xor(left: Key, right: Key) -> Key {
    std::array::from_fn(|at| left[at] ^ right[at])
}
