//! Loading: file, then environment, then flags, each over the one before; then the files that secrets come from;
//! then the rules between keys. A function of what it is given, so that tests need no real environment.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::keys::{self, EnvFormat, KEYS, Key, PartialConfig};
use super::value::{self, RawValue};
use super::{Config, rules};

/// Everything that configuration may come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file's path, for messages, and its text.
    pub file: Option<(PathBuf, String)>,
    /// Environment variables; those that are not ours are ignored.
    pub environment: Vec<(String, String)>,
    /// Command-line flags.
    pub flags: Vec<Flag>,
}

/// A command-line flag that sets a key.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As it is typed, `--listen`.
    pub flag: &'static str,
    /// The key it sets, `server.listen`.
    pub key: &'static str,
    /// As an environment variable would give it.
    pub value: String,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the configuration file, counted from 1.
    File(Arc<Path>, usize),
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
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

/// A checked configuration, and where each of its values comes from.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    /// What to run with.
    pub config: Config,
    pub(super) origins: Origins,
}

/// A configuration that nobody loaded: where its values come from is not known.
impl From<Config> for LoadedConfig {
    fn from(config: Config) -> Self {
        Self { config, origins: Origins::new() }
    }
}

impl LoadedConfig {
    /// Notes that a command has set these keys itself.
    pub fn set_by(&mut self, command: &'static str, keys: &[&'static str]) {
        self.origins.extend(keys.iter().map(|key| (*key, Origin::Flag(command))));
    }
}

/// The origins of the keys that somebody set.
pub(super) type Origins = BTreeMap<&'static str, Origin>;

/// What is wrong with a configuration: each mistake a line, with its source, its key and what would be right.
#[derive(Debug, thiserror::Error)]
#[error("{}", mistakes.join("\n"))]
pub struct ConfigError {
    mistakes: Vec<String>,
}

impl ConfigError {
    /// The mistakes, one line each, none with a secret in it.
    pub fn mistakes(&self) -> &[String] {
        &self.mistakes
    }
}

impl From<String> for ConfigError {
    fn from(mistake: String) -> Self {
        Self { mistakes: vec![mistake] }
    }
}

impl Config {
    /// The configuration that `sources` make over the defaults, checked whole. `read` reads a `token_file`.
    pub fn load(
        sources: &Sources,
        read: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<LoadedConfig, ConfigError> {
        let mut loader = Loader::default();
        if let Some((path, text)) = &sources.file {
            loader.file(path, text);
        }
        for (variable, value) in &sources.environment {
            loader.variable(variable, value);
        }
        for flag in &sources.flags {
            loader.flag(flag);
        }
        loader.finish(&read)
    }
}

#[derive(Default)]
struct Loader {
    draft: PartialConfig,
    origins: Origins,
    mistakes: Vec<String>,
}

impl Loader {
    fn file(&mut self, path: &Path, text: &str) {
        let path: Arc<Path> = path.into();
        let at = |offset: usize| Origin::File(path.clone(), line_of(text, offset));
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            // Its `Display` would quote the line, which may hold a token.
            Err(error) => {
                let origin = at(error.span().map_or(0, |span| span.start));
                self.mistakes.push(format!("{origin}: not TOML: {}", printable(error.message())));
                return;
            }
        };
        // The parser sorts by name; a reader of the messages goes from top to bottom.
        let mut sections: Vec<_> = table.iter().collect();
        sections.sort_by_key(|(name, _)| name.span().start);
        for (section, value) in sections {
            let (name, origin) = (section.get_ref(), at(section.span().start));
            let is_known = KEYS.iter().any(|key| key.section() == name);
            match value.get_ref() {
                DeValue::Table(entries) if is_known => {
                    let mut entries: Vec<_> = entries.iter().collect();
                    entries.sort_by_key(|(name, _)| name.span().start);
                    for (field, value) in entries {
                        let name = format!("{name}.{}", field.get_ref());
                        let origin = at(field.span().start);
                        match Key::find(&name) {
                            Some(key) => self.set(key, &value.get_ref().into(), origin),
                            None => self.unknown_key(&name, &origin),
                        }
                    }
                }
                DeValue::Table(_) => self.mistakes.push(format!(
                    "{origin}: unknown section [{}]{}",
                    printable(name),
                    keys::nearest_section(name)
                        .map_or_else(String::new, |near| format!("; did you mean [{near}]?"))
                )),
                _ if is_known => {
                    self.mistakes.push(format!("{origin}: {name} must be a section, [{name}]"));
                }
                _ => self.unknown_key(name, &origin),
            }
        }
    }

