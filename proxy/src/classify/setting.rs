//! Halyard's own settings in SET, RESET and SHOW, which the session answers itself.

use super::lexer::{Lexer, Token, TokenKind};
use super::statement::unquoted;
use super::word::Word;

/// How long a setting lasts that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingScope {
    /// SET or SET SESSION: until the session ends.
    Session,
    /// SET LOCAL: until the transaction ends.
    Local,
}

/// A statement about one setting of Halyard's: `SET [SESSION | LOCAL] halyard.route = 'replica'`, `RESET
/// halyard.route`, `SHOW halyard.route`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalyardSetting<'a> {
    /// SET to a value, or to `None`, which is `DEFAULT`.
    Set {
        /// How long it lasts.
        scope: SettingScope,
        /// The part of the name behind `halyard.`, as written, without quotes.
        name: &'a [u8],
        /// The value, without quotes.
        value: Option<&'a [u8]>,
    },
    /// RESET.
    Reset {
        /// As in `Set`.
        name: &'a [u8],
    },
    /// SHOW.
    Show {
        /// As in `Set`.
        name: &'a [u8],
    },
}

impl<'a> HalyardSetting<'a> {
    /// The setting that a text of exactly one statement is about. `None` if it is another statement, holds more than
    /// one, or writes the value with escapes: a class with
    /// [`HALYARD_SETTING`](super::SessionEffects::HALYARD_SETTING) says when to ask and, with `None` as the answer,
    /// what to refuse.
    #[must_use]
    pub fn parse(text: &'a [u8], standard_conforming_strings: bool) -> Option<Self> {
        let lexer = Lexer::new(text, standard_conforming_strings);
        let mut tokens = lexer.filter(|token| token.kind != TokenKind::Comment).peekable();
        let is = |token: &Token, word| token.kind == TokenKind::Word && Word::of(token.bytes(text)).0 == word;
        let verb = tokens.next()?;
        let mut scope = SettingScope::Session;
        if is(&verb, Word::Set) {
            if tokens.next_if(|token| is(token, Word::Local)).is_some() {
                scope = SettingScope::Local;
            } else {
                tokens.next_if(|token| is(token, Word::Session));
            }
        }
        let is_name = |token: &Token| matches!(token.kind, TokenKind::Word | TokenKind::QuotedName);
        let prefix = tokens.next().filter(is_name)?;
        if !unquoted(prefix.bytes(text)).eq_ignore_ascii_case(b"halyard") {
            return None;
        }
        tokens.next().filter(|token| token.kind == TokenKind::Dot)?;
        let name = unquoted(tokens.next().filter(is_name)?.bytes(text));
        let setting = if is(&verb, Word::Set) {
            tokens
                .next()
                .filter(|token| is(token, Word::To) || token.bytes(text) == b"=")?;
            let token = tokens.next()?;
            let value = if is(&token, Word::Default) {
                None
            } else {
                Some(value(token, text)?)
            };
            Self::Set { scope, name, value }
        } else if is(&verb, Word::Reset) {
            Self::Reset { name }
        } else if is(&verb, Word::Show) {
            Self::Show { name }
        } else {
            return None;
        };
        tokens
            .all(|token| token.kind == TokenKind::Semicolon)
            .then_some(setting)
    }
}

fn value(token: Token, text: &[u8]) -> Option<&[u8]> {
    let written = token.bytes(text);
    match token.kind {
        TokenKind::Word | TokenKind::Number => Some(written),
        TokenKind::QuotedName => Some(unquoted(written)),
        TokenKind::String => {
            let inner = written.strip_prefix(b"'")?.strip_suffix(b"'")?;
            (!inner.iter().any(|&byte| matches!(byte, b'\'' | b'\\'))).then_some(inner)
        }
        _ => None,
    }
}
