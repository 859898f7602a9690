//! Decoding of upstream responses to lookups.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::clock;
use crate::task::{Inspection, ServiceRules, TaskId, TaskState, inspect};
use crate::upstream::UpstreamResponse;

/// Longest `retry-after` that is obeyed. A longer one is cut to it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Longest body, white space included, that counts as `{}`.
const MAX_EMPTY: usize = 1024;

/// Meaning of a response.
#[derive(Debug, PartialEq)]
pub(super) enum DecodedResponse {
    /// Task records, and the ids without one.
    Records { found: Vec<(TaskId, DecodedRecord)>, missing: Vec<TaskId> },
    /// `{}` in response to `retrieve`: the upstream does not know the id.
    Empty,
    /// A success of another shape: HTML, a list, the record of another task.
    Malformed,
    /// 400, 404, 413 or 422: about the ids, so a refused batch is halved.
    Refused,
    /// 429.
    TooManyRequests,
    /// 5xx.
    ServerError,
    /// 3xx: neither followed nor relayed.
    Redirect,
    /// 401: about the token, whatever the ids.
    InvalidToken,
    /// Any other error.
    OtherError,
}

/// One task record of a response.
#[derive(Debug, PartialEq)]
pub(super) enum DecodedRecord {
    Final {
        record: Bytes,
        /// Time from creation to end, in seconds.
        duration: Option<f64>,
        /// Type of the task.
        kind: Option<Box<str>>,
    },
    Pending {
        record: Bytes,
        /// Age of the task by its `created_at`.
        task_age: Option<Duration>,
        /// Type of the task.
        kind: Option<Box<str>>,
    },
    /// The first of two different records for one id. Neither is stored or cached.
    Conflicting(Bytes),
}

/// Decodes the response to a call for `ids`: `retrieve` for one, `retrieve_batch` for more.
pub(super) fn decode(response: &UpstreamResponse, ids: &[TaskId], rules: &ServiceRules) -> DecodedResponse {
    match response.status {
        StatusCode::OK => match ids {
            [id] => decode_single(&response.body, id, rules),
            _ => decode_batch(&response.body, ids, rules),
        },
        StatusCode::UNAUTHORIZED => DecodedResponse::InvalidToken,
        StatusCode::BAD_REQUEST
        | StatusCode::NOT_FOUND
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => DecodedResponse::Refused,
        StatusCode::TOO_MANY_REQUESTS => DecodedResponse::TooManyRequests,
        status if status.is_server_error() => DecodedResponse::ServerError,
        status if status.is_redirection() => DecodedResponse::Redirect,
        status if status.is_success() => DecodedResponse::Malformed,
        _ => DecodedResponse::OtherError,
    }
}

fn decode_single(body: &Bytes, id: &TaskId, rules: &ServiceRules) -> DecodedResponse {
    let Some(inspection) = inspect(body, rules, clock::unix_now()) else { return DecodedResponse::Malformed };
    let record = match inspection.state_of(id) {
        TaskState::Unknown if body.len() <= MAX_EMPTY => return DecodedResponse::Empty,
        TaskState::Unknown | TaskState::Mismatch => return DecodedResponse::Malformed,
        TaskState::Final | TaskState::Pending => decode_record(inspection, id, body.clone()),
    };
    DecodedResponse::Records { found: vec![(id.clone(), record)], missing: Vec::new() }
}

#[derive(Deserialize)]
struct BatchEnvelope<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

