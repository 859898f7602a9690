//! `refrain tasks backup`.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{ProxyProcess, SETTINGS, assert_fails, json_lines, succeeds, tasks, tasks_with};
use crate::support::{Program, StoreFile, client, final_record};

#[tokio::test(flavor = "multi_thread")]
async fn backup_during_writes_is_complete_and_can_be_served() {
    let proxy = ProxyProcess::start().await;
    for n in 0..300 {
        proxy.upstream.put_record(
            "producer",
            "t",
            &format!("t{n}"),
            final_record(&format!("t{n}"), &"x".repeat(3000)),
        );
    }
    let ids: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
    assert_eq!(proxy.http.batch("t", &ids).await.expect("a response").status, 200);
    let done = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (http, done) = (proxy.http.clone(), Arc::clone(&done));
        async move {
            let mut count = 0;
            for n in 20..300 {
                http.retrieve("t", &format!("t{n}")).await.expect("a response");
                count += 1;
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            count
        }
    });
    let folder = proxy.path().to_owned();
    let out = tokio::task::spawn_blocking(move || {
        let out = tasks(&folder, &["backup", "copy.db", "--json"]);
        let again = tasks_with(&folder, &["backup", "copy.db"], &[], b"");
        assert_fails(&again, 1, &["copy.db exists already"]);
        assert_fails(&tasks_with(&folder, &["backup", "no/copy.db"], &[], b""), 1, &["no/copy.db"]);
        out
    })
    .await
    .expect("no panic");
    done.store(true, Ordering::Relaxed);
    assert!(writing.await.expect("no panic") > 0, "records were written during the backup");
    let summary = &json_lines(&out)[0];
    assert!(summary["tasks"].as_u64() >= Some(20), "{summary}");
    let names: Vec<String> = std::fs::read_dir(proxy.path())
        .expect("readable")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("copy"))
        .collect();
    assert_eq!(names, ["copy.db"], "no partial file is left");

    let served = tempfile::tempdir().expect("a folder");
    std::fs::copy(proxy.path().join("copy.db"), served.path().join("refrain.db")).expect("copied");
    assert_eq!(StoreFile::open(served.path()).await.integrity().await, "ok");
    let stats = &json_lines(&tasks(served.path(), &["stats", "--json"]))[0];
    assert_eq!(stats["tasks"], summary["tasks"]);
    let (upstream, _first) = proxy.stop();
    upstream.clear_calls();
    let program = Program::serve(&upstream.base_url(), served.path(), &SETTINGS);
    let http = client(program.address);
    let reply = http.batch("t", &ids).await.expect("a response");
    assert_eq!((reply.x_cache(), &reply.json()["count"]), ("HIT", &json!(20)));
    let reply = http.batch("other", &ids).await.expect("a response");
    assert_eq!(reply.json()["count"], 0, "the copy has the same grants and no others");
}

#[test]
fn interrupted_backup_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines: String = (0..3000)
        .map(|n| {
            let id = format!("t{n}");
            let text = final_record(&id, &"x".repeat(20_000));
            json!({"service": "producer", "id": id, "stored_at": 1, "text": text}).to_string() + "\n"
        })
        .collect();
    let input = format!("t\n{lines}");
    succeeds(tasks_with(folder.path(), &["import", "-", "--token-stdin"], &[], input.as_bytes()));
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .expect("readable")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let before = names();
    let mut command = Program::command();
    command.current_dir(folder.path()).args(["tasks", "backup", "copy.db"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let start = Instant::now();
    // Waits for the copy's file: the store's log appears earlier, before the command handles
    // signals.
    while !names().iter().any(|name| !name.starts_with("refrain.db")) {
        assert!(start.elapsed() < Duration::from_secs(20), "it begins");
    }
    let pid = child.id().to_string();
    let killed = std::process::Command::new("kill").args(["-s", "INT", &pid]).status().expect("kill runs");
    assert!(killed.success());
    let output = child.wait_with_output().expect("it ends");
    assert_fails(&output, 1, &["interrupted; nothing was written"]);
    assert_eq!(names(), before);
}
