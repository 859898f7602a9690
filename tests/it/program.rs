//! The program as an operator meets it: exit codes, clear lines, signals, what is left behind.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use refrain_simulator::Rule;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{Program, RawAnswer, Wire, eventually, finished, request, simulator};

/// Runs a command to its end in this folder.
fn run(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Program::command();
    command.current_dir(folder).args(arguments).envs(environment.iter().copied());
    command.output().expect("the program runs")
}

/// Asserts that it fails with this code and one line that holds all these words; gives the line.
fn assert_fails(output: &Output, code: i32, words: &[&str]) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "one clear line: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

const FREE_PORTS: [(&str, &str); 2] =
    [("REFRAIN_SERVER__LISTEN", "127.0.0.1:0"), ("REFRAIN_ADMIN__LISTEN", "127.0.0.1:0")];

fn with_free_ports<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&FREE_PORTS[..], more].concat()
}

#[test]
fn a_taken_port_ends_the_start_with_one_line() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for key in ["REFRAIN_SERVER__LISTEN", "REFRAIN_ADMIN__LISTEN"] {
        let environment = with_free_ports(&[(key, &address)]);
        for arguments in [&["serve"][..], &[]] {
            assert_fails(&run(folder.path(), arguments, &environment), 1, &[&address, "in use"]);
        }
    }
}

#[test]
fn a_store_that_cannot_be_opened_ends_the_start_with_one_line() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("directory")).expect("made");
    for path in ["no/such/folder/refrain.db", "directory"] {
        let url = format!("sqlite://{}", folder.path().join(path).display());
        let environment = with_free_ports(&[("REFRAIN_STORE__URL", &url)]);
        assert_fails(&run(folder.path(), &["serve"], &environment), 1, &[path]);
    }
    assert!(!folder.path().join("no").exists());
}

#[test]
fn wrong_values_are_refused_with_key_source_and_what_would_be_right() {
    let folder = folder();
    let cases = [
        ("REFRAIN_UPSTREAM__BASE_URL", "https://api.example/v1", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "https://user:pass@api.example", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "https://api.example/?a=b", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "https://api.example/#x", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "ftp://api.example", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__BASE_URL", "api.example", "upstream.base_url"),
        ("REFRAIN_UPSTREAM__MAX_BATCH", "0", "upstream.max_batch"),
        ("REFRAIN_UPSTREAM__MAX_BATCH", "many", "upstream.max_batch"),
        ("REFRAIN_UPSTREAM__REQUESTS_PER_SECOND", "-1", "upstream.requests_per_second"),
        ("REFRAIN_UPSTREAM__REQUESTS_PER_SECOND", "nan", "upstream.requests_per_second"),
        ("REFRAIN_SERVER__LISTEN", "8080", "server.listen"),
        ("REFRAIN_SERVER__SHUTDOWN_TIMEOUT", "soon", "server.shutdown_timeout"),
        ("REFRAIN_STORE__MEMORY_BYTES", "64 potatoes", "store.memory_bytes"),
        ("REFRAIN_STORE__URL", "postgres://x", "store.url"),
        ("REFRAIN_TASKS__SERVICES", "[\"a b\"]", "tasks.services"),
        ("REFRAIN_TASKS__SERVICES", "producer", "tasks.services"),
        ("REFRAIN_ACCESS__MODE", "open", "access.mode"),
        ("REFRAIN_LOG__FORMAT", "xml", "log.format"),
        ("REFRAIN_ADMIN__LISTEN", "0.0.0.0:0", "admin.token"),
        ("REFRAIN_UPSTREAM__TOKEN", "t", "upstream.token"),
        ("REFRAIN_ACCESS__CLIENTS", "[{name = \"a\", key = \"k\"}]", "access.clients"),
        ("REFRAIN_UPSTREAM__TOKEN_FILE", "/no/such/file", "upstream.token_file"),
    ];
    for (variable, value, key) in cases {
        for command in ["check", "serve"] {
            let output = run(folder.path(), &[command], &[(variable, value)]);
            let line = assert_fails(&output, 64, &[key]);
            assert!(!line.contains("pass@") && !line.contains(":pass"), "{line}");
        }
    }
    assert!(!folder.path().join("refrain.db").exists(), "nothing was begun");
}

#[test]
fn shared_mode_needs_a_token_and_clients() {
    let folder = folder();
    let shared = ("REFRAIN_ACCESS__MODE", "shared");
    let token = ("REFRAIN_UPSTREAM__TOKEN", "t");
    let clients = ("REFRAIN_ACCESS__CLIENTS", "[{name = \"a\", key = \"k\"}]");
    assert_fails(&run(folder.path(), &["check"], &[shared, clients]), 64, &["upstream.token"]);
    assert_fails(&run(folder.path(), &["check"], &[shared, token]), 64, &["access.clients"]);
    let fine = run(folder.path(), &["check"], &[shared, token, clients]);
    assert_eq!(fine.status.code(), Some(0), "{fine:?}");
}

#[test]
fn unknown_keys_are_refused_by_name_with_a_suggestion() {
    let folder = folder();
    let output = run(folder.path(), &["check"], &[("REFRAIN_UPSTREAM__MAX_BACH", "5")]);
    assert_fails(&output, 64, &["upstream.max_bach", "REFRAIN_UPSTREAM__MAX_BATCH"]);
    let fine = run(folder.path(), &["check"], &[("REFRAIN_SOMETHING", "x"), ("REFRAINED__A", "x")]);
    assert_eq!(fine.status.code(), Some(0), "not ours: {fine:?}");

    let file = folder.path().join("refrain.toml");
    std::fs::write(&file, "[upstream]\nmax_bach = 5\n").expect("written");
    assert_fails(
        &run(folder.path(), &["check"], &[]),
        64,
        &["upstream.max_bach", "max_batch", "refrain.toml"],
    );
    std::fs::write(&file, "[upstraem]\nmax_batch = 5\n").expect("written");
    assert_fails(&run(folder.path(), &["check"], &[]), 64, &["upstraem", "upstream"]);
    std::fs::write(&file, "[upstream\n").expect("written");
    assert_fails(&run(folder.path(), &["check"], &[]), 64, &["refrain.toml"]);
    assert_fails(&run(folder.path(), &["check", "--config", "missing.toml"], &[]), 64, &["missing.toml"]);
}

#[test]
fn two_mistakes_are_two_lines() {
    let folder = folder();
    let output = run(
        folder.path(),
        &["check"],
        &[("REFRAIN_UPSTREAM__MAX_BATCH", "0"), ("REFRAIN_LOG__FORMAT", "xml")],
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.trim_end().lines().count()), (Some(64), 2), "{stderr}");
}

