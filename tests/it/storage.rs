//! The store's file under damage, locks and other programs: no wrong byte, no lost file, no failed
//! lookup.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::support::{
    DOCUMENTED, DOCUMENTED_ID, Program, StoreFile, TestApp, client, eventually, get, health, simulator,
    token_record,
};

/// Runs `serve` on a store that it has to refuse.
fn refused_start(folder: &Path, url: &str) -> Output {
    let mut command = Program::command();
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--store", url])
        .current_dir(folder);
    command.output().expect("it runs and ends")
}

/// Asserts exit code 1 and exactly one line on stderr. Returns the line.
fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("text");
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
    text
}

fn files_set_aside(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .filter(|name| name.contains("corrupt"))
        .collect()
}

#[tokio::test]
async fn damaged_row_is_a_miss_and_is_fetched_again() {
    let damages = [
        "UPDATE task SET record = CAST(substr(record, 1, 100) || x'07' || substr(record, 102) AS BLOB)",
        "UPDATE task SET record = substr(record, 1, length(record) - 1)",
        "UPDATE task SET record = x''",
        "UPDATE task SET checksum = checksum + 1",
        "UPDATE task_grant SET grant_checksum = grant_checksum + 1",
    ];
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    assert_eq!(app.retrieve("t", DOCUMENTED_ID).await.x_cache(), "MISS");
    for (n, damage) in damages.into_iter().enumerate() {
        assert_eq!(app.retrieve("t", DOCUMENTED_ID).await.x_cache(), "HIT", "{damage}");
        let mut file = StoreFile::open(app.folder.path()).await;
        assert_eq!(file.run(damage).await, 1, "{damage}");
        file.close().await;
        // The memory cache is used until the writer notices the change by another program.
        eventually("the damage is noticed", async || {
            let reply = app.retrieve("t", DOCUMENTED_ID).await;
            assert_eq!(reply.body, DOCUMENTED, "{damage}");
            reply.x_cache() == "MISS"
        })
        .await;
        eventually("it is stored again", async || {
            let reply = app.retrieve("t", DOCUMENTED_ID).await;
            assert_eq!(reply.body, DOCUMENTED, "{damage}");
            reply.x_cache() == "HIT"
        })
        .await;
        let metrics = String::from_utf8(app.admin("/metrics").await.body.to_vec()).unwrap();
        let counted = metrics
            .lines()
            .find_map(|line| line.strip_prefix("refrain_store_errors_total{kind=\"checksum\"} "))
            .and_then(|count| count.parse::<usize>().ok());
        assert!(counted > Some(n), "{damage}: {counted:?}");
    }
    assert!(files_set_aside(app.folder.path()).is_empty());
}

#[tokio::test]
async fn grant_moved_to_another_reader_opens_no_record() {
    let app = TestApp::spawn().await;
    for token in ["a", "b"] {
        for id in ["one", "two"] {
            if token == "a" || id == "two" {
                app.upstream.put_record("producer", token, id, token_record(id, token, 10));
                app.retrieve(token, id).await;
            }
        }
    }
    let app = app.restart().await;
    let mut file = StoreFile::open(app.folder.path()).await;
    // Grants of reader a, changed to reader b as a flipped bit might do.
    let moved = file
        .run(
            "INSERT OR IGNORE INTO task_grant (service, id, reader_id, task_id, grant_checksum)
             SELECT g.service, g.id, other.reader_id, g.task_id, g.grant_checksum FROM task_grant g, reader other",
        )
        .await;
    assert!(moved > 0);
    file.close().await;
    let calls = app.calls();
    let reply = app.retrieve("b", "one").await;
    assert_eq!((&reply.body[..], reply.x_cache(), app.calls()), (&b"{}"[..], "MISS", calls + 1));
}

#[tokio::test]
async fn flipped_bit_in_the_file_never_becomes_a_wrong_response() {
    let app = TestApp::spawn().await;
    let ids: Vec<String> = (0..40).map(|n| format!("task-{n}")).collect();
    for (n, id) in ids.iter().enumerate() {
        app.upstream.put_record("producer", "t", id, token_record(id, "t", n * 400));
        app.retrieve("t", id).await;
    }
    let (mut upstream, mut folder) = app.stop().await;
    let sound = fs::read(folder.path().join("refrain.db")).unwrap();
    let mut random = fastrand::Rng::with_seed(4);
    let (mut hits, mut misses) = (0, 0);
    for _ in 0..20 {
        let mut bytes = sound.clone();
        let at = random.usize(0..bytes.len());
        bytes[at] ^= 1 << random.u32(0..8);
        fs::write(folder.path().join("refrain.db"), bytes).unwrap();
        let app = TestApp::spawn_at(upstream, folder, |_| {}).await;
        for (n, id) in ids.iter().enumerate() {
            let reply = app.retrieve("t", id).await;
            assert_eq!(reply.body, token_record(id, "t", n * 400), "{id}, with the bit at {at} flipped");
            if reply.x_cache() == "HIT" { hits += 1 } else { misses += 1 }
        }
        (upstream, folder) = app.stop().await;
    }
    eprintln!("{hits} hits, {misses} misses");
    assert!(hits > misses, "a flipped bit costs a task or a file, not all of them: {hits}, {misses}");
}

