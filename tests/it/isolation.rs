//! Isolation: a token is served only records that the upstream returned to that token.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::StatusCode;
use refrain::config::Config;
use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{
    Client, RawPeer, TestApp, assert_error, client, envelope, final_record, in_parallel, request,
    token_record, without_pending_cache,
};

/// Asserts that a lookup causes an upstream call with its own token, and returns that call's
/// response.
async fn assert_requested_upstream(app: &TestApp, token: &str, id: &str, expected: &str) {
    let before = app.calls();
    let reply = app.retrieve(token, id).await;
    assert_eq!((reply.x_cache(), &reply.body[..]), ("MISS", expected.as_bytes()), "{token} {id}");
    let calls = app.upstream.lookup_calls();
    assert_eq!(calls.len(), before + 1);
    assert_eq!(calls[before].token.as_deref(), Some(token));
}

/// A reverse proxy may send requests of many clients over one connection.
#[tokio::test]
async fn each_request_on_a_connection_uses_its_own_token() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    let id = app.upstream.create_finished("producer", "a");
    let text = app.retrieve("a", &id).await.body;
    let mut peer = RawPeer::connect(app.address).await;
    for token in
        ["Bearer a", "Bearer b", "bearer a", "Bearer aa", "Bearer a", "Bearer A", "Basic a", "", "Bearer a"]
    {
        let body = json!({"action": "retrieve", "id": id}).to_string();
        peer.write(request("POST /producer/tasks", &[("authorization", token)], body)).await;
        let response = peer.read_response().await;
        let is_a = token.eq_ignore_ascii_case("bearer a") && token.ends_with('a');
        assert_eq!(response.header("x-cache") == Some("HIT"), is_a, "{token}");
        assert_eq!(response.body == text, is_a, "{token}");
    }
}

#[tokio::test]
async fn record_stored_for_another_token_is_requested_upstream() {
    for memory_bytes in [0, 1 << 20] {
        let setting = |config: &mut Config| {
            without_pending_cache(config);
            config.store.memory_bytes = memory_bytes;
        };
        let app = TestApp::spawn_with(setting).await;
        let id = app.upstream.create_finished("producer", "a");
        app.retrieve("a", &id).await;
        app.assert_stored("a", &id).await;
        for other in ["b", "A", "a.", "aa", "bearer", "a,b"] {
            assert_requested_upstream(&app, other, &id, "{}").await;
            assert_requested_upstream(&app, other, &id, "{}").await;
        }
        let batch = app.batch("b", &[&id, &id]).await;
        assert_eq!(batch.body, r#"{"items":[],"count":0}"#);

        let app = app.restart_with(setting).await;
        app.assert_stored("a", &id).await;
        assert_requested_upstream(&app, "b", &id, "{}").await;
        assert_eq!(app.batch("b", &[&id]).await.json(), json!({"items": [], "count": 0}));
        let body = json!({"action": "retrieve", "id": id});
        assert_error(&app.look_up("b", &body, &[("cache-control", "only-if-cached")]).await, 504, "timeout");

        // Once the upstream returns it to the other token, it is stored for that token too.
        app.upstream.share(&id, "b");
        let text = app.upstream.task_record(&id).expect("known");
        assert_requested_upstream(&app, "b", &id, &String::from_utf8_lossy(&text)).await;
        assert_eq!(app.assert_stored("b", &id).await.body, text);
        assert_requested_upstream(&app, "c", &id, "{}").await;
    }
}

#[tokio::test]
async fn lookup_never_joins_a_call_of_another_token() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    let id = app.upstream.create_finished("producer", "a");
    let (rule, hold) = Rule::lookups().token("a").hold();
    app.upstream.add_rule(rule);
    let (own, ()) = tokio::join!(app.retrieve("a", &id), async {
        hold.wait_for_held(1).await;
        assert_requested_upstream(&app, "b", &id, "{}").await;
        hold.release();
    });
    assert_eq!(own.body, app.upstream.task_record(&id).expect("known"));
    assert_requested_upstream(&app, "b", &id, "{}").await;
}

