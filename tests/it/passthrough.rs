//! What is not exactly a look-up: forwarded as it came, once, and nothing is learnt from the answer.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use refrain_simulator::{RecordedCall, Rule};
use serde_json::json;

use crate::support::{PATIENCE, Program, RawAnswer, TestApp, Wire, finished, request, simulator};

const JSON: (&str, &str) = ("content-type", "application/json");
const BEARER: (&str, &str) = ("authorization", "Bearer t");
const BYPASS: &str = "refrain; fwd=bypass";
const PAID: &str = "POST /producer/audios";

/// What is sent, and what the upstream saw of it.
async fn forwarded(app: &TestApp, bytes: &[u8]) -> (RawAnswer, RecordedCall) {
    let before = app.upstream.call_count();
    let answer = app.raw(bytes).await;
    assert_eq!(app.upstream.call_count(), before + 1, "{}", String::from_utf8_lossy(bytes));
    (answer, app.upstream.calls().pop().expect("a call"))
}

/// Method and target, headers, body.
type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, &'a [u8]);

#[tokio::test]
async fn whatever_is_not_exactly_a_look_up_is_forwarded_and_answered_byte_for_byte() {
    let app = TestApp::spawn().await;
    app.upstream.put_raw("producer", "t", "id", finished("id", "x"));
    app.retrieve("t", "id").await;
    let odd = b"an \xff odd\0 answer".to_vec();
    app.upstream.script(Rule::any().status_body(203, "text/x-odd", odd.clone()).header("x-answer", "1"));

    let look_up = r#"{"action":"retrieve","id":"id"}"#;
    let tasks = "POST /producer/tasks";
    let usual = [BEARER, JSON];
    let bodies: [&[u8]; 30] = [
        br#"{"action":"retrieve","id":"id","trace_id":"x"}"#,
        br#"{"action":"retrieve","id":"id","x":null}"#,
        br#"{"action":"retrieve","trace_id":"id"}"#,
        br#"{"action":"retrieve","task_id":"id"}"#,
        br#"{"action":"retrieve","id":"id","id":"id"}"#,
        br#"{"action":"delete","action":"retrieve","id":"id"}"#,
        br#"{"action":"retrieve","id":"id","\u0069d":"other"}"#,
        br#"{"action":"retrieve","id":5}"#,
        br#"{"action":"retrieve","id":null}"#,
        br#"{"action":"retrieve","id":["id"]}"#,
        br#"{"action":"retrieve","ids":["id"]}"#,
        br#"{"action":"retrieve"}"#,
        br#"{"action":"Retrieve","id":"id"}"#,
        br#"{"Action":"retrieve","id":"id"}"#,
        br#"{"action":"retrieve ","id":"id"}"#,
        br#"{"action":"retrieve_batch","ids":[]}"#,
        br#"{"action":"retrieve_batch","ids":["id",5]}"#,
        br#"{"action":"retrieve_batch","ids":["id",null]}"#,
        br#"{"action":"retrieve_batch","ids":"id"}"#,
        br#"{"action":"retrieve_batch","id":"id"}"#,
        br#"{"action":"retrieve_batch","ids":["id"],"limit":5}"#,
        br#"{"action":"retrieve_batch","limit":5,"offset":0}"#,
        br#"[{"action":"retrieve","id":"id"}]"#,
        br#"{"action":"retrieve","id":"id"}x"#,
        br#"{"action":"retrieve","id":"id""#,
        br#"{"action":"retrieve","id":"id",}"#,
        b"\xef\xbb\xbf{\"action\":\"retrieve\",\"id\":\"id\"}",
        b"{\"action\":\"retrieve\",\"id\":\"\xff\"}",
        br#"{"action":"retrieve","id":"\ud800"}"#,
        b"",
    ];
    let mut cases: Vec<Case<'_>> = bodies.into_iter().map(|body| (tasks, usual.to_vec(), body)).collect();
    for line in [
        "PUT /producer/tasks",
        "PATCH /producer/tasks",
        "DELETE /producer/tasks",
        "GET /producer/tasks",
        "post /producer/tasks",
        "POST /producer/tasks/",
        "POST /producer/tasks?",
        "POST /producer/tasks?x=1",
        "POST /producer/%74asks",
        "POST /%70roducer/tasks",
        "POST /producer%2ftasks",
        "POST //producer/tasks",
        "POST /producer//tasks",
        "POST /Producer/tasks",
        "POST /producer/Tasks",
        "POST /x/producer/tasks",
        "POST /producer/tasks/id",
        "POST /suno/tasks",
        "POST /producer/tasks;x",
        "POST /",
    ] {
        cases.push((line, usual.to_vec(), look_up.as_bytes()));
    }
    for more in [
        ("cookie", "a=b"),
        ("cookie", ""),
        ("x-api-key", "k"),
        ("payment-signature", "p"),
        ("content-encoding", "gzip"),
        ("content-encoding", "br"),
        ("authorization", "Bearer t"),
        ("authorization", "Bearer other"),
    ] {
        cases.push((tasks, vec![BEARER, JSON, more], look_up.as_bytes()));
    }
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "multipart/form-data"]
    {
        cases.push((tasks, vec![BEARER, ("content-type", content_type)], look_up.as_bytes()));
    }
    for authorization in ["Basic dDp0", "Bearer", "Bearer ", "t", "Digest Bearer t"] {
        cases.push((tasks, vec![("authorization", authorization), JSON], look_up.as_bytes()));
    }
    cases.push((tasks, vec![JSON], look_up.as_bytes()));
    cases.push((tasks, vec![("payment-signature", "t"), JSON], look_up.as_bytes()));

    for (line, headers, body) in cases {
        let (answer, call) = forwarded(&app, &request(line, &headers, body)).await;
        let case = format!("{line} {headers:?} {}", String::from_utf8_lossy(body));
        assert_eq!((answer.status, &answer.body), (203, &odd), "{case}");
        assert_eq!((answer.header("x-answer"), answer.header("content-type")), ("1", "text/x-odd"), "{case}");
        assert_eq!(answer.header("cache-status"), BYPASS, "{case}");
        assert_eq!(format!("{} {}", call.method, call.target), line, "{case}");
        assert_eq!(call.body, body, "{case}");
        for (name, value) in headers {
            let found =
                call.headers.iter().any(|(found, sent)| found == name && sent == value.trim().as_bytes());
            assert!(found, "{name}: {case}");
        }
    }
    app.upstream.clear_rules();
    app.assert_stored("t", "id").await;
}

