//! What writes, or cannot be proved to read.

use super::*;

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
        Rule::SetsSerializableTransaction,
        &[
            "SET TRANSACTION READ WRITE, ISOLATION LEVEL SERIALIZABLE",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
        ],
    );
    writes(
        Rule::ChangesSetting,
        &[
            "SET transaction_read_only = 0",
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
