//! Requests that may be lookups or deletes, according to their method, path and headers. When in
//! doubt, forward.

use std::time::Duration;

use http::{HeaderValue, Method, request};

use crate::batcher::{Handling, LookupKind, LookupOptions};
use crate::config::TasksConfig;
use crate::headers::{HeaderValues, ListMember, RequestHeaders, list_members};
use crate::task::{InterpretedService, InterpretedServices, LookupIds};

/// Request that may be a lookup or a delete. Its body decides.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) service: &'a InterpretedService,
    preferences: Preferences,
    cache_control: CacheControl,
}

impl<'a> Candidate<'a> {
    /// Returns `None` unless method, path and headers are those of a lookup.
    ///
    /// The path is compared undecoded, as it would be sent.
    pub(super) fn of(
        parts: &request::Parts,
        headers: &RequestHeaders<'_>,
        services: &'a InterpretedServices,
    ) -> Option<Self> {
        if parts.method != Method::POST || parts.uri.query().is_some() {
            return None;
        }
        let name = parts.uri.path().strip_prefix('/')?.strip_suffix("/tasks")?;
        let service = services.find(name)?;
        let is_json = is_json(&headers.content_type) && is_identity(&headers.content_encoding);
        (is_json && !headers.has_other_credentials).then(|| Self {
            service,
            preferences: Preferences::of(&headers.prefer),
            cache_control: CacheControl::of(&headers.cache_control),
        })
    }

    /// Returns the options of a lookup of these ids. A longer wait than `tasks.max_wait` is
    /// shortened; a wait of zero is none. Lenient handling applies to batches only.
    pub(super) fn options(&self, ids: &LookupIds, tasks: &TasksConfig) -> LookupOptions {
        let kind = match ids {
            LookupIds::Single(_) => LookupKind::Single,
            LookupIds::Batch { .. } => LookupKind::Batch,
        };
        let is_lenient = self.preferences.is_lenient && kind == LookupKind::Batch;
        let default_wait = (kind == LookupKind::Single).then_some(tasks.default_wait);
        let wait = self.preferences.wait.or(default_wait).map(|wait| wait.min(tasks.max_wait));
        LookupOptions {
            kind,
            wait: wait.filter(|wait| !wait.is_zero()),
            handling: if is_lenient { Handling::Lenient } else { Handling::Strict },
            max_age: self.cache_control.max_age,
            only_if_cached: self.cache_control.only_if_cached,
            ..LookupOptions::new(kind)
        }
    }

    /// Returns `preference-applied` (RFC 7240 3) for the preferences that these options follow.
    pub(super) fn preference_applied(&self, options: &LookupOptions) -> Option<HeaderValue> {
        let wait = self.preferences.wait.and(options.wait).map(|wait| format!("wait={}", wait.as_secs()));
        let handling = (options.handling == Handling::Lenient).then(|| "handling=lenient".to_owned());
        let applied: Vec<String> = wait.into_iter().chain(handling).collect();
        (!applied.is_empty()).then(|| HeaderValue::from_str(&applied.join(", ")).expect("printable ASCII"))
    }
}

/// Whether `content-type` is absent or `application/json` in any letter case. Parameters have no
/// meaning (RFC 8259 11), except a `charset` other than UTF-8.
fn is_json(content_type: &HeaderValues<'_>) -> bool {
    if content_type.is_absent() {
        return true;
    }
    let Some(value) = content_type.only() else { return false };
    // Fast path: the form that nearly every client sends.
    if value.as_bytes() == b"application/json" {
        return true;
    }
    let Ok(value) = value.to_str() else { return false };
    let (essence, parameters) = value.split_once(';').unwrap_or((value, ""));
    essence.trim().eq_ignore_ascii_case("application/json") && are_json_parameters(parameters)
}

