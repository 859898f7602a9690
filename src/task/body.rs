//! Classification of a request body: one of the two lookups, a delete, or anything else.
//!
//! When in doubt, forward: a body with unknown keys, repeated keys, wrong types or broken JSON is
//! [`TaskRequest::Other`].

mod canonical;

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{LookupIds, TaskId};

/// Request that a body sent to `/{service}/tasks` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskRequest {
    /// `{"action":"retrieve","id":"…"}`, or `{"action":"retrieve_batch","ids":["…",…]}` with at
    /// least one id.
    Lookup(LookupIds),
    /// Batch of more than `tasks.max_ids` ids, with their number.
    TooManyIds(usize),
    /// `{"action":"delete","id":"…"}`, with or without `user_id` and `application_id`.
    Delete(TaskId),
    /// Any other body. It is forwarded unchanged.
    Other,
}

impl TaskRequest {
    /// Classifies a body. Two JSON parsers can disagree about a repeated key and the like; such a
    /// body is [`TaskRequest::Other`].
    pub fn parse(body: &[u8], max_ids: usize) -> Self {
        let fields = canonical::parse(body, max_ids).or_else(|| BodyFields::parse(body, max_ids));
        match fields.unwrap_or_default() {
            BodyFields { action: Some(Action::Retrieve), id: Some(id), ids: None, has_owner: false } => {
                Self::Lookup(LookupIds::Single(id))
            }
            BodyFields {
                action: Some(Action::RetrieveBatch),
                id: None,
                ids: Some(IdList { ids, count }),
                has_owner: false,
            } => match count {
                0 => Self::Other,
                _ if count > max_ids => Self::TooManyIds(count),
                _ => Self::Lookup(LookupIds::batch(ids)),
            },
            BodyFields { action: Some(Action::Delete), id: Some(id), ids: None, .. } => Self::Delete(id),
            _ => Self::Other,
        }
    }
}

/// Members of a body. `None` for a member that is absent; for `action`, also for an unknown name.
#[derive(Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
struct BodyFields {
    action: Option<Action>,
    id: Option<TaskId>,
    ids: Option<IdList>,
    /// Whether `user_id` or `application_id` is present, which only a delete may have.
    has_owner: bool,
}

impl BodyFields {
    /// Parses any JSON. `None` unless the body is one object that has only known keys, each at most
    /// once.
    fn parse(body: &[u8], max_ids: usize) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let fields = deserializer.deserialize_map(BodyVisitor { max_ids }).ok()?;
        deserializer.end().ok()?;
        Some(fields)
    }
}

#[cfg_attr(test, derive(Debug, PartialEq))]
enum Action {
    Retrieve,
    RetrieveBatch,
    Delete,
}

impl Action {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "retrieve" => Some(Self::Retrieve),
            "retrieve_batch" => Some(Self::RetrieveBatch),
            "delete" => Some(Self::Delete),
            _ => None,
        }
    }
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum MemberKey {
    Action,
    Id,
    Ids,
    UserId,
    ApplicationId,
}

struct BodyVisitor {
    max_ids: usize,
}

impl<'de> Visitor<'de> for BodyVisitor {
    type Value = BodyFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BodyFields, A::Error> {
        let mut fields = BodyFields::default();
        let mut seen = 0_u8;
        while let Some(key) = map.next_key::<MemberKey>()? {
            let bit = 1 << key as u8;
            if seen & bit != 0 {
                return Err(A::Error::custom("a key is repeated"));
            }
            seen |= bit;
            match key {
                MemberKey::Action => fields.action = Action::parse(&map.next_value::<String>()?),
                MemberKey::Id => fields.id = Some(map.next_value::<RequestedId>()?.0),
                MemberKey::Ids => {
                    fields.ids = Some(map.next_value_seed(IdListSeed { max_ids: self.max_ids })?);
                }
                MemberKey::UserId | MemberKey::ApplicationId => {
                    map.next_value::<String>()?;
                    fields.has_owner = true;
                }
            }
        }
        Ok(fields)
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct RequestedId(TaskId);

impl TryFrom<String> for RequestedId {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        TaskId::parse(&id).map(Self).ok_or("an empty or oversized id")
    }
}

/// Ids of a batch with their number. A list of more than `max_ids` ids is counted but not held in
/// memory.
#[derive(Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
struct IdList {
    ids: Vec<TaskId>,
    count: usize,
}

impl IdList {
    fn push(&mut self, id: TaskId, max_ids: usize) {
        self.count += 1;
        if self.count <= max_ids {
            self.ids.push(id);
        } else {
            self.ids = Vec::new();
        }
    }
}

struct IdListSeed {
    max_ids: usize,
}

impl<'de> DeserializeSeed<'de> for IdListSeed {
    type Value = IdList;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<IdList, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for IdListSeed {
    type Value = IdList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of task ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<IdList, A::Error> {
        let mut list = IdList::default();
        while let Some(RequestedId(id)) = seq.next_element()? {
            list.push(id, self.max_ids);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> TaskId {
        TaskId::parse(text).unwrap()
    }

    fn single(id: &str) -> TaskRequest {
        TaskRequest::Lookup(LookupIds::Single(TaskId::parse(id).unwrap()))
    }

    #[test]
    fn lookups_and_deletes_are_recognised() {
        let parse = |body: &str| TaskRequest::parse(body.as_bytes(), 3);
        assert_eq!(parse(r#"{"action":"retrieve","id":"a"}"#), single("a"));
        assert_eq!(parse("\n{ \"id\" : \"\\u0061\\n\" , \"action\":\"retrieve\" }\n"), single("a\n"));
        assert_eq!(
            parse(r#"{"action":"retrieve_batch","ids":["a","b","a"]}"#),
            TaskRequest::Lookup(LookupIds::batch(vec![id("a"), id("b"), id("a")]))
        );
        assert_eq!(
            parse(r#"{"action":"retrieve_batch","ids":["a","b","a","c"]}"#),
            TaskRequest::TooManyIds(4)
        );
        assert_eq!(parse(r#"{"action":"delete","id":"a"}"#), TaskRequest::Delete(id("a")));
        assert_eq!(
            parse(r#"{"action":"delete","id":"a","user_id":"u","application_id":"p"}"#),
            TaskRequest::Delete(id("a"))
        );
    }

    #[test]
    fn ambiguous_bodies_are_other() {
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
            assert_eq!(
                TaskRequest::parse(body.as_bytes(), 10),
                TaskRequest::Other,
                "{}",
                &body[..body.len().min(100)]
            );
        }
        assert_eq!(TaskRequest::parse(b"{\"action\":\"retrieve\",\"id\":\"\xff\"}", 10), TaskRequest::Other);
    }
}
