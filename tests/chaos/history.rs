//! Lists that transactions append to and read: what their history says of the database's isolation.
//!
//! Each element is appended once in the whole run, so a list that was read tells which transactions wrote what it holds
//! and in which order. From that come the dependencies between transactions (A. Adya, "Weak Consistency", 1999; P. Alvaro
//! and K. Kingsbury, "Elle", VLDB 2020): `ww`, the next element is another's; `wr`, somebody reads it; `rw`, somebody read
//! the list without it. A cycle of them is a history that no order of the transactions explains.
//!
//! What is found, and what a history is assumed to have, stands in `docs/chaos.md`. Pure: no clock, no database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// Microseconds since the run began.
pub(crate) type Time = u64;
/// An element: no two appends have the same.
pub(crate) type Element = u32;
/// A list's name.
pub(crate) type Key = u32;

/// What a transaction did to a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Put an element at its end.
    Append(Key, Element),
    /// Saw all of it.
    Read(Key, Vec<Element>),
}

/// How it ended, as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Acknowledged.
    Committed,
    /// Told that it has no effect.
    Failed,
    /// Nobody has said.
    Unknown,
}

/// A transaction as its client saw it.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    /// Who ran it.
    pub(crate) process: u32,
    /// In the order in which they were sent. A read that was not answered is not here.
    pub(crate) ops: Vec<Op>,
    pub(crate) outcome: Outcome,
    /// When its first statement was sent, and its last answered.
    pub(crate) began: Time,
    pub(crate) ended: Time,
}

/// What cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Anomaly {
    /// A list with an element twice: an append that took effect twice.
    Duplicate,
    /// An element that nobody has appended.
    Garbage,
    /// Two reads of a list of which neither continues the other.
    IncompatibleOrder,
    /// A transaction does not see what itself has read or appended before.
    Internal,
    /// What a failed transaction appended was read (G1a).
    AbortedRead,
    /// What a transaction appended before its last append to the list was read as the list's end (G1b).
    IntermediateRead,
    /// An acknowledged append, or one that was read, is not there at the end.
    LostAppend,
    /// A transaction did not see what was acknowledged before it began.
    StaleRead,
    /// A cycle of appends (G0).
    DirtyWriteCycle,
    /// A cycle of appends and reads of them (G1c).
    CircularInformation,
    /// A cycle with one read that misses an append: read skew, a lost update (G-single).
    ReadSkew,
    /// A cycle with several such reads: write skew (G2).
    WriteSkew,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Anomaly::Duplicate => "an append took effect twice",
            Anomaly::Garbage => "an element that nobody has appended",
            Anomaly::IncompatibleOrder => "incompatible orders of one list",
            Anomaly::Internal => "a transaction contradicts itself",
            Anomaly::AbortedRead => "G1a: what failed was read",
            Anomaly::IntermediateRead => "G1b: what was not the last word was read",
            Anomaly::LostAppend => "an append is lost",
            Anomaly::StaleRead => "what was acknowledged before was not seen",
            Anomaly::DirtyWriteCycle => "G0: a cycle of appends",
            Anomaly::CircularInformation => "G1c: a cycle of appends and their reads",
            Anomaly::ReadSkew => "G-single: read skew",
            Anomaly::WriteSkew => "G2: write skew",
        })
    }
}

/// One anomaly, and the transactions that show it.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) anomaly: Anomaly,
    pub(crate) words: String,
    /// Places in the history.
    pub(crate) transactions: Vec<usize>,
}

/// Why one transaction has to come before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Ww,
    Wr,
    Rw,
}

/// Checks a history and what each list held when it was over.
pub(crate) fn check(history: &[Transaction], at_the_end: &BTreeMap<Key, Vec<Element>>) -> Vec<Finding> {
    let mut checker = Checker {
        history,
        appended: HashMap::new(),
        orders: BTreeMap::new(),
        findings: Vec::new(),
    };
    checker.note_appends();
    checker.find_orders(at_the_end);
    for (place, transaction) in history.iter().enumerate() {
        if transaction.outcome != Outcome::Failed {
            checker.check_internal(place);
        }
    }
    checker.check_elements();
    checker.check_reads(at_the_end);
    checker.check_cycles();
    checker.findings
}

