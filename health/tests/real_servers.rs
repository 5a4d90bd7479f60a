//! The control plane against real PostgreSQL servers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use halyard_health::reads::Unfit;
use halyard_health::{Evidence, NodeId, NotWritable, Reason, Role, SampleNumber, TimelineId};
use support::{Server, primary, watch, watch_with};

#[tokio::test]
async fn the_primary_is_found_and_a_standby_that_keeps_up_is_not_behind() {
    let node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch(&[&node1, &node2]);

    let view = cluster.until_healthy(0).await;
    assert_eq!(view.topology.primary(), Some((NodeId(0), TimelineId(1))));
    let identifier = node1
        .value("SELECT system_identifier FROM pg_control_system()")
        .await;
    assert_eq!(
        view.system_identifier.map(|id| id.0),
        Some(identifier.cast_unsigned())
    );

    node1
        .sql("INSERT INTO written SELECT generate_series(1, 1000)")
        .await;
    let written = cluster.now().sequence;
    let view = cluster
        .until("no lag", |view| {
            view.sequence > written + 2 && view.nodes[1].lag.bytes == Some(0)
        })
        .await;
    assert_eq!(view.nodes[1].lag.time, Some(Duration::ZERO));
}

#[tokio::test]
async fn a_standby_that_falls_behind_stops_serving_and_comes_back() {
    let node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch_with(&[&node1, &node2], |config| {
        config.max_replica_lag.bytes = Some(50_000);
    });
    cluster.until_healthy(0).await;

    node2.sql("SELECT pg_wal_replay_pause()").await;
    node1
        .sql("INSERT INTO written SELECT generate_series(1, 10000)")
        .await;
    let view = cluster
        .until("the standby is out", |view| !view.nodes[1].serves_reads)
        .await;
    assert!(view.nodes[1].lag.bytes > Some(50_000), "{:?}", view.nodes[1]);
    assert!(matches!(view.nodes[1].reason, Some(Reason::Unfit(_))));

    node2.sql("SELECT pg_wal_replay_resume()").await;
    cluster.until_healthy(0).await;
}

#[tokio::test]
async fn a_promotion_is_followed_within_a_second_and_the_old_primary_stays_fenced() {
    let mut node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch(&[&node1, &node2]);
    let before = cluster.until_healthy(0).await;

    node1.kill();
    let lost = cluster.until("no primary", |view| primary(view).is_none()).await;
    assert!(lost.epoch > before.epoch);
    assert_eq!(lost.nodes[0].role, Role::Unreachable);
    assert!(lost.nodes[1].serves_reads, "reads go on: {lost:#?}");
    assert_eq!(lost.nodes[1].lag.bytes, None, "unknown, not zero");

    node2.sql("SELECT pg_promote()").await;
    let promoted = Instant::now();
    let after = cluster
        .until("the new primary", |view| primary(view) == Some(1))
        .await;
    assert!(
        promoted.elapsed() < Duration::from_secs(1),
        "{:?}",
        promoted.elapsed()
    );
    assert_eq!(after.topology.primary(), Some((NodeId(1), TimelineId(2))));
    assert!(after.epoch > lost.epoch);
    assert!(after.nodes[0].fenced, "overtaken while it was away: {after:#?}");
    let promotion = after.nodes[1].promotion.unwrap();
    assert_eq!((promotion.from, promotion.to), (TimelineId(1), TimelineId(2)));
    let fork = node2
        .value("SELECT (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint")
        .await;
    assert_eq!(promotion.at.0, fork.cast_unsigned());
    let incarnation = after.nodes[1].incarnation.unwrap();
    assert_eq!(incarnation.recovered, Some(promotion.at));

    // Its supervisor starts it again, as a primary: out of recovery, read-write, on the old timeline.
    node1.start().await;
    let woken = Instant::now();
    let seen = cluster
        .until("an answer of the old primary", |view| {
            view.nodes[0].answered.is_some_and(|at| at > woken)
        })
        .await;
    assert_eq!(seen.nodes[0].role, Role::Fenced);
    assert_eq!(primary(&seen), Some(1));
    assert_eq!(seen.epoch, after.epoch, "nothing changed for anybody");

    node1.rebuild_from(&node2).await;
    let healed = cluster.until_healthy(1).await;
    assert!(!healed.nodes[0].fenced);
    assert!(healed.epoch > after.epoch);
}

