//! Bounds of queues, limiters, ids, calls and memory.

use super::backend::Reply;
use super::harness::*;
use crate::batcher::{LookupFailure, LookupResult, QueueLimit, TaskOutcome};
use crate::token::Digest;

/// Returns the number of ids that a full queue refused. All ids must have failed if they have an
/// outcome.
fn count_refused(result: &LookupResult) -> usize {
    let is_full = |outcome: &&TaskOutcome| matches!(failure(outcome), LookupFailure::QueueFull { .. });
    result.outcomes.iter().flatten().filter(is_full).count()
}

#[tokio::test(start_paused = true)]
async fn idle_queues_and_limiters_are_dropped() {
    let harness = Harness::new();
    for token in 0..200 {
        let client = client(&format!("token{token}"));
        harness.batcher.charge(&client.key().token);
        harness.look_up_as(&client, single("a")).await;
    }
    harness.assert_sizes(200, 200);
    harness.start_sweep();
    sleep(60.0).await;
    harness.assert_sizes(0, 0);
}

#[tokio::test(start_paused = true)]
async fn numbers_of_queues_and_limiters_are_bounded() {
    let harness = Harness::new();
    for token in 0..110_000_u32 {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&token.to_be_bytes());
        harness.batcher.charge(&Digest::from(digest));
    }
    let limiters = harness.batcher.totals().tokens;
    assert!((80_000..=100_000).contains(&limiters), "{limiters}");
    for token in 0..12_000_u32 {
        harness.look_up_as(&client(&format!("token{token}")), single("a")).await;
    }
    let totals = harness.batcher.totals();
    assert!(totals.queues <= 10_000 && totals.tokens <= 100_000, "{totals:?}");
    harness.start_sweep();
    sleep(100.0).await;
    harness.assert_sizes(0, 0);
}

#[tokio::test(start_paused = true)]
async fn lookup_beyond_the_bound_of_busy_queues_is_refused() {
    let harness = Harness::with(|_, tasks| tasks.queue_timeout = seconds(100.0));
    harness.hold_calls();
    let mut callers = Vec::new();
    for token in 0..10_000_u32 {
        callers.push(harness.start_as(&client(&format!("token{token}")), single("a")));
    }
    sleep(0.1).await;
    assert_eq!(harness.batcher.totals().queues, 10_000);
    let outcome = only_outcome(harness.look_up_as(&client("extra"), single("a")).await);
    assert_refused_by(QueueLimit::Total, &outcome);
    // Lookups with a queue are served, within the bound of calls in flight.
    assert_eq!(harness.call_count(), 512);
    harness.add_final("a");
    harness.release_calls();
    for caller in callers {
        assert!(is_final(&only_outcome(caller.await.unwrap())));
    }
    assert!(harness.max_in_flight() <= 512);
    assert!(is_final(&only_outcome(harness.look_up_as(&client("extra"), single("a")).await)));
}

