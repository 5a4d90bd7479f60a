//! What a client's session remembers from one backend to the next, and what requests in flight may still have undone.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::classify::SessionEffects;
use crate::notify::Listening;
use crate::pool::{Checkout, Drawer};
use crate::session::{ClientStatements, Forgotten, PinReason, Settings, Statement};

/// What a client's session remembers from one backend to the next.
#[derive(Debug)]
pub struct Memory {
    /// Its prepared statements.
    pub statements: ClientStatements,
    /// Its settings from startup, to which a RESET goes back.
    pub startup: Arc<Settings>,
    /// Its settings.
    pub settings: Arc<Settings>,
    /// What it was told by ParameterStatus, from startup on.
    pub told: Arc<Vec<(String, String)>>,
    /// What it was told before that of changes of which nobody knows yet whether they last.
    told_before: Option<Arc<Vec<(String, String)>>>,
    /// What it did that no server can be asked for, and that keeps its backend.
    pub lasting: SessionEffects,
    /// Whether its unnamed statement was too long to be read, so that it is on its backend alone.
    pub unread_unnamed: bool,
    /// Whether the next request was looked at for settings of Halyard's own.
    pub own_settings_seen_to: bool,
    /// Where it has drawn from sequences.
    pub drawer: Drawer,
    /// Why it keeps its backend, if it does.
    pub pin: Option<PinReason>,
    /// Whether it keeps its backend without a reason too.
    session_pooling: bool,
    /// What it listens to by way of its database's hub, if it does.
    pub listening: Option<Box<Listening>>,
    /// Statements met in the request looked at last, in order.
    pub parsed: Vec<Arc<Statement>>,
    /// How often the request in hand was sent again.
    pub repeats: u8,
    /// Answers of Halyard's own to a request that may still be sent elsewhere.
    pub early: Vec<u8>,
    /// Whether the request sent next was sent before, so that the names it gives may be there already.
    pub repeating: bool,
    /// What the requests in flight did to `statements`, oldest first, to be undone where the server refuses: each with the
    /// number of its batch.
    pub(super) changes: VecDeque<(u64, Change)>,
    /// Names that a DISCARD ALL of the extended protocol takes away when it has run, oldest first: each with the number of
    /// its batch.
    discards: VecDeque<(u64, Forgotten)>,
    /// Names that Queries in flight take away, oldest first: each with the number of its Query.
    forgotten: VecDeque<(u64, Forgotten)>,
    /// Syncs sent, and Syncs answered, on the present backend.
    batches_sent: u64,
    batches_answered: u64,
}

impl Memory {
    /// That of a new session, by its number; `session_pooling` tells whether it keeps its backend for as long as it lasts.
    pub fn new(settings: Arc<Settings>, group: NonZeroU32, session: u64, session_pooling: bool) -> Self {
        Self {
            statements: ClientStatements::new(group),
            startup: Arc::clone(&settings),
            settings,
            told: Arc::default(),
            told_before: None,
            lasting: SessionEffects::NONE,
            unread_unnamed: false,
            own_settings_seen_to: false,
            drawer: Drawer::new(session),
            pin: session_pooling.then_some(PinReason::SessionPooling),
            session_pooling,
            listening: None,
            parsed: Vec::new(),
            repeats: 0,
            early: Vec::new(),
            repeating: false,
            changes: VecDeque::new(),
            discards: VecDeque::new(),
            forgotten: VecDeque::new(),
            batches_sent: 0,
            batches_answered: 0,
        }
    }

    /// What it is known to keep on its backend. In session pooling a session keeps its backend for no reason of its own.
    #[inline]
    pub fn kept(&self) -> Option<PinReason> {
        self.pin.filter(|pin| *pin != PinReason::SessionPooling)
    }

    /// Why it keeps its backend with nothing of its own on it.
    pub fn pin_of_pool(&self) -> Option<PinReason> {
        self.session_pooling.then_some(PinReason::SessionPooling)
    }

