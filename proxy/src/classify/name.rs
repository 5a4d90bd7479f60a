//! What a name in a statement means: a marked relation, a call, or neither.

use super::builtins::{self, Special};
use super::catalog::{Function, Known, Mark};
use super::class::{Access, Rule, SessionEffects};
use super::lexer::{Token, TokenKind};
use super::setting::own_name;
use super::statement::{changes_names, unquoted};
use super::walk::{Observer, Walk};
use super::word::{OLDEST, Paren, Word};

impl<'a, O: Observer> Walk<'a, O> {
    /// An identifier: a name that may be marked, and a function if a parenthesis follows.
    #[inline]
    pub(super) fn see_name(&mut self, token: Token, paren: Paren, word: Word) {
        let written = token.bytes(self.text);
        if self.next_kind() != Some(TokenKind::Open) {
            return self.see_relation(written, self.catalog.relation_of(written), false);
        }
        let known = self.catalog.look_up(written);
        self.see_relation(written, known, true);
        self.see_special(known.special);
        match known.function {
            Function::Volatile => self.refuse(Rule::VolatileFunction),
            Function::Reads => {}
            Function::Unknown if self.is_construct(paren, word) => {}
            Function::Unknown => self.refuse(Rule::UnknownFunction),
        }
    }

    /// The current token names a relation, whatever follows it.
    pub(super) fn see_copied_relation(&mut self) {
        if self.kind() == Some(TokenKind::EscapedName) {
            return self.see_escaped_name();
        }
        let written = self
            .current()
            .map(|token| token.bytes(self.text))
            .unwrap_or_default();
        self.see_relation(written, self.catalog.relation_of(written), false);
    }

    #[inline]
    fn see_relation(&mut self, written: &[u8], known: Known, calls: bool) {
        if known.opaque {
            self.effect(SessionEffects::OPAQUE);
        }
        self.scope.acts |= known.acts;
        match known.mark {
            Mark::None => {}
            Mark::Primary if calls => self.refuse(Rule::PrimaryFunction),
            Mark::Primary => self.refuse(Rule::PrimaryRelation),
            Mark::Volatile => self.refuse(Rule::VolatileRelation),
        }
        // An UPDATE of it sets what its rows say (manual, section 54.24).
        if self.class.access == Access::Write && unquoted(written).eq_ignore_ascii_case(b"pg_settings") {
            self.effect(SessionEffects::SETTING);
            self.effect(SessionEffects::NAMING);
        }
        if names_temporary_schema(written) {
            self.effect(SessionEffects::TEMPORARY);
            self.refuse(Rule::TemporaryObject);
        }
    }

    fn see_special(&mut self, special: Special) {
        match special {
            Special::None => return,
            Special::Primary => return self.refuse(Rule::PrimaryFunction),
            Special::RunsText => return self.refuse(Rule::RunsText),
            Special::CurrentSetting => return self.see_current_setting(),
            // What it does to the session is known where its arguments end.
            Special::SetConfig => {
                self.scope.set_config_next = true;
                self.see_set_config();
                self.see_own_setting();
                return self.refuse(Rule::ChangesSetting);
            }
            Special::AdvisoryLock => self.effect(SessionEffects::ADVISORY_LOCK),
            Special::AdvisoryUnlock => self.effect(SessionEffects::ADVISORY_UNLOCK),
            Special::TransactionLock => self.effect(SessionEffects::SHARED),
            Special::TransactionId => {
                self.effect(SessionEffects::SHARED);
                return self.refuse(Rule::PrimaryFunction);
            }
            Special::Sequence => self.effect(SessionEffects::SEQUENCE),
            Special::Notify => self.effect(SessionEffects::NOTIFY),
            Special::Listening => {
                self.effect(SessionEffects::LISTENING);
                return self.refuse(Rule::PrimaryFunction);
            }
            Special::SessionState => self.effect(SessionEffects::UNKNOWN),
        }
        self.refuse(Rule::VolatileFunction);
    }

    /// A `set_config` whose first argument is not a plain constant may change anything.
    fn see_set_config(&mut self) {
        // What it does hangs on a constant, which a cache's key leaves out.
        self.class.cacheable = false;
        let mut ahead = self.ahead();
        let argument = ahead
            .next()
            .filter(|token| token.kind == TokenKind::String)
            .filter(|_| ahead.next().is_some_and(|token| token.bytes(self.text) == b","));
        let name = argument.and_then(|token| plain_string(token.bytes(self.text)));
        if name.is_none_or(changes_names) {
            self.effect(SessionEffects::NAMING);
        }
    }

