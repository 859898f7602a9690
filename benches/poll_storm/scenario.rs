//! Who asks for what and when, and when tasks finish: plain data, drawn from a seed.

use std::collections::HashSet;
use std::time::Duration;

use fastrand::Rng;

/// Before its first look nobody expects a task to be finished.
const SHORTEST_TASK: Duration = Duration::from_secs(5);

/// The end of a scenario, without finishes, so that those before it can become known.
const TAIL: Duration = Duration::from_secs(25);

/// A thousand tasks are started over this time.
const TEAM_START: Duration = Duration::from_secs(30);

/// A scenario that leaves some seconds for finishes after [`TEAM_START`].
pub(crate) const LEAST_LENGTH: Duration = Duration::from_secs(65);

/// How often a task is polled, and a dashboard refreshed.
const POLL_PAUSE: Duration = Duration::from_secs(1);
const REFRESH_PAUSE: Duration = Duration::from_secs(2);

/// A scenario that can be chosen.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// Whether the targets hold for it; else it is only measured.
    pub(crate) has_targets: bool,
    draw: fn(&mut Draw),
}

/// All of them, in their order.
pub(crate) const SCENARIOS: &[Plan] = &[
    Plan {
        name: "one-token",
        title: "200 tasks on one token, each polled every second",
        has_targets: true,
        draw: |draw| draw.polled_tasks(0, 200, POLL_PAUSE),
    },
    Plan {
        name: "dashboards",
        title: "20 dashboards, each refreshing the same 50 ids every 2 s",
        has_targets: true,
        draw: |draw| {
            let ids: Vec<_> = (0..50).map(|_| draw.task(0, Duration::ZERO)).collect();
            draw.dashboards(20, &ids);
        },
    },
    Plan {
        name: "thousand",
        title: "1,000 pending tasks on one token, started over 30 s",
        has_targets: true,
        draw: |draw| draw.polled_tasks(0, 1000, TEAM_START),
    },
    Plan {
        name: "thousand-at-once",
        title: "the same 1,000, all first asked for in one second (no target)",
        has_targets: false,
        draw: |draw| draw.polled_tasks(0, 1000, POLL_PAUSE),
    },
    Plan {
        name: "many-tokens",
        title: "50 tokens with 20 tasks each",
        has_targets: true,
        draw: |draw| (0..50).for_each(|token| draw.polled_tasks(token, 20, POLL_PAUSE)),
    },
    Plan {
        name: "one-id",
        title: "200 clients on one id",
        has_targets: true,
        draw: |draw| {
            let id = draw.task(0, Duration::ZERO);
            (0..200).for_each(|_| draw.poller(0, id, POLL_PAUSE));
        },
    },
    Plan {
        name: "mixed",
        title: "100 polled tasks, 5 dashboards of 50 ids, 20 ids that do not exist",
        has_targets: true,
        draw: |draw| {
            draw.polled_tasks(0, 100, POLL_PAUSE);
            // 30 of the polled tasks, 10 that only dashboards show, 10 that do not exist.
            let own: Vec<_> = (0..10).map(|_| draw.task(0, Duration::ZERO)).collect();
            let ids: Vec<_> = (0..30).map(Id::Task).chain(own).chain((0..10).map(Id::Unknown)).collect();
            draw.dashboards(5, &ids);
            (0..20).for_each(|unknown| draw.poller(0, Id::Unknown(unknown), POLL_PAUSE));
        },
    },
];

/// A scenario, drawn.
pub(crate) struct Scenario {
    pub(crate) title: &'static str,
    pub(crate) has_targets: bool,
    pub(crate) tasks: Vec<Task>,
    pub(crate) clients: Vec<Client>,
}

/// A task: whose it is and when it finishes, from the start of the scenario.
pub(crate) struct Task {
    pub(crate) token: usize,
    pub(crate) finishes_after: Duration,
}

/// A client: what it asks for again and again.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) token: usize,
    pub(crate) starts_after: Duration,
    /// From an answer to the next question.
    pub(crate) pause: Duration,
    pub(crate) asks: Asks,
}

/// What a client asks for.
#[derive(Clone)]
pub(crate) enum Asks {
    /// `retrieve`, until the task is finished.
    One(Id),
    /// `retrieve_batch`, without end.
    Many(Vec<Id>),
}

/// An id, by its place in the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Task(usize),
    /// One that the upstream does not know.
    Unknown(usize),
}

impl Plan {
    /// Draws starts and finishes: the same for the same seed.
    pub(crate) fn build(&self, seed: u64, length: Duration) -> Scenario {
        let mut draw = Draw { rng: Rng::with_seed(seed), length, tasks: Vec::new(), clients: Vec::new() };
        (self.draw)(&mut draw);
        let Draw { tasks, clients, .. } = draw;
        Scenario { title: self.title, has_targets: self.has_targets, tasks, clients }
    }
}

impl Scenario {
    /// The most distinct ids that are asked for with one token.
    pub(crate) fn most_wanted(&self) -> usize {
        let mut wanted: Vec<HashSet<Id>> = Vec::new();
        for client in &self.clients {
            wanted.resize_with(wanted.len().max(client.token + 1), HashSet::new);
            wanted[client.token].extend(client.asks.ids());
        }
        wanted.iter().map(HashSet::len).max().unwrap_or(0)
    }
}

impl Asks {
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
    /// A task that starts then and finishes at any time before the tail.
    fn task(&mut self, token: usize, starts_after: Duration) -> Id {
        let finishes_after = self.between(starts_after + SHORTEST_TASK, self.length - TAIL);
        self.tasks.push(Task { token, finishes_after });
        Id::Task(self.tasks.len() - 1)
    }

    /// Tasks with a poller each, started at any time within `over`.
    fn polled_tasks(&mut self, token: usize, count: usize, over: Duration) {
        for _ in 0..count {
            let starts_after = self.between(Duration::ZERO, over);
            let id = self.task(token, starts_after);
            self.clients.push(Client { token, starts_after, pause: POLL_PAUSE, asks: Asks::One(id) });
        }
    }

    /// One more client that polls an id.
    fn poller(&mut self, token: usize, id: Id, over: Duration) {
        let starts_after = self.between(Duration::ZERO, over);
        self.clients.push(Client { token, starts_after, pause: POLL_PAUSE, asks: Asks::One(id) });
    }

    fn dashboards(&mut self, count: usize, ids: &[Id]) {
        for _ in 0..count {
            let starts_after = self.between(Duration::ZERO, REFRESH_PAUSE);
            let asks = Asks::Many(ids.to_vec());
            self.clients.push(Client { token: 0, starts_after, pause: REFRESH_PAUSE, asks });
        }
    }

    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        from + (to - from).mul_f64(self.rng.f64())
    }
}
