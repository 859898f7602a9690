//! A socket that remembers whether it holds back bytes: hyper does not tell, and a drain must not close a
//! connection whose client is still to get the end of its answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// A client's socket.
pub(super) struct ClientIo {
    inner: TokioIo<TcpStream>,
    blocked: Arc<AtomicBool>,
    write_idle: Duration,
    /// Runs while the client takes nothing of what is to be written.
    stalled: Option<Pin<Box<Sleep>>>,
    given_up: bool,
}

impl ClientIo {
    /// Wraps `stream`; `blocked` is true while the client does not take what was written, and after `write_idle`
    /// of that the write fails.
    pub(super) fn new(stream: TcpStream, blocked: Arc<AtomicBool>, write_idle: Duration) -> Self {
        Self { inner: TokioIo::new(stream), blocked, write_idle, stalled: None, given_up: false }
    }

    /// The socket again, and whether its client was given up while bytes were still to be sent.
    pub(super) fn into_stream(self) -> (TcpStream, bool) {
        (self.inner.into_inner(), self.given_up)
    }

    fn note<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.blocked.store(poll.is_pending(), Ordering::Relaxed);
        if poll.is_ready() {
            self.stalled = None;
            return poll;
        }
        let write_idle = self.write_idle;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_idle)));
        ready!(stalled.as_mut().poll(cx));
        self.given_up = true;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl Write for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.note(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.note(cx, poll)
    }
}
