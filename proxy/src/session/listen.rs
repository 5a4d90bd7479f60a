//! LISTEN for a session whose backend is not its own for ever: hearing channels before they are listened to, finding out what
//! was committed, and telling the client what came.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::PinReason;
use super::demand::Demand;
use super::inbox::Doing;
use super::loss::{Consequence, LostState, Reach, consequence};
use super::obtain::{Waited, after};
use super::offline::Offline;
use super::patience::timed_out;
use super::statements::ClientStatements;
use super::turn::{Session, Turn};
use crate::config::ListenerRole;
use crate::error::{Report, SqlState};
use crate::metrics::Counter;
use crate::notify::{Channel, Listening, listened};
use crate::pool::exchange;
use crate::relay::{Link, setting_of_said};
use crate::wire::{self, HEADER_SIZE, Header, bind_names, frontend, parse_parts};

/// Bytes of notifications written to a client at a time; the next are written when it has taken them.
const PORTION: usize = 64 * 1024;
/// What a backend is asked when a transaction is over in which its registrations may have changed. It is given back
/// without any.
const COMMITTED: &str = "SELECT pg_catalog.pg_listening_channels(); UNLISTEN *";
/// How long it may take to answer.
const COMMITTED_LIMIT: Duration = Duration::from_secs(5);
/// How long a client that has notified waits to hear itself. It is told of the end of its transaction all the same.
const ECHO_LIMIT: Duration = Duration::from_secs(1);

impl Session {
    /// Whether a request names channels that have to be heard before a backend is looked for.
    #[inline]
    pub(super) fn must_listen_first(&self, demand: &Demand) -> bool {
        let ready = || {
            self.memory
                .listening
                .as_ref()
                .is_some_and(|listening| listening.ready)
        };
        demand.class.listens() && self.role(demand.class.hinted) != ListenerRole::Replica && !ready()
    }

    /// Has the channels heard that a request names. `None` when they are; else how the turn ends.
    pub(super) async fn listen_first(&mut self, demand: &Demand) -> Option<Turn> {
        match self.wait_until_heard(demand).await {
            Waited::Fail(report) => {
                self.registered.inbox.set_doing(Doing::Idle);
                self.fail_demand(report);
                Some(Turn::Again)
            }
            Waited::Over(turn) => Some(turn),
            Waited::Again | Waited::Got(..) => None,
        }
    }

    /// As [`Session::listen_first`], for a request behind others on the same backend; and for one that may commit
    /// them, before which the hub is asked what was committed earlier.
    pub(super) async fn listen_in_link(&mut self) -> Turn {
        let Some(demand) = self.demand else {
            return Turn::Again;
        };
        let listening = self.memory.listening.as_deref_mut();
        if let Some(listening) = listening.filter(|listening| listening.ready || !demand.class.listens()) {
            // Without an answer the client may hear of what was committed while its transaction was open.
            let _ = timeout(ECHO_LIMIT, listening.echo()).await;
            listening.forget_tentative();
            listening.fresh = true;
            return Turn::Again;
        }
        let waited = self.wait_until_heard(&demand).await;
        self.look_at_table();
        match waited {
            Waited::Fail(report) => self.give_up_link(report),
            Waited::Over(turn) => turn,
            Waited::Again | Waited::Got(..) => Turn::Again,
        }
    }

    /// Waits, as long as a request is held that has no node, until the channels are heard that a request names.
    /// [`Waited::Again`] when they are.
    async fn wait_until_heard(&mut self, demand: &Demand) -> Waited {
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let channels = channels_named(
            bytes,
            &self.memory.statements,
            self.reading.standard_conforming_strings,
        );
        let listening = self.join();
        if let Err(report) = listening.want(&channels) {
            return Waited::Fail(report);
        }
        if !listening.is_heard() {
            let heard = listening.heard();
            let _place = match self.app.hold(&self.group, demand.bytes) {
                Ok(place) => place,
                Err(report) => return Waited::Fail(report),
            };
            if self.link.is_none() {
                // With a backend in hand its transaction is open, and is shown so.
                self.registered.inbox.set_doing(Doing::Held);
            }
            let limit = self.hold_limit();
            tokio::select! {
                biased;
                heard = heard => if let Err(report) = heard { return Waited::Fail(report) },
                meanwhile = self.meanwhile() => return after(meanwhile),
                () = sleep_until(Instant::now() + limit) => {
                    return Waited::Fail(match self.own_limit() {
                        Some(_) => timed_out(),
                        None => self.unheard(limit),
                    });
                }
            }
            if self.link.is_none() {
                self.registered.inbox.set_doing(Doing::Active);
            }
        }
        if let Some(listening) = &mut self.memory.listening {
            listening.ready = true;
        }
        Waited::Again
    }

