//! One drill after another on one cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::cut_off::CutOff;
use crate::end::End;
use crate::front::Front;
use crate::idle::{Idle, Kept};
use crate::ledger::{Ledger, Written};
use crate::options::{Kind, Options};
use crate::pgbench::{self, Load};
use crate::probe::{self, Probes};
use crate::strays::OldPrimary;
use crate::support::{Cluster, LONG_PATIENCE, until, until_within};

/// Clients of the ledger.
const WRITERS: u64 = 9;
/// Load before something is done, and after it.
const STEADY: Duration = Duration::from_secs(3);
/// Writes that each client of the ledger has to get through afterwards.
const WRITES_AFTERWARDS: u64 = 20;
/// How long a replica stays dead.
const REPLICA_DOWN: Duration = Duration::from_secs(3);
/// Tries of a pgbench transaction that was rolled back by a fault, as an application's retry loop has them.
const TRIES: u32 = 100;

/// What one drill showed.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) kind: Kind,
    number: usize,
    /// By who got them and what they said: SQLSTATE where it is known.
    pub(crate) errors: BTreeMap<(&'static str, String), usize>,
    pub(crate) disconnects: usize,
    pub(crate) kept: Kept,
    /// From when the server was killed or stopped, or the order to cut it off, until the proxy knew that there is no primary.
    pub(crate) detection: Option<Duration>,
    /// From the new primary's being writable until each client of the ledger had its first answer.
    pub(crate) stalls: Vec<Duration>,
    /// From the old primary's last moment until a client of the ledger had an answer again.
    pub(crate) gap: Option<Duration>,
    /// From the old primary's last moment until the new one was writable: the engine's part.
    pub(crate) engine: Option<Duration>,
    pub(crate) acknowledged: usize,
    pub(crate) lost: usize,
    pub(crate) twice: usize,
    /// Of unknown outcome, and how many of these had committed.
    pub(crate) unknown: (usize, usize),
    /// Told to have failed, and there all the same.
    pub(crate) denied: usize,
    /// What was sent after another node took over and reached the old one all the same.
    pub(crate) strays: usize,
}

/// The cluster, and who is connected all the time.
pub(crate) struct Stage {
    cluster: &'static Cluster,
    front: Front,
    probes: Probes,
    idle: Idle,
    clock: Clock,
    runs: u64,
}

impl Stage {
    pub(crate) fn new(options: &Options) -> Self {
        let cluster: &'static Cluster = Box::leak(Box::new(Cluster::for_drills(&options.profile)));
        let front = if options.tls {
            Front::with_tls(cluster)
        } else {
            Front::of(cluster)
        };
        pgbench::initialise(cluster);
        cluster.prepare(Ledger::TABLE);
        cluster.prepare(probe::TABLE);
        Self {
            cluster,
            probes: Probes::start(cluster),
            idle: Idle::connect(&front.address, options.idle),
            clock: Clock::new(),
            front,
            runs: 0,
        }
    }

    /// Whether the proxy has met a bug of its own, as its panic hook words it.
    pub(crate) fn has_panicked(&self) -> bool {
        std::fs::read_to_string(&self.front.log)
            .unwrap()
            .contains("a bug in Halyard")
    }

    /// Does it once, under load, and puts the cluster in order again.
    pub(crate) fn run(&mut self, kind: Kind, number: usize) -> Round {
        self.cluster.heal();
        self.runs += 1;
        // Whoever plans a switchover is promised that nothing fails.
        let tries = if kind == Kind::Switchover { 1 } else { TRIES };
        let mut load = Load::start(&self.front, tries);
        let ledger = Ledger::start(&self.front.address, self.runs, WRITERS);
        flow(&mut load, &ledger);
        thread::sleep(STEADY);
        let incident = self.incident(kind, number);
        load.mark();
        flow(&mut load, &ledger);
        let written = ledger.stop();
        let told = load.stop();

        let mut round = self.judge(kind, number, &incident, &written);
        for (script, told) in told {
            round.disconnects += told.disconnects;
            for (message, count) in told.errors {
                round.errors.insert((script, message), count);
            }
        }
        if let Some(old) = &incident.old {
            round.strays = old.strays(self.swapped(&incident), &self.clock, &written);
        }
        round.kept = self.idle.use_all();
        if matches!(kind, Kind::Primary | Kind::Replica) {
            self.cluster.start(&incident.node);
        }
        round
    }

