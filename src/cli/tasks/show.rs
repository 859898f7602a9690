//! `refrain tasks show`.

use super::ShowArguments;
use super::output::{Output, printable, time, write_stderr};
use crate::cli::CliError;
use crate::store::{RecordDetails, StoreMaintenance};
use crate::token::Digest;

/// Readers that a line names.
const NAMED: usize = 8;

pub(super) async fn show(store: &mut StoreMaintenance, arguments: &ShowArguments) -> Result<(), CliError> {
    let name = printable(arguments.id.as_str());
    let failed = |what: &str| Err(CliError::Runtime(format!("task {name} {what}")));
    let mut texts = store.records(arguments.service.as_ref(), &arguments.id).await?;
    if texts.is_empty() {
        return failed("is not stored");
    }
    if let Some(prefix) = &arguments.reader {
        texts.retain(|text| text.readers.iter().any(|reader| hex(reader).starts_with(prefix)));
        if texts.is_empty() {
            return failed(&format!("is stored, but not for a reader {prefix}"));
        }
    }
    let damaged = texts.iter().filter(|text| text.record.is_none()).count();
    texts.retain(|text| text.record.is_some());
    if texts.is_empty() {
        return failed("is damaged on disk; a running proxy fetches it anew when it is asked for");
    }
    if damaged > 0 {
        write_stderr(&format!("task {name}: {damaged} of its texts are damaged and left out"));
    }
    if texts.len() > 1 && !arguments.all {
        for text in &texts {
            write_stderr(&describe(text));
        }
        return failed(&format!(
            "has {} texts, as its readers were told different ones; choose by --reader PREFIX or --service, or \
             show them by --all",
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
    let mut readers: Vec<String> = text.readers.iter().take(NAMED).map(Digest::to_string).collect();
    if text.readers.len() > NAMED {
        readers.push(format!("and {} more", text.readers.len() - NAMED));
    }
    format!(
        "{}, {} bytes, stored {}, readable for {}",
        text.service,
        text.record.as_ref().map_or(0, bytes::Bytes::len),
        time(text.stored_at),
        if readers.is_empty() { "nobody".to_owned() } else { readers.join(", ") }
    )
}

fn hex(digest: &Digest) -> String {
    digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}
