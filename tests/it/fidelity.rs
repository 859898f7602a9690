//! Fidelity: records are served as the exact bytes of the upstream, and splitting and merging
//! batches is invisible.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::support::{TestApp, envelope};

/// White space as JSON allows it.
fn space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,2}"
}

/// Numbers in forms that a parser would normalise.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,2})?",
        Just("-0".to_owned()),
        Just("1767119785.5890".to_owned()),
        Just("1E400".to_owned()),
    ]
}

/// Content of a JSON string: text of all Unicode planes, and escapes that are not needed.
fn characters() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z0-9 ]{1,6}",
        "[^\"\\\\\\x00-\\x1f]{1,4}",
        Just("\\u00e9".to_owned()),
        Just("\\/".to_owned()),
        Just("\\\"".to_owned()),
        Just("\\\\".to_owned()),
        Just("\\n\\t\\b\\f\\r".to_owned()),
        Just("\\uD83D\\ude00".to_owned()),
        Just("\\ud83d".to_owned()),
        Just("\\u0000".to_owned()),
        Just("\u{2028}\u{feff}</script>".to_owned()),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

/// Any JSON value as text. Its keys have no meaning for finality.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        number(),
        characters().prop_map(|text| format!("\"{text}\"")),
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("{}".to_owned()),
        Just("[ ]".to_owned()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let member = (space(), characters(), space(), inner.clone())
            .prop_map(|(before, key, after, value)| format!("{before}\"k{key}\"{after}:{value}"));
        prop_oneof![
            (prop::collection::vec(inner, 0..4), space())
                .prop_map(|(values, space)| format!("[{space}{}]", values.join(&format!("{space},")))),
            (prop::collection::vec(member, 0..4), space())
                .prop_map(|(members, space)| format!("{{{}{space}}}", members.join(","))),
        ]
    })
}

/// A final record whose id is `ID`: any members in any order, with white space anywhere.
fn task() -> impl Strategy<Value = String> {
    let others = prop::collection::vec((characters(), value()), 0..5);
    // Positive and in the past.
    let finished_at = "[1-9][0-9]{0,8}(\\.[0-9]{1,12})?([eE](-[0-9]|[+]?0))?";
    (others, value(), finished_at, space(), any::<u64>()).prop_map(
        |(others, response, finished_at, space, order)| {
            let mut members: Vec<String> = others
                .into_iter()
                .enumerate()
                .map(|(number, (text, value))| format!("\"x{number}\"{space}:[\"{text}\",{value}]"))
                .collect();
            members.push(format!("\"id\"{space}:{space}\"ID\""));
            members.push(format!("\"response\":{{\"data\":{response}}}"));
            members.push(format!("\"finished_at\":{space}{finished_at}"));
            let turn = usize::try_from(order % members.len() as u64).expect("small");
            members.rotate_left(turn);
            format!("{space}{{{}{space}}}{space}", members.join(&format!("{space},{space}")))
        },
    )
}

/// The body of a batch response with these records, without the white space around them.
fn in_envelope(texts: &[&str]) -> String {
    envelope(&texts.iter().map(|text| text.trim_matches([' ', '\t', '\r', '\n'])).collect::<Vec<_>>())
}

#[test]
fn record_bytes_are_unchanged_on_every_path() {
    let runtime = Runtime::new().expect("a runtime");
    let (hot, cold) = runtime.block_on(async {
        (TestApp::spawn().await, TestApp::spawn_with(|config| config.store.memory_bytes = 0).await)
    });
    let number = AtomicUsize::new(0);
    let kept = std::cell::RefCell::new(Vec::new());
    let config = Config { cases: 96, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(&task(), |text| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let (by_retrieve, by_batch) = (format!("r{number}"), format!("b{number}"));
        let texts = [&by_retrieve, &by_batch].map(|id| text.replacen("\"ID\"", &format!("\"{id}\""), 1));
        runtime.block_on(async {
            for app in [&hot, &cold] {
                for (id, text) in [&by_retrieve, &by_batch].into_iter().zip(&texts) {
                    app.upstream.put_record("producer", "t", id, text.clone());
                }
                let miss = app.retrieve("t", &by_retrieve).await;
                prop_assert_eq!((miss.x_cache(), miss.body.as_ref()), ("MISS", texts[0].as_bytes()));
                let hit = app.retrieve("t", &by_retrieve).await;
                prop_assert_eq!((hit.x_cache(), hit.body.as_ref()), ("HIT", texts[0].as_bytes()));

                let batch = app.batch("t", &[&by_batch, "unknown", &by_retrieve]).await;
                let expected = in_envelope(&[&texts[1], &texts[0]]);
                let found = String::from_utf8(batch.body.to_vec()).expect("UTF-8");
                prop_assert_eq!(compact(&found), compact(&expected));
                let item = app.retrieve("t", &by_batch).await;
                prop_assert_eq!(item.x_cache(), "HIT");
                prop_assert_eq!(trimmed(&item.body), trimmed(texts[1].as_bytes()));
            }
            Ok(())
        })?;
        kept.borrow_mut().push((by_retrieve, texts[0].clone()));
        Ok(())
    });
    if let Err(failure) = checked {
        panic!("{failure}");
    }
    let kept = kept.into_inner();
    runtime.block_on(async {
        for app in [hot, cold] {
            app.upstream.stop().await;
            let app = app.restart().await;
            for (id, text) in &kept {
                let after = app.retrieve("t", id).await;
                assert_eq!((after.x_cache(), after.body.as_ref()), ("HIT", text.as_bytes()));
            }
        }
    });
}

