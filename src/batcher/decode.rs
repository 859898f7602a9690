//! What an upstream's answer says about the ids that were asked for: pure functions on the answer.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::clock;
use crate::task::{TaskId, TaskState, inspect};
use crate::upstream::UpstreamResponse;

/// The longest `retry-after` that is obeyed; an absurd one is cut to this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The longest `{}`, white space included, that is remembered as the answer for an unknown id.
const MAX_EMPTY: usize = 1024;

/// The reading of one whole answer.
#[derive(Debug, PartialEq)]
pub(super) enum DecodedResponse {
    /// A task answer: what was found, and which ids it left out.
    Tasks { found: Vec<(TaskId, Found)>, left_out: Vec<TaskId> },
    /// `{}`, the answer to a single id that the upstream does not know.
    Empty,
    /// A success that is no task answer: HTML, another shape, a foreign task.
    Strange,
    /// 400, 404, 413 or 422: about what was asked, so a folded call is worth halving.
    Refused,
    /// 429.
    TooManyRequests,
    /// 5xx.
    Trouble,
    /// 3xx: never followed, never relayed.
    Redirect,
    /// 401: about the token, whatever the ids.
    InvalidToken,
    /// Any other error.
    Error,
}

/// One task of an answer.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    Finished(Bytes),
    /// With the task's age by the upstream's clock, where it says so.
    Pending(Bytes, Option<Duration>),
    /// Two different texts for one id: shown, but neither kept nor remembered.
    Disputed(Bytes),
}

/// Reads an answer to a call for `ids`: `retrieve` for one, `retrieve_batch` for more.
pub(super) fn read(answer: &UpstreamResponse, ids: &[TaskId]) -> DecodedResponse {
    match answer.status {
        StatusCode::OK => match ids {
            [id] => read_single(&answer.body, id),
            _ => read_batch(&answer.body, ids),
        },
        StatusCode::UNAUTHORIZED => DecodedResponse::InvalidToken,
        StatusCode::BAD_REQUEST
        | StatusCode::NOT_FOUND
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => DecodedResponse::Refused,
        StatusCode::TOO_MANY_REQUESTS => DecodedResponse::TooManyRequests,
        status if status.is_server_error() => DecodedResponse::Trouble,
        status if status.is_redirection() => DecodedResponse::Redirect,
        status if status.is_success() => DecodedResponse::Strange,
        _ => DecodedResponse::Error,
    }
}

