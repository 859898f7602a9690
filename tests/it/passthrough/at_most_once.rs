//! At most once: no request that starts work is ever sent twice.

use refrain_simulator::Rule;

use super::{BEARER, BYPASS, PAID, forwarded};
use crate::support::{TestApp, error_code, request};

#[tokio::test]
async fn failure_before_the_headers_is_a_502_and_is_not_retried() {
    let app = TestApp::spawn().await;
    let rules = [
        Rule::any().reset_before_response(),
        Rule::any().close_without_response(),
        Rule::any().raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok"),
        Rule::any().raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"),
        Rule::any().raw("HTTP/9.9 200 OK\r\n\r\n"),
        Rule::any().raw("hello\r\n\r\n"),
        Rule::any().raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    ];
    for (number, rule) in rules.into_iter().enumerate() {
        app.upstream.add_rule(rule.times(1));
        let (response, _) = forwarded(&app, &request(PAID, &[BEARER], "{}")).await;
        assert_eq!(
            (response.status, error_code(&response.body).as_str()),
            (502, "api_error"),
            "rule {number}: {response:?}"
        );
        let text = response.text();
        assert!(text.contains(r#""success":false"#) && text.contains(r#""trace_id":""#), "{text}");
        assert!(text.contains(&app.upstream.address().to_string()), "it names the upstream: {text}");
    }
    assert_eq!(app.upstream.paid_calls(), 7);
    app.upstream.stop().await;
    let response = app.raw(request(PAID, &[BEARER], "{}")).await;
    assert_eq!((response.status, error_code(&response.body).as_str()), (502, "api_error"));
    app.upstream.resume().await.expect("the port is free again");
    let (response, _) = forwarded(&app, &request(PAID, &[BEARER], r#"{"async":true}"#)).await;
    assert_eq!(response.status, 200, "it recovers at once: {response:?}");
}

#[tokio::test]
async fn paid_request_is_sent_once_whatever_the_response() {
    let app = TestApp::spawn().await;
    for (status, code) in [
        (500, "api_error"),
        (503, "api_error"),
        (504, "timeout"),
        (429, "too_many_requests"),
        (408, "timeout"),
        (409, "x"),
    ] {
        app.upstream.add_rule(Rule::any().error(status, code).retry_after("1").times(1));
        let (response, _) = forwarded(&app, &request(PAID, &[BEARER], "{}")).await;
        assert_eq!(
            (response.status, error_code(&response.body).as_str(), response.header("retry-after")),
            (status, code, Some("1"))
        );
        assert_eq!(response.header("cache-status"), Some(BYPASS));
    }
    assert_eq!(app.upstream.paid_calls(), 6);
}

#[tokio::test]
async fn paid_request_on_a_stale_connection_is_never_sent_twice() {
    let app = TestApp::spawn().await;
    app.upstream.add_rule(Rule::any().body("application/json", "{}").close_afterwards());
    for sent in 1..=30 {
        let response = app.raw(request(PAID, &[BEARER], "{}")).await;
        assert!(matches!(response.status, 200 | 502), "{response:?}");
        assert!(app.upstream.paid_calls() <= sent, "one request, one call");
    }
    // The upstream resets the connection during its second request.
    app.upstream.clear_rules();
    app.upstream.clear_calls();
    app.upstream.add_rule(Rule::any().body("application/json", "{}").times(1));
    app.upstream.add_rule(Rule::any().reset_before_response());
    app.raw(request(PAID, &[BEARER], "{}")).await;
    let response = app.raw(request(PAID, &[BEARER], "{}")).await;
    assert_eq!((response.status, app.upstream.call_count()), (502, 2));
}
