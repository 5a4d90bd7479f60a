//! Backends that are reserved for the sessions that have drawn from sequences on them.
//!
//! Where sessions ask `currval` and `lastval` (a pool *reserves* from the first such question of its database and user on),
//! an idle backend with a session's values goes to that session before anybody else. Others take another one, or a new
//! connection, and only where the pool has neither they are lent the one that has lain idle the longest. What they then do
//! there decides: a request that is proved to read leaves the values alone, and the owner waits until it is over; any
//! other has them forgotten. See `docs/adr/0018-reserve-drawn-backends.md`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::{Backend, Checkout, Claim, Delivery, Drawer, Drawn, Draws, Pool, State, Waiter};

/// Who wants a backend, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The session.
    pub drawer: &'a Drawer,
    /// What its request may do with sequences.
    pub draws: Draws,
}

/// A backend on its way to somebody in line.
type Served = (oneshot::Sender<Delivery>, Box<Backend>);

impl Checkout {
    /// What is drawn on it from now on is this session's. Whoever has waited for what was drawn before waits no longer.
    pub fn draw(&mut self, drawer: &mut Drawer) {
        self.drawn = Drawn::By(drawer.claim());
        if let Some(loan) = self.lent_of.take()
            && self.pool.state.lock().end_loan(Some(loan))
        {
            self.pool.move_line(false);
        }
    }

    /// Says that it comes back in a moment: the session that has drawn on it waits for it meanwhile.
    pub fn set_aside(&mut self) {
        if self.pool.reserves()
            && let Some(backend) = &mut self.backend
        {
            self.pool.state.lock().note_loan(backend);
        }
    }
}

impl Pool {
    /// Whether it reserves backends for those who have drawn on them.
    #[inline]
    pub(super) fn reserves(&self) -> bool {
        self.reserves.load(Ordering::Relaxed)
    }

    /// Takes a backend back in a pool that reserves.
    pub(super) fn take_back_reserving(self: &Arc<Self>, backend: Box<Backend>) {
        let served = self.state.lock().place(backend, self.limits.size);
        if let Some((waiter, backend)) = served {
            self.deliver(waiter, backend);
        }
        self.move_line(false);
    }

    /// Serves those in line with what lies idle, and opens connections for the others.
    ///
    /// `in_need`: connections cannot be opened now, so that they get reserved ones too.
    pub(super) fn move_line(self: &Arc<Self>, in_need: bool) {
        loop {
            let served = self.state.lock().serve_next(self.limits.size, in_need);
            let Some((waiter, backend)) = served else { break };
            self.deliver_idle(waiter, backend);
        }
        self.serve_line();
    }
}

impl State {
    /// An idle backend for a session, in a pool that reserves: its own before any other.
    pub(super) fn take_reserving(&mut self, wish: Wish, reactor: usize, size: u32) -> Option<Box<Backend>> {
        if wish.drawer.has_drawn() {
            let mut idle = self.idle.iter();
            if let Some(at) = idle.rposition(|backend| backend.drawn.is_of(wish.drawer)) {
                return Some(self.idle.remove(at));
            }
            if self.own_is_lent(wish).is_some() {
                return None;
            }
        }
        if !self.waiters.is_empty() {
            return None;
        }
        self.take_unreserved(wish.drawer.session(), reactor)
            .or_else(|| self.is_exhausted(size, 1).then(|| self.lend_reserved())?)
    }

    /// The claim of a session that has to wait for its own backend, as that is lent to somebody else.
    pub(super) fn own_is_lent(&self, wish: Wish) -> Option<Claim> {
        if wish.draws == Draws::Nothing {
            return None;
        }
        let claim = self.lent.iter().find(|claim| claim.is_of(wish.drawer));
        claim.cloned()
    }

