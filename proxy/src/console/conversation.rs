//! What a client says to the console and hears from it, in both protocols.
//!
//! In the extended protocol a statement is read when it is parsed, described from its columns, which are the same
//! whatever is in the table, and run by Execute with all of its rows at once.

use std::collections::HashMap;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::command::Command;
use super::table::{Formats, Table};
use super::{Answer, Console, explain, show};
use crate::error::{Report, SqlState};
use crate::session::{Doing, Message, Registered};
use crate::startup::Login;
use crate::stream::Stream;
use crate::wire::{
    self, HEADER_SIZE, Header, backend, bind_names, frontend, parse_parts, tagged, target_name,
};

/// Longest message; bytes. EXPLAIN ROUTE takes a statement as long as any that is read.
const MESSAGE_SIZE_MAX: usize = 1 << 20;
/// Statements, and portals, that a client may have.
const NAMES_MAX: usize = 100;
/// With so much that the client has not taken, no further command runs. Bytes; the answer to one command may be longer.
const UNTAKEN_MAX: usize = 64 * 1024;
/// How long a client may take to take an answer.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// Bytes read at a time.
const READ_SIZE: usize = 4096;

/// Parameters that a client is told. The version is that of the protocol and the dialect that drivers may expect.
const PARAMETERS: [(&str, &str); 8] = [
    ("server_version", "15.0 (Halyard)"),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "off"),
];

/// A client of the console.
pub(super) struct Conversation {
    console: Console,
    stream: Stream,
    registered: Registered,
    /// What was read and not yet looked at.
    input: Vec<u8>,
    out: Vec<u8>,
    statements: HashMap<Vec<u8>, Vec<Command>>,
    portals: HashMap<Vec<u8>, (Vec<Command>, Formats)>,
    /// What drivers are told of the transaction that they believe to be in: `I`, `T` or `E`.
    status: u8,
    /// Whether everything up to the next Sync is ignored.
    skipping: bool,
}

/// What comes next.
enum Next {
    Frame { kind: u8, body: Vec<u8> },
    Gone,
    Leave,
    Broken(Report),
}

/// Why a message is not answered to its end.
enum Stop {
    /// The client is told why.
    Refused(Report),
    /// It takes nothing any more.
    Gone,
}

impl From<Report> for Stop {
    fn from(report: Report) -> Self {
        Stop::Refused(report)
    }
}

impl Conversation {
    /// Of a client that has just logged in; it is told so with the first answer.
    pub(super) fn new(console: Console, login: Box<Login>, registered: Registered, key: &[u8]) -> Self {
        let login = *login;
        let mut out = login.pending;
        for (name, value) in PARAMETERS {
            wire::write_parameter_status(&mut out, name, value);
        }
        tagged(&mut out, backend::BACKEND_KEY_DATA, |out| {
            out.extend_from_slice(key);
        });
        wire::ready_for_query(&mut out, b'I');
        Self {
            console,
            stream: login.stream,
            registered,
            input: login.leftover,
            out,
            statements: HashMap::new(),
            portals: HashMap::new(),
            status: b'I',
            skipping: false,
        }
    }

    /// Answers until the client leaves, or the proxy ends.
    pub(super) async fn run(mut self) {
        loop {
            match self.next().await {
                Next::Frame { kind, body } => {
                    if kind == frontend::TERMINATE {
                        return;
                    }
                    self.registered.inbox.set_doing(Doing::Active);
                    if !self.answer(kind, &body).await {
                        return;
                    }
                    self.registered.inbox.set_doing(Doing::Idle);
                }
                Next::Gone => return,
                Next::Leave => {
                    return self
                        .say_farewell(&Report::fatal(
                            SqlState::ADMIN_SHUTDOWN,
                            "terminating connection due to administrator command",
                        ))
                        .await;
                }
                Next::Broken(report) => return self.say_farewell(&report).await,
            }
        }
    }

    /// Writes what is to be said, and waits for a whole frame.
    async fn next(&mut self) -> Next {
        loop {
            match Header::parse_frontend(&self.input) {
                Ok(Some(header)) if header.total() > MESSAGE_SIZE_MAX => {
                    return Next::Broken(Report::fatal(
                        SqlState::PROGRAM_LIMIT_EXCEEDED,
                        format!("a message to the console has at most {MESSAGE_SIZE_MAX} bytes"),
                    ));
                }
                Ok(Some(header)) if self.input.len() >= header.total() => {
                    let body = self.input[HEADER_SIZE..header.total()].to_vec();
                    self.input.drain(..header.total());
                    return Next::Frame {
                        kind: header.kind,
                        body,
                    };
                }
                Ok(_) => {}
                Err(error) => {
                    return Next::Broken(Report::fatal(SqlState::PROTOCOL_VIOLATION, error.to_string()));
                }
            }
            if !self.flush().await {
                return Next::Gone;
            }
            let mut chunk = [0; READ_SIZE];
            let (stream, inbox) = (&mut self.stream, &self.registered.inbox);
            let read = poll_fn(|cx| {
                while inbox.is_ringing(cx) {
                    let messages = inbox.take();
                    drop(inbox.take_cancels());
                    if messages.has(Message::Terminate) || messages.has(Message::Drain) {
                        return Poll::Ready(None);
                    }
                }
                stream.poll_read_into(cx, &mut chunk).map(Some)
            });
            match read.await {
                None => return Next::Leave,
                Some(Ok(count)) if count > 0 => self.input.extend_from_slice(&chunk[..count]),
                Some(_) => return Next::Gone,
            }
        }
    }

