//! Halyard's lexer against PostgreSQL's own: the same tokens at the same bytes, up to where the server refuses.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use halyard::classify::{Lexer, TokenKind};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestError, TestRunner};

/// Texts made of pieces by chance, in an ordinary run.
const CASES: u32 = 3_000;

/// Pieces at which scanners go wrong. Vertical tab is not among them: it is white space from version 16 on.
const PIECES: &[&str] = &[
    "'", "''", "\"", "\"\"", "\\", "\\'", "E'", "e'", "B'", "x'", "X'1f'", "N'", "U&'", "U&\"", "u&'", "$",
    "$$", "$a$", "$1", "$é$", "--", "/*", "*/", "/", "*", "+", "-", "+-", "@-", "<", "=", "<>", "!=", "=>",
    "<=", "::", ":", ":=", "..", ".", "1", "1.", ".5", "1e", "1e5", "1.5e-3", "0x1", "1_000", "a", "select",
    "é", "_", " ", "\n", "\t", "\r", "(", ")", "[", "]", ",", ";", "#", "~", "?", "|", "&", "^", "%", "!",
    "`", "{", "}", "'\n'", "' --x\n'", "UESCAPE", "nchar", "\u{c}",
];

/// PostgreSQL's scanner, running.
pub(crate) struct Scanner {
    process: Child,
    texts: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What a scanner says of a text: where tokens begin and end, and whether it refuses what follows.
#[derive(Debug, PartialEq, Eq)]
struct Tokens {
    spans: Vec<(usize, usize)>,
    refused: bool,
}

impl Scanner {
    /// The program that `tests/regress/inputs.sh` has built.
    pub(crate) fn start(program: &Path) -> Self {
        let mut process = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            texts: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        }
    }

    fn tokens(&mut self, text: &[u8], standard_conforming_strings: bool) -> Tokens {
        let setting = if standard_conforming_strings { "on" } else { "off" };
        writeln!(self.texts, "{setting} {}", text.len()).unwrap();
        self.texts.write_all(text).unwrap();
        self.texts.flush().unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let refused = line.trim_end().ends_with("refused");
        let spans = line.split_whitespace().filter_map(|span| {
            let (start, end) = span.split_once(':')?;
            Some((start.parse().ok()?, end.parse().ok()?))
        });
        Tokens {
            spans: spans.collect(),
            refused,
        }
    }

    /// Where the lexers part, if they do. What follows a refusal is compared from the next line on.
    fn difference(&mut self, text: &[u8], standard_conforming_strings: bool) -> Option<String> {
        let mut from = 0;
        loop {
            let rest = &text[from..];
            let theirs = self.tokens(rest, standard_conforming_strings);
            let ours = Lexer::new(rest, standard_conforming_strings)
                .filter(|token| token.kind != TokenKind::Comment)
                .map(|token| (token.start, token.end));
            // Of a refused token the server does not say where it ends; it need not be a token for us.
            let ours: Vec<_> = if theirs.refused {
                ours.take(theirs.spans.len()).collect()
            } else {
                ours.collect()
            };
            if ours != theirs.spans {
                let at = ours
                    .iter()
                    .zip(&theirs.spans)
                    .take_while(|(one, two)| one == two)
                    .count();
                let begin = theirs.spans[..at].last().map_or(0, |span| span.0);
                let shown = &rest[begin..rest.len().min(begin + 80)];
                return Some(format!(
                    "ours {:?}, theirs {:?}, in {:?}",
                    ours.get(at),
                    theirs.spans.get(at),
                    String::from_utf8_lossy(shown)
                ));
            }
            if !theirs.refused {
                return None;
            }
            let behind = theirs.spans.last().map_or(0, |span| span.1);
            from += behind + rest[behind..].iter().position(|&byte| byte == b'\n')? + 1;
        }
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Compares both on whole files, and on texts made up by chance.
pub(crate) fn compare(program: &Path, files: &[std::path::PathBuf]) {
    let mut scanner = Scanner::start(program);
    let mut bytes = 0;
    for file in files {
        let text = std::fs::read(file).unwrap();
        bytes += text.len();
        for setting in [true, false] {
            if let Some(difference) = scanner.difference(&text, setting) {
                panic!(
                    "{} (standard_conforming_strings {setting}): {difference}",
                    file.display()
                );
            }
        }
    }
    eprintln!(
        "oracle: the same tokens as PostgreSQL's scanner in {} files, {bytes} bytes",
        files.len()
    );
    let scanner = std::cell::RefCell::new(scanner);
    let texts = prop::collection::vec(select(PIECES), 0..24).prop_map(|pieces| pieces.concat());
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&(texts, any::<bool>()), |(text, setting)| {
        match scanner.borrow_mut().difference(text.as_bytes(), setting) {
            Some(difference) => Err(TestCaseError::fail(difference)),
            None => Ok(()),
        }
    });
    if let Err(TestError::Fail(reason, case)) = outcome {
        panic!("{case:?}: {reason}");
    }
}
