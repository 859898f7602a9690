//! Law 3: only what is final is kept. In doubt it is not final.
//!
//! [`inspect`] reads one task's text once and keeps of it only what a decision needs; the text itself stays as it
//! came.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::TaskId;

/// Words that end a task, under `state` or `status` anywhere in `response`, in any letter case: what the
/// upstream's own public clients take for "done" or "failed". Any other word means "not yet".
const TERMINAL_WORDS: [(&str, bool); 12] = [
    ("succeeded", true),
    ("succeed", true),
    ("success", true),
    ("completed", true),
    ("complete", true),
    ("finished", true),
    ("failed", false),
    ("failure", false),
    ("error", false),
    ("cancelled", false),
    ("canceled", false),
    ("rejected", false),
];

/// What an object that the upstream sent is to the id that was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TaskState {
    /// That task, finished: it may be kept.
    Final,
    /// That task, not finished yet or in doubt.
    Pending,
    /// `{}`: the upstream's answer for an id it does not know.
    Unknown,
    /// Something else: another id, or none.
    Mismatch,
}

/// What a decision needs of one JSON object of the upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// The object's `id`, where it is there once and a string.
    pub id: Option<String>,
    /// When the task was created, in Unix seconds by the upstream's clock.
    pub created_at: Option<f64>,
    settled: bool,
    empty: bool,
}

impl Inspection {
    /// What the object is to the id that was asked for.
    pub fn state_of(&self, asked: &TaskId) -> TaskState {
        match &self.id {
            _ if self.empty => TaskState::Unknown,
            Some(id) if id == asked.as_str() && self.settled => TaskState::Final,
            Some(id) if id == asked.as_str() => TaskState::Pending,
            _ => TaskState::Mismatch,
        }
    }
}

/// Reads a task object; `None` where the text is not one JSON object (RFC 8259), whatever else it is.
pub fn inspect(text: &[u8]) -> Option<Inspection> {
    let text = std::str::from_utf8(text).ok()?;
    serde_json::from_str::<TaskObject>(text).ok().map(|TaskObject(inspection)| inspection)
}

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
        let mut words: Option<Words> = None;
        let mut empty = true;
        // A repeated key is read differently by different readers, so it leaves the task in doubt.
        let mut repeated = false;
        while let Some(Text(key)) = map.next_key()? {
            empty = false;
            repeated |= match &*key {
                "id" => id.replace(map.next_value()?).is_some(),
                "finished_at" => finished_at.replace(map.next_value()?).is_some(),
                "response" => words.replace(map.next_value()?).is_some(),
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
        let finished = matches!(finished_at, Some(Scalar::Number(_)));
        let terminal = words.is_none_or(|words| words.all_terminal);
        Ok(TaskObject(Inspection {
            settled: finished && terminal && !repeated,
            id: match id {
                Some(Scalar::Text(id)) => Some(id.into_owned()),
                _ => None,
            },
            created_at: match created_at {
                Some(Scalar::Number(seconds)) => Some(seconds),
                _ => None,
            },
            empty,
        }))
    }
}

/// A string, borrowed where it has no escapes.
struct Text<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

/// A value of which only the kind, and for strings and numbers the content, matters. Read from its text, since the
/// parser takes no number beyond a double and no half of a surrogate pair, both of which JSON allows (RFC 8259).
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

/// The status words of `response`, at any depth.
struct Words {
    all_terminal: bool,
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        Ok(Self { all_terminal: all_words_are_terminal(json) })
    }
}

/// Tells whether every status word in a sound JSON text is terminal. A word is a string under a `state` or `status`
/// key, or in a list there; a number, null or boolean is no word.
///
/// Goes over the text once by itself: a value that the parser balks at (see [`Scalar`]), or nests deeper than it
/// follows, shall not hide the task.
fn all_words_are_terminal(json: &str) -> bool {
    let bytes = json.as_bytes();
    // For each open object or list, whether the next string in it is a word.
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

fn is_terminal(text: &str) -> bool {
    succeeded(text).is_some()
}

/// Whether a status word means success or failure; `None` for one that is not terminal.
pub(super) fn succeeded(text: &str) -> Option<bool> {
    TERMINAL_WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|&(_, succeeded)| succeeded)
}

/// Where a string ends, its closing quote included; `at` is behind the opening one.
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

