//! Clients and tasks of a scenario: plain data, drawn from a seed.

use std::collections::HashSet;
use std::time::Duration;

use fastrand::Rng;

/// Shortest time from start to finish of a task.
const SHORTEST_TASK: Duration = Duration::from_secs(5);

/// End of a scenario in which no task finishes, so that clients can receive all final records.
const TAIL: Duration = Duration::from_secs(25);

/// Time over which a thousand tasks start.
const TEAM_START: Duration = Duration::from_secs(30);

/// Shortest scenario. It leaves some seconds for finishes after [`TEAM_START`].
pub(crate) const LEAST_LENGTH: Duration = Duration::from_secs(65);

/// Pause between two polls of a task.
const POLL_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two refreshes of a dashboard.
const REFRESH_PAUSE: Duration = Duration::from_secs(2);

/// A scenario of the command line.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    /// Label in the tables.
    pub(crate) title: &'static str,
    pub(crate) description: &'static str,
    /// Whether the targets apply; otherwise the scenario is only measured.
    pub(crate) has_targets: bool,
    draw: fn(&mut Draw),
}

/// All scenarios, in their order.
pub(crate) const SCENARIOS: &[Plan] = &[
    Plan {
        name: "one-token",
        title: "200 tasks",
        description: "200 tasks on one token, each polled every second",
        has_targets: true,
        draw: |draw| draw.polled_tasks(0, 200, POLL_PAUSE),
    },
    Plan {
        name: "dashboards",
        title: "20 dashboards",
        description: "20 dashboards, each refreshing the same 50 ids every 2 s",
        has_targets: true,
        draw: |draw| {
            let ids: Vec<_> = (0..50).map(|_| draw.task(0, Duration::ZERO)).collect();
            draw.dashboards(20, &ids);
        },
    },
    Plan {
        name: "thousand",
        title: "1,000 tasks",
        description: "1,000 pending tasks on one token, started over 30 s",
        has_targets: true,
        draw: |draw| draw.polled_tasks(0, 1000, TEAM_START),
    },
    Plan {
        name: "thousand-at-once",
        title: "1,000 at once",
        description: "the same 1,000, all first looked up within one second; no target",
        has_targets: false,
        draw: |draw| draw.polled_tasks(0, 1000, POLL_PAUSE),
    },
    Plan {
        name: "many-tokens",
        title: "50 tokens",
        description: "50 tokens with 20 tasks each",
        has_targets: true,
        draw: |draw| (0..50).for_each(|token| draw.polled_tasks(token, 20, POLL_PAUSE)),
    },
    Plan {
        name: "one-id",
        title: "one id",
        description: "200 clients on one id",
        has_targets: true,
        draw: |draw| {
            let id = draw.task(0, Duration::ZERO);
            (0..200).for_each(|_| draw.poller(0, id, POLL_PAUSE));
        },
    },
    Plan {
        name: "mixed",
        title: "mixed",
        description: "100 polled tasks, 20 polled ids that do not exist, 5 dashboards of 50 ids",
        has_targets: true,
        draw: |draw| {
            draw.polled_tasks(0, 100, POLL_PAUSE);
            // 30 of the polled tasks, 10 tasks of the dashboards only, 10 ids that do not exist.
            let own: Vec<_> = (0..10).map(|_| draw.task(0, Duration::ZERO)).collect();
            let ids: Vec<_> = (0..30).map(Id::Task).chain(own).chain((0..10).map(Id::Unknown)).collect();
            draw.dashboards(5, &ids);
            (0..20).for_each(|unknown| draw.poller(0, Id::Unknown(unknown), POLL_PAUSE));
        },
    },
];

/// A drawn scenario.
pub(crate) struct Scenario {
    pub(crate) title: &'static str,
    pub(crate) description: &'static str,
    pub(crate) has_targets: bool,
    pub(crate) tasks: Vec<Task>,
    pub(crate) clients: Vec<Client>,
}

/// A task: its token, and its finish after the start of the scenario.
pub(crate) struct Task {
    pub(crate) token: usize,
    pub(crate) finishes_after: Duration,
}

/// A client that polls.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) token: usize,
    pub(crate) starts_after: Duration,
    /// Time from a response to the next lookup.
    pub(crate) pause: Duration,
    pub(crate) lookup: Lookup,
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
    /// Draws starts and finishes. The same seed produces the same scenario.
    pub(crate) fn build(&self, seed: u64, length: Duration) -> Scenario {
        let mut draw = Draw { rng: Rng::with_seed(seed), length, tasks: Vec::new(), clients: Vec::new() };
        (self.draw)(&mut draw);
        let Draw { tasks, clients, .. } = draw;
        Scenario {
            title: self.title,
            description: self.description,
            has_targets: self.has_targets,
            tasks,
            clients,
        }
    }
}

impl Scenario {
    /// Largest number of distinct ids that one token looks up.
    pub(crate) fn most_ids_per_token(&self) -> usize {
        let mut ids: Vec<HashSet<Id>> = Vec::new();
        for client in &self.clients {
            ids.resize_with(ids.len().max(client.token + 1), HashSet::new);
            ids[client.token].extend(client.lookup.ids());
        }
        ids.iter().map(HashSet::len).max().unwrap_or(0)
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
    tasks: Vec<Task>,
    clients: Vec<Client>,
}

impl Draw {
    /// Adds a task that starts at this time and finishes before the tail.
    fn task(&mut self, token: usize, starts_after: Duration) -> Id {
        let finishes_after = self.between(starts_after + SHORTEST_TASK, self.length - TAIL);
        self.tasks.push(Task { token, finishes_after });
        Id::Task(self.tasks.len() - 1)
    }

    /// Adds tasks with one client each, started within `over`.
    fn polled_tasks(&mut self, token: usize, count: usize, over: Duration) {
        for _ in 0..count {
            let starts_after = self.between(Duration::ZERO, over);
            let id = self.task(token, starts_after);
            self.clients.push(Client { token, starts_after, pause: POLL_PAUSE, lookup: Lookup::One(id) });
        }
    }

    /// Adds a client that polls an id.
    fn poller(&mut self, token: usize, id: Id, over: Duration) {
        let starts_after = self.between(Duration::ZERO, over);
        self.clients.push(Client { token, starts_after, pause: POLL_PAUSE, lookup: Lookup::One(id) });
    }

    fn dashboards(&mut self, count: usize, ids: &[Id]) {
        for _ in 0..count {
            let starts_after = self.between(Duration::ZERO, REFRESH_PAUSE);
            let lookup = Lookup::Many(ids.to_vec());
            self.clients.push(Client { token: 0, starts_after, pause: REFRESH_PAUSE, lookup });
        }
    }

    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        from + (to - from).mul_f64(self.rng.f64())
    }
}
