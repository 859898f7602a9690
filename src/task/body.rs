//! What a client's body asks for. Exactly one of two look-ups, exactly a delete, or something that is none of
//! our business (law 7): other keys, repeated keys, wrong types, not JSON.

mod canonical;

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::TaskId;

/// What a body asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `{"action":"retrieve","id":"…"}`
    Retrieve(TaskId),
    /// `{"action":"retrieve_batch","ids":["…",…]}`, in request order with repeats; at least one id.
    RetrieveBatch(Vec<TaskId>),
    /// A batch of more ids than `tasks.max_ids`; the number asked for.
    TooManyIds(usize),
    /// `{"action":"delete","id":"…"}`, with or without `user_id` and `application_id`.
    Delete(TaskId),
    /// Anything else.
    Other,
}

impl Action {
    /// Reads a body. Two readers of the same JSON can disagree about repeated keys and the like; whatever leaves
    /// room for that is [`Action::Other`].
    pub fn parse(body: &[u8], max_ids: usize) -> Self {
        let fields = canonical::fields(body, max_ids).or_else(|| Fields::parse(body, max_ids));
        match fields.unwrap_or_default() {
            Fields { action: Some(Verb::Retrieve), id: Some(id), ids: None, owner: false } => {
                Self::Retrieve(id)
            }
            Fields {
                action: Some(Verb::RetrieveBatch),
                id: None,
                ids: Some(Ids { ids, count }),
                owner: false,
            } => match count {
                0 => Self::Other,
                _ if count > max_ids => Self::TooManyIds(count),
                _ => Self::RetrieveBatch(ids),
            },
            Fields { action: Some(Verb::Delete), id: Some(id), ids: None, .. } => Self::Delete(id),
            _ => Self::Other,
        }
    }
}

#[derive(Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
struct Fields {
    action: Option<Verb>,
    id: Option<TaskId>,
    ids: Option<Ids>,
    /// `user_id` or `application_id` was there, which only a delete has.
    owner: bool,
}

impl Fields {
    /// `None` unless it is one object of known keys.
    fn parse(body: &[u8], max_ids: usize) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let fields = deserializer.deserialize_map(FieldsVisitor { max_ids }).ok()?;
        deserializer.end().ok()?;
        Some(fields)
    }
}

#[cfg_attr(test, derive(Debug, PartialEq))]
enum Verb {
    Retrieve,
    RetrieveBatch,
    Delete,
}

impl Verb {
    fn of(word: &str) -> Option<Self> {
        match word {
            "retrieve" => Some(Self::Retrieve),
            "retrieve_batch" => Some(Self::RetrieveBatch),
            "delete" => Some(Self::Delete),
            _ => None,
        }
    }
}

/// The value of `action`; `None` for a word that is none of ours.
struct Word(Option<Verb>);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordVisitor;
        impl Visitor<'_> for WordVisitor {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Word, E> {
                Ok(Word(Verb::of(word)))
            }
        }
        deserializer.deserialize_str(WordVisitor)
    }
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Key {
    Action,
    Id,
    Ids,
    UserId,
    ApplicationId,
}

struct FieldsVisitor {
    max_ids: usize,
}

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        let mut seen = 0_u8;
        while let Some(key) = map.next_key::<Key>()? {
            let bit = 1 << key as u8;
            if seen & bit != 0 {
                return Err(A::Error::custom("a key is repeated"));
            }
            seen |= bit;
            match key {
                Key::Action => fields.action = map.next_value::<Word>()?.0,
                Key::Id => fields.id = Some(map.next_value::<Id>()?.0),
                Key::Ids => fields.ids = Some(map.next_value_seed(IdsSeed { max_ids: self.max_ids })?),
                Key::UserId | Key::ApplicationId => {
                    map.next_value::<String>()?;
                    fields.owner = true;
                }
            }
        }
        Ok(fields)
    }
}

struct Id(TaskId);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a task id")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
                TaskId::parse(text).map(Id).ok_or_else(|| E::custom("an empty or oversized id"))
            }
        }
        deserializer.deserialize_str(IdVisitor)
    }
}

/// At most `max_ids` ids and how many there were, so that a long list is counted without being kept.
#[derive(Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
struct Ids {
    ids: Vec<TaskId>,
    count: usize,
}

impl Ids {
    fn push(&mut self, id: TaskId, max_ids: usize) {
        self.count += 1;
        if self.count <= max_ids {
            self.ids.push(id);
        } else {
            self.ids = Vec::new();
        }
    }
}

