//! `refrain simulate`: runs only the simulated upstream, until a signal.

use std::net::SocketAddr;

use anyhow::Context;

use super::options::GlobalOptions;
use super::{CliError, print, signals};
use crate::config::{Config, FlagValue};
use refrain_simulator::{Simulator, SimulatorConfig};

/// Size of the call record. It is small because this command has no way to read it.
const RECORD_BYTES: usize = 1 << 20;

pub(super) fn config(options: &GlobalOptions) -> Result<Config, CliError> {
    let any_port = options.listen.is_none().then(|| own("server.listen", "127.0.0.1:0"));
    // The simulator has no admin port, so its address cannot conflict.
    let extra = any_port.into_iter().chain([own("admin.listen", "off")]);
    let loaded = options.load_flags_only("simulate", &["--listen", "--log-format", "--log-filter"], extra)?;
    Ok(loaded.config)
}

fn own(key: &'static str, value: &str) -> FlagValue {
    FlagValue { flag: "simulate", key, value: value.to_owned() }
}

pub(super) async fn simulate(listen: SocketAddr) -> Result<(), CliError> {
    let shutdown = signals::shutdown_token()?;
    let config = SimulatorConfig { listen, max_recorded_bytes: RECORD_BYTES, ..SimulatorConfig::default() };
    let simulator = Simulator::start(config).await.with_context(|| format!("listen on {listen}"))?;
    print(&format!("simulated upstream on {}\n", simulator.base_url()));
    shutdown.cancelled().await;
    Ok(())
}
