//! `refrain tasks list`, `show` and `stats`.

use std::path::Path;

use serde_json::json;

use super::{ProxyProcess, assert_fails, json_lines, tasks, tasks_with, text};
use crate::support::final_record;

#[tokio::test]
async fn list_show_and_stats_work_beside_a_proxy_and_without() {
    let proxy = ProxyProcess::start().await;
    let titled = r#"{"id":"titled","response":{"data":[{"title":"\u001b[31mred\u202e é"}]},"finished_at":1}"#;
    proxy.store("t", "first", &final_record("first", "x")).await;
    proxy.store("t", "titled", titled).await;
    proxy.store("t", "nasty\n\u{1b}[2J", &final_record("nasty\n\u{1b}[2J", "x")).await;
    // The same record for another token: one row, two readers.
    proxy.store("u", "first", &final_record("first", "x")).await;

    let check = |folder: &Path| {
        let listed = json_lines(&tasks(folder, &["list", "--json"]));
        let ids: Vec<_> = listed.iter().map(|task| task["id"].as_str().expect("text")).collect();
        assert_eq!(ids, ["nasty\n\u{1b}[2J", "titled", "first"], "last stored first");
        assert_eq!((&listed[2]["readers"], &listed[0]["readers"]), (&json!(2), &json!(1)));
        assert_eq!(listed[1]["title"], "\u{1b}[31mred\u{202e} é");
        assert_eq!((&listed[1]["service"], &listed[1]["size"]), (&json!("producer"), &json!(titled.len())));

        for arguments in [&["list"][..], &["list", "--json"]] {
            let out = tasks(folder, arguments);
            let out = text(&out);
            assert!(!out.contains(['\u{1b}', '\u{202e}']), "{out}");
            assert!(out.contains("red") && out.contains('é'), "{out}");
        }
        let table = tasks(folder, &["list"]);
        assert_eq!(text(&table).lines().count(), 4, "{}", text(&table));
        let words = ["ID", "READERS", "nasty\\n\\u{1b}[2J", "Z  "];
        assert!(words.iter().all(|word| text(&table).contains(word)), "{}", text(&table));

        let first = tasks_with(folder, &["list", "--limit", "1"], &[], b"");
        assert!(text(&first.stderr).contains(&format!("--after {}", listed[0]["cursor"])), "{first:?}");
        let cursor = listed[1]["cursor"].to_string();
        let rest = json_lines(&tasks(folder, &["list", "--limit", "2", "--after", &cursor, "--json"]));
        assert_eq!(rest, listed[2..]);
        assert_eq!(tasks(folder, &["list", "--service", "suno", "--json"]), b"");

        assert_eq!(text(&tasks(folder, &["show", "titled"])), titled);
        assert_eq!(text(&tasks(folder, &["show", "titled", "--service", "producer"])), titled);
        for missing in [&["show", "none"][..], &["show", "titled", "--service", "suno"]] {
            assert_fails(&tasks_with(folder, missing, &[], b""), 1, &["not stored"]);
        }

        let stats = &json_lines(&tasks(folder, &["stats", "--json"]))[0];
        assert_eq!((&stats["tasks"], &stats["readers"]), (&json!(3), &json!(2)), "{stats}");
        assert_eq!(stats["services"]["producer"]["tasks"], 3);
        assert_eq!(stats["services"]["producer"]["bytes"], stats["bytes"]);
        assert!(stats["file_bytes"].as_u64() > Some(0) && stats["schema"].as_u64() > Some(0), "{stats}");
        assert!(stats["oldest_stored_at"].as_i64() <= stats["newest_stored_at"].as_i64(), "{stats}");
        let shown = tasks(folder, &["stats"]);
        assert!(text(&shown).contains("3 tasks"), "{}", text(&shown));
    };
    check(proxy.path());
    let (_upstream, folder) = proxy.stop();
    check(folder.path());
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("readable").flatten().collect();
    assert_eq!(left.len(), 2, "the store and its lock, no log: {left:?}");
}

#[tokio::test]
async fn show_with_several_records_of_one_id_requires_a_choice() {
    let proxy = ProxyProcess::start().await;
    let (of_a, of_b) = (final_record("x", "a"), final_record("x", "b"));
    proxy.store("a", "x", &of_a).await;
    proxy.store("b", "x", &of_b).await;
    let folder = proxy.path();
    let output = tasks_with(folder, &["show", "x"], &[], b"");
    assert_fails(&output, 1, &["2 records", "--reader", "--all"]);
    let digests: Vec<&str> = text(&output.stderr)
        .lines()
        .filter_map(|line| line.rsplit_once("readable for "))
        .map(|(_, digest)| digest)
        .collect();
    assert_eq!(digests.len(), 2, "{output:?}");
    for (digest, expected) in digests.iter().zip([&of_a, &of_b]) {
        assert_eq!(text(&tasks(folder, &["show", "x", "--reader", digest])), expected);
        assert_eq!(text(&tasks(folder, &["show", "x", "--reader", &digest.to_uppercase()])), expected);
    }
    assert_eq!(text(&tasks(folder, &["show", "x", "--all"])), format!("{of_a}\n{of_b}\n"));
    let other = "00000000000000000000000000000000";
    assert_fails(&tasks_with(folder, &["show", "x", "--reader", other], &[], b""), 1, &["not for a reader"]);
}

#[tokio::test]
async fn empty_list_is_reported_on_stderr() {
    let proxy = ProxyProcess::start().await;
    let reported = |arguments: &[&str]| {
        let output = tasks_with(proxy.path(), &[&["list"], arguments].concat(), &[], b"");
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), ""), "{output:?}");
        text(&output.stderr).to_owned()
    };
    assert_eq!(reported(&[]), "no task is stored\n");
    assert_eq!(reported(&["--json"]), "");
    proxy.store("t", "first", &final_record("first", "x")).await;
    assert_eq!(reported(&["--service", "suno"]), "no task of suno is stored\n");
    assert_eq!(reported(&["--after", "1"]), "no further task is stored\n");
}
