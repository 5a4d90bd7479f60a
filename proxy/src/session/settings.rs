//! What a client has set, when it connected and since, and how a backend is brought to it.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use memchr::{memchr, memchr_iter, memchr2_iter, memchr3_iter};

use super::own::OwnSettings;
use super::patience::{Patience, milliseconds};
use crate::classify::{SettingChanges, reads_constants};

/// Settings of a session, by lower-case name, sorted. Sessions with the same ones from startup share them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pairs: Vec<(String, String)>,
    serializable: bool,
    read_only: bool,
    temporary: bool,
    idles_for: Option<Duration>,
    may_idle_out: bool,
    patience: Patience,
    scope: Scope,
    own: OwnSettings,
}

/// What decides which object a name in a text stands for: `search_path`, and the role, for its `"$user"`.
const NAMING: &[&str] = &[
    "search_path",
    "role",
    "session_authorization",
    "transform_null_equals",
];

/// The settings that decide what a text stands for, as strings: where they are equal, the same text is the same statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Those that decide it for every text, by the names in it. Empty where the session has none of them.
    names: Arc<str>,
    /// With them those that matter to a text that has constants or characters beyond ASCII; the same string where the
    /// session has none of these.
    constants: Arc<str>,
}

impl Scope {
    fn of(pairs: &[(String, String)]) -> Self {
        let joined = |wanted: &dyn Fn(&str) -> bool| -> Arc<str> {
            let wanted = pairs.iter().filter(|(name, _)| wanted(name));
            let wanted: Vec<_> = wanted.map(|(name, value)| format!("{name}={value}\0")).collect();
            wanted.concat().into()
        };
        let names = joined(&|name| NAMING.contains(&name));
        let has_others = pairs.iter().any(|(name, _)| reads_constants(name));
        let constants = if has_others {
            joined(&|name| NAMING.contains(&name) || reads_constants(name))
        } else {
            Arc::clone(&names)
        };
        Self { names, constants }
    }

    /// What of it matters to a text.
    #[inline]
    pub fn for_text(&self, text: &[u8]) -> &Arc<str> {
        if Arc::ptr_eq(&self.names, &self.constants) || !may_have_constants(text) {
            &self.names
        } else {
            &self.constants
        }
    }

    /// What of it matters to a text of which is known whether it may have constants.
    #[inline]
    pub fn for_constants(&self, has_constants: bool) -> &str {
        if has_constants {
            &self.constants
        } else {
            &self.names
        }
    }
}

/// Whether a text may have a constant in quotes, or a character that is written otherwise in another encoding.
pub(super) fn may_have_constants(text: &[u8]) -> bool {
    may_quote(text) || !text.is_ascii()
}

fn may_quote(text: &[u8]) -> bool {
    // `$1` is a parameter.
    let quotes_with_dollars = |at: usize| text.get(at + 1).is_some_and(|next| !next.is_ascii_digit());
    memchr(b'\'', text).is_some() || memchr_iter(b'$', text).any(quotes_with_dollars)
}

/// Whether a text may stand for something else under other settings than those that say where its names lead, which a
/// server looks after itself: by its constants, or by a comparison with NULL (`transform_null_equals`).
pub(super) fn may_be_read_otherwise(text: &[u8]) -> bool {
    may_have_constants(text) || may_compare_with_null(text)
}

/// Whether a text has a NULL that does not stand behind IS or IS NOT in its line.
fn may_compare_with_null(text: &[u8]) -> bool {
    const NULL: &[u8] = b"null";
    let is_null = |at: usize| {
        text.get(at..at + NULL.len())
            .is_some_and(|word| word.eq_ignore_ascii_case(NULL))
    };
    let tests = |at: usize| {
        let behind_not = word_before(&text[..at], b"not");
        word_before(behind_not.unwrap_or(&text[..at]), b"is").is_some()
    };
    memchr2_iter(b'n', b'N', text).any(|at| is_null(at) && !tests(at))
}

