//! `refrain tasks stats`: prints the size of the store.

use std::fs;

use bytesize::ByteSize;
use serde_json::{Map, Value, json};

use super::StatsArguments;
use super::output::{Output, age, printable, task_count, time};
use crate::cli::CliError;
use crate::clock;
use crate::store::StoreMaintenance;

pub(super) async fn stats(store: &mut StoreMaintenance, arguments: &StatsArguments) -> Result<(), CliError> {
    let totals = store.totals().await?;
    let size = |suffix: &str| {
        let mut name = store.path().as_os_str().to_owned();
        name.push(suffix);
        fs::metadata(name).map_or(0, |file| file.len())
    };
    let (file, log) = (size(""), size("-wal"));
    let name = store.path().display().to_string();
    let mut output = Output::new();
    if arguments.json {
        let services: Map<String, Value> = totals
            .services
            .iter()
            .map(|(service, share)| (service.clone(), json!({ "tasks": share.tasks, "bytes": share.bytes })))
            .collect();
        output.json(&json!({
            "file": name,
            "file_bytes": file,
            "wal_bytes": log,
            "schema": totals.schema,
            "tasks": totals.tasks,
            "bytes": totals.bytes,
            "readers": totals.readers,
            "oldest_stored_at": totals.oldest,
            "newest_stored_at": totals.newest,
            "services": services,
        }))?;
        return output.finish();
    }
    let now = clock::unix_now();
    let when = |unix: Option<i64>| {
        unix.map_or_else(|| "-".to_owned(), |unix| format!("{} ({} ago)", time(unix), age(unix, now)))
    };
    output.line(&format!("file     {}", printable(&name)))?;
    output.line(&format!(
        "size     {}, write-ahead log {}, schema {}",
        ByteSize(file),
        ByteSize(log),
        totals.schema
    ))?;
    output.line(&format!("stored   {}, {} of records", task_count(totals.tasks), ByteSize(totals.bytes)))?;
    output.line(&format!("readers  {}", totals.readers))?;
    output.line(&format!("oldest   {}", when(totals.oldest)))?;
    output.line(&format!("newest   {}", when(totals.newest)))?;
    for (service, share) in &totals.services {
        output.line(&format!(
            "service  {}: {}, {}",
            printable(service),
            task_count(share.tasks),
            ByteSize(share.bytes)
        ))?;
    }
    output.finish()
}
