//! What all lanes come to at this moment: read for `/metrics` and the admin port's API when somebody looks, never kept up
//! on the way of a look-up.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::entry::Stage;
use super::state::State;
use super::{Lanes, Outside};
use crate::observe::LaneTotals;
use crate::task::TaskId;

impl<O: Outside> Lanes<O> {
    /// All lanes together. Each is locked for as long as it takes to walk its ids.
    pub fn totals(&self) -> LaneTotals {
        let now = Instant::now();
        let lanes = self.shared.lanes();
        let mut totals = LaneTotals {
            lanes: lanes.len(),
            tokens: self.shared.turns.len(),
            is_upstream_down: self.shared.reach.is_known_down(),
            ..LaneTotals::default()
        };
        for lane in lanes {
            totals.callers += lane.callers.load(Ordering::Relaxed);
            lane.lock().add_to(now, &mut totals);
        }
        totals
    }
}

impl State {
    /// Ids that are put together into a call to be sent again, or in halves, wait for their turn like any other.
    fn add_to(&self, now: Instant, totals: &mut LaneTotals) {
        let (mut wanted, mut taken, mut oldest) = (0, 0_usize, None::<Instant>);
        let mut waits_since =
            |since: Instant| oldest = Some(oldest.map_or(since, |oldest| oldest.min(since)));
        for entry in self.entries.values() {
            match entry.stage {
                Stage::Wanted { since } if entry.is_wanted(now) => {
                    wanted += 1;
                    waits_since(since);
                }
                Stage::Taken => taken += 1,
                Stage::Wanted { .. } | Stage::Idle => {}
            }
            if entry.pending.is_some() {
                totals.remembered += 1;
                totals.remembered_bytes += entry.remembered_bytes();
            }
        }
        let mut prepared = 0;
        for call in &self.prepared {
            prepared += call.ids.len();
            waits_since(call.taken_at);
        }
        totals.wanted += wanted + prepared;
        totals.under_way += taken.saturating_sub(prepared);
        if let Some(oldest) = oldest {
            totals.oldest_wanted = totals.oldest_wanted.max(now.saturating_duration_since(oldest));
        }
    }

    /// Whether anybody waits for one of these ids.
    pub(super) fn is_awaited(&self, ids: &[TaskId]) -> bool {
        ids.iter().any(|id| self.entries.get(id).is_some_and(|entry| !entry.waiters.is_empty()))
    }
}
