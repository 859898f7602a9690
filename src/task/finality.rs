//! Finality of a task record (invariant "Only final records are stored"). When in doubt, a record
//! is pending.
//!
//! [`inspect`] parses a record once and returns only the fields on which decisions depend.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::TaskId;

/// Status words of a succeeded task. The upstream's own public clients treat these as "done".
const SUCCESS_WORDS: [&str; 6] = ["succeeded", "succeed", "success", "completed", "complete", "finished"];

/// Status words of a failed task. The upstream's own public clients treat these as "failed".
const FAILURE_WORDS: [&str; 6] = ["failed", "failure", "error", "cancelled", "canceled", "rejected"];

/// State of an upstream object with respect to the requested id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TaskState {
    /// Record of the requested task, which cannot change any more. It may be stored.
    Final,
    /// Record of the requested task, which can still change, or whose state is in doubt.
    Pending,
    /// `{}`, the upstream's response for an unknown id.
    Unknown,
    /// Object with another id or without an id.
    Mismatch,
}

/// Fields of an upstream object on which decisions depend.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// Value of `id` if it is a string. The last one if the key is repeated.
    pub id: Option<String>,
    /// Time of creation, in Unix seconds by the upstream's clock.
    pub created_at: Option<f64>,
    /// Whether the object is final, apart from its id.
    is_final: bool,
    is_empty: bool,
}

impl Inspection {
    /// Returns the state of the object with respect to the requested id.
    pub fn state_of(&self, requested: &TaskId) -> TaskState {
        match &self.id {
            _ if self.is_empty => TaskState::Unknown,
            Some(id) if id == requested.as_str() && self.is_final => TaskState::Final,
            Some(id) if id == requested.as_str() => TaskState::Pending,
            _ => TaskState::Mismatch,
        }
    }
}

/// Inspects a record. `None` if `json` is not exactly one JSON object (RFC 8259).
pub fn inspect(json: &[u8]) -> Option<Inspection> {
    let json = std::str::from_utf8(json).ok()?;
    serde_json::from_str::<TaskObject>(json).ok().map(|TaskObject(inspection)| inspection)
}

/// Task object, deserialized to its [`Inspection`].
struct TaskObject(Inspection);

impl<'de> Deserialize<'de> for TaskObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TaskVisitor)
    }
}

struct TaskVisitor;

impl<'de> Visitor<'de> for TaskVisitor {
    type Value = TaskObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TaskObject, A::Error> {
        let mut id: Option<Scalar<'de>> = None;
        let mut finished_at: Option<Scalar<'de>> = None;
        let mut created_at: Option<Scalar<'de>> = None;
        let mut status_words: Option<StatusWords> = None;
        let mut is_empty = true;
        // Parsers differ in which value of a repeated key they use, so a repeated key makes the
        // record pending.
        let mut has_repeated_key = false;
        while let Some(JsonString(key)) = map.next_key()? {
            is_empty = false;
            has_repeated_key |= match &*key {
                "id" => id.replace(map.next_value()?).is_some(),
                "finished_at" => finished_at.replace(map.next_value()?).is_some(),
                "response" => status_words.replace(map.next_value()?).is_some(),
                "created_at" => {
                    created_at = Some(map.next_value()?);
                    false
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
        }
        let is_finished = matches!(finished_at, Some(Scalar::Number(_)));
        let all_terminal = status_words.is_none_or(|words| words.all_terminal);
        Ok(TaskObject(Inspection {
            is_final: is_finished && all_terminal && !has_repeated_key,
            id: match id {
                Some(Scalar::Text(id)) => Some(id.into_owned()),
                _ => None,
            },
            created_at: match created_at {
                Some(Scalar::Number(seconds)) => Some(seconds),
                _ => None,
            },
            is_empty,
        }))
    }
}

/// JSON string, borrowed if it has no escapes.
struct JsonString<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for JsonString<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(JsonStringVisitor)
    }
}

struct JsonStringVisitor;

impl<'de> Visitor<'de> for JsonStringVisitor {
    type Value = JsonString<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<JsonString<'de>, E> {
        Ok(JsonString(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<JsonString<'de>, E> {
        Ok(JsonString(Cow::Owned(text.to_owned())))
    }
}

/// JSON value reduced to a string, a finite number or anything else. It is parsed from its raw
/// text: `serde_json` refuses numbers beyond a double and unpaired surrogates, which RFC 8259
/// allows.
enum Scalar<'de> {
    Text(Cow<'de, str>),
    Number(f64),
    Other,
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        Ok(match json.as_bytes().first() {
            Some(b'"') => unescaped(json).map_or(Self::Other, Self::Text),
            Some(b'-' | b'0'..=b'9') => {
                json.parse().ok().filter(|number: &f64| number.is_finite()).map_or(Self::Other, Self::Number)
            }
            _ => Self::Other,
        })
    }
}

