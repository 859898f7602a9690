//! The database file: its path, its lock, its identity, and setting a corrupt one aside.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::store::StoreError;

/// Time before the second attempt to take the lock, which [`is_served`] of another process may hold
/// for some microseconds.
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Returns the absolute path of a `sqlite://` URL. The part after the scheme is the path as it is;
/// nothing is percent-decoded.
pub(super) fn parse_url(url: &str) -> Result<PathBuf, StoreError> {
    let bad = || StoreError::BadUrl(url.to_owned());
    let path = url.strip_prefix("sqlite://").ok_or_else(bad)?;
    if path.is_empty() || path.starts_with(':') || path.ends_with('/') || path.contains(['?', '#', '\0']) {
        return Err(bad());
    }
    absolute(Path::new(path))
}

/// Returns the absolute path, which SQLite cannot mistake for a `file:` URI.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, StoreError> {
    std::path::absolute(path).map_err(|error| unwritable(path, error))
}

/// Takes `<path>.lock`. The lock lasts as long as the returned file is open and ends with the
/// process.
pub(super) async fn lock(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(with_suffix(path, ".lock"))
        .map_err(|error| unwritable(path, error))?;
    let mut locked = file.try_lock();
    if let Err(TryLockError::WouldBlock) = locked {
        tokio::time::sleep(LOCK_RETRY_DELAY).await;
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(unwritable(path, error)),
    }
}

/// Whether another process holds the lock that [`lock`] takes; true if that cannot be determined.
pub(super) fn is_served(path: &Path) -> bool {
    match File::open(with_suffix(path, ".lock")) {
        // Taking the lock for a moment is the only way to find out.
        Ok(file) => file.try_lock_shared().is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Returns the path with a suffix added to its last component.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns the length of a file in bytes; 0 if there is none.
pub(super) fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

/// Returns device and inode of the file; `None` if there is no file or no such numbers on this
/// system.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Renames the file with its `-wal` and `-shm`. No connection of this process may be open: what is
/// written through a connection to a renamed file is lost.
pub(super) fn set_aside(path: &Path, reason: &StoreError) -> Result<(), StoreError> {
    let now = clock::unix_now();
    let target = (0..)
        .map(|n: u32| {
            with_suffix(path, &if n == 0 { format!(".corrupt-{now}") } else { format!(".corrupt-{now}-{n}") })
        })
        .find(|target| !target.exists())
        .expect("some number is free");
    for suffix in ["-wal", "-shm", ""] {
        match std::fs::rename(with_suffix(path, suffix), with_suffix(&target, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(unwritable(path, error));
            }
            _ => {}
        }
    }
    tracing::error!(
        path = %path.display(),
        set_aside_as = %target.display(),
        error = reason.chain(),
        "the task store is corrupt; it was set aside and an empty one takes its place"
    );
    Ok(())
}

fn unwritable(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Unwritable { path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_urls_are_accepted() {
        assert_eq!(parse_url("sqlite:///data/refrain.db").unwrap(), Path::new("/data/refrain.db"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(parse_url("sqlite://refrain.db").unwrap(), here.join("refrain.db"));
        assert_eq!(parse_url("sqlite://file:a%20b").unwrap(), here.join("file:a%20b"));
        for bad in [
            "",
            "refrain.db",
            "sqlite:refrain.db",
            "sqlite://",
            "sqlite://:memory:",
            "sqlite://a?mode=ro",
            "sqlite://a#b",
            "sqlite://a/",
            "postgres://a",
        ] {
            assert!(matches!(parse_url(bad), Err(StoreError::BadUrl(_))), "{bad}");
        }
    }
}