#[tokio::test]
async fn batch_takes_only_records_of_its_own_token_from_the_store() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    for id in ["one", "both", "two"] {
        app.upstream.put_record("producer", "a", id, final_record(id, "x"));
    }
    app.upstream.share("both", "b");
    app.batch("a", &["one", "both", "two"]).await;
    app.retrieve("b", "both").await;
    app.upstream.clear_calls();

    let reply = app.batch("b", &["one", "both", "two"]).await;
    assert_eq!(reply.body, envelope(&[final_record("both", "x")]));
    assert_eq!(reply.x_cache(), "PARTIAL");
    let calls = app.upstream.calls();
    let mut requested: Vec<String> = calls.iter().flat_map(refrain_simulator::RecordedCall::ids).collect();
    requested.sort();
    assert_eq!(requested, ["one", "two"]);
    assert!(calls.iter().all(|call| call.token.as_deref() == Some("b")));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_lookups_of_one_id_get_the_records_of_their_tokens() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    let id = app.upstream.create_finished("producer", "a");
    let text = app.upstream.task_record(&id).expect("known");
    for _ in 0..10 {
        let replies = join_all((0..40).map(|number| {
            let token = if number % 2 == 0 { "a" } else { "b" };
            let (app, id) = (&app, &id);
            async move { (token, app.retrieve(token, id).await) }
        }))
        .await;
        for (token, reply) in replies {
            let expected = if token == "a" { &text[..] } else { b"{}" };
            assert_eq!((reply.status, &reply.body[..]), (StatusCode::OK, expected), "{token}");
        }
    }

    // Here both tokens know every id, and each has a record of its own.
    for n in 0..100 {
        for token in ["a", "b"] {
            let id = format!("same-{n}");
            app.upstream.put_record("producer", token, &id, token_record(&id, token, 30));
        }
    }
    let http = client(app.address);
    let replies = in_parallel(400, 64, |place| {
        let http = http.clone();
        let (id, token) = (format!("same-{}", place / 4), ["a", "b"][place % 2]);
        async move { (token_record(&id, token, 30), http.retrieve(token, &id).await.expect("a response")) }
    })
    .await;
    for (expected, reply) in replies {
        assert_eq!(reply.body, expected);
    }
}

