//! Startup packets, as pure functions: what a client says before it is known (manual, "Message Formats":
//! StartupMessage, SSLRequest, GSSENCRequest, CancelRequest; src/backend/tcop/backend_startup.c).
//!
//! pgwire has these messages too, but reads texts lossily and forgives a packet that does not end where it should;
//! names decide who somebody is, so here they are taken exactly or not at all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;

use super::CancelKey;
use super::options;
use crate::error::{Report, SqlState};
use crate::handshake::take_cstring;

/// Largest body of a startup packet: PostgreSQL's MAX_STARTUP_PACKET_LENGTH. The length word comes on top.
pub const STARTUP_PACKET_SIZE_MAX: usize = 10_000;
/// Smallest body: the version.
pub(super) const STARTUP_PACKET_SIZE_MIN: usize = 4;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// The newest version spoken.
const LATEST: (u16, u16) = (3, 2);

/// The version of the protocol that a session speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtocolVersion {
    /// 3.0, since PostgreSQL 7.4: cancel keys have four bytes.
    V3_0,
    /// 3.2, since PostgreSQL 18: cancel keys have up to 256 bytes.
    V3_2,
}

impl ProtocolVersion {
    /// As NegotiateProtocolVersion wants it: major in the upper 16 bits, minor in the lower.
    pub fn number(self) -> i32 {
        match self {
            ProtocolVersion::V3_0 => 3 << 16,
            ProtocolVersion::V3_2 => (3 << 16) | 2,
        }
    }
}

/// What the `replication` parameter asks for (manual, "Streaming Replication Protocol").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// Physical replication: no database.
    Physical,
    /// Logical replication, connected to a database.
    Database,
}

/// The first thing a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    SslRequest,
    GssEncRequest,
    Cancel(CancelKey),
    Startup(StartupPacket),
}

/// A StartupMessage.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StartupPacket {
    /// What the session speaks: the client's version, or the newest below it that we know.
    pub(super) version: ProtocolVersion,
    /// What the client has to be told by NegotiateProtocolVersion; none if it got all that it asked for.
    pub(super) negotiation: Option<Negotiation>,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) replication: Option<Replication>,
    /// In the order in which PostgreSQL applies them: `options` first. Each name once.
    pub(super) settings: Vec<(String, String)>,
}

/// What the client asked for and does not get.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Negotiation {
    pub(super) unsupported_options: Vec<String>,
}

/// Reads the body of a startup packet.
pub(super) fn parse(mut body: Bytes) -> Result<Packet, Report> {
    let Some(code) = take_u32(&mut body) else {
        return Err(invalid_length());
    };
    match code {
        SSL_REQUEST if body.is_empty() => Ok(Packet::SslRequest),
        GSSENC_REQUEST if body.is_empty() => Ok(Packet::GssEncRequest),
        SSL_REQUEST | GSSENC_REQUEST => Err(invalid_length()),
        CANCEL_REQUEST => parse_cancel(body),
        version => parse_startup(version, body).map(Packet::Startup),
    }
}

pub(super) fn invalid_length() -> Report {
    Report::fatal(SqlState::PROTOCOL_VIOLATION, "invalid length of startup packet")
}

/// A request for encryption that came where none may come reads as a version that nobody speaks.
pub(super) fn misplaced(packet: &Packet) -> Report {
    unsupported_version(match packet {
        Packet::GssEncRequest => GSSENC_REQUEST,
        _ => SSL_REQUEST,
    })
}

fn parse_cancel(mut body: Bytes) -> Result<Packet, Report> {
    let malformed = || {
        Report::fatal(
            SqlState::PROTOCOL_VIOLATION,
            "invalid length of cancel request packet",
        )
    };
    let pid = take_u32(&mut body).ok_or_else(malformed)?.cast_signed();
    let secret = body.to_vec();
    if !CancelKey::SECRET_SIZES.contains(&secret.len()) {
        return Err(malformed());
    }
    Ok(Packet::Cancel(CancelKey { pid, secret }))
}

fn unsupported_version(version: u32) -> Report {
    let (major, minor) = halves(version);
    let (latest_major, latest_minor) = LATEST;
    Report::fatal(
        SqlState::FEATURE_NOT_SUPPORTED,
        format!(
            "unsupported frontend protocol {major}.{minor}: server supports 3.0 to {latest_major}.{latest_minor}"
        ),
    )
}

fn halves(version: u32) -> (u32, u32) {
    (version >> 16, version & 0xffff)
}

