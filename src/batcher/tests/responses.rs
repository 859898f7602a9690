//! Handling of valid, malformed and refused records.

use super::backend::Reply;
use super::harness::*;
use crate::batcher::{LookupFailure, RecordSource, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn invalid_items_affect_only_their_ids() {
    let harness = Harness::new();
    let a = r#"{"id":"a","finished_at":1}"#;
    let d = [r#"{"id":"d","finished_at":1}"#, r#"{"id":"d","finished_at":2}"#];
    let body = format!(
        r#"{{"items":[{a},{},{{"id":"foreign","finished_at":1}},7,null,{{}},{{"id":"c","finished_at":"soon"}},{a},{}],"count":-1}}"#,
        d[0], d[1]
    );
    harness.script([Reply::body(&body)]);
    let result = harness.look_up(batch(&["a", "b", "c", "d"])).await;
    let outcomes: Vec<&TaskOutcome> = result.outcomes.iter().flatten().collect();
    assert_eq!(final_record(outcomes[0]), a);
    assert!(matches!(outcomes[1], TaskOutcome::Unknown { .. }));
    assert_eq!(pending_record(outcomes[2]).record, r#"{"id":"c","finished_at":"soon"}"#);
    assert_eq!(pending_record(outcomes[3]).record, d[0]);
    assert_eq!(harness.stored_ids(), ["a"]);
    // Conflicting records are not cached, so the next lookup fetches again.
    harness.add_final("d");
    assert!(is_final(&harness.look_up_one("d").await));
}

#[tokio::test(start_paused = true)]
async fn malformed_batch_response_is_retried_then_fails() {
    for body in ["<html>", "[]", "{}", r#"{"items":{}}"#, r#"{"items":[{"id":"a","finished_at":1}"#] {
        let harness = Harness::new();
        harness.spend_first_call().await;
        harness.add_final("a");
        harness.add_final("b");
        harness.script([Reply::body(body)]);
        assert!(harness.look_up(batch(&["a", "b"])).await.outcomes.iter().flatten().all(is_final), "{body}");
        assert_eq!(harness.call_count(), 2);

        let body = body.to_owned();
        harness.reply_with(move |_| Some(Reply::body(&body)));
        let (one, other) = (harness.start(single("c")), harness.start(batch(&["d"])));
        for caller in [one, other] {
            assert!(matches!(failure(&only_outcome(caller.await.unwrap())), LookupFailure::InvalidResponse));
        }
        assert_eq!(harness.call_count(), 2 + 5);
        assert_eq!(harness.stored_ids(), ["a", "b"]);
        harness.reply_normally();
        harness.add_final("c");
        assert!(is_final(&harness.look_up_one("c").await));
    }
}

#[tokio::test(start_paused = true)]
async fn malformed_single_response_is_relayed_and_not_cached() {
    for body in ["<html>", "[]", "", r#"{"id":"a","finished"#, r#"{"id":"other","finished_at":1}"#] {
        let harness = Harness::new();
        harness.script([Reply::body(body)]);
        let (single, other) = (harness.start(single("a")), harness.start(batch(&["a"])));
        let outcome = only_outcome(single.await.unwrap());
        assert!(matches!(outcome, TaskOutcome::Relayed(response) if response.body == body));
        assert!(matches!(failure(&only_outcome(other.await.unwrap())), LookupFailure::InvalidResponse));
        harness.add_final("a");
        assert!(is_final(&harness.look_up_one("a").await));
        assert_eq!(harness.stored_ids(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn redirect_is_neither_followed_nor_relayed() {
    let harness = Harness::new();
    harness.script([Reply::status(302)]);
    assert!(matches!(failure(&harness.look_up_one("a").await), LookupFailure::Redirect));
    assert_eq!(harness.call_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn status_of_each_call_is_reported_once() {
    let harness = Harness::new();
    harness.script([Reply::status(403)]);
    assert_eq!(failure_status(&harness.look_up_one("a").await), 403);
    assert_eq!(harness.reported_statuses(), [403]);
}

#[tokio::test(start_paused = true)]
async fn full_disk_does_not_withhold_the_record() {
    let harness = Harness::new();
    harness.fill_disk();
    harness.add_final("a");
    assert!(matches!(
        harness.look_up_one("a").await,
        TaskOutcome::Final { source: RecordSource::Upstream { is_stored: false }, .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn durations_are_learnt_from_records_that_are_stored() {
    let body = r#"{"items":[{"id":"a","type":"audios","created_at":10,"finished_at":70},
        {"id":"b","created_at":10,"finished_at":70},{"id":"c","created_at":10},{"id":"d","finished_at":70}]}"#;
    for is_disk_full in [false, true] {
        let harness = Harness::new();
        if is_disk_full {
            harness.fill_disk();
        }
        harness.script([Reply::body(body)]);
        harness.look_up(batch(&["a", "b", "c", "d"])).await;
        let changed = harness.durations.take_changed();
        let mut samples: Vec<_> = changed.iter().map(|saved| (&*saved.kind, saved.samples)).collect();
        samples.sort_unstable();
        assert_eq!(samples, if is_disk_full { vec![] } else { vec![("", 2), ("audios", 1)] });
    }
}
