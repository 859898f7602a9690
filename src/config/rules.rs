//! Rules between keys. Each violation is one line that names the keys and a remedy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::loaded::{Origin, Origins};
use super::{AccessMode, Config, CustomService, Services};
use crate::task::{CATALOGUE, ServiceClass, find_in_catalogue};

/// Returns the rules that `config` violates, each with the origin of a value.
pub(super) fn violations(config: &Config, origins: &Origins) -> Vec<String> {
    let mut mistakes = Vec::new();
    let at = |key: &str| match origins.get(key) {
        Origin::Default => String::new(),
        origin => format!("{origin}: "),
    };

    match config.access.mode {
        AccessMode::Shared => {
            let source = at("access.mode");
            if config.upstream.token.is_none() {
                mistakes.push(format!(
                    "{source}access.mode = \"shared\" needs the token of the team: set upstream.token or upstream.token_file"
                ));
            }
            if config.access.clients.is_empty() {
                mistakes.push(format!(
                    "{source}access.mode = \"shared\" needs at least one client: set access.clients to a list such as [{{ name = \"reports\", key = \"…\" }}]"
                ));
            }
        }
        AccessMode::Token => {
            if config.upstream.token.is_some() {
                mistakes.push(format!(
                    "{}upstream.token is only for access.mode = \"shared\": in \"token\" mode clients send their own tokens; remove it or change the mode",
                    at("upstream.token")
                ));
            }
            if !config.access.clients.is_empty() {
                mistakes.push(format!(
                    "{}access.clients is only for access.mode = \"shared\": in \"token\" mode clients send their own tokens; remove it or change the mode",
                    at("access.clients")
                ));
            }
        }
    }

    if let Some(admin) = config.admin.listen {
        let source = at("admin.listen");
        if !admin.ip().to_canonical().is_loopback() && config.admin.token.is_none() {
            mistakes.push(format!(
                "{source}admin.listen = \"{admin}\" is reachable from other machines and needs admin.token or admin.token_file; a loopback address needs neither"
            ));
        }
        if overlap(admin, config.server.listen) {
            mistakes.push(format!(
                "{source}admin.listen = \"{admin}\" and server.listen = \"{}\" use the same port: set different ports",
                config.server.listen
            ));
        }
    }

    if upstream_address(&config.upstream.base_url)
        .is_some_and(|upstream| overlap(upstream, config.server.listen))
    {
        mistakes.push(format!(
            "{}upstream.base_url is refrain's own address, server.listen = \"{}\": every request would be sent back to refrain",
            at("upstream.base_url"),
            config.server.listen
        ));
    }
    for mistake in service_names(&config.tasks.services, &config.tasks.custom_services) {
        mistakes.push(format!("{}tasks.services: {mistake}", at("tasks.services")));
    }
    for CustomService { name, .. } in &config.tasks.custom_services {
        if find_in_catalogue(name.as_str()).is_some() {
            mistakes.push(format!(
                "{}tasks.custom_services: refrain knows \"{name}\" already (docs/services.md); remove it from the list",
                at("tasks.custom_services")
            ));
        }
    }
    mistakes
}

/// Returns a mistake for each name that is no service, or one that refrain cannot interpret.
fn service_names(services: &Services, custom: &[CustomService]) -> Vec<String> {
    let Services::Named(named) = services else { return Vec::new() };
    let known = || {
        let of_catalogue = CATALOGUE.iter().map(|entry| (entry.name, entry.rules.class));
        of_catalogue.chain(custom.iter().map(|service| (service.name.as_str(), service.class)))
    };
    let mistake_in = |name: &str| match known().find(|(known, _)| *known == name) {
        Some((_, ServiceClass::Pass)) => Some(format!(
            "refrain always passes \"{name}\" through (docs/services.md); remove it from the list"
        )),
        Some(_) => None,
        None => {
            let distance = |known: &str| strsim::damerau_levenshtein(&name.to_ascii_lowercase(), known);
            let nearest = known().map(|(known, _)| (distance(known), known)).min();
            let meant = nearest.filter(|(distance, _)| *distance <= 2);
            let remedy = meant.map_or_else(
                || {
                    "the services are listed in docs/services.md, and tasks.custom_services adds others"
                        .to_owned()
                },
                |(_, known)| format!("did you mean \"{known}\"?"),
            );
            Some(format!("refrain does not know the service \"{name}\"; {remedy}"))
        }
    };
    named.iter().filter_map(|service| mistake_in(service.as_str())).collect()
}

/// Whether two listeners would use the same port. Port 0 means any free port, so it never
/// conflicts.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    // On most systems a socket on `[::]` accepts IPv4 as well.
    let includes =
        |wide: IpAddr, narrow: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4());
    one.port() != 0 && one.port() == other.port() && (a == b || includes(a, b) || includes(b, a))
}

/// Returns the address of an upstream that is given as an IP address or as `localhost`.
fn upstream_address(base_url: &http::Uri) -> Option<SocketAddr> {
    let host = base_url.host()?.trim_start_matches('[').trim_end_matches(']');
    let ip = if host == "localhost" { Ipv4Addr::LOCALHOST.into() } else { host.parse().ok()? };
    let default_port = if base_url.scheme_str() == Some("http") { 80 } else { 443 };
    Some(SocketAddr::new(ip, base_url.port_u16().unwrap_or(default_port)))
}
