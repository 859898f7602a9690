//! Client connection: serves its requests with hyper, and closes it without losing unread
//! responses.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{HeaderValue, Request, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use prometheus_client::metrics::counter::Counter;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::activity::Activity;
use super::body::{GuardedBody, RequestBody};
use super::io::ClientIo;
use super::panics::{Panicked, catch_panic};
use super::{Handler, ServerLimits};
use crate::api_error::ApiError;
use crate::lifecycle::Shutdown;

/// Idle time before the first TCP keep-alive probe, and time between two probes.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Time for which a connection is still read after its write side was closed (RFC 9112 9.6). Unread
/// bytes would make the kernel send a reset, which can discard a response that the client has not
/// read yet.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// State that all connections of a server share.
pub(super) struct ServerContext<H> {
    handler: H,
    http: http1::Builder,
    limits: ServerLimits,
    panics: Counter,
    shutdown: Shutdown,
    /// Whether the server drains. Every response reads this flag; `shutdown` would take a lock that
    /// all connections share.
    is_draining: AtomicBool,
}

impl<H> ServerContext<H> {
    pub(super) fn new(handler: H, limits: ServerLimits, panics: Counter, shutdown: Shutdown) -> Self {
        // Only HTTP/1: the detection of HTTP/2 in hyper-util waits for the preface without a time
        // limit.
        let mut http = http1::Builder::new();
        // `Connection::head_timeout` replaces it: hyper creates a timer for each head.
        http.header_read_timeout(None)
            .max_header_size(limits.max_head_bytes)
            .max_buf_size(limits.max_head_bytes)
            // If the client closes the connection, its handler is dropped, and with it the upstream
            // call.
            .half_close(false)
            // Passed-through requests keep the letter case of their header names.
            .preserve_header_case(true);
        // hyper stores its default of 100 headers on the stack, any other number on the heap.
        if limits.max_headers != 100 {
            http.max_headers(limits.max_headers);
        }
        Self { handler, http, limits, panics, shutdown, is_draining: AtomicBool::new(false) }
    }

    /// Makes every later response close its connection.
    pub(super) fn set_draining(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }
}

/// State of a connection.
struct Connection<H: Handler> {
    context: Arc<ServerContext<H>>,
    handler_state: H::ConnectionState,
    activity: Arc<Activity>,
    /// Whether the client uses HTTP/1.0, where the end of the connection ends a response.
    ends_by_close: AtomicBool,
}

impl<H: Handler> Connection<H> {
    fn new(context: Arc<ServerContext<H>>, activity: Arc<Activity>) -> Self {
        Self {
            context,
            handler_state: H::ConnectionState::default(),
            activity,
            ends_by_close: AtomicBool::new(false),
        }
    }

    /// Completes when the connection has waited for a head for [`ServerLimits::header_timeout`].
    async fn head_timeout(&self) {
        let timeout = self.context.limits.header_timeout;
        let mut deadline = self.activity.idle_since() + timeout;
        loop {
            tokio::time::sleep_until(deadline).await;
            let now = Instant::now();
            deadline = if self.activity.is_idle() { self.activity.idle_since() } else { now } + timeout;
            if deadline <= now {
                return;
            }
        }
    }
}

/// Event that ends a connection from outside.
enum StopEvent {
    /// The server drains or aborts.
    Shutdown,
    HeadTimeout,
    /// The connection makes room for another.
    Evicted,
    ClientLeft,
}

/// Active request, counted while this value exists.
struct ActiveRequest<H: Handler>(Arc<Connection<H>>);

impl<H: Handler> ActiveRequest<H> {
    fn new(connection: &Arc<Connection<H>>) -> Self {
        connection.activity.start_request();
        Self(Arc::clone(connection))
    }
}

impl<H: Handler> Drop for ActiveRequest<H> {
    fn drop(&mut self) {
        self.0.activity.end_request();
    }
}

