//! The lock that makes one process at a time serve a database.
//!
//! Two files are locked. `<file>.lock` shows other programs that the database is served. It can be
//! removed by mistake, and a hard link to the database has another one. On Linux the database file
//! itself is therefore locked too, with flock(2), which is independent of the fcntl(2) locks of
//! SQLite there. On other systems the two exclude each other. A removed lock file is replaced
//! within half a second, and if another process was faster, this one stops writing.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file;
use crate::store::StoreError;

/// Time before the second attempt to take the lock, which [`is_served`] of another process may hold
/// for some microseconds.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// See the module documentation. Released on drop and with the process.
///
/// While SQLite has the database open in this process, no other descriptor of that file may be
/// closed, because that releases SQLite's locks: <https://www.sqlite.org/src/doc/trunk/src/os_unix.c>.
/// The lock is therefore taken before the first connection opens and dropped after the last one
/// was closed.
pub(super) struct StoreLock {
    path: PathBuf,
    lock_file: File,
    /// `None` before [`StoreLock::lock_database`], and where it has no effect.
    database: Option<File>,
}

impl StoreLock {
    /// Takes the lock file of a database.
    pub(super) async fn acquire(path: &Path) -> Result<Self, StoreError> {
        let mut lock_file = lock_file(path);
        if let Err(StoreError::Locked(_)) = lock_file {
            tokio::time::sleep(RETRY_DELAY).await;
            lock_file = self::lock_file(path);
        }
        Ok(Self { path: path.to_owned(), lock_file: lock_file?, database: None })
    }

    /// Locks the file that is at the path now. Creates an empty one if there is none.
    pub(super) fn lock_database(&mut self) -> Result<(), StoreError> {
        let is_locked = |file: &File| file::identity_of(file) == file::identity(&self.path);
        if cfg!(target_os = "linux") && !self.database.as_ref().is_some_and(is_locked) {
            self.database = None;
            self.database = lock_database(&self.path)?;
        }
        Ok(())
    }

    /// Takes the lock file again if it was removed.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has taken it.
    pub(super) fn renew(&mut self) -> Result<(), StoreError> {
        if file::identity_of(&self.lock_file) != file::identity(&path(&self.path)) {
            self.lock_file = lock_file(&self.path)?;
            tracing::warn!(path = %self.path.display(), "the lock file of the task store was removed; it was created again");
        }
        Ok(())
    }
}

/// Whether another process holds the lock file; true if that cannot be determined.
pub(super) fn is_served(database: &Path) -> bool {
    match File::open(path(database)) {
        // Taking the lock for a moment is the only way to find out.
        Ok(file) => file.try_lock_shared().is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Path of the lock file of a database.
fn path(database: &Path) -> PathBuf {
    file::with_suffix(database, ".lock")
}

fn lock_file(database: &Path) -> Result<File, StoreError> {
    let path = path(database);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(|error| file::unwritable(database, error))?;
    match file.try_lock() {
        // Otherwise it was removed between the two calls, and its lock has no effect.
        Ok(()) if file::identity_of(&file) == file::identity(&path) => Ok(file),
        Ok(()) | Err(TryLockError::WouldBlock) => Err(StoreError::Locked(database.to_owned())),
        Err(TryLockError::Error(error)) => Err(file::unwritable(database, error)),
    }
}

/// Returns `None` if the file system has no such locks.
fn lock_database(path: &Path) -> Result<Option<File>, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // As SQLite creates it.
        options.mode(0o644);
    }
    let file = options.open(path).map_err(|error| file::unwritable(path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.to_owned())),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}
