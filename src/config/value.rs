//! One given value, whatever source it came from, and the readers that turn it into what a field holds. A reader's
//! error is the end of the sentence "key = value: …".

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use http::{HeaderName, Uri};
use toml::de::DeValue;
use tracing_subscriber::EnvFilter;

use super::{Services, SharedClient};
use crate::task::Service;
use crate::token::Token;

/// A value as it was given. [`fmt::Display`] writes it as TOML on one line.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RawValue {
    Text(String),
    Whole(i64),
    Decimal(f64),
    List(Vec<RawValue>),
    Table(Vec<(String, RawValue)>),
    /// A boolean, a date or a number that is none: nothing here takes one.
    Other(String),
}

/// What a reader found, or what would have been right.
pub(super) type Read<T> = Result<T, String>;

impl RawValue {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// The value written as TOML; what is no TOML stays the text it is, for a reader to refuse.
    pub(super) fn from_toml(text: &str) -> Self {
        DeValue::parse(text).map_or_else(|_| Self::text(text), |value| value.get_ref().into())
    }

    fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn as_texts(&self) -> Option<Vec<&str>> {
        match self {
            Self::List(items) => items.iter().map(Self::as_text).collect(),
            _ => None,
        }
    }
}

impl From<&DeValue<'_>> for RawValue {
    fn from(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::text(text.as_ref()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Self::Other(number.to_string()), Self::Whole),
            DeValue::Float(number) => {
                number.as_str().parse().map_or_else(|_| Self::Other(number.to_string()), Self::Decimal)
            }
            DeValue::Boolean(value) => Self::Other(value.to_string()),
            DeValue::Datetime(value) => Self::Other(value.to_string()),
            DeValue::Array(items) => Self::List(items.iter().map(|item| item.get_ref().into()).collect()),
            DeValue::Table(table) => Self::Table(
                table
                    .iter()
                    .map(|(key, value)| (key.get_ref().to_string(), value.get_ref().into()))
                    .collect(),
            ),
        }
    }
}

impl fmt::Display for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => quote(text, f),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Decimal(number) => write!(f, "{number:?}"),
            Self::List(items) => {
                f.write_str("[")?;
                for (position, item) in items.iter().enumerate() {
                    let comma = if position == 0 { "" } else { ", " };
                    write!(f, "{comma}{item}")?;
                }
                f.write_str("]")
            }
            Self::Table(entries) => {
                f.write_str("{ ")?;
                for (position, (key, value)) in entries.iter().enumerate() {
                    let comma = if position == 0 { "" } else { ", " };
                    write!(f, "{comma}{} = {value}", key.escape_debug())?;
                }
                f.write_str(" }")
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// A TOML basic string; also harmless on a terminal.
fn quote(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    for character in text.chars() {
        match character {
            '"' | '\\' => write!(f, "\\{character}")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            _ if character.is_control() => write!(f, "\\u{:04X}", u32::from(character))?,
            _ => write!(f, "{character}")?,
        }
    }
    f.write_str("\"")
}

/// The shortest exact spelling: `64MiB`, `1000B`, `0`.
pub(super) fn show_size(bytes: u64) -> RawValue {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")];
    let shown = units
        .iter()
        .find(|(factor, _)| bytes > 0 && bytes.is_multiple_of(*factor))
        .map_or_else(|| "0".to_owned(), |(factor, unit)| format!("{}{unit}", bytes / factor));
    RawValue::Text(shown)
}

pub(super) fn show_duration(duration: Duration) -> RawValue {
    RawValue::Text(humantime::format_duration(duration).to_string())
}

pub(super) fn show_uri(uri: &Uri) -> RawValue {
    RawValue::text(uri.to_string().trim_end_matches('/'))
}

/// Stars for a secret that is set, nothing for one that is not.
pub(super) fn show_token(token: Option<&Token>) -> RawValue {
    RawValue::text(if token.is_some() { "***" } else { "" })
}

pub(super) fn address(given: &RawValue) -> Read<SocketAddr> {
    given.as_text().and_then(|text| text.parse().ok()).ok_or_else(|| {
        "must be an IP address with a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"".to_owned()
    })
}

pub(super) fn address_or_off(given: &RawValue) -> Read<Option<SocketAddr>> {
    if given.as_text() == Some("off") {
        return Ok(None);
    }
    address(given).map(Some).map_err(|right| format!("{right}, or \"off\""))
}

/// A size of at least `least` bytes, as text or as a number of bytes. The store counts in 64 signed bits.
pub(super) fn size(given: &RawValue, least: u64) -> Read<u64> {
    let bytes = match given {
        RawValue::Text(text) => text.parse().ok().map(|ByteSize(bytes)| bytes),
        RawValue::Whole(bytes) => u64::try_from(*bytes).ok(),
        _ => None,
    };
    bytes.filter(|bytes| (least..=i64::MAX.unsigned_abs()).contains(bytes)).ok_or_else(|| match least {
        0 => "must be a size such as \"64MiB\", or \"0\"".to_owned(),
        1 => "must be a size above 0, such as \"1MiB\"".to_owned(),
        _ => format!("must be a size of at least {}, such as \"32MiB\"", show_size(least)),
    })
}

/// Far beyond any use, near enough for every clock to count that far.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Parses a duration such as `30d`, `12h` or `1h 30m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    // `humantime` panics on sums near 2^64 seconds.
    let is_safe = text.len() <= 64 && !text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > 10);
    is_safe.then(|| humantime::parse_duration(text).ok()).flatten()
}

