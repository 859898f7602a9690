//! Batches that are refused or whose response is too large.

use super::backend::{Reply, final_json};
use super::harness::*;
use crate::batcher::LookupFailure;
use crate::upstream::UpstreamError;

#[tokio::test(start_paused = true)]
async fn refused_id_among_49_good_ones_fails_alone() {
    for status in [400, 404, 413, 422] {
        for place in [0, 24, 49] {
            let harness = Harness::new();
            harness.spend_first_call().await;
            let mut ids = numbered("a", 49);
            ids.iter().for_each(|name| harness.add_final(name));
            ids.insert(place, "refused".to_owned());
            harness.reply_with(move |call| {
                call.ids.iter().any(|id| id == "refused").then(|| Reply::status(status))
            });
            let callers: Vec<_> = ids.iter().map(|name| (name, harness.start(single(name)))).collect();
            for (name, caller) in callers {
                let outcome = only_outcome(caller.await.unwrap());
                match name.as_str() {
                    "refused" => assert_eq!(failure_status(&outcome), status),
                    name => assert_eq!(final_record(&outcome), final_json(name, "t")),
                }
            }
            // One call for the whole batch, then two for each of at most six divisions.
            assert!((11..=13).contains(&harness.call_count()), "{} calls", harness.call_count());
            assert!(
                harness.called_ids().iter().filter(|ids| ids.contains(&"refused".to_owned())).count() <= 7
            );
            assert_rate(&harness.calls(), 1.0, 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn batch_with_a_too_large_response_is_halved() {
    let harness = Harness::new();
    let ids = numbered("a", 8);
    ids.iter().for_each(|name| harness.add_final(name));
    harness.reply_with(|call| (call.ids.len() > 2).then(|| Reply::Error(UpstreamError::TooLarge)));
    let result = harness.look_up(batch(&ids)).await;
    assert_eq!(count_final(&result), 8);
    assert_eq!(harness.called_ids().iter().map(Vec::len).collect::<Vec<_>>(), [8, 4, 4, 2, 2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn too_large_response_for_one_id_is_a_failure() {
    let harness = Harness::new();
    harness.reply_with(|_| Some(Reply::Error(UpstreamError::TooLarge)));
    let outcome = harness.look_up_one("a").await;
    assert!(
        matches!(failure(&outcome), LookupFailure::Transport(error) if *error == UpstreamError::TooLarge)
    );
    assert_eq!(harness.call_count(), 1);
}
