//! Catalogue of the upstream's task services: which lookups are interpreted, and how.
//!
//! The facts come from the vendor's public documentation and clients, as of August 2026;
//! `docs/services.md` gives them in words. Where the evidence is thin, the stricter class is used.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::Service;

/// Smallest default `limit` that is documented for a `retrieve_batch`. A response with fewer
/// records was not cut.
pub const MIN_BATCH_LIMIT: usize = 12;

/// Treatment of a service's lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceClass {
    /// Final records are stored, and ids are batched.
    Batch,
    /// Final records are stored. Each id has an upstream call of its own.
    Single,
    /// Every request is passed through.
    Pass,
}

impl ServiceClass {
    /// Returns the class as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Single => "single",
            Self::Pass => "pass",
        }
    }
}

/// Rules for the lookups of a service, `POST /{service}/tasks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRules {
    /// Treatment of lookups.
    pub class: ServiceClass,
    /// Most ids in one upstream call; `None` for `upstream.max_batch`. At most that in any case.
    pub max_batch: Option<usize>,
    /// Whether `response` and the other members are foreign content, in which `state` and `status`
    /// say nothing about the task.
    pub has_foreign_content: bool,
    /// Whether `{}` can mean that there is no result yet.
    pub is_empty_while_pending: bool,
    /// Whether `{"id":"…"}` means `retrieve`.
    pub absent_action_retrieves: bool,
}

impl ServiceRules {
    /// Returns the rules of a service of which no more than this is known.
    pub const fn new(class: ServiceClass, max_batch: Option<usize>) -> Self {
        Self {
            class,
            max_batch: if matches!(class, ServiceClass::Batch) { max_batch } else { Some(1) },
            has_foreign_content: false,
            is_empty_while_pending: false,
            absent_action_retrieves: false,
        }
    }
}

/// Service of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// Name, the first segment of its path.
    pub name: &'static str,
    /// Rules for its lookups.
    pub rules: ServiceRules,
}

impl CatalogueEntry {
    const fn batch(name: &'static str) -> Self {
        let rules = ServiceRules::new(ServiceClass::Batch, None);
        Self { name, rules: ServiceRules { absent_action_retrieves: true, ..rules } }
    }

    const fn single(name: &'static str) -> Self {
        let rules = ServiceRules::new(ServiceClass::Single, None);
        Self { name, rules: ServiceRules { absent_action_retrieves: true, ..rules } }
    }

    const fn pass(name: &'static str) -> Self {
        Self { name, rules: ServiceRules::new(ServiceClass::Pass, None) }
    }

    /// The documentation gives a default `limit` of 12 without an exception for `ids`.
    const fn with_documented_limit(mut self) -> Self {
        self.rules.max_batch = Some(MIN_BATCH_LIMIT);
        self
    }

    const fn with_foreign_content(mut self) -> Self {
        self.rules.has_foreign_content = true;
        self
    }

    const fn empty_while_pending(mut self) -> Self {
        self.rules.is_empty_while_pending = true;
        self
    }
}

