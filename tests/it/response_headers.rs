//! Headers of every response of the client port: `x-request-id`, `x-cache` and `cache-status`. Own
//! errors name refrain, the request and the upstream host.

use std::time::Duration;

use refrain::config::{AccessMode, Config, SharedClient};
use refrain::token::Token;
use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{RawPeer, RawResponse, TestApp, final_record, request};

const BEARER: (&str, &str) = ("authorization", "Bearer t");
const TASKS: &str = "POST /producer/tasks";
const BYPASS: &str = "refrain; fwd=bypass";
const REFUSED: &str = r#"refrain; detail="refused""#;
const ANSWERED: &str = r#"refrain; detail="answered""#;

fn strict(config: &mut Config) {
    config.upstream.max_retries = 0;
    config.upstream.request_timeout = Duration::from_millis(500);
    config.tasks.pending_max_age = Duration::from_secs(60);
    config.tasks.max_ids = 4;
}

fn bearer(line: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    request(line, &[&[BEARER], headers].concat(), body)
}

fn retrieve(id: &str) -> Vec<u8> {
    bearer(TASKS, &[], &json!({"action": "retrieve", "id": id}).to_string())
}

fn batch(ids: &[&str]) -> Vec<u8> {
    bearer(TASKS, &[], &json!({"action": "retrieve_batch", "ids": ids}).to_string())
}

/// Adds `x-request-id` to a request.
fn with_id(request: &[u8], id: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    text.replacen("\r\n", &format!("\r\nX-Request-Id: {id}\r\n"), 1).into_bytes()
}

/// Values of a header, one for each of its lines.
fn values<'a>(response: &'a RawResponse, name: &str) -> Vec<&'a str> {
    response
        .head
        .headers()
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

/// Status, `x-cache`, and the value of `cache-status`, with `, ` between several lines.
type Expected<'a> = (u16, &'a str, &'a str);

/// Asserts the three headers and, of an error of refrain, the body. `host` is the upstream's.
fn assert_response(case: &str, response: &RawResponse, id: &str, host: &str, expected: Expected<'_>) {
    let (status, x_cache, cache_status) = expected;
    let shown = format!("{case}: {}{}", response.head, response.text());
    assert_eq!(response.status, status, "{shown}");
    assert_eq!(values(response, "x-request-id"), [id], "{shown}");
    assert_eq!(values(response, "x-cache"), [x_cache], "{shown}");
    assert_eq!(values(response, "cache-status").join(", "), cache_status, "{shown}");
    if response.header("proxy-status").is_some() && !response.body.is_empty() {
        let body: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
        assert_eq!((&body["success"], &body["trace_id"]), (&json!(false), &json!(id)), "{shown}");
        let message = body["error"]["message"].as_str().expect("a message");
        assert!(message.starts_with("refrain ") && message.contains(host), "{shown}");
        assert!(message.ends_with('.') && message.matches(". ").count() >= 1, "what to do: {shown}");
    }
}

/// Sends a request with an id of its own, and asserts the response.
async fn check(app: &TestApp, case: &str, request: &[u8], expected: Expected<'_>) -> RawResponse {
    let id = format!("given-{}", case.replace(' ', "-"));
    let method = if request.starts_with(b"HEAD ") { "HEAD" } else { "POST" };
    let mut peer = RawPeer::connect(app.address).await;
    peer.write(with_id(request, &id)).await;
    let response = peer.read_response_to(method).await;
    assert_response(case, &response, &id, &app.upstream.address().to_string(), expected);
    response
}

