//! From a request to a backend that can run it: at once, or after a wait in line or for a node.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use halyard_health::{Incarnation, NodeId};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::inbox::{Doing, Message, Presence};
use super::turn::{Session, Turn};
use crate::classify::Access;
use crate::config::{ListenerRole, ReadFallback};
use crate::error::{Report, Severity, SqlState};
use crate::held::Hold;
use crate::metrics::{self, Counter};
use crate::pool::{Checkout, Delivery, Draws, Pool, Wish};
use crate::relay::{Link, Received};
use crate::routing::{Route, RouteReason, Sight, Wanted};
use crate::worker::{self, Local};

/// Between two looks at what standbys have replayed, if nobody tells that one has more.
const COVERED_LOOK: Duration = Duration::from_millis(25);

/// Between two looks whether a session in line for the standby on which it has read last may go elsewhere by now.
const LINE_LOOK: Duration = Duration::from_millis(10);

/// How long a session that may draw from sequences waits for the backend on which it has drawn before, while that is lent
/// to a read; then it draws elsewhere, and what it drew before is forgotten.
const OWN_LIMIT: Duration = Duration::from_secs(1);

/// What the wait for a backend came to.
pub(super) enum Waited {
    Got(Checkout, bool),
    Again,
    Fail(Report),
    Over(Turn),
}

/// Where a request is to go, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aim {
    /// What it needs of a node.
    pub(super) access: Access,
    /// Where its session's requests go.
    pub(super) role: ListenerRole,
    /// Why it goes where these two lead it.
    pub(super) reason: RouteReason,
    /// What it may do with sequences.
    pub(super) draws: Draws,
}

/// What came up while waiting.
#[derive(Clone, Copy)]
pub(super) enum Meanwhile {
    Gone,
    Leave,
    Cancelled,
}

impl Session {
    /// Links a backend that is free now. False if there is none.
    #[inline]
    pub(super) fn try_obtain(&mut self, aim: Aim, local: &mut Local) -> bool {
        let found = self.find_free(aim, local);
        found.is_some_and(|(backend, as_primary, behind)| self.link(backend, as_primary, aim, behind))
    }

    /// A backend that is free now and may run a request with this aim, whether it is the primary's, and whether there
    /// are standbys.
    #[inline]
    fn find_free(&mut self, aim: Aim, local: &mut Local) -> Option<(Checkout, bool, bool)> {
        if aim.access == Access::Read && self.ought_to_move() {
            return None;
        }
        let table = self.app.routing.load();
        let mut sight = self.sight();
        loop {
            let choice = table.route(aim.access, aim.role, &sight, &self.app.nodes, local);
            let (node, as_primary) = match choice.route {
                Route::Primary(node) => (node, true),
                Route::Standby(node) => (node, false),
                Route::Hold(_) | Route::Refuse(_) => return None,
            };
            if as_primary && choice.against_balance && self.ought_to_wait() {
                return None;
            }
            if self.is_paused(as_primary) || as_primary && self.app.signals.is_in_doubt(node) {
                return None;
            }
            let backend = self.group.pool(node).try_check_out(self.wish(aim), local)?;
            if self.is_vouched_for(&backend, as_primary, &sight) {
                self.note_stay(aim.access, choice.against_balance);
                return Some((backend, as_primary, !table.readers.is_empty()));
            }
            backend.give_back_untouched();
            sight = sight.without(node);
        }
    }

