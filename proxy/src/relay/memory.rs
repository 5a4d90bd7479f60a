//! What a client's session remembers from one backend to the next, and what requests in flight may still have undone.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::classify::SessionEffects;
use crate::notify::Listening;
use crate::pool::{Checkout, Drawer};
use crate::session::{ClientStatements, Forgotten, PinReason, Settings, Statement};

/// Most changes of unsettled batches that are looked through for a name; behind more, a request that names a statement waits
/// for their answers.
const LOOKED_THROUGH_MAX: usize = 256;

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
    /// How many backends were given up for the request in hand before it was sent.
    pub replacements: u16,
    /// Answers of Halyard's own to a request that may still be sent elsewhere.
    pub early: Vec<u8>,
    /// Whether the request sent next was sent before, so that the names it gives may be there already.
    pub repeating: bool,
    /// What the requests in flight did to `statements`, oldest first, to be undone where the server refuses: each with the
    /// number of its batch.
    pub(super) changes: VecDeque<(u64, Change)>,
    /// Names that Queries in flight take away, oldest first: each with the number of its Query.
    forgotten: VecDeque<(u64, Forgotten)>,
    /// How often names have got back what they stood for, and how often they had when the next request was looked at: its class
    /// is that of what they stood for then.
    undone: u64,
    looked: u64,
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
            replacements: 0,
            early: Vec::new(),
            repeating: false,
            changes: VecDeque::new(),
            forgotten: VecDeque::new(),
            undone: 0,
            looked: 0,
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
            match change {
                Change::Unnamed { before, .. } => self.statements.unnamed = before,
                change => drop(change.undo(&mut self.statements, None)),
            }
        }
        self.remember_names(u64::MAX);
        (self.batches_sent, self.batches_answered) = (0, 0);
    }

    /// Keeps all that was in flight: its outcome was found out otherwise.
    pub fn keep_all(&mut self) {
        while !self.changes.is_empty() {
            self.confirm_change();
        }
        self.forgotten.clear();
        (self.batches_sent, self.batches_answered) = (0, 0);
    }

    /// The next request is looked at now.
    #[inline]
    pub fn look(&mut self) {
        self.looked = self.undone;
    }

    /// Whether names stand for something else than when it was.
    #[inline]
    pub(super) fn is_to_be_looked_at_again(&self) -> bool {
        self.looked != self.undone
    }

    /// Names stand for something else than the requests in flight have said.
    pub(super) fn note_undone(&mut self) {
        self.undone += 1;
    }

    /// Takes note of what a request does.
    pub(super) fn note(&mut self, change: Change) {
        self.changes.push_back((self.batches_sent, change));
    }

    /// The server accepted the oldest change.
    pub(super) fn confirm_change(&mut self) {
        match self.changes.pop_front().map(|(_, change)| change) {
            // The statement that had the name when this was sent turned out not to exist.
            Some(Change::Duplicate { name, statement }) => {
                drop(self.statements.name(&name, statement));
                self.note_undone();
            }
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

    /// Whether batches in front of the one that is open, or begins next, have changed something that the server has not
    /// settled.
    #[inline]
    pub(super) fn is_unsettled(&self) -> bool {
        let oldest = self.changes.front();
        oldest.is_some_and(|(batch, _)| *batch < self.batches_sent) || !self.forgotten.is_empty()
    }

    /// What they have changed. More than [`LOOKED_THROUGH_MAX`] are not looked through: `None`.
    fn unsettled(&self) -> Option<impl Iterator<Item = &Change>> {
        let changes = self.changes.iter();
        let earlier = changes.take_while(|(batch, _)| *batch < self.batches_sent);
        (self.changes.len() <= LOOKED_THROUGH_MAX).then(|| earlier.map(|(_, change)| change))
    }

    /// Whether one of them is of this name, or has this statement prepared, or a Query in flight takes the name away.
    pub(super) fn is_name_unsettled(&self, name: &[u8], statement: Option<&Arc<Statement>>) -> bool {
        let id = statement.map(|statement| statement.id());
        let taken = || self.forgotten.iter().any(|(_, names)| names.has(name));
        self.unsettled()
            .is_none_or(|mut changes| changes.any(|change| change.is_of(name, id)))
            || taken()
    }

    /// Whether one of them is of the unnamed statement.
    pub(super) fn is_unnamed_unsettled(&self) -> bool {
        self.unsettled()
            .is_none_or(|mut changes| changes.any(Change::is_of_unnamed))
    }

    /// Whether the batch that is open has changed the unnamed statement.
    pub(super) fn has_unnamed_of_batch(&self) -> bool {
        let changes = self.changes.iter().rev();
        let mut of_batch = changes.take_while(|(batch, _)| *batch == self.batches_sent);
        of_batch.any(|(_, change)| change.is_of_unnamed())
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
            self.note_undone();
        }
    }

    /// The server ignored so many of the Syncs that were sent, as it was copying: the oldest.
    pub(super) fn join_batches(&mut self, count: usize) {
        let count = count as u64;
        for (batch, _) in &mut self.changes {
            *batch = batch.saturating_sub(count).max(self.batches_answered);
        }
        self.batches_sent -= count;
    }

    /// Whether the oldest change is a Parse of the unnamed statement.
    pub(super) fn replaces_unnamed(&self) -> bool {
        self.oldest_change().is_some_and(Change::is_of_unnamed)
    }

    /// A server drops the unnamed statement where it reads another, or a Query: nothing that is undone brings it back.
    /// `only_oldest`: the oldest change did it; or else a Query did, behind all of them.
    pub(super) fn drop_unnamed(&mut self, only_oldest: bool) {
        let count = if only_oldest { 1 } else { self.changes.len() };
        for (_, change) in self.changes.iter_mut().take(count) {
            match change {
                Change::Unnamed { before, there } => (*before, *there) = (None, None),
                Change::UnnamedPlaced { there } => *there = None,
                _ => {}
            }
        }
    }

    /// The server refused the rest of the batch: its changes are undone, newest first. The names that it had lent are
    /// returned.
    pub(super) fn undo_batch(&mut self, mut backend: Option<&mut Checkout>) -> Vec<Box<[u8]>> {
        let end = self
            .changes
            .iter()
            .position(|(batch, _)| *batch > self.batches_answered);
        let mut later = self.changes.split_off(end.unwrap_or(self.changes.len()));
        let mut lent = Vec::new();
        if !self.changes.is_empty() {
            self.note_undone();
        }
        while let Some((_, change)) = self.changes.pop_back() {
            let change = match change {
                // What a later batch has put in its place stays, and takes over what it would go back to.
                Change::Unnamed { before, there } => {
                    let mut next = later.iter_mut().map(|(_, change)| change);
                    let place = next.find_map(|change| match change {
                        Change::Unnamed { before, .. } => Some(before),
                        _ => None,
                    });
                    *place.unwrap_or(&mut self.statements.unnamed) = before;
                    put_back(there, &mut later, backend.as_deref_mut());
                    continue;
                }
                Change::UnnamedPlaced { there } => {
                    put_back(there, &mut later, backend.as_deref_mut());
                    continue;
                }
                change => change,
            };
            lent.extend(change.undo(&mut self.statements, backend.as_deref_mut()));
        }
        self.changes = later;
        lent
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
    /// A Parse replaced the unnamed statement, or a Close took it away: what the client had before, and the backend.
    Unnamed {
        before: Option<Arc<Statement>>,
        there: Option<Arc<Statement>>,
    },
    /// Halyard prepared a statement on its own.
    Prepared(u64),
    /// Halyard lent a name to SQL: the statement that it stands for, if `whole`, or one that takes its place.
    Lends { name: Box<[u8]>, whole: bool },
    /// Halyard put the client's unnamed statement on a backend, which had this one.
    UnnamedPlaced { there: Option<Arc<Statement>> },
    /// A Close took a name away.
    Closed {
        name: Box<[u8]>,
        before: Option<Arc<Statement>>,
    },
}

impl Change {
    fn is_of_unnamed(&self) -> bool {
        matches!(self, Change::Unnamed { .. } | Change::UnnamedPlaced { .. })
    }

    /// `id`: the number of a statement.
    fn is_of(&self, name: &[u8], id: Option<u64>) -> bool {
        match self {
            Change::Named {
                name: known,
                prepared,
                ..
            } => **known == *name || (prepared.is_some() && *prepared == id),
            Change::Duplicate {
                name: known,
                statement,
            } => **known == *name || Some(statement.id()) == id,
            Change::Lends { name: known, .. } | Change::Closed { name: known, .. } => **known == *name,
            Change::Prepared(prepared) => Some(*prepared) == id,
            Change::Unnamed { .. } | Change::UnnamedPlaced { .. } => false,
        }
    }

    /// The name that it had lent, if it had.
    fn undo(self, statements: &mut ClientStatements, backend: Option<&mut Checkout>) -> Option<Box<[u8]>> {
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
            Change::Prepared(id) => {
                if let Some(backend) = backend {
                    backend.prepared.remove(id);
                }
            }
            Change::Closed { name, before } => {
                if let Some(before) = before {
                    drop(statements.name(&name, before));
                }
            }
            Change::Lends { name, .. } => return Some(name),
            // Of the unnamed one the batch as a whole is undone.
            Change::Duplicate { .. } | Change::Unnamed { .. } | Change::UnnamedPlaced { .. } => {}
        }
        None
    }
}

