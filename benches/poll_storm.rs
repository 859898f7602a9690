//! The poll storm: the same clients call the simulated upstream directly and through refrain, at
//! the same time.
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
use tokio::time::Instant;

use arguments::{Arguments, Invocation};
use report::{Report, Row};
use scenario::Scenario;
use side::{Kind, Side};

/// Limit of descriptors: a thousand clients have a thousand connections, with both ends in this
/// process.
const DESCRIPTORS: u64 = 8192;

/// Time between the last preparation and the first poll.
const COUNTDOWN: Duration = Duration::from_millis(200);

fn main() -> anyhow::Result<ExitCode> {
    let arguments = match Arguments::read(std::env::args().skip(1))? {
        Invocation::Run(arguments) => arguments,
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

async fn storm(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::new(arguments);
    for (number, scenario) in (1..).zip(&arguments.scenarios) {
        let scenario = Arc::new(scenario.build(arguments.seed, arguments.length));
        eprintln!("{number} of {}: {}", arguments.scenarios.len(), scenario.description);
        let (direct, refrain) = both_sides(&scenario, arguments).await?;
        report.add(&scenario, &direct);
        report.add(&scenario, &refrain);
    }
    Ok(report)
}

async fn both_sides(scenario: &Arc<Scenario>, arguments: &Arguments) -> anyhow::Result<(Row, Row)> {
    let direct = Side::prepare(Kind::Direct, scenario, arguments).await?;
    let refrain = Side::prepare(Kind::Refrain, scenario, arguments).await?;
    let start = Instant::now() + COUNTDOWN;
    tokio::try_join!(direct.run(start, arguments.length), refrain.run(start, arguments.length))
}
