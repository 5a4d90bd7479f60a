//! Reading messages one at a time, as both legs need it before a session exists.
//!
//! Lengths are checked before anything is allocated for them. What was read beyond the last message wanted stays
//! in the [`Inbox`] and is handed on: a client may send its first query together with its password.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use crate::stream::Stream;

/// Bytes asked of the stream in one read.
const READ_SIZE: usize = 4096;

/// Bytes of the type and length in front of a message.
const HEADER_SIZE: usize = 5;

/// What has been read and not yet been looked at.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: BytesMut,
}

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The stream ended between two messages.
    #[error("the connection was closed")]
    Closed,
    /// The stream ended inside a message.
    #[error("the connection was closed inside a message")]
    Truncated,
    /// The message declares a length that no message of its kind has; `kind` is 0 for a startup packet.
    #[error("a message of type {kind:#04x} declares a length of {length}")]
    Length { kind: u8, length: u32 },
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Inbox {
    /// Whether everything read has been taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What was read beyond the last message taken.
    pub(crate) fn into_leftover(self) -> Vec<u8> {
        self.bytes.into()
    }

    /// Reads one startup packet: its body, behind the length. The length counts itself and must leave
    /// `sizes.0..=sizes.1` bytes for the body. Cancel safe: what has been read stays here.
    pub(crate) async fn startup_packet(
        &mut self,
        stream: &mut Stream,
        sizes: (usize, usize),
    ) -> Result<Bytes, ReadError> {
        self.fill_to(stream, 4).await?;
        let length = u32::from_be_bytes([self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]]);
        let body = body_size(length).filter(|size| (sizes.0..=sizes.1).contains(size));
        let size = body.ok_or(ReadError::Length { kind: 0, length })?;
        self.fill_to(stream, 4 + size).await?;
        self.bytes.advance(4);
        Ok(self.bytes.split_to(size).freeze())
    }

    /// Reads one message of at most `size_max` bytes of body: its type and its body. Cancel safe: what has been
    /// read stays here.
    pub(crate) async fn message(
        &mut self,
        stream: &mut Stream,
        size_max: usize,
    ) -> Result<(u8, Bytes), ReadError> {
        self.fill_to(stream, HEADER_SIZE).await?;
        let kind = self.bytes[0];
        let length = u32::from_be_bytes([self.bytes[1], self.bytes[2], self.bytes[3], self.bytes[4]]);
        let body = body_size(length).filter(|&size| size <= size_max);
        let size = body.ok_or(ReadError::Length { kind, length })?;
        self.fill_to(stream, HEADER_SIZE + size).await?;
        self.bytes.advance(HEADER_SIZE);
        Ok((kind, self.bytes.split_to(size).freeze()))
    }

    /// Reads until at least `wanted` bytes are here.
    async fn fill_to(&mut self, stream: &mut Stream, wanted: usize) -> Result<(), ReadError> {
        while self.bytes.len() < wanted {
            self.bytes.reserve(READ_SIZE.max(wanted - self.bytes.len()));
            if stream.read_buf(&mut self.bytes).await? == 0 {
                return Err(match self.bytes.is_empty() {
                    true => ReadError::Closed,
                    false => ReadError::Truncated,
                });
            }
        }
        Ok(())
    }
}

/// What a length, which counts its own four bytes, leaves for the body.
fn body_size(length: u32) -> Option<usize> {
    usize::try_from(length.checked_sub(4)?).ok()
}

/// Reads a zero-terminated string off the front; none if the zero is missing.
pub(crate) fn take_cstring(bytes: &mut Bytes) -> Option<Bytes> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let text = bytes.split_to(end);
    bytes.advance(1);
    Some(text)
}
