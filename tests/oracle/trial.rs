//! The trial of one statement: what it does on the primary, what on the standby, and what is left behind on either.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halyard::classify::{
    Access, Class, FunctionCatalog, SessionEffects, SettingChanges, Settings, TransactionControl, classify,
    explain,
};

use crate::stage::Stage;
use crate::statement::{Statement, run, simple};
use crate::support::{Client, Message, PATIENCE};

/// What a session and its transaction hold, one text each. The columns are named by [`State`].
const STATE: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text, \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL \
        ELSE pg_catalog.pg_current_wal_flush_lsn()::pg_catalog.text END, \
    pg_catalog.current_setting('transaction_isolation'), \
    pg_catalog.strpos(pg_catalog.current_setting('search_path'), 'pg_temp') > 0, \
    CASE WHEN pg_catalog.pg_my_temp_schema() = 0 THEN '0' ELSE (SELECT pg_catalog.count(*)::pg_catalog.text \
        FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema()) END, \
    (SELECT pg_catalog.md5(pg_catalog.string_agg(name || '=' || setting || source, ',' ORDER BY name)) \
        FROM pg_catalog.pg_settings WHERE source <> 'default' AND name NOT LIKE 'transaction%'), \
    (SELECT pg_catalog.string_agg(name, ',' ORDER BY name) FROM pg_catalog.pg_prepared_statements), \
    (SELECT pg_catalog.string_agg(name, ',' ORDER BY name) FROM pg_catalog.pg_cursors), \
    (SELECT pg_catalog.string_agg(c, ',' ORDER BY c) FROM pg_catalog.pg_listening_channels() AS c), \
    (SELECT pg_catalog.string_agg(locktype || ' ' || mode, ',' ORDER BY locktype, mode) FROM pg_catalog.pg_locks \
        WHERE pid = pg_catalog.pg_backend_pid() AND mode <> 'AccessShareLock' AND locktype <> 'virtualxid'), \
    session_user::pg_catalog.text || ' ' || current_user::pg_catalog.text";

/// What a session has set, as statements that set it elsewhere.
const SETTINGS: &str = "SELECT pg_catalog.quote_literal(name) || ', ' || pg_catalog.quote_literal(setting) \
    FROM pg_catalog.pg_settings WHERE source = 'session' AND name NOT LIKE 'transaction%' \
    AND name NOT IN ('role', 'session_authorization') ORDER BY name";

const ROLES: &str = "SELECT pg_catalog.quote_ident(session_user), \
    CASE WHEN session_user = current_user THEN 'NONE' ELSE pg_catalog.quote_ident(current_user) END";

/// Functions that no trial may call on a standby: they would end it, or other sessions, or its standing.
const NEVER: &[&[u8]] = &[
    b"pg_promote",
    b"pg_terminate_backend",
    b"pg_cancel_backend",
    b"pg_wal_replay",
];

/// Most reads of one transaction block that are tried once it has ended.
const IN_BLOCK_MAX: usize = 500;
/// SQLSTATE of what its client gave up (query_canceled): it would not be given up a second time.
const CANCELLED: &str = "57014";
/// How often a read is tried again that was answered differently: what is wrong stays so.
const AGAIN: usize = 4;
/// Who calls it in a test means to be cancelled, which nobody does on the standby.
const SLEEP: &[u8] = b"pg_sleep";

/// Longest wait for the standby to replay what the primary has flushed.
const REPLAY_LIMIT: Duration = Duration::from_secs(60);
/// Longest statement.
const STATEMENT_LIMIT: Duration = Duration::from_secs(300);

/// What [`STATE`] answers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State(Vec<Option<String>>);

impl State {
    const NAMES: [&str; 11] = [
        "transaction ID",
        "position",
        "isolation",
        "temporary schema in the search path",
        "temporary objects",
        "settings",
        "prepared statements",
        "cursors",
        "channels",
        "locks",
        "role",
    ];

    fn column(&self, name: &str) -> &str {
        let at = Self::NAMES.iter().position(|known| *known == name).unwrap();
        self.0[at].as_deref().unwrap_or_default()
    }

    /// What is another than before, in words. The position may move for reasons of the server's own.
    fn changes(&self, before: &Self) -> Vec<String> {
        let differs = |&at: &usize| Self::NAMES[at] != "position" && self.0[at] != before.0[at];
        (0..Self::NAMES.len())
            .filter(differs)
            .map(|at| {
                format!(
                    "{}: {:?} before, {:?} now",
                    Self::NAMES[at],
                    before.0[at],
                    self.0[at]
                )
            })
            .collect()
    }
}

