//! Listings are right, and quick however much is stored.

use proptest::prelude::*;

use super::super::listing::{
    BY_ID, COUNT_OF_SERVICE, DETAILS, ListCursor, NEWEST, NEWEST_OF_FEW, NEXT_SERVICE, TEXTS, TaskFilter,
};
use super::*;

async fn plan(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let sql = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
    let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(sql).fetch_all(conn).await.unwrap();
    steps.into_iter().map(|step| step.3).collect()
}

#[tokio::test]
async fn every_statement_goes_by_an_index_and_sorts_nothing() {
    let disk = Disk::new();
    disk.open().await.close().await;
    let mut conn = disk.connect().await;
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
            NEWEST_OF_FEW,
            &[
                "SEARCH task USING INTEGER PRIMARY KEY (rowid=?)",
                "LIST SUBQUERY 1",
                "SEARCH task USING COVERING INDEX task_by_id (service=?)",
                "CREATE BLOOM FILTER",
            ],
        ),
        (BY_ID, &["SEARCH task USING INDEX task_by_id (service=? AND id>? AND id<?)"]),
        (TEXTS, &["SEARCH task USING INDEX task_by_id (service=? AND id=?)"]),
        (NEXT_SERVICE, &["SEARCH task USING COVERING INDEX task_by_id (service>?)"]),
    ] {
        assert_eq!(plan(&mut conn, sql).await, steps, "{sql}");
    }
    let steps = plan(&mut conn, DETAILS).await;
    assert!(steps[0].starts_with("SCAN j VIRTUAL TABLE"), "{steps:?}");
    assert_eq!(steps[1], "SEARCH t USING INTEGER PRIMARY KEY (rowid=?)", "{steps:?}");
    assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{steps:?}");
    let rights = "SEARCH r USING PRIMARY KEY (service=? AND id=?)";
    assert!(steps.iter().any(|step| step == rights), "{steps:?}");
}

/// A file with so many small tasks, the first ones of other services: two, and more than a few.
async fn filled(disk: &Disk, tasks: u32) -> Store {
    disk.open().await.close().await;
    let mut conn = disk.connect().await;
    sqlx::query(
        r#"WITH RECURSIVE n(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
           INSERT INTO task (service, id, checksum, size, stored_at, used_hour, body)
           SELECT CASE WHEN n < 3 THEN 'rare' WHEN n < 5005 THEN 'old' ELSE 'producer' END, CAST(printf('t-%07d', n) AS BLOB), 0, 60, n, 0,
                  CAST(printf('{"response":{"title":"song %d"}}', n) AS BLOB) FROM n"#,
    )
    .bind(tasks)
    .execute(&mut conn)
    .await
    .unwrap();
    conn.close().await.unwrap();
    disk.open().await
}

/// All pages of a listing: the ids, and how many pages it took.
async fn all(store: &Store, filter: &TaskFilter, limit: usize) -> (Vec<String>, usize) {
    let (mut ids, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let listed = store.list(filter, cursor, limit).await.unwrap();
        assert!(listed.tasks.len() <= limit);
        ids.extend(listed.tasks.iter().map(|seen| seen.id.as_str().to_owned()));
        pages += 1;
        let Some(next) = listed.next else { return (ids, pages) };
        // As a client sends it back.
        assert_eq!(ListCursor::parse(&next.to_string()), Some(next.clone()));
        assert!(filter.takes(&next));
        cursor = Some(next);
    }
}

#[tokio::test]
async fn a_page_looks_at_a_bounded_number_of_rows_and_says_where_to_go_on() {
    let disk = Disk::new();
    let store = filled(&disk, 25_000).await;
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

    // By id nothing is looked at in vain, wherever it stands.
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
    assert_eq!((everything.0.len(), everything.1), (25_000, 125), "the last page is told as such");
}

#[tokio::test]
async fn what_is_hidden_is_not_listed_and_a_closed_store_says_that_it_cannot_be_read() {
    let disk = Disk::new();
    let store = disk.open().await;
    assert!(keep(&store, A, "a", "{}").await && keep(&store, A, "b", "{}").await);
    store.shared.hidden.add(DeleteScope::Task { service: service(), id: id("a") });
    let listed = store.list(&TaskFilter::default(), None, 50).await.unwrap();
    assert_eq!(listed.tasks.iter().map(|seen| seen.id.as_str()).collect::<Vec<_>>(), ["b"]);
    assert!(store.records(&service(), &id("a")).await.unwrap().is_empty());
    let texts = store.records(&service(), &id("b")).await.unwrap();
    assert_eq!(
        (texts.len(), texts[0].record.as_deref(), &texts[0].readers[..]),
        (1, Some(&b"{}"[..]), &[reader(A)][..])
    );
    store.close().await;
    assert!(matches!(store.list(&TaskFilter::default(), None, 50).await, Err(StoreError::Unreadable)));
    assert!(matches!(store.records(&service(), &id("b")).await, Err(StoreError::Unreadable)));
    assert_eq!(disk.errors("read"), 0, "closing is no failure");
}

proptest! {
    #[test]
    fn a_cursor_is_what_it_was_or_none(text in "[0-9a-z._+-]{0,20}|\\PC{0,20}", bytes in proptest::collection::vec(any::<u8>(), 0..20), row in 0_i64..) {
        if let Some(cursor) = ListCursor::parse(&text) {
            prop_assert_eq!(ListCursor::parse(&cursor.to_string()), Some(cursor));
        }
        let cursor = ListCursor::Id { service: service(), id: bytes, row };
        prop_assert_eq!(ListCursor::parse(&cursor.to_string()), Some(cursor));
    }
}
