//! The client port on a page: what is checked, what is a look-up, what passes through.
//!
//! There is no path map, and on purpose: what is not exactly a look-up goes upstream as it came, so no router may
//! decode a path, add a redirect or answer 405 of its own. Nor does one cost every hit its boxes.
//!
//! 1. [`soundness`]: what is not sound HTTP is refused.
//! 2. CORS, where `server.cors_origins` asks for it: preflights are answered before a key is looked at.
//! 3. `shared` mode: an unknown key gets 401 on every path.
//! 4. `tasks`: look-ups and deletes of the configured services.
//! 5. [`passthrough`]: everything else.
//!
//! [`admin`] is the router of the admin port, apart from all this.

pub mod admin;
mod answer_body;
mod authorization;
mod cors;
mod dashboard;
pub mod passthrough;
mod request_log;
pub mod soundness;
mod tasks;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Request};
use tower::{Layer, Service, ServiceExt};
use tower_http::cors::Cors;

pub use self::answer_body::{AnswerBody, AnswerData, Batch};
use self::request_log::{Outcome, RequestLog};
use crate::access::{Access, Caller};
use crate::api_error::ApiError;
use crate::config::{Config, Services};
use crate::observe::Metrics;
use crate::retrieve::Retriever;
use crate::upstream::{Passthrough, UpstreamError};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the client port's handlers use.
pub struct ClientPort {
    /// Who may ask.
    pub access: Arc<Access>,
    /// Answers look-ups.
    pub retriever: Arc<Retriever>,
    /// Carries everything else.
    pub passthrough: Passthrough,
    /// Counts requests.
    pub metrics: Arc<Metrics>,
    /// What is a look-up, and for how long callers may wait.
    pub tasks: crate::config::TasksConfig,
    /// Largest body of a look-up, in bytes.
    pub max_request_bytes: usize,
}

impl ClientPort {
    fn services(&self) -> &Services {
        &self.tasks.services
    }
}

/// The service of the client port. Clones are the same service.
#[derive(Clone)]
pub struct ClientService {
    handlers: Handlers,
    with_cors: Option<Cors<Handlers>>,
}

impl ClientService {
    /// The service over these rooms.
    pub fn new(config: &Config, port: ClientPort) -> Self {
        let handlers = Handlers(Arc::new(port));
        let cors = cors::layer(&config.server.cors_origins);
        Self { with_cors: cors.map(|cors| cors.layer(handlers.clone())), handlers }
    }

    async fn answer(self, request: Request<Body>) -> Response<AnswerBody> {
        let port = &self.handlers.0;
        let (parts, body) = request.into_parts();
        let refusal = soundness::answer(&parts);
        let request = Request::from_parts(parts, body);
        if let Some(response) = refusal {
            RequestLog::start(port, &request, &request_id(&request)).finish(&response, Outcome::Refused);
            return response.map(AnswerBody::from);
        }
        match self.with_cors.filter(|_| cors::concerns(&request)) {
            None => handle(port, request).await,
            Some(with_cors) => with_cors.oneshot(request).await.unwrap_or_else(|never| match never {}),
        }
    }
}

impl Service<Request<Body>> for ClientService {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        let service = self.clone();
        Box::pin(async move { Ok(service.answer(request).await) })
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, Infallible>> + Send>>;

/// What stands behind [`cors`].
#[derive(Clone)]
struct Handlers(Arc<ClientPort>);

impl Service<Request<Body>> for Handlers {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        let port = Arc::clone(&self.0);
        Box::pin(async move {
            let mut response = handle(&port, request).await;
            cors::drop_upstreams(response.headers_mut());
            Ok(response)
        })
    }
}

async fn handle(port: &ClientPort, request: Request<Body>) -> Response<AnswerBody> {
    let request_id = request_id(&request);
    let mut log = RequestLog::start(port, &request, &request_id);
    let bearer = authorization::bearer(request.headers());
    let caller = match bearer.map(|token| port.access.identify(&token)) {
        Some(Ok(caller)) => Some(caller),
        None if !port.access.is_shared() => None,
        Some(Err(_)) | None => {
            let response = ApiError::invalid_token("This key is not known here.").into_response();
            log.finish(&response, Outcome::Refused);
            return response.map(AnswerBody::from);
        }
    };
    log.caller(caller.as_ref());
    tasks::answer(port, caller, request, &request_id, &mut log).await
}

/// Forwards what is not a look-up.
async fn pass_through(
    port: &ClientPort,
    caller: Option<&Caller>,
    request: Request<Body>,
    log: &mut RequestLog,
) -> Response {
    if let Some(caller) = caller {
        port.retriever.lanes().passed_through(&caller.digest);
    }
    let team_token = caller.filter(|_| port.access.is_shared()).map(|caller| &caller.token);
    let response = passthrough::forward(&port.passthrough, request, team_token).await;
    log.finish(&response, Outcome::Bypass);
    response
}

/// The client's `x-request-id` if it is a short word of visible ASCII, else a new one.
fn request_id(request: &Request<Body>) -> HeaderValue {
    match request.headers().get(X_REQUEST_ID) {
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
