//! Lookups that wait in the queue, and ids that stay queued for clients that come back.

use super::backend::Reply;
use super::harness::*;
use crate::batcher::{LookupFailure, TaskOutcome};

/// Fills the queue with new ids for that many calls.
fn fill_queue(harness: &Harness, calls: usize) {
    let ids = numbered("other", 50 * calls);
    ids.iter().for_each(|name| harness.add_pending(name));
    harness.start(long_poll(batch(&ids), calls as f64));
}

/// Lets the upstream pause the token for that many seconds.
async fn pause(harness: &Harness, length: u32) {
    harness.script([Reply::too_many_requests(&length.to_string())]);
    let caller = harness.start(single("paused"));
    sleep(0.1).await;
    caller.abort();
}

fn times_called(harness: &Harness, name: &str) -> usize {
    harness.called_ids().iter().flatten().filter(|id| *id == name).count()
}

#[track_caller]
fn retry_after(outcome: &TaskOutcome) -> f64 {
    match failure(outcome) {
        LookupFailure::QueueTimeout { retry_after } => retry_after.as_secs_f64(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn thousand_new_ids_at_once_are_all_fetched() {
    let harness = Harness::new();
    let ids = numbered("a", 1000);
    ids.iter().for_each(|name| harness.add_pending(name));
    let callers: Vec<_> = ids.iter().map(|name| harness.start(single(name))).collect();
    // Known tasks are polled meanwhile, but new ones have to be fetched in time.
    let again: Vec<_> = ids[..300]
        .iter()
        .map(|name| {
            let (harness, name) = (harness.clone(), name.clone());
            tokio::spawn(async move {
                for _ in 0..10 {
                    pending_record(&harness.look_up_one(&name).await);
                    sleep(2.0).await;
                }
            })
        })
        .collect();
    for caller in callers {
        assert!(!pending_record(&only_outcome(caller.await.unwrap())).is_cached);
    }
    assert!(harness.elapsed() <= seconds(25.0), "{:?}", harness.elapsed());
    for poller in again {
        poller.await.unwrap();
    }
    assert_rate(&harness.calls(), 1.0, 1);
}

#[tokio::test(start_paused = true)]
async fn estimate_beyond_the_timeout_is_a_429_at_once_that_can_be_obeyed() {
    for length in [26, 40, 100] {
        let harness = Harness::new();
        fill_queue(&harness, length);
        sleep(0.5).await;
        harness.add_final("z");
        let start = harness.elapsed();
        let wait = retry_after(&harness.look_up_one("z").await);
        assert_eq!(harness.elapsed(), start);
        assert!((length as f64 - 1.0..length as f64 + 2.0).contains(&wait), "{length}: {wait}");
        sleep(wait).await;
        // The id stayed queued, so it is stored or fetched at once.
        assert_eq!(harness.stored_ids(), ["z"], "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn estimate_counts_only_what_goes_before_the_id() {
    let harness = Harness::new();
    let known = numbered("known", 2000);
    known.iter().for_each(|name| harness.add_pending(name));
    let first = harness.look_up(long_poll(batch(&known), 60.0)).await;
    assert!(first.outcomes.iter().flatten().all(|outcome| matches!(outcome, TaskOutcome::Pending { .. })));
    for name in &known {
        harness.start(single(name));
    }
    sleep(0.1).await;
    // 40 calls for known ids are queued, but a new id goes first.
    harness.add_final("new");
    let before = harness.elapsed();
    assert!(is_final(&harness.look_up_one("new").await));
    assert!(harness.elapsed() - before < seconds(2.1), "{:?}", harness.elapsed() - before);
}

#[tokio::test(start_paused = true)]
async fn batch_of_3000_pending_ids_that_obeys_succeeds() {
    let harness = Harness::new();
    harness.start_sweep();
    let ids = numbered("a", 3000);
    ids.iter().for_each(|name| harness.add_pending(name));
    let result = harness.look_up(batch(&ids)).await;
    let waits = result.outcomes.iter().flatten().map(|outcome| match outcome {
        TaskOutcome::Failed(LookupFailure::QueueTimeout { retry_after }) => *retry_after,
        other => panic!("{other:?}"),
    });
    let wait = waits.max().expect("a failure");
    assert!((58.0..62.0).contains(&wait.as_secs_f64()), "{wait:?}");
    sleep(wait.as_secs_f64()).await;
    let result = harness.look_up(batch(&ids)).await;
    assert!(result.outcomes.iter().all(|outcome| matches!(outcome, Some(TaskOutcome::Pending { .. }))));
}

#[tokio::test(start_paused = true)]
async fn usable_snapshot_is_served_after_5_s_with_its_age() {
    let harness = Harness::new();
    harness.add_pending("a");
    let first = pending_record(&harness.look_up_one("a").await);
    sleep(2.0).await;
    pause(&harness, 12).await;
    let start = harness.elapsed();
    let pending = pending_record(&harness.look_up_one("a").await);
    assert_eq!(harness.elapsed() - start, seconds(5.0));
    assert_eq!((&pending.record, pending.is_cached), (&first.record, true));
    harness.assert_true_age(&pending);
    // The id stays queued without a waiter and is fetched in its turn.
    sleep(10.0).await;
    assert_eq!(times_called(&harness, "a"), 2);
}

#[tokio::test(start_paused = true)]
async fn no_cache_never_receives_a_snapshot() {
    let harness = Harness::new();
    harness.add_pending("a");
    harness.look_up_one("a").await;
    sleep(2.0).await;
    pause(&harness, 12).await;
    let pending = pending_record(&only_outcome(harness.look_up(no_cache(single("a"))).await));
    assert!(!pending.is_cached && harness.elapsed() > seconds(12.0), "{pending:?}");
}

#[tokio::test(start_paused = true)]
async fn snapshot_that_is_too_old_is_not_served() {
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
    sleep(16.0).await;
    pause(&harness, 60).await;
    let start = harness.elapsed();
    retry_after(&harness.look_up_one("a").await);
    assert_eq!(harness.elapsed() - start, seconds(25.0));
}

#[tokio::test(start_paused = true)]
async fn id_of_a_client_that_hung_up_is_fetched_unless_it_cancelled_at_once() {
    for (after, expected) in [(0.5, 0), (3.0, 1)] {
        let harness = Harness::new();
        fill_queue(&harness, 10);
        sleep(0.5).await;
        harness.add_final("z");
        let caller = harness.start(single("z"));
        sleep(after).await;
        caller.abort();
        sleep(40.0).await;
        assert_eq!(times_called(&harness, "z"), expected, "hung up after {after} s");
    }
}

#[tokio::test(start_paused = true)]
async fn id_of_a_client_that_does_not_come_back_is_dropped() {
    let harness = Harness::new();
    harness.add_final("z");
    pause(&harness, 20).await;
    let caller = harness.start(single("z"));
    sleep(3.0).await;
    caller.abort();
    sleep(60.0).await;
    assert_eq!(times_called(&harness, "z"), 0);
}

#[tokio::test(start_paused = true)]
async fn ids_of_ninety_unknown_tasks_are_answered_in_bounded_time() {
    let harness = Harness::new();
    harness.add_pending("known");
    let callers: Vec<_> = numbered("gone", 90).iter().map(|name| harness.start(single(name))).collect();
    let known: Vec<_> = (0..20)
        .map(|number| {
            let harness = harness.clone();
            tokio::spawn(async move {
                sleep(2.5 * f64::from(number)).await;
                let before = harness.elapsed();
                pending_record(&harness.look_up_one("known").await);
                harness.elapsed() - before
            })
        })
        .collect();
    let mut answered = 0;
    for caller in callers {
        match only_outcome(caller.await.unwrap()) {
            TaskOutcome::Unknown { response: Some(_), .. } => answered += 1,
            other => assert!(retry_after(&other) > 0.0),
        }
    }
    assert!(harness.elapsed() <= seconds(55.0), "{:?}", harness.elapsed());
    assert!(answered >= 10, "{answered}");
    for poll in known {
        // At most every second call is for an unknown id.
        assert!(poll.await.unwrap() <= seconds(3.1));
    }
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
async fn next_news_counts_the_calls_of_ids_left_out() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    let _callers: Vec<_> = numbered("gone", 10).iter().map(|name| harness.start(single(name))).collect();
    sleep(1.1).await;
    harness.add_pending("a");
    let result = harness.look_up(batch(&["a"])).await;
    let next_news = result.next_news.expect("a pending task");
    assert!(next_news >= seconds(8.0), "{next_news:?}");
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
        for outcome in result.outcomes.iter().flatten() {
            assert!(is_final(outcome) || retry_after(outcome) > 0.0, "{outcome:?}");
        }
        sleep(5.0).await;
    }
    assert_eq!(harness.call_count(), 40);
    assert!(harness.called_ids().iter().all(|ids| ids.len() == 50));
}
