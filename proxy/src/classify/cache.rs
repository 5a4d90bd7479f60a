//! A bounded cache of classes, keyed by the text without its constants.
//!
//! # The key
//! A [`StatementKey`] is 128 bits of hash over the text between constants and comments, with a mark for each constant
//! and each comment, and the hint. Texts that differ in constants alone share a key; a list of constants counts as one,
//! so IN lists of any length do too. White space is part of the key: programs write a statement the same way each time.
//!
//! Sharing is sound because a class is a function of the tokens without the values of constants: the walk looks into a
//! constant for statements that it then declares not cacheable (SET, `current_setting`), and whether it does so hangs on
//! the other tokens alone. Texts of equal keys have equal tokens: a token's end depends on its own bytes and on what
//! follows, and what may follow it here is the same bytes or the same kind of mark.
//!
//! # Texts met before
//! Programs send most of their texts again to the letter: an ORM's have parameters where others have constants. So the
//! whole text is looked up first, by a key over its bytes and the one setting that changes how they are read, which takes
//! a quarter of the time that finding its constants takes.
//!
//! # Collisions
//! The two halves are hashed side by side under secrets drawn at random for each process, so nobody outside can search
//! for two texts of one key, and among n texts met by chance the odds are about n² / 2¹²⁹: for a thousand million
//! different statements less than one in 10²⁰. Should it happen all the same, a write goes to a standby, which
//! refuses it with 25006.

use super::catalog::FunctionCatalog;
use super::class::{Access, Class, RouteHint, Rule, TrailingHint};
use super::constants::Constants;
use super::lexer::{TokenKind, is_space};
use super::walk::Walk;
use super::{Settings, classify};

use std::hash::{BuildHasher, RandomState};

#[cfg(test)]
mod tests;

/// Entries of one set. A text can be in its set alone, so a lookup compares at most this many keys.
const WAYS: usize = 4;

/// The secrets of a process's keys. Caches that exchange keys must have the same.
#[derive(Clone, Copy)]
pub struct KeySeed([u64; 4]);

impl KeySeed {
    /// Secrets from the operating system's randomness.
    #[must_use]
    pub fn random() -> Self {
        Self(std::array::from_fn(|place| RandomState::new().hash_one(place)))
    }
}

impl std::fmt::Debug for KeySeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySeed(..)")
    }
}

/// What a statement is known by in a cache. Only keys of one [`KeySeed`] compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatementKey([u64; 2]);

impl StatementKey {
    /// The key of a text. `None` for a text that no class may be kept of: it is not read, or does not end.
    #[must_use]
    pub fn of(text: &[u8], settings: &Settings, seed: &KeySeed) -> Option<Self> {
        if settings.refuses(text).is_some() {
            return None;
        }
        Self::of_read(text, settings, seed)
    }

    /// The key of a text that is read.
    fn of_read(text: &[u8], settings: &Settings, seed: &KeySeed) -> Option<Self> {
        let mut hash = KeyHash::new(seed);
        let mut hashed_to = 0;
        let mut hint: Option<RouteHint> = None;
        let mut trailing = TrailingHint::default();
        let mut leading = true;
        let mut after_constant = false;
        for token in Constants::new(text, settings.standard_conforming_strings) {
            let gap = &text[hashed_to..token.start];
            hashed_to = token.end;
            match token.kind {
                TokenKind::Unterminated => return None,
                TokenKind::Comment => {
                    // A hint stands before everything but white space and other comments, or behind it.
                    leading = leading && gap.iter().copied().all(is_space);
                    if !leading {
                        trailing.pass(text, token);
                    } else if hint.is_none() {
                        hint = RouteHint::of_comment(token.bytes(text));
                    }
                    hash.piece(gap, Mark::Comment);
                    after_constant = false;
                }
                _ => {
                    leading = false;
                    // In a list of constants the second and all later ones add nothing.
                    if !(after_constant && matches!(gap, b"," | b", ")) {
                        hash.piece(gap, Mark::Constant);
                    }
                    after_constant = true;
                }
            }
        }
        hash.piece(&text[hashed_to..], Mark::End);
        Some(hash.finish(hint.or_else(|| trailing.found(text))))
    }
}

/// What a text is known by to the letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TextKey([u64; 2]);

impl TextKey {
    /// The key of a text, read as these settings say.
    #[inline]
    fn of(text: &[u8], settings: &Settings, seed: &KeySeed) -> Self {
        let mut hash = KeyHash::new(seed);
        let mark = if settings.standard_conforming_strings {
            Mark::WholeText
        } else {
            Mark::WholeTextWithBackslashes
        };
        hash.piece(text, mark);
        Self(hash.finish(None).0)
    }
}

