//! The JSON API of the admin port, as documented in `docs/api.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::Method;
use refrain::config::{AccessMode, SharedClient};
use refrain::token::Token;
use serde_json::{Value, json};

use crate::support::{
    DOCUMENTED, DOCUMENTED_ID, Program, RawPeer, Reply, StoreFile, TestApp, assert_error, eventually,
    simulator,
};

/// Endpoint whose arrays fill with time.
const EMPTY_AT_FIRST: &str = "/api/history";

/// Objects whose keys depend on the traffic.
const AS_IT_OCCURRED: [&str; 1] = ["by_status"];

/// Ids that need escaping in URLs, JSON or HTML.
const ODD: [&str; 9] = [
    "a/b",
    "100%",
    "a_b%2Fc",
    "two\nlines",
    "</script><script>alert(1)</script>",
    "\u{1f3b5} ö",
    "a b+c&d=e?f#g",
    "nul\0\"quoted\\",
    "...",
];

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        write!(encoded, "%{byte:02X}").expect("a String takes all");
        encoded
    })
}

/// Sends a request to the admin port.
async fn send(app: &TestApp, method: Method, path: &str) -> Reply {
    app.send(app.http.request(method, format!("http://{}{path}", app.admin))).await
}

async fn get(app: &TestApp, path: &str) -> Value {
    let reply = app.admin(path).await;
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    assert_eq!(reply.header("content-type"), "application/json", "{path}");
    reply.json()
}

async fn delete(app: &TestApp, path: &str) -> u64 {
    let reply = send(app, Method::DELETE, path).await;
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    reply.json()["deleted"].as_u64().expect("a number")
}

fn text(id: &str, title: &str) -> String {
    json!({"id": id, "type": "audios", "created_at": 1767119745.5, "finished_at": 1767119785.25,
           "response": {"success": true, "data": [{"title": title, "audio_url": "https://cdn.example/a.mp3"}]}})
    .to_string()
}

/// Makes the proxy store a record by a client's lookup.
async fn store(app: &TestApp, service: &str, token: &str, id: &str, text: &str) {
    app.upstream.put_record(service, token, id, text.to_owned());
    assert_eq!(look_up(app, service, token, id).await.x_cache(), "MISS", "{id:?}");
}

async fn look_up(app: &TestApp, service: &str, token: &str, id: &str) -> Reply {
    let request = app
        .http
        .post(app.url(&format!("/{service}/tasks")))
        .bearer_auth(token)
        .header("content-type", "application/json")
        .body(json!({"action": "retrieve", "id": id}).to_string());
    app.send(request).await
}

/// Returns the ids of all pages of a listing.
async fn listed(app: &TestApp, query: &str) -> Vec<String> {
    let (mut ids, mut next) = (Vec::new(), String::new());
    for _ in 0..100 {
        let page = get(app, &format!("/api/tasks?{query}{next}")).await;
        let tasks = page["tasks"].as_array().expect("a list");
        ids.extend(tasks.iter().map(|task| task["id"].as_str().expect("a string").to_owned()));
        match page["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => return ids,
        }
    }
    panic!("{query}: endless pages");
}

