//! The best test of a proxy: the same exchange with and without it, and no difference to be seen.

use super::wire::Address;
use super::{Client, Cluster, Message, message};

enum Step {
    Send(Vec<u8>),
    Await { kind: u8, count: usize },
}

/// An exchange: what is sent, and after which message it goes on.
#[derive(Default)]
pub(crate) struct Script {
    setup: String,
    steps: Vec<Step>,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// SQL that runs on the primary before the exchange, each time.
    pub(crate) fn given(mut self, sql: &str) -> Self {
        self.setup.push_str(sql);
        self.setup.push(';');
        self
    }

    /// Sends bytes and goes on at once.
    pub(crate) fn send(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Send(bytes.into()));
        self
    }

    /// Waits for a message of a kind.
    pub(crate) fn until(mut self, kind: u8) -> Self {
        self.steps.push(Step::Await { kind, count: 1 });
        self
    }

    /// Waits for so many ReadyForQuery.
    pub(crate) fn until_ready(mut self, count: usize) -> Self {
        self.steps.push(Step::Await { kind: b'Z', count });
        self
    }

    /// A Query message and its answer.
    pub(crate) fn query(self, sql: &str) -> Self {
        self.send(message::query(sql)).until_ready(1)
    }

    /// A batch of the extended protocol, closed by Sync, and its answer.
    pub(crate) fn batch(self, messages: &[Vec<u8>]) -> Self {
        self.send([messages.concat(), message::sync()].concat())
            .until_ready(1)
    }

    /// Everything that comes back, in words.
    #[track_caller]
    fn play(&self, client: &mut Client) -> Vec<String> {
        let mut heard = Vec::new();
        for step in &self.steps {
            let got: Vec<Message> = match step {
                Step::Send(bytes) => {
                    // The server may have ended the connection; what it said is still to be read.
                    let _ = client.try_send(bytes);
                    continue;
                }
                Step::Await { kind, count } => (0..*count).flat_map(|_| client.until_kind(*kind)).collect(),
            };
            heard.extend(got.iter().map(ToString::to_string));
        }
        heard
    }
}

/// Plays the script on the primary and through the shared proxy, and compares every message that comes back.
#[track_caller]
pub(crate) fn differential(script: &Script) {
    differential_on(script, &Cluster::shared_proxy().address);
}

/// [`differential`] through some proxy of the shared cluster.
#[track_caller]
pub(crate) fn differential_on(script: &Script, proxy: &Address) {
    let cluster = Cluster::shared();
    let mut heard = [&cluster.app(cluster.primary().port), proxy].map(|address| {
        if !script.setup.is_empty() {
            cluster.prepare(&script.setup);
        }
        let mut client = address.connect();
        let heard = script.play(&mut client);
        client.leave();
        heard
    });
    let [direct, through] = &mut heard;
    if direct != through {
        let same = direct
            .iter()
            .zip(through.iter())
            .take_while(|(one, other)| one == other)
            .count();
        panic!(
            "after {same} equal messages\n  directly:        {:#?}\n  through Halyard: {:#?}",
            &direct[same.saturating_sub(2)..],
            &through[same.saturating_sub(2)..],
        );
    }
}
