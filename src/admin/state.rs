//! State shared by the handlers of the admin port.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use crate::api_error::ApiError;
use crate::clock;
use crate::config::EffectiveValue;
use crate::lifecycle::Shutdown;
use crate::lookup::LookupService;
use crate::store::Store;
use crate::telemetry::{Comparison, CounterSnapshot, Gauges, History, Metrics};
use crate::token::Token;

/// The admin port and all that it shows.
pub struct AdminPort {
    /// `admin.token`
    pub token: Option<Token>,
    /// Host of the upstream, with its port if `upstream.base_url` has one.
    pub upstream_host: String,
    /// The stored tasks.
    pub store: Store,
    /// The queues, and deletes in queues and store.
    pub lookups: Arc<LookupService>,
    /// The configuration in force, without secrets.
    pub values: Vec<EffectiveValue>,
    /// Start of refrain, in seconds since the Unix epoch.
    pub started_at: i64,
    /// Start of refrain on the monotonic clock.
    pub started: Instant,
    /// Version of the SQLite library.
    pub sqlite_version: Option<String>,
    /// Shutdown of the client port.
    pub shutdown: Shutdown,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// Open connections of the client port.
    pub connections: Gauge,
    /// The last hour and day.
    pub history: Mutex<History>,
    /// Comparison of the demo. `None` in a proxy that is not a demo.
    pub comparison: watch::Sender<Option<Comparison>>,
}

/// Readiness of refrain for traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Everything works.
    Ready,
    /// The store fails, for this reason. Clients are still served.
    Degraded(&'static str),
    /// refrain is shutting down.
    Draining,
}

impl Readiness {
    /// Returns the name that `/readyz` shows.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded(_) => "degraded",
            Self::Draining => "draining",
        }
    }

    /// Returns why refrain is not ready.
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Ready => None,
            Self::Degraded(reason) => Some(reason),
            Self::Draining => Some("refrain is shutting down"),
        }
    }
}

impl AdminPort {
    /// Records a history point every [`History::STEP`]. Does not return unless recording panics.
    pub async fn record_history(self: Arc<Self>) {
        let mut steps = tokio::time::interval(History::STEP);
        steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick is immediate, and ends no step.
        steps.tick().await;
        loop {
            steps.tick().await;
            run_blocking(&self, Self::end_history_step)
                .await
                .expect("recording a history point does not panic");
        }
    }

    fn end_history_step(&self) {
        let now = CounterSnapshot::of(&self.metrics, &self.gauges());
        self.history.lock().unwrap_or_else(PoisonError::into_inner).end_step(clock::unix_now(), now);
    }

    /// Reads all gauges. Takes long with many queues: see [`run_blocking`].
    pub(super) fn gauges(&self) -> Gauges {
        Gauges {
            is_ready: self.readiness() == Readiness::Ready,
            started_at: self.started_at,
            connections: usize::try_from(self.connections.get()).unwrap_or(0),
            queues: self.lookups.batcher().totals(),
            store: self.store.stats(),
        }
    }

    /// Returns the readiness that `/readyz` shows.
    pub(super) fn readiness(&self) -> Readiness {
        if self.shutdown.is_draining() {
            return Readiness::Draining;
        }
        self.store.readiness().map_or_else(Readiness::Degraded, |()| Readiness::Ready)
    }

    /// Returns the time since the start in seconds, rounded to milliseconds.
    pub(super) fn uptime_seconds(&self) -> f64 {
        (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
    }
}

/// Runs `read` on a thread of the blocking pool, since it locks and walks every queue.
pub(super) async fn run_blocking<T: Send + 'static>(
    port: &Arc<AdminPort>,
    read: impl FnOnce(&AdminPort) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let port = Arc::clone(port);
    tokio::task::spawn_blocking(move || read(&port)).await.map_err(|_| ApiError::internal())
}