    /// The client's registrations; made if there are none.
    fn join(&mut self) -> &mut Listening {
        if self.memory.listening.is_none() {
            let encoding = self.encoding();
            let listening = self.app.hubs.join(&self.group, &encoding, &self.registered.inbox);
            self.memory.listening = Some(Box::new(listening));
        }
        self.memory
            .listening
            .as_mut()
            .expect("it was made if it was not there")
    }

    fn unheard(&self, limit: Duration) -> Report {
        let trouble = self
            .memory
            .listening
            .as_ref()
            .and_then(|listening| listening.trouble());
        let reason = match (trouble, &self.app.routing.load().no_primary) {
            (Some(report), _) => report.to_string(),
            (None, reason) => reason.clone(),
        };
        Report::error(SqlState::CANNOT_CONNECT_NOW, "no connection can listen now")
            .with_detail(format!(
                "Waited for {} ms (failover.hold). {reason}",
                limit.as_millis()
            ))
            .with_hint("The session lives on; the statement was not run and can be sent again.")
    }

    /// Gives up a backend whose next request cannot be sent: its transaction is rolled back, as the client is told.
    pub(super) fn give_up_link(&mut self, mut report: Report) -> Turn {
        let Some(link) = self.link.take() else {
            return Turn::Again;
        };
        let (in_block, batch_open) = (link.in_block(), link.backend.ledger.batch_open());
        let kept = self.unpin(&link);
        self.note_turn(&link);
        // The connection is closed, which rolls back.
        drop(link);
        self.take_back_what_was_told();
        if let Some(pin) = kept {
            report = report.with_hint(format!("With the connection went {}.", pin.lost()));
        }
        self.memory.undo_all();
        self.registered.inbox.set_doing(Doing::Idle);
        if !batch_open && !in_block {
            self.fail_demand(report);
            return Turn::Again;
        }
        self.counters.add(Counter::of_error(report.sqlstate), 1);
        self.revert_listening();
        self.demand = None;
        let size_max = self.app.relay_limits.statement_size_max;
        self.offline = Some(Box::new(if batch_open {
            report.encode(self.client.out.end());
            Offline::told(in_block, true, size_max)
        } else {
            Offline::fail_block(report, false, size_max)
        }));
        Turn::Again
    }

    /// Finds out what the client listens to after its transaction, lets it hear itself, and tells it that the
    /// transaction is over.
    pub(super) async fn tell_ready(&mut self) -> Turn {
        self.finish_cancel().await;
        let Some(link) = &mut self.link else {
            return Turn::Again;
        };
        let heard = std::mem::take(&mut link.heard);
        link.heard.brought = heard.brought;
        link.heard.astray = heard.astray;
        self.follow_encoding().await;
        if heard.changes {
            self.find_committed().await;
        }
        if heard.notifies
            && let Some(listening) = &self.memory.listening
        {
            // Without an answer the client hears itself later, or is told that it may have missed something.
            let _ = timeout(ECHO_LIMIT, listening.echo()).await;
        }
        if self
            .memory
            .listening
            .as_ref()
            .is_some_and(|listening| listening.is_empty())
        {
            // It may have been told that it hears no more.
            self.deliver_now();
            self.memory.listening = None;
        }
        self.deliver_now();
        wire::ready_for_query(self.client.out.end(), b'I');
        Turn::Again
    }

    /// Has a client that listens hear in the encoding that it has come to speak.
    async fn follow_encoding(&mut self) {
        let Some(mut earlier) = self.memory.listening.take_if(|listening| listening.turned) else {
            return;
        };
        let encoding = self.encoding();
        if earlier.encoding() == encoding {
            earlier.turned = false;
            self.memory.listening = Some(earlier);
            return;
        }
        let channels: Vec<Channel> = earlier.beyond_ascii().cloned().collect();
        let mut spelled = HashMap::new();
        for channel in channels {
            // One by one: what cannot be written in the new encoding is refused.
            let name = self
                .respell([&*channel].into_iter(), earlier.encoding())
                .await
                .pop();
            spelled.extend(name.map(|name| (channel, Channel::from(name))));
        }
        let mut now = self.app.hubs.join(&self.group, &encoding, &self.registered.inbox);
        if !now.follow(&earlier, &spelled).await {
            tracing::debug!(
                encoding,
                "a client may have missed notifications as it changed its encoding"
            );
        }
        let mut waiting = earlier.drain();
        let texts = self.respell(waiting.texts(), earlier.encoding()).await;
        waiting.respell(texts);
        now.put_first(waiting);
        self.memory.listening = Some(Box::new(now));
    }

