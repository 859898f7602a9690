//! A database that does not accept writes.

use std::time::Instant;

use super::*;
use crate::store::sqlite::write_queue::INSERT_TIMEOUT;

#[tokio::test]
async fn failed_writes_are_refused_quickly_and_recover() {
    let db = TestDatabase::new();
    let store = db.open().await;
    assert!(insert(&store, A, "gone", "text").await);
    let mut other = db.connect().await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let start = Instant::now();
    assert!(!insert(&store, A, "t", "text").await);
    assert!(start.elapsed() < INSERT_TIMEOUT);
    assert!(store.readiness().is_err() && db.errors("write") >= 1);
    assert_eq!(get(&store, A, "t").await, None, "not in memory either");
    let start = Instant::now();
    assert!(!insert(&store, A, "u", "text").await);
    assert!(start.elapsed() < Duration::from_millis(100), "no wait while writes are known to fail");
    assert!(get(&store, A, "gone").await.is_some());
    let scope = DeleteScope::Task { service: service(), id: id("gone") };
    assert!(store.delete(scope).await.is_err());
    assert_eq!(get(&store, A, "gone").await, None, "hidden although it is not written");

    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    eventually("recovers", || async { store.readiness().is_ok() }).await;
    assert!(insert(&store, A, "t", "text").await);
    assert_eq!(get(&store, A, "gone").await, None);
    assert_eq!(store.stats().tasks, 1, "the delete was repeated");
    assert!(insert(&store, A, "gone", "new").await);
    assert_eq!(get(&store, A, "gone").await.as_deref(), Some("new"), "no longer hidden");
    other.close().await.unwrap();
}

#[tokio::test]
async fn failed_row_rolls_back_its_batch() {
    let db = TestDatabase::new();
    let store = db.open().await;
    let mut other = db.connect().await;
    sqlx::query(
        "CREATE TRIGGER full BEFORE INSERT ON task WHEN NEW.id = x'62'
         BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    )
    .execute(&mut other)
    .await
    .unwrap();
    let tasks = vec![task("a", "text"), task("b", "text")];
    assert_eq!(store.insert(&reader(A), &service(), store.epoch(), tasks).await, [false, false]);
    assert_eq!(get(&store, A, "a").await, None);
    assert_eq!(store.stats().tasks, 0);
    eventually("recovers", || async { store.readiness().is_ok() }).await;
    assert!(insert(&store, A, "a", "text").await);
    other.close().await.unwrap();
}

#[tokio::test]
async fn endless_reader_cannot_grow_the_wal_without_limit() {
    let mut db = TestDatabase::without_memory();
    (db.limits.wal_soft_limit, db.limits.wal_hard_limit) = (512 << 10, 2 << 20);
    let store = db.open().await;
    assert!(insert(&store, A, "t", "text").await);
    let mut other = db.connect().await;
    sqlx::query("BEGIN").execute(&mut other).await.unwrap();
    sqlx::query("SELECT count(*) FROM task").fetch_one(&mut other).await.unwrap();
    let record = "x".repeat(100_000);
    let mut inserted = 0;
    while insert(&store, A, &inserted.to_string(), &record).await {
        inserted += 1;
        assert!(inserted < 100, "bounded");
    }
    let log = || db.path().with_extension("db-wal").metadata().unwrap().len();
    assert!(inserted > 5 && log() < (2 << 20) + 300_000, "{inserted} {}", log());
    assert!(store.readiness().unwrap_err().contains("log"));
    sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    eventually("recovers", || async { store.readiness().is_ok() }).await;
    for n in 0..100 {
        assert!(insert(&store, A, &format!("more {n}"), &record).await);
        assert!(log() < 2 << 20);
    }
    other.close().await.unwrap();
}

#[tokio::test]
async fn panicked_writer_is_reported() {
    let db = TestDatabase::new();
    let store = db.open().await;
    let state = Arc::clone(&store.sqlite.state);
    watch(state, tokio::spawn(async { panic!("in the test") })).await;
    assert_eq!(store.readiness(), Err("the task store's writer has stopped"));
    assert_eq!(db.metrics.panics.get(), 1);
}
