//! Damaged rows and corrupt, removed or replaced files.

use futures_util::future::join_all;

use super::*;
use crate::store::sqlite::insert::{NewTasks, insert_tasks};

#[tokio::test]
async fn damaged_row_is_removed_and_affects_no_other_read() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    for n in 0..30 {
        assert!(insert(&store, A, &n.to_string(), &format!("number {n} to be damaged")).await);
    }
    store.close().await;
    overwrite(&db, b"number 7 to be damaged", b"number 7 to bE");
    let store = db.open().await;
    let names: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    let found = join_all(names.iter().map(|name| get(&store, A, name))).await;
    for (n, record) in found.into_iter().enumerate() {
        assert_eq!(record, (n != 7).then(|| format!("number {n} to be damaged")));
    }
    assert_eq!(db.errors("checksum"), 1);
    eventually("the row is removed", || async { store.stats().tasks == 29 }).await;
    assert!(insert(&store, A, "7", "again").await);
    assert_eq!(get(&store, A, "7").await.as_deref(), Some("again"));
}

/// A bit flips in the id of the row itself. Its index entry and its grant are undamaged.
#[tokio::test]
async fn row_with_a_damaged_id_is_stored_again() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    assert!(insert(&store, A, "the-id", "its record").await);
    store.close().await;
    let mut bytes = std::fs::read(db.path()).unwrap();
    let page = position(&bytes, b"its record") / 4096 * 4096;
    let at = page + position(&bytes[page..page + 4096], b"the-id");
    bytes[at] ^= 1;
    std::fs::write(db.path(), bytes).unwrap();
    let store = db.open().await;
    assert_eq!(get(&store, A, "the-id").await, None);
    assert!(insert(&store, A, "the-id", "its record").await);
    assert_eq!(get(&store, A, "the-id").await.as_deref(), Some("its record"));
}

/// Flipped bits in the header of a row change the type of a value.
#[tokio::test]
async fn values_of_a_wrong_type_fail_no_later_write() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    assert!(insert(&store, A, "t", "of a").await && insert(&store, B, "t", "of b").await);
    assert!(insert(&store, A, "u", "of both").await && insert(&store, B, "u", "of both").await);
    store.close().await;
    let mut conn = db.connect().await;
    let damage = "
        PRAGMA writable_schema = ON;
        CREATE TEMP TABLE strict AS
            SELECT name, sql FROM sqlite_schema WHERE name IN ('task', 'task_grant', 'reader');
        UPDATE sqlite_schema SET sql = replace(replace(sql, ') STRICT, ', ') '), ') STRICT', ')')
            WHERE name IN (SELECT name FROM strict);
        PRAGMA writable_schema = RESET;
        UPDATE task SET id = CAST(id AS TEXT) WHERE task_id = 1;
        UPDATE task_grant SET grant_checksum = 1.5 WHERE task_id = 3 AND reader_id = 1;
        UPDATE reader SET digest = CAST(x'61' AS TEXT) WHERE reader_id = 1;
        PRAGMA writable_schema = ON;
        UPDATE sqlite_schema SET sql = (SELECT sql FROM strict WHERE strict.name = sqlite_schema.name)
            WHERE name IN (SELECT name FROM strict);
        PRAGMA writable_schema = RESET;";
    sqlx::raw_sql(damage).execute(&mut conn).await.unwrap();

    let now = crate::clock::unix_now();
    let (service, tasks) = (service(), [task("v", "text")]);
    for by in [A, B] {
        let new = NewTasks { reader: &reader(by), service: &service, delete_seq: i64::MAX, tasks: &tasks };
        insert_tasks(&mut conn, &new, |_| now, now).await.unwrap();
    }
    for row_id in 1..5 {
        let query = sqlx::query("DELETE FROM task WHERE task_id = ?1").bind(row_id);
        assert_eq!(query.execute(&mut conn).await.unwrap().rows_affected(), 1);
    }
    conn.close().await.unwrap();
}

#[tokio::test]
async fn file_set_aside_is_counted_and_empty_file_is_new() {
    for garbage in [vec![b'x'; 5000], b"SQLite format 3\0 and nothing valid after it".repeat(300)] {
        let db = TestDatabase::new();
        std::fs::write(db.path(), &garbage).unwrap();
        std::fs::write(file::with_suffix(&db.path(), ".lock"), b"").unwrap();
        let store = db.open().await;
        assert_eq!((db.set_aside(), db.errors("corrupt")), (1, 1));
        assert!(insert(&store, A, "t", "text").await);
    }
    let db = TestDatabase::new();
    std::fs::write(db.path(), b"").unwrap();
    db.open().await;
    assert_eq!(db.set_aside(), 0, "an empty file is a new database");
}

/// Without its lock file a store is known by its header.
#[tokio::test]
async fn damaged_copy_of_a_store_is_set_aside_without_lock_file() {
    let db = TestDatabase::new();
    let store = db.open().await;
    let tasks = (0..300).map(|n| task(&n.to_string(), &"text".repeat(100))).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    store.close().await;
    let mut bytes = std::fs::read(db.path()).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(db.path(), bytes).unwrap();
    std::fs::remove_file(file::with_suffix(&db.path(), ".lock")).unwrap();
    db.open().await;
    assert_eq!(db.set_aside(), 1);
}

#[tokio::test]
async fn corruption_found_later_is_replaced_by_a_new_file() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    let key = *store.digest_key();
    let tasks = (0..3000).map(|n| task(&n.to_string(), &"text".repeat(100))).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    store.close().await;
    let store = db.open().await;
    let epoch = store.epoch();
    let mut bytes = std::fs::read(db.path()).unwrap();
    bytes[24 << 10..].fill(0xff);
    std::fs::write(db.path(), bytes).unwrap();
    for n in 0..3000 {
        if get(&store, A, &n.to_string()).await.is_none() {
            break;
        }
    }
    eventually("a new file", || async { db.set_aside() == 1 && store.readiness().is_ok() }).await;
    assert!(db.errors("corrupt") >= 1);
    assert_eq!(*store.digest_key(), key);
    assert_eq!(store.insert(&reader(A), &service(), epoch, vec![task("t", "late")]).await, [false]);
    assert!(insert(&store, A, "t", "text").await);
    assert_eq!(get(&store, A, "t").await.as_deref(), Some("text"));
    store.close().await;
    let store = db.open().await;
    assert_eq!(*store.digest_key(), key);
    assert_eq!(get(&store, A, "t").await.as_deref(), Some("text"));
}

#[tokio::test]
async fn removed_file_loses_no_later_writes() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    assert!(insert(&store, A, "t", "text").await);
    assert!(get(&store, A, "t").await.is_some(), "its connection is kept");
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(file::with_suffix(&db.path(), suffix)).unwrap();
    }
    eventually("a new file", || async { db.path().exists() && store.stats().tasks == 0 }).await;
    eventually("a write", || async { insert(&store, A, "u", "text").await }).await;
    assert_eq!(get(&store, A, "t").await, None, "it was removed with its file");
    assert_eq!(get(&store, A, "u").await.as_deref(), Some("text"));
    store.close().await;
    let store = db.open().await;
    assert_eq!(get(&store, A, "u").await.as_deref(), Some("text"));
}
