//! From the backend to the client.

use std::io;
use std::task::{Context, Poll};

use super::aside::completed;
use super::commit::is_question;
use super::ledger::{self, Event, Fate, Owed, Verdict};
use super::statements::describes_all;
use super::{Change, End, Lost, Refusal, Relay, Step};
use crate::classify::SessionEffects;
use crate::error::{Report, SqlState};
use crate::session::{Control, Tallied};
use crate::wire::{self, ErrorFields, HEADER_SIZE, Header, backend, error_fields, parameter_status};
use crate::worker::Local;

/// Longest message that is waited for as a whole in order to be read; a longer one is passed on unread. Bytes.
const READ_MAX: usize = 16 * 1024;

/// Longest frame that is passed on only as a whole; a longer one is passed on as it comes. Bytes.
const WHOLE_MAX: usize = 16 * 1024;

/// Most of an answer that is kept back because it commits to nothing; with more, the request cannot be run again elsewhere.
/// Bytes.
const EARLY_MAX: usize = 16 * 1024;

/// With so much that the client has not taken, Halyard's own answers wait: then what is owed grows up to
/// `limits.pipeline_max`, and the client is read no further. Bytes.
const UNTAKEN_MAX: usize = 64 * 1024;

/// What is told by the session's role and never by a backend, which may be another one next time.
const ROLE_PARAMETERS: [&str; 2] = ["in_hot_standby", "default_transaction_read_only"];

/// The function in PostgreSQL's `plancache.c` that finds a prepared statement to answer with other columns than before.
const REVALIDATES: &[u8] = b"RevalidateCachedQuery";

/// Why a prepared statement is refused on its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stale {
    /// It would answer with other columns than when it was prepared.
    Changed,
    /// It is not there any more.
    Gone,
}

/// What happens to a frame.
struct Fated {
    forward: bool,
    /// What the client gets instead, as a frame.
    instead: Option<Vec<u8>>,
}

impl Fated {
    fn instead(frame: Vec<u8>) -> Self {
        Self {
            forward: false,
            instead: Some(frame),
        }
    }
}

/// Where a look at the bytes stops.
enum Stop {
    /// At the end of what can be used.
    At(usize),
    /// The connection is of no use any more.
    Lost(Lost),
}

