//! Batching and rate: how lookups share upstream calls, and that no token exceeds its rate.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{
    DOCUMENTED, DOCUMENTED_ID, Program, RawPeer, TestApp, client, envelope, eventually, in_parallel, request,
    simulator, token_record,
};

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_clients_of_one_new_id_share_one_call() {
    let app = TestApp::spawn().await;
    let text = token_record("new", "t", 300);
    app.upstream.put_record("producer", "t", "new", text.clone());
    let (rule, hold) = Rule::lookups().hold();
    app.upstream.add_rule(rule);
    let http = client(app.address);
    let replies = tokio::spawn(async move {
        in_parallel(500, 500, |_| {
            let http = http.clone();
            async move { http.retrieve("t", "new").await.expect("a response") }
        })
        .await
    });
    hold.wait_for_held(1).await;
    eventually("all clients wait for the call", async || {
        app.admin("/api/queues").await.json()["queues"][0]["waiters"] == 500
    })
    .await;
    hold.release();
    let replies = replies.await.expect("no panic");
    assert_eq!(app.calls(), 1);
    assert!(replies.iter().all(|reply| reply.status == StatusCode::OK && reply.body == text));
    let joined = replies.iter().filter(|reply| reply.header("cache-status").contains("collapsed")).count();
    assert_eq!(joined, 499, "one made the call, the others joined it");
}

#[tokio::test]
async fn upstream_call_holds_at_most_max_batch_distinct_ids() {
    let app = TestApp::spawn_with(|config| config.upstream.max_batch = 3).await;
    let ids: Vec<String> = (0..8).map(|_| app.upstream.create_finished("producer", "t")).collect();
    let repeated: Vec<&String> = ids.iter().chain(&ids).chain(ids.iter().rev()).collect();
    let reply = app.batch("t", &repeated).await;
    assert_eq!(reply.json()["count"], 24);
    let calls = app.upstream.lookup_calls();
    assert_eq!(calls.len(), 3, "8 ids in calls of 3");
    let requested: Vec<String> = calls.iter().flat_map(refrain_simulator::RecordedCall::ids).collect();
    assert!(calls.iter().all(|call| call.ids().len() <= 3));
    assert_eq!(requested.len(), 8, "each once");
    assert_eq!(requested.into_iter().collect::<HashSet<_>>(), ids.into_iter().collect());
}

#[tokio::test]
async fn lookups_with_different_forwarded_headers_share_no_call() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let (rule, hold) = Rule::lookups().hold();
    app.upstream.add_rule(rule);
    let body = json!({"action": "retrieve", "id": id});
    let (plain, exempt, other, ()) = tokio::join!(
        app.look_up("t", &body, &[]),
        app.look_up("t", &body, &[("x-record-exempt", "true")]),
        app.look_up("t", &body, &[("x-record-exempt", "false")]),
        async {
            hold.wait_for_held(3).await;
            hold.release();
        }
    );
    assert_eq!((&plain.body, &plain.body), (&exempt.body, &other.body));
    let mut sent: Vec<Option<String>> =
        app.upstream.calls().iter().map(|call| call.header("x-record-exempt").map(str::to_owned)).collect();
    sent.sort();
    assert_eq!(sent, [None, Some("false".into()), Some("true".into())]);
    app.assert_stored("t", &id).await;
}

#[tokio::test]
async fn cancelled_lookup_does_not_fail_those_that_joined_its_call() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let (rule, hold) = Rule::lookups().containing_id(&id).hold();
    app.upstream.add_rule(rule);
    {
        let mut leader = RawPeer::connect(app.address).await;
        let headers = [("authorization", "Bearer t"), ("content-type", "application/json")];
        let body = json!({"action": "retrieve", "id": id}).to_string();
        leader.write(request("POST /producer/tasks", &headers, body)).await;
        hold.wait_for_held(1).await;
    }
    // Each lookup has an id of its own too. Once that id was requested upstream, the lookup has
    // joined the call.
    let own = |number: usize| format!("own-{number}");
    let joining = join_all((0..49).map(|number| {
        let ids = [id.clone(), own(number)];
        let app = &app;
        async move { app.batch("t", &ids).await }
    }));
    let (replies, ()) = tokio::join!(joining, async {
        let requested = |upstream: &refrain_simulator::Simulator| -> HashSet<String> {
            upstream.lookup_calls().iter().flat_map(refrain_simulator::RecordedCall::ids).collect()
        };
        app.upstream.wait_until("all lookups have joined", |upstream| requested(upstream).len() == 50).await;
        hold.release();
    });
    let expected = envelope(&[String::from_utf8_lossy(&app.upstream.task_record(&id).expect("known"))]);
    for reply in replies {
        assert_eq!((reply.status, &reply.body[..]), (StatusCode::OK, expected.as_bytes()));
    }
    let for_it = app.upstream.lookup_calls().iter().filter(|call| call.ids().contains(&id)).count();
    assert_eq!(for_it, 1, "the call outlives its client");
}