fn read_single(body: &Bytes, id: &TaskId) -> DecodedResponse {
    let Some(inspection) = inspect(body) else { return DecodedResponse::Strange };
    let found = match inspection.state_of(id) {
        TaskState::Final => Found::Finished(body.clone()),
        TaskState::Pending => Found::Pending(body.clone(), age(inspection.created_at)),
        TaskState::Unknown if body.len() > MAX_EMPTY => return DecodedResponse::Strange,
        TaskState::Unknown => return DecodedResponse::Empty,
        TaskState::Mismatch => return DecodedResponse::Strange,
    };
    DecodedResponse::Tasks { found: vec![(id.clone(), found)], left_out: Vec::new() }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

fn read_batch(body: &Bytes, ids: &[TaskId]) -> DecodedResponse {
    // serde reads a list as a struct too, member by member; an envelope is an object.
    let is_object = body.trim_ascii_start().first() == Some(&b'{');
    let Some(envelope) = is_object.then(|| serde_json::from_slice::<Envelope<'_>>(body).ok()).flatten()
    else {
        return DecodedResponse::Strange;
    };
    let mut texts: HashMap<&str, Option<Found>> = ids.iter().map(|id| (id.as_str(), None)).collect();
    for item in envelope.items {
        let text = item.get();
        // Only whole records of ids that were asked for are used; foreign items are nobody's.
        let Some(inspection) = inspect(text.as_bytes()) else { continue };
        let Some(id) = inspection.id.as_deref().and_then(TaskId::parse) else { continue };
        let Some(slot) = texts.get_mut(id.as_str()) else { continue };
        // Copied, so that one task does not hold the memory of the whole answer.
        let text = Bytes::copy_from_slice(text.as_bytes());
        *slot = Some(match slot.take() {
            Some(Found::Finished(other) | Found::Pending(other, _)) if other == text => {
                found(&inspection, &id, text)
            }
            Some(Found::Finished(other) | Found::Pending(other, _) | Found::Disputed(other)) => {
                Found::Disputed(other)
            }
            None => found(&inspection, &id, text),
        });
    }
    let (mut finds, mut left_out) = (Vec::with_capacity(ids.len()), Vec::new());
    for id in ids {
        match texts.remove(id.as_str()).flatten() {
            Some(found) => finds.push((id.clone(), found)),
            None => left_out.push(id.clone()),
        }
    }
    DecodedResponse::Tasks { found: finds, left_out }
}

fn found(inspection: &crate::task::Inspection, id: &TaskId, text: Bytes) -> Found {
    match inspection.state_of(id) {
        TaskState::Final => Found::Finished(text),
        _ => Found::Pending(text, age(inspection.created_at)),
    }
}

/// How old a task is, by its `created_at` and the wall clock here; never negative. Only the pace of waiting hangs on
/// it, within fixed bounds.
#[expect(clippy::cast_precision_loss, reason = "Unix seconds are far below 2^52")]
fn age(created_at: Option<f64>) -> Option<Duration> {
    let age = clock::unix_now() as f64 - created_at?;
    Some(Duration::try_from_secs_f64(age.max(0.0)).unwrap_or(Duration::ZERO))
}

/// The wait that a `retry-after` field asks for (RFC 9110 10.2.3: seconds or a date), at most a minute; `None` where
/// it is neither, or negative.
pub(super) fn retry_after(value: Option<&HeaderValue>) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too many digits for a number: absurd, and cut like the rest.
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

    fn ids(names: &[&str]) -> Vec<TaskId> {
        names.iter().map(|name| TaskId::parse(name).unwrap()).collect()
    }

    fn answer(status: u16, body: &str) -> UpstreamResponse {
        UpstreamResponse {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: None,
            retry_after: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
            connect_time: Duration::ZERO,
        }
    }

    fn tasks(body: &str, asked: &[&str]) -> (Vec<(String, Found)>, Vec<String>) {
        match read(&answer(200, body), &ids(asked)) {
            DecodedResponse::Tasks { found, left_out } => (
                found.into_iter().map(|(id, found)| (id.as_str().to_owned(), found)).collect(),
                left_out.iter().map(|id| id.as_str().to_owned()).collect(),
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_single_task_keeps_its_white_space() {
        let body = " {\"id\":\"a\",\"finished_at\":1.50}\n";
        let (found, _) = tasks(body, &["a"]);
        assert_eq!(found, [("a".to_owned(), Found::Finished(Bytes::copy_from_slice(body.as_bytes())))]);
    }

    #[test]
    fn single_answers_that_are_no_task() {
        for (body, reading) in [
            ("{}", DecodedResponse::Empty),
            ("[]", DecodedResponse::Strange),
            ("null", DecodedResponse::Strange),
            ("", DecodedResponse::Strange),
            ("<html>", DecodedResponse::Strange),
            (r#"{"id":"b","finished_at":1}"#, DecodedResponse::Strange),
            (r#"{"items":[],"count":0}"#, DecodedResponse::Strange),
            (r#"{"id":"a","finished_at":1"#, DecodedResponse::Strange),
        ] {
            assert_eq!(read(&answer(200, body), &ids(&["a"])), reading, "{body}");
        }
    }

    #[test]
    fn a_batch_gives_each_id_its_own_text() {
        let body = r#"{"items":[ {"id":"b","finished_at":1} , {"id":"a"},{"id":"zz","finished_at":1},7,null,{},
            {"id":"b","finished_at":1}],"count":99,"more":true}"#;
        let (found, left_out) = tasks(body, &["a", "b", "c"]);
        assert_eq!(found[0], ("a".to_owned(), Found::Pending(Bytes::from_static(b"{\"id\":\"a\"}"), None)));
        assert_eq!(
            found[1],
            ("b".to_owned(), Found::Finished(Bytes::from_static(b"{\"id\":\"b\",\"finished_at\":1}")))
        );
        assert_eq!(left_out, ["c"]);
    }

    #[test]
    fn two_texts_for_one_id_are_in_dispute() {
        for second in [r#"{"id":"a","finished_at":2}"#, r#"{"id":"a"}"#] {
            let first = r#"{"id":"a","finished_at":1}"#;
            let body = format!(r#"{{"items":[{first},{second},{first}]}}"#);
            let (found, _) = tasks(&body, &["a", "b"]);
            assert_eq!(found[0].1, Found::Disputed(Bytes::copy_from_slice(first.as_bytes())));
        }
    }

    #[test]
    fn batches_of_another_shape_are_strange() {
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
            assert_eq!(read(&answer(200, body), &ids(&["a", "b"])), DecodedResponse::Strange, "{body}");
        }
    }

    #[test]
    fn statuses() {
        for (status, reading) in [
            (201, DecodedResponse::Strange),
            (204, DecodedResponse::Strange),
            (302, DecodedResponse::Redirect),
            (304, DecodedResponse::Redirect),
            (400, DecodedResponse::Refused),
            (401, DecodedResponse::InvalidToken),
            (403, DecodedResponse::Error),
            (404, DecodedResponse::Refused),
            (413, DecodedResponse::Refused),
            (418, DecodedResponse::Error),
            (422, DecodedResponse::Refused),
            (429, DecodedResponse::TooManyRequests),
            (500, DecodedResponse::Trouble),
            (504, DecodedResponse::Trouble),
        ] {
            assert_eq!(
                read(&answer(status, r#"{"id":"a","finished_at":1}"#), &ids(&["a"])),
                reading,
                "{status}"
            );
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_within_bounds() {
        let read = |text: &str| retry_after(Some(&HeaderValue::from_str(text).unwrap()));
        assert_eq!(read("0"), Some(Duration::ZERO));
        assert_eq!(read(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(read("86400"), Some(MAX_RETRY_AFTER));
        assert_eq!(read("99999999999999999999999999"), Some(MAX_RETRY_AFTER));
        for nonsense in ["-5", "soon", "", "1.5", "NaN", "Thu, 99 Foo"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
        assert_eq!(read("Thu, 01 Jan 2015 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("Fri, 31 Dec 9999 23:59:59 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after(None), None);
    }
}
