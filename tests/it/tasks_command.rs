//! `refrain tasks …` as an operator uses it: the real program, beside a running proxy and without one.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use refrain_simulator::Simulator;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Client, Program, StoreFile, client, eventually, finished, simulator};

/// No retries, so that a look-up at an upstream that has gone ends soon.
const SETTINGS: [(&str, &str); 1] = [("REFRAIN_UPSTREAM__MAX_RETRIES", "0")];

/// Runs a store command in this folder, with this on stdin.
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

/// Runs one that succeeds; what it wrote to stdout.
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

/// Asserts that it fails with this code, that its last line on stderr holds these words, and that stdout is empty.
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

/// A proxy as a process, its upstream and its folder.
struct World {
    upstream: Simulator,
    folder: TempDir,
    program: Program,
    http: Client,
}

impl World {
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

    /// Lets the proxy store this text for this token.
    async fn store(&self, token: &str, id: &str, text: &str) {
        self.upstream.put_raw("producer", token, id, text.to_owned());
        let reply = self.http.retrieve(token, id).await.expect("an answer");
        assert_eq!((reply.x_cache(), &reply.body[..]), ("MISS", text.as_bytes()), "{reply:?}");
    }

    fn stop(mut self) -> (Simulator, TempDir) {
        self.program.signal("TERM");
        assert_eq!(self.program.wait().code(), Some(0), "{}", self.program.log());
        (self.upstream, self.folder)
    }
}

/// Finished tasks whose bytes are easy to lose.
fn delicate() -> Vec<(String, String)> {
    let plain = (0..12).map(|n| (format!("plain-{n}"), finished(&format!("plain-{n}"), "x")));
    let spaced =
        "{\r\n\t \"finished_at\" : 1.76711978558900E+9 ,\n \"id\":\"spaced\" , \"z\":0.10,\"a\":-0 }\n";
    let escaped = r#"{"id":"esc\u0061ped","\/":"\u00e9é\ud83d\ude00😀\ud800\u0000\u001b[31m","finished_at":1,"\\":"\\n\"\u2028"}"#;
    let odd = "{\"id\":\"o/d d\\n\u{e4}\u{202e}\",\"finished_at\":12345678901234567890123.0,\"del\":\"\u{7f}\u{9b}\u{feff}\"}";
    plain
        .chain([
            ("spaced".to_owned(), spaced.to_owned()),
            ("escaped".to_owned(), escaped.to_owned()),
            ("o/d d\n\u{e4}\u{202e}".to_owned(), odd.to_owned()),
        ])
        .collect()
}

#[tokio::test]
async fn list_show_and_stats_tell_what_is_stored_beside_a_proxy_and_without() {
    let world = World::start().await;
    let titled = r#"{"id":"titled","response":{"data":[{"title":"\u001b[31mred\u202e é"}]},"finished_at":1}"#;
    world.store("t", "first", &finished("first", "x")).await;
    world.store("t", "titled", titled).await;
    world.store("t", "nasty\n\u{1b}[2J", &finished("nasty\n\u{1b}[2J", "x")).await;
    // The same text for another token: one row, two readers.
    world.store("u", "first", &finished("first", "x")).await;

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
        let words = ["ID", "READERS", "nasty\\u{a}\\u{1b}[2J", "Z  "];
        assert!(words.iter().all(|word| text(&table).contains(word)), "{}", text(&table));

        // Page by page.
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
    check(world.path());
    let (_upstream, folder) = world.stop();
    check(folder.path());
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("readable").flatten().collect();
    assert_eq!(left.len(), 2, "the store and its lock, no log: {left:?}");
}

