//! Sessions that write a row of their own and read it and others' back, wherever they are sent: each sees what it has
//! written, and what it has seen it goes on seeing.
//!
//! But for one case, which is PostgreSQL's own and is counted apart: with synchronous replication a commit is seen on a
//! standby that has replayed it while the primary still waits for its acknowledgement, and shows it to nobody
//! (`CommitTransaction` in xact.c waits in `SyncRepWaitForLSN` before `ProcArrayEndTransaction`). Who has seen it there and
//! then reads on the primary can see less for a moment.

use std::collections::{BTreeSet, VecDeque};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::caller::{Caller, Heard};
use crate::chance::Chance;
use crate::promises::{Doubts, Promises};
use crate::stage::Stage;
use crate::standbys::Standbys;
use crate::support::message::{bind, execute, parse, query, sync, unnamed};
use crate::support::{Address, Answer};
use crate::witness::Witness;

const SESSIONS: usize = 8;
/// Between two statements of one session.
const PACE: Duration = Duration::from_millis(4);
/// Statements that a violation shows.
const REMEMBERED: usize = 30;

/// Rows, and a line for each write in the write's own transaction, which nobody overwrites.
pub(crate) const TABLES: &str = "CREATE TABLE seen (session int PRIMARY KEY, n bigint NOT NULL); \
     INSERT INTO seen SELECT session, 0 FROM generate_series(0, 7) session; \
     CREATE TABLE seen_log (session int, n bigint); \
     CREATE FUNCTION log_seen() RETURNS trigger LANGUAGE plpgsql AS \
     'BEGIN INSERT INTO seen_log VALUES (NEW.session, NEW.n); RETURN NULL; END'; \
     CREATE TRIGGER log_seen AFTER UPDATE ON seen FOR EACH ROW EXECUTE FUNCTION log_seen()";

const READ: &str = "SELECT n, inet_server_port() FROM seen WHERE session = $1";

/// The clients at work.
pub(crate) struct Sessions {
    sessions: Vec<JoinHandle<Counts>>,
}

/// What a session did.
#[derive(Debug, Default)]
struct Counts {
    writes: Promises,
    reads: u64,
    /// Reads on the primary that showed less than a standby had before.
    ahead: u64,
}

/// The least that a read of a row may show.
#[derive(Clone, Copy, Debug, Default)]
struct Least {
    n: u64,
    /// Whether only a read on a standby has shown it.
    by_standby: bool,
}

impl Sessions {
    pub(crate) fn start(
        address: &Address,
        seed: u64,
        standbys: &Standbys,
        witness: &'static Witness,
    ) -> Self {
        let sessions = (0..SESSIONS)
            .map(|own| {
                let setup = [parse("read", READ), sync()].concat();
                let session = Session {
                    caller: Caller::new("sessions", own, address, setup, witness),
                    chance: Chance::new(seed ^ (own as u64 + 1_001)),
                    own,
                    n: 0,
                    unknown: BTreeSet::new(),
                    least: [Least::default(); SESSIONS],
                    standbys: standbys.clone(),
                    counts: Counts::default(),
                    recent: VecDeque::new(),
                };
                thread::spawn(move || session.run())
            })
            .collect();
        Self { sessions }
    }

    /// Waits for the clients, and compares with what the primary has. Returns a line for the summary.
    pub(crate) fn audit(self, stage: &Stage) -> String {
        let witness = stage.witness;
        let counted = witness.joined("the sessions", self.sessions);
        let mut direct = stage.primary_to_compare();
        let (mut acknowledged, mut reads, mut ahead) = (0, 0, 0);
        let mut doubts = Doubts::default();
        for (number, counts) in counted.iter().enumerate() {
            acknowledged += counts.writes.acknowledged.len();
            reads += counts.reads;
            ahead += counts.ahead;
            if let Some(direct) = &mut direct {
                let there = format!("SELECT n FROM seen_log WHERE session = {number}");
                doubts += counts
                    .writes
                    .compare(&format!("session {number}"), direct, &there, witness);
            }
        }
        let compared = match direct {
            Some(_) => {
                witness.explains("sessions", doubts.count());
                doubts.to_string()
            }
            None => "not compared".to_owned(),
        };
        format!(
            "{reads} reads of sessions behind {acknowledged} writes of theirs, {compared}; {ahead} reads on the primary of \
             what a standby had shown before it was acknowledged"
        )
    }
}

