//! What a session holds when its turn ends: asked of the server that knows.
//!
//! A statement that may leave something in its session (SET, PREPARE, CREATE TEMP, an advisory lock, code that nobody
//! has read) says so in its class. When the turn ends, its backend is asked one question, after the client has got its
//! answer: what is there? Settings then follow the client to any backend; what cannot follow keeps the backend for it,
//! until a later answer says that it is gone. Transactions, savepoints and errors need no book-keeping here: the
//! server has done it. See `docs/adr/0009-ask-the-server-what-a-session-holds.md`.

use std::sync::Arc;
use std::time::Duration;

use super::inbox::Doing;
use super::part::{Leftovers, take_away};
use super::settings::{SEED, Settings, push_identifier, push_literal};
use super::turn::{Session, Turn};
use super::{NAMED, PinReason};
use crate::classify::{SessionEffects as Effects, SettingChanges};
use crate::config::ListenerRole;
use crate::error::{Report, SqlState};
use crate::metrics::Counter;
use crate::pool::exchange::{self, Row};
use crate::pool::{Checkout, Drawn};
use crate::relay::{Link, Lost, too_many_statements};
use crate::routing::RouteReason;

/// How long a server may take to tell what a session holds.
const EXAMINE_LIMIT: Duration = Duration::from_secs(5);
/// Backends that are given up for one request as temporary tables were used on them, which is for good: more of them than any
/// pool may hold in a row are made by others as fast as they are replaced.
pub(super) const REPLACEMENTS_MAX: u16 = 1_000;
/// Most bytes of names and values that follow a session; with more, it keeps its backend.
const FOLLOWED_MAX: usize = 16 * 1024;

/// Things that a session can hold and that stay on its backend: the letter by which the answer names each, the effects
/// after which it is asked for, why it pins, and the question.
///
/// The search path is the client's. Functions, relations, types and operators are named with their schema here, and wherever
/// else Halyard asks on a client's backend, or the client's own would answer for them.
const KINDS: &[(u8, Effects, PinReason, &str)] = &[
    (
        b't',
        Effects::TEMPORARY.union(Effects::DISCARD_TEMPORARY),
        PinReason::TemporaryObject,
        "SELECT 't',NULL,NULL,NULL WHERE CASE WHEN pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.=) 0 THEN false ELSE \
         EXISTS(SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
         AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) END",
    ),
    (
        b'a',
        Effects::ADVISORY_LOCK.union(Effects::ADVISORY_UNLOCK),
        PinReason::AdvisoryLock,
        "SELECT 'a',NULL,NULL,NULL WHERE EXISTS(SELECT FROM pg_catalog.pg_locks \
         WHERE locktype OPERATOR(pg_catalog.=) 'advisory' \
         AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())",
    ),
    (
        b'c',
        Effects::HOLD_CURSOR.union(Effects::CURSOR),
        PinReason::HoldCursor,
        "SELECT 'c',NULL,NULL,NULL WHERE EXISTS(SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)",
    ),
    (
        b'p',
        Effects::PREPARE.union(Effects::DEALLOCATE),
        PinReason::SqlPrepare,
        "SELECT 'p',name,from_sql::pg_catalog.text,NULL FROM pg_catalog.pg_prepared_statements \
         WHERE from_sql OR pg_catalog.strpos(name,'halyard_') OPERATOR(pg_catalog.<>) 1",
    ),
];

/// Channels that code listened to which nobody has read. What LISTEN and UNLISTEN do themselves is followed apart from
/// this; see `session/listen.rs`.
const CHANNELS: &str = "SELECT 'n',c,NULL,NULL FROM pg_catalog.pg_listening_channels() AS c";

/// Effects after which everything is asked for.
const ALL_KINDS: Effects = Effects::OPAQUE
    .union(Effects::UNKNOWN)
    .union(Effects::EXECUTE)
    .union(Effects::DISCARD_ALL);

