//! Who may come, and what they are asked.
//!
//! A user whom nobody knows is asked what a known one would be asked, in the same time: mock authentication,
//! after PostgreSQL's (auth-scram.c, `mock_scram_secret`). Its shape (method, iterations, length of the salt) is
//! borrowed from a known user picked by a keyed hash of the name, because a cluster in which everybody has 10,000
//! iterations would otherwise betray the one with 4,096.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use ring::hmac;

use super::credential::{Credential, Password};
use super::md5::Md5Hash;
use super::scram::server::Candidate;
use super::scram::{self, ITERATIONS_DEFAULT, KEY_SIZE, Keys, SALT_SIZE, Verifier};
use crate::config::{Secret, User};

/// How a client has to prove who it is, once the rules want a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordMethod {
    /// SCRAM-SHA-256 and nothing else.
    ScramSha256,
    /// md5, or SCRAM where the stored secret is a verifier.
    Md5,
}

/// What a client is asked.
#[derive(Clone, Debug)]
pub enum Challenge {
    /// A SCRAM exchange.
    Scram(Candidate, Standing),
    /// An md5 answer.
    Md5(Md5Hash, Standing),
}

/// What a right answer is worth.
#[derive(Clone, Debug)]
pub enum Standing {
    /// The user is known; this credential logs in to the nodes. None where the proof itself will reveal it.
    Known(Credential),
    /// Nobody: no answer is the right one.
    Unknown,
}

/// A user that cannot be taken from the configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The stored secret begins like a SCRAM verifier and is none.
    #[error("the SCRAM verifier of user \"{0}\" is malformed")]
    MalformedVerifier(String),
    /// Two entries have the same name.
    #[error("user \"{0}\" is configured twice")]
    Duplicate(String),
}

/// The known users.
pub struct Users {
    known: HashMap<String, Stored>,
    /// What unknown users are made to look like, for either method; never empty.
    shapes_scram: Vec<Shape>,
    shapes_md5: Vec<Shape>,
    /// Keys the mock answers; new in each process.
    mock: hmac::Key,
}

/// The secret that is kept of a user.
enum Stored {
    Plain {
        password: Arc<Password>,
        verifier: Arc<Verifier>,
        hash: Md5Hash,
    },
    Verifier(Arc<Verifier>),
    Md5(Md5Hash),
    Nothing,
}

/// What a user looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Scram {
        iterations: NonZeroU32,
        salt_size: usize,
    },
    Md5,
}

const SHAPE_DEFAULT: Shape = Shape::Scram {
    iterations: ITERATIONS_DEFAULT,
    salt_size: SALT_SIZE,
};

impl Users {
    /// Takes the users of a configuration. Each plain password is stretched here, once: some milliseconds each.
    pub fn new(users: &[User]) -> Result<Self, UserError> {
        let mock = hmac::Key::new(hmac::HMAC_SHA256, &scram::random::<KEY_SIZE>());
        let mut known = HashMap::with_capacity(users.len());
        for user in users {
            let stored = store(user, &mock)?;
            if known.insert(user.name.clone(), stored).is_some() {
                return Err(UserError::Duplicate(user.name.clone()));
            }
        }
        let shapes = |method| {
            let mut shapes: Vec<_> = known
                .values()
                .filter_map(|stored: &Stored| stored.shape(method))
                .collect();
            if shapes.is_empty() {
                shapes.push(SHAPE_DEFAULT);
            }
            shapes
        };
        Ok(Self {
            shapes_scram: shapes(PasswordMethod::ScramSha256),
            shapes_md5: shapes(PasswordMethod::Md5),
            known,
            mock,
        })
    }

    /// What `user` is asked. It takes the same steps for a user that does not exist, or that has no secret fit
    /// for the method.
    pub fn challenge(&self, user: &str, method: PasswordMethod) -> Challenge {
        let mock = self.mock_challenge(user, method);
        match (self.known.get(user), method) {
            (Some(Stored::Plain { password, hash, .. }), PasswordMethod::Md5) => Challenge::Md5(
                hash.clone(),
                Standing::Known(Credential::Password(Arc::clone(password))),
            ),
            (
                Some(Stored::Plain {
                    password, verifier, ..
                }),
                PasswordMethod::ScramSha256,
            ) => Challenge::Scram(
                genuine(verifier),
                Standing::Known(Credential::Password(Arc::clone(password))),
            ),
            (Some(Stored::Verifier(verifier)), _) => {
                Challenge::Scram(genuine(verifier), Standing::Known(Credential::None))
            }
            (Some(Stored::Md5(hash)), PasswordMethod::Md5) => {
                Challenge::Md5(hash.clone(), Standing::Known(Credential::Md5Hash(hash.clone())))
            }
            (Some(Stored::Md5(_)), PasswordMethod::ScramSha256) | (Some(Stored::Nothing) | None, _) => mock,
        }
    }

