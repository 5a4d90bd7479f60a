use std::path::PathBuf;

use super::*;

fn conf(service: Service, durability: Durability) -> String {
    let layout = Layout::new(PathBuf::from("/c"));
    let users = Users::random().expect("random");
    node_conf(
        &layout,
        service,
        &Ports::well_known(3),
        Profile::Seed,
        durability,
        &users,
    )
}

#[test]
fn nobody_gets_in_without_a_password_over_tcp() {
    for line in pg_hba().lines().filter(|line| line.starts_with("host")) {
        let method = line.split_whitespace().last();
        assert!(matches!(method, Some("scram-sha-256" | "reject")), "{line}");
        assert!(line.contains("127.0.0.1/32"), "{line}");
    }
    let rules = pg_hba();
    assert!(!rules.contains("trust") && !rules.contains("md5"));
}

#[test]
fn the_monitors_listener_is_ruled_before_the_superuser() {
    let rules = pg_hba();
    let locals: Vec<&str> = rules.lines().filter(|line| line.starts_with("local")).collect();
    assert_eq!(locals.len(), 2);
    assert!(locals[0].contains("autoctl_node") && locals[0].ends_with("scram-sha-256"));
    assert!(locals[1].ends_with("peer map=owner"));
}

#[test]
fn both_profiles_leave_no_time_for_two_primaries() {
    for profile in [Profile::Seed, Profile::Fast, Profile::Defaults] {
        let timing = profile.timing();
        let demoted_ms = timing.keeper_partition_timeout_s * 1000 + 4_000;
        let promoted_ms = timing.unhealthy_timeout_ms + 3_000 + timing.demote_timeout_ms;
        assert!(demoted_ms <= promoted_ms, "{profile}");
    }
}

#[test]
fn replicas_stream_from_standbys_first_and_not_all_from_one() {
    let ports = Ports::well_known(3);
    let conninfo = primary_conninfo(Service::Ro(1), &ports, "replicator");
    assert!(
        conninfo.ends_with(" target_session_attrs=prefer-standby"),
        "{conninfo}"
    );
    let ports_of = |number| {
        let conninfo = primary_conninfo(Service::Ro(number), &ports, "replicator");
        conninfo
            .split(' ')
            .find_map(|part| part.strip_prefix("port=").map(str::to_owned))
    };
    assert_eq!(ports_of(1).as_deref(), Some("5433,5434,5432"));
    assert_eq!(ports_of(2).as_deref(), Some("5434,5433,5432"));
    assert_eq!(ports_of(3).as_deref(), Some("5433,5434,5432"));
}

#[test]
fn only_the_monitor_and_the_replicas_have_settings_of_their_kind() {
    let (monitor, node, replica) = (
        conf(Service::Monitor, Durability::Fsync),
        conf(Service::Node(2), Durability::Fsync),
        conf(Service::Ro(2), Durability::Fsync),
    );
    assert!(monitor.contains("pgautofailover.primary_demote_timeout = 10000\n"));
    assert!(replica.contains("primary_conninfo = ") && replica.contains("port = 5441\n"));
    // The engine owns these on its nodes.
    for owned in [
        "primary_conninfo",
        "\nport = ",
        "listen_addresses",
        "pgautofailover.",
    ] {
        assert!(!node.contains(owned), "{owned}");
    }
    assert!(node.contains("log_filename = 'node2.log'\n"));
}

#[test]
fn fsync_is_off_only_when_asked() {
    assert!(!conf(Service::Node(1), Durability::Fsync).contains("fsync"));
    assert!(conf(Service::Node(1), Durability::NoFsync).contains("fsync = off\n"));
}

#[test]
fn values_are_quoted_as_postgresql_reads_them() {
    let mut written = Conf::default();
    written.text("log_directory", r"/it's\here");
    assert_eq!(written.0, "log_directory = '/it''s\\\\here'\n");
}
