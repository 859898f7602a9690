//! Opening a database: for serving, or for a command beside a running proxy.

use std::path::Path;

use sqlx::sqlite::SqlitePool;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::connect::{
    MAINTENANCE_BUSY_TIMEOUT, connect_readers, connect_writer, open_error, writing_options,
};
use super::lock::StoreLock;
use super::{error_code, file, schema};
use crate::store::StoreError;

/// An open database, migrated and proven to accept writes.
pub(super) struct OpenDatabase {
    pub(super) writer: SqliteConnection,
    pub(super) readers: SqlitePool,
    pub(super) digest_key: [u8; 32],
    /// Whether a corrupt file was set aside.
    pub(super) was_set_aside: bool,
}

/// Opens a database for serving and locks its file. A corrupt file is set aside first. A new
/// database gets `digest_key`, or a random one. No connection of this process may be open.
pub(super) async fn open(
    path: &Path,
    lock: &mut StoreLock,
    digest_key: Option<[u8; 32]>,
) -> Result<OpenDatabase, StoreError> {
    lock.lock_database()?;
    match try_open(path, digest_key).await {
        Err(error) if error_code::means_corrupt_file(&error) => {
            file::set_aside(path, &error)?;
            lock.lock_database()?;
            let opened = try_open(path, digest_key).await?;
            Ok(OpenDatabase { was_set_aside: true, ..opened })
        }
        opened => opened,
    }
}

async fn try_open(path: &Path, digest_key: Option<[u8; 32]>) -> Result<OpenDatabase, StoreError> {
    let mut writer = connect_writer(path).await.map_err(|error| open_error(path, error))?;
    let opened = async {
        let digest_key = schema::prepare(&mut writer, path, digest_key).await?;
        let readers = connect_readers(path).await.map_err(|error| open_error(path, error))?;
        Ok((digest_key, readers))
    };
    match opened.await {
        Ok((digest_key, readers)) => Ok(OpenDatabase { writer, readers, digest_key, was_set_aside: false }),
        Err(error) => {
            // The file may be renamed next.
            let _ = writer.close().await;
            Err(error)
        }
    }
}

/// Opens a connection to an existing database with the current schema, without its lock.
pub(super) async fn open_unlocked(path: &Path) -> Result<SqliteConnection, StoreError> {
    if matches!(path.try_exists(), Ok(false)) {
        return Err(StoreError::Missing(path.to_owned()));
    }
    let options = writing_options(path).busy_timeout(MAINTENANCE_BUSY_TIMEOUT);
    let mut conn = options.connect().await.map_err(|error| open_error(path, error))?;
    if schema::check_owner(&mut conn, path).await? < schema::newest_version() {
        let _ = conn.close().await;
        return Err(StoreError::NoSchema(path.to_owned()));
    }
    Ok(conn)
}

/// Creates or migrates the database under the lock of serving processes. Then opens it as
/// [`open_unlocked`] does.
pub(super) async fn create_unlocked(path: &Path) -> Result<SqliteConnection, StoreError> {
    let lock = StoreLock::acquire(path).await?;
    let mut conn = connect_writer(path).await.map_err(|error| open_error(path, error))?;
    schema::prepare(&mut conn, path, None).await?;
    conn.close().await.map_err(|error| open_error(path, error))?;
    drop(lock);
    open_unlocked(path).await
}