    /// What can log in as `user` without the user having proved anything: under `trust`, and for connections
    /// made in advance.
    pub fn credential(&self, user: &str) -> Credential {
        match self.known.get(user) {
            Some(Stored::Plain { password, .. }) => Credential::Password(Arc::clone(password)),
            Some(Stored::Md5(hash)) => Credential::Md5Hash(hash.clone()),
            Some(Stored::Verifier(_) | Stored::Nothing) | None => Credential::None,
        }
    }

    fn mock_challenge(&self, user: &str, method: PasswordMethod) -> Challenge {
        let shapes = match method {
            PasswordMethod::ScramSha256 => &self.shapes_scram,
            PasswordMethod::Md5 => &self.shapes_md5,
        };
        let pick = u64::from_be_bytes(
            keyed(&self.mock, "shape", user, 0)[..8]
                .try_into()
                .expect("8 of 32 bytes"),
        );
        let index = usize::try_from(pick % shapes.len() as u64).expect("less than a length");
        match shapes[index] {
            Shape::Scram {
                iterations,
                salt_size,
            } => {
                let verifier = Verifier::mock(
                    salt(&self.mock, user, salt_size),
                    iterations,
                    keyed(&self.mock, "stored key", user, 0),
                    keyed(&self.mock, "server key", user, 0),
                );
                let candidate = Candidate {
                    verifier: Arc::new(verifier),
                    genuine: false,
                };
                Challenge::Scram(candidate, Standing::Unknown)
            }
            Shape::Md5 => {
                let bytes = keyed(&self.mock, "md5", user, 0);
                let half = bytes[..KEY_SIZE / 2].try_into().expect("16 of 32 bytes");
                Challenge::Md5(Md5Hash::from_bytes(half), Standing::Unknown)
            }
        }
    }
}

impl Stored {
    /// What the user looks like under `method`; none if it is asked what nobody can answer.
    fn shape(&self, method: PasswordMethod) -> Option<Shape> {
        let of = |verifier: &Verifier| Shape::Scram {
            iterations: verifier.iterations(),
            salt_size: verifier.salt().len(),
        };
        match (self, method) {
            (Stored::Plain { verifier, .. }, PasswordMethod::ScramSha256)
            | (Stored::Verifier(verifier), _) => Some(of(verifier)),
            (Stored::Plain { .. } | Stored::Md5(_), PasswordMethod::Md5) => Some(Shape::Md5),
            (Stored::Md5(_), PasswordMethod::ScramSha256) | (Stored::Nothing, _) => None,
        }
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({} known)", self.known.len())
    }
}

/// Tells a stored secret's kind as PostgreSQL does (src/backend/libpq/crypt.c, get_password_type), except that a
/// malformed verifier is an error and not somebody's odd password.
fn store(user: &User, mock: &hmac::Key) -> Result<Stored, UserError> {
    let Some(secret) = &user.password else {
        return Ok(Stored::Nothing);
    };
    let text = secret.reveal();
    if text.starts_with("SCRAM-SHA-256$") {
        return match Verifier::parse(text) {
            Some(verifier) => Ok(Stored::Verifier(Arc::new(verifier))),
            None => Err(UserError::MalformedVerifier(user.name.clone())),
        };
    }
    if let Some(hash) = Md5Hash::parse(text) {
        return Ok(Stored::Md5(hash));
    }
    Ok(store_plain(&user.name, secret, mock))
}

fn store_plain(user: &str, secret: &Secret, mock: &hmac::Key) -> Stored {
    // The same salt that an unknown user of that name would be shown: from outside they are alike.
    let salt = salt(mock, user, SALT_SIZE);
    let keys: Keys = Keys::derive(secret.reveal(), &salt, ITERATIONS_DEFAULT);
    Stored::Plain {
        password: Arc::new(Password::new(secret.clone())),
        verifier: Arc::new(keys.verifier(salt, ITERATIONS_DEFAULT)),
        hash: Md5Hash::of(secret.reveal(), user),
    }
}

fn genuine(verifier: &Arc<Verifier>) -> Candidate {
    Candidate {
        verifier: Arc::clone(verifier),
        genuine: true,
    }
}

/// As many bytes as the salt needs, the same for a user as long as the process lives.
fn salt(mock: &hmac::Key, user: &str, size: usize) -> Vec<u8> {
    let mut salt = Vec::with_capacity(size + KEY_SIZE);
    let mut block = 0;
    while salt.len() < size {
        salt.extend_from_slice(&keyed(mock, "salt", user, block));
        block += 1;
    }
    salt.truncate(size);
    salt
}

fn keyed(key: &hmac::Key, purpose: &str, user: &str, block: u32) -> [u8; KEY_SIZE] {
    let mut context = hmac::Context::with_key(key);
    context.update(purpose.as_bytes());
    context.update(&block.to_be_bytes());
    context.update(user.as_bytes());
    let mut tag = [0; KEY_SIZE];
    tag.copy_from_slice(context.sign().as_ref());
    tag
}
