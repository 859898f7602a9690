//! Services that clients poll, but whose lookups are passed through.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most services that are counted. Clients choose the names.
const MAX_SERVICES: usize = 64;

/// Requests to `/{service}/tasks` of services that are not interpreted, by service.
#[derive(Debug, Default)]
pub struct UninterpretedServices {
    requests: Mutex<BTreeMap<String, u64>>,
}

impl UninterpretedServices {
    /// Counts a request and returns whether it is the first for this service. With too many
    /// services, new ones are neither counted nor first.
    pub fn count(&self, service: &str) -> bool {
        let mut requests = self.lock();
        if let Some(count) = requests.get_mut(service) {
            *count += 1;
            return false;
        }
        let is_new = requests.len() < MAX_SERVICES;
        if is_new {
            requests.insert(service.to_owned(), 1);
        }
        is_new
    }

    /// Returns the number of requests by service.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.lock().clone()
    }

    /// A panic elsewhere leaves the map consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_request_of_a_service_is_first() {
        let services = UninterpretedServices::default();
        assert!(services.count("a") && !services.count("a") && services.count("b"));
        assert_eq!(services.counts(), BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 1)]));
    }

    #[test]
    fn number_of_services_is_bounded() {
        let services = UninterpretedServices::default();
        let first = (0..1000).filter(|number| services.count(&number.to_string())).count();
        assert_eq!((first, services.counts().len()), (MAX_SERVICES, MAX_SERVICES));
    }
}
