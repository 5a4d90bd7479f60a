use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::{Encoding, FunctionOverrides};
use super::*;

/// The recorded catalogue, read once: each property asks it thousands of times.
static CATALOG: LazyLock<FunctionCatalog> = LazyLock::new(FunctionCatalog::builtin);

fn key(sql: &str) -> Option<StatementKey> {
    thread_local!(static SEED: KeySeed = KeySeed::random());
    SEED.with(|seed| StatementKey::of(sql.as_bytes(), &Settings::default(), seed))
}

#[track_caller]
fn same(texts: &[&str]) {
    for text in texts {
        assert_eq!(key(text), key(texts[0]), "{text}");
    }
}

#[test]
fn constants_are_left_out_of_the_key() {
    same(&[
        "SELECT 1",
        "SELECT 22.5",
        "SELECT 'a'",
        "SELECT E'\\''",
        "SELECT $$a$$",
        "SELECT $1",
        "SELECT U&'x'",
    ]);
    same(&["a IN (1)", "a IN (1, 2)", "a IN (1,2, 'x')"]);
    same(&["a /* x */ b", "a /* yy */ b"]);
}

#[test]
fn everything_else_is_in_the_key() {
    let texts = [
        "SELECT 1",
        "SELECT -1",
        "SELECT a",
        "SELECT A",
        "SELECT \"a\"",
        "SELECT 1, a",
        "SELECT 1,a",
        "SELECT a, 1",
        "SELECT 1;",
        "SELECT (1)",
        "SELECT a1",
        "SELECT a 1",
        "SELECT/**/1",
        "SELECT 1 1",
        "SELECT 1 a 1",
        "SELECT ab",
        "SELECT a/**/b",
        "SELECT nextval('s')",
        "SELECT \"nextval\"('s')",
        "SELECT 1 -- x",
        "/* halyard.route: primary */ SELECT 1",
        "/* halyard.route: replica */ SELECT 1",
        "/* halyard.route: auto */ SELECT 1",
        "/* x */ SELECT 1",
        "SELECT 1 /* halyard.route: primary */",
        "SELECT 1 /* halyard.route: replica */",
        "",
        " ",
    ];
    for (index, one) in texts.iter().enumerate() {
        for other in &texts[..index] {
            assert_ne!(key(one), key(other), "{one:?} {other:?}");
        }
    }
    // Long pieces, with a difference at each place.
    let long = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";
    for at in 0..long.len() {
        let mut changed = long.to_owned();
        changed.replace_range(at..=at, "_");
        assert_ne!(key(long), key(&changed), "{at}");
        assert_ne!(key(&long[..at]), key(&long[..=at]), "{at}");
    }
}

#[test]
fn texts_that_are_not_read_have_no_key() {
    assert_eq!(key("SELECT 'a"), None);
    let seed = KeySeed::random();
    let short = Settings {
        max_len: 3,
        ..Settings::default()
    };
    assert_eq!(StatementKey::of(b"SELECT 1", &short, &seed), None);
    let unsafe_encoding = Settings {
        encoding: Encoding::Unsafe,
        ..Settings::default()
    };
    assert_eq!(StatementKey::of(b"\x83\x5c", &unsafe_encoding, &seed), None);
}

#[test]
fn a_class_is_kept_and_says_so() {
    let (settings, catalog) = (Settings::default(), FunctionCatalog::builtin());
    let mut cache = ClassCache::new(64, KeySeed::random());
    let first = cache.classify(b"SELECT 1, nextval('a')", &settings, &catalog);
    let second = cache.classify(b"SELECT 1000, nextval('b')", &settings, &catalog);
    assert_eq!(first.key, second.key);
    assert!(
        first.class.at.is_some() && second.class.at.is_none(),
        "offsets belong to one text"
    );
    assert_eq!(
        Class {
            at: None,
            ..first.class
        },
        second.class
    );
    assert_eq!(
        cache.stats(),
        CacheStats {
            hits: 1,
            misses: 1,
            uncacheable: 0
        }
    );
    for _ in 0..2 {
        assert_eq!(cache.classify(b"SET a.b = 'c'", &settings, &catalog).key, None);
    }
    assert_eq!(
        cache.stats(),
        CacheStats {
            hits: 1,
            misses: 1,
            uncacheable: 2
        }
    );
}

#[test]
fn a_constant_that_decides_is_not_kept() {
    let (settings, catalog) = (Settings::default(), FunctionCatalog::builtin());
    let mut cache = ClassCache::new(64, KeySeed::random());
    let mut is_read = |sql: &[u8]| cache.classify(sql, &settings, &catalog).class.is_read();
    assert!(is_read(b"SELECT current_setting('app.tenant')"));
    assert!(!is_read(b"SELECT current_setting('in_hot_standby')"));
    assert!(is_read(b"SELECT current_setting('app.tenant')"));
}

