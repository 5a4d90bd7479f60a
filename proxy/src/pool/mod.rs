//! Connections to the nodes: one pool per node, database and user.
//!
//! Idle backends are lent last in, first out, so that the ones in use stay few and warm. Who finds none waits
//! in line, first come first served; a backend that comes back goes straight to the head of the line. New
//! connections are opened by tasks of their own, several at a time, so that a client that leaves wastes none.
//!
//! One short lock per pool guards the two lists (see `docs/adr/0002-threads-and-pools.md` for what it costs).

mod backend;
mod connect;
mod drawn;
pub mod exchange;
mod group;
mod reserve;

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use backend::{Backend, Liveness, Passing};
pub(crate) use connect::is_final;
pub use drawn::{Claim, Drawer, Drawn, Draws};
pub use group::{Group, Groups, Template, Terms};
pub use reserve::Wish;

use crate::error::{Report, SqlState};
use crate::login::{LoginLimits, Target};
use crate::metrics::Counters;
use crate::relay::ledger::Settled;
use crate::routing::Load;
use crate::worker::{self, Local};
use halyard_health::{Coverage, NodeId};

/// One node as the data plane knows it.
#[derive(Debug)]
pub struct Node {
    /// Its place in the configuration.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub target: Target,
    /// What balancing goes by.
    pub load: Load,
    /// What it has replayed, as far as is known.
    pub coverage: Arc<Coverage>,
    /// Backends made before this counter was last raised are not used again.
    pub generation: AtomicU64,
    /// Where connections to it are counted.
    pub counters: Arc<Counters>,
}

/// Limits of one pool. See `config::Pool` for their meaning.
#[derive(Clone, Debug)]
pub struct PoolLimits {
    /// Most backends.
    pub size: u32,
    /// Kept open while the pool is in use.
    pub min_size: u32,
    /// Most clients in line.
    pub waiters_max: usize,
    /// Connections opened at a time.
    pub connects_max: u32,
    /// Limits of one login, its time included.
    pub login: LoginLimits,
    /// Age at which an idle backend is replaced.
    pub lifetime: Duration,
    /// Idleness after which a backend is closed.
    pub idle_timeout: Duration,
    /// Prepared statements kept per backend.
    pub prepared_statements_max: usize,
    /// Whether backends are reserved for those who have drawn from sequences on them before anybody has asked.
    pub reserves: bool,
}

/// A pool: the backends of one node, database and user.
pub struct Pool {
    /// The node.
    pub node: Arc<Node>,
    /// What the node's pools of one database and user share.
    pub group: std::sync::Weak<Group>,
    limits: PoolLimits,
    /// Whether backends are reserved for those who have drawn on them; shared with the group's other pools.
    reserves: Arc<AtomicBool>,
    /// How often its connections were to be replaced; see [`Pool::renew`].
    renewals: AtomicU64,
    /// The `statement_timeout` of a session that sets none, in milliseconds: 0 for none, [`UNTOLD`] until a connection has
    /// told. As the newest one had it.
    statement_timeout_ms: AtomicU32,
    state: Mutex<State>,
}

/// No connection was opened yet. PostgreSQL's longest `statement_timeout` is half of it.
const UNTOLD: u32 = u32::MAX;

#[derive(Default)]
struct State {
    #[expect(clippy::vec_box, reason = "a backend is moved with each turn, and is large")]
    idle: Vec<Box<Backend>>,
    waiters: VecDeque<Waiter>,
    /// Clients that wait for one backend alone, which is lent to somebody else; at most one for each in `lent`, and those
    /// who have left meanwhile.
    owners: Vec<(Claim, Waiter)>,
    /// Claims to backends that are lent to others than those who have drawn on them.
    lent: Vec<Claim>,
    /// Clients served out of turn since the head of the line was.
    overtaken: u32,
    /// Idle, lent and being opened.
    open: u32,
    /// Being opened.
    connecting: u32,
}

/// A client in line.
struct Waiter {
    sender: oneshot::Sender<Delivery>,
    /// The thread it waits on.
    reactor: usize,
    /// Since when it waits.
    since: Instant,
}

/// Places from the head within which a client of the releasing thread is served before others: a backend that stays
/// on its thread needs no new registration, and no other thread to be woken.
const NEAR_HEAD: usize = 16;
/// Clients that may be served before the head of the line in this way, one after another.
const OVERTAKEN_MAX: u32 = 16;

