use super::*;
use crate::node::tests::{cut_off, inserting, streaming};

const MAX: MaxLag = MaxLag {
    bytes: Some(1000),
    time: Some(Duration::from_secs(10)),
};

const ON_2: Option<TimelineId> = Some(TimelineId(2));

fn lag(bytes: u64) -> Lag {
    Lag {
        bytes: Some(bytes),
        time: Some(Duration::ZERO),
    }
}

fn present(since: Instant) -> Leader {
    Leader::Present {
        timeline: TimelineId(2),
        since,
    }
}

#[test]
fn lag_decides_over_a_standby_that_streams() {
    let now = Instant::now();
    for (found, expected) in [
        (lag(0), Fitness::Fit),
        (lag(500), Fitness::Fit),
        (lag(501), Fitness::Tolerated),
        (lag(1000), Fitness::Tolerated),
        (lag(1001), Fitness::Unfit(Unfit::Behind(lag(1001)))),
        (Lag::default(), Fitness::Unfit(Unfit::LagUnknown)),
    ] {
        for leader in [present(now), Leader::Absent] {
            assert_eq!(
                fitness(ON_2, &Progress::default(), leader, found, MAX, now),
                expected
            );
        }
    }
    let starting = fitness(ON_2, &Progress::default(), Leader::Undecided, lag(0), MAX, now);
    assert_eq!(starting, Fitness::Unfit(Unfit::Starting));
}

#[test]
fn a_change_of_upstream_is_no_reason_to_stop_and_standing_still_is() {
    let start = Instant::now();
    let mut progress = Progress::default();
    progress.absorb(&streaming(start, 2, 100));
    let judge = |progress: &Progress, at: Instant, leader| fitness(ON_2, progress, leader, lag(0), MAX, at);
    progress.absorb(&cut_off(start, 100));
    let (soon, late) = (
        start + Duration::from_millis(250),
        start + RECEIVER_GRACE + Duration::from_millis(1),
    );
    assert_eq!(judge(&progress, soon, present(start)), Fitness::Fit);
    assert_eq!(
        judge(&progress, late, present(start)),
        Fitness::Unfit(Unfit::Frozen)
    );
    // While there is no primary it is not its fault, nor for a while after there is a new one.
    assert_eq!(judge(&progress, late, Leader::Absent), Fitness::Fit);
    assert_eq!(judge(&progress, late, present(late)), Fitness::Fit);
    assert_eq!(
        judge(&progress, late + RECEIVER_GRACE * 2, present(late)),
        Fitness::Unfit(Unfit::Frozen)
    );
    // It moves all the same: WAL from an archive.
    progress.absorb(&cut_off(late, 200));
    assert_eq!(judge(&progress, late, present(start)), Fitness::Fit);
    // It streams again.
    progress.absorb(&streaming(late, 2, 200));
    assert_eq!(
        judge(&progress, late + RECEIVER_GRACE * 2, present(start)),
        Fitness::Fit
    );
}

#[test]
fn a_standby_that_goes_on_streaming_the_old_timeline_follows_the_old_primary() {
    let start = Instant::now();
    let on_1 = Some(TimelineId(1));
    let judge = |at: Instant| fitness(on_1, &Progress::default(), present(start), lag(0), MAX, at);
    assert_eq!(judge(start + Duration::from_millis(250)), Fitness::Fit);
    let late = start + TIMELINE_GRACE + Duration::from_millis(1);
    assert_eq!(judge(late), Fitness::Unfit(Unfit::OldTimeline(TimelineId(1))));
    // One that lost its walreceiver has the time of a retry.
    let mut progress = Progress::default();
    progress.absorb(&cut_off(start, 100));
    let judge = |at: Instant| fitness(on_1, &progress, present(start), lag(0), MAX, at);
    assert_eq!(judge(late), Fitness::Fit);
    let later = start + RECEIVER_GRACE + Duration::from_millis(1);
    assert_eq!(judge(later), Fitness::Unfit(Unfit::OldTimeline(TimelineId(1))));
}

#[test]
fn a_promotion_ends_a_standbys_progress() {
    let start = Instant::now();
    let mut progress = Progress::default();
    progress.absorb(&cut_off(start, 100));
    progress.absorb(&inserting(start, 2, 100));
    assert_eq!(
        progress.standing_still(start + RECEIVER_GRACE * 2, start),
        Duration::ZERO
    );
}

#[test]
fn the_gate_closes_at_once_and_opens_after_enough_good_answers() {
    let behind = Unfit::Behind(lag(2000));
    let closed = |streak, why| Gate::Closed { streak, why };
    for (gate, fitness, new_answer, expected) in [
        (Gate::New, Fitness::Fit, true, Gate::Open),
        (Gate::New, Fitness::Tolerated, true, Gate::Open),
        (Gate::New, Fitness::Unfit(Unfit::Starting), true, Gate::New),
        (Gate::New, Fitness::Unfit(behind), true, closed(0, behind)),
        (Gate::Open, Fitness::Tolerated, true, Gate::Open),
        (Gate::Open, Fitness::Unfit(behind), false, closed(0, behind)),
        (
            closed(0, behind),
            Fitness::Fit,
            true,
            closed(1, Unfit::Recovering),
        ),
        // A second look at the same answer proves nothing.
        (
            closed(1, Unfit::Recovering),
            Fitness::Fit,
            false,
            closed(1, Unfit::Recovering),
        ),
        (closed(1, Unfit::Recovering), Fitness::Fit, true, Gate::Open),
        (
            closed(1, Unfit::Recovering),
            Fitness::Tolerated,
            true,
            closed(0, Unfit::Recovering),
        ),
        (Gate::away(), Fitness::Fit, true, closed(1, Unfit::Recovering)),
    ] {
        assert_eq!(
            gate.after(fitness, new_answer, 2),
            expected,
            "{gate:?} {fitness:?}"
        );
    }
    assert_eq!(Gate::Open.unfit(), None);
    assert!(Gate::New.unfit().is_some() && Gate::away().unfit().is_some());
}
