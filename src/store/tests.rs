//! The store's promises over real files.

mod find;
mod listing;
mod rights;

use std::path::PathBuf;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;

use super::*;
use crate::observe::{EvictionReason, Label, StoreErrorKind};

/// A folder with a store's file in it.
struct Disk {
    dir: TempDir,
    limits: Limits,
    metrics: Arc<Metrics>,
}

impl Disk {
    fn new() -> Self {
        let limits = Limits::from(&StoreConfig { memory_bytes: 1 << 20, ..StoreConfig::default() });
        Self { dir: tempfile::tempdir().unwrap(), limits, metrics: Arc::default() }
    }

    fn without_memory() -> Self {
        let mut disk = Self::new();
        disk.limits.memory_bytes = 0;
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("refrain.db")
    }

    async fn try_open(&self) -> Result<Store, StoreError> {
        let url = format!("sqlite://{}", self.path().display());
        Store::open_within(&url, self.limits.clone(), Arc::clone(&self.metrics)).await
    }

    async fn open(&self) -> Store {
        self.try_open().await.unwrap()
    }

    /// As another program would.
    async fn connect(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.path()).foreign_keys(true).connect().await.unwrap()
    }

    fn errors(&self, kind: &'static str) -> u64 {
        let kind = StoreErrorKind::ALL.iter().find(|known| known.as_str() == kind).expect("a kind of error");
        self.metrics.store_errors.get(*kind)
    }

    fn set_aside(&self) -> usize {
        std::fs::read_dir(self.dir.path())
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
                name.contains(".corrupt-") && !name.ends_with("-wal") && !name.ends_with("-shm")
            })
            .count()
    }
}

const A: [u8; 32] = [1; 32];
const B: [u8; 32] = [2; 32];

fn reader(bytes: [u8; 32]) -> Digest {
    Digest::from(bytes)
}

fn service() -> Service {
    Service::parse("producer").unwrap()
}

fn id(id: &str) -> TaskId {
    TaskId::parse(id).unwrap()
}

fn task(id: &str, text: &str) -> FinishedTask {
    FinishedTask { id: self::id(id), text: Bytes::copy_from_slice(text.as_bytes()) }
}

async fn keep(store: &Store, by: [u8; 32], name: &str, text: &str) -> bool {
    store.keep(&reader(by), &service(), store.epoch(), vec![task(name, text)]).await == [true]
}

async fn find(store: &Store, by: [u8; 32], name: &str) -> Option<String> {
    let mut found = store.find(&reader(by), &service(), &[id(name)], u64::MAX).await.unwrap();
    found.pop().unwrap().map(|task| String::from_utf8(task.text.to_vec()).unwrap())
}

/// Waits for `condition` up to ten seconds.
async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A caller that can use only so much reads no more than that.
#[tokio::test]
async fn what_is_too_long_together_is_not_read() {
    for disk in [Disk::new(), Disk::without_memory()] {
        let store = disk.open().await;
        let ids: Vec<TaskId> = (0..10).map(|n| id(&n.to_string())).collect();
        let tasks =
            ids.iter().map(|id| FinishedTask { id: id.clone(), text: vec![b'x'; 100].into() }).collect();
        assert!(store.keep(&reader(A), &service(), store.epoch(), tasks).await.iter().all(|kept| *kept));
        assert_eq!(store.find(&reader(A), &service(), &ids, 999).await, Err(TooLarge));
        assert!(store.find(&reader(A), &service(), &ids, 1000).await.unwrap().iter().all(Option::is_some));
        store.close().await;
    }
}

#[tokio::test]
async fn what_is_kept_is_found_byte_for_byte_and_after_a_restart() {
    let disk = Disk::new();
    let store = disk.open().await;
    let text = "{\"id\":\"t\",\"finished_at\":1.50e3,  \"x\":\"\\u00e4\u{0}\"}";
    assert!(keep(&store, A, "t", text).await);
    assert_eq!(store.find_in_memory(&reader(A), &service(), &id("t")).unwrap().text, text);
    assert_eq!(find(&store, A, "t").await.as_deref(), Some(text));
    let key = *store.digest_key();
    store.close().await;
    assert!(!disk.path().with_extension("db-wal").exists(), "the write-ahead log is gone");
    assert_eq!(store.readiness(), Err("the task store is closed"));
    assert!(!keep(&store, A, "u", "late").await);
    assert_eq!(find(&store, A, "t").await, None);

    let store = disk.open().await;
    assert_eq!(find(&store, A, "t").await.as_deref(), Some(text));
    assert_eq!(*store.digest_key(), key);
    assert_eq!((store.stats().tasks, store.stats().bytes), (1, text.len() as u64));
    store.close().await;
    assert_eq!((disk.errors("read"), disk.errors("write")), (0, 0));
}

