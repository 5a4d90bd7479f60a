//! What LISTEN, UNLISTEN and NOTIFY need of the relay.
//!
//! The statements run on the backend like any other. Around them the relay sees to three things:
//! - before anything that could change the registrations, or leave a transaction open in which they might be changed,
//!   the backend is **brought** to listen to what its client listens to: then what it listens to afterwards is what
//!   was committed, through savepoints, rollbacks and errors alike;
//! - the ReadyForQuery behind such a transaction is **withheld** until the session has asked the backend;
//! - what a backend itself is notified of is dropped: the client hears it from the hub, once and in order.

use super::{Flight, Relay};
use crate::notify::Listening;
use crate::relay::ledger::{Fate, Owed};
use crate::session::{Control, Demand};
use crate::wire;

/// What was seen on a link of LISTEN and NOTIFY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Whether the backend listens to what its client listens to.
    pub brought: bool,
    /// Whether the backend listens to channels that it was not brought to: code that nobody has read came to them.
    pub astray: bool,
    /// Whether the client may listen to other channels when its transaction is over.
    pub changes: bool,
    /// Whether a client that listens has notified: it hears itself before its transaction is told to be over.
    pub notifies: bool,
    /// Whether the client waits for the ReadyForQuery behind it.
    pub withheld: bool,
}

impl Heard {
    /// Whether the next ReadyForQuery outside of a transaction is withheld.
    fn withholds(self) -> bool {
        self.changes || self.notifies
    }
}

impl Relay<'_> {
    /// Whether what the session listens to is its own backend's affair: on a port for replicas, where LISTEN is refused as
    /// a standby does.
    pub(super) fn listens_natively(&self) -> bool {
        self.replica_port && !self.link.as_primary
    }

    /// Whether the backend has to be brought to the client's channels before a request; on a standby none listens. A block that
    /// goes on here has been opened when the request has run.
    fn is_unbrought(&self, demand: &Demand) -> bool {
        let open_ended = Self::is_open_ended(demand) || self.link.takes_block_over();
        self.link.as_primary && !self.link.heard.brought && open_ended
    }

    /// Whether a request may leave more behind than a statement by itself: then the backend has to be brought to the
    /// session's channels before it.
    fn is_open_ended(demand: &Demand) -> bool {
        let class = demand.class;
        class.control != Control::None
            || !demand.closed
            || class.changes_listening()
            || class.asks_listening()
    }

    /// Whether the channels that a request names have to be heard before it is sent.
    fn names_unheard(&self, demand: &Demand) -> bool {
        let ready = self
            .memory
            .listening
            .as_ref()
            .is_some_and(|listening| listening.ready);
        let skipped = self.link.backend.ledger.skips_until_sync();
        demand.class.listens() && !ready && !skipped && !self.listens_natively()
    }

    /// Whether a request may end a transaction that listens to new channels, and what was committed before that end has
    /// not been told from what comes behind it.
    fn may_commit_unfresh(&self, demand: &Demand) -> bool {
        let fresh = |listening: &Listening| listening.fresh || !listening.has_tentative();
        demand.class.control == Control::MayCommit
            && self.link.heard.changes
            && self.link.in_block()
            && !self.listens_natively()
            && !self.link.backend.ledger.skips_until_sync()
            && !self.memory.listening.as_deref().is_none_or(fresh)
    }

    /// Whether a request has to wait for what was sent before it, or for its channels.
    pub(super) fn waits_to_listen(&self, demand: &Demand) -> bool {
        if self.memory.listening.is_none() && !demand.class.listens() {
            return false;
        }
        let ledger = &self.link.backend.ledger;
        if self.listens_natively() || ledger.copy_in() {
            return false;
        }
        if self.names_unheard(demand) || self.may_commit_unfresh(demand) {
            return true;
        }
        let class = demand.class;
        let withholds = class.changes_listening() || class.notifies();
        (self.is_unbrought(demand) && !ledger.is_empty()) || (withholds && ledger.readies() > 0)
    }

    /// Whether the hub has to tell something before a request can be sent.
    pub(super) fn must_listen_first(&self, demand: &Demand) -> bool {
        !self.link.backend.ledger.copy_in() && (self.names_unheard(demand) || self.may_commit_unfresh(demand))
    }

    /// Whether requests have to wait until what was withheld is told.
    pub(super) fn is_withholding(&self) -> bool {
        let (heard, ledger) = (self.link.heard, &self.link.backend.ledger);
        heard.withheld || (heard.withholds() && ledger.readies() > 0 && !ledger.copy_in())
    }

    /// Takes note of a request that is about to be sent, and brings the backend to the session's channels before it
    /// where that has to be.
    pub(super) fn follow_listening(&mut self, demand: &Demand) {
        if self.memory.listening.is_none() {
            return;
        }
        self.seek_asides(demand);
        if self.listens_natively() {
            return;
        }
        let unbrought = self.is_unbrought(demand);
        let class = demand.class;
        let backend = &mut *self.link.backend;
        let ledger = &mut backend.ledger;
        let at_rest = ledger.status() == b'I' && !ledger.batch_open() && !ledger.copy_in();
        if let Some(listening) = &mut self.memory.listening {
            if unbrought && at_rest {
                if let Some(sql) = listening.statements() {
                    ledger.owe(Owed::Query, Fate::Skip);
                    wire::query(backend.out.end(), &sql);
                    // A Query ends the unnamed statement (manual, section 55.2.3).
                    backend.unnamed = None;
                }
                self.link.heard.brought = true;
            }
            listening.ready &= !class.listens();
            listening.fresh = false;
        }
        self.link.heard.changes |= class.changes_listening();
        // A standby refuses NOTIFY.
        self.link.heard.notifies |= self.link.as_primary && class.notifies();
    }

    /// Whether a ReadyForQuery is withheld. `forward` tells whether it is the client's at all.
    pub(super) fn withholds(&mut self, forward: bool, status: Option<u8>) -> bool {
        let Flight { refused, .. } = self.link.flight;
        let turned = self
            .memory
            .listening
            .as_ref()
            .is_some_and(|listening| listening.turned);
        // Behind it nothing may be under way.
        let ledger = &self.link.backend.ledger;
        let turns = turned && ledger.readies() == 0 && !ledger.batch_open() && self.link.streaming == 0;
        let heard = &mut self.link.heard;
        let withholds = heard.withholds() || turns;
        heard.withheld = forward && status == Some(b'I') && withholds && refused.is_none();
        heard.withheld
    }

    /// Whether there is something for the client to hear, now that it keeps a backend that has nothing to say.
    pub(super) fn has_mail(&self) -> bool {
        let listening = self.memory.listening.as_ref();
        self.client.out.is_empty() && listening.is_some_and(|listening| listening.has_mail())
    }
}
