//! What deriving, publishing and loading the routing table cost, by the number of standbys.

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use halyard::config::{ReadFallback, Reads};
use halyard::routing::{NodePolicy, Policy, Routing, RoutingTable};
use halyard_health::{
    AuthorityView, ClusterView, Lag, NodeId, NodeView, ReceiverView, Role, SampleNumber, TimelineId, Topology,
};

/// One primary and so many standbys, all well.
fn view(standbys: u16) -> ClusterView {
    let now = Instant::now();
    let node = |id: u16| NodeView {
        id: NodeId(id),
        name: format!("node{id}").into(),
        role: if id == 0 { Role::Primary } else { Role::Standby },
        since: now,
        answered: Some(now),
        failures: 0,
        error: None,
        timeline: Some(TimelineId(1)),
        position: None,
        replay: None,
        lag: Lag::default(),
        receiver: ReceiverView::NotApplicable,
        covered: SampleNumber::default(),
        serves_reads: id != 0,
        serves_since: None,
        looked: 0,
        incarnation: None,
        promotion: None,
        reason: None,
        fenced: false,
    };
    ClusterView {
        sequence: 1,
        epoch: 1,
        at: now,
        topology: Topology::OnePrimary {
            node: NodeId(0),
            timeline: TimelineId(1),
        },
        nodes: (0..=standbys).map(node).collect(),
        highest_timeline: Some(TimelineId(1)),
        system_identifier: None,
        authority: AuthorityView::Absent,
        candidate: None,
        newest_sample: SampleNumber::default(),
    }
}

fn bench(criterion: &mut Criterion) {
    for standbys in [1, 3, 16] {
        let view = view(standbys);
        let policy = Policy {
            nodes: vec![
                NodePolicy {
                    weight: 100,
                    reads: Reads::Preferred,
                    near: true,
                };
                usize::from(standbys) + 1
            ],
            read_fallback: ReadFallback::Primary,
        };
        let table = RoutingTable::derive(&view, &policy);
        assert_eq!(table.readers.len(), usize::from(standbys));
        let routing = Routing::new(table.clone());
        let mut group = criterion.benchmark_group(format!("{standbys}_standbys"));
        group.bench_function("derive", |bencher| {
            bencher.iter(|| RoutingTable::derive(black_box(&view), &policy));
        });
        // Once a turn.
        group.bench_function("load", |bencher| {
            bencher.iter(|| black_box(&routing).load().epoch);
        });
        // What every round of probes ends with while nothing changes.
        group.bench_function("publish_the_same", |bencher| {
            bencher.iter_batched(
                || table.clone(),
                |table| routing.publish(table),
                criterion::BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
