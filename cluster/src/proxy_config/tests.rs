use std::path::PathBuf;

use super::*;
use crate::layout::{Layout, Ports};
use crate::server_config::{Durability, Profile};

fn layout() -> Layout {
    Layout::new(PathBuf::from("/c"))
}

fn record() -> Record {
    let ports = Ports::from_base(21000, 2).expect("fits");
    Record::new(&layout(), &ports, Profile::Seed, Durability::Fsync).expect("random")
}

#[test]
fn the_configuration_names_every_node_and_who_reads() {
    let parsed: toml::Table = render(&layout(), &record()).parse().expect("TOML");
    let nodes = parsed["node"].as_array().expect("nodes");
    let line = |node: &toml::Value| {
        (
            node["name"].as_str().map(str::to_owned),
            node["port"].as_integer(),
            node["reads"].as_str().map(str::to_owned),
        )
    };
    let expected = [
        ("node1", 21001, "fallback"),
        ("node2", 21002, "fallback"),
        ("node3", 21003, "fallback"),
        ("ro1", 21004, "preferred"),
        ("ro2", 21005, "preferred"),
    ];
    let expected =
        expected.map(|(name, port, reads)| (Some(name.to_owned()), Some(port), Some(reads.to_owned())));
    assert_eq!(nodes.iter().map(line).collect::<Vec<_>>(), expected);
    assert_eq!(parsed["listener"][0]["address"].as_str(), Some("127.0.0.1:21006"));
    assert_eq!(parsed["http"]["address"].as_str(), Some("127.0.0.1:21007"));
    assert_eq!(parsed["engine"]["port"].as_integer(), Some(21000));
    assert_eq!(
        parsed["general"]["control_socket"].as_str(),
        Some("/c/run/halyard.control")
    );
}

#[test]
fn the_proxy_knows_the_roles_it_needs_and_not_the_superuser() {
    let record = record();
    let text = render(&layout(), &record);
    let parsed: toml::Table = text.parse().expect("TOML");
    let users = parsed["user"].as_array().expect("users");
    assert_eq!(users.len(), 2);
    assert_eq!(users[0]["name"].as_str(), Some("appuser"));
    assert_eq!(
        users[0]["password"].as_str(),
        Some(record.users.app.password.expose())
    );
    assert_eq!(parsed["health"]["user"].as_str(), Some("halyard"));
    assert!(!text.contains(record.users.superuser.password.expose()));
    assert!(!text.contains(record.users.replicator.password.expose()));
}

#[test]
fn quotes_do_not_end_a_value() {
    assert_eq!(Value::Text(r#"a"\b"#).to_string(), r#""a\"\\b""#);
}
