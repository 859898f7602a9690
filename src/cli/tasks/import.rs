//! `refrain tasks import`: what export wrote, made readable for one token or for the team.
//!
//! Read in transactions of some hundred lines. At the first line that is not sound it ends: that line's transaction
//! is not done, those before it are, and the file can be imported again once it is mended.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;

use super::ImportArguments;
use super::export::Line;
use super::output::{Output, progress, task_count};
use crate::cli::CliError;
use crate::config::{AccessMode, Config};
use crate::store::{ImportedTask, StoreMaintenance};
use crate::task::{FinalRecord, Service, TaskId, TaskState, inspect};
use crate::token::{Digest, DigestKey, Token};

/// Lines of one transaction.
const BATCH_LINES: usize = 500;

/// And about this many bytes of text.
const BATCH_BYTES: usize = 16 << 20;

/// The longest line: more than the largest task with every byte escaped.
const LONGEST_LINE: u64 = 256 << 20;

/// The longest line with a token.
const LONGEST_TOKEN: u64 = 64 << 10;

/// The longest rest between two transactions, in which a running proxy writes.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// Between two looks at whether there is one: a look holds the lock that a proxy needs to start.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn import(arguments: ImportArguments, config: &Config) -> Result<(), CliError> {
    let is_shared = config.access.mode == AccessMode::Shared;
    let token = token(&arguments)?;
    if token.is_none() && !is_shared {
        return Err(CliError::Usage(vec![
            "import needs --token-stdin or --token-file: the token for which the tasks become readable"
                .to_owned(),
        ]));
    }
    let mut lines = Lines::open(&arguments.file)?;
    // Read before the store is opened, so that a wrong file does not leave an empty store behind.
    let first = lines.batch().map_err(|mistake| mistake.after(0))?;
    let mut store = StoreMaintenance::open_or_create(&config.store).await?;
    let done = fill(&mut store, token.filter(|_| !is_shared), first, &mut lines).await;
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

struct Imported {
    reader: Digest,
    lines: u64,
    new: u64,
}

/// `None` for the team.
async fn fill(
    store: &mut StoreMaintenance,
    token: Option<Token>,
    first: Vec<ImportedTask>,
    lines: &mut Lines,
) -> Result<Imported, CliError> {
    let key = DigestKey::new(&store.digest_key().await?);
    let reader = token.map_or_else(|| key.team(), |token| key.digest(&token));
    let mut imported = Imported { reader, lines: 0, new: 0 };
    let bar = progress(lines.length, "{wide_bar} {msg}, {binary_bytes} of {binary_total_bytes}, {eta} to go");
    let mut batch = first;
    let (mut is_served, mut looked) = (store.is_served(), Instant::now());
    while !batch.is_empty() {
        let start = Instant::now();
        imported.new += store.import(&reader, &batch).await.map_err(|error| {
            Mistake::of(format!("{:#}", anyhow::Error::from(error))).after(imported.lines)
        })?;
        imported.lines += batch.len() as u64;
        bar.set_position(lines.bytes);
        bar.set_message(task_count(imported.lines));
        if looked.elapsed() > LOOK_EVERY {
            (is_served, looked) = (store.is_served(), Instant::now());
        }
        if is_served {
            tokio::time::sleep(start.elapsed().min(LONGEST_REST)).await;
        }
        batch = lines.batch().map_err(|mistake| mistake.after(imported.lines))?;
    }
    bar.finish_and_clear();
    Ok(imported)
}

/// Why an import ended early.
struct Mistake(String);

impl Mistake {
    fn of(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    fn after(self, done: u64) -> CliError {
        let Self(what) = self;
        CliError::Runtime(format!(
            "{what}; {} were imported before that, and nothing since",
            task_count(done)
        ))
    }
}

/// An export, line by line.
struct Lines {
    input: Box<dyn BufRead>,
    /// Bytes of a file.
    length: Option<u64>,
    /// Bytes read.
    bytes: u64,
    /// Lines read.
    count: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, CliError> {
        let lines = |input, length| Self { input, length, bytes: 0, count: 0 };
        if path == Path::new("-") {
            return Ok(lines(Box::new(io::stdin().lock()), None));
        }
        let failed = |error| CliError::Runtime(format!("read {}: {error}", path.display()));
        let file = File::open(path).map_err(failed)?;
        let there = file.metadata().map_err(failed)?;
        let length = there.is_file().then_some(there.len());
        Ok(lines(Box::new(BufReader::with_capacity(1 << 16, file)), length))
    }

