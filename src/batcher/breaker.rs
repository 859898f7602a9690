//! Whether the upstream can be reached, known once for all lanes: while it cannot, one probe at a time goes
//! through and everybody else learns so at once instead of waiting for a time-out of their own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::UpstreamError;

/// The longest time between two probes.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(8);

/// What is known of the way to the upstream.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    state: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// When the upstream last said anything at all.
    heard_at: Option<Instant>,
    down: Option<Down>,
}

#[derive(Debug)]
struct Down {
    error: UpstreamError,
    next_probe: Instant,
    interval: Duration,
    probing: bool,
}

/// Whether a call may go.
#[derive(Debug)]
pub(super) enum BreakerDecision {
    /// It may; hold the guard until the call has ended.
    Go(HalfOpenPermit),
    /// The upstream is down; what its last failure was, and when the next probe goes.
    Down(UpstreamError, Duration),
}

/// Frees the probe's place if the call ends without a word, by a panic or a cancel. Empty for a call that is no probe.
#[derive(Debug)]
pub(super) struct HalfOpenPermit {
    breaker: Option<Arc<CircuitBreaker>>,
}

impl HalfOpenPermit {
    pub(super) fn is_probe(&self) -> bool {
        self.breaker.is_some()
    }
}

impl CircuitBreaker {
    /// Asks for a call's way. While the upstream is down only one call at a time gets it, after a pause.
    pub(super) fn permit(self: &Arc<Self>, now: Instant) -> BreakerDecision {
        let mut state = self.lock();
        match &mut state.down {
            None => BreakerDecision::Go(HalfOpenPermit { breaker: None }),
            Some(down) if !down.probing && down.next_probe <= now => {
                down.probing = true;
                BreakerDecision::Go(HalfOpenPermit { breaker: Some(Arc::clone(self)) })
            }
            Some(down) => BreakerDecision::Down(down.error, down.next_probe.saturating_duration_since(now)),
        }
    }

    /// Like [`CircuitBreaker::permit`], without taking the probe's place.
    pub(super) fn is_down(&self, now: Instant) -> Option<(UpstreamError, Duration)> {
        let state = self.lock();
        let down = state.down.as_ref()?;
        (down.probing || down.next_probe > now)
            .then(|| (down.error, down.next_probe.saturating_duration_since(now)))
    }

    /// Whether the upstream is down as far as is known, a probe that is due or under way or not.
    pub(super) fn is_known_down(&self) -> bool {
        self.lock().down.is_some()
    }

    /// The upstream answered something.
    pub(super) fn record_success(&self, now: Instant) {
        let mut state = self.lock();
        state.heard_at = Some(now);
        if state.down.take().is_some() {
            tracing::info!("the upstream answers again");
        }
    }

    /// A call that began at `began` ended without an answer. An upstream that could not be connected to is down; one
    /// that was silent is down only if it was silent to everybody since that call began. While it is down, only the
    /// probe's own end says anything new.
    pub(super) fn failed(&self, now: Instant, began: Instant, probe: &HalfOpenPermit, error: &UpstreamError) {
        let mut state = self.lock();
        let silent = error.is_timeout() && state.heard_at.is_none_or(|at| at < began);
        let interval = match &state.down {
            Some(_) if !probe.is_probe() => return,
            // A probe that got through and broke off: the next one need not wait longer.
            Some(down) if error.was_reached() && !silent => down.interval,
            Some(down) => (down.interval * 2).min(MAX_PROBE_INTERVAL),
            None if error.was_reached() && !silent => return,
            None => {
                tracing::warn!(%error, "the upstream cannot be reached; stored tasks are served meanwhile");
                Duration::from_secs(1)
            }
        };
        state.down = Some(Down { error: *error, next_probe: now + interval, interval, probing: false });
    }

    /// Short sections only, never held over an await; a panic elsewhere leaves the state sound.
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HalfOpenPermit {
    fn drop(&mut self) {
        if let Some(breaker) = &self.breaker
            && let Some(down) = &mut breaker.lock().down
        {
            down.probing = false;
        }
    }
}
