use std::time::Duration;

use super::*;

#[test]
fn durations_are_read_in_postgresqls_units() {
    for (text, micros) in [
        ("250us", 250),
        ("250ms", 250_000),
        ("1s", 1_000_000),
        ("1.5s", 1_500_000),
        ("1.5 min", 90_000_000),
        ("2h", 7_200_000_000),
        ("1d", 86_400_000_000),
        ("0.0000005s", 0),
        ("0s", 0),
    ] {
        assert_eq!(duration(text), Ok(Duration::from_micros(micros)), "{text}");
    }
}

#[test]
fn sizes_count_in_steps_of_1024() {
    for (text, bytes) in [
        ("64kB", 65_536),
        ("1MB", 1_048_576),
        ("0.5GB", 536_870_912),
        ("7B", 7),
        ("1TB", 1 << 40),
    ] {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
}

#[test]
fn what_is_no_quantity_is_refused_with_the_reason() {
    for (text, reason) in [
        ("", "a number with a unit is wanted"),
        ("soon", "a number with a unit is wanted"),
        ("-1s", "a number with a unit is wanted"),
        ("5", "the unit is missing (units are us, ms, s, min, h, d)"),
        ("5 sec", "the unit is not known"),
        ("5 S", "did you mean \"s\"?"),
        ("1..5s", "malformed"),
        ("1.s.5", "the unit is not known"),
        ("99999999999999999999s", "too large"),
        ("18446744073709551615d", "too large"),
    ] {
        let error = duration(text).expect_err(text);
        assert!(error.contains(reason), "{text}: {error}");
    }
    assert!(
        size("64KB")
            .expect_err("case matters")
            .contains("did you mean \"kB\"?")
    );
}

#[test]
fn quantities_are_shown_in_their_largest_whole_unit() {
    for (micros, text) in [
        (0, "0"),
        (250_000, "250ms"),
        (90_000_000, "90s"),
        (3_600_000_000, "1h"),
        (1, "1us"),
    ] {
        assert_eq!(show_duration(Duration::from_micros(micros)), text);
    }
    for (bytes, text) in [(65_536, "64kB"), (1_500, "1500B"), (1 << 30, "1GB")] {
        assert_eq!(show_size(bytes), text);
    }
}
