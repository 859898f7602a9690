//! Requests as raw bytes, for what no HTTP library would send.

use std::net::SocketAddr;

use refrain_simulator::raw_http::{RawPeer, RawResponse};

/// The bytes of a request. `line` is method and target; `host` and `content-length` are added.
pub fn request(line: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut head = format!("{line} HTTP/1.1\r\nhost: proxy.test\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// Sends a `GET` on a new connection.
pub async fn get(address: SocketAddr, path: &str) -> RawResponse {
    let mut peer = RawPeer::connect(address).await;
    peer.write(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n")).await;
    peer.read_response().await
}

/// Sends bytes on a new connection and reads until it is closed.
pub async fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut peer = RawPeer::connect(address).await;
    peer.write(bytes).await;
    let received = peer.read_to_end().await.unwrap_or_else(|received| received);
    String::from_utf8_lossy(&received).into_owned()
}

/// `error.code` of a body, empty if it has none.
pub fn error_code(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    body["error"]["code"].as_str().unwrap_or_default().to_owned()
}
