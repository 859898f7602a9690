//! Rules between keys. Each broken one is a line that names the keys and says what would mend it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::load::{Origin, Origins};
use super::{AccessMode, Config};

/// The rules that `config` breaks; `origins` tell where to look.
pub(super) fn broken(config: &Config, origins: &Origins) -> Vec<String> {
    let mut mistakes = Vec::new();
    let at = |key: &str| match origins.get(key) {
        None | Some(Origin::Default) => String::new(),
        Some(origin) => format!("{origin}: "),
    };

    match config.access.mode {
        AccessMode::Shared => {
            let source = at("access.mode");
            if config.upstream.token.is_none() {
                mistakes.push(format!(
                    "{source}access.mode = \"shared\" needs the team's token: set upstream.token or upstream.token_file"
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
                    "{}upstream.token is for access.mode = \"shared\" alone: in \"token\" mode clients send their own; leave it out or set the mode",
                    at("upstream.token")
                ));
            }
            if !config.access.clients.is_empty() {
                mistakes.push(format!(
                    "{}access.clients is for access.mode = \"shared\" alone: in \"token\" mode clients send tokens of their own; leave it out or set the mode",
                    at("access.clients")
                ));
            }
        }
    }

    if let Some(admin) = config.admin.listen {
        let source = at("admin.listen");
        if !admin.ip().to_canonical().is_loopback() && config.admin.token.is_none() {
            mistakes.push(format!(
                "{source}admin.listen = \"{admin}\" can be reached from other machines and needs admin.token or admin.token_file; a loopback address needs none"
            ));
        }
        if overlap(admin, config.server.listen) {
            mistakes.push(format!(
                "{source}admin.listen = \"{admin}\" and server.listen = \"{}\" meet: give them different ports",
                config.server.listen
            ));
        }
    }

    if upstream_address(&config.upstream.base_url)
        .is_some_and(|upstream| overlap(upstream, config.server.listen))
    {
        mistakes.push(format!(
            "{}upstream.base_url is refrain's own address, server.listen = \"{}\": every request would go round in circles",
            at("upstream.base_url"),
            config.server.listen
        ));
    }
    mistakes
}

/// Whether two listeners would want the same port. Port 0 is given out anew each time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    // A socket on `[::]` takes IPv4 as well on most systems.
    let takes_all =
        |wide: IpAddr, narrow: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4());
    one.port() != 0 && one.port() == other.port() && (a == b || takes_all(a, b) || takes_all(b, a))
}

/// The address of an upstream that is named by one, or by `localhost`.
fn upstream_address(base_url: &http::Uri) -> Option<SocketAddr> {
    let host = base_url.host()?.trim_start_matches('[').trim_end_matches(']');
    let ip = if host == "localhost" { Ipv4Addr::LOCALHOST.into() } else { host.parse().ok()? };
    let default_port = if base_url.scheme_str() == Some("http") { 80 } else { 443 };
    Some(SocketAddr::new(ip, base_url.port_u16().unwrap_or(default_port)))
}
