//! `access.mode = "shared"`: one team, one view, one upstream token.

use http::StatusCode;
use refrain::config::{AccessMode, Config, SharedClient};
use refrain::token::Token;
use serde_json::json;

use crate::support::{RawPeer, Reply, TestApp, assert_error, error_code, request, without_pending_cache};

fn shared(config: &mut Config) {
    let token = |text: &str| Token::parse(text).expect("a token");
    without_pending_cache(config);
    config.access.mode = AccessMode::Shared;
    config.upstream.token = Some(token("team-canary"));
    config.access.clients = vec![
        SharedClient { name: "one".into(), key: token("key-one") },
        SharedClient { name: "two".into(), key: token("key-two") },
    ];
}

/// Asserts that no call to the upstream contains any part of a client's key.
fn assert_no_key_went_upstream(app: &TestApp) {
    for call in app.upstream.calls() {
        let seen = [&call.raw_head[..], &call.body[..]].concat();
        assert!(!String::from_utf8_lossy(&seen).contains("key-"), "{call:?}");
        assert_eq!(call.header("authorization"), Some("Bearer team-canary"));
    }
}

fn assert_no_team_token(reply: &Reply) {
    let shown = format!("{:?} {}", reply.headers, String::from_utf8_lossy(&reply.body));
    assert!(!shown.contains("team-canary"), "{shown}");
}

