//! Look-ups end to end: what is asked of the store and what of the upstream, and what the answers say about it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use refrain::config::Services;
use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{
    DOCUMENTED, DOCUMENTED_ID, TestApp, assert_error, envelope, eventually, finished, request,
};

#[tokio::test]
async fn the_documentations_task_is_the_same_bytes_on_every_road() {
    let app = TestApp::spawn().await;
    app.upstream.put_raw("producer", "t", DOCUMENTED_ID, DOCUMENTED);

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
async fn a_batch_asks_only_for_what_is_not_stored_and_answers_in_request_order() {
    let app = TestApp::spawn().await;
    for id in ["a", "b", "c"] {
        app.upstream.put_raw("producer", "t", id, finished(id, "x"));
    }
    for id in ["a", "c"] {
        assert_eq!(app.retrieve("t", id).await.x_cache(), "MISS");
    }
    app.upstream.clear_calls();

    let reply = app.batch("t", &["c", "unknown", "b", "a", "c", "b", "unknown"]).await;
    let texts = ["c", "b", "a", "c", "b"].map(|id| finished(id, "x"));
    assert_eq!(reply.body, envelope(&texts));
    assert_eq!(reply.x_cache(), "PARTIAL");
    assert!(reply.header("cache-status").starts_with("refrain; fwd=partial"), "{reply:?}");
    assert!(reply.header("cache-status").contains("detail=\"hits="), "{reply:?}");

    let calls = app.upstream.calls();
    assert_eq!(calls.len(), 1, "one call for all that was not stored");
    let mut asked = calls[0].ids();
    asked.sort();
    assert_eq!(asked, ["b", "unknown"]);
}

#[tokio::test]
async fn a_batch_of_stored_ids_makes_no_call_and_says_hit() {
    let app = TestApp::spawn().await;
    for id in ["a", "b"] {
        app.upstream.put_raw("producer", "t", id, finished(id, "x"));
    }
    assert_eq!(app.batch("t", &["a", "b"]).await.x_cache(), "MISS");
    let reply = app.batch("t", &["b", "a", "b"]).await;
    assert_eq!(reply.x_cache(), "HIT");
    assert!(reply.header("cache-status").starts_with("refrain; hit"), "{reply:?}");
    assert_eq!(reply.body, envelope(&["b", "a", "b"].map(|id| finished(id, "x"))));
    assert_eq!(app.calls(), 1);
}

#[tokio::test]
async fn a_batch_of_unknown_ids_is_an_empty_envelope() {
    let app = TestApp::spawn().await;
    let reply = app.batch("t", &["nobody", "knows", "nobody"]).await;
    assert_eq!((reply.status, reply.x_cache()), (StatusCode::OK, "MISS"));
    assert_eq!(reply.body, r#"{"items":[],"count":0}"#);
}

#[tokio::test]
async fn no_call_asks_for_more_than_max_batch_distinct_ids_and_none_is_asked_for_twice() {
    let app = TestApp::spawn_with(|config| config.upstream.max_batch = 3).await;
    let ids: Vec<String> = (0..8).map(|_| app.upstream.create_finished("producer", "t")).collect();
    let repeated: Vec<&String> = ids.iter().chain(&ids).chain(ids.iter().rev()).collect();
    let reply = app.batch("t", &repeated).await;
    assert_eq!(reply.json()["count"], 24);
    let calls = app.upstream.look_up_calls();
    assert_eq!(calls.len(), 3, "8 ids in calls of 3");
    let asked: Vec<String> = calls.iter().flat_map(refrain_simulator::RecordedCall::ids).collect();
    assert!(calls.iter().all(|call| call.ids().len() <= 3));
    assert_eq!(asked.len(), 8, "each once");
    assert_eq!(asked.into_iter().collect::<HashSet<_>>(), ids.into_iter().collect());
}

#[tokio::test]
async fn more_than_max_ids_is_a_bad_request_that_says_so_and_costs_no_call() {
    let app = TestApp::spawn_with(|config| config.tasks.max_ids = 3).await;
    let ids: Vec<String> = (0..3).map(|_| app.upstream.create_finished("producer", "t")).collect();
    assert_eq!(app.batch("t", &ids).await.json()["count"], 3);
    app.upstream.clear_calls();
    for ids in [["a", "b", "c", "d"], ["a", "a", "a", "a"]] {
        let reply = app.batch("t", &ids).await;
        assert_error(&reply, 400, "bad_request");
        let message = reply.json()["error"]["message"].to_string();
        assert!(message.contains('3'), "it names the limit: {message}");
    }
    assert_eq!(app.upstream.call_count(), 0);
}

#[tokio::test]
async fn an_answer_beyond_max_response_bytes_is_a_bad_request_and_a_smaller_one_is_not() {
    let app = TestApp::spawn_with(|config| config.upstream.max_response_bytes = 64 << 10).await;
    app.upstream.put_raw("producer", "t", "big", finished("big", &"x".repeat(30 << 10)));
    assert_eq!(app.batch("t", &["big", "big"]).await.json()["count"], 2);
    let reply = app.batch("t", &["big", "big", "big"]).await;
    assert_error(&reply, 400, "bad_request");
    app.assert_stored("t", "big").await;
}

#[tokio::test]
async fn odd_ids_are_told_apart_and_reach_the_upstream_as_they_are() {
    let app = TestApp::spawn().await;
    let longest = "x".repeat(1024);
    let ids = [
        "a",
        "A",
        "1",
        "01",
        "caf\u{e9}",
        "cafe\u{301}",
        "a ",
        " a",
        "a,b",
        "b",
        "nul\0id",
        "nul",
        "\"",
        "\\",
        "a\nb",
        "\u{1f600}",
        "</script>",
        "",
        longest.as_str(),
    ];
    for (number, id) in ids.iter().enumerate() {
        app.upstream.put_raw("producer", "t", id, finished(id, &number.to_string()));
    }
    for expected in ["MISS", "HIT"] {
        for (number, id) in ids.iter().enumerate() {
            let reply = app.retrieve("t", id).await;
            assert_eq!(reply.body, finished(id, &number.to_string()), "{id:?}");
            if !id.is_empty() {
                assert_eq!(reply.x_cache(), expected, "{id:?}");
            }
        }
    }
    let asked: Vec<String> =
        app.upstream.look_up_calls().iter().flat_map(refrain_simulator::RecordedCall::ids).collect();
    let asked: Vec<&str> = asked.iter().map(String::as_str).filter(|id| !id.is_empty()).collect();
    let mut expected = ids.to_vec();
    expected.retain(|id| !id.is_empty());
    assert_eq!(asked, expected, "each once, byte for byte");

    let one = app.batch("t", &["a,b"]).await;
    assert_eq!(one.body, envelope(&[finished("a,b", "8")]));
    let two = app.batch("t", &["a", "b"]).await;
    assert_eq!(two.body, envelope(&[finished("a", "0"), finished("b", "9")]));
}

#[tokio::test]
async fn an_id_that_cannot_be_folded_goes_upstream_alone() {
    let app = TestApp::spawn().await;
    let ids = ["plain-1", "sp ace", "plain_2", "a,b", "caf\u{e9}"];
    for id in ids {
        app.upstream.put_raw("producer", "t", id, finished(id, "x"));
    }
    let reply = app.batch("t", &ids).await;
    assert_eq!(reply.body, envelope(&ids.map(|id| finished(id, "x"))));
    for call in app.upstream.look_up_calls() {
        let ids = call.ids();
        let plain = |id: &String| id.starts_with("plain");
        assert!(ids.len() == 1 || ids.iter().all(plain), "{ids:?} in one call");
    }
    assert_eq!(app.calls(), 4);
}

#[tokio::test]
async fn an_id_longer_than_a_kibibyte_is_passed_through_and_nothing_is_learnt() {
    let app = TestApp::spawn().await;
    let id = "x".repeat(1025);
    app.upstream.put_raw("producer", "t", &id, finished(&id, "x"));
    for calls in 1..=2 {
        let reply = app.retrieve("t", &id).await;
        assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass");
        assert_eq!(reply.body, finished(&id, "x"));
        assert_eq!(app.calls(), calls);
    }
    let reply = app.batch("t", &["short", &id]).await;
    assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass");
    assert_eq!(app.upstream.calls()[2].ids(), ["short".to_owned(), id]);
}

#[tokio::test]
async fn ids_are_compared_after_their_json_escapes_are_read() {
    let app = TestApp::spawn().await;
    app.upstream.put_raw("producer", "t", "abc", finished("abc", "x"));
    let bodies = [
        r#"{"action":"retrieve","id":"abc"}"#,
        r#" { "id" : "\u0061bc" ,"action":"retrie\u0076e" } "#,
        "{\r\n\t\"action\": \"retrieve\",\r\n\t\"id\": \"abc\"\r\n}\r\n",
    ];
    for (number, body) in bodies.into_iter().enumerate() {
        let headers = [("authorization", "Bearer t"), ("content-type", "application/json")];
        let reply = app.raw(request("POST /producer/tasks", &headers, body)).await;
        assert_eq!(reply.header("x-cache"), if number == 0 { "MISS" } else { "HIT" }, "{body}");
        assert_eq!(reply.text(), finished("abc", "x"));
    }
    assert_eq!(app.upstream.call_count(), 1);
}

#[tokio::test]
async fn the_scheme_is_read_in_any_case_and_the_content_type_may_be_absent() {
    let app = TestApp::spawn().await;
    app.upstream.put_raw("producer", "t", "abc", finished("abc", "x"));
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
        assert_eq!(reply.header("x-cache"), "HIT", "{headers:?}");
    }
    assert_eq!(app.upstream.call_count(), 1);
}

#[tokio::test]
async fn only_the_configured_services_are_looked_up_and_each_has_its_own_ids() {
    let app = TestApp::spawn().await;
    app.upstream.put_raw("suno", "t", "abc", finished("abc", "suno"));
    let body = json!({"action": "retrieve", "id": "abc"}).to_string();
    let ask = |app: &TestApp, service: &str| {
        app.http.post(app.url(&format!("/{service}/tasks"))).bearer_auth("t").body(body.clone())
    };
    for _ in 0..2 {
        let reply = app.send(ask(&app, "suno")).await;
        assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass");
    }
    assert_eq!(app.upstream.call_count(), 2);

    let app = app.restart_with(|config| config.tasks.services = Services::All).await;
    app.upstream.put_raw("producer", "t", "abc", finished("abc", "producer"));
    for expected in ["MISS", "HIT"] {
        for service in ["suno", "producer"] {
            let reply = app.send(ask(&app, service)).await;
            assert_eq!((reply.x_cache(), &reply.body[..]), (expected, finished("abc", service).as_bytes()));
        }
    }
}

#[tokio::test]
async fn every_answer_to_a_look_up_says_where_it_came_from() {
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

    app.upstream.script(Rule::look_ups().status(403, "used_up"));
    let error =
        app.look_up("t", &json!({"action": "retrieve", "id": "other"}), &[("x-request-id", "g2")]).await;
    assert_eq!((error.status.as_u16(), error.header("x-request-id")), (403, "g2"));
    assert!(error.header("cache-status").starts_with("refrain; fwd="), "{error:?}");
    assert_eq!(error.x_cache(), "MISS");
}

#[tokio::test]
async fn a_batch_tells_how_many_were_hits_and_misses() {
    let app = TestApp::spawn().await;
    let ids: Vec<String> = (0..5).map(|_| app.upstream.create_finished("producer", "t")).collect();
    app.batch("t", &ids[..3]).await;
    let reply = app.batch("t", &ids).await;
    assert!(reply.header("cache-status").contains(r#"detail="hits=3 misses=2""#), "{reply:?}");
    assert!(reply.header("cache-status").contains("fwd=partial"), "{reply:?}");
}

#[tokio::test]
async fn of_the_upstreams_headers_only_the_content_type_comes_along() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.upstream.script(
        Rule::look_ups()
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
async fn an_upstream_error_comes_with_its_status_body_and_retry_after() {
    let app = TestApp::spawn_with(|config| config.upstream.max_retries = 0).await;
    let body =
        r#"{"success":false,"error":{"code":"too_many_requests","message":"Slowly."},"trace_id":"t-1"}"#;
    let rule = |status| Rule::look_ups().status_body(status, "application/json; charset=utf-8", body);
    app.upstream.script(rule(429).retry_after("7").header("set-cookie", "a=1").times(1));
    let reply = app.retrieve("t", "id").await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (429, body.as_bytes()));
    assert_eq!(reply.header("retry-after"), "7");
    assert_eq!(reply.header("content-type"), "application/json; charset=utf-8");
    assert!(!reply.headers.contains_key("set-cookie"));

    app.upstream.script(rule(403).times(1));
    let other = app.retrieve("u", "id").await;
    assert_eq!((other.status.as_u16(), &other.body[..]), (403, body.as_bytes()));
}

#[tokio::test]
async fn a_429_without_a_retry_after_gets_one() {
    let app = TestApp::spawn_with(|config| config.upstream.max_retries = 0).await;
    app.upstream.script(Rule::look_ups().status(429, "too_many_requests").times(1));
    let reply = app.retrieve("t", "id").await;
    assert_error(&reply, 429, "too_many_requests");
    assert!(reply.header("retry-after").parse::<u64>().expect("seconds") > 0);
}

#[tokio::test]
async fn a_look_up_carries_exactly_the_headers_it_should() {
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
        // `accept-encoding` is the client library's own: answers are unpacked here.
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
async fn look_ups_that_differ_in_a_forwarded_header_never_share_a_call() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let (rule, hold) = Rule::look_ups().hold();
    app.upstream.script(rule);
    let body = json!({"action": "retrieve", "id": id});
    let (plain, exempt, other, ()) = tokio::join!(
        app.look_up("t", &body, &[]),
        app.look_up("t", &body, &[("x-record-exempt", "true")]),
        app.look_up("t", &body, &[("x-record-exempt", "false")]),
        async {
            hold.wait_for_held(3).await;
            hold.release();
        }
    );
    assert_eq!((&plain.body, &plain.body), (&exempt.body, &other.body));
    let mut sent: Vec<Option<String>> =
        app.upstream.calls().iter().map(|call| call.header("x-record-exempt").map(str::to_owned)).collect();
    sent.sort();
    assert_eq!(sent, [None, Some("false".into()), Some("true".into())]);
    app.assert_stored("t", &id).await;
}

#[tokio::test]
async fn only_if_cached_never_asks_the_upstream() {
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
    let stranger = app.look_up("u", &retrieve(&stored), &only).await;
    assert_eq!(stranger.status.as_u16(), 504, "not stored for this token");
    let batch = app.look_up("t", &json!({"action": "retrieve_batch", "ids": [stored]}), &only).await;
    assert_eq!(batch.x_cache(), "HIT");
    assert_eq!(app.upstream.call_count(), 0);
}

#[tokio::test]
async fn a_finished_task_stays_a_hit_whatever_cache_control_says() {
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
async fn an_unknown_id_is_answered_verbatim_and_never_stored() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::ZERO).await;
    for calls in 1..=2 {
        let reply = app.retrieve("t", "nobody").await;
        assert_eq!((reply.status, &reply.body[..], reply.x_cache()), (StatusCode::OK, &b"{}"[..], "MISS"));
        assert!(!reply.header("cache-status").contains("stored"), "{reply:?}");
        assert_eq!(app.calls(), calls);
    }
    app.upstream.put_raw("producer", "t", "nobody", finished("nobody", "x"));
    app.assert_not_stored("t", "nobody").await;
    app.assert_stored("t", "nobody").await;
}

#[tokio::test]
async fn an_unfinished_task_is_never_stored_and_a_finished_one_is() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::ZERO).await;
    let [good, bad] = [(); 2].map(|()| app.upstream.create_pending("producer", "t"));
    for id in [&good, &bad] {
        for _ in 0..2 {
            let reply = app.retrieve("t", id).await;
            assert_eq!(reply.x_cache(), "MISS");
            assert!(!reply.header("cache-status").contains("stored"), "{reply:?}");
            assert!(reply.json().get("finished_at").is_none());
        }
    }
    assert_eq!(app.calls(), 4);
    app.upstream.finish(&good);
    app.upstream.fail(&bad);
    for id in [&good, &bad] {
        app.assert_not_stored("t", id).await;
        let stored = app.assert_stored("t", id).await;
        assert_eq!(stored.body, app.upstream.task_text(id).expect("known"));
    }
    assert_eq!(app.retrieve("t", &bad).await.json()["response"]["success"], false);
}

