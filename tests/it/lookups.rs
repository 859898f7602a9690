//! Lookups end to end: which ids come from the store, which go upstream, and what the response
//! reports about it.

use http::StatusCode;
use refrain::config::Services;
use refrain::task::Service;
use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{DOCUMENTED, DOCUMENTED_ID, TestApp, assert_error, envelope, final_record, request};

#[tokio::test]
async fn documented_record_is_identical_on_every_path() {
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);

    let miss = app.retrieve("t", DOCUMENTED_ID).await;
    assert_eq!((miss.x_cache(), &miss.body[..]), ("MISS", DOCUMENTED));
    assert_eq!(miss.header("cache-status"), "refrain; fwd=uri-miss; stored");
    let hit = app.retrieve("t", DOCUMENTED_ID).await;
    assert_eq!((hit.x_cache(), &hit.body[..]), ("HIT", DOCUMENTED));
    assert_eq!(hit.header("cache-status"), "refrain; hit");

    let other = app.upstream.create_finished("producer", "t");
    let batch = app.batch("t", &[DOCUMENTED_ID, &other, "unknown", DOCUMENTED_ID]).await;
    assert_eq!(batch.x_cache(), "PARTIAL");
    assert_eq!(batch.json()["count"], 3);
    let text = String::from_utf8_lossy(DOCUMENTED);
    assert_eq!(String::from_utf8_lossy(&batch.body).matches(text.trim()).count(), 2);

    app.upstream.stop().await;
    let app = app.restart().await;
    let after = app.retrieve("t", DOCUMENTED_ID).await;
    assert_eq!((after.x_cache(), &after.body[..]), ("HIT", DOCUMENTED));
}

#[tokio::test]
async fn batch_fetches_only_missing_ids_and_keeps_request_order() {
    let app = TestApp::spawn().await;
    for id in ["a", "b", "c"] {
        app.upstream.put_record("producer", "t", id, final_record(id, "x"));
    }
    for id in ["a", "c"] {
        assert_eq!(app.retrieve("t", id).await.x_cache(), "MISS");
    }
    app.upstream.clear_calls();

    let reply = app.batch("t", &["c", "unknown", "b", "a", "c", "b", "unknown"]).await;
    let texts = ["c", "b", "a", "c", "b"].map(|id| final_record(id, "x"));
    assert_eq!(reply.body, envelope(&texts));
    assert_eq!(reply.x_cache(), "PARTIAL");
    assert!(reply.header("cache-status").starts_with("refrain; fwd=partial"), "{reply:?}");
    assert!(reply.header("cache-status").contains("detail=\"hits="), "{reply:?}");

    let calls = app.upstream.calls();
    assert_eq!(calls.len(), 1, "one call for all missing ids");
    let mut requested = calls[0].ids();
    requested.sort();
    assert_eq!(requested, ["b", "unknown"]);
}

#[tokio::test]
async fn batch_of_stored_ids_is_a_hit_without_an_upstream_call() {
    let app = TestApp::spawn().await;
    for id in ["a", "b"] {
        app.upstream.put_record("producer", "t", id, final_record(id, "x"));
    }
    assert_eq!(app.batch("t", &["a", "b"]).await.x_cache(), "MISS");
    let reply = app.batch("t", &["b", "a", "b"]).await;
    assert_eq!(reply.x_cache(), "HIT");
    assert!(reply.header("cache-status").starts_with("refrain; hit"), "{reply:?}");
    assert_eq!(reply.body, envelope(&["b", "a", "b"].map(|id| final_record(id, "x"))));
    assert_eq!(app.calls(), 1);
}

