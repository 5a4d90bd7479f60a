//! Who keeps what happened: faults with their times, what clients were told, and what should not have been.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long `failover.hold` of the proxy is: who is told 57P03 has waited as long.
pub(crate) const HOLD: Duration = Duration::from_secs(60);
/// `pool.wait_timeout`: who is told 53300 has waited as long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Clocks and timers are not exact.
const TOLERANCE: Duration = Duration::from_millis(500);
/// Behind a fault that is over its consequences may still be told: an answer that was on its way, a connection that was
/// black-holed and is found out now.
const GRACE: Duration = Duration::from_secs(3);
/// Violations printed as they are found; all are counted.
const TOLD_AT_ONCE: usize = 50;

/// A fault, or the time until the cluster was whole behind some.
#[derive(Clone, Debug)]
struct Incident {
    words: String,
    /// Whether it excuses errors.
    breaks: bool,
    began: Instant,
    ended: Option<Instant>,
}

/// A number that grows while a client gets through.
#[derive(Debug, Default)]
pub(crate) struct Progress(AtomicU64);

impl Progress {
    pub(crate) fn made(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module. It lasts as long as the process.
pub(crate) struct Witness {
    began: Instant,
    over: AtomicBool,
    incidents: Mutex<Vec<Incident>>,
    /// By who was told and what: SQLSTATE and message.
    errors: Mutex<BTreeMap<(String, String), usize>>,
    violations: Mutex<Vec<String>>,
    progress: Mutex<Vec<(String, &'static Progress)>>,
    /// The longest that anybody waited for an answer, in milliseconds.
    longest_ms: AtomicU64,
}

/// When an error may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excuse {
    /// At any time: the database's own answer to transactions that get in each other's way.
    Always,
    /// While something is broken.
    InTrouble,
    Never,
}

/// The failure table and the limits of `docs/ARCHITECTURE.md`, from the client's side.
fn excuse(who: &str, sqlstate: &str, message: &str, waited: Duration) -> Excuse {
    match sqlstate {
        "40001" if message.starts_with("could not serialize access") => Excuse::Always,
        // Transactions of the lists append in any order.
        "40P01" if who == "lists" => Excuse::Always,
        // A standby's replay goes over whoever reads what was vacuumed, where hot_standby_feedback was interrupted.
        "40001" if message.starts_with("canceling statement due to conflict with recovery") => {
            Excuse::InTrouble
        }
        // A node that becomes wait_primary has pg_autoctl cancel who waits for a standby, by what pg_stat_activity said a moment
        // ago: whoever has been let go meanwhile is hit in the statement behind.
        "57014" if message == "canceling statement due to user request" => Excuse::InTrouble,
        "40001" | "08007" | "57P01" | "57P02" => Excuse::InTrouble,
        "57P03" if waited + TOLERANCE >= HOLD => Excuse::InTrouble,
        "53300" if waited + TOLERANCE >= WAIT_TIMEOUT => Excuse::InTrouble,
        _ => Excuse::Never,
    }
}

impl Witness {
    /// One that is never dropped, for threads to share.
    pub(crate) fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            began: Instant::now(),
            over: AtomicBool::new(false),
            incidents: Mutex::default(),
            errors: Mutex::default(),
            violations: Mutex::default(),
            progress: Mutex::default(),
            longest_ms: AtomicU64::new(0),
        }))
    }

    /// Seconds since the beginning.
    pub(crate) fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.began).as_secs_f64()
    }

    /// Microseconds since the beginning.
    pub(crate) fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began).as_micros();
        u64::try_from(since).expect("a run is shorter than 500,000 years")
    }

    /// Prints a line with its time.
    pub(crate) fn say(&self, words: &str) {
        println!("{:8.1} s  {words}", self.seconds(Instant::now()));
    }

    /// Whether the workloads have to end.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// A fault begins, before it is done. Returns what [`Witness::ended`] takes.
    /// Only where it `breaks` something may anybody be told an error.
    pub(crate) fn begins(&self, words: String, breaks: bool) -> usize {
        self.say(&format!("begins  {words}"));
        let mut incidents = self.incidents.lock().unwrap();
        incidents.push(Incident {
            words,
            breaks,
            began: Instant::now(),
            ended: None,
        });
        incidents.len() - 1
    }

    /// A fault is over.
    pub(crate) fn ended(&self, number: usize) {
        let words = {
            let mut incidents = self.incidents.lock().unwrap();
            incidents[number].ended = Some(Instant::now());
            incidents[number].words.clone()
        };
        self.say(&format!("over    {words}"));
    }

    /// Whether anything was broken in that time, or shortly before it.
    fn troubled(&self, from: Instant, to: Instant) -> bool {
        let incidents = self.incidents.lock().unwrap();
        incidents.iter().any(|incident| {
            incident.breaks
                && incident.began <= to
                && incident.ended.is_none_or(|ended| from <= ended + GRACE)
        })
    }

    /// Somebody was told an error. `history` is what led there, for a violation.
    pub(crate) fn error(
        &self,
        who: &str,
        (sqlstate, message): (&str, &str),
        (asked, told): (Instant, Instant),
        history: &str,
    ) {
        let waited = told.saturating_duration_since(asked);
        let what = format!("{sqlstate} {message}");
        *self
            .errors
            .lock()
            .unwrap()
            .entry((who.to_owned(), what.clone()))
            .or_default() += 1;
        let allowed = match excuse(who, sqlstate, message, waited) {
            Excuse::Always => true,
            Excuse::InTrouble => self.troubled(asked, told),
            Excuse::Never => false,
        };
        if !allowed {
            self.violation(&format!(
                "{who} was told {what:?} after {:.1} s, with {} broken{history}",
                waited.as_secs_f64(),
                if self.troubled(asked, told) {
                    "something"
                } else {
                    "nothing"
                }
            ));
        }
    }

    /// Somebody had an answer.
    pub(crate) fn answered(&self, asked: Instant) {
        let waited = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.longest_ms.fetch_max(waited, Ordering::Relaxed);
    }

    /// Something happened that must not.
    pub(crate) fn violation(&self, words: &str) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < TOLD_AT_ONCE {
            println!("{:8.1} s  VIOLATION: {words}", self.seconds(Instant::now()));
        }
        violations.push(format!("at {:.1} s: {words}", self.seconds(Instant::now())));
    }

    /// A client that has to get through whenever nothing is broken.
    pub(crate) fn client(&self, name: String) -> &'static Progress {
        let progress: &'static Progress = Box::leak(Box::default());
        self.progress.lock().unwrap().push((name, progress));
        progress
    }

    /// How far each client has come.
    pub(crate) fn marks(&self) -> Vec<u64> {
        let progress = self.progress.lock().unwrap();
        progress
            .iter()
            .map(|(_, done)| done.0.load(Ordering::Relaxed))
            .collect()
    }

    /// Clients that have not got through since.
    pub(crate) fn stuck_since(&self, marks: &[u64]) -> Vec<String> {
        let progress = self.progress.lock().unwrap();
        let unmoved = progress
            .iter()
            .zip(marks)
            .filter(|((_, done), mark)| done.0.load(Ordering::Relaxed) == **mark);
        unmoved.map(|((name, _), _)| name.clone()).collect()
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// The faults with their times, one a line.
    pub(crate) fn chronicle(&self) -> String {
        let mut text = String::new();
        for incident in self.incidents.lock().unwrap().iter() {
            let ended = incident
                .ended
                .map_or_else(String::new, |ended| format!("{:.1}", self.seconds(ended)));
            let _ = writeln!(
                text,
                "{:8.1} to {ended:>8} s  {}",
                self.seconds(incident.began),
                incident.words
            );
        }
        text
    }

    /// How many faults of each kind there were: a kind is what stands before the colon or the parenthesis.
    pub(crate) fn kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for incident in self.incidents.lock().unwrap().iter() {
            let kind = incident
                .words
                .split([':', '('])
                .next()
                .unwrap_or_default()
                .trim_end();
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        kinds
    }

    /// What clients were told, with how often.
    pub(crate) fn errors(&self) -> BTreeMap<(String, String), usize> {
        self.errors.lock().unwrap().clone()
    }

    /// The longest wait for an answer.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_millis(self.longest_ms.load(Ordering::Relaxed))
    }
}
