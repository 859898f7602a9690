//! SIGTERM and SIGINT: the first starts a graceful shutdown, the second ends the process.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that the first signal cancels. The second signal exits with 128 plus its number,
/// like a shell.
///
/// # Errors
/// The operating system does not accept the signal handlers.
pub(super) fn shutdown_token() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        loop {
            let (signal, code) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 143),
                _ = interrupt.recv() => ("SIGINT", 130),
            };
            if token.is_cancelled() {
                tracing::warn!(signal, "exiting without waiting for requests in progress");
                std::process::exit(code);
            }
            tracing::info!(signal, "shutting down; a second signal exits at once");
            token.cancel();
        }
    });
    Ok(shutdown)
}
