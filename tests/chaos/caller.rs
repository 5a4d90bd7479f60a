//! A client that asks on and on, whatever it is told, and has everything witnessed.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Address, Answer, Client};
use crate::witness::{Progress, Witness};

/// No answer takes longer: what holds a statement has ended it by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(150);
/// Requests that a violation shows, and bytes of each.
const REMEMBERED: usize = 12;
const SHOWN: usize = 160;
/// Times that a block is asked to end: a lost node fails one, and nothing fails the next.
const ROLLBACKS: usize = 2;
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(200);

/// What came back.
#[derive(Debug)]
pub(crate) enum Heard {
    /// No error.
    Answer(Answer),
    /// An error; the connection lives on.
    Error(String),
    /// The connection ended, or nothing came.
    Gone,
}

/// See the module.
pub(crate) struct Caller {
    who: &'static str,
    address: Address,
    /// Sent on each new connection, with one ReadyForQuery to come.
    setup: Vec<u8>,
    client: Option<Client>,
    witness: &'static Witness,
    progress: &'static Progress,
    recent: VecDeque<String>,
}

impl Caller {
    pub(crate) fn new(
        who: &'static str,
        number: usize,
        address: &Address,
        setup: Vec<u8>,
        witness: &'static Witness,
    ) -> Self {
        let mut caller = Self {
            who,
            address: address.clone(),
            setup,
            client: None,
            witness,
            progress: witness.client(format!("{who} {number}")),
            recent: VecDeque::new(),
        };
        caller.connect();
        caller
    }

    /// Whether there is no more to do.
    pub(crate) fn is_over(&self) -> bool {
        self.witness.is_over()
    }

    pub(crate) fn witness(&self) -> &'static Witness {
        self.witness
    }

    /// A whole transaction went through.
    pub(crate) fn made_progress(&self) {
        self.progress.made();
    }

    fn connect(&mut self) {
        while self.client.is_none() && !self.is_over() {
            let asked = Instant::now();
            match self.try_connect() {
                Ok(client) => self.client = Some(client),
                Err((sqlstate, message)) => {
                    let what = (sqlstate.as_str(), message.as_str());
                    self.witness
                        .error(self.who, what, (asked, Instant::now()), &self.history());
                    thread::sleep(RETRY);
                }
            }
        }
    }

    /// # Errors
    /// SQLSTATE and message.
    fn try_connect(&self) -> Result<Client, (String, String)> {
        let connecting = |sqlstate| (sqlstate, "(while connecting)".to_owned());
        let mut client = self
            .address
            .try_connect(&[])
            .map_err(|refusal| connecting(refusal.sqlstate()))?;
        let io = |error: std::io::Error| connecting(format!("io: {error}"));
        client.stream().set_read_timeout(Some(ANSWER_LIMIT)).map_err(io)?;
        if !self.setup.is_empty() {
            client.try_send(&self.setup).map_err(io)?;
            let answer = client.try_answer().map_err(io)?;
            if let Some(error) = answer.error {
                return Err((error.field(b'C'), error.field(b'M')));
            }
        }
        Ok(client)
    }

    /// Sends a request, and reads until the next ReadyForQuery.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Heard {
        self.connect();
        let Some(client) = &mut self.client else {
            return Heard::Gone;
        };
        let asked = Instant::now();
        let answer = client.try_send(request).and_then(|()| client.try_answer());
        let told = Instant::now();
        match answer {
            Ok(answer) => {
                self.witness.answered(asked);
                let Some(error) = &answer.error else {
                    self.note(request, &answer.tags.join(", "));
                    return Heard::Answer(answer);
                };
                let (sqlstate, message) = (error.field(b'C'), error.field(b'M'));
                self.note(request, &format!("{sqlstate} {message} {}", error.field(b'D')));
                let what = (sqlstate.as_str(), message.as_str());
                self.witness.error(self.who, what, (asked, told), &self.history());
                Heard::Error(sqlstate)
            }
            Err(error) => {
                // Inside of a message nothing can be said: that is the one case for which the failure table has this.
                let inside = client.is_inside_a_message();
                self.note(request, &error.to_string());
                if !inside {
                    let waited = (told - asked).as_secs_f64();
                    self.witness.violation(&format!(
                        "the connection of {} ended, or did not answer for {waited:.1} s: {error}{}",
                        self.who,
                        self.history()
                    ));
                }
                self.client = None;
                Heard::Gone
            }
        }
    }

    fn note(&mut self, request: &[u8], answer: &str) {
        let legible = |byte: &u8| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '.',
        };
        let asked: String = request.iter().take(SHOWN).map(legible).collect();
        let at = self.witness.seconds(Instant::now());
        self.recent.push_back(format!("{at:.3} s: {asked} -> {answer}"));
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
    }

    /// What this client asked and heard last, for people.
    pub(crate) fn history(&self) -> String {
        self.recent.iter().map(|line| format!("\n    {line}")).collect()
    }

    /// Ends whatever block is open. A ROLLBACK whose node is lost may be told 40001 and has to be said again.
    pub(crate) fn roll_back(&mut self) {
        for _ in 0..ROLLBACKS {
            if self.client.is_none() {
                return;
            }
            if let Heard::Answer(_) = self.ask(&crate::support::message::query("ROLLBACK")) {
                return;
            }
        }
        let words = format!("{} cannot end its block{}", self.who, self.history());
        self.witness.violation(&words);
    }
}
