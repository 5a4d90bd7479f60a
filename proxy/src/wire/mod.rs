//! Bytes as the frontend/backend protocol lays them out, and nothing else: no I/O, no runtime.
//!
//! Source of every format: the manual, "Message Formats" (protocol-message-formats), and PostgreSQL's
//! `src/include/libpq/protocol.h`.

mod buffer;
mod encode;
mod frame;
mod message;

pub use buffer::{BUFFER_SIZE, BufferPool, FrameBuf, OutBuf};
pub use encode::{
    FLUSH, SYNC, bind_renamed, close_portal, close_statement, describe_renamed, empty_message, execute,
    parse_renamed, query, ready_for_query, tagged, write_parameter_status,
};
pub use frame::{FrameError, HEADER_SIZE, Header, MESSAGE_SIZE_MAX, backend, frontend};
pub use message::{
    BindNames, ErrorFields, ParseParts, bind_names, data_row, error_fields, parameter_status, parse_parts,
    target_name,
};

#[cfg(test)]
mod tests;
