//! LISTEN and UNLISTEN in a READ ONLY block on a standby.
//!
//! A primary would take them, and a standby refuses LISTEN; it is Halyard that listens anyway. So the standby is only told
//! to remember, by a setting of Halyard's own, that the statement has run: settings go back with their transaction
//! and with its savepoints, just as registrations do, and fail in a failed block. When the transaction is over
//! `session/listen.rs` asks which of them are still set. The client gets the tag of its own statement ([`Fate::Renamed`],
//! [`Fate::Retagged`]), and errors behind it in the same text point to where the client has written it.

use std::collections::VecDeque;

use super::Relay;
use super::ledger::{Fate, Owed, Tag};
use super::memory::Change;
use super::statements::Translated;
use crate::notify::{Placed, Registration};
use crate::session::Demand;
use crate::wire::{self, BindNames, backend, bind_renamed, close_statement, parse_renamed};

/// The statement of the protocol that sets one of the settings, for the length of a Bind.
const STATEMENT: &[u8] = b"halyard_heard";
/// Most statements of this kind in one block; what comes behind them the standby refuses.
const MADE_MAX: usize = 1000;

/// What a block on a standby has said of channels.
#[derive(Debug, Default)]
pub struct Asides {
    /// Whether the request being sent may say something.
    sought: bool,
    /// What was said, in order. Whether it holds the server knows.
    made: Vec<Registration>,
    /// Portals that say something, and with what tag.
    portals: Vec<(Box<[u8]>, Tag)>,
    /// Queries in flight that were sent otherwise than they were written, oldest first.
    rewritten: VecDeque<Rewritten>,
}

/// A Query some of whose statements are others on the way to the server.
#[derive(Debug, Default)]
struct Rewritten {
    /// Which of its statements, counted from 0, and the tag that the client is told of it.
    tags: VecDeque<(usize, Tag)>,
    /// What stands elsewhere than the client has written it: behind this many characters of what was sent, by so many.
    shifts: Vec<(usize, isize)>,
    /// How many of its statements are over.
    over: usize,
}

impl Rewritten {
    /// Where the client has written what the server has found at a position, both counted in characters from 1.
    fn written_at(&self, position: usize) -> usize {
        let before = self.shifts.iter().filter(|(behind, _)| position > *behind);
        let shift: isize = before.map(|(_, by)| by).sum();
        position.saturating_add_signed(-shift)
    }
}

impl Asides {
    /// Whether anything was said that the backend still remembers.
    pub fn is_empty(&self) -> bool {
        self.made.is_empty()
    }

    /// All that was said, in order: its number is part of what the setting is called.
    pub fn take(&mut self) -> Vec<Registration> {
        std::mem::take(self).made
    }
}

/// The setting that remembers that a statement of this number has run.
pub fn setting_of_said(number: impl std::fmt::Display) -> String {
    format!("halyard.heard_{number}")
}

/// What tells the client that its statement is done.
pub(super) fn completed(tag: Tag) -> Vec<u8> {
    let mut frame = Vec::new();
    wire::tagged(&mut frame, backend::COMMAND_COMPLETE, |out| {
        out.extend_from_slice(tag.as_str().as_bytes());
        out.push(0);
    });
    frame
}

