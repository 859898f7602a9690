//! Client socket that records whether unsent bytes are waiting, and limits how long.
//!
//! hyper does not expose this, but a drain must not close a connection whose client still has to
//! receive the end of its response.

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

/// Activity of a connection.
#[derive(Debug)]
pub(super) struct Activity {
    opened_at: Instant,
    /// Time of the last [`Activity::record_end`], in nanoseconds since `opened_at`.
    last_end: AtomicU64,
    /// Whether the socket does not accept the bytes to send.
    is_write_blocked: AtomicBool,
    /// Whether a handler reads a request body. It may do so after the response.
    is_uploading: AtomicBool,
}

impl Activity {
    /// Creates the activity of a new connection.
    pub(super) fn new() -> Self {
        Self {
            opened_at: Instant::now(),
            last_end: AtomicU64::new(0),
            is_write_blocked: AtomicBool::new(false),
            is_uploading: AtomicBool::new(false),
        }
    }

    /// Records that a response, a request body or a blocked write has just ended.
    pub(super) fn record_end(&self) {
        let now = u64::try_from(self.opened_at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last_end.store(now, Ordering::Relaxed);
    }

    /// Returns the time since which the connection waits for a request, if it has none.
    pub(super) fn idle_since(&self) -> Instant {
        self.opened_at + Duration::from_nanos(self.last_end.load(Ordering::Relaxed))
    }

    /// Returns whether no bytes are on their way in either direction.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_write_blocked.load(Ordering::Relaxed) && !self.is_uploading.load(Ordering::Relaxed)
    }

    pub(super) fn set_uploading(&self, is_uploading: bool) {
        self.is_uploading.store(is_uploading, Ordering::Relaxed);
    }
}

/// Socket of a client.
pub(super) struct ClientIo {
    inner: TokioIo<TcpStream>,
    activity: Arc<Activity>,
    write_idle_timeout: Duration,
    /// Runs while the socket does not accept bytes.
    stall_timer: Option<Pin<Box<Sleep>>>,
    has_timed_out: bool,
}

impl ClientIo {
    /// Wraps a stream. A write fails after `write_idle_timeout` without progress.
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, write_idle_timeout: Duration) -> Self {
        Self {
            inner: TokioIo::new(stream),
            activity,
            write_idle_timeout,
            stall_timer: None,
            has_timed_out: false,
        }
    }

    /// Returns the stream, and whether a write has timed out.
    pub(super) fn into_stream(self) -> (TcpStream, bool) {
        (self.inner.into_inner(), self.has_timed_out)
    }

    /// Records the result of a write and checks the time limit.
    fn track_write<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.is_write_blocked.store(poll.is_pending(), Ordering::Relaxed);
        if poll.is_ready() {
            if self.stall_timer.take().is_some() {
                self.activity.record_end();
            }
            return poll;
        }
        let write_idle_timeout = self.write_idle_timeout;
        let stall_timer =
            self.stall_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_idle_timeout)));
        ready!(stall_timer.as_mut().poll(cx));
        self.has_timed_out = true;
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
        self.track_write(cx, poll)
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
        self.track_write(cx, poll)
    }
}
