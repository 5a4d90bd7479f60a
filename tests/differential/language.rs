//! The language in which exchanges are written: a line is a step.
//!
//! ```text
//! == a name for the exchange
//! # why it is here
//! a: SET work_mem = '7MB'
//! b: SHOW work_mem
//! a> parse s(int4) SELECT $1 | bind p s 1 | describe portal p | execute p | sync
//! ```
//!
//! | line | what happens |
//! |---|---|
//! | `a: SQL` | client `a` sends a Query and reads its answer |
//! | `a> message \| message …` | client `a` sends messages in one write and reads what they are answered with |
//! | `a connect name=value …` | client `a` connects with startup parameters; without it, it connects when it first speaks |
//! | `a cancel` | a CancelRequest with the key of client `a` |
//! | `a leave` | client `a` sends Terminate and closes its connection |
//! | `@: SQL` | runs on the server itself, as its superuser and outside the comparison |
//! | `@ blocked N` | waits until N backends wait for locks |
//!
//! The messages are `parse name(types) SQL`, `bind portal statement values…` (`bind/b` wants the result in binary;
//! a value is a word, `'words'`, `NULL` or, in binary, `x'00ff'`), `describe statement|portal name`, `execute portal
//! [rows]`, `close statement|portal name`, `flush`, `sync`, `query SQL`, `call oid values…`, `copydata text`,
//! `copydone`, `copyfail text`, `terminate` and `raw kind text`. A name that is empty is written `-`.
//!
//! A step reads until each Query, FunctionCall and Sync that it sent is answered, or COPY wants data. `=> …` at its
//! end says otherwise: `=> 0` reads nothing, `=> 3` three messages, `=> T` up to a message of kind `T` (or an error),
//! `=> Z2` up to the second ReadyForQuery, `=> closed` to the end of the connection. A line that begins with blanks
//! goes on with the one before.

use crate::support::message;

/// A scripted conversation of several clients with one server.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

/// One line of it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// As written.
    pub(crate) text: String,
    /// `@` is nobody.
    pub(crate) client: char,
    pub(crate) action: Action,
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    Connect(Vec<(String, String)>),
    Speak { bytes: Vec<u8>, until: Until },
    Cancel,
    Leave,
    Directly(String),
    Blocked(usize),
}

/// Where a step stops reading.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// So many ReadyForQuery, or a request for COPY data if that is not in the step already.
    Ready {
        count: usize,
        copy: bool,
    },
    Count(usize),
    /// So many messages of a kind; an error ends it too unless ReadyForQuery is waited for.
    Kind {
        kind: u8,
        count: usize,
    },
    Closed,
}

/// Reads a file of exchanges.
///
/// # Panics
/// Where it is not in this language, saying the line.
pub(crate) fn exchanges(text: &str) -> Vec<Exchange> {
    let mut found: Vec<Exchange> = Vec::new();
    for block in logical_lines(text) {
        if let Some(name) = block.strip_prefix("== ") {
            assert!(
                found.iter().all(|other| other.name != name),
                "two exchanges are named {name:?}"
            );
            found.push(Exchange {
                name: name.to_owned(),
                steps: Vec::new(),
            });
        } else {
            let exchange = found.last_mut().expect("an exchange begins with its name");
            exchange.steps.push(Step::parse(&block));
        }
    }
    found
}

/// Lines without comments, each with those that go on with it.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        match lines.last_mut() {
            Some(last) if line.starts_with(' ') => {
                last.push('\n');
                last.push_str(line);
            }
            _ => lines.push(line.trim_end().to_owned()),
        }
    }
    lines
}