    /// False when the client takes nothing any more.
    async fn flush(&mut self) -> bool {
        let written = timeout(WRITE_LIMIT, async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        });
        let taken = matches!(written.await, Ok(Ok(())));
        self.out = Vec::new();
        taken
    }

    async fn say_farewell(mut self, report: &Report) {
        report.encode(&mut self.out);
        // A client that does not listen is gone all the same.
        self.flush().await;
        let _ = timeout(WRITE_LIMIT, self.stream.shutdown()).await;
    }

    /// False when the client takes nothing any more.
    async fn answer(&mut self, kind: u8, body: &[u8]) -> bool {
        match kind {
            frontend::SYNC => {
                self.skipping = false;
                wire::ready_for_query(&mut self.out, self.status);
            }
            frontend::FLUSH | frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => {}
            frontend::QUERY => {
                let text = String::from_utf8_lossy(body.strip_suffix(&[0]).unwrap_or(body)).into_owned();
                let ran = match Command::parse_all(&text) {
                    Ok(commands) => self.run_all(&commands, Some(&Formats::default())).await,
                    Err(report) => Err(report.into()),
                };
                match ran {
                    Ok(()) => {}
                    Err(Stop::Refused(report)) => self.fail(&report),
                    Err(Stop::Gone) => return false,
                }
                wire::ready_for_query(&mut self.out, self.status);
            }
            frontend::FUNCTION_CALL => {
                self.fail(&Report::error(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "the admin console has no functions",
                ));
                wire::ready_for_query(&mut self.out, self.status);
            }
            _ if self.skipping => {}
            _ => match self.answer_extended(kind, body).await {
                Ok(()) => {}
                Err(Stop::Refused(report)) => {
                    self.fail(&report);
                    self.skipping = true;
                }
                Err(Stop::Gone) => return false,
            },
        }
        true
    }

    fn fail(&mut self, report: &Report) {
        if self.status == b'T' {
            self.status = b'E';
        }
        report.encode(&mut self.out);
    }

    async fn answer_extended(&mut self, kind: u8, body: &[u8]) -> Result<(), Stop> {
        match kind {
            frontend::PARSE => {
                let parts = parse_parts(body).ok_or_else(malformed)?;
                let commands = Command::parse_all(&String::from_utf8_lossy(&body[parts.text]))?;
                if commands.len() > 1 {
                    return Err(Report::error(
                        SqlState::SYNTAX_ERROR,
                        "cannot insert multiple commands into a prepared statement",
                    )
                    .into());
                }
                put(&mut self.statements, &body[parts.name], commands)?;
                wire::empty_message(&mut self.out, backend::PARSE_COMPLETE);
            }
            frontend::BIND => {
                let names = bind_names(body).ok_or_else(malformed)?;
                let commands = self.statement(&body[names.statement.clone()])?.clone();
                let formats = result_formats(body, names.statement.end + 1).ok_or_else(malformed)?;
                put(&mut self.portals, &body[names.portal], (commands, formats))?;
                wire::empty_message(&mut self.out, backend::BIND_COMPLETE);
            }
            frontend::DESCRIBE => {
                let (kind, name) = target_name(body).ok_or_else(malformed)?;
                let (commands, formats) = if kind == b'S' {
                    let commands = self.statement(&body[name])?.clone();
                    tagged(&mut self.out, backend::PARAMETER_DESCRIPTION, |out| {
                        out.extend_from_slice(&[0, 0]);
                    });
                    (commands, Formats::default())
                } else {
                    self.portal(&body[name])?.clone()
                };
                match commands.first() {
                    Some(Command::Show(what)) => {
                        Table::describe(show::columns(*what), &formats, &mut self.out);
                    }
                    Some(Command::ExplainRoute { .. }) => {
                        Table::describe(explain::COLUMNS, &formats, &mut self.out);
                    }
                    _ => wire::empty_message(&mut self.out, backend::NO_DATA),
                }
            }
            frontend::EXECUTE => {
                let end = body.iter().position(|byte| *byte == 0).ok_or_else(malformed)?;
                let (commands, formats) = self.portal(&body[..end])?.clone();
                self.run_bound(&commands, &formats).await?;
            }
            frontend::CLOSE => {
                let (kind, name) = target_name(body).ok_or_else(malformed)?;
                if kind == b'S' {
                    self.statements.remove(&body[name]);
                } else {
                    self.portals.remove(&body[name]);
                }
                wire::empty_message(&mut self.out, backend::CLOSE_COMPLETE);
            }
            _ => return Err(malformed().into()),
        }
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<&Vec<Command>, Report> {
        self.statements.get(name).ok_or_else(|| {
            Report::error(
                SqlState::INVALID_SQL_STATEMENT_NAME,
                format!(
                    "prepared statement \"{}\" does not exist",
                    String::from_utf8_lossy(name)
                ),
            )
        })
    }

    fn portal(&self, name: &[u8]) -> Result<&(Vec<Command>, Formats), Report> {
        self.portals.get(name).ok_or_else(|| {
            Report::error(
                SqlState::INVALID_CURSOR_NAME,
                format!("portal \"{}\" does not exist", String::from_utf8_lossy(name)),
            )
        })
    }

    /// Runs the commands of a Query message, each with the description of its rows.
    async fn run_all(&mut self, commands: &[Command], described: Option<&Formats>) -> Result<(), Stop> {
        for command in commands {
            let answer = self.run_one(command).await?;
            if let (Answer::Table(table, _), Some(formats)) = (&answer, described) {
                Table::describe(table.columns, formats, &mut self.out);
            }
            self.tell(&answer, &Formats::default());
            self.relieve().await?;
        }
        Ok(())
    }

    async fn run_bound(&mut self, commands: &[Command], formats: &Formats) -> Result<(), Stop> {
        for command in commands {
            let answer = self.run_one(command).await?;
            self.tell(&answer, formats);
            self.relieve().await?;
        }
        Ok(())
    }

    /// Waits until the client has taken what was said, if that is much: one message asks for as many tables as it has
    /// room for.
    async fn relieve(&mut self) -> Result<(), Stop> {
        if self.out.len() < UNTAKEN_MAX || self.flush().await {
            Ok(())
        } else {
            Err(Stop::Gone)
        }
    }

    fn tell(&mut self, answer: &Answer, formats: &Formats) {
        let tag = match answer {
            Answer::Table(table, tag) => {
                table.encode_rows(formats, &mut self.out);
                tag
            }
            Answer::Done(tag) => tag,
            Answer::Empty => {
                wire::empty_message(&mut self.out, backend::EMPTY_QUERY_RESPONSE);
                return;
            }
        };
        tagged(&mut self.out, backend::COMMAND_COMPLETE, |out| {
            out.extend_from_slice(tag.as_bytes());
            out.push(0);
        });
    }

    /// Runs a command, and follows what a driver believes of its transaction. A cancel request ends the wait of a PAUSE.
    async fn run_one(&mut self, command: &Command) -> Result<Answer, Report> {
        if self.status == b'E' && !matches!(command, Command::End(_) | Command::Empty) {
            return Err(Report::error(
                SqlState::IN_FAILED_SQL_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            ));
        }
        let inbox = &self.registered.inbox;
        let cancelled = poll_fn(|cx| {
            while inbox.is_ringing(cx) {
                let messages = inbox.take();
                drop(inbox.take_cancels());
                if messages.has(Message::Cancel) {
                    return Poll::Ready(());
                }
                if messages.has(Message::Terminate) || messages.has(Message::Drain) {
                    // It is heard again when the client is waited for.
                    inbox.ring(Message::Drain);
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        });
        let answer = tokio::select! {
            biased;
            answer = self.console.run(command) => answer?,
            () = cancelled => return Err(Report::error(
                SqlState::QUERY_CANCELED,
                "canceling statement due to user request",
            )),
        };
        match command {
            Command::Begin => self.status = b'T',
            Command::End(_) => self.status = b'I',
            _ => {}
        }
        Ok(answer)
    }
}

/// Gives a name its meaning; the unnamed one may be given again.
fn put<T>(names: &mut HashMap<Vec<u8>, T>, name: &[u8], value: T) -> Result<(), Report> {
    if names.len() >= NAMES_MAX && !names.contains_key(name) {
        return Err(Report::error(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            format!("the console keeps at most {NAMES_MAX} statements and portals"),
        ));
    }
    names.insert(name.to_vec(), value);
    Ok(())
}

/// The format codes of results at the end of a Bind, whose list of parameter formats begins `at`.
fn result_formats(body: &[u8], at: usize) -> Option<Formats> {
    let mut rest = body.get(at..)?;
    let mut number = || -> Option<i16> {
        let (bytes, behind) = rest.split_first_chunk::<2>()?;
        rest = behind;
        Some(i16::from_be_bytes(*bytes))
    };
    for _ in 0..number()? {
        number()?;
    }
    // No command takes parameters.
    if number()? != 0 {
        return None;
    }
    let count = number()?;
    (0..count).map(|_| number()).collect::<Option<_>>().map(Formats)
}

fn malformed() -> Report {
    Report::error(
        SqlState::PROTOCOL_VIOLATION,
        "invalid message format, or parameters that no command takes",
    )
}
