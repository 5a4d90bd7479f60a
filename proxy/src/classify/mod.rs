//! Classification: from the bytes of a message to what it needs, without asking anybody.
//!
//! [`classify`] is pure: no I/O, no clock, no allocation. It proves that a message reads, or takes it for a write:
//!
//! ```text
//! text ──lexer──▶ tokens ──walk──▶ Class { access, rule, hint, transaction, session, … }
//!                           │
//!                           └── FunctionCatalog: volatility by name, marked relations and operators
//! ```
//!
//! A message is [`Access::Read`] only if every statement in it is of a kind that reads, holds no data-changing keyword,
//! no INTO and no row locks, calls only functions that are known and not volatile, and names nothing that hides a
//! volatile function. Unsure means the primary; of several statements the strictest wins.
//!
//! What the words of a message cannot tell, its caller has to add:
//! - the session's state: a transaction block stays where it is, `default_transaction_isolation = serializable` keeps
//!   reads off standbys, `default_transaction_read_only = on` makes BEGIN read only;
//! - a change of `standard_conforming_strings` or `client_encoding` that is still on its way when a later text of the
//!   same pipeline comes: until its answer has come, that text is not to be classed ([`changes_reading`]);
//! - objects that are younger than the catalogue. A new volatile function is unknown, hence safe; a new view over one,
//!   a `CREATE OR REPLACE` that turns a known one volatile, or a new unlogged table is not seen before the next
//!   refresh. A standby refuses what would have written (25006, and 0A000 for an unlogged table).
//!
//! [`ClassCache`] keeps classes by a key of the text without its constants.

mod builtins;
mod cache;
mod catalog;
mod changes;
mod class;
mod constants;
mod explain;
mod lexer;
mod name;
mod setting;
mod source;
mod statement;
mod walk;
mod word;

#[cfg(test)]
mod tests;

pub use cache::{CacheStats, ClassCache, Classified, KeySeed, StatementKey};
pub use catalog::{BUILTINS, CatalogError, CatalogPart, CatalogRow, FunctionCatalog, FunctionOverrides};
pub use changes::SettingChanges;
pub use class::{
    Access, AccessMode, Class, Isolation, RouteHint, Rule, SessionEffects, Span, TransactionControl,
    TransactionModes,
};
pub use explain::{Explanation, Finding, Kind, Left, Place, Subject, explain, split};
pub use lexer::{Lexer, Token, TokenKind};
pub use setting::OwnSetting;
pub use statement::reads_constants;

use statement::READINGS;
use walk::Walk;

/// Whether a character of a client encoding can contain ASCII bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// No byte of a character beyond ASCII is an ASCII byte. True of every encoding that a server can use.
    Safe,
    /// A trailing byte may look like a quote or a backslash. Texts with any byte beyond ASCII are not read.
    Unsafe,
}

impl Encoding {
    /// The encoding of this name, as `client_encoding` has it; names that are not known are [`Encoding::Unsafe`].
    ///
    /// Case and punctuation do not matter, as in `pg_char_to_encoding` (manual, section 24.3.1). The client-only
    /// encodings BIG5, GB18030, GBK, JOHAB, SJIS, SHIFT_JIS_2004 and UHC are unsafe.
    #[must_use]
    pub fn of_client_encoding(name: &str) -> Self {
        const SAFE: &[&str] = &[
            "abc",
            "alt",
            "euccn",
            "eucjis2004",
            "eucjp",
            "euckr",
            "euctw",
            "iso88591",
            "iso885910",
            "iso885913",
            "iso885914",
            "iso885915",
            "iso885916",
            "iso88592",
            "iso88593",
            "iso88594",
            "iso88595",
            "iso88596",
            "iso88597",
            "iso88598",
            "iso88599",
            "koi8",
            "koi8r",
            "koi8u",
            "latin1",
            "latin10",
            "latin2",
            "latin3",
            "latin4",
            "latin5",
            "latin6",
            "latin7",
            "latin8",
            "latin9",
            "muleinternal",
            "sqlascii",
            "tcvn",
            "tcvn5712",
            "unicode",
            "utf8",
            "vscii",
            "win",
            "win1250",
            "win1251",
            "win1252",
            "win1253",
            "win1254",
            "win1255",
            "win1256",
            "win1257",
            "win1258",
            "win866",
            "win874",
            "windows1250",
            "windows1251",
            "windows1252",
            "windows1253",
            "windows1254",
            "windows1255",
            "windows1256",
            "windows1257",
            "windows1258",
            "windows866",
            "windows874",
        ];
        let name: String = name
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|char| char.to_ascii_lowercase())
            .collect();
        if SAFE.contains(&name.as_str()) {
            Self::Safe
        } else {
            Self::Unsafe
        }
    }
}

