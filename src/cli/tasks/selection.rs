//! Ids that may be given by their beginning.

use super::output::printable;
use crate::cli::CliError;
use crate::store::{IdMatches, StoreMaintenance};
use crate::task::{Service, TaskId};

/// Largest number of ids in one message.
const MAX_SHOWN: u32 = 5;

/// Returns the stored id that begins with `text`, or `None` if there is none.
///
/// # Errors
/// Several ids begin with it, and none is equal to it.
pub(super) async fn find_id(
    store: &mut StoreMaintenance,
    service: Option<&Service>,
    text: &TaskId,
) -> Result<Option<TaskId>, CliError> {
    let IdMatches { count, mut first } = store.ids_beginning_with(service, text, MAX_SHOWN).await?;
    if count <= 1 {
        return Ok(first.pop());
    }
    Err(CliError::Runtime(format!(
        "{count} ids begin with {}: {}; write more of the id",
        printable(text.as_str()),
        list(&first, count)
    )))
}

/// Returns the first ids of `count`, separated by commas.
pub(super) fn list(ids: &[TaskId], count: u64) -> String {
    let mut shown: Vec<String> =
        ids.iter().take(MAX_SHOWN as usize).map(|id| printable(id.as_str())).collect();
    if count > shown.len() as u64 {
        shown.push("…".to_owned());
    }
    shown.join(", ")
}
