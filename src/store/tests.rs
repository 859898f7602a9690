//! The guarantees of the store, with a real database file.

mod concurrent_reads;
mod deletes;

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::telemetry::{Label, StoreErrorKind};

/// A directory with a database file.
pub(super) struct TestDatabase {
    pub(super) dir: TempDir,
    pub(super) limits: StoreLimits,
    pub(super) metrics: Arc<Metrics>,
}

impl TestDatabase {
    pub(super) fn new() -> Self {
        let limits = StoreLimits::from(&StoreConfig { memory_bytes: 1 << 20, ..StoreConfig::default() });
        Self { dir: tempfile::tempdir().unwrap(), limits, metrics: Arc::default() }
    }

    /// Without the memory cache, so that all reads go to the file.
    pub(super) fn without_memory() -> Self {
        let mut db = Self::new();
        db.limits.memory_bytes = 0;
        db
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("refrain.db")
    }

    pub(super) fn url(&self) -> String {
        format!("sqlite://{}", self.path().display())
    }

    pub(super) async fn try_open(&self) -> Result<Store, StoreError> {
        Store::open_with_limits(&self.url(), self.limits.clone(), Arc::clone(&self.metrics)).await
    }

    pub(super) async fn open(&self) -> Store {
        self.try_open().await.unwrap()
    }

    /// Number of errors of a kind so far.
    pub(super) fn errors(&self, kind: &'static str) -> u64 {
        let kind = StoreErrorKind::ALL.iter().find(|known| known.as_str() == kind).expect("a kind of error");
        self.metrics.store_errors.get(*kind)
    }
}

pub(super) const A: [u8; 32] = [1; 32];
pub(super) const B: [u8; 32] = [2; 32];

pub(super) fn reader(bytes: [u8; 32]) -> Digest {
    Digest::from(bytes)
}

pub(super) fn service() -> Service {
    Service::parse("producer").unwrap()
}

pub(super) fn id(id: &str) -> TaskId {
    TaskId::parse(id).unwrap()
}

pub(super) fn task(id: &str, record: &str) -> FinalRecord {
    FinalRecord { id: self::id(id), json: Bytes::copy_from_slice(record.as_bytes()) }
}

pub(super) async fn insert(store: &Store, by: [u8; 32], name: &str, record: &str) -> bool {
    store.insert(&reader(by), &service(), store.epoch(), vec![task(name, record)]).await == [true]
}

pub(super) async fn get(store: &Store, by: [u8; 32], name: &str) -> Option<String> {
    let mut found = store.get(&reader(by), &service(), &[id(name)], u64::MAX).await.unwrap();
    found.pop().unwrap().map(|task| String::from_utf8(task.record.to_vec()).unwrap())
}

/// Returns the record if it is in the memory cache.
pub(super) fn get_cached(store: &Store, by: [u8; 32], name: &str) -> Option<Bytes> {
    let mut found = store.get_cached(&reader(by), &service(), &[id(name)], u64::MAX, Some)?;
    found.pop().unwrap().map(|task| task.record)
}

/// Waits up to ten seconds until `condition` is true.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn records_over_the_size_limit_are_an_error() {
    for db in [TestDatabase::new(), TestDatabase::without_memory()] {
        let store = db.open().await;
        let ids: Vec<TaskId> = (0..10).map(|n| id(&n.to_string())).collect();
        let tasks =
            ids.iter().map(|id| FinalRecord { id: id.clone(), json: vec![b'x'; 100].into() }).collect();
        let inserted = store.insert(&reader(A), &service(), store.epoch(), tasks).await;
        assert!(inserted.iter().all(|inserted| *inserted));
        assert_eq!(store.get(&reader(A), &service(), &ids, 999).await, Err(ResultTooLarge));
        assert!(store.get(&reader(A), &service(), &ids, 1000).await.unwrap().iter().all(Option::is_some));
        store.close().await;
    }
}

#[tokio::test]
async fn record_is_returned_byte_for_byte_even_after_a_restart() {
    let db = TestDatabase::new();
    let store = db.open().await;
    let record = "{\"id\":\"t\",\"finished_at\":1.50e3,  \"x\":\"\\u00e4\u{0}\"}";
    assert!(insert(&store, A, "t", record).await);
    assert_eq!(get_cached(&store, A, "t").unwrap(), record);
    assert_eq!(get(&store, A, "t").await.as_deref(), Some(record));
    let key = *store.digest_key();
    store.close().await;
    assert!(!db.path().with_extension("db-wal").exists(), "the write-ahead log is gone");
    assert_eq!(store.readiness(), Err("the task store is closed"));
    assert!(!insert(&store, A, "u", "late").await);
    assert_eq!(get(&store, A, "t").await, None);

    let store = db.open().await;
    assert_eq!(get(&store, A, "t").await.as_deref(), Some(record));
    assert_eq!(*store.digest_key(), key);
    assert_eq!((store.stats().tasks, store.stats().bytes), (1, record.len() as u64));
    store.close().await;
    assert_eq!((db.errors("read"), db.errors("write")), (0, 0));
}

