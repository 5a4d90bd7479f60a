//! The way of bytes between one client and one backend.
//!
//! [`Relay::poll`] moves both directions until nothing moves: requests forward, as far as the node may run
//! them; answers back, as they lie. Both peers are polled while a query runs, so a pipeline larger than every
//! buffer cannot deadlock, and a client that vanishes is noticed. Whatever a peer does not take at once bounds
//! what is read from the other.
//!
//! Progress lives in the legs, never in a future: dropping a future between two polls loses nothing.

mod answers;
mod client;
mod commit;
pub mod ledger;
mod listen;
mod requests;
mod statements;
mod trace;

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::catalog::CatalogHandle;
use crate::classify::{Access, Rule, SessionEffects, SettingChanges, Settings as Reading};
use crate::consistency::Consistency;
use crate::error::{Report, SqlState};
use crate::metrics::Counters;
use crate::notify::Listening;
use crate::operate::Pauses;
use crate::pool::Checkout;
use crate::routing::RouteReason;
use crate::session::{
    ClientStatements, Control, Demand, Doing, Epoch, Forgotten, Inbox, Mood, NAMED, PinReason, Presence,
    Scan, Scanner, Settings, Statement, StatementRegistry,
};
use crate::wire::FrameError;
use crate::worker::Local;
use halyard_health::Incarnation;

use statements::Check;

