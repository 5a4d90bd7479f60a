//! What classification costs: a hit, a miss, and the walk alone.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use halyard::classify::{ClassCache, FunctionCatalog, KeySeed, Lexer, Settings, StatementKey, classify};

const PGBENCH_SELECT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;";
const PGBENCH_UPDATE: &str = "UPDATE pgbench_accounts SET abalance = abalance + -1234 WHERE aid = 12345;";
/// 351 bytes, as an ORM writes them.
const ORM_JOIN: &str = concat!(
    r#"SELECT "order"."id", "order"."net", "order"."created_at", "customer"."id", "customer"."name", "#,
    r#""customer"."email", COUNT("line"."id") AS "lines" FROM "order" INNER JOIN "customer" ON ("order"."customer_id" "#,
    r#"= "customer"."id") LEFT OUTER JOIN "line" ON ("order"."id" = "line"."order_id") WHERE "customer"."id" = $1 "#,
    r#"GROUP BY "order"."id" LIMIT 21 OFFSET 0"#
);

fn in_list() -> String {
    let mut sql = String::from("SELECT * FROM orders WHERE id IN (");
    let mut id = 100_000;
    while sql.len() < 10_000 {
        sql.push_str(&id.to_string());
        sql.push(',');
        id += 37;
    }
    sql.pop();
    sql.push(')');
    sql
}

fn bench(criterion: &mut Criterion) {
    assert_eq!(ORM_JOIN.len(), 351);
    let (settings, catalog) = (Settings::default(), FunctionCatalog::builtin());
    let in_list = in_list();
    for (name, sql) in [
        ("pgbench_select", PGBENCH_SELECT),
        ("pgbench_update", PGBENCH_UPDATE),
        ("orm_join_351", ORM_JOIN),
        ("in_list_10k", &in_list),
    ] {
        let text = sql.as_bytes();
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function("lex", |bencher| {
            bencher.iter(|| Lexer::new(black_box(text), true).fold(0, |sum, token| sum ^ token.end));
        });
        let seed = KeySeed::random();
        group.bench_function("key", |bencher| {
            bencher.iter(|| StatementKey::of(black_box(text), &settings, &seed));
        });
        group.bench_function("walk", |bencher| {
            bencher.iter(|| classify(black_box(text), &settings, &catalog));
        });
        let mut cache = ClassCache::new(ClassCache::DEFAULT_CAPACITY, seed);
        group.bench_function("hit", |bencher| {
            bencher.iter(|| cache.classify(black_box(text), &settings, &catalog));
        });
        // The same statement with ever other constants, so that its text is never met again.
        let others: Vec<Vec<u8>> = (0..20_000)
            .map(|n| [text, format!(" -- {n}").as_bytes()].concat())
            .collect();
        let mut cache = ClassCache::new(256, seed);
        cache.classify(&others[0], &settings, &catalog);
        let mut next = others.iter().cycle();
        group.bench_function("hit_by_tokens", |bencher| {
            bencher.iter(|| {
                let text = next.next().expect("a cycle does not end");
                cache.classify(black_box(text), &settings, &catalog)
            });
        });
        assert_eq!(cache.stats().misses, 1, "every hit has to be one");
        // The same statement under ever other names, more of them than the cache holds.
        let others: Vec<Vec<u8>> = (0..2_000)
            .map(|n| [text, format!(" -- {n}\nAND x{n}").as_bytes()].concat())
            .collect();
        let mut cache = ClassCache::new(256, KeySeed::random());
        let mut next = others.iter().cycle();
        group.bench_function("miss", |bencher| {
            bencher.iter(|| {
                let text = next.next().expect("a cycle does not end");
                cache.classify(black_box(text), &settings, &catalog)
            });
        });
        assert_eq!(cache.stats().hits, 0, "every miss has to be one");
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
