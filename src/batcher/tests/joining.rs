//! One call answers all who ask for the same id at the same time, and belongs to none of them.

use super::lab::*;
use super::world::*;
use crate::batcher::{RecordSource, TaskOutcome};

#[tokio::test(start_paused = true)]
async fn five_hundred_callers_of_one_id_share_one_call() {
    let lab = Lab::new();
    lab.finished("a");
    lab.hold();
    let callers: Vec<_> = (0..500).map(|_| lab.begin(single("a"))).collect();
    pass(0.5).await;
    lab.release();
    let (mut joined, mut started) = (0, 0);
    for caller in callers {
        let answer = caller.await.unwrap();
        joined += answer.enqueued.joined;
        started += answer.enqueued.added;
        let outcome = only(answer);
        assert_eq!(finished(&outcome), finished_text("a", "t"));
        assert!(matches!(
            outcome,
            TaskOutcome::Final { source: RecordSource::Upstream { is_stored: true }, .. }
        ));
    }
    assert_eq!((joined, started), (499, 1));
    assert_eq!(lab.asked(), [["a"]]);
    assert_eq!(lab.kept(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn whoever_hangs_up_in_the_queue_harms_no_one() {
    for gone in [0, 2, 4] {
        let lab = Lab::new();
        lab.spend_first_call().await;
        lab.finished("a");
        let mut callers: Vec<_> = (0..5).map(|_| lab.begin(single("a"))).collect();
        pass(0.1).await;
        callers.remove(gone).abort();
        for caller in callers {
            assert!(is_finished(&only(caller.await.unwrap())), "caller {gone} left");
        }
        assert_eq!(lab.asked(), [["a"]]);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_hangs_up_during_the_call_harms_no_one() {
    for gone in [0, 2, 4] {
        let lab = Lab::new();
        lab.finished("a");
        lab.hold();
        let mut callers: Vec<_> = (0..5).map(|_| lab.begin(single("a"))).collect();
        pass(0.1).await;
        callers.remove(gone).abort();
        pass(0.1).await;
        lab.release();
        for caller in callers {
            assert!(is_finished(&only(caller.await.unwrap())), "caller {gone} left");
        }
        assert_eq!(lab.asked(), [["a"]]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_that_nobody_waits_for_any_more_is_never_sent() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    lab.finished("a");
    lab.finished("b");
    let gone: Vec<_> = (0..3).map(|_| lab.begin(batch(&["a", "b"]))).collect();
    let stays = lab.begin(single("b"));
    pass(0.1).await;
    gone.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(is_finished(&only(stays.await.unwrap())));
    pass(60.0).await;
    assert_eq!(lab.asked(), [["b"]]);
    // The turn that nobody took was not spent either.
    lab.begin(single("a")).abort();
    pass(5.0).await;
    let before = lab.since_start();
    lab.finished("c");
    lab.ask_one("c").await;
    assert_eq!(lab.calls().last().unwrap().at, before);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_everybody_left_finishes_and_is_kept() {
    let lab = Lab::new();
    lab.finished("a");
    lab.hold();
    let callers: Vec<_> = (0..3).map(|_| lab.begin(single("a"))).collect();
    pass(0.1).await;
    for caller in callers {
        caller.abort();
    }
    pass(0.1).await;
    assert!(lab.kept().is_empty());
    lab.release();
    pass(0.1).await;
    assert_eq!(lab.kept(), ["a"]);
    assert_eq!(lab.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_id_under_way_is_joined_and_the_others_are_asked() {
    let lab = Lab::with(|upstream, _| upstream.burst = 10);
    for name in ["a", "b", "c"] {
        lab.finished(name);
    }
    lab.save_up().await;
    lab.hold();
    let first = lab.begin(single("a"));
    pass(0.1).await;
    let second = lab.begin(batch(&["a", "b", "c"]));
    pass(0.1).await;
    assert_eq!(lab.asked(), vec![vec!["a"], vec!["b", "c"]]);
    lab.release();
    let answer = second.await.unwrap();
    assert_eq!((answer.enqueued.joined, answer.enqueued.added), (1, 2));
    assert!(answer.outcomes.iter().flatten().filter(|outcome| is_finished(outcome)).count() == 3);
    assert!(is_finished(&only(first.await.unwrap())));
    assert_eq!(lab.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn tokens_services_and_forwarded_headers_never_share_a_call() {
    let lab = Lab::new();
    let askers = [
        asker("t"),
        asker("u"),
        asker("t").service("suno"),
        asker("t").forwarding("true"),
        asker("t").forwarding("false"),
        asker("u").forwarding("true"),
    ];
    lab.finished("a");
    lab.hold();
    let callers: Vec<_> =
        askers.iter().flat_map(|asker| (0..3).map(|_| lab.begin_as(asker, single("a")))).collect();
    pass(4.5).await;
    lab.release();
    for (number, caller) in callers.into_iter().enumerate() {
        let token = &["t", "u", "t", "t", "t", "u"][number / 3];
        assert_eq!(finished(&only(caller.await.unwrap())), finished_text("a", token));
    }
    let mut seen: Vec<_> = lab
        .calls()
        .into_iter()
        .map(|call| {
            assert_eq!(call.ids, ["a"]);
            let forwarded: Vec<_> = call.forwarded.into_iter().map(|(_, value)| value).collect();
            format!("{} {} {forwarded:?}", call.token, call.service)
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            r#"t producer ["false"]"#,
            r#"t producer ["true"]"#,
            "t producer []",
            "t suno []",
            r#"u producer ["true"]"#,
            "u producer []",
        ]
    );
    // Different tokens have buckets of their own.
    let first = |token: &str| lab.calls().iter().find(|call| call.token == token).map(|call| call.at);
    assert_eq!(first("t"), first("u"));
}

#[tokio::test(start_paused = true)]
async fn the_upstreams_word_on_a_token_is_passed_on_once_a_call() {
    let lab = Lab::new();
    lab.next([Reply::status(403)]);
    assert_eq!(failed_with(&lab.ask_one("a").await), 403);
    assert_eq!(lab.statuses(), [403]);
}
