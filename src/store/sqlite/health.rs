//! Whether the database accepts writes.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// State of the database file and its writer, in the order of severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
pub(super) enum Health {
    /// The last write succeeded.
    #[default]
    Good,
    /// The last write failed.
    WriteFailed,
    /// The write-ahead log is at its limit.
    WalFull,
    /// The file is corrupt and about to be set aside.
    Corrupt,
    /// The writer has panicked. Final.
    Stopped,
    /// The store is closed. Final.
    Closed,
}

/// The current [`Health`], shared between threads.
#[derive(Default)]
pub(super) struct HealthCell(Mutex<Health>);

impl HealthCell {
    pub(super) fn get(&self) -> Health {
        *self.lock()
    }

    /// Whether the last write succeeded.
    pub(super) fn is_good(&self) -> bool {
        self.get() == Health::Good
    }

    /// Sets the state, unless the current one is final.
    pub(super) fn set(&self, health: Health) {
        let mut current = self.lock();
        if *current < Health::Stopped || health == Health::Closed {
            *current = health;
        }
    }

    /// Sets the state to corrupt, unless the current one is final. Returns whether that changed it.
    pub(super) fn set_corrupt(&self) -> bool {
        let mut current = self.lock();
        let is_change = *current < Health::Corrupt;
        if is_change {
            *current = Health::Corrupt;
        }
        is_change
    }

    /// Returns the reason why the database does not accept writes, as an error.
    pub(super) fn readiness(&self) -> Result<(), &'static str> {
        match self.get() {
            Health::Good => Ok(()),
            Health::WriteFailed => Err("the task store cannot be written"),
            Health::WalFull => {
                Err("the task store's write-ahead log is full: another program keeps reading the database")
            }
            Health::Corrupt => Err("the task store is corrupt and is being set aside"),
            Health::Stopped => Err("the task store's writer has stopped"),
            Health::Closed => Err("the task store is closed"),
        }
    }
    fn lock(&self) -> MutexGuard<'_, Health> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
