//! Shutdown: signals, draining, deadline, and a clean store afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use refrain_simulator::Rule;
use serde_json::json;

use crate::support::{Program, RawPeer, client, eventually, get, health, request, simulator, token_record};

/// The bytes of a lookup with the token `t`.
fn lookup(id: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let common = [("authorization", "Bearer t"), ("content-type", "application/json")];
    let body = json!({"action": "retrieve", "id": id}).to_string();
    request("POST /producer/tasks", &[&common, headers].concat(), body)
}

/// Files of the store besides the database and its lock.
fn files_left_beside(folder: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("UTF-8"));
    names.filter(|name| name.ends_with("-wal") || name.ends_with("-shm")).collect()
}

#[tokio::test]
async fn first_signal_finishes_running_requests_and_closes_the_store() {
    for signal in ["TERM", "INT"] {
        let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
        let id = upstream.create_finished("producer", "t");
        let (rule, hold) = Rule::lookups().hold();
        upstream.add_rule(rule);
        let pieces = ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}", "{\"n\":4}"];
        upstream.add_rule(Rule::path("/producer/audios").ndjson(pieces, Duration::from_millis(400)));
        let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);

        let mut stream = RawPeer::connect(program.address).await;
        stream.write(request("POST /producer/audios", &[("authorization", "Bearer t")], "{}")).await;
        stream.read_head().await;
        assert_eq!(stream.read_chunk().await.as_deref(), Some(&b"{\"n\":1}\n"[..]));
        let mut held = RawPeer::connect(program.address).await;
        held.write(lookup(&id, &[])).await;
        hold.wait_for_held(1).await;
        let mut idle = RawPeer::connect(program.address).await;
        idle.write("GET /x HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert_eq!(idle.read_response().await.status, 404);

        assert_eq!(get(program.admin, "/readyz").await.status, 200);
        program.signal(signal);
        eventually("readiness reports draining", async || get(program.admin, "/readyz").await.status == 503)
            .await;
        assert_eq!(get(program.admin, "/healthz").await.status, 200, "alive while draining");
        assert_eq!(health(&program, folder.path()).await.status.code(), Some(1));
        let refused = async || tokio::net::TcpStream::connect(program.address).await.is_err();
        eventually("new connections are refused", refused).await;
        hold.release();

        let response = held.read_response().await;
        assert_eq!((response.status, response.body), (200, upstream.task_record(&id).expect("known")));
        let mut lines = 1;
        while let Some(chunk) = stream.read_chunk().await {
            if chunk.is_empty() {
                lines += 100;
                break;
            }
            lines += 1;
        }
        assert_eq!(lines, 104, "the whole stream and its end");
        let status = program.wait();
        assert_eq!(status.code(), Some(0), "{}", program.log());
        assert_eq!(files_left_beside(folder.path()), [""; 0]);

        upstream.stop().await;
        let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
        assert_eq!(client(program.address).retrieve("t", &id).await.expect("a response").x_cache(), "HIT");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_cuts_none_of_many_running_requests() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let http = client(program.address);

    let lines: Vec<String> = (0..15).map(|n| format!("{{\"line\":{n}}}")).collect();
    let whole = format!("{}\n", lines.join("\n"));
    upstream.add_rule(Rule::path("/producer/audios").ndjson(&lines, Duration::from_millis(200)));
    let streams: Vec<_> = (0..50)
        .map(|_| {
            let http = http.clone();
            tokio::spawn(async move {
                let url = format!("http://{}/producer/audios", http.address);
                http.http.post(url).bearer_auth("t").body("{}").send().await?.bytes().await
            })
        })
        .collect();

    let ids: Vec<String> = (0..200).map(|n| format!("poll-{n}")).collect();
    for id in &ids {
        upstream.put_record("producer", "t", id, token_record(id, "t", 100));
    }
    let pending = upstream.create_pending("producer", "waiting");
    let waits: Vec<_> = (0..10)
        .map(|_| {
            let (http, body) = (http.clone(), json!({"action": "retrieve", "id": pending}).to_string());
            tokio::spawn(async move {
                let reply =
                    http.look_up("waiting", body, &[("prefer", "wait=50")]).await.expect("a response");
                (reply, Instant::now())
            })
        })
        .collect();
    // The held lookups have received the record once.
    upstream.wait_for_calls(51).await;
    let (rule, hold) = Rule::lookups().token("t").hold();
    upstream.add_rule(rule);
    let mut polls = Vec::new();
    for id in &ids {
        let mut peer = RawPeer::connect(program.address).await;
        peer.write(lookup(id, &[])).await;
        polls.push(peer);
    }
    hold.wait_for_held(4).await;

    let start = Instant::now();
    program.signal("TERM");
    for wait in waits {
        let (reply, at) = wait.await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.json()["id"].as_str()), (200, Some(pending.as_str())));
        assert!(at - start < Duration::from_secs(3), "{:?}", at - start);
    }
    hold.release();
    for (mut poll, id) in polls.into_iter().zip(&ids) {
        let response = String::from_utf8(poll.read_to_end().await.expect("closed in order").into()).unwrap();
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        assert!(response.ends_with(&token_record(id, "t", 100)), "{response}");
    }
    for stream in streams {
        assert_eq!(stream.await.unwrap().expect("a complete stream"), whole);
    }
    assert_eq!(program.wait().code(), Some(0));
    eprintln!("ended {:?} after the signal", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    // The store was closed cleanly, with the records fetched while draining.
    assert!(!folder.path().join("refrain.db-wal").exists());
    let program = Program::serve("http://127.0.0.1:1", folder.path(), &[]);
    assert_eq!(client(program.address).retrieve("t", &ids[199]).await.unwrap().x_cache(), "HIT");
}

