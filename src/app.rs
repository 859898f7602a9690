//! Builds every room once from the configuration, runs them, ends them in order. Owns all background work.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::admin::AdminPort;
use crate::auth::Auth;
use crate::clock;
use crate::config::Loaded;
use crate::lookup::LookupService;
use crate::proxy::ClientPort;
use crate::server::{self, ServerCounters, ServerLimits};
use crate::store::Store;
use crate::telemetry::{Gauges, History, Metrics, Snapshot};
use crate::upstream;

/// Before the end of `shutdown_timeout`, whoever still waits gets an answer; so much earlier.
const DRAIN_MARGIN: Duration = Duration::from_secs(1);

/// The proxy, built but not yet running.
pub struct App {
    client: TcpListener,
    admin: Option<TcpListener>,
    client_port: ClientPort,
    admin_port: Arc<AdminPort>,
    lookups: Arc<LookupService>,
    store: Store,
    /// Of the client port.
    counts: ServerCounters,
    shutdown_timeout: Duration,
    draining: CancellationToken,
    ending: CancellationToken,
}

impl App {
    /// Opens both ports and the store, and builds everything between them. The admin port tells where the
    /// configuration's values come from, where that is known.
    ///
    /// # Errors
    /// One line that says what could not be done: a port that is taken, a store that cannot be opened.
    pub async fn build(loaded: impl Into<Loaded>) -> anyhow::Result<Self> {
        let loaded = loaded.into();
        let (values, config) = (loaded.values(), loaded.config);
        let client = listen(config.server.listen, "server.listen").await?;
        let admin = match config.admin.listen {
            Some(address) => Some(listen(address, "admin.listen").await?),
            None => None,
        };
        let metrics = Arc::new(Metrics::new(config.tasks.services.names()));
        let (upstream, passthrough) =
            upstream::connect(&config.upstream).context("set up the upstream client")?;
        let store = Store::open(&config.store, Arc::clone(&metrics)).await?;
        let (draining, ending) = (CancellationToken::new(), CancellationToken::new());
        let access =
            Auth::new(&config.access, config.upstream.token.clone(), store.clone(), Arc::clone(&metrics));
        let lookups = Arc::new(LookupService::new(
            &config,
            Arc::clone(&access),
            store.clone(),
            upstream,
            Arc::clone(&metrics),
            draining.clone(),
            ending.clone(),
        ));
        let client_port =
            ClientPort::new(&config, access, Arc::clone(&lookups), passthrough, Arc::clone(&metrics));
        let counts = ServerCounters { panics: metrics.panics.clone(), ..ServerCounters::default() };
        let admin_port = Arc::new(AdminPort {
            token: config.admin.token.clone(),
            sqlite_version: store.sqlite_version().await,
            store: store.clone(),
            lookups: Arc::clone(&lookups),
            values,
            started_at: clock::unix_now(),
            started: std::time::Instant::now(),
            draining: draining.clone(),
            connections: counts.connections.clone(),
            history: Mutex::new(History::new(Snapshot::of(&metrics, &Gauges::default()))),
            metrics,
        });
        Ok(Self {
            client,
            admin,
            client_port,
            admin_port,
            lookups,
            store,
            counts,
            shutdown_timeout: config.server.shutdown_timeout,
            draining,
            ending,
        })
    }

    /// Where clients connect.
    pub fn client_address(&self) -> SocketAddr {
        self.client.local_addr().expect("a bound listener has an address")
    }

    /// Where the admin port is, if it is on.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|admin| admin.local_addr().expect("a bound listener has an address"))
    }

    /// Serves until `shutdown`, then finishes what is in hand within `shutdown_timeout` and leaves the store clean.
    ///
    /// The admin port answers until the very end, so that a probe sees the draining.
    ///
    /// # Errors
    /// If a part that the service cannot do without died.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (cut, admin_end) = (CancellationToken::new(), CancellationToken::new());
        let admin = self.admin.map(|listener| {
            let (port, end) = (Arc::clone(&self.admin_port), admin_end.clone());
            let panics = self.counts.panics.clone();
            let recording = tokio::spawn(port.record_history(end));
            tokio::spawn(async move {
                if !matches!(recording.await, Ok(Ok(()))) {
                    panics.inc();
                    tracing::error!("the history panicked; its charts stand still until the next start");
                }
            });
            let limits = ServerLimits::of_admin_port();
            let counts = ServerCounters { panics: self.counts.panics.clone(), ..ServerCounters::default() };
            tokio::spawn(server::serve(
                listener,
                admin::router(self.admin_port),
                limits,
                counts,
                admin_end.clone(),
                admin_end.clone(),
            ))
        });
        let sweep = tokio::spawn({
            let lookups = Arc::clone(&self.lookups);
            async move { lookups.batcher().sweep_for_ever().await }
        });
        let clients = server::serve(
            self.client,
            self.client_port,
            ServerLimits::default(),
            self.counts,
            self.draining.clone(),
            cut.clone(),
        );
        let clock = async {
            shutdown.cancelled().await;
            tracing::info!("draining");
            let start = Instant::now();
            self.draining.cancel();
            tokio::time::sleep_until(start + self.shutdown_timeout.saturating_sub(DRAIN_MARGIN)).await;
            self.ending.cancel();
            tokio::time::sleep_until(start + self.shutdown_timeout).await;
            tracing::warn!("the shutdown timeout is over; what is still in hand is cut");
            cut.cancel();
            std::future::pending::<()>().await;
        };
        // Without it memory would grow unseen, so its early end is the program's.
        let sweep_died = async {
            let ended = sweep.await;
            if self.ending.is_cancelled() {
                std::future::pending::<()>().await;
            }
            ended
        };
        tokio::select! {
            () = clients => {}
            () = clock => {}
            ended = sweep_died => ended.context("sweep the batcher")?,
        }
        self.ending.cancel();
        let calls_end = tokio::time::timeout(DRAIN_MARGIN, self.lookups.batcher().finished());
        if calls_end.await.is_err() {
            tracing::warn!("look-up calls are still under way; their answers are not stored");
        }
        self.store.close().await;
        admin_end.cancel();
        if let Some(admin) = admin {
            admin.await.context("serve the admin port")?;
        }
        Ok(())
    }
}

async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address} ({key})"))
}
