//! The client port on a page: what is checked, what is a look-up, what passes through.
//!
//! There is no path map, and on purpose: what is not exactly a look-up goes upstream as it came, so no router may
//! decode a path, add a redirect or answer 405 of its own. Nor does one cost every hit its boxes.
//!
//! 1. `soundness`: what is not sound HTTP is refused.
//! 2. CORS, where `server.cors_origins` asks for it: preflights are answered before a key is looked at.
//! 3. `shared` mode: an unknown key gets 401 on every path.
//! 4. `tasks`: look-ups and deletes of the configured services.
//! 5. [`passthrough`]: everything else.
//!
//! [`admin`] is the router of the admin port, apart from all this.

mod access_log;
mod cors;
pub mod passthrough;
mod response_body;
mod tasks;
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
pub use self::response_body::{Batch, ResponseBody, ResponseData};
use self::tasks::{Candidate, Decision};
use crate::api_error::ApiError;
use crate::auth::{Auth, Caller, CallerCache, UnknownKey};
use crate::config::{Config, TasksConfig};
use crate::headers::{HeaderValues, RequestHeaders};
use crate::lookup::LookupService;
use crate::server::{Handler, RequestBody};
use crate::telemetry::Metrics;
use crate::token::Token;
use crate::upstream::{Passthrough, UpstreamError};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the client port's handlers use.
pub struct ClientPort {
    access: Arc<Auth>,
    lookups: Arc<LookupService>,
    passthrough: Passthrough,
    metrics: Arc<Metrics>,
    /// What is a look-up, and for how long callers may wait.
    tasks: TasksConfig,
    /// Largest body of a look-up, in bytes.
    max_request_bytes: usize,
    cors: Option<CorsLayer>,
}

impl ClientPort {
    /// The client port over these rooms.
    pub fn new(
        config: &Config,
        access: Arc<Auth>,
        lookups: Arc<LookupService>,
        passthrough: Passthrough,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            access,
            lookups,
            passthrough,
            metrics,
            tasks: config.tasks.clone(),
            max_request_bytes: usize::try_from(config.server.max_request_bytes).unwrap_or(usize::MAX),
            cors: cors::layer(&config.server.cors_origins),
        }
    }

    async fn handle(&self, last: &CallerCache, request: Request<RequestBody>) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let fields = RequestHeaders::parse(&parts.headers);
        let mut log = AccessLog::start(&self.metrics, &parts, request_id(&fields.x_request_id));
        if let Some(response) = validation::respond(&parts, &fields) {
            return refuse(response, &mut log);
        }
        let token = fields.bearer_token();
        let caller = match token.and_then(|token| self.access.identify(token, last)) {
            Some(Ok(caller)) => Some(caller),
            None if !self.access.is_shared() => None,
            Some(Err(UnknownKey)) | None => {
                return refuse(
                    ApiError::invalid_token("refrain does not know this key. Send a key of access.clients as authorization: Bearer.").into_response(),
                    &mut log,
                );
            }
        };
        log.caller(caller.as_deref());
        let candidate = Candidate::of(&parts, &fields, &self.tasks.services);
        drop(fields);
        let decision = match (&caller, candidate) {
            (Some(caller), Some(candidate)) => {
                tasks::answer(self, caller, candidate, &parts, body, &mut log).await
            }
            _ => Decision::PassOn(Body::new(body)),
        };
        let passed_on = match decision {
            Decision::Answered(response) => return response,
            // In a box: none of it is on the way of a hit.
            Decision::PassOn(body) => Box::pin(self.pass_on(caller.as_deref(), parts, body, &mut log)).await,
            Decision::Delete(delete) => Box::pin(tasks::forward_delete(self, parts, delete, &mut log)).await,
        };
        passed_on.map(ResponseBody::from)
    }

    async fn handle_with_cors(
        &self,
        cors: &CorsLayer,
        last: &CallerCache,
        request: Request<RequestBody>,
    ) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let is_sound = validation::respond(&parts, &RequestHeaders::parse(&parts.headers)).is_none();
        let is_for_cors = is_sound && cors::applies_to(&parts);
        let request = Request::from_parts(parts, body);
        if !is_for_cors {
            return self.handle(last, request).await;
        }
        let handler = service_fn(async |request| {
            let mut response = self.handle(last, request).await;
            cors::remove_upstream_headers(response.headers_mut());
            Ok::<_, Infallible>(response)
        });
        cors.layer(handler).oneshot(request).await.unwrap_or_else(|never| match never {})
    }

    /// Forwards what is not a look-up.
    async fn pass_on(
        &self,
        caller: Option<&Caller>,
        parts: Parts,
        body: Body,
        log: &mut AccessLog<'_>,
    ) -> Response {
        let team_token = self.before_passing_on(caller);
        let request = Request::from_parts(parts, body);
        let response = passthrough::forward(&self.passthrough, request, team_token).await;
        log.finish(&response, Outcome::Bypass);
        response
    }

    /// Notes that a request of this caller goes by its lane; the token that it goes with, if not the caller's own.
    fn before_passing_on<'a>(&self, caller: Option<&'a Caller>) -> Option<&'a Token> {
        let caller = caller?;
        self.lookups.batcher().charge(&caller.digest);
        self.access.is_shared().then_some(&caller.token)
    }
}

impl Handler for ClientPort {
    type Body = ResponseBody;
    type ConnectionState = CallerCache;

    async fn respond(&self, last: &CallerCache, request: Request<RequestBody>) -> Response<ResponseBody> {
        match &self.cors {
            None => self.handle(last, request).await,
            Some(cors) => Box::pin(self.handle_with_cors(cors, last, request)).await,
        }
    }
}

fn refuse(response: Response, log: &mut AccessLog<'_>) -> Response<ResponseBody> {
    log.finish(&response, Outcome::Refused);
    response.map(ResponseBody::from)
}

/// The client's `x-request-id` if it is a short word of visible ASCII, else a new one.
fn request_id(field: &HeaderValues<'_>) -> HeaderValue {
    match field.first() {
        Some(id) if (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic) => {
            id.clone()
        }
        _ => {
            // Unique, not secret, so it need not cost a call to the kernel.
            let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
            let mut text = uuid::Uuid::encode_buffer();
            HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).expect("hex digits and dashes")
        }
    }
}

/// An upstream that gave no sound answer: 502, or 504 where it is a matter of time.
impl From<UpstreamError> for ApiError {
    fn from(error: UpstreamError) -> Self {
        let mut message = format!("{error}.");
        message[..1].make_ascii_uppercase();
        if error.is_timeout() {
            Self::timeout(error.proxy_status(), message)
        } else {
            Self::bad_gateway(error.proxy_status(), message)
        }
    }
}
