//! The effective configuration, secrets as `***`: as text for `refrain config`, as values for the admin port.

use std::fmt::Write;

use serde_json::Value;

use super::keys::KEYS;
use super::load::{LoadedConfig, Origin};
use super::value::RawValue;

/// A value in force.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveValue {
    /// Section and key, `upstream.max_batch`.
    pub key: &'static str,
    /// As it would stand in the file; a secret as `***`, one that is not set as an empty string.
    pub value: Value,
    /// Where it comes from, as `refrain config` prints it.
    pub source: String,
}

impl LoadedConfig {
    /// The effective values as TOML, secrets as `***`, each with where it comes from beside it.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for (key, value, origin) in self.shown() {
            let (this, field) = key.split_once('.').unwrap_or(("", key));
            if this != section {
                let blank = if section.is_empty() { "" } else { "\n" };
                section = this;
                writeln!(text, "{blank}[{section}]").expect("a String takes all");
            }
            let assignment = format!("{field} = {value}");
            writeln!(text, "{assignment:<44} # {origin}").expect("a String takes all");
        }
        text
    }

    /// The effective values one by one, in the order in which they are explained.
    pub fn values(&self) -> Vec<EffectiveValue> {
        let shown = self.shown();
        shown
            .map(|(key, value, origin)| EffectiveValue {
                key,
                value: json(value),
                source: origin.to_string(),
            })
            .collect()
    }

    fn shown(&self) -> impl Iterator<Item = (&'static str, RawValue, &Origin)> {
        KEYS.iter().filter_map(|key| {
            let origin = self.origins.get(key.name).unwrap_or(&Origin::Default);
            Some((key.name, key.show?(&self.config), origin))
        })
    }
}

fn json(value: RawValue) -> Value {
    match value {
        RawValue::Text(text) | RawValue::Other(text) => text.into(),
        RawValue::Whole(number) => number.into(),
        RawValue::Decimal(number) => number.into(),
        RawValue::List(items) => items.into_iter().map(json).collect(),
        RawValue::Table(entries) => entries.into_iter().map(|(key, value)| (key, json(value))).collect(),
    }
}
