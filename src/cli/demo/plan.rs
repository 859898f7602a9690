//! Tasks of the comparison: plain data, drawn from a seed.

use std::time::Duration;

use fastrand::Rng;

/// Work of some clients: each starts a task of this service once per round.
struct Workload {
    service: &'static str,
    clients: usize,
    rounds: u32,
    /// Time between two rounds. This and the next two are shares of the comparison's length.
    interval: f64,
    shortest: f64,
    longest: f64,
}

/// Images are fast and frequent, videos slow and rare, so that learnt durations differ.
const WORKLOADS: [Workload; 3] = [
    Workload { service: "flux", clients: 15, rounds: 4, interval: 0.2, shortest: 0.07, longest: 0.14 },
    Workload { service: "producer", clients: 14, rounds: 2, interval: 0.4, shortest: 0.18, longest: 0.28 },
    Workload { service: "veo", clients: 11, rounds: 1, interval: 0.0, shortest: 0.4, longest: 0.75 },
];

/// Share of the comparison within which the clients start their tasks of a round.
const SPREAD: f64 = 0.05;

/// Number of clients of each crowd.
pub(super) const CLIENTS: usize = WORKLOADS[0].clients + WORKLOADS[1].clients + WORKLOADS[2].clients;

/// Task of the comparison.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlannedTask {
    pub(super) service: &'static str,
    /// Time from the start of the comparison to the start of the task.
    pub(super) starts_after: Duration,
    /// Time from the start of the task to its end.
    pub(super) duration: Duration,
}

/// Returns the tasks of a comparison of this length, in the order in which they start. All of them end
/// within the first nine tenths.
pub(super) fn draw(length: Duration) -> Vec<PlannedTask> {
    let mut rng = Rng::with_seed(1);
    let mut between = |from: f64, to: f64| length.mul_f64(from + (to - from) * rng.f64());
    let mut tasks = Vec::new();
    for workload in &WORKLOADS {
        for round in 0..workload.rounds {
            let start = workload.interval * f64::from(round);
            tasks.extend((0..workload.clients).map(|_| PlannedTask {
                service: workload.service,
                starts_after: between(start, start + SPREAD),
                duration: between(workload.shortest, workload.longest),
            }));
        }
    }
    tasks.sort_by_key(|task| task.starts_after);
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_end_before_the_comparison_and_differ_by_service() {
        let length = Duration::from_secs(60);
        let tasks = draw(length);
        assert!(tasks.is_sorted_by_key(|task| task.starts_after));
        assert!(tasks.iter().all(|task| task.starts_after + task.duration < length.mul_f64(0.9)));
        assert_eq!(tasks.iter().filter(|task| task.service == "flux").count(), 60);
        let longest = |service| tasks.iter().filter(|t| t.service == service).map(|t| t.duration).max();
        assert!(longest("flux") < longest("producer") && longest("producer") < longest("veo"));
        assert_eq!(tasks, draw(length), "the same in each run");
    }
}
