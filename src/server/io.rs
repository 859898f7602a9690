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

/// Largest number of unsent bytes that the kernel holds for a client, in addition to those in flight.
/// Otherwise it holds up to 4 MiB, and accepts more only when a third of them were read: a client
/// that reads 20 kB/s would seem to read nothing for more than a minute.
const MAX_UNSENT_BYTES: u32 = 64 * 1024;

/// Smallest number of bytes that a client must take within the time limit of a write.
const MIN_BYTES_TAKEN: usize = 4096;

/// Socket of a client.
pub(super) struct ClientIo {
    reader: TokioIo<OwnedReadHalf>,
    /// Shared with the [`ClientWatch`].
    writer: Arc<OwnedWriteHalf>,
    activity: Arc<Activity>,
    write_idle_timeout: Duration,
    /// Exists while bytes wait for a slow client.
    stall: Option<Stall>,
    has_timed_out: bool,
}

/// Time limit for [`MIN_BYTES_TAKEN`].
struct Stall {
    timer: Pin<Box<Sleep>>,
    /// Number of bytes that the socket has accepted since the timer was started.
    taken: usize,
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
    /// Wraps a stream. A write fails if bytes wait for `write_idle_timeout` and the client takes fewer
    /// than [`MIN_BYTES_TAKEN`] in this time.
    pub(super) fn new(
        stream: TcpStream,
        activity: Arc<Activity>,
        write_idle_timeout: Duration,
    ) -> (Self, ClientWatch) {
        limit_unsent_bytes(&stream);
        let (reader, writer) = stream.into_split();
        let writer = Arc::new(writer);
        let watch = ClientWatch(Arc::clone(&writer));
        let io = Self {
            reader: TokioIo::new(reader),
            writer,
            activity,
            write_idle_timeout,
            stall: None,
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
    fn track_write(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.activity.set_write_blocked(poll.is_pending());
        let Poll::Ready(written) = poll else {
            let stall = self.stall.get_or_insert_with(|| Stall {
                timer: Box::pin(tokio::time::sleep(self.write_idle_timeout)),
                taken: 0,
            });
            ready!(stall.timer.as_mut().poll(cx));
            self.has_timed_out = true;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        };
        if let Some(stall) = &mut self.stall {
            stall.taken += *written.as_ref().unwrap_or(&0);
            if stall.taken >= MIN_BYTES_TAKEN {
                self.end_stall();
            }
        }
        Poll::Ready(written)
    }

    fn end_stall(&mut self) {
        if self.stall.take().is_some() {
            self.activity.record_end();
        }
    }
}

#[cfg(target_os = "linux")]
fn limit_unsent_bytes(stream: &TcpStream) {
    // This fails if the client has left, which the first read reports.
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(MAX_UNSENT_BYTES);
}

#[cfg(not(target_os = "linux"))]
fn limit_unsent_bytes(_: &TcpStream) {}

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

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The socket has accepted all bytes. It has no buffer to flush.
        self.end_stall();
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::net::TcpListener;

    use super::*;

    /// Returns whether a client is still waited for after two minutes if it takes this number of
    /// bytes every 5 s. With `is_all`, there are never more bytes for it.
    async fn outlasts(taken: usize, is_all: bool) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut io, _watch) = ClientIo::new(stream, Arc::new(Activity::new()), Duration::from_secs(60));
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..24 {
            if io.track_write(&mut cx, Poll::Pending).is_ready() {
                return false;
            }
            tokio::time::advance(Duration::from_secs(5)).await;
            assert!(io.track_write(&mut cx, Poll::Ready(Ok(taken))).is_ready());
            if is_all {
                assert!(Pin::new(&mut io).poll_flush(&mut cx).is_ready());
            }
        }
        true
    }

    #[tokio::test(start_paused = true)]
    async fn client_must_take_4_kib_in_the_time_limit() {
        assert!(!outlasts(0, false).await);
        assert!(!outlasts(32, false).await);
        assert!(!outlasts(4096 / 12, false).await);
        assert!(outlasts(4096 / 12 + 1, false).await);
        assert!(outlasts(32, true).await, "the client takes everything");
    }
}
