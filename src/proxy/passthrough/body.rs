//! Bodies of forwarded requests and responses: preceded by bytes that were already read, observed
//! for errors, or of unknown length.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::server::RequestBodyError;

/// Returns a body of `prefix`, which was already read from it, followed by `rest`. Its length is
/// known if that of `rest` is.
pub(in crate::proxy) fn with_prefix(prefix: Bytes, rest: Body) -> Body {
    if prefix.is_empty() { rest } else { Body::new(PrefixedBody::new(prefix, None, rest)) }
}

/// Body of a prefix, then the trailers or the error that were read after it, if any, then the rest.
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
        // Before trailers or an error, the length is not known.
        if let (Some(upper), None) = (rest.upper(), &self.next) {
            hint.set_upper(upper.saturating_add(length));
        }
        hint
    }
}

/// Request body that records its error. The error itself does not survive its way through the
/// client library.
pub(super) struct ErrorTap {
    inner: Body,
    error: Arc<OnceLock<RequestBodyError>>,
}

impl ErrorTap {
    /// Returns the body to send and the place of its error, which is empty until the body fails.
    pub(super) fn over(inner: Body) -> (Body, Arc<OnceLock<RequestBodyError>>) {
        let error = Arc::new(OnceLock::new());
        (Body::new(Self { inner, error: error.clone() }), error)
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
            let _ = self.error.set(RequestBodyError::of(error));
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

/// Body of a response to HEAD without `content-length`. It is empty but has no known length: the
/// server would send a known one as the length of the body that GET returns.
pub(super) struct UnknownLengthBody;

impl http_body::Body for UnknownLengthBody {
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
    async fn prefix_and_rest_form_one_body() {
        let body = with_prefix(Bytes::from("ab"), Body::from("cde"));
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcde");
    }

    #[tokio::test]
    async fn prefix_without_rest_keeps_its_length() {
        let body = with_prefix(Bytes::from("ab"), Body::empty());
        assert_eq!(body.size_hint().exact(), Some(2));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ab");
        assert!(with_prefix(Bytes::new(), Body::empty()).is_end_stream());
    }
}
