//! What a database holds that decides whether a query only reads: its functions and their volatility, and the views,
//! types, casts and operators that call volatile functions without naming them.
//!
//! A catalogue belongs to one database and never changes; a refreshed one replaces it whole. Names are looked up
//! without their schema: the search path of a session is not known here, so a name is as bad as the worst function
//! that bears it in any schema.

mod builder;
mod dump;
mod hidden;

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::builtins::{self, Special};
use builder::Builder;

#[cfg(test)]
mod tests;

/// Which objects of a database a reading is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogPart {
    /// PostgreSQL's own, the same in all databases of a server: read once for each [`BUILTINS`] that is met.
    Builtins,
    /// Everything else.
    Objects,
}

/// The kind of the row, in both parts, whose detail tells the built-in objects of one server from another's: its
/// version, and what would change with an `ALTER FUNCTION` of one of them.
pub const BUILTINS: u8 = b'b';

impl CatalogPart {
    /// The query that reads the part: columns `kind, name, detail, system`, all text. A [`FunctionCatalog`] is made of
    /// the rows of both.
    ///
    /// Any role may run it on PostgreSQL 13 and later. Run it with `client_encoding` UTF8 on the primary, in the database
    /// that the catalogue is for. Its own comments say what the rows mean.
    #[must_use]
    pub fn query(self) -> String {
        let (first, last) = match self {
            Self::Builtins => ("0", "16383"),
            Self::Objects => ("16384", "4294967295"),
        };
        include_str!("catalog/catalog.sql")
            .replace("$FIRST", first)
            .replace("$LAST", last)
    }
}

/// `NAMEDATALEN - 1`: PostgreSQL cuts longer identifiers to this many bytes.
const NAME_BYTES_MAX: usize = 63;

/// An object's name as the server stores it.
type Name = Box<[u8]>;

/// One row of a [`CatalogPart`].
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

/// Rows that the query of a [`CatalogPart`] cannot have returned.
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
    /// A line of a file has neither the query's four columns nor the three of a list of functions.
    #[error(
        "catalogue line {0} has neither the columns kind, name, detail, system nor name, schema, volatility"
    )]
    Columns(usize),
    /// The file is not the JSON that is read.
    #[error("catalogue: {0}")]
    Json(String),
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
    /// Whatever bears the name runs code that may leave something in its session.
    pub(super) opaque: bool,
    /// So does what writes to a relation of this name: by a trigger, a default, a rule …
    pub(super) acts: bool,
}

/// Why a name is marked, for explanations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// It calls this function, as a view, row policy, type or operator does.
    Calls(Name),
    /// It reads this marked relation.
    Reads(Name),
    /// It is a function of a row and may be written like a column.
    Attribute,
    /// It is a sequence: how far it has got is the primary's to tell.
    Sequence,
    /// It is an unlogged relation: standbys have no rows of it.
    Unlogged,
    /// It is a foreign table: what its wrapper does, and on which node's files, is not known.
    Foreign,
    /// It shows what is the node's own.
    NodeOwn,
}

/// What keeps every query of a database from being proved: an implied operator or implicit cast with a volatile
/// function behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Implicit {
    /// The operator, or the type that is cast to.
    pub(super) name: Name,
    /// The function.
    pub(super) function: Name,
}

/// The functions of one database, and what hides them. Immutable.
#[derive(Clone, Debug)]
pub struct FunctionCatalog {
    names: HashMap<Name, Known, RandomState>,
    generation: u64,
    server_version_num: u32,
    functions: usize,
    /// Whether there is a sequence in the database.
    sequences: bool,
    volatile_operators: bool,
    implicit: Option<Implicit>,
    because: HashMap<Name, Because, RandomState>,
    /// Some marked name is not ASCII. Such names cannot be compared: the client's encoding and the server's way of
    /// folding case are not known here. Then every name that is not ASCII counts as marked.
    marked_beyond_ascii: bool,
    /// As well for names that leave something in a session.
    hidden_beyond_ascii: bool,
    /// An event trigger leaves something in a session.
    definitions_act: bool,
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

    /// What both [`CatalogPart`]s are on a new PostgreSQL 15 database. For explaining offline, tests and benchmarks:
    /// a live database has views and unlogged tables of its own, which this knows nothing of.
    #[must_use]
    pub fn builtin() -> Self {
        Self::from_dump(
            include_bytes!("catalog/postgresql15.tsv"),
            &FunctionOverrides::default(),
        )
        .expect("the recorded answer is one of the query's")
    }

    /// Builds a catalogue from the rows of both [`CatalogPart`]s, in any order.
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

    /// Whether there was a sequence in the database.
    #[must_use]
    pub fn has_sequences(&self) -> bool {
        self.sequences
    }

    /// Whether no query of this database can be proved to read; see [`Rule::VolatileImplicit`](super::Rule).
    pub(super) fn volatile_implicit(&self) -> bool {
        self.implicit.is_some()
    }

    /// What makes it so.
    pub(super) fn implicit(&self) -> Option<&Implicit> {
        self.implicit.as_ref()
    }

    /// Why the identifier, as written, is marked, or the operator of this name volatile.
    pub(super) fn because(&self, written: &[u8]) -> Option<&Because> {
        let mut buffer = [0; NAME_BYTES_MAX];
        self.because.get(fold(written, &mut buffer).0)
    }

    /// Whether an operator of this name calls a volatile function.
    #[inline]
    pub(super) fn is_volatile_operator(&self, name: &[u8]) -> bool {
        self.volatile_operators && self.names.get(name).is_some_and(|known| known.operator)
    }

    /// Whether definitions leave something in their session.
    pub(super) fn definitions_act(&self) -> bool {
        self.definitions_act
    }

    /// What an identifier means, as written, that is not called: nothing unless it is marked or hides something.
    #[inline]
    pub(super) fn relation_of(&self, written: &[u8]) -> Known {
        let name = match written {
            [b'"', name @ .., b'"'] => name,
            name => name,
        };
        let may_be_marked = self.marked_beyond_ascii
            || self.hidden_beyond_ascii
            || name.len() > NAME_BYTES_MAX
            || builtins::is_node_statistics(name)
            || self.marks.may_hold(name)
            // A doubled quote makes the name differ from what is written.
            || (written.len() > name.len() && name.contains(&b'"'));
        if may_be_marked {
            self.look_up(written)
        } else {
            Known::default()
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
                opaque: self.hidden_beyond_ascii,
                acts: self.hidden_beyond_ascii,
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
