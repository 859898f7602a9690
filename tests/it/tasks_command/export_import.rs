//! `refrain tasks export` and `import`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{ProxyProcess, SETTINGS, assert_fails, json_lines, succeeds, tasks, tasks_with, text};
use crate::support::{Program, client, final_record, simulator};

/// Final records whose bytes are easily changed by a parser.
fn fragile_records() -> Vec<(String, String)> {
    let plain = (0..12).map(|n| (format!("plain-{n}"), final_record(&format!("plain-{n}"), "x")));
    let spaced =
        "{\r\n\t \"finished_at\" : 1.76711978558900E+9 ,\n \"id\":\"spaced\" , \"z\":0.10,\"a\":-0 }\n";
    let escaped = r#"{"id":"esc\u0061ped","\/":"\u00e9é\ud83d\ude00😀\ud800\u0000\u001b[31m","finished_at":1,"\\":"\\n\"\u2028"}"#;
    let odd = "{\"id\":\"o/d d\\n\u{e4}\u{202e}\",\"finished_at\":1234567890.12345678901234567890,\"del\":\"\u{7f}\u{9b}\u{feff}\"}";
    plain
        .chain([
            ("spaced".to_owned(), spaced.to_owned()),
            ("escaped".to_owned(), escaped.to_owned()),
            ("o/d d\n\u{e4}\u{202e}".to_owned(), odd.to_owned()),
        ])
        .collect()
}

#[tokio::test]
async fn imported_records_are_hits_for_the_new_token() {
    let source = ProxyProcess::start().await;
    let delicate = fragile_records();
    for (id, text) in &delicate {
        source.store("canary-old", id, text).await;
    }
    let exported = tasks(source.path(), &["export"]);
    tasks(source.path(), &["export", "--output", "export.jsonl"]);
    let file = source.path().join("export.jsonl");
    assert_eq!(std::fs::read(&file).expect("written"), exported, "the file and stdout are the same");
    for (line, (id, text)) in json_lines(&exported).iter().zip(&delicate) {
        assert_eq!(
            (&line["id"], &line["text"], &line["service"]),
            (&json!(id), &json!(text), &json!("producer"))
        );
    }
    let (upstream, source) = source.stop();

    let ids: Vec<String> = delicate.iter().map(|(id, _)| id.clone()).collect();
    for (gone, by_file) in [(false, false), (true, true)] {
        let folder = tempfile::tempdir().expect("a folder");
        let out = if by_file {
            std::fs::write(source.path().join("token"), "canary-new\n").expect("written");
            let arguments =
                ["import", "-", "--token-file", &source.path().join("token").display().to_string()];
            succeeds(tasks_with(folder.path(), &arguments, &[], &exported))
        } else {
            let arguments = ["import", file.to_str().expect("UTF-8"), "--token-stdin"];
            succeeds(tasks_with(folder.path(), &arguments, &[], b"canary-new\n"))
        };
        assert!(text(&out).starts_with("imported 15 tasks for reader "), "{}", text(&out));
        let both = [b"canary-new\r\n", &exported[..]].concat();
        let again = tasks_with(folder.path(), &["import", "-", "--token-stdin", "--json"], &[], &both);
        let output = &json_lines(&succeeds(again))[0];
        assert_eq!((&output["imported"], &output["known"]), (&json!(0), &json!(15)));
        assert_eq!(tasks(folder.path(), &["export"]), exported, "dates and order are preserved");
        for (id, stored) in &delicate {
            assert_eq!(text(&tasks(folder.path(), &["show", id])), stored);
        }

        // The upstream knows the new token, but never returned these tasks to it.
        upstream.clear_calls();
        if gone {
            upstream.stop().await;
        }
        let program = Program::serve(&upstream.base_url(), folder.path(), &SETTINGS);
        let http = client(program.address);
        let expected = format!(
            "{{\"items\":[{}],\"count\":15}}",
            delicate.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(",")
        );
        for round in 0..2 {
            let reply = http.batch("canary-new", &ids).await.expect("a response");
            assert_eq!((reply.status.as_u16(), reply.x_cache()), (200, "HIT"), "{reply:?}");
            assert_eq!(text(&reply.body), expected, "round {round}");
        }
        assert_eq!(upstream.lookup_calls().len(), usize::from(!gone), "one recheck before the first hit");
        if !gone {
            let other = http.batch("other", &ids).await.expect("a response");
            assert_eq!(other.json()["count"], 0, "only the named token may read them");
        }
        drop(program);
        for entry in std::fs::read_dir(folder.path()).expect("readable").flatten() {
            let bytes = std::fs::read(entry.path()).expect("readable");
            assert!(!bytes.windows(6).any(|window| window == b"canary"), "{entry:?}");
        }
    }
    assert!(!text(&exported).contains("canary"));
}

