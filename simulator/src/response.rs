//! Well-formed responses of the simulated upstream and their bytes on the connection.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use flate2::write::GzEncoder;
use flate2::{Compression, Crc, FlushCompress};
use http::StatusCode;

use crate::clock;

/// Item of a batch response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchItem {
    /// Requested id. Empty for an item that was not requested.
    pub id: String,
    /// Exact bytes of the item in the response.
    pub record: Bytes,
}

/// Response before it is sent.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) content: Content,
}

/// Content of a response.
pub(super) enum Content {
    Bytes(Bytes),
    /// Batch before its items are joined.
    Items {
        items: Vec<BatchItem>,
        /// `None`: the number of items.
        count: Option<usize>,
        /// Key of the count.
        count_key: &'static str,
    },
}

impl Response {
    pub(super) fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        Self { status, headers, content: Content::Bytes(body.into()) }
    }

    pub(super) fn json(body: impl Into<Bytes>) -> Self {
        Self::new(200, "application/json", body)
    }

    /// Returns an error in the documented shape.
    pub(super) fn error(status: u16, code: &str, trace_id: &str) -> Self {
        let body = serde_json::json!({
            "success": false,
            "error": {"code": code, "message": message(code)},
            "trace_id": trace_id,
        });
        Self::new(status, "application/json", body.to_string())
    }

    pub(super) fn items(items: Vec<BatchItem>, count: Option<usize>, count_key: &'static str) -> Self {
        Self { content: Content::Items { items, count, count_key }, ..Self::json("") }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Removes the body and returns it as bytes.
    pub(super) fn take_body(&mut self) -> Bytes {
        std::mem::replace(&mut self.content, Content::Bytes(Bytes::new())).into_bytes()
    }

    /// Returns the status line and headers with the empty line. `framing` is the header line that
    /// frames the body.
    pub(super) fn head(&self, framing: &str, keep_alive: bool) -> String {
        let reason = StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason.unwrap_or("Unknown"));
        let unix_now = Duration::from_secs(u64::try_from(clock::unix_now()).unwrap_or(0));
        let date = httpdate::fmt_http_date(UNIX_EPOCH + unix_now);
        let own = [("server", "simulator"), ("date", date.as_str())];
        let named = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.into_iter().chain(named) {
            head.extend([name, ": ", value, "\r\n"]);
        }
        if !keep_alive {
            head.push_str("connection: close\r\n");
        }
        head.extend([framing, "\r\n"]);
        head
    }
}

impl Content {
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Items { items, count, count_key } => {
                let count = count.unwrap_or(items.len());
                let mut body = br#"{"items":["#.to_vec();
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        body.push(b',');
                    }
                    body.extend_from_slice(&item.record);
                }
                body.extend_from_slice(format!(r#"],"{count_key}":{count}}}"#).as_bytes());
                body.into()
            }
        }
    }
}

/// Returns the header line that frames a body of known length.
pub(super) fn length_line(length: u64) -> String {
    format!("content-length: {length}\r\n")
}

/// Header line that frames a chunked body.
pub(super) const CHUNKED_LINE: &str = "transfer-encoding: chunked\r\n";

/// Returns a chunk of a chunked body.
pub(super) fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

/// End of a chunked body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

fn message(code: &str) -> &'static str {
    match code {
        "bad_request" => "The request is not valid.",
        "no_token" => "No token was given.",
        "invalid_token" => "The token is not valid.",
        "token_expired" => "The token has expired.",
        "token_mismatched" => "The token does not fit this API.",
        "used_up" => "The balance is used up.",
        "disabled" => "The credential is disabled.",
        "forbidden" => "The request is forbidden.",
        "no_api" => "There is no such API.",
        "too_many_requests" => "Too many requests, please slow down.",
        "not_found" | "no_task" => "The task was not found.",
        "timeout" => "The request took too long.",
        _ => "The request failed.",
    }
}

/// Compresses a body with gzip.
pub(super) fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(body).and_then(|()| encoder.finish());
    written.expect("writing to memory does not fail").into()
}

/// Returns a gzip body that decompresses to `length` zeros, without allocating them. One megabyte
/// is compressed so that the result ends on a byte boundary and does not refer back, and that piece
/// is repeated.
pub(super) fn gzip_bomb(length: u64) -> Bytes {
    const PIECE: usize = 1024 * 1024;
    let zeros = vec![0; PIECE];
    let rest = usize::try_from(length % PIECE as u64).unwrap_or(0);
    let piece = flushed(&zeros).expect("writing to memory does not fail");
    let last = flushed(&zeros[..rest]).expect("writing to memory does not fail");
    let mut crc = Crc::new();
    // RFC 1952 2.3: magic, deflate, no flags, no time, unknown system.
    let mut body = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    for _ in 0..length / PIECE as u64 {
        body.extend_from_slice(&piece);
        crc.update(&zeros);
    }
    body.extend_from_slice(&last);
    crc.update(&zeros[..rest]);
    // Empty final block, then the trailer: checksum and length modulo 2^32.
    body.extend_from_slice(&[0x03, 0x00]);
    body.extend_from_slice(&crc.sum().to_le_bytes());
    body.extend_from_slice(&(length as u32).to_le_bytes());
    body.into()
}

/// Returns deflate blocks that end on a byte boundary and are not final.
fn flushed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut compress = flate2::Compress::new(Compression::fast(), false);
    let mut out = Vec::with_capacity(bytes.len() / 100 + 1024);
    compress.compress_vec(bytes, &mut out, FlushCompress::Full)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn gzip_bomb_is_small_and_valid() {
        let bomb = gzip_bomb(5_000_001);
        assert!(bomb.len() < 40_000, "{}", bomb.len());
        let mut zeros = Vec::new();
        GzDecoder::new(&bomb[..]).read_to_end(&mut zeros).unwrap();
        assert_eq!(zeros.len(), 5_000_001);
        assert!(zeros.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn batch_items_are_joined_byte_for_byte() {
        let item = |text: &'static str| BatchItem { id: String::new(), record: text.into() };
        let mut response = Response::items(vec![item("{ \"a\" : 1.0 }"), item("x")], None, "count");
        assert_eq!(response.take_body(), r#"{"items":[{ "a" : 1.0 },x],"count":2}"#);
    }

    #[test]
    fn errors_have_the_documented_shape() {
        let body = Response::error(429, "too_many_requests", "t").take_body();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let documented: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/error.json")).unwrap();
        assert_eq!(
            json.as_object().unwrap().keys().collect::<Vec<_>>(),
            documented.as_object().unwrap().keys().collect::<Vec<_>>()
        );
        assert_eq!(json["error"]["code"], "too_many_requests");
    }
}
