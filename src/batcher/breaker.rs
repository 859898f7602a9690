//! Circuit breaker for the upstream, shared by all queues. While it is open, one call at a time
//! probes the upstream, and every other lookup fails at once instead of running into a timeout of
//! its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::UpstreamError;

/// Time between the failure that opens the circuit and the first probe.
const MIN_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Longest time between two probes.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(8);

/// Reachability of the upstream.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    circuit: Mutex<Circuit>,
}

#[derive(Debug, Default)]
struct Circuit {
    /// When the upstream last responded, with any status.
    last_response_at: Option<Instant>,
    /// `None` while the circuit is closed.
    open: Option<OpenCircuit>,
}

#[derive(Debug)]
struct OpenCircuit {
    /// When the call failed that opened the circuit.
    since: Instant,
    /// Error of the last probe, or of that call.
    error: UpstreamError,
    next_probe: Instant,
    probe_interval: Duration,
    is_probing: bool,
}

/// Whether a call may be sent.
#[derive(Debug)]
pub(super) enum BreakerDecision {
    /// The circuit is closed.
    Send,
    /// The circuit is open and this call probes the upstream. The permit is held until the call has
    /// ended.
    Probe(HalfOpenPermit),
    /// The circuit is open.
    Reject(Rejection),
}

/// State of the open circuit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rejection {
    /// Error of the last call.
    pub(super) error: UpstreamError,
    /// Time until the next probe.
    pub(super) retry_after: Duration,
}

/// Permit of the one call that probes the upstream. Dropping it permits the next probe.
#[derive(Debug)]
pub(super) struct HalfOpenPermit {
    breaker: Arc<CircuitBreaker>,
}

impl CircuitBreaker {
    /// Decides on a call that would be sent now.
    pub(super) fn decide(self: &Arc<Self>, now: Instant) -> BreakerDecision {
        let mut circuit = self.lock();
        let Some(open) = &mut circuit.open else { return BreakerDecision::Send };
        match open.rejection(now) {
            Some(rejection) => BreakerDecision::Reject(rejection),
            None => {
                open.is_probing = true;
                BreakerDecision::Probe(HalfOpenPermit { breaker: Arc::clone(self) })
            }
        }
    }

    /// Returns the rejection that a call would meet now, without claiming the probe.
    pub(super) fn rejection(&self, now: Instant) -> Option<Rejection> {
        self.lock().open.as_ref()?.rejection(now)
    }

    /// Returns the error of the last call and the time of the first failure while the circuit is
    /// open.
    pub(super) fn outage(&self) -> Option<(UpstreamError, Instant)> {
        self.lock().open.as_ref().map(|open| (open.error, open.since))
    }

    /// Whether the circuit is open, even if a probe is due or in flight.
    pub(super) fn is_open(&self) -> bool {
        self.lock().open.is_some()
    }

    /// Records a response of the upstream, with any status, which closes the circuit.
    pub(super) fn record_success(&self, now: Instant) {
        let mut circuit = self.lock();
        circuit.last_response_at = Some(now);
        if circuit.open.take().is_some() {
            tracing::info!("the upstream is reachable again");
        }
    }

    /// Records a call without a response that began at `began`.
    ///
    /// A failed connection opens the circuit. A timeout opens it only if no call got a response
    /// since `began`. While the circuit is open, only the failure of the probe (`permit`) changes
    /// it.
    pub(super) fn record_failure(
        &self,
        now: Instant,
        began: Instant,
        permit: Option<&HalfOpenPermit>,
        error: UpstreamError,
    ) {
        let mut circuit = self.lock();
        let is_silent = error.is_timeout() && circuit.last_response_at.is_none_or(|at| at < began);
        let is_unreachable = !error.was_reached() || is_silent;
        let probe_interval = match &circuit.open {
            Some(_) if permit.is_none() => return,
            Some(open) if is_unreachable => (open.probe_interval * 2).min(MAX_PROBE_INTERVAL),
            // The probe was connected and then interrupted, so the interval does not grow.
            Some(open) => open.probe_interval,
            None if !is_unreachable => return,
            None => {
                tracing::warn!(%error, "the upstream is unreachable; stored tasks are still served");
                MIN_PROBE_INTERVAL
            }
        };
        let next_probe = now + probe_interval;
        let since = circuit.open.as_ref().map_or(now, |open| open.since);
        circuit.open = Some(OpenCircuit { since, error, next_probe, probe_interval, is_probing: false });
    }

    /// A panic elsewhere leaves the circuit consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenCircuit {
    fn rejection(&self, now: Instant) -> Option<Rejection> {
        let retry_after = self.next_probe.saturating_duration_since(now);
        (self.is_probing || self.next_probe > now).then_some(Rejection { error: self.error, retry_after })
    }
}

impl Drop for HalfOpenPermit {
    fn drop(&mut self) {
        if let Some(open) = &mut self.breaker.lock().open {
            open.is_probing = false;
        }
    }
}