/// Whether a text is a list of parameters (RFC 9110 5.6.6) in which each `charset` is UTF-8.
fn are_json_parameters(mut rest: &str) -> bool {
    loop {
        // An empty parameter is allowed.
        rest = rest.trim_start_matches([' ', '\t', ';']);
        if rest.is_empty() {
            return true;
        }
        let Some((name, after)) = rest.split_once('=') else { return false };
        let value = if let Some(quoted) = after.strip_prefix('"') {
            let Some(end) = quoted_string_end(quoted) else { return false };
            rest = &quoted[end + 1..];
            &quoted[..end]
        } else {
            let (token, after) = after.split_at(after.find([' ', '\t', ';']).unwrap_or(after.len()));
            if !is_token(token) {
                return false;
            }
            rest = after;
            token
        };
        let is_other_charset = name.eq_ignore_ascii_case("charset") && !value.eq_ignore_ascii_case("utf-8");
        rest = rest.trim_start_matches([' ', '\t']);
        if !is_token(name) || is_other_charset || !(rest.is_empty() || rest.starts_with(';')) {
            return false;
        }
    }
}

/// Returns the index of the quote that ends a quoted string (RFC 9110 5.6.4).
fn quoted_string_end(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.find(|c| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    })
}

/// Whether a text is a token (RFC 9110 5.6.2).
fn is_token(text: &str) -> bool {
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// Whether `content-encoding` is absent or `identity`.
fn is_identity(content_encoding: &HeaderValues<'_>) -> bool {
    content_encoding.iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Supported preferences of `prefer` (RFC 7240).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Preferences {
    /// `wait=N`.
    wait: Option<Duration>,
    /// `handling=lenient`.
    is_lenient: bool,
}

impl Preferences {
    /// The first of several preferences with the same name counts (RFC 7240 2).
    fn of(prefer: &HeaderValues<'_>) -> Self {
        let mut preferences = Self::default();
        let mut handling = None;
        for (name, value) in list_members(prefer.iter()).map(ListMember::name_and_value) {
            if name.eq_ignore_ascii_case("wait") && preferences.wait.is_none() {
                preferences.wait = value.and_then(delta_seconds);
            } else if name.eq_ignore_ascii_case("handling") && handling.is_none() {
                handling = value;
            }
        }
        preferences.is_lenient = handling.is_some_and(|value| value.eq_ignore_ascii_case("lenient"));
        preferences
    }
}

/// Supported request directives of `cache-control` (RFC 9111 5.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CacheControl {
    /// The smallest `max-age`; zero for `no-cache`.
    max_age: Option<Duration>,
    only_if_cached: bool,
}

impl CacheControl {
    fn of(cache_control: &HeaderValues<'_>) -> Self {
        let mut control = Self::default();
        for (name, value) in list_members(cache_control.iter()).map(ListMember::name_and_value) {
            let max_age = match name.to_ascii_lowercase().as_str() {
                "no-cache" => Some(Duration::ZERO),
                "max-age" => value.and_then(delta_seconds),
                "only-if-cached" => {
                    control.only_if_cached = true;
                    None
                }
                _ => None,
            };
            control.max_age = control.max_age.into_iter().chain(max_age).min();
        }
        control
    }
}

/// Parses `delta-seconds` of RFC 9111 1.2.2. A number that is too large becomes the largest one.
fn delta_seconds(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Duration::from_secs(text.parse::<u32>().unwrap_or(u32::MAX).into()))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn parts(method: &str, target: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut builder = http::Request::builder().method(method).uri(target);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_the_exact_shape_may_be_a_lookup() {
        let services = TasksConfig::default().interpreted_services();
        let is = |method, target, fields: &[(&str, &str)]| {
            let parts = parts(method, target, fields);
            Candidate::of(&parts, &RequestHeaders::parse(&parts.headers), &services).is_some()
        };
        for (method, target, fields, expected) in [
            ("POST", "/producer/tasks", &[][..], true),
            ("POST", "http://anything/producer/tasks", &[], true),
            ("POST", "/producer/tasks", &[("content-encoding", "identity")], true),
            ("GET", "/producer/tasks", &[], false),
            ("post", "/producer/tasks", &[], false),
            ("POST", "/producer/tasks/", &[], false),
            ("POST", "/producer/tasks?", &[], false),
            ("POST", "/producer/tasks?x=1", &[], false),
            ("POST", "//producer/tasks", &[], false),
            ("POST", "/Producer/tasks", &[], false),
            ("POST", "/producer/Tasks", &[], false),
            ("POST", "/produce%72/tasks", &[], false),
            ("POST", "/producer%2ftasks", &[], false),
            ("POST", "/suno/tasks", &[], true),
            ("POST", "/captcha/tasks", &[], false),
            ("POST", "/unknown/tasks", &[], false),
            ("POST", "/producer/x/tasks", &[], false),
            ("POST", "/tasks", &[], false),
            ("POST", "/producer/tasks", &[("content-type", "text/plain")], false),
            (
                "POST",
                "/producer/tasks",
                &[("content-type", "application/json"), ("content-type", "text/x")],
                false,
            ),
            ("POST", "/producer/tasks", &[("content-encoding", "gzip")], false),
            (
                "POST",
                "/producer/tasks",
                &[("content-encoding", "identity"), ("content-encoding", "br")],
                false,
            ),
            ("POST", "/producer/tasks", &[("cookie", "a=b")], false),
            ("POST", "/producer/tasks", &[("x-api-key", "k")], false),
            ("POST", "/producer/tasks", &[("payment-signature", "s")], false),
        ] {
            assert_eq!(is(method, target, fields), expected, "{method} {target} {fields:?}");
        }
    }

    #[test]
    fn json_with_any_parameter_except_another_charset_is_accepted() {
        for (content_type, expected) in [
            ("Application/JSON", true),
            ("application/json;", true),
            ("application/json; charset=UTF-8", true),
            ("application/json ; charset=utf-8 ;; Charset=\"Utf-8\"", true),
            ("application/json;odata=verbose; q=0.5", true),
            (r#"application/json; profile="https://a.example/\"x;charset=utf-16"; charset=utf-8"#, true),
            (r#"application/json; x="""#, true),
            ("application/json; charset=utf-16", false),
            ("application/json; x=y; CHARSET=\"latin1\"", false),
            ("application/json; charset=utf-8; charset=utf-16", false),
            ("application/json; charset=utf8", false),
            (r#"application/json; charset="utf\-8""#, false),
            (r#"application/json; charset="""#, false),
            ("application/json; charset=", false),
            ("application/json; charset", false),
            ("application/json; =x", false),
            ("application/json; charset = utf-8", false),
            ("application/json; x=\"y; charset=utf-8", false),
            ("application/json; x=\"y\"z", false),
            ("application/json; x=y, text/plain", false),
            ("application/json; x=y z", false),
            ("application/json, text/plain", false),
            ("application/json charset=utf-8", false),
            ("application/jsonp", false),
            ("application/merge-patch+json", false),
            ("text/plain", false),
            ("", false),
        ] {
            let parts = parts("POST", "/producer/tasks", &[("content-type", content_type)]);
            let headers = RequestHeaders::parse(&parts.headers);
            assert_eq!(is_json(&headers.content_type), expected, "{content_type}");
        }
    }

    #[test]
    fn prefer_and_cache_control_are_parsed() {
        let headers = |name: &'static str, values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(name, HeaderValue::from_str(value).unwrap());
            }
            headers
        };
        let prefer =
            |values: &[&str]| Preferences::of(&RequestHeaders::parse(&headers("prefer", values)).prefer);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(prefer(&["wait=10"]), Preferences { wait: seconds(10), is_lenient: false });
        assert_eq!(
            prefer(&["respond-async, WAIT=\"5\"; x=y", "handling=Lenient"]),
            Preferences { wait: seconds(5), is_lenient: true }
        );
        assert_eq!(prefer(&["handling=strict, handling=lenient, wait=-1"]), Preferences::default());
        let control = |values: &[&str]| {
            CacheControl::of(&RequestHeaders::parse(&headers("cache-control", values)).cache_control)
        };
        assert_eq!(control(&["no-cache"]), CacheControl { max_age: seconds(0), only_if_cached: false });
        assert_eq!(
            control(&["max-age=3, only-if-cached"]),
            CacheControl { max_age: seconds(3), only_if_cached: true }
        );
        assert_eq!(
            control(&["max-age=3", "No-Cache"]),
            CacheControl { max_age: seconds(0), only_if_cached: false }
        );
        assert_eq!(control(&["no-store, max-age=x"]), CacheControl::default());
    }
}
