//! The command line.

use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::scenario::{LEAST_LENGTH, Plan, SCENARIOS};

/// The options of a run.
pub(crate) struct Arguments {
    pub(crate) scenarios: Vec<&'static Plan>,
    /// Seed of the random start and finish times.
    pub(crate) seed: u64,
    /// Length of a scenario with uniform finishes.
    pub(crate) length: Duration,
    /// How early the simulator accepts a call after a late one.
    pub(crate) leeway: Duration,
}

/// What to do.
pub(crate) enum Invocation {
    Run(Arguments),
    Print(String),
}

impl Arguments {
    pub(crate) fn read(mut words: impl Iterator<Item = String>) -> anyhow::Result<Invocation> {
        let mut arguments = Self {
            scenarios: SCENARIOS.iter().collect(),
            seed: 1,
            length: Duration::from_secs(80),
            leeway: Duration::from_millis(100),
        };
        let mut is_bench = false;
        while let Some(word) = words.next() {
            let mut number = || -> anyhow::Result<u64> {
                let value = words.next().with_context(|| format!("{word} needs a number"))?;
                value.parse().with_context(|| format!("{word} {value}: not a number"))
            };
            match word.as_str() {
                "--bench" => is_bench = true,
                "--seed" => arguments.seed = number()?,
                "--seconds" => arguments.length = Duration::from_secs(number()?),
                "--leeway-ms" => arguments.leeway = Duration::from_millis(number()?),
                "--only" => arguments.scenarios = named(&words.next().context("--only needs names")?)?,
                "--help" => return Ok(Invocation::Print(help())),
                _ => bail!("unknown option {word}; --help lists the options"),
            }
        }
        if !is_bench {
            // `cargo test --benches` starts benchmarks too, without this flag.
            return Ok(Invocation::Print(
                "the poll storm takes minutes and runs with: cargo bench --bench poll_storm".into(),
            ));
        }
        ensure!(arguments.length >= LEAST_LENGTH, "--seconds: at least {}", LEAST_LENGTH.as_secs());
        Ok(Invocation::Run(arguments))
    }
}

fn named(names: &str) -> anyhow::Result<Vec<&'static Plan>> {
    let find = |name| SCENARIOS.iter().find(|plan| plan.name == name);
    names
        .split(',')
        .map(|name| {
            find(name).with_context(|| format!("unknown scenario {name}; --help lists the scenarios"))
        })
        .collect()
}

fn help() -> String {
    let mut text = "cargo bench --bench poll_storm -- [options]\n\n\
        \x20 --only NAME,…     only these scenarios\n\
        \x20 --seed N          seed of start and finish times (1)\n\
        \x20 --seconds N       length of a scenario with uniform finishes (80)\n\
        \x20 --leeway-ms N     how early the simulator accepts a call after a late one (100)\n\n\
        scenarios:\n"
        .to_owned();
    for plan in SCENARIOS {
        text.push_str(&format!("  {:<17} {}\n", plan.name, plan.description));
    }
    text
}
