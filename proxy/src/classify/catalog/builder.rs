//! A catalogue being read: rows come in any order, and what they mean together is judged when all are there.

use std::collections::HashMap;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use foldhash::quality::FixedState;

use super::super::builtins::{self, Special};
use super::hidden::Hidden;
use super::{
    BUILTINS, Because, CatalogError, CatalogRow, Function, FunctionCatalog, FunctionOverrides, Implicit,
    Known, Mark, MarkFilter, Name,
};

/// Operators that statements use without writing them: by IN, LIKE, BETWEEN, CASE, JOIN … USING, ORDER BY and others.
const IMPLIED_OPERATORS: &[&[u8]] = &[
    b"=", b"<>", b"<", b">", b"<=", b">=", b"~", b"!~", b"~~", b"!~~", b"~~*", b"!~~*",
];

/// A catalogue being read.
pub(super) struct Builder<'o> {
    overrides: &'o FunctionOverrides,
    names: HashMap<Name, Known, RandomState>,
    /// (relation, function called in it, whether the function is PostgreSQL's own): judged when all is read.
    calls: Vec<(Name, Name, bool)>,
    /// (relation, relation mentioned in it).
    mentions: Vec<(Name, Name)>,
    content: u64,
    server_version_num: u32,
    functions: usize,
    sequences: bool,
    because: HashMap<Name, Because, RandomState>,
    implicit: Option<Implicit>,
    hidden: Hidden,
}

impl<'o> Builder<'o> {
    pub(super) fn new(overrides: &'o FunctionOverrides) -> Self {
        let mut builder = Self {
            overrides,
            names: HashMap::default(),
            calls: Vec::new(),
            mentions: Vec::new(),
            content: FixedState::default().hash_one((&overrides.allow, &overrides.deny)),
            server_version_num: 0,
            functions: 0,
            sequences: false,
            because: HashMap::default(),
            implicit: None,
            hidden: Hidden::default(),
        };
        for &(name, special) in builtins::SPECIAL {
            builder.known(name.as_bytes()).special = special;
        }
        for name in builtins::PRIMARY_RELATIONS {
            builder.mark(name.as_bytes(), Mark::Primary, Because::NodeOwn);
        }
        builder
    }

    fn known(&mut self, name: &[u8]) -> &mut Known {
        self.names.entry(name.into()).or_default()
    }

    fn mark(&mut self, name: &[u8], mark: Mark, because: Because) {
        let known = self.known(name);
        if known.mark < mark {
            known.mark = mark;
            self.because.insert(name.into(), because);
        }
    }

    fn imply(&mut self, row: CatalogRow<'_>) {
        self.implicit.get_or_insert_with(|| Implicit {
            name: row.name.into(),
            function: row.detail.into(),
        });
    }

    pub(super) fn add(&mut self, row: CatalogRow<'_>) -> Result<(), CatalogError> {
        if row.kind == BUILTINS {
            // Which server it was changes nothing.
            return Ok(());
        }
        // A sum does not depend on the order of the rows, which the query leaves open.
        let hash = FixedState::default().hash_one((row.kind, row.name, row.detail, row.system));
        self.content = self.content.wrapping_add(hash);
        if self.add_hidden(row) {
            return Ok(());
        }
        match row.kind {
            b'x' => self.server_version_num = number(row.detail).ok_or_else(|| wrong_detail(row))?,
            b'f' => self.add_function(row)?,
            b'o' if self.is_harmless(row.detail, row.system) => {}
            b'o' => {
                self.known(row.name).operator = true;
                self.because
                    .insert(row.name.into(), Because::Calls(row.detail.into()));
                if IMPLIED_OPERATORS.contains(&row.name) {
                    self.imply(row);
                }
            }
            b't' if self.is_harmless(row.detail, row.system) => {}
            b't' => self.mark(row.name, Mark::Volatile, Because::Calls(row.detail.into())),
            b'c' if self.is_harmless(row.detail, row.system) => {}
            b'c' => self.imply(row),
            b'a' if self.is_harmless(row.name, row.system) => {}
            b'a' => self.mark(row.name, Mark::Volatile, Because::Attribute),
            b'n' if row.detail == b"S" => {
                self.sequences = true;
                self.mark(row.name, Mark::Primary, Because::Sequence);
            }
            b'n' if row.detail == b"f" => self.mark(row.name, Mark::Primary, Because::Foreign),
            b'n' => self.mark(row.name, Mark::Primary, Because::Unlogged),
            b'r' => self.calls.push((row.name.into(), row.detail.into(), row.system)),
            b'e' | b'd' => self.mentions.push((row.name.into(), row.detail.into())),
            other => return Err(CatalogError::Kind(char::from(other))),
        }
        Ok(())
    }

