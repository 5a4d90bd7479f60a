//! A man in the middle between any client and the primary: every Query that passes is put on trial before its client
//! hears the answer. So psql, pgbench and drivers bring their own ways to speak, and the corpus is whatever they run.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use crate::stage::Stage;
use crate::support::{Client, Message, message};
use crate::trial::Bench;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

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
                let _ = session(&stage, stream);
            });
        }
    });
    port
}

/// One client, from its first packet to its last.
fn session(stage: &Stage, mut client: TcpStream) -> io::Result<()> {
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
    let mut status = pass_answer(&mut primary, &mut client)?;
    let mut bench = Bench::new(stage, startup);
    loop {
        let frame = read_frame(&mut client)?;
        match frame.kind {
            b'X' => return primary.try_send(&bytes_of(&frame)),
            b'Q' if status == b'I' => {
                let text = frame.body.strip_suffix(b"\0").unwrap_or_default();
                let answer = bench.try_query(text, &mut primary)?;
                match answer {
                    Some(messages) => {
                        let bytes: Vec<u8> = messages.iter().flat_map(bytes_of).collect();
                        client.write_all(&bytes)?;
                    }
                    None => {
                        primary.try_send(&bytes_of(&frame))?;
                        status = pass_answer(&mut primary, &mut client)?;
                    }
                }
            }
            b'Q' => {
                bench.pass_by(frame.body.strip_suffix(b"\0").unwrap_or_default(), &primary);
                primary.try_send(&bytes_of(&frame))?;
                status = pass_answer(&mut primary, &mut client)?;
            }
            b'S' | b'F' => {
                primary.try_send(&bytes_of(&frame))?;
                status = pass_answer(&mut primary, &mut client)?;
            }
            _ => primary.try_send(&bytes_of(&frame))?,
        }
    }
}

/// Passes messages on until the primary is ready again or wants the client's COPY data, which follow it. The answer is
/// the transaction status.
fn pass_answer(primary: &mut Client, client: &mut TcpStream) -> io::Result<u8> {
    loop {
        let message = primary.try_receive()?;
        client.write_all(&bytes_of(&message))?;
        match message.kind {
            b'Z' => return Ok(message.body[0]),
            b'G' => loop {
                let frame = read_frame(client)?;
                primary.try_send(&bytes_of(&frame))?;
                if matches!(frame.kind, b'c' | b'f') {
                    break;
                }
            },
            _ => {}
        }
    }
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