#[tokio::test]
async fn nothing_is_learnt_from_what_passes_through() {
    let app = TestApp::spawn().await;
    app.upstream.put_raw("producer", "t", "id", finished("id", "x"));
    let bodies = [
        r#"{"action":"retrieve","id":"id","x":1}"#,
        r#"{"action":"retrieve_batch","ids":["id"],"x":1}"#,
        r#"{"action":"retrieve_batch"}"#,
    ];
    for body in bodies {
        let (answer, _) = forwarded(&app, &request("POST /producer/tasks", &[BEARER, JSON], body)).await;
        assert!(answer.text().contains(&finished("id", "x")), "{answer:?}");
    }
    let look_up = r#"{"action":"retrieve","id":"id"}"#;
    let (answer, _) = forwarded(&app, &request("POST /producer/tasks?", &[BEARER, JSON], look_up)).await;
    assert_eq!(answer.text(), finished("id", "x"));
    app.assert_not_stored("t", "id").await;
}

#[tokio::test]
async fn a_body_over_max_request_bytes_streams_through_whole() {
    let app = TestApp::spawn_with(|config| config.server.max_request_bytes = 1000).await;
    app.upstream.put_raw("producer", "t", "id", finished("id", "x"));
    let padded = |length: usize| {
        let body = r#"{"action":"retrieve","id":"id"}"#;
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    let at_limit = app.raw(request("POST /producer/tasks", &[BEARER, JSON], padded(1000))).await;
    assert_eq!(at_limit.header("x-cache"), "MISS");
    for length in [1001, 300_000] {
        let body = padded(length);
        let (answer, call) = forwarded(&app, &request("POST /producer/tasks", &[BEARER, JSON], &body)).await;
        assert_eq!((answer.header("cache-status"), answer.text()), (BYPASS, finished("id", "x")));
        assert_eq!((call.body_length, call.body), (length as u64, body.into()));
    }
    let chunked = format!(
        "POST /producer/tasks HTTP/1.1\r\nhost: h\r\nauthorization: Bearer t\r\ntransfer-encoding: chunked\r\n\r\n\
         7d0\r\n{}\r\n0\r\n\r\n",
        padded(2000)
    );
    let (answer, call) = forwarded(&app, chunked.as_bytes()).await;
    assert_eq!((answer.header("cache-status"), call.body_length), (BYPASS, 2000));
    assert!(call.body_complete);
}

#[tokio::test]
async fn repeated_fields_keep_their_order_and_odd_values_their_bytes() {
    let app = TestApp::spawn().await;
    let raw =
        b"HTTP/1.1 200 OK\r\nx-a: 1\r\nset-cookie: a=1\r\nx-b: 2\r\nx-a: 3\r\nset-cookie: b=2; Path=/\r\n\
                x-latin: caf\xe9\r\nvia: 1.0 far\r\ncontent-length: 2\r\n\r\nok";
    app.upstream.script(Rule::any().raw(raw.to_vec()));
    let mut sent =
        b"GET /x?q=%20a+b&q=%c3%a9&e HTTP/1.1\r\nhost: h\r\nx-a: 1\r\nx-b: 2\r\nX-A: 3\r\nx-a: \r\n".to_vec();
    sent.extend(b"x-latin: caf\xe9\r\naccept: a\r\naccept: b\r\ncookie: a=1\r\ncookie: b=2\r\nx-spaces:   in  side  \r\n\r\n");
    let mut wire = Wire::connect(app.address).await;
    wire.write(&sent).await;
    let read = wire.read_until("\r\n\r\nok").await;
    let has = |needle: &[u8]| read.windows(needle.len()).any(|window| window == needle);
    assert!(has(b"caf\xe9"));
    let text = String::from_utf8_lossy(&read).to_ascii_lowercase();
    let values = |name: &str| -> Vec<&str> {
        text.split("\r\n").filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
    };
    assert_eq!((values("x-a"), values("set-cookie")), (vec!["1", "3"], vec!["a=1", "b=2; path=/"]));

    let call = app.upstream.calls().pop().expect("a call");
    assert_eq!(call.target, "/x?q=%20a+b&q=%c3%a9&e");
    let values = |name: &str| -> Vec<String> {
        let named = call.headers.iter().filter(|(found, _)| found == name);
        named.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    };
    assert_eq!(values("x-a"), ["1", "3", ""]);
    assert_eq!(values("accept"), ["a", "b"]);
    assert_eq!(values("cookie"), ["a=1", "b=2"]);
    assert_eq!(values("x-spaces"), ["in  side"]);
    assert!(call.headers.iter().any(|(name, value)| name == "x-latin" && value == b"caf\xe9"));
    assert_eq!(values("accept-encoding"), [""; 0], "nothing is added that changes the answer");
    assert_eq!(values("user-agent"), [""; 0]);
    assert_eq!(values("content-length"), [""; 0]);
    assert_eq!(values("transfer-encoding"), [""; 0]);
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_hop_and_via_and_host_are_set() {
    let app = TestApp::spawn().await;
    let raw = "HTTP/1.1 200 OK\r\nconnection: X-Hop, keep-alive\r\nx-hop: 1\r\nkeep-alive: timeout=9\r\n\
               proxy-connection: keep-alive\r\nupgrade: h2c\r\nx-kept: 1\r\nvia: 1.0 far\r\ncontent-length: 2\r\n\r\nok";
    app.upstream.script(Rule::any().raw(raw));
    let headers = [
        BEARER,
        ("connection", "keep-alive, X-Hop"),
        ("connection", "x-hop-2"),
        ("x-hop", "1"),
        ("x-hop-2", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip;q=0.5"),
        ("upgrade", "websocket"),
        ("x-kept", "1"),
        ("via", "1.0 near"),
        ("forwarded", "for=1.2.3.4"),
    ];
    let (answer, call) = forwarded(&app, &request(PAID, &headers, "{}")).await;
    let hop = ["connection", "x-hop", "x-hop-2", "keep-alive", "proxy-connection", "te", "upgrade"];
    for name in hop {
        assert_eq!(call.header(name), None, "{name} went upstream");
    }
    for name in hop.into_iter().filter(|name| *name != "connection") {
        assert_eq!(answer.header(name), "", "{name} came down");
    }
    assert!(!answer.header("connection").to_ascii_lowercase().contains("x-hop"));
    assert_eq!((call.header("x-kept"), answer.header("x-kept")), (Some("1"), "1"));
    assert_eq!(call.header("forwarded"), Some("for=1.2.3.4"));
    let via: Vec<String> = call
        .headers
        .iter()
        .filter(|(name, _)| name == "via")
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .collect();
    let via = via.join(", ");
    assert!(via.starts_with("1.0 near, 1.1 "), "{via}");
    assert!(answer.header("via").starts_with("1.0 far"), "{answer:?}");
    let hosts: Vec<_> = call.headers.iter().filter(|(name, _)| name == "host").collect();
    assert_eq!(hosts.len(), 1);
    assert_eq!(call.header("host"), Some(app.upstream.address().to_string().as_str()));
}

#[tokio::test]
async fn no_spelling_of_the_target_chooses_another_upstream() {
    let app = TestApp::spawn().await;
    let elsewhere = simulator().await;
    let other = elsewhere.address();
    app.upstream.script(Rule::any().body("text/plain", "here"));
    let lines = [
        format!("POST http://{other}/producer/audios"),
        format!("POST https://{other}/producer/audios"),
        format!("POST http://user@{other}/producer/audios"),
        format!("POST //{other}/producer/audios"),
        format!("POST /{other}/producer/audios"),
        format!("POST /@{other}/producer/audios"),
        format!("POST /http://{other}/producer/audios"),
        format!("CONNECT {other}"),
    ];
    for line in lines {
        for host in ["proxy.test".to_owned(), other.to_string()] {
            let bytes = format!(
                "{line} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer t\r\ncontent-length: 2\r\nx-forwarded-host: {other}\r\nconnection: close\r\n\r\n{{}}"
            );
            let answer = Wire::exchange(app.address, bytes).await;
            assert!(answer.starts_with("HTTP/1.1 "), "{line}: {answer}");
        }
    }
    assert_eq!(elsewhere.call_count(), 0);
    let address = app.upstream.address().to_string();
    assert!(app.upstream.calls().iter().all(|call| call.header("host") == Some(&address)));
    // An absolute form is a look-up or not by its path alone; never is its host asked.
    let (_, call) =
        forwarded(&app, &request(&format!("POST http://{other}/a//b?c=%2F"), &[BEARER], "{}")).await;
    assert_eq!(call.target, "/a//b?c=%2F");
    let (_, call) = forwarded(&app, &request("POST //host/x", &[BEARER], "{}")).await;
    assert_eq!(call.target, "//host/x");
}

fn delete(id: &str) -> String {
    json!({"action": "delete", "id": id, "user_id": "u", "application_id": "p"}).to_string()
}

async fn send_delete(app: &TestApp, token: &str, id: &str) -> RawAnswer {
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", authorization.as_str()), JSON];
    let sent = request("POST /producer/tasks", &headers, delete(id));
    let (answer, call) = forwarded(app, &sent).await;
    assert_eq!(call.body, delete(id));
    assert_eq!(answer.header("cache-status"), BYPASS);
    answer
}

#[tokio::test]
async fn a_confirmed_delete_forgets_the_task_for_all() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.upstream.share(&id, "u");
    for token in ["t", "u"] {
        app.retrieve(token, &id).await;
        app.assert_stored(token, &id).await;
    }
    let answer = send_delete(&app, "t", &id).await;
    assert_eq!((answer.status, answer.text()), (200, json!({"id": id, "deleted": true}).to_string()));
    for token in ["t", "u"] {
        let before = app.calls();
        let reply = app.retrieve(token, &id).await;
        assert_eq!((reply.x_cache(), &reply.body[..]), ("MISS", &b"{}"[..]));
        assert_eq!(app.calls(), before + 1);
    }
    let app = app.restart().await;
    assert_eq!(app.retrieve("t", &id).await.body, "{}");
}

#[tokio::test]
async fn a_delete_that_is_not_confirmed_forgets_nothing() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let padding = "x".repeat(64 << 10);
    let rule = || Rule::any().action("delete");
    let answers = [
        (200, format!(r#"{{"id":"{id}","deleted":false}}"#)),
        (200, r#"{"id":"other","deleted":true}"#.to_owned()),
        (200, r#"{"deleted":true}"#.to_owned()),
        (200, format!(r#"{{"id":"{id}","deleted":"true"}}"#)),
        (200, format!(r#"{{"id":"{id}"}}"#)),
        (200, "<!doctype html>".to_owned()),
        (403, format!(r#"{{"id":"{id}","deleted":true}}"#)),
        (500, format!(r#"{{"id":"{id}","deleted":true}}"#)),
        (200, format!(r#"{{"id":"{id}","deleted":true,"more":"{padding}"}}"#)),
    ];
    for (status, body) in answers {
        app.upstream.script(rule().status_body(status, "application/json", body.clone()).times(1));
        let answer = send_delete(&app, "t", &id).await;
        assert!(answer.complete);
        assert_eq!((answer.status, answer.text()), (status, body), "relayed as it is");
        app.assert_stored("t", &id).await;
    }
    // Cut off, it is no confirmation either.
    app.upstream.script(
        rule().body("application/json", format!(r#"{{"id":"{id}","deleted":true}}    "#)).cut_after(60),
    );
    let answer = app.raw(request("POST /producer/tasks", &[BEARER, JSON], delete(&id))).await;
    assert!(!answer.complete || answer.status == 502, "{answer:?}");
    app.assert_stored("t", &id).await;
}

#[tokio::test]
async fn a_delete_with_a_key_too_many_or_without_the_right_forgets_nothing() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let confirmed = format!(r#"{{"id":"{id}","deleted":true}}"#);
    app.upstream.script(Rule::any().action("delete").body("application/json", confirmed.clone()));
    assert_eq!(send_delete(&app, "stranger", &id).await.text(), confirmed);
    app.assert_stored("t", &id).await;
    send_delete(&app, "t", &id).await;
    app.assert_not_stored("t", &id).await;
}

#[tokio::test]
async fn an_answer_whose_call_began_before_a_delete_is_relayed_and_not_stored() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.upstream.share(&id, "late");
    let text = app.upstream.task_text(&id).expect("known");
    app.retrieve("t", &id).await;
    let (rule, hold) = Rule::look_ups().token("late").times(1).hold();
    app.upstream.script(rule);
    // The upstream says that it is deleted, and shows it all the same to the call that came first.
    let confirmed = format!(r#"{{"id":"{id}","deleted":true}}"#);
    app.upstream.script(Rule::any().action("delete").body("application/json", confirmed));
    let (late, ()) = tokio::join!(app.retrieve("late", &id), async {
        hold.wait_for_held(1).await;
        send_delete(&app, "t", &id).await;
        hold.release();
    });
    assert_eq!((late.status.as_u16(), &late.body), (200, &text));
    assert!(!late.header("cache-status").contains("stored"), "{late:?}");
    for token in ["late", "t"] {
        app.assert_not_stored(token, &id).await;
        app.assert_stored(token, &id).await;
    }
}

#[tokio::test]
async fn the_first_line_of_a_stream_is_there_before_the_second_was_sent() {
    let app = TestApp::spawn().await;
    let never = Duration::from_secs(3600);
    app.upstream.script(Rule::path("/a").ndjson(["{\"n\":1}", "{\"n\":2}"], never));
    app.upstream.script(Rule::path("/b").sse(["one", "two"], never));
    for (path, content_type, expected) in
        [("/a", "application/x-ndjson", "{\"n\":1}\n"), ("/b", "text/event-stream", "data: one\n\n")]
    {
        let mut wire = Wire::connect(app.address).await;
        let start = Instant::now();
        wire.write(request(&format!("POST {path}"), &[BEARER], "{}")).await;
        let (status, headers) = wire.head().await;
        assert_eq!(status, 200);
        assert!(headers.contains(&("content-type".into(), content_type.into())), "{headers:?}");
        assert_eq!(wire.chunk().await.as_deref(), Some(expected.as_bytes()));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn an_endless_stream_ends_upstream_within_a_second_of_the_clients_leaving() {
    let app = TestApp::spawn().await;
    app.upstream.script(Rule::any().ndjson(["{\"n\":1}"], Duration::from_millis(5)).endless());
    let mut wire = Wire::connect(app.address).await;
    wire.write(request(PAID, &[BEARER], "{}")).await;
    wire.head().await;
    for _ in 0..50 {
        assert_eq!(wire.chunk().await.as_deref(), Some(&b"{\"n\":1}\n"[..]));
    }
    drop(wire);
    let left = Instant::now();
    app.upstream.wait_until("the call was given up", |upstream| upstream.aborted() == 1).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_ends_the_upstream_call_within_a_second() {
    let app = TestApp::spawn().await;
    app.upstream.script(Rule::any().black_hole());
    let mut wire = Wire::connect(app.address).await;
    wire.write(request(PAID, &[BEARER], "{}")).await;
    app.upstream.wait_for_calls(1).await;
    drop(wire);
    let left = Instant::now();
    app.upstream.wait_until("the call was given up", |upstream| upstream.aborted() == 1).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());

    // In the middle of its own upload.
    app.upstream.clear_rules();
    let mut wire = Wire::connect(app.address).await;
    let bytes = request(PAID, &[BEARER], vec![b'x'; 500_000]);
    wire.write(&bytes[..bytes.len() / 2]).await;
    app.upstream.wait_until("the upload began", |upstream| upstream.open_connections() >= 1).await;
    drop(wire);
    let left = Instant::now();
    app.upstream.wait_until("the upload was given up", |upstream| upstream.open_connections() == 0).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    assert_eq!(
        app.upstream.call_count(),
        1 + usize::from(app.upstream.aborted() == 2),
        "sent once if at all"
    );
    assert!(
        app.upstream.calls().iter().skip(1).all(|call| !call.body_complete),
        "never made to look complete"
    );
}

#[tokio::test]
async fn a_stream_that_is_cut_upstream_never_looks_complete() {
    let app = TestApp::spawn().await;
    let pieces = vec!["{\"n\":1}\n".into(), "{\"n\":\"\u{20ac}".as_bytes()[..7].to_vec().into()];
    let rules = [
        Rule::any().stream("application/x-ndjson", pieces, Duration::from_millis(5)).unfinished(),
        Rule::any().body("application/json", "0123456789").cut_after(4),
        Rule::any().body("application/json", "0123456789").reset_after(4),
        Rule::any().body("application/json", "0123456789").wrong_length(4000),
        Rule::any().body("application/json", "0123456789").unfinished(),
    ];
    for (number, rule) in rules.into_iter().enumerate() {
        app.upstream.script(rule.times(1));
        let (answer, _) = forwarded(&app, &request(PAID, &[BEARER], "{}")).await;
        assert_eq!((answer.status, answer.complete), (200, false), "rule {number}: {answer:?}");
    }
}

#[tokio::test]
async fn failures_before_the_headers_are_told_in_the_error_shape_and_never_tried_again() {
    let app = TestApp::spawn().await;
    let rules = [
        Rule::any().reset_before_headers(),
        Rule::any().close_without_answer(),
        Rule::any().raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok"),
        Rule::any().raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"),
        Rule::any().raw("HTTP/9.9 200 OK\r\n\r\n"),
        Rule::any().raw("hello\r\n\r\n"),
        Rule::any().raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    ];
    for (number, rule) in rules.into_iter().enumerate() {
        app.upstream.script(rule.times(1));
        let (answer, _) = forwarded(&app, &request(PAID, &[BEARER], "{}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (502, "api_error"), "rule {number}: {answer:?}");
        let text = answer.text();
        assert!(text.contains(r#""success":false"#) && text.contains(r#""trace_id":""#), "{text}");
        assert!(!text.contains(&app.upstream.address().to_string()), "{text}");
    }
    assert_eq!(app.upstream.paid_starts(), 7);
    app.upstream.stop().await;
    let answer = app.raw(request(PAID, &[BEARER], "{}")).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "api_error"));
    app.upstream.resume().await.expect("the port is free again");
    let (answer, _) = forwarded(&app, &request(PAID, &[BEARER], r#"{"async":true}"#)).await;
    assert_eq!(answer.status, 200, "it heals at once: {answer:?}");
}

#[tokio::test]
async fn a_paid_call_is_sent_once_whatever_comes_back() {
    let app = TestApp::spawn().await;
    for (status, code) in [
        (500, "api_error"),
        (503, "api_error"),
        (504, "timeout"),
        (429, "too_many_requests"),
        (408, "timeout"),
        (409, "x"),
    ] {
        app.upstream.script(Rule::any().status(status, code).retry_after("1").times(1));
        let (answer, _) = forwarded(&app, &request(PAID, &[BEARER], "{}")).await;
        assert_eq!(
            (answer.status, answer.code().as_str(), answer.header("retry-after")),
            (status, code, "1")
        );
        assert_eq!(answer.header("cache-status"), BYPASS);
    }
    assert_eq!(app.upstream.paid_starts(), 6);
}

#[tokio::test]
async fn a_paid_call_on_a_stale_pooled_connection_is_never_sent_twice() {
    let app = TestApp::spawn().await;
    app.upstream.script(Rule::any().body("application/json", "{}").close_afterwards());
    for sent in 1..=30 {
        let answer = app.raw(request(PAID, &[BEARER], "{}")).await;
        assert!(matches!(answer.status, 200 | 502), "{answer:?}");
        assert!(app.upstream.paid_starts() <= sent, "one request, one call");
    }
    // Closed by force in the middle of the second request of a connection.
    app.upstream.clear_rules();
    app.upstream.clear_calls();
    app.upstream.script(Rule::any().body("application/json", "{}").times(1));
    app.upstream.script(Rule::any().reset_before_headers());
    app.raw(request(PAID, &[BEARER], "{}")).await;
    let answer = app.raw(request(PAID, &[BEARER], "{}")).await;
    assert_eq!((answer.status, app.upstream.call_count()), (502, 2));
}

#[tokio::test]
async fn a_redirect_is_relayed_and_not_followed() {
    let app = TestApp::spawn().await;
    let elsewhere = simulator().await;
    let location = format!("{}/producer/audios", elsewhere.base_url());
    for status in [301, 302, 303, 307, 308] {
        app.upstream.script(
            Rule::any().status_body(status, "text/plain", "there").header("location", &location).times(1),
        );
        let (answer, _) = forwarded(&app, &request(PAID, &[BEARER], "{}")).await;
        assert_eq!(
            (answer.status, answer.header("location"), answer.text().as_str()),
            (status, &*location, "there")
        );
    }
    assert_eq!(elsewhere.call_count(), 0);
}

#[tokio::test]
async fn compressed_bodies_are_untouched_both_ways() {
    let app = TestApp::spawn().await;
    let plain = "the same again ".repeat(100);
    app.upstream.script(Rule::any().body("application/json", plain.clone()).gzip());
    let packed = b"\x1f\x8b\x08\x00 no gzip at all".as_slice();
    let headers = [BEARER, ("content-encoding", "gzip"), ("accept-encoding", "gzip, br;q=0.1")];
    let (answer, call) = forwarded(&app, &request(PAID, &headers, packed)).await;
    assert_eq!((&call.body[..], call.header("content-encoding")), (packed, Some("gzip")));
    assert_eq!(call.header("accept-encoding"), Some("gzip, br;q=0.1"));
    assert_eq!(answer.header("content-encoding"), "gzip");
    assert_eq!(&answer.body[..2], b"\x1f\x8b");
    assert!(answer.body.len() < plain.len() / 4);
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
}

#[tokio::test]
async fn head_options_and_answers_without_a_body_keep_their_shape() {
    let app = TestApp::spawn().await;
    app.upstream.script(Rule::path("/body").body("text/plain", "0123456789"));
    app.upstream.script(Rule::path("/204").status_body(204, "text/plain", ""));
    app.upstream.script(Rule::path("/304").status_body(304, "text/plain", "").header("etag", "\"x\""));
    let mut wire = Wire::connect(app.address).await;
    // All on one connection: a body too many or too few would spoil the next answer.
    wire.write(request("HEAD /body", &[BEARER], "")).await;
    let head = wire.answer_to("HEAD").await;
    assert_eq!((head.status, head.header("content-length")), (200, "10"));
    for (line, status) in [("GET /204", 204), ("GET /304", 304), ("OPTIONS /producer/tasks", 204)] {
        wire.write(request(line, &[("origin", "https://a.example")], "")).await;
        let answer = wire.answer().await;
        assert_eq!(answer.status, status, "{line}");
        assert_eq!(answer.header("transfer-encoding"), "", "{line}");
        if line.starts_with("OPTIONS") {
            assert_eq!(answer.header("access-control-allow-origin"), "*");
        }
    }
    wire.write(request("GET /body", &[], "")).await;
    assert_eq!(wire.answer().await.text(), "0123456789");
    let methods: Vec<String> = app.upstream.calls().into_iter().map(|call| call.method).collect();
    assert_eq!(methods, ["HEAD", "GET", "GET", "OPTIONS", "GET"]);
}

#[tokio::test]
async fn interim_answers_are_no_answers() {
    let app = TestApp::spawn().await;
    app.upstream.script(Rule::path("/hints").raw(
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ));
    let (answer, _) = forwarded(&app, &request("POST /hints", &[BEARER], "{}")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));

    app.upstream.script(Rule::path("/body").body("text/plain", "done"));
    let bytes = request("POST /body", &[BEARER, ("expect", "100-continue")], "0123456789");
    let (head, body) = bytes.split_at(bytes.len() - 10);
    let mut wire = Wire::connect(app.address).await;
    wire.write(head).await;
    assert_eq!(wire.head().await.0, 100);
    wire.write(body).await;
    assert_eq!(wire.answer().await.text(), "done");
    assert_eq!(app.upstream.calls().pop().expect("a call").body, "0123456789");
}

/// An upstream that reads a body without keeping it, and answers with its length.
fn sink() -> (std::net::SocketAddr, std::thread::JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head");
            head.extend(byte);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let length: u64 = length.expect("a length").parse().expect("a number");
        let read =
            std::io::copy(&mut Read::by_ref(&mut stream).take(length), &mut std::io::sink()).expect("a body");
        let body = read.to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).expect("written");
    });
    (address, thread)
}

/// The most memory that a process ever had, in bytes.
fn peak_memory(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_and_a_large_download_take_no_memory() {
    const LENGTH: u64 = 200 << 20;
    const ALLOWED: u64 = 24 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let (address, thread) = sink();
    let program = Program::serve(&format!("http://{address}"), folder.path(), &[]);
    let before = peak_memory(program.id());
    let client = program.address;
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(client).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let head = format!("POST /producer/upload HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("written");
        std::io::copy(&mut std::io::repeat(b'x').take(LENGTH), &mut stream).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    })
    .await
    .expect("no panic");
    assert!(answer.ends_with(&LENGTH.to_string()), "{answer}");
    thread.join().expect("no panic");
    let grown = peak_memory(program.id()) - before;
    assert!(grown < ALLOWED, "{grown} bytes for an upload");

    let upstream = simulator().await;
    upstream.script(Rule::any().large(LENGTH));
    let folder = tempfile::tempdir().expect("a folder");
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let before = peak_memory(program.id());
    let client = program.address;
    let read = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(client).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.write_all(b"GET /large HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").expect("written");
        std::io::copy(&mut stream, &mut std::io::sink()).expect("an answer")
    })
    .await
    .expect("no panic");
    assert!(read > LENGTH, "{read}");
    let grown = peak_memory(program.id()) - before;
    assert!(grown < ALLOWED, "{grown} bytes for a download");
}

#[tokio::test]
async fn both_directions_of_one_exchange_stream_at_once() {
    let app = TestApp::spawn().await;
    app.upstream.script(Rule::path("/mirror").mirror());
    let mut wire = Wire::connect(app.address).await;
    wire.write("POST /mirror HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    assert_eq!(wire.head().await.0, 200);
    assert_eq!(wire.chunk().await.as_deref(), Some(&b"first"[..]));
    wire.write("6\r\nsecond\r\n").await;
    assert_eq!(wire.chunk().await.as_deref(), Some(&b"second"[..]));
    wire.write("0\r\n\r\n").await;
    assert_eq!(wire.chunk().await.as_deref(), Some(&b""[..]));
}

#[tokio::test]
async fn an_early_answer_leaves_no_bytes_for_the_next_request() {
    let app = TestApp::spawn().await;
    app.upstream.script(Rule::path("/early").status(413, "bad_request").before_body());
    app.upstream.script(Rule::path("/next").body("text/plain", "next"));
    let inner = "POST /inner HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n".repeat(5000);
    for _ in 0..5 {
        let mut wire = Wire::connect(app.address).await;
        let bytes = request("POST /early", &[BEARER], &inner);
        let (first, rest) = bytes.split_at(200);
        wire.write(first).await;
        let answer = wire.answer().await;
        assert_eq!(answer.status, 413);
        // The connection may be closed by now, which is as good.
        use tokio::io::AsyncWriteExt;
        let _ = wire.stream.write_all(rest).await;
        let mut next = Wire::connect(app.address).await;
        next.write(request("GET /next", &[], "")).await;
        assert_eq!(next.answer().await.text(), "next");
    }
    assert!(app.upstream.calls().iter().all(|call| call.path() != "/inner"));
}