#[tokio::test]
async fn batch_of_unknown_ids_returns_no_items() {
    let app = TestApp::spawn().await;
    let reply = app.batch("t", &["missing", "absent", "missing"]).await;
    assert_eq!((reply.status, reply.x_cache()), (StatusCode::OK, "MISS"));
    assert_eq!(reply.body, r#"{"items":[],"count":0}"#);
}

#[tokio::test]
async fn batch_over_max_ids_is_refused_without_an_upstream_call() {
    let app = TestApp::spawn_with(|config| config.tasks.max_ids = 3).await;
    let ids: Vec<String> = (0..3).map(|_| app.upstream.create_finished("producer", "t")).collect();
    assert_eq!(app.batch("t", &ids).await.json()["count"], 3);
    app.upstream.clear_calls();
    for ids in [["a", "b", "c", "d"], ["a", "a", "a", "a"]] {
        let reply = app.batch("t", &ids).await;
        assert_error(&reply, 400, "bad_request");
        let message = reply.json()["error"]["message"].to_string();
        assert!(message.contains('3'), "the message names the limit: {message}");
    }
    assert_eq!(app.upstream.call_count(), 0);
}

#[tokio::test]
async fn batch_response_over_max_response_bytes_is_refused() {
    let app = TestApp::spawn_with(|config| config.upstream.max_response_bytes = 64 << 10).await;
    app.upstream.put_record("producer", "t", "big", final_record("big", &"x".repeat(30 << 10)));
    assert_eq!(app.batch("t", &["big", "big"]).await.json()["count"], 2);
    let reply = app.batch("t", &["big", "big", "big"]).await;
    assert_error(&reply, 400, "bad_request");
    app.assert_stored("t", "big").await;
}

#[tokio::test]
async fn lookup_accepts_any_scheme_case_and_no_content_type() {
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", "abc", final_record("abc", "x"));
    let body = r#"{"action":"retrieve","id":"abc"}"#;
    assert_eq!(app.retrieve("t", "abc").await.x_cache(), "MISS");
    for headers in [
        &[("authorization", "bearer t"), ("content-type", "application/json")][..],
        &[("authorization", "BEARER t")],
        &[
            ("Authorization", "BeArEr t"),
            ("content-encoding", "identity"),
            ("content-type", "application/json"),
        ],
    ] {
        let reply = app.raw(request("POST /producer/tasks", headers, body)).await;
        assert_eq!(reply.header("x-cache"), Some("HIT"), "{headers:?}");
    }
    assert_eq!(app.upstream.call_count(), 1);
}

#[tokio::test]
async fn only_configured_services_are_stored_each_with_its_own_ids() {
    let named = Services::Named(vec![Service::parse("producer").expect("a name")]);
    let app = TestApp::spawn_with(|config| config.tasks.services = named).await;
    app.upstream.put_record("suno", "t", "abc", final_record("abc", "suno"));
    let body = json!({"action": "retrieve", "id": "abc"}).to_string();
    let send = |app: &TestApp, service: &str| {
        app.http.post(app.url(&format!("/{service}/tasks"))).bearer_auth("t").body(body.clone())
    };
    for _ in 0..2 {
        let reply = app.send(send(&app, "suno")).await;
        assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass");
    }
    assert_eq!(app.upstream.call_count(), 2);

    let app = app.restart().await;
    app.upstream.put_record("producer", "t", "abc", final_record("abc", "producer"));
    for expected in ["MISS", "HIT"] {
        for service in ["suno", "producer"] {
            let reply = app.send(send(&app, service)).await;
            assert_eq!(
                (reply.x_cache(), &reply.body[..]),
                (expected, final_record("abc", service).as_bytes())
            );
        }
    }
}

#[tokio::test]
async fn lookup_response_names_its_source_and_request_id() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let body = json!({"action": "retrieve", "id": id});
    for expected in ["refrain; fwd=uri-miss; stored", "refrain; hit"] {
        let reply = app.look_up("t", &body, &[("x-request-id", "given-1")]).await;
        assert_eq!(reply.header("cache-status"), expected);
        assert_eq!(reply.header("x-request-id"), "given-1");
        assert_eq!(reply.header("content-type"), "application/json");
        assert!(reply.header("age").parse::<u64>().expect("age in seconds") < 30);
        for name in ["cache-status", "x-cache", "age", "x-request-id", "content-type"] {
            assert_eq!(reply.headers.get_all(name).iter().count(), 1, "{name}");
        }
    }
    let [one, two] = [app.retrieve("t", &id).await, app.retrieve("t", &id).await];
    assert!(!one.header("x-request-id").is_empty());
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"), "a new one each time");

    app.upstream.add_rule(Rule::lookups().error(403, "used_up"));
    let error =
        app.look_up("t", &json!({"action": "retrieve", "id": "other"}), &[("x-request-id", "g2")]).await;
    assert_eq!((error.status.as_u16(), error.header("x-request-id")), (403, "g2"));
    assert!(error.header("cache-status").starts_with("refrain; fwd="), "{error:?}");
    assert_eq!(error.x_cache(), "MISS");
}

#[tokio::test]
async fn batch_response_counts_hits_and_misses() {
    let app = TestApp::spawn().await;
    let ids: Vec<String> = (0..5).map(|_| app.upstream.create_finished("producer", "t")).collect();
    app.batch("t", &ids[..3]).await;
    let reply = app.batch("t", &ids).await;
    assert!(reply.header("cache-status").contains(r#"detail="hits=3 misses=2""#), "{reply:?}");
    assert!(reply.header("cache-status").contains("fwd=partial"), "{reply:?}");
}

#[tokio::test]
async fn content_type_is_the_only_upstream_header_relayed() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.upstream.add_rule(
        Rule::lookups()
            .header("set-cookie", "session=1")
            .header("x-upstream", "1")
            .header("cache-control", "no-store")
            .header("vary", "*"),
    );
    for reply in
        [app.retrieve("t", &id).await, app.retrieve("t", &id).await, app.batch("t", &[&id, "b"]).await]
    {
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.header("content-type"), "application/json");
        for name in ["set-cookie", "x-upstream", "server", "vary"] {
            assert!(!reply.headers.contains_key(name), "{name}: {reply:?}");
        }
    }
}

