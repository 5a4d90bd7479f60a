use super::*;

fn leaves(text: &str) -> Leaves {
    Source::of(text.as_bytes()).leaves
}

#[test]
fn what_a_function_says_to_its_session_is_found() {
    for text in [
        "BEGIN PERFORM pg_advisory_lock(NEW.id); RETURN NEW; END",
        "BEGIN PERFORM pg_catalog.pg_try_advisory_lock_shared (1); RETURN NEW; END",
        "begin if new.a > 1 then set work_mem = '1MB'; end if; return new; end",
        "DECLARE x int; BEGIN SET SESSION work_mem TO '1MB'; END",
        "BEGIN x := 1; RESET work_mem; END",
        "<<label>> BEGIN <<again>> LOOP LISTEN news; END LOOP; END",
        "BEGIN UNLISTEN *; END",
        "BEGIN PERFORM set_config('a.b', NEW.a, false); RETURN NEW; END",
        "SELECT set_config('a.b', $1, (SELECT true))",
        "SELECT set_config('a.b', coalesce($1, true), x)",
        "SELECT \"set_config\"('a.b', $1, false)",
        "BEGIN CREATE TEMP TABLE x (a int); END",
        "BEGIN CREATE OR REPLACE TEMPORARY VIEW v AS SELECT 1; END",
        "SELECT a INTO TEMP x FROM t",
        "INSERT INTO pg_temp.x VALUES (1)",
        "BEGIN DISCARD ALL; END",
        "BEGIN LOAD 'x'; END",
        "PREPARE p AS SELECT 1",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "UPDATE pg_settings SET setting = 'x' WHERE name = 'a'",
        "SELECT pg_replication_origin_session_setup('x')",
        "BEGIN EXCEPTION WHEN OTHERS THEN SET x.y = 1; END",
        // Constants are read otherwise until the transaction ends.
        "BEGIN SET LOCAL DateStyle = 'ISO, DMY'; END",
        "BEGIN SET LOCAL TIME ZONE 'UTC'; END",
        "BEGIN SET LOCAL \"datestyle\" TO 'ISO, DMY'; END",
        "BEGIN PERFORM set_config('transform_null_equals', 'on', true); END",
        "BEGIN PERFORM set_config(name, value, true); END",
        "BEGIN PERFORM set_config('date' || 'style', value, true); END",
    ] {
        assert_eq!(leaves(text), Leaves::State, "{text}");
    }
}

#[test]
fn text_that_a_function_makes_up_is_not_known() {
    for text in [
        "BEGIN EXECUTE format('INSERT INTO %I VALUES (1)', t); END",
        "BEGIN RETURN QUERY EXECUTE q; END",
        "BEGIN FOR r IN EXECUTE q LOOP END LOOP; END",
        "BEGIN DO 'BEGIN END'; END",
        "SELECT query_to_xml($1, true, true, '')",
        "SELECT U&\"d\\0061t\"()",
        "SELECT 'unterminated",
    ] {
        assert_eq!(leaves(text), Leaves::Unknown, "{text}");
    }
}

#[test]
fn what_ends_with_the_transaction_or_is_no_statement_leaves_nothing() {
    for text in [
        "BEGIN NEW.updated_at := now(); RETURN NEW; END",
        "BEGIN SET LOCAL work_mem = '1MB'; SET CONSTRAINTS ALL DEFERRED; END",
        "BEGIN SET LOCAL search_path = x; SET TRANSACTION READ ONLY; END",
        "BEGIN PERFORM set_config('a.b', NEW.a::text, true); RETURN NEW; END",
        "SELECT set_config('a.b', lower($1), TRUE)",
        "BEGIN PERFORM pg_advisory_xact_lock(NEW.id); RETURN NEW; END",
        "UPDATE t SET a = 1",
        "UPDATE t AS reset SET a = 1",
        "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = excluded.b",
        "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING",
        "BEGIN RAISE NOTICE 'SET x = 1; LISTEN news'; END",
        "BEGIN -- LISTEN news;\n PERFORM 1; /* ; RESET ALL; */ END",
        "SELECT temp, hold, listen, t.execute FROM readings",
        "BEGIN PERFORM pg_notify('news', 'x'); NOTIFY news; END",
        "BEGIN RETURN nextval('s'); END",
        "MERGE INTO t USING s ON true WHEN MATCHED THEN UPDATE SET a = 1",
        "SELECT setting FROM pg_settings",
        "",
    ] {
        assert_eq!(leaves(text), Leaves::Nothing, "{text}");
    }
}

#[test]
fn names_are_told_as_written() {
    let source = Source::of(b"BEGIN INSERT INTO Audit.\"Log\" SELECT note(NEW.id, 'text'); END");
    for name in ["Audit", "\"Log\"", "note", "id"] {
        assert!(source.names.contains(name.as_bytes()), "{name}");
    }
    assert!(!source.names.contains(&b"text"[..]));
}
