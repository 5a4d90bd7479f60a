use std::time::Duration;

use super::*;

/// What is found wrong when `read` reads `text`.
fn found(text: &str, read: impl FnOnce(&mut Section<'_, '_>)) -> Vec<String> {
    let ((), gathered) = document(text, read);
    gathered
        .findings
        .into_sorted()
        .into_iter()
        .map(|finding| finding.message)
        .collect()
}

#[test]
fn a_key_nobody_asked_for_is_refused_at_every_depth() {
    let text = "a = 1\n[t]\nb = 1\n[[l]]\nc = 1\n[[l]]\nd = 1\n";
    let messages = found(text, |top| {
        top.table("t", |_| ());
        top.tables("l", |section| section.number("c", 0..=1, 0));
    });
    assert_eq!(
        messages,
        [
            "there is no setting \"a\" at the top level",
            "there is no setting \"b\" in [t]",
            "there is no setting \"d\" in [l]",
        ]
    );
}

#[test]
fn a_table_where_a_list_is_meant_and_the_reverse_are_told() {
    let messages = found("[node]\nx = 1\n[[pool]]\nx = 1\n", |top| {
        top.tables("node", |_| ());
        top.table("pool", |_| ());
    });
    assert_eq!(
        messages,
        [
            "node: must be a list of sections, each written [[node]]",
            "pool: must be a section, written [pool]"
        ]
    );
}

#[test]
fn numbers_of_every_notation_and_size_are_compared_with_the_range() {
    for (written, expected) in [
        ("7", None),
        ("0x07", None),
        ("1_0", None),
        ("11", Some("n: 11 is outside the valid range (0 .. 10)")),
        ("-1", Some("n: -1 is outside the valid range (0 .. 10)")),
        (
            "99999999999999999999999",
            Some("n: 99999999999999999999999 is outside the valid range (0 .. 10)"),
        ),
        ("1.5", Some("n: 1.5 is not a whole number")),
        ("\"7\"", Some("n: \"7\" is not a whole number")),
    ] {
        let messages = found(&format!("n = {written}\n"), |top| {
            top.number("n", 0..=10_u8, 0);
        });
        assert_eq!(messages.first().map(String::as_str), expected, "{written}");
    }
}

#[test]
fn off_is_a_word_of_its_own() {
    let text = "a = \"off\"\nb = \"5s\"\n";
    let read = |top: &mut Section<'_, '_>| {
        let range = Duration::ZERO..=Duration::from_secs(9);
        let default = Some(Duration::from_secs(1));
        ["a", "b", "c"].map(|key| top.duration_or_off(key, range.clone(), default))
    };
    let (durations, _) = document(text, read);
    assert_eq!(
        durations,
        [None, Some(Duration::from_secs(5)), Some(Duration::from_secs(1))]
    );
}

#[test]
fn long_values_are_repeated_only_in_part() {
    let messages = found(&format!("n = \"{}\"\n", "x".repeat(500)), |top| {
        top.number("n", 0..=1, 0);
    });
    assert_eq!(
        messages,
        [format!("n: \"{}… is not a whole number", "x".repeat(59))]
    );
}
