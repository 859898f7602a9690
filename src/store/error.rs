//! What can go wrong with the store: one clear line each, and what SQLite's codes mean to us.

use std::error::Error;
use std::path::PathBuf;

/// Why the store could not be opened, or could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// `store.url` is not the URL of a file.
    #[error("store.url is {url:?}; it must be sqlite:// and the path of a file, without ? or #")]
    BadUrl {
        /// As configured.
        url: String,
    },
    /// A command was given a file that is not there.
    #[error("there is no task store {}; name it by --store, store.url or --config", path.display())]
    Missing {
        /// The database file.
        path: PathBuf,
    },
    /// A command was given a file that nothing was stored in by this version.
    #[error("{} has no tables of this version of refrain yet; start refrain on it once", path.display())]
    NoSchema {
        /// The database file.
        path: PathBuf,
    },
    /// The copy of a store could not be written.
    #[error("the copy {} could not be written", path.display())]
    Copy {
        /// The copy.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Another `refrain serve` holds the lock file.
    #[error("{} is in use by another refrain; stop that one, or set store.url to another file", path.display())]
    Locked {
        /// The database file.
        path: PathBuf,
    },
    /// Another program kept the database locked for longer than the busy time-out.
    #[error("{} is kept locked by another program; end that one and try again", path.display())]
    Busy {
        /// The database file.
        path: PathBuf,
    },
    /// The file was written by a later version.
    #[error(
        "{} was written by a newer refrain (schema {found}, this one knows {known}); use that version, or \
         another file",
        path.display()
    )]
    NewerSchema {
        /// The database file.
        path: PathBuf,
        /// Schema version of the file.
        found: i64,
        /// Newest schema version known here.
        known: i64,
    },
    /// A sound SQLite database, but not one of ours.
    #[error("{} is the database of another program; set store.url to another file", path.display())]
    Foreign {
        /// The database file.
        path: PathBuf,
    },
    /// The file or its folder cannot be written.
    #[error(
        "{} cannot be opened for writing; its folder must exist and refrain must be allowed to write there",
        path.display()
    )]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The schema could not be brought up to date.
    #[error("the schema of {} could not be brought up to date; restore a backup, or use another file", path.display())]
    Migrate {
        /// The database file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: Box<sqlx::migrate::MigrateError>,
    },
    /// No random bytes for the digest key.
    #[error("the system gives no random bytes for the key of the store")]
    Random,
    /// The write-ahead log is at its bound because some reader never ends.
    #[error("the write-ahead log of {} is full; end the program that reads it for so long", path.display())]
    WalFull {
        /// The database file.
        path: PathBuf,
    },
    /// The store takes no writes at the moment, or is closed.
    #[error("the task store takes no writes at the moment; see its earlier log lines")]
    Unavailable,
    /// The store cannot be read at the moment, or is closed.
    #[error("the task store cannot be read at the moment; see its earlier log lines")]
    Unreadable,
    /// A statement failed.
    #[error("the task store failed")]
    Sqlx(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlx(error)
    }
}

impl StoreError {
    /// Whether the file itself is broken.
    pub(super) fn is_corrupt(&self) -> bool {
        match self {
            Self::Sqlx(error) => is_corrupt(error),
            Self::Migrate { source, .. } => match source.as_ref() {
                sqlx::migrate::MigrateError::Execute(error)
                | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => is_corrupt(error),
                _ => false,
            },
            _ => false,
        }
    }

    /// The message with its cause, for a log line.
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

/// `SQLITE_CORRUPT` or `SQLITE_NOTADB`, in any extended form (<https://www.sqlite.org/rescode.html>).
pub(super) fn is_corrupt(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(11 | 26))
}

/// `SQLITE_BUSY` or `SQLITE_LOCKED`.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(5 | 6))
}

/// `SQLITE_PERM`, `SQLITE_READONLY`, `SQLITE_IOERR`, `SQLITE_FULL` or `SQLITE_CANTOPEN`.
pub(super) fn is_unwritable(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(3 | 8 | 10 | 13 | 14)) || matches!(error, sqlx::Error::Io(_))
}

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let sqlx::Error::Database(error) = error else { return None };
    error.code()?.parse::<i32>().ok().map(|code| code & 0xff)
}
