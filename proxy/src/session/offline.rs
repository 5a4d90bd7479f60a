//! A session that has something to hear before any node is asked again: an error, or that its transaction block
//! has failed with the node that held it.
//!
//! It answers as a server in that state would: errors skip to the next Sync, a failed block refuses everything
//! but its end (25P02), and an empty statement is no error.

use std::sync::Arc;

use super::demand::{Demand, OWN_NAMES};
use super::statements::{Epoch, Statement, StatementRegistry};
use super::turn::Session;
use crate::catalog::Catalog;
use crate::classify::{Rule, Settings as Reading, TransactionControl, classify, split};
use crate::error::{Report, SqlState};
use crate::relay::{ClientLeg, Ending, Memory};
use crate::wire::{
    self, HEADER_SIZE, Header, backend, bind_names, frontend, parse_parts, tagged, target_name,
};
use crate::worker::Local;

/// What the session still has to hear, and in what state it is.
#[derive(Debug)]
pub(super) struct Offline {
    /// The error that the next statement gets.
    report: Option<Report>,
    /// As [`Offline::report`], for the first statement behind the block that has failed.
    later: Option<Report>,
    /// Whether the report is to be told even to who asks for nothing but the end of its block.
    insists: bool,
    /// Whether the session is in a failed transaction block.
    failed_block: bool,
    /// Whether everything up to the next Sync is ignored.
    skipping: bool,
    /// Whether the block was ended in the batch that is still open, so that its Sync needs no node.
    ended: bool,
    /// What the portal bound last would do.
    portal: Effect,
    /// Longest frame that is waited for as a whole; bytes.
    size_max: usize,
    /// The transaction status where no block has failed: that of the backend which the session has all the same.
    standing: u8,
}

/// What a statement does to a failed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// It ends it.
    Ends,
    /// Nothing: it is empty.
    Empty,
    /// It is refused.
    Refused,
}

/// How far the client's buffer was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// The session is as free as any.
    Free,
    /// More has to come from the client.
    Wait,
    /// The client says goodbye, or broke the protocol in a way that the session reports when it sees it itself.
    Over,
    /// The session is as free as any, and what its client says next ends the failed block and does more than that: it goes to
    /// a server in a block that has failed there too.
    EndsBlock,
}

/// What is needed to read statements.
pub(super) struct Library<'a> {
    /// All statements.
    pub(super) registry: &'a StatementRegistry,
    /// What functions do.
    pub(super) catalog: &'a Catalog,
    /// The database's epoch.
    pub(super) epoch: Epoch,
    /// How texts are read.
    pub(super) reading: &'a Reading,
    /// Statements that one client may name.
    pub(super) names_max: usize,
}

impl Offline {
    /// The next statement gets `report`; after it the session is free.
    pub(super) fn fail_next(report: Report, size_max: usize) -> Self {
        Self {
            report: Some(report),
            later: None,
            insists: false,
            failed_block: false,
            skipping: false,
            ended: false,
            portal: Effect::Refused,
            size_max,
            standing: b'I',
        }
    }

    /// As [`Offline::fail_next`], for a session with a backend whose transaction status is this.
    pub(super) fn fail_next_beside(report: Report, status: u8, size_max: usize) -> Self {
        Self {
            standing: status,
            ..Self::fail_next(report, size_max)
        }
    }

    /// As [`Offline::fail_next`], and from then on the session is in a failed block. Who asks for nothing but its end does
    /// not hear of it, unless it `insists`: then the statement behind the block gets it.
    pub(super) fn fail_block(report: Report, insists: bool, size_max: usize) -> Self {
        Self {
            insists,
            failed_block: true,
            ..Self::fail_next(report, size_max)
        }
    }

    /// The error was told already; its batch is not over yet, or its block has failed.
    pub(super) fn told(failed_block: bool, skipping: bool, size_max: usize) -> Self {
        Self {
            report: None,
            later: None,
            insists: false,
            failed_block,
            skipping,
            ended: false,
            portal: Effect::Refused,
            size_max,
            standing: b'I',
        }
    }

    /// The transaction status that the client is told.
    pub(super) fn status(&self) -> u8 {
        if self.failed_block { b'E' } else { self.standing }
    }

    /// Whether the session is in no block and in no batch: what comes for it between two messages it may be told.
    pub(super) fn is_at_rest(&self) -> bool {
        self.status() == b'I' && !self.skipping && !self.ended
    }