/// What a statement answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    /// RowDescription, if there is one.
    columns: Vec<Vec<u8>>,
    /// Rows and COPY data, sorted.
    rows: Vec<Vec<u8>>,
    tags: Vec<Vec<u8>>,
    sqlstate: String,
    error: String,
}

impl Outcome {
    fn of(messages: &[Message]) -> Self {
        let bodies = |kinds: &[u8]| -> Vec<Vec<u8>> {
            let chosen = messages.iter().filter(|message| kinds.contains(&message.kind));
            chosen.map(|message| message.body.clone()).collect()
        };
        let mut rows = bodies(b"Dd");
        rows.sort();
        let error = messages.iter().find(|message| message.kind == b'E');
        Self {
            columns: bodies(b"T"),
            rows,
            tags: bodies(b"C"),
            sqlstate: error.map(|error| error.field(b'C')).unwrap_or_default(),
            error: error.map(|error| error.field(b'M')).unwrap_or_default(),
        }
    }

    /// Alike, as far as a client may rely on it. The words of an error may name other places.
    fn agrees(&self, other: &Self) -> bool {
        self.sqlstate == other.sqlstate
            && self.columns == other.columns
            && (!self.sqlstate.is_empty() || (self.rows == other.rows && self.tags == other.tags))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.sqlstate.is_empty() {
            return write!(f, "{} {}", self.sqlstate, self.error);
        }
        let row = |row: &Vec<u8>| String::from_utf8_lossy(&row[..row.len().min(60)]).into_owned();
        let rows: Vec<_> = self.rows.iter().take(3).map(row).collect();
        write!(f, "{} rows {rows:?}", self.rows.len())
    }
}

/// What both servers answered.
struct Answers {
    on_primary: Outcome,
    on_standby: Outcome,
    /// What stayed behind on the standby, in words.
    left: Vec<String>,
    /// Whether the primary gave the same answer twice.
    steady: bool,
}

/// Where one session's statements are tried.
pub(crate) struct Bench<'a> {
    stage: &'a Stage,
    startup: Vec<u8>,
    database: String,
    standby: Option<Standby>,
    /// Custom settings that the session has set: no server lists them.
    custom: BTreeSet<String>,
    /// Statements since the catalogue was read may have changed it.
    changed: bool,
    /// Reads that ran in the transaction block that is open: a client that opens none would have sent them as well.
    in_block: Vec<Statement>,
}

/// The session's twin on the standby.
struct Standby {
    client: Client,
    /// The state of the primary's session that it was brought to.
    like: Option<State>,
    replayed: String,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(stage: &'a Stage, startup: Vec<u8>) -> Self {
        let mut parameters = startup[8..].split(|&byte| byte == 0);
        let (mut user, mut database) = (Vec::new(), None);
        while let (Some(name), Some(value)) = (parameters.next(), parameters.next()) {
            match name {
                b"user" => user = value.to_vec(),
                b"database" => database = Some(value.to_vec()),
                _ => {}
            }
        }
        Self {
            stage,
            startup,
            database: String::from_utf8(database.unwrap_or(user)).unwrap(),
            standby: None,
            custom: BTreeSet::new(),
            changed: true,
            in_block: Vec::new(),
        }
    }

    /// Takes note of a statement that passes without a trial: inside a transaction block, or one of several of a pipeline.
    pub(crate) fn pass_by(&mut self, statement: &Statement, primary: &Client) {
        let catalog = self.stage.catalog(&self.database, false);
        let class = classify(&statement.text, &reading(primary), &catalog);
        self.note(&statement.text, &class, primary);
        let is_read = class.is_read() && class.transaction == TransactionControl::None;
        let mut report = self.stage.report.lock().unwrap();
        report.statements += 1;
        report.in_block += usize::from(is_read);
        if is_read && self.in_block.len() < IN_BLOCK_MAX && !self.in_block.contains(statement) {
            self.in_block.push(statement.clone());
        }
    }

    /// Tries the reads of a transaction block that has ended, each on its own. Their client has its answers.
    ///
    /// # Errors
    /// The primary's session is gone.
    pub(crate) fn try_those_of_block(&mut self, primary: &mut Client) -> io::Result<()> {
        for statement in std::mem::take(&mut self.in_block) {
            let tried = self.try_statement(&statement, primary)?.is_some();
            let mut report = self.stage.report.lock().unwrap();
            report.statements -= 1;
            report.in_block -= usize::from(tried);
        }
        Ok(())
    }

