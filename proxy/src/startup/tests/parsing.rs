//! The pure parts: packets, options, rules.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use proptest::prelude::*;

use super::super::packet::{self, Packet, Replication};
use super::super::rules::{self, Proof, Visitor};
use super::super::{Peer, options};
use super::{alice, packet as framed_packet, rule, startup_packet};
use crate::config::{AuthMethod, AuthRule, ConnectionKind};

fn parse(packet: &[u8]) -> Packet {
    packet::parse(Bytes::copy_from_slice(&packet[4..])).unwrap()
}

fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn a_startup_message_is_sorted_by_who_is_meant() {
    let Packet::Startup(packet) = parse(&startup_packet(
        3 << 16,
        &[
            ("user", "alice"),
            ("datestyle", "ISO"),
            ("options", "-c work_mem=1MB --Application-Name=a\\ b"),
            ("application_name", "caf\u{e9}"),
            ("DateStyle", "German"),
        ],
    )) else {
        panic!("a StartupMessage");
    };
    assert_eq!(packet.database, "alice", "the database is the user's by default");
    // The last one of each name counts, at the place of the first; options come before everything.
    assert_eq!(
        packet.settings,
        settings(&[
            ("work_mem", "1MB"),
            ("Application_Name", "caf??"),
            ("datestyle", "German")
        ])
    );
}

#[test]
fn options_as_postgresql_splits_them() {
    let good: &[(&str, &[(&str, &str)])] = &[
        ("", &[]),
        ("  \t\n ", &[]),
        ("-c a=b", &[("a", "b")]),
        ("-ca=b", &[("a", "b")]),
        ("--a=b", &[("a", "b")]),
        ("--search-path=x", &[("search_path", "x")]),
        ("-c  a=b   --c=d", &[("a", "b"), ("c", "d")]),
        ("-c search_path=a,\\ b", &[("search_path", "a, b")]),
        ("-c a=b\\\\c", &[("a", "b\\c")]),
        ("-c a=x=y", &[("a", "x=y")]),
        ("-c a=", &[("a", "")]),
        ("-c halyard.route=primary", &[("halyard.route", "primary")]),
        ("-c a=b\\", &[("a", "b")]),
    ];
    for (text, expected) in good {
        assert_eq!(options::parse(text).unwrap(), settings(expected), "{text}");
    }
    for text in [
        "-c", "-c a", "-ca", "--a", "--", "--=b", "-c =b", "-e", "-d 5", "plain", "-S 1MB",
    ] {
        assert_eq!(
            options::parse(text).unwrap_err().sqlstate.as_str(),
            "42601",
            "{text}"
        );
    }
}

#[test]
fn replication_in_all_its_spellings() {
    let of = |value| match parse(&startup_packet(
        3 << 16,
        &[("user", "alice"), ("replication", value)],
    )) {
        Packet::Startup(packet) => packet.replication,
        other => panic!("{other:?}"),
    };
    for value in ["true", "on", "yes", "1", "T", "y"] {
        assert_eq!(of(value), Some(Replication::Physical), "{value}");
    }
    for value in ["false", "off", "no", "0", "F", "n", "of"] {
        assert_eq!(of(value), None, "{value}");
    }
    assert_eq!(of("database"), Some(Replication::Database));
}

fn visitor<'v>(peer: Peer, encrypted: bool) -> Visitor<'v> {
    Visitor {
        peer,
        encrypted,
        user: "alice",
        database: "shop",
        replication: None,
    }
}

fn tcp(address: &str) -> Peer {
    Peer::Tcp(SocketAddr::new(address.parse().unwrap(), 5))
}

