//! What reads.

use super::*;

#[test]
fn queries_of_ordinary_programs_read() {
    reads(&[
        "SELECT 1",
        "select abalance from pgbench_accounts where aid = 12345;",
        "SELECT count(*), max(x), lower(name) FROM t GROUP BY 3 HAVING count(*) > 1 ORDER BY 1 DESC LIMIT 10 OFFSET 5",
        "SELECT * FROM a JOIN b USING (id) LEFT JOIN (SELECT 1 AS id) c ON (c.id = a.id) CROSS JOIN LATERAL (SELECT 2) d",
        "SELECT \"User\".\"id\" AS \"User__id\" FROM \"public\".\"User\" WHERE \"User\".\"id\" IN ($1, $2) AND 1=1",
        "SELECT CASE WHEN (a) THEN (b) ELSE (c) END, COALESCE(a, 'x'), NULLIF(a, b), GREATEST(1, 2), CAST(a AS numeric(10, 2))",
        "SELECT a::varchar(20), b::pg_catalog.numeric(10,2), c::timestamp(3) with time zone, CAST(d AS character varying(9))",
        "SELECT x FROM t WHERE a LIKE ('%' || $1) AND b ILIKE ('x') AND NOT (c) AND d NOT IN (1) AND e NOT LIKE ('y') ESCAPE ('z')",
        "SELECT EXISTS (SELECT 1), ARRAY(SELECT 1), ANY (ARRAY[1]), ROW (1, 2), (1, 2) OVERLAPS (3, 4)",
        "SELECT extract(epoch FROM now()), position('a' IN 'b'), substring('abc' FROM 1 FOR 2), trim(both FROM 'x'), overlay('a' PLACING 'b' FROM 1)",
        "SELECT sum(x) FILTER (WHERE y) OVER (PARTITION BY (z) ORDER BY (w) ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t",
        "SELECT rank() OVER w, percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM t WINDOW w AS (PARTITION BY y)",
        "SELECT a, b FROM t GROUP BY GROUPING SETS ((a), ROLLUP (a, b), CUBE (b))",
        "SELECT current_timestamp, CURRENT_TIMESTAMP(3), localtime, current_user, session_user, current_schema, user",
        "SELECT * FROM t TABLESAMPLE bernoulli (10) REPEATABLE (1)",
        "SELECT * FROM generate_series(1, 3) AS g(i), unnest(ARRAY[1]) WITH ORDINALITY u(a, b), (VALUES (1, 2)) v(x, y)",
        "SELECT * FROM jsonb_to_recordset($1) AS r(a int, b varchar(10))",
        "SELECT now() AT TIME ZONE ('utc'), interval '1' day, date '2020-01-01', interval(3) '1'",
        "SELECT a FROM t WHERE (a, b) = ANY (SELECT 1, 2) UNION ALL (SELECT 3) INTERSECT SELECT 4 ORDER BY (1) FETCH FIRST (1) ROWS ONLY",
        "SELECT $1::int4, t.*, t.update, u.delete, (r).x FROM t, u",
        "SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.~) '^x' COLLATE pg_catalog.default",
        "SELECT pg_catalog.lower('X'), app_read(1), public.app_read(2), \"app_read\"(3), \"MixedCase\"()",
        "SELECT random(), clock_timestamp(), gen_random_uuid(), pg_sleep(1), pg_total_relation_size('t')",
        "SELECT inet_server_port(), version(), current_database(), txid_snapshot_xmin(NULL)",
        "SELECT 1 FROM calls_read, calls_random, pg_stats",
        "((SELECT 1)) UNION (SELECT 2)",
        "VALUES (1, 'a'), (2, 'b')",
        "TABLE t",
        "SELECT FROM t",
        "SELECT \"update\", \"insert into\" FROM \"delete\"",
        "SELECT 'insert into t', $$delete from t$$, E'update \\' t', U&'merge', B'1', X'ff', N'into'",
        "SELECT 1 /* insert /* delete */ into */ -- update\n, 2",
        "SELECT 1 FOR READ ONLY",
    ]);
}

#[test]
fn common_table_expressions_that_read() {
    reads(&[
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "WITH x(a, b) AS (SELECT 1, 2), y (c) AS MATERIALIZED (SELECT a FROM x), z(d) AS NOT MATERIALIZED (SELECT 1) SELECT * FROM y",
        "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 100) SELECT sum(n) FROM t",
        "WITH a AS (WITH b(c) AS (SELECT 1) SELECT c FROM b), d(e) AS (SELECT 1) (SELECT 1)",
        "SELECT (WITH q(x) AS (SELECT 1) SELECT x FROM q)",
        "WITH x AS (SELECT 1) TABLE x",
        "WITH x AS (SELECT 1) VALUES (lower('a'))",
    ]);
    // A name before a parenthesis is a column list in the list of a WITH clause alone.
    writes(
        Rule::UnknownFunction,
        &[
            "WITH x AS (SELECT 1) SELECT 1, unknown_fn(1)",
            "WITH x AS (SELECT 1, unknown_fn(1)) SELECT 1",
            "WITH x AS (SELECT 1) (SELECT 1) ORDER BY 1, unknown_fn(1)",
            "WITH x AS (SELECT 1) VALUES (1, unknown_fn(1))",
            "WITH x AS (SELECT 1) SELECT * FROM x, unknown_fn(1)",
            "WITH x AS (SELECT 1) TABLE x ORDER BY 1, unknown_fn(1)",
        ],
    );
}

#[test]
fn show_explain_and_copy_out_read() {
    reads(&[
        "SHOW search_path",
        "show TRANSACTION ISOLATION LEVEL",
        "SHOW app.tenant",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE VERBOSE SELECT lower('x')",
        "EXPLAIN (ANALYZE, BUFFERS off, FORMAT json) WITH x(a) AS (SELECT 1) SELECT * FROM x",
        "EXPLAIN (SELECT 1)",
        "EXPLAIN ((SELECT 1))",
        "EXPLAIN (COSTS off) (SELECT 1)",
        "COPY t TO STDOUT",
        "COPY public.t (a, b) TO STDOUT WITH (FORMAT csv, FORCE_QUOTE (a, b))",
        "COPY (SELECT lower(a) FROM t) TO stdout (FORMAT binary)",
        "COPY (WITH x(a) AS (SELECT 1) SELECT * FROM x) TO STDOUT",
        "COPY ((SELECT 1)) TO STDOUT",
        "COPY BINARY t TO STDOUT",
    ]);
    writes(
        Rule::PrimarySetting,
        &[
            "SHOW transaction_read_only",
            "SHOW \"in_hot_standby\"",
            "SHOW ALL",
            "show DEFAULT_TRANSACTION_READ_ONLY",
        ],
    );
    writes(
        Rule::CopiesIn,
        &[
            "COPY t FROM STDIN",
            "COPY t TO '/tmp/x'",
            "COPY t TO PROGRAM 'cat'",
            "COPY (SELECT 1) TO '/x'",
            "COPY t",
            "COPY",
        ],
    );
    writes(
        Rule::PrimaryRelation,
        &[
            "COPY unlogged_cache TO STDOUT",
            "COPY public.unlogged_cache (a) TO STDOUT",
        ],
    );
    writes(Rule::UnknownFunction, &["COPY (SELECT unknown_fn()) TO STDOUT"]);
}
