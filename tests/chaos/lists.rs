//! Transactions at SERIALIZABLE that append to lists and read them, for [`crate::history`] to judge.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::caller::{Caller, Heard};
use crate::chance::Chance;
use crate::history::{self, Element, Key, Op, Outcome, Transaction};
use crate::promises::Doubts;
use crate::stage::Stage;
use crate::support::Address;
use crate::support::message::query;
use crate::witness::Witness;

/// A list is text: elements with a space behind each.
pub(crate) const TABLE: &str = "CREATE TABLE lists (k int PRIMARY KEY, v text NOT NULL)";
const WORKERS: u32 = 5;
/// Lists that are used at a time, and elements in all until the next ones are taken: lists stay short.
const ACTIVE: u32 = 6;
const ELEMENTS: u32 = 200;
/// Between two transactions of one client.
const PACE: Duration = Duration::from_millis(15);

/// The clients at work.
pub(crate) struct Lists {
    workers: Vec<JoinHandle<Vec<Transaction>>>,
}

impl Lists {
    pub(crate) fn start(address: &Address, seed: u64, witness: &'static Witness) -> Self {
        let elements = Arc::new(AtomicU32::new(0));
        let workers = (0..WORKERS)
            .map(|process| {
                let caller = Caller::new("lists", process as usize, address, Vec::new(), witness);
                let worker = Worker {
                    caller,
                    process,
                    chance: Chance::new(seed ^ (u64::from(process) + 101)),
                    elements: Arc::clone(&elements),
                };
                thread::spawn(move || worker.run())
            })
            .collect();
        Self { workers }
    }

    /// Waits for the clients and checks their history. Returns it, and a line for the summary.
    pub(crate) fn audit(self, stage: &Stage) -> (Vec<Transaction>, String) {
        let witness = stage.witness;
        let mut history = witness.joined("the lists", self.workers).concat();
        history.sort_by_key(|transaction| transaction.began);
        let count = |outcome| {
            let told = history.iter();
            told.filter(|transaction| transaction.outcome == outcome).count()
        };
        let (committed, failed) = (count(Outcome::Committed), count(Outcome::Failed));
        let summary = format!("{committed} transactions at SERIALIZABLE committed, {failed} failed");
        let Some(mut direct) = stage.primary_to_compare() else {
            return (history, format!("{summary}; not compared"));
        };
        let rows = direct.run("SELECT k, v FROM lists").rows;
        let at_the_end: BTreeMap<Key, Vec<Element>> = rows
            .iter()
            .map(|row| {
                let text = |column: usize| row[column].as_deref().unwrap();
                (text(0).parse().unwrap(), list(text(1)))
            })
            .collect();
        for finding in history::check(&history, &at_the_end) {
            let mut words = format!("lists: {}: {}", finding.anomaly, finding.words);
            for place in finding.transactions {
                let _ = write!(words, "\n    {place}: {:?}", history[place]);
            }
            witness.violation(&words);
        }
        let doubts = doubts(&history, &at_the_end, witness);
        witness.explains("lists", doubts.count());
        let lists = at_the_end.len();
        (history, format!("{summary}, {doubts}, over {lists} lists"))
    }
}

/// What became of transactions of unknown outcome: all of one, or nothing. One that only read had no effect.
fn doubts(history: &[Transaction], at_the_end: &BTreeMap<Key, Vec<Element>>, witness: &Witness) -> Doubts {
    let mut doubts = Doubts::default();
    let unknown = history
        .iter()
        .filter(|transaction| transaction.outcome == Outcome::Unknown);
    for transaction in unknown {
        let appends = transaction.ops.iter().filter_map(|op| match op {
            Op::Append(key, element) => Some(at_the_end.get(key).is_some_and(|list| list.contains(element))),
            Op::Read(..) => None,
        });
        let there: Vec<bool> = appends.collect();
        if there.contains(&true) && there.contains(&false) {
            witness.violation(&format!("lists: a part took effect of {transaction:?}"));
        }
        doubts.note(there.contains(&true));
    }
    doubts
}

struct Worker {
    caller: Caller,
    process: u32,
    chance: Chance,
    elements: Arc<AtomicU32>,
}

impl Worker {
    fn run(mut self) -> Vec<Transaction> {
        let mut history = Vec::new();
        while !self.caller.is_over() {
            let transaction = self.transaction();
            if transaction.outcome == Outcome::Committed {
                self.caller.made_progress();
            }
            history.push(transaction);
            thread::sleep(PACE);
        }
        history
    }

    /// One to four operations.
    fn plan(&mut self) -> Vec<Op> {
        let reads_only = self.chance.below(5) == 0;
        (0..=self.chance.below(4))
            .map(|_| {
                let first = self.elements.load(Ordering::Relaxed) / ELEMENTS * ACTIVE;
                let key = first + u32::try_from(self.chance.below(u64::from(ACTIVE))).unwrap();
                if reads_only || self.chance.below(2) == 0 {
                    Op::Read(key, Vec::new())
                } else {
                    Op::Append(key, self.elements.fetch_add(1, Ordering::Relaxed) + 1)
                }
            })
            .collect()
    }

