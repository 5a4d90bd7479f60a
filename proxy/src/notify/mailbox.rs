//! What waits for one client: notifications, and word of those that it will never get.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::error::{Report, SqlState};
use crate::session::{Inbox, Message};
use crate::wire::{HEADER_SIZE, backend, tagged};

/// What a waiting notification is counted for besides its bytes; bytes.
const OVERHEAD: usize = 64;

/// One notification as the server sent it. Its clients share it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Notification {
    frame: Box<[u8]>,
    /// Where in the frame the channel's name ends.
    channel_end: usize,
}

/// Bytes of a frame before the channel's name: the header and the process ID of who notified.
const CHANNEL_BEGIN: usize = HEADER_SIZE + 4;

impl Notification {
    /// Takes a NotificationResponse, header included. `None` if it is malformed.
    pub(super) fn new(frame: &[u8]) -> Option<Self> {
        let length = frame.get(CHANNEL_BEGIN..)?.iter().position(|&byte| byte == 0)?;
        Some(Self {
            frame: frame.into(),
            channel_end: CHANNEL_BEGIN + length,
        })
    }

    pub(super) fn channel(&self) -> &[u8] {
        &self.frame[CHANNEL_BEGIN..self.channel_end]
    }

    fn payload(&self) -> &[u8] {
        let payload = &self.frame[self.channel_end + 1..];
        payload.strip_suffix(&[0]).unwrap_or(payload)
    }

    /// The same from the same process, in other words.
    fn respelled(&self, channel: &[u8], payload: &[u8]) -> Self {
        let mut frame = Vec::with_capacity(CHANNEL_BEGIN + channel.len() + payload.len() + 2);
        tagged(&mut frame, backend::NOTIFICATION_RESPONSE, |out| {
            out.extend_from_slice(&self.frame[HEADER_SIZE..CHANNEL_BEGIN]);
            out.extend_from_slice(channel);
            out.push(0);
            out.extend_from_slice(payload);
            out.push(0);
        });
        Self {
            frame: frame.into(),
            channel_end: CHANNEL_BEGIN + channel.len(),
        }
    }

    /// Whether its channel and payload are spelled alike in every encoding.
    fn is_ascii(&self) -> bool {
        self.frame[CHANNEL_BEGIN..].is_ascii()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Item {
    Notification(Arc<Notification>),
    /// So many did not fit.
    Dropped(u64),
    /// Nobody listened for a while.
    Missed,
}

impl Item {
    /// What it is counted for; bytes.
    fn size(&self) -> usize {
        match self {
            Item::Notification(notification) => notification.frame.len() + OVERHEAD,
            Item::Dropped(_) | Item::Missed => 0,
        }
    }
}

/// What waited in a mailbox.
pub struct Waiting(VecDeque<Item>);

impl Waiting {
    /// The channels and payloads, one after the other, of notifications that are not spelled alike in every encoding.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().flat_map(|item| match item {
            Item::Notification(notification) if !notification.is_ascii() => {
                vec![notification.channel(), notification.payload()]
            }
            _ => Vec::new(),
        })
    }

    /// Spells them as told: their texts once more, in the same order. In place of those for which there are none the client
    /// is told that something may be lost.
    pub fn respell(&mut self, texts: Vec<Option<Vec<u8>>>) {
        let mut texts = texts.into_iter();
        for item in &mut self.0 {
            if let Item::Notification(notification) = item
                && !notification.is_ascii()
            {
                let (channel, payload) = (texts.next().flatten(), texts.next().flatten());
                *item = match (channel, payload) {
                    (Some(channel), Some(payload)) => {
                        Item::Notification(Arc::new(notification.respelled(&channel, &payload)))
                    }
                    _ => Item::Missed,
                };
            }
        }
        let mut before_missed = false;
        self.0.retain(|item| {
            let missed = *item == Item::Missed;
            !(std::mem::replace(&mut before_missed, missed) && missed)
        });
    }
}

/// What waits for one client.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// The session's bell.
    inbox: Arc<Inbox>,
    /// Most bytes that wait.
    size_max: usize,
    /// Whether anything waits: what the session looks at without a lock.
    waiting: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// What the notifications in it are counted for.
    size: usize,
}

impl Queue {
    /// Where the first notification of a channel is.
    fn place_of(&self, channel: &[u8]) -> Option<usize> {
        self.items.iter().position(
            |item| matches!(item, Item::Notification(notification) if notification.channel() == channel),
        )
    }

    /// Some have been taken out.
    fn count(&mut self) {
        self.size = self.items.iter().map(Item::size).sum();
    }
}

/// What was handed out at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Notifications that the client gets.
    pub delivered: u64,
    /// Notifications of which it is told that it does not get them.
    pub dropped: u64,
}