#[tokio::test]
async fn what_was_kept_survives_a_copy_of_the_files_taken_under_way() {
    let disk = Disk::new();
    let store = disk.open().await;
    for n in 0..50 {
        assert!(keep(&store, A, &n.to_string(), "text").await);
    }
    let copy = Disk::without_memory();
    for name in ["refrain.db", "refrain.db-wal"] {
        std::fs::copy(disk.dir.path().join(name), copy.dir.path().join(name)).unwrap();
    }
    let reopened = copy.open().await;
    for n in 0..50 {
        assert!(find(&reopened, A, &n.to_string()).await.is_some(), "{n}");
    }
}

#[tokio::test]
async fn nobody_reads_what_was_not_given_to_them() {
    for disk in [Disk::new(), Disk::without_memory()] {
        let store = disk.open().await;
        assert!(keep(&store, A, "t", "same").await);
        assert_eq!(find(&store, B, "t").await, None);
        assert!(keep(&store, B, "t", "same").await);
        assert_eq!(find(&store, B, "t").await.as_deref(), Some("same"));
        assert_eq!(store.stats().tasks, 1, "the same bytes are stored once");

        assert!(keep(&store, A, "u", "of a").await);
        assert!(keep(&store, B, "u", "of b").await);
        assert_eq!(find(&store, A, "u").await.as_deref(), Some("of a"));
        assert_eq!(find(&store, B, "u").await.as_deref(), Some("of b"));
        assert!(keep(&store, A, "u", "of b").await, "what was shown stays shown");
        assert_eq!(find(&store, A, "u").await.as_deref(), Some("of a"));
        let other = Service::parse("other").unwrap();
        assert_eq!(store.find(&reader(A), &other, &[id("u")], u64::MAX).await.unwrap(), [None]);
        store.close().await;
        let store = disk.open().await;
        assert_eq!(find(&store, A, "u").await.as_deref(), Some("of a"));
        assert_eq!(find(&store, B, "u").await.as_deref(), Some("of b"));
        assert_eq!(
            store.find(&reader([3; 32]), &service(), &[id("t"), id("u")], u64::MAX).await.unwrap(),
            [None, None]
        );
    }
}

#[tokio::test]
async fn ten_thousand_ids_keep_their_order() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    let tasks: Vec<_> =
        (0..10_000).step_by(2).map(|n| task(&format!("id-{n}"), &format!("text {n}"))).collect();
    let kept = store.keep(&reader(A), &service(), store.epoch(), tasks).await;
    assert!(kept.len() == 5000 && kept.iter().all(|kept| *kept));
    let ids: Vec<_> = (0..10_000).rev().map(|n| id(&format!("id-{n}"))).collect();
    let found = store.find(&reader(A), &service(), &ids, u64::MAX).await.unwrap();
    for (id, found) in ids.iter().zip(found) {
        let n: u32 = id.as_str()[3..].parse().unwrap();
        assert_eq!(
            found.map(|task| task.text),
            n.is_multiple_of(2).then(|| Bytes::from(format!("text {n}")))
        );
    }
}

#[tokio::test]
async fn odd_ids_are_distinct() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    let long = "x".repeat(1024);
    let odd = [
        "a",
        "A",
        "1",
        "01",
        "a,b",
        "b",
        "a ",
        " a",
        "\u{e4}",
        "a\u{308}",
        "a\u{0}",
        "a\u{0}b",
        "\"",
        "[]",
        "'",
        "%",
        "\n",
        "1.0",
        "null",
        "\u{1f600}",
        &long,
        &long[1..],
    ];
    let tasks = odd.iter().map(|name| task(name, &format!("text of {name}"))).collect();
    assert!(store.keep(&reader(A), &service(), store.epoch(), tasks).await.iter().all(|kept| *kept));
    for name in odd {
        assert_eq!(find(&store, A, name).await, Some(format!("text of {name}")));
    }
    assert_eq!(store.stats().tasks, odd.len() as u64);
}

#[tokio::test]
async fn many_keeps_at_once_are_all_on_disk() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    let keeps: Vec<_> = (0..300)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { keep(&store, A, &n.to_string(), &format!("text {n}")).await })
        })
        .collect();
    for keep in keeps {
        assert!(keep.await.unwrap());
    }
    store.close().await;
    let store = disk.open().await;
    for n in 0..300 {
        assert_eq!(find(&store, A, &n.to_string()).await, Some(format!("text {n}")));
    }
}

