//! What a message leaves in its session, and what it changes in the catalogue.

use super::*;

#[test]
fn session_effects_are_told() {
    effects(&[
        ("SELECT 1", SessionEffects::NONE),
        ("SET search_path = x", NAMING_SETTING),
        ("SET SESSION search_path TO x", NAMING_SETTING),
        ("SET LOCAL search_path TO x", SessionEffects::NAMING),
        ("SET TIME ZONE 'utc'", NAMING_SETTING),
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
        (
            "UPDATE pg_settings SET setting = 'x' WHERE name = 'DateStyle'",
            NAMING_SETTING,
        ),
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
            SessionEffects::SHARED,
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

#[test]
fn what_may_change_constants_is_told_from_what_names_hang_on() {
    for text in [
        "SET LOCAL DateStyle = 'ISO, DMY'",
        "SET LOCAL TIME ZONE 'UTC'",
        "SET LOCAL U&\"d\\0061testyle\" = 'ISO, DMY'",
        "SET NAMES 'LATIN1'",
        "SET XML OPTION CONTENT",
        "RESET ALL",
        "SELECT set_config($1, $2, true)",
        "SELECT set_config('date' || 'style', 'ISO, DMY', true)",
        "SELECT set_config ( lower('X'), '1', true), set_config('role', 'x', true)",
        "SELECT set_config('timezone', 'UTC', true)",
        "UPDATE pg_settings SET setting = 'x'",
        "SET LOCAL transform_null_equals = on",
    ] {
        assert!(may_change_constants(text.as_bytes()), "{text}");
    }
    for name in READINGS
        .iter()
        .map(|reading| reading.name)
        .filter(|name| reads_constants(name))
    {
        assert!(
            may_change_constants(format!("SET LOCAL {name} = x").as_bytes()),
            "{name}"
        );
    }
    for text in [
        "SET LOCAL ROLE tenant",
        "SET LOCAL search_path = tenant_1, public",
        "SELECT set_config('role', $1, true), set_config( 'request.jwt.claims', $2, true)",
    ] {
        assert!(!may_change_constants(text.as_bytes()), "{text}");
    }
}

#[test]
fn what_changes_how_texts_are_read_is_found_by_whole_words() {
    for text in [
        &b"SET NAMES 'LATIN1'"[..],
        b"reset all",
        b"Q\0\0\0\x0eRESET ALL\0",
        b"SELECT set_config('client_' || 'encoding', x, false)",
        b"SET standard_conforming_strings = off",
        b"SET U&\"cl\\0069ent_enc\\006fding\" = 'LATIN1'",
    ] {
        assert!(changes_reading(text), "{}", text.escape_ascii());
    }
    for text in [
        &b"SET search_path = small_shop"[..],
        b"SET search_path = all_names, allnames, \xc3\xa9all",
        b"SET DateStyle = 'ISO'",
    ] {
        assert!(!changes_reading(text), "{}", text.escape_ascii());
    }
}
