//! Rights: who may read what, in this schema and in files of the one before.

use std::borrow::Cow;

use sqlx::migrate::Migrator;

use super::*;

#[tokio::test]
async fn a_right_that_points_elsewhere_is_none() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    assert!(keep(&store, A, "t", "of a").await && keep(&store, B, "u", "of b").await);
    let mut other = disk.connect().await;
    let swap = "UPDATE task_right SET reader = (SELECT id FROM reader WHERE digest = ?1)
                WHERE reader <> (SELECT id FROM reader WHERE digest = ?1)";
    sqlx::query(swap).bind(&B[..]).execute(&mut other).await.unwrap();
    assert_eq!(find(&store, B, "t").await, None);
    assert_eq!(disk.errors("checksum"), 1);
    assert_eq!(find(&store, B, "u").await.as_deref(), Some("of b"));
    other.close().await.unwrap();
}

/// A right that leads nowhere, as a flipped bit may make it, shows nobody anything and is mended by the next answer.
#[tokio::test]
async fn a_right_that_leads_to_another_task_is_none_and_heals() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    for name in ["t", "u"] {
        assert!(keep(&store, A, name, &format!("text of {name}")).await);
    }
    let mut other = disk.connect().await;
    let lead_astray = "UPDATE task_right SET task = (SELECT row FROM task WHERE id = x'75') WHERE id = x'74'";
    sqlx::query(lead_astray).execute(&mut other).await.unwrap();
    assert_eq!(find(&store, A, "t").await, None);
    assert_eq!(find(&store, A, "u").await.as_deref(), Some("text of u"), "the innocent stays");
    assert!(keep(&store, A, "t", "text of t").await);
    assert_eq!(find(&store, A, "t").await.as_deref(), Some("text of t"));
    assert_eq!((store.stats().tasks, disk.errors("checksum")), (2, 0));
    assert_eq!(rights(&mut other).await, [(A.to_vec(), 2, 2)]);
    other.close().await.unwrap();
}

/// A bit flips in the id of the row itself, while index and right are sound.
#[tokio::test]
async fn a_row_that_lost_its_id_is_stored_again() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    assert!(keep(&store, A, "the-id", "the text of it").await);
    store.close().await;
    let mut bytes = std::fs::read(disk.path()).unwrap();
    let page = place(&bytes, b"the text of it") / 4096 * 4096;
    let at = page + place(&bytes[page..page + 4096], b"the-id");
    bytes[at] ^= 1;
    std::fs::write(disk.path(), bytes).unwrap();
    let store = disk.open().await;
    assert_eq!(find(&store, A, "the-id").await, None);
    assert!(keep(&store, A, "the-id", "the text of it").await);
    assert_eq!(find(&store, A, "the-id").await.as_deref(), Some("the text of it"));
}

/// Each reader with how many rights it has by its counter, and how many there are.
async fn rights(conn: &mut SqliteConnection) -> Vec<(Vec<u8>, i64, i64)> {
    let counted =
        "SELECT digest, COALESCE(rights, 0), (SELECT COUNT(*) FROM task_right t WHERE t.reader = r.id)
                   FROM reader r LEFT JOIN reader_rights c ON c.reader = r.id ORDER BY digest";
    sqlx::query_as(counted).fetch_all(conn).await.unwrap()
}

#[tokio::test]
async fn rights_leave_with_their_task_and_are_counted() {
    let disk = Disk::without_memory();
    let store = disk.open().await;
    for name in ["t", "u", "v"] {
        assert!(keep(&store, A, name, "text").await && keep(&store, B, name, "text").await);
    }
    assert!(keep(&store, B, "w", "text").await);
    let mut other = disk.connect().await;
    assert_eq!(rights(&mut other).await, [(A.to_vec(), 3, 3), (B.to_vec(), 4, 4)]);
    assert_eq!(store.delete(DeleteScope::Task { service: service(), id: id("t") }).await.unwrap(), 1);
    assert_eq!(rights(&mut other).await, [(A.to_vec(), 2, 2), (B.to_vec(), 3, 3)]);
    assert_eq!(store.delete(DeleteScope::Service(service())).await.unwrap(), 3);
    assert_eq!(rights(&mut other).await, [(A.to_vec(), 0, 0), (B.to_vec(), 0, 0)]);

    assert!(keep(&store, B, "t", "text").await);
    sweep::prune_readers(&mut other, crate::clock::unix_now()).await.unwrap();
    assert_eq!(rights(&mut other).await, [(B.to_vec(), 1, 1)], "who has nothing is let go");
    other.close().await.unwrap();
}

