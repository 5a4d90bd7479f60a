//! What the sessions of one database want to hear, and what the connection that listens for them hears.
//!
//! Nothing here does I/O: sessions say what they want, the keeper asks the server for it, and both find here what
//! the other has come to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::channel::{Channel, push_statement};
use super::mailbox::{Mailbox, Notification};
use crate::error::Report;
use crate::pool::Group;

/// Longest text put to the server at a time, so that it is taken whole whatever the server is busy with; bytes.
const QUESTION_SIZE_MAX: usize = 16 * 1024;

/// What the sessions of one database and encoding share.
pub(super) struct Hub {
    /// The database.
    pub(super) database: String,
    /// The encoding in which channels and payloads are spelled.
    pub(super) encoding: String,
    state: Mutex<State>,
    /// Rung when there is something to ask the server for.
    pub(super) bell: Notify,
    /// Counts what sessions may wait for.
    progress: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    clients: HashMap<u64, Client>,
    channels: BTreeMap<Channel, Listeners>,
    /// Channels of which the server may know otherwise than their listeners want.
    unsettled: BTreeSet<Channel>,
    /// Those of them that are asked for one by one: the server refused a question in which they were.
    alone: BTreeSet<Channel>,
    /// Clients whose channels nobody listened to for a while; told once somebody does again.
    missed: BTreeSet<u64>,
    /// Who wants to know when all that was committed by now has been passed on.
    echoes: Vec<oneshot::Sender<()>>,
    /// Channels that are to be notified, and who wants to know when they have been.
    notes: Vec<(Channel, oneshot::Sender<()>)>,
    /// Why there is no connection, if there was a try since somebody joined.
    trouble: Option<Trouble>,
    /// Since when there is no client.
    unused_since: Option<Instant>,
}

/// One client that listens.
pub(super) struct Client {
    pub(super) mailbox: Arc<Mailbox>,
    /// Whose credentials may be used for the connection.
    pub(super) group: Arc<Group>,
}

/// Who listens to one channel.
#[derive(Default)]
struct Listeners {
    /// Those who are told what comes.
    active: BTreeMap<u64, Arc<Mailbox>>,
    /// Those who are told once the server has answered a question put since they came: what it tells before that was
    /// committed before they listened.
    joining: BTreeMap<u64, Arc<Mailbox>>,
    known: Known,
}

impl Listeners {
    fn is_empty(&self) -> bool {
        self.active.is_empty() && self.joining.is_empty()
    }
}

/// What the server knows of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Known {
    /// Nothing.
    #[default]
    No,
    /// It was told and has not answered.
    Told,
    /// It listens to it for this hub.
    Yes,
    /// It refuses to listen to it. So it will be refused whoever says so on a server of its own.
    Refused,
}

impl Known {
    /// Whether the server may listen to it.
    fn may_listen(self) -> bool {
        matches!(self, Known::Told | Known::Yes)
    }
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) report: Report,
    /// Whether trying again cannot help.
    pub(super) is_final: bool,
}

/// What is put to the server at a time.
#[derive(Debug)]
pub(super) struct Question {
    /// LISTEN and UNLISTEN statements, or one NOTIFY; may be empty.
    pub(super) sql: Vec<u8>,
    /// How many statements these are.
    pub(super) statements: usize,
    /// Whether it notifies: what the server says against that concerns nobody else.
    pub(super) notifies: bool,
    /// Channels that nobody wants any more.
    given_up: Vec<Channel>,
    /// Channels, and who joins them with the answer.
    told: Vec<(Channel, Vec<u64>)>,
    echoes: Vec<oneshot::Sender<()>>,
}

impl Hub {
    pub(super) fn new(database: &str, encoding: &str) -> Self {
        Self {
            database: database.to_owned(),
            encoding: encoding.to_owned(),
            state: Mutex::default(),
            bell: Notify::new(),
            progress: watch::Sender::new(0),
        }
    }

    /// Takes a client in.
    pub(super) fn join(&self, id: u64, client: Client) {
        let mut state = self.state.lock();
        state.clients.insert(id, client);
        state.unused_since = None;
        // What was wrong with others' credentials may not be wrong with this one's.
        state.trouble = None;
    }

