//! What the classifier says of statements, by theme; here is what the themes share.

use super::*;

mod commands;
mod encodings;
mod hints;
mod properties;
mod reading;
mod sessions;
mod transactions;
mod writing;

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
