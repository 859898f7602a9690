//! Prometheus metrics: a struct handed in, doc comments are the help texts. Labels come from closed sets, never
//! from an id, a token or a raw path.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Labels of `refrain_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// A service of `tasks.services`, else `other`.
    pub service: String,
    /// `retrieve`, `retrieve_batch`, `delete` or `other`.
    pub action: &'static str,
    /// The word of the outcome, as in the log.
    pub outcome: &'static str,
}

/// Labels of `refrain_ids_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct IdLabels {
    /// `hit`, `pending`, `fetched` or `failed`.
    pub outcome: &'static str,
}

/// Labels of `refrain_upstream_calls_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamCallLabels {
    /// A service of `tasks.services`, else `other`.
    pub service: String,
    /// The status, or the kind of the failure.
    pub status: String,
}

/// Labels of `refrain_store_errors_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StoreErrorLabels {
    /// `read`, `write`, `checksum` or `corrupt`.
    pub kind: &'static str,
}

/// Everything refrain counts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests on the client port
    pub requests: Family<RequestLabels, Counter>,
    /// Task ids that look-ups asked for
    pub ids: Family<IdLabels, Counter>,
    /// Look-ups answered and calls made for them: what was saved is the difference.
    look_ups: AtomicU64,
    calls: AtomicU64,
    saved: AtomicU64,
    /// Look-up calls sent upstream
    upstream_calls: Family<UpstreamCallLabels, Counter>,
    /// Upstream calls that clients would have made without refrain
    upstream_calls_saved: Counter,
    /// Failures of the task store
    pub store_errors: Family<StoreErrorLabels, Counter>,
    /// Hits served although the upstream could not be asked whether the token still holds
    pub rechecks_failed: Counter,
    /// Panics that were caught
    pub panics: Counter,
}

impl Metrics {
    /// A call for look-ups was sent.
    pub fn count_call(&self, labels: &UpstreamCallLabels) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.upstream_calls.get_or_create(labels).inc();
    }

    /// A look-up was answered. Without refrain it would have been one call.
    pub fn count_look_up(&self) {
        let look_ups = self.look_ups.fetch_add(1, Ordering::Relaxed) + 1;
        let saved = look_ups.saturating_sub(self.calls.load(Ordering::Relaxed));
        // A counter never falls: it shows the most that was saved so far.
        let shown = self.saved.fetch_max(saved, Ordering::Relaxed);
        self.upstream_calls_saved.inc_by(saved.saturating_sub(shown));
    }

    /// All metrics under their Prometheus names.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("refrain");
        registry.register("requests", "Requests on the client port", self.requests.clone());
        registry.register("ids", "Task ids that look-ups asked for", self.ids.clone());
        registry.register("upstream_calls", "Look-up calls sent upstream", self.upstream_calls.clone());
        registry.register(
            "upstream_calls_saved",
            "Upstream calls that clients would have made without refrain",
            self.upstream_calls_saved.clone(),
        );
        // There from the start: an alert on growth misses a series that begins with its first failure.
        for kind in ["read", "write", "checksum", "corrupt"] {
            drop(self.store_errors.get_or_create(&StoreErrorLabels { kind }));
        }
        registry.register("store_errors", "Failures of the task store", self.store_errors.clone());
        registry.register(
            "rechecks_failed",
            "Hits served although the upstream could not be asked whether the token still holds",
            self.rechecks_failed.clone(),
        );
        registry.register("panics", "Panics that were caught", self.panics.clone());
        registry
    }
}
