//! From the client to the backend.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::ledger::Owed;
use super::statements::{Translated, frames};
use super::{End, Received, Relay, Step};
use crate::classify::{Access, Lexer, SessionEffects, TokenKind, changes_reading, may_change_constants};
use crate::session::{Control, Demand, Scan, Statement, StatementClass, Tallied};
use crate::wire::{self, HEADER_SIZE, Header, bind_names, frontend, parse_parts};
use crate::worker::Local;

/// Bytes of requests that are written for a backend before it takes some: of a request that grows on its way, one message more.
const GROWN_MAX: usize = 1024 * 1024;

/// A frame of a request, and what lies around it.
#[derive(Clone, Copy)]
struct Frame<'a> {
    header: Header,
    /// As far as it has come.
    body: &'a [u8],
    /// The frames before it that go as they lie and were not appended yet.
    before: &'a [u8],
    /// What follows it in the same request.
    behind: &'a [u8],
}

impl Relay<'_> {
    /// Sends what may be sent, and reads more where there is room.
    pub(super) fn push_requests(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Step {
        let mut moved = false;
        loop {
            if !self.flush_backend(cx) {
                return self.watch_client(cx, local, moved);
            }
            if self.link.streaming > 0 || self.client.ignoring > 0 {
                match self.stream_on(cx) {
                    Some(true) => {
                        moved = true;
                        continue;
                    }
                    Some(false) => return self.watch_client(cx, local, moved),
                    None => {}
                }
            } else if self.demand.is_none() && !self.client.input.unparsed().is_empty() {
                if self.awaits_reading() {
                    return self.watch_client(cx, local, moved);
                }
                match self.scan(local) {
                    Scan::Demand(demand) => *self.demand = Some(demand),
                    Scan::Copy { bytes } => {
                        self.link.streaming = bytes;
                        self.link.flight.held = false;
                        self.inbox.tally.add(Tallied::Received, bytes as u64);
                        self.link.flight.repeatable = false;
                        self.client.input.release_held();
                        continue;
                    }
                    Scan::Ignored { bytes } => {
                        self.client.ignoring = bytes;
                        continue;
                    }
                    Scan::Wait { frame } => self.client.input.reserve(frame, &mut local.buffers),
                    // What was asked before is answered first, as far as the server answers it.
                    Scan::Terminate if self.link.backend.ledger.answers_all() => return Ok(moved),
                    Scan::Terminate => return Err(End::Terminated),
                    // What is still owed is answered before the client is told, if all of it comes: a server that waits
                    // for the end of a batch or a COPY waits for what will never be sent.
                    Scan::Broken(_) if self.link.backend.ledger.answers_all() => return Ok(moved),
                    Scan::Broken(error) => return Err(End::ClientBroke(error)),
                }
            }
            if let Some(demand) = *self.demand {
                if !self.may_send()
                    || self.waits_to_listen(&demand)
                    || self.waits_for_own_settings(&demand)
                    || self.moves_block(&demand)
                    || self.waits_for_names(&demand)
                {
                    self.ask_for_answers();
                    if !self.link.backend.out.is_empty() {
                        self.flush_backend(cx);
                    }
                    return self.watch_client(cx, local, moved);
                }
                *self.demand = None;
                self.link.asked_to_flush = false;
                self.send(demand, cx);
                if let Some(fault) = self.link.fault.take() {
                    return Err(End::LimitExceeded(fault));
                }
                if self.demand.is_some_and(|left| left.bytes == demand.bytes) {
                    // It has stopped before its first message: for an answer.
                    self.flush_backend(cx);
                    return self.watch_client(cx, local, moved);
                }
                moved = true;
                continue;
            }
            if !self.read_client(cx, local)? {
                return Ok(moved);
            }
            moved = true;
        }
    }

    /// Where the rest of a batch is held back until its beginning is answered, has the server answer that: it waits for a Sync
    /// or a Flush.
    fn ask_for_answers(&mut self) {
        let ledger = &self.link.backend.ledger;
        let asked = self.link.asked_to_flush || self.link.stopped;
        if ledger.batch_open() && !ledger.is_empty() && !asked {
            self.link.asked_to_flush = true;
            self.append(&wire::FLUSH);
        }
    }

    /// Pushes out what the backend has not taken. False while it takes nothing.
    fn flush_backend(&mut self, cx: &mut Context<'_>) -> bool {
        let backend = &mut *self.link.backend;
        while !backend.out.is_empty() {
            if self.link.write_failed {
                backend.out.free();
                break;
            }
            match backend.stream.poll_write_from(cx, backend.out.pending()) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    backend.out.advance(count);
                    self.link.flight.sent = true;
                    if !self.link.flight.held {
                        self.client.input.release_held();
                    }
                }
                Poll::Pending => return false,
                // What the server said before it went is read first; that tells the loss.
                Poll::Ready(_) => self.link.write_failed = true,
            }
        }
        if backend.stream.is_tls() && matches!(backend.stream.poll_flush_out(cx), Poll::Ready(Err(_))) {
            self.link.write_failed = true;
        }
        true
    }

    /// Passes the rest of a frame on, or drops it. `None` when there is nothing of it in the buffer.
    fn stream_on(&mut self, cx: &mut Context<'_>) -> Option<bool> {
        let unparsed = self.client.input.unparsed();
        if unparsed.is_empty() {
            return None;
        }
        if self.client.ignoring > 0 {
            let count = unparsed.len().min(self.client.ignoring);
            self.client.input.parse(count);
            self.client.ignoring -= count;
            if self.link.backend.ledger.is_empty() {
                // A Flush is held, as nothing answers it; nobody will send it again.
                self.client.input.release_held();
            } else {
                self.release_unless_held();
            }
            return Some(true);
        }
        if self.link.write_failed && !self.link.flight.sent {
            // The server has got nothing of it: what lies here may go to another.
            return Some(false);
        }
        let ready = &unparsed[..unparsed.len().min(self.link.streaming)];
        let count = if self.link.write_failed {
            ready.len()
        } else {
            match self.link.backend.stream.poll_write_from(cx, ready) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.link.flight.sent = true;
                    count
                }
                Poll::Pending => return Some(false),
                Poll::Ready(_) => {
                    self.link.write_failed = true;
                    return Some(true);
                }
            }
        };
        self.client.input.parse(count);
        self.client.input.release_held();
        self.link.streaming -= count;
        Some(true)
    }

    /// Lets go of what was sent. What may be sent again is kept, and so is what no socket has taken a byte of.
    fn release_unless_held(&mut self) {
        let flight = &self.link.flight;
        if !flight.held && (flight.sent || !flight.begun) {
            self.client.input.release_held();
        }
    }

    /// Reads from the client. False when nothing came, or nothing fits.
    fn read_client(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Result<bool, End> {
        match self.client.poll_receive(cx, &mut local.buffers) {
            Poll::Ready(Ok(Received::Bytes)) => Ok(true),
            Poll::Ready(Ok(Received::NoRoom)) => Ok(false),
            Poll::Ready(Ok(Received::End)) => {
                // In the middle of a message what follows of it does the same.
                if !self.link.mid_frame() {
                    self.client.nudge(&self.memory.told);
                }
                Ok(true)
            }
            Poll::Ready(Err(_)) => Err(End::ClientGone),
            Poll::Pending => {
                self.client.input.retire(&mut local.buffers);
                Ok(false)
            }
        }
    }

    /// Reads on while nothing may be sent, as far as the buffer goes: a client that leaves is noticed.
    fn watch_client(&mut self, cx: &mut Context<'_>, local: &mut Local, moved: bool) -> Step {
        while self.read_client(cx, local)? {}
        Ok(moved)
    }

    /// Sends a request, or what is left of it, adding what the backend needs for it and giving names their place.
    fn send(&mut self, mut demand: Demand, cx: &mut Context<'_>) {
        self.link.ran_unread |= demand.class.is_opaque();
        if demand.class.access == Access::Write && self.may_run_unknown_code(&demand) {
            demand.class.effects = demand.class.effects.union(SessionEffects::OPAQUE);
        }
        let class = demand.class;
        let begins = !std::mem::take(&mut self.link.stopped);
        if begins {
            self.link.forget_left_portals();
            self.prepare_to_send(&demand);
        }
        let input = std::mem::take(&mut self.client.input);
        let bytes = &input.unparsed()[..demand.bytes];
        if begins {
            let traces = class.traces(self.memory.kept().is_some());
            self.heed_copies(bytes);
            if !traces.is_empty() {
                self.note_traces(traces, bytes);
            }
            let turns = class.control != Control::None && self.link.reading_turned;
            self.link.changes_reading |=
                turns || (class.changes_names() && self.says(bytes, changes_reading));
        }
        self.note_block(&demand, bytes);
        // What is run alone is bound before it changes anything.
        let opaque_at_first = class.is_opaque() && executions(bytes) > 1;
        if begins {
            self.begin_moment(class, self.link.left.moves, opaque_at_first, bytes);
            self.link.drops = class.may_drop_statements() || self.link.left.drops;
            self.link.harmless.clear();
            self.note_left_portals(&demand, bytes);
        }
        let forgets = class.drops_all_statements()
            && bytes.first() == Some(&frontend::QUERY)
            && !self.link.backend.ledger.skips_until_sync();
        let (end, run) = self.translate(bytes);
        self.client.input = input;
        self.write_run(end - run..end, cx);
        self.client.input.parse(end);
        if end < demand.bytes {
            *self.demand = Some(Demand {
                bytes: demand.bytes - end,
                ..demand
            });
            self.link.stopped = true;
            return self.release_unless_held();
        }
        self.renew_moment(&demand, !opaque_at_first);
        self.restore_settings();
        self.link.streaming = demand.rest;
        self.release_unless_held();
        if class.may_drop_statements() {
            self.link.backend.prepared.doubt();
            self.link.backend.unnamed = None;
        }
        if forgets {
            self.forget_all_names();
        }
        self.note_sent(&demand);
    }

    /// An Execute may drop all statements: what stands behind it in the same batch finds nothing prepared.
    fn doubt_statements(&mut self) {
        self.link.backend.prepared.doubt();
        self.doubt_names();
    }

    /// Notes, of a request that may drop all statements, whether the portal that a Bind gives may.
    fn note_harmless(&mut self, body: &[u8]) {
        let portal = portal_of(body);
        self.link.harmless.retain(|known| **known != *portal);
        let statement = self.bound(body).flatten();
        if statement.is_some_and(|statement| !drops_statements(statement.text())) {
            self.link.harmless.push(portal.into());
        }
    }

    /// Whether an Execute may drop all statements.
    #[inline]
    pub(super) fn drops(&self, body: &[u8]) -> bool {
        let is_harmless = || {
            let portal = portal_of(body);
            self.link.harmless.iter().any(|known| **known == *portal)
        };
        self.link.drops && !is_harmless()
    }

    /// Notes what portals may do that a request binds and does not run.
    #[inline]
    fn note_left_portals(&mut self, demand: &Demand, bytes: &[u8]) {
        let class = demand.class;
        let moves = class.changes_names() || class.control != Control::None;
        let drops = class.may_drop_statements();
        if (moves || drops) && (demand.rest > 0 || leaves_portal(bytes)) {
            let left = &mut self.link.left;
            left.moves |= moves;
            left.drops |= drops;
        }
    }

    /// Looks after what texts stand for, in front of a request. `moves`: whether a portal that is bound already may change
    /// it. `opaque`: whether what nobody has read counts yet.
    #[inline]
    fn begin_moment(&mut self, class: StatementClass, moves: bool, opaque: bool, bytes: &[u8]) {
        let begins = class.changes_names() || moves;
        let reads = begins && (moves || class.changes_objects() || self.says(bytes, may_change_constants));
        let statements = &mut self.memory.statements;
        let ends = class.control != Control::None && statements.has_moment();
        if begins || ends {
            self.link.backend.prepared.end_moment();
        }
        // What is prepared from here on is read as the client has it now.
        if begins {
            statements.begin_moment(reads);
        }
        if class.is_opaque() && opaque {
            statements.distrust_constants();
        }
    }

    /// The same behind a request: its own transaction, or the block that it was in, may be over with it, and then what was
    /// changed for the moment as well.
    #[inline]
    fn renew_moment(&mut self, demand: &Demand, opaque: bool) {
        let statements = &mut self.memory.statements;
        if demand.class.is_opaque() && opaque {
            statements.distrust_constants();
        }
        let ends =
            || demand.class.control != Control::None || (demand.closed && !self.link.leads_into_block());
        if statements.has_moment() && ends() {
            statements.renew_moment();
            self.link.backend.prepared.end_moment();
        }
    }

    /// Between transactions of a session that keeps its backend: what was set for the last alone is over with it. What may have
    /// outlived it is asked for first.
    #[inline]
    pub(super) fn leave_moment(&mut self) {
        let statements = &mut self.memory.statements;
        if !statements.has_moment() {
            return;
        }
        let link = &mut *self.link;
        let inside = link.in_flight() || link.in_block() || link.takes_block_over();
        if !inside && !link.is_to_be_examined() && statements.leave_moment() {
            link.backend.prepared.end_moment();
        }
    }

    /// Whether this is true of the texts in a request, or of those of the statements that it binds.
    fn says(&self, bytes: &[u8], what: fn(&[u8]) -> bool) -> bool {
        let bound = |body: &[u8]| {
            let statement = self.bound(body).flatten();
            statement.is_some_and(|statement| what(statement.text()))
        };
        what(bytes) || frames(bytes).any(|(kind, body)| kind == frontend::BIND && bound(body))
    }

    /// Whether the next text cannot be read yet: something in flight may change how.
    fn awaits_reading(&mut self) -> bool {
        let ledger = &self.link.backend.ledger;
        self.link.changes_reading &= !ledger.is_empty() || ledger.batch_open();
        self.link.changes_reading && !ledger.copy_in() && ledger.answers_all()
    }

    /// Whether a write may run code that the catalogue does not tell of, as definitions have changed since it was read, are
    /// about to, or change with it.
    fn may_run_unknown_code(&self, demand: &Demand) -> bool {
        let class = demand.class;
        let in_batch = || self.client.input.unparsed().first() != Some(&frontend::QUERY);
        !is_begin_alone(class) && (self.link.ddl || self.definitions.is_behind() || (class.ddl && in_batch()))
    }

    /// Takes note of what a request does, now that it is sent.
    fn note_sent(&mut self, demand: &Demand) {
        self.tally_request(demand);
        let class = demand.class;
        self.link.opaque |= class.is_opaque();
        self.link.ddl |= class.ddl;
        // A BEGIN alone writes nothing, nor does what a standby runs.
        self.link.only_read &= class.repeatable || self.link.block_is_empty;
        self.link.wrote |= self.link.as_primary && class.access == Access::Write && !is_begin_alone(class);
        self.link.stays = false;
        self.memory.repeating = false;
        self.memory.own_settings_seen_to = false;
    }

    /// Writes the unchanged tail of a request straight out of the client's buffer where nothing waits before it.
    fn write_run(&mut self, range: std::ops::Range<usize>, cx: &mut Context<'_>) {
        let backend = &mut *self.link.backend;
        let run = &self.client.input.unparsed()[range];
        if run.is_empty() {
            return;
        }
        let taken = if backend.out.is_empty() && !self.link.write_failed {
            match backend.stream.poll_write_from(cx, run) {
                Poll::Ready(Ok(count)) => {
                    self.link.flight.sent = true;
                    count
                }
                Poll::Ready(Err(_)) => {
                    self.link.write_failed = true;
                    run.len()
                }
                Poll::Pending => 0,
            }
        } else {
            0
        };
        backend.out.end().extend_from_slice(&run[taken..]);
    }

    /// Goes through the frames of a request; what has to be changed is appended to what goes out. Returns how far it
    /// came, and how many bytes before that go out as they lie and were not appended.
    fn translate(&mut self, bytes: &[u8]) -> (usize, usize) {
        let mut run = 0;
        let mut at = 0;
        let mut parsed = std::mem::take(&mut self.memory.parsed);
        let mut next_parsed = parsed.drain(..);
        while at < bytes.len() {
            let header = match Header::parse(&bytes[at..]) {
                Ok(Some(header)) => header,
                // Only whole headers are demanded.
                _ => break,
            };
            let end = (at + header.total()).min(bytes.len());
            let frame = Frame {
                header,
                body: &bytes[at + HEADER_SIZE..end],
                before: &bytes[run..at],
                behind: &bytes[end..],
            };
            match self.translate_frame(frame, &mut next_parsed) {
                Translated::AsItLies => {}
                Translated::Replaced => run = end,
                Translated::Later => {
                    let left = next_parsed.collect();
                    self.memory.parsed = left;
                    return (at, 0);
                }
            }
            at = end;
        }
        drop(next_parsed);
        self.memory.parsed = parsed;
        (bytes.len(), bytes.len() - run)
    }

    fn translate_frame(
        &mut self,
        frame: Frame<'_>,
        parsed: &mut impl Iterator<Item = Arc<Statement>>,
    ) -> Translated {
        let Frame {
            header,
            body,
            before,
            behind,
        } = frame;
        if self.stops_for_name(header.kind, body) || self.has_grown_on_its_way() {
            self.append(before);
            self.append(&wire::FLUSH);
            return Translated::Later;
        }
        self.tally_frame(header.kind);
        let ledger = &mut self.link.backend.ledger;
        if ledger.copy_in() {
            if matches!(header.kind, frontend::COPY_DONE | frontend::COPY_FAIL) {
                ledger.copy_ended();
            }
            return Translated::AsItLies;
        }
        if ledger.skips_until_sync() && header.kind != frontend::SYNC {
            self.append(before);
            return Translated::Replaced;
        }
        let replaced = match header.kind {
            frontend::QUERY => self.translate_query(body, before),
            frontend::SYNC => {
                let asked = self.ask_before_sync(before);
                if asked {
                    self.append(&wire::SYNC);
                }
                let fate = self.fate_of_ready();
                self.link.backend.ledger.owe(Owed::Sync, fate);
                self.memory.end_batch();
                asked
            }
            frontend::PARSE => self.translate_parse(header, body, before, parsed.next()),
            frontend::BIND => {
                if self.link.drops {
                    self.note_harmless(body);
                }
                return self.translate_bind(header, body, before, behind);
            }
            frontend::DESCRIBE => self.translate_describe(body, before),
            frontend::CLOSE => self.translate_close(body, before),
            other => {
                match other {
                    frontend::FUNCTION_CALL => {
                        let fate = self.fate_of_ready();
                        self.link.backend.ledger.owe(Owed::FunctionCall, fate);
                    }
                    frontend::EXECUTE => {
                        let fate = self.fate_of_execute(body);
                        self.link.backend.ledger.owe(Owed::Execute, fate);
                        if self.drops(body) {
                            self.doubt_statements();
                        }
                    }
                    frontend::COPY_DONE | frontend::COPY_FAIL => self.link.backend.ledger.copy_ended(),
                    _ => {}
                }
                false
            }
        };
        if replaced {
            Translated::Replaced
        } else {
            Translated::AsItLies
        }
    }

    /// Whether what a request needs on its backend has made so much of it that this goes out first. A Bind of some bytes may
    /// have a Parse in front of it as long as a statement may be, and a buffer holds thousands of them.
    #[inline]
    fn has_grown_on_its_way(&self) -> bool {
        self.link.backend.out.pending().len() > GROWN_MAX && !self.link.backend.ledger.copy_in()
    }

    /// False if the Query goes as it lies.
    fn translate_query(&mut self, body: &[u8], before: &[u8]) -> bool {
        // It ends the unnamed statement, the client's as well (manual, section 55.2.3).
        self.memory.statements.unnamed = None;
        if !self.link.backend.ledger.batch_open() {
            self.memory.drop_unnamed(false);
        }
        self.link.backend.unnamed = None;
        if !self.memory.statements.is_empty()
            && let Some(rewritten) = self.translate_deallocate(body, before)
        {
            return rewritten;
        }
        if self.query_aside(body.strip_suffix(&[0]).unwrap_or(body), before) {
            return true;
        }
        let fate = self.fate_of_ready();
        self.link.backend.ledger.owe(Owed::Query, fate);
        false
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.link.backend.out.end().extend_from_slice(bytes);
    }
}