#[tokio::test]
async fn import_beside_a_running_proxy_is_a_hit_within_a_second() {
    let proxy = ProxyProcess::start().await;
    proxy.store("old", "x", &final_record("x", "a")).await;
    let exported = tasks(proxy.path(), &["export"]);
    let reply = proxy.http.retrieve("new", "x").await.expect("a response");
    assert_eq!(&reply.body[..], b"{}");
    succeeds(tasks_with(
        proxy.path(),
        &["import", "-", "--token-stdin"],
        &[],
        &[b"new\n", &exported[..]].concat(),
    ));
    let since = Instant::now();
    while proxy.http.retrieve("new", "x").await.expect("a response").x_cache() != "HIT" {
        assert!(since.elapsed() < Duration::from_secs(1));
    }
    let listed = json_lines(&tasks(proxy.path(), &["list", "--json"]));
    assert_eq!((listed.len(), &listed[0]["readers"]), (1, &json!(2)), "one row, two readers");
}

#[test]
fn import_stops_at_the_first_invalid_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let line = |id: &str, text: &str| {
        json!({"service": "producer", "id": id, "stored_at": 1_700_000_000, "text": text}).to_string() + "\n"
    };
    let good = |n: usize| line(&format!("t{n}"), &final_record(&format!("t{n}"), "x"));
    let import = |input: &str| {
        tasks_with(folder.path(), &["import", "-", "--token-stdin"], &[], format!("t\n{input}").as_bytes())
    };
    for (bad, why) in [
        ("no JSON\n".to_owned(), "not JSON"),
        ("\"canary-token\"\n".to_owned(), "not an object with"),
        (good(0)[..40].to_owned(), "truncated"),
        (line("pending", r#"{"id":"pending","response":{}}"#), "not final"),
        (line("other", &final_record("another", "x")), "not the record of the id"),
        (line("a", "\u{1b}[31m"), "not a JSON object"),
    ] {
        let output = import(&bad);
        assert_fails(&output, 1, &["line 1: ", why, "0 tasks were imported"]);
        assert!(!text(&output.stderr).contains("canary"), "{output:?}");
        assert!(!folder.path().join("refrain.db").exists(), "no store is created for an invalid file");
    }
    let all: String = (0..1100).map(good).collect();
    let output = import(&format!("{all}{}{}", line("pending", r#"{"id":"pending"}"#), good(1100)));
    assert_fails(&output, 1, &["line 1101: ", "1000 tasks were imported"]);
    assert_eq!(json_lines(&tasks(folder.path(), &["stats", "--json"]))[0]["tasks"], 1000);
    // A corrected file imports the rest. Blank lines are ignored.
    let output = succeeds(import(&format!("{all}\n{}\n", good(1100))));
    assert!(text(&output).starts_with("imported 101 tasks for reader "), "{}", text(&output));
    assert!(text(&output).contains("1000 tasks were readable for it before"), "{}", text(&output));
    assert_eq!(json_lines(&tasks(folder.path(), &["list", "--limit", "2000", "--json"])).len(), 1101);
}

#[tokio::test]
async fn import_in_shared_mode_grants_the_team() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let shared = [
        ("REFRAIN_ACCESS__MODE", "shared"),
        ("REFRAIN_UPSTREAM__TOKEN", "team"),
        ("REFRAIN_ACCESS__CLIENTS", "[{name = \"one\", key = \"key-1\"}, {name = \"two\", key = \"key-2\"}]"),
    ];
    let line = json!({"service": "producer", "id": "x", "stored_at": 1, "text": final_record("x", "a")});
    let output = tasks_with(folder.path(), &["import", "-"], &shared, line.to_string().as_bytes());
    assert_eq!(text(&succeeds(output)), "imported 1 task for the team\n");
    let program = Program::serve(&upstream.base_url(), folder.path(), &shared);
    for key in ["key-1", "key-2"] {
        let reply = client(program.address).retrieve(key, "x").await.expect("a response");
        assert_eq!((reply.x_cache(), text(&reply.body)), ("HIT", &final_record("x", "a")[..]));
    }
    assert_eq!(upstream.lookup_calls().len(), 1, "the recheck");
}

#[tokio::test]
async fn export_replaces_its_file_whole_and_never_the_store() {
    let proxy = ProxyProcess::start().await;
    proxy.store("t", "x", &final_record("x", "a")).await;
    let path = proxy.path();
    std::fs::write(path.join("out"), "before").expect("written");
    tasks(path, &["export", "--output", "out"]);
    assert_eq!(json_lines(&std::fs::read(path.join("out")).expect("readable")).len(), 1, "replaced");
    assert_eq!(tasks(path, &["export", "--output", "/dev/null"]), b"");
    assert!(!std::fs::metadata("/dev/null").expect("there").is_file());
    assert_fails(
        &tasks_with(path, &["export", "--output", "refrain.db"], &[], b""),
        64,
        &["the store itself"],
    );
    assert_fails(&tasks_with(path, &["export", "--output", "no/out"], &[], b""), 1, &["no/out"]);
    assert_fails(&tasks_with(path, &["export", "--output", "."], &[], b""), 1, &["write ."]);
    let partial = |name: &std::ffi::OsStr| name.to_string_lossy().contains("partial");
    assert!(!std::fs::read_dir(path).expect("readable").flatten().any(|entry| partial(&entry.file_name())));
    assert_eq!(proxy.http.retrieve("t", "x").await.expect("a response").x_cache(), "HIT");
}
