//! One client's registrations: what it listens to, what it may be about to listen to, and what waits for it.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::channel::{Channel, Registration, push_statement};
use super::hub::Hub;
use super::mailbox::{Mailbox, Taken, Waiting};
use crate::error::{Report, SqlState};

/// How long each of the two steps may take by which a client comes to hear in another encoding: being heard by the other
/// hub, and meeting there. In its own tests no machine is too slow.
const FOLLOW_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 2 });

/// Between two looks at whether they have met, where the first was too early.
const MEETING_PAUSE: Duration = Duration::from_millis(10);

/// What a backend listens to besides its client's channels where some of these cannot be written in its encoding: when it
/// is gone, so are they, by UNLISTEN *.
const UNWRITTEN: &[u8] = b"halyard:unwritten";

/// How a client came to hear in another encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// It has been told everything, or will be.
    Whole,
    /// Something may be lost, as it will be told.
    Gap,
    /// It hears as before: the other hub does not hear yet.
    Not,
}

/// A channel that cannot be written in the encoding that a client speaks now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unwritten {
    /// The encoding of its name.
    pub encoding: String,
    /// Its name there.
    pub channel: Channel,
}

/// A client that listens, or is about to.
pub struct Listening {
    hub: Arc<Hub>,
    id: u64,
    mailbox: Arc<Mailbox>,
    /// What it listens to, by the last word of a server.
    committed: BTreeSet<Channel>,
    /// What a statement names whose outcome is not known yet: heard already, not listened to yet.
    tentative: BTreeSet<Channel>,
    /// What it listens to and does not hear as long as it speaks this encoding.
    unwritten: BTreeSet<Unwritten>,
    /// Most channels.
    channels_max: usize,
    /// Whether all channels are heard that the request at hand names: it may be sent.
    pub ready: bool,
    /// Whether what was committed before the end of the open transaction has been forgotten: it may end.
    pub fresh: bool,
    /// Whether the client was told of another `client_encoding` since it began to listen.
    pub turned: bool,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listening({} channels)", self.committed.len())
    }
}

impl Listening {
    pub(super) fn new(hub: Arc<Hub>, id: u64, mailbox: Arc<Mailbox>, channels_max: usize) -> Self {
        Self {
            hub,
            id,
            mailbox,
            committed: BTreeSet::new(),
            tentative: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            channels_max,
            ready: false,
            fresh: false,
            turned: false,
        }
    }

    /// The encoding in which its channels and notifications are spelled.
    pub fn encoding(&self) -> &str {
        &self.hub.encoding
    }

    /// Whether the client speaks another encoding than that in which its channels are spelled, and that shows.
    pub fn is_misspelled(&self) -> bool {
        self.turned && self.beyond_ascii().next().is_some()
    }

    /// The channels that are not spelled alike in every encoding.
    pub fn beyond_ascii(&self) -> impl Iterator<Item = &Channel> {
        let all = self.committed.union(&self.tentative);
        all.filter(|channel| !channel.is_ascii())
    }

    /// Goes on for the same client in another encoding: with its channels, of which `spelled` has those that are spelled
    /// differently, and with all that comes for it, once and in order, behind what waits in the earlier mailbox. The earlier
    /// one hears for it until this one does. Not cancel safe.
    pub async fn follow(&mut self, earlier: &Self, spelled: &HashMap<Channel, Channel>) -> Followed {
        let respell = |channel: &Channel| match channel.is_ascii() {
            true => Some(Arc::clone(channel)),
            false => spelled.get(channel).cloned(),
        };
        self.committed = earlier.committed.iter().filter_map(respell).collect();
        self.tentative = earlier.tentative.iter().filter_map(respell).collect();
        self.unwritten.clone_from(&earlier.unwritten);
        let lost = earlier
            .committed
            .iter()
            .filter(|channel| respell(channel).is_none());
        self.unwritten.extend(lost.map(|channel| Unwritten {
            encoding: earlier.encoding().to_owned(),
            channel: Arc::clone(channel),
        }));
        for channel in self.committed.union(&self.tentative) {
            self.hub.want(self.id, &self.mailbox, channel);
        }
        if !matches!(timeout(FOLLOW_LIMIT, self.heard()).await, Ok(Ok(()))) {
            return Followed::Not;
        }
        let turned = self.change_over(earlier).await;
        if !turned {
            // What both are told would come twice.
            earlier.fall_silent();
            let _ = timeout(FOLLOW_LIMIT, self.echo()).await;
            self.mailbox.clear();
        }
        if turned && self.is_heard() && self.wanted().len() == earlier.wanted().len() {
            return Followed::Whole;
        }
        self.miss();
        Followed::Gap
    }

