//! Request headers of lookups: `cache-control` and `prefer`.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use http::StatusCode;
use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{TestApp, assert_error, final_record};

#[tokio::test]
async fn only_if_cached_makes_no_upstream_call() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::from_secs(60)).await;
    let [stored, absent] = [(); 2].map(|()| app.upstream.create_finished("producer", "t"));
    let pending = app.upstream.create_pending("producer", "t");
    app.retrieve("t", &stored).await;
    app.retrieve("t", &pending).await;
    app.upstream.clear_calls();

    let only = [("cache-control", "only-if-cached")];
    let retrieve = |id: &str| json!({"action": "retrieve", "id": id});
    let hit = app.look_up("t", &retrieve(&stored), &only).await;
    assert_eq!((hit.status, hit.x_cache()), (StatusCode::OK, "HIT"));
    for body in [
        retrieve(&absent),
        retrieve(&pending),
        json!({"action": "retrieve_batch", "ids": [stored, absent]}),
        json!({"action": "retrieve_batch", "ids": [stored, pending]}),
    ] {
        let reply = app.look_up("t", &body, &only).await;
        assert_error(&reply, 504, "timeout");
    }
    let other = app.look_up("u", &retrieve(&stored), &only).await;
    assert_eq!(other.status.as_u16(), 504, "not stored for this token");
    let batch = app.look_up("t", &json!({"action": "retrieve_batch", "ids": [stored]}), &only).await;
    assert_eq!(batch.x_cache(), "HIT");
    assert_eq!(app.upstream.call_count(), 0);
}

#[tokio::test]
async fn final_record_is_a_hit_whatever_cache_control_requests() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    for advice in ["no-cache", "no-store", "max-age=0", "no-cache, no-store, max-age=0", "min-fresh=9"] {
        let headers = [("cache-control", advice), ("pragma", "no-cache")];
        let reply = app.look_up("t", &json!({"action": "retrieve", "id": id}), &headers).await;
        assert_eq!(reply.x_cache(), "HIT", "{advice}");
    }
    assert_eq!(app.calls(), 1);
}

#[tokio::test]
async fn pending_record_is_reused_unless_cache_control_forbids_it() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::from_secs(60)).await;
    let id = app.upstream.create_pending("producer", "t");
    assert_eq!(app.retrieve("t", &id).await.x_cache(), "MISS");
    let reply = app.retrieve("t", &id).await;
    assert_eq!(reply.x_cache(), "PENDING");
    assert_eq!(reply.header("cache-status"), r#"refrain; hit; detail="pending""#);
    assert!(reply.header("age").parse::<u64>().is_ok());
    assert_eq!(app.calls(), 1);
    let other = app.retrieve("u", &id).await;
    assert_eq!((other.x_cache(), &other.body[..]), ("MISS", &b"{}"[..]), "not shared with another token");
    let body = json!({"action": "retrieve", "id": id});
    for (calls, advice) in [(3, "no-cache"), (4, "max-age=0")] {
        let reply = app.look_up("t", &body, &[("cache-control", advice)]).await;
        assert_eq!((reply.x_cache(), app.calls()), ("MISS", calls), "{advice}");
    }
    assert_eq!(app.look_up("t", &body, &[("cache-control", "max-age=50")]).await.x_cache(), "PENDING");
}

#[tokio::test]
async fn prefer_wait_returns_as_soon_as_every_record_is_final() {
    let app = TestApp::spawn().await;
    let [one, two] = [(); 2].map(|()| app.upstream.create_pending("producer", "t"));
    app.upstream.finish(&two);
    for body in [
        json!({"action": "retrieve", "id": one}),
        json!({"action": "retrieve_batch", "ids": [two, one, "gone"]}),
    ] {
        let before = app.calls();
        let wait = [("prefer", "wait=15")];
        let (reply, ()) = tokio::join!(app.look_up("t", &body, &wait), async {
            if before == 0 {
                app.upstream.wait_for_calls(1).await;
                app.upstream.finish(&one);
            } else {
                app.upstream.wait_for_calls(before + 1).await;
                app.upstream.put_record("producer", "t", "gone", final_record("gone", "x"));
            }
        });
        assert_eq!(reply.status, StatusCode::OK);
        assert!(reply.header("preference-applied").contains("wait"), "{reply:?}");
        let json = reply.json();
        match json.get("items") {
            None => assert!(json["finished_at"].is_number(), "{json}"),
            Some(items) => {
                let items = items.as_array().expect("a list");
                assert_eq!(items.len(), 3, "an unknown id counts as pending: {json}");
                assert!(items.iter().all(|item| item["finished_at"].is_number()), "{json}");
            }
        }
    }
    app.assert_stored("t", &one).await;
}

