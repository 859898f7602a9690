//! Panics in calls.

use super::backend::{REFUSED, Reply};
use super::harness::*;
use crate::batcher::LookupFailure;

#[tokio::test(start_paused = true)]
async fn panicked_call_fails_its_lookups_and_the_queue_goes_on() {
    let harness = Harness::new();
    harness.add_final("a");
    harness.add_final("b");
    harness.script([Reply::Panic]);
    let callers = [harness.start(batch(&["a", "b"])), harness.start(long_poll(single("a"), 60.0))];
    for caller in callers {
        for outcome in caller.await.unwrap().outcomes.iter().flatten() {
            assert!(matches!(failure(outcome), LookupFailure::Internal));
        }
    }
    assert!(harness.elapsed() < seconds(0.1));
    assert!(is_final(&harness.look_up_one("a").await));
    assert!(is_final(&harness.look_up_one("b").await));
    harness.start_sweep();
    sleep(10.0).await;
    harness.assert_sizes(0, 0);
}

#[tokio::test(start_paused = true)]
async fn panicked_insert_fails_its_lookups_and_the_queue_goes_on() {
    let harness = Harness::new();
    harness.add_final("a");
    harness.add_pending("b");
    harness.set_insert_panics(true);
    let result = harness.look_up(lenient(batch(&["a", "b"]))).await;
    assert!(
        result.outcomes.iter().flatten().all(|outcome| matches!(failure(outcome), LookupFailure::Internal))
    );
    harness.set_insert_panics(false);
    assert!(is_final(&harness.look_up_one("a").await));
    pending_record(&harness.look_up_one("b").await);
}

#[tokio::test(start_paused = true)]
async fn panicked_probe_permits_the_next_probe() {
    let harness = Harness::new();
    harness.script([Reply::Error(REFUSED), Reply::Panic]);
    harness.look_up_one("a").await;
    sleep(1.1).await;
    assert!(matches!(failure(&harness.look_up_one("a").await), LookupFailure::Internal));
    harness.add_final("a");
    assert!(is_final(&harness.look_up_one("a").await));
}
