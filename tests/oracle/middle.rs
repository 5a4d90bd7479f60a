//! A man in the middle between any client and the primary: every statement that passes is put on trial before its client
//! hears the answer. So psql, pgbench and drivers bring their own ways to speak, and the corpus is whatever they run.
//!
//! Queries are tried as they come; of the extended protocol, what one Sync ends is tried if it is one execution. Reads in a
//! transaction block and in pipelines pass, and are tried when the block is over.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::stage::Stage;
use crate::statement::{Parameters, Statement};
use crate::support::{Client, Message, message};
use crate::trial::Bench;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// How long a client that says nothing keeps the primary's notifications waiting.
const IDLE: Duration = Duration::from_millis(20);

/// Serves clients for as long as the tests live; the answer is the port.
pub(crate) fn serve(stage: &Arc<Stage>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let stage = Arc::clone(stage);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stage, stream) = (Arc::clone(&stage), stream.unwrap());
            std::thread::spawn(move || {
                // How a connection ends is its client's business.
                let _ = serve_client(&stage, stream);
            });
        }
    });
    port
}

/// One client, from its first packet to its last.
fn serve_client(stage: &Stage, mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let startup = loop {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        client.read_exact(&mut body)?;
        let packet = [&length[..], &body].concat();
        match body.first_chunk().map(|code| u32::from_be_bytes(*code)) {
            Some(SSL_REQUEST | GSSENC_REQUEST) => client.write_all(b"N")?,
            Some(CANCEL_REQUEST) => {
                let mut primary = TcpStream::connect(("127.0.0.1", stage.primary.port))?;
                return primary.write_all(&packet);
            }
            _ => break packet,
        }
    };
    let mut primary = Client::open(stage.primary.port)?;
    primary.try_send(&startup)?;
    let mut session = Session {
        bench: Bench::new(stage, startup),
        client,
        primary,
        status: b'I',
        statements: HashMap::new(),
        batch: Vec::new(),
        unnamed_is_gone: false,
        failed: false,
    };
    session.pass_answer(false)?;
    session.run()
}

/// A prepared statement: its text, and what Parse says of types.
type Prepared = (Vec<u8>, Vec<u8>);

/// A client and its session on the primary.
struct Session<'a> {
    bench: Bench<'a>,
    client: TcpStream,
    primary: Client,
    /// The transaction status.
    status: u8,
    /// By name.
    statements: HashMap<Vec<u8>, Prepared>,
    /// Messages of the extended protocol that the primary has not seen yet.
    batch: Vec<Message>,
    /// A trial has taken the unnamed statement away: any simple query does.
    unnamed_is_gone: bool,
    /// What was flushed has failed: the primary leaves out everything up to the next Sync.
    failed: bool,
}