#[tokio::test]
async fn prefer_wait_returns_the_pending_record_after_max_wait() {
    let app = TestApp::spawn_with(|config| config.tasks.max_wait = Duration::from_secs(1)).await;
    let id = app.upstream.create_pending("producer", "t");
    let start = Instant::now();
    let reply = app.look_up("t", &json!({"action": "retrieve", "id": id}), &[("prefer", "wait=600")]).await;
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!((reply.status, &reply.json()["id"]), (StatusCode::OK, &id.into()));
    assert!(reply.header("preference-applied").contains("wait"), "{reply:?}");
}

#[tokio::test]
async fn prefer_wait_does_not_delay_final_records_and_errors() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let body = json!({"action": "retrieve", "id": id});
    let start = Instant::now();
    for expected in ["MISS", "HIT"] {
        assert_eq!(app.look_up("t", &body, &[("prefer", "wait=30")]).await.x_cache(), expected);
    }
    app.upstream.add_rule(Rule::lookups().error(403, "used_up"));
    let other = json!({"action": "retrieve", "id": "other"});
    assert_eq!(app.look_up("t", &other, &[("prefer", "wait=30")]).await.code(), "used_up");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn lenient_batch_returns_known_items_and_lists_missing_ids() {
    let app = TestApp::spawn_with(|config| {
        config.upstream.max_retries = 0;
        config.upstream.max_batch = 1;
    })
    .await;
    for id in ["a", "b", "c"] {
        app.upstream.put_record("producer", "t", id, final_record(id, "x"));
    }
    app.upstream.add_rule(Rule::lookups().containing_id("b").error(403, "forbidden"));
    let body = json!({"action": "retrieve_batch", "ids": ["c", "b", "unknown", "a", "b"]});
    let reply = app.look_up("t", &body, &[("prefer", "handling=lenient")]).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    let json = reply.json();
    assert_eq!(json["count"], json["items"].as_array().expect("items").len());
    let ids: Vec<&str> =
        json["items"].as_array().expect("items").iter().filter_map(|item| item["id"].as_str()).collect();
    assert_eq!(ids, ["c", "a"], "{json}");
    let missing: HashSet<&str> =
        json["missing"].as_array().expect("missing").iter().filter_map(serde_json::Value::as_str).collect();
    assert_eq!(missing, HashSet::from(["b"]), "an unknown id is not a failure: {json}");
    assert!(reply.header("preference-applied").contains("handling=lenient"), "{reply:?}");
    let text = String::from_utf8(reply.body.to_vec()).expect("UTF-8");
    assert!(text.starts_with(r#"{"items":["#) && text.contains(r#"],"count":2,"missing":["#), "{text}");
}

#[tokio::test]
async fn lenient_batch_without_failures_lists_no_missing_ids() {
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", "a", final_record("a", "x"));
    let body = json!({"action": "retrieve_batch", "ids": ["a", "unknown"]});
    let reply = app.look_up("t", &body, &[("prefer", "handling=lenient")]).await;
    assert_eq!(reply.json()["count"], 1);
    assert_eq!(reply.json().get("missing").and_then(|missing| missing.as_array()).map_or(0, Vec::len), 0);
}

#[tokio::test]
async fn wait_of_zero_is_an_ordinary_lookup() {
    let app = TestApp::spawn_with(|config| config.tasks.max_wait = Duration::ZERO).await;
    let id = app.upstream.create_pending("producer", "t");
    let body = json!({"action": "retrieve", "id": id});
    for wait in ["wait=0", "wait=30"] {
        let before = app.calls();
        let reply = app.look_up("t", &body, &[("prefer", wait), ("cache-control", "no-cache")]).await;
        assert_eq!((reply.x_cache(), app.calls()), ("MISS", before + 1), "{wait}");
        assert_eq!(reply.header("preference-applied"), "", "{wait}");
    }
}

#[tokio::test]
async fn default_wait_holds_single_lookups_of_unmodified_clients() {
    let app = TestApp::spawn_with(|config| config.tasks.default_wait = Duration::from_secs(20)).await;
    let id = app.upstream.create_pending("producer", "t");
    let (reply, ()) = tokio::join!(app.retrieve("t", &id), async {
        app.upstream.wait_for_calls(1).await;
        app.upstream.finish(&id);
    });
    assert!(reply.json()["finished_at"].is_number(), "{reply:?}");
    assert_eq!(reply.header("preference-applied"), "");
    // A batch, and a client that says otherwise, are not held.
    let other = app.upstream.create_pending("producer", "t");
    assert!(app.batch("t", &[&other]).await.json()["items"][0].get("finished_at").is_none());
    let body = json!({"action": "retrieve", "id": other});
    assert!(app.look_up("t", &body, &[("prefer", "wait=0")]).await.json().get("finished_at").is_none());
}
