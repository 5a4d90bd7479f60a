//! Statements of the protocol lent to SQL: prepared on the backend under the client's own names as well, where EXECUTE,
//! PREPARE and DEALLOCATE find them.
//!
//! The server may refuse such a statement, as one whose table the client's block has just dropped. That is told where the
//! client runs it, and must not fail the block before: in a block a name is lent behind a savepoint, and the block goes back
//! to that. Prepared statements stay when it does. Where nothing but the name is spoken of, a text that is never refused
//! takes the place of one that was.

use std::sync::Arc;

use super::Relay;
use super::ledger::{Fate, Owed};
use super::memory::Change;
use super::statements::{Deallocated, NO_CHANGE, frames};
use crate::classify::{Lexer, SessionEffects, Token, TokenKind};
use crate::error::SqlState;
use crate::session::{Demand, Statement};
use crate::wire::{
    self, ErrorFields, HEADER_SIZE, Header, backend, bind_names, bind_renamed, close_portal, close_statement,
    frontend, parse_parts, parse_renamed, target_name,
};

/// In place of a statement that was refused: it is always taken, and says so should it be run.
const PLACEHOLDER: &[u8] = b"SELECT pg_catalog.current_setting('halyard.statement_was_refused')";
/// No types of parameters are given.
const NO_TYPES: &[u8] = &[0, 0];
/// Halyard's own statement for what it runs apart.
const APART: &[u8] = b"halyard_apart";
/// A name that no client has for a savepoint of its own.
const SAVEPOINT: &[u8] = b"SAVEPOINT \"halyard:apart\"";
const GO_BACK: &[u8] = b"ROLLBACK TO SAVEPOINT \"halyard:apart\"";
const RELEASE: &[u8] = b"RELEASE SAVEPOINT \"halyard:apart\"";

/// A name that the client has for a statement of the protocol, and that the backend was asked to know too.
#[derive(Debug)]
pub struct Lent {
    /// The name.
    pub name: Box<[u8]>,
    /// Whether the backend has taken it.
    pub there: bool,
    /// How often it was sent and not answered yet.
    unanswered: u8,
    /// What the server has said of the statement, if it has refused it: the body of its ErrorResponse.
    refused: Option<Box<[u8]>>,
}

/// What SQL needs of a name that it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Whether it is taken, and that it can be given up: DEALLOCATE and PREPARE.
    Name,
    /// What it stands for: EXECUTE.
    Statement,
}

/// A statement of the client's that SQL speaks of by its name.
struct Mention {
    name: Box<[u8]>,
    statement: Arc<Statement>,
    /// What is asked of it first.
    need: Need,
}

