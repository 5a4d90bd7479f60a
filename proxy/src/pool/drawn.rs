//! Who has drawn from sequences on a backend. A server keeps that for `currval` and `lastval`, and tells it whoever asks on
//! the same connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A session as one that draws from sequences: it has one backend at a time whose values are its own, the one that it
/// [claims](Drawer::claim). So what `lastval` tells it there is what it has drawn last, wherever it was before.
#[derive(Debug)]
pub struct Drawer {
    shared: Arc<Shared>,
    /// The claim that it made last.
    last: u64,
}

#[derive(Debug)]
struct Shared {
    /// The session's number, which no other session has.
    session: u64,
    /// The number of the claim that holds; 0 where none does.
    present: AtomicU64,
}

impl Drawer {
    /// That of the session of this number, which has drawn nothing.
    pub fn new(session: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                session,
                present: AtomicU64::new(0),
            }),
            last: 0,
        }
    }

    /// The session's number.
    #[inline]
    pub fn session(&self) -> u64 {
        self.shared.session
    }

    /// A claim to the backend on which it draws from now on. The one before does not hold any more.
    pub fn claim(&mut self) -> Claim {
        self.last += 1;
        self.shared.present.store(self.last, Ordering::Relaxed);
        Claim {
            shared: Arc::clone(&self.shared),
            number: self.last,
        }
    }

    /// Gives up what it has drawn: nobody asks for it any more.
    pub fn give_up(&self) {
        self.shared.present.store(0, Ordering::Relaxed);
    }

    /// The claim that holds, if one does.
    pub fn present(&self) -> Option<Claim> {
        self.has_drawn().then(|| Claim {
            shared: Arc::clone(&self.shared),
            number: self.last,
        })
    }

    /// Whether a claim holds: somewhere there may be a backend with what it has drawn.
    #[inline]
    pub fn has_drawn(&self) -> bool {
        self.shared.present.load(Ordering::Relaxed) != 0
    }
}

impl Drop for Drawer {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// A session's claim to what was drawn on one backend. It holds until the session makes another, gives it up, or ends.
#[derive(Clone, Debug)]
pub struct Claim {
    shared: Arc<Shared>,
    number: u64,
}

impl Claim {
    /// Whether it still holds.
    #[inline]
    pub fn holds(&self) -> bool {
        self.shared.present.load(Ordering::Relaxed) == self.number
    }

    /// Whether it holds and is this session's.
    #[inline]
    pub fn is_of(&self, drawer: &Drawer) -> bool {
        Arc::ptr_eq(&self.shared, &drawer.shared) && self.holds()
    }

    /// The number of the session that made it.
    pub fn session(&self) -> u64 {
        self.shared.session
    }
}

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared) && self.number == other.number
    }
}

/// Who may have drawn from sequences on a backend since the server has forgotten what was drawn there.
#[derive(Debug, Default)]
pub enum Drawn {
    /// Nobody.
    #[default]
    Nothing,
    /// Anybody: nobody looked, as the database has no sequence that Halyard knows of.
    Unseen,
    /// The session that made this claim, and nobody since.
    By(Claim),
}

impl Drawn {
    /// Whether `currval` and `lastval` tell this session's values there.
    #[inline]
    pub fn is_of(&self, drawer: &Drawer) -> bool {
        self.claim().is_some_and(|claim| claim.is_of(drawer))
    }

    /// The claim of a session that may still ask.
    #[inline]
    pub fn held(&self) -> Option<&Claim> {
        self.claim().filter(|claim| claim.holds())
    }

    fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Nothing | Self::Unseen => None,
            Self::By(claim) => Some(claim),
        }
    }
}

/// What a request may do with sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Draws {
    /// Nothing: it is proved to read.
    #[default]
    Nothing,
    /// It may draw.
    Maybe,
    /// It asks for what its session has drawn.
    Asks,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_claim_holds_at_a_time() {
        let (mut one, mut other) = (Drawer::new(1), Drawer::new(2));
        let first = one.claim();
        let others = other.claim();
        assert!(first.is_of(&one) && !first.is_of(&other) && first != others);
        let second = one.claim();
        assert!(!first.holds() && second.is_of(&one), "it draws elsewhere now");
        assert_eq!(one.present(), Some(second.clone()));
        one.give_up();
        assert!(!second.holds() && one.present().is_none() && others.holds());
        let third = one.claim();
        assert!(third.holds() && !first.holds() && !second.holds());
        drop(one);
        assert!(!third.holds(), "its session is over");
    }
}
