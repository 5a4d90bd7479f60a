use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::{NodeConfig, Secret};
use crate::engines;
use crate::lsn::SystemIdentifier;
use crate::node::FailureKind;
use crate::node::tests::{cut_off, failure, inserting, streaming};

const STEP: Duration = Duration::from_millis(250);

/// A cluster under observation, at a moment that only the test moves.
struct Watch {
    cluster: Cluster,
    now: Instant,
    number: u64,
}

impl Watch {
    fn new(nodes: usize) -> Self {
        Self::with_authority(nodes, AuthorityView::Absent)
    }

    fn with_authority(nodes: usize, authority: AuthorityView) -> Self {
        Self::configured(nodes, authority, |_| ())
    }

    fn remembering(nodes: usize, system: SystemIdentifier, timeline: TimelineId) -> Self {
        Self::configured(nodes, AuthorityView::Absent, |config| {
            config.system_identifier = Some(system);
            config.highest_timeline = Some(timeline);
        })
    }

    fn configured(nodes: usize, authority: AuthorityView, adjust: impl FnOnce(&mut Config)) -> Self {
        let place = |index| NodeConfig {
            name: format!("node{}", index + 1),
            host: "10.0.0.1".into(),
            port: 5432,
        };
        let mut config = Config::new(
            (0..nodes).map(place).collect(),
            "halyard",
            Secret::default(),
            "postgres",
        );
        adjust(&mut config);
        let now = Instant::now();
        Self {
            cluster: Cluster::new(Arc::new(config), authority, now),
            now,
            number: 0,
        }
    }

    fn tell(&mut self, node: u16, outcome: Result<Observation, Failure>) {
        self.number += 1;
        self.cluster.absorb(Report {
            node: NodeId(node),
            number: SampleNumber(self.number),
            looked: None,
            outcome: outcome.map(Answer::Probe),
        });
    }

    fn reaches(&mut self, node: u16, position: u64) {
        self.number += 1;
        self.cluster.absorb(Report {
            node: NodeId(node),
            number: SampleNumber(self.number),
            looked: None,
            outcome: Ok(Answer::Position(Lsn(position))),
        });
    }

    fn answers(
        &mut self,
        node: u16,
        observation: fn(Instant, u32, u64) -> Observation,
        timeline: u32,
        at: u64,
    ) {
        self.tell(node, Ok(observation(self.now, timeline, at)));
    }

    fn refuses(&mut self, node: u16) {
        self.tell(node, Err(failure(self.now, FailureKind::Refused)));
    }

    fn step(&mut self) -> ClusterView {
        let view = self.cluster.evaluate(self.now);
        self.now += STEP;
        view
    }
}

fn roles(view: &ClusterView) -> Vec<Role> {
    view.nodes.iter().map(|node| node.role).collect()
}

#[test]
fn a_failover_in_full() {
    let mut watch = Watch::new(3);
    assert_eq!(roles(&watch.step()), [Role::Unknown; 3]);
    let settle = |watch: &mut Watch| {
        watch.answers(0, inserting, 1, 1000);
        watch.answers(1, streaming, 1, 1000);
        watch.answers(2, streaming, 1, 1000);
        watch.step()
    };
    let healthy = settle(&mut watch);
    assert_eq!(roles(&healthy), [Role::Primary, Role::Standby, Role::Standby]);
    assert!(healthy.nodes[1].serves_reads && healthy.nodes[2].serves_reads);
    assert_eq!(settle(&mut watch).epoch, healthy.epoch);

    watch.refuses(0);
    watch.tell(1, Ok(cut_off(watch.now, 1000)));
    let lost = watch.step();
    assert_eq!(roles(&lost), [Role::Unreachable, Role::Standby, Role::Standby]);
    assert_eq!(lost.epoch, healthy.epoch + 1);
    assert!(
        lost.nodes[1].serves_reads && lost.nodes[2].serves_reads,
        "reads go on"
    );
    assert_eq!(
        lost.nodes[1].lag,
        Lag::default(),
        "unknown while there is no primary"
    );

    watch.answers(1, inserting, 2, 1010);
    let won = watch.step();
    assert_eq!(roles(&won), [Role::Fenced, Role::Primary, Role::Standby]);
    assert!(won.nodes[0].fenced, "though it does not answer");
    assert_eq!(won.epoch, lost.epoch + 1);
    assert_eq!(won.highest_timeline, Some(TimelineId(2)));
    assert!(won.nodes[2].serves_reads, "it has a while to change over");
    assert_eq!(
        won.nodes[2].covered,
        SampleNumber(0),
        "of the new timeline it has shown nothing"
    );

    watch.answers(2, streaming, 2, 1010);
    watch.answers(0, inserting, 1, 5000);
    let woken = watch.step();
    assert_eq!(roles(&woken), [Role::Fenced, Role::Primary, Role::Standby]);
    assert_eq!(woken.epoch, won.epoch);
    assert!(woken.nodes[2].covered > SampleNumber(0));

    watch.answers(0, streaming, 2, 1010);
    let back = watch.step();
    assert_eq!(roles(&back), [Role::Standby, Role::Primary, Role::Standby]);
    assert!(!back.nodes[0].fenced);
    assert!(!back.nodes[0].serves_reads, "it comes in slowly");
    for _ in 0..2 {
        watch.answers(0, streaming, 2, 1010);
        watch.step();
    }
    assert!(watch.step().nodes[0].serves_reads);
}

