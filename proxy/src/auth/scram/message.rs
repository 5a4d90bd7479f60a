//! The grammar of SCRAM's messages: attributes `x=value` between commas (RFC 5802, section 7).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{KEY_SIZE, Key, MESSAGE_SIZE_MAX, NONCE_LENGTH_MAX, ScramError};

/// Reads attributes one after the other.
pub(super) struct Attributes<'m> {
    message: &'m [u8],
    /// Where the next attribute begins; one past the end once all are read.
    at: usize,
}

impl<'m> Attributes<'m> {
    pub(super) fn of(message: &'m [u8]) -> Self {
        Self { message, at: 0 }
    }

    /// Bytes before the next attribute, the comma included.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Whether all are read.
    pub(super) fn is_at_end(&self) -> bool {
        self.at > self.message.len()
    }

    /// The next attribute, whichever it is.
    pub(super) fn any(&mut self) -> Result<(u8, &'m [u8]), ScramError> {
        let Some(rest) = self.message.get(self.at..) else {
            return Err(ScramError::Malformed("An attribute is missing."));
        };
        let length = rest.iter().position(|&byte| byte == b',').unwrap_or(rest.len());
        let [name, b'=', value @ ..] = &rest[..length] else {
            return Err(ScramError::Malformed(
                "An attribute is not of the form name=value.",
            ));
        };
        if !name.is_ascii_alphabetic() {
            return Err(ScramError::Malformed("The name of an attribute is not a letter."));
        }
        self.at += length + 1;
        Ok((*name, value))
    }

    /// The next attribute, which must be `name`.
    pub(super) fn expect(&mut self, name: u8) -> Result<&'m [u8], ScramError> {
        match self.any()? {
            (found, value) if found == name => Ok(value),
            _ => Err(ScramError::Malformed("Another attribute was expected.")),
        }
    }
}

/// What must be true of every message before it is looked into.
pub(super) fn check(message: &[u8]) -> Result<(), ScramError> {
    if message.is_empty() {
        return Err(ScramError::Malformed("The message is empty."));
    }
    if message.len() > MESSAGE_SIZE_MAX {
        return Err(ScramError::Malformed("The message is too long."));
    }
    Ok(())
}

/// A nonce: printable characters without comma, and not endlessly many.
pub(super) fn check_nonce(nonce: &[u8]) -> Result<(), ScramError> {
    if nonce.is_empty() {
        return Err(ScramError::Malformed("The nonce is empty."));
    }
    if nonce.len() > NONCE_LENGTH_MAX {
        return Err(ScramError::Malformed("The nonce is too long."));
    }
    if !nonce.iter().all(u8::is_ascii_graphic) {
        return Err(ScramError::Malformed(
            "The nonce has characters that are not printable.",
        ));
    }
    Ok(())
}

/// A key or signature in base64.
pub(super) fn key(text: &[u8]) -> Option<Key> {
    // Padded base64 of 32 bytes has 44 characters; anything longer is not worth decoding.
    if text.len() > KEY_SIZE * 2 {
        return None;
    }
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}
