//! Response envelope of a batch, assembled from the records without copying them.

use std::io::IoSlice;

use bytes::{Buf, Bytes};
use tokio::sync::OwnedSemaphorePermit;

use crate::batcher::TaskOutcome;
use crate::task::TaskId;

/// Start of the envelope, before the first item.
const HEAD: &[u8] = b"{\"items\":[";

/// Envelope of a batch: `{"items":[…],"count":n}`, with `"missing":[…]` as a third member after a
/// partial failure.
///
/// As a [`Buf`] it yields the records where they are. A record that is requested several times is
/// held once.
#[derive(Debug)]
pub struct BatchBody {
    /// Outcomes by the index of the id.
    outcomes: Vec<Option<TaskOutcome>>,
    /// Indices of the outcomes that become items, in order. Each of them has a record.
    items: Vec<u32>,
    /// End of the envelope, after the last item.
    tail: Bytes,
    /// Unread bytes.
    remaining: usize,
    /// Current slice, as counted by [`BatchBody::slice`], and the number of bytes read from it.
    current: usize,
    read: usize,
    /// Reserved memory, released when the client has received the body or is gone.
    memory: Option<OwnedSemaphorePermit>,
}

impl BatchBody {
    /// Assembles the envelope. `positions` has, for each requested id in order, the index of its
    /// outcome. Ids without a record are left out; `missing` are those of them that failed.
    pub fn new(positions: Vec<u32>, outcomes: Vec<Option<TaskOutcome>>, missing: &[&TaskId]) -> Self {
        let mut items = positions;
        items.retain(|index| outcomes[*index as usize].as_ref().is_some_and(|o| o.record().is_some()));
        let mut tail = format!("],\"count\":{}", items.len()).into_bytes();
        if !missing.is_empty() {
            tail.extend_from_slice(b",\"missing\":");
            let missing: Vec<&str> = missing.iter().map(|id| id.as_str()).collect();
            serde_json::to_writer(&mut tail, &missing).expect("strings serialize to JSON");
        }
        tail.push(b'}');
        let mut body =
            Self { outcomes, items, tail: tail.into(), remaining: 0, current: 0, read: 0, memory: None };
        let records: usize = body.items.iter().map(|item| body.record(*item).len()).sum();
        let commas = body.items.len().saturating_sub(1);
        body.remaining = HEAD.len() + records + commas + body.tail.len();
        body
    }

    /// Holds `memory` until the body is dropped.
    pub(super) fn hold(mut self, memory: OwnedSemaphorePermit) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Returns one slice of the body: the head, then the items with commas between them, then the
    /// tail.
    fn slice(&self, index: usize) -> &[u8] {
        let last = (2 * self.items.len()).max(1);
        match index {
            0 => HEAD,
            index if index >= last => &self.tail,
            index if index % 2 == 1 => self.record(self.items[index / 2]),
            _ => b",",
        }
    }

    fn record(&self, item: u32) -> &Bytes {
        let outcome = self.outcomes[item as usize].as_ref();
        outcome.and_then(TaskOutcome::record).expect("every item has a record")
    }
}