/// Bytes that are read at most to see whether a backend that has lain idle lives.
const LOOK_SIZE: usize = 1024;

/// How full a pool is.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolUse {
    /// Backends that nobody uses.
    pub idle: u32,
    /// Backends in use.
    pub active: u32,
    /// Backends being opened.
    pub connecting: u32,
    /// Clients in line.
    pub waiting: u32,
    /// How long the first of them has waited.
    pub longest_wait: Duration,
}

/// A backend that nobody uses, for those who look.
#[derive(Clone, Copy, Debug)]
pub struct IdleBackend {
    /// Its process ID on the node.
    pub pid: i32,
    /// When it was made, in seconds of the pool's coarse clock.
    pub born: u32,
    /// When it was last given back, likewise.
    pub idle_since: u32,
    /// Whether its connection is encrypted.
    pub tls: bool,
    /// Statements that are prepared on it.
    pub prepared: usize,
    /// The number of the session that it is reserved for, if it is.
    pub reserved_for: Option<u64>,
}

/// What a client in line gets.
pub type Delivery = Result<Delivered, Arc<Report>>;

/// A backend on its way to a client in line. Dropped on the way (the client left), it goes to the next.
pub struct Delivered(Option<Checkout>);

impl Delivered {
    /// Takes it.
    pub fn accept(mut self) -> Checkout {
        self.0.take().expect("a delivery is accepted once")
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        if let Some(checkout) = self.0.take() {
            checkout.give_back_untouched();
        }
    }
}

/// A backend in use. Dropped, it closes the connection; only [`Checkout::release`] gives it back.
pub struct Checkout {
    backend: Option<Box<Backend>>,
    pool: Arc<Pool>,
}

impl Deref for Checkout {
    type Target = Backend;
    #[inline]
    fn deref(&self) -> &Backend {
        self.backend
            .as_ref()
            .expect("only release and drop take the backend out")
    }
}

impl DerefMut for Checkout {
    #[inline]
    fn deref_mut(&mut self) -> &mut Backend {
        self.backend
            .as_mut()
            .expect("only release and drop take the backend out")
    }
}

impl Checkout {
    fn new(backend: Box<Backend>, pool: Arc<Pool>) -> Self {
        pool.node.load.outstanding.fetch_add(1, Ordering::Relaxed);
        Self {
            backend: Some(backend),
            pool,
        }
    }

    /// The pool it comes from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The node it leads to.
    pub fn node(&self) -> &Arc<Node> {
        &self.pool.node
    }

    /// Gives the backend back: to the first in line, or to rest.
    pub fn release(mut self, _settled: Settled) {
        if let Some(backend) = self.backend.take() {
            self.pool.node.load.outstanding.fetch_sub(1, Ordering::Relaxed);
            self.pool.take_back(backend);
        }
    }

