//! From reports to views: everything that the monitor remembers, and no I/O.

use std::sync::Arc;
use std::time::Instant;

use crate::config::Config;
use crate::engines::AuthorityView;
use crate::lag::{History, Lag};
use crate::lsn::{Lsn, TimelineId};
use crate::node::{Failure, Incarnation, NodeId, NodeState, Observation, Promotion, Receiver, Sight, Wal};
use crate::reads::{Gate, Leader, Progress, fitness};
use crate::samples::{Coverage, Covered, Sample, SampleNumber, Samples};
use crate::topology::{Memory, NoPrimary, Standing, Topology, decide};
use crate::view::{ClusterView, NodeView, Reason, ReceiverView, Role};

#[cfg(test)]
mod tests;

/// What became of one round of one node.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) node: NodeId,
    /// Drawn before the question was sent.
    pub(crate) number: SampleNumber,
    /// The node's doubts when the question was sent, if it was answered on a connection made since.
    pub(crate) looked: Option<u64>,
    pub(crate) outcome: Result<Answer, Failure>,
}

/// What a node has answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The probe.
    Probe(Observation),
    /// On the side of recovery that the last probe told: the end of the last record inserted, or replayed.
    Position(Lsn),
}

/// The cluster, as far as the reports go.
#[derive(Debug)]
pub(crate) struct Cluster {
    config: Arc<Config>,
    members: Vec<Member>,
    memory: Memory,
    authority: AuthorityView,
    /// The primary that `history` and `samples` are of: the present one, or the last.
    led_by: Option<(NodeId, TimelineId)>,
    history: History,
    samples: Samples,
    sequence: u64,
    epoch: u64,
    /// What the epoch stands for.
    identity: Identity,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Identity {
    primary: Option<(NodeId, TimelineId)>,
    fenced: Vec<bool>,
}

#[derive(Debug)]
struct Member {
    name: Arc<str>,
    state: NodeState,
    progress: Progress,
    gate: Gate,
    role: Role,
    since: Instant,
    /// Since when it serves reads, as it does.
    serves_since: Option<Instant>,
    /// The last timeline it was seen on.
    timeline: Option<TimelineId>,
    /// The number of the last answer.
    number: SampleNumber,
    /// The position in it: as the primary's, a sample; as a standby's, what it covers.
    reached: Option<Lsn>,
    /// Its last run as a primary.
    incarnation: Option<Incarnation>,
    /// How it became a primary, if that was seen.
    promotion: Option<Promotion>,
    /// The last doubt behind which it was looked at.
    looked: u64,
    /// Whether there is a probe's answer since the last evaluation.
    is_new: bool,
}

impl Cluster {
    pub(crate) fn new(config: Arc<Config>, authority: AuthorityView, now: Instant) -> Self {
        let members: Vec<Member> = config
            .nodes
            .iter()
            .map(|node| Member {
                name: node.name.as_str().into(),
                state: NodeState::default(),
                progress: Progress::default(),
                gate: Gate::New,
                role: Role::Unknown,
                since: now,
                serves_since: None,
                timeline: None,
                number: SampleNumber(0),
                reached: None,
                incarnation: None,
                promotion: None,
                looked: 0,
                is_new: false,
            })
            .collect();
        Self {
            memory: Memory {
                highest_timeline: config.highest_timeline,
                ..Memory::new(members.len(), config.system_identifier)
            },
            identity: Identity {
                primary: None,
                fenced: vec![false; members.len()],
            },
            config,
            members,
            authority,
            led_by: None,
            history: History::default(),
            samples: Samples::default(),
            sequence: 0,
            epoch: 0,
        }
    }

    /// Takes in a round's result. It shows with the next evaluation.
    pub(crate) fn absorb(&mut self, report: Report) {
        let Some(member) = self.members.get_mut(usize::from(report.node.0)) else {
            return;
        };
        member.looked = member.looked.max(report.looked.unwrap_or(0));
        let outcome = match report.outcome {
            Ok(Answer::Probe(observation)) => {
                member.progress.absorb(&observation);
                member.timeline = observation
                    .timeline()
                    .or(member.timeline)
                    .or(observation.highest_timeline());
                member.incarnation = observation.incarnation.or(member.incarnation);
                member.promotion = observation.promotion.or(member.promotion);
                member.number = report.number;
                member.reached = match observation.wal {
                    Wal::Inserting { insert, .. } => Some(insert),
                    Wal::Replaying { replay, .. } => replay,
                };
                member.is_new = true;
                Ok(observation)
            }
            // It is evidence of the position alone, and of nothing that a probe would tell.
            Ok(Answer::Position(position)) => {
                member.number = report.number;
                member.reached = Some(position);
                return;
            }
            Err(failure) => Err(failure),
        };
        member.state.absorb(outcome, self.config.failures_to_eject);
    }

    /// Takes in the engine's word.
    pub(crate) fn hear(&mut self, authority: AuthorityView) {
        self.authority = authority;
    }

