//! How tasks leave: forgotten, by the proxy or a command beside it, and swept.

use super::*;
use crate::telemetry::EvictionReason;

#[tokio::test]
async fn a_forget_wins_over_a_late_answer() {
    let disk = Disk::new();
    let store = disk.open().await;
    let scopes = [
        DeleteScope::Task { service: service(), id: id("t") },
        DeleteScope::Service(service()),
        DeleteScope::OlderThan(Duration::ZERO),
        DeleteScope::ByReader { reader: reader(A), service: service(), id: id("t") },
    ];
    for scope in scopes {
        assert!(keep(&store, A, "t", "text").await);
        let epoch = store.epoch();
        assert_eq!(store.delete(scope.clone()).await.unwrap(), 1, "{scope:?}");
        assert_eq!(find(&store, A, "t").await, None, "{scope:?}");
        let late = store.insert(&reader(A), &service(), epoch, vec![task("t", "late")]).await;
        assert_eq!(late, [false], "{scope:?}");
        assert_eq!(find(&store, A, "t").await, None, "{scope:?}");
        assert!(keep(&store, A, "t", "fresh").await, "a call that began later counts, {scope:?}");
        assert_eq!(store.delete(DeleteScope::Service(service())).await.unwrap(), 1);
    }
    assert_eq!((store.stats().tasks, store.stats().bytes), (0, 0));
}

#[tokio::test]
async fn a_confirmed_delete_without_the_right_removes_nothing() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    let epoch = store.epoch();
    let by_b = DeleteScope::ByReader { reader: reader(B), service: service(), id: id("t") };
    assert_eq!(store.delete(by_b).await.unwrap(), 0);
    assert_eq!(find(&store, A, "t").await.as_deref(), Some("text"));
    assert_eq!(store.insert(&reader(B), &service(), epoch, vec![task("t", "late")]).await, [false]);

    assert!(keep(&store, B, "t", "other text").await);
    let by_a = DeleteScope::ByReader { reader: reader(A), service: service(), id: id("t") };
    assert_eq!(store.delete(by_a).await.unwrap(), 2, "for all");
    assert_eq!(find(&store, B, "t").await, None);
}

#[tokio::test]
async fn a_wide_forget_removes_thousands() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    let tasks = (0..2500).map(|n| task(&n.to_string(), "text")).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    assert_eq!(store.delete(DeleteScope::OlderThan(Duration::from_secs(3600))).await.unwrap(), 0);
    assert_eq!(store.delete(DeleteScope::Service(service())).await.unwrap(), 2500);
    assert_eq!(store.stats().tasks, 0);
}

async fn forget_beside(config: &StoreConfig, scope: &DeleteScope) -> u64 {
    let mut beside = StoreMaintenance::open(config).await.unwrap();
    let removed = beside.delete(scope).await.unwrap();
    beside.close().await.unwrap();
    removed
}

#[tokio::test]
async fn a_forget_by_another_process_is_seen_within_a_second() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    let epoch = store.epoch();
    let config = StoreConfig { url: disk.url(), ..StoreConfig::default() };
    let start = Instant::now();
    let scope = DeleteScope::Task { service: service(), id: id("t") };
    assert_eq!(forget_beside(&config, &scope).await, 1);
    let late = store.insert(&reader(A), &service(), epoch, vec![task("t", "late")]).await;
    assert_eq!(late, [false], "at once for what is stored");
    eventually("memory is cleared", || async { find(&store, A, "t").await.is_none() }).await;
    assert!(start.elapsed() < Duration::from_secs(1));
    eventually("the epoch goes on", || async { keep(&store, A, "t", "fresh").await }).await;
    assert_eq!(store.stats().tasks, 1);
    let tasks = (0..2500).map(|n| task(&n.to_string(), "text")).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    assert_eq!(forget_beside(&config, &DeleteScope::Service(service())).await, 2501);
    eventually("counted", || async { store.stats().tasks == 0 }).await;
    store.close().await;
    assert_eq!(forget_beside(&config, &scope).await, 0, "without a proxy too");
    let missing = StoreConfig { url: config.url.clone() + "x", ..config };
    assert!(matches!(StoreMaintenance::open(&missing).await, Err(StoreError::Missing { .. })));
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
