//! Prepared statements on their way to the backend: the names that they have there, what it lacks, and whether it still
//! answers as their clients know.
//!
//! A statement that a backend lacks is prepared there in front of what needs it, and Halyard has it described: what it
//! answers with may have changed since its client prepared it. A server would refuse it then (0A000, "cached plan must not
//! change result type"), as the client reads rows by what it was told at first. Where the request has the result described
//! to the client anyway, the new shape is no harm; elsewhere the request stops before its Bind until the shape is known
//! ([`Check`]).

use std::sync::Arc;

use memchr::memchr;

use super::ledger::{Fate, Owed};
use super::{Change, Relay, too_many_statements};
use crate::classify::{Lexer, SessionEffects, Token, TokenKind};
use crate::error::SqlState;
use crate::metrics::Counter;
use crate::session::{Forgotten, NAMED, Shape, Statement};
use crate::wire::{
    self, ErrorFields, HEADER_SIZE, Header, backend, bind_names, bind_renamed, close_statement,
    describe_renamed, frontend, parse_parts, parse_renamed, target_name,
};

/// A statement's name that is never prepared: binding it makes the server fail the batch, or the block.
const NEVER: &[u8] = b"halyard_outdated";

/// In the queue of changes, for a Parse of Halyard's own that changes nothing: no statement has this number.
pub(super) const NO_CHANGE: Change = Change::Prepared(0);

/// What is known of the shape of a statement before whose Bind a request has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// The server was asked.
    Asked,
    /// It is the one that clients know.
    Agrees,
    /// It is another.
    Differs,
}

/// What became of a frame on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Translated {
    /// It goes as it lies.
    AsItLies,
    /// Something else goes in its place, and what lay before it went out first.
    Replaced,
    /// As [`Translated::Replaced`], but its turn is not yet: the server was asked something first.
    Later,
}