/// What stands before the word that a text ends with, but for blanks, if it is this one.
fn word_before<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let blanks = text.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t'));
    let text = &text[..text.len() - blanks.count()];
    let (rest, last) = text.split_at_checked(text.len().checked_sub(word.len())?)?;
    last.eq_ignore_ascii_case(word).then_some(rest)
}

/// Whether a text may have a constant that stands for another time whenever it is prepared: `'now'`, `'today'` and their like
/// (manual, section 8.5.1.4), also in an array, a range or behind a time. It may be found where it is none, but for a call
/// of `now()`.
pub(super) fn names_a_moment(text: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];
    if !may_quote(text) {
        return false;
    }
    let of_a_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | 0x80..);
    let names = |at: usize| {
        let (before, rest) = text.split_at(at);
        WORDS.iter().any(|word| {
            let begins = rest
                .get(..word.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(word));
            let next = rest.get(word.len());
            begins && !next.is_some_and(|next| of_a_word(next) || *next == b'(')
        }) && !before.last().is_some_and(of_a_word)
    };
    let beginnings = memchr3_iter(b'n', b't', b'y', text).chain(memchr3_iter(b'N', b'T', b'Y', text));
    beginnings.into_iter().any(names)
}

/// What `random()` goes on from. No server shows it, and none resets it.
pub(super) const SEED: &str = "seed";

/// What a server ends a connection by that is idle, be that its client or nobody who has it.
pub(super) const IDLE_TIMEOUT: &str = "idle_session_timeout";

/// What a server refuses to change, and to reset, for the rest of a connection on which a temporary table was used.
const TEMP_BUFFERS: &str = "temp_buffers";

/// What a server's answer says nothing lasting of: what SET TRANSACTION sets, and the seed.
const NOT_FOLLOWED: [&str; 4] = [
    SEED,
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
];

impl Settings {
    /// Sorts and folds names; a name given twice has its last value, as in the server.
    pub fn new(mut given: Vec<(String, String)>) -> Self {
        for (name, _) in &mut given {
            name.make_ascii_lowercase();
        }
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(given.len());
        for (name, value) in given {
            match pairs.iter_mut().find(|(known, _)| *known == name) {
                Some(pair) => pair.1 = value,
                None => pairs.push((name, value)),
            }
        }
        Self::sorted(pairs)
    }

    fn sorted(mut pairs: Vec<(String, String)>) -> Self {
        pairs.sort();
        let serializable = pairs.iter().any(|(name, value)| {
            name == "default_transaction_isolation" && value.eq_ignore_ascii_case("serializable")
        });
        let read_only = pairs
            .iter()
            .any(|(name, value)| name == "default_transaction_read_only" && says_true(value));
        let temporary = pairs
            .iter()
            .any(|(name, value)| name == "search_path" && value.to_ascii_lowercase().contains("pg_temp"));
        let timeout = pairs.iter().find(|(name, _)| name == "statement_timeout");
        let idles = pairs.iter().find(|(name, _)| name == IDLE_TIMEOUT);
        Self {
            idles_for: idles.and_then(|(_, value)| milliseconds(value)),
            may_idle_out: idles.is_some_and(|(_, value)| value != "0"),
            own: OwnSettings::of(&pairs),
            patience: timeout.map_or(Patience::Unsaid, |(_, value)| Patience::of(value)),
            scope: Scope::of(&pairs),
            pairs,
            serializable,
            read_only,
            temporary,
        }
    }

    /// What they say to Halyard itself.
    #[inline]
    pub fn own(&self) -> &OwnSettings {
        &self.own
    }

    /// Those that decide what a text stands for.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether transactions are serializable unless they say otherwise: a standby cannot run them.
    #[inline]
    pub fn serializable(&self) -> bool {
        self.serializable
    }

    /// Whether transactions are READ ONLY unless they say otherwise.
    #[inline]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether names are looked for in the session's temporary schema at a place that was said: where that is the first,
    /// `current_schema()` makes the schema.
    #[inline]
    pub fn names_temporary_schema(&self) -> bool {
        self.temporary
    }

    /// Whether a server ends a connection with these that is idle for some time.
    #[inline]
    pub(super) fn may_idle_out(&self) -> bool {
        self.may_idle_out
    }