struct Checker<'a> {
    history: &'a [Transaction],
    /// Who appended an element, and to which list.
    appended: HashMap<Element, (usize, Key)>,
    /// The longest that was read of each list.
    orders: BTreeMap<Key, Vec<Element>>,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    fn find(&mut self, anomaly: Anomaly, transactions: &[usize], words: String) {
        self.findings.push(Finding {
            anomaly,
            words,
            transactions: transactions.to_vec(),
        });
    }

    fn note_appends(&mut self) {
        for (place, transaction) in self.history.iter().enumerate() {
            for op in &transaction.ops {
                if let Op::Append(key, element) = op {
                    let before = self.appended.insert(*element, (place, *key));
                    assert!(
                        before.is_none(),
                        "element {element} is appended twice by the test itself"
                    );
                }
            }
        }
    }

    /// All reads that count, with who read: of a transaction that failed, what it read may be anything.
    fn reads(&self) -> impl Iterator<Item = (usize, Key, &Vec<Element>)> {
        let told = self.history.iter().enumerate();
        told.filter(|(_, transaction)| transaction.outcome == Outcome::Committed)
            .flat_map(|(place, transaction)| {
                transaction.ops.iter().filter_map(move |op| match op {
                    Op::Read(key, list) => Some((place, *key, list)),
                    Op::Append(..) => None,
                })
            })
    }

    /// The order of each list is the longest that was seen of it; all others have to be its beginnings.
    fn find_orders(&mut self, at_the_end: &BTreeMap<Key, Vec<Element>>) {
        let mut orders = at_the_end.clone();
        for (_, key, list) in self.reads() {
            let longest = orders.entry(key).or_default();
            if list.len() > longest.len() {
                longest.clone_from(list);
            }
        }
        let wrong: Vec<_> = self
            .reads()
            .filter(|(_, key, list)| !orders[key].starts_with(list))
            .map(|(place, key, list)| {
                (
                    place,
                    format!("list {key}: read {list:?}, and elsewhere {:?}", orders[&key]),
                )
            })
            .collect();
        for (place, words) in wrong {
            self.find(Anomaly::IncompatibleOrder, &[place], words);
        }
        for (key, order) in &orders {
            let last = at_the_end.get(key).map_or(&[][..], Vec::as_slice);
            if last != order {
                let anomaly = match order.starts_with(last) {
                    true => Anomaly::LostAppend,
                    false => Anomaly::IncompatibleOrder,
                };
                let words = format!("list {key}: at the end {last:?}, read before {order:?}");
                self.find(anomaly, &[], words);
            }
        }
        self.orders = orders;
    }

    /// What a transaction reads continues what itself has read and appended.
    fn check_internal(&mut self, place: usize) {
        let mut known: BTreeMap<Key, (Option<Vec<Element>>, Vec<Element>)> = BTreeMap::new();
        let history = self.history;
        for op in &history[place].ops {
            match op {
                Op::Append(key, element) => known.entry(*key).or_default().1.push(*element),
                Op::Read(key, list) => {
                    let (read, own) = known.entry(*key).or_default();
                    let fits = match read {
                        Some(read) => list.iter().eq(read.iter().chain(own.iter())),
                        None => list.ends_with(own),
                    };
                    if !fits {
                        let words =
                            format!("list {key}: after {read:?} and appending {own:?} it read {list:?}");
                        self.find(Anomaly::Internal, &[place], words);
                    }
                    let (read, own) = known.entry(*key).or_default();
                    *read = Some(list.clone());
                    own.clear();
                }
            }
        }
    }

    /// Elements of every list: once, appended by somebody, and not by who failed.
    fn check_elements(&mut self) {
        for (key, order) in std::mem::take(&mut self.orders) {
            let mut seen = BTreeSet::new();
            for element in &order {
                if !seen.insert(*element) {
                    self.find(
                        Anomaly::Duplicate,
                        &[],
                        format!("list {key}: {element} is there twice"),
                    );
                }
                match self.appended.get(element) {
                    Some((place, to)) if *to == key => {
                        if self.history[*place].outcome == Outcome::Failed {
                            let words = format!("list {key}: {element} was told to have failed");
                            self.find(Anomaly::AbortedRead, &[*place], words);
                        }
                    }
                    _ => self.find(
                        Anomaly::Garbage,
                        &[],
                        format!("list {key}: nobody appended {element}"),
                    ),
                }
            }
            self.orders.insert(key, order);
        }
    }

    fn check_reads(&mut self, at_the_end: &BTreeMap<Key, Vec<Element>>) {
        // For each list and place in it: the earliest moment by which something from there on was acknowledged.
        let mut due: BTreeMap<Key, Vec<Time>> = BTreeMap::new();
        for (key, order) in &self.orders {
            let mut earliest = Time::MAX;
            let mut of_list = vec![Time::MAX; order.len() + 1];
            for (at, element) in order.iter().enumerate().rev() {
                let by = self.appended.get(element).map(|(place, _)| &self.history[*place]);
                if let Some(by) = by.filter(|by| by.outcome == Outcome::Committed) {
                    earliest = earliest.min(by.ended);
                }
                of_list[at] = earliest;
            }
            due.insert(*key, of_list);
        }
        let mut found = Vec::new();
        for (place, key, list) in self.reads() {
            let began = self.history[place].began;
            if due[&key].get(list.len()).is_some_and(|due| *due < began) {
                let words = format!("list {key}: read {list:?}, and more was acknowledged before it began");
                found.push((Anomaly::StaleRead, vec![place], words));
            }
            let Some((writer, _)) = list.last().and_then(|last| self.appended.get(last)) else {
                continue;
            };
            let last_of_writer = self.history[*writer].ops.iter().rev().find_map(|op| match op {
                Op::Append(to, element) if *to == key => Some(*element),
                _ => None,
            });
            if *writer != place && last_of_writer != list.last().copied() {
                let words = format!("list {key}: {list:?} ends in the middle of a transaction");
                found.push((Anomaly::IntermediateRead, vec![place, *writer], words));
            }
        }
        for (element, (place, key)) in &self.appended {
            let there = || at_the_end.get(key).is_some_and(|list| list.contains(element));
            if self.history[*place].outcome == Outcome::Committed && !there() {
                let words = format!("list {key}: {element} is not in {:?}", at_the_end.get(key));
                found.push((Anomaly::LostAppend, vec![*place], words));
            }
        }
        for (anomaly, transactions, words) in found {
            self.find(anomaly, &transactions, words);
        }
    }

    /// Who has to come before whom, and why. A transaction of unknown outcome counts where somebody has seen what it did.
    fn dependencies(&self) -> Vec<BTreeMap<usize, Why>> {
        let mut after: Vec<BTreeMap<usize, Why>> = vec![BTreeMap::new(); self.history.len()];
        let mut add = |from: usize, to: usize, why: Why| {
            if from != to {
                let known = after[from].entry(to).or_insert(why);
                *known = (*known).min(why);
            }
        };
        let writer = |element: &Element| self.appended.get(element).map(|(place, _)| *place);
        for order in self.orders.values() {
            for pair in order.windows(2) {
                if let (Some(first), Some(second)) = (writer(&pair[0]), writer(&pair[1])) {
                    add(first, second, Why::Ww);
                }
            }
        }
        for (place, key, list) in self.reads() {
            if let Some(last) = list.last().and_then(&writer) {
                add(last, place, Why::Wr);
            }
            if let Some(next) = self.orders[&key].get(list.len()).and_then(&writer) {
                add(place, next, Why::Rw);
            }
        }
        after
    }

    fn check_cycles(&mut self) {
        let after = self.dependencies();
        let kinds = [
            (Why::Ww, Anomaly::DirtyWriteCycle),
            (Why::Wr, Anomaly::CircularInformation),
            (Why::Rw, Anomaly::WriteSkew),
        ];
        let mut told: BTreeSet<usize> = BTreeSet::new();
        for (most, anomaly) in kinds {
            for component in components(&after, most) {
                if component.iter().any(|place| told.contains(place)) {
                    continue;
                }
                let (cycle, single) = shortest_cycle(&after, &component, most);
                let anomaly = if single { Anomaly::ReadSkew } else { anomaly };
                let words: Vec<_> = cycle
                    .iter()
                    .zip(cycle.iter().cycle().skip(1))
                    .map(|(from, to)| format!("{from} -{:?}-> {to}", after[*from][to]))
                    .collect();
                told.extend(&component);
                self.find(anomaly, &cycle, words.join(", "));
            }
        }
    }
}

