//! Behaviour that is specific to SQLite and its file.

mod damage;
mod durations;
mod grants;
mod listing;
mod sweep;
mod write_failures;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use super::connect::connect_writer;
use super::select::{SELECT_JOINED, SELECT_JOINED_BY_READER, SELECT_ROWS};
use super::*;
use crate::store::Store;
use crate::store::tests::*;

impl TestDatabase {
    /// Opens a connection as another program would.
    async fn connect(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.path()).foreign_keys(true).connect().await.unwrap()
    }

    /// Number of files that were set aside.
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

/// Returns the steps of a statement's query plan.
async fn query_plan(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let sql = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
    let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(sql).fetch_all(conn).await.unwrap();
    steps.into_iter().map(|step| step.3).collect()
}

/// Returns the position of `what` in the file.
fn position(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("is in the file")
}

/// Replaces bytes in the closed file.
fn overwrite(db: &TestDatabase, old: &[u8], new: &[u8]) {
    let mut bytes = std::fs::read(db.path()).unwrap();
    let at = position(&bytes, old);
    bytes[at..at + new.len()].copy_from_slice(new);
    std::fs::write(db.path(), bytes).unwrap();
}

#[tokio::test]
async fn command_detects_a_serving_process_and_never_blocks_its_start() {
    let db = TestDatabase::new();
    let store = db.open().await;
    let beside = StoreMaintenance::open_file(&db.path()).await.unwrap();
    assert!(beside.is_served());
    store.close().await;
    assert!(!beside.is_served());
    // The check of another process, which ends after the first attempt to take the lock.
    let check = std::fs::File::open(db.path().with_extension("db.lock")).unwrap();
    check.lock_shared().unwrap();
    let (opened, ()) = tokio::join!(db.try_open(), async { drop(check) });
    assert!(opened.is_ok() && beside.is_served());
    beside.close().await.unwrap();
}

#[tokio::test]
async fn joined_records_are_split_correctly() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    // Short and long, with any bytes. Some belong to another reader, some are damaged below.
    let record = |n: usize| match n % 7 {
        0 => "x".repeat(70_000 + n),
        1 => format!("{n};1,2,3\u{0}ä\u{1f3b5}"),
        2 => format!("number {n} to be damaged"),
        _ => n.to_string(),
    };
    for n in 0..300 {
        let by = if n % 5 == 4 { B } else { A };
        assert!(insert(&store, by, &n.to_string(), &record(n)).await);
    }
    store.close().await;
    overwrite(&db, b"number 72 to be damaged", b"number 72 to bE");
    overwrite(&db, b"number 205 to be damaged", b"number 205 to bE");

    let store = db.open().await;
    let ids: Vec<TaskId> = (0..320).map(|n| id(&n.to_string())).collect();
    let found = store.get(&reader(A), &service(), &ids, u64::MAX).await.unwrap();
    for (n, task) in found.into_iter().enumerate() {
        let expected = (n < 300 && n % 5 != 4 && n != 72 && n != 205).then(|| record(n));
        let task = task.map(|task| String::from_utf8(task.record.to_vec()).unwrap());
        assert!(task == expected, "{n}: {task:?}");
    }
    assert_eq!(db.errors("checksum"), 2, "only the damaged ones");
    store.close().await;
}

/// Coalesced statements keep their connections, and listings may use theirs.
#[tokio::test]
async fn separate_read_finds_a_free_connection() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    let (record, other) = ("x".repeat(100_000), Service::parse("other").unwrap());
    assert!(insert(&store, A, "long", &record).await);
    let (by, ids) = (reader(A), [id("long")]);
    let readers = store.sqlite.state.readers.pool().unwrap();
    // Both statements wait for a connection, so that neither ends before the other begins.
    let mut held = Vec::new();
    for _ in 0..readers.options().get_max_connections() {
        held.push(readers.acquire().await.unwrap());
    }
    let release = async {
        tokio::task::yield_now().await;
        drop(held);
    };
    let (_, found, ()) =
        tokio::join!(get(&store, A, "none"), store.get(&by, &other, &ids, u64::MAX), release);
    assert_eq!((found, store.sqlite.state.readers.kept()), (Ok(vec![None]), 2));
    let _listings = (readers.acquire().await.unwrap(), readers.acquire().await.unwrap());
    assert!(get(&store, A, "long").await.as_deref() == Some(&*record));
    assert_eq!((store.acceptance(&by).await, db.errors("read")), (None, 0));
}

#[tokio::test]
async fn lookup_statements_start_from_the_ids() {
    let db = TestDatabase::new();
    db.open().await.close().await;
    let mut conn = db.connect().await;
    for sql in [SELECT_ROWS, SELECT_JOINED, SELECT_JOINED_BY_READER] {
        let steps = query_plan(&mut conn, sql).await;
        assert!(steps[0].starts_with("SCAN j VIRTUAL TABLE"), "{steps:?}");
        assert_eq!(steps[1], "SEARCH g USING PRIMARY KEY (service=? AND id=? AND reader_id=?)", "{steps:?}");
        assert!(steps.iter().any(|step| step == "SEARCH t USING INTEGER PRIMARY KEY (rowid=?)"), "{steps:?}");
        assert!(steps.iter().skip(1).all(|step| !step.starts_with("SCAN ")), "{steps:?}");
    }

    // Before 3.51.3, WAL with two connections can corrupt the file
    // (https://www.sqlite.org/releaselog/3_51_3.html).
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut conn).await.unwrap();
    let parts: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    assert!(parts >= vec![3, 51, 3], "{version}");
}

/// The options get lost silently if cargo does not read `.cargo/config.toml` or `LIBSQLITE3_FLAGS`
/// is set.
#[tokio::test]
async fn sqlite_is_compiled_with_the_intended_options() {
    let db = TestDatabase::new();
    db.open().await.close().await;
    let mut conn = db.connect().await;
    let options: Vec<String> =
        sqlx::query_scalar("PRAGMA compile_options").fetch_all(&mut conn).await.unwrap();
    assert!(options.iter().any(|option| option == "DEFAULT_MEMSTATUS=0"), "{options:?}");
    assert!(options.iter().all(|option| option != "ENABLE_MEMORY_MANAGEMENT"), "{options:?}");
}

#[tokio::test]
async fn writer_connection_is_configured_for_power_loss() {
    let db = TestDatabase::new();
    db.open().await.close().await;
    let mut conn = connect_writer(&db.path()).await.unwrap();
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
