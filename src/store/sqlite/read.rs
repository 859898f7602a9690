//! Reading tasks for a lookup.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::coalescer::{IDS_PER_STATEMENT, ReadCoalescer};
use super::select::{FoundTask, JoinedResult, select_rows};
use super::state::SqliteState;
use crate::store::current_hour;
use crate::store::large_records::RecordInUse;
use crate::task::{Service, TaskId};
use crate::token::Digest;

/// Passes the tasks of `ids` that `reader` may read to `visit`, until it returns `Break`. Reports
/// damaged ones to the state.
///
/// If the future is dropped, a running statement goes on for a limited time.
pub(super) async fn read_tasks(
    state: &SqliteState,
    coalescer: &Arc<ReadCoalescer>,
    reader: &Digest,
    service: &Service,
    ids: &[&TaskId],
    mut visit: impl FnMut(FoundTask) -> ControlFlow<()>,
) -> Result<(), sqlx::Error> {
    // Taken first, so that all is read from one file.
    let pool = state.readers.pool().ok_or(sqlx::Error::PoolClosed)?;
    let mut separate = Vec::new();
    for (chunk, chunk_ids) in ids.chunks(IDS_PER_STATEMENT).enumerate() {
        let start = chunk * IDS_PER_STATEMENT;
        // A failed statement is reported by the coalescer.
        let Some(results) = coalescer.read(reader, service, chunk_ids).await else { return Ok(()) };
        for result in results {
            let index = start + result.index();
            match result.with_index(index) {
                JoinedResult::Found(task) => {
                    if visit(task).is_break() {
                        return Ok(());
                    }
                }
                JoinedResult::ReadSeparately(index) => separate.push(index),
            }
        }
    }
    if separate.is_empty() {
        return Ok(());
    }
    let mut connection = pool.acquire().await?;
    // Without those that another lookup has read while this one waited for the connection.
    let (hour, mut is_stopped) = (current_hour(), false);
    separate.retain(|&index| {
        let Some(in_use) = state.local.memory.get_large(reader, service, ids[index], hour) else {
            return true;
        };
        let RecordInUse { row_id, stored_at, used_hour, record } = in_use;
        is_stopped |= visit(FoundTask { index, row_id, stored_at, used_hour, record }).is_break();
        false
    });
    if is_stopped || separate.is_empty() {
        return Ok(());
    }
    let picked: Vec<&TaskId> = separate.iter().map(|index| ids[*index]).collect();
    let visit = |task: FoundTask| visit(FoundTask { index: separate[task.index], ..task });
    select_rows(&mut connection, reader, service, &picked, visit, |row| state.record_corrupt_row(row)).await
}
