//! `refrain tasks forget`.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::json;

use super::output::{Out, printable, tasks, tell};
use super::{ForgetArguments, ForgetKind};
use crate::cli::Failure;
use crate::store::{DeleteScope, StoreMaintenance};

pub(super) async fn forget(store: &mut StoreMaintenance, arguments: ForgetArguments) -> Result<(), Failure> {
    let ForgetArguments { what, yes, json } = arguments;
    if !yes && io::stdin().is_terminal() && !confirmed(&what)? {
        return Err(Failure::Runtime("nothing was forgotten".to_owned()));
    }
    let (removed, missing) = match what {
        ForgetKind { service: Some(service), .. } => (store.delete(&DeleteScope::Service(service)).await?, 0),
        ForgetKind { older_than: Some(age), .. } => (store.delete(&DeleteScope::OlderThan(age)).await?, 0),
        ForgetKind { ids, .. } => {
            let removed = store.delete_ids(&ids).await?;
            let missing: Vec<_> = ids.iter().zip(&removed).filter(|&(_, &rows)| rows == 0).collect();
            for (id, _) in &missing {
                tell(&format!("refrain: task {} is not stored", printable(id.as_str())));
            }
            (removed.iter().sum(), missing.len())
        }
    };
    let mut out = Out::new();
    if json {
        out.json(&json!({ "forgotten": removed }))?;
    } else {
        out.line(&format!("forgot {}", tasks(removed)))?;
    }
    out.finish()?;
    match missing {
        0 => Ok(()),
        missing => Err(Failure::Runtime(format!("{} of those named were not stored", tasks(missing as u64)))),
    }
}

fn confirmed(what: &ForgetKind) -> Result<bool, Failure> {
    let what = match what {
        ForgetKind { service: Some(service), .. } => format!("all tasks of {service}"),
        ForgetKind { older_than: Some(age), .. } => {
            format!("all tasks stored more than {} ago", humantime::format_duration(*age))
        }
        ForgetKind { ids, .. } => tasks(ids.len() as u64),
    };
    let asked = write!(io::stderr(), "Forget {what}? [y/N] ").and_then(|()| io::stderr().flush());
    let mut answer = String::new();
    asked
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|error| Failure::Runtime(format!("ask on the terminal: {error}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