/// A batch that has failed gives the backend its unnamed statement back, or hands it to the next that has put another there.
fn put_back(
    there: Option<Arc<Statement>>,
    later: &mut VecDeque<(u64, Change)>,
    backend: Option<&mut Checkout>,
) {
    let place = later.iter_mut().find_map(|(_, change)| match change {
        Change::Unnamed { there, .. } | Change::UnnamedPlaced { there } => Some(there),
        _ => None,
    });
    match (place, backend) {
        (Some(place), _) => *place = there,
        (None, Some(backend)) => backend.unnamed = there,
        (None, None) => {}
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

    /// A client's Bind ran a statement that the server had never taken: what the second batch went back to was the first's.
    #[test]
    fn what_was_never_taken_does_not_come_back() {
        let registry = StatementRegistry::default();
        let mut memory = memory();
        let meaning = memory.statements.meaning(Epoch::begin());
        let [old, first, second] =
            [&b"old"[..], b"first", b"second"].map(|text| registry.statement(meaning, text, b"\0\0"));
        memory.statements.unnamed = Some(Arc::clone(&old));
        let parse = |memory: &mut Memory, statement| {
            let before = memory.statements.unnamed.replace(statement);
            memory.note(Change::Unnamed { before, there: None });
            memory.end_batch();
        };
        parse(&mut memory, first);
        parse(&mut memory, Arc::clone(&second));
        memory.undo_batch(None);
        memory.close_batch();
        let unnamed = |memory: &Memory| memory.statements.unnamed.as_ref().map(|held| held.id());
        assert_eq!(unnamed(&memory), Some(second.id()));
        memory.undo_batch(None);
        assert_eq!(unnamed(&memory), Some(old.id()));
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