impl Relay<'_> {
    /// DEALLOCATE names a protocol-level statement as well as one of PREPARE's: on the backend it has another name.
    /// `None` if the query is none, or names no such statement, and goes as it lies.
    pub(super) fn translate_deallocate(&mut self, body: &[u8], before: &[u8]) -> Option<bool> {
        let text = body.strip_suffix(&[0]).unwrap_or(body);
        let name = match Deallocated::parse(text)? {
            Deallocated::All => {
                let fate = self.fate_of_ready();
                self.link.backend.ledger.owe(Owed::Query, fate);
                self.forget_all_names();
                return Some(false);
            }
            Deallocated::Name(name) => name,
        };
        if self.is_lent(&name) {
            // The backend knows it by that name; what became of it is asked when the turn ends.
            return None;
        }
        let statement = self.memory.statements.close(&name)?;
        self.append(before);
        self.lend_to_deallocate(&name);
        let backend = &mut *self.link.backend;
        wire::query(backend.out.end(), text);
        let fate = self.fate_of_ready();
        let backend = &mut *self.link.backend;
        backend.ledger.owe(Owed::Query, fate);
        let query = backend.ledger.queries_sent();
        self.memory.forget_names(query, Forgotten::one(&name, statement));
        Some(true)
    }

    /// The Query that was sent last takes all names away.
    pub(super) fn forget_all_names(&mut self) {
        let names = self.memory.statements.forget_named();
        self.memory
            .forget_names(self.link.backend.ledger.queries_sent(), names);
    }

    /// Where SQL may have given names that nobody has asked for yet, has the server say whether a name is free.
    fn probe_name(&mut self, name: &[u8], statement: &Statement) {
        // Of several reasons to keep a backend one is told: it may have such names whatever that is.
        let by_sql = self.memory.kept().is_some() || self.link.traces.intersects(NAMED);
        if !by_sql || self.is_lent(name) {
            return;
        }
        let backend = &mut *self.link.backend;
        parse_renamed(backend.out.end(), name, statement.text(), statement.types());
        backend.ledger.owe(Owed::Parse, Fate::Skip);
        self.memory.note(NO_CHANGE);
        close_statement(backend.out.end(), name);
        backend.ledger.owe(Owed::ClosePortal, Fate::Skip);
    }

    /// Lends the name that a Parse of an unnamed DEALLOCATE speaks of, where it could not be lent in front of the batch.
    fn lend_for_parse(&mut self, statement: &Statement, before: &[u8]) -> bool {
        let Some(Deallocated::Name(name)) = Deallocated::parse(statement.text()) else {
            return false;
        };
        if self.is_lent(&name) || self.memory.statements.named(&name).is_none() {
            return false;
        }
        self.append(before);
        self.lend_in_batch(&name);
        true
    }

    pub(super) fn translate_parse(
        &mut self,
        header: Header,
        body: &[u8],
        before: &[u8],
        statement: Option<Arc<Statement>>,
    ) -> bool {
        let whole = body.len() == header.body();
        let (Some(parts), Some(statement), true) = (parse_parts(body), statement, whole) else {
            return self.parse_unread(header, body, before);
        };
        let name = &body[parts.name];
        if name.is_empty() {
            let lends = self.lend_for_parse(&statement, before);
            if lends {
                let out = self.link.backend.out.end();
                parse_renamed(out, b"", statement.text(), statement.types());
            }
            self.parse_unnamed(statement);
            return lends;
        }
        if self.is_lent(name) {
            self.parse_lent(name, statement);
            return false;
        }
        self.append(before);
        let taken = self.memory.statements.named(name);
        // A request that is sent again finds the names that it gave the first time.
        let repeated = |taken: &Arc<Statement>| {
            self.memory.repeating && taken.text() == statement.text() && taken.types() == statement.types()
        };
        if taken.is_some_and(|taken| !repeated(taken)) {
            self.parse_duplicate(name, statement);
        } else {
            self.parse_named(name, statement);
        }
        true
    }

    /// A Parse that was not read, or is malformed: the server gets it as it is. The session keeps its backend for as long as it
    /// has the statement under the client's own name, or as its unnamed one. Whether `before` went out first, and the frame
    /// behind it.
    fn parse_unread(&mut self, header: Header, body: &[u8], before: &[u8]) -> bool {
        let name = memchr(0, body).map(|end| &body[..end]);
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            let is_taken = self.memory.statements.named(name).is_some() && !self.is_lent(name);
            if is_taken {
                // The server is to find it so.
                self.append(before);
                self.lend_in_batch(name);
                let out = self.link.backend.out.end();
                out.push(frontend::PARSE);
                out.extend_from_slice(&header.length.to_be_bytes());
                out.extend_from_slice(body);
            }
            self.link.backend.ledger.owe(Owed::Parse, Fate::Forward);
            self.memory.note(NO_CHANGE);
            return is_taken;
        }
        self.memory.unread_unnamed |= body.first() == Some(&0);
        self.link.backend.ledger.owe(Owed::Parse, Fate::Forward);
        let there = self.link.backend.unnamed.take();
        self.memory.note(Change::UnnamedPlaced { there });
        self.memory.statements.unnamed = None;
        false
    }

    /// A Parse of the client's unnamed statement.
    fn parse_unnamed(&mut self, statement: Arc<Statement>) {
        if std::mem::take(&mut self.memory.unread_unnamed) {
            self.link.traces = self.link.traces.union(SessionEffects::DEALLOCATE);
        }
        let before = self.memory.statements.unnamed.replace(Arc::clone(&statement));
        let there = self.link.backend.unnamed.replace(statement);
        self.memory.note(Change::Unnamed { before, there });
        self.link.backend.ledger.owe(Owed::Parse, Fate::Forward);
    }

    /// A Parse of a name that SQL was lent goes as it lies: whether the name is free again the backend knows.
    fn parse_lent(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.give_name(name, statement, None);
        self.link.backend.ledger.owe(Owed::Parse, Fate::Forward);
    }

    /// The server finds the name taken, as it would have without Halyard.
    fn parse_duplicate(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.prepare(&statement);
        self.send_parse(&statement, Fate::Forward);
        self.memory.note(Change::Duplicate {
            name: name.into(),
            statement,
        });
    }

    /// Gives a statement the client's name for it, and has it prepared if it is not.
    fn parse_named(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.probe_name(name, &statement);
        if self.memory.statements.len() >= self.limits.client_statements_max {
            self.link.fault = Some(too_many_statements(self.limits.client_statements_max));
        }
        if self.is_refused_in_failed_block(&statement) {
            self.send_parse(&statement, Fate::Forward);
            return self.give_name(name, statement, None);
        }
        let known = self.link.backend.prepared.touch_anew(&statement);
        self.counters.add(
            if known {
                Counter::PreparedHits
            } else {
                Counter::PreparedMisses
            },
            1,
        );
        // Where the block may have failed meanwhile the server has to say.
        let asks = known && self.may_be_in_failed_block();
        if asks {
            self.link.backend.prepared.outdate(&statement);
        }
        let prepared = if known && !asks {
            self.link.backend.ledger.owe(Owed::Parse, Fate::Fake);
            None
        } else {
            self.make_room(&statement);
            self.send_parse(&statement, Fate::Forward);
            self.ask_shape(&statement);
            Some(statement.id())
        };
        self.give_name(name, statement, prepared);
    }

    /// Gives a statement the client's name for it. `prepared`: its number, if it is prepared on the backend for that.
    fn give_name(&mut self, name: &[u8], statement: Arc<Statement>, prepared: Option<u64>) {
        self.link.take_name(name);
        let before = self.memory.statements.name(name, statement);
        let name = name.into();
        self.memory.note(Change::Named {
            name,
            before,
            prepared,
        });
    }

    /// Whether the server refuses a Parse because of the failed block that it is in (25P02): it says so before it looks at the
    /// name. What ends a block it takes.
    fn is_refused_in_failed_block(&self, statement: &Statement) -> bool {
        if self.link.backend.ledger.status() != b'E' || self.may_have_ended_block() {
            return false;
        }
        !ends_block(statement.text(), self.reading.standard_conforming_strings)
    }

    /// Whether batches or Queries are unanswered that may have failed the block.
    fn may_be_in_failed_block(&self) -> bool {
        let link = &*self.link;
        link.backend.ledger.readies() > 0 && (link.in_block() || link.leads_into_block())
    }

    /// Whether what was sent since the server told of its status may have ended the block: it is among that, or answered
    /// already where a Flush cut the batch.
    fn may_have_ended_block(&self) -> bool {
        let ledger = &self.link.backend.ledger;
        ledger.readies() > 0 || ledger.due().any(|owed| owed == Owed::Execute) || self.link.flight.ran
    }

    /// Sends a Parse of the client's, or one of Halyard's own, under Halyard's name.
    fn send_parse(&mut self, statement: &Statement, fate: Fate) {
        let backend = &mut *self.link.backend;
        parse_renamed(
            backend.out.end(),
            statement.name(),
            statement.text(),
            statement.types(),
        );
        backend.ledger.owe(Owed::Parse, fate);
    }

    /// `behind`: what follows it in the same request.
    pub(super) fn translate_bind(
        &mut self,
        header: Header,
        body: &[u8],
        before: &[u8],
        behind: &[u8],
    ) -> Translated {
        let Some(names) = bind_names(body) else {
            self.link.backend.ledger.owe(Owed::Bind, Fate::Forward);
            return Translated::AsItLies;
        };
        // Another node would not have it.
        self.link.only_plain_reads &= names.portal.is_empty();
        if let Some(translated) = self.bind_aside(&names, body, before) {
            return translated;
        }
        let name = &body[names.statement.clone()];
        if name.is_empty() {
            let placed = self.place_unnamed(before);
            self.link.backend.ledger.owe(Owed::Bind, Fate::Forward);
            if placed {
                // The frame itself goes as it lies, behind what was placed.
                let out = self.link.backend.out.end();
                out.push(frontend::BIND);
                out.extend_from_slice(&header.length.to_be_bytes());
                out.extend_from_slice(body);
                return Translated::Replaced;
            }
            return Translated::AsItLies;
        }
        let known = self.memory.statements.named(name).cloned();
        // SQL may have ended a name that it was lent: the backend knows.
        let Some(statement) = known.filter(|_| !self.is_lent(name)) else {
            self.link.backend.ledger.owe(Owed::Bind, Fate::Forward);
            return Translated::AsItLies;
        };
        self.append(before);
        match self.link.check.take() {
            Some(Check::Differs) => return self.bind_never(),
            Some(Check::Asked | Check::Agrees) => {}
            None if self.must_ask_first(&statement, &body[names.portal.clone()], behind) => {
                self.prepare(&statement);
                self.append(&wire::FLUSH);
                self.link.check = Some(Check::Asked);
                return Translated::Later;
            }
            None => {}
        }
        self.note_use(&statement);
        self.prepare(&statement);
        let missing = header.body() - body.len();
        bind_renamed(
            self.link.backend.out.end(),
            &body[names.portal],
            statement.name(),
            &body[names.statement.end + 1..],
            missing,
        );
        self.link.backend.ledger.owe(Owed::Bind, Fate::Forward);
        Translated::Replaced
    }

    /// Whether a statement has to be prepared, and might then answer with other columns than its client knows and is
    /// told.
    fn must_ask_first(&mut self, statement: &Arc<Statement>, portal: &[u8], behind: &[u8]) -> bool {
        statement.shape().is_some()
            && !self.link.backend.prepared.touch(statement)
            && self.link.stops
            && !describes(behind, portal)
    }

    /// In place of a Bind whose statement has changed: one that fails, so that the server drops the batch, and the block
    /// with it. What it says is put in the words of what a server would have said.
    fn bind_never(&mut self) -> Translated {
        bind_renamed(self.link.backend.out.end(), b"", NEVER, &[0, 0, 0, 0, 0, 0], 0);
        self.link.backend.ledger.owe(Owed::Bind, Fate::Forward);
        Translated::Replaced
    }

    /// False if the Describe goes as it lies; otherwise `before` went out first.
    pub(super) fn translate_describe(&mut self, body: &[u8], before: &[u8]) -> bool {
        let statement = match target_name(body) {
            Some((b'S', name)) if name.is_empty() => {
                let placed = self.place_unnamed(before);
                self.link.backend.ledger.owe(Owed::Describe, Fate::Forward);
                if placed {
                    describe_renamed(self.link.backend.out.end(), b"");
                }
                return placed;
            }
            Some((b'S', name)) if !self.is_lent(&body[name.clone()]) => {
                self.memory.statements.named(&body[name]).cloned()
            }
            _ => None,
        };
        let Some(statement) = statement else {
            self.link.backend.ledger.owe(Owed::Describe, Fate::Forward);
            return false;
        };
        self.append(before);
        self.note_use(&statement);
        self.prepare(&statement);
        describe_renamed(self.link.backend.out.end(), statement.name());
        self.link.backend.ledger.owe(Owed::Describe, Fate::Forward);
        true
    }

    pub(super) fn translate_close(&mut self, body: &[u8], before: &[u8]) -> bool {
        match target_name(body) {
            Some((b'S', name)) if !name.is_empty() && self.may_be_of_sql(&body[name.clone()]) => {
                let before = self.memory.statements.close(&body[name.clone()]);
                let name = body[name].into();
                self.memory.note(Change::Closed { name, before });
                self.link.backend.ledger.owe(Owed::CloseStatement, Fate::Forward);
                self.link.traces = self.link.traces.union(SessionEffects::DEALLOCATE);
                false
            }
            // Others may use the statement on this backend: only the client's name for it ends.
            Some((b'S', name)) if !name.is_empty() => {
                self.append(before);
                let name = &body[name];
                let before = self.memory.statements.close(name);
                self.memory.note(Change::Closed {
                    name: name.into(),
                    before,
                });
                self.link.backend.ledger.owe(Owed::CloseStatement, Fate::Fake);
                true
            }
            Some((b'S', _)) => {
                let before = self.memory.statements.unnamed.take();
                let there = self.link.backend.unnamed.take();
                self.memory.note(Change::Unnamed { before, there });
                self.link.backend.ledger.owe(Owed::CloseStatement, Fate::Forward);
                false
            }
            portal => {
                // It may be a cursor WITH HOLD, and what its session keeps its backend for.
                let named = portal.is_some_and(|(_, name)| !name.is_empty());
                if named && self.memory.kept().is_some() {
                    self.link.traces = self.link.traces.union(SessionEffects::CURSOR);
                }
                self.link.backend.ledger.owe(Owed::ClosePortal, Fate::Forward);
                false
            }
        }
    }

    /// Whether a name may be on the backend as the client has it: given by SQL, or lent to it.
    fn may_be_of_sql(&self, name: &[u8]) -> bool {
        let unknown = self.memory.statements.named(name).is_none();
        let keeps = self.memory.kept().is_some() || self.link.traces.intersects(NAMED);
        self.is_lent(name) || (unknown && keeps)
    }

    /// Prepares a statement that the backend does not hold.
    fn prepare(&mut self, statement: &Arc<Statement>) {
        if self.link.backend.prepared.touch(statement) {
            self.counters.add(Counter::PreparedHits, 1);
            if self.memory.statements.is_known_to_read_otherwise(statement) {
                self.link.backend.prepared.set_apart(statement);
            }
            return;
        }
        self.counters.add(Counter::PreparedMisses, 1);
        self.counters.add(Counter::ParseInjected, 1);
        self.make_room(statement);
        self.send_parse(statement, Fate::Skip);
        self.memory.note(Change::Prepared(statement.id()));
        self.ask_shape(statement);
        if self.memory.statements.may_read_otherwise(statement) {
            self.link.backend.prepared.estrange(statement);
        }
    }

    /// Has a statement described that was just prepared. The columns of an EXECUTE are those of what it names, and a server
    /// does not mind that they change.
    fn ask_shape(&mut self, statement: &Arc<Statement>) {
        let catalog = self.definitions.load();
        let class = |text: &[u8]| catalog.class_afresh(text, self.reading);
        if statement.class(catalog.generation(), class).executes() {
            return;
        }
        let backend = &mut *self.link.backend;
        describe_renamed(backend.out.end(), statement.name());
        backend.ledger.owe(Owed::Describe, Fate::Skip);
        self.link.asked.push_back(Arc::clone(statement));
    }

    /// Takes note of the columns with which a statement answers on this backend. `kind` and `body` are those of a
    /// RowDescription, of which very long ones are not read, or of a NoData.
    pub(super) fn note_shape(&mut self, kind: u8, body: &[u8]) {
        let Some(statement) = self.link.asked.pop_front() else {
            return;
        };
        let shape = match kind {
            backend::NO_DATA => Some(Shape::none()),
            _ => Shape::of_row_description(body),
        };
        let differing = shape.filter(|shape| !statement.agrees_on(*shape));
        let waited_for = self.link.check == Some(Check::Asked) && self.link.asked.is_empty();
        if waited_for {
            self.link.check = Some(match differing {
                None => Check::Agrees,
                Some(_) => Check::Differs,
            });
        }
        let Some(shape) = differing else { return };
        self.link.backend.prepared.outdate(&statement);
        let mut current = self.definitions.epoch().load();
        if statement.is_for(&self.memory.statements.scope) {
            // Somebody has changed the tables without Halyard seeing it.
            current = self.definitions.epoch().leave(statement.epoch());
        }
        if !waited_for {
            // The client is told what it is now.
            let meaning = self.memory.statements.meaning(current);
            let renewed = self
                .registry
                .statement(meaning, statement.text(), statement.types());
            if renewed.agrees_on(shape) {
                self.memory.statements.replace(&statement, &renewed);
            }
        }
    }

    /// Forgets what was asked in a batch that has failed.
    pub(super) fn forget_asked(&mut self) {
        let left = self.link.backend.ledger.owed(Owed::Describe, Fate::Skip);
        let dropped = self.link.asked.len().saturating_sub(left);
        self.link.asked.drain(..dropped);
        if self.link.asked.is_empty() {
            self.link.check = None;
        }
    }

    /// Whether an ErrorResponse is the answer to [`Relay::bind_never`].
    pub(super) fn is_of_never(fields: &ErrorFields<'_>) -> bool {
        fields.sqlstate == SqlState::INVALID_SQL_STATEMENT_NAME
            && fields.message.windows(NEVER.len()).any(|part| part == NEVER)
    }

    /// Takes note of a statement being used that might be outdated: if it is, so is the database's epoch.
    #[inline]
    fn note_use(&mut self, statement: &Statement) {
        if statement.epoch() == self.definitions.epoch().load() {
            self.link.flight.epoch = Some(statement.epoch());
        }
    }

    /// Notes a statement on the backend, closing another if there are too many.
    fn make_room(&mut self, statement: &Arc<Statement>) {
        let backend = &mut *self.link.backend;
        let in_doubt = backend.prepared.in_doubt();
        let evicted = backend.prepared.insert(Arc::clone(statement));
        self.link.closing |= evicted.is_some() || in_doubt;
        let outdated = backend.prepared.take_outdated();
        self.link.closing |= !outdated.is_empty();
        let backend = &mut *self.link.backend;
        // Close of a name that is not there is no error: it makes sure of a name that may or may not be.
        let unwanted = evicted.iter().chain(&outdated);
        for closed in unwanted.chain(in_doubt.then_some(statement)) {
            close_statement(backend.out.end(), closed.name());
            backend.ledger.owe(Owed::ClosePortal, Fate::Skip);
        }
    }

    /// A client that has no unnamed statement must not meet another's. False if nothing had to be done.
    fn displace_unnamed(&mut self, before: &[u8]) -> bool {
        if self.memory.unread_unnamed {
            return false;
        }
        self.append(before);
        let backend = &mut *self.link.backend;
        close_statement(backend.out.end(), b"");
        backend.ledger.owe(Owed::ClosePortal, Fate::Skip);
        backend.unnamed = None;
        true
    }

    /// Puts the client's unnamed statement on a backend that has another. False if nothing had to be done;
    /// otherwise `before` went out first.
    fn place_unnamed(&mut self, before: &[u8]) -> bool {
        let Some(wanted) = &self.memory.statements.unnamed else {
            return self.displace_unnamed(before);
        };
        let held = self.link.backend.unnamed.as_ref();
        if held.is_some_and(|held| Arc::ptr_eq(held, wanted)) {
            return false;
        }
        let wanted = Arc::clone(wanted);
        self.counters.add(Counter::ParseInjected, 1);
        self.append(before);
        let backend = &mut *self.link.backend;
        parse_renamed(backend.out.end(), b"", wanted.text(), wanted.types());
        backend.ledger.owe(Owed::Parse, Fate::Skip);
        // As it may be read for the moment nobody else is to meet it.
        let lasts = !self.memory.statements.may_read_otherwise(&wanted);
        let there = std::mem::replace(&mut backend.unnamed, lasts.then_some(wanted));
        self.memory.note(Change::UnnamedPlaced { there });
        true
    }
}

