//! Bodies as they cross the edge: a request's fails when its client falls silent, an answer's holds its connection
//! busy until its last byte.

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

use super::io::Activity;
use crate::api_error::ApiError;

/// Why a request's body could not be read. Its text is safe to show: no library's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestBodyError {
    /// No byte for [`ServerLimits::body_idle_timeout`](super::ServerLimits::body_idle_timeout).
    #[error("the request's body stopped coming")]
    Idle,
    /// A broken chunk, or the client left.
    #[error("the request's body is broken")]
    Broken,
}

impl RequestBodyError {
    /// The reason behind an error of a request's body, found through the wrappers that other layers put around it.
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

/// A client that did not send the body it announced; what follows on its connection cannot be told from it.
impl From<RequestBodyError> for ApiError {
    fn from(error: RequestBodyError) -> Self {
        match error {
            RequestBodyError::Idle => {
                Self::refused(StatusCode::REQUEST_TIMEOUT, "The request's body stopped coming.").close()
            }
            RequestBodyError::Broken => Self::bad_request("The request's body is broken.").close(),
        }
    }
}

/// A request's body. Time counts only while somebody waits for the next byte: a reader that takes its time (the
/// upstream, most likely) is not the client's fault.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    limit: Duration,
    /// Made when somebody waits for the first time; from then on `activity` knows of an upload.
    silence: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    failed: bool,
    activity: Arc<Activity>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, limit: Duration, activity: Arc<Activity>) -> Self {
        Self { inner, limit, silence: None, waiting: false, failed: false, activity }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.silence.is_some() {
            self.activity.note();
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
        if this.failed {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.waiting = false;
            return Poll::Ready(frame.map(|frame| {
                frame.map_err(|error| {
                    this.failed = true;
                    tracing::debug!(%error, "request body broke");
                    RequestBodyError::Broken
                })
            }));
        }
        let silence = this.silence.get_or_insert_with(|| {
            this.activity.set_uploading(true);
            Box::pin(tokio::time::sleep(this.limit))
        });
        if !this.waiting {
            this.waiting = true;
            silence.as_mut().reset(Instant::now() + this.limit);
        }
        match silence.as_mut().poll(cx) {
            Poll::Ready(()) => {
                this.failed = true;
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

/// An answer's body together with something to drop when it ends.
pub(super) struct HeldBody<B, G> {
    inner: B,
    error: Option<axum::Error>,
    _held: G,
}

impl<B, G> HeldBody<B, G> {
    pub(super) fn new(inner: B, held: G) -> Self {
        Self { inner, error: None, _held: held }
    }
}

impl<B, G> http_body::Body for HeldBody<B, G>
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
            // hyper throws away what it has not written yet when a body fails. Pausing once lets it write: the
            // client gets all that came before the cut.
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