struct IdsSeed {
    max_ids: usize,
}

impl<'de> serde::de::DeserializeSeed<'de> for IdsSeed {
    type Value = Ids;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Ids, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for IdsSeed {
    type Value = Ids;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of task ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Ids, A::Error> {
        let mut found = Ids::default();
        while let Some(Id(id)) = seq.next_element()? {
            found.push(id, self.max_ids);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> TaskId {
        TaskId::parse(text).unwrap()
    }

    #[test]
    fn the_two_look_ups_and_the_delete_are_understood() {
        let parse = |body: &str| Action::parse(body.as_bytes(), 3);
        assert_eq!(parse(r#"{"action":"retrieve","id":"a"}"#), Action::Retrieve(id("a")));
        assert_eq!(
            parse("\n{ \"id\" : \"\\u0061\\n\" , \"action\":\"retrieve\" }\n"),
            Action::Retrieve(id("a\n"))
        );
        assert_eq!(
            parse(r#"{"action":"retrieve_batch","ids":["a","b","a"]}"#),
            Action::RetrieveBatch(vec![id("a"), id("b"), id("a")])
        );
        assert_eq!(parse(r#"{"action":"retrieve_batch","ids":["a","b","a","c"]}"#), Action::TooManyIds(4));
        assert_eq!(parse(r#"{"action":"delete","id":"a"}"#), Action::Delete(id("a")));
        assert_eq!(
            parse(r#"{"action":"delete","id":"a","user_id":"u","application_id":"p"}"#),
            Action::Delete(id("a"))
        );
    }

    #[test]
    fn whatever_leaves_room_for_doubt_is_something_else() {
        let long = format!(r#"{{"action":"retrieve","id":"{}"}}"#, "x".repeat(1025));
        let deep = format!(r#"{{"action":"retrieve","id":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for body in [
            "",
            "null",
            "[]",
            "\"retrieve\"",
            "{}",
            r#"{"action":"retrieve"}"#,
            r#"{"id":"a"}"#,
            r#"{"action":"retrieve","id":""}"#,
            r#"{"action":{"retrieve":null},"id":"a"}"#,
            r#"{"action":["retrieve"],"id":"a"}"#,
            r#"["retrieve","a"]"#,
            r#"{"action":"retrieve","id":1}"#,
            r#"{"action":"retrieve","id":null}"#,
            r#"{"action":"retrieve","id":["a"]}"#,
            r#"{"action":"Retrieve","id":"a"}"#,
            r#"{"action":"retrieve","id":"a","id":"a"}"#,
            r#"{"action":"retrieve","action":"retrieve","id":"a"}"#,
            r#"{"action":"retrieve","id":"a","i\u0064":"b"}"#,
            r#"{"action":"retrieve","id":"a","ID":"b"}"#,
            r#"{"action":"retrieve","id":"a","trace_id":"b"}"#,
            r#"{"action":"retrieve","id":"a","user_id":"u"}"#,
            r#"{"action":"retrieve","id":"a","ids":["a"]}"#,
            r#"{"action":"retrieve","ids":["a"]}"#,
            r#"{"action":"retrieve","trace_id":"b"}"#,
            r#"{"action":"retrieve_batch","id":"a"}"#,
            r#"{"action":"retrieve_batch","ids":[]}"#,
            r#"{"action":"retrieve_batch","ids":"a"}"#,
            r#"{"action":"retrieve_batch","ids":["a",1]}"#,
            r#"{"action":"retrieve_batch","ids":["a",""]}"#,
            r#"{"action":"retrieve_batch","ids":["a"],"limit":1}"#,
            r#"{"action":"retrieve_batch","limit":10}"#,
            r#"{"action":"delete","id":"a","force":true}"#,
            r#"{"action":"delete","id":"a","user_id":1}"#,
            r#"{"action":"retrieve","id":"a"}x"#,
            r#"{"action":"retrieve","id":"a"}{}"#,
            r#"{"action":"retrieve","id":"a",}"#,
            r#"{"action":"retrieve","id":"\ud800"}"#,
            "\u{feff}{\"action\":\"retrieve\",\"id\":\"a\"}",
            &long,
            &deep,
        ] {
            assert_eq!(Action::parse(body.as_bytes(), 10), Action::Other, "{}", &body[..body.len().min(100)]);
        }
        assert_eq!(Action::parse(b"{\"action\":\"retrieve\",\"id\":\"\xff\"}", 10), Action::Other);
    }
}
