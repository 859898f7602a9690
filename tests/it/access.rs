//! Nobody reads what the upstream has not shown to them: law 1 in every form, shared mode, and the recheck.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use refrain::config::{AccessMode, Client, Config};
use refrain::token::Token;
use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{Reply, TestApp, Wire, assert_error, envelope, eventually, finished, request};

fn fresh(config: &mut Config) {
    config.tasks.pending_max_age = Duration::ZERO;
    config.upstream.max_retries = 0;
}

/// Asserts that the upstream was asked with this token, and that its answer is what came.
async fn asks_for_itself(app: &TestApp, token: &str, id: &str, expected: &str) {
    let before = app.calls();
    let reply = app.retrieve(token, id).await;
    assert_eq!((reply.x_cache(), &reply.body[..]), ("MISS", expected.as_bytes()), "{token} {id}");
    let calls = app.upstream.look_up_calls();
    assert_eq!(calls.len(), before + 1);
    assert_eq!(calls[before].token.as_deref(), Some(token));
}

/// A reverse proxy sends many clients' requests over one connection.
#[tokio::test]
async fn on_one_connection_each_request_counts_for_itself() {
    let app = TestApp::spawn_with(fresh).await;
    let id = app.upstream.create_finished("producer", "a");
    let text = app.retrieve("a", &id).await.body;
    let mut wire = Wire::connect(app.address).await;
    for token in
        ["Bearer a", "Bearer b", "bearer a", "Bearer aa", "Bearer a", "Bearer A", "Basic a", "", "Bearer a"]
    {
        let body = json!({"action": "retrieve", "id": id}).to_string();
        wire.write(request("POST /producer/tasks", &[("authorization", token)], body)).await;
        let answer = wire.answer().await;
        let is_a = token.eq_ignore_ascii_case("bearer a") && token.ends_with('a');
        assert_eq!(answer.header("x-cache") == "HIT", is_a, "{token}");
        assert_eq!(answer.body == text, is_a, "{token}");
    }
}

