//! The answers a backend still owes, in order.
//!
//! Pure: it is told what was sent and what came back, and says what to do with it. It alone can say that a
//! backend owes nothing and stands outside of any transaction ([`Ledger::settled`]), and only that gives a
//! backend back to its pool.
//!
//! The rules are those of the manual's "Message Flow" (protocol-flow): after an ErrorResponse in the extended
//! protocol the server ignores everything up to the next Sync; during COPY FROM STDIN it ignores Flush and
//! Sync; asynchronous messages may come at any time.

use std::collections::VecDeque;

use crate::wire::backend as msg;

/// What was sent that an answer is due for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// Parse: ParseComplete.
    Parse,
    /// Bind: BindComplete.
    Bind,
    /// Describe: ParameterDescription and RowDescription or NoData.
    Describe,
    /// Execute: rows and their end.
    Execute,
    /// Close of a portal: CloseComplete.
    ClosePortal,
    /// Close of a prepared statement: CloseComplete.
    CloseStatement,
    /// CopyDone or CopyFail sent before CopyInResponse was seen; nothing is due, it only ends a copy.
    CopyEnd,
    /// Sync: ReadyForQuery.
    Sync,
    /// Query: everything up to ReadyForQuery.
    Query,
    /// FunctionCall: FunctionCallResponse and ReadyForQuery.
    FunctionCall,
    /// Nothing was sent: a notice of Halyard's own stands in front of the answer behind it.
    Notice,
}

impl Owed {
    fn ends_with_ready(self) -> bool {
        matches!(self, Owed::Sync | Owed::Query | Owed::FunctionCall)
    }
}

/// For whom an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// For the client.
    Forward,
    /// For the client but for the ReadyForQuery at its end, which the answer behind it has: Halyard put a question of
    /// its own there, and the client is ready when that is answered.
    ForwardUnready,
    /// For Halyard, which asked on its own.
    Skip,
    /// For Halyard, but for the ReadyForQuery, which is the one that [`Fate::ForwardUnready`] left out.
    SkipReady,
    /// For Halyard, which asked for the transaction in whose block the client is; see [`super::commit`].
    Learn,
    /// For the client, with this command tag in place of the server's; see [`super::aside`].
    Renamed(Tag),
    /// For the client, and some of its command tags and positions are not the server's; see [`super::aside`].
    Retagged,
    /// The server was not asked; Halyard answers when the turn comes.
    Fake,
}

/// The command tag of a statement that the server did not run itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// `LISTEN`.
    Listen,
    /// `UNLISTEN`.
    Unlisten,
}

impl Tag {
    /// As a server spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listen => "LISTEN",
            Self::Unlisten => "UNLISTEN",
        }
    }
}

impl Fate {
    /// Whether Halyard asked.
    fn is_ours(self) -> bool {
        matches!(self, Fate::Skip | Fate::SkipReady | Fate::Learn)
    }

    /// Whether the client gets the ReadyForQuery.
    fn readies(self) -> bool {
        matches!(
            self,
            Fate::Forward | Fate::Renamed(_) | Fate::Retagged | Fate::SkipReady
        )
    }
}

/// What a whole or beginning frame from the backend means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the client gets the frame.
    pub forward: bool,
    /// What it changes.
    pub event: Event,
}

/// What a frame changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing: a part of an answer, or an asynchronous message.
    Nothing,
    /// This one was answered in full.
    Answered(Owed),
    /// The rest of the batch was dropped by an error.
    Failed {
        /// Whether it failed at something that Halyard had asked on its own.
        ours: bool,
    },
    /// The server is ready for the next query.
    Ready,
    /// The server wants the client's COPY data.
    CopyIn {
        /// How many of the Syncs sent it ignores for that.
        ignored: usize,
    },
}

/// A transaction status that is none of `I`, `T`, `E`, or an answer to nothing: the peer speaks another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected message type {kind:?} from the server while {owed:?} was owed", kind = char::from(*kind))]
pub struct Unexpected {
    kind: u8,
    owed: Option<Owed>,
}

