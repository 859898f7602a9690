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
//!
//! There is no router: it could decode a path, redirect, or answer 405, but a request that is not
//! exactly a lookup must go upstream unchanged.

mod access_log;
mod candidate;
mod cors;
mod delete;
mod error;
mod lookup_handler;
mod lookup_response;
mod passthrough;
mod response_body;
mod uninterpreted;
mod validation;

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::CorsLayer;

use self::access_log::{AccessLog, Outcome};
use self::candidate::Candidate;
use self::lookup_handler::Decision;
pub use self::response_body::{ResponseBody, ResponseData};
use crate::api_error::ApiError;
use crate::auth::{Auth, Caller, CallerCache, UnknownKey};
use crate::config::{Config, TasksConfig};
use crate::headers::{HeaderValues, RequestHeaders};
use crate::lookup::LookupService;
use crate::server::{Handler, RequestBody};
use crate::task::InterpretedServices;
use crate::telemetry::Metrics;
use crate::token::Token;
use crate::upstream::Passthrough;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Handler of the client port.
pub struct ClientPort {
    auth: Arc<Auth>,
    lookups: Arc<LookupService>,
    passthrough: Passthrough,
    metrics: Arc<Metrics>,
    tasks: TasksConfig,
    services: InterpretedServices,
    /// Longest body of a lookup, in bytes.
    max_request_bytes: usize,
    cors: Option<CorsLayer>,
}

impl ClientPort {
    /// Creates the handler from the configuration and the parts that it uses.
    pub fn new(
        config: &Config,
        auth: Arc<Auth>,
        lookups: Arc<LookupService>,
        passthrough: Passthrough,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            auth,
            lookups,
            passthrough,
            metrics,
            tasks: config.tasks.clone(),
            services: config.tasks.interpreted_services(),
            max_request_bytes: usize::try_from(config.server.max_request_bytes).unwrap_or(usize::MAX),
            cors: cors::layer(&config.server.cors_origins),
        }
    }

    async fn handle(&self, cache: &CallerCache, request: Request<RequestBody>) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let headers = RequestHeaders::parse(&parts.headers);
        let mut log = AccessLog::start(&self.metrics, &parts, request_id(&headers.x_request_id));
        if let Some(response) = validation::respond(&parts, &headers) {
            return refuse(response, &mut log);
        }
        let token = headers.bearer_token();
        let caller = match token.and_then(|token| self.auth.identify(token, cache)) {
            Some(Ok(caller)) => Some(caller),
            None if !self.auth.is_shared() => None,
            Some(Err(UnknownKey)) | None => {
                let error = ApiError::invalid_token(
                    "refrain does not know this key. Send a key of access.clients as authorization: Bearer.",
                );
                return refuse(error.into_response(), &mut log);
            }
        };
        log.caller(caller.as_deref());
        let candidate = Candidate::of(&parts, &headers, &self.services);
        drop(headers);
        let decision = match (&caller, candidate) {
            (Some(caller), Some(candidate)) => {
                lookup_handler::handle(self, caller, candidate, &parts, body, &mut log).await
            }
            _ => {
                uninterpreted::record(&parts, &self.services, &self.tasks, &self.metrics.uninterpreted);
                Decision::Forward(Body::new(body))
            }
        };
        // Boxed, so that a hit does not carry the size of these futures.
        let response = match decision {
            Decision::Respond(response) => return response,
            Decision::Forward(body) => Box::pin(self.forward(caller.as_deref(), parts, body, &mut log)).await,
            Decision::Delete(request) => {
                Box::pin(delete::forward_delete(self, parts, request, &mut log)).await
            }
        };
        response.map(ResponseBody::from)
    }

    async fn handle_with_cors(
        &self,
        cors: &CorsLayer,
        cache: &CallerCache,
        request: Request<RequestBody>,
    ) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let is_valid = validation::respond(&parts, &RequestHeaders::parse(&parts.headers)).is_none();
        let is_for_cors = is_valid && cors::applies_to(&parts);
        let request = Request::from_parts(parts, body);
        if !is_for_cors {
            return self.handle(cache, request).await;
        }
        let handler = service_fn(async |request| {
            let mut response = self.handle(cache, request).await;
            cors::remove_upstream_headers(response.headers_mut());
            Ok::<_, Infallible>(response)
        });
        cors.layer(handler).oneshot(request).await.unwrap_or_else(|never| match never {})
    }

    /// Forwards a request that is not a lookup.
    async fn forward(
        &self,
        caller: Option<&Caller>,
        parts: Parts,
        body: Body,
        log: &mut AccessLog<'_>,
    ) -> Response {
        let team_token = self.charge(caller);
        let request = Request::from_parts(parts, body);
        let response = passthrough::forward(&self.passthrough, request, team_token).await;
        log.finish(&response, Outcome::Bypass);
        response
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

/// Writes the log line of a request that is not handled further.
fn refuse(response: Response, log: &mut AccessLog<'_>) -> Response<ResponseBody> {
    log.finish(&response, Outcome::Refused);
    response.map(ResponseBody::from)
}

/// Returns the client's `x-request-id`, or a new one unless that is printable ASCII of at most 128
/// characters.
fn request_id(field: &HeaderValues<'_>) -> HeaderValue {
    match field.first() {
        Some(id) if (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic) => {
            id.clone()
        }
        _ => {
            // Unique but not secret, so a generator without a system call is enough.
            let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
            let mut text = uuid::Uuid::encode_buffer();
            HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).expect("hex digits and dashes")
        }
    }
}
