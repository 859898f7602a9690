//! Choice and order of the ids of a call.

use super::backend::final_json;
use super::harness::*;

#[tokio::test(start_paused = true)]
async fn idle_queue_sends_at_once() {
    let harness = Harness::new();
    harness.add_final("a");
    sleep(3.0).await;
    let before = harness.elapsed();
    harness.look_up_one("a").await;
    assert_eq!(harness.calls()[0].at, before);
    // The next call is sent a second later.
    harness.add_final("b");
    harness.look_up_one("b").await;
    let gap = (harness.calls()[1].at - before).as_secs_f64();
    assert!((1.0..1.01).contains(&gap), "{gap}");
}

#[tokio::test(start_paused = true)]
async fn batch_is_split_at_max_batch() {
    for (count, sizes) in
        [(1, vec![1]), (49, vec![49]), (50, vec![50]), (51, vec![50, 1]), (101, vec![50, 50, 1])]
    {
        let harness = Harness::new();
        let ids = numbered("a", count);
        ids.iter().for_each(|name| harness.add_final(name));
        let result = harness.look_up(batch(&ids)).await;
        let records: Vec<String> = result.outcomes.iter().flatten().map(final_record).collect();
        let expected: Vec<String> = ids.iter().map(|name| final_json(name, "t")).collect();
        assert_eq!(records, expected);
        assert_eq!(harness.called_ids().iter().map(Vec::len).collect::<Vec<_>>(), sizes);
        let mut called: Vec<String> = harness.called_ids().concat();
        called.sort_unstable();
        called.dedup();
        assert_eq!(called.len(), count);
        for (number, call) in harness.calls().iter().enumerate() {
            assert!((call.seconds() - number as f64).abs() < 0.01, "{:?}", call.at);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn batches_and_single_lookups_share_a_call() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    for name in ["a", "b", "c", "d"] {
        harness.add_final(name);
    }
    let callers = [
        harness.start(batch(&["a", "b", "c"])),
        harness.start(single("b")),
        harness.start(batch(&["c", "d"])),
        harness.start(single("d")),
    ];
    for caller in callers {
        assert!(caller.await.unwrap().outcomes.iter().flatten().all(is_final));
    }
    let mut called = harness.called_ids();
    assert_eq!(called.len(), 1);
    called[0].sort_unstable();
    assert_eq!(called[0], ["a", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn new_ids_go_first_then_the_oldest_snapshot() {
    let harness = Harness::with(|upstream, _| upstream.max_batch = 2);
    for name in ["p1", "p2", "p3", "n1"] {
        harness.add_pending(name);
    }
    for name in ["p2", "p1", "p3"] {
        pending_record(&harness.look_up_one(name).await);
    }
    let earlier = harness.call_count();
    let callers = [harness.start(batch(&["p3", "p2", "p1"])), harness.start(single("n1"))];
    // The snapshot of p3 is fresh for a second.
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(harness.called_ids()[earlier..], [["n1", "p2"].as_slice(), &["p1"]]);
}

#[tokio::test(start_paused = true)]
async fn unusual_ids_are_fetched_alone() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    let long = "x".repeat(129);
    let ids = ["a", "b c", "d", &long, "e,f"];
    ids.iter().for_each(|name| harness.add_final(name));
    let result = harness.look_up(lenient(batch(&ids))).await;
    assert_eq!(count_final(&result), 5);
    let mut called = harness.called_ids();
    called.iter_mut().for_each(|ids| ids.sort_unstable());
    called.sort();
    assert_eq!(called, vec![vec!["a", "d"], vec!["b c"], vec!["e,f"], vec![&*long]]);
}