#[test]
fn file_environment_and_flags_come_each_over_the_one_before() {
    let folder = folder();
    let config = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = run(folder.path(), &[&["config"], arguments].concat(), environment);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(config(&[], &[]).contains("127.0.0.1:8080"));
    std::fs::write(folder.path().join("refrain.toml"), "[server]\nlisten = \"127.0.0.1:1111\"\n")
        .expect("written");
    std::fs::write(folder.path().join("other.toml"), "[server]\nlisten = \"127.0.0.1:4444\"\n")
        .expect("written");
    let variable = ("REFRAIN_SERVER__LISTEN", "127.0.0.1:2222");
    assert!(config(&[], &[]).contains("127.0.0.1:1111"), "refrain.toml of the working directory");
    assert!(config(&["--config", "other.toml"], &[]).contains("127.0.0.1:4444"));
    assert!(config(&[], &[variable]).contains("127.0.0.1:2222"));
    assert!(config(&["--listen", "127.0.0.1:3333"], &[variable]).contains("127.0.0.1:3333"));
}

#[test]
fn config_shows_every_value_and_hides_every_secret() {
    let folder = folder();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "canary-file\n").expect("written");
    let environment = [
        ("REFRAIN_ACCESS__MODE", "shared"),
        ("REFRAIN_UPSTREAM__TOKEN", "canary-team"),
        ("REFRAIN_ACCESS__CLIENTS", "[{name = \"reports\", key = \"canary-client\"}]"),
        ("REFRAIN_ADMIN__TOKEN_FILE", secret.to_str().expect("UTF-8")),
    ];
    for command in ["config", "check"] {
        let output = run(folder.path(), &[command], &environment);
        let shown =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{shown}");
        assert!(!shown.contains("canary"), "{shown}");
        if command == "config" {
            for word in ["reports", "requests_per_second", "pending_max_age", "recheck_after", "cors_origins"]
            {
                assert!(shown.contains(word), "{word}: {shown}");
            }
        }
    }
    // A bad secret is not shown either.
    let bad = run(folder.path(), &["check"], &[("REFRAIN_ADMIN__TOKEN", "canary token\u{1}")]);
    assert_eq!(bad.status.code(), Some(64));
    assert!(!String::from_utf8_lossy(&bad.stderr).contains("canary"), "{bad:?}");
}

