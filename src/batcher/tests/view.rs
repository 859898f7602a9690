//! Views for metrics and the admin API.

use std::time::{Duration, Instant};

use super::backend::Reply;
use super::harness::*;
use crate::batcher::Listing;

#[tokio::test(start_paused = true)]
async fn totals_count_queued_ids_ids_in_flight_and_waiters() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    let callers =
        [harness.start(batch(&numbered("a", 60))), harness.start(single("a0")), harness.start(single("b"))];
    sleep(0.5).await;
    let queued = harness.batcher.totals();
    assert_eq!((queued.queued, queued.in_flight, queued.waiters), (61, 0, 3));
    assert!((queued.oldest_queued.as_secs_f64() - 0.5).abs() < 0.02, "{queued:?}");
    harness.hold_calls();
    sleep(0.6).await;
    let sent = harness.batcher.totals();
    assert_eq!((sent.queued, sent.in_flight, sent.waiters), (11, 50, 3));
    harness.release_calls();
    for caller in callers {
        caller.await.unwrap();
    }
    let idle = harness.batcher.totals();
    assert_eq!((idle.queued, idle.in_flight, idle.waiters), (0, 0, 0));
    assert!(idle.oldest_queued.is_zero() && idle.queues == 1 && idle.tokens == 1, "{idle:?}");
}

#[tokio::test(start_paused = true)]
async fn totals_count_snapshots_until_they_are_dropped() {
    let harness = Harness::new();
    harness.add_pending("a");
    let record = pending_record(&harness.look_up_one("a").await).record;
    harness.look_up_one("unknown").await;
    let totals = harness.batcher.totals();
    assert_eq!((totals.snapshots, totals.snapshot_bytes), (1, record.len()));
    harness.start_sweep();
    sleep(120.0).await;
    let totals = harness.batcher.totals();
    assert_eq!((totals.snapshots, totals.snapshot_bytes, totals.queues), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn totals_count_a_scheduled_retry_as_queued() {
    let harness = Harness::new();
    harness.reply_with(|_| Some(Reply::status(503)));
    let caller = harness.start(single("a"));
    sleep(0.5).await;
    let totals = harness.batcher.totals();
    assert_eq!((totals.queued, totals.in_flight), (1, 0));
    assert!(totals.oldest_queued.as_secs_f64() > 0.4, "{totals:?}");
    caller.abort();
}

#[tokio::test(start_paused = true)]
async fn queue_view_counts_ids_waiters_and_snapshots() {
    let harness = Harness::new();
    assert_eq!(harness.batcher.queues(10), Listing { items: vec![], omitted: 0 });
    harness.add_pending("a");
    harness.look_up_one("a").await;
    sleep(0.5).await;
    let Listing { items: views, omitted } = harness.batcher.queues(10);
    let [queue] = &views[..] else { panic!("{views:?}") };
    assert_eq!((queue.queued, queue.in_flight, queue.waiters, queue.snapshots, omitted), (0, 0, 0, 1, 0));
    assert_eq!((queue.longest_queued, queue.paused_for), (None, Duration::ZERO));
    assert_eq!((queue.service.as_str(), queue.token), ("producer", client("t").key().token));
    assert!((queue.requests_per_second - 1.0).abs() < 1e-9, "{queue:?}");
    assert_eq!(queue.idle, seconds(0.51));

    harness.hold_calls();
    numbered("n", 60).iter().for_each(|name| harness.add_pending(name));
    let first = harness.start(batch(&numbered("n", 60)));
    sleep(1.0).await;
    let second = harness.start(single("n7"));
    sleep(0.3).await;
    let queue = &harness.batcher.queues(10).items[0];
    assert_eq!((queue.queued, queue.in_flight, queue.waiters), (10, 50, 2), "{queue:?}");
    assert_eq!(queue.longest_queued, Some(seconds(1.3)));
    first.abort();
    second.abort();
    let _ = (first.await, second.await);
    assert_eq!(harness.batcher.queues(10).items[0].waiters, 0);
    harness.release_calls();
}

#[tokio::test(start_paused = true)]
async fn queue_view_shows_a_halved_rate_and_a_pause() {
    let harness = Harness::new();
    harness.add_pending("a");
    harness.script([Reply::too_many_requests("7")]);
    harness.start(single("a"));
    sleep(1.0).await;
    let queue = &harness.batcher.queues(10).items[0];
    assert!(queue.requests_per_second < 0.6, "{queue:?}");
    assert!(queue.paused_for > seconds(5.0) && queue.paused_for <= seconds(7.0), "{queue:?}");
    assert_eq!(
        (queue.queued, queue.in_flight, queue.waiters),
        (1, 0, 1),
        "the call waits for its retry: {queue:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn pending_tasks_are_listed_oldest_first_up_to_the_limit() {
    let harness = Harness::with(|upstream, _| upstream.burst = 100);
    harness.fill_bucket().await;
    assert_eq!(harness.batcher.pending_tasks(10), Listing { items: vec![], omitted: 0 });
    for name in ["c", "a", "b"] {
        harness.add_pending(name);
        harness.look_up_as(&client(name), single(name)).await;
        sleep(1.0).await;
    }
    harness.add_final("done");
    harness.look_up(single("done")).await;
    harness.look_up(single("unknown")).await;
    let listed = |limit| {
        let Listing { items, omitted } = harness.batcher.pending_tasks(limit);
        (items.into_iter().map(|task| task.id.as_str().to_owned()).collect::<Vec<_>>(), omitted)
    };
    assert_eq!(listed(10), (vec!["c".to_owned(), "a".to_owned(), "b".to_owned()], 0));
    assert_eq!(listed(2), (vec!["c".to_owned(), "a".to_owned()], 1));
    assert_eq!(listed(0), (vec![], 3));

    // Another fetch does not change for how long a task has been known.
    harness.look_up_as(&client("c"), no_cache(single("c"))).await;
    harness.start_as(&client("a"), long_poll(single("a"), 60.0));
    sleep(0.1).await;
    let views = harness.batcher.pending_tasks(10).items;
    assert_eq!(views[0].id.as_str(), "c");
    assert!(views[0].age < seconds(0.5) && views[0].known_for > seconds(3.0), "{:?}", views[0]);
    assert_eq!((views[1].waiters, views[2].waiters), (1, 0));
    assert_eq!(views[2].token, client("b").key().token);
    assert!(harness.batcher.queues(1).omitted >= 2);
}

#[tokio::test(start_paused = true)]
async fn listings_of_many_queues_and_ids_are_bounded() {
    let harness = Harness::with(|upstream, tasks| {
        upstream.burst = 1000;
        upstream.max_batch = 1000;
        tasks.max_ids = 20_000;
        tasks.pending_max_stale = seconds(1e6);
    });
    let ids = numbered("n", 1000);
    ids.iter().for_each(|name| harness.add_pending(name));
    for token in 0..100 {
        harness.look_up_as(&client(&format!("t{token}")), batch(&ids)).await;
    }
    let start = Instant::now();
    let Listing { items: pending, omitted: omitted_tasks } = harness.batcher.pending_tasks(200);
    let Listing { items: queues, omitted: omitted_queues } = harness.batcher.queues(10);
    eprintln!("listed 100 queues with 1,000 tasks each in {:?}", start.elapsed());
    assert_eq!((pending.len(), omitted_tasks), (200, 99_800));
    assert_eq!((queues.len(), omitted_queues), (10, 90));
    assert!(pending.is_sorted_by(|one, other| one.known_for >= other.known_for));
    assert!(queues.iter().all(|queue| queue.snapshots == 1000));
}