    /// Takes note of what a row tells of code that runs unseen. True if that is all that it tells.
    fn add_hidden(&mut self, row: CatalogRow<'_>) -> bool {
        let leaves = row.system && leaves_state(row.detail);
        match row.kind {
            b's' | b'q' => self.hidden.source(row.name, row.detail),
            b'u' => self.hidden.unreadable(row.name),
            b'm' => self.hidden.is_made_of(row.name, row.detail),
            b'g' => self.hidden.runs(row.name, row.detail, row.system),
            b'l' => self.hidden.reaches(row.name, row.detail),
            b'v' => self.hidden.event_trigger(row.detail),
            b'r' | b'e' | b't' | b'd' | b'o' => {
                self.hidden.calls(row.name, row.detail, row.system, leaves);
                return false;
            }
            _ => return false,
        }
        true
    }

    fn add_function(&mut self, row: CatalogRow<'_>) -> Result<(), CatalogError> {
        let function = match row.detail {
            b"i" | b"s" => Function::Reads,
            b"v" if self.is_harmless(row.name, row.system) => Function::Reads,
            b"v" => Function::Volatile,
            _ => return Err(wrong_detail(row)),
        };
        self.functions += 1;
        let known = self.known(row.name);
        if known.function != Function::Volatile {
            known.function = function;
        }
        if function == Function::Volatile && !row.system {
            self.hidden.volatile(row.name);
        }
        Ok(())
    }

    /// Whether a volatile function may run on a standby: by the operator's word, or, if it is PostgreSQL's own, by
    /// the list of those that do no harm.
    fn is_harmless(&self, name: &[u8], system: bool) -> bool {
        !named(&self.overrides.deny, name)
            && (named(&self.overrides.allow, name) || (system && named(builtins::HARMLESS, name)))
    }

    /// What a relation is marked with for calling a function.
    fn mark_of_call(&self, function: &[u8], system: bool) -> Mark {
        if self.is_harmless(function, system) {
            return Mark::None;
        }
        let known = self.names.get(function).copied().unwrap_or_default();
        match (known.special, known.function) {
            (Special::Primary | Special::TransactionId, _) => Mark::Primary,
            _ if builtins::is_node_statistics(function) => Mark::Primary,
            (Special::None | Special::CurrentSetting, Function::Reads) => Mark::None,
            _ => Mark::Volatile,
        }
    }

