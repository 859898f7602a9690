//! Clients and tasks of a scenario: plain data, drawn from a seed.

use std::collections::HashSet;
use std::time::Duration;

use fastrand::Rng;

use crate::side::Kind;

/// Shortest time from start to finish of a task.
const SHORTEST_TASK: Duration = Duration::from_secs(5);

/// End of a scenario in which no task finishes, so that clients can receive all final records.
const TAIL: Duration = Duration::from_secs(25);

/// Time over which a thousand tasks start.
const TEAM_START: Duration = Duration::from_secs(30);

/// Time over which the few tasks of a token start.
const FEW_START: Duration = Duration::from_secs(10);

/// Median of log-normal durations in seconds.
const MEDIAN_SECONDS: f64 = 60.0;

/// Length of a scenario with log-normal durations. Two median durations pass before its tail.
const LOG_NORMAL_LENGTH: Duration = Duration::from_secs(150);

/// Shortest scenario. It leaves some seconds for finishes after [`TEAM_START`].
pub(crate) const LEAST_LENGTH: Duration = Duration::from_secs(65);

/// Number of earlier tasks from which a side may learn.
const EARLIER_TASKS: usize = 200;

/// Pause between two polls of a task.
const POLL_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two refreshes of a dashboard.
const REFRESH_PAUSE: Duration = Duration::from_secs(2);

/// Pause of the vendor's SDK between two polls, when a client waits for one task.
const SDK_PAUSE: Duration = Duration::from_secs(3);
/// Time between two requests that start a task.
const SUBMIT_INTERVAL: Duration = Duration::from_secs(4);

/// A scenario of the command line.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    /// Label in the tables.
    pub(crate) title: &'static str,
    pub(crate) description: &'static str,
    /// Whether it needs so little processor time that others may run at the same time.
    pub(crate) is_light: bool,
    durations: TaskDurations,
    comparison: Option<Comparison>,
    draw: fn(&mut Draw),
}

/// Distribution of the time from start to finish of a task.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TaskDurations {
    /// Finishes are uniform from [`SHORTEST_TASK`] after the start to the tail of the scenario.
    Uniform,
    /// Log-normal with a median of a minute. Tasks that would finish in the tail stay pending.
    LogNormal { sigma: f64 },
}

/// Sides with and without learnt durations, and what the learnt durations have to be good for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Comparison {
    /// Measured only.
    Measured,
    /// Largest ratio of the median times until a final record is known.
    Median { ratio: f64 },
    /// Largest ratio of the upstream calls, with most final records known within a time.
    Calls { ratio: f64, p95: Duration },
}

/// Most calls and latest news with learnt durations, for few tasks.
const FEW_TASKS: Comparison = Comparison::Calls { ratio: 0.5, p95: Duration::from_millis(1500) };