/// Sets of transactions each of which has to come before all others of its set, by dependencies up to `most`
/// (R. Tarjan, 1972, without recursion).
fn components(after: &[BTreeMap<usize, Why>], most: Why) -> Vec<Vec<usize>> {
    const NEW: usize = usize::MAX;
    let count = after.len();
    let (mut index, mut low) = (vec![NEW; count], vec![0; count]);
    let (mut stack, mut stacked) = (Vec::new(), vec![false; count]);
    let (mut next, mut found) = (0, Vec::new());
    for root in 0..count {
        if index[root] != NEW {
            continue;
        }
        let mut path: Vec<(usize, Vec<usize>)> = Vec::new();
        let mut enter = Some(root);
        loop {
            if let Some(place) = enter.take() {
                index[place] = next;
                low[place] = next;
                next += 1;
                stack.push(place);
                stacked[place] = true;
                let ahead = after[place].iter().filter(|(_, why)| **why <= most);
                path.push((place, ahead.map(|(to, _)| *to).collect()));
            }
            let Some((place, ahead)) = path.last_mut() else {
                break;
            };
            let place = *place;
            match ahead.pop() {
                Some(to) if index[to] == NEW => enter = Some(to),
                Some(to) if stacked[to] => low[place] = low[place].min(index[to]),
                Some(_) => {}
                None => {
                    path.pop();
                    if let Some((parent, _)) = path.last() {
                        low[*parent] = low[*parent].min(low[place]);
                    }
                    if low[place] == index[place] {
                        let from = stack.iter().rposition(|other| *other == place);
                        let component = stack.split_off(from.expect("it was put there when it was entered"));
                        component.iter().for_each(|place| stacked[*place] = false);
                        if component.len() > 1 {
                            found.push(component);
                        }
                    }
                }
            }
        }
    }
    found
}

