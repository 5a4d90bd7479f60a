//! Texts under other encodings and settings, and the bounds of a walk.

use super::*;

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