impl Relay<'_> {
    /// Puts the statements of the protocol that a request may handle by SQL on the backend under the client's own names,
    /// where SQL finds them, in front of it. What became of the names is asked when the turn ends.
    pub(super) fn lend_names(&mut self, demand: &Demand, bytes: &[u8]) {
        let alone =
            matches!(frames(bytes).next(), Some((frontend::QUERY, body)) if deallocated(body).is_some());
        let ignored = self.link.backend.ledger.skips_until_sync();
        if alone || self.memory.statements.is_empty() || ignored {
            return;
        }
        if demand.class.deallocates_all() {
            self.doubt_names();
        }
        let ledger = &self.link.backend.ledger;
        if ledger.batch_open() || ledger.status() == b'E' {
            return;
        }
        for mention in self.mentioned(bytes) {
            if !self.is_lent(&mention.name) {
                self.lend_statement(&mention);
            }
        }
        if !self.link.lent.is_empty() {
            self.link.traces = self.link.traces.union(SessionEffects::DEALLOCATE);
        }
    }

    /// A DEALLOCATE ALL may run of which only its tag will tell.
    pub(super) fn doubt_names(&mut self) {
        let names = self.memory.statements.names();
        self.link.deallocated.extend(names.map(Box::from));
        self.link.dropping = true;
    }

    /// Whether a request waits for what is in front of it to be answered, as that decides what its names stand for, or whether
    /// one can be lent: behind a lent one that fails in the client's own batch, the server would ignore the client's Query.
    #[inline]
    pub(super) fn waits_for_names(&self, demand: &Demand) -> bool {
        let ledger = &self.link.backend.ledger;
        if ledger.is_empty() || ledger.copy_in() || ledger.skips_until_sync() {
            return false;
        }
        let unsettled = self.memory.is_unsettled();
        if !ledger.batch_open() && !self.link.dropping && !unsettled {
            return false;
        }
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let class = demand.class;
        let handles_names = class.names_statements() || class.drops_all_statements();
        if unsettled && (handles_names || self.names_unsettled(bytes)) {
            return true;
        }
        // It is ignored, or ends the unnamed statement, and takes names away. What follows it stands in no batch.
        if ledger.batch_open() && matches!(bytes.first(), Some(&(frontend::QUERY | frontend::FUNCTION_CALL)))
        {
            return true;
        }
        let stops = || {
            frames(bytes)
                .next()
                .is_some_and(|(kind, body)| self.stops_for_name(kind, body))
        };
        let says = || handles_names || frames(bytes).any(|(kind, body)| self.names_deallocated(kind, body));
        self.link.dropping && (says() || (self.link.stopped && stops()))
    }

    /// Whether a request names what a batch in front of it gives, takes away or prepares that is not answered: if that fails,
    /// none of it is so.
    fn names_unsettled(&self, bytes: &[u8]) -> bool {
        let mut parsed = self.memory.parsed.iter();
        let mut unnamed_is_new = self.memory.has_unnamed_of_batch();
        let mut at = 0;
        while let Some(Ok(Some(header))) = bytes.get(at..).map(Header::parse) {
            let body = &bytes[at + HEADER_SIZE..bytes.len().min(at + header.total())];
            at += header.total();
            let statement = match header.kind {
                frontend::PARSE => parsed.next(),
                _ => None,
            };
            let Some(name) = names(header.kind, body) else {
                continue;
            };
            let waits = match header.kind {
                frontend::PARSE if name.is_empty() => {
                    unnamed_is_new = true;
                    false
                }
                frontend::CLOSE if name.is_empty() => false,
                _ if name.is_empty() => !unnamed_is_new && self.memory.is_unnamed_unsettled(),
                _ => {
                    let statement = statement.or_else(|| self.memory.statements.named(name));
                    self.memory.is_name_unsettled(name, statement)
                }
            };
            if waits {
                return true;
            }
        }
        false
    }

    /// Whether a message names a statement of which nobody knows whether a DEALLOCATE ALL has ended it.
    fn names_deallocated(&self, kind: u8, body: &[u8]) -> bool {
        names(kind, body).is_some_and(|name| self.link.deallocated.contains(name))
    }

    /// Whether a request stops before a message, as a DEALLOCATE ALL stands in front of it in the same batch: before one that
    /// names a statement, and before what may be another, which would end the names given in between.
    #[inline]
    pub(super) fn stops_for_name(&self, kind: u8, body: &[u8]) -> bool {
        if !self.link.dropping {
            return false;
        }
        let ledger = &self.link.backend.ledger;
        // What is owed before its batch is open is none of this request's.
        let answers =
            ledger.batch_open() && !ledger.is_empty() && !ledger.copy_in() && !ledger.skips_until_sync();
        let unsure = || self.names_deallocated(kind, body) || (kind == frontend::EXECUTE && self.drops(body));
        answers && self.link.stops_for_names && unsure()
    }

    /// A DEALLOCATE ALL has run, whatever becomes of what it stands in: no name is left of those that were there.
    pub(super) fn end_deallocated(&mut self) {
        self.link.dropping = false;
        for name in self.link.deallocated.drain() {
            drop(self.memory.statements.close(&name));
            self.memory.note_undone();
        }
        for lent in &mut self.link.lent {
            lent.there = false;
        }
        self.link.lent.retain(|lent| lent.unanswered > 0);
    }

    /// Whether the backend knows a name of the client's, or was asked to.
    pub(super) fn is_lent(&self, name: &[u8]) -> bool {
        let mut lent = self.link.lent.iter();
        lent.any(|lent| *lent.name == *name && (lent.there || lent.unanswered > 0))
    }

    /// The statements of the client's that the texts in a request, and those of the statements that it binds, speak of.
    fn mentioned(&self, bytes: &[u8]) -> Vec<Mention> {
        let mut found: Vec<Mention> = Vec::new();
        for (kind, body) in frames(bytes) {
            let text = match kind {
                frontend::QUERY => Some(body.strip_suffix(&[0]).unwrap_or(body)),
                frontend::PARSE => parse_parts(body).map(|parts| &body[parts.text]),
                frontend::BIND => self.bound(body).flatten().map(|statement| statement.text()),
                _ => None,
            };
            let text = text.unwrap_or_default();
            for (name, need) in names_in(text, self.reading.standard_conforming_strings) {
                if found.iter().any(|known| *known.name == *name) {
                    continue;
                }
                found.extend(self.memory.statements.named(&name).map(|statement| Mention {
                    name: name.into_boxed_slice(),
                    statement: Arc::clone(statement),
                    need,
                }));
            }
        }
        found
    }

    /// Lends one name. Whatever the server says of it leaves the client's block as it is.
    fn lend_statement(&mut self, mention: &Mention) {
        let Mention {
            name,
            statement,
            need,
        } = mention;
        let ledger = &self.link.backend.ledger;
        let takes_over = self.link.takes_block_over() && self.link.requests > 1;
        let in_block = self.link.in_block() || takes_over || ledger.readies() > 0;
        if in_block {
            self.run_apart(&[SAVEPOINT]);
        }
        let lends = |name: &[u8], whole| Change::Lends {
            name: name.into(),
            whole,
        };
        let mut unanswered = 1;
        self.parse_apart(name, statement.text(), statement.types(), lends(name, true));
        if *need == Need::Name {
            if in_block {
                self.run_apart(&[GO_BACK]);
            }
            // Where the statement itself was taken, this is not: the name is.
            self.parse_apart(name, PLACEHOLDER, NO_TYPES, lends(name, false));
            unanswered += 1;
        }
        if in_block {
            self.run_apart(&[GO_BACK, RELEASE]);
        }
        self.link.lent.retain(|lent| lent.name != *name);
        self.link.lent.push(Lent {
            name: name.clone(),
            there: false,
            unanswered,
            refused: None,
        });
    }

    /// Lends a name within a batch of the client's, which must not fail for it: a placeholder takes it.
    pub(super) fn lend_in_batch(&mut self, name: &[u8]) {
        let backend = &mut *self.link.backend;
        if backend.ledger.in_failed_block() {
            return;
        }
        // A name that code of which nobody knows has given by SQL makes room.
        close_statement(backend.out.end(), name);
        backend.ledger.owe(Owed::ClosePortal, Fate::Skip);
        parse_renamed(backend.out.end(), name, PLACEHOLDER, NO_TYPES);
        backend.ledger.owe(Owed::Parse, Fate::Skip);
        self.memory.note(Change::Lends {
            name: name.into(),
            whole: false,
        });
        self.link.lent.retain(|lent| *lent.name != *name);
        self.link.lent.push(Lent {
            name: name.into(),
            there: false,
            unanswered: 1,
            refused: None,
        });
        self.link.traces = self.link.traces.union(SessionEffects::DEALLOCATE);
    }

    /// Gives a name that is only to be taken away, for which any text will do: the statement's own may not be prepared any
    /// more.
    pub(super) fn lend_to_deallocate(&mut self, name: &[u8]) {
        let backend = &mut *self.link.backend;
        if backend.ledger.batch_open() && backend.ledger.in_failed_block() {
            // Whatever is asked is refused, and behind an error of this one nothing would be read.
            return;
        }
        if backend.ledger.batch_open() {
            // A Sync would end the client's own batch, and tell of its errors. Nor must this be one: a name that code of
            // which nobody knows has given by SQL makes room.
            close_statement(backend.out.end(), name);
            backend.ledger.owe(Owed::ClosePortal, Fate::Skip);
            parse_renamed(backend.out.end(), name, b"SELECT", NO_TYPES);
            backend.ledger.owe(Owed::Parse, Fate::Skip);
            return self.memory.note(NO_CHANGE);
        }
        self.parse_apart(name, b"SELECT", NO_TYPES, NO_CHANGE);
    }

    /// Prepares a text under a client's own name, in a batch of its own: where it fails, as it does in a failed block,
    /// the server reads nothing but a Sync.
    fn parse_apart(&mut self, name: &[u8], text: &[u8], types: &[u8], change: Change) {
        let backend = &mut *self.link.backend;
        parse_renamed(backend.out.end(), name, text, types);
        backend.ledger.owe(Owed::Parse, Fate::Skip);
        self.memory.note(change);
        self.end_apart();
    }

    /// Runs statements of Halyard's own in a batch of their own, whatever becomes of them.
    fn run_apart(&mut self, texts: &[&[u8]]) {
        for text in texts {
            let backend = &mut *self.link.backend;
            let out = backend.out.end();
            // An error may have skipped the Close behind the last one.
            close_portal(out, APART);
            close_statement(out, APART);
            parse_renamed(out, APART, text, NO_TYPES);
            // The client's unnamed portal stays.
            bind_renamed(out, APART, APART, &[0; 6], 0);
            wire::execute(out, APART);
            close_portal(out, APART);
            close_statement(out, APART);
            for owed in [
                Owed::ClosePortal,
                Owed::ClosePortal,
                Owed::Parse,
                Owed::Bind,
                Owed::Execute,
                Owed::ClosePortal,
                Owed::ClosePortal,
            ] {
                backend.ledger.owe(owed, Fate::Skip);
            }
            self.memory.note(NO_CHANGE);
        }
        self.end_apart();
    }

    /// Has the block fail that was begun just now: there is nothing to go back to in it.
    pub(super) fn fail_block(&mut self) {
        self.run_apart(&[GO_BACK]);
    }

    fn end_apart(&mut self) {
        let backend = &mut *self.link.backend;
        backend.out.end().extend_from_slice(&wire::SYNC);
        backend.ledger.owe(Owed::Sync, Fate::Skip);
        self.memory.end_batch();
    }

    /// Takes note of a Parse being answered, if it lends a name. `refused`: what the server has against it.
    fn settle_lent(&mut self, refused: Option<(&ErrorFields<'_>, &[u8])>) {
        let Some(Change::Lends { name, whole }) = self.memory.oldest_change() else {
            return;
        };
        let Some(lent) = self.link.lent.iter_mut().find(|lent| lent.name == *name) else {
            return;
        };
        lent.unanswered = lent.unanswered.saturating_sub(1);
        match refused {
            None => lent.there = true,
            Some((fields, body)) if *whole && fields.sqlstate != SqlState::IN_FAILED_SQL_TRANSACTION => {
                lent.refused = Some(body.into());
            }
            Some(_) => {}
        }
    }

    /// The server has taken a Parse, or closed a statement.
    pub(super) fn on_parsed(&mut self) {
        self.settle_lent(None);
        self.memory.confirm_change();
    }

    /// The server has refused what Halyard asked in a batch of its own.
    pub(super) fn on_refused_apart(
        &mut self,
        fate: Option<(Owed, Fate)>,
        fields: &ErrorFields<'_>,
        body: &[u8],
    ) {
        if matches!(fate, Some((Owed::Parse, _))) {
            self.settle_lent(Some((fields, body)));
        }
        // What it had against the name is noted.
        drop(self.memory.undo_batch(None));
    }

    /// These were lent in a batch that has failed before.
    pub(super) fn forget_lent(&mut self, names: &[Box<[u8]>]) {
        for lent in &mut self.link.lent {
            if names.contains(&lent.name) {
                lent.unanswered = lent.unanswered.saturating_sub(1);
            }
        }
    }

    /// What a server would have said of a statement that it could not be lent, in place of its name not being there; `None`
    /// if that is not what the error tells.
    pub(super) fn refusal_of_lent(&self, fields: &ErrorFields<'_>) -> Option<Vec<u8>> {
        if fields.sqlstate != SqlState::INVALID_SQL_STATEMENT_NAME {
            return None;
        }
        let names = |lent: &&Lent| {
            let quoted = [b"\"", &*lent.name, b"\""].concat();
            !lent.there && fields.message.windows(quoted.len()).any(|part| part == quoted)
        };
        let refused = self.link.lent.iter().find(names)?.refused.as_deref()?;
        let mut frame = Vec::new();
        wire::tagged(&mut frame, backend::ERROR_RESPONSE, |out| {
            out.extend_from_slice(refused);
        });
        Some(frame)
    }
}

