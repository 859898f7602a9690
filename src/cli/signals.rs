//! The first SIGTERM or SIGINT asks for an orderly end, the second ends the process at once.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first signal cancels. The second signal exits with 128 and its number, as a shell would show it.
///
/// # Errors
/// The operating system refuses the handlers.
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
                tracing::warn!(signal, "ending at once; work in hand is cut");
                std::process::exit(code);
            }
            tracing::info!(signal, "finishing work in hand; a second signal ends at once");
            token.cancel();
        }
    });
    Ok(shutdown)
}
