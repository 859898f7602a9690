//! A simulated outside: answers as scripted, else as an upstream with tasks would; records every call.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::batcher::{Backend, QueueKey};
use crate::task::{FinalRecord, Service, TaskId};
use crate::token::Token;
use crate::upstream::{Credentials, UpstreamError, UpstreamResponse};

/// The errors of the upstream room that lanes tell apart, made in one place.
pub(super) mod error {
    use crate::upstream::{Unreachable, UpstreamError};

    pub(crate) fn refused() -> UpstreamError {
        UpstreamError::Unreachable(Unreachable::Refused)
    }

    pub(crate) fn timeout() -> UpstreamError {
        UpstreamError::Timeout
    }

    pub(crate) fn interrupted() -> UpstreamError {
        UpstreamError::Interrupted
    }

    pub(crate) fn too_large() -> UpstreamError {
        UpstreamError::TooLarge
    }
}

pub(super) fn credentials(token: &str, forwarded: &[(HeaderName, HeaderValue)]) -> Credentials {
    Credentials { token: Token::parse(token).unwrap(), forwarded: forwarded.to_vec() }
}

fn token_of(credentials: &Credentials) -> String {
    credentials.token.expose().to_owned()
}

pub(super) fn answer(status: u16, body: &str) -> UpstreamResponse {
    UpstreamResponse {
        status: StatusCode::from_u16(status).unwrap(),
        content_type: Some(HeaderValue::from_static("application/json")),
        retry_after: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
        connect_time: Duration::ZERO,
    }
}

