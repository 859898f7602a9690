//! The worst thing a cache can do is to answer with somebody else's answer. Here everything that could lead there.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{Client, Program, TestApp, Wire, client, in_parallel, simulator, task_text};

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_clients_of_one_cold_id_share_one_call() {
    let app = TestApp::spawn().await;
    let text = task_text("cold", "t", 300);
    app.upstream.put_raw("producer", "t", "cold", text.clone());
    let (rule, hold) = Rule::look_ups().hold();
    app.upstream.script(rule);
    let http = client(app.address);
    let replies = {
        let http = http.clone();
        tokio::spawn(async move {
            in_parallel(500, 500, |_| {
                let http = http.clone();
                async move { http.retrieve("t", "cold").await.expect("an answer") }
            })
            .await
        })
    };
    hold.wait_for_held(1).await;
    // Whoever comes later than this is a hit, which changes nothing of what is promised.
    tokio::time::sleep(Duration::from_millis(500)).await;
    hold.release();
    let replies = replies.await.unwrap();
    assert_eq!(app.calls(), 1);
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.body == text));
    let joined = replies.iter().filter(|reply| reply.header("cache-status").contains("collapsed")).count();
    assert!(joined > 100, "{joined} of 500 joined the first one's call");
}

#[tokio::test]
async fn what_one_token_fetched_is_nothing_to_another() {
    let mut app = TestApp::spawn().await;
    for id in ["warm", "under-way", "half"] {
        app.upstream.put_raw("producer", "a", id, task_text(id, "a", 20));
    }
    // Warm: b knows nothing of it upstream, so it gets what the upstream tells it.
    app.retrieve("a", "warm").await;
    for restarted in [false, true] {
        if restarted {
            app = app.restart().await;
        }
        let calls = app.calls();
        let reply = app.retrieve("b", "warm").await;
        assert_eq!((&reply.body[..], app.calls()), (&b"{}"[..], calls + 1), "restarted: {restarted}");
        let reply = app.batch("b", &["warm"]).await;
        assert_eq!(reply.json(), json!({"items": [], "count": 0}));
        let http = client(app.address);
        let body = json!({"action": "retrieve", "id": "warm"}).to_string();
        let cached = http.look_up("b", body, &[("cache-control", "only-if-cached")]).await.unwrap();
        assert_eq!(cached.status, 504);
    }

    // Under way: b does not join a's call.
    let (rule, hold) = Rule::look_ups().token("a").hold();
    app.upstream.script(rule);
    let http = client(app.address);
    let of_a = tokio::spawn({
        let http = http.clone();
        async move { http.retrieve("a", "under-way").await.unwrap() }
    });
    hold.wait_for_held(1).await;
    assert_eq!(&http.retrieve("b", "under-way").await.unwrap().body[..], b"{}");
    hold.release();
    assert_eq!(of_a.await.unwrap().body, task_text("under-way", "a", 20));

    // Half of a batch: each gets its own half.
    app.upstream.put_raw("producer", "b", "own", task_text("own", "b", 20));
    app.retrieve("a", "half").await;
    app.retrieve("b", "own").await;
    let reply = app.batch("b", &["half", "own", "warm"]).await.json();
    assert_eq!((&reply["count"], &reply["items"][0]["for"]), (&json!(1), &json!("b")));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tokens_in_the_same_millisecond_each_get_their_own() {
    let app = TestApp::spawn().await;
    for n in 0..100 {
        for token in ["a", "b"] {
            let id = format!("same-{n}");
            app.upstream.put_raw("producer", token, &id, task_text(&id, token, 30));
        }
    }
    let http = client(app.address);
    let replies = in_parallel(400, 64, |place| {
        let http = http.clone();
        let (id, token) = (format!("same-{}", place / 4), ["a", "b"][place % 2]);
        async move { (task_text(&id, token, 30), http.retrieve(token, &id).await.expect("an answer")) }
    })
    .await;
    for (expected, reply) in replies {
        assert_eq!(reply.body, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_requests_with_random_aborts_none_is_answered_with_anothers_answer() {
    storm(10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes; tests/extended runs it"]
async fn of_a_hundred_thousand_requests_with_random_aborts_none_is_answered_with_anothers_answer() {
    storm(100_000).await;
}

const TOKENS: usize = 8;

/// Every third task is not finished yet, so that its look-ups go upstream again and again.
fn storm_text(n: usize, token: &str) -> String {
    let text = task_text(&format!("storm-{n}"), token, n % 700);
    if n.is_multiple_of(3) { text.replace("\"finished_at\"", "\"created_at\"") } else { text }
}

/// Look-ups, batches and passed-through requests of several tokens, every fifth of which is given up in its middle.
async fn storm(requests: usize) {
    let tasks = (requests / 4).min(12_000);
    let app = TestApp::spawn().await;
    for n in 0..tasks {
        for token in 0..TOKENS {
            let token = format!("token-{token}");
            app.upstream.put_raw("producer", &token, &format!("storm-{n}"), storm_text(n, &token));
        }
    }
    // Calls last long enough to be given up under way.
    app.upstream.script(Rule::any().delay(Duration::from_millis(3)));
    let http = client(app.address);
    let start = Instant::now();
    let answered = in_parallel(requests, 200, |place| {
        let http = http.clone();
        async move {
            let mut random = fastrand::Rng::with_seed(place as u64);
            let token = format!("token-{}", random.usize(0..TOKENS));
            let ids: Vec<usize> = (0..random.usize(1..9)).map(|_| random.usize(0..tasks)).collect();
            let kind = random.u8(0..4);
            let patience = match random.u8(0..5) {
                0 => Duration::from_micros(random.u64(1..12_000)),
                _ => Duration::from_secs(60),
            };
            let asked = ask(&http, kind, &token, &ids);
            tokio::time::timeout(patience, asked).await.is_ok()
        }
    })
    .await;
    let whole = answered.iter().filter(|whole| **whole).count();
    eprintln!("{whole} answers, {} given up, in {:?}", requests - whole, start.elapsed());
    assert!(whole > requests / 2 && whole < requests, "{whole}");
}

/// One request of the storm; panics if the answer is not for what was asked.
async fn ask(http: &Client, kind: u8, token: &str, ids: &[usize]) {
    let name = |n: usize| format!("storm-{n}");
    match kind {
        0 | 1 => {
            let reply = http.retrieve(token, &name(ids[0])).await.expect("an answer");
            assert_eq!((reply.status.as_u16(), reply.body), (200, storm_text(ids[0], token).into()));
        }
        2 => {
            let asked: Vec<String> = ids.iter().copied().map(name).collect();
            let reply = http.batch(token, &asked).await.expect("an answer");
            let texts: Vec<String> = ids.iter().map(|n| storm_text(*n, token)).collect();
            let expected = format!("{{\"items\":[{}],\"count\":{}}}", texts.join(","), ids.len());
            assert_eq!((reply.status.as_u16(), reply.body), (200, expected.into()));
        }
        _ => {
            // One more key: this goes through as it is.
            let body = json!({"action": "retrieve", "id": name(ids[0]), "more": true}).to_string();
            let reply = http.look_up(token, body, &[]).await.expect("an answer");
            assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass");
            assert_eq!((reply.status.as_u16(), reply.body), (200, storm_text(ids[0], token).into()));
        }
    }
}

#[tokio::test]
async fn ids_that_look_alike_are_not() {
    let long = "x".repeat(1023);
    let huge = "y".repeat(200_000);
    let mut ids: Vec<String> =
        ["a", "A", "1", "01", "1.0", "a ", " a", "a\t", "a,b", "b", "[\"a\",\"b\"]", "a\",\"b"]
            .map(str::to_owned)
            .to_vec();
    // NFC and NFD, look-alike letters, escapes, a NUL, a newline; long ones that differ at their end.
    for id in ["\u{e9}", "e\u{301}", "\u{430}", "a\0", "a\n", "\\u0061", "%61", "ａ", "null", "a\u{200b}"] {
        ids.push(id.to_owned());
    }
    for end in ["1", "2"] {
        ids.push(format!("{long}{end}"));
        ids.push(format!("{huge}{end}"));
    }
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    let app = TestApp::spawn().await;
    for (n, id) in ids.iter().enumerate() {
        app.upstream.put_raw("producer", "t", id, task_text(id, "t", n));
    }
    for round in ["from upstream", "from the store"] {
        for (n, id) in ids.iter().enumerate() {
            let reply = app.retrieve("t", id).await;
            assert_eq!(reply.body, task_text(id, "t", n), "{round}: {:?}", &id[..id.len().min(20)]);
        }
    }
    let app = app.restart().await;
    let short: Vec<&String> = ids.iter().filter(|id| id.len() < 200_000).collect();
    let items = app.batch("t", &short).await.json();
    assert_eq!(items["count"], short.len());
    for (item, id) in items["items"].as_array().unwrap().iter().zip(short) {
        assert_eq!(item["id"], id.as_str());
    }
    // The same id in another spelling is the same id.
    let hit = client(app.address).look_up("t", r#"{"action":"retrieve","id":"\u0061"}"#, &[]).await.unwrap();
    assert_eq!((hit.x_cache(), hit.json()["id"].as_str()), ("HIT", Some("a")));
}

/// A finished task that no honest answer holds.
fn poison(id: &str) -> String {
    task_text(id, "poison", 5)
}

#[tokio::test]
async fn odd_requests_leave_the_answers_of_others_alone() {
    let app = TestApp::spawn().await;
    let http = client(app.address);
    let of = |id: &str| Bytes::from(task_text(id, "t", 40));
    // What a server that reads the request in another way than we do might answer.
    let odd = |call: &refrain_simulator::RecordedCall| {
        call.header("x-forwarded-host").is_some()
            || call.header("x-host").is_some()
            || call.header("x-original-url").is_some()
            || call.header("x-http-method-override").is_some()
            || call.header("content-type").is_none_or(|kind| kind != "application/json")
            || call.method != "POST"
            || call.body.windows(5).any(|part| part == b"twice" || part == b"extra")
    };
    let bodies = [
        r#"{"action":"retrieve","id":"twice","id":"victim"}"#,
        r#"{"action":"retrieve","id":"victim","id":"twice"}"#,
        r#"{"action":"delete","action":"retrieve","id":"twice","id":"victim"}"#,
        r#"{"action":"retrieve_batch","ids":["twice"],"ids":["victim"]}"#,
        r#"{"action":"retrieve","id":"victim","extra":"x"}"#,
        r#"{"action":"retrieve","id":"victim","\u0069d":"twice"}"#,
        r#"{"action":"retrieve","id":"victim","ids":["twice"]}"#,
    ];
    let headers = [
        ("x-forwarded-host", "elsewhere.example"),
        ("x-host", "elsewhere.example"),
        ("x-original-url", "/producer/audios"),
        ("x-http-method-override", "DELETE"),
        ("content-type", "text/plain"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-type", "application/json; charset=utf-16"),
    ];
    let plain = r#"{"action":"retrieve","id":"victim"}"#;
    let attacks =
        bodies.map(|body| (body, None)).into_iter().chain(headers.map(|field| (plain, Some(field))));
    for (n, (body, field)) in attacks.enumerate() {
        let id = format!("victim{n}");
        let body = body.replace("victim", &id);
        for token in ["t", "other"] {
            app.upstream.put_raw("producer", token, &id, of(&id));
        }
        app.upstream.clear_rules();
        app.upstream.script(Rule::any().matching(odd).body("application/json", poison(&id)));
        let mut request = http.http.post(app.url("/producer/tasks")).bearer_auth("t").body(body.clone());
        if !matches!(field, Some(("content-type", _))) {
            request = request.header("content-type", "application/json");
        }
        if let Some((name, value)) = field {
            request = request.header(name, value);
        }
        app.send(request).await;
        for token in ["t", "other"] {
            let reply = app.retrieve(token, &id).await;
            assert_eq!((reply.status.as_u16(), reply.body), (200, of(&id)), "{token}: {body} {field:?}");
        }
    }
}

#[tokio::test]
async fn a_body_on_get_neither_teaches_nor_leaves_bytes_behind() {
    let app = TestApp::spawn().await;
    app.upstream.put_raw("producer", "t", "victim", task_text("victim", "t", 40));
    app.upstream.script(Rule::any().method("GET").body("application/json", poison("victim")));
    let body = r#"{"action":"retrieve","id":"victim"}"#;
    let mut wire = Wire::connect(app.address).await;
    let head = |method: &str| {
        format!(
            "{method} /producer/tasks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    wire.write(head("GET")).await;
    wire.read_until("\"poison\"").await;
    wire.read_until("}}").await;
    wire.write(head("POST")).await;
    let answer = String::from_utf8(wire.read_until("}}").await).unwrap();
    assert!(answer.contains("200 OK") && answer.ends_with(&task_text("victim", "t", 40)), "{answer}");
}

#[tokio::test]
async fn an_error_or_nothing_never_replaces_a_stored_task() {
    let upstream = simulator().await;
    let text = Bytes::from(task_text("kept", "t", 40));
    upstream.put_raw("producer", "t", "kept", text.clone());
    let folder = tempfile::tempdir().unwrap();
    // Every look-up is a recheck, so that the upstream is asked although the task is stored.
    let app = TestApp::spawn_at(upstream, folder, |config| {
        config.access.recheck_after = Duration::ZERO;
        config.upstream.max_retries = 0;
    })
    .await;
    assert_eq!(app.retrieve("t", "kept").await.body, text);
    let other_text = task_text("kept", "t", 41);
    let rules = [
        Rule::look_ups().body("application/json", "{}"),
        Rule::look_ups().body("application/json", "{\"items\":[],\"count\":0}"),
        Rule::look_ups().body("application/json", "null"),
        Rule::look_ups().body("application/json", text.replace_first("finished_at", "created_at")),
        Rule::look_ups().status(500, "api_error"),
        Rule::look_ups().status(404, "not_found"),
        Rule::look_ups().status(403, "forbidden"),
        Rule::look_ups().html(),
        Rule::look_ups().close_without_answer(),
    ];
    for (n, rule) in rules.into_iter().enumerate() {
        app.upstream.clear_rules();
        app.upstream.script(rule);
        for headers in [&[][..], &[("cache-control", "no-cache")]] {
            let reply = app.look_up("t", &json!({"action": "retrieve", "id": "kept"}), headers).await;
            assert_eq!((reply.x_cache(), &reply.body), ("HIT", &text), "rule {n}, {headers:?}");
            let reply =
                app.look_up("t", &json!({"action": "retrieve_batch", "ids": ["kept"]}), headers).await;
            assert_eq!((reply.x_cache(), reply.json()["count"].as_u64()), ("HIT", Some(1)), "rule {n}");
        }
    }
    app.upstream.clear_rules();
    app.upstream.put_raw("producer", "t", "kept", other_text);
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

#[tokio::test]
async fn an_answer_that_comes_after_a_delete_is_not_stored() {
    let app = TestApp::spawn().await;
    let http = client(app.address);
    for (id, stored_before) in [("fresh", false), ("known", true)] {
        let text = task_text(id, "t", 40);
        app.upstream.put_raw("producer", "t", id, text.clone());
        // One token has the right already or not; the look-up that comes late is another's.
        let late_token = if stored_before { "late" } else { "t" };
        app.upstream.put_raw("producer", late_token, id, text.clone());
        if stored_before {
            app.retrieve("t", id).await;
        }
        let (rule, hold) = Rule::look_ups().token(late_token).body("application/json", text.clone()).hold();
        app.upstream.script(rule);
        let late = tokio::spawn({
            let http = http.clone();
            async move { http.retrieve(late_token, id).await.unwrap() }
        });
        hold.wait_for_held(1).await;
        let deleted =
            http.look_up("t", json!({"action": "delete", "id": id}).to_string(), &[]).await.unwrap();
        assert_eq!(deleted.json()["deleted"], true);
        hold.release();
        let late = late.await.unwrap();
        assert_eq!(late.body, text, "an answer whose call began before is relayed");
        app.upstream.clear_rules();
        for token in ["t", late_token] {
            let after = http.retrieve(token, id).await.unwrap();
            assert_eq!(&after.body[..], b"{}", "{token}, {id}");
            assert_ne!(after.x_cache(), "HIT", "{token}, {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_noisy_token_slows_nobody_else() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let environment = [("REFRAIN_UPSTREAM__REQUESTS_PER_SECOND", "2"), ("REFRAIN_UPSTREAM__BURST", "1")];
    let program = Program::serve(&upstream.base_url(), folder.path(), &environment);
    for n in 0..20 {
        let (token, id) = (format!("quiet-{n}"), format!("task-{n}"));
        upstream.put_raw("producer", &token, &id, task_text(&id, &token, 40));
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
        || upstream.look_up_calls().iter().filter(|call| call.token.as_deref() == Some("noisy")).count();
    for n in 0..20 {
        let (token, id) = (format!("quiet-{n}"), format!("task-{n}"));
        let before = noisy_calls();
        let reply = http.retrieve(&token, &id).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.body), (200, task_text(&id, &token, 40).into()));
        // All of the noise is twenty calls: behind it, a quiet one would see most of them go first.
        let between = noisy_calls() - before;
        assert!(between < 10, "{token} waited for {between} calls of the noisy one");
    }
    noise.await.unwrap();
    // Two a second, one saved up, one at the edge.
    let most = 2 + 2 * usize::try_from(start.elapsed().as_secs() + 1).unwrap();
    let noisy = noisy_calls();
    assert!(noisy <= most, "{noisy} calls of the noisy one in {:?}", start.elapsed());
}