fn parse_startup(version: u32, mut body: Bytes) -> Result<StartupPacket, Report> {
    let (major, minor) = halves(version);
    if major != u32::from(LATEST.0) {
        return Err(unsupported_version(version));
    }
    let parameters = Parameters::read(&mut body)?;
    let version = match minor {
        // 3.1 was never spoken; PostgreSQL takes it for 3.0.
        0 | 1 => ProtocolVersion::V3_0,
        _ => ProtocolVersion::V3_2,
    };
    let wants_more = minor > u32::from(LATEST.1) || !parameters.protocol_options.is_empty();
    let negotiation = wants_more.then_some(Negotiation {
        unsupported_options: parameters.protocol_options,
    });
    if parameters.user.is_empty() {
        return Err(Report::fatal(
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            "no PostgreSQL user name specified in startup packet",
        ));
    }
    let database = match parameters.database.is_empty() {
        true => parameters.user.clone(),
        false => parameters.database,
    };
    let mut settings = options::parse(&parameters.options)?;
    settings.extend(parameters.settings);
    Ok(StartupPacket {
        version,
        negotiation,
        user: parameters.user,
        database,
        replication: parameters.replication,
        settings: keep_last(settings),
    })
}

/// The names and values of a StartupMessage, sorted by who is meant.
#[derive(Default)]
struct Parameters {
    user: String,
    database: String,
    options: String,
    replication: Option<Replication>,
    settings: Vec<(String, String)>,
    /// Names that begin with `_pq_.`, none of which we know.
    protocol_options: Vec<String>,
}

impl Parameters {
    fn read(body: &mut Bytes) -> Result<Self, Report> {
        let mut parameters = Self::default();
        loop {
            let name = take_cstring(body).ok_or_else(missing_terminator)?;
            if name.is_empty() {
                break;
            }
            let value = take_cstring(body).ok_or_else(missing_terminator)?;
            parameters.take(&name, &value)?;
        }
        // The empty name ends the packet; what lies behind it would be somebody else's message.
        if !body.is_empty() {
            return Err(missing_terminator());
        }
        Ok(parameters)
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), Report> {
        match name {
            b"user" => self.user = text(value)?,
            b"database" => self.database = text(value)?,
            b"options" => self.options = text(value)?,
            b"replication" => self.replication = replication(&text(value)?)?,
            // PostgreSQL replaces what is not ASCII in this one (pg_clean_ascii), so no client is refused for it.
            b"application_name" => self
                .settings
                .push(("application_name".to_owned(), clean_ascii(value))),
            _ if name.starts_with(b"_pq_.") => self.protocol_options.push(text(name)?),
            _ => self.settings.push((text(name)?, text(value)?)),
        }
        Ok(())
    }
}

fn missing_terminator() -> Report {
    Report::fatal(
        SqlState::PROTOCOL_VIOLATION,
        "invalid startup packet layout: expected terminator as last byte",
    )
}

fn text(bytes: &[u8]) -> Result<String, Report> {
    /// character_not_in_repertoire
    const NOT_IN_REPERTOIRE: SqlState = SqlState(*b"22021");
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Report::fatal(
            NOT_IN_REPERTOIRE,
            "invalid byte sequence for encoding \"UTF8\" in startup packet",
        )
        .with_hint("Names and settings are taken in UTF-8 before a session exists.")),
    }
}

fn clean_ascii(bytes: &[u8]) -> String {
    let clean = |byte: &u8| match byte {
        32..=126 => char::from(*byte),
        _ => '?',
    };
    bytes.iter().map(clean).collect()
}

/// A boolean in any of PostgreSQL's spellings (parse_bool), or `database`.
fn replication(value: &str) -> Result<Option<Replication>, Report> {
    /// invalid_parameter_value
    const INVALID_PARAMETER_VALUE: SqlState = SqlState(*b"22023");
    if value == "database" {
        return Ok(Some(Replication::Database));
    }
    let lower = value.to_ascii_lowercase();
    let abbreviates = |word: &str, letters_min: usize| lower.len() >= letters_min && word.starts_with(&lower);
    if abbreviates("true", 1) || abbreviates("yes", 1) || abbreviates("on", 2) || lower == "1" {
        Ok(Some(Replication::Physical))
    } else if abbreviates("false", 1) || abbreviates("no", 1) || abbreviates("off", 2) || lower == "0" {
        Ok(None)
    } else {
        Err(Report::fatal(
            INVALID_PARAMETER_VALUE,
            format!("invalid value for parameter \"replication\": \"{value}\""),
        )
        .with_hint("Valid values are: \"false\", 0, \"true\", 1, \"database\"."))
    }
}

/// Of settings of the same name the last one counts; names of settings know no case.
fn keep_last(settings: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut kept: Vec<(String, String)> = Vec::with_capacity(settings.len());
    // A packet has room for thousands of names, and nobody has authenticated yet: no search through a list.
    let mut places: HashMap<String, usize> = HashMap::with_capacity(settings.len());
    for (name, value) in settings {
        match places.entry(name.to_ascii_lowercase()) {
            Entry::Occupied(place) => kept[*place.get()].1 = value,
            Entry::Vacant(place) => {
                place.insert(kept.len());
                kept.push((name, value));
            }
        }
    }
    kept
}

fn take_u32(bytes: &mut Bytes) -> Option<u32> {
    let number = u32::from_be_bytes(*bytes.first_chunk()?);
    drop(bytes.split_to(4));
    Some(number)
}
