//! Learnt durations of tasks.

use super::*;
use crate::clock;
use crate::task::{Durations, SavedDurations};

/// Models of one service: one for all types, one for `audios`.
fn learnt(seconds: f64) -> Durations {
    let durations = Durations::default();
    (0..30).for_each(|_| durations.record(&service(), Some("audios"), seconds));
    durations
}

fn sorted(mut durations: Vec<SavedDurations>) -> Vec<SavedDurations> {
    durations.sort_by(|one, other| one.kind.cmp(&other.kind));
    durations
}

#[tokio::test]
async fn saved_durations_are_there_after_a_restart() {
    let db = TestDatabase::new();
    let store = db.open().await;
    assert_eq!(store.durations().await, []);
    let (former, later) = (sorted(learnt(10.0).take_changed()), sorted(learnt(500.0).take_changed()));
    store.save_durations(former).await.unwrap();
    store.save_durations(later.clone()).await.unwrap();
    store.close().await;
    let refused = store.save_durations(later.clone()).await;
    assert!(matches!(refused, Err(StoreError::Unavailable)), "{refused:?}");

    let store = db.open().await;
    assert_eq!(sorted(store.durations().await), later);
    let loaded = Durations::default();
    loaded.load(store.durations().await);
    assert!(loaded.model(&service(), Some("audios")).quantile(0.5) > Some(400.0));
    store.close().await;
    assert_eq!((db.errors("read"), db.errors("write"), db.errors("checksum")), (0, 0, 0));
}

#[tokio::test]
async fn damaged_and_old_durations_are_ignored() {
    let db = TestDatabase::new();
    let store = db.open().await;
    store.save_durations(learnt(10.0).take_changed()).await.unwrap();
    let mut other = db.connect().await;
    for damage in [
        "UPDATE duration SET samples = samples + 1",
        "UPDATE duration SET weights = zeroblob(length(weights))",
        "UPDATE duration SET service = 'luma'",
    ] {
        sqlx::query("SAVEPOINT intact").execute(&mut other).await.unwrap();
        sqlx::query(damage).execute(&mut other).await.unwrap();
        let loaded = crate::store::sqlite::durations::load(&mut other).await.unwrap();
        assert_eq!((loaded.durations.len(), loaded.damaged), (0, 2), "{damage}");
        sqlx::query("ROLLBACK TO intact").execute(&mut other).await.unwrap();
        sqlx::query("RELEASE intact").execute(&mut other).await.unwrap();
    }
    assert_eq!(store.durations().await.len(), 2);

    sqlx::query("UPDATE duration SET updated_at = ?1 WHERE type = ''")
        .bind(clock::unix_now() - 91 * 24 * 3600)
        .execute(&mut other)
        .await
        .unwrap();
    store.save_durations(Vec::new()).await.unwrap();
    let left = store.durations().await;
    assert_eq!(left.iter().map(|saved| &*saved.kind).collect::<Vec<_>>(), ["audios"]);

    sqlx::query("UPDATE duration SET samples = 7").execute(&mut other).await.unwrap();
    assert_eq!((store.durations().await.len(), db.errors("checksum")), (0, 1));
    other.close().await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn durations_that_cannot_be_written_are_an_error() {
    let db = TestDatabase::new();
    let store = db.open().await;
    let mut other = db.connect().await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let changed = learnt(10.0).take_changed();
    assert!(store.save_durations(changed.clone()).await.is_err());
    assert!(db.errors("write") >= 1);
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    eventually("recovers", || async { store.save_durations(changed.clone()).await.is_ok() }).await;
    assert_eq!(store.durations().await.len(), 2);
    other.close().await.unwrap();
    store.close().await;
}