/// What the old primary had beyond the fork is neither waited for nor counted.
#[test]
fn a_new_timeline_begins_a_new_history_and_new_samples() {
    for (old_position, new_position, replay) in [(5000, 1000, 900), (700, 1000, 900)] {
        let mut watch = Watch::new(3);
        watch.answers(0, inserting, 1, old_position);
        watch.answers(1, streaming, 1, 700);
        watch.answers(2, streaming, 1, 700);
        watch.step();
        watch.refuses(0);
        watch.answers(1, inserting, 2, new_position);
        watch.answers(2, streaming, 2, replay);
        let view = watch.step();
        assert_eq!(view.nodes[2].lag.bytes, Some(new_position - replay));
        assert_eq!(
            view.nodes[2].covered,
            SampleNumber(0),
            "it has none of the new primary's samples"
        );
        watch.answers(2, streaming, 2, new_position);
        assert_eq!(watch.step().nodes[2].covered, view.newest_sample);
    }
}

/// A standby that streamed from the dead primary directly may have more of the old timeline than the new primary
/// kept. It cannot follow: its walreceiver comes and goes, and by its position it is not behind.
#[test]
fn a_standby_that_is_ahead_of_the_new_primary_stops_serving_for_good() {
    let mut watch = Watch::new(3);
    watch.answers(0, inserting, 1, 1000);
    watch.answers(1, streaming, 1, 900);
    watch.answers(2, streaming, 1, 1000);
    assert!(watch.step().nodes[2].serves_reads);
    watch.refuses(0);
    for round in 0..40 {
        watch.answers(1, inserting, 2, 900 + round);
        match round % 4 {
            0 => watch.answers(2, streaming, 1, 1000),
            _ => watch.tell(2, Ok(cut_off(watch.now, 1000))),
        }
        let view = watch.step();
        assert_eq!(view.nodes[2].covered, SampleNumber(0));
        assert!(
            round < 26 || !view.nodes[2].serves_reads,
            "round {round}: {:?}",
            view.nodes[2]
        );
    }
}

/// The process was restarted while nobody but the primary of the past could be reached.
#[test]
fn a_primary_of_a_timeline_below_the_one_remembered_is_fenced_from_the_beginning() {
    let mut watch = Watch::remembering(1, SystemIdentifier(7), TimelineId(2));
    watch.answers(0, inserting, 1, 1000);
    let view = watch.step();
    assert_eq!(view.topology.primary(), None);
    assert_eq!(view.nodes[0].role, Role::Fenced);
    assert_eq!(view.highest_timeline, Some(TimelineId(2)));
    watch.answers(0, inserting, 3, 2000);
    assert_eq!(watch.step().topology.primary(), Some((NodeId(0), TimelineId(3))));
}