    /// What is done to the cluster. It returns when it has been done, not when its consequences are over, but for the
    /// split brains: the old primary is thawed, or heard again, when there is another.
    fn incident(&self, kind: Kind, number: usize) -> Incident {
        let primary = self.cluster.primary().name.clone();
        let mut incident = Incident {
            began: Instant::now(),
            struck: None,
            ended: None,
            node: primary.clone(),
            replaced: None,
            old: None,
        };
        match kind {
            Kind::Switchover => self.front.switch_over(self.cluster),
            Kind::Primary => {
                let end = End::watch(self.cluster, &primary);
                self.cluster.kill(&primary);
                incident.struck = Some(end.seen());
            }
            Kind::Replica => {
                incident.node = format!("ro{}", number % 3 + 1);
                self.cluster.kill(&incident.node);
                thread::sleep(REPLICA_DOWN);
            }
            Kind::SplitBrain => {
                let mut old = OldPrimary::listen(self.cluster, &primary);
                let end = End::watch(self.cluster, &primary);
                incident.began = Instant::now();
                self.cluster.freeze(&primary);
                incident.struck = Some(end.seen());
                incident.ended = incident.struck;
                incident.replaced = Some(self.replaced(&incident));
                self.swapped(&incident);
                old.is_replaced();
                thread::sleep(STEADY);
                old.goes_on();
                self.cluster.thaw(&primary);
                incident.old = Some(old);
            }
            Kind::CutOff => {
                incident.old = Some(OldPrimary::listen(self.cluster, &primary));
                incident.began = Instant::now();
                let _cut_off = CutOff::new(self.cluster, &primary);
                incident.replaced = Some(self.replaced(&incident));
                assert!(
                    self.cluster.is_writable(self.cluster.node(&primary)),
                    "the old primary has noticed by itself that it is none any more"
                );
                thread::sleep(STEADY);
            }
        }
        if matches!(kind, Kind::Switchover | Kind::Primary) {
            incident.ended = Some(until_within(LONG_PATIENCE, "the old primary's end", || {
                self.probes.ceased(&primary, incident.began)
            }));
            incident.replaced = Some(self.replaced(&incident));
        }
        incident
    }

    fn replaced(&self, incident: &Incident) -> Instant {
        until_within(LONG_PATIENCE, "another primary", || {
            self.probes.replaced(&incident.node, incident.began)
        })
    }

    /// When another node took writes and Halyard sent them there.
    fn swapped(&self, incident: &Incident) -> Instant {
        let told = until_within(LONG_PATIENCE, "Halyard to have another primary", || {
            self.logged("writes go to a new primary", incident.began)
        });
        told.max(incident.replaced.unwrap())
    }

    fn judge(&self, kind: Kind, number: usize, incident: &Incident, written: &[Written]) -> Round {
        let Audit {
            lost,
            twice,
            unknown,
            denied,
        } = self.audit(written);
        let mut errors = BTreeMap::new();
        for (state, count) in written.iter().flat_map(|written| &written.errors) {
            *errors.entry(("ledger", state.clone())).or_default() += count;
        }
        let mut round = Round {
            kind,
            number,
            errors,
            disconnects: written.iter().map(|written| written.disconnects).sum(),
            kept: Kept::default(),
            detection: None,
            stalls: Vec::new(),
            gap: None,
            engine: None,
            acknowledged: written.iter().map(|written| written.acknowledged.len()).sum(),
            lost,
            twice,
            unknown,
            denied,
            strays: 0,
        };
        let Some(replaced) = incident.replaced else {
            return round;
        };
        // One that is cut off never ceases to believe that it takes writes: it ended with the last that was acknowledged.
        let Some(ended) = incident
            .ended
            .or_else(|| last_before_the_pause(written, incident.began, replaced))
        else {
            return round;
        };
        // An answer that was on its way when the old primary ended is none of the new one's.
        let of_the_new = |at: &Instant| *at > ended + (replaced - ended) / 2;
        let firsts: Vec<Instant> = written
            .iter()
            .filter_map(|written| written.acknowledged.iter().map(|(_, at)| *at).find(of_the_new))
            .collect();
        round.stalls = firsts
            .iter()
            .map(|at| at.saturating_duration_since(replaced))
            .collect();
        round.gap = firsts.iter().min().map(|at| at.saturating_duration_since(ended));
        round.engine = Some(replaced.saturating_duration_since(ended));
        if kind != Kind::Switchover {
            round.detection = self
                .logged("there is no primary", incident.began)
                .map(|at| at.saturating_duration_since(incident.struck.unwrap_or(incident.began)));
        }
        round
    }

    /// When the proxy logged something first after `since`.
    fn logged(&self, words: &str, since: Instant) -> Option<Instant> {
        let log = std::fs::read_to_string(&self.front.log).unwrap();
        log.lines()
            .filter(|line| line.contains(words))
            .filter_map(|line| self.clock.of_line(line))
            .find(|at| *at >= since)
    }

