//! What came back, in words that two servers must agree on.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use crate::support::Message;

use super::language::Exchange;

/// OIDs from here on were assigned by the running server (`FirstNormalObjectId` in `access/transam.h`).
const FIRST_ASSIGNED_OID: u32 = 16_384;

/// How a setting is told that a server reports when a client connects.
pub(crate) const CONNECTED: &str = "connected with";

/// One message.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    text: String,
    /// File, line and routine of an error or notice: what Halyard says by itself has no line.
    source: Option<String>,
}

impl Said {
    /// What is no message, such as the end of a connection.
    pub(crate) fn event(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            source: None,
        }
    }

    /// In words, without its source.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_parameter(&self) -> bool {
        self.text.starts_with("ParameterStatus")
    }

    fn agrees(&self, other: &Self) -> bool {
        let sources_agree = match (&self.source, &other.source) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.text == other.text && sources_agree
    }

    fn shown(&self) -> String {
        match &self.source {
            Some(source) => format!("{} {source}", self.text),
            None => self.text.clone(),
        }
    }
}

/// All that came back in one playing of an exchange.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    /// For each step what its client got while it ran.
    pub(crate) steps: Vec<Vec<Said>>,
    /// For each client its notifications, in order: when they come is nobody's promise.
    pub(crate) notifications: BTreeMap<char, Vec<String>>,
    /// After each step how many notifications each client had got in all.
    pub(crate) counts: Vec<BTreeMap<char, usize>>,
    /// What was left on backends after all clients had gone.
    pub(crate) left: Vec<String>,
}

/// Gives the OIDs of things that were made during the exchange numbers that do not depend on the server's past.
#[derive(Debug, Default)]
pub(crate) struct Translator {
    oids: HashMap<u32, usize>,
}

impl Translator {
    fn oid(&mut self, oid: u32) -> String {
        if oid < FIRST_ASSIGNED_OID {
            return oid.to_string();
        }
        let next = self.oids.len() + 1;
        format!("new{}", self.oids.entry(oid).or_insert(next))
    }

    /// The message in words, everything in it that must be the same.
    pub(crate) fn said(&mut self, message: &Message) -> Said {
        let mut body = Body(&message.body);
        let mut source = None;
        let text = match message.kind {
            b'T' => self.row_description(body),
            b't' => {
                let types: Vec<_> = (0..body.u16()).map(|_| self.oid(body.u32())).collect();
                format!("ParameterDescription({})", types.join(", "))
            }
            b'D' => {
                let values: Vec<_> = (0..body.u16()).map(|_| body.value()).collect();
                format!("DataRow({})", values.join(", "))
            }
            b'V' => format!("FunctionCallResponse({})", body.value()),
            b'E' | b'N' => {
                // In a failed block a Parse that goes in front of a Bind is refused in its place, in the same words.
                let in_failed_block = fields(&message.body, "C") == "C=25P02";
                source = Some(fields(&message.body, "FLR"))
                    .filter(|source| source.contains("L=") && !in_failed_block);
                let name = if message.kind == b'E' { "Error" } else { "Notice" };
                format!("{name}({})", fields(&message.body, "SVCMDHPpqWstcdn"))
            }
            b'S' => {
                let (name, value) = message.parameter();
                format!("ParameterStatus({name} = {value})")
            }
            b'C' => format!("CommandComplete({})", body.cstr()),
            b'Z' => format!("ReadyForQuery({})", printable(&message.body)),
            b'G' | b'H' | b'W' => format!("Copy{}Response({})", name_of(message.kind), hex(&message.body)),
            b'd' => format!("CopyData({})", printable(&message.body)),
            kind if message.body.is_empty() => name_of(kind).to_owned(),
            kind => format!("{}({})", name_of(kind), printable(&message.body)),
        };
        Said { text, source }
    }

    fn row_description(&mut self, mut body: Body<'_>) -> String {
        let columns: Vec<_> = (0..body.u16())
            .map(|_| {
                let name = body.cstr();
                let (table, column) = (self.oid(body.u32()), body.u16());
                let kind = self.oid(body.u32());
                let (size, modifier, format) = (body.u16(), body.u32(), body.u16());
                format!("{name} {table}.{column} type {kind}/{size:x}/{modifier:x} format {format}")
            })
            .collect();
        format!("RowDescription({})", columns.join(", "))
    }
}

/// Channel and payload; the number of the process that notified is its own business.
pub(crate) fn notification(message: &Message) -> String {
    let mut body = Body(&message.body[4..]);
    format!("{} {:?}", body.cstr(), body.cstr())
}

fn name_of(kind: u8) -> &'static str {
    match kind {
        b'1' => "ParseComplete",
        b'2' => "BindComplete",
        b'3' => "CloseComplete",
        b'I' => "EmptyQueryResponse",
        b'n' => "NoData",
        b's' => "PortalSuspended",
        b'c' => "CopyDone",
        b'G' => "In",
        b'H' => "Out",
        b'W' => "Both",
        b'v' => "NegotiateProtocolVersion",
        _ => "Unknown",
    }
}

