//! One client's registrations: what it listens to, what it may be about to listen to, and what waits for it.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::channel::{Channel, Registration, push_statement};
use super::hub::Hub;
use super::mailbox::{Mailbox, Taken};
use crate::error::{Report, SqlState};

/// A client that listens, or is about to.
pub struct Listening {
    hub: Arc<Hub>,
    id: u64,
    mailbox: Arc<Mailbox>,
    /// What it listens to, by the last word of a server.
    committed: BTreeSet<Channel>,
    /// What a statement names whose outcome is not known yet: heard already, not listened to yet.
    tentative: BTreeSet<Channel>,
    /// Most channels.
    channels_max: usize,
    /// Whether all channels are heard that the request at hand names: it may be sent.
    pub ready: bool,
    /// Whether what was committed before the end of the open transaction has been forgotten: it may end.
    pub fresh: bool,
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
            channels_max,
            ready: false,
            fresh: false,
        }
    }

    /// Has channels heard for the client that a statement names.
    ///
    /// # Errors
    /// 53400 when they are too many.
    pub fn want(&mut self, channels: &[Channel]) -> Result<(), Report> {
        self.tentative.extend(
            channels
                .iter()
                .filter(|&channel| !self.committed.contains(channel))
                .cloned(),
        );
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
            self.hub.want(self.id, channel);
        }
        Ok(())
    }

    /// Waits until everything is heard that was wanted. Cancel safe; it holds no borrow of this.
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
    /// is forgotten.
    pub fn settle(&mut self, channels: impl IntoIterator<Item = Vec<u8>>) {
        let now: BTreeSet<Channel> = channels.into_iter().map(Channel::from).collect();
        let before = std::mem::take(&mut self.tentative);
        let gone = before
            .union(&self.committed)
            .filter(|&channel| !now.contains(channel));
        self.hub.unwant(self.id, gone);
        for channel in now.difference(&self.committed) {
            self.hub.want(self.id, channel);
        }
        self.committed = now;
        self.ready = false;
        self.mailbox.forget(|channel| self.committed.contains(channel));
    }

    /// What the client listens to when this was committed, in order.
    pub fn with(&self, said: impl IntoIterator<Item = Registration>) -> Vec<Vec<u8>> {
        let mut now = self.committed.clone();
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
            self.hub.want(self.id, &channel);
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

    /// The client listens to channels that were not heard in time.
    pub fn miss(&self) {
        self.mailbox.miss();
    }

    /// Whether the client listens to nothing.
    pub fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.tentative.is_empty()
    }

    /// The statements that have a backend listen to what the client listens to; none where that is nothing.
    pub fn statements(&self) -> Option<Vec<u8>> {
        let mut sql = Vec::new();
        for channel in &self.committed {
            push_statement(&mut sql, b"LISTEN", channel);
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

impl Drop for Listening {
    fn drop(&mut self) {
        let all = self.committed.union(&self.tentative);
        self.hub.leave(self.id, all);
    }
}