/// What the server cannot be asked for, and why it pins until DISCARD ALL, or, for the first, DISCARD SEQUENCES.
const LASTING: &[(Effects, PinReason)] = &[
    (Effects::SEQUENCE, PinReason::SequenceValue),
    (Effects::LOAD, PinReason::Load),
    (Effects::SETTING, PinReason::Setting),
];

/// The question that goes with what was done. `None` where nothing has to be asked.
///
/// `failed`: whether a statement has failed, so that a setting named in it may have been left alone.
fn question(
    traces: Effects,
    pinned: bool,
    failed: bool,
    changes: &SettingChanges,
    known: &Settings,
) -> Option<String> {
    let all = traces.intersects(ALL_KINDS);
    // A session may hold more than the one thing that its pin names.
    let mut parts: Vec<String> = KINDS
        .iter()
        .filter(|kind| all || pinned || traces.intersects(kind.1))
        .map(|kind| kind.3.to_owned())
        .collect();
    let mut names: Vec<&str> = changes.names.iter().map(String::as_str).collect();
    if changes.resets_all || traces.intersects(Effects::DISCARD_ALL) {
        let own = known.pairs().iter().map(|(name, _)| name.as_str());
        // No reset touches this one, and no server tells its value.
        names.extend(own.filter(|name| *name != SEED));
    }
    names.sort_unstable();
    names.dedup();
    if !names.is_empty() {
        parts.push(question_of_settings(&names, failed || changes.has_resets()));
    }
    if all {
        parts.push(CHANNELS.to_owned());
        parts.push(
            "SELECT 's',pg_catalog.lower(name),setting,source FROM pg_catalog.pg_settings \
             WHERE source OPERATOR(pg_catalog.=) 'session'"
                .to_owned(),
        );
    }
    (!parts.is_empty()).then(|| parts.join(" UNION ALL "))
}

/// Asks for settings by name. Whether a value is the session's own is asked for only where one may have been reset, or
/// not set at all: it costs a look at all settings there are.
fn question_of_settings(names: &[&str], with_source: bool) -> String {
    let mut sql = String::from("SELECT 's',w.n,pg_catalog.current_setting(w.n,true),");
    sql.push_str(if with_source { "s.source" } else { "NULL" });
    sql.push_str(" FROM (VALUES ");
    for (index, name) in names.iter().enumerate() {
        sql.push_str(if index > 0 { ",(" } else { "(" });
        push_literal(&mut sql, name);
        sql.push(')');
    }
    sql.push_str(") AS w(n)");
    if with_source {
        sql.push_str(
            " LEFT JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) w.n",
        );
    }
    sql
}

/// What a server said of its session.
#[derive(Debug, Default, PartialEq, Eq)]
struct Holding {
    /// The first reason to keep the backend.
    pin: Option<PinReason>,
    /// Settings with their values; none where the session has none of its own.
    settings: Vec<(String, Option<String>)>,
    /// Channels that the backend listens to.
    channels: Vec<Vec<u8>>,
    /// Names of prepared statements that are not Halyard's.
    statements: Vec<Prepared>,
}

/// A prepared statement under a name that is not Halyard's.
#[derive(Debug, PartialEq, Eq)]
struct Prepared {
    name: Vec<u8>,
    by_sql: bool,
}

impl Holding {
    /// Reads the answer to [`question`]. `None` if it is none: a value in an encoding that cannot be repeated on
    /// another backend among them. `unicode`: whether client and server both speak UTF-8.
    fn read(rows: Vec<Row>, user: &str, unicode: bool) -> Option<Self> {
        let mut holding = Self::default();
        for row in rows {
            let [Some(kind), name, value, source] = <[_; 4]>::try_from(row).ok()? else {
                return None;
            };
            if kind == b"s" {
                let name = String::from_utf8(name?).ok()?;
                let value = value.map(String::from_utf8).transpose().ok()?;
                let unset = source.is_some_and(|source| source != b"session")
                    || match name.as_str() {
                        "role" => value.as_deref() == Some("none"),
                        "session_authorization" => value.as_deref() == Some(user),
                        _ => false,
                    };
                let repeatable = |value: &String| unicode || value.is_ascii();
                if !name.is_ascii() || !value.as_ref().is_none_or(repeatable) {
                    return None;
                }
                holding.settings.push((name, value.filter(|_| !unset)));
            } else if kind == b"n" {
                holding.channels.push(name?);
            } else if kind == b"p" {
                holding.statements.push(Prepared {
                    name: name?,
                    by_sql: value? == b"true",
                });
            } else {
                let kind = KINDS.iter().find(|known| kind == [known.0])?;
                holding.pin.get_or_insert(kind.2);
            }
        }
        Some(holding)
    }
}