impl Relay<'_> {
    /// Reads once from the backend and passes on, if the client has taken what came before.
    pub(super) fn pull_answers(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Step {
        let full = self.link.backend.ledger.len() >= self.limits.pipeline_max;
        let owed = !self.link.backend.ledger.is_empty();
        let flushed = self.give_and_flush(cx)?;
        // Nobody else wakes this task for what has waited for room, or for answers of which all were Halyard's to give.
        let ledger = &self.link.backend.ledger;
        let made_room = (full && ledger.len() < self.limits.pipeline_max) || (owed && ledger.is_empty());
        if !flushed {
            return Ok(made_room);
        }
        let backend = &mut *self.link.backend;
        let carried = backend.carry.len();
        let count = match backend.stream.poll_read_into(cx, &mut local.scratch[carried..]) {
            // What arrived while the backend was idle has not been looked at yet.
            Poll::Pending if std::mem::take(&mut self.link.unread) => 0,
            Poll::Pending => return Ok(made_room),
            Poll::Ready(Ok(0)) => {
                return Err(End::BackendLost(Lost {
                    said: None,
                    error: None,
                }));
            }
            Poll::Ready(Err(error)) => {
                return Err(End::BackendLost(Lost {
                    said: None,
                    error: Some(error.kind()),
                }));
            }
            Poll::Ready(Ok(count)) => count,
        };
        if let Some(sent) = self.link.timed.take() {
            self.link.backend.node().load.observe(sent.elapsed());
        }
        self.inbox.tally.add(Tallied::Sent, count as u64);
        if self.link.wrote {
            // Whoever the client tells of it may read it from now on.
            self.consistency.note_for_others();
        }
        let backend = &mut *self.link.backend;
        local.scratch[..carried].copy_from_slice(&backend.carry);
        backend.carry.clear();
        let arrived = &local.scratch[..carried + count];
        let stop = self.digest(arrived, cx);
        if let Stop::At(end) = stop {
            self.link.backend.carry.extend_from_slice(&arrived[end..]);
        }
        self.give_fakes();
        // Whether the client takes it all at once decides only what is read next.
        let _ = self.flush_client(cx)?;
        match stop {
            Stop::At(_) => Ok(true),
            Stop::Lost(lost) => Err(End::BackendLost(lost)),
        }
    }

    /// Gives the answers that are Halyard's to give, as far as the client takes what came before, and pushes them out.
    /// False while it takes nothing. Nothing more is read from the backend then: what it says comes behind them.
    fn give_and_flush(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        loop {
            let gives = self.client.out.pending().len() < UNTAKEN_MAX;
            if gives {
                self.give_fakes();
            }
            if !self.flush_client(cx)? {
                return Ok(false);
            }
            if gives {
                return Ok(true);
            }
        }
    }

    /// Pushes out what the client has not taken. False while it takes nothing.
    fn flush_client(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let client = &mut *self.client;
        while !client.out.is_empty() {
            match client.stream.poll_write_from(cx, client.out.pending()) {
                Poll::Ready(Ok(count)) if count > 0 => client.out.advance(count),
                Poll::Pending => return Ok(false),
                Poll::Ready(_) => return Err(End::ClientGone),
            }
        }
        if client.stream.is_tls() && matches!(client.stream.poll_flush_out(cx), Poll::Ready(Err(_))) {
            return Err(End::ClientGone);
        }
        Ok(true)
    }

    /// Goes through the frames in `bytes` and passes on what the client is due, in one write where that can be.
    fn digest(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Stop {
        let mut at = self.pass_on(bytes);
        let mut run = if self.link.backend.passing.forward { 0 } else { at };
        let passing = &mut self.link.backend.passing;
        if passing.remaining == 0 {
            passing.forward = false;
        }
        let mut preliminary = at == 0;
        while at < bytes.len() {
            let header = match Header::parse(&bytes[at..]) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(error) => {
                    self.keep_for_client(&bytes[run..at], preliminary);
                    tracing::warn!(node = %self.link.backend.node().name, %error, "the node sent a broken frame");
                    return Stop::Lost(Lost {
                        said: None,
                        error: Some(io::ErrorKind::InvalidData),
                    });
                }
            };
            let total = header.total();
            let present = (bytes.len() - at).min(total);
            if present < total && (total <= WHOLE_MAX || must_be_read(header)) {
                // The client is given whole frames while they are small: where a node is lost behind one, there is
                // still something to be said.
                break;
            }
            let before = preliminary;
            preliminary &= is_preliminary(header.kind) || is_last_word(header, &bytes[at..at + present]);
            if self.link.backend.ledger.is_mere_part(header.kind)
                && self.link.flight.refused.is_none()
                && self.link.commit.is_unasked()
                && (!self.link.dropping || header.kind != backend::COMMAND_COMPLETE)
            {
                at += present;
                if present < total {
                    self.link.backend.passing.remaining = total - present;
                    self.link.backend.passing.forward = true;
                }
                continue;
            }
            let frame = &bytes[at..at + present];
            let fated = match self.judge(header, &frame[HEADER_SIZE..]) {
                Ok(fated) => fated,
                Err(lost) => {
                    // A server that is shut down says so behind whatever its buffer still held.
                    self.keep_for_client(&bytes[run..at], before);
                    return Stop::Lost(lost);
                }
            };
            if self.link.flight.refused.is_some() {
                // Nothing of this flight reached the client, and nothing will.
                run = at + present;
            } else if !fated.forward {
                self.keep_for_client(&bytes[run..at], preliminary);
                run = at + present;
                if let Some(mut frame) = fated.instead {
                    self.answered();
                    self.client.out.end().append(&mut frame);
                }
            }
            at += present;
            if matches!(self.link.backend.ledger.current(), Some((_, Fate::Fake)))
                && self.link.flight.refused.is_none()
            {
                self.keep_for_client(&bytes[run..at], preliminary);
                run = at;
                self.give_fakes();
            }
            if present < total {
                self.link.backend.passing.remaining = total - present;
                self.link.backend.passing.forward = fated.forward && self.link.flight.refused.is_none();
            }
        }
        let rest = &bytes[run.min(at)..at];
        if self.may_wait(rest, preliminary) {
            self.memory.early.extend_from_slice(rest);
        } else {
            self.write_client(rest, cx);
        }
        Stop::At(at)
    }

    /// Takes the continuation of a frame off the front; how long it is.
    fn pass_on(&mut self, bytes: &[u8]) -> usize {
        let passing = &mut self.link.backend.passing;
        let count = passing.remaining.min(bytes.len());
        passing.remaining -= count;
        if count == 0 {
            passing.forward = false;
        }
        count
    }

    /// Takes note that the client has, or is about to have, a part of the answer: from now on the request cannot
    /// be sent elsewhere.
    fn answered(&mut self) {
        if !self.link.flight.answered {
            self.link.flight.answered = true;
            self.link.flight.held = false;
            self.client.input.release_held();
            self.client.out.end().append(&mut self.memory.early);
        }
    }

    /// Whether a part of an answer that commits to nothing is told with what follows it: the request may still be
    /// refused.
    fn may_wait(&self, bytes: &[u8], preliminary: bool) -> bool {
        let flight = &self.link.flight;
        let fits = self.memory.early.len() + bytes.len() <= EARLY_MAX;
        preliminary && fits && flight.repeatable && !flight.answered && flight.refused.is_none()
    }

    /// Keeps bytes for the client until what follows them is known.
    fn keep_for_client(&mut self, bytes: &[u8], preliminary: bool) {
        if self.may_wait(bytes, preliminary) {
            self.memory.early.extend_from_slice(bytes);
        } else if !bytes.is_empty() {
            self.answered();
            self.client.out.end().extend_from_slice(bytes);
        }
    }

    /// Sends bytes to the client, or keeps them if it does not take them.
    fn write_client(&mut self, bytes: &[u8], cx: &mut Context<'_>) {
        if bytes.is_empty() {
            return;
        }
        self.answered();
        let client = &mut *self.client;
        let taken = if client.out.is_empty() {
            match client.stream.poll_write_from(cx, bytes) {
                Poll::Ready(Ok(count)) => count,
                // The next flush meets the error again and ends the turn.
                Poll::Ready(Err(_)) | Poll::Pending => 0,
            }
        } else {
            0
        };
        if taken < bytes.len() {
            client.out.end().extend_from_slice(&bytes[taken..]);
        }
    }

    /// Asks the ledger what a frame means and acts on it. `body` is whole where [`must_be_read`] says so.
    fn judge(&mut self, header: Header, body: &[u8]) -> Result<Fated, Lost> {
        let status = body.first().copied();
        let fields = (header.kind == backend::ERROR_RESPONSE).then(|| error_fields(body));
        let fate = self.link.backend.ledger.current();
        let verdict = self.meaning(header, body, fields.as_ref())?;
        let mut fated = Fated {
            forward: verdict.forward,
            instead: None,
        };
        match verdict.event {
            Event::Nothing if header.kind == backend::PARAMETER_STATUS => {
                if let Some((name, value)) = parameter_status(body) {
                    self.link.backend.note_parameter(name, value);
                    fated.forward &= !ROLE_PARAMETERS.contains(&name) || self.is_clients_doing(name);
                    if fated.forward {
                        self.memory.tell(name, value);
                        self.link.reading_turned |= self.reading.heed(name, value);
                    }
                }
            }
            Event::Nothing if header.kind == backend::NOTIFICATION_RESPONSE => {
                // They come from the hub.
                fated.forward = false;
            }
            Event::Nothing => {}
            Event::CopyIn { ignored } => {
                // The Sync behind its Execute is ignored (manual, section 55.2.6): the batch goes on.
                self.link.flight.binds = true;
                self.memory.join_batches(ignored);
            }
            Event::Answered(Owed::Parse | Owed::CloseStatement) => self.on_parsed(),
            Event::Answered(Owed::Execute) => self.link.flight.ran |= verdict.forward,
            Event::Answered(Owed::Describe) if fate == Some((Owed::Describe, Fate::Skip)) => {
                self.note_shape(header.kind, body);
            }
            Event::Answered(_) => {}
            Event::Ready => fated.forward = self.on_ready(fate, verdict.forward, status),
            Event::Failed { .. } if fate == Some((Owed::Query, Fate::Learn)) => {}
            Event::Failed { ours: true } if !verdict.forward && !is_of_query(fate) => {
                let fields = fields.expect("only an ErrorResponse fails a batch");
                self.on_refused_apart(fate, &fields, body);
            }
            Event::Failed { .. } => {
                let fields = fields.expect("only an ErrorResponse fails a batch");
                self.on_error(&fields, fate, &mut fated);
                if fated.forward {
                    let frame = match fate {
                        Some((_, Fate::Retagged)) => self.in_clients_places(body),
                        _ => self
                            .refusal_of_lent(&fields)
                            .or_else(|| self.in_clients_words(&fields, body)),
                    };
                    fated = frame.map_or(fated, Fated::instead);
                }
            }
        }
        if header.kind == backend::COMMAND_COMPLETE && fated.forward {
            if body == b"DEALLOCATE ALL\0" || (body == b"DISCARD ALL\0" && !is_of_query(fate)) {
                self.end_deallocated();
            }
            let instead = match fate {
                Some((_, Fate::Renamed(tag))) => Some(completed(tag)),
                Some((_, Fate::Retagged)) => self.tag_of_rewritten().map(completed),
                _ => self.end_commit(body),
            };
            fated = instead.map_or(fated, Fated::instead);
        }
        Ok(fated)
    }

    /// What a frame means by the ledger. An error after which the connection is of no use is its loss.
    fn meaning(
        &mut self,
        header: Header,
        body: &[u8],
        fields: Option<&ErrorFields<'_>>,
    ) -> Result<Verdict, Lost> {
        if let Some(fields) = fields.filter(|fields| fields.fatal) {
            return Err(Lost {
                said: Some(said(fields)),
                error: None,
            });
        }
        let fate = self.link.backend.ledger.current();
        if fields.is_some() && fate == Some((Owed::Query, Fate::Skip)) {
            // Settings that a server took before were refused now. The request behind them must not run with others
            // than the client's: this connection is given up, and the request goes to another.
            tracing::warn!(node = %self.link.backend.node().name, "the session's settings could not be applied");
            return Err(Lost {
                said: fields.map(said),
                error: None,
            });
        }
        if is_question(fate) {
            self.learn_of_transaction(header.kind, body, fields);
        }
        let status = body.first().copied();
        self.link
            .backend
            .ledger
            .on_frame(header.kind, status)
            .map_err(|error| {
                tracing::warn!(node = %self.link.backend.node().name, %error, "the node broke the protocol");
                Lost {
                    said: None,
                    error: Some(io::ErrorKind::InvalidData),
                }
            })
    }

    /// A ReadyForQuery has come. Whether the client gets it; `forward` tells whether it is the client's at all.
    fn on_ready(&mut self, fate: Option<(Owed, Fate)>, forward: bool, status: Option<u8>) -> bool {
        if matches!(fate, Some((_, Fate::SkipReady))) {
            self.tell_parameters();
        }
        // Those behind it may still be skipped by an error.
        if self.link.closing && self.link.backend.ledger.owed(Owed::ClosePortal, Fate::Skip) == 0 {
            self.link.closing = false;
            self.link.backend.prepared.end_leaving();
        }
        if !matches!(fate, Some((_, Fate::Skip | Fate::ForwardUnready | Fate::Learn))) {
            let ledger = &self.link.backend.ledger;
            let behind = ledger.readies() + usize::from(ledger.batch_open());
            self.link.heed_status(behind, status != Some(b'I'));
        }
        if !matches!(fate, Some((_, Fate::Skip | Fate::SkipReady | Fate::Learn))) {
            self.link.reading_turned &= status != Some(b'I');
            // The block that it took over is the server's to tell of from now on.
            self.link.begins_with = None;
            let chained = std::mem::take(&mut self.link.chains) && status == Some(b'T');
            if chained {
                self.link.traces_outside = self.link.traces;
            }
            // Its BEGIN was refused: what comes behind it stands alone.
            self.link.flight.opens &= status != Some(b'I');
        }
        if self.link.backend.ledger.is_empty() && !self.link.stopped {
            // No DEALLOCATE ALL is in flight, or about to be.
            self.link.deallocated.clear();
            self.link.dropping = false;
        }
        if is_clients_query(fate) {
            self.memory.let_names_go(self.link.backend.ledger.queries_over());
            if fate == Some((Owed::Query, Fate::Retagged)) {
                self.end_rewritten();
            }
        }
        if matches!(fate, Some((Owed::Sync, _))) {
            self.memory.close_batch();
        }
        if self.link.ddl && status == Some(b'I') {
            // Before anybody is told of it. What was sent behind this may hold some more.
            self.definitions.invalidate();
            self.link.ddl = !self.link.backend.ledger.is_empty();
        }
        if status == Some(b'I') {
            self.memory.settle_told();
        }
        if forward && status == Some(b'I') {
            self.inbox.tally.add(Tallied::Transactions, 1);
        }
        let forward = forward && !self.withholds(forward, status);
        if self.refuses_blocks && forward && status != Some(b'I') {
            self.link.block_refused = true;
            return false;
        }
        forward
    }

    /// Whether the client itself changed what is otherwise told by its session's role.
    fn is_clients_doing(&self, name: &str) -> bool {
        name == "default_transaction_read_only" && self.link.traces.intersects(SessionEffects::SETTING)
    }

    /// Tells the client what became of its settings while that was held back.
    fn tell_parameters(&mut self) {
        let news: Vec<_> = self
            .link
            .backend
            .parameters
            .iter()
            .filter(|parameter| !ROLE_PARAMETERS.contains(&parameter.0.as_str()))
            .filter(|parameter| !self.memory.told.contains(parameter))
            .cloned()
            .collect();
        for (name, value) in news {
            wire::write_parameter_status(self.client.out.end(), &name, &value);
            self.memory.tell(&name, &value);
            self.link.reading_turned |= self.reading.heed(&name, &value);
        }
    }

    fn on_error(&mut self, fields: &ErrorFields<'_>, fate: Option<(Owed, Fate)>, fated: &mut Fated) {
        self.link.failed = true;
        let stale = self.stale(fields, fate);
        self.forget_asked();
        if stale == Some(Stale::Changed)
            && let Some(epoch) = self.link.flight.epoch
        {
            // Somebody has changed the tables without Halyard seeing it.
            self.definitions.epoch().leave(epoch);
        }
        let read_only = fields.sqlstate == SqlState::READ_ONLY_SQL_TRANSACTION;
        if read_only && self.link.as_primary && !self.link.in_block() && !self.memory.settings.read_only() {
            self.link.read_only_primary = true;
        }
        // A flight that opens a block leaves one open, and cannot be dropped without a word.
        let flight = self.link.flight;
        if flight.held && !flight.answered && flight.control == Control::None {
            if read_only && !self.link.as_primary && flight.repeatable && self.memory.pin.is_none() {
                self.refuse(Refusal::ReadOnly);
            } else if stale.is_some_and(|stale| self.may_begin_again(stale)) {
                self.refuse(Refusal::StalePlan);
            }
        }
        // A Query that has failed is over with its ReadyForQuery; those in a batch that has failed were ignored.
        let over = self.link.backend.ledger.queries_over() + u64::from(is_clients_query(fate));
        self.memory.remember_names(over);
        let duplicate = match self.memory.oldest_change() {
            Some(Change::Duplicate { name, .. })
                if fields.sqlstate == SqlState::DUPLICATE_PREPARED_STATEMENT
                    && matches!(fate, Some((Owed::Parse, Fate::Forward))) =>
            {
                Some(String::from_utf8_lossy(name).into_owned())
            }
            _ => None,
        };
        // That of a name which the client has given twice says what was known.
        let twice = fields.sqlstate == SqlState::DUPLICATE_PREPARED_STATEMENT && duplicate.is_none();
        if stale.is_some() || twice || std::mem::take(&mut self.link.closing) {
            // Statements are prepared afresh, and what an error may have left unclosed, or what is there and should not be,
            // is closed first.
            self.link.backend.prepared.doubt();
        }
        if Self::is_of_never(fields) {
            *fated = Fated {
                forward: false,
                instead: Some(outdated_plan()),
            };
        }
        if let Some(name) = duplicate {
            let report = Report::error(
                SqlState::DUPLICATE_PREPARED_STATEMENT,
                format!("prepared statement \"{name}\" already exists"),
            );
            let mut frame = Vec::new();
            report.encode(&mut frame);
            *fated = Fated {
                forward: false,
                instead: Some(frame),
            };
        }
        if fate.is_some_and(|(owed, _)| !matches!(owed, Owed::Query | Owed::FunctionCall)) {
            let replaced = matches!(fate, Some((Owed::Parse, _))) && self.memory.replaces_unnamed();
            if replaced {
                // The server has dropped the old one before it read the new.
                self.memory.drop_unnamed(true);
            }
            let lent = self.memory.undo_batch(Some(&mut self.link.backend));
            self.forget_lent(&lent);
        }
    }

    /// Whether the server refused a prepared statement before it ran anything of it, and why.
    fn stale(&self, fields: &ErrorFields<'_>, fate: Option<(Owed, Fate)>) -> Option<Stale> {
        let uses = fate.is_some_and(|(owed, _)| matches!(owed, Owed::Bind | Owed::Describe));
        if !uses || self.link.backend.prepared.is_empty() || Self::is_of_never(fields) {
            return None;
        }
        match fields.sqlstate {
            // A name that the client has given to nothing, or its unnamed statement, says nothing of those that are there.
            SqlState::INVALID_SQL_STATEMENT_NAME => own_name(fields.message).map(|_| Stale::Gone),
            // Others say 0A000 of many things.
            SqlState::FEATURE_NOT_SUPPORTED if fields.routine == REVALIDATES => Some(Stale::Changed),
            _ => None,
        }
    }

    /// Whether a request that met an outdated statement is sent again: once, if nothing of it has run but reads, and if
    /// its client does not read rows by what it was told of the statement before.
    fn may_begin_again(&self, stale: Stale) -> bool {
        let harmless = self.link.flight.repeatable || !self.link.flight.ran;
        let told_anew = || stale == Stale::Gone || describes_all(self.client.input.held());
        self.memory.repeats_stale() && harmless && told_anew()
    }

    /// Drops the answers of the request in flight, which is to be sent again.
    fn refuse(&mut self, refusal: Refusal) {
        self.link.flight.refused = Some(refusal);
        let backend = &mut *self.link.backend;
        if backend.ledger.skips_until_sync() {
            // The client's Sync comes behind what it sends next.
            backend.out.end().extend_from_slice(&wire::SYNC);
            backend.ledger.owe(Owed::Sync, Fate::Skip);
            self.memory.end_batch();
        }
    }

    /// An ErrorResponse that names a statement as backends know it, with the client's own name for it; `None` if it
    /// names none.
    fn in_clients_words(&self, fields: &ErrorFields<'_>, body: &[u8]) -> Option<Vec<u8>> {
        let name = own_name(fields.message)?;
        let known = self.memory.statements.name_of(name)?;
        let at = body.windows(name.len()).position(|part| part == name)?;
        let mut frame = Vec::new();
        wire::tagged(&mut frame, backend::ERROR_RESPONSE, |out| {
            out.extend_from_slice(&body[..at]);
            out.extend_from_slice(known);
            out.extend_from_slice(&body[at + name.len()..]);
        });
        Some(frame)
    }

    /// Gives the answers that are Halyard's to give and whose turn it is.
    ///
    /// While the request may still be sent elsewhere they wait in `memory.early`: another node would have them
    /// given once more.
    fn give_fakes(&mut self) {
        while let Some(owed) = self.link.backend.ledger.next_fake() {
            let notice = if owed == Owed::Notice {
                self.next_trace()
            } else {
                self.memory.confirm_change();
                Vec::new()
            };
            let may_move = self.link.flight.held && !self.link.flight.answered;
            let out = if may_move || !self.memory.early.is_empty() {
                &mut self.memory.early
            } else {
                self.client.out.end()
            };
            match owed {
                Owed::Notice => out.extend_from_slice(&notice),
                Owed::Parse => wire::empty_message(out, backend::PARSE_COMPLETE),
                _ => wire::empty_message(out, backend::CLOSE_COMPLETE),
            }
        }
        if !self.memory.early.is_empty()
            && self.link.backend.ledger.is_empty()
            && self.link.flight.refused.is_none()
            && !self.link.stopped
        {
            // A batch cut by a Flush: nothing follows that they could be told with.
            self.answered();
        }
    }
}

