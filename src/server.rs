//! HTTP/1.1 server: accept loop, connection limits, request and response bodies.
//!
//! `app` runs one server for the client port and one for the admin port. A server knows no routes:
//! its [`Handler`] validates requests and responds to them.

mod activity;
mod body;
mod connection;
mod io;
mod listener;
mod open_connections;
mod panics;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::Request;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

pub use body::{RequestBody, RequestBodyError};
pub use listener::{inherited, listen, raise_descriptor_limit};
pub use panics::{Panicked, catch_panic};

use crate::lifecycle::Shutdown;
use activity::Activity;
use connection::ServerContext;
use listener::{SpareDescriptor, descriptor_limit, is_out_of_descriptors, max_connections};
use open_connections::OpenConnections;

/// Time limit for a head on the admin port. Longer than the time between two requests of the
/// dashboard, 5 s.
const ADMIN_HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Limits of a server's connections.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Time limit for a complete head. Counts from the end of the previous response, so it also
    /// closes idle connections.
    pub header_timeout: Duration,
    /// Largest request line and headers together, in bytes. At least 8192.
    pub max_head_bytes: usize,
    /// Largest number of headers in a request.
    pub max_headers: usize,
    /// Longest time without a byte of a request body while the handler waits for one.
    pub body_idle_timeout: Duration,
    /// Time in which a client must read at least 4 KiB of a response that is ready to send.
    pub write_idle_timeout: Duration,
    /// Largest number of connections. A further one closes the connection that has been idle for
    /// the longest time. If none is idle, it waits.
    pub max_connections: usize,
    /// Time after which a connection without a request is closed during a drain.
    pub drain_idle_timeout: Duration,
    /// Whether the server keeps a descriptor, so that it can accept a connection when all others
    /// are in use.
    pub keeps_descriptor: bool,
}

impl Default for ServerLimits {
    /// Returns the documented limits. The number of connections depends on the process's limit of
    /// open files.
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(75),
            max_head_bytes: 64 * 1024,
            max_headers: 100,
            body_idle_timeout: Duration::from_secs(30),
            write_idle_timeout: Duration::from_secs(60),
            max_connections: max_connections(descriptor_limit()),
            drain_idle_timeout: Duration::from_secs(1),
            keeps_descriptor: false,
        }
    }
}

impl ServerLimits {
    /// Returns the limits of the admin port: 16 to 64 connections, and a short time for a head.
    pub fn for_admin_port() -> Self {
        let limits = Self::default();
        let max_connections = (limits.max_connections / 8).clamp(16, 64);
        Self { header_timeout: ADMIN_HEADER_TIMEOUT, max_connections, keeps_descriptor: true, ..limits }
    }
}

/// Counters of a server. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ServerCounters {
    /// Number of panics in the handler.
    pub panics: Counter,
    /// Number of open connections.
    pub connections: Gauge,
}

/// Response body of a [`Handler`]. The server's own responses are converted from [`Body`].
pub trait HandlerBody:
    http_body::Body<Data: Send, Error = axum::Error> + From<Body> + Send + Unpin + 'static
{
}

impl<B> HandlerBody for B where
    B: http_body::Body<Data: Send, Error = axum::Error> + From<Body> + Send + Unpin + 'static
{
}

/// Handler of a server's requests.
pub trait Handler: Send + Sync + 'static {
    /// Body of a response.
    type Body: HandlerBody;
    /// State that the requests of a connection share.
    type ConnectionState: Default + Send + Sync;

    /// Responds to a request. The future is dropped if the client closes the connection. If it
    /// panics, the panic is counted and the client receives a 500. A handler can catch the panic
    /// itself with [`catch_panic`].
    fn respond(
        &self,
        state: &Self::ConnectionState,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

impl Handler for Router {
    type Body = Body;
    type ConnectionState = ();

    async fn respond(&self, (): &(), request: Request<RequestBody>) -> Response {
        self.clone().oneshot(request.map(Body::new)).await.unwrap_or_else(|never| match never {})
    }
}

/// Serves `handler` on `listener` until `shutdown` starts. Returns when every connection is closed.
///
/// A drain accepts the connections in the backlog, closes the listener and lets every connection
/// finish its request. Connections without a request are closed after
/// [`ServerLimits::drain_idle_timeout`]. An abort closes all connections at once, as does dropping
/// this future.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    handler: H,
    limits: ServerLimits,
    counters: ServerCounters,
    shutdown: Shutdown,
) {
    let shutdown = shutdown.child();
    let _abort_with_this_future = shutdown.abort_on_drop();
    let open_connections = OpenConnections::new(limits.max_connections, counters.connections);
    let connections = TaskTracker::new();
    let spare = limits.keeps_descriptor.then(|| Arc::new(SpareDescriptor::new()));
    let context = Arc::new(ServerContext::new(handler, limits, counters.panics, shutdown.clone()));
    let open = |stream: TcpStream, slot: OwnedSemaphorePermit| {
        let activity = Arc::new(Activity::new());
        let is_open = open_connections.open(Arc::clone(&activity), slot);
        let connection = connection::run(stream, activity, Arc::clone(&context));
        let spare = spare.clone();
        connections.spawn(async move {
            connection.await;
            if let Some(spare) = spare {
                spare.restore();
            }
            drop(is_open);
        });
    };

    let mut failures = 0;
    // Connection that was accepted but has no slot yet.
    let mut without_slot = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.aborted() => break,
            () = shutdown.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                failures = 0;
                tokio::select! {
                    biased;
                    slot = open_connections.slot() => open(stream, slot),
                    () = shutdown.draining() => {
                        without_slot = Some(stream);
                        break;
                    }
                }
            }
            // The next attempt uses the descriptor that was released.
            Err(error)
                if is_out_of_descriptors(&error) && spare.as_ref().is_some_and(|spare| spare.release()) => {}
            Err(error) => {
                if is_out_of_descriptors(&error) {
                    open_connections.evict_longest_idle();
                }
                failures += 1;
                let pause = accept_retry_delay(&error, failures);
                if pause > Duration::ZERO {
                    tracing::warn!(kind = %error.kind(), failures, "cannot accept a connection, trying again");
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shutdown.draining() => {}
                    () = shutdown.aborted() => {}
                }
            }
        }
    }

    context.set_draining();
    if !shutdown.is_aborted() {
        accept_backlog(listener, without_slot, &open_connections, open);
    }
    connections.close();
    connections.wait().await;
}

/// Returns the time to wait after `accept` has failed `failures` times in a row.
///
/// A connection that was closed in the backlog (`ECONNABORTED` and similar, see accept(2)) does not
/// delay the next. Any other error is most likely a lack of descriptors or memory, which only time
/// resolves.
fn accept_retry_delay(error: &std::io::Error, failures: u32) -> Duration {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    match error.kind() {
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted => Duration::ZERO,
        _ => Duration::from_millis(50 * u64::from(failures.min(20))),
    }
}

/// Opens the connection that has no slot yet, accepts the connections in the backlog while slots are
/// free, and closes the listener. The kernel has already established these connections, so closing
/// first would reset requests that clients have sent.
fn accept_backlog(
    listener: TcpListener,
    mut without_slot: Option<TcpStream>,
    open_connections: &OpenConnections,
    open: impl Fn(TcpStream, OwnedSemaphorePermit),
) {
    // A direct system call, because tokio's view of the listener's readiness may be outdated.
    let Ok(listener) = listener.into_std() else { return };
    while let Some(slot) = open_connections.try_slot() {
        if let Some(stream) = without_slot.take() {
            open(stream, slot);
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { return };
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            open(stream, slot);
        }
    }
}
