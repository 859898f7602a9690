//! `refrain tasks …`: commands for the task store. They work with and without a running proxy.
//!
//! Results go to stdout, everything else to stderr. Control characters in ids, titles and paths are
//! escaped. The records that `show` and `export` write are not: they are the stored bytes.

mod backup;
mod delete;
mod export;
mod import;
mod list;
mod output;
mod selection;
mod show;
mod stats;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::CliError;
use crate::config::{self, Config};
use crate::store::StoreMaintenance;
use crate::task::{Service, TaskId};

/// A command for the task store.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(super) enum TasksCommand {
    /// List the stored tasks, newest first
    List(ListArguments),
    /// Print the stored record of a task, byte for byte
    Show(ShowArguments),
    /// Delete tasks; a running proxy fetches them again when a client looks them up
    #[command(visible_alias = "forget")]
    Delete(DeleteArguments),
    /// Write tasks as JSON lines that preserve every byte
    Export(ExportArguments),
    /// Read an export and make its tasks readable for one token
    Import(ImportArguments),
    /// Copy the whole store into a new file that a proxy can serve
    Backup(BackupArguments),
    /// Print how much is stored
    Stats(StatsArguments),
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct ListArguments {
    /// Only tasks of this service
    #[arg(long, value_parser = service)]
    service: Option<Service>,
    /// Number of tasks
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = limit)]
    limit: u64,
    /// Start after the task with this cursor
    #[arg(long, value_name = "CURSOR")]
    after: Option<i64>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct ShowArguments {
    /// The task's id, or its beginning if no other id begins with it
    #[arg(value_parser = id)]
    id: TaskId,
    /// Only in this service
    #[arg(long, value_parser = service)]
    service: Option<Service>,
    /// Only the record that this reader may read: the first digits of the token digest, as in the
    /// log
    #[arg(long, value_name = "PREFIX", value_parser = digits)]
    reader: Option<String>,
    /// All records of the id, each followed by a line break
    #[arg(long, conflicts_with = "reader")]
    all: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct DeleteArguments {
    #[command(flatten)]
    selection: DeleteSelection,
    /// Do not ask for confirmation on a terminal
    #[arg(long)]
    yes: bool,
    /// Print the result as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
struct DeleteSelection {
    /// Ids of tasks, in every service, or their beginnings
    #[arg(value_name = "ID", value_parser = id)]
    ids: Vec<TaskId>,
    /// All tasks of a service
    #[arg(long, value_parser = service)]
    service: Option<Service>,
    /// All tasks stored longer ago than this, for example 30d or 12h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    older_than: Option<Duration>,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct ExportArguments {
    /// Only tasks of this service
    #[arg(long, value_parser = service)]
    service: Option<Service>,
    /// File to write; it appears only when it is complete. - is stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct ImportArguments {
    /// An export; - is stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Read the token that may read the tasks from the first line of stdin
    #[arg(long, conflicts_with = "token_file")]
    token_stdin: bool,
    /// Read the token from the first line of this file
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Print the result as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct BackupArguments {
    /// File to create; an existing file is not overwritten
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print the result as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct StatsArguments {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs one command on the configured store.
pub(super) async fn run(command: TasksCommand, config: Config) -> Result<(), CliError> {
    if let TasksCommand::Import(arguments) = command {
        return import::import(arguments, &config).await;
    }
    let mut store = StoreMaintenance::open(&config.store).await?;
    let result = match command {
        TasksCommand::List(arguments) => list::list(&mut store, &arguments).await,
        TasksCommand::Show(arguments) => show::show(&mut store, &arguments).await,
        TasksCommand::Delete(arguments) => delete::delete(&mut store, arguments).await,
        TasksCommand::Export(arguments) => export::export(&mut store, &arguments).await,
        TasksCommand::Backup(arguments) => backup::backup(&mut store, &arguments).await,
        TasksCommand::Stats(arguments) => stats::stats(&mut store, &arguments).await,
        TasksCommand::Import(_) => unreachable!("handled above"),
    };
    let closed = store.close().await;
    result.and(closed.map_err(CliError::from))
}

fn service(text: &str) -> Result<Service, &'static str> {
    Service::parse(text).ok_or("a service name has 1 to 64 letters, digits, - or _")
}

fn id(text: &str) -> Result<TaskId, &'static str> {
    TaskId::parse(text).ok_or("an id has 1 to 1024 bytes")
}

fn limit(text: &str) -> Result<u64, &'static str> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or("expected a number of tasks of at least 1")
}

fn digits(text: &str) -> Result<String, &'static str> {
    let is_hex = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex { Ok(text.to_ascii_lowercase()) } else { Err("expected 1 to 64 hexadecimal digits") }
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    config::parse_duration(text).ok_or("expected a duration such as 30d, 12h or 1h 30m")
}
