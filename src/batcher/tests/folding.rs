//! Ids that wait for the token's turn go out together; a bad one harms only what it concerns.

use super::lab::*;
use super::world::*;
use crate::batcher::{Freshness, LookupFailure, TaskOutcome};
use crate::upstream::UpstreamError;

#[tokio::test(start_paused = true)]
async fn an_idle_lane_sends_at_once() {
    let lab = Lab::new();
    lab.finished("a");
    pass(3.0).await;
    let before = lab.since_start();
    lab.ask_one("a").await;
    assert_eq!(lab.calls()[0].at, before);
    // The next one a second later, and again at once after a pause.
    lab.finished("b");
    lab.ask_one("b").await;
    let gap = (lab.calls()[1].at - before).as_secs_f64();
    assert!((1.0..1.01).contains(&gap), "{gap}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_split_at_exactly_max_batch() {
    for (count, sizes) in
        [(1, vec![1]), (49, vec![49]), (50, vec![50]), (51, vec![50, 1]), (101, vec![50, 50, 1])]
    {
        let lab = Lab::new();
        let ids = names("a", count);
        ids.iter().for_each(|name| lab.finished(name));
        let answer = lab.ask(batch(&ids)).await;
        let texts: Vec<String> = answer.outcomes.iter().flatten().map(finished).collect();
        let expected: Vec<String> = ids.iter().map(|name| finished_text(name, "t")).collect();
        assert_eq!(texts, expected);
        assert_eq!(lab.asked().iter().map(Vec::len).collect::<Vec<_>>(), sizes);
        let mut asked: Vec<String> = lab.asked().concat();
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked.len(), count);
        for (number, call) in lab.calls().iter().enumerate() {
            assert!((call.at.as_secs_f64() - number as f64).abs() < 0.01, "{:?}", call.at);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn batches_and_single_look_ups_share_a_call_of_distinct_ids() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    for name in ["a", "b", "c", "d"] {
        lab.finished(name);
    }
    let callers = [
        lab.begin(batch(&["a", "b", "c"])),
        lab.begin(single("b")),
        lab.begin(batch(&["c", "d"])),
        lab.begin(single("d")),
    ];
    for caller in callers {
        assert!(caller.await.unwrap().outcomes.iter().flatten().all(is_finished));
    }
    let mut asked = lab.asked();
    assert_eq!(asked.len(), 1);
    asked[0].sort_unstable();
    assert_eq!(asked[0], ["a", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn never_seen_ids_go_first_then_the_oldest_snapshot() {
    let lab = Lab::with(|upstream, _| upstream.max_batch = 2);
    for name in ["p1", "p2", "p3", "n1"] {
        lab.pending(name);
    }
    for name in ["p2", "p1", "p3"] {
        pending(&lab.ask_one(name).await);
    }
    let asked = lab.count();
    let callers = [lab.begin(batch(&["p3", "p2", "p1"])), lab.begin(single("n1"))];
    // p3 was seen this moment and is remembered for a second.
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(lab.asked()[asked..], [["n1", "p2"].as_slice(), &["p1"]]);
}

#[tokio::test(start_paused = true)]
async fn ids_that_cannot_be_folded_go_alone() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    let long = "x".repeat(129);
    let ids = ["a", "b c", "d", &long, "e,f"];
    ids.iter().for_each(|name| lab.finished(name));
    let answer = lab.ask(lenient(batch(&ids))).await;
    assert!(answer.outcomes.iter().flatten().filter(|outcome| is_finished(outcome)).count() == 5);
    let mut asked = lab.asked();
    asked.iter_mut().for_each(|ids| ids.sort_unstable());
    asked.sort();
    assert_eq!(asked, vec![vec!["a", "d"], vec!["b c"], vec!["e,f"], vec![&*long]]);
}

#[tokio::test(start_paused = true)]
async fn an_id_left_out_is_asked_alone_for_a_single_look_up() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    lab.finished("a");
    lab.next([Reply::Natural, Reply::body("{ }\n")]);
    let (good, gone) = (lab.begin(single("a")), lab.begin(single("gone")));
    assert!(is_finished(&only(good.await.unwrap())));
    let told_at = lab.since_start();
    let outcome = only(gone.await.unwrap());
    assert!(lab.since_start() - told_at > seconds(0.9));
    let TaskOutcome::Unknown { response: Some(word), freshness: Freshness::Fetched } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(&word.body[..], b"{ }\n");
    assert_eq!(lab.asked()[1], ["gone"]);
    assert_eq!(lab.count(), 2);

    // Asked again with another id and left out again: its word is known, so it is not asked alone again.
    lab.pending("b");
    pass(2.0).await;
    lab.begin(single("c"));
    pass(0.1).await;
    let count = lab.count();
    let (other, gone) = (lab.begin(single("b")), lab.begin(single("gone")));
    pending(&only(other.await.unwrap()));
    let outcome = only(gone.await.unwrap());
    let TaskOutcome::Unknown { response: Some(word), freshness: Freshness::Fetched } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(&word.body[..], b"{ }\n");
    pass(10.0).await;
    assert_eq!(lab.count(), count + 1);
}

#[tokio::test(start_paused = true)]
async fn an_id_left_out_is_not_asked_alone_for_a_batch() {
    let lab = Lab::new();
    lab.finished("a");
    let answer = lab.ask(batch(&["a", "gone"])).await;
    assert!(matches!(
        answer.outcomes[1],
        Some(TaskOutcome::Unknown { response: None, freshness: Freshness::Fetched })
    ));
    pass(10.0).await;
    assert_eq!(lab.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn batches_do_not_wait_for_the_own_call_of_an_id_left_out() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    lab.pending("a");
    let gone = names("gone", 10);
    let singles: Vec<_> = gone.iter().map(|name| lab.begin(single(name))).collect();
    let mut asked = vec!["a"];
    asked.extend(gone.iter().map(String::as_str));
    // The single look-ups are answered two seconds apart, since their calls and folded ones take turns.
    while lab.since_start() < seconds(15.0) {
        let began = lab.since_start();
        let answer = lab.ask(batch(&asked)).await;
        assert!(lab.since_start() - began < seconds(2.5), "{:?}", lab.since_start() - began);
        assert!(matches!(answer.outcomes[0], Some(TaskOutcome::Pending { .. })));
        assert!(
            answer.outcomes[1..].iter().all(|outcome| matches!(outcome, Some(TaskOutcome::Unknown { .. })))
        );
        pass(1.0).await;
    }
    for single in singles {
        let outcome = only(single.await.unwrap());
        assert!(
            matches!(outcome, TaskOutcome::Unknown { response: Some(_), freshness: Freshness::Fetched }),
            "{outcome:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_remembered_as_left_out_is_still_asked_alone_for_a_single_look_up() {
    let lab = Lab::with(|upstream, _| upstream.burst = 3);
    lab.save_up().await;
    lab.finished("a");
    lab.ask(batch(&["a", "gone"])).await;
    let outcome = lab.ask_one("gone").await;
    let TaskOutcome::Unknown { response: Some(word), freshness: Freshness::Fetched } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(&word.body[..], b"{}");
    assert_eq!(lab.asked()[1], ["gone"]);
}

#[tokio::test(start_paused = true)]
async fn an_error_to_an_id_asked_alone_is_relayed() {
    let lab = Lab::new();
    lab.spend_first_call().await;
    lab.finished("a");
    lab.next([Reply::Natural, Reply::status(404)]);
    let (good, gone) = (lab.begin(single("a")), lab.begin(single("gone")));
    assert!(is_finished(&only(good.await.unwrap())));
    assert_eq!(failed_with(&only(gone.await.unwrap())), 404);
    assert_eq!(lab.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_poisonous_id_among_49_good_ones_harms_nobody_else() {
    for status in [400, 404, 413, 422] {
        for place in [0, 24, 49] {
            let lab = Lab::new();
            lab.spend_first_call().await;
            let mut ids = names("a", 49);
            ids.iter().for_each(|name| lab.finished(name));
            ids.insert(place, "poison".to_owned());
            lab.rule(move |call| call.ids.iter().any(|id| id == "poison").then(|| Reply::status(status)));
            let callers: Vec<_> = ids.iter().map(|name| (name, lab.begin(single(name)))).collect();
            for (name, caller) in callers {
                let outcome = only(caller.await.unwrap());
                match name.as_str() {
                    "poison" => assert_eq!(failed_with(&outcome), status),
                    name => assert_eq!(finished(&outcome), finished_text(name, "t")),
                }
            }
            // One whole call, then two for each of at most six halvings.
            assert!((11..=13).contains(&lab.count()), "{} calls", lab.count());
            assert!(lab.asked().iter().filter(|ids| ids.contains(&"poison".to_owned())).count() <= 7);
            assert_pace(&lab.calls(), 1.0, 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_folded_answer_that_is_too_large_is_halved() {
    let lab = Lab::new();
    let ids = names("a", 8);
    ids.iter().for_each(|name| lab.finished(name));
    lab.rule(|call| (call.ids.len() > 2).then(|| Reply::Error(error::too_large())));
    let answer = lab.ask(batch(&ids)).await;
    assert!(answer.outcomes.iter().flatten().filter(|outcome| is_finished(outcome)).count() == 8);
    assert_eq!(lab.asked().iter().map(Vec::len).collect::<Vec<_>>(), [8, 4, 4, 2, 2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_one_id_that_is_too_large_is_a_failure() {
    let lab = Lab::new();
    lab.rule(|_| Some(Reply::Error(error::too_large())));
    let outcome = lab.ask_one("a").await;
    assert!(
        matches!(failure(&outcome), LookupFailure::Transport(error) if *error == UpstreamError::TooLarge)
    );
    assert_eq!(lab.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn odd_items_harm_only_what_they_concern() {
    let lab = Lab::new();
    let a = r#"{"id":"a","finished_at":1}"#;
    let d = [r#"{"id":"d","finished_at":1}"#, r#"{"id":"d","finished_at":2}"#];
    let body = format!(
        r#"{{"items":[{a},{},{{"id":"foreign","finished_at":1}},7,null,{{}},{{"id":"c","finished_at":"soon"}},{a},{}],"count":-1}}"#,
        d[0], d[1]
    );
    lab.next([Reply::body(&body)]);
    let answer = lab.ask(batch(&["a", "b", "c", "d"])).await;
    let outcomes: Vec<&TaskOutcome> = answer.outcomes.iter().flatten().collect();
    assert_eq!(finished(outcomes[0]), a);
    assert!(matches!(outcomes[1], TaskOutcome::Unknown { .. }));
    assert_eq!(pending(outcomes[2]).0, r#"{"id":"c","finished_at":"soon"}"#);
    assert_eq!(pending(outcomes[3]).0, d[0]);
    assert_eq!(lab.kept(), ["a"]);
    // What is in dispute is not remembered, so the next one asks again.
    lab.finished("d");
    assert!(is_finished(&lab.ask_one("d").await));
}

#[tokio::test(start_paused = true)]
async fn a_folded_answer_of_another_shape_is_tried_again_then_fails() {
    for body in ["<html>", "[]", "{}", r#"{"items":{}}"#, r#"{"items":[{"id":"a","finished_at":1}"#] {
        let lab = Lab::new();
        lab.spend_first_call().await;
        lab.finished("a");
        lab.finished("b");
        lab.next([Reply::body(body)]);
        assert!(lab.ask(batch(&["a", "b"])).await.outcomes.iter().flatten().all(is_finished), "{body}");
        assert_eq!(lab.count(), 2);

        let body = body.to_owned();
        lab.rule(move |_| Some(Reply::body(&body)));
        let (one, other) = (lab.begin(single("c")), lab.begin(batch(&["d"])));
        for caller in [one, other] {
            assert!(matches!(failure(&only(caller.await.unwrap())), LookupFailure::InvalidResponse));
        }
        assert_eq!(lab.count(), 2 + 5);
        assert_eq!(lab.kept(), ["a", "b"]);
        lab.natural();
        lab.finished("c");
        assert!(is_finished(&lab.ask_one("c").await));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_answer_that_is_no_task_is_relayed_and_not_remembered() {
    for body in ["<html>", "[]", "", r#"{"id":"a","finished"#, r#"{"id":"other","finished_at":1}"#] {
        let lab = Lab::new();
        lab.next([Reply::body(body)]);
        let (single, other) = (lab.begin(single("a")), lab.begin(batch(&["a"])));
        let outcome = only(single.await.unwrap());
        assert!(matches!(outcome, TaskOutcome::Relayed(answer) if answer.body == body));
        assert!(matches!(failure(&only(other.await.unwrap())), LookupFailure::InvalidResponse));
        lab.finished("a");
        assert!(is_finished(&lab.ask_one("a").await));
        assert_eq!(lab.kept(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_neither_followed_nor_relayed() {
    let lab = Lab::new();
    lab.next([Reply::status(302)]);
    assert!(matches!(failure(&lab.ask_one("a").await), LookupFailure::Redirect));
    assert_eq!(lab.count(), 1);
}
