//! Waits are bounded, and a client that obeys a 429 succeeds, also when calls fail, tasks are
//! deleted, or other ids are many.

use std::sync::atomic::{AtomicBool, Ordering};

use super::backend::{Call, Reply};
use super::harness::*;
use crate::batcher::{LookupFailure, TaskOutcome};
use crate::task::Service;

fn delete(harness: &Harness, name: &str) {
    harness.batcher.discard_cached(&Service::parse("producer").unwrap(), &id(name));
}

/// Returns a rule that lets the first call with this id fail.
fn fail_once(name: &'static str) -> impl Fn(&Call) -> Option<Reply> + Send {
    let has_failed = AtomicBool::new(false);
    move |call| {
        let is_first = call.ids.iter().any(|id| id == name) && !has_failed.swap(true, Ordering::SeqCst);
        is_first.then(|| Reply::status(500))
    }
}

/// Returns the `retry-after` of a lookup that could not wait any longer.
fn retry_after(outcome: &TaskOutcome) -> Option<f64> {
    match outcome {
        TaskOutcome::Failed(LookupFailure::QueueTimeout { retry_after }) => Some(retry_after.as_secs_f64()),
        _ => None,
    }
}

/// Lets the upstream pause the token for that many seconds.
async fn pause(harness: &Harness, length: u32) {
    harness.script([Reply::too_many_requests(&length.to_string())]);
    let caller = harness.start(single("paused"));
    sleep(0.1).await;
    caller.abort();
}

