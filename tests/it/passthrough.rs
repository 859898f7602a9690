//! Pass-through: every request that is not a lookup is forwarded unchanged, once, and nothing is
//! stored from it.

mod at_most_once;
mod deletes;
mod streaming;

use bytes::Bytes;
use refrain_simulator::{RecordedCall, Rule};

use crate::support::{RawPeer, RawResponse, TestApp, error_code, exchange, final_record, request, simulator};

const JSON: (&str, &str) = ("content-type", "application/json");
const BEARER: (&str, &str) = ("authorization", "Bearer t");
const BYPASS: &str = "refrain; fwd=bypass";
/// A request that starts work the client pays for.
const PAID: &str = "POST /producer/audios";

/// Sends a request that has to cause one upstream call. Returns the response and the call.
async fn forwarded(app: &TestApp, bytes: &[u8]) -> (RawResponse, RecordedCall) {
    let before = app.upstream.call_count();
    let response = app.raw(bytes).await;
    assert_eq!(app.upstream.call_count(), before + 1, "{}", String::from_utf8_lossy(bytes));
    (response, app.upstream.calls().pop().expect("a call"))
}

/// Method and target, headers, body.
type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, &'a [u8]);

#[tokio::test]
async fn anything_but_a_lookup_is_forwarded_byte_for_byte() {
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", "id", final_record("id", "x"));
    app.retrieve("t", "id").await;
    let odd = Bytes::from_static(b"an \xff odd\0 body");
    app.upstream.add_rule(Rule::any().respond_with(203, "text/x-odd", odd.clone()).header("x-answer", "1"));

    let look_up = r#"{"action":"retrieve","id":"id"}"#;
    let tasks = "POST /producer/tasks";
    let usual = [BEARER, JSON];
    let bodies: [&[u8]; 37] = [
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
        br#"{"action":"retrieve_batch","ids":["id","a"],"limit":1}"#,
        br#"{"action":"retrieve_batch","ids":["id"],"limit":12.0}"#,
        br#"{"action":"retrieve_batch","ids":["id"],"limit":12,"offset":1}"#,
        br#"{"action":"retrieve_batch","ids":["id"],"id":"id"}"#,
        br#"{"action":"retrieve_batch","ids":["id"],"type":"audios"}"#,
        br#"{"action":"retrieve","id":"id","limit":12}"#,
        br#"{"id":"id","offset":0}"#,
        br#"{"task_id":"id"}"#,
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
        "POST /captcha/tasks",
        "POST /minimax/tasks",
        "POST /unknown/tasks",
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
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "application/json; charset=latin1",
        "multipart/form-data",
    ] {
        cases.push((tasks, vec![BEARER, ("content-type", content_type)], look_up.as_bytes()));
    }
    for authorization in ["Basic dDp0", "Bearer", "Bearer ", "t", "Digest Bearer t"] {
        cases.push((tasks, vec![("authorization", authorization), JSON], look_up.as_bytes()));
    }
    cases.push((tasks, vec![JSON], look_up.as_bytes()));
    cases.push((tasks, vec![("payment-signature", "t"), JSON], look_up.as_bytes()));

    for (line, headers, body) in cases {
        let (response, call) = forwarded(&app, &request(line, &headers, body)).await;
        let case = format!("{line} {headers:?} {}", String::from_utf8_lossy(body));
        assert_eq!((response.status, &response.body), (203, &odd), "{case}");
        assert_eq!(
            (response.header("x-answer"), response.header("content-type")),
            (Some("1"), Some("text/x-odd")),
            "{case}"
        );
        assert_eq!(response.header("cache-status"), Some(BYPASS), "{case}");
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
async fn nothing_is_stored_from_a_bypassed_response() {
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", "id", final_record("id", "x"));
    let bodies = [
        r#"{"action":"retrieve","id":"id","x":1}"#,
        r#"{"action":"retrieve_batch","ids":["id"],"x":1}"#,
        r#"{"action":"retrieve_batch"}"#,
    ];
    for body in bodies {
        let (response, _) = forwarded(&app, &request("POST /producer/tasks", &[BEARER, JSON], body)).await;
        assert!(response.text().contains(&final_record("id", "x")), "{response:?}");
    }
    let look_up = r#"{"action":"retrieve","id":"id"}"#;
    let (response, _) = forwarded(&app, &request("POST /producer/tasks?", &[BEARER, JSON], look_up)).await;
    assert_eq!(response.text(), final_record("id", "x"));
    app.assert_not_stored("t", "id").await;
}

#[tokio::test]
async fn body_over_max_request_bytes_streams_through_whole() {
    let app = TestApp::spawn_with(|config| config.server.max_request_bytes = 1000).await;
    app.upstream.put_record("producer", "t", "id", final_record("id", "x"));
    let padded = |length: usize| {
        let body = r#"{"action":"retrieve","id":"id"}"#;
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    let at_limit = app.raw(request("POST /producer/tasks", &[BEARER, JSON], padded(1000))).await;
    assert_eq!(at_limit.header("x-cache"), Some("MISS"));
    for length in [1001, 300_000] {
        let body = padded(length);
        let (response, call) =
            forwarded(&app, &request("POST /producer/tasks", &[BEARER, JSON], &body)).await;
        assert_eq!(
            (response.header("cache-status"), response.text()),
            (Some(BYPASS), final_record("id", "x"))
        );
        assert_eq!((call.body_length, call.body), (length as u64, body.into()));
    }
    let chunked = format!(
        "POST /producer/tasks HTTP/1.1\r\nhost: h\r\nauthorization: Bearer t\r\ntransfer-encoding: chunked\r\n\r\n\
         7d0\r\n{}\r\n0\r\n\r\n",
        padded(2000)
    );
    let (response, call) = forwarded(&app, chunked.as_bytes()).await;
    assert_eq!((response.header("cache-status"), call.body_length), (Some(BYPASS), 2000));
    assert!(call.body_complete);
}

#[tokio::test]
async fn repeated_headers_keep_their_order_and_their_bytes() {
    let app = TestApp::spawn().await;
    let raw =
        b"HTTP/1.1 200 OK\r\nx-a: 1\r\nset-cookie: a=1\r\nx-b: 2\r\nx-a: 3\r\nset-cookie: b=2; Path=/\r\n\
                x-latin: caf\xe9\r\nvia: 1.0 far\r\ncontent-length: 2\r\n\r\nok";
    app.upstream.add_rule(Rule::any().raw(raw.to_vec()));
    let mut sent =
        b"GET /x?q=%20a+b&q=%c3%a9&e HTTP/1.1\r\nhost: h\r\nx-a: 1\r\nx-b: 2\r\nX-A: 3\r\nx-a: \r\n".to_vec();
    sent.extend(b"x-latin: caf\xe9\r\naccept: a\r\naccept: b\r\ncookie: a=1\r\ncookie: b=2\r\nx-spaces:   in  side  \r\n\r\n");
    let mut peer = RawPeer::connect(app.address).await;
    peer.write(&sent).await;
    let read = peer.read_until("\r\n\r\nok").await;
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
    assert_eq!(values("accept-encoding"), [""; 0], "nothing is added that changes the response");
    assert_eq!(values("user-agent"), [""; 0]);
    assert_eq!(values("content-length"), [""; 0]);
    assert_eq!(values("transfer-encoding"), [""; 0]);
}

#[tokio::test]
async fn hop_by_hop_headers_are_removed_and_via_and_host_are_set() {
    let app = TestApp::spawn().await;
    let raw = "HTTP/1.1 200 OK\r\nconnection: X-Hop, keep-alive\r\nx-hop: 1\r\nkeep-alive: timeout=9\r\n\
               proxy-connection: keep-alive\r\nupgrade: h2c\r\nx-kept: 1\r\nvia: 1.0 far\r\ncontent-length: 2\r\n\r\nok";
    app.upstream.add_rule(Rule::any().raw(raw));
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
    let (response, call) = forwarded(&app, &request(PAID, &headers, "{}")).await;
    let hop = ["connection", "x-hop", "x-hop-2", "keep-alive", "proxy-connection", "te", "upgrade"];
    for name in hop {
        assert_eq!(call.header(name), None, "{name} went upstream");
    }
    for name in hop.into_iter().filter(|name| *name != "connection") {
        assert_eq!(response.header(name), None, "{name} came down");
    }
    assert!(!response.header("connection").unwrap_or_default().to_ascii_lowercase().contains("x-hop"));
    assert_eq!((call.header("x-kept"), response.header("x-kept")), (Some("1"), Some("1")));
    assert_eq!(call.header("forwarded"), Some("for=1.2.3.4"));
    let via: Vec<String> = call
        .headers
        .iter()
        .filter(|(name, _)| name == "via")
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .collect();
    let via = via.join(", ");
    assert!(via.starts_with("1.0 near, 1.1 "), "{via}");
    assert!(response.header("via").unwrap_or_default().starts_with("1.0 far"), "{response:?}");
    let hosts: Vec<_> = call.headers.iter().filter(|(name, _)| name == "host").collect();
    assert_eq!(hosts.len(), 1);
    assert_eq!(call.header("host"), Some(app.upstream.address().to_string().as_str()));
}

#[tokio::test]
async fn no_form_of_the_target_selects_another_upstream() {
    let app = TestApp::spawn().await;
    let elsewhere = simulator().await;
    let other = elsewhere.address();
    app.upstream.add_rule(Rule::any().body("text/plain", "here"));
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
            let response = exchange(app.address, bytes).await;
            assert!(response.starts_with("HTTP/1.1 "), "{line}: {response}");
        }
    }
    assert_eq!(elsewhere.call_count(), 0);
    let address = app.upstream.address().to_string();
    assert!(app.upstream.calls().iter().all(|call| call.header("host") == Some(&address)));
    // Of a target in absolute form only the path is used, never the host.
    let (_, call) =
        forwarded(&app, &request(&format!("POST http://{other}/a//b?c=%2F"), &[BEARER], "{}")).await;
    assert_eq!(call.target, "/a//b?c=%2F");
    let (_, call) = forwarded(&app, &request("POST //host/x", &[BEARER], "{}")).await;
    assert_eq!(call.target, "//host/x");
}

#[tokio::test]
async fn redirect_is_relayed_and_not_followed() {
    let app = TestApp::spawn().await;
    let elsewhere = simulator().await;
    let location = format!("{}/producer/audios", elsewhere.base_url());
    for status in [301, 302, 303, 307, 308] {
        app.upstream.add_rule(
            Rule::any().respond_with(status, "text/plain", "there").header("location", &location).times(1),
        );
        let (response, _) = forwarded(&app, &request(PAID, &[BEARER], "{}")).await;
        assert_eq!(
            (response.status, response.header("location"), response.text().as_str()),
            (status, Some(&*location), "there")
        );
    }
    assert_eq!(elsewhere.call_count(), 0);
}

#[tokio::test]
async fn compressed_bodies_pass_unchanged_in_both_directions() {
    let app = TestApp::spawn().await;
    let plain = "the same again ".repeat(100);
    app.upstream.add_rule(Rule::any().body("application/json", plain.clone()).gzip());
    let packed = b"\x1f\x8b\x08\x00 no gzip at all".as_slice();
    let headers = [BEARER, ("content-encoding", "gzip"), ("accept-encoding", "gzip, br;q=0.1")];
    let (response, call) = forwarded(&app, &request(PAID, &headers, packed)).await;
    assert_eq!((&call.body[..], call.header("content-encoding")), (packed, Some("gzip")));
    assert_eq!(call.header("accept-encoding"), Some("gzip, br;q=0.1"));
    assert_eq!(response.header("content-encoding"), Some("gzip"));
    assert_eq!(&response.body[..2], b"\x1f\x8b");
    assert!(response.body.len() < plain.len() / 4);
    assert_eq!(response.header("content-length"), Some(response.body.len().to_string().as_str()));
}

#[tokio::test]
async fn head_options_and_empty_responses_keep_their_framing() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::path("/body").body("text/plain", "0123456789"));
    app.upstream.add_rule(Rule::path("/204").respond_with(204, "text/plain", ""));
    app.upstream.add_rule(Rule::path("/304").respond_with(304, "text/plain", "").header("etag", "\"x\""));
    let mut peer = RawPeer::connect(app.address).await;
    // All requests use one connection: a missing or extra body would corrupt the next response.
    peer.write(request("HEAD /body", &[BEARER], "")).await;
    let head = peer.read_response_to("HEAD").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
    for (line, status) in [("GET /204", 204), ("GET /304", 304), ("OPTIONS /producer/tasks", 204)] {
        peer.write(request(line, &[("origin", "https://a.example")], "")).await;
        let response = peer.read_response().await;
        assert_eq!(response.status, status, "{line}");
        assert_eq!(response.header("transfer-encoding"), None, "{line}");
        if line.starts_with("OPTIONS") {
            assert_eq!(response.header("access-control-allow-origin"), Some("*"));
        }
    }
    peer.write(request("GET /body", &[], "")).await;
    assert_eq!(peer.read_response().await.text(), "0123456789");
    let methods: Vec<String> = app.upstream.calls().into_iter().map(|call| call.method).collect();
    assert_eq!(methods, ["HEAD", "GET", "GET", "OPTIONS", "GET"]);
}

