//! Circuit breaker for an unreachable upstream.

use super::backend::{REFUSED, Reply};
use super::harness::*;
use crate::batcher::LookupFailure;
use crate::upstream::{Unreachable, UpstreamError};

#[tokio::test(start_paused = true)]
async fn upstream_counts_as_down_until_it_responds() {
    let harness = Harness::new();
    assert!(!harness.batcher.totals().is_upstream_down);
    assert_eq!(harness.batcher.outage(), None);
    harness.reply_with(|_| Some(Reply::Error(REFUSED)));
    harness.look_up_one("a").await;
    assert!(harness.batcher.totals().is_upstream_down);
    sleep(100.0).await;
    assert!(harness.batcher.totals().is_upstream_down, "a probe is due, but there was no response");
    let untrusted = UpstreamError::Unreachable(Unreachable::Tls);
    harness.reply_with(move |_| Some(Reply::Error(untrusted)));
    harness.look_up_one("a").await;
    let outage = harness.batcher.outage().expect("the probe failed too");
    assert_eq!(outage.error, untrusted, "the last error");
    assert!(outage.lasts_for >= seconds(100.0), "since the first failure: {outage:?}");
    harness.reply_normally();
    sleep(8.1).await;
    harness.look_up_one("a").await;
    assert!(!harness.batcher.totals().is_upstream_down);
    assert_eq!(harness.batcher.outage(), None);
}

#[tokio::test(start_paused = true)]
async fn open_circuit_permits_one_probe_at_a_time() {
    let harness = Harness::new();
    harness.reply_with(|_| Some(Reply::Error(REFUSED)));
    let outcome = harness.look_up_one("a").await;
    assert!(
        matches!(failure(&outcome), LookupFailure::Transport(_) | LookupFailure::UpstreamDown { .. }),
        "{outcome:?}"
    );
    // Lookups of all tokens fail at once, without a call.
    for token in 0..50 {
        let before = harness.elapsed();
        let outcome = only_outcome(harness.look_up_as(&client(&format!("u{token}")), single("a")).await);
        let LookupFailure::UpstreamDown { retry_after, .. } = *failure(&outcome) else {
            panic!("{outcome:?}")
        };
        assert!(retry_after <= seconds(1.0));
        assert_eq!(harness.elapsed(), before);
    }
    assert_eq!(harness.call_count(), 1);
    // Probes are sent less and less often, never two at a time.
    while harness.elapsed() < seconds(60.0) {
        for token in 0..5 {
            harness.start_as(&client(&format!("v{token}")), single("a"));
        }
        sleep(0.1).await;
    }
    assert!((8..=12).contains(&harness.call_count()), "{}", harness.call_count());
    assert_eq!(harness.max_in_flight(), 1);
    // The upstream recovers, and the next probe closes the circuit for all.
    harness.reply_normally();
    harness.add_final("a");
    sleep(8.1).await;
    assert!(is_final(&only_outcome(harness.look_up_as(&client("w0"), single("a")).await)));
    assert!(is_final(&only_outcome(harness.look_up_as(&client("w1"), single("a")).await)));
}

#[tokio::test(start_paused = true)]
async fn late_failures_do_not_permit_a_second_probe() {
    let harness = Harness::new();
    harness.reply_with(|_| Some(Reply::Error(REFUSED)));
    harness.hold_calls();
    // Twenty calls are in flight when the upstream fails.
    for token in 0..20 {
        harness.start_as(&client(&format!("t{token}")), single("a"));
    }
    sleep(1.0).await;
    assert_eq!(harness.max_in_flight(), 20);
    harness.release_calls();
    sleep(0.5).await;
    let before = harness.call_count();
    sleep(1.0).await;
    harness.hold_calls();
    for token in 0..20 {
        harness.start_as(&client(&format!("u{token}")), single("a"));
        sleep(0.3).await;
    }
    assert_eq!(harness.call_count(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn timeout_opens_the_circuit_only_without_other_responses() {
    let harness = Harness::with(|upstream, _| upstream.burst = 5);
    harness.fill_bucket().await;
    harness.reply_with(|call| (call.ids[0] == "slow").then(|| Reply::Error(UpstreamError::Timeout)));
    harness.add_final("a");
    harness.hold_calls();
    let slow = harness.start(single("slow"));
    sleep(30.0).await;
    harness.release_calls();
    assert!(matches!(
        failure(&only_outcome(slow.await.unwrap())),
        LookupFailure::Transport(_) | LookupFailure::UpstreamDown { .. }
    ));
    assert!(matches!(failure(&harness.look_up_one("b").await), LookupFailure::UpstreamDown { .. }));
    sleep(1.1).await;
    assert!(is_final(&harness.look_up_one("a").await));

    // One slow call, while another call that began later gets a response.
    harness.hold_calls();
    let slow = harness.start(single("slow"));
    let other = harness.start_as(&client("u"), single("a"));
    sleep(30.0).await;
    harness.release_calls();
    assert!(is_final(&only_outcome(other.await.unwrap())));
    assert!(matches!(failure(&only_outcome(slow.await.unwrap())), LookupFailure::Transport(_)));
    assert!(is_final(&harness.look_up_one("a").await));
}