/// Serves a connection until it is closed.
pub(super) async fn run<H: Handler>(
    stream: TcpStream,
    activity: Arc<Activity>,
    context: Arc<ServerContext<H>>,
) {
    // These calls fail if the client has left, which the first read reports.
    let _ = stream.set_nodelay(true);
    // Closes the connection of a client that has disappeared, also while nothing is sent to it.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let (io, client) = ClientIo::new(stream, Arc::clone(&activity), context.limits.write_idle_timeout);
    let connection = Arc::new(Connection::new(Arc::clone(&context), Arc::clone(&activity)));
    let requests = service_fn(|request| respond(ActiveRequest::new(&connection), request));
    let mut http = context.http.serve_connection(io, requests);
    let result = 'served: {
        let stop_event = async {
            tokio::select! {
                () = context.shutdown.draining() => StopEvent::Shutdown,
                () = connection.head_timeout() => StopEvent::HeadTimeout,
                () = activity.evicted() => StopEvent::Evicted,
                () = client.left() => StopEvent::ClientLeft,
            }
        };
        // `select!` polls all its branches whenever this task is woken, several times per request.
        // Each poll of `draining` takes a lock that all connections share. `FuturesUnordered` polls
        // its future only after the future itself was woken, so requests do not take the lock. It
        // saves 2 % of a hit's instructions (docs/decisions/006-hit-path.md).
        let mut stop_events: FuturesUnordered<_> = [stop_event].into_iter().collect();
        tokio::select! {
            biased;
            result = &mut http => break 'served result,
            event = stop_events.next() => match event {
                Some(StopEvent::HeadTimeout | StopEvent::ClientLeft) => break 'served Ok(()),
                // No response is on its way, and the slot is needed now.
                Some(StopEvent::Evicted) => return,
                Some(StopEvent::Shutdown) | None => {}
            },
        }
        let (mut idle_check, mut left) = (pin!(drain_idle(&context)), pin!(client.left()));
        let mut is_shutdown_requested = false;
        loop {
            tokio::select! {
                biased;
                () = context.shutdown.aborted() => return,
                result = &mut http => break result,
                () = &mut left => break Ok(()),
                () = &mut idle_check => {
                    if is_shutdown_requested && connection.activity.is_idle() {
                        return;
                    }
                    is_shutdown_requested = true;
                    std::pin::Pin::new(&mut http).graceful_shutdown();
                    idle_check.set(drain_idle(&context));
                }
            }
        }
    };
    drop(client);
    let (stream, has_timed_out) = http.into_parts().io.into_stream();
    match result {
        // A reset frees the bytes that the kernel still holds, and marks a response that ends with
        // its connection as truncated.
        Err(_) if has_timed_out => {
            tracing::debug!("a client stopped reading its response");
            let _ = stream.set_zero_linger();
        }
        // The response body failed. Chunks or a length show this to the client. Without them, only
        // a reset tells a truncated response from a complete one.
        Err(error) if error.is_user() => {
            if connection.ends_by_close.load(Ordering::Relaxed) {
                let _ = stream.set_zero_linger();
            }
        }
        Ok(()) | Err(_) => {
            let is_draining = context.is_draining.load(Ordering::Relaxed);
            let limit = if is_draining {
                context.limits.drain_idle_timeout.min(CLOSE_TIMEOUT)
            } else {
                CLOSE_TIMEOUT
            };
            tokio::select! {
                () = context.shutdown.aborted() => {}
                () = activity.evicted() => {}
                _ = tokio::time::timeout(limit, close(stream)) => {}
            }
        }
    }
}

/// Completes [`ServerLimits::drain_idle_timeout`] after the start of the drain, or from now if it
/// has started. In this time a request that is in the kernel or on its way is still served, and its
/// connection is then closed.
async fn drain_idle<H>(context: &ServerContext<H>) {
    context.shutdown.draining().await;
    tokio::time::sleep(context.limits.drain_idle_timeout).await;
}

/// Closes the write side, and reads and discards until the client closes its side.
async fn close(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut discarded = [0; 4096];
    while stream.read(&mut discarded).await.is_ok_and(|read| read > 0) {}
}

/// Responds to a request, also if its handler panics.
async fn respond<H: Handler>(
    active: ActiveRequest<H>,
    request: Request<Incoming>,
) -> Result<Response<GuardedBody<H::Body, ActiveRequest<H>>>, Infallible> {
    let Connection { context, handler_state, activity, ends_by_close, .. } = &*active.0;
    ends_by_close.store(request.version() < Version::HTTP_11, Ordering::Relaxed);
    let idle_timeout = context.limits.body_idle_timeout;
    let request = request.map(|body| RequestBody::new(body, idle_timeout, Arc::clone(activity)));
    let caught = {
        let responding = pin!(context.handler.respond(handler_state, request));
        catch_panic(&context.panics, responding).await
    };
    let mut response = caught.unwrap_or_else(|Panicked| {
        let error = ApiError::internal();
        error.close().into_response().map(H::Body::from)
    });
    if context.is_draining.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| GuardedBody::new(body, active)))
}
