//! The split of a look-up and the putting together of its answer: plain functions on plain data.

use std::io::IoSlice;

use bytes::{Buf, Bytes};

use crate::task::{LookupIds, TaskId};

/// The envelope of a batch: `{"items":[…],"count":n}`, and `"missing":[…]` as a third member after a partial failure.
///
/// A [`Buf`] over the texts where they are: a task that was asked for many times is held once, and none is copied.
#[derive(Clone, Debug)]
pub struct BatchBody {
    /// The texts by their index in the plan; `None` for ids that are left out.
    texts: Vec<Option<Bytes>>,
    /// The indices of the items, in order.
    items: Vec<u32>,
    tail: Bytes,
    /// Bytes still to be read.
    left: usize,
    /// The slice that is read next, see [`BatchBody::slice`], and how much of it is read.
    at: usize,
    read: usize,
}

/// Before the first item.
const HEAD: &[u8] = b"{\"items\":[";

impl BatchBody {
    /// Puts the texts in request order, repeats repeated, unknown ids left out.
    pub fn new(plan: &LookupIds, texts: Vec<Option<Bytes>>, missing: &[&TaskId]) -> Self {
        let mut items = plan.positions().to_vec();
        items.retain(|place| texts[*place as usize].is_some());
        let mut tail = format!("],\"count\":{}", items.len()).into_bytes();
        if !missing.is_empty() {
            tail.extend_from_slice(b",\"missing\":");
            let missing: Vec<&str> = missing.iter().map(|id| id.as_str()).collect();
            serde_json::to_writer(&mut tail, &missing).expect("strings become JSON");
        }
        tail.push(b'}');
        let mut envelope = Self { texts, items, tail: tail.into(), left: 0, at: 0, read: 0 };
        let texts: usize = envelope.items.iter().map(|item| envelope.text(*item).len()).sum();
        let commas = envelope.items.len().saturating_sub(1);
        envelope.left = HEAD.len() + texts + commas + envelope.tail.len();
        envelope
    }

    /// The answer as slices: its head, then the items with commas between them, then its tail.
    fn slice(&self, at: usize) -> &[u8] {
        let last = (2 * self.items.len()).max(1);
        match at {
            0 => HEAD,
            at if at >= last => &self.tail,
            at if at % 2 == 1 => self.text(self.items[at / 2]),
            _ => b",",
        }
    }

    fn text(&self, item: u32) -> &Bytes {
        self.texts[item as usize].as_ref().expect("only places with a text became items")
    }
}

impl Buf for BatchBody {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        if self.left == 0 { &[] } else { &self.slice(self.at)[self.read..] }
    }

    fn chunks_vectored<'a>(&'a self, target: &mut [IoSlice<'a>]) -> usize {
        let (mut left, mut read) = (self.left, self.read);
        for (filled, target) in target.iter_mut().enumerate() {
            if left == 0 {
                return filled;
            }
            let slice = &self.slice(self.at + filled)[read..];
            *target = IoSlice::new(slice);
            left -= slice.len();
            read = 0;
        }
        target.len()
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.left, "no more than remains");
        self.left -= count;
        self.read += count;
        while self.left > 0 && self.read >= self.slice(self.at).len() {
            self.read -= self.slice(self.at).len();
            self.at += 1;
        }
    }
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
        let plan = LookupIds::batch(vec![id("b"), id("a"), id("b"), id("c")]);
        let texts = vec![Some(Bytes::from_static(b"{B}")), None, Some(Bytes::from_static(b"{C}"))];
        let mut envelope = BatchBody::new(&plan, texts, &[&id("a\"")]);
        let length = envelope.remaining();
        let body = envelope.copy_to_bytes(length);
        assert_eq!(String::from_utf8_lossy(&body), r#"{"items":[{B},{B},{C}],"count":3,"missing":["a\""]}"#);
    }

    #[test]
    fn nothing_known_is_an_empty_envelope() {
        let mut envelope = BatchBody::new(&LookupIds::batch(vec![id("a")]), vec![None], &[]);
        assert_eq!(envelope.copy_to_bytes(envelope.remaining()), r#"{"items":[],"count":0}"#);
        assert!(envelope.chunk().is_empty());
    }

    #[test]
    fn a_task_repeated_is_not_copied() {
        let text = Bytes::from_static(b"{A}");
        let plan = LookupIds::batch(vec![id("a"); 1000]);
        let envelope = BatchBody::new(&plan, vec![Some(text.clone())], &[]);
        let mut slices = [IoSlice::new(&[]); 3000];
        let filled = envelope.chunks_vectored(&mut slices);
        assert_eq!(slices[..filled].iter().filter(|slice| slice.as_ptr() == text.as_ptr()).count(), 1000);
    }

    proptest! {
        /// Any mix of stored, missing, repeated and unknown ids gives what an all-upstream answer would give.
        #[test]
        fn an_answer_put_together_is_what_the_upstream_would_send(
            asked in proptest::collection::vec(0_usize..12, 1..60),
            sizes in proptest::collection::vec(proptest::option::of(1_usize..200), 12),
            steps in proptest::collection::vec((1_usize..12, 1_usize..300), 1..8),
        ) {
            let texts: Vec<Option<Bytes>> =
                sizes.iter().enumerate().map(|(n, size)| size.map(|size| Bytes::from(vec![b'a' + n as u8; size]))).collect();
            let plan = LookupIds::batch(asked.iter().map(|n| id(&n.to_string())).collect());
            let known: Vec<Option<Bytes>> =
                plan.distinct().iter().map(|id| texts[id.as_str().parse::<usize>().unwrap()].clone()).collect();
            let items: Vec<&[u8]> = asked.iter().filter_map(|n| texts[*n].as_deref()).collect();
            let mut expected = b"{\"items\":[".to_vec();
            expected.extend_from_slice(&items.join(&b','));
            expected.extend_from_slice(format!("],\"count\":{}}}", items.len()).as_bytes());
            let mut envelope = BatchBody::new(&plan, known, &[]);
            prop_assert_eq!(envelope.remaining(), expected.len());
            // Read as a socket reads it: some slices at a time, of which some bytes are taken.
            let mut body = Vec::new();
            for (slices, taken) in steps.iter().cycle() {
                if !envelope.has_remaining() {
                    break;
                }
                let mut target = vec![IoSlice::new(&[]); *slices];
                let filled = envelope.chunks_vectored(&mut target);
                prop_assert_eq!(&*target[0], envelope.chunk());
                let offered = target[..filled].iter().map(|slice| slice.to_vec()).collect::<Vec<_>>().concat();
                let taken = (*taken).min(offered.len());
                body.extend_from_slice(&offered[..taken]);
                envelope.advance(taken);
            }
            prop_assert!(body == expected);
        }
    }
}
