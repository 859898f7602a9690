//! A client like the vendor's SDK: a loop of lookup and pause. 429 and 5xx are retried with the
//! documented backoff.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::scenario::{Client, Id, Lookup, Submitter};

/// Number of retries of a lookup: after 1, 2, 4, 8 and 16 s, plus up to a second.
const RETRIES: u32 = 5;

/// Observations of all clients of one side.
#[derive(Default)]
pub(crate) struct Log {
    inner: Mutex<Observations>,
}

#[derive(Default)]
pub(crate) struct Observations {
    /// Requests, including retries.
    pub(crate) polls: u64,
    pub(crate) too_many_requests: u64,
    /// All other errors and wrong responses, by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Longest time from a request to the end of its response.
    pub(crate) longest_response: Duration,
    /// Finish times by the index of the task in the scenario.
    pub(crate) finished: HashMap<usize, Instant>,
    /// When clients received final records.
    pub(crate) known: Vec<Known>,
    /// Requests that started a task, and those that were refused or failed.
    pub(crate) accepted_submissions: u64,
    pub(crate) refused_submissions: u64,
}

/// A client received the final record of a task.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    /// Time from the finish to the response.
    pub(crate) after: Duration,
    /// The client's pause between two lookups.
    pub(crate) pause: Duration,
}

impl Log {
    /// For short sections only, never held across an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Observations> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observations {
    fn count_error(&mut self, kind: impl Into<String>) {
        *self.errors.entry(kind.into()).or_default() += 1;
    }
}

/// A running client.
pub(crate) struct Poller {
    pub(crate) client: Client,
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) token: String,
    /// The ids to look up.
    pub(crate) ids: Vec<String>,
    pub(crate) log: Arc<Log>,
}

/// The fields of a record that a client reads.
#[derive(Deserialize)]
struct Record {
    id: Option<String>,
    finished_at: Option<f64>,
}

#[derive(Deserialize)]
struct Batch {
    items: Vec<Record>,
    count: usize,
}

struct Response {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Bytes,
}

/// Result of one request.
enum Attempt {
    Success(Bytes),
    Retry { retry_after: Option<Duration> },
    Failure,
}

impl Poller {
    /// Polls until the record is final. A dashboard, and a client with an unknown id, polls without
    /// end.
    pub(crate) async fn run(self, start: Instant) {
        let Client { starts_after, pause, lookup, .. } = &self.client;
        tokio::time::sleep_until(start + *starts_after).await;
        let body = match lookup {
            Lookup::One(_) => json!({"action": "retrieve", "id": self.ids[0]}),
            Lookup::Many(_) => json!({"action": "retrieve_batch", "ids": self.ids}),
        };
        let body = Bytes::from(body.to_string());
        let mut known = HashSet::new();
        loop {
            if let Some(response) = self.look_up(&body).await {
                self.read(&response, &mut known);
                if matches!(lookup, Lookup::One(_)) && !known.is_empty() {
                    return;
                }
            }
            tokio::time::sleep(*pause).await;
        }
    }

    /// Sends a lookup and its retries. `None` after the last retry and for errors that are not
    /// retried.
    async fn look_up(&self, body: &Bytes) -> Option<Bytes> {
        for attempt in 0..=RETRIES {
            self.log.lock().polls += 1;
            let began = Instant::now();
            let result = self.send(body.clone()).await;
            match self.count(result, began.elapsed()) {
                Attempt::Success(body) => return Some(body),
                Attempt::Failure => return None,
                Attempt::Retry { retry_after } if attempt < RETRIES => {
                    let pause = retry_after.unwrap_or(Duration::from_secs(1 << attempt));
                    tokio::time::sleep(pause + Duration::from_millis(fastrand::u64(0..1000))).await;
                }
                Attempt::Retry { .. } => {}
            }
        }
        None
    }

    /// Counts the result of a request.
    fn count(&self, result: reqwest::Result<Response>, took: Duration) -> Attempt {
        let mut seen = self.log.lock();
        seen.longest_response = seen.longest_response.max(took);
        match result {
            Ok(Response { status: StatusCode::OK, body, .. }) => return Attempt::Success(body),
            Ok(Response { status: StatusCode::TOO_MANY_REQUESTS, retry_after, .. }) => {
                seen.too_many_requests += 1;
                return Attempt::Retry { retry_after };
            }
            Ok(Response { status, retry_after, .. }) => {
                seen.count_error(status.as_str());
                if status.is_server_error() {
                    return Attempt::Retry { retry_after };
                }
                return Attempt::Failure;
            }
            Err(error) if error.is_timeout() => seen.count_error("timeout"),
            Err(_) => seen.count_error("no response"),
        }
        Attempt::Retry { retry_after: None }
    }

    async fn send(&self, body: Bytes) -> reqwest::Result<Response> {
        let request = self.http.post(&self.url).bearer_auth(&self.token);
        let mut request = request.header("content-type", "application/json").body(body);
        if let Some(prefer) = self.client.prefer {
            request = request.header("prefer", prefer);
        }
        let response = request.send().await?;
        let retry_after =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let status = response.status();
        Ok(Response {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            body: response.bytes().await?,
        })
    }

    /// Checks the ids of a response, and records tasks that are final for the first time.
    fn read(&self, body: &[u8], known: &mut HashSet<usize>) {
        let now = Instant::now();
        let (requested, wrong) = (self.client.lookup.ids().iter().zip(&self.ids), "wrong response");
        let mut existing = requested.filter(|(id, _)| matches!(id, Id::Task(_)));
        let items = match &self.client.lookup {
            Lookup::One(_) => serde_json::from_slice(body).map(|task| vec![task]),
            Lookup::Many(_) => serde_json::from_slice(body).map(|Batch { mut items, count }| {
                if count != items.len() {
                    items.clear();
                }
                items
            }),
        };
        let mut seen = self.log.lock();
        let Ok(items) = items else { return seen.count_error(wrong) };
        for item in items.iter().filter(|item| item.id.is_some()) {
            let Some((Id::Task(task), id)) = existing.next() else { return seen.count_error(wrong) };
            if item.id.as_ref() != Some(id) {
                return seen.count_error(wrong);
            }
            if item.finished_at.is_none() || !known.insert(*task) {
                continue;
            }
            match seen.finished.get(task) {
                Some(at) => {
                    let after = now.saturating_duration_since(*at);
                    seen.known.push(Known { after, pause: self.client.pause });
                }
                None => seen.count_error("final too early"),
            }
        }
        if existing.next().is_some() {
            seen.count_error(wrong);
        }
    }
}

/// A running client that starts tasks. It never repeats a request: each one is paid.
pub(crate) struct TaskStarter {
    pub(crate) submitter: Submitter,
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) log: Arc<Log>,
}

impl TaskStarter {
    /// Starts tasks without end.
    pub(crate) async fn run(self, start: Instant) {
        let mut at = start + self.submitter.interval;
        loop {
            tokio::time::sleep_until(at).await;
            let request = self.http.post(&self.url).bearer_auth(&self.token);
            let body = json!({"action": "generate", "prompt": "rain", "async": true});
            let response = request.header("content-type", "application/json").body(body.to_string()).send();
            let is_accepted = response.await.is_ok_and(|response| response.status().is_success());
            let mut seen = self.log.lock();
            match is_accepted {
                true => seen.accepted_submissions += 1,
                false => seen.refused_submissions += 1,
            }
            drop(seen);
            at += self.submitter.interval;
        }
    }
}
