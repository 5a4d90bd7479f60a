//! Prepared statements: what a client calls them, and what a backend calls them.
//!
//! A text with its parameter types is one [`Statement`] for all clients of a database and user, with one name on every
//! backend that holds it, however many clients prepared it under however many names. What a server makes of a text is
//! settled when it is prepared, so what decides it besides the text ([`Meaning`]) tells statements apart: sessions whose
//! names lead to other tables (another `search_path`), or whose constants are read otherwise (another `DateStyle`), have one of
//! their own, and so has whoever prepares it after the tables have changed ([`Epoch`]).

use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher};
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::class::{PACKED_BITS, StatementClass};
use super::settings::{Scope, may_be_read_otherwise, may_have_constants, names_a_moment};
use crate::catalog::GENERATION_BITS;

// A class and the generation that it is of are one number.
const _: () = assert!(PACKED_BITS + GENERATION_BITS == u64::BITS);

/// What names stand for, as far as Halyard has seen it change: the objects of a database between two statements that
/// changed some, or those that one session has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

/// The epoch that begins next; no two are alike.
static EPOCHS: AtomicU64 = AtomicU64::new(1);

impl Epoch {
    /// Begins one that nobody else has.
    pub fn begin() -> Self {
        Self(EPOCHS.fetch_add(1, Ordering::Relaxed))
    }
}

/// The epoch of a database, which goes on when its objects change.
#[derive(Debug)]
pub struct CurrentEpoch(AtomicU64);

impl Default for CurrentEpoch {
    fn default() -> Self {
        Self(AtomicU64::new(Epoch::begin().0))
    }
}

impl CurrentEpoch {
    /// The epoch now.
    #[inline]
    pub fn load(&self) -> Epoch {
        Epoch(self.0.load(Ordering::Acquire))
    }

    /// Begins the next: what is prepared from now on is prepared afresh.
    pub fn advance(&self) -> Epoch {
        let next = Epoch::begin();
        self.0.fetch_max(next.0, Ordering::AcqRel);
        next
    }

    /// As [`CurrentEpoch::advance`], if the epoch is still the one of a statement that turned out to be outdated: many
    /// find that out at once.
    pub fn leave(&self, outdated: Epoch) -> Epoch {
        let now = self.load();
        if now == outdated { self.advance() } else { now }
    }
}

/// What decides, besides its text, which statement a Parse makes.
#[derive(Clone, Copy, Debug)]
pub struct Meaning<'a> {
    scope: &'a Scope,
    group: NonZeroU32,
    epoch: Epoch,
    /// That of the texts that may be read otherwise under other settings, if it is another.
    constants: Option<Epoch>,
}

impl Meaning<'_> {
    /// One that nobody else has: what is prepared with it is prepared afresh.
    #[must_use]
    pub fn afresh(self) -> Self {
        Self {
            epoch: Epoch::begin(),
            constants: None,
            ..self
        }
    }

    /// As [`Meaning::afresh`], for texts that may be read otherwise under other settings.
    #[must_use]
    pub fn afresh_for_constants(self) -> Self {
        Self {
            constants: Some(Epoch::begin()),
            ..self
        }
    }

    #[inline]
    fn epoch_of(&self, text: &[u8]) -> Epoch {
        self.constants
            .filter(|_| may_be_read_otherwise(text))
            .unwrap_or(self.epoch)
    }
}

/// A query text with its parameter types.
#[derive(Debug)]
pub struct Statement {
    id: u64,
    name: Box<[u8]>,
    text: Box<[u8]>,
    types: Box<[u8]>,
    /// What of the [`Scope`] of the sessions that it is for matters to its text.
    scope: Arc<str>,
    /// Whether its text may have constants.
    has_constants: bool,
    /// Whether its text may be read otherwise under other settings.
    read_otherwise: bool,
    /// The group whose clients it is for.
    group: NonZeroU32,
    /// When it was prepared first.
    epoch: Epoch,
    /// A [`StatementClass`] in its packed form; 0 while nobody has classified it.
    class: AtomicU64,
    /// Whether a server has taken it.
    taken: AtomicBool,
    /// The columns that it answered with when it was prepared first, as a hash; 0 while nobody has asked.
    shape: AtomicU64,
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

