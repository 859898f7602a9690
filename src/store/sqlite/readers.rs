//! The connections that read.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::Sqlite;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::SqlitePool;

/// Number of coalesced statements at a time: one that waits for the disk does not block all reads.
pub(super) const STATEMENTS: usize = 2;

/// Number of listings at a time.
pub(super) const LISTINGS: usize = 2;

/// Number of reading connections. One is always free for reads that are neither coalesced nor
/// listings.
pub(super) const CONNECTIONS: u32 = (STATEMENTS + LISTINGS + 1) as u32;

/// The pool of reading connections, while there is one, and connections that stay out of it between
/// coalesced statements. A connection that returns to the pool is checked first, which costs as
/// many thread switches as a statement.
#[derive(Default)]
pub(super) struct Readers(Mutex<Connections>);

#[derive(Default)]
struct Connections {
    /// `None` while the file is being replaced and after close.
    pool: Option<SqlitePool>,
    /// Number of pools so far. A connection is kept only while its pool is the current one.
    generation: u64,
    /// At most [`STATEMENTS`].
    kept: Vec<PoolConnection<Sqlite>>,
}

/// A connection for a coalesced statement.
pub(super) struct KeptConnection {
    pub(super) conn: PoolConnection<Sqlite>,
    generation: u64,
}

impl Readers {
    /// Returns the pool, unless the store is closed or its file is being replaced.
    pub(super) fn pool(&self) -> Option<SqlitePool> {
        self.lock().pool.clone()
    }

    /// Sets the pool and releases all kept connections of the former one, which is returned to be
    /// closed.
    pub(super) fn replace(&self, pool: Option<SqlitePool>) -> Option<SqlitePool> {
        let (former, kept) = {
            let mut connections = self.lock();
            connections.generation += 1;
            (std::mem::replace(&mut connections.pool, pool), std::mem::take(&mut connections.kept))
        };
        drop(kept);
        former
    }

    /// Returns a kept connection, or one of the pool.
    pub(super) async fn acquire(&self) -> Result<KeptConnection, sqlx::Error> {
        let (kept, pool, generation) = {
            let mut connections = self.lock();
            (connections.kept.pop(), connections.pool.clone(), connections.generation)
        };
        let conn = match kept {
            Some(conn) => conn,
            None => pool.ok_or(sqlx::Error::PoolClosed)?.acquire().await?,
        };
        Ok(KeptConnection { conn, generation })
    }

    /// Keeps a connection for the next statement, unless its pool was replaced. To be called only
    /// after the statement succeeded; a dropped connection goes back to the pool, which checks it.
    pub(super) fn keep(&self, kept: KeptConnection) {
        let mut connections = self.lock();
        if connections.generation == kept.generation {
            connections.kept.push(kept.conn);
        }
    }

    /// Number of kept connections.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.lock().kept.len()
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
