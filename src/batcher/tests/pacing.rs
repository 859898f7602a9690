//! A token's calls never exceed its rate, whatever comes.

use std::time::Duration;

use super::lab::*;
use super::world::*;
use crate::batcher::LookupFailure;
use crate::clock;
use crate::token::Digest;

fn at(call: &Call) -> f64 {
    call.at.as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn no_load_exceeds_the_rate_of_a_token() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (rate, burst) = (random.choice([0.5, 1.0, 3.7, 20.0]).unwrap(), random.u32(1..5));
        let lab = Lab::with(|upstream, _| {
            (upstream.requests_per_second, upstream.burst) = (rate, burst);
            upstream.max_batch = random.usize(1..5);
        });
        let refuse_some = random.bool();
        let mut replies = random.fork();
        let replies = std::sync::Mutex::new(move || match replies.u32(0..10) {
            0 => Some(Reply::status(500)),
            1 => Some(Reply::status(400)),
            2 => Some(Reply::Error(error::interrupted())),
            _ => None,
        });
        lab.rule(move |_| refuse_some.then(|| replies.lock().unwrap()()).flatten());
        let queues = [asker("t"), asker("t").service("suno"), asker("t").forwarding("1"), asker("u")];
        let mut callers = Vec::new();
        while lab.since_start() < seconds(40.0) {
            for _ in 0..random.usize(0..8) {
                let name = format!("a{}", random.u32(0..40));
                match random.u32(0..4) {
                    0 => lab.finished(&name),
                    1 => lab.finishing(&name, seconds(random.f64() * 20.0)),
                    _ => {}
                }
                let look_up = match random.u32(0..4) {
                    0 => waiting(single(&name), 5.0),
                    1 => batch(&names("a", random.usize(1..20))),
                    2 => no_cache(single(&name)),
                    _ => single(&name),
                };
                let caller = lab.begin_as(&queues[random.usize(0..4)], look_up);
                if random.u32(0..5) == 0 {
                    caller.abort();
                }
                callers.push(caller);
            }
            if random.bool() {
                lab.queues.charge(&asker("t").key().token);
            }
            pass(random.f64() * random.f64()).await;
        }
        for token in ["t", "u"] {
            let calls: Vec<Call> = lab.calls().into_iter().filter(|call| call.token == token).collect();
            assert!(calls.len() > 4, "seed {seed}: only {} calls", calls.len());
            assert_pace(&calls, rate, burst);
        }
        assert!(lab.calls().iter().all(|call| !call.ids.is_empty()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_saved_up_burst_goes_at_once_and_no_more() {
    let lab = Lab::with(|upstream, _| {
        (upstream.burst, upstream.max_batch) = (3, 1);
    });
    lab.save_up().await;
    let ids = names("a", 5);
    ids.iter().for_each(|name| lab.finished(name));
    lab.ask(batch(&ids)).await;
    let gaps: Vec<u64> = lab.calls().iter().map(|call| call.at.as_secs() - 100).collect();
    assert_eq!(gaps, [0, 0, 0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_429_halves_the_rate_which_recovers_slowly() {
    let lab = Lab::with(|upstream, _| upstream.max_batch = 1);
    let ids = names("a", 200);
    ids.iter().for_each(|name| lab.finished(name));
    lab.next([Reply::status(429)]);
    let caller = lab.begin(waiting(batch(&ids), 300.0));
    pass(120.0).await;
    caller.abort();
    let calls = lab.calls();
    let gaps: Vec<f64> = calls.windows(2).map(|pair| at(&pair[1]) - at(&pair[0])).collect();
    assert!((1.9..2.1).contains(&gaps[0]), "{gaps:?}");
    assert!(gaps.windows(2).skip(1).all(|pair| pair[1] <= pair[0] + 0.003), "{gaps:?}");
    let recovered = calls.iter().position(|call| at(call) > 31.0).unwrap();
    assert!((0.99..1.01).contains(&gaps[recovered]), "{gaps:?}");
    assert!(gaps[5] > 1.2, "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_in_seconds_holds_all_lanes_of_the_token_and_no_other() {
    let lab = Lab::new();
    lab.finished("a");
    lab.finished("b");
    lab.next([Reply::LookupResult(answer_with_retry_after(429, "7"))]);
    let first = lab.begin(single("a"));
    pass(0.1).await;
    let second = lab.begin_as(&asker("t").service("suno"), waiting(single("b"), 30.0));
    let stranger = lab.begin_as(&asker("u"), single("b"));
    assert!(is_finished(&only(stranger.await.unwrap())));
    assert!(lab.since_start() < seconds(1.0));
    for caller in [first, second] {
        assert!(is_finished(&only(caller.await.unwrap())));
    }
    let calls: Vec<f64> = lab.calls().iter().filter(|call| call.token == "t").map(at).collect();
    assert!(calls.len() == 3 && (7.0..8.1).contains(&calls[1]), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_as_a_date_is_obeyed() {
    let lab = Lab::new();
    lab.finished("a");
    let date = std::time::UNIX_EPOCH + Duration::from_secs(u64::try_from(clock::unix_now()).unwrap() + 10);
    lab.next([Reply::LookupResult(answer_with_retry_after(429, &httpdate::fmt_http_date(date)))]);
    assert!(is_finished(&lab.ask_one("a").await));
    let gap = at(&lab.calls()[1]);
    assert!((7.0..11.1).contains(&gap), "{gap}");
}

#[tokio::test(start_paused = true)]
async fn an_absurd_retry_after_is_cut_to_a_minute() {
    let lab = Lab::new();
    lab.finished("a");
    lab.next([Reply::LookupResult(answer_with_retry_after(429, "999999999"))]);
    // Longer than a caller's patience, so the upstream's word is the answer.
    assert_eq!(failed_with(&lab.ask_one("a").await), 429);
    assert!(lab.since_start() < seconds(0.1));
    assert!(is_finished(&only(lab.ask(waiting(single("a"), 100.0)).await)));
    let gap = at(&lab.calls()[1]);
    assert!((60.0..60.1).contains(&gap), "{gap}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_is_tried_again_after_the_documented_pauses() {
    let lab = Lab::with(|upstream, _| upstream.requests_per_second = 100.0);
    lab.rule(|_| Some(Reply::status(500)));
    assert_eq!(failed_with(&lab.ask_one("a").await), 500);
    let calls = lab.calls();
    let gaps: Vec<f64> = calls.windows(2).map(|pair| at(&pair[1]) - at(&pair[0])).collect();
    assert_eq!(gaps.len(), 4);
    for (gap, pause) in gaps.iter().zip([1.0, 2.0, 4.0, 8.0]) {
        assert!((pause..pause + 1.05).contains(gap), "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn passed_through_requests_spend_and_leave_look_ups_half_the_rate() {
    for (every, least, most) in [(0.05, 29, 32), (0.5, 29, 32), (4.0, 44, 47), (1000.0, 58, 60)] {
        let lab = Lab::with(|upstream, _| upstream.max_batch = 1);
        let caller = lab.begin(waiting(batch(&names("a", 200)), 1000.0));
        while lab.since_start() < seconds(60.0) {
            lab.queues.charge(&asker("t").key().token);
            pass(f64::min(every, 60.0)).await;
        }
        caller.abort();
        let count = lab.count();
        assert!((least..=most).contains(&count), "every {every} s: {count} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_that_passed_through_delays_a_look_up_by_two_turns_at_most() {
    let lab = Lab::new();
    lab.finished("a");
    for _ in 0..1000 {
        lab.queues.charge(&asker("t").key().token);
    }
    lab.ask_one("a").await;
    let gap = at(&lab.calls()[0]);
    assert!((1.99..2.01).contains(&gap), "{gap}");
}

#[tokio::test(start_paused = true)]
async fn lanes_of_one_token_take_turns() {
    let lab = Lab::with(|upstream, _| upstream.max_batch = 1);
    let many = lab.begin(waiting(batch(&names("a", 500)), 1000.0));
    pass(10.0).await;
    let few = lab.begin_as(&asker("t").service("suno"), waiting(batch(&names("b", 500)), 1000.0));
    pass(40.0).await;
    let count =
        |service: &str| lab.calls().iter().filter(|call| at(call) > 10.0 && call.service == service).count();
    assert!(count("producer").abs_diff(count("suno")) <= 1, "{} {}", count("producer"), count("suno"));
    for caller in [many, few] {
        caller.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn idle_lanes_and_buckets_are_forgotten() {
    let lab = Lab::new();
    for token in 0..200 {
        let asker = asker(&format!("token{token}"));
        lab.queues.charge(&asker.key().token);
        lab.ask_as(&asker, single("a")).await;
    }
    assert_eq!(lab.counts(), (200, 200));
    lab.sweep();
    pass(60.0).await;
    assert_eq!(lab.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_tokens_have_a_bound() {
    let lab = Lab::new();
    for token in 0..110_000_u32 {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&token.to_be_bytes());
        lab.queues.charge(&Digest::from(digest));
    }
    let (_, buckets) = lab.counts();
    assert!((80_000..=100_000).contains(&buckets), "{buckets}");
    for token in 0..12_000_u32 {
        lab.ask_as(&asker(&format!("token{token}")), single("a")).await;
    }
    let (queues, buckets) = lab.counts();
    assert!(queues <= 10_000 && buckets <= 100_000, "{queues} {buckets}");
    lab.sweep();
    pass(100.0).await;
    assert_eq!(lab.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn more_busy_lanes_than_there_is_room_for_are_refused() {
    let lab = Lab::with(|_, tasks| tasks.queue_timeout = seconds(100.0));
    lab.hold();
    let mut callers = Vec::new();
    for token in 0..10_000_u32 {
        callers.push(lab.begin_as(&asker(&format!("token{token}")), single("a")));
    }
    pass(0.1).await;
    assert_eq!(lab.counts().0, 10_000);
    let outcome = only(lab.ask_as(&asker("extra"), single("a")).await);
    assert!(matches!(failure(&outcome), LookupFailure::QueueFull { retry_after } if !retry_after.is_zero()));
    // Whoever has a lane is served, within the bound of calls under way.
    assert_eq!(lab.count(), 512);
    lab.finished("a");
    lab.release();
    for caller in callers {
        assert!(is_finished(&only(caller.await.unwrap())));
    }
    assert!(lab.most_under_way() <= 512);
    assert!(is_finished(&only(lab.ask_as(&asker("extra"), single("a")).await)));
}

#[tokio::test(start_paused = true)]
async fn a_slow_upstream_is_not_asked_without_end() {
    let lab = Lab::with(|upstream, _| upstream.max_batch = 1);
    lab.hold();
    let ids = names("a", 40);
    ids.iter().for_each(|name| lab.finished(name));
    let caller = lab.begin(waiting(batch(&ids), 200.0));
    pass(60.0).await;
    assert_eq!(lab.count(), 16);
    lab.release();
    assert!(caller.await.unwrap().outcomes.iter().flatten().all(is_finished));
    assert_pace(&lab.calls(), 1.0, 1);
}
