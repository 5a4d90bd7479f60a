//! A statement as its client sent it: by a Query message, or by Parse, Bind and Execute.

use std::io;

use crate::support::{Client, Message, message};

/// Something to run. Equal ones are the same work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Its text.
    pub(crate) text: Vec<u8>,
    /// What the extended protocol adds; `None` in the simple one.
    pub(crate) parameters: Option<Parameters>,
}

/// What Parse and Bind say besides the text and the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The part of Parse behind the text: types.
    pub(crate) types: Vec<u8>,
    /// The part of Bind behind the names: formats and values.
    pub(crate) values: Vec<u8>,
    /// Whether the client asked for the columns by describing the portal.
    pub(crate) described: bool,
}

impl Statement {
    /// The text of a Query message.
    pub(crate) fn simple(text: &[u8]) -> Self {
        Self {
            text: text.to_vec(),
            parameters: None,
        }
    }

    /// All that has to be sent for it. By the extended protocol it becomes the unnamed statement, so that it leaves none
    /// behind.
    fn bytes(&self) -> Vec<u8> {
        let Some(parameters) = &self.parameters else {
            return query(&self.text);
        };
        let parse = [b"\0", self.text.as_slice(), b"\0", &parameters.types].concat();
        let bind = [b"\0\0", parameters.values.as_slice()].concat();
        let mut bytes = message::tagged(b'P', &parse);
        bytes.extend(message::tagged(b'B', &bind));
        if parameters.described {
            bytes.extend(message::describe_portal(""));
        }
        bytes.extend(message::execute("", 0));
        bytes.extend(message::sync());
        bytes
    }
}

fn query(text: &[u8]) -> Vec<u8> {
    message::tagged(b'Q', &[text, b"\0"].concat())
}

/// Runs a statement to its ReadyForQuery.
///
/// # Errors
/// The connection is gone.
pub(crate) fn run(client: &mut Client, statement: &Statement) -> io::Result<Vec<Message>> {
    send(client, &statement.bytes(), statement.parameters.is_some())
}

/// Runs a text by the simple protocol.
///
/// # Errors
/// The connection is gone.
pub(crate) fn simple(client: &mut Client, text: &[u8]) -> io::Result<Vec<Message>> {
    send(client, &query(text), false)
}

fn send(client: &mut Client, bytes: &[u8], extended: bool) -> io::Result<Vec<Message>> {
    client.try_send(bytes)?;
    let mut messages = Vec::new();
    loop {
        let message = client.try_receive()?;
        let ready = message.kind == b'Z';
        if message.kind == b'G' {
            client.try_send(&message::copy_fail("a trial has no data"))?;
            if extended {
                // The one that was sent before has been taken for a part of the copy.
                client.try_send(&message::sync())?;
            }
        }
        messages.push(message);
        if ready {
            return Ok(messages);
        }
    }
}
