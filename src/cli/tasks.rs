//! `refrain tasks …`: what an operator does with a task store, beside a running proxy or without one.
//!
//! Results go to stdout, everything else to stderr. Ids, titles and whatever else came from outside is escaped for
//! terminals, but for the texts that `show` and `export` give byte for byte.

mod backup;
mod export;
mod forget;
mod import;
mod list;
mod output;
mod show;
mod stats;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Failure;
use crate::clock;
use crate::config::Config;
use crate::store::StoreMaintenance;
use crate::task::{Service, TaskId};

/// What to do with the store.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(super) enum Command {
    /// List tasks, last stored first
    List(ListArguments),
    /// Print the stored text of a task, byte for byte
    Show(ShowArguments),
    /// Forget tasks; a running proxy fetches them anew when they are asked for
    Forget(ForgetArguments),
    /// Write tasks as JSON lines that keep every byte
    Export(ExportArguments),
    /// Read what export wrote, and make it readable for one token
    Import(ImportArguments),
    /// Copy the whole store into a new file that can be served
    Backup(BackupArguments),
    /// Tell how much is stored
    Stats(StatsArguments),
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct ListArguments {
    /// Only tasks of this service
    #[arg(long, value_parser = service)]
    service: Option<Service>,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Go on after the task with this cursor
    #[arg(long, value_name = "CURSOR")]
    after: Option<i64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct ShowArguments {
    /// The task's id
    #[arg(value_parser = id)]
    id: TaskId,
    /// Only in this service
    #[arg(long, value_parser = service)]
    service: Option<Service>,
    /// Of several texts the one that this reader may read: the first digits of its digest, as the log shows them
    #[arg(long, value_name = "PREFIX", value_parser = digits)]
    reader: Option<String>,
    /// All texts, each with a line break after it
    #[arg(long, conflicts_with = "reader")]
    all: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct ForgetArguments {
    #[command(flatten)]
    what: ForgetKind,
    /// Do not ask, also on a terminal
    #[arg(long)]
    yes: bool,
    /// The result as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
struct ForgetKind {
    /// Tasks by id, in every service
    #[arg(value_name = "ID", value_parser = id)]
    ids: Vec<TaskId>,
    /// All tasks of a service
    #[arg(long, value_parser = service)]
    service: Option<Service>,
    /// All tasks stored longer ago than this, such as 30d or 12h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    older_than: Option<Duration>,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct ExportArguments {
    /// Only tasks of this service
    #[arg(long, value_parser = service)]
    service: Option<Service>,
    /// The file to write, complete or not at all; - is stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct ImportArguments {
    /// What export wrote; - is stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The token for which the tasks become readable is the first line of stdin
    #[arg(long, conflicts_with = "token_file")]
    token_stdin: bool,
    /// The token is the first line of this file
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// The result as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct BackupArguments {
    /// The file to make; one that is there is not overwritten
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The result as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct StatsArguments {
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

/// Opens the store, does what is asked, closes the store.
pub(super) async fn run(command: Command, config: Config) -> Result<(), Failure> {
    if let Command::Import(arguments) = command {
        return import::import(arguments, &config).await;
    }
    let mut store = StoreMaintenance::open(&config.store).await?;
    let done = match command {
        Command::List(arguments) => list::list(&mut store, &arguments).await,
        Command::Show(arguments) => show::show(&mut store, &arguments).await,
        Command::Forget(arguments) => forget::forget(&mut store, arguments).await,
        Command::Export(arguments) => export::export(&mut store, &arguments).await,
        Command::Backup(arguments) => backup::backup(&mut store, &arguments).await,
        Command::Stats(arguments) => stats::stats(&mut store, &arguments).await,
        Command::Import(_) => unreachable!("is done above"),
    };
    let closed = store.close().await;
    done.and(closed.map_err(Failure::from))
}

fn service(text: &str) -> Result<Service, &'static str> {
    Service::parse(text).ok_or("a service is 1 to 64 letters, digits, - or _")
}

fn id(text: &str) -> Result<TaskId, &'static str> {
    TaskId::parse(text).ok_or("an id has 1 to 1024 bytes")
}

fn digits(text: &str) -> Result<String, &'static str> {
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if fits { Ok(text.to_ascii_lowercase()) } else { Err("1 to 64 hexadecimal digits") }
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    clock::parse_duration(text).ok_or("a duration is written as 30d, 12h or 1h 30m")
}
