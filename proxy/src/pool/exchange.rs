//! Questions that Halyard itself puts to an idle backend.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::Backend;
use crate::error::{Report, SqlState};
use crate::relay::ledger::{Fate, Owed};
use crate::wire::{self, HEADER_SIZE, Header, backend, data_row, error_fields, parameter_status};

/// Bytes read at a time.
const READ_SIZE: usize = 4096;
/// Longest answer that is read; nothing asked here has a long one.
const ANSWER_SIZE_MAX: usize = 1 << 20;

/// Runs `sql` by the simple protocol and drops its rows. ParameterStatus messages are noted on the backend.
///
/// # Errors
/// What the server said, or 08006 if it did not answer within `limit`. Whether the backend is of any use
/// afterwards, only its ledger can say. Not cancel safe: a backend dropped in the middle has to be closed.
pub async fn ask(backend: &mut Backend, sql: &str, limit: Duration) -> Result<(), Report> {
    rows(backend, sql, limit).await.map(drop)
}

/// Runs `sql` by the simple protocol and returns its rows: the columns as text, NULL as `None`.
///
/// # Errors
/// As [`ask`].
pub async fn rows(backend: &mut Backend, sql: &str, limit: Duration) -> Result<Vec<Row>, Report> {
    wire::query(backend.out.end(), sql.as_bytes());
    backend.ledger.owe(Owed::Query, Fate::Skip);
    // A Query ends the unnamed statement (manual, section 55.2.3).
    backend.unnamed = None;
    within(limit, answer(backend)).await
}

/// The columns of a row.
pub type Row = Vec<Option<Vec<u8>>>;

/// Waits until nothing is owed any more, dropping what is answered.
///
/// # Errors
/// As [`ask`].
pub async fn drain(backend: &mut Backend, limit: Duration) -> Result<(), Report> {
    within(limit, answer(backend)).await.map(drop)
}

async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, Report>>) -> Result<T, Report> {
    match timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Report::error(
            SqlState::CONNECTION_FAILURE,
            "the node did not answer in time",
        )),
    }
}

async fn answer(backend: &mut Backend) -> Result<Vec<Row>, Report> {
    let lost = |_| {
        Report::error(
            SqlState::CONNECTION_FAILURE,
            "the connection to the node was lost",
        )
    };
    let mut refused = None;
    let mut rows = Vec::new();
    let mut arrived = std::mem::take(&mut backend.carry);
    loop {
        poll_fn(|cx| {
            while !backend.out.is_empty() {
                match backend.stream.poll_write_from(cx, backend.out.pending()) {
                    Poll::Ready(Ok(count)) if count > 0 => backend.out.advance(count),
                    Poll::Ready(_) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            backend.stream.poll_flush_out(cx)
        })
        .await
        .map_err(lost)?;
        // The end of a frame whose beginning somebody else has read says nothing.
        let mut at = backend.passing.remaining.min(arrived.len());
        backend.passing.remaining -= at;
        while let Some(header) = Header::parse(&arrived[at..]).map_err(|_| broken())? {
            let Some(frame) = arrived.get(at..at + header.total()) else {
                break;
            };
            at += header.total();
            let body = &frame[HEADER_SIZE..];
            match header.kind {
                backend::ERROR_RESPONSE => {
                    let fields = error_fields(body);
                    let message = String::from_utf8_lossy(fields.message).into_owned();
                    refused.get_or_insert(Report::error(fields.sqlstate, message));
                    if fields.fatal {
                        return Err(refused.unwrap_or_else(broken));
                    }
                }
                backend::DATA_ROW if backend.ledger.current() == Some((Owed::Query, Fate::Skip)) => {
                    rows.push(data_row(body).ok_or_else(broken)?);
                }
                backend::PARAMETER_STATUS => {
                    if let Some((name, value)) = parameter_status(body) {
                        backend.note_parameter(name, value);
                    }
                }
                _ => {}
            }
            backend
                .ledger
                .on_frame(header.kind, body.first().copied())
                .map_err(|_| broken())?;
        }
        arrived.drain(..at);
        if backend.ledger.is_empty() && backend.passing.remaining == 0 {
            backend.passing.forward = false;
            backend.carry = arrived;
            return refused.map_or(Ok(rows), Err);
        }
        if arrived.len() > ANSWER_SIZE_MAX {
            return Err(broken());
        }
        let filled = arrived.len();
        arrived.resize(filled + READ_SIZE, 0);
        let count = poll_fn(|cx| backend.stream.poll_read_into(cx, &mut arrived[filled..]))
            .await
            .map_err(lost)?;
        arrived.truncate(filled + count);
        if count == 0 {
            return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

fn broken() -> Report {
    Report::error(SqlState::CONNECTION_FAILURE, "the node broke the protocol")
}
