//! How each way of ending a turn but the ordinary one leads to the next.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Control;
use super::demand::{Demand, learn_write};
use super::inbox::{Message, Messages};
use super::obtain::cancelled;
use super::patience::timed_out;
use super::turn::{Session, Turn, broke, leaving};
use crate::error::{Report, SqlState};
use crate::login::send_cancel;
use crate::metrics::Counter;
use crate::pool::exchange;
use crate::relay::{End, Flight, Link, Lost, Refusal, runs};
use crate::routing::{Standing, Wanted};
use crate::wire::{self, Header, frontend};
use crate::worker;

/// How long a server may take to roll back a block that was refused.
const ROLLBACK_LIMIT: Duration = Duration::from_secs(5);
/// How long requests may run whose client has said goodbye behind them.
const FINISH_LIMIT: Duration = Duration::from_secs(300);

impl Session {
    /// Everything but the ordinary end of a turn.
    pub(super) async fn unusual(&mut self, end: End) -> Turn {
        match end {
            End::Settled => Turn::Again,
            End::Refused(refusal) => {
                self.send_again(refusal);
                Turn::Again
            }
            End::BackendLost(lost) => self.on_loss(&lost),
            End::ClientGone if self.said_goodbye() => {
                self.finish_what_was_asked().await;
                Turn::Over
            }
            End::MustListen => self.listen_in_link().await,
            End::MustSeeToSettings => self.see_to_own_settings().await.unwrap_or(Turn::Again),
            End::BlockMoves => self.move_block().await,
            End::HeldNoLonger(Some(refused)) => {
                self.fail_demand_beside(*refused, b'I');
                Turn::Again
            }
            End::HeldNoLonger(None) => {
                self.held_beside = None;
                let limit = self.app.config.failover.hold;
                let wanted = match &self.link {
                    Some(link) if link.suspended => Wanted::Primary,
                    _ => Wanted::Resume,
                };
                let report = match self.own_limit() {
                    Some(_) => timed_out(),
                    None => {
                        self.counters.add(Counter::HeldTooLong, 1);
                        self.held_too_long(wanted, limit)
                    }
                };
                self.fail_demand_beside(report, b'I');
                Turn::Again
            }
            End::ReadyWithheld => self.tell_ready().await,
            End::BlockRefused => self.refuse_block().await,
            End::ClientGone => Turn::Over,
            End::Terminated => {
                self.finish_what_was_asked().await;
                Turn::Over
            }
            End::ClientBroke(error) => Turn::Farewell(broke(error)),
            End::LimitExceeded(report) => Turn::Farewell(report),
            End::Interrupted => {
                let messages = self.registered.inbox.take();
                self.on_messages(messages)
            }
        }
    }

    /// Whether a request does nothing but open a transaction block.
    pub(super) fn begins_block(&self, demand: &Demand) -> bool {
        demand.class.control == Control::Begins && runs(&self.client.input.unparsed()[..demand.bytes])
    }

    /// Ends a transaction block that a client with statement pooling has opened by a message that holds more than BEGIN.
    async fn refuse_block(&mut self) -> Turn {
        let Some(link) = &mut self.link else {
            return Turn::Again;
        };
        let failed = link.backend.ledger.status() == b'E';
        if let Err(report) = exchange::ask(&mut link.backend, "ROLLBACK", ROLLBACK_LIMIT).await {
            return self.on_loss(&Lost {
                said: Some(report),
                error: None,
            });
        }
        link.block_refused = false;
        let out = self.client.out.end();
        if !failed {
            no_blocks().encode(out);
        }
        wire::ready_for_query(out, b'I');
        Turn::Again
    }

    /// Whether what the client sent last is its goodbye.
    fn said_goodbye(&self) -> bool {
        matches!(
            Header::parse(self.client.input.unparsed()),
            Ok(Some(header)) if header.kind == frontend::TERMINATE
        )
    }

    /// A client that says goodbye behind its requests has them run, as a server runs what it has read before it
    /// reads on.
    async fn finish_what_was_asked(&mut self) {
        if let Some(link) = &mut self.link
            && link.in_flight()
            && !link.backend.ledger.copy_in()
            && !link.backend.ledger.batch_open()
        {
            // What is left unfinished at the limit is cancelled like that of a client that vanished.
            let _ = exchange::drain(&mut link.backend, FINISH_LIMIT).await;
            if link.wrote {
                // Nobody was told, and yet anybody may ask for it.
                self.app.consistency.note_for_others();
            }
        }
    }

