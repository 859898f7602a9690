//! Lookups of the same ids share calls and do not depend on each other.

use super::backend::final_json;
use super::harness::*;
use crate::batcher::{RecordSource, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn lookups_of_one_id_share_one_call() {
    let harness = Harness::new();
    harness.add_final("a");
    harness.hold_calls();
    let callers: Vec<_> = (0..500).map(|_| harness.start(single("a"))).collect();
    sleep(0.5).await;
    harness.release_calls();
    let (mut joined, mut added) = (0, 0);
    for caller in callers {
        let result = caller.await.unwrap();
        joined += result.enqueued.joined;
        added += result.enqueued.added;
        let outcome = only_outcome(result);
        assert_eq!(final_record(&outcome), final_json("a", "t"));
        assert!(matches!(
            outcome,
            TaskOutcome::Final { source: RecordSource::Upstream { is_stored: true }, .. }
        ));
    }
    assert_eq!((joined, added), (499, 1));
    assert_eq!(harness.called_ids(), [["a"]]);
    assert_eq!(harness.stored_ids(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn lookup_cancelled_in_the_queue_does_not_fail_the_others() {
    for cancelled in [0, 2, 4] {
        let harness = Harness::new();
        harness.spend_first_call().await;
        harness.add_final("a");
        let mut callers: Vec<_> = (0..5).map(|_| harness.start(single("a"))).collect();
        sleep(0.1).await;
        callers.remove(cancelled).abort();
        for caller in callers {
            assert!(is_final(&only_outcome(caller.await.unwrap())), "lookup {cancelled} was cancelled");
        }
        assert_eq!(harness.called_ids(), [["a"]]);
    }
}

#[tokio::test(start_paused = true)]
async fn lookup_cancelled_during_the_call_does_not_fail_the_others() {
    for cancelled in [0, 2, 4] {
        let harness = Harness::new();
        harness.add_final("a");
        harness.hold_calls();
        let mut callers: Vec<_> = (0..5).map(|_| harness.start(single("a"))).collect();
        sleep(0.1).await;
        callers.remove(cancelled).abort();
        sleep(0.1).await;
        harness.release_calls();
        for caller in callers {
            assert!(is_final(&only_outcome(caller.await.unwrap())), "lookup {cancelled} was cancelled");
        }
        assert_eq!(harness.called_ids(), [["a"]]);
    }
}

#[tokio::test(start_paused = true)]
async fn id_without_a_waiter_is_never_sent() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    harness.add_final("a");
    harness.add_final("b");
    let cancelled: Vec<_> = (0..3).map(|_| harness.start(batch(&["a", "b"]))).collect();
    let stays = harness.start(single("b"));
    sleep(0.1).await;
    cancelled.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(is_final(&only_outcome(stays.await.unwrap())));
    sleep(60.0).await;
    assert_eq!(harness.called_ids(), [["b"]]);
    // The permit that was not used costs nothing.
    harness.start(single("a")).abort();
    sleep(5.0).await;
    let before = harness.elapsed();
    harness.add_final("c");
    harness.look_up_one("c").await;
    assert_eq!(harness.calls().last().unwrap().at, before);
}

#[tokio::test(start_paused = true)]
async fn call_without_waiters_completes_and_is_stored() {
    let harness = Harness::new();
    harness.add_final("a");
    harness.hold_calls();
    let callers: Vec<_> = (0..3).map(|_| harness.start(single("a"))).collect();
    sleep(0.1).await;
    for caller in callers {
        caller.abort();
    }
    sleep(0.1).await;
    assert!(harness.stored_ids().is_empty());
    harness.release_calls();
    sleep(0.1).await;
    assert_eq!(harness.stored_ids(), ["a"]);
    assert_eq!(harness.call_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn id_in_flight_is_joined_and_the_others_are_fetched() {
    let harness = Harness::with(|upstream, _| upstream.burst = 10);
    for name in ["a", "b", "c"] {
        harness.add_final(name);
    }
    harness.fill_bucket().await;
    harness.hold_calls();
    let first = harness.start(single("a"));
    sleep(0.1).await;
    let second = harness.start(batch(&["a", "b", "c"]));
    sleep(0.1).await;
    assert_eq!(harness.called_ids(), vec![vec!["a"], vec!["b", "c"]]);
    harness.release_calls();
    let result = second.await.unwrap();
    assert_eq!((result.enqueued.joined, result.enqueued.added), (1, 2));
    assert_eq!(count_final(&result), 3);
    assert!(is_final(&only_outcome(first.await.unwrap())));
    assert_eq!(harness.call_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn tokens_services_and_headers_never_share_a_call() {
    let harness = Harness::new();
    let clients = [
        client("t"),
        client("u"),
        client("t").with_service("suno"),
        client("t").with_header("true"),
        client("t").with_header("false"),
        client("u").with_header("true"),
    ];
    harness.add_final("a");
    harness.hold_calls();
    let callers: Vec<_> =
        clients.iter().flat_map(|client| (0..3).map(|_| harness.start_as(client, single("a")))).collect();
    sleep(4.5).await;
    harness.release_calls();
    for (number, caller) in callers.into_iter().enumerate() {
        let token = &["t", "u", "t", "t", "t", "u"][number / 3];
        assert_eq!(final_record(&only_outcome(caller.await.unwrap())), final_json("a", token));
    }
    let mut seen: Vec<_> = harness
        .calls()
        .into_iter()
        .map(|call| {
            assert_eq!(call.ids, ["a"]);
            let forwarded: Vec<_> = call.forwarded.into_iter().map(|(_, value)| value).collect();
            format!("{} {} {forwarded:?}", call.token, call.service)
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            r#"t producer ["false"]"#,
            r#"t producer ["true"]"#,
            "t producer []",
            "t suno []",
            r#"u producer ["true"]"#,
            "u producer []",
        ]
    );
    // Different tokens have different rate limiters.
    let first = |token: &str| harness.calls().iter().find(|call| call.token == token).map(|call| call.at);
    assert_eq!(first("t"), first("u"));
}