    /// The tasks of one transaction; empty at the end.
    fn batch(&mut self) -> Result<Vec<ImportedTask>, Mistake> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut line = Vec::new();
        while batch.len() < BATCH_LINES && bytes < BATCH_BYTES {
            line.clear();
            let length = self
                .input
                .by_ref()
                .take(LONGEST_LINE + 1)
                .read_until(b'\n', &mut line)
                .map_err(|error| Mistake::of(format!("the export cannot be read on: {error}")))?;
            if length == 0 {
                break;
            }
            self.count += 1;
            self.bytes += length as u64;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let task = if length as u64 > LONGEST_LINE { Err("it is too long") } else { parse(&line) };
            let task = task.map_err(|why| Mistake::of(format!("line {}: {why}", self.count)))?;
            bytes += task.task.json.len();
            batch.push(task);
        }
        Ok(batch)
    }
}

/// Whatever is wrong with a line is told without quoting it: it may be a token in the wrong place.
fn parse(line: &[u8]) -> Result<ImportedTask, &'static str> {
    use serde_json::error::Category;

    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| match error.classify() {
        Category::Eof => "it is cut off",
        Category::Data => "it is no object of service, id, stored_at and text alone",
        Category::Syntax | Category::Io => "it is not JSON",
    })?;
    let service = Service::parse(&line.service).ok_or("its service is none")?;
    let id = TaskId::parse(&line.id).ok_or("its id has no length from 1 to 1024 bytes")?;
    let text = Bytes::from(line.text.into_owned());
    match inspect(&text).map(|inspection| inspection.state_of(&id)) {
        Some(TaskState::Final) => {
            Ok(ImportedTask { service, stored_at: line.stored_at, task: FinalRecord { id, json: text } })
        }
        Some(TaskState::Pending) => Err("its task is not finished"),
        Some(TaskState::Unknown | TaskState::Mismatch) => Err("its text is not the task of its id"),
        None => Err("its text is not a JSON object"),
    }
}

/// The token, if one is named.
fn token(arguments: &ImportArguments) -> Result<Option<Token>, CliError> {
    let (line, from) = match &arguments.token_file {
        Some(path) => {
            let from = path.display().to_string();
            let file = File::open(path).map_err(|error| {
                CliError::Usage(vec![format!("--token-file {from}: cannot be read: {error}")])
            })?;
            (token_line(&mut BufReader::new(file)), format!("--token-file {from}"))
        }
        None if arguments.token_stdin => (token_line(&mut io::stdin().lock()), "--token-stdin".to_owned()),
        None => return Ok(None),
    };
    let line = line.map_err(|error| CliError::Usage(vec![format!("{from}: cannot be read: {error}")]))?;
    match Token::parse(&line) {
        Some(token) => Ok(Some(token)),
        None => Err(CliError::Usage(vec![format!(
            "{from}: its first line must be the token alone: visible ASCII characters, without \"Bearer\""
        )])),
    }
}

/// The first line without its end.
fn token_line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    input.take(LONGEST_TOKEN).read_line(&mut line)?;
    let line_alone = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line_alone.strip_suffix('\r').unwrap_or(line_alone).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_sound_or_told_why_not() {
        let line = |service: &str, id: &str, text: &str| {
            json!({"service": service, "id": id, "stored_at": 1, "text": text}).to_string()
        };
        let text = r#"{"id":"a","finished_at":1.50}"#;
        let task = parse(line("producer", "a", text).as_bytes()).unwrap();
        assert_eq!((task.task.json.as_ref(), task.stored_at), (text.as_bytes(), 1));
        let sound = line("producer", "a", text);
        for (line, why) in [
            (&sound[..sound.len() - 2], "cut off"),
            ("no", "not JSON"),
            (r#""canary""#, "no object of"),
            (r#"{"service":"producer"}"#, "no object of"),
            (&sound.replacen('{', r#"{"more":1,"#, 1), "no object of"),
            (&line("a/b", "a", text), "service"),
            (&line("producer", "", text), "its id"),
            (&line("producer", "b", text), "not the task of its id"),
            (&line("producer", "a", "{}"), "not the task of its id"),
            (&line("producer", "a", "[]"), "not a JSON object"),
            (&line("producer", "a", r#"{"id":"a"}"#), "not finished"),
        ] {
            let told = parse(line.as_bytes()).unwrap_err();
            assert!(told.contains(why), "{told}: {line}");
        }
    }

    #[test]
    fn a_token_is_the_first_line_alone() {
        for (input, expected) in [("a", "a"), ("a\n", "a"), ("a\r\n{}", "a"), ("", ""), ("\na", "")] {
            assert_eq!(token_line(&mut input.as_bytes()).unwrap(), expected);
        }
    }
}
