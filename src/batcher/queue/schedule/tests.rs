//! Simulations of the schedule without clock and I/O: one call per second for tasks with random
//! durations.

use super::*;
use crate::batcher::outcome::{LookupKind, LookupOptions};
use crate::batcher::queue::{FetchOutcome, Queue, SweepScope, WaitingLookup};
use crate::batcher::waiter::Waiter;
use crate::task::{Durations, Service};
use bytes::Bytes;

/// Task of the simulation. Times in seconds since its start.
#[derive(Clone, Copy, Debug)]
struct SimulatedTask {
    created: f64,
    finished: f64,
}

struct Simulation {
    start: Instant,
    now: f64,
    service: Service,
    durations: Durations,
    queue: Queue,
    tasks: HashMap<TaskId, SimulatedTask>,
    next: usize,
    random: fastrand::Rng,
    median: f64,
    sigma: f64,
    learns: bool,
    /// Whether tasks are known from their creation. Otherwise a third of the calls is for new ones.
    first_fetch_is_free: bool,
}

/// Result of a simulation.
#[derive(Debug)]
struct Report {
    /// Times from the end of a task to its fetch, in seconds, sorted.
    undetected: Vec<f64>,
    /// Longest time between two fetches of a task, in cycles of an even order and in seconds.
    longest_gap: f64,
    /// Number of fetches so late that a lookup could have timed out: its snapshot was too old, and
    /// then it waited for `queue_timeout`.
    too_late: usize,
}

impl Report {
    fn median(&self) -> f64 {
        self.undetected[self.undetected.len() / 2]
    }
}

impl Simulation {
    fn new(sigma: f64, learns: bool, first_fetch_is_free: bool) -> Self {
        Self {
            start: Instant::now(),
            now: 0.0,
            service: Service::parse("producer").unwrap(),
            durations: Durations::default(),
            queue: Queue::default(),
            tasks: HashMap::new(),
            next: 0,
            random: fastrand::Rng::with_seed(7),
            median: 60.0,
            sigma,
            learns,
            first_fetch_is_free,
        }
    }

    fn context(&self) -> QueueContext<'_> {
        QueueContext {
            now: self.start + Duration::from_secs_f64(self.now),
            service: &self.service,
            durations: &self.durations,
            max_batch: 50,
            max_ids: 100_000,
            free_ids: 100_000,
            pending_max_age: Duration::ZERO,
            pending_max_stale: Duration::from_secs(15),
            queue_timeout: Duration::from_secs(25),
            rate: 1.0,
            paused_for: Duration::ZERO,
            caches_snapshots: true,
            is_empty_while_pending: false,
        }
    }

    /// Draws a log-normal duration.
    fn duration(&mut self) -> f64 {
        let (one, other) = (self.random.f64().max(1e-12), self.random.f64());
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos();
        self.median * (self.sigma * normal).exp()
    }

    fn add_task(&mut self, age: f64) {
        let duration = self.duration();
        let id = TaskId::parse(&format!("t{}", self.next)).unwrap();
        self.next += 1;
        let created = self.now - age.min(duration * 0.99);
        if self.first_fetch_is_free {
            self.enqueue(&id);
            let record = Bytes::from_static(b"{}");
            let task_age = Some(Duration::from_secs_f64(self.now - created));
            let mut queue = std::mem::take(&mut self.queue);
            queue.complete(&self.context(), &id, FetchOutcome::Pending { record, task_age, kind: None });
            self.queue = queue;
        }
        self.tasks.insert(id, SimulatedTask { created, finished: created + duration });
    }

    /// Looks up a task without waiting for the result.
    fn enqueue(&mut self, id: &TaskId) {
        let waiter = Waiter::new(vec![None]);
        let options = LookupOptions::new(LookupKind::Single);
        let ids = std::slice::from_ref(id);
        let mut queue = std::mem::take(&mut self.queue);
        let context = self.context();
        let lookup = WaitingLookup { ids, waiter: &waiter, options: &options, arrived_at: context.now };
        queue.enqueue(&context, &lookup);
        queue.leave(&context, &lookup, Some(Duration::from_secs(3600)));
        self.queue = queue;
    }

    /// Simulates calls, one per second, while `pending` tasks are pending all the time and every task
    /// is looked up once a second.
    fn run(mut self, pending: usize, seconds: usize) -> Report {
        let mut report = Report { undetected: Vec::new(), longest_gap: 0.0, too_late: 0 };
        for number in 0..pending {
            self.add_task(60.0 * number as f64 / pending as f64);
        }
        let mut last_fetch: HashMap<TaskId, f64> = HashMap::new();
        for second in 0..seconds {
            self.now = second as f64;
            // A task that finished is replaced by a new one at once.
            let running = self.tasks.values().filter(|task| task.finished > self.now).count();
            for _ in running..pending {
                self.add_task(0.0);
            }
            for id in self.tasks.keys().cloned().collect::<Vec<_>>() {
                self.enqueue(&id);
            }
            let mut queue = std::mem::take(&mut self.queue);
            let call = queue.take_call(&self.context());
            self.queue = queue;
            let Some(call) = call else { continue };
            for id in call.ids {
                let task = self.tasks[&id];
                if let Some(before) = last_fetch.insert(id.clone(), self.now) {
                    report.longest_gap = report.longest_gap.max(self.now - before);
                }
                if let Some(snapshot) = &self.queue.entries.map[&id].snapshot {
                    let context = self.context();
                    let usable_for = snapshot.two_cycles.max(context.pending_max_stale);
                    let times_out_at = snapshot.fetched_at + usable_for + context.queue_timeout;
                    report.too_late += usize::from(context.now > times_out_at);
                }
                let is_finished = task.finished <= self.now;
                let record = Bytes::from_static(b"{}");
                let outcome = if is_finished {
                    let source = crate::batcher::outcome::RecordSource::Upstream { is_stored: true };
                    FetchOutcome::Final { record, source }
                } else {
                    let task_age = Some(Duration::from_secs_f64(self.now - task.created));
                    FetchOutcome::Pending { record, task_age, kind: None }
                };
                let mut queue = std::mem::take(&mut self.queue);
                queue.complete(&self.context(), &id, outcome);
                self.queue = queue;
                if is_finished {
                    if second > seconds / 3 {
                        report.undetected.push(self.now - task.finished);
                    }
                    if self.learns {
                        self.durations.record(&self.service, None, task.finished - task.created);
                    }
                    self.tasks.remove(&id);
                    last_fetch.remove(&id);
                }
            }
            self.queue.end_call();
        }
        report.undetected.sort_by(f64::total_cmp);
        report
    }
}

