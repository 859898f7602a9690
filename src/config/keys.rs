//! Every key that can be set: its name, how its value is read into the configuration and how it is shown.

use std::path::PathBuf;

use super::value::{self, RawValue, Read};
use super::{AccessMode, Config, LogFormat, Services, SharedClient};
use crate::task::Service;

/// A configuration in the making: what is read, and the files that secrets come from.
#[derive(Default)]
pub(super) struct PartialConfig {
    pub(super) config: Config,
    pub(super) upstream_token_file: Option<PathBuf>,
    pub(super) admin_token_file: Option<PathBuf>,
}

/// One key.
pub(super) struct Key {
    /// Section and key, `upstream.max_batch`.
    pub(super) name: &'static str,
    /// How a value stands in an environment variable.
    pub(super) spelling: EnvFormat,
    /// A secret is never printed.
    pub(super) is_secret: bool,
    pub(super) set: fn(&mut PartialConfig, &RawValue) -> Read<()>,
    /// The effective value, secrets as stars; `None` for a key that only says where another's value is.
    pub(super) show: Option<fn(&Config) -> RawValue>,
}

/// How a value stands in an environment variable.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum EnvFormat {
    /// Strings, durations and sizes: as they are.
    AsItIs,
    /// Numbers and lists.
    Toml,
}

use EnvFormat::{AsItIs, Toml};

/// `field` of the configuration is read by `read` and shown by `show`.
macro_rules! key {
    ($spelling:ident $section:ident . $key:ident, $read:expr, $show:expr) => {
        Key {
            name: concat!(stringify!($section), ".", stringify!($key)),
            spelling: $spelling,
            is_secret: false,
            set: |draft, given| {
                draft.config.$section.$key = $read(given)?;
                Ok(())
            },
            show: Some(|config| $show(&config.$section.$key)),
        }
    };
}

macro_rules! secret {
    ($key:expr) => {{
        let mut key = $key;
        key.is_secret = true;
        key
    }};
}

macro_rules! token_file {
    ($name:literal, $field:ident) => {
        Key {
            name: $name,
            spelling: AsItIs,
            is_secret: false,
            set: |draft, given| {
                draft.$field = value::path(given)?;
                Ok(())
            },
            show: None,
        }
    };
}

const MODES: [(&str, AccessMode); 2] = [("token", AccessMode::Token), ("shared", AccessMode::Shared)];
const FORMATS: [(&str, LogFormat); 2] = [("pretty", LogFormat::Pretty), ("json", LogFormat::Json)];

/// The least that still holds one task with some room.
const LEAST_RESPONSE_BYTES: u64 = 64 << 10;

/// All keys, in the order in which they are explained and shown.
pub(super) const KEYS: [Key; 33] = [
    key!(AsItIs server.listen, value::address, text),
    key!(AsItIs server.max_request_bytes, |given| value::size(given, 1), size),
    key!(AsItIs server.shutdown_timeout, value::duration, duration),
    key!(Toml server.cors_origins, value::origins, |origins: &Vec<String>| texts(origins)),
    key!(AsItIs admin.listen, value::address_or_off, |listen: &Option<std::net::SocketAddr>| {
        listen.as_ref().map_or_else(|| RawValue::text("off"), text)
    }),
    secret!(key!(AsItIs admin.token, value::token, |token: &Option<_>| value::show_token(token.as_ref()))),
    token_file!("admin.token_file", admin_token_file),
    key!(AsItIs upstream.base_url, value::base_url, value::show_uri),
    secret!(key!(AsItIs upstream.token, value::token, |token: &Option<_>| value::show_token(token.as_ref()))),
    token_file!("upstream.token_file", upstream_token_file),
    key!(AsItIs upstream.connect_timeout, value::duration_above_zero, duration),
    key!(AsItIs upstream.request_timeout, value::duration_above_zero, duration),
    key!(Toml upstream.max_retries, |given| value::whole(given, 0, 20), whole),
    key!(Toml upstream.max_batch, |given| value::whole(given, 1, 1000).map(|number| number as usize), count),
    key!(Toml upstream.requests_per_second, value::rate, |rate: &f64| RawValue::Decimal(*rate)),
    key!(Toml upstream.burst, |given| value::whole(given, 1, u32::MAX), whole),
    key!(AsItIs upstream.max_response_bytes, |given| value::size(given, LEAST_RESPONSE_BYTES), size),
    key!(Toml tasks.services, value::services, |services: &Services| match services {
        Services::All => RawValue::List(vec![RawValue::text("*")]),
        Services::Named(services) => list(services.iter().map(Service::as_str)),
    }),
    key!(Toml tasks.forward_headers, value::header_names, |names: &Vec<http::HeaderName>| {
        list(names.iter().map(http::HeaderName::as_str))
    }),
    key!(AsItIs tasks.pending_max_age, value::duration, duration),
    key!(AsItIs tasks.pending_max_stale, value::duration_above_zero, duration),
    key!(AsItIs tasks.queue_timeout, value::duration_above_zero, duration),
    key!(AsItIs tasks.max_wait, value::duration, duration),
    key!(Toml tasks.max_ids, |given| value::whole(given, 1, u32::MAX).map(|number| number as usize), count),
    key!(AsItIs access.mode, |given| value::word(given, &MODES), |mode: &AccessMode| spell(mode, &MODES)),
    secret!(key!(Toml access.clients, value::clients, |clients: &Vec<SharedClient>| {
        RawValue::List(clients.iter().map(show_client).collect())
    })),
    key!(AsItIs access.recheck_after, value::duration, duration),
    key!(AsItIs store.url, value::store_url, text),
    key!(AsItIs store.memory_bytes, |given| value::size(given, 0), size),
    key!(AsItIs store.max_bytes, |given| value::size(given, 0), size),
    key!(AsItIs store.max_age, value::duration, duration),
    key!(AsItIs log.format, |given| value::word(given, &FORMATS), |format: &LogFormat| spell(format, &FORMATS)),
    key!(AsItIs log.filter, value::filter, text),
];

