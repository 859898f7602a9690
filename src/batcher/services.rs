//! Services of the queues: their rules, and what was learnt about their batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::task::{InterpretedServices, Service, ServiceRules};

/// Service with interpreted lookups, shared by its queues.
#[derive(Debug)]
pub(super) struct ServiceState {
    pub(super) rules: ServiceRules,
    /// Most ids in one call. Only becomes smaller.
    max_batch: AtomicUsize,
    /// `max_batch` at the start.
    configured_max_batch: usize,
}

impl ServiceState {
    /// Returns the most ids in one call.
    pub(super) fn max_batch(&self) -> usize {
        self.max_batch.load(Ordering::Relaxed)
    }

    /// Whether a response was cut, so that calls have fewer ids than the configuration permits.
    pub(super) fn has_learnt_limit(&self) -> bool {
        self.max_batch() < self.configured_max_batch
    }

    /// Records that the upstream cut a response to `records` records.
    pub(super) fn learn_limit(&self, service: &Service, records: usize) {
        let before = self.max_batch.fetch_min(records, Ordering::Relaxed);
        if records < before {
            tracing::warn!(
                %service,
                max_batch = records,
                "the upstream cut the response to a batch; later batches have at most that many ids"
            );
        }
    }
}

/// All services with interpreted lookups.
#[derive(Debug)]
pub(super) struct ServiceStates {
    services: HashMap<Service, Arc<ServiceState>>,
}

impl ServiceStates {
    /// Creates the states. No call has more than `max_batch` ids.
    pub(super) fn new(services: &InterpretedServices, max_batch: usize) -> Self {
        let state = |rules: ServiceRules| {
            let max_batch = rules.max_batch.unwrap_or(usize::MAX).min(max_batch);
            ServiceState { rules, max_batch: AtomicUsize::new(max_batch), configured_max_batch: max_batch }
        };
        let services = services.iter().map(|service| (service.name.clone(), Arc::new(state(service.rules))));
        Self { services: services.collect() }
    }

    /// Returns the state of a service; `None` if its lookups are not interpreted.
    pub(super) fn get(&self, service: &Service) -> Option<&Arc<ServiceState>> {
        self.services.get(service)
    }

    /// Returns all services.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Service, &ServiceState)> {
        self.services.iter().map(|(service, state)| (service, &**state))
    }
}
