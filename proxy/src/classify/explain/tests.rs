use super::super::FunctionOverrides;
use super::*;

fn catalog() -> FunctionCatalog {
    let mut rows = include_str!("../catalog/postgresql15.tsv").to_owned();
    rows.push_str("f\tapp_write\tv\tf\nr\tcalls_write\tapp_write\tf\ne\tview_of_view\tcalls_write\tf\n");
    rows.push_str("n\torders_id_seq\tS\tf\nn\tscratch\tr\tf\no\t<<!\tapp_write\tf\n");
    FunctionCatalog::from_dump(rows.as_bytes(), &FunctionOverrides::default()).expect("rows of the query")
}

fn explained(sql: &str) -> Explanation {
    explain(sql.as_bytes(), &Settings::default(), &catalog())
}

/// The rule that decides, the byte of its token, and what is said of what it names.
fn decides(sql: &str) -> (Rule, Option<usize>, String) {
    let explanation = explained(sql);
    let finding = explanation.decides().expect("a write").clone();
    let subject = finding.subject.map(|subject| subject.to_string());
    (
        finding.rule,
        finding.place.map(|place| place.offset),
        subject.unwrap_or_default(),
    )
}

#[test]
fn the_offending_token_is_shown_with_what_it_names() {
    for (sql, rule, offset, subject) in [
        (
            "SELECT 1, nextval('s')",
            Rule::VolatileFunction,
            10,
            "function nextval is volatile",
        ),
        (
            "SELECT app_write()",
            Rule::VolatileFunction,
            7,
            "function app_write is volatile, and not PostgreSQL's own",
        ),
        (
            "SELECT f(1)",
            Rule::UnknownFunction,
            7,
            "function f is not in the catalogue",
        ),
        (
            "SELECT * FROM \"view_of_view\"",
            Rule::VolatileRelation,
            14,
            "relation \"view_of_view\" reads calls_write",
        ),
        (
            "SELECT * FROM calls_write",
            Rule::VolatileRelation,
            14,
            "relation calls_write calls app_write",
        ),
        (
            "TABLE orders_id_seq",
            Rule::PrimaryRelation,
            6,
            "relation orders_id_seq is a sequence",
        ),
        (
            "TABLE scratch",
            Rule::PrimaryRelation,
            6,
            "relation scratch is unlogged: standbys have no rows of it",
        ),
        (
            "TABLE pg_locks",
            Rule::PrimaryRelation,
            6,
            "relation pg_locks shows what is the node's own",
        ),
        (
            "TABLE pg_stat_activity",
            Rule::PrimaryRelation,
            6,
            "relation pg_stat_activity calls pg_stat_get_activity",
        ),
        (
            "SELECT 1 <<! 2",
            Rule::VolatileOperator,
            9,
            "operator <<! calls app_write",
        ),
        (
            "SHOW transaction_read_only",
            Rule::PrimarySetting,
            5,
            "setting transaction_read_only tells whether the session may write",
        ),
        (
            "SELECT pg_backend_pid()",
            Rule::PrimaryFunction,
            7,
            "function pg_backend_pid answers for its node or session",
        ),
        ("SELECT * FROM t FOR UPDATE", Rule::LockingClause, 16, ""),
        (
            "WITH x AS (DELETE FROM t) SELECT 1",
            Rule::DataChangingKeyword,
            11,
            "",
        ),
        ("VACUUM", Rule::OtherStatement, 0, ""),
    ] {
        assert_eq!(decides(sql), (rule, Some(offset), subject.to_owned()), "{sql}");
    }
}

#[test]
fn a_text_that_is_not_read_has_a_rule_and_no_token() {
    let settings = Settings {
        max_len: 4,
        ..Settings::default()
    };
    let explanation = explain(b"SELECT 1", &settings, &catalog());
    assert_eq!(explanation.decides().map(|it| it.rule), Some(Rule::TooLong));
    assert_eq!(explanation.left.len(), 1);
    assert!(explanation.lines().iter().any(|(name, _)| *name == "reason"));
}

