//! Panics of a request handler.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

use prometheus_client::metrics::counter::Counter;

/// A future panicked.
#[derive(Debug)]
pub struct Panicked;

/// Completes a future. A panic is logged, without its message, which may contain a token, and
/// counted in `panics`.
pub async fn catch_panic<F: Future>(
    panics: &Counter,
    mut future: Pin<&mut F>,
) -> Result<F::Output, Panicked> {
    poll_fn(|cx| {
        // The future is not polled again after a panic, so its inconsistent state is never observed.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(_panic) => {
                tracing::error!("a request handler panicked");
                panics.inc();
                Poll::Ready(Err(Panicked))
            }
        }
    })
    .await
}
