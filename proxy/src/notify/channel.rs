//! Channels: their names as statements spell them, and as the server does.

use std::ops::Range;
use std::sync::Arc;

use crate::classify::{Lexer, Token, TokenKind};

/// A channel's name, in its clients' encoding.
pub type Channel = Arc<[u8]>;

/// Longest name in bytes: the server cuts what is longer (`NAMEDATALEN` - 1, `truncate_identifier` in scansup.c).
const NAME_LENGTH_MAX: usize = 63;

/// The channels that the LISTEN statements of a text name, as far as the text tells: what was listened to is asked of the
/// server in the end.
pub fn listened(text: &[u8], standard_conforming_strings: bool) -> Vec<Channel> {
    // A message with more behind its end is refused.
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let tokens =
        Lexer::new(text, standard_conforming_strings).filter(|token| token.kind != TokenKind::Comment);
    let mut tokens = tokens.peekable();
    let mut channels = Vec::new();
    let mut begins = true;
    while let Some(token) = tokens.next() {
        if begins && token.bytes(text).eq_ignore_ascii_case(b"listen") {
            let named = tokens.next();
            if let Some(name) = named.filter(|name| name.kind == TokenKind::EscapedName) {
                let written_so = |next: &Token| {
                    next.kind == TokenKind::Word && next.bytes(text).eq_ignore_ascii_case(b"uescape")
                };
                let escape = tokens.next_if(written_so).and_then(|_| tokens.next());
                channels.extend(escaped_name(name, escape, text));
            } else {
                channels.extend(named.and_then(|name| name_of(name, text)));
            }
        }
        begins = token.kind == TokenKind::Semicolon;
    }
    channels
}

/// What a LISTEN or UNLISTEN says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// LISTEN.
    Listen(Channel),
    /// UNLISTEN of one channel.
    Unlisten(Channel),
    /// UNLISTEN *.
    UnlistenAll,
}

/// A LISTEN or UNLISTEN among the statements of a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Placed {
    /// What it says.
    pub said: Registration,
    /// Which statement of the text it is, counted from 0; empty ones do not count, as the server does not answer them.
    pub number: usize,
    /// Where it stands, without its semicolon.
    pub range: Range<usize>,
}

impl Registration {
    /// What the statements of a text say, in order, as far as the text tells: names written with `U&` escapes are left out.
    pub fn all_in(text: &[u8], standard_conforming_strings: bool) -> Vec<Placed> {
        let tokens =
            Lexer::new(text, standard_conforming_strings).filter(|token| token.kind != TokenKind::Comment);
        let mut placed = Vec::new();
        let mut number = 0;
        let mut depth = 0_usize;
        // What one of them consists of, and one token more.
        let mut begin: Vec<Token> = Vec::with_capacity(3);
        let mut end = |begin: &mut Vec<Token>| {
            if let [verb, object] = begin[..]
                && let Some(said) = Self::from_tokens(verb, object, text)
            {
                let range = verb.start..object.end;
                placed.push(Placed { said, number, range });
            }
            number += usize::from(!begin.is_empty());
            begin.clear();
        };
        for token in tokens {
            match token.kind {
                // Within parentheses it separates the commands of a rule.
                TokenKind::Semicolon if depth == 0 => {
                    end(&mut begin);
                    continue;
                }
                TokenKind::Open => depth += 1,
                TokenKind::Close => depth = depth.saturating_sub(1),
                _ => {}
            }
            if begin.len() < 3 {
                begin.push(token);
            }
        }
        end(&mut begin);
        placed
    }

    fn from_tokens(verb: Token, object: Token, text: &[u8]) -> Option<Self> {
        let listens = verb.bytes(text).eq_ignore_ascii_case(b"listen");
        if !listens && !verb.bytes(text).eq_ignore_ascii_case(b"unlisten") {
            return None;
        }
        match name_of(object, text) {
            Some(channel) if listens => Some(Self::Listen(channel)),
            Some(channel) => Some(Self::Unlisten(channel)),
            None if !listens && object.bytes(text) == b"*" => Some(Self::UnlistenAll),
            None => None,
        }
    }
}

/// The name that an identifier spells: folded where it is not quoted, cut where it is too long.
fn name_of(token: Token, text: &[u8]) -> Option<Channel> {
    let written = token.bytes(text);
    let name = match token.kind {
        TokenKind::Word => written.to_ascii_lowercase(),
        TokenKind::QuotedName => without_doubles(&written[1..written.len() - 1]),
        _ => return None,
    };
    Some(cut(&name).into())
}

/// What stands between quotes: of two quotes in a row the second is left out.
fn without_doubles(inner: &[u8]) -> Vec<u8> {
    let mut quoted = false;
    let kept = inner.iter().copied().filter(|&byte| {
        quoted = byte == b'"' && !quoted;
        byte != b'"' || quoted
    });
    kept.collect()
}

