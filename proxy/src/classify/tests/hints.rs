//! Hints in comments, and Halyard's own settings.

use super::*;

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