#[tokio::test]
async fn second_signal_ends_the_process_at_once() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    upstream.add_rule(Rule::any().black_hole());
    let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let mut peer = RawPeer::connect(program.address).await;
    peer.write(request("POST /producer/audios", &[("authorization", "Bearer t")], "{}")).await;
    let http = client(program.address);
    let lookup = tokio::spawn(async move { http.retrieve("t", "stuck").await });
    upstream.wait_for_calls(2).await;
    program.signal("TERM");
    eventually("the first signal is logged", async || program.log().contains("a second signal")).await;
    eventually("readiness reports draining", async || get(program.admin, "/readyz").await.status == 503)
        .await;
    let start = Instant::now();
    program.signal("TERM");
    let status = program.wait();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(143), "{}", program.log());
    assert!(lookup.await.expect("no panic").is_err(), "no response");
}

#[tokio::test]
async fn request_beyond_the_shutdown_timeout_is_cut() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    upstream.add_rule(Rule::any().black_hole());
    let mut program = Program::serve(
        &upstream.base_url(),
        folder.path(),
        &[("REFRAIN_SERVER__SHUTDOWN_TIMEOUT", "1500ms")],
    );
    let mut peer = RawPeer::connect(program.address).await;
    peer.write(request("POST /producer/audios", &[("authorization", "Bearer t")], "{}")).await;
    upstream.wait_for_calls(1).await;
    let start = Instant::now();
    program.signal("TERM");
    let status = program.wait();
    let took = start.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(status.code(), Some(0), "{}", program.log());
    assert_eq!(files_left_beside(folder.path()), [""; 0]);
}

#[tokio::test]
async fn held_lookup_gets_its_pending_record_while_draining() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let id = upstream.create_pending("producer", "t");
    let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let mut peer = RawPeer::connect(program.address).await;
    peer.write(lookup(&id, &[("prefer", "wait=50")])).await;
    upstream
        .wait_until("the call was answered", |upstream| {
            upstream.calls().first().is_some_and(|call| call.status == Some(200))
        })
        .await;
    let start = Instant::now();
    program.signal("TERM");
    let response = peer.read_response().await;
    assert_eq!(response.status, 200, "{response:?}");
    assert!(response.text().contains(&id));
    assert_eq!(program.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "at once: {:?}", start.elapsed());
}

#[tokio::test]
async fn connection_during_a_restart_waits_in_the_passed_socket() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    // Passes the socket as a service manager does: as descriptor 3, to a process with this id.
    let start = |environment: &[(&str, &str)]| {
        let mut command = std::process::Command::new("/bin/sh");
        let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve"#;
        command.env_clear().args(["-c", script, env!("CARGO_BIN_EXE_refrain")]);
        command.stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(
            socket.try_clone().expect("a descriptor"),
        )));
        Program::start(command, &upstream.base_url(), folder.path(), environment)
    };
    let look_up = async |id: &str| {
        let mut peer = RawPeer::connect(address).await;
        peer.write(lookup(id, &[])).await;
        peer
    };
    let id = upstream.create_finished("producer", "t");

    // The socket counts, not `server.listen`.
    let mut program = start(&[("REFRAIN_SERVER__LISTEN", "192.0.2.1:1")]);
    assert_eq!(program.address, address);
    assert_eq!(look_up(&id).await.read_response().await.status, 200);
    program.signal("TERM");
    assert_eq!(program.wait().code(), Some(0));

    let mut waiting = look_up(&id).await;
    let _restarted = start(&[]);
    let response = waiting.read_response().await;
    assert_eq!((response.status, response.header("x-cache")), (200, Some("HIT")));
}
