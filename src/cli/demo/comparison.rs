//! The comparison: two crowds of the same clients, one calls the upstream, the other calls refrain.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::crowd::{Crowd, DASHBOARD_SERVICE};
use super::plan::{self, PlannedTask};
use super::screen::Screen;
use crate::telemetry::{Comparison, CrowdFigures};
use refrain_simulator::Simulator;

/// Time between two updates of the figures.
const UPDATE_INTERVAL: Duration = Duration::from_millis(500);

/// Compares for `length`, and shows the figures on the screen and on the dashboard.
pub(super) async fn compare(
    simulator: &Simulator,
    proxy_url: String,
    length: Duration,
    shown: &watch::Sender<Option<Comparison>>,
    screen: &mut Screen,
) {
    let tasks = plan::draw(length);
    screen.print(&format!(
        "The same {} clients and a dashboard, twice at the same time: directly and through refrain.\n\
         Each crowd has a token of its own. Both look up the same {} tasks: images, songs and videos.\n\n",
        plan::CLIENTS,
        tasks.len()
    ));
    let crowds =
        [Crowd::new(simulator.base_url(), "demo-direct-token"), Crowd::new(proxy_url, "demo-refrain-token")];
    let mut clients = JoinSet::new();
    for crowd in &crowds {
        clients.spawn(Arc::clone(crowd).refresh_dashboard());
    }
    let start = Instant::now();
    let mut ends = Vec::new();
    let mut tasks = tasks.into_iter().peekable();
    let mut updates = tokio::time::interval(UPDATE_INTERVAL);
    updates.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = tasks.peek().map(|task| start + task.starts_after);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(start + length) => break,
            () = tokio::time::sleep_until(next.unwrap_or(start)), if next.is_some() => {
                if let Some(task) = tasks.next() {
                    ends.push(start_task(&task, simulator, &crowds, &mut clients));
                }
            }
            _ = updates.tick() => {
                let figures = measure(simulator, &crowds, &ends, start, length);
                shown.send_replace(Some(figures));
                screen.update(&figures);
            }
        }
    }
    drop(clients);
    let figures = measure(simulator, &crowds, &ends, start, length);
    shown.send_replace(Some(figures));
    screen.finish(&figures);
}

/// Starts a task that both tokens own, and a client of each crowd. Returns when the task ends.
fn start_task(
    task: &PlannedTask,
    simulator: &Simulator,
    crowds: &[Arc<Crowd>; 2],
    clients: &mut JoinSet<()>,
) -> Instant {
    let id = simulator.create_lasting(task.service, crowds[0].token(), task.duration);
    let ends_at = Instant::now() + task.duration;
    simulator.share(&id, crowds[1].token());
    for crowd in crowds {
        if task.service == DASHBOARD_SERVICE {
            crowd.show(&id);
        }
        clients.spawn(Arc::clone(crowd).poll(task.service, id.clone(), ends_at));
    }
    ends_at
}

fn measure(
    simulator: &Simulator,
    crowds: &[Arc<Crowd>; 2],
    ends: &[Instant],
    start: Instant,
    length: Duration,
) -> Comparison {
    let now = Instant::now();
    let [direct, refrain] = crowds.each_ref().map(|crowd| {
        let mut observed = crowd.observations();
        observed.delays.sort_unstable();
        CrowdFigures {
            upstream_calls: simulator.call_count_of(crowd.token()),
            rate_limited: observed.rate_limited,
            failed: observed.failed,
            known: observed.delays.len(),
            median_delay_seconds: observed.delays.get(observed.delays.len() / 2).map(Duration::as_secs_f64),
        }
    });
    Comparison {
        elapsed_seconds: (now - start).min(length).as_secs_f64(),
        length_seconds: length.as_secs_f64(),
        clients: plan::CLIENTS,
        finished: ends.iter().filter(|end| **end <= now).count(),
        direct,
        refrain,
    }
}
