//! Snapshots of pending records.

use super::harness::*;
use crate::batcher::{Freshness, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn snapshot_is_served_for_pending_max_age_then_fetched_again() {
    let harness = Harness::new();
    harness.add_pending("a");
    let first = pending_record(&harness.look_up_one("a").await);
    assert_eq!((first.age, first.is_cached), (seconds(0.0), false));
    sleep(0.9).await;
    let second = pending_record(&harness.look_up_one("a").await);
    let record = first.record.clone();
    assert_eq!(second, PendingRecord { record, age: seconds(0.9), is_cached: true });
    let in_a_batch = harness.look_up(batch(&["a"])).await;
    assert_eq!((in_a_batch.enqueued.joined, in_a_batch.enqueued.added), (0, 0));
    assert_eq!(pending_record(&only_outcome(in_a_batch)).record, first.record);
    assert_eq!(harness.call_count(), 1);
    sleep(0.11).await;
    let third = pending_record(&harness.look_up_one("a").await);
    assert!(!third.is_cached && third.record != first.record);
    assert_eq!(harness.call_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn max_age_of_a_lookup_limits_the_age_of_a_snapshot() {
    let harness = Harness::new();
    harness.add_pending("a");
    harness.look_up_one("a").await;
    sleep(0.5).await;
    assert!(pending_record(&only_outcome(harness.look_up(max_age(single("a"), 0.6)).await)).is_cached);
    assert_eq!(harness.call_count(), 1);
    let result = harness.look_up(max_age(single("a"), 0.4)).await;
    assert_eq!((result.enqueued.added, result.enqueued.outdated), (1, 1));
    assert!(!pending_record(&only_outcome(result)).is_cached);
    assert!(!pending_record(&only_outcome(harness.look_up(no_cache(single("a"))).await)).is_cached);
    assert_eq!(harness.call_count(), 3);
    assert_rate(&harness.calls(), 1.0, 1);
}

#[tokio::test(start_paused = true)]
async fn many_final_records_at_once_leave_snapshots_usable() {
    let harness = Harness::new();
    let poll = |number: u32| {
        let (harness, name) = (harness.clone(), format!("a{number}"));
        harness.add_final_after(&name, seconds(60.0));
        tokio::spawn(async move {
            sleep(0.03 * f64::from(number)).await;
            loop {
                match harness.look_up_one(&name).await {
                    TaskOutcome::Final { .. } => return,
                    TaskOutcome::Pending { .. } => sleep(1.0).await,
                    other => panic!("{:?}: {other:?}", harness.elapsed()),
                }
            }
        })
    };
    for poller in (0..1000).map(poll).collect::<Vec<_>>() {
        poller.await.unwrap();
    }
    assert!(harness.elapsed() < seconds(82.0), "{:?}", harness.elapsed());
}

#[tokio::test(start_paused = true)]
async fn discarded_result_is_fetched_again() {
    let harness = Harness::with(|upstream, _| upstream.burst = 10);
    harness.fill_bucket().await;
    harness.add_pending("a");
    let service = client("t").key().service;
    harness.look_up(batch(&["a", "gone"])).await;
    harness.batcher.discard_cached(&service, &id("a"));
    assert!(!pending_record(&harness.look_up_one("a").await).is_cached);
    assert_eq!(harness.call_count(), 2);
    harness.batcher.discard_all_cached();
    assert!(!pending_record(&harness.look_up_one("a").await).is_cached);
    assert!(matches!(
        only_outcome(harness.look_up(batch(&["gone"])).await),
        TaskOutcome::Unknown { freshness: Freshness::Fetched, .. }
    ));
    assert_eq!(harness.call_count(), 4);
}
