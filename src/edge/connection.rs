//! One client's connection: from its socket to hyper's HTTP/1.1 server and to its end, whichever way it comes.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Request, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use prometheus_client::metrics::counter::Counter;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use super::body::{HeldBody, RequestBody};
use super::io::ClientIo;
use super::timer::ConnectionTimer;
use super::{ClientBody, EdgeLimits};
use crate::api_error::ApiError;

/// Silence after which a client's machine is asked whether it is still there, and between two such questions.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long a closed connection is still read from, so that an answer given before the whole request was read
/// reaches its client: the kernel answers unread bytes with a reset, which would overtake it (RFC 9112 9.6).
const LINGER: Duration = Duration::from_secs(2);

/// What all connections of a listener share.
#[derive(Clone)]
pub(super) struct Shared {
    http: http1::Builder,
    limits: Arc<EdgeLimits>,
    /// Places for connections.
    slots: Arc<Semaphore>,
    panics: Counter,
    /// Cancelled once either of the other two is: the one that a connection watches while it is in use.
    stop: CancellationToken,
    drain: CancellationToken,
    cut: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        limits: EdgeLimits,
        slots: Arc<Semaphore>,
        panics: Counter,
        stop: CancellationToken,
        drain: CancellationToken,
        cut: CancellationToken,
    ) -> Self {
        // HTTP/1 alone: hyper-util's detection of HTTP/2 waits for the whole preface without a limit.
        let mut http = http1::Builder::new();
        http.header_read_timeout(limits.header_timeout)
            .max_header_size(limits.max_head_bytes)
            .max_buf_size(limits.max_head_bytes)
            // A client that closes has left: its handler, and with it the upstream call, is dropped.
            .half_close(false)
            // What passes through keeps the letter case of its field names.
            .preserve_header_case(true);
        // hyper keeps its default of 100 on the stack, any other number on the heap.
        if limits.max_header_fields != 100 {
            http.max_headers(limits.max_header_fields);
        }
        Self { http, limits: Arc::new(limits), slots, panics, stop, drain, cut }
    }
}

/// What a connection is doing, as far as the drain and the end of the connection must know.
#[derive(Default)]
struct State {
    /// Requests whose answer's last byte was not yet handed to hyper.
    in_hand: AtomicUsize,
    /// Whether the client does not take what is written.
    blocked: Arc<AtomicBool>,
    /// Whether the client speaks HTTP/1.0 and takes the end of the connection for the end of an answer.
    ends_by_close: AtomicBool,
}

impl State {
    fn is_idle(&self) -> bool {
        self.in_hand.load(Ordering::Relaxed) == 0 && !self.blocked.load(Ordering::Relaxed)
    }
}

/// A request in hand, until dropped.
struct InHand(Arc<State>);

impl InHand {
    fn new(state: &Arc<State>) -> Self {
        state.in_hand.fetch_add(1, Ordering::Relaxed);
        Self(state.clone())
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.in_hand.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one connection to its end.
pub(super) async fn run<S, B>(stream: TcpStream, service: S, shared: Shared)
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + Unpin
        + 'static,
    S::Future: Send + 'static,
    B: ClientBody,
{
    // A failure here means that the client has left, which the first read finds out.
    let _ = stream.set_nodelay(true);
    // A client that vanished without a word frees its place also while nothing is written to it.
    let _ = SockRef::from(&stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE));
    let state = Arc::new(State::default());
    let io = ClientIo::new(stream, state.blocked.clone(), shared.limits.write_idle);
    let requests = Requests { service, shared: shared.clone(), state: state.clone() };
    let mut connection = shared.http.clone().timer(ConnectionTimer::default()).serve_connection(io, requests);
    let ended = 'ended: {
        tokio::select! {
            biased;
            ended = &mut connection => break 'ended ended,
            () = shared.stop.cancelled() => {}
        }
        let mut draining = pin!(drain(&shared));
        let mut asked = false;
        loop {
            tokio::select! {
                biased;
                () = shared.cut.cancelled() => return,
                ended = &mut connection => break ended,
                () = &mut draining => {
                    if asked && state.is_idle() {
                        return;
                    }
                    asked = true;
                    Pin::new(&mut connection).graceful_shutdown();
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
            let is_draining = shared.drain.is_cancelled();
            let limit = if is_draining { shared.limits.drain_idle.min(LINGER) } else { LINGER };
            tokio::select! {
                () = shared.cut.cancelled() => {}
                _ = tokio::time::timeout(limit, linger(stream)) => {}
            }
        }
    }
}

/// Ends [`EdgeLimits::drain_idle`] after the drain began; again and again, when asked again. In that time a request
/// that is still in the kernel, or on its way on a connection kept alive, is served and its connection then closed.
async fn drain(shared: &Shared) {
    shared.drain.cancelled().await;
    tokio::time::sleep(shared.limits.drain_idle).await;
}

/// Reads and forgets until the client has closed too.
async fn linger(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut waste = [0; 4096];
    while stream.read(&mut waste).await.is_ok_and(|read| read > 0) {}
}

/// The service as hyper calls it, once a request.
struct Requests<S> {
    service: S,
    shared: Shared,
    state: Arc<State>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Requests<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: ClientBody,
{
    type Response = Response<HeldBody<B, InHand>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let in_hand = InHand::new(&self.state);
        self.state.ends_by_close.store(request.version() < Version::HTTP_11, Ordering::Relaxed);
        let limit = self.shared.limits.body_idle;
        let request = request.map(|body| Body::new(RequestBody::new(body, limit)));
        let service = self.service.clone();
        let (panics, drain) = (self.shared.panics.clone(), self.shared.drain.clone());
        let (slots, spare_places) = (Arc::clone(&self.shared.slots), self.shared.limits.spare_places);
        Box::pin(async move {
            let mut answering = pin!(service.oneshot(request));
            let caught = poll_fn(|cx| {
                // The future is not polled again after a panic, so whatever it left half-done is not seen.
                match catch_unwind(AssertUnwindSafe(|| answering.as_mut().poll(cx))) {
                    Ok(poll) => poll.map(Some),
                    Err(_panic) => Poll::Ready(None),
                }
            })
            .await;
            let mut response = match caught {
                Some(Ok(response)) => response,
                None => {
                    // Not its text: it may hold anything, a token included.
                    tracing::error!("a request's handler panicked");
                    panics.inc();
                    ApiError::internal().close().into_response().map(B::from)
                }
            };
            if drain.is_cancelled() || slots.available_permits() + 1 < spare_places {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| HeldBody::new(body, in_hand)))
        })
    }
}