    /// Gives it back over which nothing was sent.
    pub fn give_back_untouched(self) {
        match self.settled() {
            Some(settled) => self.release(settled),
            None => drop(self),
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if let Some(mut backend) = self.backend.take() {
            self.pool.node.load.outstanding.fetch_sub(1, Ordering::Relaxed);
            let loan = backend.lent_of.take();
            drop(backend);
            self.pool.closed_one(loan);
        }
    }
}

impl Pool {
    fn new(
        node: Arc<Node>,
        group: std::sync::Weak<Group>,
        limits: PoolLimits,
        reserves: Arc<AtomicBool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            group,
            limits,
            reserves,
            renewals: AtomicU64::new(0),
            statement_timeout_ms: AtomicU32::new(UNTOLD),
            state: Mutex::default(),
        })
    }

    /// Keeps the `statement_timeout` that a new connection has; `None` where it has none.
    fn note_statement_timeout(&self, limit: Option<Duration>) {
        let limit_ms = limit.map_or(0, |limit| u32::try_from(limit.as_millis()).unwrap_or(0));
        self.statement_timeout_ms.store(limit_ms, Ordering::Relaxed);
    }

    /// Lends an idle backend, if there is one and nobody is in line for it; the one that the session had last if it is
    /// near, and in a pool that reserves the one on which it has drawn.
    #[inline]
    pub fn try_check_out(self: &Arc<Self>, wish: Wish, local: &mut Local) -> Option<Checkout> {
        loop {
            let mut backend = {
                let mut state = self.state.lock();
                if self.reserves() {
                    state.take_reserving(wish, local.reactor, self.limits.size)?
                } else if state.waiters.is_empty() {
                    state.take_idle(local.reactor, wish.drawer)?
                } else {
                    return None;
                }
            };
            let outdated = backend.generation != self.generation();
            if outdated
                || matches!(backend.liveness(&mut local.scratch), Liveness::Ended)
                || backend.adopt(local.reactor).is_err()
            {
                let loan = backend.lent_of.take();
                drop(backend);
                self.closed_one(loan);
                continue;
            }
            return Some(Checkout::new(backend, Arc::clone(self)));
        }
    }

    /// Gets in line, and has a connection opened where the pool may still grow. A session whose own backend is lent to
    /// somebody else waits for that one alone.
    ///
    /// # Errors
    /// 53300 when the line is full.
    pub fn get_in_line(self: &Arc<Self>, wish: Wish) -> Result<oneshot::Receiver<Delivery>, Report> {
        let (sender, receiver) = oneshot::channel();
        let generation = self.generation();
        let grow = {
            let mut state = self.state.lock();
            state.drop_closed_waiters(self.limits.waiters_max);
            // One may have come back since the caller looked; nobody else would hand it over.
            let found = if self.reserves() {
                state.take_reserving(wish, worker::reactor(), self.limits.size)
            } else if state.waiters.is_empty() {
                state.idle.pop_if(|backend| backend.generation == generation)
            } else {
                None
            };
            if let Some(backend) = found {
                drop(state);
                self.deliver_idle(sender, backend);
                return Ok(receiver);
            }
            if let Some(claim) = state.own_is_lent(wish) {
                state.wait_for_own(claim, Waiter::new(sender));
                return Ok(receiver);
            }
            if state.waiters.len() >= self.limits.waiters_max {
                return Err(Report::error(
                    SqlState::TOO_MANY_CONNECTIONS,
                    "too many clients wait for a backend",
                )
                .with_detail(format!(
                    "{} clients wait for node \"{}\" already (pool.waiters_max).",
                    state.waiters.len(),
                    self.node.name
                )));
            }
            state.waiters.push_back(Waiter::new(sender));
            state.may_grow(&self.limits)
        };
        if grow {
            connect::spawn(self);
        }
        Ok(receiver)
    }

    /// How full the pool is.
    pub fn usage(&self) -> PoolUse {
        let state = self.state.lock();
        let idle = u32::try_from(state.idle.len()).unwrap_or(u32::MAX);
        PoolUse {
            idle,
            active: state.open.saturating_sub(idle).saturating_sub(state.connecting),
            connecting: state.connecting,
            waiting: u32::try_from(state.waiters.len() + state.owners.len()).unwrap_or(u32::MAX),
            longest_wait: state
                .waiters
                .iter()
                .find(|waiter| !waiter.is_gone())
                .map_or(Duration::ZERO, |waiter| waiter.since.elapsed()),
        }
    }

    /// The backends that nobody uses.
    pub fn idle(&self) -> Vec<IdleBackend> {
        let state = self.state.lock();
        let reserves = self.reserves();
        let reserved = |backend: &Backend| backend.drawn.held().map(Claim::session);
        let shown = state.idle.iter().map(|backend| IdleBackend {
            pid: backend.key.pid,
            born: backend.born,
            idle_since: backend.idle_since,
            tls: backend.stream.is_tls(),
            prepared: backend.prepared.len(),
            reserved_for: if reserves { reserved(backend) } else { None },
        });
        shown.collect()
    }

    /// Limits it works under.
    pub fn limits(&self) -> &PoolLimits {
        &self.limits
    }

    /// The generation of backends made now; those of an earlier one are not lent any more. Both parts only grow, so
    /// that their sum is another whenever one of them is.
    #[inline]
    fn generation(&self) -> u64 {
        self.node.generation.load(Ordering::Acquire) + self.renewals.load(Ordering::Acquire)
    }

    /// Has every backend replaced: idle ones are closed now, the others when they come back.
    pub fn renew(self: &Arc<Self>) {
        self.renewals.fetch_add(1, Ordering::AcqRel);
        self.close_idle();
    }

    /// Closes every idle backend: their node is gone, or is not what it was.
    pub fn close_idle(self: &Arc<Self>) {
        let closed = {
            let mut state = self.state.lock();
            let closed = std::mem::take(&mut state.idle);
            state.open -= u32::try_from(closed.len()).expect("idle backends are counted in a u32");
            closed
        };
        drop(closed);
        self.serve_line();
    }

    /// Closes what is too old, idle for too long, or was ended by the server; `now` in the pool's seconds. A reserved
    /// backend has to be both: its session may use it for as long as it uses it now and then.
    pub fn sweep(self: &Arc<Self>, now: u32, scratch: &mut [u8]) {
        let generation = self.generation();
        let reserves = self.reserves();
        let closed: Vec<_> = {
            let mut state = self.state.lock();
            let spare = state.open.saturating_sub(self.limits.min_size) as usize;
            let mut idle_closed = 0;
            let close: Vec<_> = state
                .idle
                .extract_if(.., |backend| {
                    let idle = now.saturating_sub(backend.idle_since);
                    let age = now.saturating_sub(backend.born);
                    let too_old =
                        u64::from(age) >= self.limits.lifetime.as_secs() + jitter(backend, &self.limits);
                    let long_idle = u64::from(idle) >= self.limits.idle_timeout.as_secs();
                    let too_idle = long_idle && idle_closed < spare;
                    if reserves && backend.drawn.held().is_some() {
                        return too_old && long_idle
                            || backend.generation != generation
                            || matches!(backend.liveness(scratch), Liveness::Ended);
                    }
                    let ended = backend.generation != generation
                        || matches!(backend.liveness(scratch), Liveness::Ended);
                    idle_closed += usize::from(too_idle);
                    too_old || too_idle || ended
                })
                .collect();
            state.open -= u32::try_from(close.len()).expect("idle backends are counted in a u32");
            close
        };
        drop(closed);
        self.serve_line();
    }

    /// Has connections opened until the pool holds `min_size`.
    pub fn warm_up(self: &Arc<Self>) {
        let wanted = {
            let state = self.state.lock();
            self.limits.min_size.saturating_sub(state.open)
        };
        self.open_up_to(wanted);
    }

    /// Has connections opened until there are enough for so many clients, or as many as there may be.
    pub fn prepare_for(self: &Arc<Self>, clients: usize) {
        let clients = u32::try_from(clients).unwrap_or(u32::MAX);
        let wanted = clients.saturating_sub(self.state.lock().open);
        self.open_up_to(wanted);
    }

    fn open_up_to(self: &Arc<Self>, wanted: u32) {
        for _ in 0..wanted {
            if !self.state.lock().may_open(&self.limits) {
                return;
            }
            connect::spawn(self);
        }
    }

    fn take_back(self: &Arc<Self>, mut backend: Box<Backend>) {
        if backend.generation != self.generation() {
            let loan = backend.lent_of.take();
            drop(backend);
            self.closed_one(loan);
            return;
        }
        backend.idle_since = self.now();
        if self.reserves() {
            self.take_back_reserving(backend);
            return;
        }
        let waiter = {
            let mut state = self.state.lock();
            match state.next_waiter(backend.reactor()) {
                Some(waiter) => waiter,
                None => {
                    state.idle.push(backend);
                    return;
                }
            }
        };
        self.deliver(waiter, backend);
    }

    fn deliver(self: &Arc<Self>, waiter: oneshot::Sender<Delivery>, backend: Box<Backend>) {
        let checkout = Checkout::new(backend, Arc::clone(self));
        // Whoever left in between drops the delivery, which sends the backend on to the next.
        let _ = waiter.send(Ok(Delivered(Some(checkout))));
    }

    /// Delivers a backend that has lain idle, if it is still of use; else another is opened.
    fn deliver_idle(self: &Arc<Self>, waiter: oneshot::Sender<Delivery>, mut backend: Box<Backend>) {
        // Who gives a backend back may have borrowed what belongs to this thread.
        let alive = matches!(backend.liveness(&mut [0; LOOK_SIZE]), Liveness::Alive);
        if alive && backend.generation == self.generation() {
            self.deliver(waiter, backend);
            return;
        }
        let loan = backend.lent_of.take();
        drop(backend);
        let grow = {
            let mut state = self.state.lock();
            state.open -= 1;
            state.end_loan(loan);
            state.waiters.push_front(Waiter::new(waiter));
            state.may_grow(&self.limits)
        };
        if grow {
            connect::spawn(self);
        }
    }

    /// Opens connections for those in line in the place of those that were closed.
    fn serve_line(self: &Arc<Self>) {
        while self.state.lock().may_grow(&self.limits) {
            connect::spawn(self);
        }
    }

    /// A backend is gone, whose own session it may have been lent of: if somebody is in line, another is opened in its
    /// place.
    fn closed_one(self: &Arc<Self>, loan: Option<Claim>) {
        let (grow, moved) = {
            let mut state = self.state.lock();
            state.open -= 1;
            let moved = state.end_loan(loan);
            (!state.waiters.is_empty() && state.may_grow(&self.limits), moved)
        };
        if grow {
            connect::spawn(self);
        }
        if moved {
            self.move_line(false);
        }
    }

    /// Whether there are connections besides those being opened.
    fn has_others(&self) -> bool {
        let state = self.state.lock();
        state.open > state.connecting
    }

    /// Seconds of the pool's coarse clock.
    fn now(&self) -> u32 {
        self.group
            .upgrade()
            .map_or(0, |group| group.clock.load(Ordering::Relaxed))
    }
}

