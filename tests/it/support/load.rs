//! Many clients at once: a client for any address whose calls may fail, and task texts that tell whose they are.

use std::net::SocketAddr;

use super::Reply;

/// A client of a proxy that may be killed under its hands: every call gives a result.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub http: reqwest::Client,
}

/// A client with connections of its own.
pub fn client(address: SocketAddr) -> Client {
    // The test client's own; the program brings its own set-up along. An error says that it is there already.
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
    /// A `retrieve`; an answer that did not come whole is an error.
    pub async fn retrieve(&self, token: &str, id: &str) -> reqwest::Result<Reply> {
        self.look_up(token, serde_json::json!({"action": "retrieve", "id": id}).to_string(), &[]).await
    }

    /// A `retrieve_batch`.
    pub async fn batch(&self, token: &str, ids: &[String]) -> reqwest::Result<Reply> {
        self.look_up(token, serde_json::json!({"action": "retrieve_batch", "ids": ids}).to_string(), &[])
            .await
    }

    /// Any body, with header fields of one's own.
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

/// A finished task whose text names its id and the token it is for, about `length` bytes long.
pub fn token_record(id: &str, token: &str, length: usize) -> String {
    let id = serde_json::Value::from(id);
    format!(
        "{{\"id\":{id},\"for\":\"{token}\",\"finished_at\":1767119785.250,\"response\":{{\"success\":true,\
         \"data\":\"{}\"}}}}",
        "x".repeat(length)
    )
}

/// Runs the work of `places` at the same time, at most `at_once` of them, and gives what came of it in order.
pub async fn in_parallel<T, F>(places: usize, at_once: usize, work: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let room = std::sync::Arc::new(tokio::sync::Semaphore::new(at_once));
    let tasks: Vec<_> = (0..places)
        .map(|place| {
            let (room, work) = (std::sync::Arc::clone(&room), work(place));
            tokio::spawn(async move {
                let _place = room.acquire_owned().await.expect("never closed");
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
