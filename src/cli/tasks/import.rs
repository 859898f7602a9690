//! `refrain tasks import`: stores the tasks of an export and makes them readable for one token or
//! for the team.
//!
//! Lines are stored in transactions of some hundred. The import stops at the first invalid line:
//! the transaction of that line is not committed, earlier ones are. The corrected file can be
//! imported again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;

use super::ImportArguments;
use super::export::ExportLine;
use super::output::{Output, progress, task_count};
use crate::cli::{CliError, token_input};
use crate::clock;
use crate::config::{AccessMode, Config};
use crate::store::{ImportedTask, StoreMaintenance};
use crate::task::{
    FinalRecord, Service, ServiceClass, ServiceRules, TaskId, TaskState, find_in_catalogue, inspect,
};
use crate::token::{Digest, DigestKey, Token};

/// Largest number of lines in one transaction.
const BATCH_LINES: usize = 500;

/// Size of the records after which a transaction ends, in bytes.
const BATCH_BYTES: usize = 16 << 20;

/// Longest line, in bytes: more than the largest task with every byte escaped.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// Longest pause between two transactions. A running proxy can write during it.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// Interval of the check for a running proxy. The check briefly holds the lock that a proxy needs
/// to start.
const PROXY_CHECK_INTERVAL: Duration = Duration::from_millis(500);

pub(super) async fn import(arguments: ImportArguments, config: &Config) -> Result<(), CliError> {
    let is_shared = config.access.mode == AccessMode::Shared;
    let token = token(&arguments)?;
    if token.is_none() && !is_shared {
        return Err(CliError::Usage(vec![
            "import needs --token-stdin or --token-file: the token that may read the tasks".to_owned(),
        ]));
    }
    let mut lines = ExportReader::open(&arguments.file)?;
    // Reads the first batch before it opens the store, so that a wrong file does not leave an empty
    // store.
    let first = lines.batch().map_err(|mistake| mistake.after(0))?;
    let mut store = StoreMaintenance::open_or_create(&config.store).await?;
    let done = import_batches(&mut store, token.filter(|_| !is_shared), first, &mut lines).await;
    let closed = store.close().await;
    let imported = done?;
    closed?;
    let (new, known) = (imported.new, imported.lines - imported.new);
    let mut output = Output::new();
    if arguments.json {
        output.json(&json!({ "imported": new, "known": known, "reader": imported.reader.to_string() }))?;
    } else {
        let reader = if is_shared { "the team".to_owned() } else { format!("reader {}", imported.reader) };
        let rest = if known > 0 {
            format!("; {} were readable for it before", task_count(known))
        } else {
            String::new()
        };
        output.line(&format!("imported {} for {reader}{rest}", task_count(new)))?;
    }
    output.finish()
}

/// The result of an import.
struct ImportCounts {
    reader: Digest,
    lines: u64,
    new: u64,
}

/// Imports `first` and the remaining lines. `token` is `None` for the team.
async fn import_batches(
    store: &mut StoreMaintenance,
    token: Option<Token>,
    first: Vec<ImportedTask>,
    lines: &mut ExportReader,
) -> Result<ImportCounts, CliError> {
    let key = DigestKey::new(&store.digest_key().await?);
    let reader = token.map_or_else(|| key.team(), |token| key.digest(&token));
    let mut imported = ImportCounts { reader, lines: 0, new: 0 };
    let bar = progress(lines.length, "{wide_bar} {msg}, {binary_bytes} of {binary_total_bytes}, {eta} left");
    let mut batch = first;
    let (mut is_served, mut looked) = (store.is_served(), Instant::now());
    while !batch.is_empty() {
        let start = Instant::now();
        imported.new += store.import(&reader, &batch).await.map_err(|error| {
            ImportError::new(format!("{:#}", anyhow::Error::from(error))).after(imported.lines)
        })?;
        imported.lines += batch.len() as u64;
        bar.set_position(lines.bytes);
        bar.set_message(task_count(imported.lines));
        if looked.elapsed() > PROXY_CHECK_INTERVAL {
            (is_served, looked) = (store.is_served(), Instant::now());
        }
        if is_served {
            tokio::time::sleep(start.elapsed().min(MAX_PAUSE)).await;
        }
        batch = lines.batch().map_err(|mistake| mistake.after(imported.lines))?;
    }
    bar.finish_and_clear();
    Ok(imported)
}

/// The reason why an import stopped.
struct ImportError(String);

impl ImportError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Adds the number of tasks that are imported.
    fn after(self, imported: u64) -> CliError {
        let Self(message) = self;
        CliError::Runtime(format!(
            "{message}; {} were imported before it, none after it",
            task_count(imported)
        ))
    }
}

/// Reads an export line by line.
struct ExportReader {
    input: Box<dyn BufRead>,
    /// Size of the file in bytes; `None` for stdin and pipes.
    length: Option<u64>,
    /// Number of bytes read.
    bytes: u64,
    /// Number of lines read.
    count: u64,
}

