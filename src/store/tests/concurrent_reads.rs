//! Reads at the same time, which share statements.

use std::pin::pin;

use futures_util::FutureExt;
use futures_util::future::join_all;

use super::*;

/// All reads are queued before the first statement runs, because the test has one thread.
#[tokio::test]
async fn concurrent_reads_each_get_their_own_tasks() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    let other = Service::parse("other").unwrap();
    let (a, b, stranger) = (reader(A), reader(B), reader([3; 32]));
    for n in 0..20 {
        assert!(insert(&store, A, &n.to_string(), &format!("{n} of a")).await);
        assert!(insert(&store, B, &n.to_string(), &format!("{n} of b")).await);
        let tasks = vec![task(&n.to_string(), &format!("{n} elsewhere"))];
        assert_eq!(store.insert(&a, &other, store.epoch(), tasks).await, [true]);
    }
    assert!(insert(&store, A, "long", &"x".repeat(100_000)).await);
    assert!(insert(&store, A, "both", "same").await && insert(&store, B, "both", "same").await);
    let read = |by: Digest, service: Service, name: String, expected: Option<String>| {
        let store = store.clone();
        async move {
            // The second of three ids, so that positions matter.
            let ids = [id("none"), id(&name), id("neither")];
            let found = store.get(&by, &service, &ids, u64::MAX).await.unwrap();
            let records: Vec<_> = found.into_iter().map(|task| task.map(|task| task.record)).collect();
            assert_eq!(records, [None, expected.map(Bytes::from), None], "{name}");
        }
    };
    let reads = (0..20).flat_map(|n: u32| {
        let name = n.to_string();
        [
            read(a, service(), name.clone(), Some(format!("{n} of a"))),
            read(b, service(), name.clone(), Some(format!("{n} of b"))),
            read(stranger, service(), name.clone(), None),
            read(a, other.clone(), name.clone(), Some(format!("{n} elsewhere"))),
            read(b, other.clone(), name, None),
            read(a, service(), "long".to_owned(), Some("x".repeat(100_000))),
            read(b, service(), "long".to_owned(), None),
            read(b, service(), "both".to_owned(), Some("same".to_owned())),
        ]
    });
    join_all(reads).await;
    assert_eq!((db.errors("read"), db.errors("checksum")), (0, 0));
}

#[tokio::test]
async fn cancelled_read_does_not_fail_the_others() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    assert!(insert(&store, A, "t", "text").await);
    // The first one has begun the statement, and is cancelled.
    assert_eq!(get(&store, A, "t").now_or_never(), None);
    let (one, other) = (get(&store, A, "t"), get(&store, A, "t"));
    assert_eq!(get(&store, A, "t").now_or_never(), None);
    assert_eq!(tokio::join!(one, other), (Some("text".to_owned()), Some("text".to_owned())));
    assert_eq!(get(&store, A, "t").await.as_deref(), Some("text"));
}

#[tokio::test]
async fn task_deleted_during_a_read_is_not_cached() {
    let db = TestDatabase::new();
    let store = db.open().await;
    assert!(insert(&store, A, "t", "text").await);
    store.local.memory.clear();
    let mut reading = pin!(get(&store, A, "t"));
    assert_eq!((&mut reading).now_or_never(), None);
    let scope = DeleteScope::Task { service: service(), id: id("t") };
    assert_eq!(store.delete(scope).await.unwrap(), 1);
    // The read may return the task or not, depending on which came first.
    reading.await;
    assert_eq!(get_cached(&store, A, "t"), None);
    assert_eq!(get(&store, A, "t").await, None);
}

#[tokio::test]
async fn concurrent_reads_have_their_own_size_limits() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    let ids: Vec<TaskId> = (0..5).map(|n| id(&n.to_string())).collect();
    let tasks = ids.iter().map(|id| FinalRecord { id: id.clone(), json: vec![b'x'; 100].into() }).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    let by = reader(A);
    let of = service();
    let reads = (0..100).map(|n| store.get(&by, &of, &ids, if n % 2 == 0 { 500 } else { 499 }));
    for (n, found) in join_all(reads).await.into_iter().enumerate() {
        match found {
            Ok(found) => assert!(n % 2 == 0 && found.iter().all(Option::is_some)),
            Err(ResultTooLarge) => assert!(n % 2 == 1),
        }
    }
}

#[tokio::test]
async fn close_ends_concurrent_reads() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    assert!(insert(&store, A, "t", "text").await);
    let reads: Vec<_> = (0..50).map(|_| get(&store, A, "t")).collect();
    let start = Instant::now();
    let (found, ()) = tokio::join!(join_all(reads), store.close());
    assert!(found.into_iter().flatten().all(|record| record == "text"));
    assert!(start.elapsed() < Duration::from_secs(5), "no read waits for its timeout");
    assert_eq!(db.errors("read"), 0);
}

#[tokio::test]
async fn readers_of_a_large_record_share_its_bytes() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    let text = "x".repeat(4 << 20);
    assert!(insert(&store, A, "t", &text).await && insert(&store, B, "t", &text).await);
    let read = async |by: [u8; 32]| {
        let mut found = store.get(&reader(by), &service(), &[id("t")], u64::MAX).await.unwrap();
        found.pop().unwrap().map(|task| task.record)
    };
    let mut held: Vec<Bytes> = join_all((0..50).map(|_| read(A))).await.into_iter().flatten().collect();
    assert_eq!(held.len(), 50);
    assert_eq!(read([3; 32]).await, None, "a reader without a grant");
    held.extend(read(B).await);
    assert!(held.iter().all(|record| *record == text && record.as_ptr() == held[0].as_ptr()));
    assert!(get_cached(&store, B, "t").is_some() && get_cached(&store, [3; 32], "t").is_none());
    // A record that is not in use is read again.
    held.clear();
    assert_eq!(get_cached(&store, A, "t"), None);
    held.extend(read(A).await);
    let scope = DeleteScope::Task { service: service(), id: id("t") };
    assert_eq!(store.delete(scope).await.unwrap(), 1);
    assert_eq!((get_cached(&store, A, "t"), read(A).await), (None, None));
    assert!(insert(&store, A, "t", &"y".repeat(4 << 20)).await);
    assert_ne!(read(A).await.unwrap(), held[0]);
}
