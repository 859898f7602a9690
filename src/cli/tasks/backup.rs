//! `refrain tasks backup`: copies the store into a new file.

use std::fs;
use std::io;
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::json;

use super::BackupArguments;
use super::output::{NewFile, Output, printable, progress, task_count};
use crate::cli::{CliError, signals};
use crate::store::StoreMaintenance;

/// Interval of the progress display.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

pub(super) async fn backup(
    store: &mut StoreMaintenance,
    arguments: &BackupArguments,
) -> Result<(), CliError> {
    let path = arguments.file.as_path();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            CliError::Runtime(format!("{} exists already; a backup does not overwrite files", path.display()))
        }
        _ => CliError::Runtime(format!("cannot write {}: {error}", path.display())),
    };
    if fs::symlink_metadata(path).is_ok() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let interrupted = signals::shutdown_token()?;
    let (new, _) = NewFile::create(path).map_err(failed)?;
    let length = fs::metadata(store.path()).map_or(0, |file| file.len());
    let bar = progress(Some(length), "{wide_bar} {binary_bytes} of about {binary_total_bytes}, {eta} left");
    let mut progress_timer = tokio::time::interval(PROGRESS_INTERVAL);
    let copied = {
        let signal = interrupted.clone();
        let mut copying = std::pin::pin!(store.copy_to(new.temporary(), move || !signal.is_cancelled()));
        loop {
            tokio::select! {
                copied = &mut copying => break copied,
                _ = progress_timer.tick() => {
                    bar.set_position(fs::metadata(new.temporary()).map_or(0, |file| file.len()));
                }
            }
        }
    };
    bar.finish_and_clear();
    if interrupted.is_cancelled() {
        return Err(CliError::Runtime("interrupted; nothing was written".to_owned()));
    }
    copied?;
    let mut copy = StoreMaintenance::open_file(new.temporary()).await?;
    let count = copy.count().await?;
    copy.close().await?;
    new.publish().map_err(failed)?;

    let bytes = fs::metadata(path).map_err(failed)?.len();
    let mut output = Output::new();
    let name = path.display().to_string();
    if arguments.json {
        output.json(&json!({ "file": name, "tasks": count, "bytes": bytes }))?;
    } else {
        output.line(&format!("{}: {}, {}", printable(&name), task_count(count), ByteSize(bytes)))?;
    }
    output.finish()
}
