use proptest::prelude::*;

use super::TokenKind::*;
use super::*;

fn tokens(text: &str) -> Vec<(TokenKind, &str)> {
    tokens_with(text, true)
}

fn tokens_with(text: &str, standard_conforming_strings: bool) -> Vec<(TokenKind, &str)> {
    Lexer::new(text.as_bytes(), standard_conforming_strings)
        .map(|token| (token.kind, &text[token.start..token.end]))
        .collect()
}

/// Asserts that each text is one token of the kind, whole.
#[track_caller]
fn whole(kind: TokenKind, texts: &[&str]) {
    for text in texts {
        assert_eq!(tokens(text), [(kind, *text)], "{text}");
    }
}

#[test]
fn strings_end_where_the_server_ends_them() {
    whole(
        String,
        &[
            "''",
            "'a'",
            "'it''s'",
            r"'\'",
            r"E'\''",
            r"e'\\'",
            r"E'a\'b''c'",
            "B'01'",
            "x'fF'",
            "U&'d\\0061t'",
            "u&'it''s'",
            "$$$$",
            "$$a'b$$",
            "$a$ $b$ $$ $a$",
            "$a$$$a$",
            "$a$ $aa$a$",
            "$ä_1$ x $ä_1$",
            "'a' \n 'b'",
            "'a'\r'b'",
            "'a' -- comment 'with' quotes\n 'b'",
            "'a'--\n--\n\t'b'",
            "E'a'\n'\\''",
        ],
    );
    whole(
        Unterminated,
        &[
            "'", "'a''", r"E'\'", "E'", "E'\\", "$$", "$a$ $A$", "$a$$", "B'0", "'a'\n'b", "\"", "\"a\"\"",
            "U&\"x", "/*", "/* /* */", "/*/",
        ],
    );
    assert_eq!(
        tokens("'a' 'b'"),
        [(String, "'a'"), (String, "'b'")],
        "one line: two constants"
    );
    assert_eq!(
        tokens("'a' /*\n*/ 'b'"),
        [(String, "'a'"), (Comment, "/*\n*/"), (String, "'b'")]
    );
    assert_eq!(
        tokens("B'0''1'"),
        [(String, "B'0'"), (String, "'1'")],
        "a bit string knows no doubled quote"
    );
    assert_eq!(
        tokens("n'a'"),
        [(Word, "n"), (String, "'a'")],
        "NCHAR, then a string"
    );
    assert_eq!(tokens("ae'a'"), [(Word, "ae"), (String, "'a'")]);
    assert_eq!(tokens("u & 'a'"), [(Word, "u"), (Operator, "&"), (String, "'a'")]);
    assert_eq!(
        tokens("a$b$c$"),
        [(Word, "a$b$c$")],
        "a dollar in a word opens nothing"
    );
    assert_eq!(tokens("$1$$$1"), [(Parameter, "$1"), (Unterminated, "$$$1")]);
    assert_eq!(tokens("$a b"), [(Unexpected, "$"), (Word, "a"), (Word, "b")]);
}

#[test]
fn backslashes_escape_without_standard_conforming_strings() {
    assert_eq!(tokens_with(r"'\''", false), [(String, r"'\''")]);
    assert_eq!(
        tokens_with(r"'a' '\'x'", false),
        [(String, "'a'"), (String, r"'\'x'")]
    );
    assert_eq!(tokens_with(r"$$\$$", false), [(String, r"$$\$$")]);
    assert_eq!(tokens_with(r"B'\'", false), [(String, r"B'\'")]);
    assert_eq!(tokens_with(r"U&'\'", false)[0], (Unexpected, "U&'"));
}

#[test]
fn names_and_words() {
    whole(
        QuotedName,
        &["\"a\"", "\"a b\"", "\"a\"\"b\"", "\"'--/*\"", "\"\""],
    );
    whole(EscapedName, &["U&\"d\\0061t\"", "u&\"\""]);
    whole(
        Word,
        &["a", "_a1$", "select", "größe", "\u{1F600}", "e", "u", "x1", "B"],
    );
}

#[test]
fn numbers_and_parameters() {
    whole(
        Number,
        &[
            "0", "42", "1.5", "1.", ".5", "1e10", "1.5E-3", ".5e+1", "0x1F", "0o17", "0b01", "1_000",
            "0x_ff", "1_0.0_1",
        ],
    );
    whole(Parameter, &["$1", "$12345"]);
    assert_eq!(tokens("1into"), [(Number, "1"), (Word, "into")]);
    assert_eq!(tokens("1einto"), [(Number, "1"), (Word, "einto")]);
    assert_eq!(
        tokens("1e+a"),
        [(Number, "1"), (Word, "e"), (Operator, "+"), (Word, "a")]
    );
    assert_eq!(tokens("0xg"), [(Number, "0"), (Word, "xg")]);
    assert_eq!(tokens("1_"), [(Number, "1"), (Word, "_")]);
    assert_eq!(tokens("1..2"), [(Number, "1"), (Unexpected, ".."), (Number, "2")]);
    assert_eq!(tokens("-1"), [(Operator, "-"), (Number, "1")]);
    assert_eq!(tokens("$1a"), [(Parameter, "$1"), (Word, "a")]);
    assert_eq!(tokens("1$1"), [(Number, "1"), (Parameter, "$1")]);
}

