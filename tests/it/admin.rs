//! The admin port's promises: who may ask, what browsers are told, and that nothing of it is on the client port.

use http::Method;
use refrain::token::Token;

use crate::support::{Program, Reply, TestApp, Wire, assert_error, final_record, simulator};

/// Every path of the admin port that needs the token where one is set.
const GUARDED: [&str; 6] =
    ["/metrics", "/api/version", "/api/tasks", "/api/queues", "/api/pending", "/api/config"];

async fn ask(app: &TestApp, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = app.http.request(method, format!("http://{}{path}", app.admin));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.send(request).await
}

#[tokio::test]
async fn with_a_token_everything_but_health_asks_for_it() {
    let app = TestApp::spawn_with(|config| config.admin.token = Token::parse("admin-token")).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(&app, Method::GET, path, &[("host", "any.example")]).await.status, 200, "{path}");
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
            let reply = ask(&app, Method::GET, path, &[("authorization", wrong)]).await;
            assert_error(&reply, 401, "invalid_token");
            assert_eq!(reply.header("www-authenticate"), "Bearer");
        }
        assert_eq!(ask(&app, Method::GET, path, &[]).await.status, 401, "{path}");
        // Whoever has the token may ask from anywhere: no page has it that was not given it.
        let right = [("authorization", "bearer admin-token"), ("origin", "https://ops.example")];
        assert_eq!(ask(&app, Method::GET, path, &right).await.status, 200, "{path}");
    }
    for (method, path) in [(Method::DELETE, "/api/tasks?older_than=0s"), (Method::POST, "/api/version")] {
        assert_eq!(ask(&app, method, path, &[]).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn without_a_token_only_this_machine_asks_and_no_page_of_another_site() {
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
            assert_error(&ask(&app, method, path, &[other]).await, 403, "bad_request");
        }
    }
    app.assert_stored("t", "a").await;
    // The question a browser asks before a DELETE of another origin is not answered as it would have to be.
    let preflight = [("origin", "https://evil.example"), ("access-control-request-method", "DELETE")];
    let reply = ask(&app, Method::OPTIONS, "/api/tasks/producer/a", &preflight).await;
    assert_eq!(reply.status, 403);
    assert!(reply.headers.keys().all(|name| !name.as_str().starts_with("access-control-")), "{reply:?}");

    let own = [("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(ask(&app, Method::DELETE, "/api/tasks/producer/a", &own).await.status, 200);
    app.assert_not_stored("t", "a").await;
}

#[tokio::test]
async fn no_answer_is_for_a_cache_or_to_be_guessed_at() {
    let app = TestApp::spawn().await;
    for path in
        GUARDED.iter().chain(&["/healthz", "/readyz", "/nothing", "/api/tasks?x", "/api/tasks/producer/a"])
    {
        let reply = ask(&app, Method::GET, path, &[]).await;
        assert_eq!(reply.header("cache-control"), "no-store", "{path}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
    }
    let refused = ask(&app, Method::GET, "/api/tasks", &[("origin", "null")]).await;
    assert_eq!((refused.status.as_u16(), refused.header("cache-control")), (403, "no-store"));
    for path in GUARDED.iter().filter(|path| path.starts_with("/api")) {
        assert_eq!(
            ask(&app, Method::GET, path, &[]).await.header("content-type"),
            "application/json",
            "{path}"
        );
        let head = ask(&app, Method::HEAD, path, &[]).await;
        assert!(head.status == 200 && head.body.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn nothing_of_it_is_on_the_client_port() {
    let app = TestApp::spawn().await;
    for path in GUARDED.iter().chain(&["/healthz", "/readyz", "/"]) {
        let before = app.upstream.call_count();
        let reply = app.send(app.http.get(app.url(path))).await;
        assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass", "{path}");
        assert_eq!(app.upstream.call_count(), before + 1, "{path} is the upstream's");
    }
    // And nothing of the client port here.
    let body = r#"{"action":"retrieve","id":"a"}"#;
    let request = app.http.post(format!("http://{}/producer/tasks", app.admin)).bearer_auth("t").body(body);
    assert_error(&app.send(request).await, 404, "bad_request");
}

#[tokio::test]
async fn beyond_loopback_it_needs_a_token_and_off_is_off() {
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
        let mut wire = Wire::connect(([127, 0, 0, 1], program.admin.port()).into()).await;
        wire.write(format!("GET /api/version HTTP/1.1\r\nhost: refrain.internal\r\n{authorization}\r\n"))
            .await;
        wire.response().await.status
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
            let answer = Wire::exchange(
                program.admin,
                format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"),
            )
            .await;
            assert_eq!(answer.starts_with("HTTP/1.1 200"), allowed, "{host} {path}: {answer}");
        }
    }
}
