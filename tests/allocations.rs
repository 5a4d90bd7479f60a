//! What runs for every statement must not allocate.

use std::hint::black_box;

use halyard::classify::{ClassCache, FunctionCatalog, KeySeed, Settings, classify};

const TEXTS: [&str; 4] = [
    "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
    "UPDATE pgbench_accounts SET abalance = abalance + -1234 WHERE aid = 12345;",
    r#"SELECT "order"."id", COUNT("line"."id") AS "lines" FROM "order" WHERE "order"."id" = $1 GROUP BY "order"."id""#,
    "BEGIN",
];

fn allocations(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

#[test]
fn a_class_out_of_the_cache_or_found_anew_allocates_nothing() {
    let (settings, catalog) = (Settings::default(), FunctionCatalog::builtin());
    let mut cache = ClassCache::new(64, KeySeed::random());
    for text in TEXTS {
        let text = text.as_bytes();
        let met_once = text.iter().map(|&byte| if byte == b'1' { b'2' } else { byte });
        let met_once: Vec<u8> = met_once.collect();
        let miss = allocations(|| {
            black_box(cache.classify(text, &settings, &catalog));
        });
        let hit_by_text = allocations(|| {
            black_box(cache.classify(text, &settings, &catalog));
        });
        let hit_by_tokens = allocations(|| {
            black_box(cache.classify(&met_once, &settings, &catalog));
        });
        let walk = allocations(|| {
            black_box(classify(text, &settings, &catalog));
        });
        assert_eq!((miss, hit_by_text, hit_by_tokens, walk), (0, 0, 0, 0), "{text:?}");
    }
    // The counter counts.
    assert_eq!(allocations(|| drop(Box::new(1))), 1);
}
