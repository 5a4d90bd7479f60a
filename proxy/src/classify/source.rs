//! What the source of a function leaves in the session that runs it.
//!
//! Functions in SQL and PL/pgSQL are read once, with the catalogue. The lexer is the server's own, so what stands in a
//! string or a comment is neither a statement nor a call. Only what a function *says* is found: where it runs text that
//! it makes up (`EXECUTE`), nobody can tell. What it calls and which relations it names is told by name, so that whatever
//! those leave counts for it as well; see [`Builder`](super::catalog).

use std::collections::HashSet;

use super::builtins::{self, Special};
use super::lexer::{Lexer, Token, TokenKind};
use super::name::plain_string;
use super::statement::{changes_constants, unquoted};

/// What a function's own text leaves behind when it has run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leaves {
    /// Nothing.
    #[default]
    Nothing,
    /// Nobody can tell: it runs text that it makes up.
    Unknown,
    /// A setting, a lock, a temporary object, a channel or something else of a session's; or, until the transaction ends, a
    /// setting that says how constants are read.
    State,
}

/// A function's text, read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Source<'a> {
    pub(super) leaves: Leaves,
    /// Names in it, as written: functions, relations and whatever else bears one.
    pub(super) names: HashSet<&'a [u8]>,
}

/// Statements after which something is left, or may be, whatever follows their first word.
const LEAVING: &[(&[u8], Leaves)] = &[
    // A search path with the temporary schema in it makes temporary objects of what does not look it.
    (b"create", Leaves::State),
    (b"reset", Leaves::State),
    (b"listen", Leaves::State),
    (b"unlisten", Leaves::State),
    (b"prepare", Leaves::State),
    (b"deallocate", Leaves::State),
    (b"discard", Leaves::State),
    (b"load", Leaves::State),
    (b"do", Leaves::Unknown),
];

/// Words behind which a statement begins.
const BEFORE_STATEMENT: &[&[u8]] = &[b"begin", b"then", b"else", b"loop", b"atomic"];

impl<'a> Source<'a> {
    /// Reads a text in SQL or PL/pgSQL.
    pub(super) fn of(text: &'a [u8]) -> Self {
        let mut source = Self::default();
        let mut tokens = Lexer::new(text, true).filter(|token| token.kind != TokenKind::Comment);
        let mut previous: Option<Token> = None;
        while let Some(token) = tokens.next() {
            let written = token.bytes(text);
            match token.kind {
                TokenKind::Word | TokenKind::QuotedName => {
                    let next = tokens.clone().next();
                    let word = Place {
                        text,
                        previous,
                        written,
                        next,
                    };
                    source.see(word, &tokens);
                }
                // Written with escapes that are not undone here, or not readable at all.
                TokenKind::EscapedName | TokenKind::Unexpected | TokenKind::Unterminated => {
                    source.leave(Leaves::Unknown);
                }
                _ => {}
            }
            previous = Some(token);
        }
        source
    }

    fn leave(&mut self, leaves: Leaves) {
        self.leaves = self.leaves.max(leaves);
    }

    /// `behind`: the tokens behind the word.
    fn see(&mut self, word: Place<'a>, behind: &(impl Iterator<Item = Token> + Clone)) {
        self.names.insert(word.written);
        if word.begins_with(b"pg_temp") {
            return self.leave(Leaves::State);
        }
        if word.next_is(TokenKind::Open) {
            self.leave(word.called(behind.clone()));
        }
        if word.previous_is(TokenKind::Dot) || word.written.starts_with(b"\"") {
            return;
        }
        let leaves = if word.is(b"execute") {
            // Of a statement, RETURN QUERY, FOR … IN or OPEN … FOR.
            Leaves::Unknown
        } else if word.is(b"temp") || word.is(b"temporary") {
            let makes = [&b"create"[..], b"replace", b"local", b"global", b"into"];
            word.state_if(makes.iter().any(|before| word.follows(before)))
        } else if word.is(b"hold") {
            word.state_if(word.follows(b"with"))
        } else if word.is(b"pg_settings") {
            // An UPDATE of it sets what its rows say (manual, section 54.24).
            word.state_if(word.follows(b"update") || word.previous_is(TokenKind::Dot))
        } else if word.is(b"set") {
            let ends_with_transaction = [&b"local"[..], b"transaction", b"constraints"];
            let local = ends_with_transaction.iter().any(|next| word.precedes(next));
            // Behind LOCAL.
            let setting = || {
                behind
                    .clone()
                    .nth(1)
                    .map(|token| unquoted(token.bytes(word.text)))
            };
            let names = word.precedes(b"local") && setting().is_none_or(changes_constants);
            word.state_if(word.begins_statement() && (!local || names))
        } else if word.begins_statement() {
            let known = LEAVING.iter().find(|(first, _)| word.is(first));
            known.map_or(Leaves::Nothing, |(_, leaves)| *leaves)
        } else {
            Leaves::Nothing
        };
        self.leave(leaves);
    }
}

