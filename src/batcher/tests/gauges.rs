//! What metrics say of lanes, at moments of which everything is known.

use super::lab::*;
use super::world::*;

#[tokio::test(start_paused = true)]
async fn what_waits_what_is_under_way_and_who_waits_is_told_apart() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    let callers = [lab.begin(batch(&names("a", 60))), lab.begin(single("a0")), lab.begin(single("b"))];
    pass(0.5).await;
    let queued = lab.queues.totals();
    assert_eq!((queued.queued, queued.in_flight, queued.waiters), (61, 0, 3));
    assert!((queued.oldest_queued.as_secs_f64() - 0.5).abs() < 0.02, "{queued:?}");
    lab.hold();
    pass(0.6).await;
    let asked = lab.queues.totals();
    assert_eq!((asked.queued, asked.in_flight, asked.waiters), (11, 50, 3));
    lab.release();
    for caller in callers {
        caller.await.unwrap();
    }
    let idle = lab.queues.totals();
    assert_eq!((idle.queued, idle.in_flight, idle.waiters), (0, 0, 0));
    assert!(idle.oldest_queued.is_zero() && idle.queues == 1 && idle.tokens == 1, "{idle:?}");
}

#[tokio::test(start_paused = true)]
async fn pending_answers_in_memory_are_counted_until_they_are_dropped() {
    let lab = Lab::new();
    lab.pending("a");
    let (text, ..) = pending(&lab.ask_one("a").await);
    lab.ask_one("unknown").await;
    let totals = lab.queues.totals();
    assert_eq!((totals.snapshots, totals.snapshot_bytes), (1, text.len()));
    lab.sweep();
    pass(120.0).await;
    let totals = lab.queues.totals();
    assert_eq!((totals.snapshots, totals.snapshot_bytes, totals.queues), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_to_be_tried_again_is_wanted_and_not_under_way() {
    let lab = Lab::new();
    lab.rule(|_| Some(Reply::status(503)));
    let caller = lab.begin(single("a"));
    pass(0.5).await;
    let totals = lab.queues.totals();
    assert_eq!((totals.queued, totals.in_flight), (1, 0));
    assert!(totals.oldest_queued.as_secs_f64() > 0.4, "{totals:?}");
    caller.abort();
}

#[tokio::test(start_paused = true)]
async fn a_429_is_absorbed_unless_somebody_sees_it() {
    let lab = Lab::with(|upstream, _| upstream.max_retries = 1);
    let metrics = &lab.queues.shared.metrics;
    let limited = || (metrics.upstream_rate_limited(), metrics.rate_limited_absorbed());
    lab.finished("a");
    lab.next([Reply::status(429)]);
    assert!(is_finished(&lab.ask_one("a").await));
    assert_eq!(limited(), (1, 1), "tried again");
    lab.rule(|_| Some(Reply::status(429)));
    assert_eq!(failed_with(&lab.ask_one("b").await), 429);
    assert_eq!(limited(), (3, 2), "tried again, and passed on");
    pass(100.0).await;
    lab.hold();
    let caller = lab.begin(single("c"));
    pass(1.0).await;
    caller.abort();
    lab.release();
    pass(10.0).await;
    assert_eq!(limited(), (4, 3), "nobody waits any more");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_cannot_be_reached_is_down_until_it_answers() {
    let lab = Lab::new();
    assert!(!lab.queues.totals().is_upstream_down);
    lab.rule(|_| Some(Reply::Error(error::refused())));
    lab.ask_one("a").await;
    assert!(lab.queues.totals().is_upstream_down);
    pass(100.0).await;
    assert!(lab.queues.totals().is_upstream_down, "a probe is due, but nothing was record_success");
    lab.natural();
    lab.ask_one("a").await;
    assert!(!lab.queues.totals().is_upstream_down);
}
