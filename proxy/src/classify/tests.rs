use proptest::prelude::*;

use super::*;

mod commands;

/// PostgreSQL 15's own functions, and a small application's.
fn catalog() -> FunctionCatalog {
    with_rows("")
}

fn with_rows(more: &str) -> FunctionCatalog {
    let mut rows = include_str!("catalog/postgresql15.tsv").to_owned();
    rows.push_str(
        "f\tapp_read\ts\tf\nf\tapp_write\tv\tf\nf\tmixed\ti\tf\nf\tmixed\tv\tf\nf\tMixedCase\ts\tf\n",
    );
    rows.push_str("r\tcalls_write\tapp_write\tf\nr\tcalls_read\tapp_read\tf\nr\tcalls_random\trandom\tt\n");
    rows.push_str("r\tcalls_nextval\tnextval\tt\ne\tview_of_view\tcalls_nextval\tf\n");
    rows.push_str("n\torders_id_seq\tS\tf\nn\tunlogged_cache\tr\tf\n");
    rows.push_str(more);
    FunctionCatalog::from_dump(rows.as_bytes(), &FunctionOverrides::default()).expect("rows of the query")
}

fn class_of(sql: &str) -> Class {
    thread_local!(static CATALOG: FunctionCatalog = catalog());
    CATALOG.with(|catalog| classify(sql.as_bytes(), &Settings::default(), catalog))
}

#[track_caller]
fn reads(statements: &[&str]) {
    for sql in statements {
        let class = class_of(sql);
        let at = class
            .at
            .map(|span| String::from_utf8_lossy(span.bytes(sql.as_bytes())).into_owned());
        assert_eq!(class.access, Access::Read, "{sql}: {} at {at:?}", class.rule);
    }
}

#[track_caller]
fn writes(rule: Rule, statements: &[&str]) {
    for sql in statements {
        let class = class_of(sql);
        assert_eq!((class.access, class.rule), (Access::Write, rule), "{sql}");
    }
}

/// Of a setting that decides what names stand for.
const NAMING_SETTING: SessionEffects = SessionEffects::SETTING.union(SessionEffects::NAMING);

#[track_caller]
fn effects(cases: &[(&str, SessionEffects)]) {
    for (sql, expected) in cases {
        assert_eq!(class_of(sql).session, *expected, "{sql}");
    }
}

// What reads

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

// What writes

#[test]
fn regression_a_write_in_a_cte_is_a_write() {
    writes(
        Rule::DataChangingKeyword,
        &[
            "WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x",
            "WITH x AS (SELECT 1), y AS (delete from t returning 1) SELECT 1",
            "WITH x AS (SELECT 1) UPDATE t SET a = 1",
            "WITH x AS (SELECT 1) MERGE INTO t USING x ON true WHEN MATCHED THEN DELETE",
            "SELECT * FROM (WITH x AS (UPDATE t SET a = 1 RETURNING a) SELECT * FROM x) y",
        ],
    );
}

#[test]
fn regression_merge_is_a_data_changing_keyword() {
    writes(
        Rule::DataChangingKeyword,
        &["MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN DO NOTHING"],
    );
}

#[test]
fn regression_nextval_and_every_other_volatile_function_is_a_write() {
    writes(
        Rule::VolatileFunction,
        &[
            "SELECT nextval('s')",
            "SELECT pg_catalog.nextval('s')",
            "SELECT \"nextval\"('s')",
            "SELECT NEXTVAL ('s')",
            "SELECT nextval/* comment */\n('s')",
            "SELECT setval('s', 1)",
            "SELECT lo_create(0)",
            "SELECT pg_notify('c', 'p')",
            "SELECT setseed(0.5)",
            "SELECT app_write()",
            "SELECT public.app_write()",
            "SELECT mixed(1)",
            "SELECT * FROM app_write() AS x(a)",
            "SELECT 1 WHERE true AND lower(app_write()) = 'x'",
            "SELECT DISTINCT ON (a) app_write() FROM t",
            "SELECT 1 OPERATOR(pg_catalog.+) app_write()",
            "VALUES (1), (app_write())",
            "SELECT 1 LIMIT app_write()",
        ],
    );
}

#[test]
fn unknown_functions_are_writes() {
    writes(
        Rule::UnknownFunction,
        &[
            "SELECT unknown_fn(1)",
            "SELECT \"NextVal\"('s')",
            "SELECT public.lowerr('x')",
            "SELECT 1, unknown_fn(1)",
            "SELECT DISTINCT ON (a) unknown_fn(b) FROM t",
            "SELECT - OPERATOR(pg_catalog.-) unknown_fn(b)",
            "SELECT a OPERATOR(pg_catalog.+) unknown_fn(b)",
            "SELECT * FROM t ORDER BY unknown_fn(x)",
            "SELECT x FROM t GROUP BY unknown_fn(x)",
            "SELECT public.coalesce(1)",
            "SELECT public.in(1)",
            "SELECT (r).unknown_fn(1) FROM t r",
            "SELECT 1::int + (r).unknown_fn(1)",
            "SELECT 1 ~ ilike(2)",
            "SELECT over(1)",
            "SELECT filter(1), by(2)",
            "SELECT cube(1, 2)",
            "SELECT operator(1)",
            "SELECT json_value(x, '$')",
            "SELECT fünf(1)",
        ],
    );
}

