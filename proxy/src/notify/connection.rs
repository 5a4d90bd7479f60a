//! The connection that listens: questions out, notifications in.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::mailbox::Notification;
use crate::error::{Report, SqlState};
use crate::login::BackendLink;
use crate::stream::Stream;
use crate::wire::{self, HEADER_SIZE, Header, backend, error_fields};

/// Longest message taken from the server. A payload has less than 8,000 bytes (`NOTIFY_PAYLOAD_MAX_LENGTH` in
/// async.c), in other encodings up to four times as many; nothing else that is asked here has a long answer.
const MESSAGE_SIZE_MAX: usize = 64 * 1024;

/// What the server said.
#[derive(Debug)]
pub(super) enum Said {
    /// Somebody notified.
    Notification(Notification),
    /// A statement is done.
    Done,
    /// An empty statement is done: the mark before and behind the statements of a question.
    Mark,
    /// The server waits for the next message.
    Ready,
    /// It refused something and goes on.
    Refused(Report),
    /// What matters to nobody here.
    Other,
}

/// A connection that listens.
pub(super) struct Connection {
    stream: Stream,
    input: BytesMut,
}

impl Connection {
    /// Takes over a fresh login.
    pub(super) fn new(link: BackendLink) -> Self {
        Self {
            stream: link.stream,
            input: BytesMut::from(&link.leftover[..]),
        }
    }

    /// Puts a question. Not cancel safe: a connection dropped in the middle has to be closed.
    ///
    /// In front of statements goes an empty one: between two messages the server looks at what it was notified of
    /// before. Otherwise a LISTEN may be told of what was committed before it was asked for. Behind them goes another: what
    /// the server says on its own may look like an answer, but not like the answer to that.
    pub(super) async fn ask(&mut self, sql: &[u8]) -> Result<(), Report> {
        let mut message = Vec::with_capacity(3 * (HEADER_SIZE + 1) + sql.len());
        wire::query(&mut message, b"");
        if !sql.is_empty() {
            wire::query(&mut message, sql);
            wire::query(&mut message, b"");
        }
        self.stream
            .write_all(&message)
            .await
            .map_err(|error| lost(&error))?;
        self.stream.flush().await.map_err(|error| lost(&error))
    }

    /// Waits for the next message. Cancel safe: the beginning of a message stays in the connection.
    ///
    /// # Errors
    /// The connection is of no use any more: the server ends it, broke the protocol, or is gone.
    pub(super) async fn next(&mut self) -> Result<Said, Report> {
        loop {
            if let Some(header) = Header::parse(&self.input).map_err(|_| broken())? {
                let total = header.total();
                if total > MESSAGE_SIZE_MAX {
                    return Err(broken());
                }
                if self.input.len() >= total {
                    let said = read(header, &self.input[..total]);
                    self.input.advance(total);
                    return said;
                }
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return Err(lost(&io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(lost(&error)),
            }
        }
    }
}

fn read(header: Header, frame: &[u8]) -> Result<Said, Report> {
    Ok(match header.kind {
        backend::NOTIFICATION_RESPONSE => Said::Notification(Notification::new(frame).ok_or_else(broken)?),
        backend::COMMAND_COMPLETE => Said::Done,
        backend::EMPTY_QUERY_RESPONSE => Said::Mark,
        backend::READY_FOR_QUERY => Said::Ready,
        backend::ERROR_RESPONSE => {
            let fields = error_fields(&frame[HEADER_SIZE..]);
            let message = String::from_utf8_lossy(fields.message).into_owned();
            if fields.fatal {
                return Err(Report::fatal(fields.sqlstate, message));
            }
            Said::Refused(Report::error(fields.sqlstate, message))
        }
        _ => Said::Other,
    })
}

fn lost(error: &io::Error) -> Report {
    Report::error(
        SqlState::CONNECTION_FAILURE,
        format!("the connection to the node was lost: {error}"),
    )
}

fn broken() -> Report {
    Report::error(SqlState::CONNECTION_FAILURE, "the node broke the protocol")
}