#[test]
fn unknown_arguments_are_wrong_usage() {
    let folder = folder();
    for arguments in [&["sevre"][..], &["serve", "--no-such-flag"], &["check", "more"]] {
        let output = run(folder.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
    }
    for arguments in [["--help"], ["--version"]] {
        let output = run(folder.path(), &arguments, &[]);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty());
    }
}

async fn health(program: &Program, folder: &Path) -> Output {
    let (admin, folder) = (program.admin.to_string(), folder.to_owned());
    tokio::task::spawn_blocking(move || run(&folder, &["health"], &[("REFRAIN_ADMIN__LISTEN", &admin)]))
        .await
        .expect("no panic")
}

async fn get(address: SocketAddr, path: &str) -> RawAnswer {
    let mut wire = Wire::connect(address).await;
    wire.write(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n")).await;
    wire.answer().await
}

#[tokio::test]
async fn health_tells_whether_the_proxy_is_ready() {
    let (upstream, folder) = (simulator().await, folder());
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    assert_eq!(health(&program, folder.path()).await.status.code(), Some(0));
    assert_eq!(get(program.admin, "/healthz").await.status, 200);
    assert_eq!(get(program.admin, "/readyz").await.status, 200);
    assert_eq!(upstream.call_count(), 0, "health asks nobody upstream");
    let admin = program.admin.to_string();
    drop(program);
    let output = run(folder.path(), &["health"], &[("REFRAIN_ADMIN__LISTEN", &admin)]);
    assert_fails(&output, 1, &["not ready"]);
}

#[tokio::test]
async fn the_admin_port_answers_to_loopback_names_alone_while_it_has_no_token() {
    let (upstream, folder) = (simulator().await, folder());
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    for (host, allowed) in [
        ("127.0.0.1", true),
        ("localhost:8081", true),
        ("[::1]:1", true),
        ("evil.example", false),
        ("localhost.evil.example", false),
        ("127.0.0.1.evil.example", false),
        ("10.0.0.1", false),
    ] {
        for path in ["/healthz", "/metrics"] {
            let answer = Wire::exchange(
                program.admin,
                format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"),
            )
            .await;
            assert_eq!(answer.starts_with("HTTP/1.1 200"), allowed, "{host} {path}: {answer}");
        }
    }
    drop(program);

    let program =
        Program::serve(&upstream.base_url(), folder.path(), &[("REFRAIN_ADMIN__TOKEN", "admin-token")]);
    let ask = async |path: &str, authorization: &str| {
        let line =
            format!("GET {path} HTTP/1.1\r\nhost: any.example\r\nconnection: close\r\n{authorization}\r\n");
        let answer = Wire::exchange(program.admin, line).await;
        answer.split(' ').nth(1).map(str::to_owned).expect("a status")
    };
    assert_eq!(ask("/healthz", "").await, "200");
    assert_eq!(ask("/readyz", "").await, "200");
    assert_eq!(ask("/metrics", "").await, "401");
    assert_eq!(ask("/metrics", "authorization: Bearer admin-toke\r\n").await, "401");
    assert_eq!(ask("/metrics", "authorization: Bearer admin-token\r\n").await, "200");
}

#[tokio::test]
async fn metrics_have_the_names_that_alerts_rely_on() {
    let (upstream, folder) = (simulator().await, folder());
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let id = upstream.create_finished("producer", "t");
    for _ in 0..2 {
        look_up(&program, &id).await;
    }
    let text = get(program.admin, "/metrics").await.text();
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

#[tokio::test]
async fn a_json_record_holds_the_request_id_as_the_client_sees_it() {
    let (upstream, folder) = (simulator().await, folder());
    let program = Program::serve(&upstream.base_url(), folder.path(), &[("REFRAIN_LOG__FORMAT", "json")]);
    let id = upstream.create_finished("producer", "t");
    let answer = look_up(&program, &id).await;
    let expected = answer.header("x-request-id");
    eventually("the request's line", async || {
        program.log().lines().any(|line| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            record["message"] == "request" && record["request_id"] == expected
        })
    })
    .await;
}

/// One look-up with the token `t` on a connection of its own.
async fn look_up(program: &Program, id: &str) -> RawAnswer {
    let mut wire = Wire::connect(program.address).await;
    wire.write(look_up_bytes(id)).await;
    wire.answer().await
}

fn look_up_bytes(id: &str) -> Vec<u8> {
    let headers = [("authorization", "Bearer t"), ("content-type", "application/json")];
    request("POST /producer/tasks", &headers, json!({"action": "retrieve", "id": id}).to_string())
}

/// Files of the store besides the database and its lock.
fn left_beside(folder: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("UTF-8"));
    names.filter(|name| name.ends_with("-wal") || name.ends_with("-shm")).collect()
}

