//! PostgreSQL's lexical rules, as `src/backend/parser/scan.l` states them (manual, section 4.1).
//!
//! The lexer walks a text once, allocates nothing and hands out tokens as byte ranges. White space is skipped;
//! comments are tokens, because hints stand in them and because statement keys leave them out. It follows the
//! server's rules where they matter for finding the end of a token: a quote read wrongly would turn data into
//! keywords, or keywords into data.
//!
//! The text may be in any encoding in which no character has an ASCII byte after its first (every encoding that a
//! server can use has this property; see [`Encoding`](super::Encoding)). Bytes above 0x7F are letters, as in `scan.l`.
//! Where major versions disagree (numbers with underscores or a `0x` prefix came with 16, vertical tab as white
//! space too), the newer rule is taken: older servers refuse such text or read the same keywords from it.

#[cfg(test)]
mod tests;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// An unquoted identifier or a keyword.
    Word,
    /// `"…"`, doubled quotes not yet undone.
    QuotedName,
    /// `U&"…"`: an identifier written with escapes.
    EscapedName,
    /// A string constant of any form: `'…'`, `E'…'`, `B'…'`, `X'…'`, `U&'…'`, `$tag$…$tag$`, with its continuations.
    String,
    /// A numeric constant, without sign.
    Number,
    /// `$1`.
    Parameter,
    /// `-- …` or `/* … */`.
    Comment,
    /// An operator, among them `*`, `=`, `=>`.
    Operator,
    /// `::`.
    Cast,
    /// `:` or `:=`.
    Colon,
    /// `,`.
    Comma,
    /// `.`.
    Dot,
    /// `(`.
    Open,
    /// `)`.
    Close,
    /// `[`.
    OpenBracket,
    /// `]`.
    CloseBracket,
    /// `;`.
    Semicolon,
    /// A byte that begins no token; the server answers with a syntax error.
    Unexpected,
    /// A string, name or comment that does not end; it reaches to the end of the text.
    Unterminated,
}

/// A token: its kind and its bytes `start..end` in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Offset of its first byte.
    pub start: usize,
    /// Offset behind its last byte; always greater than `start`.
    pub end: usize,
}

impl Token {
    /// The token's bytes. `text` must be the text that the token was read from.
    #[must_use]
    pub fn bytes<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        &text[self.start..self.end]
    }
}

/// An iterator over the tokens of a text.
#[derive(Clone, Debug)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    /// While `at` is below this, every byte is a `+` or `-` that is an operator of its own. Remembering it keeps a
    /// long run of signs linear: `scan.l` cuts one sign off such a run and reads the rest again.
    signs_until: usize,
    standard_conforming_strings: bool,
}

/// What a byte can begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    Space,
    Letter,
    Digit,
    Quote,
    DoubleQuote,
    Dollar,
    Operator,
    Minus,
    Slash,
    Colon,
    Dot,
    One(TokenKind),
}

const BEGINS: [Begins; 256] = begins();
const CONTINUES_WORD: [bool; 256] = continues_word();

const fn begins() -> [Begins; 256] {
    let mut table = [Begins::One(TokenKind::Unexpected); 256];
    let mut byte = 0u8;
    loop {
        table[byte as usize] = match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C => Begins::Space,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xFF => Begins::Letter,
            b'0'..=b'9' => Begins::Digit,
            b'\'' => Begins::Quote,
            b'"' => Begins::DoubleQuote,
            b'$' => Begins::Dollar,
            b'-' => Begins::Minus,
            b'/' => Begins::Slash,
            b':' => Begins::Colon,
            b'.' => Begins::Dot,
            b',' => Begins::One(TokenKind::Comma),
            b'(' => Begins::One(TokenKind::Open),
            b')' => Begins::One(TokenKind::Close),
            b'[' => Begins::One(TokenKind::OpenBracket),
            b']' => Begins::One(TokenKind::CloseBracket),
            b';' => Begins::One(TokenKind::Semicolon),
            _ if is_operator(byte) => Begins::Operator,
            _ => Begins::One(TokenKind::Unexpected),
        };
        if byte == u8::MAX {
            return table;
        }
        byte += 1;
    }
}