#[test]
fn keywords_of_newer_servers_are_plain_names_on_older_ones() {
    let newer = with_rows("x\tserver_version_num\t170002\tt\n");
    let sql = b"SELECT json_value(x, '$.a'), j.* FROM t, JSON_TABLE(x, '$' COLUMNS (a int PATH '$')) AS j";
    let class = classify(sql, &Settings::default(), &newer);
    assert_eq!(class.access, Access::Read, "{}", class.rule);
    let class = classify(sql, &Settings::default(), &catalog());
    assert_eq!(class.rule, Rule::UnknownFunction);
}

#[test]
fn regression_select_into_is_a_write() {
    writes(
        Rule::IntoClause,
        &[
            "SELECT * INTO t2 FROM t",
            "SELECT 1 into temp x",
            "WITH x AS (SELECT 1) SELECT * INTO y FROM x",
        ],
    );
    // Servers before 15 read a keyword that begins right behind a number.
    writes(
        Rule::IntoClause,
        &[
            "SELECT 1into t",
            "SELECT $1into t",
            "SELECT 1.into t",
            "SELECT 1e5into t",
            "SELECT ''into t",
        ],
    );
}

#[test]
fn regression_copy_of_a_returning_query_is_a_write() {
    writes(
        Rule::DataChangingKeyword,
        &[
            "COPY (INSERT INTO t VALUES (1) RETURNING *) TO STDOUT",
            "COPY (DELETE FROM t RETURNING *) TO STDOUT",
            "COPY (WITH x AS (UPDATE t SET a = 1 RETURNING 1) SELECT 1) TO STDOUT",
        ],
    );
}

#[test]
fn regression_the_strictest_statement_of_a_message_decides() {
    writes(
        Rule::DataChangingKeyword,
        &[
            "SELECT 1; DELETE FROM t",
            "SELECT 1; SELECT 2; INSERT INTO t VALUES (1); SELECT 3",
            ";;SELECT 1;;UPDATE t SET a = 1;",
        ],
    );
    writes(
        Rule::OtherStatement,
        &["deallocate x; delete from t", "SELECT 1; VACUUM"],
    );
    reads(&["SELECT 1; SELECT 2;", "BEGIN READ ONLY; SELECT 1; COMMIT", ";"]);
    assert_eq!(class_of("SELECT 1;; SELECT 2; ;").statements, 2);
    assert_eq!(class_of("SELECT ';'; SELECT $$;$$ /*;*/").statements, 2);
}

#[test]
fn regression_explain_analyze_of_a_write_is_a_write() {
    writes(
        Rule::DataChangingKeyword,
        &[
            "EXPLAIN ANALYZE DELETE FROM t",
            "EXPLAIN (ANALYZE) UPDATE t SET a = 1",
            "EXPLAIN (FORMAT json, ANALYZE true) INSERT INTO t VALUES (1)",
            "explain analyse verbose merge into t using s on true when matched then delete",
            "EXPLAIN ANALYZE WITH x AS (DELETE FROM t RETURNING 1) SELECT 1",
            "EXPLAIN DELETE FROM t",
        ],
    );
    writes(Rule::VolatileFunction, &["EXPLAIN ANALYZE SELECT nextval('s')"]);
    writes(
        Rule::OtherStatement,
        &[
            "EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1",
            "EXPLAIN ANALYZE EXECUTE p",
            "EXPLAIN",
            "EXPLAIN (ANALYZE)",
        ],
    );
}

#[test]
fn regression_setting_transaction_read_only_off_is_not_for_a_standby() {
    writes(
        Rule::ChangesSetting,
        &[
            "SET transaction_read_only = 0",
            "SET TRANSACTION READ WRITE, ISOLATION LEVEL SERIALIZABLE",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            "SELECT set_config('transaction_read_only', 'off', true)",
            "RESET ALL",
        ],
    );
}

#[test]
fn regression_views_over_volatile_functions_are_writes() {
    writes(
        Rule::VolatileRelation,
        &[
            "SELECT * FROM calls_write",
            "SELECT * FROM public.CALLS_NEXTVAL v",
            "TABLE view_of_view",
            "SELECT \"view_of_view\".* FROM \"view_of_view\"",
        ],
    );
}

#[test]
fn regression_unparsable_text_is_a_write() {
    writes(
        Rule::Unterminated,
        &[
            "SELECT 'x",
            "SELECT \"x",
            "SELECT $a$ x $b$",
            "SELECT 1 /* /* */",
            "SELECT E'\\'",
        ],
    );
    writes(
        Rule::UnexpectedCharacter,
        &[
            "SELECT {fn now()}",
            "SELECT \\x",
            "SELECT 1..2",
            "SELECT $",
            "SELECT \0",
        ],
    );
    writes(
        Rule::Unbalanced,
        &["SELECT (1", "SELECT 1)", "SELECT (1; SELECT 2)"],
    );
    writes(
        Rule::Unrecognised,
        &[
            "(1)",
            "(BEGIN)",
            "COMMIT 1",
            "BEGIN READ ONLY x",
            "SHOW",
            "EXPLAIN EXPLAIN SELECT 1",
        ],
    );
    writes(
        Rule::OtherStatement,
        &[
            "SELEC 1",
            "x",
            "1",
            "\"select\" 1",
            ", SELECT 1",
            "DO $$begin end$$",
            "CALL p()",
        ],
    );
    writes(
        Rule::EscapedName,
        &["SELECT U&\"\\006eextval\"('s')", "SELECT 1 FROM u&\"t\""],
    );
}

