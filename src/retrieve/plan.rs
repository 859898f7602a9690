//! The split of a look-up and the putting together of its answer: plain functions on plain data.

use std::collections::HashMap;

use bytes::Bytes;

use crate::task::TaskId;

/// The ids of a look-up: each once, and where each was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Each id once, in the order of its first place.
    pub distinct: Vec<TaskId>,
    /// For each place in the request, the index in `distinct`.
    pub places: Vec<u32>,
}

impl Plan {
    /// A plan for ids as they were asked for.
    pub fn new(ids: Vec<TaskId>) -> Self {
        let mut index: HashMap<TaskId, u32> = HashMap::with_capacity(ids.len());
        let mut distinct = Vec::with_capacity(ids.len());
        let places = ids
            .into_iter()
            .map(|id| {
                let next = u32::try_from(distinct.len()).expect("at most tasks.max_ids ids");
                *index.entry(id).or_insert_with_key(|id| {
                    distinct.push(id.clone());
                    next
                })
            })
            .collect();
        Self { distinct, places }
    }

    /// How many places ask for each id, by its index in `distinct`.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.distinct.len()];
        for place in &self.places {
            counts[*place as usize] += 1;
        }
        counts
    }
}

/// The envelope of a batch: `{"items":[…],"count":n}`, and `"missing":[…]` as a third member after a partial failure.
/// A task that was asked for many times is held once.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The texts by their index in the plan; `None` for ids that are left out.
    texts: Vec<Option<Bytes>>,
    /// The indices of the items, in order.
    items: Vec<u32>,
    tail: Bytes,
}

/// Before the first item.
const HEAD: &[u8] = b"{\"items\":[";

/// How large a piece of an envelope is, about, in bytes. A text larger than half of it goes out uncopied.
const PIECE: usize = 64 * 1024;

impl Envelope {
    /// Puts the texts in request order, repeats repeated, unknown ids left out.
    pub fn new(plan: Plan, texts: Vec<Option<Bytes>>, missing: &[&TaskId]) -> Self {
        let items: Vec<u32> =
            plan.places.into_iter().filter(|place| texts[*place as usize].is_some()).collect();
        let mut tail = format!("],\"count\":{}", items.len()).into_bytes();
        if !missing.is_empty() {
            tail.extend_from_slice(b",\"missing\":");
            let missing: Vec<&str> = missing.iter().map(|id| id.as_str()).collect();
            serde_json::to_writer(&mut tail, &missing).expect("strings become JSON");
        }
        tail.push(b'}');
        Self { texts, items, tail: tail.into() }
    }

    /// The length of the whole answer in bytes.
    pub fn content_length(&self) -> u64 {
        let texts: u64 = self.items.iter().map(|item| self.text(*item).len() as u64).sum();
        let commas = self.items.len().saturating_sub(1) as u64;
        HEAD.len() as u64 + texts + commas + self.tail.len() as u64
    }

    /// The answer piece by piece, each put together when it is asked for.
    pub fn pieces(self) -> impl Iterator<Item = Bytes> + Send {
        let mut step = Step::Item(0);
        // Of a piece's size at once: a buffer that grows is copied each time.
        let capacity = usize::try_from(self.content_length()).unwrap_or(usize::MAX).min(PIECE);
        let mut buffer = Vec::with_capacity(capacity);
        buffer.extend_from_slice(HEAD);
        std::iter::from_fn(move || {
            loop {
                match std::mem::replace(&mut step, Step::Done) {
                    Step::Item(at) if at == self.items.len() => {
                        buffer.extend_from_slice(&self.tail);
                        return Some(std::mem::take(&mut buffer).into());
                    }
                    Step::Item(at) => {
                        if at > 0 {
                            buffer.push(b',');
                        }
                        let text = self.text(self.items[at]);
                        if text.len() > PIECE / 2 {
                            step = Step::Large(at);
                            return Some(std::mem::take(&mut buffer).into());
                        }
                        buffer.extend_from_slice(text);
                        step = Step::Item(at + 1);
                        if buffer.len() > PIECE / 2 {
                            let next = Vec::with_capacity(capacity);
                            return Some(std::mem::replace(&mut buffer, next).into());
                        }
                    }
                    Step::Large(at) => {
                        step = Step::Item(at + 1);
                        return Some(self.text(self.items[at]).clone());
                    }
                    Step::Done => return None,
                }
            }
        })
    }

    fn text(&self, item: u32) -> &Bytes {
        self.texts[item as usize].as_ref().expect("only places with a text became items")
    }
}

enum Step {
    Item(usize),
    Large(usize),
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(text: &str) -> TaskId {
        TaskId::parse(text).unwrap()
    }

    #[test]
    fn repeats_are_asked_once_and_answered_each_time() {
        let plan = Plan::new(vec![id("b"), id("a"), id("b"), id("c")]);
        assert_eq!(plan.distinct, [id("b"), id("a"), id("c")]);
        assert_eq!(plan.places, [0, 1, 0, 2]);
        assert_eq!(plan.counts(), [2, 1, 1]);
        let texts = vec![Some(Bytes::from_static(b"{B}")), None, Some(Bytes::from_static(b"{C}"))];
        let envelope = Envelope::new(plan, texts, &[&id("a\"")]);
        let length = envelope.content_length();
        let body: Vec<u8> = envelope.pieces().flatten().collect();
        assert_eq!(String::from_utf8_lossy(&body), r#"{"items":[{B},{B},{C}],"count":3,"missing":["a\""]}"#);
        assert_eq!(length, body.len() as u64);
    }

    #[test]
    fn a_large_task_repeated_is_not_copied() {
        let text = Bytes::from(vec![b'x'; PIECE]);
        let plan = Plan::new(vec![id("a"); 1000]);
        let envelope = Envelope::new(plan, vec![Some(text.clone())], &[]);
        let whole: Vec<Bytes> = envelope.pieces().filter(|piece| piece.len() == PIECE).collect();
        assert_eq!(whole.len(), 1000);
        assert!(whole.iter().all(|piece| piece.as_ptr() == text.as_ptr()));
    }

    proptest! {
        /// Any mix of stored, missing, repeated and unknown ids gives what an all-upstream answer would give.
        #[test]
        fn an_answer_put_together_is_what_the_upstream_would_send(
            asked in proptest::collection::vec(0_usize..12, 1..60),
            sizes in proptest::collection::vec(proptest::option::of(1_usize..70_000), 12),
        ) {
            let texts: Vec<Option<Bytes>> =
                sizes.iter().enumerate().map(|(n, size)| size.map(|size| Bytes::from(vec![b'a' + n as u8; size]))).collect();
            let plan = Plan::new(asked.iter().map(|n| id(&n.to_string())).collect());
            let known: Vec<Option<Bytes>> =
                plan.distinct.iter().map(|id| texts[id.as_str().parse::<usize>().unwrap()].clone()).collect();
            let items: Vec<&[u8]> = asked.iter().filter_map(|n| texts[*n].as_deref()).collect();
            let mut expected = b"{\"items\":[".to_vec();
            expected.extend_from_slice(&items.join(&b','));
            expected.extend_from_slice(format!("],\"count\":{}}}", items.len()).as_bytes());
            let envelope = Envelope::new(plan, known, &[]);
            prop_assert_eq!(envelope.content_length(), expected.len() as u64);
            let pieces: Vec<Bytes> = envelope.pieces().collect();
            prop_assert!(pieces.iter().all(|piece| piece.len() <= 70_000 + PIECE));
            prop_assert!(pieces.concat() == expected);
        }
    }
}