/// What a Query deallocates, if it does nothing else.
fn deallocated(body: &[u8]) -> Option<Deallocated> {
    Deallocated::parse(body.strip_suffix(&[0]).unwrap_or(body))
}

/// The statement that a message names, as far as it has come.
fn names(kind: u8, body: &[u8]) -> Option<&[u8]> {
    let name = match kind {
        frontend::PARSE => parse_parts(body)?.name,
        frontend::BIND => bind_names(body)?.statement,
        frontend::DESCRIBE | frontend::CLOSE => match target_name(body)? {
            (b'S', name) => name,
            _ => return None,
        },
        _ => return None,
    };
    Some(&body[name])
}

/// The names in a text that may be those of prepared statements, and what each is needed for, as they come.
fn names_in(text: &[u8], standard_conforming_strings: bool) -> impl Iterator<Item = (Vec<u8>, Need)> + '_ {
    let lexer = Lexer::new(text, standard_conforming_strings);
    let mut tokens = lexer.filter(|token| token.kind != TokenKind::Comment).peekable();
    std::iter::from_fn(move || {
        loop {
            let need = need_of(tokens.next()?, text);
            if let Some(need) = need
                && let Some(name) = tokens.peek().and_then(|token| name_of(*token, text))
            {
                return Some((name, need));
            }
        }
    })
}