    /// What a session with this aim wants of a pool.
    #[inline]
    pub(super) fn wish(&self, aim: Aim) -> Wish<'_> {
        Wish {
            drawer: &self.memory.drawer,
            draws: aim.draws,
        }
    }

    /// Whether a pause holds transactions that go where this one does.
    #[inline]
    fn is_paused(&self, as_primary: bool) -> bool {
        self.app.operations.pauses.hold(&self.group.database, as_primary)
    }

    /// Links a backend. False if a pause has begun since the session looked: then it is given back.
    ///
    /// `behind`: whether there are standbys, so that a read on the primary has only those that are not far enough.
    pub(super) fn link(&mut self, backend: Checkout, as_primary: bool, aim: Aim, behind: bool) -> bool {
        let inbox = &self.registered.inbox;
        inbox.set_presence(Presence {
            doing: Doing::Active,
            backend: Some((backend.node().id, as_primary)),
        });
        let pauses = &self.app.operations.pauses;
        if pauses.hold_after_all(&self.group.database, as_primary) {
            inbox.set_doing(Doing::Idle);
            if let Some(settled) = backend.settled() {
                backend.release(settled);
            }
            return false;
        }
        inbox.set_backend(backend.key.pid, backend.born);
        self.counters.add(Counter::Checkouts, 1);
        let mut reason = aim.reason;
        let mut counted = None;
        if as_primary && aim.access == Access::Read {
            let asked = aim.role == ListenerRole::Primary;
            let counter = match (asked, behind) {
                (true, _) => Counter::ReadsOnPrimaryAsked,
                (false, true) => Counter::ReadsOnPrimaryBehind,
                (false, false) => Counter::ReadsOnPrimaryNoStandby,
            };
            self.counters.add(counter, 1);
            reason = match (asked, behind) {
                (true, _) => reason,
                (false, true) => RouteReason::Behind,
                (false, false) => RouteReason::NoStandby,
            };
            counted = (reason == RouteReason::Behind).then(|| self.app.consistency.begin_behind());
        }
        self.begin_seeing(&backend);
        let mut link = Link::new(backend, as_primary, reason, self.number);
        link.timed = self.is_to_be_timed(as_primary);
        link.behind = counted;
        if as_primary && self.app.relay_limits.resolve_commits {
            link.incarnation = self.incarnation(link.backend.node().id);
        }
        self.link = Some(link);
        true
    }

    /// Which run of a primary was seen last. Who has a connection by now either has it to that run, or will see another
    /// one when it looks again.
    fn incarnation(&self, node: NodeId) -> Option<Incarnation> {
        let view = self.app.view.borrow();
        view.node(node).and_then(|node| node.incarnation)
    }

    /// Waits for a backend. `None` when there is one; else how the turn ends.
    pub(super) async fn obtain(&mut self, aim: Aim, bytes: usize) -> Option<Turn> {
        match self.wait_for_statement(aim, bytes).await {
            Waited::Got(checkout, as_primary) => {
                let behind = !self.app.routing.load().readers.is_empty();
                if self.link(checkout, as_primary, aim, behind) {
                    return None;
                }
                self.to_primary = aim.reason == RouteReason::Refused;
                Some(Turn::Again)
            }
            Waited::Fail(report) => {
                self.registered.inbox.set_doing(Doing::Idle);
                self.fail_demand(report);
                Some(Turn::Again)
            }
            Waited::Over(turn) => Some(turn),
            Waited::Again => Some(Turn::Again),
        }
    }

    /// Waits for a backend that may run a request with this aim, through as many routing tables as it takes.
    pub(super) async fn wait_for_backend(&mut self, aim: Aim, bytes: usize) -> Waited {
        let mut published = self.app.routing.subscribe();
        let mut in_line_since = Instant::now();
        let mut held: Option<Hold> = None;
        // What it has to see elsewhere than where it has read last, if it has waited to leave that.
        let mut leaving = match self.wait_for_sight(aim).await {
            Ok(leaving) => leaving,
            Err(ended) => return ended,
        };
        // Without the standbys whose connections were younger than what is known of their positions, until something was
        // awaited: by then more may be known.
        let mut narrowed: Option<Sight> = leaving;
        loop {
            published.borrow_and_update();
            let sight = narrowed.take().unwrap_or_else(|| self.sight());
            let choice = worker::with(|local| {
                let table = self.app.routing.load();
                table.route(aim.access, aim.role, &sight, &self.app.nodes, local)
            });
            let waited_for_standby = held.as_ref().map_or(Duration::ZERO, Hold::lasted);
            let route = self.as_things_stand(choice.route, aim, waited_for_standby);
            let waited = match route {
                Route::Primary(node) | Route::Standby(node) => {
                    // The time spent without a node is not the pool's: the wait in line begins now.
                    if held.take().is_some() {
                        in_line_since = Instant::now();
                    }
                    let as_primary = matches!(route, Route::Primary(_));
                    let pool = Arc::clone(self.group.pool(node));
                    match worker::with(|local| pool.try_check_out(self.wish(aim), local)) {
                        Some(checkout) if self.is_vouched_for(&checkout, as_primary, &sight) => {
                            self.note_stay(aim.access, choice.against_balance);
                            return Waited::Got(checkout, as_primary);
                        }
                        Some(checkout) if leaving.is_some() => Waited::Got(checkout, as_primary),
                        Some(checkout) => {
                            checkout.give_back_untouched();
                            narrowed = Some(sight.without(node));
                            continue;
                        }
                        None => {
                            self.registered.inbox.set_doing(Doing::Waiting);
                            self.counters.add(Counter::CheckoutWaits, 1);
                            self.wait_in_line(&pool, as_primary, aim, in_line_since, &mut published)
                                .await
                        }
                    }
                }
                Route::Hold(wanted) => {
                    let held_as = held_for(wanted, choice.route);
                    self.wait_held(wanted, held_as, bytes, &mut held, &mut published)
                        .await
                }
                Route::Refuse(_) => Waited::Fail(no_standby()),
            };
            match waited {
                Waited::Got(checkout, as_primary)
                    if !self.is_vouched_for(&checkout, as_primary, &self.sight()) =>
                {
                    let node = checkout.node().id;
                    if let Some(sight) = leaving.take() {
                        match self.wait_until_vouched_for(&checkout, &sight).await {
                            Ok(true) if self.still_serves(self.group.pool(node), as_primary) => {
                                return Waited::Got(checkout, as_primary);
                            }
                            Ok(_) => {}
                            Err(ended) => {
                                checkout.give_back_untouched();
                                return ended;
                            }
                        }
                    }
                    narrowed = Some(self.sight().without(node));
                    checkout.give_back_untouched();
                }
                Waited::Again => {}
                other => return other,
            }
        }
    }

    /// Where a request goes that the table leads to `route`, with what the table does not tell.
    fn as_things_stand(&self, route: Route, aim: Aim, waited_for_standby: Duration) -> Route {
        match route {
            Route::Primary(_) if self.is_paused(true) => Route::Hold(Wanted::Resume),
            // A connection to it was lost, and the next one may be about to go the same way.
            Route::Primary(node) if self.app.signals.is_in_doubt(node) => Route::Hold(Wanted::Primary),
            Route::Standby(_) if self.is_paused(false) => Route::Hold(Wanted::Resume),
            Route::Hold(Wanted::Standby) if self.gives_up_on_standbys(aim, waited_for_standby) => {
                let primary = self.app.routing.load().primary;
                primary.map_or(Route::Hold(Wanted::Primary), Route::Primary)
            }
            route => route,
        }
    }

    /// Waits without a node, holding a place among those that do from the first time on.
    async fn wait_held(
        &mut self,
        wanted: Wanted,
        held_as: Counter,
        bytes: usize,
        held: &mut Option<Hold>,
        published: &mut watch::Receiver<u64>,
    ) -> Waited {
        let since = match held {
            Some(held) => held.since(),
            None => {
                if self.end_no_block() {
                    self.registered.inbox.set_doing(Doing::Idle);
                    return Waited::Over(Turn::Again);
                }
                match self.app.hold(&self.group, bytes, held_as) {
                    Ok(hold) => held.insert(hold).since(),
                    Err(report) => return Waited::Fail(report),
                }
            }
        };
        self.registered.inbox.set_doing(Doing::Held);
        let waited = self.wait_for_table(wanted, since, published).await;
        self.avoid_nobody();
        waited
    }

    /// Waits in a pool's line until a backend comes, or the pool is not the right one any more.
    pub(super) async fn wait_in_line(
        &mut self,
        pool: &Arc<Pool>,
        as_primary: bool,
        aim: Aim,
        began: Instant,
        published: &mut watch::Receiver<u64>,
    ) -> Waited {
        let mut place = match pool.get_in_line(self.wish(aim)) {
            Ok(place) => place,
            Err(report) => return Waited::Fail(report),
        };
        let limit = self.app.config.pool.wait_timeout;
        let _waiting = pool.node.load.wait();
        let app = Arc::clone(&self.app);
        let reads_at_large = is_read_at_large(as_primary, aim);
        let mut look = (!as_primary && self.has_read_on(pool.node.id)).then(|| Instant::now() + LINE_LOOK);
        let patience = aim.draws == Draws::Maybe && self.memory.drawer.has_drawn();
        let own = patience.then(|| Instant::now() + OWN_LIMIT);
        loop {
            let event = tokio::select! {
                biased;
                delivery = &mut place => return match self.on_delivery(delivery, as_primary, began) {
                    // What has changed in between may have been heard already, and is not heard again.
                    Waited::Got(checkout, _) if !self.still_serves(pool, as_primary) => {
                        checkout.give_back_untouched();
                        Waited::Again
                    }
                    waited => waited,
                },
                changed = published.changed() => {
                    if changed.is_err() { return Waited::Over(Turn::Over); }
                    None
                }
                meanwhile = self.meanwhile() => Some(meanwhile),
                () = app.consistency.covering(), if reads_at_large => None,
                () = sleep_until([look, own].into_iter().flatten().fold(began + limit, Instant::min)) => {
                    if began.elapsed() < limit {
                        if own.is_some_and(|own| Instant::now() >= own) {
                            // Where its backend is lent for as long, it draws elsewhere.
                            self.memory.drawer.give_up();
                            return Waited::Again;
                        }
                        // It stands in line where it has read last. Meanwhile there may be room elsewhere.
                        look = look.map(|look| look + LINE_LOOK);
                        if self.is_better_off_elsewhere(pool.node.id) { return Waited::Again; }
                        continue;
                    }
                    self.counters.add(Counter::CheckoutsRefused, 1);
                    return Waited::Fail(self.waited_too_long(pool, limit));
                }
            };
            match event {
                Some(meanwhile) => return after(meanwhile),
                None if self.still_right(pool, as_primary, aim) => {}
                // Dropping the place sends on what may have been delivered in between.
                None => return Waited::Again,
            }
        }
    }

    fn on_delivery(
        &mut self,
        delivery: Result<Delivery, oneshot::error::RecvError>,
        as_primary: bool,
        began: Instant,
    ) -> Waited {
        match delivery {
            Ok(Ok(delivered)) => {
                let mut checkout = delivered.accept();
                metrics::observe_checkout_wait(began.elapsed());
                // Another thread may have given it back, and the node may have gone since.
                match worker::with(|local| checkout.adopt(local.reactor)) {
                    Ok(()) => Waited::Got(checkout, as_primary),
                    Err(_) => Waited::Again,
                }
            }
            // The node said FATAL to Halyard's connection; this session lives on.
            Ok(Err(report)) => Waited::Fail(Report {
                severity: Severity::Error,
                ..(*report).clone()
            }),
            Err(_) => Waited::Again,
        }
    }

    /// Whether a pool's node may be given what goes to it.
    fn still_serves(&self, pool: &Pool, as_primary: bool) -> bool {
        let table = self.app.routing.load();
        let node = pool.node.id;
        !self.is_paused(as_primary)
            && if as_primary {
                table.primary == Some(node)
            } else {
                table.readers.iter().any(|(reader, _)| *reader == node)
            }
    }

    /// Whether a pool is the right one to wait for.
    fn still_right(&self, pool: &Pool, as_primary: bool, aim: Aim) -> bool {
        self.still_serves(pool, as_primary)
            && !(is_read_at_large(as_primary, aim) && {
                let sight = self.sight();
                let table = self.app.routing.load();
                let mut readers = table.readers.iter();
                readers.any(|&(reader, _)| sight.is_met_by(reader, &self.app.nodes))
            })
    }

    fn waited_too_long(&self, pool: &Pool, limit: Duration) -> Report {
        let usage = pool.usage();
        Report::error(SqlState::TOO_MANY_CONNECTIONS, "no backend became free in time")
            .with_detail(format!(
                "Waited {} ms (pool.wait_timeout) for node \"{}\": {} of {} backends in use, {} being opened, {} clients in line.",
                limit.as_millis(),
                pool.node.name,
                usage.active,
                pool.limits().size,
                usage.connecting,
                usage.waiting,
            ))
            .with_hint("Raise pool.size, or find out what keeps the backends busy.")
    }

    /// Whether a read has waited for a standby as long as `routing.read_wait` says, and the primary is to have it.
    fn gives_up_on_standbys(&self, aim: Aim, waited: Duration) -> bool {
        let routing = &self.app.config.routing;
        routing.read_fallback == ReadFallback::Wait
            && aim.role == ListenerRole::Auto
            && waited >= routing.read_wait
    }

    /// Waits for another table while no node can take the request.
    async fn wait_for_table(
        &mut self,
        wanted: Wanted,
        began: Instant,
        published: &mut watch::Receiver<u64>,
    ) -> Waited {
        let limit = self.app.config.failover.hold;
        let app = Arc::clone(&self.app);
        let covered = async {
            match wanted {
                Wanted::Primary => std::future::pending().await,
                // A standby may be asked instead of a primary that is paused as soon as it is far enough.
                Wanted::Standby | Wanted::Resume => {
                    let _ = tokio::time::timeout(COVERED_LOOK, app.consistency.covering()).await;
                }
            }
        };
        tokio::select! {
            biased;
            changed = published.changed() => {
                if changed.is_err() { Waited::Over(Turn::Over) } else { Waited::Again }
            }
            () = covered, if began.elapsed() < limit => Waited::Again,
            meanwhile = self.meanwhile() => after(meanwhile),
            () = sleep_until(began + limit) => {
                self.counters.add(Counter::HeldTooLong, 1);
                Waited::Fail(self.held_too_long(wanted, limit))
            }
        }
    }

    pub(super) fn held_too_long(&self, wanted: Wanted, limit: Duration) -> Report {
        let table = self.app.routing.load();
        let (message, reason) = match wanted {
            Wanted::Primary => ("there is no primary now", table.no_primary.clone()),
            Wanted::Standby => (
                "there is no standby that qualifies now",
                "No standby serves reads.".to_owned(),
            ),
            Wanted::Resume => return paused_too_long(limit),
        };
        Report::error(SqlState::CANNOT_CONNECT_NOW, message)
            .with_detail(format!(
                "Held for {} ms (failover.hold). {reason}",
                limit.as_millis()
            ))
            .with_hint("The session lives on; the statement was not run and can be sent again.")
    }

    /// Waits for what may come up while the session waits for something else: the client leaves, cancels, or the
    /// proxy ends. Cancel safe.
    pub(super) async fn meanwhile(&mut self) -> Meanwhile {
        poll_fn(|cx| worker::with(|local| self.poll_meanwhile(cx, local))).await
    }

    fn poll_meanwhile(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Poll<Meanwhile> {
        // Until it does not ring: only then the next message wakes this task.
        while self.registered.inbox.is_ringing(cx) {
            let messages = self.registered.inbox.take();
            if messages.has(Message::Terminate) {
                return Poll::Ready(Meanwhile::Leave);
            }
            if messages.has(Message::Cancel) {
                drop(self.registered.inbox.take_cancels());
                return Poll::Ready(Meanwhile::Cancelled);
            }
            self.draining |= messages.has(Message::Drain);
        }
        loop {
            match self.client.poll_receive(cx, &mut local.buffers) {
                Poll::Ready(Err(_)) => return Poll::Ready(Meanwhile::Gone),
                Poll::Ready(Ok(Received::Bytes)) => {}
                Poll::Ready(Ok(Received::End)) => self.client.nudge(&self.memory.told),
                Poll::Ready(Ok(Received::NoRoom)) | Poll::Pending => break,
            }
        }
        // What was asked before is answered, whatever the next waits for.
        match self.poll_write_answers(cx) {
            Poll::Ready(true) => Poll::Ready(Meanwhile::Gone),
            _ => Poll::Pending,
        }
    }

    /// Borrows a backend of any node that can answer, for a question of Halyard's own.
    pub(super) async fn borrow_any(&mut self) -> Result<Checkout, Option<Report>> {
        let aim = Aim {
            access: Access::Read,
            role: self.role(false),
            reason: RouteReason::Class,
            draws: Draws::Nothing,
        };
        match self.wait_for_backend(aim, 0).await {
            Waited::Got(checkout, _) => Ok(checkout),
            ended => Err(ended_by(ended)),
        }
    }
}