    /// Takes out the channels that the encoding of before could not write.
    pub fn take_unwritten(&mut self) -> BTreeSet<Unwritten> {
        std::mem::take(&mut self.unwritten)
    }

    /// Keeps a channel that this encoding cannot write either.
    pub fn keep_unwritten(&mut self, channel: Unwritten) {
        self.unwritten.insert(channel);
    }

    /// Takes out what waits for the client.
    pub fn drain(&self) -> Waiting {
        self.mailbox.drain()
    }

    /// Puts what the client is to be told ahead of everything else.
    pub fn put_first(&self, waiting: Waiting) {
        self.mailbox.put_first(waiting);
    }

    /// Has everything that was committed before one moment wait in the earlier mailbox, and everything behind it in this
    /// one. The moment is a notification that both hubs hear: a server tells all that listen in one order (NOTIFY in the
    /// manual, `asyncQueueReadAllNotifications` in async.c), though not at one time. False where that is not to be had.
    async fn change_over(&self, earlier: &Self) -> bool {
        let Some(turn) = turning_point() else {
            return false;
        };
        let turned = timeout(FOLLOW_LIMIT, self.meet(earlier, &turn)).await;
        for side in [self, earlier] {
            side.hub.unwant(side.id, [&turn]);
        }
        let turned = turned.unwrap_or(false);
        if !turned {
            earlier.mailbox.forget(|channel| *channel != *turn);
            return false;
        }
        earlier.fall_silent();
        // What that one has missed it may not have been told before the moment.
        let whole = !earlier.hub.misses(earlier.id);
        let whole = earlier.mailbox.cut_from(&turn) && whole;
        self.mailbox.cut_through(&turn);
        if !whole {
            self.mailbox.miss_first();
        }
        true
    }

    /// Has both mailboxes get a notification of this channel. False where one of the two connections is lost meanwhile, or
    /// has no room for it. Cancel safe.
    async fn meet(&self, earlier: &Self, turn: &Channel) -> bool {
        for side in [self, earlier] {
            side.hub.want(side.id, &side.mailbox, turn);
        }
        for side in [self, earlier] {
            if side.hub.heard(side.id, std::slice::from_ref(turn)).await.is_err() {
                return false;
            }
        }
        if self.hub.notify(turn).await.is_err() || !self.mailbox.holds(turn) {
            return false;
        }
        while !earlier.mailbox.holds(turn) {
            if earlier.echo().await.is_err() {
                return false;
            }
            if !earlier.mailbox.holds(turn) {
                sleep(MEETING_PAUSE).await;
            }
        }
        true
    }

    /// The client is told nothing more by this hub.
    fn fall_silent(&self) {
        let all = self.committed.union(&self.tentative);
        self.hub.unwant(self.id, all);
    }

    /// Has channels heard for the client that a statement names.
    ///
    /// # Errors
    /// 53400 when they are too many.
    pub fn want(&mut self, channels: &[Channel]) -> Result<(), Report> {
        let new: Vec<Channel> = channels
            .iter()
            .filter(|&channel| !self.committed.contains(channel))
            .cloned()
            .collect();
        self.tentative.extend(new);
        let count = self.committed.len() + self.tentative.len();
        if count > self.channels_max {
            self.revert();
            return Err(Report::error(
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                "this session listens to too many channels",
            )
            .with_detail(format!(
                "It would be {count}; the limit is {} (limits.channels_max).",
                self.channels_max
            )));
        }
        for channel in &self.tentative {
            self.hub.want(self.id, &self.mailbox, channel);
        }
        Ok(())
    }

    /// Waits until everything is heard that was wanted, less what the server refuses. Cancel safe; it holds no borrow of this.
    ///
    /// # Errors
    /// Why that cannot be, where waiting does not help.
    pub fn heard(&self) -> impl Future<Output = Result<(), Report>> + Send + use<> {
        let (hub, id, channels) = (Arc::clone(&self.hub), self.id, self.wanted());
        async move { hub.heard(id, &channels).await }
    }

    /// Whether everything is heard that was wanted.
    pub fn is_heard(&self) -> bool {
        self.hub.hears(self.id, &self.wanted())
    }

    fn wanted(&self) -> Vec<Channel> {
        self.tentative.union(&self.committed).cloned().collect()
    }

    /// Why nothing is heard, as far as that is known.
    pub fn trouble(&self) -> Option<Report> {
        self.hub.trouble()
    }

