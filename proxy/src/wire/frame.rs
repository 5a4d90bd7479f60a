//! One message's frame: a type byte and a length that counts itself but not the type.

/// Bytes of a frame before its body.
pub const HEADER_SIZE: usize = 5;

/// Longest message PostgreSQL takes (`PQ_LARGE_MESSAGE_LIMIT` in `libpq/libpq.h`: `MaxAllocSize - 1`); bytes,
/// the length word included.
pub const MESSAGE_SIZE_MAX: u32 = 0x3fff_fffe;

/// Longest of the messages that are short by nature (`PQ_SMALL_MESSAGE_LIMIT`); bytes.
const SMALL_MESSAGE_SIZE_MAX: u32 = 10_000;

/// Messages that a frontend sends.
pub mod frontend {
    /// Bind.
    pub const BIND: u8 = b'B';
    /// Close.
    pub const CLOSE: u8 = b'C';
    /// CopyData, in either direction.
    pub const COPY_DATA: u8 = b'd';
    /// CopyDone, in either direction.
    pub const COPY_DONE: u8 = b'c';
    /// CopyFail.
    pub const COPY_FAIL: u8 = b'f';
    /// Describe.
    pub const DESCRIBE: u8 = b'D';
    /// Execute.
    pub const EXECUTE: u8 = b'E';
    /// Flush.
    pub const FLUSH: u8 = b'H';
    /// FunctionCall.
    pub const FUNCTION_CALL: u8 = b'F';
    /// Parse.
    pub const PARSE: u8 = b'P';
    /// Query.
    pub const QUERY: u8 = b'Q';
    /// Sync.
    pub const SYNC: u8 = b'S';
    /// Terminate.
    pub const TERMINATE: u8 = b'X';
}

/// Messages that a backend sends.
pub mod backend {
    /// BindComplete.
    pub const BIND_COMPLETE: u8 = b'2';
    /// BackendKeyData.
    pub const BACKEND_KEY_DATA: u8 = b'K';
    /// CloseComplete.
    pub const CLOSE_COMPLETE: u8 = b'3';
    /// CommandComplete.
    pub const COMMAND_COMPLETE: u8 = b'C';
    /// CopyData.
    pub const COPY_DATA: u8 = b'd';
    /// CopyDone.
    pub const COPY_DONE: u8 = b'c';
    /// CopyBothResponse.
    pub const COPY_BOTH_RESPONSE: u8 = b'W';
    /// CopyInResponse.
    pub const COPY_IN_RESPONSE: u8 = b'G';
    /// CopyOutResponse.
    pub const COPY_OUT_RESPONSE: u8 = b'H';
    /// DataRow.
    pub const DATA_ROW: u8 = b'D';
    /// EmptyQueryResponse.
    pub const EMPTY_QUERY_RESPONSE: u8 = b'I';
    /// ErrorResponse.
    pub const ERROR_RESPONSE: u8 = b'E';
    /// FunctionCallResponse.
    pub const FUNCTION_CALL_RESPONSE: u8 = b'V';
    /// NoData.
    pub const NO_DATA: u8 = b'n';
    /// NoticeResponse.
    pub const NOTICE_RESPONSE: u8 = b'N';
    /// NotificationResponse.
    pub const NOTIFICATION_RESPONSE: u8 = b'A';
    /// ParameterDescription.
    pub const PARAMETER_DESCRIPTION: u8 = b't';
    /// ParameterStatus.
    pub const PARAMETER_STATUS: u8 = b'S';
    /// ParseComplete.
    pub const PARSE_COMPLETE: u8 = b'1';
    /// PortalSuspended.
    pub const PORTAL_SUSPENDED: u8 = b's';
    /// ReadyForQuery.
    pub const READY_FOR_QUERY: u8 = b'Z';
    /// RowDescription.
    pub const ROW_DESCRIPTION: u8 = b'T';
}

/// What is wrong with a frame; PostgreSQL ends the connection with 08P01 for either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The type byte is none of the protocol's.
    #[error("invalid frontend message type {0}")]
    UnknownType(u8),
    /// The length is below 4 or above what this type may have.
    #[error("invalid message length")]
    Length {
        /// The message's type byte.
        kind: u8,
        /// The length word as sent.
        length: u32,
    },
    /// A message names a statement as Halyard names what it prepares for everybody.
    #[error("names of prepared statements that begin with \"halyard_\" are reserved")]
    ReservedName,
}

/// A frame's type and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub kind: u8,
    /// The length word: body and itself, at least 4.
    pub length: u32,
}

impl Header {
    /// Reads the header at the start of `bytes`: not yet, here it is, or broken.
    ///
    /// # Errors
    /// A length below 4 or above [`MESSAGE_SIZE_MAX`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
        let Some(&[kind, a, b, c, d]) = bytes.first_chunk::<HEADER_SIZE>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        if !(4..=MESSAGE_SIZE_MAX).contains(&length) {
            return Err(FrameError::Length { kind, length });
        }
        Ok(Some(Header { kind, length }))
    }

    /// As [`Header::parse`], with the types and limits a server applies to its clients
    /// (`SocketBackend` in `tcop/postgres.c`).
    ///
    /// # Errors
    /// An unknown type, or a length outside of the type's bounds.
    #[inline]
    pub fn parse_frontend(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
        use frontend::{
            BIND, CLOSE, COPY_DATA, COPY_DONE, COPY_FAIL, DESCRIBE, EXECUTE, FLUSH, FUNCTION_CALL, PARSE,
            QUERY, SYNC, TERMINATE,
        };
        let Some(&kind) = bytes.first() else {
            return Ok(None);
        };
        let longest = match kind {
            QUERY | BIND | PARSE | FUNCTION_CALL | COPY_DATA => MESSAGE_SIZE_MAX,
            CLOSE | DESCRIBE | EXECUTE | FLUSH | SYNC | TERMINATE | COPY_DONE | COPY_FAIL => {
                SMALL_MESSAGE_SIZE_MAX
            }
            _ => return Err(FrameError::UnknownType(kind)),
        };
        let Some(header) = Header::parse(bytes)? else {
            return Ok(None);
        };
        if header.length > longest {
            return Err(FrameError::Length {
                kind,
                length: header.length,
            });
        }
        Ok(Some(header))
    }

    /// Bytes of the whole frame, type byte included.
    #[inline]
    pub fn total(self) -> usize {
        self.length as usize + 1
    }

    /// Bytes of the body.
    #[inline]
    pub fn body(self) -> usize {
        self.length as usize - 4
    }
}
