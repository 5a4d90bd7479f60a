//! Which faults come when. Pure: the same seed gives the same rounds, for ever.
//!
//! Nodes are named by what they are when their fault begins, not by name: which node is the primary then depends on what
//! the engine has made of the rounds before.

use std::fmt;
use std::time::Duration;

use crate::chance::Chance;

/// A node, by its role when the fault begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Primary,
    /// The first or the second of the other two of the engine's nodes.
    Backup(usize),
    /// `ro1` to `ro3`.
    Replica(usize),
}

/// A link from the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Node(Who),
    Monitor,
}

/// Where a link carries nothing: as in `support::Silent`, seen from the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hole {
    Requests,
    Answers,
    Both,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL to the first process of a server; whoever supervises it starts it again.
    KillPostgres(Who),
    /// SIGKILL to everything on a node.
    KillNode(Who),
    /// SIGSTOP to everything on a node, SIGCONT when it is over: of the primary when another has been promoted.
    Freeze(Who),
    /// SIGSTOP and SIGCONT, too short for the engine to act on.
    Hiccup(Who),
    /// A clean stop and a start.
    Restart(Who),
    /// Connections between the proxy and a server are closed and refused.
    Cut(To),
    /// Between the proxy and a server nothing arrives, and nothing is closed.
    BlackHole(To, Hole),
    /// SIGKILL to the engine's monitor.
    KillMonitor,
    /// A replica replays so many milliseconds late.
    Delay(usize, u64),
    /// A standby replays nothing.
    PauseReplay(Who),
    /// There is no space where the third replica keeps its data.
    FillDisk,
    /// SIGKILL to every node but the primary.
    LoseStandbys,
    /// SIGKILL to every node and the monitor at once.
    KillEverything,
    /// SWITCHOVER on the proxy's console. Alone it breaks nothing: nobody may be told an error.
    Switchover,
}

/// What [`Fault::kind`] can answer, in order.
#[allow(dead_code, reason = "its test does")]
pub(crate) const KINDS: [&str; 14] = [
    "black hole",
    "cut",
    "delay",
    "everything killed",
    "freeze",
    "full disk",
    "hiccup",
    "monitor killed",
    "node killed",
    "postgres killed",
    "replay paused",
    "restart",
    "standbys lost",
    "switchover",
];

impl Fault {
    /// In a word or two.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Fault::KillPostgres(_) => "postgres killed",
            Fault::KillNode(_) => "node killed",
            Fault::Freeze(_) => "freeze",
            Fault::Hiccup(_) => "hiccup",
            Fault::Restart(_) => "restart",
            Fault::Cut(_) => "cut",
            Fault::BlackHole(..) => "black hole",
            Fault::KillMonitor => "monitor killed",
            Fault::Delay(..) => "delay",
            Fault::PauseReplay(_) => "replay paused",
            Fault::FillDisk => "full disk",
            Fault::LoseStandbys => "standbys lost",
            Fault::KillEverything => "everything killed",
            Fault::Switchover => "switchover",
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Primary => f.write_str("primary"),
            Who::Backup(number) => write!(f, "backup {}", number + 1),
            Who::Replica(number) => write!(f, "ro{}", number + 1),
        }
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            To::Node(who) => write!(f, "{who}"),
            To::Monitor => f.write_str("monitor"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::KillPostgres(who)
            | Fault::KillNode(who)
            | Fault::Freeze(who)
            | Fault::Hiccup(who)
            | Fault::Restart(who)
            | Fault::PauseReplay(who) => write!(f, "{}: {who}", self.kind()),
            Fault::Cut(to) => write!(f, "cut: {to}"),
            Fault::BlackHole(to, hole) => write!(f, "black hole: {to}, {hole:?}"),
            Fault::Delay(number, ms) => write!(f, "delay: ro{} by {ms} ms", number + 1),
            Fault::KillMonitor
            | Fault::FillDisk
            | Fault::LoseStandbys
            | Fault::KillEverything
            | Fault::Switchover => f.write_str(self.kind()),
        }
    }
}

/// A fault in its round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) fault: Fault,
    /// From the round's beginning.
    pub(crate) after: Duration,
    /// How long it lasts; where it waits for a promotion, so much longer.
    pub(crate) lasts: Duration,
}

