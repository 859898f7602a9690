//! Calls of a token never exceed its rate.

use std::time::Duration;

use super::backend::{Call, Reply};
use super::harness::*;
use crate::clock;
use crate::upstream::UpstreamError;

#[tokio::test(start_paused = true)]
async fn random_load_never_exceeds_the_rate_of_a_token() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (rate, burst) = (random.choice([0.5, 1.0, 3.7, 20.0]).unwrap(), random.u32(1..5));
        let harness = Harness::with(|upstream, _| {
            (upstream.requests_per_second, upstream.burst) = (rate, burst);
            upstream.max_batch = random.usize(1..5);
        });
        let has_failures = random.bool();
        let mut replies = random.fork();
        let replies = std::sync::Mutex::new(move || match replies.u32(0..10) {
            0 => Some(Reply::status(500)),
            1 => Some(Reply::status(400)),
            2 => Some(Reply::Error(UpstreamError::Interrupted)),
            _ => None,
        });
        harness.reply_with(move |_| has_failures.then(|| replies.lock().unwrap()()).flatten());
        let clients =
            [client("t"), client("t").with_service("suno"), client("t").with_header("1"), client("u")];
        let mut callers = Vec::new();
        while harness.elapsed() < seconds(40.0) {
            for _ in 0..random.usize(0..8) {
                let name = format!("a{}", random.u32(0..40));
                match random.u32(0..4) {
                    0 => harness.add_final(&name),
                    1 => harness.add_final_after(&name, seconds(random.f64() * 20.0)),
                    _ => {}
                }
                let lookup = match random.u32(0..4) {
                    0 => long_poll(single(&name), 5.0),
                    1 => batch(&numbered("a", random.usize(1..20))),
                    2 => no_cache(single(&name)),
                    _ => single(&name),
                };
                let caller = harness.start_as(&clients[random.usize(0..4)], lookup);
                if random.u32(0..5) == 0 {
                    caller.abort();
                }
                callers.push(caller);
            }
            if random.bool() {
                harness.batcher.charge(&client("t").key().token);
            }
            sleep(random.f64() * random.f64()).await;
        }
        for token in ["t", "u"] {
            let calls: Vec<Call> = harness.calls().into_iter().filter(|call| call.token == token).collect();
            assert!(calls.len() > 4, "seed {seed}: only {} calls", calls.len());
            assert_rate(&calls, rate, burst);
        }
        assert!(harness.calls().iter().all(|call| !call.ids.is_empty()));
    }
}

#[tokio::test(start_paused = true)]
async fn full_bucket_permits_one_burst() {
    let harness = Harness::with(|upstream, _| {
        (upstream.burst, upstream.max_batch) = (3, 1);
    });
    harness.fill_bucket().await;
    let ids = numbered("a", 5);
    ids.iter().for_each(|name| harness.add_final(name));
    harness.look_up(batch(&ids)).await;
    let sent: Vec<u64> = harness.calls().iter().map(|call| call.at.as_secs() - 100).collect();
    assert_eq!(sent, [0, 0, 0, 1, 2]);
}

/// Returns the number of calls that a lookup of ten ids makes at once.
async fn calls_at_once(harness: &Harness, token: &str) -> usize {
    let ids = numbered("a", 10);
    ids.iter().for_each(|name| harness.add_final(name));
    let before = harness.call_count();
    let caller = harness.start_as(&client(token), batch(&ids));
    sleep(0.1).await;
    caller.abort();
    harness.call_count() - before
}

#[tokio::test(start_paused = true)]
async fn idle_token_may_make_its_burst_at_once() {
    let harness = Harness::with(|upstream, _| {
        (upstream.burst, upstream.max_batch) = (5, 1);
    });
    harness.start_sweep();
    harness.spend_first_call().await;
    sleep(600.0).await;
    harness.assert_sizes(0, 0);
    assert_eq!(calls_at_once(&harness, "t").await, 5);
    // Sweeps do not drop a bucket that is still filling.
    sleep(10.0).await;
    assert_eq!(calls_at_once(&harness, "t").await, 5);
    sleep(2.0).await;
    assert_eq!(calls_at_once(&harness, "t").await, 2);
}

#[tokio::test(start_paused = true)]
async fn new_token_was_idle_since_the_start() {
    let harness = Harness::with(|upstream, _| {
        (upstream.burst, upstream.max_batch) = (5, 1);
    });
    assert_eq!(calls_at_once(&harness, "t").await, 1);
    sleep(2.0).await;
    assert_eq!(calls_at_once(&harness, "u").await, 3);
    sleep(600.0).await;
    assert_eq!(calls_at_once(&harness, "v").await, 5);
}