/// All scenarios, in their order.
pub(crate) const SCENARIOS: &[Plan] = &[
    Plan {
        name: "one-token",
        title: "200 tasks",
        description: "200 tasks on one token, each polled every second",
        is_light: true,
        durations: TaskDurations::Uniform,
        comparison: None,
        draw: |draw| draw.polled_tasks(0, 200, POLL_PAUSE),
    },
    Plan {
        name: "dashboards",
        title: "20 dashboards",
        description: "20 dashboards, each refreshing the same 50 ids every 2 s",
        is_light: true,
        durations: TaskDurations::Uniform,
        comparison: None,
        draw: |draw| {
            let ids: Vec<_> = (0..50).map(|_| draw.task(0, Duration::ZERO)).collect();
            draw.dashboards(20, &ids);
        },
    },
    Plan {
        name: "one-id",
        title: "one id",
        description: "200 clients on one id",
        is_light: true,
        durations: TaskDurations::Uniform,
        comparison: None,
        draw: |draw| {
            let id = draw.task(0, Duration::ZERO);
            (0..200).for_each(|_| draw.poller(0, id, POLL_PAUSE));
        },
    },
    Plan {
        name: "mixed",
        title: "mixed",
        description: "100 polled tasks, 20 polled ids that do not exist, 5 dashboards of 50 ids",
        is_light: true,
        durations: TaskDurations::Uniform,
        comparison: None,
        draw: |draw| {
            draw.polled_tasks(0, 100, POLL_PAUSE);
            // 30 of the polled tasks, 10 tasks of the dashboards only, 10 ids that do not exist.
            let own: Vec<_> = (0..10).map(|_| draw.task(0, Duration::ZERO)).collect();
            let ids: Vec<_> = (0..30).map(Id::Task).chain(own).chain((0..10).map(Id::Unknown)).collect();
            draw.dashboards(5, &ids);
            (0..20).for_each(|unknown| draw.poller(0, Id::Unknown(unknown), POLL_PAUSE));
        },
    },
    Plan {
        name: "submissions",
        title: "submissions",
        description: "200 polled tasks, and a request that starts a task every 4 s with the same token",
        is_light: true,
        durations: TaskDurations::Uniform,
        comparison: None,
        draw: |draw| {
            draw.polled_tasks(0, 200, POLL_PAUSE);
            draw.submitters.push(Submitter { token: 0, interval: SUBMIT_INTERVAL });
        },
    },
    Plan {
        name: "waiter",
        title: "waiter",
        description: "20 tokens, each with one client that sends `prefer: wait=60`; directly it polls every 3 s",
        is_light: true,
        durations: TaskDurations::Uniform,
        comparison: None,
        draw: |draw| (0..20).for_each(|token| draw.waiter(token)),
    },
    Plan {
        name: "few-0.2",
        title: "1 to 5 tasks, σ 0.2",
        description: "20 tokens with 1 to 5 polled tasks each, log-normal durations with sigma 0.2",
        is_light: true,
        durations: TaskDurations::LogNormal { sigma: 0.2 },
        comparison: Some(FEW_TASKS),
        draw: Draw::few_tasks,
    },
    Plan {
        name: "few-0.3",
        title: "1 to 5 tasks, σ 0.3",
        description: "the same with sigma 0.3",
        is_light: true,
        durations: TaskDurations::LogNormal { sigma: 0.3 },
        comparison: Some(FEW_TASKS),
        draw: Draw::few_tasks,
    },
    Plan {
        name: "thousand",
        title: "1,000 tasks",
        description: "1,000 pending tasks on one token, started over 30 s",
        is_light: false,
        durations: TaskDurations::Uniform,
        comparison: None,
        draw: |draw| draw.polled_tasks(0, 1000, TEAM_START),
    },
    Plan {
        name: "many-tokens",
        title: "50 tokens",
        description: "50 tokens with 20 tasks each",
        is_light: false,
        durations: TaskDurations::Uniform,
        comparison: None,
        draw: |draw| (0..50).for_each(|token| draw.polled_tasks(token, 20, POLL_PAUSE)),
    },
    Plan {
        name: "thousand-at-once",
        title: "1,000 at once",
        description: "1,000 tasks, all started and first looked up within one second, sigma 0.3",
        is_light: false,
        durations: TaskDurations::LogNormal { sigma: 0.3 },
        comparison: Some(Comparison::Measured),
        draw: |draw| draw.polled_tasks(0, 1000, POLL_PAUSE),
    },
    Plan {
        name: "stream",
        title: "stream of tasks",
        description: "tasks start all the time, 1,000 are pending on one token, sigma 0.3",
        is_light: false,
        durations: TaskDurations::LogNormal { sigma: 0.3 },
        comparison: Some(Comparison::Median { ratio: 0.4 }),
        draw: |draw| {
            // Pending tasks are starts per second times the mean duration, 62.8 s.
            let over = draw.length - TAIL;
            let count = (1000.0 / 62.8 * over.as_secs_f64()) as usize;
            draw.polled_tasks(0, count, over);
        },
    },
];

/// A drawn scenario.
pub(crate) struct Scenario {
    pub(crate) title: &'static str,
    pub(crate) comparison: Option<Comparison>,
    pub(crate) length: Duration,
    pub(crate) tasks: Vec<Task>,
    pub(crate) clients: Vec<Client>,
    pub(crate) submitters: Vec<Submitter>,
    /// Durations, in seconds, of earlier tasks from which a side may learn.
    pub(crate) earlier_durations: Vec<f64>,
}

/// A task: its token, its start and its finish after the start of the scenario.
pub(crate) struct Task {
    pub(crate) token: usize,
    pub(crate) starts_after: Duration,
    pub(crate) finishes_after: Duration,
}

/// A client that polls.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) token: usize,
    pub(crate) starts_after: Duration,
    /// Time from a response to the next lookup.
    pub(crate) pause: Duration,
    /// Value of the header `prefer`, which the upstream ignores.
    pub(crate) prefer: Option<&'static str>,
    pub(crate) lookup: Lookup,
}

/// A client that starts tasks at a fixed interval.
#[derive(Clone, Copy)]
pub(crate) struct Submitter {
    pub(crate) token: usize,
    pub(crate) interval: Duration,
}

/// The lookup of a client.
#[derive(Clone)]
pub(crate) enum Lookup {
    /// `retrieve`, until the record is final.
    One(Id),
    /// `retrieve_batch`, without end.
    Many(Vec<Id>),
}

/// An id, by its index in the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Task(usize),
    /// An id that the upstream does not know.
    Unknown(usize),
}