    /// Lets go of a client and of all that it wanted.
    pub(super) fn leave<'a>(&self, id: u64, channels: impl IntoIterator<Item = &'a Channel>) {
        let mut state = self.state.lock();
        self.let_go(&mut state, id, channels);
        state.clients.remove(&id);
        state.missed.remove(&id);
        if state.clients.is_empty() {
            state.unused_since = Some(Instant::now());
        }
    }

    /// A client that was taken in wants to hear a channel; what comes is left in this mailbox. Whether it did not hear it
    /// before.
    pub(super) fn want(&self, id: u64, mailbox: &Arc<Mailbox>, channel: &Channel) -> bool {
        let is_new = self.state.lock().want(id, Arc::clone(mailbox), channel);
        if is_new {
            self.bell.notify_one();
        }
        is_new
    }

    /// A client does not want to hear some channels any more.
    pub(super) fn unwant<'a>(&self, id: u64, channels: impl IntoIterator<Item = &'a Channel>) {
        self.let_go(&mut self.state.lock(), id, channels);
    }

    fn let_go<'a>(&self, state: &mut State, id: u64, channels: impl IntoIterator<Item = &'a Channel>) {
        for channel in channels {
            let Some(listeners) = state.channels.get_mut(channel) else {
                continue;
            };
            listeners.active.remove(&id);
            listeners.joining.remove(&id);
            if !listeners.is_empty() {
                continue;
            }
            if listeners.known.may_listen() {
                state.unsettled.insert(Arc::clone(channel));
                self.bell.notify_one();
            } else {
                state.channels.remove(channel);
            }
        }
    }

    /// Waits until all of these channels are heard for a client, less those that the server refuses. Cancel safe.
    ///
    /// # Errors
    /// Why that cannot be, where waiting does not help.
    pub(super) async fn heard(&self, id: u64, channels: &[Channel]) -> Result<(), Report> {
        let mut progress = self.progress.subscribe();
        loop {
            progress.borrow_and_update();
            {
                let state = self.state.lock();
                if state.is_done(id, channels) {
                    return Ok(());
                }
                if let Some(trouble) = state.trouble.as_ref().filter(|trouble| trouble.is_final) {
                    return Err(trouble.report.clone());
                }
            }
            // The sender lives as long as the hub.
            let _ = progress.changed().await;
        }
    }

    /// Whether all of these channels are heard for a client.
    pub(super) fn hears(&self, id: u64, channels: &[Channel]) -> bool {
        self.state.lock().hears(id, channels)
    }

    /// Resolved once everything that was committed before this call has reached the mailboxes; dropped where the
    /// connection was lost on the way.
    pub(super) fn echo(&self) -> oneshot::Receiver<()> {
        let (passed, echo) = oneshot::channel();
        let mut state = self.state.lock();
        // Without a connection nobody takes them out.
        state.echoes.retain(|echo| !echo.is_closed());
        state.echoes.push(passed);
        drop(state);
        self.bell.notify_one();
        echo
    }

    /// Notifies a channel. Resolved once that is done and, where this hub hears the channel, has reached the mailboxes; or
    /// when the server has refused it. Dropped where the connection was lost on the way.
    pub(super) fn notify(&self, channel: &Channel) -> oneshot::Receiver<()> {
        let (passed, done) = oneshot::channel();
        let mut state = self.state.lock();
        state.notes.retain(|(_, done)| !done.is_closed());
        state.notes.push((Arc::clone(channel), passed));
        drop(state);
        self.bell.notify_one();
        done
    }

    /// Why there is no connection, if it was tried.
    pub(super) fn trouble(&self) -> Option<Report> {
        self.state
            .lock()
            .trouble
            .as_ref()
            .map(|trouble| trouble.report.clone())
    }

    /// Takes note of a failed try to connect.
    pub(super) fn fails(&self, trouble: Trouble) {
        self.state.lock().trouble = Some(trouble);
        self.progress.send_modify(|count| *count += 1);
    }

    /// One of the groups whose clients listen, another for each `turn`.
    pub(super) fn candidate(&self, turn: usize) -> Option<Arc<Group>> {
        let state = self.state.lock();
        let groups: BTreeMap<_, _> = state
            .clients
            .values()
            .map(|client| (client.group.id, &client.group))
            .collect();
        let index = turn.checked_rem(groups.len())?;
        groups.into_values().nth(index).cloned()
    }

    /// How many groups have clients that listen.
    pub(super) fn groups(&self) -> usize {
        let state = self.state.lock();
        let groups: BTreeSet<_> = state.clients.values().map(|client| client.group.id).collect();
        groups.len()
    }

    /// What is to be put to the server now; an empty question where there is nothing and `anything` will do.
    pub(super) fn question(&self, anything: bool) -> Option<Question> {
        let mut state = self.state.lock();
        let question = state.question();
        let asks = !(question.sql.is_empty() && question.told.is_empty() && question.echoes.is_empty());
        (asks || anything).then_some(question)
    }

    /// The server has done what was asked.
    pub(super) fn answered(&self, question: Question) {
        self.state.lock().answered(&question.told);
        self.progress(question.echoes);
    }

    /// The server has done nothing of what was asked, and goes on.
    pub(super) fn refused(&self, question: Question) {
        self.state.lock().refused(&question);
        self.progress(question.echoes);
    }

    /// A client misses what comes until all that is wanted is heard; it is told then.
    pub(super) fn miss_until_heard(&self, id: u64) {
        self.state.lock().missed.insert(id);
    }

    /// Whether a client misses something of which it has not been told.
    pub(super) fn misses(&self, id: u64) -> bool {
        self.state.lock().missed.contains(&id)
    }

    fn progress(&self, echoes: Vec<oneshot::Sender<()>>) {
        for echo in echoes {
            // A session that did not wait any longer is no reason to do anything.
            let _ = echo.send(());
        }
        self.progress.send_modify(|count| *count += 1);
    }

    /// The connection is lost: nobody listens.
    pub(super) fn lost(&self) {
        self.state.lock().lost();
    }

    /// Hands a notification to everybody who wants it. Whoever does not take what waits costs nobody else anything.
    pub(super) fn dispatch(&self, notification: Notification) {
        let notification = Arc::new(notification);
        let state = self.state.lock();
        let listeners = state.channels.get(notification.channel());
        // What the server tells of a channel before it has confirmed it is left over from another time.
        if let Some(listeners) = listeners.filter(|listeners| listeners.known == Known::Yes) {
            for mailbox in listeners.active.values() {
                mailbox.push(&notification);
            }
        }
    }

    /// Whether there has been no client for so long.
    pub(super) fn is_unused_for(&self, linger: Duration) -> bool {
        let state = self.state.lock();
        state.unused_since.is_some_and(|since| since.elapsed() >= linger)
    }

    /// Clients, and channels that anybody listens to.
    pub(super) fn usage(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.clients.len(), state.channels.len())
    }
}