    /// Its backend is gone, or holds nothing of it any more.
    pub fn keep_nothing(&mut self) {
        self.pin = self.pin_of_pool();
        self.lasting = SessionEffects::NONE;
        self.unread_unnamed = false;
    }

    /// Whether a request whose prepared statement turned out to be outdated is sent again: once.
    pub(super) fn repeats_stale(&self) -> bool {
        self.repeats == 0
    }

    /// Takes note of what the client is told of a setting.
    pub fn tell(&mut self, name: &str, value: &str) {
        if self.told.iter().any(|known| known.0 == name && known.1 == value) {
            return;
        }
        self.told_before.get_or_insert_with(|| Arc::clone(&self.told));
        let told = Arc::make_mut(&mut self.told);
        match told.iter_mut().find(|(known, _)| known == name) {
            Some(known) => value.clone_into(&mut known.1),
            None => told.push((name.to_owned(), value.to_owned())),
        }
        if name == "client_encoding"
            && let Some(listening) = &mut self.listening
        {
            listening.turned = true;
        }
    }

    /// A transaction is over. What it has changed and changed back needs not be told again.
    pub(super) fn settle_told(&mut self) {
        self.told_before.take_if(|before| *before == self.told);
    }

    /// What the client was told of its settings lasts.
    #[inline]
    pub fn keep_told(&mut self) {
        self.told_before = None;
    }

    /// What the client was told of its settings has gone with its backend: what it has to be told instead.
    pub fn untold(&mut self) -> Vec<(String, String)> {
        let before = self.told_before.take().unwrap_or_default();
        let differs = |pair: &&(String, String)| !self.told.contains(pair);
        before.iter().filter(differs).cloned().collect()
    }

    /// Undoes all that was in flight, newest first: the backend is gone.
    pub fn undo_all(&mut self) {
        self.early.clear();
        while let Some((_, change)) = self.changes.pop_back() {
            change.undo(&mut self.statements, None);
        }
        while let Some((_, names)) = self.discards.pop_back() {
            self.statements.remember(names);
        }
        self.remember_names(u64::MAX);
        (self.batches_sent, self.batches_answered) = (0, 0);
    }

    /// Keeps all that was in flight: its outcome was found out otherwise.
    pub fn keep_all(&mut self) {
        while !self.changes.is_empty() {
            self.confirm_change();
        }
        self.discards.clear();
        self.forgotten.clear();
        (self.batches_sent, self.batches_answered) = (0, 0);
    }

    /// Takes note of what a request does.
    pub(super) fn note(&mut self, change: Change) {
        self.changes.push_back((self.batches_sent, change));
    }

    /// The server accepted the oldest change.
    pub(super) fn confirm_change(&mut self) {
        match self.changes.pop_front().map(|(_, change)| change) {
            // The statement that had the name when this was sent turned out not to exist.
            Some(Change::Duplicate { name, statement }) => drop(self.statements.name(&name, statement)),
            Some(Change::Named {
                name,
                prepared: Some(_),
                ..
            }) => {
                if let Some(statement) = self.statements.named(&name) {
                    statement.taken();
                }
            }
            _ => {}
        }
    }

    /// The oldest change that the server has not settled.
    pub(super) fn oldest_change(&self) -> Option<&Change> {
        self.changes.front().map(|(_, change)| change)
    }

    /// A Sync was sent.
    #[inline]
    pub(super) fn end_batch(&mut self) {
        self.batches_sent += 1;
    }

    /// The Sync of the oldest batch was answered.
    #[inline]
    pub(super) fn close_batch(&mut self) {
        self.batches_answered += 1;
        debug_assert!(
            self.changes
                .front()
                .is_none_or(|(batch, _)| *batch >= self.batches_answered),
            "what a batch did is settled when it is over"
        );
    }

    /// A batch of this number runs DISCARD ALL, which takes all names away.
    pub(super) fn discard_names(&mut self, batch: u64) {
        let names = self.statements.forget_named();
        self.discards.push_back((batch, names));
    }

    /// A Query of this number takes names away.
    pub(super) fn forget_names(&mut self, query: u64, names: Forgotten) {
        self.forgotten.push_back((query, names));
    }

