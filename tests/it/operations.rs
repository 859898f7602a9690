//! Signals, few descriptors, a stopped clock of the process: what an operator does to the program.

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use refrain_simulator::Rule;
use serde_json::json;
use tokio::net::TcpStream;

use crate::support::{
    DOCUMENTED, DOCUMENTED_ID, PATIENCE, Program, Wire, client, eventually, simulator, task_text,
};

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_cuts_nothing_that_is_under_way() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let http = client(program.address);

    let lines: Vec<String> = (0..15).map(|n| format!("{{\"line\":{n}}}")).collect();
    let whole = format!("{}\n", lines.join("\n"));
    upstream.script(Rule::path("/producer/audios").ndjson(&lines, Duration::from_millis(200)));
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
        upstream.put_raw("producer", "t", id, task_text(id, "t", 100));
    }
    let pending = upstream.create_pending("producer", "waiting");
    let waits: Vec<_> = (0..10)
        .map(|_| {
            let (http, body) = (http.clone(), json!({"action": "retrieve", "id": pending}).to_string());
            tokio::spawn(async move {
                let reply = http.look_up("waiting", body, &[("prefer", "wait=50")]).await.expect("an answer");
                (reply, Instant::now())
            })
        })
        .collect();
    // The waiting ones have seen the task once.
    upstream.wait_for_calls(51).await;
    let (rule, hold) = Rule::look_ups().token("t").hold();
    upstream.script(rule);
    let mut polls = Vec::new();
    for id in &ids {
        let body = json!({"action": "retrieve", "id": id}).to_string();
        let mut wire = Wire::connect(program.address).await;
        wire.write(format!(
            "POST /producer/tasks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
        polls.push(wire);
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
        let answer = String::from_utf8(poll.read_to_end().await.expect("closed in order")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with(&task_text(id, "t", 100)), "{answer}");
    }
    for stream in streams {
        assert_eq!(stream.await.unwrap().expect("a whole stream"), whole);
    }
    assert_eq!(program.wait().code(), Some(0));
    eprintln!("ended {:?} after the signal", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    // It left the store clean, and what was answered while draining is in it.
    assert!(!folder.path().join("refrain.db-wal").exists());
    let program = Program::serve("http://127.0.0.1:1", folder.path(), &[]);
    assert_eq!(client(program.address).retrieve("t", &ids[199]).await.unwrap().x_cache(), "HIT");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    upstream.script(Rule::any().black_hole());
    let http = client(program.address);
    let request = tokio::spawn(async move { http.retrieve("t", "stuck").await });
    upstream.wait_for_calls(1).await;
    let start = Instant::now();
    program.signal("TERM");
    eventually("the first signal is logged", async || program.log().contains("a second signal")).await;
    program.signal("TERM");
    assert_eq!(program.wait().code(), Some(143));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(request.await.unwrap().is_err());
}

#[tokio::test]
async fn with_64_descriptors_idle_connections_do_not_shut_it_out_for_good() {
    let upstream = simulator().await;
    upstream.put_raw("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    let binary = Program::command().get_program().to_owned();
    command.env_clear().args(["-c", "ulimit -n 64 && exec \"$0\" serve"]).arg(binary);
    let program = Program::start(command, &upstream.base_url(), folder.path(), &[]);
    let http = client(program.address);
    assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "MISS");

    let mut idle = Vec::new();
    for _ in 0..300 {
        let connecting = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(program.address));
        let Ok(Ok(stream)) = connecting.await else { break };
        idle.push(stream);
    }
    assert!(idle.len() >= 64, "{}", idle.len());
    for path in ["healthz", "readyz", "metrics"] {
        let url = format!("http://{}/{path}", program.admin);
        assert_eq!(http.http.get(url).send().await.expect("reachable").status(), 200, "{path}");
    }
    // A client that was connected before is served all the while.
    assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
    upstream.put_raw("producer", "t", "new", task_text("new", "t", 10));
    assert_eq!(http.retrieve("t", "new").await.unwrap().x_cache(), "MISS");

    drop(idle);
    let fresh = client(program.address);
    let reply = tokio::time::timeout(PATIENCE, fresh.retrieve("t", DOCUMENTED_ID)).await.expect("in time");
    assert_eq!(reply.unwrap().x_cache(), "HIT");
}

#[tokio::test]
async fn many_idle_and_half_sent_requests_leave_others_unaffected() {
    let upstream = simulator().await;
    upstream.put_raw("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    let folder = tempfile::tempdir().unwrap();
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let http = client(program.address);
    http.retrieve("t", DOCUMENTED_ID).await.unwrap();
    let starts = [
        "",
        "POST /producer/tasks HTTP/1.1\r\nhost: x\r\n",
        "POST /producer/tasks HTTP/1.1\r\nhost: x\r\n\
        authorization: Bearer t\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"act",
    ];
    let mut slow = Vec::new();
    for n in 0..300 {
        let mut wire = Wire::connect(program.address).await;
        wire.write(starts[n % 3]).await;
        slow.push(wire);
    }
    let start = Instant::now();
    for _ in 0..50 {
        assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_stopped_for_seconds_makes_no_burst_and_no_negative_age() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let environment = [("REFRAIN_UPSTREAM__REQUESTS_PER_SECOND", "2"), ("REFRAIN_UPSTREAM__BURST", "1")];
    let program = Program::serve(&upstream.base_url(), folder.path(), &environment);
    upstream.put_raw("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    let http = client(program.address);
    http.retrieve("t", DOCUMENTED_ID).await.unwrap();
    let pending: Vec<String> = (0..10).map(|_| upstream.create_pending("producer", "t")).collect();
    let poll = async |id: String| {
        let reply = http.retrieve("t", &id).await.expect("an answer");
        assert_eq!(reply.status, 200, "{reply:?}");
        let age = reply.header("age");
        assert!(age.is_empty() || age.parse::<u64>().is_ok_and(|age| age < 60), "{age}");
    };
    join_all(pending.iter().cloned().map(poll)).await;

    program.signal("STOP");
    // What comes while it is stopped waits in the kernel.
    let polls = join_all(pending.iter().cycle().take(100).cloned().map(poll));
    let go_on = async {
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
    // Two seconds at two a second, one saved up, one at the edge.
    let calls = upstream.look_up_calls();
    eprintln!("{} calls in the two seconds after the stop", calls.len());
    assert!(calls.len() <= 6, "{}", calls.len());
    assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
}
