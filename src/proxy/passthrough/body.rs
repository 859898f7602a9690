//! Bodies on their way through: watched, put together from what was read already and what is still to come, or
//! without a size.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::server::ClientBodyError;

/// A body that begins with `prefix`, which was read from it already, and goes on with `rest`. Its size is exact
/// where that of `rest` is.
pub fn with_prefix(prefix: Bytes, rest: Body) -> Body {
    if prefix.is_empty() { rest } else { Body::new(PrefixedBody::new(prefix, None, rest)) }
}

/// A prefix, then perhaps a frame or an error that came after it, then the rest.
pub(super) struct PrefixedBody {
    prefix: Bytes,
    next: Option<Result<Frame<Bytes>, axum::Error>>,
    rest: Body,
}

impl PrefixedBody {
    pub(super) fn new(prefix: Bytes, next: Option<Result<Frame<Bytes>, axum::Error>>, rest: Body) -> Self {
        Self { prefix, next, rest }
    }
}

impl http_body::Body for PrefixedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.prefix.is_empty() {
            let prefix = std::mem::take(&mut self.prefix);
            return Poll::Ready(Some(Ok(Frame::data(prefix))));
        }
        if let Some(next) = self.next.take() {
            return Poll::Ready(Some(next));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.prefix.is_empty() && self.next.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.prefix.len() as u64;
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(length));
        // With trailers or an error to come the body has no plain length.
        if let (Some(upper), None) = (rest.upper(), &self.next) {
            hint.set_upper(upper.saturating_add(length));
        }
        hint
    }
}

/// Sees a request's body fail, whatever becomes of the error on its way through the libraries.
pub(super) struct ErrorTap {
    inner: Body,
    failure: Arc<OnceLock<ClientBodyError>>,
}

/// What a [`ErrorTap`] saw.
pub(super) struct Seen(Arc<OnceLock<ClientBodyError>>);

impl Seen {
    /// Why the client's body failed, if it did.
    pub(super) fn failure(&self) -> Option<ClientBodyError> {
        self.0.get().copied()
    }
}

impl ErrorTap {
    /// The body to send, and what is seen of it.
    pub(super) fn over(inner: Body) -> (Body, Seen) {
        let failure = Arc::new(OnceLock::new());
        (Body::new(Self { inner, failure: failure.clone() }), Seen(failure))
    }
}

impl http_body::Body for ErrorTap {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let poll = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &poll {
            let _ = self.failure.set(ClientBodyError::of(error));
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of an answer to HEAD without a `content-length`: at its end, but not of size 0, which a server would
/// write down as the length of what GET gives.
pub(super) struct Unsized;

impl http_body::Body for Unsized {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_prefix_and_the_rest_are_one_body() {
        let body = with_prefix(Bytes::from("ab"), Body::from("cde"));
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcde");
    }

    #[tokio::test]
    async fn a_prefix_that_is_all_keeps_its_size() {
        let body = with_prefix(Bytes::from("ab"), Body::empty());
        assert_eq!(body.size_hint().exact(), Some(2));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ab");
        assert!(with_prefix(Bytes::new(), Body::empty()).is_end_stream());
    }
}