/// Up to a tenth of the lifetime, the same for one backend each time, so that a pool is not replaced at once.
fn jitter(backend: &Backend, limits: &PoolLimits) -> u64 {
    let spread = (limits.lifetime.as_secs() / 10).max(1);
    u64::from(backend.key.pid.unsigned_abs()) % spread
}

impl Waiter {
    /// Somebody who waits on this thread from now on.
    fn new(sender: oneshot::Sender<Delivery>) -> Self {
        Self {
            sender,
            reactor: worker::reactor(),
            since: Instant::now(),
        }
    }

    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }
}

impl State {
    /// The idle backend given back last; near the top, the one that the session had last or has drawn from
    /// sequences on is preferred (`currval` tells there what it has drawn), and then one of this thread's reactor.
    fn take_idle(&mut self, reactor: usize, drawer: &Drawer) -> Option<Box<Backend>> {
        /// How far down an own backend is preferred to a warmer foreign one.
        const NEAR: usize = 8;
        let last = self.idle.len().checked_sub(1)?;
        let mut near = None;
        for at in (self.idle.len().saturating_sub(NEAR)..=last).rev() {
            let backend = &self.idle[at];
            if backend.owner() == drawer.session() || backend.drawn.is_of(drawer) {
                near = Some(at);
                break;
            }
            if near.is_none() && backend.reactor() == reactor {
                near = Some(at);
            }
        }
        Some(self.idle.remove(near.unwrap_or(last)))
    }