/// The name that `U&"…"` spells (manual, section 4.1.1), with what stands behind UESCAPE. Escapes beyond ASCII are read as
/// UTF-8, as most speak; in another encoding the server is asked what the name is.
fn escaped_name(name: Token, escape: Option<Token>, text: &[u8]) -> Option<Channel> {
    let escape = match escape.map(|escape| escape.bytes(text)) {
        None => b'\\',
        Some(&[b'\'', escape, b'\'']) => escape,
        Some(_) => return None,
    };
    let written = name.bytes(text);
    let written = without_doubles(&written[3..written.len() - 1]);
    let mut name = Vec::with_capacity(written.len());
    let mut rest = &written[..];
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != escape {
            name.push(byte);
            continue;
        }
        let (digits, behind) = match *rest.first()? {
            b'+' => (rest.get(1..7)?, &rest[7..]),
            byte if byte == escape => (&b""[..], &rest[1..]),
            _ => (rest.get(..4)?, &rest[4..]),
        };
        rest = behind;
        match digits {
            b"" => name.push(escape),
            digits => name.extend_from_slice(character(digits)?.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Some(cut(&name).into())
}

/// The character of a number written in hexadecimal digits. Halves of a pair are none.
fn character(digits: &[u8]) -> Option<char> {
    let code = digits.iter().try_fold(0, |code, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(code * 16 + digit)
    });
    code.and_then(char::from_u32)
}

/// As much of a name as the server keeps, not cutting a character of UTF-8 in two.
fn cut(name: &[u8]) -> &[u8] {
    let Some(&next) = name.get(NAME_LENGTH_MAX) else {
        return name;
    };
    let continues = |byte: u8| byte & 0xc0 == 0x80;
    let mut end = NAME_LENGTH_MAX;
    if continues(next) {
        while end > 0 && continues(name[end]) {
            end -= 1;
        }
    }
    &name[..end]
}

/// Appends `verb "name";`.
pub(super) fn push_statement(sql: &mut Vec<u8>, verb: &[u8], channel: &[u8]) {
    sql.extend_from_slice(verb);
    sql.extend_from_slice(b" \"");
    for &byte in channel {
        if byte == b'"' {
            sql.push(b'"');
        }
        sql.push(byte);
    }
    sql.extend_from_slice(b"\";");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        listened(text.as_bytes(), true)
            .iter()
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn names_are_read_as_the_server_reads_them() {
        assert_eq!(names("LISTEN Events"), ["events"]);
        assert_eq!(names("listen \"Mixed Case\";"), ["Mixed Case"]);
        assert_eq!(names("LISTEN \"a \"\"quoted\"\" one\""), ["a \"quoted\" one"]);
        assert_eq!(names("LISTEN \"\"\"\"\"\""), ["\"\""]);
        assert_eq!(
            names("/* c */ LISTEN -- c\n a; SELECT 'LISTEN b'; listen é"),
            ["a", "é"]
        );
        assert_eq!(names("UNLISTEN a; NOTIFY listen; SELECT listen b"), [""; 0]);
        assert_eq!(names("LISTEN a; LISTEN \"b\0c\""), ["a"]);
        assert_eq!(names("LISTEN \"; LISTEN"), [""; 0]);
    }

    #[test]
    fn escapes_are_read_as_the_server_reads_them() {
        assert_eq!(names("LISTEN U&\"\\0061bc\"; LISTEN"), ["abc"]);
        assert_eq!(
            names("LISTEN u&\"\\+0000e9 \"\"\\\\\"; LISTEN b"),
            ["é \"\\", "b"]
        );
        assert_eq!(
            names("LISTEN U&\"!0062\\\" /* c */ UESCAPE '!'; LISTEN U&\"c\""),
            ["b\\", "c"]
        );
        for text in ["\\006", "\\", "\\+00006", "\\00g1", "\\d83d", "\\+110000"] {
            assert_eq!(names(&format!("LISTEN U&\"{text}\"")), [""; 0], "{text}");
        }
        assert_eq!(names("LISTEN U&\"a\" UESCAPE 'ab'; LISTEN b"), ["b"]);
    }

    /// The statement's number, what stands there and what it says.
    fn said(text: &str) -> Vec<(usize, &str, Registration)> {
        let placed = Registration::all_in(text.as_bytes(), true);
        placed
            .into_iter()
            .map(|placed| (placed.number, &text[placed.range], placed.said))
            .collect()
    }

    #[test]
    fn registrations_are_found_among_other_statements() {
        let channel = |name: &str| Channel::from(name.as_bytes());
        let listen = |name| Registration::Listen(channel(name));
        assert_eq!(said("Listen A;"), [(0, "Listen A", listen("a"))]);
        assert_eq!(
            said("/* c */ UNLISTEN \"A b\" ; "),
            [(0, "UNLISTEN \"A b\"", Registration::Unlisten(channel("A b")))]
        );
        assert_eq!(
            said("; SELECT ';LISTEN x', (1);; -- LISTEN y\nlisten /* c */ é ;unlisten *;SELECT 2"),
            [
                (1, "listen /* c */ é", listen("é")),
                (2, "unlisten *", Registration::UnlistenAll)
            ]
        );
        for text in [
            "",
            "LISTEN",
            "LISTEN *",
            "LISTEN a b; SELECT 1",
            "LISTEN U&\"\\0061\"",
            "LISTEN 'a'",
            "NOTIFY a",
            "SELECT listen a",
            "CREATE RULE r AS ON UPDATE TO t DO (NOTIFY a; LISTEN b)",
        ] {
            assert_eq!(said(text), [], "{text}");
        }
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let long = "é".repeat(40);
        assert_eq!(names(&format!("LISTEN \"{long}\"")), ["é".repeat(31)]);
        let long = "x".repeat(100);
        assert_eq!(names(&format!("LISTEN {long}")), ["x".repeat(63)]);
        let fits = format!("x{}", "é".repeat(31));
        assert_eq!(names(&format!("LISTEN {fits}")), [fits]);
    }

    /// A peer built such statements without escaping the name.
    #[test]
    fn a_name_cannot_leave_its_quotes() {
        let mut sql = Vec::new();
        push_statement(&mut sql, b"LISTEN", b"a\"; DROP TABLE t; --");
        assert_eq!(sql, b"LISTEN \"a\"\"; DROP TABLE t; --\";");
        assert_eq!(
            names(std::str::from_utf8(&sql).unwrap()),
            ["a\"; DROP TABLE t; --"]
        );
    }
}