    /// `REFRAIN_SECTION__KEY`. Container platforms set other `REFRAIN_…` variables of their own.
    fn variable(&mut self, variable: &str, text: &str) {
        let Some(rest) = variable.strip_prefix("REFRAIN_").filter(|_| variable.contains("__")) else {
            return;
        };
        let origin = Origin::Environment(variable.to_owned());
        match KEYS.iter().find(|key| key.variable() == variable) {
            Some(key) => self.set(key, &given(key, text), origin),
            None => {
                let name = rest.trim_start_matches('_').replacen("__", ".", 1).to_ascii_lowercase();
                let near = keys::nearest(&name)
                    .map_or_else(String::new, |near| format!("; did you mean {}?", near.variable()));
                self.mistakes.push(format!("{origin}: unknown key {}{near}", printable(&name)));
            }
        }
    }

    fn flag(&mut self, flag: &Flag) {
        let key = Key::find(flag.key).expect("flags set keys that exist");
        self.set(key, &given(key, &flag.value), Origin::Flag(flag.flag));
    }

    fn set(&mut self, key: &'static Key, given: &RawValue, origin: Origin) {
        match (key.set)(&mut self.draft, given) {
            Ok(()) => {
                self.origins.insert(key.name, origin);
            }
            Err(right) => self.mistakes.push(format!("{origin}: {}: {right}", assignment(key, given))),
        }
    }

    fn unknown_key(&mut self, name: &str, origin: &Origin) {
        let near =
            keys::nearest(name).map_or_else(String::new, |near| format!("; did you mean {}?", near.name));
        self.mistakes.push(format!("{origin}: unknown key {}{near}", printable(name)));
    }

    fn finish(mut self, read: &dyn Fn(&Path) -> io::Result<String>) -> Result<LoadedConfig, ConfigError> {
        let upstream = self.draft.upstream_token_file.take();
        self.token_file("upstream.token", "upstream.token_file", upstream, read);
        let admin = self.draft.admin_token_file.take();
        self.token_file("admin.token", "admin.token_file", admin, read);
        // A value that could not be read would make rules fail that are kept.
        if self.mistakes.is_empty() {
            self.mistakes = rules::broken(&self.draft.config, &self.origins);
        }
        if self.mistakes.is_empty() {
            Ok(LoadedConfig { config: self.draft.config, origins: self.origins })
        } else {
            Err(ConfigError { mistakes: self.mistakes })
        }
    }

    /// Reads the secret `name` from the file that `file_key` names.
    fn token_file(
        &mut self,
        name: &'static str,
        file_key: &'static str,
        path: Option<PathBuf>,
        read: &dyn Fn(&Path) -> io::Result<String>,
    ) {
        let Some(path) = path else { return };
        let origin = self.origins.get(file_key).cloned().unwrap_or(Origin::Default);
        let config = &mut self.draft.config;
        let target = if name == "admin.token" { &mut config.admin.token } else { &mut config.upstream.token };
        if target.is_some() {
            let other = self.origins.get(name).unwrap_or(&Origin::Default);
            self.mistakes
                .push(format!("{origin}: {file_key} and {name} ({other}) are both set; keep one of them"));
            return;
        }
        let shown = RawValue::text(path.to_string_lossy());
        let mistake = match read(&path) {
            Err(error) => format!("cannot be read: {error}"),
            Ok(text) => match value::token(&RawValue::text(text.trim_end_matches(['\r', '\n']))) {
                Ok(None) => "the file is empty".to_owned(),
                Err(right) => format!("what the file holds {right}"),
                Ok(token) => {
                    *target = token;
                    self.origins.insert(name, origin);
                    return;
                }
            },
        };
        self.mistakes.push(format!("{origin}: {file_key} = {shown}: {mistake}"));
    }
}

fn given(key: &Key, text: &str) -> RawValue {
    match key.spelling {
        EnvFormat::AsItIs => RawValue::text(text),
        EnvFormat::Toml => RawValue::from_toml(text),
    }
}

/// `upstream.burst = "x"`, cut where it is long; nothing of what may be a secret.
fn assignment(key: &Key, given: &RawValue) -> String {
    const LONGEST: usize = 100;
    let shown = given.to_string();
    // A password or a key may stand in a URL.
    let may_be_secret = key.is_secret || (key.name == "upstream.base_url" && shown.contains(['@', '?']));
    if may_be_secret {
        return format!("{} (not shown)", key.name);
    }
    match shown.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} = {}…", key.name, printable(&shown[..end])),
        None => format!("{} = {}", key.name, printable(&shown)),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// One line, harmless on a terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
