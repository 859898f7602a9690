//! Faults of the upstream in lookups: reported plainly, never stored, and over as soon as the
//! upstream recovers.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use refrain::config::Config;
use refrain_simulator::{BatchItem, Rule};

use crate::support::{TestApp, assert_error, envelope, eventually, final_record, simulator};

fn strict(config: &mut Config) {
    config.upstream.max_retries = 0;
    config.upstream.request_timeout = Duration::from_millis(800);
    config.upstream.max_response_bytes = 1 << 20;
    config.tasks.pending_max_age = Duration::ZERO;
}

async fn app() -> TestApp {
    let app = TestApp::spawn_with(strict).await;
    for id in ["id", "other"] {
        app.upstream.put_record("producer", "t", id, final_record(id, "x"));
    }
    app
}

/// Asserts that nothing was stored during the fault, and that the first sound response is.
async fn assert_recovers(app: &TestApp) {
    app.upstream.clear_rules();
    eventually("the upstream receives calls again", async || {
        app.retrieve("t", "probe").await.status == StatusCode::OK
    })
    .await;
    for id in ["id", "other"] {
        app.assert_not_stored("t", id).await;
        assert_eq!(app.assert_stored("t", id).await.body, final_record(id, "x"));
    }
}

type MakeRule = fn(Rule) -> Rule;

