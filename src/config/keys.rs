//! The names of all keys, taken from the fields of [`Config`], and suggestions for misspelt ones.

use toml::{Table, Value};

use super::Config;

/// One key and its value.
pub(super) struct ConfigKey {
    /// Section and field: `upstream.max_batch`.
    pub(super) name: String,
    /// The value as it is written in the file. Secrets are `***`.
    pub(super) value: Value,
}

impl ConfigKey {
    /// Returns section and field.
    pub(super) fn parts(&self) -> (&str, &str) {
        self.name.split_once('.').expect("every key is in a section")
    }

    /// Returns the environment variable: `REFRAIN_UPSTREAM__MAX_BATCH`.
    pub(super) fn variable(&self) -> String {
        let (section, field) = self.parts();
        format!("REFRAIN_{section}__{field}").to_ascii_uppercase()
    }

    /// Whether an environment variable contains the string itself. Numbers and lists are written as
    /// TOML.
    pub(super) fn is_string(&self) -> bool {
        self.value.is_str()
    }

    /// Whether the value must not be shown in messages.
    pub(super) fn is_secret(&self) -> bool {
        ["upstream.token", "admin.token", "access.clients"].contains(&self.name.as_str())
    }
}

/// Returns all keys of the configuration, in the order of their definition.
pub(super) fn of(config: &Config) -> Vec<ConfigKey> {
    let sections = Table::try_from(config).expect("every value has a TOML notation");
    sections
        .into_iter()
        .filter_map(|(section, fields)| Some((section, fields.as_table()?.clone())))
        .flat_map(|(section, fields)| {
            fields
                .into_iter()
                .map(move |(field, value)| ConfigKey { name: format!("{section}.{field}"), value })
        })
        .collect()
}

/// Returns the key that was probably meant: a similar name, the same field in another section, or a
/// less similar name.
pub(super) fn nearest<'a>(keys: &'a [ConfigKey], name: &str) -> Option<&'a ConfigKey> {
    let name = name.to_ascii_lowercase();
    let field = name.rsplit('.').next().unwrap_or_default();
    let closest = |limit: usize, distance: &dyn Fn(&ConfigKey) -> usize| {
        keys.iter().min_by_key(|key| distance(key)).filter(|key| distance(key) <= limit)
    };
    let by_name = |key: &ConfigKey| strsim::damerau_levenshtein(&name, &key.name);
    let by_field = |key: &ConfigKey| strsim::damerau_levenshtein(field, key.parts().1);
    closest(2, &by_name).or_else(|| closest(1, &by_field)).or_else(|| closest(4, &by_name))
}

/// Returns the section that was probably meant.
pub(super) fn nearest_section<'a>(keys: &'a [ConfigKey], name: &str) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let distance = |section: &&str| strsim::damerau_levenshtein(&name, section);
    keys.iter().map(|key| key.parts().0).min_by_key(distance).filter(|section| distance(section) <= 3)
}

/// Whether the rest of a variable after `REFRAIN_` looks like a key that lacks the second
/// underscore. `refrain-admin` is a usual name of a Kubernetes service, for which Kubernetes sets
/// `REFRAIN_ADMIN_SERVICE_HOST`, `REFRAIN_ADMIN_PORT_8081_TCP` and others.
pub(super) fn is_like_a_key(keys: &[ConfigKey], rest: &str) -> bool {
    let is_of_kubernetes = rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.ends_with("_PORT")
        || rest.contains("_PORT_");
    let name = rest.to_ascii_lowercase();
    let has_section = || {
        let section = name.split('_').next().unwrap_or_default();
        section != name && keys.iter().any(|key| key.parts().0 == section)
    };
    !is_of_kubernetes && (has_section() || nearest_variable(keys, rest).is_some())
}

/// Returns the environment variable that was probably meant by a name with single underscores.
pub(super) fn nearest_variable(keys: &[ConfigKey], name: &str) -> Option<String> {
    let name = name.trim_start_matches("REFRAIN_").to_ascii_lowercase();
    let distance = |key: &&ConfigKey| strsim::damerau_levenshtein(&name, &key.name.replacen('.', "_", 1));
    keys.iter().min_by_key(distance).filter(|key| distance(key) <= 2).map(ConfigKey::variable)
}
