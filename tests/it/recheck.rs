//! The recheck: a token without a recent acceptance goes upstream once before its next hit.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::StatusCode;
use refrain::config::Config;
use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{
    RawPeer, TestApp, assert_error, eventually, request, simulator, token_record, without_pending_cache,
};

const RECHECK: Duration = Duration::from_millis(300);

fn recheck(config: &mut Config) {
    without_pending_cache(config);
    config.access.recheck_after = RECHECK;
}

/// Waits until the acceptance of the last lookup is older than [`RECHECK`].
async fn wait_until_acceptance_is_old() {
    let accepted = Instant::now();
    eventually("the acceptance is old", async || accepted.elapsed() > RECHECK + Duration::from_millis(50))
        .await;
}

/// Starts an app with one stored record of `t`, whose last acceptance is too old.
async fn due_for_a_recheck() -> (TestApp, String) {
    let app = TestApp::spawn_with(recheck).await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    wait_until_acceptance_is_old().await;
    app.upstream.clear_calls();
    (app, id)
}

#[tokio::test]
async fn token_is_rechecked_once_for_all_waiting_hits() {
    let (app, id) = due_for_a_recheck().await;
    assert_one_recheck_for_all_waiting_hits(&app, &id).await;
}

#[tokio::test]
async fn one_recheck_is_shared_when_every_hit_needs_one() {
    let app = TestApp::spawn_with(|config| {
        without_pending_cache(config);
        config.access.recheck_after = Duration::ZERO;
    })
    .await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    app.upstream.clear_calls();
    assert_one_recheck_for_all_waiting_hits(&app, &id).await;
    app.retrieve("t", &id).await;
    assert_eq!(calls_of_t(&app), 2, "a hit that did not wait for the first recheck");
}

/// Asserts that 30 lookups of a stored task make one call, which holds up no other token.
async fn assert_one_recheck_for_all_waiting_hits(app: &TestApp, id: &str) {
    let other = app.upstream.create_finished("producer", "u");
    let (rule, hold) = Rule::lookups().token("t").hold();
    app.upstream.add_rule(rule);
    let hits = stored_records_read(app).await;
    let (replies, ()) = tokio::join!(join_all((0..30).map(|_| app.retrieve("t", id))), async {
        hold.wait_for_held(1).await;
        app.retrieve("u", &other).await;
        eventually("all lookups wait", async || stored_records_read(app).await == hits + 30).await;
        assert_eq!(hold.held_calls(), 1, "one call for the token");
        hold.release();
    });
    let text = app.upstream.task_record(id).expect("known");
    assert!(replies.iter().all(|reply| reply.status == StatusCode::OK && reply.body == text), "{replies:?}");
    assert_eq!(calls_of_t(app), 1);
}

/// Returns how many times a record was found in the memory cache.
async fn stored_records_read(app: &TestApp) -> u64 {
    let page = app.admin("/metrics").await.body;
    let page = std::str::from_utf8(&page).expect("text");
    let prefix = "refrain_store_lookups_total{result=\"memory\"} ";
    let count = page.lines().find_map(|line| line.strip_prefix(prefix)).expect("the metric");
    count.parse().expect("a number")
}

fn calls_of_t(app: &TestApp) -> usize {
    app.upstream.calls().iter().filter(|call| call.token.as_deref() == Some("t")).count()
}

#[tokio::test]
async fn empty_recheck_response_renews_the_token_and_deletes_nothing() {
    let (app, id) = due_for_a_recheck().await;
    app.upstream.remove(&id);
    let reply = app.retrieve("t", &id).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.json()["id"], json!(id), "the stored record is served");
    assert_eq!(app.upstream.call_count(), 1);
    app.assert_stored("t", &id).await;
}