/// What ends a piece of hashed text.
#[derive(Clone, Copy)]
enum Mark {
    Constant = 1,
    Comment = 2,
    End = 3,
    WholeText = 4,
    WholeTextWithBackslashes = 5,
}

/// Two multiply-and-fold hashes side by side, each under secrets of its own.
struct KeyHash<'a> {
    seed: &'a KeySeed,
    state: [u64; 2],
}

impl<'a> KeyHash<'a> {
    fn new(seed: &'a KeySeed) -> Self {
        Self {
            seed,
            state: [seed.0[2], seed.0[3]],
        }
    }

    /// One piece, then its length and its mark: together they tell where pieces end, so that no two sequences of
    /// pieces are one sequence of words.
    #[inline]
    fn piece(&mut self, bytes: &[u8], mark: Mark) {
        let (words, rest) = bytes.as_chunks::<16>();
        for word in words {
            let (low, high) = word.split_at(8);
            self.mix(eight(low), eight(high));
        }
        match rest.len() {
            0 => {}
            1..8 => self.mix(up_to_eight(rest), 0),
            // Overlapping reads cover what is left, and the length says how they overlap.
            _ => self.mix(eight(&rest[..8]), eight(&rest[rest.len() - 8..])),
        }
        self.mix(bytes.len() as u64, mark as u64);
    }

    #[inline]
    fn mix(&mut self, low: u64, high: u64) {
        self.state = [
            fold(low ^ self.state[0], high ^ self.seed.0[0]),
            fold(high ^ self.state[1], low ^ self.seed.0[1]),
        ];
    }

    fn finish(mut self, hint: Option<RouteHint>) -> StatementKey {
        self.mix(hint.map_or(0, |hint| 1 + hint as u64), 0);
        self.mix(self.seed.0[3], self.seed.0[2]);
        StatementKey(self.state)
    }
}

/// The product's two halves, one folded over the other.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the two halves are what is wanted"
)]
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline]
fn eight(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("callers take eight bytes"))
}

#[inline]
fn up_to_eight(bytes: &[u8]) -> u64 {
    let four = |part: &[u8]| {
        u64::from(u32::from_le_bytes(
            part.try_into().expect("the caller took four bytes"),
        ))
    };
    match bytes.len() {
        4.. => four(&bytes[..4]) | (four(&bytes[bytes.len() - 4..]) << 32),
        length => {
            let [first, middle, last] = [bytes[0], bytes[length / 2], bytes[length - 1]].map(u64::from);
            first | (middle << 8) | (last << 16)
        }
    }
}

/// A class, and the key to learn by if a standby teaches better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classified {
    /// The class.
    pub class: Class,
    /// The statement's key; `None` if nothing is kept of it.
    pub key: Option<StatementKey>,
}

/// How often a cache knew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Texts whose class was there.
    pub hits: u64,
    /// Texts that were walked over and whose class was kept.
    pub misses: u64,
    /// Texts whose class is never kept.
    pub uncacheable: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    key: StatementKey,
    class: Class,
}

/// A text met lately, with the key of its statement.
#[derive(Clone, Copy)]
struct Text {
    text: TextKey,
    key: StatementKey,
    class: Class,
}

/// Classes of texts met lately: for one thread, of bounded size, valid for one catalogue at a time.
///
/// Each set of four entries is in order of use, the latest first; a new entry takes the place of the last, learned
/// writes being the last to go.
pub struct ClassCache {
    seed: KeySeed,
    sets: Box<[[Option<Entry>; WAYS]]>,
    /// Each text has two places, of which the second is the newcomers': texts that differ in constants come and go
    /// there, and one that is met again moves to the first.
    texts: Box<[[Option<Text>; 2]]>,
    generation: u64,
    stats: CacheStats,
}

impl ClassCache {
    /// 8,192 statements, about half a megabyte, and half as many texts, about as much.
    pub const DEFAULT_CAPACITY: usize = 8192;

    /// An empty cache for about `capacity` statements: rounded up to a power of two, at least four.
    #[must_use]
    pub fn new(capacity: usize, seed: KeySeed) -> Self {
        let sets = capacity.div_ceil(WAYS).next_power_of_two();
        Self {
            seed,
            sets: vec![[None; WAYS]; sets].into_boxed_slice(),
            texts: vec![[None; 2]; sets].into_boxed_slice(),
            generation: 0,
            stats: CacheStats::default(),
        }
    }

