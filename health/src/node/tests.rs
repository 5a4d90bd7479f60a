use super::*;

const STALE_AFTER: Duration = Duration::from_secs(3);

/// A primary's answer.
pub(crate) fn inserting(at: Instant, timeline: u32, position: u64) -> Observation {
    Observation {
        at,
        system_identifier: SystemIdentifier(7),
        in_hot_standby: Some(false),
        default_transaction_read_only: false,
        wal: Wal::Inserting {
            timeline: TimelineId(timeline),
            insert: Lsn(position),
            flush: Lsn(position),
        },
        incarnation: None,
        promotion: None,
    }
}

/// The answer of a standby that streams this timeline.
pub(crate) fn streaming(at: Instant, timeline: u32, replay: u64) -> Observation {
    let timeline = Some(TimelineId(timeline));
    replaying(
        at,
        replay,
        Receiver::Present {
            timeline,
            silence: Some(Duration::ZERO),
        },
    )
}

/// The answer of a standby whose walreceiver is gone.
pub(crate) fn cut_off(at: Instant, replay: u64) -> Observation {
    replaying(at, replay, Receiver::Gone)
}

fn replaying(at: Instant, replay: u64, receiver: Receiver) -> Observation {
    Observation {
        at,
        system_identifier: SystemIdentifier(7),
        in_hot_standby: Some(true),
        default_transaction_read_only: false,
        wal: Wal::Replaying {
            receive: Some(Lsn(replay)),
            replay: Some(Lsn(replay)),
            receiver,
            control_timeline: Some(TimelineId(1)),
        },
        incarnation: None,
        promotion: None,
    }
}

/// A round that failed.
pub(crate) fn failure(at: Instant, kind: FailureKind) -> Failure {
    Failure {
        at,
        kind,
        message: "for the test".into(),
    }
}

fn after(outcomes: Vec<Result<Observation, Failure>>) -> NodeState {
    let mut state = NodeState::default();
    for outcome in outcomes {
        state.absorb(outcome, 3);
    }
    state
}

#[test]
fn silence_counts_when_repeated_and_refusal_at_once() {
    let now = Instant::now();
    let good = || Ok(inserting(now, 1, 100));
    let bad = |kind| Err(failure(now, kind));
    for (outcomes, reachable) in [
        (vec![good()], true),
        (vec![good(), bad(FailureKind::Timeout)], true),
        (
            vec![good(), bad(FailureKind::Timeout), bad(FailureKind::Rejected)],
            true,
        ),
        (
            vec![
                good(),
                bad(FailureKind::Timeout),
                bad(FailureKind::Lost),
                bad(FailureKind::Timeout),
            ],
            false,
        ),
        (vec![good(), bad(FailureKind::Refused)], false),
        (vec![good(), bad(FailureKind::NotAccepting)], false),
        // Once out, a slow answer does not bring it back; a good one does, at once.
        (
            vec![good(), bad(FailureKind::Refused), bad(FailureKind::Timeout)],
            false,
        ),
        (vec![good(), bad(FailureKind::Refused), good()], true),
        (
            vec![
                bad(FailureKind::Timeout),
                bad(FailureKind::Timeout),
                good(),
                bad(FailureKind::Timeout),
            ],
            true,
        ),
    ] {
        let state = after(outcomes);
        assert_eq!(
            state.sight(now, STALE_AFTER).fresh().is_some(),
            reachable,
            "{state:?}"
        );
    }
}

#[test]
fn stale_evidence_is_none() {
    let now = Instant::now();
    let state = after(vec![Ok(inserting(now, 1, 100))]);
    assert!(matches!(
        state.sight(now + STALE_AFTER, STALE_AFTER),
        Sight::Fresh(_)
    ));
    let later = now + STALE_AFTER + Duration::from_millis(1);
    assert!(matches!(state.sight(later, STALE_AFTER), Sight::Stale));
    let state = after(vec![
        Ok(inserting(now, 1, 100)),
        Err(failure(now, FailureKind::Timeout)),
    ]);
    assert!(matches!(
        state.sight(later, STALE_AFTER),
        Sight::Unreachable(FailureKind::Timeout)
    ));
}

#[test]
fn a_node_that_was_only_slow_so_far_is_unheard() {
    let now = Instant::now();
    let state = after(vec![
        Err(failure(now, FailureKind::Timeout)),
        Err(failure(now, FailureKind::Timeout)),
    ]);
    assert!(matches!(state.sight(now, STALE_AFTER), Sight::Unheard));
    assert!(matches!(
        NodeState::default().sight(now, STALE_AFTER),
        Sight::Unheard
    ));
}

#[test]
fn the_control_file_proves_a_timeline_but_not_who_is_on_it() {
    let now = Instant::now();
    assert_eq!(cut_off(now, 5).timeline(), None);
    assert_eq!(cut_off(now, 5).highest_timeline(), Some(TimelineId(1)));
    assert_eq!(streaming(now, 3, 5).timeline(), Some(TimelineId(3)));
    assert_eq!(streaming(now, 3, 5).highest_timeline(), Some(TimelineId(3)));
}
