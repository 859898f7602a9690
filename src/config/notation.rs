//! The TOML notation of each kind of value, for `deserialize_with` and `serialize_with`.
//!
//! The error of a `deserialize_with` function ends the sentence "key = value: …". It never quotes
//! the value, which may be a secret.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use http::{HeaderName, Uri};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};
use toml::Value;
use tracing_subscriber::EnvFilter;

use super::{AccessMode, CustomService, LogFormat, NamedToken, Services, SharedClient};
use crate::escape::printable;
use crate::task::{Service, ServiceClass};
use crate::token::{Digest, Token};

/// Deserializes any TOML value and parses it.
fn parse<'de, D: Deserializer<'de>, T, E: ToString>(
    deserializer: D,
    parser: impl FnOnce(&Value) -> Result<T, E>,
) -> Result<T, D::Error> {
    parser(&Value::deserialize(deserializer)?).map_err(|expected| D::Error::custom(expected.to_string()))
}

fn parse_address(value: &Value) -> Result<SocketAddr, String> {
    value.as_str().and_then(parse_listen_address).ok_or_else(|| {
        "must be an address with a port, such as \"127.0.0.1:8080\", \"localhost:8080\" or \":8080\""
            .to_owned()
    })
}

/// `localhost` is 127.0.0.1, and no host means all IPv4 addresses.
fn parse_listen_address(text: &str) -> Option<SocketAddr> {
    let host = match text.rsplit_once(':')? {
        ("", _) => Ipv4Addr::UNSPECIFIED,
        (host, _) if host.eq_ignore_ascii_case("localhost") => Ipv4Addr::LOCALHOST,
        _ => return text.parse().ok(),
    };
    let (_, port) = text.rsplit_once(':')?;
    format!("{host}:{port}").parse().ok()
}

/// An IP address or `localhost` with a port, or a port alone after a colon.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    parse(deserializer, parse_address)
}

/// As [`address`], or `off`.
pub(super) fn optional_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    parse(deserializer, |value| match value.as_str() {
        Some("off") => Ok(None),
        _ => parse_address(value).map(Some).map_err(|expected| format!("{expected}, or \"off\"")),
    })
}

pub(super) fn show_optional_address<S: Serializer>(
    address: &Option<SocketAddr>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_str("off"),
    }
}

/// A size of at least `MIN` bytes, as text with a unit or as a number of bytes.
pub(super) fn size<'de, D: Deserializer<'de>, const MIN: u64>(deserializer: D) -> Result<u64, D::Error> {
    parse(deserializer, |value| {
        let bytes = match value {
            Value::String(text) => text.parse().ok().map(|ByteSize(bytes)| bytes),
            Value::Integer(bytes) => u64::try_from(*bytes).ok(),
            _ => None,
        };
        // SQLite has signed integers.
        let bytes = bytes.filter(|bytes| (MIN..=i64::MAX.unsigned_abs()).contains(bytes));
        bytes.ok_or_else(|| match MIN {
            0 => "must be a size such as \"64MiB\", or \"0\"".to_owned(),
            1 => "must be a size above 0, such as \"1MiB\"".to_owned(),
            _ => format!("must be a size of at least \"{}\", such as \"32MiB\"", exact_size(MIN)),
        })
    })
}

pub(super) fn show_size<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&exact_size(*bytes))
}

/// Returns the shortest exact notation: `64MiB`, `1000B`, `0`.
pub(super) fn exact_size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")];
    let unit = units.iter().find(|(factor, _)| bytes > 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| "0".to_owned(), |(factor, unit)| format!("{}{unit}", bytes / factor))
}

/// Parses a duration such as `30d`, `12h` or `1h 30m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    // `humantime` panics on sums near 2^64 seconds.
    let is_safe = text.len() <= 64 && !text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > 10);
    is_safe.then(|| humantime::parse_duration(text).ok()).flatten()
}

/// Longest duration: 100 years. It can be added to any clock without overflow.
const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A duration, zero included.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(deserializer, |value| {
        let duration = value.as_str().and_then(parse_duration).filter(|duration| *duration <= MAX_DURATION);
        duration.ok_or("must be a duration such as \"5s\", \"90m\" or \"1h 30m\"")
    })
}

/// A duration above zero.
pub(super) fn positive_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    match duration(deserializer)? {
        Duration::ZERO => Err(D::Error::custom("must be longer than 0, such as \"5s\"")),
        duration => Ok(duration),
    }
}

pub(super) fn show_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// A whole number from `MIN` to `MAX`.
pub(super) fn whole<'de, D: Deserializer<'de>, T: TryFrom<i64>, const MIN: u32, const MAX: u32>(
    deserializer: D,
) -> Result<T, D::Error> {
    parse(deserializer, |value| {
        let number = value.as_integer().filter(|number| (MIN.into()..=MAX.into()).contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match MAX {
            u32::MAX => format!("must be a whole number of at least {MIN}"),
            _ => format!("must be a whole number from {MIN} to {MAX}"),
        })
    })
}