    /// A server said what the client listens to now. Anything else is not heard for it any more, and what waits of it
    /// is forgotten. Whether it listens to a channel that was not heard for it before.
    pub fn settle(&mut self, channels: impl IntoIterator<Item = Vec<u8>>) -> bool {
        let mut now: BTreeSet<Channel> = channels.into_iter().map(Channel::from).collect();
        if !now.remove(UNWRITTEN) {
            self.unwritten.clear();
        }
        let before = std::mem::take(&mut self.tentative);
        let gone = before
            .union(&self.committed)
            .filter(|&channel| !now.contains(channel));
        self.hub.unwant(self.id, gone);
        let mut late = false;
        for channel in now.difference(&self.committed) {
            late |= self.hub.want(self.id, &self.mailbox, channel);
        }
        self.committed = now;
        self.ready = false;
        self.mailbox.forget(|channel| self.committed.contains(channel));
        late
    }

    /// What the client listens to when this was committed, in order.
    pub fn with(&self, said: impl IntoIterator<Item = Registration>) -> Vec<Vec<u8>> {
        let mut now = self.committed.clone();
        if !self.unwritten.is_empty() {
            now.insert(UNWRITTEN.into());
        }
        for said in said {
            match said {
                Registration::Listen(channel) => drop(now.insert(channel)),
                Registration::Unlisten(channel) => drop(now.remove(&channel)),
                Registration::UnlistenAll => now.clear(),
            }
        }
        now.iter().map(|channel| channel.to_vec()).collect()
    }

    /// A server said what the client listens to besides what it listened to before.
    pub fn add(&mut self, channels: impl IntoIterator<Item = Vec<u8>>) {
        for channel in channels.into_iter().map(Channel::from) {
            self.hub.want(self.id, &self.mailbox, &channel);
            self.committed.insert(channel);
        }
    }

    /// What a statement named did not come to be.
    pub fn revert(&mut self) {
        let tentative = std::mem::take(&mut self.tentative);
        self.hub.unwant(self.id, &tentative);
        self.ready = false;
        if !tentative.is_empty() {
            self.mailbox.forget(|channel| self.committed.contains(channel));
        }
    }

    /// Whether the open transaction listens to anything that the client did not listen to before.
    pub fn has_tentative(&self) -> bool {
        !self.tentative.is_empty()
    }

    /// Forgets what came of channels that are not listened to yet: LISTEN takes effect at the commit.
    pub fn forget_tentative(&self) {
        self.mailbox.forget(|channel| self.committed.contains(channel));
    }

    /// Nobody knows what became of the statements: the client hears what it may have listened to, and is told.
    pub fn assume(&mut self) {
        self.committed.append(&mut self.tentative);
        self.ready = false;
        self.mailbox.miss();
    }

    /// The client listens to channels that were not heard in time. It is told of that when they are.
    pub fn miss(&self) {
        if self.is_heard() {
            self.mailbox.miss();
        } else {
            self.hub.miss_until_heard(self.id);
        }
    }

    /// Whether the client listens to nothing.
    pub fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.tentative.is_empty() && self.unwritten.is_empty()
    }

    /// The statements that have a backend listen to what the client listens to; none where that is nothing.
    pub fn statements(&self) -> Option<Vec<u8>> {
        let mut sql = Vec::new();
        for channel in &self.committed {
            push_statement(&mut sql, b"LISTEN", channel);
        }
        if !self.unwritten.is_empty() {
            push_statement(&mut sql, b"LISTEN", UNWRITTEN);
        }
        (!sql.is_empty()).then_some(sql)
    }

    /// Whether the client has something to be told.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.tentative.is_empty() && self.mailbox.is_waiting()
    }

    /// Appends to `out` what the client has to be told, until it has grown by `size` bytes or more.
    pub fn take_mail(&self, out: &mut Vec<u8>, size: usize) -> Taken {
        self.mailbox.take(out, size)
    }

    /// Resolved once everything that was committed before this call waits for the client; dropped where that will
    /// not be.
    pub fn echo(&self) -> oneshot::Receiver<()> {
        self.hub.echo()
    }
}

/// The name of a channel that nobody else uses; `None` without chance to be had.
fn turning_point() -> Option<Channel> {
    let mut number = [0; 8];
    SystemRandom::new().fill(&mut number).ok()?;
    let name = format!("halyard:turn:{:016x}", u64::from_ne_bytes(number));
    Some(name.into_bytes().into())
}

impl Drop for Listening {
    fn drop(&mut self) {
        let all = self.committed.union(&self.tentative);
        self.hub.leave(self.id, all);
    }
}

#[cfg(test)]
mod tests;