/// The characters of a text in UTF-8; in other encodings at least as many as a byte of each counts.
fn characters(text: &[u8]) -> usize {
    text.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

impl Relay<'_> {
    /// Takes note of whether a request is to be looked at for statements of this kind.
    #[inline]
    pub(super) fn seek_asides(&mut self, demand: &Demand) {
        self.link.asides.sought =
            !self.link.as_primary && !self.listens_natively() && demand.class.changes_listening();
    }

    /// What the statements of a text say of channels that is to be said aside.
    fn to_say_aside(&self, text: &[u8]) -> Vec<Placed> {
        let asides = &self.link.asides;
        if !asides.sought {
            return Vec::new();
        }
        let mut placed = Registration::all_in(text, self.reading.standard_conforming_strings);
        placed.truncate(MADE_MAX.saturating_sub(asides.made.len()));
        placed
    }

    /// Takes note of what is said; the tag of its statement, and what the standby runs in its place.
    fn note_aside(&mut self, said: Registration) -> (Tag, Vec<u8>) {
        let tag = match said {
            Registration::Listen(_) => Tag::Listen,
            Registration::Unlisten(_) | Registration::UnlistenAll => Tag::Unlisten,
        };
        let made = &mut self.link.asides.made;
        let sql = format!("SET {} = '1'", setting_of_said(made.len()));
        made.push(said);
        (tag, sql.into_bytes())
    }

    /// False if a Query says nothing of the kind.
    pub(super) fn query_aside(&mut self, text: &[u8], before: &[u8]) -> bool {
        let placed = self.to_say_aside(text);
        if placed.is_empty() || self.link.restore.is_some() {
            // A question goes behind it whose ReadyForQuery the client gets: the standby refuses it.
            return false;
        }
        self.append(before);
        let mut sent = Vec::with_capacity(text.len() + 32 * placed.len());
        let mut rewritten = Rewritten::default();
        let (mut at, mut characters_sent) = (0, 0);
        for Placed { said, number, range } in placed {
            let (tag, sql) = self.note_aside(said);
            let between = &text[at..range.start];
            sent.extend_from_slice(between);
            sent.extend_from_slice(&sql);
            characters_sent += characters(between) + sql.len();
            let by = sql.len().cast_signed() - characters(&text[range.clone()]).cast_signed();
            rewritten.shifts.push((characters_sent, by));
            rewritten.tags.push_back((number, tag));
            at = range.end;
        }
        sent.extend_from_slice(&text[at..]);
        self.link.asides.rewritten.push_back(rewritten);
        let backend = &mut *self.link.backend;
        wire::query(backend.out.end(), &sent);
        backend.ledger.owe(Owed::Query, Fate::Retagged);
        true
    }

    /// The command tag for a statement of a rewritten Query that is over now, if it is another than the server's.
    pub(super) fn tag_of_rewritten(&mut self) -> Option<Tag> {
        let rewritten = self.link.asides.rewritten.front_mut()?;
        let number = rewritten.over;
        rewritten.over += 1;
        let (_, tag) = rewritten.tags.pop_front_if(|(of, _)| *of == number)?;
        Some(tag)
    }

    /// A rewritten Query is over.
    pub(super) fn end_rewritten(&mut self) {
        self.link.asides.rewritten.pop_front();
    }

    /// An ErrorResponse to a rewritten Query with the position in it as the client has written it; `None` where it is the
    /// same.
    pub(super) fn in_clients_places(&self, body: &[u8]) -> Option<Vec<u8>> {
        const POSITION: u8 = b'P';
        let rewritten = self.link.asides.rewritten.front()?;
        let mut at = 0;
        while *body.get(at)? != POSITION {
            at += 1 + body[at..].iter().position(|&byte| byte == 0)?;
        }
        let length = body[at + 1..].iter().position(|&byte| byte == 0)?;
        let range = at + 1..at + 1 + length;
        let position: usize = std::str::from_utf8(&body[range.clone()]).ok()?.parse().ok()?;
        let written_at = rewritten.written_at(position);
        if written_at == position {
            return None;
        }
        let mut frame = Vec::new();
        wire::tagged(&mut frame, backend::ERROR_RESPONSE, |out| {
            out.extend_from_slice(&body[..range.start]);
            out.extend_from_slice(written_at.to_string().as_bytes());
            out.extend_from_slice(&body[range.end..]);
        });
        Some(frame)
    }

    /// Binds, in place of a statement of the kind, what the standby runs for it. `None` if it is none.
    pub(super) fn bind_aside(&mut self, names: &BindNames, body: &[u8], before: &[u8]) -> Option<Translated> {
        let portal = &body[names.portal.clone()];
        if !self.link.asides.portals.is_empty() {
            self.link.asides.portals.retain(|(known, _)| **known != *portal);
        }
        if !self.link.asides.sought {
            return None;
        }
        // A prepared statement is one alone.
        let Placed { said, .. } = self.to_say_aside(self.bound(body)??.text()).pop()?;
        self.append(before);
        let (tag, sql) = self.note_aside(said);
        let backend = &mut *self.link.backend;
        let out = backend.out.end();
        // An error may have skipped the Close behind the last one.
        close_statement(out, STATEMENT);
        parse_renamed(out, STATEMENT, &sql, &[0, 0]);
        bind_renamed(out, portal, STATEMENT, &body[names.statement.end + 1..], 0);
        close_statement(out, STATEMENT);
        backend.ledger.owe(Owed::ClosePortal, Fate::Skip);
        backend.ledger.owe(Owed::Parse, Fate::Skip);
        backend.ledger.owe(Owed::Bind, Fate::Forward);
        backend.ledger.owe(Owed::ClosePortal, Fate::Skip);
        // For a Parse that changes nothing: no statement has this number.
        self.memory.note(Change::Prepared(0));
        self.link.asides.portals.push((portal.into(), tag));
        Some(Translated::Replaced)
    }

    /// The fate of the answer to an Execute, by its body.
    pub(super) fn fate_of_execute(&self, body: &[u8]) -> Fate {
        let portals = &self.link.asides.portals;
        if portals.is_empty() {
            return Fate::Forward;
        }
        let end = body.iter().position(|&byte| byte == 0).unwrap_or(body.len());
        let portal = portals.iter().find(|(known, _)| **known == body[..end]);
        portal.map_or(Fate::Forward, |(_, tag)| Fate::Renamed(*tag))
    }
}
