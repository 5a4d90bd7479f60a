//! Which statements are prepared on a backend, and who may meet them as they are there.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::Statement;

/// The statements that are prepared on one backend, with the order in which they were last used.
#[derive(Debug)]
pub struct PreparedSet {
    held: HashMap<u64, Held, RandomState>,
    tick: u64,
    max: usize,
    /// True once statements may be there that are not held.
    in_doubt: bool,
    /// Statements that are prepared there in another shape than they have for their clients, still to be closed.
    outdated: Vec<Arc<Statement>>,
    /// Those that the server was told to close and has not answered for: an error may have it skip that.
    /// The latest of them, no more than may be held.
    leaving: VecDeque<Arc<Statement>>,
    /// The number of the session that has the backend, or had it last; 0 before the first.
    borrower: u64,
    /// Counts the moments of its settings.
    moment: u64,
}

/// A statement on a backend.
#[derive(Debug)]
struct Held {
    used: u64,
    meets: Meets,
    statement: Arc<Statement>,
}

/// Who may meet a statement as it is on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meets {
    /// Whoever has it.
    Anybody,
    /// This session: the server may have read it anew under settings that were this session's alone.
    Session(u64),
    /// Whoever has it in this moment: it was prepared under settings that its client had for the moment.
    Moment(u64),
    /// Nobody: nobody knows whether it is there. It counts all the same, and is closed before it is prepared.
    Unsure,
}

impl PreparedSet {
    /// None yet, and never more than `max`.
    pub fn new(max: usize) -> Self {
        Self {
            held: HashMap::default(),
            tick: 0,
            max: max.max(1),
            in_doubt: false,
            outdated: Vec::new(),
            leaving: VecDeque::new(),
            borrower: 0,
            moment: 0,
        }
    }

    /// Takes note of the backend being lent to a session.
    #[inline]
    pub fn lend(&mut self, session: u64) {
        self.borrower = session;
        self.end_moment();
    }

    /// The number of the session that has the backend, or had it last.
    #[inline]
    pub fn borrower(&self) -> u64 {
        self.borrower
    }

    /// Whether the statement is there as its client may meet it; if so it counts as used. One that is not for it is closed
    /// before the next is prepared.
    #[inline]
    pub fn touch(&mut self, statement: &Statement) -> bool {
        self.find(statement, false)
    }

    /// As [`PreparedSet::touch`], for a client that prepares it now: what the server may have read anew is not for it.
    #[inline]
    pub fn touch_anew(&mut self, statement: &Statement) -> bool {
        self.find(statement, true)
    }

    #[inline]
    fn find(&mut self, statement: &Statement, anew: bool) -> bool {
        self.tick += 1;
        let Some(held) = self.held.get_mut(&statement.id()) else {
            return false;
        };
        held.used = self.tick;
        let meets = match held.meets {
            Meets::Anybody => true,
            Meets::Session(session) => session == self.borrower && !anew,
            Meets::Moment(moment) => moment == self.moment,
            Meets::Unsure => false,
        };
        if !meets && let Some(held) = self.held.remove(&statement.id()) {
            self.outdated.push(held.statement);
        }
        meets
    }

    /// Takes note of a statement being prepared; the one to be closed for it, if there are too many.
    pub fn insert(&mut self, statement: Arc<Statement>) -> Option<Arc<Statement>> {
        self.tick += 1;
        let id = statement.id();
        let is_one_more = !self.held.contains_key(&id);
        let oldest = (is_one_more && self.held.len() >= self.max)
            .then(|| {
                self.held
                    .iter()
                    .min_by_key(|(_, held)| held.used)
                    .map(|(&id, _)| id)
            })
            .flatten();
        let evicted = oldest
            .and_then(|id| self.held.remove(&id))
            .map(|held| held.statement);
        if let Some(evicted) = &evicted {
            self.leave(Arc::clone(evicted));
        }
        if self.in_doubt {
            self.leave(Arc::clone(&statement));
        }
        let (used, meets) = (self.tick, Meets::Anybody);
        let held = Held {
            used,
            meets,
            statement,
        };
        self.held.insert(id, held);
        evicted
    }

    /// Takes note of a statement not being there after all.
    pub fn remove(&mut self, id: u64) {
        self.held.remove(&id);
    }

    /// Takes note of a statement being there in another shape than its clients know: it is closed before the next is
    /// prepared.
    pub fn outdate(&mut self, statement: &Arc<Statement>) {
        if self.held.remove(&statement.id()).is_some() {
            self.outdated.push(Arc::clone(statement));
        }
    }

    /// Takes note of a statement that was prepared there just now being read as its client has it for the moment, who had it
    /// prepared otherwise.
    pub fn estrange(&mut self, statement: &Statement) {
        if let Some(held) = self.held.get_mut(&statement.id()) {
            held.meets = Meets::Moment(self.moment);
        }
    }

    /// Takes note of a statement being used there under other settings than those in which it was prepared: where its tables
    /// have changed the server reads it anew (`RevalidateCachedQuery` in plancache.c). To its client the server would have
    /// done the same; nobody else is to meet it.
    pub fn set_apart(&mut self, statement: &Statement) {
        if let Some(held) = self.held.get_mut(&statement.id())
            && held.meets == Meets::Anybody
        {
            held.meets = Meets::Session(self.borrower);
        }
    }

