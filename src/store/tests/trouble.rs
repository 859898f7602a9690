//! Damage, files of others, and a disk that refuses.

use super::*;

#[tokio::test]
async fn a_damaged_row_is_a_miss_and_dropped() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "a text to be damaged").await && keep(&store, A, "u", "sound").await);
    store.close().await;
    overwrite(&disk, b"to be damaged", b"to bE");
    let store = disk.open().await;
    assert_eq!(find(&store, A, "t").await, None);
    assert_eq!(disk.errors("checksum"), 1);
    eventually("the row is dropped", || async { store.stats().tasks == 1 }).await;
    assert_eq!(find(&store, A, "u").await.as_deref(), Some("sound"));
    assert!(keep(&store, A, "t", "again").await);
    assert_eq!(find(&store, A, "t").await.as_deref(), Some("again"));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_set_aside() {
    for garbage in [vec![b'x'; 5000], b"SQLite format 3\0 and nothing sound after it".repeat(300)] {
        let disk = Disk::new();
        std::fs::write(disk.path(), &garbage).unwrap();
        let store = disk.open().await;
        assert_eq!((disk.set_aside(), disk.errors("corrupt")), (1, 1));
        assert!(keep(&store, A, "t", "text").await);
    }
    let disk = Disk::new();
    std::fs::write(disk.path(), b"").unwrap();
    disk.open().await;
    assert_eq!(disk.set_aside(), 0, "an empty file is a fresh one");
}

#[tokio::test]
async fn a_truncated_file_is_set_aside() {
    let disk = Disk::new();
    let store = disk.open().await;
    let tasks = (0..500).map(|n| task(&n.to_string(), &"text".repeat(100))).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    store.close().await;
    let file = std::fs::OpenOptions::new().write(true).open(disk.path()).unwrap();
    file.set_len(disk.path().metadata().unwrap().len() / 2).unwrap();
    let store = disk.open().await;
    assert_eq!(disk.set_aside(), 1);
    assert!(keep(&store, A, "t", "text").await);
}

#[tokio::test]
async fn corruption_found_later_heals_with_a_fresh_file() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    let key = *store.digest_key();
    let tasks = (0..3000).map(|n| task(&n.to_string(), &"text".repeat(100))).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    store.close().await;
    let store = disk.open().await;
    let epoch = store.epoch();
    let mut bytes = std::fs::read(disk.path()).unwrap();
    bytes[24 << 10..].fill(0xff);
    std::fs::write(disk.path(), bytes).unwrap();
    for n in 0..3000 {
        if find(&store, A, &n.to_string()).await.is_none() {
            break;
        }
    }
    eventually("a fresh file", || async { disk.set_aside() == 1 && store.readiness().is_ok() }).await;
    assert!(disk.errors("corrupt") >= 1);
    assert_eq!(*store.digest_key(), key);
    assert_eq!(store.insert(&reader(A), &service(), epoch, vec![task("t", "late")]).await, [false]);
    assert!(keep(&store, A, "t", "text").await);
    assert_eq!(find(&store, A, "t").await.as_deref(), Some("text"));
    store.close().await;
    let store = disk.open().await;
    assert_eq!(*store.digest_key(), key);
    assert_eq!(find(&store, A, "t").await.as_deref(), Some("text"));
}

#[tokio::test]
async fn a_file_removed_under_the_store_does_not_swallow_writes() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    assert!(find(&store, A, "t").await.is_some(), "by a connection that is kept");
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(open::with_suffix(&disk.path(), suffix)).unwrap();
    }
    eventually("a fresh file", || async { disk.path().exists() && store.stats().tasks == 0 }).await;
    eventually("a write", || async { keep(&store, A, "u", "text").await }).await;
    assert_eq!(find(&store, A, "t").await, None, "and let go with its file");
    assert_eq!(find(&store, A, "u").await.as_deref(), Some("text"));
    store.close().await;
    let store = disk.open().await;
    assert_eq!(find(&store, A, "u").await.as_deref(), Some("text"));
}

