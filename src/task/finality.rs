//! Finality of a task record (invariant "Only final records are stored"). When in doubt, a record
//! is pending.
//!
//! [`inspect`] parses a record once and returns only the fields on which decisions depend.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;

use memchr::memchr;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::durations::MAX_TYPE_BYTES;
use super::{ServiceRules, TaskId};

/// Keys of a status, in any letter case.
const STATUS_KEYS: [&str; 3] = ["state", "status", "task_status"];

/// Status words of a succeeded task. The upstream's own public clients treat these as "done".
const SUCCESS_WORDS: [&str; 7] =
    ["succeeded", "succeed", "success", "completed", "complete", "finished", "done"];

/// Status words of a failed task. The upstream's own public clients treat these as "failed".
const FAILURE_WORDS: [&str; 7] = ["failed", "failure", "error", "cancelled", "canceled", "rejected", "dead"];

/// How far in the future `finished_at` may be, in seconds, since clocks differ.
const MAX_CLOCK_DIFFERENCE: f64 = 60.0;

/// Time after `finished_at` in which a status can be in doubt, in seconds. A task whose status word
/// is not known would otherwise be fetched for ever.
const MAX_DOUBT: f64 = 3600.0;

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
    /// End of the task, in Unix seconds by the upstream's clock. Present in some pending records too.
    pub finished_at: Option<f64>,
    /// Value of `type`, the kind of work, if it is a string of at most 64 bytes.
    pub kind: Option<Box<str>>,
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

    /// Returns the time from creation to end in seconds. `None` if one of the times is missing or if
    /// the end comes first.
    pub fn duration(&self) -> Option<f64> {
        Some(self.finished_at? - self.created_at?).filter(|seconds| *seconds >= 0.0)
    }
}

/// Inspects a record of a service with these rules at `now`, in Unix seconds. `None` if `json` is
/// not exactly one JSON object (RFC 8259).
pub fn inspect(json: &[u8], rules: &ServiceRules, now: i64) -> Option<Inspection> {
    let json = std::str::from_utf8(json).ok()?;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let inspection = deserializer.deserialize_map(TaskVisitor { rules, now }).ok()?;
    deserializer.end().ok()?;
    Some(inspection)
}

struct TaskVisitor<'a> {
    rules: &'a ServiceRules,
    now: i64,
}

impl<'de> Visitor<'de> for TaskVisitor<'_> {
    type Value = Inspection;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Inspection, A::Error> {
        let mut id: Option<Scalar<'de>> = None;
        let mut finished_at: Option<Scalar<'de>> = None;
        let mut created_at: Option<Scalar<'de>> = None;
        let mut kind: Option<Scalar<'de>> = None;
        let mut response: Option<&RawValue> = None;
        let mut statuses: [Option<&RawValue>; STATUS_KEYS.len()] = [None; STATUS_KEYS.len()];
        let mut is_empty = true;
        // Parsers differ in which value of a repeated key they use, so a repeated key makes the
        // record pending.
        let mut has_repeated_key = false;
        while let Some(JsonString(key)) = map.next_key()? {
            is_empty = false;
            has_repeated_key |= match &*key {
                "id" => id.replace(map.next_value()?).is_some(),
                "finished_at" => finished_at.replace(map.next_value()?).is_some(),
                "response" => response.replace(map.next_value()?).is_some(),
                "created_at" => {
                    created_at = Some(map.next_value()?);
                    false
                }
                "type" => {
                    kind = Some(map.next_value()?);
                    false
                }
                _ => match status_key_index(&key) {
                    Some(index) => statuses[index].replace(map.next_value()?).is_some(),
                    None => {
                        map.next_value::<IgnoredAny>()?;
                        false
                    }
                },
            };
        }
        let has_doubt = !self.rules.has_foreign_content
            && (response.is_some_and(|response| !is_response_terminal(response.get()))
                || statuses.iter().flatten().any(|status| !is_status_terminal(status.get())));
        Ok(Inspection {
            is_final: !has_repeated_key && self.is_finished(finished_at.as_ref(), has_doubt),
            id: match id {
                Some(Scalar::Text(id)) => Some(id.into_owned()),
                _ => None,
            },
            created_at: number(created_at.as_ref()),
            finished_at: number(finished_at.as_ref()),
            kind: match kind {
                Some(Scalar::Text(kind)) if kind.len() <= MAX_TYPE_BYTES => Some(kind.into()),
                _ => None,
            },
            is_empty,
        })
    }
}

impl TaskVisitor<'_> {
    /// Returns whether a task with this `finished_at` has finished, and for long enough if its
    /// status is in doubt.
    #[expect(clippy::cast_precision_loss, reason = "Unix seconds are far below 2^52")]
    fn is_finished(&self, finished_at: Option<&Scalar<'_>>, has_doubt: bool) -> bool {
        let Some(finished_at) = number(finished_at) else { return false };
        let age = self.now as f64 - finished_at;
        finished_at > 0.0 && if has_doubt { age > MAX_DOUBT } else { age >= -MAX_CLOCK_DIFFERENCE }
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

fn number(value: Option<&Scalar<'_>>) -> Option<f64> {
    match value {
        Some(Scalar::Number(number)) => Some(*number),
        _ => None,
    }
}

/// Returns whether every status in a `response` is terminal, at any depth. `json` is valid JSON. A
/// string is in doubt, since it may contain a status in another format.
///
/// Scans the text without a parser: a value that `serde_json` refuses (see [`Scalar`]) or that is
/// nested too deeply must not hide a status.
fn is_response_terminal(json: &str) -> bool {
    let bytes = json.as_bytes();
    let mut at = 0;
    while let Some(distance) = memchr(b'"', &bytes[at..]) {
        let start = at + distance;
        at = string_end(bytes, start + 1);
        // Only a key is followed by a colon.
        let Some(value) = json[at..].trim_ascii_start().strip_prefix(':') else { continue };
        let is_status = unescaped(&json[start..at]).is_some_and(|key| is_status_key(&key));
        if is_status && !is_status_terminal(value.trim_ascii_start()) {
            return false;
        }
    }
    !json.starts_with('"')
}

/// Returns whether a status is a terminal word, or a number or `null`, which say nothing. `json`
/// starts with the value.
fn is_status_terminal(json: &str) -> bool {
    match json.as_bytes().first() {
        Some(b'"') => {
            unescaped(&json[..string_end(json.as_bytes(), 1)]).is_some_and(|word| is_terminal(&word))
        }
        Some(b'-' | b'0'..=b'9' | b'n') => true,
        _ => false,
    }
}

/// Returns whether a key, in any letter case, is that of a status.
pub(super) fn is_status_key(key: &str) -> bool {
    status_key_index(key).is_some()
}

fn status_key_index(key: &str) -> Option<usize> {
    STATUS_KEYS.iter().position(|known| known.eq_ignore_ascii_case(key))
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
