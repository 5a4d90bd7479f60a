//! What a client's session remembers from one backend to the next, and what requests in flight may still have undone.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::classify::SessionEffects;
use crate::notify::Listening;
use crate::pool::Checkout;
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
    /// What it did that no server can be asked for, and that keeps its backend.
    pub lasting: SessionEffects,
    /// Whether its unnamed statement was too long to be read, so that it is on its backend alone.
    pub unread_unnamed: bool,
    /// Whether the next request was looked at for settings of Halyard's own.
    pub own_settings_seen_to: bool,
    /// Why it keeps its backend, if it does.
    pub pin: Option<PinReason>,
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
    /// What the requests in flight did to `statements`, oldest first, to be undone where the server refuses.
    pub(super) changes: VecDeque<Change>,
}

impl Memory {
    /// That of a new session.
    pub fn new(settings: Arc<Settings>, group: NonZeroU32) -> Self {
        Self {
            statements: ClientStatements::new(group),
            startup: Arc::clone(&settings),
            settings,
            told: Arc::default(),
            lasting: SessionEffects::NONE,
            unread_unnamed: false,
            own_settings_seen_to: false,
            pin: None,
            listening: None,
            parsed: Vec::new(),
            repeats: 0,
            early: Vec::new(),
            repeating: false,
            changes: VecDeque::new(),
        }
    }

    /// Whether a request whose prepared statement turned out to be outdated is sent again: once.
    pub(super) fn repeats_stale(&self) -> bool {
        self.repeats == 0
    }

    /// Takes note of what the client is told of a setting.
    pub(super) fn tell(&mut self, name: &str, value: &str) {
        let told = Arc::make_mut(&mut self.told);
        match told.iter_mut().find(|(known, _)| known == name) {
            Some(known) => value.clone_into(&mut known.1),
            None => told.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Undoes all that was in flight, newest first: the backend is gone.
    pub fn undo_all(&mut self) {
        self.early.clear();
        while let Some(change) = self.changes.pop_back() {
            change.undo(&mut self.statements, None);
        }
    }

    /// Keeps all that was in flight: its outcome was found out otherwise.
    pub fn keep_all(&mut self) {
        while !self.changes.is_empty() {
            self.confirm_change();
        }
    }

    /// The server accepted the oldest change.
    pub(super) fn confirm_change(&mut self) {
        match self.changes.pop_front() {
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

    /// A Sync was sent.
    pub(super) fn end_batch(&mut self) {
        self.changes.push_back(Change::BatchEnd);
    }

    /// The Sync of the oldest batch was answered.
    pub(super) fn close_batch(&mut self) {
        let end = self.changes.pop_front();
        debug_assert!(
            matches!(end, Some(Change::BatchEnd)),
            "what a batch did is settled when it is over"
        );
    }

    /// The server ignored so many of the Syncs that were sent, as it was copying: the oldest.
    pub(super) fn join_batches(&mut self, count: usize) {
        let mut left = count;
        self.changes.retain(|change| {
            let ignored = left > 0 && matches!(change, Change::BatchEnd);
            left -= usize::from(ignored);
            !ignored
        });
    }

    /// Whether the oldest change is a Parse of the unnamed statement.
    pub(super) fn replaces_unnamed(&self) -> bool {
        matches!(
            self.changes.front(),
            Some(Change::Unnamed { .. } | Change::Deallocates { .. })
        )
    }

    /// The server refused the rest of the batch: its changes are undone, newest first.
    pub(super) fn undo_batch(&mut self, mut backend: Option<&mut Checkout>) {
        let end = self
            .changes
            .iter()
            .position(|change| matches!(change, Change::BatchEnd));
        let later = self.changes.split_off(end.unwrap_or(self.changes.len()));
        let replaced = later
            .iter()
            .any(|change| matches!(change, Change::Unnamed { .. } | Change::Deallocates { .. }));
        while let Some(change) = self.changes.pop_back() {
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
    /// Halyard put the client's unnamed statement on a backend.
    UnnamedPlaced,
    /// A Close took a name away.
    Closed {
        name: Box<[u8]>,
        before: Option<Arc<Statement>>,
    },
    /// The Sync that ends the changes before it.
    BatchEnd,
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
            Change::Duplicate { .. } | Change::BatchEnd => {}
        }
    }
}
