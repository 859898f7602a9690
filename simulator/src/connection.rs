//! One client's connection, read by hand: heads as raw bytes, bodies piece by piece.
//!
//! Written by hand because tests need what a library hides: the exact bytes of a head, and a socket that can be cut
//! at any byte. Used by [`super::exchange`]; knows nothing of tasks or rules.

use std::io::{self, ErrorKind};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest head that is read, and as much is read ahead while an answer is under way.
const MAX_HEAD: usize = 64 * 1024;

/// The longest line of chunked framing.
const MAX_LINE: usize = 4 * 1024;

/// How long a closed connection is still read, so that unread bytes do not turn the close into a reset.
const LINGER: Duration = Duration::from_millis(500);

/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(300);

pub(super) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        // A failure only means slower small writes.
        let _ = stream.set_nodelay(true);
        Self { stream, buffer: BytesMut::with_capacity(4096) }
    }

    /// The next head with its empty line; `None` once the client is done, or silent for long.
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
            let Ok(read) = timeout(IDLE, self.fill()).await else { return Ok(None) };
            if read? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Returns once the client hung up. What it sends meanwhile is kept for later. Cancel safe.
    pub(super) async fn hung_up(&mut self) {
        while self.buffer.len() < MAX_HEAD {
            if !matches!(self.fill().await, Ok(1..)) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Waits for the future; an error if the client hangs up first.
    pub(super) async fn unless_hung_up<T>(&mut self, future: impl Future<Output = T>) -> io::Result<T> {
        tokio::select! {
            biased;
            value = future => Ok(value),
            () = self.hung_up() => Err(ErrorKind::ConnectionAborted.into()),
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Ends the connection in order.
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

    /// Ends the connection with a reset (RST).
    pub(super) fn reset(self) {
        // If it cannot be set, the connection is closed all the same.
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

/// A request line and headers, taken apart.
#[derive(Default)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) keep_alive: bool,
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// Takes a head apart; `None` for one that is no HTTP/1 request.
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

    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_slice())
    }

    /// Whether a header of this name says just this, in any letter case.
    pub(super) fn has(&self, name: &str, value: &str) -> bool {
        self.values(name).any(|found| found.eq_ignore_ascii_case(value.as_bytes()))
    }

    /// The bearer token, or the payment signature that stands in its place.
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

    /// The body that follows; `None` if its framing is ambiguous.
    pub(super) fn body(&self) -> Option<Body> {
        let mut codings = self.values("transfer-encoding");
        let mut lengths = self.values("content-length");
        let state = match (codings.next(), lengths.next()) {
            (None, None) => State::Done,
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => State::ChunkSize,
            (None, Some(length)) => State::Length(parse_digits(length, 10)?),
            _ => return None,
        };
        let once = codings.next().is_none() && lengths.next().is_none();
        once.then_some(Body { state })
    }
}

/// The rest of a request's body.
pub(super) struct Body {
    state: State,
}

enum State {
    Length(u64),
    ChunkSize,
    Chunk(u64),
    Done,
}

impl Body {
    /// The next piece; `None` at the end. `UnexpectedEof` if the client left, `InvalidData` for broken framing.
    pub(super) async fn next(&mut self, connection: &mut Connection) -> io::Result<Option<Bytes>> {
        loop {
            match self.state {
                State::Done | State::Length(0) => return Ok(None),
                State::Length(left) => {
                    let piece = connection.read_some(left).await?;
                    self.state = State::Length(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                State::ChunkSize => {
                    let line = connection.read_line().await?;
                    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                    self.state = match parse_digits(digits, 16).ok_or_else(|| malformed("chunk size"))? {
                        0 => {
                            while !connection.read_line().await?.is_empty() {}
                            State::Done
                        }
                        size => State::Chunk(size),
                    };
                }
                State::Chunk(0) => {
                    if !connection.read_line().await?.is_empty() {
                        return Err(malformed("chunk end"));
                    }
                    self.state = State::ChunkSize;
                }
                State::Chunk(left) => {
                    let piece = connection.read_some(left).await?;
                    self.state = State::Chunk(left - piece.len() as u64);
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
    fn heads_are_taken_apart() {
        let raw = b"POST /a/tasks?x=1 HTTP/1.1\r\nHost: h\r\nAuthorization: bEaReR  t1 \r\nX: \xff\r\n\r\n";
        let head = Head::parse(raw).unwrap();
        assert_eq!((head.method.as_str(), head.target.as_str()), ("POST", "/a/tasks?x=1"));
        assert_eq!(head.token().as_deref(), Some("t1"));
        assert_eq!(head.values("x").next(), Some(b"\xff".as_slice()));
        assert!(head.keep_alive);
        assert!(Head::parse(b"POST\r\n\r\n").is_none());
        assert!(Head::parse(b"GET / HTTP/1.1\r\nno colon\r\n\r\n").is_none());
    }

    #[test]
    fn ambiguous_framing_is_no_body() {
        let body = |headers: &str| {
            Head::parse(format!("POST / HTTP/1.1\r\n{headers}\r\n").as_bytes()).unwrap().body().is_some()
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
