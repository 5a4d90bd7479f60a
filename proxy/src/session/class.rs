//! A request's class as far as a session must know it, small enough to travel with every statement.

use crate::classify::{Access, Class, Rule, SessionEffects, TransactionControl};

/// What a request, a batch or a prepared statement needs and does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatementClass {
    /// Which nodes can run it, hints obeyed.
    pub access: Access,
    /// Why, for metrics and explanations.
    pub rule: Rule,
    /// What it leaves behind in its session.
    pub effects: SessionEffects,
    /// Its part in transaction control.
    pub control: Control,
    /// Whether it may be sent again when its answer was lost: it is proved to read, or only opens a transaction.
    /// A hint decides where a statement runs, and not this.
    pub repeatable: bool,
    /// Whether the catalogue may have changed with it.
    pub ddl: bool,
    /// Whether it says where it wants to go, so that the session's setting does not matter.
    pub hinted: bool,
}

/// A request's part in transaction control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Control {
    /// None.
    None,
    /// It opens a transaction block.
    Begins,
    /// It can end a transaction only by rolling back.
    RollsBack,
    /// It may commit a transaction block.
    MayCommit,
}

const ACCESS_BIT: u64 = 1;
const DDL_BIT: u64 = 1 << 1;
const KNOWN_BIT: u64 = 1 << 2;
const REPEATABLE_BIT: u64 = 1 << 3;
const CONTROL_SHIFT: u32 = 4;
const RULE_SHIFT: u32 = 6;
const EFFECTS_SHIFT: u32 = 14;
const EFFECTS_MASK: u64 = (1 << 26) - 1;
const HINTED_BIT: u64 = 1 << 40;
/// Bits of a packed class.
pub(super) const PACKED_BITS: u32 = 41;

impl StatementClass {
    /// Nothing asked for yet: the neutral element of [`StatementClass::and`].
    pub const NOTHING: Self = Self {
        access: Access::Read,
        rule: Rule::Empty,
        effects: SessionEffects::NONE,
        control: Control::None,
        repeatable: true,
        ddl: false,
        hinted: false,
    };

    /// What nobody has read: the primary has to run it, and nobody knows what it leaves behind.
    pub const UNREAD: Self = Self {
        access: Access::Write,
        rule: Rule::TooLong,
        effects: SessionEffects::UNKNOWN,
        control: Control::MayCommit,
        repeatable: false,
        ddl: false,
        hinted: false,
    };

    /// A FunctionCall message: the function is known by number only, and so is what it leaves behind.
    pub const FUNCTION_CALL: Self = Self {
        rule: Rule::UnknownFunction,
        ..Self::UNREAD
    };

    /// Takes from the classifier's verdict what the session needs.
    pub fn of(class: &Class) -> Self {
        let control = match class.transaction {
            TransactionControl::None => Control::None,
            TransactionControl::Rollback(_) | TransactionControl::RollbackTo if class.statements <= 1 => {
                Control::RollsBack
            }
            TransactionControl::Begin(_) if class.statements <= 1 => Control::Begins,
            TransactionControl::Savepoint
            | TransactionControl::Release
            | TransactionControl::SetTransaction(_)
                if class.statements <= 1 =>
            {
                Control::None
            }
            _ => Control::MayCommit,
        };
        let repeatable = class.is_read() || control == Control::Begins;
        Self {
            access: class.hinted_access(),
            rule: class.rule,
            effects: class.session,
            control,
            repeatable,
            ddl: class.ddl,
            hinted: class.hint.is_some(),
        }
    }

