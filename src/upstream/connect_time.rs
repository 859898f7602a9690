//! When a call's own connection came up. Such a call reaches the upstream that much later than it was sent, which the
//! pace has to know: the next one, on the warm connection, would arrive too close behind it.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower::{Layer, Service};

tokio::task_local! {
    static CONNECTED_AT: Cell<Option<Instant>>;
}

/// Runs a call; with its result comes how long it took until its own connection was up, zero on a pooled one.
pub(super) async fn timed<F: Future>(call: F) -> (F::Output, Duration) {
    let start = Instant::now();
    let timed = async {
        let output = call.await;
        let connected_at = CONNECTED_AT.with(Cell::get);
        (output, connected_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(start)))
    };
    CONNECTED_AT.scope(Cell::new(None), timed).await
}

/// Notes for [`timed`] when a connector is done. A connection that is made for a later call is nobody's.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoteConnected;

impl<S> Layer<S> for NoteConnected {
    type Service = Noting<S>;

    fn layer(&self, connector: S) -> Noting<S> {
        Noting(connector)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Noting<S>(S);

impl<S, R> Service<R> for Noting<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, target: R) -> Self::Future {
        let connecting = self.0.call(target);
        Box::pin(async move {
            let connection = connecting.await;
            // An error says that the call it was begun for has found another connection.
            let _ = CONNECTED_AT.try_with(|at| at.set(Some(Instant::now())));
            connection
        })
    }
}
