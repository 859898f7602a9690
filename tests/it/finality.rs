//! Finality: only final records are stored; pending, unknown and doubtful ones are requested again.

use std::time::Duration;

use http::StatusCode;

use refrain::clock;

use crate::support::{TestApp, final_record};

#[tokio::test]
async fn unknown_id_is_relayed_verbatim_and_never_stored() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::ZERO).await;
    for calls in 1..=2 {
        let reply = app.retrieve("t", "missing").await;
        assert_eq!((reply.status, &reply.body[..], reply.x_cache()), (StatusCode::OK, &b"{}"[..], "MISS"));
        assert!(!reply.header("cache-status").contains("stored"), "{reply:?}");
        assert_eq!(app.calls(), calls);
    }
    app.upstream.put_record("producer", "t", "missing", final_record("missing", "x"));
    app.assert_not_stored("t", "missing").await;
    app.assert_stored("t", "missing").await;
}

#[tokio::test]
async fn pending_record_is_never_stored_and_a_final_one_is() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::ZERO).await;
    let [good, bad] = [(); 2].map(|()| app.upstream.create_pending("producer", "t"));
    for id in [&good, &bad] {
        for _ in 0..2 {
            let reply = app.retrieve("t", id).await;
            assert_eq!(reply.x_cache(), "MISS");
            assert!(!reply.header("cache-status").contains("stored"), "{reply:?}");
            assert!(reply.json().get("finished_at").is_none());
        }
    }
    assert_eq!(app.calls(), 4);
    app.upstream.finish(&good);
    app.upstream.fail(&bad);
    for id in [&good, &bad] {
        app.assert_not_stored("t", id).await;
        let stored = app.assert_stored("t", id).await;
        assert_eq!(stored.body, app.upstream.task_record(id).expect("known"));
    }
    assert_eq!(app.retrieve("t", &bad).await.json()["response"]["success"], false);
}

#[tokio::test]
async fn record_that_only_looks_final_is_never_stored() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::ZERO).await;
    let now = clock::unix_now().to_string();
    let task = |rest: &str| format!(r#"{{"id":"id",{rest}}}"#).replace("NOW", &now);
    let preview = r#""response":{"data":[{"audio_url":"https://m.example/p.m4a","state":"#;
    let texts = [
        task(&format!(r#"{preview}"processing"}}]}}"#)),
        task(&format!(r#"{preview}"processing"}}]}},"finished_at":NOW"#)),
        task(&format!(r#"{preview}"succeeded"}},{{"state":"Pending"}}]}},"finished_at":NOW"#)),
        task(r#""response":{"a":[[{"b":{"STATUS":"running"}}]]},"finished_at":NOW"#),
        task(r#""response":{"success":true},"finished_at":null"#),
        task(r#""response":{"success":true},"finished_at":"1767119785.589""#),
        task(r#""response":{"success":true,"finished_at":1.5}"#),
        task(r#""response":{"state":"a new word"},"finished_at":NOW"#),
        task(r#""response":{"success":true},"status":"producing","finished_at":NOW"#),
        task(r#""response":{"data":{"task_status":"running"}},"finished_at":NOW"#),
        task(r#""response":{"status":["succeeded"]},"finished_at":NOW"#),
        task(r#""response":"succeeded","finished_at":NOW"#),
        task(r#""state":"succeeded","state":"succeeded","finished_at":1.5"#),
        task(r#""response":{"success":true},"finished_at":NOW000"#),
        r#"{"response":{"success":true},"finished_at":1.5}"#.to_owned(),
        r#"{"id":5,"finished_at":1.5}"#.to_owned(),
    ];
    for text in texts {
        app.upstream.put_record("producer", "t", "id", text.clone());
        for _ in 0..2 {
            let before = app.calls();
            let reply = app.retrieve("t", "id").await;
            assert_eq!((reply.x_cache(), &reply.body[..]), ("MISS", text.as_bytes()));
            assert_eq!(app.calls(), before + 1, "requested again each time: {text}");
        }
    }
    app.upstream.put_record("producer", "t", "id", final_record("id", "x"));
    app.assert_not_stored("t", "id").await;
    app.assert_stored("t", "id").await;
}

#[tokio::test]
async fn record_with_an_unknown_word_is_stored_after_an_hour() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = Duration::ZERO).await;
    let record = |age: i64| {
        let finished_at = clock::unix_now() - age;
        format!(r#"{{"id":"id","response":{{"state":"a new word"}},"finished_at":{finished_at}}}"#)
    };
    app.upstream.put_record("producer", "t", "id", record(3_000));
    app.assert_not_stored("t", "id").await;
    app.upstream.put_record("producer", "t", "id", record(3_700));
    app.assert_not_stored("t", "id").await;
    app.assert_stored("t", "id").await;
}
