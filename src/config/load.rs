//! Loading: the file, then the environment, then the flags; each replaces values of the one before.
//! Then the files that contain secrets, then the rules between keys.
//!
//! Each value is first deserialized alone, so that all mistakes are reported at once, each with its
//! origin. See docs/decisions/001-configuration-loading.md.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::keys::{self, ConfigKey};
use super::loaded::{LoadedConfig, Origin, Origins};
use super::{Config, notation, rules};
use crate::escape::printable;
use crate::token::Token;

/// Everything that the configuration is loaded from.
#[derive(Clone, Debug, Default)]
pub struct ConfigSources {
    /// The path of the file, for messages, and its content.
    pub file: Option<(PathBuf, String)>,
    /// Environment variables. Those of other programs are ignored.
    pub environment: Vec<(String, String)>,
    /// Command-line flags.
    pub flags: Vec<FlagValue>,
}

/// The value of a command-line flag that sets a key.
#[derive(Clone, Debug)]
pub struct FlagValue {
    /// The flag: `--listen`.
    pub flag: &'static str,
    /// The key: `server.listen`.
    pub key: &'static str,
    /// The value, written as in an environment variable.
    pub value: String,
}

/// All mistakes of a configuration. Each is one line with its origin, its key and an example,
/// without secrets.
#[derive(Debug, thiserror::Error)]
#[error("{}", mistakes.join("\n"))]
pub struct ConfigError {
    mistakes: Vec<String>,
}

impl ConfigError {
    /// Returns one line per mistake.
    pub fn mistakes(&self) -> &[String] {
        &self.mistakes
    }
}

impl Config {
    /// Loads the configuration from `sources` and checks it. `read` reads the files that contain
    /// secrets.
    ///
    /// # Errors
    /// All mistakes, in the order of the sources.
    pub fn load(
        sources: &ConfigSources,
        read: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<LoadedConfig, ConfigError> {
        let mut loader = Loader {
            keys: keys::of(&Self::default()),
            values: Table::new(),
            origins: Origins::default(),
            mistakes: Vec::new(),
        };
        if let Some((path, text)) = &sources.file {
            loader.add_file(path, text);
        }
        for (variable, text) in &sources.environment {
            loader.add_variable(variable, text);
        }
        for FlagValue { flag, key, value } in &sources.flags {
            loader.set_text(key, value, Origin::Flag(flag));
        }
        loader.finish(&read)
    }
}

struct Loader {
    /// All keys with their defaults.
    keys: Vec<ConfigKey>,
    /// The valid values so far, by section.
    values: Table,
    /// The origins of `values`.
    origins: Origins,
    mistakes: Vec<String>,
}

impl Loader {
    fn add_file(&mut self, path: &Path, text: &str) {
        let path: Arc<Path> = path.into();
        let at = |offset: usize| {
            let line = 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
            Origin::File(Arc::clone(&path), line)
        };
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            // The `Display` of the error quotes the line, which may contain a secret.
            Err(error) => {
                let origin = at(error.span().map_or(0, |span| span.start));
                self.mistakes.push(format!("{origin}: not TOML: {}", printable(error.message())));
                return;
            }
        };
        for (section, value) in table {
            let (name, origin) = (section.get_ref().as_ref(), at(section.span().start));
            let is_known = self.keys.iter().any(|key| key.parts().0 == name);
            match value.into_inner() {
                DeValue::Table(fields) if is_known => {
                    for (field, value) in fields {
                        let shown = text.get(value.span()).unwrap_or_default();
                        self.set(
                            &format!("{name}.{}", field.get_ref()),
                            value,
                            shown,
                            at(field.span().start),
                        );
                    }
                }
                DeValue::Table(_) => {
                    let nearest = keys::nearest_section(&self.keys, name);
                    let hint = did_you_mean(nearest.map(|section| format!("[{section}]")));
                    self.mistakes.push(format!("{origin}: unknown section [{}]{hint}", printable(name)));
                }
                _ if is_known => {
                    self.mistakes.push(format!("{origin}: {name} must be a section, [{name}]"));
                }
                _ => self.add_unknown_key(name, &origin),
            }
        }
    }

    /// Adds `REFRAIN_SECTION__KEY`. Other `REFRAIN_…` variables are ignored, because container
    /// platforms set some, unless they look like a misspelt key.
    fn add_variable(&mut self, variable: &str, text: &str) {
        let Some(rest) = variable.strip_prefix("REFRAIN_") else { return };
        if !variable.contains("__") {
            if keys::is_like_a_key(&self.keys, rest) {
                let hint = did_you_mean(keys::nearest_variable(&self.keys, variable));
                self.mistakes.push(format!(
                    "{}: unknown variable; two underscores stand between section and key{hint}",
                    printable(variable)
                ));
            }
            return;
        }
        let origin = Origin::Environment(variable.to_owned());
        if let Some(key) = self.keys.iter().find(|key| key.variable() == variable) {
            return self.set_text(&key.name.clone(), text, origin);
        }
        let name = rest.trim_start_matches('_').replacen("__", ".", 1).to_ascii_lowercase();
        let hint = did_you_mean(keys::nearest(&self.keys, &name).map(ConfigKey::variable));
        self.mistakes.push(format!("{origin}: unknown key {}{hint}", printable(&name)));
    }

