//! A client as the vendor's SDK makes them: a loop of look-up and pause, 429 and 5xx tried again with the documented
//! backoff.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::scenario::{Asks, Client, Id};

/// How often a look-up is tried again: after 1, 2, 4, 8 and 16 s, plus up to a second.
const RETRIES: u32 = 5;

/// What all clients of one side saw.
#[derive(Default)]
pub(crate) struct Log {
    inner: Mutex<Seen>,
}

#[derive(Default)]
pub(crate) struct Seen {
    /// Requests sent, repeated ones included.
    pub(crate) polls: u64,
    pub(crate) too_many_requests: u64,
    /// Everything else that is not the answer asked for, by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// The longest time from a request to the end of its answer.
    pub(crate) longest_answer: Duration,
    /// When tasks finished, by their place in the scenario.
    pub(crate) finished: HashMap<usize, Instant>,
    /// How clients learnt of finishes.
    pub(crate) known: Vec<Known>,
}

/// A client learnt that a task is finished.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    /// From the finish to the client knowing it.
    pub(crate) after: Duration,
    /// The client's pause between two looks.
    pub(crate) pause: Duration,
}

impl Log {
    /// Short sections only, never held over an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn count_error(&mut self, kind: impl Into<String>) {
        *self.errors.entry(kind.into()).or_default() += 1;
    }
}

/// A client at work.
pub(crate) struct Poller {
    pub(crate) client: Client,
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) token: String,
    /// The ids asked for, as the upstream spells them.
    pub(crate) ids: Vec<String>,
    pub(crate) log: Arc<Log>,
}

/// The part of a task that a client looks at.
#[derive(Deserialize)]
struct Shown {
    id: Option<String>,
    finished_at: Option<f64>,
}

#[derive(Deserialize)]
struct ShownBatch {
    items: Vec<Shown>,
    count: usize,
}

struct Response {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Bytes,
}

/// What a client does about a response.
enum RecheckResult {
    Answer(Bytes),
    TryAgain { retry_after: Option<Duration> },
    Final,
}

impl Poller {
    /// Asks until everything is known; a dashboard, and who asks for an unknown id, without end.
    pub(crate) async fn run(self, start: Instant) {
        let Client { starts_after, pause, asks, .. } = &self.client;
        tokio::time::sleep_until(start + *starts_after).await;
        let body = match asks {
            Asks::One(_) => json!({"action": "retrieve", "id": self.ids[0]}),
            Asks::Many(_) => json!({"action": "retrieve_batch", "ids": self.ids}),
        };
        let body = Bytes::from(body.to_string());
        let mut known = HashSet::new();
        loop {
            if let Some(answer) = self.look_up(&body).await {
                self.read(&answer, &mut known);
                if matches!(asks, Asks::One(_)) && !known.is_empty() {
                    return;
                }
            }
            tokio::time::sleep(*pause).await;
        }
    }

    /// One look-up with its retries; `None` if they are used up, or for an error that no retry helps.
    async fn look_up(&self, body: &Bytes) -> Option<Bytes> {
        for attempt in 0..=RETRIES {
            self.log.lock().polls += 1;
            let began = Instant::now();
            let result = self.send(body.clone()).await;
            match self.judge(result, began.elapsed()) {
                RecheckResult::Answer(answer) => return Some(answer),
                RecheckResult::Final => return None,
                RecheckResult::TryAgain { retry_after } if attempt < RETRIES => {
                    let pause = retry_after.unwrap_or(Duration::from_secs(1 << attempt));
                    tokio::time::sleep(pause + Duration::from_millis(fastrand::u64(0..1000))).await;
                }
                RecheckResult::TryAgain { .. } => {}
            }
        }
        None
    }

    /// Counts what came of a request.
    fn judge(&self, result: reqwest::Result<Response>, took: Duration) -> RecheckResult {
        let mut seen = self.log.lock();
        seen.longest_answer = seen.longest_answer.max(took);
        match result {
            Ok(Response { status: StatusCode::OK, body, .. }) => return RecheckResult::Answer(body),
            Ok(Response { status: StatusCode::TOO_MANY_REQUESTS, retry_after, .. }) => {
                seen.too_many_requests += 1;
                return RecheckResult::TryAgain { retry_after };
            }
            Ok(Response { status, retry_after, .. }) => {
                seen.count_error(status.as_str());
                if status.is_server_error() {
                    return RecheckResult::TryAgain { retry_after };
                }
                return RecheckResult::Final;
            }
            Err(error) if error.is_timeout() => seen.count_error("timeout"),
            Err(_) => seen.count_error("no answer"),
        }
        RecheckResult::TryAgain { retry_after: None }
    }

    async fn send(&self, body: Bytes) -> reqwest::Result<Response> {
        let request = self.http.post(&self.url).bearer_auth(&self.token);
        let response = request.header("content-type", "application/json").body(body).send().await?;
        let retry_after =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let status = response.status();
        Ok(Response {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            body: response.bytes().await?,
        })
    }

    /// Checks that the answer is the one asked for, and notes finishes not known before.
    fn read(&self, answer: &[u8], known: &mut HashSet<usize>) {
        let now = Instant::now();
        let (asked, wrong) = (self.client.asks.ids().iter().zip(&self.ids), "wrong answer");
        let mut existing = asked.filter(|(id, _)| matches!(id, Id::Task(_)));
        let items = match &self.client.asks {
            Asks::One(_) => serde_json::from_slice(answer).map(|task| vec![task]),
            Asks::Many(_) => serde_json::from_slice(answer).map(|ShownBatch { mut items, count }| {
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
                None => seen.count_error("finished too early"),
            }
        }
        if existing.next().is_some() {
            seen.count_error(wrong);
        }
    }
}