#[tokio::test]
async fn upstream_error_is_relayed_with_body_and_retry_after() {
    let app = TestApp::spawn_with(|config| config.upstream.max_retries = 0).await;
    let body =
        r#"{"success":false,"error":{"code":"too_many_requests","message":"Slowly."},"trace_id":"t-1"}"#;
    let rule = |status| Rule::lookups().respond_with(status, "application/json; charset=utf-8", body);
    app.upstream.add_rule(rule(429).retry_after("7").header("set-cookie", "a=1").times(1));
    let reply = app.retrieve("t", "id").await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (429, body.as_bytes()));
    assert_eq!(reply.header("retry-after"), "7");
    assert_eq!(reply.header("content-type"), "application/json; charset=utf-8");
    assert!(!reply.headers.contains_key("set-cookie"));

    app.upstream.add_rule(rule(403).times(1));
    let other = app.retrieve("u", "id").await;
    assert_eq!((other.status.as_u16(), &other.body[..]), (403, body.as_bytes()));
}

#[tokio::test]
async fn upstream_429_without_retry_after_receives_one() {
    let app = TestApp::spawn_with(|config| config.upstream.max_retries = 0).await;
    app.upstream.add_rule(Rule::lookups().error(429, "too_many_requests").times(1));
    let reply = app.retrieve("t", "id").await;
    assert_error(&reply, 429, "too_many_requests");
    assert!(reply.header("retry-after").parse::<u64>().expect("seconds") > 0);
}

#[tokio::test]
async fn upstream_lookup_carries_only_the_documented_headers() {
    let app = TestApp::spawn().await;
    let headers = [
        ("authorization", "Bearer t"),
        ("content-type", "application/json"),
        ("accept", "text/html, */*"),
        ("user-agent", "client/1"),
        ("accept-language", "de"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-host", "evil.example"),
        ("x-http-method-override", "DELETE"),
        ("origin", "https://app.example"),
        ("referer", "https://app.example/"),
        ("x-request-id", "given"),
        ("cache-control", "no-cache"),
        ("prefer", "handling=lenient"),
        ("x-record-exempt", "true"),
    ];
    for body in [r#"{"action":"retrieve","id":"a"}"#, r#"{"action":"retrieve_batch","ids":["b","c"]}"#] {
        app.raw(request("POST /producer/tasks", &headers, body)).await;
    }
    let calls = app.upstream.calls();
    assert_eq!(calls.len(), 2);
    for call in calls {
        assert_eq!((call.method.as_str(), call.target.as_str()), ("POST", "/producer/tasks"));
        // The client library adds `accept-encoding`, since the proxy decompresses responses.
        let mut names: Vec<&str> = call.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.retain(|name| *name != "accept-encoding");
        names.sort_unstable();
        let expected = ["accept", "authorization", "content-length", "content-type", "host", "user-agent"];
        assert_eq!(names, [&expected[..], &["x-record-exempt"]].concat());
        assert_eq!(call.header("authorization"), Some("Bearer t"));
        assert_eq!(call.header("accept"), Some("application/json"));
        assert_eq!(call.header("content-type"), Some("application/json"));
        assert_eq!(call.header("x-record-exempt"), Some("true"));
        assert!(call.header("user-agent").expect("one").starts_with("refrain"), "{:?}", call.headers);
        assert_eq!(call.header("host"), Some(app.upstream.address().to_string().as_str()));
    }
    assert_eq!(app.upstream.calls()[0].body, r#"{"action":"retrieve","id":"a"}"#);
}

#[tokio::test]
async fn records_of_a_failed_batch_are_stored_for_the_next_request() {
    let app = TestApp::spawn_with(|config| {
        config.upstream.max_retries = 0;
        config.upstream.max_batch = 1;
    })
    .await;
    for id in ["a", "b", "c"] {
        app.upstream.put_record("producer", "t", id, final_record(id, "x"));
    }
    app.upstream.add_rule(Rule::lookups().containing_id("b").error(403, "forbidden"));
    let reply = app.batch("t", &["a", "b", "c"]).await;
    assert_error(&reply, 403, "forbidden");
    app.upstream.wait_until("all three were requested", |upstream| upstream.lookup_calls().len() >= 3).await;
    app.upstream.clear_rules();
    assert_eq!(app.batch("t", &["a", "b", "c"]).await.json()["count"], 3);
    let requested: Vec<String> =
        app.upstream.lookup_calls().iter().flat_map(refrain_simulator::RecordedCall::ids).collect();
    let times = |wanted: &str| requested.iter().filter(|id| *id == wanted).count();
    assert_eq!((times("a"), times("c")), (1, 1), "{requested:?}");
}