/// A file as the first schema had it: two texts of `t`, and one of `u` that both readers have.
async fn of_the_first_schema(disk: &Disk) -> SqliteConnection {
    let mut old = open::connect_writer(&disk.path()).await.unwrap();
    let first = open::MIGRATIONS.iter().take(1).cloned().collect();
    let first = Migrator { migrations: Cow::Owned(first), ..Migrator::DEFAULT };
    first.run_direct(None, &mut old, false).await.unwrap();
    sqlx::raw_sql("PRAGMA journal_mode = WAL; INSERT INTO meta (one, digest_key) VALUES (1, zeroblob(32))")
        .execute(&mut old)
        .await
        .unwrap();
    let stored = [("t", "of a", &[A][..]), ("t", "of b", &[B]), ("u", "of both", &[A, B])];
    for (row, (name, text, readers)) in (1..).zip(stored) {
        let sum = tasks::checksum(&service(), &id(name), text.as_bytes());
        let insert = "INSERT INTO task (row, service, id, checksum, size, stored_at, used_hour, body)
                      VALUES (?1, 'producer', ?2, ?3, ?4, 1767119785, 490866, ?5)";
        let size = i64::try_from(text.len()).unwrap();
        let insert = sqlx::query(insert).bind(row).bind(name.as_bytes()).bind(sum).bind(size);
        insert.bind(text.as_bytes()).execute(&mut old).await.unwrap();
        for by in readers {
            let seen = "INSERT INTO reader (digest) VALUES (?1) ON CONFLICT DO NOTHING";
            sqlx::query(seen).bind(&by[..]).execute(&mut old).await.unwrap();
            let right = "INSERT INTO task_right (reader, task, mark)
                         VALUES ((SELECT id FROM reader WHERE digest = ?1), ?2, ?3)";
            let mark = tasks::mark(&reader(*by), row, sum);
            sqlx::query(right).bind(&by[..]).bind(row).bind(mark).execute(&mut old).await.unwrap();
        }
    }
    old
}

#[tokio::test]
async fn a_store_of_the_first_schema_keeps_its_tasks_and_its_readers() {
    let disk = Disk::without_memory();
    of_the_first_schema(&disk).await.close().await.unwrap();
    let store = disk.open().await;
    for (by, expected) in
        [(A, [Some("of a"), Some("of both")]), (B, [Some("of b"), Some("of both")]), ([3; 32], [None, None])]
    {
        let found = [find(&store, by, "t").await, find(&store, by, "u").await];
        assert_eq!(found.each_ref().map(Option::as_deref), expected);
    }
    let mut other = disk.connect().await;
    assert_eq!(rights(&mut other).await, [(A.to_vec(), 2, 2), (B.to_vec(), 2, 2)]);
    let by_a = DeleteScope::ByReader { reader: reader(A), service: service(), id: id("t") };
    assert_eq!(store.delete(by_a).await.unwrap(), 2, "both texts of it");
    assert_eq!(rights(&mut other).await, [(A.to_vec(), 1, 1), (B.to_vec(), 1, 1)]);
    assert_eq!((disk.errors("checksum"), disk.errors("read"), disk.set_aside()), (0, 0, 0));
    other.close().await.unwrap();
}

/// Values of other types than were written do not keep the file from opening, however large it is.
#[tokio::test]
async fn damage_in_a_store_of_the_first_schema_costs_no_more_than_what_is_damaged() {
    let disk = Disk::without_memory();
    let mut old = of_the_first_schema(&disk).await;
    let damage = "
        PRAGMA writable_schema = ON;
        CREATE TEMP TABLE strict AS SELECT name, sql FROM sqlite_schema WHERE name IN ('task', 'task_right', 'reader');
        UPDATE sqlite_schema SET sql = replace(replace(sql, ') STRICT, ', ') '), ') STRICT', ')')
            WHERE name IN (SELECT name FROM strict);
        PRAGMA writable_schema = RESET;
        UPDATE task SET id = CAST(id AS TEXT) WHERE row = 1;
        UPDATE task_right SET mark = 1.5 WHERE task = 3 AND reader = 1;
        UPDATE reader SET digest = CAST(x'61' AS TEXT) WHERE id = 1;
        PRAGMA writable_schema = ON;
        UPDATE sqlite_schema SET sql = (SELECT sql FROM strict WHERE strict.name = sqlite_schema.name)
            WHERE name IN (SELECT name FROM strict);
        PRAGMA writable_schema = RESET;";
    sqlx::raw_sql(damage).execute(&mut old).await.unwrap();
    open::MIGRATIONS.run_direct(None, &mut old, false).await.unwrap();
    let left: Vec<(Vec<u8>, i64, i64)> =
        sqlx::query_as("SELECT id, reader, task FROM task_right ORDER BY id")
            .fetch_all(&mut old)
            .await
            .unwrap();
    assert_eq!(left, [(b"t".to_vec(), 2, 2), (b"u".to_vec(), 2, 3)]);
    // Nor do they fail what comes after.
    let now = crate::clock::unix_now();
    let fresh = [task("v", "text")];
    for by in [A, B] {
        tasks::keep(&mut old, &reader(by), &service(), i64::MAX, &fresh, now).await.unwrap();
    }
    for row in 2..5 {
        sqlx::query("DELETE FROM task WHERE row = ?1").bind(row).execute(&mut old).await.unwrap();
    }
    old.close().await.unwrap();
}
