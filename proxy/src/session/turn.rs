//! The loop of turns, and how each way of ending one leads to the next.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use halyard_health::Evidence;
use tokio::sync::oneshot;

use super::class::CHANGING;
use super::demand::{Demand, Mood, Scan, Scanner, learn_write};
use super::inbox::{Doing, Message, Messages, Presence, Registered};
use super::loss::{Consequence, LostState, consequence};
use super::obtain::{Aim, paused_too_long};
use super::offline::{Answered, Library, Offline};
use super::part::{Leftovers, cleanse};
use super::resolve;
use super::sight::Past;
use super::{Control, PinReason};
use crate::app::{App, Place};
use crate::classify::{Access, Rule, SessionEffects, Settings as Reading};
use crate::config::{ListenerRole, PoolMode};
use crate::error::{Report, SqlState};
use crate::login::send_cancel;
use crate::metrics::{Counter, Counters};
use crate::pool::{Group, exchange};
use crate::relay::{ClientLeg, Commit, End, Link, Lost, Memory, Received, Refusal, Relay, runs};
use crate::routing::{RouteReason, Standing};
use crate::wire::{self, FrameError, HEADER_SIZE, Header, frontend, parse_parts};
use crate::worker::{self, Local};

/// Times that one request is sent again after its node was lost: a read that crashes its server must not go
/// round the cluster.
const REPEATS_MAX: u8 = 2;
/// How long a server may take to roll back a block that was refused.
const ROLLBACK_LIMIT: Duration = Duration::from_secs(5);
/// How long requests may run whose client has said goodbye behind them.
const FINISH_LIMIT: Duration = Duration::from_secs(300);

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
    /// Runs while the client is idle inside a transaction block, if there is a limit to that.
    idle_timer: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Runs while a pause holds the next transaction of a session that keeps its backend.
    hold_timer: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Its number, which no session had before it.
    pub(super) number: u64,
    /// What a standby must have replayed so that the session reads its own writes.
    pub(super) past: Past,
    pub(super) to_primary: bool,
    pub(super) draining: bool,
}