#[tokio::test]
async fn refused_batch_fails_only_the_id_that_caused_it() {
    let app = TestApp::spawn_with(|config| {
        config.upstream.max_retries = 0;
        config.upstream.requests_per_second = 5.0;
        config.upstream.burst = 1;
        config.tasks.queue_timeout = Duration::from_secs(15);
    })
    .await;
    let ids: Vec<String> = (0..5).map(|_| app.upstream.create_finished("producer", "t")).collect();
    app.upstream.add_rule(Rule::lookups().containing_id("culprit").error(422, "bad_request"));
    app.retrieve("t", "first").await;
    let (others, culprit) =
        tokio::join!(join_all(ids.iter().map(|id| app.retrieve("t", id))), app.retrieve("t", "culprit"));
    for (reply, id) in others.iter().zip(&ids) {
        assert_eq!(
            (reply.status, &reply.body),
            (StatusCode::OK, &app.upstream.task_record(id).expect("known"))
        );
    }
    assert_eq!(culprit.status.as_u16(), 422, "{culprit:?}");
    assert!(app.upstream.lookup_calls().iter().any(|call| call.ids().len() > 1), "no ids were batched");
}

#[tokio::test]
async fn id_left_out_of_a_batch_is_requested_again_alone() {
    let app = TestApp::spawn_with(|config| {
        config.upstream.requests_per_second = 5.0;
        config.upstream.burst = 1;
        config.tasks.queue_timeout = Duration::from_secs(15);
    })
    .await;
    let [one, two] = [(); 2].map(|()| app.upstream.create_finished("producer", "t"));
    app.upstream.add_rule(Rule::lookups().action("retrieve_batch").omit_ids([one.clone()]));
    app.retrieve("t", "first").await;
    let (left_out, there, unknown) =
        tokio::join!(app.retrieve("t", &one), app.retrieve("t", &two), app.retrieve("t", "unknown"));
    assert_eq!(left_out.body, app.upstream.task_record(&one).expect("known"));
    assert_eq!(there.body, app.upstream.task_record(&two).expect("known"));
    assert_eq!(unknown.body, "{}");
    let calls = app.upstream.lookup_calls();
    assert!(calls.iter().any(|call| call.ids().len() > 1), "no ids were batched");
    let alone = |id: &str| calls.iter().filter(|call| call.ids() == [id]).count();
    assert_eq!((alone(&one), alone("unknown"), alone(&two)), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_token_does_not_delay_other_tokens() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let environment = [("REFRAIN_UPSTREAM__REQUESTS_PER_SECOND", "2"), ("REFRAIN_UPSTREAM__BURST", "1")];
    let program = Program::serve(&upstream.base_url(), folder.path(), &environment);
    for n in 0..20 {
        let (token, id) = (format!("quiet-{n}"), format!("task-{n}"));
        upstream.put_record("producer", &token, &id, token_record(&id, &token, 40));
    }
    let http = client(program.address);
    let start = Instant::now();
    let noise = tokio::spawn({
        let http = client(program.address);
        async move {
            in_parallel(1000, 100, |n| {
                let http = http.clone();
                async move {
                    let id = format!("noise-{n}");
                    let _ =
                        tokio::time::timeout(Duration::from_millis(400), http.retrieve("noisy", &id)).await;
                }
            })
            .await
        }
    });
    upstream.wait_for_calls(1).await;
    let noisy_calls =
        || upstream.lookup_calls().iter().filter(|call| call.token.as_deref() == Some("noisy")).count();
    for n in 0..20 {
        let (token, id) = (format!("quiet-{n}"), format!("task-{n}"));
        let before = noisy_calls();
        let reply = http.retrieve(&token, &id).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.body), (200, token_record(&id, &token, 40).into()));
        // The busy token needs twenty calls. A lookup queued behind them would see most of them
        // first.
        let between = noisy_calls() - before;
        assert!(between < 10, "{token} waited for {between} calls of the busy token");
    }
    noise.await.unwrap();
    // Two per second, one of the burst, one at the boundary.
    let most = 2 + 2 * usize::try_from(start.elapsed().as_secs() + 1).unwrap();
    let noisy = noisy_calls();
    assert!(noisy <= most, "{noisy} calls of the busy token in {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn process_resumed_after_a_pause_makes_no_burst() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let environment = [("REFRAIN_UPSTREAM__REQUESTS_PER_SECOND", "2"), ("REFRAIN_UPSTREAM__BURST", "1")];
    let program = Program::serve(&upstream.base_url(), folder.path(), &environment);
    upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    let http = client(program.address);
    http.retrieve("t", DOCUMENTED_ID).await.unwrap();
    let pending: Vec<String> = (0..10).map(|_| upstream.create_pending("producer", "t")).collect();
    let poll = async |id: String| {
        let reply = http.retrieve("t", &id).await.expect("a response");
        assert_eq!(reply.status, 200, "{reply:?}");
        let age = reply.header("age");
        assert!(age.is_empty() || age.parse::<u64>().is_ok_and(|age| age < 60), "{age}");
    };
    join_all(pending.iter().cloned().map(poll)).await;

    program.signal("STOP");
    // Requests wait in the kernel while the process is stopped.
    let polls = join_all(pending.iter().cycle().take(100).cloned().map(poll));
    let go_on = async {
        // The length of the pause is what this test is about: tokens for eight calls would
        // accumulate.
        tokio::time::sleep(Duration::from_secs(4)).await;
        upstream.clear_calls();
        program.signal("CONT");
        let woken = Instant::now();
        while woken.elapsed() < Duration::from_secs(2) {
            join_all(pending.iter().cloned().map(poll)).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::join!(polls, go_on);
    // Two seconds at two per second, one of the burst, one at the boundary.
    let calls = upstream.lookup_calls();
    eprintln!("{} calls in the two seconds after the stop", calls.len());
    assert!(calls.len() <= 6, "{}", calls.len());
    assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
}