impl Session<'_> {
    fn run(&mut self) -> io::Result<()> {
        loop {
            self.wait_for_client()?;
            let frame = read_frame(&mut self.client)?;
            match frame.kind {
                b'X' => return self.primary.try_send(&bytes_of(&frame)),
                b'Q' => self.query(&frame)?,
                b'P' | b'B' | b'D' | b'E' | b'C' => self.batch.push(frame),
                b'H' => self.flush()?,
                b'S' => self.sync()?,
                b'F' => {
                    self.primary.try_send(&bytes_of(&frame))?;
                    self.pass_answer(false)?;
                }
                _ => self.primary.try_send(&bytes_of(&frame))?,
            }
            if self.status == b'I' && self.batch.is_empty() {
                self.bench.try_those_of_block(&mut self.primary)?;
            }
        }
    }

    /// Until the client says something, what the primary says of itself is passed on: notifications.
    fn wait_for_client(&mut self) -> io::Result<()> {
        self.client.set_read_timeout(Some(IDLE))?;
        let quiet =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        while self.client.peek(&mut [0]).is_err_and(|error| quiet(&error)) {
            self.primary.stream().set_nonblocking(true)?;
            let said = self.primary.stream().peek(&mut [0]);
            self.primary.stream().set_nonblocking(false)?;
            if said.is_ok_and(|count| count > 0) || self.primary.is_inside_a_message() {
                let message = self.primary.try_receive()?;
                self.client.write_all(&bytes_of(&message))?;
            }
        }
        self.client.set_read_timeout(None)
    }

    fn query(&mut self, frame: &Message) -> io::Result<()> {
        let statement = Statement::simple(frame.body.strip_suffix(b"\0").unwrap_or_default());
        if self.status == b'I' {
            self.unnamed_is_gone = true;
            if let Some(messages) = self.bench.try_statement(&statement, &mut self.primary)? {
                return self.tell(&messages);
            }
        } else {
            self.bench.pass_by(&statement, &self.primary);
        }
        self.primary.try_send(&bytes_of(frame))?;
        self.pass_answer(false)
    }

    /// Has the primary answer what came without a Sync.
    fn flush(&mut self) -> io::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        batch.iter().for_each(|frame| self.note(frame));
        let mut owed = self.send(&batch)?;
        self.primary.try_send(&message::flush())?;
        while owed > 0 && !self.failed {
            let message = self.primary.try_receive()?;
            self.client.write_all(&bytes_of(&message))?;
            match message.kind {
                // ParameterDescription is half of an answer.
                b'1' | b'2' | b'3' | b'T' | b'n' | b'C' | b'I' | b's' => owed -= 1,
                b'E' => self.failed = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if std::mem::take(&mut self.failed) {
            self.send(&batch)?;
            self.primary.try_send(&message::sync())?;
            return self.pass_answer(true);
        }
        batch.iter().for_each(|frame| self.note(frame));
        let Some((before, statement)) = self.only_execution(&batch) else {
            for frame in batch.iter().filter(|frame| frame.kind == b'B') {
                if let Some(statement) = self.bound(frame, false) {
                    self.bench.pass_by(&statement, &self.primary);
                }
            }
            return self.pass_batch(&batch);
        };
        // Outside the trial: a statement that is prepared is nothing that the trial leaves.
        self.send(&batch[..before])?;
        self.primary.try_send(&message::sync())?;
        let mut answers = self.receive()?;
        if answers.iter().any(|message| message.kind == b'E') {
            return self.tell(&answers);
        }
        answers.pop();
        self.tell(&answers)?;
        self.unnamed_is_gone = true;
        match self.bench.try_statement(&statement, &mut self.primary)? {
            Some(mut messages) => {
                // The trial has a Parse of its own.
                messages.retain(|message| message.kind != b'1');
                self.tell(&messages)
            }
            None => self.pass_batch(&batch[before..]),
        }
    }

    /// Sends messages of the extended protocol; the answer is how many answers they get.
    fn send(&mut self, batch: &[Message]) -> io::Result<usize> {
        for frame in batch {
            if frame.kind == b'P' && frame.body.first() == Some(&0) {
                self.unnamed_is_gone = false;
            }
            self.primary.try_send(&bytes_of(frame))?;
        }
        Ok(batch.len())
    }

    /// Passes on what one Sync ends, and its answers.
    fn pass_batch(&mut self, batch: &[Message]) -> io::Result<()> {
        let wants_unnamed = batch
            .iter()
            .take_while(|frame| !(frame.kind == b'P' && frame.body.first() == Some(&0)))
            .any(|frame| names_of_bind(frame).is_some_and(|(_, statement, _)| statement.is_empty()));
        let unnamed = self
            .statements
            .get(b"".as_slice())
            .filter(|_| wants_unnamed && self.unnamed_is_gone);
        if let Some((text, types)) = unnamed {
            let parse = [b"\0", text.as_slice(), b"\0", types].concat();
            self.primary.try_send(&message::tagged(b'P', &parse))?;
            self.primary.try_send(&message::flush())?;
            self.unnamed_is_gone = false;
            let done = self.primary.try_receive()?;
            assert_eq!(done.kind, b'1', "it has been prepared before: {done:?}");
        }
        self.send(batch)?;
        self.primary.try_send(&message::sync())?;
        self.pass_answer(true)
    }

    /// Takes note of statements that are prepared and closed.
    fn note(&mut self, frame: &Message) {
        match frame.kind {
            b'P' => {
                let mut parts = frame.body.splitn(3, |&byte| byte == 0);
                if let (Some(name), Some(text), Some(types)) = (parts.next(), parts.next(), parts.next()) {
                    self.statements
                        .insert(name.to_vec(), (text.to_vec(), types.to_vec()));
                }
            }
            b'C' if frame.body.first() == Some(&b'S') => {
                self.statements
                    .remove(frame.body[1..].strip_suffix(b"\0").unwrap_or_default());
            }
            _ => {}
        }
    }

    /// What a batch executes, if that is one thing, to its last row, and what it does before is preparation. With it comes
    /// where Bind stands.
    fn only_execution(&self, batch: &[Message]) -> Option<(usize, Statement)> {
        let at = batch.iter().position(|frame| frame.kind == b'B')?;
        let prepares = |frame: &Message| match frame.kind {
            b'P' => true,
            b'D' | b'C' => frame.body.first() == Some(&b'S'),
            _ => false,
        };
        let kinds: Vec<u8> = batch[at..].iter().map(|frame| frame.kind).collect();
        let described = kinds == b"BDE";
        let whole = batch.last()?.body.ends_with(&[0; 4]);
        let is_one =
            self.status == b'I' && batch[..at].iter().all(prepares) && (described || kinds == b"BE") && whole;
        Some((at, self.bound(&batch[at], described).filter(|_| is_one)?))
    }

    /// The statement that a Bind binds.
    fn bound(&self, bind: &Message, described: bool) -> Option<Statement> {
        let (_, name, values) = names_of_bind(bind)?;
        let (text, types) = self.statements.get(name)?;
        Some(Statement {
            text: text.clone(),
            parameters: Some(Parameters {
                types: types.clone(),
                values: values.to_vec(),
                described,
            }),
        })
    }

    fn tell(&mut self, messages: &[Message]) -> io::Result<()> {
        let bytes: Vec<u8> = messages.iter().flat_map(bytes_of).collect();
        self.client.write_all(&bytes)
    }

    /// All that the primary says until it is ready.
    fn receive(&mut self) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            let message = self.primary.try_receive()?;
            let ready = message.kind == b'Z';
            messages.push(message);
            if ready {
                return Ok(messages);
            }
        }
    }

    /// Passes messages on until the primary is ready again or wants the client's COPY data, which follow it.
    fn pass_answer(&mut self, extended: bool) -> io::Result<()> {
        loop {
            let message = self.primary.try_receive()?;
            self.client.write_all(&bytes_of(&message))?;
            match message.kind {
                b'Z' => {
                    self.status = message.body[0];
                    return Ok(());
                }
                b'G' => self.pass_copy(extended)?,
                _ => {}
            }
        }
    }

    /// A copy takes the Sync behind its Execute for a part of itself, so another one follows it.
    fn pass_copy(&mut self, extended: bool) -> io::Result<()> {
        let last: &[u8] = if extended { b"S" } else { b"cf" };
        loop {
            let frame = read_frame(&mut self.client)?;
            self.primary.try_send(&bytes_of(&frame))?;
            if last.contains(&frame.kind) {
                return Ok(());
            }
        }
    }
}

/// The portal and the statement that a Bind names, and what follows the names.
fn names_of_bind(frame: &Message) -> Option<(&[u8], &[u8], &[u8])> {
    let mut parts = frame.body.splitn(3, |&byte| byte == 0);
    let names = (parts.next()?, parts.next()?, parts.next()?);
    (frame.kind == b'B').then_some(names)
}

fn read_frame(client: &mut TcpStream) -> io::Result<Message> {
    let mut head = [0; 5];
    client.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut body = vec![0; length - 4];
    client.read_exact(&mut body)?;
    Ok(Message { kind: head[0], body })
}

fn bytes_of(message: &Message) -> Vec<u8> {
    message::tagged(message.kind, &message.body)
}
