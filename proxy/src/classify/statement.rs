//! Statement kinds: what each is by its first words, before the general scan walks over the rest.

use super::builtins;
use super::class::{AccessMode, Isolation, Rule, SessionEffects, TransactionControl, TransactionModes};
use super::lexer::TokenKind;
use super::walk::{Observer, Walk};
use super::word::Word;

impl<O: Observer> Walk<'_, O> {
    /// Walks over one statement, up to its semicolon or the end of the text.
    pub(super) fn statement(&mut self) {
        if self.opens.is_some() && !(self.word() == Word::Set && self.next_word() == Word::Transaction) {
            self.open_block();
        }
        match self.word() {
            _ if self.kind() == Some(TokenKind::Open) => self.query(),
            Word::Select | Word::Values | Word::Table | Word::With => self.query(),
            Word::Explain => self.explain(),
            Word::Copy => self.copy(),
            Word::Show => self.show(),
            Word::Begin | Word::Start => self.begin(),
            Word::Commit | Word::End | Word::Rollback | Word::Abort => self.end_transaction(),
            Word::Savepoint | Word::Release => self.savepoint(),
            Word::Set | Word::Reset => self.set(),
            word => self.writing(word),
        }
        self.scan();
    }

    /// SELECT, VALUES, TABLE or WITH, in parentheses or not. The scan judges what is in it.
    fn query(&mut self) {
        self.scope.is_query = true;
        if self.catalog.volatile_implicit() {
            self.refuse(Rule::VolatileImplicit);
        }
        while self.kind() == Some(TokenKind::Open) {
            self.step();
        }
        if self.word().begins_query() {
            self.accept(Rule::ReadsOnly);
        } else if !matches!(
            self.word(),
            Word::Insert | Word::Update | Word::Delete | Word::Merge
        ) {
            self.refuse(Rule::Unrecognised);
        }
    }

    /// EXPLAIN is what the explained statement is, with ANALYZE or without: a plan should come from the node that
    /// would run it.
    fn explain(&mut self) {
        self.advance(Word::Explain);
        if self.kind() == Some(TokenKind::Open)
            && self.next_kind() != Some(TokenKind::Open)
            && !self.next_word().begins_query()
        {
            // Options hold plain words, numbers and strings alone.
            while !self.at_end() && self.kind() != Some(TokenKind::Close) {
                self.advance(Word::Name);
            }
            self.advance(Word::Name);
        } else {
            while self.take(Word::Analyze) || self.take(Word::Analyse) || self.take(Word::Verbose) {}
        }
        self.forget_previous();
        match self.word() {
            word if word.begins_query() => self.query(),
            _ if self.kind() == Some(TokenKind::Open) => self.query(),
            Word::Explain => self.refuse(Rule::Unrecognised),
            word => self.writing(word),
        }
    }

    /// COPY: a read if it copies a query or relation to STDOUT.
    fn copy(&mut self) {
        self.advance(Word::Copy);
        if self.kind() == Some(TokenKind::Open) {
            if self.next_kind() != Some(TokenKind::Open) && !self.next_word().begins_query() {
                self.scan_group();
                self.refuse(Rule::CopiesIn);
                return;
            }
            if self.catalog.volatile_implicit() {
                self.refuse(Rule::VolatileImplicit);
            }
            self.scan_group();
        } else {
            // BINARY is how old clients said WITH BINARY.
            self.copied_relation();
        }
        let to_client = self.take(Word::To) && self.take(Word::StdOut);
        if !to_client {
            self.refuse(Rule::CopiesIn);
            return;
        }
        self.accept(Rule::ReadsOnly);
        // Options: what looks like a call in them is a list of columns.
        while !self.at_end() {
            match self.kind() {
                Some(TokenKind::Unterminated | TokenKind::Unexpected | TokenKind::EscapedName) => self.step(),
                _ => self.advance(Word::Name),
            }
        }
    }

    /// The relation of COPY and its columns, up to TO or FROM.
    fn copied_relation(&mut self) {
        while !self.at_end() && self.kind() != Some(TokenKind::Open) {
            if matches!(self.word(), Word::To | Word::From) {
                return;
            }
            if self.next_kind() == Some(TokenKind::Open) {
                // Not a call: its columns follow. It is still a name that may be marked.
                self.see_copied_relation();
                self.advance(Word::Name);
                while !self.at_end() && self.kind() != Some(TokenKind::Close) {
                    self.advance(Word::Name);
                }
                self.advance(Word::Name);
                return;
            }
            self.step();
        }
    }

    fn show(&mut self) {
        self.advance(Word::Show);
        let Some(setting) = self.current() else {
            return self.refuse(Rule::Unrecognised);
        };
        if self.begins_halyard_name() {
            self.effect(SessionEffects::HALYARD_SETTING);
        }
        if builtins::is_primary_setting(unquoted(setting.bytes(self.text))) {
            self.refuse(Rule::PrimarySetting);
        }
        while matches!(
            self.kind(),
            Some(TokenKind::Word | TokenKind::QuotedName | TokenKind::Dot)
        ) {
            self.advance(Word::Name);
        }
        self.accept(Rule::ShowsSetting);
        self.expect_end();
    }

    // Transactions

    fn control(&mut self, control: TransactionControl) {
        if self.class.transaction == TransactionControl::None {
            self.class.transaction = control;
        }
    }

    fn begin(&mut self) {
        let start = self.current();
        let word = self.word();
        self.advance(word);
        if word == Word::Start && self.word() != Word::Transaction {
            return self.refuse(Rule::Unrecognised);
        }
        let _ = self.take(Word::Work) || self.take(Word::Transaction);
        let modes = self.transaction_modes();
        self.control(TransactionControl::Begin(modes));
        if modes.isolation == Isolation::Serializable {
            self.refuse_at(Rule::OpensSerializableTransaction, start);
        } else {
            match modes.access {
                AccessMode::ReadOnly => {}
                // SET TRANSACTION behind it may say it.
                AccessMode::Unspecified => self.opens = start,
                AccessMode::ReadWrite => self.refuse_at(Rule::OpensReadWriteTransaction, start),
            }
        }
        self.accept(Rule::OpensReadOnlyTransaction);
        self.expect_end();
    }

    /// The modes up to the end of the statement, or to what is none.
    fn transaction_modes(&mut self) -> TransactionModes {
        let mut modes = TransactionModes::default();
        loop {
            match (self.word(), self.next_word()) {
                (Word::Read, Word::Only) if modes.access != AccessMode::ReadWrite => {
                    modes.access = AccessMode::ReadOnly;
                }
                (Word::Read, Word::Only) => {}
                (Word::Read, Word::Write) => modes.access = AccessMode::ReadWrite,
                (Word::Isolation, Word::Level) => {
                    self.advance(Word::Isolation);
                    self.advance(Word::Level);
                    let level = self.isolation_level();
                    // Said twice, the stricter one counts: it is refused on standbys.
                    if modes.isolation != Isolation::Serializable {
                        modes.isolation = level;
                    }
                    if level == Isolation::Serializable {
                        self.advance(Word::Serializable);
                        continue;
                    }
                }
                (Word::Not, Word::Deferrable) => {}
                (Word::Deferrable, _) => {
                    self.advance(Word::Deferrable);
                    continue;
                }
                _ if self.kind() == Some(TokenKind::Comma) => {
                    self.advance(Word::Name);
                    continue;
                }
                _ => return modes,
            }
            self.advance(Word::Name);
            self.advance(Word::Name);
        }
    }

    fn isolation_level(&self) -> Isolation {
        match (self.word(), self.next_word()) {
            (Word::Read, Word::Uncommitted) => Isolation::ReadUncommitted,
            (Word::Read, Word::Committed) => Isolation::ReadCommitted,
            (Word::Repeatable, Word::Read) => Isolation::RepeatableRead,
            _ => Isolation::Serializable,
        }
    }

    /// COMMIT, END, ROLLBACK, ABORT and their forms.
    fn end_transaction(&mut self) {
        let word = self.word();
        self.advance(word);
        let commits = matches!(word, Word::Commit | Word::End);
        if self.word() == Word::Prepared {
            self.control(if commits {
                TransactionControl::CommitPrepared
            } else {
                TransactionControl::RollbackPrepared
            });
            return self.refuse(Rule::OtherStatement);
        }
        let _ = self.take(Word::Work) || self.take(Word::Transaction);
        if !commits && self.take(Word::To) {
            let _ = self.take(Word::Savepoint);
            self.advance(Word::Name);
            self.control(TransactionControl::RollbackTo);
        } else {
            let and = self.take(Word::And);
            let chain = and && !self.take(Word::No);
            let _ = and && self.take(Word::Chain);
            self.control(if commits {
                TransactionControl::Commit(chain)
            } else {
                TransactionControl::Rollback(chain)
            });
        }
        self.accept(Rule::EndsTransaction);
        self.expect_end();
    }

    fn savepoint(&mut self) {
        let word = self.word();
        self.advance(word);
        if word == Word::Release {
            let _ = self.take(Word::Savepoint);
            self.control(TransactionControl::Release);
        } else {
            self.control(TransactionControl::Savepoint);
        }
        self.advance(Word::Name);
        self.accept(Rule::EndsTransaction);
        self.expect_end();
    }

    /// What a statement with nothing to scan may not go on with.
    fn expect_end(&mut self) {
        if !self.at_end() {
            self.refuse(Rule::Unrecognised);
        }
    }

    // Settings

    /// SET and RESET. None is cached: what it does hangs on its value.
    fn set(&mut self) {
        self.class.cacheable = false;
        let word = self.word();
        if word == Word::Set && self.next_word() == Word::Transaction {
            return self.set_transaction();
        }
        self.refuse(Rule::ChangesSetting);
        self.advance(word);
        let local = word == Word::Set && self.take(Word::Local);
        // SET SESSION x = y only says so. SET SESSION AUTHORIZATION is a setting of the session, and may have SESSION or LOCAL
        // in front of it as any other: SET SESSION SESSION AUTHORIZATION.
        for _ in u8::from(local)..2 {
            if self.word() == Word::Session && self.next_word() != Word::Characteristics {
                self.advance(Word::Session);
            }
        }
        let written = self.current().map(|token| unquoted(token.bytes(self.text)));
        if written.is_some_and(changes_names) {
            self.effect(SessionEffects::NAMING);
        }
        match self.word() {
            Word::Constraints if word == Word::Set => {}
            _ if self.begins_halyard_name() => {
                self.effect(SessionEffects::HALYARD_SETTING);
                if !local {
                    self.effect(SessionEffects::SETTING);
                }
            }
            _ if self.begins_transaction_setting() => {
                self.control(TransactionControl::SetTransaction(TransactionModes::default()));
            }
            _ if local => {}
            _ => self.effect(SessionEffects::SETTING),
        }
        self.see_value(local);
    }

    /// SET TRANSACTION. Behind a BEGIN of the same message that does not say whether it reads only, it may say so.
    fn set_transaction(&mut self) {
        let start = self.current();
        self.advance(Word::Set);
        self.advance(Word::Transaction);
        let modes = self.transaction_modes();
        let plain = self.at_end() && modes.isolation != Isolation::Serializable;
        let reads_only = plain && modes.access == AccessMode::ReadOnly;
        if self.opens.is_some() && plain && modes.access != AccessMode::ReadWrite {
            if let (true, TransactionControl::Begin(begun)) = (reads_only, &mut self.class.transaction) {
                begun.access = AccessMode::ReadOnly;
                self.opens = None;
            }
            return;
        }
        self.open_block();
        self.control(TransactionControl::SetTransaction(modes));
        let rule = match modes.access {
            _ if self.at_end() && !plain => Rule::SetsSerializableTransaction,
            _ if !plain => Rule::ChangesSetting,
            AccessMode::ReadOnly => Rule::SetsReadOnlyTransaction,
            AccessMode::ReadWrite => Rule::SetsReadWriteTransaction,
            AccessMode::Unspecified => Rule::SetsTransaction,
        };
        self.refuse_at(rule, start);
    }

    /// A search path with the temporary schema in it makes temporary objects of what does not look it.
    ///
    /// `local`: whether it is SET LOCAL.
    fn see_value(&mut self, local: bool) {
        while !self.at_end() {
            // SET LOCAL TIME ZONE LOCAL is the same as DEFAULT.
            if local && matches!(self.word(), Word::Default | Word::Local) {
                self.effect(SessionEffects::LOCAL_DEFAULT);
            }
            let value = self
                .current()
                .map(|token| token.bytes(self.text))
                .unwrap_or_default();
            if value.windows(7).any(|part| part.eq_ignore_ascii_case(b"pg_temp")) {
                self.effect(SessionEffects::TEMPORARY);
            }
            self.step();
        }
    }

    /// Whether `halyard.…` comes next.
    fn begins_halyard_name(&self) -> bool {
        self.current()
            .is_some_and(|token| unquoted(token.bytes(self.text)).eq_ignore_ascii_case(b"halyard"))
            && self.next_kind() == Some(TokenKind::Dot)
    }

    /// Whether one of the settings comes next that end with the transaction.
    fn begins_transaction_setting(&self) -> bool {
        const SETTINGS: [&[u8]; 3] = [
            b"transaction_read_only",
            b"transaction_isolation",
            b"transaction_deferrable",
        ];
        let name = self
            .current()
            .map(|token| unquoted(token.bytes(self.text)))
            .unwrap_or_default();
        SETTINGS.iter().any(|setting| setting.eq_ignore_ascii_case(name))
    }

    // Everything else writes, or may

    fn writing(&mut self, word: Word) {
        self.refuse(match word {
            Word::Insert | Word::Update | Word::Delete | Word::Merge => Rule::DataChangingKeyword,
            _ => Rule::OtherStatement,
        });
        match word {
            Word::Create => self.create(),
            Word::Alter | Word::Drop | Word::Import => self.class.ddl = true,
            Word::Listen => self.effect(SessionEffects::LISTEN),
            Word::Unlisten => self.effect(SessionEffects::UNLISTEN),
            Word::Notify => self.effect(SessionEffects::NOTIFY),
            Word::Prepare => self.prepare(),
            Word::Execute => self.effect(SessionEffects::EXECUTE),
            Word::Deallocate => self.deallocate(),
            Word::Declare => self.declare(),
            Word::Fetch | Word::Move | Word::Close => self.effect(SessionEffects::CURSOR),
            Word::Load => self.effect(SessionEffects::LOAD),
            Word::Discard => self.discard(),
            Word::Do | Word::Call => self.effect(SessionEffects::OPAQUE),
            _ => {}
        }
    }

    fn create(&mut self) {
        self.advance(Word::Create);
        let _ = self.take(Word::Or) && self.take(Word::Replace);
        let _ = self.take(Word::Global) || self.take(Word::Local);
        self.scope.creates_temporary = matches!(self.word(), Word::Temp | Word::Temporary);
        self.scope.is_routine = matches!(self.word(), Word::Function | Word::Procedure);
        self.scope.is_table = matches!(self.word(), Word::Table) || self.next_word() == Word::Table;
        self.class.ddl |= !self.scope.creates_temporary;
    }

    fn prepare(&mut self) {
        self.advance(Word::Prepare);
        // A prepared statement may be named "transaction"; then its types or AS follow. Which constant follows must not
        // matter, keys leave it out.
        let constant = matches!(
            self.next_kind(),
            Some(TokenKind::String | TokenKind::Number | TokenKind::Parameter)
        );
        if self.word() == Word::Transaction && constant {
            self.control(TransactionControl::PrepareTransaction);
        } else {
            self.effect(SessionEffects::PREPARE);
        }
    }

    fn deallocate(&mut self) {
        self.effect(SessionEffects::DEALLOCATE);
        self.advance(Word::Deallocate);
        let _ = self.take(Word::Prepare);
        if self.word() == Word::All {
            self.effect(SessionEffects::DEALLOCATE_ALL);
        }
    }

    fn declare(&mut self) {
        while !self.at_end() && self.word() != Word::For {
            if self.word() == Word::With && self.next_word() == Word::Hold {
                self.effect(SessionEffects::HOLD_CURSOR);
            }
            let word = self.word();
            self.advance(word);
        }
    }

    fn discard(&mut self) {
        self.advance(Word::Discard);
        self.effect(match self.word() {
            Word::All => SessionEffects::DISCARD_ALL,
            Word::Plans => SessionEffects::DISCARD_PLANS,
            Word::Sequences => SessionEffects::DISCARD_SEQUENCES,
            Word::Temp | Word::Temporary => SessionEffects::DISCARD_TEMPORARY,
            _ => SessionEffects::NONE,
        });
    }
}

