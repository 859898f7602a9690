//! The poll storm: the same clients call the simulated upstream directly and through refrain, at
//! the same time. Some scenarios compare refrain with and without learnt durations.
//!
//! `cargo bench --bench poll_storm` runs all scenarios; `-- --help` lists the options.
//! `docs/poll-storm.md` explains the tables and has a result. The exit code is 1 if refrain misses
//! a target.
//!
//! - [`scenario`]: clients, their ids, and when tasks finish
//! - [`client`]: behaviour of a client
//! - [`side`]: one side of a scenario: simulator, optional proxy, clients, counts
//! - [`report`]: tables and targets

#![expect(clippy::print_stdout, reason = "the benchmark prints its result")]

#[path = "poll_storm/arguments.rs"]
mod arguments;
#[path = "poll_storm/client.rs"]
mod client;
#[path = "poll_storm/report.rs"]
mod report;
#[path = "poll_storm/scenario.rs"]
mod scenario;
#[path = "poll_storm/side.rs"]
mod side;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::Instant;

use arguments::{Arguments, Invocation};
use report::{Report, Row};
use scenario::{Plan, Scenario};
use side::Side;

/// Limit of descriptors: a thousand clients have a thousand connections, with both ends in this
/// process.
const DESCRIPTORS: u64 = 8192;

/// Time between the last preparation and the first poll.
const COUNTDOWN: Duration = Duration::from_millis(200);

fn main() -> anyhow::Result<ExitCode> {
    let arguments = match Arguments::read(std::env::args().skip(1))? {
        Invocation::Run(arguments) => Arc::new(arguments),
        Invocation::Print(text) => {
            println!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    rlimit::increase_nofile_limit(DESCRIPTORS).context("raise the limit of descriptors")?;
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let report = runtime.block_on(storm(&arguments))?;
    print!("{report}");
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the light scenarios at the same time, then the others one after the other.
async fn storm(arguments: &Arc<Arguments>) -> anyhow::Result<Report> {
    let mut results = Vec::new();
    let (light, heavy): (Vec<_>, Vec<_>) =
        arguments.scenarios.iter().copied().enumerate().partition(|(_, plan)| plan.is_light);
    let groups = std::iter::once(light).chain(heavy.into_iter().map(|plan| vec![plan]));
    for group in groups {
        let mut running = JoinSet::new();
        for (number, plan) in group {
            eprintln!("{}: {}", plan.title, plan.description);
            let arguments = Arc::clone(arguments);
            running.spawn(async move { all_sides(plan, &arguments).await.map(|rows| (number, rows)) });
        }
        while let Some(result) = running.join_next().await {
            results.push(result.context("a scenario panicked")??);
        }
    }
    results.sort_unstable_by_key(|(number, _)| *number);
    let mut report = Report::new(arguments);
    for (_, (scenario, rows)) in &results {
        report.add(scenario, rows);
    }
    Ok(report)
}

async fn all_sides(plan: &Plan, arguments: &Arguments) -> anyhow::Result<(Arc<Scenario>, Vec<Row>)> {
    let scenario = Arc::new(plan.build(arguments.seed, arguments.length));
    let mut sides = Vec::new();
    for kind in scenario.kinds() {
        sides.push(Side::prepare(*kind, &scenario, arguments).await?);
    }
    let start = Instant::now() + COUNTDOWN;
    let mut running = JoinSet::new();
    for (number, side) in sides.into_iter().enumerate() {
        running.spawn(async move { side.run(start).await.map(|row| (number, row)) });
    }
    let mut rows = Vec::new();
    while let Some(result) = running.join_next().await {
        rows.push(result.context("a side panicked")??);
    }
    rows.sort_unstable_by_key(|(number, _)| *number);
    Ok((scenario, rows.into_iter().map(|(_, row)| row).collect()))
}
