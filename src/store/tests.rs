//! The store's promises over real files.

mod find;
mod leaving;
mod listing;
mod rights;
mod trouble;

use std::path::PathBuf;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;

use super::*;
use crate::telemetry::{Label, StoreErrorKind};

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

    fn url(&self) -> String {
        format!("sqlite://{}", self.path().display())
    }

    async fn try_open(&self) -> Result<Store, StoreError> {
        Store::open_within(&self.url(), self.limits.clone(), Arc::clone(&self.metrics)).await
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

fn task(id: &str, text: &str) -> FinalRecord {
    FinalRecord { id: self::id(id), json: Bytes::copy_from_slice(text.as_bytes()) }
}

async fn keep(store: &Store, by: [u8; 32], name: &str, text: &str) -> bool {
    store.insert(&reader(by), &service(), store.epoch(), vec![task(name, text)]).await == [true]
}

async fn find(store: &Store, by: [u8; 32], name: &str) -> Option<String> {
    let mut found = store.get(&reader(by), &service(), &[id(name)], u64::MAX).await.unwrap();
    found.pop().unwrap().map(|task| String::from_utf8(task.record.to_vec()).unwrap())
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
            ids.iter().map(|id| FinalRecord { id: id.clone(), json: vec![b'x'; 100].into() }).collect();
        assert!(store.insert(&reader(A), &service(), store.epoch(), tasks).await.iter().all(|kept| *kept));
        assert_eq!(store.get(&reader(A), &service(), &ids, 999).await, Err(ResultTooLarge));
        assert!(store.get(&reader(A), &service(), &ids, 1000).await.unwrap().iter().all(Option::is_some));
        store.close().await;
    }
}

#[tokio::test]
async fn what_is_kept_is_found_byte_for_byte_and_after_a_restart() {
    let disk = Disk::new();
    let store = disk.open().await;
    let text = "{\"id\":\"t\",\"finished_at\":1.50e3,  \"x\":\"\\u00e4\u{0}\"}";
    assert!(keep(&store, A, "t", text).await);
    assert_eq!(store.get_from_memory(&reader(A), &service(), &id("t")).unwrap().record, text);
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
        assert_eq!(store.get(&reader(A), &other, &[id("u")], u64::MAX).await.unwrap(), [None]);
        store.close().await;
        let store = disk.open().await;
        assert_eq!(find(&store, A, "u").await.as_deref(), Some("of a"));
        assert_eq!(find(&store, B, "u").await.as_deref(), Some("of b"));
        assert_eq!(
            store.get(&reader([3; 32]), &service(), &[id("t"), id("u")], u64::MAX).await.unwrap(),
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
    let kept = store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    assert!(kept.len() == 5000 && kept.iter().all(|kept| *kept));
    let ids: Vec<_> = (0..10_000).rev().map(|n| id(&format!("id-{n}"))).collect();
    let found = store.get(&reader(A), &service(), &ids, u64::MAX).await.unwrap();
    for (id, found) in ids.iter().zip(found) {
        let n: u32 = id.as_str()[3..].parse().unwrap();
        assert_eq!(
            found.map(|task| task.record),
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
    assert!(store.insert(&reader(A), &service(), store.epoch(), tasks).await.iter().all(|kept| *kept));
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

/// Where `what` begins.
fn place(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("is in the file")
}

/// Replaces bytes in the closed file.
fn overwrite(disk: &Disk, old: &[u8], new: &[u8]) {
    let mut bytes = std::fs::read(disk.path()).unwrap();
    let at = place(&bytes, old);
    bytes[at..at + new.len()].copy_from_slice(new);
    std::fs::write(disk.path(), bytes).unwrap();
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
    let beside = StoreMaintenance::open_file(&disk.path()).await.unwrap();
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
async fn acceptances_are_seen_at_once_and_after_a_restart() {
    let disk = Disk::new();
    let store = disk.open().await;
    let accepted = TokenAcceptance { accepted_at: crate::clock::unix_now(), is_revoked: false };
    assert_eq!(store.acceptance(&reader(A)).await, None);
    store.record_acceptance(reader(A), accepted);
    assert_eq!(store.acceptance(&reader(A)).await, Some(accepted));
    store.record_acceptance(reader(B), TokenAcceptance { is_revoked: true, ..accepted });
    store.close().await;
    let store = disk.open().await;
    assert_eq!(store.acceptance(&reader(A)).await, Some(accepted));
    assert_eq!(store.acceptance(&reader(B)).await, None, "never accepted, so nothing to remember");
    store.record_acceptance(reader(A), TokenAcceptance { is_revoked: true, ..accepted });
    store.close().await;
    let store = disk.open().await;
    assert!(store.acceptance(&reader(A)).await.unwrap().is_revoked);
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
    let found = store.get(&reader(A), &service(), &ids, u64::MAX).await.unwrap();
    for (n, task) in found.into_iter().enumerate() {
        let expected = (n < 300 && n % 5 != 4 && n != 72 && n != 205).then(|| text(n));
        let task = task.map(|task| String::from_utf8(task.record.to_vec()).unwrap());
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

/// Lost without a word where cargo does not read `.cargo/config.toml` or `LIBSQLITE3_FLAGS` is set.
#[tokio::test]
async fn sqlite_is_compiled_without_locks_over_all_connections() {
    let disk = Disk::new();
    disk.open().await.close().await;
    let mut conn = disk.connect().await;
    let options: Vec<String> =
        sqlx::query_scalar("PRAGMA compile_options").fetch_all(&mut conn).await.unwrap();
    assert!(options.iter().any(|option| option == "DEFAULT_MEMSTATUS=0"), "{options:?}");
    assert!(options.iter().all(|option| option != "ENABLE_MEMORY_MANAGEMENT"), "{options:?}");
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
