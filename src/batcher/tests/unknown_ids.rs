//! Ids that the upstream does not know.

use super::backend::Reply;
use super::harness::*;
use crate::batcher::{Freshness, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn id_left_out_is_fetched_alone_for_a_single_lookup() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    harness.add_final("a");
    harness.script([Reply::Normal, Reply::body("{ }\n")]);
    let (good, gone) = (harness.start(single("a")), harness.start(single("gone")));
    assert!(is_final(&only_outcome(good.await.unwrap())));
    let first_at = harness.elapsed();
    let outcome = only_outcome(gone.await.unwrap());
    assert!(harness.elapsed() - first_at > seconds(0.9));
    let TaskOutcome::Unknown { response: Some(response), freshness: Freshness::Fetched } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(&response.body[..], b"{ }\n");
    assert_eq!(harness.called_ids()[1], ["gone"]);
    assert_eq!(harness.call_count(), 2);

    // A second batch leaves the id out again. The response to its own call is cached, so there is
    // no other one.
    harness.add_pending("b");
    sleep(2.0).await;
    harness.start(single("c"));
    sleep(0.1).await;
    let count = harness.call_count();
    let (other, gone) = (harness.start(single("b")), harness.start(single("gone")));
    pending_record(&only_outcome(other.await.unwrap()));
    let outcome = only_outcome(gone.await.unwrap());
    let TaskOutcome::Unknown { response: Some(response), freshness: Freshness::Fetched } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(&response.body[..], b"{ }\n");
    sleep(10.0).await;
    assert_eq!(harness.call_count(), count + 1);
}

#[tokio::test(start_paused = true)]
async fn id_left_out_is_not_fetched_alone_for_a_batch() {
    let harness = Harness::new();
    harness.add_final("a");
    let result = harness.look_up(batch(&["a", "gone"])).await;
    assert!(matches!(
        result.outcomes[1],
        Some(TaskOutcome::Unknown { response: None, freshness: Freshness::Fetched })
    ));
    sleep(10.0).await;
    assert_eq!(harness.call_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn batch_does_not_wait_for_the_own_call_of_an_id_left_out() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    harness.add_pending("a");
    let gone = numbered("gone", 10);
    let singles: Vec<_> = gone.iter().map(|name| harness.start(single(name))).collect();
    let mut ids = vec!["a"];
    ids.extend(gone.iter().map(String::as_str));
    // The single lookups get their responses two seconds apart, since their calls and batches take
    // turns.
    while harness.elapsed() < seconds(15.0) {
        let began = harness.elapsed();
        let result = harness.look_up(batch(&ids)).await;
        assert!(harness.elapsed() - began < seconds(2.5), "{:?}", harness.elapsed() - began);
        assert!(matches!(result.outcomes[0], Some(TaskOutcome::Pending { .. })));
        assert!(
            result.outcomes[1..].iter().all(|outcome| matches!(outcome, Some(TaskOutcome::Unknown { .. })))
        );
        sleep(1.0).await;
    }
    for single in singles {
        let outcome = only_outcome(single.await.unwrap());
        assert!(
            matches!(outcome, TaskOutcome::Unknown { response: Some(_), freshness: Freshness::Fetched }),
            "{outcome:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn cached_left_out_id_is_fetched_alone_for_a_single_lookup() {
    let harness = Harness::with(|upstream, _| upstream.burst = 3);
    harness.fill_bucket().await;
    harness.add_final("a");
    harness.look_up(batch(&["a", "gone"])).await;
    let outcome = harness.look_up_one("gone").await;
    let TaskOutcome::Unknown { response: Some(response), freshness: Freshness::Fetched } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(&response.body[..], b"{}");
    assert_eq!(harness.called_ids()[1], ["gone"]);
}

#[tokio::test(start_paused = true)]
async fn error_for_an_id_fetched_alone_is_relayed() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    harness.add_final("a");
    harness.script([Reply::Normal, Reply::status(404)]);
    let (good, gone) = (harness.start(single("a")), harness.start(single("gone")));
    assert!(is_final(&only_outcome(good.await.unwrap())));
    assert_eq!(failure_status(&only_outcome(gone.await.unwrap())), 404);
    assert_eq!(harness.call_count(), 2);
}

/// Looks the id up four times a second and returns the whole seconds between the calls.
async fn gaps_until(harness: &Harness, lookup: &TestLookup, end: f64) -> Vec<f64> {
    let from = harness.call_count();
    while harness.elapsed() < seconds(end) {
        let before = harness.call_count();
        let outcome = only_outcome(harness.look_up(lookup.clone()).await);
        let TaskOutcome::Unknown { response: Some(response), freshness } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(&response.body[..], b"{}");
        assert_eq!(freshness.is_cached(), harness.call_count() == before);
        sleep(0.25).await;
    }
    gaps(&harness.calls()[from.saturating_sub(1)..]).into_iter().map(f64::floor).collect()
}

#[tokio::test(start_paused = true)]
async fn unknown_id_is_fetched_every_5_s_until_it_is_10_minutes_old() {
    let harness = Harness::new();
    let new = gaps_until(&harness, &single("gone"), 600.0).await;
    assert_eq!(new[..3], [1.0, 2.0, 4.0]);
    assert!(new[3..].iter().all(|gap| *gap == 5.0), "{new:?}");
    let old = gaps_until(&harness, &single("gone"), 800.0).await;
    assert_eq!(old[old.len() - 3..], [30.0, 30.0, 30.0], "{old:?}");
    // Once the upstream knows the id, it counts as any pending one.
    harness.add_pending("gone");
    sleep(31.0).await;
    pending_record(&harness.look_up_one("gone").await);
    sleep(1.0).await;
    assert!(!pending_record(&harness.look_up_one("gone").await).is_cached);
}

#[tokio::test(start_paused = true)]
async fn empty_response_counts_as_pending_where_the_service_says_so() {
    let harness = Harness::new();
    let dreamina = client("a").with_service("dreamina");
    for _ in 0..5 {
        let before = harness.call_count();
        let result = harness.look_up_as(&dreamina, single("a")).await;
        assert!(matches!(only_outcome(result), TaskOutcome::Unknown { response: Some(_), .. }));
        assert_eq!(harness.call_count(), before + 1);
        sleep(1.1).await;
    }
}