/// All known services.
pub static CATALOGUE: [CatalogueEntry; 30] = [
    CatalogueEntry::batch("producer"),
    CatalogueEntry::batch("suno"),
    CatalogueEntry::batch("midjourney").with_documented_limit(),
    CatalogueEntry::batch("flux"),
    CatalogueEntry::batch("kling"),
    CatalogueEntry::batch("luma"),
    CatalogueEntry::batch("wan"),
    CatalogueEntry::batch("seedance"),
    CatalogueEntry::batch("veo").with_documented_limit(),
    CatalogueEntry::batch("fish"),
    CatalogueEntry::batch("headshots"),
    CatalogueEntry::batch("nano-banana"),
    CatalogueEntry::batch("openai").with_documented_limit(),
    CatalogueEntry::batch("happyhorse"),
    CatalogueEntry::batch("qwen-image"),
    CatalogueEntry::batch("qrart"),
    // A single record and an item of a batch may differ in shape.
    CatalogueEntry::single("seedream"),
    CatalogueEntry::single("hailuo"),
    // The response to a batch is not documented.
    CatalogueEntry::single("gemini"),
    CatalogueEntry::single("grok"),
    // A batch leaves out pending tasks.
    CatalogueEntry::single("dreamina").empty_while_pending(),
    // A batch is documented only as a listing.
    CatalogueEntry::single("maestro"),
    CatalogueEntry::single("webextrator").with_foreign_content(),
    // Other envelopes and members: an interpretation would break their clients.
    CatalogueEntry::pass("minimax"),
    CatalogueEntry::pass("digital-human"),
    // Reading a result costs money.
    CatalogueEntry::pass("captcha"),
    // No evidence, or withdrawn.
    CatalogueEntry::pass("kickart"),
    CatalogueEntry::pass("sora"),
    CatalogueEntry::pass("pika"),
    CatalogueEntry::pass("pixverse"),
];

/// Returns the entry of a service.
pub fn find_in_catalogue(name: &str) -> Option<&'static CatalogueEntry> {
    CATALOGUE.iter().find(|entry| entry.name == name)
}

/// Service whose lookups are interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterpretedService {
    /// Name of the service.
    pub name: Service,
    /// Rules for its lookups. The class is not [`ServiceClass::Pass`].
    pub rules: ServiceRules,
}

/// The services whose lookups are interpreted, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterpretedServices {
    services: Vec<InterpretedService>,
}

impl InterpretedServices {
    /// Creates the list, without services of the class `pass`.
    pub fn new(services: impl IntoIterator<Item = (Service, ServiceRules)>) -> Self {
        let mut services: Vec<_> = services
            .into_iter()
            .filter(|(_, rules)| rules.class != ServiceClass::Pass)
            .map(|(name, rules)| InterpretedService { name, rules })
            .collect();
        services.sort_by(|one, other| one.name.cmp(&other.name));
        services.dedup_by(|one, other| one.name == other.name);
        Self { services }
    }

    /// Returns the service if `/{name}/tasks` is interpreted.
    pub fn find(&self, name: &str) -> Option<&InterpretedService> {
        let compare = |service: &InterpretedService| -> Ordering { service.name.as_str().cmp(name) };
        let index = self.services.binary_search_by(compare).ok()?;
        Some(&self.services[index])
    }

    /// Returns all services, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = &InterpretedService> {
        self.services.iter()
    }

    /// Returns all names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|service| service.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_catalogue_are_valid_and_unique() {
        for (index, entry) in CATALOGUE.iter().enumerate() {
            assert!(Service::parse(entry.name).is_some(), "{}", entry.name);
            assert!(CATALOGUE[..index].iter().all(|other| other.name != entry.name), "{}", entry.name);
        }
    }

    #[test]
    fn only_services_of_the_class_batch_are_batched() {
        for CatalogueEntry { name, rules } in &CATALOGUE {
            let is_batched = rules.max_batch != Some(1);
            assert_eq!(is_batched, rules.class == ServiceClass::Batch, "{name}");
            assert_eq!(rules.absent_action_retrieves, rules.class != ServiceClass::Pass, "{name}");
        }
    }

    #[test]
    fn interpreted_services_are_found_by_their_exact_name() {
        let all = CATALOGUE.iter().map(|entry| (Service::parse(entry.name).unwrap(), entry.rules));
        let services = InterpretedServices::new(all);
        for CatalogueEntry { name, rules } in &CATALOGUE {
            let found = services.find(name);
            assert_eq!(found.is_some(), rules.class != ServiceClass::Pass, "{name}");
            assert!(found.is_none_or(|service| service.name.as_str() == *name && service.rules == *rules));
        }
        assert!(services.find("Suno").is_none() && services.find("").is_none());
        assert!(services.names().is_sorted());
    }
}