/// Asserts that the response has all fields of the documented example, with the same types.
fn assert_has(path: &str, documented: &Value, response: &Value) {
    match (documented, response) {
        (Value::Object(documented), Value::Object(response)) => {
            for (name, value) in documented {
                let found = response.get(name).unwrap_or_else(|| panic!("{path}: no {name}: {response:?}"));
                if !AS_IT_OCCURRED.contains(&name.as_str()) {
                    assert_has(&format!("{path} {name}"), value, found);
                }
            }
        }
        (Value::Array(documented), Value::Array(response)) => {
            let may_be_empty = documented.is_empty() || path.starts_with(EMPTY_AT_FIRST);
            assert!(may_be_empty || !response.is_empty(), "{path}: the test has none");
            if let (Some(documented), Some(response)) = (documented.first(), response.first()) {
                assert_has(path, documented, response);
            }
        }
        (Value::Null, _) | (_, Value::Null) => {}
        _ => assert_eq!(
            std::mem::discriminant(documented),
            std::mem::discriminant(response),
            "{path}: {documented} {response}"
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_endpoint_returns_the_fields_of_its_example() {
    let page = std::fs::read_to_string("docs/api.md").expect("readable");
    // The path of each heading and the JSON below it.
    let mut examples: BTreeMap<String, Value> = BTreeMap::new();
    for section in page.split("\n## ").skip(1) {
        let Some(path) = section.split('`').nth(1).and_then(|title| title.strip_prefix("GET ")) else {
            continue;
        };
        let example = section.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        let example = example.unwrap_or_else(|| panic!("{path} has no example"));
        let example = serde_json::from_str(example).unwrap_or_else(|error| panic!("{path}: {error}"));
        examples.insert(path.split('?').next().expect("a path").to_owned(), example);
    }
    let endpoints: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `GET ")?.split('`').next()).collect();
    assert!(endpoints.len() >= 6, "{endpoints:?}");

    let app = TestApp::spawn_with(|config| {
        config.tasks.pending_max_age = std::time::Duration::from_secs(60);
        // A client with a name.
        let token = Token::parse("t").expect("a token");
        config.access.mode = AccessMode::Shared;
        config.access.clients = vec![SharedClient { name: "reports".to_owned(), key: token.clone() }];
        config.upstream.token = Some(token);
    })
    .await;
    app.upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    for expected in ["MISS", "HIT"] {
        assert_eq!(app.retrieve("t", DOCUMENTED_ID).await.x_cache(), expected);
    }
    let pending = app.upstream.create_pending("producer", "t");
    app.retrieve("t", &pending).await;
    app.send(app.http.post(app.url("/captcha/tasks")).bearer_auth("t").body("{}")).await;
    for path in endpoints {
        let requested = path.replace("{service}", "producer").replace("{id}", DOCUMENTED_ID);
        let response = get(&app, &requested).await;
        let example = examples.get(path).unwrap_or_else(|| panic!("{path} is not explained"));
        assert_has(path, example, &response);
    }
}

#[tokio::test]
async fn stored_tasks_are_filtered_by_service_id_title_and_time() {
    let app = TestApp::spawn().await;
    for (service, id, title) in [
        ("producer", "one", "Morning <b>Sun</b>"),
        ("producer", "two", "evening rain"),
        ("suno", "one", "SUNDAY"),
        ("suno", "on_", "x"),
        ("suno", "On3", "ÄRGER"),
    ] {
        store(&app, service, "t", id, &text(id, title)).await;
    }
    for (query, ids) in [
        ("", &["On3", "on_", "one", "two", "one"][..]),
        ("limit=2", &["On3", "on_", "one", "two", "one"]),
        ("service=producer", &["two", "one"]),
        ("service=absent", &[]),
        ("id=on", &["one", "on_", "one"]),
        ("id=on_", &["on_"]),
        ("id=o%25", &[]),
        ("id=one&service=suno", &["one"]),
        ("id=on&limit=1", &["one", "on_", "one"]),
        ("id=%F4%8F%BF%BF", &[]),
        ("title=sun", &["one", "one"]),
        ("title=SUN&service=suno&limit=1", &["one"]),
        ("title=%C3%A4rger", &["On3"]),
        ("title=%3Cb%3E", &["one"]),
        ("title=sun&id=one&limit=1", &["one", "one"]),
        ("id=&title=", &["On3", "on_", "one", "two", "one"]),
        ("stored_after=4102444800", &[]),
        ("stored_before=4102444800&limit=200", &["On3", "on_", "one", "two", "one"]),
        ("stored_before=0", &[]),
        ("stored_after=0&id=tw", &["two"]),
    ] {
        assert_eq!(listed(&app, query).await, ids, "{query}");
    }
    let page = get(&app, "/api/tasks?limit=1").await;
    let task = &page["tasks"][0];
    assert_eq!(
        (task["service"].as_str(), task["readers"].as_u64(), task["type"].as_str(), task["title"].as_str()),
        (Some("suno"), Some(1), Some("audios"), Some("ÄRGER"))
    );
    assert_eq!(task["record_bytes"], text("On3", "ÄRGER").len());
    assert_eq!(task["links"], json!([{"kind": "audio", "url": "https://cdn.example/a.mp3"}]));
    assert_eq!((&task["created_at"], &task["finished_at"]), (&json!(1767119745.5), &json!(1767119785.25)));
    assert!(task["record"].is_null(), "a listing has no records: {task}");
}

#[tokio::test]
async fn task_is_shown_with_all_its_stored_records() {
    let app = TestApp::spawn().await;
    let record = |title: &str| text("t1", title);
    store(&app, "producer", "a", "t1", &record("for a")).await;
    store(&app, "producer", "b", "t1", &record("for b")).await;
    app.upstream.put_record("producer", "c", "t1", record("for b"));
    assert_eq!(app.retrieve("c", "t1").await.x_cache(), "MISS");
    let task = get(&app, "/api/tasks/producer/t1").await;
    let texts = task["records"].as_array().expect("a list");
    let seen: Vec<_> = texts
        .iter()
        .map(|text| {
            (text["record"].as_str().unwrap(), text["readers"].as_array().unwrap().len(), &text["is_corrupt"])
        })
        .collect();
    assert_eq!(seen, [(&*record("for a"), 1, &json!(false)), (&*record("for b"), 2, &json!(false))]);
    assert_eq!(texts[1]["title"], "for b");
    for reader in texts.iter().flat_map(|text| text["readers"].as_array().unwrap()) {
        let digits = reader.as_str().unwrap();
        assert!(digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{reader}");
    }
    assert_eq!(get(&app, "/api/tasks").await["tasks"][0]["readers"], 2);

    let mut file = StoreFile::open(app.folder.path()).await;
    assert_eq!(file.run("UPDATE task SET record = x'7b7d' WHERE task_id = 1").await, 1);
    file.close().await;
    let damaged = &get(&app, "/api/tasks/producer/t1").await["records"][0];
    assert_eq!((&damaged["record"], &damaged["is_corrupt"]), (&Value::Null, &json!(true)));

    for missing in ["/api/tasks/producer/t2", "/api/tasks/suno/t1"] {
        assert_error(&app.admin(missing).await, 404, "bad_request");
    }
}

#[tokio::test]
async fn ids_with_special_characters_are_listed_shown_and_deleted() {
    let app = TestApp::spawn().await;
    for id in ODD {
        store(&app, "producer", "t", id, &text(id, id)).await;
    }
    let mut ids = listed(&app, "limit=4").await;
    ids.reverse();
    assert_eq!(ids, ODD);
    for id in ODD {
        assert_eq!(listed(&app, &format!("id={}", encoded(id))).await, [id]);
        assert_eq!(listed(&app, &format!("title={}", encoded(id))).await, [id]);
        let path = format!("/api/tasks/producer/{}", encoded(id));
        let task = get(&app, &path).await;
        assert_eq!((&task["id"], &task["records"][0]["record"]), (&json!(id), &json!(text(id, id))));
        assert_eq!(delete(&app, &path).await, 1, "{id:?}");
        assert_eq!(delete(&app, &path).await, 0);
        assert_eq!(app.admin(&path).await.status, 404);
    }
    assert_eq!(listed(&app, "").await, [""; 0]);
}

#[tokio::test]
async fn deleted_task_is_requested_upstream_again() {
    let app = TestApp::spawn_with(|config| {
        config.tasks.pending_max_age = std::time::Duration::from_secs(60);
    })
    .await;
    for (service, id) in [("producer", "a"), ("producer", "b"), ("suno", "a")] {
        store(&app, service, "t", id, &text(id, id)).await;
    }
    let is_requested_upstream = async |service: &str, id: &str| {
        let before = app.calls();
        let reply = look_up(&app, service, "t", id).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        app.calls() > before
    };
    for (service, id) in [("producer", "a"), ("producer", "b"), ("suno", "a")] {
        assert!(!is_requested_upstream(service, id).await);
    }
    assert_eq!(delete(&app, "/api/tasks/producer/a").await, 1);
    assert!(!is_requested_upstream("producer", "b").await && !is_requested_upstream("suno", "a").await);
    assert!(is_requested_upstream("producer", "a").await);
    assert!(!is_requested_upstream("producer", "a").await, "stored again");

    assert_eq!(delete(&app, "/api/tasks?service=producer").await, 2);
    assert!(!is_requested_upstream("suno", "a").await);
    assert!(is_requested_upstream("producer", "a").await && is_requested_upstream("producer", "b").await);

    assert_eq!(delete(&app, "/api/tasks?older_than=30d").await, 0);
    assert!(!is_requested_upstream("suno", "a").await);
    let mut file = StoreFile::open(app.folder.path()).await;
    assert_eq!(file.run("UPDATE task SET stored_at = stored_at - 3000000 WHERE service = 'suno'").await, 1);
    file.close().await;
    assert_eq!(delete(&app, "/api/tasks?older_than=30d").await, 1);
    assert!(is_requested_upstream("suno", "a").await);

    // The cache of pending records is cleared too.
    let pending = app.upstream.create_pending("producer", "t");
    assert!(is_requested_upstream("producer", &pending).await);
    assert!(!is_requested_upstream("producer", &pending).await);
    assert_eq!(delete(&app, &format!("/api/tasks/producer/{pending}")).await, 0);
    assert!(is_requested_upstream("producer", &pending).await);
    assert!(!is_requested_upstream("producer", &pending).await);
    delete(&app, "/api/tasks?service=producer").await;
    assert!(is_requested_upstream("producer", &pending).await);
}

#[tokio::test]
async fn invalid_parameter_is_named_in_the_error() {
    let app = TestApp::spawn().await;
    let long = format!("/api/tasks/producer/{}", "x".repeat(1025));
    for (method, path, name) in [
        (Method::GET, "/api/tasks?limit=0", "limit"),
        (Method::GET, "/api/tasks?limit=201", "limit"),
        (Method::GET, "/api/tasks?limit=", "limit"),
        (Method::GET, "/api/tasks?limit=1&limit=1", "limit"),
        (Method::GET, "/api/tasks?service=a/b", "service"),
        (Method::GET, "/api/tasks?service=", "service"),
        (Method::GET, "/api/tasks?stored_after=yesterday", "stored_after"),
        (Method::GET, "/api/tasks?stored_before=1.5", "stored_before"),
        (Method::GET, "/api/tasks?cursor=x", "cursor"),
        (Method::GET, "/api/tasks?cursor=-1", "cursor"),
        (Method::GET, "/api/tasks?cursor=producer.6.1&id=a", "cursor"),
        (Method::GET, "/api/tasks?cursor=producer.61.1", "cursor"),
        (Method::GET, "/api/tasks?cursor=7&id=a", "cursor"),
        (Method::GET, "/api/tasks?titel=x", "titel"),
        (Method::GET, "/api/version?x=1", "\"x\""),
        (Method::GET, "/api/queues?limit=1", "limit"),
        (Method::GET, "/api/pending?limit=1", "limit"),
        (Method::GET, "/api/requests?outcome=fine", "outcome must be one of hit, pending,"),
        (Method::GET, "/api/requests?kind=hit", "kind must be one of local, upstream, failed"),
        (Method::GET, "/api/requests?service=a/b", "service"),
        (Method::GET, "/api/requests?limit=601", "limit must be 1 to 600"),
        (Method::GET, "/api/requests?status=200", "status"),
        (Method::GET, "/api/config?key=1", "key"),
        (Method::GET, "/api/tasks/producer/a?x", "\"x\""),
        (Method::GET, "/api/tasks/a.b/a", "service"),
        (Method::GET, "/api/tasks/producer/%FF", "id"),
        (Method::GET, &long, "id"),
        (Method::DELETE, "/api/tasks/producer/a?service=b", "service"),
        (Method::DELETE, "/api/tasks", "service"),
        (Method::DELETE, "/api/tasks?service=producer&older_than=1d", "older_than"),
        (Method::DELETE, "/api/tasks?service=", "service"),
        (Method::DELETE, "/api/tasks?older_than=", "older_than"),
        (Method::DELETE, "/api/tasks?older_than=30", "older_than"),
        (Method::DELETE, "/api/tasks?older_than=-1d", "older_than"),
        (Method::DELETE, "/api/tasks?older_than=99999999999999999999d", "older_than"),
        (Method::DELETE, "/api/tasks?id=a", "id"),
    ] {
        let reply = send(&app, method.clone(), path).await;
        assert_error(&reply, 400, "bad_request");
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(name), "{method} {path}: {message}");
    }
}

#[tokio::test]
async fn unknown_path_or_method_is_refused_in_the_documented_shape() {
    let app = TestApp::spawn().await;
    for path in [
        "/api",
        "/api/",
        "/api/nothing",
        "/api/tasks/",
        "/api/tasks/producer",
        "/api/tasks/a/b/c",
        "/API/version",
    ] {
        assert_error(&app.admin(path).await, 404, "bad_request");
    }
    for (path, method, allow) in [
        ("/api/version", Method::POST, "GET,HEAD"),
        ("/api/config", Method::DELETE, "GET,HEAD"),
        ("/api/tasks", Method::PUT, "GET,HEAD,DELETE"),
        ("/api/tasks/producer/a", Method::POST, "GET,HEAD,DELETE"),
        ("/api/tasks/producer/a", Method::OPTIONS, "GET,HEAD,DELETE"),
        ("/healthz", Method::POST, "GET,HEAD"),
        ("/metrics", Method::DELETE, "GET,HEAD"),
    ] {
        let reply = send(&app, method.clone(), path).await;
        assert_error(&reply, 405, "bad_request");
        assert_eq!(reply.header("allow"), allow, "{method} {path}");
    }
}

#[tokio::test]
async fn config_page_has_the_values_of_refrain_config() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    std::fs::write(folder.path().join("refrain.toml"), "[tasks]\nmax_ids = 77\n").expect("written");
    let environment = [("REFRAIN_ADMIN__TOKEN", "secret-token"), ("REFRAIN_STORE__MAX_BYTES", "1GiB")];
    let program = Program::serve(&upstream.base_url(), folder.path(), &environment);
    let mut peer = RawPeer::connect(program.admin).await;
    peer.write("GET /api/config HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret-token\r\n\r\n").await;
    let response = peer.read_response().await;
    assert_eq!(response.status, 200, "{response:?}");
    assert!(!response.text().contains("secret-token"));
    let values: Value = serde_json::from_slice(&response.body).expect("JSON");
    let shown = |key: &str| {
        let values = values["values"].as_array().expect("a list");
        let value = values.iter().find(|value| value["key"] == key).unwrap_or_else(|| panic!("no {key}"));
        (value["value"].clone(), value["source"].as_str().expect("a string").to_owned())
    };
    assert_eq!(shown("admin.token"), (json!("***"), "REFRAIN_ADMIN__TOKEN".to_owned()));
    assert_eq!(shown("store.max_bytes"), (json!("1GiB"), "REFRAIN_STORE__MAX_BYTES".to_owned()));
    assert_eq!(shown("tasks.max_ids"), (json!(77), "refrain.toml line 2".to_owned()));
    assert_eq!(shown("tasks.services"), (json!(["*"]), "default".to_owned()));
    assert_eq!(shown("upstream.token"), (json!(""), "default".to_owned()));
    assert_eq!(shown("upstream.requests_per_second").0, json!(1000.0));

    let mut command = Program::command();
    command.current_dir(folder.path()).arg("config").envs(environment);
    let printed = String::from_utf8(command.output().expect("it runs").stdout).expect("text");
    let keys = printed.lines().filter(|line| line.contains(" = ")).count();
    assert_eq!(values["values"].as_array().expect("a list").len(), keys, "{printed}");
}

#[tokio::test]
async fn queues_and_pending_tasks_are_listed() {
    let app =
        TestApp::spawn_with(|config| config.tasks.pending_max_age = std::time::Duration::from_secs(60)).await;
    assert_eq!(get(&app, "/api/queues").await, json!({"queues": [], "queues_omitted": 0}));
    assert_eq!(get(&app, "/api/pending").await, json!({"pending": [], "pending_omitted": 0}));
    let unfinished = json!({"id": "p1", "type": "audios", "created_at": 1767119745.5, "response":
        {"data": [{"title": "</script>", "state": "processing", "progress": "40%"}]}});
    app.upstream.put_record("producer", "t", "p1", unfinished.to_string());
    app.retrieve("t", "p1").await;

    let pending = get(&app, "/api/pending").await;
    let task = &pending["pending"][0];
    assert_eq!(
        json!([
            task["service"],
            task["id"],
            task["type"],
            task["title"],
            task["state"],
            task["progress"],
            task["created_at"],
            task["waiters"],
            task["is_queued"]
        ]),
        json!(["producer", "p1", "audios", "</script>", "processing", 0.4, 1767119745.5, 0, false])
    );
    let queues = get(&app, "/api/queues").await;
    let queue = &queues["queues"][0];
    assert_eq!(queue["token"], task["token"]);
    assert_eq!(
        json!([
            queue["service"],
            queue["queued"],
            queue["in_flight"],
            queue["waiters"],
            queue["snapshots"],
            queue["oldest_wait_seconds"],
            queue["paused_seconds"]
        ]),
        json!(["producer", 0, 0, 0, 1, null, 0.0])
    );
    assert_eq!(queue["requests_per_second"], 980.0);

    let (http, url) = (app.http.clone(), app.url("/producer/tasks"));
    let waiting = tokio::spawn(async move {
        let body = json!({"action": "retrieve", "id": "p1"}).to_string();
        http.post(url)
            .bearer_auth("t")
            .header("content-type", "application/json")
            .header("prefer", "wait=60")
            .body(body)
            .send()
            .await
    });
    eventually("the waiting client is counted", async || {
        let task = &get(&app, "/api/pending").await["pending"][0];
        let queue = &get(&app, "/api/queues").await["queues"][0];
        task["waiters"] == 1 && queue["waiters"] == 1
    })
    .await;
    waiting.abort();
    eventually("the client that left is not counted", async || {
        get(&app, "/api/queues").await["queues"][0]["waiters"] == 0
    })
    .await;
}

#[tokio::test]
async fn delete_with_a_locked_store_fails_but_hides_the_task_at_once() {
    let app = TestApp::spawn().await;
    store(&app, "producer", "t", "a", &text("a", "a")).await;
    store(&app, "producer", "t", "b", &text("b", "b")).await;
    let mut file = StoreFile::open(app.folder.path()).await;
    file.run("BEGIN IMMEDIATE").await;
    assert_error(&send(&app, Method::DELETE, "/api/tasks/producer/a").await, 503, "api_error");
    assert_eq!(listed(&app, "").await, ["b"]);
    assert_eq!(app.admin("/api/tasks/producer/a").await.status, 404);
    let ready = app.admin("/readyz").await;
    assert_eq!((ready.status.as_u16(), ready.json()["reason"].as_str().is_some()), (503, true), "{ready:?}");
    file.run("ROLLBACK").await;
    eventually("the store is writable again", async || app.admin("/readyz").await.status == 200).await;
    eventually("it is gone", async || {
        let mut file = StoreFile::open(app.folder.path()).await;
        let left = file.run("UPDATE task SET used_hour = used_hour WHERE id = x'61'").await;
        file.close().await;
        left == 0
    })
    .await;
    assert_eq!(app.retrieve("t", "a").await.x_cache(), "MISS");
}
