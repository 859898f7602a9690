//! Long polls (`prefer: wait`).

use super::backend::{Reply, final_json};
use super::harness::*;
use crate::batcher::{LookupFailure, RecordSource, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn final_record_ends_all_long_polls_at_once() {
    let harness = Harness::new();
    harness.add_final_after("a", seconds(10.0));
    let mut callers: Vec<_> = (0..100).map(|_| harness.start(long_poll(single("a"), 60.0))).collect();
    callers.push(harness.start(long_poll(batch(&["a"]), 60.0)));
    for caller in callers {
        assert_eq!(final_record(&only_outcome(caller.await.unwrap())), final_json("a", "t"));
        let now = harness.elapsed();
        assert!((12.0..12.1).contains(&now.as_secs_f64()), "{now:?}");
    }
    assert_eq!(harness.call_count(), 5);
    assert_eq!(harness.stored_ids(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn final_record_of_another_lookup_ends_a_long_poll() {
    let harness = Harness::new();
    harness.add_pending_aged("a", 1000);
    let waiter = harness.start(long_poll(single("a"), 60.0));
    sleep(5.0).await;
    // The next fetch for the long poll is due after 15 s.
    harness.add_final("a");
    assert!(is_final(&harness.look_up_one("a").await));
    let fetched_at = harness.elapsed();
    assert!(is_final(&only_outcome(waiter.await.unwrap())));
    assert_eq!(harness.elapsed(), fetched_at);
    assert_eq!(harness.call_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn final_record_reaches_other_queues_of_the_token() {
    for expected in [true, false] {
        let harness = Harness::new();
        if !expected {
            harness.fill_disk();
        }
        harness.add_pending_aged("a", 1000);
        let other = client("t").with_header("true");
        let waiter = harness.start_as(&other, long_poll(single("a"), 60.0));
        sleep(5.0).await;
        harness.add_final("a");
        assert!(is_final(&harness.look_up_one("a").await));
        let fetched_at = harness.elapsed();
        let outcome = only_outcome(waiter.await.unwrap());
        assert_eq!(harness.elapsed(), fetched_at);
        assert!(
            matches!(outcome, TaskOutcome::Final { source: RecordSource::Upstream { is_stored }, .. } if is_stored == expected),
            "{outcome:?}"
        );
        sleep(60.0).await;
        assert_eq!(harness.call_count(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn end_of_the_wait_returns_the_last_pending_record() {
    for (age, wait) in [(0, 10.0), (100, 25.0), (1000, 28.0), (1000, 58.0), (0, 0.0)] {
        let harness = Harness::new();
        harness.add_pending_aged("a", age);
        let pending = pending_record(&only_outcome(harness.look_up(long_poll(single("a"), wait)).await));
        let now = harness.elapsed();
        assert!((now.as_secs_f64() - wait).abs() < 0.1, "{age} s old, {wait} s: {now:?}");
        harness.assert_true_age(&pending);
    }
}

#[tokio::test(start_paused = true)]
async fn long_poll_fetches_at_once_without_a_fresh_snapshot() {
    let harness = Harness::new();
    harness.add_pending_aged("a", 1000);
    harness.look_up_one("a").await;
    sleep(5.0).await;
    harness.add_final("a");
    let before = harness.elapsed();
    assert!(is_final(&only_outcome(harness.look_up(long_poll(single("a"), 60.0)).await)));
    assert!(harness.elapsed() - before < seconds(0.1));
    // With `no-cache` it fetches in any case.
    harness.add_pending_aged("b", 1000);
    sleep(5.0).await;
    harness.look_up_one("b").await;
    harness.add_final("b");
    let before = harness.elapsed();
    assert!(is_final(&only_outcome(harness.look_up(long_poll(no_cache(single("b")), 60.0)).await)));
    assert!(harness.elapsed() - before < seconds(1.1));
}

#[tokio::test(start_paused = true)]
async fn long_poll_does_not_fetch_a_fresh_snapshot_again() {
    let harness = Harness::with(|upstream, _| upstream.burst = 5);
    harness.fill_bucket().await;
    harness.add_pending_aged("a", 1000);
    harness.look_up_one("a").await;
    sleep(0.5).await;
    let pending = pending_record(&only_outcome(harness.look_up(long_poll(single("a"), 5.0)).await));
    assert_eq!(pending.age, seconds(5.5));
    assert_eq!(harness.call_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn long_poll_waits_for_an_unknown_id() {
    let harness = Harness::new();
    let waiter = harness.start(long_poll(single("late"), 60.0));
    let never = harness.start(long_poll(single("never"), 20.0));
    sleep(5.0).await;
    assert!(!waiter.is_finished());
    harness.add_final("late");
    assert!(is_final(&only_outcome(waiter.await.unwrap())));
    assert!(harness.elapsed() < seconds(9.0), "{:?}", harness.elapsed());
    let outcome = only_outcome(never.await.unwrap());
    assert!(matches!(outcome, TaskOutcome::Unknown { response: Some(_), .. }), "{outcome:?}");
    assert!((19.9..20.1).contains(&harness.elapsed().as_secs_f64()), "{:?}", harness.elapsed());
}

#[tokio::test(start_paused = true)]
async fn error_ends_a_long_poll() {
    let harness = Harness::new();
    harness.add_pending("a");
    let waiter = harness.start(long_poll(single("a"), 60.0));
    sleep(2.5).await;
    harness.reply_with(|_| Some(Reply::status(403)));
    assert_eq!(failure_status(&only_outcome(waiter.await.unwrap())), 403);
    assert!(harness.elapsed() < seconds(4.0));
}

#[tokio::test(start_paused = true)]
async fn batch_waits_for_every_final_record() {
    let harness = Harness::new();
    for (number, name) in numbered("a", 5).iter().enumerate() {
        harness.add_final_after(name, seconds(3.0 * number as f64));
    }
    let result = harness.look_up(long_poll(batch(&numbered("a", 5)), 60.0)).await;
    assert_eq!(count_final(&result), 5);
    assert!((12.0..14.0).contains(&harness.elapsed().as_secs_f64()), "{:?}", harness.elapsed());

    let harness = Harness::new();
    harness.add_final("a");
    harness.add_pending("b");
    let result = harness.look_up(long_poll(batch(&["a", "b", "gone"]), 10.0)).await;
    assert!(is_final(result.outcomes[0].as_ref().unwrap()));
    pending_record(result.outcomes[1].as_ref().unwrap());
    assert!(matches!(result.outcomes[2], Some(TaskOutcome::Unknown { .. })));
    assert!((10.0..10.1).contains(&harness.elapsed().as_secs_f64()), "{:?}", harness.elapsed());
}

#[tokio::test(start_paused = true)]
async fn long_poll_does_not_delay_other_lookups() {
    let harness = Harness::new();
    harness.add_pending_aged("a", 1000);
    let waiter = harness.start(long_poll(single("a"), 60.0));
    sleep(2.0).await;
    assert!(!pending_record(&harness.look_up_one("a").await).is_cached);
    waiter.abort();
    sleep(100.0).await;
    assert_eq!(harness.call_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn many_long_polls_keep_the_rate() {
    let harness = Harness::new();
    let ids = numbered("a", 200);
    for (number, name) in ids.iter().enumerate() {
        harness.add_final_after(name, seconds(0.3 * number as f64));
    }
    let callers: Vec<_> = ids.iter().map(|name| harness.start(long_poll(single(name), 100.0))).collect();
    for (number, caller) in callers.into_iter().enumerate() {
        assert!(is_final(&only_outcome(caller.await.unwrap())));
        let late = harness.elapsed().as_secs_f64() - 0.3 * number as f64;
        // The queue's cycle is at most four calls, the interval of long polls at most six seconds
        // by then.
        assert!(late < 12.0, "{number}: {late}");
    }
    assert_rate(&harness.calls(), 1.0, 1);
}

#[tokio::test(start_paused = true)]
async fn long_poll_counts_as_one_poll_every_3_s_or_fewer() {
    for (age, expected) in [(0, 3.0), (50, 3.0), (100, 6.0), (200, 9.0), (100_000, 15.0)] {
        let harness = Harness::new();
        harness.add_pending_aged("a", age);
        let caller = harness.start(long_poll(single("a"), 1000.0));
        sleep(expected + 0.5).await;
        caller.abort();
        let gaps = gaps(&harness.calls());
        assert!((gaps[0] - expected).abs() < 0.02, "{age} s old: {gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ids_of_a_long_poll_share_the_calls_of_other_lookups() {
    let harness = Harness::new();
    harness.add_pending("a");
    let waiter = harness.start(long_poll(single("a"), 60.0));
    sleep(2.0).await;
    harness.add_final("a");
    harness.look_up(batch(&["b", "c"])).await;
    assert!(is_final(&only_outcome(waiter.await.unwrap())));
    assert!((2.0..2.1).contains(&harness.elapsed().as_secs_f64()), "{:?}", harness.elapsed());
    assert_eq!(harness.called_ids(), [vec!["a"], vec!["b", "c", "a"]]);
}

#[tokio::test(start_paused = true)]
async fn max_age_holds_at_the_end_of_a_wait() {
    for (max, wait, most) in [(0.0, 10.0, 3.0), (5.0, 10.0, 5.0), (1.0, 13.5, 3.0)] {
        let harness = Harness::new();
        harness.add_pending_aged("a", 1000);
        let lookup = long_poll(max_age(single("a"), max), wait);
        let pending = pending_record(&only_outcome(harness.look_up(lookup).await));
        assert!(pending.age <= seconds(most), "max-age {max}: {pending:?}");
        harness.assert_true_age(&pending);
        let polls = (wait / 3.0).floor() as usize + 1;
        assert!(harness.call_count() <= polls, "{} calls in {wait} s", harness.call_count());
    }
}

#[tokio::test(start_paused = true)]
async fn long_poll_that_cannot_be_served_ends_with_a_429() {
    let harness = Harness::new();
    harness.script([Reply::too_many_requests("60")]);
    assert_eq!(failure_status(&harness.look_up_one("b").await), 429);
    let outcome = only_outcome(harness.look_up(long_poll(single("a"), 10.0)).await);
    let LookupFailure::QueueTimeout { retry_after } = *failure(&outcome) else { panic!("{outcome:?}") };
    assert!((10.0..10.1).contains(&harness.elapsed().as_secs_f64()));
    sleep(retry_after.as_secs_f64()).await;
    assert!(matches!(harness.look_up_one("a").await, TaskOutcome::Unknown { .. }));
}