#[test]
fn operators_end_at_comments_and_before_signs() {
    whole(
        Operator,
        &["+", "<=", "->>", "@-", "!=-", "*", "=>", "||/", "?&", "*/"],
    );
    assert_eq!(tokens("a<--b"), [(Word, "a"), (Operator, "<"), (Comment, "--b")]);
    assert_eq!(
        tokens("a+/*b*/-c"),
        [
            (Word, "a"),
            (Operator, "+"),
            (Comment, "/*b*/"),
            (Operator, "-"),
            (Word, "c")
        ]
    );
    assert_eq!(
        tokens("1=-1"),
        [(Number, "1"), (Operator, "="), (Operator, "-"), (Number, "1")]
    );
    assert_eq!(tokens("*-+"), [(Operator, "*"), (Operator, "-"), (Operator, "+")]);
    assert_eq!(tokens("@-+"), [(Operator, "@-+")]);
    assert_eq!(
        tokens("+-@"),
        [(Operator, "+-@")],
        "the sign is not the last character"
    );
    assert_eq!(tokens("@--x"), [(Operator, "@"), (Comment, "--x")]);
}

#[test]
fn comments_nest_and_lines_end() {
    whole(
        Comment,
        &[
            "--",
            "-- a",
            "/**/",
            "/* /* */ */",
            "/*/**/*/",
            "/* ' \" $$ */",
            "/***/",
            "/*//*x*/*/",
        ],
    );
    assert_eq!(tokens("--a\rb"), [(Comment, "--a"), (Word, "b")]);
    assert_eq!(tokens("/* -- */ b"), [(Comment, "/* -- */"), (Word, "b")]);
}

#[test]
fn the_other_marks() {
    assert_eq!(
        tokens("a.b::c[1:2](,);:=\\"),
        [
            (Word, "a"),
            (Dot, "."),
            (Word, "b"),
            (Cast, "::"),
            (Word, "c"),
            (OpenBracket, "["),
            (Number, "1"),
            (Colon, ":"),
            (Number, "2"),
            (CloseBracket, "]"),
            (Open, "("),
            (Comma, ","),
            (Close, ")"),
            (Semicolon, ";"),
            (Colon, ":="),
            (Unexpected, "\\"),
        ]
    );
    assert_eq!(tokens("\u{b}\u{c} \t\r\n"), []);
}

#[test]
fn a_long_run_of_signs_is_read_in_linear_time() {
    // Quadratic work over a megabyte would take minutes; the test's own time limit is what fails.
    let signs = "+-".repeat(500_000).replace("--", "-");
    assert_eq!(Lexer::new(signs.as_bytes(), true).count(), 1_000_000);
    let tags = "$a".repeat(500_000);
    assert!(Lexer::new(tags.as_bytes(), true).count() <= 1_000_000);
    let strings = "''--\n".repeat(200_000);
    assert_eq!(
        Lexer::new(strings.as_bytes(), true).count(),
        2,
        "one constant of many lines, and its last comment"
    );
}

proptest! {
    #[test]
    fn tokens_partition_the_text(
        bytes in prop::collection::vec(
            prop_oneof![prop::sample::select(b" \n'\"$\\-/*+@=<.eEuUbx&0123(,;:ab_".to_vec()), any::<u8>()],
            0..200,
        ),
        conforming: bool,
    ) {
        let mut at = 0;
        for token in Lexer::new(&bytes, conforming) {
            prop_assert!(token.start >= at && token.end > token.start && token.end <= bytes.len());
            prop_assert!(bytes[at..token.start].iter().all(|byte| is_space(*byte)));
            if token.kind == Unterminated {
                prop_assert_eq!(token.end, bytes.len());
            }
            at = token.end;
        }
        prop_assert!(bytes[at..].iter().all(|byte| is_space(*byte)));
    }
}

thread_local! {
    /// Bytes that lexers of this thread have looked at.
    pub(super) static WORK: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Pieces after which a lexer or a walk looks ahead, or might take back what it has read.
const AHEAD: &[&str] = &[
    "'",
    "''",
    "'a'",
    "E'\\'",
    "\"",
    "\"a\"",
    "$",
    "$$",
    "$a",
    "$a$",
    "$1",
    "--",
    "\n",
    " ",
    "/*",
    "*/",
    "+",
    "-",
    "@",
    "<",
    ".",
    "..",
    "1",
    "1e",
    "1.5e",
    "0x",
    "a",
    "a.",
    "(",
    ")",
    ",",
    ";",
    "::",
    "operator(",
    "current_setting(",
    "select ",
    "with ",
    "explain ",
    "set_config(",
    "pg_catalog.",
    "begin ",
    "case ",
    "for ",
    "into ",
    "copy ",
    "U&'",
];

/// However a text repeats itself, each byte is looked at a few times: a quadratic lexer takes minutes for what a client
/// may send. Bytes are counted, not seconds.
#[test]
fn the_work_is_linear_in_the_length_of_the_text() {
    let pieces = proptest::collection::vec(proptest::sample::select(AHEAD), 1..6);
    let catalog = crate::classify::FunctionCatalog::builtin();
    let settings = crate::classify::Settings {
        max_len: usize::MAX,
        ..crate::classify::Settings::default()
    };
    proptest!(|(first in pieces.clone(), again in pieces, then in proptest::sample::select(AHEAD))| {
        let text = format!("{}{}{then}", first.concat(), again.concat().repeat(4_000));
        for standard_conforming_strings in [true, false] {
            let settings = crate::classify::Settings { standard_conforming_strings, ..settings };
            WORK.with(|work| work.set(0));
            let class = crate::classify::classify(text.as_bytes(), &settings, &catalog);
            let work = WORK.with(std::cell::Cell::get);
            prop_assert!(work >= text.len().min(1), "the counter counts");
            prop_assert!(work <= 8 * text.len() + 1_000, "{work} for {} bytes, {}", text.len(), class.rule);
        }
    });
}
