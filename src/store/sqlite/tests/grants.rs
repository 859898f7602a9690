//! Grants and their checksums.

use super::*;
use crate::store::sqlite::sweep::delete_unused_readers;

#[tokio::test]
async fn grant_of_another_reader_is_not_accepted() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    assert!(insert(&store, A, "t", "of a").await && insert(&store, B, "u", "of b").await);
    let mut other = db.connect().await;
    let change = "UPDATE task_grant SET reader_id = (SELECT reader_id FROM reader WHERE digest = ?1)
                  WHERE reader_id <> (SELECT reader_id FROM reader WHERE digest = ?1)";
    sqlx::query(change).bind(&B[..]).execute(&mut other).await.unwrap();
    assert_eq!(get(&store, B, "t").await, None);
    assert_eq!(db.errors("checksum"), 1);
    assert_eq!(get(&store, B, "u").await.as_deref(), Some("of b"));
    other.close().await.unwrap();
}

/// A flipped bit may make a grant point to the row of another task.
#[tokio::test]
async fn grant_for_another_task_is_ignored_and_repaired() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    for name in ["t", "u"] {
        assert!(insert(&store, A, name, &format!("record of {name}")).await);
    }
    let mut other = db.connect().await;
    let change =
        "UPDATE task_grant SET task_id = (SELECT task_id FROM task WHERE id = x'75') WHERE id = x'74'";
    sqlx::query(change).execute(&mut other).await.unwrap();
    assert_eq!(get(&store, A, "t").await, None);
    assert_eq!(get(&store, A, "u").await.as_deref(), Some("record of u"), "the other grant stays");
    assert!(insert(&store, A, "t", "record of t").await);
    assert_eq!(get(&store, A, "t").await.as_deref(), Some("record of t"));
    assert_eq!((store.stats().tasks, db.errors("checksum")), (2, 0));
    assert_eq!(grants(&mut other).await, [(A.to_vec(), 2, 2)]);
    other.close().await.unwrap();
}

/// Returns each reader with the value of its counter and the number of its grants.
async fn grants(conn: &mut SqliteConnection) -> Vec<(Vec<u8>, i64, i64)> {
    let sql = "
        SELECT digest, COALESCE(grants, 0),
               (SELECT COUNT(*) FROM task_grant g WHERE g.reader_id = r.reader_id)
        FROM reader r LEFT JOIN reader_grants c ON c.reader_id = r.reader_id ORDER BY digest";
    sqlx::query_as(sql).fetch_all(conn).await.unwrap()
}

#[tokio::test]
async fn grants_are_deleted_with_their_task_and_counted() {
    let db = TestDatabase::without_memory();
    let store = db.open().await;
    for name in ["t", "u", "v"] {
        assert!(insert(&store, A, name, "text").await && insert(&store, B, name, "text").await);
    }
    assert!(insert(&store, B, "w", "text").await);
    let mut other = db.connect().await;
    assert_eq!(grants(&mut other).await, [(A.to_vec(), 3, 3), (B.to_vec(), 4, 4)]);
    assert_eq!(store.delete(DeleteScope::Task { service: service(), id: id("t") }).await.unwrap(), 1);
    assert_eq!(grants(&mut other).await, [(A.to_vec(), 2, 2), (B.to_vec(), 3, 3)]);
    assert_eq!(store.delete(DeleteScope::Service(service())).await.unwrap(), 3);
    assert_eq!(grants(&mut other).await, [(A.to_vec(), 0, 0), (B.to_vec(), 0, 0)]);

    assert!(insert(&store, B, "t", "text").await);
    delete_unused_readers(&mut other, crate::clock::unix_now()).await.unwrap();
    assert_eq!(grants(&mut other).await, [(B.to_vec(), 1, 1)], "a reader without grants is deleted");
    other.close().await.unwrap();
}