#[test]
fn a_learned_write_stays_until_the_catalogue_changes() {
    let settings = Settings::default();
    let (catalog, changed) = (FunctionCatalog::builtin(), FunctionCatalog::empty());
    let seed = KeySeed::random();
    let (mut cache, mut other) = (ClassCache::new(4, seed), ClassCache::new(4, seed));
    let sql = b"SELECT 1 FROM t";
    let Classified { class, key } = cache.classify(sql, &settings, &catalog);
    assert!(class.is_read());
    let key = key.expect("a read is kept");
    cache.learn_write(key, class);
    other.classify(b"SELECT 2", &settings, &catalog);
    other.learn_write(key, class);
    for cache in [&mut cache, &mut other] {
        // More other statements than the one set has ways.
        for n in 0..100 {
            cache.classify(format!("SELECT a{n}").as_bytes(), &settings, &catalog);
        }
        assert_eq!(
            cache.classify(sql, &settings, &catalog).class.rule,
            Rule::LearnedWrite
        );
        assert!(cache.classify(sql, &settings, &changed).class.is_read());
        assert!(cache.classify(sql, &settings, &catalog).class.is_read());
    }
}

#[test]
fn a_set_full_of_learned_writes_learns_on() {
    let (settings, catalog) = (Settings::default(), FunctionCatalog::empty());
    let mut cache = ClassCache::new(1, KeySeed::random());
    for n in 0..10 {
        let sql = format!("SELECT a{n}");
        let Classified { class, key } = cache.classify(sql.as_bytes(), &settings, &catalog);
        cache.learn_write(key.expect("kept"), class);
        assert_eq!(
            cache.classify(sql.as_bytes(), &settings, &catalog).class.rule,
            Rule::LearnedWrite
        );
    }
}

#[test]
fn the_latest_used_stay_longest() {
    let (settings, catalog) = (Settings::default(), FunctionCatalog::empty());
    let mut cache = ClassCache::new(4, KeySeed::random());
    let mut hits = |sql: &str| {
        let before = cache.stats().hits;
        cache.classify(sql.as_bytes(), &settings, &catalog);
        cache.stats().hits > before
    };
    for sql in ["SELECT a", "SELECT b", "SELECT c", "SELECT d"] {
        assert!(!hits(sql));
    }
    assert!(hits("SELECT a"));
    assert!(!hits("SELECT e"), "takes the place of b");
    assert!(hits("SELECT a") && hits("SELECT c") && hits("SELECT d") && hits("SELECT e"));
    assert!(!hits("SELECT b"));
}

#[test]
fn overrides_are_part_of_a_catalogues_generation() {
    let allow = FunctionOverrides {
        allow: vec!["f".to_owned()],
        deny: Vec::new(),
    };
    let allowed = FunctionCatalog::from_rows([], &allow).expect("no row is wrong");
    let (settings, mut cache) = (Settings::default(), ClassCache::new(4, KeySeed::random()));
    assert!(
        !cache
            .classify(b"SELECT f()", &settings, &FunctionCatalog::empty())
            .class
            .is_read()
    );
    assert!(cache.classify(b"SELECT f()", &settings, &allowed).class.is_read());
}

proptest! {
    /// The claim that the cache rests on: texts of one key have one class.
    #[test]
    fn constants_do_not_change_the_key_or_the_class(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "SELECT ", "nextval(", "lower(", ")", ", ", "@", " FROM t ", "; ", "set_config(", "true", "x ", "(", " IN ", "DELETE FROM ",
                "BEGIN ", "READ ONLY ", "COPY ", " TO ", "STDOUT ", "interval ", "-", "+", "::", "pg_sleep(", " INTO ", "a.", " AS ",
                "EXPLAIN ", "@, @", "PREPARE TRANSACTION ", "current_setting(", "SET ", "\"q\" ", "/* c */",
            ]),
            0..25,
        ),
        constants in prop::collection::vec(prop::sample::select(vec!["1", "'a'", "$1", "$$x$$", "E'\\''", "2.5", "'pg_temp'", "''"]), 60),
    ) {
        let pattern = parts.concat();
        let mut constant = constants.iter();
        let mut fill = || -> String {
            pattern.split('@').enumerate().map(|(index, part)| {
                if index == 0 { part.to_owned() } else { format!(" {} {part}", constant.next().expect("sixty are enough")) }
            }).collect()
        };
        let (one, other) = (fill(), fill());
        prop_assert_eq!(key(&one), key(&other));
        let class = |sql: &str| Class { at: None, ..classify(sql.as_bytes(), &Settings::default(), &CATALOG) };
        let (one, other) = (class(&one), class(&other));
        prop_assert_eq!(one.cacheable, other.cacheable);
        if one.cacheable {
            prop_assert_eq!(one, other, "{}", pattern);
        }
    }
}

