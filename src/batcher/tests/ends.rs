//! The other ways out: panics, and refrain going down.

use super::lab::*;
use super::world::*;
use crate::batcher::{LookupFailure, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_call_is_an_answer_and_the_lane_goes_on() {
    let lab = Lab::new();
    lab.finished("a");
    lab.finished("b");
    lab.next([Reply::Panic]);
    let callers = [lab.begin(batch(&["a", "b"])), lab.begin(waiting(single("a"), 60.0))];
    for caller in callers {
        for outcome in caller.await.unwrap().outcomes.iter().flatten() {
            assert!(matches!(failure(outcome), LookupFailure::Internal));
        }
    }
    assert!(lab.since_start() < seconds(0.1));
    assert!(is_finished(&lab.ask_one("a").await));
    assert!(is_finished(&lab.ask_one("b").await));
    lab.sweep();
    pass(10.0).await;
    assert_eq!(lab.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_keeping_is_an_answer_and_the_lane_goes_on() {
    let lab = Lab::new();
    lab.finished("a");
    lab.pending("b");
    lab.keep_panics(true);
    let answer = lab.ask(lenient(batch(&["a", "b"]))).await;
    assert!(
        answer.outcomes.iter().flatten().all(|outcome| matches!(failure(outcome), LookupFailure::Internal))
    );
    lab.keep_panics(false);
    assert!(is_finished(&lab.ask_one("a").await));
    pending(&lab.ask_one("b").await);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_probe_lets_the_next_probe_go() {
    let lab = Lab::new();
    lab.next([Reply::Error(error::refused()), Reply::Panic]);
    lab.ask_one("a").await;
    pass(1.1).await;
    assert!(matches!(failure(&lab.ask_one("a").await), LookupFailure::Internal));
    lab.finished("a");
    assert!(is_finished(&lab.ask_one("a").await));
}

#[tokio::test(start_paused = true)]
async fn draining_answers_waiters_with_what_was_seen_last() {
    let lab = Lab::new();
    lab.pending("a");
    lab.pending_for("b", 1000);
    let callers = [lab.begin(waiting(single("a"), 60.0)), lab.begin(waiting(batch(&["a", "b"]), 60.0))];
    pass(10.3).await;
    lab.shutdown.start_drain();
    for caller in callers {
        for outcome in caller.await.unwrap().outcomes.iter().flatten() {
            let (text, age, _) = pending(outcome);
            let now = lab.since_start();
            assert!(
                (now - true_at(text.as_bytes())).abs_diff(age) <= seconds(0.011),
                "{now:?} {text} {age:?}"
            );
        }
    }
    assert_eq!(lab.since_start(), seconds(10.3));
}

#[tokio::test(start_paused = true)]
async fn while_draining_what_was_never_seen_is_still_asked() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    lab.finished("a");
    lab.pending("b");
    let callers = [lab.begin(single("a")), lab.begin(waiting(single("b"), 60.0))];
    lab.shutdown.start_drain();
    let [a, b] = callers;
    assert!(is_finished(&only(a.await.unwrap())));
    pending(&only(b.await.unwrap()));
    assert!(lab.since_start() < seconds(1.1));
    // And whoever comes now is not held.
    let before = lab.since_start();
    pending(&only(lab.ask(waiting(single("b"), 60.0)).await));
    assert!(lab.since_start() - before < seconds(1.1));
}

#[tokio::test(start_paused = true)]
async fn ending_answers_everybody_and_stops_calling() {
    let lab = Lab::new();
    lab.hold();
    // One call under way, a half-full lane behind it, a second token's call in back-off.
    let first = lab.begin(single("a"));
    pass(0.1).await;
    let queued = lab.begin(batch(&names("b", 120)));
    let waiter = lab.begin(waiting(single("c"), 60.0));
    lab.next([Reply::status(500)]);
    let backing_off = lab.begin_as(&asker("u"), single("a"));
    pass(0.1).await;
    let calls = lab.count();
    lab.shutdown.start_drain();
    pass(0.1).await;
    assert!(!first.is_finished() && !queued.is_finished());
    lab.shutdown.reach_deadline();
    for caller in [first, queued, waiter, backing_off] {
        let answer = caller.await.unwrap();
        assert!(
            answer
                .outcomes
                .iter()
                .flatten()
                .all(|outcome| matches!(failure(outcome), LookupFailure::ShuttingDown))
        );
        assert!(answer.outcomes.iter().flatten().next().is_some());
    }
    let before = lab.since_start();
    lab.queues.stopped().await;
    assert_eq!(lab.since_start(), before);
    // Whoever comes now is told so, and nothing is sent any more.
    assert!(matches!(failure(&lab.ask_one("z").await), LookupFailure::ShuttingDown));
    lab.release();
    pass(60.0).await;
    assert_eq!(lab.count(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ends_after_its_callers_were_told_harms_nobody() {
    let lab = Lab::new();
    lab.finished("a");
    lab.hold();
    let caller = lab.begin(single("a"));
    pass(0.1).await;
    lab.shutdown.reach_deadline();
    lab.release();
    let outcome = only(caller.await.unwrap());
    assert!(
        matches!(outcome, TaskOutcome::Failed(LookupFailure::ShuttingDown) | TaskOutcome::Final { .. }),
        "{outcome:?}"
    );
    lab.queues.stopped().await;
}
