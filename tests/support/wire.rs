//! A client that speaks the protocol by hand: it sends any bytes and sees every message.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};

use super::PATIENCE;

/// Between two cancels of the same statement.
const CANCEL_AGAIN: Duration = Duration::from_millis(50);

/// Where to connect, and as whom.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) database: String,
}

impl Address {
    /// As libpq and tokio-postgres read it.
    pub(crate) fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user={} password={} dbname={}",
            self.port, self.user, self.password, self.database
        )
    }

    /// A connected client.
    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        self.connect_with(&[])
    }

    /// A connected client that sent more startup parameters.
    #[track_caller]
    pub(crate) fn connect_with(&self, parameters: &[(&str, &str)]) -> Client {
        match self.try_connect(parameters) {
            Ok(client) => client,
            Err(reason) => panic!("cannot connect to port {}: {reason}", self.port),
        }
    }

    /// # Errors
    /// What the server says, or `io: …` when the connection ended without a word.
    pub(crate) fn try_connect(&self, parameters: &[(&str, &str)]) -> Result<Client, Refusal> {
        Client::log_in(self, parameters)
    }
}

/// Why a login failed.
#[derive(Debug)]
pub(crate) enum Refusal {
    Said(Message),
    Io(io::Error),
}

impl Refusal {
    /// The SQLSTATE, if the server said one.
    pub(crate) fn sqlstate(&self) -> String {
        match self {
            Refusal::Said(message) => message.field(b'C'),
            Refusal::Io(error) => format!("io: {error}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Said(message) => write!(f, "{message}"),
            Refusal::Io(error) => write!(f, "{error}"),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Io(error)
    }
}

/// One message from the server.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// A field of an ErrorResponse or NoticeResponse; empty if it has none.
    pub(crate) fn field(&self, code: u8) -> String {
        self.body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&code))
            .map(|field| text(&field[1..]))
            .unwrap_or_default()
    }

    /// The columns of a DataRow as text.
    pub(crate) fn columns(&self) -> Vec<Option<String>> {
        let mut body = Body(&self.body);
        (0..body.i16()).map(|_| body.value().map(text)).collect()
    }

    /// Name and value of a ParameterStatus.
    pub(crate) fn parameter(&self) -> (String, String) {
        let mut parts = self.body.split(|byte| *byte == 0).map(text);
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    }

    fn names_and_types(&self) -> Vec<String> {
        let mut body = Body(&self.body);
        (0..body.i16())
            .map(|_| {
                let name = body.cstr();
                let (_table, _column) = (body.i32(), body.i16());
                let kind = body.i32();
                let (_size, _modifier, format) = (body.i16(), body.i32(), body.i16());
                format!("{name}:{kind}:{format}")
            })
            .collect()
    }
}

