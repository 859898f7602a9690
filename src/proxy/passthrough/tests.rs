//! Server, validation and passthrough together. The tests write the bytes of both the client and
//! the upstream.

mod faults;
mod streams;

use std::net::SocketAddr;
use std::time::Duration;

use axum::response::IntoResponse;
use tokio::net::TcpListener;

use super::*;
use crate::config::UpstreamConfig;
use crate::headers::RequestHeaders;
use crate::lifecycle::{AbortOnDrop, Shutdown};
use crate::proxy::validation;
use crate::server::{Handler, RequestBody, ServerCounters, ServerLimits, serve};
use refrain_simulator::raw_http::{RawHead, RawPeer, RawResponse, listen, soon};

/// Handler that validates and forwards every request.
struct ForwardAll(Passthrough);

impl Handler for ForwardAll {
    type Body = Body;
    type ConnectionState = ();

    async fn respond(&self, (): &(), request: Request<RequestBody>) -> Response {
        let (parts, body) = request.into_parts();
        match validation::respond(&parts, &RequestHeaders::parse(&parts.headers)) {
            Ok(Some(response)) => response,
            Ok(None) => {
                forward(&self.0, Request::from_parts(parts, Body::new(body)), None).await.into_response()
            }
            Err(refusal) => refusal.into_response(),
        }
    }
}

/// Proxy that only forwards, and the listener of its upstream.
struct Proxy {
    address: SocketAddr,
    upstream: TcpListener,
    /// Host and port of `upstream.base_url`.
    upstream_host: String,
    _running: AbortOnDrop,
}

fn config(upstream: SocketAddr) -> UpstreamConfig {
    UpstreamConfig {
        base_url: format!("http://{upstream}").parse().unwrap(),
        connect_timeout: Duration::from_millis(500),
        ..UpstreamConfig::default()
    }
}

impl Proxy {
    async fn spawn() -> Self {
        let (upstream, address) = listen().await;
        Self::spawn_with(upstream, &config(address)).await
    }

    async fn spawn_with(upstream: TcpListener, config: &UpstreamConfig) -> Self {
        let upstream_host = config.base_url.authority().unwrap().to_string();
        let (_, passthrough) = crate::upstream::build_clients(config).unwrap();
        let (listener, address) = listen().await;
        let limits =
            ServerLimits { body_idle_timeout: Duration::from_millis(200), ..ServerLimits::default() };
        let shutdown = Shutdown::new();
        let running = shutdown.abort_on_drop();
        tokio::spawn(serve(listener, ForwardAll(passthrough), limits, ServerCounters::default(), shutdown));
        Self { address, upstream, upstream_host, _running: running }
    }

    async fn client(&self) -> RawPeer {
        RawPeer::connect(self.address).await
    }

    /// Sends a request. Returns the client, the connection on which the request arrived upstream,
    /// and its head there.
    async fn exchange(&self, request: &str) -> (RawPeer, RawPeer, RawHead) {
        let mut client = self.client().await;
        client.write(request).await;
        let mut upstream = RawPeer::accept(&self.upstream).await;
        let head = upstream.read_head().await;
        (client, upstream, head)
    }

