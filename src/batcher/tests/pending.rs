//! What is not finished: remembered for a moment, shown when the queue is long, and never old news told as new.

use super::lab::*;
use super::world::*;
use crate::batcher::{Freshness, LookupFailure, TaskOutcome};

/// Keeps the token's next turns busy for about that many seconds, with ids that nobody else asks for.
fn busy(lab: &Lab, limiters: usize) {
    let ids = names("busy", 50 * limiters);
    ids.iter().for_each(|name| lab.pending(name));
    lab.begin(waiting(batch(&ids), limiters as f64));
}

#[tokio::test(start_paused = true)]
async fn a_pending_answer_is_shown_for_pending_max_age_and_then_asked_again() {
    let lab = Lab::new();
    lab.pending("a");
    let first = pending(&lab.ask_one("a").await);
    assert_eq!((first.1, first.2), (seconds(0.0), false));
    pass(0.9).await;
    let second = pending(&lab.ask_one("a").await);
    assert_eq!(second, (first.0.clone(), seconds(0.9), true));
    let in_a_batch = lab.ask(batch(&["a"])).await;
    assert_eq!((in_a_batch.enqueued.joined, in_a_batch.enqueued.added), (0, 0));
    assert_eq!(pending(&only(in_a_batch)).0, first.0);
    assert_eq!(lab.count(), 1);
    pass(0.11).await;
    let third = pending(&lab.ask_one("a").await);
    assert!(!third.2 && third.0 != first.0);
    assert_eq!(lab.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_can_ask_for_fresher_news() {
    let lab = Lab::new();
    lab.pending("a");
    lab.ask_one("a").await;
    pass(0.5).await;
    let within = |age| {
        let mut look_up = single("a");
        look_up.options.max_age = Some(seconds(age));
        look_up
    };
    assert!(pending(&only(lab.ask(within(0.6)).await)).2);
    assert_eq!(lab.count(), 1);
    let answer = lab.ask(within(0.4)).await;
    assert_eq!((answer.enqueued.added, answer.enqueued.outdated), (1, 1));
    assert!(!pending(&only(answer)).2);
    assert!(!pending(&only(lab.ask(no_cache(single("a"))).await)).2);
    assert_eq!(lab.count(), 3);
    assert_pace(&lab.calls(), 1.0, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_id_is_asked_ever_more_rarely_up_to_half_a_minute() {
    let lab = Lab::new();
    let mut asked = Vec::new();
    while lab.since_start() < seconds(130.0) {
        let before = lab.count();
        let outcome = lab.ask_one("gone").await;
        let TaskOutcome::Unknown { response: Some(word), freshness } = outcome else { panic!("{outcome:?}") };
        assert_eq!(&word.body[..], b"{}");
        assert_eq!(freshness.is_cached(), lab.count() == before);
        asked.push(lab.count());
        pass(0.25).await;
    }
    let calls: Vec<f64> = lab.calls().iter().map(|call| call.at.as_secs_f64()).collect();
    let gaps: Vec<f64> = calls.windows(2).map(|pair| (pair[1] - pair[0]).floor()).collect();
    assert_eq!(gaps, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
    // Once it is known there, all of that is forgotten.
    lab.pending("gone");
    pass(31.0).await;
    pending(&lab.ask_one("gone").await);
    pass(1.0).await;
    assert!(!pending(&lab.ask_one("gone").await).2);
}

#[tokio::test(start_paused = true)]
async fn when_many_finish_together_those_still_waiting_are_shown_their_snapshots() {
    let lab = Lab::new();
    let poll = |place: u32| {
        let (lab, name) = (lab.clone(), format!("a{place}"));
        lab.finishing(&name, seconds(60.0));
        tokio::spawn(async move {
            pass(0.03 * f64::from(place)).await;
            loop {
                match lab.ask_one(&name).await {
                    TaskOutcome::Final { .. } => return,
                    TaskOutcome::Pending { .. } => pass(1.0).await,
                    other => panic!("{:?}: {other:?}", lab.since_start()),
                }
            }
        })
    };
    for poller in (0..1000).map(poll).collect::<Vec<_>>() {
        poller.await.unwrap();
    }
    assert!(lab.since_start() < seconds(82.0), "{:?}", lab.since_start());
}

#[tokio::test(start_paused = true)]
async fn past_queue_timeout_a_young_snapshot_is_shown_with_its_age() {
    let lab = Lab::new();
    lab.pending("a");
    let first = pending(&lab.ask_one("a").await);
    busy(&lab, 12);
    pass(4.0).await;
    let asked_at = lab.since_start();
    let (text, age, remembered) = pending(&lab.ask_one("a").await);
    assert_eq!(lab.since_start() - asked_at, seconds(5.0));
    assert_eq!((&text, remembered), (&first.0, true));
    assert_eq!(lab.since_start() - true_at(text.as_bytes()), age);
    // Its id stays wanted although nobody waits, and its news comes at the end of the queue.
    pass(5.0).await;
    assert_eq!(lab.asked().iter().filter(|ids| ids.contains(&"a".to_owned())).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn past_queue_timeout_without_a_young_snapshot_the_lane_says_when_to_come_back() {
    let lab = Lab::new();
    busy(&lab, 9);
    pass(0.5).await;
    let asked_at = lab.since_start();
    lab.hold();
    let outcome = lab.ask_one("new").await;
    assert_eq!(lab.since_start() - asked_at, seconds(5.0));
    let LookupFailure::QueueTimeout { retry_after } = *failure(&outcome) else { panic!("{outcome:?}") };
    // All 451 ids are wanted or under way.
    assert_eq!(retry_after, seconds(10.0));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_too_old_is_not_shown() {
    let lab = Lab::with(|upstream, _| upstream.requests_per_second = 0.1);
    lab.pending("a");
    lab.ask_one("a").await;
    pass(10.5).await;
    lab.ask_one("other").await;
    pass(3.9).await;
    // Younger than two cycles of one call each.
    let (_, age, _) = pending(&lab.ask_one("a").await);
    assert!((19.3..19.5).contains(&age.as_secs_f64()), "{age:?}");

    let lab = Lab::new();
    lab.pending("a");
    lab.ask_one("a").await;
    lab.next([Reply::LookupResult(answer_with_retry_after(429, "60"))]);
    pass(2.0).await;
    lab.ask_one("b").await;
    pass(14.0).await;
    assert!(matches!(failure(&lab.ask_one("a").await), LookupFailure::QueueTimeout { .. }));
}

#[tokio::test(start_paused = true)]
async fn an_id_answered_with_a_429_is_fetched_and_known_when_the_client_comes_back() {
    let lab = Lab::new();
    busy(&lab, 12);
    pass(0.5).await;
    lab.finished("z");
    // Never seen like the others and later than they, so it is the last.
    assert!(matches!(failure(&lab.ask_one("z").await), LookupFailure::QueueTimeout { .. }));
    pass(9.0).await;
    assert_eq!(lab.kept(), ["z"]);
}

#[tokio::test(start_paused = true)]
async fn an_id_is_wanted_for_pending_max_stale_after_its_last_caller_and_no_longer() {
    let lab = Lab::new();
    busy(&lab, 30);
    pass(0.5).await;
    lab.finished("z");
    assert!(matches!(failure(&lab.ask_one("z").await), LookupFailure::QueueTimeout { .. }));
    pass(60.0).await;
    assert!(lab.kept().is_empty());
    assert!(!lab.asked().concat().contains(&"z".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_id_whose_caller_hung_up_is_not_wanted() {
    let lab = Lab::new();
    busy(&lab, 12);
    pass(0.5).await;
    lab.finished("z");
    let caller = lab.begin(single("z"));
    pass(3.0).await;
    caller.abort();
    pass(30.0).await;
    assert!(!lab.asked().concat().contains(&"z".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn backing_off_does_not_count_as_queueing() {
    let lab = Lab::new();
    lab.finished("a");
    lab.next([Reply::status(500), Reply::status(500), Reply::status(500)]);
    let outcome = lab.ask_one("a").await;
    assert!(lab.since_start() > seconds(7.0));
    assert!(is_finished(&outcome));
}

#[tokio::test(start_paused = true)]
async fn a_full_lane_says_so_at_once() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    let first = lab.begin(batch(&names("a", 10_000)));
    let second = lab.begin(batch(&names("b", 10_000)));
    pass(0.1).await;
    let before = lab.since_start();
    let outcome = lab.ask_one("c").await;
    assert!(
        matches!(failure(&outcome), LookupFailure::QueueFull { retry_after } if *retry_after == seconds(400.0))
    );
    assert_eq!(lab.since_start(), before);
    // What is wanted already can be joined.
    assert!(!matches!(lab.ask_one("a0").await, TaskOutcome::Failed(_)));
    for caller in [first, second] {
        caller.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_only_remembered_does_not_fill_a_lane() {
    let lab = Lab::with(|upstream, _| {
        upstream.max_batch = 1000;
        upstream.requests_per_second = 1000.0;
    });
    for number in 0..30 {
        let names = names(&format!("a{number}-"), 1000);
        names.iter().for_each(|name| lab.pending(name));
        let answer = lab.ask(batch(&names)).await;
        assert!(
            answer.outcomes.iter().flatten().all(|outcome| matches!(outcome, TaskOutcome::Pending { .. }))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_asked_again() {
    let lab = Lab::with(|upstream, _| upstream.burst = 10);
    lab.save_up().await;
    lab.pending("a");
    let service = asker("t").key().service;
    lab.ask(batch(&["a", "gone"])).await;
    lab.queues.discard_cached(&service, &id("a"));
    assert!(!pending(&lab.ask_one("a").await).2);
    assert_eq!(lab.count(), 2);
    lab.queues.discard_all_cached();
    assert!(!pending(&lab.ask_one("a").await).2);
    assert!(matches!(
        only(lab.ask(batch(&["gone"])).await),
        TaskOutcome::Unknown { freshness: Freshness::Fetched, .. }
    ));
    assert_eq!(lab.count(), 4);
}

#[tokio::test(start_paused = true)]
async fn pending_answers_in_memory_have_a_bound() {
    let lab = Lab::with(|upstream, _| upstream.requests_per_second = 1000.0);
    let long = "x".repeat(8 << 20);
    lab.rule(move |call| Some(Reply::body(&format!(r#"{{"id":"{}","x":"{long}"}}"#, call.ids[0]))));
    for name in names("a", 12) {
        assert!(!pending(&lab.ask_one(&name).await).2);
    }
    // The first eight megabytes are remembered, the last ones are not.
    assert!(pending(&lab.ask_one("a0").await).2);
    assert!(!pending(&lab.ask_one("a11").await).2);
    // With the old ones gone there is room again.
    lab.sweep();
    pass(21.0).await;
    lab.ask_one("a11").await;
    assert!(pending(&lab.ask_one("a11").await).2);
}

#[tokio::test(start_paused = true)]
async fn entries_do_not_outlive_their_use() {
    let lab = Lab::new();
    lab.sweep();
    lab.spend_first_call().await;
    for number in 0..300 {
        let caller = lab.begin(single(&format!("gone{number}")));
        if number % 2 == 0 {
            tokio::task::yield_now().await;
            caller.abort();
        }
    }
    // Each of 150 is asked alone, for its caller is owed the upstream's own word.
    pass(300.0).await;
    assert_eq!(lab.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn ids_over_all_lanes_have_a_bound() {
    let lab = Lab::new();
    lab.sweep();
    lab.hold();
    let ids = names("a", 20_000);
    let callers: Vec<_> =
        (0..12).map(|token| lab.begin_as(&asker(&format!("t{token}")), lenient(batch(&ids)))).collect();
    pass(0.1).await;
    // There is room for half of the thirteenth's ids.
    let answer = lab.ask_as(&asker("u"), batch(&ids)).await;
    let full = answer
        .outcomes
        .iter()
        .flatten()
        .filter(|outcome| matches!(failure(outcome), LookupFailure::QueueFull { .. }));
    assert_eq!(full.count(), 10_000);
    // However full the others are, a quiet token has room for some.
    let answer = lab.ask_as(&asker("v"), batch(&names("b", 300))).await;
    let full = answer
        .outcomes
        .iter()
        .flatten()
        .filter(|outcome| matches!(failure(outcome), LookupFailure::QueueFull { .. }));
    assert_eq!(full.count(), 44);
    // Whoever leaves makes room.
    for caller in callers {
        caller.abort();
    }
    pass(10.0).await;
    lab.finished("a");
    lab.release();
    assert!(is_finished(&only(lab.ask_as(&asker("v"), single("a")).await)));
}

/// Ids that a folded call left out each need a call of their own, and the estimate knows.
#[tokio::test(start_paused = true)]
async fn the_cycle_counts_calls_for_single_ids() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    let _callers: Vec<_> = names("gone", 10).iter().map(|name| lab.begin(single(name))).collect();
    pass(1.1).await;
    lab.pending("a");
    let answer = lab.ask(batch(&["a"])).await;
    assert!(answer.cycle >= seconds(8.0), "{:?}", answer.cycle);
}
