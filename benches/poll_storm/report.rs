//! The tables and the targets.

use std::fmt;
use std::time::{Duration, Instant};

use refrain::config::{Config, UpstreamConfig};

use crate::arguments::Arguments;
use crate::client::{Known, Observations};
use crate::scenario::Scenario;
use crate::side::Kind;

/// Time for round trips, with two servers, a proxy and all clients in one process.
const TOLERANCE: Duration = Duration::from_millis(250);

/// Allowed factor of calls above rate × time.
const CALLS_FACTOR: f64 = 1.1;

/// Result of one side of a scenario.
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) seen: Observations,
    pub(crate) upstream_calls: usize,
    pub(crate) too_many_requests_sent: u64,
    /// Pairs of client and task whose final record was not received.
    pub(crate) never_known: usize,
    pub(crate) tokens: Vec<TokenCalls>,
}

/// Calls of one token, as counted by the upstream.
#[derive(Clone, Copy)]
pub(crate) struct TokenCalls {
    calls: u32,
    first: Instant,
    last: Instant,
}

impl TokenCalls {
    pub(crate) fn new(at: Instant) -> Self {
        Self { calls: 0, first: at, last: at }
    }

    pub(crate) fn count(&mut self, at: Instant) {
        self.calls += 1;
        self.first = self.first.min(at);
        self.last = self.last.max(at);
    }

    /// Allowed number of calls between the first and the last.
    fn bound(&self, upstream: &UpstreamConfig) -> f64 {
        let time = (self.last - self.first).as_secs_f64();
        CALLS_FACTOR * upstream.requests_per_second * time + f64::from(upstream.burst)
    }
}

/// The printed report.
pub(crate) struct Report {
    head: String,
    /// Rows of requests and errors.
    requests: Vec<String>,
    /// Rows of the time until a client knows that a task is final.
    times: Vec<String>,
    notes: Vec<String>,
    targets: Vec<Target>,
    upstream: UpstreamConfig,
}

struct Target {
    is_met: bool,
    text: String,
}

impl Report {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let head = format!(
            "refrain {} · seed {} · {} s per scenario · leeway {} ms",
            env!("CARGO_PKG_VERSION"),
            arguments.seed,
            arguments.length.as_secs(),
            arguments.leeway.as_millis()
        );
        let upstream = Config::default().upstream;
        Self {
            head,
            requests: Vec::new(),
            times: Vec::new(),
            notes: Vec::new(),
            targets: Vec::new(),
            upstream,
        }
    }

    /// Whether every target was met.
    pub(crate) fn holds(&self) -> bool {
        self.targets.iter().all(|target| target.is_met)
    }

    pub(crate) fn add(&mut self, scenario: &Scenario, row: &Row) {
        let (seen, known) = (&row.seen, &row.seen.known);
        let side = format!("| {} | {} |", scenario.title, row.kind.as_str());
        let requests = format!(
            "{side} {} | {} | {} | {} | {} |",
            seen.polls,
            row.upstream_calls,
            row.too_many_requests_sent,
            seen.too_many_requests,
            seen.errors.values().sum::<u64>(),
        );
        let times = format!(
            "{side} {} | {} | {} | {} | {} |",
            at_share(known, 0.5),
            at_share(known, 0.95),
            at_share(known, 1.0),
            row.never_known,
            seconds(seen.longest_response),
        );
        eprintln!("{requests}\n{times}");
        self.requests.push(requests);
        self.times.push(times);
        if !seen.errors.is_empty() {
            self.notes.push(format!("{}, {}: {:?}", scenario.title, row.kind.as_str(), seen.errors));
        }
        if row.kind == Kind::Refrain && scenario.has_targets {
            self.add_targets(scenario, row);
        }
    }

    fn add_targets(&mut self, scenario: &Scenario, row: &Row) {
        let mut target = |is_met: bool, what: String| {
            self.targets.push(Target { is_met, text: format!("{}: {what}", scenario.title) });
        };
        let seen = &row.seen;
        target(
            seen.too_many_requests == 0,
            format!("no client receives a 429 (received: {})", seen.too_many_requests),
        );
        let errors: u64 = seen.errors.values().sum();
        target(errors == 0, format!("no client receives another error (received: {errors})"));

        let excess = |token: &TokenCalls| f64::from(token.calls) / token.bound(&self.upstream);
        match row.tokens.iter().max_by(|one, other| excess(one).total_cmp(&excess(other))) {
            None => target(false, "no call reached the upstream".to_owned()),
            Some(token) => target(
                excess(token) <= 1.0,
                format!(
                    "calls of a token are at most {CALLS_FACTOR} × rate × time + burst ({} in {}, allowed {:.1})",
                    token.calls,
                    seconds(token.last - token.first),
                    token.bound(&self.upstream)
                ),
            ),
        }

        let calls = u32::try_from(scenario.most_ids_per_token().div_ceil(self.upstream.max_batch))
            .unwrap_or(u32::MAX);
        let cycle = Duration::from_secs_f64(f64::from(calls) / self.upstream.requests_per_second);
        let beyond_pause = |known: &Known| known.after.saturating_sub(known.pause);
        let worst = seen.known.iter().map(beyond_pause).max().unwrap_or_default();
        target(
            worst <= cycle + TOLERANCE && !seen.known.is_empty(),
            format!(
                "a final record is known within a cycle of {} + the client's pause + {} (latest: its pause + {})",
                seconds(cycle),
                seconds(TOLERANCE),
                seconds(worst)
            ),
        );
        target(
            row.never_known == 0,
            format!("every final record becomes known (unknown: {})", row.never_known),
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.head)?;
        writeln!(
            f,
            "| scenario | side | client polls | upstream calls | 429s sent | 429s received | other errors |"
        )?;
        writeln!(f, "| --- | --- | --: | --: | --: | --: | --: |")?;
        for row in &self.requests {
            writeln!(f, "{row}")?;
        }
        writeln!(f, "\n| scenario | side | median | p95 | max | never known | longest response |")?;
        writeln!(f, "| --- | --- | --: | --: | --: | --: | --: |")?;
        for row in &self.times {
            writeln!(f, "{row}")?;
        }
        for note in &self.notes {
            writeln!(f, "\nother errors: {note}")?;
        }
        writeln!(f)?;
        for Target { is_met, text } in &self.targets {
            writeln!(f, "{} {text}", if *is_met { "pass" } else { "FAIL" })?;
        }
        let missed = self.targets.iter().filter(|target| !target.is_met).count();
        writeln!(f, "\n{} targets, {missed} missed", self.targets.len())
    }
}

/// The time within which this share of the sorted final records was known.
fn at_share(sorted: &[Known], share: f64) -> String {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map_or_else(|| "–".to_owned(), |known| seconds(known.after))
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
