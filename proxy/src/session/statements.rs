//! Prepared statements: what a client calls them, and what a backend calls them.
//!
//! A text with its parameter types is one [`Statement`] for the whole process, with one name on every backend
//! that holds it, however many clients prepared it under however many names. What a server makes of a text is settled
//! when it is prepared, so sessions whose names lead to other tables (another `search_path`) have a statement of their
//! own.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::class::{PACKED_BITS, StatementClass};

/// A query text with its parameter types.
#[derive(Debug)]
pub struct Statement {
    id: u64,
    name: Box<[u8]>,
    text: Box<[u8]>,
    types: Box<[u8]>,
    /// The [`Settings::name_scope`](super::Settings::name_scope) of the sessions that it is for.
    scope: Arc<str>,
    /// A [`StatementClass`] in its packed form; 0 while nobody has classified it.
    class: AtomicU64,
    /// The group for which a server took it last; 0 for none.
    taken_for: AtomicU32,
}

impl Statement {
    /// Halyard's number for it, never used twice.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its name on every backend.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The query text.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The tail of its Parse body: the count of parameter types and the types.
    pub fn types(&self) -> &[u8] {
        &self.types
    }

    /// Its class, computed by `classify` unless it is known for this generation of the catalogue (24 bits count).
    #[inline]
    pub fn class(&self, generation: u32, classify: impl FnOnce(&[u8]) -> StatementClass) -> StatementClass {
        const MASK: u64 = (1 << PACKED_BITS) - 1;
        let packed = self.class.load(Ordering::Relaxed);
        if packed & MASK != 0 && packed >> PACKED_BITS == u64::from(generation) {
            return StatementClass::unpack(packed & MASK);
        }
        let class = classify(&self.text);
        self.learn(generation, class);
        class
    }

    /// Takes note of a server having parsed it for clients of this group.
    pub fn taken(&self, group: NonZeroU32) {
        self.taken_for.store(group.get(), Ordering::Relaxed);
    }

    /// Whether a server is known to have parsed it for clients of this group.
    pub fn was_taken(&self, group: NonZeroU32) -> bool {
        self.taken_for.load(Ordering::Relaxed) == group.get()
    }

    /// Makes its class known, whatever it was taken for before.
    pub fn learn(&self, generation: u32, class: StatementClass) {
        self.class.store(
            u64::from(generation) << PACKED_BITS | class.pack(),
            Ordering::Relaxed,
        );
    }
}

/// One of `places` for a hash.
#[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
fn place(hash: u64, places: usize) -> usize {
    hash as usize % places
}

/// All statements that anybody holds, by what they say.
#[derive(Debug)]
pub struct StatementRegistry {
    hasher: RandomState,
    next_id: AtomicU64,
    shards: Vec<Mutex<HashMap<u64, Vec<Weak<Statement>>>>>,
}

const SHARDS: usize = 64;

