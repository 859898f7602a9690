//! Deletes, by this process or by a command beside it.

use super::*;

#[tokio::test]
async fn delete_wins_over_a_late_response() {
    let db = TestDatabase::new();
    let store = db.open().await;
    let scopes = [
        DeleteScope::Task { service: service(), id: id("t") },
        DeleteScope::Service(service()),
        DeleteScope::OlderThan(Duration::ZERO),
        DeleteScope::ByReader { reader: reader(A), service: service(), id: id("t") },
    ];
    for scope in scopes {
        assert!(insert(&store, A, "t", "text").await);
        let epoch = store.epoch();
        assert_eq!(store.delete(scope.clone()).await.unwrap(), 1, "{scope:?}");
        assert_eq!(get(&store, A, "t").await, None, "{scope:?}");
        let late = store.insert(&reader(A), &service(), epoch, vec![task("t", "late")]).await;
        assert_eq!(late, [false], "{scope:?}");
        assert_eq!(get(&store, A, "t").await, None, "{scope:?}");
        assert!(insert(&store, A, "t", "fresh").await, "a call that began later may store it, {scope:?}");
        assert_eq!(store.delete(DeleteScope::Service(service())).await.unwrap(), 1);
    }
    assert_eq!((store.stats().tasks, store.stats().bytes), (0, 0));
}

#[tokio::test]
async fn delete_by_reader_without_grant_removes_no_rows() {
    let db = TestDatabase::new();
    let store = db.open().await;
    assert!(insert(&store, A, "t", "text").await);
    let epoch = store.epoch();
    let by_b = DeleteScope::ByReader { reader: reader(B), service: service(), id: id("t") };
    assert_eq!(store.delete(by_b).await.unwrap(), 0);
    assert_eq!(get(&store, A, "t").await.as_deref(), Some("text"));
    assert_eq!(store.insert(&reader(B), &service(), epoch, vec![task("t", "late")]).await, [false]);

    assert!(insert(&store, B, "t", "other text").await);
    let by_a = DeleteScope::ByReader { reader: reader(A), service: service(), id: id("t") };
    assert_eq!(store.delete(by_a).await.unwrap(), 2, "for all readers");
    assert_eq!(get(&store, B, "t").await, None);
}

#[tokio::test]
async fn delete_of_a_service_removes_thousands_of_rows() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    let tasks = (0..2500).map(|n| task(&n.to_string(), "text")).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    assert_eq!(store.delete(DeleteScope::OlderThan(Duration::from_secs(3600))).await.unwrap(), 0);
    assert_eq!(store.delete(DeleteScope::Service(service())).await.unwrap(), 2500);
    assert_eq!(store.stats().tasks, 0);
}

/// Deletes with a command beside the store.
async fn delete_beside(config: &StoreConfig, scope: &DeleteScope) -> u64 {
    let mut beside = StoreMaintenance::open(config).await.unwrap();
    let removed = beside.delete(scope).await.unwrap();
    beside.close().await.unwrap();
    removed
}

#[tokio::test]
async fn delete_by_another_process_is_seen_within_a_second() {
    let db = TestDatabase::new();
    let store = db.open().await;
    assert!(insert(&store, A, "t", "text").await);
    let epoch = store.epoch();
    let config = StoreConfig { url: db.url(), ..StoreConfig::default() };
    let start = Instant::now();
    let scope = DeleteScope::Task { service: service(), id: id("t") };
    assert_eq!(delete_beside(&config, &scope).await, 1);
    let late = store.insert(&reader(A), &service(), epoch, vec![task("t", "late")]).await;
    assert_eq!(late, [false], "inserts see it at once");
    eventually("memory is cleared", || async { get(&store, A, "t").await.is_none() }).await;
    assert!(start.elapsed() < Duration::from_secs(1));
    eventually("the epoch advances", || async { insert(&store, A, "t", "fresh").await }).await;
    assert_eq!(store.stats().tasks, 1);
    let tasks = (0..2500).map(|n| task(&n.to_string(), "text")).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    assert_eq!(delete_beside(&config, &DeleteScope::Service(service())).await, 2501);
    eventually("the counter is updated", || async { store.stats().tasks == 0 }).await;
    store.close().await;
    assert_eq!(delete_beside(&config, &scope).await, 0, "without a proxy too");
    let missing = StoreConfig { url: config.url.clone() + "x", ..config };
    assert!(matches!(StoreMaintenance::open(&missing).await, Err(StoreError::Missing(_))));
}
