use proptest::prelude::*;

use super::*;

fn samples(recorded: &[(u64, u64)]) -> Samples {
    let mut samples = Samples::default();
    for &(number, position) in recorded {
        samples.record(SampleNumber(number), Lsn(position));
    }
    samples
}

#[test]
fn a_standby_covers_the_newest_sample_that_it_has_replayed() {
    let samples = samples(&[(3, 100), (4, 200), (9, 300)]);
    for (replay, covered) in [
        (0, 0),
        (99, 0),
        (100, 3),
        (199, 3),
        (200, 4),
        (299, 4),
        (300, 9),
        (1000, 9),
    ] {
        assert_eq!(samples.covered(Lsn(replay)), SampleNumber(covered), "{replay}");
    }
    assert_eq!(samples.newest(), SampleNumber(9));
}

#[test]
fn an_idle_primary_is_covered_ever_anew_and_takes_no_room() {
    let mut samples = samples(&[(1, 100)]);
    for number in 2..10_000 {
        samples.record(SampleNumber(number), Lsn(100));
        assert_eq!(samples.covered(Lsn(100)), SampleNumber(number));
    }
    assert_eq!(samples.kept.len(), 1);
}

#[test]
fn a_late_answer_changes_nothing() {
    let samples = samples(&[(5, 100), (4, 200), (5, 200)]);
    assert_eq!(samples.covered(Lsn(1000)), SampleNumber(5));
    assert_eq!(samples.kept.len(), 1);
}

#[test]
fn records_that_a_crash_took_back_are_waited_for_by_nobody() {
    let mut samples = samples(&[(1, 100), (2, 200), (3, 300)]);
    samples.record(SampleNumber(4), Lsn(150));
    assert_eq!(samples.covered(Lsn(150)), SampleNumber(4));
    assert_eq!(samples.covered(Lsn(149)), SampleNumber(1));
}

#[test]
fn the_oldest_samples_make_room() {
    let mut samples = Samples::default();
    let last = SAMPLES_KEPT as u64 + 10;
    for number in 1..=last {
        samples.record(SampleNumber(number), Lsn(number));
    }
    assert_eq!(samples.kept.len(), SAMPLES_KEPT);
    assert_eq!(
        samples.covered(Lsn(10)),
        SampleNumber(0),
        "forgotten is not covered"
    );
    assert_eq!(samples.covered(Lsn(11)), SampleNumber(11));
}

#[test]
fn a_fence_is_the_first_sample_that_begins_after_it() {
    let fences = Fences::default();
    assert_eq!(fences.fence(), SampleNumber(1));
    fences.begun().fetch_add(7, Ordering::SeqCst);
    assert_eq!(fences.fence(), SampleNumber(8));
    assert_eq!(fences.wanted(), SampleNumber(8));
}

proptest! {
    /// Writes advance the primary, samples are drawn and answered at any time later, a standby replays up to any
    /// position: whenever it covers a session's fence, it has replayed that session's write.
    #[test]
    fn covered_is_never_ahead_of_the_truth(steps in prop::collection::vec((0..4u8, 1..50u64), 1..200)) {
        let fences = Fences::default();
        let mut samples = Samples::default();
        let (mut insert, mut replay) = (Lsn(100), Lsn(0));
        let mut drawn = None;
        let mut writes: Vec<(SampleNumber, Lsn)> = Vec::new();
        for (step, amount) in steps {
            match step {
                0 => {
                    insert.0 += amount;
                    writes.push((fences.fence(), insert));
                }
                1 => drawn = Some(fences.begun().fetch_add(1, Ordering::SeqCst) + 1),
                2 => {
                    if let Some(number) = drawn.take() {
                        samples.record(SampleNumber(number), insert);
                    }
                }
                _ => replay.0 = (replay.0 + amount * 3).min(insert.0),
            }
            let covered = samples.covered(replay);
            for &(fence, end) in &writes {
                prop_assert!(covered < fence || replay >= end);
            }
        }
        // And nobody waits for ever: one more sample, replayed, covers them all.
        let number = SampleNumber(fences.begun().fetch_add(1, Ordering::SeqCst) + 1);
        samples.record(number, insert);
        prop_assert!(writes.iter().all(|&(fence, _)| samples.covered(insert) >= fence));
    }
}