#[tokio::test]
async fn interim_responses_are_not_final_responses() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::path("/hints").raw(
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ));
    let (response, _) = forwarded(&app, &request("POST /hints", &[BEARER], "{}")).await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));

    app.upstream.add_rule(Rule::path("/body").body("text/plain", "done"));
    let bytes = request("POST /body", &[BEARER, ("expect", "100-continue")], "0123456789");
    let (head, body) = bytes.split_at(bytes.len() - 10);
    let mut peer = RawPeer::connect(app.address).await;
    peer.write(head).await;
    assert_eq!(peer.read_head().await.status(), 100);
    peer.write(body).await;
    assert_eq!(peer.read_response().await.text(), "done");
    assert_eq!(app.upstream.calls().pop().expect("a call").body, "0123456789");
}

#[tokio::test]
async fn request_that_was_forwarded_before_is_a_508() {
    let app = TestApp::spawn().await;
    let (_, call) = forwarded(&app, &request("GET /x", &[("via", "1.0 near, 1.1 refrain")], "")).await;
    let via = call.headers.iter().rfind(|(name, _)| name == "via").expect("via");
    let via = String::from_utf8_lossy(&via.1).into_owned();
    for line in ["GET /x", "POST /producer/tasks"] {
        let response = app.raw(request(line, &[BEARER, ("via", &format!("1.1 other, {via}"))], "")).await;
        assert_eq!((response.status, error_code(&response.body).as_str()), (508, "bad_request"), "{line}");
    }
    assert_eq!(app.upstream.call_count(), 1);
}

#[tokio::test]
async fn max_forwards_of_options_is_obeyed() {
    let app = TestApp::spawn().await;
    let last = app.raw(request("OPTIONS /x", &[("max-forwards", "0")], "")).await;
    assert_eq!((last.status, last.header("allow").is_some()), (204, true), "{last:?}");
    assert_eq!(app.upstream.call_count(), 0);
    let (_, call) = forwarded(&app, &request("OPTIONS /x", &[("max-forwards", "2")], "")).await;
    assert_eq!(call.header("max-forwards"), Some("1"));
    let (_, call) = forwarded(&app, &request("GET /x", &[("max-forwards", "0")], "")).await;
    assert_eq!(call.header("max-forwards"), Some("0"), "only for OPTIONS");
}