impl Session {
    /// Whether what the client and the server write beyond ASCII is UTF-8.
    fn speaks_unicode(&self) -> bool {
        let is_utf8 = |name: &str| {
            let told = self.memory.told.iter().find(|(known, _)| known == name);
            told.is_some_and(|(_, value)| value == "UTF8")
        };
        is_utf8("client_encoding") && is_utf8("server_encoding")
    }

    /// Ends a turn that may have left something in the session: asks the backend, takes its settings over, and keeps
    /// it or gives it back.
    pub(super) async fn examine(&mut self) -> Turn {
        let Some(mut link) = self.link.take() else {
            return Turn::Again;
        };
        let traces = std::mem::take(&mut link.traces);
        link.traces_outside = Effects::NONE;
        let changes = std::mem::take(&mut link.changes);
        let failed = std::mem::take(&mut link.failed);
        let had_block = std::mem::take(&mut link.had_block);
        self.note_lasting(traces, failed);
        let unread = Effects::OPAQUE.union(Effects::UNKNOWN);
        if !failed && traces.intersects(Effects::DISCARD_ALL) && !traces.intersects(unread) {
            // Whatever code that nobody has read left there is gone.
            link.ran_unread = false;
        }
        if std::mem::take(&mut link.discarded) && !failed {
            self.memory.drawer.give_up();
            link.backend.drawn = Drawn::Nothing;
        }
        let only_defines = traces.without(Effects::DISCARD_TEMPORARY).is_empty();
        let before = self.memory.kept();
        let rows = match question(traces, before.is_some(), failed, &changes, &self.memory.settings) {
            Some(sql) => exchange::rows(&mut link.backend, &sql, EXAMINE_LIMIT).await,
            None => Ok(Vec::new()),
        };
        let holding = match rows {
            Ok(rows) => Holding::read(rows, &self.group.user, self.speaks_unicode()),
            Err(report) if link.backend.settled().is_none() => {
                // What the client set is on that backend alone, and gone with it. What it defined is there, unless that was
                // temporary, which few of them are.
                let left = (!only_defines).then(|| PinReason::of(traces));
                self.memory.pin = before.or(left).or_else(|| self.memory.pin_of_pool());
                (link.traces, link.changes) = (traces, changes);
                (link.failed, link.had_block) = (failed, had_block);
                self.link = Some(link);
                return self.on_loss(&Lost {
                    said: Some(report),
                    error: None,
                });
            }
            Err(report) => {
                tracing::debug!(%report, "a server did not tell what a session holds");
                None
            }
        };
        let holding = match holding {
            Some(mut holding) if traces.intersects(NAMED) => {
                self.take_back(&mut holding, &mut link).await.then_some(holding)
            }
            other => other,
        };
        let limit = self.app.relay_limits.client_statements_max;
        let statements = holding.as_ref().map_or(0, |holding| holding.statements.len());
        let too_many = statements > 0 && statements + self.memory.statements.len() > limit;
        let kept = match holding {
            Some(holding) => self.take_over(holding, traces, &changes, &mut link),
            // Asked again behind whatever may leave something next.
            None if only_defines => before.or(Some(PinReason::TemporaryObject)),
            None => {
                self.memory.lasting = self.memory.lasting.union(Effects::SETTING);
                Some(PinReason::of(traces))
            }
        };
        self.memory.pin = kept.or_else(|| self.memory.pin_of_pool());
        self.show_pin();
        if let (None, Some(reason)) = (before, kept)
            && let Some(counter) = Counter::of_pin(reason)
        {
            self.counters.add(counter, 1);
        }
        let elsewhere = !link.as_primary && self.role(false) != ListenerRole::Replica;
        self.link = Some(link);
        if too_many {
            return Turn::Farewell(too_many_statements(limit));
        }
        match (self.memory.pin, kept) {
            (None, _) => {
                self.cleanse_here().await;
                self.settle();
            }
            (_, Some(kept)) if elsewhere => self.cannot_keep(kept),
            (Some(_), _) => {}
        }
        Turn::Again
    }

