//! A lost backend: what the session forgets with it, and what its client is told.

use std::sync::Arc;

use halyard_health::Evidence;

use super::ends::no_blocks;
use super::inbox::Doing;
use super::loss::{Consequence, LostState, Reach, consequence};
use super::obtain::cancelled;
use super::offline::Offline;
use super::resolve;
use super::turn::{Session, Turn};
use super::{Control, PinReason};
use crate::classify::{SessionEffects, SettingChanges};
use crate::error::{Report, SqlState};
use crate::metrics::Counter;
use crate::relay::ledger::Owed;
use crate::relay::{Commit, Ending, Link, Lost};
use crate::routing::Standing;
use crate::wire;

/// Times that one request is sent again after its node was lost: a read that crashes its server must not go
/// round the cluster.
const REPEATS_MAX: u8 = 2;

/// What the client is due of what was in flight.
struct Due {
    in_flight: bool,
    /// ReadyForQuery messages.
    readies: usize,
    batch_open: bool,
    /// [`Link::behind_failure`].
    ahead: u64,
    /// The answer to the last request, where its block has ended as it wanted.
    end: Vec<u8>,
    resolvable: Option<resolve::Lost>,
}

impl Session {
    pub(super) fn on_loss(&mut self, lost: &Lost) -> Turn {
        let Some(link) = self.link.take() else {
            return Turn::Again;
        };
        self.held_beside = None;
        let node = Arc::clone(link.backend.node());
        if let Some(said) = &lost.said
            && said.sqlstate == SqlState::PROTOCOL_VIOLATION
            && link.is_owed_to_client()
        {
            // The server ends a connection for what the client sent on it.
            return Turn::Farewell(said.clone());
        }
        if let Some(said) = &lost.said
            && said.sqlstate == SqlState::IDLE_SESSION_TIMEOUT
            && self.memory.settings.may_idle_out()
            && !link.is_owed_to_client()
        {
            // The client has asked for that.
            return Turn::Farewell(said.clone());
        }
        if link.as_primary {
            // A server that ends this connection may be about to end the others: no write goes there before that is known.
            self.app.signals.doubt(node.id, evidence(lost));
        } else {
            self.app.signals.raise(node.id, evidence(lost));
        }
        tracing::debug!(node = %node.name, ?lost, "a backend was lost");
        if link.keeps_ready_back() && !link.is_owed_to_client() {
            self.avoid(node.id);
            return self.lose_before_ready(link);
        }
        let resolvable = self.resolvable(&link);
        let end = end_of_block(&link);
        let state = LostState {
            in_block: link.in_block() || link.takes_block_over(),
            in_flight: link.is_owed_to_client(),
            flight: link.flight,
            pin: self.kept_on(&link),
            mid_frame: link.mid_frame(),
            resolvable: resolvable.is_some(),
            ending: end.as_ref().map(|end| end.0),
            alone: link.backend.ledger.readies() == 1,
            reach: reach(&link, self.app.routing.load().standing[usize::from(node.id.0)]),
        };
        let mut consequence = consequence(&state, &node.name, &cause(lost));
        if link.wrote || link.flight.answered {
            // What was told as unknown may have taken effect, and what was told is not taken back.
            self.note_turn(&link);
        }
        self.avoid(node.id);
        if link.ddl {
            self.group.catalog.invalidate();
        }
        let due = Due {
            in_flight: state.in_flight,
            readies: link.backend.ledger.readies(),
            batch_open: link.backend.ledger.batch_open(),
            ahead: link.behind_failure(),
            end: end.map(|end| end.1).unwrap_or_default(),
            resolvable,
        };
        self.client.ignoring = link.unfinished();
        let cancel_waits = link.cancel_waits;
        self.heed_resets(&link);
        drop(link);
        let keeps = matches!(consequence, Consequence::EndBlock(..)) && state.alone;
        if keeps {
            self.memory.keep_all();
        } else if !matches!(consequence, Consequence::Resolve(_)) {
            self.memory.undo_all();
        }
        self.forget_backend();
        if !matches!(consequence, Consequence::Resolve(_)) {
            self.revert_listening();
        }
        if cancel_waits {
            drop(self.registered.inbox.take_cancels());
        }
        if consequence == Consequence::Repeat && cancel_waits {
            consequence = Consequence::Fail(cancelled());
        }
        if consequence == Consequence::Repeat && self.memory.repeats >= REPEATS_MAX {
            consequence = Consequence::Fail(lost_each_time(self.memory.repeats + 1, &node.name));
        }
        self.counters.add(consequence.counter(), 1);
        if consequence == Consequence::HangUp {
            tracing::warn!(node = %node.name, "a node was lost in the middle of a row: its client is disconnected");
        } else {
            self.take_back_what_was_told();
        }
        self.follow(consequence, due)
    }

