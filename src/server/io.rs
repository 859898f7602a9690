//! Client socket that records whether unsent bytes are waiting, limits how long, and reports when
//! the client leaves.
//!
//! hyper does not expose the first, but a drain must not close a connection whose client still has
//! to receive the end of its response. hyper reports the last only while it reads.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Sleep;

use super::activity::Activity;

/// Time that hyper has to notice the end of a client itself. It then still responds to requests
/// that it has already read and can respond to at once.
const LEAVE_GRACE: Duration = Duration::from_millis(250);

/// Socket of a client.
pub(super) struct ClientIo {
    reader: TokioIo<OwnedReadHalf>,
    /// Shared with the [`ClientWatch`].
    writer: Arc<OwnedWriteHalf>,
    activity: Arc<Activity>,
    write_idle_timeout: Duration,
    /// Runs while the socket does not accept bytes.
    stall_timer: Option<Pin<Box<Sleep>>>,
    has_timed_out: bool,
}

/// Observer of a client's socket.
pub(super) struct ClientWatch(Arc<OwnedWriteHalf>);

impl ClientWatch {
    /// Completes [`LEAVE_GRACE`] after the client has closed its side or reset the connection, even
    /// if bytes that it sent before were not read: bytes after a request body, a pipelined request,
    /// or an upload that the upstream does not read. Cancel safe.
    #[cfg(target_os = "linux")]
    pub(super) async fn left(&self) {
        // An interest in priority data waits for such data, which the kernel is not asked to report,
        // or for the end of the input. An interest in reading would complete for unread bytes.
        let ready = self.0.ready(tokio::io::Interest::PRIORITY).await;
        if !ready.is_ok_and(tokio::io::Ready::is_read_closed) {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LEAVE_GRACE).await;
    }

    /// Does not complete: only hyper notices the end of a client on this system.
    #[cfg(not(target_os = "linux"))]
    pub(super) async fn left(&self) {
        std::future::pending().await
    }
}

impl ClientIo {
    /// Wraps a stream. A write fails after `write_idle_timeout` without progress.
    pub(super) fn new(
        stream: TcpStream,
        activity: Arc<Activity>,
        write_idle_timeout: Duration,
    ) -> (Self, ClientWatch) {
        let (reader, writer) = stream.into_split();
        let writer = Arc::new(writer);
        let watch = ClientWatch(Arc::clone(&writer));
        let io = Self {
            reader: TokioIo::new(reader),
            writer,
            activity,
            write_idle_timeout,
            stall_timer: None,
            has_timed_out: false,
        };
        (io, watch)
    }

    /// Returns the stream, and whether a write has timed out. The [`ClientWatch`] must have been
    /// dropped.
    pub(super) fn into_stream(self) -> (TcpStream, bool) {
        let writer = Arc::into_inner(self.writer).expect("the watch was dropped");
        let stream = self.reader.into_inner().reunite(writer).expect("the halves of one stream");
        (stream, self.has_timed_out)
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
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

impl Write for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = poll_try_write(&self.writer, cx, |writer| writer.try_write(bytes));
        self.track_write(cx, poll)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TCP socket has no buffer to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(AsRef::<TcpStream>::as_ref(&*self.writer)).shutdown(Shutdown::Write))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = poll_try_write(&self.writer, cx, |writer| writer.try_write_vectored(bytes));
        self.track_write(cx, poll)
    }
}

/// Writes when the socket accepts bytes. Writing through `AsyncWrite` would need the only reference.
fn poll_try_write(
    writer: &OwnedWriteHalf,
    cx: &mut Context<'_>,
    write: impl Fn(&OwnedWriteHalf) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    let stream: &TcpStream = writer.as_ref();
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match write(writer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
}