#[tokio::test]
async fn different_records_of_one_id_stay_with_their_tokens() {
    for memory_bytes in [0, 1 << 20] {
        let app = TestApp::spawn_with(|config| config.store.memory_bytes = memory_bytes).await;
        for token in ["a", "b"] {
            app.upstream.put_record("producer", token, "id", final_record("id", token));
        }
        for token in ["a", "b", "a", "b", "b", "a"] {
            let reply = app.retrieve(token, "id").await;
            assert_eq!(reply.body, final_record("id", token), "{token} received the record of another token");
            let reply = app.batch(token, &["id"]).await;
            assert_eq!(reply.body, envelope(&[final_record("id", token)]), "{token}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_requests_with_aborts_get_their_own_responses() {
    storm(10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes; tests/extended runs it"]
async fn hundred_thousand_requests_with_aborts_get_their_own_responses() {
    storm(100_000).await;
}

const TOKENS: usize = 8;

/// Number of tasks per token that no other token may read.
const PRIVATE: usize = 60;

fn private_id(n: usize, owner: usize) -> String {
    format!("private-{owner}-{n}")
}

/// The record of a task. Every third one is pending, so that its lookups go upstream repeatedly.
fn storm_text(n: usize, token: &str) -> String {
    let text = token_record(&format!("storm-{n}"), token, n % 700);
    if n.is_multiple_of(3) { text.replace("\"finished_at\"", "\"created_at\"") } else { text }
}

/// Sends lookups, batches and bypassed requests of several tokens. A fifth of them is cancelled
/// early.
async fn storm(requests: usize) {
    let tasks = (requests / 4).min(12_000);
    let app = TestApp::spawn().await;
    for n in 0..tasks {
        for token in 0..TOKENS {
            let token = format!("token-{token}");
            app.upstream.put_record("producer", &token, &format!("storm-{n}"), storm_text(n, &token));
        }
    }
    // Tasks that only their owner may read.
    for n in 0..PRIVATE {
        for token in 0..TOKENS {
            let (token, id) = (format!("token-{token}"), private_id(n, token));
            app.upstream.put_record("producer", &token, &id, token_record(&id, &token, 30));
        }
    }
    // Calls take long enough to be cancelled while they run.
    app.upstream.add_rule(Rule::any().delay(Duration::from_millis(3)));
    let http = client(app.address);
    let start = Instant::now();
    let answered = in_parallel(requests, 200, |place| {
        let http = http.clone();
        async move {
            let mut random = fastrand::Rng::with_seed(place as u64);
            let token = format!("token-{}", random.usize(0..TOKENS));
            let ids: Vec<usize> = (0..random.usize(1..9)).map(|_| random.usize(0..tasks)).collect();
            let kind = random.u8(0..5);
            let time_limit = match random.u8(0..5) {
                0 => Duration::from_micros(random.u64(1..12_000)),
                _ => Duration::from_secs(60),
            };
            let requested = send_and_check(&http, kind, &token, &ids);
            tokio::time::timeout(time_limit, requested).await.is_ok()
        }
    })
    .await;
    let whole = answered.iter().filter(|whole| **whole).count();
    eprintln!("{whole} responses, {} cancelled, in {:?}", requests - whole, start.elapsed());
    assert!(whole > requests / 2 && whole < requests, "{whole}");
    for call in app.upstream.lookup_calls() {
        assert!(call.token.is_some_and(|token| token.starts_with("token-")));
    }
}

/// Sends one request. Panics if the response is not for its ids and its token.
async fn send_and_check(http: &Client, kind: u8, token: &str, ids: &[usize]) {
    let name = |n: usize| format!("storm-{n}");
    match kind {
        0 | 1 => {
            let reply = http.retrieve(token, &name(ids[0])).await.expect("a response");
            assert_eq!((reply.status.as_u16(), reply.body), (200, storm_text(ids[0], token).into()));
        }
        2 => {
            let requested: Vec<String> = ids.iter().copied().map(name).collect();
            let reply = http.batch(token, &requested).await.expect("a response");
            let texts: Vec<String> = ids.iter().map(|n| storm_text(*n, token)).collect();
            let expected = format!("{{\"items\":[{}],\"count\":{}}}", texts.join(","), ids.len());
            assert_eq!((reply.status.as_u16(), reply.body), (200, expected.into()));
        }
        3 => {
            let owner = ids[0] % TOKENS;
            let id = private_id(ids[0] % PRIVATE, owner);
            let reply = http.retrieve(token, &id).await.expect("a response");
            let is_owner = token == format!("token-{owner}");
            let expected = if is_owner { token_record(&id, token, 30) } else { "{}".to_owned() };
            assert_eq!((reply.status.as_u16(), reply.body), (200, expected.into()), "{token} requested {id}");
        }
        _ => {
            // One more key makes this a bypassed request.
            let body = json!({"action": "retrieve", "id": name(ids[0]), "more": true}).to_string();
            let reply = http.look_up(token, body, &[]).await.expect("a response");
            assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass");
            assert_eq!((reply.status.as_u16(), reply.body), (200, storm_text(ids[0], token).into()));
        }
    }
}

/// A final record that no correct response contains.
fn poison(id: &str) -> String {
    token_record(id, "poison", 5)
}

#[tokio::test]
async fn ambiguous_requests_do_not_poison_the_cache() {
    let app = TestApp::spawn().await;
    let http = client(app.address);
    let of = |id: &str| Bytes::from(token_record(id, "t", 40));
    // Requests that a server may parse in another way than the proxy does.
    let odd = |call: &refrain_simulator::RecordedCall| {
        call.header("x-forwarded-host").is_some()
            || call.header("x-host").is_some()
            || call.header("x-original-url").is_some()
            || call.header("x-http-method-override").is_some()
            || call.header("content-type").is_none_or(|kind| kind != "application/json")
            || call.method != "POST"
            || call.body.windows(5).any(|part| part == b"twice" || part == b"extra")
    };
    let bodies = [
        r#"{"action":"retrieve","id":"twice","id":"victim"}"#,
        r#"{"action":"retrieve","id":"victim","id":"twice"}"#,
        r#"{"action":"delete","action":"retrieve","id":"twice","id":"victim"}"#,
        r#"{"action":"retrieve_batch","ids":["twice"],"ids":["victim"]}"#,
        r#"{"action":"retrieve","id":"victim","extra":"x"}"#,
        r#"{"action":"retrieve","id":"victim","\u0069d":"twice"}"#,
        r#"{"action":"retrieve","id":"victim","ids":["twice"]}"#,
    ];
    let headers = [
        ("x-forwarded-host", "elsewhere.example"),
        ("x-host", "elsewhere.example"),
        ("x-original-url", "/producer/audios"),
        ("x-http-method-override", "DELETE"),
        ("content-type", "text/plain"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-type", "application/json; charset=utf-16"),
    ];
    let plain = r#"{"action":"retrieve","id":"victim"}"#;
    let attacks =
        bodies.map(|body| (body, None)).into_iter().chain(headers.map(|field| (plain, Some(field))));
    for (n, (body, field)) in attacks.enumerate() {
        let id = format!("victim{n}");
        let body = body.replace("victim", &id);
        for token in ["t", "other"] {
            app.upstream.put_record("producer", token, &id, of(&id));
        }
        app.upstream.clear_rules();
        app.upstream.add_rule(Rule::any().matching(odd).body("application/json", poison(&id)));
        let mut request = http.http.post(app.url("/producer/tasks")).bearer_auth("t").body(body.clone());
        if !matches!(field, Some(("content-type", _))) {
            request = request.header("content-type", "application/json");
        }
        if let Some((name, value)) = field {
            request = request.header(name, value);
        }
        app.send(request).await;
        for token in ["t", "other"] {
            let reply = app.retrieve(token, &id).await;
            assert_eq!((reply.status.as_u16(), reply.body), (200, of(&id)), "{token}: {body} {field:?}");
        }
    }
}

#[tokio::test]
async fn get_with_a_body_stores_nothing_and_leaves_no_bytes_behind() {
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", "victim", token_record("victim", "t", 40));
    app.upstream.add_rule(Rule::any().method("GET").body("application/json", poison("victim")));
    let body = r#"{"action":"retrieve","id":"victim"}"#;
    let mut peer = RawPeer::connect(app.address).await;
    let head = |method: &str| {
        format!(
            "{method} /producer/tasks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    peer.write(head("GET")).await;
    peer.read_until("\"poison\"").await;
    peer.read_until("}}").await;
    peer.write(head("POST")).await;
    let response = String::from_utf8(peer.read_until("}}").await.into()).unwrap();
    assert!(
        response.contains("200 OK") && response.ends_with(&token_record("victim", "t", 40)),
        "{response}"
    );
}
