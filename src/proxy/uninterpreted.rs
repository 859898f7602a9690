//! Warnings about services that clients poll, but whose lookups are passed through.

use http::{Method, request};

use crate::config::TasksConfig;
use crate::task::{InterpretedServices, Service, ServiceClass, find_in_catalogue};
use crate::telemetry::UninterpretedServices;

/// Counts a request that polls a service whose lookups are not interpreted, and logs the first one
/// of each service. Does nothing for other requests.
pub(super) fn record(
    parts: &request::Parts,
    interpreted: &InterpretedServices,
    tasks: &TasksConfig,
    uninterpreted: &UninterpretedServices,
) {
    let name = parts.uri.path().strip_prefix('/').and_then(|path| path.strip_suffix("/tasks"));
    let name = name.filter(|name| parts.method == Method::POST && interpreted.find(name).is_none());
    let Some(service) = name.and_then(Service::parse) else { return };
    if uninterpreted.count(service.as_str()) {
        let remedy = remedy(&service, tasks);
        tracing::warn!(%service, "requests to this service are passed through and never cached: {remedy}");
    }
}

/// Returns the reason, and the key that changes it.
fn remedy(service: &Service, tasks: &TasksConfig) -> &'static str {
    let custom = tasks.custom_services.iter().find(|custom| custom.name == *service);
    match find_in_catalogue(service.as_str()).map(|entry| entry.rules.class) {
        Some(ServiceClass::Pass) => "docs/services.md says why; no setting changes it",
        Some(ServiceClass::Batch | ServiceClass::Single) => {
            "tasks.services does not list it; add it there to have its finished tasks cached"
        }
        None if custom.is_some() => "tasks.custom_services gives it the class \"pass\"",
        None => "refrain does not know it; if its tasks have the usual form, add it to tasks.custom_services",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CustomService, Services};

    #[test]
    fn remedy_names_the_key_that_changes_the_treatment() {
        let name = |name: &str| Service::parse(name).unwrap();
        let mine = CustomService { name: name("mine"), class: ServiceClass::Pass, max_batch: None };
        let tasks = TasksConfig {
            services: Services::Named(vec![name("producer")]),
            custom_services: vec![mine],
            ..TasksConfig::default()
        };
        for (service, expected) in [
            ("captcha", "no setting"),
            ("suno", "tasks.services"),
            ("mine", "tasks.custom_services gives"),
            ("other", "add it to tasks.custom_services"),
        ] {
            assert!(remedy(&name(service), &tasks).contains(expected), "{service}");
        }
    }

    #[test]
    fn only_polls_are_counted() {
        let (tasks, counted) = (TasksConfig::default(), UninterpretedServices::default());
        for (method, target) in [
            ("POST", "/suno/tasks"),
            ("POST", "/captcha/tasks"),
            ("POST", "/captcha/tasks?x=1"),
            ("GET", "/captcha/tasks"),
            ("POST", "/captcha/token"),
            ("POST", "/a/b/tasks"),
            ("POST", "/tasks"),
            ("POST", "/%63aptcha/tasks"),
        ] {
            let request = http::Request::builder().method(method).uri(target).body(()).unwrap();
            record(&request.into_parts().0, &tasks.interpreted_services(), &tasks, &counted);
        }
        assert_eq!(counted.counts().into_iter().collect::<Vec<_>>(), [("captcha".to_owned(), 2)]);
    }
}