/// Polls a task every three seconds for `length` seconds. Panics if a poll is a 429.
async fn poll(harness: &Harness, client: &TestClient, name: &str, length: f64) {
    let began = harness.elapsed();
    while harness.elapsed() - began < seconds(length) {
        let outcome = only_outcome(harness.look_up_as(client, single(name)).await);
        assert_eq!(retry_after(&outcome), None, "after {:?}", harness.elapsed() - began);
        sleep(3.0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn obeyed_429_succeeds_after_a_failed_first_call() {
    let harness = Harness::new();
    let ids = numbered("other", 2000);
    ids.iter().for_each(|name| harness.add_pending(name));
    harness.start(long_poll(batch(&ids), 40.0));
    sleep(0.5).await;
    harness.add_final("z");
    harness.reply_with(fail_once("z"));
    let wait = retry_after(&harness.look_up_one("z").await).expect("a 429");
    sleep(wait + 15.0).await;
    assert_eq!(harness.stored_ids(), ["z"]);
}

#[tokio::test(start_paused = true)]
async fn obeyed_429_succeeds_beside_a_refused_id() {
    let harness = Harness::new();
    let names = numbered("z", 20);
    names.iter().for_each(|name| harness.add_final(name));
    harness.reply_with(|call| call.ids.iter().any(|id| id == "bad").then(|| Reply::status(400)));
    pause(&harness, 30).await;
    let mut longest: f64 = 0.0;
    for name in names.iter().map(String::as_str).chain(["bad"]) {
        longest = longest.max(retry_after(&harness.look_up_one(name).await).expect("a 429"));
    }
    sleep(longest + 14.0).await;
    assert_eq!(harness.stored_ids().len(), 20);
}

#[tokio::test(start_paused = true)]
async fn lookup_after_a_delete_fails_with_the_others() {
    let harness = Harness::with(|_, tasks| tasks.queue_timeout = seconds(2.0));
    harness.script([Reply::status(500), Reply::status(401)]);
    harness.hold_calls();
    harness.start(single("a"));
    sleep(0.1).await;
    delete(&harness, "a");
    let after = harness.start(single("a"));
    sleep(3.0).await;
    harness.release_calls();
    sleep(0.1).await;
    assert_eq!(failure_status(&harness.look_up_one("b").await), 401);
    let after = tokio::time::timeout(seconds(5.0), after).await.expect("it ends");
    failure(&only_outcome(after.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn lookup_after_a_delete_waits_for_a_bounded_time() {
    let harness = Harness::new();
    harness.script([Reply::too_many_requests("60")]);
    harness.hold_calls();
    harness.start(single("a"));
    sleep(0.1).await;
    delete(&harness, "a");
    let after = harness.start(single("a"));
    sleep(26.0).await;
    harness.release_calls();
    assert!(retry_after(&only_outcome(after.await.unwrap())).is_some());
    assert!(harness.elapsed() < seconds(52.0), "{:?}", harness.elapsed());
}

#[tokio::test(start_paused = true)]
async fn retry_that_begins_after_a_delete_serves_later_lookups() {
    let harness = Harness::new();
    harness.add_pending("a");
    harness.script([Reply::status(500)]);
    let before = harness.start(single("a"));
    sleep(0.5).await;
    delete(&harness, "a");
    let after = harness.start(single("a"));
    for caller in [before, after] {
        pending_record(&only_outcome(caller.await.unwrap()));
    }
    assert_eq!(harness.call_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn retry_goes_before_calls_for_unknown_ids() {
    let harness = Harness::new();
    harness.reply_with(fail_once("a"));
    let _gone: Vec<_> = numbered("gone", 90).iter().map(|name| harness.start(single(name))).collect();
    sleep(3.5).await;
    harness.add_final("a");
    let began = harness.elapsed();
    assert!(is_final(&harness.look_up_one("a").await));
    assert!(harness.elapsed() - began < seconds(10.0), "{:?}", harness.elapsed() - began);
}

#[tokio::test(start_paused = true)]
async fn ids_that_share_no_call_take_turns_with_batches() {
    let harness = Harness::new();
    harness.add_pending("known");
    harness.look_up_one("known").await;
    sleep(1.5).await;
    let _gone: Vec<_> = (0..90).map(|number| harness.start(single(&format!("gone {number}")))).collect();
    sleep(2.0).await;
    harness.add_final("new");
    let began = harness.elapsed();
    let new = harness.start(single("new"));
    assert!(!pending_record(&only_outcome(harness.look_up(no_cache(single("known"))).await)).is_cached);
    assert!(is_final(&only_outcome(new.await.unwrap())));
    assert!(harness.elapsed() - began < seconds(5.0), "{:?}", harness.elapsed() - began);
}

#[tokio::test(start_paused = true)]
async fn end_of_a_long_poll_counts_only_what_goes_before_the_id() {
    for wait in [None, Some(1.0)] {
        let harness = Harness::new();
        let known = numbered("known", 2000);
        known.iter().for_each(|name| harness.add_pending(name));
        harness.look_up(long_poll(batch(&known), 60.0)).await;
        for name in &known {
            harness.start(single(name));
        }
        harness.start(batch(&numbered("before", 60)));
        sleep(0.1).await;
        harness.add_final("new");
        let lookup = wait.map_or(single("new"), |wait| long_poll(single("new"), wait));
        assert!(is_final(&only_outcome(harness.look_up(lookup).await)), "wait {wait:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_id_is_served_no_longer_than_it_is_remembered() {
    let harness = Harness::new();
    harness.look_up_one("a").await;
    harness.add_final("a");
    sleep(10.0).await;
    pause(&harness, 12).await;
    assert!(is_final(&harness.look_up_one("a").await));
}

#[tokio::test(start_paused = true)]
async fn scheduled_retry_does_not_reduce_the_ids_in_flight() {
    let harness = Harness::new();
    harness.script([Reply::status(500)]);
    harness.start(batch(&numbered("a", 40)));
    sleep(0.5).await;
    harness.hold_calls();
    harness.start(batch(&numbered("b", 50)));
    sleep(0.52).await;
    assert_eq!(harness.batcher.totals().in_flight, 50);
}

#[tokio::test(start_paused = true)]
async fn known_ids_are_fetched_beside_many_new_ones() {
    let harness = Harness::new();
    harness.add_pending("known");
    harness.look_up_one("known").await;
    sleep(2.0).await;
    let other = harness.clone();
    tokio::spawn(async move {
        for round in 0..60 {
            let ids = numbered(&format!("r{round}-"), 600);
            ids.iter().for_each(|name| other.add_pending(name));
            other.start(batch(&ids));
            sleep(10.0).await;
        }
    });
    sleep(60.0).await;
    poll(&harness, &client("t"), "known", 250.0).await;
}

#[tokio::test(start_paused = true)]
async fn known_and_new_ids_of_a_single_service_take_turns() {
    let harness = Harness::new();
    let seedream = client("t").with_service("seedream");
    harness.add_pending("known");
    harness.look_up_as(&seedream, single("known")).await;
    sleep(2.0).await;
    let (other, client) = (harness.clone(), seedream.clone());
    tokio::spawn(async move {
        for round in 0..300 {
            let name = format!("r{round}");
            other.add_final(&name);
            other.start_as(&client, single(&name));
            sleep(1.0).await;
        }
    });
    sleep(0.5).await;
    poll(&harness, &seedream, "known", 150.0).await;
}

#[tokio::test(start_paused = true)]
async fn next_news_comes_after_a_pause() {
    let harness = Harness::new();
    harness.add_pending("a");
    harness.look_up_one("a").await;
    sleep(2.0).await;
    pause(&harness, 30).await;
    let next_news = harness.look_up(single("a")).await.next_news.expect("a pending task");
    assert!(next_news > seconds(20.0), "{next_news:?}");
}

#[tokio::test(start_paused = true)]
async fn limit_of_an_own_call_ends_with_the_long_poll() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    harness.add_pending("b");
    harness.start(single("b"));
    let poll = harness.start(no_cache(long_poll(single("a"), 40.0)));
    sleep(3.0).await;
    harness.add_pending("a");
    sleep(33.0).await;
    pause(&harness, 12).await;
    assert_eq!(retry_after(&only_outcome(poll.await.unwrap())), None);
}