    /// Compares with what the primary has.
    fn audit(&self, written: &[Written]) -> Audit {
        let mut direct = self.cluster.app(self.cluster.primary().port).connect();
        direct.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
        let rows = direct
            .run(&format!(
                "SELECT n, count(*) FROM drill_ledger WHERE run = {} GROUP BY n",
                self.runs
            ))
            .rows;
        let present: BTreeMap<u64, u64> = rows
            .iter()
            .map(|row| {
                let number = |column: usize| row[column].as_ref().unwrap().parse::<u64>().unwrap();
                (number(0), number(1))
            })
            .collect();
        let acknowledged = written.iter().flat_map(|written| &written.acknowledged);
        let lost = acknowledged.filter(|(n, _)| !present.contains_key(n)).count();
        let twice = present.values().filter(|count| **count > 1).count();
        let unknown = written.iter().flat_map(|written| &written.unknown);
        let committed = unknown.clone().filter(|n| present.contains_key(n)).count();
        let told: BTreeSet<u64> = written
            .iter()
            .flat_map(|written| {
                written
                    .acknowledged
                    .iter()
                    .map(|(n, _)| n)
                    .chain(&written.unknown)
            })
            .copied()
            .collect();
        let sent: BTreeSet<u64> = written
            .iter()
            .flat_map(|written| written.sent.iter().map(|(n, _)| *n))
            .collect();
        let denied = sent.difference(&told).filter(|n| present.contains_key(n)).count();
        Audit {
            lost,
            twice,
            unknown: (unknown.count(), committed),
            denied,
        }
    }
}

/// The last acknowledged write before the longest time without any. The new primary may have answered one before a probe
/// has seen it, so that it is not the last before that.
fn last_before_the_pause(written: &[Written], began: Instant, replaced: Instant) -> Option<Instant> {
    let acknowledged = written.iter().flat_map(|written| &written.acknowledged);
    let mut times: Vec<Instant> = acknowledged
        .map(|(_, at)| *at)
        .filter(|at| *at >= began && *at <= replaced + STEADY)
        .collect();
    times.sort();
    let pauses = times.windows(2).max_by_key(|pair| pair[1] - pair[0]);
    pauses.map(|pair| pair[0])
}

/// What the primary has of the ledger.
struct Audit {
    /// Acknowledged, and not there.
    lost: usize,
    /// There twice.
    twice: usize,
    /// Of unknown outcome, and how many of these are there.
    unknown: (usize, usize),
    /// Told to have failed, and there.
    denied: usize,
}

/// Waits until everybody gets through.
fn flow(load: &mut Load, ledger: &Ledger) {
    let before = ledger.progress();
    until_within(LONG_PATIENCE, "every client of the ledger to get through", || {
        let now = ledger.progress();
        let through = before
            .iter()
            .zip(&now)
            .all(|(before, now)| *now >= before + WRITES_AFTERWARDS);
        through.then_some(())
    });
    until("every pgbench to get through", || load.flows(2));
}

/// What was done, when, and to whom.
struct Incident {
    /// The order.
    began: Instant,
    /// When the server was killed or stopped by it.
    struck: Option<Instant>,
    /// When the old primary took its last write.
    ended: Option<Instant>,
    node: String,
    /// When there was another.
    replaced: Option<Instant>,
    /// The old primary, where it lives on.
    old: Option<OldPrimary>,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {} acknowledged",
            self.kind, self.number, self.acknowledged
        )?;
        let ms = |duration: Duration| duration.as_millis();
        if let (Some(gap), Some(engine)) = (self.gap, self.engine) {
            write!(f, ", gap {} ms, the engine's part {} ms", ms(gap), ms(engine))?;
            write!(
                f,
                ", added at most {} ms",
                self.stalls.iter().max().map_or(0, |stall| ms(*stall))
            )?;
        }
        if let Some(detection) = self.detection {
            write!(f, ", noticed after {} ms", ms(detection))?;
        }
        for ((who, what), count) in &self.errors {
            write!(f, ", {who} {what} x{count}")?;
        }
        write!(f, ", unknown {} (committed {})", self.unknown.0, self.unknown.1)?;
        for (what, count) in [
            ("DISCONNECTED", self.disconnects),
            ("LOST", self.lost),
            ("TWICE", self.twice),
            ("TOLD TO HAVE FAILED, AND THERE", self.denied),
            ("IDLE DROPPED", self.kept.dropped),
            ("IDLE LOST ITS STATE", self.kept.lost),
            ("STRAYS", self.strays),
        ] {
            if count > 0 {
                write!(f, ", {what} {count}")?;
            }
        }
        Ok(())
    }
}