/// Whether a message comes before the first row, or the end, of an answer that is sure to follow.
fn is_preliminary(kind: u8) -> bool {
    matches!(
        kind,
        backend::PARSE_COMPLETE
            | backend::BIND_COMPLETE
            | backend::PARAMETER_DESCRIPTION
            | backend::ROW_DESCRIPTION
            | backend::NO_DATA
    )
}

/// Whether a message is the warning with which a server process leaves at once, in the middle of whatever it did
/// (`quickdie` in PostgreSQL's `postgres.c`). The client is told with what follows; if nothing does, its request may still
/// run elsewhere.
fn is_last_word(header: Header, frame: &[u8]) -> bool {
    if header.kind != backend::NOTICE_RESPONSE {
        return false;
    }
    let sqlstate = error_fields(&frame[HEADER_SIZE..]).sqlstate;
    matches!(sqlstate, SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN)
}

/// Whether an answer belongs to a Query of the client's.
fn is_clients_query(fate: Option<(Owed, Fate)>) -> bool {
    fate.is_some_and(|(owed, fate)| ledger::is_clients_query(owed, fate))
}

/// Whether an answer belongs to a Query of anybody's.
fn is_of_query(fate: Option<(Owed, Fate)>) -> bool {
    matches!(fate, Some((Owed::Query, _)))
}