    /// The client has its answer and waits for the ReadyForQuery, which Halyard has kept back for a question of its own.
    fn lose_before_ready(&mut self, link: Link) -> Turn {
        if link.block_refused {
            // The connection is closed, which rolls back.
            self.note_turn(&link);
            if link.backend.ledger.status() != b'E' {
                no_blocks().encode(self.client.out.end());
            }
            drop(link);
            self.client.input.release_held();
            self.memory.undo_all();
            self.forget_backend();
            self.revert_listening();
            self.take_back_what_was_told();
        } else {
            if let Some(listening) = self.memory.listening.as_mut().filter(|_| link.heard.changes) {
                listening.assume();
            }
            self.link = Some(link);
            self.lose_settled_link();
        }
        wire::ready_for_query(self.client.out.end(), b'I');
        Turn::Again
    }

    /// Does what follows from a loss.
    fn follow(&mut self, consequence: Consequence, due: Due) -> Turn {
        let size_max = self.app.relay_limits.statement_size_max;
        match consequence {
            Consequence::Nothing => self.client.input.release_held(),
            Consequence::HangUp => return Turn::Over,
            Consequence::Repeat => {
                self.memory.repeats += 1;
                // All of it that has come lies in the buffer, and the rest comes behind it.
                self.client.ignoring = 0;
                self.client.input.rewind();
                self.memory.repeating = true;
                self.demand = None;
            }
            Consequence::Resolve(unknown) => {
                self.client.input.release_held();
                self.demand = None;
                if let Some(lost) = due.resolvable {
                    return Turn::Resolve(Box::new(lost), unknown);
                }
            }
            Consequence::EndBlock(_, report) => {
                self.client.input.release_held();
                self.demand = None;
                let out = self.client.out.end();
                for _ in 1..due.readies {
                    report.encode(out);
                    wire::ready_for_query(out, b'E');
                }
                out.extend_from_slice(&due.end);
                if due.readies == 1 && report.sqlstate == SqlState::ADMIN_SHUTDOWN {
                    self.offline = Some(Box::new(Offline::fail_next(report, size_max)));
                }
            }
            Consequence::Fail(report) => self.tell_loss(&report, &due),
            Consequence::FailBlock(report) if due.in_flight => self.tell_loss(&report, &due),
            Consequence::FailBlock(report) => {
                // What was looked at and not sent is answered like the rest.
                self.demand = None;
                let insists = report.sqlstate == SqlState::ADMIN_SHUTDOWN;
                self.offline = Some(Box::new(Offline::fail_block(report, insists, size_max)));
            }
            Consequence::FailNext(report) => {
                self.demand = None;
                self.offline = Some(Box::new(Offline::fail_next(report, size_max)));
            }
        }
        Turn::Again
    }

    /// The transaction whose COMMIT is all that is in flight, if its outcome can be looked up.
    fn resolvable(&self, link: &Link) -> Option<resolve::Lost> {
        let alone = link.backend.ledger.readies() == 1 && !link.backend.ledger.batch_open();
        match link.commit {
            Commit::Known(committing) if alone => Some(resolve::Lost {
                committing,
                node: link.backend.node().id,
                incarnation: link.incarnation,
                success: resolve::success(link.backend.ledger.due(), Ending::Commit),
                kept: self.kept_on(link),
                left: link.leaves(link.traces),
                changes: link.changes.clone(),
                heard: link.heard,
            }),
            _ => None,
        }
    }

