//! `/metrics`, `/api/stats` and `/api/history` after known traffic. Documentation, Grafana
//! dashboard and alerts use existing metrics.

mod exposition;
mod promql;

use std::collections::{BTreeMap, BTreeSet};

use refrain_simulator::{Rule, Simulator};
use serde_json::{Value, json};

use self::exposition::Page;
use crate::support::{Client, DOCUMENTED, DOCUMENTED_ID, Program, client, eventually, simulator};

const DOCUMENTATION: &str = include_str!("../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../config/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../config/prometheus-alerts.yml");

/// Labels that Prometheus adds to every series.
const OF_THE_SCRAPE: [&str; 2] = ["instance", "job"];

async fn get(program: &Program, path: &str, accept: &str) -> (String, String) {
    let http = client(program.admin).http;
    let response = http.get(format!("http://{}{path}", program.admin)).header("accept", accept).send().await;
    let response = response.expect("a response");
    assert_eq!(response.status(), 200, "{path}");
    let content_type = response.headers()["content-type"].to_str().expect("text").to_owned();
    (content_type, response.text().await.expect("a body"))
}

async fn page(program: &Program) -> Page {
    exposition::read(&get(program, "/metrics", "text/plain").await.1)
}

async fn json(program: &Program, path: &str) -> Value {
    serde_json::from_str(&get(program, path, "application/json").await.1).expect("JSON")
}

/// Sum of a metric's series with these labels.
fn value(page: &Page, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = page.values().flat_map(|family| &family.samples).filter(|sample| {
        let has =
            |(label, value): &(&str, &str)| sample.labels.get(*label).map(String::as_str) == Some(*value);
        sample.name == name && labels.iter().all(has)
    });
    let values: Vec<f64> = samples.map(|sample| sample.value).collect();
    assert!(!values.is_empty(), "no series {name} {labels:?}");
    values.iter().sum()
}

/// Starts the program with one retry, in front of a simulator.
async fn start() -> (Simulator, tempfile::TempDir, Program, Client) {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let program =
        Program::serve(&upstream.base_url(), folder.path(), &[("REFRAIN_UPSTREAM__MAX_RETRIES", "1")]);
    let http = client(program.address);
    (upstream, folder, program, http)
}

/// Returns the metrics of a program that has served a lookup.
async fn page_in_use() -> Page {
    let (upstream, _folder, program, http) = start().await;
    let id = upstream.create_finished("producer", "t");
    http.retrieve("t", &id).await.expect("a response");
    page(&program).await
}

