//! Every SQL command of the manual (part VI, "SQL Commands", PostgreSQL 15 to 18: the list has not changed) is placed.

use super::*;
use crate::classify::{Kind, explain};

/// ALTER, CREATE and DROP of these may change what a catalogue holds, whatever follows.
const OBJECTS: &[&str] = &[
    "ACCESS METHOD",
    "AGGREGATE",
    "CAST",
    "COLLATION",
    "CONVERSION",
    "DATABASE",
    "DEFAULT PRIVILEGES",
    "DOMAIN",
    "EVENT TRIGGER",
    "EXTENSION",
    "FOREIGN DATA WRAPPER",
    "FOREIGN TABLE",
    "FUNCTION",
    "GROUP",
    "INDEX",
    "LANGUAGE",
    "LARGE OBJECT",
    "MATERIALIZED VIEW",
    "OPERATOR",
    "OPERATOR CLASS",
    "OPERATOR FAMILY",
    "OWNED",
    "POLICY",
    "PROCEDURE",
    "PUBLICATION",
    "ROLE",
    "ROUTINE",
    "RULE",
    "SCHEMA",
    "SEQUENCE",
    "SERVER",
    "STATISTICS",
    "SUBSCRIPTION",
    "SYSTEM",
    "TABLE",
    "TABLESPACE",
    "TEXT SEARCH CONFIGURATION",
    "TEXT SEARCH DICTIONARY",
    "TEXT SEARCH PARSER",
    "TEXT SEARCH TEMPLATE",
    "TRANSFORM",
    "TRIGGER",
    "TYPE",
    "USER",
    "USER MAPPING",
    "VIEW",
];

/// All other commands: an example in each of its forms that differs, and where it is placed.
const COMMANDS: &[(Kind, Access, &[&str])] = &[
    (
        Kind::Read,
        Access::Read,
        &[
            "SELECT 1",
            "VALUES (1)",
            "TABLE t",
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "SHOW search_path",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE SELECT 1",
            "EXPLAIN (ANALYZE, BUFFERS, SERIALIZE TEXT, MEMORY, GENERIC_PLAN off) SELECT 1",
            "COPY t TO STDOUT",
            "COPY (SELECT 1) TO STDOUT (FORMAT csv, FORCE_QUOTE *)",
        ],
    ),
    (
        Kind::TransactionControl,
        Access::Read,
        &[
            "ABORT",
            "COMMIT",
            "END",
            "ROLLBACK",
            "ROLLBACK TO SAVEPOINT s",
            "SAVEPOINT s",
            "RELEASE SAVEPOINT s",
            "BEGIN READ ONLY",
            "START TRANSACTION READ ONLY",
        ],
    ),
    (
        Kind::TransactionControl,
        Access::Write,
        &[
            "BEGIN",
            "START TRANSACTION",
            "BEGIN READ ONLY, ISOLATION LEVEL SERIALIZABLE",
            "SET TRANSACTION READ ONLY",
            "SET transaction_read_only = on",
            "PREPARE TRANSACTION 'x'",
            "COMMIT PREPARED 'x'",
            "ROLLBACK PREPARED 'x'",
        ],
    ),
    (
        Kind::Setting,
        Access::Write,
        &[
            "SET a.b = 1",
            "RESET ALL",
            "SET CONSTRAINTS ALL DEFERRED",
            "SET ROLE r",
            "SET SESSION AUTHORIZATION r",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SELECT set_config('a.b', '1', true)",
        ],
    ),
    (
        Kind::Session,
        Access::Write,
        &[
            "CLOSE c",
            "DEALLOCATE p",
            "DISCARD ALL",
            "DISCARD PLANS",
            "DISCARD SEQUENCES",
            "DISCARD TEMP",
            "FETCH c",
            "MOVE c",
            "LISTEN c",
            "UNLISTEN *",
            "LOAD 'x'",
            "PREPARE p AS SELECT 1",
        ],
    ),
    (
        Kind::Definition,
        Access::Write,
        &[
            "IMPORT FOREIGN SCHEMA s FROM SERVER v INTO t",
            "SELECT 1 INTO t",
            "CREATE TABLE t AS SELECT 1",
            "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
        ],
    ),
    (
        Kind::Write,
        Access::Write,
        &[
            "ANALYZE",
            "CALL p()",
            "CHECKPOINT",
            "CLUSTER",
            "COMMENT ON TABLE t IS 'x'",
            "COPY t FROM STDIN",
            "COPY t TO '/tmp/x'",
            "COPY t TO PROGRAM 'cat'",
            "COPY (DELETE FROM t RETURNING 1) TO STDOUT",
            "COPY t FROM STDOUT",
            "DECLARE c CURSOR FOR SELECT 1",
            "DELETE FROM t",
            "DO 'x'",
            "EXECUTE p",
            "EXPLAIN DELETE FROM t",
            "EXPLAIN EXECUTE p",
            "GRANT a TO b",
            "INSERT INTO t VALUES (1)",
            "LOCK TABLE t",
            "MERGE INTO t USING u ON true WHEN MATCHED THEN DO NOTHING",
            "NOTIFY c",
            "REASSIGN OWNED BY r TO s",
            "REFRESH MATERIALIZED VIEW v",
            "REINDEX TABLE t",
            "REVOKE a FROM b",
            "SECURITY LABEL ON TABLE t IS 'x'",
            "SELECT 1 FROM t FOR SHARE",
            "TRUNCATE t",
            "UPDATE t SET a = 1",
            "VACUUM",
            "WITH x AS (MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE RETURNING 1) SELECT 1",
            // 18: RETURNING of what was there before. Not of a known kind, hence a write.
            "UPDATE t SET a = 1 RETURNING old.a, new.a",
            "REPACK t",
            "WAIT FOR LSN '0/0'",
        ],
    ),
];