/// A duration, zero included.
pub(super) fn duration(given: &RawValue) -> Read<Duration> {
    given
        .as_text()
        .and_then(parse_duration)
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| "must be a duration such as \"5s\", \"90m\" or \"1h 30m\"".to_owned())
}

/// A duration above zero.
pub(super) fn duration_above_zero(given: &RawValue) -> Read<Duration> {
    match duration(given) {
        Ok(Duration::ZERO) => Err("must be longer than 0, such as \"5s\"".to_owned()),
        other => other,
    }
}

/// A whole number of at least `least` and at most `most`.
pub(super) fn whole(given: &RawValue, least: u32, most: u32) -> Read<u32> {
    let number = match given {
        RawValue::Whole(number) => u32::try_from(*number).ok(),
        _ => None,
    };
    number.filter(|number| (least..=most).contains(number)).ok_or_else(|| match most {
        u32::MAX => format!("must be a whole number of at least {least}"),
        _ => format!("must be a whole number from {least} to {most}"),
    })
}

/// Calls a second. A slower rate than one call in 1,000 seconds would outwait every client.
pub(super) fn rate(given: &RawValue) -> Read<f64> {
    let number = match given {
        RawValue::Whole(number) => i32::try_from(*number).ok().map(f64::from),
        RawValue::Decimal(number) => Some(*number),
        _ => None,
    };
    number
        .filter(|number| (0.001..=1000.0).contains(number))
        .ok_or_else(|| "must be a number from 0.001 to 1000, such as 0.5".to_owned())
}

/// One of a few words.
pub(super) fn word<T: Copy>(given: &RawValue, words: &[(&str, T)]) -> Read<T> {
    words.iter().find(|(word, _)| given.as_text() == Some(word)).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("must be {}", words.join(" or "))
    })
}

/// A token, or `None` for the empty text.
pub(super) fn token(given: &RawValue) -> Read<Option<Token>> {
    match given.as_text() {
        Some("") => Ok(None),
        Some(text) if Token::parse(text).is_some() => Ok(Token::parse(text)),
        _ => {
            Err("must be visible ASCII characters without blanks: the token alone, without \"Bearer\""
                .to_owned())
        }
    }
}

/// A path, or `None` for the empty text.
pub(super) fn path(given: &RawValue) -> Read<Option<PathBuf>> {
    match given.as_text() {
        Some("") => Ok(None),
        Some(text) if !text.contains('\0') => Ok(Some(text.into())),
        _ => Err("must be the path of a file".to_owned()),
    }
}

/// Scheme and authority; the path of every request is the client's own.
pub(super) fn base_url(given: &RawValue) -> Read<Uri> {
    let right = |why: &str| format!("{why}; right is for example \"https://api.acedata.cloud\"");
    let text = given.as_text().ok_or_else(|| right("must be a URL"))?;
    // `Uri` drops a fragment silently.
    if text.contains('#') {
        return Err(right("must have no fragment"));
    }
    let uri = Uri::from_str(text).map_err(|_| right("must be a URL"))?;
    let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
    if !matches!(scheme.as_str(), "http" | "https") {
        return Err(right("must begin with http:// or https://"));
    }
    let authority = uri.authority().ok_or_else(|| right("must name a host"))?;
    if authority.as_str().contains('@') {
        return Err(right("must have no user or password"));
    }
    if authority.host().is_empty() {
        return Err(right("must name a host"));
    }
    if !port_is_sound(authority) {
        return Err(right("must have a port from 1 to 65535, or none"));
    }
    if uri.query().is_some() {
        return Err(right("must have no query"));
    }
    if !matches!(uri.path(), "" | "/") {
        return Err(right("must have no path"));
    }
    let authority = authority.as_str().to_ascii_lowercase();
    Uri::from_str(&format!("{scheme}://{authority}")).map_err(|_| right("must be a URL"))
}

/// Whether what follows the host is nothing, or a colon and a port other than 0.
fn port_is_sound(authority: &http::uri::Authority) -> bool {
    let after_host = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    after_host.is_empty() || authority.port_u16().is_some_and(|port| port != 0)
}

/// `sqlite://` and a path. A query would be taken for a part of the path.
pub(super) fn store_url(given: &RawValue) -> Read<String> {
    given
        .as_text()
        .filter(|url| {
            url.strip_prefix("sqlite://").is_some_and(|path| {
                !path.is_empty()
                    && !path.ends_with('/')
                    && !path.starts_with(':')
                    && !path.contains(|c: char| c == '?' || c == '#' || c.is_control())
            })
        })
        .map(str::to_owned)
        .ok_or_else(|| {
            "must be sqlite:// and the path of a file, such as \"sqlite:///data/refrain.db\"".to_owned()
        })
}

