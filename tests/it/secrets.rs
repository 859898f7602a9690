//! Secrets: a marker in every request and every setting appears in no log, error, metric or file.

use std::path::Path;

use refrain_simulator::{Rule, Simulator};
use serde_json::json;

use crate::support::{Program, RawPeer, exchange, request, simulator};

/// Asserts that no file of the folder contains the marker.
fn assert_not_in_files(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("readable");
        let found = bytes.windows(6).any(|window| window.eq_ignore_ascii_case(b"canary"));
        assert!(!found, "{}", path.display());
    }
}

fn assert_not_in(what: &str, text: &str) {
    let lower = text.to_ascii_lowercase();
    let at = lower.find("canary").unwrap_or(lower.len());
    let around: String = text.chars().skip(at.saturating_sub(200)).take(400).collect();
    assert!(at == lower.len(), "{what}: {around}");
    // `canary` in Base64 at its three offsets, as in a Basic credential.
    for encoded in ["Y2FuYXJ5", "NhbmFye", "jYW5hcn"] {
        assert!(!text.contains(encoded), "{what}: {text}");
    }
}

/// Sends requests of every kind with the marker in them. Returns headers and bodies of the errors.
async fn send_everything(program: &Program, upstream: &Simulator, key: &str, token: &str) -> Vec<String> {
    let id = upstream.create_finished("producer", token);
    let bearer = format!("Bearer {key}");
    let look_up = json!({"action": "retrieve", "id": id}).to_string();
    let unknown = json!({"action": "retrieve_batch", "ids": [id, "x"]}).to_string();
    let all = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("x-record-exempt", "canary-forwarded"),
    ];
    let secrets = [
        ("authorization", bearer.as_str()),
        ("cookie", "session=canary-cookie"),
        ("x-api-key", "canary-api-key"),
        ("payment-signature", "canary-payment"),
        ("proxy-authorization", "Basic Y2FuYXJ5OmNhbmFyeQ=="),
    ];
    let with_query = "POST /producer/audios?token=canary-query";
    let mut bodies = Vec::new();
    let mut send = async |line: &str, headers: &[(&str, &str)], body: &str| {
        let mut peer = RawPeer::connect(program.address).await;
        peer.write(request(line, headers, body)).await;
        let response = peer.read_response().await;
        if response.status >= 400 {
            bodies.push(format!("{} {}", response.head, response.text()));
        }
    };
    for body in [&look_up, &look_up, &unknown] {
        send("POST /producer/tasks", &all, body).await;
    }
    send("POST /producer/tasks", &secrets, &look_up).await;
    send(with_query, &secrets, r#"{"async":true,"callback_url":"https://canary-callback"}"#).await;
    send("POST /producer/tasks", &all, r#"{"action":"delete","id":"canary-id"}"#).await;
    send("POST /canary-path/x", &all, "canary-body").await;
    for other in [
        "Bearer canary-unknown",
        "Basic Y2FuYXJ5",
        "canary",
        "Bearer canary with blanks",
        "Bearer canary\u{e9}",
    ] {
        send("POST /producer/tasks", &[("authorization", other), ("cookie", "canary")], &look_up).await;
        send("GET /x", &[("authorization", other)], "").await;
    }
    // Requests that the server refuses, and requests that the upstream fails.
    let malformed = [
        format!(
            "POST /x/../canary HTTP/1.1\r\nhost: h\r\nauthorization: {bearer}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        ),
        format!("TRACE /canary HTTP/1.1\r\nhost: h\r\nauthorization: {bearer}\r\nconnection: close\r\n\r\n"),
        format!("GET /canary HTTP/1.1\r\nauthorization: {bearer}\r\nconnection: close\r\n\r\n"),
        format!(
            "POST /canary HTTP/1.1\r\nhost: h\r\nauthorization: {bearer}\r\nconnection: authorization\r\ncontent-length: 0\r\n\r\n"
        ),
        format!(
            "POST /canary HTTP/1.1\r\nhost: h\r\nauthorization: {bearer}\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\ncanary\r\n"
        ),
        format!("canary {bearer}\r\n\r\n"),
    ];
    for rule in [
        Rule::any().reset_before_response(),
        Rule::any().raw("canary no HTTP\r\n\r\n"),
        Rule::any().redirect("https://canary.example/"),
        Rule::any().body("application/json", r#"{"id":"canary"#),
        Rule::any().error(401, "invalid_token"),
    ] {
        upstream.add_rule(rule);
        for id in ["a", "b"] {
            send(
                "POST /producer/tasks",
                &all,
                &json!({"action": "retrieve_batch", "ids": [id, "c"]}).to_string(),
            )
            .await;
        }
        upstream.clear_rules();
    }
    upstream.add_rule(Rule::path("/lost").reset_before_response());
    send("POST /lost?canary", &secrets, "canary-body").await;
    for bytes in malformed {
        bodies.push(exchange(program.address, bytes).await);
    }
    bodies
}

/// Returns the body of a page of the admin port.
async fn admin_page(program: &Program, path: &str) -> String {
    let mut peer = RawPeer::connect(program.admin).await;
    let host = program.admin.to_string();
    peer.write(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer canary-admin\r\n\r\n"))
        .await;
    let response = peer.read_response().await;
    assert_eq!(response.status, 200, "{response:?}");
    response.text()
}

async fn check(settings: &[(&str, &str)], key: &str, token: &str) {
    for format in ["pretty", "json"] {
        let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
        let log = [
            ("REFRAIN_LOG__FILTER", "trace"),
            ("REFRAIN_LOG__FORMAT", format),
            ("REFRAIN_UPSTREAM__MAX_RETRIES", "0"),
            ("RUST_BACKTRACE", "1"),
        ];
        let mut program = Program::serve(&upstream.base_url(), folder.path(), &[&log, settings].concat());
        let bodies = send_everything(&program, &upstream, key, token).await;
        assert!(bodies.len() > 10, "{bodies:?}");
        for body in bodies {
            // Errors of the upstream itself are relayed unchanged.
            if !body.contains("cache-status") || body.contains("proxy-status") {
                assert_not_in("an error", &body);
            }
        }
        let pending = upstream.create_pending("producer", token);
        let look_up = json!({"action": "retrieve", "id": pending}).to_string();
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("x-record-exempt", "canary-forwarded")];
        let mut peer = RawPeer::connect(program.address).await;
        peer.write(request("POST /producer/tasks", &headers, look_up)).await;
        assert_eq!(peer.read_response().await.status, 200);
        for (path, holds) in [
            ("/metrics", "refrain_requests_total"),
            ("/api/version", "sqlite_version"),
            ("/api/tasks", "stored_at"),
            ("/api/queues", "in_flight"),
            ("/api/requests?limit=600", "duration_seconds"),
            ("/api/pending", &pending),
            ("/api/config", "\"***\""),
        ] {
            let response = admin_page(&program, path).await;
            assert!(response.contains(holds), "{path}: {response}");
            assert_not_in(path, &response);
        }
        assert_not_in_files(folder.path());
        program.signal("TERM");
        assert_eq!(program.wait().code(), Some(0), "{}", program.log());
        assert_not_in_files(folder.path());
        let log = program.log();
        assert!(log.lines().count() > 40, "the log has trace records: {log}");
        assert_not_in(&format!("the {format} log"), &log);
    }
}

#[tokio::test]
async fn secrets_of_token_mode_appear_nowhere() {
    check(&[("REFRAIN_ADMIN__TOKEN", "canary-admin")], "canary-token", "canary-token").await;
}

#[tokio::test]
async fn secrets_of_shared_mode_appear_nowhere() {
    let settings = [
        ("REFRAIN_ADMIN__TOKEN", "canary-admin"),
        ("REFRAIN_ACCESS__MODE", "shared"),
        ("REFRAIN_UPSTREAM__TOKEN", "canary-team"),
        ("REFRAIN_ACCESS__CLIENTS", "[{name = \"one\", key = \"canary-key\"}]"),
    ];
    check(&settings, "canary-key", "canary-team").await;
}
