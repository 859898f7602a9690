//! `refrain tasks delete`.

use std::collections::HashSet;
use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::json;

use super::output::{Output, task_count};
use super::selection::{find_id, list};
use super::{DeleteArguments, DeleteSelection};
use crate::cli::CliError;
use crate::store::{DeleteScope, StoreMaintenance};
use crate::task::TaskId;

pub(super) async fn delete(store: &mut StoreMaintenance, arguments: DeleteArguments) -> Result<(), CliError> {
    let DeleteArguments { mut selection, yes, json } = arguments;
    let mut missing = Vec::new();
    for id in &mut selection.ids {
        match find_id(store, None, id).await? {
            Some(found) => *id = found,
            None if missing.contains(id) => {}
            None => missing.push(id.clone()),
        }
    }
    let mut seen = HashSet::new();
    selection.ids.retain(|id| seen.insert(id.clone()));
    let deleted = match yes || !io::stdin().is_terminal() || is_confirmed(store, &selection, &missing).await?
    {
        true => delete_selected(store, &selection).await?,
        false => return Err(CliError::Runtime("no task was deleted".to_owned())),
    };
    let mut output = Output::new();
    if json {
        output.json(&json!({ "deleted": deleted }))?;
    } else if deleted > 0 || missing.is_empty() {
        output.line(&format!("deleted {}", task_count(deleted)))?;
    }
    output.finish()?;
    match &missing[..] {
        [] => Ok(()),
        [id] => Err(CliError::Runtime(format!("task {} is not stored", list(std::slice::from_ref(id), 1)))),
        ids => {
            let count = ids.len() as u64;
            Err(CliError::Runtime(format!("{count} tasks are not stored: {}", list(ids, count))))
        }
    }
}

async fn delete_selected(store: &mut StoreMaintenance, selection: &DeleteSelection) -> Result<u64, CliError> {
    Ok(match selection {
        DeleteSelection { service: Some(service), .. } => {
            store.delete(&DeleteScope::Service(service.clone())).await?
        }
        DeleteSelection { older_than: Some(age), .. } => store.delete(&DeleteScope::OlderThan(*age)).await?,
        // Also of ids that are not stored: a running proxy may be about to store them.
        DeleteSelection { ids, .. } => store.delete_ids(ids).await?.iter().sum(),
    })
}

/// Asks for confirmation, unless nothing would be deleted.
async fn is_confirmed(
    store: &mut StoreMaintenance,
    selection: &DeleteSelection,
    missing: &[TaskId],
) -> Result<bool, CliError> {
    let (count, tasks) = match selection {
        DeleteSelection { service: Some(service), .. } => {
            let count = store.count_of_service(service).await?;
            (count, format!("{} of {service}", task_count(count)))
        }
        DeleteSelection { older_than: Some(age), .. } => {
            let (count, age_text) = (store.count_older_than(*age).await?, humantime::format_duration(*age));
            (count, format!("{} stored more than {age_text} ago", task_count(count)))
        }
        DeleteSelection { ids, .. } => {
            let stored: Vec<TaskId> = ids.iter().filter(|id| !missing.contains(id)).cloned().collect();
            let count = stored.len() as u64;
            (count, format!("{}: {}", task_count(count), list(&stored, count)))
        }
    };
    if count == 0 {
        return Ok(true);
    }
    let mut reply = String::new();
    write!(io::stderr(), "Delete {tasks}? [y/N] ")
        .and_then(|()| io::stderr().flush())
        .and_then(|()| io::stdin().lock().read_line(&mut reply))
        .map_err(|error| CliError::Runtime(format!("read the confirmation: {error}")))?;
    Ok(matches!(reply.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