impl Buf for BatchBody {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        if self.remaining == 0 { &[] } else { &self.slice(self.current)[self.read..] }
    }

    fn chunks_vectored<'a>(&'a self, target: &mut [IoSlice<'a>]) -> usize {
        let (mut remaining, mut read) = (self.remaining, self.read);
        for (filled, target) in target.iter_mut().enumerate() {
            if remaining == 0 {
                return filled;
            }
            let slice = &self.slice(self.current + filled)[read..];
            *target = IoSlice::new(slice);
            remaining -= slice.len();
            read = 0;
        }
        target.len()
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining, "no more than remains");
        self.remaining -= count;
        self.read += count;
        while self.remaining > 0 && self.read >= self.slice(self.current).len() {
            self.read -= self.slice(self.current).len();
            self.current += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batcher::{Freshness, RecordSource};
    use crate::task::LookupIds;

    fn id(text: &str) -> TaskId {
        TaskId::parse(text).unwrap()
    }

    fn record(record: &'static str) -> Option<TaskOutcome> {
        let record = Bytes::from_static(record.as_bytes());
        Some(TaskOutcome::Final { record, source: RecordSource::Store { stored_at: 0 } })
    }

    fn positions(ids: Vec<TaskId>) -> Vec<u32> {
        LookupIds::batch(ids).positions().to_vec()
    }

    #[test]
    fn repeated_ids_get_their_record_at_each_position() {
        let positions = positions(vec![id("b"), id("a"), id("b"), id("c")]);
        let outcomes = vec![record("{B}"), None, record("{C}")];
        let mut body = BatchBody::new(positions, outcomes, &[&id("a\"")]);
        let body = body.copy_to_bytes(body.remaining());
        assert_eq!(String::from_utf8_lossy(&body), r#"{"items":[{B},{B},{C}],"count":3,"missing":["a\""]}"#);
    }

    #[test]
    fn envelope_without_records_is_empty() {
        let unknown = TaskOutcome::Unknown { response: None, freshness: Freshness::Fetched };
        let mut body = BatchBody::new(vec![0, 1], vec![None, Some(unknown)], &[]);
        assert_eq!(body.copy_to_bytes(body.remaining()), r#"{"items":[],"count":0}"#);
        assert!(body.chunk().is_empty());
    }

    #[test]
    fn repeated_record_is_not_copied() {
        let outcome = record("{A}");
        let address = outcome.as_ref().and_then(TaskOutcome::record).unwrap().as_ptr();
        let body = BatchBody::new(positions(vec![id("a"); 1000]), vec![outcome], &[]);
        let mut slices = [IoSlice::new(&[]); 3000];
        let filled = body.chunks_vectored(&mut slices);
        assert_eq!(slices[..filled].iter().filter(|slice| slice.as_ptr() == address).count(), 1000);
    }

    proptest! {
        /// Any mix of stored, missing, repeated and unknown ids yields the body that the upstream
        /// would send.
        #[test]
        fn assembled_batch_equals_the_upstream_batch(
            requested in proptest::collection::vec(0_usize..12, 1..60),
            sizes in proptest::collection::vec(proptest::option::of(1_usize..200), 12),
            steps in proptest::collection::vec((1_usize..12, 1_usize..300), 1..8),
        ) {
            let records: Vec<Option<Bytes>> =
                sizes.iter().enumerate().map(|(n, size)| size.map(|size| Bytes::from(vec![b'a' + n as u8; size]))).collect();
            let ids = LookupIds::batch(requested.iter().map(|n| id(&n.to_string())).collect());
            let outcomes = ids.distinct().iter().map(|id| {
                let record = records[id.as_str().parse::<usize>().unwrap()].clone();
                record.map(|record| TaskOutcome::Pending { record, freshness: Freshness::Fetched })
            });
            let items: Vec<&[u8]> = requested.iter().filter_map(|n| records[*n].as_deref()).collect();
            let mut expected = b"{\"items\":[".to_vec();
            expected.extend_from_slice(&items.join(&b','));
            expected.extend_from_slice(format!("],\"count\":{}}}", items.len()).as_bytes());
            let mut batch = BatchBody::new(ids.positions().to_vec(), outcomes.collect(), &[]);
            prop_assert_eq!(batch.remaining(), expected.len());
            // As a socket does: some slices at a time, of which some bytes are written.
            let mut body = Vec::new();
            for (slices, written) in steps.iter().cycle() {
                if !batch.has_remaining() {
                    break;
                }
                let mut target = vec![IoSlice::new(&[]); *slices];
                let filled = batch.chunks_vectored(&mut target);
                prop_assert_eq!(&*target[0], batch.chunk());
                let offered = target[..filled].iter().map(|slice| slice.to_vec()).collect::<Vec<_>>().concat();
                let written = (*written).min(offered.len());
                body.extend_from_slice(&offered[..written]);
                batch.advance(written);
            }
            prop_assert!(body == expected);
        }
    }
}
