//! One line a request: at `info` if it went upstream or failed, at `debug` if it was answered here, since a team's
//! polls would drown everything else. Nothing of a path, a body or a secret stands in it, only words of closed sets,
//! numbers, the request id and the first digits of the token's digest.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Method, Request};

use super::ClientPort;
use crate::access::Caller;
use crate::api_error::ApiError;
use crate::observe::{Metrics, RequestLabels};
use crate::retrieve::{Report, Source};
use crate::task::Digest;

/// Last path segments that the upstream's documentation names; others are logged as `other`.
const KNOWN_SEGMENTS: [&str; 7] = ["tasks", "audios", "lyrics", "upload", "videos", "wav", "images"];

/// How a request ended: the word for log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    LookUp(Source),
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
    fn as_str(self) -> &'static str {
        match self {
            Self::LookUp(source) => source.as_str(),
            Self::Bypass => "bypass",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// A request's line, written when the answer's head is known or the client is gone.
pub(super) struct RequestLog {
    metrics: Arc<Metrics>,
    start: Instant,
    method: Method,
    service: String,
    route: &'static str,
    request_id: HeaderValue,
    action: &'static str,
    token: Option<Digest>,
    client: Option<Arc<str>>,
    report: Report,
    written: bool,
}

impl RequestLog {
    pub(super) fn start(port: &ClientPort, request: &Request<Body>, request_id: &HeaderValue) -> Self {
        let mut segments = request.uri().path().split('/').skip(1);
        let service = segments.next().and_then(|name| port.services().find(name));
        let last = segments.next().filter(|_| segments.next().is_none());
        let route = last.and_then(|last| KNOWN_SEGMENTS.into_iter().find(|known| *known == last));
        Self {
            metrics: Arc::clone(&port.metrics),
            start: Instant::now(),
            method: request.method().clone(),
            service: service.as_ref().map_or("other", |service| port.services().label(service)).to_owned(),
            route: route.unwrap_or("other"),
            request_id: request_id.clone(),
            action: "other",
            token: None,
            client: None,
            report: Report::default(),
            written: false,
        }
    }

    pub(super) fn caller(&mut self, caller: Option<&Caller>) {
        self.token = caller.map(|caller| caller.digest);
        self.client = caller.and_then(|caller| caller.client.clone());
    }

    pub(super) fn action(&mut self, action: &'static str) {
        self.action = action;
    }

    pub(super) fn report(&mut self, report: &Report) {
        self.report = report.clone();
    }

    pub(super) fn finish<B>(&mut self, response: &Response<B>, outcome: Outcome) {
        let error = response.extensions().get::<ApiError>();
        self.write(Some(response.status().as_u16()), error.map(ApiError::code), outcome);
    }

    fn write(&mut self, status: Option<u16>, error: Option<&'static str>, outcome: Outcome) {
        self.written = true;
        let outcome = outcome.as_str();
        let labels = RequestLabels { service: self.service.clone(), action: self.action, outcome };
        self.metrics.requests.get_or_create(&labels).inc();
        let answered_here = self.report.misses == 0
            && matches!(outcome, "hit" | "pending")
            && status.is_some_and(|status| status < 400);
        let ids = |count: usize| (self.report.asked > 0).then_some(count);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    method = %loggable(&self.method),
                    service = self.service,
                    route = self.route,
                    action = self.action,
                    status,
                    outcome,
                    error,
                    asked = ids(self.report.asked),
                    hits = ids(self.report.hits),
                    pending = ids(self.report.pending),
                    fetched = ids(self.report.misses),
                    took_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
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

impl Drop for RequestLog {
    fn drop(&mut self) {
        if !self.written {
            let outcome = if std::thread::panicking() { Outcome::Failed } else { Outcome::Aborted };
            self.write(None, None, outcome);
        }
    }
}