/// Sends requests of each kind: a miss, hits, a pending record, a batch, an absorbed 429, a relayed
/// 429, a refused lookup, bypassed requests, a lookup held for three seconds.
async fn traffic(upstream: &Simulator, http: &Client) {
    upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    for expected in ["MISS", "HIT", "HIT"] {
        assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.expect("a response").x_cache(), expected);
    }
    let pending = upstream.create_pending("producer", "t");
    for expected in ["MISS", "PENDING"] {
        assert_eq!(http.retrieve("t", &pending).await.expect("a response").x_cache(), expected);
    }
    let ids: Vec<String> = (0..120).map(|_| DOCUMENTED_ID.to_owned()).collect();
    assert_eq!(http.batch("t", &ids).await.expect("a response").x_cache(), "HIT");

    upstream.add_rule(Rule::lookups().token("absorbed").times(1).error(429, "too_many_requests"));
    let finished = upstream.create_finished("producer", "absorbed");
    assert_eq!(http.retrieve("absorbed", &finished).await.expect("a response").status, 200);
    upstream.add_rule(Rule::lookups().token("limited").error(429, "too_many_requests"));
    assert_eq!(http.retrieve("limited", "a").await.expect("a response").status, 429);

    let only = json!({"action": "retrieve", "id": "never-seen"}).to_string();
    let reply = http.look_up("t", only, &[("cache-control", "only-if-cached")]).await.expect("a response");
    assert_eq!(reply.status, 504);

    let url = format!("http://{}/producer/audios", http.address);
    upstream.add_rule(Rule::path("/producer/audios").times(1).error(503, "api_error"));
    for expected in [503, 200] {
        let response =
            http.http.post(&url).bearer_auth("t").body(r#"{"async":true}"#).send().await.expect("a response");
        assert_eq!(response.status(), expected);
    }

    let held = upstream.create_pending("producer", "held");
    let body = json!({"action": "retrieve", "id": held}).to_string();
    assert_eq!(http.look_up("held", body, &[("prefer", "wait=3")]).await.expect("a response").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_stats_count_known_traffic() {
    let (upstream, _folder, program, http) = start().await;
    let before = page(&program).await;
    for name in ["refrain_requests_total", "refrain_ids_total", "refrain_upstream_calls_saved_total"] {
        assert_eq!(value(&before, name, &[]), 0.0, "{name} exists from the start");
    }
    traffic(&upstream, &http).await;
    let (page, stats) = (page(&program).await, json(&program, "/api/stats").await);
    let count = |name: &str, labels: &[(&str, &str)]| value(&page, name, labels);
    let look_ups = |action, outcome| {
        let labels = [("service", "producer"), ("action", action), ("outcome", outcome)];
        count("refrain_requests_total", &labels)
    };
    assert_eq!(look_ups("retrieve", "hit"), 2.0);
    assert_eq!(look_ups("retrieve", "pending"), 2.0, "the second look, and the one that was held");
    assert_eq!(look_ups("retrieve_batch", "hit"), 1.0);
    assert_eq!(look_ups("retrieve", "failed"), 1.0);
    assert_eq!(look_ups("retrieve", "refused"), 1.0);
    assert_eq!(look_ups("other", "bypass"), 2.0);
    let requests = count("refrain_requests_total", &[]);
    assert_eq!(count("refrain_request_duration_seconds_count", &[]), requests, "no client hung up");
    assert_eq!(stats["requests"]["total"], requests);
    assert_eq!(stats["requests"]["by_outcome"]["hit"], 3);
    assert_eq!(stats["latency"]["hit"]["count"], 3);
    assert!(stats["latency"]["partial"].is_null(), "no partial hit: {stats}");

    let ids = |outcome| count("refrain_ids_total", &[("outcome", outcome)]);
    assert_eq!((ids("hit"), ids("failed"), ids("refused")), (122.0, 1.0, 1.0));
    assert_eq!((ids("pending"), ids("fetched")), (2.0, 3.0));
    assert_eq!(stats["ids"]["hit"], 122);
    let found = |result| count("refrain_store_lookups_total", &[("result", result)]);
    assert_eq!((found("memory"), found("disk")), (3.0, 0.0), "a batch looks up each id once");

    // The simulator counts the calls too.
    let calls = upstream.lookup_calls().len();
    assert_eq!(count("refrain_upstream_calls_total", &[]), calls as f64);
    assert_eq!(count("refrain_upstream_call_duration_seconds_count", &[]), calls as f64);
    assert_eq!(count("refrain_upstream_call_ids_sum", &[]), calls as f64, "one id a call");
    assert_eq!(stats["upstream"]["calls"], calls);
    assert_eq!(count("refrain_upstream_calls_total", &[("status", "429")]), 3.0);
    assert_eq!(count("refrain_upstream_rate_limited_total", &[]), 3.0);
    assert_eq!(count("refrain_rate_limited_absorbed_total", &[]), 2.0);
    assert_eq!(count("refrain_rate_limited_passed_on_total", &[("source", "upstream")]), 1.0);
    assert_eq!(count("refrain_rate_limited_passed_on_total", &[]), 1.0);
    assert_eq!(
        stats["upstream"]["rate_limited"],
        json!({"received": 3, "absorbed": 2, "passed_on": 1, "passed_through": 0})
    );
    let passed = |status| count("refrain_passed_through_total", &[("status", status)]);
    assert_eq!((passed("2xx"), passed("5xx")), (1.0, 1.0));

    // Seven single lookups, 120 ids in three calls, and one lookup held for three seconds, which
    // counts as two polls. The refused lookup does not count.
    let without = 7.0 + 3.0 + 2.0;
    assert_eq!(count("refrain_upstream_calls_baseline_total", &[]), without);
    let saved = count("refrain_upstream_calls_saved_total", &[]);
    assert!(saved >= without - calls as f64 && saved <= without, "{saved} {calls}");
    assert_eq!(stats["upstream"]["calls_saved"], saved);

    assert_eq!(count("refrain_store_tasks", &[]), 2.0);
    assert_eq!(count("refrain_store_tasks_stored_total", &[]), 2.0);
    assert!(count("refrain_store_commit_duration_seconds_count", &[]) >= 2.0);
    assert!(count("refrain_store_file_bytes", &[("file", "database")]) > 0.0);
    assert_eq!(stats["store"]["tasks"], 2);
    assert_eq!(stats["store"]["memory"]["tasks"], 2);
    assert_eq!((count("refrain_ready", &[]), count("refrain_upstream_down", &[])), (1.0, 0.0));
    assert_eq!(stats["ready"], json!({"status": "ready", "reason": null}));
    assert!(count("refrain_connections", &[]) >= 1.0);
    assert!(count("refrain_pending_cache_ids", &[]) >= 1.0 && count("refrain_queues", &[]) >= 1.0);
    assert_eq!(count("refrain_queue_waiters", &[]), 0.0);
}

#[tokio::test]
async fn contract_metrics_are_exposed() {
    let (upstream, _folder, program, http) = start().await;
    let id = upstream.create_finished("producer", "t");
    for _ in 0..2 {
        http.retrieve("t", &id).await.expect("a response");
    }
    let text = get(&program, "/metrics", "text/plain").await.1;
    for start in [
        "refrain_requests_total{",
        "refrain_ids_total{",
        "refrain_upstream_calls_total{",
        "refrain_upstream_calls_saved_total ",
        "refrain_store_errors_total",
    ] {
        assert!(text.lines().any(|line| line.starts_with(start)), "{start}: {text}");
    }
    let labelled = |line: &str, words: &[&str]| words.iter().all(|word| line.contains(word));
    let found = |words: &[&str]| text.lines().any(|line| labelled(line, words));
    assert!(
        found(&[
            "refrain_requests_total{",
            "service=\"producer\"",
            "action=\"retrieve\"",
            "outcome=\"hit\"",
            "} 1"
        ]),
        "{text}"
    );
    assert!(
        found(&["refrain_upstream_calls_total{", "service=\"producer\"", "status=\"200\"", "} 1"]),
        "{text}"
    );
    assert!(found(&["refrain_ids_total{", "outcome=\"hit\"", "} 1"]), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_lookup_is_visible_in_the_queue_gauges() {
    let (upstream, _folder, program, http) = start().await;
    let (rule, hold) = Rule::lookups().hold();
    upstream.add_rule(rule);
    let lookup = tokio::spawn(async move { http.retrieve("t", "slow").await });
    hold.wait_for_held(1).await;
    let held = page(&program).await;
    assert_eq!(value(&held, "refrain_queue_ids", &[("state", "in_flight")]), 1.0);
    assert_eq!(value(&held, "refrain_queue_waiters", &[]), 1.0);
    assert_eq!(value(&held, "refrain_queue_ids", &[("state", "queued")]), 0.0);
    assert_eq!(json(&program, "/api/stats").await["queues"]["in_flight"], 1);
    hold.release();
    lookup.await.expect("no panic").expect("a response");
    let after = page(&program).await;
    assert_eq!(value(&after, "refrain_queue_ids", &[("state", "in_flight")]), 0.0);
    assert_eq!(value(&after, "refrain_queue_waiters", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_upstream_is_reported_as_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = Program::serve("http://127.0.0.1:1", folder.path(), &[]);
    assert_eq!(client(program.address).retrieve("t", "a").await.unwrap().status, 502);
    let page = page(&program).await;
    assert_eq!(value(&page, "refrain_upstream_down", &[]), 1.0);
    assert_eq!(value(&page, "refrain_upstream_calls_total", &[("status", "refused")]), 1.0);
    assert_eq!(value(&page, "refrain_upstream_calls_saved_total", &[]), 0.0, "no lookup succeeded");
    let upstream = &json(&program, "/api/stats").await["upstream"];
    let outage = &upstream["outage"];
    assert_eq!((&upstream["is_down"], &upstream["host"]), (&json!(true), &json!("127.0.0.1:1")));
    assert_eq!(
        (&outage["error"], &outage["cause"]),
        (&json!("refused"), &json!("the connection was refused"))
    );
    assert!(outage["began_at"].as_u64().is_some_and(|at| at > 1_700_000_000), "{outage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_has_a_step_every_ten_seconds() {
    let (upstream, _folder, program, http) = start().await;
    let history = json(&program, "/api/history").await;
    assert_eq!((&history["range"], &history["step_seconds"]), (&json!("1h"), &json!(10)));
    let day = json(&program, "/api/history?range=24h").await;
    assert_eq!((&day["range"], &day["step_seconds"]), (&json!("24h"), &json!(300)));
    let wrong = format!("http://{}/api/history?range=1w", program.admin);
    let refusal = http.http.get(wrong).send().await.unwrap();
    assert_eq!(refusal.status(), 400);
    assert!(refusal.text().await.unwrap().contains("range"));

    upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    for _ in 0..3 {
        http.retrieve("t", DOCUMENTED_ID).await.unwrap();
    }
    // On a busy machine the requests may be in two steps.
    let sum = |history: &Value, name: &str| {
        history[name].as_array().into_iter().flatten().filter_map(Value::as_u64).sum::<u64>()
    };
    eventually("steps", async || sum(&json(&program, "/api/history").await, "lookups") == 3).await;
    let history = json(&program, "/api/history?range=1h").await;
    for (name, expected) in [("ids_hit", 2), ("calls", 1), ("calls_saved", 2)] {
        assert_eq!(sum(&history, name), expected, "{name}: {history}");
    }
    let last = |name: &str| history[name].as_array().and_then(|column| column.last()).cloned();
    assert_eq!(last("store_tasks"), Some(json!(1)));
    let latencies = history["upstream_p99_seconds"].as_array().unwrap();
    assert!(latencies.iter().any(Value::is_f64), "{history}");
    let steps = history["at"].as_array().unwrap().len();
    let columns = history.as_object().unwrap().iter().filter(|(_, column)| column.is_array());
    assert!(
        columns.clone().count() >= 14
            && columns.clone().all(|(_, column)| column.as_array().unwrap().len() == steps)
    );
}

#[tokio::test]
async fn accept_header_selects_the_metrics_format() {
    let (_upstream, _folder, program, _) = start().await;
    let (content_type, text) = get(&program, "/metrics", "*/*").await;
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert!(text.contains("# TYPE refrain_requests_total counter\n") && !text.contains("# EOF"));
    let (content_type, text) =
        get(&program, "/metrics", "application/openmetrics-text;version=1.0.0,*/*;q=0.1").await;
    assert_eq!(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(text.contains("# TYPE refrain_requests counter\n") && text.ends_with("\n# EOF\n"));
    assert!(
        text.contains("# TYPE refrain_build info\n") && text.contains("# UNIT refrain_memory_bytes bytes\n")
    );
}

#[tokio::test]
async fn documentation_lists_exactly_the_exposed_metrics() {
    let page = page_in_use().await;
    let section = DOCUMENTATION.split("\n## ").find(|section| section.starts_with("All metrics"));
    let documented: BTreeMap<&str, (&str, BTreeSet<&str>)> = section
        .expect("the section of the table")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let mut cell = || cells.next().expect("four cells");
            let (name, kind, labels) = (cell().trim_matches('`'), cell(), cell());
            let labels = labels.split(',').map(|label| label.trim().trim_matches('`'));
            (name, (kind, labels.filter(|label| !label.is_empty()).collect()))
        })
        .collect();
    let exposed: BTreeMap<&str, (&str, BTreeSet<&str>)> =
        page.iter().map(|(name, family)| (name.as_str(), (family.kind.as_str(), family.labels()))).collect();
    for (name, found) in &exposed {
        assert_eq!(documented.get(name), Some(found), "docs/metrics.md has no {name}, or with other labels");
    }
    for name in documented.keys().filter(|_| cfg!(target_os = "linux")) {
        assert!(exposed.contains_key(name), "docs/metrics.md has {name}, which is not exposed");
    }
}

/// Panics if an expression uses a metric, a label or a label value that does not exist.
fn check_expression(page: &Page, expression: &str) {
    let mentions = promql::read(expression);
    let mut labels: BTreeSet<&str> = OF_THE_SCRAPE.into();
    for selector in &mentions.selectors {
        let samples = page.values().flat_map(|family| &family.samples);
        let series: Vec<_> = samples.filter(|sample| sample.name == selector.name).collect();
        assert!(!series.is_empty(), "no metric {} in {expression}", selector.name);
        labels.extend(series.iter().flat_map(|sample| sample.labels.keys()).map(String::as_str));
        for (label, operator, value) in &selector.matchers {
            if OF_THE_SCRAPE.contains(&label.as_str()) {
                continue;
            }
            let values: BTreeSet<&str> =
                series.iter().filter_map(|sample| sample.labels.get(label)).map(String::as_str).collect();
            assert!(!values.is_empty(), "{} has no label {label} in {expression}", selector.name);
            let is_plain =
                |value: &str| value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let alternatives =
                if operator.contains('~') { value.split('|').collect() } else { vec![value.as_str()] };
            for alternative in alternatives.into_iter().filter(|value| is_plain(value)) {
                assert!(values.contains(alternative), "no {label} is {alternative:?} in {expression}");
            }
        }
    }
    for label in &mentions.grouped_by {
        assert!(labels.contains(label.as_str()), "no metric has {label} in {expression}");
    }
}

#[tokio::test]
async fn grafana_dashboard_uses_existing_metrics() {
    let page = page_in_use().await;
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut expressions = 0;
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{}", panel["title"]);
        assert!(places.insert(panel["gridPos"].to_string()), "{} covers another", panel["title"]);
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        for target in panel["targets"].as_array().expect("targets") {
            expressions += 1;
            check_expression(&page, target["expr"].as_str().expect("an expression"));
        }
    }
    assert!(expressions > 30, "{expressions}");
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    assert!(variables.iter().any(|variable| variable["type"] == "datasource"));
}

#[tokio::test]
async fn alerts_use_existing_metrics_and_name_their_runbooks() {
    let page = page_in_use().await;
    // One block per alert, one line per value. `tests/extended metrics` reads the file as YAML with
    // promtool.
    let blocks: Vec<&str> = ALERTS.split("- alert: ").skip(1).collect();
    assert!(blocks.len() >= 10);
    for block in blocks {
        let name = block.lines().next().expect("a name").trim();
        let value = |key: &str| {
            let line = block.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
            line.unwrap_or_else(|| panic!("{name} has no {key}")).trim_matches('\'')
        };
        check_expression(&page, value("expr"));
        assert!(["critical", "warning", "info"].contains(&value("severity")), "{name}");
        assert!(value("summary").len() > 10 && value("description").len() > 20, "{name}");
        let mut anchor = String::new();
        for letter in name.chars() {
            if letter.is_ascii_uppercase() {
                anchor.push('-');
            }
            anchor.push(letter.to_ascii_lowercase());
        }
        assert_eq!(value("runbook"), format!("docs/operations.md#alert{anchor}"));
    }
}
