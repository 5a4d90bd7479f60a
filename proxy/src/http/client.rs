//! The other end, for the command line: one GET over plain HTTP, answered in full or not at all.
//!
//! It speaks HTTP/1.0, in which the end of the connection is the end of the answer, so that there is nothing to decode.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Largest answer that is read, in bytes.
const ANSWER_SIZE_MAX: u64 = 64 << 20;

/// An answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's status, such as 200.
    pub status: u16,
    /// Everything behind the head.
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is not of the form that is understood.
    #[error("\"{0}\" is not of the form http://host:port")]
    Url(String),
    /// Nobody answers there, or not in time.
    #[error("no answer from {url}: {source}")]
    Io {
        /// Who was asked.
        url: String,
        /// Why not.
        source: io::Error,
    },
    /// Something answers that does not speak HTTP.
    #[error("{0} does not answer in HTTP")]
    NotHttp(String),
}

/// Asks `base`, a URL such as `http://127.0.0.1:9432`, for `path`, and waits `time_max` at most.
///
/// # Errors
/// See [`ClientError`]; an answer of any status is no error.
pub fn fetch(base: &str, path: &str, time_max: Duration) -> Result<Answer, ClientError> {
    let authority = authority(base).ok_or_else(|| ClientError::Url(base.to_owned()))?;
    let text = exchange(&authority, path, Instant::now() + time_max).map_err(|source| ClientError::Io {
        url: base.to_owned(),
        source,
    })?;
    parse(&text).ok_or_else(|| ClientError::NotHttp(base.to_owned()))
}

/// `host:port` of a URL without path, user or query; the port is 80 where none is given.
fn authority(base: &str) -> Option<String> {
    let authority = base.strip_prefix("http://")?.trim_end_matches('/');
    if authority.is_empty()
        || authority.contains(|c: char| "/@?#".contains(c) || c.is_whitespace() || c.is_control())
    {
        return None;
    }
    let behind_host = authority.rfind(']').map_or(authority, |end| &authority[end..]);
    Some(if behind_host.contains(':') {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    })
}

fn exchange(authority: &str, path: &str, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut stream = connect(authority, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    // In one piece: a server that refuses the connection may close it behind the first.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: */*\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(text),
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
        if text.len() as u64 > ANSWER_SIZE_MAX {
            return Err(io::Error::other(format!(
                "the answer is larger than {ANSWER_SIZE_MAX} bytes"
            )));
        }
    }
}

/// Connects to the first address of a name that answers.
fn connect(authority: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}

/// `HTTP/1.1 200 OK`, head, empty line, body.
fn parse(text: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(text);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some(Answer {
        status: status.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_and_port_make_a_url() {
        for (url, expected) in [
            ("http://127.0.0.1:9432", Some("127.0.0.1:9432")),
            ("http://[::1]:9432/", Some("[::1]:9432")),
            ("http://localhost", Some("localhost:80")),
            ("http://[::1]", Some("[::1]:80")),
            ("https://localhost", None),
            ("localhost:9432", None),
            ("http://a/b", None),
            ("http://user:pw@a", None),
            ("http://", None),
            ("http://a\r\nX: y", None),
        ] {
            assert_eq!(authority(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = parse(b"HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\nbo\r\n\r\ndy");
        assert_eq!(
            answer,
            Some(Answer {
                status: 503,
                body: "bo\r\n\r\ndy".to_owned()
            })
        );
        for other in [
            &b""[..],
            b"E\0\0\0\x08oops",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 yes\r\n\r\n",
        ] {
            assert_eq!(parse(other), None);
        }
    }
}