    fn note(&mut self, text: &[u8], class: &Class, primary: &Client) {
        self.changed |= may_change_catalog(class);
        if class.session.intersects(SessionEffects::SETTING) {
            let changes = SettingChanges::of(text, reading(primary).standard_conforming_strings);
            let names = changes.unwrap_or_default().names;
            self.custom
                .extend(names.into_iter().filter(|name| name.contains('.')));
        }
    }

    /// Tries a statement that came outside a block. `None` if it is not to be tried: then it has not been run yet, else
    /// here is what the primary answered.
    ///
    /// # Errors
    /// The primary's session is gone.
    pub(crate) fn try_statement(
        &mut self,
        statement: &Statement,
        primary: &mut Client,
    ) -> io::Result<Option<Vec<Message>>> {
        let text = statement.text.as_slice();
        primary.stream().set_read_timeout(Some(STATEMENT_LIMIT))?;
        let reading = reading(primary);
        let mut catalog = self.stage.catalog(&self.database, false);
        let mut class = classify(text, &reading, &catalog);
        self.stage.report.lock().unwrap().statements += 1;
        if self.changed && is_query(text) {
            catalog = self.stage.catalog(&self.database, true);
            class = classify(text, &reading, &catalog);
            self.changed = false;
        }
        self.note(text, &class, primary);
        let tried = class.transaction == TransactionControl::None
            && class.statements > 0
            && (class.is_read() || (class.statements == 1 && is_query(text)))
            && !NEVER.iter().any(|name| contains(text, name))
            && !contains(text, SLEEP);
        if !tried {
            return Ok(None);
        }
        let Some(before) = begin(primary)? else {
            self.stage.report.lock().unwrap().unobserved += usize::from(class.is_read());
            return Ok(None);
        };
        let answer = run(primary, statement)?;
        let after = end(primary, &answer)?;
        self.judge(
            statement,
            class,
            &catalog,
            &before,
            after.as_ref(),
            &answer,
            primary,
        )?;
        Ok(Some(as_outside_a_block(answer)))
    }

    #[expect(clippy::too_many_arguments, reason = "a trial hears all sides")]
    fn judge(
        &mut self,
        statement: &Statement,
        class: Class,
        catalog: &Arc<FunctionCatalog>,
        before: &State,
        after: Option<&State>,
        answer: &[Message],
        primary: &mut Client,
    ) -> io::Result<()> {
        let text = statement.text.as_slice();
        let on_primary = Outcome::of(answer);
        let left = after.map(|after| after.changes(before)).unwrap_or_default();
        // What such a session asks goes to the primary, whatever its class: `current_schema()` may make the schema.
        let names_temporary = before.column("temporary schema in the search path") == "t";
        let pinned = names_temporary
            || before.column("temporary objects") != "0"
            || before.column("isolation") == "serializable";
        let is_read = class.access == Access::Read;
        if is_read && !names_temporary && !left.is_empty() {
            let what = format!("a read leaves something on the primary: {}", left.join("; "));
            self.stage.report.lock().unwrap().violation(&what, text);
        }
        if pinned {
            self.stage.report.lock().unwrap().pinned += usize::from(is_read);
            return Ok(());
        }
        if on_primary.sqlstate == CANCELLED {
            self.stage.report.lock().unwrap().unsteady += usize::from(is_read);
            return Ok(());
        }
        // What changed the primary cannot be compared, and has been told.
        if !left.is_empty() {
            self.stage.report.lock().unwrap().others += usize::from(!is_read);
            return Ok(());
        }
        let Some(answers) = self.compare(statement, on_primary, before, is_read, primary)? else {
            let mut report = self.stage.report.lock().unwrap();
            if is_read {
                report.violation("a read ends its session on the standby", text);
            }
            return Ok(());
        };
        let Answers {
            on_primary,
            on_standby,
            left,
            steady,
        } = answers;
        let agrees = on_standby.agrees(&on_primary);
        let mut report = self.stage.report.lock().unwrap();
        if !is_read {
            report.others += 1;
            if agrees && left.is_empty() && on_primary.sqlstate.is_empty() {
                report.needless(&explain(text, &reading(primary), catalog), text);
            }
            return Ok(());
        }
        report.reads += 1;
        report.extended += usize::from(statement.parameters.is_some());
        if !left.is_empty() {
            let what = format!("a read leaves something on the standby: {}", left.join("; "));
            report.violation(&what, text);
        }
        if on_standby.sqlstate == "25006" {
            report.violation(&format!("a standby refuses a read: {}", on_standby.error), text);
        } else if !steady {
            report.unsteady += 1;
        } else if agrees {
            report.compared += 1;
        } else {
            let what = format!("another answer: primary {on_primary}, standby {on_standby}");
            report.violation(&what, text);
        }
        Ok(())
    }

