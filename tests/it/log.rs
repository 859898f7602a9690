//! The log: one line per request, safe to print, with the request id that the client sees.

use serde_json::json;

use crate::support::{Program, RawPeer, eventually, request, simulator};

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