#[test]
fn regression_a_huge_in_list_is_read_in_linear_time() {
    let list = (0..9_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    reads(&[&format!("SELECT * FROM t WHERE id IN ({list})")]);
    let long = format!("SELECT * FROM t WHERE id IN ({list},{list})");
    writes(Rule::TooLong, &[&long]);
    assert!(class_of(&long).session.contains(SessionEffects::UNKNOWN));
}

#[test]
fn locking_clauses_are_writes() {
    writes(
        Rule::LockingClause,
        &[
            "SELECT * FROM t FOR UPDATE",
            "SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED",
            "SELECT * FROM t FOR SHARE",
            "SELECT * FROM t for /* x */ key share NOWAIT",
            "(SELECT * FROM t FOR UPDATE OF t)",
        ],
    );
}

#[test]
fn statements_that_are_not_known_to_read_go_to_the_primary() {
    writes(
        Rule::OtherStatement,
        &[
            "CREATE TABLE t (a int)",
            "ALTER TABLE t ADD b int",
            "DROP TABLE t",
            "TRUNCATE t",
            "GRANT SELECT ON t TO x",
            "VACUUM t",
            "ANALYZE",
            "REINDEX TABLE t",
            "CLUSTER",
            "CHECKPOINT",
            "LOCK t",
            "NOTIFY c",
            "LISTEN c",
            "UNLISTEN *",
            "DECLARE c CURSOR FOR SELECT 1",
            "FETCH c",
            "MOVE c",
            "CLOSE c",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "DEALLOCATE p",
            "DISCARD ALL",
            "LOAD 'x'",
            "REFRESH MATERIALIZED VIEW v",
            "COMMENT ON TABLE t IS 'x'",
            "SECURITY LABEL ON TABLE t IS ''",
            "IMPORT FOREIGN SCHEMA s FROM SERVER x INTO y",
            "COMMIT PREPARED 'x'",
            "PREPARE TRANSACTION 'x'",
            "WAIT FOR LSN '0/0'",
        ],
    );
    writes(
        Rule::DataChangingKeyword,
        &["INSERT INTO t VALUES (1)", "update t set a = 1", "DELETE FROM t"],
    );
}

#[test]
fn what_answers_for_its_node_is_asked_of_the_primary() {
    writes(
        Rule::PrimaryFunction,
        &[
            "SELECT pg_is_in_recovery()",
            "SELECT pg_catalog.pg_is_in_recovery()",
            "SELECT pg_current_wal_lsn()",
            "SELECT pg_last_wal_replay_lsn()",
            "SELECT txid_current()",
            "SELECT pg_walfile_name('0/0')",
            "SELECT pg_backend_pid()",
            "SELECT pg_stat_get_activity(NULL)",
        ],
    );
    writes(
        Rule::PrimaryRelation,
        &[
            "SELECT * FROM pg_stat_activity",
            "SELECT * FROM PG_STATIO_USER_TABLES",
            "SELECT * FROM pg_settings",
            "SELECT * FROM pg_locks",
            "SELECT last_value FROM orders_id_seq",
            "SELECT * FROM unlogged_cache",
        ],
    );
    writes(
        Rule::PrimarySetting,
        &[
            "SELECT current_setting('transaction_read_only')",
            "SELECT current_setting('in_' || 'hot_standby')",
            "SELECT current_setting($1)",
            "SELECT pg_catalog.current_setting(E'in_hot\\137standby')",
        ],
    );
    reads(&[
        "SELECT current_setting('app.tenant')",
        "SELECT current_setting('app.tenant', true)::int",
    ]);
    assert!(!class_of("SELECT current_setting('app.tenant')").cacheable);
    writes(
        Rule::RunsText,
        &[
            "SELECT query_to_xml('delete', true, true, '')",
            "SELECT * FROM crosstab('x') AS ct(a int)",
        ],
    );
}

#[test]
fn operators_casts_and_types_with_volatile_functions_are_writes() {
    let of = |rows: &str, sql: &str| classify(sql.as_bytes(), &Settings::default(), &with_rows(rows)).rule;
    let operator = "o\t<<!\tapp_write\tf\n";
    assert_eq!(of(operator, "SELECT a <<! b"), Rule::VolatileOperator);
    assert_eq!(
        of(operator, "SELECT a OPERATOR(public.<<!) b"),
        Rule::VolatileOperator
    );
    assert_eq!(of(operator, "SELECT a << !b"), Rule::ReadsOnly);
    assert_eq!(
        of("o\t=\tapp_write\tf\n", "SELECT a IN (b)"),
        Rule::VolatileImplicit
    );
    assert_eq!(
        of("c\tbadtype\tapp_write\tf\n", "SELECT 1"),
        Rule::VolatileImplicit
    );
    assert_eq!(
        of("c\tbadtype\tapp_write\tf\n", "COPY (SELECT 1) TO STDOUT"),
        Rule::VolatileImplicit
    );
    for sql in [
        "SELECT a::badtype",
        "SELECT CAST(a AS badtype)",
        "SELECT badtype 'x'",
        "SELECT a::public.badtype(3)",
    ] {
        assert_eq!(
            of("t\tbadtype\tapp_write\tf\n", sql),
            Rule::VolatileRelation,
            "{sql}"
        );
    }
    assert_eq!(
        of("a\tfull_name\tv\tf\n", "SELECT p.full_name FROM p"),
        Rule::VolatileRelation
    );
}

// Transactions

#[test]
fn transactions_open_on_the_primary_unless_read_only() {
    reads(&[
        "BEGIN READ ONLY",
        "BEGIN TRANSACTION READ ONLY",
        "begin work isolation level repeatable read, read only, not deferrable",
        "START TRANSACTION READ ONLY",
        "START TRANSACTION ISOLATION LEVEL READ COMMITTED READ ONLY DEFERRABLE",
    ]);
    writes(
        Rule::OpensTransaction,
        &[
            "BEGIN",
            "START TRANSACTION",
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "BEGIN; SELECT 1; COMMIT",
            "BEGIN; SELECT 1; SET TRANSACTION READ ONLY",
            "BEGIN; SET LOCAL work_mem = '1MB'; SET TRANSACTION READ ONLY",
            "BEGIN; SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "BEGIN; SET TRANSACTION READ WRITE",
            "BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
            "COMMIT; BEGIN; SET TRANSACTION READ ONLY",
            "BEGIN; SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        ],
    );
    reads(&[
        "BEGIN; SET TRANSACTION READ ONLY",
        "start transaction; set /* c */ transaction isolation level repeatable read; set transaction read only; select 1",
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION READ ONLY, DEFERRABLE; COMMIT",
    ]);
    writes(
        Rule::SetsReadWriteTransaction,
        &[
            "SET TRANSACTION READ WRITE",
            "BEGIN; SET TRANSACTION READ ONLY; SET TRANSACTION READ WRITE",
        ],
    );
    writes(Rule::SetsReadOnlyTransaction, &["SET TRANSACTION READ ONLY"]);
    writes(
        Rule::SetsTransaction,
        &["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"],
    );
    writes(Rule::ChangesSetting, &["SET TRANSACTION SNAPSHOT 'x'"]);
    writes(
        Rule::DataChangingKeyword,
        &["BEGIN; SET TRANSACTION READ ONLY; DELETE FROM t"],
    );
    writes(
        Rule::OpensReadWriteTransaction,
        &[
            "BEGIN READ WRITE",
            "BEGIN READ ONLY, READ WRITE",
            "BEGIN READ WRITE READ ONLY",
        ],
    );
    writes(
        Rule::OpensSerializableTransaction,
        &[
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "START TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE, DEFERRABLE",
            "BEGIN ISOLATION LEVEL SERIALIZABLE, ISOLATION LEVEL READ COMMITTED, READ ONLY",
        ],
    );
    writes(Rule::DataChangingKeyword, &["BEGIN READ ONLY; DELETE FROM t"]);
    reads(&[
        "COMMIT",
        "END WORK",
        "ROLLBACK TRANSACTION AND NO CHAIN",
        "ABORT",
        "SAVEPOINT a",
        "RELEASE a",
        "ROLLBACK TO SAVEPOINT a",
    ]);
}

#[test]
fn transaction_control_is_told() {
    let modes = |access, isolation| TransactionModes { access, isolation };
    let read_only = modes(AccessMode::ReadOnly, Isolation::Unspecified);
    for (sql, control) in [
        ("SELECT 1", TransactionControl::None),
        ("BEGIN", TransactionControl::Begin(TransactionModes::default())),
        ("BEGIN READ ONLY", TransactionControl::Begin(read_only)),
        (
            "SELECT 1; BEGIN READ ONLY; COMMIT",
            TransactionControl::Begin(read_only),
        ),
        (
            "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE",
            TransactionControl::Begin(modes(AccessMode::ReadWrite, Isolation::RepeatableRead)),
        ),
        ("COMMIT", TransactionControl::Commit(false)),
        ("END AND CHAIN", TransactionControl::Commit(true)),
        ("COMMIT AND NO CHAIN", TransactionControl::Commit(false)),
        ("ROLLBACK WORK AND CHAIN", TransactionControl::Rollback(true)),
        ("ABORT", TransactionControl::Rollback(false)),
        ("SAVEPOINT s", TransactionControl::Savepoint),
        ("RELEASE SAVEPOINT s", TransactionControl::Release),
        ("ROLLBACK TO s", TransactionControl::RollbackTo),
        ("PREPARE TRANSACTION 'x'", TransactionControl::PrepareTransaction),
        ("PREPARE transaction AS SELECT 1", TransactionControl::None),
        ("COMMIT PREPARED 'x'", TransactionControl::CommitPrepared),
        ("ROLLBACK PREPARED 'x'", TransactionControl::RollbackPrepared),
        (
            "SET TRANSACTION READ ONLY",
            TransactionControl::SetTransaction(read_only),
        ),
        (
            "SET transaction_isolation = 'serializable'",
            TransactionControl::SetTransaction(TransactionModes::default()),
        ),
    ] {
        assert_eq!(class_of(sql).transaction, control, "{sql}");
    }
}

#[test]
fn the_end_of_an_atomic_body_ends_no_transaction() {
    let class = class_of(
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; COMMIT",
    );
    assert_eq!(class.transaction, TransactionControl::Commit(false));
    assert_eq!(class.statements, 2);
    let class = class_of("CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC INSERT INTO t VALUES (1); END");
    assert_eq!(
        (class.transaction, class.statements),
        (TransactionControl::None, 1)
    );
}

// Sessions

#[test]
fn session_effects_are_told() {
    effects(&[
        ("SELECT 1", SessionEffects::NONE),
        ("SET search_path = x", NAMING_SETTING),
        ("SET SESSION search_path TO x", NAMING_SETTING),
        ("SET LOCAL search_path TO x", SessionEffects::NAMING),
        ("SET TIME ZONE 'utc'", SessionEffects::SETTING),
        ("SET ROLE x", NAMING_SETTING),
        ("SET SESSION AUTHORIZATION x", NAMING_SETTING),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            SessionEffects::SETTING,
        ),
        ("SET TRANSACTION READ ONLY", SessionEffects::NONE),
        ("SET LOCAL TRANSACTION READ ONLY", SessionEffects::NONE),
        ("SET CONSTRAINTS ALL DEFERRED", SessionEffects::NONE),
        ("SET transaction_read_only = on", SessionEffects::NONE),
        ("RESET ALL", NAMING_SETTING),
        ("RESET search_path", NAMING_SETTING),
        ("RESET SESSION AUTHORIZATION", NAMING_SETTING),
        ("SET LOCAL ROLE x", SessionEffects::NAMING),
        ("SET SCHEMA 'x'", NAMING_SETTING),
        ("SET LOCAL work_mem = '1MB'", SessionEffects::NONE),
        (
            "SELECT set_config('Search_Path', 'x', true)",
            SessionEffects::NAMING,
        ),
        ("LISTEN c", SessionEffects::LISTEN),
        ("UNLISTEN c", SessionEffects::UNLISTEN),
        ("NOTIFY c", SessionEffects::NOTIFY),
        ("SELECT pg_notify('c', 'x')", SessionEffects::NOTIFY),
        ("SELECT pg_listening_channels()", SessionEffects::LISTENING),
        ("PREPARE p AS SELECT 1", SessionEffects::PREPARE),
        ("EXECUTE p", SessionEffects::EXECUTE),
        ("EXPLAIN EXECUTE p", SessionEffects::EXECUTE),
        ("CREATE TABLE t AS EXECUTE p", SessionEffects::EXECUTE),
        ("DEALLOCATE \"all\"", SessionEffects::DEALLOCATE),
        ("DEALLOCATE p", SessionEffects::DEALLOCATE),
        (
            "DEALLOCATE PREPARE ALL",
            SessionEffects::DEALLOCATE.union(SessionEffects::DEALLOCATE_ALL),
        ),
        (
            "DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1",
            SessionEffects::HOLD_CURSOR,
        ),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", SessionEffects::NONE),
        ("FETCH 1 FROM c", SessionEffects::CURSOR),
        ("CLOSE ALL", SessionEffects::CURSOR),
        ("LOAD 'x'", SessionEffects::LOAD),
        ("DISCARD ALL", SessionEffects::DISCARD_ALL),
        ("DISCARD TEMP", SessionEffects::DISCARD_TEMPORARY),
        ("DISCARD PLANS", SessionEffects::DISCARD_PLANS),
        ("DISCARD SEQUENCES", SessionEffects::DISCARD_SEQUENCES),
        ("SELECT currval('s'), lastval()", SessionEffects::SEQUENCE),
        ("SELECT dblink_connect('x')", SessionEffects::UNKNOWN),
        ("DO $$ begin end $$", SessionEffects::OPAQUE),
        ("CALL p()", SessionEffects::OPAQUE),
    ]);
}

#[test]
fn regression_set_config_is_found_wherever_it_stands() {
    effects(&[
        ("SELECT set_config('a.b', 'c', false)", SessionEffects::SETTING),
        ("SELECT set_config('a.b', 'c', true)", SessionEffects::NONE),
        ("SELECT set_config('a.b', 'c', TRUE ), 1", SessionEffects::NONE),
        (
            "SELECT 1, x.y, lower(set_config('a.b', $1, $2)) FROM x",
            SessionEffects::SETTING,
        ),
        (
            "SELECT set_config('a.b', lower('x'), is_local) FROM t",
            SessionEffects::SETTING,
        ),
        (
            "SELECT set_config('a.b', (SELECT 'c'), NOT true)",
            SessionEffects::SETTING,
        ),
        (
            "SELECT set_config('a.b', 'c', 1 = 2 OR true)",
            SessionEffects::SETTING,
        ),
        (
            "SELECT set_config('a', set_config('b', 'c', true), false)",
            SessionEffects::SETTING,
        ),
        (
            "SELECT set_config('a', set_config('b', 'c', false), true)",
            SessionEffects::SETTING,
        ),
        (
            "UPDATE t SET a = pg_catalog.set_config('a.b', 'c', false)",
            SessionEffects::SETTING,
        ),
        (
            "EXPLAIN ANALYZE SELECT set_config('a.b', 'c', false)",
            SessionEffects::SETTING,
        ),
    ]);
}

#[test]
fn regression_advisory_locks_are_found_whatever_their_keys() {
    effects(&[
        ("SELECT pg_advisory_lock(1)", SessionEffects::ADVISORY_LOCK),
        (
            "SELECT pg_try_advisory_lock_shared(id, $1) FROM t",
            SessionEffects::ADVISORY_LOCK,
        ),
        (
            "SELECT 1 WHERE pg_catalog.pg_try_advisory_lock(hashtext('x'))",
            SessionEffects::ADVISORY_LOCK,
        ),
        (
            "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)",
            SessionEffects::NONE,
        ),
        ("SELECT pg_advisory_unlock(1)", SessionEffects::ADVISORY_UNLOCK),
        ("SELECT pg_advisory_unlock_all()", SessionEffects::ADVISORY_UNLOCK),
    ]);
    writes(
        Rule::VolatileFunction,
        &["SELECT pg_advisory_xact_lock(1)", "SELECT pg_advisory_lock(1)"],
    );
}

#[test]
fn regression_temporary_tables_are_found() {
    effects(&[
        (
            "CREATE TEMP TABLE t (a int)",
            SessionEffects::NAMING.union(SessionEffects::TEMPORARY),
        ),
        (
            "CREATE LOCAL TEMPORARY TABLE t AS SELECT 1",
            SessionEffects::NAMING.union(SessionEffects::TEMPORARY),
        ),
        (
            "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
            SessionEffects::NAMING.union(SessionEffects::TEMPORARY),
        ),
        (
            "CREATE TEMP SEQUENCE s",
            SessionEffects::NAMING.union(SessionEffects::TEMPORARY),
        ),
        (
            "CREATE TEMP TABLE t (a int) ON COMMIT DROP",
            SessionEffects::NAMING,
        ),
        (
            "CREATE TEMP TABLE t ON COMMIT DELETE ROWS AS SELECT 1",
            SessionEffects::NAMING.union(SessionEffects::TEMPORARY),
        ),
        ("CREATE TABLE pg_temp.t (a int)", SessionEffects::TEMPORARY),
        ("SELECT * FROM \"pg_temp\".t", SessionEffects::TEMPORARY),
        (
            "SELECT 1 INTO TEMP t",
            SessionEffects::NAMING.union(SessionEffects::TEMPORARY),
        ),
        (
            "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
            SessionEffects::NAMING.union(SessionEffects::TEMPORARY),
        ),
        ("INSERT INTO temp VALUES (1)", SessionEffects::NONE),
        (
            "SET search_path = pg_temp, public",
            NAMING_SETTING.union(SessionEffects::TEMPORARY),
        ),
        (
            "SET search_path = 'PG_TEMP'",
            NAMING_SETTING.union(SessionEffects::TEMPORARY),
        ),
    ]);
    writes(
        Rule::TemporaryObject,
        &["SELECT pg_temp.f()", "SELECT * FROM pg_temp_3.t"],
    );
}

#[test]
fn effects_of_all_statements_of_a_message_add_up() {
    effects(&[
        (
            "DELETE FROM t; SET a.b = 1; LISTEN c",
            SessionEffects::SETTING.union(SessionEffects::LISTEN),
        ),
        (
            "BEGIN; SELECT pg_advisory_lock(1); COMMIT",
            SessionEffects::ADVISORY_LOCK,
        ),
    ]);
}

#[test]
fn catalogue_changes_are_told() {
    for sql in [
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE t SET UNLOGGED",
        "DROP VIEW v",
        "SELECT 1; CREATE VIEW v AS SELECT 1",
    ] {
        assert!(class_of(sql).ddl, "{sql}");
    }
    for sql in [
        "SELECT 1",
        "CREATE TEMP TABLE t (a int)",
        "INSERT INTO t VALUES (1)",
    ] {
        assert!(!class_of(sql).ddl, "{sql}");
    }
}

// Hints and Halyard's settings

#[test]
fn a_comment_in_front_or_behind_is_a_hint() {
    use RouteHint::{Auto, Primary, Replica};
    for (sql, hint) in [
        ("/* halyard.route: primary */ SELECT 1", Some(Primary)),
        ("/*halyard.route:replica*/SELECT 1", Some(Replica)),
        ("-- a\n/* b */ /* HALYARD.ROUTE : Auto */ SELECT 1", Some(Auto)),
        ("SELECT 1 /* halyard.route: primary */", Some(Primary)),
        ("SELECT 'a'/*halyard.route:replica*/;", Some(Replica)),
        (
            "SELECT 1 /* halyard.route: replica */ /*application='a',route='b'*/ -- c\n ; ",
            Some(Replica),
        ),
        ("SELECT 1; /* halyard.route: replica */ ;; /* */", Some(Replica)),
        ("/* halyard.route: replica */", Some(Replica)),
        // The outermost counts, and what stands in front before what stands behind.
        (
            "/* halyard.route: auto */ /* halyard.route: primary */ SELECT 1",
            Some(Auto),
        ),
        (
            "SELECT 1 /* halyard.route: auto */ /* halyard.route: primary */",
            Some(Primary),
        ),
        (
            "/* halyard.route: auto */ SELECT 1 /* halyard.route: primary */",
            Some(Auto),
        ),
    ] {
        assert_eq!(class_of(sql).hint, hint, "{sql}");
    }
    let class = class_of("DELETE FROM t /* halyard.route: replica */");
    assert_eq!(
        class.access,
        Access::Write,
        "a hint is reported and proves nothing"
    );
}

/// What an application fills in from its users never becomes a hint: not within constants and names, not in the middle
/// of a statement, not as a part of a comment.
#[test]
fn data_is_no_hint() {
    for sql in [
        "SELECT '/* halyard.route: replica */'",
        "SELECT 1 AS \"/* halyard.route: replica */\"",
        "SELECT $$/* halyard.route: replica */$$",
        "SELECT $a$ /* halyard.route: replica */ $a$;",
        "SELECT E'\\'/* halyard.route: replica */'",
        "SELECT '/* halyard.route: replica */",
        "SELECT U&'/* halyard.route: replica */' UESCAPE '!'",
        "SELECT /* halyard.route: replica */ 1",
        "SELECT 1 /* halyard.route: replica */ + 1",
        "SELECT 1; /* halyard.route: replica */ SELECT 2",
        "SELECT 1 /* halyard.route: replica */ 'a",
        "SELECT 1 /* halyard.route: replica */ /* open",
        "SELECT 1 /*tag='/* halyard.route: replica */'*/",
        "SELECT 1 -- /* halyard.route: replica */",
        "SELECT 1 /* x halyard.route: replica */",
        "SELECT 1 /* halyard.route: replica x */",
        "/* halyard.route: somewhere */ SELECT 1",
        "-- halyard.route: primary\nSELECT 1",
    ] {
        assert_eq!(class_of(sql).hint, None, "{sql}");
    }
}

#[test]
fn values_of_halyards_settings_are_found() {
    fn given(sql: &str) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        OwnSetting::all(sql.as_bytes(), true)
            .iter()
            .map(|own| (text(own.name), text(own.value)))
            .collect()
    }
    for (sql, name, value) in [
        ("SET halyard.route = 'replica'", "route", "replica"),
        ("set session Halyard.route to auto;", "route", "auto"),
        ("SET /* x */ LOCAL \"halyard\".\"trace\" = on", "trace", "on"),
        ("SET halyard.trace = 1", "trace", "1"),
        (
            "SELECT set_config('halyard.route', 'primary', false)",
            "route",
            "primary",
        ),
        (
            "select 1, pg_catalog.set_config ( 'HALYARD.fence' , '1/0/0', true) from t",
            "fence",
            "1/0/0",
        ),
    ] {
        assert_eq!(given(sql), [(name.to_owned(), value.to_owned())], "{sql}");
    }
    assert_eq!(
        given("SET halyard.route = a; SELECT 1; SET halyard.trace = b").len(),
        2
    );
    for sql in [
        "SET LOCAL halyard.route TO DEFAULT",
        "RESET halyard.route",
        "SHOW halyard.fence",
        "SET route = 1",
        "SET halyard = 1",
        "SET halyard.route = E'a'",
        "SET halyard.route = 'it''s'",
        "SET halyard.route = a, b",
        "SELECT set_config('halyard.route', $1, false)",
        "SELECT set_config('app.route', 'x', false)",
        "UPDATE t SET halyard.route = 'x'",
        "SET",
        "SET LOCAL",
        "",
    ] {
        assert!(given(sql).is_empty(), "{sql}");
    }
    let own = SessionEffects::HALYARD_SETTING;
    let both = own.union(SessionEffects::SETTING);
    effects(&[
        ("SET halyard.route = 'primary'", both),
        ("SET LOCAL halyard.route = 'primary'", own),
        ("RESET halyard.route", both),
        ("SHOW halyard.route", own),
        ("SELECT current_setting('halyard.route')", own),
        ("SELECT current_setting('app.tenant')", SessionEffects::NONE),
        ("SELECT set_config('halyard.trace', 'on', false)", both),
        ("SELECT set_config('halyard.trace', 'on', true)", own),
    ]);
}

