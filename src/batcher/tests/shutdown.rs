//! Drain and deadline of a shutdown.

use super::backend::Reply;
use super::harness::*;
use crate::batcher::{LookupFailure, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn drain_serves_snapshots_to_long_polls() {
    let harness = Harness::new();
    harness.add_pending("a");
    harness.add_pending_aged("b", 1000);
    let callers =
        [harness.start(long_poll(single("a"), 60.0)), harness.start(long_poll(batch(&["a", "b"]), 60.0))];
    sleep(10.3).await;
    harness.shutdown.start_drain();
    for caller in callers {
        for outcome in caller.await.unwrap().outcomes.iter().flatten() {
            harness.assert_true_age(&pending_record(outcome));
        }
    }
    assert_eq!(harness.elapsed(), seconds(10.3));
}

#[tokio::test(start_paused = true)]
async fn drain_still_fetches_ids_without_a_snapshot() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    harness.add_final("a");
    harness.add_pending("b");
    let callers = [harness.start(single("a")), harness.start(long_poll(single("b"), 60.0))];
    harness.shutdown.start_drain();
    let [a, b] = callers;
    assert!(is_final(&only_outcome(a.await.unwrap())));
    pending_record(&only_outcome(b.await.unwrap()));
    assert!(harness.elapsed() < seconds(1.1));
    // A new long poll is not delayed.
    let before = harness.elapsed();
    pending_record(&only_outcome(harness.look_up(long_poll(single("b"), 60.0)).await));
    assert!(harness.elapsed() - before < seconds(1.1));
}

#[tokio::test(start_paused = true)]
async fn deadline_fails_every_lookup_and_stops_calls() {
    let harness = Harness::new();
    harness.hold_calls();
    // One call in flight, ids queued behind it, and a call of another token that waits for its
    // retry.
    let first = harness.start(single("a"));
    sleep(0.1).await;
    let queued = harness.start(batch(&numbered("b", 120)));
    let waiter = harness.start(long_poll(single("c"), 60.0));
    harness.script([Reply::status(500)]);
    let backing_off = harness.start_as(&client("u"), single("a"));
    sleep(0.1).await;
    let calls = harness.call_count();
    harness.shutdown.start_drain();
    sleep(0.1).await;
    assert!(!first.is_finished() && !queued.is_finished());
    harness.shutdown.reach_deadline();
    for caller in [first, queued, waiter, backing_off] {
        let result = caller.await.unwrap();
        assert!(
            result
                .outcomes
                .iter()
                .flatten()
                .all(|outcome| matches!(failure(outcome), LookupFailure::ShuttingDown))
        );
        assert!(result.outcomes.iter().flatten().next().is_some());
    }
    let before = harness.elapsed();
    harness.batcher.stopped().await;
    assert_eq!(harness.elapsed(), before);
    // New lookups fail, and no call is sent.
    assert!(matches!(failure(&harness.look_up_one("z").await), LookupFailure::ShuttingDown));
    harness.release_calls();
    sleep(60.0).await;
    assert_eq!(harness.call_count(), calls);
}

#[tokio::test(start_paused = true)]
async fn call_that_ends_at_the_deadline_does_no_harm() {
    let harness = Harness::new();
    harness.add_final("a");
    harness.hold_calls();
    let caller = harness.start(single("a"));
    sleep(0.1).await;
    harness.shutdown.reach_deadline();
    harness.release_calls();
    let outcome = only_outcome(caller.await.unwrap());
    assert!(
        matches!(outcome, TaskOutcome::Failed(LookupFailure::ShuttingDown) | TaskOutcome::Final { .. }),
        "{outcome:?}"
    );
    harness.batcher.stopped().await;
}
