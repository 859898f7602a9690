//! One side of a scenario: its own simulator, with or without refrain, all clients, and the counts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use refrain::app::App;
use refrain::config::Config;
use refrain_simulator::{Simulator, SimulatorConfig};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::arguments::Arguments;
use crate::client::{Log, Poller, TaskStarter};
use crate::report::{Row, TokenCalls};
use crate::scenario::{Id, Scenario};

/// Time limit of a client for one response.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(90);

const SERVICE: &str = "producer";

/// Token of the lookups from which a side learns durations before the scenario.
const LEARNING_TOKEN: &str = "learning";

/// Whether clients call the upstream directly or through refrain, and what refrain knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    /// With a new store. It learns durations during the scenario.
    Refrain,
    /// With records that have no `created_at`, from which no durations can be learnt.
    Even,
    /// With the durations of earlier tasks.
    Learnt,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Refrain => "refrain",
            Self::Even => "even order",
            Self::Learnt => "learnt",
        }
    }
}

/// A prepared side.
pub(crate) struct Side {
    kind: Kind,
    scenario: Arc<Scenario>,
    simulator: Simulator,
    records: Arc<Records>,
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
        let records = Arc::new(Records::new(&simulator, kind)?);
        let proxy = match kind {
            Kind::Direct => None,
            Kind::Refrain | Kind::Even | Kind::Learnt => Some(Proxy::start(&simulator).await?),
        };
        let http = reqwest::Client::builder()
            .retry(reqwest::retry::never())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(CLIENT_TIMEOUT)
            .build()
            .context("build the HTTP client")?;
        let side = Self { kind, scenario: Arc::clone(scenario), simulator, records, proxy, http };
        if kind == Kind::Learnt {
            side.learn().await.context("learn durations")?;
        }
        Ok(side)
    }

    fn url(&self, kind: &str) -> String {
        let base = match &self.proxy {
            None => self.simulator.base_url(),
            Some(proxy) => format!("http://{}", proxy.address),
        };
        format!("{base}/{SERVICE}/{kind}")
    }

    /// Looks up earlier tasks, from which the proxy learns durations.
    async fn learn(&self) -> anyhow::Result<()> {
        let now = self.records.unix_time(Instant::now());
        let mut ids = Vec::new();
        for (number, duration) in self.scenario.earlier_durations.iter().enumerate() {
            let id = format!("00000000-0000-4000-8001-{number:012}");
            let record = self.records.finished(&id, now - 3600.0, now - 3600.0 + duration);
            self.simulator.put_record(SERVICE, LEARNING_TOKEN, &id, record);
            ids.push(id);
        }
        let body = json!({"action": "retrieve_batch", "ids": ids}).to_string();
        let request = self.http.post(self.url("tasks")).bearer_auth(LEARNING_TOKEN);
        let response = request.header("content-type", "application/json").body(body).send().await?;
        let response: Value = serde_json::from_slice(&response.error_for_status()?.bytes().await?)?;
        ensure!(response["count"] == ids.len(), "{} of {} tasks found", response["count"], ids.len());
        self.simulator.clear_calls();
        Ok(())
    }

    /// Runs clients and tasks until the end of the scenario.
    pub(crate) async fn run(self, start: Instant) -> anyhow::Result<Row> {
        let (log, end) = (Arc::<Log>::default(), start + self.scenario.length);
        for (number, task) in self.scenario.tasks.iter().enumerate() {
            let id = spell(Id::Task(number));
            let record = self.records.pending(&id, self.records.unix_time(start + task.starts_after));
            self.simulator.put_record(SERVICE, &token(task.token), &id, record);
        }
        let url = self.url("tasks");
        let mut at_work = JoinSet::new();
        at_work.spawn(tokio::time::timeout_at(end, self.finishes(start, &log)));
        for submitter in &self.scenario.submitters {
            let starter = TaskStarter {
                submitter: *submitter,
                http: self.http.clone(),
                url: self.url("audios"),
                token: token(submitter.token),
                log: Arc::clone(&log),
            };
            at_work.spawn(tokio::time::timeout_at(end, starter.run(start)));
        }
        for client in &self.scenario.clients {
            let poller = Poller {
                client: client.clone(),
                http: self.http.clone(),
                url: url.clone(),
                token: token(client.token),
                ids: client.lookup.ids().iter().map(|id| spell(*id)).collect(),
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
        let (simulator, records) = (self.simulator.clone(), Arc::clone(&self.records));
        let (scenario, log) = (Arc::clone(&self.scenario), Arc::clone(log));
        let mut order: Vec<usize> =
            (0..scenario.tasks.len()).filter(|task| scenario.finishes(*task)).collect();
        order.sort_unstable_by_key(|task| scenario.tasks[*task].finishes_after);
        async move {
            for number in order {
                let (task, id) = (&scenario.tasks[number], spell(Id::Task(number)));
                tokio::time::sleep_until(start + task.finishes_after).await;
                log.lock().finished.insert(number, Instant::now());
                let at = |after: Duration| records.unix_time(start + after);
                let record = records.finished(&id, at(task.starts_after), at(task.finishes_after));
                simulator.put_record(SERVICE, &token(task.token), &id, record);
            }
        }
    }

    fn count(&self, log: &Log) -> Row {
        let mut tokens: BTreeMap<String, TokenCalls> = BTreeMap::new();
        for call in self.simulator.calls() {
            let entry = tokens.entry(call.token.unwrap_or_default());
            entry.or_insert_with(|| TokenCalls::new(call.at)).count(call.at);
        }
        let watched = self.scenario.clients.iter().flat_map(|client| client.lookup.ids());
        let is_finished = |id: &&Id| matches!(id, Id::Task(task) if self.scenario.finishes(*task));
        let watched = watched.filter(is_finished).count();
        let mut seen = std::mem::take(&mut *log.lock());
        seen.known.sort_unstable_by_key(|known| known.after);
        Row {
            kind: self.kind,
            upstream_calls: self.simulator.call_count(),
            too_many_requests_sent: self.simulator.rate_limited_calls(),
            never_known: watched - seen.known.len(),
            tokens,
            seen,
        }
    }
}

/// Records of tasks like those of the simulator, with other ids and times.
struct Records {
    pending: Map<String, Value>,
    finished: Map<String, Value>,
    has_created_at: bool,
    /// A time, and the same in Unix seconds by the simulator's clock.
    clock: (Instant, f64),
}

impl Records {
    fn new(simulator: &Simulator, kind: Kind) -> anyhow::Result<Self> {
        let sample = |id: String| -> anyhow::Result<Map<String, Value>> {
            let record = simulator.task_record(&id).context("create a sample task")?;
            serde_json::from_slice(&record).context("read a sample task")
        };
        let now = Instant::now();
        let pending = sample(simulator.create_pending(SERVICE, "sample"))?;
        let created_at = pending.get("created_at").and_then(Value::as_f64);
        Ok(Self {
            clock: (now, created_at.context("a task has no time of creation")?),
            pending,
            finished: sample(simulator.create_finished(SERVICE, "sample"))?,
            has_created_at: kind != Kind::Even,
        })
    }

    /// Returns a time after the start of the simulator in Unix seconds.
    fn unix_time(&self, at: Instant) -> f64 {
        let (start, unix_start) = self.clock;
        unix_start + at.saturating_duration_since(start).as_secs_f64()
    }

    /// Returns the record of a pending task. Times are Unix seconds.
    fn pending(&self, id: &str, created_at: f64) -> String {
        self.record(&self.pending, id, created_at).to_string()
    }

    fn finished(&self, id: &str, created_at: f64, finished_at: f64) -> String {
        let mut record = self.record(&self.finished, id, created_at);
        record["finished_at"] = finished_at.into();
        record.to_string()
    }

    fn record(&self, sample: &Map<String, Value>, id: &str, created_at: f64) -> Value {
        let mut record = sample.clone();
        record.insert("id".to_owned(), id.into());
        match self.has_created_at {
            true => record.insert("created_at".to_owned(), created_at.into()),
            false => record.remove("created_at"),
        };
        Value::Object(record)
    }
}

fn spell(id: Id) -> String {
    match id {
        Id::Task(number) => format!("00000000-0000-4000-8002-{number:012}"),
        Id::Unknown(number) => format!("00000000-0000-4000-8000-{number:012}"),
    }
}

pub(crate) fn token(number: usize) -> String {
    format!("storm-{number}")
}
