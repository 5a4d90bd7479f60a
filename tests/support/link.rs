//! A link between the proxy and a node that a test can cut, tear, hold up, or change the bytes of.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::ports;

/// How the link carries bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carries {
    /// As they come.
    Whole,
    /// Each byte on its own, towards the proxy.
    Torn,
    /// As they come, each request so much later.
    Late(Duration),
    /// Not at all in these directions, for now: what is sent stays where it is, as behind a cable that was pulled.
    Nothing(Silent),
    /// Connections are refused and closed.
    Cut,
}

/// In which directions a link carries nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silent {
    /// From the proxy to the node.
    Requests,
    /// From the node to the proxy.
    Answers,
    /// Both.
    Both,
}

/// A message from the node on its way to the proxy.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    /// Its type.
    pub(crate) kind: u8,
    /// All of it, type and length included.
    pub(crate) bytes: &'a [u8],
    /// Which of the link's connections it is on: the proxy's port.
    #[allow(dead_code, reason = "only some themes tell them apart")]
    pub(crate) connection: u16,
}

impl Frame<'_> {
    /// Whether its body holds the text; all hold the empty one.
    pub(crate) fn has(&self, text: &str) -> bool {
        text.is_empty()
            || self
                .bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
    }
}

/// What becomes of a message.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// It goes on.
    Pass,
    /// Other bytes go in its place.
    Instead(Vec<u8>),
    /// Other bytes go, and the connection ends.
    LastWords(Vec<u8>),
}

