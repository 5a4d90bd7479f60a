use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::node::tests::{cut_off, inserting, streaming};

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const C: NodeId = NodeId(2);

/// What one node shows, in few words.
#[derive(Clone, Copy, Debug)]
enum Shows {
    Nothing,
    Refuses,
    Stale,
    Writable(u32),
    ReadOnly(u32),
    Streaming(u32),
    CutOff,
    Foreign,
}

use Shows::*;

fn observation(shows: Shows) -> Option<Observation> {
    let now = Instant::now();
    match shows {
        Writable(timeline) => Some(inserting(now, timeline, 100)),
        ReadOnly(timeline) => Some(Observation {
            default_transaction_read_only: true,
            ..inserting(now, timeline, 100)
        }),
        Streaming(timeline) => Some(streaming(now, timeline, 100)),
        CutOff => Some(cut_off(now, 100)),
        Foreign => Some(Observation {
            system_identifier: SystemIdentifier(8),
            ..inserting(now, 9, 100)
        }),
        Nothing | Refuses | Stale => None,
    }
}

/// One moment after another, with one memory.
struct Story {
    memory: Memory,
}

impl Story {
    fn new(nodes: usize) -> Self {
        Self {
            memory: Memory::new(nodes, Some(SystemIdentifier(7))),
        }
    }

    fn see(&mut self, word: Word, shows: &[Shows]) -> (Topology, Vec<Standing>) {
        let order: Vec<usize> = (0..shows.len()).collect();
        self.see_in_order(word, shows, &order)
    }

