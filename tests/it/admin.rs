//! The admin port: access, headers for browsers, and separation from the client port.

use http::Method;
use refrain::token::Token;

use crate::support::{Program, RawPeer, Reply, TestApp, assert_error, exchange, final_record, simulator};

/// Paths of the admin port that need the token if one is set.
const GUARDED: [&str; 6] =
    ["/metrics", "/api/version", "/api/tasks", "/api/queues", "/api/pending", "/api/config"];

async fn send(app: &TestApp, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = app.http.request(method, format!("http://{}{path}", app.admin));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.send(request).await
}

#[tokio::test]
async fn admin_token_is_required_everywhere_but_for_health() {
    let app = TestApp::spawn_with(|config| config.admin.token = Token::parse("admin-token")).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(send(&app, Method::GET, path, &[("host", "any.example")]).await.status, 200, "{path}");
    }
    for path in GUARDED {
        for wrong in [
            "",
            "Bearer",
            "Bearer admin-toke",
            "Bearer admin-token2",
            "Bearer ADMIN-TOKEN",
            "Basic admin-token",
        ] {
            let reply = send(&app, Method::GET, path, &[("authorization", wrong)]).await;
            assert_error(&reply, 401, "invalid_token");
            assert_eq!(reply.header("www-authenticate"), "Bearer");
        }
        assert_eq!(send(&app, Method::GET, path, &[]).await.status, 401, "{path}");
        // A request with the token may come from any origin: no page knows the token by itself.
        let right = [("authorization", "bearer admin-token"), ("origin", "https://ops.example")];
        assert_eq!(send(&app, Method::GET, path, &right).await.status, 200, "{path}");
    }
    for (method, path) in [(Method::DELETE, "/api/tasks?older_than=0s"), (Method::POST, "/api/version")] {
        assert_eq!(send(&app, method, path, &[]).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn without_a_token_requests_of_other_sites_are_refused() {
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", "a", final_record("a", ""));
    app.retrieve("t", "a").await;
    let own = format!("http://{}", app.admin);
    let others = [
        ("host", "evil.example"),
        ("host", "127.0.0.1.evil.example"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:1"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ];
    for other in others {
        for (method, path) in [
            (Method::DELETE, "/api/tasks/producer/a"),
            (Method::DELETE, "/api/tasks?older_than=0s"),
            (Method::GET, "/api/tasks"),
            (Method::GET, "/metrics"),
        ] {
            assert_error(&send(&app, method, path, &[other]).await, 403, "bad_request");
        }
    }
    app.assert_stored("t", "a").await;
    // The preflight of a DELETE from another origin receives no CORS headers.
    let preflight = [("origin", "https://evil.example"), ("access-control-request-method", "DELETE")];
    let reply = send(&app, Method::OPTIONS, "/api/tasks/producer/a", &preflight).await;
    assert_eq!(reply.status, 403);
    assert!(reply.headers.keys().all(|name| !name.as_str().starts_with("access-control-")), "{reply:?}");

    let own = [("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(send(&app, Method::DELETE, "/api/tasks/producer/a", &own).await.status, 200);
    app.assert_not_stored("t", "a").await;
}

#[tokio::test]
async fn admin_responses_forbid_caching_and_sniffing() {
    let app = TestApp::spawn().await;
    for path in
        GUARDED.iter().chain(&["/healthz", "/readyz", "/nothing", "/api/tasks?x", "/api/tasks/producer/a"])
    {
        let reply = send(&app, Method::GET, path, &[]).await;
        assert_eq!(reply.header("cache-control"), "no-store", "{path}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
    }
    let refused = send(&app, Method::GET, "/api/tasks", &[("origin", "null")]).await;
    assert_eq!((refused.status.as_u16(), refused.header("cache-control")), (403, "no-store"));
    for path in GUARDED.iter().filter(|path| path.starts_with("/api")) {
        assert_eq!(
            send(&app, Method::GET, path, &[]).await.header("content-type"),
            "application/json",
            "{path}"
        );
        let head = send(&app, Method::HEAD, path, &[]).await;
        assert!(head.status == 200 && head.body.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn admin_pages_are_absent_from_the_client_port() {
    let app = TestApp::spawn().await;
    for path in GUARDED.iter().chain(&["/healthz", "/readyz", "/"]) {
        let before = app.upstream.call_count();
        let reply = app.send(app.http.get(app.url(path))).await;
        assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass", "{path}");
        assert_eq!(app.upstream.call_count(), before + 1, "{path} is the upstream's");
    }
    // Lookups are not accepted on the admin port.
    let body = r#"{"action":"retrieve","id":"a"}"#;
    let request = app.http.post(format!("http://{}/producer/tasks", app.admin)).bearer_auth("t").body(body);
    assert_error(&app.send(request).await, 404, "bad_request");
}

#[tokio::test]
async fn admin_port_needs_exactly_one_host_from_http_1_1_on() {
    for token in [None, Token::parse("admin-token")] {
        let app = TestApp::spawn_with(|config| config.admin.token = token).await;
        for (request, status) in [
            ("GET /readyz HTTP/1.0\r\n\r\n", 200),
            ("GET /readyz HTTP/1.0\r\nhost: localhost\r\n\r\n", 200),
            ("GET /readyz HTTP/1.0\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400),
            ("GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n", 200),
            ("GET /readyz HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400),
            ("GET /readyz HTTP/1.1\r\n\r\n", 400),
        ] {
            let mut peer = RawPeer::connect(app.admin).await;
            peer.write(request).await;
            assert_eq!(peer.read_head().await.status(), status, "{request}");
        }
    }
}

#[tokio::test]
async fn admin_port_beyond_loopback_requires_a_token() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let mut command = Program::command();
    command.current_dir(folder.path()).arg("serve").env("REFRAIN_UPSTREAM__BASE_URL", upstream.base_url());
    command.env("REFRAIN_SERVER__LISTEN", "127.0.0.1:0").env("REFRAIN_ADMIN__LISTEN", "0.0.0.0:0");
    let output = command.output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(64), 1), "{stderr}");
    assert!(stderr.contains("admin.token"), "{stderr}");

    let environment = [("REFRAIN_ADMIN__LISTEN", "0.0.0.0:0"), ("REFRAIN_ADMIN__TOKEN", "admin-token")];
    let program = Program::serve(&upstream.base_url(), folder.path(), &environment);
    let status = async |authorization: &str| {
        let mut peer = RawPeer::connect(([127, 0, 0, 1], program.admin.port()).into()).await;
        peer.write(format!("GET /api/version HTTP/1.1\r\nhost: refrain.internal\r\n{authorization}\r\n"))
            .await;
        peer.read_response().await.status
    };
    assert_eq!(status("").await, 401);
    assert_eq!(status("authorization: Bearer admin-token\r\n").await, 200);
}

#[tokio::test]
async fn without_a_token_only_loopback_hosts_are_accepted() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    for (host, allowed) in [
        ("127.0.0.1", true),
        ("localhost:8081", true),
        ("[::1]:1", true),
        ("evil.example", false),
        ("localhost.evil.example", false),
        ("127.0.0.1.evil.example", false),
        ("10.0.0.1", false),
    ] {
        for path in ["/healthz", "/metrics"] {
            let response = exchange(
                program.admin,
                format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"),
            )
            .await;
            assert_eq!(response.starts_with("HTTP/1.1 200"), allowed, "{host} {path}: {response}");
        }
    }
}
