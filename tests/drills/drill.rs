//! One drill after another on one cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::cut_off::CutOff;
use crate::front::Front;
use crate::idle::{Idle, Kept};
use crate::ledger::{Ledger, Written};
use crate::options::{Kind, Options};
use crate::pgbench::{self, Load};
use crate::probe::{self, Probes};
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
    /// From the order to do it until the proxy knew that there is no primary.
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
        if matches!(kind, Kind::SplitBrain | Kind::CutOff) {
            round.strays = incident.strays(&written);
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
            ended: None,
            node: primary.clone(),
            replaced: None,
            log: PathBuf::new(),
            log_from: 0,
        };
        match kind {
            Kind::Switchover => self.front.switch_over(self.cluster),
            Kind::Primary => self.cluster.kill(&primary),
            Kind::Replica => {
                incident.node = format!("ro{}", number % 3 + 1);
                self.cluster.kill(&incident.node);
                thread::sleep(REPLICA_DOWN);
            }
            Kind::SplitBrain => {
                incident.listen(self.cluster);
                incident.began = Instant::now();
                self.cluster.freeze(&primary);
                incident.ended = Some(Instant::now());
                incident.replaced = Some(self.replaced(&incident));
                thread::sleep(STEADY);
                self.cluster.thaw(&primary);
            }
            Kind::CutOff => {
                incident.listen(self.cluster);
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

    fn judge(&self, kind: Kind, number: usize, incident: &Incident, written: &[Written]) -> Round {
        let (lost, twice, unknown) = self.audit(written);
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
            strays: 0,
        };
        let Some(replaced) = incident.replaced else {
            return round;
        };
        // One that is cut off never ceases to believe that it takes writes: it ended with the last that was acknowledged.
        let acknowledged = written.iter().flat_map(|written| &written.acknowledged);
        let last = acknowledged.map(|(_, at)| *at).filter(|at| *at < replaced).max();
        let Some(ended) = incident.ended.or(last) else {
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
                .map(|at| at.saturating_duration_since(incident.began));
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

    /// Compares with what the primary has: acknowledged and not there, there twice; of unknown outcome, and there.
    fn audit(&self, written: &[Written]) -> (usize, usize, (usize, usize)) {
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
        (lost, twice, (unknown.count(), committed))
    }
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
    began: Instant,
    /// When the old primary took its last write.
    ended: Option<Instant>,
    node: String,
    /// When there was another.
    replaced: Option<Instant>,
    /// The old primary's own log, and where in it the incident begins.
    log: PathBuf,
    log_from: usize,
}

impl Incident {
    /// Has the primary write every statement and every login to its log.
    fn listen(&mut self, cluster: &Cluster) {
        let mut direct = cluster.superuser(cluster.node(&self.node)).connect();
        for setting in ["log_statement = 'all'", "log_connections = on"] {
            direct.run(&format!("ALTER SYSTEM SET {setting}"));
        }
        direct.run("SELECT pg_reload_conf()");
        until("the primary to log its statements", || {
            direct.value("SHOW log_statement") == "all"
        });
        self.log = cluster.dir().join(format!("log/{}.log", self.node));
        self.log_from = std::fs::read(&self.log).unwrap().len();
    }

    /// Numbers of the ledger that were sent when another node took writes, and stand in the old primary's log.
    fn strays(&self, written: &[Written]) -> usize {
        let log = std::fs::read(&self.log).unwrap();
        let log = String::from_utf8_lossy(&log[self.log_from..]).into_owned();
        let replaced = self.replaced.unwrap();
        let later = written.iter().flat_map(|written| &written.sent);
        let later: std::collections::BTreeSet<u64> =
            later.filter(|(_, at)| *at > replaced).map(|(n, _)| *n).collect();
        // Simple statements have the number in them, the others among their parameters.
        let numbers = log
            .lines()
            .filter(|line| line.contains("drill_ledger") || line.contains("parameters: "))
            .filter_map(|line| {
                let digits = |c: char| !c.is_ascii_digit();
                line.split(digits).rfind(|part| !part.is_empty())?.parse().ok()
            });
        numbers.filter(|n: &u64| later.contains(n)).count()
    }
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
