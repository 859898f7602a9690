//! The database file: its path, its identity, and setting a corrupt one aside.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::clock;
use crate::store::StoreError;

/// Value of `PRAGMA application_id` in a store: `rfrn`.
pub(super) const APPLICATION_ID: i32 = i32::from_be_bytes(*b"rfrn");

/// Position of the application id in the header: <https://www.sqlite.org/fileformat.html>.
const APPLICATION_ID_AT: std::ops::Range<usize> = 68..72;

/// Length of SQLite's header.
const HEADER_BYTES: u64 = 100;

/// Returns the resolved path of a `sqlite://` URL. The part after the scheme is the path as it is;
/// nothing is percent-decoded.
pub(super) fn parse_url(url: &str) -> Result<PathBuf, StoreError> {
    let bad = || StoreError::BadUrl(url.to_owned());
    let path = url.strip_prefix("sqlite://").ok_or_else(bad)?;
    if path.is_empty() || path.starts_with(':') || path.ends_with('/') || path.contains(['?', '#', '\0']) {
        return Err(bad());
    }
    resolve(Path::new(path))
}

/// Returns the absolute path without symbolic links. SQLite uses the same one, so that all names of
/// a file have the same lock and the same write-ahead log. SQLite cannot mistake it for a `file:`
/// URI.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, StoreError> {
    let path = std::path::absolute(path).map_err(|error| unwritable(path, error))?;
    match std::fs::canonicalize(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        resolved => return resolved.map_err(|error| unwritable(&path, error)),
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path) };
    match std::fs::read_link(&path) {
        // A link to a file that does not exist yet.
        Ok(target) => resolve(&directory.join(target)),
        Err(_) => Ok(std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned()).join(name)),
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

/// Device and inode of a file.
pub(super) type FileIdentity = (u64, u64);

/// Returns the identity of the file at a path; `None` if there is no file or no such numbers on
/// this system.
pub(super) fn identity(path: &Path) -> Option<FileIdentity> {
    std::fs::metadata(path).ok().and_then(|file| metadata_identity(&file))
}

/// Returns the identity of an open file.
pub(super) fn identity_of(file: &File) -> Option<FileIdentity> {
    file.metadata().ok().and_then(|file| metadata_identity(&file))
}

#[cfg(unix)]
fn metadata_identity(file: &Metadata) -> Option<FileIdentity> {
    use std::os::unix::fs::MetadataExt;
    Some((file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn metadata_identity(_file: &Metadata) -> Option<FileIdentity> {
    None
}

/// Refuses a file that never was a store. To be called before the lock file is created, because a
/// lock file beside the database is the sign of a store whose header is damaged.
pub(super) fn check_origin(path: &Path) -> Result<(), StoreError> {
    let is_lock = |file: Metadata| file.is_file() && file.len() == 0;
    if !std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() > 0)
        || std::fs::metadata(with_suffix(path, ".lock")).is_ok_and(is_lock)
    {
        return Ok(());
    }
    let mut header = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEADER_BYTES).read_to_end(&mut header))
        .map_err(|error| unwritable(path, error))?;
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(StoreError::NotAStore(path.to_owned()));
    }
    if header.get(APPLICATION_ID_AT) != Some(&APPLICATION_ID.to_be_bytes()) {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    Ok(())
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
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
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

pub(super) fn unwritable(path: &Path, source: io::Error) -> StoreError {
    StoreError::Unwritable { path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn symbolic_links_are_resolved_even_before_the_file_exists() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("real.db", real.join("link.db")).unwrap();
        std::os::unix::fs::symlink("link.db", real.join("second.db")).unwrap();
        std::os::unix::fs::symlink(&real, real.join("directory")).unwrap();
        let resolved = |name: &str| resolve(&real.join(name)).unwrap();
        for _ in 0..2 {
            for name in ["real.db", "link.db", "second.db", "directory/link.db", "directory/./real.db"] {
                assert_eq!(resolved(name), real.join("real.db"), "{name}");
            }
            File::create(real.join("real.db")).unwrap();
        }
        assert_eq!(resolved("missing/x.db"), real.join("missing/x.db"));
        std::os::unix::fs::symlink("loop", real.join("loop")).unwrap();
        assert!(matches!(resolve(&real.join("loop")), Err(StoreError::Unwritable { .. })));
    }

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