    fn is_free(&self) -> bool {
        self.report.is_none() && !self.failed_block && !self.skipping && !self.ended
    }

    /// Answers the whole frames in the client's buffer, as far as that is to be done here.
    pub(super) fn answer(
        &mut self,
        client: &mut ClientLeg,
        memory: &mut Memory,
        library: &Library<'_>,
        local: &mut Local,
    ) -> Answered {
        loop {
            client.input.release_held();
            if client.ignoring > 0 {
                let count = client.input.unparsed().len().min(client.ignoring);
                client.input.parse(count);
                client.ignoring -= count;
                if client.ignoring > 0 {
                    return Answered::Wait;
                }
                continue;
            }
            if self.is_free() {
                return Answered::Free;
            }
            let bytes = client.input.unparsed();
            let header = match Header::parse_frontend(bytes) {
                Ok(Some(header)) => header,
                Ok(None) => return Answered::Wait,
                Err(_) => return Answered::Over,
            };
            if self.ended && !matches!(header.kind, frontend::SYNC | frontend::FLUSH | frontend::CLOSE) {
                // What else the batch has runs outside of the block.
                self.ended = false;
                continue;
            }
            let total = header.total();
            if header.kind == frontend::TERMINATE {
                return Answered::Over;
            }
            if bytes.len() < total && total <= self.size_max && self.must_be_read(header.kind) {
                client.input.reserve(total, &mut local.buffers);
                return Answered::Wait;
            }
            let end = bytes.len().min(total);
            let body = &bytes[HEADER_SIZE.min(end)..end];
            let whole = end == total;
            if whole && self.is_for_server(header.kind, body, memory, library) {
                return Answered::EndsBlock;
            }
            self.answer_frame(
                header.kind,
                whole.then_some(body),
                client.out.end(),
                memory,
                library,
                local,
            );
            client.input.parse(end);
            client.ignoring = total - end;
        }
    }

    /// Whether a message ends the failed block and does more than that, so that a server has to run it.
    fn is_for_server(&self, kind: u8, body: &[u8], memory: &Memory, library: &Library<'_>) -> bool {
        if !self.failed_block || self.skipping {
            return false;
        }
        let Some(text) = text_of(kind, body, memory) else {
            return false;
        };
        // Who wants to commit is told first that there is nothing to be committed.
        let told = self.report.is_none();
        match first_of(text, library) {
            TransactionControl::Rollback(chains) if told || !self.insists => {
                chains || has_more(text, library)
            }
            TransactionControl::Commit(chains) if told => chains || has_more(text, library),
            _ => false,
        }
    }

    fn must_be_read(&self, kind: u8) -> bool {
        (self.failed_block || self.ended)
            && matches!(
                kind,
                frontend::QUERY | frontend::PARSE | frontend::BIND | frontend::CLOSE | frontend::DESCRIBE
            )
    }

    fn answer_frame(
        &mut self,
        kind: u8,
        body: Option<&[u8]>,
        out: &mut Vec<u8>,
        memory: &mut Memory,
        library: &Library<'_>,
        local: &mut Local,
    ) {
        if kind == frontend::SYNC {
            self.skipping = false;
            self.ended = false;
            wire::ready_for_query(out, self.status());
            return;
        }
        if self.skipping
            || matches!(
                kind,
                frontend::FLUSH | frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL
            )
        {
            return;
        }
        if self.failed_block && self.report.is_some() && rolls_back(kind, body, memory, library) {
            // A ROLLBACK gets what it asks for; of the transaction there is nothing to complain.
            self.later = self.report.take().filter(|_| self.insists);
        }
        if let Some(report) = self.report.take() {
            report.encode(out);
            self.after_error(kind, out);
            return;
        }
        match (kind, body) {
            (frontend::QUERY, body) => {
                let text = body.map(|body| body.strip_suffix(&[0]).unwrap_or(body));
                match text.map_or(Effect::Refused, |text| effect(text, library)) {
                    Effect::Ends => self.end_block(out),
                    Effect::Empty => wire::empty_message(out, backend::EMPTY_QUERY_RESPONSE),
                    Effect::Refused => refuse(out),
                }
                wire::ready_for_query(out, self.status());
            }
            (frontend::PARSE, Some(body)) => self.parse(body, out, memory, library, local),
            (frontend::BIND, Some(body)) => self.bind(body, out, memory, library),
            (frontend::DESCRIBE, Some(body)) => self.describe(body, out, memory, library),
            (frontend::CLOSE, Some(body)) => {
                if let Some((b'S', name)) = target_name(body) {
                    drop(memory.statements.close(&body[name]));
                }
                wire::empty_message(out, backend::CLOSE_COMPLETE);
            }
            (frontend::EXECUTE, _) => match self.portal {
                Effect::Ends => {
                    self.end_block(out);
                    self.ended = true;
                }
                Effect::Empty => wire::empty_message(out, backend::EMPTY_QUERY_RESPONSE),
                Effect::Refused => self.refuse_in_batch(kind, out),
            },
            _ => self.refuse_in_batch(kind, out),
        }
    }