    /// Takes away what code that nobody has read may have left unseen, before the backend goes back. The session waits for
    /// it: so it finds its backend again, with what it has drawn from sequences there.
    async fn cleanse_here(&mut self) {
        if let Some(link) = &mut self.link
            && link.opaque
        {
            // Where that fails it stays opaque, and is closed by whoever tries again.
            let taken = take_away(&mut link.backend, Leftovers::Unknown).await;
            link.opaque = taken.is_err();
        }
    }

    /// Takes back the names that statements of the protocol were lent to SQL under, and notes which of them it has ended.
    /// False if the server refuses to give them back.
    async fn take_back(&mut self, holding: &mut Holding, link: &mut Link) -> bool {
        let mut sql = String::new();
        let lent = std::mem::take(&mut link.lent)
            .into_iter()
            .filter(|lent| lent.there);
        for name in lent.map(|lent| lent.name) {
            let there = |held: &Prepared| !held.by_sql && *held.name == *name;
            if holding.statements.iter().any(there) {
                holding.statements.retain(|held| !there(held));
                sql.push_str("DEALLOCATE ");
                push_identifier(&mut sql, &String::from_utf8_lossy(&name));
                sql.push(';');
            } else {
                drop(self.memory.statements.close(&name));
            }
        }
        sql.is_empty()
            || exchange::ask(&mut link.backend, &sql, EXAMINE_LIMIT)
                .await
                .is_ok()
    }

    /// A READ ONLY transaction has left something on a standby, where the session's writes cannot go: it is taken away
    /// again, and the client told.
    fn cannot_keep(&mut self, pin: PinReason) {
        let Some(link) = self.link.take() else { return };
        self.client.input.release_held();
        let node = link.backend.node().name.clone();
        self.note_turn(&link);
        self.part_with(link, true);
        self.memory.keep_nothing();
        self.show_pin();
        self.fail_demand(
            Report::error(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("{} cannot be kept on a standby", pin.lost()),
            )
            .with_detail(format!(
                "A READ ONLY transaction ran on the standby \"{node}\" and left it there; it was taken away again."
            ))
            .with_hint("Begin the transaction READ WRITE, or say /* halyard.route: primary */ in front of BEGIN."),
        );
    }

    /// Whether the backend has to be brought to the session's settings, and may refuse them.
    #[inline]
    pub(super) fn has_settings_to_apply_first(&self) -> bool {
        self.link.as_ref().is_some_and(|link| {
            !Arc::ptr_eq(&link.backend.settings, &self.memory.settings)
                && link.backend.settled().is_some()
                && self.memory.settings.may_be_refused_after(&link.backend.settings)
        })
    }