/// Status words of `response`, at any depth.
struct StatusWords {
    all_terminal: bool,
}

impl<'de> Deserialize<'de> for StatusWords {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        Ok(Self { all_terminal: are_status_words_terminal(json) })
    }
}

/// Returns whether every status word in a valid JSON text is terminal. A status word is a string
/// under the key `state` or `status`, or in a list under it. A number, `null` or a Boolean is not a
/// status word.
///
/// Scans the text without a parser: a value that `serde_json` refuses (see [`Scalar`]) or that is
/// nested too deeply must not hide a status word.
fn are_status_words_terminal(json: &str) -> bool {
    let bytes = json.as_bytes();
    // For each open object or list, whether the next string in it is a status word.
    let mut open: Vec<bool> = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'{' => open.push(false),
            b'[' => open.push(open.last() == Some(&true)),
            b'}' | b']' => drop(open.pop()),
            b'"' => {
                let start = at - 1;
                at = string_end(bytes, at);
                let text = unescaped(&json[start..at]);
                let is_key = bytes[at..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
                match (open.last_mut(), text) {
                    (Some(under_status), text) if is_key => {
                        *under_status = text.is_some_and(|key| {
                            key.eq_ignore_ascii_case("state") || key.eq_ignore_ascii_case("status")
                        });
                    }
                    (Some(true), text) if text.as_deref().is_none_or(|word| !is_terminal(word)) => {
                        return false;
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    true
}

/// Returns whether a status word, in any letter case, ends a task.
pub(super) fn is_terminal(word: &str) -> bool {
    contains_ignoring_case(&SUCCESS_WORDS, word) || is_failure(word)
}

/// Returns whether a status word, in any letter case, means that the task failed.
pub(super) fn is_failure(word: &str) -> bool {
    contains_ignoring_case(&FAILURE_WORDS, word)
}

fn contains_ignoring_case(words: &[&str], word: &str) -> bool {
    words.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// Returns the index after the closing quote of a string. `at` is the index after the opening
/// quote.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match bytes.get(at) {
            Some(b'\\') => at += 2,
            Some(b'"') => return at + 1,
            Some(_) => at += 1,
            None => return bytes.len(),
        }
    }
}

/// Returns the content of a JSON string. `None` if it has an unpaired surrogate.
fn unescaped(json: &str) -> Option<Cow<'_, str>> {
    let content = json.strip_prefix('"')?.strip_suffix('"')?;
    if content.contains('\\') {
        return serde_json::from_str(json).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_of(json: &str) -> Option<TaskState> {
        inspect(json.as_bytes()).map(|inspection| inspection.state_of(&TaskId::parse("t1").unwrap()))
    }

    #[test]
    fn records_have_the_expected_states() {
        let deep = |word: &str, levels: usize| {
            let (open, close) = (r#"{"a":["#.repeat(levels), "]}".repeat(levels));
            format!(r#"{{"id":"t1","finished_at":1,"response":{open}{{"state":"{word}"}}{close}}}"#)
        };
        use TaskState::{Final, Mismatch, Pending, Unknown};
        let table: &[(&str, Option<TaskState>)] = &[
            // Final.
            (r#"{"id":"t1","finished_at":1767119785.589}"#, Some(Final)),
            (r#"{"id":"t1","finished_at":1767119785}"#, Some(Final)),
            (r#"{"id":"t1","finished_at":1.767e9,"response":null}"#, Some(Final)),
            (r#" {"finished_at":1,"response":{"data":[{"state":"succeeded"}]},"id":"t1"} "#, Some(Final)),
            (
                r#"{"id":"t1","finished_at":1,"response":{"state":"SUCCEEDED","status":"Complete"}}"#,
                Some(Final),
            ),
            (r#"{"id":"\u00741","finished_at":1}"#, Some(Final)),
            (
                r#"{"id":"t1","finished_at":1,"response":{"success":false,"error":{"code":"x","message":"y"}}}"#,
                Some(Final),
            ),
            (
                r#"{"id":"t1","finished_at":1,"response":{"data":[{"state":"failed"},{"state":"succeeded"}]}}"#,
                Some(Final),
            ),
            (r#"{"id":"t1","finished_at":1,"response":{"status":200,"state":null}}"#, Some(Final)),
            (r#"{"id":"t1","finished_at":1,"response":{"title":"pending","states":"pending"}}"#, Some(Final)),
            (r#"{"id":"t1","finished_at":1,"request":{"state":"pending"},"response":{}}"#, Some(Final)),
            // Not finished, or in doubt.
            (r#"{"id":"t1"}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":null}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":"1767119785.589"}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":true}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":[1]}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":{"at":1}}"#, Some(Pending)),
            (
                r#"{"id":"t1","response":{"data":[{"audio_url":"https://a/b.m4a","state":"processing"}]}}"#,
                Some(Pending),
            ),
            (
                r#"{"id":"t1","response":{"data":[{"audio_url":"https://a/b.m4a","state":"succeeded"}]}}"#,
                Some(Pending),
            ),
            (
                r#"{"id":"t1","finished_at":1,"response":{"data":[{"state":"succeeded"},{"state":"processing"}]}}"#,
                Some(Pending),
            ),
            (r#"{"id":"t1","finished_at":1,"response":{"status":"queued"}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"status":""}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"status":" succeeded"}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"status":"en cours"}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"STATE":"Pending"}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"st\u0061te":"pending"}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"status":["succeeded","running"]}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":[[{"x":{"status":"running"}}]]}"#, Some(Pending)),
            // Repeated keys.
            (r#"{"id":"t1","finished_at":null,"finished_at":1}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"finished_at":1}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"state":"pending"},"response":{}}"#, Some(Pending)),
            (
                r#"{"id":"t1","finished_at":1,"response":{"state":"pending","state":"succeeded"}}"#,
                Some(Pending),
            ),
            (r#"{"id":"t2","id":"t1","finished_at":1}"#, Some(Pending)),
            (r#"{"id":"t1","id":"t2","finished_at":1}"#, Some(Mismatch)),
            // Not the requested task.
            ("{}", Some(Unknown)),
            (" { } ", Some(Unknown)),
            (r#"{"finished_at":1}"#, Some(Mismatch)),
            (r#"{"id":"T1","finished_at":1}"#, Some(Mismatch)),
            (r#"{"id":"t1 ","finished_at":1}"#, Some(Mismatch)),
            (r#"{"id":1,"finished_at":1}"#, Some(Mismatch)),
            (r#"{"_id":"t1","task_id":"t1","finished_at":1}"#, Some(Mismatch)),
            (r#"{"success":false,"error":{"code":"api_error"}}"#, Some(Mismatch)),
            // Not an object.
            ("", None),
            ("null", None),
            ("[]", None),
            (r#""t1""#, None),
            (r#"[{"id":"t1","finished_at":1}]"#, None),
            (r#"{"id":"t1","finished_at":1"#, None),
            (r#"{"id":"t1","finished_at":1}{}"#, None),
            (r#"{"id":"t1","finished_at":NaN}"#, None),
            ("<html></html>", None),
            (&deep("succeeded", 20), Some(Final)),
            (&deep("pending", 20), Some(Pending)),
            (&deep("succeeded", 50_000), Some(Final)),
            (&deep("pending", 50_000), Some(Pending)),
            // Valid JSON that serde_json refuses.
            (r#"{"id":"t1","finished_at":1,"response":{"n":1e999,"status":-1e999}}"#, Some(Final)),
            (
                r#"{"id":"t1","finished_at":1,"response":{"title":"caf\u00e9 \ud83d","state":"failed"}}"#,
                Some(Final),
            ),
            (r#"{"id":"t1","finished_at":1,"response":{"\ud83d":"x","state":"running"}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"state":"\ud83d"}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1e999}"#, Some(Pending)),
            (r#"{"id":"\ud83d","finished_at":1}"#, Some(Mismatch)),
            // Strings that look like JSON, and unusual lists.
            (
                r#"{"id":"t1","finished_at":1,"response":{"lyric":"\"state\":\"pending\"","a":"\\"}}"#,
                Some(Final),
            ),
            (r#"{"id":"t1","finished_at":1,"response":{"status" : [ ] , "title" : "x"}}"#, Some(Final)),
            (r#"{"id":"t1","finished_at":1,"response":{"status":{"title":"x"}}}"#, Some(Final)),
            (r#"{"id":"t1","finished_at":1,"response":{"status":[["x"]]}}"#, Some(Pending)),
        ];
        for (json, expected) in table {
            assert_eq!(state_of(json), *expected, "{}", &json[..json.len().min(200)]);
        }
    }

    #[test]
    fn terminal_words_are_final_in_any_letter_case() {
        for word in SUCCESS_WORDS.into_iter().chain(FAILURE_WORDS) {
            for word in [word.to_owned(), word.to_uppercase()] {
                let json = format!(r#"{{"id":"t1","finished_at":1,"response":{{"state":"{word}"}}}}"#);
                assert_eq!(state_of(&json), Some(TaskState::Final), "{word}");
            }
        }
    }

    #[test]
    fn documented_record_is_final() {
        let json = include_bytes!("../../tests/fixtures/retrieve.json");
        let inspection = inspect(json).unwrap();
        let id = TaskId::parse("1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad").unwrap();
        assert_eq!(inspection.state_of(&id), TaskState::Final);
        assert_eq!(inspection.created_at, Some(1_767_119_745.524));
    }

    #[test]
    fn invalid_utf8_is_refused() {
        assert_eq!(inspect(b"{\"id\":\"t1\",\"x\":\"\xff\",\"finished_at\":1}"), None);
    }
}
