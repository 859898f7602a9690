//! A client that writes raw bytes, for requests that no HTTP library would send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::TIMEOUT;

/// One connection.
pub struct Wire {
    pub stream: TcpStream,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.expect("a connection") }
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("written");
    }

    /// Reads until the peer closes. `Err` holds the bytes before a reset.
    pub async fn read_to_end(&mut self) -> Result<Vec<u8>, Vec<u8>> {
        let mut read = Vec::new();
        match tokio::time::timeout(TIMEOUT, self.stream.read_to_end(&mut read)).await {
            Ok(Ok(_)) => Ok(read),
            Ok(Err(_)) => Err(read),
            Err(_) => panic!("the connection stays open after {:?}", String::from_utf8_lossy(&read)),
        }
    }

    /// Reads up to and including `end`.
    pub async fn read_until(&mut self, end: &str) -> Vec<u8> {
        let mut read = Vec::new();
        let reading = async {
            while !read.windows(end.len()).any(|window| window == end.as_bytes()) {
                let mut byte = [0; 1];
                assert_eq!(self.stream.read(&mut byte).await.expect("readable"), 1, "closed after {read:?}");
                read.push(byte[0]);
            }
        };
        tokio::time::timeout(TIMEOUT, reading).await.expect("in time");
        read
    }

    /// Sends one request on a new connection and reads until it is closed.
    pub async fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> String {
        let mut wire = Self::connect(address).await;
        wire.write(request).await;
        let read = wire.read_to_end().await.unwrap_or_else(|read| read);
        String::from_utf8_lossy(&read).into_owned()
    }
}

/// The bytes of a request. `line` is method and target; `host` and `content-length` are added.
pub fn request(line: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut head = format!("{line} HTTP/1.1\r\nhost: proxy.test\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// Sends a `GET` on a new connection.
pub async fn get(address: SocketAddr, path: &str) -> RawResponse {
    let mut wire = Wire::connect(address).await;
    wire.write(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n")).await;
    wire.response().await
}

/// A response as it came over the wire.
#[derive(Clone, Debug)]
pub struct RawResponse {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without the framing of chunks.
    pub body: Vec<u8>,
    /// Whether the body reached its declared end.
    pub complete: bool,
}

impl RawResponse {
    /// First value of a header, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// `error.code` of the body.
    pub fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Wire {
    /// Reads status and headers of a response.
    pub async fn head(&mut self) -> (u16, Vec<(String, String)>) {
        let head = self.read_until("\r\n\r\n").await;
        let head = String::from_utf8(head).expect("text");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|word| word.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        (status.unwrap_or_else(|| panic!("no status line: {head}")), headers.collect())
    }

    /// Reads one final response to the end of its body.
    pub async fn response(&mut self) -> RawResponse {
        self.response_to("POST").await
    }

    /// Reads one final response to a request with this method.
    pub async fn response_to(&mut self, method: &str) -> RawResponse {
        let (mut status, mut headers) = self.head().await;
        while (100..200).contains(&status) {
            (status, headers) = self.head().await;
        }
        let mut response = RawResponse { status, headers, body: Vec::new(), complete: true };
        if method == "HEAD" || matches!(status, 204 | 304) {
            return response;
        }
        let reading = async {
            if response.header("transfer-encoding") == "chunked" {
                self.read_chunks(&mut response.body).await
            } else if let Ok(length) = response.header("content-length").parse() {
                self.read_exactly(length, &mut response.body).await
            } else {
                self.stream.read_to_end(&mut response.body).await.is_ok()
            }
        };
        response.complete = tokio::time::timeout(TIMEOUT, reading).await.expect("a body in time");
        response
    }

    /// Reads one chunk of a body: empty for the last one, `None` if the connection ends.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(self.stream.read_u8().await.ok()?);
        }
        let size = String::from_utf8_lossy(&line);
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk size");
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).await.ok()?;
        chunk.truncate(size);
        Some(chunk)
    }

    async fn read_chunks(&mut self, body: &mut Vec<u8>) -> bool {
        while let Some(chunk) = self.chunk().await {
            if chunk.is_empty() {
                return true;
            }
            body.extend(chunk);
        }
        false
    }

    async fn read_exactly(&mut self, length: usize, body: &mut Vec<u8>) -> bool {
        let mut piece = vec![0; 64 * 1024];
        while body.len() < length {
            let most = piece.len().min(length - body.len());
            match self.stream.read(&mut piece[..most]).await {
                Ok(count @ 1..) => body.extend_from_slice(&piece[..count]),
                _ => return false,
            }
        }
        true
    }
}