    /// Sets a key from an environment variable or a flag.
    fn set_text(&mut self, name: &str, text: &str, origin: Origin) {
        let is_string = self.keys.iter().any(|key| key.name == name && key.is_string());
        match DeValue::parse(text) {
            Ok(value) if !is_string => self.set(name, value, text, origin),
            // Text that is not TOML is refused with the type that the key needs.
            _ => {
                let value = Spanned::new(0..text.len(), DeValue::String(text.into()));
                self.set(name, value, &Value::from(text).to_string(), origin);
            }
        }
    }

    /// Sets a key if its value is valid on its own. `shown` is the value for messages.
    fn set(&mut self, name: &str, value: Spanned<DeValue<'_>>, shown: &str, origin: Origin) {
        let Some(key) = self.keys.iter().find(|key| key.name == name) else {
            return self.add_unknown_key(name, &origin);
        };
        let (section, field) = key.parts();
        match parse_alone(key, value) {
            Ok(value) => {
                let fields = self.values.entry(section).or_insert_with(|| Table::new().into());
                fields.as_table_mut().expect("sections are tables").insert(field.to_owned(), value);
                self.origins.set(name, origin);
            }
            Err(expected) => {
                let assignment = assignment(key, shown);
                self.mistakes.push(format!("{origin}: {assignment}: {expected}"));
            }
        }
    }

    fn add_unknown_key(&mut self, name: &str, origin: &Origin) {
        let hint = did_you_mean(keys::nearest(&self.keys, name).map(|key| key.name.clone()));
        self.mistakes.push(format!("{origin}: unknown key {}{hint}", printable(name)));
    }

    fn finish(mut self, read: &dyn Fn(&Path) -> io::Result<String>) -> Result<LoadedConfig, ConfigError> {
        let mut config: Config = self.values.try_into().expect("each value was deserialized before");
        let secrets = [
            ("upstream.token", &mut config.upstream.token, &config.upstream.token_file),
            ("admin.token", &mut config.admin.token, &config.admin.token_file),
        ];
        for (key, token, path) in secrets {
            if path.as_os_str().is_empty() {
                continue;
            }
            let file_key = format!("{key}_file");
            let origin = self.origins.get(&file_key).clone();
            if token.is_some() {
                let other = self.origins.get(key);
                self.mistakes
                    .push(format!("{origin}: {file_key} and {key} ({other}) are both set; keep one of them"));
                continue;
            }
            match read_token(path, read) {
                Ok(content) => {
                    *token = Some(content);
                    self.origins.set(key, origin);
                }
                Err(mistake) => {
                    let shown = printable(&path.to_string_lossy());
                    self.mistakes.push(format!("{origin}: {file_key} = \"{shown}\": {mistake}"));
                }
            }
        }
        // Rules are checked only if every value is valid: a refused value would cause misleading messages.
        if self.mistakes.is_empty() {
            self.mistakes = rules::violations(&config, &self.origins);
        }
        if self.mistakes.is_empty() {
            Ok(LoadedConfig { config, origins: self.origins })
        } else {
            Err(ConfigError { mistakes: self.mistakes })
        }
    }
}

/// Deserializes a configuration in which only this key is set. Returns the value, or what it should
/// be.
fn parse_alone(key: &ConfigKey, value: Spanned<DeValue<'_>>) -> Result<Value, String> {
    // Only a number beyond 64 bits has no `Value`.
    let value = Value::deserialize(value.into_deserializer())
        .map_err(|_| format!("must be a value such as {}", key.value))?;
    let (section, field) = key.parts();
    let fields = Table::from_iter([(field.to_owned(), value.clone())]);
    let config = Table::from_iter([(section.to_owned(), fields.into())]);
    config.try_into::<Config>().map_err(|error| error.message().to_owned())?;
    Ok(value)
}

fn read_token(path: &Path, read: &dyn Fn(&Path) -> io::Result<String>) -> Result<Token, String> {
    let content = read(path).map_err(|error| format!("cannot be read: {error}"))?;
    match content.trim_end_matches(['\r', '\n']) {
        "" => Err("the file is empty".to_owned()),
        token => Token::parse(token).ok_or_else(|| format!("the content of the file {}", notation::TOKEN)),
    }
}

/// Returns `upstream.burst = "x"`, shortened if it is long, or only the key if the value may
/// contain a secret.
fn assignment(key: &ConfigKey, shown: &str) -> String {
    const MAX_CHARACTERS: usize = 100;
    // A URL may contain a password or a key, and someone may write a token in place of its digest.
    let may_contain_secret = key.is_secret()
        || key.name == "access.tokens"
        || (key.name == "upstream.base_url" && shown.contains(['@', '?']));
    if may_contain_secret {
        return format!("{} (not shown)", key.name);
    }
    match shown.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => format!("{} = {}…", key.name, printable(&shown[..end])),
        None => format!("{} = {}", key.name, printable(shown)),
    }
}

fn did_you_mean(name: Option<String>) -> String {
    name.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}