const fn continues_word() -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0u8;
    loop {
        table[byte as usize] =
            matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'$' | 0x80..=0xFF);
        if byte == u8::MAX {
            return table;
        }
        byte += 1;
    }
}

const fn is_operator(byte: u8) -> bool {
    matches!(
        byte,
        b'~' | b'!'
            | b'@'
            | b'#'
            | b'^'
            | b'&'
            | b'|'
            | b'`'
            | b'?'
            | b'+'
            | b'-'
            | b'*'
            | b'/'
            | b'%'
            | b'<'
            | b'>'
            | b'='
    )
}

/// Characters that let an operator of several characters end in `+` or `-` (manual, section 4.1.3).
const fn keeps_trailing_sign(byte: u8) -> bool {
    matches!(
        byte,
        b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'%'
    )
}

pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

impl<'a> Lexer<'a> {
    /// A lexer at the beginning of `text`. `standard_conforming_strings` is the session's setting: when it is off,
    /// a backslash in `'…'` is an escape.
    #[must_use]
    pub fn new(text: &'a [u8], standard_conforming_strings: bool) -> Self {
        Self {
            text,
            at: 0,
            signs_until: 0,
            standard_conforming_strings,
        }
    }

    /// Whether a byte goes on with a word.
    #[inline]
    pub(super) fn continues_word(byte: u8) -> bool {
        CONTINUES_WORD[usize::from(byte)]
    }

    /// The session's setting.
    #[inline]
    pub(super) fn standard_conforming_strings(&self) -> bool {
        self.standard_conforming_strings
    }

    #[inline]
    fn byte(&self, at: usize) -> Option<u8> {
        self.text.get(at).copied()
    }

    #[inline]
    pub(super) fn word_end(&self, mut at: usize) -> usize {
        while at < self.text.len() && CONTINUES_WORD[self.text[at] as usize] {
            at += 1;
        }
        at
    }

    fn digits_end(&self, mut at: usize, is_digit: fn(u8) -> bool) -> usize {
        loop {
            let digit = at + usize::from(self.byte(at) == Some(b'_'));
            match self.byte(digit) {
                Some(byte) if is_digit(byte) => at = digit + 1,
                _ => return at,
            }
        }
    }

    /// A word, or the constant that a single letter before a quote introduces.
    #[inline]
    fn word(&self, start: usize) -> (TokenKind, usize) {
        let end = self.word_end(start + 1);
        if end == start + 1
            && let Some(b'\'' | b'&') = self.byte(end)
        {
            return self.prefixed(start);
        }
        (TokenKind::Word, end)
    }

    fn prefixed(&self, start: usize) -> (TokenKind, usize) {
        match (self.text[start], self.byte(start + 1), self.byte(start + 2)) {
            (b'e' | b'E', Some(b'\''), _) => self.string(start + 2, Escapes::Backslash),
            (b'b' | b'B' | b'x' | b'X', Some(b'\''), _) => self.string(start + 2, Escapes::None),
            (b'u' | b'U', Some(b'&'), Some(b'"')) => match self.quoted_name(start + 3) {
                (TokenKind::QuotedName, end) => (TokenKind::EscapedName, end),
                unterminated => unterminated,
            },
            (b'u' | b'U', Some(b'&'), Some(b'\'')) if self.standard_conforming_strings => {
                self.string(start + 3, Escapes::Doubling)
            }
            // The server refuses the whole text: such a string means nothing without standard conforming strings.
            (b'u' | b'U', Some(b'&'), Some(b'\'')) => (TokenKind::Unexpected, start + 3),
            // `n'…'` among them, which scan.l reads as the keyword NCHAR before an ordinary string.
            _ => (TokenKind::Word, start + 1),
        }
    }

    /// The string whose opening quote ends at `at`, and its continuations on later lines.
    pub(super) fn string(&self, mut at: usize, escapes: Escapes) -> (TokenKind, usize) {
        loop {
            let rest = &self.text[at.min(self.text.len())..];
            let Some(plain) = memchr::memchr2(b'\'', b'\\', rest) else {
                return (TokenKind::Unterminated, self.text.len());
            };
            at += plain;
            if self.text[at] == b'\\' {
                at += if escapes == Escapes::Backslash { 2 } else { 1 };
            } else if escapes != Escapes::None && self.byte(at + 1) == Some(b'\'') {
                at += 2;
            } else if let Some(next) = self.continuation(at + 1) {
                at = next;
            } else {
                return (TokenKind::String, at + 1);
            }
        }
    }