/// Comments that are hints, that only look so, and what makes them one or the other.
const COMMENTS: &[&str] = &[
    "/* c */",
    "/* halyard.route: replica */",
    "/*halyard.route:primary*/",
    "/*tag='/* halyard.route: replica */'*/",
    "-- halyard.route: replica\n",
];
const CONSTANTS: &[&str] = &[
    "1",
    "2.5",
    "1e3",
    "$1",
    "'a'",
    "''",
    "'/* halyard.route: replica */'",
    "E'\\''",
    "$$x$$",
    "$q$ ' $q$",
    "X'1f'",
    "U&'x'",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// The same claim for any text: its own constants and comments are changed for others, and where the keys still
    /// agree, so must the classes, the hint among them.
    #[test]
    fn texts_of_one_key_have_one_class(
        pieces in prop::collection::vec(
            prop_oneof![
                3 => prop::sample::select(CONSTANTS).prop_map(str::to_owned),
                2 => prop::sample::select(COMMENTS).prop_map(str::to_owned),
                6 => prop::sample::select(vec![
                    "SELECT ", " ", "\n", ";", ",", ", ", "(", ")", "a", "nextval(", "set_config(", ", true)", "current_setting(",
                    "SET x = ", "SHOW x", "BEGIN ", "READ ONLY", "FROM t ", "INTO ", "\"q\"", ".", "-", "e", "U&", "$", "IN (",
                ]).prop_map(str::to_owned),
                1 => "[ -~]{1,3}",
            ],
            0..16,
        ),
        instead in prop::collection::vec((any::<bool>(), 0..CONSTANTS.len()), 16),
        conforming: bool,
    ) {
        let one = pieces.concat();
        let settings = Settings { standard_conforming_strings: conforming, ..Settings::default() };
        let (mut other, mut copied) = (String::new(), 0);
        let mut instead = instead.iter().cycle();
        for token in crate::classify::Lexer::new(one.as_bytes(), conforming) {
            let new: Option<&[&str]> = match token.kind {
                TokenKind::String | TokenKind::Number | TokenKind::Parameter => Some(CONSTANTS),
                TokenKind::Comment => Some(COMMENTS),
                _ => None,
            };
            let Some((&(true, choice), new)) = instead.next().zip(new) else { continue };
            other.push_str(&one[copied..token.start]);
            other.push_str(new[choice % new.len()]);
            copied = token.end;
        }
        other.push_str(&one[copied..]);
        let seed = KeySeed::random();
        let keys = [&one, &other].map(|text| StatementKey::of(text.as_bytes(), &settings, &seed));
        if let [Some(key), Some(same)] = keys && key == same {
            let [one_class, other_class] = [&one, &other].map(|text| {
                let class = classify(text.as_bytes(), &settings, &CATALOG);
                Class { at: None, ..class }
            });
            prop_assert_eq!(one_class.cacheable, other_class.cacheable, "{:?} {:?}", one, other);
            if one_class.cacheable {
                prop_assert_eq!(one_class, other_class, "{:?} {:?}", one, other);
            }
        }
    }
}

/// The same bytes are other tokens when a backslash escapes: what follows the quote is text or is not.
#[test]
fn a_text_is_another_under_another_reading_of_strings() {
    let catalog = FunctionCatalog::builtin();
    let mut cache = ClassCache::new(64, KeySeed::random());
    let backslashes = Settings {
        standard_conforming_strings: false,
        ..Settings::default()
    };
    let text = br"SELECT 'a\', nextval('b')--'";
    for _ in 0..2 {
        let usual = cache.classify(text, &Settings::default(), &catalog).class;
        let other = cache.classify(text, &backslashes, &catalog).class;
        assert_eq!(
            (usual.access, usual.rule),
            (Access::Write, Rule::VolatileFunction)
        );
        assert_ne!(usual.rule, other.rule);
    }
}

#[test]
fn what_a_standby_teaches_holds_for_texts_that_were_met_before() {
    let (catalog, settings) = (FunctionCatalog::builtin(), Settings::default());
    let mut cache = ClassCache::new(64, KeySeed::random());
    let mut class = |text: &str| cache.classify(text.as_bytes(), &settings, &catalog);
    let known = class("SELECT lower('a')");
    assert_eq!(class("SELECT lower('b')"), class("SELECT lower('a')"));
    cache.learn_write(known.key.expect("it is kept"), known.class);
    for text in ["SELECT lower('a')", "SELECT lower('b')", "SELECT lower('c')"] {
        let learned = cache.classify(text.as_bytes(), &settings, &catalog).class;
        assert_eq!(learned.rule, Rule::LearnedWrite, "{text}");
    }
}

#[test]
fn texts_that_are_met_once_do_not_push_out_one_that_is_met_again() {
    let (catalog, settings) = (FunctionCatalog::builtin(), Settings::default());
    // One set of texts alone.
    let mut cache = ClassCache::new(1, KeySeed::random());
    let often = TextKey::of(b"SELECT 1", &settings, &cache.seed);
    for number in 0..10 {
        cache.classify(b"SELECT 1", &settings, &catalog);
        cache.classify(b"SELECT 1", &settings, &catalog);
        cache.classify(format!("SELECT 1{number}").as_bytes(), &settings, &catalog);
        assert!(cache.find_text(often).is_some());
    }
    assert_eq!(cache.stats().misses, 1);
}
