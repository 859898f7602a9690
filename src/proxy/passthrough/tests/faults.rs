//! Faults of the upstream or the client, as the other side sees them.

use super::*;

/// Asserts that a response is an error of refrain, names the upstream and reveals no text of a
/// library.
fn assert_own_error(proxy: &Proxy, response: &RawResponse, status: u16) {
    let (head, body) = (&response.head, response.text());
    assert_eq!(response.status, status, "{head}{body}");
    assert!(head.header("proxy-status").is_some_and(|value| value.starts_with("refrain; error=")), "{head}");
    assert!(body.starts_with(r#"{"success":false,"error":{"code":""#), "{body}");
    assert!(body.contains(r#""message":"refrain "#) && body.contains(&proxy.upstream_host), "{body}");
    for secret in ["hyper", "http://", "os error", "chunk"] {
        assert!(!body.contains(secret), "{body}");
    }
}

/// The client's connection is used again, the upstream's is not.
async fn assert_next_request_uses_a_new_upstream_connection(proxy: &Proxy, client: &mut RawPeer) {
    client.write(get("/second")).await;
    let mut other = RawPeer::accept(&proxy.upstream).await;
    assert!(other.read_head().await.starts_with("GET /second "));
    // Closed as well, so that the next round does not use it.
    other.write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(client.read_response().await.body, "ok");
}

#[tokio::test]
async fn broken_chunk_of_a_client_is_a_400() {
    let proxy = Proxy::spawn().await;
    let request = post("transfer-encoding: chunked\r\n", "2\r\nhi\r\nZZ\r\n");
    let (mut client, _upstream, _) = proxy.exchange(&request).await;
    let response = client.read_response().await;
    assert_own_error(&proxy, &response, 400);
    assert_eq!(client.read_to_end().await.unwrap(), "");
}

#[tokio::test]
async fn client_that_stops_sending_gets_a_408() {
    let proxy = Proxy::spawn().await;
    let (mut client, _upstream, _) = proxy.exchange(&post("content-length: 5\r\n", "hi")).await;
    let response = client.read_response().await;
    assert_own_error(&proxy, &response, 408);
    assert_eq!(client.read_to_end().await.unwrap(), "");
}

#[tokio::test]
async fn ambiguous_response_is_a_502_and_its_connection_is_closed() {
    let proxy = Proxy::spawn().await;
    for response in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk",
        "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/9.9 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "nonsense\r\n\r\n",
    ] {
        let (mut client, mut upstream, _) = proxy.exchange(&get("/first")).await;
        upstream.write(response).await;
        let refusal = client.read_response().await;
        assert_own_error(&proxy, &refusal, 502);
        assert_next_request_uses_a_new_upstream_connection(&proxy, &mut client).await;
    }
}

#[tokio::test]
async fn bytes_after_a_complete_response_close_its_connection() {
    let proxy = Proxy::spawn().await;
    for extra in ["x", "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged"] {
        let (mut client, mut upstream, _) = proxy.exchange(&get("/first")).await;
        upstream.write(format!("{OK}{extra}")).await;
        assert_eq!(client.read_response().await.body, "ok");
        assert_next_request_uses_a_new_upstream_connection(&proxy, &mut client).await;
    }
}

#[tokio::test]
async fn request_is_never_sent_twice() {
    let proxy = Proxy::spawn().await;
    // On a new connection and on a reused one.
    for warm in [false, true] {
        let mut client = proxy.client().await;
        let mut upstream = if warm {
            client.write(get("/warm")).await;
            let mut upstream = RawPeer::accept(&proxy.upstream).await;
            upstream.read_head().await;
            upstream.write(OK).await;
            client.read_response().await;
            client.write(post("content-length: 4\r\n", "paid")).await;
            upstream
        } else {
            client.write(post("content-length: 4\r\n", "paid")).await;
            RawPeer::accept(&proxy.upstream).await
        };
        assert!(upstream.read_head().await.starts_with("POST /x "));
        assert_eq!(upstream.read_exact(4).await, "paid");
        drop(upstream);
        assert_own_error(&proxy, &client.read_response().await, 502);
        proxy.assert_no_connection().await;
    }
}

#[tokio::test]
async fn connection_closed_by_the_upstream_is_not_reused() {
    let proxy = Proxy::spawn().await;
    let (mut client, mut upstream, _) = proxy.exchange(&get("/first")).await;
    upstream.write(OK).await;
    client.read_response().await;
    drop(upstream);
    for _ in 0..3 {
        let (mut client, mut upstream, _) = proxy.exchange(&post("content-length: 4\r\n", "paid")).await;
        upstream.read_exact(4).await;
        upstream.write(OK).await;
        assert_eq!(client.read_response().await.body, "ok");
        drop(upstream);
    }
}

#[tokio::test]
async fn early_response_does_not_affect_the_next_request() {
    let proxy = Proxy::spawn().await;
    let (mut client, mut upstream, _) = proxy.exchange(&post("content-length: 1000000\r\n", "begin")).await;
    upstream.write(OK).await;
    assert_eq!(client.read_response().await.body, "ok");
    // Meanwhile another client gets another connection.
    let (mut second, mut other, head) = proxy.exchange(&get("/second")).await;
    assert!(head.starts_with("GET /second "));
    other.write(OK).await;
    assert_eq!(second.read_response().await.body, "ok");
    // The rest of the first body still goes to the first connection.
    client.write("a".repeat(1_000_000 - 5)).await;
    assert_eq!(upstream.read_exact(1_000_000).await.len(), 1_000_000);
}

#[tokio::test]
async fn refused_connection_is_a_502() {
    let (closed, address) = listen().await;
    drop(closed);
    let (unused, _) = listen().await;
    let proxy = Proxy::spawn_with(unused, &config(address)).await;
    let mut client = proxy.client().await;
    client.write(get("/")).await;
    let response = client.read_response().await;
    assert_own_error(&proxy, &response, 502);
    assert_eq!(response.header("proxy-status"), Some("refrain; error=connection_refused"));
}

#[tokio::test]
async fn unresolvable_name_is_a_502() {
    let (unused, address) = listen().await;
    let mut config = config(address);
    config.base_url = "http://no-such-host.invalid".parse().unwrap();
    config.connect_timeout = Duration::from_secs(20);
    let proxy = Proxy::spawn_with(unused, &config).await;
    let mut client = proxy.client().await;
    client.write(get("/")).await;
    let response = client.read_response().await;
    assert_own_error(&proxy, &response, 502);
    assert_eq!(response.header("proxy-status"), Some("refrain; error=dns_error"));
}

#[tokio::test]
async fn connection_timeout_is_a_504() {
    // It accepts the connection but never starts TLS.
    let (upstream, address) = listen().await;
    let mut config = config(address);
    config.base_url = format!("https://{address}").parse().unwrap();
    let proxy = Proxy::spawn_with(upstream, &config).await;
    let mut client = proxy.client().await;
    client.write(get("/")).await;
    let _silent = RawPeer::accept(&proxy.upstream).await;
    let response = client.read_response().await;
    assert_own_error(&proxy, &response, 504);
    assert_eq!(response.header("proxy-status"), Some("refrain; error=connection_timeout"));
}

#[tokio::test]
async fn slow_upstream_has_no_time_limit() {
    let proxy = Proxy::spawn().await;
    let (mut client, mut upstream, _) = proxy.exchange(&get("/")).await;
    // Longer than `connect_timeout`.
    tokio::time::sleep(Duration::from_millis(700)).await;
    upstream.write(OK).await;
    assert_eq!(client.read_response().await.body, "ok");
}