#[tokio::test]
async fn the_first_signal_finishes_what_is_in_hand_and_leaves_the_store_clean() {
    for signal in ["TERM", "INT"] {
        let (upstream, folder) = (simulator().await, folder());
        let id = upstream.create_finished("producer", "t");
        let (rule, hold) = Rule::look_ups().hold();
        upstream.script(rule);
        let pieces = ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}", "{\"n\":4}"];
        upstream.script(Rule::path("/producer/audios").ndjson(pieces, Duration::from_millis(400)));
        let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);

        let mut stream = Wire::connect(program.address).await;
        stream.write(request("POST /producer/audios", &[("authorization", "Bearer t")], "{}")).await;
        stream.head().await;
        assert_eq!(stream.chunk().await.as_deref(), Some(&b"{\"n\":1}\n"[..]));
        let mut held = Wire::connect(program.address).await;
        held.write(look_up_bytes(&id)).await;
        hold.wait_for_held(1).await;
        let mut idle = Wire::connect(program.address).await;
        idle.write("GET /x HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert_eq!(idle.answer().await.status, 404);

        program.signal(signal);
        eventually("it says that it drains", async || get(program.admin, "/readyz").await.status == 503)
            .await;
        assert_eq!(get(program.admin, "/healthz").await.status, 200, "alive all the same");
        assert_eq!(health(&program, folder.path()).await.status.code(), Some(1));
        let refused = async || tokio::net::TcpStream::connect(program.address).await.is_err();
        eventually("new connections are refused", refused).await;
        hold.release();

        let answer = held.answer().await;
        assert_eq!((answer.status, answer.body), (200, upstream.task_text(&id).expect("known").to_vec()));
        let mut lines = 1;
        while let Some(chunk) = stream.chunk().await {
            if chunk.is_empty() {
                lines += 100;
                break;
            }
            lines += 1;
        }
        assert_eq!(lines, 104, "the whole stream and its end");
        let status = program.wait();
        assert_eq!(status.code(), Some(0), "{}", program.log());
        assert_eq!(left_beside(folder.path()), [""; 0]);

        upstream.stop().await;
        let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
        assert_eq!(look_up(&program, &id).await.header("x-cache"), "HIT");
    }
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let (upstream, folder) = (simulator().await, folder());
    upstream.script(Rule::any().black_hole());
    let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let mut wire = Wire::connect(program.address).await;
    wire.write(request("POST /producer/audios", &[("authorization", "Bearer t")], "{}")).await;
    upstream.wait_for_calls(1).await;
    program.signal("TERM");
    eventually("it says that it drains", async || get(program.admin, "/readyz").await.status == 503).await;
    let start = Instant::now();
    program.signal("TERM");
    let status = program.wait();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(143), "{}", program.log());
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_at_the_shutdown_timeout() {
    let (upstream, folder) = (simulator().await, folder());
    upstream.script(Rule::any().black_hole());
    let mut program = Program::serve(
        &upstream.base_url(),
        folder.path(),
        &[("REFRAIN_SERVER__SHUTDOWN_TIMEOUT", "1500ms")],
    );
    let mut wire = Wire::connect(program.address).await;
    wire.write(request("POST /producer/audios", &[("authorization", "Bearer t")], "{}")).await;
    upstream.wait_for_calls(1).await;
    let start = Instant::now();
    program.signal("TERM");
    let status = program.wait();
    let took = start.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(status.code(), Some(0), "{}", program.log());
    assert_eq!(left_beside(folder.path()), [""; 0]);
}

