//! kill -9 in the middle of many look-ups: whatever a client has received as finished is there afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use crate::support::{Client, Program, StoreFile, client, in_parallel, simulator, task_text};

/// Look-ups under way at once.
const CLIENTS: usize = 1000;

/// The promise is 2 s; a debug build on a busy machine is given more.
const READY_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_received_survives_kill_9_three_times() {
    kill_again_and_again(3).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute or two; tests/extended runs it"]
async fn what_a_client_received_survives_kill_9_twenty_times() {
    kill_again_and_again(20).await;
}

/// Kills in the middle of the look-ups, asks for what was received with the upstream off, and goes on with the same
/// file; at the end asks for everything of all rounds.
async fn kill_again_and_again(rounds: usize) {
    let upstream = simulator().await;
    let folder = TempDir::new().expect("a folder");
    let mut received = Vec::new();
    for round in 0..rounds {
        let asked: Vec<(String, String)> =
            (0..CLIENTS).map(|n| (format!("token-{}", n % 10), format!("round-{round}-{n}"))).collect();
        for (n, (token, id)) in asked.iter().enumerate() {
            upstream.put_raw("producer", token, id, task_text(id, token, n * 37 % 20_000));
        }
        let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
        let mut new = kill_under_load(&mut program, asked, round).await;
        eprintln!("round {round}: {} answers before the end", new.len());

        upstream.stop().await;
        let start = Instant::now();
        let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
        let ready = start.elapsed();
        assert!(ready < READY_WITHIN, "ready after {ready:?}");
        if round + 1 == rounds {
            new.append(&mut received);
        }
        everything_is_stored(&client(program.address), &new).await;
        received.append(&mut new);
        program.signal("TERM");
        assert!(program.wait().success());
        let mut file = StoreFile::open(folder.path()).await;
        assert_eq!(file.integrity().await, "ok");
        file.close().await;
        upstream.resume().await.expect("it listens again");
    }
}

/// All look-ups at once and a kill in their middle; what came whole until then.
async fn kill_under_load(
    program: &mut Program,
    asked: Vec<(String, String)>,
    round: usize,
) -> Vec<((String, String), Bytes)> {
    let client = client(program.address);
    let answered = Arc::new(AtomicUsize::new(0));
    let places = asked.len();
    let load = {
        let answered = Arc::clone(&answered);
        tokio::spawn(async move {
            in_parallel(places, places, |n| {
                let (client, (token, id), answered) =
                    (client.clone(), asked[n].clone(), Arc::clone(&answered));
                async move {
                    let reply = client.retrieve(&token, &id).await.ok()?;
                    answered.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(reply.status, 200, "{reply:?}");
                    Some(((token, id), reply.body))
                }
            })
            .await
        })
    };
    // Somewhere else in each round, from the first answer to nearly the last.
    let threshold = 1 + (round * 379) % (CLIENTS * 9 / 10);
    while answered.load(Ordering::Relaxed) < threshold && !load.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    program.signal("KILL");
    program.wait();
    load.await.expect("no panic").into_iter().flatten().collect()
}

async fn everything_is_stored(client: &Client, received: &[((String, String), Bytes)]) {
    in_parallel(received.len(), 32, |n| {
        let (client, ((token, id), body)) = (client.clone(), received[n].clone());
        async move {
            let reply = client.retrieve(&token, &id).await.expect("an answer");
            assert_eq!((reply.x_cache(), reply.status.as_u16()), ("HIT", 200), "{id}: {:?}", reply.body);
            assert_eq!(reply.body, body, "{id}");
        }
    })
    .await;
}