/// Whether a request runs anything: one that prepares a statement has its class, but none of its effects yet.
pub(crate) fn runs(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let Some(Ok(Some(header))) = bytes.get(at..).map(Header::parse) {
        if matches!(header.kind, frontend::QUERY | frontend::EXECUTE) {
            return true;
        }
        at += header.total();
    }
    false
}

/// Whether the first statement that a request runs is the first that it names. A batch may prepare a BEGIN and run something
/// else.
pub(super) fn begins_with_its_text(bytes: &[u8]) -> bool {
    let mut parsed = None;
    let mut bound = None;
    let mut at = 0;
    while let Some(Ok(Some(header))) = bytes.get(at..).map(Header::parse) {
        let body = bytes
            .get(at + HEADER_SIZE..at + header.total())
            .unwrap_or_default();
        match header.kind {
            frontend::QUERY => return parsed.is_none(),
            frontend::PARSE if parsed.is_some() => return false,
            frontend::PARSE => parsed = Some(parse_parts(body).map(|parts| &body[parts.name])),
            frontend::BIND if bound.is_some() => return false,
            frontend::BIND => bound = Some(bind_names(body).map(|names| &body[names.statement])),
            frontend::EXECUTE => return bound.is_some() && parsed.is_none_or(|parsed| Some(parsed) == bound),
            _ => {}
        }
        at += header.total();
    }
    false
}

