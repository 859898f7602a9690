//! One client's connection: from its socket to hyper's HTTP/1.1 server and to its end, whichever way it comes.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
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
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::body::{HeldBody, RequestBody};
use super::io::{Activity, ClientIo};
use super::{Handler, ServerLimits};
use crate::api_error::ApiError;
use crate::lifecycle::Shutdown;

/// Silence after which a client's machine is asked whether it is still there, and between two such questions.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long a closed connection is still read from, so that an answer given before the whole request was read
/// reaches its client: the kernel answers unread bytes with a reset, which would overtake it (RFC 9112 9.6).
const LINGER: Duration = Duration::from_secs(2);

/// What all connections of a listener share.
pub(super) struct Shared<H> {
    handler: H,
    http: http1::Builder,
    limits: ServerLimits,
    /// Places for connections.
    slots: Arc<Semaphore>,
    panics: Counter,
    shutdown: Shutdown,
    /// Whether the listener drains. Every response reads this; asking `shutdown` takes a lock that all connections
    /// share.
    is_draining: AtomicBool,
}

impl<H> Shared<H> {
    pub(super) fn new(
        handler: H,
        limits: ServerLimits,
        slots: Arc<Semaphore>,
        panics: Counter,
        shutdown: Shutdown,
    ) -> Self {
        // HTTP/1 alone: hyper-util's detection of HTTP/2 waits for the whole preface without a limit.
        let mut http = http1::Builder::new();
        // `Connection::head_overdue` in its place: hyper makes a sleep for each head.
        http.header_read_timeout(None)
            .max_header_size(limits.max_head_bytes)
            .max_buf_size(limits.max_head_bytes)
            // A client that closes has left: its handler, and with it the upstream call, is dropped.
            .half_close(false)
            // What passes through keeps the letter case of its field names.
            .preserve_header_case(true);
        // hyper keeps its default of 100 on the stack, any other number on the heap.
        if limits.max_headers != 100 {
            http.max_headers(limits.max_headers);
        }
        Self { handler, http, limits, slots, panics, shutdown, is_draining: AtomicBool::new(false) }
    }

    /// Answers from now on close their connections.
    pub(super) fn set_draining(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }
}

/// A connection, as far as its requests, the drain and its end must know.
struct Connection<H: Handler> {
    shared: Arc<Shared<H>>,
    kept: H::ConnectionState,
    /// Requests whose answer's last byte was not yet handed to hyper.
    in_hand: AtomicUsize,
    activity: Arc<Activity>,
    /// Whether the client speaks HTTP/1.0 and takes the end of the connection for the end of an answer.
    ends_by_close: AtomicBool,
}

impl<H: Handler> Connection<H> {
    fn new(shared: Arc<Shared<H>>, activity: Arc<Activity>) -> Self {
        Self {
            shared,
            kept: H::ConnectionState::default(),
            in_hand: AtomicUsize::new(0),
            activity,
            ends_by_close: AtomicBool::new(false),
        }
    }

    fn is_idle(&self) -> bool {
        self.in_hand.load(Ordering::Relaxed) == 0 && self.activity.is_idle()
    }

    /// Ends when a head has been awaited for [`ServerLimits::header_timeout`].
    async fn head_overdue(&self) {
        let limit = self.shared.limits.header_timeout;
        let mut look_at = self.activity.idle_since() + limit;
        loop {
            tokio::time::sleep_until(look_at).await;
            let now = Instant::now();
            look_at = if self.is_idle() { self.activity.idle_since() } else { now } + limit;
            if look_at <= now {
                return;
            }
        }
    }
}

/// Why a connection is ended from outside.
enum Alarm {
    /// The listener drains, or cuts.
    Stop,
    HeadOverdue,
}

/// A request in hand, until dropped.
struct InHand<H: Handler>(Arc<Connection<H>>);

impl<H: Handler> InHand<H> {
    fn new(connection: &Arc<Connection<H>>) -> Self {
        connection.in_hand.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connection))
    }
}

