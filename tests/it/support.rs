//! Clients of the proxy, and the proxy itself: in this process, or as a program of its own.

mod app;
mod client;
mod file;
mod program;
mod wire;

pub use app::{TestApp, simulator};
pub use client::{Client, Reply, client};
pub use file::StoreFile;
pub use program::{FREE_PORTS, Program, assert_one_line_error, health, run};
pub use refrain_simulator::raw_http::{RawPeer, RawResponse, TIMEOUT};
pub use wire::{error_code, exchange, get, request};

use std::time::Duration;

use refrain::config::Config;

/// The finished task of the vendor's documentation.
pub const DOCUMENTED: &[u8] = include_bytes!("../fixtures/retrieve.json");
/// The id of [`DOCUMENTED`].
pub const DOCUMENTED_ID: &str = "1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad";

/// Waits until a condition holds. Panics with `what` after [`TIMEOUT`].
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition().await {
        assert!(start.elapsed() < TIMEOUT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Makes every lookup of a pending task go upstream, once.
pub fn without_pending_cache(config: &mut Config) {
    config.tasks.pending_max_age = Duration::ZERO;
    config.upstream.max_retries = 0;
}

/// A final record of this id. `extra` distinguishes records of one id.
pub fn final_record(id: &str, extra: &str) -> String {
    let id = serde_json::Value::from(id);
    format!(r#"{{"id":{id},"extra":"{extra}","response":{{"success":true}},"finished_at":1767119785.589}}"#)
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

/// The body of a batch response with these records.
pub fn envelope<S: AsRef<str>>(records: &[S]) -> String {
    let items: Vec<&str> = records.iter().map(AsRef::as_ref).collect();
    format!(r#"{{"items":[{}],"count":{}}}"#, items.join(","), items.len())
}

/// Asserts that a body is an error of the documented shape with this code.
pub fn assert_error(reply: &Reply, status: u16, code: &str) {
    assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    let body = reply.json();
    assert_eq!((&body["success"], &body["error"]["code"]), (&false.into(), &code.into()), "{body}");
    assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    assert!(body["trace_id"].as_str().is_some_and(|trace_id| !trace_id.is_empty()), "{body}");
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
