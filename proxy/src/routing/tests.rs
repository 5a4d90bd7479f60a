use std::sync::Arc;
use std::sync::atomic::Ordering;

use halyard_health::{
    ClusterView, Covered, NoPrimary, NodeConfig, NodeId, Role, SampleNumber, Secret, TimelineId, Topology,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::login::Target;
use crate::tls::TlsPolicy;
use crate::worker;

const NODES: usize = 4;
const NO_FENCE: SampleNumber = SampleNumber(0);

/// A view of four nodes: the first is the primary, the others are standbys that serve reads.
fn healthy() -> ClusterView {
    let nodes = (0..NODES)
        .map(|number| NodeConfig {
            name: format!("node{number}"),
            host: "127.0.0.1".to_owned(),
            port: 1,
        })
        .collect();
    let over = CancellationToken::new();
    over.cancel();
    let config = halyard_health::Config::new(nodes, "nobody", Secret::new(String::new()), "postgres");
    let health = halyard_health::spawn_with_tls(config, TlsPolicy::Never, over);
    let mut view = health.view.borrow().as_ref().clone();
    view.topology = Topology::OnePrimary {
        node: NodeId(0),
        timeline: TimelineId(1),
    };
    for node in &mut view.nodes {
        node.role = Role::Standby;
        node.serves_reads = true;
    }
    view.nodes[0].role = Role::Primary;
    view.nodes[0].serves_reads = false;
    view
}

fn policy() -> Policy {
    Policy {
        nodes: [
            Reads::Fallback,
            Reads::Fallback,
            Reads::Preferred,
            Reads::Preferred,
        ]
        .map(|reads| NodePolicy {
            weight: 100,
            reads,
            near: true,
        })
        .into(),
        read_fallback: ReadFallback::Primary,
    }
}

fn cover(node: &Node, sample: u64) {
    node.coverage.store(Covered {
        answered: SampleNumber(9),
        covered: SampleNumber(sample),
        ..Covered::default()
    });
}

fn nodes() -> Vec<Arc<Node>> {
    (0..NODES)
        .map(|number| {
            let name = format!("node{number}");
            Arc::new(Node {
                id: NodeId(u16::try_from(number).unwrap()),
                name: name.clone(),
                target: Target {
                    name,
                    host: "127.0.0.1".to_owned(),
                    port: 1,
                    tls: TlsPolicy::Never,
                },
                load: Load::default(),
                coverage: Arc::default(),
                generation: 0.into(),
                counters: Arc::default(),
            })
        })
        .collect()
}

fn readers(view: &ClusterView, policy: &Policy) -> Vec<u16> {
    let table = RoutingTable::derive(view, policy);
    table.readers.iter().map(|(id, _)| id.0).collect()
}

fn route(
    table: &RoutingTable,
    access: Access,
    port: ListenerRole,
    fence: SampleNumber,
    nodes: &[Arc<Node>],
) -> Route {
    worker::with(|local| table.route(access, port, &Sight::of(fence), nodes, local).route)
}

#[tokio::test]
async fn readers_are_the_best_rank_that_has_any() {
    type Change = fn(&mut ClusterView, &mut Policy);
    let cases: [(&str, Change, &[u16]); 7] = [
        ("the preferred", |_, _| {}, &[2, 3]),
        (
            "one of them is behind",
            |view, _| view.nodes[2].serves_reads = false,
            &[3],
        ),
        (
            "none of them is left",
            |view, _| {
                view.nodes[2..]
                    .iter_mut()
                    .for_each(|node| node.serves_reads = false);
            },
            &[1],
        ),
        (
            "a weight of nothing",
            |_, policy| policy.nodes[2].weight = 0,
            &[3],
        ),
        ("never", |_, policy| policy.nodes[2].reads = Reads::Never, &[3]),
        ("fenced", |view, _| view.nodes[3].fenced = true, &[2]),
        (
            "the primary serves no reads as a standby, whatever it is said to do",
            |view, policy| {
                view.nodes[0].serves_reads = true;
                policy.nodes[0].reads = Reads::Preferred;
            },
            &[2, 3],
        ),
    ];
    for (case, change, expected) in cases {
        let (mut view, mut policy) = (healthy(), policy());
        change(&mut view, &mut policy);
        assert_eq!(readers(&view, &policy), expected, "{case}");
    }
}

#[tokio::test]
async fn every_role_has_its_standing() {
    let mut view = healthy();
    for (role, fenced, standing) in [
        (Role::Standby, false, Standing::Standby),
        (Role::PromotingOrReadOnly, false, Standing::Standby),
        (Role::Primary, false, Standing::Standby),
        (Role::Primary, true, Standing::Fenced),
        (Role::Unreachable, true, Standing::Fenced),
        (Role::Foreign, false, Standing::Fenced),
        (Role::Unreachable, false, Standing::Unreachable),
        (Role::Unknown, false, Standing::Unreachable),
    ] {
        view.nodes[1].role = role;
        view.nodes[1].fenced = fenced;
        let table = RoutingTable::derive(&view, &policy());
        assert_eq!(table.standing[0], Standing::Primary);
        assert_eq!(table.standing[1], standing, "{role:?}, fenced: {fenced}");
    }
}

#[tokio::test]
async fn who_has_nobody_waits_or_is_refused() {
    use Access::{Read, Write};
    let nodes = nodes();
    let mut nobody = healthy();
    nobody.topology = Topology::NoPrimary {
        reason: NoPrimary::AllUnreachable,
    };
    nobody.nodes.iter_mut().for_each(|node| node.serves_reads = false);
    let mut only_primary = healthy();
    only_primary
        .nodes
        .iter_mut()
        .for_each(|node| node.serves_reads = false);
    let primary = Route::Primary(NodeId(0));
    for (view, fallback, access, port, expected) in [
        (
            &nobody,
            ReadFallback::Primary,
            Write,
            ListenerRole::Auto,
            Route::Hold(Wanted::Primary),
        ),
        (
            &nobody,
            ReadFallback::Primary,
            Read,
            ListenerRole::Auto,
            Route::Hold(Wanted::Primary),
        ),
        (
            &nobody,
            ReadFallback::Primary,
            Read,
            ListenerRole::Replica,
            Route::Hold(Wanted::Standby),
        ),
        (
            &nobody,
            ReadFallback::Error,
            Read,
            ListenerRole::Auto,
            Route::Refuse(Wanted::Standby),
        ),
        (
            &only_primary,
            ReadFallback::Primary,
            Read,
            ListenerRole::Auto,
            primary,
        ),
        (
            &only_primary,
            ReadFallback::Error,
            Read,
            ListenerRole::Auto,
            Route::Refuse(Wanted::Standby),
        ),
        (
            &only_primary,
            ReadFallback::Wait,
            Read,
            ListenerRole::Auto,
            Route::Hold(Wanted::Standby),
        ),
        (
            &only_primary,
            ReadFallback::Wait,
            Write,
            ListenerRole::Auto,
            primary,
        ),
        (
            &only_primary,
            ReadFallback::Primary,
            Read,
            ListenerRole::Primary,
            primary,
        ),
        (
            &only_primary,
            ReadFallback::Primary,
            Write,
            ListenerRole::Replica,
            Route::Hold(Wanted::Standby),
        ),
    ] {
        let policy = Policy {
            read_fallback: fallback,
            ..policy()
        };
        let table = RoutingTable::derive(view, &policy);
        let case = format!("{fallback:?} {access:?} {port:?}");
        assert_eq!(route(&table, access, port, NO_FENCE, &nodes), expected, "{case}");
    }
}

#[tokio::test]
async fn a_standby_behind_the_fence_gets_no_read() {
    let nodes = nodes();
    let table = RoutingTable::derive(&healthy(), &policy());
    let read = |fence| {
        route(
            &table,
            Access::Read,
            ListenerRole::Auto,
            SampleNumber(fence),
            &nodes,
        )
    };
    cover(&nodes[2], 5);
    cover(&nodes[3], 7);
    for _ in 0..100 {
        assert!(matches!(read(5), Route::Standby(NodeId(2 | 3))));
        assert_eq!(read(6), Route::Standby(NodeId(3)));
        assert_eq!(read(7), Route::Standby(NodeId(3)));
        assert_eq!(read(8), Route::Primary(NodeId(0)));
    }
    let strict = Policy {
        read_fallback: ReadFallback::Error,
        ..policy()
    };
    let table = RoutingTable::derive(&healthy(), &strict);
    let far = SampleNumber(8);
    assert_eq!(
        route(&table, Access::Read, ListenerRole::Auto, far, &nodes),
        Route::Hold(Wanted::Standby),
        "it will have replayed it in a moment"
    );
}

#[tokio::test]
async fn a_near_standby_has_the_reads_while_it_can() {
    let nodes = nodes();
    let mut zoned = policy();
    zoned.nodes[2].near = false;
    let table = RoutingTable::derive(&healthy(), &zoned);
    let read = |fence| {
        route(
            &table,
            Access::Read,
            ListenerRole::Auto,
            SampleNumber(fence),
            &nodes,
        )
    };
    cover(&nodes[2], 7);
    cover(&nodes[3], 5);
    nodes[3].load.outstanding.store(50, Ordering::Relaxed);
    for _ in 0..100 {
        assert_eq!(read(5), Route::Standby(NodeId(3)), "however busy it is");
        assert_eq!(read(6), Route::Standby(NodeId(2)), "the near one is behind");
    }
    let mut without_near = healthy();
    without_near.nodes[3].serves_reads = false;
    assert_eq!(readers(&without_near, &zoned), [2]);
    zoned.nodes.iter_mut().for_each(|node| node.near = false);
    zoned.nodes[0].near = true;
    zoned.nodes[1].near = true;
    assert_eq!(
        readers(&healthy(), &zoned),
        [2, 3],
        "the rank comes before the zone"
    );
}

/// A node that dies answers nothing any more, so it has the least to do: without this it would draw the reads it has lost.
#[tokio::test]
async fn a_read_whose_connection_was_lost_goes_elsewhere() {
    let nodes = nodes();
    let table = RoutingTable::derive(&healthy(), &policy());
    let route = |sight: &Sight| {
        worker::with(|local| {
            table
                .route(Access::Read, ListenerRole::Auto, sight, &nodes, local)
                .route
        })
    };
    nodes[3].load.outstanding.store(50, Ordering::Relaxed);
    let lost = Sight {
        avoided: Some(NodeId(2)),
        ..Sight::of(NO_FENCE)
    };
    for _ in 0..100 {
        assert_eq!(route(&lost), Route::Standby(NodeId(3)));
    }
    // It has read there last, and nobody knows who else has as much.
    let nowhere_else = Sight {
        last: Some(NodeId(2)),
        elsewhere: None,
        ..lost
    };
    assert_eq!(route(&nowhere_else), Route::Primary(NodeId(0)));
}

/// It has itself what others must have; drawn against one that is behind it would have the read again.
#[tokio::test]
async fn who_leaves_a_standby_is_not_led_back() {
    let nodes = nodes();
    let table = RoutingTable::derive(&healthy(), &policy());
    let reads = Sight {
        last: Some(NodeId(2)),
        ..Sight::of(NO_FENCE)
    };
    nodes[3].load.outstanding.store(50, Ordering::Relaxed);
    let route = |sight: &Sight| {
        worker::with(|local| {
            table
                .route(Access::Read, ListenerRole::Auto, sight, &nodes, local)
                .route
        })
    };
    assert_eq!(route(&reads), Route::Standby(NodeId(2)));
    assert_eq!(route(&reads.leaving_last()), Route::Standby(NodeId(3)));
    let behind = Sight {
        elsewhere: Some(SampleNumber(7)),
        ..reads
    };
    assert_eq!(route(&behind.leaving_last()), Route::Primary(NodeId(0)));
}

#[tokio::test]
async fn the_less_loaded_of_two_gets_the_read() {
    let nodes = nodes();
    let mut weighted = policy();
    let served = |policy: &Policy| {
        let table = RoutingTable::derive(&healthy(), policy);
        let read = || route(&table, Access::Read, ListenerRole::Auto, NO_FENCE, &nodes);
        (0..200).filter(|_| read() == Route::Standby(NodeId(2))).count()
    };
    assert!(
        (1..200).contains(&served(&weighted)),
        "both serve while neither is busy"
    );
    nodes[2].load.outstanding.store(3, Ordering::Relaxed);
    assert_eq!(served(&weighted), 0);
    weighted.nodes[2].weight = 1000;
    assert_eq!(served(&weighted), 200, "for its weight it is idle");
}

#[test]
fn a_table_that_says_the_same_is_not_published() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let routing = Routing::new(RoutingTable::derive(&healthy(), &policy()));
    let mut published = routing.subscribe();
    published.borrow_and_update();
    assert!(!routing.publish(RoutingTable::derive(&healthy(), &policy())));
    assert!(!published.has_changed().unwrap());
    let mut other = healthy();
    other.nodes[3].serves_reads = false;
    assert!(routing.publish(RoutingTable::derive(&other, &policy())));
    assert!(published.has_changed().unwrap(), "every waiter hears of it");
}
