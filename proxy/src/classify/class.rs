//! What the classifier says of a message: [`Class`] and the words it is made of.

use std::fmt;

use super::lexer::{Lexer, Token, TokenKind};

/// What a message needs of the node that runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Proved to read only: any node may run it.
    Read,
    /// It writes, must be answered by the primary, or could not be proved to read.
    Write,
}

impl Access {
    /// The value of a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

macro_rules! rules {
    ($($(#[$meta:meta])* $variant:ident, $label:literal, $sentence:literal;)*) => {
        /// Why a message has its [`Access`]. For a write it is the first reason met.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rule {
            $(#[doc = $sentence] $(#[$meta])* $variant,)*
        }

        impl Rule {
            /// Every rule, for metrics that shall exist before they count.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The value of a metric's label.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// The reason as an English sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

rules! {
    Empty, "empty", "The text holds no statement.";
    ReadsOnly, "reads_only", "Every part of the statement is proved to read.";
    ShowsSetting, "shows_setting", "The statement shows a setting that is the same on every node.";
    OpensReadOnlyTransaction, "opens_read_only_transaction", "The statement opens a READ ONLY transaction block.";
    /// Outside a block it answers with a warning or an error on any node; inside one it goes where the block is.
    EndsTransaction, "ends_transaction", "The statement ends a transaction block or handles a savepoint and writes nothing itself.";

    OtherStatement, "other_statement", "Statements of this kind are not known to read only.";
    DataChangingKeyword, "data_changing_keyword", "The statement holds INSERT, UPDATE, DELETE or MERGE.";
    IntoClause, "into_clause", "INTO creates a table.";
    LockingClause, "locking_clause", "FOR UPDATE and FOR SHARE lock rows, which a standby cannot.";
    VolatileFunction, "volatile_function", "The statement calls a volatile function.";
    UnknownFunction, "unknown_function", "The statement calls a function that the catalogue does not know.";
    PrimaryFunction, "primary_function", "The function answers for its node or session, so the primary has to be asked.";
    RunsText, "runs_text", "The function runs SQL that it is given as text.";
    VolatileRelation, "volatile_relation", "The name is that of a view, type or row policy that calls a volatile function.";
    PrimaryRelation, "primary_relation", "The relation differs from node to node or cannot be read on a standby.";
    VolatileOperator, "volatile_operator", "The statement uses an operator with a volatile function behind it.";
    VolatileImplicit, "volatile_implicit", "The database has a volatile function behind an implicit cast or a standard operator: no query can be proved to read.";
    TemporaryObject, "temporary_object", "The statement names the session's temporary schema.";
    PrimarySetting, "primary_setting", "The setting tells the node's role, so the primary has to be asked.";
    ChangesSetting, "changes_setting", "The statement changes a setting.";
    SetsTransaction, "sets_transaction", "The statement sets modes of its transaction.";
    SetsReadOnlyTransaction, "sets_read_only_transaction", "The statement makes its transaction READ ONLY: a block in which nothing has run moves to a standby.";
    SetsReadWriteTransaction, "sets_read_write_transaction", "The statement makes its transaction READ WRITE.";
    SetsSerializableTransaction, "sets_serializable_transaction", "The statement makes its transaction SERIALIZABLE, which a standby cannot run.";
    OpensTransaction, "opens_transaction", "The statement opens a transaction block that is READ ONLY only if its session's are.";
    OpensReadWriteTransaction, "opens_read_write_transaction", "The statement opens a READ WRITE transaction block.";
    OpensSerializableTransaction, "opens_serializable_transaction", "A standby cannot run SERIALIZABLE transactions.";
    CopiesIn, "copies_in", "Only COPY … TO STDOUT reads.";
    Unrecognised, "unrecognised", "The statement is not written as its kind is known to be.";
    EscapedName, "escaped_name", "A name is written with U& escapes and is not decoded.";
    UnexpectedCharacter, "unexpected_character", "A character begins no token.";
    Unterminated, "unterminated", "A string, quoted name or comment does not end.";
    Unbalanced, "unbalanced", "Parentheses do not match.";
    NestedTooDeep, "nested_too_deep", "Parentheses are nested deeper than is followed.";
    TooLong, "too_long", "The text is longer than routing.statement_size_max and was not read.";
    UnsafeEncoding, "unsafe_encoding", "The client's encoding can hide ASCII characters in others, so the text was not read.";
    LearnedWrite, "learned_write", "A standby refused the same statement as a write before.";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes `start..end` of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: std::num::NonZeroU32,
}

impl Span {
    /// The span of a token that is not empty; `None` beyond 4 GiB.
    pub(super) fn new(start: usize, end: usize) -> Option<Self> {
        let end = std::num::NonZeroU32::new(u32::try_from(end).ok()?)?;
        Some(Self {
            start: u32::try_from(start).ok()?,
            end,
        })
    }

    /// The bytes of `text` that it covers; empty if `text` is another one and shorter.
    #[must_use]
    pub fn bytes(self, text: &[u8]) -> &[u8] {
        text.get(self.start as usize..self.end.get() as usize)
            .unwrap_or_default()
    }
}

/// A client's wish, from a comment `/* halyard.route: primary */` in front of a message or behind it.
///
/// In front stand what people write and what Hibernate writes; ORMs that only append (Rails, Django's and SQLAlchemy's
/// sqlcommenter) write behind. A comment within a statement is none, so no text between two tokens can become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteHint {
    /// Run it on the primary.
    Primary,
    /// Run it on a standby, proved or not.
    Replica,
    /// Decide as if there were no setting.
    Auto,
}

impl RouteHint {
    /// The hint of this name, in any case.
    #[must_use]
    pub fn parse(name: &[u8]) -> Option<Self> {
        [
            (b"primary" as &[u8], Self::Primary),
            (b"replica", Self::Replica),
            (b"auto", Self::Auto),
        ]
        .into_iter()
        .find_map(|(known, hint)| known.eq_ignore_ascii_case(name).then_some(hint))
    }

    /// The hint that a comment (with its delimiters) consists of.
    pub(super) fn of_comment(comment: &[u8]) -> Option<Self> {
        let inner = comment.strip_prefix(b"/*")?.strip_suffix(b"*/")?.trim_ascii();
        let (name, value) = inner.split_at(inner.iter().position(|&byte| byte == b':')?);
        let named = name.trim_ascii_end().eq_ignore_ascii_case(b"halyard.route");
        named.then(|| Self::parse(value[1..].trim_ascii()))?
    }
}

/// The hint behind a text's last statement, looked for while its comments pass by.
///
/// Only comments, semicolons and white space may follow it: of several the last counts, as of several in front the
/// first does, so the outermost wins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TrailingHint(Option<(RouteHint, usize)>);

impl TrailingHint {
    /// Takes in a comment that is not in front of everything.
    #[inline(never)]
    pub(super) fn pass(&mut self, text: &[u8], comment: Token) {
        if let Some(hint) = RouteHint::of_comment(comment.bytes(text)) {
            self.0 = Some((hint, comment.end));
        }
    }

    /// The hint, once the text is at its end.
    pub(super) fn found(self, text: &[u8]) -> Option<RouteHint> {
        let (hint, end) = self.0?;
        let nothing_follows = Lexer::new(&text[end..], true)
            .all(|token| matches!(token.kind, TokenKind::Comment | TokenKind::Semicolon));
        nothing_follows.then_some(hint)
    }
}

/// `READ ONLY` or `READ WRITE`, where a statement says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    /// Not said: the session's `default_transaction_read_only` decides.
    #[default]
    Unspecified,
    /// `READ ONLY`.
    ReadOnly,
    /// `READ WRITE`; also when both are said.
    ReadWrite,
}

/// `ISOLATION LEVEL …`, where a statement says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Not said: the session's `default_transaction_isolation` decides.
    #[default]
    Unspecified,
    /// `READ UNCOMMITTED`, which PostgreSQL treats as `READ COMMITTED`.
    ReadUncommitted,
    /// `READ COMMITTED`.
    ReadCommitted,
    /// `REPEATABLE READ`.
    RepeatableRead,
    /// `SERIALIZABLE`, which a standby refuses.
    Serializable,
}

/// The modes of BEGIN, START TRANSACTION and SET TRANSACTION.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionModes {
    /// `READ ONLY` or `READ WRITE`.
    pub access: AccessMode,
    /// The isolation level.
    pub isolation: Isolation,
}

/// As in BEGIN, without what is not said.
impl fmt::Display for TransactionModes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let isolation = match self.isolation {
            Isolation::Unspecified => "",
            Isolation::ReadUncommitted => "ISOLATION LEVEL READ UNCOMMITTED",
            Isolation::ReadCommitted => "ISOLATION LEVEL READ COMMITTED",
            Isolation::RepeatableRead => "ISOLATION LEVEL REPEATABLE READ",
            Isolation::Serializable => "ISOLATION LEVEL SERIALIZABLE",
        };
        let access = match self.access {
            AccessMode::Unspecified => "",
            AccessMode::ReadOnly => "READ ONLY",
            AccessMode::ReadWrite => "READ WRITE",
        };
        let between = if isolation.is_empty() || access.is_empty() {
            ""
        } else {
            " "
        };
        write!(f, "{isolation}{between}{access}")
    }
}