    /// What the session keeps on its backend. In session pooling that is not reset when code has run that nobody has read:
    /// who knows what it still has there?
    pub(super) fn kept_on(&self, link: &Link) -> Option<PinReason> {
        let unread = || self.memory.pin.filter(|_| link.ran_unread);
        // What an earlier request of a pipeline has left was answered, and not asked after yet. What was left in the block that
        // is lost goes as that does.
        let unasked = || {
            let opens = link.flight.opens && link.flight.control < Control::MayCommit;
            match (link.in_block(), link.flight.answered && !opens) {
                (true, _) => link.leaves(link.traces_outside),
                (false, true) => link.leaves(link.traces),
                (false, false) => None,
            }
        };
        self.memory.kept().or_else(unread).or_else(unasked)
    }

    /// What was reset outside of any block, and not asked after yet, stays reset: nobody gets back a role that it has laid
    /// down.
    pub(super) fn heed_resets(&mut self, link: &Link) {
        if link.in_block() || link.takes_block_over() || link.had_block || link.failed {
            return;
        }
        let changes = &link.changes;
        if changes.resets_all || link.traces.intersects(SessionEffects::DISCARD_ALL) {
            self.adopt_settings(self.memory.startup.with(Vec::new()));
            self.memory.keep_told();
        } else if !changes.resets.is_empty() {
            let startup = Arc::clone(&self.memory.startup);
            let before = |name: &String| (name.clone(), startup.value(name).map(str::to_owned));
            let reset = changes.resets.iter().map(before).collect();
            self.adopt_settings(self.memory.settings.with(reset));
            self.memory.keep_told();
        }
    }

    /// What a transaction that has committed made of its session's settings went with its connection, and its client is told
    /// so. They are what they were at startup: what was laid down, a role or a tenant's schema, does not come back.
    pub(super) fn forget_settings(&mut self, changes: &SettingChanges) {
        let startup = Arc::clone(&self.memory.startup);
        let settings = if changes.resets_all {
            startup.with(Vec::new())
        } else {
            let before = |name: &String| (name.clone(), startup.value(name).map(str::to_owned));
            self.memory
                .settings
                .with(changes.names.iter().map(before).collect())
        };
        self.adopt_settings(settings);
    }

    /// Tells the client what its settings are again that went with its backend, as a server does that rolls back.
    pub(super) fn take_back_what_was_told(&mut self) {
        for (name, value) in self.memory.untold() {
            wire::write_parameter_status(self.client.out.end(), &name, &value);
            self.memory.tell(&name, &value);
            self.reading.heed(&name, &value);
        }
        self.memory.keep_told();
    }

    /// What the session had on a backend that is lost is gone with it.
    fn forget_backend(&mut self) {
        self.cancelling = None;
        self.idle_timer = None;
        self.memory.keep_nothing();
        self.show_pin();
        self.registered.inbox.set_doing(Doing::Idle);
    }

    /// Answers everything that the lost node still owed. Where the client's words have led it into a block it is in a failed
    /// one, so that nothing of what it sends next is run by itself.
    fn tell_loss(&mut self, report: &Report, due: &Due) {
        self.client.input.release_held();
        self.demand = None;
        self.counters.add(Counter::of_error(report.sqlstate), 1);
        let out = self.client.out.end();
        let behind = usize::from(due.batch_open);
        for number in (behind..due.readies + behind).rev() {
            report.encode(out);
            wire::ready_for_query(out, if is_open(due.ahead, number) { b'E' } else { b'I' });
        }
        if due.batch_open {
            report.encode(out);
        }
        let failed_block = is_open(due.ahead, 0);
        if failed_block || due.batch_open {
            let size_max = self.app.relay_limits.statement_size_max;
            self.offline = Some(Box::new(Offline::told(failed_block, due.batch_open, size_max)));
        }
    }

    /// Tells what became of the one request that was in flight, the end of a transaction.
    pub(super) fn tell_end_of_transaction(&mut self, report: &Report) {
        self.client.input.release_held();
        self.demand = None;
        self.counters.add(Counter::of_error(report.sqlstate), 1);
        let out = self.client.out.end();
        report.encode(out);
        wire::ready_for_query(out, b'I');
    }