impl ExportReader {
    fn open(path: &Path) -> Result<Self, CliError> {
        let lines = |input, length| Self { input, length, bytes: 0, count: 0 };
        if path == Path::new("-") {
            return Ok(lines(Box::new(io::stdin().lock()), None));
        }
        let failed = |error| CliError::Runtime(format!("cannot read {}: {error}", path.display()));
        let file = File::open(path).map_err(failed)?;
        let there = file.metadata().map_err(failed)?;
        let length = there.is_file().then_some(there.len());
        Ok(lines(Box::new(BufReader::with_capacity(1 << 16, file)), length))
    }

    /// Returns the tasks of one transaction; empty at the end.
    fn batch(&mut self) -> Result<Vec<ImportedTask>, ImportError> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let now = clock::unix_now();
        let mut line = Vec::new();
        while batch.len() < BATCH_LINES && bytes < BATCH_BYTES {
            line.clear();
            let length = self
                .input
                .by_ref()
                .take(MAX_LINE_BYTES + 1)
                .read_until(b'\n', &mut line)
                .map_err(|error| ImportError::new(format!("cannot read the export: {error}")))?;
            if length == 0 {
                break;
            }
            self.count += 1;
            self.bytes += length as u64;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let task = if length as u64 > MAX_LINE_BYTES { Err("too long") } else { parse(&line, now) };
            let task = task.map_err(|why| ImportError::new(format!("line {}: {why}", self.count)))?;
            bytes += task.task.json.len();
            batch.push(task);
        }
        Ok(batch)
    }
}

/// Parses one line at `now`, in Unix seconds. The error does not quote it: a token may be in the
/// wrong place.
fn parse(line: &[u8], now: i64) -> Result<ImportedTask, &'static str> {
    use serde_json::error::Category;

    let line: ExportLine<'_> = serde_json::from_slice(line).map_err(|error| match error.classify() {
        Category::Eof => "truncated",
        Category::Data => "not an object with exactly service, id, stored_at and text",
        Category::Syntax | Category::Io => "not JSON",
    })?;
    let service = Service::parse(&line.service).ok_or("the service name is not valid")?;
    let id = TaskId::parse(&line.id).ok_or("the id does not have 1 to 1024 bytes")?;
    let text = Bytes::from(line.text.into_owned());
    let rules = find_in_catalogue(service.as_str())
        .map_or(ServiceRules::new(ServiceClass::Batch, None), |entry| entry.rules);
    // The record was final when it was stored, perhaps by a clock that is ahead of this one.
    let now = now.max(line.stored_at);
    match inspect(&text, &rules, now).map(|inspection| inspection.state_of(&id)) {
        Some(TaskState::Final) => {
            Ok(ImportedTask { service, stored_at: line.stored_at, task: FinalRecord { id, json: text } })
        }
        Some(TaskState::Pending) => Err("the task is not final"),
        Some(TaskState::Unknown | TaskState::Mismatch) => Err("the text is not the record of the id"),
        None => Err("the text is not a JSON object"),
    }
}

/// Reads the token from the file or stdin; `None` without an option.
fn token(arguments: &ImportArguments) -> Result<Option<Token>, CliError> {
    match &arguments.token_file {
        Some(path) => token_input::from_file(path).map(Some),
        None if arguments.token_stdin => token_input::from_stdin("--token-stdin").map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_line_is_refused_with_a_reason() {
        let line = |service: &str, id: &str, text: &str| {
            json!({"service": service, "id": id, "stored_at": 1, "text": text}).to_string()
        };
        let text = r#"{"id":"a","finished_at":1.50}"#;
        let task = parse(line("producer", "a", text).as_bytes(), 10).unwrap();
        assert_eq!((task.task.json.as_ref(), task.stored_at), (text.as_bytes(), 1));
        let valid = line("producer", "a", text);
        for (line, reason) in [
            (&valid[..valid.len() - 2], "truncated"),
            ("no", "not JSON"),
            (r#""canary""#, "not an object with"),
            (r#"{"service":"producer"}"#, "not an object with"),
            (&valid.replacen('{', r#"{"more":1,"#, 1), "not an object with"),
            (&line("a/b", "a", text), "service"),
            (&line("producer", "", text), "the id"),
            (&line("producer", "b", text), "not the record of the id"),
            (&line("producer", "a", "{}"), "not the record of the id"),
            (&line("producer", "a", "[]"), "not a JSON object"),
            (&line("producer", "a", r#"{"id":"a"}"#), "not final"),
        ] {
            let error = parse(line.as_bytes(), 10).unwrap_err();
            assert!(error.contains(reason), "{error}: {line}");
        }
    }

    #[test]
    fn record_that_was_final_when_stored_is_accepted() {
        let accepts = |service: &str, stored_at: i64, text: &str, now: i64| {
            let line = json!({"service": service, "id": "a", "stored_at": stored_at, "text": text});
            parse(line.to_string().as_bytes(), now).is_ok()
        };
        let odd = r#"{"id":"a","finished_at":1000,"response":{"state":"odd"}}"#;
        for service in ["producer", "minimax", "custom"] {
            assert!(accepts(service, 5_000, odd, 9_000) && !accepts(service, 1_010, odd, 1_020), "{service}");
            assert!(accepts(service, 5_000, odd, 0), "the clock is behind: {service}");
        }
        assert!(accepts("webextrator", 1_010, odd, 1_020));
    }
}