#[test]
fn the_engine_names_the_candidate_before_there_is_a_primary() {
    let says = |now, primary: Option<u16>, candidate: Option<u16>| {
        AuthorityView::Answers(Arc::new(engines::Answer {
            at: now,
            primary: primary.map(NodeId),
            candidate: candidate.map(NodeId),
            nodes: Vec::new(),
        }))
    };
    let mut watch = Watch::with_authority(3, AuthorityView::Pending);
    for node in 1..3 {
        watch.answers(node, streaming, 1, 1000);
    }
    watch.answers(0, inserting, 1, 1000);
    watch.cluster.hear(says(watch.now, Some(0), Some(0)));
    let view = watch.step();
    assert!(view.primary().is_some() && view.candidate.is_none());
    watch.cluster.hear(says(watch.now, None, None));
    assert_eq!(watch.step().candidate, None);
    watch.cluster.hear(says(watch.now, None, Some(2)));
    assert_eq!(watch.step().candidate, Some(NodeId(2)));
    // It is named, and not proved yet.
    watch.cluster.hear(says(watch.now, Some(2), Some(2)));
    let view = watch.step();
    assert!(view.primary().is_none() && view.candidate == Some(NodeId(2)));
}

#[test]
fn the_engine_condemns_before_the_timeline_tells() {
    let says = |now, primary: Option<u16>| {
        AuthorityView::Answers(Arc::new(engines::Answer {
            at: now,
            primary: primary.map(NodeId),
            candidate: primary.map(NodeId),
            nodes: Vec::new(),
        }))
    };
    let mut watch = Watch::with_authority(2, AuthorityView::Pending);
    watch.answers(0, inserting, 1, 1000);
    watch.answers(1, streaming, 1, 1000);
    assert_eq!(
        watch.step().topology,
        Topology::NoPrimary {
            reason: NoPrimary::Starting
        }
    );
    watch.cluster.hear(says(watch.now, Some(0)));
    let healthy = watch.step();
    assert_eq!(healthy.topology.primary(), Some((NodeId(0), TimelineId(1))));
    watch.cluster.hear(says(watch.now, None));
    let condemned = watch.step();
    assert_eq!(
        condemned.topology,
        Topology::NoPrimary {
            reason: NoPrimary::NotProved
        }
    );
    assert!(!condemned.nodes[0].fenced, "its transactions may still end");
    assert_eq!(condemned.nodes[0].role, Role::PromotingOrReadOnly);
    watch.cluster.hear(AuthorityView::Silent {
        since: watch.now,
        error: "gone".into(),
    });
    assert_eq!(watch.step().topology.primary(), None, "disowned stays disowned");
}

#[test]
fn a_primary_that_is_proved_late_is_compared_with_at_once() {
    let mut watch = Watch::new(2);
    watch.answers(0, inserting, 1, 1000);
    assert_eq!(
        watch.step().topology,
        Topology::NoPrimary {
            reason: NoPrimary::Starting
        }
    );
    watch.answers(1, streaming, 1, 1000);
    let view = watch.step();
    assert_eq!(view.nodes[1].lag.bytes, Some(0));
    assert!(view.nodes[1].serves_reads, "{:?}", view.nodes[1]);
}

#[test]
fn evidence_grows_old() {
    let mut watch = Watch::new(2);
    watch.answers(0, inserting, 1, 1000);
    watch.answers(1, streaming, 1, 1000);
    assert!(watch.step().topology.primary().is_some());
    watch.now += watch.cluster.config.stale_after;
    let view = watch.step();
    assert_eq!(roles(&view), [Role::Unreachable, Role::Unreachable]);
    assert_eq!(
        view.topology,
        Topology::NoPrimary {
            reason: NoPrimary::AllUnreachable
        }
    );
    assert!(!view.nodes[1].serves_reads);
}

#[test]
fn a_restart_of_all_standbys_without_a_primary_does_not_end_the_reads() {
    let mut watch = Watch::new(2);
    watch.answers(0, inserting, 1, 1000);
    watch.answers(1, streaming, 1, 900);
    watch.step();
    watch.refuses(0);
    watch.refuses(1);
    assert!(!watch.step().nodes[1].serves_reads);
    for _ in 0..3 {
        watch.tell(1, Ok(cut_off(watch.now, 900)));
        watch.step();
    }
    // 100 bytes that only the dead primary had do not keep it out.
    let view = watch.step();
    assert!(view.nodes[1].serves_reads, "{:?}", view.nodes[1]);
}

