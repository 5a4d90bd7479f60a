use std::path::PathBuf;

use super::*;

fn record() -> Record {
    let layout = Layout::new(PathBuf::from("/c"));
    Record::new(&layout, &Ports::well_known(3), Profile::Seed, Durability::Fsync).expect("random")
}

#[test]
fn a_record_survives_its_file() {
    let record = record();
    assert_eq!(Record::parse(&record.to_json()), Ok(record.clone()));
    assert_eq!(record.ports(), Ports::well_known(3));
}

#[test]
fn the_file_has_the_shape_that_programs_rely_on() {
    let json: serde_json::Value = serde_json::from_str(&record().to_json()).expect("JSON");
    assert_eq!(json["proxy"]["host"], "127.0.0.1");
    assert_eq!(json["proxy"]["port"], 6432);
    assert_eq!(json["proxy"]["http_port"], 9432);
    assert!(json["proxy"]["pid"].is_null());
    assert_eq!(json["monitor"]["port"], 5431);
    assert_eq!(json["database"], "appdb");
    let names: Vec<&str> = json["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .filter_map(|node| node["name"].as_str())
        .collect();
    assert_eq!(names, ["node1", "node2", "node3", "ro1", "ro2", "ro3"]);
    assert_eq!(json["nodes"][0]["priority"], 100);
    assert_eq!(json["nodes"][0]["pgdata"], "/c/node1/data");
    assert!(json["nodes"][3]["priority"].is_null());
    for (user, name) in [
        ("app", "appuser"),
        ("readonly", "readonly"),
        ("superuser", "postgres"),
    ] {
        assert_eq!(json["users"][user]["name"], name);
        assert_eq!(json["users"][user]["password"].as_str().map(str::len), Some(32));
    }
}

#[test]
fn a_record_that_is_not_a_cluster_is_refused() {
    let mut short = record();
    short.nodes.remove(0);
    assert!(Record::parse(&short.to_json()).is_err());
    let mut renamed = record();
    renamed.nodes[0].name = "pg1".into();
    assert!(Record::parse(&renamed.to_json()).is_err());
    assert!(Record::parse("{}").is_err());
}
