//! What is counted and told of where each request goes.

use std::collections::VecDeque;

use super::Relay;
use super::ledger::{Fate, Owed};
use crate::classify::{Access, Rule};
use crate::error::Report;
use crate::metrics::Counter;
use crate::routing::{Decision, RouteReason};
use crate::session::{Control, Demand, Tallied};
use crate::wire::frontend;

/// Notices that wait until the answers before them are given. Those whose place the server skips after an error are
/// dropped.
#[derive(Debug, Default)]
pub(super) struct Traces(VecDeque<Vec<u8>>);

impl Relay<'_> {
    /// Counts a request that is about to be sent.
    pub(super) fn count_request(&self, demand: &Demand) {
        let (writes, link) = (demand.class.access == Access::Write, &self.link);
        if !is_nothing(demand) {
            self.counters.add_decision(self.decision(demand));
        }
        let reason = match (link.as_primary, writes) {
            (true, false) if link.in_block() => Counter::ReadsOnPrimaryTransaction,
            (true, false) if self.memory.pin.is_some() => Counter::ReadsOnPrimaryPinned,
            (false, true) if !self.replica_port && !link.in_block() => Counter::WritesSentToStandby,
            _ => return,
        };
        self.counters.add(reason, 1);
    }

    /// Counts a request that was sent, for its session.
    pub(super) fn tally_request(&mut self, demand: &Demand) {
        let tally = &self.inbox.tally;
        let parses = self.link.backend.ledger.take_parses();
        tally.add(Tallied::Requests, u64::from(!is_nothing(demand)));
        tally.add(Tallied::Received, (demand.bytes + demand.rest) as u64);
        tally.add(Tallied::ServerParses, u64::from(parses));
    }

    /// Counts a message of the client's, for its session.
    #[inline]
    pub(super) fn tally_frame(&self, kind: u8) {
        match kind {
            frontend::PARSE => self.inbox.tally.add(Tallied::ClientParses, 1),
            frontend::BIND => self.inbox.tally.add(Tallied::Binds, 1),
            _ => {}
        }
    }

    /// Why a request goes where the link leads.
    fn decision(&self, demand: &Demand) -> Decision {
        let link = &self.link;
        let reason = if link.requests == 0 {
            link.reason
        } else if link.in_block() {
            RouteReason::Transaction
        } else if self.memory.pin.is_some() {
            RouteReason::Pinned
        } else {
            RouteReason::Pipeline
        };
        Decision {
            class: demand.class.access,
            as_primary: link.as_primary,
            reason,
        }
    }

    /// Puts a notice of where a request goes in front of its answer, for a client that wants it (`halyard.trace`). To
    /// be called when everything before the request has been sent.
    pub(super) fn trace(&mut self, demand: &Demand, decision: Decision) {
        let ledger = &self.link.backend.ledger;
        if is_nothing(demand) || ledger.copy_in() || ledger.skips_until_sync() {
            return;
        }
        let rule = demand.class.rule;
        let report = Report::notice(format!(
            "halyard: node \"{}\" as {}: {}",
            self.link.backend.node().name,
            decision.target(),
            decision.reason
        ))
        .with_detail(format!(
            "{} Class {} by rule {rule}: {}",
            decision.reason.sentence(),
            decision.class.as_str(),
            rule.sentence(),
        ));
        let mut notice = Vec::new();
        report.encode(&mut notice);
        self.link.traces_told.0.push_back(notice);
        self.link.backend.ledger.owe(Owed::Notice, Fate::Fake);
    }

    /// Why the request that is about to be sent goes where it goes, if the client wants to know.
    pub(super) fn traced(&self, demand: &Demand) -> Option<Decision> {
        self.memory.settings.own().trace.then(|| self.decision(demand))
    }

    /// The notice whose turn it is.
    pub(super) fn next_trace(&mut self) -> Vec<u8> {
        // The server skipped the answers between: as many notices are owed as lie here, and the ledger forgets the
        // oldest ones first.
        let owed = 1 + self.link.backend.ledger.notices();
        let traces = &mut self.link.traces_told.0;
        traces.drain(..traces.len().saturating_sub(owed));
        traces.pop_front().unwrap_or_default()
    }
}

/// Whether a request holds no statement: a Sync alone, or the end of a COPY.
fn is_nothing(demand: &Demand) -> bool {
    demand.class.rule == Rule::Empty && demand.class.control == Control::None
}
