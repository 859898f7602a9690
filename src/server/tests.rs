//! Tests of the server over sockets, with small handlers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::IntoResponse;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::*;
use crate::api_error::ApiError;
use refrain_simulator::raw_http::{RawPeer, listen, soon};

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

fn limits() -> ServerLimits {
    ServerLimits {
        drain_idle_timeout: Duration::from_millis(100),
        max_connections: 64,
        ..ServerLimits::default()
    }
}

/// Running server.
struct TestServer {
    address: SocketAddr,
    shutdown: Shutdown,
    counters: ServerCounters,
    task: tokio::task::JoinHandle<()>,
}

impl TestServer {
    async fn spawn<F, R>(limits: ServerLimits, handler: F) -> Self
    where
        F: Fn(Request<Body>) -> R + Send + Sync + 'static,
        R: Future<Output = Response> + Send + 'static,
    {
        let (listener, address) = listen().await;
        Self::spawn_on(listener, address, Shutdown::new(), limits, handler)
    }

    fn spawn_on<F, R>(
        listener: TcpListener,
        address: SocketAddr,
        shutdown: Shutdown,
        limits: ServerLimits,
        handler: F,
    ) -> Self
    where
        F: Fn(Request<Body>) -> R + Send + Sync + 'static,
        R: Future<Output = Response> + Send + 'static,
    {
        let counters = ServerCounters::default();
        let handler = FnHandler(handler);
        let task = tokio::spawn(serve(listener, handler, limits, counters.clone(), shutdown.clone()));
        Self { address, shutdown, counters, task }
    }

    async fn ended(self) {
        soon(self.task).await.unwrap();
    }
}

/// Handler that calls a function.
struct FnHandler<F>(F);

impl<F, R> Handler for FnHandler<F>
where
    F: Fn(Request<Body>) -> R + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    type Body = Body;
    type ConnectionState = ();

    async fn respond(&self, (): &(), request: Request<RequestBody>) -> Response {
        (self.0)(request.map(Body::new)).await
    }
}

/// Sends a request on a new connection and returns the status of its response.
async fn status_of(address: SocketAddr, request: impl AsRef<[u8]>) -> u16 {
    let mut peer = RawPeer::connect(address).await;
    peer.write(request).await;
    peer.read_head().await.status()
}

/// Waits until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

async fn hello(_: Request<Body>) -> Response {
    "hello".into_response()
}

#[test]
fn aborted_connection_does_not_delay_the_next() {
    let aborted = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    assert_eq!(accept_retry_delay(&aborted, 1), Duration::ZERO);
    let full = std::io::Error::other("no descriptors");
    assert!(accept_retry_delay(&full, 1) < accept_retry_delay(&full, 2));
    assert_eq!(accept_retry_delay(&full, 100), Duration::from_secs(1));
}

#[tokio::test]
async fn slow_head_and_idle_connection_are_closed_at_the_timeout() {
    let limits = ServerLimits { header_timeout: Duration::from_millis(100), ..limits() };
    let server = TestServer::spawn(limits, hello).await;
    let mut slow = RawPeer::connect(server.address).await;
    slow.write("GET / HTTP/1.1\r\nhost:").await;
    assert_eq!(slow.read_to_end().await.unwrap(), "");
    let mut idle = RawPeer::connect(server.address).await;
    idle.write(GET).await;
    assert_eq!(idle.read_response().await.body, "hello");
    assert_eq!(idle.read_to_end().await.unwrap(), "");
}

#[tokio::test]
async fn slow_reader_can_send_another_request() {
    let limits = ServerLimits { header_timeout: Duration::from_secs(3), ..limits() };
    let server =
        TestServer::spawn(limits, |_: Request<Body>| async { vec![b'x'; 32 << 20].into_response() }).await;
    let mut slow = RawPeer::connect(server.address).await;
    slow.write(GET).await;
    // The response is larger than the socket buffers, and the delay longer than the limit.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(slow.read_response().await.body.len(), 32 << 20);
    // The limit counts from the end of the response. A limit that counted from its start would be
    // over.
    tokio::time::sleep(Duration::from_secs(1)).await;
    slow.write(GET).await;
    assert_eq!(slow.read_response().await.body.len(), 32 << 20);
}

