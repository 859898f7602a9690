//! The effective configuration as text: `refrain config` prints it.

use std::fmt::Write;

use super::keys::KEYS;
use super::load::{Loaded, Origin};

impl Loaded {
    /// The effective values as TOML, secrets as `***`, each with where it comes from beside it.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in &KEYS {
            let Some(show) = key.show else { continue };
            if key.section() != section {
                let blank = if section.is_empty() { "" } else { "\n" };
                section = key.section();
                writeln!(text, "{blank}[{section}]").expect("a String takes all");
            }
            let assignment = format!("{} = {}", key.field(), show(&self.config));
            let origin = self.origins.get(key.name).unwrap_or(&Origin::Default);
            writeln!(text, "{assignment:<44} # {origin}").expect("a String takes all");
        }
        text
    }
}
