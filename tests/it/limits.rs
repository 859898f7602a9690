//! Limits: idle, half-sent and too many connections leave other clients unaffected.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use refrain_simulator::Rule;
use tokio::net::TcpStream;

use crate::support::{
    DOCUMENTED, DOCUMENTED_ID, Program, RawPeer, TIMEOUT, client, get, request, simulator, token_record,
};

/// Starts the program with another limit of open files: `-n 64`, or `-Sn 64` for the soft limit.
fn serve_with_descriptors(ulimit: &str, upstream: &str, folder: &Path) -> Program {
    let mut command = Command::new("sh");
    let binary = Program::command().get_program().to_owned();
    command.env_clear().args(["-c", &format!("ulimit {ulimit} && exec \"$0\" serve")]).arg(binary);
    Program::start(command, upstream, folder, &[])
}

#[tokio::test]
async fn soft_descriptor_limit_is_raised_to_the_hard_limit() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let program = serve_with_descriptors("-Sn 64 && ulimit -Hn 2000", &upstream.base_url(), folder.path());
    let metrics = get(program.admin, "/metrics").await.text();
    assert!(metrics.lines().any(|line| line == "process_max_fds 2000"), "{metrics}");
}

#[tokio::test]
async fn bypassed_requests_of_many_clients_fit_the_descriptors() {
    let upstream = simulator().await;
    let (rule, hold) = Rule::any().body("text/plain", "done").hold();
    upstream.add_rule(rule);
    let folder = tempfile::tempdir().unwrap();
    let program = serve_with_descriptors("-n 128", &upstream.base_url(), folder.path());
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut peer = RawPeer::connect(program.address).await;
        peer.write(request("POST /suno/audios", &[("connection", "close")], "{}")).await;
        clients.push(peer);
    }
    hold.wait_for_held(8).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(program.admin, path).await.status, 200, "{path}");
    }
    hold.release();
    for peer in &mut clients {
        let response = peer.read_response().await;
        assert_eq!((response.status, response.text().as_ref()), (200, "done"), "{response:?}");
    }
}

#[tokio::test]
async fn idle_connections_do_not_exhaust_64_descriptors_for_good() {
    let upstream = simulator().await;
    upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    let folder = tempfile::tempdir().unwrap();
    let program = serve_with_descriptors("-n 64", &upstream.base_url(), folder.path());
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
    // A client that was connected before is served meanwhile.
    assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
    upstream.put_record("producer", "t", "new", token_record("new", "t", 10));
    assert_eq!(http.retrieve("t", "new").await.unwrap().x_cache(), "MISS");

    drop(idle);
    let fresh = client(program.address);
    let reply = tokio::time::timeout(TIMEOUT, fresh.retrieve("t", DOCUMENTED_ID)).await.expect("in time");
    assert_eq!(reply.unwrap().x_cache(), "HIT");
}

#[tokio::test]
async fn idle_and_half_sent_requests_leave_others_unaffected() {
    let upstream = simulator().await;
    upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
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
        let mut peer = RawPeer::connect(program.address).await;
        peer.write(starts[n % 3]).await;
        slow.push(peer);
    }
    let start = Instant::now();
    for _ in 0..50 {
        assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