/// Proof that a backend owes nothing and has no transaction open. Only a ledger makes one.
#[derive(Debug)]
pub struct Settled(());

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    queue: VecDeque<(Owed, Fate)>,
    /// Of the last ReadyForQuery: `I`, `T` or `E`.
    status: u8,
    /// True between an ErrorResponse in a batch and the Sync that ends it, while that Sync is not sent yet.
    skipping: bool,
    /// True while the server reads COPY data and its end is not sent yet.
    copy_in: bool,
    /// True from the first message of an extended-protocol batch until its Sync is sent. The server keeps an
    /// implicit transaction open as long, whatever it has answered (Flush makes it answer early).
    in_batch: bool,
    /// ReadyForQuery messages that the client is still due.
    readies: usize,
    /// Parse messages sent since they were taken note of.
    parses: u32,
    /// Queries of the client's sent so far, and those that are over: answered, or ignored.
    queries_sent: u64,
    queries_over: u64,
    /// Whether an Execute has run since the status was told.
    executed: bool,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            status: b'I',
            skipping: false,
            copy_in: false,
            in_batch: false,
            readies: 0,
            parses: 0,
            queries_sent: 0,
            queries_over: 0,
            executed: false,
        }
    }
}

impl Ledger {
    /// Takes note of something sent, or about to be faked.
    pub fn owe(&mut self, owed: Owed, fate: Fate) {
        debug_assert!(
            !self.skips_until_sync() || owed == Owed::Sync,
            "what the server ignores is not owed"
        );
        self.parses += u32::from(owed == Owed::Parse && fate != Fate::Fake);
        if owed != Owed::Notice {
            self.in_batch = !owed.ends_with_ready();
        }
        if owed.ends_with_ready() {
            self.skipping = false;
            self.readies += usize::from(fate.readies());
        }
        self.queries_sent += u64::from(is_clients_query(owed, fate));
        self.queue.push_back((owed, fate));
    }

    /// Takes note of CopyDone or CopyFail being sent.
    pub fn copy_ended(&mut self) {
        if self.copy_in {
            self.copy_in = false;
        } else if !self.queue.is_empty() {
            self.queue.push_back((Owed::CopyEnd, Fate::Skip));
        }
    }

    /// Whether the server reads COPY data now, so that Sync and Flush mean nothing to it.
    #[inline]
    pub fn copy_in(&self) -> bool {
        self.copy_in
    }

    /// Whether answers are owed and all of them come, whatever is sent or not sent from now on.
    pub fn answers_all(&self) -> bool {
        !self.queue.is_empty() && !self.batch_open() && !self.copy_in
    }

    /// Whether the server ignores everything up to the next Sync.
    #[inline]
    pub fn skips_until_sync(&self) -> bool {
        self.skipping
    }

    /// How many Parse messages were sent since this was asked last.
    pub fn take_parses(&mut self) -> u32 {
        std::mem::take(&mut self.parses)
    }

    /// How many notices of Halyard's own are owed.
    pub fn notices(&self) -> usize {
        let notices = self.queue.iter().filter(|(owed, _)| *owed == Owed::Notice);
        notices.count()
    }

    /// How many answers are owed.
    #[inline]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// How many answers of one kind are owed.
    pub fn owed(&self, owed: Owed, fate: Fate) -> usize {
        self.queue.iter().filter(|entry| **entry == (owed, fate)).count()
    }

    /// Whether nothing is owed; a transaction may still be open.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What the client is due, the answer to the oldest first.
    pub fn due(&self) -> impl Iterator<Item = Owed> {
        let due = self.queue.iter();
        due.filter(|(_, fate)| {
            matches!(
                fate,
                Fate::Forward | Fate::Renamed(_) | Fate::Retagged | Fate::Fake
            )
        })
        .map(|(owed, _)| *owed)
    }

    /// ReadyForQuery messages that the client is still due.
    pub fn readies(&self) -> usize {
        self.readies
    }

    /// The transaction status of the last ReadyForQuery: `I`, `T` or `E`.
    #[inline]
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Whether the server is in a failed block, as far as it has answered. What it takes there by an Execute ends the block, or
    /// goes back to a savepoint; nothing else runs to its end.
    pub fn in_failed_block(&self) -> bool {
        self.status == b'E' && !self.executed
    }

    /// How many Queries of the client's were sent: the number of the last.
    pub fn queries_sent(&self) -> u64 {
        self.queries_sent
    }

