//! The client port, from the validated request to the response.
//!
//! A request takes these steps:
//!
//! 1. `validation` refuses invalid HTTP.
//! 2. `cors` answers preflights, if `server.cors_origins` is set.
//! 3. In `shared` mode, an unknown key gets 401 on every path.
//! 4. `lookup_handler` performs lookups of the configured services; `delete` forwards and
//!    observes deletes.
//! 5. `passthrough` forwards everything else.
//! 6. `response_headers` completes every response, also after a panic, and writes the access log.
//!
//! There is no router: it could decode a path, redirect, or answer 405, but a request that is not
//! exactly a lookup must go upstream unchanged.

mod access_log;
mod candidate;
mod cors;
mod delete;
mod error;
mod hops;
mod lookup_handler;
mod lookup_response;
mod passthrough;
mod path_shape;
mod response_body;
mod response_headers;
mod uninterpreted;
mod validation;

use std::convert::Infallible;
use std::io::IsTerminal;
use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use http::request::Parts;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::CorsLayer;

use self::access_log::{AccessLog, Outcome};
use self::candidate::Candidate;
use self::delete::DeleteTasks;
use self::lookup_handler::Decision;
pub use self::response_body::{ResponseBody, ResponseData};
use self::response_headers::Reply;
use crate::api_error::ApiError;
use crate::auth::{Auth, Caller, CallerCache, UnknownKey};
use crate::config::{Config, LogFormat, TasksConfig};
use crate::headers::{self, RequestHeaders};
use crate::lifecycle::{Shutdown, Supervisor};
use crate::lookup::LookupService;
use crate::server::{Handler, Panicked, RequestBody, catch_panic};
use crate::task::InterpretedServices;
use crate::telemetry::Metrics;
use crate::token::Token;
use crate::upstream::Passthrough;

/// Handler of the client port.
pub struct ClientPort {
    auth: Arc<Auth>,
    lookups: Arc<LookupService>,
    passthrough: Passthrough,
    deletes: DeleteTasks,
    metrics: Arc<Metrics>,
    tasks: TasksConfig,
    services: InterpretedServices,
    /// Longest body of a lookup, in bytes.
    max_request_bytes: usize,
    /// Whether requests that are served locally have a line in the log: on a terminal.
    logs_hits: bool,
    cors: Option<CorsLayer>,
}

