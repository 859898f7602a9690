//! An upstream in trouble: tried again within reason, known to be down for all, and errors that concern only some.

use super::lab::*;
use super::world::*;
use crate::batcher::{LookupFailure, RecordSource, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn a_call_that_broke_off_is_tried_again_though_nobody_else_comes() {
    for reply in
        [Reply::Error(error::interrupted()), Reply::status(500), Reply::status(503), Reply::status(429)]
    {
        let lab = Lab::new();
        lab.finished("a");
        lab.next([reply.clone()]);
        assert!(is_finished(&lab.ask_one("a").await), "{reply:?}");
        assert_eq!(lab.count(), 2);
        assert!(lab.since_start() < seconds(3.1));
    }
}

#[tokio::test(start_paused = true)]
async fn after_max_retries_the_upstreams_own_error_is_the_answer() {
    for status in [429, 500, 502, 503, 504] {
        let lab = Lab::with(|upstream, _| upstream.max_retries = 2);
        lab.rule(move |_| Some(Reply::status(status)));
        let (one, other) = (lab.begin(single("a")), lab.begin(batch(&["a", "b"])));
        assert_eq!(failed_with(&only(one.await.unwrap())), status);
        other.await.unwrap();
        assert_eq!(lab.asked().iter().filter(|ids| ids.contains(&"a".to_owned())).count(), 3);
        assert!(lab.kept().is_empty());
        // Nothing of it is remembered; the rate comes back after a while.
        lab.natural();
        pass(60.0).await;
        lab.finished("a");
        assert!(is_finished(&lab.ask_one("a").await));
    }
    let lab = Lab::with(|upstream, _| upstream.max_retries = 0);
    lab.next([Reply::Error(error::interrupted())]);
    assert!(matches!(failure(&lab.ask_one("a").await), LookupFailure::Transport(_)));
    assert_eq!(lab.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn other_refusals_are_not_tried_again() {
    for status in [400, 403, 404, 409, 418, 422] {
        let lab = Lab::new();
        lab.rule(move |_| Some(Reply::status(status)));
        assert_eq!(failed_with(&lab.ask_one("a").await), status);
        assert_eq!(lab.count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_upstream_is_probed_by_one_call_at_a_time_and_known_to_all() {
    let lab = Lab::new();
    lab.rule(|_| Some(Reply::Error(error::refused())));
    let outcome = lab.ask_one("a").await;
    assert!(
        matches!(failure(&outcome), LookupFailure::Transport(_) | LookupFailure::UpstreamDown { .. }),
        "{outcome:?}"
    );
    // Everybody learns so at once, whatever the token, without a call.
    for token in 0..50 {
        let before = lab.since_start();
        let outcome = only(lab.ask_as(&asker(&format!("u{token}")), single("a")).await);
        let LookupFailure::UpstreamDown { retry_after, .. } = *failure(&outcome) else {
            panic!("{outcome:?}")
        };
        assert!(retry_after <= seconds(1.0));
        assert_eq!(lab.since_start(), before);
    }
    assert_eq!(lab.count(), 1);
    // Probes, ever more rarely, never two at a time.
    while lab.since_start() < seconds(60.0) {
        for token in 0..5 {
            lab.begin_as(&asker(&format!("v{token}")), single("a"));
        }
        pass(0.1).await;
    }
    assert!((8..=12).contains(&lab.count()), "{}", lab.count());
    assert_eq!(lab.most_under_way(), 1);
    // It comes back, and the next probe finds out for all.
    lab.natural();
    lab.finished("a");
    pass(8.1).await;
    assert!(is_finished(&only(lab.ask_as(&asker("w0"), single("a")).await)));
    assert!(is_finished(&only(lab.ask_as(&asker("w1"), single("a")).await)));
}

#[tokio::test(start_paused = true)]
async fn calls_that_fail_late_let_no_second_probe_in() {
    let lab = Lab::new();
    lab.rule(|_| Some(Reply::Error(error::refused())));
    lab.hold();
    // Twenty calls that were under way when the upstream died; they all learn it at about the same time.
    for token in 0..20 {
        lab.begin_as(&asker(&format!("t{token}")), single("a"));
    }
    pass(1.0).await;
    assert_eq!(lab.most_under_way(), 20);
    lab.release();
    pass(0.5).await;
    let before = lab.count();
    pass(1.0).await;
    lab.hold();
    for token in 0..20 {
        lab.begin_as(&asker(&format!("u{token}")), single("a"));
        pass(0.3).await;
    }
    assert_eq!(lab.count(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_silent_to_all_is_down_and_one_slow_call_is_not() {
    let lab = Lab::with(|upstream, _| upstream.burst = 5);
    lab.save_up().await;
    lab.rule(|call| (call.ids[0] == "slow").then(|| Reply::Error(error::timeout())));
    lab.finished("a");
    lab.hold();
    let slow = lab.begin(single("slow"));
    pass(30.0).await;
    lab.release();
    assert!(matches!(
        failure(&only(slow.await.unwrap())),
        LookupFailure::Transport(_) | LookupFailure::UpstreamDown { .. }
    ));
    assert!(matches!(failure(&lab.ask_one("b").await), LookupFailure::UpstreamDown { .. }));
    pass(1.1).await;
    assert!(is_finished(&lab.ask_one("a").await));

    // One slow call: others were answered after it began.
    lab.hold();
    let slow = lab.begin(single("slow"));
    let record_success = lab.begin_as(&asker("u"), single("a"));
    pass(30.0).await;
    lab.release();
    assert!(is_finished(&only(record_success.await.unwrap())));
    assert!(matches!(failure(&only(slow.await.unwrap())), LookupFailure::Transport(_)));
    assert!(is_finished(&lab.ask_one("a").await));
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_tried_again_while_its_callers_patience_lasts() {
    for (length, again) in [(5.0, true), (29.5, false)] {
        let lab = Lab::new();
        lab.finished("a");
        lab.finished("b");
        lab.rule(|call| (call.token == "t").then(|| Reply::Error(error::timeout())));
        lab.hold();
        let caller = lab.begin(single("a"));
        pass(0.1).await;
        // Somebody else hears of the upstream meanwhile, so that it is not down: the held calls end in the order in
        // which they began to wait.
        lab.natural();
        let other = lab.begin_as(&asker("u"), single("b"));
        pass(length).await;
        lab.release();
        assert!(is_finished(&only(other.await.unwrap())));
        assert_eq!(is_finished(&only(caller.await.unwrap())), again, "after {length} s");
        assert_eq!(lab.count(), 2 + usize::from(again));
    }
}

#[tokio::test(start_paused = true)]
async fn a_strict_batch_ends_with_the_first_failure_and_the_rest_is_fetched() {
    let lab = Lab::new();
    let ids = names("a", 120);
    ids.iter().for_each(|name| lab.finished(name));
    lab.next([Reply::Natural, Reply::status(403)]);
    let answer = lab.ask(batch(&ids)).await;
    assert!(lab.since_start() < seconds(1.1));
    let failures =
        answer.outcomes.iter().flatten().filter(|outcome| matches!(outcome, TaskOutcome::Failed(_)));
    assert_eq!(failures.count(), 50);
    assert_eq!(answer.outcomes.iter().flatten().filter(|outcome| is_finished(outcome)).count(), 50);
    assert_eq!(answer.outcomes.iter().filter(|outcome| outcome.is_none()).count(), 20);
    pass(10.0).await;
    assert_eq!(lab.asked().iter().map(Vec::len).collect::<Vec<_>>(), [50, 50, 20]);
    assert_eq!(lab.kept().len(), 70);
}

#[tokio::test(start_paused = true)]
async fn a_lenient_batch_waits_for_the_rest() {
    let lab = Lab::new();
    let ids = names("a", 120);
    ids.iter().for_each(|name| lab.finished(name));
    lab.next([Reply::Natural, Reply::status(403)]);
    let answer = lab.ask(lenient(batch(&ids))).await;
    assert!(answer.outcomes.iter().all(Option::is_some));
    assert_eq!(answer.outcomes.iter().flatten().filter(|outcome| is_finished(outcome)).count(), 70);
}

#[tokio::test(start_paused = true)]
async fn a_large_batch_gets_further_with_every_repeat() {
    let lab = Lab::new();
    let ids = names("a", 2000);
    ids.iter().for_each(|name| lab.finished(name));
    let mut known = 0;
    for round in 0.. {
        // The store's side: what is kept is not asked for again.
        let kept: std::collections::HashSet<String> = lab.kept().into_iter().collect();
        assert!(round == 0 || kept.len() >= known + 200, "round {round}: {} of {known}", kept.len());
        known = kept.len();
        let missing: Vec<&String> = ids.iter().filter(|name| !kept.contains(*name)).collect();
        if missing.is_empty() {
            break;
        }
        let answer = lab.ask(batch(&missing)).await;
        let failed = answer.outcomes.iter().flatten().filter_map(|outcome| match outcome {
            TaskOutcome::Failed(failure) => Some(failure),
            _ => None,
        });
        for failure in failed {
            assert!(matches!(failure, LookupFailure::QueueTimeout { .. }), "{failure:?}");
        }
        pass(5.0).await;
    }
    assert_eq!(lab.count(), 40);
    assert!(lab.asked().iter().all(|ids| ids.len() == 50));
}

#[tokio::test(start_paused = true)]
async fn a_401_fails_everything_that_waits_in_the_lane_at_once() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    lab.rule(|_| Some(Reply::status(401)));
    let caller = lab.begin(batch(&names("a", 500)));
    let waiter = lab.begin(waiting(single("b"), 60.0));
    let other = lab.begin_as(&asker("u"), single("b"));
    assert_eq!(failed_with(&only(other.await.unwrap())), 401);
    assert!(!caller.is_finished());
    let answer = caller.await.unwrap();
    assert!(answer.outcomes.iter().flatten().all(|outcome| failed_with(outcome) == 401));
    assert_eq!(answer.outcomes.iter().flatten().count(), 500);
    assert_eq!(failed_with(&only(waiter.await.unwrap())), 401);
    assert!(lab.since_start() < seconds(1.1));
    pass(30.0).await;
    assert_eq!(lab.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_does_not_keep_the_answer_back() {
    let lab = Lab::new();
    lab.disk_is_full();
    lab.finished("a");
    assert!(matches!(
        lab.ask_one("a").await,
        TaskOutcome::Final { source: RecordSource::Upstream { is_stored: false }, .. }
    ));
}