pub use client::{ClientLeg, Received};
pub use commit::{Commit, Committing, Ending};
pub use listen::Heard;
pub(crate) use requests::runs;
use trace::Traces;

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
    changes: VecDeque<Change>,
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
    fn repeats_stale(&self) -> bool {
        self.repeats == 0
    }

    /// Takes note of what the client is told of a setting.
    fn tell(&mut self, name: &str, value: &str) {
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
    fn confirm_change(&mut self) {
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
    fn end_batch(&mut self) {
        if !self.changes.is_empty() {
            self.changes.push_back(Change::BatchEnd);
        }
    }

    /// A batch was answered in full.
    fn close_batch(&mut self) {
        if matches!(self.changes.front(), Some(Change::BatchEnd)) {
            self.changes.pop_front();
        }
    }

    /// Whether the oldest change is a Parse of the unnamed statement.
    fn replaces_unnamed(&self) -> bool {
        matches!(
            self.changes.front(),
            Some(Change::Unnamed { .. } | Change::Deallocates { .. })
        )
    }

    /// The server refused the rest of the batch: its changes are undone, newest first.
    fn undo_batch(&mut self, mut backend: Option<&mut Checkout>) {
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
enum Change {
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
    fn undo(self, statements: &mut ClientStatements, backend: Option<&mut Checkout>) {
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

/// A backend lent to a session, and what is in flight on it.
pub struct Link {
    /// The backend.
    pub backend: Checkout,
    /// Whether it was chosen as the primary, so that it may run anything.
    pub as_primary: bool,
    /// Why it was chosen.
    pub reason: RouteReason,
    /// Notices that go in front of the answers owed, oldest first.
    traces_told: Traces,
    /// What is in flight.
    pub flight: Flight,
    /// Requests sent over it.
    pub requests: u32,
    /// Whether a request ran code that nobody has read.
    pub opaque: bool,
    /// What requests may have left in the session since it was examined last.
    pub traces: SessionEffects,
    /// The settings among it, by name.
    pub changes: SettingChanges,
    /// A question that goes behind the request being sent; see [`Settings::restore_after`].
    restore: Option<String>,
    /// The number of the session that it is lent to.
    session: u64,
    /// Whether a request has failed since the session was examined last.
    pub failed: bool,
    /// Whether a request may have written.
    pub wrote: bool,
    /// Whether all that was asked on it is proved to read, or begins and ends a transaction.
    pub only_read: bool,
    /// How the request sent last ends its block, if it does nothing else.
    pub ending: Option<Ending>,
    /// Whether a request may have changed objects of the database, and is not committed yet.
    pub ddl: bool,
    /// Names that the Query in flight takes from the client, to be given back where the server refuses it.
    forgotten: Forgotten,
    /// What was seen of LISTEN and NOTIFY.
    pub heard: Heard,
    /// Whether a transaction block is open that may not be.
    pub block_refused: bool,
    /// Whether nothing but BEGIN and SET TRANSACTION was sent of the block that is open.
    pub block_is_empty: bool,
    /// The modes of a block that was begun on another node and goes on here: its BEGIN goes before the first request.
    pub begins_with: Option<String>,
    /// Statements of the protocol that are on the backend under the client's own names too, for SQL to find them.
    pub lent: Vec<(Box<[u8]>, Arc<Statement>)>,
    /// Whether a request may have run DEALLOCATE ALL.
    pub deallocates_all: bool,
    /// Statements whose description Halyard has asked for on its own, oldest first.
    asked: VecDeque<Arc<Statement>>,
    /// What is known of the statement before whose Bind the request being sent has stopped, if it has.
    check: Option<Check>,
    /// Whether the request being sent may stop before a Bind.
    stops: bool,
    /// Whether it has, so that what the client's buffer holds is its rest.
    stopped: bool,
    /// Whether a Close of Halyard's own is unanswered, so that an error may have skipped it.
    closing: bool,
    /// Bytes of a frame that are still to be passed on to the backend.
    streaming: usize,
    /// Whether the backend takes nothing any more; what it said before is still read.
    write_failed: bool,
    /// Whether the backend came with bytes that nobody has looked at.
    unread: bool,
    /// A limit that the client's request exceeded.
    fault: Option<Report>,
    /// What is known of the transaction whose COMMIT was sent last.
    pub commit: Commit,
    /// Which run of its server the backend belongs to, if commits are to be resolved and that is known.
    pub incarnation: Option<Incarnation>,
    /// When the request was sent, if the time to its answer is to be told to the node's load.
    pub timed: Option<Instant>,
}

/// What was sent since the backend last owed nothing.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    /// The strictest of it.
    pub access: Access,
    /// Its part in transaction control.
    pub control: Control,
    /// Whether there is any.
    pub begun: bool,
    /// Whether any byte of it may have reached the server.
    pub sent: bool,
    /// Whether the client has got any answer to it.
    pub answered: bool,
    /// Whether it lies whole in the client's buffer, so that it may be sent again if it turns out that nothing of it has
    /// run.
    pub held: bool,
    /// Whether it is held and may be sent to another node instead, even if it has run.
    pub repeatable: bool,
    /// Whether anything of it has run.
    pub ran: bool,
    /// The database's epoch, if a statement of it is used that is not older.
    pub epoch: Option<Epoch>,
    /// Why it was refused and is to be sent again, its answers being dropped.
    pub refused: Option<Refusal>,
}

/// Why a request that has no effect yet is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A standby found it to be a write (25006).
    ReadOnly,
    /// A prepared statement on this backend was outdated (0A000) or gone (26000), as the server found before it ran it.
    StalePlan,
}

impl Flight {
    const NONE: Self = Self {
        access: Access::Read,
        control: Control::None,
        begun: false,
        sent: false,
        answered: false,
        held: false,
        repeatable: false,
        ran: false,
        epoch: None,
        refused: None,
    };
}

impl Link {
    /// A link of a session, by its number, over which nothing has gone yet.
    pub fn new(mut backend: Checkout, as_primary: bool, reason: RouteReason, session: u64) -> Self {
        let unread = !backend.carry.is_empty();
        backend.owner = session;
        Self {
            backend,
            as_primary,
            reason,
            traces_told: Traces::default(),
            flight: Flight::NONE,
            requests: 0,
            opaque: false,
            traces: SessionEffects::NONE,
            changes: SettingChanges::default(),
            restore: None,
            session,
            failed: false,
            wrote: false,
            only_read: true,
            ending: None,
            ddl: false,
            forgotten: Forgotten::default(),
            heard: Heard::default(),
            block_refused: false,
            block_is_empty: false,
            begins_with: None,
            lent: Vec::new(),
            deallocates_all: false,
            asked: VecDeque::new(),
            check: None,
            stops: false,
            stopped: false,
            closing: false,
            streaming: 0,
            write_failed: false,
            unread,
            fault: None,
            commit: Commit::Unasked,
            incarnation: None,
            timed: None,
        }
    }

    /// Whether an answer is owed, or a request was only half sent.
    pub fn in_flight(&self) -> bool {
        !self.backend.ledger.is_empty() || self.backend.ledger.batch_open() || self.streaming > 0
    }

    /// Whether the client has got the beginning of a frame whose end will never come.
    pub fn mid_frame(&self) -> bool {
        let passing = self.backend.passing;
        passing.remaining > 0 && passing.forward
    }

    /// Whether requests may have changed what the session keeps its backend for.
    #[inline]
    pub fn is_to_be_examined(&self) -> bool {
        !self.traces.is_empty()
    }

    /// Bytes of the client's last frame that are still to come and have nowhere to go once this link is gone.
    pub fn unfinished(&self) -> usize {
        self.streaming
    }

    /// Whether a transaction block is open, as far as the server has said.
    pub fn in_block(&self) -> bool {
        self.backend.ledger.status() != b'I'
    }

    /// Whether the client is in a block that this backend has not been told of yet, or has not answered.
    pub fn takes_block_over(&self) -> bool {
        self.begins_with.is_some()
    }
}

/// How a turn ends.
#[derive(Debug)]
pub enum End {
    /// Nothing is owed and no transaction is open; the client's next request, if any, may go anywhere.
    Settled,
    /// The next request names channels that have to be heard before it is sent.
    MustListen,
    /// The next request says of a block in which nothing has run that it belongs to another kind of node.
    BlockMoves,
    /// The next request names settings of Halyard's own, which have to be looked at before it is sent.
    MustSeeToSettings,
    /// As [`End::Settled`], and the client waits for its ReadyForQuery: what it listens to is to be found out first, or
    /// it has notified itself.
    ReadyWithheld,
    /// The request was refused for a reason that is not the client's, and is still in its buffer.
    Refused(Refusal),
    /// A request has left a transaction block open where none may be; the client waits for its ReadyForQuery.
    BlockRefused,
    /// The connection to the node is lost.
    BackendLost(Lost),
    /// The client is gone.
    ClientGone,
    /// The client has said goodbye.
    Terminated,
    /// The client broke the protocol.
    ClientBroke(FrameError),
    /// A pause has held the client's next transaction for as long as it may.
    HeldTooLong,
    /// The client exceeded a limit; it is told and goes.
    LimitExceeded(Report),
    /// Somebody wants something of the session; see its inbox.
    Interrupted,
}

/// How a connection to a node was lost.
#[derive(Debug)]
pub struct Lost {
    /// What the server said, if it said anything.
    pub said: Option<Report>,
    /// What the socket said.
    pub error: Option<io::ErrorKind>,
}

/// Both sides and everything between them, for the length of one poll.
pub struct Relay<'a> {
    /// The client.
    pub client: &'a mut ClientLeg,
    /// The backend.
    pub link: &'a mut Link,
    /// What the session remembers.
    pub memory: &'a mut Memory,
    /// A request that was looked at and not sent yet.
    pub demand: &'a mut Option<Demand>,
    /// Messages to the session.
    pub inbox: &'a Inbox,
    /// What functions do, with the database's epoch.
    pub definitions: &'a CatalogHandle,
    /// How texts are read.
    pub reading: &'a Reading,
    /// All statements.
    pub registry: &'a StatementRegistry,
    /// Limits and names.
    pub limits: &'a RelayLimits,
    /// Where writes are noted for those who read.
    pub consistency: &'a Consistency,
    /// What is counted.
    pub counters: &'a Counters,
    /// Whose transactions are held.
    pub pauses: &'a Pauses,
    /// The session's database.
    pub database: &'a str,
    /// Whether everything goes to standbys by the port's role.
    pub replica_port: bool,
    /// Whether no transaction block may be open.
    pub refuses_blocks: bool,
}

/// Limits that the relay keeps. See `config` for their meaning.
#[derive(Clone, Debug)]
pub struct RelayLimits {
    /// Longest text that is read; bytes.
    pub statement_size_max: usize,
    /// Longest request kept to be sent again; bytes.
    pub rerun_size_max: usize,
    /// Whether the outcome of a COMMIT is looked up whose answer was lost.
    pub resolve_commits: bool,
    /// Answers that may be owed before no more requests are sent.
    pub pipeline_max: usize,
    /// Statements that one client may name.
    pub client_statements_max: usize,
}

/// Whether anything moved.
type Step = Result<bool, End>;

impl Relay<'_> {
    /// Moves bytes until nothing moves, or the turn ends.
    pub fn poll(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Poll<End> {
        // What wakes a task that has sent everything is nearly always the answer. If the turn ends with it, the client is
        // looked at by the next one.
        let mut only_answers = self.only_awaits_answers();
        loop {
            if self.inbox.is_ringing(cx) {
                return Poll::Ready(End::Interrupted);
            }
            let pulled = if only_answers {
                self.pull_answers(cx, local)
            } else {
                // Requests are pushed until none can be: only an answer can make room for more.
                self.push_requests(cx, local)
                    .and_then(|_| self.pull_answers(cx, local))
            };
            let pulled = match pulled {
                Ok(pulled) => pulled,
                Err(end) => return Poll::Ready(end),
            };
            let settled = self.link.backend.ledger.settled().is_some()
                && self.link.streaming == 0
                && self.link.backend.out.is_empty()
                && self.link.backend.passing.remaining == 0
                && self.link.backend.carry.is_empty()
                && self.demand_is_not_for_us();
            if settled {
                if let Some(refusal) = self.link.flight.refused {
                    return Poll::Ready(End::Refused(refusal));
                }
                if self.link.heard.withheld {
                    return Poll::Ready(End::ReadyWithheld);
                }
                if self.memory.pin.is_none() || self.link.is_to_be_examined() {
                    return Poll::Ready(End::Settled);
                }
                if self.has_mail() {
                    return Poll::Ready(End::Interrupted);
                }
            }
            if self.link.block_refused && self.link.backend.ledger.is_empty() {
                return Poll::Ready(End::BlockRefused);
            }
            if self.must_listen_first() {
                return Poll::Ready(End::MustListen);
            }
            if self.must_see_to_settings_first() {
                return Poll::Ready(End::MustSeeToSettings);
            }
            if self.link.block_is_empty && self.must_move_first() {
                return Poll::Ready(End::BlockMoves);
            }
            if !pulled && self.client.has_ended() && self.has_nothing_to_wait_for() {
                return Poll::Ready(End::ClientGone);
            }
            if !pulled && !only_answers {
                return Poll::Pending;
            }
            only_answers = false;
        }
    }

    /// Whether all that was asked for is sent and not all of it is answered.
    #[inline]
    fn only_awaits_answers(&self) -> bool {
        !self.link.backend.ledger.is_empty()
            && self.demand.is_none()
            && self.link.streaming == 0
            && self.link.backend.out.is_empty()
            && self.client.ignoring == 0
            && self.client.input.unparsed().is_empty()
    }

    /// Whether nothing is due to a client that sends nothing more.
    fn has_nothing_to_wait_for(&self) -> bool {
        let ledger = &self.link.backend.ledger;
        let due = !ledger.is_empty() && !ledger.copy_in();
        !due && self.demand.is_none() && self.client.out.is_empty() && self.link.backend.out.is_empty()
    }

    /// Whether the next request, if one was looked at, has to look for a node of its own.
    fn demand_is_not_for_us(&self) -> bool {
        self.demand.is_none() || !self.may_send()
    }

    /// Whether prepared statements may have been made or ended by SQL, so that which names the client has is found out
    /// before it goes on.
    fn names_are_open(&self) -> bool {
        let ledger = &self.link.backend.ledger;
        self.link.traces.intersects(NAMED)
            && !self.link.in_block()
            && !ledger.batch_open()
            && !ledger.copy_in()
    }

    /// Whether the next request, whatever it is, may be sent now.
    fn may_send(&self) -> bool {
        let ledger = &self.link.backend.ledger;
        let alone = self.refuses_blocks && !ledger.is_empty() && !ledger.batch_open() && !ledger.copy_in();
        if self.names_are_open() || self.link.block_refused || alone {
            return false;
        }
        if self.link.flight.refused.is_some()
            || ledger.len() >= self.limits.pipeline_max
            || self.link.check == Some(Check::Asked)
            || self.is_withholding()
        {
            return false;
        }
        if self.link.in_block() || ledger.batch_open() || ledger.copy_in() {
            return true;
        }
        if !self.link.flight.begun {
            // The request for which the link was made.
            return true;
        }
        if self.memory.pin.is_some() {
            return !self.is_paused();
        }
        // What is still owed may open a block or change what the session relies on: on the primary it does not
        // matter; a standby gets one request at a time, so that each can still go elsewhere.
        self.link.as_primary && !ledger.is_empty() && !self.is_paused()
    }

    /// Whether a transaction that would begin now has to wait for the end of a pause.
    fn is_paused(&self) -> bool {
        let (database, as_primary) = (self.database, self.link.as_primary);
        let backend = Some((self.link.backend.node().id, as_primary));
        let doing = Doing::Active;
        self.inbox.set_presence(Presence { doing, backend });
        self.pauses.hold_after_all(database, as_primary)
    }

    /// Whether a request has to wait until what it says of Halyard's own settings is looked at: that is done between
    /// two answers.
    fn waits_for_own_settings(&self, demand: &Demand) -> bool {
        demand.class.names_own_setting()
            && !self.memory.own_settings_seen_to
            && !self.link.backend.ledger.copy_in()
            && !self.link.backend.ledger.skips_until_sync()
    }

    /// Whether a request says of the block that it is in, and in which nothing has run, that it belongs to another kind
    /// of node: READ ONLY to a standby, READ WRITE to the primary, and what the client listens to can be changed there
    /// alone. One that only prepares the statement says nothing yet.
    fn moves_block(&self, demand: &Demand) -> bool {
        let class = demand.class;
        let moves = match class.rule {
            Rule::SetsReadOnlyTransaction => self.link.as_primary && !class.keeps_state(),
            _ if self.link.as_primary || self.replica_port => false,
            Rule::SetsReadWriteTransaction => true,
            _ => class.listens() || (class.changes_listening() && self.memory.listening.is_some()),
        };
        moves
            && self.link.block_is_empty
            && demand.closed
            && class.control == Control::None
            && self.memory.pin.is_none()
            && runs(&self.client.input.unparsed()[..demand.bytes])
    }

    /// Whether nothing else keeps the block from being moved.
    fn must_move_first(&self) -> bool {
        self.link.backend.ledger.is_empty()
            && self.link.streaming == 0
            && self.link.backend.out.is_empty()
            && self
                .demand
                .as_ref()
                .is_some_and(|demand| self.moves_block(demand))
    }

    /// Whether nothing else keeps the next request from being sent.
    fn must_see_to_settings_first(&self) -> bool {
        self.link.backend.ledger.is_empty()
            && self.link.streaming == 0
            && self.link.backend.out.is_empty()
            && self
                .demand
                .as_ref()
                .is_some_and(|demand| self.waits_for_own_settings(demand))
    }

    fn scan(&mut self, local: &mut Local) -> Scan {
        let ledger = &self.link.backend.ledger;
        let mood = match (ledger.copy_in(), ledger.is_empty()) {
            (true, _) => Mood::CopyIn,
            (false, true) => Mood::Idle,
            (false, false) => Mood::Busy,
        };
        let catalog = self.definitions.load();
        let mut scanner = Scanner {
            statements: &self.memory.statements,
            parsed: &mut self.memory.parsed,
            registry: self.registry,
            catalog: &catalog,
            epoch: self.definitions.epoch().load(),
            reading: self.reading,
            size_max: self.limits.statement_size_max,
        };
        scanner.scan(self.client.input.unparsed(), mood, local)
    }
}

/// What a client is told whose COPY, pipeline or prepared statement exceeds a limit.
fn limit_report(what: &'static str, setting: &'static str, limit: usize) -> Report {
    Report::fatal(SqlState::CONFIGURATION_LIMIT_EXCEEDED, what)
        .with_detail(format!("The limit is {limit} ({setting})."))
}
