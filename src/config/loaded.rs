//! A loaded configuration with the origin of each value, as `refrain config` and the admin API show
//! it.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::{Config, keys};
use crate::escape::{printable, printable_json};

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Default value.
    Default,
    /// A line of the configuration file, counted from 1.
    File(Arc<Path>, usize),
    /// An environment variable.
    Environment(String),
    /// A command-line flag, or a command that sets the value itself.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{} line {line}", printable(&path.to_string_lossy())),
            Self::Environment(variable) => f.write_str(&printable(variable)),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// The origins of all values that are not defaults.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(BTreeMap<String, Origin>);

impl Origins {
    pub(super) fn get(&self, key: &str) -> &Origin {
        self.0.get(key).unwrap_or(&Origin::Default)
    }

    pub(super) fn set(&mut self, key: &str, origin: Origin) {
        self.0.insert(key.to_owned(), origin);
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// A checked configuration and the origin of each value.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    pub(super) origins: Origins,
}

/// Treats every value as a default value. Intended for tests and for embedding.
impl From<Config> for LoadedConfig {
    fn from(config: Config) -> Self {
        Self { config, origins: Origins::default() }
    }
}

/// One effective value.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveValue {
    /// Section and field: `upstream.max_batch`.
    pub key: String,
    /// The value as it is written in the file. A secret is `***`, or empty if it is not set.
    pub value: serde_json::Value,
    /// The origin, as `refrain config` prints it.
    pub source: String,
}

impl LoadedConfig {
    /// Records that a command has set these keys itself.
    pub fn set_by(&mut self, command: &'static str, keys: &[&str]) {
        for key in keys {
            self.origins.set(key, Origin::Flag(command));
        }
    }

    /// Returns the effective values as TOML, secrets as `***`, each with a comment that names its
    /// origin.
    pub fn to_toml(&self) -> String {
        let mut toml = String::new();
        let mut section = "";
        let keys = self.keys();
        for key in &keys {
            let (this, field) = key.parts();
            if this != section {
                let blank = if section.is_empty() { "" } else { "\n" };
                section = this;
                writeln!(toml, "{blank}[{section}]").expect("writing to a String cannot fail");
            }
            let assignment = format!("{field} = {}", key.value);
            let origin = self.origins.get(&key.name);
            writeln!(toml, "{assignment:<44} # {origin}").expect("writing to a String cannot fail");
        }
        toml
    }

    /// Returns the effective values as one line with a JSON object, as `GET /api/config` does.
    pub fn to_json(&self) -> String {
        let values = self.values();
        let values: Vec<_> = values
            .iter()
            .map(|shown| json!({"key": shown.key, "value": shown.value, "source": shown.source}))
            .collect();
        printable_json(&json!({ "values": values }).to_string()) + "\n"
    }

    /// Returns the effective values in the order of their definition.
    pub fn values(&self) -> Vec<EffectiveValue> {
        let keys = self.keys().into_iter();
        keys.map(|key| EffectiveValue {
            value: serde_json::to_value(&key.value).expect("no value is a date"),
            source: self.origins.get(&key.name).to_string(),
            key: key.name,
        })
        .collect()
    }

    /// A `…_file` key is not shown: its effect is the value of the secret.
    fn keys(&self) -> Vec<keys::ConfigKey> {
        let mut keys = keys::of(&self.config);
        keys.retain(|key| !key.name.ends_with("_file"));
        keys
    }
}