#[tokio::test]
async fn a_forget_wins_over_a_late_answer() {
    let disk = Disk::new();
    let store = disk.open().await;
    let scopes = [
        Forget::Task { service: service(), id: id("t") },
        Forget::Service(service()),
        Forget::OlderThan(Duration::ZERO),
        Forget::Confirmed { reader: reader(A), service: service(), id: id("t") },
    ];
    for scope in scopes {
        assert!(keep(&store, A, "t", "text").await);
        let epoch = store.epoch();
        assert_eq!(store.forget(scope.clone()).await.unwrap(), 1, "{scope:?}");
        assert_eq!(find(&store, A, "t").await, None, "{scope:?}");
        let late = store.keep(&reader(A), &service(), epoch, vec![task("t", "late")]).await;
        assert_eq!(late, [false], "{scope:?}");
        assert_eq!(find(&store, A, "t").await, None, "{scope:?}");
        assert!(keep(&store, A, "t", "fresh").await, "a call that began later counts, {scope:?}");
        assert_eq!(store.forget(Forget::Service(service())).await.unwrap(), 1);
    }
    assert_eq!((store.stats().tasks, store.stats().bytes), (0, 0));
}

#[tokio::test]
async fn a_confirmed_delete_without_the_right_removes_nothing() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    let epoch = store.epoch();
    let by_b = Forget::Confirmed { reader: reader(B), service: service(), id: id("t") };
    assert_eq!(store.forget(by_b).await.unwrap(), 0);
    assert_eq!(find(&store, A, "t").await.as_deref(), Some("text"));
    assert_eq!(store.keep(&reader(B), &service(), epoch, vec![task("t", "late")]).await, [false]);

    assert!(keep(&store, B, "t", "other text").await);
    let by_a = Forget::Confirmed { reader: reader(A), service: service(), id: id("t") };
    assert_eq!(store.forget(by_a).await.unwrap(), 2, "for all");
    assert_eq!(find(&store, B, "t").await, None);
}

#[tokio::test]
async fn a_wide_forget_removes_thousands() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    let tasks = (0..2500).map(|n| task(&n.to_string(), "text")).collect();
    store.keep(&reader(A), &service(), store.epoch(), tasks).await;
    assert_eq!(store.forget(Forget::OlderThan(Duration::from_secs(3600))).await.unwrap(), 0);
    assert_eq!(store.forget(Forget::Service(service())).await.unwrap(), 2500);
    assert_eq!(store.stats().tasks, 0);
}

async fn forget_beside(config: &StoreConfig, scope: &Forget) -> u64 {
    let mut beside = Beside::open(config).await.unwrap();
    let removed = beside.forget(scope).await.unwrap();
    beside.close().await.unwrap();
    removed
}

#[tokio::test]
async fn a_forget_by_another_process_is_seen_within_a_second() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    let epoch = store.epoch();
    let config = StoreConfig { url: format!("sqlite://{}", disk.path().display()), ..StoreConfig::default() };
    let start = Instant::now();
    let scope = Forget::Task { service: service(), id: id("t") };
    assert_eq!(forget_beside(&config, &scope).await, 1);
    let late = store.keep(&reader(A), &service(), epoch, vec![task("t", "late")]).await;
    assert_eq!(late, [false], "at once for what is stored");
    eventually("memory is cleared", || async { find(&store, A, "t").await.is_none() }).await;
    assert!(start.elapsed() < Duration::from_secs(1));
    eventually("the epoch goes on", || async { keep(&store, A, "t", "fresh").await }).await;
    assert_eq!(store.stats().tasks, 1);
    let tasks = (0..2500).map(|n| task(&n.to_string(), "text")).collect();
    store.keep(&reader(A), &service(), store.epoch(), tasks).await;
    assert_eq!(forget_beside(&config, &Forget::Service(service())).await, 2501);
    eventually("counted", || async { store.stats().tasks == 0 }).await;
    store.close().await;
    assert_eq!(forget_beside(&config, &scope).await, 0, "without a proxy too");
    let missing = StoreConfig { url: config.url.clone() + "x", ..config };
    assert!(matches!(Beside::open(&missing).await, Err(StoreError::Missing { .. })));
}

