//! The services of the catalogue: which of them are cached, with how many upstream calls, and which
//! are passed through unchanged.

use refrain::task::{CATALOGUE, CatalogueEntry, ServiceClass};
use refrain_simulator::Rule;
use serde_json::{Value, json};

use crate::support::{Program, Reply, TestApp, client, eventually, request, simulator};

const BYPASS: &str = "refrain; fwd=bypass";

async fn post(app: &TestApp, service: &str, body: &Value) -> Reply {
    let request = app.http.post(app.url(&format!("/{service}/tasks"))).bearer_auth("t");
    app.send(request.header("content-type", "application/json").body(body.to_string())).await
}

/// Response and number of upstream calls of one lookup.
async fn counted(app: &TestApp, service: &str, body: &Value) -> (Reply, usize) {
    let before = app.upstream.call_count();
    let reply = post(app, service, body).await;
    let calls = app.upstream.call_count() - before;
    eprintln!("{service:15} {:8} {calls} calls  {body}", reply.x_cache());
    (reply, calls)
}

/// `cargo test --test it services -- --nocapture` prints the table.
#[tokio::test]
async fn interpreted_services_are_cached_with_the_fewest_calls() {
    let app = TestApp::spawn().await;
    for CatalogueEntry { name, rules } in
        CATALOGUE.iter().filter(|entry| entry.rules.class != ServiceClass::Pass)
    {
        let finished = app.upstream.create_finished(name, "t");
        let record = app.upstream.task_record(&finished).expect("a record");
        let retrieve = json!({"action": "retrieve", "id": finished});
        for (body, x_cache, expected) in
            [(&retrieve, "MISS", 1), (&retrieve, "HIT", 0), (&json!({"id": finished}), "HIT", 0)]
        {
            let (reply, calls) = counted(&app, name, body).await;
            assert_eq!((reply.x_cache(), calls), (x_cache, expected), "{name} {body}");
            assert_eq!(reply.body, record, "{name}");
        }

        let mut ids: Vec<String> = (0..3).map(|_| app.upstream.create_finished(name, "t")).collect();
        ids.push(finished);
        let batch = json!({"action": "retrieve_batch", "ids": ids});
        let fetched = if rules.class == ServiceClass::Batch { 1 } else { 3 };
        for (x_cache, expected) in [("PARTIAL", fetched), ("HIT", 0)] {
            let (reply, calls) = counted(&app, name, &batch).await;
            assert_eq!((reply.x_cache(), calls), (x_cache, expected), "{name}");
            let items: Vec<Value> = reply.json()["items"].as_array().expect("a list").clone();
            let found: Vec<&str> = items.iter().map(|item| item["id"].as_str().expect("an id")).collect();
            assert_eq!(found, ids, "{name}");
        }

        let pending = app.upstream.create_pending(name, "t");
        let (reply, calls) = counted(&app, name, &json!({"action": "retrieve", "id": pending})).await;
        assert_eq!((reply.x_cache(), calls), ("MISS", 1), "{name}");
        assert!(!reply.header("cache-status").contains("stored"), "{name}: {reply:?}");
        app.upstream.finish(&pending);

        let unknown = json!({"action": "retrieve", "id": "00000000-0000-4000-8000-000000000000"});
        let (reply, calls) = counted(&app, name, &unknown).await;
        assert_eq!((reply.x_cache(), calls), ("MISS", 1), "{name}");
        let is_error = reply.status == 404;
        assert!(is_error || reply.json() == json!({}), "{name}: {reply:?}");
    }
    assert_eq!(app.upstream.charged_lookups(), 0);
}

#[tokio::test]
async fn other_services_are_passed_through_once_and_never_stored() {
    let app = TestApp::spawn().await;
    for CatalogueEntry { name, .. } in
        CATALOGUE.iter().filter(|entry| entry.rules.class == ServiceClass::Pass)
    {
        let id = app.upstream.create_finished(name, "t");
        for body in [
            json!({"action": "retrieve", "id": id}),
            json!({"action": "retrieve_batch", "ids": [id]}),
            json!({"id": id}),
            json!({"task_id": id}),
            json!({"action": "delete", "id": "gone"}),
        ] {
            // White space that no canonical body has.
            let body = format!(" {body}\n");
            let line = format!("POST /{name}/tasks");
            let headers = [("authorization", "Bearer t"), ("content-type", "application/json")];
            for _ in 0..2 {
                let before = app.upstream.call_count();
                let reply = app.raw(request(&line, &headers, &body)).await;
                assert_eq!(app.upstream.call_count(), before + 1, "{name} {body}");
                assert_eq!(app.upstream.calls().pop().expect("a call").body, body, "{name}");
                assert_eq!(reply.header("cache-status"), Some(BYPASS), "{name} {body}");
            }
        }
    }
    let stored: Value = app.admin("/api/tasks").await.json();
    assert_eq!(stored["tasks"], json!([]));
    let stats = app.admin("/api/stats").await.json();
    let passed = stats["services"]["passed_through"].as_array().expect("a list").clone();
    let captcha = passed.iter().find(|service| service["service"] == "captcha").expect("captcha");
    assert_eq!(captcha["requests"], 10);
}

#[tokio::test]
async fn default_limit_of_the_upstream_is_learnt() {
    let app = TestApp::spawn().await;
    app.upstream.set_default_batch_limit(Some(12));
    let ids: Vec<String> = (0..50).map(|_| app.upstream.create_finished("suno", "t")).collect();
    let (reply, calls) = counted(&app, "suno", &json!({"action": "retrieve_batch", "ids": ids})).await;
    assert_eq!(reply.json()["count"], 50);
    assert_eq!(calls, 5, "12 of 50, 12 of 38, then the other 26 in batches of 12");
    let stats = app.admin("/api/stats").await.json();
    let interpreted = stats["services"]["interpreted"].as_array().expect("a list").clone();
    let suno = interpreted.iter().find(|service| service["service"] == "suno").expect("suno");
    assert_eq!((&suno["max_batch"], &suno["has_learnt_limit"]), (&json!(12), &json!(true)));
}

#[tokio::test]
async fn first_poll_of_an_uninterpreted_service_is_logged_once() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let http = client(program.address).http;
    for service in ["captcha", "captcha", "newservice", "newservice"] {
        let url = format!("http://{}/{service}/tasks", program.address);
        http.post(url).bearer_auth("t").body(r#"{"task_id":"a"}"#).send().await.expect("a response");
    }
    let warnings = |program: &Program, service: &str| {
        let log = program.log();
        let lines = log.lines().filter(|line| line.contains("WARN") && line.contains(service));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    eventually("the warnings", async || warnings(&program, "newservice").len() == 1).await;
    assert_eq!(warnings(&program, "captcha").len(), 1, "{}", program.log());
    assert!(warnings(&program, "newservice")[0].contains("tasks.custom_services"), "{}", program.log());
    assert!(program.log().contains("suno"), "the start log lists the services: {}", program.log());
}

#[tokio::test]
async fn single_record_of_a_cut_batch_is_not_unknown() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::lookups().times(1).more_ids_than(1).items(|mut items| {
        items.truncate(12);
        items
    }));
    let ids: Vec<String> = (0..13).map(|_| app.upstream.create_finished("flux", "t")).collect();
    let (reply, calls) = counted(&app, "flux", &json!({"action": "retrieve_batch", "ids": ids})).await;
    assert_eq!((reply.json()["count"].as_u64(), calls), (Some(13), 2));
}
