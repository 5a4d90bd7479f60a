//! Where a request leads, as its words tell, before the server has said so: into a transaction block, or out of it.

use super::Relay;
use crate::classify::{Lexer, TokenKind};
use crate::wire::{HEADER_SIZE, Header, bind_names, frontend, parse_parts};

/// Words at the beginning of a statement that tell what it does to a block.
const WORDS: usize = 4;

/// What statements do to the transaction block that they are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Whether a block was open before them.
    pub(super) began_open: bool,
    /// Whether a block is open behind them.
    pub(super) open: bool,
    /// Whether one of them may commit: COMMIT, or anything that stands alone behind the end of the block.
    pub(super) commits: bool,
    /// Whether one of them rolls a block back.
    pub(super) rolls_back: bool,
    /// Whether that stands behind something else, and is skipped where that fails.
    pub(super) may_skip_end: bool,
    /// Whether there was any statement.
    any: bool,
    /// Whether a portal is bound and not run that ends the block.
    pub(super) binds_end: bool,
}

impl Ahead {
    /// Nothing yet, in a block or outside of one.
    pub(super) fn from(open: bool) -> Self {
        Self {
            began_open: open,
            open,
            ..Self::default()
        }
    }

    /// As far as a text's words tell. The body of a function `BEGIN ATOMIC` is read as statements of their own. Of a text that is
    /// `one` statement the beginning tells.
    fn run(&mut self, text: &[u8], one: bool, standard_conforming_strings: bool) {
        let tokens =
            Lexer::new(text, standard_conforming_strings).filter(|token| token.kind != TokenKind::Comment);
        const NONE: [&[u8]; WORDS] = [b""; WORDS];
        let mut words = NONE;
        let mut count = 0;
        for token in tokens {
            if token.kind == TokenKind::Semicolon {
                self.statement(words);
                (words, count) = (NONE, 0);
            } else if count < WORDS {
                words[count] = token.bytes(text);
                count += 1;
                if one && count == WORDS {
                    break;
                }
            }
        }
        self.statement(words);
    }

    /// By the first words of one statement.
    fn statement(&mut self, words: [&[u8]; WORDS]) {
        let is = |word: &[u8], known: &str| word.eq_ignore_ascii_case(known.as_bytes());
        let names = |known: &str| words[1..].iter().any(|word| is(word, known));
        let [first, second, ..] = words;
        if first.is_empty() {
            return;
        }
        let behind_others = std::mem::replace(&mut self.any, true);
        let chains = names("chain") && !names("no");
        if is(first, "begin") || is(first, "start") {
            self.open = true;
        } else if is(first, "commit") || is(first, "end") {
            self.commits = true;
            self.open &= is(second, "prepared") || chains;
        } else if is(first, "rollback") || is(first, "abort") {
            if is(second, "prepared") || names("to") {
                return;
            }
            self.may_skip_end |= behind_others && !self.rolls_back;
            self.rolls_back = true;
            self.open &= chains;
        } else if is(first, "prepare") && is(second, "transaction") {
            self.commits = true;
            self.open = false;
        } else {
            self.commits |= self.began_open && !self.open;
        }
    }

    /// A portal is left that was bound and not run.
    fn leave(&mut self, bound: Option<Bound<'_>>, standard_conforming_strings: bool) {
        self.binds_end |= match bound {
            Some(Bound::Text(text)) => Self::ends(text, standard_conforming_strings),
            Some(Bound::Unknown) => true,
            None => false,
        };
    }

    fn ends(text: &[u8], standard_conforming_strings: bool) -> bool {
        let mut ahead = Self::from(true);
        ahead.run(text, true, standard_conforming_strings);
        ahead.commits || ahead.rolls_back
    }
}

/// What the portal that was bound last would run.
#[derive(Clone, Copy)]
enum Bound<'a> {
    Text(&'a [u8]),
    /// Nobody knows.
    Unknown,
}

/// The texts that a request has prepared so far, by their names. The first is kept apart: most requests have no other.
#[derive(Default)]
struct Parsed<'a> {
    first: Option<(&'a [u8], &'a [u8])>,
    others: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Parsed<'a> {
    fn add(&mut self, name: &'a [u8], text: &'a [u8]) {
        match &mut self.first {
            None => self.first = Some((name, text)),
            Some(first) if first.0 == name => first.1 = text,
            Some(_) => self.others.push((name, text)),
        }
    }

    fn text(&self, name: &[u8]) -> Option<&'a [u8]> {
        let others = self.others.iter().rev().chain(&self.first);
        others
            .copied()
            .find(|(known, _)| *known == name)
            .map(|(_, text)| text)
    }
}

