//! Forms of a lookup: each that means the same as `retrieve` or `retrieve_batch` has the same
//! response and causes the same upstream calls. The other forms are in `passthrough`.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::support::{Reply, TestApp, client, final_record, without_pending_cache};

/// A lookup and the choices that its form leaves open.
#[derive(Clone, Debug)]
struct Form {
    /// Kind of each of four tasks: 0 final, 1 pending, 2 unknown.
    kinds: Vec<u8>,
    /// Positions in `kinds`; a single lookup uses the first.
    requested: Vec<usize>,
    is_batch: bool,
    /// Whether `action` is absent, in a single lookup.
    has_no_action: bool,
    has_empty_id: bool,
    has_offset: bool,
    /// `limit` beyond the number of distinct ids.
    limit: Option<usize>,
    rotation: usize,
    is_reversed: bool,
    space: String,
    /// Every character at a multiple of this number is escaped.
    escaped: Option<usize>,
}

fn form() -> impl Strategy<Value = Form> {
    let lookup = (prop::collection::vec(0..3u8, 4), prop::collection::vec(0..4usize, 1..8), any::<bool>());
    let members = (any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(0..3usize));
    let text = (0..5usize, any::<bool>(), "[ \t\r\n]{0,2}", prop::option::of(1..4usize));
    (lookup, members, text).prop_map(|(lookup, members, text)| {
        let (kinds, requested, is_batch) = lookup;
        let (has_no_action, has_empty_id, has_offset, limit) = members;
        let (rotation, is_reversed, space, escaped) = text;
        Form {
            kinds,
            requested,
            is_batch,
            has_no_action,
            has_empty_id,
            has_offset,
            limit,
            rotation,
            is_reversed,
            space,
            escaped,
        }
    })
}

impl Form {
    fn canonical(&self, ids: &[String]) -> String {
        if !self.is_batch {
            return format!(r#"{{"action":"retrieve","id":"{}"}}"#, ids[self.requested[0]]);
        }
        let ids: Vec<&String> = self.requested.iter().map(|index| &ids[*index]).collect();
        format!(r#"{{"action":"retrieve_batch","ids":{}}}"#, json!(ids))
    }

    fn body(&self, ids: &[String]) -> String {
        let space = &self.space;
        let mut members = Vec::new();
        let mut add = |key: &str, value: String| {
            members.push(format!("{space}{}{space}:{space}{value}{space}", self.string(key)));
        };
        if self.is_batch {
            let listed: Vec<String> = self
                .requested
                .iter()
                .map(|index| format!("{space}{}{space}", self.string(&ids[*index])))
                .collect();
            let mut distinct = self.requested.clone();
            distinct.sort_unstable();
            distinct.dedup();
            add("action", self.string("retrieve_batch"));
            add("ids", format!("[{}]", listed.join(",")));
            if self.has_empty_id {
                add("id", "\"\"".to_owned());
            }
            if self.has_offset {
                add("offset", "0".to_owned());
            }
            if let Some(more) = self.limit {
                add("limit", (distinct.len() + more).to_string());
            }
        } else {
            add("id", self.string(&ids[self.requested[0]]));
            if !self.has_no_action {
                add("action", self.string("retrieve"));
            }
        }
        let rotation = self.rotation % members.len();
        members.rotate_left(rotation);
        if self.is_reversed {
            members.reverse();
        }
        format!("{space}{{{}}}{space}", members.join(","))
    }

    fn string(&self, text: &str) -> String {
        let characters = text.chars().enumerate().map(|(index, c)| match self.escaped {
            Some(step) if index % step == 0 => format!("\\u{:04x}", u32::from(c)),
            _ => c.to_string(),
        });
        format!("\"{}\"", characters.collect::<String>())
    }
}

/// Status, body and headers of a response, without those that differ for each request.
fn comparable(reply: &Reply) -> (u16, String, Vec<String>) {
    let names =
        ["content-type", "content-length", "x-cache", "cache-status", "retry-after", "preference-applied"];
    (
        reply.status.as_u16(),
        String::from_utf8_lossy(&reply.body).into_owned(),
        names.map(|name| format!("{name}: {}", reply.header(name))).to_vec(),
    )
}

#[test]
fn equal_forms_have_the_response_of_their_canonical_form() {
    let runtime = Runtime::new().expect("a runtime");
    let app = runtime.block_on(TestApp::spawn_with(without_pending_cache));
    let client = client(app.address);
    let round = AtomicUsize::new(0);
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(&form(), |form| {
        let round = round.fetch_add(1, Ordering::Relaxed);
        let ids: Vec<String> = (0..form.kinds.len()).map(|number| format!("id{round}-{number}")).collect();
        // Nothing is shared between tokens, so both requests find the same state.
        let requests = [("canonical", form.canonical(&ids)), ("form", form.body(&ids))];
        for (token, _) in &requests {
            for (id, kind) in ids.iter().zip(&form.kinds) {
                match kind {
                    0 => app.upstream.put_record("producer", token, id, final_record(id, "x")),
                    1 => app.upstream.put_record("producer", token, id, format!(r#"{{"id":"{id}"}}"#)),
                    _ => {}
                }
            }
        }
        runtime.block_on(async {
            // From the upstream, then what is final from the store.
            for _ in 0..2 {
                let mut results = Vec::new();
                for (token, body) in &requests {
                    app.upstream.clear_calls();
                    let reply = client.look_up(token, body.clone(), &[]).await.expect("a response");
                    let calls: Vec<_> = app.upstream.calls().into_iter().map(|call| call.body).collect();
                    results.push((comparable(&reply), calls));
                }
                prop_assert_eq!(&results[0], &results[1], "{}", requests[1].1);
                let is_bypass = results[1].0.2.contains(&"x-cache: BYPASS".to_owned());
                prop_assert!(!is_bypass, "{}", requests[1].1);
            }
            Ok(())
        })
    });
    if let Err(failure) = checked {
        panic!("{failure}");
    }
}