#[tokio::test]
async fn a_waiting_look_up_gets_its_last_pending_answer_when_the_proxy_drains() {
    let (upstream, folder) = (simulator().await, folder());
    let id = upstream.create_pending("producer", "t");
    let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let mut wire = Wire::connect(program.address).await;
    let headers =
        [("authorization", "Bearer t"), ("content-type", "application/json"), ("prefer", "wait=50")];
    wire.write(request(
        "POST /producer/tasks",
        &headers,
        json!({"action": "retrieve", "id": id}).to_string(),
    ))
    .await;
    upstream
        .wait_until("the call was answered", |upstream| {
            upstream.calls().first().is_some_and(|call| call.status == Some(200))
        })
        .await;
    let start = Instant::now();
    program.signal("TERM");
    let answer = wire.answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text().contains(&id));
    assert_eq!(program.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "at once: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_second_serve_on_the_same_store_ends_with_one_line_and_harms_nothing() {
    let (upstream, folder) = (simulator().await, folder());
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let id = upstream.create_finished("producer", "t");
    assert_eq!(look_up(&program, &id).await.header("x-cache"), "MISS");
    let path = folder.path().to_owned();
    let second =
        tokio::task::spawn_blocking(move || run(&path, &["serve"], &FREE_PORTS)).await.expect("no panic");
    assert_fails(&second, 1, &["refrain.db"]);
    assert_eq!(look_up(&program, &id).await.header("x-cache"), "HIT");
    drop(program);
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    assert_eq!(
        look_up(&program, &id).await.header("x-cache"),
        "HIT",
        "a lock of one that was killed is no lock"
    );
}

#[tokio::test]
async fn after_kill_9_everything_shown_is_served_with_the_upstream_gone() {
    let (upstream, folder) = (simulator().await, folder());
    let ids: Vec<String> = (0..100).map(|_| upstream.create_finished("producer", "t")).collect();
    let mut shown = Vec::new();
    for ids in ids.chunks(25) {
        let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
        let address = program.address;
        let seen = Arc::new(AtomicUsize::new(0));
        let mut asking = tokio::task::JoinSet::new();
        for id in ids.iter().cloned() {
            let seen = Arc::clone(&seen);
            asking.spawn(async move {
                let headers = [("authorization", "Bearer t"), ("connection", "close")];
                let body = json!({"action": "retrieve", "id": id}).to_string();
                let mut wire = Wire { stream: tokio::net::TcpStream::connect(address).await.ok()? };
                wire.stream.write_all(&request("POST /producer/tasks", &headers, body)).await.ok()?;
                let read = wire.read_to_end().await.unwrap_or_else(|read| read);
                let finished = String::from_utf8_lossy(&read).contains("\"finished_at\"");
                seen.fetch_add(usize::from(finished), Ordering::Relaxed);
                finished.then_some(id)
            });
        }
        eventually("some clients have seen their task", async || seen.load(Ordering::Relaxed) >= 3).await;
        program.signal("KILL");
        while let Some(id) = asking.join_next().await {
            shown.extend(id.expect("no panic"));
        }
    }
    assert!(shown.len() >= 12, "three in each round: {}", shown.len());
    upstream.stop().await;
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    for id in &shown {
        let answer = look_up(&program, id).await;
        assert_eq!((answer.status, answer.header("x-cache")), (200, "HIT"));
        assert_eq!(answer.body, upstream.task_text(id).expect("known"));
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_set_aside_loudly() {
    let (upstream, folder) = (simulator().await, folder());
    std::fs::write(folder.path().join("refrain.db"), b"this is no database at all, ".repeat(400))
        .expect("written");
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    upstream.put_raw("producer", "t", "id", finished("id", "x"));
    for expected in ["MISS", "HIT"] {
        assert_eq!(look_up(&program, "id").await.header("x-cache"), expected);
    }
    let names: Vec<String> = std::fs::read_dir(folder.path())
        .expect("readable")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    let aside = names.iter().find(|name| name.contains("corrupt")).unwrap_or_else(|| panic!("{names:?}"));
    let kept = std::fs::read(folder.path().join(aside)).expect("readable");
    assert!(kept.starts_with(b"this is no database"), "nothing is thrown away");
    assert!(program.log().contains("corrupt"), "{}", program.log());
}

#[test]
fn a_database_from_the_future_is_refused_and_not_touched() {
    let folder = folder();
    let path = folder.path().join("refrain.db");
    let sql = "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on \
               TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL, checksum BLOB NOT NULL, \
               execution_time BIGINT NOT NULL); INSERT INTO _sqlx_migrations VALUES \
               (999999, 'from the future', CURRENT_TIMESTAMP, 1, x'00', 1);";
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        use sqlx::Connection;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.expect("opened");
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("written");
        connection.close().await.expect("closed");
    });
    let before = std::fs::read(&path).expect("readable");
    assert_fails(&run(folder.path(), &["serve"], &FREE_PORTS), 1, &["refrain.db"]);
    assert_eq!(std::fs::read(&path).expect("readable"), before, "never wiped");
}