#[tokio::test(start_paused = true)]
async fn status_429_halves_the_rate_which_recovers_slowly() {
    let harness = Harness::with(|upstream, _| upstream.max_batch = 1);
    let ids = numbered("a", 200);
    ids.iter().for_each(|name| harness.add_final(name));
    harness.script([Reply::status(429)]);
    let caller = harness.start(long_poll(batch(&ids), 300.0));
    sleep(120.0).await;
    caller.abort();
    let calls = harness.calls();
    let gaps = gaps(&calls);
    assert!((1.9..2.1).contains(&gaps[0]), "{gaps:?}");
    assert!(gaps.windows(2).skip(1).all(|pair| pair[1] <= pair[0] + 0.003), "{gaps:?}");
    let recovered = calls.iter().position(|call| call.seconds() > 31.0).unwrap();
    assert!((0.99..1.01).contains(&gaps[recovered]), "{gaps:?}");
    assert!(gaps[5] > 1.2, "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_pauses_all_queues_of_its_token_only() {
    let harness = Harness::new();
    harness.add_final("a");
    harness.add_final("b");
    harness.script([Reply::too_many_requests("7")]);
    let first = harness.start(single("a"));
    sleep(0.1).await;
    let second = harness.start_as(&client("t").with_service("suno"), long_poll(single("b"), 30.0));
    let other_token = harness.start_as(&client("u"), single("b"));
    assert!(is_final(&only_outcome(other_token.await.unwrap())));
    assert!(harness.elapsed() < seconds(1.0));
    for caller in [first, second] {
        assert!(is_final(&only_outcome(caller.await.unwrap())));
    }
    let calls: Vec<f64> =
        harness.calls().iter().filter(|call| call.token == "t").map(Call::seconds).collect();
    assert!(calls.len() == 3 && (7.0..8.1).contains(&calls[1]), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_as_a_date_is_obeyed() {
    let harness = Harness::new();
    harness.add_final("a");
    let date = std::time::UNIX_EPOCH + Duration::from_secs(u64::try_from(clock::unix_now()).unwrap() + 10);
    harness.script([Reply::too_many_requests(&httpdate::fmt_http_date(date))]);
    assert!(is_final(&harness.look_up_one("a").await));
    let gap = harness.calls()[1].seconds();
    assert!((7.0..11.1).contains(&gap), "{gap}");
}

#[tokio::test(start_paused = true)]
async fn long_retry_after_is_cut_to_a_minute() {
    let harness = Harness::new();
    harness.add_final("a");
    harness.script([Reply::too_many_requests("999999999")]);
    // Longer than the time for retries, so the upstream's error is returned.
    assert_eq!(failure_status(&harness.look_up_one("a").await), 429);
    assert!(harness.elapsed() < seconds(0.1));
    assert!(is_final(&only_outcome(harness.look_up(long_poll(single("a"), 100.0)).await)));
    let gap = harness.calls()[1].seconds();
    assert!((60.0..60.1).contains(&gap), "{gap}");
}

#[tokio::test(start_paused = true)]
async fn passed_through_requests_leave_lookups_half_the_rate() {
    for (every, least, most) in [(0.05, 29, 32), (0.5, 29, 32), (4.0, 44, 47), (1000.0, 58, 60)] {
        let harness = Harness::with(|upstream, _| upstream.max_batch = 1);
        let caller = harness.start(long_poll(batch(&numbered("a", 200)), 1000.0));
        while harness.elapsed() < seconds(60.0) {
            harness.batcher.charge(&client("t").key().token);
            sleep(f64::min(every, 60.0)).await;
        }
        caller.abort();
        let count = harness.call_count();
        assert!((least..=most).contains(&count), "every {every} s: {count} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn passed_through_requests_delay_a_lookup_by_two_intervals() {
    let harness = Harness::new();
    harness.add_final("a");
    for _ in 0..1000 {
        harness.batcher.charge(&client("t").key().token);
    }
    harness.look_up_one("a").await;
    let gap = harness.calls()[0].seconds();
    assert!((1.99..2.01).contains(&gap), "{gap}");
}

#[tokio::test(start_paused = true)]
async fn request_passed_through_after_a_lookup_hung_up_is_charged() {
    let harness = Harness::new();
    harness.spend_first_call().await;
    harness.batcher.charge(&client("t").key().token);
    let caller = harness.start(single("gone"));
    sleep(0.1).await;
    caller.abort();
    sleep(100.0).await;
    let before = harness.elapsed();
    for _ in 0..2 {
        harness.batcher.charge(&client("t").key().token);
    }
    harness.add_final("a");
    harness.look_up_one("a").await;
    let waited = (harness.calls()[0].at - before).as_secs_f64();
    assert!((1.99..2.01).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn queues_of_one_token_take_turns() {
    let harness = Harness::with(|upstream, _| upstream.max_batch = 1);
    let many = harness.start(long_poll(batch(&numbered("a", 500)), 1000.0));
    sleep(10.0).await;
    let few =
        harness.start_as(&client("t").with_service("suno"), long_poll(batch(&numbered("b", 500)), 1000.0));
    sleep(40.0).await;
    let count = |service: &str| {
        harness.calls().iter().filter(|call| call.seconds() > 10.0 && call.service == service).count()
    };
    assert!(count("producer").abs_diff(count("suno")) <= 1, "{} {}", count("producer"), count("suno"));
    for caller in [many, few] {
        caller.abort();
    }
}