// Encodings and settings

#[test]
fn encodings_that_hide_ascii_are_not_read() {
    for name in [
        "SJIS",
        "BIG5",
        "GBK",
        "gb18030",
        "JOHAB",
        "UHC",
        "SHIFT_JIS_2004",
        "no such encoding",
        "",
    ] {
        assert_eq!(Encoding::of_client_encoding(name), Encoding::Unsafe, "{name}");
    }
    for name in [
        "UTF8",
        "utf-8",
        "SQL_ASCII",
        "LATIN1",
        "iso_8859_5",
        "EUC_JP",
        "WIN1252",
        "KOI8-R",
        "MULE_INTERNAL",
    ] {
        assert_eq!(Encoding::of_client_encoding(name), Encoding::Safe, "{name}");
    }
    let settings = Settings {
        encoding: Encoding::Unsafe,
        ..Settings::default()
    };
    // 0x83 0x5C is one katakana in SJIS; read byte by byte with escapes on, its second byte hides the closing quote.
    let class = classify(b"SELECT '\x83\x5c'; DELETE FROM t --'", &settings, &catalog());
    assert_eq!((class.access, class.rule), (Access::Write, Rule::UnsafeEncoding));
    assert!(class.session.contains(SessionEffects::UNKNOWN));
    assert_eq!(
        classify(b"SELECT 1", &settings, &catalog()).access,
        Access::Read,
        "ASCII is ASCII in all of them"
    );
}

