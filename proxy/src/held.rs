//! What is held while no node can take it: how many statements, how many bytes of them, and whose.
//!
//! The places and the bytes are limited (`failover.held_clients_max`, `failover.held_bytes_max`), and shared: every
//! database and user has its part of them for sure, and what the others do not need of theirs is whoever's comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics;

/// How much is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Clients, each with one statement.
    pub clients: usize,
    /// Bytes of their statements.
    pub bytes: usize,
}

/// Counts what is held: in all, or of one database and user.
#[derive(Debug, Default)]
pub struct Held {
    clients: AtomicUsize,
    bytes: AtomicUsize,
}

impl Held {
    /// How much it is now.
    pub fn amount(&self) -> Amount {
        Amount {
            clients: self.clients.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn add(&self, bytes: usize) {
        self.clients.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: usize) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A place among the held statements, for as long as one is held.
#[derive(Debug)]
pub struct HeldPlace {
    all: Arc<Held>,
    own: Arc<Held>,
    bytes: usize,
}

impl HeldPlace {
    /// Counts a statement of so many bytes in both.
    pub fn take(all: &Arc<Held>, own: &Arc<Held>, bytes: usize) -> Self {
        all.add(bytes);
        own.add(bytes);
        Self {
            all: Arc::clone(all),
            own: Arc::clone(own),
            bytes,
        }
    }
}

impl Drop for HeldPlace {
    fn drop(&mut self) {
        self.all.give_back(self.bytes);
        self.own.give_back(self.bytes);
    }
}

/// A statement that is held. How long it was is observed however that ends.
#[derive(Debug)]
pub struct Hold {
    _place: HeldPlace,
    since: Instant,
}

impl Hold {
    /// Begins now, in a place of its own.
    pub fn begin(place: HeldPlace) -> Self {
        Self {
            _place: place,
            since: Instant::now(),
        }
    }

    /// When it began.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// How long it has lasted.
    pub fn lasted(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        metrics::observe_hold(self.lasted());
    }
}

/// The limit that a statement exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// `failover.held_clients_max`.
    Clients,
    /// `failover.held_bytes_max`.
    Bytes,
}

/// Which limit is exceeded, if one is, with a statement that is counted already in `total` and among the `own` of its
/// database and user.
pub fn exceeded(max: Amount, total: Amount, own: Amount, others: &[Amount]) -> Option<Exceeded> {
    // Where there are many, a share is small: one statement everybody may have while there is room.
    let sole = own.clients <= 1;
    let fits = |of: fn(&Amount) -> usize| {
        let (max, total) = (of(&max), of(&total));
        let others = others.iter().map(of);
        (sole && total <= max) || leaves_room(max, total, of(&own), others)
    };
    if !fits(|amount| amount.clients) {
        Some(Exceeded::Clients)
    } else if !fits(|amount| amount.bytes) {
        Some(Exceeded::Bytes)
    } else {
        None
    }
}

/// Whether what one of several has, counted already among the `total` of all, leaves the others what is theirs: of `max`
/// each has the same share for sure.
fn leaves_room(max: usize, total: usize, own: usize, others: impl ExactSizeIterator<Item = usize>) -> bool {
    let share = max / (others.len() + 1);
    let kept_free: usize = others.map(|held| share.saturating_sub(held)).sum();
    total <= max && (own <= share || total + kept_free <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_users_statements_do_not_take_every_place() {
        let leaves_room = |max, total, own, others: &[usize]| {
            let amount = |of| Amount {
                clients: of,
                bytes: of,
            };
            let others: Vec<_> = others.iter().map(|of| amount(*of)).collect();
            let by_both = exceeded(amount(max), amount(total), amount(own), &others);
            let by_bytes = exceeded(
                Amount {
                    clients: 1000,
                    bytes: max,
                },
                Amount {
                    clients: own,
                    bytes: total,
                },
                Amount {
                    clients: own,
                    bytes: own,
                },
                &others,
            );
            assert_eq!(by_both.is_some(), by_bytes == Some(Exceeded::Bytes));
            by_both.is_none()
        };
        // Alone a user has them all, and not one more.
        assert!(leaves_room(10, 10, 10, &[]));
        assert!(!leaves_room(10, 11, 11, &[]));
        // Beside another who holds nothing yet it has half.
        assert!(leaves_room(10, 5, 5, &[0]));
        assert!(!leaves_room(10, 6, 6, &[0]));
        // What others have of theirs is not kept free for them twice, and what they have beyond it counts.
        assert!(leaves_room(9, 6, 3, &[3, 0]));
        assert!(!leaves_room(9, 7, 4, &[3, 0]));
        assert!(leaves_room(9, 9, 1, &[5, 3]));
        // One statement everybody may have, however many they are, while there is room.
        let alone = Amount {
            clients: 1,
            bytes: 50,
        };
        let max = Amount {
            clients: 100,
            bytes: 100,
        };
        assert_eq!(exceeded(max, alone, alone, &[Amount::default(); 99]), None);
        let two = Amount { clients: 2, ..alone };
        assert_eq!(
            exceeded(max, two, two, &[Amount::default(); 99]),
            Some(Exceeded::Clients)
        );
        // Fewer places than users: whoever comes first, and nobody beyond.
        assert!(leaves_room(1, 1, 1, &[0, 0]));
        assert!(!leaves_room(1, 2, 1, &[1, 0]));
    }

    #[test]
    fn a_place_that_is_left_is_free() {
        let (all, own) = (Arc::new(Held::default()), Arc::new(Held::default()));
        let first = HeldPlace::take(&all, &own, 10);
        let second = HeldPlace::take(&all, &Arc::default(), 5);
        assert_eq!(
            all.amount(),
            Amount {
                clients: 2,
                bytes: 15
            }
        );
        assert_eq!(
            own.amount(),
            Amount {
                clients: 1,
                bytes: 10
            }
        );
        drop(first);
        assert_eq!(own.amount(), Amount::default());
        drop(second);
        assert_eq!(all.amount(), Amount::default());
    }
}