/// Whether a request opens a block and does nothing else, but for reads. One that writes in the same batch, as pgjdbc begins its
/// transactions, is none of these.
fn is_begin_alone(class: StatementClass) -> bool {
    class.control == Control::Begins && class.repeatable
}

/// What a request does to portals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Portals {
    /// Nothing: at most it prepares, describes or closes something.
    Untouched,
    /// It runs one statement to its end, and leaves no portal that another has bound.
    OneRun,
    /// It runs several, or leaves one that may be run later, or calls a function.
    Several,
}

impl Portals {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let (mut runs, mut binds, mut leaves) = (0_usize, 0_usize, false);
        let mut at = 0;
        while let Some(Ok(Some(header))) = bytes.get(at..).map(Header::parse) {
            let body = bytes.get(at + HEADER_SIZE..at + header.total());
            match header.kind {
                frontend::QUERY => runs += 1,
                frontend::BIND => binds += 1,
                frontend::EXECUTE => {
                    runs += 1;
                    // With a limit of rows its portal may be suspended.
                    leaves |= !body.is_some_and(|body| body.ends_with(&[0; 4]));
                }
                frontend::FUNCTION_CALL => leaves = true,
                _ => {}
            }
            at += header.total();
        }
        match (runs, binds) {
            _ if leaves => Self::Several,
            (0, 0) => Self::Untouched,
            (1, 0 | 1) => Self::OneRun,
            _ => Self::Several,
        }
    }
}

