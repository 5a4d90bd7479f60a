//! The configuration as written: TOML with the place of every key and value.
//!
//! A [`Section`] is asked for its settings by name, each with its range and default, and remembers what it was
//! asked for: what remains when all questions are asked is unknown and refused. A wrong value is noted and the
//! default goes on in its place, so that one reading finds everything that is wrong; the defaults never come
//! into use, because a file with errors yields no configuration.

mod values;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::errors::{Findings, did_you_mean};

/// Bytes in the file's text.
pub(super) type Span = Range<usize>;

/// Longest piece of the file that an error repeats, in characters.
const EXCERPT_LENGTH_MAX: usize = 60;

/// What all sections of one file share while it is read.
pub(super) struct Document<'t> {
    text: &'t str,
    findings: RefCell<Findings<'t>>,
    /// Every setting that was asked for, as `pool.size`.
    known: RefCell<BTreeSet<String>>,
    /// Whether a secret stands in the file itself.
    holds_secret: Cell<bool>,
    /// What stands behind headers that are broken, up to the next: nobody knows to which section it belongs.
    homeless: Vec<Span>,
}

/// What reading left behind besides the configuration.
pub(super) struct Gathered<'t> {
    pub(super) findings: Findings<'t>,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "compared with the reference configuration by a test")
    )]
    pub(super) known: BTreeSet<String>,
    pub(super) holds_secret: bool,
}

/// Reads `text` with `read`, which is handed the top of the file. Errors of syntax are noted, and whatever can
/// be understood in spite of them is read.
pub(super) fn document<'t, T>(
    text: &'t str,
    read: impl FnOnce(&mut Section<'_, 't>) -> T,
) -> (T, Gathered<'t>) {
    let (root, syntax_errors) = DeTable::parse_recoverable(text);
    let document = Document {
        text,
        findings: RefCell::new(Findings::new(text)),
        known: RefCell::default(),
        holds_secret: Cell::new(false),
        homeless: syntax_errors
            .iter()
            .filter_map(|error| behind_header(text, &error.span()?))
            .collect(),
    };
    for error in &syntax_errors {
        let message = format!("{}{}", error.message(), key_near(text, error.span()));
        document.findings.borrow_mut().error(error.span(), message);
    }
    let mut section = Section {
        document: &document,
        path: String::new(),
        table: Some(root.get_ref()),
        place: None,
        asked: Vec::new(),
    };
    let value = read(&mut section);
    section.refuse_unknown();
    let Document {
        findings,
        known,
        holds_secret,
        ..
    } = document;
    let gathered = Gathered {
        findings: findings.into_inner(),
        known: known.into_inner(),
        holds_secret: holds_secret.get(),
    };
    (value, gathered)
}

/// What belongs to the header that a syntax error stands in, if it stands in one.
fn behind_header(text: &str, error: &Span) -> Option<Span> {
    let before = text.get(..error.start)?;
    let line = before.rfind('\n').map_or(0, |at| at + 1);
    before[line..].trim_start().starts_with('[').then(|| {
        let end = text[error.start..].find("\n[");
        error.start..end.map_or(text.len(), |end| error.start + end)
    })
}

/// ` (near "key")`: a syntax error may stand in the middle of a password, so no more than the key is repeated.
fn key_near(text: &str, span: Option<Span>) -> String {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else {
        return String::new();
    };
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].trim_start_matches([' ', '\t', '[']);
    let key_end = line
        .find(|c: char| !c.is_alphanumeric() && !"_-.".contains(c))
        .unwrap_or(line.len());
    // A line without `=` may be the inside of a text of many lines.
    let is_key = line[key_end..]
        .trim_start_matches([' ', '\t'])
        .starts_with(['=', ']']);
    if key_end > 0 && is_key {
        format!(" (near \"{}\")", &line[..key_end])
    } else {
        String::new()
    }
}

/// One table of the file, or the absence of one.
pub(super) struct Section<'d, 't> {
    document: &'d Document<'t>,
    /// Its name as in the file, such as `pool`; empty at the top.
    path: String,
    /// None where the file does not have it: everything is at its default.
    table: Option<&'d DeTable<'t>>,
    /// The table's heading.
    place: Option<Span>,
    asked: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    /// Notes an error at the value of `key`, or at the section where the key is absent.
    pub(super) fn error(&self, key: &str, message: impl Display) {
        let place = self.place_of(key);
        let name = self.name_of(key);
        self.document
            .findings
            .borrow_mut()
            .error(place, format!("{name}: {message}"));
    }