/// Calls per second. With less than one call in 1,000 seconds, every client would give up.
pub(super) fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    parse(deserializer, |value| {
        let number = match value {
            Value::Integer(number) => i32::try_from(*number).ok().map(f64::from),
            other => other.as_float(),
        };
        let number = number.filter(|number| (0.001..=1000.0).contains(number));
        number.ok_or("must be a number from 0.001 to 1000, such as 0.5")
    })
}

pub(super) fn access_mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AccessMode, D::Error> {
    parse(deserializer, |value| match value.as_str() {
        Some("token") => Ok(AccessMode::Token),
        Some("shared") => Ok(AccessMode::Shared),
        _ => Err("must be \"token\" or \"shared\""),
    })
}

pub(super) fn log_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LogFormat, D::Error> {
    parse(deserializer, |value| match value.as_str() {
        Some("pretty") => Ok(LogFormat::Pretty),
        Some("json") => Ok(LogFormat::Json),
        _ => Err("must be \"pretty\" or \"json\""),
    })
}

/// Description of a valid token.
pub(super) const TOKEN: &str =
    "must be visible ASCII characters without spaces: only the token, without \"Bearer\"";

/// A token. The empty string means none.
pub(super) fn optional_token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Token>, D::Error> {
    parse(deserializer, |value| match value.as_str() {
        Some("") => Ok(None),
        text => text.and_then(Token::parse).map(Some).ok_or(TOKEN),
    })
}

pub(super) fn hide_token<S: Serializer>(token: &Option<Token>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if token.is_some() { "***" } else { "" })
}

/// The path of a file. The empty string means none.
pub(super) fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    parse(deserializer, |value| {
        let path = value.as_str().filter(|path| !path.contains('\0'));
        path.map(PathBuf::from).ok_or("must be the path of a file")
    })
}

/// Scheme and authority of a URL. The path of every upstream request is the client's.
pub(super) fn base_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uri, D::Error> {
    parse(deserializer, |value| {
        let url = value.as_str().ok_or("be a URL").and_then(parse_base_url);
        url.map_err(|rule| format!("must {rule}, for example \"https://api.acedata.cloud\""))
    })
}

fn parse_base_url(text: &str) -> Result<Uri, &'static str> {
    // `Uri` drops a fragment silently.
    if text.contains('#') {
        return Err("have no fragment");
    }
    let uri = Uri::from_str(text).map_err(|_| "be a URL")?;
    let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
    if !matches!(scheme.as_str(), "http" | "https") {
        return Err("begin with http:// or https://");
    }
    let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or("name a host")?;
    if authority.as_str().contains('@') {
        return Err("have no user or password");
    }
    if !has_valid_port(authority) {
        return Err("have a port from 1 to 65535, or none");
    }
    if uri.query().is_some() {
        return Err("have no query");
    }
    if !matches!(uri.path(), "" | "/") {
        return Err("have no path");
    }
    let authority = authority.as_str().to_ascii_lowercase();
    Uri::from_str(&format!("{scheme}://{authority}")).map_err(|_| "be a URL")
}

/// Whether nothing follows the host, or a colon and a port other than 0.
fn has_valid_port(authority: &http::uri::Authority) -> bool {
    let after_host = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    after_host.is_empty() || authority.port_u16().is_some_and(|port| port != 0)
}

pub(super) fn show_url<S: Serializer>(url: &Uri, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(url.to_string().trim_end_matches('/'))
}

/// The path of a file without a query or a fragment, alone or after `sqlite://`. Returns the second
/// form.
pub(super) fn sqlite_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let is_file = |path: &&str| {
        let is_reserved = |c: char| c == '?' || c == '#' || c.is_control();
        !path.is_empty() && !path.ends_with('/') && !path.starts_with(':') && !path.contains(is_reserved)
    };
    // A colon in the first component is probably another scheme, or a misspelt one.
    let is_plain = |path: &&str| !path.split('/').next().unwrap_or_default().contains(':');
    parse(deserializer, |value| {
        let text = value.as_str();
        let path = text.and_then(|text| text.strip_prefix("sqlite://")).or(text.filter(is_plain));
        path.filter(is_file).map(|path| format!("sqlite://{path}")).ok_or(
            "must be the path of a file, such as \"/data/refrain.db\" or \"sqlite:///data/refrain.db\"",
        )
    })
}