#[tokio::test]
async fn longest_idle_connection_makes_room_for_a_new_one() {
    let server = TestServer::spawn(ServerLimits { max_connections: 3, ..limits() }, hello).await;
    let mut silent = RawPeer::connect(server.address).await;
    let mut partial = RawPeer::connect(server.address).await;
    partial.write("GET / HT").await;
    until(|| server.counters.connections.get() == 2).await;
    let mut idle = RawPeer::connect(server.address).await;
    idle.write(GET).await;
    assert_eq!(idle.read_response().await.body, "hello");
    let mut later = Vec::new();
    for longest_idle in [&mut silent, &mut partial] {
        let mut peer = RawPeer::connect(server.address).await;
        peer.write(GET).await;
        assert_eq!(peer.read_response().await.body, "hello");
        assert_eq!(longest_idle.read_to_end().await.unwrap_or_default(), "");
        later.push(peer);
    }
    idle.write(GET).await;
    assert_eq!(idle.read_response().await.body, "hello", "a later one is still open");
}

#[tokio::test]
async fn silent_connections_never_block_the_admin_port() {
    let limits = ServerLimits { max_connections: 16, ..ServerLimits::for_admin_port() };
    let server = TestServer::spawn(limits, hello).await;
    let mut silent = Vec::new();
    for n in 0..100 {
        let mut peer = RawPeer::connect(server.address).await;
        peer.write(["", "GET /readyz HTTP/1.1\r\nhost: x\r\n"][n % 2]).await;
        silent.push(peer);
        if n % 10 == 9 {
            let start = std::time::Instant::now();
            assert_eq!(status_of(server.address, GET).await, 200);
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
    }
}

#[tokio::test]
async fn oversized_head_is_refused() {
    let server = TestServer::spawn(limits(), hello).await;
    let fields = |count: usize| (0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
    for (request, expected) in [
        (head(&fields(99)), 200),
        (head(&fields(100)), 431),
        (head(&format!("x: {}\r\n", "a".repeat(60_000))), 200),
        (head(&format!("x: {}\r\n", "a".repeat(70_000))), 431),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1 << 20)), 431),
    ] {
        assert_eq!(status_of(server.address, request).await, expected);
    }
}

