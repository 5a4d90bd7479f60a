//! A node during its login: messages in and out.

use bytes::{Buf, Bytes, BytesMut};
use pgwire::messages::Message;
use tokio::io::AsyncWriteExt;

use super::{BackendKey, BackendLink, LOGIN_MESSAGE_SIZE_MAX, LOGIN_SIZE_MAX, LoginError};
use crate::error::{Report, Severity, SqlState};
use crate::handshake::{Inbox, ReadError, take_cstring};
use crate::startup::CancelKey;
use crate::stream::Stream;

/// A node during its login.
pub(super) struct Node {
    pub(super) stream: Stream,
    inbox: Inbox,
    /// Bytes of messages taken so far.
    taken: usize,
}

impl Node {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            inbox: Inbox::default(),
            taken: 0,
        }
    }

    /// Encodes and writes one message.
    pub(super) async fn send(&mut self, message: &impl Message) -> Result<(), LoginError> {
        let mut bytes = BytesMut::new();
        message
            .encode(&mut bytes)
            .map_err(|_| LoginError::Protocol("a message for the node is too long"))?;
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// The next message that is neither an ErrorResponse, which is an error here, nor a NoticeResponse, which
    /// nobody waits for.
    pub(super) async fn next(&mut self) -> Result<(u8, Bytes), LoginError> {
        loop {
            let (kind, body) = self.read().await?;
            self.taken += body.len();
            if self.taken > LOGIN_SIZE_MAX {
                return Err(LoginError::Protocol("the node says more than a login takes"));
            }
            match kind {
                b'E' => return Err(LoginError::Server(read_error(body))),
                b'N' => {}
                kind => return Ok((kind, body)),
            }
        }
    }

    async fn read(&mut self) -> Result<(u8, Bytes), LoginError> {
        let message = self.inbox.message(&mut self.stream, LOGIN_MESSAGE_SIZE_MAX).await;
        message.map_err(|error| match error {
            ReadError::Io(error) => LoginError::Io(error),
            ReadError::Closed | ReadError::Truncated => {
                LoginError::Io(std::io::ErrorKind::UnexpectedEof.into())
            }
            ReadError::Length { .. } => LoginError::Protocol("a message with an impossible length"),
        })
    }

    /// Reads from AuthenticationOk to ReadyForQuery.
    pub(super) async fn ready(mut self) -> Result<BackendLink, LoginError> {
        let mut parameters = Vec::new();
        let mut key = None;
        loop {
            match self.next().await? {
                (b'S', body) => {
                    let (name, value) =
                        read_parameter(body).ok_or(LoginError::Protocol("malformed ParameterStatus"))?;
                    report(&mut parameters, name, value);
                }
                (b'K', body) => {
                    key = Some(read_key(body).ok_or(LoginError::Protocol("malformed BackendKeyData"))?);
                }
                (b'Z', body) => {
                    let &[transaction_status] = &body[..] else {
                        return Err(LoginError::Protocol("malformed ReadyForQuery"));
                    };
                    return Ok(BackendLink {
                        stream: self.stream,
                        leftover: self.inbox.into_leftover(),
                        parameters,
                        key: key.ok_or(LoginError::Protocol("no BackendKeyData before ReadyForQuery"))?,
                        transaction_status,
                    });
                }
                _ => return Err(LoginError::Protocol("an unexpected message before ReadyForQuery")),
            }
        }
    }
}

fn report(parameters: &mut Vec<(String, String)>, name: String, value: String) {
    match parameters.iter_mut().find(|(known, _)| *known == name) {
        Some(known) => known.1 = value,
        None => parameters.push((name, value)),
    }
}

/// ParameterStatus: a name and a value. A value that is not UTF-8 would not survive being told to clients.
pub(super) fn read_parameter(mut body: Bytes) -> Option<(String, String)> {
    let name = take_cstring(&mut body)?;
    let value = take_cstring(&mut body)?;
    let text = |bytes: Bytes| String::from_utf8(bytes.into()).ok();
    (body.is_empty() && !name.is_empty()).then_some((text(name)?, text(value)?))
}

/// BackendKeyData: a process ID and a secret of 4 to 256 bytes.
pub(super) fn read_key(mut body: Bytes) -> Option<BackendKey> {
    let pid = i32::from_be_bytes(*body.first_chunk()?);
    body.advance(4);
    CancelKey::SECRET_SIZES.contains(&body.len()).then(|| BackendKey {
        pid,
        secret: body.to_vec(),
    })
}

/// ErrorResponse. A node may leave out whatever it likes: what is missing is said to be missing.
pub(super) fn read_error(mut body: Bytes) -> Report {
    let mut report = Report::fatal(SqlState::PROTOCOL_VIOLATION, "the node refused without a message");
    while !body.is_empty() {
        let field = body.get_u8();
        // The list ends with a zero; a field that does not end is none.
        let Some(value) = (field != 0).then(|| take_cstring(&mut body)).flatten() else {
            break;
        };
        let text = || String::from_utf8_lossy(&value).into_owned();
        match field {
            b'V' if &value[..] == b"ERROR" => report.severity = Severity::Error,
            b'C' => {
                if let Ok(code) = <[u8; 5]>::try_from(&value[..]) {
                    report.sqlstate = SqlState(code);
                }
            }
            b'M' => report.message = text().into(),
            b'D' => report.detail = Some(text().into()),
            b'H' => report.hint = Some(text().into()),
            _ => {}
        }
    }
    report
}
