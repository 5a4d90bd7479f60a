//! A client before it is known: its stream, and what was read of it.

use std::time::Duration;
use std::{fmt, io};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Accepted, StartupError};
use crate::error::{Report, SqlState};
use crate::handshake::{Inbox, ReadError};
use crate::stream::Stream;

/// How long a refused client is listened to, so that what it was told is not lost: closing a socket with unread
/// bytes in it makes the kernel reset the connection, and a reset throws away what the client has not read yet.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);
/// Most bytes thrown away meanwhile.
const FAREWELL_SIZE_MAX: usize = 64 * 1024;

/// Why a client did not become a session.
#[derive(Debug)]
pub(super) enum Ended {
    /// It went away between two messages: a probe, or psql asking its user for the password.
    Gone,
    /// It is told why.
    Refused(Report),
    /// It cannot be told anything.
    Io(io::Error),
}

impl From<Report> for Ended {
    fn from(report: Report) -> Self {
        Ended::Refused(report)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Ended::Io(error)
    }
}

/// A client's stream, and what was read of it.
pub(super) struct Client {
    pub(super) stream: Stream,
    pub(super) inbox: Inbox,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client(…)")
    }
}

impl Client {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            inbox: Inbox::default(),
        }
    }

    /// Writes and empties `pending`.
    pub(super) async fn send(&mut self, pending: &mut BytesMut) -> Result<(), Ended> {
        self.stream.write_all(pending).await?;
        self.stream.flush().await?;
        pending.clear();
        Ok(())
    }

    /// Reads the client's answer to an authentication request: a message of type `p`. `what` names it in errors.
    pub(super) async fn answer(&mut self, what: &str, size_max: usize) -> Result<Bytes, Ended> {
        match self.inbox.message(&mut self.stream, size_max).await {
            Ok((b'p', body)) => Ok(body),
            Ok((kind, _)) => Err(unexpected(what, kind)),
            Err(ReadError::Length { kind, .. }) if kind != b'p' => Err(unexpected(what, kind)),
            Err(error) => Err(ended(error, "invalid message length")),
        }
    }

    /// Ends the conversation: tells the client, as far as it can be told.
    pub(super) async fn end(mut self, ended: Ended) -> Result<Accepted, StartupError> {
        match ended {
            Ended::Gone => Ok(Accepted::Nothing),
            Ended::Io(error) => Err(StartupError::Io(error)),
            Ended::Refused(report) => {
                say_farewell(&mut self.stream, &report).await;
                Err(StartupError::Refused(report))
            }
        }
    }
}

fn unexpected(what: &str, kind: u8) -> Ended {
    let message = format!("expected {what} response, got message type {kind}");
    Ended::Refused(Report::fatal(SqlState::PROTOCOL_VIOLATION, message))
}

/// What a failed read means; `length_message` is said of a length that cannot be.
pub(super) fn ended(error: ReadError, length_message: &'static str) -> Ended {
    match error {
        ReadError::Closed => Ended::Gone,
        ReadError::Truncated => Ended::Io(io::ErrorKind::UnexpectedEof.into()),
        // A reset tells no more than a close.
        ReadError::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => Ended::Gone,
        ReadError::Io(error) => Ended::Io(error),
        ReadError::Length { length, .. } => Ended::Refused(
            Report::fatal(SqlState::PROTOCOL_VIOLATION, length_message)
                .with_detail(format!("The declared length is {length}.")),
        ),
    }
}

/// Writes a report and closes the stream so that the client can read it. Failures are left alone: the connection
/// ends either way, and why is in the report. Takes no longer than [`FAREWELL_TIMEOUT`].
pub(super) async fn say_farewell(stream: &mut Stream, report: &Report) {
    let mut message = Vec::new();
    report.encode(&mut message);
    let farewell = async {
        stream.write_all(&message).await?;
        // With TLS this also sends close_notify.
        stream.shutdown().await?;
        let mut discarded = [0; 1024];
        let mut left = FAREWELL_SIZE_MAX;
        while left > 0 {
            match stream.read(&mut discarded).await? {
                0 => break,
                size => left = left.saturating_sub(size),
            }
        }
        io::Result::Ok(())
    };
    // A timeout and a lost client end alike.
    drop(tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await);
}
