//! Look-ups: one call, one whole answer in memory, bounded in time and size. Retries are the lane's business.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::{Client, Proxy, Response, redirect, retry};
use rustls::ClientConfig;
use serde::Serialize;

use super::connect::{KEEPALIVE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES, OutgoingProxy, Resolver};
use super::connect_time::{self, NoteConnected};
use super::content_coding::Unpacked;
use super::{UpstreamError, UpstreamSetupError, is_framing_sound, origin};
use crate::config::UpstreamConfig;
use crate::task::{Service, TaskId};
use crate::token::Token;

/// Shorter than what servers usually allow, so that an idle connection is seldom found closed by them.
const POOL_IDLE: Duration = Duration::from_secs(25);

/// Who asks, and what the client wants the upstream to know.
#[derive(Clone)]
pub struct Credentials {
    /// The bearer token.
    pub token: Token,
    /// The client's fields named in `tasks.forward_headers`.
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
}

/// The values of forwarded fields may be secrets as well.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.forwarded.iter().map(|(name, _)| name).collect();
        f.debug_struct("Credentials").field("token", &self.token).field("forwarded", &names).finish()
    }
}

/// The upstream's answer to a look-up, whatever its status.
#[derive(Clone, Debug)]
pub struct UpstreamResponse {
    /// Its status; a 3xx is not followed.
    pub status: StatusCode,
    /// Its `content-type`.
    pub content_type: Option<HeaderValue>,
    /// Its `retry-after`.
    pub retry_after: Option<HeaderValue>,
    /// The whole body, decompressed.
    pub body: Bytes,
    /// How long the call waited for a connection of its own; zero on a pooled one.
    pub connect_time: Duration,
}

#[derive(Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
enum LookUp<'a> {
    Retrieve { id: &'a str },
    RetrieveBatch { ids: Vec<&'a str> },
}

/// Calls `POST /{service}/tasks` for look-ups.
pub struct UpstreamClient {
    client: RwLock<Client>,
    setup: Setup,
    origin: String,
    max_response_bytes: u64,
}

/// What a [`Client`] is made of.
struct Setup {
    tls: ClientConfig,
    proxy: Option<OutgoingProxy>,
    connect_timeout: Duration,
    request_timeout: Duration,
}

impl Setup {
    fn client(&self) -> Result<Client, UpstreamSetupError> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Resolver)
            // Repeats are the lane's, which counts them and keeps the pace; a redirect would show the token to
            // another host.
            .retry(retry::never())
            .redirect(redirect::Policy::none())
            .user_agent(concat!("refrain/", env!("CARGO_PKG_VERSION")))
            // Unpacked here: reqwest would take `content-length` off before it can be seen beside chunks.
            .no_gzip()
            .referer(false)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE_INTERVAL)
            .tcp_keepalive_retries(KEEPALIVE_RETRIES)
            .pool_idle_timeout(POOL_IDLE)
            .connect_timeout(self.connect_timeout)
            .timeout(self.request_timeout)
            // The system's proxy was asked for once, for both clients.
            .no_proxy()
            .connector_layer(NoteConnected);
        if let Some(found) = &self.proxy {
            let mut proxy = Proxy::all(found.uri.to_string()).map_err(UpstreamSetupError::Client)?;
            if let Some(authorization) = &found.authorization {
                proxy = proxy.custom_http_auth(authorization.clone());
            }
            builder = builder.proxy(proxy);
        }
        builder.build().map_err(UpstreamSetupError::Client)
    }
}

impl UpstreamClient {
    pub(super) fn new(
        config: &UpstreamConfig,
        tls: ClientConfig,
        proxy: Option<OutgoingProxy>,
    ) -> Result<Self, UpstreamSetupError> {
        let setup = Setup {
            tls,
            proxy,
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
        };
        Ok(Self {
            client: RwLock::new(setup.client()?),
            setup,
            origin: origin(&config.base_url),
            max_response_bytes: config.max_response_bytes,
        })
    }

    /// Asks for `ids` (at least one) in one call: `retrieve` for one, `retrieve_batch` for more. Sent once. Safe to
    /// drop at any time; the call then ends too.
    pub async fn look_up(
        &self,
        service: &Service,
        credentials: &Credentials,
        ids: &[TaskId],
    ) -> Result<UpstreamResponse, UpstreamError> {
        let look_up = match ids {
            [id] => LookUp::Retrieve { id: id.as_str() },
            ids => LookUp::RetrieveBatch { ids: ids.iter().map(TaskId::as_str).collect() },
        };
        let body = serde_json::to_vec(&look_up).expect("strings become JSON");
        // Held for the clone alone, never across an await.
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let call = client
            .post(format!("{}/{service}/tasks", self.origin))
            .headers(fields(credentials))
            .body(body)
            .send();
        let (result, connect_time) = connect_time::timed(call).await;
        let answer = match result {
            Ok(response) => self.read(response, connect_time).await,
            Err(error) => Err(UpstreamError::of_look_up(&error)),
        };
        if let Err(UpstreamError::BadMessage) = answer {
            self.leave_connections();
        }
        answer
    }

    async fn read(
        &self,
        mut response: Response,
        connect_time: Duration,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let headers = response.headers();
        if response.status().is_informational() || !is_framing_sound(headers) {
            return Err(UpstreamError::BadMessage);
        }
        let mut body = Unpacked::new(headers, self.max_response_bytes)?;
        if response.content_length().is_some_and(|length| length > self.max_response_bytes) {
            return Err(UpstreamError::TooLarge);
        }
        let status = response.status();
        let content_type = headers.get(header::CONTENT_TYPE).cloned();
        let retry_after = headers.get(header::RETRY_AFTER).cloned();
        while let Some(chunk) = response.chunk().await.map_err(|error| UpstreamError::of_look_up(&error))? {
            body.push(&chunk).await?;
        }
        Ok(UpstreamResponse { status, content_type, retry_after, body: body.finish()?, connect_time })
    }

    /// A connection with a malformed answer on it is not used again. reqwest cannot drop a single one, so its whole
    /// pool goes; calls under way keep theirs to their end.
    fn leave_connections(&self) {
        match self.setup.client() {
            Ok(client) => *self.client.write().unwrap_or_else(PoisonError::into_inner) = client,
            Err(error) => tracing::error!(%error, "cannot renew the client for look-ups"),
        }
    }
}

/// Everything but `host`, `content-length` and `user-agent`, which reqwest adds.
fn fields(credentials: &Credentials) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &credentials.forwarded {
        headers.append(name, value.clone());
    }
    let mut authorization = HeaderValue::from_str(&format!("Bearer {}", credentials.token.expose()))
        .expect("a token is visible ASCII");
    authorization.set_sensitive(true);
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::AUTHORIZATION, authorization);
    headers.insert(header::ACCEPT, json.clone());
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::CONTENT_TYPE, json);
    headers
}