    #[inline]
    fn says(&self, meaning: Meaning<'_>, text: &[u8], types: &[u8]) -> bool {
        self.group == meaning.group
            && *self.text == *text
            && *self.types == *types
            && self.epoch == meaning.epoch_of(text)
            && self.is_for(meaning.scope)
    }

    /// Its class, computed by `classify` unless it is known for this generation of the catalogue.
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

    /// Takes note of a server having parsed it.
    pub fn taken(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    /// Whether a server is known to have parsed it.
    pub fn was_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// When it was prepared first.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether the names and constants in it stand for what they do in `scope`.
    pub fn is_for(&self, scope: &Scope) -> bool {
        *self.scope == *scope.for_constants(self.has_constants)
    }

    /// The columns that it answers with, as [`Shape`] of the first who asked a server; none while nobody has.
    pub fn shape(&self) -> Option<Shape> {
        NonZeroU64::new(self.shape.load(Ordering::Relaxed)).map(Shape)
    }

    /// Takes note of the columns that it answers with on some backend. False if they are not those of before: the
    /// objects that it names have changed since.
    pub fn agrees_on(&self, shape: Shape) -> bool {
        let relaxed = Ordering::Relaxed;
        match self.shape.compare_exchange(0, shape.0.get(), relaxed, relaxed) {
            Ok(_) => true,
            Err(known) => known == shape.0.get(),
        }
    }

    /// Makes its class known, whatever it was taken for before.
    pub fn learn(&self, generation: u32, class: StatementClass) {
        self.class.store(
            u64::from(generation) << PACKED_BITS | class.pack(),
            Ordering::Relaxed,
        );
    }
}

/// The names and types of a statement's columns, as a hash.
///
/// Names that are not ASCII are left out: how they are written hangs on who asks (`client_encoding`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(NonZeroU64);

impl Shape {
    /// That of a statement without columns.
    pub fn none() -> Self {
        Self::of_hash(&DefaultHasher::new())
    }

    /// Reads a RowDescription's body. `None` if it is malformed.
    pub fn of_row_description(body: &[u8]) -> Option<Self> {
        /// Table, column, type, its size, its modifier, format.
        const FIXED: usize = 4 + 2 + 4 + 2 + 4 + 2;
        let (count, mut rest) = body.split_first_chunk::<2>()?;
        let mut hasher = DefaultHasher::new();
        count.hash(&mut hasher);
        for _ in 0..u16::from_be_bytes(*count) {
            let end = rest.iter().position(|&byte| byte == 0)?;
            let (name, tail) = rest.split_at(end);
            let (fixed, tail) = tail.get(1..)?.split_first_chunk::<FIXED>()?;
            if name.is_ascii() {
                name.hash(&mut hasher);
            }
            // Which table a column is of does not matter, nor in which format it is asked for.
            fixed[6..16].hash(&mut hasher);
            rest = tail;
        }
        rest.is_empty().then(|| Self::of_hash(&hasher))
    }

    fn of_hash(hasher: &DefaultHasher) -> Self {
        Self(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN))
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
    fn hash(&self, meaning: Meaning<'_>, text: &[u8], types: &[u8]) -> u64 {
        self.hasher.hash_one((
            text,
            types,
            meaning.scope.for_text(text),
            meaning.group,
            meaning.epoch_of(text),
        ))
    }

    /// The statement of this text and these types with this meaning.
    pub fn statement(&self, meaning: Meaning<'_>, text: &[u8], types: &[u8]) -> Arc<Statement> {
        self.intern(self.hash(meaning, text, types), meaning, text, types)
    }

