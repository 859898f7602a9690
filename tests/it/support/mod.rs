//! What clients do, and the servers they do it to.

mod app;
mod file;
mod load;
mod program;
mod wire;

pub use app::{Reply, TestApp, simulator};
pub use file::StoreFile;
pub use load::{Client, client, in_parallel, task_text};
pub use program::Program;
pub use wire::Wire;

use std::time::Duration;

/// Longest wait for anything that should happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The documentation's own finished task, and its id.
pub const DOCUMENTED: &[u8] = include_bytes!("../../fixtures/retrieve.json");
/// The id of [`DOCUMENTED`].
pub const DOCUMENTED_ID: &str = "1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad";

/// Waits until a condition holds; panics with `what` if it never does.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
