//! What a client is told when the node under it is lost: the failure table, as one pure function.
//!
//! `docs/ARCHITECTURE.md`, "Failover", has the table. No client connection is closed by it, and no statement that
//! may have taken effect is ever sent twice.

use crate::classify::Access;
use crate::error::{Report, SqlState};
use crate::metrics::Counter;
use crate::relay::Flight;
use crate::session::{Control, PinReason};

/// In what state a session lost its backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostState {
    /// Whether a transaction block was open.
    pub in_block: bool,
    /// Whether any answer was owed, or a request was only half sent.
    pub in_flight: bool,
    /// What was in flight.
    pub flight: Flight,
    /// Why the session kept its backend, if it did.
    pub pin: Option<PinReason>,
    /// Whether the client has got the beginning of a message whose end is lost.
    pub mid_frame: bool,
    /// Whether what is in flight is the end of a transaction whose outcome can be looked up.
    pub resolvable: bool,
}

/// What follows for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    /// Nothing: there was nothing in flight.
    Nothing,
    /// The connection is closed: inside of a message nothing can be said.
    HangUp,
    /// The request is sent to another node.
    Repeat,
    /// The client gets an error and lives on, outside of any transaction.
    Fail(Report),
    /// The client gets an error, at once or with its next statement, and is in a failed transaction block.
    FailBlock(Report),
    /// The client gets an error with its next statement: what it relied on is gone.
    FailNext(Report),
    /// Whether the transaction has committed is looked up, and the client told; this where nobody knows.
    Resolve(Report),
}

impl Consequence {
    /// What is counted of it.
    pub(super) fn counter(&self) -> Counter {
        match self {
            Self::Nothing => Counter::LossUnnoticed,
            Self::HangUp => Counter::LossDisconnected,
            Self::Repeat => Counter::LossRerun,
            Self::Resolve(_) => Counter::LossResolved,
            Self::FailBlock(_) => Counter::LossRolledBack,
            Self::FailNext(_) => Counter::LossOfState,
            Self::Fail(report) if report.sqlstate == SqlState::TRANSACTION_RESOLUTION_UNKNOWN => {
                Counter::LossUnknown
            }
            Self::Fail(_) => Counter::LossCutShort,
        }
    }
}

/// The failure table. `node` is the lost node's name, `cause` what is known of the loss, in a sentence.
pub(super) fn consequence(state: &LostState, node: &str, cause: &str) -> Consequence {
    let flight = &state.flight;
    if state.mid_frame {
        return Consequence::HangUp;
    }
    let detail = format!("The connection to node \"{node}\" was lost. {cause}");
    if state.in_block {
        if state.in_flight && flight.control == Control::MayCommit {
            return unless_known(state, detail);
        }
        return Consequence::FailBlock(
            Report::error(
                SqlState::SERIALIZATION_FAILURE,
                "the transaction was rolled back: its connection was lost",
            )
            .with_detail(detail)
            .with_hint("The transaction can be retried from its beginning."),
        );
    }
    if let Some(pin) = state.pin {
        if state.in_flight && flight.access == Access::Write {
            return Consequence::Fail(unknown_outcome(format!("{detail} With it went {}.", pin.lost())));
        }
        let report = Report::error(
            SqlState::ADMIN_SHUTDOWN,
            "the node that kept this session's state was lost",
        )
        .with_detail(format!("{detail} With it went {}.", pin.lost()))
        .with_hint("Set up again what the session needs.");
        return if state.in_flight {
            Consequence::Fail(report)
        } else {
            Consequence::FailNext(report)
        };
    }
    if !state.in_flight {
        return Consequence::Nothing;
    }
    if !flight.sent || (flight.repeatable && !flight.answered) {
        return Consequence::Repeat;
    }
    if flight.access == Access::Write {
        return unless_known(state, detail);
    }
    Consequence::Fail(
        Report::error(
            SqlState::ADMIN_SHUTDOWN,
            "the node was lost in the middle of the answer",
        )
        .with_detail(detail)
        .with_hint("The statement read only and can be retried."),
    )
}

/// The outcome is looked up where that can be.
fn unless_known(state: &LostState, detail: String) -> Consequence {
    let unknown = unknown_outcome(detail);
    if state.resolvable {
        Consequence::Resolve(unknown)
    } else {
        Consequence::Fail(unknown)
    }
}

