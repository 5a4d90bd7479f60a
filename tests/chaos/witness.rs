//! Who keeps what happened: faults with their times, what clients were told, and what should not have been.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::excuses::{Excuse, Loss, excuse};

/// When the cluster is whole again the consequences of a fault may still be told: an answer that was on its way, a
/// connection that was black-holed and is found out now.
const GRACE: Duration = Duration::from_secs(3);
/// Violations printed as they are found; all are counted.
const TOLD_AT_ONCE: usize = 50;

/// A fault, or the time until the cluster was whole behind some.
#[derive(Clone, Debug)]
struct Incident {
    words: String,
    /// What is missing until the cluster is whole, which excuses errors.
    losses: &'static [Loss],
    began: Instant,
    /// When nothing was done any more. What it did lasts.
    ended: Option<Instant>,
    /// When the cluster was whole again behind it.
    made_good: Option<Instant>,
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
    /// Only errors that come of these losses may anybody be told, until [`Witness::made_whole`].
    pub(crate) fn begins(&self, words: String, losses: &'static [Loss]) -> usize {
        self.say(&format!("begins  {words}"));
        let mut incidents = self.incidents.lock().unwrap();
        incidents.push(Incident {
            words,
            losses,
            began: Instant::now(),
            ended: None,
            made_good: None,
        });
        incidents.len() - 1
    }

    /// A fault is over, and the cluster may lack for a while what it took: a primary whose server was killed is replaced, or
    /// loses its place, many seconds behind that.
    pub(crate) fn ended(&self, number: usize) {
        let words = {
            let mut incidents = self.incidents.lock().unwrap();
            incidents[number].ended = Some(Instant::now());
            incidents[number].words.clone()
        };
        self.say(&format!("over    {words}"));
    }

    /// The cluster is whole again: of what was over nothing is missing any more.
    pub(crate) fn made_whole(&self) {
        let now = Instant::now();
        let mut incidents = self.incidents.lock().unwrap();
        let over = incidents.iter_mut().filter(|incident| incident.ended.is_some());
        over.for_each(|incident| {
            incident.made_good.get_or_insert(now);
        });
    }

    /// What happened in that time, or was not made good shortly before it.
    fn incidents(&self, from: Instant, to: Instant) -> Vec<Incident> {
        let incidents = self.incidents.lock().unwrap();
        let meanwhile = incidents.iter().filter(|incident| {
            incident.began <= to && incident.made_good.is_none_or(|whole| from <= whole + GRACE)
        });
        meanwhile.cloned().collect()
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
        let Excuse::While(lost) = excuse(who, sqlstate, message, waited) else {
            return;
        };
        let meanwhile = self.incidents(asked, told);
        let mut losses = meanwhile.iter().flat_map(|incident| incident.losses);
        if !losses.any(|loss| lost.contains(loss)) {
            let words: Vec<_> = meanwhile.iter().map(|incident| incident.words.as_str()).collect();
            self.violation(&format!(
                "{who} was told {what:?} after {:.1} s, at {:.1} s, which nothing explains of {words:?}{history}",
                waited.as_secs_f64(),
                self.seconds(told),
            ));
        }
    }

    /// How many transactions of unknown outcome somebody's audit has looked for: all of which this was told.
    pub(crate) fn explains(&self, who: &str, audited: usize) {
        let told = self.told_unknown(who);
        if told > audited {
            self.violation(&format!(
                "{who} was told {told} times that an outcome is unknown, and has {audited} transactions of that"
            ));
        }
    }

    /// How often somebody was told that an outcome is unknown.
    pub(crate) fn told_unknown(&self, who: &str) -> usize {
        let errors = self.errors();
        let told = errors
            .iter()
            .filter(|((whose, what), _)| whose == who && what.starts_with("08007"));
        told.map(|(_, count)| count).sum()
    }

    /// Does something that fails by panicking. None, and a violation, where it does.
    pub(crate) fn attempt<T>(&self, what: &str, work: impl FnOnce() -> T) -> Option<T> {
        let done = catch_unwind(AssertUnwindSafe(work));
        done.map_err(|panic| self.failed(what, &*panic)).ok()
    }

    /// What clients have brought home; nothing, and a violation, of one that has panicked.
    pub(crate) fn joined<T: Default>(
        &self,
        whose: &str,
        clients: impl IntoIterator<Item = JoinHandle<T>>,
    ) -> Vec<T> {
        let joined = clients.into_iter().map(|client| {
            let brought = client.join();
            brought
                .map_err(|panic| self.failed(&format!("a client of {whose}"), &*panic))
                .unwrap_or_default()
        });
        joined.collect()
    }

    fn failed(&self, what: &str, panic: &(dyn Any + Send)) {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        self.violation(&format!("{what} failed: {}", words.unwrap_or("without a word")));
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
