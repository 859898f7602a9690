//! Simulated load: many pending tasks that are polled every second at the rate of one token.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::LocalSet;

use super::backend::Call;
use super::harness::*;
use crate::batcher::TaskOutcome;

#[derive(Default)]
struct Report {
    polls: usize,
    failures_before_first_record: usize,
    failures: usize,
    /// Largest age of a pending record.
    max_age: Duration,
    /// Longest time between a task's end and its final record.
    max_delay: Duration,
    finals: usize,
    /// When the last task got its first record.
    all_fetched_at: Duration,
}

impl Report {
    /// Records the outcome of a poll. Returns whether the task is final.
    fn record(&mut self, outcome: &TaskOutcome, has_record: &mut bool, now: Duration, end: Duration) -> bool {
        self.polls += 1;
        match outcome {
            TaskOutcome::Final { .. } => {
                self.finals += 1;
                self.max_delay = self.max_delay.max(now.saturating_sub(end));
            }
            TaskOutcome::Pending { record, freshness } => {
                let true_age = now - made_at(record);
                assert!(true_age.abs_diff(freshness.age()) <= Duration::from_millis(11), "wrong age");
                self.max_age = self.max_age.max(true_age);
                if !*has_record {
                    self.all_fetched_at = self.all_fetched_at.max(now);
                }
                *has_record = true;
            }
            TaskOutcome::Failed(_) if *has_record => self.failures += 1,
            TaskOutcome::Failed(_) => self.failures_before_first_record += 1,
            other => panic!("{other:?}"),
        }
        is_final(outcome)
    }
}

/// Polls one task as an unmodified client does: a lookup, a pause of one second, the next lookup.
async fn poll(
    harness: Harness,
    name: String,
    task_end: Duration,
    load_end: Duration,
    report: Rc<RefCell<Report>>,
) {
    let mut has_record = false;
    while harness.elapsed() < load_end {
        let outcome = harness.look_up_one(&name).await;
        let now = harness.elapsed();
        if report.borrow_mut().record(&outcome, &mut has_record, now, task_end) {
            return;
        }
        sleep(1.0).await;
    }
}

async fn run_load(seed: u64, tasks: usize, length: f64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let harness = Harness::new();
    harness.start_sweep();
    let report = Rc::new(RefCell::new(Report::default()));
    let pollers = LocalSet::new();
    let mut expected_finals = 0;
    for name in numbered("a", tasks) {
        // Half of the tasks end during the load.
        let end = seconds(random.f64() * 2.0 * length);
        harness.add_final_after(&name, end);
        expected_finals += usize::from(end < seconds(length - 30.0));
        let (harness, report, begin) = (harness.clone(), Rc::clone(&report), random.f64());
        pollers.spawn_local(async move {
            sleep(begin).await;
            poll(harness, name, end, seconds(length), report).await;
        });
    }
    pollers.await;
    let report = report.borrow();
    let calls: Vec<Call> = harness.calls().into_iter().filter(|call| call.at < seconds(length)).collect();
    let cycle = tasks as f64 / 50.0;
    let context = format!(
        "seed {seed}: {} polls, {} calls, {} failures before and {} after the first record (all fetched by {:?}), \
         largest age {:?}, largest delay {:?}",
        report.polls,
        calls.len(),
        report.failures_before_first_record,
        report.failures,
        report.all_fetched_at,
        report.max_age,
        report.max_delay,
    );
    assert_eq!(report.failures, 0, "{context}");
    assert_eq!(report.failures_before_first_record, 0, "{context}");
    // Known ids take a quarter of the calls meanwhile.
    assert!(report.all_fetched_at <= seconds((cycle * 4.0 / 3.0).min(25.0) + 2.0), "{context}");
    assert!(report.max_age <= seconds(2.0 * cycle + 2.0), "{context}");
    assert!(report.max_delay <= seconds(cycle + 1.0 + 1.0), "{context}");
    assert!(report.finals >= expected_finals, "{context}: {} of {expected_finals}", report.finals);
    assert!(calls.len() as f64 <= length + 1.0, "{context}");
    assert_rate(&calls[calls.len() - 100..], 1.0, 1);
    if tasks < 100 {
        return;
    }
    assert!(calls.len() as f64 >= length * 0.99, "{context}");
    // Batches are full while enough tasks are pending.
    let early = &calls[1..calls.len() / 4];
    let full = early.iter().filter(|call| call.ids.len() == 50).count();
    assert!(full as f64 >= 0.95 * early.len() as f64, "{context}: {full} of {} full", early.len());
}

#[tokio::test(start_paused = true)]
async fn thousand_tasks_polled_every_second_for_ten_minutes() {
    for seed in 0..4 {
        run_load(seed, 1000, 600.0).await;
    }
}

#[tokio::test(start_paused = true)]
#[ignore = "takes minutes"]
async fn many_random_loads() {
    for seed in 4..14 {
        run_load(seed, 1000, 600.0).await;
        run_load(seed, 37, 600.0).await;
        run_load(seed, 2500, 900.0).await;
    }
}
