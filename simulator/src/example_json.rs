//! JSON of a simulated task, made from an example body of its service.
//!
//! The keys, their order and the forms of the numbers are those of the example. The same task in
//! the same phase always has the same bytes.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::services::{Examples, Form, Pending, Service};
use super::task_json::{Phase, TaskFields, accepted, millis};

const ERROR: &str = r#"{"code":"api_error","message":"generation failed"}"#;

/// Returns the task record, without the envelope around it. `None` if the task is not visible in
/// this phase.
pub(super) fn record(
    service: &Service,
    examples: &Examples,
    fields: &TaskFields<'_>,
    phase: Phase,
) -> Option<String> {
    members(service, examples, fields, phase).map(|members| members.text())
}

/// Returns the current result of a task, for the call that started it.
pub(super) fn result(
    service: &Service,
    examples: &Examples,
    fields: &TaskFields<'_>,
    phase: Phase,
) -> String {
    let members = members(service, examples, fields, phase);
    let result = members.as_ref().and_then(|members| match service.form {
        Form::Record => members.get("response").map(|response| response.get().to_owned()),
        _ => Some(members.text()),
    });
    result.unwrap_or_else(|| accepted(fields.id, fields.trace_id))
}

/// Returns the record around a flat result: the response to `retrieve` where the response without
/// `action` is the result alone. The documentation names its fields but shows none.
pub(super) fn around(result: &str, fields: &TaskFields<'_>, phase: Phase) -> String {
    let times = Times::new(fields, phase);
    let number = |seconds: Option<f64>| raw(&seconds.map(millis));
    let text = |key: &str, value: &str| (key.to_owned(), raw(&value));
    let result = RawValue::from_string(result.to_owned()).expect("a result is JSON");
    let mut members = vec![
        text("id", fields.id),
        ("created_at".to_owned(), number(Some(times.created_at))),
        ("started_at".to_owned(), number(times.started_at)),
        ("finished_at".to_owned(), number(times.finished_at)),
        ("elapsed".to_owned(), number(times.elapsed())),
        text("trace_id", fields.trace_id),
        text("type", fields.kind),
        text("user_id", &fields.account.user_id),
    ];
    members.extend(fields.request.map(|request| ("request".to_owned(), request.to_owned())));
    members.push(("response".to_owned(), result));
    Members(members).text()
}

fn members(service: &Service, examples: &Examples, fields: &TaskFields<'_>, phase: Phase) -> Option<Members> {
    let finished = || Members::parse(examples.finished);
    let mut members = match phase {
        Phase::Queued | Phase::Processing { .. } => match examples.pending {
            Pending::Example(example) => Members::parse(example),
            Pending::WithoutResponse => {
                let mut members = finished();
                members.0.retain(|(key, _)| !["response", "finished_at", "elapsed"].contains(&key.as_str()));
                members
            }
            Pending::Unknown => return None,
        },
        Phase::Succeeded { .. } => finished(),
        Phase::Failed { .. } => match examples.failed {
            Some(example) => Members::parse(example),
            None => {
                let mut members = finished();
                if let Some(response) = members.get_mut("response") {
                    let failed = format!(
                        r#"{{"success":false,"task_id":"{}","trace_id":"{}","error":{ERROR}}}"#,
                        fields.id, fields.trace_id
                    );
                    *response = RawValue::from_string(failed).expect("ids have no quotes");
                }
                members
            }
        },
    };
    if service.form == Form::Envelope
        && let Some(task) = members.get("task")
    {
        members = Members::parse(task.get());
    }
    members.set_ids(fields);
    members.set_times(&Times::new(fields, phase));
    if service.form == Form::Record && phase.has_ended() {
        members.add_end(&Times::new(fields, phase));
    }
    Some(members)
}

/// Times of a task in Unix seconds.
struct Times {
    created_at: f64,
    started_at: Option<f64>,
    finished_at: Option<f64>,
}

impl Times {
    fn new(fields: &TaskFields<'_>, phase: Phase) -> Self {
        let (started_at, finished_at) = phase.times();
        Self { created_at: fields.created_at, started_at, finished_at }
    }

    fn elapsed(&self) -> Option<f64> {
        self.finished_at.map(|at| at - self.created_at)
    }
}

/// Members of a JSON object in order. The values are JSON without white space.
struct Members(Vec<(String, Box<RawValue>)>);