fn fields(body: &[u8], wanted: &str) -> String {
    let mut found = String::new();
    for field in body.split(|byte| *byte == 0) {
        if let Some((&code, value)) = field.split_first()
            && wanted.contains(char::from(code))
        {
            let space = if found.is_empty() { "" } else { " " };
            let _ = write!(found, "{space}{}={}", char::from(code), printable(value));
        }
    }
    found
}

fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.replace('\n', "\\n").replace('\0', "\\0"),
        Err(_) => hex(bytes),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn value(&mut self) -> String {
        match self.u32() {
            u32::MAX => "NULL".to_owned(),
            length => format!("{:?}", printable(self.take(length as usize))),
        }
    }

    fn cstr(&mut self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap();
        let text = printable(self.take(end));
        self.take(1);
        text
    }
}

/// Where two playings of an exchange differ.
#[derive(Debug)]
pub(crate) struct Difference {
    /// The first difference, with what came before it.
    pub(crate) report: String,
    /// The steps with other answers, counted from 1.
    pub(crate) steps: Vec<usize>,
    /// Whether notifications differ, or something was left on a backend.
    pub(crate) besides: bool,
}

impl Difference {
    /// Whether these steps differ and nothing else; not all of them where a session keeps its backend.
    pub(crate) fn is_as_known(&self, steps: &[usize], in_sessions: bool) -> bool {
        let known = if in_sessions {
            self.steps.iter().all(|step| steps.contains(step))
        } else {
            self.steps == steps
        };
        known && !self.besides
    }
}

/// What differs, if anything does.
pub(crate) fn difference(
    exchange: &Exchange,
    direct: &Transcript,
    through: &Transcript,
) -> Option<Difference> {
    let report = first_difference(exchange, direct, through)?;
    let agree = |index: usize| {
        let (one, other) = (&direct.steps[index], &through.steps[index]);
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.agrees(other))
    };
    let steps = (0..exchange.steps.len()).filter(|index| !agree(*index));
    Some(Difference {
        report,
        steps: steps.map(|index| index + 1).collect(),
        besides: direct.notifications != through.notifications
            || direct.counts != through.counts
            || !through.left.is_empty(),
    })
}

/// The report of the first difference, if there is one.
fn first_difference(exchange: &Exchange, direct: &Transcript, through: &Transcript) -> Option<String> {
    let mut report = String::new();
    for (index, step) in exchange.steps.iter().enumerate() {
        let (one, other) = (&direct.steps[index], &through.steps[index]);
        let _ = writeln!(report, "{}", step.text);
        let agree = one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.agrees(other));
        if agree {
            for said in one.iter().filter(|said| !said.text.starts_with(CONNECTED)) {
                let _ = writeln!(report, "    = {}", said.shown());
            }
        } else {
            side_by_side(&mut report, one, other);
            for step in &exchange.steps[index + 1..] {
                let _ = writeln!(report, "{}", step.text);
            }
            return Some(report);
        }
        if direct.counts[index] != through.counts[index] {
            let _ = writeln!(
                report,
                "  the numbers of notifications differ: directly {:?}, through Halyard {:?}",
                direct.counts[index], through.counts[index]
            );
            return Some(report);
        }
    }
    if direct.notifications != through.notifications {
        let _ = writeln!(
            report,
            "  the notifications differ:\n    directly        {:?}\n    through Halyard {:?}",
            direct.notifications, through.notifications
        );
        return Some(report);
    }
    if !through.left.is_empty() {
        let _ = writeln!(report, "  left on a backend for the next client:");
        for what in &through.left {
            let _ = writeln!(report, "    {what}");
        }
        return Some(report);
    }
    None
}

/// Width of the left column.
const COLUMN: usize = 76;

fn side_by_side(report: &mut String, one: &[Said], other: &[Said]) {
    let _ = writeln!(report, "    ! {:COLUMN$} | through Halyard", "directly");
    for index in 0..one.len().max(other.len()) {
        let shown = |said: Option<&Said>| said.map(Said::shown).unwrap_or_default();
        let mark = match (one.get(index), other.get(index)) {
            (Some(one), Some(other)) if one.agrees(other) && one.text.starts_with(CONNECTED) => continue,
            (Some(one), Some(other)) if one.agrees(other) => '=',
            _ => '!',
        };
        let left = wrapped(&shown(one.get(index)));
        let right = wrapped(&shown(other.get(index)));
        for line in 0..left.len().max(right.len()) {
            let part = |lines: &[String]| lines.get(line).cloned().unwrap_or_default();
            let _ = writeln!(report, "    {mark} {:COLUMN$} | {}", part(&left), part(&right));
        }
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters
        .chunks(COLUMN)
        .map(|line| line.iter().collect())
        .collect()
}
