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
    /// Clients whose channels nobody listened to for a while; told once somebody does again.
    missed: BTreeSet<u64>,
    /// Who wants to know when all that was committed by now has been passed on.
    fences: Vec<oneshot::Sender<()>>,
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

struct Listeners {
    mailboxes: BTreeMap<u64, Arc<Mailbox>>,
    known: Known,
}

/// What the server knows of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing.
    No,
    /// It was told and has not answered.
    Told,
    /// It listens to it for this hub.
    Yes,
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
    /// LISTEN and UNLISTEN statements; may be empty.
    pub(super) sql: Vec<u8>,
    told: Vec<Channel>,
    fences: Vec<oneshot::Sender<()>>,
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
        self.unwant(id, channels);
        let mut state = self.state.lock();
        state.clients.remove(&id);
        state.missed.remove(&id);
        if state.clients.is_empty() {
            state.unused_since = Some(Instant::now());
        }
    }

    /// A client wants to hear a channel.
    pub(super) fn want(&self, id: u64, channel: &Channel) {
        let mut state = self.state.lock();
        let Some(mailbox) = state.clients.get(&id).map(|client| Arc::clone(&client.mailbox)) else {
            return;
        };
        let listeners = state.channels.entry(Arc::clone(channel)).or_insert(Listeners {
            mailboxes: BTreeMap::new(),
            known: Known::No,
        });
        listeners.mailboxes.insert(id, mailbox);
        if listeners.known == Known::No {
            state.unsettled.insert(Arc::clone(channel));
            self.bell.notify_one();
        }
    }

    /// A client does not want to hear some channels any more.
    pub(super) fn unwant<'a>(&self, id: u64, channels: impl IntoIterator<Item = &'a Channel>) {
        let mut state = self.state.lock();
        for channel in channels {
            let Some(listeners) = state.channels.get_mut(channel) else {
                continue;
            };
            listeners.mailboxes.remove(&id);
            if !listeners.mailboxes.is_empty() {
                continue;
            }
            if listeners.known == Known::No {
                state.channels.remove(channel);
            } else {
                state.unsettled.insert(Arc::clone(channel));
                self.bell.notify_one();
            }
        }
    }

    /// Waits until the server listens to all of these channels for the hub. Cancel safe.
    ///
    /// # Errors
    /// Why that cannot be, where waiting does not help.
    pub(super) async fn heard(&self, channels: &[Channel]) -> Result<(), Report> {
        let mut progress = self.progress.subscribe();
        loop {
            progress.borrow_and_update();
            {
                let state = self.state.lock();
                if state.hears(channels) {
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

    /// Whether the server listens to all of these channels for the hub.
    pub(super) fn hears(&self, channels: &[Channel]) -> bool {
        self.state.lock().hears(channels)
    }

    /// Resolved once everything that was committed before this call has reached the mailboxes; dropped where the
    /// connection was lost on the way.
    pub(super) fn fence(&self) -> oneshot::Receiver<()> {
        let (passed, fence) = oneshot::channel();
        let mut state = self.state.lock();
        // Without a connection nobody takes them out.
        state.fences.retain(|fence| !fence.is_closed());
        state.fences.push(passed);
        drop(state);
        self.bell.notify_one();
        fence
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
        let asks = !question.sql.is_empty() || !question.fences.is_empty();
        (asks || anything).then_some(question)
    }

    /// The server has done what was asked.
    pub(super) fn answered(&self, question: Question) {
        self.state.lock().answered(&question.told);
        for fence in question.fences {
            // A session that did not wait any longer is no reason to do anything.
            let _ = fence.send(());
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
        if let Some(listeners) = state.channels.get(notification.channel()) {
            for mailbox in listeners.mailboxes.values() {
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
    fn hears(&self, channels: &[Channel]) -> bool {
        let known = |channel| self.channels.get(channel).map(|listeners| listeners.known);
        channels.iter().all(|channel| known(channel) == Some(Known::Yes))
    }

    /// As much of what is unsettled as fits. A channel that nobody wants is forgotten at once: whoever wants it from
    /// now on has it listened to by the next question, behind this one.
    fn question(&mut self) -> Question {
        let (mut sql, mut told) = (Vec::new(), Vec::new());
        while sql.len() < QUESTION_SIZE_MAX
            && let Some(channel) = self.unsettled.pop_first()
        {
            let Some(listeners) = self.channels.get_mut(&channel) else {
                continue;
            };
            match (listeners.mailboxes.is_empty(), listeners.known) {
                (true, known) => {
                    if known != Known::No {
                        push_statement(&mut sql, b"UNLISTEN", &channel);
                    }
                    self.channels.remove(&channel);
                }
                (false, Known::No) => {
                    push_statement(&mut sql, b"LISTEN", &channel);
                    listeners.known = Known::Told;
                    told.push(channel);
                }
                (false, Known::Told | Known::Yes) => {}
            }
        }
        Question {
            sql,
            told,
            fences: std::mem::take(&mut self.fences),
        }
    }

    fn answered(&mut self, told: &[Channel]) {
        for channel in told {
            if let Some(listeners) = self.channels.get_mut(channel) {
                listeners.known = Known::Yes;
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

    fn lost(&mut self) {
        for listeners in self.channels.values_mut() {
            // Nobody was told that a channel is listened to before the server said so.
            if std::mem::replace(&mut listeners.known, Known::No) == Known::Yes {
                self.missed.extend(listeners.mailboxes.keys());
            }
        }
        self.channels
            .retain(|_, listeners| !listeners.mailboxes.is_empty());
        self.unsettled = self.channels.keys().cloned().collect();
        self.fences.clear();
    }
}

#[cfg(test)]
mod tests;