/// How a message takes part in transaction control: its first such statement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransactionControl {
    /// It holds no such statement.
    #[default]
    None,
    /// BEGIN or START TRANSACTION.
    Begin(TransactionModes),
    /// COMMIT or END; `true` with AND CHAIN, which opens a block with the same modes at once.
    Commit(bool),
    /// ROLLBACK or ABORT; `true` with AND CHAIN.
    Rollback(bool),
    /// SAVEPOINT.
    Savepoint,
    /// RELEASE SAVEPOINT.
    Release,
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo,
    /// PREPARE TRANSACTION: ends the block, which lives on without a session.
    PrepareTransaction,
    /// COMMIT PREPARED.
    CommitPrepared,
    /// ROLLBACK PREPARED.
    RollbackPrepared,
    /// SET TRANSACTION, or SET of one of the `transaction_*` settings (then without modes).
    SetTransaction(TransactionModes),
}

macro_rules! session_effects {
    ($($name:ident = $bit:literal, $sentence:literal;)*) => {
        impl SessionEffects {
            $(#[doc = $sentence] pub const $name: Self = Self(1 << $bit);)*
            const ALL: &[(&str, Self, &str)] = &[$((stringify!($name), Self::$name, $sentence),)*];
        }
    };
}

/// A set of what a message leaves behind in its session, or needs from it. The sum over all statements of the message.
///
/// It is read off the text, and of what the text names off the catalogue. What `DO`, `CALL` and code that nobody has
/// read can do unseen is [`SessionEffects::OPAQUE`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionEffects(u32);

session_effects! {
    SETTING = 0, "Changes settings for the session: SET, RESET, SET SESSION CHARACTERISTICS, set_config(…, false).";
    HALYARD_SETTING = 1, "Sets, resets or shows a setting of Halyard's own.";
    LISTEN = 2, "LISTEN: the session hears a channel.";
    UNLISTEN = 3, "UNLISTEN: the session hears a channel no longer.";
    PREPARE = 4, "PREPARE, the SQL statement: the session has a prepared statement.";
    EXECUTE = 5, "EXECUTE, the SQL statement: needs what PREPARE left.";
    DEALLOCATE = 6, "DEALLOCATE: a prepared statement is gone.";
    HOLD_CURSOR = 7, "DECLARE … WITH HOLD: the session has a cursor that outlives the transaction.";
    CURSOR = 8, "FETCH, MOVE or CLOSE: needs a cursor of the session.";
    TEMPORARY = 9, "Creates a temporary object that outlives the transaction, or names the temporary schema.";
    ADVISORY_LOCK = 10, "Takes a session-level advisory lock.";
    ADVISORY_UNLOCK = 11, "Gives session-level advisory locks back.";
    SEQUENCE = 12, "currval or lastval: needs the backend that called nextval.";
    LOAD = 13, "LOAD: the backend keeps the library.";
    DISCARD_ALL = 14, "DISCARD ALL: nothing of the session is left.";
    DISCARD_PLANS = 15, "DISCARD PLANS: the backend plans anew.";
    DISCARD_SEQUENCES = 16, "DISCARD SEQUENCES: currval and lastval are forgotten.";
    DISCARD_TEMPORARY = 17, "DISCARD TEMP: temporary objects are gone.";
    UNKNOWN = 18, "Knowledge ends: the text was not read whole, or it calls what is known to keep state that nothing can follow.";
    OPAQUE = 19, "Runs code that nobody has read: DO, CALL, or what the catalogue does not vouch for, named or behind a name. It may change settings or take locks; whoever lends the backend on has to cleanse it first.";
    NOTIFY = 20, "NOTIFY or pg_notify: its own session may be among those that listen.";
    LISTENING = 21, "pg_listening_channels: needs the backend that listens.";
    NAMING = 22, "Changes what names and constants in texts stand for, for the session or for the transaction alone: search_path, the role, temporary objects, DateStyle and the like.";
    DEALLOCATE_ALL = 23, "DEALLOCATE ALL: no prepared statement is left.";
    LOCAL_DEFAULT = 24, "SET LOCAL … TO DEFAULT: until the transaction ends a setting is what it was when the session began.";
    SHARED = 25, "Takes an advisory lock until the end of the transaction, or a transaction ID: the primary's, which all sessions share.";
}

impl SessionEffects {
    /// No effect.
    pub const NONE: Self = Self(0);

    /// Whether there is no effect.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether any effect of `other` is in this set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether all effects of `other` are in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The set as bits, 26 of them at most.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set of these bits.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The effects of this set that are in `other` too.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The effects of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The names of the effects in the set, as logs and SHOW commands spell them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.each().map(|(name, _)| name)
    }

    /// The effects in the set: the name of each, and an English sentence about it.
    pub fn each(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        Self::ALL
            .iter()
            .filter(move |(_, effect, _)| self.contains(*effect))
            .map(|(name, _, sentence)| (*name, *sentence))
    }
}

