//! Response bodies of the client port. A batch goes to the socket slice by slice, without being
//! copied.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};

use crate::lookup::BatchBody;

/// Response body of the client port.
#[derive(Debug)]
pub enum ResponseBody {
    /// Any body.
    Other(Body),
    /// Task record, until it is sent.
    Record(Option<Bytes>),
    /// Batch, until it is sent. Boxed to keep the other bodies small.
    Batch(Option<Box<BatchBody>>),
}

/// Data frame of a [`ResponseBody`].
#[derive(Debug)]
pub enum ResponseData {
    /// Part of another body, or a task record.
    Bytes(Bytes),
    /// Complete batch.
    Batch(Box<BatchBody>),
}

impl ResponseBody {
    pub(super) fn record(record: Bytes) -> Self {
        Self::Record(Some(record))
    }

    pub(super) fn batch(batch: Box<BatchBody>) -> Self {
        Self::Batch(Some(batch))
    }
}

impl From<Body> for ResponseBody {
    fn from(body: Body) -> Self {
        Self::Other(body)
    }
}

impl Default for ResponseBody {
    /// An empty body.
    fn default() -> Self {
        Self::Other(Body::empty())
    }
}

impl http_body::Body for ResponseBody {
    type Data = ResponseData;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<ResponseData>, axum::Error>>> {
        match &mut *self {
            Self::Other(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(ResponseData::Bytes)))),
            Self::Record(record) => {
                Poll::Ready(record.take().map(|record| Ok(Frame::data(ResponseData::Bytes(record)))))
            }
            Self::Batch(batch) => {
                Poll::Ready(batch.take().map(|batch| Ok(Frame::data(ResponseData::Batch(batch)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Other(body) => body.is_end_stream(),
            Self::Record(record) => record.is_none(),
            Self::Batch(batch) => batch.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Other(body) => body.size_hint(),
            Self::Record(record) => {
                SizeHint::with_exact(record.as_ref().map_or(0, |record| record.len() as u64))
            }
            Self::Batch(batch) => {
                SizeHint::with_exact(batch.as_ref().map_or(0, |batch| batch.remaining() as u64))
            }
        }
    }
}

impl Buf for ResponseData {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.remaining(),
            Self::Batch(batch) => batch.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.chunk(),
            Self::Batch(batch) => batch.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, target: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.chunks_vectored(target),
            Self::Batch(batch) => batch.chunks_vectored(target),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(count),
            Self::Batch(batch) => batch.advance(count),
        }
    }
}
