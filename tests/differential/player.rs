//! Plays an exchange on some address and writes down what comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use crate::support::{Address, Client, Message, cancel, message};

use super::language::{Action, Exchange, Step, Until};
use super::transcript::{CONNECTED, Said, Transcript, Translator, notification};

/// How long a client waits for an answer. Longer than a client waits for a backend.
const ANSWER_LIMIT: Duration = Duration::from_secs(6);
/// How long notifications are waited for that are sure to come.
const NOTIFICATION_LIMIT: Duration = Duration::from_secs(10);
/// How long notifications are waited for that should not come.
const GRACE: Duration = Duration::from_millis(20);
/// How long lock waits are waited for.
const BLOCK_LIMIT: Duration = Duration::from_secs(5);

const BLOCKED: &str = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted";

/// The clients of one playing.
pub(crate) struct Player<'a> {
    address: &'a Address,
    /// The superuser on the server itself.
    admin: &'a mut Client,
    /// `None` for one that is gone.
    clients: BTreeMap<char, Option<Client>>,
    /// Those whose last message was a ReadyForQuery outside a block.
    idle: BTreeSet<char>,
    translator: Translator,
    transcript: Transcript,
    /// What was heard on the server itself, when it is played elsewhere.
    expected: Option<&'a Transcript>,
    stranger: Option<Stranger>,
}

/// A client that has nothing to do with an exchange, and holds a backend during every other step: whoever does not
/// hold one meets another backend from step to step.
pub(crate) struct Stranger(pub(crate) Client);

impl Stranger {
    fn come(&mut self, index: usize) {
        if index % 2 == 1 {
            self.0.query("BEGIN");
        }
    }

    fn go(&mut self, index: usize) {
        if index % 2 == 1 {
            self.0.query("COMMIT");
        }
    }
}

impl<'a> Player<'a> {
    pub(crate) fn new(address: &'a Address, admin: &'a mut Client) -> Self {
        Self {
            address,
            admin,
            clients: BTreeMap::new(),
            idle: BTreeSet::new(),
            translator: Translator::default(),
            transcript: Transcript::default(),
            expected: None,
            stranger: None,
        }
    }

    /// With a stranger among the clients, and waiting for as many notifications as came on the server itself.
    pub(crate) fn among(mut self, stranger: Stranger, expected: &'a Transcript) -> Self {
        self.stranger = Some(stranger);
        self.expected = Some(expected);
        self
    }

    /// Plays an exchange.
    pub(crate) fn play(mut self, exchange: &Exchange) -> Transcript {
        let notifies = exchange
            .steps
            .iter()
            .any(|step| step.text.to_ascii_lowercase().contains("listen"));
        for (index, step) in exchange.steps.iter().enumerate() {
            if let Some(stranger) = &mut self.stranger {
                stranger.come(index);
            }
            let said = self.step(step);
            self.transcript.steps.push(said);
            self.settle(index, notifies);
            if let Some(stranger) = &mut self.stranger {
                stranger.go(index);
            }
        }
        if notifies && self.expected.is_some() {
            std::thread::sleep(GRACE);
            self.take_all(exchange.steps.len() - 1);
        }
        for client in self.clients.into_values().flatten() {
            client.leave();
        }
        self.transcript
    }

    fn step(&mut self, step: &Step) -> Vec<Said> {
        match &step.action {
            Action::Directly(sql) => {
                let answer = self.admin.query(sql);
                return answer
                    .error
                    .iter()
                    .map(|error| Said::event(error.to_string()))
                    .collect();
            }
            Action::Blocked(count) => return self.until_blocked(*count),
            Action::Connect(parameters) => return self.connect(step.client, parameters),
            Action::Speak { .. } | Action::Cancel | Action::Leave => {}
        }
        let mut said = Vec::new();
        if !self.clients.contains_key(&step.client) {
            said = self.connect(step.client, &[]);
        }
        let Some(Some(client)) = self.clients.get_mut(&step.client) else {
            said.push(Said::event("(it has no connection)"));
            return said;
        };
        match &step.action {
            Action::Cancel => cancel(self.address.port, client.key.0, &client.key.1),
            Action::Leave => {
                if let Some(client) = self.clients.insert(step.client, None).flatten() {
                    client.leave();
                }
            }
            Action::Speak { bytes, until } => {
                // The server may have ended the connection; what it said is still to be read.
                let _ = client.try_send(bytes);
                self.idle.remove(&step.client);
                self.listen(step.client, *until, &mut said);
            }
            Action::Connect(_) | Action::Directly(_) | Action::Blocked(_) => {}
        }
        said
    }

    /// Connects, and tells what the server says of its settings.
    fn connect(&mut self, name: char, parameters: &[(String, String)]) -> Vec<Said> {
        let mut address = self.address.clone();
        let mut rest: Vec<(&str, &str)> = Vec::new();
        for (parameter, value) in parameters {
            match parameter.as_str() {
                "user" => value.clone_into(&mut address.user),
                "database" => value.clone_into(&mut address.database),
                parameter => rest.push((parameter, value)),
            }
        }
        match address.try_connect(&rest) {
            Ok(client) => {
                let _ = client.stream().set_read_timeout(Some(ANSWER_LIMIT));
                let said = client
                    .parameters
                    .iter()
                    .map(|(name, value)| Said::event(format!("{CONNECTED} {name} = {value}")))
                    .collect();
                self.clients.insert(name, Some(client));
                said
            }
            Err(refusal) => {
                self.clients.insert(name, None);
                vec![Said::event(format!("refused: {refusal}"))]
            }
        }
    }