    /// Forgets clients that left: those at the head, where they are in the way, or all where the line is full.
    fn drop_closed_waiters(&mut self, waiters_max: usize) {
        if self.waiters.len() >= waiters_max {
            self.waiters.retain(|waiter| !waiter.is_gone());
        }
        while self.waiters.front().is_some_and(Waiter::is_gone) {
            self.waiters.pop_front();
        }
    }

    /// The next in line: of the backend's own thread if one is near the head and the head was not passed over too
    /// often, else the head.
    fn next_waiter(&mut self, reactor: usize) -> Option<oneshot::Sender<Delivery>> {
        while !self.waiters.is_empty() {
            let near = self
                .waiters
                .iter()
                .take(NEAR_HEAD)
                .position(|waiter| waiter.reactor == reactor);
            let place = near.filter(|_| self.overtaken < OVERTAKEN_MAX).unwrap_or(0);
            self.overtaken = if place == 0 { 0 } else { self.overtaken + 1 };
            let waiter = self.waiters.remove(place)?;
            if !waiter.is_gone() {
                return Some(waiter.sender);
            }
        }
        None
    }

    /// Counts a connection in if those being opened are not enough for those in line.
    fn may_grow(&mut self, limits: &PoolLimits) -> bool {
        (self.connecting as usize) < self.waiters.len() && self.may_open(limits)
    }

    fn may_open(&mut self, limits: &PoolLimits) -> bool {
        let room = self.open < limits.size && self.connecting < limits.connects_max;
        if room {
            self.open += 1;
            self.connecting += 1;
        }
        room
    }
}
