//! From the client to the backend.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::ledger::{Fate, Owed};
use super::{Change, End, Flight, Relay, Step, limit_report};
use crate::classify::{Access, SessionEffects, SettingChanges};
use crate::metrics::Counter;
use crate::session::{Control, Demand, Forgotten, PinReason, Scan, Statement, Tallied};
use crate::wire::{
    self, HEADER_SIZE, Header, bind_names, bind_renamed, close_statement, describe_renamed, frontend,
    parse_parts, parse_renamed, target_name,
};
use crate::worker::Local;

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
                match self.scan(local) {
                    Scan::Demand(demand) => *self.demand = Some(demand),
                    Scan::Copy { bytes } => {
                        self.link.streaming = bytes;
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
                    // What is still owed is answered before the client is told.
                    Scan::Broken(error) if self.link.backend.ledger.is_empty() => {
                        return Err(End::ClientBroke(error));
                    }
                    Scan::Broken(_) => return Ok(moved),
                }
            }
            if let Some(demand) = *self.demand {
                if !self.may_send() || self.waits_to_listen(&demand) || self.waits_for_own_settings(&demand) {
                    return self.watch_client(cx, local, moved);
                }
                *self.demand = None;
                self.send(demand, cx);
                if let Some(fault) = self.link.fault.take() {
                    return Err(End::LimitExceeded(fault));
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
                    if !self.link.flight.repeatable {
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
            self.release_unless_repeatable();
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
    fn release_unless_repeatable(&mut self) {
        let flight = &self.link.flight;
        if !flight.repeatable && (flight.sent || !flight.begun) {
            self.client.input.release_held();
        }
    }

    /// Reads from the client. False when nothing came, or nothing fits.
    fn read_client(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Result<bool, End> {
        let spare = self.client.input.spare(&mut local.buffers);
        if spare.is_empty() {
            return Ok(false);
        }
        let read = self.client.stream.poll_read_into(cx, spare);
        match read {
            Poll::Ready(Ok(0) | Err(_)) => Err(End::ClientGone),
            Poll::Ready(Ok(count)) => {
                self.client.input.commit(count);
                Ok(true)
            }
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

    /// Sends a request, adding what the backend needs for it and giving names their place.
    fn send(&mut self, demand: Demand, cx: &mut Context<'_>) {
        self.count_request(&demand);
        let traced = self.traced(&demand);
        self.begin_flight(demand);
        if !Arc::ptr_eq(&self.link.backend.settings, &self.memory.settings) {
            self.apply_settings();
        }
        if self.link.foreign_sequences {
            self.part_sequences(&demand);
        }
        self.follow_listening(&demand);
        if let Some(decision) = traced {
            self.trace(&demand, decision);
        }
        let input = std::mem::take(&mut self.client.input);
        let bytes = &input.unparsed()[..demand.bytes];
        let pinned = self
            .memory
            .pin
            .is_some_and(|pin| pin != PinReason::SessionPooling);
        let traces = demand.class.traces(pinned);
        if !traces.is_empty() {
            self.note_traces(traces, bytes);
        }
        let drops_all_statements = demand.class.drops_all_statements() && runs(bytes);
        let run = self.translate(bytes);
        self.client.input = input;
        self.write_run(demand.bytes - run..demand.bytes, cx);
        self.restore_settings();
        self.client.input.parse(demand.bytes);
        self.link.streaming = demand.rest;
        self.release_unless_repeatable();
        if demand.class.may_drop_statements() {
            self.link.backend.prepared.doubt();
            self.link.backend.unnamed = None;
        }
        if drops_all_statements {
            let names = self.memory.statements.forget_named();
            self.link.forgotten = names;
        }
        self.tally_request(&demand);
        self.link.opaque |= demand.class.is_opaque();
        self.link.ddl |= demand.class.ddl;
        // A BEGIN alone writes nothing, nor does what a standby runs.
        self.link.wrote |= self.link.as_primary
            && demand.class.access == Access::Write
            && demand.class.control != Control::Begins;
        self.memory.repeating = false;
        self.memory.own_settings_seen_to = false;
    }

    /// Takes note of what a request may leave behind, so that the session is examined when its turn ends.
    fn note_traces(&mut self, traces: SessionEffects, bytes: &[u8]) {
        if self.memory.pin != Some(PinReason::SessionPooling) {
            self.link.traces = self.link.traces.union(traces);
        }
        if !traces.intersects(SessionEffects::SETTING.union(SessionEffects::DISCARD_ALL)) {
            return;
        }
        match self.setting_changes(bytes) {
            Some(changes) => {
                self.link.restore = self.memory.startup.restore_after(&changes);
                self.link.changes.append(changes);
            }
            // Nobody knows which: what cannot be followed keeps its backend.
            None => self.link.traces = self.link.traces.union(SessionEffects::UNKNOWN),
        }
    }

    /// The settings that the texts in a request change; `None` where that cannot be told.
    fn setting_changes(&self, bytes: &[u8]) -> Option<SettingChanges> {
        let mut all = SettingChanges::default();
        let mut at = 0;
        while let Ok(Some(header)) = Header::parse(bytes.get(at..)?) {
            let body = bytes.get(at + HEADER_SIZE..at + header.total())?;
            at += header.total();
            let text = match header.kind {
                frontend::QUERY => body.strip_suffix(&[0]).unwrap_or(body),
                frontend::PARSE => &body[parse_parts(body)?.text],
                frontend::BIND => match self.bound(body)? {
                    Some(statement) => statement.text(),
                    None => continue,
                },
                _ => continue,
            };
            all.append(SettingChanges::of(
                text,
                self.reading.standard_conforming_strings,
            )?);
        }
        Some(all)
    }

    /// The statement that a Bind names, if the client has it already.
    fn bound(&self, body: &[u8]) -> Option<Option<&Arc<Statement>>> {
        let names = bind_names(body)?;
        Some(match &body[names.statement] {
            b"" => self.memory.statements.unnamed.as_ref(),
            name => self.memory.statements.named(name),
        })
    }

    /// Behind a RESET that was just sent, gives the client's settings from startup their value again.
    fn restore_settings(&mut self) {
        if self.link.backend.ledger.batch_open() {
            return;
        }
        if let Some(sql) = self.link.restore.take() {
            let backend = &mut *self.link.backend;
            wire::query(backend.out.end(), sql.as_bytes());
            backend.ledger.owe(Owed::Query, Fate::SkipReady);
            backend.unnamed = None;
        }
    }

    /// The fate of an answer that ends with ReadyForQuery.
    fn fate_of_ready(&self) -> Fate {
        if self.link.restore.is_some() {
            Fate::ForwardUnready
        } else {
            Fate::Forward
        }
    }

    fn begin_flight(&mut self, demand: Demand) {
        let link = &mut *self.link;
        let whole = demand.closed && demand.rest == 0 && demand.bytes <= self.limits.rerun_size_max;
        let alone = link.backend.ledger.is_empty() && !link.in_block() && self.memory.pin.is_none();
        if link.backend.ledger.is_empty() {
            link.flight = Flight::NONE;
        }
        let flight = &mut link.flight;
        flight.repeatable = alone && whole && demand.class.repeatable;
        flight.access = flight.access.max(demand.class.access);
        flight.control = flight.control.max(demand.class.control);
        flight.begun = true;
        link.requests = link.requests.saturating_add(1);
    }

    /// `currval` and `lastval` must not tell what another session has drawn on this backend: before the first of them
    /// that is forgotten. What the session itself has drawn since it got the backend is its own.
    fn part_sequences(&mut self, demand: &Demand) {
        let backend = &mut *self.link.backend;
        if demand.class.asks_for_sequence_values()
            && !backend.ledger.batch_open()
            && backend.ledger.status() != b'E'
        {
            wire::query(backend.out.end(), b"DISCARD SEQUENCES");
            backend.ledger.owe(Owed::Query, Fate::Skip);
            backend.unnamed = None;
            self.link.foreign_sequences = false;
        } else if demand.class.access == Access::Write && demand.class.control == Control::None {
            self.link.foreign_sequences = false;
        }
    }

    /// Brings the backend to the session's settings, in the same flight as the request.
    fn apply_settings(&mut self) {
        let backend = &mut *self.link.backend;
        if backend.ledger.batch_open() || backend.ledger.status() != b'I' {
            return;
        }
        if let Some(sql) = self.memory.settings.statements_from(&backend.settings) {
            wire::query(backend.out.end(), sql.as_bytes());
            backend.ledger.owe(Owed::Query, Fate::Skip);
            // A Query ends the unnamed statement (manual, section 55.2.3).
            backend.unnamed = None;
        }
        backend.settings = Arc::clone(&self.memory.settings);
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

    /// Goes through the frames of a request; what has to be changed is appended to what goes out. Returns how
    /// many bytes at the end go out as they lie and were not appended.
    fn translate(&mut self, bytes: &[u8]) -> usize {
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
            let body = &bytes[at + HEADER_SIZE..end];
            let rewritten = self.translate_frame(header, body, &bytes[run..at], &mut next_parsed);
            at = end;
            if rewritten {
                run = at;
            }
        }
        drop(next_parsed);
        self.memory.parsed = parsed;
        bytes.len() - run
    }

    /// Whether the frame was replaced; then `before`, the frames that go as they lie, went out before it.
    fn translate_frame(
        &mut self,
        header: Header,
        body: &[u8],
        before: &[u8],
        parsed: &mut impl Iterator<Item = Arc<Statement>>,
    ) -> bool {
        self.tally_frame(header.kind);
        let ledger = &mut self.link.backend.ledger;
        if ledger.copy_in() {
            if matches!(header.kind, frontend::COPY_DONE | frontend::COPY_FAIL) {
                ledger.copy_ended();
            }
            return false;
        }
        if ledger.skips_until_sync() && header.kind != frontend::SYNC {
            self.append(before);
            return true;
        }
        match header.kind {
            frontend::QUERY => {
                // It ends the unnamed statement, the client's as well (manual, section 55.2.3).
                self.memory.statements.unnamed = None;
                self.link.backend.unnamed = None;
                if let Some(rewritten) = self.translate_deallocate(body, before) {
                    return rewritten;
                }
                let fate = self.fate_of_ready();
                self.link.backend.ledger.owe(Owed::Query, fate);
            }
            frontend::FUNCTION_CALL => ledger.owe(Owed::FunctionCall, Fate::Forward),
            frontend::SYNC => {
                let fate = self.fate_of_ready();
                self.link.backend.ledger.owe(Owed::Sync, fate);
                self.memory.end_batch();
            }
            frontend::COPY_DONE | frontend::COPY_FAIL => ledger.copy_ended(),
            frontend::EXECUTE => ledger.owe(Owed::Execute, Fate::Forward),
            frontend::PARSE => return self.translate_parse(header, body, before, parsed.next()),
            frontend::BIND => return self.translate_bind(header, body, before),
            frontend::DESCRIBE => return self.translate_describe(body, before),
            frontend::CLOSE => return self.translate_close(body, before),
            _ => {}
        }
        false
    }

    /// DEALLOCATE names a protocol-level statement as well as one of PREPARE's: on the backend it has another name.
    /// `None` if the query is none, or names no such statement.
    fn translate_deallocate(&mut self, body: &[u8], before: &[u8]) -> Option<bool> {
        let text = body.strip_suffix(&[0]).unwrap_or(body);
        let name = match Deallocated::parse(text)? {
            Deallocated::All => {
                self.link.forgotten = self.memory.statements.forget_named();
                return None;
            }
            Deallocated::Name(name) => name,
        };
        let statement = self.memory.statements.close(&name)?;
        self.append(before);
        self.prepare_apart(&statement);
        let backend = &mut *self.link.backend;
        wire::query(backend.out.end(), &deallocate(&statement));
        backend.ledger.owe(Owed::Query, Fate::Forward);
        backend.prepared.remove(statement.id());
        self.link.forgotten = Forgotten::one(&name, statement);
        Some(true)
    }

    /// The same in the extended protocol, for its unnamed statement. False if the Parse is none of that, or names no
    /// statement of the protocol.
    fn parse_deallocate(&mut self, statement: &Arc<Statement>, types: &[u8], before: &[u8]) -> bool {
        let Some(deallocated) = Deallocated::parse(statement.text()) else {
            return false;
        };
        let (text, names) = match deallocated {
            Deallocated::All => {
                self.append(before);
                (statement.text().to_vec(), self.memory.statements.forget_named())
            }
            Deallocated::Name(name) => {
                let Some(named) = self.memory.statements.close(&name) else {
                    return false;
                };
                self.append(before);
                self.prepare(&named);
                self.link.backend.prepared.remove(named.id());
                (deallocate(&named), Forgotten::one(&name, named))
            }
        };
        parse_renamed(self.link.backend.out.end(), b"", &text, types);
        self.link.backend.ledger.owe(Owed::Parse, Fate::Forward);
        self.link.backend.unnamed = Some(Arc::clone(statement));
        let before = self.memory.statements.unnamed.replace(Arc::clone(statement));
        self.memory
            .changes
            .push_back(Change::Deallocates { before, names });
        true
    }

    fn append(&mut self, bytes: &[u8]) {
        self.link.backend.out.end().extend_from_slice(bytes);
    }

    fn translate_parse(
        &mut self,
        header: Header,
        body: &[u8],
        before: &[u8],
        statement: Option<Arc<Statement>>,
    ) -> bool {
        let whole = body.len() == header.body();
        let (Some(parts), Some(statement), true) = (parse_parts(body), statement, whole) else {
            // Not read, or malformed: the server gets it as it is. The session keeps its backend for as long as it has
            // the statement under the client's own name, or as its unnamed one.
            self.memory.unread_unnamed |= body.first() == Some(&0);
            self.link.backend.ledger.owe(Owed::Parse, Fate::Forward);
            self.memory.changes.push_back(Change::UnnamedPlaced);
            self.link.backend.unnamed = None;
            self.memory.statements.unnamed = None;
            return false;
        };
        let name = &body[parts.name];
        if name.is_empty() && self.parse_deallocate(&statement, &body[parts.types.clone()], before) {
            return true;
        }
        if name.is_empty() {
            if std::mem::take(&mut self.memory.unread_unnamed) {
                self.link.traces = self.link.traces.union(SessionEffects::DEALLOCATE);
            }
            let before = self.memory.statements.unnamed.replace(Arc::clone(&statement));
            self.link.backend.unnamed = Some(statement);
            self.memory.changes.push_back(Change::Unnamed { before });
            self.link.backend.ledger.owe(Owed::Parse, Fate::Forward);
            return false;
        }
        self.append(before);
        let taken = self.memory.statements.named(name);
        if taken.is_some_and(|taken| !(self.memory.repeating && Arc::ptr_eq(taken, &statement))) {
            // The server finds the name taken, as it would have without Halyard.
            self.prepare(&statement);
            parse_renamed(
                self.link.backend.out.end(),
                statement.name(),
                statement.text(),
                statement.types(),
            );
            self.link.backend.ledger.owe(Owed::Parse, Fate::Forward);
            self.memory.changes.push_back(Change::Duplicate {
                name: name.into(),
                statement,
            });
            return true;
        }
        if self.memory.statements.len() >= self.limits.client_statements_max {
            self.link.fault = Some(limit_report(
                "too many prepared statements in this session",
                "pool.client_prepared_statements_max",
                self.limits.client_statements_max,
            ));
        }
        let known = self.link.backend.prepared.touch(&statement);
        self.counters.add(
            if known {
                Counter::PreparedHits
            } else {
                Counter::PreparedMisses
            },
            1,
        );
        let prepared = if known {
            self.link.backend.ledger.owe(Owed::Parse, Fate::Fake);
            None
        } else {
            self.make_room(&statement);
            parse_renamed(
                self.link.backend.out.end(),
                statement.name(),
                statement.text(),
                statement.types(),
            );
            self.link.backend.ledger.owe(Owed::Parse, Fate::Forward);
            Some(statement.id())
        };
        let before = self.memory.statements.name(name, statement);
        self.memory.changes.push_back(Change::Named {
            name: name.into(),
            before,
            prepared,
        });
        true
    }

    fn translate_bind(&mut self, header: Header, body: &[u8], before: &[u8]) -> bool {
        let Some(names) = bind_names(body) else {
            self.link.backend.ledger.owe(Owed::Bind, Fate::Forward);
            return false;
        };
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
            }
            return placed;
        }
        let Some(statement) = self.memory.statements.named(name).cloned() else {
            self.link.backend.ledger.owe(Owed::Bind, Fate::Forward);
            return false;
        };
        self.append(before);
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
        true
    }

    fn translate_describe(&mut self, body: &[u8], before: &[u8]) -> bool {
        let statement = match target_name(body) {
            Some((b'S', name)) if name.is_empty() => {
                let placed = self.place_unnamed(before);
                self.link.backend.ledger.owe(Owed::Describe, Fate::Forward);
                if placed {
                    describe_renamed(self.link.backend.out.end(), b"");
                }
                return placed;
            }
            Some((b'S', name)) => self.memory.statements.named(&body[name]).cloned(),
            _ => None,
        };
        let Some(statement) = statement else {
            self.link.backend.ledger.owe(Owed::Describe, Fate::Forward);
            return false;
        };
        self.append(before);
        self.prepare(&statement);
        describe_renamed(self.link.backend.out.end(), statement.name());
        self.link.backend.ledger.owe(Owed::Describe, Fate::Forward);
        true
    }

    fn translate_close(&mut self, body: &[u8], before: &[u8]) -> bool {
        match target_name(body) {
            // Others may use the statement on this backend: only the client's name for it ends.
            Some((b'S', name)) if !name.is_empty() => {
                self.append(before);
                let name = &body[name];
                let before = self.memory.statements.close(name);
                self.memory.changes.push_back(Change::Closed {
                    name: name.into(),
                    before,
                });
                self.link.backend.ledger.owe(Owed::CloseStatement, Fate::Fake);
                true
            }
            Some((b'S', _)) => {
                let before = self.memory.statements.unnamed.take();
                self.link.backend.unnamed = None;
                self.memory.changes.push_back(Change::Unnamed { before });
                self.link.backend.ledger.owe(Owed::CloseStatement, Fate::Forward);
                false
            }
            _ => {
                self.link.backend.ledger.owe(Owed::ClosePortal, Fate::Forward);
                false
            }
        }
    }

    /// Prepares a statement that the backend does not hold.
    fn prepare(&mut self, statement: &Arc<Statement>) {
        if self.link.backend.prepared.touch(statement) {
            self.counters.add(Counter::PreparedHits, 1);
            return;
        }
        self.counters.add(Counter::PreparedMisses, 1);
        self.counters.add(Counter::ParseInjected, 1);
        self.make_room(statement);
        let backend = &mut *self.link.backend;
        parse_renamed(
            backend.out.end(),
            statement.name(),
            statement.text(),
            statement.types(),
        );
        backend.ledger.owe(Owed::Parse, Fate::Skip);
        self.memory.changes.push_back(Change::Prepared(statement.id()));
    }

    /// [`prepare`](Self::prepare) in front of a Query: where it fails, as it does in a failed block, the server reads
    /// nothing but a Sync.
    ///
    /// For a name that is only to be taken away any text will do: the statement's own may not be prepared any more.
    fn prepare_apart(&mut self, statement: &Arc<Statement>) {
        if self.link.backend.prepared.touch(statement) {
            return;
        }
        self.make_room(statement);
        let backend = &mut *self.link.backend;
        parse_renamed(backend.out.end(), statement.name(), b"SELECT", &[0, 0]);
        backend.ledger.owe(Owed::Parse, Fate::Skip);
        backend.out.end().extend_from_slice(&wire::SYNC);
        backend.ledger.owe(Owed::Sync, Fate::Skip);
        self.memory.changes.push_back(Change::Prepared(statement.id()));
        self.memory.end_batch();
    }

    /// Notes a statement on the backend, closing another if there are too many.
    fn make_room(&mut self, statement: &Arc<Statement>) {
        let backend = &mut *self.link.backend;
        let in_doubt = backend.prepared.in_doubt();
        let evicted = backend.prepared.insert(Arc::clone(statement));
        self.link.closing |= evicted.is_some() || in_doubt;
        let backend = &mut *self.link.backend;
        // Close of a name that is not there is no error: it makes sure of a name that may or may not be.
        for closed in evicted.iter().chain(in_doubt.then_some(statement)) {
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
        backend.unnamed = Some(wanted);
        self.memory.changes.push_back(Change::UnnamedPlaced);
        true
    }
}

/// Whether a request runs anything: one that prepares a statement has its class, but none of its effects yet.
fn runs(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let Some(Ok(Some(header))) = bytes.get(at..).map(Header::parse) {
        if matches!(header.kind, frontend::QUERY | frontend::EXECUTE) {
            return true;
        }
        at += header.total();
    }
    false
}

/// DEALLOCATE of a statement by its name on backends.
fn deallocate(statement: &Statement) -> Vec<u8> {
    [b"DEALLOCATE \"", statement.name(), b"\""].concat()
}

/// What a DEALLOCATE statement names.
#[derive(Debug, PartialEq, Eq)]
enum Deallocated {
    All,
    Name(Vec<u8>),
}

impl Deallocated {
    /// Reads `DEALLOCATE [ PREPARE ] { name | ALL }` standing alone; `None` for everything else.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let text = text.strip_suffix(b";").unwrap_or(text).trim_ascii_end();
        let rest = keyword(text, b"deallocate")?;
        let rest = keyword(rest, b"prepare").unwrap_or(rest);
        if rest.eq_ignore_ascii_case(b"all") {
            return Some(Self::All);
        }
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            let quoted = quoted.strip_suffix(b"\"")?;
            return (!quoted.contains(&b'"')).then(|| Self::Name(quoted.to_vec()));
        }
        let plain = rest
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$');
        (plain && !rest.is_empty()).then(|| Self::Name(rest.to_ascii_lowercase()))
    }
}

fn keyword<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(word.len())?;
    let apart = rest.first().is_some_and(u8::is_ascii_whitespace);
    (head.eq_ignore_ascii_case(word) && apart).then(|| rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::Deallocated;

    #[test]
    fn deallocate_is_read_as_the_server_reads_it() {
        let name = |name: &[u8]| Some(Deallocated::Name(name.to_vec()));
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
