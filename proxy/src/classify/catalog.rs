//! What a database holds that decides whether a query only reads: its functions and their volatility, and the views,
//! types, casts and operators that call volatile functions without naming them.
//!
//! A catalogue belongs to one database and never changes; a refreshed one replaces it whole. Names are looked up
//! without their schema: the search path of a session is not known here, so a name is as bad as the worst function
//! that bears it in any schema.

use std::collections::HashMap;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use foldhash::quality::FixedState;

use super::builtins::{self, Special};

#[cfg(test)]
mod tests;

/// Reads the rows of a [`FunctionCatalog`]: columns `kind, name, detail, system`, all text.
///
/// Any role may run it on PostgreSQL 13 and later. Run it with `client_encoding` UTF8 on the primary, in the database
/// that the catalogue is for. Its own comments say what the rows mean.
pub const CATALOG_QUERY: &str = include_str!("catalog/catalog.sql");

/// `NAMEDATALEN - 1`: PostgreSQL cuts longer identifiers to this many bytes.
const NAME_BYTES_MAX: usize = 63;

/// Operators that statements use without writing them: by IN, LIKE, BETWEEN, CASE, JOIN … USING, ORDER BY and others.
const IMPLIED_OPERATORS: &[&[u8]] = &[
    b"=", b"<>", b"<", b">", b"<=", b">=", b"~", b"!~", b"~~", b"!~~", b"~~*", b"!~~*",
];

/// An object's name as the server stores it.
type Name = Box<[u8]>;

/// One row of [`CATALOG_QUERY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogRow<'a> {
    /// What the row tells, one letter.
    pub kind: u8,
    /// The object's name, without schema.
    pub name: &'a [u8],
    /// What the kind says it is.
    pub detail: &'a [u8],
    /// Whether the function told of belongs to PostgreSQL itself.
    pub system: bool,
}

/// Rows that [`CATALOG_QUERY`] cannot have returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The row's kind is not one of the query's.
    #[error("catalogue row of unknown kind \"{0}\"")]
    Kind(char),
    /// The detail is not one that its kind can have.
    #[error("catalogue row of kind \"{kind}\" for \"{name}\" with detail \"{detail}\"")]
    Detail {
        /// The row's kind.
        kind: char,
        /// The object's name.
        name: String,
        /// The refused detail.
        detail: String,
    },
    /// A line of a file does not have the query's four columns.
    #[error("catalogue line {0} does not have the columns kind, name, detail, system")]
    Columns(usize),
}

/// An operator's word on functions, by name without schema, as the catalogue spells them. `deny` wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionOverrides {
    /// Functions that a standby may run although they are volatile, unknown or answer for their node. Functions that
    /// act on the session (`set_config`, advisory locks, `currval` …) and `pg_stat_*` stay with the primary all the same.
    pub allow: Vec<String>,
    /// Functions that only the primary may run.
    pub deny: Vec<String>,
}

/// What is known of the functions of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Function {
    /// There was none when the catalogue was read.
    #[default]
    Unknown,
    /// None of them is volatile, or those that are do no harm.
    Reads,
    /// At least one is volatile.
    Volatile,
}

/// Why the mere mention of a name keeps a statement from standbys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    /// It does not.
    #[default]
    None,
    /// A relation that has to be read on the primary.
    Primary,
    /// A view, table with policies, type or attribute that calls a volatile function.
    Volatile,
}

/// All that a name can mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) function: Function,
    pub(super) special: Special,
    pub(super) mark: Mark,
    /// An operator of this name calls a volatile function.
    pub(super) operator: bool,
    /// A volatile function of this name is not PostgreSQL's own.
    pub(super) opaque: bool,
}

/// The functions of one database, and what hides them. Immutable.
#[derive(Clone, Debug)]
pub struct FunctionCatalog {
    names: HashMap<Name, Known, RandomState>,
    generation: u64,
    server_version_num: u32,
    functions: usize,
    volatile_operators: bool,
    volatile_implicit: bool,
    /// Some marked name is not ASCII. Such names cannot be compared: the client's encoding and the server's way of
    /// folding case are not known here. Then every name that is not ASCII counts as marked.
    marked_beyond_ascii: bool,
    marks: MarkFilter,
}

/// Tells in a few instructions that a name is not marked, which is true of nearly every name in a statement.
#[derive(Clone, Debug)]
struct MarkFilter(Box<[u64; Self::WORDS]>);

impl MarkFilter {
    const WORDS: usize = 64;

