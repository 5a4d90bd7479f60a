use super::*;

#[test]
fn progress_lines_are_read_and_others_are_not() {
    let line = "progress: 3.0 s, 512.3 tps, lat 15.612 ms stddev 4.120, 0 failed, 0 retried, 0 retries";
    assert_eq!(
        Progress::parse(line),
        Some(Progress {
            at_s: 3.0,
            tps: 512.3
        })
    );
    let idle = "progress: 7.0 s, 0.0 tps, lat 0.000 ms stddev 0.000, 0 failed";
    assert_eq!(Progress::parse(idle), Some(Progress { at_s: 7.0, tps: 0.0 }));
    for other in ["pgbench (15.15)", "progress: ", "progress: x s, 1 tps", ""] {
        assert_eq!(Progress::parse(other), None, "{other:?}");
    }
}

#[test]
fn what_happened_to_the_clients_is_counted() {
    let mut seen = Seen::default();
    for line in [
        "pgbench: client 4 got an error in command 8 (SQL) of script 0; ERROR:  rolled back",
        "pgbench: client 4 repeats the transaction after the error (try 1/10)",
        "pgbench: error: client 12 script 0 aborted in command 10 query 0: ERROR:  the outcome is unknown",
        "progress: 1.0 s, 5.0 tps, lat 1.0 ms",
        "pgbench: error: Run was aborted; the above results are incomplete.",
    ] {
        seen.take(line.to_owned());
    }
    assert_eq!((seen.retried, seen.gave_up, seen.kept.len()), (1, 1, 4));
    assert_eq!(seen.latest, Some(Progress { at_s: 1.0, tps: 5.0 }));
    for number in 0..2 * KEPT_LINES {
        seen.take(number.to_string());
    }
    assert_eq!(seen.kept.len(), KEPT_LINES);
}
