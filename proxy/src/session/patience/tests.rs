use std::time::Duration;

use super::Patience;

#[test]
fn a_timeout_has_postgresqls_units() {
    let milliseconds = |value| super::milliseconds(value).map(|limit| limit.as_millis());
    for (value, meant) in [
        ("1000", 1_000),
        ("250ms", 250),
        (" 3 s ", 3_000),
        ("1.5s", 1_500),
        ("0.5min", 30_000),
        ("2min", 120_000),
        ("1h", 3_600_000),
        ("1d", 86_400_000),
        ("1500us", 2),
        ("0.6", 1),
    ] {
        assert_eq!(milliseconds(value), Some(meant), "{value}");
    }
    assert_eq!(super::milliseconds("1ms"), Some(Duration::from_millis(1)));
}

#[test]
fn zero_is_none_and_so_is_what_only_the_server_can_read() {
    for value in [
        "0", "0ms", "0.4", "400us", "", "s", "010", "0x10", "1e3", "-1", "1S", "1 sec", "1.2.3", "DEFAULT",
    ] {
        assert_eq!(super::milliseconds(value), None, "{value}");
        assert_eq!(
            Patience::of(value),
            Patience::Endless,
            "it is no default: {value}"
        );
    }
}
