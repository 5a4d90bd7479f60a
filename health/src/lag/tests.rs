use proptest::prelude::*;

use super::*;

/// A history from (milliseconds, position) pairs.
fn history(start: Instant, points: &[(u64, u64)]) -> History {
    let mut history = History::default();
    for &(ms, position) in points {
        history.record(start + Duration::from_millis(ms), Lsn(position));
    }
    history
}

fn lag(bytes: u64, ms: u64) -> Lag {
    Lag {
        bytes: Some(bytes),
        time: Some(Duration::from_millis(ms)),
    }
}

/// To the nearest millisecond, since interpolation is not exact to the nanosecond.
fn rounded(lag: Lag) -> Lag {
    let half = Duration::from_micros(500);
    let whole = |time: Duration| u64::try_from((time + half).as_millis()).unwrap();
    Lag {
        time: lag.time.map(|time| Duration::from_millis(whole(time))),
        ..lag
    }
}

#[test]
fn lag_is_read_off_the_primarys_own_history() {
    let start = Instant::now();
    let history = history(
        start,
        &[(0, 1000), (100, 2000), (200, 2000), (9000, 2000), (9100, 6000)],
    );
    for (at, replay, expected) in [
        // Caught up.
        (9100, 6000, lag(0, 0)),
        (9200, 6000, lag(0, 0)),
        (9100, 7000, lag(0, 0)),
        // Idle for 8.9 s and caught up: zero, where the replay timestamp would say 8.9 s.
        (9000, 2000, lag(0, 0)),
        // The first write after idleness: as old as that write, not as the last transaction replayed.
        (9100, 2000, lag(4000, 100)),
        (9600, 2000, lag(4000, 600)),
        // Halfway between two samples.
        (9100, 4000, lag(2000, 50)),
        // The primary's position at the standby's moment, not the later one.
        (50, 1500, lag(0, 0)),
        (50, 1000, lag(500, 50)),
        (9050, 2000, lag(2000, 50)),
        // Older than the history: a lower bound.
        (9100, 500, lag(5500, 9100)),
    ] {
        let at = start + Duration::from_millis(at);
        assert_eq!(rounded(history.lag(at, Lsn(replay))), expected, "{at:?} {replay}");
    }
}

#[test]
fn without_a_primary_lag_is_unknown_and_not_zero() {
    let history = History::default();
    assert_eq!(
        history.lag(Instant::now(), Lsn(5)),
        Lag {
            bytes: None,
            time: None
        }
    );
    assert_eq!(history.lag_at_end(Lsn(5)), Lag::default());
    let max = MaxLag {
        bytes: Some(u64::MAX),
        time: None,
    };
    assert!(!Lag::default().within(max), "unknown is within no bound");
    assert!(Lag::default().within(MaxLag {
        bytes: None,
        time: None
    }));
}

#[test]
fn both_bounds_must_hold() {
    let max = MaxLag {
        bytes: Some(100),
        time: Some(Duration::from_millis(50)),
    };
    for (found, within) in [
        (lag(0, 0), true),
        (lag(100, 50), true),
        (lag(101, 50), false),
        (lag(100, 51), false),
        (
            Lag {
                bytes: Some(0),
                time: None,
            },
            false,
        ),
    ] {
        assert_eq!(found.within(max), within, "{found:?}");
    }
    assert_eq!(
        readmission(max),
        MaxLag {
            bytes: Some(50),
            time: Some(Duration::from_millis(25))
        }
    );
}

#[test]
fn the_lag_at_the_primarys_end_does_not_grow_afterwards() {
    let start = Instant::now();
    let history = history(start, &[(0, 1000), (100, 2000)]);
    assert_eq!(rounded(history.lag_at_end(Lsn(1000))), lag(1000, 100));
    assert_eq!(history.lag_at_end(Lsn(2000)), lag(0, 0));
}

#[test]
fn a_history_is_bounded_and_keeps_its_ends() {
    let start = Instant::now();
    let mut history = History::default();
    for step in 0..20_000u64 {
        history.record(start + Duration::from_millis(step), Lsn(step * 10));
        assert!(history.points.len() <= HISTORY_POINTS);
    }
    let at = start + Duration::from_millis(19_999);
    assert_eq!(rounded(history.lag(at, Lsn(0))), lag(199_990, 19_999));
    // Interpolation makes up for the points that went.
    assert_eq!(rounded(history.lag(at, Lsn(100_000))), lag(99_990, 9_999));
}

#[test]
fn what_cannot_be_is_ignored() {
    let start = Instant::now();
    let history = history(start, &[(100, 2000), (100, 3000), (50, 4000), (200, 1000)]);
    assert_eq!(history.points.len(), 1);
}

proptest! {
    #[test]
    fn lag_is_within_what_the_history_allows(
        steps in prop::collection::vec((1..1000u64, 0..5000u64), 1..50),
        at in 0..50_000u64,
        replay in 0..250_000u64,
    ) {
        let start = Instant::now();
        let (mut ms, mut position) = (0, 0);
        let mut points = Vec::new();
        for (wait, bytes) in steps {
            ms += wait;
            position += bytes;
            points.push((ms, position));
        }
        let history = history(start, &points);
        let at = start + Duration::from_millis(at);
        let found = history.lag(at, Lsn(replay));
        prop_assert!(found.bytes.is_some() && found.time.is_some());
        prop_assert!(found.bytes.unwrap() <= Lsn(position).bytes_since(Lsn(replay)));
        prop_assert!(found.time.unwrap() <= at.saturating_duration_since(start));
        // Who has replayed more is not further behind.
        let better = history.lag(at, Lsn(replay + 100));
        prop_assert!(better.bytes <= found.bytes && better.time <= found.time);
    }
}