#[test]
fn standard_conforming_strings_decides_where_strings_end() {
    let off = Settings {
        standard_conforming_strings: false,
        ..Settings::default()
    };
    let sql = br"SELECT '\'; DELETE FROM t; --'";
    assert_eq!(
        classify(sql, &Settings::default(), &catalog()).rule,
        Rule::DataChangingKeyword
    );
    assert_eq!(classify(sql, &off, &catalog()).access, Access::Read);
    assert_eq!(
        classify(b"SELECT U&'x'", &off, &catalog()).rule,
        Rule::UnexpectedCharacter
    );
}

#[test]
fn the_offending_token_is_told() {
    let at = |sql: &'static str| {
        class_of(sql)
            .at
            .map(|span| std::str::from_utf8(span.bytes(sql.as_bytes())).expect("a token of ASCII text"))
    };
    assert_eq!(at("SELECT 1"), None);
    assert_eq!(at("SELECT 1, nextval ('s')"), Some("nextval"));
    assert_eq!(
        at("SELECT 1; DELETE FROM t; INSERT INTO t VALUES (1)"),
        Some("DELETE")
    );
    assert_eq!(at("SELECT 1 FROM t FOR UPDATE"), Some("FOR"));
    assert_eq!(at("BEGIN WORK"), Some("BEGIN"));
    assert_eq!(at("SELECT * FROM \"calls_write\""), Some("\"calls_write\""));
}

