//! The limits `max_bytes` and `max_age`.

use super::*;
use crate::store::sqlite::sweep::{COUNT_TASKS, SELECT_OLDEST};
use crate::telemetry::EvictionReason;

#[tokio::test]
async fn sweep_removes_the_least_recently_used_beyond_max_bytes() {
    let mut db = TestDatabase::without_memory();
    db.limits.max_bytes = 10_000;
    let store = db.open().await;
    for n in 0..8 {
        assert!(insert(&store, A, &n.to_string(), &"x".repeat(1000)).await);
    }
    let mut other = db.connect().await;
    sqlx::query("UPDATE task SET used_hour = used_hour - 5").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    assert!(get(&store, A, "0").await.is_some(), "used in this hour");
    for n in 8..13 {
        assert!(insert(&store, A, &n.to_string(), &"x".repeat(1000)).await);
    }
    eventually("swept", || async { store.stats().bytes <= 10_000 }).await;
    let mut left = Vec::new();
    for n in 0..13 {
        if get(&store, A, &n.to_string()).await.is_some() {
            left.push(n);
        }
    }
    assert_eq!(left, [0, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!((store.stats().tasks, store.stats().bytes), (10, 10_000));
    let evicted = &db.metrics.store_tasks_evicted;
    assert_eq!((evicted.get(EvictionReason::MaxBytes), evicted.get(EvictionReason::MaxAge)), (3, 0));
}

#[tokio::test]
async fn sweep_removes_tasks_unused_for_max_age() {
    let mut db = TestDatabase::new();
    db.limits.max_age = Duration::from_secs(2 * 3600);
    let store = db.open().await;
    for name in ["old", "new"] {
        assert!(insert(&store, A, name, "text").await);
    }
    store.close().await;
    let mut other = db.connect().await;
    sqlx::query("UPDATE task SET used_hour = used_hour - 4 WHERE id = ?1")
        .bind(&b"old"[..])
        .execute(&mut other)
        .await
        .unwrap();
    other.close().await.unwrap();
    let store = db.open().await;
    eventually("swept", || async { store.stats().tasks == 1 }).await;
    assert!(get(&store, A, "old").await.is_none() && get(&store, A, "new").await.is_some());
    let evicted = &db.metrics.store_tasks_evicted;
    assert_eq!((evicted.get(EvictionReason::MaxBytes), evicted.get(EvictionReason::MaxAge)), (0, 1));
}

#[tokio::test]
async fn damaged_counter_removes_no_task_within_max_bytes() {
    let mut db = TestDatabase::without_memory();
    db.limits.max_bytes = 10_000;
    let store = db.open().await;
    let mut other = db.connect().await;
    let mut stored = 0;
    for damage in [
        "UPDATE meta SET bytes = bytes + 10000",
        "UPDATE meta SET bytes = 1 << 40, tasks = 7",
        "UPDATE meta SET bytes = 9223372036854775807",
    ] {
        sqlx::query(damage).execute(&mut other).await.unwrap();
        eventually("it is stored", || async {
            insert(&store, A, &stored.to_string(), &"x".repeat(1000)).await
        })
        .await;
        stored += 1;
        eventually("it is corrected", || async { store.stats().bytes == stored * 1000 }).await;
    }
    store.close().await;
    sqlx::query("UPDATE meta SET bytes = 1 << 40, tasks = 7").execute(&mut other).await.unwrap();
    let store = db.open().await;
    eventually("it is corrected", || async { store.stats().bytes == stored * 1000 }).await;
    for n in 0..stored {
        assert!(get(&store, A, &n.to_string()).await.is_some(), "{n}");
    }
    assert_eq!(db.metrics.store_tasks_evicted.get(EvictionReason::MaxBytes), 0);
    other.close().await.unwrap();
}

#[tokio::test]
async fn counter_damaged_downwards_does_not_lift_max_bytes() {
    let mut db = TestDatabase::without_memory();
    let store = db.open().await;
    for n in 0..15 {
        assert!(insert(&store, A, &n.to_string(), &"x".repeat(1000)).await);
    }
    store.close().await;
    let mut other = db.connect().await;
    sqlx::query("UPDATE meta SET bytes = -5, tasks = -5").execute(&mut other).await.unwrap();
    db.limits.max_bytes = 10_000;
    let store = db.open().await;
    eventually("swept", || async { (store.stats().tasks, store.stats().bytes) == (10, 10_000) }).await;
    other.close().await.unwrap();
}

#[tokio::test]
async fn sweep_reads_sizes_from_its_index() {
    let db = TestDatabase::new();
    db.open().await.close().await;
    let mut conn = db.connect().await;
    for sql in [COUNT_TASKS, SELECT_OLDEST] {
        assert_eq!(query_plan(&mut conn, sql).await, ["SCAN task USING COVERING INDEX task_by_use"], "{sql}");
    }
}

#[tokio::test]
async fn store_without_sizes_in_the_index_is_migrated() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    assert!(insert(&store, A, "t", "text").await);
    store.close().await;
    let mut other = db.connect().await;
    let version_before = "
        DROP INDEX task_by_use;
        CREATE INDEX task_by_use ON task (used_hour);
        DELETE FROM _sqlx_migrations WHERE version = 2;";
    sqlx::raw_sql(version_before).execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let store = db.open().await;
    assert_eq!(get(&store, A, "t").await.as_deref(), Some("text"));
    store.close().await;
    let plan = query_plan(&mut db.connect().await, COUNT_TASKS).await;
    assert_eq!(plan, ["SCAN task USING COVERING INDEX task_by_use"]);
}
