//! LISTEN and UNLISTEN in a READ ONLY block on a standby.
//!
//! A primary would take them, and a standby refuses LISTEN; it is Halyard that listens anyway. So the standby is only told
//! to remember, by a setting of Halyard's own, that the statement has run: settings go back with their transaction
//! and with its savepoints, just as registrations do, and fail in a failed block. When the transaction is over
//! `session/listen.rs` asks which of them are still set. The client gets the tag of its own statement ([`Fate::Renamed`]).

use super::Relay;
use super::ledger::{Fate, Owed, Tag};
use super::memory::Change;
use super::statements::Translated;
use crate::notify::Registration;
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

impl Relay<'_> {
    /// Takes note of whether a request is to be looked at for statements of this kind.
    #[inline]
    pub(super) fn seek_asides(&mut self, demand: &Demand) {
        self.link.asides.sought =
            !self.link.as_primary && !self.listens_natively() && demand.class.changes_listening();
    }

    /// What a text says of channels, if it is to be said aside.
    fn aside(&self, text: &[u8]) -> Option<Registration> {
        let asides = &self.link.asides;
        if !asides.sought || asides.made.len() >= MADE_MAX {
            return None;
        }
        Registration::of(text, self.reading.standard_conforming_strings)
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
        let Some(said) = self.aside(text) else {
            return false;
        };
        self.append(before);
        let (tag, sql) = self.note_aside(said);
        let backend = &mut *self.link.backend;
        wire::query(backend.out.end(), &sql);
        backend.ledger.owe(Owed::Query, Fate::Renamed(tag));
        true
    }

    /// Binds, in place of a statement of the kind, what the standby runs for it. `None` if it is none.
    pub(super) fn bind_aside(&mut self, names: &BindNames, body: &[u8], before: &[u8]) -> Option<Translated> {
        let portal = &body[names.portal.clone()];
        if !self.link.asides.portals.is_empty() {
            self.link.asides.portals.retain(|(known, _)| **known != *portal);
        }
        let said = if self.link.asides.sought {
            self.aside(self.bound(body)??.text())?
        } else {
            return None;
        };
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
