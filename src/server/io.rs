//! A socket that remembers whether it holds back bytes: hyper does not tell, and a drain must not close a
//! connection whose client is still to get the end of its answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// What goes on between a client and us.
#[derive(Debug)]
pub(super) struct Activity {
    opened_at: Instant,
    /// When something came to its end last, in nanoseconds since `opened_at`.
    ended: AtomicU64,
    /// Whether the client does not take what is written.
    is_blocked: AtomicBool,
    /// Whether somebody waits for more of a request's body; it may outlast the answer.
    is_uploading: AtomicBool,
}

impl Activity {
    /// Of a connection that was just opened.
    pub(super) fn new() -> Self {
        Self {
            opened_at: Instant::now(),
            ended: AtomicU64::new(0),
            is_blocked: AtomicBool::new(false),
            is_uploading: AtomicBool::new(false),
        }
    }

    /// Something came to its end just now: an answer, a request's body, or a time in which the client took nothing.
    pub(super) fn note(&self) {
        let now = u64::try_from(self.opened_at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.ended.store(now, Ordering::Relaxed);
    }

    /// Since when the next request is awaited, if none is in hand.
    pub(super) fn idle_since(&self) -> Instant {
        self.opened_at + Duration::from_nanos(self.ended.load(Ordering::Relaxed))
    }

    /// Whether nothing is on its way in either direction.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_blocked.load(Ordering::Relaxed) && !self.is_uploading.load(Ordering::Relaxed)
    }

    pub(super) fn set_uploading(&self, is_uploading: bool) {
        self.is_uploading.store(is_uploading, Ordering::Relaxed);
    }
}

/// A client's socket.
pub(super) struct ClientIo {
    inner: TokioIo<TcpStream>,
    activity: Arc<Activity>,
    write_idle_timeout: Duration,
    /// Runs while the client takes nothing of what is to be written.
    stalled: Option<Pin<Box<Sleep>>>,
    given_up: bool,
}

impl ClientIo {
    /// Wraps `stream`; `activity` is blocked while the client does not take what was written, and after `write_idle_timeout`
    /// of that the write fails.
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, write_idle_timeout: Duration) -> Self {
        Self { inner: TokioIo::new(stream), activity, write_idle_timeout, stalled: None, given_up: false }
    }

    /// The socket again, and whether its client was given up while bytes were still to be sent.
    pub(super) fn into_stream(self) -> (TcpStream, bool) {
        (self.inner.into_inner(), self.given_up)
    }

    fn note<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.is_blocked.store(poll.is_pending(), Ordering::Relaxed);
        if poll.is_ready() {
            if self.stalled.take().is_some() {
                self.activity.note();
            }
            return poll;
        }
        let write_idle_timeout = self.write_idle_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_idle_timeout)));
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
