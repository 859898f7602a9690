//! Tests of both clients with a raw upstream, over TLS and through outgoing proxies.

mod connections;
mod lookups;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use super::*;
use crate::task::{Service, TaskId};
use crate::token::Token;
use refrain_simulator::raw_http::{RawPeer, listen, soon};

fn config(address: SocketAddr) -> UpstreamConfig {
    UpstreamConfig {
        base_url: format!("http://{address}").parse().unwrap(),
        connect_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_secs(5),
        max_response_bytes: 1000,
        ..UpstreamConfig::default()
    }
}

fn credentials() -> Credentials {
    Credentials {
        token: Token::parse("secret-canary").unwrap(),
        forwarded: vec![("x-record-exempt".parse().unwrap(), "true".parse().unwrap())],
    }
}

fn ids(ids: &[&str]) -> Vec<TaskId> {
    ids.iter().map(|id| TaskId::parse(id).unwrap()).collect()
}

fn producer() -> Service {
    Service::parse("producer").unwrap()
}
