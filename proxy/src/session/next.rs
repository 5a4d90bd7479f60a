//! Between two turns: what the client asks for next, and what is answered without a node.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::sleep;

use super::Control;
use super::demand::{Demand, Mood, Scan, Scanner};
use super::inbox::Message;
use super::offline::{Answered, Library, Offline};
use super::turn::Session;
use crate::classify::{Access, Rule};
use crate::relay::Received;
use crate::wire::{self, FrameError, HEADER_SIZE, Header, frontend, parse_parts};
use crate::worker::Local;

/// How the wait for the next request ends.
pub(super) enum Next {
    Demand,
    Gone,
    Broke(FrameError),
    Leave,
    /// It has asked for nothing for as long as it has said that it may.
    Idled,
}

impl Session {
    /// Waits for a request, answering what is Halyard's to answer.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Poll<Next> {
        loop {
            // Until it does not ring: only then the next message wakes this task.
            while self.registered.inbox.is_ringing(cx) {
                let messages = self.registered.inbox.take();
                if messages.has(Message::Terminate) {
                    return Poll::Ready(Next::Leave);
                }
                self.draining |= messages.has(Message::Drain);
                // There is nothing to cancel.
                drop(self.registered.inbox.take_cancels());
            }
            if self.is_to_be_answered_offline() && self.answer_offline(local) {
                return Poll::Ready(Next::Gone);
            }
            self.deliver();
            if self.offline.is_none() && self.client.ignoring == 0 {
                match self.scan(local) {
                    Some(next) => return Poll::Ready(next),
                    None if self.demand.is_some() => {
                        self.idle_timer = None;
                        return Poll::Ready(Next::Demand);
                    }
                    None => {}
                }
            }
            if std::task::ready!(self.poll_write_answers(cx)) {
                return Poll::Ready(Next::Gone);
            }
            if self.draining && self.client.input.is_empty() && self.offline.is_none() {
                return Poll::Ready(Next::Leave);
            }
            if self.client.has_ended() {
                // What it has sent is answered.
                return Poll::Ready(Next::Gone);
            }
            match self.client.poll_receive(cx, &mut local.buffers) {
                Poll::Ready(Err(_) | Ok(Received::NoRoom)) => return Poll::Ready(Next::Gone),
                Poll::Ready(Ok(Received::Bytes | Received::End)) => self.idle_timer = None,
                // What waits goes in portions, and what the client sends meanwhile is read in between.
                Poll::Pending if self.has_mail() => {}
                Poll::Pending => {
                    self.client.input.retire(&mut local.buffers);
                    if self.idles_beyond_its_limit(cx) {
                        return Poll::Ready(Next::Idled);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Whether the client's own `idle_session_timeout` is over. Its server would count too, but it has none.
    fn idles_beyond_its_limit(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(limit) = self.memory.settings.idles_for() else {
            return false;
        };
        if self.offline.as_ref().is_some_and(|offline| !offline.is_at_rest()) {
            // In a transaction, if a failed one, a server counts otherwise.
            self.idle_timer = None;
            return false;
        }
        let timer = self.idle_timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(cx).is_ready()
    }

    /// Looks for a request in the buffer. `None` when there is none yet, or when it is in `demand` now.
    fn scan(&mut self, local: &mut Local) -> Option<Next> {
        // Without a backend there is nothing that names could stand for to this client alone.
        self.memory.statements.end_own();
        self.memory.keep_told();
        loop {
            if self.client.input.unparsed().is_empty() || self.demand.is_some() {
                return None;
            }
            let catalog = self.group.catalog.load();
            let mut scanner = Scanner {
                statements: &self.memory.statements,
                parsed: &mut self.memory.parsed,
                registry: &self.app.statements,
                catalog: &catalog,
                epoch: self.group.catalog.epoch().load(),
                reading: &self.reading,
                turning: false,
                moves: false,
                size_max: self.app.relay_limits.statement_size_max,
            };
            let scan = scanner.scan(self.client.input.unparsed(), Mood::Idle, local);
            self.memory.look();
            match scan {
                Scan::Demand(demand) => self.demand = Some(self.as_session_has_it(demand)),
                Scan::Wait { frame } => {
                    self.client.input.reserve(frame, &mut local.buffers);
                    return None;
                }
                Scan::Copy { bytes } | Scan::Ignored { bytes } => {
                    let count = bytes.min(self.client.input.unparsed().len());
                    self.client.input.parse(count);
                    self.client.input.release_held();
                    self.client.ignoring = bytes - count;
                    if self.client.ignoring > 0 {
                        return None;
                    }
                }
                Scan::Terminate => return Some(Next::Gone),
                Scan::Broken(error) => return Some(Next::Broke(error)),
            }
        }
    }

    /// A BEGIN without an access mode reads only where the session's transactions do: it may open on a standby.
    fn as_session_has_it(&self, mut demand: Demand) -> Demand {
        let begins = demand.class.rule == Rule::OpensTransaction && demand.class.control == Control::Begins;
        if begins && self.memory.settings.read_only() {
            demand.class.access = Access::Read;
            demand.class.rule = Rule::OpensReadOnlyTransaction;
        }
        demand
    }

    #[inline]
    fn is_to_be_answered_offline(&self) -> bool {
        self.offline.is_some() || self.client.ignoring > 0
    }

    /// Answers what the client has to hear before any node is asked. True when it is over.
    fn answer_offline(&mut self, local: &mut Local) -> bool {
        if !self.is_to_be_answered_offline() {
            return false;
        }
        let catalog = self.group.catalog.load();
        let library = Library {
            registry: &self.app.statements,
            catalog: &catalog,
            epoch: self.group.catalog.epoch().load(),
            reading: &self.reading,
            names_max: self.app.relay_limits.client_statements_max,
        };
        let mut free = Offline::told(false, false, self.app.relay_limits.statement_size_max);
        let offline = self.offline.as_deref_mut().unwrap_or(&mut free);
        self.ends_failed_block = false;
        match offline.answer(&mut self.client, &mut self.memory, &library, local) {
            Answered::Free => self.offline = None,
            Answered::EndsBlock => {
                self.offline = None;
                (self.ends_failed_block, self.to_primary) = (true, true);
                return false;
            }
            Answered::Wait => {}
            Answered::Over => return true,
        }
        false
    }

    /// Writes what the client has been answered, until its socket has all of it. True when it is gone.
    pub(super) fn poll_write_answers(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let client = &mut self.client;
        while !client.out.is_empty() {
            match client.stream.poll_write_from(cx, client.out.pending()) {
                Poll::Ready(Ok(count)) if count > 0 => client.out.advance(count),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(_) => return Poll::Ready(true),
            }
        }
        Poll::Ready(client.stream.is_tls() && matches!(client.stream.poll_flush_out(cx), Poll::Ready(Err(_))))
    }

    /// Answers what the client has to hear before its backend is asked again. True when it is gone.
    pub(super) fn poll_answer_beside(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Poll<bool> {
        loop {
            if self.answer_offline(local) {
                return Poll::Ready(true);
            }
            if self.offline.is_none() {
                return Poll::Ready(false);
            }
            if std::task::ready!(self.poll_write_answers(cx)) {
                return Poll::Ready(true);
            }
            let spare = self.client.input.spare(&mut local.buffers);
            match self.client.stream.poll_read_into(cx, spare) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(true),
                Poll::Ready(Ok(count)) => self.client.input.commit(count),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Answers a lone Parse of a text that a server took from this group before, when no backend is free for it:
    /// it is prepared where and when it is bound. Whoever prepares statements on one connection after another,
    /// some of them inside transactions (as pgbench does), would otherwise wait for itself.
    pub(super) fn answer_known_parse(&mut self, demand: &Demand) -> bool {
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let Some(name) = lone_parse(bytes) else {
            return false;
        };
        let [statement] = &self.memory.parsed[..] else {
            return false;
        };
        let known = statement.was_taken();
        let full = self.memory.statements.len() >= self.app.relay_limits.client_statements_max;
        if !known || full || name.is_empty() || self.memory.statements.named(name).is_some() {
            return false;
        }
        self.memory.statements.name(name, Arc::clone(statement));
        self.memory.parsed.clear();
        self.to_primary = false;
        self.revert_listening();
        self.client.input.parse(demand.bytes);
        self.client.input.release_held();
        self.demand = None;
        let out = self.client.out.end();
        wire::empty_message(out, wire::backend::PARSE_COMPLETE);
        wire::ready_for_query(out, b'I');
        true
    }
}

/// The name given by a request that consists of one Parse and a Sync.
fn lone_parse(bytes: &[u8]) -> Option<&[u8]> {
    let parse = Header::parse(bytes).ok()??;
    let sync = Header::parse(bytes.get(parse.total()..)?).ok()??;
    let lone = parse.kind == frontend::PARSE && sync.kind == frontend::SYNC;
    let whole = bytes.len() == parse.total() + sync.total();
    let body = bytes.get(HEADER_SIZE..parse.total())?;
    (lone && whole).then(|| parse_parts(body).map(|parts| &body[parts.name]))?
}