#[tokio::test]
async fn several_texts_of_one_id_are_told_and_chosen_from() {
    let world = World::start().await;
    let (of_a, of_b) = (finished("x", "a"), finished("x", "b"));
    world.store("a", "x", &of_a).await;
    world.store("b", "x", &of_b).await;
    let folder = world.path();
    let output = tasks_with(folder, &["show", "x"], &[], b"");
    assert_fails(&output, 1, &["2 texts", "--reader", "--all"]);
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
async fn what_is_forgotten_the_running_proxy_fetches_anew_within_a_second() {
    let world = World::start().await;
    for id in ["a", "b", "c", "stays"] {
        world.store("t", id, &finished(id, "x")).await;
    }
    // Asks until the upstream is called once more; from memory and disk it is not.
    let fetched_anew = async |id: &str, since: Instant| {
        let before = world.upstream.look_up_calls().len();
        loop {
            let reply = world.http.retrieve("t", id).await.expect("an answer");
            let after = world.upstream.look_up_calls().len();
            assert!(since.elapsed() < Duration::from_secs(1), "{id} is a {} for too long", reply.x_cache());
            if after > before {
                assert_eq!((after, reply.x_cache()), (before + 1, "MISS"));
                return;
            }
        }
    };
    let reply = world.http.retrieve("t", "a").await.expect("an answer");
    assert_eq!(reply.x_cache(), "HIT", "in memory");
    let folder = world.path();
    let out = tasks(folder, &["forget", "a", "b"]);
    let since = Instant::now();
    assert_eq!(text(&out), "forgot 2 tasks\n");
    fetched_anew("a", since).await;
    fetched_anew("b", since).await;
    let before = world.upstream.call_count();
    assert_eq!(world.http.retrieve("t", "stays").await.expect("an answer").x_cache(), "HIT");
    assert_eq!(world.upstream.call_count(), before);

    let one_of_two = tasks_with(folder, &["forget", "none", "c"], &[], b"");
    assert_eq!(one_of_two.status.code(), Some(1), "{one_of_two:?}");
    assert_eq!(text(&one_of_two.stdout), "forgot 1 task\n");
    assert!(text(&one_of_two.stderr).contains("none is not stored"), "{one_of_two:?}");

    assert_eq!(text(&tasks(folder, &["forget", "--older-than", "1h", "--json"])), "{\"forgotten\":0}\n");
    assert_eq!(text(&tasks(folder, &["forget", "--service", "suno", "--yes"])), "forgot 0 tasks\n");
    let out = tasks(folder, &["forget", "--service", "producer"]);
    let since = Instant::now();
    assert_eq!(text(&out), "forgot 3 tasks\n");
    fetched_anew("stays", since).await;
    // A call that began before the proxy knew of the forgetting is not stored; the next one is.
    let is_hit = async || world.http.retrieve("t", "stays").await.expect("an answer").x_cache() == "HIT";
    eventually("stored again", is_hit).await;
    assert_eq!(text(&tasks(folder, &["forget", "--older-than", "0s"])), "forgot 1 task\n");
    let (_upstream, folder) = world.stop();
    assert_eq!(tasks(folder.path(), &["list"]), b"", "without a proxy too");
    let missing = tasks_with(folder.path(), &["forget", "stays"], &[], b"");
    assert_eq!(
        (missing.status.code(), text(&missing.stdout)),
        (
            Some(1),
            "forgot 0 tasks
"
        )
    );
}

#[tokio::test]
async fn an_import_into_an_empty_store_makes_a_batch_of_all_ids_a_hit() {
    let source = World::start().await;
    let delicate = delicate();
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
        let told = &json_lines(&succeeds(again))[0];
        assert_eq!((&told["imported"], &told["known"]), (&json!(0), &json!(15)));
        assert_eq!(tasks(folder.path(), &["export"]), exported, "dates and order are kept too");
        for (id, stored) in &delicate {
            assert_eq!(text(&tasks(folder.path(), &["show", id])), stored);
        }

        // The new token is known upstream, but was never shown these tasks.
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
            let reply = http.batch("canary-new", &ids).await.expect("an answer");
            assert_eq!((reply.status.as_u16(), reply.x_cache()), (200, "HIT"), "{reply:?}");
            assert_eq!(text(&reply.body), expected, "round {round}");
        }
        assert_eq!(upstream.look_up_calls().len(), usize::from(!gone), "one recheck before the first hit");
        if !gone {
            let stranger = http.batch("stranger", &ids).await.expect("an answer");
            assert_eq!(stranger.json()["count"], 0, "only the named token may read them");
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
async fn an_import_beside_a_running_proxy_is_a_hit_within_a_second_and_rows_are_shared() {
    let world = World::start().await;
    world.store("old", "x", &finished("x", "a")).await;
    let exported = tasks(world.path(), &["export"]);
    let reply = world.http.retrieve("new", "x").await.expect("an answer");
    assert_eq!(&reply.body[..], b"{}");
    succeeds(tasks_with(
        world.path(),
        &["import", "-", "--token-stdin"],
        &[],
        &[b"new\n", &exported[..]].concat(),
    ));
    let since = Instant::now();
    while world.http.retrieve("new", "x").await.expect("an answer").x_cache() != "HIT" {
        assert!(since.elapsed() < Duration::from_secs(1));
    }
    let listed = json_lines(&tasks(world.path(), &["list", "--json"]));
    assert_eq!((listed.len(), &listed[0]["readers"]), (1, &json!(2)), "one row, two readers");
}

#[test]
fn an_import_ends_at_the_first_unsound_line_with_whole_transactions_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let line = |id: &str, text: &str| {
        json!({"service": "producer", "id": id, "stored_at": 1_700_000_000, "text": text}).to_string() + "\n"
    };
    let good = |n: usize| line(&format!("t{n}"), &finished(&format!("t{n}"), "x"));
    let import = |input: &str| {
        tasks_with(folder.path(), &["import", "-", "--token-stdin"], &[], format!("t\n{input}").as_bytes())
    };
    for (bad, why) in [
        ("no JSON\n".to_owned(), "not JSON"),
        ("\"canary-token\"\n".to_owned(), "no object"),
        (good(0)[..40].to_owned(), "cut off"),
        (line("pending", r#"{"id":"pending","response":{}}"#), "not finished"),
        (line("other", &finished("another", "x")), "not the task of its id"),
        (line("a", "\u{1b}[31m"), "not a JSON object"),
    ] {
        let output = import(&bad);
        assert_fails(&output, 1, &["line 1: ", why, "0 tasks were imported"]);
        assert!(!text(&output.stderr).contains("canary"), "{output:?}");
        assert!(!folder.path().join("refrain.db").exists(), "no store is made for a wrong file");
    }
    let all: String = (0..1100).map(good).collect();
    let output = import(&format!("{all}{}{}", line("pending", r#"{"id":"pending"}"#), good(1100)));
    assert_fails(&output, 1, &["line 1101: ", "1000 tasks were imported"]);
    assert_eq!(json_lines(&tasks(folder.path(), &["stats", "--json"]))[0]["tasks"], 1000);
    // Once it is mended the rest comes along; blank lines are nothing.
    let told = succeeds(import(&format!("{all}\n{}\n", good(1100))));
    assert!(text(&told).starts_with("imported 101 tasks for reader "), "{}", text(&told));
    assert!(text(&told).contains("1000 tasks were readable for it before"), "{}", text(&told));
    assert_eq!(json_lines(&tasks(folder.path(), &["list", "--limit", "2000", "--json"])).len(), 1101);
}

#[tokio::test]
async fn in_shared_mode_imported_tasks_are_the_teams() {
    let (upstream, folder) = (simulator().await, tempfile::tempdir().expect("a folder"));
    let shared = [
        ("REFRAIN_ACCESS__MODE", "shared"),
        ("REFRAIN_UPSTREAM__TOKEN", "team"),
        ("REFRAIN_ACCESS__CLIENTS", "[{name = \"one\", key = \"key-1\"}, {name = \"two\", key = \"key-2\"}]"),
    ];
    let line = json!({"service": "producer", "id": "x", "stored_at": 1, "text": finished("x", "a")});
    let told = tasks_with(folder.path(), &["import", "-"], &shared, line.to_string().as_bytes());
    assert_eq!(text(&succeeds(told)), "imported 1 task for the team\n");
    let program = Program::serve(&upstream.base_url(), folder.path(), &shared);
    for key in ["key-1", "key-2"] {
        let reply = client(program.address).retrieve(key, "x").await.expect("an answer");
        assert_eq!((reply.x_cache(), text(&reply.body)), ("HIT", &finished("x", "a")[..]));
    }
    assert_eq!(upstream.look_up_calls().len(), 1, "the recheck");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_made_while_writing_is_whole_and_can_be_served() {
    let world = World::start().await;
    for n in 0..300 {
        world.upstream.put_raw(
            "producer",
            "t",
            &format!("t{n}"),
            finished(&format!("t{n}"), &"x".repeat(3000)),
        );
    }
    let ids: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
    assert_eq!(world.http.batch("t", &ids).await.expect("an answer").status, 200);
    let done = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (http, done) = (world.http.clone(), Arc::clone(&done));
        async move {
            let mut count = 0;
            for n in 20..300 {
                http.retrieve("t", &format!("t{n}")).await.expect("an answer");
                count += 1;
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            count
        }
    });
    let folder = world.path().to_owned();
    let out = tokio::task::spawn_blocking(move || {
        let out = tasks(&folder, &["backup", "copy.db", "--json"]);
        let again = tasks_with(&folder, &["backup", "copy.db"], &[], b"");
        assert_fails(&again, 1, &["copy.db is there already"]);
        assert_fails(&tasks_with(&folder, &["backup", "no/copy.db"], &[], b""), 1, &["no/copy.db"]);
        out
    })
    .await
    .expect("no panic");
    done.store(true, Ordering::Relaxed);
    assert!(writing.await.expect("no panic") > 0, "it was written meanwhile");
    let told = &json_lines(&out)[0];
    assert!(told["tasks"].as_u64() >= Some(20), "{told}");
    let names: Vec<String> = std::fs::read_dir(world.path())
        .expect("readable")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("copy"))
        .collect();
    assert_eq!(names, ["copy.db"], "nothing half done is left");

    let served = tempfile::tempdir().expect("a folder");
    std::fs::copy(world.path().join("copy.db"), served.path().join("refrain.db")).expect("copied");
    assert_eq!(StoreFile::open(served.path()).await.integrity().await, "ok");
    let stats = &json_lines(&tasks(served.path(), &["stats", "--json"]))[0];
    assert_eq!(stats["tasks"], told["tasks"]);
    let (upstream, _first) = world.stop();
    upstream.clear_calls();
    let program = Program::serve(&upstream.base_url(), served.path(), &SETTINGS);
    let http = client(program.address);
    let reply = http.batch("t", &ids).await.expect("an answer");
    assert_eq!((reply.x_cache(), &reply.json()["count"]), ("HIT", &json!(20)));
    let reply = http.batch("other", &ids).await.expect("an answer");
    assert_eq!(reply.json()["count"], 0, "rights are in the copy, and nobody else's");
}

#[test]
fn wrong_usage_and_stores_that_are_none_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let run = |arguments: &[&str]| tasks_with(path, arguments, &[], b"");
    for (arguments, words) in [
        (&[][..], &["list", "backup"][..]),
        (&["shw"], &["shw"]),
        (&["list", "--limit", "0"], &["0"]),
        (&["list", "--service", "a/b"], &["service"]),
        (&["show"], &["<ID>"]),
        (&["show", "x", "--all", "--reader", "a"], &["--reader"]),
        (&["show", "x", "--reader", "xyz"], &["hexadecimal"]),
        (&["forget"], &["--older-than"]),
        (&["forget", "x", "--service", "producer"], &["--service"]),
        (&["forget", "--service", "producer", "--older-than", "1d"], &["--older-than"]),
        (&["forget", "--older-than", "soon"], &["30d"]),
        (&["forget", "--older-than", "99999999999999999999y"], &["30d"]),
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
        &["forget", "x"],
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
        assert_fails(&run(arguments), 1, &["not a database"]);
    }
    assert_eq!(std::fs::read_dir(path).expect("readable").count(), 1, "nothing is left");
    assert_fails(&run(&["list", "--store", "x.db"]), 64, &["store.url"]);
}

#[tokio::test]
async fn an_export_is_complete_or_not_there_and_never_the_store() {
    let world = World::start().await;
    world.store("t", "x", &finished("x", "a")).await;
    let path = world.path();
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
    assert_eq!(world.http.retrieve("t", "x").await.expect("an answer").x_cache(), "HIT");
}

#[tokio::test]
async fn a_closed_stdout_is_a_quiet_end() {
    let world = World::start().await;
    let ids: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    for id in &ids {
        world.upstream.put_raw("producer", "t", id, finished(id, &"x".repeat(20_000)));
    }
    world.http.batch("t", &ids).await.expect("an answer");
    for arguments in [&["export"][..], &["list", "--json"], &["list"], &["show", "t1"], &["stats"]] {
        let mut command = Program::command();
        command.current_dir(world.path()).arg("tasks").args(arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut stdout = BufReader::with_capacity(16, child.stdout.take().expect("piped"));
        if arguments == ["export"] {
            stdout.read_line(&mut String::new()).expect("a line");
        }
        drop(stdout);
        let mut told = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut told).expect("text");
        assert_eq!((child.wait().expect("it ends").code(), told.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn an_interrupted_backup_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines: String = (0..3000)
        .map(|n| {
            let id = format!("t{n}");
            let text = finished(&id, &"x".repeat(20_000));
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
    // The copy's own file: the store's log appears sooner, before the command heeds signals.
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
