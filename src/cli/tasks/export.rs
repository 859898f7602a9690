//! `refrain tasks export`: writes the store as JSON lines that preserve every byte, page by page.

use std::borrow::Cow;
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::ExportArguments;
use super::output::{NewFile, progress, stdout_failed, task_count, write_stderr};
use crate::cli::{CliError, signals};
use crate::store::StoreMaintenance;

/// One line of an export.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportLine<'a> {
    pub(super) service: Cow<'a, str>,
    pub(super) id: Cow<'a, str>,
    /// In seconds since the Unix epoch.
    pub(super) stored_at: i64,
    /// The bytes of the record, which are UTF-8.
    pub(super) text: Cow<'a, str>,
}

pub(super) async fn export(
    store: &mut StoreMaintenance,
    arguments: &ExportArguments,
) -> Result<(), CliError> {
    let path = arguments.output.as_path();
    let never = CancellationToken::new();
    if path == Path::new("-") {
        let mut out = BufWriter::new(io::stdout().lock());
        let written = write(store, arguments, &mut out, &never, |error| stdout_failed(&error)).await?;
        out.flush().map_err(|error| stdout_failed(&error))?;
        report(&written);
        return Ok(());
    }
    let failed = |error: io::Error| CliError::Runtime(format!("cannot write {}: {error}", path.display()));
    if same_file(path, store.path()) {
        return Err(CliError::Usage(vec![format!("{} is the store itself", path.display())]));
    }
    // A device or a pipe cannot be replaced.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        let mut out = BufWriter::new(OpenOptions::new().write(true).open(path).map_err(failed)?);
        let written = write(store, arguments, &mut out, &never, failed).await?;
        out.flush().map_err(failed)?;
        report(&written);
        return Ok(());
    }
    let interrupted = signals::shutdown_token()?;
    // The target of a symbolic link is replaced, not the link.
    let (new, file) =
        NewFile::create(&fs::canonicalize(path).unwrap_or_else(|_| path.into())).map_err(failed)?;
    let mut out = BufWriter::new(file);
    let written = write(store, arguments, &mut out, &interrupted, failed).await?;
    out.flush().map_err(failed)?;
    new.replace().map_err(failed)?;
    report(&written);
    Ok(())
}

struct ExportCounts {
    tasks: u64,
    damaged: u64,
}

async fn write(
    store: &mut StoreMaintenance,
    arguments: &ExportArguments,
    out: &mut dyn Write,
    interrupted: &CancellationToken,
    failed: impl Fn(io::Error) -> CliError,
) -> Result<ExportCounts, CliError> {
    let service = arguments.service.as_ref();
    let length = if service.is_none() { Some(store.count().await?) } else { None };
    let bar = progress(length, "{wide_bar} {pos} of {len} tasks, {eta} left");
    if arguments.output == Path::new("-") && io::stdout().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let (mut written, mut cursor) = (ExportCounts { tasks: 0, damaged: 0 }, 0);
    loop {
        let page = store.export_page(service, cursor).await?;
        if interrupted.is_cancelled() {
            return Err(CliError::Runtime("interrupted; nothing was written".to_owned()));
        }
        for task in &page.tasks {
            let line = ExportLine {
                service: task.service.as_str().into(),
                id: task.id.as_str().into(),
                stored_at: task.stored_at,
                text: task.record.as_str().into(),
            };
            let mut line = serde_json::to_vec(&line).expect("strings and numbers have a JSON form");
            line.push(b'\n');
            out.write_all(&line).map_err(&failed)?;
        }
        written.tasks += page.tasks.len() as u64;
        written.damaged += page.damaged;
        bar.set_position(written.tasks);
        match page.next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    bar.finish_and_clear();
    Ok(written)
}

fn report(written: &ExportCounts) {
    if written.damaged > 0 {
        write_stderr(&format!(
            "{} left out because the stored record is damaged",
            task_count(written.damaged)
        ));
    }
    write_stderr(&format!("exported {}", task_count(written.tasks)));
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(one), Ok(other)) if one == other)
}
