//! The body of an answer on the client port: any stream of bytes, or a batch's envelope, which goes to the socket
//! slice by slice without being copied.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::lookup::plan::BatchBody;

/// See the head of this file.
#[derive(Debug)]
pub enum ResponseBody {
    /// Anything.
    Any(Body),
    /// One text, until it was handed over.
    Whole(Option<Bytes>),
    /// A batch, until it was handed over. In a box, as it would make every answer as large as itself.
    Batch(Option<Box<Batch>>),
}

/// An envelope on its way to a client.
#[derive(Debug)]
pub struct Batch {
    envelope: BatchBody,
    /// Held until the last byte is with the client.
    _room: OwnedSemaphorePermit,
}

/// A piece of a body.
#[derive(Debug)]
pub enum ResponseData {
    /// Bytes as they came.
    Bytes(Bytes),
    /// The whole of a batch.
    Batch(Box<Batch>),
}

impl ResponseBody {
    pub(super) fn whole(text: Bytes) -> Self {
        Self::Whole(Some(text))
    }

    pub(super) fn batch(envelope: BatchBody, room: OwnedSemaphorePermit) -> Self {
        Self::Batch(Some(Box::new(Batch { envelope, _room: room })))
    }
}

impl From<Body> for ResponseBody {
    fn from(body: Body) -> Self {
        Self::Any(body)
    }
}

impl Default for ResponseBody {
    /// An empty body.
    fn default() -> Self {
        Self::Any(Body::empty())
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
            Self::Any(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(ResponseData::Bytes)))),
            Self::Whole(text) => {
                Poll::Ready(text.take().map(|text| Ok(Frame::data(ResponseData::Bytes(text)))))
            }
            Self::Batch(batch) => {
                Poll::Ready(batch.take().map(|batch| Ok(Frame::data(ResponseData::Batch(batch)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Any(body) => body.is_end_stream(),
            Self::Whole(text) => text.is_none(),
            Self::Batch(batch) => batch.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Any(body) => body.size_hint(),
            Self::Whole(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Batch(batch) => {
                SizeHint::with_exact(batch.as_ref().map_or(0, |batch| batch.envelope.remaining() as u64))
            }
        }
    }
}

impl Buf for ResponseData {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.remaining(),
            Self::Batch(batch) => batch.envelope.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.chunk(),
            Self::Batch(batch) => batch.envelope.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, target: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.chunks_vectored(target),
            Self::Batch(batch) => batch.envelope.chunks_vectored(target),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(count),
            Self::Batch(batch) => batch.envelope.advance(count),
        }
    }
}
