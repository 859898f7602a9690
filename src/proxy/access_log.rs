//! Access log: one line for each request, in the log and in the list of the last requests.
//!
//! A request that went upstream or failed is logged at `info`. One that was served locally is
//! logged at `debug`, since polls are many, or as a short line at `info` on a terminal, for a person
//! who wants to see that it works. A line has only labels of closed sets, numbers, the
//! request id, known words of the path, and the name of the token or the first digits of its
//! digest. It has nothing else of a path, a body or a secret.

use axum::response::Response;
use http::request::Parts;
use http::{HeaderValue, Method, Uri};
use tokio::time::Instant;

use super::path_shape;
use crate::api_error::ApiError;
use crate::auth::Caller;
use crate::clock;
use crate::lookup::{CacheResult, CacheSummary};
use crate::task::TaskRequest;
use crate::telemetry::{
    ClientLabel, Label, Metrics, PassthroughStatus, RateLimitSource, RecentRequest, RecentRequestId,
    RequestAction, RequestIds, RequestKind, RequestOutcome, ServiceLabel,
};
use crate::token::Digest;

/// How a request ended, for log and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A lookup with content.
    Lookup(CacheResult),
    /// Forwarded.
    Bypass,
    /// Refused by refrain.
    Refused,
    /// Answered by refrain, but not a lookup: a CORS preflight or `OPTIONS` for
    /// refrain itself.
    Answered,
    /// A lookup that the upstream failed.
    Failed,
    /// The handler panicked.
    Panicked,
    /// There is no response: the client disconnected.
    Aborted,
}

impl Outcome {
    fn label(self) -> RequestOutcome {
        match self {
            Self::Lookup(CacheResult::Hit) => RequestOutcome::Hit,
            Self::Lookup(CacheResult::Pending) => RequestOutcome::Pending,
            Self::Lookup(CacheResult::Partial) => RequestOutcome::Partial,
            Self::Lookup(CacheResult::Miss) => RequestOutcome::Miss,
            Self::Bypass => RequestOutcome::Bypass,
            Self::Refused => RequestOutcome::Refused,
            Self::Answered => RequestOutcome::Answered,
            Self::Failed | Self::Panicked => RequestOutcome::Failed,
            Self::Aborted => RequestOutcome::Aborted,
        }
    }
}

/// Log line of a request. It is written when the response head is known, or on drop.
pub(super) struct AccessLog<'a> {
    metrics: &'a Metrics,
    shows_hits: bool,
    start: Instant,
    method: Method,
    uri: Uri,
    service: ServiceLabel,
    is_addressed_to_lookup: bool,
    request_id: HeaderValue,
    action: RequestAction,
    token: Option<Digest>,
    client: ClientLabel,
    summary: CacheSummary,
    written: bool,
}

impl<'a> AccessLog<'a> {
    /// Starts the line of a request. `shows_hits` is whether requests that are served locally have a
    /// short line at `info`.
    pub(super) fn start(
        metrics: &'a Metrics,
        shows_hits: bool,
        parts: &Parts,
        request_id: HeaderValue,
    ) -> Self {
        let path = parts.uri.path();
        let path = path.strip_prefix('/').unwrap_or(path);
        let (service, rest) = path.split_once('/').unwrap_or((path, ""));
        let service = metrics.service(service);
        Self {
            metrics,
            shows_hits,
            start: Instant::now(),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            service,
            is_addressed_to_lookup: parts.method == Method::POST
                && rest == "tasks"
                && parts.uri.query().is_none()
                && metrics.has_lookups(service),
            request_id,
            action: RequestAction::Other,
            token: None,
            client: ClientLabel::OTHER,
            summary: CacheSummary::default(),
            written: false,
        }
    }

    /// Whether method and path are those of a lookup, whatever the headers and the body.
    pub(super) fn is_addressed_to_lookup(&self) -> bool {
        self.is_addressed_to_lookup
    }

    pub(super) fn request_id(&self) -> HeaderValue {
        self.request_id.clone()
    }

    /// Takes the request id for the response. To be called after the line was written.
    pub(super) fn take_request_id(&mut self) -> HeaderValue {
        std::mem::replace(&mut self.request_id, HeaderValue::from_static(""))
    }

    pub(super) fn caller(&mut self, caller: Option<&Caller>) {
        self.token = caller.map(|caller| caller.digest);
        self.client = caller.map_or(ClientLabel::OTHER, |caller| caller.client);
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
        self.write(Some(status), error, outcome);
    }

    /// Shape of the path: see [`path_shape`].
    fn path(&self) -> String {
        let is_service = |name: &str| self.metrics.has_lookups(self.metrics.service(name));
        path_shape::of(self.uri.path(), is_service)
    }

    /// Name of the client or token, or else the first digits of the token's digest.
    fn token(&self) -> Option<String> {
        let name = self.metrics.client_name(self.client).map(String::from);
        name.or_else(|| self.token.map(|token| token.to_string()))
    }

    fn write(&mut self, status: Option<u16>, error: Option<&ApiError>, outcome: Outcome) {
        self.written = true;
        let outcome = outcome.label();
        let took = self.start.elapsed();
        self.metrics.count_request(self.client, self.service, self.action, outcome, took);
        let summary = &self.summary;
        let ids = (summary.requested > 0).then_some(RequestIds {
            asked: summary.requested,
            hits: summary.hits,
            pending: summary.pending,
            fetched: summary.misses,
        });
        let request = RecentRequest {
            ended_at_micros: clock::unix_now_micros(),
            took,
            method: loggable(&self.method),
            service: self.service,
            path: (!self.is_addressed_to_lookup).then(|| self.path()),
            action: self.action,
            outcome,
            status,
            error: error.map(ApiError::code),
            cause: cause(status, error).map(String::from),
            ids,
            request_id: RecentRequestId::new(self.request_id.as_bytes()),
            token: self.token,
            client: self.client,
        };
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    method = %request.method,
                    path = self.path(),
                    service = self.metrics.service_name(self.service),
                    action = self.action.as_str(),
                    status,
                    outcome = outcome.as_str(),
                    error = request.error,
                    cause = request.cause,
                    asked = ids.map(|ids| ids.asked),
                    hits = ids.map(|ids| ids.hits),
                    pending = ids.map(|ids| ids.pending),
                    fetched = ids.map(|ids| ids.fetched),
                    took_ms,
                    // Printable ASCII, see `crate::headers::request_id`. `?` would add quotes to it in JSON.
                    request_id = self.request_id.to_str().unwrap_or_default(),
                    token = self.token(),
                    "request"
                )
            };
        }
        if request.kind() != RequestKind::Local {
            line!(info);
        } else if !self.shows_hits || tracing::enabled!(tracing::Level::DEBUG) {
            line!(debug);
        } else {
            tracing::info!(
                asked = ids.map(|ids| ids.asked),
                took_ms,
                token = self.token(),
                "{} {} {}",
                outcome.as_str(),
                request.method,
                self.path(),
            );
        }
        self.metrics.recent_requests.record(request);
    }
}

/// Returns why a response has a status of 500 or above.
fn cause(status: Option<u16>, error: Option<&ApiError>) -> Option<&str> {
    match (status, error) {
        (Some(500..), Some(error)) => Some(error.message()),
        (Some(500..), None) => Some("the upstream sent this response"),
        _ => None,
    }
}

/// Returns the name of a common method. A client chooses the names of all others.
fn loggable(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

impl Drop for AccessLog<'_> {
    fn drop(&mut self) {
        if !self.written {
            self.write(None, None, Outcome::Aborted);
        }
    }
}
