//! Another file in place of one that is corrupt, or that was moved away under the open connections.

use std::sync::atomic::Ordering;
use std::time::Instant;

use sqlx::{Connection, SqliteConnection};

use super::Writer;
use crate::store::StoreError;
use crate::store::open::{self, Opened};
use crate::store::state::Health;

impl Writer {
    /// Whether the file was removed or replaced: what is written through the open connections would be lost.
    pub(super) fn is_moved(&self) -> bool {
        self.file != open::file_identity(&self.shared.path)
    }

    /// Closes everything and goes on with another file under the same digest key, which other rooms hold. A
    /// corrupt file is set aside; one that was moved away or replaced is not ours to touch any more.
    pub(super) async fn recover(&mut self, set_aside: bool) {
        self.last_try = Instant::now();
        self.shared.memory.clear();
        open::close(self.shared.set_readers(None), self.conn.take()).await;
        self.data_version = None;
        self.shared.chores.forget_rows();
        let path = self.shared.path.clone();
        let key = Some(self.shared.key);
        let aside = if !set_aside {
            tracing::error!(
                path = %path.display(),
                "the file of the task store was removed or replaced; what is there now is used"
            );
            Ok(())
        } else if self.is_set_aside {
            Ok(())
        } else {
            // Something said that the file is corrupt, so it goes even if it opens: what is behind a broken page
            // would say so again and again.
            let why = sqlx::Error::Protocol("corruption was found while running".to_owned());
            let done = open::set_aside(&path, &StoreError::Sqlx(why));
            self.is_set_aside = done.is_ok();
            done
        };
        let opened = match aside {
            Ok(()) => open::open_or_set_aside(&path, key).await,
            Err(error) => Err(error),
        };
        let started = match opened {
            Ok((Opened { mut writer, readers, .. }, _)) => {
                let carried =
                    carry_over(&mut writer, self.shared.totals.forget_seq.load(Ordering::Relaxed)).await;
                self.conn = Some(writer);
                self.file = open::file_identity(&path);
                self.shared.set_readers(Some(readers));
                match carried {
                    Ok(()) => self.start().await,
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => Err(error),
        };
        match started {
            Ok(()) => {
                self.is_set_aside = false;
                self.shared.health.set(Health::Good);
                tracing::info!("the task store works again, with another file");
            }
            Err(error) => {
                self.shared.write_failed(&error.chain());
                if !set_aside {
                    self.shared.health.set(Health::WriteFailed);
                }
            }
        }
    }
}

/// Answers under way may not bring back what was forgotten in the former file: its sequence goes on, and nothing
/// whose call began before now is stored.
async fn carry_over(conn: &mut SqliteConnection, seq: i64) -> Result<(), sqlx::Error> {
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    let seq: i64 =
        sqlx::query_scalar("UPDATE meta SET forget_seq = MAX(forget_seq, ?1) + 1 RETURNING forget_seq")
            .bind(seq)
            .fetch_one(&mut *tx)
            .await?;
    sqlx::query("INSERT INTO forgotten (seq) VALUES (?1)").bind(seq).execute(&mut *tx).await?;
    tx.commit().await
}
