//! Wiring and lifecycle: builds every part once from the configuration, runs them, and shuts them
//! down in order.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminPort};
use crate::auth::Auth;
use crate::clock;
use crate::config::LoadedConfig;
use crate::lifecycle::{Shutdown, Supervisor};
use crate::lookup::{LookupService, ProxyBackend};
use crate::proxy::ClientPort;
use crate::server::{self, ServerCounters, ServerLimits};
use crate::store::Store;
use crate::task::Durations;
use crate::telemetry::{Comparison, CounterSnapshot, Gauges, History, Metrics};
use crate::upstream;

/// Time between the deadline, when waiting lookups get an error, and the end of
/// `server.shutdown_timeout`, when connections are cut. It lets those errors reach their clients.
const DRAIN_MARGIN: Duration = Duration::from_secs(1);

/// Time between two saves of the learnt durations of tasks.
const DURATIONS_INTERVAL: Duration = Duration::from_secs(60);

/// The proxy, built but not yet running.
pub struct App {
    client_listener: TcpListener,
    admin_listener: Option<TcpListener>,
    client_port: ClientPort,
    admin_port: Arc<AdminPort>,
    lookups: Arc<LookupService>,
    store: Store,
    durations: Arc<Durations>,
    /// Counters of the client port.
    counters: ServerCounters,
    /// Owner of the tasks that go on when their client leaves.
    background: Supervisor,
    shutdown_timeout: Duration,
    shutdown: Shutdown,
}

impl App {
    /// Opens both ports and the store, and wires everything between them.
    ///
    /// # Errors
    /// One line that names what failed: a port that is taken, a store that cannot be opened.
    pub async fn build(loaded: impl Into<LoadedConfig>) -> anyhow::Result<Self> {
        Self::build_on(None, loaded).await
    }

    /// The same as [`App::build`], but the client port is this listener instead of `server.listen`.
    ///
    /// # Errors
    /// As for [`App::build`].
    pub async fn build_on(
        client_listener: Option<TcpListener>,
        loaded: impl Into<LoadedConfig>,
    ) -> anyhow::Result<Self> {
        let loaded = loaded.into();
        let (values, config) = (loaded.values(), loaded.config);
        server::raise_descriptor_limit();
        let client_listener = match client_listener {
            Some(listener) => listener,
            None => listen(config.server.listen, "server.listen")?,
        };
        let admin_listener = match config.admin.listen {
            Some(address) => Some(listen(address, "admin.listen")?),
            None => None,
        };
        let metrics = Metrics::new(config.tasks.interpreted_services().names());
        let metrics = Arc::new(metrics.with_clients(config.access.names()));
        let (upstream, passthrough) =
            upstream::build_clients(&config.upstream).context("set up the upstream client")?;
        let store = Store::open(&config.store, Arc::clone(&metrics)).await?;
        let shutdown = Shutdown::new();
        let auth =
            Auth::new(&config.access, config.upstream.token.clone(), store.clone(), Arc::clone(&metrics));
        let durations = Arc::new(Durations::default());
        durations.load(store.durations().await);
        let backend = ProxyBackend {
            upstream,
            store: store.clone(),
            auth: Arc::clone(&auth),
            durations: Arc::clone(&durations),
        };
        let background = Supervisor::new(metrics.panics.clone());
        let lookups = Arc::new(LookupService::new(
            &config,
            backend,
            Arc::clone(&metrics),
            background.clone(),
            shutdown.clone(),
        ));
        let upstream_host = passthrough.host().to_owned();
        let client_port = ClientPort::new(
            &config,
            auth,
            Arc::clone(&lookups),
            passthrough,
            Arc::clone(&metrics),
            background.clone(),
            shutdown.clone(),
        );
        let counters = ServerCounters { panics: metrics.panics.clone(), ..ServerCounters::default() };
        let admin_port = Arc::new(AdminPort {
            token: config.admin.token.clone(),
            upstream_host,
            sqlite_version: store.sqlite_version().await,
            store: store.clone(),
            lookups: Arc::clone(&lookups),
            values,
            started_at: clock::unix_now(),
            started: std::time::Instant::now(),
            shutdown: shutdown.clone(),
            connections: counters.connections.clone(),
            comparison: watch::Sender::default(),
            history: Mutex::new(History::new(CounterSnapshot::of(&metrics, &Gauges::default()))),
            metrics,
        });
        Ok(Self {
            client_listener,
            admin_listener,
            client_port,
            admin_port,
            lookups,
            store,
            durations,
            counters,
            background,
            shutdown_timeout: config.server.shutdown_timeout,
            shutdown,
        })
    }

