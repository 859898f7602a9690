//! A crowd of clients like the vendor's SDK: a lookup, a pause, the next lookup, with the documented
//! backoff.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Pause between two lookups of a task.
const POLL_PAUSE: Duration = Duration::from_secs(1);

/// Pause between two refreshes of the dashboard.
const REFRESH_PAUSE: Duration = Duration::from_secs(3);

/// Number of retries of a lookup: after 1, 2, 4, 8 and 16 s, plus up to a second.
const RETRIES: u32 = 5;

/// Service whose tasks the dashboard shows.
pub(super) const DASHBOARD_SERVICE: &str = "producer";

/// Clients that share a token and a base URL.
pub(super) struct Crowd {
    http: Client<HttpConnector, Full<Bytes>>,
    base_url: String,
    token: &'static str,
    observed: Mutex<Observations>,
}

/// Observations of all clients of a crowd.
#[derive(Clone, Default)]
pub(super) struct Observations {
    /// Responses with status 429.
    pub(super) rate_limited: u64,
    /// Requests that failed otherwise.
    pub(super) failed: u64,
    /// Time from the end of each task to the response with its final record.
    pub(super) delays: Vec<Duration>,
    /// Tasks on the dashboard.
    shown: Vec<String>,
}

impl Crowd {
    pub(super) fn new(base_url: String, token: &'static str) -> Arc<Self> {
        let http = Client::builder(TokioExecutor::new()).build_http();
        Arc::new(Self { http, base_url, token, observed: Mutex::default() })
    }

    pub(super) fn token(&self) -> &'static str {
        self.token
    }

    pub(super) fn observations(&self) -> Observations {
        self.lock().clone()
    }

    /// Adds a task to the dashboard.
    pub(super) fn show(&self, id: &str) {
        self.lock().shown.push(id.to_owned());
    }

    /// Looks up one task until it is final.
    pub(super) async fn poll(self: Arc<Self>, service: &'static str, id: String, ends_at: Instant) {
        loop {
            let record = self.look_up(service, &json!({"action": "retrieve", "id": id})).await;
            if record.is_some_and(|record| record["id"] == id.as_str() && record["finished_at"].is_f64()) {
                self.lock().delays.push(ends_at.elapsed());
                return;
            }
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }

    /// Looks up all tasks of the dashboard again and again. Does not return.
    pub(super) async fn refresh_dashboard(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REFRESH_PAUSE).await;
            let ids = self.lock().shown.clone();
            if !ids.is_empty() {
                self.look_up(DASHBOARD_SERVICE, &json!({"action": "retrieve_batch", "ids": ids})).await;
            }
        }
    }

    /// Sends a lookup with its retries. Returns `None` if all of them failed.
    async fn look_up(&self, service: &str, body: &Value) -> Option<Value> {
        for retry in 0..=RETRIES {
            match self.send(service, body).await {
                Ok((StatusCode::OK, body)) => return serde_json::from_slice(&body).ok(),
                Ok((StatusCode::TOO_MANY_REQUESTS, _)) => self.lock().rate_limited += 1,
                Ok(_) | Err(_) => self.lock().failed += 1,
            }
            if retry < RETRIES {
                tokio::time::sleep(Duration::from_secs_f64(f64::from(1 << retry) + fastrand::f64())).await;
            }
        }
        None
    }

    async fn send(&self, service: &str, body: &Value) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::post(format!("{}/{service}/tasks", self.base_url))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        let response = self.http.request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// For short sections only, never held across an await.
    fn lock(&self) -> MutexGuard<'_, Observations> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
