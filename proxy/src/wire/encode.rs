//! The few messages that Halyard writes itself, appended to whatever goes out next.

use super::frame::{backend, frontend};

/// Appends a frame of type `kind` whose body `fill` writes.
pub fn tagged(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = u32::try_from(out.len() - length_at).expect("frames we write are far below 4 GiB");
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

fn c_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}

/// ReadyForQuery with a transaction status of `I`, `T` or `E`.
pub fn ready_for_query(out: &mut Vec<u8>, status: u8) {
    tagged(out, backend::READY_FOR_QUERY, |out| out.push(status));
}

/// A message without a body, such as ParseComplete or CloseComplete.
pub fn empty_message(out: &mut Vec<u8>, kind: u8) {
    out.extend_from_slice(&[kind, 0, 0, 0, 4]);
}

/// Sync.
pub const SYNC: [u8; 5] = [frontend::SYNC, 0, 0, 0, 4];

/// Flush.
pub const FLUSH: [u8; 5] = [frontend::FLUSH, 0, 0, 0, 4];

/// ParameterStatus.
pub fn write_parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    tagged(out, backend::PARAMETER_STATUS, |out| {
        c_string(out, name.as_bytes());
        c_string(out, value.as_bytes());
    });
}

/// Query.
pub fn query(out: &mut Vec<u8>, text: &[u8]) {
    tagged(out, frontend::QUERY, |out| c_string(out, text));
}

/// Parse under another name; `types` is the body's tail from the count of parameter types on.
pub fn parse_renamed(out: &mut Vec<u8>, name: &[u8], text: &[u8], types: &[u8]) {
    tagged(out, frontend::PARSE, |out| {
        c_string(out, name);
        c_string(out, text);
        out.extend_from_slice(types);
    });
}

/// Bind of another statement; `rest` is what has arrived of the body behind the statement's name and its zero
/// byte, and `missing` bytes of it will follow.
pub fn bind_renamed(out: &mut Vec<u8>, portal: &[u8], statement: &[u8], rest: &[u8], missing: usize) {
    let length = 4 + portal.len() + 1 + statement.len() + 1 + rest.len() + missing;
    out.push(frontend::BIND);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    c_string(out, portal);
    c_string(out, statement);
    out.extend_from_slice(rest);
}

/// Describe of another statement.
pub fn describe_renamed(out: &mut Vec<u8>, statement: &[u8]) {
    tagged(out, frontend::DESCRIBE, |out| {
        out.push(b'S');
        c_string(out, statement);
    });
}

/// Execute of the unnamed portal, to its end.
pub fn execute(out: &mut Vec<u8>, portal: &[u8]) {
    tagged(out, frontend::EXECUTE, |out| {
        c_string(out, portal);
        out.extend_from_slice(&[0; 4]);
    });
}

/// Close of a portal.
pub fn close_portal(out: &mut Vec<u8>, portal: &[u8]) {
    tagged(out, frontend::CLOSE, |out| {
        out.push(b'P');
        c_string(out, portal);
    });
}

/// Close of a statement.
pub fn close_statement(out: &mut Vec<u8>, statement: &[u8]) {
    tagged(out, frontend::CLOSE, |out| {
        out.push(b'S');
        c_string(out, statement);
    });
}