#[tokio::test]
async fn team_shares_one_view_and_its_token_stays_secret() {
    let app = TestApp::spawn_with(shared).await;
    let id = app.upstream.create_finished("producer", "team-canary");
    for (key, expected) in [("key-one", "MISS"), ("key-two", "HIT"), ("key-one", "HIT")] {
        let reply = app.retrieve(key, &id).await;
        assert_eq!((reply.status, reply.x_cache()), (StatusCode::OK, expected));
        assert_no_team_token(&reply);
    }
    for key in ["key-one", "key-two"] {
        let started = app
            .send(app.http.post(app.url("/producer/audios")).bearer_auth(key).body(r#"{"async":true}"#))
            .await;
        assert_eq!((started.status, started.header("cache-status")), (StatusCode::OK, "refrain; fwd=bypass"));
        assert_no_team_token(&started);
    }
    assert_eq!(app.upstream.paid_calls(), 2);
    let deleted = app.look_up("key-two", &json!({"action": "delete", "id": id}), &[]).await;
    assert_eq!(deleted.json()["deleted"], true);
    assert_eq!(app.retrieve("key-one", &id).await.body, "{}", "deleted for all");
    assert_no_key_went_upstream(&app);
}

#[tokio::test]
async fn client_names_appear_in_queues_pending_tasks_and_metrics() {
    let app = TestApp::spawn_with(|config| {
        shared(config);
        config.tasks.pending_max_age = std::time::Duration::from_secs(60);
    })
    .await;
    for (key, id) in [("key-one", "a"), ("key-two", "b"), ("key-two", "b")] {
        app.upstream.put_record("producer", "team-canary", id, json!({"id": id}).to_string());
        app.retrieve(key, id).await;
    }
    assert_eq!(app.admin("/api/queues").await.json()["queues"][0]["clients"], json!(["one", "two"]));
    let pending = app.admin("/api/pending").await.json();
    let names = |task: &serde_json::Value| (task["id"].clone(), task["client"].clone());
    let mut names: Vec<_> = pending["pending"].as_array().expect("a list").iter().map(names).collect();
    names.sort_by_key(|(id, _)| id.to_string());
    assert_eq!(names, [(json!("a"), json!("one")), (json!("b"), json!("two"))]);
    let metrics = String::from_utf8(app.admin("/metrics").await.body.to_vec()).expect("text");
    for (client, requests) in [("one", 1), ("two", 2), ("other", 0)] {
        let line = format!("refrain_client_requests_total{{client=\"{client}\"}} {requests}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

#[tokio::test]
async fn wrong_key_after_a_right_one_on_a_connection_is_refused() {
    let app = TestApp::spawn_with(shared).await;
    let id = app.upstream.create_finished("producer", "team-canary");
    app.retrieve("key-one", &id).await;
    let mut peer = RawPeer::connect(app.address).await;
    for (key, status) in
        [("key-one", 200), ("key-on", 401), ("key-two", 200), ("key-one ", 200), ("key-ones", 401)]
    {
        let body = json!({"action": "retrieve", "id": id}).to_string();
        peer.write(request("POST /producer/tasks", &[("authorization", &format!("Bearer {key}"))], body))
            .await;
        assert_eq!(peer.read_response().await.status, status, "{key}");
    }
}

#[tokio::test]
async fn unknown_key_is_refused_on_every_path() {
    let app = TestApp::spawn_with(shared).await;
    let id = app.upstream.create_finished("producer", "team-canary");
    app.retrieve("key-one", &id).await;
    app.upstream.clear_calls();
    let look_up = json!({"action": "retrieve", "id": id}).to_string();
    let lines = [
        "POST /producer/tasks",
        "POST /suno/tasks",
        "POST /producer/audios",
        "GET /",
        "HEAD /x",
        "DELETE /x",
        "OPTIONS /producer/tasks",
        "GET /metrics",
        "GET /healthz",
    ];
    let credentials: [&[(&str, &str)]; 10] = [
        &[("authorization", "Bearer unknown")],
        &[("authorization", "Bearer key-on")],
        &[("authorization", "Bearer key-one2")],
        &[("authorization", "Bearer KEY-ONE")],
        &[("authorization", "Bearer team-canary")],
        &[("authorization", "Basic key-one")],
        &[("x-api-key", "key-one")],
        &[("payment-signature", "key-one")],
        &[("cookie", "key=key-one")],
        &[],
    ];
    for line in lines {
        for headers in credentials {
            let mut peer = RawPeer::connect(app.address).await;
            peer.write(request(line, headers, &look_up)).await;
            let method = line.split(' ').next().expect("a method");
            let response = peer.read_response_to(method).await;
            assert_eq!(response.status, 401, "{line} {headers:?}: {response:?}");
            if method != "HEAD" {
                assert_eq!(error_code(&response.body), "invalid_token", "{line} {headers:?}");
            }
        }
    }
    let two = [("authorization", "Bearer unknown"), ("authorization", "Bearer key-one")];
    let response = app.raw(request("POST /producer/audios", &two, "{}")).await;
    assert_eq!(response.status, 401, "two keys count as an unknown one: {response:?}");
    assert_eq!(app.upstream.call_count(), 0);
}

#[tokio::test]
async fn request_with_two_keys_sends_no_key_upstream() {
    let app = TestApp::spawn_with(shared).await;
    let two = [("authorization", "Bearer key-one"), ("authorization", "Bearer key-two")];
    for line in ["POST /producer/audios", "POST /producer/tasks"] {
        app.raw(request(line, &two, r#"{"action":"retrieve","id":"x"}"#)).await;
    }
    assert_no_key_went_upstream(&app);
}

#[tokio::test]
async fn grants_of_a_team_survive_a_change_of_its_token() {
    let app = TestApp::spawn_with(shared).await;
    let id = app.upstream.create_finished("producer", "team-canary");
    app.retrieve("key-one", &id).await;
    let app = app
        .restart_with(|config| {
            shared(config);
            config.upstream.token = Some(Token::parse("another").expect("a token"));
            config.access.clients.remove(0);
        })
        .await;
    app.upstream.clear_calls();
    let reply = app.retrieve("key-two", &id).await;
    assert_eq!((reply.status, reply.x_cache()), (StatusCode::OK, "HIT"), "{reply:?}");
    assert_error(&app.retrieve("key-one", &id).await, 401, "invalid_token");

    // In token mode no token has the grants of the team.
    let app = app.restart_with(without_pending_cache).await;
    for token in ["team-canary", "another", "key-two"] {
        let before = app.calls();
        app.retrieve(token, &id).await;
        assert_eq!(app.calls(), before + 1, "{token} is not served from the store");
    }
}

#[tokio::test]
async fn preflight_is_answered_without_a_key() {
    let app = TestApp::spawn_with(|config| {
        shared(config);
        config.server.cors_origins = vec!["https://app.example".into()];
    })
    .await;
    let headers = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let response = app.raw(request("OPTIONS /producer/tasks", &headers, "")).await;
    assert!(matches!(response.status, 200 | 204), "{response:?}");
    assert_eq!(response.header("access-control-allow-origin"), Some("https://app.example"));
    let refused = app.raw(request("POST /producer/tasks", &headers[..1], "{}")).await;
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.header("access-control-allow-origin"),
        Some("https://app.example"),
        "the page can read the error"
    );
    assert_eq!(app.upstream.call_count(), 0);
}