    /// Texts as the client spells them now, which its backend tells. None where it does not know how.
    async fn respell(&mut self, texts: impl Iterator<Item = &[u8]>, encoding: &str) -> Vec<Vec<u8>> {
        let mut sql = String::new();
        for (index, text) in texts.enumerate() {
            let before = if index > 0 { "," } else { "" };
            let _ = write!(sql, "{before}({index},'");
            for byte in text {
                let _ = write!(sql, "{byte:02x}");
            }
            sql.push_str("')");
        }
        let Some(link) = self.link.as_mut().filter(|_| !sql.is_empty()) else {
            return Vec::new();
        };
        // An encoding's name is of letters and digits alone.
        let sql = format!(
            "SELECT pg_catalog.convert_from(pg_catalog.decode(c,'hex'),'{encoding}') FROM (VALUES {sql}) AS v(n,c) ORDER BY n"
        );
        let rows = exchange::rows(&mut link.backend, &sql, COMMITTED_LIMIT).await;
        if link.backend.settled().is_none() {
            self.lose_settled_link();
        }
        let rows = rows.unwrap_or_default().into_iter();
        rows.filter_map(|row| row.into_iter().next()?).collect()
    }

    /// Asks the backend what it listens to, which is what was committed, and has it listen to nothing.
    async fn find_committed(&mut self) {
        let (Some(link), Some(listening)) = (&mut self.link, &mut self.memory.listening) else {
            // Without its backend nobody knows.
            if let Some(listening) = &mut self.memory.listening {
                listening.assume();
            }
            return;
        };
        let said = link.asides.take();
        let question = if link.as_primary {
            COMMITTED.to_owned()
        } else if said.is_empty() {
            return self.revert_listening();
        } else {
            said_and_committed(said.len())
        };
        match exchange::rows(&mut link.backend, &question, COMMITTED_LIMIT).await {
            Ok(rows) => {
                (link.heard.brought, link.heard.astray) = (false, false);
                let told = rows.into_iter().filter_map(|row| row.into_iter().next()?);
                if link.as_primary {
                    listening.settle(told);
                } else {
                    let numbers: Vec<usize> = told.filter_map(|number| number_of(&number)).collect();
                    let committed = said.into_iter().enumerate();
                    let committed = committed.filter(|(number, _)| numbers.contains(number));
                    listening.settle(listening.with(committed.map(|(_, said)| said)));
                }
                if !listening.is_heard() {
                    // Names that the text did not tell are heard only from now on.
                    let heard = timeout(COMMITTED_LIMIT, listening.heard()).await;
                    if !matches!(heard, Ok(Ok(()))) {
                        listening.miss();
                    }
                }
            }
            Err(error) => {
                tracing::debug!(node = %link.backend.node().name, %error, "a backend did not tell what it listens to");
                listening.assume();
                self.lose_settled_link();
            }
        }
    }

    /// Takes over what code that nobody has read listened to. Such channels are heard only from now on.
    pub(super) fn hear_hidden(&mut self, channels: Vec<Vec<u8>>, link: &mut Link) {
        if !link.as_primary {
            return;
        }
        if self.memory.listening.is_none() && !channels.is_empty() {
            self.join();
        }
        let Some(listening) = &mut self.memory.listening else {
            return;
        };
        if link.heard.brought {
            listening.settle(channels);
        } else {
            link.heard.astray |= !channels.is_empty();
            listening.add(channels);
        }
        if listening.is_empty() {
            self.memory.listening = None;
        }
    }

    /// A backend that owed the client nothing is of no use any more. Whatever else it kept is gone with it.
    pub(super) fn lose_settled_link(&mut self) {
        let Some(link) = self.link.take() else { return };
        self.heed_resets(&link);
        self.held_beside = None;
        self.client.input.release_held();
        self.memory.repeats = 0;
        self.note_turn(&link);
        if link.ddl {
            self.group.catalog.invalidate();
        }
        self.registered.inbox.set_doing(Doing::Idle);
        let state = LostState {
            in_block: false,
            in_flight: false,
            flight: link.flight,
            pin: self.unpin(&link),
            mid_frame: false,
            resolvable: false,
            ending: None,
            alone: true,
            reach: Reach::Anything,
        };
        self.take_back_what_was_told();
        let lost = consequence(&state, &link.backend.node().name, "It did not answer.");
        if let Consequence::FailNext(report) = lost {
            let size_max = self.app.relay_limits.statement_size_max;
            self.offline = Some(Box::new(Offline::fail_next(report, size_max)));
        }
    }