    /// Both, sent together.
    #[inline]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        // A savepoint says more of what is sent together than a read that runs where it does.
        let tells_more = self.access > other.access || other.rule != Rule::EndsTransaction;
        let decides = if self.access >= other.access && self.rule != Rule::Empty && tells_more {
            self
        } else {
            other
        };
        Self {
            access: decides.access,
            rule: decides.rule,
            effects: self.effects.union(other.effects),
            control: self.control.max(other.control),
            repeatable: self.repeatable && other.repeatable,
            ddl: self.ddl || other.ddl,
            hinted: self.hinted || other.hinted,
        }
    }

    /// As a number of [`PACKED_BITS`] bits that is never 0.
    pub fn pack(self) -> u64 {
        KNOWN_BIT
            | if self.access == Access::Write {
                ACCESS_BIT
            } else {
                0
            }
            | if self.ddl { DDL_BIT } else { 0 }
            | if self.repeatable { REPEATABLE_BIT } else { 0 }
            | if self.hinted { HINTED_BIT } else { 0 }
            | (self.control as u64) << CONTROL_SHIFT
            | (self.rule as u64) << RULE_SHIFT
            | u64::from(self.effects.bits()) << EFFECTS_SHIFT
    }

    /// The class that was packed.
    pub fn unpack(packed: u64) -> Self {
        Self {
            access: if packed & ACCESS_BIT == 0 {
                Access::Read
            } else {
                Access::Write
            },
            rule: Rule::ALL[(packed >> RULE_SHIFT) as usize & 0xff],
            effects: SessionEffects::from_bits(
                u32::try_from(packed >> EFFECTS_SHIFT & EFFECTS_MASK).unwrap_or_default(),
            ),
            control: match packed >> CONTROL_SHIFT & 3 {
                0 => Control::None,
                1 => Control::Begins,
                2 => Control::RollsBack,
                _ => Control::MayCommit,
            },
            repeatable: packed & REPEATABLE_BIT != 0,
            ddl: packed & DDL_BIT != 0,
            hinted: packed & HINTED_BIT != 0,
        }
    }

    /// Whether it leaves something in its session that only the primary can keep for it.
    #[inline]
    pub fn keeps_state(self) -> bool {
        self.effects.intersects(KEPT.union(SessionEffects::LISTEN))
    }

    /// What it may leave in its session, as far as that has to be looked after when its turn ends.
    ///
    /// What is created may be temporary without saying so: where the temporary schema comes first in `search_path` is the
    /// server's to know, which has it from the client, a role, a database or a transaction's SET.
    ///
    /// `pinned`: whether the session keeps its backend, so that what it gives back counts as well.
    #[inline]
    pub fn traces(self, pinned: bool) -> SessionEffects {
        let objects = if self.ddl {
            SessionEffects::DISCARD_TEMPORARY
        } else {
            SessionEffects::NONE
        };
        let counted = if pinned { TRACES.union(GIVING) } else { TRACES };
        self.effects.common(counted).union(objects)
    }

    /// Whether it asks for what was drawn from a sequence in its session.
    #[inline]
    pub fn asks_for_sequence_values(self) -> bool {
        self.effects.intersects(SessionEffects::SEQUENCE)
    }

    /// Whether it may have the server forget what was drawn in its session.
    #[inline]
    pub fn discards_sequences(self) -> bool {
        let discards = SessionEffects::DISCARD_ALL.union(SessionEffects::DISCARD_SEQUENCES);
        self.effects.intersects(discards)
    }

    /// Whether it names a setting of Halyard's own.
    #[inline]
    pub fn names_own_setting(self) -> bool {
        self.effects.intersects(SessionEffects::HALYARD_SETTING)
    }

    /// Whether it listens to channels.
    pub fn listens(self) -> bool {
        self.effects.intersects(SessionEffects::LISTEN)
    }

    /// Whether the session may listen to other channels after it.
    pub fn changes_listening(self) -> bool {
        const CHANGES: SessionEffects = SessionEffects::LISTEN
            .union(SessionEffects::UNLISTEN)
            .union(SessionEffects::DISCARD_ALL);
        self.effects.intersects(CHANGES)
    }

    /// Whether it asks what the session listens to.
    pub fn asks_listening(self) -> bool {
        self.effects.intersects(SessionEffects::LISTENING)
    }

    /// Whether it notifies, as far as its text tells.
    pub fn notifies(self) -> bool {
        self.effects.intersects(SessionEffects::NOTIFY)
    }

    /// Whether a READ ONLY transaction can do it on the primary alone, though it changes no data: a standby refuses it, or
    /// does it for its own sessions and for no others, or what it leaves behind is of no use there. `listens`: whether the session listens to anything.
    #[inline]
    pub fn is_for_primary(self, listens: bool) -> bool {
        const THERE: SessionEffects = SessionEffects::NOTIFY
            .union(SessionEffects::SEQUENCE)
            .union(SessionEffects::PREPARE)
            .union(SessionEffects::HOLD_CURSOR)
            .union(SessionEffects::LOAD)
            .union(LOCKS);
        self.effects.intersects(THERE) || (listens && self.asks_listening())
    }

    /// Whether it takes what keeps out sessions of the same node alone.
    pub fn locks(self) -> bool {
        self.effects.intersects(LOCKS)
    }

    /// Whether all of the client's prepared statements are gone after it.
    pub fn drops_all_statements(self) -> bool {
        self.effects.intersects(SessionEffects::DISCARD_ALL)
    }

    /// Whether names in texts may stand for something else behind it than before, for its own session at least.
    #[inline]
    pub fn changes_names(self) -> bool {
        self.ddl || self.effects.intersects(NAMING)
    }

    /// Whether it may change objects, temporary ones included, and not only settings.
    pub fn changes_objects(self) -> bool {
        self.ddl || self.effects.intersects(OBJECTS)
    }

    /// Whether it runs what a PREPARE of its client said.
    #[inline]
    pub fn executes(self) -> bool {
        self.effects.intersects(SessionEffects::EXECUTE)
    }

    /// Whether it ran code that nobody has read, so that its backend has to be cleansed before it is lent on.
    pub fn is_opaque(self) -> bool {
        self.effects.intersects(OPAQUE)
    }

    /// Whether the backend's prepared statements may be gone after it.
    pub fn may_drop_statements(self) -> bool {
        self.effects
            .intersects(SessionEffects::DEALLOCATE_ALL.union(SessionEffects::DISCARD_ALL))
    }

    /// Whether it handles prepared statements by SQL, so that it may name those of the protocol.
    #[inline]
    pub fn names_statements(self) -> bool {
        self.effects.intersects(NAMED.union(SessionEffects::EXECUTE))
    }

    /// Whether it ends all prepared statements by DEALLOCATE ALL.
    pub fn deallocates_all(self) -> bool {
        self.effects.intersects(SessionEffects::DEALLOCATE_ALL)
    }
}

