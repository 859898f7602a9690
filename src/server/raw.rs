//! Raw sockets for tests: what hyper on the other side would hide or refuse to send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest wait for anything that must happen.
const SOON: Duration = Duration::from_secs(10);

/// Waits for what must happen soon.
pub(crate) async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(SOON, what).await.expect("this should have happened by now")
}

/// Waits until `condition` holds.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A listener on a free port of the loopback.
pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// One end of a connection, spoken by hand.
pub(crate) struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Peer {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(soon(TcpStream::connect(address)).await.unwrap())
    }

    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        Self::new(soon(listener.accept()).await.unwrap().0)
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Reads up to and with `end`.
    pub(crate) async fn read_until(&mut self, end: &str) -> String {
        soon(async {
            loop {
                let found = self.read.windows(end.len()).position(|window| window == end.as_bytes());
                if let Some(at) = found {
                    let read: Vec<u8> = self.read.drain(..at + end.len()).collect();
                    return String::from_utf8(read).unwrap();
                }
                let read = self.stream.read_buf(&mut self.read).await.unwrap();
                let so_far = String::from_utf8_lossy(&self.read);
                assert!(read > 0, "closed before {end:?}, after {so_far:?}");
            }
        })
        .await
    }

    /// The next head, request or response.
    pub(crate) async fn head(&mut self) -> String {
        self.read_until("\r\n\r\n").await
    }

    pub(crate) async fn exactly(&mut self, length: usize) -> String {
        soon(async {
            while self.read.len() < length {
                assert!(self.stream.read_buf(&mut self.read).await.unwrap() > 0, "closed too early");
            }
        })
        .await;
        String::from_utf8(self.read.drain(..length).collect()).unwrap()
    }

    /// Everything up to the other side's end; `Err` for a reset.
    pub(crate) async fn rest(&mut self) -> Result<String, String> {
        let end = soon(self.stream.read_to_end(&mut self.read)).await;
        let read = String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned();
        end.map(|_| read.clone()).map_err(|_| read)
    }

    /// A whole response with a `content-length`: head and body.
    pub(crate) async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = field(&head, "content-length").expect("a content-length").parse().unwrap();
        let body = self.exactly(length).await;
        (head, body)
    }

    /// Sends a request and reads the status of its answer, then leaves.
    pub(crate) async fn status_of(address: SocketAddr, request: impl AsRef<[u8]>) -> u16 {
        let mut peer = Self::connect(address).await;
        peer.write(request).await;
        status(&peer.head().await)
    }

    /// The socket, to go on with in another way.
    pub(crate) fn into_stream(self) -> TcpStream {
        assert!(self.read.is_empty(), "nothing was read ahead");
        self.stream
    }

    /// Ends with a reset rather than in good order.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

/// The status in a response's head.
pub(crate) fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The first field of a name in a head.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