impl Key {
    /// The key of that full name.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// `upstream` of `upstream.max_batch`.
    pub(super) fn section(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(section, _)| section)
    }

    /// `max_batch` of `upstream.max_batch`.
    pub(super) fn field(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, field)| field)
    }

    /// `REFRAIN_UPSTREAM__MAX_BATCH`.
    pub(super) fn variable(&self) -> String {
        format!("REFRAIN_{}__{}", self.section(), self.field()).to_ascii_uppercase()
    }
}

/// The key that was probably meant: a near name, the same word in another section, or a name not that near.
pub(super) fn nearest(name: &str) -> Option<&'static Key> {
    let name = name.to_ascii_lowercase();
    let field = name.rsplit('.').next().unwrap_or_default();
    let within = |most: usize, distance: &dyn Fn(&Key) -> usize| {
        KEYS.iter().min_by_key(|key| distance(key)).filter(|key| distance(key) <= most)
    };
    let whole = |key: &Key| strsim::damerau_levenshtein(&name, key.name);
    let part = |key: &Key| strsim::damerau_levenshtein(field, key.field());
    within(2, &whole).or_else(|| within(1, &part)).or_else(|| within(4, &whole))
}

/// The section that was probably meant.
pub(super) fn nearest_section(name: &str) -> Option<&'static str> {
    let distance = |key: &&Key| strsim::damerau_levenshtein(&name.to_ascii_lowercase(), key.section());
    KEYS.iter().min_by_key(distance).filter(|key| distance(key) <= 3).map(Key::section)
}

fn text(value: &impl ToString) -> RawValue {
    RawValue::Text(value.to_string())
}

fn texts(values: &[String]) -> RawValue {
    list(values.iter().map(String::as_str))
}

fn list<'a>(values: impl Iterator<Item = &'a str>) -> RawValue {
    RawValue::List(values.map(RawValue::text).collect())
}

fn size(value: &u64) -> RawValue {
    value::show_size(*value)
}

fn duration(value: &std::time::Duration) -> RawValue {
    value::show_duration(*value)
}

fn whole(value: &u32) -> RawValue {
    RawValue::Whole((*value).into())
}

fn count(value: &usize) -> RawValue {
    RawValue::Whole(i64::try_from(*value).unwrap_or(i64::MAX))
}

fn spell<T: PartialEq>(value: &T, words: &[(&str, T)]) -> RawValue {
    RawValue::text(words.iter().find(|(_, meaning)| meaning == value).map_or("", |(word, _)| word))
}

fn show_client(client: &SharedClient) -> RawValue {
    let entries = [("name", client.name.as_str()), ("key", "***")];
    RawValue::Table(entries.map(|(key, value)| (key.to_owned(), RawValue::text(value))).into())
}
