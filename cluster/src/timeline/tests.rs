use super::{can_follow, wal_file};

/// As PostgreSQL writes it, comments and all.
const HISTORY: &str =
    "1\t0/5000060\tno recovery target specified\n\n2\t1/A0000028\tno recovery target specified\n";

#[test]
fn a_standby_of_the_same_timeline_follows_wherever_it_is() {
    assert!(can_follow(3, u64::MAX, 3, HISTORY));
    assert!(can_follow(1, 7, 1, ""));
}

#[test]
fn a_standby_of_an_ancestor_follows_up_to_the_switch_and_not_past_it() {
    assert!(can_follow(1, 0x500_0060, 3, HISTORY));
    assert!(!can_follow(1, 0x500_0061, 3, HISTORY));
    assert!(can_follow(2, 0x1_A000_0028, 3, HISTORY));
    assert!(!can_follow(2, 0x1_A000_0029, 3, HISTORY));
}

#[test]
fn a_standby_of_a_foreign_timeline_never_follows() {
    assert!(!can_follow(4, 0, 3, HISTORY));
    assert!(!can_follow(2, 0, 1, ""));
    assert!(!can_follow(1, 0, 3, "1\tnonsense\n"));
}

#[test]
fn wal_files_are_named_as_the_server_names_them() {
    // SELECT pg_walfile_name('1/A0000028'), and a position at the very end of a file.
    assert_eq!(wal_file(0x1_A000_0028), "00000001000000A0");
    assert_eq!(wal_file(0x500_0000), "0000000000000004");
}