    /// Notes a warning at the value of `key`, or at the section where the key is absent.
    pub(super) fn warning(&self, key: &str, message: impl Display) {
        let place = self.place_of(key);
        let name = self.name_of(key);
        self.document
            .findings
            .borrow_mut()
            .warning(place, format!("{name}: {message}"));
    }

    /// Whether the file says anything under `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.get(key).is_some())
    }

    /// Remembers that a secret was found in the file itself.
    pub(super) fn note_secret(&self) {
        self.document.holds_secret.set(true);
    }

    fn name_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    /// Where the value of `key` stands, or the section's heading where the key is absent.
    pub(super) fn place_of(&self, key: &str) -> Option<Span> {
        let value = self.table.and_then(|table| table.get(key));
        value.map(Spanned::span).or_else(|| self.place.clone())
    }

    /// The value of `key` as written; from now on the key is known here.
    fn value(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'t>>> {
        self.asked.push(key);
        self.document.known.borrow_mut().insert(self.name_of(key));
        self.table.and_then(|table| table.get(key))
    }

    /// What the file says at `span`, shortened to one line.
    fn excerpt(&self, span: Span) -> String {
        let written = self.document.text.get(span).unwrap_or_default();
        let line = written.lines().next().unwrap_or_default();
        match line.char_indices().nth(EXCERPT_LENGTH_MAX) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None if line.len() < written.len() => format!("{line}…"),
            None => line.to_owned(),
        }
    }

    fn wrong_type(&self, key: &str, wanted: &str, value: &Spanned<DeValue<'_>>) {
        let found = self.excerpt(value.span());
        self.error(key, format_args!("{found} is not {wanted}"));
    }

    /// The table `key`, read by `read`; an absent one is read as empty, with every setting at its default.
    pub(super) fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'d, 't>) -> T) -> T {
        let (table, place) = match self.value(key) {
            None => (None, None),
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => (Some(table), Some(value.span())),
                _ => {
                    self.error(
                        key,
                        format_args!("must be a section, written [{}]", self.name_of(key)),
                    );
                    (None, None)
                }
            },
        };
        self.read_inner(key, table, place, read)
    }

    /// The table `key` where the file has it.
    pub(super) fn optional_table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'d, 't>) -> T,
    ) -> Option<T> {
        if self.has(key) {
            return Some(self.table(key, read));
        }
        self.value(key);
        None
    }

    /// Every table of the list `key`, each read by `read`, with the place of its heading.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'d, 't>) -> T,
    ) -> Vec<(T, Span)> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let name = self.name_of(key);
        let DeValue::Array(items) = value.get_ref() else {
            self.error(
                key,
                format_args!("must be a list of sections, each written [[{name}]]"),
            );
            return Vec::new();
        };
        let mut read_items = Vec::with_capacity(items.len());
        for item in items.iter() {
            let DeValue::Table(table) = item.get_ref() else {
                self.error(
                    key,
                    format_args!("must be a list of sections, each written [[{name}]]"),
                );
                continue;
            };
            let value = self.read_inner(key, Some(table), Some(item.span()), &mut read);
            read_items.push((value, item.span()));
        }
        read_items
    }

    fn read_inner<T>(
        &self,
        key: &str,
        table: Option<&'d DeTable<'t>>,
        place: Option<Span>,
        read: impl FnOnce(&mut Section<'d, 't>) -> T,
    ) -> T {
        let mut section = Section {
            document: self.document,
            path: self.name_of(key),
            table,
            place,
            asked: Vec::new(),
        };
        let value = read(&mut section);
        section.refuse_unknown();
        value
    }

    /// Notes every key that nobody asked for.
    fn refuse_unknown(&self) {
        for (key, _) in self.table.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            let is_homeless = |span: &Span| span.contains(&key.span().start);
            if self.asked.contains(&name) || self.document.homeless.iter().any(is_homeless) {
                continue;
            }
            let shown = self.excerpt(key.span());
            let hint = did_you_mean(name, self.asked.iter().copied());
            let place = if self.path.is_empty() {
                "at the top level".to_owned()
            } else {
                format!("in [{}]", self.path)
            };
            let message = format!("there is no setting \"{shown}\" {place}{hint}");
            self.document
                .findings
                .borrow_mut()
                .error(Some(key.span()), message);
        }
    }
}

#[cfg(test)]
mod tests;