    /// The backend is gone, and what was kept on it: why it was kept.
    fn unpin(&mut self, link: &Link) -> Option<PinReason> {
        let kept = self.kept_on(link);
        self.memory.keep_nothing();
        self.show_pin();
        kept
    }

    /// A request that named channels was not run, or nobody can know.
    pub(super) fn revert_listening(&mut self) {
        let Some(listening) = &mut self.memory.listening else {
            return;
        };
        listening.revert();
        if listening.is_empty() {
            self.memory.listening = None;
        }
    }

    /// Whether something waits for the client that can be told now: outside of a transaction, between two messages,
    /// and when it has taken what came before.
    pub(super) fn has_mail(&self) -> bool {
        let Some(listening) = &self.memory.listening else {
            return false;
        };
        listening.has_mail()
            && self.client.out.is_empty()
            && self.offline.as_ref().is_none_or(|offline| offline.is_at_rest())
            && self.link.as_ref().is_none_or(is_at_rest)
    }

    /// Tells the client what waits for it, if it can be told now.
    #[inline]
    pub(super) fn deliver(&mut self) {
        if self.has_mail() {
            self.deliver_now();
        }
    }

    fn deliver_now(&mut self) {
        let Some(listening) = &self.memory.listening else {
            return;
        };
        if listening.has_mail() {
            let taken = listening.take_mail(self.client.out.end(), PORTION);
            self.counters
                .add(Counter::NotificationsDelivered, taken.delivered);
            self.counters.add(Counter::NotificationsDropped, taken.dropped);
            self.see_what_it_is_told();
        }
    }

    /// The encoding that the client speaks, by the server's spelling of encodings without its punctuation.
    fn encoding(&self) -> String {
        let told = self
            .memory
            .told
            .iter()
            .find(|(name, _)| name == "client_encoding");
        told.map_or("UTF8", |(_, value)| value.as_str())
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|char| char.to_ascii_uppercase())
            .collect()
    }
}

/// What a standby is asked when a transaction is over in which the client has said so many things of channels: the numbers
/// of those that are committed. It forgets them.
fn said_and_committed(count: usize) -> String {
    let prefix = setting_of_said("");
    let mut sql = format!(
        "SELECT n::pg_catalog.text FROM pg_catalog.generate_series(0, {}) AS n \
         WHERE pg_catalog.current_setting(pg_catalog.concat('{prefix}', n), true) = '1'",
        count - 1
    );
    for number in 0..count {
        sql.push_str("; RESET ");
        sql.push_str(&setting_of_said(number));
    }
    sql
}

fn number_of(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether a backend that a session keeps has nothing to say and no transaction open.
fn is_at_rest(link: &Link) -> bool {
    link.backend.settled().is_some() && !link.heard.withheld
}

/// The channels that the LISTEN statements of a request name: those in its texts, and in the statements that it binds.
fn channels_named(
    bytes: &[u8],
    statements: &ClientStatements,
    standard_conforming_strings: bool,
) -> Vec<Channel> {
    let mut channels = Vec::new();
    let mut add = |text: &[u8]| channels.extend(listened(text, standard_conforming_strings));
    let mut at = 0;
    while let Ok(Some(header)) = Header::parse(&bytes[at..]) {
        let Some(frame) = bytes.get(at..at + header.total()) else {
            break;
        };
        at += header.total();
        let body = &frame[HEADER_SIZE..];
        match header.kind {
            frontend::QUERY => add(body.strip_suffix(&[0]).unwrap_or(body)),
            frontend::PARSE => {
                if let Some(parts) = parse_parts(body) {
                    add(&body[parts.text]);
                }
            }
            frontend::BIND => {
                let statement = bind_names(body).and_then(|names| match &body[names.statement] {
                    b"" => statements.unnamed.as_ref(),
                    name => statements.named(name),
                });
                if let Some(statement) = statement {
                    add(statement.text());
                }
            }
            _ => {}
        }
    }
    channels
}