    fn transaction(&mut self) -> Transaction {
        let plan = self.plan();
        let appends = plan.iter().any(|op| matches!(op, Op::Append(..)));
        // What only reads may say so: at this level it has to run on the primary all the same.
        let begin = match !appends && self.chance.below(2) == 0 {
            true => "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            false => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        };
        let at_once = self.chance.below(4) == 0;
        let began = Instant::now();
        let (ops, outcome) = if at_once {
            self.run_at_once(begin, plan)
        } else {
            self.run_in_steps(begin, plan)
        };
        let witness = self.caller.witness();
        Transaction {
            process: self.process,
            ops,
            outcome,
            began: witness.micros(began),
            ended: witness.micros(Instant::now()),
        }
    }

    /// Everything in one message.
    fn run_at_once(&mut self, begin: &str, mut plan: Vec<Op>) -> (Vec<Op>, Outcome) {
        let all: Vec<_> = plan.iter().map(sql).collect();
        let outcome = match self
            .caller
            .ask(&query(&format!("{begin}; {}; COMMIT", all.join("; "))))
        {
            Heard::Answer(answer) => {
                let reads = plan.iter_mut().filter_map(|op| match op {
                    Op::Read(_, list) => Some(list),
                    Op::Append(..) => None,
                });
                for (read, row) in reads.zip(&answer.rows) {
                    *read = list(row[0].as_deref().unwrap_or_default());
                }
                self.committed(&answer.tags)
            }
            Heard::Error(sqlstate) => {
                self.caller.roll_back();
                failed(&sqlstate)
            }
            Heard::Gone => Outcome::Unknown,
        };
        (answered(plan, outcome), outcome)
    }

    fn run_in_steps(&mut self, begin: &str, mut plan: Vec<Op>) -> (Vec<Op>, Outcome) {
        let outcome = self.steps(begin, &mut plan);
        (answered(plan, outcome), outcome)
    }

    fn steps(&mut self, begin: &str, plan: &mut [Op]) -> Outcome {
        let statements: Vec<_> = plan.iter().map(sql).collect();
        if let Err(outcome) = self.step(begin) {
            return outcome;
        }
        for (op, statement) in plan.iter_mut().zip(&statements) {
            match (self.step(statement), op) {
                (Ok(answer), Op::Read(_, read)) => {
                    *read = list(answer.rows[0][0].as_deref().unwrap_or_default());
                }
                (Ok(_), Op::Append(..)) => {}
                (Err(outcome), _) => return outcome,
            }
        }
        match self.caller.ask(&query("COMMIT")) {
            Heard::Answer(answer) => self.committed(&answer.tags),
            Heard::Error(sqlstate) => {
                self.caller.roll_back();
                failed(&sqlstate)
            }
            Heard::Gone => Outcome::Unknown,
        }
    }

    fn step(&mut self, statement: &str) -> Result<crate::support::Answer, Outcome> {
        match self.caller.ask(&query(statement)) {
            Heard::Answer(answer) => Ok(answer),
            Heard::Error(sqlstate) => {
                self.caller.roll_back();
                Err(failed(&sqlstate))
            }
            // No COMMIT was sent.
            Heard::Gone => Err(Outcome::Failed),
        }
    }

    fn committed(&self, tags: &[String]) -> Outcome {
        if tags.last().is_some_and(|tag| tag == "COMMIT") {
            return Outcome::Committed;
        }
        let words = format!("lists: a COMMIT was answered {tags:?}");
        self.caller.witness().violation(&words);
        Outcome::Failed
    }
}

/// A transaction that did not get through has no reads to believe, but its appends may show.
fn answered(mut ops: Vec<Op>, outcome: Outcome) -> Vec<Op> {
    if outcome != Outcome::Committed {
        ops.retain(|op| matches!(op, Op::Append(..)));
    }
    ops
}

fn failed(sqlstate: &str) -> Outcome {
    match sqlstate {
        "08007" => Outcome::Unknown,
        _ => Outcome::Failed,
    }
}

/// Both answer in a way that tells them apart: a read always has one row.
fn sql(op: &Op) -> String {
    match op {
        Op::Append(key, element) => format!(
            "INSERT INTO lists VALUES ({key}, '{element} ') ON CONFLICT (k) DO UPDATE SET v = lists.v || excluded.v"
        ),
        Op::Read(key, _) => format!("SELECT coalesce((SELECT v FROM lists WHERE k = {key}), '')"),
    }
}

fn list(text: &str) -> Vec<Element> {
    text.split_whitespace()
        .map(|element| element.parse().unwrap())
        .collect()
}
