//! The command line: arguments, configuration, logging, exit code. The commands are in the child
//! modules.
//!
//! Exit codes: 0 for success, 1 for a failure or if something was not found, 64 for wrong usage or
//! configuration, 130 and 143 after a second SIGINT or SIGTERM. Each mistake is one line on stderr.

mod demo;
mod health;
mod options;
mod serve;
mod signals;
mod simulate;
mod tasks;
mod token_input;
mod tokens;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, ConfigError, LoadedConfig};
use crate::store::StoreError;
use crate::telemetry::logging;
use options::{Environment, GlobalOptions};

/// Caching proxy for Ace Data Cloud's task API.
#[derive(Debug, Parser)]
#[command(
    name = "refrain",
    version,
    after_help = "Configuration: refrain.toml, then REFRAIN_SECTION__KEY, then the options above. Later ones win.\n\
                  Exit codes: 0 success, 1 failed or not found, 64 wrong usage or configuration."
)]
struct Cli {
    #[command(flatten)]
    options: GlobalOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum Command {
    /// Run the proxy (default)
    Serve,
    /// Compare polling with and without the proxy on a simulated upstream, without an account
    Demo {
        /// Duration of the comparison in seconds, 0 for none
        #[arg(long, value_name = "NUMBER", default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=3600))]
        seconds: u32,
    },
    /// Run only the simulated upstream
    Simulate,
    /// Check the configuration
    Check,
    /// Print the effective configuration and the origin of each value; secrets are hidden
    Config {
        /// Print a JSON object, as the admin API does
        #[arg(long)]
        json: bool,
    },
    /// Check whether a running proxy with the same configuration is ready
    Health,
    /// Inspect and change the task store, with or without a running proxy
    #[command(arg_required_else_help = false)]
    Tasks {
        #[command(subcommand)]
        command: tasks::TasksCommand,
    },
    /// Commands for tokens
    #[command(arg_required_else_help = false)]
    Tokens {
        #[command(subcommand)]
        command: tokens::TokensCommand,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The failure of a command.
#[derive(Debug)]
enum CliError {
    /// Wrong usage or configuration, one line per mistake. Exit code 64.
    Usage(Vec<String>),
    /// Any other failure. Exit code 1.
    Runtime(String),
    /// The reader of stdout closed it, as `head` does. Exit code 0, no message.
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

/// Runs the command in `arguments` until it ends or a signal stops it. Returns the exit code.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitCode {
    let (mistakes, code) = match run(arguments, &Environment::new(environment)) {
        Ok(()) | Err(CliError::StdoutClosed) => return ExitCode::SUCCESS,
        Err(CliError::Usage(mistakes)) => (mistakes, 64),
        Err(CliError::Runtime(message)) => (vec![message], 1),
    };
    for mistake in mistakes {
        // If stderr is closed, the exit code has to suffice.
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
        Command::Demo { seconds } => {
            let loaded = demo::config(&cli.options)?;
            start_logging(&loaded.config, environment)?;
            let with_colour = environment.get("NO_COLOR").is_none();
            block_on(demo::demo(loaded, Duration::from_secs(seconds.into()), with_colour))
        }
        Command::Simulate => {
            let config = simulate::config(&cli.options)?;
            start_logging(&config, environment)?;
            block_on(simulate::simulate(config.server.listen))
        }
        Command::Check => {
            cli.options.load(environment)?;
            print("the configuration is valid\n");
            Ok(())
        }
        Command::Config { json } => {
            let loaded = cli.options.load(environment)?;
            print(&if json { loaded.to_json() } else { loaded.to_toml() });
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
        Command::Tokens { command } => {
            let LoadedConfig { config, .. } = cli.options.load(environment)?;
            block_on(tokens::run(command, config))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "refrain", &mut script);
            print(&String::from_utf8_lossy(&script));
            Ok(())
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
        .map_err(|error| anyhow::Error::from(error).context("cannot start the runtime"))?;
    let result = runtime.block_on(work);
    // Tasks that still run have already had their time to finish.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Writes to stdout. Ignores errors, because a closed stdout is not a failure here.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Returns the message of clap in one line.
fn usage_mistake(error: &clap::Error) -> String {
    let text = error.to_string();
    // The first paragraph: a list of missing arguments may follow the first line.
    let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let message = lines.join(" ");
    let message = message.trim_start_matches("error: ");
    let tip = text.lines().find_map(|line| line.trim_start().strip_prefix("tip: "));
    match tip {
        Some(tip) => format!("{message}; {tip}"),
        None => format!("{message}; see refrain --help"),
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests;