/// Replaces bytes in the closed file.
fn overwrite(disk: &Disk, old: &[u8], new: &[u8]) {
    let mut bytes = std::fs::read(disk.path()).unwrap();
    let at = bytes.windows(old.len()).position(|window| window == old).expect("is in the file");
    bytes[at..at + new.len()].copy_from_slice(new);
    std::fs::write(disk.path(), bytes).unwrap();
}

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
    store.keep(&reader(A), &service(), store.epoch(), tasks).await;
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
    store.keep(&reader(A), &service(), store.epoch(), tasks).await;
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
    assert_eq!(store.keep(&reader(A), &service(), epoch, vec![task("t", "late")]).await, [false]);
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
async fn one_file_has_one_owner() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(matches!(disk.try_open().await, Err(StoreError::Locked { .. })));
    store.close().await;
    disk.open().await;
}

#[tokio::test]
async fn a_command_sees_whether_a_proxy_serves_and_never_keeps_one_from_starting() {
    let disk = Disk::new();
    let store = disk.open().await;
    let beside = Beside::open_file(&disk.path()).await.unwrap();
    assert!(beside.is_served());
    store.close().await;
    assert!(!beside.is_served());
    // The look of another process, which ends after the first try to open.
    let look = std::fs::File::open(disk.path().with_extension("db.lock")).unwrap();
    look.lock_shared().unwrap();
    let (opened, ()) = tokio::join!(disk.try_open(), async { drop(look) });
    assert!(opened.is_ok() && beside.is_served());
    beside.close().await.unwrap();
}

