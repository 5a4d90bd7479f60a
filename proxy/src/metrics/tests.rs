use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::error::SqlState;
use crate::status::Status;

/// All that a scrape would show after `work`, with this test's own recorder.
fn scrape(status: &Status, work: impl FnOnce(&Registry)) -> String {
    let recorder = recorder();
    metrics::with_local_recorder(&recorder, || {
        describe();
        let registry = Registry::new(2);
        work(&registry);
        registry.publish();
    });
    let mut text = recorder.handle().render();
    render_gauges(status, &mut text);
    render_process(&mut text);
    text
}

#[test]
fn every_counter_and_histogram_exists_at_zero_from_the_start() {
    let text = scrape(&Status::default(), |_| ());
    for &counter in Counter::ALL {
        let labels: Vec<String> = counter
            .labels()
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\""))
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        let line = format!("{}{labels} 0", counter.name());
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    for (name, _, _) in HISTOGRAMS {
        assert!(text.contains(&format!("{name}_count 0")), "{name} in\n{text}");
    }
}

#[test]
fn workers_are_summed() {
    let text = scrape(&Status::default(), |registry| {
        registry.for_worker(0).add(Counter::Checkouts, 2);
        registry.for_worker(1).add(Counter::Checkouts, 3);
        registry.publish();
        registry.for_worker(1).add(Counter::Checkouts, 1);
        assert_eq!(registry.sum(Counter::Checkouts), 6);
    });
    assert!(
        text.lines().any(|line| line == "halyard_checkouts_total 6"),
        "{text}"
    );
}

#[test]
fn workers_do_not_share_a_cache_line() {
    assert_eq!(align_of::<Counters>(), 128);
    assert_eq!(size_of::<Counters>() % 128, 0);
}

#[test]
fn numbers_of_counters_follow_their_order_and_series_are_told_apart() {
    let mut series = BTreeSet::new();
    for (index, &counter) in Counter::ALL.iter().enumerate() {
        assert_eq!(counter as usize, index);
        assert!(
            series.insert((counter.name(), counter.labels())),
            "{counter:?} stands for another's series"
        );
    }
}

#[test]
fn every_counter_has_help_and_no_help_is_left_over() {
    let counted: BTreeSet<&str> = Counter::ALL.iter().map(|counter| counter.name()).collect();
    let described: BTreeSet<&str> = counters::FAMILIES.iter().map(|(name, _)| *name).collect();
    assert_eq!(counted, described);
    assert_eq!(
        described.len(),
        counters::FAMILIES.len(),
        "none is described twice"
    );
}

#[test]
fn errors_are_counted_by_class() {
    assert_eq!(
        Counter::of_error(SqlState::PROTOCOL_VIOLATION),
        Counter::ErrorsSent08
    );
    assert_eq!(Counter::of_error(SqlState::ADMIN_SHUTDOWN), Counter::ErrorsSent57);
    assert_eq!(Counter::of_error(SqlState::INTERNAL_ERROR), Counter::ErrorsSentXX);
    assert_eq!(
        Counter::of_error(SqlState::UNDEFINED_OBJECT),
        Counter::ErrorsSentOther
    );
}

#[test]
fn histograms_are_in_seconds() {
    let text = scrape(&Status::default(), |_| {
        observe_checkout_wait(Duration::from_millis(3));
        observe_hold(Duration::from_secs(24));
        observe_node_login(Duration::from_millis(30));
        observe_failover(Duration::from_millis(2500));
        observe_detection(Duration::from_millis(400));
    });
    for line in [
        "halyard_checkout_wait_seconds_bucket{le=\"0.0025\"} 0",
        "halyard_checkout_wait_seconds_bucket{le=\"0.005\"} 1",
        "halyard_hold_seconds_sum 24",
        "halyard_node_login_seconds_count 1",
        "halyard_failover_seconds_bucket{le=\"3\"} 1",
        "halyard_failover_detection_seconds_bucket{le=\"0.5\"} 1",
        "halyard_failover_seconds_bucket{le=\"+Inf\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}

#[test]
fn gauges_show_the_status() {
    let text = scrape(&crate::status::example(), |_| ());
    for line in [
        "halyard_routing_table_epoch 7",
        "halyard_clients{state=\"idle\"} 90",
        "halyard_held_clients 0",
        "halyard_client_connections_max 10000",
        "halyard_node_up{node=\"node1\"} 1",
        "halyard_node_role{node=\"node1\",role=\"primary\"} 1",
        "halyard_node_role{node=\"node2\",role=\"primary\"} 0",
        "halyard_node_timeline{node=\"node2\"} 3",
        "halyard_node_replay_lag_bytes{node=\"node2\"} 8192",
        "halyard_node_replay_lag_seconds{node=\"node2\"} 0.25",
        "halyard_node_serves_reads{node=\"node2\"} 1",
        // Two pools of one node are summed; the waiters stay apart.
        "halyard_backends{node=\"node2\",state=\"idle\"} 7",
        "halyard_pool_waiters{node=\"node2\",database=\"app\\\"db\",user=\"app\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    assert!(
        !text.contains("halyard_node_replay_lag_bytes{node=\"node1\"}"),
        "a primary has no lag"
    );
}

/// Feeds promtool, from Debian's package `prometheus`, and returns whether it is content and what it said.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut promtool = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    promtool
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes())
        .expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    (output.status.success(), said.into_owned())
}

#[test]
fn promtool_finds_nothing_to_say() {
    let text = scrape(&crate::status::example(), |_| {
        observe_hold(Duration::from_secs(1));
    });
    let (content, said) = promtool(&["check", "metrics"], &text);
    assert!(content && said.trim().is_empty(), "{said}\n{text}");
}

#[test]
fn promtool_accepts_the_configuration_of_prometheus() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/monitoring/prometheus.yml");
    let (content, said) = promtool(&["check", "config", file], "");
    assert!(content, "{said}");
}
