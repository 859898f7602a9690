//! The configuration: one struct per section. Loading, checking and showing it are in the child
//! modules.
//!
//! Each part of the program receives its section. Only the command line reads files and the
//! environment.

mod keys;
mod load;
mod loaded;
mod notation;
mod rules;
#[cfg(test)]
mod tests;

pub use load::{ConfigError, ConfigSources, FlagValue};
pub use loaded::{EffectiveValue, LoadedConfig, Origin};
pub use notation::parse_duration;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::task::{CATALOGUE, InterpretedServices, Service, ServiceClass, ServiceRules};
use crate::token::{Digest, Token};

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
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
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address of the client port.
    #[serde(deserialize_with = "notation::address")]
    pub listen: SocketAddr,
    /// Largest body of a lookup, in bytes. Larger bodies are passed through.
    #[serde(deserialize_with = "notation::size::<_, 1>", serialize_with = "notation::show_size")]
    pub max_request_bytes: u64,
    /// Longest time from the first signal to the end of the process.
    #[serde(deserialize_with = "notation::duration", serialize_with = "notation::show_duration")]
    pub shutdown_timeout: Duration,
    /// Origins of browser apps that may call the proxy; `*` for any. If empty, CORS is left to the
    /// upstream.
    #[serde(deserialize_with = "notation::cors_origins")]
    pub cors_origins: Vec<String>,
}

/// The admin port.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Address of the admin port; `None` for `"off"`.
    #[serde(
        deserialize_with = "notation::optional_address",
        serialize_with = "notation::show_optional_address"
    )]
    pub listen: Option<SocketAddr>,
    /// Bearer token of the admin port. Required unless the address is a loopback address.
    #[serde(deserialize_with = "notation::optional_token", serialize_with = "notation::hide_token")]
    pub token: Option<Token>,
    /// File that contains the token. Loading copies its content to `token`.
    #[serde(deserialize_with = "notation::path")]
    pub token_file: PathBuf,
}

/// The upstream and the limits of calls to it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Scheme and authority of the upstream, without a trailing slash: `https://api.acedata.cloud`.
    #[serde(deserialize_with = "notation::base_url", serialize_with = "notation::show_url")]
    pub base_url: http::Uri,
    /// Token of the team. Used only in `shared` mode.
    #[serde(deserialize_with = "notation::optional_token", serialize_with = "notation::hide_token")]
    pub token: Option<Token>,
    /// File that contains the token. Loading copies its content to `token`.
    #[serde(deserialize_with = "notation::path")]
    pub token_file: PathBuf,
    /// Time limit of one connection attempt, for lookups and for passed-through requests.
    #[serde(deserialize_with = "notation::positive_duration", serialize_with = "notation::show_duration")]
    pub connect_timeout: Duration,
    /// Time limit of one lookup call, from its start to the end of its response.
    #[serde(deserialize_with = "notation::positive_duration", serialize_with = "notation::show_duration")]
    pub request_timeout: Duration,
    /// Largest number of retries of a lookup call after a 429, a 5xx or a transport error.
    #[serde(deserialize_with = "notation::whole::<_, _, 0, 20>")]
    pub max_retries: u32,
    /// Largest number of distinct ids in one upstream call.
    #[serde(deserialize_with = "notation::whole::<_, _, 1, 1000>")]
    pub max_batch: usize,
    /// Lookup calls per second and token.
    #[serde(deserialize_with = "notation::rate")]
    pub requests_per_second: f64,
    /// Size of the token bucket: the number of calls that an idle token may make at once.
    #[serde(deserialize_with = "notation::whole::<_, _, 1, { u32::MAX }>")]
    pub burst: u32,
    /// Largest lookup response after decompression, and largest response assembled here, in bytes.
    #[serde(
        deserialize_with = "notation::size::<_, MIN_RESPONSE_BYTES>",
        serialize_with = "notation::show_size"
    )]
    pub max_response_bytes: u64,
}

/// Lookups: which requests they are, and how long they wait.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TasksConfig {
    /// Services of the catalogue whose `/{service}/tasks` is interpreted.
    #[serde(deserialize_with = "notation::services", serialize_with = "notation::show_services")]
    pub services: Services,
    /// Services that the catalogue lacks.
    #[serde(deserialize_with = "notation::custom_services")]
    pub custom_services: Vec<CustomService>,
    /// Client headers that are sent upstream with a lookup.
    #[serde(deserialize_with = "notation::header_names", serialize_with = "notation::show_header_names")]
    pub forward_headers: Vec<http::HeaderName>,
    /// Age up to which a pending record is served without an upstream call.
    #[serde(deserialize_with = "notation::duration", serialize_with = "notation::show_duration")]
    pub pending_max_age: Duration,
    /// Age up to which a pending record may be served instead of waiting for a newer one.
    #[serde(deserialize_with = "notation::positive_duration", serialize_with = "notation::show_duration")]
    pub pending_max_stale: Duration,
    /// Longest time that a lookup waits for the first fetch of an id.
    #[serde(deserialize_with = "notation::positive_duration", serialize_with = "notation::show_duration")]
    pub queue_timeout: Duration,
    /// Longest `prefer: wait=N`.
    #[serde(deserialize_with = "notation::duration", serialize_with = "notation::show_duration")]
    pub max_wait: Duration,
    /// Time for which single lookups without `prefer` are held until their task is final, at most
    /// `max_wait`; zero for none.
    #[serde(deserialize_with = "notation::duration", serialize_with = "notation::show_duration")]
    pub default_wait: Duration,
    /// Largest number of ids in one lookup.
    #[serde(deserialize_with = "notation::whole::<_, _, 1, { u32::MAX }>")]
    pub max_ids: usize,
}

