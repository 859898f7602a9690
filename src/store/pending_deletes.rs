//! Tasks whose forgetting could not be written yet: hidden from every reader of this process, and tried again by
//! the writer until the disk takes it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::DeleteScope;
use crate::task::{Service, TaskId};

/// Forgets that may wait; beyond it whole services are forgotten instead of single tasks.
const MAX_WAITING: usize = 10_000;

/// See the head of this file.
#[derive(Default)]
pub(super) struct PendingDeletes {
    /// Spares every look-up the lock while nothing waits, which is nearly always.
    any: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    scopes: HashSet<DeleteScope>,
    tasks: HashSet<(Service, TaskId)>,
    services: HashSet<Service>,
    all: bool,
}

impl PendingDeletes {
    /// Hides what `scope` names until [`PendingDeletes::settle`].
    pub(super) fn add(&self, scope: DeleteScope) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let scope = if waiting.scopes.len() < MAX_WAITING {
            scope
        } else {
            match scope {
                DeleteScope::ByReader { service, .. } | DeleteScope::Task { service, .. } => {
                    DeleteScope::Service(service)
                }
                wide => wide,
            }
        };
        waiting.insert(scope);
        self.any.store(true, Ordering::Release);
    }

    /// Whether the task is hidden.
    pub(super) fn covers(&self, service: &Service, id: &TaskId) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.all
            || waiting.services.contains(service)
            || waiting.tasks.contains(&(service.clone(), id.clone()))
    }

    /// What is still to be written.
    pub(super) fn waiting(&self) -> Vec<DeleteScope> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.scopes.iter().cloned().collect()
    }

    /// Shows again what the written ones hid.
    pub(super) fn settle(&self, written: &[DeleteScope]) {
        if written.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scopes = std::mem::take(&mut waiting.scopes);
        for scope in written {
            scopes.remove(scope);
        }
        *waiting = Waiting::default();
        self.any.store(!scopes.is_empty(), Ordering::Release);
        for scope in scopes {
            waiting.insert(scope);
        }
    }
}

impl Waiting {
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
    fn hides_until_settled_and_stays_bounded() {
        let hidden = PendingDeletes::default();
        let service = Service::parse("producer").unwrap();
        let task = |n: usize| DeleteScope::Task {
            service: service.clone(),
            id: TaskId::parse(&n.to_string()).unwrap(),
        };
        let id = |n: usize| TaskId::parse(&n.to_string()).unwrap();
        hidden.add(task(1));
        hidden.add(task(2));
        assert!(hidden.covers(&service, &id(1)) && !hidden.covers(&service, &id(3)));
        hidden.settle(&[task(1)]);
        assert!(!hidden.covers(&service, &id(1)) && hidden.covers(&service, &id(2)));
        for n in 0..MAX_WAITING + 500 {
            hidden.add(task(n));
        }
        assert!(hidden.waiting().len() <= MAX_WAITING + 1);
        assert!(hidden.covers(&service, &id(MAX_WAITING + 400)));
        hidden.settle(&hidden.waiting());
        assert!(!hidden.covers(&service, &id(2)));
    }
}
