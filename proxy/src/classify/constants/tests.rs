use proptest::prelude::*;

use super::*;

/// What the lexer finds of the same kinds.
fn by_lexer(text: &[u8], conforming: bool) -> Vec<(TokenKind, usize, usize)> {
    Lexer::new(text, conforming)
        .filter(|token| {
            matches!(
                token.kind,
                TokenKind::String
                    | TokenKind::Number
                    | TokenKind::Parameter
                    | TokenKind::Comment
                    | TokenKind::Unterminated
            )
        })
        .map(|token| (token.kind, token.start, token.end))
        .collect()
}

fn found(text: &[u8], conforming: bool) -> Vec<(TokenKind, usize, usize)> {
    Constants::new(text, conforming)
        .map(|token| {
            // Where what does not end begins is the same to a key: there is none.
            (token.kind, token.start, token.end)
        })
        .collect()
}

/// Both, up to something that does not end: its beginning may be told as that of its prefix or of its quote.
fn compared(text: &[u8], conforming: bool) -> [Vec<(TokenKind, usize, usize)>; 2] {
    [found(text, conforming), by_lexer(text, conforming)].map(|mut all| {
        if let Some(last) = all.last_mut()
            && last.0 == TokenKind::Unterminated
        {
            last.1 = last.2;
        }
        all
    })
}

#[test]
fn finds_what_the_lexer_finds() {
    for text in [
        "SELECT abalance FROM pgbench_accounts WHERE aid = 1234;",
        "select a1, 1a, a$1, $1a$1, 1$1, t1.c2, 1.5.5, .5, a.5, a..5, 1..2, 1.",
        "select e'a\\'b', E'x', n'x', b'01', x'ff', u&'\\0061', U&\"a'b\", ae'x', 1e'x', $e'x', e 'x'",
        "select 'a' 'b', 'a'\n'b', 'it''s', $$a'b$$, $q$ $$ ' $q$, a$q$x'$q$",
        "select 1-- one '2'\n, 2 /* '3 /* 4 */ 5' */ + 6, +-1, *--7\n8, @-9, 1/*x*/2, */*y*/3",
        "select \"a 'b' 1\", \"x\"\"y\"'z', 0x1F, 1_000, 1e5, 1e+5, 1e, 0b1, 0o7, 1.e3",
        "select 'open",
        "select \"open",
        "select /* open",
        "select $$open",
        "u&",
        "'",
        "",
    ] {
        for conforming in [true, false] {
            let [mine, lexers] = compared(text.as_bytes(), conforming);
            assert_eq!(mine, lexers, "{text:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]
    #[test]
    fn finds_what_the_lexer_finds_in_any_text(
        bytes in prop::collection::vec(
            prop_oneof![prop::sample::select(b" \n'\"$\\-/*+@=<.eEuUbxn&0123(,;:ab_\xc3".to_vec()), any::<u8>()],
            0..80,
        ),
        conforming: bool,
    ) {
        let [mine, lexers] = compared(&bytes, conforming);
        prop_assert_eq!(mine, lexers);
    }
}
