//! `refrain health`: checks the readiness of a running proxy on its admin port, for container
//! health checks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{CliError, print};

/// Time limit of the check. The time limit of a container's health check should be longer.
const TIMEOUT: Duration = Duration::from_secs(3);

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
    let status = timeout(TIMEOUT, request_status(address))
        .await
        .unwrap_or_else(|_| bail!("no response within {} s", TIMEOUT.as_secs()))
        .with_context(|| format!("not ready: {address}"))?;
    if status != 200 {
        return Err(CliError::Runtime(format!("not ready: {address} responded {status}")));
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

/// Sends `GET /readyz` and returns the status.
async fn request_status(address: SocketAddr) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // `HTTP/1.1 200`
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.context("the response is not HTTP")?;
    let digits = head.strip_prefix(b"HTTP/1.1 ").context("the response is not HTTP")?;
    str::from_utf8(digits)?.parse().context("the response is not HTTP")
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