/// What reading a text depends on besides the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of the session's `client_encoding`.
    pub encoding: Encoding,
    /// The session's setting of this name.
    pub standard_conforming_strings: bool,
    /// Texts of more bytes are writes, unread.
    pub max_len: usize,
}

impl Settings {
    /// 64 KiB: a statement of that size costs tens of microseconds to read, and is hardly ever a read.
    pub const DEFAULT_MAX_LEN: usize = 64 * 1024;

    /// Takes note of what a server says of a setting that decides it. Whether texts are read otherwise now.
    pub fn heed(&mut self, name: &str, value: &str) -> bool {
        let before = *self;
        match name {
            "client_encoding" => self.encoding = Encoding::of_client_encoding(value),
            "standard_conforming_strings" => self.standard_conforming_strings = value == "on",
            _ => {}
        }
        *self != before
    }

    /// Why a text is not to be read.
    fn refuses(&self, text: &[u8]) -> Option<Rule> {
        if text.len() > self.max_len {
            Some(Rule::TooLong)
        } else if self.encoding == Encoding::Unsafe && !text.is_ascii() {
            Some(Rule::UnsafeEncoding)
        } else {
            None
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            encoding: Encoding::Safe,
            standard_conforming_strings: true,
            max_len: Self::DEFAULT_MAX_LEN,
        }
    }
}

/// Whether messages that change settings may change how the texts behind them are read.
#[must_use]
pub fn changes_reading(messages: &[u8]) -> bool {
    // Parts of settings' names, and what begins a name that is written in escapes.
    const PARTS: [&[u8]; 3] = [b"conforming", b"encoding", b"u&"];
    // SET NAMES and RESET ALL.
    const WORDS: [&[u8]; 2] = [b"names", b"all"];
    let places = |word: &'static [u8]| {
        let places = messages.windows(word.len()).enumerate();
        places.filter(move |(_, place)| place.eq_ignore_ascii_case(word))
    };
    let continues = |at: Option<usize>| {
        at.and_then(|at| messages.get(at))
            .copied()
            .is_some_and(is_of_word)
    };
    let stands_alone = |word: &'static [u8]| {
        places(word).any(|(at, _)| !continues(at.checked_sub(1)) && !continues(Some(at + word.len())))
    };
    PARTS.into_iter().any(|part| places(part).next().is_some()) || WORDS.into_iter().any(stands_alone)
}

/// Whether a byte may stand in the middle of a word (`ident_cont` in PostgreSQL's scan.l).
const fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || !byte.is_ascii()
}

/// Whether messages that change what names stand for may change how constants are read as well, as far as their words tell: it
/// may be found where it is not so.
#[must_use]
pub fn may_change_constants(messages: &[u8]) -> bool {
    // RESET ALL, and names that are written in escapes.
    const OTHERS: [&[u8]; 2] = [b"all", b"u&"];
    let readings = READINGS.chunk_by(|one, next| one.sign == next.sign);
    let signs = readings.map(|readings| readings[0].sign.as_bytes());
    let says = |sign: &[u8]| {
        let mut places = messages.windows(sign.len());
        places.any(|place| place.eq_ignore_ascii_case(sign))
    };
    signs.chain(OTHERS).any(says)
        || SETTERS
            .iter()
            .any(|setter| sets_what_nobody_reads(messages, setter))
}

/// What sets a setting whose name may be any expression.
const SETTERS: [&[u8]; 2] = [b"set_config", b"pg_settings"];

/// Whether a setter is there without a constant alone as its first argument.
fn sets_what_nobody_reads(messages: &[u8], setter: &[u8]) -> bool {
    let mut places = messages.windows(setter.len()).enumerate();
    places.any(|(at, place)| {
        let behind = messages[at + setter.len()..].trim_ascii_start();
        let argument = behind.strip_prefix(b"(").map(<[u8]>::trim_ascii_start);
        place.eq_ignore_ascii_case(setter) && !argument.is_some_and(is_constant_alone)
    })
}

/// Whether a list of arguments begins with a constant that has no escape in it.
fn is_constant_alone(arguments: &[u8]) -> bool {
    let Some(inner) = arguments.strip_prefix(b"'") else {
        return false;
    };
    let Some(end) = inner.iter().position(|byte| matches!(byte, b'\'' | b'\\')) else {
        return false;
    };
    inner[end] == b'\'' && inner[end + 1..].trim_ascii_start().starts_with(b",")
}

/// The class of a message's text: what stands in Query or Parse before the terminating zero byte.
#[must_use]
pub fn classify(text: &[u8], settings: &Settings, catalog: &FunctionCatalog) -> Class {
    match settings.refuses(text) {
        Some(rule) => Class::unread(rule),
        None => {
            Walk::new(text, settings.standard_conforming_strings, catalog)
                .run()
                .0
        }
    }
}