    /// Has the standby answer as well. `None` if that ended its session.
    ///
    /// Other sessions of a program may write between the two answers: a read that is answered differently is tried again.
    fn compare(
        &mut self,
        statement: &Statement,
        on_primary: Outcome,
        before: &State,
        is_read: bool,
        primary: &mut Client,
    ) -> io::Result<Option<Answers>> {
        let steady = !is_read || self.is_steady(statement, &on_primary, primary)?;
        let Some((on_standby, left)) = self.on_standby(statement, before, primary)? else {
            return Ok(None);
        };
        let mut answers = Answers {
            on_primary,
            on_standby,
            left,
            steady,
        };
        for _ in 0..AGAIN {
            let differs = is_read && answers.steady && !answers.on_standby.agrees(&answers.on_primary);
            if !differs || answers.on_standby.sqlstate == "25006" {
                break;
            }
            let Some(before) = begin(primary)? else { break };
            let answer = run(primary, statement)?;
            end(primary, &answer)?;
            answers.on_primary = Outcome::of(&answer);
            answers.steady = self.is_steady(statement, &answers.on_primary, primary)?;
            match self.on_standby(statement, &before, primary)? {
                Some((again, _)) => answers.on_standby = again,
                None => return Ok(None),
            }
        }
        Ok(Some(answers))
    }

    /// Whether the primary gives the same answer again. Only reads are asked twice.
    fn is_steady(&self, statement: &Statement, first: &Outcome, primary: &mut Client) -> io::Result<bool> {
        if begin(primary)?.is_none() {
            return Ok(false);
        }
        let again = run(primary, statement)?;
        end(primary, &again)?;
        Ok(Outcome::of(&again).agrees(first))
    }

    /// What a text answers on the standby and leaves there, once the standby has all that the primary has. `None` if it
    /// ended the session.
    fn on_standby(
        &mut self,
        statement: &Statement,
        like: &State,
        primary: &mut Client,
    ) -> io::Result<Option<(Outcome, Vec<String>)>> {
        let mut tried_before = false;
        loop {
            match self.on_this_standby(statement, like, primary) {
                Ok(found) => return Ok(Some(found)),
                // Replaying DROP DATABASE and the like ends sessions; one try on a new one tells these apart.
                Err(_) if !tried_before => tried_before = true,
                Err(_) => return Ok(None),
            }
            self.standby = None;
        }
    }

    fn on_this_standby(
        &mut self,
        statement: &Statement,
        like: &State,
        primary: &mut Client,
    ) -> io::Result<(Outcome, Vec<String>)> {
        let position = like.column("position");
        let mut standby = match self.standby.take() {
            Some(standby) => standby,
            None => Standby::connect(self.stage, &self.startup, position)?,
        };
        standby.wait_for(position)?;
        standby.become_like(like, &self.custom, primary)?;
        let before = begin(&mut standby.client)?.ok_or(io::ErrorKind::Other)?;
        let answer = run(&mut standby.client, statement)?;
        let after = end(&mut standby.client, &answer)?;
        self.standby = Some(standby);
        let left = after.map(|after| after.changes(&before)).unwrap_or_default();
        Ok((Outcome::of(&answer), left))
    }
}

impl Standby {
    /// Connects as the client did, once the standby has replayed what this needs: roles and databases.
    fn connect(stage: &Stage, startup: &[u8], position: &str) -> io::Result<Self> {
        let mut waiting = Self {
            client: stage.standby.superuser("postgres").connect(),
            like: None,
            replayed: String::new(),
        };
        waiting.wait_for(position)?;
        let mut client = Client::open(stage.standby.port)?;
        client.stream().set_read_timeout(Some(STATEMENT_LIMIT))?;
        client.try_send(startup)?;
        loop {
            match client.try_receive()?.kind {
                b'Z' => break,
                b'E' => return Err(io::ErrorKind::ConnectionRefused.into()),
                _ => {}
            }
        }
        Ok(Self {
            client,
            like: None,
            replayed: waiting.replayed,
        })
    }