#[tokio::test]
async fn token_reads_only_records_that_it_received() {
    for db in [TestDatabase::new(), TestDatabase::without_memory()] {
        let store = db.open().await;
        assert!(insert(&store, A, "t", "same").await);
        assert_eq!(get(&store, B, "t").await, None);
        assert!(insert(&store, B, "t", "same").await);
        assert_eq!(get(&store, B, "t").await.as_deref(), Some("same"));
        assert_eq!(store.stats().tasks, 1, "the same bytes are stored once");

        assert!(insert(&store, A, "u", "of a").await);
        assert!(insert(&store, B, "u", "of b").await);
        assert_eq!(get(&store, A, "u").await.as_deref(), Some("of a"));
        assert_eq!(get(&store, B, "u").await.as_deref(), Some("of b"));
        assert!(insert(&store, A, "u", "of b").await, "a reader keeps its first record");
        assert_eq!(get(&store, A, "u").await.as_deref(), Some("of a"));
        let other = Service::parse("other").unwrap();
        assert_eq!(store.get(&reader(A), &other, &[id("u")], u64::MAX).await.unwrap(), [None]);
        store.close().await;
        let store = db.open().await;
        assert_eq!(get(&store, A, "u").await.as_deref(), Some("of a"));
        assert_eq!(get(&store, B, "u").await.as_deref(), Some("of b"));
        assert_eq!(
            store.get(&reader([3; 32]), &service(), &[id("t"), id("u")], u64::MAX).await.unwrap(),
            [None, None]
        );
    }
}

#[tokio::test]
async fn ten_thousand_ids_keep_their_order() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    let tasks: Vec<_> =
        (0..10_000).step_by(2).map(|n| task(&format!("id-{n}"), &format!("record {n}"))).collect();
    let inserted = store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    assert!(inserted.len() == 5000 && inserted.iter().all(|inserted| *inserted));
    let ids: Vec<_> = (0..10_000).rev().map(|n| id(&format!("id-{n}"))).collect();
    let found = store.get(&reader(A), &service(), &ids, u64::MAX).await.unwrap();
    for (id, found) in ids.iter().zip(found) {
        let n: u32 = id.as_str()[3..].parse().unwrap();
        assert_eq!(
            found.map(|task| task.record),
            n.is_multiple_of(2).then(|| Bytes::from(format!("record {n}")))
        );
    }
}

#[tokio::test]
async fn unusual_ids_are_distinct() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    let long = "x".repeat(1024);
    let ids = [
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
    let tasks = ids.iter().map(|name| task(name, &format!("record of {name}"))).collect();
    let inserted = store.insert(&reader(A), &service(), store.epoch(), tasks).await;
    assert!(inserted.iter().all(|inserted| *inserted));
    for name in ids {
        assert_eq!(get(&store, A, name).await, Some(format!("record of {name}")));
    }
    assert_eq!(store.stats().tasks, ids.len() as u64);
}

#[tokio::test]
async fn concurrent_inserts_are_all_committed() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    let inserts: Vec<_> = (0..300)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { insert(&store, A, &n.to_string(), &format!("record {n}")).await })
        })
        .collect();
    for insert in inserts {
        assert!(insert.await.unwrap());
    }
    store.close().await;
    let store = db.open().await;
    for n in 0..300 {
        assert_eq!(get(&store, A, &n.to_string()).await, Some(format!("record {n}")));
    }
}

#[tokio::test]
async fn acceptance_is_visible_at_once_and_after_a_restart() {
    let db = TestDatabase::new();
    let store = db.open().await;
    let accepted = TokenAcceptance { accepted_at: crate::clock::unix_now(), is_refused: false };
    assert_eq!(store.acceptance(&reader(A)).await, None);
    store.record_acceptance(reader(A), accepted);
    assert_eq!(store.acceptance(&reader(A)).await, Some(accepted));
    store.record_acceptance(reader(B), TokenAcceptance { is_refused: true, ..accepted });
    store.close().await;
    let store = db.open().await;
    assert_eq!(store.acceptance(&reader(A)).await, Some(accepted));
    assert_eq!(store.acceptance(&reader(B)).await, None, "it was never accepted");
    store.record_acceptance(reader(A), TokenAcceptance { is_refused: true, ..accepted });
    store.close().await;
    let store = db.open().await;
    assert!(store.acceptance(&reader(A)).await.unwrap().is_refused);
    assert!(insert(&store, B, "t", "text").await);
    assert_eq!(store.acceptance(&reader(B)).await, None, "a grant is not an acceptance");
}

#[tokio::test]
async fn hidden_task_is_not_listed_and_closed_store_is_unreadable() {
    let db = TestDatabase::new();
    let store = db.open().await;
    assert!(insert(&store, A, "a", "{}").await && insert(&store, A, "b", "{}").await);
    store.local.pending_deletes.add(DeleteScope::Task { service: service(), id: id("a") });
    let listed = store.list(&TaskFilter::default(), None, 50).await.unwrap();
    assert_eq!(listed.tasks.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["b"]);
    assert!(store.records(&service(), &id("a")).await.unwrap().is_empty());
    let records = store.records(&service(), &id("b")).await.unwrap();
    assert_eq!(
        (records.len(), records[0].record.as_deref(), &records[0].readers[..]),
        (1, Some(&b"{}"[..]), &[reader(A)][..])
    );
    store.close().await;
    assert!(matches!(store.list(&TaskFilter::default(), None, 50).await, Err(StoreError::Unreadable)));
    assert!(matches!(store.records(&service(), &id("b")).await, Err(StoreError::Unreadable)));
    assert_eq!(db.errors("read"), 0, "closing is not a failure");
}
