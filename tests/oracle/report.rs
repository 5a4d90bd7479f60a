//! What the trials found, counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use halyard::classify::Explanation;

/// Violations that are shown in full.
const SHOWN: usize = 60;
/// Bytes of a statement that are shown.
const STATEMENT_SHOWN: usize = 300;

/// The sums of a run.
#[derive(Default)]
pub(crate) struct Report {
    /// Query messages and executed portals that came by.
    pub(crate) statements: usize,
    /// Classed as reads and run on both servers.
    pub(crate) reads: usize,
    /// Of these, those by the extended protocol.
    pub(crate) extended: usize,
    /// Of these, those whose results were compared.
    pub(crate) compared: usize,
    /// Reads whose result differs from one run on the primary to the next.
    pub(crate) unsteady: usize,
    /// Reads inside a transaction block or a pipeline that were not tried when it had ended either.
    pub(crate) in_block: usize,
    /// Reads of sessions that have temporary objects or are serializable, hence stay on the primary.
    pub(crate) pinned: usize,
    /// Reads whose session's state could not be seen, for want of privileges.
    pub(crate) unobserved: usize,
    /// Queries that are not classed as reads and were run on both servers.
    pub(crate) others: usize,
    /// Of these, those that a standby could have run, by reason: how many, and one of them.
    needless: BTreeMap<String, (usize, String)>,
    violations: Vec<String>,
}

impl Report {
    /// Something happened that must not.
    pub(crate) fn violation(&mut self, what: &str, statement: &[u8]) {
        self.violations.push(format!("{what}\n    {}", shown(statement)));
    }

    /// A query went to the primary that need not have.
    pub(crate) fn needless(&mut self, explanation: &Explanation, statement: &[u8]) {
        let finding = explanation.decides();
        let token = finding.and_then(|finding| finding.place.as_ref());
        let token = token.map(|place| format!(" {}", place.token.to_ascii_lowercase()));
        let reason = format!("{}{}", explanation.class.rule, token.unwrap_or_default());
        let count = self
            .needless
            .entry(reason)
            .or_insert_with(|| (0, shown(statement)));
        count.0 += 1;
    }

    /// How often something happened that must not.
    pub(crate) fn violations(&self) -> usize {
        self.violations.len()
    }

    /// Whether nothing happened that must not.
    pub(crate) fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// All of it in words.
    pub(crate) fn in_words(&self) -> String {
        let needless: usize = self.needless.values().map(|(count, _)| count).sum();
        let mut text = format!(
            "{} messages; {} reads run on the standby and the primary ({} by the extended protocol), {} of them compared, \
             {} unsteady\n\
             reads not tried: {} in a block, {} in a session that stays on the primary, {} unobserved\n\
             {} other queries tried; needlessly on the primary: {needless} of {} ({:.1} %)\n",
            self.statements,
            self.reads,
            self.extended,
            self.compared,
            self.unsteady,
            self.in_block,
            self.pinned,
            self.unobserved,
            self.others,
            self.reads + needless,
            100.0 * needless as f64 / (self.reads + needless).max(1) as f64,
        );
        let mut reasons: Vec<_> = self.needless.iter().collect();
        reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (reason, (count, example)) in reasons.iter().take(10) {
            let _ = writeln!(text, "{count:>6}  {reason}: {}", example.replace('\n', " "));
        }
        let _ = writeln!(text, "violations: {}", self.violations.len());
        for violation in self.violations.iter().take(SHOWN) {
            let _ = writeln!(text, "- {violation}");
        }
        text
    }
}

fn shown(statement: &[u8]) -> String {
    String::from_utf8_lossy(&statement[..statement.len().min(STATEMENT_SHOWN)]).into_owned()
}
