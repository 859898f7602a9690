//! Classes of SQLite result codes (<https://www.sqlite.org/rescode.html>).

use crate::store::StoreError;

/// Whether the database file itself is broken.
pub(super) fn means_corrupt_file(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt { .. } => true,
        StoreError::Database { source, .. } | StoreError::Statement(source) => is_corrupt(&source.0),
        _ => false,
    }
}

/// `SQLITE_CORRUPT` or `SQLITE_NOTADB`, in any extended form.
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