    /// How long their client may be idle outside of a transaction, where they say it and not only a server can read it (see
    /// [`milliseconds`]).
    #[inline]
    pub(super) fn idles_for(&self) -> Option<Duration> {
        self.idles_for
    }

    /// How long a statement may take, where they say it.
    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// Names and values, sorted by name.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// The value of a setting, if the session has it; `name` in lower case.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The statements that turn a backend with settings `from` into one with these; none where there is no
    /// difference.
    ///
    /// `set_config` is used instead of SET, as it takes a value the way the startup packet does: SET would take
    /// `a, b` for one element of a list. Its strings are written as `E''`, which reads the same whatever
    /// `standard_conforming_strings` is.
    ///
    /// Another role may be forbidden to set what the session's own may: roles are left first and taken last.
    pub fn statements_from(&self, from: &Settings) -> Option<String> {
        let differs = self.pairs != from.pairs;
        if !differs {
            return None;
        }
        let mut sql = String::new();
        let leaves = ROLES.iter().rev().filter(|role| from.value(role).is_some());
        for role in leaves {
            push_reset(&mut sql, role);
        }
        let ordinary = |pair: &&(String, String)| !ROLES.contains(&pair.0.as_str());
        for (name, _) in from.pairs.iter().filter(ordinary) {
            if self.value(name).is_none() && name != SEED {
                push_reset(&mut sql, name);
            }
        }
        for (name, value) in self.pairs.iter().filter(ordinary) {
            if from.value(name) != Some(value) {
                push_set(&mut sql, name, value, false);
            }
        }
        for role in ROLES {
            if let Some(value) = self.value(role) {
                push_set(&mut sql, role, value, false);
            }
        }
        Some(sql)
    }

    /// Whether a server may refuse to bring a backend with settings `from` to these, though it took each before: roles
    /// can be revoked, and objects that a value names dropped. Then nothing may be sent behind it before the answer is
    /// there, as it would run with another's rights.
    pub fn may_be_refused_after(&self, from: &Settings) -> bool {
        let takes_role = self.pairs != from.pairs && ROLES.iter().any(|role| self.value(role).is_some());
        let differing = self
            .pairs
            .iter()
            .filter(|(name, value)| from.value(name) != Some(value));
        let leaves_buffers = self.differ_in_temp_buffers(from);
        takes_role || leaves_buffers || differing.into_iter().any(|(name, _)| !is_never_refused(name))
    }

    /// Whether a backend with settings `from` has to change its `temp_buffers` for these.
    pub fn differ_in_temp_buffers(&self, from: &Settings) -> bool {
        self.value(TEMP_BUFFERS) != from.value(TEMP_BUFFERS)
    }

    /// These settings with others changed: to a value, or to none. Names in lower case. Those of the transaction are left out:
    /// where any client has begun one READ ONLY and then said SET TRANSACTION, a server calls them the session's from then on.
    /// So is the seed, of which a server does not tell the value.
    #[must_use]
    pub fn with(&self, changes: Vec<(String, Option<String>)>) -> Self {
        let mut pairs = self.pairs.clone();
        let lasts = |(name, _): &(String, Option<String>)| !NOT_FOLLOWED.contains(&name.as_str());
        for (name, value) in changes.into_iter().filter(lasts) {
            pairs.retain(|(known, _)| *known != name);
            if let Some(value) = value {
                pairs.push((name, value));
            }
        }
        Self::sorted(pairs)
    }

    /// Bytes of all names and values.
    pub fn size(&self) -> usize {
        self.pairs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }

    /// Those of these settings that `changes` resets, by name. `None` where there is none, or where a COPY may stand behind the
    /// RESET, to which no Query can follow. It holds no more names than these settings.
    pub fn reset_by(&self, changes: &SettingChanges) -> Option<SettingChanges> {
        let mine = |names: &[String]| -> Vec<String> {
            let mine = names.iter().filter(|name| self.value(name).is_some());
            mine.cloned().collect()
        };
        let reset = SettingChanges {
            resets: mine(&changes.resets),
            local_resets: mine(&changes.local_resets),
            resets_all: changes.resets_all,
            ..SettingChanges::default()
        };
        (!changes.copies && self.restore_after(&reset).is_some()).then_some(reset)
    }