#[tokio::test]
async fn refused_token_has_no_hits_until_a_lookup_succeeds() {
    for (status, code) in [
        (401, "invalid_token"),
        (401, "token_expired"),
        (401, "anything"),
        (403, "disabled"),
        (403, "token_expired"),
    ] {
        let (app, id) = due_for_a_recheck().await;
        app.upstream.refuse_token("t", status, code);
        for calls in 1..=3 {
            let reply = app.retrieve("t", &id).await;
            assert_error(&reply, status, code);
            assert_eq!(app.upstream.call_count(), calls, "{code}");
        }
        assert_error(&app.batch("t", &[&id]).await, status, code);
        // Neither an unreachable upstream nor a restart brings the hits back.
        app.upstream.stop().await;
        let app = app.restart_with(without_pending_cache).await;
        let reply = app.retrieve("t", &id).await;
        assert_error(&reply, 502, "api_error");
        app.upstream.resume().await.expect("the port is free again");
        app.upstream.accept_token("t");
        eventually("a lookup succeeds", async || app.retrieve("t", &id).await.status == StatusCode::OK).await;
        app.assert_stored("t", &id).await;
    }
}

#[tokio::test]
async fn refusal_of_any_lookup_ends_the_hits_of_its_token() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    app.upstream.refuse_token("t", 401, "invalid_token");
    assert_error(&app.retrieve("t", "another").await, 401, "invalid_token");
    assert_error(&app.retrieve("t", &id).await, 401, "invalid_token");
    app.upstream.accept_token("t");
    assert_eq!(app.retrieve("t", "another").await.status, StatusCode::OK);
    app.assert_stored("t", &id).await;
}

#[tokio::test]
async fn unrelated_error_keeps_the_hits_and_delays_the_next_recheck() {
    for (status, code) in [
        (403, "used_up"),
        (403, "forbidden"),
        (403, "a_new_code"),
        (400, "bad_request"),
        (404, "no_api"),
        (429, "too_many_requests"),
        (500, "api_error"),
        (503, "api_error"),
    ] {
        let (app, id) = due_for_a_recheck().await;
        app.upstream.add_rule(Rule::lookups().error(status, code));
        for _ in 0..5 {
            let reply = app.retrieve("t", &id).await;
            assert_eq!(
                (reply.status, reply.x_cache()),
                (StatusCode::OK, "HIT"),
                "{status} {code}: {reply:?}"
            );
        }
        assert_eq!(app.upstream.call_count(), 1, "{status} {code}: retried after a minute, not before");
    }
}

#[tokio::test]
async fn unreachable_upstream_keeps_the_hits() {
    let (app, id) = due_for_a_recheck().await;
    app.upstream.stop().await;
    for _ in 0..5 {
        let reply = app.retrieve("t", &id).await;
        assert_eq!((reply.status, reply.x_cache()), (StatusCode::OK, "HIT"), "{reply:?}");
    }
    let app = app.restart_with(recheck).await;
    assert_eq!(app.retrieve("t", &id).await.x_cache(), "HIT");
}

#[tokio::test]
async fn silent_upstream_keeps_the_hits() {
    let app = TestApp::spawn_with(|config| {
        recheck(config);
        config.upstream.request_timeout = Duration::from_millis(300);
    })
    .await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    wait_until_acceptance_is_old().await;
    app.upstream.add_rule(Rule::lookups().black_hole());
    for _ in 0..3 {
        assert_eq!(app.retrieve("t", &id).await.x_cache(), "HIT");
    }
    assert_eq!(app.calls(), 2, "one recheck, the next one after a minute");
}

/// The recheck continues when its client hangs up. Hits wait for its first response, not for the
/// retries.
#[tokio::test]
async fn hits_wait_only_for_the_first_response_of_the_recheck() {
    let app = TestApp::spawn_with(|config| {
        recheck(config);
        config.upstream.max_retries = 4;
    })
    .await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    wait_until_acceptance_is_old().await;
    let (rule, hold) = Rule::lookups().error(500, "api_error").hold();
    app.upstream.add_rule(rule);
    let mut peer = RawPeer::connect(app.address).await;
    let lookup = json!({"action": "retrieve", "id": id}).to_string();
    peer.write(request("POST /producer/tasks", &[("authorization", "Bearer t")], lookup)).await;
    hold.wait_for_held(1).await;
    drop(peer);
    let (replies, ()) =
        tokio::join!(join_all((0..10).map(|_| app.retrieve("t", &id))), async { hold.release() });
    assert!(replies.iter().all(|reply| reply.x_cache() == "HIT"));
    assert_eq!(app.calls(), 2, "the miss and one recheck");
}