#[tokio::test]
async fn corrupt_database_is_set_aside_with_an_error_in_the_log() {
    let upstream = simulator().await;
    upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("refrain.db");
    let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    client(program.address).retrieve("t", DOCUMENTED_ID).await.unwrap();
    program.signal("TERM");
    program.wait();
    let sound = fs::read(&file).unwrap();

    let mut torn = sound.clone();
    torn.truncate(sound.len() / 2);
    let mut header = sound.clone();
    header[..16].fill(b'#');
    let garbage = vec![b'?'; 50_000];
    for (n, bytes) in [garbage, torn, header].into_iter().enumerate() {
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(folder.path().join(format!("refrain.db{suffix}")));
        }
        fs::write(&file, &bytes).unwrap();
        let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
        let http = client(program.address);
        assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "MISS");
        let hit = http.retrieve("t", DOCUMENTED_ID).await.unwrap();
        assert_eq!((hit.x_cache(), &hit.body[..]), ("HIT", DOCUMENTED));
        program.signal("TERM");
        assert!(program.wait().success());
        let log = program.log();
        assert!(log.contains("ERROR") && log.contains("set aside") && log.contains("corrupt"), "{log}");
        // The name has the time in seconds; the second file of one second has a number.
        let mut kept = files_set_aside(folder.path());
        kept.retain(|name| !name.ends_with("-wal") && !name.ends_with("-shm"));
        assert_eq!(kept.len(), n + 1, "{kept:?}");
        assert!(kept.iter().any(|name| fs::read(folder.path().join(name)).unwrap() == bytes), "{n}");
    }
}

#[tokio::test]
async fn newer_or_foreign_database_is_refused_untouched() {
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    app.retrieve("t", DOCUMENTED_ID).await;
    let (_upstream, folder) = app.stop().await;
    let mut file = StoreFile::open(folder.path()).await;
    file.run(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99990101000000, 'from the future', 1, x'00', 0)",
    )
    .await;
    file.close().await;
    assert_refused_untouched(folder.path(), "newer refrain");

    // A newer version may have none of today's tables.
    let folder = tempfile::tempdir().unwrap();
    fs::File::create(folder.path().join("refrain.db")).unwrap();
    let mut file = StoreFile::open(folder.path()).await;
    file.run(
        "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL,
         installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL,
         checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)",
    )
    .await;
    file.run(
        "INSERT INTO _sqlx_migrations VALUES (999999, 'from the future', CURRENT_TIMESTAMP, 1, x'00', 1)",
    )
    .await;
    file.close().await;
    assert_refused_untouched(folder.path(), "refrain.db");

    let folder = tempfile::tempdir().unwrap();
    other_database(folder.path()).await;
    assert_refused_untouched(folder.path(), "another program");
}

