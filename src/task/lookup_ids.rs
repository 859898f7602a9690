//! Ids of one lookup.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::TaskId;

/// Ids of one lookup, as its body requests them. Everything after the body parser works on the
/// distinct ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupIds {
    /// `retrieve`.
    Single(TaskId),
    /// `retrieve_batch`.
    Batch {
        /// Each id once, in the order of its first position.
        distinct: Vec<TaskId>,
        /// For each position of the request, the index of its id in `distinct`.
        positions: Vec<u32>,
    },
}

impl LookupIds {
    /// Returns the ids of a batch that lists `ids`, of which some may be equal.
    pub fn batch(mut ids: Vec<TaskId>) -> Self {
        let mut index: HashMap<&TaskId, u32, RandomState> =
            HashMap::with_capacity_and_hasher(ids.len(), RandomState::default());
        let positions: Vec<u32> = ids
            .iter()
            .map(|id| {
                let next = u32::try_from(index.len()).expect("a batch has at most tasks.max_ids ids");
                *index.entry(id).or_insert(next)
            })
            .collect();
        if index.len() < ids.len() {
            let (mut position, mut distinct) = (positions.iter(), 0);
            ids.retain(|_| {
                let is_first = position.next() == Some(&distinct);
                distinct += u32::from(is_first);
                is_first
            });
        }
        Self::Batch { distinct: ids, positions }
    }

    /// Whether the request was a batch.
    pub fn is_batch(&self) -> bool {
        matches!(self, Self::Batch { .. })
    }

    /// Each id once.
    pub fn distinct(&self) -> &[TaskId] {
        match self {
            Self::Single(id) => std::slice::from_ref(id),
            Self::Batch { distinct, .. } => distinct,
        }
    }

    /// For each position of the request, the index of its id in [`LookupIds::distinct`].
    pub fn positions(&self) -> &[u32] {
        match self {
            Self::Single(_) => &[0],
            Self::Batch { positions, .. } => positions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_ids_are_distinct_once() {
        let id = |text: &str| TaskId::parse(text).unwrap();
        let ids = LookupIds::batch(vec![id("b"), id("a"), id("b"), id("c"), id("a")]);
        assert_eq!(ids.distinct(), [id("b"), id("a"), id("c")]);
        assert_eq!(ids.positions(), [0, 1, 0, 2, 1]);
        let ids = LookupIds::Single(id("a"));
        assert_eq!((ids.distinct(), ids.positions()), (&[id("a")][..], &[0][..]));
    }
}
