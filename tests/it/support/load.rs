//! Many clients at once, and records that name their token.

use std::net::SocketAddr;

use super::Reply;

/// A client of a proxy that may be killed: every request returns a `Result`.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub http: reqwest::Client,
}

/// Builds a client with its own connections.
pub fn client(address: SocketAddr) -> Client {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder()
        .retry(reqwest::retry::never())
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(std::time::Duration::from_secs(60))
        .build()
        .expect("a client");
    Client { address, http }
}

impl Client {
    /// Sends a `retrieve`. An incomplete response is an error.
    pub async fn retrieve(&self, token: &str, id: &str) -> reqwest::Result<Reply> {
        self.look_up(token, serde_json::json!({"action": "retrieve", "id": id}).to_string(), &[]).await
    }

    /// Sends a `retrieve_batch`.
    pub async fn batch(&self, token: &str, ids: &[String]) -> reqwest::Result<Reply> {
        self.look_up(token, serde_json::json!({"action": "retrieve_batch", "ids": ids}).to_string(), &[])
            .await
    }

    /// Sends any body with more headers.
    pub async fn look_up(
        &self,
        token: &str,
        body: impl Into<reqwest::Body>,
        headers: &[(&str, &str)],
    ) -> reqwest::Result<Reply> {
        let mut request = self
            .http
            .post(format!("http://{}/producer/tasks", self.address))
            .bearer_auth(token)
            .header("content-type", "application/json")
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Reply { status, headers, body: response.bytes().await? })
    }
}

/// A final record that names its id and its token, about `length` bytes long.
pub fn token_record(id: &str, token: &str, length: usize) -> String {
    let id = serde_json::Value::from(id);
    format!(
        "{{\"id\":{id},\"for\":\"{token}\",\"finished_at\":1767119785.250,\"response\":{{\"success\":true,\
         \"data\":\"{}\"}}}}",
        "x".repeat(length)
    )
}

/// Runs `work` for each of `places`, at most `at_once` at the same time. Returns the results in
/// order.
pub async fn in_parallel<T, F>(places: usize, at_once: usize, work: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(at_once));
    let tasks: Vec<_> = (0..places)
        .map(|place| {
            let (permits, work) = (std::sync::Arc::clone(&permits), work(place));
            tokio::spawn(async move {
                let _permit = permits.acquire_owned().await.expect("never closed");
                work.await
            })
        })
        .collect();
    let mut results = Vec::with_capacity(places);
    for task in tasks {
        results.push(task.await.expect("no panic"));
    }
    results
}
