//! Classification of a request body: one of the two lookups, a delete, or anything else.
//!
//! When in doubt, forward: a body with unknown keys, repeated keys, wrong types or broken JSON is
//! [`TaskRequest::Other`].

mod canonical;

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{LookupIds, ServiceRules, TaskId};

/// Request that a body sent to `/{service}/tasks` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskRequest {
    /// `{"action":"retrieve","id":"…"}`, or `{"action":"retrieve_batch","ids":["…",…]}` with at
    /// least one id, or another form with the same meaning (docs/clients.md).
    Lookup(LookupIds),
    /// Batch of more than `tasks.max_ids` ids, with their number.
    TooManyIds(usize),
    /// `{"action":"delete","id":"…"}`, with or without `user_id` and `application_id`.
    Delete(TaskId),
    /// Any other body. It is forwarded unchanged.
    Other,
}

impl TaskRequest {
    /// Classifies a body sent to a service with these rules. Two JSON parsers can disagree about a
    /// repeated key and the like; such a body is [`TaskRequest::Other`].
    pub fn parse(body: &[u8], max_ids: usize, rules: &ServiceRules) -> Self {
        let fields = canonical::parse(body, max_ids).or_else(|| BodyFields::parse(body, max_ids));
        let BodyFields { action, id, ids, has_owner, offset, limit } = fields.unwrap_or_default();
        let is_page = offset.is_some() || limit.is_some();
        match (action, id, ids) {
            (Some(Action::Delete), Some(id), None) if !is_page => Self::Delete(id),
            _ if has_owner => Self::Other,
            (Some(Action::Retrieve), Some(id), None) if !is_page => Self::Lookup(LookupIds::Single(id)),
            (None, Some(id), None) if !is_page && rules.absent_action_retrieves => {
                Self::Lookup(LookupIds::Single(id))
            }
            (Some(Action::RetrieveBatch), None, Some(list)) if offset.unwrap_or(0) == 0 => {
                Self::batch(list, limit, max_ids)
            }
            _ => Self::Other,
        }
    }

    /// Classifies a batch. A `limit` below the number of distinct ids would cut its response.
    fn batch(IdList { ids, count }: IdList, limit: Option<u64>, max_ids: usize) -> Self {
        let is_cut = |records: usize| limit.is_some_and(|limit| limit < records as u64);
        if count > max_ids {
            // The ids are not held, so the distinct ones cannot be counted.
            return if is_cut(count) { Self::Other } else { Self::TooManyIds(count) };
        }
        let ids = LookupIds::batch(ids);
        if count == 0 || is_cut(ids.distinct().len()) { Self::Other } else { Self::Lookup(ids) }
    }
}

/// Members of a body. `None` for a member that is absent.
#[derive(Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
struct BodyFields {
    action: Option<Action>,
    /// Also `None` for an empty id, which means nothing in a batch and is invalid elsewhere.
    id: Option<TaskId>,
    ids: Option<IdList>,
    /// Whether `user_id` or `application_id` is present, which only a delete may have.
    has_owner: bool,
    offset: Option<u64>,
    limit: Option<u64>,
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
    Unknown,
}