#[tokio::test]
async fn every_response_to_a_lookup_has_the_headers() {
    let app = TestApp::spawn_with(strict).await;
    for id in ["one", "two", "three", "cut", "stalled"] {
        app.upstream.put_record("producer", "t", id, final_record(id, "x"));
    }
    let pending = app.upstream.create_pending("producer", "t");
    app.upstream.add_rule(Rule::lookups().containing_id("forbidden").error(403, "forbidden"));
    app.upstream.add_rule(Rule::lookups().containing_id("broken").error(500, "api_error"));
    app.upstream.add_rule(Rule::lookups().containing_id("moved").redirect("https://other.example/"));
    app.upstream.add_rule(Rule::lookups().containing_id("html").html());
    app.upstream.add_rule(Rule::lookups().containing_id("cut").cut_after(5));
    app.upstream.add_rule(Rule::lookups().containing_id("garbage").raw("SSH-2.0-x\r\n"));
    app.upstream.add_rule(Rule::lookups().containing_id("stalled").stall_after(5));
    let miss = "refrain; fwd=uri-miss";
    let only_if_cached = |id: &str| {
        let body = json!({"action": "retrieve", "id": id}).to_string();
        bearer(TASKS, &[("cache-control", "only-if-cached")], &body)
    };
    let batch_miss = r#"refrain; fwd=uri-miss; detail="hits=0 misses=2""#;
    for (case, request, expected) in [
        ("miss", retrieve("one"), (200, "MISS", "refrain; fwd=uri-miss; stored")),
        ("hit", retrieve("one"), (200, "HIT", "refrain; hit")),
        ("batch hit", batch(&["one"]), (200, "HIT", r#"refrain; hit; detail="hits=1 misses=0""#)),
        (
            "partial",
            batch(&["one", "two"]),
            (200, "PARTIAL", r#"refrain; fwd=partial; stored; detail="hits=1 misses=1""#),
        ),
        ("pending miss", retrieve(&pending), (200, "MISS", miss)),
        ("pending", retrieve(&pending), (200, "PENDING", r#"refrain; hit; detail="pending""#)),
        ("unknown", retrieve("unknown"), (200, "MISS", miss)),
        ("remembered unknown", retrieve("unknown"), (200, "PENDING", r#"refrain; hit; detail="pending""#)),
        ("relayed 403", retrieve("forbidden"), (403, "MISS", "refrain; fwd=uri-miss; fwd-status=403")),
        ("relayed 500", retrieve("broken"), (500, "MISS", "refrain; fwd=uri-miss; fwd-status=500")),
        ("redirect", retrieve("moved"), (502, "MISS", miss)),
        ("batch of html", batch(&["html", "three"]), (502, "MISS", batch_miss)),
        ("incomplete", retrieve("cut"), (502, "MISS", miss)),
        ("no HTTP", retrieve("garbage"), (502, "MISS", miss)),
        ("timeout", retrieve("stalled"), (504, "MISS", miss)),
        ("too many ids", batch(&["1", "2", "3", "4", "5"]), (400, "MISS", REFUSED)),
        ("only-if-cached", only_if_cached("never"), (504, "MISS", REFUSED)),
        ("stored only-if-cached", only_if_cached("one"), (200, "HIT", "refrain; hit")),
        (
            "broken body",
            b"POST /producer/tasks HTTP/1.1\r\nhost: h\r\nauthorization: Bearer t\r\n\
              transfer-encoding: chunked\r\n\r\n2\r\n{\"\r\nZZ\r\n"
                .to_vec(),
            (400, "MISS", REFUSED),
        ),
    ] {
        check(&app, case, &request, expected).await;
    }
}

#[tokio::test]
async fn lookup_with_the_upstream_down_has_the_headers() {
    let app = TestApp::spawn_with(strict).await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    app.upstream.stop().await;
    let miss = "refrain; fwd=uri-miss";
    check(&app, "unreachable", &retrieve("other"), (502, "MISS", miss)).await;
    check(&app, "after a failed call", &retrieve("another"), (502, "MISS", miss)).await;
    check(&app, "hit", &retrieve(&id), (200, "HIT", "refrain; hit")).await;
}

#[tokio::test]
async fn lookup_beyond_the_queue_timeout_has_the_headers() {
    let app = TestApp::spawn_with(|config| {
        config.upstream.requests_per_second = 0.1;
        config.upstream.burst = 1;
        config.tasks.queue_timeout = Duration::from_secs(1);
    })
    .await;
    app.retrieve("t", "first").await;
    let limited = check(&app, "limited", &retrieve("second"), (429, "MISS", "refrain; fwd=uri-miss")).await;
    assert!(limited.header("retry-after").is_some(), "{limited:?}");
}

#[tokio::test]
async fn lookup_cut_off_by_the_shutdown_has_the_headers() {
    let app =
        TestApp::spawn_with(|config| config.server.shutdown_timeout = Duration::from_millis(1500)).await;
    app.upstream.add_rule(Rule::lookups().black_hole());
    let host = app.upstream.address().to_string();
    let mut peer = RawPeer::connect(app.address).await;
    peer.write(with_id(&retrieve("id"), "given")).await;
    app.upstream.wait_for_calls(1).await;
    let (_stopped, response) = tokio::join!(app.stop(), peer.read_response());
    assert_response("shutdown", &response, "given", &host, (503, "MISS", "refrain; fwd=uri-miss"));
}

#[tokio::test]
async fn every_bypassed_response_has_the_headers() {
    let app = TestApp::spawn_with(strict).await;
    let id = app.upstream.create_finished("producer", "t");
    app.upstream.add_rule(Rule::path("/fine").body("text/plain", "fine"));
    app.upstream.add_rule(Rule::path("/error").error(422, "bad_request"));
    app.upstream.add_rule(Rule::path("/down").error(503, "api_error"));
    app.upstream.add_rule(Rule::path("/lines").ndjson(["{\"n\":1}", "{\"n\":2}"], Duration::ZERO));
    app.upstream.add_rule(Rule::path("/204").raw("HTTP/1.1 204 No Content\r\n\r\n"));
    app.upstream.add_rule(Rule::path("/299").raw("HTTP/1.1 299 Odd\r\ncontent-length: 2\r\n\r\nok"));
    app.upstream.add_rule(Rule::path("/304").raw("HTTP/1.1 304 Not Modified\r\n\r\n"));
    app.upstream.add_rule(Rule::path("/302").redirect("https://other.example/"));
    app.upstream.add_rule(
        Rule::path("/101")
            .raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    );
    app.upstream.add_rule(Rule::path("/closed").close_without_response());
    let get = |path: &str| bearer(&format!("GET {path}"), &[], "");
    let delete = json!({"action": "delete", "id": id}).to_string();
    for (case, request, status) in [
        ("200", get("/fine"), 200),
        ("head", bearer("HEAD /fine", &[], ""), 200),
        ("without a token", request("GET /fine", &[], ""), 200),
        ("404", get("/nothing"), 404),
        ("422", bearer("POST /error", &[], "{}"), 422),
        ("503", get("/down"), 503),
        ("stream", bearer("POST /lines", &[], "{}"), 200),
        ("204", get("/204"), 204),
        ("299", get("/299"), 299),
        ("302", get("/302"), 302),
        ("304", get("/304"), 304),
        ("101", get("/101"), 502),
        ("no response", get("/closed"), 502),
        ("lookup path with a query", bearer("POST /producer/tasks?x=1", &[], "{}"), 400),
        ("other body on a lookup path", bearer(TASKS, &[], r#"{"action":"other"}"#), 400),
        ("delete", bearer(TASKS, &[], &delete), 200),
        ("options", bearer("OPTIONS /fine", &[], ""), 200),
        (
            "broken body",
            b"POST /fine HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\nZZ\r\n".to_vec(),
            400,
        ),
    ] {
        check(&app, case, &request, (status, "BYPASS", BYPASS)).await;
    }
    app.upstream.stop().await;
    check(&app, "upstream down", &get("/fine"), (502, "BYPASS", BYPASS)).await;
    check(&app, "delete while down", &bearer(TASKS, &[], &delete), (502, "BYPASS", BYPASS)).await;
}

#[tokio::test]
async fn headers_of_the_upstream_are_replaced_or_appended_to() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::any().raw(
        "HTTP/1.1 200 OK\r\nX-Cache: UP-1\r\nx-cache: UP-2\r\nX-Request-ID: up\r\nx-request-id: up-2\r\n\
         Cache-Status: one; hit\r\ncache-status: two; fwd=miss\r\ncontent-length: 2\r\n\r\nok",
    ));
    let appended = "one; hit, two; fwd=miss, refrain; fwd=bypass";
    check(&app, "bypass", &bearer("GET /x", &[], ""), (200, "BYPASS", appended)).await;
    let call = app.upstream.calls().pop().expect("a call");
    assert_eq!(call.header("x-request-id"), Some("given-bypass"), "the client's own is forwarded");

    let delete = bearer(TASKS, &[], r#"{"action":"delete","id":"x"}"#);
    check(&app, "delete", &delete, (200, "BYPASS", appended)).await;
    // A lookup gets no header of the upstream.
    check(&app, "lookup", &retrieve("id"), (200, "MISS", "refrain; fwd=uri-miss")).await;

    let response = app.raw(bearer("GET /x", &[], "")).await;
    let id = response.header("x-request-id").expect("one");
    assert_eq!(id.len(), 36, "a new id: {id}");
    let call = app.upstream.calls().pop().expect("a call");
    assert_eq!(call.header("x-request-id"), None, "no id is added to the request");
}

#[tokio::test]
async fn every_refusal_has_the_headers() {
    let app = TestApp::spawn_with(strict).await;
    let raw = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\n{fields}\r\n").into_bytes();
    for (case, request, expected) in [
        ("two hosts", raw("GET /x", "host: a\r\nhost: a\r\n"), (400, "BYPASS", REFUSED)),
        ("no host", raw("GET /x", ""), (400, "BYPASS", REFUSED)),
        ("invalid host", raw("GET /x", "host: a b\r\n"), (400, "BYPASS", REFUSED)),
        ("lookup with two hosts", raw(TASKS, "host: a\r\nhost: a\r\n"), (400, "MISS", REFUSED)),
        ("trace", raw("TRACE /x", "host: a\r\n"), (405, "BYPASS", REFUSED)),
        ("connect", raw("CONNECT a:80", "host: a\r\n"), (501, "BYPASS", REFUSED)),
        ("dot segments", raw("GET /x/../y", "host: a\r\n"), (400, "BYPASS", REFUSED)),
        (
            "encoded dot segments",
            raw("POST /x/%2e%2e/producer/tasks", "host: a\r\n"),
            (400, "BYPASS", REFUSED),
        ),
        ("asterisk", raw("GET *", "host: a\r\n"), (400, "BYPASS", REFUSED)),
        ("other scheme", raw("GET ftp://a/x", "host: a\r\n"), (400, "BYPASS", REFUSED)),
        (
            "transfer coding",
            raw(TASKS, "host: a\r\ntransfer-encoding: gzip, chunked\r\n"),
            (400, "MISS", REFUSED),
        ),
        ("connection", raw(TASKS, "host: a\r\nconnection: authorization\r\n"), (400, "MISS", REFUSED)),
        ("invalid connection", raw("GET /x", "host: a\r\nconnection: \"x\"\r\n"), (400, "BYPASS", REFUSED)),
        ("options asterisk", raw("OPTIONS *", "host: a\r\n"), (204, "BYPASS", ANSWERED)),
    ] {
        let response = check(&app, case, &request, expected).await;
        assert_eq!(response.header("allow").is_some(), matches!(expected.0, 204 | 405), "{response:?}");
    }
    assert_eq!(app.upstream.call_count(), 0);
}

#[tokio::test]
async fn refused_key_and_preflight_have_the_headers() {
    let app = TestApp::spawn_with(|config| {
        let token = |text: &str| Token::parse(text).expect("a token");
        config.access.mode = AccessMode::Shared;
        config.upstream.token = Some(token("team"));
        config.access.clients = vec![SharedClient { name: "one".into(), key: token("key") }];
        config.server.cors_origins = vec!["https://app.example".into()];
    })
    .await;
    let look_up = r#"{"action":"retrieve","id":"x"}"#;
    let origin = ("origin", "https://app.example");
    let preflight = [origin, ("access-control-request-method", "POST")];
    for (case, request, expected) in [
        ("lookup", bearer(TASKS, &[], look_up), (401, "MISS", REFUSED)),
        ("lookup of a page", bearer(TASKS, &[origin], look_up), (401, "MISS", REFUSED)),
        ("other path", bearer("GET /x", &[], ""), (401, "BYPASS", REFUSED)),
        ("other service", bearer("POST /captcha/tasks", &[], look_up), (401, "BYPASS", REFUSED)),
        ("head", bearer("HEAD /x", &[], ""), (401, "BYPASS", REFUSED)),
        ("preflight", request("OPTIONS /producer/tasks", &preflight, ""), (200, "BYPASS", ANSWERED)),
        ("preflight of another path", request("OPTIONS /x", &preflight, ""), (200, "BYPASS", ANSWERED)),
    ] {
        let response = check(&app, case, &request, expected).await;
        let allowed = response.header("access-control-allow-origin");
        assert_eq!(allowed.is_some(), case.contains("page") || case.contains("preflight"), "{response:?}");
    }
    assert_eq!(app.upstream.call_count(), 0);
}