/// Every message in words, without what is a server's own business (positions in its source, process ids).
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            b'T' => write!(f, "RowDescription({})", self.names_and_types().join(", ")),
            b'D' => {
                let columns = self.columns();
                let shown: Vec<_> = columns
                    .iter()
                    .map(|value| value.as_deref().unwrap_or("NULL"))
                    .collect();
                write!(f, "DataRow({})", shown.join(", "))
            }
            b'C' => write!(f, "CommandComplete({})", text(&self.body).trim_end_matches('\0')),
            b'E' | b'N' => {
                let what = if self.kind == b'E' {
                    "ErrorResponse"
                } else {
                    "NoticeResponse"
                };
                let field = |code| self.field(code);
                write!(f, "{what}({} {} {:?}", field(b'V'), field(b'C'), field(b'M'))?;
                if !field(b'P').is_empty() {
                    write!(f, " at {}", field(b'P'))?;
                }
                if !field(b'D').is_empty() {
                    write!(f, " detail {:?}", field(b'D'))?;
                }
                write!(f, ")")
            }
            b'Z' => write!(f, "ReadyForQuery({})", char::from(self.body[0])),
            b'S' => {
                let (name, value) = self.parameter();
                write!(f, "ParameterStatus({name} = {value})")
            }
            b'A' => {
                let mut body = Body(&self.body[4..]);
                write!(f, "NotificationResponse({}, {})", body.cstr(), body.cstr())
            }
            b't' => {
                let mut body = Body(&self.body);
                let types: Vec<_> = (0..body.i16()).map(|_| body.i32().to_string()).collect();
                write!(f, "ParameterDescription({})", types.join(", "))
            }
            b'd' => write!(f, "CopyData({:?})", text(&self.body)),
            b'V' => write!(
                f,
                "FunctionCallResponse({:?})",
                Body(&self.body).value().map(text)
            ),
            b'G' | b'H' | b'W' => write!(f, "Copy{}Response({:?})", char::from(self.kind), self.body),
            kind => {
                let name = match kind {
                    b'1' => "ParseComplete",
                    b'2' => "BindComplete",
                    b'3' => "CloseComplete",
                    b'I' => "EmptyQueryResponse",
                    b'n' => "NoData",
                    b's' => "PortalSuspended",
                    b'c' => "CopyDone",
                    _ => return write!(f, "message {:?} {:?}", char::from(kind), self.body),
                };
                f.write_str(name)
            }
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn value(&mut self) -> Option<&'a [u8]> {
        usize::try_from(self.i32()).ok().map(|length| self.take(length))
    }

    fn cstr(&mut self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap();
        let name = text(self.take(end));
        self.take(1);
        name
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Frontend messages, byte by byte (manual, protocol-message-formats).
pub(crate) mod message {
    /// Any message.
    pub(crate) fn tagged(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    pub(crate) fn query(sql: &str) -> Vec<u8> {
        tagged(b'Q', &[sql.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
        parse_typed(name, sql, &[])
    }

    pub(crate) fn parse_typed(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
        let mut body = [name.as_bytes(), b"\0", sql.as_bytes(), b"\0"].concat();
        body.extend(u16::try_from(types.len()).unwrap().to_be_bytes());
        body.extend(types.iter().flat_map(|kind| kind.to_be_bytes()));
        tagged(b'P', &body)
    }

    /// Parameters and results are text.
    pub(crate) fn bind(portal: &str, statement: &str, values: &[Option<&str>]) -> Vec<u8> {
        let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0"].concat();
        body.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            match value {
                Some(value) => {
                    body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                    body.extend(value.as_bytes());
                }
                None => body.extend((-1_i32).to_be_bytes()),
            }
        }
        body.extend([0, 0]);
        tagged(b'B', &body)
    }

    /// `rows` 0 is all.
    pub(crate) fn execute(portal: &str, rows: u32) -> Vec<u8> {
        tagged(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()].concat())
    }

    pub(crate) fn describe_statement(name: &str) -> Vec<u8> {
        tagged(b'D', &[b"S", name.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn describe_portal(name: &str) -> Vec<u8> {
        tagged(b'D', &[b"P", name.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn close_statement(name: &str) -> Vec<u8> {
        tagged(b'C', &[b"S", name.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn close_portal(name: &str) -> Vec<u8> {
        tagged(b'C', &[b"P", name.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn sync() -> Vec<u8> {
        tagged(b'S', b"")
    }

    pub(crate) fn flush() -> Vec<u8> {
        tagged(b'H', b"")
    }

    pub(crate) fn copy_data(data: &[u8]) -> Vec<u8> {
        tagged(b'd', data)
    }

    pub(crate) fn copy_done() -> Vec<u8> {
        tagged(b'c', b"")
    }

    pub(crate) fn copy_fail(reason: &str) -> Vec<u8> {
        tagged(b'f', &[reason.as_bytes(), b"\0"].concat())
    }

    /// A call of a function of one text argument by its number, text in and out.
    pub(crate) fn function_call(oid: u32, argument: &str) -> Vec<u8> {
        let length = u32::try_from(argument.len()).unwrap().to_be_bytes();
        let body: [&[u8]; 6] = [
            &oid.to_be_bytes(),
            &[0, 0],
            &[0, 1],
            &length,
            argument.as_bytes(),
            &[0, 0],
        ];
        tagged(b'F', &body.concat())
    }

    /// Parse, Bind and Execute of the unnamed statement, without Sync.
    pub(crate) fn unnamed(sql: &str, values: &[Option<&str>]) -> Vec<u8> {
        [parse("", sql), bind("", "", values), execute("", 0)].concat()
    }

    pub(crate) fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
        startup_of(3 << 16, parameters)
    }

    /// A startup packet of some version: major in the upper 16 bits, minor in the lower.
    pub(crate) fn startup_of(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
        let mut body = version.to_be_bytes().to_vec();
        for (name, value) in parameters {
            body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        body.push(0);
        untagged(&body)
    }

    pub(crate) fn cancel(process: u32, secret: &[u8]) -> Vec<u8> {
        untagged(&[&80_877_102_u32.to_be_bytes(), &process.to_be_bytes(), secret].concat())
    }

    fn untagged(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len() + 4).unwrap().to_be_bytes(), body].concat()
    }
}

/// A connection.
pub(crate) struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    at: usize,
    /// As told so far.
    pub(crate) parameters: BTreeMap<String, String>,
    /// Process and secret of BackendKeyData.
    pub(crate) key: (u32, Vec<u8>),
    /// The body of NegotiateProtocolVersion, if there was one.
    pub(crate) negotiated: Option<Vec<u8>>,
    port: u16,
}

/// The answer to a Query message.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Of all statements together.
    pub(crate) rows: Vec<Vec<Option<String>>>,
    pub(crate) tags: Vec<String>,
    pub(crate) error: Option<Message>,
    pub(crate) notices: Vec<Message>,
    /// `I`, `T` or `E`.
    pub(crate) status: char,
}

impl Answer {
    /// Its SQLSTATE; empty if it is no error.
    pub(crate) fn sqlstate(&self) -> String {
        self.error
            .as_ref()
            .map(|error| error.field(b'C'))
            .unwrap_or_default()
    }
}

impl Client {
    /// A connection that has said nothing yet.
    ///
    /// # Errors
    /// Nobody listens.
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            received: Vec::new(),
            at: 0,
            parameters: BTreeMap::new(),
            key: (0, Vec::new()),
            negotiated: None,
            port,
        })
    }

    fn log_in(address: &Address, more: &[(&str, &str)]) -> Result<Self, Refusal> {
        Self::log_in_as(3 << 16, address, more)
    }

    /// Logs in with a startup packet of some version.
    pub(crate) fn log_in_as(version: u32, address: &Address, more: &[(&str, &str)]) -> Result<Self, Refusal> {
        let mut client = Self::open(address.port)?;
        let mut parameters = vec![
            ("user", address.user.as_str()),
            ("database", address.database.as_str()),
        ];
        parameters.extend(more);
        client
            .stream
            .write_all(&message::startup_of(version, &parameters))?;
        let mut scram = None;
        loop {
            let got = client.try_receive()?;
            let code = got.body.first_chunk().map(|code| u32::from_be_bytes(*code));
            match (got.kind, code) {
                (b'v', _) => client.negotiated = Some(got.body),
                (b'R', Some(0)) | (b'N' | b'S' | b'K', _) => {}
                (b'R', Some(3)) => client.say(b'p', &[address.password.as_bytes(), b"\0"].concat())?,
                (b'R', Some(10)) => {
                    let begun = ScramSha256::new(address.password.as_bytes(), ChannelBinding::unsupported());
                    let first = begun.message();
                    let length = u32::try_from(first.len()).unwrap().to_be_bytes();
                    client.say(b'p', &[SCRAM_SHA_256.as_bytes(), b"\0", &length, first].concat())?;
                    scram = Some(begun);
                }
                (b'R', Some(11)) => {
                    let running = scram.as_mut().unwrap();
                    running.update(&got.body[4..])?;
                    let last = running.message().to_vec();
                    client.say(b'p', &last)?;
                }
                (b'R', Some(12)) => scram.as_mut().unwrap().finish(&got.body[4..])?,
                (b'Z', _) => return Ok(client),
                (b'E', _) => return Err(Refusal::Said(got)),
                _ => panic!("{got} during login"),
            }
        }
    }

    fn say(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        self.stream.write_all(&message::tagged(kind, body))
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// # Errors
    /// The connection is gone.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The connection itself.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether the beginning of a message has come and not its end.
    #[allow(dead_code, reason = "only the chaos suite does")]
    pub(crate) fn is_inside_a_message(&self) -> bool {
        self.received.len() > self.at
    }

    /// Bytes received beyond the messages that were taken, and the connection, for reading on raw.
    pub(crate) fn into_stream(mut self) -> (Vec<u8>, TcpStream) {
        self.received.drain(..self.at);
        (self.received, self.stream)
    }

    /// The next message.
    ///
    /// # Errors
    /// The connection ended, or nothing came within the patience of a test.
    pub(crate) fn try_receive(&mut self) -> io::Result<Message> {
        loop {
            let rest = &self.received[self.at..];
            if let Some((head, after)) = rest.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                assert!(
                    (4..1 << 30).contains(&length),
                    "the frame claims a length of {length}"
                );
                if after.len() >= length - 4 {
                    let message = Message {
                        kind: head[0],
                        body: after[..length - 4].to_vec(),
                    };
                    self.at += 1 + length;
                    self.note(&message);
                    return Ok(message);
                }
            }
            self.received.drain(..self.at);
            self.at = 0;
            let mut chunk = [0; 16_384];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.received.extend(&chunk[..count]),
            }
        }
    }

    fn note(&mut self, message: &Message) {
        match message.kind {
            b'S' => {
                let (name, value) = message.parameter();
                self.parameters.insert(name, value);
            }
            b'K' => {
                let (process, secret) = message.body.split_first_chunk::<4>().unwrap();
                self.key = (u32::from_be_bytes(*process), secret.to_vec());
            }
            _ => {}
        }
    }

    /// The next message.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> Message {
        match self.try_receive() {
            Ok(message) => message,
            Err(error) => panic!("no message came: {error}"),
        }
    }

    /// Everything up to and with the next ReadyForQuery.
    #[track_caller]
    pub(crate) fn until_ready(&mut self) -> Vec<Message> {
        self.until_kind(b'Z')
    }

    /// Everything up to and with the next message of a kind.
    #[track_caller]
    pub(crate) fn until_kind(&mut self, kind: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            match self.try_receive() {
                Ok(message) => {
                    let last = message.kind == kind;
                    messages.push(message);
                    if last {
                        return messages;
                    }
                }
                Err(error) => panic!("no {:?} came ({error}), but {messages:?}", char::from(kind)),
            }
        }
    }

    /// Everything that still comes before the server closes the connection.
    #[track_caller]
    pub(crate) fn until_closed(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            match self.try_receive() {
                Ok(message) => messages.push(message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("the connection stays open after {messages:?}")
                }
                Err(_) => return messages,
            }
        }
    }

    /// Sends SQL in a Query message and reads its answer.
    #[track_caller]
    pub(crate) fn query(&mut self, sql: &str) -> Answer {
        self.send(&message::query(sql));
        self.answer()
    }

    /// The answer to one Query or Sync.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Answer {
        match self.try_answer() {
            Ok(answer) => answer,
            Err(error) => panic!("no answer came: {error}"),
        }
    }

    /// # Errors
    /// The connection ended first.
    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        let mut answer = Answer::default();
        loop {
            let message = self.try_receive()?;
            match message.kind {
                b'D' => answer.rows.push(message.columns()),
                b'C' => answer
                    .tags
                    .push(text(&message.body).trim_end_matches('\0').to_owned()),
                b'E' => {
                    answer.error.get_or_insert(message);
                }
                b'N' => answer.notices.push(message),
                b'Z' => {
                    answer.status = char::from(message.body[0]);
                    return Ok(answer);
                }
                _ => {}
            }
        }
    }

    /// Runs SQL that must succeed.
    #[track_caller]
    pub(crate) fn run(&mut self, sql: &str) -> Answer {
        let answer = self.query(sql);
        if let Some(error) = &answer.error {
            panic!("{sql:?} failed: {error}");
        }
        answer
    }

    /// The one value that SQL answers.
    #[track_caller]
    pub(crate) fn value(&mut self, sql: &str) -> String {
        let answer = self.run(sql);
        match answer.rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone().unwrap_or_else(|| "NULL".to_owned()),
            rows => panic!("{sql:?} answered {rows:?} and not one value"),
        }
    }

    /// The SQLSTATE that SQL fails with.
    #[track_caller]
    pub(crate) fn failure(&mut self, sql: &str) -> String {
        let answer = self.query(sql);
        match &answer.error {
            Some(error) => error.field(b'C'),
            None => panic!("{sql:?} did not fail but answered {answer:?}"),
        }
    }

    /// The port of the server that runs a statement, or a block opened by `begin` if one is given.
    #[track_caller]
    pub(crate) fn server_port(&mut self) -> u16 {
        self.value("SELECT inet_server_port()").parse().unwrap()
    }

    /// Asks the server to cancel what this connection runs, on a connection of its own, and waits until it was taken.
    pub(crate) fn cancel(&self) {
        cancel(self.port, self.key.0, &self.key.1);
    }

    /// The answer to what this connection runs, which is cancelled until it comes: sent before the statement runs, a cancel
    /// has nothing to do.
    #[track_caller]
    pub(crate) fn cancelled(&mut self) -> Answer {
        let (port, (process, secret)) = (self.port, self.key.clone());
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    cancel(port, process, &secret);
                    std::thread::sleep(CANCEL_AGAIN);
                }
            });
            let answer = self.try_answer();
            over.store(true, Ordering::Relaxed);
            answer.unwrap()
        })
    }

    /// Leaves without a word, as a process that was killed.
    pub(crate) fn vanish(self) {
        // With data unread, closing resets the connection; without, it is an end of stream. Both are seen at once.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Sends nothing more, and goes on listening.
    pub(crate) fn close_one_direction(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Leaves as a client should.
    pub(crate) fn leave(mut self) {
        let _ = self.try_send(&message::tagged(b'X', b""));
    }
}

/// Sends a CancelRequest and waits until the server closes the connection, which it does without a word.
pub(crate) fn cancel(port: u16, process: u32, secret: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&message::cancel(process, secret)).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "a cancel request is not answered");
}
