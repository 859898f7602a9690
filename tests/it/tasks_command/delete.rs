//! `refrain tasks delete`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use super::{ProxyProcess, assert_fails, tasks, tasks_with, text};
use crate::support::{Program, eventually, final_record};

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
    assert_eq!(text(&one_of_two.stderr), "refrain: task none is not stored\n");

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
    for (arguments, message) in [
        (&["forget", "stays"][..], "refrain: task stays is not stored\n"),
        (&["delete", "stays", "x", "stays"], "refrain: 2 tasks are not stored: stays, x\n"),
    ] {
        let missing = tasks_with(folder.path(), arguments, &[], b"");
        assert_eq!((missing.status.code(), text(&missing.stdout)), (Some(1), ""));
        assert_eq!(text(&missing.stderr), message);
    }
    let json = tasks_with(folder.path(), &["delete", "stays", "--json"], &[], b"");
    assert_eq!((json.status.code(), text(&json.stdout)), (Some(1), "{\"deleted\":0}\n"));
}

#[tokio::test]
async fn beginning_of_an_id_selects_a_task_if_it_is_unique() {
    let proxy = ProxyProcess::start().await;
    let ids = ["abc-1", "abc-2", "abc-20", "abd", "abe", "abf", "abg", "x"];
    for id in ids {
        proxy.store("t", id, &final_record(id, "y")).await;
    }
    let folder = proxy.path();
    assert_eq!(text(&tasks(folder, &["show", "abc-1"])), final_record("abc-1", "y"));
    assert_eq!(text(&tasks(folder, &["show", "abd", "--service", "producer"])), final_record("abd", "y"));
    assert_eq!(text(&tasks(folder, &["show", "abc-2"])), final_record("abc-2", "y"), "the whole id");
    assert_fails(
        &tasks_with(folder, &["show", "abd", "--service", "suno"], &[], b""),
        1,
        &["abd is not stored"],
    );
    let few = &["3 ids begin with abc: abc-1, abc-2, abc-20;"];
    let many = &["7 ids begin with ab: abc-1, abc-2, abc-20, abd, abe, …;"];
    for command in ["show", "delete"] {
        assert_fails(&tasks_with(folder, &[command, "abc"], &[], b""), 1, few);
        assert_fails(&tasks_with(folder, &[command, "ab"], &[], b""), 1, many);
    }
    let mixed = tasks_with(folder, &["delete", "x", "abc"], &[], b"");
    assert_fails(&mixed, 1, few);
    assert_eq!(text(&tasks(folder, &["show", "x"])), final_record("x", "y"), "nothing was deleted");
    assert_eq!(text(&tasks(folder, &["delete", "abc-20", "abf"])), "deleted 2 tasks\n");
    assert_eq!(text(&tasks(folder, &["delete", "abc-2", "abc-1", "abc-1"])), "deleted 2 tasks\n");
    assert_eq!(text(&tasks(folder, &["delete", "abe", "abg"])), "deleted 2 tasks\n");
    assert_eq!(text(&tasks(folder, &["show", "a"])), final_record("abd", "y"), "the only one left");
    assert_eq!(text(&tasks(folder, &["delete", "a"])), "deleted 1 task\n");
}

#[tokio::test]
async fn delete_on_a_terminal_states_the_number_before_it_asks() {
    let proxy = ProxyProcess::start().await;
    for id in ["task-1", "task-2", "task-3"] {
        proxy.store("t", id, &final_record(id, "x")).await;
    }
    let folder = proxy.path();
    for (arguments, question) in [
        (&["--service", "producer"][..], "Delete 3 tasks of producer? [y/N] "),
        (&["--older-than", "0s"], "Delete 3 tasks stored more than 0s ago? [y/N] "),
        (&["task-2", "none"], "Delete 1 task: task-2? [y/N] "),
    ] {
        let output = on_terminal(folder, &[&["delete"], arguments].concat(), "n\n");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(text(&output.stderr), format!("{question}refrain: no task was deleted\n"));
    }
    let output = on_terminal(folder, &["delete", "--service", "producer"], "y\n");
    assert_eq!(text(&output.stdout), "deleted 3 tasks\n");
    let output = on_terminal(folder, &["delete", "--service", "producer"], "");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("deleted 0 tasks\n", ""));
}

/// Runs `refrain tasks` with a terminal as stdin and `reply` as its input.
fn on_terminal(folder: &Path, arguments: &[&str], reply: &str) -> Output {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("granted");
    unlockpt(&terminal).expect("unlocked");
    let name = ptsname(&terminal, Vec::new()).expect("a name");
    let stdin = File::options().read(true).write(true).open(name.to_str().expect("UTF-8")).expect("opened");
    let mut terminal = File::from(terminal);
    terminal.write_all(reply.as_bytes()).expect("typed");
    let mut command = Program::command();
    command.current_dir(folder).arg("tasks").args(arguments).stdin(stdin);
    command.output().expect("it runs and ends")
}