    fn new() -> Self {
        Self(Box::new([0; Self::WORDS]))
    }

    /// The filter's word and bit for a name, the same for all ways to write it in ASCII.
    fn place(name: &[u8]) -> Option<(usize, u64)> {
        let (first, last) = (*name.first()? | 0x20, *name.last()? | 0x20);
        let middle = name[name.len() / 2] | 0x20;
        let hash = usize::from(first) + usize::from(middle) * 5 + usize::from(last) * 23 + name.len() * 67;
        Some((hash / 64 % Self::WORDS, 1 << (hash % 64)))
    }

    fn add(&mut self, name: &[u8]) {
        if let Some((word, bit)) = Self::place(name) {
            self.0[word] |= bit;
        }
    }

    /// Whether a name, written without quotes and not cut, may be marked.
    fn may_hold(&self, name: &[u8]) -> bool {
        Self::place(name).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }
}

impl FunctionCatalog {
    /// The catalogue of which nothing is known: every function is unknown, so every call is a write.
    #[must_use]
    pub fn empty() -> Self {
        Self::from_rows([], &FunctionOverrides::default()).expect("no row cannot be a wrong row")
    }

    /// What [`CATALOG_QUERY`] returns on a new PostgreSQL 15 database. For explaining offline, tests and benchmarks:
    /// a live database has views and unlogged tables of its own, which this knows nothing of.
    #[must_use]
    pub fn builtin() -> Self {
        Self::from_tsv(
            include_bytes!("catalog/postgresql15.tsv"),
            &FunctionOverrides::default(),
        )
        .expect("the recorded answer is one of the query's")
    }

    /// Builds a catalogue from a file of tab-separated rows, as `psql -At -F $'\t'` writes them.
    ///
    /// # Errors
    /// If a line is not a row of [`CATALOG_QUERY`].
    pub fn from_tsv(text: &[u8], overrides: &FunctionOverrides) -> Result<Self, CatalogError> {
        let mut rows = Vec::new();
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let columns: Vec<&[u8]> = line.split(|&byte| byte == b'\t').collect();
            let [&[kind], name, detail, &[system @ (b't' | b'f')]] = columns[..] else {
                return Err(CatalogError::Columns(number + 1));
            };
            rows.push(CatalogRow {
                kind,
                name,
                detail,
                system: system == b't',
            });
        }
        Self::from_rows(rows, overrides)
    }

    /// Builds a catalogue from the rows of [`CATALOG_QUERY`], in any order.
    ///
    /// # Errors
    /// If a row is not one that the query returns.
    pub fn from_rows<'a>(
        rows: impl IntoIterator<Item = CatalogRow<'a>>,
        overrides: &FunctionOverrides,
    ) -> Result<Self, CatalogError> {
        let mut builder = Builder::new(overrides);
        for row in rows {
            builder.add(row)?;
        }
        Ok(builder.finish())
    }

    /// A number that differs between catalogues that may class a statement differently: caches are valid for one.
    /// It is made of the content, so reading the same content again invalidates nothing.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// `server_version_num` of the server it was read from; 0 if unknown.
    #[must_use]
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// Number of function names read.
    #[must_use]
    pub fn functions(&self) -> usize {
        self.functions
    }

    /// Whether no query of this database can be proved to read; see [`Rule::VolatileImplicit`](super::Rule).
    pub(super) fn volatile_implicit(&self) -> bool {
        self.volatile_implicit
    }

    /// Whether an operator of this name calls a volatile function.
    #[inline]
    pub(super) fn is_volatile_operator(&self, name: &[u8]) -> bool {
        self.volatile_operators && self.names.get(name).is_some_and(|known| known.operator)
    }

    /// The mark of an identifier, as written.
    #[inline]
    pub(super) fn mark_of(&self, written: &[u8]) -> Mark {
        let name = match written {
            [b'"', name @ .., b'"'] => name,
            name => name,
        };
        let may_be_marked = self.marked_beyond_ascii
            || name.len() > NAME_BYTES_MAX
            || builtins::is_node_statistics(name)
            || self.marks.may_hold(name)
            // A doubled quote makes the name differ from what is written.
            || (written.len() > name.len() && name.contains(&b'"'));
        if may_be_marked {
            self.look_up(written).mark
        } else {
            Mark::None
        }
    }

    /// What an identifier, as written, means. Unquoted ones are folded to lower case, quoted ones freed of their
    /// quotes, both cut at [`NAME_BYTES_MAX`].
    #[inline]
    pub(super) fn look_up(&self, written: &[u8]) -> Known {
        let mut buffer = [0; NAME_BYTES_MAX];
        let (name, ascii) = fold(written, &mut buffer);
        if !ascii {
            let mark = if self.marked_beyond_ascii {
                Mark::Volatile
            } else {
                Mark::None
            };
            return Known {
                mark,
                ..Known::default()
            };
        }
        let mut known = self.names.get(name).copied().unwrap_or_default();
        if known.mark == Mark::None && builtins::is_node_statistics(name) {
            known.mark = Mark::Primary;
        }
        known
    }
}

