//! The accept loop of a listener and the limits of its connections: how many, how slow, how large their heads.
//!
//! `app` runs one for the client port and one for the admin port. This room speaks HTTP/1.1 and knows no routes;
//! what it cannot know from the outside (is this path sound, who may read it) is left to the handler it is given.

mod body;
mod connection;
mod io;
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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

pub use body::{RequestBody, RequestBodyError};

use crate::lifecycle::Shutdown;

/// Descriptors left to everything that is not a client's connection: the store, the logs, the admin port, upstream
/// connections that are just being made.
const SPARE_DESCRIPTORS: u64 = 40;

/// What a client may cost before it has shown a valid request.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// From the moment a head is awaited until it is complete: slow heads and idle keep-alive alike.
    pub header_timeout: Duration,
    /// Request line and fields together, in bytes; at least 8192.
    pub max_head_bytes: usize,
    /// Fields of one request.
    pub max_headers: usize,
    /// Longest time without a byte of a request body that somebody waits for.
    pub body_idle_timeout: Duration,
    /// Longest time in which a client takes nothing of an answer that is there for it.
    pub write_idle_timeout: Duration,
    /// Connections at once; further ones wait in the listener's backlog.
    pub max_connections: usize,
    /// Once fewer places than this are free, a connection is closed after its answer, so that others get their turn.
    pub keep_alive_min_free: usize,
    /// While draining: how long a connection without a request may stay.
    pub drain_idle_timeout: Duration,
}

impl Default for ServerLimits {
    /// The documented limits, with connections by the process's descriptor limit.
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(75),
            max_head_bytes: 64 * 1024,
            max_headers: 100,
            body_idle_timeout: Duration::from_secs(30),
            write_idle_timeout: Duration::from_secs(60),
            max_connections: connections_for(descriptor_limit()),
            keep_alive_min_free: 0,
            drain_idle_timeout: Duration::from_secs(1),
        }
    }
}

impl ServerLimits {
    /// For a port that few ask, and that must answer them however many keep their connections: 16 to 64 places by the
    /// descriptor limit, of which half are kept at most.
    pub fn for_admin_port() -> Self {
        let limits = Self::default();
        let places = (limits.max_connections / 8).clamp(16, 64);
        Self { max_connections: places, keep_alive_min_free: places / 2, ..limits }
    }
}

/// What a listener counts. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct ServerCounters {
    /// Panics of the handler.
    pub panics: Counter,
    /// Connections that are open.
    pub connections: Gauge,
}

/// An open connection, until dropped.
struct Open(Gauge);

impl Open {
    fn new(connections: &Gauge) -> Self {
        connections.inc();
        Self(connections.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The process's soft limit of open files; the usual 1,024 where it cannot be read.
fn descriptor_limit() -> u64 {
    rlimit::Resource::NOFILE.get_soft().unwrap_or(1024)
}

/// The smaller of 4,096 and the limit less [`SPARE_DESCRIPTORS`], and never so few that nobody is served.
fn connections_for(descriptors: u64) -> usize {
    let connections = descriptors.saturating_sub(SPARE_DESCRIPTORS).clamp(8, 4096);
    usize::try_from(connections).expect("4,096 fits")
}

/// An answer's body as the edge takes it; its own few answers are made from any [`Body`].
pub trait HandlerBody:
    http_body::Body<Data: Send, Error = axum::Error> + From<Body> + Send + Unpin + 'static
{
}

impl<B> HandlerBody for B where
    B: http_body::Body<Data: Send, Error = axum::Error> + From<Body> + Send + Unpin + 'static
{
}

/// What answers the requests of a listener.
pub trait Handler: Send + Sync + 'static {
    /// The body of its answers.
    type Body: HandlerBody;
    /// What it keeps from one request of a connection to the next.
    type ConnectionState: Default + Send + Sync;

    /// Answers a request. The future is dropped when its client leaves; a panic of it is answered with 500 and counted.
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
/// Draining accepts the connections that wait in the backlog, closes the listener, and lets every connection finish
/// its request. Connections without a request are closed after [`ServerLimits::drain_idle_timeout`]. An abort closes all
/// connections at once, as does dropping this future.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    handler: H,
    limits: ServerLimits,
    counts: ServerCounters,
    shutdown: Shutdown,
) {
    let shutdown = shutdown.child();
    let _abort_with_this_future = shutdown.abort_on_drop();
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    let shared =
        connection::Shared::new(handler, limits, Arc::clone(&slots), counts.panics, shutdown.clone());
    let shared = Arc::new(shared);
    let open = |stream: TcpStream, slot: OwnedSemaphorePermit| {
        let connection = connection::run(stream, Arc::clone(&shared));
        let is_open = Open::new(&counts.connections);
        connections.spawn(async move {
            connection.await;
            drop((slot, is_open));
        });
    };

    let mut failures = 0;
    loop {
        let slot = tokio::select! {
            biased;
            () = shutdown.aborted() => break,
            () = shutdown.draining() => break,
            slot = slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            biased;
            () = shutdown.aborted() => break,
            () = shutdown.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                failures = 0;
                open(stream, slot);
            }
            Err(error) => {
                drop(slot);
                failures += 1;
                let pause = accept_pause(&error, failures);
                if pause > Duration::ZERO {
                    tracing::warn!(kind = %error.kind(), failures, "cannot accept connections, trying again");
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shutdown.draining() => {}
                    () = shutdown.aborted() => {}
                }
            }
        }
    }

    shared.set_draining();
    if !shutdown.is_aborted() {
        accept_backlog(listener, &slots, open);
    }
    connections.close();
    connections.wait().await;
}

/// How long to wait after `accept` failed for the `failures`th time in a row. A connection that broke off while it
/// waited (accept(2): `ECONNABORTED` and the like) says nothing about the next; anything else is most likely a lack
/// of descriptors or memory, which only time mends.
fn accept_pause(error: &std::io::Error, failures: u32) -> Duration {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    match error.kind() {
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted => Duration::ZERO,
        _ => Duration::from_millis(50 * u64::from(failures.min(20))),
    }
}

/// Takes what already waits, as far as there are slots, and closes the listener. Their connections were established
/// by the kernel on our behalf, so closing first would refuse requests that clients believe to be under way.
fn accept_backlog(
    listener: TcpListener,
    slots: &Arc<Semaphore>,
    open: impl Fn(TcpStream, OwnedSemaphorePermit),
) {
    // Asked of the kernel itself: tokio's view of the listener's readiness may lag behind.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok(slot) = slots.clone().try_acquire_owned() {
        let Ok((stream, _)) = listener.accept() else { return };
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            open(stream, slot);
        }
    }
}
