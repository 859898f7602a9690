//! `refrain serve`: runs the proxy until a signal.

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{CliError, signals};
use crate::app::App;
use crate::config::LoadedConfig;
use crate::server;

pub(super) async fn serve(loaded: LoadedConfig) -> Result<(), CliError> {
    let shutdown = signals::shutdown_token()?;
    let inherited = server::inherited().context("take the socket of the service manager")?;
    let Some(app) = start(inherited, loaded, &shutdown).await? else { return Ok(()) };
    app.run(shutdown).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Opens both ports and the store, and logs where they are. The client port is `inherited` if there
/// is one. Returns `None` if a signal came first.
pub(super) async fn start(
    inherited: Option<TcpListener>,
    loaded: LoadedConfig,
    shutdown: &CancellationToken,
) -> Result<Option<App>, CliError> {
    let upstream = loaded.config.upstream.base_url.clone();
    let services = loaded.config.tasks.interpreted_services();
    let app = tokio::select! {
        biased;
        () = shutdown.cancelled() => return Ok(None),
        app = App::build_on(inherited, loaded) => app?,
    };
    let dashboard =
        app.admin_address().map_or_else(|| "off".to_owned(), |address| format!("http://{address}"));
    let path = app.store().path();
    let services: Vec<&str> = services.names().collect();
    tracing::info!(
        client = %format_args!("http://{}", app.client_address()),
        upstream = %upstream.to_string().trim_end_matches('/'),
        %dashboard,
        store = %std::path::absolute(path).as_deref().unwrap_or(path).display(),
        tasks = app.store().stats().tasks,
        services = services.join(" "),
        "refrain {} is ready; use the client URL as the base URL of your apps",
        env!("CARGO_PKG_VERSION"),
    );
    Ok(Some(app))
}