    /// The Queries up to this number have run: what they took away is gone.
    #[inline]
    pub(super) fn let_names_go(&mut self, query: u64) {
        while self.forgotten.pop_front_if(|(of, _)| *of <= query).is_some() {}
    }

    /// The Queries up to this number were refused, or ignored: what they were to take away is there still.
    pub(super) fn remember_names(&mut self, query: u64) {
        while let Some((_, names)) = self.forgotten.pop_front_if(|(of, _)| *of <= query) {
            self.statements.remember(names);
        }
    }

    /// The number of the batch that is open, or begins next.
    pub(super) fn batch(&self) -> u64 {
        self.batches_sent
    }

    /// A DISCARD ALL of the oldest batch has run.
    pub(super) fn names_are_gone(&mut self) {
        self.discards
            .pop_front_if(|(batch, _)| *batch <= self.batches_answered);
    }

    /// The oldest batch is over or has failed: what its DISCARD ALL has not taken away is there still.
    #[inline]
    pub(super) fn keep_names(&mut self) {
        while let Some((_, names)) = self
            .discards
            .pop_front_if(|(batch, _)| *batch <= self.batches_answered)
        {
            self.statements.remember(names);
        }
    }

    /// The server ignored so many of the Syncs that were sent, as it was copying: the oldest.
    pub(super) fn join_batches(&mut self, count: usize) {
        let count = count as u64;
        for (batch, _) in &mut self.changes {
            *batch = batch.saturating_sub(count).max(self.batches_answered);
        }
        for (batch, _) in &mut self.discards {
            *batch = batch.saturating_sub(count).max(self.batches_answered);
        }
        self.batches_sent -= count;
    }

    /// Whether the oldest change is a Parse of the unnamed statement.
    pub(super) fn replaces_unnamed(&self) -> bool {
        matches!(
            self.changes.front(),
            Some((_, Change::Unnamed { .. } | Change::Deallocates { .. }))
        )
    }

    /// The server refused the rest of the batch: its changes are undone, newest first.
    pub(super) fn undo_batch(&mut self, mut backend: Option<&mut Checkout>) {
        let end = self
            .changes
            .iter()
            .position(|(batch, _)| *batch > self.batches_answered);
        let later = self.changes.split_off(end.unwrap_or(self.changes.len()));
        let replaced = later
            .iter()
            .any(|(_, change)| matches!(change, Change::Unnamed { .. } | Change::Deallocates { .. }));
        while let Some((_, change)) = self.changes.pop_back() {
            if replaced && matches!(change, Change::Unnamed { .. }) {
                continue;
            }
            change.undo(&mut self.statements, backend.as_deref_mut());
        }
        self.changes = later;
    }
}

/// One thing that a request in flight did, before the server said whether it may.
#[derive(Debug)]
pub(super) enum Change {
    /// A Parse gave a name.
    Named {
        name: Box<[u8]>,
        before: Option<Arc<Statement>>,
        prepared: Option<u64>,
    },
    /// A Parse of a name that the client has already; the server will refuse it.
    Duplicate {
        name: Box<[u8]>,
        statement: Arc<Statement>,
    },
    /// A Parse replaced the unnamed statement.
    Unnamed { before: Option<Arc<Statement>> },
    /// A Parse of DEALLOCATE, which replaced the unnamed statement and takes names away when it runs.
    Deallocates {
        before: Option<Arc<Statement>>,
        names: Forgotten,
    },
    /// Halyard prepared a statement on its own.
    Prepared(u64),
    /// Halyard lent a name to SQL: the statement that it stands for, if `whole`, or one that takes its place.
    Lends { name: Box<[u8]>, whole: bool },
    /// Halyard put the client's unnamed statement on a backend.
    UnnamedPlaced,
    /// A Close took a name away.
    Closed {
        name: Box<[u8]>,
        before: Option<Arc<Statement>>,
    },
}

