use tokio_postgres::NoTls;

use super::*;
use crate::samples::Covered;

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

#[test]
fn a_standby_that_needs_long_is_asked_less_often() {
    let mut missing = Missing::default();
    let (old, new) = (SampleNumber(3), SampleNumber(9));
    assert_eq!(missing.apart(old, old), Duration::ZERO, "it misses nothing");
    assert!(
        missing.apart(new, old) < Duration::from_millis(5),
        "it has just come"
    );
    let long_ago = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
    missing = Missing(Some((new, long_ago)));
    assert_eq!(missing.apart(SampleNumber(12), old), SAMPLE_INTERVAL_MAX);
    assert!(
        missing.apart(SampleNumber(12), new) < Duration::from_millis(5),
        "it has what it missed, and what it misses now is new"
    );
}

/// The probers of a primary and of a standby, of which neither has asked anything, while positions are wanted.
fn probers() -> (Fences, Prober<NoTls>, Prober<NoTls>, Cadence) {
    let place = NodeConfig {
        name: "node".into(),
        host: "127.0.0.1".into(),
        port: 5432,
    };
    let config = Config::new(vec![place.clone()], "halyard", crate::Secret::new(""), "postgres");
    let fences = Fences::default();
    let cadence = Cadence {
        probes: config.interval,
        candidate: None,
        positions: Some(config.sample_interval),
        primary: Some(NodeId(0)),
    };
    let shared = Arc::new(Shared {
        config: Arc::new(config),
        begun: fences.begun(),
        fences: fences.clone(),
        reports: mpsc::channel(1).0,
        cadence: watch::channel(cadence).1,
    });
    let prober = |node| Prober {
        node: NodeId(node),
        place: place.clone(),
        bells: Arc::default(),
        shared: Arc::clone(&shared),
        coverage: Arc::new(Coverage::new(fences.begun())),
        tls: NoTls,
    };
    (fences.clone(), prober(0), prober(1), cadence)
}

/// Between the probes a node costs nothing but when its answer may tell somebody something.
#[tokio::test]
async fn nobody_is_asked_for_what_is_known() {
    let (fences, primary, standby, cadence) = probers();
    let asked = || {
        (
            primary.position_would_tell(cadence),
            standby.position_would_tell(cadence),
        )
    };
    assert_eq!(asked(), (false, false), "nobody has written");
    let fence = fences.fence();
    assert_eq!(
        asked(),
        (true, false),
        "first the primary has to tell where it stands"
    );
    fences.set_sampled(fence);
    assert_eq!(
        asked(),
        (false, true),
        "then the standby whether it has replayed that"
    );
    standby.coverage.spare(true);
    assert_eq!(asked(), (false, false), "nobody reads there");
    standby.coverage.spare(false);
    standby.coverage.store(Covered {
        answered: fence,
        covered: fence,
        within: None,
    });
    assert_eq!(asked(), (false, false), "it has");
}

/// What a standby has replayed may be known from an answer that came before somebody read there.
#[tokio::test]
async fn who_is_to_be_left_is_asked_though_it_has_everything() {
    let (fences, primary, standby, cadence) = probers();
    let fence = fences.fence();
    fences.begun().store(fence.0, Ordering::SeqCst);
    fences.set_sampled(fence);
    let answered = |number| {
        standby.coverage.store(Covered {
            answered: number,
            covered: fence,
            within: Some(fence),
        });
    };
    let is_asked = || standby.position_would_tell(cadence);
    answered(fence);
    assert!(!is_asked());
    let seen = standby.coverage.seen(standby.coverage.run());
    standby.coverage.ask_since(seen);
    assert_eq!(standby.coverage.bound(seen), None);
    assert!(is_asked(), "the answer may be older than what was seen");
    assert!(!primary.position_would_tell(cadence), "it alone");
    standby.coverage.spare(true);
    assert!(!is_asked(), "nobody reads there");
    standby.coverage.spare(false);
    answered(SampleNumber(fence.0 + 1));
    assert!(!is_asked(), "it has answered");
    assert_eq!(standby.coverage.bound(seen), Some(fence));
    standby.coverage.ask_since(seen);
    assert!(!is_asked(), "who asks for the same again has the answer");
}
