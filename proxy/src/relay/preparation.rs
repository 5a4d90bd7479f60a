//! What goes to a backend with a request besides it, and what is noted of it: settings, the block that it goes on in,
//! sequences, and what it may leave behind.

use std::sync::Arc;

use super::ahead::Ahead;
use super::ledger::{Fate, Owed};
use super::requests::{Portals, begins_with_its_text, executions, runs};
use super::{Flight, Relay};
use crate::classify::{Access, Rule, SessionEffects, SettingChanges};
use crate::pool::Drawn;
use crate::session::{Control, Demand, Statement};
use crate::wire::{self, HEADER_SIZE, Header, bind_names, frontend, parse_parts};

impl Relay<'_> {
    /// What goes before the first byte of a request.
    pub(super) fn prepare_to_send(&mut self, demand: &Demand) {
        self.count_request(demand);
        let traced = self.traced(demand);
        self.begin_flight(demand);
        self.ask_for_transaction(demand);
        if !Arc::ptr_eq(&self.link.backend.settings, &self.memory.settings) {
            self.apply_settings();
        }
        self.part_sequences(demand);
        self.follow_listening(demand);
        if let Some(decision) = traced {
            self.trace(demand, decision);
        }
        if demand.class.names_statements() {
            // Before a block that is taken over: prepared statements are none of its matters.
            let input = std::mem::take(&mut self.client.input);
            self.lend_names(demand, &input.unparsed()[..demand.bytes]);
            self.client.input = input;
        }
        self.take_block_over();
        let class = demand.class;
        let drops_all = class.drops_all_statements();
        self.link.stops_for_names = demand.rest == 0 && (drops_all || !class.changes_listening());
        self.link.stops = self.link.stops_for_names && !drops_all;
    }

    /// Begins the client's block on the node that it was moved to, in front of the first request there.
    fn take_block_over(&mut self) {
        if let Some(modes) = &self.link.begins_with
            && self.link.requests == 1
        {
            let backend = &mut *self.link.backend;
            wire::query(backend.out.end(), format!("BEGIN {modes}").as_bytes());
            backend.ledger.owe(Owed::Query, Fate::Skip);
            backend.unnamed = None;
            if self.link.begins_failed {
                self.fail_block();
            }
        }
    }

    /// Whether nothing but BEGIN and SET TRANSACTION has run in the client's block when this request has.
    pub(super) fn leaves_block_empty(&self, demand: &Demand, bytes: &[u8]) -> bool {
        let class = demand.class;
        match class.rule {
            Rule::OpensTransaction | Rule::OpensReadOnlyTransaction | Rule::OpensReadWriteTransaction => {
                class.control == Control::Begins && self.link.requests == 1 && executions(bytes) == 1
            }
            Rule::SetsTransaction | Rule::SetsReadOnlyTransaction | Rule::SetsReadWriteTransaction => {
                class.control == Control::None
                    && (self.link.block_is_empty || (self.link.takes_block_over() && self.link.requests == 1))
                    && executions(bytes) <= 1
            }
            _ => false,
        }
    }

    /// Takes note of what a request makes of the block that it is in, which may go on on another node as long as that is
    /// nothing, or nothing but reads.
    pub(super) fn note_block(&mut self, demand: &Demand, bytes: &[u8]) {
        let class = demand.class;
        let link = &self.link;
        // Its BEGIN may not be answered yet.
        let in_block = link.in_block() || link.takes_block_over() || link.block_is_empty;
        if !in_block && class.control == Control::None {
            return;
        }
        if link.block_is_empty || !link.as_primary {
            let portals = Portals::of(bytes);
            if portals == Portals::Untouched {
                return;
            }
            self.link.block_is_empty = self.leaves_block_empty(demand, bytes);
            // Of a batch that runs several statements the class tells one rule.
            let reads = matches!(class.rule, Rule::Empty | Rule::ReadsOnly | Rule::ShowsSetting);
            let plain = reads && class.repeatable && !class.is_opaque() && class.control == Control::None;
            self.link.only_plain_reads &= self.link.block_is_empty || (plain && portals == Portals::OneRun);
        } else {
            self.link.block_is_empty = self.leaves_block_empty(demand, bytes);
        }
    }

    /// Takes note of what a request may leave behind, so that the session is examined when its turn ends.
    pub(super) fn note_traces(&mut self, traces: SessionEffects, bytes: &[u8]) {
        // What ends with the transaction leaves nothing.
        let left = traces.without(SessionEffects::LOCAL_DEFAULT);
        self.link.traces = self.link.traces.union(left);
        const SETS: SessionEffects = SessionEffects::SETTING
            .union(SessionEffects::DISCARD_ALL)
            .union(SessionEffects::LOCAL_DEFAULT);
        if !traces.intersects(SETS) {
            return;
        }
        match self.setting_changes(bytes) {
            Some(mut changes) => {
                // What an earlier part of the batch has reset is still to be given back.
                if let Some(reset) = self.memory.startup.reset_by(&changes) {
                    self.link.restore.get_or_insert_default().append(reset);
                }
                // They end with the transaction, and nobody asks for them.
                changes.local_resets.clear();
                self.link.changes.append(changes);
                if self.link.changes.are_too_many() {
                    // Everything is asked for, whatever its name.
                    self.link.changes = SettingChanges {
                        resets_all: true,
                        ..SettingChanges::default()
                    };
                    self.link.traces = self.link.traces.union(SessionEffects::UNKNOWN);
                }
            }
            // Nobody knows which: what cannot be followed keeps its backend.
            None => self.link.traces = self.link.traces.union(SessionEffects::UNKNOWN),
        }
    }

    /// A server that copies takes no Query behind the Sync: what was reset in front of a COPY in its batch is not given back.
    pub(super) fn heed_copies(&mut self, bytes: &[u8]) {
        if self.link.restore.is_some() && self.may_copy(bytes) {
            self.link.restore = None;
        }
    }

    /// Whether a COPY may be in the texts of a request, or in those of the statements that it binds.
    fn may_copy(&self, bytes: &[u8]) -> bool {
        let says = |text: &[u8]| text.windows(4).any(|word| word.eq_ignore_ascii_case(b"copy"));
        let mut at = 0;
        while let Some(Ok(Some(header))) = bytes.get(at..).map(Header::parse) {
            // The last may not be whole.
            let end = bytes.len().min(at + header.total());
            let body = &bytes[at + HEADER_SIZE..end];
            at += header.total();
            let copies = match header.kind {
                frontend::QUERY => says(body),
                frontend::PARSE => parse_parts(body).is_none_or(|parts| says(&body[parts.text])),
                frontend::BIND => self
                    .bound(body)
                    .is_none_or(|statement| statement.is_some_and(|statement| says(statement.text()))),
                _ => false,
            };
            if copies {
                return true;
            }
        }
        false
    }

    /// The settings that the texts in a request change; `None` where that cannot be told.
    fn setting_changes(&self, bytes: &[u8]) -> Option<SettingChanges> {
        let mut all = SettingChanges::default();
        let mut at = 0;
        while let Ok(Some(header)) = Header::parse(bytes.get(at..)?) {
            let body = bytes.get(at + HEADER_SIZE..at + header.total())?;
            at += header.total();
            let text = match header.kind {
                frontend::QUERY => body.strip_suffix(&[0]).unwrap_or(body),
                frontend::PARSE => &body[parse_parts(body)?.text],
                frontend::BIND => match self.bound(body)? {
                    Some(statement) => statement.text(),
                    None => continue,
                },
                _ => continue,
            };
            all.append(SettingChanges::of(
                text,
                self.reading.standard_conforming_strings,
            )?);
        }
        Some(all)
    }

    /// The statement that a Bind names, if the client has it already.
    pub(super) fn bound(&self, body: &[u8]) -> Option<Option<&Arc<Statement>>> {
        let names = bind_names(body)?;
        Some(match &body[names.statement] {
            b"" => self.memory.statements.unnamed.as_ref(),
            name => self.memory.statements.named(name),
        })
    }

    /// Behind a RESET that was just sent, gives the client's settings from startup their value again.
    pub(super) fn restore_settings(&mut self) {
        if self.link.backend.ledger.batch_open() {
            return;
        }
        let reset = self.link.restore.take();
        if let Some(sql) = reset.and_then(|reset| self.memory.startup.restore_after(&reset)) {
            let backend = &mut *self.link.backend;
            wire::query(backend.out.end(), sql.as_bytes());
            backend.ledger.owe(Owed::Query, Fate::SkipReady);
            backend.unnamed = None;
        }
    }

    /// The fate of an answer that ends with ReadyForQuery.
    pub(super) fn fate_of_ready(&self) -> Fate {
        if self.link.restore.is_some() {
            Fate::ForwardUnready
        } else {
            Fate::Forward
        }
    }

    fn begin_flight(&mut self, demand: &Demand) {
        let (control, ahead) = self.look_ahead(demand);
        let link = &mut *self.link;
        let ledger = &link.backend.ledger;
        let whole = demand.rest == 0 && demand.bytes <= self.limits.rerun_size_max;
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let touches_portals = || Portals::of(bytes) != Portals::Untouched;
        // What a batch that has failed had opened is a failed block behind its Sync.
        let failed = ledger.skips_until_sync();
        let failed_alone = failed && link.flight.control == Control::None;
        // A batch that is cut by a Flush can be begun again while it has only prepared. Of one that has failed the server reads
        // nothing but the Sync.
        let can_begin_again = match failed {
            true => failed_alone && bytes == wire::SYNC,
            false => demand.closed || (!ledger.batch_open() && !runs(bytes)),
        };
        let outside = !link.in_block() && !link.takes_block_over();
        // Behind a Flush a batch goes on in the transaction in which it has run something: both are lost together. One that
        // has only read and been answered has nothing to lose with its end.
        let only_read = link.flight.access == Access::Read && link.flight.control == Control::None;
        let goes_on =
            ledger.batch_open() && link.flight.binds && !failed_alone && !(only_read && bytes == wire::SYNC);
        let at_rest = ledger.is_empty() && !goes_on;
        // What ends with its Sync leaves nothing open.
        let binds = !demand.closed && (touches_portals() || (!at_rest && link.flight.binds));
        // What was answered before, in the same write as an open batch, has left something that was not asked after yet.
        let left = outside && link.leaves(link.traces).is_some();
        // What comes behind the end of a block may begin another.
        let may_begin =
            outside || !ahead.began_open || (link.flight.control == Control::MayCommit && !ledger.is_empty());
        if may_begin && demand.class.control != Control::None {
            link.traces_outside = link.traces;
        }
        // A function call is none that ends a block, though nobody knows what it leaves.
        let unknown = demand.class.effects.intersects(SessionEffects::UNKNOWN);
        link.chains |= !outside && ahead.commits && ahead.open && !unknown;
        link.binds_end = (link.binds_end && !(at_rest && outside)) || ahead.binds_end;
        link.had_block &= !(at_rest && outside && link.traces.is_empty());
        link.had_block |= demand.class.control != Control::None;
        // Unless the session keeps it, the backend goes back where the request is refused, and sent elsewhere.
        let untouched = self.memory.pin.is_some() || !(link.is_to_be_examined() || link.opaque);
        let alone = at_rest && outside && !left && untouched && self.memory.kept().is_none();
        if at_rest {
            // An error of long ago says nothing of what comes.
            link.failed &= !outside || failed || link.is_to_be_examined();
            link.flight = Flight {
                answered: left,
                ..Flight::NONE
            };
            if alone && self.memory.pin.is_some() {
                // With no turn's end between them, what was answered before is not sent again with this.
                self.client.input.release_held();
                self.memory.repeats *= u8::from(self.memory.repeating);
            }
        }
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let opens = outside && demand.class.control == Control::Begins && begins_with_its_text(bytes);
        let flight = &mut link.flight;
        flight.held = alone && whole && can_begin_again;
        flight.repeatable = flight.held && demand.closed && demand.class.repeatable;
        flight.binds = binds;
        // A hint that sends a proved read to the primary makes no write of it.
        let reads = demand.class.repeatable && demand.class.control == Control::None;
        if !reads {
            // Nor does a hint, or a node that was a standby when it was chosen, make a read of what may write.
            let access = if demand.class.repeatable {
                demand.class.access
            } else {
                Access::Write
            };
            flight.access = flight.access.max(access);
        }
        flight.control = flight.control.max(control);
        flight.opens |= !flight.begun && opens;
        flight.begun = true;
        link.requests = link.requests.saturating_add(1);
    }

    /// What a request is in transaction control behind all that was sent before it, and where it leads.
    fn look_ahead(&mut self, demand: &Demand) -> (Control, Ahead) {
        let (link, class) = (&*self.link, demand.class);
        let ledger = &link.backend.ledger;
        let in_block = link.in_block() || link.takes_block_over();
        let open = match ledger.is_empty() && !ledger.batch_open() {
            true => in_block,
            false => link.leads_into_block(),
        };
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let mut ahead = match class.control {
            Control::None => Ahead::from(open),
            _ => self.ahead_of(bytes, open),
        };
        // It may run a portal that ends the block.
        let may_end = (link.binds_end || ahead.binds_end) && runs(bytes);
        ahead.open &= !may_end;
        let unknown = class.effects.intersects(SessionEffects::UNKNOWN);
        let reads = class.repeatable && class.control == Control::None;
        let control = match class.control {
            _ if in_block && may_end => Control::MayCommit,
            Control::RollsBack if in_block && ahead.commits => Control::MayCommit,
            // Behind the end of the block that the server still tells of it stands alone, and commits by itself.
            Control::None if in_block && !open && !reads => Control::MayCommit,
            // Several statements of which none is a COMMIT.
            Control::MayCommit if in_block && open && !ahead.commits && !unknown => match ahead.rolls_back {
                true => Control::RollsBack,
                false => Control::None,
            },
            control => control,
        };
        let said = u64::from(class.control != Control::None);
        let in_batch = ledger.batch_open();
        let first = bytes.first().copied();
        let owes_ready = in_batch
            || bytes != wire::FLUSH && !matches!(first, Some(frontend::COPY_DONE | frontend::COPY_FAIL));
        let link = &mut *self.link;
        if !owes_ready {
            // It is a Flush, or the end of a COPY, whose statement has its place.
        } else if in_batch {
            // It is answered with the batch that it goes on with.
            link.ahead = link.ahead & !1 | u64::from(ahead.open);
            link.ahead_said |= said;
        } else {
            link.ahead = link.ahead << 1 | u64::from(ahead.open);
            link.ahead_said = link.ahead_said << 1 | said;
        }
        if owes_ready {
            let skips = ahead.began_open && ahead.may_skip_end;
            link.may_skip_end = (skips || (in_batch && link.may_skip_end)) && !ahead.commits;
        }
        (control, ahead)
    }

    /// `currval` and `lastval` must tell what their own session has drawn and nothing else. The server cannot tell one
    /// session's draws from another's on the same backend, so the others' are forgotten before the first request
    /// that may draw or ask: any that is not proved to read, a BEGIN on the primary among them, since inside a pipelined
    /// block nothing can be asked without failing with it.
    #[inline]
    fn part_sequences(&mut self, demand: &Demand) {
        let class = demand.class;
        let proved = demand.closed && class.repeatable;
        let opens = class.control == Control::Begins && class.access == Access::Write;
        if proved && !opens {
            return;
        }
        self.link.discarded = class.discards_sequences() && self.is_alone(demand);
        // On a standby nobody draws.
        if self.link.as_primary && !self.link.backend.drawn.is_of(&self.memory.drawer) {
            self.forget_sequences(demand);
        }
    }

    /// Whether a request is a Query of one statement, as far as can be told without reading it.
    fn is_alone(&self, demand: &Demand) -> bool {
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let text = bytes.get(HEADER_SIZE..).and_then(|body| body.strip_suffix(&[0]));
        let text = text.map(<[u8]>::trim_ascii_end);
        let text = text.map(|text| text.strip_suffix(b";").unwrap_or(text));
        bytes.first() == Some(&frontend::QUERY) && text.is_some_and(|text| !text.contains(&b';'))
    }

    fn forget_sequences(&mut self, demand: &Demand) {
        let first = self.client.input.unparsed().first();
        let ledger = &self.link.backend.ledger;
        let between = !ledger.batch_open() && !ledger.copy_in() && ledger.status() != b'E';
        let ends_copy = matches!(first, Some(&(frontend::COPY_DONE | frontend::COPY_FAIL)));
        if !between || ends_copy {
            return;
        }
        // Where there is no sequence nothing is drawn. What the catalogue does not tell of yet may be one.
        let none = !self.link.ddl
            && !self.definitions.is_behind()
            && !self.definitions.load().functions().has_sequences();
        if none && !demand.class.asks_for_sequence_values() {
            self.link.backend.drawn = Drawn::Unseen;
            return;
        }
        let backend = &mut self.link.backend;
        if !matches!(backend.drawn, Drawn::Nothing) {
            wire::query(backend.out.end(), b"DISCARD SEQUENCES");
            backend.ledger.owe(Owed::Query, Fate::Skip);
            // A Query ends the unnamed statement (manual, section 55.2.3).
            backend.unnamed = None;
        }
        backend.draw(&mut self.memory.drawer);
    }

    /// Brings the backend to the session's settings, in the same flight as the request.
    fn apply_settings(&mut self) {
        let backend = &mut *self.link.backend;
        if backend.ledger.batch_open() || backend.ledger.status() != b'I' {
            return;
        }
        if let Some(sql) = self.memory.settings.statements_from(&backend.settings) {
            wire::query(backend.out.end(), sql.as_bytes());
            backend.ledger.owe(Owed::Query, Fate::Skip);
            // A Query ends the unnamed statement (manual, section 55.2.3).
            backend.unnamed = None;
        }
        backend.settings = Arc::clone(&self.memory.settings);
    }
}
