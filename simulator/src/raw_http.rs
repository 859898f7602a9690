//! Raw HTTP/1.1 peer for tests: sends any bytes and returns exactly the bytes that arrive.
//!
//! An HTTP library refuses to send a malformed message and hides how a message was framed.
//! [`RawPeer`] does neither. It can be the client or the server of a connection. All tests of the
//! workspace use this one.
//!
//! Every method panics where a test cannot go on: after [`TIMEOUT`], and on an I/O error unless it
//! returns one.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest time that a test waits for one thing to happen.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Awaits `future`, at most for [`TIMEOUT`].
///
/// # Panics
/// After [`TIMEOUT`].
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(TIMEOUT, future).await.expect("the future should have completed within 20 s")
}

/// Listens on a free loopback port.
pub async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    (listener, address)
}

/// One end of a TCP connection.
pub struct RawPeer {
    stream: TcpStream,
    /// Bytes received and not yet returned.
    buffer: BytesMut,
}

impl RawPeer {
    /// Opens a connection.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.expect("the server accepts connections")
    }

    /// Opens a connection, or returns why it cannot.
    pub async fn try_connect(address: SocketAddr) -> io::Result<Self> {
        soon(TcpStream::connect(address)).await.map(Self::new)
    }

    /// Accepts a connection.
    pub async fn accept(listener: &TcpListener) -> Self {
        Self::new(soon(listener.accept()).await.expect("the listener works").0)
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("the socket is open");
        Self { stream, buffer: BytesMut::new() }
    }

    /// Sends `bytes`.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_write(bytes).await.expect("the other side still reads");
    }

    /// Sends `bytes`, or returns why it cannot.
    pub async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        soon(self.stream.write_all(bytes.as_ref())).await
    }

    /// Reads until `end` was received, and returns everything up to its last byte.
    pub async fn read_until(&mut self, end: &str) -> Bytes {
        soon(async {
            let mut searched = 0;
            loop {
                let found =
                    self.buffer[searched..].windows(end.len()).position(|window| window == end.as_bytes());
                if let Some(at) = found {
                    return self.buffer.split_to(searched + at + end.len()).freeze();
                }
                searched = (self.buffer.len() + 1).saturating_sub(end.len());
                assert!(self.fill().await, "closed before {end:?}, after {:?}", self.buffer);
            }
        })
        .await
    }

    /// Reads `length` bytes.
    pub async fn read_exact(&mut self, length: usize) -> Bytes {
        soon(async {
            while self.buffer.len() < length {
                assert!(self.fill().await, "closed before {length} bytes, after {:?}", self.buffer);
            }
        })
        .await;
        self.buffer.split_to(length).freeze()
    }

    /// Reads the head of a request or of a response, with its empty line.
    pub async fn read_head(&mut self) -> RawHead {
        let head = self.read_until("\r\n\r\n").await;
        RawHead(String::from_utf8(head.into()).expect("the head is UTF-8"))
    }

    /// Reads the next chunk of a chunked body. The last chunk is empty; `None` if the connection
    /// ends before the end of the chunk.
    pub async fn read_chunk(&mut self) -> Option<Bytes> {
        let size = loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = self.buffer.split_to(end + 2);
                let size = std::str::from_utf8(&line[..end]).expect("the chunk size is text");
                break usize::from_str_radix(size, 16).expect("the chunk size is hexadecimal");
            }
            if !soon(self.fill()).await {
                return None;
            }
        };
        while self.buffer.len() < size + 2 {
            if !soon(self.fill()).await {
                return None;
            }
        }
        let chunk = self.buffer.split_to(size + 2).freeze();
        Some(chunk.slice(..size))
    }

    /// Reads a response to a request that was neither `HEAD` nor `CONNECT`. Skips informational
    /// (1xx) responses.
    pub async fn read_response(&mut self) -> RawResponse {
        self.read_response_to("POST").await
    }

    /// Reads a response to a request of this method. Skips informational (1xx) responses.
    pub async fn read_response_to(&mut self, method: &str) -> RawResponse {
        let mut head = self.read_head().await;
        while (100..200).contains(&head.status()) {
            head = self.read_head().await;
        }
        let status = head.status();
        let (body, is_complete) = if method == "HEAD" || matches!(status, 204 | 304) {
            (Bytes::new(), true)
        } else if head.header("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            self.read_chunked_body().await
        } else if let Some(length) = head.header("content-length") {
            self.read_body(length.parse().expect("content-length is a number")).await
        } else {
            match self.read_to_end().await {
                Ok(body) => (body, true),
                Err(body) => (body, false),
            }
        };
        RawResponse { status, head, body, is_complete }
    }

    async fn read_body(&mut self, length: usize) -> (Bytes, bool) {
        soon(async { while self.buffer.len() < length && self.fill().await {} }).await;
        let is_complete = self.buffer.len() >= length;
        (self.buffer.split_to(length.min(self.buffer.len())).freeze(), is_complete)
    }

    async fn read_chunked_body(&mut self) -> (Bytes, bool) {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.read_chunk().await {
            if chunk.is_empty() {
                return (body.freeze(), true);
            }
            body.extend_from_slice(&chunk);
        }
        (body.freeze(), false)
    }

    /// Reads until the other side closes the connection. `Err` has the bytes received before a
    /// reset.
    pub async fn read_to_end(&mut self) -> Result<Bytes, Bytes> {
        let end = loop {
            match soon(self.stream.read_buf(&mut self.buffer)).await {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(_) => break Err(()),
            }
        };
        let received = std::mem::take(&mut self.buffer).freeze();
        end.map(|()| received.clone()).map_err(|()| received)
    }

    /// Returns the socket.
    ///
    /// # Panics
    /// If bytes were received that no method has returned.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.buffer.is_empty(), "received bytes were not read: {:?}", self.buffer);
        self.stream
    }

    /// Closes the connection with a reset (RST).
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("the socket is open");
    }

    /// Receives more bytes. Returns whether there were any; `false` also after a reset.
    async fn fill(&mut self) -> bool {
        self.stream.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0)
    }
}

/// Head of a request or response exactly as it was received. Dereferences to its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawHead(String);

impl RawHead {
    /// Returns the status code.
    ///
    /// # Panics
    /// If this is not the head of a response.
    pub fn status(&self) -> u16 {
        let status = self.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("no status line: {self:?}"))
    }

    /// Returns the value of the first header of this name, in any letter case, without surrounding
    /// white space.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns all headers in order, with names in their original letter case.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.map(|(name, value)| (name, value.trim()))
    }
}

impl fmt::Display for RawHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Deref for RawHead {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Response as it was received.
#[derive(Clone, Debug)]
pub struct RawResponse {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: RawHead,
    /// Body without its framing.
    pub body: Bytes,
    /// Whether the body reached the end that its framing announced.
    pub is_complete: bool,
}

impl RawResponse {
    /// Returns the value of the first header of this name, in any letter case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Returns the body as text, with a replacement character for each invalid byte sequence.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
