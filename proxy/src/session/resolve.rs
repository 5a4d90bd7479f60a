//! The outcome of a COMMIT whose answer was lost: asked of whoever is the primary then.
//!
//! A transaction's number alone does not tell it from another one: numbers whose log has not reached the next primary are
//! given out there again. `docs/adr/0014-resolve-commits.md` proves what [`verdict`] goes by.

use std::time::Duration;

use halyard_health::{Incarnation, NodeId, Promotion, TimelineId};
use tokio::time::{Instant, sleep, timeout};

use super::PinReason;
use super::listen::ECHO_LIMIT;
use super::loss::state_lost;
use super::obtain::{Aim, Waited};
use super::offline::Offline;
use super::turn::{Session, Turn};
use crate::classify::{Access, SettingChanges};
use crate::config::ListenerRole;
use crate::error::{Report, SqlState};
use crate::metrics::Counter;
use crate::pool::Draws;
use crate::pool::exchange::{self, Row};
use crate::relay::ledger::Owed;
use crate::relay::{Committing, Ending, Heard};
use crate::routing::RouteReason;
use crate::wire::{self, backend};

/// Longest wait for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Between two questions while the transaction is still being committed, or its server was lost again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A COMMIT that was lost, and what its client is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) committing: Committing,
    /// Where it ran.
    pub(super) node: NodeId,
    /// In which run of that server.
    pub(super) incarnation: Option<Incarnation>,
    /// What is told if it has committed.
    pub(super) success: Vec<u8>,
    /// What its session kept on that node, which is told besides.
    pub(super) kept: Option<PinReason>,
    /// What the transaction itself has left there, which is told besides if it has committed.
    pub(super) left: Option<PinReason>,
    /// The settings that it may have changed.
    pub(super) changes: SettingChanges,
    /// Whether it may have changed what its client listens to, or notified it.
    pub(super) heard: Heard,
}

/// What `pg_xact_status` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    InProgress,
    Committed,
    /// Or its number was never given out here.
    Aborted,
    /// It is so long ago that nobody knows.
    Forgotten,
}

/// The present primary's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    status: Status,
    node: NodeId,
    incarnation: Incarnation,
    /// How it became a primary, if that was seen.
    promotion: Option<Promotion>,
    /// The last run of the lost node that was seen.
    last_seen: Option<Incarnation>,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Committed,
    RolledBack,
    AskAgain,
    /// Nobody can know.
    Unknown(&'static str),
}

/// Whether a transaction that was told by its number is committed, as far as this answer proves it. Pure.
fn verdict(lost: &Lost, answer: &Answer) -> Verdict {
    match answer.status {
        // A commit that is in this server's history shows as one: its number cannot have been given out again then.
        Status::Aborted => return Verdict::RolledBack,
        Status::InProgress => return Verdict::AskAgain,
        Status::Forgotten => {
            return Verdict::Unknown("The server remembers transactions of that age no more.");
        }
        Status::Committed => {}
    }
    if answer.node == lost.node && lost.incarnation == Some(answer.incarnation) {
        return Verdict::Committed;
    }
    match answer.promotion {
        Some(promotion)
            if answer.node != lost.node
                && lost.incarnation.is_some()
                && lost.incarnation == answer.last_seen
                && promotion.to == answer.incarnation.timeline
                && promotion.from == lost.committing.timeline =>
        {
            if lost.committing.position < promotion.at {
                Verdict::Committed
            } else {
                // Its commit record lies behind the position, so it is not in this history: the number is another's.
                Verdict::RolledBack
            }
        }
        _ => {
            Verdict::Unknown("The primary's history cannot be compared with that of the node that was lost.")
        }
    }
}

impl Session {
    /// Finds out whether a transaction has committed, and tells its client; `unknown` where nobody knows.
    pub(super) async fn resolve(&mut self, lost: Lost, unknown: Report) -> Turn {
        let deadline = Instant::now() + self.app.config.failover.hold;
        let aim = Aim {
            access: Access::Write,
            role: ListenerRole::Primary,
            reason: RouteReason::Class,
            draws: Draws::Nothing,
        };
        let verdict = loop {
            let mut checkout = match self.wait_for_backend(aim, 0).await {
                Waited::Got(checkout, _) => checkout,
                Waited::Again => continue,
                Waited::Fail(_) => break Verdict::Unknown("No primary could be asked for its outcome."),
                Waited::Over(turn) => return turn,
            };
            let node = checkout.node().id;
            let rows = exchange::rows(&mut checkout, &question(lost.committing), ANSWER_LIMIT).await;
            checkout.give_back_untouched();
            let verdict = match rows {
                Ok(rows) => self.read(&rows, node, lost.node).map_or(
                    Verdict::Unknown("The primary's answer could not be read."),
                    |answer| verdict(&lost, &answer),
                ),
                // "transaction ID is in the future": it was never given out in this history.
                Err(report) if report.sqlstate == SqlState::INVALID_PARAMETER_VALUE => Verdict::RolledBack,
                Err(_) => Verdict::AskAgain,
            };
            if verdict != Verdict::AskAgain {
                break verdict;
            }
            if Instant::now() + ASK_AGAIN >= deadline {
                break Verdict::Unknown("It could not be found out within failover.hold.");
            }
            sleep(ASK_AGAIN).await;
        };
        if verdict == Verdict::Committed {
            self.listen_as_committed(&lost).await;
        } else {
            self.revert_listening();
        }
        self.tell_outcome(&lost, verdict, unknown);
        Turn::Again
    }

