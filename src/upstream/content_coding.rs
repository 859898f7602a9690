//! A look-up's body as it comes in: unpacked where it is gzip, counted after that, given up at the limit.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::{HeaderMap, header};

use super::UpstreamError;

/// Packed bytes taken at a time. They become at most a thousand times as many, which other tasks can wait for.
const STEP: usize = 4096;

/// A whole body, unpacked by the `content-encoding` of `headers`, up to `limit` bytes.
///
/// # Errors
/// If it is packed in a way that is not understood here, or broken, or longer than the limit.
pub fn decode_body(headers: &HeaderMap, body: &[u8], limit: usize) -> Result<Bytes, UpstreamError> {
    let mut unpacked = Unpacked::new(headers, limit as u64)?;
    unpacked.push_step(body)?;
    unpacked.finish()
}

/// A body of at most so many bytes.
pub(super) enum Unpacked {
    Plain(Capped),
    /// With whether anything came in: a body of no bytes is not packed, whatever the fields say.
    Gzip(Box<MultiGzDecoder<Capped>>, bool),
}

impl Unpacked {
    /// By the answer's `content-encoding`; one that nobody asked for is a malformed answer.
    pub(super) fn new(headers: &HeaderMap, limit: u64) -> Result<Self, UpstreamError> {
        let into = Capped { bytes: Vec::new(), limit, is_full: false };
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = codings.next().map_or(&b""[..], |coding| coding.as_bytes());
        if codings.next().is_some() {
            return Err(UpstreamError::BadMessage);
        }
        match coding.to_ascii_lowercase().as_slice() {
            b"" | b"identity" => Ok(Self::Plain(into)),
            b"gzip" | b"x-gzip" => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(into)), false)),
            _ => Err(UpstreamError::BadMessage),
        }
    }

    /// Takes what came in.
    pub(super) async fn push(&mut self, chunk: &[u8]) -> Result<(), UpstreamError> {
        for step in chunk.chunks(STEP) {
            self.push_step(step)?;
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    fn push_step(&mut self, step: &[u8]) -> Result<(), UpstreamError> {
        match self {
            Self::Plain(into) => into.write_all(step).map_err(|_| UpstreamError::TooLarge),
            Self::Gzip(decoder, began) => {
                *began |= !step.is_empty();
                decoder.write_all(step).map_err(|_| decoder.get_ref().failure())
            }
        }
    }

    /// The whole body.
    pub(super) fn finish(self) -> Result<Bytes, UpstreamError> {
        match self {
            Self::Plain(into) => Ok(into.bytes.into()),
            Self::Gzip(_, false) => Ok(Bytes::new()),
            Self::Gzip(mut decoder, true) => {
                decoder.try_finish().map_err(|_| decoder.get_ref().failure())?;
                Ok(std::mem::take(&mut decoder.get_mut().bytes).into())
            }
        }
    }
}

/// Bytes up to a limit.
pub(super) struct Capped {
    bytes: Vec<u8>,
    limit: u64,
    is_full: bool,
}

impl Capped {
    /// Why a decoder that writes here failed.
    fn failure(&self) -> UpstreamError {
        if self.is_full { UpstreamError::TooLarge } else { UpstreamError::BadMessage }
    }
}

impl Write for Capped {
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
