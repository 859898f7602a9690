//! Tests of the request that a lookup sends and of the responses to it.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// State of the upstream's connection after its response.
enum Then {
    KeepOpen,
    Close,
}

/// Lookup client with a raw upstream.
struct Upstream {
    client: Arc<UpstreamClient>,
    listener: TcpListener,
}

impl Upstream {
    async fn new() -> Self {
        let (listener, address) = listen().await;
        Self::with(listener, &config(address))
    }

    fn with(listener: TcpListener, config: &UpstreamConfig) -> Self {
        let client = Arc::new(super::build_clients(config).unwrap().0);
        Self { client, listener }
    }

    /// Starts a lookup.
    fn start(&self, requested: &[&str]) -> tokio::task::JoinHandle<Result<UpstreamResponse, UpstreamError>> {
        let (client, ids) = (self.client.clone(), ids(requested));
        tokio::spawn(async move { client.look_up(&producer(), &credentials(), &ids).await })
    }

    /// Makes a lookup on a new connection, which receives `response` and then stays open or is
    /// closed.
    async fn look_up(
        &self,
        response: impl AsRef<[u8]>,
        then: Then,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let lookup = self.start(&["a"]);
        let mut peer = RawPeer::accept(&self.listener).await;
        peer.read_head().await;
        peer.read_exact(BODY.len()).await;
        peer.write(response).await;
        let open = match then {
            Then::KeepOpen => Some(peer),
            Then::Close => {
                drop(peer);
                None
            }
        };
        let result = soon(lookup).await.unwrap();
        drop(open);
        result
    }
}

const BODY: &str = r#"{"action":"retrieve","id":"a"}"#;

#[tokio::test]
async fn lookup_sends_only_the_documented_headers() {
    let upstream = Upstream::new().await;
    let lookup = upstream.start(&["a"]);
    let mut peer = RawPeer::accept(&upstream.listener).await;
    let head = peer.read_head().await;
    let mut lines: Vec<_> = head.trim_end().lines().collect();
    assert_eq!(lines.remove(0), "POST /producer/tasks HTTP/1.1");
    lines.sort_unstable();
    let agent = format!("user-agent: refrain/{}", env!("CARGO_PKG_VERSION"));
    let host = format!("host: {}", upstream.listener.local_addr().unwrap());
    assert_eq!(
        lines,
        [
            "accept-encoding: gzip",
            "accept: application/json",
            "authorization: Bearer secret-canary",
            "content-length: 30",
            "content-type: application/json",
            &host,
            &agent,
            "x-record-exempt: true",
        ]
    );
    assert_eq!(peer.read_exact(BODY.len()).await, BODY);
    peer.write("HTTP/1.1 429 X\r\ncontent-type: a/b\r\nretry-after: 7\r\nset-cookie: a=b\r\ncontent-length: 2\r\n\r\n{}")
        .await;
    let response = soon(lookup).await.unwrap().unwrap();
    assert_eq!(response.status, 429);
    assert_eq!(
        (response.content_type.unwrap(), response.retry_after.unwrap()),
        ("a/b".parse().unwrap(), "7".parse().unwrap())
    );
    assert_eq!(response.body, "{}");
    // Several ids make a batch, in their order and on the same connection.
    let lookup = upstream.start(&["b\"\n", "a"]);
    peer.read_head().await;
    let batch = r#"{"action":"retrieve_batch","ids":["b\"\n","a"]}"#;
    assert_eq!(peer.read_exact(batch.len()).await, batch);
    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(soon(lookup).await.unwrap().unwrap().body, "");
}

#[test]
fn debug_of_credentials_has_no_secret() {
    let shown = format!("{:?}", credentials());
    assert!(!shown.contains("canary") && !shown.contains("true"), "{shown}");
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn gzip_response_is_decoded_and_its_decoded_size_is_limited() {
    let upstream = Upstream::new().await;
    for (length, expected) in
        [(1000, Ok(1000)), (1001, Err(UpstreamError::TooLarge)), (50_000_000, Err(UpstreamError::TooLarge))]
    {
        let encoded = gzip(&vec![b'0'; length]);
        let mut response = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
            encoded.len()
        )
        .into_bytes();
        response.extend_from_slice(&encoded);
        let response = upstream.look_up(response, Then::KeepOpen).await;
        assert_eq!(response.map(|response| response.body.len()), expected);
    }
}

