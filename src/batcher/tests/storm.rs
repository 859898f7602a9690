//! A simulation: a thousand pending tasks, each polled every second, against one token's rate.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::LocalSet;

use super::lab::*;
use super::world::*;
use crate::batcher::TaskOutcome;

#[derive(Default)]
struct Report {
    polls: usize,
    failures_before_seen: usize,
    failures: usize,
    oldest: Duration,
    latest_finish: Duration,
    known: usize,
    last_seen_first: Duration,
}

impl Report {
    /// Notes what a poller was told; whether it need not ask again.
    fn note(&mut self, outcome: &TaskOutcome, seen: &mut bool, now: Duration, finish: Duration) -> bool {
        self.polls += 1;
        match outcome {
            TaskOutcome::Final { .. } => {
                self.known += 1;
                self.latest_finish = self.latest_finish.max(now.saturating_sub(finish));
            }
            TaskOutcome::Pending { record, freshness } => {
                let true_age = now - true_at(record);
                assert!(
                    true_age.abs_diff(freshness.age()) <= Duration::from_millis(11),
                    "old news told as new"
                );
                self.oldest = self.oldest.max(true_age);
                if !*seen {
                    self.last_seen_first = self.last_seen_first.max(now);
                }
                *seen = true;
            }
            TaskOutcome::Failed(_) if *seen => self.failures += 1,
            TaskOutcome::Failed(_) => self.failures_before_seen += 1,
            other => panic!("{other:?}"),
        }
        is_finished(outcome)
    }
}

/// Polls one task as a plain client does: asks, waits a second, asks again.
async fn poll(lab: Lab, name: String, finish: Duration, end: Duration, report: Rc<RefCell<Report>>) {
    let mut seen = false;
    while lab.since_start() < end {
        let outcome = lab.ask_one(&name).await;
        let now = lab.since_start();
        if report.borrow_mut().note(&outcome, &mut seen, now, finish) {
            return;
        }
        pass(1.0).await;
    }
}

async fn storm(seed: u64, tasks: usize, length: f64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let lab = Lab::new();
    lab.sweep();
    let report = Rc::new(RefCell::new(Report::default()));
    let pollers = LocalSet::new();
    let mut finished = 0;
    for name in names("a", tasks) {
        // Half of them finish at some time, the others go on.
        let finish = seconds(random.f64() * 2.0 * length);
        lab.finishing(&name, finish);
        finished += usize::from(finish < seconds(length - 30.0));
        let (lab, report, begin) = (lab.clone(), Rc::clone(&report), random.f64());
        pollers.spawn_local(async move {
            pass(begin).await;
            poll(lab, name, finish, seconds(length), report).await;
        });
    }
    pollers.await;
    let report = report.borrow();
    let calls: Vec<Call> = lab.calls().into_iter().filter(|call| call.at < seconds(length)).collect();
    let cycle = tasks as f64 / 50.0;
    let context = format!(
        "seed {seed}: {} polls, {} calls, {} failures before and {} after the first sight (all seen by {:?}), \
         oldest {:?}, latest finish {:?}",
        report.polls,
        calls.len(),
        report.failures_before_seen,
        report.failures,
        report.last_seen_first,
        report.oldest,
        report.latest_finish,
    );
    assert_eq!(report.failures, 0, "{context}");
    assert!(report.last_seen_first <= seconds(cycle + 2.0), "{context}");
    assert!(report.oldest <= seconds(2.0 * cycle + 2.0), "{context}");
    assert!(report.latest_finish <= seconds(cycle + 1.0 + 1.0), "{context}");
    assert!(report.known >= finished, "{context}: {} of {finished}", report.known);
    assert!(calls.len() as f64 <= length + 1.0, "{context}");
    assert_pace(&calls[calls.len() - 100..], 1.0, 1);
    if tasks < 100 {
        return;
    }
    assert!(calls.len() as f64 >= length * 0.99, "{context}");
    // Full as long as there is enough to ask.
    let early = &calls[1..calls.len() / 4];
    let full = early.iter().filter(|call| call.ids.len() == 50).count();
    assert!(full as f64 >= 0.95 * early.len() as f64, "{context}: {full} of {} full", early.len());
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_of_a_thousand_tasks_polled_every_second() {
    for seed in 0..4 {
        storm(seed, 1000, 600.0).await;
    }
}

#[tokio::test(start_paused = true)]
#[ignore = "takes minutes"]
async fn many_storms() {
    for seed in 4..14 {
        storm(seed, 1000, 600.0).await;
        storm(seed, 37, 600.0).await;
        storm(seed, 2500, 900.0).await;
    }
}
