//! Shutdown phases and supervision of background tasks.
//!
//! [`Shutdown`] is the one type that every long-running part observes. [`Supervisor`] is the one
//! way to start a background task: it names the task, counts and logs its panic, and waits for it
//! at the end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Phases of a shutdown, in this order: drain, deadline, abort. A later phase implies the earlier
/// ones.
///
/// Clones observe the same shutdown.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// No new work is accepted; waiting lookups get their last pending record.
    drain: CancellationToken,
    /// Lookups that still wait get an error.
    deadline: CancellationToken,
    /// Everything that is left is cut.
    abort: CancellationToken,
}

impl Shutdown {
    /// Creates a shutdown that has not started.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a shutdown that follows this one and can end earlier.
    pub fn child(&self) -> Self {
        Self {
            drain: self.drain.child_token(),
            deadline: self.deadline.child_token(),
            abort: self.abort.child_token(),
        }
    }

    /// Starts the first phase.
    pub fn start_drain(&self) {
        self.drain.cancel();
    }

    /// Starts the second phase.
    pub fn reach_deadline(&self) {
        self.drain.cancel();
        self.deadline.cancel();
    }

    /// Starts the last phase.
    pub fn abort(&self) {
        self.reach_deadline();
        self.abort.cancel();
    }

    /// Aborts this shutdown when the returned guard is dropped.
    pub fn abort_on_drop(&self) -> AbortOnDrop {
        AbortOnDrop(self.clone())
    }

    /// Whether the first phase has started.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether the second phase has started.
    pub fn is_past_deadline(&self) -> bool {
        self.deadline.is_cancelled()
    }

    /// Whether the last phase has started.
    pub fn is_aborted(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Resolves when the first phase starts. Cancel safe.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Resolves when the second phase starts. Cancel safe.
    pub async fn deadline(&self) {
        self.deadline.cancelled().await;
    }

    /// Resolves when the last phase starts. Cancel safe.
    pub async fn aborted(&self) {
        self.abort.cancelled().await;
    }

    /// Runs `future` until the second phase starts; `None` if that comes first.
    pub async fn until_deadline<F: Future>(&self, future: F) -> Option<F::Output> {
        self.deadline.run_until_cancelled(future).await
    }

    /// Runs `future` until the last phase starts; `None` if that comes first.
    pub async fn until_abort<F: Future>(&self, future: F) -> Option<F::Output> {
        self.abort.run_until_cancelled(future).await
    }
}

/// Aborts its [`Shutdown`] when dropped.
#[derive(Debug)]
pub struct AbortOnDrop(Shutdown);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Owner of background tasks. Clones own the same tasks.
#[derive(Clone, Debug)]
pub struct Supervisor {
    tasks: TaskTracker,
    panics: Counter,
    /// Name of the first essential task that ended before it was allowed to.
    failed: Arc<watch::Sender<Option<&'static str>>>,
}

impl Supervisor {
    /// Creates a supervisor without tasks. `panics` counts panicked tasks.
    pub fn new(panics: Counter) -> Self {
        Self { tasks: TaskTracker::new(), panics, failed: Arc::new(watch::Sender::new(None)) }
    }

    /// Starts a task in the current tracing span. A panic is logged under `name` and counted.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(catch_panic(name, self.panics.clone(), task).in_current_span());
    }

    /// Starts a task that the program cannot run without: if it ends before `shutdown` reaches its
    /// deadline, [`Supervisor::essential_task_ended`] resolves.
    pub fn spawn_essential(
        &self,
        name: &'static str,
        shutdown: &Shutdown,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let (failed, shutdown) = (Arc::clone(&self.failed), shutdown.clone());
        let task = catch_panic(name, self.panics.clone(), task);
        let watched = async move {
            task.await;
            if !shutdown.is_past_deadline() {
                failed.send_if_modified(|failed| failed.replace(name).is_none());
            }
        };
        self.tasks.spawn(watched.in_current_span());
    }

    /// Resolves with the name of an essential task that ended early. Cancel safe.
    pub async fn essential_task_ended(&self) -> &'static str {
        let mut failed = self.failed.subscribe();
        let name = failed.wait_for(Option::is_some).await.map(|name| *name);
        match name {
            Ok(Some(name)) => name,
            // `self` holds the sender, so the channel does not close.
            _ => std::future::pending().await,
        }
    }

    /// Waits until every task has ended; tasks started meanwhile are waited for too.
    pub async fn wait(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Runs `task`; a panic is logged and counted instead of being passed on.
async fn catch_panic(name: &'static str, panics: Counter, task: impl Future<Output = ()>) {
    // The future is not polled again after a panic, so its half-finished state is not observed.
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        panics.inc();
        tracing::error!(task = name, "a background task panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervisor() -> Supervisor {
        Supervisor::new(Counter::default())
    }

    #[tokio::test]
    async fn later_phase_implies_earlier_ones() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_draining());
        shutdown.reach_deadline();
        assert!(shutdown.is_draining() && shutdown.is_past_deadline() && !shutdown.is_aborted());
        shutdown.abort();
        shutdown.aborted().await;
    }

    #[tokio::test]
    async fn child_follows_its_parent_and_ends_alone() {
        let parent = Shutdown::new();
        let (first, second) = (parent.child(), parent.child());
        first.abort();
        assert!(!parent.is_aborted() && !second.is_draining());
        parent.abort();
        assert!(second.is_draining() && second.is_past_deadline() && second.is_aborted());
    }

    #[tokio::test]
    async fn panicked_task_is_counted_and_does_not_block_the_end() {
        let supervisor = supervisor();
        supervisor.spawn("test", async { panic!("on purpose") });
        supervisor.wait().await;
        assert_eq!(supervisor.panics.get(), 1);
    }

    #[tokio::test]
    async fn early_end_of_an_essential_task_is_reported() {
        let (supervisor, shutdown) = (supervisor(), Shutdown::new());
        supervisor.spawn_essential("sweep", &shutdown, async {});
        assert_eq!(supervisor.essential_task_ended().await, "sweep");
    }

    #[tokio::test]
    async fn essential_task_may_end_after_the_deadline() {
        let (supervisor, shutdown) = (supervisor(), Shutdown::new());
        let ended = shutdown.clone();
        supervisor.spawn_essential("sweep", &shutdown, async move { ended.deadline().await });
        shutdown.reach_deadline();
        supervisor.wait().await;
        assert!(supervisor.essential_task_ended().now_or_never().is_none());
    }
}
