//! Streaming: bodies pass in both directions as they come, and a hang-up reaches the other side.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use refrain_simulator::Rule;

use super::{BEARER, PAID, forwarded};
use crate::support::{Program, RawPeer, TIMEOUT, TestApp, eventually, request, simulator};

#[tokio::test]
async fn first_line_of_a_stream_arrives_before_the_second_is_sent() {
    let app = TestApp::spawn().await;
    let never = Duration::from_secs(3600);
    app.upstream.add_rule(Rule::path("/a").ndjson(["{\"n\":1}", "{\"n\":2}"], never));
    app.upstream.add_rule(Rule::path("/b").sse(["one", "two"], never));
    for (path, content_type, expected) in
        [("/a", "application/x-ndjson", "{\"n\":1}\n"), ("/b", "text/event-stream", "data: one\n\n")]
    {
        let mut peer = RawPeer::connect(app.address).await;
        let start = Instant::now();
        peer.write(request(&format!("POST {path}"), &[BEARER], "{}")).await;
        let head = peer.read_head().await;
        assert_eq!((head.status(), head.header("content-type")), (200, Some(content_type)), "{head}");
        assert_eq!(peer.read_chunk().await.as_deref(), Some(expected.as_bytes()));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn abandoned_stream_ends_upstream_within_a_second() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::any().ndjson(["{\"n\":1}"], Duration::from_millis(5)).endless());
    let mut peer = RawPeer::connect(app.address).await;
    peer.write(request(PAID, &[BEARER], "{}")).await;
    peer.read_head().await;
    for _ in 0..50 {
        assert_eq!(peer.read_chunk().await.as_deref(), Some(&b"{\"n\":1}\n"[..]));
    }
    drop(peer);
    let left = Instant::now();
    app.upstream.wait_until("the call was aborted", |upstream| upstream.aborted_calls() == 1).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
}

#[tokio::test]
async fn abandoned_request_ends_upstream_within_a_second() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::any().black_hole());
    let mut peer = RawPeer::connect(app.address).await;
    peer.write(request(PAID, &[BEARER], "{}")).await;
    app.upstream.wait_for_calls(1).await;
    drop(peer);
    let left = Instant::now();
    app.upstream.wait_until("the call was aborted", |upstream| upstream.aborted_calls() == 1).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());

    // The client leaves in the middle of its upload.
    app.upstream.clear_rules();
    let mut peer = RawPeer::connect(app.address).await;
    let bytes = request(PAID, &[BEARER], vec![b'x'; 500_000]);
    peer.write(&bytes[..bytes.len() / 2]).await;
    app.upstream.wait_until("the upload began", |upstream| upstream.open_connections() >= 1).await;
    drop(peer);
    let left = Instant::now();
    app.upstream.wait_until("the upload was aborted", |upstream| upstream.open_connections() == 0).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    assert_eq!(
        app.upstream.call_count(),
        1 + usize::from(app.upstream.aborted_calls() == 2),
        "sent at most once"
    );
    assert!(
        app.upstream.calls().iter().skip(1).all(|call| !call.body_complete),
        "an aborted upload never looks complete"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn client_that_leaves_unread_bytes_ends_its_upstream_call() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::any().black_hole());
    let paid = request(PAID, &[BEARER], "{}");
    for (number, unread) in [&b"\r\n"[..], &paid[..], b"GET / HT"].into_iter().enumerate() {
        let mut peer = RawPeer::connect(app.address).await;
        peer.write([&paid[..], unread].concat()).await;
        app.upstream.wait_for_calls(number + 1).await;
        drop(peer);
        let left = Instant::now();
        app.upstream
            .wait_until("the call was aborted", |upstream| upstream.aborted_calls() == number as u64 + 1)
            .await;
        assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    }
    assert_eq!(app.upstream.call_count(), 3, "no pipelined request was sent");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn client_reset_in_a_stalled_upload_ends_the_upstream_call() {
    let (upstream, address) = refrain_simulator::raw_http::listen().await;
    let app = TestApp::spawn_with(|config| {
        config.upstream.base_url = format!("http://{address}").parse().expect("a URL");
    })
    .await;
    let client = tokio::net::TcpStream::connect(app.address).await.expect("a connection");
    let head = "POST /suno/audios HTTP/1.1\r\nhost: h\r\ncontent-length: 100000000\r\n\r\n";
    let bytes = [head.as_bytes(), &[b'x'; 1 << 20]].concat();
    // The upstream reads the head only, so the buffers fill up.
    let mut call = None;
    let mut unsent = &bytes[..];
    loop {
        let wait = Duration::from_millis(300);
        let Ok(writable) = tokio::time::timeout(wait, client.writable()).await else { break };
        writable.expect("open");
        if let Ok(written) = client.try_write(unsent) {
            unsent = &unsent[written..];
        }
        if unsent.is_empty() {
            unsent = &bytes[head.len()..];
        }
        if call.is_none() {
            let mut accepted = RawPeer::accept(&upstream).await;
            accepted.read_head().await;
            call = Some(accepted);
        }
    }
    client.set_zero_linger().expect("set");
    drop(client);
    let left = Instant::now();
    // The upstream reads nothing until the client's connection is known to be closed.
    eventually("the connection was closed", async || {
        app.admin("/metrics").await.body.windows(21).any(|part| part == b"refrain_connections 0")
    })
    .await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    let _ = call.expect("a call").read_to_end().await;
}

