//! Time that a call spends on its own new connection.
//!
//! Such a call arrives upstream later than it was sent. The rate limiter must know this delay: the
//! next call, on the open connection, would otherwise arrive too early.

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

/// Awaits a call. Also returns the time until its own connection was open, zero on a pooled
/// connection.
pub(super) async fn measure<F: Future>(call: F) -> (F::Output, Duration) {
    let start = Instant::now();
    let measured = async {
        let output = call.await;
        let connected_at = CONNECTED_AT.with(Cell::get);
        (output, connected_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(start)))
    };
    CONNECTED_AT.scope(Cell::new(None), measured).await
}

/// Connector layer that records for [`measure`] when a connection is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectTimeLayer;

impl<S> Layer<S> for ConnectTimeLayer {
    type Service = ConnectTimeService<S>;

    fn layer(&self, connector: S) -> ConnectTimeService<S> {
        ConnectTimeService(connector)
    }
}

/// Connector of [`ConnectTimeLayer`].
#[derive(Clone, Debug)]
pub(super) struct ConnectTimeService<S>(S);

impl<S, R> Service<R> for ConnectTimeService<S>
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
            // Fails outside a call: the connection was started for a call that then used another
            // one.
            let _ = CONNECTED_AT.try_with(|at| at.set(Some(Instant::now())));
            connection
        })
    }
}
