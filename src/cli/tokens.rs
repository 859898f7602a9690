//! `refrain tokens digest`: prints the digest of a token, for `access.tokens`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{CliError, print, token_input};
use crate::config::Config;
use crate::store::{StoreError, StoreMaintenance};
use crate::token::DigestKey;

/// A command for tokens.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(super) enum TokensCommand {
    /// Print the digest of a token, for access.tokens
    ///
    /// The token is the first line of stdin or of a file. The digest depends on a key in the configured
    /// store, which is created if there is none.
    Digest(DigestArguments),
}

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub(super) struct DigestArguments {
    #[arg(
        long,
        value_name = "PATH",
        help = "Read the token from the first line of this file [default: stdin]"
    )]
    token_file: Option<PathBuf>,
}

pub(super) async fn run(command: TokensCommand, config: Config) -> Result<(), CliError> {
    let TokensCommand::Digest(arguments) = command;
    let token = match &arguments.token_file {
        Some(path) => token_input::from_file(path)?,
        None => token_input::from_stdin("stdin")?,
    };
    let mut store = match StoreMaintenance::open(&config.store).await {
        Err(StoreError::Missing(_)) => {
            let store = StoreMaintenance::open_or_create(&config.store).await?;
            // If stderr is closed, the digest has to suffice.
            let _ = writeln!(io::stderr(), "refrain: created the task store {}", store.path().display());
            store
        }
        store => store?,
    };
    let key = store.digest_key().await;
    store.close().await?;
    print(&format!("{}\n", DigestKey::new(&key?).digest(&token).to_hex()));
    Ok(())
}
