//! A socket that remembers whether it holds back bytes: hyper does not tell, and a drain must not close a
//! connection whose client is still to get the end of its answer. A client that takes nothing for too long is given
//! up, as hyper has no limit on that either.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// A client's socket.
pub(super) struct ClientIo {
    inner: TokioIo<TcpStream>,
    blocked: Arc<AtomicBool>,
    limit: Duration,
    /// Runs while the client takes nothing.
    patience: Option<Pin<Box<Sleep>>>,
    given_up: bool,
}

impl ClientIo {
    /// Wraps `stream`; `blocked` is true while the client does not take what was written. Writing fails once it has
    /// taken nothing for `limit`.
    pub(super) fn new(stream: TcpStream, blocked: Arc<AtomicBool>, limit: Duration) -> Self {
        Self { inner: TokioIo::new(stream), blocked, limit, patience: None, given_up: false }
    }

    /// The socket again, and whether the client was given up while bytes were still to be sent.
    pub(super) fn into_stream(self) -> (TcpStream, bool) {
        (self.inner.into_inner(), self.given_up)
    }

    fn note(&mut self, poll: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.blocked.store(poll.is_pending(), Ordering::Relaxed);
        if poll.is_ready() {
            self.patience = None;
            return poll;
        }
        let limit = self.limit;
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if patience.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
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
        self.note(poll, cx)
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
        self.note(poll, cx)
    }
}