#[test]
fn nothing_new_is_nothing_to_publish() {
    let mut watch = Watch::new(2);
    let mut look = |position| {
        watch.answers(0, inserting, 1, position);
        watch.answers(1, streaming, 1, position);
        watch.step()
    };
    let (first, second, third) = (look(1000), look(1000), look(2000));
    assert!(!second.differs_from(&first));
    assert!(third.differs_from(&second));
    // A newer sample of the same position is told apart from the view.
    assert!(second.nodes[1].covered > first.nodes[1].covered);
}

/// Between two probes the positions alone go on, and say nothing else: not that the node is well, nor how far it lags.
#[test]
fn positions_are_samples_and_cover_them() {
    let mut watch = Watch::new(2);
    watch.answers(0, inserting, 1, 1000);
    watch.answers(1, streaming, 1, 1000);
    let first = watch.step();
    watch.reaches(0, 2000);
    watch.reaches(1, 1999);
    let behind = watch.step();
    assert_eq!(behind.newest_sample, SampleNumber(3));
    assert_eq!(behind.nodes[1].covered, first.nodes[1].covered);
    assert_eq!(behind.nodes[1].answered, first.nodes[1].answered);
    watch.reaches(1, 2000);
    let there = watch.step();
    assert_eq!(there.nodes[1].covered, SampleNumber(3));
    // A position tells no timeline: after a promotion it counts for nothing until a probe has told it.
    watch.refuses(0);
    watch.tell(1, Ok(inserting(watch.now, 2, 2100)));
    watch.step();
    watch.reaches(0, 9000);
    let promoted = watch.step();
    assert_eq!(promoted.nodes[0].covered, SampleNumber(0));
}

/// A connection that is younger than a standby's last answer may be of another run of it, which begins further back.
#[test]
fn coverage_vouches_for_connections_older_than_its_answer() {
    let mut watch = Watch::new(2);
    watch.answers(0, inserting, 1, 1000);
    watch.answers(1, streaming, 1, 1000);
    let coverage = [Arc::new(Coverage::default()), Arc::default()];
    let view = watch.step();
    watch.cluster.tell_coverage(&view, &coverage);
    assert_eq!(coverage[1].covered(), SampleNumber(1));
    let (fence, born) = (SampleNumber(1), SampleNumber(1));
    assert!(coverage[1].vouches(fence, born), "the answer has number 2");
    assert!(
        !coverage[1].vouches(fence, SampleNumber(2)),
        "opened after the question"
    );
    // It comes back from a crash behind where it was.
    watch.answers(1, streaming, 1, 900);
    let view = watch.step();
    watch.cluster.tell_coverage(&view, &coverage);
    assert!(!coverage[1].vouches(fence, SampleNumber(2)));
    watch.reaches(1, 1000);
    let view = watch.step();
    watch.cluster.tell_coverage(&view, &coverage);
    assert!(coverage[1].vouches(fence, SampleNumber(2)));
}

/// What was seen on one standby is not taken back by another.
#[test]
fn a_reader_that_moves_moves_forward() {
    let mut watch = Watch::new(3);
    let coverage: [Arc<Coverage>; 3] = Default::default();
    watch.answers(0, inserting, 1, 1000);
    watch.answers(1, streaming, 1, 900);
    watch.answers(2, streaming, 1, 800);
    let tell = |watch: &mut Watch| {
        let view = watch.step();
        watch.cluster.tell_coverage(&view, &coverage);
    };
    tell(&mut watch);
    let seen = coverage[1].seen(coverage[1].run());
    assert!(
        coverage[1].bound(seen).is_some(),
        "its answer is younger than number 0, which was drawn last"
    );
    assert!(coverage[2].covered() < coverage[1].bound(seen).unwrap());
    watch.reaches(1, 1001);
    tell(&mut watch);
    assert_eq!(coverage[1].bound(seen), None, "no sample has what it shows");
    watch.reaches(0, 1100);
    watch.reaches(2, 1050);
    tell(&mut watch);
    let bound = coverage[1].bound(seen).unwrap();
    assert!(
        coverage[2].covered() < bound,
        "it may lack something that was seen"
    );
    watch.reaches(2, 1100);
    tell(&mut watch);
    assert!(coverage[2].covered() >= bound);
    // Another run of the node may show less than the one before.
    assert!(coverage[1].continues(seen));
    coverage[1].end_run();
    watch.answers(1, streaming, 1, 500);
    tell(&mut watch);
    assert_eq!(coverage[1].bound(seen), None);
    assert!(!coverage[1].continues(seen));
}

