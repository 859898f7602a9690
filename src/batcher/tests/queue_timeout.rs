//! Lookups that wait in the queue for too long, and ids that stay queued for them.

use super::backend::Reply;
use super::harness::*;
use crate::batcher::{LookupFailure, TaskOutcome};

/// Fills the queue with other ids for about that many seconds.
fn fill_queue(harness: &Harness, length: usize) {
    let ids = numbered("other", 50 * length);
    ids.iter().for_each(|name| harness.add_pending(name));
    harness.start(long_poll(batch(&ids), length as f64));
}

#[tokio::test(start_paused = true)]
async fn queue_timeout_serves_a_young_snapshot_with_its_age() {
    let harness = Harness::new();
    harness.add_pending("a");
    let first = pending_record(&harness.look_up_one("a").await);
    fill_queue(&harness, 12);
    sleep(4.0).await;
    let start = harness.elapsed();
    let pending = pending_record(&harness.look_up_one("a").await);
    assert_eq!(harness.elapsed() - start, seconds(5.0));
    assert_eq!((&pending.record, pending.is_cached), (&first.record, true));
    assert_eq!(harness.elapsed() - made_at(pending.record.as_bytes()), pending.age);
    // The id stays queued without a waiter and is fetched in its turn.
    sleep(5.0).await;
    assert_eq!(harness.called_ids().iter().filter(|ids| ids.contains(&"a".to_owned())).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn queue_timeout_without_a_snapshot_returns_the_estimate() {
    let harness = Harness::new();
    fill_queue(&harness, 9);
    sleep(0.5).await;
    let start = harness.elapsed();
    harness.hold_calls();
    let outcome = harness.look_up_one("new").await;
    assert_eq!(harness.elapsed() - start, seconds(5.0));
    let LookupFailure::QueueTimeout { retry_after } = *failure(&outcome) else { panic!("{outcome:?}") };
    // All 451 ids are queued or in flight.
    assert_eq!(retry_after, seconds(10.0));
}

#[tokio::test(start_paused = true)]
async fn queue_timeout_does_not_serve_an_old_snapshot() {
    let harness = Harness::with(|upstream, _| upstream.requests_per_second = 0.1);
    harness.add_pending("a");
    harness.look_up_one("a").await;
    sleep(10.5).await;
    harness.look_up_one("other").await;
    sleep(3.9).await;
    // The snapshot is younger than two cycles of one call each.
    let age = pending_record(&harness.look_up_one("a").await).age;
    assert!((19.3..19.5).contains(&age.as_secs_f64()), "{age:?}");

    let harness = Harness::new();
    harness.add_pending("a");
    harness.look_up_one("a").await;
    harness.script([Reply::too_many_requests("60")]);
    sleep(2.0).await;
    harness.look_up_one("b").await;
    sleep(14.0).await;
    assert!(matches!(failure(&harness.look_up_one("a").await), LookupFailure::QueueTimeout { .. }));
}

#[tokio::test(start_paused = true)]
async fn id_stays_queued_after_a_queue_timeout() {
    let harness = Harness::new();
    fill_queue(&harness, 12);
    sleep(0.5).await;
    harness.add_final("z");
    // No id has a snapshot, and this one was queued last, so it is fetched last.
    assert!(matches!(failure(&harness.look_up_one("z").await), LookupFailure::QueueTimeout { .. }));
    sleep(9.0).await;
    assert_eq!(harness.stored_ids(), ["z"]);
}

#[tokio::test(start_paused = true)]
async fn id_is_dropped_pending_max_stale_after_its_last_lookup() {
    let harness = Harness::new();
    fill_queue(&harness, 30);
    sleep(0.5).await;
    harness.add_final("z");
    assert!(matches!(failure(&harness.look_up_one("z").await), LookupFailure::QueueTimeout { .. }));
    sleep(60.0).await;
    assert!(harness.stored_ids().is_empty());
    assert!(!harness.called_ids().concat().contains(&"z".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn id_of_a_cancelled_lookup_is_dropped() {
    let harness = Harness::new();
    fill_queue(&harness, 12);
    sleep(0.5).await;
    harness.add_final("z");
    let caller = harness.start(single("z"));
    sleep(3.0).await;
    caller.abort();
    sleep(30.0).await;
    assert!(!harness.called_ids().concat().contains(&"z".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn backoff_does_not_count_as_queueing() {
    let harness = Harness::new();
    harness.add_final("a");
    harness.script([Reply::status(500), Reply::status(500), Reply::status(500)]);
    let outcome = harness.look_up_one("a").await;
    assert!(harness.elapsed() > seconds(7.0));
    assert!(is_final(&outcome));
}

#[tokio::test(start_paused = true)]
async fn cycle_counts_the_calls_of_ids_left_out() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    let _callers: Vec<_> = numbered("gone", 10).iter().map(|name| harness.start(single(name))).collect();
    sleep(1.1).await;
    harness.add_pending("a");
    let result = harness.look_up(batch(&["a"])).await;
    assert!(result.cycle >= seconds(8.0), "{:?}", result.cycle);
}

#[tokio::test(start_paused = true)]
async fn repeated_large_batch_makes_progress() {
    let harness = Harness::new();
    let ids = numbered("a", 2000);
    ids.iter().for_each(|name| harness.add_final(name));
    let mut known = 0;
    for round in 0.. {
        // Stored ids are not looked up again.
        let stored: std::collections::HashSet<String> = harness.stored_ids().into_iter().collect();
        assert!(round == 0 || stored.len() >= known + 200, "round {round}: {} of {known}", stored.len());
        known = stored.len();
        let missing: Vec<&String> = ids.iter().filter(|name| !stored.contains(*name)).collect();
        if missing.is_empty() {
            break;
        }
        let result = harness.look_up(batch(&missing)).await;
        let failed = result.outcomes.iter().flatten().filter_map(|outcome| match outcome {
            TaskOutcome::Failed(failure) => Some(failure),
            _ => None,
        });
        for failure in failed {
            assert!(matches!(failure, LookupFailure::QueueTimeout { .. }), "{failure:?}");
        }
        sleep(5.0).await;
    }
    assert_eq!(harness.call_count(), 40);
    assert!(harness.called_ids().iter().all(|ids| ids.len() == 50));
}