#[test]
fn rules_match_as_in_pg_hba_conf() {
    use ConnectionKind::{Any, Host, HostNoSsl, HostSsl, Local};
    let kind = |connection| AuthRule {
        connection,
        ..rule(AuthMethod::Trust)
    };
    let matches = |rule: &AuthRule, visitor| rules::decide(std::slice::from_ref(rule), visitor).is_ok();
    let remote = tcp("10.1.2.3");
    // Kind, then: Unix socket, TCP, TCP with TLS.
    for (connection, expected) in [
        (Any, [true, true, true]),
        (Local, [true, false, false]),
        (Host, [false, true, true]),
        (HostSsl, [false, false, true]),
        (HostNoSsl, [false, true, false]),
    ] {
        let rule = kind(connection);
        let found = [
            visitor(Peer::Unix, false),
            visitor(remote, false),
            visitor(remote, true),
        ]
        .map(|visitor| matches(&rule, visitor));
        assert_eq!(found, expected, "{connection:?}");
    }

    let network = |text: &str, prefix| AuthRule {
        addresses: vec![(text.parse::<IpAddr>().unwrap(), prefix)],
        ..rule(AuthMethod::Trust)
    };
    for (network, address, expected) in [
        (network("10.0.0.0", 8), "10.1.2.3", true),
        (network("10.0.0.0", 8), "11.1.2.3", false),
        (network("10.1.2.3", 32), "10.1.2.3", true),
        (network("10.1.2.3", 32), "10.1.2.2", false),
        (network("0.0.0.0", 0), "10.1.2.3", true),
        (network("0.0.0.0", 0), "::1", false),
        (network("::", 0), "::1", true),
        (network("fd00::", 8), "fd12::1", true),
        (network("fd00::", 8), "fe80::1", false),
        (network("10.0.0.0", 8), "::ffff:10.1.2.3", true),
    ] {
        assert_eq!(
            matches(&network, visitor(tcp(address), false)),
            expected,
            "{network:?} {address}"
        );
    }
    assert!(matches(&network("10.0.0.0", 8), visitor(Peer::Unix, false)));
}

#[test]
fn the_first_rule_that_matches_decides() {
    let for_database = |name: &str, method| AuthRule {
        databases: vec![name.to_owned()],
        ..rule(method)
    };
    let for_user = |name: &str, method| AuthRule {
        users: vec![name.to_owned()],
        ..rule(method)
    };
    let rules = [
        for_database("replication", AuthMethod::Md5),
        for_user("bob", AuthMethod::Reject),
        for_database("shop", AuthMethod::ScramSha256),
        rule(AuthMethod::Trust),
    ];
    let with = |user, database, replication| {
        rules::decide(
            &rules,
            Visitor {
                user,
                database,
                replication,
                ..visitor(Peer::Unix, false)
            },
        )
    };
    assert_eq!(with("alice", "shop", None), Ok(Proof::ScramSha256));
    assert_eq!(with("alice", "other", None), Ok(Proof::Nothing));
    assert_eq!(
        with("alice", "shop", Some(Replication::Database)),
        Ok(Proof::ScramSha256)
    );
    assert_eq!(with("alice", "shop", Some(Replication::Physical)), Ok(Proof::Md5));
    assert_eq!(
        with("bob", "shop", None).unwrap_err().message,
        "authentication rules reject connection for host \"[local]\", user \"bob\", database \"shop\", no encryption"
    );
    let none = rules::decide(
        &rules[1..],
        Visitor {
            replication: Some(Replication::Physical),
            encrypted: true,
            ..visitor(tcp("10.1.2.3"), true)
        },
    );
    assert_eq!(
        none.unwrap_err().message,
        "no authentication rule for host \"10.1.2.3\", user \"alice\", replication connection, SSL encryption"
    );
}

proptest! {
    #[test]
    fn no_packet_panics(
        code in prop_oneof![
            Just(196_608_u32), Just(196_610), Just(80_877_102), Just(80_877_103), Just(80_877_104), any::<u32>(),
        ],
        rest in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = packet::parse([&code.to_be_bytes()[..], &rest].concat().into());
        let _ = packet::parse(rest.into());
    }

    #[test]
    fn every_cut_of_a_startup_message_is_refused(cut in 4_usize..33) {
        let whole = alice();
        prop_assume!(cut < whole.len());
        let refused = packet::parse(Bytes::copy_from_slice(&whole[4..cut]));
        prop_assert!(refused.is_err());
    }

    #[test]
    fn parameters_come_back_as_they_were(
        names in proptest::collection::btree_map("[a-z.]{1,8}", "[^\0]{0,20}", 0..6),
    ) {
        let mut pairs = vec![("user", "alice")];
        prop_assume!(names.keys().all(|name| {
            !["user", "database", "options", "replication"].contains(&&name[..])
        }));
        pairs.extend(names.iter().map(|(name, value)| (&name[..], &value[..])));
        let packet = startup_packet(3 << 16, &pairs);
        prop_assert_eq!(&framed_packet(&packet[4..]), &packet);
        let Packet::Startup(read) = parse(&packet) else { panic!("a StartupMessage") };
        prop_assert_eq!(read.settings, names.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn no_options_panic(text in "[-c=a \\\\\\t\u{e9}]{0,40}") {
        let _ = options::parse(&text);
    }
}
