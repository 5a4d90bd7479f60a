use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::server_config::{Durability, Profile};

fn record() -> Record {
    let layout = Layout::new(PathBuf::from("/c"));
    Record::new(&layout, &Ports::well_known(1), Profile::Seed, Durability::Fsync).expect("random")
}

fn primary_at(bytes: i64) -> Result<Answer, NoAnswer> {
    Ok(Answer {
        in_recovery: false,
        read_only: false,
        timeline: Some(2),
        position: Some((bytes, format!("0/{bytes:X}"))),
        upstream_port: None,
    })
}

fn standby_at(bytes: i64, upstream_port: Option<i32>) -> Result<Answer, NoAnswer> {
    primary_at(bytes).map(|answer| Answer {
        in_recovery: true,
        upstream_port,
        ..answer
    })
}

fn whole() -> Vec<Result<Answer, NoAnswer>> {
    vec![
        standby_at(90, Some(5433)),
        primary_at(100),
        standby_at(100, Some(5433)),
        standby_at(120, Some(5434)),
    ]
}

/// Without processes the monitor counts as down: these tests look at the other problems.
fn problems(answers: &[Result<Answer, NoAnswer>]) -> Vec<String> {
    let mut problems = judge(&record(), answers, None, &[]).problems;
    assert_eq!(
        problems.pop().as_deref(),
        Some("the monitor is down: no failover can happen")
    );
    problems
}

#[test]
fn a_whole_cluster_has_no_problem_and_lag_in_bytes() {
    assert_eq!(problems(&whole()), Vec::<String>::new());
    let status = judge(&record(), &whole(), None, &[]);
    assert_eq!(status.primary.as_deref(), Some("node2"));
    let lags: Vec<Option<i64>> = status.nodes.iter().map(|node| node.lag_bytes).collect();
    assert_eq!(lags, [Some(10), None, Some(0), Some(0)]);
    assert_eq!(status.nodes[3].upstream.as_deref(), Some("node3"));
}

#[test]
fn anything_but_one_primary_is_a_problem() {
    let mut none = whole();
    none[1] = standby_at(100, Some(5434));
    assert_eq!(problems(&none), ["no node accepts writes"]);
    let mut two = whole();
    two[0] = primary_at(90);
    assert_eq!(problems(&two), ["node1 and node2 accept writes at once"]);
    let mut not_yet = whole();
    not_yet[1] = primary_at(100).map(|answer| Answer {
        read_only: true,
        ..answer
    });
    assert_eq!(
        problems(&not_yet),
        ["no node accepts writes", "node2 is read-only"]
    );
}

#[test]
fn a_standby_that_does_not_follow_is_a_problem() {
    let mut cut_off = whole();
    cut_off[3] = standby_at(100, None);
    assert_eq!(problems(&cut_off), ["ro1 does not stream from anybody"]);
    let mut left_behind = whole();
    left_behind[0] = standby_at(90, Some(5433)).map(|answer| Answer {
        timeline: Some(1),
        ..answer
    });
    assert_eq!(
        problems(&left_behind),
        ["node1 is on timeline 1, the primary on 2"]
    );
    let mut gone = whole();
    gone[2] = Err(NoAnswer::Silent);
    assert_eq!(problems(&gone), ["node3 is down"]);
    gone[2] = Err(NoAnswer::Refused);
    assert_eq!(problems(&gone), ["node3 is not ready"]);
}

#[test]
fn the_engines_states_stand_beside_their_nodes() {
    let state = |name: &str, reported: &str, goal: &str| EngineState {
        name: name.into(),
        reported: reported.into(),
        goal: goal.into(),
        healthy: Some(true),
        report_age: Duration::from_secs(1),
    };
    let states = [
        state("node1", "secondary", "secondary"),
        state("node2", "primary", "draining"),
    ];
    let status = judge(&record(), &whole(), Some(&states), &[]);
    let shown: Vec<Option<&str>> = status
        .nodes
        .iter()
        .map(|node| node.engine_state.as_deref())
        .collect();
    assert_eq!(shown, [Some("secondary"), Some("primary → draining"), None, None]);
    let long_ago = Instant::now() - Duration::from_secs(60);
    assert!(states[0].is_settled_since(long_ago) && !states[1].is_settled_since(long_ago));
    assert!(
        !states[0].is_settled_since(Instant::now()),
        "a report from before counts for nothing"
    );
}

#[test]
fn a_proxy_that_was_never_started_is_not_missed() {
    let mut record = record();
    assert_eq!(judge(&record, &whole(), None, &[]).problems.len(), 1);
    record.proxy.wanted = true;
    assert!(
        judge(&record, &whole(), None, &[])
            .problems
            .contains(&"the proxy is down".to_owned())
    );
}

#[test]
fn columns_are_as_wide_as_their_widest_cell() {
    let lines = [["a", "bb"], ["ccc", "d"]].map(|line| line.map(str::to_owned));
    assert_eq!(columns(&lines), "a    bb\nccc  d\n");
}