type Hook = Box<dyn Fn(&Frame<'_>) -> Act + Send + Sync>;

struct State {
    carries: Carries,
    /// Both ends of each connection that lives, by its number.
    connections: BTreeMap<u64, [TcpStream; 2]>,
    number: u64,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    hook: Mutex<Option<Arc<Hook>>>,
    node: u16,
}

/// See the module.
pub(crate) struct Link {
    shared: Arc<Shared>,
    port: u16,
}

impl Link {
    /// A sound link to the server on a port.
    pub(crate) fn to(node: u16) -> Link {
        let port = ports::single();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                carries: Carries::Whole,
                connections: BTreeMap::new(),
                number: 0,
            }),
            changed: Condvar::new(),
            hook: Mutex::new(None),
            node,
        });
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A refused connection and one that is closed before a word look alike to who connects. A thread of its
                // own: a frozen node may take minutes to be connected to.
                let shared = Arc::clone(&of_thread);
                thread::spawn(move || shared.connect(&client));
            }
        });
        Link { shared, port }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Closes all connections, and new ones at once.
    pub(crate) fn cut(&self) {
        self.carry(Carries::Cut);
        for end in self.shared.state.lock().unwrap().connections.values().flatten() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Carries nothing any more, and closes nothing.
    pub(crate) fn fall_silent(&self) {
        self.fall_silent_for(Silent::Both);
    }

    /// Carries nothing any more in these directions, and closes nothing.
    pub(crate) fn fall_silent_for(&self, silent: Silent) {
        self.carry(Carries::Nothing(silent));
    }

    /// Delivers each byte on its own.
    pub(crate) fn tear(&self) {
        self.carry(Carries::Torn);
    }

    /// Delivers each request so much later.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.carry(Carries::Late(delay));
    }

    /// Is sound again.
    pub(crate) fn mend(&self) {
        self.carry(Carries::Whole);
    }

    /// Ends the connection on which a message with this text comes, before it, once.
    pub(crate) fn lose_before(&self, kind: u8, text: &'static str) {
        let done = AtomicBool::new(false);
        self.on_message(move |frame| {
            let wanted = frame.kind == kind && frame.has(text);
            if wanted && !done.swap(true, Ordering::Relaxed) {
                Act::LastWords(Vec::new())
            } else {
                Act::Pass
            }
        });
    }

    /// Has each message of the node decided on.
    pub(crate) fn on_message(&self, hook: impl Fn(&Frame<'_>) -> Act + Send + Sync + 'static) {
        *self.shared.hook.lock().unwrap() = Some(Arc::new(Box::new(hook)));
    }

    fn carry(&self, carries: Carries) {
        self.shared.state.lock().unwrap().carries = carries;
        self.shared.changed.notify_all();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: &TcpStream) -> io::Result<()> {
        if self.state.lock().unwrap().carries == Carries::Cut {
            return Ok(());
        }
        let node = TcpStream::connect(("127.0.0.1", self.node))?;
        client.set_nodelay(true)?;
        node.set_nodelay(true)?;
        let number = {
            let mut state = self.state.lock().unwrap();
            if state.carries == Carries::Cut {
                return Ok(());
            }
            state.number += 1;
            let (number, ends) = (state.number, [client.try_clone()?, node.try_clone()?]);
            state.connections.insert(number, ends);
            number
        };
        let (from_client, to_node) = (client.try_clone()?, node.try_clone()?);
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let _ = shared.carry_requests(from_client, &to_node);
            let _ = to_node.shutdown(Shutdown::Write);
        });
        let _ = self.carry_answers(node, client);
        let _ = client.shutdown(Shutdown::Both);
        self.state.lock().unwrap().connections.remove(&number);
        Ok(())
    }

    /// Waits while nothing is carried in a direction.
    fn gate(&self, direction: Silent) -> io::Result<Carries> {
        let held = |carries: Carries| matches!(carries, Carries::Nothing(silent) if silent == direction || silent == Silent::Both);
        let state = self.state.lock().unwrap();
        let state = self
            .changed
            .wait_while(state, |state| held(state.carries))
            .unwrap();
        match state.carries {
            Carries::Cut => Err(io::ErrorKind::ConnectionAborted.into()),
            carries => Ok(carries),
        }
    }

    fn carry_requests(&self, mut from: TcpStream, mut to: &TcpStream) -> io::Result<()> {
        let mut chunk = [0; 65_536];
        loop {
            let count = from.read(&mut chunk)?;
            // The end of a stream is not heard of either while nothing is carried.
            let carries = self.gate(Silent::Requests)?;
            if count == 0 {
                return Ok(());
            }
            if let Carries::Late(delay) = carries {
                thread::sleep(delay);
            }
            to.write_all(&chunk[..count])?;
        }
    }

    fn carry_answers(&self, mut from: TcpStream, to: &TcpStream) -> io::Result<()> {
        let mut received = Vec::new();
        let mut chunk = [0; 65_536];
        loop {
            let count = from.read(&mut chunk)?;
            if count == 0 {
                return self.gate(Silent::Answers).map(drop);
            }
            received.extend(&chunk[..count]);
            let mut whole = 0;
            while let Some(length) = frame_length(&received[whole..]) {
                whole += length;
            }
            self.carry_messages(&received[..whole], to)?;
            received.drain(..whole);
        }
    }

    fn carry_messages(&self, mut bytes: &[u8], to: &TcpStream) -> io::Result<()> {
        let Some(hook) = self.hook.lock().unwrap().clone() else {
            return self.deliver(bytes, to);
        };
        while let Some(length) = frame_length(bytes) {
            let (message, rest) = bytes.split_at(length);
            self.carry_answer(&hook, message, to)?;
            bytes = rest;
        }
        Ok(())
    }

    fn carry_answer(&self, hook: &Hook, bytes: &[u8], to: &TcpStream) -> io::Result<()> {
        let act = hook(&Frame {
            kind: bytes[0],
            bytes,
            connection: to.peer_addr()?.port(),
        });
        match act {
            Act::Pass => self.deliver(bytes, to),
            Act::Instead(other) => self.deliver(&other, to),
            Act::LastWords(other) => {
                self.deliver(&other, to)?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
    }

    fn deliver(&self, bytes: &[u8], mut to: &TcpStream) -> io::Result<()> {
        match self.gate(Silent::Answers)? {
            Carries::Torn => bytes.chunks(1).try_for_each(|byte| to.write_all(byte)),
            _ => to.write_all(bytes),
        }
    }
}

/// The length of the message that `bytes` begin with, if it is there whole.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().unwrap()) as usize + 1;
    (bytes.len() >= length).then_some(length)
}
