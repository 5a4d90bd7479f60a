//! What a client is told when the node under it is lost: the failure table, as one pure function.
//!
//! `docs/ARCHITECTURE.md`, "Failover", has the table. No client connection is closed by it, but in the middle of a frame, where
//! nothing can be said (ADR 19), and no statement that may have taken effect is ever sent twice.

use crate::classify::Access;
use crate::error::{Report, SqlState};
use crate::metrics::Counter;
use crate::relay::{Ending, Flight};
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
    /// What the session kept on its backend, if it did; see [`crate::relay::Memory::kept`].
    pub pin: Option<PinReason>,
    /// Whether the client has got the beginning of a message whose end is lost.
    pub mid_frame: bool,
    /// Whether what is in flight is the end of a transaction whose outcome can be looked up.
    pub resolvable: bool,
    /// How the last request in flight ends the block, if it does nothing else and its answer can be given whole.
    pub ending: Option<Ending>,
    /// Whether nothing else is in flight.
    pub alone: bool,
    /// What the block can have done.
    pub reach: Reach,
}

/// What a transaction block can have done, as far as its statements tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It only read, on a standby: its COMMIT cannot fail.
    ReadOnStandby,
    /// It only read, on the primary, where it may be SERIALIZABLE by a default of the server's own: then its COMMIT may
    /// find that what it has read cannot be told in any order with what others wrote.
    ReadOnPrimary,
    /// On a standby, which writes nothing, it may have changed its session.
    WroteNothing,
    /// It may have written.
    Anything,
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
    /// The client gets an error and lives on; in a failed transaction block if what it has sent last is in one.
    Fail(Report),
    /// As that, at once or with its next statement, of a block that was certainly rolled back.
    FailBlock(Report),
    /// The client gets an error with its next statement: what it relied on is gone.
    FailNext(Report),
    /// Its block has ended as the client wanted: this is told. Requests before that get the error, in a failed block; if there
    /// are none, and the error tells of more than the block, the next one.
    EndBlock(Ending, Report),
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
            Self::EndBlock(Ending::Commit, _) => Counter::LossUnnoticed,
            Self::EndBlock(Ending::Rollback, _) | Self::FailBlock(_) => Counter::LossRolledBack,
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
        if state.in_flight
            && let Some(consequence) = end_of_block(state, &detail)
        {
            return consequence;
        }
        let in_doubt = state.reach == Reach::Anything;
        if state.in_flight && flight.control == Control::MayCommit && in_doubt {
            return unless_known(state, with_state(detail, state.pin));
        }
        if state.in_flight && flight.control == Control::MayCommit {
            // Whatever is known of the answers, there was nothing to commit; the block is over, as behind an error of its COMMIT.
            return Consequence::Fail(block_lost(state, detail));
        }
        return Consequence::FailBlock(block_lost(state, detail));
    }
    if state.in_flight && flight.opens && flight.access == Access::Write && flight.control == Control::Begins
    {
        // The server was not heard to have opened the block; whether it has or not, nothing of it is committed.
        if state.pin.is_none() && (!flight.sent || (flight.repeatable && !flight.answered)) {
            return Consequence::Repeat;
        }
        return Consequence::FailBlock(block_lost(state, detail));
    }
    if let Some(pin) = state.pin {
        if state.in_flight && flight.sent && flight.access == Access::Write {
            return unless_known(state, with_state(detail, state.pin));
        }
        let report = state_lost(&detail, pin);
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

/// The end of a block that is not in doubt although its answer is lost.
///
/// A ROLLBACK has what it wanted; what else went with the node is told behind it. (ROLLBACK AND CHAIN is none of these: the block that it opens is lost, which is told
/// as ever, and ROLLBACK TO has lost its savepoint.) The COMMIT of a block that only read has nothing to lose either: on a
/// standby it is told as done, since all that the client was told in it holds, and an error would have it read all of
/// it again for nothing. On the primary it might have failed, see [`Reach`], and 40001 is what that failure is called.
fn end_of_block(state: &LostState, detail: &str) -> Option<Consequence> {
    let report = || block_lost(state, detail.to_owned());
    let kept = state.pin.is_some();
    Some(match (state.ending?, state.reach) {
        // What was sent before it may have been committed before the block that it ends began.
        (Ending::Rollback, _) if !state.alone && state.flight.control == Control::MayCommit => return None,
        (Ending::Rollback, _) => Consequence::EndBlock(Ending::Rollback, report()),
        (Ending::Commit, Reach::Anything) => return None,
        // What was asked before it has failed, so it would have rolled back.
        (Ending::Commit, _) if !state.alone && !kept => Consequence::EndBlock(Ending::Rollback, report()),
        (Ending::Commit, Reach::ReadOnStandby) if !kept => Consequence::EndBlock(Ending::Commit, report()),
        (Ending::Commit, _) => Consequence::Fail(report()),
    })
}

/// What went with the node, in a sentence behind the others.
fn with_state(detail: String, pin: Option<PinReason>) -> String {
    match pin {
        Some(pin) => format!("{detail} With it went {}.", pin.lost()),
        None => detail,
    }
}

/// What the session kept on its node is gone, which it is told with this or with its next statement.
pub(super) fn state_lost(detail: &str, pin: PinReason) -> Report {
    Report::error(
        SqlState::ADMIN_SHUTDOWN,
        "the node that kept this session's state was lost",
    )
    .with_detail(with_state(detail.to_owned(), Some(pin)))
    .with_hint("Set up again what the session needs.")
}

/// What a session is told whose block was lost. Where more went than that, as in [`state_lost`], it is no 40001: who only
/// tries the transaction again, as drivers do of themselves, would do so without its lock or its temporary table.
fn block_lost(state: &LostState, detail: String) -> Report {
    if let Some(pin) = state.pin {
        return state_lost(&format!("{detail} The transaction was rolled back."), pin)
            .with_hint("Set up again what the session needs, then begin the transaction again.");
    }
    Report::error(
        SqlState::SERIALIZATION_FAILURE,
        "the transaction was rolled back: its connection was lost",
    )
    .with_detail(detail)
    .with_hint("The transaction can be retried from its beginning.")
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
        opens: false,
        binds: false,
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
        ending: None,
        alone: true,
        reach: Reach::Anything,
    };

    fn sqlstate(state: LostState) -> Option<SqlState> {
        match consequence(&state, "node1", "It was shut down.") {
            Consequence::Fail(report) | Consequence::FailBlock(report) | Consequence::FailNext(report) => {
                Some(report.sqlstate)
            }
            _ => None,
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

    /// A ROLLBACK was told 40001, and had to be sent once more.
    #[test]
    fn the_end_of_a_block_is_told_where_nothing_is_in_doubt() {
        use Ending::{Commit, Rollback};
        use Reach::{Anything, ReadOnPrimary, ReadOnStandby, WroteNothing};
        let ending = |ending, reach, alone| LostState {
            in_block: true,
            ending: Some(ending),
            reach,
            alone,
            flight: Flight {
                control: if ending == Rollback {
                    Control::RollsBack
                } else {
                    Control::MayCommit
                },
                ..FLIGHT
            },
            ..STATE
        };
        // COMMIT, BEGIN, INSERT, ROLLBACK in one write was told 40001: the COMMIT may stand.
        let mut behind_a_commit = ending(Rollback, Anything, false);
        behind_a_commit.flight.control = Control::MayCommit;
        let told = |state: &LostState| match consequence(state, "n", "") {
            Consequence::EndBlock(_, report) if report.sqlstate == SqlState::ADMIN_SHUTDOWN => {
                report.sqlstate.to_string()
            }
            Consequence::EndBlock(ending, _) => ending.tag().to_owned(),
            Consequence::Fail(report) | Consequence::FailBlock(report) => report.sqlstate.to_string(),
            _ => String::new(),
        };
        for (state, expected) in [
            (ending(Rollback, Anything, true), "ROLLBACK"),
            (ending(Rollback, Anything, false), "ROLLBACK"),
            (behind_a_commit, "08007"),
            (ending(Rollback, ReadOnStandby, true), "ROLLBACK"),
            (ending(Commit, Anything, true), "08007"),
            (ending(Commit, ReadOnStandby, true), "COMMIT"),
            (ending(Commit, ReadOnStandby, false), "ROLLBACK"),
            (ending(Commit, ReadOnPrimary, true), "40001"),
            (ending(Commit, WroteNothing, true), "40001"),
        ] {
            assert_eq!(told(&state), expected, "{state:?}");
            let pin = Some(PinReason::TemporaryObject);
            let pinned = LostState { pin, ..state };
            assert!(
                matches!(told(&pinned).as_str(), "57P01" | "08007"),
                "its state is gone: {state:?}"
            );
            let idle = LostState {
                in_flight: false,
                ..state
            };
            assert_eq!(told(&idle), "40001", "it was answered: {state:?}");
        }
    }

    /// The COMMIT of a block that had only read on a standby was told 08007, where what was known of its answer was no whole.
    #[test]
    fn the_commit_of_what_wrote_nothing_is_never_in_doubt() {
        let commit = Flight {
            access: Access::Write,
            control: Control::MayCommit,
            repeatable: false,
            ..FLIGHT
        };
        let state = |reach, flight| LostState {
            in_block: true,
            reach,
            flight,
            ..STATE
        };
        let answered = Flight {
            answered: true,
            ..commit
        };
        for reach in [Reach::ReadOnStandby, Reach::ReadOnPrimary, Reach::WroteNothing] {
            for flight in [commit, answered] {
                let told = consequence(&state(reach, flight), "n", "");
                let Consequence::Fail(report) = told else {
                    panic!("{reach:?}: {told:?}")
                };
                assert_eq!(report.sqlstate, SqlState::SERIALIZATION_FAILURE);
                let pinned = LostState {
                    pin: Some(PinReason::AdvisoryLock),
                    ..state(reach, flight)
                };
                assert_eq!(sqlstate(pinned), Some(SqlState::ADMIN_SHUTDOWN));
            }
        }
        assert_eq!(
            sqlstate(state(Reach::Anything, commit)),
            Some(SqlState::TRANSACTION_RESOLUTION_UNKNOWN)
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

    /// It was told 08007: nobody had heard the server open the block.
    #[test]
    fn what_was_sent_behind_its_begin_is_rolled_back() {
        let opening = LostState {
            flight: Flight {
                access: Access::Write,
                control: Control::Begins,
                opens: true,
                repeatable: false,
                ..FLIGHT
            },
            ..STATE
        };
        let told = |state: &LostState| match consequence(state, "n", "") {
            Consequence::FailBlock(report) => report.sqlstate.to_string(),
            Consequence::Fail(report) => format!("outside of a block {}", report.sqlstate),
            other => format!("{other:?}"),
        };
        assert_eq!(told(&opening), "40001");
        let pin = Some(PinReason::AdvisoryLock);
        assert_eq!(told(&LostState { pin, ..opening }), "57P01");
        let unsent = Flight {
            sent: false,
            ..opening.flight
        };
        let unsent = LostState {
            flight: unsent,
            ..opening
        };
        assert_eq!(consequence(&unsent, "n", ""), Consequence::Repeat);
        assert_eq!(told(&LostState { pin, ..unsent }), "57P01", "its lock is gone");
        let with = |control, opens| LostState {
            flight: Flight {
                control,
                opens,
                ..opening.flight
            },
            ..STATE
        };
        for doubtful in [with(Control::MayCommit, true), with(Control::Begins, false)] {
            assert_eq!(told(&doubtful), "outside of a block 08007");
        }
    }

    /// A lock or a temporary table went without a word where a block was open, and drivers tried the transaction again.
    #[test]
    fn a_block_tells_of_the_state_that_is_gone_with_it() {
        for in_flight in [true, false] {
            let block = LostState {
                in_block: true,
                in_flight,
                pin: Some(PinReason::AdvisoryLock),
                ..STATE
            };
            let Consequence::FailBlock(report) = consequence(&block, "n", "") else {
                panic!()
            };
            assert_eq!(report.sqlstate, SqlState::ADMIN_SHUTDOWN);
            assert!(report.detail.unwrap().contains("advisory locks"));
            assert_eq!(
                sqlstate(LostState { pin: None, ..block }),
                Some(SqlState::SERIALIZATION_FAILURE)
            );
        }
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