impl Mailbox {
    pub(super) fn new(inbox: Arc<Inbox>, size_max: usize) -> Self {
        Self {
            inbox,
            size_max,
            waiting: AtomicBool::new(false),
            queue: Mutex::default(),
        }
    }

    /// Leaves a notification for the client; beyond the limit it is only counted.
    pub(super) fn push(&self, notification: &Arc<Notification>) {
        let mut queue = self.queue.lock();
        let size = notification.frame.len() + OVERHEAD;
        if queue.size + size <= self.size_max {
            queue.size += size;
            queue
                .items
                .push_back(Item::Notification(Arc::clone(notification)));
        } else if let Some(Item::Dropped(count)) = queue.items.back_mut() {
            *count += 1;
        } else {
            queue.items.push_back(Item::Dropped(1));
        }
        self.ring(&queue);
    }

    /// Whether a notification of this channel waits.
    pub(super) fn holds(&self, channel: &[u8]) -> bool {
        self.queue.lock().place_of(channel).is_some()
    }

    /// Forgets the first notification of a channel and everything behind it. False where it was to be told there that
    /// notifications may be lost.
    pub(super) fn cut_from(&self, channel: &[u8]) -> bool {
        let mut queue = self.queue.lock();
        let Some(place) = queue.place_of(channel) else {
            return true;
        };
        let cut = queue.items.split_off(place);
        queue.count();
        !cut.contains(&Item::Missed)
    }

    /// Forgets the first notification of a channel and everything before it.
    pub(super) fn cut_through(&self, channel: &[u8]) {
        let mut queue = self.queue.lock();
        if let Some(place) = queue.place_of(channel) {
            queue.items.drain(..=place);
            queue.count();
        }
    }

    /// Forgets all notifications that wait.
    pub(super) fn clear(&self) {
        self.forget(|_| false);
    }

    /// Takes out all that waits.
    pub(super) fn drain(&self) -> Waiting {
        let mut queue = self.queue.lock();
        queue.size = 0;
        self.waiting.store(false, Ordering::Release);
        Waiting(std::mem::take(&mut queue.items))
    }

    /// Puts what waited in another mailbox of the same client ahead of what waits here.
    pub(super) fn put_first(&self, Waiting(mut earlier): Waiting) {
        let mut queue = self.queue.lock();
        queue.size += earlier.iter().map(Item::size).sum::<usize>();
        earlier.append(&mut queue.items);
        queue.items = earlier;
        if !queue.items.is_empty() {
            self.ring(&queue);
        }
    }

    /// Has the client told, ahead of everything that waits, that notifications may be lost.
    pub(super) fn miss_first(&self) {
        self.put_first(Waiting(VecDeque::from([Item::Missed])));
    }

    /// Has the client told that notifications may be lost.
    pub(super) fn miss(&self) {
        let mut queue = self.queue.lock();
        if queue.items.back() != Some(&Item::Missed) {
            queue.items.push_back(Item::Missed);
        }
        self.ring(&queue);
    }

    /// Under the queue's lock, so that the flag never says less than the queue holds.
    fn ring(&self, _held: &Queue) {
        if !self.waiting.swap(true, Ordering::Release) {
            self.inbox.ring(Message::Notification);
        }
    }

    /// Whether anything waits.
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Forgets the notifications of channels that the client does not hear.
    pub(super) fn forget(&self, hears: impl Fn(&[u8]) -> bool) {
        let mut queue = self.queue.lock();
        queue.items.retain(|item| match item {
            Item::Notification(notification) => hears(notification.channel()),
            Item::Dropped(_) | Item::Missed => true,
        });
        queue.count();
    }

    /// Appends what waits to `out` as messages, oldest first, until `out` has grown by `size` bytes or more.
    pub(super) fn take(&self, out: &mut Vec<u8>, size: usize) -> Taken {
        let until = out.len() + size;
        let mut taken = Taken::default();
        let mut queue = self.queue.lock();
        while out.len() < until
            && let Some(item) = queue.items.pop_front()
        {
            match item {
                Item::Notification(notification) => {
                    queue.size -= notification.frame.len() + OVERHEAD;
                    out.extend_from_slice(&notification.frame);
                    taken.delivered += 1;
                }
                Item::Dropped(count) => {
                    dropped(count, self.size_max).encode(out);
                    taken.dropped += count;
                }
                Item::Missed => missed().encode(out),
            }
        }
        self.waiting.store(!queue.items.is_empty(), Ordering::Release);
        taken
    }
}

fn dropped(count: u64, size_max: usize) -> Report {
    let notifications = if count == 1 {
        "notification was"
    } else {
        "notifications were"
    };
    Report::warning(SqlState::WARNING, format!("{count} {notifications} dropped"))
        .with_detail(format!(
            "More than {size_max} bytes waited for this client (limits.notifications_queued_max)."
        ))
        .with_hint("Look at what the notifications tell of afresh, and read them faster.")
}

