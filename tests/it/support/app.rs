//! The app in this process, on free ports, with its own store and a simulator as upstream.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use refrain::app::App;
use refrain::config::Config;
use refrain_simulator::raw_http::{RawPeer, RawResponse};
use refrain_simulator::{Simulator, SimulatorConfig};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::TIMEOUT;
use super::client::{Client, Reply, http_client};

/// Starts a simulator without a rate limit.
pub async fn simulator() -> Simulator {
    let config = SimulatorConfig { requests_per_second: None, ..SimulatorConfig::default() };
    Simulator::start(config).await.expect("a simulator")
}

/// The default configuration on free ports, with a rate that does not delay tests.
pub fn config(upstream: &str, folder: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.admin.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    config.server.shutdown_timeout = Duration::from_secs(5);
    config.upstream.base_url = upstream.parse().expect("a URL");
    config.upstream.requests_per_second = 1000.0;
    config.upstream.burst = 100;
    config.store.url = format!("sqlite://{}", folder.join("refrain.db").display());
    config
}

/// A running app.
pub struct TestApp {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub upstream: Simulator,
    pub http: reqwest::Client,
    pub folder: TempDir,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl TestApp {
    /// Starts the app with the default configuration.
    pub async fn spawn() -> Self {
        Self::spawn_with(|_| {}).await
    }

    /// Starts the app with a changed configuration.
    pub async fn spawn_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::spawn_at(simulator().await, tempfile::tempdir().expect("a folder"), change).await
    }

    /// Starts the app in front of this upstream, with its store in this folder.
    pub async fn spawn_at(upstream: Simulator, folder: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(&upstream.base_url(), folder.path());
        change(&mut config);
        let app = App::build(config).await.expect("the app starts");
        let (address, admin) = (app.client_address(), app.admin_address().expect("the admin port is on"));
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(app.run(shutdown.clone()));
        let http = http_client();
        Self { address, admin, upstream, http, folder, shutdown, running }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a `retrieve`.
    pub async fn retrieve(&self, token: &str, id: &str) -> Reply {
        self.look_up(token, &serde_json::json!({"action": "retrieve", "id": id}), &[]).await
    }

    /// Sends a `retrieve_batch`.
    pub async fn batch<S: AsRef<str>>(&self, token: &str, ids: &[S]) -> Reply {
        let ids: Vec<&str> = ids.iter().map(AsRef::as_ref).collect();
        self.look_up(token, &serde_json::json!({"action": "retrieve_batch", "ids": ids}), &[]).await
    }

    /// Sends a lookup with more headers.
    pub async fn look_up(&self, token: &str, body: &serde_json::Value, headers: &[(&str, &str)]) -> Reply {
        let client = Client { address: self.address, http: self.http.clone() };
        client.look_up(token, body.to_string(), headers).await.expect("a response")
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Reply {
        let response = request.send().await.expect("a response");
        Reply::read(response).await.expect("a complete body")
    }

    /// Sends a `GET` to the admin port.
    pub async fn admin(&self, path: &str) -> Reply {
        self.send(self.http.get(format!("http://{}{path}", self.admin))).await
    }

    /// Number of lookups that the upstream received.
    pub fn calls(&self) -> usize {
        self.upstream.lookup_calls().len()
    }

    /// Shuts down and waits for the end. Returns what another start needs.
    pub async fn stop(self) -> (Simulator, TempDir) {
        self.shutdown.cancel();
        tokio::time::timeout(TIMEOUT, self.running)
            .await
            .expect("it ends in time")
            .expect("no panic")
            .expect("no error");
        (self.upstream, self.folder)
    }

    /// Shuts down and starts again on the same store.
    pub async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// Shuts down and starts again on the same store, with a changed configuration.
    pub async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        let (upstream, folder) = self.stop().await;
        Self::spawn_at(upstream, folder, change).await
    }

    /// Sends exactly these bytes on a new connection.
    pub async fn raw(&self, request: impl AsRef<[u8]>) -> RawResponse {
        let mut peer = RawPeer::connect(self.address).await;
        peer.write(request).await;
        peer.read_response().await
    }

    /// Asserts that the task is not stored for this token: its lookup causes a call. Afterwards it
    /// is stored.
    pub async fn assert_not_stored(&self, token: &str, id: &str) {
        let before = self.calls();
        let reply = self.retrieve(token, id).await;
        assert_eq!((reply.status, reply.x_cache()), (StatusCode::OK, "MISS"), "{reply:?}");
        assert_eq!(self.calls(), before + 1);
    }

    /// Asserts that the task is stored for this token: its lookup causes no call.
    pub async fn assert_stored(&self, token: &str, id: &str) -> Reply {
        let before = self.upstream.call_count();
        let reply = self.retrieve(token, id).await;
        assert_eq!((reply.status, reply.x_cache()), (StatusCode::OK, "HIT"), "{reply:?}");
        assert_eq!(self.upstream.call_count(), before, "a hit causes no call");
        reply
    }
}
