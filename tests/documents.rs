//! The documents beside the code: what they promise to list is all there is, and nothing got into them by mistake.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What makes an error or a warning of Halyard's own.
const CALLS: [&str; 3] = ["Report::error(", "Report::fatal(", "Report::warning("];

/// Messages whose words do not stand in the call that makes them.
const WORDS_ELSEWHERE: [&str; 15] = [
    "authentication rules reject connection for",
    "client selected an invalid SASL authentication mechanism",
    "expected {what} response, got message type {kind}",
    "invalid frontend message type {0}",
    "invalid message length",
    "invalid password packet size",
    "invalid SCRAM response",
    "malformed SASL initial response",
    "malformed SCRAM message",
    "no authentication rule for",
    "nothing of that kind is paused",
    "received unencrypted data after {what} request",
    "there is no standby that qualifies now",
    "too many prepared statements in this session",
    "{open} transactions are open still after {} ms",
];

/// What the table of errors need not have, because no client is told it as a message.
const LEFT_OUT: [&str; 2] = [
    // Why a session gives its connection up: part of another error's DETAIL.
    "it is not what it was for this session any more",
    // Of the connection that listens for clients: in the log, and in the DETAIL of "no connection can listen now".
    "the connection to the node was lost: {error}",
];

/// Whoever meets an error looks it up in `docs/operating.md`.
#[test]
fn every_error_of_halyards_own_is_in_the_operators_table() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/operating.md")).unwrap();
    let (_, errors) = page.split_once("\n## Errors\n").expect("the page has them");
    let errors = errors.split("\n## ").next().unwrap();
    let rows: Vec<&str> = errors.lines().filter(|line| line.starts_with('|')).collect();

    let sources = files(&Path::new(ROOT).join("proxy/src"), "rs");
    let code: String = sources.iter().map(|path| without_tests(path)).collect();
    let mut messages = messages(&code);
    assert!(messages.len() > 70, "{} were found, so not all", messages.len());
    for words in WORDS_ELSEWHERE {
        assert!(code.contains(words), "{words:?} is no message any more");
        messages.push(words.to_owned());
    }
    for left_out in LEFT_OUT {
        assert!(
            messages.iter().any(|message| message == left_out),
            "{left_out:?} is no message any more"
        );
    }
    messages.retain(|message| !LEFT_OUT.contains(&message.as_str()));
    messages.retain(|message| !rows.iter().any(|row| has(row, message)));
    assert!(
        messages.is_empty(),
        "docs/operating.md has no row for {messages:#?}"
    );
}

/// The record of a drill had the last line of the build that went before it, with a folder of somebody's machine.
#[test]
fn no_document_holds_the_output_of_a_build() {
    let mut pages = files(&Path::new(ROOT).join("docs"), "md");
    let others = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "benches/RESULTS.md",
    ];
    pages.extend(others.map(|page| Path::new(ROOT).join(page)));
    let of_cargo = [
        "Compiling ",
        "Checking ",
        "Finished `",
        "Running `",
        "Blocking waiting for file lock",
    ];
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let stray = text
            .lines()
            .find(|line| of_cargo.iter().any(|begin| line.trim_start().starts_with(begin)));
        assert_eq!(stray, None, "in {}", page.display());
    }
}

/// All files below a folder whose names end so, but for those of unit tests.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|own| own == extension) && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}

/// A source up to the unit tests that it holds.
fn without_tests(path: &Path) -> String {
    let source = fs::read_to_string(path).unwrap();
    source.split("\nmod tests {").next().unwrap().to_owned()
}

/// The first string literal of each call that makes an error, as it is written, with braces for what is put in.
fn messages(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for call in CALLS {
        for (at, _) in code.match_indices(call) {
            found.extend(first_literal(&code[at + call.len()..]));
        }
    }
    found
}

/// The first string literal in front of the parenthesis that closes a call, whose arguments `code` begins with.
fn first_literal(code: &str) -> Option<String> {
    let mut depth = 1;
    for (at, letter) in code.char_indices() {
        match letter {
            '"' => return Some(literal(&code[at + 1..])),
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return None;
        }
    }
    None
}

/// What a string literal means that begins in front of `code`.
fn literal(code: &str) -> String {
    let mut meant = String::new();
    let mut letters = code.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            // A literal goes on behind the next line's indentation.
            '\\' if letters.peek() == Some(&'\n') => {
                while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
            }
            '\\' => meant.extend(letters.next()),
            letter => meant.push(letter),
        }
    }
    meant
}

/// Whether a row has a message: everything that is not put in, in its order.
fn has(row: &str, message: &str) -> bool {
    // Outside and inside of braces in turn.
    let fixed = message.split(['{', '}']).step_by(2).map(str::trim);
    let mut words = fixed.filter(|part| part.contains(char::is_alphabetic));
    let mut rest = row;
    words.all(|part| match rest.split_once(part) {
        Some((_, behind)) => {
            rest = behind;
            true
        }
        None => false,
    })
}
