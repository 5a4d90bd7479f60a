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
use crate::notify::{Channel, Followed, Listening, listened};
use crate::pool::exchange;
use crate::relay::{Link, setting_of_said};
use crate::wire::{self, HEADER_SIZE, Header, bind_names, frontend, parse_parts};

/// Bytes of notifications written to a client at a time; the next are written when it has taken them.
const PORTION: usize = 64 * 1024;
/// What a backend is asked when a transaction is over in which its registrations may have changed. It is given back
/// without any.
const COMMITTED: &str = "SELECT pg_catalog.pg_listening_channels(); UNLISTEN *";
/// What it is told where it cannot answer.
const FORGET: &str = "UNLISTEN *";
/// How long it may take to answer.
const COMMITTED_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to tell how everything is spelled that a client listens to and waits for.
const SPELLING_LIMIT: Duration = Duration::from_secs(5);
/// How long a client that has notified waits to hear itself. It is told of the end of its transaction all the same.
pub(super) const ECHO_LIMIT: Duration = Duration::from_secs(1);

/// A backend did not say, for whatever reason, how something is spelled.
struct Unanswered;

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
            let _hold = match self.app.hold(&self.group, demand.bytes, Counter::HeldToListen) {
                Ok(hold) => hold,
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
                        None => {
                            self.counters.add(Counter::HeldTooLong, 1);
                            self.unheard(limit)
                        }
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
        let deadline = Instant::now() + SPELLING_LIMIT;
        let turned = self.follow_encoding(deadline).await;
        if heard.changes {
            self.find_committed().await;
        }
        if turned {
            self.hear_unwritten(deadline).await;
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

    /// Has a client that listens hear in the encoding that it has come to speak. Where its backend does not tell how its
    /// channels are spelled there, or nobody hears them yet, it hears as before, and it is tried again. Whether it hears now
    /// in another encoding.
    async fn follow_encoding(&mut self, deadline: Instant) -> bool {
        let Some(mut earlier) = self.memory.listening.take_if(|listening| listening.turned) else {
            return false;
        };
        let encoding = self.encoding();
        if earlier.encoding() == encoding {
            earlier.turned = false;
            self.memory.listening = Some(earlier);
            return false;
        }
        let channels: Vec<Channel> = earlier.beyond_ascii().cloned().collect();
        let texts = channels.iter().map(|channel| channel.to_vec()).collect();
        let Ok(names) = self.respell(texts, earlier.encoding(), deadline).await else {
            self.memory.listening = Some(earlier);
            return false;
        };
        let spelled: HashMap<Channel, Channel> = channels
            .into_iter()
            .zip(names)
            .filter_map(|(channel, name)| Some((channel, Channel::from(name?))))
            .collect();
        let mut now = self.app.hubs.join(&self.group, &encoding, &self.registered.inbox);
        let followed = now.follow(&earlier, &spelled).await;
        tracing::debug!(
            encoding,
            ?followed,
            "a client that listens has changed its encoding"
        );
        if followed == Followed::Not {
            self.memory.listening = Some(earlier);
            return false;
        }
        let mut waiting = earlier.drain();
        let texts = waiting.texts().map(<[u8]>::to_vec).collect();
        // Without an answer the client is told that they are missing.
        let texts = self.respell(texts, earlier.encoding(), deadline).await;
        waiting.respell(texts.unwrap_or_default());
        now.put_first(waiting);
        self.memory.listening = Some(Box::new(now));
        true
    }

    /// Has the channels heard again that an encoding of before could not write, as far as the one of now can. The client is
    /// told that it has missed what came of them meanwhile.
    async fn hear_unwritten(&mut self, deadline: Instant) {
        let unwritten = self
            .memory
            .listening
            .as_mut()
            .map(|listening| listening.take_unwritten());
        let mut names = Vec::new();
        for kept in unwritten.unwrap_or_default() {
            let told = if kept.encoding == self.encoding() {
                Some(kept.channel.to_vec())
            } else {
                let texts = vec![kept.channel.to_vec()];
                let told = self.respell(texts, &kept.encoding, deadline).await;
                told.unwrap_or_default().pop().flatten()
            };
            match told {
                Some(name) => names.push(name),
                None => {
                    if let Some(listening) = &mut self.memory.listening {
                        listening.keep_unwritten(kept);
                    }
                }
            }
        }
        if let Some(listening) = self.memory.listening.as_mut().filter(|_| !names.is_empty()) {
            listening.add(names);
            if let Some(link) = &mut self.link {
                // What it was brought to is less than what the client listens to.
                link.heard.astray |= link.heard.brought;
                link.heard.brought = false;
            }
            hear_late(listening).await;
        }
    }

    /// Texts as the client spells them now, which its backend tells; `None` for those that it cannot. All at once, and one by
    /// one where that is refused.
    async fn respell(
        &mut self,
        texts: Vec<Vec<u8>>,
        encoding: &str,
        deadline: Instant,
    ) -> Result<Vec<Option<Vec<u8>>>, Unanswered> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(spelled) = self.ask_spelling(&texts, encoding, deadline).await? {
            return Ok(spelled.into_iter().map(Some).collect());
        }
        if texts.len() == 1 {
            return Ok(vec![None]);
        }
        let mut spelled = Vec::with_capacity(texts.len());
        for text in &texts {
            let told = self
                .ask_spelling(std::slice::from_ref(text), encoding, deadline)
                .await?;
            spelled.push(told.and_then(|mut told| told.pop()));
        }
        Ok(spelled)
    }

    /// Texts as the client spells them now; `None` where one of them cannot be.
    async fn ask_spelling(
        &mut self,
        texts: &[Vec<u8>],
        encoding: &str,
        deadline: Instant,
    ) -> Result<Option<Vec<Vec<u8>>>, Unanswered> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let Some(link) = self.link.as_mut().filter(|_| !limit.is_zero()) else {
            return Err(Unanswered);
        };
        let rows = exchange::rows(&mut link.backend, &spelling(texts, encoding), limit).await;
        if link.backend.settled().is_none() {
            self.lose_settled_link();
            return Err(Unanswered);
        }
        match rows {
            Ok(rows) => {
                let told: Vec<_> = rows
                    .into_iter()
                    .filter_map(|row| row.into_iter().next()?)
                    .collect();
                Ok((told.len() == texts.len()).then_some(told))
            }
            Err(report) if matches!(&report.sqlstate.0[..2], b"22" | b"42") => Ok(None),
            Err(_) => Err(Unanswered),
        }
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
        if listening.is_misspelled() {
            // What the backend was brought to is not what the client listens to.
            return self.forget_committed().await;
        }
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
                let late = if link.as_primary {
                    listening.settle(told)
                } else {
                    let numbers: Vec<usize> = told.filter_map(|number| number_of(&number)).collect();
                    let committed = said.into_iter().enumerate();
                    let committed = committed.filter(|(number, _)| numbers.contains(number));
                    listening.settle(listening.with(committed.map(|(_, said)| said)))
                };
                if late {
                    hear_late(listening).await;
                }
            }
            Err(error) => {
                tracing::debug!(node = %link.backend.node().name, %error, "a backend did not tell what it listens to");
                self.forget_committed().await;
            }
        }
    }

    /// Takes what may be committed for committed, and has the backend listen to nothing: it cannot tell where the client has
    /// come to speak an encoding in which a channel cannot be written.
    async fn forget_committed(&mut self) {
        let (Some(link), Some(listening)) = (&mut self.link, &mut self.memory.listening) else {
            return;
        };
        listening.assume();
        let forgets = link.as_primary
            && link.backend.settled().is_some()
            && exchange::ask(&mut link.backend, FORGET, COMMITTED_LIMIT)
                .await
                .is_ok();
        if forgets {
            (link.heard.brought, link.heard.astray) = (false, false);
        } else {
            self.lose_settled_link();
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

    pub(super) fn deliver_now(&mut self) {
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
         WHERE pg_catalog.current_setting(pg_catalog.concat('{prefix}', n), true) \
         OPERATOR(pg_catalog.=) '1'",
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

/// Has a client hear what it listens to already. What was committed until then it has missed.
async fn hear_late(listening: &Listening) {
    let _ = timeout(COMMITTED_LIMIT, listening.heard()).await;
    listening.miss();
}

/// Asks for texts of another encoding as the client spells them.
fn spelling(texts: &[Vec<u8>], encoding: &str) -> String {
    let mut values = String::new();
    for (index, text) in texts.iter().enumerate() {
        let before = if index > 0 { "," } else { "" };
        let _ = write!(values, "{before}({index},'");
        for byte in text {
            let _ = write!(values, "{byte:02x}");
        }
        values.push_str("')");
    }
    // An encoding's name is of letters and digits alone.
    format!(
        "SELECT pg_catalog.convert_from(pg_catalog.decode(c,'hex'),'{encoding}') FROM (VALUES {values}) AS v(n,c) ORDER BY n"
    )
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