impl State {
    /// Whether it is not heard yet: there is something to ask the server for.
    fn want(&mut self, id: u64, mailbox: Arc<Mailbox>, channel: &Channel) -> bool {
        let listeners = self.channels.entry(Arc::clone(channel)).or_default();
        let joins = !listeners.active.contains_key(&id);
        if joins {
            listeners.joining.insert(id, mailbox);
            self.unsettled.insert(Arc::clone(channel));
        }
        joins
    }

    fn hears(&self, id: u64, channels: &[Channel]) -> bool {
        channels.iter().all(|channel| {
            let listeners = self.channels.get(channel);
            listeners
                .is_some_and(|listeners| listeners.known == Known::Yes && listeners.active.contains_key(&id))
        })
    }

    /// Whether there is nothing to wait for: all of these channels are heard for a client, or never will be.
    fn is_done(&self, id: u64, channels: &[Channel]) -> bool {
        let refuses = |channel| {
            let listeners = self.channels.get(channel);
            listeners.is_some_and(|listeners| listeners.known == Known::Refused)
        };
        channels
            .iter()
            .all(|channel| refuses(channel) || self.hears(id, std::slice::from_ref(channel)))
    }

    /// A channel to be notified, one that is to be asked for alone, or as much of what is unsettled as fits.
    fn question(&mut self) -> Question {
        let mut question = Question {
            sql: Vec::new(),
            statements: 0,
            notifies: false,
            given_up: Vec::new(),
            told: Vec::new(),
            echoes: std::mem::take(&mut self.echoes),
        };
        if let Some((channel, done)) = self.notes.pop() {
            push_statement(&mut question.sql, b"NOTIFY", &channel);
            question.statements = 1;
            question.notifies = true;
            question.echoes.push(done);
            return question;
        }
        while question.sql.is_empty()
            && let Some(channel) = self.alone.pop_first()
        {
            if self.unsettled.remove(&channel) {
                self.ask_for(channel, &mut question);
            }
        }
        if !question.sql.is_empty() {
            return question;
        }
        while question.sql.len() < QUESTION_SIZE_MAX
            && let Some(channel) = self.unsettled.pop_first()
        {
            self.ask_for(channel, &mut question);
        }
        question
    }

