//! The options of all commands. Reads the environment, the configuration file and the files with
//! secrets.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;

use super::CliError;
use crate::config::{Config, ConfigSources, FlagValue, LoadedConfig};

/// Default path of the configuration file.
const DEFAULT_FILE: &str = "refrain.toml";

/// Largest configuration or secret file. Protects against devices and wrong files.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub(super) struct GlobalOptions {
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help = "Configuration file [default: $REFRAIN_CONFIG, else refrain.toml if it exists]"
    )]
    config: Option<PathBuf>,
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS",
        help = "Address of the client port; with simulate, of the simulated upstream [default: 127.0.0.1:8080]"
    )]
    pub(super) listen: Option<String>,
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS",
        help = "Address of the admin port, or off [default: 127.0.0.1:8081]"
    )]
    pub(super) admin_listen: Option<String>,
    #[arg(
        long,
        global = true,
        value_name = "URL",
        help = "Base URL of the upstream [default: https://api.acedata.cloud]"
    )]
    upstream: Option<String>,
    #[arg(long, global = true, value_name = "PATH", help = "Database file [default: refrain.db]")]
    store: Option<String>,
    #[arg(long, global = true, value_name = "FORMAT", help = "Log format: pretty or json [default: pretty]")]
    log_format: Option<String>,
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        help = "Log filter, for example debug or info,refrain::batcher=debug [default: info]"
    )]
    pub(super) log_filter: Option<String>,
}

/// The environment variables of the process, read once at start.
pub(super) struct Environment(Vec<(OsString, OsString)>);

impl Environment {
    pub(super) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self(variables.into_iter().collect())
    }

    /// Returns the value of a variable if it is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&OsString> {
        self.0.iter().find(|(variable, value)| variable == name && !value.is_empty()).map(|(_, value)| value)
    }

    /// Returns the `REFRAIN_…` variables as text.
    fn refrain_variables(&self) -> Result<Vec<(String, String)>, CliError> {
        self.0
            .iter()
            .filter(|(name, _)| name.to_string_lossy().starts_with("REFRAIN_"))
            .map(|(name, value)| match (name.to_str(), value.to_str()) {
                (Some(name), Some(value)) => Ok((name.to_owned(), value.to_owned())),
                _ => Err(CliError::Usage(vec![format!("{}: not UTF-8", name.to_string_lossy())])),
            })
            .collect()
    }
}

impl GlobalOptions {
    /// Loads the configuration from the file, the environment and the flags.
    pub(super) fn load(&self, environment: &Environment) -> Result<LoadedConfig, CliError> {
        let sources = ConfigSources {
            file: self.file(environment)?,
            environment: environment.refrain_variables()?,
            flags: self.flags(),
        };
        Ok(Config::load(&sources, read)?)
    }

    /// Loads the configuration only from flags, for commands that set everything else themselves.
    /// `extra` flags win.
    ///
    /// # Errors
    /// A flag that is not in `allowed`, or an invalid value.
    pub(super) fn load_flags_only(
        &self,
        command: &str,
        allowed: &[&str],
        extra: impl IntoIterator<Item = FlagValue>,
    ) -> Result<LoadedConfig, CliError> {
        let mut flags = self.flags();
        let config = self.config.as_ref().map(|_| "--config");
        if let Some(flag) =
            flags.iter().map(|flag| flag.flag).chain(config).find(|flag| !allowed.contains(flag))
        {
            return Err(CliError::Usage(vec![format!("{flag} cannot be used with {command}")]));
        }
        flags.extend(extra);
        let sources = ConfigSources { flags, ..ConfigSources::default() };
        Ok(Config::load(&sources, read)?)
    }

    fn flags(&self) -> Vec<FlagValue> {
        [
            ("--listen", "server.listen", &self.listen),
            ("--admin-listen", "admin.listen", &self.admin_listen),
            ("--upstream", "upstream.base_url", &self.upstream),
            ("--store", "store.url", &self.store),
            ("--log-format", "log.format", &self.log_format),
            ("--log-filter", "log.filter", &self.log_filter),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| value.clone().map(|value| FlagValue { flag, key, value }))
        .collect()
    }

    fn file(&self, environment: &Environment) -> Result<Option<(PathBuf, String)>, CliError> {
        let (path, named_by) = match (&self.config, environment.get("REFRAIN_CONFIG")) {
            (Some(path), _) => (path.clone(), "--config "),
            (None, Some(path)) => (path.into(), "REFRAIN_CONFIG "),
            (None, None) => (DEFAULT_FILE.into(), ""),
        };
        match read(&path) {
            Ok(text) => Ok(Some((path, text))),
            Err(error) if named_by.is_empty() && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(CliError::Usage(vec![format!("{named_by}{}: cannot be read: {error}", path.display())]))
            }
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(text)
}