/// A JSON string's content; `None` for one that is no Unicode text, by half of a surrogate pair.
fn unescaped(json: &str) -> Option<Cow<'_, str>> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    if inside.contains('\\') {
        return serde_json::from_str(json).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_of(text: &str) -> Option<TaskState> {
        inspect(text.as_bytes()).map(|inspection| inspection.state_of(&TaskId::parse("t1").unwrap()))
    }

    #[test]
    fn only_what_is_certainly_finished_is_final() {
        let deep = |word: &str, levels: usize| {
            let (open, close) = (r#"{"a":["#.repeat(levels), "]}".repeat(levels));
            format!(r#"{{"id":"t1","finished_at":1,"response":{open}{{"state":"{word}"}}{close}}}"#)
        };
        use TaskState::{Final, Mismatch, Pending, Unknown};
        let table: &[(&str, Option<TaskState>)] = &[
            // finished
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
            // not finished
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
            // repeated keys
            (r#"{"id":"t1","finished_at":null,"finished_at":1}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"finished_at":1}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"state":"pending"},"response":{}}"#, Some(Pending)),
            (
                r#"{"id":"t1","finished_at":1,"response":{"state":"pending","state":"succeeded"}}"#,
                Some(Pending),
            ),
            (r#"{"id":"t2","id":"t1","finished_at":1}"#, Some(Pending)),
            (r#"{"id":"t1","id":"t2","finished_at":1}"#, Some(Mismatch)),
            // not this task
            ("{}", Some(Unknown)),
            (" { } ", Some(Unknown)),
            (r#"{"finished_at":1}"#, Some(Mismatch)),
            (r#"{"id":"T1","finished_at":1}"#, Some(Mismatch)),
            (r#"{"id":"t1 ","finished_at":1}"#, Some(Mismatch)),
            (r#"{"id":1,"finished_at":1}"#, Some(Mismatch)),
            (r#"{"_id":"t1","task_id":"t1","finished_at":1}"#, Some(Mismatch)),
            (r#"{"success":false,"error":{"code":"api_error"}}"#, Some(Mismatch)),
            // no object
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
            // what JSON allows and the parser does not read
            (r#"{"id":"t1","finished_at":1,"response":{"n":1e999,"status":-1e999}}"#, Some(Final)),
            (
                r#"{"id":"t1","finished_at":1,"response":{"title":"caf\u00e9 \ud83d","state":"failed"}}"#,
                Some(Final),
            ),
            (r#"{"id":"t1","finished_at":1,"response":{"\ud83d":"x","state":"running"}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1,"response":{"state":"\ud83d"}}"#, Some(Pending)),
            (r#"{"id":"t1","finished_at":1e999}"#, Some(Pending)),
            (r#"{"id":"\ud83d","finished_at":1}"#, Some(Mismatch)),
            // strings that hold what looks like JSON
            (
                r#"{"id":"t1","finished_at":1,"response":{"lyric":"\"state\":\"pending\"","a":"\\"}}"#,
                Some(Final),
            ),
            (r#"{"id":"t1","finished_at":1,"response":{"status" : [ ] , "title" : "x"}}"#, Some(Final)),
            (r#"{"id":"t1","finished_at":1,"response":{"status":{"title":"x"}}}"#, Some(Final)),
            (r#"{"id":"t1","finished_at":1,"response":{"status":[["x"]]}}"#, Some(Pending)),
        ];
        for (text, expected) in table {
            assert_eq!(state_of(text), *expected, "{}", &text[..text.len().min(200)]);
        }
    }

    #[test]
    fn every_terminal_word_ends_a_task_in_any_case() {
        for (word, _) in TERMINAL_WORDS {
            for word in [word.to_owned(), word.to_uppercase()] {
                let text = format!(r#"{{"id":"t1","finished_at":1,"response":{{"state":"{word}"}}}}"#);
                assert_eq!(state_of(&text), Some(TaskState::Final), "{word}");
            }
        }
    }

    #[test]
    fn the_documentations_own_task_is_final() {
        let text = include_bytes!("../../tests/fixtures/retrieve.json");
        let inspection = inspect(text).unwrap();
        let id = TaskId::parse("1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad").unwrap();
        assert_eq!(inspection.state_of(&id), TaskState::Final);
        assert_eq!(inspection.created_at, Some(1_767_119_745.524));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_no_task() {
        assert_eq!(inspect(b"{\"id\":\"t1\",\"x\":\"\xff\",\"finished_at\":1}"), None);
    }
}