    fn see_in_order(&mut self, word: Word, shows: &[Shows], order: &[usize]) -> (Topology, Vec<Standing>) {
        let observations: Vec<Option<Observation>> = shows.iter().map(|&shows| observation(shows)).collect();
        let sights: Vec<(NodeId, Sight<'_>)> = order
            .iter()
            .map(|&index| {
                let sight = match (shows[index], &observations[index]) {
                    (_, Some(observation)) => Sight::Fresh(observation),
                    (Refuses, None) => Sight::Unreachable(FailureKind::Refused),
                    (Stale, None) => Sight::Stale,
                    _ => Sight::Unheard,
                };
                (NodeId(u16::try_from(index).unwrap()), sight)
            })
            .collect();
        self.memory = self.memory.clone().learn(&sights, word);
        let (topology, mut standings) = decide(&sights, word, &self.memory);
        standings.sort_by_key(|&(node, _)| node);
        (
            topology,
            standings.into_iter().map(|(_, standing)| standing).collect(),
        )
    }
}

fn primary(node: NodeId, timeline: u32) -> Topology {
    Topology::OnePrimary {
        node,
        timeline: TimelineId(timeline),
    }
}

fn none(reason: NoPrimary) -> Topology {
    Topology::NoPrimary { reason }
}

#[test]
fn one_look_at_a_cluster_without_an_engine() {
    for (shows, expected) in [
        (vec![Writable(1), Streaming(1)], primary(A, 1)),
        (vec![Streaming(4), Writable(4)], primary(B, 4)),
        (vec![Writable(1), CutOff, Refuses], primary(A, 1)),
        // The true primary may be the one that was not heard yet.
        (vec![Writable(1), Nothing], none(NoPrimary::Starting)),
        (vec![Nothing, Nothing], none(NoPrimary::Starting)),
        (vec![Streaming(1), CutOff], none(NoPrimary::OnlyStandbys)),
        (vec![Streaming(1), Refuses], none(NoPrimary::OnlyStandbys)),
        (vec![Refuses, Refuses], none(NoPrimary::AllUnreachable)),
        (vec![ReadOnly(1), Streaming(1)], none(NoPrimary::NotProved)),
        // Stale evidence is no evidence.
        (vec![Stale, Streaming(1)], none(NoPrimary::OnlyStandbys)),
        // The higher timeline wins, also when only a standby tells of it.
        (vec![Writable(1), Writable(2)], primary(B, 2)),
        (vec![Writable(1), Streaming(2)], none(NoPrimary::OnlyStandbys)),
        (vec![Writable(1), ReadOnly(2)], none(NoPrimary::NotProved)),
        // Two on one timeline: nobody.
        (
            vec![Writable(1), Writable(1), Streaming(1)],
            Topology::Split { nodes: vec![A, B] },
        ),
        (
            vec![Writable(2), Writable(1), Writable(2)],
            Topology::Split { nodes: vec![A, C] },
        ),
        // Another system's node counts for nothing, its high timeline neither.
        (vec![Foreign, Writable(1)], primary(B, 1)),
        (vec![Foreign, Streaming(1)], none(NoPrimary::OnlyStandbys)),
    ] {
        assert_eq!(
            Story::new(shows.len()).see(Word::Absent, &shows).0,
            expected,
            "{shows:?}"
        );
    }
}

/// The first of three ways in which `pg_is_in_recovery() = false` is wrong: pg_auto_failover promotes, and opens
/// the node for writes up to 30 s later. Writes sent there got 25006.
#[test]
fn a_promoted_node_that_is_still_read_only_is_not_writable() {
    let mut story = Story::new(2);
    assert_eq!(
        story.see(Word::Names(Some(A)), &[Writable(1), Streaming(1)]).0,
        primary(A, 1)
    );
    let (topology, standings) = story.see(Word::Names(None), &[Refuses, ReadOnly(2)]);
    assert_eq!(topology, none(NoPrimary::NotProved));
    assert_eq!(standings[1], Standing::NotWritable(NotWritable::ReadOnly));
    // The engine names it a moment before it opens it.
    assert_eq!(
        story.see(Word::Names(Some(B)), &[Refuses, ReadOnly(2)]).0,
        none(NoPrimary::NotProved)
    );
    assert_eq!(
        story.see(Word::Names(Some(B)), &[Refuses, Writable(2)]).0,
        primary(B, 2)
    );
}

/// The second: the postmaster crashed, its supervisor restarted it on the old timeline, and the engine has already
/// begun to replace it. Commits sent there hung, and were cut.
#[test]
fn a_condemned_primary_that_was_restarted_after_a_crash_is_not_writable() {
    let mut story = Story::new(2);
    story.see(Word::Names(Some(A)), &[Writable(1), Streaming(1)]);
    story.see(Word::Names(None), &[Refuses, CutOff]);
    let (topology, standings) = story.see(Word::Names(None), &[Writable(1), CutOff]);
    assert_eq!(topology, none(NoPrimary::NotProved));
    assert_eq!(
        standings[0],
        Standing::NotWritable(NotWritable::RefusedByAuthority)
    );
    // Neither is it when the engine falls silent after having disowned it.
    let (topology, standings) = story.see(Word::Silent, &[Writable(1), CutOff]);
    assert_eq!(topology, none(NoPrimary::NotProved));
    assert_eq!(standings[0], Standing::NotWritable(NotWritable::NotConfirmed));
}

/// The third: a frozen primary wakes up after its successor was promoted, and goes on as if nothing had happened.
/// Without synchronous replication it acknowledged 47 writes that were lost.
#[test]
fn a_frozen_primary_that_wakes_up_after_a_promotion_is_fenced() {
    for word in [Word::Absent, Word::Silent, Word::Names(Some(B))] {
        let mut story = Story::new(2);
        story.see(Word::Names(Some(A)), &[Writable(1), Streaming(1)]);
        let (topology, standings) = story.see(word, &[Refuses, Writable(2)]);
        assert_eq!(topology, primary(B, 2), "{word:?}");
        assert_eq!(standings[0], Standing::Overtaken { led: TimelineId(1) });
        let (topology, standings) = story.see(word, &[Writable(1), Writable(2)]);
        assert_eq!(topology, primary(B, 2), "{word:?}");
        assert_eq!(standings[0], Standing::Overtaken { led: TimelineId(1) });
        // Nor does it come back when its successor goes.
        let (topology, standings) = story.see(word, &[Writable(1), Refuses]);
        assert_eq!(topology.primary(), None, "{word:?}");
        assert_eq!(standings[0], Standing::Overtaken { led: TimelineId(1) });
    }
}

#[test]
fn a_fence_is_lifted_only_by_streaming_the_new_timeline() {
    let mut story = Story::new(2);
    story.see(Word::Absent, &[Writable(1), Streaming(1)]);
    story.see(Word::Absent, &[Refuses, Writable(2)]);
    for shows in [Refuses, Stale, Writable(1), CutOff, Streaming(1)] {
        let (_, standings) = story.see(Word::Absent, &[shows, Writable(2)]);
        assert_eq!(
            standings[0],
            Standing::Overtaken { led: TimelineId(1) },
            "{shows:?}"
        );
    }
    let (_, standings) = story.see(Word::Absent, &[Streaming(2), Writable(2)]);
    assert_eq!(standings[0], Standing::Standby);
    let (_, standings) = story.see(Word::Absent, &[CutOff, Writable(2)]);
    assert_eq!(standings[0], Standing::Standby, "once lifted it stays lifted");
}

#[test]
fn a_node_that_was_elected_again_on_a_new_timeline_is_not_fenced() {
    let mut story = Story::new(2);
    story.see(Word::Absent, &[Writable(1), Streaming(1)]);
    story.see(Word::Absent, &[Refuses, Streaming(1)]);
    assert_eq!(
        story.see(Word::Absent, &[Writable(2), Streaming(1)]).0,
        primary(A, 2)
    );
}

#[test]
fn the_engine_decides_between_two_on_the_same_timeline() {
    let shows = [Writable(1), Writable(1)];
    assert_eq!(Story::new(2).see(Word::Names(Some(B)), &shows).0, primary(B, 1));
    assert_eq!(
        Story::new(2).see(Word::Names(None), &shows).0,
        none(NoPrimary::NotProved)
    );
    assert_eq!(
        Story::new(2).see(Word::Silent, &shows).0,
        none(NoPrimary::NotProved)
    );
    // One that it named before it fell silent still is.
    let mut story = Story::new(2);
    story.see(Word::Names(Some(A)), &[Writable(1), Streaming(1)]);
    assert_eq!(story.see(Word::Silent, &shows).0, primary(A, 1));
}

#[test]
fn the_engine_is_not_followed_against_the_evidence() {
    for shows in [
        [Streaming(1), Writable(1)],
        [ReadOnly(1), Streaming(1)],
        [Writable(1), Streaming(2)],
        [Refuses, Writable(1)],
        [Foreign, Writable(1)],
    ] {
        let topology = Story::new(2).see(Word::Names(Some(A)), &shows).0;
        assert_eq!(topology.primary(), None, "{shows:?}");
    }
}

#[test]
fn a_silent_engine_does_not_stop_the_writes() {
    let mut story = Story::new(2);
    story.see(Word::Names(Some(A)), &[Writable(3), Streaming(3)]);
    assert_eq!(
        story.see(Word::Silent, &[Writable(3), Streaming(3)]).0,
        primary(A, 3)
    );
    // It may go and come back on its timeline.
    assert_eq!(
        story.see(Word::Silent, &[Refuses, Streaming(3)]).0.primary(),
        None
    );
    assert_eq!(
        story.see(Word::Silent, &[Writable(3), Streaming(3)]).0,
        primary(A, 3)
    );
    // Another node on the same timeline was named by nobody; one on a later timeline was promoted since.
    assert_eq!(story.see(Word::Silent, &[Refuses, Writable(3)]).0.primary(), None);
    assert_eq!(story.see(Word::Silent, &[Refuses, Writable(4)]).0, primary(B, 4));
}

#[test]
fn an_engine_that_was_silent_from_the_beginning_needs_complete_evidence_instead() {
    for (shows, expected) in [
        ([Writable(1), Streaming(1), Streaming(1)], Some(A)),
        ([Writable(1), Streaming(1), CutOff], Some(A)),
        ([Writable(1), Streaming(1), Refuses], None),
        ([Writable(1), Streaming(1), Nothing], None),
        ([Writable(1), Writable(2), Streaming(2)], None),
        ([Writable(1), ReadOnly(1), Streaming(1)], None),
    ] {
        let topology = Story::new(3).see(Word::Silent, &shows).0;
        assert_eq!(topology.primary().map(|(node, _)| node), expected, "{shows:?}");
    }
}

#[test]
fn an_engine_that_was_not_heard_yet_is_waited_for() {
    let shows = [Writable(1), Streaming(1)];
    assert_eq!(
        Story::new(2).see(Word::Pending, &shows).0,
        none(NoPrimary::Starting)
    );
    // Its word stands for the nodes that were not heard.
    assert_eq!(
        Story::new(2).see(Word::Names(Some(A)), &[Writable(1), Nothing]).0,
        primary(A, 1)
    );
}

#[test]
fn the_system_identifier_is_that_of_most_nodes_in_the_first_round() {
    for (shows, expected) in [
        (vec![Foreign, Writable(1), Streaming(1)], Some(7)),
        (vec![Foreign, Foreign, Writable(1)], Some(8)),
        // As many of the one as of the other: the first node's.
        (vec![Foreign, Writable(1)], Some(8)),
        (vec![Writable(1), Foreign], Some(7)),
        (vec![Refuses, Writable(1)], Some(7)),
        (vec![Nothing, Writable(1)], None),
        (vec![Refuses, Refuses], None),
    ] {
        let mut story = Story {
            memory: Memory::new(shows.len(), None),
        };
        story.see(Word::Absent, &shows);
        assert_eq!(
            story.memory.system_identifier,
            expected.map(SystemIdentifier),
            "{shows:?}"
        );
        let learned = story.memory.system_identifier;
        story.see(Word::Absent, &[Foreign, Foreign, Foreign][..shows.len()]);
        assert!(
            learned.is_none() || story.memory.system_identifier == learned,
            "learned once"
        );
    }
}

fn shows() -> impl Strategy<Value = Shows> {
    prop_oneof![
        Just(Nothing),
        Just(Refuses),
        Just(Stale),
        Just(CutOff),
        Just(Foreign),
        (1..4u32).prop_map(Writable),
        (1..4u32).prop_map(Writable),
        (1..4u32).prop_map(ReadOnly),
        (1..4u32).prop_map(Streaming),
    ]
}

fn word(nodes: u16) -> impl Strategy<Value = Word> {
    prop_oneof![
        Just(Word::Absent),
        Just(Word::Pending),
        Just(Word::Silent),
        Just(Word::Names(None)),
        (0..nodes).prop_map(|node| Word::Names(Some(NodeId(node)))),
    ]
}

proptest! {
    #[test]
    fn the_order_of_the_sights_does_not_matter(
        moments in prop::collection::vec((word(4), prop::collection::vec(shows(), 4)), 1..6),
        order in Just((0..4usize).collect::<Vec<_>>()).prop_shuffle(),
        identifier in prop::option::of(Just(SystemIdentifier(7))),
    ) {
        let mut straight = Story { memory: Memory::new(4, identifier) };
        let mut shuffled = Story { memory: Memory::new(4, identifier) };
        for (word, shows) in moments {
            prop_assert_eq!(straight.see(word, &shows), shuffled.see_in_order(word, &shows, &order));
            prop_assert_eq!(&straight.memory, &shuffled.memory);
        }
    }

    #[test]
    fn a_primary_is_always_proved(
        moments in prop::collection::vec((word(3), prop::collection::vec(shows(), 3)), 1..12),
    ) {
        let mut story = Story::new(3);
        let mut highest = 0;
        for (word, shows) in moments {
            for &show in &shows {
                if let Writable(timeline) | ReadOnly(timeline) | Streaming(timeline) = show {
                    highest = highest.max(timeline);
                }
            }
            let (topology, standings) = story.see(word, &shows);
            let writable = standings.iter().filter(|standing| matches!(standing, Standing::Writable(_))).count();
            match topology {
                Topology::OnePrimary { node, timeline } => {
                    // Only a node that shows itself writable, on the highest timeline that any ever showed.
                    prop_assert!(matches!(shows[usize::from(node.0)], Writable(on) if on == timeline.0));
                    prop_assert_eq!(timeline.0, highest);
                    prop_assert_eq!(writable, 1);
                    prop_assert_ne!(word, Word::Pending);
                    if let Word::Names(named) = word {
                        prop_assert_eq!(named, Some(node));
                    }
                }
                Topology::Split { nodes } => {
                    prop_assert_eq!(nodes.len(), writable);
                    prop_assert!(writable > 1);
                    prop_assert!(!matches!(word, Word::Names(_)));
                }
                Topology::NoPrimary { .. } => prop_assert!(writable <= 1),
            }
        }
    }
}
