//! `delete` requests of clients: a confirmed one removes the stored record.

use refrain_simulator::{Hold, Rule};
use serde_json::json;
use tokio::net::TcpStream;

use super::{BEARER, BYPASS, JSON, forwarded};
use crate::support::{RawPeer, RawResponse, TestApp, eventually, final_record, request};

fn delete(id: &str) -> String {
    json!({"action": "delete", "id": id, "user_id": "u", "application_id": "p"}).to_string()
}

async fn send_delete(app: &TestApp, token: &str, id: &str) -> RawResponse {
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", authorization.as_str()), JSON];
    let sent = request("POST /producer/tasks", &headers, delete(id));
    let (response, call) = forwarded(app, &sent).await;
    assert_eq!(call.body, delete(id));
    assert_eq!(response.header("cache-status"), Some(BYPASS));
    response
}

#[tokio::test]
async fn confirmed_delete_removes_the_record_for_every_token() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.upstream.share(&id, "u");
    for token in ["t", "u"] {
        app.retrieve(token, &id).await;
        app.assert_stored(token, &id).await;
    }
    let response = send_delete(&app, "t", &id).await;
    assert_eq!((response.status, response.text()), (200, json!({"id": id, "deleted": true}).to_string()));
    for token in ["t", "u"] {
        let before = app.calls();
        let reply = app.retrieve(token, &id).await;
        assert_eq!((reply.x_cache(), &reply.body[..]), ("MISS", &b"{}"[..]));
        assert_eq!(app.calls(), before + 1);
    }
    let app = app.restart().await;
    assert_eq!(app.retrieve("t", &id).await.body, "{}");
}

#[tokio::test]
async fn confirmation_in_a_response_with_trailers_counts() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let body = format!(r#"{{"id":"{id}","deleted":true}}"#);
    let head = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = format!("{:X}\r\n{body}\r\n0\r\nx-sum: 1\r\n\r\n", body.len());
    app.upstream.add_rule(Rule::any().action("delete").raw(format!("{head}{chunks}")));
    let headers = [BEARER, JSON, ("te", "trailers"), ("connection", "te")];
    let mut peer = RawPeer::connect(app.address).await;
    peer.write(request("POST /producer/tasks", &headers, delete(&id))).await;
    assert_eq!(peer.read_head().await.header("trailer"), Some("x-sum"));
    assert_eq!(peer.read_until("x-sum: 1\r\n\r\n").await, chunks);
    app.assert_not_stored("t", &id).await;
}

