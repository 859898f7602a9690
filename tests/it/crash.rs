//! `kill -9` in the middle of many lookups: every final record that a client received is stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    Client, Program, RawPeer, StoreFile, TIMEOUT, client, in_parallel, request, simulator, token_record,
};

/// Number of lookups at the same time.
const CLIENTS: usize = 1000;

/// Longest start after a kill. The documented limit is 2 s; a debug build on a busy machine needs
/// more.
const READY_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn received_records_survive_kill_9_three_times() {
    kill_repeatedly(3).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute or two; tests/extended runs it"]
async fn received_records_survive_kill_9_twenty_times() {
    kill_repeatedly(20).await;
}

/// A task of one token; its record follows from these values alone.
#[derive(Clone)]
struct Task {
    token: String,
    id: String,
    length: usize,
}

impl Task {
    fn record(&self) -> String {
        token_record(&self.id, &self.token, self.length)
    }
}

/// Kills the proxy during lookups, checks what was received with the upstream off, and repeats with
/// the same file.
///
/// The last round checks the records of all rounds.
async fn kill_repeatedly(rounds: usize) {
    let upstream = simulator().await;
    let folder = TempDir::new().expect("a folder");
    let mut received = Vec::new();
    for round in 0..rounds {
        let tasks: Vec<Task> = (0..CLIENTS)
            .map(|n| Task {
                token: format!("token-{}", n % 10),
                id: format!("round-{round}-{n}"),
                length: n * 37 % 20_000,
            })
            .collect();
        for task in &tasks {
            upstream.put_record("producer", &task.token, &task.id, task.record());
        }
        let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
        let mut new = kill_during_lookups(&mut program, tasks, round).await;
        eprintln!("round {round}: {} responses before the kill", new.len());
        assert!(!new.is_empty());

        upstream.stop().await;
        let start = Instant::now();
        let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
        let ready = start.elapsed();
        assert!(ready < READY_WITHIN, "ready after {ready:?}");
        if round + 1 == rounds {
            new.append(&mut received);
        }
        assert_all_stored(&client(program.address), &new).await;
        received.append(&mut new);
        program.signal("TERM");
        assert!(program.wait().success());
        let mut file = StoreFile::open(folder.path()).await;
        assert_eq!(file.integrity().await, "ok");
        file.close().await;
        upstream.resume().await.expect("it listens again");
    }
}

/// Starts all lookups at once and kills the program among the responses.
///
/// Returns the tasks whose record a client has seen to be final, even where the rest of the
/// response was cut.
async fn kill_during_lookups(program: &mut Program, tasks: Vec<Task>, round: usize) -> Vec<Task> {
    let address = program.address;
    let responses = Arc::new(AtomicUsize::new(0));
    let places = tasks.len();
    let load = {
        let responses = Arc::clone(&responses);
        tokio::spawn(async move {
            in_parallel(places, places, |n| {
                let (task, responses) = (tasks[n].clone(), Arc::clone(&responses));
                async move {
                    let read = look_up_raw(address, &task).await?;
                    let text = String::from_utf8_lossy(&read);
                    let (head, body) = text.split_once("\r\n\r\n")?;
                    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                    assert!(task.record().starts_with(body), "{}: {body}", task.id);
                    let is_final = body.contains("\"finished_at\"");
                    responses.fetch_add(usize::from(is_final), Ordering::Relaxed);
                    is_final.then_some(task)
                }
            })
            .await
        })
    };
    // Another moment in each round, from the first response to nearly the last.
    let threshold = 1 + (round * 379) % (CLIENTS * 9 / 10);
    let start = Instant::now();
    while responses.load(Ordering::Relaxed) < threshold && !load.is_finished() {
        assert!(start.elapsed() < TIMEOUT, "too few responses");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    program.signal("KILL");
    program.wait();
    load.await.expect("no panic").into_iter().flatten().collect()
}

/// Sends one lookup and returns all bytes that arrive. `None` if the program is gone before the
/// request is sent.
async fn look_up_raw(address: std::net::SocketAddr, task: &Task) -> Option<Bytes> {
    let authorization = format!("Bearer {}", task.token);
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
        ("connection", "close"),
    ];
    let body = json!({"action": "retrieve", "id": task.id}).to_string();
    let mut peer = RawPeer::try_connect(address).await.ok()?;
    peer.try_write(request("POST /producer/tasks", &headers, body)).await.ok()?;
    Some(peer.read_to_end().await.unwrap_or_else(|received| received))
}

async fn assert_all_stored(client: &Client, received: &[Task]) {
    in_parallel(received.len(), 32, |n| {
        let (client, task) = (client.clone(), received[n].clone());
        async move {
            let reply = client.retrieve(&task.token, &task.id).await.expect("a response");
            assert_eq!(
                (reply.x_cache(), reply.status.as_u16()),
                ("HIT", 200),
                "{}: {:?}",
                task.id,
                reply.body
            );
            assert_eq!(reply.body, task.record(), "{}", task.id);
        }
    })
    .await;
}
