//! The way of bytes between one client and one backend.
//!
//! [`Relay::poll`] moves both directions until nothing moves: requests forward, as far as the node may run
//! them; answers back, as they lie. Both peers are polled while a query runs, so a pipeline larger than every
//! buffer cannot deadlock, and a client that vanishes is noticed. Whatever a peer does not take at once bounds
//! what is read from the other.
//!
//! Progress lives in the legs, never in a future: dropping a future between two polls loses nothing.

mod ahead;
mod answers;
mod aside;
mod client;
mod commit;
pub mod ledger;
mod lending;
mod link;
mod listen;
mod memory;
mod preparation;
mod requests;
mod statements;
mod trace;

use std::io;
use std::task::{Context, Poll};

use crate::catalog::CatalogHandle;
use crate::classify::{Access, Rule, Settings as Reading};
use crate::consistency::Consistency;
use crate::error::{Report, SqlState};
use crate::metrics::Counters;
use crate::operate::Pauses;
use crate::session::{
    Control, Demand, Doing, Inbox, Message, Mood, NAMED, Presence, Scan, Scanner, StatementRegistry,
};
use crate::wire::FrameError;
use crate::worker::Local;

use memory::Change;
use requests::Portals;
use statements::Check;

pub use aside::{Asides, setting_of_said};
pub use client::{ClientLeg, Received};
pub use commit::{Commit, Committing, Ending};
pub use link::{Flight, Link, Refusal};
pub use listen::Heard;
pub use memory::Memory;
pub(crate) use requests::runs;

/// How a turn ends.
#[derive(Debug)]
pub enum End {
    /// Nothing is owed and no transaction is open; the client's next request, if any, may go anywhere.
    Settled,
    /// The next request names channels that have to be heard before it is sent.
    MustListen,
    /// The next request says of the block that it is in that it belongs to another kind of node.
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
    HeldNoLonger(Option<Box<Report>>),
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
    pub reading: &'a mut Reading,
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
            if self.memory.is_to_be_looked_at_again() && !self.link.stopped {
                // Its class, by which it finds its node, is of what its names stood for before.
                *self.demand = None;
            }
            if self.link.cancel_waits && !self.link.is_being_prepared() {
                self.link.cancel_waits = false;
                self.inbox.ring(Message::Cancel);
            }
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
            if let Some(end) = self.must_do_first() {
                return Poll::Ready(end);
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
        if ledger.batch_open() || ledger.copy_in() {
            return true;
        }
        if self.link.in_block() {
            // What comes behind the end of a block on a standby may be the primary's.
            return self.link.as_primary || ledger.is_empty() || self.link.leads_into_block();
        }
        if !self.link.flight.begun {
            // The request for which the link was made.
            return true;
        }
        if self.link.suspended {
            return false;
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

    /// Whether a request says of the block that it is in that it belongs to another kind of node: READ ONLY to a standby,
    /// READ WRITE to the primary, and what a READ ONLY transaction can do there alone. One that only prepares the statement
    /// says nothing yet.
    #[inline]
    fn moves_block(&self, demand: &Demand) -> bool {
        let (link, class) = (&*self.link, demand.class);
        // Most blocks are on the primary, and most requests read.
        let may_move = if link.as_primary {
            link.block_is_empty
                && class.rule == Rule::SetsReadOnlyTransaction
                && !class.keeps_state()
                && !class.is_for_primary(true)
                && demand.closed
                && class.control == Control::None
        } else {
            class.access == Access::Write && !self.replica_port && self.leaves_standby(demand)
        };
        may_move
            && !link.stays
            && self.memory.pin.is_none()
            && (link.block_is_empty || link.in_block())
            && !link.backend.ledger.skips_until_sync()
            && self.begins_to_run(demand)
    }

    /// Whether a request runs something, or binds what is the primary's alone to be run by the next.
    fn begins_to_run(&self, demand: &Demand) -> bool {
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let binds = || !self.link.as_primary && demand.class.is_for_primary(false);
        runs(bytes) || (binds() && Portals::of(bytes) != Portals::Untouched)
    }

    /// Whether a request in a block on a standby is the primary's.
    fn leaves_standby(&self, demand: &Demand) -> bool {
        let class = demand.class;
        let listens = self.memory.listening.is_some();
        if class.is_for_primary(listens) {
            return true;
        }
        // What comes later of LISTEN and UNLISTEN is said aside.
        self.link.block_is_empty
            && demand.closed
            && class.control == Control::None
            && (matches!(
                class.rule,
                Rule::SetsReadWriteTransaction | Rule::SetsSerializableTransaction
            ) || class.listens()
                || (class.changes_listening() && listens))
    }

    /// What the session has to do before the next request can be sent, where nothing else keeps that back.
    #[inline]
    fn must_do_first(&self) -> Option<End> {
        let demand = self.demand.as_ref()?;
        let backend = &self.link.backend;
        if !backend.ledger.is_empty() || self.link.streaming > 0 || !backend.out.is_empty() {
            return None;
        }
        if self.must_listen_first(demand) {
            Some(End::MustListen)
        } else if self.waits_for_own_settings(demand) {
            Some(End::MustSeeToSettings)
        } else if self.moves_block(demand) {
            Some(End::BlockMoves)
        } else {
            None
        }
    }

    fn scan(&mut self, local: &mut Local) -> Scan {
        self.leave_moment();
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
            turning: self.link.changes_reading && ledger.batch_open(),
            moves: self.link.left.moves && (self.link.in_flight() || self.link.in_block()),
            size_max: self.limits.statement_size_max,
        };
        let scan = scanner.scan(self.client.input.unparsed(), mood, local);
        self.memory.look();
        scan
    }
}

/// What a client is told that holds more prepared statements than `limit`.
pub(crate) fn too_many_statements(limit: usize) -> Report {
    Report::fatal(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        "too many prepared statements in this session",
    )
    .with_detail(format!(
        "The limit is {limit} (pool.client_prepared_statements_max)."
    ))
}