    /// Has the next statement fail.
    pub(super) fn fail_demand(&mut self, report: Report) {
        self.counters.add(Counter::of_error(report.sqlstate), 1);
        self.demand = None;
        self.client.input.rewind();
        self.memory.early.clear();
        self.memory.repeating = false;
        self.to_primary = false;
        self.revert_listening();
        let size_max = self.app.relay_limits.statement_size_max;
        self.offline = Some(Box::new(Offline::fail_next(report, size_max)));
    }

    /// Has the next statement of a session fail that goes on with its backend, whose transaction status is this.
    pub(super) fn fail_demand_beside(&mut self, report: Report, status: u8) {
        self.counters.add(Counter::of_error(report.sqlstate), 1);
        self.demand = None;
        self.client.input.release_held();
        let size_max = self.app.relay_limits.statement_size_max;
        self.offline = Some(Box::new(Offline::fail_next_beside(report, status, size_max)));
    }
}

/// Whether a block is open behind a request, counted from the last. Of those before the last that are remembered the first
/// stands for all.
fn is_open(ahead: u64, number: usize) -> bool {
    ahead >> number.min(63) & 1 == 1
}

/// How the block ends with the last request in flight, and the whole answer to that, if it does nothing else.
fn end_of_block(link: &Link) -> Option<(Ending, Vec<u8>)> {
    let ledger = &link.backend.ledger;
    let ending = link.ending?;
    let due: Vec<Owed> = ledger.due().collect();
    let ends = |owed: &Owed| matches!(owed, Owed::Sync | Owed::Query | Owed::FunctionCall);
    if due.iter().filter(|owed| ends(owed)).count() != ledger.readies() {
        // Some of it belongs to questions of Halyard's own.
        return None;
    }
    let before = due.iter().rposition(ends)?;
    let begins = due[..before].iter().rposition(ends).map_or(0, |end| end + 1);
    let last = &due[begins..];
    let alone = ledger.readies() == 1;
    let half_told = alone && link.flight.answered && last[0] == Owed::Query;
    // What was given a name before is taken back, and this with it.
    let names = !alone && last.contains(&Owed::Parse);
    // In a block that had failed a COMMIT is a ROLLBACK.
    let ending = if alone && ledger.status() == b'E' {
        Ending::Rollback
    } else {
        ending
    };
    let told = match (alone, ending) {
        // It ends a block that has failed by what was lost before it.
        (false, Ending::Commit) => Ending::Rollback,
        _ => ending,
    };
    (!half_told && !names).then(|| (ending, resolve::success(last.iter().copied(), told)))
}

fn reach(link: &Link, standing: Standing) -> Reach {
    // One that was promoted under its session writes. From version 14 on a server says so behind the first BEGIN that can write
    // (`InitPostgres`, `ReportChangedGUCOptions`).
    let mut parameters = link.backend.parameters.iter();
    let promoted = standing == Standing::Primary
        || parameters.any(|(name, value)| name == "in_hot_standby" && value == "off");
    match (link.as_primary || promoted, link.only_read) {
        (false, true) => Reach::ReadOnStandby,
        (true, true) => Reach::ReadOnPrimary,
        (false, false) => Reach::WroteNothing,
        (true, false) => Reach::Anything,
    }
}

fn lost_each_time(times: u8, node: &str) -> Report {
    Report::error(
        SqlState::CRASH_SHUTDOWN,
        "the node was lost each time the statement ran",
    )
    .with_detail(format!("It was sent {times} times, last to node \"{node}\"."))
}

fn evidence(lost: &Lost) -> Evidence {
    match lost.said.as_ref().map(|report| report.sqlstate) {
        Some(SqlState::ADMIN_SHUTDOWN) => Evidence::AdminShutdown,
        Some(SqlState::CRASH_SHUTDOWN) => Evidence::CrashShutdown,
        Some(SqlState::CANNOT_CONNECT_NOW) => Evidence::CannotConnectNow,
        _ => Evidence::ConnectionReset,
    }
}

fn cause(lost: &Lost) -> String {
    match (&lost.said, lost.error) {
        (Some(report), _) => format!("Its last word was: {} ({}).", report.message, report.sqlstate),
        (None, Some(std::io::ErrorKind::InvalidData)) => "It broke the protocol.".to_owned(),
        (None, Some(kind)) => format!("{kind}."),
        (None, None) => "It closed the connection without a word.".to_owned(),
    }
}
