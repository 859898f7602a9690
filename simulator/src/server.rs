//! Listener, accept loop and end of the running server.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::exchange::{self, ConnectionEnd};
use super::state::{OpenConnection, SharedState};

/// Listener with its connections. Closes them when dropped.
pub(super) struct RunningServer {
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl RunningServer {
    /// Listens on an address. Returns the server and its real address, which differs if the port
    /// was 0.
    pub(super) async fn start(
        address: SocketAddr,
        state: Arc<SharedState>,
    ) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let server = Self { cancel: CancellationToken::new(), tracker: TaskTracker::new() };
        let (cancel, tracker) = (server.cancel.clone(), server.tracker.clone());
        server.tracker.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = accept(listener, &state, &cancel, &tracker) => {}
            }
        });
        Ok((server, address))
    }

    /// Closes the listener and every connection, and returns once all are closed.
    pub(super) async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    state: &Arc<SharedState>,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor is free, or the client has left. Only time helps.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (state, cancel) = (Arc::clone(state), cancel.clone());
        tracker.spawn(async move {
            let open = OpenConnection::new(&state);
            tokio::select! {
                () = cancel.cancelled() => {}
                () = serve(&state, Connection::new(stream), open.number) => {}
            }
        });
    }
}

async fn serve(state: &SharedState, mut connection: Connection, number: u64) {
    loop {
        let end = match connection.read_head().await {
            Ok(Some(head)) => exchange::run(state, &mut connection, number, head).await,
            Ok(None) => ConnectionEnd::Close,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                exchange::refuse(state, &mut connection).await
            }
            Err(_) => return,
        };
        match end {
            ConnectionEnd::KeepAlive => {}
            ConnectionEnd::Close => return connection.close().await,
            ConnectionEnd::Reset => return connection.reset(),
        }
    }
}