/// Faults that come together. A round is over when all of them are, and the cluster is whole again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) faults: Vec<Planned>,
    /// Behind it nothing is done, and nothing may go wrong.
    pub(crate) quiet: Duration,
}

impl Round {
    /// Whether something is broken by it, which excuses errors.
    pub(crate) fn breaks(&self) -> bool {
        self.faults
            .iter()
            .any(|planned| planned.fault != Fault::Switchover)
    }
}

/// Rounds without an end.
pub(crate) struct Schedule {
    chance: Chance,
    /// Kinds of the main fault that are still to come before one comes again.
    waiting: Vec<usize>,
}

/// Main faults to draw from: each comes once before one comes again, so that a long run has all of them.
const MAIN: usize = 17;

impl Schedule {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: Chance::new(seed),
            waiting: Vec::new(),
        }
    }

    fn main(&mut self) -> Fault {
        if self.waiting.is_empty() {
            self.waiting = (0..MAIN).collect();
        }
        let drawn = self.chance.index(self.waiting.len());
        let standby = self.standby();
        match self.waiting.swap_remove(drawn) {
            0 => Fault::KillPostgres(Who::Primary),
            1 => Fault::KillNode(Who::Primary),
            2 => Fault::Freeze(Who::Primary),
            3 => Fault::Hiccup(Who::Primary),
            4 => Fault::Restart(Who::Primary),
            5 => Fault::KillPostgres(standby),
            6 => Fault::KillNode(standby),
            7 => Fault::Freeze(standby),
            8 => Fault::Restart(standby),
            9 => self.link(To::Node(Who::Primary)),
            10 => self.link(To::Node(standby)),
            11 => Fault::FillDisk,
            12 => Fault::LoseStandbys,
            13 => Fault::KillEverything,
            14 => Fault::KillMonitor,
            15 => Fault::Switchover,
            _ => self.lag(),
        }
    }

    /// A fault that goes with any other: it takes no server of the engine away.
    fn side(&mut self) -> Fault {
        let standby = self.standby();
        match self.chance.below(6) {
            0 => self.link(To::Monitor),
            1 => self.link(To::Node(Who::Primary)),
            2 => self.link(To::Node(standby)),
            3 => Fault::KillPostgres(Who::Replica(self.chance.index(3))),
            _ => self.lag(),
        }
    }

    fn standby(&mut self) -> Who {
        match self.chance.index(5) {
            backup @ 0..=1 => Who::Backup(backup),
            replica => Who::Replica(replica - 2),
        }
    }

    fn link(&mut self, to: To) -> Fault {
        match self.chance.below(4) {
            0 => Fault::Cut(to),
            1 => Fault::BlackHole(to, Hole::Requests),
            2 => Fault::BlackHole(to, Hole::Answers),
            _ => Fault::BlackHole(to, Hole::Both),
        }
    }

    fn lag(&mut self) -> Fault {
        match self.chance.below(2) {
            0 => Fault::Delay(self.chance.index(3), *self.chance.pick(&[50, 500, 5_000])),
            _ => Fault::PauseReplay(self.standby()),
        }
    }

    fn planned(&mut self, fault: Fault, after: Duration) -> Planned {
        let (least, most) = match fault {
            Fault::Hiccup(_) => (300, 4_000),
            Fault::KillPostgres(_) | Fault::Switchover => (0, 0),
            Fault::KillMonitor => (2_000, 15_000),
            Fault::KillEverything => (0, 3_000),
            _ => (1_000, 12_000),
        };
        Planned {
            fault,
            after,
            lasts: Duration::from_millis(self.chance.between(least, most)),
        }
    }
}

impl Iterator for Schedule {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let main = self.main();
        let mut faults = vec![self.planned(main, Duration::ZERO)];
        if self.chance.below(2) == 0 {
            let side = self.side();
            let after = Duration::from_millis(self.chance.below(6_000));
            faults.push(self.planned(side, after));
        }
        let quiet = Duration::from_millis(self.chance.between(6_000, 10_000));
        Some(Round { faults, quiet })
    }
}
