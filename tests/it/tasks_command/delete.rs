//! `refrain tasks delete`.

use std::time::{Duration, Instant};

use super::{ProxyProcess, tasks, tasks_with, text};
use crate::support::{eventually, final_record};

#[tokio::test]
async fn deleted_task_is_fetched_again_within_a_second() {
    let proxy = ProxyProcess::start().await;
    for id in ["a", "b", "c", "stays"] {
        proxy.store("t", id, &final_record(id, "x")).await;
    }
    // Repeats the lookup until it causes one upstream call; hits from memory and disk cause none.
    let is_fetched_again = async |id: &str, since: Instant| {
        let before = proxy.upstream.lookup_calls().len();
        loop {
            let reply = proxy.http.retrieve("t", id).await.expect("a response");
            let after = proxy.upstream.lookup_calls().len();
            assert!(since.elapsed() < Duration::from_secs(1), "{id} is still a {}", reply.x_cache());
            if after > before {
                assert_eq!((after, reply.x_cache()), (before + 1, "MISS"));
                return;
            }
        }
    };
    let reply = proxy.http.retrieve("t", "a").await.expect("a response");
    assert_eq!(reply.x_cache(), "HIT", "in memory");
    let folder = proxy.path();
    let out = tasks(folder, &["delete", "a", "b"]);
    let since = Instant::now();
    assert_eq!(text(&out), "deleted 2 tasks\n");
    is_fetched_again("a", since).await;
    is_fetched_again("b", since).await;
    // A record whose call began before the proxy noticed the delete is not stored; the next one is.
    let is_hit = async |id: &str| proxy.http.retrieve("t", id).await.expect("a response").x_cache() == "HIT";
    for id in ["a", "b"] {
        eventually("stored again", async || is_hit(id).await).await;
    }
    let before = proxy.upstream.call_count();
    assert_eq!(proxy.http.retrieve("t", "stays").await.expect("a response").x_cache(), "HIT");
    assert_eq!(proxy.upstream.call_count(), before);

    let one_of_two = tasks_with(folder, &["delete", "none", "c"], &[], b"");
    assert_eq!(one_of_two.status.code(), Some(1), "{one_of_two:?}");
    assert_eq!(text(&one_of_two.stdout), "deleted 1 task\n");
    assert!(text(&one_of_two.stderr).contains("none is not stored"), "{one_of_two:?}");

    for name in ["delete", "forget"] {
        assert_eq!(text(&tasks(folder, &[name, "--older-than", "1h", "--json"])), "{\"deleted\":0}\n");
    }
    assert_eq!(text(&tasks(folder, &["delete", "--service", "suno", "--yes"])), "deleted 0 tasks\n");
    let out = tasks(folder, &["delete", "--service", "producer"]);
    let since = Instant::now();
    assert_eq!(text(&out), "deleted 3 tasks\n");
    is_fetched_again("stays", since).await;
    eventually("stored again", async || is_hit("stays").await).await;
    assert_eq!(text(&tasks(folder, &["delete", "--older-than", "0s"])), "deleted 1 task\n");
    let (_upstream, folder) = proxy.stop();
    assert_eq!(tasks(folder.path(), &["list"]), b"", "also without a proxy");
    let missing = tasks_with(folder.path(), &["delete", "stays"], &[], b"");
    assert_eq!((missing.status.code(), text(&missing.stdout)), (Some(1), "deleted 0 tasks\n"));
}
