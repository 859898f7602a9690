//! Deletes that could not be written to the database yet. Their tasks are hidden from all reads of
//! this process, and the database repeats them until they succeed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::DeleteScope;
use crate::task::{Service, TaskId};

/// Largest number of scopes. Beyond it, whole services are deleted instead of single tasks.
const MAX_PENDING: usize = 10_000;

/// See the module documentation.
#[derive(Default)]
pub(super) struct PendingDeletes {
    /// Whether there are any. Spares reads the lock in the usual case that there are none.
    any: AtomicBool,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    scopes: HashSet<DeleteScope>,
    /// The tasks and services in `scopes`, for lookup.
    tasks: HashSet<(Service, TaskId)>,
    services: HashSet<Service>,
    /// Whether a scope of unknown extent is pending, which hides everything.
    all: bool,
}

impl PendingDeletes {
    /// Hides the tasks of `scope` until [`PendingDeletes::complete`].
    pub(super) fn add(&self, scope: DeleteScope) {
        let mut pending = self.lock();
        let scope = match scope.task() {
            Some((service, _)) if pending.scopes.len() >= MAX_PENDING => {
                DeleteScope::Service(service.clone())
            }
            _ => scope,
        };
        pending.insert(scope);
        self.any.store(true, Ordering::Release);
    }

    /// Whether the task is hidden.
    pub(super) fn covers(&self, service: &Service, id: &TaskId) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let pending = self.lock();
        pending.all
            || pending.services.contains(service)
            || pending.tasks.contains(&(service.clone(), id.clone()))
    }

    /// Returns the scopes that are still to be written.
    pub(super) fn scopes(&self) -> Vec<DeleteScope> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.lock().scopes.iter().cloned().collect()
    }

    /// Removes scopes that were written.
    pub(super) fn complete(&self, written: &[DeleteScope]) {
        if written.is_empty() {
            return;
        }
        let mut pending = self.lock();
        let mut scopes = std::mem::take(&mut pending.scopes);
        for scope in written {
            scopes.remove(scope);
        }
        *pending = Pending::default();
        self.any.store(!scopes.is_empty(), Ordering::Release);
        for scope in scopes {
            pending.insert(scope);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    fn insert(&mut self, scope: DeleteScope) {
        match &scope {
            DeleteScope::ByReader { service, id, .. } | DeleteScope::Task { service, id } => {
                self.tasks.insert((service.clone(), id.clone()));
            }
            DeleteScope::Service(service) => {
                self.services.insert(service.clone());
            }
            DeleteScope::OlderThan(_) => self.all = true,
        }
        self.scopes.insert(scope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_hidden_until_complete_and_scopes_are_bounded() {
        let deletes = PendingDeletes::default();
        let service = Service::parse("producer").unwrap();
        let id = |n: usize| TaskId::parse(&n.to_string()).unwrap();
        let task = |n: usize| DeleteScope::Task { service: service.clone(), id: id(n) };
        deletes.add(task(1));
        deletes.add(task(2));
        assert!(deletes.covers(&service, &id(1)) && !deletes.covers(&service, &id(3)));
        deletes.complete(&[task(1)]);
        assert!(!deletes.covers(&service, &id(1)) && deletes.covers(&service, &id(2)));
        for n in 0..MAX_PENDING + 500 {
            deletes.add(task(n));
        }
        assert!(deletes.scopes().len() <= MAX_PENDING + 1);
        assert!(deletes.covers(&service, &id(MAX_PENDING + 400)));
        deletes.complete(&deletes.scopes());
        assert!(!deletes.covers(&service, &id(2)));
    }
}