struct Session {
    caller: Caller,
    chance: Chance,
    own: usize,
    /// The last number sent.
    n: u64,
    /// Numbers of unknown outcome since the last that was acknowledged.
    unknown: BTreeSet<u64>,
    /// What was seen of each row: less must not come.
    least: [Least; SESSIONS],
    standbys: Standbys,
    counts: Counts,
    recent: VecDeque<String>,
}

impl Session {
    fn run(mut self) -> Counts {
        while !self.caller.is_over() {
            if self.chance.below(4) == 0 {
                self.write();
            } else {
                let row = match self.chance.below(2) {
                    0 => self.own,
                    _ => self.chance.index(SESSIONS),
                };
                self.counts.reads += u64::from(self.read(row));
            }
            thread::sleep(PACE);
        }
        self.counts
    }

    fn write(&mut self) {
        self.n += 1;
        let update = format!("UPDATE seen SET n = {} WHERE session = {}", self.n, self.own);
        let request = match self.chance.below(3) {
            0 => query(&update),
            1 => [unnamed(&update, &[]), sync()].concat(),
            _ => query(&format!("BEGIN; {update}; COMMIT")),
        };
        let heard = self.caller.ask(&request);
        self.note(&format!("wrote {}: {}", self.n, outcome(&heard)));
        match heard {
            Heard::Answer(_) => {
                // It waited for whatever of unknown outcome was still under way.
                self.unknown.clear();
                self.least[self.own] = Least {
                    n: self.n,
                    by_standby: false,
                };
                self.caller.made_progress();
                self.counts.writes.acknowledged.push(self.n);
            }
            Heard::Error(sqlstate) if sqlstate != "08007" => self.counts.writes.failed.push(self.n),
            Heard::Error(_) => {
                self.unknown.insert(self.n);
                self.counts.writes.unknown.push(self.n);
            }
            Heard::Gone => {
                self.begin_anew();
                self.counts.writes.unknown.push(self.n);
            }
        }
    }

    /// With a connection ends what was promised to its session.
    fn begin_anew(&mut self) {
        self.least = [Least::default(); SESSIONS];
        self.unknown = (0..=self.n).collect();
    }

    fn read(&mut self, row: usize) -> bool {
        let text = row.to_string();
        let request = match self.chance.below(3) {
            0 => query(&READ.replace("$1", &text)),
            1 => [unnamed(&READ.replace("$1", "$1::int"), &[Some(&text)]), sync()].concat(),
            _ => [bind("", "read", &[Some(&text)]), execute("", 0), sync()].concat(),
        };
        let heard = self.caller.ask(&request);
        let Heard::Answer(answer) = heard else {
            self.note(&format!("read {row}: {}", outcome(&heard)));
            if matches!(heard, Heard::Gone) {
                self.begin_anew();
            }
            return false;
        };
        let (seen, port) = told(&answer);
        self.note(&format!("read {row}: {seen} from {port}"));
        let least = self.least[row];
        let by_standby = self.standbys.contains(port);
        let known = row != self.own || seen == least.n || self.unknown.contains(&seen);
        if seen < least.n && least.by_standby && !by_standby {
            self.counts.ahead += 1;
        } else if seen < least.n || !known {
            let promise = if row == self.own {
                "its own write"
            } else {
                "what it had seen"
            };
            let recent: Vec<_> = self.recent.iter().map(String::as_str).collect();
            self.caller.witness().violation(&format!(
                "session {} read {seen} of row {row} and not {promise} ({least:?}, in doubt {:?}):\n    {}",
                self.own,
                self.unknown,
                recent.join("\n    ")
            ));
        }
        if seen != least.n {
            self.least[row] = Least { n: seen, by_standby };
        } else {
            self.least[row].by_standby &= by_standby;
        }
        true
    }

    fn note(&mut self, words: &str) {
        let at = self.caller.witness().seconds(Instant::now());
        self.recent.push_back(format!("{at:.3} s: {words}"));
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
    }
}

fn outcome(heard: &Heard) -> &str {
    match heard {
        Heard::Answer(_) => "done",
        Heard::Error(sqlstate) => sqlstate,
        Heard::Gone => "gone",
    }
}

fn told(answer: &Answer) -> (u64, u16) {
    let row = &answer.rows[0];
    let text = |column: usize| row[column].as_deref().unwrap();
    (text(0).parse().unwrap(), text(1).parse().unwrap())
}
