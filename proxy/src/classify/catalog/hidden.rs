//! Which names leave something in a session without saying so: functions by what their source says and calls, relations
//! by the functions that run unseen when they are written.
//!
//! Names are nodes, and what one of them has behind it is an edge to it. What is known of some names at first spreads
//! along the edges, against their direction, until nothing changes: an INSERT into a table fires a trigger, whose function
//! writes to another table, on which stands a trigger whose function takes a lock.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::super::source::{Leaves, Source};
use super::{NAME_BYTES_MAX, Name, fold};

/// What a name has behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    /// A function that runs wherever the name is named: a view's, a type's, an operator's, an aggregate's.
    Calls,
    /// Anything that is named in a function's source.
    Source,
    /// A function that runs when the relation is written.
    Runs,
    /// A relation that is written with it.
    Reaches,
}

#[derive(Debug, Default)]
struct Node {
    /// Something is left wherever it is named.
    opaque: bool,
    /// Something is left when it is written.
    acts: bool,
    /// Its source was read, or it is known to leave nothing.
    sourced: bool,
    /// It is a volatile function that is not PostgreSQL's own.
    volatile: bool,
    /// Who has it behind it.
    behind: Vec<(u32, Edge)>,
}

/// Names while a catalogue is read.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    numbers: HashMap<Name, u32, RandomState>,
    nodes: Vec<Node>,
    event_triggers: Vec<u32>,
}

/// A name that leaves something.
pub(super) struct Left {
    pub(super) name: Name,
    pub(super) opaque: bool,
    pub(super) acts: bool,
}

impl Hidden {
    fn number(&mut self, name: &[u8]) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let number = u32::try_from(self.nodes.len()).expect("no catalogue has four billion names");
        self.nodes.push(Node::default());
        self.numbers.insert(name.into(), number);
        number
    }

    fn node(&mut self, name: &[u8]) -> &mut Node {
        let number = self.number(name);
        &mut self.nodes[number as usize]
    }

    fn join(&mut self, name: &[u8], other: &[u8], edge: Edge) {
        let (name, other) = (self.number(name), self.number(other));
        self.nodes[other as usize].behind.push((name, edge));
    }

    /// A volatile function that is not PostgreSQL's own: opaque unless its source is told as well.
    pub(super) fn volatile(&mut self, name: &[u8]) {
        self.node(name).volatile = true;
    }

    /// A function's source. That it is declared stable or immutable says nothing of what it leaves: the text that such a one
    /// makes up may take a lock as well.
    pub(super) fn source(&mut self, name: &[u8], told: &[u8]) {
        // Rows of a file are lines.
        let text: Vec<u8> = told
            .iter()
            .map(|&byte| if byte == 0x1e { b'\n' } else { byte })
            .collect();
        let source = Source::of(&text);
        let node = self.node(name);
        node.sourced = true;
        node.opaque |= source.leaves != Leaves::Nothing;
        for written in source.names {
            let mut buffer = [0; NAME_BYTES_MAX];
            let other = fold(written, &mut buffer).0;
            if other != name {
                self.join(name, other, Edge::Source);
            }
        }
    }

    /// A volatile function that nobody can read.
    pub(super) fn unreadable(&mut self, name: &[u8]) {
        self.node(name).opaque = true;
    }

    /// `name` runs a function wherever it is named, or is made of what does. `leaves`: whether that is one of
    /// PostgreSQL's own that is known to leave something.
    pub(super) fn calls(&mut self, name: &[u8], function: &[u8], system: bool, leaves: bool) {
        if leaves {
            self.node(name).opaque = true;
        } else if !system {
            self.join(name, function, Edge::Calls);
        }
    }

    /// An aggregate is made of a function: what they leave is what it leaves.
    pub(super) fn is_made_of(&mut self, aggregate: &[u8], function: &[u8]) {
        self.join(aggregate, function, Edge::Calls);
        self.node(aggregate).sourced = true;
    }

    /// A relation runs a function when it is written.
    pub(super) fn runs(&mut self, relation: &[u8], function: &[u8], system: bool) {
        if system {
            self.node(relation).acts = true;
        } else {
            self.join(relation, function, Edge::Runs);
        }
    }

    /// What writes to a relation writes to the other as well.
    pub(super) fn reaches(&mut self, relation: &[u8], other: &[u8]) {
        self.join(relation, other, Edge::Reaches);
    }

    /// An event trigger's function, which any definition runs.
    pub(super) fn event_trigger(&mut self, function: &[u8]) {
        let number = self.number(function);
        self.event_triggers.push(number);
    }

    /// The names that leave something, and whether an event trigger does. Functions that the operator vouches for leave
    /// nothing.
    pub(super) fn finish(mut self, allowed: &[String]) -> (Vec<Left>, bool) {
        let mut vouched = vec![false; self.nodes.len()];
        for name in allowed {
            if let Some(&number) = self.numbers.get(name.as_bytes()) {
                vouched[number as usize] = true;
            }
        }
        let mut open: Vec<u32> = Vec::new();
        for (number, node) in (0..).zip(&mut self.nodes) {
            node.opaque |= node.volatile && !node.sourced;
            node.opaque &= !vouched[number as usize];
            if node.opaque || node.acts {
                open.push(number);
            }
        }
        while let Some(number) = open.pop() {
            let node = &mut self.nodes[number as usize];
            let (opaque, acts) = (node.opaque, node.acts);
            // A node comes again if more becomes known of it.
            let behind = node.behind.clone();
            for (other, edge) in behind {
                let other_node = &mut self.nodes[other as usize];
                let before = (other_node.opaque, other_node.acts);
                match edge {
                    Edge::Calls => other_node.opaque |= opaque,
                    Edge::Source => other_node.opaque |= opaque || acts,
                    Edge::Runs => other_node.acts |= opaque,
                    Edge::Reaches => other_node.acts |= acts,
                }
                other_node.opaque &= !vouched[other as usize];
                if before != (other_node.opaque, other_node.acts) {
                    open.push(other);
                }
            }
        }
        let events = self
            .event_triggers
            .iter()
            .any(|&function| self.nodes[function as usize].opaque);
        let nodes = &self.nodes;
        let left = self.numbers.into_iter().filter_map(|(name, number)| {
            let node = &nodes[number as usize];
            (node.opaque || node.acts).then_some(Left {
                name,
                opaque: node.opaque,
                acts: node.acts,
            })
        });
        (left.collect(), events)
    }
}
