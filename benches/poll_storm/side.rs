//! One side of a scenario: its own simulator, with or without refrain, all clients, and the counts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use refrain::app::App;
use refrain::config::Config;
use refrain_simulator::{Simulator, SimulatorConfig};
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::arguments::Arguments;
use crate::client::{Log, Poller};
use crate::report::{Row, TokenCalls};
use crate::scenario::{Id, Scenario};

/// Time limit of a client for one response.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

const SERVICE: &str = "producer";

/// Whether clients call the upstream directly or through refrain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    Refrain,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Refrain => "refrain",
        }
    }
}

/// A prepared side.
pub(crate) struct Side {
    kind: Kind,
    scenario: Arc<Scenario>,
    simulator: Simulator,
    /// Ids of the tasks, in their order.
    ids: Vec<String>,
    proxy: Option<Proxy>,
    http: reqwest::Client,
}

struct Proxy {
    address: SocketAddr,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    _folder: TempDir,
}

impl Proxy {
    /// Starts refrain with its defaults in front of this upstream, on free ports, with a new store.
    async fn start(upstream: &Simulator) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("create a folder for the store")?;
        let free_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::default();
        config.server.listen = free_port;
        config.admin.listen = Some(free_port);
        config.upstream.base_url = upstream.base_url().parse().context("read the simulator's address")?;
        config.store.url = format!("sqlite://{}", folder.path().join("refrain.db").display());
        let app = App::build(config).await.context("build refrain")?;
        let (address, shutdown) = (app.client_address(), CancellationToken::new());
        let running = tokio::spawn(app.run(shutdown.clone()));
        Ok(Self { address, shutdown, running, _folder: folder })
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.running.await.context("run refrain")?.context("run refrain")
    }
}

impl Side {
    pub(crate) async fn prepare(
        kind: Kind,
        scenario: &Arc<Scenario>,
        arguments: &Arguments,
    ) -> anyhow::Result<Self> {
        let config = SimulatorConfig { rate_tolerance: arguments.leeway, ..SimulatorConfig::default() };
        let simulator = Simulator::start(config).await.context("start the simulator")?;
        let ids =
            scenario.tasks.iter().map(|task| simulator.create_pending(SERVICE, &token(task.token))).collect();
        let proxy = match kind {
            Kind::Direct => None,
            Kind::Refrain => Some(Proxy::start(&simulator).await?),
        };
        let http = reqwest::Client::builder()
            .retry(reqwest::retry::never())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(CLIENT_TIMEOUT)
            .build()
            .context("build the HTTP client")?;
        Ok(Self { kind, scenario: Arc::clone(scenario), simulator, ids, proxy, http })
    }

    /// Runs clients and tasks until the end of the scenario.
    pub(crate) async fn run(self, start: Instant, length: Duration) -> anyhow::Result<Row> {
        let (log, end) = (Arc::<Log>::default(), start + length);
        let base = match &self.proxy {
            None => self.simulator.base_url(),
            Some(proxy) => format!("http://{}", proxy.address),
        };
        let url = format!("{base}/{SERVICE}/tasks");
        let mut at_work = JoinSet::new();
        at_work.spawn(tokio::time::timeout_at(end, self.finishes(start, &log)));
        for client in &self.scenario.clients {
            let poller = Poller {
                client: client.clone(),
                http: self.http.clone(),
                url: url.clone(),
                token: token(client.token),
                ids: client.lookup.ids().iter().map(|id| self.spell(*id)).collect(),
                log: Arc::clone(&log),
            };
            at_work.spawn(tokio::time::timeout_at(end, poller.run(start)));
        }
        while let Some(done) = at_work.join_next().await {
            // An inner error means that the scenario ended.
            let _ = done.context("a client panicked")?;
        }
        tokio::time::sleep_until(end).await;
        let row = self.count(&log);
        if let Some(proxy) = self.proxy {
            proxy.stop().await?;
        }
        self.simulator.stop().await;
        Ok(row)
    }

    /// Finishes each task at its time.
    fn finishes(&self, start: Instant, log: &Arc<Log>) -> impl Future<Output = ()> + Send + use<> {
        let mut finishes: Vec<(Duration, usize, String)> =
            (self.scenario.tasks.iter().zip(&self.ids).enumerate())
                .map(|(place, (task, id))| (task.finishes_after, place, id.clone()))
                .collect();
        finishes.sort_unstable();
        let (simulator, log) = (self.simulator.clone(), Arc::clone(log));
        async move {
            for (after, place, id) in finishes {
                tokio::time::sleep_until(start + after).await;
                log.lock().finished.insert(place, Instant::now());
                simulator.finish(&id);
            }
        }
    }

    fn spell(&self, id: Id) -> String {
        match id {
            Id::Task(place) => self.ids[place].clone(),
            Id::Unknown(number) => format!("00000000-0000-4000-8000-{number:012}"),
        }
    }

    fn count(&self, log: &Log) -> Row {
        let mut tokens: HashMap<String, TokenCalls> = HashMap::new();
        for call in self.simulator.calls() {
            let entry = tokens.entry(call.token.unwrap_or_default());
            entry.or_insert_with(|| TokenCalls::new(call.at)).count(call.at);
        }
        let watched = self.scenario.clients.iter().flat_map(|client| client.lookup.ids());
        let watched = watched.filter(|id| matches!(id, Id::Task(_))).count();
        let mut seen = std::mem::take(&mut *log.lock());
        seen.known.sort_unstable_by_key(|known| known.after);
        Row {
            kind: self.kind,
            upstream_calls: self.simulator.call_count(),
            too_many_requests_sent: self.simulator.rate_limited_calls(),
            never_known: watched - seen.known.len(),
            tokens: tokens.into_values().collect(),
            seen,
        }
    }
}

fn token(number: usize) -> String {
    format!("storm-{number}")
}