#[tokio::test]
async fn file_that_never_was_a_store_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("refrain.db");
    let mut other = other_database(folder.path()).await;
    other.truncate(other.len() / 2);
    for (bytes, why) in [
        (b"- buy milk\n".to_vec(), "not a task store"),
        (vec![b'x'; 50_000], "not a task store"),
        (other, "another program"),
    ] {
        fs::write(&file, bytes).unwrap();
        // A supervisor starts it again: the first start must not prepare the second one.
        for _ in 0..2 {
            assert_refused_untouched(folder.path(), why);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}

/// Returns the content of a database of another program.
async fn other_database(folder: &Path) -> Vec<u8> {
    fs::File::create(folder.join("refrain.db")).expect("created");
    let mut file = StoreFile::open(folder).await;
    file.run("CREATE TABLE invoices (id INTEGER PRIMARY KEY, sum REAL)").await;
    file.close().await;
    fs::read(folder.join("refrain.db")).expect("readable")
}

fn assert_refused_untouched(folder: &Path, why: &str) {
    let before = fs::read(folder.join("refrain.db")).expect("readable");
    let line = one_line(&refused_start(folder, "sqlite://refrain.db"));
    assert!(line.contains(why) && line.contains("refrain.db"), "{line}");
    assert!(files_set_aside(folder).is_empty());
    assert_eq!(fs::read(folder.join("refrain.db")).expect("readable"), before);
    assert!(fs::metadata(folder.join("refrain.db-wal")).map_or(0, |log| log.len()) == 0);
}

#[tokio::test]
async fn locked_database_fails_no_lookup_and_recovers() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let http = client(program.address);
    upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    http.retrieve("t", DOCUMENTED_ID).await.unwrap();

    let mut file = StoreFile::open(folder.path()).await;
    file.run("BEGIN EXCLUSIVE").await;
    let mut slowest = Duration::ZERO;
    for n in 0..20 {
        let id = format!("while-locked-{n}");
        upstream.put_record("producer", "t", &id, token_record(&id, "t", 50));
        let start = Instant::now();
        let reply = http.retrieve("t", &id).await.unwrap();
        slowest = slowest.max(start.elapsed());
        assert_eq!((reply.status.as_u16(), reply.body), (200, token_record(&id, "t", 50).into()));
        assert!(!reply.headers["cache-status"].to_str().unwrap().contains("stored"), "{:?}", reply.headers);
        // Stored records are served meanwhile.
        assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
    }
    // One lookup waits for the lock. After that the store is known to be locked, and none waits.
    assert!(slowest < Duration::from_secs(8), "{slowest:?}");
    assert_eq!(readiness(&program).await, 503);
    let output = health(&program, folder.path()).await;
    assert!(one_line(&output).contains("503: the task store cannot be written"), "{output:?}");
    file.run("ROLLBACK").await;
    file.close().await;

    eventually("it is ready again", async || readiness(&program).await == 200).await;
    eventually("it stores again", async || {
        http.retrieve("t", "while-locked-7").await.unwrap().x_cache() == "HIT"
    })
    .await;
}

async fn readiness(program: &Program) -> u16 {
    get(program.admin, "/readyz").await.status
}

#[test]
fn unwritable_store_path_ends_the_start_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    // Not even root can write there.
    let line = one_line(&refused_start(folder.path(), "sqlite:///proc/refrain.db"));
    assert!(line.contains("/proc/refrain.db") && line.contains("directory must exist"), "{line}");
    let line = one_line(&refused_start(folder.path(), "sqlite://missing/refrain.db"));
    assert!(line.contains("missing/refrain.db") && line.contains("directory must exist"), "{line}");
    assert!(!folder.path().join("missing").exists());
    fs::create_dir(folder.path().join("directory")).unwrap();
    let line = one_line(&refused_start(folder.path(), "sqlite://directory"));
    assert!(line.contains("cannot open") && line.contains("/directory for writing"), "{line}");
}

#[tokio::test]
async fn store_may_be_given_as_a_plain_path() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let environment = [("REFRAIN_STORE__URL", "plain.db"), ("REFRAIN_SERVER__LISTEN", "localhost:0")];
    let program = Program::serve(&upstream.base_url(), folder.path(), &environment);
    assert!(folder.path().join("plain.db").exists());
    let path = folder.path().join("plain.db");
    let line = one_line(&refused_start(folder.path(), path.to_str().unwrap()));
    assert!(line.contains("in use by another refrain"), "{line}");
    assert_eq!(readiness(&program).await, 200);
}

#[tokio::test]
async fn second_serve_on_one_store_ends_with_one_line() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    let http = client(program.address);
    http.retrieve("t", DOCUMENTED_ID).await.unwrap();
    let line = one_line(&refused_start(folder.path(), "sqlite://refrain.db"));
    assert!(line.contains("in use by another refrain"), "{line}");
    assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
    assert_eq!(readiness(&program).await, 200);

    // The lock of a killed process does not count.
    drop(program);
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    assert_eq!(client(program.address).retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
}