#[tokio::test]
async fn incomplete_response_is_a_502_in_the_documented_shape() {
    let faults: [(&str, MakeRule); 13] = [
        ("reset before headers", |rule| rule.reset_before_response()),
        ("closed before headers", |rule| rule.close_without_response()),
        ("cut", |rule| rule.cut_after(20)),
        ("reset after headers", |rule| rule.reset_after(20)),
        ("shorter than declared", |rule| rule.wrong_length(4000)),
        ("chunked without an end", |rule| rule.unfinished()),
        ("CL and TE", |rule| {
            rule.raw("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
        }),
        ("two lengths", |rule| {
            rule.raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ")
        }),
        ("CR in a value", |rule| rule.raw("HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 2\r\n\r\n{}")),
        ("bad version", |rule| rule.raw("HTTP/7.0 200 OK\r\ncontent-length: 2\r\n\r\n{}")),
        ("no HTTP", |rule| rule.raw("SSH-2.0-x\r\n")),
        ("unasked 101", |rule| {
            rule.raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
        }),
        ("broken gzip", |rule| rule.gzip().cut_after(12)),
    ];
    for (name, fault) in faults {
        let app = app().await;
        let address = app.upstream.address().to_string();
        app.upstream.add_rule(fault(Rule::lookups()));
        for reply in [app.retrieve("t", "id").await, app.batch("t", &["id", "other"]).await] {
            assert_eq!(reply.status.as_u16(), 502, "{name}: {reply:?}");
            assert_error(&reply, 502, "api_error");
            assert!(String::from_utf8_lossy(&reply.body).contains(&address), "{name}: it names the upstream");
        }
        assert_recovers(&app).await;
    }
}

#[tokio::test]
async fn slow_response_is_a_504() {
    let faults: [(&str, MakeRule); 3] = [
        ("black hole", |rule| rule.black_hole()),
        ("stalled body", |rule| rule.stall_after(20)),
        ("dripping body", |rule| rule.drip(Duration::from_millis(50))),
    ];
    for (name, fault) in faults {
        let app = app().await;
        app.upstream.add_rule(fault(Rule::lookups()));
        let start = Instant::now();
        let reply = app.retrieve("t", "id").await;
        assert_eq!(reply.status.as_u16(), 504, "{name}: {reply:?}");
        assert_error(&reply, 504, "timeout");
        assert!(start.elapsed() < Duration::from_secs(4), "{name}: {:?}", start.elapsed());
        assert_recovers(&app).await;
    }
}

#[tokio::test]
async fn unreachable_upstream_is_a_502_and_stored_records_are_hits() {
    let app = app().await;
    let stored = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &stored).await;
    app.upstream.stop().await;
    let start = Instant::now();
    for reply in [app.retrieve("t", "id").await, app.batch("t", &["id", &stored]).await] {
        assert!(matches!(reply.status.as_u16(), 502 | 503), "{reply:?}");
        assert_eq!(reply.code(), "api_error");
        app.assert_stored("t", &stored).await;
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    app.upstream.resume().await.expect("the port is free again");
    assert_recovers(&app).await;
}

#[tokio::test]
async fn invalid_200_is_relayed_alone_and_a_502_in_a_batch() {
    let bodies: [(&str, &str); 11] = [
        ("text/html; charset=utf-8", "<!doctype html><title>Down</title>"),
        ("application/json", ""),
        ("application/json", "null"),
        ("application/json", "[]"),
        ("application/json", "5"),
        ("application/json", "\"id\""),
        ("application/json", "not json"),
        ("application/json", r#"{"id":"id","finished_at":1.5"#),
        ("application/json", r#"{"id":"id","finished_at":NaN}"#),
        ("application/json", r#"{"id":"id","finished_at":1.5}{"id":"id","finished_at":1.5}"#),
        ("text/plain", "\u{feff}{\"id\":\"id\",\"finished_at\":1.5}"),
    ];
    for (content_type, body) in bodies {
        let app = app().await;
        app.upstream.add_rule(Rule::lookups().body(content_type, body));
        let alone = app.retrieve("t", "id").await;
        assert_eq!((alone.status, &alone.body[..]), (StatusCode::OK, body.as_bytes()), "relayed unchanged");
        assert_eq!(alone.header("content-type"), content_type);
        assert!(!alone.header("cache-status").contains("stored"), "{body}: {alone:?}");
        let many = app.batch("t", &["id", "other"]).await;
        assert_eq!(many.status.as_u16(), 502, "{body}: {many:?}");
        assert_error(&many, 502, "api_error");
        assert_recovers(&app).await;
    }
}

#[tokio::test]
async fn batch_response_of_the_wrong_shape_is_a_502() {
    for body in [
        "{}",
        r#"{"items":null,"count":0}"#,
        r#"{"items":{},"count":0}"#,
        r#"{"count":2}"#,
        r#"{"items":[{"id":"id","finished_at":1.5}"#,
    ] {
        let app = app().await;
        app.upstream.add_rule(Rule::lookups().body("application/json", body));
        let reply = app.batch("t", &["id", "other"]).await;
        assert_eq!(reply.status.as_u16(), 502, "{body}: {reply:?}");
        assert_recovers(&app).await;
    }
}

#[tokio::test]
async fn record_of_another_id_is_relayed_and_stored_for_no_token() {
    let app = app().await;
    app.upstream.put_record("producer", "owner", "foreign", final_record("foreign", "secret"));
    app.upstream.add_rule(Rule::lookups().token("t").body("application/json", final_record("foreign", "x")));
    let reply = app.retrieve("t", "id").await;
    assert_eq!((reply.status, reply.body), (StatusCode::OK, final_record("foreign", "x").into()));
    app.upstream.clear_rules();
    assert_eq!(app.retrieve("t", "foreign").await.body, "{}", "neither a record nor a grant is stored");
    assert_recovers(&app).await;
}

#[tokio::test]
async fn batch_items_that_were_not_requested_are_ignored() {
    let app = app().await;
    app.upstream.add_rule(
        Rule::lookups()
            .action("retrieve_batch")
            .add_item(final_record("foreign", "x"))
            .add_item("null")
            .add_item("5")
            .add_item("[]")
            .add_item("{}")
            .add_item(r#"{"id":5}"#)
            .reverse_items(),
    );
    let reply = app.batch("t", &["id", "other"]).await;
    assert_eq!(
        (reply.status, reply.body),
        (StatusCode::OK, envelope(&["id", "other"].map(|id| final_record(id, "x"))).into())
    );
    app.upstream.clear_rules();
    app.assert_stored("t", "id").await;
    app.assert_stored("t", "other").await;
    assert_eq!(app.retrieve("t", "foreign").await.body, "{}");
}

#[tokio::test]
async fn swapped_and_repeated_items_reach_their_own_ids() {
    let app = app().await;
    app.upstream.add_rule(Rule::lookups().repeat_items().reverse_items());
    let reply = app.batch("t", &["id", "other", "id"]).await;
    assert_eq!(reply.body, envelope(&["id", "other", "id"].map(|id| final_record(id, "x"))));
    app.upstream.clear_rules();
    for id in ["id", "other"] {
        assert_eq!(app.assert_stored("t", id).await.body, final_record(id, "x"));
    }
}

#[tokio::test]
async fn conflicting_records_of_one_id_are_not_stored() {
    for first in [true, false] {
        let app = app().await;
        app.upstream.add_rule(Rule::lookups().action("retrieve_batch").items(move |mut items| {
            let disputed = BatchItem { id: "id".into(), record: final_record("id", "another").into() };
            items.insert(if first { 0 } else { items.len() }, disputed);
            items
        }));
        let reply = app.batch("t", &["id", "other"]).await;
        assert!(reply.body.len() < 2000);
        app.upstream.clear_rules();
        app.assert_not_stored("t", "id").await;
        assert_eq!(app.assert_stored("t", "id").await.body, final_record("id", "x"));
        app.assert_stored("t", "other").await;
    }
}

#[tokio::test]
async fn compressed_response_is_stored_decompressed() {
    let app = app().await;
    app.upstream.add_rule(Rule::lookups().gzip());
    let miss = app.retrieve("t", "id").await;
    assert_eq!((miss.x_cache(), &miss.body[..]), ("MISS", final_record("id", "x").as_bytes()));
    assert_eq!(miss.header("content-encoding"), "");
    assert_eq!(app.assert_stored("t", "id").await.body, final_record("id", "x"));
}

#[tokio::test]
async fn oversized_response_is_a_502_compressed_or_not() {
    let faults: [MakeRule; 2] = [|rule| rule.gzip_bomb(20_000_000), |rule| rule.large(200_000_000)];
    for fault in faults {
        let app = TestApp::spawn_with(|config| {
            strict(config);
            // The upstream needs some time to compress the body.
            config.upstream.request_timeout = Duration::from_secs(20);
        })
        .await;
        for id in ["id", "other"] {
            app.upstream.put_record("producer", "t", id, final_record(id, "x"));
        }
        app.upstream.add_rule(fault(Rule::lookups()));
        for reply in [app.retrieve("t", "id").await, app.batch("t", &["id", "other"]).await] {
            assert_eq!(reply.status.as_u16(), 502, "{reply:?}");
            assert_error(&reply, 502, "api_error");
        }
        assert_recovers(&app).await;
    }
}

#[tokio::test]
async fn bytes_after_the_declared_length_are_ignored() {
    let app = app().await;
    let text = final_record("id", "x");
    let raw = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        text.len()
    );
    app.upstream.add_rule(Rule::lookups().raw(raw).times(1));
    assert_eq!(app.retrieve("t", "id").await.body, text);
    // The appended bytes answer no other request.
    assert_eq!(app.retrieve("t", "other").await.body, final_record("other", "x"));
    app.assert_stored("t", "id").await;
}

#[tokio::test]
async fn redirected_lookup_is_a_502_and_its_token_goes_nowhere_else() {
    let elsewhere = simulator().await;
    for status in [300, 301, 302, 303, 307, 308, 304] {
        let app = app().await;
        let location = format!("{}/producer/tasks", elsewhere.base_url());
        app.upstream
            .add_rule(Rule::lookups().respond_with(status, "text/plain", "").header("location", &location));
        for reply in [app.retrieve("t", "id").await, app.batch("t", &["id", "other"]).await] {
            assert_eq!(reply.status.as_u16(), 502, "{status}: {reply:?}");
            assert_error(&reply, 502, "api_error");
            assert!(!reply.headers.contains_key("location"));
        }
        assert_recovers(&app).await;
    }
    assert_eq!(elsewhere.call_count(), 0);
}

#[tokio::test]
async fn error_with_any_retry_after_is_relayed_and_never_stored() {
    let forms = ["3", "0", "999999999999", "-5", "abc", "Wed, 21 Oct 2099 07:28:00 GMT", "1.5"];
    for form in forms {
        for (status, code) in [(429, "too_many_requests"), (503, "api_error")] {
            let app = app().await;
            app.upstream.add_rule(Rule::lookups().error(status, code).retry_after(form).times(1));
            let start = Instant::now();
            let reply = app.retrieve("t", "id").await;
            assert_error(&reply, status, code);
            if status == 429 {
                assert!(!reply.header("retry-after").is_empty(), "{form}: {reply:?}");
            }
            // The error delays only its own token.
            app.upstream.share("id", "u");
            assert_eq!(app.retrieve("u", "id").await.status, StatusCode::OK, "{form}");
            assert!(start.elapsed() < Duration::from_secs(5), "{form}: {:?}", start.elapsed());
            app.upstream.clear_rules();
        }
    }
}

#[tokio::test]
async fn error_is_relayed_and_the_next_record_is_stored() {
    let app = app().await;
    for (status, code) in
        [(500, "api_error"), (502, "api_error"), (504, "timeout"), (400, "bad_request"), (404, "no_api")]
    {
        app.upstream.add_rule(Rule::lookups().error(status, code));
        assert_error(&app.retrieve("t", "id").await, status, code);
        app.upstream.clear_rules();
    }
    assert_recovers(&app).await;
}

#[tokio::test]
async fn lookup_is_retried_after_5xx_and_reset_but_not_after_4xx() {
    let faults: [(&str, MakeRule, usize); 4] = [
        ("503", |rule| rule.error(503, "api_error"), 2),
        ("429", |rule| rule.error(429, "too_many_requests").retry_after("1"), 2),
        ("reset", |rule| rule.reset_before_response(), 2),
        ("403", |rule| rule.error(403, "used_up"), 1),
    ];
    let checks = faults.map(|(name, fault, calls)| async move {
        let app = TestApp::spawn_with(|config| {
            config.upstream.max_retries = 2;
            config.tasks.queue_timeout = Duration::from_secs(15);
        })
        .await;
        app.upstream.put_record("producer", "t", "id", final_record("id", "x"));
        app.upstream.add_rule(fault(Rule::lookups()).times(1));
        let reply = app.retrieve("t", "id").await;
        assert_eq!(reply.status.is_success(), calls == 2, "{name}: {reply:?}");
        assert_eq!(app.calls(), calls, "{name}");
    });
    join_all(checks).await;
}

#[tokio::test]
async fn stale_connection_does_not_fail_a_lookup() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::lookups().close_afterwards());
    for _ in 0..20 {
        let id = app.upstream.create_finished("producer", "t");
        assert_eq!(app.retrieve("t", &id).await.status, StatusCode::OK);
    }
}
