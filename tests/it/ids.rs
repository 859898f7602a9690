//! Task ids: which are equal, which may be batched, and how they reach the upstream.

use std::collections::HashSet;

use crate::support::{TestApp, envelope, final_record, request};

/// Ids that differ only in case, white space, normal form, look-alike letters, escapes or their
/// last byte.
fn similar_ids() -> Vec<String> {
    let mut ids: Vec<String> = [
        "a",
        "A",
        "1",
        "01",
        "1.0",
        "a ",
        " a",
        "a\t",
        "a,b",
        "b",
        "[\"a\",\"b\"]",
        "a\",\"b",
        "\"",
        "\\",
        "\u{e9}",
        "e\u{301}",
        "caf\u{e9}",
        "cafe\u{301}",
        "\u{430}",
        "\u{ff41}",
        "a\u{200b}",
        "\u{1f600}",
        "a\0",
        "nul\0id",
        "nul",
        "a\n",
        "a\nb",
        "\\u0061",
        "%61",
        "null",
        "</script>",
    ]
    .map(str::to_owned)
    .to_vec();
    let longest = "x".repeat(1023);
    ids.extend(["1", "2"].map(|end| format!("{longest}{end}")));
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    ids
}

#[tokio::test]
async fn similar_ids_are_distinct_and_reach_the_upstream_unchanged() {
    let app = TestApp::spawn().await;
    let ids = similar_ids();
    let record = |number: usize| final_record(&ids[number], &number.to_string());
    for (number, id) in ids.iter().enumerate() {
        app.upstream.put_record("producer", "t", id, record(number));
    }
    for expected in ["MISS", "HIT"] {
        for (number, id) in ids.iter().enumerate() {
            let reply = app.retrieve("t", id).await;
            assert_eq!((reply.x_cache(), &reply.body[..]), (expected, record(number).as_bytes()), "{id:?}");
        }
    }
    let requested: Vec<String> =
        app.upstream.lookup_calls().iter().flat_map(refrain_simulator::RecordedCall::ids).collect();
    assert_eq!(requested, ids, "each once, byte for byte");

    let number_of = |id: &str| ids.iter().position(|known| known == id).expect("one of the ids");
    let one = app.batch("t", &["a,b"]).await;
    assert_eq!(one.body, envelope(&[record(number_of("a,b"))]));
    let two = app.batch("t", &["a", "b"]).await;
    assert_eq!(two.body, envelope(&[record(number_of("a")), record(number_of("b"))]));

    let app = app.restart().await;
    let items = app.batch("t", &ids).await.json();
    assert_eq!(items["count"], ids.len());
    for (item, id) in items["items"].as_array().expect("a list").iter().zip(&ids) {
        assert_eq!(item["id"], id.as_str());
    }
}

#[tokio::test]
async fn empty_and_very_long_ids_get_their_own_records() {
    let app = TestApp::spawn().await;
    let huge = "y".repeat(200_000);
    let ids = [String::new(), format!("{huge}1"), format!("{huge}2")];
    for (number, id) in ids.iter().enumerate() {
        app.upstream.put_record("producer", "t", id, final_record(id, &number.to_string()));
    }
    for _ in 0..2 {
        for (number, id) in ids.iter().enumerate() {
            let reply = app.retrieve("t", id).await;
            assert_eq!(reply.body, final_record(id, &number.to_string()), "{number}");
        }
    }
}

#[tokio::test]
async fn id_with_special_characters_is_never_batched() {
    let app = TestApp::spawn().await;
    let ids = ["plain-1", "sp ace", "plain_2", "a,b", "caf\u{e9}"];
    for id in ids {
        app.upstream.put_record("producer", "t", id, final_record(id, "x"));
    }
    let reply = app.batch("t", &ids).await;
    assert_eq!(reply.body, envelope(&ids.map(|id| final_record(id, "x"))));
    for call in app.upstream.lookup_calls() {
        let ids = call.ids();
        let plain = |id: &String| id.starts_with("plain");
        assert!(ids.len() == 1 || ids.iter().all(plain), "{ids:?} in one call");
    }
    assert_eq!(app.calls(), 4);
}

#[tokio::test]
async fn id_over_one_kibibyte_is_passed_through() {
    let app = TestApp::spawn().await;
    let id = "x".repeat(1025);
    app.upstream.put_record("producer", "t", &id, final_record(&id, "x"));
    for calls in 1..=2 {
        let reply = app.retrieve("t", &id).await;
        assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass");
        assert_eq!(reply.body, final_record(&id, "x"));
        assert_eq!(app.calls(), calls);
    }
    let reply = app.batch("t", &["short", &id]).await;
    assert_eq!(reply.header("cache-status"), "refrain; fwd=bypass");
    assert_eq!(app.upstream.calls()[2].ids(), ["short".to_owned(), id]);
}

#[tokio::test]
async fn ids_are_compared_after_json_unescaping() {
    let app = TestApp::spawn().await;
    app.upstream.put_record("producer", "t", "abc", final_record("abc", "x"));
    let bodies = [
        r#"{"action":"retrieve","id":"abc"}"#,
        r#" { "id" : "\u0061bc" ,"action":"retrie\u0076e" } "#,
        "{\r\n\t\"action\": \"retrieve\",\r\n\t\"id\": \"abc\"\r\n}\r\n",
    ];
    for (number, body) in bodies.into_iter().enumerate() {
        let headers = [("authorization", "Bearer t"), ("content-type", "application/json")];
        let reply = app.raw(request("POST /producer/tasks", &headers, body)).await;
        assert_eq!(reply.header("x-cache"), Some(if number == 0 { "MISS" } else { "HIT" }), "{body}");
        assert_eq!(reply.text(), final_record("abc", "x"));
    }
    assert_eq!(app.upstream.call_count(), 1);
}