#[tokio::test]
async fn removed_write_ahead_log_loses_no_task_that_was_stored() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    for (round, suffix) in ["-wal", "-shm", "-wal"].into_iter().enumerate() {
        let http = client(program.address);
        let stored = async |id: &str| {
            upstream.put_record("producer", "t", id, token_record(id, "t", 50));
            let reply = http.retrieve("t", id).await.unwrap();
            reply.header("cache-status").contains("stored")
        };
        let mut ids: Vec<String> = (0..6).map(|n| format!("before-{round}-{n}")).collect();
        for id in &ids {
            assert!(stored(id).await, "{id}");
        }
        // While another program has the store open, SQLite does not copy the log when the proxy closes it.
        let mut other = StoreFile::open(folder.path()).await;
        other.run("SELECT COUNT(*) FROM task").await;
        fs::remove_file(folder.path().join(format!("refrain.db{suffix}"))).unwrap();
        // The call during which the loss is noticed is not stored.
        let start = Instant::now();
        while ids.len() < 8 {
            assert!(start.elapsed() < Duration::from_secs(20), "{suffix}: {}", program.log());
            let id = format!("after-{round}-{}", fastrand::u64(..));
            if stored(&id).await {
                ids.push(id);
            }
        }
        other.close().await;
        program.signal("KILL");
        program.wait();
        assert!(program.log().contains("removed or replaced"), "{suffix}: {}", program.log());

        program = Program::serve(&upstream.base_url(), folder.path(), &[]);
        for id in &ids {
            let reply = client(program.address).retrieve("t", id).await.unwrap();
            assert_eq!(reply.x_cache(), "HIT", "{suffix}: {id}");
        }
    }
    program.signal("TERM");
    assert!(program.wait().success());
    let mut file = StoreFile::open(folder.path()).await;
    assert_eq!(file.integrity().await, "ok");
    file.close().await;
}

/// Symbolic links name the file that the running proxy uses. On Linux that file itself is locked.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn second_serve_is_refused_through_a_link_or_without_lock_file() {
    let upstream = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let program = Program::serve(&upstream.base_url(), folder.path(), &[]);
    fs::create_dir(folder.path().join("other")).unwrap();
    std::os::unix::fs::symlink("../refrain.db", folder.path().join("other/link.db")).unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("directory")).unwrap();
    fs::hard_link(folder.path().join("refrain.db"), folder.path().join("other/hard.db")).unwrap();
    for url in ["other/link.db", "directory/refrain.db", "other/hard.db"] {
        let line = one_line(&refused_start(folder.path(), &format!("sqlite://{url}")));
        assert!(line.contains("in use by another refrain"), "{url}: {line}");
    }
    fs::remove_file(folder.path().join("refrain.db.lock")).unwrap();
    let line = one_line(&refused_start(folder.path(), "sqlite://refrain.db"));
    assert!(line.contains("in use by another refrain"), "{line}");
    eventually("the lock file is there again", async || program.log().contains("was created again")).await;
    assert!(folder.path().join("refrain.db.lock").exists());
    let line = one_line(&refused_start(folder.path(), "sqlite://refrain.db"));
    assert!(line.contains("in use by another refrain"), "{line}");

    upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    let http = client(program.address);
    assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "MISS");
    assert_eq!(http.retrieve("t", DOCUMENTED_ID).await.unwrap().x_cache(), "HIT");
    assert_eq!(readiness(&program).await, 200);
}

#[tokio::test]
async fn learnt_durations_are_saved_at_the_end_and_continued() {
    let samples = [
        "UPDATE duration SET updated_at = updated_at WHERE type IN ('', 'audios') AND samples = 1",
        "UPDATE duration SET updated_at = updated_at WHERE type IN ('', 'audios') AND samples = 2",
    ];
    let mut app = TestApp::spawn().await;
    for (n, samples) in samples.into_iter().enumerate() {
        let record = format!(r#"{{"id":"t{n}","type":"audios","created_at":100,"finished_at":160.5}}"#);
        app.upstream.put_record("producer", "t", &format!("t{n}"), record);
        for cache in ["MISS", "HIT"] {
            assert_eq!(app.retrieve("t", &format!("t{n}")).await.x_cache(), cache);
        }
        app = app.restart().await;
        let mut file = StoreFile::open(app.folder.path()).await;
        assert_eq!(file.run(samples).await, 2);
        file.close().await;
    }
}

#[tokio::test]
async fn store_without_memory_cache_serves_from_the_file() {
    let app = TestApp::spawn_with(|config| config.store.memory_bytes = 0).await;
    app.upstream.put_record("producer", "t", DOCUMENTED_ID, DOCUMENTED);
    assert_eq!(app.retrieve("t", DOCUMENTED_ID).await.x_cache(), "MISS");
    for _ in 0..3 {
        let hit = app.retrieve("t", DOCUMENTED_ID).await;
        assert_eq!((hit.x_cache(), &hit.body[..]), ("HIT", DOCUMENTED));
    }
    let batch = app.batch("t", &[DOCUMENTED_ID, DOCUMENTED_ID]).await;
    assert_eq!((batch.x_cache(), batch.json()["count"].as_u64(), app.calls()), ("HIT", Some(2), 1));
}
