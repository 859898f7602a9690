//! `refrain demo`: its comparison, on the terminal and on the admin port.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;

use crate::support::{Program, get};

/// The two values of a row of the table.
fn values<'a>(lines: &'a [String], name: &str) -> [&'a str; 2] {
    let row = lines.iter().rev().find_map(|line| line.trim().strip_prefix(name));
    let row = row.unwrap_or_else(|| panic!("no {name}: {lines:#?}")).trim();
    let (direct, refrain) = row.split_once("  ").expect("two columns");
    [direct, refrain.trim()]
}

#[tokio::test]
async fn demo_compares_both_crowds_and_stops_on_sigterm() {
    let mut child = Program::command()
        .args(["demo", "--seconds", "8", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines =
        BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("UTF-8"));
    let printed: Vec<String> = lines.by_ref().take_while(|line| line != "Press Ctrl-C to stop.").collect();

    let numbers = |name| values(&printed, name).map(|value| value.parse::<u64>().expect("a number"));
    let ([direct_calls, calls], [direct_refused, refused]) =
        (numbers("upstream calls"), numbers("429s that clients received"));
    assert!(calls > 0 && calls < direct_calls, "{printed:#?}");
    assert!(refused == 0 && direct_refused > calls, "{printed:#?}");
    let [direct_known, known] = values(&printed, "finished tasks that clients know").map(|value| {
        let (known, finished) = value.split_once(" of ").expect("known of finished");
        assert_eq!(finished, "99", "{printed:#?}");
        known.parse::<u64>().expect("a number")
    });
    assert!(known > direct_known, "{printed:#?}");

    let admin = printed.iter().find_map(|line| line.trim().strip_prefix("dashboard  http://"));
    let admin: SocketAddr = admin.expect("the dashboard").parse().expect("an address");
    let stats = get(admin, "/api/stats").await;
    let stats: serde_json::Value = serde_json::from_slice(&stats.body).expect("JSON");
    assert_eq!(stats["comparison"]["refrain"]["upstream_calls"], calls, "{stats}");
    assert_eq!(stats["comparison"]["direct"]["rate_limited"], direct_refused, "{stats}");

    let script = get(admin, "/assets/figures.js").await.body;
    assert!(String::from_utf8_lossy(&script).contains("stats.comparison"), "the dashboard shows it");

    let killed = std::process::Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && log.is_empty(), "{:?}: {log}", output.status);
}