    /// The idle backend given back last that nobody has a claim to; one that the session had last or one of this thread's
    /// reactor is preferred.
    fn take_unreserved(&mut self, session: u64, reactor: usize) -> Option<Box<Backend>> {
        let mut found = None;
        let mut is_near = false;
        for (at, backend) in self.idle.iter().enumerate().rev() {
            if backend.drawn.held().is_some() {
                continue;
            }
            if backend.owner() == session {
                found = Some(at);
                break;
            }
            let near = backend.reactor() == reactor;
            if found.is_none() || (near && !is_near) {
                (found, is_near) = (Some(at), near);
            }
        }
        found.map(|at| self.idle.remove(at))
    }

    /// Lends the idle backend that was given back longest ago, and notes whose it is.
    fn lend_reserved(&mut self) -> Option<Box<Backend>> {
        let mut backend = (!self.idle.is_empty()).then(|| self.idle.remove(0))?;
        self.note_loan(&mut backend);
        Some(backend)
    }

    /// Notes whose a backend is that goes to somebody else.
    pub(super) fn note_loan(&mut self, backend: &mut Backend) {
        backend.lent_of = backend.drawn.held().cloned();
        self.lent.extend(backend.lent_of.clone());
    }

    /// A backend that was lent is gone, or is not its owner's any more. Who waits for it gets in line; whether somebody
    /// does.
    pub(super) fn end_loan(&mut self, claim: Option<Claim>) -> bool {
        let Some(claim) = claim else { return false };
        if let Some(at) = self.lent.iter().position(|lent| *lent == claim) {
            self.lent.swap_remove(at);
        }
        let owner = self.owners.iter().position(|(owner, _)| *owner == claim);
        let Some(at) = owner else { return false };
        let (_, waiter) = self.owners.swap_remove(at);
        self.waiters.push_back(waiter);
        true
    }

    /// Whether all connections are open that there may be, and fewer are on their way than `wanted`.
    fn is_exhausted(&self, size: u32, wanted: usize) -> bool {
        self.open >= size && (self.connecting as usize) < wanted
    }

    /// Lays a backend down that came back, or says who gets it: its owner, or else the next in line, if it is nobody's or
    /// there is no other for them.
    fn place(&mut self, mut backend: Box<Backend>, size: u32) -> Option<Served> {
        let owner = self.owner_in_line(&backend);
        let loan = backend.lent_of.take();
        let was_lent = loan.is_some();
        self.end_loan(loan);
        if let Some(owner) = owner {
            return Some((owner, backend));
        }
        let reserved = backend.drawn.held().is_some();
        if (!reserved || self.is_exhausted(size, self.waiters.len()))
            && let Some(waiter) = self.next_waiter(backend.reactor())
        {
            self.note_loan(&mut backend);
            return Some((waiter, backend));
        }
        if reserved && was_lent {
            // The next to need one is lent this one again, and not another.
            self.idle.insert(0, backend);
        } else {
            self.idle.push(backend);
        }
        None
    }

    /// Takes the session out of the line that waits for this backend alone, which is its own still.
    fn owner_in_line(&mut self, backend: &Backend) -> Option<oneshot::Sender<Delivery>> {
        let claim = backend.drawn.held()?;
        let at = self.owners.iter().position(|(owner, _)| owner == claim)?;
        let (_, waiter) = self.owners.swap_remove(at);
        (!waiter.is_gone()).then_some(waiter.sender)
    }

    /// An idle backend for the next in line, if there is one for it.
    fn serve_next(&mut self, size: u32, in_need: bool) -> Option<Served> {
        if self.waiters.is_empty() {
            return None;
        }
        let reserved_too = in_need || self.is_exhausted(size, self.waiters.len());
        // Whoever that is: no session is preferred, and no thread.
        let backend = self
            .take_unreserved(0, usize::MAX)
            .or_else(|| reserved_too.then(|| self.lend_reserved())?)?;
        match self.next_waiter(backend.reactor()) {
            Some(waiter) => Some((waiter, backend)),
            None => self.place(backend, size),
        }
    }

    /// Has a session wait for its own backend alone.
    pub(super) fn wait_for_own(&mut self, claim: Claim, waiter: Waiter) {
        self.owners.retain(|(_, waiter)| !waiter.is_gone());
        self.owners.push((claim, waiter));
    }
}
