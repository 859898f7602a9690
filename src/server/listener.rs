//! Listeners with a backlog for bursts of connections.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Number of established connections that the kernel keeps until they are accepted. Linux lowers it
/// to `net.core.somaxconn`, which is 4,096 by default.
const BACKLOG: u32 = 4096;

/// Listens on an address.
///
/// # Errors
/// The address is in use, or the process must not use it.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart does not wait for the end of the old connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use refrain_simulator::raw_http::soon;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn burst_of_connections_fits_the_backlog() {
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..500 {
            waiting.push(soon(TcpStream::connect(address)).await.unwrap());
        }
    }
}
