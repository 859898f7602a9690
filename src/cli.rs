//! The command line: arguments, configuration, logging, run, exit code.
//!
//! Exit codes: 0 fine, 1 failed while starting or running or not found, 64 wrong usage or configuration, 130 and 143 ended at
//! once by a second SIGINT or SIGTERM. A failure is one clear line on stderr for each mistake.

mod demo;
mod health;
mod options;
mod serve;
mod signals;
mod simulate;
mod tasks;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError, LoadedConfig};
use crate::store::StoreError;
use crate::telemetry::logging;
use options::{Environment, GlobalOptions};

/// Caching proxy for Ace Data Cloud's task API.
#[derive(Debug, Parser)]
#[command(
    name = "refrain",
    version,
    after_help = "Configuration: refrain.toml, REFRAIN_SECTION__KEY and the flags above, each over the one before.\n\
                  Exit codes: 0 fine, 1 failed or not found, 64 wrong usage or configuration."
)]
struct Cli {
    #[command(flatten)]
    options: GlobalOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum Command {
    /// Run the proxy; also what happens without a command
    Serve,
    /// Try the proxy against a simulated upstream, without an account
    Demo,
    /// Run the simulated upstream alone
    Simulate,
    /// Check the configuration
    Check,
    /// Print the configuration in force, secrets hidden, and where each value comes from
    Config,
    /// Ask a running proxy with the same configuration whether it is ready
    Health,
    /// Look into a task store and change it, while a proxy runs on it or not
    #[command(arg_required_else_help = false)]
    Tasks {
        #[command(subcommand)]
        command: tasks::TasksCommand,
    },
}

/// Why the program ends with a code other than 0.
#[derive(Debug)]
enum CliError {
    /// Wrong usage or configuration: each mistake a line.
    Usage(Vec<String>),
    /// It did not work out.
    Runtime(String),
    /// Whoever read stdout has gone, as `head` does: a quiet end, and no failure.
    StdoutClosed,
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.mistakes().to_vec())
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        anyhow::Error::from(error).into()
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::Runtime(format!("{error:#}"))
    }
}

/// Runs what the arguments ask for, until it is done or a signal ends it.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitCode {
    let (mistakes, code) = match run(arguments, &Environment::new(environment)) {
        Ok(()) | Err(CliError::StdoutClosed) => return ExitCode::SUCCESS,
        Err(CliError::Usage(mistakes)) => (mistakes, 64),
        Err(CliError::Runtime(what)) => (vec![what], 1),
    };
    for mistake in mistakes {
        // With stderr closed the exit code has to do.
        let _ = writeln!(io::stderr(), "refrain: {}", one_line(&mistake));
    }
    ExitCode::from(code)
}

fn run(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> Result<(), CliError> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return Ok(());
        }
        Err(error) => return Err(CliError::Usage(vec![usage_mistake(&error)])),
    };
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => {
            let loaded = cli.options.load(environment)?;
            start_logging(&loaded.config, environment)?;
            block_on(serve::serve(loaded))
        }
        Command::Demo => {
            let loaded = demo::config(&cli.options)?;
            start_logging(&loaded.config, environment)?;
            block_on(demo::demo(loaded))
        }
        Command::Simulate => {
            let config = simulate::config(&cli.options)?;
            start_logging(&config, environment)?;
            block_on(simulate::simulate(config.server.listen))
        }
        Command::Check => {
            cli.options.load(environment)?;
            print("the configuration is fine\n");
            Ok(())
        }
        Command::Config => {
            print(&cli.options.load(environment)?.to_toml());
            Ok(())
        }
        Command::Health => {
            let LoadedConfig { config, .. } = cli.options.load(environment)?;
            block_on(health::health(config.admin.listen))
        }
        Command::Tasks { command } => {
            let LoadedConfig { config, .. } = cli.options.load(environment)?;
            block_on(tasks::run(command, config))
        }
    }
}

fn start_logging(config: &Config, environment: &Environment) -> Result<(), CliError> {
    let with_colour = io::stderr().is_terminal() && environment.get("NO_COLOR").is_none();
    logging::init(&config.log, with_colour)?;
    logging::log_panics();
    Ok(())
}

fn block_on(work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow::Error::from(error).context("start the runtime"))?;
    let result = runtime.block_on(work);
    // What is still running was given its time already.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// To stdout; that nobody reads it is no failure.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// What clap tells in many lines, in one.
fn usage_mistake(error: &clap::Error) -> String {
    let text = error.to_string();
    // The first paragraph: a list of what is missing may follow the first line.
    let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let what = lines.join(" ");
    let what = what.trim_start_matches("error: ");
    let tip = text.lines().find_map(|line| line.trim_start().strip_prefix("tip: "));
    match tip {
        Some(tip) => format!("{what}; {tip}"),
        None => format!("{what}; see refrain --help"),
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests;