    /// The moment is over: nobody is to meet what was prepared in it for the moment.
    #[inline]
    pub fn end_moment(&mut self) {
        self.moment += 1;
    }

    /// Hands out the statements to be closed.
    pub fn take_outdated(&mut self) -> Vec<Arc<Statement>> {
        let outdated = std::mem::take(&mut self.outdated);
        for statement in &outdated {
            self.leave(Arc::clone(statement));
        }
        outdated
    }

    fn leave(&mut self, statement: Arc<Statement>) {
        if self.leaving.len() >= self.max {
            self.leaving.pop_front();
        }
        self.leaving.push_back(statement);
    }

    /// Takes note of everything being closed that was to be.
    pub fn end_leaving(&mut self) {
        self.leaving.clear();
    }

    /// Whether none is there, as far as anybody knows.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many are there, or may be.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Takes note of all being gone, perhaps: from now on a name is closed before it is prepared. Those that may be there are
    /// as many as before, and are closed in their turn.
    pub fn doubt(&mut self) {
        for held in self.held.values_mut() {
            held.meets = Meets::Unsure;
        }
        self.outdated.extend(self.leaving.drain(..));
        self.in_doubt = true;
    }

    /// Whether a statement that is not in the set may be on the backend all the same.
    pub fn in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Takes note of all being gone for certain.
    pub fn clear(&mut self) {
        self.held.clear();
        self.outdated.clear();
        self.leaving.clear();
        self.in_doubt = false;
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::super::{ClientStatements, Epoch, StatementRegistry};
    use super::*;

    /// A text with a constant, as one client has prepared it, in a set of a backend that is lent to session 1.
    fn held() -> (PreparedSet, Arc<Statement>) {
        let registry = StatementRegistry::default();
        let client = ClientStatements::new(NonZeroU32::MIN);
        let statement = registry.statement(client.meaning(Epoch::begin()), b"SELECT '1'", b"\0\0");
        let mut set = PreparedSet::new(2);
        set.lend(1);
        set.insert(Arc::clone(&statement));
        (set, statement)
    }

    #[test]
    fn what_was_prepared_for_a_moment_is_closed_behind_it() {
        let (mut set, statement) = held();
        set.estrange(&statement);
        assert!(set.touch(&statement));
        set.end_moment();
        assert!(!set.touch(&statement) && set.is_empty());
        assert_eq!(set.take_outdated().len(), 1);
    }

    /// A server reads a plan anew where its tables have changed, under the settings of whoever uses it.
    #[test]
    fn what_was_used_under_other_settings_is_nobody_elses() {
        let (mut set, statement) = held();
        set.set_apart(&statement);
        set.end_moment();
        set.lend(1);
        assert!(set.touch(&statement));
        set.lend(2);
        assert!(!set.touch(&statement));
        assert_eq!(set.take_outdated().len(), 1);
        set.insert(Arc::clone(&statement));
        set.set_apart(&statement);
        assert!(!set.touch_anew(&statement));
    }

    /// They were forgotten, and stayed on the server besides as many others.
    #[test]
    fn what_may_be_there_counts_and_is_closed_in_its_turn() {
        let registry = StatementRegistry::default();
        let client = ClientStatements::new(NonZeroU32::MIN);
        let text = |text: &[u8]| registry.statement(client.meaning(Epoch::begin()), text, b"\0\0");
        let (first, second, third) = (text(b"first"), text(b"second"), text(b"third"));
        let mut set = PreparedSet::new(2);
        set.insert(Arc::clone(&first));
        set.insert(Arc::clone(&second));
        set.doubt();
        assert_eq!(set.len(), 2);
        assert!(!set.touch(&second) && set.in_doubt());
        assert!(set.insert(Arc::clone(&second)).is_none(), "it has its place");
        assert!(set.touch(&second));
        assert_eq!(set.insert(third).map(|closed| closed.id()), Some(first.id()));
        // An error has the server skip the Close.
        set.doubt();
        assert!(set.take_outdated().iter().any(|left| left.id() == first.id()));
        set.end_leaving();
        set.doubt();
        assert!(set.take_outdated().is_empty());
    }

    #[test]
    fn the_longest_unused_is_closed_first() {
        let registry = StatementRegistry::default();
        let (client, epoch) = (ClientStatements::new(NonZeroU32::MIN), Epoch::begin());
        let texts: Vec<_> = [&b"a"[..], b"b", b"c"]
            .iter()
            .map(|text| registry.statement(client.meaning(epoch), text, b"\0\0"))
            .collect();
        let mut set = PreparedSet::new(2);
        assert!(set.insert(Arc::clone(&texts[0])).is_none());
        assert!(set.insert(Arc::clone(&texts[1])).is_none());
        assert!(set.touch(&texts[0]));
        let evicted = set.insert(Arc::clone(&texts[2])).unwrap();
        assert_eq!(evicted.id(), texts[1].id());
        assert!(!set.touch(&texts[1]));
    }
}
