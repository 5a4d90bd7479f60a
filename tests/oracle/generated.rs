//! Queries made up by chance over a database that has every way to hide a volatile function behind a name.
//!
//! Each runs twice: with its constants by the simple protocol, and with parameters in their places by the extended one.
//! Half of what they are made of reads and half does not, so that neither class is rare. `HALYARD_ORACLE_CASES` is
//! their number, `HALYARD_ORACLE_SEED` the seed of one run to repeat.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::{BoxedStrategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::stage::Stage;
use crate::support::message::{sync, unnamed};

/// Queries in an ordinary run.
const CASES: usize = 500;
const DATABASE: &str = "generated";
/// Objects that hide something, the same that the catalogue's query is tested with, and rows to read.
const OBJECTS: &str = include_str!("../../proxy/src/classify/catalog/objects.sql");
const ROWS: &str = "INSERT INTO t SELECT n, 'b' || n FROM generate_series(1, 5) AS n; SELECT nextval('sq')";

/// Expressions that read.
const READING: &[&str] = &[
    "1",
    "'x'",
    "E'it\\'s'",
    "$q$update$q$",
    "NULL",
    "a",
    "t.b",
    "lower(b)",
    "pg_catalog.abs(-a)",
    "now()",
    "s(a)",
    "definer()",
    "coalesce(b, 'y')",
    "greatest(a, 2)",
    "CASE WHEN a > 2 THEN 'c' ELSE 'd' END",
    "a::numeric(10, 2)",
    "CAST(b AS varchar(3))",
    "array[a, 1]",
    "(a, b)",
    "b LIKE 'b%'",
    "a IN (1, 2, 3)",
    "a BETWEEN 1 AND 3",
    "extract(epoch FROM timestamp '2020-01-01')",
    "position('b' IN b)",
    "b || 'z'",
    "a OPERATOR(pg_catalog.+) 1",
    "\"substring\"(b, 1, 1)",
    "current_user",
    "row_number() OVER (ORDER BY a)",
    "format('%s', b)",
    "a::dom_ok",
    "to_jsonb(t)",
    "\"a\"",
    "-a",
    "overlay(b PLACING 'x' FROM 1)",
    "current_setting('work_mem')",
    "U&'\\0061'",
    "regexp_replace(b, '[0-9]', 'n')",
    "date_trunc('day', timestamp '2020-01-01')",
    "b IS NOT NULL",
    "true",
    // Constants that the extended protocol sends as parameters: see `with_parameters`.
    "a + @int",
    "b || @text",
    "lower(@text)",
    "a = @int OR b = @text",
    "substr(b, @int)",
    "coalesce(@text, b)",
];

/// What stands for a constant in a made query, the constant, and the parameter's type.
const PLACES: [(&str, &str, &str); 2] = [("@int", "2", "int4"), ("@text", "'x'", "text")];

/// Expressions that do not, or of which nobody can tell.
const WRITING: &[&str] = &[
    "nextval('sq')",
    "pg_catalog.nextval('sq')",
    "NEXTVAL ('sq')",
    "setval('sq', 5)",
    "w()",
    "other.s(b)",
    "definer_w()",
    "txid_current()",
    "pg_current_xact_id()",
    "set_config('a.b', '1', false)",
    "pg_notify('c', 'x')",
    "1 <<! 2",
    "a OPERATOR(public.<<!) 1",
    "1::dom",
    "CAST(a AS dom_of_dom)",
    "'(x,1)'::ct_of_dom",
    "t.t_attr",
    "t_attr(t)",
    "\"Ünï\"()",
    "pg_advisory_xact_lock(7)",
    "query_to_xml('select nextval(''sq'')', true, false, '')",
    "lo_create(0)",
    "pg_is_in_recovery()",
    "b::ct",
    "(SELECT n FROM v_next)",
    "(SELECT last_value FROM sq)",
    "current_setting('transaction_read_only')",
    "pg_backend_pid() > 0",
    "lastval()",
];

const SOURCES: &[&str] = &[
    "t",
    "public.t",
    "ONLY t",
    "t AS t",
    "t TABLESAMPLE system (100)",
    "t, generate_series(1, 2) AS g",
    "t LEFT JOIN mv ON true",
    "t NATURAL JOIN (SELECT 1 AS a) AS y",
    "t, LATERAL (SELECT t.a AS c) AS l",
    "t JOIN v_ok USING (a)",
    "t, v_definer",
    "t, logged_leaf",
    "t, v_w",
    "t, v_nested2",
    "t, \"Größe\"",
    "t, ul",
    "t, parent",
    "t, v_xid",
    "t, rls",
    "t, sq",
    "t, v_stat",
    "t, v_agg",
    "t CROSS JOIN v_mv",
    "t, ruled",
    "t, pg_sequences",
    "t, w() AS f",
];

/// What stands behind a query.
const TAILS: &[&str] = &[
    "",
    "",
    "",
    "",
    " ORDER BY 1",
    " LIMIT 3",
    " LIMIT @int",
    " LIMIT 2 OFFSET 1",
    " FETCH FIRST ROW ONLY",
    " FOR UPDATE OF t",
    " FOR SHARE OF t",
    " FOR READ ONLY",
    " -- update",
    " /* insert /* into */ */",
];

