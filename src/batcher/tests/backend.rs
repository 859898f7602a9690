//! Simulated backend: replies as scripted, else like an upstream with tasks, and records every
//! call.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::batcher::{Backend, QueueKey};
use crate::clock;
use crate::task::{Durations, FinalRecord, Service, TaskId};
use crate::upstream::{Credentials, Unreachable, UpstreamError, UpstreamResponse};

/// Error of a refused connection.
pub(super) const REFUSED: UpstreamError = UpstreamError::Unreachable(Unreachable::Refused);

pub(super) fn response(status: u16, body: &str) -> UpstreamResponse {
    UpstreamResponse {
        status: StatusCode::from_u16(status).unwrap(),
        content_type: Some(HeaderValue::from_static("application/json")),
        retry_after: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
        connect_time: Duration::ZERO,
    }
}

/// Reply to a call.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// That of an upstream with tasks.
    Normal,
    Response(UpstreamResponse),
    Error(UpstreamError),
    Panic,
}

impl Reply {
    pub(super) fn status(status: u16) -> Self {
        Self::Response(response(status, &format!(r#"{{"error":{{"code":"status_{status}"}}}}"#)))
    }

    pub(super) fn too_many_requests(retry_after: &str) -> Self {
        let retry_after = Some(HeaderValue::from_str(retry_after).unwrap());
        Self::Response(UpstreamResponse { retry_after, ..response(429, r#"{"error":{"code":"x"}}"#) })
    }

    pub(super) fn body(body: &str) -> Self {
        Self::Response(response(200, body))
    }
}

/// One upstream call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) at: Duration,
    pub(super) token: String,
    pub(super) service: String,
    pub(super) forwarded: Vec<(HeaderName, HeaderValue)>,
    pub(super) ids: Vec<String>,
}

impl Call {
    /// Returns when the call was sent, in seconds since the start.
    pub(super) fn seconds(&self) -> f64 {
        self.at.as_secs_f64()
    }
}

#[derive(Clone, Copy, Debug)]
struct SimulatedTask {
    final_at: Option<Instant>,
    created_at: Option<i64>,
}

#[derive(Debug, Default)]
struct InFlight {
    now: usize,
    max: usize,
}

type Rule = Box<dyn Fn(&Call) -> Option<Reply> + Send>;

pub(super) struct SimulatedBackend {
    start: Instant,
    latency: Duration,
    tasks: Mutex<HashMap<String, SimulatedTask>>,
    script: Mutex<VecDeque<Reply>>,
    rule: Mutex<Option<Rule>>,
    holds_calls: watch::Sender<bool>,
    calls: Mutex<Vec<Call>>,
    in_flight: Mutex<InFlight>,
    stored_ids: Mutex<Vec<String>>,
    insert_panics: AtomicBool,
    is_disk_full: AtomicBool,
    reported_statuses: Mutex<Vec<u16>>,
    pub(super) durations: Arc<Durations>,
}

struct InFlightGuard<'a>(&'a SimulatedBackend);

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        lock(&self.0.in_flight).now -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl SimulatedBackend {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            latency: Duration::from_millis(10),
            tasks: Mutex::default(),
            script: Mutex::default(),
            rule: Mutex::default(),
            holds_calls: watch::Sender::new(false),
            calls: Mutex::default(),
            in_flight: Mutex::default(),
            stored_ids: Mutex::default(),
            insert_panics: AtomicBool::new(false),
            is_disk_full: AtomicBool::new(false),
            reported_statuses: Mutex::default(),
            durations: Arc::default(),
        }
    }

    /// Clears the recorded calls and stored ids.
    pub(super) fn clear_records(&self) {
        lock(&self.calls).clear();
        lock(&self.stored_ids).clear();
    }

    /// Adds a task that stays pending.
    pub(super) fn add_pending(&self, id: &str) {
        lock(&self.tasks).insert(id.to_owned(), SimulatedTask { final_at: None, created_at: None });
    }

    /// Adds a task of that age in seconds that stays pending.
    pub(super) fn add_pending_aged(&self, id: &str, age: i64) {
        let created_at = Some(clock::unix_now() - age);
        lock(&self.tasks).insert(id.to_owned(), SimulatedTask { final_at: None, created_at });
    }

    /// Adds a task that becomes final after `delay`.
    pub(super) fn add_final_after(&self, id: &str, delay: Duration) {
        let task = SimulatedTask { final_at: Some(Instant::now() + delay), created_at: None };
        lock(&self.tasks).insert(id.to_owned(), task);
    }

    pub(super) fn add_final(&self, id: &str) {
        self.add_final_after(id, Duration::ZERO);
    }

    /// Sets the replies to the next calls, in order.
    pub(super) fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        lock(&self.script).extend(replies);
    }

    /// Sets a rule for replies. Where it returns `None`, the reply is the normal one.
    pub(super) fn reply_with(&self, rule: impl Fn(&Call) -> Option<Reply> + Send + 'static) {
        *lock(&self.rule) = Some(Box::new(rule));
    }

    pub(super) fn reply_normally(&self) {
        *lock(&self.rule) = None;
    }

    /// Keeps calls in flight until they are released.
    pub(super) fn hold_calls(&self) {
        self.holds_calls.send_replace(true);
    }

    pub(super) fn release_calls(&self) {
        self.holds_calls.send_replace(false);
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        lock(&self.calls).clone()
    }

    pub(super) fn call_count(&self) -> usize {
        lock(&self.calls).len()
    }

    /// Returns the ids of each call.
    pub(super) fn called_ids(&self) -> Vec<Vec<String>> {
        self.calls().into_iter().map(|call| call.ids).collect()
    }

    /// Returns the largest number of calls that were in flight together.
    pub(super) fn max_in_flight(&self) -> usize {
        lock(&self.in_flight).max
    }

    pub(super) fn stored_ids(&self) -> Vec<String> {
        lock(&self.stored_ids).clone()
    }

    pub(super) fn set_insert_panics(&self, panics: bool) {
        self.insert_panics.store(panics, Ordering::SeqCst);
    }

    pub(super) fn fill_disk(&self) {
        self.is_disk_full.store(true, Ordering::SeqCst);
    }

    pub(super) fn reported_statuses(&self) -> Vec<u16> {
        lock(&self.reported_statuses).clone()
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Returns a task's record as it is now. It shows when it was made and for which token.
    fn record(&self, id: &str, token: &str) -> Option<String> {
        let task = *lock(&self.tasks).get(id)?;
        let created_at = task.created_at.map_or(String::new(), |at| format!(r#""created_at":{at},"#));
        Some(match task.final_at {
            Some(at) if at <= Instant::now() => final_json(id, token),
            _ => {
                format!(r#"{{"id":"{id}",{created_at}"at":{},"for":"{token}"}}"#, self.elapsed().as_millis())
            }
        })
    }

    fn normal_response(&self, call: &Call) -> UpstreamResponse {
        if let [id] = call.ids.as_slice() {
            return response(200, &self.record(id, &call.token).unwrap_or_else(|| "{}".to_owned()));
        }
        let items: Vec<String> = call.ids.iter().filter_map(|id| self.record(id, &call.token)).collect();
        response(200, &format!(r#"{{"items":[{}],"count":{}}}"#, items.join(","), items.len()))
    }
}

/// Returns the final record of a task as the token sees it.
pub(super) fn final_json(id: &str, token: &str) -> String {
    format!(r#"{{"id":"{id}","finished_at":1.50,"for":"{token}"}}"#)
}

impl Backend for Arc<SimulatedBackend> {
    type Epoch = ();

    fn epoch(&self) {}

    async fn look_up(
        &self,
        service: &Service,
        credentials: &Credentials,
        ids: &[TaskId],
    ) -> Result<UpstreamResponse, UpstreamError> {
        let call = Call {
            at: self.elapsed(),
            token: credentials.token.expose().to_owned(),
            service: service.as_str().to_owned(),
            forwarded: credentials.forwarded.clone(),
            ids: ids.iter().map(|id| id.as_str().to_owned()).collect(),
        };
        lock(&self.calls).push(call.clone());
        {
            let mut in_flight = lock(&self.in_flight);
            in_flight.now += 1;
            in_flight.max = in_flight.max.max(in_flight.now);
        }
        let _in_flight = InFlightGuard(self);
        let scripted = lock(&self.script).pop_front();
        let reply = scripted.or_else(|| lock(&self.rule).as_ref().and_then(|rule| rule(&call)));
        sleep(self.latency).await;
        let mut holds_calls = self.holds_calls.subscribe();
        holds_calls.wait_for(|holds| !holds).await.unwrap();
        match reply.unwrap_or(Reply::Normal) {
            Reply::Normal => Ok(self.normal_response(&call)),
            Reply::Response(response) => Ok(response),
            Reply::Error(error) => Err(error),
            Reply::Panic => panic!("a scripted panic"),
        }
    }

    async fn insert(&self, _key: &QueueKey, (): (), records: Vec<FinalRecord>) -> Vec<bool> {
        assert!(!self.insert_panics.load(Ordering::SeqCst), "a scripted panic");
        tokio::task::yield_now().await;
        let is_stored = !self.is_disk_full.load(Ordering::SeqCst);
        if is_stored {
            lock(&self.stored_ids).extend(records.iter().map(|record| record.id.as_str().to_owned()));
        }
        vec![is_stored; records.len()]
    }

    fn report_response(&self, _key: &QueueKey, response: &UpstreamResponse) {
        lock(&self.reported_statuses).push(response.status.as_u16());
    }

    fn durations(&self) -> &Arc<Durations> {
        &self.durations
    }
}