#[test]
fn a_class_is_small() {
    assert!(size_of::<Class>() <= 24, "{}", size_of::<Class>());
}

#[test]
fn deep_nesting_is_a_write_and_not_an_overflow() {
    let nested = |depth: usize| format!("SELECT {}1{}", "(".repeat(depth), ")".repeat(depth));
    reads(&[&nested(60)]);
    writes(Rule::NestedTooDeep, &[&nested(64), &nested(20_000)]);
}

#[test]
fn every_rule_has_its_own_label_and_sentence() {
    let labels: std::collections::BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.as_str()).collect();
    let sentences: std::collections::BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.sentence()).collect();
    assert_eq!(
        (labels.len(), sentences.len()),
        (Rule::ALL.len(), Rule::ALL.len())
    );
}

#[test]
fn a_pipeline_is_as_strict_as_its_strictest_message() {
    let (read, write, empty) = (class_of("SELECT 1"), class_of("SET x.y = 1"), class_of(""));
    assert_eq!(empty.rule, Rule::Empty);
    assert_eq!(read.and_then(write).rule, Rule::ChangesSetting);
    assert_eq!(write.and_then(read).access, Access::Write);
    assert!(write.and_then(read).session.contains(SessionEffects::SETTING));
    assert_eq!(empty.and_then(read).rule, Rule::ReadsOnly);
    assert_eq!(read.and_then(empty).rule, Rule::ReadsOnly);
    assert_eq!(read.and_then(write).statements, 2);
}