    fn wait_for(&mut self, position: &str) -> io::Result<()> {
        if self.replayed == position {
            return Ok(());
        }
        let deadline = Instant::now() + REPLAY_LIMIT;
        let question = format!(
            "SELECT pg_catalog.pg_last_wal_replay_lsn() OPERATOR(pg_catalog.>=) '{position}'::pg_catalog.pg_lsn"
        );
        while rows(&simple(&mut self.client, question.as_bytes())?) != [[Some("t".to_owned())]] {
            assert!(
                Instant::now() < deadline,
                "the standby does not get to {position}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        position.clone_into(&mut self.replayed);
        Ok(())
    }

    /// Sets what the primary's session has set, and takes its role.
    fn become_like(
        &mut self,
        like: &State,
        custom: &BTreeSet<String>,
        primary: &mut Client,
    ) -> io::Result<()> {
        let same = |column| {
            self.like
                .as_ref()
                .is_some_and(|now| now.column(column) == like.column(column))
        };
        if same("settings") && same("role") && custom.is_empty() {
            return Ok(());
        }
        let mut settings = rows(&simple(primary, SETTINGS.as_bytes())?);
        for name in custom {
            let question = format!(
                "SELECT pg_catalog.quote_literal('{name}') || ', ' || \
                 pg_catalog.quote_literal(pg_catalog.current_setting('{name}', true))"
            );
            settings.extend(rows(&simple(primary, question.as_bytes())?));
        }
        let roles = rows(&simple(primary, ROLES.as_bytes())?);
        let mut sql = String::from("RESET SESSION AUTHORIZATION; RESET ALL; ");
        for setting in settings.iter().flatten().flatten() {
            sql.push_str(&format!("SELECT pg_catalog.set_config({setting}, false); "));
        }
        if let [[Some(session), Some(current)]] = roles.iter().map(Vec::as_slice).collect::<Vec<_>>()[..] {
            sql.push_str(&format!(
                "SET SESSION AUTHORIZATION {session}; SET ROLE {current}"
            ));
        }
        // What the session may not set again as a mere role has been set by a superuser; then the trial cannot be held.
        let answer = simple(&mut self.client, sql.as_bytes())?;
        if answer.iter().any(|message| message.kind == b'E') {
            return Err(io::ErrorKind::Other.into());
        }
        self.like = Some(like.clone());
        Ok(())
    }
}

/// Opens a block and looks at the session. `None` if it cannot be seen; then there is no block.
fn begin(client: &mut Client) -> io::Result<Option<State>> {
    let answer = simple(client, format!("BEGIN; {STATE}").as_bytes())?;
    if answer.iter().any(|message| message.kind == b'E') {
        simple(client, b"ROLLBACK")?;
        return Ok(None);
    }
    Ok(rows(&answer).pop().map(State))
}

/// Looks at the session again and ends the block. `None` if the statement failed.
fn end(client: &mut Client, answer: &[Message]) -> io::Result<Option<State>> {
    let failed = answer.last().is_none_or(|ready| ready.body != b"T");
    if failed {
        simple(client, b"ROLLBACK")?;
        return Ok(None);
    }
    let state = rows(&simple(client, STATE.as_bytes())?).pop().map(State);
    simple(client, b"COMMIT")?;
    Ok(state)
}

fn rows(messages: &[Message]) -> Vec<Vec<Option<String>>> {
    let rows = messages.iter().filter(|message| message.kind == b'D');
    rows.map(Message::columns).collect()
}

/// The answer as the client would have had it: not in the block that the trial opened.
fn as_outside_a_block(mut messages: Vec<Message>) -> Vec<Message> {
    if let Some(ready) = messages.last_mut() {
        ready.body = b"I".to_vec();
    }
    messages
}

fn reading(client: &Client) -> Settings {
    Settings {
        standard_conforming_strings: client
            .parameters
            .get("standard_conforming_strings")
            .is_none_or(|value| value == "on"),
        encoding: client
            .parameters
            .get("client_encoding")
            .map_or(halyard::classify::Encoding::Safe, |name| {
                halyard::classify::Encoding::of_client_encoding(name)
            }),
        ..Settings::default()
    }
}

fn may_change_catalog(class: &Class) -> bool {
    class.ddl
        || class
            .session
            .intersects(SessionEffects::OPAQUE.union(SessionEffects::UNKNOWN))
}

/// Whether a text begins like a query, so that a standby may be able to answer it.
fn is_query(text: &[u8]) -> bool {
    let first = halyard::classify::Lexer::new(text, true)
        .find(|token| token.kind != halyard::classify::TokenKind::Comment)
        .map(|token| token.bytes(text).to_ascii_lowercase())
        .unwrap_or_default();
    match first.as_slice() {
        b"(" | b"select" | b"values" | b"table" | b"with" | b"show" | b"explain" => true,
        b"copy" => contains(text, b"to stdout"),
        _ => false,
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len())
        .any(|window| window.eq_ignore_ascii_case(part))
}

const _: () = assert!(PATIENCE.as_secs() < STATEMENT_LIMIT.as_secs());