fn outcome() -> impl Strategy<Value = Option<Observation>> {
    let now = Instant::now();
    prop_oneof![
        Just(None),
        (1..4u32, 0..9u64).prop_map(move |(timeline, at)| Some(inserting(now, timeline, at))),
        (1..4u32, 0..9u64).prop_map(move |(timeline, at)| Some(inserting(now, timeline, at))),
        (1..4u32, 0..9u64).prop_map(move |(timeline, at)| Some(streaming(now, timeline, at))),
        (0..9u64).prop_map(move |at| Some(cut_off(now, at))),
        (1..4u32).prop_map(move |timeline| {
            let mut stranger = inserting(now, timeline, 5);
            stranger.system_identifier = SystemIdentifier(8);
            Some(stranger)
        }),
    ]
}

proptest! {
    #[test]
    fn whatever_is_reported(
        reports in prop::collection::vec((0..3u16, outcome(), 0..3000u64), 1..60),
    ) {
        let mut watch = Watch::new(3);
        let mut earlier = watch.step();
        let mut overtaken_below = 0;
        for (node, outcome, wait) in reports {
            watch.now += Duration::from_millis(wait);
            let at = watch.now;
            let outcome = outcome
                .map(|observation| Observation { at, ..observation })
                .ok_or_else(|| failure(at, FailureKind::Refused));
            watch.tell(node, outcome);
            let view = watch.step();

            // Never two primaries, and the one there is, is the topology's.
            let primaries: Vec<NodeId> =
                view.nodes.iter().filter(|node| node.role == Role::Primary).map(|node| node.id).collect();
            let expected: Vec<NodeId> = view.topology.primary().map(|(node, _)| node).into_iter().collect();
            prop_assert_eq!(&primaries, &expected);
            // The epoch never goes back, and moves exactly when the primary or the fences do.
            let fenced = |view: &ClusterView| -> BTreeSet<NodeId> {
                view.nodes.iter().filter(|node| node.fenced).map(|node| node.id).collect()
            };
            let moved = view.topology.primary() != earlier.topology.primary() || fenced(&view) != fenced(&earlier);
            prop_assert_eq!(view.epoch, earlier.epoch + u64::from(moved));
            // The highest timeline never goes back, and no primary is below it.
            prop_assert!(view.highest_timeline >= earlier.highest_timeline);
            if let Some((_, timeline)) = view.topology.primary() {
                prop_assert_eq!(Some(timeline), view.highest_timeline);
                prop_assert!(timeline.0 >= overtaken_below);
                overtaken_below = timeline.0;
            }
            for node in &view.nodes {
                // Who is fenced neither leads nor serves; who serves is a standby and has nothing to explain.
                prop_assert!(!(node.fenced && (node.role == Role::Primary || node.serves_reads)));
                prop_assert_eq!(node.serves_reads, node.role == Role::Standby && node.reason.is_none());
                prop_assert_eq!(node.reason.is_none(), node.serves_reads || node.role == Role::Primary);
            }
            earlier = view;
        }
    }

    #[test]
    fn the_order_of_arrival_does_not_matter(
        outcomes in prop::collection::vec(outcome(), 4),
        order in Just((0..4usize).collect::<Vec<_>>()).prop_shuffle(),
        evaluate_between in any::<bool>(),
    ) {
        let run = |order: &[usize]| {
            let mut watch = Watch::new(4);
            for &index in order {
                let at = watch.now;
                let outcome = outcomes[index].clone().map(|observation| Observation { at, ..observation });
                let node = u16::try_from(index).unwrap();
                watch.tell(node, outcome.ok_or_else(|| failure(at, FailureKind::Refused)));
                if evaluate_between {
                    watch.step();
                }
            }
            let view = watch.step();
            (view.topology.clone(), roles(&view))
        };
        prop_assert_eq!(run(&[0, 1, 2, 3]), run(&order));
    }
}