impl Relay<'_> {
    /// What a request does to the block that it is in, if it is in one: `open`.
    pub(super) fn ahead_of(&self, bytes: &[u8], open: bool) -> Ahead {
        let strings = self.reading.standard_conforming_strings;
        let mut ahead = Ahead::from(open);
        // What stands before it in the same batch may fail.
        ahead.any = self.link.backend.ledger.batch_open();
        let mut parsed = Parsed::default();
        let mut bound: Option<Bound<'_>> = None;
        let mut at = 0;
        while let Some(Ok(Some(header))) = bytes.get(at..).map(Header::parse) {
            let Some(body) = bytes.get(at + HEADER_SIZE..at + header.total()) else {
                break;
            };
            match header.kind {
                frontend::QUERY => ahead.run(body.strip_suffix(&[0]).unwrap_or(body), false, strings),
                frontend::PARSE => {
                    if let Some(parts) = parse_parts(body) {
                        parsed.add(&body[parts.name], &body[parts.text]);
                    }
                }
                frontend::BIND => {
                    ahead.leave(bound, strings);
                    bound = Some(match self.text_bound(body, &parsed) {
                        Some(text) => Bound::Text(text),
                        None => Bound::Unknown,
                    });
                }
                frontend::EXECUTE => match bound.take() {
                    Some(Bound::Text(text)) => ahead.run(text, true, strings),
                    // A portal of before, or of a statement that nobody has seen.
                    Some(Bound::Unknown) => ahead.commits = true,
                    None => ahead.statement([b"?", b"", b"", b""]),
                },
                _ => {}
            }
            at += header.total();
        }
        ahead.leave(bound, strings);
        ahead
    }

    /// The text of the statement that a Bind names: that of a Parse before it in the same request, or one that the client has.
    fn text_bound<'b>(&'b self, body: &[u8], parsed: &Parsed<'b>) -> Option<&'b [u8]> {
        let name = &body[bind_names(body)?.statement];
        parsed.text(name).or_else(|| Some(self.bound(body)??.text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead(text: &str, open: bool) -> (bool, bool, bool) {
        let mut ahead = Ahead::from(open);
        ahead.run(text.as_bytes(), false, true);
        (ahead.open, ahead.commits, ahead.rolls_back)
    }

    #[test]
    fn the_words_tell_whether_a_block_is_open_behind_a_text() {
        for (text, open, expected) in [
            ("BEGIN", false, (true, false, false)),
            ("start transaction read only", false, (true, false, false)),
            ("COMMIT", true, (false, true, false)),
            ("end work;", true, (false, true, false)),
            ("COMMIT AND CHAIN", true, (true, true, false)),
            ("COMMIT WORK AND CHAIN", true, (true, true, false)),
            ("COMMIT AND NO CHAIN", true, (false, true, false)),
            ("COMMIT; /* c */ BEGIN", true, (true, true, false)),
            ("COMMIT PREPARED 'begin'", true, (true, true, false)),
            ("rollback", true, (false, false, true)),
            ("ABORT AND CHAIN", true, (true, false, true)),
            ("ROLLBACK TO SAVEPOINT a", true, (true, false, false)),
            ("ROLLBACK WORK TO a", true, (true, false, false)),
            ("ROLLBACK PREPARED 'x'", true, (true, false, false)),
            ("PREPARE TRANSACTION 'x'", true, (false, true, false)),
            ("PREPARE transactions AS SELECT 1", true, (true, false, false)),
            (
                "SAVEPOINT a; INSERT INTO t VALUES (1)",
                true,
                (true, false, false),
            ),
            ("SELECT 'COMMIT;'; SELECT 1", true, (true, false, false)),
            (
                "INSERT INTO t VALUES (1); COMMIT; SELECT 1",
                true,
                (false, true, false),
            ),
            ("ROLLBACK; INSERT INTO t VALUES (1)", true, (false, true, true)),
            (
                "ROLLBACK; BEGIN; INSERT INTO t VALUES (1)",
                true,
                (true, false, true),
            ),
            ("", true, (true, false, false)),
            ("", false, (false, false, false)),
        ] {
            assert_eq!(ahead(text, open), expected, "{text}");
        }
    }
}