impl Action {
    fn parse(name: &str) -> Self {
        match name {
            "retrieve" => Self::Retrieve,
            "retrieve_batch" => Self::RetrieveBatch,
            "delete" => Self::Delete,
            _ => Self::Unknown,
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
    Offset,
    Limit,
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
                MemberKey::Action => fields.action = Some(Action::parse(&map.next_value::<String>()?)),
                MemberKey::Id => {
                    let id: String = map.next_value()?;
                    if !id.is_empty() {
                        fields.id = Some(RequestedId::try_from(id).map_err(A::Error::custom)?.0);
                    }
                }
                MemberKey::Ids => {
                    fields.ids = Some(map.next_value_seed(IdListSeed { max_ids: self.max_ids })?);
                }
                MemberKey::UserId | MemberKey::ApplicationId => {
                    map.next_value::<String>()?;
                    fields.has_owner = true;
                }
                // Any other form of a number, such as `12.0`, is an error.
                MemberKey::Offset => fields.offset = Some(map.next_value()?),
                MemberKey::Limit => fields.limit = Some(map.next_value()?),
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
    use crate::task::{ServiceClass, find_in_catalogue};

    fn id(text: &str) -> TaskId {
        TaskId::parse(text).unwrap()
    }

    fn single(id: &str) -> TaskRequest {
        TaskRequest::Lookup(LookupIds::Single(TaskId::parse(id).unwrap()))
    }

    fn batch(ids: &[&str]) -> TaskRequest {
        TaskRequest::Lookup(LookupIds::batch(ids.iter().map(|text| id(text)).collect()))
    }

    /// Parses a body for `producer`, with at most three ids.
    fn parse(body: &str) -> TaskRequest {
        TaskRequest::parse(body.as_bytes(), 3, &find_in_catalogue("producer").unwrap().rules)
    }

    #[test]
    fn lookups_and_deletes_are_recognised() {
        for (body, expected) in [
            (r#"{"action":"retrieve","id":"a"}"#, single("a")),
            ("\n{ \"id\" : \"\\u0061\\n\" , \"action\":\"retrieve\" }\n", single("a\n")),
            (r#"{"action":"retrieve_batch","ids":["a","b","a"]}"#, batch(&["a", "b", "a"])),
            (r#"{"action":"retrieve_batch","ids":["a","b","a","c"]}"#, TaskRequest::TooManyIds(4)),
            (r#"{"action":"delete","id":"a"}"#, TaskRequest::Delete(id("a"))),
            (
                r#"{"action":"delete","id":"a","user_id":"u","application_id":"p"}"#,
                TaskRequest::Delete(id("a")),
            ),
        ] {
            assert_eq!(parse(body), expected, "{body}");
        }
    }

    #[test]
    fn absent_action_retrieves_where_the_service_says_so() {
        let custom = ServiceRules::new(ServiceClass::Batch, None);
        for body in [r#"{"id":"a"}"#, "{\"i\\u0064\":\n\"a\"}"] {
            assert_eq!(parse(body), single("a"), "{body}");
            assert_eq!(TaskRequest::parse(body.as_bytes(), 3, &custom), TaskRequest::Other, "{body}");
        }
        for body in [
            r#"{"id":""}"#,
            r#"{"id":null}"#,
            r#"{"action":null,"id":"a"}"#,
            r#"{"action":"","id":"a"}"#,
            r#"{"action":"generate","id":"a"}"#,
            r#"{"id":"a","id":"a"}"#,
            r#"{"id":"a","ids":["a"]}"#,
            r#"{"ids":["a"]}"#,
            r#"{"id":"a","user_id":"u"}"#,
            r#"{"id":"a","limit":1}"#,
            r#"{"id":"a","offset":0}"#,
            r#"{"task_id":"a"}"#,
        ] {
            assert_eq!(parse(body), TaskRequest::Other, "{body}");
        }
    }

    #[test]
    fn batch_members_without_an_effect_are_accepted() {
        let body = |more: &str| format!(r#"{{"action":"retrieve_batch","ids":["a","b","a"]{more}}}"#);
        for more in [
            r#","id":"""#,
            r#","offset":0"#,
            r#","limit":2"#,
            r#","limit":18446744073709551615"#,
            r#","limit":12,"offset":0,"id":"""#,
        ] {
            assert_eq!(parse(&body(more)), batch(&["a", "b", "a"]), "{more}");
        }
        for more in [
            r#","id":"a""#,
            r#","id":null"#,
            r#","id":"","id":"""#,
            r#","offset":1"#,
            r#","offset":-0"#,
            r#","offset":0.0"#,
            r#","offset":null"#,
            r#","offset":0,"offset":0"#,
            r#","limit":1"#,
            r#","limit":0"#,
            r#","limit":-1"#,
            r#","limit":12.0"#,
            r#","limit":1e3"#,
            r#","limit":"12""#,
            r#","limit":[12]"#,
            r#","limit":true"#,
            r#","limit":null"#,
            r#","limit":012"#,
            r#","limit":18446744073709551616"#,
            r#","limit":12,"limit":12"#,
            r#","limit":12,"user_id":"u""#,
            r#","limit":12,"type":"audios""#,
        ] {
            assert_eq!(parse(&body(more)), TaskRequest::Other, "{more}");
        }
        let body = |limit: u8| {
            parse(&format!(r#"{{"action":"retrieve_batch","ids":["a","a","a","b"],"limit":{limit}}}"#))
        };
        assert_eq!([body(3), body(4)], [TaskRequest::Other, TaskRequest::TooManyIds(4)]);
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
            r#"{"action":"retrieve","id":""}"#,
            r#"{"action":"retrieve","id":"a","limit":12}"#,
            r#"{"action":"retrieve","id":"a","offset":0}"#,
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
            r#"{"action":"retrieve_batch","ids":[],"limit":10}"#,
            r#"{"action":"retrieve_batch","limit":10}"#,
            r#"{"action":"retrieve_batch","id":"","limit":10}"#,
            r#"{"action":"delete","id":"a","force":true}"#,
            r#"{"action":"delete","id":"a","limit":1}"#,
            r#"{"action":"delete","id":""}"#,
            r#"{"action":"delete","id":"a","user_id":1}"#,
            r#"{"action":"retrieve","id":"a"}x"#,
            r#"{"action":"retrieve","id":"a"}{}"#,
            r#"{"action":"retrieve","id":"a",}"#,
            r#"{"action":"retrieve","id":"\ud800"}"#,
            "\u{feff}{\"action\":\"retrieve\",\"id\":\"a\"}",
            &long,
            &deep,
        ] {
            assert_eq!(parse(body), TaskRequest::Other, "{}", &body[..body.len().min(100)]);
        }
        let rules = &find_in_catalogue("producer").unwrap().rules;
        let not_utf8 = b"{\"action\":\"retrieve\",\"id\":\"\xff\"}";
        assert_eq!(TaskRequest::parse(not_utf8, 3, rules), TaskRequest::Other);
    }
}