    /// The class of a text, kept or found now. Another catalogue than last time empties the cache first.
    pub fn classify(&mut self, text: &[u8], settings: &Settings, catalog: &FunctionCatalog) -> Classified {
        self.follow(catalog);
        if settings.refuses(text).is_some() {
            self.stats.uncacheable += 1;
            return Classified {
                class: classify(text, settings, catalog),
                key: None,
            };
        }
        let text_key = TextKey::of(text, settings, &self.seed);
        if let Some(known) = self.find_text(text_key) {
            self.stats.hits += 1;
            return known;
        }
        self.classify_tokens(text, text_key, settings, catalog)
    }

    /// The class of a text that was not met lately to the letter.
    fn classify_tokens(
        &mut self,
        text: &[u8],
        text_key: TextKey,
        settings: &Settings,
        catalog: &FunctionCatalog,
    ) -> Classified {
        let key = StatementKey::of_read(text, settings, &self.seed);
        if let Some(key) = key
            && let Some(class) = self.find(key)
        {
            self.stats.hits += 1;
            self.insert_text(text_key, key, class);
            return Classified {
                class,
                key: Some(key),
            };
        }
        let class = Walk::new(text, settings.standard_conforming_strings, catalog)
            .run()
            .0;
        let Some(key) = key.filter(|_| class.cacheable) else {
            self.stats.uncacheable += 1;
            return Classified { class, key: None };
        };
        self.stats.misses += 1;
        let kept = Class { at: None, ..class };
        self.insert(Entry { key, class: kept });
        self.insert_text(text_key, key, kept);
        Classified {
            class,
            key: Some(key),
        }
    }

    /// A standby refused the statement of this key and `class` as a write (25006): it is one from now on, for as long
    /// as the catalogue stays the same. Keys of another cache are good if it has the same [`KeySeed`].
    pub fn learn_write(&mut self, key: StatementKey, class: Class) {
        let class = Class {
            access: Access::Write,
            rule: Rule::LearnedWrite,
            at: None,
            ..class
        };
        // Which texts share the key is not known.
        self.texts.fill([None; 2]);
        match self.find(key) {
            Some(_) => self.set_of(key)[0] = Some(Entry { key, class }),
            None => self.insert(Entry { key, class }),
        }
    }

    /// How often the cache knew, since it was made.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.stats
    }

    fn follow(&mut self, catalog: &FunctionCatalog) {
        if self.generation != catalog.generation() {
            self.sets.fill([None; WAYS]);
            self.texts.fill([None; 2]);
            self.generation = catalog.generation();
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "any bits choose a place, the low ones do"
    )]
    #[inline]
    fn places_of(&mut self, text: TextKey) -> &mut [Option<Text>; 2] {
        let place = text.0[0] as usize & (self.texts.len() - 1);
        &mut self.texts[place]
    }

    /// What is known of a text, which gets its first place.
    #[inline]
    fn find_text(&mut self, text: TextKey) -> Option<Classified> {
        let places = self.places_of(text);
        let is_it = |known: &Text| known.text == text;
        if !places[0].as_ref().is_some_and(is_it) {
            if !places[1].as_ref().is_some_and(is_it) {
                return None;
            }
            places.swap(0, 1);
        }
        places[0].as_ref().map(|known| Classified {
            class: known.class,
            key: Some(known.key),
        })
    }

    fn insert_text(&mut self, text: TextKey, key: StatementKey, class: Class) {
        self.places_of(text)[1] = Some(Text { text, key, class });
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "any bits choose a set, the low ones do"
    )]
    fn set_of(&mut self, key: StatementKey) -> &mut [Option<Entry>; WAYS] {
        let place = key.0[0] as usize & (self.sets.len() - 1);
        &mut self.sets[place]
    }

    /// The class of a key, which becomes its set's latest.
    fn find(&mut self, key: StatementKey) -> Option<Class> {
        let set = self.set_of(key);
        let way = set
            .iter()
            .position(|entry| entry.is_some_and(|entry| entry.key == key))?;
        if way > 0 {
            set[..=way].rotate_right(1);
        }
        set[0].map(|entry| entry.class)
    }

    fn insert(&mut self, entry: Entry) {
        let set = self.set_of(entry.key);
        let replaced = set
            .iter()
            .rposition(|entry| entry.is_none_or(|entry| entry.class.rule != Rule::LearnedWrite))
            .unwrap_or(WAYS - 1);
        set[replaced] = Some(entry);
        set[..=replaced].rotate_right(1);
    }
}

impl std::fmt::Debug for ClassCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClassCache")
            .field("capacity", &(self.sets.len() * WAYS))
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
