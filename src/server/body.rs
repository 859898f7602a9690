//! Request bodies with an idle timeout, and response bodies that keep their connection active until
//! the last byte.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::activity::Activity;
use crate::api_error::ApiError;

/// Reason why a request body could not be read. Safe to show to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestBodyError {
    /// No byte arrived for
    /// [`ServerLimits::body_idle_timeout`](super::ServerLimits::body_idle_timeout).
    #[error("the request body timed out")]
    Idle,
    /// The framing is malformed, or the client closed the connection.
    #[error("the request body is malformed or incomplete")]
    Broken,
}

impl RequestBodyError {
    /// Returns the reason behind an error of a request body, searching the chain of causes.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(reason) = error.downcast_ref::<Self>() {
                return *reason;
            }
            cause = error.source();
        }
        Self::Broken
    }
}

/// The message begins with the reason, for a text in front of it. The response closes the connection:
/// the start of the next request on it is unknown.
impl From<RequestBodyError> for ApiError {
    fn from(error: RequestBodyError) -> Self {
        match error {
            RequestBodyError::Idle => Self::refused(
                StatusCode::REQUEST_TIMEOUT,
                "the request body stopped arriving. Send all of it without a long pause.",
            )
            .close(),
            RequestBodyError::Broken => {
                Self::bad_request("the request body is malformed or incomplete. Send all of it.").close()
            }
        }
    }
}

/// Request body with an idle timeout. The timeout runs only while the handler waits for the next
/// byte: a slow reader, such as the upstream, is not the client's fault.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    idle_timeout: Duration,
    /// Created by the first wait, which also records the upload in `activity`.
    idle_timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
    has_failed: bool,
    activity: Arc<Activity>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, idle_timeout: Duration, activity: Arc<Activity>) -> Self {
        Self { inner, idle_timeout, idle_timer: None, is_waiting: false, has_failed: false, activity }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.idle_timer.is_some() {
            self.activity.record_end();
            self.activity.set_uploading(false);
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = &mut *self;
        if this.has_failed {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.is_waiting = false;
            return Poll::Ready(frame.map(|frame| {
                frame.map_err(|error| {
                    this.has_failed = true;
                    tracing::debug!(%error, "a request body failed");
                    RequestBodyError::Broken
                })
            }));
        }
        let idle_timer = this.idle_timer.get_or_insert_with(|| {
            this.activity.set_uploading(true);
            Box::pin(tokio::time::sleep(this.idle_timeout))
        });
        if !this.is_waiting {
            this.is_waiting = true;
            idle_timer.as_mut().reset(Instant::now() + this.idle_timeout);
        }
        match idle_timer.as_mut().poll(cx) {
            Poll::Ready(()) => {
                this.has_failed = true;
                Poll::Ready(Some(Err(RequestBodyError::Idle)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Response body with a guard that is dropped with it.
pub(super) struct GuardedBody<B, G> {
    inner: B,
    /// Error to return by the next poll.
    error: Option<axum::Error>,
    _guard: G,
}

impl<B, G> GuardedBody<B, G> {
    pub(super) fn new(inner: B, guard: G) -> Self {
        Self { inner, error: None, _guard: guard }
    }
}

impl<B, G> http_body::Body for GuardedBody<B, G>
where
    B: http_body::Body<Error = axum::Error> + Unpin,
    G: Unpin,
{
    type Data = B::Data;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, axum::Error>>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            // hyper discards unwritten bytes when a body fails. Returning `Pending` once lets it
            // write them, so the client receives everything before the error.
            Poll::Ready(Some(Err(error))) => {
                self.error = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            poll => poll,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