/// What a keyword asks of the name behind it.
fn need_of(token: Token, text: &[u8]) -> Option<Need> {
    let word = token.bytes(text);
    match token.kind {
        TokenKind::Word if word.eq_ignore_ascii_case(b"execute") => Some(Need::Statement),
        // Of DEALLOCATE PREPARE a name, the second is the one in front of it.
        TokenKind::Word if word.eq_ignore_ascii_case(b"prepare") => Some(Need::Name),
        TokenKind::Word if word.eq_ignore_ascii_case(b"deallocate") => Some(Need::Name),
        _ => None,
    }
}

/// The identifier that a token is. One that is written with escapes is not read.
fn name_of(token: Token, text: &[u8]) -> Option<Vec<u8>> {
    let written = token.bytes(text);
    match token.kind {
        TokenKind::Word => Some(written.to_ascii_lowercase()),
        TokenKind::QuotedName => {
            let mut name = written.strip_prefix(b"\"")?.strip_suffix(b"\"")?.to_vec();
            // A quote in a name is doubled where it is mentioned.
            let mut doubled = false;
            name.retain(|&byte| {
                doubled = byte == b'"' && !doubled;
                byte != b'"' || doubled
            });
            Some(name)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, Need)> {
        let names = names_in(text.as_bytes(), true);
        names
            .map(|(name, need)| (String::from_utf8(name).unwrap(), need))
            .collect()
    }

    #[test]
    fn only_what_stands_behind_its_keyword_names_a_statement() {
        let name = |name: &str| (name.to_owned(), Need::Name);
        let statement = |name: &str| (name.to_owned(), Need::Statement);
        assert_eq!(read("PREPARE Q AS SELECT s FROM s -- EXECUTE s"), [name("q")]);
        assert_eq!(
            read("EXPLAIN EXECUTE /* the */ s(1); deallocate \"Odd \"\"one\"\"\""),
            [statement("s"), name("Odd \"one\"")]
        );
        assert_eq!(read("DEALLOCATE PREPARE s"), [name("prepare"), name("s")]);
        assert_eq!(read("SELECT 'EXECUTE s', $$EXECUTE s$$"), []);
    }
}