/// Value of `tasks.services`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// `["*"]`: every service of the catalogue that can be interpreted.
    All,
    /// The listed services.
    Named(Vec<Service>),
}

/// Service that the catalogue lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CustomService {
    /// First segment of its path.
    pub name: Service,
    /// Treatment of its lookups.
    pub class: ServiceClass,
    /// Most ids in one upstream call. Only services of the class `batch` have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch: Option<usize>,
}

impl CustomService {
    /// Returns the rules for its lookups.
    pub fn rules(&self) -> ServiceRules {
        ServiceRules::new(self.class, self.max_batch)
    }
}

impl TasksConfig {
    /// Returns the services whose lookups are interpreted.
    pub fn interpreted_services(&self) -> InterpretedServices {
        let is_selected = |name: &str| match &self.services {
            Services::All => true,
            Services::Named(named) => named.iter().any(|service| service.as_str() == name),
        };
        let known = CATALOGUE.iter().filter(|entry| is_selected(entry.name)).map(|entry| {
            (Service::parse(entry.name).expect("names of the catalogue are valid"), entry.rules)
        });
        let custom = self.custom_services.iter().map(|service| (service.name.clone(), service.rules()));
        InterpretedServices::new(known.chain(custom))
    }
}

/// Access to stored tasks.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// Whether grants belong to single tokens or to the team.
    #[serde(deserialize_with = "notation::access_mode")]
    pub mode: AccessMode,
    /// Clients of `shared` mode.
    #[serde(deserialize_with = "notation::clients")]
    pub clients: Vec<SharedClient>,
    /// Names of tokens in `token` mode.
    #[serde(deserialize_with = "notation::named_tokens")]
    pub tokens: Vec<NamedToken>,
    /// Time after which a token needs a new acceptance by the upstream before it gets hits.
    #[serde(deserialize_with = "notation::duration", serialize_with = "notation::show_duration")]
    pub recheck_after: Duration,
}

/// Value of `access.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessMode {
    /// Grants per token (see Isolation in docs/invariants.md). Clients send their own tokens.
    Token,
    /// Grants for the whole team. Clients send keys, and the proxy adds the token.
    Shared,
}

/// A client of `shared` mode.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SharedClient {
    /// Name for log, dashboard, metrics and API.
    pub name: String,
    /// Key that the client sends as its bearer token.
    pub key: Token,
}

/// A token that has a name in `token` mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedToken {
    /// Name for log, dashboard, metrics and API.
    pub name: String,
    /// Digest of the token, as `refrain tokens digest` prints it.
    pub digest: Digest,
}

impl AccessConfig {
    /// Returns the names that callers have in this mode.
    pub fn names(&self) -> Vec<&str> {
        match self.mode {
            AccessMode::Token => self.tokens.iter().map(|token| token.name.as_str()).collect(),
            AccessMode::Shared => self.clients.iter().map(|client| client.name.as_str()).collect(),
        }
    }
}

/// The task store.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `sqlite://` and the path of the database file. The path alone is accepted too.
    #[serde(deserialize_with = "notation::sqlite_url")]
    pub url: String,
    /// Size of the memory cache, in bytes; 0 for none.
    #[serde(deserialize_with = "notation::size::<_, 0>", serialize_with = "notation::show_size")]
    pub memory_bytes: u64,
    /// Largest total size of the stored records, in bytes; 0 for no limit.
    #[serde(deserialize_with = "notation::size::<_, 0>", serialize_with = "notation::show_size")]
    pub max_bytes: u64,
    /// Time after which an unused task is removed; zero for never.
    #[serde(deserialize_with = "notation::duration", serialize_with = "notation::show_duration")]
    pub max_age: Duration,
}

/// The log, on stderr.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Format of a line.
    #[serde(deserialize_with = "notation::log_format")]
    pub format: LogFormat,
    /// A tracing filter, for example `info,refrain::batcher=debug`.
    #[serde(deserialize_with = "notation::log_filter")]
    pub filter: String,
}

/// Value of `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for a terminal.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Room for one task record of usual size.
const MIN_RESPONSE_BYTES: u64 = 64 << 10;

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
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 8081))),
            token: None,
            token_file: PathBuf::new(),
        }
    }
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            base_url: http::Uri::from_static("https://api.acedata.cloud"),
            token: None,
            token_file: PathBuf::new(),
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
            services: Services::All,
            custom_services: Vec::new(),
            forward_headers: vec![http::HeaderName::from_static("x-record-exempt")],
            pending_max_age: Duration::from_secs(1),
            pending_max_stale: Duration::from_secs(15),
            queue_timeout: Duration::from_secs(25),
            max_wait: Duration::from_secs(60),
            default_wait: Duration::ZERO,
            max_ids: 10_000,
        }
    }
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            mode: AccessMode::Token,
            clients: Vec::new(),
            tokens: Vec::new(),
            recheck_after: Duration::from_secs(3600),
        }
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