/// A record without the white space around it, which belongs to the batch response.
fn trimmed(text: &[u8]) -> &[u8] {
    text.trim_ascii()
}

/// Count and records of a batch response, without the white space around the records.
fn compact(text: &str) -> String {
    let envelope: Envelope<'_> = serde_json::from_str(text).expect("an envelope");
    let items: Vec<&str> = envelope.items.iter().map(|item| item.get()).collect();
    format!("{} {items:?}", envelope.count)
}

#[derive(serde::Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    items: Vec<&'a serde_json::value::RawValue>,
    count: usize,
}

#[tokio::test]
async fn any_valid_json_record_is_relayed_alone_and_in_a_batch() {
    let app = TestApp::spawn_with(|config| config.tasks.pending_max_age = std::time::Duration::ZERO).await;
    let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
    let values = [
        "123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        // Too large for a double.
        "1E400",
        "-1e999",
        // A title cut in the middle of a surrogate pair.
        r#""caf\u00e9 \ud83d""#,
        &deep,
    ];
    let mut lost = Vec::new();
    for (number, value) in values.into_iter().enumerate() {
        let id = format!("id{number}");
        let text = format!(r#"{{"id":"{id}","response":{{"n":{value}}},"finished_at":1}}"#);
        app.upstream.put_record("producer", "alone", &id, text.clone());
        app.upstream.put_record("producer", "batched", &id, text.clone());
        assert_eq!(app.retrieve("alone", &id).await.body, text);
        if app.batch("batched", &[&id, "unknown"]).await.body != envelope(&[&text]) {
            lost.push(value);
        }
    }
    assert!(lost.is_empty(), "missing in the batch: {lost:?}");
}

#[test]
fn split_and_merged_batch_equals_the_upstream_response() {
    let runtime = Runtime::new().expect("a runtime");
    let app = runtime.block_on(TestApp::spawn_with(|config| {
        config.upstream.max_batch = 3;
        config.tasks.pending_max_age = std::time::Duration::ZERO;
    }));
    let round = AtomicUsize::new(0);
    let config = Config { cases: 96, failure_persistence: None, ..Config::default() };
    // Kind of each of eight ids: 0 stored, 1 final but not requested yet, 2 pending, 3 unknown, 4
    // stored for another token, 5 final with special characters.
    let cases = (prop::collection::vec(0..6u8, 8), prop::collection::vec(0..8usize, 1..16), any::<bool>());
    let checked = TestRunner::new(config).run(&cases, |(kinds, requested, warm_in_batch)| {
        let round = round.fetch_add(1, Ordering::Relaxed);
        runtime.block_on(async {
            let mut warm = Vec::new();
            let ids: Vec<String> = kinds
                .iter()
                .enumerate()
                .map(|(number, kind)| {
                    let id = format!("{}{round}-{number}", if *kind == 5 { "odd é," } else { "id" });
                    let text = crate::support::final_record(&id, "x");
                    match kind {
                        2 => app.upstream.put_record("producer", "t", &id, format!(r#"{{"id":"{id}"}}"#)),
                        3 => {}
                        4 => {
                            app.upstream.put_record("producer", "other", &id, text);
                            warm.push(("other", id.clone()));
                        }
                        _ => app.upstream.put_record("producer", "t", &id, text),
                    }
                    if *kind == 0 {
                        warm.push(("t", id.clone()));
                    }
                    id
                })
                .collect();
            if warm_in_batch {
                for token in ["t", "other"] {
                    let own: Vec<&String> =
                        warm.iter().filter(|(owner, _)| *owner == token).map(|(_, id)| id).collect();
                    if !own.is_empty() {
                        app.batch(token, &own).await;
                    }
                }
            } else {
                for (token, id) in &warm {
                    app.retrieve(token, id).await;
                }
            }
            let requested: Vec<&str> = requested.iter().map(|index| ids[*index].as_str()).collect();
            let body = json!({"action": "retrieve_batch", "ids": requested}).to_string();
            let direct = app
                .send(
                    app.http
                        .post(format!("{}/producer/tasks", app.upstream.base_url()))
                        .bearer_auth("t")
                        .body(body),
                )
                .await;
            app.upstream.clear_calls();
            let response = app.batch("t", &requested).await;
            prop_assert_eq!(response.status.as_u16(), 200);
            prop_assert_eq!(
                String::from_utf8_lossy(&response.body).into_owned(),
                String::from_utf8_lossy(&direct.body).into_owned()
            );
            for call in app.upstream.lookup_calls() {
                for id in call.ids() {
                    let number = ids.iter().position(|known| *known == id).expect("a requested id");
                    prop_assert!(kinds[number] != 0, "a stored record is not requested again");
                    prop_assert!(requested.contains(&id.as_str()));
                }
            }
            Ok(())
        })
    });
    if let Err(failure) = checked {
        panic!("{failure}");
    }
}