// Properties

/// Pieces of SQL that say most of what can go wrong when put together at random.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "SELECT",
        "WITH",
        "x",
        "AS",
        "(",
        ")",
        "(",
        ")",
        ",",
        ";",
        "'s'",
        "E'\\''",
        "$1",
        "1.5",
        "$q$ x $q$",
        "\"q\"\"n\"",
        ".",
        "nextval",
        "lower",
        "unknown_fn",
        "set_config",
        "true",
        "current_setting",
        "FROM",
        "::",
        "numeric",
        "INTO",
        "FOR",
        "UPDATE",
        "DISTINCT",
        "ON",
        "OVER",
        "BEGIN",
        "READ",
        "ONLY",
        "ISOLATION",
        "LEVEL",
        "COMMIT",
        "SET",
        "LOCAL",
        "COPY",
        "TO",
        "STDOUT",
        "EXPLAIN",
        "ANALYZE",
        "CREATE",
        "TEMP",
        "TABLE",
        "FUNCTION",
        "ATOMIC",
        "END",
        "CASE",
        "OPERATOR",
        "+",
        "-",
        "*",
        "@-",
        "<",
        "--c\n",
        "/* c */",
        "/*",
        "'",
        "\"",
        "$a$",
        "U&\"x\"",
        "[",
        "]",
        ":",
        "{",
        "\\",
        "é",
        "halyard",
        "SHOW",
        "VALUES",
        "IN",
        "/* halyard.route: primary */",
        "pg_temp",
        "calls_write",
        "RECURSIVE",
        "BY",
        "GROUP",
        "ROLLUP",
        "DECLARE",
        "HOLD",
        "PREPARE",
    ])
}

