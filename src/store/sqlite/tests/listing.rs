//! Listings: complete, and bounded in the number of rows examined.

use super::*;
use crate::store::sqlite::listing::{BY_ID, COUNT_OF_SERVICE, DETAILS, NEWEST, NEWEST_OF_SMALL_SERVICE};
use crate::store::sqlite::maintenance::selection::{COUNT_IDS, FIRST_IDS};
use crate::store::sqlite::records::{NEXT_SERVICE, ROWS_OF_ID};

#[tokio::test]
async fn every_statement_uses_an_index_and_none_sorts() {
    let db = TestDatabase::new();
    db.open().await.close().await;
    let mut conn = db.connect().await;
    for (sql, steps) in [
        (NEWEST, &["SEARCH task USING INTEGER PRIMARY KEY (rowid<?)"][..]),
        (
            COUNT_OF_SERVICE,
            &[
                "CO-ROUTINE (subquery-1)",
                "SEARCH task USING COVERING INDEX task_by_id (service=?)",
                "SCAN (subquery-1)",
            ],
        ),
        (
            NEWEST_OF_SMALL_SERVICE,
            &[
                "SEARCH task USING INTEGER PRIMARY KEY (rowid=?)",
                "LIST SUBQUERY 1",
                "SEARCH task USING COVERING INDEX task_by_id (service=?)",
                "CREATE BLOOM FILTER",
            ],
        ),
        (BY_ID, &["SEARCH task USING INDEX task_by_id (service=? AND id>? AND id<?)"]),
        (ROWS_OF_ID, &["SEARCH task USING INDEX task_by_id (service=? AND id=?)"]),
        (NEXT_SERVICE, &["SEARCH task USING COVERING INDEX task_by_id (service>?)"]),
    ] {
        assert_eq!(query_plan(&mut conn, sql).await, steps, "{sql}");
    }
    let steps = query_plan(&mut conn, DETAILS).await;
    assert!(steps[0].starts_with("SCAN j VIRTUAL TABLE"), "{steps:?}");
    assert_eq!(steps[1], "SEARCH t USING INTEGER PRIMARY KEY (rowid=?)", "{steps:?}");
    assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{steps:?}");
    let grants = "SEARCH g USING PRIMARY KEY (service=? AND id=?)";
    assert!(steps.iter().any(|step| step == grants), "{steps:?}");
}

#[tokio::test]
async fn ids_with_a_beginning_are_a_range_of_the_index() {
    let db = TestDatabase::new();
    db.open().await.close().await;
    let mut conn = db.connect().await;
    for sql in [COUNT_IDS, FIRST_IDS] {
        let steps = query_plan(&mut conn, sql).await;
        let range = "SEARCH task USING COVERING INDEX task_by_id (service=? AND id>? AND id<?)";
        assert!(steps.iter().any(|step| step == range), "{steps:?}");
    }
}

/// Opens a store with a number of small tasks. The first 2 are of one service, the next 5,002 of
/// another.
async fn filled(db: &TestDatabase, tasks: u32) -> Store {
    db.open().await.close().await;
    let mut conn = db.connect().await;
    sqlx::query(
        r#"WITH RECURSIVE n(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
           INSERT INTO task (service, id, checksum, size, stored_at, used_hour, record)
           SELECT CASE WHEN n < 3 THEN 'rare' WHEN n < 5005 THEN 'old' ELSE 'producer' END,
                  CAST(printf('t-%07d', n) AS BLOB), 0, 60, n, 0,
                  CAST(printf('{"response":{"title":"song %d"}}', n) AS BLOB) FROM n"#,
    )
    .bind(tasks)
    .execute(&mut conn)
    .await
    .unwrap();
    conn.close().await.unwrap();
    db.open().await
}

/// Reads all pages of a listing. Returns the ids and the number of pages.
async fn all(store: &Store, filter: &TaskFilter, limit: usize) -> (Vec<String>, usize) {
    let (mut ids, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let listed = store.list(filter, cursor, limit).await.unwrap();
        assert!(listed.tasks.len() <= limit);
        ids.extend(listed.tasks.iter().map(|task| task.id.as_str().to_owned()));
        pages += 1;
        let Some(next) = listed.next else { return (ids, pages) };
        // The form in which a client sends it back.
        assert_eq!(ListCursor::parse(&next.to_string()), Some(next.clone()));
        assert!(filter.accepts(&next));
        cursor = Some(next);
    }
}

#[tokio::test]
async fn page_examines_a_bounded_number_of_rows_and_has_a_cursor() {
    let db = TestDatabase::new();
    let store = filled(&db, 25_000).await;
    let rare = TaskFilter { service: Some(Service::parse("rare").unwrap()), ..TaskFilter::default() };
    let two = ["t-0000002".to_owned(), "t-0000001".to_owned()];
    assert_eq!(all(&store, &rare, 50).await, (two.to_vec(), 1));
    assert_eq!(all(&store, &rare, 1).await, (two.to_vec(), 2));
    let old = TaskFilter { service: Some(Service::parse("old").unwrap()), ..TaskFilter::default() };
    let first = store.list(&old, None, 200).await.unwrap();
    assert_eq!((first.tasks.len(), first.next), (0, Some(ListCursor::Row(15_001))));
    let (ids, _) = all(&store, &old, 200).await;
    assert_eq!((ids.len(), &ids[0][..], &ids[5001][..]), (5002, "t-0005004", "t-0000003"));

    let titled = TaskFilter { title: Some("SONG 24".to_owned()), ..TaskFilter::default() };
    let listed = store.list(&titled, None, 50).await.unwrap();
    assert_eq!(listed.tasks.len(), 50);
    assert_eq!(listed.tasks[0].id.as_str(), "t-0024999");
    let titled = TaskFilter { title: Some("song 7".to_owned()), ..TaskFilter::default() };
    let listed = store.list(&titled, None, 50).await.unwrap();
    assert_eq!((listed.tasks.len(), listed.next), (0, Some(ListCursor::Row(23_001))));

    // A listing by id examines only rows with the prefix.
    for (service, prefix, limit, expected, most_pages) in [
        (Some("rare"), "t-", 50, 2, 1),
        (None, "t-000000", 50, 9, 3),
        (None, "t-000000", 2, 9, 8),
        (None, "t-00001", 10, 100, 13),
        (None, "t-0025000", 50, 1, 3),
        (None, "t-_", 50, 0, 3),
        (None, "T-", 50, 0, 3),
        (None, "t-0000001x", 50, 0, 3),
    ] {
        let filter = TaskFilter {
            service: service.map(|name| Service::parse(name).unwrap()),
            id_prefix: Some(prefix.to_owned()),
            ..TaskFilter::default()
        };
        let (ids, pages) = all(&store, &filter, limit).await;
        assert_eq!(ids.len(), expected, "{prefix}");
        assert!(
            ids.iter().all(|id| id.starts_with(prefix)) && pages <= most_pages,
            "{prefix} {pages}: {ids:?}"
        );
    }

    let between = TaskFilter { stored_after: Some(100), stored_before: Some(103), ..TaskFilter::default() };
    assert_eq!(all(&store, &between, 50).await.0, ["t-0000102", "t-0000101", "t-0000100"]);
    let everything = all(&store, &TaskFilter::default(), 200).await;
    assert_eq!((everything.0.len(), everything.1), (25_000, 125), "the last page has no cursor");
}
