use super::*;
use crate::topology::Word;

fn row(name: &str, port: i32, reported: &str, goal: &str) -> MonitorRow {
    MonitorRow {
        name: name.to_owned(),
        host: "10.0.0.1".to_owned(),
        port,
        reported: reported.to_owned(),
        goal: goal.to_owned(),
    }
}

fn places() -> Vec<NodeConfig> {
    let place = |name: &str, host: &str, port| NodeConfig {
        name: name.to_owned(),
        host: host.to_owned(),
        port,
    };
    vec![
        place("node1", "10.0.0.1", 5432),
        place("node2", "10.0.0.1", 5433),
        place("node3", "db3.internal", 5434),
    ]
}

#[test]
fn a_notification_is_read_as_the_monitor_sends_it() {
    let payload = r#"{"type": "state", "formation": "default", "groupId": 0, "nodeId": 2, "name": "node2",
        "host": "127.0.0.1", "port": 22012, "reportedState": "stop_replication", "goalState": "wait_primary",
        "health":"good"}"#;
    let change: StateChange = payload.parse().unwrap();
    assert_eq!(change.name, "node2");
    assert_eq!(
        (change.reported_state.as_str(), change.goal_state.as_str()),
        ("stop_replication", "wait_primary")
    );
    assert_eq!((change.formation.as_str(), change.group_id), ("default", 0));
}

#[test]
fn a_notification_that_says_nothing_useful_is_an_error_and_no_panic() {
    for payload in [
        "",
        "{}",
        "null",
        "[1]",
        r#"{"formation": 1}"#,
        "\u{0}",
        r#"{"type": "metrics"}"#,
    ] {
        assert!(payload.parse::<StateChange>().is_err(), "{payload:?}");
    }
}

#[test]
fn the_goal_names_the_primary_and_the_reported_state_does_not() {
    for (rows, primary) in [
        (
            vec![
                row("node1", 5432, "primary", "primary"),
                row("node2", 5433, "secondary", "secondary"),
            ],
            Some(0),
        ),
        (vec![row("node1", 5432, "single", "single")], Some(0)),
        (vec![row("node1", 5432, "primary", "join_primary")], Some(0)),
        (vec![row("node1", 5432, "primary", "apply_settings")], Some(0)),
        // An election: the dead primary still reports what it was.
        (
            vec![
                row("node1", 5432, "primary", "draining"),
                row("node2", 5433, "secondary", "report_lsn"),
            ],
            None,
        ),
        (
            vec![
                row("node1", 5432, "primary", "demote_timeout"),
                row("node2", 5433, "secondary", "prepare_promotion"),
            ],
            None,
        ),
        (
            vec![
                row("node1", 5432, "primary", "demoted"),
                row("node2", 5433, "prepare_promotion", "stop_replication"),
            ],
            None,
        ),
        (
            vec![
                row("node1", 5432, "primary", "demoted"),
                row("node2", 5433, "stop_replication", "wait_primary"),
            ],
            Some(1),
        ),
        (
            vec![
                row("node1", 5432, "primary", "dropped"),
                row("node2", 5433, "wait_primary", "wait_primary"),
            ],
            Some(1),
        ),
        (vec![row("node1", 5432, "primary", "prepare_maintenance")], None),
        (
            vec![row("node1", 5432, "unknown", "a state of a later version")],
            None,
        ),
        // By name, where the monitor knows the host by another name; not at all, where it knows another node.
        (vec![row("node3", 5434, "primary", "primary")], Some(2)),
        (vec![row("elsewhere", 6000, "primary", "primary")], None),
        (vec![row("elsewhere", -1, "primary", "primary")], None),
        // The address counts before the name.
        (vec![row("node1", 5433, "primary", "primary")], Some(1)),
        // Two that lead are none.
        (
            vec![
                row("node1", 5432, "primary", "primary"),
                row("node2", 5433, "wait_primary", "wait_primary"),
            ],
            None,
        ),
        (vec![], None),
    ] {
        let answer = answer(Instant::now(), &rows, &places());
        assert_eq!(answer.primary, primary.map(NodeId), "{rows:?}");
        assert_eq!(answer.nodes.len(), rows.len());
    }
}

#[test]
fn an_old_word_is_silence() {
    let now = Instant::now();
    let rows = [row("node1", 5432, "primary", "primary")];
    let view = AuthorityView::Answers(Arc::new(answer(now, &rows, &places())));
    assert_eq!(view.word(now), Word::Names(Some(NodeId(0))));
    assert_eq!(
        view.word(now + crate::AUTHORITY_STALE_AFTER),
        Word::Names(Some(NodeId(0)))
    );
    assert_eq!(view.word(now + crate::AUTHORITY_STALE_AFTER * 2), Word::Silent);
    let silent = AuthorityView::Silent {
        since: now,
        error: "gone".into(),
    };
    assert_eq!(silent.word(now), Word::Silent);
    assert!(view.differs_from(&silent) && !view.differs_from(&view.clone()));
}
