//! A backend lent to a session, and what is in flight on it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use halyard_health::Incarnation;

use super::ledger::{Fate, Owed};
use super::lending::Lent;
use super::statements::Check;
use super::trace::Traces;
use super::{Asides, Commit, Ending, Heard};
use crate::classify::{Access, SessionEffects, SettingChanges};
use crate::consistency::ReadBehind;
use crate::error::Report;
use crate::pool::Checkout;
use crate::routing::RouteReason;
use crate::session::{CHANGING, Control, Epoch, OPAQUE, PinReason, Statement};

/// A backend lent to a session, and what is in flight on it.
pub struct Link {
    /// The backend.
    pub backend: Checkout,
    /// Whether it was chosen as the primary, so that it may run anything.
    pub as_primary: bool,
    /// Why it was chosen.
    pub reason: RouteReason,
    /// Notices that go in front of the answers owed, oldest first.
    pub(super) traces_told: Traces,
    /// What is in flight.
    pub flight: Flight,
    /// Requests sent over it.
    pub requests: u32,
    /// Whether a request ran code that nobody has read.
    pub opaque: bool,
    /// Whether one of the client's statements says that of itself, and not only what the catalogue does not know yet.
    pub ran_unread: bool,
    /// What requests may have left in the session since it was examined last.
    pub traces: SessionEffects,
    /// Those of them that come from before the block that is open.
    pub traces_outside: SessionEffects,
    /// Whether any request since the session was examined last began or ended a block.
    pub had_block: bool,
    /// Whether a request in flight may end the block that is open and begin another (COMMIT AND CHAIN).
    pub chains: bool,
    /// Where what was sent leads if nothing of it fails: for each of the last requests, the last in the lowest bit, whether a
    /// block is open behind it.
    pub ahead: u64,
    /// Whether a cancel request waits until the backend has the session's settings.
    pub cancel_waits: bool,
    /// Of the requests of [`Link::ahead`]: whether they say so, and are not only behind one that does.
    pub(super) ahead_said: u64,
    /// Whether the request sent last rolls its block back behind something else: what fails before that skips it.
    pub(super) may_skip_end: bool,
    /// Whether how texts are read has changed in the block that is open: its end may change it back.
    pub(super) reading_turned: bool,
    /// Whether something in flight may change how the texts behind it are read.
    pub(super) changes_reading: bool,
    /// Whether the open block has, or may have, a portal that ends it.
    pub(super) binds_end: bool,
    /// The settings among it, by name.
    pub changes: SettingChanges,
    /// What the batch being sent has reset, and a question behind it gives back; see [`Settings::restore_after`].
    pub(super) restore: Option<SettingChanges>,
    /// Whether a request has failed since the session was examined last.
    pub failed: bool,
    /// Whether DISCARD ALL or DISCARD SEQUENCES was sent, and nothing since that may draw from a sequence.
    pub discarded: bool,
    /// Whether a request may have written.
    pub wrote: bool,
    /// Whether all that was asked on it is proved to read, or begins and ends a transaction.
    pub only_read: bool,
    /// How the request sent last ends its block, if it does nothing else.
    pub ending: Option<Ending>,
    /// Whether a request may have changed objects of the database, and is not committed yet.
    pub ddl: bool,
    /// What was seen of LISTEN and NOTIFY.
    pub heard: Heard,
    /// What was said of channels on a standby.
    pub asides: Asides,
    /// Whether a transaction block is open that may not be.
    pub block_refused: bool,
    /// Whether the primary has said that it takes no writes (25006), and the client has not asked it to.
    pub read_only_primary: bool,
    /// Whether the backend is a primary's that is none any more as far as anybody knows, with no other in its place yet: no
    /// transaction begins on it.
    pub suspended: bool,
    /// Whether nothing but BEGIN and SET TRANSACTION was sent of the block that is open.
    pub block_is_empty: bool,
    /// Whether nothing but BEGIN, SET TRANSACTION and reads that leave nothing behind was sent of the block that is open.
    pub only_plain_reads: bool,
    /// Whether the block that is open stays here for the request that comes next: it was tried to move it.
    pub stays: bool,
    /// Whether the server was asked to answer what it has got of the batch whose rest is held back.
    pub asked_to_flush: bool,
    /// The modes of a block that was begun on another node and goes on here: its BEGIN goes before the first request.
    pub begins_with: Option<String>,
    /// Whether that block has failed, and is to fail here too.
    pub begins_failed: bool,
    /// Names that the client has for statements of the protocol and that the backend knows too, for SQL to find them: what
    /// the client says of them goes as it lies.
    pub lent: Vec<Lent>,
    /// Names that the client had when a DEALLOCATE ALL was sent of which nobody knows whether it has run, and has not given
    /// since.
    pub deallocated: HashSet<Box<[u8]>>,
    /// Whether one was sent of which nobody knows yet.
    pub(super) dropping: bool,
    /// Statements whose description Halyard has asked for on its own, oldest first.
    pub(super) asked: VecDeque<Arc<Statement>>,
    /// What is known of the statement before whose Bind the request being sent has stopped, if it has.
    pub(super) check: Option<Check>,
    /// Whether the request being sent may stop before a Bind.
    pub(super) stops: bool,
    /// Whether it may stop before what names a statement of which nobody knows whether it is there.
    pub(super) stops_for_names: bool,
    /// Whether an Execute of the request being sent may drop the backend's statements.
    pub(super) drops: bool,
    /// Portals that it has bound to what does not, if others may.
    pub(super) harmless: Vec<Box<[u8]>>,
    /// What portals may do that earlier requests have bound and not run.
    pub(super) left: Left,
    /// Whether it has, so that what the client's buffer holds is its rest.
    pub(super) stopped: bool,
    /// Whether a Close of Halyard's own is unanswered, so that an error may have skipped it.
    pub(super) closing: bool,
    /// Bytes of a frame that are still to be passed on to the backend.
    pub(super) streaming: usize,
    /// Whether the backend takes nothing any more; what it said before is still read.
    pub(super) write_failed: bool,
    /// Whether the backend came with bytes that nobody has looked at.
    pub(super) unread: bool,
    /// A limit that the client's request exceeded.
    pub(super) fault: Option<Report>,
    /// What is known of the transaction whose COMMIT was sent last.
    pub commit: Commit,
    /// Which run of its server the backend belongs to, if commits are to be resolved and that is known.
    pub incarnation: Option<Incarnation>,
    /// When the request was sent, if the time to its answer is to be told to the node's load.
    pub timed: Option<Instant>,
    /// Counts the link among the reads on the primary that no standby is known to be far enough for, if it is of these.
    pub behind: Option<ReadBehind>,
}

