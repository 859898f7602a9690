//! What an operator can set: one struct a section, data only. Loading and checking stand in [`load`].
//!
//! Everyone is handed the section it needs; nobody reads the environment or a file on its own.

mod keys;
pub mod load;
mod rules;
mod show;
#[cfg(test)]
mod tests;
mod value;

pub use load::{ConfigError, Flag, LoadedConfig, Origin, Sources};
pub use show::EffectiveValue;
pub use value::parse_duration;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use crate::task::Service;
use crate::token::Token;

/// The whole configuration, as checked at start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[upstream]`
    pub upstream: UpstreamConfig,
    /// `[tasks]`
    pub tasks: TasksConfig,
    /// `[access]`
    pub access: AccessConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[log]`
    pub log: LogConfig,
}

/// The client port.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Address of the client port.
    pub listen: SocketAddr,
    /// Largest body of a look-up, in bytes; larger bodies are passed through.
    pub max_request_bytes: u64,
    /// How long work in hand may take after the first signal.
    pub shutdown_timeout: Duration,
    /// Origins of browser apps that may call the proxy; `*` for any; empty: CORS is left to the upstream.
    pub cors_origins: Vec<String>,
}

/// The admin port.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminConfig {
    /// Address of the admin port; `None` for `"off"`.
    pub listen: Option<SocketAddr>,
    /// Bearer token of the admin port; needed beyond loopback.
    pub token: Option<Token>,
}

/// The upstream and how it is spared.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// Scheme and authority of the upstream, without a trailing slash: `https://api.acedata.cloud`.
    pub base_url: http::Uri,
    /// The team's token, in `shared` mode alone.
    pub token: Option<Token>,
    /// Limit of one connection attempt, of look-ups and passed-through requests alike.
    pub connect_timeout: Duration,
    /// Limit of one look-up call from its start to the end of its answer.
    pub request_timeout: Duration,
    /// How many times a look-up call is repeated after 429, 5xx or a transport error.
    pub max_retries: u32,
    /// Most distinct ids in one upstream call.
    pub max_batch: usize,
    /// Look-up calls a second for one token.
    pub requests_per_second: f64,
    /// Most calls a token may save up.
    pub burst: u32,
    /// Largest answer of a look-up after decompression, and of an answer put together here, in bytes.
    pub max_response_bytes: u64,
}

/// Which requests are look-ups, and how long their callers wait.
#[derive(Clone, Debug, PartialEq)]
pub struct TasksConfig {
    /// Services whose `/{service}/tasks` is understood.
    pub services: Services,
    /// Client headers that go upstream with a look-up.
    pub forward_headers: Vec<http::HeaderName>,
    /// How long a pending answer is shown again without asking upstream.
    pub pending_max_age: Duration,
    /// How old a pending answer may be when the queue is longer than `queue_timeout`.
    pub pending_max_stale: Duration,
    /// How long a look-up waits for its turn.
    pub queue_timeout: Duration,
    /// Longest `prefer: wait=N`.
    pub max_wait: Duration,
    /// Most ids in one look-up.
    pub max_ids: usize,
}

/// The services of `tasks.services`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// `["*"]`: every name of the right form.
    All,
    /// The named ones.
    Named(Vec<Service>),
}

impl Services {
    /// Whether `/{name}/tasks` is a look-up path; the service if so.
    pub fn find(&self, name: &str) -> Option<Cow<'_, Service>> {
        match self {
            Self::All => Service::parse(name).map(Cow::Owned),
            Self::Named(services) => {
                services.iter().find(|service| service.as_str() == name).map(Cow::Borrowed)
            }
        }
    }

    /// The services that are named, as labels of metrics: none where all are served.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let named: &[Service] = match self {
            Self::All => &[],
            Self::Named(services) => services,
        };
        named.iter().map(Service::as_str)
    }
}

/// Who may read what.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessConfig {
    /// Whether rights are kept for each token or for the team.
    pub mode: AccessMode,
    /// The clients of `shared` mode.
    pub clients: Vec<SharedClient>,
    /// How long a token's hits go on without the upstream having accepted the token.
    pub recheck_after: Duration,
}

/// `access.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// Rights for each token (law 1); tokens are the clients' own.
    Token,
    /// One team, one view; the proxy adds the real token itself.
    Shared,
}

/// A client of `shared` mode.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedClient {
    /// Its name, for logs.
    pub name: String,
    /// The key it sends as its bearer token.
    pub key: Token,
}

/// The task store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// `sqlite://` and the path of the database file.
    pub url: String,
    /// Finished tasks kept in memory, in bytes; 0 for none.
    pub memory_bytes: u64,
    /// Largest sum of task texts in bytes; 0 for no limit.
    pub max_bytes: u64,
    /// How long an unused task is kept; zero for ever.
    pub max_age: Duration,
}

/// Logging, to stderr.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// Shape of a line.
    pub format: LogFormat,
    /// A tracing filter, for example `info,refrain::batcher=debug`.
    pub filter: String,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For machines: one JSON object a line.
    Json,
}

const MIB: u64 = 1 << 20;

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_request_bytes: MIB,
            shutdown_timeout: Duration::from_secs(25),
            cors_origins: Vec::new(),
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 8081))), token: None }
    }
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            base_url: http::Uri::from_static("https://api.acedata.cloud"),
            token: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            max_retries: 4,
            max_batch: 50,
            requests_per_second: 1.0,
            burst: 1,
            max_response_bytes: 32 * MIB,
        }
    }
}

impl Default for TasksConfig {
    fn default() -> Self {
        Self {
            services: Services::Named(vec![Service::parse("producer").expect("a service name")]),
            forward_headers: vec![http::HeaderName::from_static("x-record-exempt")],
            pending_max_age: Duration::from_secs(1),
            pending_max_stale: Duration::from_secs(15),
            queue_timeout: Duration::from_secs(5),
            max_wait: Duration::from_secs(60),
            max_ids: 10_000,
        }
    }
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self { mode: AccessMode::Token, clients: Vec::new(), recheck_after: Duration::from_secs(3600) }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: "sqlite://refrain.db".to_owned(),
            memory_bytes: 64 * MIB,
            max_bytes: 0,
            max_age: Duration::ZERO,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info".to_owned() }
    }
}