    /// Behind an error: a message of the simple protocol is answered in full, a batch is skipped.
    fn after_error(&mut self, kind: u8, out: &mut Vec<u8>) {
        if matches!(kind, frontend::QUERY | frontend::FUNCTION_CALL) {
            wire::ready_for_query(out, self.status());
        } else {
            self.skipping = true;
        }
    }

    fn end_block(&mut self, out: &mut Vec<u8>) {
        self.failed_block = false;
        // COMMIT of a failed block is answered as the ROLLBACK that it is.
        tagged(out, backend::COMMAND_COMPLETE, |out| {
            out.extend_from_slice(b"ROLLBACK\0");
        });
        self.skipping = false;
        self.report = self.later.take();
    }

    fn parse(
        &mut self,
        body: &[u8],
        out: &mut Vec<u8>,
        memory: &mut Memory,
        library: &Library<'_>,
        local: &mut Local,
    ) {
        let statement = parse_parts(body).map(|parts| {
            let statement = local.statements.statement(
                library.registry,
                memory.statements.meaning(library.epoch),
                &body[parts.text],
                &body[parts.types],
            );
            (parts.name, statement)
        });
        match statement {
            Some((name, statement))
                if effect(statement.text(), library) != Effect::Refused
                    && memory.statements.len() < library.names_max
                    && !body[name.clone()].starts_with(OWN_NAMES) =>
            {
                if name.is_empty() {
                    memory.statements.unnamed = Some(statement);
                } else {
                    drop(memory.statements.name(&body[name], statement));
                }
                wire::empty_message(out, backend::PARSE_COMPLETE);
            }
            _ => self.refuse_in_batch(frontend::PARSE, out),
        }
    }

    fn bind(&mut self, body: &[u8], out: &mut Vec<u8>, memory: &Memory, library: &Library<'_>) {
        let Some(names) = bind_names(body) else {
            return self.refuse_in_batch(frontend::BIND, out);
        };
        let name = &body[names.statement];
        let Some(statement) = named(memory, name) else {
            return self.fail_in_batch(&no_statement(name), frontend::BIND, out);
        };
        self.portal = effect(statement.text(), library);
        if self.portal == Effect::Refused {
            self.refuse_in_batch(frontend::BIND, out);
        } else {
            wire::empty_message(out, backend::BIND_COMPLETE);
        }
    }

    /// What would have rows cannot be described: that takes a transaction. Of what a server would describe all the same, this
    /// refuses what returns nothing and ends no block.
    fn describe(&mut self, body: &[u8], out: &mut Vec<u8>, memory: &Memory, library: &Library<'_>) {
        let kind = frontend::DESCRIBE;
        let effect = match target_name(body) {
            Some((b'S', name)) => {
                let Some(statement) = named(memory, &body[name.clone()]) else {
                    return self.fail_in_batch(&no_statement(&body[name]), kind, out);
                };
                effect(statement.text(), library)
            }
            _ => self.portal,
        };
        if effect == Effect::Refused {
            return self.refuse_in_batch(kind, out);
        }
        if matches!(target_name(body), Some((b'S', _))) {
            tagged(out, backend::PARAMETER_DESCRIPTION, |out| {
                out.extend_from_slice(&[0, 0]);
            });
        }
        wire::empty_message(out, backend::NO_DATA);
    }

    fn refuse_in_batch(&mut self, kind: u8, out: &mut Vec<u8>) {
        refuse(out);
        self.after_error(kind, out);
    }

    fn fail_in_batch(&mut self, report: &Report, kind: u8, out: &mut Vec<u8>) {
        report.encode(out);
        self.after_error(kind, out);
    }
}

