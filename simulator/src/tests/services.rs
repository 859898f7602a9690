//! Tests of the records and lookups of each service.

use serde_json::{Value, json};

use super::{Setup, ids_of};
use crate::services::{Form, SERVICES};

/// Returns the parsed example body.
macro_rules! example {
    ($name:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!(
            "../../../tests/fixtures/services/",
            $name,
            ".json"
        )))
        .unwrap()
    };
}

fn keys(object: &Value) -> Vec<&String> {
    object.as_object().unwrap().keys().collect()
}

#[tokio::test]
async fn every_service_has_tasks_in_each_phase_with_the_same_bytes() {
    let setup = Setup::new().await;
    for service in &SERVICES {
        let name = service.name;
        let ended = setup.simulator.create_finished(name, "a");
        let pending = setup.simulator.create_pending(name, "a");
        let failed = setup.simulator.create_pending(name, "a");
        setup.simulator.fail(&failed);
        for id in [&ended, &pending, &failed] {
            let Some(record) = setup.simulator.task_record(id) else {
                assert_eq!((name, id), ("dreamina", &pending));
                continue;
            };
            assert_eq!(setup.simulator.task_record(id).unwrap(), record, "{name}");
            let json: Value = serde_json::from_slice(&record).unwrap();
            let key = if json.get("id").is_some() { "id" } else { "task_id" };
            assert_eq!(json[key], id.as_str(), "{name}");
            if service.form == Form::Record && id == &pending {
                assert!(json.get("finished_at").unwrap_or(&Value::Null).is_null(), "{name}: {json}");
            } else if service.form == Form::Record && (name, id) != ("hailuo", &failed) {
                assert!(json["finished_at"].is_f64(), "{name}: {json}");
            }
        }
    }
}