    /// A question that gives those of these settings their value again that a RESET took it from: the reset value of
    /// a backend is the server's, and the client's is what it gave when it connected. `None` where `changes` resets
    /// none of them.
    ///
    /// The server decides whether the RESET stands: in a transaction that was rolled back it does not.
    pub fn restore_after(&self, changes: &SettingChanges) -> Option<String> {
        if changes.copies {
            return None;
        }
        let for_session = self.restoring(false, |name| {
            // RESET ALL leaves who the session is as it is.
            (changes.resets_all && !ROLES.contains(&name)) || changes.resets.iter().any(|reset| reset == name)
        });
        let for_transaction = self.restoring(true, |name| {
            changes.local_resets.iter().any(|reset| reset == name)
        });
        match (for_session, for_transaction) {
            (Some(session), Some(transaction)) => Some(format!("{session};{transaction}")),
            (one, other) => one.or(other),
        }
    }

    /// The question for those that were reset, for the session or, `local`, until its transaction ends.
    fn restoring(&self, local: bool, is_reset: impl Fn(&str) -> bool) -> Option<String> {
        let reset: Vec<_> = self.pairs.iter().filter(|(name, _)| is_reset(name)).collect();
        if reset.is_empty() {
            return None;
        }
        let mut sql = format!("SELECT pg_catalog.set_config(w.n,w.v,{local}) FROM (VALUES ");
        for (index, (name, value)) in reset.into_iter().enumerate() {
            sql.push_str(if index > 0 { ",(" } else { "(" });
            push_literal(&mut sql, name);
            sql.push(',');
            push_literal(&mut sql, value);
            sql.push(')');
        }
        sql.push_str(
            ") AS w(n,v) LEFT JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) w.n \
             WHERE s.source OPERATOR(pg_catalog.<>) 'session' OR (s.name IS NULL \
             AND coalesce(pg_catalog.current_setting(w.n,true),'') OPERATOR(pg_catalog.=) \
             CASE WHEN w.n OPERATOR(pg_catalog.=) 'role' THEN 'none' ELSE '' END)",
        );
        Some(sql)
    }
}

/// Whether a value is one of those that PostgreSQL takes for true (`parse_bool`): a beginning of a word that is that of
/// no other.
fn says_true(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str| !value.is_empty() && word.starts_with(&value);
    value == "1" || value == "on" || begins("true") || begins("yes")
}

/// Whether a value that a server once took for a setting is one that any server of the cluster takes from anybody at any
/// time: custom settings, and the usual ones that are PostgreSQL's own and anybody's to set.
fn is_never_refused(name: &str) -> bool {
    const USUAL: [&str; 24] = [
        "application_name",
        "bytea_output",
        "client_encoding",
        "client_min_messages",
        "datestyle",
        "default_transaction_deferrable",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "enable_seqscan",
        "extra_float_digits",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "intervalstyle",
        "jit",
        "lock_timeout",
        "maintenance_work_mem",
        "plan_cache_mode",
        "search_path",
        "standard_conforming_strings",
        "statement_timeout",
        "synchronous_commit",
        "timezone",
        "work_mem",
        "xmloption",
    ];
    // Of libraries that may be loaded on one backend and not on another, which takes any value.
    const CHECKED: [&str; 8] = [
        "auto_explain",
        "pg_stat_statements",
        "pg_trgm",
        "pgaudit",
        "plperl",
        "plpgsql",
        "pltcl",
        "postgres_fdw",
    ];
    match name.split_once('.') {
        Some((library, _)) => CHECKED.binary_search(&library).is_err(),
        None => USUAL.binary_search(&name).is_ok(),
    }
}

/// Settings that change who the session is, in the order in which they are taken.
const ROLES: [&str; 2] = ["session_authorization", "role"];

fn push_reset(sql: &mut String, name: &str) {
    sql.push_str("RESET ");
    push_setting_name(sql, name);
    sql.push(';');
}

