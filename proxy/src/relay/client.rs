//! The client's side of a session, and what the end of what it sends means.
//!
//! A client that closes one direction of its connection (`shutdown`) gets the answers to what it has sent, as from
//! PostgreSQL, and then the end. A client that is gone looks the same at first: its kernel sends the same FIN. So a
//! client that has ended is **nudged**: it is told a setting once more, as a server may at any time. Where nobody reads
//! that any more the kernel answers with a reset, and what runs for the client is cancelled.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::stream::Stream;
use crate::wire::{self, BufferPool, FrameBuf, OutBuf};

/// Between two looks at whether a client that sends nothing more is still there.
const LOOK: Duration = Duration::from_millis(100);

/// The client's side.
#[derive(Debug)]
pub struct ClientLeg {
    /// The connection.
    pub stream: Stream,
    /// What it sent and nobody has passed on yet, or may have to pass on again.
    pub input: FrameBuf,
    /// What it has not taken yet.
    pub out: OutBuf,
    /// Bytes of a frame that are still to be dropped.
    pub ignoring: usize,
    /// Once it sends nothing more: when to look whether it is still there.
    ended: Option<Pin<Box<Sleep>>>,
}

/// What came from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Some bytes.
    Bytes,
    /// The end: nothing comes any more. Said once.
    End,
    /// There is no room in its buffer.
    NoRoom,
}

impl ClientLeg {
    /// That of a client that has sent `input` already and is to get `out`.
    pub fn new(stream: Stream, input: FrameBuf, out: OutBuf) -> Self {
        Self {
            stream,
            input,
            out,
            ignoring: 0,
            ended: None,
        }
    }

    /// Whether it sends nothing more.
    #[inline]
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Reads once into its buffer. Pending for ever once it has ended, unless it turns out to be gone.
    ///
    /// # Errors
    /// The client is gone.
    #[inline]
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        pool: &mut BufferPool,
    ) -> Poll<io::Result<Received>> {
        if self.ended.is_some() {
            return self.poll_gone(cx).map(Err);
        }
        let spare = self.input.spare(pool);
        if spare.is_empty() {
            return Poll::Ready(Ok(Received::NoRoom));
        }
        match self.stream.poll_read_into(cx, spare) {
            Poll::Ready(Ok(0)) => {
                self.ended = Some(Box::pin(sleep(LOOK)));
                Poll::Ready(Ok(Received::End))
            }
            Poll::Ready(Ok(count)) => {
                self.input.commit(count);
                Poll::Ready(Ok(Received::Bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while let Some(look) = &mut self.ended {
            if look.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            look.as_mut().reset(Instant::now() + LOOK);
            match self.stream.take_error() {
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    }

    /// Tells a client that has ended one of its settings once more. To be called between messages.
    pub fn nudge(&mut self, told: &[(String, String)]) {
        if let Some((name, value)) = told.first() {
            wire::write_parameter_status(self.out.end(), name, value);
        }
    }
}