/// Whether a standby might have a read as well that is about to go to the primary.
fn is_read_at_large(as_primary: bool, aim: Aim) -> bool {
    as_primary && aim.access == Access::Read && aim.role != ListenerRole::Primary
}

/// What a client is told, if anything, for whom a question of Halyard's own was to be asked.
pub(super) fn ended_by(waited: Waited) -> Option<Report> {
    match waited {
        Waited::Fail(report) | Waited::Over(Turn::Farewell(report)) => Some(report),
        Waited::Over(_) | Waited::Again | Waited::Got(..) => None,
    }
}

fn no_standby() -> Report {
    Report::error(SqlState::CANNOT_CONNECT_NOW, "no standby can serve reads now")
        .with_detail("routing.read_fallback is \"error\".")
}

/// What is counted where a request is held that would have gone to `route`.
fn held_for(wanted: Wanted, route: Route) -> Counter {
    match (wanted, route) {
        (Wanted::Primary, Route::Primary(_)) => Counter::HeldInDoubt,
        (Wanted::Primary, _) => Counter::HeldNoPrimary,
        (Wanted::Standby, _) => Counter::HeldNoStandby,
        (Wanted::Resume, _) => Counter::HeldPaused,
    }
}

/// What a client is told whose transaction was held by a pause for as long as that may be.
fn paused_too_long(limit: Duration) -> Report {
    Report::error(SqlState::CANNOT_CONNECT_NOW, "transactions are paused")
        .with_detail(format!(
            "Held for {} ms (failover.hold). An operator has paused them.",
            limit.as_millis()
        ))
        .with_hint("The session lives on; the statement was not run and can be sent again.")
}

pub(super) fn after(meanwhile: Meanwhile) -> Waited {
    match meanwhile {
        Meanwhile::Gone => Waited::Over(Turn::Over),
        Meanwhile::Leave => Waited::Over(Turn::Farewell(
            Report::fatal(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection due to administrator command",
            )
            .with_detail("Halyard is being shut down."),
        )),
        Meanwhile::Cancelled => Waited::Fail(cancelled()),
    }
}

/// What PostgreSQL says of a statement that was cancelled.
pub(super) fn cancelled() -> Report {
    Report::error(
        SqlState::QUERY_CANCELED,
        "canceling statement due to user request",
    )
}