/// `cargo test --lib schedule -- --nocapture` prints the figures.
#[test]
fn learnt_durations_bring_earlier_news_than_even_order() {
    for (pending, is_free, sigma, most) in [
        (1000, true, 0.2, 0.4),
        (1000, true, 0.4, 0.75),
        (1000, false, 0.2, 0.4),
        (1000, false, 0.3, 0.5),
        (1000, false, 0.8, 1.05),
    ] {
        let even = Simulation::new(sigma, false, is_free).run(pending, 250);
        let learnt = Simulation::new(sigma, true, is_free).run(pending, 250);
        eprintln!(
            "{pending} pending, first fetch free {is_free}, sigma {sigma}: median {:.1} s even, {:.1} s learnt; \
             longest gap {:.0} s and {:.0} s",
            even.median(),
            learnt.median(),
            even.longest_gap,
            learnt.longest_gap,
        );
        assert!(learnt.median() <= most * even.median(), "{pending} pending, sigma {sigma}");
        assert_eq!((even.too_late, learnt.too_late), (0, 0), "{pending} pending, sigma {sigma}");
    }
}

/// `cargo test --release --lib order_of_10_000 -- --nocapture` prints the figures.
#[test]
fn order_of_10_000_ids_takes_linear_time() {
    for is_known in [false, true] {
        let mut simulation = Simulation::new(0.3, true, is_known);
        for _ in 0..100 {
            simulation.durations.record(&simulation.service, None, 60.0);
        }
        for _ in 0..10_000 {
            simulation.add_task(60.0);
        }
        simulation.now = 20.0;
        for id in simulation.tasks.keys().cloned().collect::<Vec<_>>() {
            simulation.enqueue(&id);
        }
        for round in 0..5 {
            simulation.now = f64::from(20 + round);
            let mut queue = std::mem::take(&mut simulation.queue);
            let start = std::time::Instant::now();
            let call = queue.take_call(&simulation.context()).expect("a call");
            let took = start.elapsed();
            eprintln!("10,000 queued ids, known {is_known}: a call of {} taken in {took:?}", call.ids.len());
            assert_eq!(call.ids.len(), 50);
            simulation.queue = queue;
        }
    }
}

#[test]
fn queued_id_whose_snapshot_expired_counts_as_new() {
    let mut simulation = Simulation::new(0.3, false, true);
    simulation.add_task(0.0);
    let id = TaskId::parse("t0").unwrap();
    simulation.now = 2.0;
    simulation.enqueue(&id);
    let counts = |simulation: &Simulation| {
        let counts = &simulation.queue.entries.counts;
        (counts.new, counts.known)
    };
    assert_eq!(counts(&simulation), (0, 1));
    simulation.now = 60.0;
    let mut queue = std::mem::take(&mut simulation.queue);
    queue.sweep(&simulation.context(), SweepScope::Expired);
    simulation.queue = queue;
    assert_eq!(counts(&simulation), (1, 0));
}
