//! Transaction control, and where a block opens.

use super::*;

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
