//! Look-ups at the same time, which share their statements.

use std::pin::pin;

use futures_util::FutureExt;
use futures_util::future::join_all;

use super::*;

/// All are asked before the first is read: the test has one thread.
#[tokio::test]
async fn look_ups_at_the_same_time_get_each_their_own() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    let other = Service::parse("other").unwrap();
    let (a, b, stranger) = (reader(A), reader(B), reader([3; 32]));
    for n in 0..20 {
        assert!(keep(&store, A, &n.to_string(), &format!("{n} of a")).await);
        assert!(keep(&store, B, &n.to_string(), &format!("{n} of b")).await);
        let kept = vec![task(&n.to_string(), &format!("{n} elsewhere"))];
        assert_eq!(store.insert(&a, &other, store.epoch(), kept).await, [true]);
    }
    assert!(keep(&store, A, "long", &"x".repeat(100_000)).await);
    assert!(keep(&store, A, "both", "same").await && keep(&store, B, "both", "same").await);
    let asked = |by: Digest, service: Service, name: String, expected: Option<String>| {
        let store = store.clone();
        async move {
            // The second of three, so that places count.
            let ids = [id("none"), id(&name), id("neither")];
            let found = store.get(&by, &service, &ids, u64::MAX).await.unwrap();
            let texts: Vec<_> = found.into_iter().map(|task| task.map(|task| task.record)).collect();
            assert_eq!(texts, [None, expected.map(Bytes::from), None], "{name}");
        }
    };
    let asked = (0..20).flat_map(|n: u32| {
        let name = n.to_string();
        [
            asked(a, service(), name.clone(), Some(format!("{n} of a"))),
            asked(b, service(), name.clone(), Some(format!("{n} of b"))),
            asked(stranger, service(), name.clone(), None),
            asked(a, other.clone(), name.clone(), Some(format!("{n} elsewhere"))),
            asked(b, other.clone(), name, None),
            asked(a, service(), "long".to_owned(), Some("x".repeat(100_000))),
            asked(b, service(), "long".to_owned(), None),
            asked(b, service(), "both".to_owned(), Some("same".to_owned())),
        ]
    });
    join_all(asked).await;
    assert_eq!((disk.errors("read"), disk.errors("checksum")), (0, 0));
}

#[tokio::test]
async fn a_damaged_row_spoils_no_other_look_up() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    for n in 0..30 {
        assert!(keep(&store, A, &n.to_string(), &format!("number {n} to be damaged")).await);
    }
    store.close().await;
    overwrite(&disk, b"number 7 to be damaged", b"number 7 to bE");
    let store = disk.open().await;
    let names: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    let found = join_all(names.iter().map(|name| find(&store, A, name))).await;
    for (n, text) in found.into_iter().enumerate() {
        assert_eq!(text, (n != 7).then(|| format!("number {n} to be damaged")));
    }
    assert_eq!(disk.errors("checksum"), 1);
}

#[tokio::test]
async fn a_look_up_that_is_dropped_harms_none_of_the_others() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    // The first of them has begun the statement for all.
    assert_eq!(find(&store, A, "t").now_or_never(), None);
    let (one, other) = (find(&store, A, "t"), find(&store, A, "t"));
    assert_eq!(find(&store, A, "t").now_or_never(), None);
    assert_eq!(tokio::join!(one, other), (Some("text".to_owned()), Some("text".to_owned())));
    assert_eq!(find(&store, A, "t").await.as_deref(), Some("text"));
}

#[tokio::test]
async fn what_is_forgotten_while_it_is_read_does_not_come_back() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    store.shared.memory.clear();
    let mut reading = pin!(find(&store, A, "t"));
    assert_eq!((&mut reading).now_or_never(), None);
    let scope = DeleteScope::Task { service: service(), id: id("t") };
    assert_eq!(store.delete(scope).await.unwrap(), 1);
    // Read before it was forgotten, or not; both are true answers.
    reading.await;
    assert_eq!(store.get_from_memory(&reader(A), &service(), &id("t")), None);
    assert_eq!(find(&store, A, "t").await, None);
}

#[tokio::test]
async fn each_look_up_has_its_own_limit() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    let ids: Vec<TaskId> = (0..5).map(|n| id(&n.to_string())).collect();
    let tasks = ids.iter().map(|id| FinalRecord { id: id.clone(), json: vec![b'x'; 100].into() }).collect();
    store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    let by = reader(A);
    let of = service();
    let asked = (0..100).map(|n| store.get(&by, &of, &ids, if n % 2 == 0 { 500 } else { 499 }));
    for (n, found) in join_all(asked).await.into_iter().enumerate() {
        match found {
            Ok(found) => assert!(n % 2 == 0 && found.iter().all(Option::is_some)),
            Err(ResultTooLarge) => assert!(n % 2 == 1),
        }
    }
}

#[tokio::test]
async fn look_ups_end_with_the_store() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "text").await);
    let asked: Vec<_> = (0..50).map(|_| find(&store, A, "t")).collect();
    let start = Instant::now();
    let (found, ()) = tokio::join!(join_all(asked), store.close());
    assert!(found.into_iter().flatten().all(|text| text == "text"));
    assert!(start.elapsed() < FIND_TIMEOUT, "nobody is forgotten");
    assert_eq!(disk.errors("read"), 0);
}

/// Shared statements keep their connections, and listings may have theirs: the others still find one.
#[tokio::test]
async fn what_is_read_alone_finds_a_reader_beside_listings_and_shared_statements() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    let (text, other) = ("x".repeat(100_000), Service::parse("other").unwrap());
    assert!(keep(&store, A, "long", &text).await);
    let (by, ids) = (reader(A), [id("long")]);
    let readers = store.shared.readers().unwrap();
    // Both statements wait for a connection before one has any: neither can be done before the other begins.
    let mut held = Vec::new();
    for _ in 0..readers.options().get_max_connections() {
        held.push(readers.acquire().await.unwrap());
    }
    let release = async {
        tokio::task::yield_now().await;
        drop(held);
    };
    let (_, found, ()) =
        tokio::join!(find(&store, A, "none"), store.get(&by, &other, &ids, u64::MAX), release);
    assert_eq!((found, store.shared.groups.kept()), (Ok(vec![None]), 2));
    let _listings = (readers.acquire().await.unwrap(), readers.acquire().await.unwrap());
    assert!(find(&store, A, "long").await.as_deref() == Some(&*text));
    assert_eq!((store.acceptance(&by).await, disk.errors("read")), (None, 0));
}
