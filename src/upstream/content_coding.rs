//! Decoding of response bodies by their `content-encoding`, with a limit on the decoded size.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::{HeaderMap, header};

use super::UpstreamError;

/// Encoded bytes decoded at a time. They decode to at most about 4 MiB, during which other tasks
/// can wait.
const STEP: usize = 4096;

/// Decodes a whole body by the `content-encoding` in `headers`.
///
/// # Errors
/// [`UpstreamError::BadMessage`] if the encoding is not supported or the body is malformed, and
/// [`UpstreamError::TooLarge`] if the decoded body is longer than `limit` bytes.
pub fn decode_body(headers: &HeaderMap, body: &[u8], limit: usize) -> Result<Bytes, UpstreamError> {
    let mut decoder = BodyDecoder::new(headers, limit as u64)?;
    decoder.decode_step(body)?;
    decoder.finish()
}

/// Incremental decoder of a body with a limit on the decoded size.
pub(super) enum BodyDecoder {
    Identity(LimitedBuffer),
    Gzip {
        decoder: Box<MultiGzDecoder<LimitedBuffer>>,
        /// An empty body is valid although it is not a gzip stream.
        is_empty: bool,
    },
}

impl BodyDecoder {
    /// Creates a decoder for the `content-encoding` in `headers`. An encoding that was not
    /// requested is an error.
    pub(super) fn new(headers: &HeaderMap, limit: u64) -> Result<Self, UpstreamError> {
        let output = LimitedBuffer { bytes: Vec::new(), limit, is_full: false };
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = codings.next().map_or(&b""[..], |coding| coding.as_bytes());
        if codings.next().is_some() {
            return Err(UpstreamError::BadMessage);
        }
        match coding.to_ascii_lowercase().as_slice() {
            b"" | b"identity" => Ok(Self::Identity(output)),
            b"gzip" | b"x-gzip" => {
                Ok(Self::Gzip { decoder: Box::new(MultiGzDecoder::new(output)), is_empty: true })
            }
            _ => Err(UpstreamError::BadMessage),
        }
    }

    /// Decodes the next encoded bytes.
    pub(super) async fn decode(&mut self, chunk: &[u8]) -> Result<(), UpstreamError> {
        for step in chunk.chunks(STEP) {
            self.decode_step(step)?;
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    fn decode_step(&mut self, step: &[u8]) -> Result<(), UpstreamError> {
        match self {
            Self::Identity(output) => output.write_all(step).map_err(|_| UpstreamError::TooLarge),
            Self::Gzip { decoder, is_empty } => {
                *is_empty &= step.is_empty();
                decoder.write_all(step).map_err(|_| decoder.get_ref().error())
            }
        }
    }

    /// Returns the decoded body.
    pub(super) fn finish(self) -> Result<Bytes, UpstreamError> {
        match self {
            Self::Identity(output) => Ok(output.bytes.into()),
            Self::Gzip { is_empty: true, .. } => Ok(Bytes::new()),
            Self::Gzip { mut decoder, is_empty: false } => {
                decoder.try_finish().map_err(|_| decoder.get_ref().error())?;
                Ok(std::mem::take(&mut decoder.get_mut().bytes).into())
            }
        }
    }
}

/// Buffer that rejects writes beyond a limit.
pub(super) struct LimitedBuffer {
    bytes: Vec<u8>,
    limit: u64,
    is_full: bool,
}

impl LimitedBuffer {
    /// Returns the error of a decoder that failed to write here.
    fn error(&self) -> UpstreamError {
        if self.is_full { UpstreamError::TooLarge } else { UpstreamError::BadMessage }
    }
}

impl Write for LimitedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            self.is_full = true;
            return Err(io::Error::other("the limit is reached"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
