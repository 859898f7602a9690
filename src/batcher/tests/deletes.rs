//! Lookups that arrive after a delete never see what a call that began before it returns.

use super::backend::{Reply, final_json};
use super::harness::*;
use crate::batcher::TaskOutcome;
use crate::task::Service;

fn delete(harness: &Harness, name: &str) {
    harness.batcher.discard_cached(&Service::parse("producer").unwrap(), &id(name));
}

#[tokio::test(start_paused = true)]
async fn lookup_after_a_delete_does_not_join_an_earlier_call() {
    for later in [single("a"), batch(&["a"]), batch(&["a", "b"]), long_poll(single("a"), 10.0)] {
        let harness = Harness::new();
        harness.script([Reply::body(&final_json("a", "t"))]);
        harness.hold_calls();
        let before = harness.start(single("a"));
        sleep(0.1).await;
        // Another lookup joins the call first: it arrived before the delete.
        let joined = harness.start(single("a"));
        sleep(0.1).await;
        delete(&harness, "a");
        let after = harness.start(later.clone());
        sleep(3.0).await;
        harness.release_calls();
        for caller in [before, joined] {
            assert_eq!(final_record(&only_outcome(caller.await.unwrap())), final_json("a", "t"));
        }
        let outcome = after.await.unwrap().outcomes.swap_remove(0).unwrap();
        assert!(matches!(outcome, TaskOutcome::Unknown { .. }), "{later:?}: {outcome:?}");
        assert!(harness.call_count() >= 2);
    }
}

#[tokio::test(start_paused = true)]
async fn call_that_began_before_a_delete_leaves_no_cached_result() {
    let harness = Harness::new();
    harness.script([Reply::body(r#"{"id":"a","at":0}"#)]);
    harness.hold_calls();
    let before = harness.start(single("a"));
    sleep(2.0).await;
    delete(&harness, "a");
    harness.release_calls();
    assert!(matches!(only_outcome(before.await.unwrap()), TaskOutcome::Pending { .. }));
    let after = harness.look_up_one("a").await;
    assert!(matches!(after, TaskOutcome::Unknown { .. }), "{after:?}");
    assert_eq!(harness.call_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn long_poll_after_a_delete_gets_no_record_of_an_earlier_call() {
    let harness = Harness::new();
    harness.script([Reply::body(&final_json("a", "t"))]);
    harness.hold_calls();
    let before = harness.start(single("a"));
    sleep(2.0).await;
    delete(&harness, "a");
    // In another queue of the same token.
    let after = harness.start_as(&client("t").with_header("1"), long_poll(single("a"), 5.0));
    sleep(2.0).await;
    harness.release_calls();
    assert!(is_final(&only_outcome(before.await.unwrap())));
    let outcome = only_outcome(after.await.unwrap());
    assert!(matches!(outcome, TaskOutcome::Unknown { .. }), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn delete_of_a_task_does_not_disturb_other_ids_of_the_call() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    for name in ["a", "b"] {
        harness.add_final(name);
    }
    harness.hold_calls();
    let before = harness.start(batch(&["a", "b"]));
    sleep(2.0).await;
    delete(&harness, "a");
    let after = harness.start(single("b"));
    sleep(0.1).await;
    harness.release_calls();
    assert_eq!(count_final(&before.await.unwrap()), 2);
    assert!(is_final(&only_outcome(after.await.unwrap())));
    assert_eq!(harness.called_ids(), [["a", "b"]]);
}