    /// Address of the client port.
    pub fn client_address(&self) -> SocketAddr {
        self.client_listener.local_addr().expect("a bound listener has an address")
    }

    /// The task store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Address of the admin port, if it is on.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        let listener = self.admin_listener.as_ref()?;
        Some(listener.local_addr().expect("a bound listener has an address"))
    }

    /// The comparison that the admin port shows, for the demo to set.
    pub fn comparison(&self) -> watch::Sender<Option<Comparison>> {
        self.admin_port.comparison.clone()
    }

    /// Serves until `stop` is cancelled, then drains within `server.shutdown_timeout` and closes
    /// the store.
    ///
    /// The admin port is the last to stop, so that probes can observe the drain.
    ///
    /// # Errors
    /// A background task that the proxy cannot run without ended.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let shutdown = &self.shutdown;
        let supervisor = Supervisor::new(self.counters.panics.clone());
        let admin_shutdown = Shutdown::new();
        if let Some(listener) = self.admin_listener {
            let recording = Arc::clone(&self.admin_port).record_history();
            let until = admin_shutdown.clone();
            supervisor.spawn("history", async move {
                until.until_abort(recording).await;
            });
            let counters =
                ServerCounters { panics: self.counters.panics.clone(), ..ServerCounters::default() };
            let router = admin::router(self.admin_port);
            let limits = ServerLimits::for_admin_port();
            supervisor.spawn(
                "admin port",
                server::serve(listener, router, limits, counters, admin_shutdown.clone()),
            );
        }
        let lookups = Arc::clone(&self.lookups);
        // Without the sweep memory grows unnoticed, so its early end is the program's end.
        supervisor.spawn_essential("queue sweep", shutdown, async move {
            lookups.batcher().run_sweep().await;
        });
        let (store, durations, until) = (self.store.clone(), Arc::clone(&self.durations), shutdown.clone());
        supervisor.spawn("durations", async move {
            let mut interval = tokio::time::interval(DURATIONS_INTERVAL);
            while until.until_deadline(interval.tick()).await.is_some() {
                save_durations(&store, &durations).await;
            }
        });
        let serving = server::serve(
            self.client_listener,
            self.client_port,
            ServerLimits::default(),
            self.counters,
            shutdown.clone(),
        );
        let clients = async {
            serving.await;
            self.background.wait().await;
        };
        let result = tokio::select! {
            () = clients => Ok(()),
            () = advance(shutdown, &stop, self.shutdown_timeout) => Ok(()),
            task = supervisor.essential_task_ended() => Err(anyhow::anyhow!("the {task} task ended")),
        };
        shutdown.reach_deadline();
        if tokio::time::timeout(DRAIN_MARGIN, self.lookups.batcher().stopped()).await.is_err() {
            tracing::warn!("upstream lookups are still under way; their responses are not stored");
        }
        save_durations(&self.store, &self.durations).await;
        self.store.close().await;
        admin_shutdown.abort();
        supervisor.wait().await;
        result
    }
}

/// Saves the durations that changed. If that fails, they stay changed and are saved the next time.
/// The store counts and logs the cause.
async fn save_durations(store: &Store, durations: &Durations) {
    let changed = durations.take_changed();
    if !changed.is_empty() && store.save_durations(changed.clone()).await.is_err() {
        durations.mark_changed(changed);
    }
}

/// Starts the drain when `stop` is cancelled, and the later phases as `timeout` runs out. Does not
/// return.
async fn advance(shutdown: &Shutdown, stop: &CancellationToken, timeout: Duration) {
    stop.cancelled().await;
    tracing::info!("draining");
    let start = Instant::now();
    shutdown.start_drain();
    tokio::time::sleep_until(start + timeout.saturating_sub(DRAIN_MARGIN)).await;
    shutdown.reach_deadline();
    tokio::time::sleep_until(start + timeout).await;
    tracing::warn!("server.shutdown_timeout is over; open connections are cut");
    shutdown.abort();
    std::future::pending::<()>().await;
}

fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    server::listen(address).with_context(|| format!("listen on {address} ({key})"))
}