    /// Brings the backend to the session's settings before anything else is sent. `None` when it is; else how the turn
    /// ends: a session that cannot be who it was is over.
    pub(super) async fn apply_settings_first(&mut self) -> Option<Turn> {
        let link = self.link.as_mut()?;
        let sql = self.memory.settings.statements_from(&link.backend.settings)?;
        match exchange::ask(&mut link.backend, &sql, EXAMINE_LIMIT).await {
            Ok(()) => {
                link.backend.settings = Arc::clone(&self.memory.settings);
                None
            }
            Err(report) if link.backend.settled().is_none() => Some(self.on_loss(&Lost {
                said: Some(report),
                error: None,
            })),
            Err(_)
                if link.begins_with.is_none()
                    && self.memory.replacements < REPLACEMENTS_MAX
                    && self
                        .memory
                        .settings
                        .differ_in_temp_buffers(&link.backend.settings)
                    && has_used_temporary(&mut link.backend).await =>
            {
                // Nothing was sent on it yet: another connection serves the request.
                self.to_primary = link.reason == RouteReason::Refused;
                self.link = None;
                self.registered.inbox.set_doing(Doing::Idle);
                self.memory.replacements += 1;
                Some(Turn::Again)
            }
            Err(report) => Some(Turn::Farewell(
                Report::fatal(
                    report.sqlstate,
                    "terminating connection because its settings are refused now",
                )
                .with_detail(format!(
                    "Node \"{}\" took them before, and says now: {}.",
                    link.backend.node().name,
                    report.message
                )),
            )),
        }
    }

    /// Makes these the session's settings.
    pub(super) fn adopt_settings(&mut self, settings: Settings) {
        if settings == *self.memory.settings {
            return;
        }
        let carried = settings.own().fence;
        let is_given = carried.is_some() && carried != self.memory.settings.own().fence;
        self.memory.settings = if settings == *self.memory.startup {
            Arc::clone(&self.memory.startup)
        } else {
            Arc::new(settings)
        };
        self.memory.statements.scope = self.memory.settings.scope().clone();
        self.app.consistency.begin(self.consistency());
        if is_given {
            self.heed_fence();
        }
    }

    /// Notes what the server cannot be asked for.
    ///
    /// `failed`: whether any statement since has failed, DISCARD among them: inside a block it does.
    fn note_lasting(&mut self, traces: Effects, failed: bool) {
        if !failed && traces.intersects(Effects::DISCARD_ALL) {
            self.memory.lasting = Effects::NONE;
        } else if !failed && traces.intersects(Effects::DISCARD_SEQUENCES) {
            let others = Effects::LOAD.union(Effects::SETTING);
            self.memory.lasting = self.memory.lasting.common(others);
        }
        if traces.intersects(Effects::SEQUENCE) {
            self.group.reserve();
        }
        let asked_for = Effects::SEQUENCE.union(Effects::LOAD);
        self.memory.lasting = self.memory.lasting.union(traces.common(asked_for));
    }

    /// Makes the server's settings the session's, and says why the backend has to be kept, if it has to.
    fn take_over(
        &mut self,
        holding: Holding,
        traces: Effects,
        changes: &SettingChanges,
        link: &mut Link,
    ) -> Option<PinReason> {
        if traces.intersects(ALL_KINDS) {
            self.hear_hidden(holding.channels, link);
        }
        self.warn_of_own_settings(&holding.settings);
        // Nobody is told its value. What the session began with is set on each backend, and no change of its own.
        let began_with = self.memory.startup.value(SEED).is_some();
        let told = holding.settings.iter().any(|(name, _)| name == SEED);
        let seeded = told && (!began_with || changes.names.iter().any(|name| name == SEED));
        let settings = self.memory.settings.with(holding.settings);
        // Settings that nobody can name are not seen in the answer: of code that was not read they are reset when
        // the backend goes back, of a statement that names none they keep it.
        let unnamed = traces.contains(Effects::UNKNOWN.union(Effects::SETTING));
        if unnamed || seeded || settings.size() > FOLLOWED_MAX {
            self.memory.lasting = self.memory.lasting.union(Effects::SETTING);
        }
        // Where new objects are temporary unless they say otherwise, no later statement has to say so.
        let temporary = settings.names_temporary_schema();
        self.adopt_settings(settings);
        link.backend.settings = Arc::clone(&self.memory.settings);
        self.memory.keep_told();
        self.read_as_told();
        let lasting = LASTING
            .iter()
            .find(|(effect, _)| self.memory.lasting.intersects(*effect))
            .map(|&(_, reason)| reason);
        let by_sql = (!holding.statements.is_empty()).then_some(PinReason::SqlPrepare);
        let unfollowed = self.memory.lasting.intersects(Effects::SETTING);
        if !temporary && !unfollowed && holding.pin != Some(PinReason::TemporaryObject) {
            // Texts stand for what they do to whoever has the same settings.
            self.memory.statements.end_own();
            link.backend.prepared.end_moment();
        } else if self.memory.statements.has_moment() {
            self.memory.statements.keep_own(!unfollowed);
            link.backend.prepared.end_moment();
        }
        holding
            .pin
            .or(by_sql)
            .or(lasting)
            .or(self.memory.unread_unnamed.then_some(PinReason::Unread))
            .or(temporary.then_some(PinReason::TemporaryObject))
    }
}