/// Names of services, or all.
pub(super) fn services(given: &RawValue) -> Read<Services> {
    let right = || {
        "must be a list of service names ([A-Za-z0-9_-], at most 64 characters) or exactly [\"*\"]".to_owned()
    };
    let names = given.as_texts().filter(|names| !names.is_empty()).ok_or_else(right)?;
    if names == ["*"] {
        return Ok(Services::All);
    }
    names.into_iter().map(Service::parse).collect::<Option<_>>().map(Services::Named).ok_or_else(right)
}

/// Header fields that refrain writes itself, that would change what an answer means, or that carry credentials.
const NEVER_FORWARDED: [&str; 27] = [
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "payment-signature",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-api-key",
];

/// Names of header fields that may go upstream with a look-up.
pub(super) fn header_names(given: &RawValue) -> Read<Vec<HeaderName>> {
    let names = given.as_texts().ok_or("must be a list of header names, such as [\"x-record-exempt\"]")?;
    let mut headers = Vec::new();
    for name in names {
        let Ok(header) = HeaderName::from_str(name) else {
            return Err("must be names of header fields".to_owned());
        };
        if NEVER_FORWARDED.contains(&header.as_str()) {
            return Err(format!(
                "must not name {header}: refrain writes framing, content and connection fields itself, and credentials do not belong here"
            ));
        }
        if !headers.contains(&header) {
            headers.push(header);
        }
    }
    Ok(headers)
}

/// Origins as browsers write them (lower case, no default port), or `*` alone.
pub(super) fn origins(given: &RawValue) -> Read<Vec<String>> {
    let right =
        || "must be a list of origins such as [\"https://app.example\"], or exactly [\"*\"]".to_owned();
    let texts = given.as_texts().ok_or_else(right)?;
    if texts == ["*"] {
        return Ok(vec!["*".to_owned()]);
    }
    texts.into_iter().map(origin).collect::<Option<_>>().ok_or_else(right)
}

fn origin(text: &str) -> Option<String> {
    let (scheme, authority) = text.split_once("://")?;
    let uri = Uri::from_str(text).ok()?;
    let parsed =
        uri.authority().filter(|parsed| parsed.as_str() == authority && !parsed.host().is_empty())?;
    // No browser sends a pattern as its origin, and none is understood here.
    if authority.contains(['@', '*']) || !port_is_sound(parsed) {
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

/// The clients of `shared` mode. No error of this reader quotes a value: keys are secrets.
pub(super) fn clients(given: &RawValue) -> Read<Vec<SharedClient>> {
    const RIGHT: &str = "must be a list such as [{ name = \"reports\", key = \"…\" }]";
    let RawValue::List(items) = given else { return Err(RIGHT.to_owned()) };
    let mut clients: Vec<SharedClient> = Vec::new();
    for (number, item) in (1..).zip(items) {
        let RawValue::Table(entries) = item else { return Err(RIGHT.to_owned()) };
        if let Some((key, _)) = entries.iter().find(|(key, _)| key != "name" && key != "key") {
            let key = key.escape_debug();
            return Err(format!("client {number} has an unknown key {key}; a client has a name and a key"));
        }
        let find = |key| entries.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.as_text());
        let name = find("name")
            .filter(|name| (1..=64).contains(&name.len()) && !name.contains(char::is_control))
            .ok_or_else(|| format!("client {number} needs a name of 1 to 64 characters"))?;
        let key = find("key").and_then(Token::parse).ok_or_else(|| {
            format!("client {number} needs a key of visible ASCII characters without blanks")
        })?;
        if clients.iter().any(|other| other.name == name) {
            return Err(format!("client {number} has the name of an earlier one"));
        }
        if clients.iter().any(|other| other.key == key) {
            return Err(format!("client {number} has the key of an earlier one"));
        }
        clients.push(SharedClient { name: name.to_owned(), key });
    }
    Ok(clients)
}

/// A tracing filter. A misspelt level alone would be read as the name of a module and silence everything.
pub(super) fn filter(given: &RawValue) -> Read<String> {
    let right = || "must be a filter such as \"info\" or \"info,refrain::batcher=debug\"".to_owned();
    let text = given.as_text().filter(|text| !text.trim().is_empty()).ok_or_else(right)?;
    EnvFilter::builder().parse(text).map_err(|_| right())?;
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    for part in text.split(',').map(|part| part.trim().to_ascii_lowercase()) {
        let is_level = levels.contains(&part.as_str()) || part.parse::<u8>().is_ok();
        let near = |level: &&&str| strsim::damerau_levenshtein(&part, level) <= 1;
        if part == "warning" {
            return Err(format!("{}; the level is \"warn\"", right()));
        }
        if let Some(level) = levels.iter().find(near).filter(|_| !is_level) {
            return Err(format!("{}; did you mean \"{level}\"?", right()));
        }
    }
    Ok(text.to_owned())
}