impl fmt::Debug for SessionEffects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// What a message is: where it may run and what it does to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Where it may run, before hints, policy and session have their say.
    pub access: Access,
    /// Why.
    pub rule: Rule,
    /// The wish of a comment in front of the message or behind it. It is reported, not obeyed: `access` is what it would be without it.
    pub hint: Option<RouteHint>,
    /// Whether it may change what a [`FunctionCatalog`](super::FunctionCatalog) holds (CREATE, ALTER, DROP …).
    pub ddl: bool,
    /// Whether its class follows from its tokens without the constants, so that a cache may keep it.
    pub cacheable: bool,
    /// Number of statements, at most 65,535.
    pub statements: u16,
    /// Its part in transaction control.
    pub transaction: TransactionControl,
    /// What it does to its session.
    pub session: SessionEffects,
    /// The token that made it a write. `None` for reads, for texts not read, and for a class out of a cache: the
    /// offsets were another text's.
    pub at: Option<Span>,
}

impl Class {
    /// The class of a text that was not read, or not to its end.
    pub(super) const fn unread(rule: Rule) -> Self {
        Self {
            access: Access::Write,
            rule,
            session: SessionEffects::UNKNOWN,
            cacheable: false,
            ..Self::empty()
        }
    }

    /// The class of a text without a statement.
    pub(super) const fn empty() -> Self {
        Self {
            access: Access::Read,
            rule: Rule::Empty,
            hint: None,
            ddl: false,
            cacheable: true,
            statements: 0,
            transaction: TransactionControl::None,
            session: SessionEffects::NONE,
            at: None,
        }
    }

    /// Whether every node may run it.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        matches!(self.access, Access::Read)
    }

    /// Which nodes may run it when its hint is obeyed.
    #[must_use]
    pub const fn hinted_access(&self) -> Access {
        match self.hint {
            Some(RouteHint::Primary) => Access::Write,
            Some(RouteHint::Replica) => Access::Read,
            Some(RouteHint::Auto) | None => self.access,
        }
    }

    /// The class of this message and `other` sent together (a pipeline up to its Sync): the strictest access wins,
    /// effects add up, the first transaction control stays.
    #[must_use]
    pub fn and_then(self, other: Self) -> Self {
        let decides = if self.access >= other.access && self.rule != Rule::Empty {
            self
        } else {
            other
        };
        Self {
            access: decides.access,
            rule: decides.rule,
            hint: self.hint.or(other.hint),
            ddl: self.ddl || other.ddl,
            cacheable: false,
            statements: self.statements.saturating_add(other.statements),
            transaction: match self.transaction {
                TransactionControl::None => other.transaction,
                first => first,
            },
            session: self.session.union(other.session),
            at: None,
        }
    }
}