/// The statements that give settings these values, for the session or until the transaction ends.
pub(super) fn statements_setting(values: &[(String, Option<String>)], local: bool) -> String {
    let mut sql = String::new();
    for (name, value) in values {
        push_set(&mut sql, name, value.as_deref().unwrap_or_default(), local);
    }
    sql
}

fn push_set(sql: &mut String, name: &str, value: &str, local: bool) {
    sql.push_str("SELECT pg_catalog.set_config(");
    push_literal(sql, name);
    sql.push(',');
    // The server keeps ASCII alone of it, whatever it is sent (`pg_clean_ascii`).
    if value.is_ascii() || name == "application_name" {
        push_literal(sql, value);
    } else {
        push_decoded(sql, value);
    }
    sql.push_str(if local { ",true);" } else { ",false);" });
}

/// A custom setting's name has dots between identifiers; each part is quoted by itself.
fn push_setting_name(sql: &mut String, name: &str) {
    for (index, part) in name.split('.').enumerate() {
        if index > 0 {
            sql.push('.');
        }
        push_identifier(sql, part);
    }
}

/// Writes a quoted identifier.
pub(super) fn push_identifier(sql: &mut String, name: &str) {
    sql.push('"');
    sql.push_str(&name.replace('"', "\"\""));
    sql.push('"');
}

/// Writes a text of UTF-8 as an expression in ASCII: it reads the same whatever encoding the client has, and is left as it is
/// by a server that knows no encoding (`SQL_ASCII`).
fn push_decoded(sql: &mut String, text: &str) {
    sql.push_str("pg_catalog.convert_from(E'\\\\x");
    for byte in text.bytes() {
        // Writing to a String cannot fail.
        let _ = write!(sql, "{byte:02x}");
    }
    sql.push_str("'::pg_catalog.bytea,'UTF8')");
}

