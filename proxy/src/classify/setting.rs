//! Values that a text gives to settings of Halyard's own, so that they can be refused before the server takes them: it
//! keeps any value under a name with a dot in it.

use super::lexer::{Lexer, Token, TokenKind};
use super::statement::unquoted;
use super::word::Word;

/// The prefix of the settings that are Halyard's own, with its dot.
pub(super) const PREFIX: &[u8] = b"halyard.";

/// A value that a statement gives to a setting of Halyard's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnSetting<'a> {
    /// The part of the name behind `halyard.`, as written, without quotes.
    pub name: &'a [u8],
    /// The value, without quotes.
    pub value: &'a [u8],
}

impl<'a> OwnSetting<'a> {
    /// Every value that a text gives by a plain constant, in SET or `set_config`, in order. DEFAULT is none, and what is
    /// computed, escaped or a list is left out: of that the session hears when the server has taken it.
    #[must_use]
    pub fn all(text: &'a [u8], standard_conforming_strings: bool) -> Vec<Self> {
        let lexer = Lexer::new(text, standard_conforming_strings);
        let tokens: Vec<_> = lexer.filter(|token| token.kind != TokenKind::Comment).collect();
        let begins_statement = |at: usize| at == 0 || tokens[at - 1].kind == TokenKind::Semicolon;
        let found = (0..tokens.len()).filter_map(|at| {
            let rest = &tokens[at..];
            if begins_statement(at) && is_word(rest[0], text, Word::Set) {
                set(&rest[1..], text)
            } else {
                set_config(rest, text)
            }
        });
        found.collect()
    }
}

fn is_word(token: Token, text: &[u8], word: Word) -> bool {
    token.kind == TokenKind::Word && Word::of(token.bytes(text)).0 == word
}

/// SET; what is behind the verb.
fn set<'a>(tokens: &[Token], text: &'a [u8]) -> Option<OwnSetting<'a>> {
    let scoped = tokens
        .first()
        .is_some_and(|&token| is_word(token, text, Word::Local) || is_word(token, text, Word::Session));
    let [prefix, dot, name, assignment, value, rest @ ..] = &tokens[usize::from(scoped)..] else {
        return None;
    };
    let is_name = |token: &Token| matches!(token.kind, TokenKind::Word | TokenKind::QuotedName);
    let is_own = is_name(prefix)
        && unquoted(prefix.bytes(text)).eq_ignore_ascii_case(b"halyard")
        && dot.kind == TokenKind::Dot
        && is_name(name)
        && (is_word(*assignment, text, Word::To) || assignment.bytes(text) == b"=");
    let ends = rest
        .first()
        .is_none_or(|token| token.kind == TokenKind::Semicolon);
    if !is_own || !ends || is_word(*value, text, Word::Default) {
        return None;
    }
    let value = match value.kind {
        TokenKind::Word | TokenKind::Number => value.bytes(text),
        TokenKind::QuotedName => unquoted(value.bytes(text)),
        _ => plain_string(*value, text)?,
    };
    Some(OwnSetting {
        name: unquoted(name.bytes(text)),
        value,
    })
}

/// `set_config('halyard.…', '…', …)`.
fn set_config<'a>(tokens: &[Token], text: &'a [u8]) -> Option<OwnSetting<'a>> {
    let [function, open, name, comma, value, end, ..] = tokens else {
        return None;
    };
    let is_call = unquoted(function.bytes(text)).eq_ignore_ascii_case(b"set_config")
        && open.kind == TokenKind::Open
        && comma.kind == TokenKind::Comma
        && end.kind == TokenKind::Comma;
    Some(OwnSetting {
        name: is_call.then(|| own_name(plain_string(*name, text)?))??,
        value: plain_string(*value, text)?,
    })
}

/// What is behind the prefix of a setting's whole name; `None` if it is not Halyard's own.
pub(super) fn own_name(name: &[u8]) -> Option<&[u8]> {
    let (prefix, name) = name.split_at_checked(PREFIX.len())?;
    prefix.eq_ignore_ascii_case(PREFIX).then_some(name)
}

/// What a string constant says that is written without anything to undo.
fn plain_string(token: Token, text: &[u8]) -> Option<&[u8]> {
    let inner = token.bytes(text).strip_prefix(b"'")?.strip_suffix(b"'")?;
    let plain = token.kind == TokenKind::String && !inner.iter().any(|byte| matches!(byte, b'\'' | b'\\'));
    plain.then_some(inner)
}