    /// Adds a channel to a question. One that nobody wants is forgotten at once: whoever wants it from now on has it
    /// listened to by the next question, behind this one.
    fn ask_for(&mut self, channel: Channel, question: &mut Question) {
        let Some(listeners) = self.channels.get_mut(&channel) else {
            return;
        };
        if listeners.is_empty() {
            if listeners.known.may_listen() {
                push_statement(&mut question.sql, b"UNLISTEN", &channel);
                question.statements += 1;
                question.given_up.push(Arc::clone(&channel));
            }
            self.channels.remove(&channel);
            return;
        }
        match listeners.known {
            Known::No => {
                push_statement(&mut question.sql, b"LISTEN", &channel);
                question.statements += 1;
                listeners.known = Known::Told;
            }
            Known::Refused => return,
            Known::Told | Known::Yes => {}
        }
        let joining = listeners.joining.keys().copied().collect();
        question.told.push((channel, joining));
    }

    fn answered(&mut self, told: &[(Channel, Vec<u64>)]) {
        for (channel, joining) in told {
            if let Some(listeners) = self.channels.get_mut(channel) {
                listeners.known = Known::Yes;
                for id in joining {
                    if let Some((id, mailbox)) = listeners.joining.remove_entry(id) {
                        listeners.active.insert(id, mailbox);
                    }
                }
            }
        }
        self.trouble = None;
        if self.unsettled.is_empty() {
            for id in std::mem::take(&mut self.missed) {
                if let Some(client) = self.clients.get(&id) {
                    client.mailbox.miss();
                }
            }
        }
    }

    /// What was asked alone is refused for good; of several each is asked alone.
    fn refused(&mut self, question: &Question) {
        let is_alone = question.statements == 1;
        let (asked, joined): (Vec<_>, Vec<_>) = question.told.iter().cloned().partition(|(channel, _)| {
            let listeners = self.channels.get(channel);
            listeners.is_some_and(|listeners| listeners.known == Known::Told)
        });
        for (channel, _) in asked {
            let Some(listeners) = self.channels.get_mut(&channel) else {
                continue;
            };
            listeners.known = if is_alone { Known::Refused } else { Known::No };
            if listeners.is_empty() {
                self.channels.remove(&channel);
            } else if !is_alone {
                self.ask_alone(channel);
            }
        }
        // An UNLISTEN is not refused for itself.
        for channel in question.given_up.iter().filter(|_| !is_alone) {
            let wanted_again = self.channels.contains_key(channel);
            if !wanted_again {
                let known = Known::Yes;
                let listeners = Listeners {
                    known,
                    ..Listeners::default()
                };
                self.channels.insert(Arc::clone(channel), listeners);
            }
            self.ask_alone(Arc::clone(channel));
        }
        self.answered(&joined);
    }

    fn ask_alone(&mut self, channel: Channel) {
        self.unsettled.insert(Arc::clone(&channel));
        self.alone.insert(channel);
    }

    fn lost(&mut self) {
        self.alone.clear();
        for (channel, listeners) in &mut self.channels {
            match std::mem::replace(&mut listeners.known, Known::No) {
                Known::Yes => self.missed.extend(listeners.active.keys()),
                Known::Refused => drop(self.alone.insert(Arc::clone(channel))),
                // Nobody was told that a channel is listened to before the server said so.
                Known::No | Known::Told => {}
            }
        }
        self.channels.retain(|_, listeners| !listeners.is_empty());
        self.unsettled = self.channels.keys().cloned().collect();
        self.echoes.clear();
        self.notes.clear();
    }
}

#[cfg(test)]
pub(super) mod tests;