#[track_caller]
fn assert_refused_by(expected: QueueLimit, outcome: &TaskOutcome) {
    match failure(outcome) {
        LookupFailure::TooManyQueues { limit, retry_after } => {
            assert_eq!(*limit, expected);
            assert!(!retry_after.is_zero());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn new_header_values_of_one_token_evict_only_its_own_queues() {
    let harness = Harness::new();
    harness.add_pending("a");
    let other = client("other");
    harness.look_up_as(&other, single("a")).await;
    for value in 0..12_000 {
        harness.look_up_as(&client("t").with_header(&value.to_string()), single("a")).await;
        assert!(harness.batcher.totals().queues <= 257);
    }
    assert!(harness.batcher.queues(300).items.iter().any(|queue| queue.token == other.key().token));
}

#[tokio::test(start_paused = true)]
async fn token_with_too_many_busy_queues_shuts_out_no_other() {
    let harness = Harness::with(|_, tasks| tasks.queue_timeout = seconds(100.0));
    harness.hold_calls();
    let callers: Vec<_> = (0..256)
        .map(|value| harness.start_as(&client("t").with_header(&value.to_string()), single("a")))
        .collect();
    sleep(0.1).await;
    let extra = client("t").with_header("extra");
    assert_refused_by(QueueLimit::Token, &only_outcome(harness.look_up_as(&extra, single("a")).await));
    harness.add_final("a");
    harness.release_calls();
    let other = only_outcome(harness.look_up_as(&client("other"), single("a")).await);
    assert!(is_final(&other));
    for caller in callers {
        caller.abort();
    }
    sleep(300.0).await;
    assert!(is_final(&only_outcome(harness.look_up_as(&extra, single("a")).await)));
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_of_one_queue_are_bounded() {
    let harness = Harness::with(|upstream, _| upstream.max_batch = 1);
    harness.hold_calls();
    let ids = numbered("a", 40);
    ids.iter().for_each(|name| harness.add_final(name));
    let caller = harness.start(long_poll(batch(&ids), 200.0));
    sleep(60.0).await;
    assert_eq!(harness.call_count(), 16);
    harness.release_calls();
    assert!(caller.await.unwrap().outcomes.iter().flatten().all(is_final));
    assert_rate(&harness.calls(), 1.0, 1);
}

#[tokio::test(start_paused = true)]
async fn full_queue_refuses_new_ids_at_once() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    let first = harness.start(batch(&numbered("a", 10_000)));
    let second = harness.start(batch(&numbered("b", 10_000)));
    sleep(0.1).await;
    let before = harness.elapsed();
    let outcome = harness.look_up_one("c").await;
    assert!(
        matches!(failure(&outcome), LookupFailure::QueueFull { limit: QueueLimit::Token, retry_after } if *retry_after == seconds(400.0))
    );
    assert_eq!(harness.elapsed(), before);
    // Ids that are queued already can be joined.
    assert!(!matches!(harness.look_up_one("a0").await, TaskOutcome::Failed(_)));
    for caller in [first, second] {
        caller.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn cached_results_do_not_fill_a_queue() {
    let harness = Harness::with(|upstream, _| {
        upstream.max_batch = 1000;
        upstream.requests_per_second = 1000.0;
    });
    for number in 0..30 {
        let names = numbered(&format!("a{number}-"), 1000);
        names.iter().for_each(|name| harness.add_pending(name));
        let result = harness.look_up(batch(&names)).await;
        assert!(
            result.outcomes.iter().flatten().all(|outcome| matches!(outcome, TaskOutcome::Pending { .. }))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_of_snapshots_are_bounded() {
    let harness = Harness::with(|upstream, _| upstream.requests_per_second = 1000.0);
    let long = "x".repeat(8 << 20);
    harness.reply_with(move |call| Some(Reply::body(&format!(r#"{{"id":"{}","x":"{long}"}}"#, call.ids[0]))));
    for name in numbered("a", 12) {
        assert!(!pending_record(&harness.look_up_one(&name).await).is_cached);
    }
    // The first records are cached, the last ones are not.
    assert!(pending_record(&harness.look_up_one("a0").await).is_cached);
    assert!(!pending_record(&harness.look_up_one("a11").await).is_cached);
    // The sweep drops the old snapshots.
    harness.start_sweep();
    sleep(21.0).await;
    harness.look_up_one("a11").await;
    assert!(pending_record(&harness.look_up_one("a11").await).is_cached);
}

#[tokio::test(start_paused = true)]
async fn unused_entries_are_dropped() {
    let harness = Harness::new();
    harness.start_sweep();
    harness.spend_first_call().await;
    for number in 0..300 {
        let caller = harness.start(single(&format!("gone{number}")));
        if number % 2 == 0 {
            tokio::task::yield_now().await;
            caller.abort();
        }
    }
    // Each of the 150 other ids is fetched alone, for its single lookup.
    sleep(300.0).await;
    harness.assert_sizes(0, 0);
}

#[tokio::test(start_paused = true)]
async fn ids_over_all_queues_are_bounded() {
    let harness = Harness::new();
    harness.start_sweep();
    harness.hold_calls();
    let ids = numbered("a", 20_000);
    let callers: Vec<_> =
        (0..12).map(|token| harness.start_as(&client(&format!("t{token}")), lenient(batch(&ids)))).collect();
    sleep(0.1).await;
    // The bound permits half of the ids of a thirteenth queue.
    let result = harness.look_up_as(&client("u"), batch(&ids)).await;
    assert_eq!(count_refused(&result), 10_000);
    // However full the other queues are, a queue may hold a few ids.
    let result = harness.look_up_as(&client("v"), batch(&numbered("b", 300))).await;
    assert_eq!(count_refused(&result), 44);
    // Cancelled lookups free their places.
    for caller in callers {
        caller.abort();
    }
    sleep(10.0).await;
    harness.add_final("a");
    harness.release_calls();
    assert!(is_final(&only_outcome(harness.look_up_as(&client("v"), single("a")).await)));
}