fn missed() -> Report {
    Report::warning(SqlState::WARNING, "notifications may have been lost")
        .with_detail("The connection that listens for this session was lost; another listens now.")
        .with_hint("Look at what the notifications tell of afresh.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tagged;

    fn notification(channel: &str, payload: &str) -> Arc<Notification> {
        let mut frame = Vec::new();
        tagged(&mut frame, b'A', |out| {
            out.extend_from_slice(&7_i32.to_be_bytes());
            out.extend_from_slice(format!("{channel}\0{payload}\0").as_bytes());
        });
        Arc::new(Notification::new(&frame).unwrap())
    }

    fn mailbox(size_max: usize) -> Mailbox {
        Mailbox::new(Arc::default(), size_max)
    }

    /// The messages handed out: payloads, and the words of warnings.
    fn taken(mailbox: &Mailbox, size: usize) -> Vec<String> {
        let mut out = Vec::new();
        mailbox.take(&mut out, size);
        let mut messages = Vec::new();
        let mut at = 0;
        while let Some(header) = crate::wire::Header::parse(&out[at..]).unwrap() {
            let body = &out[at + HEADER_SIZE..at + header.total()];
            let fields: Vec<_> = body
                .split(|&byte| byte == 0)
                .map(String::from_utf8_lossy)
                .collect();
            messages.push(match header.kind {
                b'A' => fields[fields.len() - 2].to_string(),
                _ => fields.iter().find(|field| field.starts_with('M')).unwrap()[1..].to_owned(),
            });
            at += header.total();
        }
        messages
    }

    #[test]
    fn a_malformed_notification_is_none() {
        assert_eq!(Notification::new(b"A\0\0\0\x08\0\0\0\x07"), None);
        assert_eq!(Notification::new(b"A\0\0\0\x09\0\0\0\x07x"), None);
        assert_eq!(notification("a b", "p").channel(), b"a b");
    }

    #[test]
    fn they_are_handed_out_in_order_and_by_portions() {
        let mailbox = mailbox(1 << 20);
        for payload in ["1", "1", "2"] {
            mailbox.push(&notification("c", payload));
        }
        assert!(mailbox.is_waiting());
        assert_eq!(taken(&mailbox, 1), ["1"]);
        assert!(mailbox.is_waiting());
        assert_eq!(taken(&mailbox, 1 << 20), ["1", "2"]);
        assert!(!mailbox.is_waiting());
        assert_eq!(taken(&mailbox, 1 << 20), [""; 0]);
    }

    #[test]
    fn what_does_not_fit_is_told_where_it_is_missing() {
        let one = notification("c", "x");
        let mailbox = mailbox(2 * (one.frame.len() + OVERHEAD));
        for payload in ["1", "2", "3", "4"] {
            mailbox.push(&notification("c", payload));
        }
        assert_eq!(taken(&mailbox, 1), ["1"]);
        mailbox.push(&notification("c", "5"));
        assert_eq!(
            taken(&mailbox, 1 << 20),
            ["2", "2 notifications were dropped", "5"]
        );
        for round in 0..100 {
            mailbox.push(&notification("c", &format!("{}", round % 10)));
        }
        assert!(
            mailbox.queue.lock().items.len() <= 3,
            "a slow client costs no more than its limit"
        );
    }

    #[test]
    fn a_gap_is_told_once() {
        let mailbox = mailbox(1 << 20);
        mailbox.push(&notification("c", "1"));
        mailbox.miss();
        mailbox.miss();
        mailbox.push(&notification("c", "2"));
        assert_eq!(
            taken(&mailbox, 1 << 20),
            ["1", "notifications may have been lost", "2"]
        );
    }

    /// One that could not be written took all others with it.
    #[test]
    fn a_gap_is_where_something_cannot_be_written() {
        let mailbox = mailbox(1 << 20);
        for payload in ["é1", "漢", "漢字", "2", "é3"] {
            mailbox.push(&notification("c", payload));
        }
        let mut waiting = mailbox.drain();
        let texts: Vec<_> = waiting.texts().map(<[u8]>::to_vec).collect();
        let told = texts.into_iter().map(|text| {
            let text = String::from_utf8(text).unwrap();
            (!text.starts_with('漢')).then(|| text.replace('é', "e").into_bytes())
        });
        waiting.respell(told.collect());
        mailbox.put_first(waiting);
        assert_eq!(
            taken(&mailbox, 1 << 20),
            ["e1", "notifications may have been lost", "2", "e3"]
        );
    }

    #[test]
    fn an_unlistened_channel_leaves_nothing_behind() {
        let mailbox = mailbox(1 << 20);
        mailbox.push(&notification("c", "1"));
        mailbox.push(&notification("d", "2"));
        mailbox.forget(|channel| channel == b"d");
        assert_eq!(taken(&mailbox, 1 << 20), ["2"]);
        assert_eq!(mailbox.queue.lock().size, 0);
    }
}