fn unknown_outcome(detail: String) -> Report {
    Report::error(
        SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
        "the outcome is unknown: the node was lost before it answered",
    )
    .with_detail(detail)
    .with_hint("Find out whether it took effect before trying again.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLIGHT: Flight = Flight {
        access: Access::Read,
        control: Control::None,
        begun: true,
        sent: true,
        answered: false,
        held: true,
        repeatable: true,
        ran: false,
        epoch: None,
        refused: None,
    };
    const STATE: LostState = LostState {
        in_block: false,
        in_flight: true,
        flight: FLIGHT,
        pin: None,
        mid_frame: false,
        resolvable: false,
    };

    fn sqlstate(state: LostState) -> Option<SqlState> {
        match consequence(&state, "node1", "It was shut down.") {
            Consequence::Fail(report) | Consequence::FailBlock(report) | Consequence::FailNext(report) => {
                Some(report.sqlstate)
            }
            Consequence::Nothing | Consequence::Repeat | Consequence::HangUp | Consequence::Resolve(_) => {
                None
            }
        }
    }

    #[test]
    fn an_idle_session_notices_nothing() {
        assert_eq!(
            consequence(
                &LostState {
                    in_flight: false,
                    ..STATE
                },
                "n",
                ""
            ),
            Consequence::Nothing
        );
    }

    #[test]
    fn a_read_without_an_answer_is_repeated_and_one_with_rows_is_not() {
        assert_eq!(consequence(&STATE, "n", ""), Consequence::Repeat);
        let answered = Flight {
            answered: true,
            ..FLIGHT
        };
        assert_eq!(
            sqlstate(LostState {
                flight: answered,
                ..STATE
            }),
            Some(SqlState::ADMIN_SHUTDOWN)
        );
    }

    /// A peer ran an autocommit write again because no byte had come back: the row was there twice.
    #[test]
    fn a_write_is_never_repeated() {
        let write = Flight {
            access: Access::Write,
            repeatable: false,
            ..FLIGHT
        };
        assert_eq!(
            sqlstate(LostState {
                flight: write,
                ..STATE
            }),
            Some(SqlState::TRANSACTION_RESOLUTION_UNKNOWN)
        );
    }

    #[test]
    fn a_write_that_was_not_sent_is() {
        let write = Flight {
            access: Access::Write,
            repeatable: false,
            sent: false,
            ..FLIGHT
        };
        assert_eq!(
            consequence(
                &LostState {
                    flight: write,
                    ..STATE
                },
                "n",
                ""
            ),
            Consequence::Repeat
        );
    }

    #[test]
    fn a_block_is_rolled_back_unless_its_commit_was_on_its_way() {
        let block = LostState {
            in_block: true,
            ..STATE
        };
        assert!(matches!(consequence(&block, "n", ""), Consequence::FailBlock(_)));
        assert_eq!(sqlstate(block), Some(SqlState::SERIALIZATION_FAILURE));
        let commit = Flight {
            control: Control::MayCommit,
            ..FLIGHT
        };
        assert_eq!(
            sqlstate(LostState {
                flight: commit,
                ..block
            }),
            Some(SqlState::TRANSACTION_RESOLUTION_UNKNOWN)
        );
        let asked = LostState {
            flight: commit,
            resolvable: true,
            ..block
        };
        assert!(matches!(consequence(&asked, "n", ""), Consequence::Resolve(_)));
        let idle = LostState {
            flight: commit,
            in_flight: false,
            ..block
        };
        assert_eq!(
            sqlstate(idle),
            Some(SqlState::SERIALIZATION_FAILURE),
            "an answered savepoint commits nothing"
        );
    }

    /// An error written into the middle of a row was read as a part of it: the client waited for ever.
    #[test]
    fn inside_of_a_message_nothing_is_said() {
        assert_eq!(
            consequence(
                &LostState {
                    mid_frame: true,
                    ..STATE
                },
                "n",
                ""
            ),
            Consequence::HangUp
        );
    }

    /// BEGIN has no effect that could be lost or doubled.
    #[test]
    fn a_begin_is_repeated() {
        let begin = Flight {
            access: Access::Write,
            control: Control::Begins,
            ..FLIGHT
        };
        assert_eq!(
            consequence(
                &LostState {
                    flight: begin,
                    ..STATE
                },
                "n",
                ""
            ),
            Consequence::Repeat
        );
    }

    #[test]
    fn a_pinned_session_is_told_what_is_gone() {
        let pinned = LostState {
            pin: Some(PinReason::TemporaryObject),
            in_flight: false,
            ..STATE
        };
        let Consequence::FailNext(report) = consequence(&pinned, "node1", "") else {
            panic!()
        };
        assert!(report.detail.unwrap().contains("temporary objects"));
    }
}