impl<H: Handler> Drop for InHand<H> {
    fn drop(&mut self) {
        self.0.activity.note();
        self.0.in_hand.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one connection to its end.
pub(super) async fn run<H: Handler>(stream: TcpStream, shared: Arc<Shared<H>>) {
    // A failure here means that the client has left, which the first read finds out.
    let _ = stream.set_nodelay(true);
    // A client that vanished without a word frees its place also while nothing is written to it.
    let _ = SockRef::from(&stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE));
    let activity = Arc::new(Activity::new());
    let io = ClientIo::new(stream, Arc::clone(&activity), shared.limits.write_idle_timeout);
    let state = Arc::new(Connection::new(Arc::clone(&shared), activity));
    let requests = service_fn(|request| answer(InHand::new(&state), request));
    let mut connection = shared.http.serve_connection(io, requests);
    let ended = 'ended: {
        let alarm = async {
            tokio::select! {
                () = shared.shutdown.draining() => Alarm::Stop,
                () = state.head_overdue() => Alarm::HeadOverdue,
            }
        };
        // Polling a token takes a lock that all connections share. In here it is polled only when it was woken.
        let mut alarms: FuturesUnordered<_> = [alarm].into_iter().collect();
        tokio::select! {
            biased;
            ended = &mut connection => break 'ended ended,
            alarm = alarms.next() => {
                if matches!(alarm, Some(Alarm::HeadOverdue)) {
                    break 'ended Ok(());
                }
            }
        }
        let mut draining = pin!(drain(&shared));
        let mut asked = false;
        loop {
            tokio::select! {
                biased;
                () = shared.shutdown.aborted() => return,
                ended = &mut connection => break ended,
                () = &mut draining => {
                    if asked && state.is_idle() {
                        return;
                    }
                    asked = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                    draining.set(drain(&shared));
                }
            }
        }
    };
    let (stream, given_up) = connection.into_parts().io.into_stream();
    match ended {
        // A reset: what the kernel still holds is freed, and a cut answer that ends with its connection shows as one.
        Err(_) if given_up => {
            tracing::debug!("a client took nothing of its answer for too long");
            let _ = stream.set_zero_linger();
        }
        Err(error) if error.is_user() => {
            // An answer broke off. Chunks or a length show that to the client; where neither was sent, only a reset
            // tells a cut from an end.
            if state.ends_by_close.load(Ordering::Relaxed) {
                let _ = stream.set_zero_linger();
            }
        }
        Ok(()) | Err(_) => {
            let is_draining = shared.is_draining.load(Ordering::Relaxed);
            let limit = if is_draining { shared.limits.drain_idle_timeout.min(LINGER) } else { LINGER };
            tokio::select! {
                () = shared.shutdown.aborted() => {}
                _ = tokio::time::timeout(limit, linger(stream)) => {}
            }
        }
    }
}

/// Ends [`ServerLimits::drain_idle_timeout`] after the drain began; again and again, when asked again. In that time a request
/// that is still in the kernel, or on its way on a connection kept alive, is served and its connection then closed.
async fn drain<H>(shared: &Shared<H>) {
    shared.shutdown.draining().await;
    tokio::time::sleep(shared.limits.drain_idle_timeout).await;
}

/// Reads and forgets until the client has closed too.
async fn linger(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut waste = [0; 4096];
    while stream.read(&mut waste).await.is_ok_and(|read| read > 0) {}
}

/// Answers a request, whatever becomes of its handler.
async fn answer<H: Handler>(
    in_hand: InHand<H>,
    request: Request<Incoming>,
) -> Result<Response<HeldBody<H::Body, InHand<H>>>, Infallible> {
    let Connection { shared, kept, activity, ends_by_close, .. } = &*in_hand.0;
    ends_by_close.store(request.version() < Version::HTTP_11, Ordering::Relaxed);
    let limit = shared.limits.body_idle_timeout;
    let request = request.map(|body| RequestBody::new(body, limit, Arc::clone(activity)));
    let caught = {
        let mut answering = pin!(shared.handler.respond(kept, request));
        poll_fn(|cx| {
            // The future is not polled again after a panic, so whatever it left half-done is not seen.
            match catch_unwind(AssertUnwindSafe(|| answering.as_mut().poll(cx))) {
                Ok(poll) => poll.map(Some),
                Err(_panic) => Poll::Ready(None),
            }
        })
        .await
    };
    let mut response = caught.unwrap_or_else(|| {
        // Not its text: it may hold anything, a token included.
        tracing::error!("a request's handler panicked");
        shared.panics.inc();
        ApiError::internal().close().into_response().map(H::Body::from)
    });
    let is_scarce = || shared.slots.available_permits() + 1 < shared.limits.keep_alive_min_free;
    if shared.is_draining.load(Ordering::Relaxed) || is_scarce() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| HeldBody::new(body, in_hand)))
}
