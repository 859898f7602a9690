//! The poll storm: the same clients ask the simulated upstream directly and through refrain, at the same time, and
//! one table tells how both fared.
//!
//! `cargo bench --bench poll_storm` runs everything; `-- --help` lists what can be chosen. What the numbers mean and
//! what they were stands in `docs/poll-storm.md`. The exit code is 1 if refrain misses a target.
//!
//! - [`scenario`]: who asks for what, and when tasks finish
//! - [`client`]: how a client behaves
//! - [`side`]: one side of a scenario: simulator, proxy or none, clients, counts
//! - [`report`]: table and targets

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

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

use arguments::{Arguments, Wish};
use report::{Report, Row};
use scenario::Scenario;
use side::{Kind, Side};

/// Descriptors asked for: a thousand clients are a thousand connections, each with both of its ends in here.
const DESCRIPTORS: u64 = 8192;

/// Between the last preparation and the first poll.
const COUNTDOWN: Duration = Duration::from_millis(200);

fn main() -> anyhow::Result<ExitCode> {
    let arguments = match Arguments::read(std::env::args().skip(1))? {
        Wish::Run(arguments) => arguments,
        Wish::Say(text) => {
            println!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    rlimit::increase_nofile_limit(DESCRIPTORS).context("ask for more descriptors")?;
    // An error says that it is there already.
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
        eprintln!("{number} of {}: {}", arguments.scenarios.len(), scenario.title);
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