impl Change {
    pub(super) fn undo(self, statements: &mut ClientStatements, backend: Option<&mut Checkout>) {
        match self {
            Change::Named {
                name,
                before,
                prepared,
            } => {
                match before {
                    Some(before) => drop(statements.name(&name, before)),
                    None => drop(statements.close(&name)),
                }
                if let (Some(id), Some(backend)) = (prepared, backend) {
                    backend.prepared.remove(id);
                }
            }
            Change::Unnamed { before } => {
                statements.unnamed = before;
                if let Some(backend) = backend {
                    backend.unnamed = None;
                }
            }
            Change::Deallocates { before, names } => {
                statements.unnamed = before;
                statements.remember(names);
                if let Some(backend) = backend {
                    backend.unnamed = None;
                }
            }
            Change::Prepared(id) => {
                if let Some(backend) = backend {
                    backend.prepared.remove(id);
                }
            }
            Change::UnnamedPlaced => {
                if let Some(backend) = backend {
                    backend.unnamed = None;
                }
            }
            Change::Closed { name, before } => {
                if let Some(before) = before {
                    drop(statements.name(&name, before));
                }
            }
            Change::Duplicate { .. } | Change::Lends { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Epoch, StatementRegistry};

    fn memory() -> Memory {
        Memory::new(Arc::new(Settings::new(Vec::new())), NonZeroU32::MIN, 1, false)
    }

    fn batches(memory: &Memory) -> Vec<u64> {
        memory.changes.iter().map(|(batch, _)| *batch).collect()
    }

    /// A batch that changes nothing failed in front of one that prepares: what the second did was taken back.
    #[test]
    fn a_batch_that_fails_takes_nothing_of_the_next_with_it() {
        let mut memory = memory();
        memory.end_batch();
        memory.note(Change::Prepared(1));
        memory.end_batch();
        memory.undo_batch(None);
        assert_eq!(memory.changes.len(), 1, "it is the second batch's");
        memory.close_batch();
        memory.confirm_change();
        memory.close_batch();
        assert!(memory.changes.is_empty());
    }

    #[test]
    fn what_a_batch_did_is_taken_back_newest_first_and_alone() {
        let mut memory = memory();
        for id in [1, 2] {
            memory.note(Change::Prepared(id));
        }
        memory.end_batch();
        memory.note(Change::Prepared(3));
        memory.undo_batch(None);
        assert_eq!(batches(&memory), [1]);
    }

    #[test]
    fn syncs_that_a_copy_swallows_end_no_batch() {
        let mut memory = memory();
        // Three Syncs were sent behind the COPY, two before its end; each batch has done something.
        for id in [1, 2, 3] {
            memory.end_batch();
            memory.note(Change::Prepared(id));
        }
        memory.join_batches(2);
        assert_eq!(batches(&memory), [0, 0, 1]);
        memory.undo_batch(None);
        memory.close_batch();
        assert_eq!(batches(&memory), [1]);
    }

    #[test]
    fn each_query_gives_back_what_it_took_itself() {
        let registry = StatementRegistry::default();
        let mut memory = memory();
        let names = |memory: &Memory| {
            let mut names: Vec<_> = memory.statements.names().map(<[u8]>::to_vec).collect();
            names.sort();
            names.concat()
        };
        for (query, name) in (1..).zip([b"a", b"b", b"c", b"d"]) {
            let meaning = memory.statements.meaning(Epoch::begin());
            let statement = registry.statement(meaning, name, b"\0\0");
            memory.forget_names(query, Forgotten::one(name, statement));
        }
        memory.remember_names(1);
        assert_eq!(names(&memory), b"a");
        memory.let_names_go(2);
        memory.remember_names(3);
        assert_eq!(names(&memory), b"ac");
        memory.undo_all();
        assert_eq!(
            names(&memory),
            b"acd",
            "the backend is gone, and nobody knows of the last"
        );
    }

    #[test]
    fn the_next_backend_begins_anew() {
        let mut memory = memory();
        memory.end_batch();
        memory.note(Change::Prepared(1));
        memory.undo_all();
        memory.note(Change::Prepared(2));
        assert_eq!(batches(&memory), [0]);
    }
}