    /// How many of them are over: the number of the last that was answered whole, or ignored.
    #[inline]
    pub fn queries_over(&self) -> u64 {
        self.queries_over
    }

    /// Whether a batch is open: something was sent and its Sync was not.
    #[inline]
    pub fn batch_open(&self) -> bool {
        self.in_batch || self.skipping
    }

    /// The proof that the backend may go back to its pool.
    #[inline]
    pub fn settled(&self) -> Option<Settled> {
        (self.queue.is_empty() && self.status == b'I' && !self.batch_open() && !self.copy_in)
            .then_some(Settled(()))
    }

    /// Whom the next frame is for, if it belongs to an answer at all.
    #[inline]
    pub fn current(&self) -> Option<(Owed, Fate)> {
        self.queue.front().copied()
    }

    /// Whether a frame is nothing but a part of the client's answer, which is not over with it. Most frames are.
    #[inline]
    pub fn is_mere_part(&self, kind: u8) -> bool {
        match self.queue.front() {
            Some((Owed::Query, Fate::Forward)) => {
                matches!(
                    kind,
                    msg::ROW_DESCRIPTION | msg::DATA_ROW | msg::COMMAND_COMPLETE | msg::COPY_DATA
                )
            }
            Some((Owed::Execute, Fate::Forward)) => matches!(kind, msg::DATA_ROW | msg::COPY_DATA),
            _ => false,
        }
    }

    /// Hands out the answer that Halyard itself has to give next, if it is one's turn.
    #[inline]
    pub fn next_fake(&mut self) -> Option<Owed> {
        match self.queue.front() {
            Some(&(owed, Fate::Fake)) => {
                self.pop();
                Some(owed)
            }
            _ => None,
        }
    }

    /// Takes note of a frame from the backend. `status` is the body of a ReadyForQuery and not read otherwise.
    ///
    /// # Errors
    /// A frame that answers nothing that is owed; the connection is of no use any more.
    #[inline]
    pub fn on_frame(&mut self, kind: u8, status: Option<u8>) -> Result<Verdict, Unexpected> {
        match kind {
            msg::NOTICE_RESPONSE | msg::NOTIFICATION_RESPONSE | msg::PARAMETER_STATUS => {
                // A notice about what Halyard asked is none of the client's.
                let ours = || self.queue.front().is_some_and(|(_, fate)| fate.is_ours());
                let held = match kind {
                    msg::PARAMETER_STATUS => self.holds_parameters(),
                    msg::NOTICE_RESPONSE => ours(),
                    _ => false,
                };
                return Ok(Verdict {
                    forward: !held,
                    event: Event::Nothing,
                });
            }
            _ => {}
        }
        let Some(&(owed, fate)) = self.queue.front() else {
            return Err(Unexpected { kind, owed: None });
        };
        let forward = match fate {
            Fate::ForwardUnready => kind != msg::READY_FOR_QUERY,
            Fate::SkipReady => kind == msg::READY_FOR_QUERY,
            Fate::Forward | Fate::Renamed(_) | Fate::Retagged => true,
            Fate::Skip | Fate::Learn | Fate::Fake => false,
        };
        let event = match (kind, owed) {
            (msg::ERROR_RESPONSE, _) => return Ok(self.fail(owed, fate)),
            (msg::READY_FOR_QUERY, Owed::Sync | Owed::Query | Owed::FunctionCall) => {
                self.status = match status {
                    Some(status @ (b'I' | b'T' | b'E')) => status,
                    _ => {
                        return Err(Unexpected {
                            kind,
                            owed: Some(owed),
                        });
                    }
                };
                self.readies -= usize::from(fate.readies());
                self.queries_over += u64::from(is_clients_query(owed, fate));
                self.copy_in = false;
                self.executed = false;
                self.pop();
                Event::Ready
            }
            (msg::COPY_IN_RESPONSE, Owed::Query | Owed::Execute) => Event::CopyIn {
                ignored: self.begin_copy_in(),
            },
            (
                msg::ROW_DESCRIPTION
                | msg::DATA_ROW
                | msg::COMMAND_COMPLETE
                | msg::EMPTY_QUERY_RESPONSE
                | msg::COPY_OUT_RESPONSE
                | msg::COPY_DATA
                | msg::COPY_DONE,
                Owed::Query,
            )
            | (
                msg::DATA_ROW
                | msg::COPY_OUT_RESPONSE
                | msg::COPY_DATA
                | msg::COPY_DONE
                | msg::ROW_DESCRIPTION,
                Owed::Execute,
            )
            | (msg::FUNCTION_CALL_RESPONSE, Owed::FunctionCall)
            | (msg::PARAMETER_DESCRIPTION, Owed::Describe) => Event::Nothing,
            (msg::PARSE_COMPLETE, Owed::Parse)
            | (msg::BIND_COMPLETE, Owed::Bind)
            | (msg::CLOSE_COMPLETE, Owed::ClosePortal | Owed::CloseStatement)
            | (msg::ROW_DESCRIPTION | msg::NO_DATA, Owed::Describe)
            | (msg::COMMAND_COMPLETE | msg::EMPTY_QUERY_RESPONSE | msg::PORTAL_SUSPENDED, Owed::Execute) => {
                self.copy_in = false;
                self.executed |= kind == msg::COMMAND_COMPLETE;
                self.pop();
                Event::Answered(owed)
            }
            _ => {
                return Err(Unexpected {
                    kind,
                    owed: Some(owed),
                });
            }
        };
        Ok(Verdict { forward, event })
    }

