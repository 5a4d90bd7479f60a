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
