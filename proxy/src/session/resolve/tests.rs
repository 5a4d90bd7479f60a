use halyard_health::Lsn;

use super::*;

const OLD: NodeId = NodeId(0);
const NEW: NodeId = NodeId(1);

/// The run in which the transaction ran.
const RUN: Incarnation = Incarnation {
    timeline: TimelineId(4),
    started: 1_000,
    recovered: None,
};
/// The run of the node that was promoted.
const SUCCESSOR: Incarnation = Incarnation {
    timeline: TimelineId(5),
    started: 2_000,
    recovered: Some(Lsn(0x500)),
};
const PROMOTION: Promotion = Promotion {
    from: TimelineId(4),
    to: TimelineId(5),
    at: Lsn(0x500),
};

fn lost_at(position: u64) -> Lost {
    Lost {
        committing: Committing {
            xid: 77,
            timeline: TimelineId(4),
            position: Lsn(position),
        },
        node: OLD,
        incarnation: Some(RUN),
        success: Vec::new(),
        kept: None,
        left: None,
        changes: SettingChanges::default(),
        heard: Heard::default(),
    }
}

fn same_run(status: Status) -> Answer {
    Answer {
        status,
        node: OLD,
        incarnation: RUN,
        promotion: None,
        last_seen: Some(RUN),
    }
}

fn successor(status: Status) -> Answer {
    Answer {
        status,
        node: NEW,
        incarnation: SUCCESSOR,
        promotion: Some(PROMOTION),
        last_seen: Some(RUN),
    }
}

fn is_unknown(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Unknown(_))
}

#[test]
fn the_server_that_ran_it_knows_as_long_as_it_runs() {
    for (status, expected) in [
        (Status::Committed, Verdict::Committed),
        (Status::Aborted, Verdict::RolledBack),
        // It waits for its standbys.
        (Status::InProgress, Verdict::AskAgain),
    ] {
        assert_eq!(verdict(&lost_at(0x400), &same_run(status)), expected);
    }
}

/// A server that went down with log that it had not flushed gives the same numbers out again.
#[test]
fn after_a_restart_a_number_may_be_another_s() {
    for restarted in [
        Incarnation {
            started: 1_001,
            ..RUN
        },
        // A crash of one process: the postmaster goes on, and recovers.
        Incarnation {
            recovered: Some(Lsn(0x400)),
            ..RUN
        },
    ] {
        let answer = |status| Answer {
            incarnation: restarted,
            last_seen: Some(restarted),
            ..same_run(status)
        };
        assert!(is_unknown(verdict(&lost_at(0x400), &answer(Status::Committed))));
        assert_eq!(
            verdict(&lost_at(0x400), &answer(Status::Aborted)),
            Verdict::RolledBack,
            "whosever it is: a commit would show"
        );
    }
    let never_seen = Lost {
        incarnation: None,
        ..lost_at(0x400)
    };
    assert!(is_unknown(verdict(&never_seen, &same_run(Status::Committed))));
}

#[test]
fn a_successor_knows_what_lies_before_the_fork() {
    assert_eq!(
        verdict(&lost_at(0x4ff), &successor(Status::Committed)),
        Verdict::Committed
    );
    assert_eq!(
        verdict(&lost_at(0x4ff), &successor(Status::Aborted)),
        Verdict::RolledBack
    );
}

/// Its records did not reach the successor, which has given its number to a transaction of its own.
#[test]
fn a_number_that_the_successor_has_given_out_again_is_another_s() {
    for position in [0x500, 0x501, 0x9999] {
        assert_eq!(
            verdict(&lost_at(position), &successor(Status::Committed)),
            Verdict::RolledBack
        );
        // The other is at work still: nothing can be said until it has ended.
        assert_eq!(
            verdict(&lost_at(position), &successor(Status::InProgress)),
            Verdict::AskAgain
        );
    }
}

#[test]
fn a_successor_of_unknown_descent_proves_no_commit() {
    let early = lost_at(0x100);
    let committed = successor(Status::Committed);
    for answer in [
        Answer {
            promotion: None,
            ..committed
        },
        // It came from another timeline, or has been promoted again since.
        Answer {
            promotion: Some(Promotion {
                from: TimelineId(3),
                ..PROMOTION
            }),
            ..committed
        },
        Answer {
            incarnation: Incarnation {
                timeline: TimelineId(6),
                ..SUCCESSOR
            },
            ..committed
        },
        // The lost node was seen to write on once more before it was replaced.
        Answer {
            last_seen: Some(Incarnation {
                started: 1_500,
                ..RUN
            }),
            ..committed
        },
        // The node that was lost came back as its own successor.
        Answer {
            node: OLD,
            ..committed
        },
    ] {
        assert!(is_unknown(verdict(&early, &answer)), "{answer:?}");
        let aborted = Answer {
            status: Status::Aborted,
            ..answer
        };
        assert_eq!(verdict(&early, &aborted), Verdict::RolledBack);
    }
}

#[test]
fn what_is_forgotten_is_unknown() {
    assert!(is_unknown(verdict(&lost_at(0x400), &same_run(Status::Forgotten))));
}

#[test]
fn success_is_told_in_the_words_that_were_asked_for() {
    let kinds = |owed: &[Owed]| -> Vec<u8> {
        let bytes = success(owed.iter().copied(), Ending::Commit);
        let mut kinds = Vec::new();
        let mut rest = &bytes[..];
        while let Ok(Some(header)) = wire::Header::parse(rest) {
            kinds.push(header.kind);
            rest = &rest[header.total()..];
        }
        kinds
    };
    assert_eq!(kinds(&[Owed::Query]), b"CZ");
    assert_eq!(
        kinds(&[Owed::Parse, Owed::Bind, Owed::Describe, Owed::Execute, Owed::Sync]),
        b"12nCZ"
    );
}
