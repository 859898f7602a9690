//! What a look-up sends, and what it makes of what comes back.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// A client for look-ups and its upstream.
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

    /// Starts a look-up.
    fn ask(&self, asked: &[&str]) -> tokio::task::JoinHandle<Result<UpstreamResponse, UpstreamError>> {
        let (client, asked) = (self.client.clone(), ids(asked));
        tokio::spawn(async move { client.look_up(&producer(), &credentials(), &asked).await })
    }

    /// A look-up, answered on a connection of its own with `answer` and then, if so, closed.
    async fn answered(
        &self,
        answer: impl AsRef<[u8]>,
        close: bool,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let asking = self.ask(&["a"]);
        let mut peer = RawPeer::accept(&self.listener).await;
        peer.read_head().await;
        peer.read_exact(BODY.len()).await;
        peer.write(answer).await;
        if close {
            drop(peer);
            return soon(asking).await.unwrap();
        }
        soon(asking).await.unwrap()
    }
}

const BODY: &str = r#"{"action":"retrieve","id":"a"}"#;

#[tokio::test]
async fn a_look_up_sends_what_it_must_and_no_more() {
    let upstream = Upstream::new().await;
    let asking = upstream.ask(&["a"]);
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
    let answer = soon(asking).await.unwrap().unwrap();
    assert_eq!(answer.status, 429);
    assert_eq!(
        (answer.content_type.unwrap(), answer.retry_after.unwrap()),
        ("a/b".parse().unwrap(), "7".parse().unwrap())
    );
    assert_eq!(answer.body, "{}");
    // More ids make a batch, on the same connection, in their order.
    let asking = upstream.ask(&["b\"\n", "a"]);
    peer.read_head().await;
    let batch = r#"{"action":"retrieve_batch","ids":["b\"\n","a"]}"#;
    assert_eq!(peer.read_exact(batch.len()).await, batch);
    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(soon(asking).await.unwrap().unwrap().body, "");
}

#[test]
fn credentials_show_nothing() {
    let shown = format!("{:?}", credentials());
    assert!(!shown.contains("canary") && !shown.contains("true"), "{shown}");
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn answers_are_unpacked_and_counted_unpacked() {
    let upstream = Upstream::new().await;
    for (length, expected) in
        [(1000, Ok(1000)), (1001, Err(UpstreamError::TooLarge)), (50_000_000, Err(UpstreamError::TooLarge))]
    {
        let packed = gzip(&vec![b'0'; length]);
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
            packed.len()
        )
        .into_bytes();
        answer.extend_from_slice(&packed);
        let answer = upstream.answered(answer, false).await;
        assert_eq!(answer.map(|answer| answer.body.len()), expected);
    }
}

#[tokio::test]
async fn nothing_is_not_packed() {
    let upstream = Upstream::new().await;
    let answer = "HTTP/1.1 429 X\r\ncontent-encoding: gzip\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(upstream.answered(answer, false).await.unwrap().body, "");
}

#[tokio::test]
async fn answers_have_a_largest_size_in_every_framing() {
    let upstream = Upstream::new().await;
    let large = "a".repeat(1001);
    for answer in [
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1001\r\n\r\n{large}"),
        format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n{large}\r\n0\r\n\r\n"
        ),
        format!("HTTP/1.1 200 OK\r\n\r\n{large}"),
    ] {
        assert_eq!(upstream.answered(answer, true).await.unwrap_err(), UpstreamError::TooLarge);
    }
}

#[tokio::test]
async fn malformed_answers_are_none_and_their_connections_are_left() {
    let upstream = Upstream::new().await;
    // Each is answered on a connection of its own, or the next would not be accepted.
    for answer in [
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
            upstream.answered(answer, false).await.unwrap_err(),
            UpstreamError::BadMessage,
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn cut_answers_are_none() {
    let upstream = Upstream::new().await;
    for answer in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\nZZ\r\n",
    ] {
        assert_eq!(
            upstream.answered(answer, true).await.unwrap_err(),
            UpstreamError::Interrupted,
            "{answer:?}"
        );
    }
    // Cut inside what was packed.
    let packed = gzip(b"{}");
    let mut answer =
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\na\r\n".to_vec();
    answer.extend_from_slice(&packed[..10]);
    answer.extend_from_slice(b"\r\n0\r\n\r\n");
    assert_eq!(upstream.answered(answer, true).await.unwrap_err(), UpstreamError::BadMessage);
}

#[tokio::test]
async fn a_look_up_is_sent_once() {
    let upstream = Upstream::new().await;
    assert!(upstream.answered("", true).await.is_err());
    let again = tokio::time::timeout(Duration::from_millis(50), upstream.listener.accept()).await;
    assert!(again.is_err());
}

#[tokio::test]
async fn a_redirect_is_an_answer() {
    let upstream = Upstream::new().await;
    let (other, address) = listen().await;
    let answer = format!("HTTP/1.1 307 X\r\nlocation: http://{address}/\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(upstream.answered(answer, false).await.unwrap().status, 307);
    assert!(tokio::time::timeout(Duration::from_millis(50), other.accept()).await.is_err());
}

#[tokio::test]
async fn waiting_has_an_end() {
    let (listener, address) = listen().await;
    let config = UpstreamConfig { request_timeout: Duration::from_millis(200), ..config(address) };
    let upstream = Upstream::with(listener, &config);
    // Nothing, and a body that never ends.
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"] {
        let asking = upstream.ask(&["a"]);
        let mut peer = RawPeer::accept(&upstream.listener).await;
        peer.read_head().await;
        peer.write(answer).await;
        assert_eq!(soon(asking).await.unwrap().unwrap_err(), UpstreamError::Timeout);
    }
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_apart() {
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