#[tokio::test]
async fn unwritable_places_are_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("folder.db")).unwrap();
    for path in ["missing/refrain.db", "folder.db"] {
        let url = format!("sqlite://{}/{path}", dir.path().display());
        let limits = Disk::new().limits;
        let error = Store::open_within(&url, limits, Arc::default()).await.unwrap_err();
        assert!(matches!(error, StoreError::Unwritable { .. }), "{error:?}");
        assert!(error.to_string().contains(path), "{error}");
    }
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
    let forget = Forget::Task { service: service(), id: id("gone") };
    assert!(store.forget(forget).await.is_err());
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
    assert_eq!(store.keep(&reader(A), &service(), store.epoch(), tasks).await, [false, false]);
    assert_eq!(find(&store, A, "a").await, None);
    assert_eq!(store.stats().tasks, 0);
    eventually("heals", || async { store.readiness().is_ok() }).await;
    assert!(keep(&store, A, "a", "text").await);
    other.close().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_never_ends_cannot_grow_the_log_without_bound() {
    let mut disk = Disk::without_memory();
    (disk.limits.log_soft, disk.limits.log_hard) = (512 << 10, 2 << 20);
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
async fn the_sweep_keeps_to_max_bytes_longest_unused_first() {
    let mut disk = Disk::without_memory();
    disk.limits.max_bytes = 10_000;
    let store = disk.open().await;
    for n in 0..8 {
        assert!(keep(&store, A, &n.to_string(), &"x".repeat(1000)).await);
    }
    let mut other = disk.connect().await;
    sqlx::query("UPDATE task SET used_hour = used_hour - 5").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    assert!(find(&store, A, "0").await.is_some(), "used in this hour");
    for n in 8..13 {
        assert!(keep(&store, A, &n.to_string(), &"x".repeat(1000)).await);
    }
    eventually("swept", || async { store.stats().bytes <= 10_000 }).await;
    let mut left = Vec::new();
    for n in 0..13 {
        if find(&store, A, &n.to_string()).await.is_some() {
            left.push(n);
        }
    }
    assert_eq!(left, [0, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!((store.stats().tasks, store.stats().bytes), (10, 10_000));
    let evicted = &disk.metrics.tasks_evicted;
    assert_eq!((evicted.get(EvictionReason::MaxBytes), evicted.get(EvictionReason::MaxAge)), (3, 0));
}

#[tokio::test]
async fn the_sweep_keeps_to_max_age_since_last_use() {
    let mut disk = Disk::new();
    disk.limits.max_age = Duration::from_secs(2 * 3600);
    let store = disk.open().await;
    for name in ["old", "new"] {
        assert!(keep(&store, A, name, "text").await);
    }
    store.close().await;
    let mut other = disk.connect().await;
    sqlx::query("UPDATE task SET used_hour = used_hour - 4 WHERE id = ?1")
        .bind(&b"old"[..])
        .execute(&mut other)
        .await
        .unwrap();
    other.close().await.unwrap();
    let store = disk.open().await;
    eventually("swept", || async { store.stats().tasks == 1 }).await;
    assert!(find(&store, A, "old").await.is_none() && find(&store, A, "new").await.is_some());
    let evicted = &disk.metrics.tasks_evicted;
    assert_eq!((evicted.get(EvictionReason::MaxBytes), evicted.get(EvictionReason::MaxAge)), (0, 1));
}

#[tokio::test]
async fn acceptances_are_seen_at_once_and_after_a_restart() {
    let disk = Disk::new();
    let store = disk.open().await;
    let accepted = Acceptance { accepted_at: crate::task::clock::unix_now(), ended: false };
    assert_eq!(store.acceptance(&reader(A)).await, None);
    store.record_acceptance(reader(A), accepted);
    assert_eq!(store.acceptance(&reader(A)).await, Some(accepted));
    store.record_acceptance(reader(B), Acceptance { ended: true, ..accepted });
    store.close().await;
    let store = disk.open().await;
    assert_eq!(store.acceptance(&reader(A)).await, Some(accepted));
    assert_eq!(store.acceptance(&reader(B)).await, None, "never accepted, so nothing to remember");
    store.record_acceptance(reader(A), Acceptance { ended: true, ..accepted });
    store.close().await;
    let store = disk.open().await;
    assert!(store.acceptance(&reader(A)).await.unwrap().ended);
    assert!(keep(&store, B, "t", "text").await);
    assert_eq!(store.acceptance(&reader(B)).await, None, "a right is no acceptance");
}

/// Most texts are read together; each is its own all the same, whatever stands beside it.
#[tokio::test]
async fn texts_read_together_are_told_apart() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    // Short and long, of any bytes that a text may have; some belong to another reader, some are damaged below.
    let text = |n: usize| match n % 7 {
        0 => "x".repeat(70_000 + n),
        1 => format!("{n};1,2,3\u{0}ä\u{1f3b5}"),
        2 => format!("number {n} to be damaged"),
        _ => n.to_string(),
    };
    for n in 0..300 {
        let by = if n % 5 == 4 { B } else { A };
        assert!(keep(&store, by, &n.to_string(), &text(n)).await);
    }
    store.close().await;
    overwrite(&disk, b"number 72 to be damaged", b"number 72 to bE");
    overwrite(&disk, b"number 205 to be damaged", b"number 205 to bE");

    let store = disk.open().await;
    let ids: Vec<TaskId> = (0..320).map(|n| id(&n.to_string())).collect();
    let found = store.find(&reader(A), &service(), &ids, u64::MAX).await.unwrap();
    for (n, task) in found.into_iter().enumerate() {
        let expected = (n < 300 && n % 5 != 4 && n != 72 && n != 205).then(|| text(n));
        let task = task.map(|task| String::from_utf8(task.text.to_vec()).unwrap());
        assert!(task == expected, "{n}: {task:?}");
    }
    assert_eq!(disk.errors("checksum"), 2, "the damaged ones and no neighbour of theirs");
    store.close().await;
}

#[tokio::test]
async fn ids_drive_the_query() {
    let disk = Disk::new();
    disk.open().await.close().await;
    let mut conn = disk.connect().await;
    for sql in [super::find::FIND, super::find::FIND_JOINED, super::find::FIND_FOR_EACH] {
        let sql = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(sql).fetch_all(&mut conn).await.unwrap();
        let steps: Vec<&str> = plan.iter().map(|step| step.3.as_str()).collect();
        assert!(steps[0].starts_with("SCAN j VIRTUAL TABLE"), "{steps:?}");
        assert_eq!(steps[1], "SEARCH r USING PRIMARY KEY (service=? AND id=? AND reader=?)", "{steps:?}");
        assert!(steps.contains(&"SEARCH t USING INTEGER PRIMARY KEY (rowid=?)"), "{steps:?}");
        assert!(steps.iter().skip(1).all(|step| !step.starts_with("SCAN ")), "{steps:?}");
    }

    // WAL with two connections can corrupt before 3.51.3 (https://www.sqlite.org/releaselog/3_51_3.html).
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut conn).await.unwrap();
    let parts: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    assert!(parts >= vec![3, 51, 3], "{version}");
}

#[tokio::test]
async fn connections_are_set_up_for_power_loss() {
    let disk = Disk::new();
    disk.open().await.close().await;
    let mut conn = open::connect_writer(&disk.path()).await.unwrap();
    for (pragma, value) in [
        ("PRAGMA synchronous", 2),
        ("PRAGMA fullfsync", 1),
        ("PRAGMA checkpoint_fullfsync", 1),
        ("PRAGMA foreign_keys", 1),
        ("PRAGMA busy_timeout", 2000),
        ("PRAGMA page_size", 4096),
    ] {
        let set: i64 = sqlx::query_scalar(pragma).fetch_one(&mut conn).await.unwrap();
        assert_eq!(set, value, "{pragma}");
    }
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut conn).await.unwrap();
    assert_eq!(mode, "wal");
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