fn expression() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        6 => select(READING).prop_map(str::to_owned),
        1 => select(WRITING).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(2, 4, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| format!("({one})")),
            inner.clone().prop_map(|one| format!("ARRAY(SELECT {one})")),
            inner.clone().prop_map(|one| format!("(SELECT {one} LIMIT 1)")),
            inner.clone().prop_map(|one| format!("EXISTS (SELECT {one})")),
            inner.clone().prop_map(|one| format!("count({one}) OVER ()")),
            (inner.clone(), inner).prop_map(|(one, two)| format!("concat({one}, {two})")),
        ]
    })
    .boxed()
}

fn query() -> BoxedStrategy<String> {
    let list = prop::collection::vec(expression(), 1..4).prop_map(|list| list.join(", "));
    let source = select(SOURCES);
    let condition = prop_oneof![3 => Just(None), 1 => expression().prop_map(Some)];
    (list, source, condition, select(TAILS))
        .prop_map(|(list, source, condition, tail)| {
            let condition = condition.map(|it| format!(" WHERE ({it}) IS NOT NULL"));
            format!(
                "SELECT {list} FROM {source}{}{tail}",
                condition.unwrap_or_default()
            )
        })
        .boxed()
}

/// A query as statements have it.
fn statement() -> BoxedStrategy<String> {
    prop_oneof![
        8 => query(),
        1 => query().prop_map(|it| format!("(({}\n))", it)),
        1 => query().prop_map(|it| format!("WITH x AS ({it}\n) SELECT * FROM x")),
        1 => query().prop_map(|it| format!("WITH x (c) AS NOT MATERIALIZED (SELECT 1), y AS ({it}\n) TABLE x")),
        1 => query().prop_map(|it| format!("COPY ({it}\n) TO STDOUT (FORMAT csv)")),
        1 => query().prop_map(|it| format!("EXPLAIN {it}")),
        1 => query().prop_map(|it| format!("EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) {it}")),
        1 => query().prop_map(|it| format!("/* x */ {it}")),
        1 => expression().prop_map(|it| format!("VALUES (1), (({it})::text::int) LIMIT 1").replace("t.", "").replace("(a)", "(1)")),
        1 => query().prop_map(|it| it.replacen(" FROM", " INTO made FROM", 1)),
        1 => Just("WITH d AS (DELETE FROM t WHERE a > 100 RETURNING a) SELECT * FROM d".to_owned()),
        1 => Just("TABLE v_next".to_owned()),
        1 => Just("SHOW server_version_num".to_owned()),
    ]
    .boxed()
}

/// Sends them through the man in the middle. How many servers refuse is nobody's business: on both it counts as well.
pub(crate) fn run(stage: &Stage, port: u16) {
    stage
        .primary
        .superuser("postgres")
        .connect()
        .run(&format!("CREATE DATABASE {DATABASE}"));
    let address = stage.primary.superuser(DATABASE);
    address.connect().run(&format!("{OBJECTS};{ROWS}"));
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u64>().ok())
    };
    let cases = number("HALYARD_ORACLE_CASES").map_or(CASES, |cases| usize::try_from(cases).unwrap());
    let seed = number("HALYARD_ORACLE_SEED").unwrap_or_else(rand_seed);
    eprintln!("oracle: {cases} generated queries, HALYARD_ORACLE_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let through = crate::support::Address { port, ..address };
    let mut client = through.connect();
    let strategy = statement();
    for case in 0..cases {
        // Advisory locks and settings pile up in a session; a new one has none.
        if case % 100 == 99 {
            client = through.connect();
        }
        let pattern = strategy.new_tree(&mut runner).unwrap().current();
        let sql = with_constants(&pattern);
        client.query(&sql);
        let (text, values) = with_parameters(&pattern);
        if sql.contains(" INTO made") {
            client.query("DROP TABLE IF EXISTS made");
        }
        client.send(&[unnamed(&text, &values), sync()].concat());
        client.answer();
        if sql.contains(" INTO made") {
            client.query("DROP TABLE IF EXISTS made");
        }
    }
}

fn with_constants(pattern: &str) -> String {
    PLACES
        .iter()
        .fold(pattern.to_owned(), |sql, (place, constant, _)| {
            sql.replace(place, constant)
        })
}

/// The same with a parameter of its own for each constant, and their values.
fn with_parameters(pattern: &str) -> (String, Vec<Option<&'static str>>) {
    let (mut sql, mut values) = (String::new(), Vec::new());
    let mut rest = pattern;
    while let Some((at, (place, constant, kind))) = PLACES
        .iter()
        .filter_map(|place| Some((rest.find(place.0)?, place)))
        .min_by_key(|(at, _)| *at)
    {
        values.push(Some(constant.trim_matches('\'')));
        sql.push_str(&format!("{}${}::{kind}", &rest[..at], values.len()));
        rest = &rest[at + place.len()..];
    }
    (sql + rest, values)
}

fn rand_seed() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0)
}