#[tokio::test]
async fn stream_cut_by_the_upstream_never_looks_complete() {
    let app = TestApp::spawn().await;
    let pieces = vec!["{\"n\":1}\n".into(), "{\"n\":\"\u{20ac}".as_bytes()[..7].to_vec().into()];
    let rules = [
        Rule::any().stream("application/x-ndjson", pieces, Duration::from_millis(5)).unfinished(),
        Rule::any().body("application/json", "0123456789").cut_after(4),
        Rule::any().body("application/json", "0123456789").reset_after(4),
        Rule::any().body("application/json", "0123456789").wrong_length(4000),
        Rule::any().body("application/json", "0123456789").unfinished(),
    ];
    for (number, rule) in rules.into_iter().enumerate() {
        app.upstream.add_rule(rule.times(1));
        let (response, _) = forwarded(&app, &request(PAID, &[BEARER], "{}")).await;
        assert_eq!((response.status, response.is_complete), (200, false), "rule {number}: {response:?}");
    }
}

#[tokio::test]
async fn both_directions_of_one_exchange_stream_at_once() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::path("/mirror").mirror());
    let mut peer = RawPeer::connect(app.address).await;
    peer.write("POST /mirror HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    assert_eq!(peer.read_head().await.status(), 200);
    assert_eq!(peer.read_chunk().await.as_deref(), Some(&b"first"[..]));
    peer.write("6\r\nsecond\r\n").await;
    assert_eq!(peer.read_chunk().await.as_deref(), Some(&b"second"[..]));
    peer.write("0\r\n\r\n").await;
    assert_eq!(peer.read_chunk().await.as_deref(), Some(&b""[..]));
}

#[tokio::test]
async fn early_response_leaves_no_bytes_for_the_next_request() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::path("/early").error(413, "bad_request").before_body());
    app.upstream.add_rule(Rule::path("/next").body("text/plain", "next"));
    let inner = "POST /inner HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n".repeat(5000);
    for _ in 0..5 {
        let mut peer = RawPeer::connect(app.address).await;
        let bytes = request("POST /early", &[BEARER], &inner);
        let (first, rest) = bytes.split_at(200);
        peer.write(first).await;
        let response = peer.read_response().await;
        assert_eq!(response.status, 413);
        // The connection may be closed by now, which is correct too.
        let _ = peer.try_write(rest).await;
        let mut next = RawPeer::connect(app.address).await;
        next.write(request("GET /next", &[], "")).await;
        assert_eq!(next.read_response().await.text(), "next");
    }
    assert!(app.upstream.calls().iter().all(|call| call.path() != "/inner"));
}

/// An upstream that discards one request body and responds with its length.
fn sink() -> (std::net::SocketAddr, std::thread::JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head");
            head.extend(byte);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let length: u64 = length.expect("a length").parse().expect("a number");
        let read =
            std::io::copy(&mut Read::by_ref(&mut stream).take(length), &mut std::io::sink()).expect("a body");
        let body = read.to_string();
        let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(response.as_bytes()).expect("written");
    });
    (address, thread)
}

/// Peak resident memory of a process in bytes.
fn peak_memory(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn large_upload_and_large_download_take_no_memory() {
    const LENGTH: u64 = 200 << 20;
    const ALLOWED: u64 = 24 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let (address, thread) = sink();
    let program = Program::serve(&format!("http://{address}"), folder.path(), &[]);
    let before = peak_memory(program.id());
    let client = program.address;
    let response = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(client).expect("a connection");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        let head = format!("POST /producer/upload HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("written");
        std::io::copy(&mut std::io::repeat(b'x').take(LENGTH), &mut stream).expect("written");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        response
    })
    .await
    .expect("no panic");
    assert!(response.ends_with(&LENGTH.to_string()), "{response}");
    thread.join().expect("no panic");
    let grown = peak_memory(program.id()) - before;
    assert!(grown < ALLOWED, "{grown} bytes for an upload");

    let upstream = simulator().await;
    upstream.add_rule(Rule::any().large(LENGTH));
    let folder = tempfile::tempdir().expect("a folder");
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let before = peak_memory(program.id());
    let client = program.address;
    let read = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(client).expect("a connection");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        stream.write_all(b"GET /large HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").expect("written");
        std::io::copy(&mut stream, &mut std::io::sink()).expect("a response")
    })
    .await
    .expect("no panic");
    assert!(read > LENGTH, "{read}");
    let grown = peak_memory(program.id()) - before;
    assert!(grown < ALLOWED, "{grown} bytes for a download");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn slow_readers_take_little_memory() {
    const READERS: u64 = 40;
    const ALLOWED: u64 = 512 << 10;
    let upstream = simulator().await;
    upstream.add_rule(Rule::any().large(8 << 20));
    let folder = tempfile::tempdir().expect("a folder");
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let before = peak_memory(program.id());
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut peer = RawPeer::connect(program.address).await;
        peer.write("GET /large HTTP/1.1\r\nhost: h\r\n\r\n").await;
        peer.read_head().await;
        readers.push(peer);
    }
    let (mut peak, mut unchanged) = (0, 0);
    while unchanged < 5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = peak_memory(program.id());
        unchanged = if now == peak { unchanged + 1 } else { 0 };
        peak = now;
    }
    let each = (peak - before) / READERS;
    assert!(each < ALLOWED, "{each} bytes for each reader");
}
