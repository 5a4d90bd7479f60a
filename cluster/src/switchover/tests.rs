use super::*;

fn state(name: &str, reported: &str, goal: &str) -> EngineState {
    EngineState {
        name: name.to_owned(),
        reported: reported.to_owned(),
        goal: goal.to_owned(),
        healthy: Some(true),
        report_age: Duration::ZERO,
    }
}

fn trio(primary: &str) -> Vec<EngineState> {
    ["node1", "node2", "node3"]
        .map(|name| match name == primary {
            true => state(name, "primary", "primary"),
            false => state(name, "secondary", "secondary"),
        })
        .to_vec()
}

#[test]
fn the_backup_of_the_highest_priority_is_next_unless_another_is_named() {
    let (one, two, three) = (Service::Node(1), Service::Node(2), Service::Node(3));
    assert_eq!(choose(&trio("node1"), None), Ok((one, two)));
    assert_eq!(choose(&trio("node2"), None), Ok((two, one)));
    assert_eq!(choose(&trio("node1"), Some(three)), Ok((one, three)));
}

#[test]
fn who_cannot_be_promoted_is_refused() {
    let refused = |states: &[EngineState], to| choose(states, to).expect_err("it is refused");
    assert!(refused(&trio("node1"), Some(Service::Node(1))).contains("already"));
    assert!(refused(&trio("node1"), Some(Service::Ro(1))).contains("no backup"));
    let mut moving = trio("node1");
    moving[2] = state("node3", "catchingup", "secondary");
    assert!(refused(&moving, None).contains("not at rest"));
    moving[2] = state("node3", "wait_primary", "wait_primary");
    assert!(refused(&moving, None).contains("not at rest"));
}