/// Whether a setting, or what stands for one behind SET and RESET, decides what names in texts stand for.
pub(super) fn changes_names(setting: &[u8]) -> bool {
    // SET SCHEMA; SET SESSION AUTHORIZATION, of which SESSION has been read; RESET ALL.
    const NAMING: [&[u8]; 6] = [
        b"search_path",
        b"role",
        b"session_authorization",
        b"schema",
        b"authorization",
        b"all",
    ];
    NAMING.iter().any(|name| name.eq_ignore_ascii_case(setting)) || changes_constants(setting)
}

/// Whether a setting, or what stands for one behind SET, decides what a text stands for besides the objects that it names,
/// which a server looks up again.
pub(super) fn changes_constants(setting: &[u8]) -> bool {
    READINGS
        .iter()
        .any(|reading| reading.name.as_bytes().eq_ignore_ascii_case(setting))
}

/// Whether a setting, by its lower-case name, decides what a constant in a text stands for: it is read when the statement is
/// prepared, and not again (`coerce_type` in parse_coerce.c), and so is the text itself.
#[must_use]
pub fn reads_constants(setting: &str) -> bool {
    READINGS
        .iter()
        .any(|reading| reading.decides == Decides::Constants && reading.name == setting)
}

/// What decides what a text stands for besides the objects that it names.
pub(super) struct Reading {
    /// A setting, or what stands for one behind SET.
    pub(super) name: &'static str,
    /// What every message that changes it has in it, and others may have.
    pub(super) sign: &'static str,
    pub(super) decides: Decides,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Decides {
    /// The setting of this name decides what constants stand for.
    Constants,
    /// It is another word for such a setting, or a setting that decides of something else.
    Otherwise,
}

const fn constants(name: &'static str, sign: &'static str) -> Reading {
    let decides = Decides::Constants;
    Reading { name, sign, decides }
}

const fn otherwise(name: &'static str, sign: &'static str) -> Reading {
    let decides = Decides::Otherwise;
    Reading { name, sign, decides }
}

/// All of it. What has the same sign stands together: messages are searched for each once.
pub(super) const READINGS: &[Reading] = &[
    constants("array_nulls", "array_nulls"),
    constants("backslash_quote", "backslash_quote"),
    constants("client_encoding", "encoding"),
    constants("datestyle", "style"),
    constants("intervalstyle", "style"),
    constants("lc_monetary", "lc_monetary"),
    constants("standard_conforming_strings", "conforming"),
    constants("timezone", "zone"),
    constants("timezone_abbreviations", "zone"),
    // SET TIME ZONE.
    otherwise("time", "zone"),
    constants("xmloption", "xml"),
    // SET XML OPTION.
    otherwise("xml", "xml"),
    otherwise("transform_null_equals", "transform_null_equals"),
    // SET NAMES.
    otherwise("names", "names"),
];

/// An identifier without its quotes. Doubled quotes stay: no name looked for has any.
pub(super) fn unquoted(written: &[u8]) -> &[u8] {
    written
        .strip_prefix(b"\"")
        .and_then(|name| name.strip_suffix(b"\""))
        .unwrap_or(written)
}