/// Why a session keeps its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinReason {
    /// It changed a setting.
    Setting,
    /// It prepared a statement by SQL.
    SqlPrepare,
    /// It declared a cursor WITH HOLD.
    HoldCursor,
    /// It made a temporary object.
    TemporaryObject,
    /// It took a session-level advisory lock.
    AdvisoryLock,
    /// It asked for a sequence's last value.
    SequenceValue,
    /// It loaded a library.
    Load,
    /// It sent a statement that is too long to be read.
    Unread,
    /// The pool is in session mode.
    SessionPooling,
}

impl PinReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Setting,
        Self::SqlPrepare,
        Self::HoldCursor,
        Self::TemporaryObject,
        Self::AdvisoryLock,
        Self::SequenceValue,
        Self::Load,
        Self::Unread,
        Self::SessionPooling,
    ];

    /// As metrics and SHOW commands spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::SqlPrepare => "sql_prepare",
            Self::HoldCursor => "hold_cursor",
            Self::TemporaryObject => "temporary_object",
            Self::AdvisoryLock => "advisory_lock",
            Self::SequenceValue => "sequence_value",
            Self::Load => "load",
            Self::Unread => "unread",
            Self::SessionPooling => "session_pooling",
        }
    }

    /// Why a session that did this keeps its backend while nobody knows what is left of it.
    pub fn of(traces: SessionEffects) -> Self {
        const REASONS: &[(SessionEffects, PinReason)] = &[
            (SessionEffects::SETTING, PinReason::Setting),
            (SessionEffects::PREPARE, PinReason::SqlPrepare),
            (SessionEffects::HOLD_CURSOR, PinReason::HoldCursor),
            (SessionEffects::TEMPORARY, PinReason::TemporaryObject),
            (SessionEffects::ADVISORY_LOCK, PinReason::AdvisoryLock),
            (SessionEffects::SEQUENCE, PinReason::SequenceValue),
            (SessionEffects::LOAD, PinReason::Load),
        ];
        REASONS
            .iter()
            .find(|(effect, _)| traces.intersects(*effect))
            .map_or(Self::Unread, |&(_, reason)| reason)
    }

    /// What is lost with the backend, as an error's detail says it.
    pub fn lost(self) -> &'static str {
        match self {
            Self::Setting => "the session's changed settings",
            Self::SqlPrepare => "the session's SQL-level prepared statements",
            Self::HoldCursor => "the session's cursors WITH HOLD",
            Self::TemporaryObject => "the session's temporary objects",
            Self::AdvisoryLock => "the session's advisory locks",
            Self::SequenceValue => "the session's sequence values",
            Self::Load => "the session's loaded libraries",
            Self::Unread | Self::SessionPooling => "the session's state",
        }
    }
}

