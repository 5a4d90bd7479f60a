//! One connection to a node, with everything that has to be known to lend it to anybody.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use halyard_health::SampleNumber;

use super::{Claim, Drawn};
use crate::login::{BackendKey, BackendLink};
use crate::relay::ledger::{Ledger, Settled};
use crate::session::{PreparedSet, Settings, Statement};
use crate::stream::Stream;
use crate::wire::OutBuf;

/// What an idle backend may say before it is closed for it; bytes.
const CARRY_MAX: usize = 16 * 1024;

/// The rest of a frame that is longer than what has arrived of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passing {
    /// Bytes of it that are still to come.
    pub remaining: usize,
    /// Whether they are for the client.
    pub forward: bool,
}

/// One connection to a node.
#[derive(Debug)]
pub struct Backend {
    /// The connection.
    pub stream: Stream,
    /// The answers it owes.
    pub ledger: Ledger,
    /// What it has not taken yet.
    pub out: OutBuf,
    /// The beginning of a frame whose rest has not arrived.
    pub carry: Vec<u8>,
    /// The frame that is being passed on piece by piece.
    pub passing: Passing,
    /// Statements that are prepared on it, by Halyard's names.
    pub prepared: PreparedSet,
    /// What its unnamed statement is; none where there is none or nobody knows.
    pub unnamed: Option<Arc<Statement>>,
    /// The settings that its last client had.
    pub settings: Arc<Settings>,
    /// ParameterStatus as it stands, with the settings of the last client.
    pub parameters: Vec<(String, String)>,
    /// What a CancelRequest must show.
    pub key: Arc<BackendKey>,
    /// Whose values `currval` and `lastval` tell on it.
    pub drawn: Drawn,
    /// The claim to it of a session that it was lent of, while it is lent to another.
    pub(super) lent_of: Option<Claim>,
    /// The reactor its socket is registered with.
    reactor: usize,
    /// When it was made; seconds of the pool's coarse clock.
    pub born: u32,
    /// When it was last given back; seconds of the pool's coarse clock.
    pub idle_since: u32,
    /// Its pool's generation when it was made.
    pub generation: u64,
    /// The last sample drawn before it was open; see [`Coverage::vouches`](halyard_health::Coverage::vouches).
    pub born_at: SampleNumber,
}

/// Whether an idle backend can be lent.
pub enum Liveness {
    /// Nothing speaks against it.
    Alive,
    /// It has ended, or is about to.
    Ended,
}

impl Backend {
    /// Takes over a fresh login.
    pub fn new(
        link: BackendLink,
        settings: Arc<Settings>,
        prepared_max: usize,
        born: u32,
        generation: u64,
        born_at: SampleNumber,
        reactor: usize,
    ) -> Self {
        Self {
            stream: link.stream,
            ledger: Ledger::default(),
            out: OutBuf::default(),
            carry: link.leftover,
            passing: Passing::default(),
            prepared: PreparedSet::new(prepared_max),
            unnamed: None,
            settings,
            parameters: link.parameters,
            key: Arc::new(link.key),
            drawn: Drawn::Nothing,
            lent_of: None,
            reactor,
            born,
            idle_since: born,
            generation,
            born_at,
        }
    }

    /// The proof that it can be lent to anybody: nothing is owed, no transaction is open, and no message is half
    /// sent or half read.
    pub fn settled(&self) -> Option<Settled> {
        let between_messages = self.passing.remaining == 0 && self.out.is_empty();
        self.ledger.settled().filter(|_| between_messages)
    }

    /// The number of the session that had it last.
    #[inline]
    pub fn owner(&self) -> u64 {
        self.prepared.borrower()
    }

    /// The reactor its socket is registered with.
    pub fn reactor(&self) -> usize {
        self.reactor
    }

    /// Looks, without a system call where nothing has arrived, whether the server ended an idle connection.
    ///
    /// What else the server said meanwhile (a ParameterStatus after a reload, a notice) is kept for the relay.
    pub fn liveness(&mut self, scratch: &mut [u8]) -> Liveness {
        let mut cx = Context::from_waker(Waker::noop());
        match self.stream.poll_read_into(&mut cx, scratch) {
            Poll::Pending => Liveness::Alive,
            Poll::Ready(Ok(count))
                if count > 0
                    && scratch[0] != crate::wire::backend::ERROR_RESPONSE
                    && self.carry.len() + count <= CARRY_MAX =>
            {
                self.carry.extend_from_slice(&scratch[..count]);
                Liveness::Alive
            }
            Poll::Ready(_) => Liveness::Ended,
        }
    }

    /// Takes note of a ParameterStatus.
    pub fn note_parameter(&mut self, name: &str, value: &str) {
        match self.parameters.iter_mut().find(|(known, _)| known == name) {
            Some(parameter) => value.clone_into(&mut parameter.1),
            None => self.parameters.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Moves a plain socket to this thread's reactor, so that its readiness wakes this thread and no other.
    ///
    /// # Errors
    /// The socket cannot be registered; the backend is of no use any more.
    pub fn adopt(&mut self, reactor: usize) -> io::Result<()> {
        if self.reactor == reactor {
            return Ok(());
        }
        // A TLS session cannot be taken off its socket; it goes on working across threads, at the price of a
        // wake-up through the other reactor.
        if !self.stream.is_tls() {
            self.stream.register_anew()?;
            self.reactor = reactor;
        }
        Ok(())
    }
}