#[tokio::test]
async fn last_acceptance_survives_a_restart() {
    let app = TestApp::spawn_with(without_pending_cache).await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let stored = Instant::now();
    app.upstream.stop().await;
    let app = app.restart_with(without_pending_cache).await;
    app.assert_stored("t", &id).await;
    app.upstream.resume().await.expect("the port is free again");

    // The time of the acceptance counts, not that of the start.
    eventually("the acceptance is old", async || stored.elapsed() > Duration::from_millis(2500)).await;
    let app = app.restart_with(|config| config.access.recheck_after = Duration::from_secs(1)).await;
    app.upstream.clear_calls();
    assert_eq!(app.retrieve("t", &id).await.status, StatusCode::OK);
    assert_eq!(app.upstream.call_count(), 1, "the recheck was due");
}

#[tokio::test]
async fn any_successful_lookup_renews_the_acceptance() {
    let app = TestApp::spawn_with(|config| {
        without_pending_cache(config);
        config.access.recheck_after = Duration::from_secs(3);
    })
    .await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let first = Instant::now();
    eventually("half the time passed", async || first.elapsed() > Duration::from_millis(2000)).await;
    app.retrieve("t", "unknown").await;
    eventually("the first acceptance is old", async || first.elapsed() > Duration::from_millis(3500)).await;
    app.assert_stored("t", &id).await;
}

#[tokio::test]
async fn failed_recheck_never_replaces_a_stored_record() {
    let upstream = simulator().await;
    let text = Bytes::from(token_record("kept", "t", 40));
    upstream.put_record("producer", "t", "kept", text.clone());
    let folder = tempfile::tempdir().unwrap();
    // Every lookup is a recheck, so that the upstream is called although the record is stored.
    let app = TestApp::spawn_at(upstream, folder, |config| {
        config.access.recheck_after = Duration::ZERO;
        config.upstream.max_retries = 0;
    })
    .await;
    assert_eq!(app.retrieve("t", "kept").await.body, text);
    let other_text = token_record("kept", "t", 41);
    let rules = [
        Rule::lookups().body("application/json", "{}"),
        Rule::lookups().body("application/json", "{\"items\":[],\"count\":0}"),
        Rule::lookups().body("application/json", "null"),
        Rule::lookups().body("application/json", text.replace_first("finished_at", "created_at")),
        Rule::lookups().error(500, "api_error"),
        Rule::lookups().error(404, "not_found"),
        Rule::lookups().error(403, "forbidden"),
        Rule::lookups().html(),
        Rule::lookups().close_without_response(),
    ];
    for (n, rule) in rules.into_iter().enumerate() {
        app.upstream.clear_rules();
        app.upstream.add_rule(rule);
        for headers in [&[][..], &[("cache-control", "no-cache")]] {
            let reply = app.look_up("t", &json!({"action": "retrieve", "id": "kept"}), headers).await;
            assert_eq!((reply.x_cache(), &reply.body), ("HIT", &text), "rule {n}, {headers:?}");
            let reply =
                app.look_up("t", &json!({"action": "retrieve_batch", "ids": ["kept"]}), headers).await;
            assert_eq!((reply.x_cache(), reply.json()["count"].as_u64()), ("HIT", Some(1)), "rule {n}");
        }
    }
    app.upstream.clear_rules();
    app.upstream.put_record("producer", "t", "kept", other_text);
    assert_eq!(app.retrieve("t", "kept").await.body, text);
}

trait ReplaceFirst {
    fn replace_first(&self, from: &str, to: &str) -> String;
}

impl ReplaceFirst for Bytes {
    fn replace_first(&self, from: &str, to: &str) -> String {
        std::str::from_utf8(self).expect("text").replacen(from, to, 1)
    }
}
