//! `refrain health`: checks the readiness of a running proxy on its admin port, for container
//! health checks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{CliError, print};
use crate::escape::printable;

/// Time limit of the check. The time limit of a container's health check should be longer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Largest part of the response that is read.
const MAX_RESPONSE_BYTES: u64 = 16 << 10;

pub(super) async fn health(admin: Option<SocketAddr>) -> Result<(), CliError> {
    let Some(listen) = admin else {
        return Err(CliError::Runtime("health needs the admin port, and admin.listen is \"off\"".to_owned()));
    };
    if listen.port() == 0 {
        return Err(CliError::Runtime(
            "health needs the admin port, and admin.listen has port 0, which means any free port".to_owned(),
        ));
    }
    let address = reachable(listen);
    let response = timeout(TIMEOUT, request_readiness(address))
        .await
        .unwrap_or_else(|_| bail!("no response within {} s", TIMEOUT.as_secs()))
        .with_context(|| format!("not ready: {address}"))?;
    let Readiness { status, reason } = response;
    if status != 200 {
        let reason = reason.map_or_else(String::new, |reason| format!(": {}", printable(&reason)));
        return Err(CliError::Runtime(format!("not ready: {address} responded {status}{reason}")));
    }
    print("ready\n");
    Ok(())
}

/// Returns an address to connect to: loopback for a listener on all addresses.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The response of `/readyz`.
struct Readiness {
    status: u16,
    reason: Option<String>,
}

/// Sends `GET /readyz`.
async fn request_readiness(address: SocketAddr) -> anyhow::Result<Readiness> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE_BYTES).read_to_end(&mut response).await?;
    // `HTTP/1.1 200`
    let digits = response.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let status = digits.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    Ok(Readiness { status: status.context("the response is not HTTP")?, reason: reason(&response) })
}

/// Returns the reason in the body of a response of `/readyz`. Other servers may have none.
fn reason(response: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        reason: String,
    }
    let (_, body) = str::from_utf8(response).ok()?.split_once("\r\n\r\n")?;
    Some(serde_json::from_str::<Body>(body).ok()?.reason)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn respond_with(response: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1:"));
            stream.write_all(response.as_bytes()).await.unwrap();
        });
        address
    }

    async fn failure(admin: Option<SocketAddr>) -> String {
        match health(admin).await {
            Err(CliError::Runtime(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn status_other_than_200_is_not_ready() {
        health(Some(respond_with("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await)).await.unwrap();
        let not_ready = respond_with("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(failure(Some(not_ready)).await, format!("not ready: {not_ready} responded 503"));
        let with_reason = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\r\n\
                           {\"status\":\"draining\",\"reason\":\"it is\\nstopping\"}";
        let not_ready = respond_with(with_reason).await;
        let expected = format!("not ready: {not_ready} responded 503: it is\\nstopping");
        assert_eq!(failure(Some(not_ready)).await, expected);
        assert!(failure(Some(respond_with("SSH-2.0-x and more\r\n").await)).await.contains("not HTTP"));
    }

    #[tokio::test]
    async fn unreachable_admin_port_is_reported() {
        assert!(failure(None).await.contains("\"off\""));
        assert!(failure(Some(SocketAddr::from(([127, 0, 0, 1], 0)))).await.contains("port 0"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = listener.local_addr().unwrap();
        drop(listener);
        assert!(failure(Some(closed)).await.starts_with(&format!("not ready: {closed}: ")));
    }

    #[test]
    fn listener_on_all_addresses_is_checked_on_loopback() {
        for (listen, expected) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")]
        {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), expected);
        }
    }
}