/// Whether a portal's result is described to the client before it runs.
fn describes(request: &[u8], portal: &[u8]) -> bool {
    for (kind, body) in frames(request) {
        if kind == frontend::DESCRIBE
            && let Some((b'P', name)) = target_name(body)
            && &body[name] == portal
        {
            return true;
        }
        let taken_over = || bind_names(body).is_none_or(|names| &body[names.portal] == portal);
        if kind == frontend::BIND && taken_over() {
            return false;
        }
    }
    false
}

/// Whether the result of every statement that a request binds is described to the client in it, or the statement itself
/// is prepared in it: then its client relies on nothing that it was told before.
pub(super) fn describes_all(request: &[u8]) -> bool {
    let mut parsed: Vec<&[u8]> = Vec::new();
    let mut described: Vec<&[u8]> = Vec::new();
    let mut rest = request;
    for (kind, body) in frames(request) {
        rest = &rest[HEADER_SIZE + body.len()..];
        match kind {
            frontend::PARSE => parsed.extend(parse_parts(body).map(|parts| &body[parts.name])),
            frontend::DESCRIBE => {
                if let Some((b'S', name)) = target_name(body) {
                    described.push(&body[name]);
                }
            }
            frontend::BIND => {
                let Some(names) = bind_names(body) else {
                    return false;
                };
                let statement = &body[names.statement];
                let fresh = parsed.contains(&statement) || described.contains(&statement);
                if !fresh && !describes(rest, &body[names.portal]) {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}

/// The whole frames in a request: their kinds and bodies.
pub(super) fn frames(request: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = request;
    std::iter::from_fn(move || {
        let header = Header::parse(rest).ok()??;
        let (frame, behind) = rest.split_at_checked(header.total())?;
        rest = behind;
        Some((header.kind, &frame[HEADER_SIZE..]))
    })
}

/// Whether a server takes a text in a failed block, if it is one statement: an end of the block (`IsTransactionExitStmt` in
/// PostgreSQL's `postgres.c`), or nothing.
fn ends_block(text: &[u8], standard_conforming_strings: bool) -> bool {
    let lexer = Lexer::new(text, standard_conforming_strings);
    let mut tokens = lexer.filter(|token| !matches!(token.kind, TokenKind::Comment | TokenKind::Semicolon));
    let Some(first) = tokens.next() else {
        return true;
    };
    let is = |token: Token, word: &[u8]| token.bytes(text).eq_ignore_ascii_case(word);
    let begins = |words: &[&[u8]]| words.iter().any(|word| is(first, word));
    if begins(&[b"prepare"]) {
        return tokens.next().is_some_and(|second| is(second, b"transaction"))
            && tokens.next().is_some_and(|third| third.kind == TokenKind::String);
    }
    // What was prepared is none of the block's.
    begins(&[b"commit", b"end", b"rollback", b"abort"])
        && !tokens.next().is_some_and(|second| is(second, b"prepared"))
}

/// What a DEALLOCATE statement names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Deallocated {
    All,
    Name(Vec<u8>),
}

impl Deallocated {
    /// Reads `DEALLOCATE [ PREPARE ] { name | ALL }` standing alone; `None` for everything else, and for what the grammar may
    /// not take for a name.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let text = text.strip_suffix(b";").unwrap_or(text).trim_ascii_end();
        let rest = keyword(text, b"deallocate")?;
        let rest = keyword(rest, b"prepare").unwrap_or(rest);
        if rest.eq_ignore_ascii_case(b"all") {
            return Some(Self::All);
        }
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            let quoted = quoted.strip_suffix(b"\"")?;
            let is_name = !quoted.is_empty() && !quoted.contains(&b'"');
            return is_name.then(|| Self::Name(quoted.to_vec()));
        }
        let plain = rest
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$');
        let begins = rest
            .first()
            .is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_');
        let name = rest.to_ascii_lowercase();
        (plain && begins && !is_reserved(&name)).then_some(Self::Name(name))
    }
}

/// Words that name nothing without quotes: PostgreSQL 15's reserved ones, also those that may name functions and types
/// (manual, appendix C).
const RESERVED: &str = "\
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check \
    collate collation column concurrently constraint create cross current_catalog current_date \
    current_role current_schema current_time current_timestamp current_user default deferrable desc \
    distinct do else end except false fetch for foreign freeze from full grant group having ilike in \
    initially inner intersect into is isnull join lateral leading left like limit localtime \
    localtimestamp natural not notnull null offset on only or order outer overlaps placing primary \
    references returning right select session_user similar some symmetric table tablesample then to \
    trailing true union unique user using variadic verbose when where window with";

/// Whether a word, in lower case, has to be quoted to be a name.
fn is_reserved(word: &[u8]) -> bool {
    RESERVED.split(' ').any(|reserved| reserved.as_bytes() == word)
}

fn keyword<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(word.len())?;
    let apart = rest.first().is_some_and(u8::is_ascii_whitespace);
    (head.eq_ignore_ascii_case(word) && apart).then(|| rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::{Deallocated, ends_block};

    #[test]
    fn a_failed_block_takes_its_end_alone() {
        for end in [
            "",
            "; -- nothing",
            "COMMIT",
            "end work",
            "/* by hand */ ROLLBACK TO SAVEPOINT here",
            "abort and chain",
            "PREPARE TRANSACTION 'x'",
        ] {
            assert!(ends_block(end.as_bytes(), true), "{end}");
        }
        for other in [
            "SELECT 1",
            "COMMIT PREPARED 'x'",
            "rollback /* it */ prepared 'x'",
            "PREPARE p AS SELECT 1",
            "PREPARE transaction AS SELECT 1",
            "SAVEPOINT here",
        ] {
            assert!(!ends_block(other.as_bytes(), true), "{other}");
        }
    }

    #[test]
    fn deallocate_is_read_as_the_server_reads_it() {
        let name = |name: &[u8]| Some(Deallocated::Name(name.to_vec()));
        for none in [
            "DEALLOCATE 1",
            "DEALLOCATE $1",
            "DEALLOCATE end",
            "DEALLOCATE SELECT",
            "DEALLOCATE \"\"",
        ] {
            assert_eq!(Deallocated::parse(none.as_bytes()), None, "{none}");
        }
        assert_eq!(Deallocated::parse(b"deallocate S1;"), name(b"s1"));
        assert_eq!(
            Deallocated::parse(b" DEALLOCATE PREPARE \"_pg3_0\" "),
            name(b"_pg3_0")
        );
        assert_eq!(Deallocated::parse(b"deallocate all"), Some(Deallocated::All));
        assert_eq!(
            Deallocated::parse(b"deallocate prepare ALL"),
            Some(Deallocated::All)
        );
        for other in [
            &b"deallocate x; delete from t"[..],
            b"deallocate",
            b"deallocates x",
            b"deallocate /* c */ x",
        ] {
            assert_eq!(Deallocated::parse(other), None);
        }
    }
}