    /// Sends a request that was refused to where it is not: what a standby found to be a write is learned and runs
    /// on the primary; what met an outdated prepared statement runs where there is none.
    fn send_again(&mut self, refusal: Refusal) {
        self.client.input.rewind();
        self.memory.early.clear();
        self.memory.repeating = true;
        self.memory.repeats += 1;
        self.demand = None;
        if refusal == Refusal::ReadOnly {
            self.counters.add(Counter::Reruns25006, 1);
            self.to_primary = true;
            let catalog = self.group.catalog.load();
            let bytes = self.client.input.unparsed();
            let (statements, registry) = (&self.memory.statements, &self.app.statements);
            let epoch = self.group.catalog.epoch().load();
            worker::with(|local| {
                learn_write(bytes, statements, &catalog, epoch, &self.reading, registry, local);
            });
        }
        if let Some(link) = self.link.as_mut().filter(|_| self.memory.pin.is_some()) {
            // In session pooling it runs where it was refused.
            link.flight = Flight {
                begun: true,
                ..Flight::NONE
            };
            link.begin_anew();
            return;
        }
        if let Some(mut link) = self.link.take() {
            if link.wrote || link.requests > 1 {
                self.note_turn(&link);
            }
            // Only a request that found the backend untouched is sent again, and of it nothing has run.
            link.opaque = false;
            let lent = !link.lent.is_empty();
            self.part_with(link, lent);
        }
    }

    /// Whether it can end here: it is in no transaction, its client has all that it is due, and nothing of its was taken that
    /// is not answered.
    pub(super) fn may_leave(&self) -> bool {
        let is_at_rest = |link: &Link| {
            !link.in_flight()
                && !link.in_block()
                && !link.takes_block_over()
                && !link.keeps_ready_back()
                && link.unfinished() == 0
        };
        self.link.as_ref().is_none_or(is_at_rest)
            && self.demand.is_none()
            && self.offline.is_none()
            && self.client.ignoring == 0
            && self.client.input.unparsed().is_empty()
            && self.client.out.is_empty()
    }

    fn on_messages(&mut self, messages: Messages) -> Turn {
        if messages.has(Message::Terminate) {
            return Turn::Farewell(leaving());
        }
        self.draining |= messages.has(Message::Drain);
        self.deliver();
        if self.draining && self.may_leave() {
            return Turn::Farewell(leaving());
        }
        if messages.has(Message::Cancel) {
            self.begin_cancel();
        }
        if messages.has(Message::TableChanged)
            && let Some(link) = &mut self.link
        {
            let table = self.app.routing.load();
            let node = link.backend.node().id;
            let given_up = match table.standing[usize::from(node.0)] {
                Standing::Primary => false,
                Standing::Fenced => true,
                Standing::Standby => link.as_primary && table.primary.is_some(),
                Standing::Unreachable => !link.as_primary || table.primary.is_some(),
            };
            if given_up {
                let report = Report::fatal(
                    SqlState::CANNOT_CONNECT_NOW,
                    "it is not what it was for this session any more",
                );
                drop(table);
                return self.on_loss(&Lost {
                    said: Some(report),
                    error: None,
                });
            }
            link.suspended = link.as_primary && table.primary != Some(node);
        }
        Turn::Again
    }

    /// Has the session look at the table before it sends anything more: a message about it may have been taken while it
    /// waited for something else with a backend in hand.
    pub(super) fn look_at_table(&self) {
        self.registered.inbox.ring(Message::TableChanged);
    }

    /// Cancels what the backend runs for this client. The backend is not given back before that is over, so that
    /// the cancel can never hit its next client.
    fn begin_cancel(&mut self) {
        if let Some(link) = self.link.as_mut().filter(|link| link.is_being_prepared()) {
            link.cancel_waits = true;
            return;
        }
        let held = self.registered.inbox.take_cancels();
        let is_sent = self.demand.is_none() || self.link.as_ref().is_some_and(Link::in_flight);
        if self.held_beside.take().is_some() && !is_sent {
            return self.fail_demand_beside(cancelled(), b'I');
        }
        let Some(link) = &self.link else { return };
        // One that came before the server had the statement did nothing, and is followed by another.
        let is_under_way = self.cancelling.as_mut().is_some_and(is_pending);
        if !link.in_flight() || is_under_way {
            return;
        }
        self.counters.add(Counter::CancelsSent, 1);
        let (done, over) = oneshot::channel();
        self.cancelling = Some(over);
        let node = Arc::clone(link.backend.node());
        let key = Arc::clone(&link.backend.key);
        let limits = self.app.cancel_limits.clone();
        tokio::spawn(async move {
            if let Err(error) = send_cancel(&node.target, &key, &limits).await {
                tracing::warn!(node = %node.name, %error, "a cancel request did not reach the node");
            }
            drop(held);
            let _ = done.send(());
        });
    }

    pub(super) async fn finish_cancel(&mut self) {
        if let Some(over) = self.cancelling.take() {
            let _ = over.await;
        }
    }
}

fn is_pending(over: &mut oneshot::Receiver<()>) -> bool {
    matches!(over.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

/// What PgBouncer says to the same, there as the end of the connection.
pub(super) fn no_blocks() -> Report {
    Report::error(
        SqlState::FEATURE_NOT_SUPPORTED,
        "transaction blocks not allowed in statement pooling mode",
    )
    .with_hint("Statements of one message are one transaction. Blocks need pool.mode = \"transaction\".")
}