    fn listen(&mut self, name: char, until: Until, said: &mut Vec<Said>) {
        let Some(Some(client)) = self.clients.get_mut(&name) else {
            return;
        };
        let began = said.len();
        let mut seen = 0;
        while !is_enough(until, seen, said.len() - began) {
            match client.try_receive() {
                Ok(message) if message.kind == b'A' => {
                    let heard = self.transcript.notifications.entry(name).or_default();
                    heard.push(notification(&message));
                }
                Ok(message) => {
                    said.push(self.translator.said(&message));
                    if message.kind == b'Z' && message.body == b"I" {
                        self.idle.insert(name);
                    } else {
                        self.idle.remove(&name);
                    }
                    if counts(until, &message) {
                        seen += 1;
                    }
                    if ends(until, &message) {
                        break;
                    }
                }
                Err(error) => {
                    let silent = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    said.push(Said::event(if silent {
                        "(nothing more came)"
                    } else {
                        "(the connection ended)"
                    }));
                    self.clients.insert(name, None);
                    break;
                }
            }
        }
        in_order(&mut said[began..]);
    }

    /// Takes the notifications that have come meanwhile: all that a server has for clients outside blocks, and of
    /// Halyard, which hands them on when they come, as many.
    fn settle(&mut self, index: usize, notifies: bool) {
        match self.expected {
            Some(expected) if notifies => {
                let deadline = Instant::now() + NOTIFICATION_LIMIT;
                loop {
                    self.take_all(index);
                    let complete = expected.counts[index]
                        .iter()
                        .all(|(name, count)| self.heard(*name) >= *count);
                    if complete || Instant::now() >= deadline {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            None if notifies => self.flush_out(),
            _ => {}
        }
        let counts = self
            .clients
            .keys()
            .map(|name| (*name, self.heard(*name)))
            .collect();
        self.transcript.counts.push(counts);
    }

    fn take_all(&mut self, index: usize) {
        let names: Vec<char> = self.clients.keys().copied().collect();
        for name in names {
            self.take_notifications(name, index);
        }
    }

    /// A server tells an idle client what it was notified of at the latest before it answers a Sync.
    fn flush_out(&mut self) {
        for name in self.idle.clone() {
            let Some(Some(client)) = self.clients.get_mut(&name) else {
                continue;
            };
            client.send(&message::sync());
            for message in client.until_ready() {
                if message.kind == b'A' {
                    let heard = self.transcript.notifications.entry(name).or_default();
                    heard.push(notification(&message));
                }
            }
        }
    }

    fn heard(&self, name: char) -> usize {
        self.transcript.notifications.get(&name).map_or(0, Vec::len)
    }

    fn take_notifications(&mut self, name: char, index: usize) {
        let Some(Some(client)) = self.clients.get_mut(&name) else {
            return;
        };
        while let Some(message) = receive_if_there(client) {
            if message.kind == b'A' {
                let heard = self.transcript.notifications.entry(name).or_default();
                heard.push(notification(&message));
            } else {
                let said = self.translator.said(&message);
                self.transcript.steps[index].push(said);
            }
        }
    }

    fn until_blocked(&mut self, count: usize) -> Vec<Said> {
        let deadline = Instant::now() + BLOCK_LIMIT;
        while self.admin.value(BLOCKED) != count.to_string() {
            if Instant::now() >= deadline {
                return vec![Said::event("(they do not block)")];
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Vec::new()
    }
}

/// The next message if it is there by now; none too if the connection ended.
fn receive_if_there(client: &mut Client) -> Option<Message> {
    client.stream().set_nonblocking(true).ok()?;
    let received = client.try_receive().ok();
    let _ = client.stream().set_nonblocking(false);
    received
}

fn is_enough(until: Until, seen: usize, messages: usize) -> bool {
    match until {
        Until::Ready { count, .. } | Until::Kind { count, .. } => seen >= count,
        Until::Count(count) => messages >= count,
        Until::Closed => false,
    }
}

fn counts(until: Until, message: &Message) -> bool {
    match until {
        Until::Ready { .. } => message.kind == b'Z',
        Until::Kind { kind, .. } => message.kind == kind,
        Until::Count(_) | Until::Closed => false,
    }
}

fn ends(until: Until, message: &Message) -> bool {
    match until {
        Until::Ready { copy, .. } => copy && matches!(message.kind, b'G' | b'W'),
        Until::Kind { kind, .. } => kind != b'Z' && message.kind == b'E',
        Until::Count(_) | Until::Closed => false,
    }
}

/// Settings are reported together and in no particular order.
fn in_order(said: &mut [Said]) {
    for group in said.chunk_by_mut(|one, other| one.is_parameter() && other.is_parameter()) {
        if group.len() > 1 {
            group.sort_by(|one, other| one.text().cmp(other.text()));
        }
    }
}