    /// Asserts that no other connection reaches the upstream.
    async fn assert_no_connection(&self) {
        let waiting = tokio::time::timeout(Duration::from_millis(30), self.upstream.accept()).await;
        assert!(waiting.is_err(), "a connection reached the upstream");
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n")
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nhost: x\r\n{fields}\r\n{body}")
}

#[tokio::test]
async fn target_is_forwarded_byte_for_byte() {
    let proxy = Proxy::spawn().await;
    for (target, sent) in [
        ("/", "/"),
        ("/producer/tasks/", "/producer/tasks/"),
        ("//evil/x", "//evil/x"),
        ("/a%2fb%2F..%00", "/a%2fb%2F..%00"),
        ("/%7e/~/%41", "/%7e/~/%41"),
        ("/a//b///c", "/a//b///c"),
        ("/x?", "/x?"),
        ("/x?a=/../b\\c&d=%zz?", "/x?a=/../b\\c&d=%zz?"),
        ("/a;b=c,d:@!$&'()*+=", "/a;b=c,d:@!$&'()*+="),
        ("/[x]{y}|^\"", "/[x]{y}|^\""),
        ("/caf\u{e9}", "/caf\u{e9}"),
        ("/x#fragment", "/x"),
        ("http://evil.example/x?y", "/x?y"),
        ("http://evil.example", "/"),
        ("http://evil.example//x", "//x"),
    ] {
        let (mut client, mut upstream, head) = proxy.exchange(&get(target)).await;
        let authority = proxy.upstream.local_addr().unwrap().to_string();
        assert_eq!(head.lines().next(), Some(&*format!("GET {sent} HTTP/1.1")));
        assert_eq!(head.header("host"), Some(&*authority));
        upstream.write(OK).await;
        assert_eq!(client.read_response().await.body, "ok");
    }
}

#[tokio::test]
async fn invalid_requests_are_refused_and_not_forwarded() {
    let proxy = Proxy::spawn().await;
    for (request, expected) in [
        (get("/x/../producer/tasks"), 400),
        (get("/x/%2e%2E/producer/tasks"), 400),
        (get("/x\\..\\producer\\tasks"), 400),
        (get("/./producer/tasks"), 400),
        (get("*"), 400),
        (get("!"), 400),
        (get("http://u:p@x/"), 400),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n".into(), 400),
        (post("connection: authorization\r\nauthorization: Bearer t\r\n", ""), 400),
        (post("connection: close, Content-Length\r\ncontent-length: 0\r\n", ""), 400),
        (post("transfer-encoding: ,chunked\r\n", "0\r\n\r\n"), 400),
        (post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n"), 400),
        (post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"), 400),
        (post("transfer-encoding: identity\r\ncontent-length: 1\r\n", "a"), 400),
        (post("content-length: 1\r\ncontent-length: 2\r\n", "ab"), 400),
        (post("content-length: 1, 1\r\n", "a"), 400),
        (post("content-length: +1\r\n", "a"), 400),
        (post("x : y\r\n", ""), 400),
        (post("x: a\rb\r\n", ""), 400),
        ("TRACE / HTTP/1.1\r\nhost: x\r\n\r\n".into(), 405),
        ("CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n".into(), 501),
        ("OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n".into(), 204),
    ] {
        let mut client = proxy.client().await;
        client.write(&request).await;
        let head = client.read_head().await;
        assert_eq!(head.status(), expected, "{request:?}");
        let length: usize = head.header("content-length").unwrap_or("0").parse().unwrap();
        let body = client.read_exact(length).await;
        let body = String::from_utf8_lossy(&body);
        // Refusals of hyper's parser have no body.
        assert!(body.is_empty() || body.contains(r#""code":"bad_request""#), "{body}");
    }
    proxy.assert_no_connection().await;
}

#[tokio::test]
async fn length_beside_chunks_is_dropped_and_the_connection_closes() {
    let proxy = Proxy::spawn().await;
    for fields in [
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
    ] {
        let request = post(fields, "5\r\nhello\r\n0\r\n\r\n");
        let (mut client, mut upstream, head) = proxy.exchange(&request).await;
        assert_eq!(head.header("content-length"), None);
        assert_eq!(head.header("transfer-encoding"), Some("chunked"));
        assert_eq!(upstream.read_until("0\r\n\r\n").await, "5\r\nhello\r\n0\r\n\r\n");
        upstream.write(OK).await;
        let RawResponse { head, .. } = client.read_response().await;
        assert_eq!(head.header("connection"), Some("close"));
        assert_eq!(client.read_to_end().await.unwrap(), "");
    }
}

#[tokio::test]
async fn headers_keep_order_case_and_number_without_hop_by_hop_ones() {
    let proxy = Proxy::spawn().await;
    let request = post(
        "X-Mine: a\r\nConnection: keep-alive, X-Hop\r\nx-hop: 1\r\nX-Twice: 1\r\nX-TWICE: 2\r\n\
         Proxy-Authorization: Basic eA==\r\nAuthorization: Bearer t\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\n\
         TE: gzip\r\nContent-Length: 2\r\nCookie: a=b\r\n",
        "hi",
    );
    let (mut client, mut upstream, head) = proxy.exchange(&request).await;
    let authority = proxy.upstream.local_addr().unwrap();
    let via = head.header("via").unwrap();
    assert!(via.starts_with("1.1 refrain-"), "{via}");
    assert_eq!(
        &*head,
        format!(
            "POST /x HTTP/1.1\r\nX-Mine: a\r\nX-Twice: 1\r\nX-TWICE: 2\r\nAuthorization: Bearer t\r\n\
             Cookie: a=b\r\nContent-Length: 2\r\nvia: {via}\r\nhost: {authority}\r\n\r\n"
        )
    );
    assert_eq!(upstream.read_exact(2).await, "hi");
    upstream
        .write(
            "HTTP/1.1 299 Odd Reason\r\nConnection: X-Hop\r\nX-Hop: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
             Content-Encoding: gzip\r\nKeep-Alive: 5\r\nCache-Status: other; hit\r\nContent-Length: 3\r\n\
             Date: x\r\nUpgrade: h2\r\n\r\n\u{1}\u{2}\u{3}",
        )
        .await;
    let RawResponse { head, body, .. } = client.read_response().await;
    assert_eq!(
        &*head,
        "HTTP/1.1 299 Odd Reason\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Encoding: gzip\r\n\
         Cache-Status: other; hit\r\nContent-Length: 3\r\nDate: x\r\n\r\n"
    );
    assert_eq!(body, "\u{1}\u{2}\u{3}");
}

#[tokio::test]
async fn bodies_keep_their_framing() {
    let proxy = Proxy::spawn().await;
    let chunks = "2\r\nhi\r\n0\r\n\r\n";
    for (request, length, coding, body) in [
        (get("/"), None, None, ""),
        (post("", ""), None, None, ""),
        (post("content-length: 0\r\n", ""), Some("0"), None, ""),
        (post("content-length: 2\r\n", "hi"), Some("2"), None, "hi"),
        (post("transfer-encoding: Chunked\r\n", chunks), None, Some("chunked"), chunks),
        (get("/").replace("\r\n\r\n", "\r\ncontent-length: 2\r\n\r\nhi"), Some("2"), None, "hi"),
        (
            get("/").replace("\r\n\r\n", "\r\ntransfer-encoding: chunked\r\n\r\n") + chunks,
            None,
            Some("chunked"),
            chunks,
        ),
    ] {
        let (mut client, mut upstream, head) = proxy.exchange(&request).await;
        assert_eq!(head.header("content-length"), length, "{request:?}");
        assert_eq!(head.header("transfer-encoding"), coding, "{request:?}");
        assert_eq!(upstream.read_exact(body.len()).await, body);
        upstream.write(OK).await;
        assert_eq!(client.read_response().await.body, "ok");
    }
}

#[tokio::test]
async fn head_response_keeps_its_length_or_has_none() {
    let proxy = Proxy::spawn().await;
    for (fields, length) in
        [("content-length: 7\r\n", Some("7")), ("transfer-encoding: chunked\r\n", None), ("", None)]
    {
        let (mut client, mut upstream, _) = proxy.exchange("HEAD / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        upstream.write(format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).await;
        let head = client.read_head().await;
        assert_eq!(head.header("content-length"), length);
        assert_eq!(head.header("transfer-encoding"), None);
    }
}

#[tokio::test]
async fn expect_is_answered_by_refrain() {
    let proxy = Proxy::spawn().await;
    let mut client = proxy.client().await;
    client.write(post("expect: 100-continue\r\ncontent-length: 2\r\n", "")).await;
    assert_eq!(&*client.read_head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write("hi").await;
    let mut upstream = RawPeer::accept(&proxy.upstream).await;
    assert_eq!(upstream.read_head().await.header("expect"), None);
    assert_eq!(upstream.read_exact(2).await, "hi");
    // An informational response is not the final one.
    upstream.write(format!("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{OK}")).await;
    assert_eq!(client.read_response().await.body, "ok");
}

#[tokio::test]
async fn trailers_are_forwarded_both_ways() {
    let proxy = Proxy::spawn().await;
    let request = post(
        "te: trailers\r\nconnection: te\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n",
        "1\r\na\r\n0\r\nx-sum: 1\r\n\r\n",
    );
    let (mut client, mut upstream, head) = proxy.exchange(&request).await;
    assert_eq!(head.header("te"), Some("trailers"));
    assert_eq!(upstream.read_until("x-sum: 1\r\n\r\n").await, "1\r\na\r\n0\r\nx-sum: 1\r\n\r\n");
    upstream
        .write("HTTP/1.1 200 OK\r\ntrailer: x-end\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nx-end: 2\r\n\r\n")
        .await;
    client.read_head().await;
    assert_eq!(client.read_until("x-end: 2\r\n\r\n").await, "1\r\nb\r\n0\r\nx-end: 2\r\n\r\n");
}
