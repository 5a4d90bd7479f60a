//! The byte streams a session speaks over: TCP or a Unix-domain socket, plain or inside TLS.
//!
//! One enum instead of a trait object keeps the plain case free of indirection on the relay.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connected socket below any TLS.
#[derive(Debug)]
pub enum Socket {
    /// A TCP connection; `TCP_NODELAY` is set by whoever makes it.
    Tcp(TcpStream),
    /// A Unix-domain stream socket, as `host = /directory` names one in libpq.
    Unix(UnixStream),
    /// None any more; stands in while a socket moves from one thread to another, and where a move failed.
    Gone,
}

/// A socket with or without TLS around it.
#[derive(Debug)]
pub enum Stream {
    /// No encryption.
    Plain(Socket),
    /// TLS, Halyard being the server: the leg to a client.
    TlsFrontend(Box<tokio_rustls::server::TlsStream<Socket>>),
    /// TLS, Halyard being the client: the leg to a node.
    TlsBackend(Box<tokio_rustls::client::TlsStream<Socket>>),
}

impl Stream {
    /// Whether bytes are encrypted on the way.
    pub fn is_tls(&self) -> bool {
        !matches!(self, Stream::Plain(_))
    }

    /// Takes a plain socket off the reactor it is registered with and registers it with this thread's, so that its
    /// readiness wakes this thread and no other. TLS streams stay where they are.
    ///
    /// # Errors
    /// The socket cannot be registered; the stream is of no use any more.
    pub fn register_anew(&mut self) -> io::Result<()> {
        let Stream::Plain(socket) = self else {
            return Ok(());
        };
        *socket = match std::mem::replace(socket, Socket::Gone) {
            Socket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Socket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream.into_std()?)?),
            Socket::Gone => Socket::Gone,
        };
        Ok(())
    }

    /// What went wrong on the connection since it was asked last, such as a reset by the peer.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        let socket = match self {
            Stream::Plain(socket) => socket,
            Stream::TlsFrontend(tls) => tls.get_ref().0,
            Stream::TlsBackend(tls) => tls.get_ref().0,
        };
        match socket {
            Socket::Tcp(stream) => stream.take_error(),
            Socket::Unix(stream) => stream.take_error(),
            Socket::Gone => Ok(Some(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Reads once into `buffer`. `Ready(Ok(0))` is the end of the stream (or an empty `buffer`).
    pub fn poll_read_into(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(buffer);
        match Pin::new(self).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(read.filled().len())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Writes once from `bytes`; may take fewer. TLS streams want [`Stream::poll_flush_out`] afterwards.
    pub fn poll_write_from(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }

    /// Pushes out what TLS still holds. Plain sockets hold nothing.
    pub fn poll_flush_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(_) => Poll::Ready(Ok(())),
            tls => Pin::new(tls).poll_flush(cx),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Stream::TlsFrontend(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
            Stream::TlsBackend(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Stream::TlsFrontend(tls) => Pin::new(tls.as_mut()).poll_write(cx, buf),
            Stream::TlsBackend(tls) => Pin::new(tls.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Stream::TlsFrontend(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
            Stream::TlsBackend(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Stream::TlsFrontend(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
            Stream::TlsBackend(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }
}