/// Returns the strings of a list, or `None` if the value is anything else.
fn strings(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

/// A list of service names, or `["*"]`.
pub(super) fn services<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Services, D::Error> {
    parse(deserializer, |value| {
        let services = match strings(value).unwrap_or_default()[..] {
            [] => None,
            ["*"] => Some(Services::All),
            ref names => {
                names.iter().map(|name| Service::parse(name)).collect::<Option<_>>().map(Services::Named)
            }
        };
        services.ok_or(
            "must be a list of service names ([A-Za-z0-9_-], at most 64 characters) or exactly [\"*\"]",
        )
    })
}

pub(super) fn show_services<S: Serializer>(services: &Services, serializer: S) -> Result<S::Ok, S::Error> {
    match services {
        Services::All => serializer.collect_seq(["*"]),
        Services::Named(services) => serializer.collect_seq(services.iter().map(Service::as_str)),
    }
}

/// Services that the catalogue lacks, each with another name.
pub(super) fn custom_services<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<CustomService>, D::Error> {
    const EXAMPLE: &str = "{ name = \"newservice\", class = \"batch\", max_batch = 50 }";
    parse(deserializer, |value| {
        let items = value.as_array().ok_or_else(|| format!("must be a list such as [{EXAMPLE}]"))?;
        let mut services: Vec<CustomService> = Vec::new();
        for (number, item) in (1..).zip(items) {
            let service = custom_service(item)
                .map_err(|rule| format!("service {number} must {rule}, for example {EXAMPLE}"))?;
            if services.iter().any(|other| other.name == service.name) {
                return Err(format!("service {number} has the name of an earlier one"));
            }
            services.push(service);
        }
        Ok(services)
    })
}

fn custom_service(item: &Value) -> Result<CustomService, &'static str> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        name: String,
        class: String,
        max_batch: Option<i64>,
    }
    let fields = Fields::deserialize(item.clone()).map_err(|_| "have name, class and perhaps max_batch")?;
    let name = Service::parse(&fields.name).ok_or("have a name of 1 to 64 letters, digits, - or _")?;
    let class = match fields.class.as_str() {
        "batch" => ServiceClass::Batch,
        "single" => ServiceClass::Single,
        "pass" => ServiceClass::Pass,
        _ => return Err("have the class \"batch\", \"single\" or \"pass\""),
    };
    let max_batch = match fields.max_batch.map(usize::try_from) {
        None => None,
        Some(Ok(max_batch @ 1..=1000)) if class == ServiceClass::Batch => Some(max_batch),
        Some(_) => return Err("have a max_batch from 1 to 1000 only with the class \"batch\""),
    };
    Ok(CustomService { name, class, max_batch })
}

/// Headers that refrain sets itself, that change the meaning of a response, or that carry
/// credentials.
const NEVER_FORWARDED: &str = "accept accept-encoding authorization connection content-encoding content-length \
    content-type cookie expect host http2-settings if-match if-modified-since if-none-match if-range \
    if-unmodified-since keep-alive payment-signature proxy-authorization proxy-connection range te trailer \
    transfer-encoding upgrade user-agent x-api-key";

/// Names of headers that may be sent upstream with a lookup.
pub(super) fn header_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HeaderName>, D::Error> {
    const EXPECTED: &str = "must be a list of header names, such as [\"x-record-exempt\"]";
    parse(deserializer, |value| {
        let mut headers = Vec::new();
        for name in strings(value).ok_or(EXPECTED)? {
            let header = HeaderName::from_str(name).map_err(|_| EXPECTED)?;
            if NEVER_FORWARDED.split(' ').any(|forbidden| header == forbidden) {
                return Err(format!(
                    "must not name {header}: refrain sets framing, content and connection headers itself, and \
                     credentials do not belong here"
                ));
            }
            if !headers.contains(&header) {
                headers.push(header);
            }
        }
        Ok(headers)
    })
}

pub(super) fn show_header_names<S: Serializer>(
    headers: &[HeaderName],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(headers.iter().map(HeaderName::as_str))
}

/// Origins as browsers write them (lower case, no default port), or `["*"]`.
pub(super) fn cors_origins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    parse(deserializer, |value| {
        let origins = strings(value).and_then(|origins| match origins[..] {
            ["*"] => Some(vec!["*".to_owned()]),
            _ => origins.into_iter().map(parse_cors_origin).collect(),
        });
        origins.ok_or("must be a list of origins such as [\"https://app.example\"], or exactly [\"*\"]")
    })
}

fn parse_cors_origin(text: &str) -> Option<String> {
    let (scheme, authority) = text.split_once("://")?;
    let uri = Uri::from_str(text).ok()?;
    let parsed =
        uri.authority().filter(|parsed| parsed.as_str() == authority && !parsed.host().is_empty())?;
    // Patterns are not supported, and no browser sends one as its origin.
    if authority.contains(['@', '*']) || !has_valid_port(parsed) {
        return None;
    }
    let (scheme, authority) = (scheme.to_ascii_lowercase(), authority.to_ascii_lowercase());
    let default_port = match scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let authority = authority.strip_suffix(default_port).unwrap_or(&authority);
    Some(format!("{scheme}://{authority}"))
}

