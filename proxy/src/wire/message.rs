//! The few bodies that a router must read, and only as far as it must.

use std::ops::Range;

use crate::error::SqlState;

fn c_string(body: &[u8], from: usize) -> Option<Range<usize>> {
    let rest = body.get(from..)?;
    // Most names are empty.
    let length = if rest.first() == Some(&0) {
        0
    } else {
        memchr::memchr(0, rest)?
    };
    Some(from..from + length)
}

/// The columns of a DataRow, NULL as `None`. `None` if the body is malformed.
pub fn data_row(body: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        columns.push(match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let (column, tail) = rest.split_at_checked(length)?;
                rest = tail;
                Some(column.to_vec())
            }
            Err(_) => None,
        });
    }
    rest.is_empty().then_some(columns)
}

/// Where the parts of a Parse body lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseParts {
    /// The statement's name; empty for the unnamed one.
    pub name: Range<usize>,
    /// The query text, without its zero byte.
    pub text: Range<usize>,
    /// The count of parameter types and the types, to the end of the body.
    pub types: Range<usize>,
}

/// Takes a Parse body apart.
pub fn parse_parts(body: &[u8]) -> Option<ParseParts> {
    let name = c_string(body, 0)?;
    let text = c_string(body, name.end + 1)?;
    let types = text.end + 1..body.len();
    let count = u16::from_be_bytes(*body.get(types.clone())?.first_chunk()?) as usize;
    (types.len() == 2 + 4 * count).then_some(ParseParts { name, text, types })
}

/// Where the names in a Bind body lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindNames {
    /// The portal's name.
    pub portal: Range<usize>,
    /// The statement's name.
    pub statement: Range<usize>,
}

/// Reads the two names that a Bind body begins with.
pub fn bind_names(body: &[u8]) -> Option<BindNames> {
    let portal = c_string(body, 0)?;
    let statement = c_string(body, portal.end + 1)?;
    Some(BindNames { portal, statement })
}

/// Reads what Describe and Close name: `S` or `P`, and the name.
pub fn target_name(body: &[u8]) -> Option<(u8, Range<usize>)> {
    let kind = *body.first()?;
    let name = c_string(body, 1)?;
    (name.end + 1 == body.len()).then_some((kind, name))
}

/// Reads a ParameterStatus body.
pub fn parameter_status(body: &[u8]) -> Option<(&str, &str)> {
    let name = c_string(body, 0)?;
    let value = c_string(body, name.end + 1)?;
    Some((
        std::str::from_utf8(&body[name]).ok()?,
        std::str::from_utf8(&body[value]).ok()?,
    ))
}

/// The fields of an ErrorResponse that decide what happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    /// Whether the server ends the connection with it.
    pub fatal: bool,
    /// The condition; `XX000` where a peer sent none.
    pub sqlstate: SqlState,
    /// The primary message.
    pub message: &'a [u8],
    /// The function in the server's source that said it; empty where none was sent.
    pub routine: &'a [u8],
}

/// Reads an ErrorResponse body; what is missing or malformed is taken for an internal error.
pub fn error_fields(body: &[u8]) -> ErrorFields<'_> {
    let mut fields = ErrorFields {
        fatal: false,
        sqlstate: SqlState::INTERNAL_ERROR,
        message: b"",
        routine: b"",
    };
    let mut at = 0;
    while let Some(&field) = body.get(at).filter(|&&field| field != 0) {
        let Some(value) = c_string(body, at + 1) else {
            break;
        };
        let text = &body[value.clone()];
        match field {
            b'V' => fields.fatal = matches!(text, b"FATAL" | b"PANIC"),
            b'C' => {
                if let Ok(code) = <[u8; 5]>::try_from(text) {
                    fields.sqlstate = SqlState(code);
                }
            }
            b'M' => fields.message = text,
            b'R' => fields.routine = text,
            _ => {}
        }
        at = value.end + 1;
    }
    fields
}
