//! The errors of the store.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

/// Reason why the store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// `store.url` is not the URL of a file.
    #[error("store.url is {0:?}; it must be sqlite:// and the path of a file, without ? or #")]
    BadUrl(String),
    /// The file that a command should work on does not exist.
    #[error("there is no task store {}; set its path with --store, store.url or --config", .0.display())]
    Missing(PathBuf),
    /// The file that a command should work on lacks the current schema.
    #[error("{} lacks the tables of this version of refrain; start refrain on it once", .0.display())]
    NoSchema(PathBuf),
    /// The copy of the database could not be written.
    #[error("cannot write the copy {}", path.display())]
    Copy {
        /// Path of the copy.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Another `refrain serve` holds the lock file.
    #[error(
        "{} is in use by another refrain; stop that one, or set store.url to another file",
        .0.display()
    )]
    Locked(PathBuf),
    /// Another program held a database lock for longer than the busy timeout.
    #[error("{} is locked by another program; stop that program and try again", .0.display())]
    Busy(PathBuf),
    /// A later version wrote the file.
    #[error(
        "{} was written by a newer refrain (schema {found}, this version supports {known}); use that \
         version, or another file",
        path.display()
    )]
    NewerSchema {
        /// Path of the database file.
        path: PathBuf,
        /// Schema version of the file.
        found: i64,
        /// Newest schema version known here.
        known: i64,
    },
    /// The file is not a valid SQLite database.
    #[error("{} is corrupt: {reason}", path.display())]
    Corrupt {
        /// Path of the database file.
        path: PathBuf,
        /// Result of the check that failed.
        reason: String,
    },
    /// An SQLite database that never was a store.
    #[error("{} is the database of another program; it was left as it is; set store.url to another file", .0.display())]
    Foreign(PathBuf),
    /// A file that is no SQLite database and never was a store.
    #[error("{} is not a task store; it was left as it is; set store.url to another file", .0.display())]
    NotAStore(PathBuf),
    /// The file or its directory cannot be written.
    #[error(
        "cannot open {} for writing; its directory must exist and be writable for refrain",
        path.display()
    )]
    Unwritable {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A migration of the schema failed.
    #[error("cannot migrate the schema of {}; restore a backup, or use another file", path.display())]
    Migrate {
        /// Path of the database file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<sqlx::migrate::MigrateError>,
    },
    /// The system returned no random bytes for the digest key.
    #[error("the system returned no random bytes for the digest key of the store")]
    Random,
    /// The write-ahead log is at its limit, because a reader in another process does not end.
    #[error(
        "the write-ahead log of {} is full; stop the program that keeps reading the database",
        .0.display()
    )]
    WalFull(PathBuf),
    /// The database does not accept writes at the moment, or the store is closed.
    #[error("the task store does not accept writes at the moment; earlier log lines state the cause")]
    Unavailable,
    /// The database cannot be read at the moment, or the store is closed.
    #[error("the task store cannot be read at the moment; earlier log lines state the cause")]
    Unreadable,
    /// The file could not be opened, or a statement of a command failed.
    #[error("cannot use the task store {}", path.display())]
    Database {
        /// Path of the database file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: DatabaseError,
    },
    /// A statement of the running store failed. Its log lines name the path.
    #[error("a statement on the task store failed")]
    Statement(#[source] DatabaseError),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Statement(DatabaseError(error))
    }
}

/// An error of the database library. It has no source, because sqlx repeats the message of SQLite
/// in the sources of an error.
#[derive(Debug)]
pub struct DatabaseError(pub(super) sqlx::Error);

impl Error for DatabaseError {}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            sqlx::Error::Database(error) => {
                f.write_str(error.message())?;
                error.code().map_or(Ok(()), |code| write!(f, " (code {code})"))
            }
            error => error.fmt(f),
        }
    }
}

impl StoreError {
    /// Returns the message with its causes, for a log line.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