#[tokio::test]
async fn panic_is_a_500_in_the_error_format() {
    let server = TestServer::spawn(limits(), |request: Request<Body>| async move {
        assert!(request.uri().path() != "/panic", "secret-canary");
        "hello".into_response()
    })
    .await;
    let mut peer = RawPeer::connect(server.address).await;
    peer.write("GET /panic HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let response = peer.read_response().await;
    assert_eq!(response.status, 500);
    let body = response.text();
    assert!(body.contains(r#""code":"api_error""#) && !body.contains("canary"), "{body}");
    assert_eq!(server.counters.panics.get(), 1);
    assert_eq!(status_of(server.address, GET).await, 200);
}

#[tokio::test]
async fn idle_body_is_a_408_and_closes_the_connection() {
    let limits = ServerLimits { body_idle_timeout: Duration::from_millis(100), ..limits() };
    let server = TestServer::spawn(limits, |request: Request<Body>| async {
        match request.into_body().collect().await {
            Ok(_) => "hello".into_response(),
            Err(error) => ApiError::from(RequestBodyError::of(&error)).into_response(),
        }
    })
    .await;
    let mut peer = RawPeer::connect(server.address).await;
    peer.write("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab").await;
    let response = peer.read_response().await;
    assert_eq!((response.status, response.header("connection")), (408, Some("close")));
    assert!(response.text().contains("bad_request"), "{response:?}");
    assert_eq!(peer.read_to_end().await.unwrap(), "");
}

#[tokio::test]
async fn slow_handler_does_not_time_out_the_body() {
    let limits = ServerLimits { body_idle_timeout: Duration::from_millis(50), ..limits() };
    let server = TestServer::spawn(limits, |request: Request<Body>| async {
        let mut body = request.into_body();
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += frame.unwrap().into_data().unwrap().len();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        read.to_string().into_response()
    })
    .await;
    let mut peer = RawPeer::connect(server.address).await;
    peer.write("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n").await;
    peer.write(vec![b'a'; 200_000]).await;
    assert_eq!(peer.read_response().await.body, "200000");
}

#[tokio::test]
async fn burst_of_clients_is_served_although_all_slots_are_taken() {
    let server = TestServer::spawn(ServerLimits { max_connections: 4, ..limits() }, hello).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(RawPeer::connect(server.address).await);
    }
    for client in &mut clients {
        client.write(GET).await;
    }
    for client in &mut clients {
        assert_eq!(client.read_response().await.body, "hello");
    }
}

#[tokio::test]
async fn connection_waits_while_all_others_are_busy() {
    let (running, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (running_, go_) = (running.clone(), go.clone());
    let limits = ServerLimits { max_connections: 2, ..limits() };
    let server = TestServer::spawn(limits, move |request: Request<Body>| {
        let (running, go) = (running_.clone(), go_.clone());
        async move {
            if request.uri().path() == "/slow" {
                running.fetch_add(1, Ordering::SeqCst);
                go.notified().await;
            }
            "hello".into_response()
        }
    })
    .await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut peer = RawPeer::connect(server.address).await;
        peer.write("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        busy.push(peer);
    }
    until(|| running.load(Ordering::SeqCst) == 2).await;
    let mut third = RawPeer::connect(server.address).await;
    third.write(GET).await;
    assert!(tokio::time::timeout(Duration::from_millis(150), third.read_head()).await.is_err());
    drop(busy.pop());
    assert_eq!(third.read_response().await.body, "hello");
    // A connection that becomes idle makes room too.
    let mut fourth = RawPeer::connect(server.address).await;
    fourth.write(GET).await;
    assert_eq!(fourth.read_response().await.body, "hello");
    go.notify_one();
    assert_eq!(busy[0].read_response().await.body, "hello", "a busy connection is not closed");
}

#[tokio::test]
async fn closed_connection_drops_the_handler() {
    let (running, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    struct OnDrop(Arc<AtomicUsize>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (running_, dropped_) = (running.clone(), dropped.clone());
    let server = TestServer::spawn(limits(), move |_: Request<Body>| {
        let guard = OnDrop(dropped_.clone());
        running_.fetch_add(1, Ordering::SeqCst);
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    })
    .await;
    let mut peer = RawPeer::connect(server.address).await;
    peer.write(GET).await;
    until(|| running.load(Ordering::SeqCst) == 1).await;
    drop(peer);
    until(|| dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn pipelined_requests_before_a_half_close_are_served() {
    let server = TestServer::spawn(limits(), hello).await;
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream.write_all(GET.repeat(100).as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut responses = String::new();
    soon(stream.read_to_string(&mut responses)).await.unwrap();
    assert_eq!(responses.matches("hello").count(), 100);
}

#[tokio::test]
async fn unread_body_is_never_parsed_as_a_request() {
    let seen = Arc::new(AtomicUsize::new(0));
    let seen_ = seen.clone();
    let server = TestServer::spawn(limits(), move |_: Request<Body>| {
        seen_.fetch_add(1, Ordering::SeqCst);
        async { "hello".into_response() }
    })
    .await;
    // Short and sent at once, short and not sent, long.
    for (length, rest) in [(GET.len(), GET.len()), (GET.len() + 10, 0), (10 << 20, 10 << 20)] {
        seen.store(0, Ordering::SeqCst);
        let mut peer = RawPeer::connect(server.address).await;
        let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        let mut body = GET.repeat(length / GET.len() + 1);
        body.truncate(rest);
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body.as_bytes());
        let (mut read, mut write) = {
            let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
            stream.into_split()
        };
        let sent = tokio::spawn(async move {
            let _ = write.write_all(&bytes).await;
            write
        });
        // The whole response arrives although the body was not read.
        let mut response = Vec::new();
        soon(async {
            while !response.ends_with(b"hello") {
                assert!(read.read_buf(&mut response).await.unwrap() > 0);
            }
        })
        .await;
        drop(soon(sent).await.unwrap());
        drop(read);
        peer.write(GET).await;
        assert_eq!(peer.read_response().await.body, "hello");
        assert_eq!(seen.load(Ordering::SeqCst), 2, "length {length}");
    }
}

/// Body of some bytes and an error directly after them.
struct FailingBody(Option<&'static str>);

impl http_body::Body for FailingBody {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>> {
        let frame = self.0.take().map(|part| http_body::Frame::data(part.into()));
        std::task::Poll::Ready(Some(frame.ok_or_else(|| std::io::Error::other("failed"))))
    }
}

#[tokio::test]
async fn failed_response_body_never_looks_complete() {
    let server = TestServer::spawn(limits(), |request: Request<Body>| async move {
        drop(request);
        Body::new(FailingBody(Some("part"))).into_response()
    })
    .await;
    let mut http11 = RawPeer::connect(server.address).await;
    http11.write(GET).await;
    let response = http11.read_to_end().await.unwrap_or_else(|read| read);
    assert!(
        String::from_utf8_lossy(&response).contains("part") && !response.ends_with(b"0\r\n\r\n"),
        "{response:?}"
    );
    // With HTTP/1.0 the end of the connection ends the response, unless it is a reset.
    let mut http10 = RawPeer::connect(server.address).await;
    http10.write("GET / HTTP/1.0\r\n\r\n").await;
    assert!(http10.read_to_end().await.is_err());
}

#[tokio::test]
async fn drain_finishes_active_requests_and_then_ends() {
    let (started, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (started_, go_) = (started.clone(), go.clone());
    let server = TestServer::spawn(limits(), move |request: Request<Body>| {
        let (started, go) = (started_.clone(), go_.clone());
        async move {
            started.fetch_add(1, Ordering::SeqCst);
            if request.uri().path() == "/slow" {
                go.notified().await;
            }
            "hello".into_response()
        }
    })
    .await;
    let mut busy = RawPeer::connect(server.address).await;
    busy.write("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut idle = RawPeer::connect(server.address).await;
    idle.write(GET).await;
    idle.read_response().await;
    let mut silent = RawPeer::connect(server.address).await;
    let mut partial = RawPeer::connect(server.address).await;
    partial.write("GET / HT").await;
    until(|| started.load(Ordering::SeqCst) == 2).await;

    server.shutdown.start_drain();
    // A request on an idle connection still receives its response, which closes the connection.
    idle.write(GET).await;
    assert_eq!(idle.read_response().await.header("connection"), Some("close"));
    assert_eq!(silent.read_to_end().await.unwrap_or_default(), "");
    assert_eq!(partial.read_to_end().await.unwrap_or_default(), "");
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
    assert!(!server.task.is_finished());
    go.notify_one();
    assert_eq!(busy.read_response().await.body, "hello");
    server.ended().await;
}

#[tokio::test]
async fn drain_serves_connections_in_the_backlog() {
    let (listener, address) = listen().await;
    let mut waiting = RawPeer::connect(address).await;
    waiting.write(GET).await;
    let shutdown = Shutdown::new();
    shutdown.start_drain();
    let server = TestServer::spawn_on(listener, address, shutdown, limits(), hello);
    assert_eq!(waiting.read_response().await.body, "hello");
    drop(waiting);
    server.ended().await;
}

#[tokio::test]
async fn slow_reader_receives_its_whole_response_in_a_drain() {
    const SIZE: usize = 8 << 20;
    let server =
        TestServer::spawn(limits(), |_: Request<Body>| async { "a".repeat(SIZE).into_response() }).await;
    let mut peer = RawPeer::connect(server.address).await;
    peer.write(GET).await;
    peer.read_head().await;
    server.shutdown.start_drain();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(peer.read_exact(SIZE).await.len(), SIZE);
    drop(peer);
    server.ended().await;
}

#[tokio::test]
async fn abort_closes_every_connection() {
    let server = TestServer::spawn(limits(), |_: Request<Body>| std::future::pending()).await;
    let mut peer = RawPeer::connect(server.address).await;
    peer.write(GET).await;
    server.shutdown.abort();
    assert_eq!(peer.read_to_end().await.unwrap_or_default(), "");
    server.ended().await;
}

#[tokio::test]
async fn client_that_stops_reading_is_closed() {
    const LENGTH: usize = 64 << 20;
    let limits = ServerLimits { write_idle_timeout: Duration::from_millis(100), ..limits() };
    let server = TestServer::spawn(limits, |_| async { vec![b'x'; LENGTH].into_response() }).await;
    let mut client = RawPeer::connect(server.address).await;
    client.write("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.read_head().await;
    // The drain waits for active responses, so it ends only when the client times out.
    server.shutdown.start_drain();
    server.ended().await;
    let read = client.read_to_end().await.unwrap_or_else(|read| read);
    assert!(read.len() < LENGTH, "{}", read.len());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn slow_but_steady_reader_is_not_closed() {
    const LENGTH: usize = 32 << 20;
    let limits = ServerLimits { write_idle_timeout: Duration::from_millis(400), ..limits() };
    let server = TestServer::spawn(limits, |_| async { vec![b'x'; LENGTH].into_response() }).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // Otherwise the client's kernel hides for how long the client reads nothing.
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    let mut part = vec![0; 100_000];
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        soon(client.read_exact(&mut part)).await.unwrap();
    }
    // The rest is more than the kernel's buffers hold.
    let mut rest = vec![0; LENGTH - 20 * part.len()];
    soon(client.read_exact(&mut rest)).await.unwrap();
}
