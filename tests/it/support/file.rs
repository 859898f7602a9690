//! The store's file as another program sees it.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

/// A separate connection to a store's file.
pub struct StoreFile {
    pub connection: SqliteConnection,
}

impl StoreFile {
    /// Opens `refrain.db` in a folder.
    pub async fn open(folder: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(folder.join("refrain.db"))
            .busy_timeout(super::TIMEOUT)
            .disable_statement_logging();
        Self { connection: options.connect().await.expect("the file opens") }
    }

    /// Result of SQLite's integrity check, `ok` for a sound file.
    pub async fn integrity(&mut self) -> String {
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut self.connection).await.expect("readable")
    }

    /// Runs one statement. Returns the number of changed rows.
    pub async fn run(&mut self, sql: &'static str) -> u64 {
        sqlx::query(sql).execute(&mut self.connection).await.expect("it runs").rows_affected()
    }

    pub async fn close(self) {
        self.connection.close().await.expect("it closes");
    }
}
