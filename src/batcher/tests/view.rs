//! What people are shown of the lanes.

use std::time::{Duration, Instant};

use super::lab::*;
use super::world::*;
use crate::batcher::Listing;

#[tokio::test(start_paused = true)]
async fn a_lane_tells_what_it_wants_asks_and_remembers() {
    let lab = Lab::new();
    assert_eq!(lab.queues.queues(10), Listing { items: vec![], omitted: 0 });
    lab.pending("a");
    lab.ask_one("a").await;
    pass(0.5).await;
    let Listing { items: views, omitted } = lab.queues.queues(10);
    let [queue] = &views[..] else { panic!("{views:?}") };
    assert_eq!((queue.queued, queue.in_flight, queue.waiters, queue.snapshots, omitted), (0, 0, 0, 1, 0));
    assert_eq!((queue.longest_queued, queue.paused_for), (None, Duration::ZERO));
    assert_eq!((queue.service.as_str(), queue.token), ("producer", asker("t").key().token));
    assert!((queue.requests_per_second - 1.0).abs() < 1e-9, "{queue:?}");
    assert_eq!(queue.idle, seconds(0.51));

    lab.hold();
    names("n", 60).iter().for_each(|name| lab.pending(name));
    let first = lab.begin(batch(&names("n", 60)));
    pass(1.0).await;
    let second = lab.begin(single("n7"));
    pass(0.3).await;
    let queue = &lab.queues.queues(10).items[0];
    assert_eq!((queue.queued, queue.in_flight, queue.waiters), (10, 50, 2), "{queue:?}");
    assert_eq!(queue.longest_queued, Some(seconds(1.3)));
    first.abort();
    second.abort();
    let _ = (first.await, second.await);
    assert_eq!(lab.queues.queues(10).items[0].waiters, 0);
    lab.release();
}

#[tokio::test(start_paused = true)]
async fn a_halved_rate_and_a_pause_are_told() {
    let lab = Lab::new();
    lab.pending("a");
    lab.next([Reply::LookupResult(answer_with_retry_after(429, "7"))]);
    lab.begin(single("a"));
    pass(1.0).await;
    let queue = &lab.queues.queues(10).items[0];
    assert!(queue.requests_per_second < 0.6, "{queue:?}");
    assert!(queue.paused_for > seconds(5.0) && queue.paused_for <= seconds(7.0), "{queue:?}");
    assert_eq!(
        (queue.queued, queue.in_flight, queue.waiters),
        (1, 0, 1),
        "the call waits to be repeated: {queue:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn unfinished_tasks_are_told_oldest_first_and_no_more_than_asked_for() {
    let lab = Lab::with(|upstream, _| upstream.burst = 100);
    lab.save_up().await;
    assert_eq!(lab.queues.pending_tasks(10), Listing { items: vec![], omitted: 0 });
    for name in ["c", "a", "b"] {
        lab.pending(name);
        lab.ask_as(&asker(name), single(name)).await;
        pass(1.0).await;
    }
    lab.finished("done");
    lab.ask(single("done")).await;
    lab.ask(single("unknown")).await;
    let told = |most| {
        let Listing { items, omitted } = lab.queues.pending_tasks(most);
        (items.into_iter().map(|task| task.id.as_str().to_owned()).collect::<Vec<_>>(), omitted)
    };
    assert_eq!(told(10), (vec!["c".to_owned(), "a".to_owned(), "b".to_owned()], 0));
    assert_eq!(told(2), (vec!["c".to_owned(), "a".to_owned()], 1));
    assert_eq!(told(0), (vec![], 3));

    // Seen again, it is as old as it was.
    lab.ask_as(&asker("c"), no_cache(single("c"))).await;
    lab.begin_as(&asker("a"), waiting(single("a"), 60.0));
    pass(0.1).await;
    let views = lab.queues.pending_tasks(10).items;
    assert_eq!(views[0].id.as_str(), "c");
    assert!(views[0].age < seconds(0.5) && views[0].known_for > seconds(3.0), "{:?}", views[0]);
    assert_eq!((views[1].waiters, views[2].waiters), (1, 0));
    assert_eq!(views[2].token, asker("b").key().token);
    assert!(lab.queues.queues(1).omitted >= 2);
}

#[tokio::test(start_paused = true)]
async fn many_lanes_and_ids_are_looked_at_one_at_a_time() {
    let lab = Lab::with(|upstream, tasks| {
        upstream.burst = 1000;
        upstream.max_batch = 1000;
        tasks.max_ids = 20_000;
        tasks.pending_max_stale = seconds(1e6);
    });
    let ids = names("n", 1000);
    ids.iter().for_each(|name| lab.pending(name));
    for token in 0..100 {
        lab.ask_as(&asker(&format!("t{token}")), batch(&ids)).await;
    }
    let start = Instant::now();
    let Listing { items: pending, omitted: pending_left_out } = lab.queues.pending_tasks(200);
    let Listing { items: queues, omitted: lanes_left_out } = lab.queues.queues(10);
    eprintln!("100 queues with 1,000 tasks each were looked at in {:?}", start.elapsed());
    assert_eq!((pending.len(), pending_left_out), (200, 99_800));
    assert_eq!((queues.len(), lanes_left_out), (10, 90));
    assert!(pending.is_sorted_by(|one, other| one.known_for >= other.known_for));
    assert!(queues.iter().all(|queue| queue.snapshots == 1000));
}