    pub(super) fn finish(mut self) -> FunctionCatalog {
        for name in &self.overrides.deny {
            self.known(name.as_bytes()).function = Function::Volatile;
        }
        for name in self
            .overrides
            .allow
            .iter()
            .filter(|name| !self.overrides.deny.contains(name))
        {
            let known = self.known(name.as_bytes());
            known.function = Function::Reads;
            if matches!(
                known.special,
                Special::Primary | Special::TransactionId | Special::RunsText
            ) {
                known.special = Special::None;
            }
        }
        for (relation, function, system) in std::mem::take(&mut self.calls) {
            let mark = self.mark_of_call(&function, system);
            self.mark(&relation, mark, Because::Calls(function));
        }
        self.spread_marks();
        // Some call volatile functions to show what they show; that they are the primary's says more.
        for name in builtins::PRIMARY_RELATIONS {
            self.known(name.as_bytes()).mark = Mark::Primary;
            self.because.insert(name.as_bytes().into(), Because::NodeOwn);
        }
        let (left, definitions_act) = std::mem::take(&mut self.hidden).finish(&self.overrides.allow);
        for left in left {
            let known = self.known(&left.name);
            known.opaque = left.opaque;
            known.acts = left.acts;
        }
        let mut marks = MarkFilter::new();
        let hides = |known: &Known| known.opaque || known.acts;
        let is_marked = |known: &Known| known.mark != Mark::None || hides(known);
        for (name, _) in self.names.iter().filter(|(_, known)| is_marked(known)) {
            marks.add(name);
        }
        let hidden_beyond_ascii = self
            .names
            .iter()
            .any(|(name, known)| hides(known) && !name.is_ascii());
        let marked_beyond_ascii = self
            .names
            .iter()
            .any(|(name, known)| known.mark != Mark::None && !name.is_ascii());
        FunctionCatalog {
            generation: self.content,
            server_version_num: self.server_version_num,
            functions: self.functions,
            sequences: self.sequences,
            volatile_operators: self.names.values().any(|known| known.operator),
            implicit: self.implicit,
            because: self.because,
            marked_beyond_ascii,
            hidden_beyond_ascii,
            definitions_act,
            marks,
            names: self.names,
        }
    }

    /// Marks every view of a marked relation, and the views of those.
    fn spread_marks(&mut self) {
        let mut mentioned_by: HashMap<&[u8], Vec<&[u8]>, RandomState> = HashMap::default();
        let mut open: Vec<(&[u8], Found<'_>)> = Vec::new();
        for (view, relation) in &self.mentions {
            mentioned_by.entry(relation).or_default().push(view);
            let known = self.names.get(relation).copied().unwrap_or_default();
            let mark = if builtins::is_node_statistics(relation) {
                Mark::Primary
            } else {
                Mark::None
            };
            open.push((relation, (known.mark.max(mark), None)));
        }
        let mut marks: HashMap<&[u8], Found<'_>, RandomState> = HashMap::default();
        while let Some((relation, (mark, from))) = open.pop() {
            let seen = marks.entry(relation).or_default();
            if seen.0 < mark {
                *seen = (mark, from);
                let views = mentioned_by.get(relation).into_iter().flatten();
                open.extend(views.map(|view| (*view, (mark, Some(relation)))));
            }
        }
        for (name, (mark, from)) in marks {
            let known = self.names.entry(name.into()).or_default();
            if known.mark < mark {
                known.mark = mark;
                let because = from.map_or(Because::NodeOwn, |from| Because::Reads(from.into()));
                self.because.insert(name.into(), because);
            }
        }
    }
}

/// A mark, and the relation that has it, where it was found there.
type Found<'a> = (Mark, Option<&'a [u8]>);

/// Whether a function of PostgreSQL's own leaves something in its session, or may.
fn leaves_state(function: &[u8]) -> bool {
    builtins::SPECIAL.iter().any(|(name, special)| {
        name.as_bytes() == function
            && matches!(
                special,
                Special::SetConfig
                    | Special::AdvisoryLock
                    | Special::AdvisoryUnlock
                    | Special::SessionState
                    | Special::RunsText
            )
    })
}

fn named(names: &[impl AsRef<str>], name: &[u8]) -> bool {
    names.iter().any(|known| known.as_ref().as_bytes() == name)
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn wrong_detail(row: CatalogRow<'_>) -> CatalogError {
    CatalogError::Detail {
        kind: char::from(row.kind),
        name: String::from_utf8_lossy(row.name).into_owned(),
        detail: String::from_utf8_lossy(row.detail).into_owned(),
    }
}