impl Session {
    /// Answers the end of a transaction block for a client that is in none, which needs no node: as a server does, with a
    /// warning. False if the request in hand is anything else.
    pub(super) fn end_no_block(&mut self) -> bool {
        let ends = |demand: &Demand| demand.class.rule == Rule::EndsTransaction && demand.rest == 0;
        let Some(demand) = self.demand.filter(ends) else {
            return false;
        };
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let text = match Header::parse(bytes) {
            Ok(Some(header)) if header.kind == frontend::QUERY && header.total() == demand.bytes => {
                let body = &bytes[HEADER_SIZE..];
                body.strip_suffix(&[0]).unwrap_or(body)
            }
            _ => return false,
        };
        let catalog = self.group.catalog.load();
        let class = classify(text, &self.reading, catalog.functions());
        let ending = match (class.statements, class.transaction) {
            (1, TransactionControl::Commit(false)) => Ending::Commit,
            (1, TransactionControl::Rollback(false)) => Ending::Rollback,
            _ => return false,
        };
        let out = self.client.out.end();
        if self.memory.settings.value("client_min_messages") != Some("error") {
            let message = "there is no transaction in progress";
            Report::warning(SqlState::NO_ACTIVE_SQL_TRANSACTION, message).encode(out);
        }
        tagged(out, backend::COMMAND_COMPLETE, |out| {
            out.extend_from_slice(ending.tag().as_bytes());
            out.push(0);
        });
        wire::ready_for_query(out, b'I');
        // A Query ends the unnamed statement (manual, section 55.2.3).
        self.memory.statements.unnamed = None;
        self.client.input.parse(demand.bytes);
        self.client.input.release_held();
        self.demand = None;
        true
    }
}

/// The text that a message has run, prepares or binds.
fn text_of<'a>(kind: u8, body: &'a [u8], memory: &'a Memory) -> Option<&'a [u8]> {
    match kind {
        frontend::QUERY => Some(body.strip_suffix(&[0]).unwrap_or(body)),
        frontend::PARSE => parse_parts(body).map(|parts| &body[parts.text]),
        frontend::BIND => {
            let names = bind_names(body)?;
            named(memory, &body[names.statement]).map(|statement| statement.text())
        }
        _ => None,
    }
}

/// Whether a message is, or prepares or binds, a ROLLBACK.
fn rolls_back(kind: u8, body: Option<&[u8]>, memory: &Memory, library: &Library<'_>) -> bool {
    let text = body.and_then(|body| text_of(kind, body, memory));
    text.is_some_and(|text| {
        let class = classify(text, library.reading, library.catalog.functions());
        class.statements == 1 && class.transaction == TransactionControl::Rollback(false)
    })
}

/// What the first statement of a text does to its transaction.
fn first_of(text: &[u8], library: &Library<'_>) -> TransactionControl {
    let functions = library.catalog.functions();
    let class = classify(text, library.reading, functions);
    if class.statements <= 1 {
        return class.transaction;
    }
    let statements = split(text, library.reading.standard_conforming_strings);
    let first = statements.into_iter().next().unwrap_or_default();
    classify(&text[first], library.reading, functions).transaction
}

/// Whether a text has more than one statement.
fn has_more(text: &[u8], library: &Library<'_>) -> bool {
    classify(text, library.reading, library.catalog.functions()).statements > 1
}

fn effect(text: &[u8], library: &Library<'_>) -> Effect {
    let class = classify(text, library.reading, library.catalog.functions());
    match (class.statements, class.transaction) {
        (0, _) => Effect::Empty,
        (1, TransactionControl::Commit(false) | TransactionControl::Rollback(false)) => Effect::Ends,
        (1, TransactionControl::PrepareTransaction) => Effect::Ends,
        _ => Effect::Refused,
    }
}

fn named<'a>(memory: &'a Memory, name: &[u8]) -> Option<&'a Arc<Statement>> {
    match name {
        b"" => memory.statements.unnamed.as_ref(),
        name => memory.statements.named(name),
    }
}

/// As `FetchPreparedStatement` and `exec_bind_message` say it, which look for a statement before they look at the block.
fn no_statement(name: &[u8]) -> Report {
    let message = match name {
        b"" => "unnamed prepared statement does not exist".to_owned(),
        name => format!(
            "prepared statement \"{}\" does not exist",
            String::from_utf8_lossy(name)
        ),
    };
    Report::error(SqlState::INVALID_SQL_STATEMENT_NAME, message)
}

fn refuse(out: &mut Vec<u8>) {
    Report::error(
        SqlState::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
    .encode(out);
}
