//! `GET /api/requests`: the last requests of the client port.

use refrain::config::{AccessMode, SharedClient};
use refrain::token::Token;
use serde_json::{Value, json};

use crate::support::{Reply, TestApp, without_pending_cache};

/// Returns the listed requests, the latest first.
async fn listed(app: &TestApp, query: &str) -> Vec<Value> {
    let reply = app.admin(&format!("/api/requests{query}")).await;
    assert_eq!(reply.status, 200, "{query}: {reply:?}");
    reply.json()["requests"].as_array().expect("a list").clone()
}

async fn start_task(app: &TestApp, token: &str) -> Reply {
    app.send(app.http.post(app.url("/producer/audios")).bearer_auth(token).body("{}")).await
}

#[tokio::test]
async fn lookups_and_bypassed_requests_are_listed_latest_first() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    let id = app.upstream.create_finished("producer", "t");
    assert_eq!(app.retrieve("t", &id).await.x_cache(), "MISS");
    let hit = app.retrieve("t", &id).await;
    start_task(&app, "t").await;
    app.send(app.http.get(app.url("/a/secret/path?q=1"))).await;
    let requests = listed(&app, "").await;
    let shown: Vec<Value> = requests
        .iter()
        .map(|one| {
            json!([
                one["method"],
                one["service"],
                one["path"],
                one["action"],
                one["outcome"],
                one["status"],
                one["kind"],
                one["ids"]
            ])
        })
        .collect();
    let ids = |hits: u8, fetched: u8| json!({"asked": 1, "hits": hits, "pending": 0, "fetched": fetched});
    assert_eq!(
        shown,
        [
            json!(["GET", "other", "/*/*/*", "other", "bypass", 404, "failed", null]),
            json!(["POST", "producer", "/producer/audios", "other", "bypass", 200, "upstream", null]),
            json!(["POST", "producer", "/producer/tasks", "retrieve", "hit", 200, "local", ids(1, 0)]),
            json!(["POST", "producer", "/producer/tasks", "retrieve", "miss", 200, "upstream", ids(0, 1)]),
        ]
    );
    assert_eq!(requests[2]["request_id"], hit.header("x-request-id"));
    let token = requests[2]["token"].as_str().expect("digits");
    assert!(token.len() == 8 && token.bytes().all(|digit| digit.is_ascii_hexdigit()), "{token}");
    assert_eq!((&requests[0]["token"], &requests[2]["client"]), (&Value::Null, &Value::Null));
    assert!(requests[2]["duration_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    let text = Value::from(requests).to_string();
    assert!(!text.contains(&id) && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn requests_are_filtered_by_kind_outcome_service_and_id() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    app.retrieve("t", &id).await;
    let suno = app.http.post(app.url("/suno/audios")).bearer_auth("t").body("{}");
    app.send(suno.header("x-request-id", "order-17")).await;
    let failed = app.http.request(http::Method::TRACE, app.url("/x")).header("x-request-id", "order-18");
    assert_eq!(app.send(failed).await.status, 405);
    for (query, outcomes) in [
        ("", &["refused", "bypass", "hit", "miss"][..]),
        ("?outcome=hit", &["hit"]),
        ("?outcome=aborted", &[]),
        ("?kind=failed", &["refused"]),
        ("?kind=local", &["hit"]),
        ("?kind=upstream&service=producer", &["miss"]),
        ("?service=suno", &["bypass"]),
        ("?service=other", &["refused"]),
        ("?request_id=order-", &["refused", "bypass"]),
        ("?request_id=order-17", &["bypass"]),
        ("?request_id=order-17&outcome=hit", &[]),
        ("?request_id=&limit=2", &["refused", "bypass"]),
    ] {
        let found = listed(&app, query).await;
        let found: Vec<&str> = found.iter().filter_map(|one| one["outcome"].as_str()).collect();
        assert_eq!(found, outcomes, "{query}");
    }
    let page = app.admin("/api/requests?limit=1").await.json();
    assert_eq!((&page["requests_omitted"], &page["kept_per_kind"]), (&json!(3), &json!(200)));
    let refused = &listed(&app, "?kind=failed").await[0];
    assert_eq!((&refused["method"], &refused["error"]), (&json!("other"), &json!("bad_request")));
}

#[tokio::test]
async fn many_hits_do_not_displace_a_failed_request() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    let failed = app.http.request(http::Method::TRACE, app.url("/x")).header("x-request-id", "failed");
    app.send(failed).await;
    let id = app.upstream.create_finished("producer", "t");
    for _ in 0..250 {
        app.retrieve("t", &id).await;
    }
    let requests = listed(&app, "?limit=600").await;
    let kinds = ["local", "upstream", "failed"]
        .map(|kind| requests.iter().filter(|request| request["kind"] == kind).count());
    assert_eq!(kinds, [200, 1, 1]);
    assert_eq!(listed(&app, "?request_id=failed").await.len(), 1);
}

#[tokio::test]
async fn requests_in_shared_mode_name_the_client() {
    let app = TestApp::spawn_with(|config| {
        let token = |text: &str| Token::parse(text).expect("a token");
        config.access.mode = AccessMode::Shared;
        config.upstream.token = Some(token("team"));
        config.access.clients = vec![SharedClient { name: "studio".into(), key: token("key-one") }];
    })
    .await;
    start_task(&app, "key-one").await;
    start_task(&app, "key-two").await;
    let requests = listed(&app, "").await;
    assert_eq!((&requests[0]["client"], &requests[0]["status"]), (&Value::Null, &json!(401)));
    assert_eq!(requests[1]["client"], "studio");
}

#[tokio::test]
async fn request_whose_client_left_has_no_status() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    let id = app.upstream.create_pending("producer", "t");
    let waiting = app
        .http
        .post(app.url("/producer/tasks"))
        .bearer_auth("t")
        .header("content-type", "application/json")
        .header("prefer", "wait=60")
        .body(json!({"action": "retrieve", "id": id}).to_string())
        .send();
    let left = tokio::time::timeout(std::time::Duration::from_millis(300), waiting).await;
    assert!(left.is_err(), "{left:?}");
    crate::support::eventually("the request is listed", async || {
        let requests = listed(&app, "?outcome=aborted").await;
        requests.len() == 1 && requests[0]["status"].is_null() && requests[0]["kind"] == "failed"
    })
    .await;
}