    /// Whether a ParameterStatus is not passed on as it comes: it belongs to a question of Halyard's own, or one
    /// follows that may change the value back.
    fn holds_parameters(&self) -> bool {
        matches!(self.queue.front(), Some((_, fate)) if fate.is_ours() || *fate == Fate::ForwardUnready)
    }

    /// Takes the answered one away, and the ends of copies that never began: they ask for no answer.
    fn pop(&mut self) {
        self.queue.pop_front();
        while matches!(self.queue.front(), Some((Owed::CopyEnd, _))) {
            self.queue.pop_front();
        }
    }

    fn fail(&mut self, owed: Owed, fate: Fate) -> Verdict {
        self.copy_in = false;
        let ours = fate.is_ours();
        if matches!(owed, Owed::Query | Owed::FunctionCall) {
            return Verdict {
                forward: !ours,
                event: Event::Failed { ours },
            };
        }
        while self
            .queue
            .front()
            .is_some_and(|(owed, _)| !owed.ends_with_ready())
        {
            self.queue.pop_front();
        }
        // A Query between the error and the Sync was ignored as well.
        while self.queue.front().is_some_and(|(owed, _)| *owed != Owed::Sync) {
            let (dropped, fate) = self.queue.pop_front().expect("the loop saw it");
            self.readies -= usize::from(dropped.ends_with_ready() && fate.readies());
            self.queries_over += u64::from(is_clients_query(dropped, fate));
        }
        self.skipping = self.queue.is_empty();
        debug_assert!(
            self.queue.front().is_none_or(|(owed, _)| *owed == Owed::Sync),
            "only a Sync ends an error"
        );
        // What failed between Halyard's own messages, up to a Sync of its own, is its own affair.
        let apart = self.queue.front().is_some_and(|(_, fate)| fate.is_ours());
        Verdict {
            forward: !apart,
            event: Event::Failed { ours },
        }
    }

    /// While it copies, the server ignores Sync: those sent behind the COPY and before its end owe nothing.
    fn begin_copy_in(&mut self) -> usize {
        self.copy_in = true;
        let mut ignored = 0;
        let by_execute = matches!(self.queue.front(), Some((Owed::Execute, _)));
        let mut at = 1;
        while let Some(&(owed, _)) = self.queue.get(at) {
            match owed {
                Owed::CopyEnd => {
                    self.queue.remove(at);
                    self.copy_in = false;
                    return ignored;
                }
                Owed::Sync => {
                    let removed = self.queue.remove(at);
                    self.readies -= usize::from(removed.is_some_and(|(_, fate)| fate.readies()));
                    ignored += 1;
                }
                _ => at += 1,
            }
        }
        // The Sync that ends the batch is still to come, behind the end of the copy.
        self.in_batch = by_execute;
        ignored
    }
}

/// Whether an answer belongs to a Query of the client's.
pub(super) fn is_clients_query(owed: Owed, fate: Fate) -> bool {
    owed == Owed::Query && matches!(fate, Fate::Forward | Fate::Retagged | Fate::ForwardUnready)
}

#[cfg(test)]
mod tests;