    /// Where the next part of a string begins if, after white space with a line break in it, a quote goes on with it.
    /// Line comments count as white space here (`quotecontinue` in scan.l), block comments do not.
    fn continuation(&self, mut at: usize) -> Option<usize> {
        let mut broken = false;
        loop {
            note_work(1);
            match self.byte(at)? {
                b'\n' | b'\r' => {
                    broken = true;
                    at += 1;
                }
                byte if is_space(byte) => at += 1,
                b'-' if self.byte(at + 1) == Some(b'-') => at = self.line_end(at + 2),
                b'\'' if broken => return Some(at + 1),
                _ => return None,
            }
        }
    }

    /// The quoted name whose opening quote ends at `at`.
    pub(super) fn quoted_name(&self, mut at: usize) -> (TokenKind, usize) {
        loop {
            let Some(plain) = memchr::memchr(b'"', &self.text[at..]) else {
                return (TokenKind::Unterminated, self.text.len());
            };
            at += plain + 1;
            if self.byte(at) != Some(b'"') {
                return (TokenKind::QuotedName, at);
            }
            at += 1;
        }
    }

    /// `$1`, a dollar-quoted string, or a lone `$`.
    pub(super) fn dollar(&self, start: usize) -> (TokenKind, usize) {
        let mut at = start + 1;
        match self.byte(at) {
            Some(b'0'..=b'9') => {
                while let Some(b'0'..=b'9') = self.byte(at) {
                    at += 1;
                }
                return (TokenKind::Parameter, at);
            }
            Some(byte) if BEGINS[byte as usize] == Begins::Letter => {
                while self
                    .byte(at)
                    .is_some_and(|byte| byte != b'$' && CONTINUES_WORD[byte as usize])
                {
                    at += 1;
                }
            }
            _ => {}
        }
        note_work(at - start);
        if self.byte(at) != Some(b'$') {
            return (TokenKind::Unexpected, start + 1);
        }
        let tag = &self.text[start..=at];
        at += 1;
        // A tag has dollars at its ends alone, so looking at each dollar in turn finds what scan.l finds, in linear time.
        loop {
            match memchr::memchr(b'$', &self.text[at..]) {
                None => return (TokenKind::Unterminated, self.text.len()),
                Some(plain) if self.text[at + plain..].starts_with(tag) => {
                    return (TokenKind::String, at + plain + tag.len());
                }
                Some(plain) => at += plain + 1,
            }
        }
    }

    #[inline]
    pub(super) fn number(&self, start: usize) -> usize {
        // Nearly every number is decimal digits and nothing else.
        let mut end = start;
        while let Some(b'0'..=b'9') = self.byte(end) {
            end += 1;
        }
        match self.byte(end) {
            Some(b'_' | b'.' | b'a'..=b'z' | b'A'..=b'Z') => self.long_number(start),
            _ => end,
        }
    }

    fn long_number(&self, start: usize) -> usize {
        if self.text[start] == b'0' {
            let is_digit: Option<fn(u8) -> bool> = match self.byte(start + 1) {
                Some(b'x' | b'X') => Some(|byte| byte.is_ascii_hexdigit()),
                Some(b'o' | b'O') => Some(|byte| matches!(byte, b'0'..=b'7')),
                Some(b'b' | b'B') => Some(|byte| matches!(byte, b'0' | b'1')),
                _ => None,
            };
            if let Some(is_digit) = is_digit {
                let end = self.digits_end(start + 2, is_digit);
                if end > start + 2 {
                    return end;
                }
            }
        }
        let is_digit = |byte: u8| byte.is_ascii_digit();
        let mut at = self.digits_end(start, is_digit);
        if self.byte(at) == Some(b'.') && self.byte(at + 1) != Some(b'.') {
            at += 1;
            if self.byte(at).is_some_and(is_digit) {
                at = self.digits_end(at, is_digit);
            }
        }
        if let Some(b'e' | b'E') = self.byte(at) {
            let digits = at + 1 + usize::from(matches!(self.byte(at + 1), Some(b'+' | b'-')));
            if self.byte(digits).is_some_and(is_digit) {
                at = self.digits_end(digits, is_digit);
            }
        }
        at
    }