impl ClientPort {
    /// Creates the handler from the configuration and the parts that it uses. `background` owns the
    /// tasks that go on when their client leaves.
    pub fn new(
        config: &Config,
        auth: Arc<Auth>,
        lookups: Arc<LookupService>,
        passthrough: Passthrough,
        metrics: Arc<Metrics>,
        background: Supervisor,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            auth,
            lookups,
            passthrough,
            deletes: DeleteTasks::new(background, shutdown),
            metrics,
            tasks: config.tasks.clone(),
            services: config.tasks.interpreted_services(),
            max_request_bytes: usize::try_from(config.server.max_request_bytes).unwrap_or(usize::MAX),
            logs_hits: config.log.format == LogFormat::Pretty && std::io::stderr().is_terminal(),
            cors: cors::layer(&config.server.cors_origins),
        }
    }

    /// Responds to a request, also if its handler panics.
    async fn handle(&self, cache: &CallerCache, request: Request<RequestBody>) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let mut log = self.start_log(&parts);
        let reply = catch_panic(&self.metrics.panics, pin!(self.reply(cache, parts, body, &mut log))).await;
        reply
            .unwrap_or_else(|Panicked| {
                Reply::error(error::panicked(self.passthrough.host()), Outcome::Panicked, &log)
            })
            .complete(&mut log)
    }

    async fn reply(
        &self,
        cache: &CallerCache,
        parts: Parts,
        body: RequestBody,
        log: &mut AccessLog<'_>,
    ) -> Reply {
        let headers = RequestHeaders::parse(&parts.headers);
        match validation::respond(&parts, &headers) {
            Ok(None) => {}
            Ok(Some(response)) => {
                return Reply { response: response.map(ResponseBody::from), outcome: Outcome::Answered };
            }
            Err(refusal) => return self.refuse(refusal, log),
        }
        let token = headers.bearer_token();
        let caller = match token.and_then(|token| self.auth.identify(token, cache)) {
            Some(Ok(caller)) => Some(caller),
            None if !self.auth.is_shared() => None,
            Some(Err(UnknownKey)) | None => {
                let reason = "the key is unknown. Send a key of access.clients as authorization: Bearer.";
                return self.refuse(ApiError::invalid_token(reason), log);
            }
        };
        log.caller(caller.as_deref());
        let candidate = Candidate::of(&parts, &headers, &self.services);
        drop(headers);
        let decision = match (&caller, candidate) {
            (Some(caller), Some(candidate)) => {
                lookup_handler::handle(self, caller, candidate, &parts, body, log).await
            }
            _ => {
                uninterpreted::record(&parts, &self.services, &self.tasks, &self.metrics.uninterpreted);
                Decision::Forward(Body::new(body))
            }
        };
        // Boxed, so that a hit does not carry the size of these futures.
        let forwarded = match decision {
            Decision::Respond(reply) => return reply,
            Decision::Forward(body) => Box::pin(self.forward(caller.as_deref(), parts, body)).await,
            Decision::Delete(request) => Box::pin(delete::forward_delete(self, parts, request)).await,
        };
        match forwarded {
            Ok(response) => Reply { response: response.map(ResponseBody::from), outcome: Outcome::Bypass },
            Err(error) => Reply::error(error, Outcome::Bypass, log),
        }
    }

    async fn handle_with_cors(
        &self,
        cors: &CorsLayer,
        cache: &CallerCache,
        request: Request<RequestBody>,
    ) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let is_handled =
            matches!(validation::respond(&parts, &RequestHeaders::parse(&parts.headers)), Ok(None));
        if !is_handled || !cors::applies_to(&parts) {
            return self.handle(cache, Request::from_parts(parts, body)).await;
        }
        // The layer answers a preflight without the handler.
        let mut preflight_log = cors::is_preflight(&parts).then(|| self.start_log(&parts));
        let handler = service_fn(async |request| {
            let mut response = self.handle(cache, request).await;
            cors::remove_upstream_headers(response.headers_mut());
            Ok::<_, Infallible>(response)
        });
        let request = Request::from_parts(parts, body);
        let response = cors.layer(handler).oneshot(request).await.unwrap_or_else(|never| match never {});
        match &mut preflight_log {
            Some(log) => Reply { response, outcome: Outcome::Answered }.complete(log),
            None => response,
        }
    }

    fn start_log(&self, parts: &Parts) -> AccessLog<'_> {
        AccessLog::start(&self.metrics, self.logs_hits, parts, headers::request_id(&parts.headers))
    }

    /// Forwards a request that is not a lookup.
    async fn forward(&self, caller: Option<&Caller>, parts: Parts, body: Body) -> Result<Response, ApiError> {
        let team_token = self.charge(caller);
        let request = Request::from_parts(parts, body);
        passthrough::forward(&self.passthrough, request, team_token).await
    }

    /// Refuses a request of which nothing was sent. The message begins with the reason.
    fn refuse(&self, reason: ApiError, log: &AccessLog<'_>) -> Reply {
        Reply::error(error::refused(reason, self.passthrough.host()), Outcome::Refused, log)
    }

    /// Charges the rate limiter of a caller for a forwarded request. Returns the token that
    /// replaces the client's key in `shared` mode.
    fn charge<'a>(&self, caller: Option<&'a Caller>) -> Option<&'a Token> {
        let caller = caller?;
        self.lookups.batcher().charge(&caller.digest);
        self.auth.is_shared().then_some(&caller.token)
    }
}

impl Handler for ClientPort {
    type Body = ResponseBody;
    type ConnectionState = CallerCache;

    async fn respond(&self, cache: &CallerCache, request: Request<RequestBody>) -> Response<ResponseBody> {
        match &self.cors {
            None => self.handle(cache, request).await,
            Some(cors) => Box::pin(self.handle_with_cors(cors, cache, request)).await,
        }
    }
}
