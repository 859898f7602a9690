//! `refrain tasks …` as an operator uses it: the real program, beside a running proxy and without
//! one.

mod backup;
mod delete;
mod export_import;
mod list;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Output, Stdio};

use refrain_simulator::Simulator;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Client, Program, client, final_record, simulator};

/// No retries, so that a lookup at an unreachable upstream ends soon.
const SETTINGS: [(&str, &str); 1] = [("REFRAIN_UPSTREAM__MAX_RETRIES", "0")];

/// Runs `refrain tasks` in this folder, with this input.
fn tasks_with(folder: &Path, arguments: &[&str], environment: &[(&str, &str)], stdin: &[u8]) -> Output {
    let mut command = Program::command();
    command.current_dir(folder).arg("tasks").args(arguments).envs(environment.iter().copied());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("piped");
    let stdin = stdin.to_vec();
    let writer = std::thread::spawn(move || drop(input.write_all(&stdin)));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic");
    output
}

/// Runs a command that has to succeed. Returns its stdout.
fn tasks(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    succeeds(tasks_with(folder, arguments, &[], b""))
}

fn succeeds(output: Output) -> Vec<u8> {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    output.stdout
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn json_lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Asserts this exit code, an empty stdout, and that the last line on stderr contains these words.
fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("refrain: ") && !stderr.contains("panicked"), "{stderr}");
    for word in words {
        assert!(last.contains(word), "{word:?} is not in: {stderr}");
    }
}

/// A running proxy, its upstream and its folder.
struct ProxyProcess {
    upstream: Simulator,
    folder: TempDir,
    program: Program,
    http: Client,
}

impl ProxyProcess {
    async fn start() -> Self {
        Self::start_at(simulator().await, tempfile::tempdir().expect("a folder"), &SETTINGS)
    }

    fn start_at(upstream: Simulator, folder: TempDir, environment: &[(&str, &str)]) -> Self {
        let program = Program::serve(&upstream.base_url(), folder.path(), environment);
        let http = client(program.address);
        Self { upstream, folder, program, http }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the proxy store this record for this token.
    async fn store(&self, token: &str, id: &str, text: &str) {
        self.upstream.put_record("producer", token, id, text.to_owned());
        let reply = self.http.retrieve(token, id).await.expect("a response");
        assert_eq!((reply.x_cache(), &reply.body[..]), ("MISS", text.as_bytes()), "{reply:?}");
    }

    fn stop(mut self) -> (Simulator, TempDir) {
        self.program.signal("TERM");
        assert_eq!(self.program.wait().code(), Some(0), "{}", self.program.log());
        (self.upstream, self.folder)
    }
}

#[test]
fn wrong_usage_and_missing_stores_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let run = |arguments: &[&str]| tasks_with(path, arguments, &[], b"");
    for (arguments, words) in [
        (&[][..], &["list", "backup"][..]),
        (&["shw"], &["shw"]),
        (&["list", "--limit", "0"], &["--limit", "at least 1"]),
        (&["list", "--limit", "many"], &["--limit", "at least 1"]),
        (&["list", "--service", "a/b"], &["service"]),
        (&["show"], &["<ID>"]),
        (&["show", "x", "--all", "--reader", "a"], &["--reader"]),
        (&["show", "x", "--reader", "xyz"], &["hexadecimal"]),
        (&["delete"], &["--older-than"]),
        (&["delete", "x", "--service", "producer"], &["--service"]),
        (&["delete", "--service", "producer", "--older-than", "1d"], &["--older-than"]),
        (&["delete", "--older-than", "soon"], &["30d"]),
        (&["delete", "--older-than", "99999999999999999999y"], &["30d"]),
        (&["import"], &["<FILE>"]),
        (&["import", "x"], &["--token-stdin"]),
        (&["import", "x", "--token-stdin", "--token-file", "y"], &["--token-file"]),
        (&["import", "x", "--token-stdin"], &["first line"]),
        (&["import", "x", "--token-file", "none"], &["none"]),
        (&["backup"], &["<FILE>"]),
    ] {
        assert_fails(&run(arguments), 64, words);
    }
    let bearer = tasks_with(path, &["import", "x", "--token-stdin"], &[], b"Bearer canary\n");
    assert_fails(&bearer, 64, &["Bearer"]);
    assert!(!text(&bearer.stderr).contains("canary"), "{bearer:?}");

    let all = [
        &["list"][..],
        &["show", "x"],
        &["delete", "x"],
        &["export"],
        &["export", "--output", "out"],
        &["backup", "out"],
        &["stats"],
    ];
    for arguments in all {
        assert_fails(&run(arguments), 1, &["no task store", "refrain.db"]);
    }
    std::fs::write(path.join("refrain.db"), "").expect("written");
    for arguments in all {
        assert_fails(&run(arguments), 1, &["start refrain on it once"]);
    }
    std::fs::write(path.join("refrain.db"), "no database, but long enough to be read as one".repeat(100))
        .expect("written");
    for arguments in all {
        let output = run(arguments);
        assert_fails(&output, 1, &["refrain.db", "not a database"]);
        assert_eq!(text(&output.stderr).matches("not a database").count(), 1, "{output:?}");
    }
    assert_eq!(std::fs::read_dir(path).expect("readable").count(), 1, "nothing is left");
    assert_fails(&run(&["list", "--store", "x.db"]), 1, &["no task store", "x.db"]);
    assert_fails(&run(&["list", "--store", "x:y.db"]), 64, &["store.url"]);
}

#[tokio::test]
async fn closed_stdout_ends_the_command_silently() {
    let proxy = ProxyProcess::start().await;
    let ids: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    for id in &ids {
        proxy.upstream.put_record("producer", "t", id, final_record(id, &"x".repeat(20_000)));
    }
    proxy.http.batch("t", &ids).await.expect("a response");
    for arguments in [&["export"][..], &["list", "--json"], &["list"], &["show", "t1"], &["stats"]] {
        let mut command = Program::command();
        command.current_dir(proxy.path()).arg("tasks").args(arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut stdout = BufReader::with_capacity(16, child.stdout.take().expect("piped"));
        if arguments == ["export"] {
            stdout.read_line(&mut String::new()).expect("a line");
        }
        drop(stdout);
        let mut stderr = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
        assert_eq!((child.wait().expect("it ends").code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}
