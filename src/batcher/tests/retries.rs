//! Retries of failed calls.

use super::backend::Reply;
use super::harness::*;
use crate::batcher::LookupFailure;
use crate::upstream::UpstreamError;

#[tokio::test(start_paused = true)]
async fn status_429_is_absorbed_unless_a_client_sees_it() {
    let harness = Harness::with(|upstream, _| upstream.max_retries = 1);
    let metrics = &harness.batcher.registry.metrics;
    let limited = || (metrics.upstream_rate_limited.get(), metrics.rate_limited_absorbed.get());
    harness.add_final("a");
    harness.script([Reply::status(429)]);
    assert!(is_final(&harness.look_up_one("a").await));
    assert_eq!(limited(), (1, 1), "retried");
    harness.reply_with(|_| Some(Reply::status(429)));
    assert_eq!(failure_status(&harness.look_up_one("b").await), 429);
    assert_eq!(limited(), (3, 2), "retried, then returned to the client");
    sleep(100.0).await;
    harness.hold_calls();
    let caller = harness.start(single("c"));
    sleep(1.0).await;
    caller.abort();
    harness.release_calls();
    sleep(10.0).await;
    assert_eq!(limited(), (4, 3), "no client waits");
}

#[tokio::test(start_paused = true)]
async fn failed_call_is_retried_after_the_documented_pauses() {
    let harness = Harness::with(|upstream, _| upstream.requests_per_second = 100.0);
    harness.reply_with(|_| Some(Reply::status(500)));
    assert_eq!(failure_status(&harness.look_up_one("a").await), 500);
    let gaps = gaps(&harness.calls());
    assert_eq!(gaps.len(), 4);
    for (gap, pause) in gaps.iter().zip([1.0, 2.0, 4.0, 8.0]) {
        assert!((pause..pause + 1.05).contains(gap), "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn interrupted_call_is_retried_without_another_lookup() {
    for reply in
        [Reply::Error(UpstreamError::Interrupted), Reply::status(500), Reply::status(503), Reply::status(429)]
    {
        let harness = Harness::new();
        harness.add_final("a");
        harness.script([reply.clone()]);
        assert!(is_final(&harness.look_up_one("a").await), "{reply:?}");
        assert_eq!(harness.call_count(), 2);
        assert!(harness.elapsed() < seconds(3.1));
    }
}

#[tokio::test(start_paused = true)]
async fn upstream_error_is_returned_after_max_retries() {
    for status in [429, 500, 502, 503, 504] {
        let harness = Harness::with(|upstream, _| upstream.max_retries = 2);
        harness.reply_with(move |_| Some(Reply::status(status)));
        let (one, other) = (harness.start(single("a")), harness.start(batch(&["a", "b"])));
        assert_eq!(failure_status(&only_outcome(one.await.unwrap())), status);
        other.await.unwrap();
        assert_eq!(harness.called_ids().iter().filter(|ids| ids.contains(&"a".to_owned())).count(), 3);
        assert!(harness.stored_ids().is_empty());
        // The error is not cached, and the rate recovers after a while.
        harness.reply_normally();
        sleep(60.0).await;
        harness.add_final("a");
        assert!(is_final(&harness.look_up_one("a").await));
    }
    let harness = Harness::with(|upstream, _| upstream.max_retries = 0);
    harness.script([Reply::Error(UpstreamError::Interrupted)]);
    assert!(matches!(failure(&harness.look_up_one("a").await), LookupFailure::Transport(_)));
    assert_eq!(harness.call_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn other_client_errors_are_not_retried() {
    for status in [400, 403, 404, 409, 418, 422] {
        let harness = Harness::new();
        harness.reply_with(move |_| Some(Reply::status(status)));
        assert_eq!(failure_status(&harness.look_up_one("a").await), status);
        assert_eq!(harness.call_count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn timeout_is_retried_within_the_retry_time() {
    for (length, is_retried) in [(5.0, true), (29.5, false)] {
        let harness = Harness::new();
        harness.add_final("a");
        harness.add_final("b");
        harness.reply_with(|call| (call.token == "t").then(|| Reply::Error(UpstreamError::Timeout)));
        harness.hold_calls();
        let caller = harness.start(single("a"));
        sleep(0.1).await;
        // Another token gets a response meanwhile, so that the circuit stays closed. Held calls end
        // in the order in which they began.
        harness.reply_normally();
        let other = harness.start_as(&client("u"), single("b"));
        sleep(length).await;
        harness.release_calls();
        assert!(is_final(&only_outcome(other.await.unwrap())));
        assert_eq!(is_final(&only_outcome(caller.await.unwrap())), is_retried, "after {length} s");
        assert_eq!(harness.call_count(), 2 + usize::from(is_retried));
    }
}