/// Whether a message has to be whole before anything is decided.
fn must_be_read(header: Header) -> bool {
    matches!(
        header.kind,
        backend::ERROR_RESPONSE | backend::READY_FOR_QUERY | backend::PARAMETER_STATUS
    ) && header.total() <= READ_MAX
}

/// What a server says of a prepared statement whose columns have changed. Drivers go by its routine as well.
fn outdated_plan() -> Vec<u8> {
    let mut frame = Vec::new();
    wire::tagged(&mut frame, backend::ERROR_RESPONSE, |out| {
        for (field, text) in [
            (b'S', &b"ERROR"[..]),
            (b'V', b"ERROR"),
            (b'C', &SqlState::FEATURE_NOT_SUPPORTED.0),
            (b'M', b"cached plan must not change result type"),
            (b'F', b"plancache.c"),
            (b'R', REVALIDATES),
        ] {
            out.push(field);
            out.extend_from_slice(text);
            out.push(0);
        }
        out.push(0);
    });
    frame
}

fn said(fields: &ErrorFields<'_>) -> Report {
    Report::fatal(
        fields.sqlstate,
        String::from_utf8_lossy(fields.message).into_owned(),
    )
}

/// How Halyard's own names of statements begin.
const OWN: &[u8] = b"halyard_";