    /// The engine's word as it was last taken in.
    pub(crate) fn authority(&self) -> &AuthorityView {
        &self.authority
    }

    /// What all evidence amounts to at `now`.
    pub(crate) fn evaluate(&mut self, now: Instant) -> ClusterView {
        let word = self.authority.word(now);
        let stale_after = self.config.stale_after;
        let sights: Vec<(NodeId, Sight<'_>)> = ids()
            .zip(&self.members)
            .map(|(id, member)| (id, member.state.sight(now, stale_after)))
            .collect();
        self.memory = std::mem::take(&mut self.memory).learn(&sights, word);
        let (topology, standings) = decide(&sights, word, &self.memory);
        for ((id, standing), member) in standings.iter().zip(&mut self.members) {
            let role = role(*id, *standing, &topology);
            if role != member.role {
                member.role = role;
                member.since = now;
            }
        }
        self.follow_primary(&topology);
        self.judge_standbys(&topology, now);
        self.number(&topology);
        let nodes = standings
            .iter()
            .map(|&(id, standing)| self.node_view(id, standing, &topology))
            .collect();
        let candidate = self.candidate(&topology, &standings);
        ClusterView {
            sequence: self.sequence,
            epoch: self.epoch,
            at: now,
            topology,
            nodes,
            highest_timeline: self.memory.highest_timeline,
            system_identifier: self.memory.system_identifier,
            authority: self.authority.clone(),
            candidate,
            newest_sample: self.samples.newest(),
        }
    }

    /// The newest sample of the present primary, or of the last; `None` before the first.
    pub(crate) fn latest_sample(&self) -> Option<Sample> {
        let (_, timeline) = self.led_by?;
        self.samples.latest(timeline)
    }

    /// Who is expected to become the primary where there is none.
    fn candidate(&self, topology: &Topology, standings: &[(NodeId, Standing)]) -> Option<NodeId> {
        if topology.primary().is_some() {
            return None;
        }
        let mut out_of_recovery = standings
            .iter()
            .filter(|(_, standing)| matches!(standing, Standing::Writable(_) | Standing::NotWritable(_)));
        let alone = match (out_of_recovery.next(), out_of_recovery.next()) {
            (Some((node, _)), None) if !matches!(self.authority, AuthorityView::Answers(_)) => Some(*node),
            _ => None,
        };
        let candidate = self.authority.candidate().or(alone)?;
        self.memory.overtaken(candidate).is_none().then_some(candidate)
    }

    /// Numbers a view that is about to be published.
    pub(crate) fn publish(&mut self, mut view: ClusterView) -> Arc<ClusterView> {
        self.sequence += 1;
        view.sequence = self.sequence;
        Arc::new(view)
    }

    /// Records where the primary stands; a second look at the same answer records nothing. Another primary, or
    /// another timeline, begins a new history.
    fn follow_primary(&mut self, topology: &Topology) {
        let Some((node, timeline)) = topology.primary() else {
            return;
        };
        if self.led_by.replace((node, timeline)) != Some((node, timeline)) {
            self.history.clear();
            self.samples.clear();
        }
        let member = &self.members[usize::from(node.0)];
        if let Some(observation) = member.state.last()
            && let Wal::Inserting { flush, .. } = observation.wal
        {
            self.history.record(observation.at, flush);
            if let Some(insert) = member.reached {
                self.samples.record(member.number, insert);
            }
        }
    }

    fn judge_standbys(&mut self, topology: &Topology, now: Instant) {
        let leader = self.leader(topology);
        for member in &mut self.members {
            let new_answer = std::mem::take(&mut member.is_new);
            member.gate = match (member.role, member.state.last()) {
                (Role::Unknown, _) => member.gate,
                (Role::Standby, Some(observation)) => {
                    let lag = lag(&self.history, observation, leader);
                    let max = self.config.max_replica_lag;
                    let fitness = fitness(member.timeline, &member.progress, leader, lag, max, now);
                    member
                        .gate
                        .after(fitness, new_answer, self.config.successes_to_readmit)
                }
                _ => Gate::away(),
            };
            let serves = member.role == Role::Standby && member.gate.unfit().is_none();
            member.serves_since = serves.then(|| member.serves_since.unwrap_or(now));
        }
    }

    fn leader(&self, topology: &Topology) -> Leader {
        match *topology {
            Topology::OnePrimary { node, timeline } => Leader::Present {
                timeline,
                since: self.members[usize::from(node.0)].since,
            },
            Topology::NoPrimary {
                reason: NoPrimary::Starting,
            } => Leader::Undecided,
            Topology::NoPrimary { .. } | Topology::Split { .. } => Leader::Absent,
        }
    }

    /// Counts the epoch on when the primary's identity or the set of fenced nodes is another one.
    fn number(&mut self, topology: &Topology) {
        let fenced = ids()
            .take(self.members.len())
            .map(|id| self.memory.overtaken(id).is_some())
            .collect();
        let identity = Identity {
            primary: topology.primary(),
            fenced,
        };
        if identity != self.identity {
            self.identity = identity;
            self.epoch += 1;
        }
    }

    fn node_view(&self, id: NodeId, standing: Standing, topology: &Topology) -> NodeView {
        let member = &self.members[usize::from(id.0)];
        let last = member.state.last();
        let standby = last.filter(|_| member.role == Role::Standby);
        let serves_reads = standby.is_some() && member.gate.unfit().is_none();
        let leader = self.leader(topology);
        let lag = match (leader, standby) {
            (Leader::Present { .. }, Some(observation)) => lag(&self.history, observation, leader),
            _ => Lag::default(),
        };
        NodeView {
            id,
            name: Arc::clone(&member.name),
            role: member.role,
            since: member.since,
            answered: last.map(|observation| observation.at),
            failures: member.state.failures(),
            error: member.state.failure().map(|failure| Arc::clone(&failure.message)),
            timeline: member.timeline,
            position: last.and_then(position),
            replay: last.and_then(Observation::replay),
            lag,
            receiver: standby.map_or(ReceiverView::NotApplicable, receiver),
            covered: self
                .comparable(member)
                .map_or(SampleNumber(0), |replay| self.samples.covered(replay)),
            serves_reads,
            serves_since: member.serves_since.filter(|_| serves_reads),
            looked: member.looked,
            incarnation: member.incarnation,
            promotion: member.promotion,
            reason: reason(standing, topology, member),
            fenced: self.memory.overtaken(id).is_some(),
        }
    }

    /// What the standbys have replayed, told where the data plane looks: with every report, published or not. Whether any
    /// of them is another one than before.
    pub(crate) fn tell_coverage(&self, view: &ClusterView, coverage: &[Arc<Coverage>]) -> bool {
        let mut news = false;
        for ((member, node), told) in self.members.iter().zip(&view.nodes).zip(coverage) {
            news |= told.covered() != node.covered;
            told.store(Covered {
                answered: member.number,
                covered: node.covered,
                within: self
                    .comparable(member)
                    .and_then(|replay| self.samples.containing(replay)),
            });
        }
        news
    }

    /// Positions are only comparable on one timeline.
    fn comparable(&self, member: &Member) -> Option<Lsn> {
        let (_, timeline) = self.led_by?;
        member
            .reached
            .filter(|_| member.timeline == Some(timeline) && member.role == Role::Standby)
    }
}

/// Every node's id, in configuration order.
fn ids() -> impl Iterator<Item = NodeId> {
    (0..=u16::MAX).map(NodeId)
}

fn lag(history: &History, observation: &Observation, leader: Leader) -> Lag {
    let Some(replay) = observation.replay() else {
        return Lag::default();
    };
    match leader {
        Leader::Undecided => Lag::default(),
        Leader::Present { .. } => history.lag(observation.at, replay),
        Leader::Absent => history.lag_at_end(replay),
    }
}

fn position(observation: &Observation) -> Option<Lsn> {
    match observation.wal {
        Wal::Inserting { insert, .. } => Some(insert),
        Wal::Replaying { receive, .. } => receive,
    }
}

fn receiver(observation: &Observation) -> ReceiverView {
    match observation.wal {
        Wal::Inserting { .. } => ReceiverView::NotApplicable,
        Wal::Replaying {
            receiver: Receiver::Gone,
            ..
        } => ReceiverView::Gone,
        Wal::Replaying {
            receiver: Receiver::Present { silence, .. },
            ..
        } => ReceiverView::Present { silence },
    }
}

fn role(id: NodeId, standing: Standing, topology: &Topology) -> Role {
    match standing {
        Standing::Writable(_) if topology.primary().is_some_and(|(primary, _)| primary == id) => {
            Role::Primary
        }
        Standing::Writable(_) | Standing::NotWritable(_) => Role::PromotingOrReadOnly,
        Standing::Standby => Role::Standby,
        Standing::Overtaken { .. } => Role::Fenced,
        Standing::Foreign(_) => Role::Foreign,
        Standing::Unreachable(_) | Standing::Stale => Role::Unreachable,
        Standing::Unheard => Role::Unknown,
    }
}

fn reason(standing: Standing, topology: &Topology, member: &Member) -> Option<Reason> {
    match standing {
        Standing::Writable(_) => match topology {
            Topology::OnePrimary { .. } => None,
            Topology::NoPrimary { .. } => Some(Reason::Starting),
            Topology::Split { .. } => Some(Reason::Split),
        },
        Standing::NotWritable(why) => Some(Reason::NotWritable(why)),
        Standing::Standby => member.gate.unfit().map(Reason::Unfit),
        Standing::Overtaken { led } => Some(Reason::Overtaken(led)),
        Standing::Foreign(identifier) => Some(Reason::Foreign(identifier)),
        Standing::Unreachable(kind) => Some(Reason::Unreachable(kind)),
        Standing::Stale => Some(Reason::Stale),
        Standing::Unheard => Some(Reason::Unheard),
    }
}
