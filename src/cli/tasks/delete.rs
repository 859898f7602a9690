//! `refrain tasks delete`.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::json;

use super::output::{Output, printable, task_count, write_stderr};
use super::{DeleteArguments, DeleteSelection};
use crate::cli::CliError;
use crate::store::{DeleteScope, StoreMaintenance};

pub(super) async fn delete(store: &mut StoreMaintenance, arguments: DeleteArguments) -> Result<(), CliError> {
    let DeleteArguments { selection, yes, json } = arguments;
    if !yes && io::stdin().is_terminal() && !is_confirmed(&selection)? {
        return Err(CliError::Runtime("no task was deleted".to_owned()));
    }
    let (deleted, missing) = match selection {
        DeleteSelection { service: Some(service), .. } => {
            (store.delete(&DeleteScope::Service(service)).await?, 0)
        }
        DeleteSelection { older_than: Some(age), .. } => {
            (store.delete(&DeleteScope::OlderThan(age)).await?, 0)
        }
        DeleteSelection { ids, .. } => {
            let rows_per_id = store.delete_ids(&ids).await?;
            let missing: Vec<_> = ids.iter().zip(&rows_per_id).filter(|&(_, &rows)| rows == 0).collect();
            for (id, _) in &missing {
                write_stderr(&format!("refrain: task {} is not stored", printable(id.as_str())));
            }
            (rows_per_id.iter().sum(), missing.len() as u64)
        }
    };
    let mut output = Output::new();
    if json {
        output.json(&json!({ "deleted": deleted }))?;
    } else {
        output.line(&format!("deleted {}", task_count(deleted)))?;
    }
    output.finish()?;
    match missing {
        0 => Ok(()),
        1 => Err(CliError::Runtime("1 of the named tasks was not stored".to_owned())),
        _ => Err(CliError::Runtime(format!("{missing} of the named tasks were not stored"))),
    }
}

fn is_confirmed(selection: &DeleteSelection) -> Result<bool, CliError> {
    let tasks = match selection {
        DeleteSelection { service: Some(service), .. } => format!("all tasks of {service}"),
        DeleteSelection { older_than: Some(age), .. } => {
            format!("all tasks stored more than {} ago", humantime::format_duration(*age))
        }
        DeleteSelection { ids, .. } => task_count(ids.len() as u64),
    };
    let mut reply = String::new();
    write!(io::stderr(), "Delete {tasks}? [y/N] ")
        .and_then(|()| io::stderr().flush())
        .and_then(|()| io::stdin().lock().read_line(&mut reply))
        .map_err(|error| CliError::Runtime(format!("read the confirmation: {error}")))?;
    Ok(matches!(reply.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
