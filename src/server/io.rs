//! Client socket that records whether unsent bytes are waiting, and limits how long.
//!
//! hyper does not expose this, but a drain must not close a connection whose client still has to
//! receive the end of its response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::activity::Activity;

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
        self.activity.set_write_blocked(poll.is_pending());
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