impl Step {
    /// # Panics
    /// If the line is not in this language.
    pub(crate) fn parse(line: &str) -> Self {
        let mut characters = line.chars();
        let client = characters.next().expect("a step is not empty");
        let rest = characters.as_str();
        let action = if let Some(sql) = rest.strip_prefix(": ") {
            if client == '@' {
                Action::Directly(sql.to_owned())
            } else {
                let (sql, until) = split_until(sql);
                Action::Speak {
                    bytes: message::query(sql),
                    until: until.unwrap_or(Until::Ready { count: 1, copy: true }),
                }
            }
        } else if let Some(messages) = rest.strip_prefix('>') {
            speak(messages.trim_start())
        } else {
            let (verb, rest) = word(rest);
            match verb {
                "connect" => Action::Connect(pairs(rest)),
                "cancel" => Action::Cancel,
                "leave" => Action::Leave,
                "blocked" => Action::Blocked(rest.trim().parse().expect("a count")),
                _ => panic!("no step: {line:?}"),
            }
        };
        Self {
            text: line.to_owned(),
            client,
            action,
        }
    }
}

/// Takes a first word; what follows has no leading blanks.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// Words, of which those in single quotes may hold blanks; `''` within quotes is a quote.
fn words(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(&next) = characters.peek() {
        if next.is_whitespace() {
            characters.next();
            continue;
        }
        let mut one = String::new();
        let mut quoted = false;
        while let Some(&next) = characters.peek() {
            if next.is_whitespace() && !quoted {
                break;
            }
            characters.next();
            if next == '\'' && quoted && characters.peek() == Some(&'\'') {
                characters.next();
                one.push('\'');
            }
            quoted ^= next == '\'';
            one.push(next);
        }
        found.push(one);
    }
    found
}

fn unquoted(text: &str) -> String {
    match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        Some(inner) => inner.replace("''", "'"),
        None => text.to_owned(),
    }
}

fn pairs(text: &str) -> Vec<(String, String)> {
    words(text)
        .iter()
        .map(|pair| {
            let (name, value) = pair.split_once('=').expect("name=value");
            (name.to_owned(), unquoted(value))
        })
        .collect()
}

fn split_until(text: &str) -> (&str, Option<Until>) {
    let (before, wanted) = match text.rsplit_once("=> ") {
        Some((before, wanted)) => (before.trim_end(), wanted.trim()),
        None => return (text, None),
    };
    let until = if wanted == "closed" {
        Some(Until::Closed)
    } else if let Ok(count) = wanted.parse() {
        Some(Until::Count(count))
    } else {
        let mut characters = wanted.chars();
        let kind = characters.next().and_then(|kind| u8::try_from(kind).ok());
        let count = match characters.as_str() {
            "" => Some(1),
            count => count.parse().ok(),
        };
        kind.zip(count).map(|(kind, count)| Until::Kind { kind, count })
    };
    match until {
        Some(until) => (before, Some(until)),
        None => (text, None),
    }
}

fn speak(text: &str) -> Action {
    let (text, until) = split_until(text);
    let mut bytes = Vec::new();
    let (mut readies, mut syncs, mut feeds, mut ends) = (0, 0, false, false);
    for one in text.split(" | ").filter(|one| !one.trim().is_empty()) {
        bytes.extend(frontend_message(one));
        match word(one).0 {
            "query" | "call" => readies += 1,
            "sync" => syncs += 1,
            "copydata" => feeds = true,
            "copydone" | "copyfail" => ends = true,
            _ => {}
        }
    }
    // The end of a COPY that a Query began is answered like the Query; in a batch its Sync is.
    if ends && readies + syncs == 0 {
        readies = 1;
    }
    let until = until.unwrap_or(Until::Ready {
        count: readies + syncs,
        copy: !feeds && !ends,
    });
    Action::Speak { bytes, until }
}

