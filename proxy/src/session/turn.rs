//! The loop of turns.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use halyard_health::Evidence;
use tokio::sync::oneshot;

use super::demand::Demand;
use super::ends::no_blocks;
use super::inbox::{Doing, Presence, Registered};
use super::next::Next;
use super::obtain::Aim;
use super::offline::Offline;
use super::part::{Leftovers, cleanse};
use super::resolve;
use super::sight::Past;
use crate::app::{App, Place};
use crate::classify::{Access, Settings as Reading};
use crate::config::{ListenerRole, PoolMode};
use crate::error::{Report, SqlState};
use crate::held::Hold;
use crate::metrics::{Counter, Counters};
use crate::pool::{Draws, Group};
use crate::relay::{ClientLeg, End, Link, Memory, Relay};
use crate::routing::RouteReason;
use crate::wire::FrameError;
use crate::worker::{self, Local};

/// A client's session after its login.
pub struct Session {
    pub(super) app: Arc<App>,
    pub(super) group: Arc<Group>,
    pub(super) client: ClientLeg,
    pub(super) memory: Memory,
    pub(super) registered: Registered,
    pub(super) reading: Reading,
    pub(super) port: ListenerRole,
    pub(super) counters: Arc<Counters>,
    pub(super) link: Option<Link>,
    pub(super) demand: Option<Demand>,
    pub(super) offline: Option<Box<Offline>>,
    pub(super) cancelling: Option<oneshot::Receiver<()>>,
    /// Runs while the client is idle inside a transaction block, or without a backend, if there is a limit to that.
    pub(super) idle_timer: Option<Pin<Box<tokio::time::Sleep>>>,
    /// There while the next transaction of a session is held that keeps its backend.
    pub(super) held_beside: Option<HeldBeside>,
    /// Its number, which no session had before it.
    pub(super) number: u64,
    /// What a standby must have replayed so that the session reads its own writes.
    pub(super) past: Past,
    pub(super) to_primary: bool,
    /// Whether the next request ends a block that was lost, and that its client knows to have failed.
    pub(super) ends_failed_block: bool,
    pub(super) draining: bool,
}

/// Whether there is another turn.
pub(super) enum Turn {
    Again,
    Over,
    Farewell(Report),
    /// A COMMIT was lost whose outcome can be looked up; what its client is told if nobody knows.
    Resolve(Box<resolve::Lost>, Report),
}