/// Effects that leave something in the session. LISTEN is followed apart from them; see `relay/listen.rs`.
const KEPT: SessionEffects = SessionEffects::SETTING
    .union(SessionEffects::PREPARE)
    .union(SessionEffects::HOLD_CURSOR)
    .union(SessionEffects::TEMPORARY)
    .union(SessionEffects::ADVISORY_LOCK)
    .union(SessionEffects::SEQUENCE)
    .union(SessionEffects::LOAD)
    .union(SessionEffects::UNKNOWN);

/// Effects after which a session is not what it was, as far as a text tells.
pub(crate) const CHANGING: SessionEffects = KEPT.union(SessionEffects::DISCARD_ALL);

/// Effects after which a session is examined, or a setting has to be given its value from startup.
const TRACES: SessionEffects = KEPT
    .union(SessionEffects::DISCARD_ALL)
    .union(SessionEffects::OPAQUE)
    .union(SessionEffects::LOCAL_DEFAULT);

/// Effects that may take away what a session keeps its backend for.
const GIVING: SessionEffects = SessionEffects::DEALLOCATE
    .union(SessionEffects::CURSOR)
    .union(SessionEffects::ADVISORY_UNLOCK)
    .union(SessionEffects::DISCARD_SEQUENCES)
    .union(SessionEffects::DISCARD_TEMPORARY);

/// What a session keeps others out by, or what is counted for all of them.
const LOCKS: SessionEffects = SessionEffects::ADVISORY_LOCK.union(SessionEffects::SHARED);

/// Effects after which other prepared statements may have names.
pub(crate) const NAMED: SessionEffects = SessionEffects::PREPARE.union(SessionEffects::DEALLOCATE);

/// Effects after which a name in a text may stand for something else.
const NAMING: SessionEffects = SessionEffects::NAMING
    .union(SessionEffects::TEMPORARY)
    .union(SessionEffects::DISCARD_TEMPORARY)
    .union(SessionEffects::DISCARD_ALL);

/// Those of them that are about temporary objects, or about everything.
const OBJECTS: SessionEffects = SessionEffects::TEMPORARY
    .union(SessionEffects::DISCARD_TEMPORARY)
    .union(SessionEffects::DISCARD_ALL);

/// Effects that nobody can tell from the text. EXECUTE runs what a PREPARE said at another time.
pub(crate) const OPAQUE: SessionEffects = SessionEffects::OPAQUE
    .union(SessionEffects::UNKNOWN)
    .union(SessionEffects::EXECUTE);

const _: () = assert!(Rule::ALL.len() <= 256, "a rule fits into a packed class");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_survives_packing() {
        for &rule in Rule::ALL {
            let class = StatementClass {
                access: Access::Write,
                rule,
                effects: SessionEffects::UNKNOWN.union(SessionEffects::SETTING),
                control: Control::MayCommit,
                repeatable: true,
                ddl: true,
                hinted: true,
            };
            assert_eq!(StatementClass::unpack(class.pack()), class);
            assert!(class.pack() < 1 << PACKED_BITS);
        }
        assert_eq!(
            StatementClass::unpack(StatementClass::NOTHING.pack()),
            StatementClass::NOTHING
        );
    }
}
