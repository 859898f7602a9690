//! Tests of the simulated upstream over a socket.

use std::collections::HashSet;

use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::*;
use crate::raw_http::RawPeer;

mod services;

/// Simulator with a client.
struct Setup {
    simulator: Simulator,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Setup {
    async fn new() -> Self {
        Self::with(SimulatorConfig { requests_per_second: None, ..Default::default() }).await
    }

    async fn with(config: SimulatorConfig) -> Self {
        let simulator = Simulator::start(config).await.unwrap();
        Self { simulator, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: impl Into<Bytes>,
    ) -> (http::response::Parts, Bytes) {
        let response = self.client.request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts, body.collect().await.unwrap().to_bytes())
    }

    fn post(&self, path: &str, token: &str) -> http::request::Builder {
        let request = http::Request::post(format!("{}{path}", self.simulator.base_url()));
        request.header("authorization", format!("Bearer {token}"))
    }

    async fn tasks(&self, token: &str, body: Value) -> (u16, Value) {
        self.tasks_of("producer", token, body).await
    }

    async fn tasks_of(&self, service: &str, token: &str, body: Value) -> (u16, Value) {
        let request = self.post(&format!("/{service}/tasks"), token);
        let (parts, body) = self.send(request, body.to_string()).await;
        (parts.status.as_u16(), serde_json::from_slice(&body).unwrap())
    }

    async fn retrieve(&self, token: &str, id: &str) -> Value {
        self.tasks(token, json!({"action": "retrieve", "id": id})).await.1
    }

    async fn batch(&self, ids: &[&str]) -> Value {
        self.tasks("a", json!({"action": "retrieve_batch", "ids": ids})).await.1
    }

    /// Sends `request` on a new connection and returns everything up to its end. `Err` has the
    /// bytes before a reset.
    async fn raw(&self, request: &str) -> Result<Bytes, Bytes> {
        let mut peer = RawPeer::connect(self.simulator.address()).await;
        peer.write(request).await;
        peer.read_to_end().await
    }
}

const ANY: &str = "POST /producer/audios HTTP/1.1\r\nhost: h\r\nauthorization: Bearer a\r\nconnection: close\r\n\
                   content-length: 2\r\n\r\n{}";

fn ids_of(batch: &Value) -> Vec<&str> {
    let items = batch["items"].as_array().unwrap();
    assert_eq!(batch["count"], items.len());
    items.iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn finished_task_has_every_documented_field() {
    let setup = Setup::new().await;
    let id = setup.simulator.create_finished("producer", "a");
    let task = setup.retrieve("a", &id).await;
    let documented: Value = serde_json::from_str(include_str!("../../tests/fixtures/retrieve.json")).unwrap();
    let missing = |from: &Value, found: &Value| {
        let found: HashSet<_> = found.as_object().unwrap().keys().cloned().collect();
        from.as_object().unwrap().keys().filter(|key| !found.contains(*key)).cloned().collect::<Vec<_>>()
    };
    // `duration` in the documented example is the older name of `elapsed`.
    assert_eq!(missing(&documented, &task), ["duration"]);
    assert_eq!(missing(&documented["response"]["data"][0], &task["response"]["data"][0]), [""; 0]);
    assert_eq!(task["response"]["data"].as_array().unwrap().len(), 2);
    assert_eq!(task["elapsed"], 40.0);
    assert!(task["finished_at"].is_f64());
    let length = setup.simulator.task_record(&id).unwrap().len();
    assert!((2500..4500).contains(&length), "{length}");
}

#[tokio::test]
async fn batch_keeps_order_and_repeats_and_omits_unknown_ids() {
    let setup = Setup::new().await;
    let [a, b] = [(); 2].map(|()| setup.simulator.create_finished("producer", "a"));
    let batch = setup.batch(&[&b, "unknown", &a, &b]).await;
    assert_eq!(ids_of(&batch), [&b, &a, &b]);
    assert_eq!(setup.retrieve("a", "unknown").await, json!({}));
    assert_eq!(setup.batch(&[]).await, json!({"items": [], "count": 0}));
    assert_eq!(setup.simulator.calls()[0].ids(), [&b, "unknown", &a, &b]);
}

#[tokio::test]
async fn task_is_visible_only_to_its_owners_in_its_service() {
    let setup = Setup::new().await;
    let id = setup.simulator.create_finished("producer", "a");
    assert_eq!(setup.retrieve("b", &id).await, json!({}));
    let other = setup.post("/suno/tasks", "a");
    let (_, body) = setup.send(other, json!({"action": "retrieve", "id": id}).to_string()).await;
    assert_eq!(body, "{}");
    setup.simulator.share(&id, "b");
    assert_eq!(setup.retrieve("b", &id).await, setup.retrieve("a", &id).await);
    setup.simulator.put_record("producer", "a", "same", r#"{"id":"same","for":"a"}"#);
    setup.simulator.put_record("producer", "b", "same", r#"{"id":"same","for":"b"}"#);
    assert_eq!(setup.retrieve("a", "same").await["for"], "a");
    assert_eq!(setup.retrieve("b", "same").await["for"], "b");
}

#[tokio::test]
async fn other_lookups_listings_and_deletes_work() {
    let setup = Setup::new().await;
    let ids: Vec<_> = (0..5).map(|_| setup.simulator.create_finished("producer", "a")).collect();
    let task = setup.retrieve("a", &ids[0]).await;
    let trace_id = task["trace_id"].as_str().unwrap();
    for by in [json!({"trace_id": trace_id}), json!({"task_id": ids[0]})] {
        let mut body = json!({"action": "retrieve"});
        body.as_object_mut().unwrap().extend(by.as_object().unwrap().clone());
        assert_eq!(setup.tasks("a", body).await.1, task);
    }
    let (_, traced) = setup.tasks("a", json!({"action": "retrieve_batch", "trace_ids": [trace_id]})).await;
    assert_eq!(ids_of(&traced), [&ids[0]]);

    let (_, page) = setup
        .tasks("a", json!({"action": "retrieve_batch", "limit": 2, "offset": 1, "type": "audios"}))
        .await;
    assert_eq!(page["count"], 5);
    assert_eq!(page["items"][0]["id"], ids[3].as_str());
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    for nothing in [json!({"type": "videos"}), json!({"user_id": "x"}), json!({"created_at_max": 1.0})] {
        let mut body = json!({"action": "retrieve_batch"});
        body.as_object_mut().unwrap().extend(nothing.as_object().unwrap().clone());
        assert_eq!(setup.tasks("a", body).await.1, json!({"items": [], "count": 0}));
    }

    let delete = |id: &str| json!({"action": "delete", "id": id});
    assert_eq!(setup.tasks("b", delete(&ids[0])).await.1["deleted"], false);
    assert_eq!(setup.tasks("a", delete(&ids[0])).await.1, json!({"id": ids[0], "deleted": true}));
    assert_eq!(setup.retrieve("a", &ids[0]).await, json!({}));
    assert_eq!(setup.tasks("a", json!({"action": "dance"})).await.0, 400);
}

#[tokio::test]
async fn each_token_has_its_own_rate() {
    let setup = Setup::with(SimulatorConfig { retry_after_on_429: true, ..Default::default() }).await;
    let body = json!({"action": "retrieve", "id": "x"});
    assert_eq!(setup.tasks("a", body.clone()).await.0, 200);
    let (parts, _) = setup.send(setup.post("/producer/tasks", "a"), body.to_string()).await;
    assert_eq!(parts.status, 429);
    assert_eq!(parts.headers["retry-after"], "1");
    assert_eq!(setup.tasks("b", body.clone()).await.0, 200);
    assert_eq!(setup.simulator.rate_limited_calls(), 1);
    setup.simulator.set_rate(None);
    assert_eq!(setup.tasks("a", body).await.0, 200);
}

#[tokio::test]
async fn refused_tokens_and_unknown_paths_are_errors() {
    let setup = Setup::new().await;
    let body = || json!({"action": "retrieve", "id": "x"});
    setup.simulator.refuse_token("a", 403, "used_up");
    let (status, error) = setup.tasks("a", body()).await;
    assert_eq!((status, &error["error"]["code"], &error["success"]), (403, &json!("used_up"), &json!(false)));
    setup.simulator.accept_token("a");
    assert_eq!(setup.tasks("a", body()).await.0, 200);
    let bare = http::Request::post(format!("{}/producer/tasks", setup.simulator.base_url()));
    assert_eq!(setup.send(bare, body().to_string()).await.0.status, 400);
    assert_eq!(setup.send(setup.post("/producer/tasks/", "a"), "{}").await.0.status, 404);
    let malformed = setup.raw("POST /producer/tasks HTTP/1.1\r\ncontent-length: x\r\n\r\n").await.unwrap();
    assert!(malformed.starts_with(b"HTTP/1.1 400 "));
}

#[tokio::test]
async fn paid_call_starts_work_once_and_can_wait_or_stream() {
    let duration = Duration::from_millis(120);
    let config = SimulatorConfig { requests_per_second: None, task_duration: duration, ..Default::default() };
    let setup = Setup::with(config).await;
    let (_, started) = setup.send(setup.post("/producer/audios", "a"), r#"{"async":true,"n":1.0}"#).await;
    let started: Value = serde_json::from_slice(&started).unwrap();
    let id = started["task_id"].as_str().unwrap();
    assert_eq!(setup.retrieve("a", id).await["trace_id"], started["trace_id"]);
    let text = setup.simulator.task_record(id).unwrap();
    assert!(String::from_utf8_lossy(&text).contains(r#""request":{"async":true,"n":1.0}"#));

    let (_, done) = setup.send(setup.post("/producer/audios", "a"), "{}").await;
    let done: Value = serde_json::from_slice(&done).unwrap();
    assert_eq!(done["data"][1]["state"], "succeeded");

    let streaming = setup.post("/producer/audios", "a").header("accept", "application/x-ndjson");
    let (parts, lines) = setup.send(streaming, "{}").await;
    assert_eq!(parts.headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> =
        lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert!(lines.len() >= 2);
    assert_eq!(lines.last().unwrap()["data"][0]["progress"], "100%");
    assert_eq!(setup.simulator.paid_calls(), 3);
}

#[tokio::test]
async fn held_call_continues_on_release_and_counts_as_aborted_if_closed() {
    let setup = Setup::new().await;
    let (rule, hold) = Rule::lookups().containing_id("x").hold();
    setup.simulator.add_rule(rule);
    let held = setup.retrieve("a", "x");
    let release = async {
        hold.wait_for_held(1).await;
        assert_eq!(setup.simulator.calls()[0].status, None);
        hold.release();
    };
    assert_eq!(tokio::join!(held, release).0, json!({}));

    let (rule, hold) = Rule::any().hold();
    setup.simulator.clear_rules();
    setup.simulator.add_rule(rule);
    tokio::select! {
        _ = setup.retrieve("a", "y") => panic!("response while held"),
        () = hold.wait_for_held(1) => {}
    }
    setup.simulator.wait_until("the call to be aborted", |simulator| simulator.aborted_calls() == 1).await;
    assert!(setup.simulator.calls()[1].aborted);
}

#[tokio::test]
async fn rules_apply_in_order_and_end_after_their_times() {
    let setup = Setup::new().await;
    setup.simulator.add_rule(Rule::lookups().nth(2).error(503, "api_error").retry_after("soon"));
    setup.simulator.add_rule(Rule::lookups().token("b").html());
    let mut responses = Vec::new();
    for token in ["a", "a", "a", "b"] {
        let body = json!({"action": "retrieve", "id": "x"}).to_string();
        let (parts, body) = setup.send(setup.post("/producer/tasks", token), body).await;
        responses.push((parts.status.as_u16(), body.starts_with(b"<!doctype")));
        assert_eq!(parts.headers.contains_key("retry-after"), parts.status == 503);
    }
    assert_eq!(responses, [(200, false), (503, false), (200, false), (200, true)]);
}

#[tokio::test]
async fn rules_change_batch_items() {
    let setup = Setup::new().await;
    for id in ["x", "y"] {
        setup.simulator.put_record("producer", "a", id, format!(r#"{{"id":"{id}"}}"#));
    }
    for (rule, expected) in [
        (Rule::any().omit_ids(["x"]), vec!["y"]),
        (Rule::any().reverse_items(), vec!["y", "x"]),
        (Rule::any().repeat_items(), vec!["x", "x", "y", "y"]),
        (Rule::any().add_item(r#"{"id":"z"}"#).gzip(), vec!["x", "y", "z"]),
    ] {
        setup.simulator.clear_rules();
        let gzip = rule.gzip;
        setup.simulator.add_rule(rule.chunked());
        let body = json!({"action": "retrieve_batch", "ids": ["x", "y"]}).to_string();
        let (_, mut body) = setup.send(setup.post("/producer/tasks", "a"), body).await;
        if gzip {
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&body[..]), &mut text).unwrap();
            body = text.into();
        }
        assert_eq!(ids_of(&serde_json::from_slice(&body).unwrap()), expected);
    }
}

#[tokio::test]
async fn malformed_responses_are_sent_byte_for_byte() {
    let setup = Setup::new().await;
    let simulator = &setup.simulator;
    simulator.add_rule(Rule::any().times(1).raw("HTTP/1.1 200 OK\r\nCL: \r\r\n"));
    assert_eq!(setup.raw(ANY).await.unwrap(), "HTTP/1.1 200 OK\r\nCL: \r\r\n");
    simulator.clear_rules();
    simulator.add_rule(Rule::any().times(1).close_without_response());
    assert_eq!(setup.raw(ANY).await.unwrap(), "");
    simulator.clear_rules();
    simulator.add_rule(Rule::any().times(1).reset_before_response());
    assert!(setup.raw(ANY).await.is_err());
    for (rule, length, end) in [
        (Rule::any().cut_after(3), "content-length: 10\r\n", "\r\n\r\n012"),
        (Rule::any().wrong_length(12), "content-length: 12\r\n", "\r\n\r\n0123456789"),
        (Rule::any().wrong_length(4), "content-length: 4\r\n", "\r\n\r\n0123456789"),
        (Rule::any().unfinished(), "transfer-encoding: chunked\r\n", "\r\n\r\na\r\n0123456789\r\n"),
        (Rule::any().drip(Duration::from_millis(1)), "content-length: 10\r\n", "\r\n\r\n0123456789"),
    ] {
        simulator.clear_rules();
        simulator.add_rule(rule.body("text/plain", "0123456789"));
        let response = String::from_utf8(setup.raw(ANY).await.unwrap().into()).unwrap();
        assert!(response.contains(length) && response.ends_with(end), "{response}");
    }
    assert_eq!(simulator.aborted_calls(), 0);
}

#[tokio::test]
async fn streams_mirrors_and_echoes_send_their_bodies() {
    let setup = Setup::new().await;
    let simulator = &setup.simulator;
    simulator.add_rule(Rule::path("/lines").ndjson(["1", "2"], Duration::from_millis(1)));
    simulator.add_rule(Rule::path("/mirror").mirror());
    simulator.add_rule(Rule::path("/echo").method("POST").echo());
    simulator.add_rule(Rule::path("/early").before_body().error(413, "bad_request"));
    simulator.add_rule(Rule::path("/large").large(300_001));
    assert_eq!(setup.send(setup.post("/lines", "a"), "").await.1, "1\n2\n");
    let big = vec![7; 3 * MAX_RECORDED_BODY];
    assert_eq!(setup.send(setup.post("/mirror?x", "a"), big.clone()).await.1, big);
    simulator.wait_until("the end of the body", |simulator| simulator.calls()[1].body_complete).await;
    let call = simulator.calls()[1].clone();
    assert_eq!((call.body.len(), call.body_length), (MAX_RECORDED_BODY, big.len() as u64));
    let (_, echo) = setup.send(setup.post("/echo?a=%2F", "a"), big).await;
    let echo: Value = serde_json::from_slice(&echo).unwrap();
    assert_eq!((&echo["target"], &echo["body_sha256"]), (&json!("/echo?a=%2F"), &json!(call.body_sha256)));
    assert_eq!(setup.send(setup.post("/early", "a"), "body").await.0.status, 413);
    assert_eq!(setup.send(setup.post("/large", "a"), "").await.1.len(), 300_001);
    assert_eq!(simulator.open_connections(), 1, "all calls share one connection");
}

#[tokio::test]
async fn chunked_body_is_decoded_and_its_head_recorded_unchanged() {
    let setup = Setup::new().await;
    let head = "POST /producer/tasks HTTP/1.1\r\nHoSt: h\r\nauthorization: Bearer a\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    let body = "1b\r\n{\"action\":\"retrieve\",\"id\":\"\r\n3;x=y\r\nx\"}\r\n0\r\nT: 1\r\n\r\n";
    let response = String::from_utf8(setup.raw(&format!("{head}{body}")).await.unwrap().into()).unwrap();
    assert!(response.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{response}");
    let call = &setup.simulator.lookup_calls()[0];
    assert_eq!(call.raw_head, head);
    assert_eq!((call.ids(), call.status), (vec!["x".to_owned()], Some(200)));
}

#[tokio::test]
async fn stopped_simulator_refuses_connections_until_resumed() {
    let setup = Setup::new().await;
    let id = setup.simulator.create_finished("producer", "a");
    let task = setup.retrieve("a", &id).await;
    setup.simulator.stop().await;
    assert_eq!(setup.simulator.open_connections(), 0);
    let refused = RawPeer::try_connect(setup.simulator.address()).await.err().map(|error| error.kind());
    assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
    setup.simulator.resume().await.unwrap();
    assert_eq!(setup.retrieve("a", &id).await, task);
}

#[tokio::test]
async fn same_seed_creates_the_same_tasks() {
    let (one, two) = (Setup::new().await, Setup::new().await);
    let ids = |setup: &Setup| [(); 3].map(|()| setup.simulator.create_finished("producer", "a"));
    let (first, second) = (ids(&one), ids(&two));
    assert_eq!(first, second);
    let [one, two] = [one.retrieve("a", &first[0]).await, two.retrieve("a", &first[0]).await];
    assert_eq!(one["response"]["data"][0]["audio_url"], two["response"]["data"][0]["audio_url"]);
}
