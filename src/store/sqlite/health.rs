//! Whether the database accepts writes.

use std::sync::atomic::{AtomicU8, Ordering};

/// State of the database file and its writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Health {
    /// The last write succeeded.
    Good = 0,
    /// The last write failed.
    WriteFailed = 1,
    /// The write-ahead log is at its limit.
    WalFull = 2,
    /// The file is corrupt and about to be set aside.
    Corrupt = 3,
    /// The writer has panicked. Final.
    Stopped = 4,
    /// The store is closed. Final.
    Closed = 5,
}

/// The current [`Health`], shared between threads.
#[derive(Default)]
pub(super) struct HealthCell(AtomicU8);

impl HealthCell {
    pub(super) fn get(&self) -> Health {
        match self.0.load(Ordering::Acquire) {
            0 => Health::Good,
            1 => Health::WriteFailed,
            2 => Health::WalFull,
            3 => Health::Corrupt,
            4 => Health::Stopped,
            _ => Health::Closed,
        }
    }

    /// Whether the last write succeeded.
    pub(super) fn is_good(&self) -> bool {
        self.get() == Health::Good
    }

    /// Sets the state, unless the current one is final.
    pub(super) fn set(&self, health: Health) {
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |current| {
            (current < Health::Stopped as u8 || health == Health::Closed).then_some(health as u8)
        });
    }

    /// Sets the state to corrupt, unless the current one is final. Returns whether that changed it.
    pub(super) fn set_corrupt(&self) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |current| {
                (current < Health::Corrupt as u8).then_some(Health::Corrupt as u8)
            })
            .is_ok()
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
}