fn text() -> impl Strategy<Value = String> {
    (prop::collection::vec((piece(), prop::sample::select(vec![" ", "", "\n", "\t "])), 0..40)).prop_map(
        |pieces| {
            pieces
                .into_iter()
                .flat_map(|(piece, space)| [piece, space])
                .collect()
        },
    )
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_classed(bytes in prop::collection::vec(any::<u8>(), 0..300), conforming: bool) {
        let settings = Settings { standard_conforming_strings: conforming, ..Settings::default() };
        let _ = classify(&bytes, &settings, &FunctionCatalog::empty());
    }

    #[test]
    fn pieces_of_sql_are_classed(sql in text(), conforming: bool) {
        let settings = Settings { standard_conforming_strings: conforming, ..Settings::default() };
        let class = classify(sql.as_bytes(), &settings, &catalog());
        prop_assert_eq!(class.at.is_some(), class.access == Access::Write, "{}", class.rule);
    }

    #[test]
    fn a_data_changing_statement_added_is_never_a_read(sql in text(), write in prop::sample::select(vec![
        "INSERT INTO t VALUES (1)", "UPDATE t SET a = 1", "DELETE FROM t", "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
        "SELECT nextval('s')", "CREATE TABLE t (a int)", "VACUUM", "SELECT 1 INTO t", "SELECT 1 FOR UPDATE",
    ])) {
        // Behind a text that ends; one that does not is a write anyway.
        let joined = format!("{sql}\n;{write}");
        prop_assert_eq!(class_of(&joined).access, Access::Write);
        prop_assert_eq!(class_of(&format!("{write};{sql}")).access, Access::Write);
    }

    #[test]
    fn space_and_comments_between_tokens_change_nothing(
        pieces in prop::collection::vec(piece().prop_filter("one whole token", |piece| is_one_token(piece)), 0..40),
        filler in prop::sample::select(vec![" /* x */ ", "/* /* y */ ( */", " -- z\n", "\n\t", " /**/-- ' \n "]),
    ) {
        // Two strings with a line break between them are one.
        let adjacent_strings = pieces.windows(2).any(|pair| pair.iter().all(|piece| piece.ends_with('\'')));
        prop_assume!(!(filler.contains('\n') && adjacent_strings));
        let (plain, spread) = (pieces.join(" "), pieces.join(filler));
        let (before, after) = (class_of(&plain), class_of(&spread));
        prop_assert_eq!(Class { at: None, ..before }, Class { at: None, ..after }, "{}", spread);
    }
}

fn is_one_token(piece: &str) -> bool {
    let mut tokens = Lexer::new(piece.as_bytes(), true);
    let kind = tokens.next().map(|token| token.kind);
    let whole = !matches!(
        kind,
        None | Some(TokenKind::Comment | TokenKind::Unterminated | TokenKind::Unexpected)
    );
    whole && tokens.next().is_none()
}