/// Description of a valid name of a client or token.
const CLIENT_NAME: &str = "of 1 to 64 characters other than \"other\"";

/// `other` is the label of everything without a name.
fn is_client_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && !name.contains(char::is_control) && name != "other"
}

/// The names of tokens: a list of names and digests, each of them unique.
pub(super) fn named_tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NamedToken>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        name: String,
        digest: String,
    }
    const EXAMPLE: &str = "{ name = \"reports\", digest = \"…\" }";
    parse(deserializer, |value| {
        let items = value.as_array().ok_or_else(|| format!("must be a list such as [{EXAMPLE}]"))?;
        let mut tokens: Vec<NamedToken> = Vec::new();
        for (number, item) in (1..).zip(items) {
            // The error of serde may quote a token.
            let fields = Fields::deserialize(item.clone()).ok().filter(|fields| is_client_name(&fields.name));
            let Fields { name, digest } = fields.ok_or_else(|| {
                format!(
                    "token {number} must be like {EXAMPLE}: a name {CLIENT_NAME}, a digest, and nothing else"
                )
            })?;
            let shown = printable(&name);
            let digest = Digest::parse_hex(&digest).ok_or_else(|| {
                format!(
                    "token {number} (\"{shown}\") must have as its digest the 64 hexadecimal digits that \
                     `refrain tokens digest` prints, not the token itself"
                )
            })?;
            if tokens.iter().any(|other| other.name == name) {
                return Err(format!("token {number} has the name of an earlier one, \"{shown}\""));
            }
            if tokens.iter().any(|other| other.digest == digest) {
                return Err(format!("token {number} (\"{shown}\") has the digest of an earlier one"));
            }
            tokens.push(NamedToken { name, digest });
        }
        Ok(tokens)
    })
}

/// The clients of `shared` mode: a list of names and keys, each of them unique.
pub(super) fn clients<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SharedClient>, D::Error> {
    const EXAMPLE: &str = "{ name = \"reports\", key = \"…\" }";
    parse(deserializer, |value| {
        let items = value.as_array().ok_or_else(|| format!("must be a list such as [{EXAMPLE}]"))?;
        let mut clients: Vec<SharedClient> = Vec::new();
        for (number, item) in (1..).zip(items) {
            // The error of serde may quote the key.
            let client =
                SharedClient::deserialize(item.clone()).ok().filter(|client| is_client_name(&client.name));
            let client = client.ok_or_else(|| {
                format!(
                    "client {number} must be like {EXAMPLE}: a name {CLIENT_NAME}, a key of visible ASCII \
                     characters without spaces, and nothing else"
                )
            })?;
            if clients.iter().any(|other| other.name == client.name) {
                return Err(format!("client {number} has the name of an earlier one"));
            }
            if clients.iter().any(|other| other.key == client.key) {
                return Err(format!("client {number} has the key of an earlier one"));
            }
            clients.push(client);
        }
        Ok(clients)
    })
}

/// A tracing filter. A name alone is refused unless it is a level or a module of refrain:
/// `EnvFilter` takes a misspelt level for the name of a module and mutes all others.
pub(super) fn log_filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    const EXPECTED: &str = "must be a filter such as \"info\" or \"info,refrain::batcher=debug\"";
    parse(deserializer, |value| {
        let filter = value.as_str().filter(|text| !text.trim().is_empty()).ok_or(EXPECTED)?;
        // Fields of a span may contain commas and equal signs.
        let is_simple = |part: &&str| !part.contains(['[', ']', '{', '}']);
        for part in filter.split(',').map(str::trim).filter(is_simple) {
            let is_module = part == "refrain" || part.starts_with("refrain::");
            let level = match part.rsplit_once('=') {
                Some((_, level)) => level,
                None if is_module => continue,
                None => part,
            };
            if let Some(hint) = misspelt_level(level) {
                return Err(format!("{EXPECTED}; {hint}"));
            }
        }
        EnvFilter::builder().parse(filter).map_err(|_| EXPECTED)?;
        Ok(filter.to_owned())
    })
}

/// Returns what to write instead, unless the text is a level.
fn misspelt_level(text: &str) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = text.to_ascii_lowercase();
    if LEVELS.contains(&text.as_str()) || text.parse::<u8>().is_ok_and(|number| number <= 5) {
        return None;
    }
    let distance = |level: &&str| strsim::damerau_levenshtein(&text, level);
    let nearest = LEVELS.into_iter().min_by_key(distance).filter(|level| distance(level) <= 1);
    let meant = if text == "warning" { Some("warn") } else { nearest };
    Some(match meant {
        Some(level) => format!("did you mean \"{level}\"?"),
        None => "the levels are off, error, warn, info, debug and trace".to_owned(),
    })
}
