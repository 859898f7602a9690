//! Finality of records: the rule case by case, and the example bodies of all services.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::*;
use crate::task::{ServiceClass, find_in_catalogue};

/// Shortly after the `finished_at` of most records here, which is 1.
const NOW: i64 = 10;

const USUAL: ServiceRules = ServiceRules::new(ServiceClass::Batch, None);
const FOREIGN: ServiceRules = ServiceRules { has_foreign_content: true, ..USUAL };

fn state_at(json: &str, rules: &ServiceRules, now: i64) -> Option<TaskState> {
    let inspection = inspect(json.as_bytes(), rules, now)?;
    Some(inspection.state_of(&TaskId::parse("t1").unwrap()))
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
        (r#"{"id":"t1","finished_at":1.589}"#, Some(Final)),
        (r#"{"id":"t1","finished_at":1}"#, Some(Final)),
        (r#"{"id":"t1","finished_at":0.1e1,"response":null}"#, Some(Final)),
        (r#" {"finished_at":1,"response":{"data":[{"state":"succeeded"}]},"id":"t1"} "#, Some(Final)),
        (r#"{"id":"t1","finished_at":1,"response":{"state":"SUCCEEDED","status":"Complete"}}"#, Some(Final)),
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
        (
            r#"{"id":"t1","finished_at":1,"request":{"state":"pending"},"x":[{"status":"queued"}],"response":{}}"#,
            Some(Final),
        ),
        (
            r#"{"id":"t1","finished_at":1,"status":"succeeded","State":"DONE","Task_Status":"dead"}"#,
            Some(Final),
        ),
        (r#"{"id":"t1","finished_at":1,"status":200,"state":null,"task_status":-1.5}"#, Some(Final)),
        (r#"{"id":"t1","finished_at":1,"response":7}"#, Some(Final)),
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
        (r#"{"id":"t1","finished_at":1,"response":{"Task_Status":"Running"}}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"status":"producing"}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"State":"processing","response":{"state":"failed"}}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"task_st\u0061tus":"queued"}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"status":true}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"status":{"code":0}}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"status":[]}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"response":{"status":false}}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"response":{"status":{"state":"succeeded"}}}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"response":{"status":["succeeded"]}}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"response":"done"}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"response":""}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":0}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":-0.0}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":-1}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1e-400}"#, Some(Pending)),
        // Repeated keys.
        (r#"{"id":"t1","finished_at":null,"finished_at":1}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"finished_at":1}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"response":{"state":"pending"},"response":{}}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"response":{"state":"pending","state":"succeeded"}}"#, Some(Pending)),
        (r#"{"id":"t2","id":"t1","finished_at":1}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"status":"succeeded","status":"succeeded"}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"state":"done","State":"done"}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"task_status":null,"task_status":null}"#, Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"type":"audios","type":"videos"}"#, Some(Final)),
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
        (r#"{"id":"t1","finished_at":1,"response":{"lyric":"\"state\":\"pending\"","a":"\\"}}"#, Some(Final)),
        (r#"{"id":"t1","finished_at":1,"response":{"status" : "done" , "title" : ["state"]}}"#, Some(Final)),
        (r#"{"id":"t1","finished_at":1,"response":{"status" : [ ] , "title" : "x"}}"#, Some(Pending)),
        ("{\"id\":\"t1\",\"finished_at\":1,\"response\":{\"status\"\n:\t\"running\"}}", Some(Pending)),
        (r#"{"id":"t1","finished_at":1,"response":{"status":[["x"]]}}"#, Some(Pending)),
    ];
    for (json, expected) in table {
        assert_eq!(state_at(json, &USUAL, NOW), *expected, "{}", &json[..json.len().min(200)]);
    }
}

#[test]
fn terminal_words_are_final_in_any_letter_case() {
    for word in SUCCESS_WORDS.into_iter().chain(FAILURE_WORDS) {
        for word in [word.to_owned(), word.to_uppercase()] {
            let json = format!(r#"{{"id":"t1","finished_at":1,"response":{{"state":"{word}"}}}}"#);
            assert_eq!(state_at(&json, &USUAL, NOW), Some(TaskState::Final), "{word}");
        }
    }
}

#[test]
fn documented_record_is_final() {
    let json = include_bytes!("../../../tests/fixtures/retrieve.json");
    let inspection = inspect(json, &USUAL, 1_767_119_786).unwrap();
    let id = TaskId::parse("1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad").unwrap();
    assert_eq!(inspection.state_of(&id), TaskState::Final);
    assert_eq!(inspection.created_at, Some(1_767_119_745.524));
}

#[test]
fn invalid_utf8_is_refused() {
    assert_eq!(inspect(b"{\"id\":\"t1\",\"x\":\"\xff\",\"finished_at\":1}", &USUAL, NOW), None);
}

#[test]
fn doubt_about_a_status_ends_after_an_hour() {
    use TaskState::{Final, Mismatch, Pending, Unknown};
    for (json, at_an_hour, later) in [
        (r#"{"id":"t1","finished_at":1000,"response":{"state":"producing"}}"#, Pending, Final),
        (r#"{"id":"t1","finished_at":1000,"status":"queued"}"#, Pending, Final),
        (r#"{"id":"t1","finished_at":1000,"response":{"status":["running"]}}"#, Pending, Final),
        (r#"{"id":"t1","finished_at":1000,"task_status":{}}"#, Pending, Final),
        (r#"{"id":"t1","finished_at":1000,"response":"text"}"#, Pending, Final),
        (r#"{"id":"t1","finished_at":1000,"response":{"state":"done"}}"#, Final, Final),
        (r#"{"id":"t1","finished_at":1000,"finished_at":1000}"#, Pending, Pending),
        (r#"{"id":"t1","finished_at":1000,"state":"done","state":"done"}"#, Pending, Pending),
        (r#"{"id":"t1","finished_at":1000,"response":{},"response":{}}"#, Pending, Pending),
        (r#"{"id":"t1","finished_at":"1000"}"#, Pending, Pending),
        (r#"{"id":"t1","finished_at":null,"status":"done"}"#, Pending, Pending),
        (r#"{"id":"t1","finished_at":0}"#, Pending, Pending),
        (r#"{"id":"t1","status":"done","response":{"success":true}}"#, Pending, Pending),
        (r#"{"id":"t2","finished_at":1000,"status":"queued"}"#, Mismatch, Mismatch),
        ("{}", Unknown, Unknown),
    ] {
        let states = [4_600, 4_601, i64::MAX].map(|now| state_at(json, &USUAL, now));
        assert_eq!(states, [Some(at_an_hour), Some(later), Some(later)], "{json}");
    }
}

#[test]
fn finished_at_may_be_a_minute_in_the_future() {
    for (finished_at, expected) in [
        ("1060", TaskState::Final),
        ("1060.001", TaskState::Pending),
        ("1e300", TaskState::Pending),
        // Milliseconds.
        ("1767119785589", TaskState::Pending),
    ] {
        let json = format!(r#"{{"id":"t1","finished_at":{finished_at}}}"#);
        assert_eq!(state_at(&json, &USUAL, 1000), Some(expected), "{json}");
    }
}

#[test]
fn status_in_foreign_content_is_no_doubt() {
    for (json, expected) in [
        (r#"{"id":"t1","finished_at":1,"response":{"status":"queued"}}"#, TaskState::Final),
        (r#"{"id":"t1","finished_at":1,"response":{"data":[{"state":{}}]}}"#, TaskState::Final),
        (r#"{"id":"t1","finished_at":1,"response":"pending"}"#, TaskState::Final),
        (r#"{"id":"t1","finished_at":1,"status":"queued","state":[]}"#, TaskState::Final),
        (r#"{"id":"t1","finished_at":1,"status":"queued","status":"queued"}"#, TaskState::Pending),
        (r#"{"id":"t1","finished_at":1,"response":{},"response":{}}"#, TaskState::Pending),
        (r#"{"id":"t1","response":{"status":"done"}}"#, TaskState::Pending),
        (r#"{"id":"t1","finished_at":100}"#, TaskState::Pending),
    ] {
        assert_eq!(state_at(json, &FOREIGN, NOW), Some(expected), "{json}");
    }
}

/// Example bodies and the state of each record in them, for its own id if it has one.
const EXAMPLES: &[(&str, &[TaskState])] = &{
    use TaskState::{Final, Mismatch, Pending, Unknown};
    [
        ("captcha/failed.json", &[Mismatch]),
        ("captcha/finished-solution.json", &[Mismatch]),
        ("captcha/finished.json", &[Mismatch]),
        ("captcha/pending.json", &[Mismatch]),
        ("captcha/unknown.json", &[Mismatch]),
        ("digital-human/failed.json", &[Mismatch]),
        ("digital-human/finished.json", &[Mismatch]),
        ("digital-human/pending.json", &[Mismatch]),
        ("digital-human/unknown.json", &[Mismatch]),
        ("dreamina/bad-request.json", &[Mismatch]),
        ("dreamina/batch.constructed.json", &[Final]),
        ("dreamina/finished.json", &[Final]),
        ("dreamina/unknown.json", &[Unknown]),
        ("fish/batch.json", &[Pending, Pending]),
        ("fish/finished.json", &[Pending]),
        ("flux/batch.json", &[Final, Final]),
        ("flux/finished.json", &[Final]),
        ("flux/pending.constructed.json", &[Pending]),
        ("gemini/finished.json", &[Pending]),
        ("grok/finished.json", &[Pending]),
        ("hailuo/batch.json", &[Pending, Pending]),
        ("hailuo/failed.json", &[Mismatch]),
        ("hailuo/finished-as-cli-expects.json", &[Mismatch]),
        ("hailuo/finished.json", &[Pending]),
        ("happyhorse/batch.constructed.json", &[Pending]),
        ("happyhorse/failed.json", &[Pending]),
        ("happyhorse/finished-timed.constructed.json", &[Final]),
        ("happyhorse/finished.json", &[Pending]),
        ("happyhorse/pending.json", &[Pending]),
        ("headshots/batch.json", &[Pending, Pending]),
        ("headshots/finished.json", &[Pending]),
        ("headshots/pending.json", &[Pending]),
        ("kling/batch.json", &[Final, Final]),
        ("kling/finished.json", &[Final]),
        ("kling/pending.constructed.json", &[Pending]),
        ("luma/batch.json", &[Final, Final]),
        ("luma/finished.json", &[Final]),
        ("maestro/batch.json", &[Final]),
        ("maestro/failed.json", &[Pending]),
        ("maestro/finished.json", &[Final]),
        ("maestro/pending.constructed.json", &[Pending]),
        ("maestro/unknown.constructed.json", &[Mismatch]),
        ("midjourney/batch.json", &[Final, Final]),
        ("midjourney/finished.json", &[Final]),
        ("midjourney/pending.constructed.json", &[Pending]),
        ("minimax/batch.json", &[Pending]),
        ("minimax/deleted.json", &[Pending]),
        ("minimax/failed.json", &[Mismatch]),
        ("minimax/finished.json", &[Mismatch]),
        ("minimax/pending.json", &[Mismatch]),
        ("nano-banana/batch.json", &[Final]),
        ("nano-banana/failed.constructed.json", &[Final]),
        ("nano-banana/finished.json", &[Final]),
        ("nano-banana/pending.constructed.json", &[Pending]),
        ("openai/batch.json", &[Final]),
        ("openai/finished.json", &[Final]),
        ("openai/pending.constructed.json", &[Pending]),
        ("openai/unknown.json", &[Unknown]),
        ("producer/batch-empty.constructed.json", &[]),
        ("producer/batch-unknown.constructed.json", &[Final]),
        ("producer/batch.json", &[Final, Final]),
        ("producer/failed.constructed.json", &[Final]),
        ("producer/finished.json", &[Final]),
        ("producer/pending-bare.constructed.json", &[Pending]),
        ("producer/pending.constructed.json", &[Pending]),
        ("producer/unknown.constructed.json", &[Unknown]),
        ("qrart/batch.json", &[Pending, Pending]),
        ("qrart/finished.json", &[Pending]),
        ("qwen-image/batch.json", &[]),
        ("qwen-image/finished.constructed.json", &[Final]),
        ("qwen-image/pending.constructed.json", &[Pending]),
        ("qwen-image/unknown.json", &[Unknown]),
        ("seedance/batch.json", &[Final, Final]),
        ("seedance/finished.json", &[Final]),
        ("seedance/pending.constructed.json", &[Pending]),
        ("seedream/batch.json", &[Final, Final]),
        ("seedream/finished-record.constructed.json", &[Final]),
        ("seedream/finished.json", &[Mismatch]),
        ("sora/batch.json", &[Pending, Pending]),
        ("sora/finished.json", &[Pending]),
        ("suno/batch.json", &[Final, Final]),
        ("suno/finished.json", &[Final]),
        ("suno/pending.constructed.json", &[Pending]),
        ("veo/batch.json", &[Pending, Pending]),
        ("veo/finished.json", &[Pending]),
        ("wan/batch.json", &[Final, Final]),
        ("wan/deleted.constructed.json", &[Pending]),
        ("wan/finished.json", &[Final]),
        ("wan/pending.constructed.json", &[Pending]),
        ("webextrator/bad-request.json", &[Mismatch]),
        ("webextrator/finished-before-2026-08.json", &[Pending]),
        ("webextrator/finished.constructed.json", &[Final]),
    ]
};

#[test]
fn example_bodies_have_the_expected_states() {
    for (name, expected) in EXAMPLES {
        let json = std::fs::read_to_string(examples().join(name)).unwrap();
        let service = name.split_once('/').unwrap().0;
        let rules = find_in_catalogue(service).unwrap().rules;
        let mut states = Vec::new();
        for record in records(&json) {
            let value: serde_json::Value = serde_json::from_str(record).unwrap();
            let id = TaskId::parse(value["id"].as_str().unwrap_or("requested")).unwrap();
            // None of the finished ones has an unknown word, so an hour makes no difference.
            let finished_at = value["finished_at"].as_f64().map_or(2_000_000_000, |at| at as i64);
            let [soon, later] = [1, 3_602]
                .map(|age| inspect(record.as_bytes(), &rules, finished_at + age).unwrap().state_of(&id));
            assert_eq!(soon, later, "{name}");
            states.push(soon);
        }
        assert_eq!(states, *expected, "{name}");
    }
}

#[test]
fn every_example_body_is_in_the_table() {
    let mut files = BTreeSet::new();
    for service in std::fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap().path()) {
        if service.is_dir() {
            let bodies = std::fs::read_dir(&service).unwrap().map(|entry| entry.unwrap().path());
            files.extend(bodies.map(|body| body.strip_prefix(examples()).unwrap().display().to_string()));
        }
    }
    let listed: BTreeSet<String> = EXAMPLES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, listed);
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/services")
}

/// Returns the records of a batch, or the body itself.
fn records(json: &str) -> Vec<&str> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        items: Vec<&'a RawValue>,
    }
    match serde_json::from_str::<Envelope<'_>>(json) {
        Ok(envelope) => envelope.items.into_iter().map(RawValue::get).collect(),
        Err(_) => vec![json],
    }
}

#[test]
fn type_and_duration_are_those_of_the_record() {
    let inspect = |json: &str| inspect(json.as_bytes(), &USUAL, NOW).unwrap();
    let record = inspect(r#"{"id":"t1","type":"\u0061udios","created_at":1.5,"finished_at":9}"#);
    assert_eq!((record.kind.as_deref(), record.duration()), (Some("audios"), Some(7.5)));
    for (length, is_kept) in [(64, true), (65, false)] {
        let record = inspect(&format!(r#"{{"id":"t1","type":"{}"}}"#, "x".repeat(length)));
        assert_eq!(record.kind.is_some(), is_kept, "{length}");
    }
    for json in [
        r#"{"created_at":9,"finished_at":8}"#,
        r#"{"created_at":1,"finished_at":1e999}"#,
        r#"{"created_at":"1","finished_at":9}"#,
        r#"{"finished_at":9,"type":["audios"]}"#,
    ] {
        let record = inspect(json);
        assert_eq!((record.duration(), record.kind), (None, None), "{json}");
    }
}