/// A word of a text, and what stands around it.
#[derive(Clone, Copy)]
struct Place<'a> {
    text: &'a [u8],
    previous: Option<Token>,
    written: &'a [u8],
    next: Option<Token>,
}

impl Place<'_> {
    fn is(&self, word: &[u8]) -> bool {
        self.written.eq_ignore_ascii_case(word)
    }

    fn begins_with(&self, beginning: &[u8]) -> bool {
        let name = self.written.strip_prefix(b"\"").unwrap_or(self.written);
        name.get(..beginning.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(beginning))
    }

    fn state_if(&self, leaves: bool) -> Leaves {
        if leaves { Leaves::State } else { Leaves::Nothing }
    }

    fn previous_is(&self, kind: TokenKind) -> bool {
        self.previous.is_some_and(|previous| previous.kind == kind)
    }

    fn next_is(&self, kind: TokenKind) -> bool {
        self.next.is_some_and(|next| next.kind == kind)
    }

    fn follows(&self, word: &[u8]) -> bool {
        self.previous
            .is_some_and(|previous| previous.bytes(self.text).eq_ignore_ascii_case(word))
    }

    fn precedes(&self, word: &[u8]) -> bool {
        self.next
            .is_some_and(|next| next.bytes(self.text).eq_ignore_ascii_case(word))
    }

    /// Whether a statement begins here; a label of PL/pgSQL ends with `>>`.
    fn begins_statement(&self) -> bool {
        let Some(previous) = self.previous else {
            return true;
        };
        let before = previous.bytes(self.text);
        match previous.kind {
            TokenKind::Semicolon => true,
            TokenKind::Operator => before.ends_with(b">>"),
            TokenKind::Word => BEFORE_STATEMENT
                .iter()
                .any(|word| before.eq_ignore_ascii_case(word)),
            _ => false,
        }
    }

    /// What a call of a function of PostgreSQL's own leaves.
    fn called(&self, behind: impl Iterator<Item = Token> + Clone) -> Leaves {
        let name = self.written.strip_prefix(b"\"").unwrap_or(self.written);
        let name = name.strip_suffix(b"\"").unwrap_or(name);
        let special = builtins::SPECIAL
            .iter()
            .find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name));
        match special.map(|(_, special)| *special) {
            Some(Special::SetConfig) => {
                let mut arguments = behind.clone().skip(1);
                let argument = arguments
                    .next()
                    .filter(|token| token.kind == TokenKind::String)
                    .filter(|_| {
                        arguments
                            .next()
                            .is_some_and(|token| token.kind == TokenKind::Comma)
                    });
                let setting = argument.and_then(|token| plain_string(token.bytes(self.text)));
                self.state_if(setting.is_none_or(changes_constants) || !says_true_last(self.text, behind))
            }
            Some(Special::AdvisoryLock | Special::AdvisoryUnlock | Special::SessionState) => Leaves::State,
            Some(Special::RunsText) => Leaves::Unknown,
            _ => Leaves::Nothing,
        }
    }
}

/// Whether the list of arguments that opens with the first of these tokens ends with `, true`.
fn says_true_last(text: &[u8], tokens: impl Iterator<Item = Token>) -> bool {
    let mut depth = 0_usize;
    let mut last: [Option<Token>; 2] = [None; 2];
    for token in tokens {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            let [comma, word] = last;
            return comma.is_some_and(|comma| comma.kind == TokenKind::Comma)
                && word.is_some_and(|word| word.bytes(text).eq_ignore_ascii_case(b"true"));
        }
        last = [last[1], Some(token)];
    }
    false
}

#[cfg(test)]
mod tests;
