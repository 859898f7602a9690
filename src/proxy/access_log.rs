//! One line a request: at `info` if it went upstream or failed, at `debug` if it was answered here, since a team's
//! polls would drown everything else. Nothing of a path, a body or a secret stands in it, only words of closed sets,
//! numbers, the request id and the first digits of the token's digest.

use std::sync::Arc;

use axum::response::Response;
use http::request::Parts;
use http::{HeaderValue, Method};
use tokio::time::Instant;

use crate::api_error::ApiError;
use crate::auth::Caller;
use crate::lookup::{CacheResult, CacheSummary};
use crate::task::TaskRequest;
use crate::telemetry::{
    Label, Metrics, PassthroughStatus, RateLimitSource, RequestAction, RequestOutcome, ServiceLabel,
};
use crate::token::Digest;

/// Last path segments that the upstream's documentation names; others are logged as `other`.
const KNOWN_SEGMENTS: [&str; 7] = ["tasks", "audios", "lyrics", "upload", "videos", "wav", "images"];

/// How a request ended: the word for log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    LookUp(CacheResult),
    /// Passed through.
    Bypass,
    /// Refused here.
    Refused,
    /// No sound answer from the upstream, or an error of it.
    Failed,
    /// The client hung up first.
    Aborted,
}

impl Outcome {
    fn label(self) -> RequestOutcome {
        match self {
            Self::LookUp(CacheResult::Hit) => RequestOutcome::Hit,
            Self::LookUp(CacheResult::Pending) => RequestOutcome::Pending,
            Self::LookUp(CacheResult::Partial) => RequestOutcome::Partial,
            Self::LookUp(CacheResult::Miss) => RequestOutcome::Miss,
            Self::Bypass => RequestOutcome::Bypass,
            Self::Refused => RequestOutcome::Refused,
            Self::Failed => RequestOutcome::Failed,
            Self::Aborted => RequestOutcome::Aborted,
        }
    }
}

/// A request's line, written when the answer's head is known or the client is gone.
pub(super) struct AccessLog<'a> {
    metrics: &'a Metrics,
    start: Instant,
    method: Method,
    service: ServiceLabel,
    route: &'static str,
    request_id: HeaderValue,
    action: RequestAction,
    token: Option<Digest>,
    client: Option<Arc<str>>,
    summary: CacheSummary,
    written: bool,
}

impl<'a> AccessLog<'a> {
    pub(super) fn start(metrics: &'a Metrics, parts: &Parts, request_id: HeaderValue) -> Self {
        let path = parts.uri.path();
        let path = path.strip_prefix('/').unwrap_or(path);
        let (service, last) = path.split_once('/').unwrap_or((path, ""));
        let route = KNOWN_SEGMENTS.into_iter().find(|known| *known == last);
        Self {
            metrics,
            start: Instant::now(),
            method: parts.method.clone(),
            service: metrics.service(service),
            route: route.unwrap_or("other"),
            request_id,
            action: RequestAction::Other,
            token: None,
            client: None,
            summary: CacheSummary::default(),
            written: false,
        }
    }

    /// What the client finds the request by in the log, once its line is written.
    pub(super) fn take_request_id(&mut self) -> HeaderValue {
        std::mem::replace(&mut self.request_id, HeaderValue::from_static(""))
    }

    pub(super) fn caller(&mut self, caller: Option<&Caller>) {
        self.token = caller.map(|caller| caller.digest);
        self.client = caller.and_then(|caller| caller.client.clone());
    }

    pub(super) fn action(&mut self, request: &TaskRequest) {
        self.action = match request {
            TaskRequest::Lookup(ids) if !ids.is_batch() => RequestAction::Retrieve,
            TaskRequest::Lookup(_) | TaskRequest::TooManyIds(_) => RequestAction::RetrieveBatch,
            TaskRequest::Delete(_) => RequestAction::Delete,
            TaskRequest::Other => RequestAction::Other,
        };
    }

    pub(super) fn summary(&mut self, summary: &CacheSummary) {
        self.summary = summary.clone();
    }

    pub(super) fn finish<B>(&mut self, response: &Response<B>, outcome: Outcome) {
        let error = response.extensions().get::<ApiError>();
        let status = response.status().as_u16();
        if outcome == Outcome::Bypass {
            let label =
                if error.is_some() { PassthroughStatus::Failed } else { PassthroughStatus::of(status) };
            self.metrics.passed_through.inc(label);
        }
        if status == 429 {
            self.metrics.rate_limited_passed_on.inc(match outcome {
                _ if error.is_some() => RateLimitSource::Refrain,
                Outcome::Bypass => RateLimitSource::PassedThrough,
                _ => RateLimitSource::Upstream,
            });
        }
        self.write(Some(status), error.map(ApiError::code), outcome);
    }

    fn write(&mut self, status: Option<u16>, error: Option<&'static str>, outcome: Outcome) {
        self.written = true;
        let outcome = outcome.label();
        let took = self.start.elapsed();
        self.metrics.count_request(self.service, self.action, outcome, took);
        let answered_here = self.summary.misses == 0
            && matches!(outcome, RequestOutcome::Hit | RequestOutcome::Pending)
            && status.is_some_and(|status| status < 400);
        let ids = |count: usize| (self.summary.asked > 0).then_some(count);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    method = %loggable(&self.method),
                    service = self.metrics.service_name(self.service),
                    route = self.route,
                    action = self.action.as_str(),
                    status,
                    outcome = outcome.as_str(),
                    error,
                    asked = ids(self.summary.asked),
                    hits = ids(self.summary.hits),
                    pending = ids(self.summary.pending),
                    fetched = ids(self.summary.misses),
                    took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                    // Visible ASCII, see `super::request_id`; with `?` a JSON record would hold quotes inside its quotes.
                    request_id = self.request_id.to_str().unwrap_or_default(),
                    token = self.token.map(|token| token.to_string()),
                    client = self.client.as_deref(),
                    "request"
                )
            };
        }
        if answered_here {
            line!(debug);
        } else {
            line!(info);
        }
    }
}

/// A method of RFC 9110; an extension method may hold anything.
fn loggable(method: &Method) -> &str {
    const KNOWN: [Method; 7] = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::PATCH,
    ];
    if KNOWN.contains(method) { method.as_str() } else { "other" }
}

impl Drop for AccessLog<'_> {
    fn drop(&mut self) {
        if !self.written {
            let outcome = if std::thread::panicking() { Outcome::Failed } else { Outcome::Aborted };
            self.write(None, None, outcome);
        }
    }
}