impl Session {
    #[allow(
        clippy::too_many_arguments,
        reason = "called once, by the greeting, which has each of these at hand"
    )]
    pub(super) fn new(
        app: Arc<App>,
        group: Arc<Group>,
        client: ClientLeg,
        memory: Memory,
        registered: Registered,
        reading: Reading,
        port: ListenerRole,
        number: u64,
    ) -> Self {
        let counters = app.counters();
        Self {
            app,
            group,
            client,
            memory,
            registered,
            reading,
            port,
            counters,
            link: None,
            demand: None,
            offline: None,
            cancelling: None,
            idle_timer: None,
            held_beside: None,
            number,
            past: Past::default(),
            to_primary: false,
            ends_failed_block: false,
            draining: false,
        }
    }

    /// Serves the client until it leaves. A session that comes back is to go on on another thread.
    pub(crate) async fn run(mut self, place: &Place) -> Option<Session> {
        loop {
            let mut turn = self.turn().await;
            if let Turn::Resolve(lost, unknown) = turn {
                turn = Box::pin(self.resolve(*lost, unknown)).await;
            }
            match turn {
                Turn::Again if self.link.is_none() && !self.client.stream.is_tls() && place.sheds() => {
                    return Some(self);
                }
                Turn::Again | Turn::Resolve(..) => {}
                Turn::Over => break,
                Turn::Farewell(report) => {
                    self.say_farewell(&report).await;
                    break;
                }
            }
        }
        self.leave();
        None
    }

    /// Moves the client's socket to this thread's reactor. `None` if it cannot be: then the client is gone.
    pub(crate) fn arrive(mut self) -> Option<Session> {
        self.client.stream.register_anew().ok()?;
        self.counters = self.app.counters();
        Some(self)
    }

    async fn turn(&mut self) -> Turn {
        if self.link.is_none() {
            match poll_fn(|cx| worker::with(|local| self.poll_next(cx, local))).await {
                Next::Demand => {}
                Next::Gone => return Turn::Over,
                Next::Broke(error) => return Turn::Farewell(broke(error)),
                Next::Leave => return Turn::Farewell(leaving()),
                Next::Idled => return Turn::Farewell(idle_session()),
            }
            if let Some(demand) = self.demand
                && self.group.mode == PoolMode::Statement
                && self.begins_block(&demand)
            {
                self.fail_demand(no_blocks());
                return Turn::Again;
            }
            if let Some(demand) = self.demand
                && self.must_listen_first(&demand)
                && let Some(turn) = Box::pin(self.listen_first(&demand)).await
            {
                return turn;
            }
            if let Some(demand) = self.demand
                && demand.class.names_own_setting()
                && let Some(turn) = Box::pin(self.see_to_own_settings()).await
            {
                return turn;
            }
            if let Some(demand) = self.demand {
                let aim = self.aim(&demand);
                if !worker::with(|local| self.try_obtain(aim, local)) {
                    if !self.ends_failed_block && self.answer_known_parse(&demand) {
                        return Turn::Again;
                    }
                    if let Some(turn) = Box::pin(self.obtain(aim, demand.bytes)).await {
                        return turn;
                    }
                }
            }
        } else if self.offline.is_some()
            && poll_fn(|cx| worker::with(|local| self.poll_answer_beside(cx, local))).await
        {
            return Turn::Over;
        }
        if std::mem::take(&mut self.ends_failed_block)
            && let Some(link) = &mut self.link
        {
            (link.begins_with, link.begins_failed) = (Some(String::new()), true);
        }
        if self.has_settings_to_apply_first()
            && let Some(turn) = Box::pin(self.apply_settings_first()).await
        {
            return turn;
        }
        let end = poll_fn(|cx| worker::with(|local| self.poll_relay(cx, local))).await;
        match end {
            End::Settled => {
                if self.cancelling.is_some() {
                    self.finish_cancel().await;
                }
                if self.link.as_ref().is_some_and(Link::is_to_be_examined) {
                    return Box::pin(self.examine()).await;
                }
                self.settle();
                Turn::Again
            }
            other => Box::pin(self.unusual(other)).await,
        }
    }

    fn poll_relay(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Poll<End> {
        let replica_port = self.role(false) == ListenerRole::Replica;
        let Some(link) = &mut self.link else {
            return Poll::Ready(End::Settled);
        };
        let mut relay = Relay {
            client: &mut self.client,
            link,
            memory: &mut self.memory,
            demand: &mut self.demand,
            inbox: &self.registered.inbox,
            definitions: &self.group.catalog,
            reading: &mut self.reading,
            registry: &self.app.statements,
            limits: &self.app.relay_limits,
            consistency: &self.app.consistency,
            counters: &self.counters,
            pauses: &self.app.operations.pauses,
            database: &self.group.database,
            replica_port,
            refuses_blocks: self.group.mode == PoolMode::Statement,
        };
        let end = relay.poll(cx, local);
        if end.is_ready() {
            self.client.input.retire(&mut local.buffers);
        } else {
            let idle = self
                .link
                .as_ref()
                .is_some_and(|link| link.backend.ledger.is_empty() && link.in_block());
            if self.draining && self.may_leave() {
                return Poll::Ready(End::Interrupted);
            }
            let held = self.poll_hold(cx);
            self.show_work();
            if self.idles_too_long(idle, cx) {
                return Poll::Ready(End::LimitExceeded(idle_in_transaction()));
            }
            if let Poll::Ready(refused) = held {
                return Poll::Ready(End::HeldNoLonger(refused.map(Box::new)));
            }
        }
        end
    }

    /// Ready when the next transaction of a session that keeps its backend has been held, by a pause or for want of a primary,
    /// for as long as it may be, or may not be held at all: then why.
    fn poll_hold(&mut self, cx: &mut Context<'_>) -> Poll<Option<Report>> {
        let link = self.link.as_ref().zip(self.demand.as_ref());
        let held = link.filter(|(link, _)| {
            let pauses = &self.app.operations.pauses;
            !link.in_flight()
                && !link.in_block()
                && (link.suspended || pauses.hold(&self.group.database, link.as_primary))
        });
        let Some((link, demand)) = held else {
            self.held_beside = None;
            return Poll::Pending;
        };
        if self.held_beside.is_none() {
            let held_as = if link.suspended {
                Counter::HeldNoPrimary
            } else {
                Counter::HeldPaused
            };
            let hold = match self.app.hold(&self.group, demand.bytes, held_as) {
                Ok(hold) => hold,
                Err(report) => return Poll::Ready(Some(report)),
            };
            self.held_beside = Some(HeldBeside {
                limit: Box::pin(tokio::time::sleep(self.hold_limit())),
                _hold: hold,
            });
        }
        let held = self
            .held_beside
            .as_mut()
            .expect("it was made if it was not there");
        held.limit.as_mut().poll(cx).map(|()| None)
    }

    /// Shows what the client does with the backend that it has.
    fn show_work(&self) {
        let Some(link) = &self.link else { return };
        let doing = match (link.in_flight(), link.in_block()) {
            (true, _) => Doing::Active,
            (false, true) => Doing::IdleInTransaction,
            (false, false) if self.held_beside.is_some() => Doing::Held,
            (false, false) => Doing::Idle,
        };
        let backend = Some((link.backend.node().id, link.as_primary));
        self.registered.inbox.set_presence(Presence { doing, backend });
    }

    /// Shows why the session keeps its backend, if it does.
    pub(super) fn show_pin(&self) {
        let now = self.group.clock.load(std::sync::atomic::Ordering::Relaxed);
        self.registered.inbox.set_pin(self.memory.pin, now);
    }

    /// Whether a client has said nothing inside a transaction block for longer than it may.
    fn idles_too_long(&mut self, idle: bool, cx: &mut Context<'_>) -> bool {
        let Some(limit) = self.app.config.limits.idle_in_transaction_timeout else {
            return false;
        };
        if !idle {
            self.idle_timer = None;
            return false;
        }
        let timer = self
            .idle_timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        timer.as_mut().poll(cx).is_ready()
    }

    /// Gives the backend back; the next request may go anywhere.
    pub(super) fn settle(&mut self) {
        let Some(link) = self.link.take() else { return };
        self.client.input.release_held();
        self.memory.repeats = 0;
        self.memory.replacements = 0;
        if link.read_only_primary {
            let node = link.backend.node().id;
            self.app.signals.raise(node, Evidence::ReadOnlyPrimary);
        }
        self.count_turn(&link);
        self.note_turn(&link);
        self.idle_timer = None;
        self.registered.inbox.set_doing(Doing::Idle);
        let leftovers = Leftovers::of(&link);
        if leftovers != Leftovers::Nothing {
            // It is taken away before the next client comes.
            let mut backend = link.backend;
            backend.set_aside();
            tokio::spawn(cleanse(backend, leftovers));
        } else if let Some(settled) = link.backend.settled() {
            link.backend.release(settled);
        }
    }

    fn count_turn(&self, link: &Link) {
        let (statements, transactions) = if link.as_primary {
            (Counter::StatementsPrimary, Counter::TransactionsPrimary)
        } else {
            (Counter::StatementsStandby, Counter::TransactionsStandby)
        };
        self.counters.add(statements, u64::from(link.requests));
        self.counters.add(transactions, 1);
    }

    /// Where the request is to go. A batch whose Sync has not come may go on with anything, and has to stay where it
    /// began.
    #[inline]
    fn aim(&mut self, demand: &Demand) -> Aim {
        let class = demand.class;
        let role = self.role(class.hinted);
        let by_class = if class.hinted {
            RouteReason::Hint
        } else {
            RouteReason::Class
        };
        let (access, reason) = if std::mem::take(&mut self.to_primary) {
            (Access::Write, RouteReason::Refused)
        } else if class.access == Access::Write {
            (Access::Write, by_class)
        } else if !demand.closed {
            (Access::Write, RouteReason::Unfinished)
        } else if class.keeps_state() || self.memory.settings.names_temporary_schema() {
            (Access::Write, RouteReason::State)
        } else if self.memory.settings.serializable() {
            (Access::Write, RouteReason::Serializable)
        } else if self.group.mode == PoolMode::Session {
            (Access::Write, RouteReason::SessionPooling)
        } else {
            (Access::Read, by_class)
        };
        let reason = match role {
            ListenerRole::Auto => reason,
            _ if self.port != ListenerRole::Auto => RouteReason::Port,
            _ if role == self.group.policy.route.as_port() => RouteReason::Policy,
            _ => RouteReason::Setting,
        };
        let draws = match class.asks_for_sequence_values() {
            true => Draws::Asks,
            false if demand.closed && class.repeatable => Draws::Nothing,
            false => Draws::Maybe,
        };
        Aim {
            access,
            role,
            reason,
            draws,
        }
    }
}

/// A statement that is held beside the backend that its session keeps.
pub(super) struct HeldBeside {
    /// For how long it may be.
    limit: Pin<Box<tokio::time::Sleep>>,
    _hold: Hold,
}

pub(super) fn broke(error: FrameError) -> Report {
    let sqlstate = match error {
        FrameError::ReservedName => SqlState::RESERVED_NAME,
        FrameError::UnknownType(_) | FrameError::Length { .. } => SqlState::PROTOCOL_VIOLATION,
    };
    Report::fatal(sqlstate, error.to_string())
}

/// In PostgreSQL's words (`ProcessInterrupts`).
fn idle_session() -> Report {
    Report::fatal(
        SqlState::IDLE_SESSION_TIMEOUT,
        "terminating connection due to idle-session timeout",
    )
}

fn idle_in_transaction() -> Report {
    Report::fatal(
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        "terminating connection due to idle-in-transaction timeout",
    )
    .with_detail("limits.idle_in_transaction_timeout is over.")
}

pub(super) fn leaving() -> Report {
    Report::fatal(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    )
    .with_detail("Halyard is being shut down.")
}