#[tokio::test]
async fn databases_of_later_versions_and_of_others_are_refused_untouched() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    store.close().await;
    let mut other = disk.connect().await;
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (9999, 'later', 0, TRUE, x'00', 0)")
        .execute(&mut other)
        .await
        .unwrap();
    other.close().await.unwrap();
    let before = std::fs::read(disk.path()).unwrap();
    let error = disk.try_open().await.unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 9999, .. }), "{error}");
    assert!(error.to_string().contains("refrain.db") && !error.to_string().contains('\n'));
    assert_eq!(std::fs::read(disk.path()).unwrap(), before);

    let disk = Disk::new();
    let mut other =
        SqliteConnectOptions::new().filename(disk.path()).create_if_missing(true).connect().await.unwrap();
    sqlx::query("CREATE TABLE theirs (x)").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let before = std::fs::read(disk.path()).unwrap();
    assert!(matches!(disk.try_open().await, Err(StoreError::Foreign { .. })));
    assert_eq!(std::fs::read(disk.path()).unwrap(), before);
}

#[tokio::test]
async fn while_writes_fail_nothing_is_stored_or_slow_and_it_heals() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(keep(&store, A, "gone", "text").await);
    let mut other = disk.connect().await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let start = Instant::now();
    assert!(!keep(&store, A, "t", "text").await);
    assert!(start.elapsed() < KEEP_TIMEOUT);
    assert!(store.readiness().is_err() && disk.errors("write") >= 1);
    assert_eq!(find(&store, A, "t").await, None, "not in memory either");
    let start = Instant::now();
    assert!(!keep(&store, A, "u", "text").await);
    assert!(start.elapsed() < Duration::from_millis(100), "no waiting while it is known to fail");
    assert!(find(&store, A, "gone").await.is_some());
    let forget = DeleteScope::Task { service: service(), id: id("gone") };
    assert!(store.delete(forget).await.is_err());
    assert_eq!(find(&store, A, "gone").await, None, "hidden though not written");

    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    eventually("heals by itself", || async { store.readiness().is_ok() }).await;
    assert!(keep(&store, A, "t", "text").await);
    assert_eq!(find(&store, A, "gone").await, None);
    assert_eq!(store.stats().tasks, 1, "the forget was made up for");
    assert!(keep(&store, A, "gone", "new").await);
    assert_eq!(find(&store, A, "gone").await.as_deref(), Some("new"), "and hides no longer");
    other.close().await.unwrap();
}

#[tokio::test]
async fn a_refused_row_leaves_nothing_of_its_batch() {
    let disk = Disk::new();
    let store = disk.open().await;
    let mut other = disk.connect().await;
    sqlx::query(
        "CREATE TRIGGER full BEFORE INSERT ON task WHEN NEW.id = x'62'
         BEGIN SELECT RAISE(ABORT, 'the disk refuses'); END",
    )
    .execute(&mut other)
    .await
    .unwrap();
    let tasks = vec![task("a", "text"), task("b", "text")];
    assert_eq!(store.insert(&reader(A), &service(), store.epoch(), tasks).await, [false, false]);
    assert_eq!(find(&store, A, "a").await, None);
    assert_eq!(store.stats().tasks, 0);
    eventually("heals", || async { store.readiness().is_ok() }).await;
    assert!(keep(&store, A, "a", "text").await);
    other.close().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_never_ends_cannot_grow_the_log_without_bound() {
    let mut disk = Disk::without_memory();
    (disk.limits.wal_soft_limit, disk.limits.wal_hard_limit) = (512 << 10, 2 << 20);
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    let mut other = disk.connect().await;
    sqlx::query("BEGIN").execute(&mut other).await.unwrap();
    sqlx::query("SELECT count(*) FROM task").fetch_one(&mut other).await.unwrap();
    let text = "x".repeat(100_000);
    let mut kept = 0;
    while keep(&store, A, &kept.to_string(), &text).await {
        kept += 1;
        assert!(kept < 100, "bounded");
    }
    let log = || disk.path().with_extension("db-wal").metadata().unwrap().len();
    assert!(kept > 5 && log() < (2 << 20) + 300_000, "{kept} {}", log());
    assert!(store.readiness().unwrap_err().contains("log"));
    sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    eventually("heals", || async { store.readiness().is_ok() }).await;
    for n in 0..100 {
        assert!(keep(&store, A, &format!("more {n}"), &text).await);
        assert!(log() < 2 << 20);
    }
    other.close().await.unwrap();
}

#[tokio::test]
async fn a_writer_that_panics_is_seen() {
    let disk = Disk::new();
    let store = disk.open().await;
    let shared = Arc::clone(&store.shared);
    watch(shared, tokio::spawn(async { panic!("of the test") })).await;
    assert_eq!(store.readiness(), Err("the task store's writer has stopped"));
    assert_eq!(disk.metrics.panics.get(), 1);
}
