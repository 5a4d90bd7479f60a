//! What may log in to a node on a user's behalf.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use super::md5::Md5Hash;
use super::scram::Keys;
use crate::config::Secret;

/// What may log in to a node on a user's behalf. Cheap to clone; it shows itself to nobody.
#[derive(Clone, Debug)]
pub enum Credential {
    /// The password itself: answers every method.
    Password(Arc<Password>),
    /// The keys that the client's own SCRAM proof revealed: SCRAM pass-through. They fit a node whose verifier
    /// has the same salt and iterations, which the nodes of one cluster share.
    ScramKeys(Arc<ScramKeys>),
    /// An md5 hash: answers md5 alone.
    Md5Hash(Md5Hash),
    /// Nothing is known (trust, or a verifier that nobody has proved yet): only a node that trusts us lets us in.
    None,
}

impl Credential {
    /// A password, with nothing derived from it yet.
    pub fn password(secret: Secret) -> Self {
        Self::Password(Arc::new(Password::new(secret)))
    }
}

/// SCRAM keys and the challenge that they answer.
#[derive(Debug)]
pub struct ScramKeys {
    /// ClientKey and ServerKey.
    pub keys: Keys,
    /// The salt that they were derived with.
    pub salt: Vec<u8>,
    /// The iterations that they were derived with.
    pub iterations: NonZeroU32,
}

/// A plain password that remembers the SCRAM keys derived from it: stretching takes milliseconds, and is done
/// once for each salt and number of iterations.
pub struct Password {
    secret: Secret,
    derived: Mutex<Vec<Derived>>,
}

struct Derived {
    salt: Vec<u8>,
    iterations: NonZeroU32,
    keys: Keys,
}

/// Most (salt, iterations) pairs remembered for one password. The nodes of a cluster share one.
const DERIVED_MAX: usize = 4;

impl Password {
    /// Wraps a password.
    pub fn new(secret: Secret) -> Self {
        Self {
            secret,
            derived: Mutex::default(),
        }
    }

    /// The password itself, for cleartext and md5.
    pub fn reveal(&self) -> &str {
        self.secret.reveal()
    }

    /// The keys for this challenge if they have been derived before.
    pub fn known_keys(&self, salt: &[u8], iterations: NonZeroU32) -> Option<Keys> {
        find(&self.lock(), salt, iterations)
    }

    /// The keys for this challenge, derived if need be: some milliseconds of CPU at PostgreSQL's 4096 iterations.
    /// Callers that come together wait for one derivation, so call it where a thread may block.
    pub fn derive_keys(&self, salt: &[u8], iterations: NonZeroU32) -> Keys {
        let mut derived = self.lock();
        if let Some(keys) = find(&derived, salt, iterations) {
            return keys;
        }
        let keys = Keys::derive(self.reveal(), salt, iterations);
        if derived.len() == DERIVED_MAX {
            derived.remove(0);
        }
        derived.push(Derived {
            salt: salt.to_vec(),
            iterations,
            keys: keys.clone(),
        });
        keys
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Derived>> {
        // Every state of the list is a good one, so a panic elsewhere while it was held spoils nothing.
        self.derived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(derived: &[Derived], salt: &[u8], iterations: NonZeroU32) -> Option<Keys> {
    derived
        .iter()
        .find(|one| one.iterations == iterations && one.salt == salt)
        .map(|one| one.keys.clone())
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}
