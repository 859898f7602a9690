//! Server side of a connection: reads heads as raw bytes and bodies piece by piece.
//!
//! An HTTP library hides the exact bytes of a head, and cannot close the socket after any byte of a
//! response.

use std::io::{self, ErrorKind};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest head in bytes. This much is also read ahead during a response.
const MAX_HEAD: usize = 64 * 1024;

/// Longest line of chunked framing in bytes.
const MAX_LINE: usize = 4 * 1024;

/// Time for which a closed connection is still read. Unread bytes would turn the close into a
/// reset.
const LINGER: Duration = Duration::from_millis(500);

/// Time after which an idle connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Connection of a client.
pub(super) struct Connection {
    stream: TcpStream,
    /// Bytes received and not yet parsed.
    buffer: BytesMut,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        // If this fails, small writes are slower.
        let _ = stream.set_nodelay(true);
        Self { stream, buffer: BytesMut::with_capacity(4096) }
    }

    /// Reads the next head with its empty line. `None` once the client has closed the connection or
    /// was idle for [`IDLE_TIMEOUT`].
    pub(super) async fn read_head(&mut self) -> io::Result<Option<Bytes>> {
        let mut searched = 0;
        loop {
            if let Some(end) = find(&self.buffer[searched..], b"\r\n\r\n") {
                return Ok(Some(self.buffer.split_to(searched + end + 4).freeze()));
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(malformed("head too long"));
            }
            searched = self.buffer.len().saturating_sub(3);
            let Ok(read) = timeout(IDLE_TIMEOUT, self.fill()).await else { return Ok(None) };
            if read? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Returns once the client has closed the connection. Keeps the bytes received meanwhile.
    /// Cancel safe.
    pub(super) async fn closed(&mut self) {
        while self.buffer.len() < MAX_HEAD {
            if !matches!(self.fill().await, Ok(1..)) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Awaits a future. Returns an error if the client closes the connection first.
    pub(super) async fn unless_closed<T>(&mut self, future: impl Future<Output = T>) -> io::Result<T> {
        tokio::select! {
            biased;
            value = future => Ok(value),
            () = self.closed() => Err(ErrorKind::ConnectionAborted.into()),
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Closes the connection in order.
    pub(super) async fn close(mut self) {
        if self.stream.shutdown().await.is_ok() {
            let drained = async {
                self.buffer.clear();
                while matches!(self.fill().await, Ok(1..)) {
                    self.buffer.clear();
                }
            };
            let _ = timeout(LINGER, drained).await;
        }
    }

    /// Closes the connection with a reset (RST).
    pub(super) fn reset(self) {
        // If this fails, the connection is closed in order.
        let _ = self.stream.set_zero_linger();
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.buffer).await
    }

    async fn read_line(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = self.buffer.split_to(end + 2).freeze();
                return Ok(line.slice(..end));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(malformed("line too long"));
            }
            if self.fill().await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn read_some(&mut self, at_most: u64) -> io::Result<Bytes> {
        if self.buffer.is_empty() && self.fill().await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let length = usize::try_from(at_most).map_or(self.buffer.len(), |most| most.min(self.buffer.len()));
        Ok(self.buffer.split_to(length).freeze())
    }
}

/// Parsed request line and headers.
#[derive(Default)]
pub(super) struct RequestHead {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) keep_alive: bool,
    /// Names in lower case.
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

impl RequestHead {
    /// Parses a head. `None` if it is not the head of an HTTP/1 request.
    pub(super) fn parse(raw: &[u8]) -> Option<Self> {
        let mut lines = raw.strip_suffix(b"\r\n\r\n")?.split(|byte| *byte == b'\n');
        let line = String::from_utf8_lossy(lines.next()?.trim_ascii_end()).into_owned();
        let (method, rest) = line.split_once(' ')?;
        let (target, version) = rest.rsplit_once(' ')?;
        let keep_alive_default = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            _ => return None,
        };
        let mut headers = Vec::new();
        for line in lines {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = std::str::from_utf8(&line[..colon]).ok()?.to_ascii_lowercase();
            headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
        let mut head = Self { method: method.into(), target: target.into(), keep_alive: false, headers };
        head.keep_alive = keep_alive_default && !head.has("connection", "close");
        Some(head)
    }

    /// Returns the values of all headers of this lower-case name.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_slice())
    }

    /// Returns whether a header of this lower-case name has exactly this value, in any letter case.
    pub(super) fn has(&self, name: &str, value: &str) -> bool {
        self.values(name).any(|found| found.eq_ignore_ascii_case(value.as_bytes()))
    }

    /// Returns the bearer token, or the `payment-signature` that replaces it.
    pub(super) fn token(&self) -> Option<String> {
        let authorization = String::from_utf8_lossy(self.values("authorization").next().or_else(|| {
            let payment = self.values("payment-signature").next();
            payment.filter(|payment| !payment.is_empty())
        })?)
        .into_owned();
        match authorization.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Some(token.trim().to_owned()).filter(|token| !token.is_empty())
            }
            _ => self.values("authorization").next().is_none().then_some(authorization),
        }
    }

    /// Returns the body that follows. `None` if its framing is ambiguous.
    pub(super) fn body(&self) -> Option<RequestBody> {
        let mut codings = self.values("transfer-encoding");
        let mut lengths = self.values("content-length");
        let state = match (codings.next(), lengths.next()) {
            (None, None) => BodyState::Done,
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => BodyState::ChunkSize,
            (None, Some(length)) => BodyState::Length(parse_digits(length, 10)?),
            _ => return None,
        };
        let once = codings.next().is_none() && lengths.next().is_none();
        once.then_some(RequestBody { state })
    }
}

/// Rest of a request body.
pub(super) struct RequestBody {
    state: BodyState,
}

/// Next part of a body.
enum BodyState {
    Length(u64),
    ChunkSize,
    Chunk(u64),
    Done,
}

impl RequestBody {
    /// Reads the next piece; `None` at the end.
    ///
    /// # Errors
    /// `UnexpectedEof` if the client closed the connection, `InvalidData` for malformed framing.
    pub(super) async fn next(&mut self, connection: &mut Connection) -> io::Result<Option<Bytes>> {
        loop {
            match self.state {
                BodyState::Done | BodyState::Length(0) => return Ok(None),
                BodyState::Length(left) => {
                    let piece = connection.read_some(left).await?;
                    self.state = BodyState::Length(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                BodyState::ChunkSize => {
                    let line = connection.read_line().await?;
                    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                    self.state = match parse_digits(digits, 16).ok_or_else(|| malformed("chunk size"))? {
                        0 => {
                            while !connection.read_line().await?.is_empty() {}
                            BodyState::Done
                        }
                        size => BodyState::Chunk(size),
                    };
                }
                BodyState::Chunk(0) => {
                    if !connection.read_line().await?.is_empty() {
                        return Err(malformed("chunk end"));
                    }
                    self.state = BodyState::ChunkSize;
                }
                BodyState::Chunk(left) => {
                    let piece = connection.read_some(left).await?;
                    self.state = BodyState::Chunk(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
            }
        }
    }
}

fn parse_digits(digits: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(text, radix).ok())?
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_head_is_parsed() {
        let raw = b"POST /a/tasks?x=1 HTTP/1.1\r\nHost: h\r\nAuthorization: bEaReR  t1 \r\nX: \xff\r\n\r\n";
        let head = RequestHead::parse(raw).unwrap();
        assert_eq!((head.method.as_str(), head.target.as_str()), ("POST", "/a/tasks?x=1"));
        assert_eq!(head.token().as_deref(), Some("t1"));
        assert_eq!(head.values("x").next(), Some(b"\xff".as_slice()));
        assert!(head.keep_alive);
        assert!(RequestHead::parse(b"POST\r\n\r\n").is_none());
        assert!(RequestHead::parse(b"GET / HTTP/1.1\r\nno colon\r\n\r\n").is_none());
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let body = |headers: &str| {
            RequestHead::parse(format!("POST / HTTP/1.1\r\n{headers}\r\n").as_bytes())
                .unwrap()
                .body()
                .is_some()
        };
        assert!(body("host: h\r\n"));
        assert!(body("content-length: 3\r\n"));
        assert!(body("transfer-encoding: Chunked\r\n"));
        assert!(!body("transfer-encoding: chunked\r\ncontent-length: 3\r\n"));
        assert!(!body("content-length: 3\r\ncontent-length: 3\r\n"));
        assert!(!body("content-length: +3\r\n"));
        assert!(!body("transfer-encoding: gzip, chunked\r\n"));
    }
}