#[tokio::test]
async fn what_only_looks_finished_is_relayed_and_not_stored() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::ZERO).await;
    let task = |rest: &str| format!(r#"{{"id":"id",{rest}}}"#);
    let preview = r#""response":{"data":[{"audio_url":"https://m.example/p.m4a","state":"#;
    let texts = [
        task(&format!(r#"{preview}"processing"}}]}}"#)),
        task(&format!(r#"{preview}"processing"}}]}},"finished_at":1.5"#)),
        task(&format!(r#"{preview}"succeeded"}},{{"state":"Pending"}}]}},"finished_at":1.5"#)),
        task(r#""response":{"a":[[{"b":{"STATUS":"running"}}]]},"finished_at":1.5"#),
        task(r#""response":{"success":true},"finished_at":null"#),
        task(r#""response":{"success":true},"finished_at":"1767119785.589""#),
        task(r#""response":{"success":true,"finished_at":1.5}"#),
        task(r#""response":{"state":"a new word"},"finished_at":1.5"#),
        r#"{"response":{"success":true},"finished_at":1.5}"#.to_owned(),
        r#"{"id":5,"finished_at":1.5}"#.to_owned(),
    ];
    for text in texts {
        app.upstream.put_raw("producer", "t", "id", text.clone());
        for _ in 0..2 {
            let before = app.calls();
            let reply = app.retrieve("t", "id").await;
            assert_eq!((reply.x_cache(), &reply.body[..]), ("MISS", text.as_bytes()));
            assert_eq!(app.calls(), before + 1, "asked again each time: {text}");
        }
    }
    app.upstream.put_raw("producer", "t", "id", finished("id", "x"));
    app.assert_not_stored("t", "id").await;
    app.assert_stored("t", "id").await;
}

#[tokio::test]
async fn a_pending_answer_is_remembered_for_its_time_and_no_cache_skips_it() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::from_secs(60)).await;
    let id = app.upstream.create_pending("producer", "t");
    assert_eq!(app.retrieve("t", &id).await.x_cache(), "MISS");
    let reply = app.retrieve("t", &id).await;
    assert_eq!(reply.x_cache(), "PENDING");
    assert_eq!(reply.header("cache-status"), r#"refrain; hit; detail="pending""#);
    assert!(reply.header("age").parse::<u64>().is_ok());
    assert_eq!(app.calls(), 1);
    let other = app.retrieve("u", &id).await;
    assert_eq!((other.x_cache(), &other.body[..]), ("MISS", &b"{}"[..]), "not another token's");
    let body = json!({"action": "retrieve", "id": id});
    for (calls, advice) in [(3, "no-cache"), (4, "max-age=0")] {
        let reply = app.look_up("t", &body, &[("cache-control", advice)]).await;
        assert_eq!((reply.x_cache(), app.calls()), ("MISS", calls), "{advice}");
    }
    assert_eq!(app.look_up("t", &body, &[("cache-control", "max-age=50")]).await.x_cache(), "PENDING");
}

#[tokio::test]
async fn prefer_wait_answers_as_soon_as_the_task_is_finished() {
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
                app.upstream.put_raw("producer", "t", "gone", finished("gone", "x"));
            }
        });
        assert_eq!(reply.status, StatusCode::OK);
        assert!(reply.header("preference-applied").contains("wait"), "{reply:?}");
        let json = reply.json();
        match json.get("items") {
            None => assert!(json["finished_at"].is_number(), "{json}"),
            Some(items) => {
                let items = items.as_array().expect("a list");
                assert_eq!(items.len(), 3, "an unknown id counts as unfinished: {json}");
                assert!(items.iter().all(|item| item["finished_at"].is_number()), "{json}");
            }
        }
    }
    app.assert_stored("t", &one).await;
}

#[tokio::test]
async fn prefer_wait_ends_with_the_unfinished_answer_after_its_time() {
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
async fn prefer_wait_does_not_delay_what_is_finished_and_ends_at_an_error() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let body = json!({"action": "retrieve", "id": id});
    let start = Instant::now();
    for expected in ["MISS", "HIT"] {
        assert_eq!(app.look_up("t", &body, &[("prefer", "wait=30")]).await.x_cache(), expected);
    }
    app.upstream.script(Rule::look_ups().status(403, "used_up"));
    let other = json!({"action": "retrieve", "id": "other"});
    assert_eq!(app.look_up("t", &other, &[("prefer", "wait=30")]).await.code(), "used_up");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn what_a_failing_batch_fetched_is_kept_and_a_repeat_gets_further() {
    let app = TestApp::spawn_with(|config| {
        config.upstream.max_retries = 0;
        config.upstream.max_batch = 1;
    })
    .await;
    for id in ["a", "b", "c"] {
        app.upstream.put_raw("producer", "t", id, finished(id, "x"));
    }
    app.upstream.script(Rule::look_ups().containing("b").status(403, "forbidden"));
    let reply = app.batch("t", &["a", "b", "c"]).await;
    assert_error(&reply, 403, "forbidden");
    app.upstream.wait_until("all three were asked for", |upstream| upstream.look_up_calls().len() >= 3).await;
    app.upstream.clear_rules();
    assert_eq!(app.batch("t", &["a", "b", "c"]).await.json()["count"], 3);
    let asked: Vec<String> =
        app.upstream.look_up_calls().iter().flat_map(refrain_simulator::RecordedCall::ids).collect();
    let times = |wanted: &str| asked.iter().filter(|id| *id == wanted).count();
    assert_eq!((times("a"), times("c")), (1, 1), "{asked:?}");
}

#[tokio::test]
async fn a_lenient_batch_gives_what_is_known_and_names_what_is_missing() {
    let app = TestApp::spawn_with(|config| {
        config.upstream.max_retries = 0;
        config.upstream.max_batch = 1;
    })
    .await;
    for id in ["a", "b", "c"] {
        app.upstream.put_raw("producer", "t", id, finished(id, "x"));
    }
    app.upstream.script(Rule::look_ups().containing("b").status(403, "forbidden"));
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
    assert_eq!(missing, HashSet::from(["b"]), "what is unknown is no failure: {json}");
    assert!(reply.header("preference-applied").contains("handling=lenient"), "{reply:?}");
    let text = String::from_utf8(reply.body.to_vec()).expect("UTF-8");
    assert!(text.starts_with(r#"{"items":["#) && text.contains(r#"],"count":2,"missing":["#), "{text}");
}

#[tokio::test]
async fn a_lenient_batch_that_did_not_fail_is_as_any_other() {
    let app = TestApp::spawn().await;
    app.upstream.put_raw("producer", "t", "a", finished("a", "x"));
    let body = json!({"action": "retrieve_batch", "ids": ["a", "unknown"]});
    let reply = app.look_up("t", &body, &[("prefer", "handling=lenient")]).await;
    assert_eq!(reply.json()["count"], 1);
    assert_eq!(reply.json().get("missing").and_then(|missing| missing.as_array()).map_or(0, Vec::len), 0);
}

#[tokio::test]
async fn many_clients_of_one_token_and_one_cold_id_make_one_call() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let (rule, hold) = Rule::look_ups().hold();
    app.upstream.script(rule);
    let asking = join_all((0..200).map(|_| app.retrieve("t", &id)));
    let (replies, ()) = tokio::join!(asking, async {
        hold.wait_for_held(1).await;
        hold.release();
    });
    let text = app.upstream.task_text(&id).expect("known");
    assert!(replies.iter().all(|reply| reply.status == StatusCode::OK && reply.body == text));
    assert_eq!(app.calls(), 1);
    let joined = replies.iter().filter(|reply| reply.header("cache-status").contains("collapsed")).count();
    let hits = replies.iter().filter(|reply| reply.x_cache() == "HIT").count();
    assert_eq!(joined + hits, 199, "one made the call, the others joined it or came after it");
    assert!(joined > 0);
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_fail_those_who_joined_its_call() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let (rule, hold) = Rule::look_ups().containing(&id).hold();
    app.upstream.script(rule);
    {
        let mut leader = crate::support::Wire::connect(app.address).await;
        let headers = [("authorization", "Bearer t"), ("content-type", "application/json")];
        let body = json!({"action": "retrieve", "id": id}).to_string();
        leader.write(request("POST /producer/tasks", &headers, body)).await;
        hold.wait_for_held(1).await;
    }
    // Each asks for an id of its own as well: once that was asked for upstream, it has joined for the other.
    let own = |number: usize| format!("own-{number}");
    let joining = join_all((0..49).map(|number| {
        let ids = [id.clone(), own(number)];
        let app = &app;
        async move { app.batch("t", &ids).await }
    }));
    let (replies, ()) = tokio::join!(joining, async {
        let asked = |upstream: &refrain_simulator::Simulator| -> HashSet<String> {
            upstream.look_up_calls().iter().flat_map(refrain_simulator::RecordedCall::ids).collect()
        };
        app.upstream.wait_until("all have come", |upstream| asked(upstream).len() == 50).await;
        hold.release();
    });
    let expected = envelope(&[String::from_utf8_lossy(&app.upstream.task_text(&id).expect("known"))]);
    for reply in replies {
        assert_eq!((reply.status, &reply.body[..]), (StatusCode::OK, expected.as_bytes()));
    }
    let for_it = app.upstream.look_up_calls().iter().filter(|call| call.ids().contains(&id)).count();
    assert_eq!(for_it, 1, "the call outlived the client that caused it");
}

#[tokio::test]
async fn a_folded_call_that_is_refused_harms_only_the_culprit() {
    let app = TestApp::spawn_with(|config| {
        config.upstream.max_retries = 0;
        config.upstream.requests_per_second = 5.0;
        config.upstream.burst = 1;
        config.tasks.queue_timeout = Duration::from_secs(15);
    })
    .await;
    let ids: Vec<String> = (0..5).map(|_| app.upstream.create_finished("producer", "t")).collect();
    app.upstream.script(Rule::look_ups().containing("culprit").status(422, "bad_request"));
    app.retrieve("t", "first").await;
    let (strangers, culprit) =
        tokio::join!(join_all(ids.iter().map(|id| app.retrieve("t", id))), app.retrieve("t", "culprit"));
    for (reply, id) in strangers.iter().zip(&ids) {
        assert_eq!(
            (reply.status, &reply.body),
            (StatusCode::OK, &app.upstream.task_text(id).expect("known"))
        );
    }
    assert_eq!(culprit.status.as_u16(), 422, "{culprit:?}");
    assert!(app.upstream.look_up_calls().iter().any(|call| call.ids().len() > 1), "nothing was folded");
}

#[tokio::test]
async fn a_single_id_that_a_folded_call_left_out_is_asked_for_again_alone() {
    let app = TestApp::spawn_with(|config| {
        config.upstream.requests_per_second = 5.0;
        config.upstream.burst = 1;
        config.tasks.queue_timeout = Duration::from_secs(15);
    })
    .await;
    let [one, two] = [(); 2].map(|()| app.upstream.create_finished("producer", "t"));
    app.upstream.script(Rule::look_ups().action("retrieve_batch").omit_ids([one.clone()]));
    app.retrieve("t", "first").await;
    let (left_out, there, unknown) =
        tokio::join!(app.retrieve("t", &one), app.retrieve("t", &two), app.retrieve("t", "unknown"));
    assert_eq!(left_out.body, app.upstream.task_text(&one).expect("known"));
    assert_eq!(there.body, app.upstream.task_text(&two).expect("known"));
    assert_eq!(unknown.body, "{}");
    let calls = app.upstream.look_up_calls();
    assert!(calls.iter().any(|call| call.ids().len() > 1), "nothing was folded");
    let alone = |id: &str| calls.iter().filter(|call| call.ids() == [id]).count();
    assert_eq!((alone(&one), alone("unknown"), alone(&two)), (1, 1, 0));
}

#[tokio::test]
async fn a_look_up_in_hand_is_answered_while_the_proxy_drains() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let (rule, hold) = Rule::look_ups().hold();
    app.upstream.script(rule);
    let (reply, ()) = tokio::join!(app.retrieve("t", &id), async {
        hold.wait_for_held(1).await;
        assert_eq!(app.admin("/readyz").await.status, StatusCode::OK);
        app.begin_shutdown();
        let draining = async || app.admin("/readyz").await.status == StatusCode::SERVICE_UNAVAILABLE;
        eventually("it says that it drains", draining).await;
        hold.release();
    });
    assert_eq!((reply.status, reply.body), (StatusCode::OK, app.upstream.task_text(&id).expect("known")));
    app.stop().await;
}