pub(super) fn answer_with_retry_after(status: u16, retry_after: &str) -> UpstreamResponse {
    let retry_after = Some(HeaderValue::from_str(retry_after).unwrap());
    UpstreamResponse { retry_after, ..answer(status, r#"{"error":{"code":"x"}}"#) }
}

/// What the upstream does with a call.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// As an upstream with tasks would.
    Natural,
    LookupResult(UpstreamResponse),
    Error(UpstreamError),
    Panic,
}

impl Reply {
    pub(super) fn status(status: u16) -> Self {
        Self::LookupResult(answer(status, &format!(r#"{{"error":{{"code":"status_{status}"}}}}"#)))
    }

    pub(super) fn body(body: &str) -> Self {
        Self::LookupResult(answer(200, body))
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

#[derive(Clone, Copy, Debug)]
struct Task {
    finishes: Option<Instant>,
    created_at: Option<i64>,
}

type Rule = Box<dyn Fn(&Call) -> Option<Reply> + Send>;

pub(super) struct SimulatedBackend {
    start: Instant,
    latency: Duration,
    tasks: Mutex<HashMap<String, Task>>,
    script: Mutex<VecDeque<Reply>>,
    rule: Mutex<Option<Rule>>,
    hold: watch::Sender<bool>,
    calls: Mutex<Vec<Call>>,
    under_way: Mutex<(usize, usize)>,
    kept: Mutex<Vec<String>>,
    keep_panics: AtomicBool,
    disk_is_full: AtomicBool,
    answered: Mutex<Vec<u16>>,
}

struct UnderWay<'a>(&'a SimulatedBackend);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.0.under_way).0 -= 1;
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
            hold: watch::Sender::new(false),
            calls: Mutex::default(),
            under_way: Mutex::default(),
            kept: Mutex::default(),
            keep_panics: AtomicBool::new(false),
            disk_is_full: AtomicBool::new(false),
            answered: Mutex::default(),
        }
    }

    /// Forgets what was recorded so far.
    pub(super) fn forget_records(&self) {
        lock(&self.calls).clear();
        lock(&self.kept).clear();
    }

    /// A task that is never finished.
    pub(super) fn pending(&self, id: &str) {
        lock(&self.tasks).insert(id.to_owned(), Task { finishes: None, created_at: None });
    }

    /// A task of that age that is never finished.
    pub(super) fn pending_for(&self, id: &str, age: i64) {
        let created_at = Some(crate::clock::unix_now() - age);
        lock(&self.tasks).insert(id.to_owned(), Task { finishes: None, created_at });
    }

    /// A task that finishes that long after now.
    pub(super) fn finishing(&self, id: &str, after: Duration) {
        let task = Task { finishes: Some(Instant::now() + after), created_at: None };
        lock(&self.tasks).insert(id.to_owned(), task);
    }

    pub(super) fn finished(&self, id: &str) {
        self.finishing(id, Duration::ZERO);
    }

    /// Scripts the replies to the next calls, in the order they come.
    pub(super) fn next(&self, replies: impl IntoIterator<Item = Reply>) {
        lock(&self.script).extend(replies);
    }

    /// Replies that hang on the call; `None`: as an upstream with tasks would.
    pub(super) fn rule(&self, rule: impl Fn(&Call) -> Option<Reply> + Send + 'static) {
        *lock(&self.rule) = Some(Box::new(rule));
    }

    pub(super) fn natural(&self) {
        *lock(&self.rule) = None;
    }

    /// Calls stay under way until released.
    pub(super) fn hold(&self) {
        self.hold.send_replace(true);
    }

    pub(super) fn release(&self) {
        self.hold.send_replace(false);
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        lock(&self.calls).clone()
    }

    pub(super) fn count(&self) -> usize {
        lock(&self.calls).len()
    }

    /// The ids of each call.
    pub(super) fn asked(&self) -> Vec<Vec<String>> {
        self.calls().into_iter().map(|call| call.ids).collect()
    }

    /// Most calls that were under way together.
    pub(super) fn most_under_way(&self) -> usize {
        lock(&self.under_way).1
    }

    pub(super) fn kept(&self) -> Vec<String> {
        lock(&self.kept).clone()
    }

    pub(super) fn keep_panics(&self, panics: bool) {
        self.keep_panics.store(panics, Ordering::SeqCst);
    }

    pub(super) fn disk_is_full(&self) {
        self.disk_is_full.store(true, Ordering::SeqCst);
    }

    pub(super) fn statuses(&self) -> Vec<u16> {
        lock(&self.answered).clone()
    }

    pub(super) fn since_start(&self) -> Duration {
        self.start.elapsed()
    }

    /// A task's text as a token sees it at this moment: what is shown tells when it was true and to whom.
    fn text(&self, id: &str, token: &str) -> Option<String> {
        let task = *lock(&self.tasks).get(id)?;
        let created_at = task.created_at.map_or(String::new(), |at| format!(r#""created_at":{at},"#));
        Some(match task.finishes {
            Some(at) if at <= Instant::now() => finished_text(id, token),
            _ => {
                format!(
                    r#"{{"id":"{id}",{created_at}"at":{},"for":"{token}"}}"#,
                    self.since_start().as_millis()
                )
            }
        })
    }

    fn natural_answer(&self, call: &Call) -> UpstreamResponse {
        if let [id] = call.ids.as_slice() {
            return answer(200, &self.text(id, &call.token).unwrap_or_else(|| "{}".to_owned()));
        }
        let items: Vec<String> = call.ids.iter().filter_map(|id| self.text(id, &call.token)).collect();
        answer(200, &format!(r#"{{"items":[{}],"count":{}}}"#, items.join(","), items.len()))
    }
}

pub(super) fn finished_text(id: &str, token: &str) -> String {
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
            at: self.since_start(),
            token: token_of(credentials),
            service: service.as_str().to_owned(),
            forwarded: credentials.forwarded.clone(),
            ids: ids.iter().map(|id| id.as_str().to_owned()).collect(),
        };
        lock(&self.calls).push(call.clone());
        {
            let mut under_way = lock(&self.under_way);
            under_way.0 += 1;
            under_way.1 = under_way.1.max(under_way.0);
        }
        let _under_way = UnderWay(self);
        let scripted = lock(&self.script).pop_front();
        let reply = scripted.or_else(|| lock(&self.rule).as_ref().and_then(|rule| rule(&call)));
        sleep(self.latency).await;
        let mut held = self.hold.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        match reply.unwrap_or(Reply::Natural) {
            Reply::Natural => Ok(self.natural_answer(&call)),
            Reply::LookupResult(answer) => Ok(answer),
            Reply::Error(error) => Err(error),
            Reply::Panic => panic!("a scripted panic"),
        }
    }

    async fn insert(&self, _key: &QueueKey, (): (), tasks: Vec<FinalRecord>) -> Vec<bool> {
        assert!(!self.keep_panics.load(Ordering::SeqCst), "a scripted panic");
        tokio::task::yield_now().await;
        let stored = !self.disk_is_full.load(Ordering::SeqCst);
        if stored {
            lock(&self.kept).extend(tasks.iter().map(|task| task.id.as_str().to_owned()));
        }
        vec![stored; tasks.len()]
    }

    fn report_response(&self, _key: &QueueKey, answer: &UpstreamResponse) {
        lock(&self.answered).push(answer.status.as_u16());
    }
}
