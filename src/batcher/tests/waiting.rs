//! `prefer: wait`: held until everything is finished, told at once, looked at as often as the task's age suggests.

use super::lab::*;
use super::world::*;
use crate::batcher::{LookupFailure, RecordSource, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn all_waiters_wake_at_once_when_the_finish_is_known() {
    let lab = Lab::new();
    lab.finishing("a", seconds(10.0));
    let mut callers: Vec<_> = (0..100).map(|_| lab.begin(waiting(single("a"), 60.0))).collect();
    callers.push(lab.begin(waiting(batch(&["a"]), 60.0)));
    for caller in callers {
        assert_eq!(finished(&only(caller.await.unwrap())), finished_text("a", "t"));
        let now = lab.since_start();
        assert!((10.0..11.2).contains(&now.as_secs_f64()), "{now:?}");
    }
    assert!(lab.count() <= 11, "{}", lab.count());
    assert_eq!(lab.kept(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_wakes_when_another_callers_look_finds_the_finish() {
    let lab = Lab::new();
    lab.pending_for("a", 1000);
    let waiter = lab.begin(waiting(single("a"), 60.0));
    pass(5.0).await;
    // The waiter's own next look is due after 30 s.
    lab.finished("a");
    assert!(is_finished(&lab.ask_one("a").await));
    let known_at = lab.since_start();
    assert!(is_finished(&only(waiter.await.unwrap())));
    assert_eq!(lab.since_start(), known_at);
    assert_eq!(lab.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_in_another_lane_of_the_token_is_given_the_finish() {
    for stored in [true, false] {
        let lab = Lab::new();
        if !stored {
            lab.disk_is_full();
        }
        lab.pending_for("a", 1000);
        let other = asker("t").forwarding("true");
        let waiter = lab.begin_as(&other, waiting(single("a"), 60.0));
        pass(5.0).await;
        lab.finished("a");
        assert!(is_finished(&lab.ask_one("a").await));
        let known_at = lab.since_start();
        let outcome = only(waiter.await.unwrap());
        assert_eq!(lab.since_start(), known_at);
        assert!(
            matches!(outcome, TaskOutcome::Final { source: RecordSource::Upstream { is_stored }, .. } if is_stored == stored),
            "{outcome:?}"
        );
        pass(60.0).await;
        assert_eq!(lab.count(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_with_another_token_looks_again_at_once_and_sees_its_own_text() {
    let lab = Lab::new();
    lab.pending_for("a", 1000);
    let waiter = lab.begin_as(&asker("u"), waiting(single("a"), 60.0));
    pass(5.0).await;
    lab.finished("a");
    assert_eq!(finished(&lab.ask_one("a").await), finished_text("a", "t"));
    let known_at = lab.since_start();
    assert_eq!(finished(&only(waiter.await.unwrap())), finished_text("a", "u"));
    assert!(lab.since_start() - known_at < seconds(0.1));
    let tokens: Vec<String> = lab.calls().into_iter().map(|call| call.token).collect();
    assert_eq!(tokens, ["u", "t", "u"]);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_with_another_token_whose_look_was_under_way_looks_again() {
    let lab = Lab::new();
    lab.finished("a");
    lab.next([Reply::Natural, Reply::body(r#"{"id":"a","created_at":1}"#)]);
    let finder = lab.begin(single("a"));
    pass(0.005).await;
    let waiter = lab.begin_as(&asker("u"), waiting(single("a"), 60.0));
    assert!(is_finished(&only(finder.await.unwrap())));
    // The waiter's first look is answered as of before the finish; the second is only a turn away.
    assert_eq!(lab.count(), 2);
    assert_eq!(finished(&only(waiter.await.unwrap())), finished_text("a", "u"));
    assert!(lab.since_start() < seconds(2.0), "{:?}", lab.since_start());
}

#[tokio::test(start_paused = true)]
async fn the_look_interval_is_a_tenth_of_the_age_within_bounds() {
    for (age, least, most) in [(0, 1.0, 1.1), (100, 9.8, 11.5), (200, 19.8, 22.5), (100_000, 29.9, 30.1)] {
        let lab = Lab::new();
        lab.pending_for("a", age);
        let caller = lab.begin(waiting(single("a"), 1000.0));
        pass(most + 0.5).await;
        caller.abort();
        let calls = lab.calls();
        let gap = (calls[1].at - calls[0].at).as_secs_f64();
        assert!((least..most).contains(&gap), "{age} s old: {gap}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_created_at_the_age_counts_from_the_first_look() {
    let lab = Lab::new();
    lab.pending("a");
    let caller = lab.begin(waiting(single("a"), 1000.0));
    pass(400.0).await;
    caller.abort();
    let calls = lab.calls();
    let gaps: Vec<f64> = calls.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect();
    assert!(gaps[0] < 1.1 && (20.0..30.1).contains(gaps.last().unwrap()), "{gaps:?}");
    assert!(gaps.windows(2).all(|pair| pair[1] > pair[0] - 0.01), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_wait_shows_the_last_pending_answer() {
    for (age, wait) in [(0, 10.0), (100, 25.0), (1000, 28.0), (1000, 58.0), (0, 0.0)] {
        let lab = Lab::new();
        lab.pending_for("a", age);
        let (text, told_age, _) = pending(&only(lab.ask(waiting(single("a"), wait)).await));
        let now = lab.since_start();
        assert!((now.as_secs_f64() - wait).abs() < 0.1, "{age} s old, {wait} s: {now:?}");
        // As old as the answer says, and as fresh as the looks are.
        let moment = true_at(text.as_bytes());
        assert!((now - moment).abs_diff(told_age) <= seconds(0.011), "{now:?} {moment:?} {told_age:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_looks_at_once_when_nothing_fresh_is_remembered() {
    let lab = Lab::new();
    lab.pending_for("a", 1000);
    lab.ask_one("a").await;
    pass(5.0).await;
    lab.finished("a");
    let before = lab.since_start();
    assert!(is_finished(&only(lab.ask(waiting(single("a"), 60.0)).await)));
    assert!(lab.since_start() - before < seconds(0.1));
    // And with `no-cache` in any case.
    lab.pending_for("b", 1000);
    pass(5.0).await;
    lab.ask_one("b").await;
    lab.finished("b");
    let before = lab.since_start();
    assert!(is_finished(&only(lab.ask(waiting(no_cache(single("b")), 60.0)).await)));
    assert!(lab.since_start() - before < seconds(1.1));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_does_not_look_at_what_was_seen_this_moment() {
    let lab = Lab::with(|upstream, _| upstream.burst = 5);
    lab.save_up().await;
    lab.pending_for("a", 1000);
    lab.ask_one("a").await;
    pass(0.5).await;
    let (_, age, _) = pending(&only(lab.ask(waiting(single("a"), 5.0)).await));
    assert_eq!(age, seconds(5.5));
    assert_eq!(lab.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_id_is_not_finished() {
    let lab = Lab::new();
    let waiter = lab.begin(waiting(single("late"), 60.0));
    let never = lab.begin(waiting(single("never"), 20.0));
    pass(5.0).await;
    assert!(!waiter.is_finished());
    lab.finished("late");
    assert!(is_finished(&only(waiter.await.unwrap())));
    assert!(lab.since_start() < seconds(9.0), "{:?}", lab.since_start());
    let outcome = only(never.await.unwrap());
    assert!(matches!(outcome, TaskOutcome::Unknown { response: Some(_), .. }), "{outcome:?}");
    assert!((19.9..20.1).contains(&lab.since_start().as_secs_f64()), "{:?}", lab.since_start());
}

#[tokio::test(start_paused = true)]
async fn an_error_ends_the_wait() {
    let lab = Lab::new();
    lab.pending("a");
    let waiter = lab.begin(waiting(single("a"), 60.0));
    pass(2.5).await;
    lab.rule(|_| Some(Reply::status(403)));
    assert_eq!(failed_with(&only(waiter.await.unwrap())), 403);
    assert!(lab.since_start() < seconds(4.0));
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_all() {
    let lab = Lab::new();
    for (number, name) in names("a", 5).iter().enumerate() {
        lab.finishing(name, seconds(3.0 * number as f64));
    }
    let answer = lab.ask(waiting(batch(&names("a", 5)), 60.0)).await;
    assert!(answer.outcomes.iter().flatten().filter(|outcome| is_finished(outcome)).count() == 5);
    assert!((12.0..14.0).contains(&lab.since_start().as_secs_f64()), "{:?}", lab.since_start());

    let lab = Lab::new();
    lab.finished("a");
    lab.pending("b");
    let answer = lab.ask(waiting(batch(&["a", "b", "gone"]), 10.0)).await;
    assert!(is_finished(answer.outcomes[0].as_ref().unwrap()));
    pending(answer.outcomes[1].as_ref().unwrap());
    assert!(matches!(answer.outcomes[2], Some(TaskOutcome::Unknown { .. })));
    assert!((10.0..10.1).contains(&lab.since_start().as_secs_f64()), "{:?}", lab.since_start());
}

#[tokio::test(start_paused = true)]
async fn waiting_callers_do_not_keep_others_from_news() {
    let lab = Lab::new();
    lab.pending_for("a", 1000);
    let waiter = lab.begin(waiting(single("a"), 60.0));
    pass(2.0).await;
    let (_, _, remembered) = pending(&lab.ask_one("a").await);
    assert!(!remembered);
    waiter.abort();
    pass(100.0).await;
    assert_eq!(lab.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_waiters_on_as_many_tasks_keep_the_pace() {
    let lab = Lab::new();
    let ids = names("a", 200);
    for (number, name) in ids.iter().enumerate() {
        lab.finishing(name, seconds(0.3 * number as f64));
    }
    let callers: Vec<_> = ids.iter().map(|name| lab.begin(waiting(single(name), 100.0))).collect();
    for (number, caller) in callers.into_iter().enumerate() {
        assert!(is_finished(&only(caller.await.unwrap())));
        let late = lab.since_start().as_secs_f64() - 0.3 * number as f64;
        // The lane's cycle is at most four calls, the look interval at most six seconds by then.
        assert!(late < 12.0, "{number}: {late}");
    }
    assert_pace(&lab.calls(), 1.0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_ends_in_the_queue_is_a_queue_timeout() {
    let lab = Lab::new();
    lab.next([Reply::LookupResult(answer_with_retry_after(429, "60"))]);
    assert_eq!(failed_with(&lab.ask_one("b").await), 429);
    let outcome = only(lab.ask(waiting(single("a"), 10.0)).await);
    assert!(matches!(failure(&outcome), LookupFailure::QueueTimeout { .. }), "{outcome:?}");
    assert!((10.0..10.1).contains(&lab.since_start().as_secs_f64()));
}
