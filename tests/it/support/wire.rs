//! A client that writes bytes: for what no HTTP library would send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PATIENCE;

/// One connection.
pub struct Wire {
    pub stream: TcpStream,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.expect("a connection") }
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("written");
    }

    /// Reads until the peer closes; `Err` holds what came before a reset.
    pub async fn read_to_end(&mut self) -> Result<Vec<u8>, Vec<u8>> {
        let mut read = Vec::new();
        match tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut read)).await {
            Ok(Ok(_)) => Ok(read),
            Ok(Err(_)) => Err(read),
            Err(_) => panic!("the connection stays open after {:?}", String::from_utf8_lossy(&read)),
        }
    }

    /// Reads until `end` was seen.
    pub async fn read_until(&mut self, end: &str) -> Vec<u8> {
        let mut read = Vec::new();
        let reading = async {
            while !read.windows(end.len()).any(|window| window == end.as_bytes()) {
                let mut byte = [0; 1];
                assert_eq!(self.stream.read(&mut byte).await.expect("readable"), 1, "closed after {read:?}");
                read.push(byte[0]);
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("in time");
        read
    }

    /// Sends one request and reads the answer to the connection's end.
    pub async fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> String {
        let mut wire = Self::connect(address).await;
        wire.write(request).await;
        let read = wire.read_to_end().await.unwrap_or_else(|read| read);
        String::from_utf8_lossy(&read).into_owned()
    }
}