fn frontend_message(text: &str) -> Vec<u8> {
    let (verb, rest) = word(text);
    let named = |name: &str| {
        if name == "-" {
            String::new()
        } else {
            name.to_owned()
        }
    };
    let of = |rest: &str| -> (bool, String) {
        let (what, name) = word(rest);
        assert!(
            matches!(what, "statement" | "portal"),
            "a statement or a portal: {text:?}"
        );
        (what == "statement", named(word(name).0))
    };
    match verb {
        "parse" => parse(rest),
        "bind" | "bind/b" => bind(rest, verb == "bind/b"),
        "describe" => match of(rest) {
            (true, name) => message::describe_statement(&name),
            (false, name) => message::describe_portal(&name),
        },
        "close" => match of(rest) {
            (true, name) => message::close_statement(&name),
            (false, name) => message::close_portal(&name),
        },
        "execute" => {
            let (portal, rows) = word(rest);
            message::execute(&named(portal), rows.trim().parse().unwrap_or(0))
        }
        "flush" => message::flush(),
        "sync" => message::sync(),
        "query" => message::query(rest),
        "call" => call(rest),
        "copydata" => message::copy_data(&escaped(rest)),
        "copydone" => message::copy_done(),
        "copyfail" => message::copy_fail(rest),
        "terminate" => message::tagged(b'X', b""),
        "raw" => {
            let (kind, body) = word(rest);
            message::tagged(kind.as_bytes()[0], &escaped(body))
        }
        _ => panic!("no message: {text:?}"),
    }
}

/// `\n`, `\t`, `\0` and `\\` as in C.
fn escaped(text: &str) -> Vec<u8> {
    let text = text.replace("\\\\", "\u{1}");
    let text = text
        .replace("\\n", "\n")
        .replace("\\t", "\t")
        .replace("\\0", "\0");
    text.replace('\u{1}', "\\").into_bytes()
}

fn parse(rest: &str) -> Vec<u8> {
    let head_end = rest.find([' ', '\n', '(']).unwrap_or(rest.len());
    let (name, mut sql) = rest.split_at(head_end);
    let name = if name == "-" { "" } else { name };
    let mut types = Vec::new();
    if let Some(listed) = sql.strip_prefix('(') {
        let (listed, after) = listed.split_once(')').expect("the types end");
        types = listed.split(',').map(|name| type_number(name.trim())).collect();
        sql = after;
    }
    message::parse_typed(name, sql.trim_start(), &types)
}

fn type_number(name: &str) -> u32 {
    match name {
        "bool" => 16,
        "bytea" => 17,
        "int8" => 20,
        "int4" => 23,
        "text" => 25,
        "unknown" => 705,
        "varchar" => 1043,
        "date" => 1082,
        "numeric" => 1700,
        number => number.parse().expect("a type's name or number"),
    }
}

/// Value and format code.
fn value(written: &str) -> (Option<Vec<u8>>, u16) {
    if written == "NULL" {
        return (None, 0);
    }
    if let Some(digits) = written
        .strip_prefix("x'")
        .and_then(|rest| rest.strip_suffix('\''))
    {
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two hexadecimal digits");
        return (Some((0..digits.len()).step_by(2).map(byte).collect()), 1);
    }
    (Some(unquoted(written).into_bytes()), 0)
}

/// Formats and values as they stand in Bind and FunctionCall.
fn values(written: &[String]) -> Vec<u8> {
    let count = u16::try_from(written.len()).unwrap().to_be_bytes();
    let values: Vec<_> = written.iter().map(|written| value(written)).collect();
    let mut bytes = count.to_vec();
    bytes.extend(values.iter().flat_map(|(_, format)| format.to_be_bytes()));
    bytes.extend(count);
    for (value, _) in values {
        match value {
            Some(value) => {
                bytes.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                bytes.extend(value);
            }
            None => bytes.extend((-1_i32).to_be_bytes()),
        }
    }
    bytes
}

fn bind(rest: &str, binary: bool) -> Vec<u8> {
    let words = words(rest);
    let mut body = Vec::new();
    for name in &words[..2] {
        if name != "-" {
            body.extend(name.as_bytes());
        }
        body.push(0);
    }
    body.extend(values(&words[2..]));
    body.extend(if binary { &[0, 1, 0, 1][..] } else { &[0, 0] });
    message::tagged(b'B', &body)
}

fn call(rest: &str) -> Vec<u8> {
    let words = words(rest);
    let function: u32 = words[0].parse().expect("a function's number");
    let mut body = function.to_be_bytes().to_vec();
    body.extend(values(&words[1..]));
    body.extend([0, 0]);
    message::tagged(b'F', &body)
}