    pub(super) fn line_end(&self, at: usize) -> usize {
        let rest = &self.text[at..];
        at + memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len())
    }

    /// The block comment, with those nested in it, whose opening ends at `at`.
    pub(super) fn block_comment(&self, mut at: usize) -> (TokenKind, usize) {
        let mut open = 1usize;
        while let Some(found) = memchr::memchr2(b'*', b'/', &self.text[at..]) {
            at += found;
            match (self.text[at], self.byte(at + 1)) {
                (b'/', Some(b'*')) => {
                    open += 1;
                    at += 2;
                }
                (b'*', Some(b'/')) => {
                    open -= 1;
                    at += 2;
                    if open == 0 {
                        return (TokenKind::Comment, at);
                    }
                }
                _ => at += 1,
            }
        }
        (TokenKind::Unterminated, self.text.len())
    }

    /// An operator: the longest run of operator characters, cut before a comment, and without trailing signs unless
    /// one of the characters allows them.
    fn operator(&mut self, start: usize) -> usize {
        if start < self.signs_until {
            return start + 1;
        }
        let mut end = start + 1;
        let mut keeps_sign = keeps_trailing_sign(self.text[start]);
        while let Some(byte) = self.byte(end).filter(|&byte| is_operator(byte)) {
            if matches!(
                (byte, self.byte(end + 1)),
                (b'-', Some(b'-')) | (b'/', Some(b'*'))
            ) {
                break;
            }
            keeps_sign |= keeps_trailing_sign(byte);
            end += 1;
            note_work(1);
        }
        if !keeps_sign {
            let run = end;
            while end > start + 1 && matches!(self.text[end - 1], b'+' | b'-') {
                end -= 1;
            }
            self.signs_until = run;
        }
        end
    }
}

/// Counts bytes looked at, for the test that their number is linear in the text's length.
#[inline(always)]
fn note_work(_bytes: usize) {
    #[cfg(test)]
    tests::WORK.with(|work| work.set(work.get() + _bytes));
}

/// What a string knows besides its closing quote.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Escapes {
    /// Nothing: `B'…'` and `X'…'`.
    None,
    /// A doubled quote is a quote.
    Doubling,
    /// So it is, and a backslash takes the next byte with it.
    Backslash,
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    // In the loops that walk over a text, a call for each token costs as much as the token.
    #[inline(always)]
    fn next(&mut self) -> Option<Token> {
        let mut start = self.at;
        let (kind, end) = loop {
            let Some(&byte) = self.text.get(start) else {
                self.at = start;
                return None;
            };
            match BEGINS[byte as usize] {
                Begins::Space => start += 1,
                Begins::Letter => break self.word(start),
                Begins::One(kind) => break (kind, start + 1),
                Begins::Digit => break (TokenKind::Number, self.number(start)),
                Begins::Dot => match self.byte(start + 1) {
                    Some(b'0'..=b'9') => break (TokenKind::Number, self.number(start)),
                    Some(b'.') => break (TokenKind::Unexpected, start + 2),
                    _ => break (TokenKind::Dot, start + 1),
                },
                Begins::DoubleQuote => break self.quoted_name(start + 1),
                Begins::Quote if self.standard_conforming_strings => {
                    break self.string(start + 1, Escapes::Doubling);
                }
                Begins::Quote => break self.string(start + 1, Escapes::Backslash),
                Begins::Dollar => break self.dollar(start),
                Begins::Minus if self.byte(start + 1) == Some(b'-') => {
                    break (TokenKind::Comment, self.line_end(start + 2));
                }
                Begins::Slash if self.byte(start + 1) == Some(b'*') => break self.block_comment(start + 2),
                Begins::Minus | Begins::Slash | Begins::Operator => {
                    break (TokenKind::Operator, self.operator(start));
                }
                Begins::Colon => match self.byte(start + 1) {
                    Some(b':') => break (TokenKind::Cast, start + 2),
                    Some(b'=') => break (TokenKind::Colon, start + 2),
                    _ => break (TokenKind::Colon, start + 1),
                },
            }
        };
        note_work(end - self.at);
        self.at = end;
        Some(Token { kind, start, end })
    }
}