impl Default for StatementRegistry {
    fn default() -> Self {
        Self {
            hasher: RandomState::default(),
            next_id: AtomicU64::new(1),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl StatementRegistry {
    /// The statement of this text and these types, where names mean what they do in `scope`.
    fn intern(&self, hash: u64, scope: &Arc<str>, text: &[u8], types: &[u8]) -> Arc<Statement> {
        let mut shard = self.shards[place(hash, SHARDS)].lock();
        let bucket = shard.entry(hash).or_default();
        bucket.retain(|statement| statement.strong_count() > 0);
        let known = bucket
            .iter()
            .filter_map(Weak::upgrade)
            .find(|known| *known.text == *text && *known.types == *types && known.scope == *scope);
        if let Some(known) = known {
            return known;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let statement = Arc::new(Statement {
            id,
            name: format!("halyard_{id:x}").into_bytes().into_boxed_slice(),
            text: text.into(),
            types: types.into(),
            scope: Arc::clone(scope),
            class: AtomicU64::new(0),
            taken_for: AtomicU32::new(0),
        });
        bucket.push(Arc::downgrade(&statement));
        statement
    }

    /// Forgets the places of statements that nobody holds any more.
    pub fn sweep(&self) {
        for shard in &self.shards {
            shard.lock().retain(|_, bucket| {
                bucket.retain(|statement| statement.strong_count() > 0);
                !bucket.is_empty()
            });
        }
    }
}

/// The statements that one thread met last, so that a text met again asks nobody.
#[derive(Debug)]
pub struct StatementCache {
    places: Vec<Option<(u64, Arc<Statement>)>>,
}

/// Places in a thread's cache; a text has one place.
const CACHE_PLACES: usize = 2048;
/// Texts longer than this are not kept alive by the cache.
const CACHED_TEXT_MAX: usize = 16 * 1024;

impl Default for StatementCache {
    fn default() -> Self {
        Self {
            places: vec![None; CACHE_PLACES],
        }
    }
}

impl StatementCache {
    /// Lets go of all statements.
    pub fn forget(&mut self) {
        self.places.fill(None);
    }

    /// The statement of this text and these types, where names mean what they do in `scope`.
    #[inline]
    pub fn statement(
        &mut self,
        registry: &StatementRegistry,
        scope: &Arc<str>,
        text: &[u8],
        types: &[u8],
    ) -> Arc<Statement> {
        let hash = registry.hasher.hash_one((text, types, scope));
        let found = &mut self.places[place(hash, CACHE_PLACES)];
        if let Some((known, statement)) = found
            && *known == hash
            && *statement.text == *text
            && *statement.types == *types
            && statement.scope == *scope
        {
            return Arc::clone(statement);
        }
        let statement = registry.intern(hash, scope, text, types);
        if text.len() <= CACHED_TEXT_MAX {
            *found = Some((hash, Arc::clone(&statement)));
        }
        statement
    }
}

type Names = HashMap<Box<[u8]>, Arc<Statement>, RandomState>;

/// The statements that one client has prepared, by its own names.
#[derive(Debug, Default)]
pub struct ClientStatements {
    named: Option<Box<Names>>,
    /// The unnamed one.
    pub unnamed: Option<Arc<Statement>>,
    /// The [`Settings::name_scope`](super::Settings::name_scope) of the client, for what it prepares next.
    pub scope: Arc<str>,
}

/// Names that were taken away, and what they stood for.
#[derive(Debug, Default)]
pub struct Forgotten(Vec<(Box<[u8]>, Arc<Statement>)>);

impl Forgotten {
    /// One name.
    pub fn one(name: &[u8], statement: Arc<Statement>) -> Self {
        Self(vec![(name.into(), statement)])
    }
}

impl ClientStatements {
    /// What a name stands for.
    #[inline]
    pub fn named(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.as_ref()?.get(name)
    }

    /// The client's name for the statement that backends know by `name`.
    pub fn name_of(&self, name: &[u8]) -> Option<&[u8]> {
        let named = self.named.as_ref()?;
        let (known, _) = named.iter().find(|(_, statement)| statement.name() == name)?;
        Some(known)
    }

    /// Gives a statement a name; what had it before is returned.
    pub fn name(&mut self, name: &[u8], statement: Arc<Statement>) -> Option<Arc<Statement>> {
        self.named
            .get_or_insert_with(Box::default)
            .insert(name.into(), statement)
    }

    /// Takes a name away; what had it is returned.
    pub fn close(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.named.as_mut()?.remove(name)
    }

    /// Takes all names away, as DEALLOCATE ALL does, and returns them.
    pub fn forget_named(&mut self) -> Forgotten {
        let named = self.named.take();
        Forgotten(named.map_or_else(Vec::new, |named| named.into_iter().collect()))
    }

    /// Gives back names that were taken away, unless they were given anew.
    pub fn remember(&mut self, forgotten: Forgotten) {
        for (name, statement) in forgotten.0 {
            self.named
                .get_or_insert_with(Box::default)
                .entry(name)
                .or_insert(statement);
        }
    }

    /// Whether none has a name.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many have names.
    pub fn len(&self) -> usize {
        self.named.as_ref().map_or(0, |named| named.len())
    }
}

/// The statements that are prepared on one backend, with the order in which they were last used.
#[derive(Debug)]
pub struct PreparedSet {
    last_used: HashMap<u64, (u64, Arc<Statement>), RandomState>,
    tick: u64,
    max: usize,
    /// True once statements may have been dropped without Halyard knowing which.
    in_doubt: bool,
}

impl PreparedSet {
    /// None yet, and never more than `max`.
    pub fn new(max: usize) -> Self {
        Self {
            last_used: HashMap::default(),
            tick: 0,
            max: max.max(1),
            in_doubt: false,
        }
    }

    /// Whether the statement is there; if so it counts as used.
    #[inline]
    pub fn touch(&mut self, statement: &Statement) -> bool {
        self.tick += 1;
        match self.last_used.get_mut(&statement.id) {
            Some((used, _)) => {
                *used = self.tick;
                true
            }
            None => false,
        }
    }

    /// Takes note of a statement being prepared; the one to be closed for it, if there are too many.
    pub fn insert(&mut self, statement: Arc<Statement>) -> Option<Arc<Statement>> {
        self.tick += 1;
        let oldest = (self.last_used.len() >= self.max)
            .then(|| {
                self.last_used
                    .iter()
                    .min_by_key(|(_, (used, _))| *used)
                    .map(|(&id, _)| id)
            })
            .flatten();
        let evicted = oldest
            .and_then(|id| self.last_used.remove(&id))
            .map(|(_, statement)| statement);
        self.last_used.insert(statement.id, (self.tick, statement));
        evicted
    }

    /// Takes note of a statement not being there after all.
    pub fn remove(&mut self, id: u64) {
        self.last_used.remove(&id);
    }

    /// Whether none is known to be there.
    pub fn is_empty(&self) -> bool {
        self.last_used.is_empty()
    }

    /// How many are known to be there.
    pub fn len(&self) -> usize {
        self.last_used.len()
    }

    /// Takes note of all being gone, perhaps: from now on a name is closed before it is prepared.
    pub fn doubt(&mut self) {
        self.last_used.clear();
        self.in_doubt = true;
    }

    /// Whether a statement that is not in the set may be on the backend all the same.
    pub fn in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Takes note of all being gone for certain.
    pub fn clear(&mut self) {
        self.last_used.clear();
        self.in_doubt = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_is_one_statement_and_types_and_scopes_tell_texts_apart() {
        let registry = StatementRegistry::default();
        let mut cache = StatementCache::default();
        let scope = Arc::default();
        let one = cache.statement(&registry, &scope, b"select $1", b"\0\0");
        let same = StatementCache::default().statement(&registry, &scope, b"select $1", b"\0\0");
        let other = cache.statement(&registry, &scope, b"select $1", b"\0\x01\0\0\0\x17");
        let elsewhere = cache.statement(&registry, &"search_path=a\0".into(), b"select $1", b"\0\0");
        assert!(Arc::ptr_eq(&one, &same));
        assert_ne!(one.name(), other.name());
        assert_ne!(one.name(), elsewhere.name());
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let registry = StatementRegistry::default();
        drop(StatementCache::default().statement(&registry, &Arc::default(), b"select 1", b"\0\0"));
        registry.sweep();
        assert!(registry.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn the_longest_unused_is_closed_first() {
        let registry = StatementRegistry::default();
        let mut cache = StatementCache::default();
        let texts: Vec<_> = [&b"a"[..], b"b", b"c"]
            .iter()
            .map(|text| cache.statement(&registry, &Arc::default(), text, b"\0\0"))
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