fn decode_batch(body: &Bytes, ids: &[TaskId], rules: &ServiceRules) -> DecodedResponse {
    // serde accepts a list for a struct, so the first character is checked.
    let is_object = body.trim_ascii_start().first() == Some(&b'{');
    let envelope = is_object.then(|| serde_json::from_slice::<BatchEnvelope<'_>>(body).ok()).flatten();
    let Some(envelope) = envelope else { return DecodedResponse::Malformed };
    let mut records: HashMap<&str, Option<DecodedRecord>> =
        ids.iter().map(|id| (id.as_str(), None)).collect();
    let now = clock::unix_now();
    for item in envelope.items {
        // Items that are not a record of a requested id are ignored.
        let Some(inspection) = inspect(item.get().as_bytes(), rules, now) else { continue };
        let Some(id) = inspection.id.as_deref().and_then(TaskId::parse) else { continue };
        let Some(slot) = records.get_mut(id.as_str()) else { continue };
        // A copy does not hold the memory of the whole response.
        let record = Bytes::copy_from_slice(item.get().as_bytes());
        *slot = Some(match slot.take() {
            None => decode_record(inspection, &id, record),
            Some(first @ (DecodedRecord::Final { .. } | DecodedRecord::Pending { .. }))
                if *first.bytes() == record =>
            {
                first
            }
            Some(first) => DecodedRecord::Conflicting(first.bytes().clone()),
        });
    }
    let (mut found, mut missing) = (Vec::with_capacity(ids.len()), Vec::new());
    for id in ids {
        match records.remove(id.as_str()).flatten() {
            Some(record) => found.push((id.clone(), record)),
            None => missing.push(id.clone()),
        }
    }
    DecodedResponse::Records { found, missing }
}

fn decode_record(inspection: Inspection, id: &TaskId, record: Bytes) -> DecodedRecord {
    match inspection.state_of(id) {
        TaskState::Final => {
            DecodedRecord::Final { record, duration: inspection.duration(), kind: inspection.kind }
        }
        _ => DecodedRecord::Pending {
            record,
            task_age: task_age(inspection.created_at),
            kind: inspection.kind,
        },
    }
}

impl DecodedRecord {
    fn bytes(&self) -> &Bytes {
        match self {
            Self::Final { record, .. } | Self::Pending { record, .. } | Self::Conflicting(record) => record,
        }
    }
}

/// Returns the age of a task by its `created_at` and the local wall clock, never negative. It only
/// sets the interval of long polls, within fixed bounds.
#[expect(clippy::cast_precision_loss, reason = "Unix seconds are far below 2^52")]
fn task_age(created_at: Option<f64>) -> Option<Duration> {
    let age = clock::unix_now() as f64 - created_at?;
    Some(Duration::try_from_secs_f64(age.max(0.0)).unwrap_or(Duration::ZERO))
}

/// Parses `retry-after` (RFC 9110 section 10.2.3: seconds or a date) and cuts it to a minute;
/// `None` if it is neither, or negative.
pub(super) fn retry_after(value: Option<&HeaderValue>) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number with too many digits is cut as well.
        let seconds = text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs);
        return Some(seconds.min(MAX_RETRY_AFTER));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let at = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let now = u64::try_from(clock::unix_now()).unwrap_or(0);
    Some(Duration::from_secs(at.saturating_sub(now)).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::ServiceClass;

    fn ids(names: &[&str]) -> Vec<TaskId> {
        names.iter().map(|name| TaskId::parse(name).unwrap()).collect()
    }

    fn response(status: u16, body: &str) -> UpstreamResponse {
        UpstreamResponse {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: None,
            retry_after: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
            connect_time: Duration::ZERO,
        }
    }

    fn decode(response: &UpstreamResponse, ids: &[TaskId]) -> DecodedResponse {
        super::decode(response, ids, &ServiceRules::new(ServiceClass::Batch, None))
    }

    fn records(body: &str, requested: &[&str]) -> (Vec<(String, DecodedRecord)>, Vec<String>) {
        match decode(&response(200, body), &ids(requested)) {
            DecodedResponse::Records { found, missing } => (
                found.into_iter().map(|(id, record)| (id.as_str().to_owned(), record)).collect(),
                missing.iter().map(|id| id.as_str().to_owned()).collect(),
            ),
            other => panic!("{other:?}"),
        }
    }

    fn final_record(json: &str) -> DecodedRecord {
        let record = Bytes::copy_from_slice(json.as_bytes());
        DecodedRecord::Final { record, duration: None, kind: None }
    }

    #[test]
    fn type_and_duration_are_read_from_the_record() {
        let body = r#"{"items":[{"id":"a","type":"audios","created_at":100.5,"finished_at":160},
            {"id":"b","type":"videos","created_at":1},{"id":"c","created_at":9,"finished_at":2,"type":7}]}"#;
        let (found, _) = records(body, &["a", "b", "c"]);
        let of_final = |record: &DecodedRecord| match record {
            DecodedRecord::Final { duration, kind, .. } => (*duration, kind.clone()),
            other => panic!("{other:?}"),
        };
        assert_eq!(of_final(&found[0].1), (Some(59.5), Some("audios".into())));
        assert!(matches!(&found[1].1, DecodedRecord::Pending { kind: Some(kind), task_age: Some(_), .. }
                if &**kind == "videos"));
        assert_eq!(of_final(&found[2].1), (None, None));
    }

    #[test]
    fn single_record_keeps_its_white_space() {
        let body = " {\"id\":\"a\",\"finished_at\":1.50}\n";
        let (found, _) = records(body, &["a"]);
        assert_eq!(found, [("a".to_owned(), final_record(body))]);
    }

    #[test]
    fn single_response_without_a_record() {
        for (body, expected) in [
            ("{}", DecodedResponse::Empty),
            ("[]", DecodedResponse::Malformed),
            ("null", DecodedResponse::Malformed),
            ("", DecodedResponse::Malformed),
            ("<html>", DecodedResponse::Malformed),
            (r#"{"id":"b","finished_at":1}"#, DecodedResponse::Malformed),
            (r#"{"items":[],"count":0}"#, DecodedResponse::Malformed),
            (r#"{"id":"a","finished_at":1"#, DecodedResponse::Malformed),
        ] {
            assert_eq!(decode(&response(200, body), &ids(&["a"])), expected, "{body}");
        }
    }

    #[test]
    fn batch_assigns_each_record_to_its_id() {
        let body = r#"{"items":[ {"id":"b","finished_at":1} , {"id":"a"},{"id":"zz","finished_at":1},7,null,{},
            {"id":"b","finished_at":1}],"count":99,"more":true}"#;
        let (found, missing) = records(body, &["a", "b", "c"]);
        assert_eq!(
            found[0],
            (
                "a".to_owned(),
                DecodedRecord::Pending {
                    record: Bytes::from_static(b"{\"id\":\"a\"}"),
                    task_age: None,
                    kind: None
                }
            )
        );
        assert_eq!(found[1], ("b".to_owned(), final_record(r#"{"id":"b","finished_at":1}"#)));
        assert_eq!(missing, ["c"]);
    }

    #[test]
    fn different_records_for_one_id_conflict() {
        for second in [r#"{"id":"a","finished_at":2}"#, r#"{"id":"a"}"#] {
            let first = r#"{"id":"a","finished_at":1}"#;
            let body = format!(r#"{{"items":[{first},{second},{first}]}}"#);
            let (found, _) = records(&body, &["a", "b"]);
            assert_eq!(found[0].1, DecodedRecord::Conflicting(Bytes::copy_from_slice(first.as_bytes())));
        }
    }

    #[test]
    fn batch_of_another_shape_is_malformed() {
        for body in [
            "",
            "[]",
            "null",
            "{}",
            r#"[[{"id":"a","finished_at":1}]]"#,
            r#"{"items":{}}"#,
            r#"{"items":[],"items":[]}"#,
            r#"{"items":[{"id":"a"}"#,
        ] {
            assert_eq!(decode(&response(200, body), &ids(&["a", "b"])), DecodedResponse::Malformed, "{body}");
        }
    }

    #[test]
    fn each_status_has_its_meaning() {
        for (status, expected) in [
            (201, DecodedResponse::Malformed),
            (204, DecodedResponse::Malformed),
            (302, DecodedResponse::Redirect),
            (304, DecodedResponse::Redirect),
            (400, DecodedResponse::Refused),
            (401, DecodedResponse::InvalidToken),
            (403, DecodedResponse::OtherError),
            (404, DecodedResponse::Refused),
            (413, DecodedResponse::Refused),
            (418, DecodedResponse::OtherError),
            (422, DecodedResponse::Refused),
            (429, DecodedResponse::TooManyRequests),
            (500, DecodedResponse::ServerError),
            (504, DecodedResponse::ServerError),
        ] {
            assert_eq!(
                decode(&response(status, r#"{"id":"a","finished_at":1}"#), &ids(&["a"])),
                expected,
                "{status}"
            );
        }
    }

    #[test]
    fn retry_after_accepts_seconds_and_dates_and_is_cut() {
        let parse = |text: &str| retry_after(Some(&HeaderValue::from_str(text).unwrap()));
        assert_eq!(parse("0"), Some(Duration::ZERO));
        assert_eq!(parse(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(parse("86400"), Some(MAX_RETRY_AFTER));
        assert_eq!(parse("99999999999999999999999999"), Some(MAX_RETRY_AFTER));
        for invalid in ["-5", "soon", "", "1.5", "NaN", "Thu, 99 Foo"] {
            assert_eq!(parse(invalid), None, "{invalid}");
        }
        assert_eq!(parse("Thu, 01 Jan 2015 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("Fri, 31 Dec 9999 23:59:59 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after(None), None);
    }
}