/// What psql's `\h` lists, where it is not ALTER, CREATE or DROP of an object.
const LISTED: &[&str] = &[
    "ABORT",
    "ANALYZE",
    "BEGIN",
    "CALL",
    "CHECKPOINT",
    "CLOSE",
    "CLUSTER",
    "COMMENT",
    "COMMIT",
    "COMMIT PREPARED",
    "COPY",
    "DEALLOCATE",
    "DECLARE",
    "DELETE",
    "DISCARD",
    "DO",
    "END",
    "EXECUTE",
    "EXPLAIN",
    "FETCH",
    "GRANT",
    "IMPORT FOREIGN SCHEMA",
    "INSERT",
    "LISTEN",
    "LOAD",
    "LOCK",
    "MERGE",
    "MOVE",
    "NOTIFY",
    "PREPARE",
    "PREPARE TRANSACTION",
    "REASSIGN OWNED",
    "REFRESH MATERIALIZED VIEW",
    "REINDEX",
    "RELEASE SAVEPOINT",
    "RESET",
    "REVOKE",
    "ROLLBACK",
    "ROLLBACK PREPARED",
    "ROLLBACK TO SAVEPOINT",
    "SAVEPOINT",
    "SECURITY LABEL",
    "SELECT",
    "SET",
    "SET CONSTRAINTS",
    "SET ROLE",
    "SET SESSION AUTHORIZATION",
    "SET TRANSACTION",
    "SHOW",
    "START TRANSACTION",
    "TABLE",
    "TRUNCATE",
    "UNLISTEN",
    "UPDATE",
    "VACUUM",
    "VALUES",
    "WITH",
];

fn placed(sql: &str) -> (Kind, Access) {
    let explanation = explain(sql.as_bytes(), &Settings::default(), &catalog());
    (explanation.kind, explanation.class.access)
}

#[test]
fn every_command_of_the_manual_is_placed() {
    for (kind, access, examples) in COMMANDS {
        for sql in *examples {
            assert_eq!(placed(sql), (*kind, *access), "{sql}");
        }
    }
    for verb in ["ALTER", "CREATE", "DROP"] {
        for object in OBJECTS {
            let sql = format!("{verb} {object} x");
            assert_eq!(placed(&sql), (Kind::Definition, Access::Write), "{sql}");
        }
    }
}

#[test]
fn no_command_of_the_manual_is_left_out() {
    let examples = || COMMANDS.iter().flat_map(|(.., examples)| *examples);
    for command in LISTED {
        let begins = |sql: &&&str| {
            sql.strip_prefix(command)
                .is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
        };
        assert!(examples().any(|sql| begins(&sql)), "no example of {command}");
    }
}