    fn intern(&self, hash: u64, meaning: Meaning<'_>, text: &[u8], types: &[u8]) -> Arc<Statement> {
        let mut shard = self.shards[place(hash, SHARDS)].lock();
        let bucket = shard.entry(hash).or_default();
        bucket.retain(|statement| statement.strong_count() > 0);
        let known = bucket
            .iter()
            .filter_map(Weak::upgrade)
            .find(|known| known.says(meaning, text, types));
        if let Some(known) = known {
            return known;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let statement = Arc::new(Statement {
            id,
            name: format!("halyard_{id:x}").into_bytes().into_boxed_slice(),
            text: text.into(),
            types: types.into(),
            scope: Arc::clone(meaning.scope.for_text(text)),
            has_constants: may_have_constants(text),
            read_otherwise: may_be_read_otherwise(text),
            group: meaning.group,
            epoch: meaning.epoch_of(text),
            class: AtomicU64::new(0),
            taken: AtomicBool::new(false),
            shape: AtomicU64::new(0),
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

    /// The statement of this text and these types with this meaning.
    #[inline]
    pub fn statement(
        &mut self,
        registry: &StatementRegistry,
        meaning: Meaning<'_>,
        text: &[u8],
        types: &[u8],
    ) -> Arc<Statement> {
        let hash = registry.hash(meaning, text, types);
        let found = &mut self.places[place(hash, CACHE_PLACES)];
        if let Some((known, statement)) = found
            && *known == hash
            && statement.says(meaning, text, types)
        {
            return Arc::clone(statement);
        }
        if names_a_moment(text) {
            // It is one of its own each time, which no place has.
            return registry.statement(meaning.afresh(), text, types);
        }
        let statement = registry.intern(hash, meaning, text, types);
        if text.len() <= CACHED_TEXT_MAX {
            *found = Some((hash, Arc::clone(&statement)));
        }
        statement
    }
}

type Names = HashMap<Box<[u8]>, Arc<Statement>, RandomState>;

/// The statements that one client has prepared, by its own names.
#[derive(Debug)]
pub struct ClientStatements {
    named: Option<Box<Names>>,
    /// The unnamed one.
    pub unnamed: Option<Arc<Statement>>,
    /// That of the client's settings, for what it prepares next.
    pub scope: Scope,
    /// The number of the client's group.
    group: NonZeroU32,
    own: OwnEpochs,
}

/// While texts may stand for something else for one client than for any other, epochs of its own. It goes by the latest.
#[derive(Debug, Default)]
struct OwnEpochs {
    /// For as long as it keeps its backend: it has temporary objects, or settings that cannot be followed.
    lasting: Option<Epoch>,
    /// For the moment: its transaction has changed objects, or settings that names and constants hang on.
    moment: Option<Epoch>,
    /// Whether constants hang on what has changed in that moment.
    reads: bool,
    /// For texts that may be read otherwise: it has run code that nobody has read, which may have changed settings.
    constants: Option<Epoch>,
    /// That of such texts from the last transaction on that did so and is over, for as long as the client keeps its backend.
    unread: Option<Epoch>,
}

/// Names that were taken away, and what they stood for.
#[derive(Debug, Default)]
pub struct Forgotten(Vec<(Box<[u8]>, Arc<Statement>)>);

impl Forgotten {
    /// One name.
    pub fn one(name: &[u8], statement: Arc<Statement>) -> Self {
        Self(vec![(name.into(), statement)])
    }

    /// Whether a name is among them.
    pub fn has(&self, name: &[u8]) -> bool {
        self.0.iter().any(|(known, _)| **known == *name)
    }
}

impl ClientStatements {
    /// None yet, of a client of this group.
    pub fn new(group: NonZeroU32) -> Self {
        Self {
            named: None,
            unnamed: None,
            scope: Scope::default(),
            group,
            own: OwnEpochs::default(),
        }
    }

    /// Names may stand for something else from here on, and for this client alone; constants too, where it `reads` otherwise.
    pub fn begin_moment(&mut self, reads: bool) {
        self.own.moment = Some(Epoch::begin());
        self.own.reads |= reads || self.own.constants.take().is_some();
    }

    /// Code that nobody has read may have changed settings: constants may stand for something else from here on. Where names
    /// lead a server looks after itself.
    pub fn distrust_constants(&mut self) {
        self.own.constants = Some(Epoch::begin());
    }

    /// Whether something stands for something else for the moment.
    #[inline]
    pub fn has_moment(&self) -> bool {
        self.own.moment.is_some() || self.own.constants.is_some()
    }

    /// What was changed for the moment may have been taken back, or be over with its transaction: what is prepared from here on
    /// is not what was prepared before.
    pub fn renew_moment(&mut self) {
        let own = &mut self.own;
        for epoch in [&mut own.moment, &mut own.constants].into_iter().flatten() {
            *epoch = Epoch::begin();
        }
    }

    /// The transaction is over that had changed settings for itself alone. What nobody has read may have changed them for
    /// longer: that counts until the backend is given back. False if there was no such transaction.
    #[inline]
    pub fn leave_moment(&mut self) -> bool {
        let own = &mut self.own;
        own.reads = false;
        own.unread = own.constants.take().or(own.unread);
        own.moment.take().is_some()
    }

    /// All stands for what it does to whoever has the same settings.
    #[inline]
    pub fn end_own(&mut self) {
        self.own = OwnEpochs::default();
    }

    /// What stands for something else does so until the backend is given back; constants too, unless they are `known`.
    pub fn keep_own(&mut self, known: bool) {
        let own = std::mem::take(&mut self.own);
        let unknown = own.constants.or(own.unread).filter(|_| !known);
        self.own.lasting = unknown.or(own.moment).or(own.lasting);
    }

    /// Whether a statement may be read otherwise by the settings in force than by those in which it was prepared.
    #[inline]
    pub fn may_read_otherwise(&self, statement: &Statement) -> bool {
        statement.read_otherwise && (self.reads_otherwise(statement) || self.has_own_beside(statement))
    }

    /// As [`ClientStatements::may_read_otherwise`], as far as it is known what has changed the settings.
    #[inline]
    pub fn is_known_to_read_otherwise(&self, statement: &Statement) -> bool {
        let moment = || self.own.reads && self.own.moment.is_some_and(|own| own != statement.epoch);
        statement.read_otherwise && (self.reads_otherwise(statement) || moment())
    }

    fn reads_otherwise(&self, statement: &Statement) -> bool {
        !statement.is_for(&self.scope)
    }

    fn has_own_beside(&self, statement: &Statement) -> bool {
        // A server looks names up again: that they alone have changed is no matter.
        let moment = self.own.moment.filter(|_| self.own.reads);
        let lasting = self.own.unread.or(self.own.lasting);
        let own = self.own.constants.or(moment).or(lasting);
        own.is_some_and(|own| own != statement.epoch)
    }

    /// What the client means by what it prepares now. `current` is its database's epoch.
    #[inline]
    pub fn meaning(&self, current: Epoch) -> Meaning<'_> {
        let unread = self.own.unread.filter(|_| self.own.moment.is_none());
        Meaning {
            scope: &self.scope,
            group: self.group,
            epoch: self.own.moment.or(self.own.lasting).unwrap_or(current),
            constants: self.own.constants.or(unread),
        }
    }

    /// What a name stands for.
    #[inline]
    pub fn named(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.as_ref()?.get(name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.named
            .iter()
            .flat_map(|named| named.keys().map(|name| &**name))
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

    /// Gives the names of an outdated statement, and the place of the unnamed one, to the one that takes its place.
    pub fn replace(&mut self, outdated: &Arc<Statement>, by: &Arc<Statement>) {
        let named = self.named.iter_mut().flat_map(|named| named.values_mut());
        for statement in named.chain(&mut self.unnamed) {
            if Arc::ptr_eq(statement, outdated) {
                *statement = Arc::clone(by);
            }
        }
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

#[cfg(test)]
mod tests;