/// What the resolution of commits goes by (ADR 14): a transaction of the old primary whose log the new one has not got is
/// told by its position from the one that has its number there.
#[tokio::test]
async fn a_number_that_is_given_out_again_belongs_to_a_position_behind_the_fork() {
    let mut node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch(&[&node1, &node2]);
    cluster.until_healthy(0).await;
    let first_run = cluster.now().nodes[0].incarnation.unwrap();

    // This much is replicated, and the rest is not.
    node1.sql("INSERT INTO written VALUES (1)").await;
    let shared = node1
        .value("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        .await;
    cluster
        .until("the standby has it", |view| {
            view.nodes[1]
                .replay
                .is_some_and(|replay| replay.0 >= shared.cast_unsigned())
        })
        .await;
    node2
        .sql("ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()")
        .await;
    cluster
        .until("the standby to stand alone", |view| {
            view.nodes[1].receiver == halyard_health::ReceiverView::Gone
        })
        .await;
    let position = node1
        .value("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        .await;
    let lost = node1
        .value("INSERT INTO written VALUES (2) RETURNING pg_current_xact_id()::text::bigint")
        .await;
    node1.kill();
    node2.sql("SELECT pg_promote()").await;
    let after = cluster
        .until("the new primary", |view| primary(view) == Some(1))
        .await;

    let promotion = after.nodes[1].promotion.unwrap();
    assert_eq!(promotion.from, TimelineId(1));
    assert!(
        promotion.at.0 <= position.cast_unsigned(),
        "{promotion:?}, {position:x}"
    );
    assert_eq!(
        after.nodes[0].incarnation,
        Some(first_run),
        "its last run as a primary"
    );
    loop {
        let own = node2
            .value("INSERT INTO written VALUES (3) RETURNING pg_current_xact_id()::text::bigint")
            .await;
        if own >= lost {
            break;
        }
    }
    let status = format!("SELECT (pg_xact_status('{lost}'::xid8) = 'committed')::int::bigint");
    assert_eq!(node2.value(&status).await, 1, "it is another's by now");
    assert_eq!(node2.value("SELECT count(*) FROM written WHERE n = 2").await, 0);
}

#[tokio::test]
async fn a_doubt_is_answered_over_a_new_connection() {
    let node1 = Server::primary("node1").await;
    let cluster = watch(&[&node1]);
    cluster.until_healthy(0).await;
    let connections = "SELECT coalesce(max(pid), 0)::bigint FROM pg_stat_activity WHERE application_name = 'halyard_health'";
    let before = node1.value(connections).await;
    cluster.health.signals.doubt(NodeId(0), Evidence::AdminShutdown);
    assert!(cluster.health.signals.is_in_doubt(NodeId(0)));
    let view = cluster.until("a look", |view| view.nodes[0].looked == 1).await;
    assert_ne!(node1.value(connections).await, before);
    assert!(cluster.health.signals.settle(&view));
    assert!(!cluster.health.signals.is_in_doubt(NodeId(0)));
}

#[tokio::test]
async fn a_promoted_node_gets_no_writes_until_it_is_opened() {
    let mut node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch(&[&node1, &node2]);
    cluster.until_healthy(0).await;

    node2
        .sql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
        .await;
    node1.kill();
    node2.sql("SELECT pg_promote()").await;
    let view = cluster
        .until("a promoted node", |view| {
            view.nodes[1].role == Role::PromotingOrReadOnly
        })
        .await;
    assert_eq!(primary(&view), None);
    assert_eq!(
        view.nodes[1].reason,
        Some(Reason::NotWritable(NotWritable::ReadOnly))
    );

    node2
        .sql("ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()")
        .await;
    cluster
        .until("the opened primary", |view| primary(view) == Some(1))
        .await;
}

#[tokio::test]
async fn a_frozen_primary_is_detected_by_silence_and_comes_back_when_thawed() {
    let node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch(&[&node1, &node2]);
    cluster.until_healthy(0).await;

    node1.freeze();
    let frozen = Instant::now();
    let view = cluster.until("no primary", |view| primary(view).is_none()).await;
    // Three silences of half a second each, and the pauses between them.
    assert!(
        frozen.elapsed() < Duration::from_millis(2500),
        "{:?}",
        frozen.elapsed()
    );
    assert_eq!(view.nodes[0].role, Role::Unreachable);
    assert!(view.nodes[1].serves_reads);

    node1.thaw();
    let view = cluster.until_healthy(0).await;
    assert_eq!(view.topology.primary(), Some((NodeId(0), TimelineId(1))));
}

#[tokio::test]
async fn a_server_of_another_system_is_refused() {
    let node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let stranger = Server::primary("stranger").await;
    let cluster = watch(&[&stranger, &node1, &node2]);
    let view = cluster.until("a primary", |view| primary(view).is_some()).await;
    assert_eq!(primary(&view), Some(1), "most nodes are of its system");
    assert_eq!(view.nodes[0].role, Role::Foreign);
    assert!(!view.nodes[0].serves_reads);
}

#[tokio::test]
async fn a_terminated_probe_connection_is_no_failure_of_the_node() {
    let node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch(&[&node1, &node2]);
    let before = cluster.until_healthy(0).await;

    let ended = node1
        .value(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE application_name = 'halyard_health'",
        )
        .await;
    assert_eq!(ended, 1, "one probe connection a node");
    let killed = Instant::now();
    let after = cluster
        .until("a later answer", |view| {
            view.nodes[0].answered.is_some_and(|at| at > killed)
        })
        .await;
    assert_eq!(after.epoch, before.epoch);
    assert_eq!(after.nodes[0].since, before.nodes[0].since);
}

/// Each node is looked at on its own: who waits for one that is silent does not look less at the others.
#[tokio::test]
async fn silent_nodes_do_not_keep_anybody_from_looking_at_the_others() {
    let node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let node3 = Server::standby_of("node3", &node1).await;
    let cluster = watch_with(&[&node2, &node3, &node1], |config| {
        config.timeout = Duration::from_secs(3600);
        config.stale_after = Duration::from_secs(7200);
    });
    cluster.until_healthy(2).await;
    node2.freeze();
    node3.freeze();
    for (writable, seen) in [("on", None), ("off", Some(2))] {
        node1
            .sql(&format!(
                "ALTER SYSTEM SET default_transaction_read_only = {writable}; SELECT pg_reload_conf()"
            ))
            .await;
        cluster
            .until("what the primary has become", |view| primary(view) == seen)
            .await;
    }
}

#[tokio::test]
async fn a_signal_has_the_node_probed_long_before_its_turn() {
    let node1 = Server::primary("node1").await;
    let cluster = watch_with(&[&node1], |config| {
        config.interval = Duration::from_secs(3600);
        config.stale_after = Duration::from_secs(7200);
    });
    cluster.until_healthy(0).await;
    // Nothing in the view changes until somebody looks.
    node1
        .sql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
        .await;
    let raised = Instant::now();
    let mut view = cluster.health.view.clone();
    // The server applies the reload within milliseconds; a client that hits 25006 comes after that.
    let seen = tokio::time::timeout(support::PATIENCE, async {
        while view.borrow_and_update().primary().is_some() {
            cluster.health.signals.raise(NodeId(0), Evidence::ReadOnlyPrimary);
            let _ = tokio::time::timeout(Duration::from_millis(50), view.changed()).await;
        }
    });
    assert!(seen.await.is_ok(), "{:#?}", cluster.now());
    assert!(
        raised.elapsed() < Duration::from_secs(2),
        "{:?}",
        raised.elapsed()
    );
}

#[tokio::test]
async fn a_standby_that_covers_the_fence_has_the_write() {
    let node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch_with(&[&node1, &node2], |config| {
        config.interval = Duration::from_secs(1);
    });
    cluster.until_healthy(0).await;

    for round in 1..=10 {
        node1
            .sql(&format!(
                "SET synchronous_commit = off; INSERT INTO written VALUES ({round})"
            ))
            .await;
        let fence = cluster.health.fences.fence();
        assert!(fence > SampleNumber(0));
        cluster
            .until("the standby covers the fence", |view| {
                view.nodes[1].covered >= fence
            })
            .await;
        assert_eq!(node2.value("SELECT count(*) FROM written").await, round);
    }
}

/// On a quiet cluster a standby has whatever the primary has, and would be asked with the next probe only.
#[tokio::test]
async fn a_standby_that_was_read_on_tells_soon_how_much_that_was() {
    let node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch_with(&[&node1, &node2], |config| {
        config.interval = Duration::from_secs(1);
    });
    cluster.until_healthy(0).await;

    let coverage = &cluster.health.coverage[1];
    let began = Instant::now();
    for _ in 0..10 {
        let seen = coverage.seen(coverage.run());
        while coverage.bound(seen).is_none() {
            coverage.ask_since(seen);
            cluster.health.fences.fence();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_standby_that_is_cut_off_stops_serving_while_the_primary_lives() {
    let node1 = Server::primary("node1").await;
    let node2 = Server::standby_of("node2", &node1).await;
    let cluster = watch_with(&[&node1, &node2], |config| config.max_replica_lag.time = None);
    cluster.until_healthy(0).await;

    node2.cut_off().await;
    let cut = Instant::now();
    let view = cluster
        .until("the standby is out", |view| !view.nodes[1].serves_reads)
        .await;
    assert!(
        cut.elapsed() > Duration::from_secs(1),
        "a change of upstream has time"
    );
    assert_eq!(view.nodes[1].reason, Some(Reason::Unfit(Unfit::Frozen)));

    node2.follow(&node1).await;
    cluster.until_healthy(0).await;
}
