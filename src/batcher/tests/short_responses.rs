//! Responses with fewer records than requested: cut by the upstream, or because ids are unknown.

use super::backend::{Reply, final_json};
use super::harness::*;
use crate::batcher::TaskOutcome;

/// Lets the backend return at most the first `limit` records of a batch.
fn cut_at(harness: &Harness, limit: usize) {
    harness.reply_with(move |call| {
        let items: Vec<String> = call.ids.iter().take(limit).map(|id| final_json(id, "t")).collect();
        let body = format!(r#"{{"items":[{}],"count":{}}}"#, items.join(","), items.len());
        (call.ids.len() > 1).then(|| Reply::body(&body))
    });
}

fn call_sizes(harness: &Harness) -> Vec<usize> {
    harness.called_ids().iter().map(Vec::len).collect()
}

#[tokio::test(start_paused = true)]
async fn cut_response_is_completed_and_its_size_is_learnt() {
    for limit in [12, 20, 49] {
        let harness = Harness::new();
        let ids = numbered("a", 50);
        ids.iter().for_each(|name| harness.add_final(name));
        cut_at(&harness, limit);
        assert_eq!(count_final(&harness.look_up(batch(&ids)).await), 50, "{limit}");
        let first = call_sizes(&harness);
        assert_eq!(first[..2], [50, 50 - limit], "{limit}");
        assert!(first[2..].iter().all(|size| *size <= limit), "{limit}: {first:?}");
        assert_eq!(first.len(), 50_usize.div_ceil(limit), "{limit}: {first:?}");

        harness.clear_records();
        let others = numbered("b", 2 * limit);
        others.iter().for_each(|name| harness.add_final(name));
        assert_eq!(count_final(&harness.look_up(batch(&others)).await), 2 * limit);
        assert_eq!(call_sizes(&harness), [limit, limit]);
        let services = harness.batcher.services();
        let producer = services.iter().find(|view| view.service.as_str() == "producer").unwrap();
        assert_eq!((producer.max_batch, producer.has_learnt_limit), (limit, true));
        let suno = services.iter().find(|view| view.service.as_str() == "suno").unwrap();
        assert_eq!((suno.max_batch, suno.has_learnt_limit), (50, false));
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_ids_beside_twelve_records_are_confirmed_by_one_call() {
    let harness = Harness::new();
    let (known, gone) = (numbered("a", 12), numbered("gone", 8));
    known.iter().for_each(|name| harness.add_final(name));
    let result = harness.look_up(batch(&[known, gone].concat())).await;
    assert_eq!(count_final(&result), 12);
    let is_unknown = |outcome: &Option<TaskOutcome>| matches!(outcome, Some(TaskOutcome::Unknown { .. }));
    assert_eq!(result.outcomes.iter().filter(|outcome| is_unknown(outcome)).count(), 8);
    assert_eq!(call_sizes(&harness), [20, 8]);
    assert!(harness.batcher.services().iter().all(|view| !view.has_learnt_limit));
}

#[tokio::test(start_paused = true)]
async fn response_with_fewer_than_twelve_records_was_not_cut() {
    let harness = Harness::new();
    let (known, gone) = (numbered("a", 11), numbered("gone", 39));
    known.iter().for_each(|name| harness.add_final(name));
    assert_eq!(count_final(&harness.look_up(batch(&[known, gone].concat())).await), 11);
    assert_eq!(call_sizes(&harness), [50]);
}

#[tokio::test(start_paused = true)]
async fn one_missing_id_is_confirmed_by_a_retrieve() {
    let harness = Harness::new();
    let ids = numbered("a", 13);
    ids.iter().for_each(|name| harness.add_final(name));
    cut_at(&harness, 12);
    assert_eq!(count_final(&harness.look_up(batch(&ids)).await), 13);
    assert_eq!(call_sizes(&harness), [13, 1]);
    assert!(harness.batcher.services().iter().any(|view| view.max_batch == 12 && view.has_learnt_limit));
}

#[tokio::test(start_paused = true)]
async fn services_of_the_class_single_have_no_batches() {
    let harness = Harness::with(|upstream, _| upstream.burst = 5);
    harness.fill_bucket().await;
    let ids = numbered("a", 5);
    ids.iter().for_each(|name| harness.add_final(name));
    let seedream = client("t").with_service("seedream");
    assert_eq!(count_final(&harness.look_up_as(&seedream, batch(&ids)).await), 5);
    assert_eq!(call_sizes(&harness), [1; 5]);
}