#[tokio::test]
async fn a_stranger_gets_what_the_upstream_tells_it_of_a_stored_task() {
    for memory_bytes in [0, 1 << 20] {
        let setting = |config: &mut Config| {
            fresh(config);
            config.store.memory_bytes = memory_bytes;
        };
        let app = TestApp::spawn_with(setting).await;
        let id = app.upstream.create_finished("producer", "a");
        app.retrieve("a", &id).await;
        app.assert_stored("a", &id).await;
        for stranger in ["b", "A", "a.", "aa", "bearer", "a,b"] {
            asks_for_itself(&app, stranger, &id, "{}").await;
            asks_for_itself(&app, stranger, &id, "{}").await;
        }
        let batch = app.batch("b", &[&id, &id]).await;
        assert_eq!(batch.body, r#"{"items":[],"count":0}"#);

        let app = app.restart_with(setting).await;
        app.assert_stored("a", &id).await;
        asks_for_itself(&app, "b", &id, "{}").await;

        // Shown to it, it is its own from then on.
        app.upstream.share(&id, "b");
        let text = app.upstream.task_text(&id).expect("known");
        asks_for_itself(&app, "b", &id, &String::from_utf8_lossy(&text)).await;
        assert_eq!(app.assert_stored("b", &id).await.body, text);
        asks_for_itself(&app, "c", &id, "{}").await;
    }
}

#[tokio::test]
async fn a_stranger_never_joins_a_call_under_way() {
    let app = TestApp::spawn_with(fresh).await;
    let id = app.upstream.create_finished("producer", "a");
    let (rule, hold) = Rule::look_ups().token("a").hold();
    app.upstream.script(rule);
    let (own, ()) = tokio::join!(app.retrieve("a", &id), async {
        hold.wait_for_held(1).await;
        asks_for_itself(&app, "b", &id, "{}").await;
        hold.release();
    });
    assert_eq!(own.body, app.upstream.task_text(&id).expect("known"));
    asks_for_itself(&app, "b", &id, "{}").await;
}

#[tokio::test]
async fn of_a_batch_each_gets_its_own_half_from_the_store() {
    let app = TestApp::spawn_with(fresh).await;
    for id in ["one", "both", "two"] {
        app.upstream.put_raw("producer", "a", id, finished(id, "x"));
    }
    app.upstream.share("both", "b");
    app.batch("a", &["one", "both", "two"]).await;
    app.retrieve("b", "both").await;
    app.upstream.clear_calls();

    let reply = app.batch("b", &["one", "both", "two"]).await;
    assert_eq!(reply.body, envelope(&[finished("both", "x")]));
    assert_eq!(reply.x_cache(), "PARTIAL");
    let calls = app.upstream.calls();
    let mut asked: Vec<String> = calls.iter().flat_map(refrain_simulator::RecordedCall::ids).collect();
    asked.sort();
    assert_eq!(asked, ["one", "two"]);
    assert!(calls.iter().all(|call| call.token.as_deref() == Some("b")));
}

#[tokio::test]
async fn in_the_same_millisecond_everyone_gets_their_own() {
    let app = TestApp::spawn_with(fresh).await;
    let id = app.upstream.create_finished("producer", "a");
    let text = app.upstream.task_text(&id).expect("known");
    for _ in 0..10 {
        let replies = join_all((0..40).map(|number| {
            let token = if number % 2 == 0 { "a" } else { "b" };
            let (app, id) = (&app, &id);
            async move { (token, app.retrieve(token, id).await) }
        }))
        .await;
        for (token, reply) in replies {
            let expected = if token == "a" { &text[..] } else { b"{}" };
            assert_eq!((reply.status, &reply.body[..]), (StatusCode::OK, expected), "{token}");
        }
    }
}

#[tokio::test]
async fn two_tokens_that_are_told_different_texts_never_see_each_others() {
    for memory_bytes in [0, 1 << 20] {
        let app = TestApp::spawn_with(|config| config.store.memory_bytes = memory_bytes).await;
        for token in ["a", "b"] {
            app.upstream.put_raw("producer", token, "id", finished("id", token));
        }
        for token in ["a", "b", "a", "b", "b", "a"] {
            let reply = app.retrieve(token, "id").await;
            assert_eq!(reply.body, finished("id", token), "{token} was shown another text than its own");
            let reply = app.batch(token, &["id"]).await;
            assert_eq!(reply.body, envelope(&[finished("id", token)]), "{token}");
        }
    }
}

#[tokio::test]
async fn with_many_tokens_and_clients_that_leave_no_answer_goes_to_another() {
    let app = TestApp::spawn_with(fresh).await;
    let tokens = ["t0", "t1", "t2", "t3"];
    for number in 0..60 {
        for token in tokens {
            let id = format!("{token}-{number}");
            app.upstream.put_raw("producer", token, &id, finished(&id, token));
        }
    }
    app.upstream.script(Rule::look_ups().delay(Duration::from_millis(3)));
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..40 {
        let asking = (0..25).map(|_| {
            let token = tokens[random.usize(..tokens.len())];
            let (owner, number) = (tokens[random.usize(..tokens.len())], random.usize(..60));
            let leaves = random.u8(..4) == 0;
            let patience = Duration::from_micros(random.u64(..6000));
            let app = &app;
            async move {
                let id = format!("{owner}-{number}");
                let asked = app.retrieve(token, &id);
                let reply = if leaves {
                    match tokio::time::timeout(patience, asked).await {
                        Ok(reply) => reply,
                        Err(_) => return,
                    }
                } else {
                    asked.await
                };
                let expected = if owner == token { finished(&id, token) } else { "{}".to_owned() };
                assert_eq!(reply.body, expected, "{token} asked for {id}");
            }
        });
        join_all(asking).await;
    }
    for call in app.upstream.look_up_calls() {
        assert!(call.token.is_some_and(|token| tokens.contains(&&*token)));
    }
}

fn shared(config: &mut Config) {
    let token = |text: &str| Token::parse(text).expect("a token");
    fresh(config);
    config.access.mode = AccessMode::Shared;
    config.upstream.token = Some(token("team-canary"));
    config.access.clients = vec![
        Client { name: "one".into(), key: token("key-one") },
        Client { name: "two".into(), key: token("key-two") },
    ];
}

#[tokio::test]
async fn on_one_connection_a_wrong_key_gets_nothing_after_a_right_one() {
    let app = TestApp::spawn_with(shared).await;
    let id = app.upstream.create_finished("producer", "team-canary");
    app.retrieve("key-one", &id).await;
    let mut wire = Wire::connect(app.address).await;
    for (key, status) in
        [("key-one", 200), ("key-on", 401), ("key-two", 200), ("key-one ", 200), ("key-ones", 401)]
    {
        let body = json!({"action": "retrieve", "id": id}).to_string();
        wire.write(request("POST /producer/tasks", &[("authorization", &format!("Bearer {key}"))], body))
            .await;
        assert_eq!(wire.answer().await.status, status, "{key}");
    }
}

/// Nothing of a client's key is in what the upstream saw.
fn assert_no_key_went_upstream(app: &TestApp) {
    for call in app.upstream.calls() {
        let seen = [&call.raw_head[..], &call.body[..]].concat();
        assert!(!String::from_utf8_lossy(&seen).contains("key-"), "{call:?}");
        assert_eq!(call.header("authorization"), Some("Bearer team-canary"));
    }
}

fn assert_no_team_token(reply: &Reply) {
    let shown = format!("{:?} {}", reply.headers, String::from_utf8_lossy(&reply.body));
    assert!(!shown.contains("team-canary"), "{shown}");
}

#[tokio::test]
async fn a_team_shares_one_view_and_its_token_stays_here() {
    let app = TestApp::spawn_with(shared).await;
    let id = app.upstream.create_finished("producer", "team-canary");
    for (key, expected) in [("key-one", "MISS"), ("key-two", "HIT"), ("key-one", "HIT")] {
        let reply = app.retrieve(key, &id).await;
        assert_eq!((reply.status, reply.x_cache()), (StatusCode::OK, expected));
        assert_no_team_token(&reply);
    }
    for key in ["key-one", "key-two"] {
        let started = app
            .send(app.http.post(app.url("/producer/audios")).bearer_auth(key).body(r#"{"async":true}"#))
            .await;
        assert_eq!((started.status, started.header("cache-status")), (StatusCode::OK, "refrain; fwd=bypass"));
        assert_no_team_token(&started);
    }
    assert_eq!(app.upstream.paid_starts(), 2);
    let deleted = app.look_up("key-two", &json!({"action": "delete", "id": id}), &[]).await;
    assert_eq!(deleted.json()["deleted"], true);
    assert_eq!(app.retrieve("key-one", &id).await.body, "{}", "deleted for all");
    assert_no_key_went_upstream(&app);
}

#[tokio::test]
async fn an_unknown_key_is_refused_on_every_path_and_nothing_goes_upstream() {
    let app = TestApp::spawn_with(shared).await;
    let id = app.upstream.create_finished("producer", "team-canary");
    app.retrieve("key-one", &id).await;
    app.upstream.clear_calls();
    let look_up = json!({"action": "retrieve", "id": id}).to_string();
    let lines = [
        "POST /producer/tasks",
        "POST /suno/tasks",
        "POST /producer/audios",
        "GET /",
        "HEAD /x",
        "DELETE /x",
        "OPTIONS /producer/tasks",
        "GET /metrics",
        "GET /healthz",
    ];
    let credentials: [&[(&str, &str)]; 10] = [
        &[("authorization", "Bearer unknown")],
        &[("authorization", "Bearer key-on")],
        &[("authorization", "Bearer key-one2")],
        &[("authorization", "Bearer KEY-ONE")],
        &[("authorization", "Bearer team-canary")],
        &[("authorization", "Basic key-one")],
        &[("x-api-key", "key-one")],
        &[("payment-signature", "key-one")],
        &[("cookie", "key=key-one")],
        &[],
    ];
    for line in lines {
        for headers in credentials {
            let mut wire = Wire::connect(app.address).await;
            wire.write(request(line, headers, &look_up)).await;
            let method = line.split(' ').next().expect("a method");
            let answer = wire.answer_to(method).await;
            assert_eq!(answer.status, 401, "{line} {headers:?}: {answer:?}");
            if method != "HEAD" {
                assert_eq!(answer.code(), "invalid_token", "{line} {headers:?}");
            }
        }
    }
    let two = [("authorization", "Bearer unknown"), ("authorization", "Bearer key-one")];
    let answer = app.raw(request("POST /producer/audios", &two, "{}")).await;
    assert_eq!(answer.status, 401, "in doubt it is unknown: {answer:?}");
    assert_eq!(app.upstream.call_count(), 0);
}

#[tokio::test]
async fn two_keys_in_one_request_never_bring_a_key_upstream() {
    let app = TestApp::spawn_with(shared).await;
    let two = [("authorization", "Bearer key-one"), ("authorization", "Bearer key-two")];
    for line in ["POST /producer/audios", "POST /producer/tasks"] {
        app.raw(request(line, &two, r#"{"action":"retrieve","id":"x"}"#)).await;
    }
    assert_no_key_went_upstream(&app);
}

#[tokio::test]
async fn a_teams_rights_outlive_a_change_of_its_token() {
    let app = TestApp::spawn_with(shared).await;
    let id = app.upstream.create_finished("producer", "team-canary");
    app.retrieve("key-one", &id).await;
    let app = app
        .restart_with(|config| {
            shared(config);
            config.upstream.token = Some(Token::parse("another").expect("a token"));
            config.access.clients.remove(0);
        })
        .await;
    app.upstream.clear_calls();
    let reply = app.retrieve("key-two", &id).await;
    assert_eq!((reply.status, reply.x_cache()), (StatusCode::OK, "HIT"), "{reply:?}");
    assert_error(&app.retrieve("key-one", &id).await, 401, "invalid_token");

    // In token mode the team's rights are nobody's.
    let app = app.restart_with(fresh).await;
    for token in ["team-canary", "another", "key-two"] {
        let before = app.calls();
        app.retrieve(token, &id).await;
        assert_eq!(app.calls(), before + 1, "{token} has to ask for itself");
    }
}

#[tokio::test]
async fn a_preflight_is_answered_before_the_key_is_looked_at() {
    let app = TestApp::spawn_with(|config| {
        shared(config);
        config.server.cors_origins = vec!["https://app.example".into()];
    })
    .await;
    let headers = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let answer = app.raw(request("OPTIONS /producer/tasks", &headers, "")).await;
    assert!(matches!(answer.status, 200 | 204), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
    let refused = app.raw(request("POST /producer/tasks", &headers[..1], "{}")).await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("access-control-allow-origin"), "https://app.example", "the page can read why");
    assert_eq!(app.upstream.call_count(), 0);
}

const RECHECK: Duration = Duration::from_millis(300);

fn recheck(config: &mut Config) {
    fresh(config);
    config.access.recheck_after = RECHECK;
}

/// An app with one stored task of `t` whose last acceptance is too old.
async fn due_for_a_recheck() -> (TestApp, String) {
    let app = TestApp::spawn_with(recheck).await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let accepted = Instant::now();
    eventually("the acceptance is old", async || accepted.elapsed() > RECHECK + Duration::from_millis(50))
        .await;
    app.upstream.clear_calls();
    (app, id)
}

#[tokio::test]
async fn a_token_is_rechecked_once_and_all_its_hits_join() {
    let (app, id) = due_for_a_recheck().await;
    let other = app.upstream.create_finished("producer", "u");
    let (rule, hold) = Rule::look_ups().token("t").hold();
    app.upstream.script(rule);
    let (replies, ()) = tokio::join!(join_all((0..30).map(|_| app.retrieve("t", &id))), async {
        hold.wait_for_held(1).await;
        app.retrieve("u", &other).await;
        assert_eq!(hold.held(), 1, "one call for the token");
        hold.release();
    });
    let text = app.upstream.task_text(&id).expect("known");
    assert!(replies.iter().all(|reply| reply.status == StatusCode::OK && reply.body == text), "{replies:?}");
    let rechecks = app.upstream.calls().iter().filter(|call| call.token.as_deref() == Some("t")).count();
    assert_eq!(rechecks, 1);
}

#[tokio::test]
async fn an_empty_answer_renews_too_and_is_no_reason_to_forget() {
    let (app, id) = due_for_a_recheck().await;
    app.upstream.remove(&id);
    let reply = app.retrieve("t", &id).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.json()["id"], json!(id), "what was shown stays shown");
    assert_eq!(app.upstream.call_count(), 1);
    app.assert_stored("t", &id).await;
}

#[tokio::test]
async fn a_refused_token_loses_its_hits_until_a_look_up_of_it_succeeds() {
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
        // Not even while nobody can be asked, nor after a restart.
        app.upstream.stop().await;
        let app = app.restart_with(fresh).await;
        let reply = app.retrieve("t", &id).await;
        assert_error(&reply, 502, "api_error");
        app.upstream.resume().await.expect("the port is free again");
        app.upstream.accept_token("t");
        eventually("a look-up succeeds", async || app.retrieve("t", &id).await.status == StatusCode::OK)
            .await;
        app.assert_stored("t", &id).await;
    }
}

#[tokio::test]
async fn a_refusal_of_any_look_up_ends_the_hits() {
    let app = TestApp::spawn_with(fresh).await;
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
async fn what_says_nothing_about_the_token_leaves_its_hits_and_is_tried_again_later() {
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
        app.upstream.script(Rule::look_ups().status(status, code));
        for _ in 0..5 {
            let reply = app.retrieve("t", &id).await;
            assert_eq!(
                (reply.status, reply.x_cache()),
                (StatusCode::OK, "HIT"),
                "{status} {code}: {reply:?}"
            );
        }
        assert_eq!(app.upstream.call_count(), 1, "{status} {code}: tried again after a minute, not before");
    }
}

#[tokio::test]
async fn an_upstream_that_is_gone_takes_no_hits_away() {
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
async fn an_upstream_that_never_answers_takes_no_hits_away() {
    let app = TestApp::spawn_with(|config| {
        recheck(config);
        config.upstream.request_timeout = Duration::from_millis(300);
    })
    .await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let accepted = Instant::now();
    eventually("the acceptance is old", async || accepted.elapsed() > RECHECK + Duration::from_millis(50))
        .await;
    app.upstream.script(Rule::look_ups().black_hole());
    for _ in 0..3 {
        assert_eq!(app.retrieve("t", &id).await.x_cache(), "HIT");
    }
    assert_eq!(app.calls(), 2, "once, and again after a minute");
}

/// A recheck goes on when its caller hangs up, and hits wait for its first answer, not for the look-up's other tries.
#[tokio::test]
async fn hits_wait_for_no_more_than_the_first_word_on_their_token() {
    let app = TestApp::spawn_with(|config| {
        recheck(config);
        config.upstream.max_retries = 4;
    })
    .await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let accepted = Instant::now();
    eventually("the acceptance is old", async || accepted.elapsed() > RECHECK + Duration::from_millis(50))
        .await;
    let (rule, hold) = Rule::look_ups().status(500, "api_error").hold();
    app.upstream.script(rule);
    let hung_up = tokio::time::timeout(Duration::from_millis(100), app.retrieve("t", &id)).await;
    assert!(hung_up.is_err());
    hold.wait_for_held(1).await;
    let (answers, ()) =
        tokio::join!(join_all((0..10).map(|_| app.retrieve("t", &id))), async { hold.release() });
    assert!(answers.iter().all(|answer| answer.x_cache() == "HIT"));
    assert_eq!(app.calls(), 2, "the miss and one recheck, which nobody repeated");
}

#[tokio::test]
async fn the_last_acceptance_is_remembered_over_a_restart() {
    let app = TestApp::spawn_with(fresh).await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let stored = Instant::now();
    app.upstream.stop().await;
    let app = app.restart_with(fresh).await;
    app.assert_stored("t", &id).await;
    app.upstream.resume().await.expect("the port is free again");

    // It is the time of the acceptance that counts, not that of the start.
    eventually("the acceptance is old", async || stored.elapsed() > Duration::from_millis(2500)).await;
    let app = app.restart_with(|config| config.access.recheck_after = Duration::from_secs(1)).await;
    app.upstream.clear_calls();
    assert_eq!(app.retrieve("t", &id).await.status, StatusCode::OK);
    assert_eq!(app.upstream.call_count(), 1, "the recheck was due");
}

#[tokio::test]
async fn any_look_up_that_succeeds_renews_the_acceptance() {
    let app = TestApp::spawn_with(|config| {
        fresh(config);
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
