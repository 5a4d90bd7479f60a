use super::*;

#[test]
fn a_wal_files_name_begins_with_its_timeline() {
    for (name, timeline) in [
        ("000000010000000000000003", Some(1)),
        ("0000001A00000016000000B3", Some(26)),
        ("FFFFFFFF0000000000000001", Some(u32::MAX)),
        ("000000000000000000000001", None),
        ("0000001", None),
        ("", None),
        ("0000000G0000000000000001", None),
    ] {
        assert_eq!(timeline_of_walfile(name), timeline.map(TimelineId), "{name}");
    }
}

#[test]
fn only_what_the_machine_itself_refuses_is_refused() {
    for (kind, expected) in [
        (io::ErrorKind::ConnectionRefused, FailureKind::Refused),
        (io::ErrorKind::NotFound, FailureKind::Refused),
        (io::ErrorKind::HostUnreachable, FailureKind::Refused),
        (io::ErrorKind::TimedOut, FailureKind::Timeout),
        (io::ErrorKind::ConnectionReset, FailureKind::Lost),
        (io::ErrorKind::BrokenPipe, FailureKind::Lost),
        (io::ErrorKind::UnexpectedEof, FailureKind::Lost),
    ] {
        assert_eq!(io_failure_kind(kind), expected, "{kind:?}");
    }
}

#[test]
fn a_password_is_in_no_debug_output() {
    let place = NodeConfig {
        name: "node1".into(),
        host: "/run/postgresql".into(),
        port: 5432,
    };
    let config = Config::new(
        vec![place.clone()],
        "halyard",
        crate::Secret::new("swordfish"),
        "postgres",
    );
    let printed = format!("{config:?} {:?}", postgres_config(&config, &place));
    assert!(!printed.contains("swordfish"), "{printed}");
    assert!(printed.contains("halyard_health"));
}
