//! What can be chosen on the command line.

use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::scenario::{LEAST_LENGTH, Plan, SCENARIOS};

/// What a run does.
pub(crate) struct Arguments {
    pub(crate) scenarios: Vec<&'static Plan>,
    /// Decides when clients start and tasks finish.
    pub(crate) seed: u64,
    /// How long a scenario lasts.
    pub(crate) length: Duration,
    /// How much too early the simulator lets a call come because the one before it was late.
    pub(crate) leeway: Duration,
}

/// What the command line asks for.
pub(crate) enum Wish {
    Run(Arguments),
    Say(String),
}

impl Arguments {
    pub(crate) fn read(mut words: impl Iterator<Item = String>) -> anyhow::Result<Wish> {
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
                "--help" => return Ok(Wish::Say(help())),
                _ => bail!("{word} is not known; --help lists what is"),
            }
        }
        if !is_bench {
            // `cargo test --benches` starts benches too, without this word.
            return Ok(Wish::Say(
                "the poll storm takes minutes and runs with: cargo bench --bench poll_storm".into(),
            ));
        }
        ensure!(arguments.length >= LEAST_LENGTH, "--seconds: at least {}", LEAST_LENGTH.as_secs());
        Ok(Wish::Run(arguments))
    }
}

fn named(names: &str) -> anyhow::Result<Vec<&'static Plan>> {
    let find = |name| SCENARIOS.iter().find(|plan| plan.name == name);
    names
        .split(',')
        .map(|name| find(name).with_context(|| format!("no scenario {name}; --help lists them")))
        .collect()
}

fn help() -> String {
    let mut text = "cargo bench --bench poll_storm -- [options]\n\n\
        \x20 --only NAME,…     these scenarios alone\n\
        \x20 --seed N          another draw of starts and finishes (1)\n\
        \x20 --seconds N       length of a scenario (80)\n\
        \x20 --leeway-ms N     how much too early the simulator lets a call come after a late one (100)\n\n\
        scenarios:\n"
        .to_owned();
    for plan in SCENARIOS {
        text.push_str(&format!("  {:<14} {}\n", plan.name, plan.title));
    }
    text
}
