//! The log: one line per request, safe to print, with the request id that the client sees.

use serde_json::json;

use crate::support::{Program, RawPeer, client, eventually, request, simulator};

#[tokio::test]
async fn json_log_line_has_the_request_id_of_the_response() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let settings = [
        ("REFRAIN_LOG__FORMAT", "json"),
        ("REFRAIN_LOG__FILTER", "debug"),
        ("REFRAIN_SERVER__CORS_ORIGINS", r#"["https://app.example"]"#),
    ];
    let program = Program::serve(&upstream.base_url(), folder.path(), &settings);
    let body = json!({"action": "retrieve", "id": upstream.create_finished("producer", "t")}).to_string();
    let bearer = ("authorization", "Bearer t");
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "POST")];
    for (request, outcome) in [
        (request("POST /producer/tasks", &[bearer], body), "miss"),
        (request("GET /x", &[bearer], ""), "bypass"),
        (request("TRACE /x", &[], ""), "refused"),
        (request("OPTIONS /x", &preflight, ""), "answered"),
    ] {
        let mut peer = RawPeer::connect(program.address).await;
        peer.write(request).await;
        let response = peer.read_response().await;
        let expected = response.header("x-request-id").expect("an id");
        eventually("the request's line", async || {
            program.log().lines().any(|line| {
                let record: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
                record["message"] == "request"
                    && record["request_id"] == expected
                    && record["outcome"] == outcome
            })
        })
        .await;
    }
}

#[tokio::test]
async fn log_line_has_no_control_characters_of_the_client() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let program = Program::serve(&upstream.base_url(), folder.path(), &[("REFRAIN_LOG__FILTER", "debug")]);
    for id in ["a\nINFO forged", "\u{1b}[31mred", "nul\0", "</script>", "\u{202e}turned", "\u{2028}line"] {
        let body = json!({"action": "retrieve", "id": id}).to_string();
        let headers = [("authorization", "Bearer t"), ("content-type", "application/json")];
        let mut peer = RawPeer::connect(program.address).await;
        peer.write(request("POST /producer/tasks", &headers, body)).await;
        assert_eq!(peer.read_response().await.status, 200);
        assert_eq!(upstream.calls().pop().expect("a call").ids(), [id], "unchanged upstream");
    }
    let log = program.log();
    assert!(
        !log.contains("\nINFO forged") && !log.contains(['\u{1b}', '\0', '\u{202e}', '\u{2028}']),
        "{log}"
    );
}

#[tokio::test]
async fn first_line_has_addresses_store_and_services() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let store = folder.path().join("refrain.db").display().to_string();
    for (format, tasks) in [("pretty", 0), ("json", 1)] {
        let program = Program::serve(&upstream.base_url(), folder.path(), &[("REFRAIN_LOG__FORMAT", format)]);
        let log = program.log();
        let first = log.lines().next().expect("a line");
        let (client_url, dashboard) =
            (format!("http://{}", program.address), format!("http://{}", program.admin));
        for expected in [client_url.as_str(), &dashboard, &upstream.base_url(), &store, "producer", "suno"] {
            assert!(first.contains(expected), "{expected}: {first}");
        }
        let count = [format!("tasks={tasks} "), format!("\"tasks\":{tasks},")];
        assert!(count.iter().any(|form| first.contains(form)), "{tasks}: {first}");
        let http = client(program.address);
        let id = upstream.create_finished("producer", "t");
        if tasks == 0 {
            http.retrieve("t", &id).await.expect("a response");
        }
    }
}

#[tokio::test]
async fn hit_has_a_short_line_on_a_terminal_only() {
    for is_terminal in [true, false] {
        let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
        let program = match is_terminal {
            true => Program::serve_on_terminal(&upstream.base_url(), folder.path()),
            false => Program::serve(&upstream.base_url(), folder.path(), &[]),
        };
        let http = client(program.address);
        let id = upstream.create_finished("producer", "t");
        for _ in 0..2 {
            http.retrieve("t", &id).await.expect("a response");
        }
        // Its line comes after those of the lookups.
        let url = format!("http://{}/openai/files/{id}", program.address);
        http.http.get(url).send().await.expect("a response");
        eventually("the last line", async || program.log().contains("/openai/files/*")).await;
        let log = program.log();
        let lines = log.matches("hit POST /producer/tasks asked=1 ").count();
        assert_eq!(lines, usize::from(is_terminal), "{log}");
        assert!(!log.contains(&id), "{log}");
    }
}

#[tokio::test]
async fn failed_request_has_its_cause_in_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = Program::serve("http://127.0.0.1:1", folder.path(), &[("REFRAIN_LOG__FORMAT", "json")]);
    assert_eq!(client(program.address).retrieve("t", "a").await.expect("a response").status, 502);
    eventually("the request's line", async || {
        program.log().lines().any(|line| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            record["status"] == 502
                && record["path"] == "/producer/tasks"
                && record["cause"]
                    .as_str()
                    .is_some_and(|cause| cause.contains("could not connect to 127.0.0.1:1"))
        })
    })
    .await;
}
