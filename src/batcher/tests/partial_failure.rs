//! Batches of which some ids fail.

use super::backend::Reply;
use super::harness::*;
use crate::batcher::TaskOutcome;

#[tokio::test(start_paused = true)]
async fn strict_batch_ends_at_the_first_failure() {
    let harness = Harness::new();
    let ids = numbered("a", 120);
    ids.iter().for_each(|name| harness.add_final(name));
    harness.script([Reply::Normal, Reply::status(403)]);
    let result = harness.look_up(batch(&ids)).await;
    assert!(harness.elapsed() < seconds(1.1));
    let failures =
        result.outcomes.iter().flatten().filter(|outcome| matches!(outcome, TaskOutcome::Failed(_)));
    assert_eq!(failures.count(), 50);
    assert_eq!(count_final(&result), 50);
    assert_eq!(result.outcomes.iter().filter(|outcome| outcome.is_none()).count(), 20);
    sleep(10.0).await;
    assert_eq!(harness.called_ids().iter().map(Vec::len).collect::<Vec<_>>(), [50, 50, 20]);
    assert_eq!(harness.stored_ids().len(), 70);
}

#[tokio::test(start_paused = true)]
async fn lenient_batch_waits_for_the_other_ids() {
    let harness = Harness::new();
    let ids = numbered("a", 120);
    ids.iter().for_each(|name| harness.add_final(name));
    harness.script([Reply::Normal, Reply::status(403)]);
    let result = harness.look_up(lenient(batch(&ids))).await;
    assert!(result.outcomes.iter().all(Option::is_some));
    assert_eq!(count_final(&result), 70);
}

#[tokio::test(start_paused = true)]
async fn status_401_fails_all_waiting_ids_at_once() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    harness.reply_with(|_| Some(Reply::status(401)));
    let caller = harness.start(batch(&numbered("a", 500)));
    let waiter = harness.start(long_poll(single("b"), 60.0));
    let other = harness.start_as(&client("u"), single("b"));
    assert_eq!(failure_status(&only_outcome(other.await.unwrap())), 401);
    assert!(!caller.is_finished());
    let result = caller.await.unwrap();
    assert!(result.outcomes.iter().flatten().all(|outcome| failure_status(outcome) == 401));
    assert_eq!(result.outcomes.iter().flatten().count(), 500);
    assert_eq!(failure_status(&only_outcome(waiter.await.unwrap())), 401);
    assert!(harness.elapsed() < seconds(1.1));
    sleep(30.0).await;
    assert_eq!(harness.call_count(), 2);
}