#[tokio::test]
async fn unconfirmed_delete_removes_nothing() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let padding = "x".repeat(64 << 10);
    let rule = || Rule::any().action("delete");
    let responses = [
        (200, format!(r#"{{"id":"{id}","deleted":false}}"#)),
        (200, r#"{"id":"other","deleted":true}"#.to_owned()),
        (200, r#"{"deleted":true}"#.to_owned()),
        (200, format!(r#"{{"id":"{id}","deleted":"true"}}"#)),
        (200, format!(r#"{{"id":"{id}"}}"#)),
        (200, "<!doctype html>".to_owned()),
        (403, format!(r#"{{"id":"{id}","deleted":true}}"#)),
        (500, format!(r#"{{"id":"{id}","deleted":true}}"#)),
        (200, format!(r#"{{"id":"{id}","deleted":true,"more":"{padding}"}}"#)),
    ];
    for (status, body) in responses {
        app.upstream.add_rule(rule().respond_with(status, "application/json", body.clone()).times(1));
        let response = send_delete(&app, "t", &id).await;
        assert!(response.is_complete);
        assert_eq!((response.status, response.text()), (status, body), "relayed unchanged");
        app.assert_stored("t", &id).await;
    }
    // A truncated confirmation does not count.
    app.upstream.add_rule(
        rule().body("application/json", format!(r#"{{"id":"{id}","deleted":true}}    "#)).cut_after(60),
    );
    let response = app.raw(request("POST /producer/tasks", &[BEARER, JSON], delete(&id))).await;
    assert!(!response.is_complete || response.status == 502, "{response:?}");
    app.assert_stored("t", &id).await;
}

#[tokio::test]
async fn delete_by_a_token_without_a_grant_removes_nothing() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let confirmed = format!(r#"{{"id":"{id}","deleted":true}}"#);
    app.upstream.add_rule(Rule::any().action("delete").body("application/json", confirmed.clone()));
    assert_eq!(send_delete(&app, "other", &id).await.text(), confirmed);
    app.assert_stored("t", &id).await;
    send_delete(&app, "t", &id).await;
    app.assert_not_stored("t", &id).await;
}

#[tokio::test]
async fn response_from_before_a_delete_is_relayed_but_not_stored() {
    // The late lookup uses the token that deletes, or another one while the record is stored.
    for (late_token, is_stored) in [("t", false), ("late", true)] {
        let app = TestApp::spawn().await;
        let record = final_record("id", "x");
        for token in ["t", "late"] {
            app.upstream.put_record("producer", token, "id", record.clone());
        }
        if is_stored {
            app.retrieve("t", "id").await;
        }
        let (rule, hold) = Rule::lookups().token(late_token).times(1).hold();
        app.upstream.add_rule(rule);
        // The upstream confirms the delete, but still returns the record to the call that began
        // before.
        app.upstream
            .add_rule(Rule::any().action("delete").body("application/json", r#"{"id":"id","deleted":true}"#));
        let (late, ()) = tokio::join!(app.retrieve(late_token, "id"), async {
            hold.wait_for_held(1).await;
            send_delete(&app, "t", "id").await;
            hold.release();
        });
        assert_eq!((late.status.as_u16(), &late.body[..]), (200, record.as_bytes()));
        assert!(!late.header("cache-status").contains("stored"), "{late:?}");
        for token in ["t", "late"] {
            app.assert_not_stored(token, "id").await;
            app.assert_stored(token, "id").await;
        }
    }
}

#[tokio::test]
async fn record_deleted_during_a_lookup_is_gone_afterwards() {
    for (late_token, is_stored) in [("t", false), ("late", true)] {
        let app = TestApp::spawn().await;
        let record = final_record("id", "x");
        for token in ["t", "late"] {
            app.upstream.put_record("producer", token, "id", record.clone());
        }
        if is_stored {
            app.retrieve("t", "id").await;
        }
        let (rule, hold) = Rule::lookups().token(late_token).body("application/json", record.clone()).hold();
        app.upstream.add_rule(rule);
        let (late, ()) = tokio::join!(app.retrieve(late_token, "id"), async {
            hold.wait_for_held(1).await;
            let deleted = send_delete(&app, "t", "id").await;
            assert_eq!(deleted.text(), json!({"id": "id", "deleted": true}).to_string());
            hold.release();
        });
        assert_eq!(late.body, record);
        app.upstream.clear_rules();
        for token in ["t", "late"] {
            let after = app.retrieve(token, "id").await;
            assert_eq!(after.body, "{}", "{token}");
            assert_ne!(after.x_cache(), "HIT", "{token}");
        }
    }
}

#[tokio::test]
async fn lookup_after_a_delete_does_not_join_an_earlier_call() {
    for is_stored in [false, true] {
        let app = TestApp::spawn().await;
        let record = final_record("id", "x");
        for token in ["t", "late"] {
            app.upstream.put_record("producer", token, "id", record.clone());
        }
        if is_stored {
            app.retrieve("late", "id").await;
        }
        let (rule, hold) =
            Rule::lookups().token("t").times(1).body("application/json", record.clone()).hold();
        app.upstream.add_rule(rule);
        let (early, ()) = tokio::join!(app.retrieve("t", "id"), async {
            hold.wait_for_held(1).await;
            let deleted = send_delete(&app, "t", "id").await;
            assert_eq!(deleted.text(), json!({"id": "id", "deleted": true}).to_string());
            // The call of the early lookup is still held.
            let ids = ["id"];
            let (single, batch, ()) = tokio::join!(app.retrieve("t", "id"), app.batch("t", &ids), async {
                eventually("the later lookups wait", async || {
                    app.admin("/api/stats").await.json()["queues"]["waiters"] == 3
                })
                .await;
                hold.release();
            });
            assert_eq!(single.body, "{}");
            assert_eq!(batch.json(), json!({"items": [], "count": 0}));
        });
        assert_eq!(early.body, record);
        assert_eq!(app.retrieve("t", "id").await.body, "{}");
    }
}

/// Begins to delete a stored task and hangs up before the upstream responds. Returns when refrain
/// has noticed it.
async fn abandoned_delete(app: &TestApp, id: &str) -> Hold {
    app.retrieve("t", id).await;
    let (rule, hold) = Rule::any().action("delete").hold();
    app.upstream.add_rule(rule);
    let connections = async || {
        let page = app.admin("/metrics").await.body;
        let page = std::str::from_utf8(&page).expect("text").to_owned();
        page.lines().find(|line| line.starts_with("refrain_connections ")).expect("the metric").to_owned()
    };
    let before = connections().await;
    let mut peer = RawPeer::connect(app.address).await;
    peer.write(request("POST /producer/tasks", &[BEARER, JSON], delete(id))).await;
    hold.wait_for_held(1).await;
    drop(peer);
    eventually("the connection has ended", async || connections().await == before).await;
    hold
}

#[tokio::test]
async fn delete_is_learnt_from_although_its_client_left() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let hold = abandoned_delete(&app, &id).await;
    app.assert_stored("t", &id).await;
    hold.release();
    let tasks = async || app.admin("/api/stats").await.json()["store"]["tasks"].clone();
    eventually("the task is deleted", async || tasks().await == json!(0)).await;
    assert_eq!(app.retrieve("t", &id).await.body, "{}");
}

#[tokio::test]
async fn shutdown_waits_for_a_delete_whose_client_left() {
    let app = TestApp::spawn().await;
    let id = app.upstream.create_finished("producer", "t");
    let hold = abandoned_delete(&app, &id).await;
    let address = app.address;
    let ((upstream, folder), ()) = tokio::join!(app.stop(), async {
        eventually("the port is closed", async || TcpStream::connect(address).await.is_err()).await;
        hold.release();
    });
    let app = TestApp::spawn_at(upstream, folder, |_| {}).await;
    assert_eq!(app.retrieve("t", &id).await.body, "{}");
}
