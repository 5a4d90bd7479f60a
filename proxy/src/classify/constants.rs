//! The constants and comments of a text, without the tokens between them.
//!
//! A statement's key is made of what lies between its constants, and is made for each statement that a client sends, so
//! this goes through a text faster than a [`Lexer`] can: it stops only at bytes that may begin a constant, a comment or
//! a quoted name. What it finds are the lexer's own tokens of those kinds, which the tests hold it to for any text.

use super::lexer::{Escapes, Lexer, Token, TokenKind};

#[cfg(test)]
mod tests;

/// Bytes at which something may begin that is found here, or that hides such a beginning.
const STOPS: [bool; 256] = {
    let mut table = [false; 256];
    let stops = b"0123456789'\"$-/.";
    let mut at = 0;
    while at < stops.len() {
        table[stops[at] as usize] = true;
        at += 1;
    }
    table
};

/// An iterator over the constants, parameters and comments of a text, as tokens of the kinds [`TokenKind::String`],
/// [`TokenKind::Number`], [`TokenKind::Parameter`], [`TokenKind::Comment`] and [`TokenKind::Unterminated`].
pub(super) struct Constants<'a> {
    text: &'a [u8],
    lexer: Lexer<'a>,
    /// Where the next look begins.
    at: usize,
    /// No word reaches over this place from before it.
    floor: usize,
}

impl<'a> Constants<'a> {
    /// Those of a text that is read with this setting.
    pub(super) fn new(text: &'a [u8], standard_conforming_strings: bool) -> Self {
        Self {
            text,
            lexer: Lexer::new(text, standard_conforming_strings),
            at: 0,
            floor: 0,
        }
    }

    /// Whether the byte at `at` goes on with a word that began before it.
    #[inline]
    fn is_within_word(&self, at: usize) -> bool {
        at > self.floor && Lexer::continues_word(self.text[at - 1])
    }

    /// The byte that lies so far before `at`, if no word goes on with it.
    #[inline]
    fn lone_letter(&self, at: usize, before: usize) -> Option<u8> {
        let at = at.checked_sub(before).filter(|&at| at >= self.floor)?;
        (!self.is_within_word(at)).then(|| self.text[at].to_ascii_lowercase())
    }

    /// The string whose quote is at `quote`: where it begins, what it is and where it ends.
    fn string(&self, quote: usize) -> (usize, TokenKind, usize) {
        let conforming = self.lexer.standard_conforming_strings();
        let (start, escapes) = match self.lone_letter(quote, 1) {
            Some(b'e') => (quote - 1, Escapes::Backslash),
            Some(b'b' | b'x') => (quote - 1, Escapes::None),
            None if quote >= 2
                && self.text[quote - 1] == b'&'
                && self.lone_letter(quote, 2) == Some(b'u') =>
            {
                if !conforming {
                    // The server refuses the whole text.
                    return (quote - 2, TokenKind::Unexpected, quote + 1);
                }
                (quote - 2, Escapes::Doubling)
            }
            _ if conforming => (quote, Escapes::Doubling),
            _ => (quote, Escapes::Backslash),
        };
        let (kind, end) = self.lexer.string(quote + 1, escapes);
        (start, kind, end)
    }
}

impl Iterator for Constants<'_> {
    type Item = Token;

    #[inline]
    fn next(&mut self) -> Option<Token> {
        loop {
            let rest = &self.text[self.at..];
            let Some(plain) = rest.iter().position(|&byte| STOPS[usize::from(byte)]) else {
                self.at = self.text.len();
                return None;
            };
            let start = self.at + plain;
            let next = self.text.get(start + 1).copied();
            let (start, kind, end) = match self.text[start] {
                b'0'..=b'9' | b'$' if self.is_within_word(start) => {
                    // The rest of the word is no number either.
                    self.at = self.lexer.word_end(start + 1);
                    continue;
                }
                b'0'..=b'9' => (start, TokenKind::Number, self.lexer.number(start)),
                b'.' => match next {
                    Some(b'0'..=b'9') => (start, TokenKind::Number, self.lexer.number(start)),
                    Some(b'.') => (start, TokenKind::Unexpected, start + 2),
                    _ => {
                        self.at = start + 1;
                        continue;
                    }
                },
                b'\'' => self.string(start),
                b'"' => {
                    let (kind, end) = self.lexer.quoted_name(start + 1);
                    (start, kind, end)
                }
                b'$' => {
                    let (kind, end) = self.lexer.dollar(start);
                    (start, kind, end)
                }
                b'-' if next == Some(b'-') => (start, TokenKind::Comment, self.lexer.line_end(start + 2)),
                b'/' if next == Some(b'*') => {
                    let (kind, end) = self.lexer.block_comment(start + 2);
                    (start, kind, end)
                }
                _ => {
                    self.at = start + 1;
                    continue;
                }
            };
            self.at = end;
            self.floor = end;
            match kind {
                TokenKind::Unexpected | TokenKind::QuotedName => {}
                // A name that does not end reaches to the end of the text, like a string.
                kind => return Some(Token { kind, start, end }),
            }
        }
    }
}
