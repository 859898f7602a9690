//! Listeners, and the file descriptors that their connections need.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket};

/// Number of established connections that the kernel keeps until they are accepted. Linux lowers it
/// to `net.core.somaxconn`, which is 4,096 by default.
const BACKLOG: u32 = 4096;

/// Number of file descriptors that are not for clients and their upstream connections: the store
/// and the runtime need about 30, the admin port up to 64, and up to 64 upstream connections are
/// idle.
const RESERVED_DESCRIPTORS: u64 = 160;

/// Error numbers of `accept` for a lack of descriptors, in this process and in the system.
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

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

/// Returns the listening socket that a service manager passed to the process (`LISTEN_FDS`, see
/// `sd_listen_fds(3)`), if it passed one. It outlives the process, so connections wait in its backlog
/// during a restart. Only the first call returns it.
///
/// # Errors
/// There is more than one socket, or it is not a listening TCP socket.
pub fn inherited() -> io::Result<Option<TcpListener>> {
    let mut passed = ListenFd::from_env();
    if passed.len() > 1 {
        let message =
            format!("LISTEN_FDS passes {} sockets, but only the client port can be passed", passed.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let Some(listener) = passed.take_tcp_listener(0)? else { return Ok(None) };
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(Some)
}

/// Raises the process's soft limit of open files to the hard limit. The usual soft limit of 1,024
/// is for programs that use select(2).
pub fn raise_descriptor_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(kind = %error.kind(), "cannot raise the limit of open files");
    }
}

/// Returns the process's soft limit of open files, or the usual 1,024 if it cannot be read.
pub(super) fn descriptor_limit() -> u64 {
    rlimit::Resource::NOFILE.get_soft().unwrap_or(1024)
}

/// Returns the number of client connections for a descriptor limit, from 8 to 4,096: half of the
/// limit without [`RESERVED_DESCRIPTORS`], since a request of each client may need an upstream
/// connection.
pub(super) fn max_connections(descriptors: u64) -> usize {
    let connections = (descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 2).clamp(8, 4096);
    usize::try_from(connections).expect("4,096 fits into usize")
}

/// Whether `accept` failed because there is no free descriptor.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// Descriptor that a listener releases to accept a connection when all others are in use.
#[derive(Debug)]
pub(super) struct SpareDescriptor(Mutex<Option<File>>);

impl SpareDescriptor {
    pub(super) fn new() -> Self {
        let spare = Self(Mutex::new(None));
        spare.restore();
        spare
    }

    /// Releases the descriptor. Returns whether there was one.
    pub(super) fn release(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Opens the descriptor again, if it was released and another one is free.
    pub(super) fn restore(&self) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = File::open("/dev/null").ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use refrain_simulator::raw_http::soon;
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn max_connections_is_half_of_the_unreserved_descriptors() {
        for (descriptors, connections) in
            [(20_000, 4096), (8192, 4016), (1024, 432), (64, 8), (0, 8), (u64::MAX, 4096)]
        {
            assert_eq!(max_connections(descriptors), connections);
        }
    }

    #[tokio::test]
    async fn burst_of_connections_fits_the_backlog() {
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..500 {
            waiting.push(soon(TcpStream::connect(address)).await.unwrap());
        }
    }

    #[test]
    fn spare_descriptor_is_released_once() {
        let spare = SpareDescriptor::new();
        assert!(spare.release() && !spare.release());
        spare.restore();
        assert!(spare.release());
    }
}
