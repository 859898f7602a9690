//! Bodies that arrive in parts, break off, or lose their client.

use super::*;

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test]
async fn each_byte_is_forwarded_at_once() {
    let proxy = Proxy::spawn().await;
    let (mut client, mut upstream, _) = proxy.exchange(&get("/")).await;
    upstream.write(CHUNKED).await;
    let head = client.read_head().await;
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    for part in ["a", "{", "b"] {
        upstream.write(format!("1\r\n{part}\r\n")).await;
        assert_eq!(client.read_until(part).await, format!("1\r\n{part}"));
        client.read_exact(2).await;
    }
    upstream.write("0\r\n\r\n").await;
    assert_eq!(client.read_exact(5).await, "0\r\n\r\n");
}

#[tokio::test]
async fn request_and_response_stream_at_the_same_time() {
    let proxy = Proxy::spawn().await;
    let (mut client, mut upstream, _) = proxy.exchange(&post("content-length: 4\r\n", "a")).await;
    assert_eq!(upstream.read_exact(1).await, "a");
    upstream.write(format!("{CHUNKED}1\r\nA\r\n")).await;
    client.read_head().await;
    assert_eq!(client.read_exact(6).await, "1\r\nA\r\n");
    client.write("bcd").await;
    assert_eq!(upstream.read_exact(3).await, "bcd");
    upstream.write("0\r\n\r\n").await;
    assert_eq!(client.read_exact(5).await, "0\r\n\r\n");
}

#[tokio::test]
async fn truncated_response_is_truncated_for_the_client() {
    let proxy = Proxy::spawn().await;
    for (head, body) in [
        (CHUNKED, "2\r\nok\r\n"),
        (CHUNKED, "2\r\nok\r\nZZ\r\n"),
        (CHUNKED, "5\r\nok"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "ok"),
    ] {
        let (mut client, mut upstream, _) = proxy.exchange(&get("/")).await;
        upstream.write(format!("{head}{body}")).await;
        let head = client.read_head().await;
        drop(upstream);
        let rest = client.read_to_end().await.unwrap_or_else(|read| read);
        assert!(
            String::from_utf8_lossy(&rest).contains("ok"),
            "the part before the cut is forwarded: {rest:?}"
        );
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
        assert!(head.header("content-length").is_none_or(|length| length == "9"));
    }
}

#[tokio::test]
async fn reset_of_a_response_without_length_truncates_it() {
    let proxy = Proxy::spawn().await;
    // Without length and chunks, the end of the connection ends the body. A reset is an error.
    let (mut client, mut upstream, _) = proxy.exchange(&get("/")).await;
    upstream.write("HTTP/1.1 200 OK\r\n\r\nok").await;
    client.read_head().await;
    assert_eq!(client.read_until("ok").await, "2\r\nok");
    upstream.reset();
    let rest = client.read_to_end().await.unwrap_or_else(|read| read);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
    // An orderly close is a complete body.
    let (mut client, mut upstream, _) = proxy.exchange(&get("/")).await;
    upstream.write("HTTP/1.0 200 OK\r\n\r\nok").await;
    drop(upstream);
    assert!(client.read_head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(client.read_until("0\r\n\r\n").await, "2\r\nok\r\n0\r\n\r\n");
}

#[tokio::test]
async fn disconnect_of_the_client_ends_the_upstream_call() {
    let proxy = Proxy::spawn().await;
    let second = Duration::from_secs(1);
    // Before the response.
    let (client, mut upstream, _) = proxy.exchange(&get("/")).await;
    drop(client);
    tokio::time::timeout(second, upstream.read_to_end()).await.expect("the call ends within a second").ok();
    // In the middle of the response.
    let (mut client, mut upstream, _) = proxy.exchange(&get("/")).await;
    upstream.write(format!("{CHUNKED}2\r\nok\r\n")).await;
    client.read_until("ok").await;
    drop(client);
    tokio::time::timeout(second, upstream.read_to_end()).await.expect("the call ends within a second").ok();
    // In the middle of the request body, which must not look complete.
    let (client, mut upstream, _) =
        proxy.exchange(&post("transfer-encoding: chunked\r\n", "1\r\na\r\n")).await;
    upstream.read_until("a").await;
    drop(client);
    let rest =
        tokio::time::timeout(second, upstream.read_to_end()).await.expect("the call ends within a second");
    assert!(!rest.unwrap_or_default().ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn large_body_is_forwarded_in_both_directions() {
    const SIZE: usize = 5 << 20;
    let proxy = Proxy::spawn().await;
    let body = "0123456789abcdef".repeat(SIZE / 16);
    let mut client = proxy.client().await;
    let request = post(&format!("content-length: {SIZE}\r\n"), &body);
    let client = tokio::spawn(async move {
        client.write(request).await;
        client
    });
    let mut upstream = RawPeer::accept(&proxy.upstream).await;
    upstream.read_head().await;
    assert!(upstream.read_exact(SIZE).await == body);
    let mut client = soon(client).await.unwrap();
    let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n{body}");
    let upstream = tokio::spawn(async move {
        upstream.write(response).await;
        upstream
    });
    assert!(client.read_response().await.body == body);
    drop(soon(upstream).await.unwrap());
}

#[tokio::test]
async fn small_response_is_buffered_and_a_large_one_streams() {
    let (upstream, address) = listen().await;
    let (_, passthrough) = crate::upstream::build_clients(&config(address)).unwrap();
    for (response, whole) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfour".to_owned(), true),
        (format!("{CHUNKED}4\r\nfour\r\n0\r\n\r\n"), true),
        (format!("{CHUNKED}4\r\nfour\r\n0\r\nx-sum: 1\r\n\r\n"), true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlarge".to_owned(), false),
        (format!("{CHUNKED}3\r\nlar\r\n2\r\nge\r\n0\r\n\r\n"), false),
    ] {
        let has_trailers = response.contains("x-sum");
        let request = Request::post("/x").body(Body::from("{}")).unwrap();
        let passthrough = passthrough.clone();
        let relayed = tokio::spawn(async move { forward_buffered(&passthrough, request, None, 4).await });
        let mut peer = RawPeer::accept(&upstream).await;
        peer.read_head().await;
        peer.read_exact(2).await;
        peer.write(response).await;
        drop(peer);
        let response = match soon(relayed).await.unwrap().unwrap() {
            ForwardedResponse::Buffered(buffered) => {
                assert!(whole);
                buffered.into_response()
            }
            ForwardedResponse::Streaming(response) => {
                assert!(!whole);
                response
            }
        };
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().is_some(), has_trailers);
        assert_eq!(body.to_bytes(), if whole { "four" } else { "large" });
    }
}

#[tokio::test]
async fn truncated_response_is_not_buffered() {
    let (upstream, address) = listen().await;
    let (_, passthrough) = crate::upstream::build_clients(&config(address)).unwrap();
    let request = Request::post("/x").body(Body::empty()).unwrap();
    let relayed = tokio::spawn(async move { forward_buffered(&passthrough, request, None, 100).await });
    let mut peer = RawPeer::accept(&upstream).await;
    peer.read_head().await;
    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok").await;
    drop(peer);
    let ForwardedResponse::Streaming(response) = soon(relayed).await.unwrap().unwrap() else {
        panic!("buffered")
    };
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ok");
    assert!(body.frame().await.unwrap().is_err());
}
