//! What holds of any text.

use proptest::prelude::*;

use super::*;

/// Pieces of SQL that say most of what can go wrong when put together at random.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "SELECT",
        "WITH",
        "x",
        "AS",
        "(",
        ")",
        "(",
        ")",
        ",",
        ";",
        "'s'",
        "E'\\''",
        "$1",
        "1.5",
        "$q$ x $q$",
        "\"q\"\"n\"",
        ".",
        "nextval",
        "lower",
        "unknown_fn",
        "set_config",
        "true",
        "current_setting",
        "FROM",
        "::",
        "numeric",
        "INTO",
        "FOR",
        "UPDATE",
        "DISTINCT",
        "ON",
        "OVER",
        "BEGIN",
        "READ",
        "ONLY",
        "ISOLATION",
        "LEVEL",
        "COMMIT",
        "SET",
        "LOCAL",
        "COPY",
        "TO",
        "STDOUT",
        "EXPLAIN",
        "ANALYZE",
        "CREATE",
        "TEMP",
        "TABLE",
        "FUNCTION",
        "ATOMIC",
        "END",
        "CASE",
        "OPERATOR",
        "+",
        "-",
        "*",
        "@-",
        "<",
        "--c\n",
        "/* c */",
        "/*",
        "'",
        "\"",
        "$a$",
        "U&\"x\"",
        "[",
        "]",
        ":",
        "{",
        "\\",
        "é",
        "halyard",
        "SHOW",
        "VALUES",
        "IN",
        "/* halyard.route: primary */",
        "pg_temp",
        "calls_write",
        "RECURSIVE",
        "BY",
        "GROUP",
        "ROLLUP",
        "DECLARE",
        "HOLD",
        "PREPARE",
    ])
}

fn text() -> impl Strategy<Value = String> {
    (prop::collection::vec((piece(), prop::sample::select(vec![" ", "", "\n", "\t "])), 0..40)).prop_map(
        |pieces| {
            pieces
                .into_iter()
                .flat_map(|(piece, space)| [piece, space])
                .collect()
        },
    )
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_classed(bytes in prop::collection::vec(any::<u8>(), 0..300), conforming: bool) {
        let settings = Settings { standard_conforming_strings: conforming, ..Settings::default() };
        let _ = classify(&bytes, &settings, &FunctionCatalog::empty());
    }

    #[test]
    fn pieces_of_sql_are_classed(sql in text(), conforming: bool) {
        let settings = Settings { standard_conforming_strings: conforming, ..Settings::default() };
        let class = classify(sql.as_bytes(), &settings, &catalog());
        prop_assert_eq!(class.at.is_some(), class.access == Access::Write, "{}", class.rule);
    }

    #[test]
    fn a_data_changing_statement_added_is_never_a_read(sql in text(), write in prop::sample::select(vec![
        "INSERT INTO t VALUES (1)", "UPDATE t SET a = 1", "DELETE FROM t", "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
        "SELECT nextval('s')", "CREATE TABLE t (a int)", "VACUUM", "SELECT 1 INTO t", "SELECT 1 FOR UPDATE",
    ])) {
        // Behind a text that ends; one that does not is a write anyway.
        let joined = format!("{sql}\n;{write}");
        prop_assert_eq!(class_of(&joined).access, Access::Write);
        prop_assert_eq!(class_of(&format!("{write};{sql}")).access, Access::Write);
    }

    #[test]
    fn space_and_comments_between_tokens_change_nothing(
        pieces in prop::collection::vec(piece().prop_filter("one whole token", |piece| is_one_token(piece)), 0..40),
        filler in prop::sample::select(vec![" /* x */ ", "/* /* y */ ( */", " -- z\n", "\n\t", " /**/-- ' \n "]),
    ) {
        // Two strings with a line break between them are one.
        let adjacent_strings = pieces.windows(2).any(|pair| pair.iter().all(|piece| piece.ends_with('\'')));
        prop_assume!(!(filler.contains('\n') && adjacent_strings));
        let (plain, spread) = (pieces.join(" "), pieces.join(filler));
        let (before, after) = (class_of(&plain), class_of(&spread));
        prop_assert_eq!(Class { at: None, ..before }, Class { at: None, ..after }, "{}", spread);
    }
}

fn is_one_token(piece: &str) -> bool {
    let mut tokens = Lexer::new(piece.as_bytes(), true);
    let kind = tokens.next().map(|token| token.kind);
    let whole = !matches!(
        kind,
        None | Some(TokenKind::Comment | TokenKind::Unterminated | TokenKind::Unexpected)
    );
    whole && tokens.next().is_none()
}