/// The first name of Halyard's own in an error's message. Each language has its own quotes, and of the unnamed statement none.
fn own_name(message: &[u8]) -> Option<&[u8]> {
    let at = message.windows(OWN.len()).position(|part| part == OWN)?;
    let name = &message[at..];
    let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let end = name.iter().position(|byte| !goes_on(byte)).unwrap_or(name.len());
    Some(&name[..end])
}

#[cfg(test)]
mod tests {
    use super::own_name;

    #[test]
    fn names_of_halyards_own_are_found_in_every_language() {
        for (message, name) in [
            (
                "prepared statement \"halyard_1f\" does not exist",
                Some("halyard_1f"),
            ),
            (
                "l'instruction préparée « halyard_1f » n'existe pas",
                Some("halyard_1f"),
            ),
            (
                "vorbereitete Anweisung „halyard_1f“ existiert nicht",
                Some("halyard_1f"),
            ),
            (
                "подготовленный оператор \"halyard_outdated\" не существует",
                Some("halyard_outdated"),
            ),
            ("の準備された文halyard_1f", Some("halyard_1f")),
            ("unnamed prepared statement does not exist", None),
            ("l'instruction préparée non nommée n'existe pas", None),
            ("prepared statement « s » does not exist", None),
            ("", None),
        ] {
            assert_eq!(own_name(message.as_bytes()), name.map(str::as_bytes), "{message}");
        }
    }
}