    /// What the client listens to behind a transaction that has committed, which nobody can be asked any more; and it hears
    /// itself before it is told, as ever.
    async fn listen_as_committed(&mut self, lost: &Lost) {
        let Some(listening) = &mut self.memory.listening else {
            return;
        };
        if lost.heard.changes {
            listening.assume();
        }
        if lost.heard.notifies {
            let _ = timeout(ECHO_LIMIT, listening.echo()).await;
        }
        self.deliver_now();
    }

    /// The answer of `node`, with what was seen of it and of the node that was lost.
    fn read(&self, rows: &[Row], node: NodeId, lost: NodeId) -> Option<Answer> {
        let [row] = rows else { return None };
        let text = |at: usize| std::str::from_utf8(row.get(at)?.as_deref()?).ok();
        let view = self.app.view.borrow();
        Some(Answer {
            status: match text(0) {
                Some("committed") => Status::Committed,
                Some("aborted") => Status::Aborted,
                Some("in progress") => Status::InProgress,
                _ => Status::Forgotten,
            },
            node,
            incarnation: Incarnation {
                timeline: TimelineId(u32::from_str_radix(text(1)?.get(..8)?, 16).ok()?),
                started: text(2)?.parse().ok()?,
                recovered: match text(3) {
                    Some(position) => Some(position.parse().ok()?),
                    None => None,
                },
            },
            promotion: view.node(node)?.promotion,
            last_seen: view.node(lost)?.incarnation,
        })
    }

    fn tell_outcome(&mut self, lost: &Lost, verdict: Verdict, unknown: Report) {
        let xid = lost.committing.xid;
        tracing::info!(xid, ?verdict, "the outcome of a COMMIT was looked up");
        let gone = match verdict {
            Verdict::Committed => lost.kept.or(lost.left),
            Verdict::RolledBack => lost.kept,
            Verdict::AskAgain | Verdict::Unknown(_) => None,
        };
        if let Some(kept) = gone {
            let report = state_lost("The connection to the node was lost.", kept);
            let size_max = self.app.relay_limits.statement_size_max;
            self.offline = Some(Box::new(Offline::fail_next(report, size_max)));
        }
        match verdict {
            Verdict::Committed => {
                self.counters.add(Counter::CommitsResolvedCommitted, 1);
                self.memory.keep_all();
                self.forget_settings(&lost.changes);
                self.client.out.end().extend_from_slice(&lost.success);
            }
            Verdict::RolledBack => {
                self.counters.add(Counter::CommitsResolvedRolledBack, 1);
                self.memory.undo_all();
                let report = Report::error(
                    SqlState::SERIALIZATION_FAILURE,
                    "the transaction was rolled back: its connection was lost",
                )
                .with_detail(unknown.detail.unwrap_or_default())
                .with_hint("The transaction can be retried from its beginning.");
                self.tell_end_of_transaction(&report);
            }
            Verdict::AskAgain | Verdict::Unknown(_) => {
                self.counters.add(Counter::CommitsResolvedUnknown, 1);
                self.memory.undo_all();
                let mut report = unknown;
                if let Verdict::Unknown(why) = verdict {
                    let detail = report.detail.take().unwrap_or_default();
                    report = report.with_detail(format!("{detail} {why}"));
                }
                self.tell_end_of_transaction(&report);
            }
        }
    }
}

/// The answers that a client is due whose block has ended so.
pub(super) fn success(due: impl Iterator<Item = Owed>, ending: Ending) -> Vec<u8> {
    let mut out = Vec::new();
    for owed in due {
        match owed {
            Owed::Parse => wire::empty_message(&mut out, backend::PARSE_COMPLETE),
            Owed::Bind => wire::empty_message(&mut out, backend::BIND_COMPLETE),
            Owed::Describe => wire::empty_message(&mut out, backend::NO_DATA),
            Owed::ClosePortal | Owed::CloseStatement => {
                wire::empty_message(&mut out, backend::CLOSE_COMPLETE);
            }
            Owed::Execute => ended(&mut out, ending),
            Owed::Sync => wire::ready_for_query(&mut out, b'I'),
            Owed::Query => {
                ended(&mut out, ending);
                wire::ready_for_query(&mut out, b'I');
            }
            Owed::CopyEnd | Owed::FunctionCall | Owed::Notice => {}
        }
    }
    out
}

fn ended(out: &mut Vec<u8>, ending: Ending) {
    wire::tagged(out, backend::COMMAND_COMPLETE, |out| {
        out.extend_from_slice(ending.tag().as_bytes());
        out.push(0);
    });
}

fn question(committing: Committing) -> String {
    // As in the probe (`health/src/probe.rs`), with whose answers this is compared.
    format!(
        "SELECT pg_catalog.pg_xact_status('{}'::pg_catalog.xid8), \
                pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), \
                (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) * 1000000)::pg_catalog.int8, \
                pg_catalog.pg_last_wal_replay_lsn()",
        committing.xid
    )
}

#[cfg(test)]
mod tests;