#[tokio::test]
async fn empty_body_with_gzip_encoding_is_empty() {
    let upstream = Upstream::new().await;
    let response = "HTTP/1.1 429 X\r\ncontent-encoding: gzip\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(upstream.look_up(response, Then::KeepOpen).await.unwrap().body, "");
}

#[tokio::test]
async fn response_size_is_limited_in_every_framing() {
    let upstream = Upstream::new().await;
    let large = "a".repeat(1001);
    for response in [
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1001\r\n\r\n{large}"),
        format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n{large}\r\n0\r\n\r\n"
        ),
        format!("HTTP/1.1 200 OK\r\n\r\n{large}"),
    ] {
        assert_eq!(upstream.look_up(response, Then::Close).await.unwrap_err(), UpstreamError::TooLarge);
    }
}

#[tokio::test]
async fn malformed_response_is_an_error_and_its_connection_is_closed() {
    let upstream = Upstream::new().await;
    // Each lookup needs a new connection, or the next `accept` would not return.
    for response in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\ncontent-encoding: gzip\r\n\r\n\
         2\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}}",
        "HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 2\r\n\r\n{}",
        "nonsense\r\n\r\n",
    ] {
        assert_eq!(
            upstream.look_up(response, Then::KeepOpen).await.unwrap_err(),
            UpstreamError::BadMessage,
            "{response:?}"
        );
    }
}

#[tokio::test]
async fn truncated_response_is_an_error() {
    let upstream = Upstream::new().await;
    for response in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\nZZ\r\n",
    ] {
        assert_eq!(
            upstream.look_up(response, Then::Close).await.unwrap_err(),
            UpstreamError::Interrupted,
            "{response:?}"
        );
    }
    // Truncated inside the gzip stream.
    let encoded = gzip(b"{}");
    let mut response =
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\na\r\n".to_vec();
    response.extend_from_slice(&encoded[..10]);
    response.extend_from_slice(b"\r\n0\r\n\r\n");
    assert_eq!(upstream.look_up(response, Then::Close).await.unwrap_err(), UpstreamError::BadMessage);
}

#[tokio::test]
async fn lookup_is_sent_once() {
    let upstream = Upstream::new().await;
    assert!(upstream.look_up("", Then::Close).await.is_err());
    let again = tokio::time::timeout(Duration::from_millis(50), upstream.listener.accept()).await;
    assert!(again.is_err());
}

#[tokio::test]
async fn redirect_is_returned_and_not_followed() {
    let upstream = Upstream::new().await;
    let (other, address) = listen().await;
    let response = format!("HTTP/1.1 307 X\r\nlocation: http://{address}/\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(upstream.look_up(response, Then::KeepOpen).await.unwrap().status, 307);
    assert!(tokio::time::timeout(Duration::from_millis(50), other.accept()).await.is_err());
}

#[tokio::test]
async fn lookup_has_a_time_limit() {
    let (listener, address) = listen().await;
    let config = UpstreamConfig { request_timeout: Duration::from_millis(200), ..config(address) };
    let upstream = Upstream::with(listener, &config);
    // No response, and a body that never ends.
    for response in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"] {
        let lookup = upstream.start(&["a"]);
        let mut peer = RawPeer::accept(&upstream.listener).await;
        peer.read_head().await;
        peer.write(response).await;
        assert_eq!(soon(lookup).await.unwrap().unwrap_err(), UpstreamError::Timeout);
    }
}

#[tokio::test]
async fn connection_errors_have_distinct_reasons() {
    let (closed, refusing) = listen().await;
    drop(closed);
    let (silent, hole) = listen().await;
    let url = |url: String| UpstreamConfig { base_url: url.parse().unwrap(), ..config(hole) };
    let slow = Duration::from_secs(20);
    for (config, reason) in [
        (url(format!("http://{refusing}")), Unreachable::Refused),
        (
            UpstreamConfig {
                connect_timeout: slow,
                request_timeout: slow,
                ..url("http://no-such-host.invalid".to_owned())
            },
            Unreachable::Dns,
        ),
        (url(format!("https://{hole}")), Unreachable::Timeout),
    ] {
        let (client, passthrough) = super::build_clients(&config).unwrap();
        let error = client.look_up(&producer(), &credentials(), &ids(&["a"])).await.unwrap_err();
        assert_eq!(error, UpstreamError::Unreachable(reason));
        assert!(!error.was_reached());
        let request = http::Request::get("/").body(axum::body::Body::empty()).unwrap();
        assert_eq!(passthrough.send(request).await.unwrap_err(), UpstreamError::Unreachable(reason));
    }
    drop(silent);
}