/// What portals may do when they are run: a batch may be cut between its Bind and its Execute, and a portal outlives its batch
/// in a block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Left {
    /// Drop the backend's statements.
    pub(super) drops: bool,
    /// Change what texts stand for.
    pub(super) moves: bool,
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
    /// Whether it began by opening a transaction block: all of it is in that block, unless something ends it.
    pub opens: bool,
    /// Whether a batch of it that is not closed yet has bound or run something.
    pub binds: bool,
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
    /// Nothing is in flight.
    pub const NONE: Self = Self {
        access: Access::Read,
        control: Control::None,
        begun: false,
        opens: false,
        binds: false,
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
        backend.prepared.lend(session);
        Self {
            backend,
            as_primary,
            reason,
            traces_told: Traces::default(),
            flight: Flight::NONE,
            requests: 0,
            opaque: false,
            ran_unread: false,
            traces: SessionEffects::NONE,
            traces_outside: SessionEffects::NONE,
            had_block: false,
            chains: false,
            ahead: 0,
            binds_end: false,
            may_skip_end: false,
            cancel_waits: false,
            ahead_said: 0,
            changes_reading: false,
            reading_turned: false,
            changes: SettingChanges::default(),
            restore: None,
            failed: false,
            discarded: false,
            wrote: false,
            only_read: true,
            ending: None,
            ddl: false,
            heard: Heard::default(),
            asides: Asides::default(),
            block_refused: false,
            read_only_primary: false,
            suspended: false,
            block_is_empty: false,
            only_plain_reads: true,
            stays: false,
            asked_to_flush: false,
            begins_with: None,
            begins_failed: false,
            lent: Vec::new(),
            deallocated: HashSet::new(),
            dropping: false,
            asked: VecDeque::new(),
            check: None,
            stops: false,
            stops_for_names: false,
            drops: false,
            harmless: Vec::new(),
            left: Left::default(),
            stopped: false,
            closing: false,
            streaming: 0,
            write_failed: false,
            unread,
            fault: None,
            commit: Commit::Unasked,
            incarnation: None,
            timed: None,
            behind: None,
        }
    }

    /// The client gives a name anew that it had given to SQL to end.
    #[inline]
    pub(super) fn take_name(&mut self, name: &[u8]) {
        if !self.deallocated.is_empty() {
            self.deallocated.remove(name);
        }
    }

    /// Whether an answer is owed, or a request was only half sent.
    pub fn in_flight(&self) -> bool {
        !self.backend.ledger.is_empty() || self.backend.ledger.batch_open() || self.streaming > 0
    }

    /// Whether the client waits for an answer, or has sent a part of what it is to be answered. What Halyard itself has asked
    /// does not count.
    pub fn is_owed_to_client(&self) -> bool {
        let ledger = &self.backend.ledger;
        ledger.readies() > 0 || ledger.batch_open() || ledger.copy_in() || self.streaming > 0
    }

    /// Whether the client has been answered but for the ReadyForQuery, which Halyard keeps back.
    pub fn keeps_ready_back(&self) -> bool {
        self.heard.withheld || self.block_refused
    }

    /// Whether the client has got the beginning of a frame whose end will never come.
    pub fn mid_frame(&self) -> bool {
        let passing = self.backend.passing;
        passing.remaining > 0 && passing.forward
    }

    /// Why a session would keep its backend for what such requests leave, if they leave anything.
    pub fn leaves(&self, traces: SessionEffects) -> Option<PinReason> {
        let left = traces.without(SessionEffects::DISCARD_ALL);
        let unread = self.ran_unread && left.intersects(OPAQUE);
        (left.intersects(CHANGING) || unread).then(|| PinReason::of(left))
    }

    /// The request that has stopped before a Bind, if one has, is sent again from its beginning.
    pub fn begin_anew(&mut self) {
        (self.stopped, self.check) = (false, None);
    }

    /// Whether requests may have changed what the session keeps its backend for, or has drawn on it.
    #[inline]
    pub fn is_to_be_examined(&self) -> bool {
        !self.traces.is_empty() || self.discarded
    }

    /// Bytes of the client's last frame that are still to come and have nowhere to go once this link is gone.
    pub fn unfinished(&self) -> usize {
        self.streaming
    }

    /// Whether a transaction block is open, as far as the server has said.
    pub fn in_block(&self) -> bool {
        self.backend.ledger.status() != b'I'
    }

    /// The server has said whether a block is open behind a request, behind which so many more were sent: what stands behind it
    /// and says nothing of blocks is where that is.
    pub(super) fn heed_status(&mut self, behind: usize, open: bool) {
        let mut at = behind;
        if at > 63 || (self.ahead >> at & 1 == 1) == open {
            return;
        }
        loop {
            self.ahead ^= 1 << at;
            if at == 0 || self.ahead_said >> (at - 1) & 1 == 1 {
                return;
            }
            at -= 1;
        }
    }

    /// As [`Link::ahead`], where something of the last request has failed.
    pub fn behind_failure(&self) -> u64 {
        self.ahead | u64::from(self.may_skip_end && self.ending.is_none())
    }

    /// Whether the backend is at a question of Halyard's own that goes before the client's request: were that cancelled, the
    /// request would run all the same, with another's settings.
    pub fn is_being_prepared(&self) -> bool {
        self.backend.ledger.current() == Some((Owed::Query, Fate::Skip))
    }

    /// Whether a block is open behind all that was sent, if nothing of it fails.
    pub fn leads_into_block(&self) -> bool {
        self.ahead & 1 == 1
    }

    /// Portals end with their block, or with the batch outside of one.
    #[inline]
    pub(super) fn forget_left_portals(&mut self) {
        if (self.left.drops || self.left.moves) && !self.in_flight() && !self.in_block() {
            self.left = Left::default();
        }
    }

    /// Whether the client is in a block that this backend has not been told of yet, or has not answered.
    pub fn takes_block_over(&self) -> bool {
        self.begins_with.is_some()
    }
}