/// Whether a temporary table was used on this connection, by anybody: then no other `temp_buffers` is taken there, for good,
/// and only another connection is of use. Of two values one is another.
pub(super) async fn has_used_temporary(backend: &mut Checkout) -> bool {
    const OTHERS: &str = "SELECT pg_catalog.set_config('temp_buffers','1024',true),\
        pg_catalog.set_config('temp_buffers','1025',true)";
    let refused = exchange::ask(backend, OTHERS, EXAMINE_LIMIT).await.is_err();
    refused && backend.settled().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(traces: Effects, text: &str) -> String {
        let changes = SettingChanges::of(text.as_bytes(), true).unwrap();
        question(traces, false, false, &changes, &Settings::default()).unwrap_or_default()
    }

    fn row(kind: &str, name: &str, value: Option<&str>, source: Option<&str>) -> Row {
        [Some(kind), Some(name), value, source]
            .map(|text| text.map(|text| text.as_bytes().to_vec()))
            .to_vec()
    }

    #[test]
    fn only_what_may_have_changed_is_asked_for() {
        let set = asked(Effects::SETTING, "SET app.tenant = 'x'");
        assert!(set.contains("E'app.tenant'") && !set.contains("pg_settings") && !set.contains("pg_locks"));
        assert!(asked(Effects::SETTING, "RESET work_mem").contains("pg_settings"));
        let lock = asked(Effects::ADVISORY_LOCK, "");
        assert!(lock.contains("pg_locks") && !lock.contains("pg_cursors"));
        let opaque = asked(Effects::OPAQUE, "");
        for part in ["pg_locks", "pg_cursors", "pg_my_temp_schema", "pg_settings"] {
            assert!(opaque.contains(part), "{part}");
        }
        assert_eq!(asked(Effects::LOAD, ""), "");
    }

    #[test]
    fn what_is_not_the_sessions_own_is_taken_away() {
        let rows = vec![
            row("s", "work_mem", Some("1MB"), Some("session")),
            row("s", "geqo", Some("on"), Some("configuration file")),
            row("s", "role", Some("none"), None),
            row("s", "session_authorization", Some("clerk"), None),
            row("s", "app.tenant", Some("7"), None),
        ];
        let holding = Holding::read(rows, "clerk", true).unwrap();
        let value = |name: &str| {
            holding
                .settings
                .iter()
                .find(|setting| setting.0 == name)
                .unwrap()
                .1
                .as_deref()
        };
        assert_eq!(value("work_mem"), Some("1MB"));
        assert_eq!(value("geqo"), None);
        assert_eq!(value("role"), None);
        assert_eq!(value("session_authorization"), None);
        assert_eq!(value("app.tenant"), Some("7"));
        assert_eq!(holding.pin, None);
    }

    #[test]
    fn what_stays_on_the_backend_pins() {
        let rows = vec![vec![Some(b"t".to_vec()), None, None, None]];
        assert_eq!(
            Holding::read(rows, "clerk", true).unwrap().pin,
            Some(PinReason::TemporaryObject)
        );
        // What cannot be read is not taken for nothing.
        assert_eq!(
            Holding::read(vec![vec![Some(b"x".to_vec()), None, None, None]], "", true),
            None
        );
        let beyond_ascii = || vec![row("s", "a.b", Some("é"), None)];
        assert!(Holding::read(beyond_ascii(), "", true).is_some());
        assert_eq!(Holding::read(beyond_ascii(), "", false), None);
    }
}