impl Members {
    fn parse(example: &str) -> Self {
        serde_json::from_str(&without_white_space(example)).expect("an example is a JSON object")
    }

    fn text(&self) -> String {
        serde_json::to_string(self).expect("plain data can be serialized")
    }

    fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(found, _)| found == key).map(|(_, value)| &**value)
    }

    fn get_mut(&mut self, key: &str) -> Option<&mut Box<RawValue>> {
        self.0.iter_mut().find(|(found, _)| found == key).map(|(_, value)| value)
    }

    fn string(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.get(key)?.get()).ok()
    }

    /// Replaces the ids of the example, wherever they occur, and the data of its owner and request.
    fn set_ids(&mut self, fields: &TaskFields<'_>) {
        if self.get("id").is_none() && self.get("task_id").is_none() {
            self.0.insert(0, ("id".to_owned(), raw(&"")));
        }
        let id = self.string("id").or_else(|| self.string("task_id")).unwrap_or_default();
        let trace_id = self.string("trace_id").unwrap_or_else(|| {
            let response =
                self.get("response").and_then(|response| serde_json::from_str(response.get()).ok());
            response.and_then(|response: Self| response.string("trace_id")).unwrap_or_default()
        });
        for (key, value) in &mut self.0 {
            let text = match key.as_str() {
                "id" | "task_id" => raw(&fields.id),
                "trace_id" => raw(&fields.trace_id),
                "_id" => raw(&fields.record_id()),
                "type" => raw(&fields.kind),
                "user_id" => raw(&fields.account.user_id),
                "application_id" => raw(&fields.account.application_id),
                "credential_id" => raw(&fields.account.credential_id),
                "request" if fields.request.is_some() => raw(&fields.request),
                _ => {
                    let mut text = value.get().to_owned();
                    for (old, new) in [(&id, fields.id), (&trace_id, fields.trace_id)] {
                        if !old.is_empty() {
                            text = text.replace(old.as_str(), new);
                        }
                    }
                    RawValue::from_string(text).expect("an id in JSON is replaced by one")
                }
            };
            *value = text;
        }
    }

    /// Replaces the times in the form that they have in the example. `null` stays.
    fn set_times(&mut self, times: &Times) {
        let is_null = |value: Option<&RawValue>| value.is_some_and(|value| value.get() == "null");
        let has_null_times = is_null(self.get("finished_at"));
        if times.started_at.is_none() && !has_null_times {
            self.0.retain(|(key, _)| key != "started_at");
        }
        // The older name of `elapsed`. In a result it is the length of the work.
        let has_old_elapsed = self.get("finished_at").is_some() && self.get("elapsed").is_none();
        for (key, value) in &mut self.0 {
            let seconds = match key.as_str() {
                "created_at" => Some(times.created_at),
                "started_at" => times.started_at,
                "finished_at" => times.finished_at,
                "updated_at" => times.finished_at.or(times.started_at).or(Some(times.created_at)),
                "elapsed" => times.elapsed(),
                "duration" if has_old_elapsed => times.elapsed(),
                _ => continue,
            };
            *value = seconds.map_or_else(|| raw(&()), |seconds| in_form_of(value, seconds));
        }
    }

    /// Adds the end of a task if the example lacks it, as some of before March 2026 do.
    fn add_end(&mut self, times: &Times) {
        if self.get("finished_at").is_none() {
            self.0.push(("elapsed".to_owned(), raw(&times.elapsed().map(millis))));
            self.0.push(("finished_at".to_owned(), raw(&times.finished_at.map(millis))));
        }
    }
}

/// Returns a time in the form of the example: text, decimal, integer or `null`.
fn in_form_of(example: &RawValue, seconds: f64) -> Box<RawValue> {
    let example = example.get();
    if example == "null" {
        raw(&())
    } else if example.starts_with('"') {
        let since = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        raw(&humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string())
    } else if example.contains('.') {
        raw(&millis(seconds))
    } else {
        raw(&(seconds as u64))
    }
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("plain data can be serialized")
}

/// Returns JSON without the white space between its tokens.
fn without_white_space(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let is_kept = |c: &char| {
        let inside = in_string;
        if escaped {
            escaped = false;
        } else if *c == '"' {
            in_string = !in_string;
        } else {
            escaped = in_string && *c == '\\';
        }
        inside || !c.is_ascii_whitespace()
    };
    json.chars().filter(is_kept).collect()
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}
