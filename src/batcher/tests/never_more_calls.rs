//! For any behaviour of the clients, there are no more upstream calls than the same clients would
//! have made directly (invariant "Never worse than without").

use proptest::prelude::*;

use super::backend::Call;
use super::harness::*;

/// Number of tasks.
const TASKS: usize = 40;

/// Most ids in a lookup and in a call. A response with 12 records may have been cut, and the probe for
/// that does not count.
const MAX_BATCH: usize = 11;

/// Cases of each property. They take about a millisecond each.
const CASES: u32 = 1000;

/// Step of a client.
#[derive(Clone, Debug)]
struct Step {
    /// Pause before the step, in seconds.
    pause: f64,
    /// First id, and number of ids. One id is a single lookup.
    ids: (usize, usize),
    /// `prefer: wait`, in seconds.
    wait: Option<f64>,
    /// Time after which the client hangs up, in seconds.
    hang_up: Option<f64>,
}

fn step() -> impl Strategy<Value = Step> {
    let ids = prop_oneof![
        4 => (0..TASKS).prop_map(|first| (first, 1)),
        1 => (0..TASKS - MAX_BATCH, 2..=MAX_BATCH),
    ];
    let wait = prop_oneof![3 => Just(None), 1 => (0.5..30.0).prop_map(Some)];
    let hang_up = prop_oneof![4 => Just(None), 1 => (0.1..8.0).prop_map(Some)];
    (0.0..6.0, ids, wait, hang_up).prop_map(|(pause, ids, wait, hang_up)| Step { pause, ids, wait, hang_up })
}

/// Performs the steps of a client. Returns the number of calls that it would have made directly:
/// one for each lookup, or one every three seconds while a lookup waits.
async fn run_client(harness: Harness, steps: Vec<Step>) -> usize {
    let mut direct = 0;
    for Step { pause, ids: (first, count), wait, hang_up } in steps {
        sleep(pause).await;
        let names: Vec<String> = (first..first + count).map(|number| format!("a{number}")).collect();
        let lookup = if count == 1 { single(&names[0]) } else { batch(&names) };
        let lookup = wait.map_or(lookup.clone(), |wait| long_poll(lookup, wait));
        let start = harness.elapsed();
        let result = harness.start(lookup);
        let handle = result.abort_handle();
        match hang_up {
            Some(limit) => {
                let _ = tokio::time::timeout(seconds(limit), result).await;
                handle.abort();
            }
            None => drop(result.await.unwrap()),
        }
        let held = (harness.elapsed() - start).as_secs_f64();
        let polled = wait.map_or(0.0, |wait| held.min(wait));
        direct += (polled / 3.0) as usize + 1;
    }
    direct
}

/// Runs the clients. Returns the calls that they would have made directly, and those that were made.
fn run(clients: &[Vec<Step>], ends: &[Option<f64>], unknown: impl Fn(usize) -> bool) -> (usize, Vec<Call>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let harness = Harness::with(|upstream, _| upstream.max_batch = MAX_BATCH);
        harness.start_sweep();
        for (number, end) in ends.iter().enumerate().filter(|(number, _)| !unknown(*number)) {
            match end {
                Some(end) => harness.add_final_after(&format!("a{number}"), seconds(*end)),
                None => harness.add_pending(&format!("a{number}")),
            }
        }
        let clients: Vec<_> =
            clients.iter().map(|steps| tokio::spawn(run_client(harness.clone(), steps.clone()))).collect();
        let mut direct = 0;
        for client in clients {
            direct += client.await.unwrap();
        }
        // Ids that are still queued are fetched.
        sleep(120.0).await;
        (direct, harness.calls())
    })
}

fn clients() -> impl Strategy<Value = Vec<Vec<Step>>> {
    proptest::collection::vec(proptest::collection::vec(step(), 1..8), 1..12)
}

fn ends() -> impl Strategy<Value = Vec<Option<f64>>> {
    proptest::collection::vec(proptest::option::of(0.0..60.0_f64), TASKS)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn clients_never_cause_more_calls_than_they_would_make(clients in clients(), ends in ends()) {
        let (direct, calls) = run(&clients, &ends, |_| false);
        prop_assert!(calls.len() <= direct, "{} calls, {direct} directly: {calls:?}", calls.len());
    }

    /// An unknown id that a batch left out is requested again alone. These probes are bounded.
    #[test]
    fn unknown_ids_cause_few_more_calls(clients in clients(), ends in ends()) {
        let (direct, calls) = run(&clients, &ends, |number| number % 4 == 0);
        let minutes = calls.last().map_or(0.0, |call| call.at.as_secs_f64() / 60.0).max(1.0);
        let allowed = direct as f64 * 1.1 + 5.0 * minutes;
        prop_assert!(calls.len() as f64 <= allowed, "{} calls, {direct} directly: {calls:?}", calls.len());
    }
}
