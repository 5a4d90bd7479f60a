//! PostgreSQL's md5 authentication (src/common/md5_common.c): the stored hash is `md5` and the hexadecimal
//! MD5 of password and user name; the answer is the same over the hash's digits and a salt of four bytes.

use std::fmt;

use ::md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// Bytes of salt in AuthenticationMD5Password.
pub const SALT_SIZE: usize = 4;

const HEX_DIGITS: usize = 32;

/// The hash that stands for a password, without its `md5` in front. It is as good as the password to whoever
/// holds it.
#[derive(Clone)]
pub struct Md5Hash([u8; HEX_DIGITS]);

impl Md5Hash {
    /// The hash of a user's password, as CREATE ROLE with `password_encryption = md5` stores it.
    pub fn of(password: &str, user: &str) -> Self {
        Self(hex_md5(&[password.as_bytes(), user.as_bytes()]))
    }

    /// Reads `md5` and 32 hexadecimal digits; none if it is anything else.
    pub fn parse(stored: &str) -> Option<Self> {
        let digits: [u8; HEX_DIGITS] = stored.strip_prefix("md5")?.as_bytes().try_into().ok()?;
        // PostgreSQL takes lower case alone (MD5_PASSWD_CHARSET).
        let hexadecimal = digits
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        hexadecimal.then_some(Self(digits))
    }

    /// A hash made of 16 arbitrary bytes.
    pub(super) fn from_bytes(bytes: [u8; HEX_DIGITS / 2]) -> Self {
        Self(hex(bytes))
    }

    /// What answers a challenge: the text of the PasswordMessage.
    pub fn answer(&self, salt: [u8; SALT_SIZE]) -> String {
        let digits = hex_md5(&[&self.0, &salt]);
        let mut answer = String::with_capacity(3 + HEX_DIGITS);
        answer.push_str("md5");
        answer.extend(digits.iter().map(|&digit| char::from(digit)));
        answer
    }

    /// Whether `answer` is the right one, in time that does not depend on where it differs.
    pub fn accepts(&self, salt: [u8; SALT_SIZE], answer: &[u8]) -> bool {
        self.answer(salt).as_bytes().ct_eq(answer).into()
    }
}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hash(…)")
    }
}

fn hex_md5(parts: &[&[u8]]) -> [u8; HEX_DIGITS] {
    let mut md5 = Md5::new();
    for part in parts {
        md5.update(part);
    }
    hex(md5.finalize().into())
}

fn hex(bytes: [u8; HEX_DIGITS / 2]) -> [u8; HEX_DIGITS] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; HEX_DIGITS];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    digits
}