impl Plan {
    /// Draws starts and finishes. The same seed produces the same scenario. `length` is that of a
    /// scenario with uniform finishes.
    pub(crate) fn build(&self, seed: u64, length: Duration) -> Scenario {
        let length = match self.durations {
            TaskDurations::Uniform => length,
            TaskDurations::LogNormal { .. } => LOG_NORMAL_LENGTH,
        };
        let mut draw = Draw {
            rng: Rng::with_seed(seed),
            length,
            durations: self.durations,
            tasks: Vec::new(),
            clients: Vec::new(),
            submitters: Vec::new(),
        };
        (self.draw)(&mut draw);
        let earlier_durations = (0..EARLIER_TASKS).map(|_| draw.duration().as_secs_f64()).collect();
        let Draw { tasks, clients, submitters, .. } = draw;
        Scenario {
            title: self.title,
            comparison: self.comparison,
            length,
            tasks,
            clients,
            submitters,
            earlier_durations,
        }
    }
}

impl Scenario {
    /// The sides to compare.
    pub(crate) fn kinds(&self) -> &'static [Kind] {
        match self.comparison {
            None => &[Kind::Direct, Kind::Refrain],
            Some(_) => &[Kind::Direct, Kind::Even, Kind::Learnt],
        }
    }

    /// Whether the task finishes before the tail.
    pub(crate) fn finishes(&self, task: usize) -> bool {
        self.tasks[task].finishes_after <= self.length - TAIL
    }

    /// Distinct ids that each token looks up, by token.
    pub(crate) fn ids_per_token(&self) -> Vec<HashSet<Id>> {
        let mut ids: Vec<HashSet<Id>> = Vec::new();
        for client in &self.clients {
            ids.resize_with(ids.len().max(client.token + 1), HashSet::new);
            ids[client.token].extend(client.lookup.ids());
        }
        ids
    }

    /// Whether clients look up single ids that do not exist.
    pub(crate) fn has_single_unknown_ids(&self) -> bool {
        self.clients.iter().any(|client| matches!(client.lookup, Lookup::One(Id::Unknown(_))))
    }
}

impl Lookup {
    pub(crate) fn ids(&self) -> &[Id] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

struct Draw {
    rng: Rng,
    length: Duration,
    durations: TaskDurations,
    tasks: Vec<Task>,
    clients: Vec<Client>,
    submitters: Vec<Submitter>,
}

impl Draw {
    /// Adds a task that starts at this time.
    fn task(&mut self, token: usize, starts_after: Duration) -> Id {
        let finishes_after = match self.durations {
            TaskDurations::Uniform => self.between(starts_after + SHORTEST_TASK, self.length - TAIL),
            TaskDurations::LogNormal { .. } => starts_after + self.duration(),
        };
        self.tasks.push(Task { token, starts_after, finishes_after });
        Id::Task(self.tasks.len() - 1)
    }

    /// Draws the duration of a task that starts at the beginning.
    fn duration(&mut self) -> Duration {
        match self.durations {
            TaskDurations::Uniform => self.between(SHORTEST_TASK, self.length - TAIL),
            TaskDurations::LogNormal { sigma } => {
                // Box-Muller transform.
                let radius = (-2.0 * (1.0 - self.rng.f64()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * self.rng.f64()).cos();
                Duration::from_secs_f64(MEDIAN_SECONDS * (sigma * normal).exp())
            }
        }
    }

    /// Adds tasks with one client each, started within `over`.
    fn polled_tasks(&mut self, token: usize, count: usize, over: Duration) {
        for _ in 0..count {
            let starts_after = self.between(Duration::ZERO, over);
            let id = self.task(token, starts_after);
            self.client(token, starts_after, POLL_PAUSE, Lookup::One(id));
        }
    }

    /// Adds four tokens with one polled task each, four with two, and so on up to five.
    fn few_tasks(&mut self) {
        for token in 0..20 {
            self.polled_tasks(token, token / 4 + 1, FEW_START);
        }
    }

    /// Adds a client that polls an id.
    fn poller(&mut self, token: usize, id: Id, over: Duration) {
        let starts_after = self.between(Duration::ZERO, over);
        self.client(token, starts_after, POLL_PAUSE, Lookup::One(id));
    }

    /// Adds a task with a client that waits for its end.
    fn waiter(&mut self, token: usize) {
        let id = self.task(token, Duration::ZERO);
        self.client(token, Duration::ZERO, SDK_PAUSE, Lookup::One(id));
        self.clients.last_mut().expect("it was added").prefer = Some("wait=60");
    }

    fn dashboards(&mut self, count: usize, ids: &[Id]) {
        for _ in 0..count {
            let starts_after = self.between(Duration::ZERO, REFRESH_PAUSE);
            self.client(0, starts_after, REFRESH_PAUSE, Lookup::Many(ids.to_vec()));
        }
    }

    fn client(&mut self, token: usize, starts_after: Duration, pause: Duration, lookup: Lookup) {
        self.clients.push(Client { token, starts_after, pause, prefer: None, lookup });
    }

    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        from + (to - from).mul_f64(self.rng.f64())
    }
}
