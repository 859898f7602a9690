//! `refrain serve`: runs the proxy until a signal.

use tokio_util::sync::CancellationToken;

use super::{CliError, signals};
use crate::app::App;
use crate::config::LoadedConfig;

pub(super) async fn serve(loaded: LoadedConfig) -> Result<(), CliError> {
    let shutdown = signals::shutdown_token()?;
    let Some(app) = start(loaded, &shutdown).await? else { return Ok(()) };
    app.run(shutdown).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Opens both ports and the store, and logs the addresses. Returns `None` if a signal came first.
pub(super) async fn start(
    loaded: LoadedConfig,
    shutdown: &CancellationToken,
) -> Result<Option<App>, CliError> {
    let upstream = loaded.config.upstream.base_url.clone();
    let store = loaded.config.store.url.clone();
    let services = loaded.config.tasks.interpreted_services();
    let app = tokio::select! {
        biased;
        () = shutdown.cancelled() => return Ok(None),
        app = App::build(loaded) => app?,
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "refrain");
    tracing::info!(address = %app.client_address(), "client port");
    match app.admin_address() {
        Some(address) => tracing::info!(%address, "admin port"),
        None => tracing::info!("admin port is off"),
    }
    tracing::info!(url = %upstream, "upstream");
    tracing::info!(url = %store, "task store");
    let names: Vec<&str> = services.names().collect();
    tracing::info!(
        services = names.join(" "),
        "lookups of these services are cached; all others pass through"
    );
    Ok(Some(app))
}
