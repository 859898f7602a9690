//! The program on the command line: exit codes, clear messages, `refrain health`.

use std::net::TcpListener;

use crate::support::{FREE_PORTS, Program, assert_one_line_error, get, health, run, simulator};

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