#[test]
fn every_reason_is_told_and_the_first_decides() {
    let explanation = explained("SELECT 1; SELECT nextval('s'),\n setval('s', 1); DELETE FROM t");
    let found: Vec<_> = explanation
        .findings
        .iter()
        .map(|it| {
            (
                it.rule,
                it.statement,
                it.place.as_ref().map(|at| (at.line, at.column)),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (Rule::VolatileFunction, 2, Some((1, 18))),
            (Rule::VolatileFunction, 2, Some((2, 2))),
            (Rule::DataChangingKeyword, 3, Some((2, 18))),
        ]
    );
    assert_eq!(explanation.statements, ["SELECT", "SELECT", "DELETE FROM"]);
    let lines = explanation.lines();
    assert!(lines.contains(&("statements", "3; number 2 decides: SELECT".to_owned())));
}

#[test]
fn what_stays_in_the_session_is_told_with_its_token() {
    let explanation = explained("SELECT set_config('a.b', '1', false), pg_advisory_lock(1)");
    let left: Vec<_> = explanation
        .left
        .iter()
        .map(|left| (left.effect, left.place.as_ref().map(|at| at.token.as_str())))
        .collect();
    assert_eq!(
        left,
        [
            ("SETTING", Some(")")),
            ("ADVISORY_LOCK", Some("pg_advisory_lock"))
        ]
    );
}

#[test]
fn each_text_has_a_kind() {
    for (sql, kind) in [
        ("", Kind::Empty),
        (" ; -- nothing", Kind::Empty),
        ("TABLE t", Kind::Read),
        ("BEGIN", Kind::TransactionControl),
        ("BEGIN READ ONLY", Kind::TransactionControl),
        ("ROLLBACK TO s", Kind::TransactionControl),
        ("SET a = 1", Kind::Setting),
        ("SELECT set_config('a', 'b', true)", Kind::Setting),
        ("LISTEN c", Kind::Session),
        ("FETCH ALL FROM c", Kind::Session),
        ("CREATE TABLE t ()", Kind::Definition),
        ("INSERT INTO t VALUES (1)", Kind::Write),
        ("NOTIFY c", Kind::Write),
        ("SELECT nextval('s')", Kind::Write),
    ] {
        assert_eq!(explained(sql).kind, kind, "{sql}");
    }
}

#[test]
fn a_hint_decides_where_it_goes_and_not_what_it_is() {
    let explanation = explained("/* halyard.route: replica */ SELECT nextval('s')");
    assert_eq!(
        (explanation.class.access, explanation.access()),
        (Access::Write, Access::Read)
    );
    let lines = explanation.lines();
    assert!(lines.contains(&("hint", "replica".to_owned())));
    let begin = explained("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    let modes = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned();
    assert!(begin.lines().contains(&("transaction", modes)));
}

/// The walk is the classifier's own, so an explanation cannot disagree with it.
#[test]
fn an_explanation_has_the_class_of_the_classifier() {
    let (catalog, settings) = (catalog(), Settings::default());
    for sql in [
        "SELECT 1",
        "TABLE scratch; SELECT 2",
        "SELECT (",
        "SET a = 'x",
        "é",
        "CREATE TEMP TABLE t ()",
    ] {
        let explanation = explain(sql.as_bytes(), &settings, &catalog);
        assert_eq!(
            explanation.class,
            classify(sql.as_bytes(), &settings, &catalog),
            "{sql}"
        );
        let first = explanation.decides().map(|finding| finding.rule);
        assert_eq!(
            first.is_some(),
            explanation.class.access == Access::Write,
            "{sql}"
        );
        assert!(first.is_none_or(|rule| rule == explanation.class.rule), "{sql}");
    }
}

#[test]
fn a_file_is_taken_apart_at_its_semicolons() {
    let text = "-- first\nSELECT ';' ;; CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END;\nSELECT (1;2); TABLE t";
    let parts: Vec<_> = split(text.as_bytes(), true)
        .into_iter()
        .map(|range| text[range].trim())
        .collect();
    assert_eq!(
        parts,
        [
            "-- first\nSELECT ';'",
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END",
            "SELECT (1;2)",
            "TABLE t"
        ]
    );
}