/// Writes a string constant that reads the same whatever `standard_conforming_strings` is.
pub(super) fn push_literal(sql: &mut String, text: &str) {
    sql.push_str("E'");
    for character in text.chars() {
        match character {
            '\'' => sql.push_str("''"),
            '\\' => sql.push_str("\\\\"),
            '\0' => {}
            other => sql.push(other),
        }
    }
    sql.push('\'');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Arc<Settings> {
        Arc::new(Settings::new(
            pairs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
        ))
    }

    #[test]
    fn a_constant_that_stands_for_a_moment_is_found() {
        for text in [
            "SELECT 'now'::timestamptz",
            "SELECT 1, ' Today '::date",
            "x 'a' 'TOMORROW'",
            "E'yesterday'",
            "SELECT $$now$$::timestamptz",
            "SELECT $a$\nNow$a$::timestamptz",
            "SELECT '[today,tomorrow)'::daterange",
            "SELECT '{today}'::date[]",
            "SELECT '12:00 today'::timestamptz",
        ] {
            assert!(names_a_moment(text.as_bytes()), "{text}");
        }
        for text in [
            "SELECT now()",
            "SELECT now() > '2024-01-01'",
            "SELECT 'no', 'nowhere', 'today_sales', 'not_today'",
            "SELECT today WHERE a = $1",
            "'2024-01-01'",
        ] {
            assert!(!names_a_moment(text.as_bytes()), "{text}");
        }
    }

    /// What one had prepared under `transform_null_equals` was run for others.
    #[test]
    fn a_comparison_with_null_may_be_read_otherwise() {
        for text in [
            "SELECT a = null FROM t",
            "SELECT a=NULL",
            "SELECT NULL = a",
            "SELECT a = -- is\nnull",
            "SELECT /* is */ null = a",
            "SELECT 'a'",
        ] {
            assert!(may_be_read_otherwise(text.as_bytes()), "{text}");
        }
        for text in [
            "SELECT a IS NULL, b is  not\tnull, c = $1",
            "SELECT 1",
            "SELECT nul",
        ] {
            assert!(!may_be_read_otherwise(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn only_the_difference_is_applied() {
        let from = settings(&[
            ("application_name", "a"),
            ("TimeZone", "UTC"),
            ("work_mem", "4MB"),
        ]);
        let to = settings(&[("application_name", "b"), ("timezone", "UTC")]);
        assert_eq!(
            to.statements_from(&from).unwrap(),
            "RESET \"work_mem\";SELECT pg_catalog.set_config(E'application_name',E'b',false);"
        );
        assert_eq!(to.statements_from(&to), None);
    }

    #[test]
    fn a_role_is_left_first_and_taken_last() {
        let from = settings(&[("role", "guest"), ("work_mem", "1MB")]);
        let to = settings(&[("role", "guest"), ("session_authorization", "clerk")]);
        assert_eq!(
            to.statements_from(&from).unwrap(),
            "RESET \"role\";RESET \"work_mem\";\
             SELECT pg_catalog.set_config(E'session_authorization',E'clerk',false);\
             SELECT pg_catalog.set_config(E'role',E'guest',false);"
        );
    }

    #[test]
    fn what_may_be_refused_is_known() {
        let from = settings(&[("role", "guest"), ("work_mem", "1MB")]);
        for (pairs, refusable) in [
            (
                &[("app.tenant", "7"), ("timezone", "UTC"), ("work_mem", "2MB")][..],
                false,
            ),
            (&[("role", "guest"), ("work_mem", "1MB")], false),
            (&[("role", "guest"), ("work_mem", "2MB")], true),
            (&[], false),
            (&[("role", "clerk")], true),
            (&[("session_authorization", "clerk")], true),
            (&[("default_tablespace", "fast")], true),
        ] {
            assert_eq!(
                settings(pairs).may_be_refused_after(&from),
                refusable,
                "{pairs:?}"
            );
        }
    }

    #[test]
    fn a_session_that_reads_only_is_known() {
        for (value, reads_only) in [
            ("on", true),
            ("TRUE", true),
            ("t", true),
            ("1", true),
            ("yes", true),
            ("off", false),
            ("o", false),
            ("", false),
            ("0", false),
        ] {
            let settings = settings(&[("default_transaction_read_only", value)]);
            assert_eq!(settings.read_only(), reads_only, "{value}");
        }
    }

    #[test]
    fn changes_replace_add_and_remove() {
        let before = settings(&[("a", "1"), ("b", "2")]);
        let after = before.with(vec![
            ("b".to_owned(), Some("3".to_owned())),
            ("c".to_owned(), Some("4".to_owned())),
            ("a".to_owned(), None),
        ]);
        assert_eq!(after, *settings(&[("b", "3"), ("c", "4")]));
    }

    #[test]
    fn a_reset_restores_what_came_with_the_startup_packet() {
        let startup = settings(&[("timezone", "UTC"), ("work_mem", "1MB")]);
        let changes = |text: &[u8]| SettingChanges::of(text, true).unwrap();
        assert_eq!(startup.restore_after(&changes(b"RESET geqo")), None);
        assert_eq!(startup.restore_after(&changes(b"SET work_mem = '2MB'")), None);
        let one = startup.restore_after(&changes(b"RESET TimeZone")).unwrap();
        assert!(one.contains("E'timezone',E'UTC'") && !one.contains("work_mem"));
        let local = startup
            .restore_after(&changes(b"SET LOCAL work_mem TO DEFAULT"))
            .unwrap();
        assert!(local.contains("w.v,true") && local.contains("E'work_mem',E'1MB'") && !local.contains("UTC"));
        let all = startup.restore_after(&changes(b"RESET ALL")).unwrap();
        assert!(all.contains("E'timezone',E'UTC'") && all.contains("E'work_mem',E'1MB'"));
    }

    /// A peer replayed values unescaped: a value that ends its own string would have run as SQL.
    #[test]
    fn a_value_cannot_leave_its_quotes() {
        let to = settings(&[("application_name", "x'); drop table t; --\\")]);
        assert_eq!(
            to.statements_from(&Arc::default()).unwrap(),
            "SELECT pg_catalog.set_config(E'application_name',E'x''); drop table t; --\\\\',false);"
        );
    }
}