/// How the wait for the next request ends.
enum Next {
    Demand,
    Gone,
    Broke(FrameError),
    Leave,
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
            hold_timer: None,
            number,
            past: Past::default(),
            to_primary: false,
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
                    if self.answer_known_parse(&demand) {
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

    /// Waits for a request, answering what is Halyard's to answer.
    fn poll_next(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Poll<Next> {
        loop {
            // Until it does not ring: only then the next message wakes this task.
            while self.registered.inbox.is_ringing(cx) {
                let messages = self.registered.inbox.take();
                if messages.has(Message::Terminate) {
                    return Poll::Ready(Next::Leave);
                }
                self.draining |= messages.has(Message::Drain);
                // There is nothing to cancel.
                drop(self.registered.inbox.take_cancels());
            }
            if self.is_to_be_answered_offline() && self.answer_offline(local) {
                return Poll::Ready(Next::Gone);
            }
            self.deliver();
            if self.offline.is_none() && self.client.ignoring == 0 {
                match self.scan(local) {
                    Some(next) => return Poll::Ready(next),
                    None if self.demand.is_some() => return Poll::Ready(Next::Demand),
                    None => {}
                }
            }
            while !self.client.out.is_empty() {
                match self.client.stream.poll_write_from(cx, self.client.out.pending()) {
                    Poll::Ready(Ok(count)) if count > 0 => self.client.out.advance(count),
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(_) => return Poll::Ready(Next::Gone),
                }
            }
            if self.client.stream.is_tls()
                && matches!(self.client.stream.poll_flush_out(cx), Poll::Ready(Err(_)))
            {
                return Poll::Ready(Next::Gone);
            }
            if self.draining && self.client.input.is_empty() && self.offline.is_none() {
                return Poll::Ready(Next::Leave);
            }
            if self.client.has_ended() {
                // What it has sent is answered.
                return Poll::Ready(Next::Gone);
            }
            match self.client.poll_receive(cx, &mut local.buffers) {
                Poll::Ready(Err(_) | Ok(Received::NoRoom)) => return Poll::Ready(Next::Gone),
                Poll::Ready(Ok(Received::Bytes | Received::End)) => {}
                // What waits goes in portions, and what the client sends meanwhile is read in between.
                Poll::Pending if self.has_mail() => {}
                Poll::Pending => {
                    self.client.input.retire(&mut local.buffers);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Looks for a request in the buffer. `None` when there is none yet, or when it is in `demand` now.
    fn scan(&mut self, local: &mut Local) -> Option<Next> {
        // Without a backend there is nothing that names could stand for to this client alone.
        self.memory.statements.own_epoch = None;
        loop {
            if self.client.input.unparsed().is_empty() || self.demand.is_some() {
                return None;
            }
            let catalog = self.group.catalog.load();
            let mut scanner = Scanner {
                statements: &self.memory.statements,
                parsed: &mut self.memory.parsed,
                registry: &self.app.statements,
                catalog: &catalog,
                epoch: self.group.catalog.epoch().load(),
                reading: &self.reading,
                size_max: self.app.relay_limits.statement_size_max,
            };
            match scanner.scan(self.client.input.unparsed(), Mood::Idle, local) {
                Scan::Demand(demand) => self.demand = Some(self.as_session_has_it(demand)),
                Scan::Wait { frame } => {
                    self.client.input.reserve(frame, &mut local.buffers);
                    return None;
                }
                Scan::Copy { bytes } | Scan::Ignored { bytes } => {
                    let count = bytes.min(self.client.input.unparsed().len());
                    self.client.input.parse(count);
                    self.client.input.release_held();
                    self.client.ignoring = bytes - count;
                    if self.client.ignoring > 0 {
                        return None;
                    }
                }
                Scan::Terminate => return Some(Next::Gone),
                Scan::Broken(error) => return Some(Next::Broke(error)),
            }
        }
    }

    /// A BEGIN without an access mode reads only where the session's transactions do: it may open on a standby.
    fn as_session_has_it(&self, mut demand: Demand) -> Demand {
        let begins = demand.class.rule == Rule::OpensTransaction && demand.class.control == Control::Begins;
        if begins && self.memory.settings.read_only() {
            demand.class.access = Access::Read;
            demand.class.rule = Rule::OpensReadOnlyTransaction;
        }
        demand
    }

    #[inline]
    fn is_to_be_answered_offline(&self) -> bool {
        self.offline.is_some() || self.client.ignoring > 0
    }

    /// Answers what the client has to hear before any node is asked. True when it is over.
    fn answer_offline(&mut self, local: &mut Local) -> bool {
        if !self.is_to_be_answered_offline() {
            return false;
        }
        let catalog = self.group.catalog.load();
        let library = Library {
            registry: &self.app.statements,
            catalog: &catalog,
            epoch: self.group.catalog.epoch().load(),
            reading: &self.reading,
            names_max: self.app.relay_limits.client_statements_max,
        };
        let mut free = Offline::told(false, false, self.app.relay_limits.statement_size_max);
        let offline = self.offline.as_deref_mut().unwrap_or(&mut free);
        match offline.answer(&mut self.client, &mut self.memory, &library, local) {
            Answered::Free => self.offline = None,
            Answered::Wait => {}
            Answered::Over => return true,
        }
        false
    }

    /// Answers what the client has to hear before its backend is asked again. True when it is gone.
    fn poll_answer_beside(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Poll<bool> {
        loop {
            if self.answer_offline(local) {
                return Poll::Ready(true);
            }
            if self.offline.is_none() {
                return Poll::Ready(false);
            }
            while !self.client.out.is_empty() {
                match self.client.stream.poll_write_from(cx, self.client.out.pending()) {
                    Poll::Ready(Ok(count)) if count > 0 => self.client.out.advance(count),
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(_) => return Poll::Ready(true),
                }
            }
            let spare = self.client.input.spare(&mut local.buffers);
            match self.client.stream.poll_read_into(cx, spare) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(true),
                Poll::Ready(Ok(count)) => self.client.input.commit(count),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Answers a lone Parse of a text that a server took from this group before, when no backend is free for it:
    /// it is prepared where and when it is bound. Whoever prepares statements on one connection after another,
    /// some of them inside transactions (as pgbench does), would otherwise wait for itself.
    fn answer_known_parse(&mut self, demand: &Demand) -> bool {
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let Some(name) = lone_parse(bytes) else {
            return false;
        };
        let [statement] = &self.memory.parsed[..] else {
            return false;
        };
        let known = statement.was_taken();
        let full = self.memory.statements.len() >= self.app.relay_limits.client_statements_max;
        if !known || full || name.is_empty() || self.memory.statements.named(name).is_some() {
            return false;
        }
        self.memory.statements.name(name, Arc::clone(statement));
        self.memory.parsed.clear();
        self.to_primary = false;
        self.revert_listening();
        self.client.input.parse(demand.bytes);
        self.client.input.release_held();
        self.demand = None;
        let out = self.client.out.end();
        wire::empty_message(out, wire::backend::PARSE_COMPLETE);
        wire::ready_for_query(out, b'I');
        true
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
            reading: &self.reading,
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
            self.show_work();
            if self.idles_too_long(idle, cx) {
                return Poll::Ready(End::LimitExceeded(idle_in_transaction()));
            }
            if self.is_held_too_long(cx) {
                return Poll::Ready(End::HeldTooLong);
            }
        }
        end
    }

    /// Whether the next transaction of a session that keeps its backend has been held by a pause for as long as it may
    /// be.
    fn is_held_too_long(&mut self, cx: &mut Context<'_>) -> bool {
        let link = self.link.as_ref().filter(|_| self.demand.is_some());
        let held = link.is_some_and(|link| {
            let pauses = &self.app.operations.pauses;
            !link.in_flight() && !link.in_block() && pauses.hold(&self.group.database, link.as_primary)
        });
        if !held {
            self.hold_timer = None;
            return false;
        }
        let limit = self.app.config.failover.hold;
        let timer = self
            .hold_timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        timer.as_mut().poll(cx).is_ready()
    }

    /// Shows what the client does with the backend that it has.
    fn show_work(&self) {
        let Some(link) = &self.link else { return };
        let doing = match (link.in_flight(), link.in_block()) {
            (true, _) => Doing::Active,
            (false, true) => Doing::IdleInTransaction,
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
        self.count_turn(&link);
        self.note_turn(&link);
        self.idle_timer = None;
        self.registered.inbox.set_doing(Doing::Idle);
        let leftovers = Leftovers::of(&link);
        if leftovers != Leftovers::Nothing {
            // It is taken away before the next client comes.
            tokio::spawn(cleanse(link.backend, leftovers));
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

    /// Everything but the ordinary end of a turn.
    async fn unusual(&mut self, end: End) -> Turn {
        match end {
            End::Settled => Turn::Again,
            End::Refused(refusal) => {
                self.send_again(refusal);
                Turn::Again
            }
            End::BackendLost(lost) => self.on_loss(&lost),
            End::ClientGone if self.said_goodbye() => {
                self.finish_what_was_asked().await;
                Turn::Over
            }
            End::MustListen => self.listen_in_link().await,
            End::MustSeeToSettings => self.see_to_own_settings().await.unwrap_or(Turn::Again),
            End::BlockMoves => self.move_block().await,
            End::HeldTooLong => {
                self.hold_timer = None;
                let report = paused_too_long(self.app.config.failover.hold);
                self.fail_demand_beside(report, b'I');
                Turn::Again
            }
            End::ReadyWithheld => self.tell_ready().await,
            End::BlockRefused => self.refuse_block().await,
            End::ClientGone => Turn::Over,
            End::Terminated => {
                self.finish_what_was_asked().await;
                Turn::Over
            }
            End::ClientBroke(error) => Turn::Farewell(broke(error)),
            End::LimitExceeded(report) => Turn::Farewell(report),
            End::Interrupted => {
                let messages = self.registered.inbox.take();
                self.on_messages(messages)
            }
        }
    }

    /// Whether a request does nothing but open a transaction block.
    fn begins_block(&self, demand: &Demand) -> bool {
        demand.class.control == Control::Begins && runs(&self.client.input.unparsed()[..demand.bytes])
    }

    /// Ends a transaction block that a client with statement pooling has opened by a message that holds more than BEGIN.
    async fn refuse_block(&mut self) -> Turn {
        let Some(link) = &mut self.link else {
            return Turn::Again;
        };
        link.block_refused = false;
        let failed = link.backend.ledger.status() == b'E';
        if let Err(report) = exchange::ask(&mut link.backend, "ROLLBACK", ROLLBACK_LIMIT).await {
            return self.on_loss(&Lost {
                said: Some(report),
                error: None,
            });
        }
        let out = self.client.out.end();
        if !failed {
            no_blocks().encode(out);
        }
        wire::ready_for_query(out, b'I');
        Turn::Again
    }

    /// Whether what the client sent last is its goodbye.
    fn said_goodbye(&self) -> bool {
        matches!(
            Header::parse(self.client.input.unparsed()),
            Ok(Some(header)) if header.kind == frontend::TERMINATE
        )
    }

    /// A client that says goodbye behind its requests has them run, as a server runs what it has read before it
    /// reads on.
    async fn finish_what_was_asked(&mut self) {
        if let Some(link) = &mut self.link
            && link.in_flight()
            && !link.backend.ledger.copy_in()
            && !link.backend.ledger.batch_open()
        {
            // What is left unfinished at the limit is cancelled like that of a client that vanished.
            let _ = exchange::drain(&mut link.backend, FINISH_LIMIT).await;
        }
    }

    /// Sends a request that was refused to where it is not: what a standby found to be a write is learned and runs
    /// on the primary; what met an outdated prepared statement runs where there is none.
    fn send_again(&mut self, refusal: Refusal) {
        self.client.input.rewind();
        self.memory.early.clear();
        self.memory.repeating = true;
        self.memory.repeats += 1;
        self.demand = None;
        if refusal == Refusal::ReadOnly {
            self.counters.add(Counter::Reruns25006, 1);
            self.to_primary = true;
            let catalog = self.group.catalog.load();
            let bytes = self.client.input.unparsed();
            let (statements, registry) = (&self.memory.statements, &self.app.statements);
            let epoch = self.group.catalog.epoch().load();
            worker::with(|local| {
                learn_write(bytes, statements, &catalog, epoch, &self.reading, registry, local);
            });
        }
        // A cancel on its way could hit whoever had the backend next.
        let cancelling = self.cancelling.take().is_some();
        if let Some(link) = self.link.take()
            && let Some(settled) = link.backend.settled()
            && !cancelling
        {
            link.backend.release(settled);
        }
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
        } else if class.keeps_state() {
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
        Aim { access, role, reason }
    }

    pub(super) fn on_loss(&mut self, lost: &Lost) -> Turn {
        let Some(link) = self.link.take() else {
            return Turn::Again;
        };
        let node = Arc::clone(link.backend.node());
        if let Some(said) = &lost.said
            && said.sqlstate == SqlState::PROTOCOL_VIOLATION
            && link.in_flight()
        {
            // The server ends a connection for what the client sent on it.
            return Turn::Farewell(said.clone());
        }
        if link.as_primary {
            // A server that ends this connection may be about to end the others: no write goes there before that is known.
            self.app.signals.doubt(node.id, evidence(lost));
        } else {
            self.app.signals.raise(node.id, evidence(lost));
        }
        tracing::debug!(node = %node.name, ?lost, "a backend was lost");
        let resolvable = self.resolvable(&link);
        let state = LostState {
            in_block: link.in_block() || (link.takes_block_over() && link.requests <= 1),
            in_flight: link.in_flight(),
            flight: link.flight,
            pin: self.memory.pin,
            mid_frame: link.mid_frame(),
            resolvable: resolvable.is_some(),
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
        let readies = link.backend.ledger.readies();
        let batch_open = link.backend.ledger.batch_open();
        self.client.ignoring = link.unfinished();
        drop(link);
        if !matches!(consequence, Consequence::Resolve(_)) {
            self.memory.undo_all();
        }
        self.forget_backend();
        let size_max = self.app.relay_limits.statement_size_max;
        if consequence == Consequence::Repeat && self.memory.repeats >= REPEATS_MAX {
            consequence = Consequence::Fail(lost_each_time(self.memory.repeats + 1, &node.name));
        }
        self.counters.add(consequence.counter(), 1);
        match consequence {
            Consequence::Nothing => {}
            Consequence::HangUp => {
                tracing::warn!(node = %node.name, "a node was lost in the middle of a row: its client is disconnected");
                return Turn::Over;
            }
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
                if let Some(lost) = resolvable {
                    return Turn::Resolve(Box::new(lost), unknown);
                }
            }
            Consequence::Fail(report) => self.tell_loss(&report, readies, batch_open, false),
            Consequence::FailBlock(report) if state.in_flight => {
                self.tell_loss(&report, readies, batch_open, true);
            }
            Consequence::FailBlock(report) => {
                // What was looked at and not sent is answered like the rest.
                self.demand = None;
                self.offline = Some(Box::new(Offline::fail_block(report, size_max)));
            }
            Consequence::FailNext(report) => {
                self.demand = None;
                self.offline = Some(Box::new(Offline::fail_next(report, size_max)));
            }
        }
        Turn::Again
    }

    /// The transaction whose COMMIT is all that is in flight, if its outcome can be looked up and is all that the client
    /// has to know: what else it did to its session is gone with the connection.
    fn resolvable(&self, link: &Link) -> Option<resolve::Lost> {
        let alone = link.backend.ledger.readies() == 1 && !link.backend.ledger.batch_open();
        let unchanged = !link.traces.intersects(CHANGING) && self.memory.listening.is_none();
        match link.commit {
            Commit::Known(committing) if alone && unchanged => Some(resolve::Lost {
                committing,
                node: link.backend.node().id,
                incarnation: link.incarnation,
                success: resolve::success(link.backend.ledger.due()),
            }),
            _ => None,
        }
    }

    /// What the session had on a backend that is lost is gone with it.
    fn forget_backend(&mut self) {
        self.cancelling = None;
        self.revert_listening();
        let pinned_by_pool = self.group.mode == PoolMode::Session;
        self.memory.pin = pinned_by_pool.then_some(PinReason::SessionPooling);
        self.show_pin();
        self.memory.lasting = SessionEffects::NONE;
        self.memory.unread_unnamed = false;
        self.registered.inbox.set_doing(Doing::Idle);
    }

    /// Answers everything that the lost node still owed.
    pub(super) fn tell_loss(
        &mut self,
        report: &Report,
        readies: usize,
        batch_open: bool,
        failed_block: bool,
    ) {
        self.client.input.release_held();
        self.demand = None;
        self.counters.add(Counter::of_error(report.sqlstate), 1);
        let size_max = self.app.relay_limits.statement_size_max;
        let told = Offline::told(failed_block, batch_open, size_max);
        let out = self.client.out.end();
        for _ in 0..readies {
            report.encode(out);
            wire::ready_for_query(out, told.status());
        }
        if batch_open {
            report.encode(out);
        }
        if failed_block || batch_open {
            self.offline = Some(Box::new(told));
        }
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

    fn on_messages(&mut self, messages: Messages) -> Turn {
        if messages.has(Message::Terminate) {
            return Turn::Farewell(leaving());
        }
        self.draining |= messages.has(Message::Drain);
        self.deliver();
        let at_rest = self
            .link
            .as_ref()
            .is_none_or(|link| !link.in_flight() && !link.in_block());
        if self.draining && at_rest {
            return Turn::Farewell(leaving());
        }
        if messages.has(Message::Cancel) {
            self.begin_cancel();
        }
        if messages.has(Message::TableChanged)
            && let Some(link) = &self.link
        {
            let table = self.app.routing.load();
            let node = link.backend.node().id;
            let given_up = match table.standing[usize::from(node.0)] {
                Standing::Primary => false,
                Standing::Fenced => true,
                Standing::Standby => link.as_primary && table.primary.is_some(),
                Standing::Unreachable => !link.as_primary || table.primary.is_some(),
            };
            if given_up {
                let report = Report::fatal(
                    SqlState::CANNOT_CONNECT_NOW,
                    "it is not what it was for this session any more",
                );
                drop(table);
                return self.on_loss(&Lost {
                    said: Some(report),
                    error: None,
                });
            }
        }
        Turn::Again
    }

    /// Cancels what the backend runs for this client. The backend is not given back before that is over, so that
    /// the cancel can never hit its next client.
    fn begin_cancel(&mut self) {
        let held = self.registered.inbox.take_cancels();
        let Some(link) = &self.link else { return };
        if !link.in_flight() || self.cancelling.is_some() {
            return;
        }
        self.counters.add(Counter::CancelsSent, 1);
        let (done, over) = oneshot::channel();
        self.cancelling = Some(over);
        let node = Arc::clone(link.backend.node());
        let key = Arc::clone(&link.backend.key);
        let limits = self.app.cancel_limits.clone();
        tokio::spawn(async move {
            if let Err(error) = send_cancel(&node.target, &key, &limits).await {
                tracing::warn!(node = %node.name, %error, "a cancel request did not reach the node");
            }
            drop(held);
            let _ = done.send(());
        });
    }

    pub(super) async fn finish_cancel(&mut self) {
        if let Some(over) = self.cancelling.take() {
            let _ = over.await;
        }
    }
}

/// The name given by a request that consists of one Parse and a Sync.
fn lone_parse(bytes: &[u8]) -> Option<&[u8]> {
    let parse = Header::parse(bytes).ok()??;
    let sync = Header::parse(bytes.get(parse.total()..)?).ok()??;
    let lone = parse.kind == frontend::PARSE && sync.kind == frontend::SYNC;
    let whole = bytes.len() == parse.total() + sync.total();
    let body = bytes.get(HEADER_SIZE..parse.total())?;
    (lone && whole).then(|| parse_parts(body).map(|parts| &body[parts.name]))?
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

fn broke(error: FrameError) -> Report {
    Report::fatal(SqlState::PROTOCOL_VIOLATION, error.to_string())
}

/// What PgBouncer says to the same, there as the end of the connection.
fn no_blocks() -> Report {
    Report::error(
        SqlState::FEATURE_NOT_SUPPORTED,
        "transaction blocks not allowed in statement pooling mode",
    )
    .with_hint("Statements of one message are one transaction. Blocks need pool.mode = \"transaction\".")
}

fn idle_in_transaction() -> Report {
    Report::fatal(
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        "terminating connection due to idle-in-transaction timeout",
    )
    .with_detail("limits.idle_in_transaction_timeout is over.")
}

fn leaving() -> Report {
    Report::fatal(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    )
    .with_detail("Halyard is being shut down.")
}