/// A cycle in a component, one with a single `rw` if there is one, and whether it is one of those.
fn shortest_cycle(after: &[BTreeMap<usize, Why>], component: &[usize], most: Why) -> (Vec<usize>, bool) {
    let inside: BTreeSet<usize> = component.iter().copied().collect();
    let edges = |wanted: fn(Why) -> bool| {
        let inside = &inside;
        component.iter().flat_map(move |from| {
            let ahead = after[*from].iter();
            ahead
                .filter(move |(to, why)| inside.contains(to) && wanted(**why))
                .map(move |(to, _)| (*from, *to))
        })
    };
    if most == Why::Rw {
        let single = edges(|why| why == Why::Rw)
            .filter_map(|(from, to)| path(after, &inside, to, from, Why::Wr))
            .min_by_key(Vec::len);
        if let Some(cycle) = single {
            return (cycle, true);
        }
    }
    let cycle = edges(|_| true)
        .filter(|(from, to)| after[*from][to] <= most)
        .filter_map(|(from, to)| path(after, &inside, to, from, most))
        .min_by_key(Vec::len);
    (cycle.expect("a component has a cycle"), false)
}

/// The shortest way between two transactions, both included.
fn path(
    after: &[BTreeMap<usize, Why>],
    inside: &BTreeSet<usize>,
    from: usize,
    to: usize,
    most: Why,
) -> Option<Vec<usize>> {
    let mut came_from = HashMap::from([(from, from)]);
    let mut border = std::collections::VecDeque::from([from]);
    while let Some(place) = border.pop_front() {
        if place == to {
            let mut way = vec![to];
            while way[way.len() - 1] != from {
                way.push(came_from[&way[way.len() - 1]]);
            }
            way.reverse();
            return Some(way);
        }
        for (next, why) in &after[place] {
            if *why <= most && inside.contains(next) && !came_from.contains_key(next) {
                came_from.insert(*next, place);
                border.push_back(*next);
            }
        }
    }
    None
}
