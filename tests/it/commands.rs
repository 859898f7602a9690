//! The program on the command line: exit codes, clear messages, `refrain health`.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::support::{
    FREE_PORTS, Program, assert_one_line_error, client, eventually, get, health, run, simulator,
};

/// Runs `refrain tokens digest` with this text on stdin.
fn digest_of_stdin(folder: &Path, text: &str) -> Output {
    let mut command = Program::command();
    command.current_dir(folder).args(["tokens", "digest"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn stdout(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    std::str::from_utf8(&output.stdout).expect("text")
}

#[test]
fn occupied_port_ends_the_start_with_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for key in ["REFRAIN_SERVER__LISTEN", "REFRAIN_ADMIN__LISTEN"] {
        let environment = [&FREE_PORTS[..], &[(key, &address)]].concat();
        for arguments in [&["serve"][..], &[]] {
            assert_one_line_error(&run(folder.path(), arguments, &environment), 1, &[&address, "in use"]);
        }
    }
}

#[test]
fn unknown_argument_is_a_usage_error() {
    let folder = tempfile::tempdir().expect("a folder");
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

#[tokio::test]
async fn health_command_reports_readiness() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    assert_eq!(health(&program, folder.path()).await.status.code(), Some(0));
    assert_eq!(get(program.admin, "/healthz").await.status, 200);
    assert_eq!(get(program.admin, "/readyz").await.status, 200);
    assert_eq!(upstream.call_count(), 0, "health causes no upstream call");
    let admin = program.admin.to_string();
    drop(program);
    let output = run(folder.path(), &["health"], &[("REFRAIN_ADMIN__LISTEN", &admin)]);
    assert_one_line_error(&output, 1, &["not ready"]);
}

#[tokio::test]
async fn token_with_a_printed_digest_has_its_name_in_the_log() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let first = digest_of_stdin(folder.path(), "canary-token\n");
    let digest = stdout(&first).trim_end().to_owned();
    assert_eq!(digest.len(), 64, "{digest}");
    assert!(
        String::from_utf8_lossy(&first.stderr).contains("refrain.db"),
        "it names the new store: {first:?}"
    );

    let names = format!("[{{name = \"reports\", digest = \"{digest}\"}}]");
    let settings = [("REFRAIN_ACCESS__TOKENS", names.as_str())];
    let program = Program::serve(&upstream.base_url(), folder.path(), &settings);
    let http = client(program.address);
    for token in ["canary-token", "another"] {
        http.retrieve(token, &upstream.create_finished("producer", token)).await.expect("a response");
    }
    let requests = || program.log().lines().filter(|line| line.contains(": request ")).count();
    eventually("both lines", async || requests() == 2).await;
    let log = program.log();
    assert_eq!(log.matches("token=\"reports\"").count(), 1, "{log}");
    assert!(!log.contains("canary"), "{log}");

    std::fs::write(folder.path().join("token"), "canary-token\n").expect("a file");
    let again = run(folder.path(), &["tokens", "digest", "--token-file", "token"], &[]);
    assert_eq!((stdout(&again).trim_end(), &again.stderr[..]), (digest.as_str(), &b""[..]), "beside a proxy");
    for (text, word) in [("", "stdin"), ("Bearer canary-token\n", "without")] {
        let line = assert_one_line_error(&digest_of_stdin(folder.path(), text), 64, &[word]);
        assert!(!line.contains("canary"), "{line}");
    }
}

#[test]
fn configuration_is_printed_as_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let environment = [("REFRAIN_UPSTREAM__BURST", "3"), ("REFRAIN_ADMIN__TOKEN", "canary")];
    let output = run(folder.path(), &["config", "--json"], &environment);
    let printed: Value = serde_json::from_str(stdout(&output)).expect("JSON");
    let find = |key: &str| {
        let values = printed["values"].as_array().expect("a list");
        values.iter().find(|value| value["key"] == key).unwrap_or_else(|| panic!("{key}: {printed}")).clone()
    };
    assert_eq!(find("upstream.burst")["value"], 3);
    assert_eq!(find("upstream.burst")["source"], "REFRAIN_UPSTREAM__BURST");
    assert_eq!(find("admin.token")["value"], "***");
}

#[test]
fn completion_script_of_each_shell_has_the_commands() {
    let folder = tempfile::tempdir().expect("a folder");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(folder.path(), &["completions", shell], &[]);
        assert!(
            ["simulate", "completions", "log-filter"].iter().all(|word| stdout(&output).contains(word)),
            "{shell}"
        );
    }
    let unknown = run(folder.path(), &["completions", "cmd"], &[]);
    assert_one_line_error(&unknown, 64, &["cmd", "bash"]);
}

#[test]
fn help_lists_global_options_last_with_their_defaults() {
    let folder = tempfile::tempdir().expect("a folder");
    for arguments in [&["--help"][..], &["tasks", "list", "--help"], &["tokens", "digest", "--help"]] {
        let output = run(folder.path(), arguments, &[]);
        let (own, global) = stdout(&output).split_once("Global options:").expect("a heading");
        assert!(own.contains("--help") && !own.contains("--log-filter"), "{own}");
        for default in
            ["127.0.0.1:8080", "127.0.0.1:8081", "https://api.acedata.cloud", "refrain.db", "pretty", "info"]
        {
            assert!(global.contains(&format!("[default: {default}]")), "{default}: {global}");
        }
    }
}