/// The name that an identifier spells, and whether it is ASCII.
#[inline]
fn fold<'b>(written: &[u8], buffer: &'b mut [u8; NAME_BYTES_MAX]) -> (&'b [u8], bool) {
    let mut length = 0;
    let mut high = 0;
    if let Some(quoted) = written.strip_prefix(b"\"") {
        let mut rest = quoted.strip_suffix(b"\"").unwrap_or(quoted).iter();
        while let Some(&byte) = rest.next() {
            if byte == b'"' {
                // The second of a doubled quote.
                rest.next();
            }
            high |= byte;
            if let Some(place) = buffer.get_mut(length) {
                *place = byte;
                length += 1;
            }
        }
    } else {
        length = written.len().min(NAME_BYTES_MAX);
        for (place, &byte) in buffer.iter_mut().zip(written) {
            high |= byte;
            *place = byte.to_ascii_lowercase();
        }
    }
    (&buffer[..length], high.is_ascii())
}

/// A catalogue being read.
struct Builder<'o> {
    overrides: &'o FunctionOverrides,
    names: HashMap<Name, Known, RandomState>,
    /// (relation, function called in it, whether the function is PostgreSQL's own): judged when all is read.
    calls: Vec<(Name, Name, bool)>,
    /// (relation, relation mentioned in it).
    mentions: Vec<(Name, Name)>,
    content: u64,
    server_version_num: u32,
    functions: usize,
    volatile_implicit: bool,
}

impl<'o> Builder<'o> {
    fn new(overrides: &'o FunctionOverrides) -> Self {
        let mut builder = Self {
            overrides,
            names: HashMap::default(),
            calls: Vec::new(),
            mentions: Vec::new(),
            content: FixedState::default().hash_one((&overrides.allow, &overrides.deny)),
            server_version_num: 0,
            functions: 0,
            volatile_implicit: false,
        };
        for &(name, special) in builtins::SPECIAL {
            builder.known(name.as_bytes()).special = special;
        }
        for name in builtins::PRIMARY_RELATIONS {
            builder.mark(name.as_bytes(), Mark::Primary);
        }
        builder
    }

    fn known(&mut self, name: &[u8]) -> &mut Known {
        self.names.entry(name.into()).or_default()
    }

    fn mark(&mut self, name: &[u8], mark: Mark) {
        let known = self.known(name);
        known.mark = known.mark.max(mark);
    }

    fn add(&mut self, row: CatalogRow<'_>) -> Result<(), CatalogError> {
        // A sum does not depend on the order of the rows, which the query leaves open.
        let hash = FixedState::default().hash_one((row.kind, row.name, row.detail, row.system));
        self.content = self.content.wrapping_add(hash);
        match row.kind {
            b'x' => self.server_version_num = number(row.detail).ok_or_else(|| wrong_detail(row))?,
            b'f' => self.add_function(row)?,
            b'o' if self.is_harmless(row.detail, row.system) => {}
            b'o' => {
                self.known(row.name).operator = true;
                self.volatile_implicit |= IMPLIED_OPERATORS.contains(&row.name);
            }
            b't' if self.is_harmless(row.detail, row.system) => {}
            b't' => self.mark(row.name, Mark::Volatile),
            b'c' => self.volatile_implicit |= !self.is_harmless(row.detail, row.system),
            b'a' if self.is_harmless(row.name, row.system) => {}
            b'a' => self.mark(row.name, Mark::Volatile),
            b'n' => self.mark(row.name, Mark::Primary),
            b'r' => self.calls.push((row.name.into(), row.detail.into(), row.system)),
            b'e' => self.mentions.push((row.name.into(), row.detail.into())),
            other => return Err(CatalogError::Kind(char::from(other))),
        }
        Ok(())
    }

