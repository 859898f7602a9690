//! `refrain tasks show`: prints the stored record of a task.

use super::ShowArguments;
use super::output::{Output, printable, time, write_stderr};
use super::selection::find_id;
use crate::cli::CliError;
use crate::store::{RecordDetails, StoreMaintenance};
use crate::token::Digest;

/// Largest number of readers in one line.
const MAX_READERS: usize = 8;

pub(super) async fn show(store: &mut StoreMaintenance, arguments: &ShowArguments) -> Result<(), CliError> {
    let service = arguments.service.as_ref();
    let id = find_id(store, service, &arguments.id).await?.unwrap_or_else(|| arguments.id.clone());
    let name = printable(id.as_str());
    let failed = |reason: &str| Err(CliError::Runtime(format!("task {name} {reason}")));
    let mut texts = store.records(service, &id).await?;
    if texts.is_empty() {
        return failed("is not stored");
    }
    if let Some(prefix) = &arguments.reader {
        texts.retain(|text| text.readers.iter().any(|reader| hex(reader).starts_with(prefix)));
        if texts.is_empty() {
            return failed(&format!("is stored, but not for a reader with the prefix {prefix}"));
        }
    }
    let damaged = texts.iter().filter(|text| text.record.is_none()).count();
    texts.retain(|text| text.record.is_some());
    if texts.is_empty() {
        return failed("is damaged on disk; a running proxy fetches it again when a client looks it up");
    }
    if damaged > 0 {
        write_stderr(&format!("task {name}: {damaged} damaged records are left out"));
    }
    if texts.len() > 1 && !arguments.all {
        for text in &texts {
            write_stderr(&describe(text));
        }
        return failed(&format!(
            "has {} records, because the upstream returned different ones to its readers; select one with \
             --reader PREFIX or --service, or print all with --all",
            texts.len()
        ));
    }
    let mut output = Output::new();
    for text in texts.iter().filter_map(|text| text.record.as_ref()) {
        output.write(text)?;
        if arguments.all {
            output.write(b"\n")?;
        }
    }
    output.finish()
}

fn describe(text: &RecordDetails) -> String {
    let mut readers: Vec<String> = text.readers.iter().take(MAX_READERS).map(Digest::to_string).collect();
    if text.readers.len() > MAX_READERS {
        readers.push(format!("and {} more", text.readers.len() - MAX_READERS));
    }
    format!(
        "{}, {} bytes, stored {}, readable for {}",
        text.service,
        text.record.as_ref().map_or(0, bytes::Bytes::len),
        time(text.stored_at),
        if readers.is_empty() { "no reader".to_owned() } else { readers.join(", ") }
    )
}

fn hex(digest: &Digest) -> String {
    digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}
