use std::time::{Duration, Instant};

use super::{Doubt, FOLLOW_PATIENCE, LOOK_INTERVAL};

/// Looks at a replica for so long, and says whether it was copied anew. `streams` is what the look of that number sees.
fn rebuilt(doubt: &mut Doubt, streams: impl Fn(u32) -> bool, lost: Option<bool>) -> bool {
    let begun = Instant::now();
    let last = (FOLLOW_PATIENCE + Duration::from_secs(15)).as_millis() / LOOK_INTERVAL.as_millis();
    (0..u32::try_from(last).unwrap()).any(|look| {
        let now = begun + LOOK_INTERVAL * look;
        doubt.look(streams(look), now) && doubt.heard(lost, now)
    })
}

#[test]
fn who_streams_is_not_asked() {
    let mut doubt = Doubt::default();
    let now = Instant::now();
    assert!((0..100).all(|look| !doubt.look(true, now + LOOK_INTERVAL * look)));
}

/// Two replicas were seen to stream four times in a row, again and again, and stood still for minutes.
#[test]
fn who_is_seen_to_stream_most_of_the_time_and_is_lost_is_copied_anew() {
    for pause in [1, 2, 5, 7, 39] {
        let mut doubt = Doubt::default();
        let streams = |look: u32| !look.is_multiple_of(pause);
        assert!(rebuilt(&mut doubt, streams, Some(true)), "every {pause} looks");
    }
}

#[test]
fn who_follows_or_nobody_knows_of_is_left_alone() {
    for lost in [Some(false), None] {
        for pause in [1, 2, 5] {
            assert!(!rebuilt(
                &mut Doubt::default(),
                |look| !look.is_multiple_of(pause),
                lost
            ));
        }
    }
}

#[test]
fn a_lost_one_has_its_time_to_be_found_lost_by_mistake() {
    let mut doubt = Doubt::default();
    let begun = Instant::now();
    let looks = FOLLOW_PATIENCE.as_millis() / LOOK_INTERVAL.as_millis();
    for look in 0..u32::try_from(looks).unwrap() {
        let now = begun + LOOK_INTERVAL * look;
        assert!(!(doubt.look(look > 0, now) && doubt.heard(Some(true), now)));
    }
}

#[test]
fn who_is_cleared_is_not_asked_again() {
    let mut doubt = Doubt::default();
    let begun = Instant::now();
    let asked = (0..200)
        .filter(|&look| {
            let now = begun + LOOK_INTERVAL * look;
            let asked = doubt.look(look > 3, now);
            if asked {
                doubt.heard(Some(false), now);
            }
            asked
        })
        .count();
    assert_eq!(asked, 1);
}

/// A busy machine does not answer each look in time.
#[test]
fn who_is_not_seen_now_and_then_stays_in_doubt() {
    let mut doubt = Doubt::default();
    let begun = Instant::now();
    let looks = 2 * FOLLOW_PATIENCE.as_millis() / LOOK_INTERVAL.as_millis();
    let is_rebuilt = |doubt: &mut Doubt, runs: bool| {
        (0..u32::try_from(looks).unwrap()).any(|look| {
            let now = begun + LOOK_INTERVAL * look;
            if look % 7 == 3 {
                doubt.missed(runs);
                return false;
            }
            doubt.look(look % 5 > 0, now) && doubt.heard(Some(true), now)
        })
    };
    assert!(is_rebuilt(&mut doubt, true));
    // Whose server has ended begins anew.
    assert!(!is_rebuilt(&mut Doubt::default(), false));
}