    fn see_current_setting(&mut self) {
        // Its answer hangs on a constant, which a cache's key leaves out.
        self.class.cacheable = false;
        let mut ahead = self.ahead();
        let argument = ahead.next().filter(|token| token.kind == TokenKind::String);
        let alone = ahead
            .next()
            .is_some_and(|token| matches!(token.kind, TokenKind::Close | TokenKind::Comma));
        let name = argument
            .filter(|_| alone)
            .and_then(|token| plain_string(token.bytes(self.text)));
        if name.is_none_or(builtins::is_primary_setting) {
            self.refuse(Rule::PrimarySetting);
        }
        self.see_own_setting();
    }

    /// Marks a call whose first argument names a setting of Halyard's own.
    fn see_own_setting(&mut self) {
        self.class.cacheable = false;
        let argument = self
            .ahead()
            .next()
            .filter(|token| token.kind == TokenKind::String);
        let name = argument.and_then(|token| plain_string(token.bytes(self.text)));
        if name.is_some_and(|name| own_name(name).is_some()) {
            self.effect(SessionEffects::HALYARD_SETTING);
        }
    }

    /// The tokens behind the next one, without comments.
    fn ahead(&self) -> impl Iterator<Item = Token> + use<'a, O> {
        self.tokens
            .clone()
            .filter(|token| token.kind != TokenKind::Comment)
    }

    /// Whether the grammar reads the current word and the parenthesis after it as something other than a call. Asked
    /// only for names of which the catalogue knows no function.
    fn is_construct(&self, paren: Paren, word: Word) -> bool {
        let (previous, before_name) = (self.scope.previous, self.scope.before_name);
        // A type with a modifier, qualified or not: `x::pg_catalog.numeric(10, 2)`, `CAST(x AS varchar(20))`. After
        // AS also an alias with the names of its columns.
        if before_name.kind == TokenKind::Cast || before_name.word == Word::As {
            return true;
        }
        match previous.kind {
            TokenKind::Dot => return false,
            // OVER, FILTER, or an alias with the names of its columns: no call follows a closing parenthesis, the
            // exceptions being seen to where it is walked over.
            TokenKind::Close => return true,
            TokenKind::Comma if self.scope.with_lists.innermost() => return true,
            _ => {}
        }
        match (previous.word, paren) {
            (Word::Ordinality, _) => return true,
            (Word::With | Word::Recursive, _) => return self.scope.with_lists.innermost(),
            (_, Paren::Form(version)) => {
                return version <= OLDEST || self.catalog.server_version_num() / 10_000 >= version;
            }
            (_, Paren::AfterOperand) => return previous.ends_operand(),
            (_, Paren::Reserved | Paren::Call) => {}
        }
        match word {
            Word::By => matches!(previous.word, Word::Order | Word::Group | Word::Partition),
            Word::Cube | Word::Rollup => self.scope.grouped,
            Word::Sets => previous.word == Word::Grouping,
            Word::Materialized => matches!(previous.word, Word::As | Word::Not),
            Word::First | Word::Next => previous.word == Word::Fetch,
            Word::Zone => previous.word == Word::Time,
            // `interval '1:02.3' minute to second(2)`: no call follows a constant, nor TO in a query.
            Word::Second => {
                previous.kind == TokenKind::String || matches!(previous.word, Word::To | Word::Interval)
            }
            Word::Varying => matches!(
                previous.word,
                Word::Char | Word::Character | Word::NChar | Word::Bit
            ),
            Word::Operator => self.names_an_operator(),
            _ => false,
        }
    }

    /// Whether the parenthesis that follows holds the qualified name of an operator: `OPERATOR(pg_catalog.~)`.
    fn names_an_operator(&self) -> bool {
        let mut ahead = self.ahead();
        loop {
            match ahead.next().map(|token| token.kind) {
                Some(TokenKind::Operator) => {
                    return ahead.next().is_some_and(|token| token.kind == TokenKind::Close);
                }
                Some(TokenKind::Word | TokenKind::QuotedName) => {
                    if ahead.next().map(|token| token.kind) != Some(TokenKind::Dot) {
                        return false;
                    }
                }
                _ => return false,
            }
        }
    }
}

/// Whether an identifier, as written, is the name of a temporary schema: `pg_temp`, or a backend's own `pg_temp_3`.
fn names_temporary_schema(written: &[u8]) -> bool {
    let name = written.strip_prefix(b"\"").unwrap_or(written);
    name.get(..7)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"pg_temp"))
}

/// What a string constant without any escape in it says.
pub(super) fn plain_string(written: &[u8]) -> Option<&[u8]> {
    let inner = written.strip_prefix(b"'")?.strip_suffix(b"'")?;
    (!inner.iter().any(|&byte| matches!(byte, b'\'' | b'\\'))).then_some(inner)
}