    fn add_function(&mut self, row: CatalogRow<'_>) -> Result<(), CatalogError> {
        let function = match row.detail {
            b"i" | b"s" => Function::Reads,
            b"v" if self.is_harmless(row.name, row.system) => Function::Reads,
            b"v" => Function::Volatile,
            _ => return Err(wrong_detail(row)),
        };
        self.functions += 1;
        let known = self.known(row.name);
        if known.function != Function::Volatile {
            known.function = function;
        }
        known.opaque |= function == Function::Volatile && !row.system;
        Ok(())
    }

    /// Whether a volatile function may run on a standby: by the operator's word, or, if it is PostgreSQL's own, by
    /// the list of those that do no harm.
    fn is_harmless(&self, name: &[u8], system: bool) -> bool {
        !named(&self.overrides.deny, name)
            && (named(&self.overrides.allow, name) || (system && named(builtins::HARMLESS, name)))
    }

    /// What a relation is marked with for calling a function.
    fn mark_of_call(&self, function: &[u8], system: bool) -> Mark {
        if self.is_harmless(function, system) {
            return Mark::None;
        }
        let known = self.names.get(function).copied().unwrap_or_default();
        match (known.special, known.function) {
            (Special::Primary, _) => Mark::Primary,
            _ if builtins::is_node_statistics(function) => Mark::Primary,
            (Special::None | Special::CurrentSetting, Function::Reads) => Mark::None,
            _ => Mark::Volatile,
        }
    }

    fn finish(mut self) -> FunctionCatalog {
        for name in &self.overrides.deny {
            self.known(name.as_bytes()).function = Function::Volatile;
        }
        for name in self
            .overrides
            .allow
            .iter()
            .filter(|name| !self.overrides.deny.contains(name))
        {
            let known = self.known(name.as_bytes());
            known.function = Function::Reads;
            if matches!(known.special, Special::Primary | Special::RunsText) {
                known.special = Special::None;
            }
        }
        for (relation, function, system) in std::mem::take(&mut self.calls) {
            let mark = self.mark_of_call(&function, system);
            self.mark(&relation, mark);
        }
        self.spread_marks();
        // Some call volatile functions to show what they show; that they are the primary's says more.
        for name in builtins::PRIMARY_RELATIONS {
            self.known(name.as_bytes()).mark = Mark::Primary;
        }
        let mut marks = MarkFilter::new();
        for (name, _) in self.names.iter().filter(|(_, known)| known.mark != Mark::None) {
            marks.add(name);
        }
        let marked_beyond_ascii = self
            .names
            .iter()
            .any(|(name, known)| known.mark != Mark::None && !name.is_ascii());
        FunctionCatalog {
            generation: self.content,
            server_version_num: self.server_version_num,
            functions: self.functions,
            volatile_operators: self.names.values().any(|known| known.operator),
            volatile_implicit: self.volatile_implicit,
            marked_beyond_ascii,
            marks,
            names: self.names,
        }
    }

    /// Marks every view of a marked relation, and the views of those.
    fn spread_marks(&mut self) {
        let mut mentioned_by: HashMap<&[u8], Vec<&[u8]>, RandomState> = HashMap::default();
        let mut open: Vec<(&[u8], Mark)> = Vec::new();
        for (view, relation) in &self.mentions {
            mentioned_by.entry(relation).or_default().push(view);
            let known = self.names.get(relation).copied().unwrap_or_default();
            let mark = if builtins::is_node_statistics(relation) {
                Mark::Primary
            } else {
                Mark::None
            };
            open.push((relation, known.mark.max(mark)));
        }
        let mut marks: HashMap<&[u8], Mark, RandomState> = HashMap::default();
        while let Some((relation, mark)) = open.pop() {
            let seen = marks.entry(relation).or_default();
            if *seen < mark {
                *seen = mark;
                open.extend(
                    mentioned_by
                        .get(relation)
                        .into_iter()
                        .flatten()
                        .map(|view| (*view, mark)),
                );
            }
        }
        for (name, mark) in marks {
            let known = self.names.entry(name.into()).or_default();
            known.mark = known.mark.max(mark);
        }
    }
}

fn named(names: &[impl AsRef<str>], name: &[u8]) -> bool {
    names.iter().any(|known| known.as_ref().as_bytes() == name)
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn wrong_detail(row: CatalogRow<'_>) -> CatalogError {
    CatalogError::Detail {
        kind: char::from(row.kind),
        name: String::from_utf8_lossy(row.name).into_owned(),
        detail: String::from_utf8_lossy(row.detail).into_owned(),
    }
}
