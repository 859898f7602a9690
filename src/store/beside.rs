//! What a command does to a file that a running proxy may have open: no lock, no writer, one connection for one
//! piece of work. The proxy sees the change within half a second, and for what it stores at once.

use sqlx::{Connection, SqliteConnection};

use super::{Forget, StoreError, open, tasks};
use crate::config::StoreConfig;
use crate::task::clock;

/// Forgets as [`Store::forget`](super::Store::forget) does, beside a running proxy or without one. The number of
/// rows removed.
pub async fn forget_beside(config: &StoreConfig, scope: &Forget) -> Result<u64, StoreError> {
    let mut conn = open::connect_beside(&open::parse_url(&config.url)?).await?;
    let done = forget(&mut conn, scope).await;
    conn.close().await?;
    Ok(done?)
}

async fn forget(conn: &mut SqliteConnection, scope: &Forget) -> Result<u64, sqlx::Error> {
    let now = clock::unix_now();
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    let (mut removed, mut more) = tasks::forget(&mut tx, scope, now).await?;
    tx.commit().await?;
    while more {
        let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
        let (count, again) = tasks::forget_more(&mut tx, scope, now).await?;
        tx.commit().await?;
        removed += count;
        more = again;
    }
    Ok(removed)
}
