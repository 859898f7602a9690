//! The limits `max_bytes` and `max_age`.

use super::*;
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