/// The portal that a Bind or an Execute names.
fn portal_of(body: &[u8]) -> &[u8] {
    body.split(|&byte| byte == 0).next().unwrap_or(body)
}

/// Whether a statement that stands alone may be DEALLOCATE ALL or DISCARD ALL.
fn drops_statements(text: &[u8]) -> bool {
    let mut tokens = Lexer::new(text, true).filter(|token| token.kind != TokenKind::Comment);
    tokens
        .find(|token| token.kind != TokenKind::Semicolon)
        .is_some_and(|first| {
            let first = first.bytes(text);
            first.eq_ignore_ascii_case(b"deallocate") || first.eq_ignore_ascii_case(b"discard")
        })
}

/// How an Execute asks for all rows.
const ALL_ROWS: [u8; 4] = [0; 4];

/// Whether a request binds a portal that it does not run to its end before it binds another, or ends.
fn leaves_portal(bytes: &[u8]) -> bool {
    let mut bound = None;
    for (kind, body) in frames(bytes) {
        let mut parts = body.splitn(2, |&byte| byte == 0);
        let portal = parts.next();
        match kind {
            frontend::BIND if bound.is_some() => return true,
            frontend::BIND => bound = portal,
            frontend::EXECUTE if bound == portal && parts.next() == Some(&ALL_ROWS) => bound = None,
            _ => {}
        }
    }
    bound.is_some()
}

/// How many statements a request runs, as far as its messages tell.
pub(super) fn executions(bytes: &[u8]) -> usize {
    let mut at = 0;
    let mut count = 0;
    while let Some(Ok(Some(header))) = bytes.get(at..).map(Header::parse) {
        count += usize::from(matches!(header.kind, frontend::QUERY | frontend::EXECUTE));
        at += header.total();
    }
    count
}