#[tokio::test]
async fn record_has_the_keys_of_the_example_and_ids_and_times_of_its_task() {
    let setup = Setup::new().await;
    for (service, example) in [
        ("kling", example!("kling/finished")),
        ("luma", example!("luma/finished")),
        ("midjourney", example!("midjourney/finished")),
        ("qwen-image", example!("qwen-image/finished.constructed")),
        ("webextrator", example!("webextrator/finished.constructed")),
    ] {
        let id = setup.simulator.create_finished(service, "a");
        let (_, task) = setup.tasks_of(service, "a", json!({"id": id})).await;
        assert_eq!(keys(&task), keys(&example), "{service}");
        assert_eq!(keys(&task["response"]), keys(&example["response"]), "{service}");
        assert_eq!(task["request"], example["request"]);
        if let Some(trace_id) = task["response"].get("trace_id") {
            assert_eq!(trace_id, &task["trace_id"]);
        }
        assert!(!task.to_string().contains(example["id"].as_str().unwrap()), "{service}");
    }
    let record_of =
        |id: &str| -> Value { serde_json::from_slice(&setup.simulator.task_record(id).unwrap()).unwrap() };
    let midjourney = record_of(&setup.simulator.create_finished("midjourney", "a"));
    assert_eq!(midjourney["duration"], 40.0, "the older name of `elapsed`");
    let happyhorse = record_of(&setup.simulator.create_finished("happyhorse", "a"));
    assert!(happyhorse["started_at"].as_str().unwrap().ends_with('Z'), "text stays text");
    assert_eq!(record_of(&setup.simulator.create_pending("happyhorse", "a"))["state"], "processing");
    let headshots = record_of(&setup.simulator.create_pending("headshots", "a"));
    assert_eq!(headshots["response"]["status"], "unknown");
    let qwen = record_of(&setup.simulator.create_pending("qwen-image", "a"));
    assert_eq!(qwen.get("finished_at"), Some(&Value::Null));
    let veo = record_of(&setup.simulator.create_finished("veo", "a"));
    assert_eq!(veo["elapsed"], 40.0, "the example lacks it");
    let text = setup.simulator.task_record(&setup.simulator.create_finished("flux", "a")).unwrap();
    assert!(text.starts_with(br#"{"_id":""#), "the order of the example stays");
}

#[tokio::test]
async fn unknown_ids_and_services_respond_as_documented() {
    let setup = Setup::new().await;
    for (service, status, code) in [
        ("suno", 200, None),
        ("dreamina", 200, None),
        ("maestro", 404, Some("not_found")),
        ("digital-human", 404, Some("no_task")),
        ("captcha", 404, Some("not_found")),
        ("face", 404, Some("no_api")),
    ] {
        let (found, body) = setup.tasks_of(service, "a", json!({"task_id": "x"})).await;
        assert_eq!((found, body.pointer("/error/code").and_then(Value::as_str)), (status, code), "{service}");
    }
    let pending = setup.simulator.create_pending("dreamina", "a");
    assert_eq!(setup.tasks_of("dreamina", "a", json!({"id": pending})).await.1, json!({}));
    let batch = || json!({"action": "retrieve_batch", "ids": [pending]});
    assert_eq!(ids_of(&setup.tasks_of("dreamina", "a", batch()).await.1), [""; 0]);
    setup.simulator.finish(&pending);
    assert_eq!(ids_of(&setup.tasks_of("dreamina", "a", batch()).await.1), [&pending]);
    assert_eq!(setup.tasks_of("dreamina", "a", json!({"action": "retrieve"})).await.0, 400);
}

#[tokio::test]
async fn batch_is_cut_at_its_limit_or_the_default_one() {
    let setup = Setup::new().await;
    let ids: Vec<_> = (0..4).map(|_| setup.simulator.create_finished("veo", "a")).collect();
    let batch = async |limits: Value| {
        let mut body = json!({"action": "retrieve_batch", "id": "", "ids": ids});
        body.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
        let batch = setup.tasks_of("veo", "a", body).await.1;
        ids_of(&batch).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(batch(json!({})).await, ids);
    assert_eq!(batch(json!({"offset": 1, "limit": 2})).await, ids[1..3]);
    setup.simulator.set_default_batch_limit(Some(3));
    assert_eq!(batch(json!({})).await, ids[..3]);
    assert_eq!(batch(json!({"limit": 12.0})).await, ids);
    assert_eq!(setup.simulator.calls()[0].ids(), ids);
}

#[tokio::test]
async fn minimax_tasks_have_an_envelope() {
    let setup = Setup::new().await;
    let id = setup.simulator.create_finished("minimax", "a");
    let (_, task) = setup.tasks_of("minimax", "a", json!({"id": id})).await;
    let example = example!("minimax/finished");
    assert_eq!((keys(&task), keys(&task["task"])), (keys(&example), keys(&example["task"])));
    assert_eq!((&task["task"]["id"], task["task"]["updated_at"].is_u64()), (&json!(id), true));
    let batch = json!({"action": "retrieve_batch", "ids": [id]});
    let expected = json!({"items": [task["task"]], "total": 1});
    assert_eq!(setup.tasks_of("minimax", "a", batch).await.1, expected);
    assert_eq!(setup.simulator.lookup_calls().len(), 2);
}

#[tokio::test]
async fn digital_human_tasks_are_flat_without_an_action() {
    let setup = Setup::new().await;
    let id = setup.simulator.create_finished("digital-human", "a");
    let (_, flat) = setup.tasks_of("digital-human", "a", json!({"task_id": id})).await;
    assert_eq!(keys(&flat), keys(&example!("digital-human/finished")));
    let retrieve = json!({"action": "retrieve", "task_id": id});
    let (_, detailed) = setup.tasks_of("digital-human", "a", retrieve).await;
    assert_eq!(detailed["response"], flat);
    assert!(detailed["finished_at"].is_f64());
    let batch = json!({"action": "retrieve_batch", "task_id": [id]});
    assert_eq!(setup.tasks_of("digital-human", "a", batch).await.1["items"], json!([flat]));
}

#[tokio::test]
async fn first_lookup_of_a_captcha_result_is_charged() {
    let setup = Setup::new().await;
    let id = setup.simulator.create_pending("captcha", "a");
    let lookup = |id: &str| setup.tasks_of("captcha", "a", json!({"task_id": id}));
    let (_, pending) = lookup(&id).await;
    assert_eq!(pending, json!({"success": true, "task_id": id, "status": "processing"}));
    assert_eq!(setup.simulator.charged_lookups(), 0);
    setup.simulator.finish(&id);
    for _ in 0..2 {
        assert_eq!(lookup(&id).await.1["status"], "ready");
        assert_eq!(setup.simulator.charged_lookups(), 1);
    }
    let failed = setup.simulator.create_pending("captcha", "a");
    setup.simulator.fail(&failed);
    for _ in 0..2 {
        let (status, body) = lookup(&failed).await;
        assert_eq!((status, &body["status"]), (504, &json!("failed")));
    }
    assert_eq!(setup.simulator.charged_lookups(), 1);
    assert_eq!(setup.tasks_of("captcha", "a", json!({"id": id})).await.0, 400);
}
